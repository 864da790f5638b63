//! Rows to values and back: the only file that decodes what the tables hold.
//!
//! What does not decode is `Corrupt`, with table, column and row: refused, never served and never deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{FromSql, Value};
use rusqlite::{Row, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectId, EffectKey, EffectPolicy, EffectRow, EffectState};
use tidegate_core::error::StoreError;
use tidegate_core::id::{EffectName, IdempotencyKey, LeaseToken, MessageId, Nonce};
use tidegate_core::lifecycle::{Counters, State};
use tidegate_core::message::Message;
use tidegate_core::token::{TokenHash, TokenRecord};

use crate::group::Lane;
use crate::place::Limits;
use crate::seal::{self, EFFECT, KEY, LEASE, MESSAGE, READY, SCHED, TOKEN, Whole};
use crate::trouble::Trouble;

/// An intent or answer was written for the message.
pub(crate) const JOURNALED: i64 = 1;
/// An earlier run crashed.
pub(crate) const SUSPECT: i64 = 2;
/// An operator asked to cancel it.
pub(crate) const CANCEL: i64 = 4;
/// It runs with nothing else in its process.
pub(crate) const ALONE: i64 = 8;
/// Its run began with an open effect.
pub(crate) const RECONCILING: i64 = 16;
/// When it is called off, its key becomes free.
pub(crate) const RELEASE: i64 = 32;
/// It came with a backup and has not run since: an effect of it may be open of which nothing is known.
pub(crate) const COPIED: i64 = 64;
/// Its payload was erased: it can never run again.
pub(crate) const ERASED: i64 = 128;
/// Its answer was erased.
pub(crate) const ANSWER_ERASED: i64 = 256;
/// A compensation was enqueued when it ended.
pub(crate) const COMPENSATED: i64 = 512;
/// What stays with a message between its runs.
pub(crate) const LASTING: i64 = JOURNALED | SUSPECT | CANCEL | RELEASE | COPIED;

/// What every hot row carries of a message's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) lane: i64,
    pub(crate) due_at: Timestamp,
    pub(crate) counters: Counters,
    pub(crate) flags: i64,
    /// Set by redrive and resolve: `max_age` starts anew and the deadline is waived.
    pub(crate) expires_at: Option<Timestamp>,
    /// Who settled it last and how.
    pub(crate) last: Option<LastSettlement>,
}

/// The settlement that put a row where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastSettlement {
    pub(crate) nonce: [u8; 16],
    pub(crate) digest: [u8; 16],
}

impl Life {
    /// The life of a message that nothing has happened to yet.
    pub(crate) fn unbegun(lane: i64, due_at: Timestamp) -> Self {
        Self { lane, due_at, counters: Counters::default(), flags: 0, expires_at: None, last: None }
    }

    pub(crate) fn has(&self, flag: i64) -> bool {
        self.flags & flag != 0
    }
}

/// A row of `tide_lease`.
#[derive(Debug, Clone)]
pub(crate) struct LeaseRow {
    pub(crate) life: Life,
    pub(crate) token: LeaseToken,
    pub(crate) until: Timestamp,
    pub(crate) worker: Arc<str>,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) flow: Option<MessageId>,
    /// When the message is too late, as its body says.
    pub(crate) limits: Limits,
}

/// Reads one column, or says where the corruption is.
pub(crate) fn column<T: FromSql>(row: &Row<'_>, name: &'static str, table: &str) -> Result<T, Trouble> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other errors of SQLite are not about this column")]
    row.get(name).map_err(|e| match e {
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => corrupt(row, name, table, &e.to_string()),
        other => Trouble::Group(other),
    })
}

pub(crate) fn corrupt(row: &Row<'_>, name: &str, table: &str, what: &str) -> Trouble {
    let id = ["id", "message"].iter().find_map(|column| row.get::<_, i64>(*column).ok());
    let id = id.map_or_else(|| "unknown row".to_owned(), |id| format!("row {id}"));
    Trouble::Item(StoreError::corrupt(&format!("{table}.{name}, {id}"), what))
}

pub(crate) fn time(row: &Row<'_>, name: &'static str, table: &str) -> Result<Timestamp, Trouble> {
    column(row, name, table).map(Timestamp::from_millis)
}

pub(crate) fn maybe_time(row: &Row<'_>, name: &'static str, table: &str) -> Result<Option<Timestamp>, Trouble> {
    Ok(column::<Option<i64>>(row, name, table)?.map(Timestamp::from_millis))
}

/// A column of whole milliseconds.
pub(crate) fn duration(row: &Row<'_>, name: &'static str, table: &str) -> Result<Duration, Trouble> {
    let millis: i64 = column(row, name, table)?;
    let millis = u64::try_from(millis).map_err(|e| corrupt(row, name, table, &e.to_string()))?;
    Ok(Duration::from_millis(millis))
}

/// The hot tables' columns are read by their places, all at once: looking names up was measured as a tenth of a claim, and
/// asking for a column twice as another. Migrations only add columns behind, so places stay; a test compares them with the
/// tables.
type At = (usize, &'static str);

impl<const N: usize> Whole<'_, '_, N> {
    fn time(&self, at: At) -> Result<Timestamp, Trouble> {
        self.get(at).map(Timestamp::from_millis)
    }

    fn maybe_time(&self, at: At) -> Result<Option<Timestamp>, Trouble> {
        Ok(self.get::<Option<i64>>(at)?.map(Timestamp::from_millis))
    }

    fn duration(&self, at: At) -> Result<Duration, Trouble> {
        let millis = u64::try_from(self.get::<i64>(at)?).map_err(|e| self.corrupt(at.1, &e.to_string()))?;
        Ok(Duration::from_millis(millis))
    }

    fn id(&self, at: At) -> Result<Option<MessageId>, Trouble> {
        Ok(self.get::<Option<i64>>(at)?.map(MessageId::from_i64))
    }

    /// The counters where the ready and leased tables have them.
    fn counters(&self) -> Result<Counters, Trouble> {
        Ok(Counters {
            claims: self.get((3, "claims"))?,
            attempt: self.get((4, "attempt"))?,
            crashes: self.get((5, "crashes"))?,
            generation: self.get((6, "generation"))?,
            round: self.get((7, "round"))?,
        })
    }
}

/// A column whose text must parse.
pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    row: &Row<'_>,
    name: &'static str,
    table: &str,
) -> Result<T, Trouble> {
    let text: String = column(row, name, table)?;
    text.parse().map_err(|e: T::Err| corrupt(row, name, table, &e.to_string()))
}

pub(crate) fn counters(row: &Row<'_>, table: &str) -> Result<Counters, Trouble> {
    Ok(Counters {
        claims: column(row, "claims", table)?,
        attempt: column(row, "attempt", table)?,
        crashes: column(row, "crashes", table)?,
        generation: column(row, "generation", table)?,
        round: column(row, "round", table)?,
    })
}

/// The settlement noted in a row that has `last_nonce` and `last_digest`.
pub(crate) fn last_settlement(row: &Row<'_>, table: &str) -> Result<Option<LastSettlement>, Trouble> {
    let Some(nonce) = column(row, "last_nonce", table)? else { return Ok(None) };
    Ok(Some(LastSettlement { nonce, digest: column(row, "last_digest", table)? }))
}

/// A row of `tide_ready` or `tide_sched`, selected with `*`.
pub(crate) fn life(row: &Row<'_>, table: &str) -> Result<Life, Trouble> {
    Ok(place_in_line(row, table)?.1)
}

/// The same, with the message it is about.
pub(crate) fn place_in_line(row: &Row<'_>, table: &str) -> Result<(MessageId, Life), Trouble> {
    // Both tables have the same columns, so that rows move between them as they are.
    let row = Whole::<{ READY.at }>::read(row, if table == SCHED.table { SCHED } else { READY })?;
    let last = match row.get((10, "last_nonce"))? {
        Some(nonce) => Some(LastSettlement { nonce, digest: row.get((11, "last_digest"))? }),
        None => None,
    };
    let life = Life {
        lane: row.get((0, "lane"))?,
        due_at: row.time((1, "due_at"))?,
        counters: row.counters()?,
        flags: row.get((8, "flags"))?,
        expires_at: row.maybe_time((9, "expires_at"))?,
        last,
    };
    Ok((MessageId::from_i64(row.get((2, "id"))?), life))
}

/// A row of `tide_lease`, selected with `*`.
pub(crate) fn lease(row: &Row<'_>) -> Result<LeaseRow, Trouble> {
    let row = Whole::<{ LEASE.at }>::read(row, LEASE)?;
    let counters = row.counters()?;
    let enqueued_at = row.time((13, "enqueued_at"))?;
    let limits = Limits::from_columns(
        row.maybe_time((15, "first_due_at"))?.unwrap_or(enqueued_at),
        row.maybe_time((16, "deadline"))?,
        row.duration((17, "max_age_ms"))?,
    );
    Ok(LeaseRow {
        life: Life {
            lane: row.get((1, "lane"))?,
            due_at: row.time((2, "due_at"))?,
            counters,
            flags: row.get((8, "flags"))?,
            expires_at: row.maybe_time((9, "expires_at"))?,
            // A settlement is repeated until its message is claimed again; then its token is an old one.
            last: None,
        },
        token: LeaseToken { claims: counters.claims, nonce: Nonce::from_bytes(row.get((10, "nonce"))?) },
        until: row.time((11, "until"))?,
        worker: row.get((12, "worker"))?,
        enqueued_at,
        flow: row.id((14, "flow"))?,
        limits,
    })
}

/// A row of `tide_message`, selected with `*`.
pub(crate) fn message(row: &Row<'_>, lane: &Lane) -> Result<Message, Trouble> {
    let row = Whole::<{ MESSAGE.at }>::read(row, MESSAGE)?;
    let id = MessageId::from_i64(row.get((0, "id"))?);
    let enqueued_at = row.time((4, "enqueued_at"))?;
    let first_due_at = row.maybe_time((5, "first_due_at"))?.unwrap_or(enqueued_at);
    let key = IdempotencyKey::new(row.get::<String>((2, "key"))?).map_err(|e| row.corrupt("key", e.what()))?;
    let payload: Arc<str> = row.get((3, "payload"))?;
    let headers = match row.get::<Option<String>>((10, "headers"))? {
        Some(text) => serde_json::from_str(&text).map_err(|e| row.corrupt("headers", &e.to_string()))?,
        None => BTreeMap::new(),
    };
    let max_age = row.duration((7, "max_age_ms"))?;
    Ok(Message {
        id,
        tenant: lane.tenant.clone(),
        queue: lane.queue.clone(),
        kind: lane.kind.clone(),
        version: lane.version,
        key,
        payload,
        priority: lane.priority,
        enqueued_at,
        first_due_at,
        deadline: row.maybe_time((6, "deadline"))?,
        // A delay that was asked for is no ageing.
        expires_at: first_due_at.after(max_age),
        flow: row.id((8, "flow"))?.unwrap_or(id),
        parent: row.id((9, "parent"))?,
        headers,
    })
}

/// When a message is too late, from a row of `tide_message`, selected with `*`.
pub(crate) fn limits(row: &Row<'_>) -> Result<Limits, Trouble> {
    let row = Whole::<{ MESSAGE.at }>::read(row, MESSAGE)?;
    let due_at = match row.maybe_time((5, "first_due_at"))? {
        Some(due_at) => due_at,
        None => row.time((4, "enqueued_at"))?,
    };
    let max_age = row.duration((7, "max_age_ms"))?;
    Ok(Limits { deadline: row.maybe_time((6, "deadline"))?, expires_at: due_at.after(max_age), max_age })
}

/// The key of a row of `tide_message`, selected with `*`.
pub(crate) fn key(row: &Row<'_>) -> Result<IdempotencyKey, Trouble> {
    seal::check(row, MESSAGE)?;
    let key: String = column(row, "key", "tide_message")?;
    IdempotencyKey::new(key).map_err(|e| corrupt(row, "key", "tide_message", e.what()))
}

/// A row of `tide_key`, selected with `*`: the message and the fingerprint of its payload.
pub(crate) fn known_key(row: &Row<'_>) -> Result<(MessageId, [u8; 16]), Trouble> {
    let table = "tide_key";
    seal::check(row, KEY)?;
    Ok((MessageId::from_i64(column(row, "id", table)?), column(row, "fingerprint", table)?))
}

/// A row of `tide_token`, selected with `*`.
pub(crate) fn token(row: &Row<'_>) -> Result<TokenRecord, Trouble> {
    let table = "tide_token";
    seal::check(row, TOKEN)?;
    let scopes: String = column(row, "scopes", table)?;
    Ok(TokenRecord {
        name: parsed(row, "name", table)?,
        hash: TokenHash::from_bytes(column(row, "hash", table)?),
        scopes: serde_json::from_str(&scopes).map_err(|e| corrupt(row, "scopes", table, &e.to_string()))?,
        tenant: parsed(row, "tenant", table)?,
        created_at: time(row, "created_at", table)?,
        expires_at: maybe_time(row, "expires_at", table)?,
        revoked_at: maybe_time(row, "revoked_at", table)?,
    })
}

/// How an effect's item is stored: a primary key holds no nulls, and an empty item is not the absence of one.
pub(crate) fn stored_item(effect: &EffectId) -> String {
    effect.item.as_ref().map_or_else(String::new, |item| format!("={item}"))
}

/// The effect of a row that has `name` and `item`.
pub(crate) fn effect_id(row: &Row<'_>, table: &str) -> Result<EffectId, Trouble> {
    let item: String = column(row, "item", table)?;
    let item = match item.strip_prefix('=') {
        Some(item) => Some(item.to_owned()),
        None if item.is_empty() => None,
        None => return Err(corrupt(row, "item", table, "an item begins with =")),
    };
    Ok(EffectId { name: parsed::<EffectName>(row, "name", table)?, item })
}

/// A row of `tide_effect`, selected with `*`.
pub(crate) fn effect(row: &Row<'_>) -> Result<EffectRow, Trouble> {
    let table = "tide_effect";
    seal::check(row, EFFECT)?;
    let policy: String = column(row, "policy", table)?;
    let policy: EffectPolicy =
        serde_json::from_str(&policy).map_err(|e| corrupt(row, "policy", table, &e.to_string()))?;
    let key: String = column(row, "key", table)?;
    Ok(EffectRow {
        effect: effect_id(row, table)?,
        seq: column(row, "seq", table)?,
        policy,
        key: EffectKey::from_stored(&key),
        request_hash: column(row, "request_hash", table)?,
        round: column(row, "round", table)?,
        token: LeaseToken {
            claims: column(row, "claims", table)?,
            nonce: Nonce::from_bytes(column(row, "nonce", table)?),
        },
        sends: column(row, "sends", table)?,
        first_intent_at: time(row, "first_intent_at", table)?,
        last_possible_send: time(row, "last_possible_send", table)?,
        valid_until: maybe_time(row, "valid_until", table)?,
        quarantine: duration(row, "quarantine_ms", table)?,
        reconcile_until: time(row, "reconcile_until", table)?,
        state: effect_state(row)?,
    })
}

fn effect_state(row: &Row<'_>) -> Result<EffectState, Trouble> {
    let table = "tide_effect";
    let state: String = column(row, "state", table)?;
    let value = || column::<String>(row, "value", table);
    match state.as_str() {
        "intent" => Ok(EffectState::Intent),
        "unknown" => Ok(EffectState::Unknown { why: value()? }),
        "confirmed" => Ok(EffectState::Confirmed { value: value()?.into() }),
        "rejected" => Ok(EffectState::Rejected { code: value()?, detail: column(row, "detail", table)? }),
        "not_done" => Ok(EffectState::NotDone),
        other => Err(corrupt(row, "state", table, &format!("no such state {other:?}"))),
    }
}

/// The columns `value` and `detail` of an effect's state.
pub(crate) fn effect_values(state: &EffectState) -> (Option<&str>, Option<&str>) {
    match state {
        EffectState::Intent | EffectState::NotDone => (None, None),
        EffectState::Unknown { why } => (Some(why), None),
        EffectState::Confirmed { value } => (Some(value), None),
        EffectState::Rejected { code, detail } => (Some(code), Some(detail)),
    }
}

/// Writes a row of the journal, over the one of the same effect and number.
pub(crate) fn put_effect(conn: &rusqlite::Connection, id: MessageId, row: &EffectRow) -> Result<(), Trouble> {
    const PUT: &str = "-- journal: one row for each intent, replaced by its own later states
        insert or replace into tide_effect values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19,
            ?20)";
    let policy = serde_json::to_string(&row.policy).expect("a policy is plain data");
    let (value, detail) = effect_values(&row.state);
    let put = params![
        id.as_i64(),
        row.effect.name.as_str(),
        stored_item(&row.effect),
        row.seq,
        policy,
        row.key.as_str(),
        row.request_hash,
        row.round,
        row.token.claims,
        row.token.nonce.as_bytes(),
        row.sends,
        row.first_intent_at.as_millis(),
        row.last_possible_send.as_millis(),
        row.valid_until.map(Timestamp::as_millis),
        millis(row.quarantine),
        row.reconcile_until.as_millis(),
        row.state.as_str(),
        value,
        detail,
    ];
    seal::execute(&mut conn.prepare_cached(PUT)?, EFFECT, put)?;
    Ok(())
}

/// A duration as an engine stores it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The state of a row of `tide_result` or `tide_held`.
pub(crate) fn state(row: &Row<'_>, table: &str) -> Result<State, Trouble> {
    parsed(row, "state", table)
}

/// A list of numbers as one argument: SQLite reads it with `json_each`.
pub(crate) fn id_list(ids: &[i64]) -> Value {
    Value::Text(serde_json::to_string(ids).expect("numbers are JSON"))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn every_flag_is_a_bit_of_its_own() {
        let flags =
            [JOURNALED, SUSPECT, CANCEL, ALONE, RECONCILING, RELEASE, COPIED, ERASED, ANSWER_ERASED, COMPENSATED];
        for (place, flag) in flags.iter().enumerate() {
            assert_eq!(flag.count_ones(), 1, "{flag}");
            assert!(!flags[..place].contains(flag), "{flag} stands for two things");
        }
    }

    #[test]
    fn columns_that_are_read_by_place_are_there() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(include_str!("../migrations/0001_init.sql")).unwrap();
        let counters = ["claims", "attempt", "crashes", "generation", "round", "flags", "expires_at"];
        let [ready, lease] =
            [["lane", "due_at", "id"], ["id", "lane", "due_at"]].map(|head| [&head[..], &counters].concat());
        let ready = [&ready[..], &["last_nonce", "last_digest"]].concat();
        let lease = [&lease[..], &["nonce", "until", "worker", "enqueued_at", "flow"]].concat();
        let lease = [&lease[..], &["first_due_at", "deadline", "max_age_ms"]].concat();
        let message = vec![
            "id",
            "lane",
            "key",
            "payload",
            "enqueued_at",
            "first_due_at",
            "deadline",
            "max_age_ms",
            "flow",
            "parent",
            "headers",
        ];
        for (table, places) in
            [("tide_ready", &ready), ("tide_sched", &ready), ("tide_lease", &lease), ("tide_message", &message)]
        {
            let statement = conn.prepare(&format!("select * from {table}")).unwrap();
            let columns: Vec<&str> = statement.column_names().take(places.len()).collect();
            assert_eq!(columns, **places, "{table}");
        }
    }
}
