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
    SqliteStore::teach(&conn)?;
    let now = SystemClock::new().now().as_millis();
    let transaction = conn.transaction()?;
    const QUEUE: &str = "insert into tide_queue (id, tenant, name, seal)
        values (1, '', ?1, tide_seal(0, 1, '', ?1, 0, null))";
    const LANE: &str = "insert into tide_lane values (1, 1, ?1, 1, 5, tide_seal(0, 1, 1, ?1, 1, 5))";
    const KEY_ROW: &str = "insert into tide_key values (1, ?1, ?2, ?3, tide_seal(0, 1, ?1, ?2, ?3))";
    const MESSAGE: &str = "insert into tide_message values (?1, 1, ?2, '0', ?3, null, null, 1000, null, null, null,
        tide_seal(0, ?1, 1, ?2, '0', ?3, null, null, 1000, null, null, null))";
    const RESULT: &str = "insert into tide_result
        values (?1, 'completed', ?2, 1, 1, 1, 0, 0, 0, 0, null, '0', null, null, null,
            tide_seal(0, ?1, 'completed', ?2, 1, 1, 1, 0, 0, 0, 0, null, '0', null, null, null))";
    transaction.execute(QUEUE, [KIND])?;
    transaction.execute(LANE, [KIND])?;
    {
        let (mut key_row, mut message_row, mut result_row) =
            (transaction.prepare(KEY_ROW)?, transaction.prepare(MESSAGE)?, transaction.prepare(RESULT)?);
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
