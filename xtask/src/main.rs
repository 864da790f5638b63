//! The repository's chores, run as `cargo xtask <command>`.
//!
//! `ci` is the whole gate: whatever continuous integration checks, it checks by running this and nothing else, so a
//! failure there is a failure here. `test` is the part a person runs all day. The rest are the gate's own checks, each
//! callable alone. Depends on `serde_json` only, and on a crate of ours that depends on nothing, so that
//! a first `cargo xtask` is quick to build.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people: its output is its purpose")]

mod bench;
mod ci;
mod deploy;
mod docs;
mod files;
mod graph;
mod licences;
mod load;
mod pg;
mod python;
mod reference;
mod run;
mod test;
mod torture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  ci                the whole gate: format, clippy, tests, docs, dependencies, files
  test [ARGS..]     every test of the workspace; ARGS go to `cargo test`
  pg [-- COMMAND..] a PostgreSQL server to throw away: prints its URL and waits for Ctrl-C, or runs COMMAND with it
  torture [--long] [--state FILE] [--only PART]
                    attack the engine: a small round of everything, or the long run, which goes on where it was broken off
  docs [--check]    write what is generated in docs/reference and the README, or check that it is fresh
  deploy            alerts and their tests, dashboard, metrics and units: read by promtool and systemd-analyze
  deps              dependency direction between our crates, and the licences of theirs
  bench --peers     Tidegate beside other queues at equal durability, by turns; [--small] [--messages N]
                    [--preload N] [--rounds N] [--dir DIR] [--json FILE] [--programs DIR]
  load              enqueues over HTTP by a public load tool; [--store sqlite|postgres] [--seconds N] [--json FILE]
                    [--program FILE]
  python            the type checker and the tests of clients/python, in an environment of their own
  files             no file over 1 MiB, no machine path or registry host in a text, no dead link";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = workspace_root();
    let result = match arguments.as_slice() {
        ["ci"] => ci::run(&root),
        ["test", rest @ ..] => test::run(&root, rest),
        ["pg"] => pg::run(&root, &[]),
        ["pg", "--", command @ ..] => pg::run(&root, command),
        ["torture", rest @ ..] => torture::Asked::read(rest, &root).and_then(|asked| torture::run(&root, &asked)),
        ["docs"] => docs::write(&root),
        ["docs", "--check"] => docs::check(&root),
        ["deploy"] => deploy::run(&root),
        ["deps"] => graph::check(&root).and_then(|()| licences::check(&root)),
        ["bench", rest @ ..] => bench::run(&root, rest),
        ["load", rest @ ..] => load::Asked::read(rest).and_then(|asked| load::run(&root, &asked)),
        ["python"] => python::run(&root),
        ["files"] => files::check(&root),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Where the workspace stands: this crate lives one level below it.
fn workspace_root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_path_buf()
}
