//! Fills a new store with messages that completed, so that its indexes are as large as those of a store in use.

use std::path::Path;

use anyhow::Context as _;
use rusqlite::{Connection, params};
use tidegate::clock::{Clock, SystemClock};
use tidegate::sqlite::{Options, SqliteStore};

use crate::keys::Key;
use crate::library::KIND;

/// Ids of these messages begin here: far below any that a clock makes.
pub(crate) const FIRST_ID: i64 = 1;

/// Fills it with messages that completed.
pub(crate) fn fill(path: &Path, keys: &[Key]) -> anyhow::Result<()> {
    fill_with(path, |conn, now| completed(conn, now, keys))
}

/// Makes the file with the engine, and what is in it with plain SQL: through the engine it would take minutes. `write` is
/// given the connection, with queue 1 and lane 1, and the time.
pub(crate) fn fill_with(path: &Path, write: impl FnOnce(&Connection, i64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    drop(SqliteStore::open(path, Options::default())?);
    let mut conn = Connection::open(path).context("the new store cannot be opened for filling")?;
    // Nothing is lost but the time to do it again.
    conn.execute_batch("pragma synchronous = off; pragma cache_size = -131072;")?;
    let now = SystemClock::new().now().as_millis();
    let transaction = conn.transaction()?;
    transaction.execute("insert into tide_queue (id, tenant, name) values (1, '', ?1)", [KIND])?;
    transaction
        .execute("insert into tide_lane (id, queue, kind, version, priority) values (1, 1, ?1, 1, 5)", [KIND])?;
    write(&transaction, now)?;
    transaction.commit()?;
    conn.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(())
}

fn completed(conn: &Connection, now: i64, keys: &[Key]) -> anyhow::Result<()> {
    let mut key_row = conn.prepare("insert into tide_key (queue, hash, id, fingerprint) values (1, ?1, ?2, ?3)")?;
    let mut message_row = conn.prepare(
        "insert into tide_message (id, lane, key, payload, enqueued_at, max_age_ms) values (?1, 1, ?2, '0', ?3, 1000)",
    )?;
    let mut result_row = conn.prepare(
        "insert into tide_result (id, state, at, lane, claims, attempt, body) values (?1, 'completed', ?2, 1, 1, 1, '0')",
    )?;
    for (id, key) in (FIRST_ID..).zip(keys) {
        key_row.execute(params![key.hash, id, key.hash])?;
        message_row.execute(params![id, key.text, now])?;
        result_row.execute(params![id, now])?;
    }
    Ok(())
}
