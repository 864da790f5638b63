//! The command lines in the documents work as they are written.

use std::path::Path;
use std::time::Duration;

use crate::desk::{Desk, Ran};

pub(crate) fn page(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The lines of the page's shell blocks that call the program, each without the program's name.
pub(crate) fn commands(page: &str) -> Vec<Vec<String>> {
    let mut in_shell = false;
    let mut lines = Vec::new();
    for line in page.lines().map(str::trim) {
        match line {
            "```sh" => in_shell = true,
            "```" => in_shell = false,
            _ if in_shell && line.starts_with("tidegate ") => lines.push(words(line)[1..].to_vec()),
            _ => {}
        }
    }
    lines
}

/// The words of a line as a shell sees them: separated by spaces, with either kind of quotes.
fn words(line: &str) -> Vec<String> {
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

#[test]
fn the_page_on_parked_and_dead_messages_can_be_typed() {
    let commands = commands(&page("docs/operations/parked-and-dead.md"));
    assert!(commands.len() >= 8, "{commands:?}");
    for command in &commands {
        run(command).ends(0);
    }
    // The refusal that the page promises.
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", Duration::from_secs(3600)).await).to_string();
    let too_early = ["parked", "resolve", &id, "--effect", "capture", "--did-not-happen", "--reason", "not there"];
    desk.run(&too_early).ends(4);
}

#[test]
fn the_pages_on_backups_and_the_doctor_can_be_typed_in_their_order() {
    for path in ["docs/operations/backup-and-restore.md", "docs/operations/doctor.md"] {
        let desk = Desk::new();
        let id = desk.prepare(async |bench| bench.completed("dep-1").await).to_string();
        let commands = commands(&page(path));
        assert!(commands.len() >= 4, "{commands:?}");
        for command in &commands {
            let arguments: Vec<&str> =
                command.iter().map(|word| if word == "ID" { id.as_str() } else { word }).collect();
            desk.run(&arguments).ends(0);
        }
    }
}

#[test]
fn the_guides_can_be_typed() {
    let mut found = 0;
    for path in ["README.md", "docs/guides/quickstart.md", "docs/guides/effects.md"] {
        for command in commands(&page(path)) {
            run(&command).ends(0);
            found += 1;
        }
    }
    assert!(found > 0, "no command in any guide: has the form of the blocks changed?");
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
