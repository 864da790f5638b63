//! The roles of this application's one program, with their command lines.
//!
//! `deposits ROLE ..` and the hidden `tidegate role ROLE ..` are the same thing: whoever orchestrates (the demo, the
//! soak, a test) starts the program it is part of again, so that a process can be killed without a binary being
//! searched for.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::json;
use tidegate::{Address, Tidegate, failpoint};

use crate::books::{self, Books};
use crate::gateway::{self, FaultScript, GatewayMode, GatewayOptions, read_ledger};
use crate::intake::{self, FileFormat, IntakeOptions};
use crate::load::{self, LoadOptions, SideName, Target};
use crate::proof::{Evidence, prove};
use crate::signal;
use crate::soak::{self, SoakOptions};
use crate::steps::{self, Step, WorkOptions};
use crate::trace::{Preset, Scale, Scenario, Trace};
use crate::twin::{self, TwinOptions};

/// Where a role finds the address of its store if its command line has none: everybody on a machine can read a command line,
/// and the address of a server may hold a password.
pub const DATABASE: &str = "DEPOSITS_DATABASE";

/// A command line of this application.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// What to be.
    #[command(subcommand)]
    pub role: Role,
    /// Stop when standard input closes: for a child that must not outlive its parent.
    #[arg(long, global = true, hide = true)]
    stop_with_stdin: bool,
}

/// What the program can be.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// A payment gateway with a ledger of its own, which misbehaves by script.
    Gateway(GatewayArgs),
    /// The usual synchronous code, for comparison.
    Twin(TwinArgs),
    /// Takes deposits over HTTP.
    Intake(IntakeArgs),
    /// Carries deposits out.
    Work(WorkArgs),
    /// Takes deposits over HTTP and carries them out, in one process: what torture kills.
    Service(ServiceArgs),
    /// Sends a seeded load to both sides and writes down what customers were told.
    Load(LoadArgs),
    /// Takes deposits from a file.
    Take(TakeArgs),
    /// Decodes every deposit that is stored with the steps of this program: before it is rolled out.
    Check(CheckArgs),
    /// Sums the wallet's books, and compares them with a gateway's ledger.
    Books(BooksArgs),
    /// Computes the proof again from a directory that the demo kept.
    Prove(ProveArgs),
    /// Takes many deposits from a file and kills the worker meanwhile; accounts for every one.
    Soak(SoakArgs),
}

/// Which times and faults: those of the full demo, or of the fast one.
#[derive(Clone, Debug, Args)]
pub struct PresetArgs {
    /// Times scaled down to about a tenth.
    #[arg(long)]
    pub fast: bool,
    /// How late the gateway may process a call at most; more than the quarantine shows where the guarantee ends.
    #[arg(long, value_name = "MS", hide = true)]
    pub lateness_ms: Option<u64>,
    /// How long customers wait for the end of their deposits, after the last one was sent.
    #[arg(long, value_name = "MS", hide = true)]
    pub finish_within_ms: Option<u64>,
    /// How long a customer waits for an answer before going away.
    #[arg(long, value_name = "MS", hide = true)]
    pub patience_ms: Option<u64>,
}

impl PresetArgs {
    /// The preset.
    #[must_use]
    pub fn preset(&self) -> Preset {
        let mut preset = if self.fast { Preset::fast(Scenario::All) } else { Preset::full(Scenario::All) };
        if let Some(lateness_ms) = self.lateness_ms {
            preset.set_lateness(lateness_ms);
        }
        if let Some(finish_within_ms) = self.finish_within_ms {
            preset.scale.finish_within_ms = finish_within_ms;
        }
        if let Some(patience_ms) = self.patience_ms {
            preset.scale.patience_ms = patience_ms;
        }
        preset
    }
}

/// `gateway`
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Its ledger; created if missing.
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// What it promises about repeated calls: idempotent, lookup or none.
    #[arg(long, default_value = "idempotent", value_name = "MODE")]
    mode: GatewayMode,
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A fault script (JSON); without it and without --demo nothing goes wrong. It starts with the first request.
    #[arg(long, value_name = "FILE", conflicts_with = "demo")]
    script: Option<PathBuf>,
    /// The faults of the demo, from the first request on: calm, a spike, an outage, lost replies, recovery.
    #[arg(long)]
    demo: bool,
    /// The seed of its dice.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    preset: PresetArgs,
}

/// `twin`
#[derive(Debug, Args)]
pub struct TwinArgs {
    /// The gateway's base URL.
    #[arg(long, value_name = "URL", value_parser = base_url)]
    gateway: String,
    /// The wallet's SQLite file; created if missing.
    #[arg(long, value_name = "FILE")]
    wallet: PathBuf,
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A closed account; may be given more than once.
    #[arg(long, value_name = "ACCOUNT")]
    closed: Vec<String>,
    #[command(flatten)]
    preset: PresetArgs,
}

/// `intake`
#[derive(Debug, Args)]
pub struct IntakeArgs {
    /// The store, a file or postgres://HOST/DATABASE; created if missing.
    #[arg(long, value_name = "STORE", env = DATABASE, hide_env_values = true)]
    database: Address,
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The most deposits that may wait for their authorisation; beyond it customers get 429.
    #[arg(long, value_name = "N")]
    max_depth: Option<u64>,
    #[command(flatten)]
    preset: PresetArgs,
}

/// `work`
#[derive(Debug, Args)]
pub struct WorkArgs {
    /// The store, a file or postgres://HOST/DATABASE; created if missing.
    #[arg(long, value_name = "STORE", env = DATABASE, hide_env_values = true)]
    database: Address,
    /// The gateway's base URL.
    #[arg(long, value_name = "URL", value_parser = base_url)]
    gateway: String,
    /// What the gateway promises about repeated calls: idempotent, lookup or none.
    #[arg(long, default_value = "idempotent", value_name = "MODE")]
    mode: GatewayMode,
    /// Calls at once, for each step.
    #[arg(long, default_value_t = 14, value_name = "N")]
    concurrency: u32,
    /// A closed account; may be given more than once.
    #[arg(long, value_name = "ACCOUNT")]
    closed: Vec<String>,
    /// Shown to people.
    #[arg(long, default_value = "deposits")]
    name: String,
    /// A step that is left to other workers, such as one in another language; may be given more than once.
    #[arg(long, value_name = "STEP", value_enum)]
    without: Vec<Step>,
    #[command(flatten)]
    preset: PresetArgs,
}

/// `service`
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// The store, a file or postgres://HOST/DATABASE; created if missing.
    #[arg(long, value_name = "STORE", env = DATABASE, hide_env_values = true)]
    database: Address,
    /// The gateway's base URL.
    #[arg(long, value_name = "URL", value_parser = base_url)]
    gateway: String,
    /// What the gateway promises about repeated calls: idempotent, lookup or none.
    #[arg(long, default_value = "idempotent", value_name = "MODE")]
    mode: GatewayMode,
    /// Calls at once, for each step.
    #[arg(long, default_value_t = 4, value_name = "N")]
    concurrency: u32,
    /// A closed account; may be given more than once.
    #[arg(long, value_name = "ACCOUNT")]
    closed: Vec<String>,
    /// Shown to people.
    #[arg(long, default_value = "service")]
    name: String,
    /// A step that is left to other workers, such as one in another language; may be given more than once.
    #[arg(long, value_name = "STEP", value_enum)]
    without: Vec<Step>,
    /// The lease, from which every other time follows.
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..))]
    lease_ms: u64,
    /// The most deposits that may wait for their authorisation; beyond it customers get 429.
    #[arg(long, value_name = "N")]
    max_depth: Option<u64>,
    /// Dies or stops at a failpoint, POINT:NTH:kill|stop|exit, and says `reached POINT` before; may be given more than
    /// once.
    #[arg(long, value_name = "POINT", hide = true)]
    failpoint: Vec<Armed>,
}

/// A failpoint on a hidden command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Which.
    pub point: &'static failpoint::Point,
    /// At which visit, from 1.
    pub nth: u64,
    /// What happens there.
    pub act: ArmedAct,
}

/// What a process does to itself at a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmedAct {
    /// SIGKILL.
    Kill,
    /// SIGSTOP: whoever armed it lets it go again.
    Stop,
    /// Ends with code 70, as a program does that gives up.
    Exit,
}

impl FromStr for Armed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let (Some(point), Some(nth), Some(act), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(format!("{text:?} is not POINT:NTH:ACT"));
        };
        let point = failpoint::find(point).ok_or_else(|| format!("no failpoint is called {point:?}"))?;
        let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(|| format!("{nth:?} is no visit, from 1"))?;
        let act = match act {
            "kill" => ArmedAct::Kill,
            "stop" => ArmedAct::Stop,
            "exit" => ArmedAct::Exit,
            other => return Err(format!("nothing happens that is called {other:?}; hint: kill, stop or exit")),
        };
        Ok(Self { point, nth, act })
    }
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            ArmedAct::Kill => "kill",
            ArmedAct::Stop => "stop",
            ArmedAct::Exit => "exit",
        };
        write!(f, "{}:{}:{act}", self.point.name, self.nth)
    }
}

impl Armed {
    fn arm(self) -> anyhow::Result<()> {
        let act: fn(&'static str) = match self.act {
            ArmedAct::Kill => |point| end(point, Signal::SIGKILL),
            ArmedAct::Stop => |point| end(point, Signal::SIGSTOP),
            ArmedAct::Exit => |point| {
                told(point);
                #[expect(clippy::disallowed_methods, reason = "an end without destructors is the point")]
                std::process::exit(70)
            },
        };
        Ok(failpoint::arm(self.point.name, self.nth, act)?)
    }
}

/// The signal reaches the whole process before the call returns to this thread.
fn end(point: &'static str, signal: Signal) {
    told(point);
    if let Err(error) = nix::sys::signal::kill(nix::unistd::getpid(), signal) {
        tracing::error!(error = %error, "this process could not send itself {signal}");
    }
}

fn told(point: &'static str) {
    if let Err(error) = say(&format!("reached {point}")) {
        tracing::error!(error = %error, "nobody hears that {point} was reached");
    }
}

/// `load`
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The seed of the trace.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The twin's base URL.
    #[arg(long, value_name = "URL", requires = "synchronous_gateway")]
    synchronous: Option<String>,
    /// The base URL of the twin's gateway.
    #[arg(long, value_name = "URL")]
    synchronous_gateway: Option<String>,
    /// The intake's base URL.
    #[arg(long, value_name = "URL", requires = "tidegate_gateway")]
    tidegate: Option<String>,
    /// The base URL of the workers' gateway.
    #[arg(long, value_name = "URL")]
    tidegate_gateway: Option<String>,
    /// The directory for the files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    preset: PresetArgs,
}

/// `take`
#[derive(Debug, Args)]
pub struct TakeArgs {
    /// The requests: .ndjson or .csv.
    file: PathBuf,
    /// The store, a file or postgres://HOST/DATABASE; created if missing.
    #[arg(long, value_name = "STORE", env = DATABASE, hide_env_values = true)]
    database: Address,
}

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The store, a file or postgres://HOST/DATABASE.
    #[arg(long, value_name = "STORE", env = DATABASE, hide_env_values = true)]
    database: Address,
}

/// `books`
#[derive(Debug, Args)]
pub struct BooksArgs {
    /// The database with the wallet: the store's own, or the twin's file.
    #[arg(long = "database", alias = "wallet", value_name = "STORE", env = DATABASE, hide_env_values = true)]
    wallet: Address,
    /// The gateway's ledger to compare with.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
}

/// `prove`
#[derive(Debug, Args)]
pub struct ProveArgs {
    /// The directory.
    directory: PathBuf,
    /// The seed that the run had; printed, nothing else.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The gateway's mode that the run had; printed, nothing else.
    #[arg(long, default_value = "idempotent", value_name = "MODE")]
    gateway: GatewayMode,
}

/// `soak`
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// How many deposits.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    count: u64,
    /// How often the worker is killed.
    #[arg(long, default_value_t = 2, value_name = "N")]
    kills: u32,
    /// What the gateway promises about repeated calls: idempotent, lookup or none.
    #[arg(long, default_value = "idempotent", value_name = "MODE")]
    mode: GatewayMode,
    /// An empty directory for everything it makes; it is kept.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The seed of the requests.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The most seconds it may take.
    #[arg(long, default_value_t = 1_800, value_name = "SECONDS")]
    within: u64,
}

/// A base URL of the gateway, without a slash at the end. A typing error here would otherwise be retried for days.
fn base_url(text: &str) -> Result<String, String> {
    let wrong = |why: String| format!("{why}\nhint: http://127.0.0.1:7001, as the gateway announced");
    let url = reqwest::Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        "http" => Ok(text.trim_end_matches('/').to_owned()),
        other => Err(wrong(format!("the scheme {other:?} is not http"))),
    }
}

/// Plays a role until it is done, or told to stop by SIGTERM or Ctrl-C. `before` is what stands before a role on the
/// command line of this program.
///
/// # Errors
/// What the role could not do.
///
/// # Cancel safety
/// Dropping the future stops the role as a kill would.
pub async fn run_role(args: RoleArgs, before: &[&str]) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit();
    let stop = told_to_stop(args.stop_with_stdin)?;
    match args.role {
        Role::Gateway(args) => run_gateway(args, stop).await,
        Role::Twin(args) => run_twin(args, stop).await,
        Role::Intake(args) => run_intake(args, stop).await,
        Role::Work(args) => run_work(args, stop).await,
        Role::Service(args) => run_service(args, stop).await,
        Role::Load(args) => run_load(args, stop).await,
        Role::Take(args) => run_take(&args).await,
        Role::Check(args) => run_check(&args).await,
        Role::Books(args) => run_books(&args),
        Role::Prove(args) => run_prove(&args),
        Role::Soak(args) => {
            let SoakArgs { count, kills, mode, dir, seed, within } = args;
            soak::run(
                SoakOptions { count, kills, mode, directory: dir, seed, within: Duration::from_secs(within) },
                before,
            )
            .await
        }
    }
}

/// Thousands of customers of the synchronous side wait at once, each with a connection.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard));
    if let Err(error) = raised {
        tracing::debug!(error = %error, "the limit of open files stays as it is");
    }
}

/// Ends with the first SIGTERM or SIGINT, and with the end of standard input if that is asked for.
fn told_to_stop(with_stdin: bool) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let input = with_stdin.then(signal::input_ended).transpose().context("cannot watch standard input")?;
    Ok(async move {
        let input_ended = async {
            match input {
                Some(ended) => ended.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = signal::terminated() => if let Err(error) = ended {
                tracing::warn!(error = %error, "signals cannot be heard");
                std::future::pending::<()>().await;
            },
            () = input_ended => {}
        }
    })
}

async fn run_gateway(args: GatewayArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    let mut options =
        GatewayOptions { port: args.port, seed: args.seed, ..GatewayOptions::new(args.mode, args.ledger) };
    if let Some(script) = &args.script {
        options.script = FaultScript::load(script)?;
    }
    if args.demo {
        let preset = args.preset.preset();
        options.script = preset.script;
        options.concurrency = preset.gateway_concurrency;
    }
    gateway::start(options)?.run(std::io::stdout(), stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_twin(args: TwinArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    let scale = args.preset.preset().scale;
    let options = TwinOptions {
        port: args.port,
        call_timeout: Duration::from_millis(scale.call_timeout_ms),
        closed: args.closed,
        ..TwinOptions::new(args.gateway, args.wallet)
    };
    twin::start(options)?.run(std::io::stdout(), stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_intake(args: IntakeArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    let scale = args.preset.preset().scale;
    let tide = steps::open(&args.database, &scale).await?;
    let options = IntakeOptions { port: args.port, max_depth: args.max_depth };
    intake::start(tide.clone(), options).await?.run(std::io::stdout(), stop).await?;
    drop(tide);
    Ok(ExitCode::SUCCESS)
}

async fn run_work(args: WorkArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    let scale = args.preset.preset().scale;
    let tide = steps::open(&args.database, &scale).await?;
    books::prepare_at(&args.database, &args.closed).await?;
    let options = WorkOptions {
        gateway: args.gateway,
        mode: args.mode,
        scale,
        concurrency: args.concurrency,
        name: args.name,
        without: args.without,
    };
    let worker = steps::start(&tide, &options).await?;
    say(&format!("working {}", options.name))?;
    stop.await;
    worker.drain(Duration::from_millis(scale.call_timeout_ms * 2)).await?;
    drop(tide);
    Ok(ExitCode::SUCCESS)
}

async fn run_service(args: ServiceArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    for armed in &args.failpoint {
        armed.arm()?;
    }
    let scale = Scale::of_lease(args.lease_ms);
    let tide = steps::open(&args.database, &scale).await?;
    books::prepare_at(&args.database, &args.closed).await?;
    let options = WorkOptions {
        gateway: args.gateway,
        mode: args.mode,
        scale,
        concurrency: args.concurrency,
        name: args.name,
        without: args.without,
    };
    let worker = steps::start(&tide, &options).await?;
    let options = IntakeOptions { port: 0, max_depth: args.max_depth };
    intake::start(tide.clone(), options).await?.run(std::io::stdout(), stop).await?;
    let drained = worker.drain(Duration::from_millis(scale.call_timeout_ms * 2)).await?;
    drop(tide);
    say(&format!("drained {} {} {}", drained.finished, drained.released, drained.abandoned))?;
    Ok(ExitCode::SUCCESS)
}

async fn run_load(args: LoadArgs, stop: impl Future<Output = ()> + Send) -> anyhow::Result<ExitCode> {
    let preset = args.preset.preset();
    let target = |side, url: Option<String>, gateway: Option<String>| {
        url.zip(gateway).map(|(url, gateway)| Target { side, url, gateway })
    };
    let targets: Vec<Target> = [
        target(SideName::Synchronous, args.synchronous, args.synchronous_gateway),
        target(SideName::Tidegate, args.tidegate, args.tidegate_gateway),
    ]
    .into_iter()
    .flatten()
    .collect();
    anyhow::ensure!(!targets.is_empty(), "nobody to send the load to; hint: --tidegate or --synchronous");
    let options = LoadOptions {
        trace: Trace::generate(args.seed, &preset.trace)?,
        scale: preset.scale,
        targets,
        directory: args.out,
    };
    let report = |progress: &load::Progress| {
        // Whoever reads it may have gone; the files are what counts.
        drop(say(&serde_json::to_string(progress).expect("counts are plain data")));
    };
    load::run(options, report, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_take(args: &TakeArgs) -> anyhow::Result<ExitCode> {
    let format = FileFormat::of(&args.file)?;
    let tide = Tidegate::builder().housekeeping(false).open_at(&args.database).await?;
    let report = |number: u64, why: &str| {
        drop(writeln!(std::io::stderr().lock(), "{}:{number}: {why}", args.file.display()));
    };
    let taken = intake::take_file(&tide, &args.file, format, report).await?;
    drop(tide);
    say(&format!("{} lines: {} added, {} known, {} wrong", taken.lines, taken.added, taken.known, taken.wrong))?;
    Ok(if taken.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let tide = Tidegate::builder().housekeeping(false).create(false).open_at(&args.database).await?;
    let report = steps::check(&tide).await?;
    say(&report.to_string())?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_books(args: &BooksArgs) -> anyhow::Result<ExitCode> {
    let books = Books::read(&args.wallet)?;
    let ledger = args.ledger.as_deref().map(read_ledger).transpose()?;
    let gateway_total = ledger.as_deref().map(books::taken);
    let sums = books.sums;
    let balance = sums.debits == sums.credits && gateway_total.is_none_or(|total| total == sums.wallet_total);
    let told = json!({
        "debits": sums.debits,
        "credits": sums.credits,
        "wallet_total": sums.wallet_total,
        "gateway_total": gateway_total,
        "deposits": books.credited.len(),
        "balance": balance,
    });
    say(&told.to_string())?;
    Ok(if balance { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_prove(args: &ProveArgs) -> anyhow::Result<ExitCode> {
    let [synchronous, tidegate] =
        [SideName::Synchronous, SideName::Tidegate].map(|side| Evidence::in_directory(&args.directory, side));
    let proof = prove(args.seed, args.gateway, &synchronous, &tidegate)?;
    say(&serde_json::to_string(&proof).expect("a proof is plain data"))?;
    for broken in &proof.broken {
        writeln!(std::io::stderr().lock(), "must hold and does not: {broken}")
            .context("cannot write to standard error")?;
    }
    Ok(if proof.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line on standard output, at once: whoever started this reads it.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_failpoint_survives_its_command_line_and_a_wrong_one_is_refused() {
        for text in ["settle.after_commit:1:kill", "drain.end:2:stop", "group.before_commit:12:exit"] {
            assert_eq!(text.parse::<Armed>().unwrap().to_string(), text);
        }
        for wrong in ["settle:1:kill", "drain.end:0:kill", "drain.end:1:burn", "drain.end:1", "drain.end:1:kill:2"] {
            assert!(wrong.parse::<Armed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_gateway_that_is_no_http_url_is_refused_at_once() {
        assert_eq!(base_url("http://127.0.0.1:7001/").as_deref(), Ok("http://127.0.0.1:7001"));
        for wrong in ["nonsense", "127.0.0.1:7001", "localhost:7001", "https://127.0.0.1:7001"] {
            let said = base_url(wrong).unwrap_err();
            assert!(said.contains("hint: http://127.0.0.1:7001"), "{wrong}: {said}");
        }
    }
}
