//! `cargo xtask ci`: the whole gate, in the order in which a mistake is cheapest to find.
//!
//! Every step runs even if one before it failed, so that one run names everything there is to repair. It never changes
//! a file.

use std::path::Path;
use std::time::Duration;

use crate::run::{Program, is_installed, seconds, timed};
use crate::{deploy, docs, files, graph, licences, python, test};

struct Step<'a> {
    name: &'a str,
    /// What to type to run this step alone.
    repeat: String,
    work: Box<dyn Fn() -> Result<(), String> + 'a>,
}

struct Finished {
    name: String,
    repeat: String,
    took: Duration,
    result: Result<(), String>,
}

pub(crate) fn run(root: &Path) -> Result<(), String> {
    // Without a compiler every step below fails with a page of linker output; say the one useful sentence instead.
    test::prerequisites()?;
    let mut finished: Vec<Finished> = Vec::new();
    for step in steps(root) {
        let (result, took) = timed(step.name, &step.work);
        if let Err(problem) = &result {
            println!("error: {problem}");
        }
        finished.push(Finished { name: step.name.to_owned(), repeat: step.repeat, took, result });
    }
    let notes = advisories_not_checked();
    println!("{}", summary(&finished, notes.as_deref()));
    match finished.iter().filter(|step| step.result.is_err()).count() {
        0 => Ok(()),
        failed => Err(format!("{failed} of {} steps failed", finished.len())),
    }
}

fn steps(root: &Path) -> Vec<Step<'_>> {
    let own = |name, command: &str, check: fn(&Path) -> Result<(), String>| Step {
        name,
        repeat: format!("cargo xtask {command}"),
        work: Box::new(move || check(root)),
    };
    let program = |name, program: Program<'static>| Step {
        name,
        repeat: program.as_typed(),
        work: Box::new(move || program.run(root)),
    };
    let mut steps = vec![
        program("format", Program::cargo(&["fmt", "--all", "--check"])),
        own("files", "files", files::check),
        own("dependency direction", "deps", graph::check),
        own("licences", "deps", licences::check),
        program(
            "clippy",
            Program::cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
        ),
        own("tests", "test", |root| test::all(root, &[])),
        own("python client", "python", python::run),
        own("deploy files", "deploy", deploy::run),
        // Libraries only: the command and the library are both called `tidegate`, and their pages would overwrite each other.
        program(
            "docs",
            Program::cargo(&["doc", "--workspace", "--lib", "--no-deps", "--all-features"])
                .with_env("RUSTDOCFLAGS", "-D warnings"),
        ),
        own("generated docs are fresh", "docs --check", docs::check),
    ];
    if cargo_deny_is_installed() {
        steps.push(program("cargo-deny", Program::cargo(&["deny", "--all-features", "check"])));
    }
    steps
}

fn cargo_deny_is_installed() -> bool {
    is_installed("cargo", &["deny", "--version"])
}

/// The advisory database needs cargo-deny and a network, neither of which a bare machine has: said, not failed.
fn advisories_not_checked() -> Option<String> {
    (!cargo_deny_is_installed()).then(|| {
        "NOT RUN: cargo-deny is not installed, so known vulnerabilities, banned crates and duplicate versions were not \
         checked (licences were, by `cargo xtask deps`)\nhint: cargo install --locked cargo-deny"
            .to_owned()
    })
}

fn summary(finished: &[Finished], note: Option<&str>) -> String {
    let width = finished.iter().map(|step| step.name.len()).max().unwrap_or(0);
    let mut lines = vec![String::new(), "summary".to_owned()];
    for step in finished {
        let verdict = if step.result.is_ok() { "ok    " } else { "FAILED" };
        let mut line = format!("  {verdict}  {:<width$}  {:>8}", step.name, seconds(step.took));
        if step.result.is_err() {
            line.push_str(&format!("   repeat with: {}", step.repeat));
        }
        lines.push(line);
    }
    let total: Duration = finished.iter().map(|step| step.took).sum();
    lines.push(format!("  total {}", seconds(total)));
    if let Some(note) = note {
        lines.push(format!("\n{note}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(name: &str, repeat: &str, result: Result<(), String>) -> Finished {
        Finished { name: name.to_owned(), repeat: repeat.to_owned(), took: Duration::from_millis(1500), result }
    }

    #[test]
    fn the_summary_names_the_failed_step_and_how_to_repeat_it() {
        let steps = [
            finished("format", "cargo fmt --all --check", Ok(())),
            finished("clippy", "cargo clippy --workspace", Err("one lint".to_owned())),
        ];
        let text = summary(&steps, Some("NOT RUN: cargo-deny"));
        assert!(text.contains("ok      format     1.5 s"), "{text}");
        assert!(text.contains("FAILED  clippy     1.5 s   repeat with: cargo clippy --workspace"), "{text}");
        assert!(!text.contains("cargo fmt"), "a step that passed needs no repeating: {text}");
        assert!(text.contains("total 3.0 s"), "{text}");
        assert!(text.ends_with("NOT RUN: cargo-deny"), "{text}");
    }

    #[test]
    fn every_step_says_how_to_repeat_it() {
        for step in steps(Path::new(".")) {
            assert!(step.repeat.contains("cargo "), "{} has no command to repeat it", step.name);
        }
    }
}
