//! Fills a new store with messages that completed, so that its indexes are as large as those of a store in use.

use std::path::Path;

use anyhow::Context as _;
use rusqlite::{Connection, params};
use tidegate::clock::{Clock, SystemClock};
use tidegate::sqlite::{Options, SqliteStore};

use crate::keys::Key;
use crate::library::KIND;

/// Ids of these messages begin here: far below any that a clock makes.
const FIRST_ID: i64 = 1;

/// Makes the file with the engine, and its messages with plain SQL: through the engine it would take minutes.
pub(crate) fn fill(path: &Path, keys: &[Key]) -> anyhow::Result<()> {
    drop(SqliteStore::open(path, Options::default())?);
    let mut conn = Connection::open(path).context("the new store cannot be opened for filling")?;
    // Nothing is lost but the time to do it again.
    conn.execute_batch("pragma synchronous = off; pragma cache_size = -524288;")?;
    let now = SystemClock::new().now().as_millis();
    let transaction = conn.transaction()?;
    transaction.execute("insert into tide_queue (id, tenant, name) values (1, '', ?1)", [KIND])?;
    transaction
        .execute("insert into tide_lane (id, queue, kind, version, priority) values (1, 1, ?1, 1, 5)", [KIND])?;
    {
        let mut key_row =
            transaction.prepare("insert into tide_key (queue, hash, id, fingerprint) values (1, ?1, ?2, ?3)")?;
        let mut message_row = transaction.prepare(
            "insert into tide_message (id, lane, key, payload, enqueued_at, max_age_ms) values (?1, 1, ?2, '0', ?3, 1000)",
        )?;
        let mut result_row = transaction.prepare(
            "insert into tide_result (id, state, at, lane, claims, attempt, body) values (?1, 'completed', ?2, 1, 1, 1, '0')",
        )?;
        for (id, key) in (FIRST_ID..).zip(keys) {
            key_row.execute(params![key.hash, id, key.hash])?;
            message_row.execute(params![id, key.text, now])?;
            result_row.execute(params![id, now])?;
        }
    }
    transaction.commit()?;
    conn.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(())
}
