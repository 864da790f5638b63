//! Work that commits together with the store: enqueueing inside a caller's own transaction, and effects that are writes
//! into the store's own file.

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::{Connection, TransactionState};
use tidegate_core::effect::{self, Decision, EffectState, Reached};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{Enqueued, Verdicts};

use crate::enqueue::{self, Prepared};
use crate::extend;
use crate::group::{Group, Interned, Limits};
use crate::journal;
use crate::open;
use crate::place;
use crate::trouble::Trouble;
use crate::writer::panic_text;

/// A write into the store's file: what it returns, a JSON text, is the confirmed value of its effect.
pub type Work = Box<dyn FnOnce(&Connection) -> Result<Arc<str>, Box<dyn Error + Send + Sync>> + Send>;

/// Why a transactional effect did not happen. Nothing of its work was stored.
#[derive(Debug)]
pub enum EffectInError {
    /// The store refused it or failed.
    Store(StoreError),
    /// The work itself failed.
    Work(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for EffectInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Work(error) => error.fmt(f),
        }
    }
}

impl Error for EffectInError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Work(error) => Some(&**error),
        }
    }
}

impl From<StoreError> for EffectInError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Enqueues in a transaction that the caller began, on a connection of its own.
pub(crate) fn enqueue_in(
    conn: &Connection,
    uuid: &[u8; 16],
    now: tidegate_core::Timestamp,
    limits: Limits,
    allowance: u64,
    batch: Vec<NewMessage>,
) -> Result<Verdicts<Enqueued>, StoreError> {
    check_transaction(conn, uuid)?;
    let batch: Vec<_> = batch.into_iter().map(|message| Prepared::of(message, limits.max_payload)).collect();
    // Names are not remembered between calls: the caller may roll back what they were made in.
    let mut interned = Interned::default();
    let mut group = Group::new(conn, now, limits, &mut interned);
    group.allowance = allowance;
    let savepoint = "savepoint tidegate_enqueue_in";
    conn.execute_batch(savepoint).map_err(crate::trouble::store_error)?;
    let stored = enqueue::enqueue(&mut group, &batch).and_then(|verdicts| {
        group.finish()?;
        conn.execute_batch("release tidegate_enqueue_in")?;
        Ok(verdicts)
    });
    stored.map_err(|trouble| {
        // The caller's transaction is still the caller's to end, with nothing of this call in it.
        let _undone = conn.execute_batch("rollback to tidegate_enqueue_in; release tidegate_enqueue_in");
        trouble.into_store_error()
    })
}

/// Refuses a connection on which "stored" would not mean "durable with the caller's commit, and once".
fn check_transaction(conn: &Connection, uuid: &[u8; 16]) -> Result<(), StoreError> {
    let read = |error| StoreError::invalid("this connection cannot be looked at").source(error);
    if conn.is_autocommit() {
        return Err(StoreError::invalid("enqueue_in outside a transaction")
            .hint("begin one first: transaction_with_behavior(Immediate), or BEGIN IMMEDIATE"));
    }
    if conn.transaction_state(Some("main")).map_err(read)? != TransactionState::Write {
        return Err(StoreError::invalid("enqueue_in inside a transaction that does not hold the write lock").hint(
            "begin it with transaction_with_behavior(Immediate), or BEGIN IMMEDIATE: a deferred one fails \
                when it first writes",
        ));
    }
    let synchronous: i64 = conn.query_row("pragma synchronous", [], |row| row.get(0)).map_err(read)?;
    if synchronous < 2 {
        return Err(StoreError::invalid(format!("enqueue_in on a connection with synchronous = {synchronous}"))
            .hint("PRAGMA synchronous = FULL on this connection, before the transaction begins"));
    }
    match open::uuid(conn) {
        Ok(theirs) if theirs == *uuid => Ok(()),
        Ok(_) => Err(StoreError::invalid("this connection is on another tidegate store")
            .hint("open it on the path of this store")),
        Err(Trouble::Item(error)) => Err(error),
        Err(Trouble::Group(error)) => {
            Err(StoreError::invalid("this connection is on a file that is no tidegate store")
                .hint("open it on the path of this store")
                .source(error))
        }
    }
}

/// A transactional effect as it goes to the writer.
pub(crate) struct EffectIn {
    pub(crate) id: MessageId,
    pub(crate) token: LeaseToken,
    pub(crate) reached: Reached,
    pub(crate) work: Work,
}

/// Runs the work and writes its confirmation, or neither.
pub(crate) fn effect_in(group: &mut Group<'_>, item: EffectIn) -> Result<Result<Arc<str>, EffectInError>, Trouble> {
    group.items += 1;
    let EffectIn { id, token, reached, work } = item;
    let Some(lease) = journal::current(group, id, token)? else {
        return Err(extend::lost(group, id)?.into());
    };
    let lane = group.lane(lease.life.lane)?;
    let message = place::in_force(place::body(group.conn, id, &lane)?, lease.life.expires_at);
    let mut rows = place::journal_if(group.conn, id, lease.life.flags)?;
    let round = lease.life.counters.round;
    match effect::reach(&rows, &reached, round, group.now) {
        Decision::Replay(value) => return Ok(Ok(value)),
        Decision::Send => {}
        Decision::ReplayRejected { .. } | Decision::LookUp { .. } | Decision::Park(_) => {
            let known = effect::latest(&rows, &reached.effect).map_or("not to be begun now", |row| row.state.as_str());
            let what = format!("effect {} of {id} is {known}", reached.effect);
            return Err(StoreError::conflict(what).message_id(id).into());
        }
    }
    journal::check_unlapsed(group, &lease, id)?;
    if effect::too_late(&message, &rows, group.now) {
        let what = format!("effect {} of {id} would begin after the deadline", reached.effect);
        return Err(StoreError::conflict(what).message_id(id).into());
    }
    let mut failed = None;
    let step = group.atomically(|group| {
        let worked = group.lend(|conn| catch_unwind(AssertUnwindSafe(|| work(conn))))?;
        if group.conn.is_autocommit() {
            // It ended the group's transaction: what the group did before is committed or gone, and nobody can say which.
            return Err(Trouble::Group(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_PROTOCOL),
                Some(format!("the work of effect {} ended the store's transaction", reached.effect)),
            )));
        }
        let value = match worked {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                failed = Some(error);
                return Err(undone());
            }
            Err(panic) => {
                failed =
                    Some(format!("the work of effect {} panicked: {}", reached.effect, panic_text(&*panic)).into());
                return Err(undone());
            }
        };
        failpoint::reach("transactional.after_work");
        journal::check_value(group, &value)?;
        let row = effect::confirmed_at_once(&message, &rows, &reached, value, token, round, group.now)?;
        journal::put(group, &lease, id, &mut rows, &row)?;
        match row.state {
            EffectState::Confirmed { value } => Ok(value),
            EffectState::Intent | EffectState::Unknown { .. } | EffectState::Rejected { .. } | EffectState::NotDone => {
                Err(StoreError::conflict(format!("effect {} is not confirmed", reached.effect)).into())
            }
        }
    });
    failpoint::reach("transactional.before_commit");
    match (step, failed) {
        (Ok(value), _) => Ok(Ok(value)),
        (Err(Trouble::Item(_)), Some(error)) => Ok(Err(EffectInError::Work(error))),
        (Err(trouble), _) => Err(trouble),
    }
}

/// Makes the savepoint roll back; the work's own error is what the caller gets.
fn undone() -> Trouble {
    StoreError::invalid("the work of a transactional effect failed").into()
}
