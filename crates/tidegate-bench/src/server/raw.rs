//! The least that the same rows need on a server: written through the same driver, on two connections, by tasks that know
//! everything beforehand.
//!
//! The tables and indexes are those of a store, in a schema that was filled alike. A transaction has as many of each row
//! as the engine had in a commit on average, and is one round trip: what the one before claimed is settled, what was
//! enqueued is claimed, more is enqueued. There is no counter, no audit, no policy, no history, no reply to anybody: a
//! bound, not a rival.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tidegate::clock::{Clock, SystemClock};
use tidegate::postgres::tokio_postgres::types::ToSql;
use tidegate::postgres::tokio_postgres::{Client, Statement};

use super::{Ids, MAX_AGE_MS, Schema, log_bytes};
use crate::cost;
use crate::keys::Key;
use crate::library::Work;
use crate::raw::RawRound;

const ENQUEUE: &str = "with i as (
        select * from unnest($1::bigint[], $2::bytea[], $3::text[], $4::text[]) as t(id, hash, key, payload)),
    k as (insert into tidegate.key (queue, hash, id, fingerprint)
        select $5, hash, id, hash from i on conflict (queue, hash) do nothing returning id),
    m as (insert into tidegate.message (id, lane, key, payload, enqueued_at, age_limit_ms)
        select i.id, $6, key, payload, $7, $8 from i join k using (id))
    insert into tidegate.ready (lane, pos, due_at, id) select $6, $7, $7, id from k";

const CLAIM: &str = "with c as materialized (
        select pos, due_at, id from tidegate.ready where lane = $1 and pos >= $2
        order by pos, due_at, id limit $3 for update skip locked),
    d as (delete from tidegate.ready r using c
        where r.lane = $1 and r.pos = c.pos and r.due_at = c.due_at and r.id = c.id),
    l as (insert into tidegate.lease (id, lane, due_at, until, enqueued_at, max_age_ms, claims, attempt, crashes,
            generation, round, flags, nonce, worker)
        select id, $1, due_at, $4, due_at, $5, 1, 1, 0, 0, 0, 0, $6, 'raw' from c)
    select c.id, c.pos, m.payload from c join tidegate.message m using (id)";

const SETTLE: &str = "with e as (
        delete from tidegate.lease where id = any($1) and claims = 1 and nonce = $2 returning id)
    insert into tidegate.result (id, at, lane, claims, attempt, state, body, last_nonce, last_digest)
        select id, $3, $4, 1, 1, 'completed', '0', $2, $2 from e";

const LEASE_MS: i64 = 30_000;
const NONCE: [u8; 16] = [7; 16];
/// Connections that write at once, as many as the engine has writers.
const CONNECTIONS: usize = 2;
/// How far back from the first row that was last seen a claim looks, as the engine does.
const BACK_MS: i64 = 2_000;

/// A schema that is used without the engine.
pub(crate) struct Raw {
    lanes: Vec<Lane>,
    watch: Client,
    next_id: Arc<AtomicI64>,
}

/// One connection.
struct Lane {
    client: Client,
    enqueue: Statement,
    claim: Statement,
    settle: Statement,
    ids: Ids,
    hint: i64,
    /// How long its commits took, each with all of its transaction: one round trip.
    times: Vec<Duration>,
}

impl Raw {
    pub(crate) async fn open(schema: &Schema, ids: Ids) -> anyhow::Result<Self> {
        let mut lanes = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = schema.connect().await?;
            let enqueue = client.prepare(&schema.of(ENQUEUE)).await.context("the raw enqueue")?;
            let claim = client.prepare(&schema.of(CLAIM)).await.context("the raw claim")?;
            let settle = client.prepare(&schema.of(SETTLE)).await.context("the raw settlement")?;
            lanes.push(Lane { client, enqueue, claim, settle, ids, hint: 0, times: Vec::new() });
        }
        let next_id = Arc::new(AtomicI64::new(SystemClock::new().now().as_millis() << 20));
        Ok(Self { lanes, watch: schema.connect().await?, next_id })
    }

    /// Takes the messages of these keys through their lives, so many steps to a commit.
    pub(crate) async fn round(&mut self, keys: &[Key], group_size: f64) -> anyhow::Result<RawRound> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size between 1 and some thousands"
        )]
        let chunk = ((group_size / 3.0).round() as usize).clamp(1, 4096);
        let clock = SystemClock::new();
        let before = log_bytes(&self.watch).await?;
        let (started, cpu) = (clock.monotonic(), cost::processor_time()?);
        let mut working = tokio::task::JoinSet::new();
        let share = keys.len().div_ceil(CONNECTIONS);
        for (lane, keys) in self.lanes.drain(..).zip(keys.chunks(share.max(1)).chain(std::iter::repeat(&[][..]))) {
            working.spawn(lane.round(keys.to_vec(), chunk, Arc::clone(&self.next_id)));
        }
        let mut claimed = 0;
        while let Some(worked) = working.join_next().await {
            let (lane, settled) = worked??;
            claimed += settled;
            self.lanes.push(lane);
        }
        let took = clock.monotonic().saturating_sub(started).max(Duration::from_micros(1));
        let cpu = cost::processor_time()?.saturating_sub(cpu);
        anyhow::ensure!(claimed == keys.len(), "{claimed} of {} raw messages were claimed", keys.len());
        let count = keys.len() as u64;
        Ok(RawRound {
            per_s: crate::ratio(count, 1) / took.as_secs_f64(),
            wal_bytes_per_message: crate::ratio(log_bytes(&self.watch).await? - before, count),
            cpu_us: cpu.as_secs_f64() * 1e6 / crate::ratio(count, 1),
        })
    }

    /// The median transaction, its fsync and its round trip included.
    pub(crate) fn commit_p50(&self) -> Duration {
        let mut times: Vec<Duration> = self.lanes.iter().flat_map(|lane| lane.times.iter().copied()).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

impl Lane {
    async fn round(mut self, keys: Vec<Key>, chunk: usize, next_id: Arc<AtomicI64>) -> anyhow::Result<(Self, usize)> {
        let clock = SystemClock::new();
        let (mut chunks, mut sent, mut settled) = (keys.chunks(chunk), 0, 0);
        let mut claimed: Vec<i64> = Vec::new();
        // What another connection enqueued may be claimed here, and the other way round: in the end it is as many.
        while sent < keys.len() || !claimed.is_empty() {
            let batch = chunks.next().unwrap_or_default();
            sent += batch.len();
            settled += claimed.len();
            let first = next_id.fetch_add(i64::try_from(batch.len())?, Ordering::SeqCst) + 1;
            let started = clock.monotonic();
            claimed = self.transaction(batch, first, claimed, chunk, clock.now().as_millis()).await?;
            self.times.push(clock.monotonic().saturating_sub(started));
        }
        Ok((self, settled))
    }

    async fn transaction(
        &mut self,
        batch: &[Key],
        first: i64,
        settle: Vec<i64>,
        most: usize,
        now: i64,
    ) -> anyhow::Result<Vec<i64>> {
        let ids: Vec<i64> = (first..).take(batch.len()).collect();
        let hashes: Vec<&[u8]> = batch.iter().map(|key| &key.hash[..]).collect();
        let keys: Vec<&str> = batch.iter().map(|key| key.text.as_str()).collect();
        let payloads: Vec<String> =
            batch.iter().map(|key| serde_json::to_string(&Work::of(key))).collect::<Result<_, _>>()?;
        let (most, nonce, until) = (i64::try_from(most)?, &NONCE[..], now + LEASE_MS);
        let Ids { queue, lane } = self.ids;
        let of_enqueue: [&(dyn ToSql + Sync); 8] = [&ids, &hashes, &keys, &payloads, &queue, &lane, &now, &MAX_AGE_MS];
        let of_settle: [&(dyn ToSql + Sync); 4] = [&settle, &nonce, &now, &lane];
        let of_claim: [&(dyn ToSql + Sync); 6] = [&lane, &self.hint, &most, &until, &MAX_AGE_MS, &nonce];
        // All of it in one round trip: each is sent at its first poll, in this order.
        let (_, ended, taken, heads, _) = tokio::try_join!(
            biased;
            self.client.batch_execute("begin"),
            self.client.execute(&self.settle, &of_settle),
            self.client.execute(&self.enqueue, &of_enqueue),
            self.client.query(&self.claim, &of_claim),
            self.client.batch_execute("commit"),
        )?;
        anyhow::ensure!(ended == settle.len() as u64, "a lease was not there");
        anyhow::ensure!(taken == batch.len() as u64, "a key of the benchmark was known already");
        if let Some(head) = heads.first() {
            self.hint = head.get::<_, i64>(1) - BACK_MS;
        }
        anyhow::ensure!(heads.iter().all(|head| !head.get::<_, &str>(2).is_empty()), "a message without its body");
        Ok(heads.iter().map(|head| head.get(0)).collect())
    }
}
