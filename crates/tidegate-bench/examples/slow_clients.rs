//! What slow clients cost an honest one, on the server as it is shipped: see `tidegate_bench::slow`.
//!
//! `cargo build --release -p tidegate-cli && cargo run --release -p tidegate-bench --example slow_clients -- --connections 5000`
//!
//! More of it: `--rate 500 --requests 5000 --rounds 3 --honest 16 --dir . --program target/release/tidegate --json`. Ends
//! with 1 where 99 of 100 requests took more than twice as long beside the slow clients.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are its purpose")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tidegate_bench::slow::{Parameters, Report, Turn, run};

/// How many times as long it may take.
const MOST: f64 = 2.0;

fn main() -> anyhow::Result<ExitCode> {
    let mut parameters = Parameters::new(beside_this_program()?);
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut text = || arguments.next().with_context(|| format!("{flag} has no value"));
        match flag.as_str() {
            "--connections" => parameters.connections = number(&flag, &text()?)?,
            "--rate" => parameters.rate = number(&flag, &text()?)?,
            "--requests" => parameters.requests = number(&flag, &text()?)?,
            "--rounds" => parameters.rounds = number(&flag, &text()?)?,
            "--honest" => parameters.honest = number(&flag, &text()?)?,
            "--dir" => parameters.dir = PathBuf::from(text()?),
            "--program" => parameters.program = PathBuf::from(text()?).canonicalize().context("--program")?,
            "--json" => json = true,
            other => anyhow::bail!(
                "no flag {other:?}; hint: --connections --rate --requests --rounds --honest --dir --program --json"
            ),
        }
    }
    // Beside the figures, so that `--json` is JSON and nothing else.
    let report = run(&parameters, &mut |step| eprintln!("{step}"))?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.ratio_p99 <= MOST { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) {
    println!("an honest client, {} requests a second, ms from when each was to be sent", report.rate_per_s);
    let line = |name: &str, turn: &Turn| {
        println!(
            "{name}: p50 {:.2}, p99 {:.2}, max {:.2} of {} requests, {} connections, {} cut off",
            turn.p50_ms, turn.p99_ms, turn.max_ms, turn.answered, turn.connections, turn.cut_off
        );
    };
    line("alone ", &report.alone);
    line("beside", &report.beside);
    println!(
        "beside {} slow connections: {:.2} times at p50, {:.2} times at p99",
        report.slow, report.ratio_p50, report.ratio_p99
    );
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> anyhow::Result<T> {
    text.parse().map_err(|_| anyhow::anyhow!("{flag} {text:?} is no number that can be"))
}

/// `target/release/tidegate` beside `target/release/examples/slow_clients`.
fn beside_this_program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("where this program is cannot be found out")?;
    let directory = this.parent().and_then(|examples| examples.parent()).context("this program is in no directory")?;
    Ok(directory.join("tidegate"))
}
