//! Rows to values: the only file that decodes what the tables hold.
//!
//! What does not decode is `Corrupt`, with table, column and row: refused, never served and never deleted.
//!
//! Hot rows are read by place: a statement names their columns with the macros of this file, in the order in which the
//! functions beside them read them, from the place at which they begin. Everything else is read by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectId, EffectKey, EffectPolicy, EffectRow, EffectState};
use tidegate_core::error::StoreError;
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant};
use tidegate_core::lifecycle::{Counters, State};
use tidegate_core::message::{Answer, Failure, Message, Priority};
use tidegate_core::retry::Policy;
use tidegate_core::store::Progress;
use tidegate_core::token::{TokenHash, TokenRecord};
use tokio_postgres::Row;
use tokio_postgres::row::RowIndex;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::names::{Lane, Queue};
use crate::place::{Ended, Limits};
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
/// It was here when the store was restored and has not run since: an effect of it may be open of which nothing is known.
pub(crate) const COPIED: i64 = 64;
/// Its payload was erased: it can never run again.
pub(crate) const ERASED: i64 = 128;
/// Its answer was erased.
pub(crate) const ANSWER_ERASED: i64 = 256;
/// A compensation was enqueued when it ended.
pub(crate) const COMPENSATED: i64 = 512;
/// What stays with a message between its runs.
pub(crate) const LASTING: i64 = JOURNALED | SUSPECT | CANCEL | RELEASE | COPIED;

/// Columns of a row `r` of `ready` or `sched`, as [`life`] reads them.
macro_rules! life_columns {
    () => {
        "r.id, r.lane, r.due_at, r.expires_at, r.claims, r.attempt, r.crashes, r.generation, r.round, r.flags, \
         r.last_nonce, r.last_digest"
    };
}
/// How many they are.
pub(crate) const LIFE_COLUMNS: usize = 12;

/// Columns of a row `l` of `lease`, as [`lease`] reads them: the worker's name is that of its claim.
macro_rules! lease_columns {
    () => {
        "l.id, l.lane, l.due_at, l.expires_at, l.claims, l.attempt, l.crashes, l.generation, l.round, l.flags, \
         l.nonce, l.until, coalesce(l.worker, (select c.worker from tidegate.claimed c where c.nonce = l.nonce), \
         'unknown'), l.enqueued_at, l.flow, l.first_due_at, l.deadline, l.max_age_ms"
    };
}

/// The same for whoever holds it, and need not be told who that is.
macro_rules! held_lease_columns {
    () => {
        "l.id, l.lane, l.due_at, l.expires_at, l.claims, l.attempt, l.crashes, l.generation, l.round, l.flags, \
         l.nonce, l.until, l.worker, l.enqueued_at, l.flow, l.first_due_at, l.deadline, l.max_age_ms"
    };
}

/// Columns of a row `m` of `message`, as [`message`] reads them.
macro_rules! message_columns {
    () => {
        "m.id, m.lane, m.key, m.payload, m.enqueued_at, m.first_due_at, m.deadline, m.age_limit_ms, m.flow, m.parent, \
         m.headers"
    };
}

pub(crate) use {held_lease_columns, lease_columns, life_columns, message_columns};

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

/// A row of `lease`.
#[derive(Debug, Clone)]
pub(crate) struct LeaseRow {
    pub(crate) life: Life,
    pub(crate) token: LeaseToken,
    pub(crate) until: Timestamp,
    /// Empty where it was not read.
    pub(crate) worker: String,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) flow: Option<MessageId>,
    /// When the message is too late, as its body says.
    pub(crate) limits: Limits,
}

/// Where a row lies in its table: PostgreSQL's tuple identifier, the system column `ctid`. It stays true for as long as this
/// transaction has the row locked and does not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tid([u8; 6]);

impl<'a> FromSql<'a> for Tid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.try_into()?))
    }

    accepts!(TID);
}

impl ToSql for Tid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    accepts!(TID);
    to_sql_checked!();
}

/// Reads one column, by name or place, or says where the corruption is.
pub(crate) fn column<'a, T, I>(row: &'a Row, column: I, table: &str) -> Result<T, Trouble>
where
    T: FromSql<'a>,
    I: RowIndex + fmt::Display + Copy,
{
    row.try_get(column).map_err(|e| corrupt(row, column, table, &e.to_string()))
}

fn corrupt(row: &Row, column: impl fmt::Display, table: &str, what: &str) -> Trouble {
    let id = ["id", "message"].iter().find_map(|column| row.try_get::<_, i64>(*column).ok());
    let id = id.map_or_else(|| "unknown row".to_owned(), |id| format!("row {id}"));
    Trouble::Item(StoreError::corrupt(&format!("{table}.{column}, {id}"), what))
}

/// The first column of the only row, a truth value.
pub(crate) fn first_bool(rows: &[Row]) -> Result<bool, Trouble> {
    rows.first().map_or(Ok(false), |row| column(row, 0, "answer"))
}

/// The first column of the only row, a number; 0 without a row.
pub(crate) fn first_i64(rows: &[Row]) -> Result<i64, Trouble> {
    rows.first().map_or(Ok(0), |row| column(row, 0, "answer"))
}

pub(crate) fn time<I>(row: &Row, name: I, table: &str) -> Result<Timestamp, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    column(row, name, table).map(Timestamp::from_millis)
}

pub(crate) fn maybe_time<I>(row: &Row, name: I, table: &str) -> Result<Option<Timestamp>, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    Ok(column::<Option<i64>, _>(row, name, table)?.map(Timestamp::from_millis))
}

pub(crate) fn message_id<I>(row: &Row, name: I, table: &str) -> Result<MessageId, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    column(row, name, table).map(MessageId::from_i64)
}

/// A column of whole milliseconds.
pub(crate) fn duration<I>(row: &Row, name: I, table: &str) -> Result<Duration, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    Ok(Duration::from_millis(unsigned(row, name, table)?))
}

/// How old a message may become for which nothing is stored, for ever: another default of a later program is stored as it is.
const USUAL_MAX_AGE: Duration = Duration::from_secs(3 * 24 * 3600);

/// A column of how old a message may become.
pub(crate) fn max_age<I>(row: &Row, name: I, table: &str) -> Result<Duration, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    if column::<Option<i64>, _>(row, name, table)?.is_none() {
        return Ok(USUAL_MAX_AGE);
    }
    duration(row, name, table)
}

/// What is stored of how old a message may become.
pub(crate) fn stored_max_age(ms: i64) -> Option<i64> {
    (ms != millis(USUAL_MAX_AGE)).then_some(ms)
}

/// A column that is never negative.
pub(crate) fn unsigned<T, I>(row: &Row, name: I, table: &str) -> Result<T, Trouble>
where
    T: TryFrom<i64, Error: fmt::Display>,
    I: RowIndex + fmt::Display + Copy,
{
    let value: i64 = column(row, name, table)?;
    T::try_from(value).map_err(|e| corrupt(row, name, table, &e.to_string()))
}

/// The same of a narrow column; where there is nothing, it is 0.
pub(crate) fn count<I>(row: &Row, name: I, table: &str) -> Result<u32, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    let value: i32 = column::<Option<i32>, _>(row, name, table)?.unwrap_or(0);
    u32::try_from(value).map_err(|e| corrupt(row, name, table, &e.to_string()))
}

/// A column whose text must parse.
pub(crate) fn parsed<T: std::str::FromStr<Err: fmt::Display>>(
    row: &Row,
    name: &'static str,
    table: &str,
) -> Result<T, Trouble> {
    let text: &str = column(row, name, table)?;
    text.parse().map_err(|e: T::Err| corrupt(row, name, table, &e.to_string()))
}

/// Sixteen bytes.
pub(crate) fn bytes16<I>(row: &Row, name: I, table: &str) -> Result<[u8; 16], Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    let bytes: &[u8] = column(row, name, table)?;
    bytes.try_into().map_err(|_| corrupt(row, name, table, &format!("{} bytes instead of 16", bytes.len())))
}

fn maybe_bytes16<I>(row: &Row, name: I, table: &str) -> Result<Option<[u8; 16]>, Trouble>
where
    I: RowIndex + fmt::Display + Copy,
{
    let Some(bytes) = column::<Option<&[u8]>, _>(row, name, table)? else { return Ok(None) };
    let sixteen = bytes.try_into();
    sixteen.map(Some).map_err(|_| corrupt(row, name, table, &format!("{} bytes instead of 16", bytes.len())))
}

/// Five counters and the flags, from this place on.
fn counters_at(row: &Row, at: usize, table: &str) -> Result<(Counters, i64), Trouble> {
    let counters = Counters {
        claims: count(row, at, table)?,
        attempt: count(row, at + 1, table)?,
        crashes: count(row, at + 2, table)?,
        generation: count(row, at + 3, table)?,
        round: count(row, at + 4, table)?,
    };
    Ok((counters, i64::from(column::<i32, _>(row, at + 5, table)?)))
}

fn counters(row: &Row, table: &str) -> Result<Counters, Trouble> {
    Ok(Counters {
        claims: count(row, "claims", table)?,
        attempt: count(row, "attempt", table)?,
        crashes: count(row, "crashes", table)?,
        generation: count(row, "generation", table)?,
        round: count(row, "round", table)?,
    })
}

/// The settlement noted in a row that has `last_nonce` and `last_digest`.
fn last_settlement(row: &Row, table: &str) -> Result<Option<LastSettlement>, Trouble> {
    let Some(nonce) = maybe_bytes16(row, "last_nonce", table)? else { return Ok(None) };
    Ok(Some(LastSettlement { nonce, digest: bytes16(row, "last_digest", table)? }))
}

/// The columns of [`life_columns`], from this place on.
pub(crate) fn life(row: &Row, at: usize, table: &str) -> Result<(MessageId, Life), Trouble> {
    let (counters, flags) = counters_at(row, at + 4, table)?;
    let last = match maybe_bytes16(row, at + 10, table)? {
        Some(nonce) => Some(LastSettlement { nonce, digest: bytes16(row, at + 11, table)? }),
        None => None,
    };
    let life = Life {
        lane: column(row, at + 1, table)?,
        due_at: time(row, at + 2, table)?,
        counters,
        flags,
        expires_at: maybe_time(row, at + 3, table)?,
        last,
    };
    Ok((message_id(row, at, table)?, life))
}

/// The columns of [`lease_columns`] or [`held_lease_columns`], from this place on.
pub(crate) fn lease(row: &Row, at: usize) -> Result<(MessageId, LeaseRow), Trouble> {
    let table = "lease";
    let (counters, flags) = counters_at(row, at + 4, table)?;
    let due_at = time(row, at + 2, table)?;
    let enqueued_at = maybe_time(row, at + 13, table)?.unwrap_or(due_at);
    let limits = Limits::from_columns(
        maybe_time(row, at + 15, table)?.unwrap_or(enqueued_at),
        maybe_time(row, at + 16, table)?,
        max_age(row, at + 17, table)?,
    );
    let lease = LeaseRow {
        life: Life {
            lane: column(row, at + 1, table)?,
            due_at,
            counters,
            flags,
            expires_at: maybe_time(row, at + 3, table)?,
            // A settlement is repeated until its message is claimed again; then its token is an old one.
            last: None,
        },
        token: LeaseToken { claims: counters.claims, nonce: Nonce::from_bytes(bytes16(row, at + 10, table)?) },
        until: time(row, at + 11, table)?,
        worker: column::<Option<String>, _>(row, at + 12, table)?.unwrap_or_default(),
        enqueued_at,
        flow: column::<Option<i64>, _>(row, at + 14, table)?.map(MessageId::from_i64),
        limits,
    };
    Ok((message_id(row, at, table)?, lease))
}

/// The columns of [`message_columns`], from this place on.
pub(crate) fn message(row: &Row, at: usize, lane: &Lane) -> Result<Message, Trouble> {
    let table = "message";
    let id = message_id(row, at, table)?;
    let enqueued_at = time(row, at + 4, table)?;
    let first_due_at = maybe_time(row, at + 5, table)?.unwrap_or(enqueued_at);
    let key: &str = column(row, at + 2, table)?;
    let payload: &str = column(row, at + 3, table)?;
    let headers = match column::<Option<&str>, _>(row, at + 10, table)? {
        Some(text) => serde_json::from_str(text).map_err(|e| corrupt(row, "headers", table, &e.to_string()))?,
        None => BTreeMap::new(),
    };
    let max_age = max_age(row, at + 7, table)?;
    Ok(Message {
        id,
        tenant: lane.tenant.clone(),
        queue: lane.queue.clone(),
        kind: lane.kind.clone(),
        version: lane.version,
        key: IdempotencyKey::new(key).map_err(|e| corrupt(row, "key", table, e.what()))?,
        payload: payload.into(),
        priority: lane.priority,
        enqueued_at,
        first_due_at,
        deadline: maybe_time(row, at + 6, table)?,
        // A delay that was asked for is no ageing.
        expires_at: first_due_at.after(max_age),
        flow: column::<Option<i64>, _>(row, at + 8, table)?.map_or(id, MessageId::from_i64),
        parent: column::<Option<i64>, _>(row, at + 9, table)?.map(MessageId::from_i64),
        headers,
    })
}

/// The lane of a message, where its columns begin at this place.
pub(crate) fn message_lane(row: &Row, at: usize) -> Result<i64, Trouble> {
    column(row, at + 1, "message")
}

/// When a message is too late, from the columns of [`message_columns`].
pub(crate) fn limits(row: &Row, at: usize) -> Result<Limits, Trouble> {
    let table = "message";
    let enqueued_at = time(row, at + 4, table)?;
    Ok(Limits::from_columns(
        maybe_time(row, at + 5, table)?.unwrap_or(enqueued_at),
        maybe_time(row, at + 6, table)?,
        max_age(row, at + 7, table)?,
    ))
}

/// A row of `result`, selected with all its columns under their names.
pub(crate) fn ended_result(row: &Row) -> Result<Ended, Trouble> {
    let table = "result";
    let state = state(row, table)?;
    let code: Option<String> = column(row, "code", table)?;
    let body: Option<String> = column(row, "body", table)?;
    let failure = code.map(|code| Failure { code, detail: body.clone().unwrap_or_default() });
    Ok(Ended {
        state,
        at: time(row, "at", table)?,
        lane: column(row, "lane", table)?,
        counters: counters(row, table)?,
        flags: i64::from(column::<i32, _>(row, "flags", table)?),
        reason: None,
        failure,
        body: body.filter(|_| state == State::Completed),
        last: last_settlement(row, table)?,
        expires_at: maybe_time(row, "expires_at", table)?,
        discarded_at: None,
    })
}

/// A row of `held`, selected with all its columns under their names.
pub(crate) fn ended_held(row: &Row) -> Result<Ended, Trouble> {
    let table = "held";
    let code: Option<String> = column(row, "code", table)?;
    let detail: Option<String> = column(row, "detail", table)?;
    Ok(Ended {
        state: state(row, table)?,
        at: time(row, "at", table)?,
        lane: column(row, "lane", table)?,
        counters: counters(row, table)?,
        flags: i64::from(column::<i32, _>(row, "flags", table)?),
        reason: Some(column(row, "reason", table)?),
        failure: code.map(|code| Failure { code, detail: detail.clone().unwrap_or_default() }),
        body: None,
        last: last_settlement(row, table)?,
        expires_at: maybe_time(row, "expires_at", table)?,
        discarded_at: maybe_time(row, "discarded_at", table)?,
    })
}

/// A row with `id`, `tenant`, `name`, `paused` and `max_depth` of a queue.
pub(crate) fn queue(row: &Row) -> Result<Queue, Trouble> {
    let table = "queue";
    let tenant: &str = column(row, "tenant", table)?;
    Ok(Queue {
        id: column(row, "id", table)?,
        tenant: Tenant::new(tenant)?,
        name: parsed::<QueueName>(row, "name", table)?,
        paused: column(row, "paused", table)?,
        max_depth: column(row, "max_depth", table)?,
    })
}

/// A row with `id`, `queue`, `kind`, `version`, `priority` of a lane, and `tenant` and `name` of its queue.
pub(crate) fn lane(row: &Row) -> Result<Lane, Trouble> {
    let table = "lane";
    let tenant: &str = column(row, "tenant", table)?;
    let priority = u8::try_from(column::<i32, _>(row, "priority", table)?)
        .map_err(|e| corrupt(row, "priority", table, &e.to_string()))?;
    Ok(Lane {
        id: column(row, "id", table)?,
        queue_id: column(row, "queue", table)?,
        tenant: Tenant::new(tenant)?,
        queue: parsed::<QueueName>(row, "name", table)?,
        kind: parsed(row, "kind", table)?,
        version: unsigned(row, "version", table)?,
        priority: Priority::new(priority)?,
    })
}

/// How an effect's item is stored: a primary key holds no nulls, and an empty item is not the absence of one.
pub(crate) fn stored_item(effect: &EffectId) -> String {
    effect.item.as_ref().map_or_else(String::new, |item| format!("={item}"))
}

/// The effect of a row that has `name` and `item`.
pub(crate) fn effect_id(row: &Row, table: &str) -> Result<EffectId, Trouble> {
    let item: &str = column(row, "item", table)?;
    let item = match item.strip_prefix('=') {
        Some(item) => Some(item.to_owned()),
        None if item.is_empty() => None,
        None => return Err(corrupt(row, "item", table, "an item begins with =")),
    };
    Ok(EffectId { name: parsed::<EffectName>(row, "name", table)?, item })
}

/// A row of `effect`, selected with all its columns under their names.
pub(crate) fn effect(row: &Row) -> Result<(MessageId, EffectRow), Trouble> {
    let table = "effect";
    let policy: &str = column(row, "policy", table)?;
    let policy: EffectPolicy =
        serde_json::from_str(policy).map_err(|e| corrupt(row, "policy", table, &e.to_string()))?;
    let key: &str = column(row, "key", table)?;
    let request_hash: &[u8] = column(row, "request_hash", table)?;
    let request_hash = request_hash
        .try_into()
        .map_err(|_| corrupt(row, "request_hash", table, &format!("{} bytes", request_hash.len())))?;
    let effect = EffectRow {
        effect: effect_id(row, table)?,
        seq: unsigned(row, "seq", table)?,
        policy,
        key: EffectKey::from_stored(key),
        request_hash,
        round: count(row, "round", table)?,
        token: LeaseToken {
            claims: count(row, "claims", table)?,
            nonce: Nonce::from_bytes(bytes16(row, "nonce", table)?),
        },
        sends: unsigned(row, "sends", table)?,
        first_intent_at: time(row, "first_intent_at", table)?,
        last_possible_send: time(row, "last_possible_send", table)?,
        valid_until: maybe_time(row, "valid_until", table)?,
        quarantine: duration(row, "quarantine_ms", table)?,
        reconcile_until: time(row, "reconcile_until", table)?,
        state: effect_state(row)?,
    };
    Ok((message_id(row, "message", table)?, effect))
}

fn effect_state(row: &Row) -> Result<EffectState, Trouble> {
    let table = "effect";
    let state: &str = column(row, "state", table)?;
    let value = || column::<String, _>(row, "value", table);
    match state {
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

/// A duration as an engine stores it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A counter as a narrow column holds it.
pub(crate) fn narrow(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Flags as a narrow column holds them. Without theirs a message would look as if it had never sent anything.
pub(crate) fn bits(flags: i64) -> i32 {
    i32::try_from(flags).expect("flags are bits of row.rs, the highest of which is 512")
}

/// The state of a row of `result`, `held` or `history`.
pub(crate) fn state(row: &Row, table: &str) -> Result<State, Trouble> {
    parsed(row, "state", table)
}

/// Text as PostgreSQL can hold it: it has no NUL. What a remote or a handler said may have one; JSON never does.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Numbers of messages, as a statement takes them.
pub(crate) fn id_list(ids: &[MessageId]) -> Vec<i64> {
    ids.iter().map(|id| id.as_i64()).collect()
}

/// A text that many rows share.
pub(crate) fn shared(row: &Row, name: &'static str, table: &str) -> Result<Arc<str>, Trouble> {
    column::<&str, _>(row, name, table).map(Arc::from)
}

/// The key of a row with `id` and `key` of a message.
pub(crate) fn key(row: &Row) -> Result<IdempotencyKey, Trouble> {
    let key: &str = column(row, "key", "message")?;
    IdempotencyKey::new(key).map_err(|e| corrupt(row, "key", "message", e.what()))
}

/// A row of `policy`.
pub(crate) fn policy(row: &Row) -> Result<(Kind, Policy), Trouble> {
    let table = "policy";
    let kind: Kind = parsed(row, "kind", table)?;
    let text: &str = column(row, "policy", table)?;
    let policy = serde_json::from_str(text)
        .map_err(|e| StoreError::corrupt(&format!("policy.policy, kind {kind}"), &e.to_string()))?;
    Ok((kind, policy))
}

/// A row of `token`.
pub(crate) fn token(row: &Row) -> Result<TokenRecord, Trouble> {
    let table = "token";
    let hash: &[u8] = column(row, "hash", table)?;
    let hash =
        hash.try_into().map_err(|_| corrupt(row, "hash", table, &format!("{} bytes instead of 32", hash.len())))?;
    let scopes: &str = column(row, "scopes", table)?;
    Ok(TokenRecord {
        name: parsed(row, "name", table)?,
        hash: TokenHash::from_bytes(hash),
        scopes: serde_json::from_str(scopes).map_err(|e| corrupt(row, "scopes", table, &e.to_string()))?,
        tenant: parsed(row, "tenant", table)?,
        created_at: time(row, "created_at", table)?,
        expires_at: maybe_time(row, "expires_at", table)?,
        revoked_at: maybe_time(row, "revoked_at", table)?,
    })
}

/// Where an ended message stands, from `state`, `flags`, `code`, `body` and `reason`; none without a state.
pub(crate) fn progress(row: &Row) -> Result<Option<Progress>, Trouble> {
    let table = "result";
    if column::<Option<&str>, _>(row, "state", table)?.is_none() {
        return Ok(None);
    }
    let state = state(row, table)?;
    let (code, body): (Option<&str>, Option<&str>) = (column(row, "code", table)?, column(row, "body", table)?);
    let told = i64::from(column::<i32, _>(row, "flags", table)?) & ANSWER_ERASED == 0;
    let detail = body.unwrap_or_default();
    let answer = match state {
        State::Completed => Some(Answer::Completed(detail.into())),
        State::Failed => code.map(|code| Answer::Failed(Failure::new(code, detail))),
        State::Ready | State::Leased | State::Dead | State::Cancelled | State::Parked => None,
    };
    Ok(Some(Progress { state, reason: column(row, "reason", table)?, answer: answer.filter(|_| told) }))
}

#[cfg(test)]
mod tests {
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
    fn columns_are_as_many_as_is_said() {
        let columns = |text: &str| text.split(',').count();
        assert_eq!(columns(life_columns!()), LIFE_COLUMNS);
        assert_eq!(columns(held_lease_columns!()), 18, "as many as `lease` reads");
    }
}
