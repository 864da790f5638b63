//! What a backlog costs: a claim at the head of ever longer queues, and the memory of a process that works one off.
//!
//! Time on a shared machine drifts by more than the tenth that is promised here, so that a claim is also counted: the steps
//! of SQLite's virtual machine and the pages it changed are the same wherever and whenever it runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tidegate::clock::{Clock, SystemClock};
use tidegate::message::{NewMessage, Payload};
use tidegate::sqlite::{GroupStats, Options, SqliteStore};
use tidegate::{Address, Context, Handled, Kind, QueueName, Store, Tidegate};

use crate::keys::{Key, KeyOrder, Keys};
use crate::library::{KIND, Work};
use crate::{cost, median, millis, preload, ratio, verbs};

/// Messages of one measured claim.
pub const CLAIMED: u32 = 100;

/// What a claim costs in front of a backlog.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClaimCost {
    /// Messages that stay behind: after each claim in a file, after the last one on a server.
    pub backlog: u32,
    /// Messages of one claim.
    pub claimed: u32,
    /// Another session held an old snapshot, under which messages had come and gone; on a server only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub held_snapshot: bool,
    /// Steps of SQLite's virtual machine, by claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_per_claim: Option<f64>,
    /// Pages written to the log of a file, by claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages_per_claim: Option<f64>,
    /// How often a page of the tables and indexes was looked at on a server, by claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffers_per_claim: Option<f64>,
    /// Processor time of the writer thread, by claim; none where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer_cpu_us_per_claim: Option<f64>,
    /// The median claim, its fsync included.
    pub claim_p50_ms: f64,
}

/// What a process of its own needed for working a backlog off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkedOff {
    /// Messages that were queued when it opened the store.
    pub queued: u32,
    /// The most memory it ever had resident.
    pub peak_rss_mib: f64,
    /// Messages a second.
    pub per_s: f64,
}

/// Measures claims in front of a backlog, in a file of its own that it makes.
///
/// # Errors
/// When the file cannot be made or written, or the store answers what it must not.
///
/// # Cancel safety
/// Dropped, the file stays behind.
pub async fn claim_cost(file: &Path, backlog: u32, claims: u32, seed: u64) -> anyhow::Result<ClaimCost> {
    let mut keys = Keys::new(KeyOrder::Time, seed);
    fill(file, &mut keys, backlog).await?;
    let store = SqliteStore::open(file, Options { create: false, ..Options::default() })?;
    let clock = SystemClock::new();
    let (mut times, mut cpu, mut used) = (Vec::new(), Some(Vec::new()), GroupStats::default());
    // The first claims find the pages of a file that was just opened on disk, not in memory.
    for number in 0..claims + WARM_UP {
        let sent: Vec<NewMessage> = keys.take(CLAIMED).iter().map(message).collect::<anyhow::Result<_>>()?;
        for verdict in store.enqueue(sent).await? {
            verdict?;
        }
        let (before, cpu_before, started) = (store.group_stats(), writer_time(), clock.monotonic());
        let claimed = store.claim(verbs::claim_request(0, CLAIMED)?).await?;
        let (took, cpu_after, after) = (clock.monotonic().saturating_sub(started), writer_time(), store.group_stats());
        anyhow::ensure!(claimed.leases.len() == CLAIMED as usize, "{} were claimed", claimed.leases.len());
        if number >= WARM_UP {
            times.push(millis(took));
            used.steps += after.steps - before.steps;
            used.wal_bytes += after.wal_bytes - before.wal_bytes;
            let took = cpu_after.zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
            cpu = cpu.zip(took).map(|(mut all, took)| {
                all.push(took.as_secs_f64() * 1e6);
                all
            });
        }
        for verdict in store.settle(claimed.leases.iter().map(verbs::settle).collect()).await? {
            verdict?;
        }
    }
    store.close().await;
    Ok(ClaimCost {
        backlog,
        claimed: CLAIMED,
        steps_per_claim: Some(ratio(used.steps, u64::from(claims))),
        pages_per_claim: Some(ratio(used.wal_bytes, u64::from(claims)) / FRAME),
        writer_cpu_us_per_claim: cpu.map(median),
        claim_p50_ms: median(times),
        ..ClaimCost::default()
    })
}

const WARM_UP: u32 = 3;
/// Bytes of a page in the log, with its header.
const FRAME: f64 = 4120.0;

fn writer_time() -> Option<Duration> {
    cost::thread_time("tidegate-writer")
}

pub(crate) fn message(key: &Key) -> anyhow::Result<NewMessage> {
    Ok(NewMessage::new(QueueName::new(KIND)?, Kind::new(KIND)?, key.checked(), Payload::of(&Work::of(key))?))
}

/// Makes a store with so many messages that are ready.
async fn fill(file: &Path, keys: &mut Keys, count: u32) -> anyhow::Result<()> {
    let (file, keys) = (file.to_path_buf(), keys.take(count));
    tokio::task::spawn_blocking(move || preload::fill_with(&file, |conn, now| queue(conn, now, &keys))).await?
}

fn queue(conn: &Connection, now: i64, keys: &[Key]) -> anyhow::Result<()> {
    const BODY: &str = "insert into tide_message values (?1, 1, ?2, ?3, ?4, null, null, ?5, null, null, null,
        tide_seal(0, ?1, 1, ?2, ?3, ?4, null, null, ?5, null, null, null))";
    const READY: &str = "insert into tide_ready values (1, ?1, ?2, 0, 0, 0, 0, 0, 0, null, null, null,
        tide_seal(0, 1, ?1, ?2, 0, 0, 0, 0, 0, 0, null, null, null))";
    let (mut key_row, mut body, mut ready) =
        (conn.prepare(preload::KEY_ROW)?, conn.prepare(BODY)?, conn.prepare(READY)?);
    for (id, key) in (preload::FIRST_ID..).zip(keys) {
        key_row.execute(params![key.hash, id, key.hash])?;
        body.execute(params![id, key.text, serde_json::to_string(&Work::of(key))?, now, MAX_AGE_MS])?;
        ready.execute(params![now, id])?;
    }
    // Counts are no part of the seal.
    conn.execute("update tide_queue set ready = ?1 where id = 1", [i64::try_from(keys.len())?])?;
    Ok(())
}

const MAX_AGE_MS: i64 = 3 * 24 * 3600 * 1000;

/// Makes a store for a process of its own that works off what is queued in it.
pub(crate) async fn prepare_work_off(file: &Path, queued: u32, seed: u64) -> anyhow::Result<()> {
    fill(file, &mut Keys::new(KeyOrder::Time, seed), queued).await
}

/// Has a process of its own work off what is queued: `program bench`, with the store in its environment, which is
/// [`work_off`].
pub(crate) async fn in_a_process(program: PathBuf, store: Address) -> anyhow::Result<WorkedOff> {
    tokio::task::spawn_blocking(move || {
        let ran = Command::new(&program).args(["bench", "--json"]).env(WORK_OFF, store.reveal()?).output();
        let ran = ran.with_context(|| format!("{} cannot be run", program.display()))?;
        let said = String::from_utf8_lossy(&ran.stderr);
        anyhow::ensure!(ran.status.success(), "the process that works off ended with {}: {said}", ran.status);
        Ok(serde_json::from_slice(&ran.stdout)?)
    })
    .await?
}

/// The variable in which a process is told which store to work off: the address of a server may hold a password, and
/// everybody on a machine can read a command line.
pub const WORK_OFF: &str = "TIDEGATE_BENCH_WORK_OFF";

/// Opens the store, works off what is queued, and says what that took in this process.
///
/// # Errors
/// When the store cannot be opened, or nothing ends for ten minutes.
///
/// # Cancel safety
/// Dropped, the worker drains in the background.
pub async fn work_off(store: &Address) -> anyhow::Result<WorkedOff> {
    let clock = SystemClock::new();
    let tide = Tidegate::builder().create(false).open_at(store).await?;
    let queued: u64 = tide.store().stats().await?.queues.iter().map(|queue| queue.ready).sum();
    let ended = Arc::new(crate::library::Ended::default());
    let listener: std::sync::Weak<crate::library::Ended> = Arc::downgrade(&ended);
    tide.store().on_commit(listener);
    let empty = |_: Context, _: Work| async { Handled::Ok(0) };
    let started = clock.monotonic();
    let worker = tide.worker().handle(empty).concurrency(1000).start().await?;
    tokio::time::timeout(Duration::from_secs(1200), ended.reach(queued)).await.context("it did not end")?;
    let took = clock.monotonic().saturating_sub(started);
    worker.stop().await?;
    Ok(WorkedOff {
        queued: u32::try_from(queued)?,
        peak_rss_mib: cost::peak_rss_mib()?,
        per_s: ratio(queued, 1) / took.as_secs_f64(),
    })
}
