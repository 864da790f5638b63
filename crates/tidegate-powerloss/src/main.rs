//! `tidegate-powerloss`: so many power cuts, from a seed, with progress, a report and an exit code.
//!
//! With `--state` it writes down after each chain how far it is, and goes on from there when it is started again. It ends
//! with 0 when every promise was kept, with 1 when one was broken, with 2 when it could not do its work.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match linux::run() {
        Ok(code) => code,
        Err(error) => {
            linux::tell(&mut std::io::stderr(), &format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    // Nothing is recorded here, so nothing can be shown.
    ExitCode::from(2)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;
    use std::time::Duration;

    use clap::{Parser, ValueEnum};
    use serde::{Deserialize, Serialize};
    use tidegate_core::{Clock as _, clock::SystemClock};
    use tidegate_powerloss::campaign::{Campaign, Settings, Totals};
    use tidegate_sqlite::Synchronous;

    /// Simulated power cuts under the SQLite engine: what a disk may hold after each is opened again and compared with what
    /// was answered.
    #[derive(Debug, Parser)]
    #[command(version)]
    struct Arguments {
        /// How many power cuts, with those of earlier starts on the same state; the last chain is finished.
        #[arg(long, default_value_t = 10_000)]
        points: u64,
        /// From which everything follows.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where it is written how far this is; going on from there if the file is there.
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
        /// What commits wait for: anything but full must be found out.
        #[arg(long, value_enum, default_value_t = Commits::Full)]
        synchronous: Commits,
        /// Only this chain, as a report of a broken promise names it.
        #[arg(long, conflicts_with = "state")]
        chain: Option<u64>,
        /// Keep the images that broke a promise in this directory.
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Commits {
        Full,
        Normal,
        Off,
    }

    /// How far it is.
    #[derive(Debug, Serialize, Deserialize)]
    struct Progress {
        seed: u64,
        synchronous: Commits,
        next_chain: u64,
        seconds: f64,
        totals: Totals,
    }

    pub(crate) fn run() -> Result<ExitCode, String> {
        let arguments = Arguments::parse();
        let mut progress = match &arguments.state {
            Some(state) if state.exists() => read(state, &arguments)?,
            Some(_) | None => Progress {
                seed: arguments.seed,
                synchronous: arguments.synchronous,
                next_chain: arguments.chain.unwrap_or(0),
                seconds: 0.0,
                totals: Totals::default(),
            },
        };
        let settings = Settings {
            seed: arguments.seed,
            synchronous: match arguments.synchronous {
                Commits::Full => Synchronous::Full,
                Commits::Normal => Synchronous::Normal,
                Commits::Off => Synchronous::Off,
            },
            keep: arguments.keep.clone(),
            ..Settings::default()
        };
        let clock = SystemClock::new();
        let before = progress.seconds;
        let mut told = Duration::ZERO;
        let mut campaign =
            Campaign::new(settings, progress.totals.clone()).map_err(|e| format!("no directory to work in: {e}"))?;
        while progress.totals.points < arguments.points {
            campaign.chain(progress.next_chain);
            progress.next_chain += 1;
            progress.totals = campaign.totals.clone();
            progress.seconds = before + clock.monotonic().as_secs_f64();
            if let Some(state) = &arguments.state {
                write(state, &progress)?;
            }
            if clock.monotonic().saturating_sub(told) >= Duration::from_secs(10) {
                told = clock.monotonic();
                let Totals { points, lives, .. } = &progress.totals;
                let broken = progress.totals.broken();
                let line = format!("{points} of {} cuts, {lives} lives, {broken} broken promises", arguments.points);
                tell(&mut io::stderr(), &line);
            }
            if arguments.chain.is_some() {
                break;
            }
        }
        let report = if arguments.json { json(&progress)? } else { text(&progress) };
        tell(&mut io::stdout(), &report);
        Ok(if progress.totals.broken() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Prints a line; a reader that went away is no reason to stop.
    pub(crate) fn tell(to: &mut dyn Write, line: &str) {
        let (Ok(()) | Err(_)) = writeln!(to, "{line}");
    }

    fn read(state: &Path, arguments: &Arguments) -> Result<Progress, String> {
        let text = fs::read_to_string(state).map_err(|e| format!("{}: {e}", state.display()))?;
        let progress: Progress = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", state.display()))?;
        if (progress.seed, progress.synchronous) == (arguments.seed, arguments.synchronous) {
            return Ok(progress);
        }
        Err(format!(
            "{} is of seed {} and synchronous {:?}\nhint: give the same, or another file",
            state.display(),
            progress.seed,
            progress.synchronous
        ))
    }

    /// Replaces the file as a whole: a run that is killed finds the old one or the new one.
    fn write(state: &Path, progress: &Progress) -> Result<(), String> {
        let mut partial = state.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, json(progress)?)
            .and_then(|()| fs::rename(&partial, state))
            .map_err(|e| format!("{}: {e}", state.display()))
    }

    fn json(progress: &Progress) -> Result<String, String> {
        serde_json::to_string_pretty(progress).map_err(|e| e.to_string())
    }

    fn text(progress: &Progress) -> String {
        let Totals { points, distinct, at_risk, deep, after_an_error, lives, recoveries, restores, .. } =
            &progress.totals;
        let Totals { calls, operations, syncs, log_starts, errors, .. } = &progress.totals;
        let mut lines = vec![
            format!("power cuts            {points}  ({distinct} different images, {at_risk} with something at risk)"),
            format!("  examined by doctor  {deep}"),
            format!("  after an I/O error  {after_an_error}  ({errors} errors injected)"),
            format!("lives                 {lives}  ({recoveries} of a cut disk, {restores} of a restored backup)"),
            format!("  calls answered      {calls}"),
            format!("  operations          {operations}  ({syncs} syncs, {log_starts} logs begun)"),
            format!("time                  {:.0} s", progress.seconds),
            format!("broken promises       {}", progress.totals.broken()),
        ];
        for (harm, count) in &progress.totals.violations {
            lines.push(format!("  {harm:?}: {count}"));
        }
        for found in &progress.totals.found {
            lines.push(format!(
                "seed {} chain {} link {} point {}, {}: {:?}, {}",
                found.seed, found.chain, found.link, found.point, found.cut, found.violation.harm, found.violation.what
            ));
        }
        lines.join("\n")
    }
}
