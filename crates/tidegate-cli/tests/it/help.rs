//! What `--help` promises: examples first, exit codes last, for every command.

use crate::desk::Desk;

const COMMANDS: [&[&str]; 57] = [
    &[],
    &["demo"],
    &["torture"],
    &["serve"],
    &["dev"],
    &["probe"],
    &["token"],
    &["token", "create"],
    &["token", "list"],
    &["token", "rotate"],
    &["token", "revoke"],
    &["config"],
    &["config", "print"],
    &["config", "check"],
    &["config", "list"],
    &["context"],
    &["context", "list"],
    &["context", "use"],
    &["context", "set"],
    &["context", "remove"],
    &["openapi"],
    &["metrics"],
    &["enqueue"],
    &["get"],
    &["list"],
    &["explain"],
    &["cancel"],
    &["dead"],
    &["dead", "list"],
    &["dead", "show"],
    &["dead", "redrive"],
    &["dead", "groups"],
    &["dead", "operations"],
    &["dead", "edit"],
    &["dead", "discard"],
    &["parked"],
    &["parked", "list"],
    &["parked", "show"],
    &["parked", "resolve"],
    &["reconcile"],
    &["queue"],
    &["queue", "list"],
    &["queue", "pause"],
    &["audit"],
    &["stats"],
    &["bench"],
    &["top"],
    &["doctor"],
    &["backup"],
    &["restored"],
    &["migrate"],
    &["migrate", "status"],
    &["migrate", "up"],
    &["migrate", "print"],
    &["erase"],
    &["completions"],
    &["man"],
];

#[test]
fn every_command_lists_its_exit_codes_and_takes_store_and_json() {
    let desk = Desk::new();
    for command in COMMANDS {
        let help = desk.run(&[command, &["--help"]].concat()).ends(0).out;
        let title = command.join(" ");
        let codes = help.split_once("Exit codes:").unwrap_or_else(|| panic!("{title} has no exit codes: {help}")).1;
        for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "130 "] {
            assert!(
                codes.contains(&format!(" {code}")) || codes.contains(&format!("\n{code}")),
                "{title}: {code}{help}"
            );
        }
        assert!(help.trim_end().ends_with(" interrupted"), "{title}: {help}");
        assert!(help.contains("--store <PATH>") && help.contains("--json"), "{title}: {help}");
    }
    assert!(desk.files().is_empty(), "{:?}", desk.files());
}

#[test]
fn examples_come_before_everything_else() {
    let desk = Desk::new();
    for command in COMMANDS.iter().filter(|command| !matches!(command, [_, "list" | "show" | "pause"])) {
        let help = desk.run(&[command, &["--help"][..]].concat()).ends(0).out;
        let place = |text: &str| help.find(text).unwrap_or_else(|| panic!("{command:?} has no {text:?}: {help}"));
        assert!(place("Examples:\n  tidegate") < place("Usage:"), "{command:?}: {help}");
    }
}

#[test]
fn examples_are_commands_that_can_be_typed() {
    let desk = Desk::new();
    for command in COMMANDS {
        let help = desk.run(&[command, &["-h"][..]].concat()).ends(0).out;
        let examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
        for line in examples.take_while(|line| line.starts_with("  ")).map(str::trim) {
            let Some(typed) = line.split(" | ").find(|part| part.starts_with("tidegate")) else { continue };
            // Up to the first thing in quotes, each word must be known: a flag that is not is a usage error of clap's.
            let words: Vec<&str> = typed.split(['"', '\'', '\\']).next().unwrap().split_whitespace().skip(1).collect();
            let flags = words.iter().filter(|word| word.starts_with("--"));
            for flag in flags {
                let of = words.iter().take_while(|word| !word.starts_with('-') && !word.contains(['.', '_']));
                let path: Vec<&str> = of.copied().filter(|word| !word.contains("deposit")).take(2).collect();
                let known = desk.run(&[&path, &["--help"][..]].concat()).out;
                assert!(known.contains(flag), "{line}: {flag} is not in the help of {path:?}");
            }
        }
    }
}

/// Commands that a text names: `tidegate x y` as something to type, not as the name of a thing.
fn named_commands(text: &str) -> Vec<(String, Option<String>)> {
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut named = Vec::new();
    for (at, _) in text.match_indices("tidegate ") {
        if !text[..at].ends_with(['"', '`', '(']) && !text[..at].ends_with(": ") && !text[..at].ends_with("; ") {
            continue;
        }
        let end = text[at..].find(['\n', '"', '`', '\'', '\\']).map_or(text.len(), |end| at + end);
        let mut words = text[at..end].split([' ', '.', ',', ';', ')']).skip(1);
        if let Some(command) = words.next().filter(is_word) {
            named.push((command.to_owned(), words.next().filter(is_word).map(str::to_owned)));
        }
    }
    named
}

#[test]
fn every_command_that_a_hint_names_exists() {
    let desk = Desk::new();
    let lists = |path: &[&str]| {
        let help = desk.run(&[path, &["--help"]].concat()).ends(0).out;
        let section = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
        let names = section.lines().filter_map(|line| line.split_whitespace().next());
        names.filter(|name| *name != "help").map(str::to_owned).collect::<Vec<_>>()
    };
    let commands = lists(&[]);
    let below: std::collections::BTreeMap<&str, Vec<String>> =
        commands.iter().map(|command| (command.as_str(), lists(&[command]))).collect();
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut directories: Vec<std::path::PathBuf> =
        std::fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path().join("src")).collect();
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            for (command, next) in named_commands(&std::fs::read_to_string(&path).unwrap()) {
                // The demo's own processes.
                if command == "role" {
                    continue;
                }
                let shown = path.display();
                let under = below.get(command.as_str()).unwrap_or_else(|| panic!("{shown}: no command {command}"));
                if let (false, Some(next)) = (under.is_empty(), next) {
                    assert!(under.contains(&next), "{shown}: no command {command} {next}");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} were found: are they looked for in the right place?");
}

#[test]
fn no_command_at_all_is_a_usage_error_that_shows_the_help() {
    let desk = Desk::new();
    for command in [&[][..], &["dead"], &["parked"], &["queue"]] {
        desk.run(command).ends(2).says("Examples:");
    }
}

#[test]
fn the_internal_role_is_not_advertised() {
    let help = Desk::new().run(&["--help"]).ends(0).out;
    assert!(!help.contains("role"), "{help}");
}

#[test]
fn colour_is_off_in_a_pipe_and_on_when_it_is_asked_for() {
    let desk = Desk::new();
    desk.run(&["enqueue", "--kind", "k", "--key", "a", "--payload", "1"]).ends(0);
    let plain = desk.run(&["list", "--bogus-state"]).ends(2);
    assert!(!plain.err.contains('\u{1b}'), "{}", plain.err);
    let asked = desk.run(&["get", "msg_0000000000001", "--color", "always"]).ends(3);
    assert!(asked.err.contains("\u{1b}[31;1merror:"), "{:?}", asked.err);
    let json = desk.run(&["list", "--json", "--color", "always"]).ends(0);
    assert!(!json.out.contains('\u{1b}'), "{}", json.out);
}
