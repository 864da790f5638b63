//! What a claim costs in front of a backlog on a server, in buffers: how often a page of the store's tables and indexes was
//! looked at. Unlike time they do not drift.
//!
//! The server counts them by table, and tells them when a session ends or has been idle for some seconds. So each measurement
//! has a store of its own with nothing but claims in it: the numbers before are those of ended sessions, and so are those
//! after.

use std::sync::Arc;
use std::time::Duration;

use tidegate::clock::{Clock, SystemClock};
use tidegate::engine::Opening;
use tidegate::postgres::tokio_postgres::Client;
use tidegate::store::Lease;
use tidegate::{Engine, Server, Store};

use super::Schema;
use crate::backlog::{CLAIMED, ClaimCost, message};
use crate::keys::{KeyOrder, Keys};
use crate::{median, millis, ratio, verbs};

/// Claims before those that are measured: a new session knows no plan, and no place in the lane.
const WARM_UP: u32 = 3;
/// After so long a session that does nothing tells what it has done: ten seconds since PostgreSQL 15.
const TOLD_AFTER: Duration = Duration::from_secs(11);
/// Messages that come and go while a snapshot is held, for each that is claimed in a measurement.
const CHURN: u32 = 4;

/// A backlog in front of which claims are measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) messages: u32,
    /// Messages that have completed, whose bodies and answers are kept as those of a store in use are.
    pub(crate) finished: u32,
    /// Another session holds an old snapshot all the while, and messages came and went under it.
    pub(crate) held_snapshot: bool,
    pub(crate) claims: u32,
    pub(crate) seed: u64,
    /// Waits until the sessions have told; without it, the warm-up is counted along.
    pub(crate) patient: bool,
}

/// Measures claims in front of a backlog, in a schema of its own.
pub(crate) async fn claim_cost(server: &Server, backlog: Backlog) -> anyhow::Result<ClaimCost> {
    let (schema, ids) = Schema::make(server, "claims").await?;
    let mut keys = Keys::new(KeyOrder::Time, backlog.seed);
    let in_front = (backlog.claims + WARM_UP) * CLAIMED;
    schema.fill(ids, &keys.take(backlog.finished)).await?;
    schema.queue(ids, backlog.finished, &keys.take(backlog.messages + in_front)).await?;
    let watch = schema.connect().await?;
    let holder = schema.connect().await?;
    if backlog.held_snapshot {
        holder.batch_execute("begin isolation level repeatable read; select count(*) from pg_class").await?;
        let store = open(&schema).await?;
        for _ in 0..(backlog.claims * CHURN).max(1) {
            let sent = keys.take(CLAIMED).iter().map(message).collect::<anyhow::Result<_>>()?;
            for verdict in store.store().enqueue(sent).await? {
                verdict?;
            }
            let leases = claim(&store.store(), &mut Vec::new()).await?;
            settle(&store.store(), &leases).await?;
        }
        store.close().await;
    }
    let store = open(&schema).await?;
    let (mut times, mut leases) = (Vec::new(), Vec::new());
    for _ in 0..WARM_UP {
        leases.push(claim(&store.store(), &mut Vec::new()).await?);
    }
    if backlog.patient {
        tokio::time::sleep(TOLD_AFTER).await;
    }
    let before = buffers(&watch, &schema).await?;
    for _ in 0..backlog.claims {
        leases.push(claim(&store.store(), &mut times).await?);
    }
    store.close().await;
    let after = told(&watch, &schema, before).await?;
    drop(holder);
    schema.remove().await?;
    Ok(ClaimCost {
        backlog: backlog.messages,
        claimed: CLAIMED,
        held_snapshot: backlog.held_snapshot,
        buffers_per_claim: Some(ratio(after - before, u64::from(backlog.claims))),
        claim_p50_ms: median(times),
        ..ClaimCost::default()
    })
}

async fn open(schema: &Schema) -> anyhow::Result<Engine> {
    Ok(Engine::open(&schema.address(), Opening::default()).await?)
}

async fn claim(store: &Arc<dyn Store>, times: &mut Vec<f64>) -> anyhow::Result<Vec<Lease>> {
    let clock = SystemClock::new();
    let request = verbs::claim_request(0, CLAIMED)?;
    let started = clock.monotonic();
    let claimed = store.claim(request).await?;
    times.push(millis(clock.monotonic().saturating_sub(started)));
    anyhow::ensure!(claimed.leases.len() == CLAIMED as usize, "{} were claimed", claimed.leases.len());
    Ok(claimed.leases)
}

async fn settle(store: &Arc<dyn Store>, leases: &[Lease]) -> anyhow::Result<()> {
    for verdict in store.settle(leases.iter().map(verbs::settle).collect()).await? {
        verdict?;
    }
    Ok(())
}

/// How often a page of the schema's tables and indexes was looked at, in memory or not, as far as sessions have told.
async fn buffers(client: &Client, schema: &Schema) -> anyhow::Result<u64> {
    const BUFFERS: &str = "select coalesce(sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read, 0)
            + coalesce(idx_blks_hit, 0) + coalesce(toast_blks_read, 0) + coalesce(toast_blks_hit, 0)), 0)::bigint
        from pg_statio_user_tables where schemaname = $1";
    let buffers: i64 = client.query_one(BUFFERS, &[&schema.name]).await?.get(0);
    Ok(buffers.unsigned_abs())
}

/// The same when the sessions of a store that was closed have told, which takes them a moment.
async fn told(client: &Client, schema: &Schema, before: u64) -> anyhow::Result<u64> {
    let mut last = before;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = buffers(client, schema).await?;
        if now > before && now == last {
            return Ok(now);
        }
        last = now;
    }
    anyhow::bail!("the server does not tell how many buffers the claims looked at; hint: track_counts must be on")
}

/// Makes a store with so many messages that are ready, for a process that works them off.
pub(crate) async fn prepare_work_off(server: &Server, queued: u32, seed: u64) -> anyhow::Result<Schema> {
    let (schema, ids) = Schema::make(server, "work_off").await?;
    schema.queue(ids, 0, &Keys::new(KeyOrder::Time, seed).take(queued)).await?;
    Ok(schema)
}
