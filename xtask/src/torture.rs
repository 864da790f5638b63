//! `cargo xtask torture`: everything that attacks the engine, part by part, with what was reached kept in a file.
//!
//! A part is a command that is run in steps until a goal is reached; what each step says of itself is added up. Broken off,
//! it goes on from the last whole step. Only what ran is reported: a part that did not run has no figures. To add a part is
//! to add a row to [`PARTS`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::graph;
use crate::run::{Program, timed};

/// How a figure of a step becomes one of the part.
#[derive(Clone, Copy)]
enum Sum {
    /// Steps are added up.
    Add,
    /// The greatest counts.
    Max,
    /// The program adds up itself, in a state file of its own.
    Last,
}

/// A figure: its name, where it is in the report of a step (`/a/b`; the members of an object are added up), and how steps
/// are put together.
type Figure = (&'static str, &'static str, Sum);

/// Where a step's report comes from.
#[derive(Clone, Copy)]
enum Says {
    /// The last line of standard output that is a JSON object, or the whole of it.
    Output,
    /// Nothing but the exit code: it counts as this figure, so often a step.
    Exit(&'static str, u64),
    /// What follows this word on a line of standard output: numbers and what they count, in either order.
    Line(&'static str),
}

/// One row of the programme.
struct Part {
    name: &'static str,
    /// The crate it stands in; a workspace without it has no such part.
    needs: &'static str,
    says: Says,
    figures: &'static [Figure],
    /// The figures that end the long run, and at how much.
    goal: &'static [(&'static str, u64)],
    /// Those of the small round.
    short_goal: &'static [(&'static str, u64)],
    /// Arguments of `cargo` for a step: its number from 0, its own state file.
    step: fn(&Step<'_>) -> Vec<String>,
    environment: &'static [(&'static str, &'static str)],
    /// What the long run sets besides.
    long_environment: &'static [(&'static str, &'static str)],
}

/// What a step may depend on.
struct Step<'a> {
    number: u64,
    long: bool,
    /// A file for a program that keeps its own state.
    state: &'a str,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

const PARTS: &[Part] = &[
    Part {
        name: "simulation",
        needs: "tidegate-sim",
        says: Says::Output,
        figures: &[
            ("runs", "/sum/runs", Sum::Last),
            ("simulated_ms", "/sum/simulated_ms", Sum::Last),
            ("messages", "/sum/messages", Sum::Last),
            ("faults", "/faults", Sum::Last),
            ("checks", "/sum/checks", Sum::Last),
        ],
        // A year.
        goal: &[("simulated_ms", 31_536_000_000), ("messages", 20_000_000), ("faults", 2_000_000)],
        short_goal: &[("runs", 4)],
        step: |step| {
            let (to, hours) = if step.long { (20 * (step.number + 1) + 1, 6) } else { (5, 1) };
            let state = step.state;
            words(&format!(
                "run --release --quiet -p tidegate-sim -- --seeds 1..{to} --hours {hours} --json --state {state}"
            ))
        },
        environment: &[],
        long_environment: &[],
    },
    Part {
        name: "canaries",
        needs: "tidegate-canaries",
        says: Says::Exit("walks over every canary", 1),
        figures: &[],
        goal: &[("walks over every canary", 1)],
        short_goal: &[("walks over every canary", 1)],
        step: |_| words("test --quiet -p tidegate-canaries --all-features"),
        environment: &[],
        long_environment: &[],
    },
    Part {
        name: "kills, stops, redeploys",
        needs: "tidegate-torture",
        says: Says::Output,
        figures: &[
            ("kills", "/faults/kills", Sum::Add),
            ("kills_at_failpoints", "/faults/kills_at_failpoints", Sum::Add),
            ("stops", "/faults/stops", Sum::Add),
            ("redeploys", "/faults/redeploys", Sum::Add),
            ("deposits_accepted", "/deposits/accepted", Sum::Add),
            ("recovered", "/deposits/recovered", Sum::Add),
            ("lost", "/deposits/lost", Sum::Add),
            ("duplicate_effects", "/effects/duplicates", Sum::Add),
            ("messages_held_at_a_kill", "/recovery/messages", Sum::Add),
            ("recovery_max_ms", "/recovery/max_ms", Sum::Max),
        ],
        goal: &[("kills", 3_000), ("stops", 600), ("redeploys", 100)],
        short_goal: &[("kills", 40)],
        step: |step| {
            let gateway = ["idempotent", "lookup", "none"][usize::try_from(step.number % 3).unwrap_or(0)];
            let seed = 1_000 + step.number;
            let faults = if step.long {
                "--kills 200 --stops 40 --redeploys 7 --failpoints all --services 3"
            } else {
                "--kills 45 --stops 4 --redeploys 2 --failpoints first"
            };
            let command = "run --release --quiet -p tidegate-cli -- torture --json --lease 1s";
            words(&format!("{command} {faults} --gateway {gateway} --seed {seed}"))
        },
        environment: &[],
        long_environment: &[],
    },
    Part {
        name: "power cuts",
        needs: "tidegate-powerloss",
        says: Says::Output,
        figures: &[
            ("points", "/totals/points", Sum::Last),
            ("at_risk", "/totals/at_risk", Sum::Last),
            ("lives", "/totals/lives", Sum::Last),
            ("injected_errors", "/totals/errors", Sum::Last),
            ("violations", "/totals/violations", Sum::Last),
        ],
        goal: &[("points", 100_000)],
        short_goal: &[("points", 1_000)],
        step: |step| {
            let points = if step.long { 10_000 * (step.number + 1) } else { 1_000 };
            let state = step.state;
            let command = "run --release --quiet -p tidegate-powerloss -- --json --seed 1";
            words(&format!("{command} --points {points} --state {state}"))
        },
        environment: &[],
        long_environment: &[],
    },
    Part {
        name: "full disks",
        needs: "tidegate-sqlite",
        says: Says::Exit("fills", 100),
        figures: &[],
        goal: &[("fills", 500)],
        short_goal: &[("fills", 100)],
        step: |_| words("test --release --quiet -p tidegate-sqlite --test it disk_full::a_full"),
        environment: &[("TIDEGATE_FILLS", "100")],
        long_environment: &[],
    },
    Part {
        name: "flipped bits",
        needs: "tidegate-sqlite",
        says: Says::Line("flips: "),
        figures: &[
            ("flips", "/flips", Sum::Last),
            ("pages", "/pages", Sum::Last),
            ("refused", "/refused", Sum::Last),
            ("told", "/told", Sum::Last),
            ("found_by_the_doctor", "/found_by_the_doctor", Sum::Last),
            ("harmless", "/harmless", Sum::Last),
            ("unseen", "/unseen", Sum::Last),
            ("served_wrong", "/wrong", Sum::Last),
        ],
        // Every byte of every page.
        goal: &[("flips", 200_000)],
        short_goal: &[("flips", 200)],
        step: |_| words("test --release --quiet -p tidegate-sqlite --test it bit_flips -- --nocapture"),
        environment: &[],
        long_environment: &[("TIDEGATE_FLIPS", "4096")],
    },
];

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) long: bool,
    pub(crate) state: PathBuf,
    /// Only parts whose name contains this.
    pub(crate) only: Option<String>,
}

impl Asked {
    /// Reads `[--long] [--state FILE] [--only PART]`.
    pub(crate) fn read(arguments: &[&str], root: &Path) -> Result<Self, String> {
        let mut asked = Self { long: false, state: root.join("target/torture/state.json"), only: None };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().copied().ok_or_else(|| format!("{argument} wants a value"));
            match *argument {
                "--long" => asked.long = true,
                "--state" => asked.state = std::path::absolute(value()?).map_err(|e| format!("--state: {e}"))?,
                "--only" => asked.only = Some(value()?.to_owned()),
                other => return Err(format!("{other:?} is no argument\nhint: [--long] [--state FILE] [--only PART]")),
            }
        }
        Ok(asked)
    }
}

/// Runs what is left of the programme, and prints the table.
pub(crate) fn run(root: &Path, asked: &Asked) -> Result<(), String> {
    // The programs of some parts keep files of their own beside it.
    if let Some(directory) = asked.state.parent() {
        fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    let mut state = State::read(&asked.state)?;
    let members: Vec<String> = graph::members(root)?.into_iter().map(|member| member.name).collect();
    let mut failed = Vec::new();
    for part in PARTS {
        let wanted = asked.only.as_deref().is_none_or(|only| part.name.contains(only));
        if !wanted || !members.iter().any(|member| member == part.needs) {
            continue;
        }
        if let Err(problem) = run_part(root, asked, part, &mut state) {
            failed.push(problem);
        }
    }
    println!("\n{}", table(&state));
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

fn run_part(root: &Path, asked: &Asked, part: &Part, state: &mut State) -> Result<(), String> {
    let goal = if asked.long { part.goal } else { part.short_goal };
    while !state.has_reached(part, goal) {
        let number = state.steps(part);
        let own = asked.state.with_extension(format!("{}.json", part.needs));
        let own = own.to_str().ok_or_else(|| format!("the path {} is not UTF-8", own.display()))?;
        let arguments = (part.step)(&Step { number, long: asked.long, state: own });
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut program = Program::cargo(&arguments);
        let long = if asked.long { part.long_environment } else { &[] };
        for (name, value) in part.environment.iter().chain(long) {
            program = program.with_env(name, value);
        }
        let typed = program.as_typed();
        let (said, took) = timed(&format!("{}: {typed}", part.name), || program.output(root));
        let report = match part.says {
            Says::Exit(..) => said.map(|_| json!({})),
            Says::Output => {
                said.and_then(|said| report_in(&said).ok_or_else(|| format!("`{typed}` printed no report")))
            }
            Says::Line(word) => said.and_then(|said| {
                counted_in(&said, word).ok_or_else(|| format!("`{typed}` printed no line with {word:?}"))
            }),
        };
        let seconds = took.as_secs();
        match report {
            Ok(report) => state.add(part, &report, &typed, seconds),
            Err(problem) => {
                state.fail(part, &typed);
                state.write(&asked.state)?;
                return Err(format!("{}: {problem}", part.name));
            }
        }
        state.write(&asked.state)?;
    }
    Ok(())
}

/// The JSON object in what a program printed: the last line that is one, or all of it.
fn report_in(said: &str) -> Option<Value> {
    let last = said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
    last.or_else(|| serde_json::from_str(said).ok())
}

/// What a line counts: `flips: 12 in 3 pages; refused 4, found by the doctor 5` is 12 flips, 3 pages, 4 refused, 5 found.
fn counted_in(said: &str, word: &str) -> Option<Value> {
    let at = said.find(word)?;
    let line = said[at..].lines().next()?;
    let mut counted = Map::new();
    for piece in line.split([',', ';']).flat_map(|piece| piece.split(" in ")) {
        let (number, what): (Vec<&str>, Vec<&str>) =
            piece.split_whitespace().partition(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
        let number: u64 = number.first()?.parse().ok()?;
        counted.insert(what.join("_").trim_end_matches(':').to_owned(), json!(number));
    }
    Some(Value::Object(counted))
}

/// A number, or the sum of an object's.
fn figure(report: &Value, pointer: &str) -> u64 {
    match report.pointer(pointer) {
        Some(Value::Object(members)) => members.values().filter_map(Value::as_u64).sum(),
        Some(value) => value.as_u64().unwrap_or(0),
        None => 0,
    }
}

/// What was reached so far, as it is on disk.
struct State(Map<String, Value>);

impl State {
    fn read(path: &Path) -> Result<Self, String> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map(Self).map_err(|e| format!("{}: {e}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self(Map::new())),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Whole or not at all.
    fn write(&self, path: &Path) -> Result<(), String> {
        let problem = |error: std::io::Error| format!("{}: {error}", path.display());
        let text = serde_json::to_vec_pretty(&self.0).map_err(|e| format!("{}: {e}", path.display()))?;
        let beside = path.with_extension("new");
        fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(problem)
    }

    fn part(&self, part: &Part, pointer: &str) -> u64 {
        self.0.get(part.name).map_or(0, |of| figure(of, pointer))
    }

    fn steps(&self, part: &Part) -> u64 {
        self.part(part, "/steps")
    }

    fn has_reached(&self, part: &Part, goal: &[(&str, u64)]) -> bool {
        goal.iter().all(|(name, least)| {
            self.0.get(part.name).and_then(|of| of["figures"][*name].as_u64()).unwrap_or(0) >= *least
        })
    }

    fn add(&mut self, part: &Part, report: &Value, typed: &str, seconds: u64) {
        let mut figures: BTreeMap<String, u64> = BTreeMap::new();
        let before = self.0.get(part.name).cloned().unwrap_or_default();
        let known = |name: &str| before["figures"][name].as_u64().unwrap_or(0);
        if let Says::Exit(name, each) = part.says {
            figures.insert(name.to_owned(), known(name) + each);
        }
        for (name, pointer, sum) in part.figures {
            let now = figure(report, pointer);
            let value = match sum {
                Sum::Add => known(name) + now,
                Sum::Max => known(name).max(now),
                Sum::Last => now,
            };
            figures.insert((*name).to_owned(), value);
        }
        let of = json!({
            "steps": before["steps"].as_u64().unwrap_or(0) + 1,
            "failed_steps": before["failed_steps"].as_u64().unwrap_or(0),
            "seconds": before["seconds"].as_u64().unwrap_or(0) + seconds,
            "figures": figures,
            "command": typed,
        });
        self.0.insert(part.name.to_owned(), of);
    }

    /// A step that failed is part of what is reported, for ever.
    fn fail(&mut self, part: &Part, typed: &str) {
        let of = self.0.entry(part.name).or_insert_with(|| json!({ "steps": 0, "seconds": 0, "figures": {} }));
        let failed = of["failed_steps"].as_u64().unwrap_or(0) + 1;
        of["failed_steps"] = json!(failed);
        of["command"] = json!(typed);
    }
}

/// As it goes into RELIABILITY.md: only what ran.
fn table(state: &State) -> String {
    let mut lines = vec![
        "| Part | Steps | Failed | Time | Figures | The last command |".to_owned(),
        "|---|--:|--:|--:|---|---|".to_owned(),
    ];
    for part in PARTS {
        let Some(of) = state.0.get(part.name) else { continue };
        let figures: Vec<String> = of["figures"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{} {}", name.replace('_', " "), grouped(value.as_u64().unwrap_or(0))))
            .collect();
        let number = |name: &str| of[name].as_u64().unwrap_or(0);
        lines.push(format!(
            "| {} | {} | {} | {} s | {} | `{}` |",
            part.name,
            number("steps"),
            number("failed_steps"),
            number("seconds"),
            figures.join(", "),
            of["command"].as_str().unwrap_or_default()
        ));
    }
    lines.join("\n")
}

/// 6480 as `6,480`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str) -> &'static Part {
        PARTS.iter().find(|part| part.name == name).unwrap()
    }

    #[test]
    fn steps_are_added_up_until_the_goal_and_only_what_ran_is_reported() {
        let part = part("kills, stops, redeploys");
        let mut state = State(Map::new());
        assert!(!state.has_reached(part, part.goal));
        let report = json!({
            "faults": { "kills": 1_600, "stops": 400, "redeploys": 60 },
            "recovery": { "max_ms": 1_234 }
        });
        state.add(part, &report, "cargo run", 10);
        assert!(!state.has_reached(part, part.goal));
        let report = json!({
            "faults": { "kills": 1_500, "stops": 300, "redeploys": 50 },
            "recovery": { "max_ms": 900 }
        });
        state.add(part, &report, "cargo run", 5);
        assert!(state.has_reached(part, part.goal));
        let told = table(&state);
        assert_eq!(told.lines().count(), 3, "{told}");
        for words in ["| 2 | 0 | 15 s |", "kills 3,100", "recovery max ms 1,234"] {
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn a_step_that_failed_is_never_forgotten() {
        let part = part("canaries");
        let mut state = State(Map::new());
        state.fail(part, "cargo test");
        state.add(part, &json!({}), "cargo test", 1);
        assert!(state.has_reached(part, part.goal) && table(&state).contains("| canaries | 1 | 1 | 1 s |"));
    }

    #[test]
    fn a_report_is_the_last_object_that_was_printed_or_all_of_it() {
        assert_eq!(report_in("{\"run\":{}}\n{\"sum\":{\"runs\":7}}\n"), Some(json!({ "sum": { "runs": 7 } })));
        assert_eq!(report_in("{\n  \"totals\": {}\n}"), Some(json!({ "totals": {} })));
        assert_eq!(report_in("nothing"), None);
        assert_eq!(figure(&json!({ "violations": { "lost": 2, "torn": 3 } }), "/violations"), 5);
    }

    #[test]
    fn a_line_says_what_it_counts() {
        // As libtest prints it, behind its dots.
        let said =
            "\nrunning 2 tests\n.flips: 2380 in 59 pages; refused 12, told 3, found by the doctor 4, wrong 0\n.\n";
        let counted =
            json!({ "flips": 2380, "pages": 59, "refused": 12, "told": 3, "found_by_the_doctor": 4, "wrong": 0 });
        assert_eq!(counted_in(said, "flips: "), Some(counted));
        assert_eq!(counted_in("flips in the log: 3 refused", "flips: "), None);
    }

    #[test]
    fn every_goal_is_a_figure_of_its_part() {
        for part in PARTS {
            let mut names: Vec<&str> = part.figures.iter().map(|(name, ..)| *name).collect();
            if let Says::Exit(name, _) = part.says {
                names.push(name);
            }
            for (name, _) in part.goal.iter().chain(part.short_goal) {
                assert!(names.contains(name), "{}: {name}", part.name);
            }
        }
    }
}
