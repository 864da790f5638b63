//! Seals: a checksum in each row over what the row says, because SQLite's pages carry none.
//!
//! A flipped bit in a page often leaves a page that SQLite reads without complaint: another amount in a payload, another
//! answer, another counter. So a row that is served or decided upon is sealed when it is written, and `row.rs` compares the
//! seal whenever it decodes the row. What does not agree is `Corrupt`: refused, never served, never deleted.
//!
//! A seal is the exclusive or of one 64-bit hash for each column (XXH3 of a text, a mixed number, by the column's place). So a statement
//! that changes one column in place brings the seal along without reading the others: it takes the old value's hash out and
//! puts the new one's in (`tide_reseal`). A row that was damaged before stays damaged by that; a seal that were computed
//! anew would vouch for whatever had become of it.

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, Row, ToSql};
use tidegate_core::error::StoreError;
use twox_hash::XxHash3_64;

use crate::trouble::Trouble;

/// Which columns of a table are under its seal: those from one place up to the seal's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) table: &'static str,
    /// A number that SQLite gives to the row, and that nobody refers to, stands before.
    pub(crate) from: usize,
    /// The place of the column `seal`. Migrations only add columns behind it.
    pub(crate) at: usize,
}

const fn whole(table: &'static str, at: usize) -> Sealed {
    Sealed { table, from: 0, at }
}

const fn numbered(table: &'static str, at: usize) -> Sealed {
    Sealed { table, from: 1, at }
}

pub(crate) const STORE: Sealed = whole("tide_store", 7);
pub(crate) const JUMP: Sealed = numbered("tide_jump", 3);
pub(crate) const QUEUE: Sealed = whole("tide_queue", 5);
pub(crate) const LANE: Sealed = whole("tide_lane", 5);
pub(crate) const MESSAGE: Sealed = whole("tide_message", 11);
pub(crate) const KEY: Sealed = whole("tide_key", 4);
pub(crate) const READY: Sealed = whole("tide_ready", 12);
pub(crate) const SCHED: Sealed = whole("tide_sched", 12);
pub(crate) const LEASE: Sealed = whole("tide_lease", 15);
pub(crate) const RESULT: Sealed = whole("tide_result", 15);
pub(crate) const HELD: Sealed = whole("tide_held", 19);
pub(crate) const EFFECT: Sealed = whole("tide_effect", 19);
pub(crate) const EVIDENCE: Sealed = numbered("tide_evidence", 6);
pub(crate) const HISTORY: Sealed = whole("tide_history", 10);
pub(crate) const AUDIT: Sealed = numbered("tide_audit", 8);
pub(crate) const OPERATION: Sealed = whole("tide_operation", 21);
pub(crate) const POLICY: Sealed = whole("tide_policy", 3);

/// Every sealed table.
pub(crate) const SEALED: [Sealed; 17] = [
    STORE, JUMP, QUEUE, LANE, MESSAGE, KEY, READY, SCHED, LEASE, RESULT, HELD, EFFECT, EVIDENCE, HISTORY, AUDIT,
    OPERATION, POLICY,
];

/// Refuses a row, selected with `*`, whose seal does not agree with what it says.
pub(crate) fn check(row: &Row<'_>, sealed: Sealed) -> Result<(), Trouble> {
    let mut seal = 0;
    for place in sealed.from..sealed.at {
        seal ^= part(place, row.get_ref(place)?);
    }
    match row.get_ref(sealed.at)? {
        ValueRef::Integer(stored) if stored.cast_unsigned() == seal => Ok(()),
        ValueRef::Integer(_) | ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
            Err(Trouble::Item(broken(row, sealed)))
        }
    }
}

fn broken(row: &Row<'_>, sealed: Sealed) -> StoreError {
    let id = ["id", "message", "seq"].iter().find_map(|column| row.get::<_, i64>(*column).ok());
    let id = id.map_or_else(|| "unknown row".to_owned(), |id| format!("row {id}"));
    StoreError::corrupt(
        &format!("{}, {id}", sealed.table),
        "its seal does not agree with what it says: bits were flipped, or another program wrote to it",
    )
}

/// The seal of a row whose first sealed column is the first of these.
pub(crate) fn of(sealed: Sealed, values: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    let mut seal = 0;
    for (place, value) in (sealed.from..).zip(values) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "an array or a blob of zeroes is bound nowhere here")]
        let part = match value.to_sql()? {
            ToSqlOutput::Borrowed(value) => part(place, value),
            ToSqlOutput::Owned(value) => part(place, (&value).into()),
            _ => return Err(rusqlite::Error::ToSqlConversionFailure("a value that is no plain one".into())),
        };
        seal ^= part;
    }
    Ok(seal.cast_signed())
}

/// Runs an insert: its parameters are the sealed columns in their order, and the seal behind them.
pub(crate) fn execute(
    statement: &mut CachedStatement<'_>,
    sealed: Sealed,
    values: &[&dyn ToSql],
) -> rusqlite::Result<usize> {
    debug_assert_eq!(values.len(), sealed.at - sealed.from, "{}", sealed.table);
    let seal = of(sealed, values)?;
    for (place, value) in (1..).zip(values) {
        statement.raw_bind_parameter(place, *value)?;
    }
    statement.raw_bind_parameter(values.len() + 1, seal)?;
    statement.raw_execute()
}

/// What one column adds to a seal. Most columns are numbers, which need no hash: mixed one to one, another number always
/// gives another part.
fn part(place: usize, value: ValueRef<'_>) -> u64 {
    let seed = |kind: u64| (place as u64 + 1).wrapping_mul(8) + kind;
    match value {
        ValueRef::Null => mix(seed(0)),
        ValueRef::Integer(number) => mix(mix(seed(1)) ^ number.cast_unsigned()),
        ValueRef::Real(number) => mix(mix(seed(2)) ^ number.to_bits()),
        ValueRef::Text(text) => XxHash3_64::oneshot_with_seed(seed(3), text),
        ValueRef::Blob(bytes) => XxHash3_64::oneshot_with_seed(seed(4), bytes),
    }
}

/// The finish of `SplitMix64`: each bit in moves about half of the bits out, and nothing is lost.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Gives a connection the two functions of seals: `tide_seal(first place, values ...)`, and
/// `tide_reseal(seal, (place, old, new) ...)` for statements that change sealed columns in place.
pub(crate) fn teach(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    conn.create_scalar_function("tide_seal", -1, flags, |context| {
        let from: u16 = context.get(0)?;
        let values = (1..context.len()).map(|at| context.get_raw(at));
        let seal = (usize::from(from)..).zip(values).fold(0, |seal, (place, value)| seal ^ part(place, value));
        Ok(seal.cast_signed())
    })?;
    conn.create_scalar_function("tide_reseal", -1, flags, |context| {
        let mut seal = context.get::<i64>(0)?.cast_unsigned();
        for at in (1..context.len()).step_by(3) {
            let place = usize::from(context.get::<u16>(at)?);
            seal ^= part(place, context.get_raw(at + 1)) ^ part(place, context.get_raw(at + 2));
        }
        Ok(seal.cast_signed())
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;

    fn tables() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        teach(&conn).unwrap();
        conn.execute_batch(include_str!("../migrations/0001_init.sql")).unwrap();
        conn
    }

    #[test]
    fn every_table_with_a_seal_is_known_with_its_place() {
        let conn = tables();
        let mut names =
            conn.prepare("select name from sqlite_schema where type = 'table' and name like 'tide_%'").unwrap();
        let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for name in names {
            let statement = conn.prepare(&format!("select * from {name}")).unwrap();
            let at = statement.column_names().position(|column| column == "seal");
            let known = SEALED.iter().find(|sealed| sealed.table == name);
            assert_eq!(known.map(|sealed| sealed.at), at, "{name}");
        }
    }

    #[test]
    fn every_flipped_bit_of_every_column_breaks_the_seal() {
        let conn = tables();
        let insert = "insert into tide_history values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        let values = params![7, 1, 1_700_000_000_000_i64, 3, 0, "retryable", "ready", "timeout", "no reply", 12];
        execute(&mut conn.prepare_cached(insert).unwrap(), HISTORY, values).unwrap();
        let sound = |sql: &str| {
            conn.execute_batch("savepoint flip").unwrap();
            conn.execute_batch(sql).unwrap();
            let sound =
                conn.query_row("select * from tide_history", [], |row| Ok(check(row, HISTORY).is_ok())).unwrap();
            conn.execute_batch("rollback to flip; release flip").unwrap();
            sound
        };
        assert!(sound("select 1"));
        for bit in 0..62 {
            let mask = 1_i64 << bit;
            for column in ["message", "seq", "at", "attempt", "generation", "due_at", "seal"] {
                let flip = format!("update tide_history set {column} = ({column} | {mask}) - ({column} & {mask})");
                assert!(!sound(&flip), "bit {bit} of {column}");
            }
        }
        for flip in
            ["detail = 'no replx'", "code = ''", "due_at = null", "state = 'dead'", "outcome = code, code = outcome"]
        {
            assert!(!sound(&format!("update tide_history set {flip}")), "{flip}");
        }
    }

    #[test]
    fn a_change_in_place_keeps_a_sound_seal_and_does_not_vouch_for_a_broken_one() {
        let conn = tables();
        conn.execute("insert into tide_policy values ('k', '{}', 1, tide_seal(0, 'k', '{}', 1))", []).unwrap();
        let sound = || conn.query_row("select * from tide_policy", [], |row| Ok(check(row, POLICY).is_ok())).unwrap();
        let change = "update tide_policy set policy = '[]', declared_at = 2,
            seal = tide_reseal(seal, 1, policy, '[]', 2, declared_at, 2)";
        assert!(sound());
        conn.execute(change, []).unwrap();
        assert!(sound());
        conn.execute("update tide_policy set declared_at = 3", []).unwrap();
        assert!(!sound());
        conn.execute(change, []).unwrap();
        assert!(!sound());
    }
}
