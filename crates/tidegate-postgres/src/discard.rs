//! Gives dead letters up: they leave the desk, stay known by key and history, and go after their retention.

use std::collections::HashSet;

use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, State};
use tidegate_core::store::{Act, Discard, Ending, REDRIVE_CHUNK, Verdicts};

use crate::group::{Group, Place};
use crate::place::{self, Found};
use crate::row;
use crate::trouble::{Trouble, verdict};

/// Discards one chunk, with one audit row for all.
pub(crate) async fn discard(group: &mut Group, request: &Discard) -> Result<Verdicts<MessageId>, Trouble> {
    const DISCARD: &str = "-- discard: their retention begins
        update tidegate.held set discarded_at = $2
        where id = any($1) and state = 'dead' and discarded_at is null";
    reason_of(&request.act, "a discard")?;
    if request.ids.len() > REDRIVE_CHUNK {
        let what = format!("{} messages in one discard; at most {REDRIVE_CHUNK}", request.ids.len());
        return Err(StoreError::invalid(what).hint("discard them in chunks").into());
    }
    let found = place::find_each(&group.conn, &request.ids).await?;
    let journals = place::journals_found(&group.conn, &found).await?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    let mut discarded = HashSet::new();
    for id in &request.ids {
        let decided = decide(group, *id, found.get(id), journals.get(id));
        if let Ok(Some(found)) = &decided
            && discarded.insert(*id)
        {
            note(group, request, *id, found).await?;
        }
        verdicts.push(verdict(decided.map(|_| *id))?);
    }
    if discarded.is_empty() {
        return Ok(verdicts);
    }
    let ids: Vec<MessageId> = discarded.into_iter().collect();
    let now = group.now.as_millis();
    if group.conn.execute(DISCARD, &[&row::id_list(&ids), &now]).await? != ids.len() as u64 {
        return Err(Trouble::Again("a dead letter that is discarded was changed by somebody else"));
    }
    let alone = match &request.ids[..] {
        [id] => Some(*id),
        [..] => None,
    };
    group.audit(&request.act, "discard", alone, None, &format!("{} discarded", ids.len()));
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

/// The dead letter that is to be discarded; none if it had been before.
fn decide<'a>(
    group: &Group,
    id: MessageId,
    found: Option<&'a Result<Found, StoreError>>,
    journal: Option<&Result<Vec<EffectRow>, StoreError>>,
) -> Result<Option<&'a Found>, Trouble> {
    let found = place::known(found, id)?;
    let journal = place::rows_known(journal)?;
    lifecycle::discard(found.state(), &JournalFacts::of(journal, group.now))?;
    match found {
        Found::Ended(ended) if ended.discarded_at.is_some() => Ok(None),
        Found::Ready { .. } | Found::Leased(_) | Found::Ended(_) => Ok(Some(found)),
    }
}

async fn note(group: &mut Group, request: &Discard, id: MessageId, found: &Found) -> Result<(), Trouble> {
    let lane = group.lane(found.lane()).await?;
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
    place::history(group, id, line);
    Ok(())
}
