//! No statement looks at the backlog: the plan of every statement in the engine's source is read, and kept in
//! `plans.txt`.
//!
//! The statements are taken from the source itself, so that a new one cannot be forgotten. They are planned as the
//! engine has them planned, in a schema with nothing in it: what a plan goes by is the indexes there are, not what is
//! stored. A plan that changed is looked at, and then written down with `TIDEGATE_PLANS=write`.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::fixture::{Place, connect, run};

/// Tables with a row per message, ever or waiting, or per act: a scan of one is a cost that grows without bound.
const LARGE: [&str; 11] =
    ["message", "key", "ready", "sched", "lease", "result", "held", "effect", "evidence", "history", "redriven"];

/// Statements that may read a table from end to end, and why.
const MAY: [(&str, &str); 9] = [
    ("-- claim, repeated", "when a reply was lost: as much as there are running handlers"),
    ("-- watch: all of them", "when the clock was set: as much as there are running handlers"),
    ("-- watch: what was parked ahead", "when the clock is set back: as much as is parked"),
    ("-- watch: what died ahead", "when the clock is set back: as much as is dead"),
    ("-- migrate: older programs", "once for a step that they cannot live with: as much as there are running handlers"),
    ("-- restored, once", "made once in the life of a store that was restored"),
    ("-- operate: how many there are as it begins", "counted once for each operation, from an index of the dead"),
    ("-- stats", "what runs or is open: as much as there are running handlers, or a partial index of it"),
    ("-- sweep", "in bounded steps, from the end of an index"),
];

/// An index that holds no more than what is under way, and may be gone through.
const BOUNDED: &str = "effect_open";

/// The doctor reads all of every table: that is what it is for, and it holds up nobody.
const READS_ALL: &str = "doctor.rs";

fn source(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// The pieces of a source file that matter here: words and signs as they are, and what the texts say.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Code(String),
    Text(String),
}

/// Takes a source file apart into code and texts; comments are gone.
fn pieces(source: &str) -> Vec<Piece> {
    let (mut pieces, mut code) = (Vec::new(), String::new());
    let mut rest = source.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => {
                for skipped in rest.by_ref() {
                    if skipped == '\n' {
                        break;
                    }
                }
            }
            '\'' => {
                // A character, if it ends like one; else a lifetime.
                code.push(c);
                let ahead: Vec<char> = rest.clone().take(3).collect();
                let length = match ahead[..] {
                    ['\\', _, '\''] => 3,
                    [_, '\'', ..] => 2,
                    _ => 0,
                };
                rest.by_ref().take(length).for_each(drop);
            }
            '"' => {
                pieces.push(Piece::Code(std::mem::take(&mut code)));
                let mut text = String::new();
                while let Some(c) = rest.next() {
                    match c {
                        '"' => break,
                        '\\' => match rest.next() {
                            Some('\n') => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                            Some('n') => text.push('\n'),
                            Some(other) => text.push(other),
                            None => {}
                        },
                        c => text.push(c),
                    }
                }
                pieces.push(Piece::Text(text));
            }
            c => code.push(c),
        }
    }
    pieces.push(Piece::Code(code));
    pieces
}

/// The texts of `macro_rules!` that stand for a part of a statement, by name.
fn macros(pieces: &[Piece]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for pair in pieces.windows(2) {
        let [Piece::Code(code), Piece::Text(text)] = pair else { continue };
        let Some((_, after)) = code.rsplit_once("macro_rules! ") else { continue };
        let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if after.trim_end().ends_with("=> {") {
            found.insert(name, text.clone());
        }
    }
    found
}

/// Every statement of a source file: a text by itself, or what `concat!` makes of several.
fn statements(pieces: &[Piece], macros: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut together: Option<String> = None;
    for piece in pieces {
        match (piece, &mut together) {
            (Piece::Text(text), Some(together)) => together.push_str(text),
            (Piece::Text(text), None) => found.push(text.clone()),
            (Piece::Code(code), _) => {
                let mut code = code.as_str();
                if together.is_none() {
                    let Some((_, after)) = code.rsplit_once("concat!(") else { continue };
                    together = Some(String::new());
                    code = after;
                }
                let parts = together.get_or_insert_default();
                let code = code.replace("!()", "!");
                let inside = code.split(')').next().unwrap_or_default();
                for word in inside.split(|c: char| !c.is_alphanumeric() && !"_!$".contains(c)) {
                    match word.strip_suffix('!').and_then(|name| macros.get(name)) {
                        Some(text) => parts.push_str(text),
                        // What a macro is given: of no consequence to what is read.
                        None if word.starts_with('$') => parts.push_str("null"),
                        None => {}
                    }
                }
                if inside.len() < code.len() {
                    found.extend(together.take());
                    // The next one may begin before there is another text.
                    if code[inside.len()..].contains("concat!(") {
                        together = Some(String::new());
                    }
                }
            }
        }
    }
    let verbs = ["select ", "insert ", "update ", "delete ", "with "];
    found.retain(|text| {
        let body: String =
            text.lines().map(str::trim).filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join(" ");
        verbs.iter().any(|verb| body.trim().starts_with(verb)) && body.contains("tidegate.")
    });
    found
}

/// Everything that the engine sends, with the file it is in.
fn all() -> Vec<(String, String)> {
    let files: Vec<PathBuf> =
        fs::read_dir(source("src")).expect("the source is there").map(|file| file.expect("a file").path()).collect();
    let taken: Vec<(String, Vec<Piece>)> = files
        .iter()
        .map(|file| {
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            let text = fs::read_to_string(file).expect("text");
            // Tests of the source have statements of their own.
            (name, pieces(text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default()))
        })
        .collect();
    let macros: BTreeMap<String, String> = taken.iter().flat_map(|(_, pieces)| macros(pieces)).collect();
    let mut all: Vec<(String, String)> = taken
        .iter()
        .filter(|(name, _)| name != READS_ALL)
        .flat_map(|(name, pieces)| statements(pieces, &macros).into_iter().map(|sql| (name.clone(), sql)))
        .collect();
    all.sort();
    all
}

/// As the engine sets it for each of its transactions.
const PLANNED: &str = "set plan_cache_mode = 'force_generic_plan'; set enable_seqscan = off; set enable_hashjoin = off;
    set enable_mergejoin = off; set jit = off";

/// The lines of the plan of a statement whose parameters are not known.
async fn plan(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let said = |error: tokio_postgres::Error| error.as_db_error().map_or(error.to_string(), |e| e.message().to_owned());
    client.batch_execute(&format!("prepare looked_at as {sql}")).await.map_err(said)?;
    let types =
        "select coalesce(array_length(parameter_types, 1), 0) from pg_prepared_statements where name = 'looked_at'";
    let count: i32 = client.query_one(types, &[]).await.map_err(said)?.get(0);
    let nulls = vec!["null"; usize::try_from(count).expect("a count")].join(", ");
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    let lines = client.simple_query(&format!("explain (costs off) execute looked_at{arguments}")).await;
    client.batch_execute("deallocate looked_at").await.map_err(said)?;
    let line = |message: SimpleQueryMessage| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0).map(str::to_owned)
    };
    let lines = lines.map_err(said)?.into_iter().filter_map(line);
    Ok(lines.collect())
}

/// The table and the first column of each index: what is looked up by another column alone goes through all of it.
type Indexes = BTreeMap<String, (String, String)>;

async fn indexes(client: &Client, schema: &str) -> Indexes {
    let sql = "select c.relname::text, t.relname::text, pg_get_indexdef(i.indexrelid, 1, true) from pg_index i
        join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid
        join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1";
    let rows = client.query(sql, &[&schema]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

/// What a plan reads, and how: each table with the index by which it is looked into, or that all of it is read.
/// How an index is gone through is left out: it differs from one version of the server to the next.
fn scans(plan: &[String], indexes: &Indexes) -> Vec<String> {
    let mut found = Vec::new();
    for (at, line) in plan.iter().enumerate() {
        let node = line.trim().trim_start_matches("->").trim();
        let word_after = |word: &str| node.split_once(word).and_then(|(_, rest)| rest.split(' ').next());
        if node.starts_with("Seq Scan") {
            found.push(format!("{}, all of it", word_after(" on ").unwrap_or_default()));
            continue;
        }
        let bitmap = node.starts_with("Bitmap Index Scan");
        let Some(index) = (if bitmap { word_after(" on ") } else { word_after(" using ") }) else { continue };
        let Some((table, first)) = indexes.get(index) else { continue };
        let by_first = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == first);
        let mut details = plan[at + 1..].iter().take_while(|line| !line.contains("->")).map(|line| line.trim());
        let looked_up = details.any(|line| line.starts_with("Index Cond:") && by_first(line));
        found.push(format!("{table} by {index}{}", if looked_up { "" } else { ", all of it" }));
    }
    found.sort();
    found.dedup();
    found
}

/// Whether a scan costs more the more there is.
fn grows(scan: &str) -> bool {
    let table = scan.split([' ', ',']).next().unwrap_or_default();
    scan.ends_with(", all of it") && LARGE.contains(&table) && !scan.contains(BOUNDED)
}

#[test]
fn no_statement_reads_a_table_that_grows_without_bound_and_every_plan_is_the_one_that_was_looked_at() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        client.batch_execute(PLANNED).await.unwrap();
        let indexes = indexes(&client, place.schema.name()).await;
        let (mut shown, mut wrong) = (String::new(), Vec::new());
        let all = all();
        assert!(all.len() > 80, "only {} statements were found in the source", all.len());
        for (file, sql) in &all {
            let name = sql.lines().next().unwrap_or_default().trim();
            let plan = match plan(&client, &sql.replace("tidegate.", &place.name(""))).await {
                Ok(plan) => plan,
                Err(error) => {
                    wrong.push(format!("{file}: {error}\n{sql}"));
                    continue;
                }
            };
            let scans = scans(&plan, &indexes);
            let may = MAY.iter().any(|(first, _)| name.starts_with(first));
            for scan in scans.iter().filter(|scan| grows(scan) && !may) {
                wrong.push(format!("{file}: {scan}\n{sql}\n{}", plan.join("\n")));
            }
            let name: String = name.chars().take(120).collect();
            writeln!(shown, "{file}: {name}").unwrap();
            scans.iter().for_each(|scan| writeln!(shown, "    {scan}").unwrap());
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        compare(&shown);
    });
}

#[expect(clippy::disallowed_methods, reason = "how whoever changed a plan says that the change is wanted")]
fn compare(shown: &str) {
    let kept = source("tests/it/plans.txt");
    if std::env::var("TIDEGATE_PLANS").is_ok_and(|what| what == "write") {
        fs::write(&kept, shown).expect("the file can be written");
    }
    let before = fs::read_to_string(&kept).unwrap_or_default();
    let changed: Vec<&str> = shown.lines().filter(|line| !before.lines().any(|known| known == *line)).collect();
    let gone: Vec<&str> = before.lines().filter(|line| !shown.lines().any(|known| known == *line)).collect();
    assert!(
        before == shown,
        "plans are not those of tests/it/plans.txt: write them with TIDEGATE_PLANS=write, and look at the difference\n\
         new: {changed:#?}\ngone: {gone:#?}"
    );
}

#[test]
fn a_statement_that_reads_everything_is_found() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        client.batch_execute(PLANNED).await.unwrap();
        let seq = format!("select 1 from {} m where m.key = $1", place.name("message"));
        let indexes = indexes(&client, place.schema.name()).await;
        let scans_of = async |sql: &str| scans(&plan(&client, sql).await.unwrap(), &indexes);
        assert_eq!(scans_of(&seq).await, ["message, all of it"]);
        let whole = format!("select id from {} order by id limit $1", place.name("held"));
        assert_eq!(scans_of(&whole).await, ["held by held_pkey, all of it"]);
        let right = format!("select lane from {} where id = $1", place.name("ready"));
        assert_eq!(scans_of(&right).await, ["ready by ready_by_id"]);
        client.batch_execute(&format!("drop index {}", place.name("ready_by_id"))).await.unwrap();
        let lost = scans_of(&right).await;
        assert!(grows(&lost[0]), "{lost:?}");
    });
}

#[test]
fn statements_are_found_in_the_source() {
    let source = r#"
        // "select 1 from tidegate.nothing"
        macro_rules! columns { () => { "m.id, m.lane" }; }
        const A: &str = "-- a: why
            select * from tidegate.message where id = $1";
        const B: &str = concat!("select ", row::columns!(), " from tidegate.message m \
            where m.id = $1");
        const D: &str = concat!("-- d\n select ", row::columns!(), " from tidegate.message m");
        fn f<'a>(c: char) -> bool { c == '"' && c != '\'' }
        const C: &str = "no statement of tidegate.";
    "#;
    let pieces = pieces(source);
    let found = statements(&pieces, &macros(&pieces));
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[2], "-- d\n select m.id, m.lane from tidegate.message m");
    assert_eq!(found[1], "select m.id, m.lane from tidegate.message m where m.id = $1");
}
