//! Long runs of the simulation: seed after seed, with what was reached kept in a file, so that a run can be broken off and
//! taken up again.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tidegate_core::{Clock as _, SystemClock};
use tidegate_sim::{Failure, Report, Settings};

/// Simulates Tidegate under faults, one run for each seed, and checks its invariants on every step.
#[derive(Debug, Parser)]
#[command(version)]
struct Asked {
    /// The seeds to run, from..to; the last is not run.
    #[arg(long, value_parser = seeds, default_value = "1..33")]
    seeds: Range,
    /// How many simulated hours faults and clients come for in each run.
    #[arg(long, default_value_t = 6.0)]
    hours: f64,
    /// Prints one JSON object a line: a run, a failure, and in the end the sum.
    #[arg(long)]
    json: bool,
    /// Keeps what was reached here, and goes on from there.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Ends after so many seconds, between two runs.
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// How many runs may be spent on shortening the script of a failure.
    #[arg(long, default_value_t = 100)]
    tries: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    from: u64,
    to: u64,
}

fn seeds(text: &str) -> Result<Range, String> {
    let wrong = || format!("no seeds: {text:?}; hint: 1..100");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if from < to { Ok(Range { from, to }) } else { Err(wrong()) }
}

/// What all runs came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Sum {
    /// The next seed to run.
    next: u64,
    /// How many runs.
    runs: u64,
    simulated_ms: u64,
    messages: u64,
    effects: u64,
    /// Runs of handlers.
    handled: u64,
    checks: u64,
    /// Attempts beyond the limit that the protocol grants.
    granted: u64,
    /// Overloads after which as much came through as before, and how long the slowest took to drain.
    overloads: u64,
    slowest_drain_ms: u64,
    faults: BTreeMap<String, u64>,
    /// Seeds that showed a violation, with its name.
    violations: BTreeMap<u64, String>,
    /// How long the runs took, by the machine's clock.
    took_ms: u64,
}

impl Sum {
    fn add(&mut self, report: &Report) {
        self.simulated_ms += report.simulated_ms;
        self.messages += report.messages;
        self.effects += report.effects;
        self.handled += report.runs;
        self.checks += report.checks;
        self.granted += report.granted;
        self.overloads += 1;
        self.slowest_drain_ms = self.slowest_drain_ms.max(report.drained_in_ms);
        for (name, n) in &report.faults {
            *self.faults.entry(name.clone()).or_default() += n;
        }
    }

    fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

fn main() -> ExitCode {
    match work(&Asked::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // There is nobody left to tell when this fails.
            writeln!(io::stderr(), "error: {error}").ok();
            ExitCode::from(2)
        }
    }
}

/// Runs the seeds; says whether every invariant held.
fn work(asked: &Asked) -> io::Result<bool> {
    let clock = SystemClock::new();
    let mut sum = known(asked)?;
    let span = Duration::from_secs_f64(asked.hours.clamp(0.01, 100_000.0) * 3600.0);
    let mut out = io::stdout().lock();
    while sum.next < asked.seeds.to {
        if asked.within.is_some_and(|within| clock.monotonic() >= Duration::from_secs(within)) {
            break;
        }
        let seed = sum.next;
        let began = clock.monotonic();
        let ran = tidegate_sim::hunt(&Settings::of(seed, span), asked.tries);
        let took = clock.monotonic().saturating_sub(began);
        sum.took_ms += u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        sum.runs += 1;
        sum.next = seed + 1;
        match &ran {
            Ok(report) => sum.add(report),
            Err(failure) => drop(sum.violations.insert(seed, failure.violation.invariant.to_owned())),
        }
        tell(&mut out, asked.json, &ran, took)?;
        if let Some(path) = &asked.state {
            keep(path, &sum)?;
        }
    }
    tell_sum(&mut out, asked.json, &sum)?;
    Ok(sum.violations.is_empty())
}

fn known(asked: &Asked) -> io::Result<Sum> {
    let fresh = Sum { next: asked.seeds.from, ..Sum::default() };
    let Some(path) = &asked.state else { return Ok(fresh) };
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(fresh),
        Err(error) => Err(error),
    }
}

/// Whole or not at all: a run that is broken off here is taken up from the seed before.
fn keep(path: &Path, sum: &Sum) -> io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(sum)?)?;
    std::fs::rename(&beside, path)
}

fn tell(out: &mut impl io::Write, json: bool, ran: &Result<Report, Box<Failure>>, took: Duration) -> io::Result<()> {
    match ran {
        Ok(report) if json => {
            let mut value = serde_json::to_value(report)?;
            value["took_ms"] = serde_json::Value::from(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            value["trace"] = serde_json::Value::from(format!("{:016x}", report.trace));
            writeln!(out, "{}", serde_json::json!({ "run": value }))
        }
        Ok(report) => writeln!(
            out,
            "seed {}: {:.1} h, {} messages, {} faults, {} checks, trace {:016x}, in {took:.1?}",
            report.seed,
            hours(report.simulated_ms),
            report.messages,
            report.all_faults(),
            report.checks,
            report.trace
        ),
        Err(failure) if json => {
            let Failure { seed, violation, script, faults, last } = &**failure;
            let failure = serde_json::json!({ "failure": {
                "seed": seed,
                "invariant": violation.invariant,
                "what": violation.what,
                "at_ms": u64::try_from(violation.at.as_millis()).unwrap_or(u64::MAX),
                "script": script,
                "faults_before": faults,
                "last": last,
            }});
            writeln!(out, "{failure}")
        }
        Err(failure) => writeln!(out, "{failure}"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn hours(ms: u64) -> f64 {
    ms as f64 / 3_600_000.0
}

fn tell_sum(out: &mut impl io::Write, json: bool, sum: &Sum) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", serde_json::json!({ "sum": sum, "faults": sum.all_faults() }));
    }
    let (hours, took) = (hours(sum.simulated_ms), Duration::from_millis(sum.took_ms));
    writeln!(
        out,
        "{} runs: {hours:.0} simulated hours, {} messages, {} effects, {} faults, {} checks, {} violations, in {took:.1?}",
        sum.runs,
        sum.messages,
        sum.effects,
        sum.all_faults(),
        sum.checks,
        sum.violations.len()
    )?;
    let second = took.as_secs_f64().max(0.001);
    writeln!(
        out,
        "{:.0} messages/s, {:.0} faults/s, {:.0} times as fast as time",
        per(sum.messages, second),
        per(sum.all_faults(), second),
        hours * 3600.0 / second
    )?;
    sum.faults.iter().try_for_each(|(name, n)| writeln!(out, "  {n:>9}  {name}"))?;
    sum.violations.iter().try_for_each(|(seed, name)| writeln!(out, "  seed {seed}: {name}"))
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn per(n: u64, seconds: f64) -> f64 {
    n as f64 / seconds
}
