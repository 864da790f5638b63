//! The least that the same rows need: written straight with SQLite, by one thread that knows everything beforehand.
//!
//! Per message: the key (as the gate of deduplication), the body, the claimable row; its head read and removed, the body
//! read, the lease written; the lease removed under its token, the result written. The tables, indexes and settings are
//! those of the engine's own file, of which this one is a copy. A transaction has as many of each as the engine had in a
//! commit on average. There is no counter, no audit, no policy, no history, no reply to anybody: a bound, not a rival.
//!
//! What it leaves out it leaves out on purpose: a claim reads only the columns it needs, no seal is computed or checked, no
//! message is handed to anybody, and one nonce serves all claims. An engine that keeps the promise has to do these; the rows
//! and indexes, and so the pages that are written, are the same.
//!
//! It runs a statement for each row. Where rows are known together SQLite needs less, and the engine makes use of that: so
//! the same rows are also written by statements of several rows ([`Statements::OfSeveralRows`]), as a second bound.
//!
//! Two things about both are no minimum. It has both processors to itself and uses one, while the engine's writer shares them
//! with producers and handlers. And it copies its log itself, on its one thread, which the engine leaves to another: with
//! random keys, where that is a third of the time, an engine may come out above this bound.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::{Connection, params};
use tidegate::clock::{Clock, SystemClock};

use crate::cost;
use crate::keys::Key;
use crate::library::Work;

/// The engine's file, used without the engine.
pub(crate) struct Raw {
    conn: Connection,
    next_id: i64,
    clock: SystemClock,
    wal: Wal,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statements {
    /// A statement runs for each row.
    OfOneRow,
    /// One statement inserts several rows, and one removes the leases of a claim.
    OfSeveralRows,
}

/// One round.
pub(crate) struct RawRound {
    pub(crate) per_s: f64,
    pub(crate) wal_bytes_per_message: f64,
    pub(crate) cpu_us: f64,
}

/// The settings of the engine's writing connection. It copies its log back into the file from 16 MiB on; so does this.
const SETTINGS: &str = "pragma synchronous = full; pragma secure_delete = off; pragma cell_size_check = on;
    pragma temp_store = memory; pragma mmap_size = 0; pragma cache_size = -65536; pragma wal_autocheckpoint = 0;";
const CHECKPOINT_FRAMES: u64 = (16 << 20) / FRAME;
/// Bytes of a page in the log, with its header.
const FRAME: u64 = 4096 + 24;

// The same rows, so the seals as well: the bytes of one, without the work of computing it.
const TAKE_KEY: &str = "insert into tide_key (queue, hash, id, fingerprint, seal)
    values (1, ?1, ?2, ?3, 6148914691236517205)
    on conflict (queue, hash) do nothing";
const BODY: &str = "insert into tide_message (id, lane, key, payload, enqueued_at, max_age_ms, seal)
    values (?1, 1, ?2, ?3, ?4, ?5, 6148914691236517205)";
const READY: &str = "insert into tide_ready (lane, due_at, id, seal) values (1, ?1, ?2, 6148914691236517205)";
const HEAD: &str = "select due_at, id from tide_ready where lane = 1 order by due_at, id limit ?1";
const REMOVE: &str = "delete from tide_ready where lane = 1 and (due_at, id) <= (?1, ?2)";
const READ_BODY: &str = "select key, payload, enqueued_at from tide_message where id = ?1";
const LEASE: &str =
    "insert into tide_lease (id, lane, due_at, claims, attempt, crashes, generation, round, flags, nonce,
    until, worker, enqueued_at, max_age_ms, seal)
    values (?1, 1, ?2, 1, 1, 0, 0, 0, 0, ?3, ?4, 'raw', ?2, ?5, 6148914691236517205)";
const END: &str = "delete from tide_lease where id = ?1 and claims = 1 and nonce = ?2";
const RESULT: &str = "insert into tide_result (id, state, at, lane, claims, attempt, body, last_nonce, last_digest,
    seal) values (?1, 'completed', ?2, 1, 1, 1, '0', ?3, ?3, 6148914691236517205)";

const MAX_AGE_MS: i64 = 3 * 24 * 3600 * 1000;
const LEASE_MS: i64 = 30_000;
const NONCE: [u8; 16] = [7; 16];

impl Raw {
    pub(crate) fn open(file: &Path) -> anyhow::Result<Self> {
        let conn = Connection::open(file).context("the copy of the filled file cannot be opened")?;
        let mode: String = conn.query_row("pragma journal_mode = wal", [], |row| row.get(0))?;
        anyhow::ensure!(mode.eq_ignore_ascii_case("wal"), "SQLite refused the write-ahead log: {mode}");
        conn.execute_batch(SETTINGS)?;
        conn.set_prepared_statement_cache_capacity(64);
        let clock = SystemClock::new();
        let next_id = clock.now().as_millis() << 20;
        Ok(Self { conn, next_id, clock, wal: Wal::default() })
    }

    /// Takes the messages of these keys through their lives, so many steps to a commit.
    pub(crate) fn round(&mut self, keys: &[Key], group_size: f64, how: Statements) -> anyhow::Result<RawRound> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size between 1 and some thousands"
        )]
        let chunk = ((group_size / 3.0).round() as usize).clamp(1, 4096);
        let messages: Vec<(&Key, String)> = (keys.iter())
            .map(|key| Ok((key, serde_json::to_string(&Work::of(key))?)))
            .collect::<anyhow::Result<_>>()?;
        let mut chunks = messages.chunks(chunk);
        let Self { conn, next_id, clock, wal } = self;
        let (mut claimed, mut settled, before) = (Vec::new(), 0, wal.written);
        let (started, cpu) = (clock.monotonic(), cost::processor_time()?);
        // Each commit settles what the one before claimed, claims what it enqueued, and enqueues more.
        while settled < messages.len() {
            let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let now = clock.now().as_millis();
            let to_settle = std::mem::take(&mut claimed);
            let several = how == Statements::OfSeveralRows;
            if several {
                several::settle(&transaction, &to_settle, now)
            } else {
                settle(&transaction, &to_settle, now)
            }?;
            settled += to_settle.len();
            claimed = claim(&transaction, chunk, now, how)?;
            if let Some(chunk) = chunks.next() {
                let enqueue = if several { several::enqueue } else { enqueue };
                *next_id = enqueue(&transaction, chunk, *next_id, now)?;
            }
            transaction.commit()?;
            wal.after_commit(conn)?;
        }
        let took = clock.monotonic().saturating_sub(started).max(Duration::from_micros(1));
        let cpu = cost::processor_time()?.saturating_sub(cpu);
        let count = keys.len() as u64;
        Ok(RawRound {
            per_s: crate::ratio(count, 1) / took.as_secs_f64(),
            wal_bytes_per_message: crate::ratio((wal.written - before) * FRAME, count),
            cpu_us: cpu.as_secs_f64() * 1e6 / crate::ratio(count, 1),
        })
    }
}

fn enqueue(conn: &Connection, messages: &[(&Key, String)], mut id: i64, now: i64) -> anyhow::Result<i64> {
    let (mut key_row, mut body, mut ready) =
        (conn.prepare_cached(TAKE_KEY)?, conn.prepare_cached(BODY)?, conn.prepare_cached(READY)?);
    for (key, payload) in messages {
        id += 1;
        let taken = key_row.execute(params![key.hash, id, key.hash])?;
        anyhow::ensure!(taken == 1, "a key of the benchmark was known already");
        body.execute(params![id, key.text, payload, now, MAX_AGE_MS])?;
        ready.execute(params![now, id])?;
    }
    Ok(id)
}

fn claim(conn: &Connection, most: usize, now: i64, how: Statements) -> anyhow::Result<Vec<i64>> {
    let heads: Vec<(i64, i64)> = conn
        .prepare_cached(HEAD)?
        .query_map([i64::try_from(most)?], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let Some((due_at, id)) = heads.last() else { return Ok(Vec::new()) };
    let removed = conn.prepare_cached(REMOVE)?.execute([due_at, id])?;
    anyhow::ensure!(removed == heads.len(), "{removed} rows left the lane where {} were read", heads.len());
    let (mut body, mut lease) = (conn.prepare_cached(READ_BODY)?, conn.prepare_cached(LEASE)?);
    for (due_at, id) in &heads {
        let payload: String = body.query_row([id], |row| row.get(1))?;
        anyhow::ensure!(!payload.is_empty(), "a message without its body");
        if how == Statements::OfOneRow {
            lease.execute(params![id, due_at, NONCE, now + LEASE_MS, MAX_AGE_MS])?;
        }
    }
    if how == Statements::OfSeveralRows {
        several::lease(conn, &heads, now)?;
    }
    Ok(heads.into_iter().map(|(_, id)| id).collect())
}

fn settle(conn: &Connection, ids: &[i64], now: i64) -> anyhow::Result<()> {
    let (mut end, mut result) = (conn.prepare_cached(END)?, conn.prepare_cached(RESULT)?);
    for id in ids {
        anyhow::ensure!(end.execute(params![id, NONCE])? == 1, "a lease was not there");
        result.execute(params![id, now, NONCE])?;
    }
    Ok(())
}

/// The same rows by fewer statements.
mod several {
    use rusqlite::{Connection, ToSql, params};

    use super::{Key, LEASE_MS, MAX_AGE_MS, NONCE};

    /// As many rows as the engine writes by one statement.
    const ROWS: usize = 16;

    const SEAL: &str = "6148914691236517205";

    /// Inserts rows, each with values of its own behind those that all have.
    fn insert<const OWN: usize>(
        conn: &Connection,
        table: &str,
        row: impl Fn(&dyn Fn(usize) -> String) -> String,
        then: &str,
        shared: &[&dyn ToSql],
        rows: &[[&dyn ToSql; OWN]],
    ) -> anyhow::Result<()> {
        for rows in rows.chunks(ROWS) {
            let values: Vec<String> =
                (0..rows.len()).map(|number| row(&|own| format!("?{}", shared.len() + number * OWN + own))).collect();
            let mut statement =
                conn.prepare_cached(&format!("insert or fail into {table} values {} {then}", values.join(", ")))?;
            for (at, value) in shared.iter().chain(rows.iter().flatten()).enumerate() {
                statement.raw_bind_parameter(at + 1, value)?;
            }
            let inserted = statement.raw_execute()?;
            statement.clear_bindings();
            anyhow::ensure!(inserted == rows.len(), "{inserted} of {} rows were inserted", rows.len());
        }
        Ok(())
    }

    pub(super) fn enqueue(conn: &Connection, messages: &[(&Key, String)], id: i64, now: i64) -> anyhow::Result<i64> {
        let last = id + i64::try_from(messages.len())?;
        let ids: Vec<i64> = (id + 1..=last).collect();
        let with_ids = || messages.iter().zip(&ids);
        let keys: Vec<[&dyn ToSql; 2]> = with_ids().map(|((key, _), id)| [&key.hash as &dyn ToSql, id]).collect();
        let key = |own: &dyn Fn(usize) -> String| format!("(1, {0}, {1}, {0}, {SEAL})", own(1), own(2));
        insert(
            conn,
            "tide_key (queue, hash, id, fingerprint, seal)",
            key,
            "on conflict (queue, hash) do nothing",
            &[],
            &keys,
        )?;
        let bodies: Vec<[&dyn ToSql; 3]> =
            with_ids().map(|((key, payload), id)| [id as &dyn ToSql, &key.text, payload]).collect();
        let body = |own: &dyn Fn(usize) -> String| format!("({}, 1, {}, {}, ?1, ?2, {SEAL})", own(1), own(2), own(3));
        let table = "tide_message (id, lane, key, payload, enqueued_at, max_age_ms, seal)";
        insert(conn, table, body, "", &[&now, &MAX_AGE_MS], &bodies)?;
        let ready: Vec<[&dyn ToSql; 1]> = ids.iter().map(|id| [id as &dyn ToSql]).collect();
        let row = |own: &dyn Fn(usize) -> String| format!("(1, ?1, {}, {SEAL})", own(1));
        insert(conn, "tide_ready (lane, due_at, id, seal)", row, "", &[&now], &ready)?;
        Ok(last)
    }

    pub(super) fn lease(conn: &Connection, heads: &[(i64, i64)], now: i64) -> anyhow::Result<()> {
        let rows: Vec<[&dyn ToSql; 2]> = heads.iter().map(|(due_at, id)| [id as &dyn ToSql, due_at]).collect();
        let row = |own: &dyn Fn(usize) -> String| {
            format!("({}, 1, {1}, 1, 1, 0, 0, 0, 0, ?1, ?2, 'raw', {1}, ?3, {SEAL})", own(1), own(2))
        };
        let table = "tide_lease (id, lane, due_at, claims, attempt, crashes, generation, round, flags, nonce, until,
            worker, enqueued_at, max_age_ms, seal)";
        insert(conn, table, row, "", &[&NONCE, &(now + LEASE_MS), &MAX_AGE_MS], &rows)
    }

    pub(super) fn settle(conn: &Connection, ids: &[i64], now: i64) -> anyhow::Result<()> {
        const END: &str = "delete from tide_lease where id between ?1 and ?2 and claims = 1 and nonce = ?3";
        let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Ok(()) };
        let ended = conn.prepare_cached(END)?.execute(params![first, last, NONCE])?;
        anyhow::ensure!(ended == ids.len(), "{ended} leases were there of {}", ids.len());
        let rows: Vec<[&dyn ToSql; 1]> = ids.iter().map(|id| [id as &dyn ToSql]).collect();
        let row =
            |own: &dyn Fn(usize) -> String| format!("({}, 'completed', ?1, 1, 1, 1, '0', ?2, ?2, {SEAL})", own(1));
        let table = "tide_result (id, state, at, lane, claims, attempt, body, last_nonce, last_digest, seal)";
        insert(conn, table, row, "", &[&now, &NONCE], &rows)
    }
}

/// The write-ahead log, in frames.
#[derive(Debug, Default)]
struct Wal {
    frames: u64,
    written: u64,
}

impl Wal {
    /// Counts what was written, and copies it back when there is as much of it as the engine lets grow.
    fn after_commit(&mut self, conn: &Connection) -> anyhow::Result<()> {
        let ask = |how: &str| -> rusqlite::Result<u64> {
            conn.prepare_cached(how)?.query_row([], |row| row.get::<_, i64>(1)).map(i64::unsigned_abs)
        };
        let frames = ask("pragma wal_checkpoint(noop)")?;
        // Fewer than before: the log began anew with this commit.
        self.written += frames.checked_sub(self.frames).unwrap_or(frames);
        self.frames = frames;
        if frames >= CHECKPOINT_FRAMES {
            ask("pragma wal_checkpoint(passive)")?;
        }
        Ok(())
    }
}
