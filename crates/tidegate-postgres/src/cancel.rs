//! Calls messages off that have not taken effect.

use std::collections::HashSet;

use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, MessageId};
use tidegate_core::lifecycle::{self, Asked, Before, Cancellation, Next, State};
use tidegate_core::store::{self, Cancel, Verdicts};

use crate::copied;
use crate::enqueue;
use crate::group::Group;
use crate::names::Lane;
use crate::place::{self, Ending, Found};
use crate::row::{self, CANCEL, Life, RELEASE};
use crate::trouble::{Trouble, verdict};
use crate::writes::Flagged;

/// Calls a list of messages off.
pub(crate) async fn cancel(group: &mut Group, request: &Cancel) -> Result<Verdicts<Cancellation>, Trouble> {
    // All are locked together and in one order before anything is written: two operators with the same list wait one
    // behind the other, not crosswise.
    let mut found = place::find_each(&group.conn, &request.ids).await?;
    let mut journals = place::journals_found(&group.conn, &found).await?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    let mut asked = HashSet::new();
    for id in &request.ids {
        if !asked.insert(*id) {
            // Named twice: the second time it is what the first time made of it.
            group.flush();
            let again = place::find_each(&group.conn, &[*id]).await?;
            journals.extend(place::journals_found(&group.conn, &again).await?);
            found.extend(again);
        }
        verdicts.push(verdict(one(group, request, *id, found.get(id), journals.get(id)).await)?);
    }
    Ok(verdicts)
}

/// Its refusal has written nothing.
async fn one(
    group: &mut Group,
    request: &Cancel,
    id: MessageId,
    found: Option<&Result<Found, StoreError>>,
    journal: Option<&Result<Vec<EffectRow>, StoreError>>,
) -> Result<Cancellation, Trouble> {
    let found = place::known(found, id)?;
    let lane = group.lane(found.lane()).await?;
    let rows = place::rows_known(journal)?;
    let mut facts = JournalFacts::of(rows, group.now);
    copied::count_in(&mut facts, found.flags(), group.now);
    facts.intents |= request.release_key && copied::covers(&group.conn, id).await?;
    let cancellation = lifecycle::cancel(found.state(), &facts)?;
    if request.release_key {
        lifecycle::check_release(id, &facts)?;
    }
    let release = if request.release_key { RELEASE } else { 0 };
    let wish = CANCEL | release;
    let noted = found.flags() & wish == wish;
    let before = cancellation.before(found.state(), Asked { release_key: request.release_key, noted });
    if stands(group, &lane, id, before).await? {
        return Ok(cancellation);
    }
    match (cancellation, found) {
        (Cancellation::Now, Found::Ready { life, .. }) => {
            let life = Life { flags: life.flags | release, ..life.clone() };
            let saved = group.mark();
            place::remove(group, &lane, id, found);
            let ended = called_off(group, &lane, id, &life, &facts, rows).await;
            if ended.is_err() {
                group.undo(saved);
            }
            ended?;
            note_history(group, id, &life, &request.act.reason);
        }
        (Cancellation::Now | Cancellation::Requested, Found::Ended(_)) => release_key(group, &lane, id).await?,
        (Cancellation::Now | Cancellation::Requested, _) => note(group, id, found, wish),
    }
    let detail = cancellation.audited(found.state(), request.release_key);
    group.audit(&request.act, "cancel", Some(id), Some(lane.queue_id), detail);
    Ok(cancellation)
}

/// Whether a request was made before: where that hangs on the key, by whose it is now.
async fn stands(group: &Group, lane: &Lane, id: MessageId, before: Before) -> Result<bool, Trouble> {
    match before {
        Before::Never => Ok(false),
        Before::Stands => Ok(true),
        Before::IfKeyIsFree => {
            let owner = enqueue::key_row(&group.conn, lane.queue_id, key(group, id).await?.hash()).await?;
            Ok(owner.is_none_or(|(owner, _)| owner != id))
        }
    }
}

/// Keeps the wish until the run ends or the open effect is decided: a worker is told with its next extension.
fn note(group: &mut Group, id: MessageId, found: &Found, flags: i64) {
    let place = match found {
        Found::Leased(_) => Flagged::Lease,
        Found::Ready { scheduled: false, .. } => Flagged::Ready,
        Found::Ready { scheduled: true, .. } => Flagged::Sched,
        Found::Ended(_) => return,
    };
    group.writes.flags.push((place, id, flags));
}

/// Ends a message as cancelled, and frees its key if that was asked for and nothing was ever tried.
pub(crate) async fn called_off(
    group: &mut Group,
    lane: &Lane,
    id: MessageId,
    life: &Life,
    facts: &JournalFacts,
    journal: &[EffectRow],
) -> Result<(), Trouble> {
    let release = life.has(RELEASE) && lifecycle::may_release_key(facts);
    if release && !copied::covers(&group.conn, id).await? {
        release_key(group, lane, id).await?;
    }
    let ending = Ending { next: Next::Cancelled, result: None, failure: None };
    place::put(group, lane, id, life, &ending, journal);
    Ok(())
}

/// Tells in the history that it was called off between two runs.
pub(crate) fn note_history(group: &mut Group, id: MessageId, life: &Life, reason: &str) {
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
    place::history(group, id, line);
}

/// Frees the key where it still names this message: it may be another one's by now.
async fn release_key(group: &mut Group, lane: &Lane, id: MessageId) -> Result<(), Trouble> {
    let hash = key(group, id).await?.hash();
    group.writes.gone_keys.push((lane.queue_id, hash, id));
    Ok(())
}

/// The key of a message.
pub(crate) async fn key(group: &Group, id: MessageId) -> Result<IdempotencyKey, Trouble> {
    const KEY: &str = "-- cancel, redrive: the key of a message
        select id, key from tidegate.message where id = $1";
    match group.conn.query_opt(KEY, &[&id.as_i64()]).await? {
        Some(found) => row::key(&found),
        None => Err(StoreError::not_found(id).into()),
    }
}
