//! Records what a person or a webhook knows of a parked effect.

use tidegate_core::effect::{self, EffectRow, EffectState};
use tidegate_core::error::StoreError;
use tidegate_core::lifecycle::{self, ParkReason, Resolution, State};
use tidegate_core::store::{self, Counted, Resolve, Resolved};

use crate::group::Group;
use crate::journal;
use crate::place::{self, Found, Lock};
use crate::row::{self, JOURNALED, Life};
use crate::trouble::Trouble;

/// Resolves one effect; the message becomes ready with its last open one.
pub(crate) async fn resolve(group: &mut Group, request: &Resolve) -> Result<Resolved, Trouble> {
    check(group, request)?;
    let id = request.id;
    let Some(found) = place::find(&group.conn, id, Lock::Rows).await? else {
        return Err(StoreError::not_found(id).into());
    };
    let mut rows = place::journal_if(&group.conn, id, found.flags()).await?;
    let Some(row) = effect::latest(&rows, &request.effect).cloned() else {
        let what = format!("{id} has no effect {}", request.effect);
        return Err(StoreError::new(tidegate_core::StoreErrorKind::NotFound, what)
            .hint("its effects are listed by: tidegate parked show")
            .message_id(id)
            .into());
    };
    let parked = match &found {
        Found::Ended(ended) if ended.state == State::Parked => ended,
        Found::Ready { .. } | Found::Leased(_) | Found::Ended(_) => {
            return repeated(group, request, &found, &rows, &row).await;
        }
    };
    let reason = parked.reason.as_deref().and_then(ParkReason::from_code).unwrap_or(ParkReason::OutcomeUnknown);
    let state = lifecycle::resolve(&row, reason, &request.resolution, group.now)?;
    if state != row.state {
        let decided = EffectRow { state, ..row };
        group.writes.effects.push((id, decided.clone()));
        if let Some(known) = rows.iter_mut().find(|known| known.effect == decided.effect && known.seq == decided.seq) {
            *known = decided;
        }
    }
    let still_open = u32::try_from(effect::open_rows(&rows).count()).unwrap_or(u32::MAX);
    let lane = group.lane(parked.lane).await?;
    if still_open > 0 {
        group.audit(&request.act, "resolve", Some(id), Some(lane.queue_id), &detail(request));
        return Ok(Resolved { state: State::Parked, still_open });
    }
    let policy = group.policy(&lane.kind).await?.unwrap_or_default();
    let counters = lifecycle::resolved(parked.counters, &policy);
    let life = Life {
        lane: lane.id,
        due_at: group.now,
        counters,
        flags: parked.flags & row::LASTING | JOURNALED,
        // It waited for a person, not for itself: its span of time starts anew.
        expires_at: Some(group.now.after(place::Limits::read(&group.conn, id).await?.max_age)),
        last: None,
    };
    place::remove(group, &lane, id, &found);
    place::put_ready(group, &lane, id, &life);
    let line = store::Ending {
        at: group.now,
        attempt: counters.attempt,
        generation: counters.generation,
        outcome: "resolved".to_owned(),
        state: State::Ready,
        code: String::new(),
        detail: request.act.reason.clone(),
        due_at: Some(group.now),
    };
    place::history(group, id, line);
    group.tally(&lane, Counted::Resolved, "");
    group.audit(&request.act, "resolve", Some(id), Some(lane.queue_id), &detail(request));
    Ok(Resolved { state: State::Ready, still_open: 0 })
}

fn check(group: &Group, request: &Resolve) -> Result<(), StoreError> {
    if request.act.reason.trim().is_empty() {
        return Err(StoreError::invalid("a resolution needs a reason")
            .hint("say where you looked: the gateway's record, a ticket, a name"));
    }
    if let Resolution::Happened { value } = &request.resolution {
        journal::check_value(group.limits, value)?;
        if let Err(error) = serde_json::from_str::<&serde_json::value::RawValue>(value) {
            return Err(StoreError::invalid(format!("the value of effect {} is no JSON: {error}", request.effect))
                .hint("give what the handler would have got from the remote, as JSON"));
        }
    }
    Ok(())
}

/// The message is not parked (any more): the same resolution again is the same act, anything else a conflict.
async fn repeated(
    group: &Group,
    request: &Resolve,
    found: &Found,
    rows: &[EffectRow],
    row: &EffectRow,
) -> Result<Resolved, Trouble> {
    let same = match (&request.resolution, &row.state) {
        (Resolution::Happened { value }, EffectState::Confirmed { value: known }) => value == known,
        (Resolution::DidNotHappen, EffectState::NotDone) => true,
        (Resolution::Happened { .. } | Resolution::DidNotHappen, _) => false,
    };
    if !same || !was_resolved(group, request.id).await? {
        let what = format!("{} is not parked, it is {}", request.id, found.state());
        return Err(StoreError::conflict(what).message_id(request.id).into());
    }
    let still_open = u32::try_from(effect::open_rows(rows).count()).unwrap_or(u32::MAX);
    Ok(Resolved { state: found.state(), still_open })
}

async fn was_resolved(group: &Group, id: tidegate_core::MessageId) -> Result<bool, Trouble> {
    const RESOLVED: &str = "-- resolve: a message that was resolved before
        select from tidegate.history where message = $1 and outcome = 'resolved' limit 1";
    Ok(group.conn.query_opt(RESOLVED, &[&id.as_i64()]).await?.is_some())
}

fn detail(request: &Resolve) -> String {
    let what = match &request.resolution {
        Resolution::Happened { .. } => "happened",
        Resolution::DidNotHappen => "did not happen",
    };
    format!("effect {}: {what}", request.effect)
}
