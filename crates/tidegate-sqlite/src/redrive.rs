//! Puts ended messages back to ready, at most once under one operation.

use rusqlite::{OptionalExtension, params};
use tidegate_core::effect::JournalFacts;
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, Counters, State};
use tidegate_core::message::Payload;
use tidegate_core::store::{self, Counted, REDRIVE_CHUNK, Redrive, Verdicts};

use crate::cancel;
use crate::group::{Group, Lane};
use crate::place::{self, Found};
use crate::row::{JOURNALED, Life};
use crate::trouble::{Trouble, verdict};

/// Redrives one chunk.
pub(crate) fn redrive(group: &mut Group<'_>, request: &Redrive) -> Result<Verdicts<MessageId>, Trouble> {
    check(request)?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    for id in &request.ids {
        verdicts.push(verdict(one(group, request, *id))?);
    }
    Ok(verdicts)
}

fn check(request: &Redrive) -> Result<(), StoreError> {
    if request.ids.len() > REDRIVE_CHUNK {
        let what = format!("{} messages in one redrive; at most {REDRIVE_CHUNK}", request.ids.len());
        return Err(StoreError::invalid(what).hint("repeat it in chunks under the same operation id"));
    }
    if request.operation.is_empty() {
        return Err(
            StoreError::invalid("a redrive needs an operation id").hint("any text, the same for all its chunks")
        );
    }
    if request.again && request.act.reason.trim().is_empty() {
        return Err(StoreError::invalid("a redrive of failed messages needs a reason")
            .hint("their answers were given; say why they are replaced"));
    }
    Ok(())
}

fn one(group: &mut Group<'_>, request: &Redrive, id: MessageId) -> Result<MessageId, Trouble> {
    const DONE: &str = "-- redrive: once under an operation
        select 1 from tide_redriven where message = ?1 and operation = ?2";
    const NOTE: &str = "insert into tide_redriven (message, operation) values (?1, ?2)";
    if group.conn.prepare_cached(DONE)?.exists(params![id.as_i64(), request.operation])? {
        return Ok(id);
    }
    let Some(found) = place::find(group.conn, id)? else { return Err(StoreError::not_found(id).into()) };
    let lane = group.lane(found.lane())?;
    let journal = place::journal_if(group.conn, id, found.flags())?;
    let facts = JournalFacts::of(&journal, group.now);
    let counters = lifecycle::redrive(found.state(), found.counters(), &facts, request.again)?;
    if found.state() == State::Cancelled {
        take_key_back(group, &lane, id)?;
    }
    place::remove(group, &lane, id, &found)?;
    put_back(group, &lane, id, counters, &found)?;
    group.conn.prepare_cached(NOTE)?.execute(params![id.as_i64(), request.operation])?;
    let line = store::Ending {
        at: group.now,
        attempt: found.counters().attempt,
        generation: counters.generation,
        outcome: "redriven".to_owned(),
        state: State::Ready,
        code: String::new(),
        detail: request.act.reason.clone(),
        due_at: Some(group.now),
    };
    place::history(group, id, &line)?;
    group.tally(&lane, Counted::Redriven, "");
    group.audit(&request.act, "redrive", Some(id), Some(lane.queue_id), &request.operation)?;
    Ok(id)
}

fn put_back(
    group: &mut Group<'_>,
    lane: &Lane,
    id: MessageId,
    counters: Counters,
    found: &Found,
) -> Result<(), Trouble> {
    let life = Life {
        lane: lane.id,
        due_at: group.now,
        counters,
        flags: found.flags() & JOURNALED,
        // It gets the whole of its span of time again.
        expires_at: Some(group.now.after(place::Limits::read(group.conn, id)?.max_age)),
        // Every earlier token is worth nothing from here on.
        last: None,
    };
    place::put_ready(group, lane, id, &life)
}

/// A cancelled message may have given its key away; two live messages never share one.
fn take_key_back(group: &Group<'_>, lane: &Lane, id: MessageId) -> Result<(), Trouble> {
    const WHOSE: &str = "-- redrive: whose key it is now
        select id from tide_key where queue = ?1 and hash = ?2";
    const TAKE: &str = "insert into tide_key (queue, hash, id, fingerprint) values (?1, ?2, ?3, ?4)";
    let hash = cancel::key(group, id)?.hash();
    let owner: Option<i64> =
        group.conn.prepare_cached(WHOSE)?.query_row(params![lane.queue_id, hash], |row| row.get(0)).optional()?;
    match owner.map(MessageId::from_i64) {
        Some(owner) if owner == id => Ok(()),
        Some(owner) => {
            let what = format!("cannot be redriven: its key was released and is now that of {owner}");
            Err(StoreError::conflict(what).message_id(owner).into())
        }
        None => {
            let message = place::body(group.conn, id, lane)?;
            let payload = Payload::from_json(message.payload)?;
            let fingerprint = tidegate_core::canonical::Fingerprint::of(&lane.kind, payload.canonical()).0;
            group.conn.prepare_cached(TAKE)?.execute(params![lane.queue_id, hash, id.as_i64(), fingerprint])?;
            Ok(())
        }
    }
}
