//! How fast a store is, and what a message costs it: the figures of `tidegate bench`, each small enough to be a test.
//!
//! The engine is measured through the library, as an application uses it: concurrent batches of `enqueue_all`, a worker,
//! a handler that does nothing, a small result. Beside it, in the same run and by turns, `raw.rs` writes the least that the
//! same rows need, straight with SQLite, so that the ratio says what Tidegate costs and the disk cancels out. Before that,
//! both files get the same old messages, because an index of keys is cheap while it is small.

mod keys;
mod library;
pub mod line;
pub mod peer;
mod pickup;
mod preload;
mod raw;
mod verbs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tidegate::sqlite::GroupStats;

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
    /// Where the files are made.
    pub dir: PathBuf,
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
            rate: 200,
            pickups: 1000,
            producers: 8,
            batch: 250,
            concurrency: 1000,
            dir: PathBuf::from("."),
            seed: 42,
        }
    }
}

impl Parameters {
    /// Small counts: says that it runs, not how fast.
    #[must_use]
    pub fn quick() -> Self {
        Self { messages: 500, preload: 2000, rounds: 1, pickups: 40, batch: 50, concurrency: 100, ..Self::default() }
    }
}

/// Bytes of every payload.
pub const PAYLOAD_BYTES: usize = 200;

/// Figures of one order of keys: medians over the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Enqueue, claim, run, settle, durably and with results and deduplication, per second, through the library.
    pub lifecycles_per_s: f64,
    /// The same rows straight with SQLite, at the engine's mean group size, per second.
    pub raw_bound_per_s: f64,
    /// The one by the other.
    pub ratio: f64,
    /// Commits, each with its fsync, by messages.
    pub fsyncs_per_message: f64,
    /// Bytes of the write-ahead log, by messages.
    pub wal_bytes_per_message: f64,
    /// The median commit, fsync included.
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
    pub durability: &'static str,
    /// What was called.
    pub path: &'static str,
    /// Optimised or not: a debug build says nothing about speed.
    pub build: &'static str,
    /// Of SQLite.
    pub sqlite_version: &'static str,
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
        durability: "WAL, synchronous=FULL: an fsync before every acknowledgement",
        path: "library: enqueue_all, a worker with an empty handler, results and deduplication on",
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        sqlite_version: rusqlite::version(),
    };
    Ok(Report { store: "sqlite", first, parameters: conditions, by_key_order })
}

/// One round of the engine.
struct Round {
    per_s: f64,
    group_size: f64,
    fsyncs_per_message: f64,
    wal_bytes_per_message: f64,
}

impl Round {
    /// From what the writer did between two looks.
    fn of(messages: u32, took: Duration, before: &GroupStats, after: &GroupStats) -> Self {
        let commits = after.commits - before.commits;
        Self {
            per_s: f64::from(messages) / took.as_secs_f64(),
            group_size: ratio(3 * u64::from(messages), commits),
            fsyncs_per_message: ratio(commits, u64::from(messages)),
            wal_bytes_per_message: ratio(after.wal_bytes - before.wal_bytes, u64::from(messages)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark, far below 2^52")]
fn ratio(of: u64, by: u64) -> f64 {
    of as f64 / by.max(1) as f64
}

async fn measure(
    parameters: &Parameters,
    order: KeyOrder,
    tell: &mut (dyn FnMut(&str) + Send),
) -> anyhow::Result<Measured> {
    let dir = tempfile::Builder::new()
        .prefix("tidegate-bench-")
        .tempdir_in(&parameters.dir)
        .with_context(|| format!("no directory for the files can be made in {}", parameters.dir.display()))?;
    let (engine_file, raw_file) = (dir.path().join("engine.db"), dir.path().join("raw.db"));
    let mut keys = keys::Keys::new(order, parameters.seed);
    tell(&format!("{} keys: {} messages into both files", order.as_str(), parameters.preload));
    preload(parameters.preload, &mut keys, &engine_file, &raw_file).await?;

    let engine = library::Engine::start(&engine_file, parameters).await?;
    let mut raw = raw::Raw::open(&raw_file)?;
    let (mut rounds, mut raw_rounds, mut verbs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=parameters.rounds {
        let batch = keys.take(parameters.messages);
        let measured = engine.round(&batch, parameters).await?;
        let group_size = measured.group_size;
        let (back, raw_round) = tokio::task::spawn_blocking(move || {
            let done = raw.round(&batch, group_size);
            (raw, done)
        })
        .await?;
        raw = back;
        let raw_round = raw_round?;
        tell(&format!(
            "{} keys, round {round} of {}: {:.0}/s, raw {:.0}/s, {:.0} to a commit",
            order.as_str(),
            parameters.rounds,
            measured.per_s,
            raw_round.per_s,
            measured.group_size
        ));
        rounds.push(measured);
        raw_rounds.push(raw_round);
    }
    let fsync = engine.sqlite()?.group_stats().commit_p50().unwrap_or_default();
    let pickups = pickup::measure(&engine, parameters, &mut keys).await?;
    tell(&format!("{} keys: {} pick-ups measured", order.as_str(), pickups.len()));
    let store = engine.stop().await?;
    for _ in 0..parameters.rounds.min(3) {
        verbs.push(verbs::round(&store, &keys.take(parameters.messages), parameters).await?);
    }
    store.close().await;

    let of_rounds = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let lifecycles_per_s = of_rounds(|round| round.per_s);
    let raw_bound_per_s = median(raw_rounds.iter().map(|round| round.per_s).collect());
    let pickups: Vec<f64> = pickups.into_iter().map(millis).collect();
    Ok(Measured {
        lifecycles_per_s,
        raw_bound_per_s,
        ratio: lifecycles_per_s / raw_bound_per_s,
        fsyncs_per_message: of_rounds(|round| round.fsyncs_per_message),
        wal_bytes_per_message: of_rounds(|round| round.wal_bytes_per_message),
        fsync_p50_ms: millis(fsync),
        pickup_p50_ms: median(pickups.clone()),
        pickup_p99_ms: quantile(pickups, 99),
        store_lifecycles_per_s: median(verbs),
        mean_group_size: of_rounds(|round| round.group_size),
        raw_wal_bytes_per_message: median(raw_rounds.iter().map(|round| round.wal_bytes_per_message).collect()),
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
