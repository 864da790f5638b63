//! Puts ended messages back to ready, at most once under one operation.

use rusqlite::params;
use tidegate_core::canary::{self, Canary};
use tidegate_core::effect::JournalFacts;
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, Counters, Redriving, State};
use tidegate_core::message::Payload;
use tidegate_core::store::{self, Counted, REDRIVE_CHUNK, Redrive, Verdicts};

use crate::cancel;
use crate::enqueue;
use crate::group::{Group, Lane};
use crate::place::{self, Found};
use crate::row::{COMPENSATED, JOURNALED, Life};
use crate::seal;
use crate::trouble::{Trouble, verdict};

/// Redrives one chunk.
pub(crate) fn redrive(group: &mut Group<'_>, request: &Redrive) -> Result<Verdicts<MessageId>, Trouble> {
    check(request)?;
    crate::copied::begin(group)?;
    chunk(group, request, Watch::Nothing)
}

/// Whether anybody wants to know what becomes of what is redriven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// An operation looks after it until it ended.
    Ends,
    /// Nobody.
    Nothing,
}

/// Redrives the messages of one commit, with one audit row for all.
pub(crate) fn chunk(group: &mut Group<'_>, request: &Redrive, watch: Watch) -> Result<Verdicts<MessageId>, Trouble> {
    let mut verdicts = Vec::with_capacity(request.ids.len());
    let (mut redriven, mut refused) = (0_u32, 0_u32);
    for id in &request.ids {
        let did = verdict(one(group, request, *id, watch))?;
        match did {
            Ok(true) => redriven += 1,
            Ok(false) => {}
            Err(_) => refused += 1,
        }
        verdicts.push(did.map(|_| *id));
    }
    if redriven > 0 {
        // A message that was acted on alone is found by its id; more are found by the operation.
        let alone = match &request.ids[..] {
            [id] => Some(*id),
            [..] => None,
        };
        let detail = format!("operation {}: {redriven} redriven, {refused} refused", request.operation);
        group.audit(&request.act, "redrive", alone, None, &detail)?;
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

/// Whether it was redriven now; if not, it had been before.
fn one(group: &mut Group<'_>, request: &Redrive, id: MessageId, watch: Watch) -> Result<bool, Trouble> {
    const DONE: &str = "-- redrive: once under an operation
        select 1 from tide_redriven where message = ?1 and operation = ?2";
    const NOTE: &str = "insert into tide_redriven (message, operation, ended) values (?1, ?2, ?3)";
    let done = group.conn.prepare_cached(DONE)?.exists(params![id.as_i64(), request.operation])?;
    if done && !canary::is(Canary::RedriveRepeated) {
        return Ok(false);
    }
    let Some(found) = place::find(group.conn, id)? else { return Err(StoreError::not_found(id).into()) };
    let lane = group.lane(found.lane())?;
    let journal = place::journal_if(group.conn, id, found.flags())?;
    let facts = JournalFacts::of(&journal, group.now);
    crate::erase::refuse_erased(&found, id)?;
    let how = Redriving { again: request.again, compensated: found.flags() & COMPENSATED != 0 };
    let counters = lifecycle::redrive(found.state(), found.counters(), &facts, how)?;
    if found.state() == State::Cancelled {
        take_key_back(group, &lane, id)?;
    }
    place::remove(group, &lane, id, &found)?;
    put_back(group, &lane, id, counters, &found)?;
    let ended = match watch {
        Watch::Ends => None,
        Watch::Nothing => Some("unwatched"),
    };
    group.conn.prepare_cached(NOTE)?.execute(params![id.as_i64(), request.operation, ended])?;
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
    Ok(true)
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
    const TAKE: &str = "insert into tide_key values (?1, ?2, ?3, ?4, ?5)";
    let hash = cancel::key(group, id)?.hash();
    match enqueue::key_row(group.conn, lane.queue_id, hash)?.map(|(owner, _)| owner) {
        Some(owner) if owner == id => Ok(()),
        Some(owner) => {
            let what = format!("cannot be redriven: its key was released and is now that of {owner}");
            Err(StoreError::conflict(what).message_id(owner).into())
        }
        None => {
            let message = place::body(group.conn, id, lane)?;
            let payload = Payload::from_json(message.payload)?;
            let fingerprint = tidegate_core::canonical::Fingerprint::of(&lane.kind, payload.canonical()).0;
            let key = params![lane.queue_id, hash, id.as_i64(), fingerprint];
            seal::execute(&mut group.conn.prepare_cached(TAKE)?, seal::KEY, key)?;
            Ok(())
        }
    }
}
