//! How fast a store is, and what a message costs it: the figures of `tidegate bench`, each small enough to be a test.
//!
//! The engine is measured through the library, as an application uses it: concurrent batches of `enqueue_all`, a worker,
//! a handler that does nothing, a small result. Beside it, in the same run and by turns, `raw.rs` writes the least that the
//! same rows need, straight with SQLite, so that the ratio says what Tidegate costs and the disk cancels out. Before that,
//! both files get the same old messages, because an index of keys is cheap while it is small. On a PostgreSQL server the
//! same is done in schemas of the benchmark's own, see `server/`.

mod backlog;
mod cost;
mod keys;
mod library;
pub mod line;
pub mod peer;
mod pickup;
mod preload;
mod raw;
mod server;
pub mod slow;
mod verbs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tidegate::{Address, Server};

pub use backlog::{CLAIMED, ClaimCost, WORK_OFF, WorkedOff, claim_cost, work_off};
pub use keys::KeyOrder;

/// What is measured, and how much of it.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Which orders of keys, one after the other.
    pub orders: Vec<KeyOrder>,
    /// Messages a round.
    pub messages: u32,
    /// Messages with their keys that are in the files before anything is measured.
    pub preload: u32,
    /// Rounds of the engine and of the raw writes, by turns.
    pub rounds: u32,
    /// Rounds of the engine's verbs without the library's worker, at the end.
    pub verb_rounds: u32,
    /// Messages a second while the pick-up is measured.
    pub rate: u32,
    /// Messages of which the pick-up is measured.
    pub pickups: u32,
    /// Tasks that enqueue at once.
    pub producers: u32,
    /// Messages of one call of `enqueue_all`.
    pub batch: u32,
    /// Handlers that run at once.
    pub concurrency: u32,
    /// Backlogs in front of which the cost of a claim is measured.
    pub backlogs: Vec<u32>,
    /// Claims that are measured in front of each.
    pub claims: u32,
    /// Messages that a process of its own works off, for its memory.
    pub work_off: u32,
    /// The program that does it, as `program bench` with [`WORK_OFF`]; without one it is not measured.
    pub program: Option<PathBuf>,
    /// Where the files are made.
    pub dir: PathBuf,
    /// The server that is measured instead, in schemas of the benchmark's own.
    pub server: Option<Server>,
    /// Waits for the server to tell what its sessions did, where it takes its time to.
    pub patient: bool,
    /// From which the keys are made.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            orders: vec![KeyOrder::Random, KeyOrder::Time],
            messages: 50_000,
            preload: 1_000_000,
            rounds: 5,
            verb_rounds: 3,
            rate: 200,
            pickups: 1000,
            producers: 8,
            batch: 250,
            concurrency: 1000,
            backlogs: vec![0, 100_000, 1_000_000],
            claims: 200,
            work_off: 1_000_000,
            program: None,
            dir: PathBuf::from("."),
            server: None,
            patient: true,
            seed: 42,
        }
    }
}

impl Parameters {
    /// Small counts: says that it runs, not how fast.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            messages: 500,
            preload: 2000,
            rounds: 1,
            pickups: 40,
            batch: 50,
            concurrency: 100,
            backlogs: vec![0, 2000],
            claims: 5,
            work_off: 2000,
            patient: false,
            ..Self::default()
        }
    }

    /// The same on a server, where backlogs are of other sizes and a claim costs a round trip.
    #[must_use]
    pub fn on(self, server: Server) -> Self {
        let backlogs = self.backlogs.iter().map(|backlog| if *backlog == 100_000 { 10_000 } else { *backlog });
        Self { backlogs: backlogs.collect(), claims: self.claims.min(50), server: Some(server), ..self }
    }
}

/// Bytes of every payload.
pub const PAYLOAD_BYTES: usize = 200;

/// Figures of one order of keys: medians over the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Enqueue, claim, run, settle, durably and with results and deduplication, per second, through the library.
    pub lifecycles_per_s: f64,
    /// The same rows straight with SQLite, or through the server's driver on as many connections as the engine writes with,
    /// at the engine's mean group size, per second.
    pub raw_bound_per_s: f64,
    /// The one by the other.
    pub ratio: f64,
    /// The same rows straight with SQLite by statements of several rows, which needs less; none on a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_several_per_s: Option<f64>,
    /// The engine's by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_several: Option<f64>,
    /// Commits, each with its fsync, by messages.
    pub fsyncs_per_message: f64,
    /// Bytes of the write-ahead log, by messages.
    pub wal_bytes_per_message: f64,
    /// The median commit, fsync included; on a server the median of the raw transactions, round trip included.
    pub fsync_p50_ms: f64,
    /// From the acknowledged enqueue to the start of the handler, on an idle store.
    pub pickup_p50_ms: f64,
    /// The same for the slowest hundredth.
    pub pickup_p99_ms: f64,
    /// As `lifecycles_per_s`, through the store's verbs in batches, without the library's worker.
    pub store_lifecycles_per_s: f64,
    /// Enqueues, claims and settlements that shared a commit.
    pub mean_group_size: f64,
    /// The raw writes' own log, by messages.
    pub raw_wal_bytes_per_message: f64,
    /// The part of the engine's rounds in which its writer copied the log into the file and did nothing else; none on a
    /// server, which does that beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_share: Option<f64>,
    /// The longest such pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_max_ms: Option<f64>,
    /// Processor time of the whole process, producers, handlers and settlements included, by messages.
    pub cpu_us_per_message: f64,
    /// The part of it that the store's one writer thread took; none where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_cpu_us_per_message: Option<f64>,
    /// Processor time of the raw writes, by messages.
    pub raw_cpu_us_per_message: f64,
}

/// Figures by the order of keys.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ByKeyOrder {
    /// Keys that follow each other at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<Measured>,
    /// Keys that grow with time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Measured>,
}

/// Under what conditions it was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Conditions {
    /// The order of keys of the figures at the top.
    pub key_order: KeyOrder,
    /// Messages a round.
    pub messages: u32,
    /// Messages with keys that were there before.
    pub preloaded_keys: u32,
    /// Rounds of each.
    pub rounds: u32,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// Enqueues, claims and settlements that shared a commit, in the engine's rounds and in the raw ones.
    pub group_size: f64,
    /// Tasks that enqueued.
    pub producers: u32,
    /// Messages of one enqueue call.
    pub batch: u32,
    /// Handlers at once.
    pub concurrency: u32,
    /// Messages a second for the pick-up.
    pub pickup_rate_per_s: u32,
    /// Messages of which the pick-up was measured.
    pub pickups: u32,
    /// What an acknowledgement means.
    pub durability: String,
    /// What was called.
    pub path: &'static str,
    /// Optimised or not: a debug build says nothing about speed.
    pub build: &'static str,
    /// Of SQLite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlite_version: Option<&'static str>,
    /// Of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
}

/// What `tidegate bench` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The engine.
    pub store: &'static str,
    /// Figures of the first order of keys.
    #[serde(flatten)]
    pub first: Measured,
    /// How it was measured.
    pub parameters: Conditions,
    /// Figures of each order of keys.
    pub by_key_order: ByKeyOrder,
    /// What a claim costs in front of each backlog.
    pub claim_cost: Vec<ClaimCost>,
    /// What a process needs that opens the store with a backlog and works it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worked_off: Option<WorkedOff>,
}

/// Measures, and says meanwhile what is being done.
///
/// # Errors
/// When a file cannot be made or written, or the store answers what it must not.
///
/// # Cancel safety
/// Dropped, it leaves its directory to the drop of what it was doing: the files are removed.
pub async fn run(parameters: &Parameters, tell: &mut (dyn FnMut(&str) + Send)) -> anyhow::Result<Report> {
    anyhow::ensure!(!parameters.orders.is_empty(), "no order of keys to measure");
    let positive = [parameters.messages, parameters.rounds, parameters.rate, parameters.pickups];
    anyhow::ensure!(positive.iter().all(|&n| n > 0), "messages, rounds, rate and pickups must be 1 or more");
    if cfg!(debug_assertions) {
        tell("this is a debug build: its figures say nothing about speed");
    }
    let mut by_key_order = ByKeyOrder::default();
    let mut first = None;
    for order in &parameters.orders {
        let measured = measure(parameters, *order, tell).await?;
        first.get_or_insert((*order, measured.clone()));
        match order {
            KeyOrder::Random => by_key_order.random = Some(measured),
            KeyOrder::Time => by_key_order.time = Some(measured),
        }
    }
    let (key_order, first) = first.context("no order of keys was measured")?;
    let (server_version, durability) = match &parameters.server {
        Some(server) => {
            let (version, durability) = server::conditions(server).await?;
            (Some(version), durability)
        }
        None => (None, "WAL, synchronous=FULL: an fsync before every acknowledgement".to_owned()),
    };
    let conditions = Conditions {
        key_order,
        messages: parameters.messages,
        preloaded_keys: parameters.preload,
        rounds: parameters.rounds,
        payload_bytes: PAYLOAD_BYTES,
        group_size: first.mean_group_size,
        producers: parameters.producers,
        batch: parameters.batch,
        concurrency: parameters.concurrency,
        pickup_rate_per_s: parameters.rate,
        pickups: parameters.pickups,
        durability,
        path: "library: enqueue_all, a worker with an empty handler, results and deduplication on",
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        sqlite_version: server_version.is_none().then(rusqlite::version),
        server_version,
    };
    let (claim_cost, worked_off) = match &parameters.server {
        None => backlogs(parameters, tell).await?,
        Some(server) => backlogs_on(server, parameters, tell).await?,
    };
    let store = if parameters.server.is_some() { "postgres" } else { "sqlite" };
    Ok(Report { store, first, parameters: conditions, by_key_order, claim_cost, worked_off })
}

async fn backlogs(
    parameters: &Parameters,
    tell: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<(Vec<ClaimCost>, Option<WorkedOff>)> {
    let dir = directory(parameters)?;
    let mut costs = Vec::new();
    for backlog in &parameters.backlogs {
        tell(&format!("claims in front of a backlog of {backlog}"));
        let file = dir.path().join(format!("backlog-{backlog}.db"));
        costs.push(claim_cost(&file, *backlog, parameters.claims.max(1), parameters.seed).await?);
        std::fs::remove_file(&file).with_context(|| format!("{} cannot be removed", file.display()))?;
    }
    let Some(program) = parameters.program.clone() else { return Ok((costs, None)) };
    tell(&format!("a process of its own works off {}", parameters.work_off));
    let file = dir.path().join("work-off.db");
    backlog::prepare_work_off(&file, parameters.work_off, parameters.seed).await?;
    let worked_off = backlog::in_a_process(program, file.into()).await?;
    Ok((costs, Some(worked_off)))
}

async fn backlogs_on(
    server: &Server,
    parameters: &Parameters,
    tell: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<(Vec<ClaimCost>, Option<WorkedOff>)> {
    let mut costs = Vec::new();
    // The last one again while another session holds a snapshot: what is gone cannot be cleared away then.
    let held = parameters.backlogs.iter().min_by_key(|backlog| backlog.abs_diff(10_000));
    let all = parameters.backlogs.iter().map(|backlog| (backlog, false)).chain(held.map(|backlog| (backlog, true)));
    // All stores keep as many messages: what differs is how many of them wait, and not how high the trees are.
    let kept = parameters.backlogs.iter().copied().max().unwrap_or_default();
    for (messages, held_snapshot) in all {
        let under = if held_snapshot { ", under a held snapshot" } else { "" };
        tell(&format!("claims in front of a backlog of {messages}{under}"));
        let backlog = server::Backlog {
            messages: *messages,
            finished: kept - *messages,
            held_snapshot,
            claims: parameters.claims.max(1),
            seed: parameters.seed,
            patient: parameters.patient,
        };
        costs.push(server::claim_cost(server, backlog).await?);
    }
    let Some(program) = parameters.program.clone() else { return Ok((costs, None)) };
    tell(&format!("a process of its own works off {}", parameters.work_off));
    let schema = server::prepare_work_off(server, parameters.work_off, parameters.seed).await?;
    let worked_off = backlog::in_a_process(program, schema.address()).await?;
    schema.remove().await?;
    Ok((costs, Some(worked_off)))
}

fn directory(parameters: &Parameters) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("tidegate-bench-").tempdir_in(&parameters.dir);
    dir.with_context(|| format!("no directory for the files can be made in {}", parameters.dir.display()))
}

/// One round of the engine.
struct Round {
    per_s: f64,
    group_size: f64,
    fsyncs_per_message: f64,
    wal_bytes_per_message: f64,
    checkpoint_share: Option<f64>,
    cpu_us: f64,
    writer_cpu_us: Option<f64>,
}

/// What a store has used since it was opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    commits: u64,
    log_bytes: u64,
    /// How long its writer copied its log in all, and at most.
    checkpoints: Option<(Duration, Duration)>,
    commit_p50: Option<Duration>,
}

/// What had been used when a round began, or when it was over.
struct Look {
    at: Duration,
    used: Used,
    cpu: Duration,
    writer_cpu: Option<Duration>,
}

impl Look {
    fn at(at: Duration, used: Used) -> anyhow::Result<Self> {
        Ok(Self { at, used, cpu: cost::processor_time()?, writer_cpu: cost::thread_time("tidegate-writer") })
    }
}

impl Round {
    /// From what was used between two looks.
    fn of(messages: u32, before: &Look, after: &Look) -> Self {
        let commits = after.used.commits - before.used.commits;
        let took = after.at.saturating_sub(before.at);
        let each = |of: Duration| of.as_secs_f64() * 1e6 / f64::from(messages);
        Self {
            per_s: f64::from(messages) / took.as_secs_f64(),
            group_size: ratio(3 * u64::from(messages), commits),
            fsyncs_per_message: ratio(commits, u64::from(messages)),
            wal_bytes_per_message: ratio(after.used.log_bytes - before.used.log_bytes, u64::from(messages)),
            checkpoint_share: (after.used.checkpoints.zip(before.used.checkpoints))
                .map(|((after, _), (before, _))| after.saturating_sub(before).as_secs_f64() / took.as_secs_f64()),
            cpu_us: each(after.cpu.saturating_sub(before.cpu)),
            writer_cpu_us: (after.writer_cpu.zip(before.writer_cpu))
                .map(|(after, before)| each(after.saturating_sub(before))),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark, far below 2^52")]
fn ratio(of: u64, by: u64) -> f64 {
    of as f64 / by.max(1) as f64
}

/// Where the engine and the raw writes are measured side by side.
enum Ground {
    Files(tempfile::TempDir),
    Server { engine: (server::Schema, server::Ids), raw: (server::Schema, server::Ids) },
}

/// The raw writes on either.
enum Raw {
    File(Box<raw::Raw>),
    Server(server::Raw),
}

impl Ground {
    /// Both begin with the same messages in them.
    async fn prepare(parameters: &Parameters, keys: &mut keys::Keys) -> anyhow::Result<Self> {
        let Some(server) = &parameters.server else {
            let dir = directory(parameters)?;
            preload(parameters.preload, keys, &dir.path().join(ENGINE_FILE), &dir.path().join(RAW_FILE)).await?;
            return Ok(Self::Files(dir));
        };
        let keys = keys.take(parameters.preload);
        let (engine, raw) = (server::Schema::make(server, "engine").await?, server::Schema::make(server, "raw").await?);
        for (schema, ids) in [&engine, &raw] {
            schema.fill(*ids, &keys).await?;
        }
        Ok(Self::Server { engine, raw })
    }

    fn engine(&self) -> Address {
        match self {
            Self::Files(dir) => dir.path().join(ENGINE_FILE).into(),
            Self::Server { engine: (schema, _), .. } => schema.address(),
        }
    }

    async fn raw(&self) -> anyhow::Result<Raw> {
        match self {
            Self::Files(dir) => Ok(Raw::File(Box::new(raw::Raw::open(&dir.path().join(RAW_FILE))?))),
            Self::Server { raw: (schema, ids), .. } => Ok(Raw::Server(server::Raw::open(schema, *ids).await?)),
        }
    }

    async fn remove(self) -> anyhow::Result<()> {
        match self {
            Self::Files(_) => Ok(()),
            Self::Server { engine: (engine, _), raw: (raw, _) } => {
                engine.remove().await?;
                raw.remove().await
            }
        }
    }
}

const ENGINE_FILE: &str = "engine.db";
const RAW_FILE: &str = "raw.db";

impl Raw {
    async fn round(
        self,
        keys: Vec<keys::Key>,
        group_size: f64,
        how: raw::Statements,
    ) -> anyhow::Result<(Self, raw::RawRound)> {
        match self {
            Self::File(mut raw) => {
                let worked = tokio::task::spawn_blocking(move || {
                    let done = raw.round(&keys, group_size, how);
                    (raw, done)
                });
                let (raw, done) = worked.await?;
                Ok((Self::File(raw), done?))
            }
            Self::Server(mut raw) => {
                let done = raw.round(&keys, group_size).await?;
                Ok((Self::Server(raw), done))
            }
        }
    }

    fn commit_p50(&self) -> Option<Duration> {
        match self {
            Self::File(_) => None,
            Self::Server(raw) => Some(raw.commit_p50()),
        }
    }
}

async fn measure(
    parameters: &Parameters,
    order: KeyOrder,
    tell: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<Measured> {
    let mut keys = keys::Keys::new(order, parameters.seed);
    let places = if parameters.server.is_some() { "schemas" } else { "files" };
    tell(&format!("{} keys: {} messages into both {places}", order.as_str(), parameters.preload));
    let ground = Ground::prepare(parameters, &mut keys).await?;

    let engine = library::Engine::start(&ground.engine(), parameters).await?;
    let mut raw = ground.raw().await?;
    let (mut rounds, mut raw_rounds, mut verbs) = (Vec::new(), Vec::new(), Vec::new());
    let mut several_rounds = Vec::new();
    for round in 1..=parameters.rounds {
        let batch = keys.take(parameters.messages);
        let measured = engine.round(&batch, parameters).await?;
        let (back, raw_round) = raw.round(batch, measured.group_size, raw::Statements::OfOneRow).await?;
        raw = back;
        if let Raw::File(_) = raw {
            let fresh = keys.take(parameters.messages);
            let (back, several) = raw.round(fresh, measured.group_size, raw::Statements::OfSeveralRows).await?;
            raw = back;
            tell(&format!("by statements of several rows: raw {:.0}/s, {:.1} µs", several.per_s, several.cpu_us));
            several_rounds.push(several.per_s);
        }
        tell(&format!(
            "{} keys, round {round} of {}: {:.0}/s, raw {:.0}/s, {:.0} to a commit, {:.1} µs of processor, raw {:.1} µs",
            order.as_str(),
            parameters.rounds,
            measured.per_s,
            raw_round.per_s,
            measured.group_size,
            measured.cpu_us,
            raw_round.cpu_us
        ));
        rounds.push(measured);
        raw_rounds.push(raw_round);
    }
    let used = engine.meter.used().await?;
    let fsync = used.commit_p50.or(raw.commit_p50()).unwrap_or_default();
    let pickups = pickup::measure(&engine, parameters, &mut keys).await?;
    tell(&format!("{} keys: {} pick-ups measured", order.as_str(), pickups.len()));
    let store = engine.stop().await?;
    for _ in 0..parameters.rounds.min(parameters.verb_rounds) {
        verbs.push(verbs::round(&store.store(), &keys.take(parameters.messages), parameters).await?);
    }
    store.close().await;
    ground.remove().await?;

    let of_rounds = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let maybe = |figure: fn(&Round) -> Option<f64>| rounds.iter().map(figure).collect::<Option<Vec<f64>>>().map(median);
    let lifecycles_per_s = of_rounds(|round| round.per_s);
    let raw_bound_per_s = median(raw_rounds.iter().map(|round| round.per_s).collect());
    let pickups: Vec<f64> = pickups.into_iter().map(millis).collect();
    let raw_several_per_s = (!several_rounds.is_empty()).then(|| median(several_rounds));
    Ok(Measured {
        lifecycles_per_s,
        raw_bound_per_s,
        ratio: lifecycles_per_s / raw_bound_per_s,
        raw_several_per_s,
        ratio_several: raw_several_per_s.map(|raw| lifecycles_per_s / raw),
        fsyncs_per_message: of_rounds(|round| round.fsyncs_per_message),
        wal_bytes_per_message: of_rounds(|round| round.wal_bytes_per_message),
        fsync_p50_ms: millis(fsync),
        pickup_p50_ms: median(pickups.clone()),
        pickup_p99_ms: quantile(pickups, 99),
        store_lifecycles_per_s: median(verbs),
        mean_group_size: of_rounds(|round| round.group_size),
        raw_wal_bytes_per_message: median(raw_rounds.iter().map(|round| round.wal_bytes_per_message).collect()),
        checkpoint_share: maybe(|round| round.checkpoint_share),
        checkpoint_max_ms: used.checkpoints.map(|(_, longest)| millis(longest)),
        cpu_us_per_message: of_rounds(|round| round.cpu_us),
        writer_cpu_us_per_message: maybe(|round| round.writer_cpu_us),
        raw_cpu_us_per_message: median(raw_rounds.iter().map(|round| round.cpu_us).collect()),
    })
}

/// Makes the engine's file with the engine, fills it, and copies it: both begin byte for byte alike.
async fn preload(count: u32, keys: &mut keys::Keys, engine_file: &Path, raw_file: &Path) -> anyhow::Result<()> {
    let keys = keys.take(count);
    let (engine_file, raw_file) = (engine_file.to_path_buf(), raw_file.to_path_buf());
    tokio::task::spawn_blocking(move || {
        preload::fill(&engine_file, &keys)?;
        std::fs::copy(&engine_file, &raw_file).context("the filled file cannot be copied")?;
        Ok(())
    })
    .await?
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn median(values: Vec<f64>) -> f64 {
    quantile(values, 50)
}

/// The value that so many hundredths do not exceed; 0 of nothing.
fn quantile(mut values: Vec<f64>, hundredths: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * hundredths).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        assert_eq!(quantile(Vec::new(), 50), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(hundred.clone(), 99), quantile(hundred, 100)), (99.0, 100.0));
    }
}
