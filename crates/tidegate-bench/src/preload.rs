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
    SqliteStore::teach(&conn)?;
    let now = SystemClock::new().now().as_millis();
    let transaction = conn.transaction()?;
    const QUEUE: &str = "insert into tide_queue (id, tenant, name, seal)
        values (1, '', ?1, tide_seal(0, 1, '', ?1, 0, null))";
    const LANE: &str = "insert into tide_lane values (1, 1, ?1, 1, 5, tide_seal(0, 1, 1, ?1, 1, 5))";
    transaction.execute(QUEUE, [KIND])?;
    transaction.execute(LANE, [KIND])?;
    write(&transaction, now)?;
    transaction.commit()?;
    conn.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Remembers a key with its message.
pub(crate) const KEY_ROW: &str = "insert into tide_key values (1, ?1, ?2, ?3, tide_seal(0, 1, ?1, ?2, ?3))";

fn completed(conn: &Connection, now: i64, keys: &[Key]) -> anyhow::Result<()> {
    const MESSAGE: &str = "insert into tide_message values (?1, 1, ?2, '0', ?3, null, null, 1000, null, null, null,
        tide_seal(0, ?1, 1, ?2, '0', ?3, null, null, 1000, null, null, null))";
    const RESULT: &str = "insert into tide_result
        values (?1, 'completed', ?2, 1, 1, 1, 0, 0, 0, 0, null, '0', null, null, null,
            tide_seal(0, ?1, 'completed', ?2, 1, 1, 1, 0, 0, 0, 0, null, '0', null, null, null))";
    let (mut key_row, mut message_row, mut result_row) =
        (conn.prepare(KEY_ROW)?, conn.prepare(MESSAGE)?, conn.prepare(RESULT)?);
    for (id, key) in (FIRST_ID..).zip(keys) {
        key_row.execute(params![key.hash, id, key.hash])?;
        message_row.execute(params![id, key.text, now])?;
        result_row.execute(params![id, now])?;
    }
    Ok(())
}
