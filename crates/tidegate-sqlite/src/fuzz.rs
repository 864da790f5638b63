//! Rows as a file may hold them, as a target of `crates/tidegate-fuzz`: it takes any bytes, and panics where a promise is
//! broken.
//!
//! A row that another program wrote, or that bits were flipped in, is `Corrupt` with its table: never a panic, never the end
//! of the group it was read in, and never a value whose seal is another one's.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreErrorKind;
use tidegate_core::id::{Kind, MessageId, QueueName, Tenant};
use tidegate_core::message::Priority;

use crate::group::Lane;
use crate::row;
use crate::seal::{self, EFFECT, KEY, LEASE, MESSAGE, READY, SCHED, Sealed, TOKEN};
use crate::trouble::Trouble;

/// The tables whose rows are decoded.
const TABLES: [Sealed; 7] = [READY, SCHED, LEASE, MESSAGE, KEY, EFFECT, TOKEN];

thread_local! {
    /// A store's tables, for the names of their columns and to write a row anew.
    static TABLES_OF_A_STORE: Connection = tables();
}

fn tables() -> Connection {
    let conn = Connection::open_in_memory().expect("memory is there");
    seal::teach(&conn).expect("a connection takes functions");
    crate::migrate::apply(&conn, 0, Timestamp::EPOCH).expect("the migrations make a store");
    conn
}

/// A row: which table, whether its seal is its own, and what is in each column.
pub fn row(bytes: &[u8]) {
    let [table, sealed, rest @ ..] = bytes else { return };
    let sealed_as = TABLES[usize::from(*table) % TABLES.len()];
    TABLES_OF_A_STORE.with(|conn| decode(conn, sealed_as, sealed % 4 != 0, rest));
}

fn decode(conn: &Connection, sealed: Sealed, is_own_seal: bool, mut bytes: &[u8]) {
    let columns: Vec<String> = {
        let statement = conn.prepare_cached(&format!("select * from {}", sealed.table)).expect("the table is there");
        statement.column_names().map(str::to_owned).collect()
    };
    let mut values: Vec<Value> = columns.iter().map(|column| value(column, &mut bytes)).collect();
    let seal = (sealed.from..sealed.at).fold(0, |seal, place| seal ^ seal::part(place, (&values[place]).into()));
    let seal = if is_own_seal { seal } else { !seal };
    values[sealed.at] = Value::Integer(seal.cast_signed());
    let named: Vec<String> =
        columns.iter().enumerate().map(|(place, column)| format!("?{} as \"{column}\"", place + 1)).collect();
    let mut statement = conn.prepare_cached(&format!("select {}", named.join(", "))).expect("a row of parameters");
    let mut rows = statement.query(params_from_iter(&values)).expect("plain values can be bound");
    let read = rows.next().expect("it needs no table").expect("it is one row");
    let told = read_as(read, sealed);
    if !is_own_seal {
        assert!(told.is_err(), "a row of {} whose seal is not its own was read: {values:?}", sealed.table);
    }
    match told {
        Ok(Some(effect)) => written_again(conn, &effect),
        Ok(None) => {}
        Err(Trouble::Item(error)) => {
            assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error:?}");
            assert!(error.what().contains(sealed.table), "{error:?} does not say where");
        }
        Err(Trouble::Group(error)) => panic!("a row of {} ends its group: {error}: {values:?}", sealed.table),
    }
}

fn read_as(row: &Row<'_>, sealed: Sealed) -> Result<Option<EffectRow>, Trouble> {
    match sealed.table {
        "tide_lease" => row::lease(row).map(|_| None),
        "tide_message" => {
            row::key(row)?;
            row::limits(row)?;
            row::message(row, &lane()).map(|_| None)
        }
        "tide_key" => row::known_key(row).map(|_| None),
        "tide_effect" => row::effect(row).map(Some),
        "tide_token" => row::token(row).map(|_| None),
        table => row::place_in_line(row, table).map(|_| None),
    }
}

/// What was read is written, and is then the same.
fn written_again(conn: &Connection, effect: &EffectRow) {
    row::put_effect(conn, MessageId::from_i64(7), effect)
        .unwrap_or_else(|error| panic!("{effect:?} was read and cannot be written: {:?}", error.into_store_error()));
    let mut statement = conn.prepare_cached("select * from tide_effect").expect("the table is there");
    let read = statement.query_row([], |row| Ok(row::effect(row))).expect("it was written");
    conn.execute("delete from tide_effect", []).expect("it can be removed");
    let read = read.unwrap_or_else(|error| panic!("{effect:?} was written: {:?}", error.into_store_error()));
    assert_eq!(read, *effect);
}

fn lane() -> Lane {
    Lane {
        id: 1,
        queue_id: 1,
        tenant: Tenant::default(),
        queue: QueueName::new("q").expect("a name"),
        kind: Kind::new("k").expect("a name"),
        version: 1,
        priority: Priority::default(),
    }
}

/// The next value of a column: any of SQLite's, or one that a store would have written.
fn value(column: &str, bytes: &mut &[u8]) -> Value {
    let tag = take(bytes, 1).first().copied().unwrap_or_default();
    match tag % 8 {
        0 => Value::Null,
        1 => Value::Integer(i64::from_le_bytes(padded(take(bytes, 8)))),
        2 => Value::Real(f64::from_le_bytes(padded(take(bytes, 8)))),
        3 => Value::Text(String::from_utf8_lossy(take(bytes, usize::from(tag) / 4)).into_owned()),
        4 => Value::Blob(take(bytes, usize::from(tag) / 4).to_vec()),
        _ => usual(column, i64::from(tag / 8)),
    }
}

fn usual(column: &str, n: i64) -> Value {
    let one_of = |texts: &[&str]| {
        let at = usize::try_from(n).unwrap_or_default() % texts.len();
        Value::Text(texts[at].to_owned())
    };
    match column {
        "nonce" | "last_nonce" | "last_digest" | "fingerprint" | "request_hash" => Value::Blob(vec![7; 16]),
        "hash" => Value::Blob(vec![7; 32]),
        "key" | "name" | "worker" | "payload" | "detail" | "value" => one_of(&["a", "1", "charge", "\"x\""]),
        "item" => one_of(&["", "=", "=1"]),
        "state" => one_of(&["intent", "unknown", "confirmed", "rejected", "not_done"]),
        "scopes" => one_of(&["[]", "[\"work:*\"]", "[\"read:pay.*\",\"produce:*\"]"]),
        "tenant" => one_of(&["", "*", "acme"]),
        "headers" => one_of(&["{}", "{\"traceparent\":\"x\"}"]),
        "policy" => one_of(&[
            r#"{"policy":"lookup"}"#,
            r#"{"policy":"at_most_once"}"#,
            r#"{"policy":"keyed","window_ms":1000,"or_lookup":true}"#,
        ]),
        _ => Value::Integer(n),
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n.min(bytes.len()));
    *bytes = rest;
    taken
}

fn padded(bytes: &[u8]) -> [u8; 8] {
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}
