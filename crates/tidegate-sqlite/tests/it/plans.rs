//! No statement looks at the backlog: the plan of every statement in the engine's source is read.

use std::fs;
use std::path::Path;

use crate::fixture::Place;

/// Tables with a row per message, ever or waiting: a scan of one is a cost that grows with the backlog.
const LARGE: [&str; 8] =
    ["tide_message", "tide_key", "tide_ready", "tide_sched", "tide_result", "tide_held", "tide_effect", "tide_history"];

/// Statements that may: an operator's list is no hot path, and shows the first rows by id, which is not the claim's order.
const MAY: [&str; 2] = ["-- list: ready", "-- list: ready, due later"];

/// The statements of a copy's first commit may as well: they are made once in the life of a restored store.
const ONCE: &str = "-- restored, once";

/// What breaks a rule for a test of the tests runs in no shipped program.
const BROKEN: &str = ", broken: ";

/// The doctor reads all of every table: that is what it is for, and it holds up nobody.
const READS_ALL: &str = "doctor.rs";

/// Seals are about rows, and only their tests have statements.
const READS_NONE: &str = "seal.rs";

/// Every string of a source file that is a statement about the engine's tables.
fn statements(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('"') {
        let Some(length) = rest[start + 1..].find('"') else { break };
        let text = &rest[start + 1..start + 1 + length];
        rest = &rest[start + length + 2..];
        let body: String =
            text.lines().map(str::trim).filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join(" ");
        let is_statement =
            ["select ", "insert ", "update ", "delete "].iter().any(|verb| body.trim().starts_with(verb));
        if is_statement && body.contains("tide_") {
            found.push(text.to_owned());
        }
    }
    found
}

#[test]
fn no_statement_scans_a_table_that_grows_with_the_backlog() {
    let place = Place::new();
    let _store = place.open();
    let conn = place.connection();
    let (mut read, mut scans) = (0, Vec::new());
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("the source is there") {
        let file = file.expect("a file").path();
        // The last one is for fuzzing alone, with a store of one row.
        if [READS_ALL, READS_NONE, "fuzz.rs"].iter().any(|other| file.ends_with(other)) {
            continue;
        }
        for sql in statements(&fs::read_to_string(&file).expect("text")) {
            read += 1;
            let mut plan = match conn.prepare(&format!("explain query plan {sql}")) {
                Ok(plan) => plan,
                Err(error) => panic!("{}: {sql}\n{error}", file.display()),
            };
            let parameters = plan.parameter_count();
            let mut rows = plan.query(rusqlite::params_from_iter(vec![0_i64; parameters])).expect("a plan");
            while let Some(row) = rows.next().expect("a step") {
                let step: String = row.get("detail").expect("its text");
                let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split_whitespace().next());
                let table = scanned.map(|name| full_name(name, &sql));
                let first = sql.lines().next().unwrap_or_default();
                // A partial index holds only the rows of its condition: open effects, parked messages, flows.
                if table.is_some_and(|table| LARGE.contains(&table.as_str()))
                    && !step.contains("tide_effect_open")
                    && !MAY.contains(&first)
                    && !first.starts_with(ONCE)
                    && !first.contains(BROKEN)
                {
                    scans.push(format!("{}: {step}\n{sql}", file.display()));
                }
            }
        }
    }
    assert!(read > 60, "only {read} statements were found in the source");
    assert!(scans.is_empty(), "{}", scans.join("\n\n"));
}

/// The table behind an alias of a statement.
fn full_name(name: &str, sql: &str) -> String {
    let words: Vec<&str> = sql.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let aliased = words.windows(2).find(|pair| pair[0].starts_with("tide_") && pair[1] == name);
    aliased.map_or(name, |pair| pair[0]).to_owned()
}

#[test]
fn a_statement_that_scans_is_found() {
    let place = Place::new();
    let _store = place.open();
    let conn = place.connection();
    let mut plan = conn.prepare("explain query plan select * from tide_message m where m.key = ?1").expect("a plan");
    let step: String = plan.query_row(["k"], |row| row.get("detail")).expect("a step");
    assert!(step.starts_with("SCAN m"), "{step}");
    assert_eq!(full_name("m", "select * from tide_message m where m.key = ?1"), "tide_message");
}
