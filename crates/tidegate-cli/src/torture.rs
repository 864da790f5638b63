//! `tidegate torture`: kills, stops and redeploys services on this machine's own disk, and audits the gateway's ledger.
//!
//! What is done and how it is judged stands in `tidegate-torture`; here is the command line, what a person sees meanwhile,
//! and the exit code. The child processes are this very program again, as `tidegate role ..`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use deposits::clock;
use deposits::gateway::GatewayMode;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidegate::{Address, explain, failpoint};
use tidegate_torture::{Amount, CaptureWith, Failpoints, Faults, Options, Phase, Progress, Report, Store};

use crate::exit::{Code, Problem};
use crate::open::place;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate torture
  tidegate torture --for 5m --dir /mnt/disk/torture
  tidegate torture --kills 300 --stops 60 --redeploys 10 --report report.json
  tidegate torture --gateway none --seed 7
  tidegate torture --store throw-away --for 5m
  tidegate torture --capture-with 'python3 capture.py' --for 5m
  tidegate torture --list-failpoints";

const MUSTS: &str = "\
Services that take deposits and carry them out share one store. They are killed with SIGKILL at random and at every \
failpoint of the protocol, stopped with SIGSTOP for longer than their lease and let go again, and redeployed with SIGTERM, \
while a payment gateway loses replies, is late and breaks down. Then the faults stop, what is left is worked off, and the \
gateway's synced ledger, the wallet's books and the producers' synced log are compared.

Exit code 0 only if nothing accepted was lost, nothing took effect twice, the books balance, every message is in exactly \
one state, answers are the same when asked again, and what a killed worker held was free within the lease and 2 s. \
Otherwise 1, and the directory is kept. The same seed plans the same faults; when they hit depends on the machine.

The store is a file in the run's directory. --store postgres://… has one made in a schema of its own on that server, \
which also ends connections then; --store throw-away has a server made for the run, which is restarted as well, as if \
it had crashed, and ends connections between a COMMIT and its answer.

--capture-with has the captures made by another program: the services leave them alone, `tidegate serve` is started on the \
store, and the workers that the command starts come to it over HTTP. They are killed, stopped and redeployed as often as \
the services, and the server a fifth as often; the audit is the same. What such a worker is told by its environment, and \
what it has to say, is in docs/reliability/torture.md; clients/python/examples/capture.py is one.";

/// The server that is made for a run, as it is named on the command line.
const THROW_AWAY: &str = "throw-away";

/// Which failpoints are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AtFailpoints {
    /// Each at its first visit and at a later one
    All,
    /// Each at its first visit
    First,
    /// Only at random moments
    None,
}

/// Prove on your own disk that nothing is lost or done twice while services are killed
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = MUSTS)]
pub(crate) struct TortureArgs {
    /// How long faults happen: 90s, 5m, 2h
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = duration, conflicts_with_all = ["kills", "stops", "redeploys", "terminations", "restarts"])]
    length: Duration,
    /// So many SIGKILLs instead of a time; those at failpoints are counted in, and all of them happen
    #[arg(long, value_name = "N")]
    kills: Option<u64>,
    /// So many SIGSTOPs for longer than the lease; a fifth of the kills unless given
    #[arg(long, value_name = "N", requires = "kills")]
    stops: Option<u64>,
    /// So many SIGTERMs; a thirtieth of the kills unless given
    #[arg(long, value_name = "N", requires = "kills")]
    redeploys: Option<u64>,
    /// So many times a server ends a service's connections; a fifth of the kills unless given
    #[arg(long, value_name = "N", requires = "kills")]
    terminations: Option<u64>,
    /// So many immediate restarts of a throw-away server; a tenth of the kills unless given
    #[arg(long, value_name = "N", requires = "kills")]
    restarts: Option<u64>,
    /// Where, besides at random, services are killed
    #[arg(long, value_name = "WHICH", value_enum, default_value = "all")]
    failpoints: AtFailpoints,
    /// How many services share the store; 2 on a file, 3 on a server unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    services: Option<u16>,
    /// A command that starts a worker for the captures, in any language, instead of the services
    #[arg(long, value_name = "COMMAND")]
    capture_with: Option<String>,
    /// How many of these workers there are
    #[arg(long, value_name = "N", default_value_t = 2, requires = "capture_with", value_parser = clap::value_parser!(u16).range(1..=64))]
    capture_workers: u16,
    /// What the gateway can do about a repeated call: idempotent, lookup or none
    #[arg(long, value_name = "MODE", default_value = "idempotent")]
    gateway: GatewayMode,
    /// From which the faults and the deposits are made
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// An empty directory on the disk in question; kept. Without it a temporary one, kept only after a failure
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The lease of every worker, 500ms or longer; the shorter, the sooner a stop is over
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = lease)]
    lease: Duration,
    /// How many deposits are sent in a second
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// Write the report as one JSON object into this file as well; --json prints it instead of the table
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// List the failpoints with what has happened at each, and do nothing
    #[arg(long)]
    list_failpoints: bool,
    /// Let the gateway do less than the services are told, to see that the audit finds it
    #[arg(long, value_name = "MODE", hide = true)]
    gateway_really: Option<GatewayMode>,
}

/// Runs it; its exit code is the report's.
pub(crate) async fn run(args: TortureArgs, store: Option<&str>, output: &Output) -> Result<ExitCode, Problem> {
    if args.list_failpoints {
        let rows: Vec<Vec<String>> = (failpoint::ALL.iter())
            .map(|point| {
                let place = if point.in_transaction { "inside" } else { "outside" };
                vec![point.name.to_owned(), place.to_owned(), point.says.to_owned()]
            })
            .collect();
        output.rows(&["failpoint", "transaction", "what has happened when it is reached"], &rows)?;
        return Ok(Code::Done.into());
    }
    let store = store.map(of_a_run).transpose()?.unwrap_or_default();
    let (directory, temporary) = directory(&args)?;
    let options = options(&args, store, directory.clone())?;
    let mut show = Show::new(&args);
    show.say(&format!(
        "seed {}, {} services{} on {}, gateway {}, lease {}",
        args.seed,
        options.services,
        options.capture.as_ref().map_or_else(String::new, |capture| format!(", {} capture workers", capture.workers)),
        match &options.store {
            Store::File => directory.display().to_string(),
            Store::Server(server) => server.to_string(),
            Store::ThrowAway => "a server made for the run".to_owned(),
        },
        args.gateway,
        explain::span(args.lease),
    ));
    let ran = tidegate_torture::run(&options, &mut |progress| show.progress(progress), interrupted()).await;
    show.clear();
    let report = match ran {
        Ok(Some(report)) => report,
        Err(error) => {
            let hint = format!("the store, the ledger and the services' words are in {}", directory.display());
            return Err(Problem::new(Code::Failed, format!("{error:#}")).hint(hint));
        }
        Ok(None) => {
            return Err(Problem::new(Code::Interrupted, "interrupted; every process of the run has been killed")
                .hint(format!("what there is so far is in {}", directory.display())));
        }
    };
    conclude(&args, &report, &options, temporary, output)
}

/// Where a run makes its store: a file of one's own is not touched.
fn of_a_run(named: &str) -> Result<Store, Problem> {
    if named == THROW_AWAY {
        return Ok(Store::ThrowAway);
    }
    Ok(match place(named)? {
        Address::File(_) => Store::File,
        Address::Server(server) => Store::Server(server),
    })
}

/// Ctrl-C; never, if it cannot be heard.
async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::warn!(error = %error, "Ctrl-C cannot be heard");
        std::future::pending::<()>().await;
    }
}

fn directory(args: &TortureArgs) -> anyhow::Result<(PathBuf, bool)> {
    if let Some(directory) = &args.dir {
        return Ok((directory.clone(), false));
    }
    // Kept beyond this value: only a run that passes deletes it.
    let made = tempfile::Builder::new().prefix("tidegate-torture-").tempdir().context("cannot make a directory")?;
    Ok((made.keep(), true))
}

fn options(args: &TortureArgs, store: Store, directory: PathBuf) -> anyhow::Result<Options> {
    let amount = match args.kills {
        None => Amount::For(args.length),
        Some(kills) => Amount::Count(Faults {
            kills,
            stops: args.stops.unwrap_or(kills / 5),
            redeploys: args.redeploys.unwrap_or(kills / 30),
            terminations: args.terminations.unwrap_or(kills / 5),
            restarts: args.restarts.unwrap_or(kills / 10),
        }),
    };
    let failpoints = match args.failpoints {
        AtFailpoints::All => Failpoints::All,
        AtFailpoints::First => Failpoints::First,
        AtFailpoints::None => Failpoints::None,
    };
    Ok(Options {
        executable: std::env::current_exe().context("cannot find this program")?,
        before: vec!["role".into()],
        directory,
        seed: args.seed,
        amount,
        failpoints,
        services: args.services.unwrap_or(if store == Store::File { 2 } else { 3 }).into(),
        store,
        capture: args.capture_with.clone().map(|command| CaptureWith { command, workers: args.capture_workers.into() }),
        gateway: args.gateway,
        gateway_really: args.gateway_really,
        lease: args.lease,
        per_second: args.rate,
    })
}

fn conclude(
    args: &TortureArgs,
    report: &Report,
    options: &Options,
    temporary: bool,
    output: &Output,
) -> Result<ExitCode, Problem> {
    let directory = options.directory.as_path();
    let json = || serde_json::to_string(report).context("a report is plain data");
    if let Some(file) = &args.report {
        std::fs::write(file, json()? + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    if output.json {
        writeln!(out, "{}", json()?)?;
    } else {
        let verdict = if report.pass { "PASS" } else { "FAIL" };
        write!(out, "\n{report}")?;
        let took = Duration::from_millis(report.took_ms);
        writeln!(
            out,
            "TORTURE: {verdict}   seed {}   gateway {}   {}",
            report.seed,
            report.gateway,
            explain::span(took)
        )?;
    }
    out.flush()?;
    let mut talk = std::io::stderr().lock();
    for check in report.checks.iter().filter(|check| !check.ok) {
        writeln!(talk, "must hold and does not: {} ({} found)", check.says, check.found)?;
        for example in &check.examples {
            writeln!(talk, "  {example}")?;
        }
    }
    let unreached: Vec<&str> = report.unreached().collect();
    if !unreached.is_empty() {
        writeln!(talk, "not reached in time, so nothing died there: {}", unreached.join(", "))?;
    }
    if !report.pass {
        let store = match &options.store {
            Store::File => directory.join("deposits.db").display().to_string(),
            Store::Server(server) => server.clone().with("schema", &report.schema).to_string(),
            // It went with the run.
            Store::ThrowAway => {
                writeln!(talk, "hint: the ledger and the services' words are in {}", directory.display())?;
                return Ok(Code::Failed.into());
            }
        };
        writeln!(
            talk,
            "hint: everything is in {}; tidegate --store {store} doctor, or explain a message, looks into it",
            directory.display(),
        )?;
        return Ok(Code::Failed.into());
    }
    if temporary {
        std::fs::remove_dir_all(directory).with_context(|| format!("cannot delete {}", directory.display()))?;
    }
    Ok(Code::Done.into())
}

/// `90s`, `5m`, `2h`, `500ms`, or bare seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; hint: 90s, 5m or 2h");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let millis_each = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let millis = number.checked_mul(millis_each).filter(|millis| *millis <= 30 * 24 * 3_600_000);
    millis.map(Duration::from_millis).ok_or_else(|| format!("{text} is longer than 30 days; hint: 90s, 5m or 2h"))
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = duration(text)?;
    if (Duration::from_millis(500)..=Duration::from_secs(60)).contains(&lease) {
        return Ok(lease);
    }
    Err(format!("a lease of {text} is not between 500ms and 60s; hint: 2s"))
}

/// What a person sees meanwhile: a line that changes on a terminal, and elsewhere a line every few seconds.
struct Show {
    bar: Option<ProgressBar>,
    started: std::time::Instant,
    length: Option<Duration>,
    said: Option<u64>,
}

impl Show {
    fn new(args: &TortureArgs) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self { bar, started: clock::now(), length: args.kills.is_none().then_some(args.length), said: None }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(line)),
            None => tell(line),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let took = clock::now().saturating_duration_since(self.started);
        let line = line(progress, took, self.length);
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.tick();
            }
            None if self.said.is_none_or(|said| took.as_secs() >= said + 5) => {
                self.said = Some(took.as_secs());
                tell(&line);
            }
            None => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn tell(line: &str) {
    // Whoever watched may have gone; the report is what counts.
    let _told = writeln!(std::io::stderr(), "{line}");
}

fn line(progress: &Progress, took: Duration, length: Option<Duration>) -> String {
    let Progress { phase, kills, stops, redeploys, left, sent, accepted, depth } = progress;
    let took = took.as_secs();
    match phase {
        Phase::Attack => {
            let left = match length {
                Some(length) => format!("{} s left", length.as_secs().saturating_sub(took)),
                None => format!("{left} faults left"),
            };
            format!(
                "{took:>4} s  killed {kills}  stopped {stops}  redeployed {redeploys}  sent {sent}  accepted {accepted}  \
                 waiting {depth}  {left}"
            )
        }
        Phase::Drain => format!("{took:>4} s  the faults have stopped; {depth} messages left"),
        Phase::Audit => format!("{took:>4} s  every deposit is asked for again, then the witnesses are compared"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        let cases = [
            ("90s", Some(90_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("7", Some(7_000)),
            ("500ms", Some(500)),
            ("", None),
            ("m", None),
            ("5x", None),
            ("-1s", None),
            ("99999999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
        assert!(lease("100ms").is_err() && lease("2m").is_err() && lease("1s").is_ok());
    }

    #[test]
    fn a_line_of_progress_fits_a_wide_terminal() {
        let progress = Progress {
            phase: Phase::Attack,
            kills: 3_000,
            stops: 600,
            redeploys: 100,
            left: 0,
            sent: 48_000,
            accepted: 47_990,
            depth: 400,
        };
        let line = line(&progress, Duration::from_secs(1_800), None);
        assert!(line.chars().count() <= 120, "{line}");
    }
}
