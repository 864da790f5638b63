//! `tidegate demo`: the same deposits through the usual code and through Tidegate, while everything goes wrong.
//!
//! A process tree on 127.0.0.1 in one temporary directory: two gateways of one script and seed, the synchronous twin,
//! the intake, the worker, and the load generator that sends the same bytes to both sides. The worker and the twin are
//! killed with SIGKILL on the way. When every process has ended, [`deposits::proof`] counts from the gateways' ledgers
//! and from what the customers last read; nothing it reads was written by Tidegate but the wallet's books.

mod show;
mod stage;
mod tail;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use deposits::clock;
use deposits::gateway::GatewayMode;
use deposits::proof::{Proof, prove};
use deposits::schema;
use deposits::trace::{PhaseKind, Preset, Scenario, Trace};
use tidegate::{Address, Server};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::exit::Problem;
use crate::open::place;
use show::Show;
use stage::Stage;

const EXAMPLES: &str = "\
Examples:
  tidegate demo
  tidegate demo --gateway none --seed 7
  tidegate demo --fast --json
  tidegate demo --store postgres://tidegate@localhost/tidegate";

const MUSTS: &str = "\
Exit code 0 only if for Tidegate's side everything holds: no deposit took effect twice, none was charged and told \
failed, accepted = completed + failed + dead + parked, and the books balance. Otherwise 1.

The store is a file in a temporary directory. --store postgres://… has one made in a schema of its own on that server, \
with three workers, of which two are killed. It is removed afterwards, unless --keep.";

/// Prove on this machine that deposits take effect exactly once, next to the usual code
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = MUSTS)]
pub(crate) struct DemoArgs {
    /// About 10 s instead of about a minute: fewer deposits, and all times scaled down
    #[arg(long)]
    fast: bool,
    /// From which the deposits and the gateway's faults are made: the same seed, the same load
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// What the gateway can do about a repeated call: idempotent, lookup or none
    #[arg(long, value_name = "MODE", default_value = "idempotent")]
    gateway: GatewayMode,
    /// Keep the directory with the ledgers, the load generator's files and the store
    #[arg(long)]
    keep: bool,
    /// Print the proof as one JSON object
    #[arg(long)]
    json: bool,
    /// How late the gateway may process a call at most. Later than the quarantine shows where the guarantee ends
    #[arg(long, value_name = "MS")]
    lateness_ms: Option<u64>,
}

/// Runs the demo; its exit code is the proof's.
pub(crate) async fn run(args: DemoArgs, store: Option<&str>) -> Result<ExitCode, Problem> {
    let server = match store.map(place).transpose()? {
        Some(Address::Server(server)) => Some(server.with("schema", &format!("demo_{}", std::process::id()))),
        // A file of one's own is not touched.
        Some(Address::File(_)) | None => None,
    };
    Ok(shown(args, server).await?)
}

async fn shown(args: DemoArgs, server: Option<Server>) -> anyhow::Result<ExitCode> {
    let preset = preset(&args, server.is_some());
    let trace = Trace::generate(args.seed, &preset.trace)?;
    let directory = tempfile::Builder::new()
        .prefix("tidegate-demo-")
        .disable_cleanup(args.keep)
        .tempdir()
        .context("cannot make a temporary directory")?;
    let start = clock::now();
    let mut show = Show::new();
    introduce(&mut show, &args, &preset, &trace)?;
    let mut stage = Stage::set(directory.path(), server.as_ref(), &args, &preset).await?;
    let resolved = play(&mut stage, &mut show, &preset, &trace).await?;
    show.say("every process ends now; then the ledgers are counted")?;
    let (synchronous, tidegate) = stage.end().await?;
    let proof = Proof { resolved, ..prove(args.seed, args.gateway, &synchronous, &tidegate)? };
    let took = clock::now().saturating_duration_since(start);
    conclude(&args, &proof, &preset, took)?;
    if args.keep {
        show.say(&format!("kept: {}", directory.path().display()))?;
    }
    match &server {
        Some(server) if args.keep => show.say(&format!("kept: {server}"))?,
        Some(server) => schema::remove(server).await?,
        None => {}
    }
    Ok(if proof.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn preset(args: &DemoArgs, on_a_server: bool) -> Preset {
    let mut preset = if args.fast { Preset::fast(Scenario::All) } else { Preset::full(Scenario::All) };
    if let Some(lateness_ms) = args.lateness_ms {
        preset.set_lateness(lateness_ms);
    }
    if on_a_server {
        // Each step is a few round trips, and three workers share this machine with the server.
        preset.scale.finish_within_ms *= 4;
    }
    preset
}

fn introduce(show: &mut Show, args: &DemoArgs, preset: &Preset, trace: &Trace) -> anyhow::Result<()> {
    let means = match args.gateway {
        GatewayMode::Idempotent => "it recognises a repeated key, so a call whose reply is lost is sent again",
        GatewayMode::Lookup => "it carries out every call, but can be asked, so Tidegate asks before it sends again",
        GatewayMode::None => {
            "it neither recognises a key nor can be asked: a lost reply waits for a person, who resolves it"
        }
    };
    show.say(&format!(
        "{} deposits ({} requests, some clicked twice) go to two programs, seed {}:\n  \
         synchronous: the usual one, with a time-out, three blind retries and no keys\n  \
         tidegate:    the same steps on Tidegate\n\
         about 1 % of the cards are declined, and {} of {} accounts are closed: their customers are told \"failed\"\n\
         the lines below count requests, the proof counts deposits; \"twice\" is deposits charged more than once",
        trace.deposits(),
        trace.requests.len(),
        args.seed,
        preset.trace.closed_accounts,
        preset.trace.accounts,
    ))?;
    show.say(&format!("gateway {}: {means}", args.gateway))?;
    show.say(&format!("times: {}", preset.scale))?;
    for phase in &trace.phases {
        show.say(&format!("  {phase}"))?;
    }
    if preset.scale.greatest_lateness_ms > preset.scale.quarantine_ms {
        show.say("the gateway may be later than the quarantine: this is to show where the guarantee ends")?;
    }
    Ok(())
}

/// From the first request until the customers have read the last word. Returns how many parked steps the operator
/// resolved.
async fn play(stage: &mut Stage, show: &mut Show, preset: &Preset, trace: &Trace) -> anyhow::Result<u64> {
    let scale = preset.scale;
    let mut ticks = interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut phases = trace.phases.iter().peekable();
    let mut crash_at_ms = preset.crash_at_ms;
    let mut restart_at_ms = None;
    let mut resolved = 0;
    let mut next_round_ms = trace.length_ms();
    // Its clock is the load generator's, which says how far it is before the first request leaves.
    let mut zero: Option<Instant> = None;
    let limit = Duration::from_millis(trace.length_ms() + scale.finish_within_ms + 30_000);
    loop {
        let line = tokio::select! {
            line = stage.load_line() => Some(line?),
            _ = ticks.tick() => None,
        };
        let progress = match line {
            Some(None) => break,
            Some(Some(progress)) => {
                zero.get_or_insert_with(|| Instant::now() - Duration::from_millis(progress.at_ms));
                Some(progress)
            }
            None => None,
        };
        let Some(zero) = zero else { continue };
        anyhow::ensure!(zero.elapsed() < limit, "the load generator did not end within {limit:?}");
        let at_ms = u64::try_from(zero.elapsed().as_millis()).unwrap_or(u64::MAX);
        while let Some(phase) = phases.next_if(|phase| phase.from_ms <= at_ms) {
            show.phase(phase)?;
        }
        if let Some(progress) = progress {
            let doubled = stage.doubled()?;
            show.progress(&progress, doubled)?;
        }
        if crash_at_ms.is_some_and(|crash| crash <= at_ms) {
            crash_at_ms = None;
            restart_at_ms = Some(at_ms + scale.restart_after_ms);
            stage.crash().await?;
            show.say(&format!(
                "kill -9: {} and the synchronous program are gone in the middle of their work",
                stage.who_was_killed()
            ))?;
        }
        if restart_at_ms.is_some_and(|restart| restart <= at_ms) {
            restart_at_ms = None;
            stage.restart().await?;
            show.say(stage.who_is_back())?;
        }
        if next_round_ms <= at_ms {
            let round = stage.operate().await?;
            next_round_ms = at_ms + (scale.quarantine_ms / 5).max(200);
            resolved += round.resolved();
            if round.resolved() > 0 {
                show.say(&format!(
                    "an operator looks parked deposits up in the ledger: {} had happened, {} had not{}",
                    round.happened,
                    round.did_not_happen,
                    if round.must_wait > 0 { format!(", {} must wait", round.must_wait) } else { String::new() },
                ))?;
            }
        }
    }
    Ok(resolved)
}

/// The proof on standard output; what has to be said about it on standard error.
fn conclude(args: &DemoArgs, proof: &Proof, preset: &Preset, took: Duration) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(proof)?)?;
    } else {
        let verdict = if proof.pass { "PASS" } else { "FAIL" };
        write!(out, "\n{proof}")?;
        writeln!(
            out,
            "PROOF: {verdict}   seed {}   gateway {}   {:.1} s",
            proof.seed,
            proof.gateway,
            took.as_secs_f64()
        )?;
    }
    out.flush()?;
    let mut talk = std::io::stderr().lock();
    for broken in &proof.broken {
        writeln!(talk, "must hold and does not: {broken}")?;
    }
    let scale = preset.scale;
    if !proof.pass && scale.greatest_lateness_ms > scale.quarantine_ms && args.gateway != GatewayMode::Idempotent {
        writeln!(
            talk,
            "this is the documented limit: the gateway carried requests out up to {} ms late, and was believed when it \
             said \"not found\" after {} ms\nhint: a quarantine longer than the greatest lateness",
            scale.greatest_lateness_ms, scale.quarantine_ms
        )?;
    }
    if !proof.pass && !args.keep {
        writeln!(talk, "hint: the same seed with --keep leaves the ledgers and files to look at")?;
    }
    Ok(())
}

/// The word for a phase in a narrow column.
fn short(kind: PhaseKind) -> &'static str {
    match kind {
        PhaseKind::Calm => "calm",
        PhaseKind::Spike => "spike",
        PhaseKind::Outage => "outage",
        PhaseKind::Timeout => "time-outs",
        PhaseKind::Recovery => "recovery",
    }
}
