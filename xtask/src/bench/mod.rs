//! `cargo xtask bench --peers`: Tidegate beside other queues, by turns, on one disk, each fsyncing what it acknowledges.
//!
//! Each queue is a program of its own that does one round and prints one line of JSON (`tidegate-bench/src/line.rs`): two
//! crates that link SQLite cannot share a build. Here they are built, started by turns, believed nothing that can be
//! checked, and put side by side. The method stands in docs/reference/benchmarks.md.

mod disk;
mod proof;
mod report;
mod round;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::Program;
use round::Round;

/// One of the queues, in one of its set-ups.
pub(crate) struct System {
    /// How it is called in the table.
    label: &'static str,
    /// The program, as cargo names it.
    program: &'static str,
    /// On top of what all are told.
    arguments: &'static [&'static str],
    /// A slow one gets one message where the others get so many, so that its rounds take about as long.
    one_in: u32,
}

/// The first is what the others are compared with.
const SYSTEMS: [System; 6] = [
    System { label: "tidegate", program: "tidegate_peer", arguments: &["--keys", "on"], one_in: 1 },
    System { label: "riverqueue, unique", program: "peer-riverqueue", arguments: &["--keys", "on"], one_in: 4 },
    System { label: "riverqueue", program: "peer-riverqueue", arguments: &["--keys", "off"], one_in: 4 },
    System { label: "apalis-sqlite, keyed", program: "peer-apalis-sqlite", arguments: &["--keys", "on"], one_in: 10 },
    System { label: "apalis-sqlite", program: "peer-apalis-sqlite", arguments: &["--keys", "off"], one_in: 10 },
    System { label: "honker", program: "peer-honker", arguments: &["--keys", "off"], one_in: 1 },
];

/// Where the programs come from: what is built, seen from the root, and whether in the root's own target directory.
const BUILDS: [(&[&str], bool); 3] = [
    (&["-p", "tidegate-bench", "--example", "tidegate_peer"], true),
    (&["--manifest-path", "crates/tidegate-bench/peers/Cargo.toml"], false),
    (&["--manifest-path", "crates/tidegate-bench/peers/honker/Cargo.toml"], false),
];

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    messages: u32,
    preload: u32,
    rounds: u32,
    /// Where the files are made; nothing: beside the programs.
    dir: Option<PathBuf>,
    json: Option<PathBuf>,
    /// Where all programs are already, instead of building them: to measure a version that was kept.
    programs: Option<PathBuf>,
}

impl Arguments {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let small = words.contains(&"--small");
        let mut arguments = if small {
            Self { messages: 400, preload: 1000, rounds: 1, dir: None, json: None, programs: None }
        } else {
            Self { messages: 40_000, preload: 100_000, rounds: 5, dir: None, json: None, programs: None }
        };
        if !words.contains(&"--peers") {
            return Err("cargo xtask bench compares with other queues only, and wants --peers\n\
                        hint: figures of Tidegate alone are printed by `tidegate bench`"
                .to_owned());
        }
        let mut words = words.iter().filter(|word| !["--peers", "--small"].contains(word));
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| format!("{name} has no value"))?;
            let number = || match value.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("{name} {value}: not a number above 0")),
            };
            match *name {
                "--messages" => arguments.messages = number()?,
                "--preload" => arguments.preload = number()?,
                "--rounds" => arguments.rounds = number()?,
                "--dir" => arguments.dir = Some(PathBuf::from(value)),
                "--json" => arguments.json = Some(PathBuf::from(value)),
                "--programs" => arguments.programs = Some(PathBuf::from(value)),
                _ => return Err(format!("cargo xtask bench has no argument {name}")),
            }
        }
        Ok(arguments)
    }
}

pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), String> {
    let arguments = Arguments::parse(words)?;
    let target = target_directory(root)?;
    let programs = match &arguments.programs {
        Some(kept) => SYSTEMS.iter().map(|system| kept.join(system.program)).collect(),
        None => build(root, &target)?,
    };
    let dir = Scratch::new(arguments.dir.as_deref().unwrap_or(&target))?;
    let load_before = disk::load();
    let mut fsyncs = disk::fsyncs(&dir.0)?;

    let mut seeds = 1_u64..;
    let mut starts = Vec::new();
    for system in &SYSTEMS {
        let program = find(&programs, system.program)?;
        let directory = dir.0.join(system.label.replace([' ', ','], "_"));
        std::fs::create_dir(&directory).map_err(|e| format!("cannot make {}: {e}", directory.display()))?;
        starts.push(Start { system, program, directory });
    }
    let mut waited = Vec::new();
    for start in &starts {
        println!("{}: counting what it waits for", start.system.label);
        waited.push(proof::count(start, &mut seeds)?);
    }
    let mut rounds: Vec<Vec<Round>> = starts.iter().map(|_| Vec::new()).collect();
    for number in 1..=arguments.rounds {
        for (start, rounds) in starts.iter().zip(&mut rounds) {
            let messages = arguments.messages.div_ceil(start.system.one_in);
            let command = start.command(messages, arguments.preload, next(&mut seeds));
            let round = start.run(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
            println!(
                "round {number} of {}, {}: {:.0}/s",
                arguments.rounds,
                start.system.label,
                round.lifecycles_per_s.unwrap_or_default()
            );
            rounds.push(round);
        }
        fsyncs.extend(disk::fsyncs(&dir.0)?);
    }
    let measured = report::measured(&SYSTEMS, &rounds, &waited)?;
    let conditions = report::Conditions { load_before, load_after: disk::load(), fsyncs, rounds: arguments.rounds };
    println!("\n{}", report::table(&measured, &conditions));
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&report::json(&measured, &conditions))
            .map_err(|e| format!("the figures cannot be written as JSON: {e}"))?;
        std::fs::write(file, text + "\n").map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// A system with its program and its file.
struct Start {
    system: &'static System,
    program: PathBuf,
    directory: PathBuf,
}

impl Start {
    /// The command of a round, in words.
    fn command(&self, messages: u32, preload: u32, seed: u64) -> Vec<String> {
        let mut words = vec![self.program.display().to_string()];
        let common = [
            ("--messages", messages.to_string()),
            ("--payload", "200".to_owned()),
            ("--preload", preload.to_string()),
            ("--seed", seed.to_string()),
            ("--dir", self.directory.display().to_string()),
        ];
        words.extend(common.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        words.extend(self.system.arguments.iter().map(|&word| word.to_owned()));
        words
    }

    /// Runs a round, or what a round is run below, and checks what it says of itself.
    fn run(&self, words: &[&str]) -> Result<Round, String> {
        let (program, arguments) = words.split_first().ok_or("nothing to run")?;
        let program = Program { program, arguments: arguments.to_vec(), environment: Vec::new() };
        Round::parse(&program.output(&self.directory)?).map_err(|problem| format!("{}: {problem}", self.system.label))
    }
}

fn next(seeds: &mut std::ops::RangeFrom<u64>) -> u64 {
    seeds.next().unwrap_or_default()
}

fn target_directory(root: &Path) -> Result<PathBuf, String> {
    let text = Program::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output(root)?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata printed no JSON: {e}"))?;
    metadata["target_directory"].as_str().map(PathBuf::from).ok_or_else(|| "cargo names no target directory".to_owned())
}

/// Builds everything, and says where each program is.
fn build(root: &Path, target: &Path) -> Result<Vec<PathBuf>, String> {
    let apart = target.join("peers").display().to_string();
    let mut programs = Vec::new();
    for (what, is_ours) in BUILDS {
        let mut words = vec!["build", "--release", "--locked", "--message-format", "json-render-diagnostics"];
        words.extend(what);
        if !is_ours {
            words.extend(["--target-dir", &apart]);
        }
        let build = Program::cargo(&words);
        println!("==> {}", build.as_typed());
        programs.extend(executables(&build.output(root)?));
    }
    Ok(programs)
}

/// The programs that a build says it has made.
pub(crate) fn executables(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect()
}

fn find(programs: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    let found = programs.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    found.cloned().ok_or_else(|| format!("the build made no program {name}"))
}

/// A directory that goes with its value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(parent: &Path) -> Result<Self, String> {
        let dir = parent.join(format!("tidegate-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        let whole = dir.canonicalize().map_err(|e| format!("cannot find {}: {e}", dir.display()))?;
        Ok(Self(whole))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_has_to_be_asked_for_and_its_arguments_are_named_when_wrong() {
        assert!(Arguments::parse(&[]).unwrap_err().contains("wants --peers"));
        for (words, named) in [
            (vec!["--peers", "--rounds"], "--rounds has no value"),
            (vec!["--peers", "--rounds", "0"], "--rounds 0: not a number above 0"),
            (vec!["--peers", "--fast", "yes"], "no argument --fast"),
        ] {
            assert!(Arguments::parse(&words).unwrap_err().contains(named), "{words:?}");
        }
        let small = Arguments::parse(&["--peers", "--small", "--json", "f"]).unwrap();
        assert_eq!((small.rounds, small.json), (1, Some(PathBuf::from("f"))));
        assert!(Arguments::parse(&["--peers"]).unwrap().rounds >= 5);
    }

    #[test]
    fn a_build_names_its_programs() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/peer-honker\"}\nno JSON\n";
        let programs = executables(messages);
        assert_eq!(find(&programs, "peer-honker"), Ok(PathBuf::from("/t/release/peer-honker")));
        assert!(find(&programs, "peer-other").unwrap_err().contains("peer-other"));
    }

    #[test]
    fn what_all_are_told_comes_first_and_what_one_is_told_last() {
        let start = Start { system: &SYSTEMS[0], program: "/p".into(), directory: "/d".into() };
        let words = start.command(5, 6, 7).join(" ");
        assert_eq!(words, "/p --messages 5 --payload 200 --preload 6 --seed 7 --dir /d --keys on");
    }

    #[test]
    fn the_scratch_directory_goes_with_its_value() {
        let scratch = Scratch::new(&std::env::temp_dir()).unwrap();
        let path = scratch.0.clone();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
