//! The ground of a measurement on a PostgreSQL server: schemas of its own there, filled like the files of the other one.
//!
//! What the server does is read from the server: its log's position before and after, and how many of its buffers the
//! tables were looked at with. Nothing that somebody else keeps on the server is touched; what it does meanwhile is
//! measured along.

mod claim;
mod raw;

use anyhow::Context as _;
use tidegate::clock::{Clock, SystemClock};
use tidegate::postgres::tokio_postgres::Client;
use tidegate::{Address, Server, Tidegate, postgres};

use crate::keys::Key;
use crate::library::{KIND, Work};

pub(crate) use claim::{Backlog, claim_cost, prepare_work_off};
pub(crate) use raw::Raw;

/// Rows of one statement while a store is filled.
const CHUNK: usize = 10_000;
/// Ids of the messages it is filled with begin here: far below any that a clock makes.
const FIRST_ID: i64 = 1;
pub(crate) const MAX_AGE_MS: i64 = 3 * 24 * 3600 * 1000;

/// A schema that is there for a measurement, and goes after it.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    pub(crate) server: Server,
    pub(crate) name: String,
}

/// The numbers of the queue and the lane of the measured messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids {
    pub(crate) queue: i64,
    pub(crate) lane: i64,
}

impl Schema {
    /// Makes a store in a new schema.
    pub(crate) async fn make(server: &Server, what: &str) -> anyhow::Result<(Self, Ids)> {
        let name = format!("bench_{}_{what}", std::process::id());
        let schema = Self { server: server.clone().with("schema", &name), name };
        anyhow::ensure!(
            server.parameter("schema").is_none(),
            "the benchmark makes schemas of its own; hint: leave the schema out of the address"
        );
        let client = schema.connect().await?;
        client.batch_execute(&format!("drop schema if exists {} cascade", schema.name)).await?;
        Tidegate::builder().housekeeping(false).open_at(&schema.address()).await?.close().await;
        let ids = schema.names(&client).await?;
        Ok((schema, ids))
    }

    pub(crate) fn address(&self) -> Address {
        Address::Server(self.server.clone())
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let connected = postgres::connect(self.server.reveal()).await;
        connected.with_context(|| format!("cannot connect to {}", self.server))
    }

    /// A statement for the tables of this schema.
    pub(crate) fn of(&self, sql: &str) -> String {
        sql.replace("tidegate.", &format!("{}.", self.name))
    }

    async fn names(&self, client: &Client) -> anyhow::Result<Ids> {
        const QUEUE: &str = "insert into tidegate.queue (tenant, name) values ('', $1) returning id";
        const LANE: &str =
            "insert into tidegate.lane (queue, kind, version, priority) values ($1, $2, 1, 5) returning id";
        let queue: i64 = client.query_one(&self.of(QUEUE), &[&KIND]).await?.get(0);
        let lane: i64 = client.query_one(&self.of(LANE), &[&queue, &KIND]).await?.get(0);
        Ok(Ids { queue, lane })
    }

    /// Fills it with messages that completed, so that its indexes are as large as those of a store in use.
    pub(crate) async fn fill(&self, ids: Ids, keys: &[Key]) -> anyhow::Result<()> {
        const COMPLETED: &str = "with i as (
                select * from unnest($1::bigint[], $2::bytea[], $3::text[]) as t(id, hash, key)),
            k as (insert into tidegate.key (queue, hash, id, fingerprint) select $4, hash, id, hash from i),
            m as (insert into tidegate.message (id, lane, key, payload, enqueued_at, age_limit_ms)
                select id, $5, key, '0', $6, 1000 from i)
            insert into tidegate.result (id, at, lane, claims, attempt, state, body)
                select id, $6, $5, 1, 1, 'completed', '0' from i";
        let client = self.connect().await?;
        // Nothing is lost but the time to do it again.
        client.batch_execute("set synchronous_commit = off").await?;
        let statement = client.prepare(&self.of(COMPLETED)).await?;
        let now = SystemClock::new().now().as_millis();
        for (rows, first) in keys.chunks(CHUNK).zip((FIRST_ID..).step_by(CHUNK)) {
            let numbers: Vec<i64> = (first..).take(rows.len()).collect();
            let hashes: Vec<&[u8]> = rows.iter().map(|key| &key.hash[..]).collect();
            let texts: Vec<&str> = rows.iter().map(|key| key.text.as_str()).collect();
            client.execute(&statement, &[&numbers, &hashes, &texts, &ids.queue, &ids.lane, &now]).await?;
        }
        self.settle_down(&client).await
    }

    /// Fills it with messages that are ready, behind so many that are there.
    pub(crate) async fn queue(&self, ids: Ids, behind: u32, keys: &[Key]) -> anyhow::Result<()> {
        const READY: &str = "with i as (
                select * from unnest($1::bigint[], $2::bytea[], $3::text[], $4::text[]) as t(id, hash, key, payload)),
            k as (insert into tidegate.key (queue, hash, id, fingerprint) select $5, hash, id, hash from i),
            m as (insert into tidegate.message (id, lane, key, payload, enqueued_at, age_limit_ms)
                select id, $6, key, payload, $7, $8 from i),
            d as (insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
                select $5, count(*), 0, 0, 0, 0 from i)
            insert into tidegate.ready (lane, pos, due_at, id) select $6, $7, $7, id from i";
        let client = self.connect().await?;
        client.batch_execute("set synchronous_commit = off").await?;
        let statement = client.prepare(&self.of(READY)).await?;
        let now = SystemClock::new().now().as_millis();
        for (rows, first) in keys.chunks(CHUNK).zip((FIRST_ID + i64::from(behind)..).step_by(CHUNK)) {
            let numbers: Vec<i64> = (first..).take(rows.len()).collect();
            let hashes: Vec<&[u8]> = rows.iter().map(|key| &key.hash[..]).collect();
            let texts: Vec<&str> = rows.iter().map(|key| key.text.as_str()).collect();
            let payloads: Vec<String> =
                rows.iter().map(|key| serde_json::to_string(&Work::of(key))).collect::<Result<_, _>>()?;
            let values: [&(dyn postgres::tokio_postgres::types::ToSql + Sync); 8] =
                [&numbers, &hashes, &texts, &payloads, &ids.queue, &ids.lane, &now, &MAX_AGE_MS];
            client.execute(&statement, &values).await?;
        }
        self.settle_down(&client).await
    }

    /// What follows from filling is not part of what is measured.
    async fn settle_down(&self, client: &Client) -> anyhow::Result<()> {
        const TABLES: &str = "select tablename::text from pg_tables where schemaname = $1";
        for row in client.query(TABLES, &[&self.name]).await? {
            let table: String = row.get(0);
            client.batch_execute(&format!("vacuum (analyze) {}.{table}", self.name)).await?;
        }
        // A user who may not have one measures some of the writes of the filling along.
        let _may_be_refused = client.batch_execute("checkpoint").await;
        Ok(())
    }

    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        let client = self.connect().await?;
        Ok(client.batch_execute(&format!("drop schema if exists {} cascade", self.name)).await?)
    }
}

/// How many bytes the server's log has had since it was made.
pub(crate) async fn log_bytes(client: &Client) -> anyhow::Result<u64> {
    const BYTES: &str = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint";
    let bytes: i64 = client.query_one(BYTES, &[]).await.context("the position of the log cannot be read")?.get(0);
    Ok(bytes.unsigned_abs())
}

/// The server's version, and what its acknowledgements mean.
pub(crate) async fn conditions(server: &Server) -> anyhow::Result<(String, String)> {
    const SETTINGS: &str = "select current_setting('server_version'), current_setting('fsync'),
        current_setting('synchronous_commit'), current_setting('full_page_writes'),
        current_setting('wal_compression'), current_setting('shared_buffers')";
    let client = postgres::connect(server.reveal()).await.with_context(|| format!("cannot connect to {server}"))?;
    let row = client.query_one(SETTINGS, &[]).await?;
    let [version, fsync, commit, pages, compression, buffers]: [String; 6] = std::array::from_fn(|at| row.get(at));
    let durability = format!(
        "fsync {fsync}, synchronous_commit {commit}, full_page_writes {pages}, wal_compression {compression}, \
         shared_buffers {buffers}"
    );
    Ok((version, durability))
}
