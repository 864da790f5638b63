//! The command lines in the documents work as they are written.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{Answer, Context, EffectAnswer, Handled, Message, Tidegate};

use crate::desk::{Desk, Ran, on_a_server};
use crate::transcript;

pub(crate) fn page(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// A fenced block of a document.
#[derive(Debug)]
pub(crate) struct Block {
    /// What stands behind the fence: `rust`, `sh`, ..
    pub(crate) info: String,
    /// Where its fence is, from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
    /// The comment on the line before it, which says who runs it or why nobody does.
    note: Option<String>,
}

pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut inside, mut before) = (false, "");
    for (at, line) in page.lines().enumerate() {
        let trimmed = line.trim();
        match (trimmed.strip_prefix("```"), inside) {
            (Some(info), false) => {
                let note = before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).map(str::to_owned);
                blocks.push(Block { info: info.to_owned(), line: at + 1, text: String::new(), note });
                inside = true;
            }
            (Some(_), true) => inside = false,
            (None, true) => {
                if let Some(block) = blocks.last_mut() {
                    block.text.push_str(&format!("{line}\n"));
                }
            }
            (None, false) => {}
        }
        before = trimmed;
    }
    assert!(!inside, "a block is not closed");
    blocks
}

/// The lines of the page's shell blocks that call the program, each without the program's name.
pub(crate) fn commands(page: &str) -> Vec<Vec<String>> {
    let is_typed =
        |block: &Block| block.info == "sh" && !block.note.as_deref().is_some_and(|note| note.starts_with("not run: "));
    let shell = blocks(page).into_iter().filter(is_typed).map(|block| block.text);
    let lines: Vec<String> =
        shell.flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()).collect();
    lines.iter().filter(|line| line.starts_with("tidegate ")).map(|line| words(line)[1..].to_vec()).collect()
}

/// The words of a line as a shell sees them: separated by spaces, with either kind of quotes.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => (quote, begun) = (Some(c), true),
            None if c == ' ' => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            None => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn a_line_is_split_as_a_shell_splits_it() {
    let line = r#"tidegate parked resolve ID --result '"ch_123"' --reason "the gateway's ledger""#;
    assert_eq!(words(line)[3..], ["ID", "--result", "\"ch_123\"", "--reason", "the gateway's ledger"]);
}

/// A store in which `ID` is a message that the command is about.
fn desk_for(command: &[String]) -> (Desk, String) {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| match command[0].as_str() {
        "parked" | "reconcile" => bench.parked("dep-1", Duration::ZERO).await,
        "dead" => bench.dead("dep-1").await,
        _ => bench.enqueue("dep-1").await,
    });
    (desk, id.to_string())
}

fn run(command: &[String]) -> Ran {
    let (desk, id) = desk_for(command);
    // The files that the pages speak of.
    desk.write(
        "answers.ndjson",
        format!(r#"{{"id":"{id}","effect":"capture","resolution":"happened","result":"ch_123"}}"#),
    );
    if command[0] == "reconcile" {
        let shown = desk.run(&["get", &id, "--json"]).ends(0).out;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let key = shown["journal"][0]["key"].as_str().unwrap();
        desk.write("settlements.ndjson", format!(r#"{{"key":"{key}","amount":"dep-1"}}"#));
    }
    let arguments: Vec<&str> = command.iter().map(|word| if word == "ID" { id.as_str() } else { word }).collect();
    desk.run(&arguments)
}

/// Types the commands of a page one by one, each into a store of its own.
fn each_by_itself(path: &str) {
    for command in commands(&page(path)) {
        run(&command).ends(0);
    }
}

/// Types the commands of a page into one store, in their order.
fn in_their_order(path: &str) {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.completed("dep-1").await).to_string();
    for command in commands(&page(path)) {
        let arguments: Vec<&str> = command.iter().map(|word| if word == "ID" { id.as_str() } else { word }).collect();
        desk.run(&arguments).ends(0);
    }
}

/// The same with a store on a PostgreSQL server.
fn in_their_order_on_a_server(path: &str) {
    on_a_server(|| in_their_order(path));
}

type Typed = fn(&str);

/// How the shell blocks of a page are typed.
const TYPED: [(&str, Typed); 7] = [
    ("docs/operations/parked-and-dead.md", each_by_itself),
    ("docs/operations/backup-and-restore.md", in_their_order),
    ("docs/operations/disk-full.md", in_their_order),
    ("docs/operations/doctor.md", in_their_order),
    ("docs/operations/postgresql.md", in_their_order_on_a_server),
    ("docs/guides/move-to-postgresql.md", in_their_order),
    ("docs/guides/operate-a-server.md", crate::remote::in_their_order_against_a_server),
];

/// Pages whose shell blocks are typed each by itself as well.
const RUNBOOKS: &str = "docs/operations/runbooks/";

/// Pages with transcripts, each of which some test runs.
const WITH_TRANSCRIPTS: [&str; 3] = [QUICKSTART, TIMEOUT, TRIAGE];
const QUICKSTART: &str = "docs/guides/quickstart.md";
const TIMEOUT: &str = "docs/guides/timeout-after-charge.md";
pub(crate) const TRIAGE: &str = "docs/guides/triage.md";

#[test]
fn the_shell_blocks_can_be_typed() {
    for (path, typed) in TYPED {
        typed(path);
    }
    let runbooks: Vec<String> = pages().into_iter().filter(|path| path.starts_with(RUNBOOKS)).collect();
    assert!(runbooks.len() > 10, "{runbooks:?}");
    runbooks.iter().for_each(|path| each_by_itself(path));
}

#[test]
fn the_refusal_that_the_page_on_parked_messages_promises() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", Duration::from_secs(3600)).await).to_string();
    let too_early = ["parked", "resolve", &id, "--effect", "capture", "--did-not-happen", "--reason", "not there"];
    desk.run(&too_early).ends(4);
}

/// The file of answers that the page shows is taken as it stands there, but for the ids.
#[test]
fn the_file_that_the_page_on_parked_messages_shows_is_understood() {
    let blocks = blocks(&page("docs/operations/parked-and-dead.md"));
    let shown = blocks.into_iter().find(|block| block.info == "json").unwrap().text;
    let desk = Desk::new();
    let (first, second) = desk.prepare(async |bench| {
        (bench.parked("dep-1", Duration::ZERO).await, bench.parked("dep-2", Duration::ZERO).await)
    });
    let answers =
        shown.replace("msg_01jcz4t6q8000", &first.to_string()).replace("msg_01jcz4t6q8001", &second.to_string());
    assert_ne!(answers, shown);
    desk.write("answers.ndjson", answers);
    desk.run(&["parked", "resolve", "--from", "answers.ndjson", "--reason", "ticket 4711"]).ends(0);
    desk.run(&["parked", "list"]).ends(0).prints("");
}

/// Every page that people read, from the root of the repository; pages that a program writes are compared by it.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec!["README.md".to_owned()];
    let mut directories = vec!["docs".to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in root.join(&directory).read_dir().unwrap() {
            let entry = entry.unwrap();
            let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                directories.push(path);
            } else if path.ends_with(".md") && !page(&path).contains("<!-- generated by `cargo xtask docs`") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Code without comments and layout.
fn bare(code: &str) -> String {
    let code = code.lines().map(|line| line.split("//").next().unwrap_or(line));
    code.collect::<String>().split_whitespace().collect()
}

/// Reports of campaigns that take from minutes to hours: the command, and what it printed on a day. A small one of each
/// is a test of the crate that runs it.
fn is_report(path: &str) -> bool {
    path.starts_with("docs/reliability/") || path == "docs/reference/benchmarks.md"
}

/// Who runs a block, or why nobody has to; an error for one that nobody runs.
fn runner(path: &str, block: &Block) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let note = block.note.as_deref().unwrap_or_default();
    if let Some(reason) = note.strip_prefix("not run: ") {
        return if reason.len() >= "a drawing".len() { Ok(()) } else { Err(format!("{reason:?} is no reason")) };
    }
    if let Some(test) = note.strip_prefix("run by ") {
        return if root.join(test).is_file() { Ok(()) } else { Err(format!("there is no {test}")) };
    }
    if let Some(of) = note.strip_prefix("excerpt of ") {
        let programs = blocks(&page(of)).into_iter().filter(|block| block.info == "rust");
        let is_there = programs.map(|program| bare(&program.text)).any(|program| program.contains(&bare(&block.text)));
        return if is_there { Ok(()) } else { Err(format!("no program in {of} has these lines")) };
    }
    if note.starts_with("quickstart: written by `cargo xtask docs`") || note.starts_with("demo-output: ") {
        return Ok(());
    }
    match block.info.as_str() {
        "rust" => {
            let included = format!("include_str!(\"../../../{path}\")");
            let is_tested = page("crates/tidegate/src/lib.rs").contains(&included);
            if is_tested { Ok(()) } else { Err(format!("crates/tidegate/src/lib.rs has no {included}")) }
        }
        "text" | "sh" if is_report(path) => Ok(()),
        "console" if WITH_TRANSCRIPTS.contains(&path) => Ok(()),
        "sh" if !path.starts_with(RUNBOOKS) && !TYPED.iter().any(|(typed, _)| *typed == path) => {
            Err("TYPED does not have the page".to_owned())
        }
        "sh" => match block.text.lines().find(|line| !line.trim().starts_with("tidegate ")) {
            Some(line) => Err(format!("{line:?} is not typed by any test")),
            None => Ok(()),
        },
        info => Err(format!("nobody runs blocks of {info:?} here")),
    }
}

#[test]
fn every_block_of_every_document_is_run_or_says_why_not() {
    let pages = pages();
    assert!(pages.len() > 15, "{pages:?}");
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in &pages {
        for block in blocks(&page(path)) {
            count += 1;
            if let Err(why) = runner(path, &block) {
                wrong.push(format!("{path}:{}: {why}", block.line));
            }
        }
    }
    assert!(count > 40, "only {count} blocks: has their form changed?");
    let how = "let a test run it, or write on the line before it <!-- run by PATH -->, <!-- excerpt of PATH --> or \
               <!-- not run: WHY -->";
    assert!(wrong.is_empty(), "not run by anybody:\n{}\nhint: {how}", wrong.join("\n"));
}

#[test]
fn a_block_that_nobody_runs_is_found() {
    let first = |page: &str| blocks(page).remove(0);
    for (text, why) in [
        ("```rust\nfn a() {}\n```", "has no include_str!"),
        ("```sh\ntidegate list\n```", "TYPED does not have the page"),
        ("```text\n+---+\n```", "nobody runs blocks of \"text\""),
        ("```console\n$ tidegate list\n```", "nobody runs blocks of \"console\""),
        ("<!-- run by no/such/test.rs -->\n```sh\nls\n```", "there is no no/such/test.rs"),
        ("<!-- not run: - -->\n```sh\nls\n```", "is no reason"),
        ("<!-- excerpt of docs/guides/timeout-after-charge.md -->\n```rust\nlet a = 5;\n```", "has these lines"),
    ] {
        let error = runner("docs/guides/none.md", &first(text)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let not_typed = runner("docs/operations/doctor.md", &first("```sh\ntidegate doctor\nrm -r x\n```"));
    assert!(not_typed.unwrap_err().contains("is not typed by any test"));
}

/// `cargo xtask files` looks for the pages that links lead to; this one for their headings.
#[test]
fn every_link_to_a_heading_leads_to_one_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut count, mut wrong) = (0, Vec::new());
    for path in pages() {
        let text = page(&path);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for (file, heading) in links.filter(|link| !link.contains("://")).filter_map(|link| link.split_once('#')) {
            count += 1;
            let from = root.join(&path);
            let target = if file.is_empty() { from } else { from.parent().unwrap().join(file) };
            if target.exists() && !headings(&target).iter().any(|there| there == heading) {
                wrong.push(format!("{path}: {file}#{heading}"));
            }
        }
    }
    assert!(count > 3, "only {count} links to headings: has their form changed?");
    assert!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
}

/// The anchors that headings get.
fn headings(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let anchor = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// Every code that `docs/reference/exit-codes.md` lists is one the help lists, and no other.
#[test]
fn the_page_on_exit_codes_and_the_help_agree() {
    let help = Desk::new().run(&["--help"]).ends(0).out;
    let in_help: Vec<&str> = (help.lines().skip_while(|line| *line != "Exit codes:").skip(1))
        .map_while(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let page = page("docs/reference/exit-codes.md");
    let in_page: Vec<&str> = (page.lines().filter_map(|line| line.strip_prefix("| ")))
        .filter_map(|row| row.split(" |").next())
        .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    assert_eq!(in_page, in_help);
}

/// What the quickstart greets with.
#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl Message for Greet {
    const KIND: &'static str = "greet";
    type Answer = String;
    fn key(&self) -> String {
        format!("greet-{}", self.name)
    }
}

async fn greet(_: Context, message: Greet) -> Handled<String> {
    Ok(format!("hello, {}", message.name))
}

#[test]
fn the_quickstart_shows_what_is_printed() {
    let desk = Desk::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tide = Tidegate::open(desk.path("tidegate.db")).await.unwrap();
        let worker = tide.worker().handle(greet).start().await.unwrap();
        let sent = tide.enqueue(Greet { name: "Ada".to_owned() }).await.unwrap();
        sent.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap();
        worker.stop().await.unwrap();
        tide.close().await;
    });
    transcript::run(&desk, QUICKSTART);
}

/// A capture whose answer got lost, at a gateway that neither knows keys nor can be asked.
#[derive(Serialize, Deserialize)]
struct Capture {
    deposit: String,
}

impl Message for Capture {
    const KIND: &'static str = "capture";
    type Answer = String;
    fn key(&self) -> String {
        self.deposit.clone()
    }
}

async fn capture(ctx: Context, _: Capture) -> Handled<String> {
    ctx.effect("capture").at_most_once().call(|_| async { EffectAnswer::unknown("no answer within 10 s") }).await
}

#[test]
fn the_page_on_a_time_out_after_the_charge_shows_what_is_printed() {
    let desk = Desk::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tide = Tidegate::open(desk.path("tidegate.db")).await.unwrap();
        let worker = tide.worker().handle(capture).start().await.unwrap();
        let sent = tide.enqueue(Capture { deposit: "dep-1".to_owned() }).await.unwrap();
        let answer = sent.answer(Duration::from_secs(60)).await.unwrap();
        assert!(matches!(answer, Answer::Parked { .. }), "{answer:?}");
        worker.stop().await.unwrap();
        tide.close().await;
    });
    transcript::run(&desk, TIMEOUT);
}
