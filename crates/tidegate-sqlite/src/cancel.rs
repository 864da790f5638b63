//! Calls messages off that have not taken effect.

use rusqlite::params;
use tidegate_core::effect::JournalFacts;
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, MessageId};
use tidegate_core::lifecycle::{self, Asked, Before, Cancellation, Next, State};
use tidegate_core::store::{self, Cancel, Verdicts};

use crate::copied;
use crate::enqueue;
use crate::group::{Group, Lane};
use crate::place::{self, Ending, Found};
use crate::row::{self, CANCEL, Life, RELEASE};
use crate::trouble::{Trouble, verdict};

/// Calls a list of messages off.
pub(crate) fn cancel(group: &mut Group<'_>, request: &Cancel) -> Result<Verdicts<Cancellation>, Trouble> {
    copied::begin(group)?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    for id in &request.ids {
        verdicts.push(verdict(one(group, request, *id))?);
    }
    Ok(verdicts)
}

fn one(group: &mut Group<'_>, request: &Cancel, id: MessageId) -> Result<Cancellation, Trouble> {
    let Some(found) = place::find(group.conn, id)? else { return Err(StoreError::not_found(id).into()) };
    let lane = group.lane(found.lane())?;
    let journal = place::journal_if(group.conn, id, found.flags())?;
    let mut facts = JournalFacts::of(&journal, group.now);
    copied::count_in(&mut facts, found.flags(), group.now);
    facts.intents |= request.release_key && copied::covers(group.conn, id)?;
    let cancellation = lifecycle::cancel(found.state(), &facts)?;
    if request.release_key {
        lifecycle::check_release(id, &facts)?;
    }
    let release = if request.release_key { RELEASE } else { 0 };
    let wish = CANCEL | release;
    let noted = found.flags() & wish == wish;
    let before = cancellation.before(found.state(), Asked { release_key: request.release_key, noted });
    if stands(group, &lane, id, before)? {
        return Ok(cancellation);
    }
    match (cancellation, &found) {
        (Cancellation::Now, Found::Ready { life, .. }) => {
            place::remove(group, &lane, id, &found)?;
            let life = Life { flags: life.flags | release, ..life.clone() };
            called_off(group, &lane, id, &life, &facts)?;
            note_history(group, id, &life, &request.act.reason)?;
        }
        (Cancellation::Now | Cancellation::Requested, Found::Ended(_)) => release_key(group, &lane, id)?,
        (Cancellation::Now | Cancellation::Requested, _) => note(group, id, &found, wish)?,
    }
    let detail = cancellation.audited(found.state(), request.release_key);
    group.audit(&request.act, "cancel", Some(id), Some(lane.queue_id), detail)?;
    Ok(cancellation)
}

/// Whether a request was made before: where that hangs on the key, by whose it is now.
fn stands(group: &Group<'_>, lane: &Lane, id: MessageId, before: Before) -> Result<bool, Trouble> {
    match before {
        Before::Never => Ok(false),
        Before::Stands => Ok(true),
        Before::IfKeyIsFree => {
            let owner = enqueue::key_row(group.conn, lane.queue_id, key(group, id)?.hash())?;
            Ok(owner.is_none_or(|(owner, _)| owner != id))
        }
    }
}

/// Keeps the wish until the run ends or the open effect is decided.
fn note(group: &mut Group<'_>, id: MessageId, found: &Found, flags: i64) -> Result<(), Trouble> {
    const LEASE: &str = "-- cancel: told to the worker with its next extension
        update tide_lease set flags = flags | ?2, seal = tide_reseal(seal, 8, flags, flags | ?2) where id = ?1";
    const READY: &str = "-- cancel: kept until its open effect is decided
        update tide_ready set flags = flags | ?4, seal = tide_reseal(seal, 8, flags, flags | ?4)
        where lane = ?1 and due_at = ?2 and id = ?3";
    const SCHED: &str = "-- cancel: kept until its open effect is decided
        update tide_sched set flags = flags | ?4, seal = tide_reseal(seal, 8, flags, flags | ?4)
        where lane = ?1 and due_at = ?2 and id = ?3";
    match found {
        Found::Leased(_) => {
            drop(group.take_lease(id));
            group.conn.prepare_cached(LEASE)?.execute([id.as_i64(), flags])?
        }
        Found::Ready { life, scheduled } => group
            .conn
            .prepare_cached(if *scheduled { SCHED } else { READY })?
            .execute([life.lane, life.due_at.as_millis(), id.as_i64(), flags])?,
        Found::Ended(_) => 0,
    };
    Ok(())
}

/// Ends a message as cancelled, and frees its key if that was asked for and nothing was ever tried.
pub(crate) fn called_off(
    group: &mut Group<'_>,
    lane: &Lane,
    id: MessageId,
    life: &Life,
    journal: &JournalFacts,
) -> Result<(), Trouble> {
    place::put(group, lane, id, life, &Ending { next: Next::Cancelled, result: None, failure: None })?;
    if life.flags & RELEASE != 0 && lifecycle::may_release_key(journal) && !copied::covers(group.conn, id)? {
        release_key(group, lane, id)?;
    }
    Ok(())
}

/// Tells in the history that it was called off between two runs.
pub(crate) fn note_history(group: &Group<'_>, id: MessageId, life: &Life, reason: &str) -> Result<(), Trouble> {
    let line = store::Ending {
        at: group.now,
        attempt: life.counters.attempt,
        generation: life.counters.generation,
        outcome: "cancelled".to_owned(),
        state: State::Cancelled,
        code: String::new(),
        detail: reason.to_owned(),
        due_at: None,
    };
    place::history(group, id, &line)
}

/// Frees the key, if it still names this message.
pub(crate) fn release_key(group: &Group<'_>, lane: &Lane, id: MessageId) -> Result<(), Trouble> {
    const RELEASE_KEY: &str = "-- cancel, sweep: the key may name another message by now
        delete from tide_key where queue = ?1 and hash = ?2 and id = ?3";
    let hash = key(group, id)?.hash();
    group.conn.prepare_cached(RELEASE_KEY)?.execute(params![lane.queue_id, hash, id.as_i64()])?;
    Ok(())
}

/// The key of a message.
pub(crate) fn key(group: &Group<'_>, id: MessageId) -> Result<IdempotencyKey, Trouble> {
    let mut statement = group.conn.prepare_cached(place::BODY)?;
    let mut rows = statement.query([id.as_i64()])?;
    match rows.next()? {
        Some(found) => row::key(found),
        None => Err(StoreError::not_found(id).into()),
    }
}
