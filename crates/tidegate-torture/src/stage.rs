//! What all parts of a run share: the files, the gateway, who listens where, and what was counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deposits::clock;
use deposits::gateway::{FaultScript, FaultWindow, Faults, GatewayMode, LatencyMs};
use deposits::process::{Process, Program};
use deposits::trace::Scale;
use tidegate::Address;

use crate::capture::Through;
use crate::plan::Amount;
use crate::report::{CaptureFaults, Drains, FaultCounts, PointCount, ServerFaults};
use crate::run::Options;
use crate::server::{Database, Terminated};
use crate::victim::Victim;

/// An account that is closed: what was taken for it is given back.
pub(crate) const CLOSED: &str = "acct-0049";

/// How long the gateway misbehaves in a run that has no length of its own.
const MISBEHAVES_FOR: Duration = Duration::from_secs(2 * 3600);

/// A server that is away for the moment.
#[derive(Debug)]
pub(crate) struct Away {
    since: Instant,
    /// From when on each service took over before.
    before: Vec<Option<Instant>>,
}

/// What was done to processes of one sort.
#[derive(Debug, Default)]
pub(crate) struct Hits {
    pub(crate) kills: AtomicU64,
    pub(crate) kills_at_failpoints: AtomicU64,
    pub(crate) stops: AtomicU64,
    pub(crate) stops_at_failpoints: AtomicU64,
    pub(crate) stops_inside_transaction: AtomicU64,
    pub(crate) redeploys: AtomicU64,
    terminations: AtomicU64,
    terminations_in_commit: AtomicU64,
    drains: Mutex<Drains>,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    services: Hits,
    capture_workers: Hits,
    servers: Hits,
    pub(crate) restarts: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) unanswered: AtomicU64,
}

impl Counts {
    pub(crate) fn hits(&self, victim: Victim) -> &Hits {
        match victim {
            Victim::Service => &self.services,
            Victim::CaptureWorker => &self.capture_workers,
            Victim::Server => &self.servers,
        }
    }

    /// Over all sorts.
    pub(crate) fn all(&self, count: impl Fn(&Hits) -> &AtomicU64) -> u64 {
        [&self.services, &self.capture_workers, &self.servers].map(|hits| read(count(hits))).iter().sum()
    }
}

pub(crate) fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// One more.
pub(crate) fn up(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// The stage of one run.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) program: Program,
    pub(crate) scale: Scale,
    pub(crate) store: Address,
    /// The server that the store is on, if it is on one.
    pub(crate) database: Option<Database>,
    pub(crate) ledger: PathBuf,
    pub(crate) producers: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) gateway: GatewayMode,
    pub(crate) gateway_url: String,
    /// Another program makes the captures.
    pub(crate) through: Option<Through>,
    pub(crate) counts: Counts,
    points: Mutex<BTreeMap<&'static str, PointCount>>,
    urls: Mutex<Vec<Option<String>>>,
    /// From when on each service takes over what lapsed; none while it is down or stopped.
    sweeps_from: Mutex<Vec<Option<Instant>>>,
    /// Which services were stopped inside a transaction on a server, and since when they hold the rows they had locked.
    hold_rows: Mutex<BTreeMap<usize, Instant>>,
    /// What went wrong with a process: it ended by itself, or did not end.
    broken: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}

impl Stage {
    /// Makes the files, and starts the gateway.
    pub(crate) async fn set(options: &Options) -> anyhow::Result<(Self, Process)> {
        let directory = std::path::absolute(&options.directory).context("cannot tell where the directory is")?;
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut inside =
            std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        ensure!(
            inside.next().is_none(),
            "the directory {} is not empty; hint: a run makes files of its own and overwrites none",
            directory.display()
        );
        let lease_ms = u64::try_from(options.lease.as_millis()).unwrap_or(u64::MAX);
        let scale = Scale::of_lease(lease_ms);
        let script = directory.join("gateway-faults.json");
        let faults = serde_json::to_vec(&script_of(&scale, options.amount)).context("a script is plain data")?;
        std::fs::write(&script, faults).with_context(|| format!("cannot write {}", script.display()))?;
        let schema = format!("torture_{}", std::process::id());
        let database = Database::of(&options.store, &directory, &schema).await?;
        let store = database.as_ref().map_or_else(|| directory.join("deposits.db").into(), Database::address);
        let program = Program::new(&options.executable, &options.before, &directory);
        let ledger = directory.join("gateway.ledger");
        let seed = options.seed.to_string();
        let really = options.gateway_really.unwrap_or(options.gateway);
        let role = [
            "gateway",
            "--ledger",
            text(&ledger)?,
            "--mode",
            really.name(),
            "--seed",
            &seed,
            "--script",
            text(&script)?,
        ];
        let mut gateway = program.start("gateway", &role.map(str::to_owned))?;
        let gateway_url = gateway.listening().await?;
        let through = options.capture.clone().map(|with| Through::new(with, options.executable.clone()));
        let stage = Self {
            program,
            scale,
            store,
            database,
            ledger,
            producers: directory.join("producers.ndjson"),
            gateway: options.gateway,
            gateway_url,
            through: through.transpose()?,
            counts: Counts::default(),
            points: Mutex::default(),
            urls: Mutex::new(vec![None; options.services]),
            sweeps_from: Mutex::new(vec![None; options.services]),
            hold_rows: Mutex::default(),
            broken: Mutex::default(),
            directory,
        };
        Ok((stage, gateway))
    }

    /// Ends the gateway that misbehaves, and starts one on the same ledger and port that does not.
    pub(crate) async fn calm_gateway(&self, options: &Options, gateway: Process) -> anyhow::Result<Process> {
        gateway.stop(Duration::from_secs(30)).await?;
        let really = options.gateway_really.unwrap_or(options.gateway);
        let port = self.gateway_url.rsplit(':').next().unwrap_or_default();
        let role = ["gateway", "--ledger", text(&self.ledger)?, "--mode", really.name(), "--port", port];
        let mut gateway = self.program.start("gateway", &role.map(str::to_owned))?;
        gateway.listening().await?;
        Ok(gateway)
    }

    /// Where a service listens from now on; none while it is down.
    pub(crate) fn listens(&self, slot: usize, url: Option<String>) {
        self.sweeps(slot, url.is_some().then(clock::now));
        if let Some(at) = lock(&self.urls).get_mut(slot) {
            *at = url;
        }
    }

    /// A service was stopped, and takes nothing over.
    pub(crate) fn stopped(&self, slot: usize) {
        self.sweeps(slot, None);
    }

    /// From when on a service takes over what lapsed. Whoever else is at the store is not counted on.
    fn sweeps(&self, slot: usize, from: Option<Instant>) {
        if let Some(sweeps_from) = lock(&self.sweeps_from).get_mut(slot) {
            *sweeps_from = from;
        }
    }

    /// A service that was stopped inside its transaction holds rows from then on, until it is let go. That it does is found
    /// out a moment later.
    pub(crate) fn holds_rows(&self, slot: usize, since: Option<Instant>) {
        let mut hold_rows = lock(&self.hold_rows);
        match since {
            Some(since) => hold_rows.insert(slot, since),
            None => hold_rows.remove(&slot),
        };
    }

    /// Since when a stopped service holds rows, if one does.
    pub(crate) fn rows_held_since(&self) -> Option<Instant> {
        lock(&self.hold_rows).values().min().copied()
    }

    /// It was let go. It was asleep, so it leaves all leases alone for as long as one lasts.
    pub(crate) fn let_go(&self, slot: usize) {
        self.sweeps(slot, Some(clock::now() + Duration::from_millis(self.scale.lease_ms)));
    }

    /// From now on nobody can take anything over, until [`Stage::server_is_back`]. Gives back who could.
    pub(crate) fn server_goes(&self) -> Away {
        let now = clock::now();
        let never = now + Duration::from_secs(24 * 3600);
        let mut sweeps_from = lock(&self.sweeps_from);
        let before = sweeps_from.clone();
        for from in sweeps_from.iter_mut().flatten() {
            *from = never;
        }
        Away { since: now, before }
    }

    /// The server was away, and is back. Whoever had no store for a third of a lease leaves all leases alone for as long as
    /// one lasts, from its next look on.
    pub(crate) fn server_is_back(&self, away: &Away) {
        let (now, lease) = (clock::now(), Duration::from_millis(self.scale.lease_ms));
        let was_long = now.saturating_duration_since(away.since) > lease / 4;
        for (slot, from) in lock(&self.sweeps_from).iter_mut().enumerate() {
            let before = away.before.get(slot).copied().flatten().unwrap_or(now);
            *from = from.map(|_| if was_long { now + lease + lease / 5 } else { before });
        }
    }

    /// What was done to a process's connections.
    pub(crate) fn terminated(&self, victim: Victim, what: Terminated) {
        let hits = self.counts.hits(victim);
        match what {
            Terminated::InCommit => {
                up(&hits.terminations);
                up(&hits.terminations_in_commit);
            }
            Terminated::Somewhere => up(&hits.terminations),
            Terminated::Nothing => {}
        }
    }

    /// Whether there is a service that could take over what lapsed.
    pub(crate) fn somebody_sweeps(&self) -> bool {
        // What a stopped service has locked nobody takes over: the documented limit.
        if !lock(&self.hold_rows).is_empty() {
            return false;
        }
        let now = clock::now();
        lock(&self.sweeps_from).iter().flatten().any(|from| *from <= now)
    }

    /// A service that is up, if there is one; `number` picks among several.
    pub(crate) fn url(&self, number: usize) -> Option<String> {
        let urls = lock(&self.urls);
        let up: Vec<&String> = urls.iter().flatten().collect();
        (!up.is_empty()).then(|| up[number % up.len()].clone())
    }

    /// Something is wrong with a process.
    pub(crate) fn broken(&self, what: String) {
        tracing::warn!("{what}");
        lock(&self.broken).push(what);
    }

    pub(crate) fn all_broken(&self) -> Vec<String> {
        lock(&self.broken).clone()
    }

    pub(crate) fn armed(&self, point: &'static str) {
        lock(&self.points).entry(point).or_default().armed += 1;
    }

    /// How often a service was armed for a point.
    pub(crate) fn tries(&self, point: &'static str) -> u64 {
        lock(&self.points).get(point).map_or(0, |count| count.armed)
    }

    pub(crate) fn reached(&self, point: &'static str) {
        lock(&self.points).entry(point).or_default().reached += 1;
    }

    pub(crate) fn drained(&self, victim: Victim, said: Drains) {
        let mut drains = lock(&self.counts.hits(victim).drains);
        drains.finished += said.finished;
        drains.released += said.released;
        drains.abandoned += said.abandoned;
    }

    pub(crate) fn faults(&self, not_applicable: Vec<&'static str>) -> FaultCounts {
        let hits = &self.counts.services;
        FaultCounts {
            kills: read(&hits.kills),
            kills_at_failpoints: read(&hits.kills_at_failpoints),
            stops: read(&hits.stops),
            stops_at_failpoints: read(&hits.stops_at_failpoints),
            stops_inside_transaction: read(&hits.stops_inside_transaction),
            redeploys: read(&hits.redeploys),
            terminations: read(&hits.terminations),
            terminations_in_commit: read(&hits.terminations_in_commit),
            restarts: read(&self.counts.restarts),
            drains: *lock(&hits.drains),
            failpoints: lock(&self.points).clone(),
            not_applicable,
        }
    }

    /// What was done to the workers of the program that made the captures, and to their server. `held`: by these workers when
    /// they were killed.
    pub(crate) fn capture_faults(&self, held: u64) -> Option<CaptureFaults> {
        let through = self.through.as_ref()?;
        let (workers, servers) = (&self.counts.capture_workers, &self.counts.servers);
        Some(CaptureFaults {
            command: through.with.command.clone(),
            workers: through.with.workers,
            kills: read(&workers.kills),
            held,
            stops: read(&workers.stops),
            redeploys: read(&workers.redeploys),
            drains: *lock(&workers.drains),
            server: ServerFaults {
                kills: read(&servers.kills),
                stops: read(&servers.stops),
                stops_inside_transaction: read(&servers.stops_inside_transaction),
                redeploys: read(&servers.redeploys),
                terminations: read(&servers.terminations),
                terminations_in_commit: read(&servers.terminations_in_commit),
            },
        })
    }
}

/// The gateway's weather, over and over: calm, replies that are lost or late, a brown-out, closed.
fn script_of(scale: &Scale, amount: Amount) -> FaultScript {
    let lossy = Faults {
        lost_reply: 0.15,
        late: 0.06,
        drip: 0.02,
        internal_after: 0.04,
        reset_before: 0.02,
        too_many: 0.02,
        ..Faults::default()
    };
    let brown_out = Faults { unavailable: 0.6, hang: 0.1, reset_before: 0.1, ..Faults::default() };
    let closed = Faults { refused: true, ..Faults::default() };
    let weather = [(2_500, Faults::default()), (5_000, lossy), (1_500, brown_out), (500, closed)];
    let length = match amount {
        Amount::For(length) => length + Duration::from_secs(60),
        Amount::Count(_) => MISBEHAVES_FOR,
    };
    let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let mut windows = Vec::new();
    let mut from_ms = 0;
    for (lasts_ms, faults) in weather.into_iter().cycle() {
        if from_ms >= length_ms {
            break;
        }
        windows.push(FaultWindow { from_ms, to_ms: from_ms + lasts_ms, faults });
        from_ms += lasts_ms;
    }
    FaultScript {
        windows,
        latency_ms: LatencyMs { min: 2, max: 12 },
        greatest_lateness_ms: scale.greatest_lateness_ms,
        hang_limit_ms: scale.hang_limit_ms,
        drip_ms: 5,
        retry_after_s: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_weather_is_a_script_that_can_be_followed_and_is_never_later_than_the_quarantine_allows() {
        let scale = Scale::of_lease(2_000);
        let script = script_of(&scale, Amount::For(Duration::from_secs(30)));
        script.check().unwrap();
        let longest_stop_ms = scale.lease_ms * 175 / 100;
        assert!(script.greatest_lateness_ms + script.latency_ms.max + longest_stop_ms < scale.quarantine_ms);
        assert!(scale.call_timeout_ms > scale.lease_ms / 3, "an unanswered call has its lease extended");
    }
}
