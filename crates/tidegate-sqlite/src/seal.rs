//! Seals: a checksum in each row over what the row says, because SQLite's pages carry none.
//!
//! A flipped bit in a page often leaves a page that SQLite reads without complaint: another amount in a payload, another
//! answer, another counter. So a row that is served or decided upon is sealed when it is written, and `row.rs` compares the
//! seal whenever it decodes the row. What does not agree is `Corrupt`: refused, never served, never deleted.
//!
//! A seal is the exclusive or of one 64-bit hash for each column, by the column's place. So a statement that changes one
//! column in place brings the seal along without reading the others: it takes the old value's hash out and puts the new
//! one's in (`tide_reseal`). A row that was damaged before stays damaged by that; a seal that were computed anew would vouch
//! for whatever had become of it.
//!
//! Some sixty columns are sealed for each message and forty compared, so this is counted in instructions: a number is mixed
//! and not hashed, a text is hashed sixteen bytes at a time, and a row is read once, for its seal and for what it says.

use std::ops::DerefMut;

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{FromSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, Statement, ToSql};
use tidegate_core::error::StoreError;

use crate::row;
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
pub(crate) const LEASE: Sealed = whole("tide_lease", 18);
pub(crate) const RESULT: Sealed = whole("tide_result", 15);
pub(crate) const HELD: Sealed = whole("tide_held", 19);
pub(crate) const EFFECT: Sealed = whole("tide_effect", 19);
pub(crate) const EVIDENCE: Sealed = numbered("tide_evidence", 6);
pub(crate) const HISTORY: Sealed = whole("tide_history", 10);
pub(crate) const AUDIT: Sealed = numbered("tide_audit", 8);
pub(crate) const OPERATION: Sealed = whole("tide_operation", 21);
pub(crate) const POLICY: Sealed = whole("tide_policy", 3);
pub(crate) const TOKEN: Sealed = whole("tide_token", 7);

/// Every sealed table.
pub(crate) const SEALED: [Sealed; 18] = [
    STORE, JUMP, QUEUE, LANE, MESSAGE, KEY, READY, SCHED, LEASE, RESULT, HELD, EFFECT, EVIDENCE, HISTORY, AUDIT,
    OPERATION, POLICY, TOKEN,
];

/// Refuses a row, selected with `*`, whose seal does not agree with what it says.
pub(crate) fn check(row: &Row<'_>, sealed: Sealed) -> Result<(), Trouble> {
    let mut seal = 0;
    for place in sealed.from..sealed.at {
        seal ^= part(place, row.get_ref(place)?);
    }
    agree(row, sealed, seal)
}

fn agree(row: &Row<'_>, sealed: Sealed, seal: u64) -> Result<(), Trouble> {
    match row.get_ref(sealed.at)? {
        ValueRef::Integer(stored) if stored.cast_unsigned() == seal => Ok(()),
        ValueRef::Integer(_) | ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
            Err(Trouble::Item(broken(row, sealed)))
        }
    }
}

/// A row whose seal agreed, with its sealed columns: SQLite was asked for each of them once.
pub(crate) struct Whole<'r, 'stmt, const N: usize> {
    row: &'r Row<'stmt>,
    table: &'static str,
    values: [ValueRef<'r>; N],
}

impl<'r, 'stmt, const N: usize> Whole<'r, 'stmt, N> {
    /// Reads a row that was selected with `*` and has all of its `N` columns before the seal under it.
    pub(crate) fn read(row: &'r Row<'stmt>, sealed: Sealed) -> Result<Self, Trouble> {
        debug_assert_eq!((sealed.from, sealed.at), (0, N), "{}", sealed.table);
        let mut values = [ValueRef::Null; N];
        let mut seal = 0;
        for (place, value) in values.iter_mut().enumerate() {
            *value = row.get_ref(place)?;
            seal ^= part(place, *value);
        }
        agree(row, sealed, seal)?;
        Ok(Self { row, table: sealed.table, values })
    }

    /// A column by its place; the name is for the error, and a test compares the two.
    pub(crate) fn get<T: FromSql>(&self, (place, name): (usize, &'static str)) -> Result<T, Trouble> {
        T::column_result(self.values[place]).map_err(|error| self.corrupt(name, &error.to_string()))
    }

    /// Says where what cannot be read stands.
    pub(crate) fn corrupt(&self, name: &str, what: &str) -> Trouble {
        row::corrupt(self.row, name, self.table, what)
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
        seal ^= part_of(place, &value.to_sql()?)?;
    }
    Ok(seal.cast_signed())
}

fn part_of(place: usize, value: &ToSqlOutput<'_>) -> rusqlite::Result<u64> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "an array or a blob of zeroes is bound nowhere here")]
    match value {
        ToSqlOutput::Borrowed(value) => Ok(part(place, *value)),
        ToSqlOutput::Owned(value) => Ok(part(place, value.into())),
        _ => Err(rusqlite::Error::ToSqlConversionFailure("a value that is no plain one".into())),
    }
}

/// Runs an insert: its parameters are the sealed columns in their order, and the seal behind them.
pub(crate) fn execute<'c>(
    statement: &mut impl DerefMut<Target = Statement<'c>>,
    sealed: Sealed,
    values: &[&dyn ToSql],
) -> rusqlite::Result<usize> {
    execute_but(statement, sealed, values, Literal::NONE)
}

/// Columns whose values a statement names itself, by their places: they are under the seal, and no parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Literal(u32);

impl Literal {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn at(places: &[usize]) -> Self {
        let (mut bits, mut next) = (0, 0);
        while next < places.len() {
            bits |= 1 << places[next];
            next += 1;
        }
        Self(bits)
    }
}

/// The same for a statement that names some values itself.
pub(crate) fn execute_but<'c>(
    statement: &mut impl DerefMut<Target = Statement<'c>>,
    sealed: Sealed,
    values: &[&dyn ToSql],
    literal: Literal,
) -> rusqlite::Result<usize> {
    debug_assert_eq!(values.len(), sealed.at - sealed.from, "{}", sealed.table);
    let statement: &mut Statement<'c> = &mut *statement;
    let (mut seal, mut parameter) = (0, 1);
    for (place, value) in (sealed.from..).zip(values) {
        let value = value.to_sql()?;
        seal ^= part_of(place, &value)?;
        if literal.0 >> place & 1 == 0 {
            statement.raw_bind_parameter(parameter, value)?;
            parameter += 1;
        }
    }
    statement.raw_bind_parameter(parameter, seal.cast_signed())?;
    statement.raw_execute()
}

/// What one column adds to a seal. Most columns are numbers, which need no hash: mixed one to one, another number always
/// gives another part.
#[inline]
pub(crate) fn part(place: usize, value: ValueRef<'_>) -> u64 {
    let seed = |kind: u64| mix((place as u64 + 1).wrapping_mul(8) + kind);
    match value {
        ValueRef::Null => seed(0),
        ValueRef::Integer(number) => mix(seed(1) ^ number.cast_unsigned()),
        ValueRef::Real(number) => mix(seed(2) ^ number.to_bits()),
        ValueRef::Text(text) => hash(seed(3), text),
        ValueRef::Blob(bytes) => hash(seed(4), bytes),
    }
}

/// A hash of bytes: sixteen of them, as two numbers, are multiplied with each other and what came before, and the 128 bits
/// of the product folded (the way of wyhash). It has to see damage, not to withstand somebody who looks for collisions.
#[inline]
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    const ODD: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];
    let step = |state: u64, block: &[u8; 16]| {
        let number = u128::from_le_bytes(*block);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of it")]
        let (low, high) = (number as u64, (number >> 64) as u64);
        fold(low ^ ODD[0], high ^ state)
    };
    // The length, so that a text is not the same as one with zeroes behind it.
    let mut state = seed ^ (bytes.len() as u64).wrapping_mul(ODD[1]);
    let (blocks, rest) = bytes.as_chunks();
    for block in blocks {
        state = step(state, block).wrapping_add(ODD[1]);
    }
    if !rest.is_empty() {
        let mut block = [0; 16];
        block[..rest.len()].copy_from_slice(rest);
        state = step(state, &block);
    }
    mix(state)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of it")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

/// The finish of `SplitMix64`: each bit in moves about half of the bits out, and nothing is lost.
#[inline]
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
        crate::migrate::apply(&conn, 0, tidegate_core::Timestamp::EPOCH).unwrap();
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
    fn every_flipped_bit_of_a_text_of_any_length_changes_its_hash() {
        let mut bytes: Vec<u8> = (0..300_u32).map(|at| (at * 167 + 13).to_le_bytes()[0]).collect();
        for len in (0..40).chain([63, 64, 65, 127, 200, 300]) {
            let sound = hash(7, &bytes[..len]);
            for at in 0..len {
                for bit in 0..8 {
                    bytes[at] ^= 1 << bit;
                    assert_ne!(hash(7, &bytes[..len]), sound, "bit {bit} of byte {at} of {len}");
                    bytes[at] ^= 1 << bit;
                }
            }
        }
    }

    #[test]
    fn hashes_do_not_meet_among_texts_that_are_nearly_the_same() {
        let mut seen = std::collections::HashSet::new();
        let mut texts = 0;
        // Runs of one byte of every length, pairs of blocks changed about, and numbers as text.
        for byte in [0, 1, 0xff, b'x'] {
            for len in 1..200 {
                texts += 1;
                seen.insert(hash(3, &vec![byte; len]));
            }
        }
        for number in 0..50_000_u64 {
            texts += 2;
            seen.insert(hash(3, format!("{{\"number\":{number},\"filler\":\"xxxxxxxxxxxxxxxxxxxxxx\"}}").as_bytes()));
            seen.insert(hash(4, &u128::from(number).to_be_bytes()));
        }
        let blocks: Vec<[u8; 16]> = (0..60_u8).map(|n| [n; 16]).collect();
        for first in &blocks {
            for second in blocks.iter().filter(|second| *second != first) {
                texts += 1;
                seen.insert(hash(5, &[*first, *second].concat()));
            }
        }
        assert_eq!(seen.len(), texts);
    }

    #[test]
    fn a_flipped_bit_flips_about_half_of_a_hash() {
        let text = *b"{\"deposit\":\"d-1001\",\"cents\":12345}";
        let sound = hash(9, &text);
        let mut flipped = 0;
        for at in 0..text.len() * 8 {
            let mut other = text;
            other[at / 8] ^= 1 << (at % 8);
            let bits = (hash(9, &other) ^ sound).count_ones();
            assert!(bits > 8, "{bits} bits for bit {at}");
            flipped += bits as usize;
        }
        let mean = flipped / (text.len() * 8);
        assert!((28..=36).contains(&mean), "{mean} of 64 bits on average");
    }

    /// What is stored is compared by every later version.
    #[test]
    fn seals_are_what_they_were() {
        let known = |value: ValueRef<'_>| format!("{:016x}", part(3, value));
        let parts = [
            known(ValueRef::Null),
            known(ValueRef::Integer(-1)),
            known(ValueRef::Real(0.5)),
            known(ValueRef::Text(b"a text of more than sixteen bytes")),
            known(ValueRef::Blob(&[7; 16])),
        ];
        assert_eq!(parts, SEALED_ONCE, "{parts:?}");
    }

    const SEALED_ONCE: [&str; 5] =
        ["adfb1ebb497fad45", "cc0c2e3e7adaec0b", "fdda1ea80d1df06b", "4577c3741eaf200c", "c96e5b84f2cc6347"];

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
