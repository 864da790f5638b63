//! What `--help` promises: examples first, exit codes last, for every command.

use crate::desk::Desk;

const COMMANDS: [&[&str]; 21] = [
    &[],
    &["demo"],
    &["enqueue"],
    &["get"],
    &["list"],
    &["explain"],
    &["cancel"],
    &["dead"],
    &["dead", "list"],
    &["dead", "show"],
    &["dead", "redrive"],
    &["parked"],
    &["parked", "list"],
    &["parked", "show"],
    &["parked", "resolve"],
    &["queue"],
    &["queue", "list"],
    &["queue", "pause"],
    &["audit"],
    &["stats"],
    &["bench"],
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
