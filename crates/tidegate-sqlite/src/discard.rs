//! Gives dead letters up: they leave the desk, stay known by key and history, and go after their retention.

use rusqlite::params;
use tidegate_core::effect::JournalFacts;
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, State};
use tidegate_core::store::{Act, Discard, Ending, REDRIVE_CHUNK, Verdicts};

use crate::group::{Group, Place};
use crate::place::{self, Found};
use crate::trouble::{Trouble, verdict};

/// Discards one chunk, with one audit row for all.
pub(crate) fn discard(group: &mut Group<'_>, request: &Discard) -> Result<Verdicts<MessageId>, Trouble> {
    reason_of(&request.act, "a discard")?;
    if request.ids.len() > REDRIVE_CHUNK {
        let what = format!("{} messages in one discard; at most {REDRIVE_CHUNK}", request.ids.len());
        return Err(StoreError::invalid(what).hint("discard them in chunks").into());
    }
    crate::copied::begin(group)?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    let mut discarded = 0;
    for id in &request.ids {
        let did = verdict(one(group, request, *id))?;
        discarded += u32::from(matches!(did, Ok(true)));
        verdicts.push(did.map(|_| *id));
    }
    if discarded > 0 {
        let alone = match &request.ids[..] {
            [id] => Some(*id),
            [..] => None,
        };
        group.audit(&request.act, "discard", alone, None, &format!("{discarded} discarded"))?;
    }
    Ok(verdicts)
}

/// An act that cannot be undone is explained.
pub(crate) fn reason_of(act: &Act, what: &str) -> Result<(), StoreError> {
    if act.reason.trim().is_empty() {
        return Err(
            StoreError::invalid(format!("{what} needs a reason")).hint("say what you know that the store does not")
        );
    }
    Ok(())
}

/// Whether it was discarded now; if not, it had been before.
fn one(group: &mut Group<'_>, request: &Discard, id: MessageId) -> Result<bool, Trouble> {
    const DISCARD: &str = "-- discard: its retention begins
        update tide_held set discarded_at = ?2, seal = tide_reseal(seal, 18, discarded_at, ?2)
        where id = ?1 and state = 'dead' and discarded_at is null";
    let Some(found) = place::find(group.conn, id)? else { return Err(StoreError::not_found(id).into()) };
    let lane = group.lane(found.lane())?;
    let journal = place::journal_if(group.conn, id, found.flags())?;
    lifecycle::discard(found.state(), &JournalFacts::of(&journal, group.now))?;
    if matches!(&found, Found::Ended(ended) if ended.discarded_at.is_some()) {
        return Ok(false);
    }
    group.conn.prepare_cached(DISCARD)?.execute(params![id.as_i64(), group.now.as_millis()])?;
    group.count(lane.queue_id, Place::Dead, -1);
    let counters = found.counters();
    let line = Ending {
        at: group.now,
        attempt: counters.attempt,
        generation: counters.generation,
        outcome: "discarded".to_owned(),
        state: State::Dead,
        code: String::new(),
        detail: request.act.reason.clone(),
        due_at: None,
    };
    place::history(group, id, &line)?;
    Ok(true)
}
