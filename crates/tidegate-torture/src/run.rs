//! A run from its first process to its report.

use std::collections::HashMap;
use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deposits::clock;
use deposits::gateway::GatewayMode;
use deposits::operator;
use deposits::process::Process;
use deposits::soak::is_quiet;
use tidegate::store::{Act, Filter, Redrive};
use tidegate::{MessageId, State, Tidegate, failpoint};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::audit::{self, Sent};
use crate::capture::CaptureWith;
use crate::plan::{Amount, Asked, Failpoints, Plan, unreachable};
use crate::producer::produce;
use crate::recovery::measure;
use crate::report::{Check, Report};
use crate::server::{Database, Store};
use crate::service::{Running, Slot};
use crate::stage::{Stage, read};
use crate::victim::Victim;

/// How long nothing may move while what is left is worked off.
const STANDSTILL: Duration = Duration::from_secs(90);
/// A dead letter that dies again so often is left for a person to look at.
const REDRIVES: u32 = 5;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that plays the roles, and what stands before a role on its command line.
    pub executable: PathBuf,
    /// See `executable`.
    pub before: Vec<OsString>,
    /// An empty directory, or none yet; it is not deleted.
    pub directory: PathBuf,
    /// From which faults and deposits are made.
    pub seed: u64,
    /// How many faults.
    pub amount: Amount,
    /// Which failpoints.
    pub failpoints: Failpoints,
    /// Where the store is.
    pub store: Store,
    /// How many services share it.
    pub services: usize,
    /// Another program makes the captures, through `executable serve`.
    pub capture: Option<CaptureWith>,
    /// What the services are told that the gateway can do about a repeated call.
    pub gateway: GatewayMode,
    /// What it really does, if that is something else: to show that the audit finds it.
    pub gateway_really: Option<GatewayMode>,
    /// The lease of every worker.
    pub lease: Duration,
    /// How many deposits are sent in a second.
    pub per_second: u32,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen.
    Attack,
    /// They have stopped, and what is left is worked off.
    Drain,
    /// The witnesses are asked.
    Audit,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Faults so far.
    pub kills: u64,
    /// Likewise.
    pub stops: u64,
    /// Likewise.
    pub redeploys: u64,
    /// Planned faults that are left; 0 when the clock decides.
    pub left: u64,
    /// Deposits so far.
    pub sent: u64,
    /// Likewise.
    pub accepted: u64,
    /// Messages that wait or run.
    pub depth: u64,
}

/// Makes a run; none when `stop` ended it before its end. `report` hears four times a second how far it is.
///
/// When this returns, every process of the run has ended or was killed, stopped ones included.
///
/// # Errors
/// The directory is not empty, a process cannot be started or ended by itself, or a witness cannot be read. What was found
/// wrong is no error but in the report.
///
/// # Cancel safety
/// Use `stop`: dropped, the future leaves processes that are stopped at that moment.
/// The files stay in any case.
pub async fn run(
    options: &Options,
    report: &mut (dyn FnMut(&Progress) + Send),
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Option<Report>> {
    let mut services = JoinSet::new();
    let ran = tokio::select! {
        ran = to_the_end(options, report, &mut services) => Some(ran),
        () = stop => None,
    };
    // Waited for: a service is killed when the task that holds it is gone, and one that is stopped would not end otherwise.
    services.shutdown().await;
    ran.transpose()
}

async fn to_the_end(
    options: &Options,
    report: &mut (dyn FnMut(&Progress) + Send),
    attacking: &mut Attacking,
) -> anyhow::Result<Report> {
    ensure!(options.services > 0, "0 services cannot be hurt; hint: --services 1 or more");
    let start = clock::now();
    let (stage, gateway) = Stage::set(options).await?;
    let stage = Arc::new(stage);
    let tide = Tidegate::builder().housekeeping(false).open_at(&stage.store).await?;
    if let Some(through) = &stage.through {
        through.allow(&tide).await?;
    }

    let (measured, services) = attack(options, &stage, &tide, attacking, start, report).await?;

    let gateway = stage.calm_gateway(options, gateway).await?;
    let sent = Sent::read(&stage)?;
    let queue = audit::total_queue(&tide, &sent).await?;
    // What never had an answer is sent again until it has one: then it is stored once, whatever happened before.
    audit::ask_again(&stage, &sent).await?;
    let drained = drain(&stage, &tide, report).await?;

    report(&progress(&stage, &tide, Phase::Audit, 0).await);
    let first = audit::ask_again(&stage, &sent).await?;
    let second = audit::ask_again(&stage, &sent).await?;
    end(services, gateway).await?;
    let mut audited = audit::audit(&stage, &tide, &sent, queue, &first, &second).await?;
    tide.close().await;

    audited.deposits.redriven = drained.redriven;
    audited.deposits.resolved = drained.resolved;
    let says = "what a killed worker held was free for another within the lease and two seconds";
    audited.checks.push(Check::new("recovery", says, &measured.late));
    let says = "no service ended by itself, and each that was told to drain ended in good order";
    audited.checks.push(Check::new("processes", says, &stage.all_broken()));
    let says = "when the faults stop, everything comes to its end";
    audited.checks.push(Check::new("drained", says, &drained.stuck));
    let possible = stage.database.as_ref().map(Database::possible).unwrap_or_default();
    let beyond = |point: &&failpoint::Point| unreachable(point, options.gateway, possible);
    let not_applicable = failpoint::ALL.iter().filter(beyond).map(|point| point.name).collect();
    let pass = audited.checks.iter().all(|check| check.ok);
    if let Some(database) = stage.database.as_ref().filter(|_| pass) {
        database.remove().await?;
    }
    Ok(Report {
        pass,
        seed: options.seed,
        gateway: options.gateway,
        lease_ms: stage.scale.lease_ms,
        store: if stage.database.is_some() { "postgres" } else { "sqlite" },
        server_is_ours: possible.restarts,
        schema: stage.database.as_ref().map(|database| database.schema().to_owned()).unwrap_or_default(),
        services: options.services,
        took_ms: clock::ms_since(start),
        faults: stage.faults(not_applicable),
        capture: stage.capture_faults(measured.held_captures),
        deposits: audited.deposits,
        effects: audited.effects,
        recovery: measured.recovery(options.lease),
        checks: audited.checks,
        directory: stage.directory.clone(),
    })
}

type Services = Vec<(Slot, Running)>;
/// Where processes are hurt, each place in a task of its own.
type Attacking = JoinSet<anyhow::Result<(Slot, Running)>>;

/// Producers send and services are hurt until the plan is at its end.
async fn attack(
    options: &Options,
    stage: &Arc<Stage>,
    tide: &Tidegate,
    services: &mut Attacking,
    start: Instant,
    report: &mut (dyn FnMut(&Progress) + Send),
) -> anyhow::Result<(crate::recovery::Measured, Services)> {
    let Options { seed, lease, gateway, failpoints, amount, .. } = *options;
    let possible = stage.database.as_ref().map(Database::possible).unwrap_or_default();
    let asked = Asked { seed, lease, gateway, failpoints, amount, possible };
    let mut plans = Vec::new();
    let (deaths, died) = mpsc::unbounded_channel();
    let mut number = 0;
    for (victim, places) in victims(options) {
        let plan = Arc::new(Plan::new(victim, asked));
        for nth in 1..=places {
            let slot = Slot {
                victim,
                number,
                nth,
                stage: Arc::clone(stage),
                tide: tide.clone(),
                plan: Arc::clone(&plan),
                // A server holds nothing: it is the workers behind it that do.
                deaths: (victim != Victim::Server).then(|| deaths.clone()),
                concurrency: 4,
                max_depth: 400,
                started: 0,
            };
            services.spawn(slot.attack());
            number += 1;
        }
        plans.push(plan);
    }
    drop(deaths);
    let stop = watch::Sender::new(false);
    let mut producing = tokio::spawn(produce(Arc::clone(stage), seed, options.per_second, stop.subscribe()));
    let measuring = tokio::spawn(measure(Arc::clone(stage), tide.clone(), died, lease));
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let mut ended: Services = Vec::new();
    while ended.len() < number {
        tokio::select! {
            service = services.join_next() => {
                let service = service.context("there are as many services as places")?;
                ended.push(service.context("the task of a service died")??);
            }
            produced = &mut producing => {
                produced.context("the producers' task died")??;
                anyhow::bail!("the producers ended before they were told to");
            }
            _ = ticks.tick() => report(&progress(stage, tide, Phase::Attack, plans.iter().map(|plan| plan.left()).sum()).await),
        }
    }
    stop.send_replace(true);
    producing.await.context("the producers' task died")??;
    // Every service has ended its attack and let go of its end of the channel: no more deaths.
    let measured = measuring.await.context("the measurement died")??;
    tracing::debug!("attacked for {} ms", clock::ms_since(start));
    Ok((measured, ended))
}

/// What there is to hurt, and how many of each; services first, by whose places the stage knows them.
fn victims(options: &Options) -> Vec<(Victim, usize)> {
    let mut victims = vec![(Victim::Service, options.services)];
    if let Some(capture) = &options.capture {
        victims.extend([(Victim::Server, 1), (Victim::CaptureWorker, capture.workers)]);
    }
    victims
}

/// Works off what is left: an operator resolves what parked and redrives what died, until nothing moves any more.
async fn drain(stage: &Stage, tide: &Tidegate, report: &mut (dyn FnMut(&Progress) + Send)) -> anyhow::Result<Drained> {
    let mut drained = Drained::default();
    let mut redrives: HashMap<MessageId, u32> = HashMap::new();
    let mut last = (0, clock::now());
    loop {
        let round = operator::resolve_parked(tide, &stage.ledger).await?;
        drained.resolved += round.resolved();
        let redriven = redrive_dead(tide, &mut redrives).await?;
        drained.redriven += redriven;
        let stats = tide.store().stats().await?;
        if round == operator::Round::default() && redriven == 0 && is_quiet(&stats) {
            return Ok(drained);
        }
        // What moves: the entries of the history and what waits. A hash of both would say no more.
        let moves = stats.tallies.iter().map(|tally| tally.n).sum::<u64>() + drained.resolved + drained.redriven;
        if moves != last.0 {
            last = (moves, clock::now());
        } else if clock::now() - last.1 > STANDSTILL {
            for queue in stats.queues {
                let left = queue.ready + queue.scheduled + queue.leased + queue.parked;
                if left > 0 {
                    drained
                        .stuck
                        .push(format!("{left} messages of queue {} did not move for {STANDSTILL:?}", queue.queue));
                }
            }
            return Ok(drained);
        }
        report(&progress(stage, tide, Phase::Drain, 0).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[derive(Debug, Default)]
struct Drained {
    redriven: u64,
    resolved: u64,
    stuck: Vec<String>,
}

/// Sends every dead letter again that was not yet sent too often; says how many.
async fn redrive_dead(tide: &Tidegate, redrives: &mut HashMap<MessageId, u32>) -> anyhow::Result<u64> {
    let filter = Filter { states: vec![State::Dead], limit: 1_000, ..Filter::default() };
    let dead = tide.store().list(filter).await?;
    let ids: Vec<MessageId> = dead
        .into_iter()
        .map(|summary| summary.id)
        .filter(|id| redrives.get(id).is_none_or(|times| *times < REDRIVES))
        .collect();
    if ids.is_empty() {
        return Ok(0);
    }
    for id in &ids {
        *redrives.entry(*id).or_default() += 1;
    }
    let operation = format!("torture-{}", redrives.values().map(|times| u64::from(*times)).sum::<u64>());
    let act = Act { actor: "operator".to_owned(), reason: "the faults are over".to_owned() };
    let verdicts = tide.redrive(Redrive { ids, again: false, operation, act }).await?;
    Ok(verdicts.iter().filter(|verdict| verdict.is_ok()).count() as u64)
}

async fn end(mut services: Services, gateway: Process) -> anyhow::Result<()> {
    services.sort_by_key(|(slot, _)| slot.victim);
    for (slot, running) in services {
        // That it did not end well is noted, and found by the audit.
        let _well = slot.end(running).await?;
    }
    gateway.stop(Duration::from_secs(30)).await
}

async fn progress(stage: &Stage, tide: &Tidegate, phase: Phase, left: usize) -> Progress {
    // For people only: a look that fails shows nothing, and the audit looks again.
    let depth = tide.store().stats().await.map_or(0, |stats| {
        stats.queues.iter().map(|queue| queue.ready + queue.scheduled + queue.leased + queue.parked).sum()
    });
    let counts = &stage.counts;
    Progress {
        phase,
        kills: counts.all(|hits| &hits.kills),
        stops: counts.all(|hits| &hits.stops),
        redeploys: counts.all(|hits| &hits.redeploys),
        left: left as u64,
        sent: read(&counts.sent),
        accepted: read(&counts.accepted),
        depth,
    }
}
