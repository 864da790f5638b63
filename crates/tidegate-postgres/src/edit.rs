//! Changes the payload of a dead letter, so that what a bug made of it can still be done.
//!
//! The row of its key keeps the fingerprint of the payload it came with. A key names what its producer meant, and the
//! producer repeats what it sent, not what an operator repaired.

use tidegate_core::error::StoreError;
use tidegate_core::id::{Hex, digest16};
use tidegate_core::lifecycle::{self, Counters, State};
use tidegate_core::store::{Edit, Edited, Ending};

use crate::copied;
use crate::discard::reason_of;
use crate::erase;
use crate::group::Group;
use crate::place::{self, Lock};
use crate::row;
use crate::trouble::Trouble;

/// Replaces the payload, and opens another round for its effects.
pub(crate) async fn edit(group: &mut Group, request: &Edit) -> Result<Edited, Trouble> {
    const PAYLOAD: &str = "-- edit: the one change a body ever sees
        update tidegate.message set payload = $2 where id = $1";
    const ROUND: &str = "-- edit: the keys of its effects stand for the payload they were sent with
        update tidegate.held set round = $2 where id = $1 and state = 'dead'";
    reason_of(&request.act, "an edit")?;
    let id = request.id;
    let after = request.payload.text();
    let (size, most) = (after.len(), group.limits.max_payload);
    if size > most {
        return Err(StoreError::invalid(format!("payload of {size} bytes is over the limit of {most}")).into());
    }
    let Some(found) = place::find(&group.conn, id, Lock::Rows).await? else {
        return Err(StoreError::not_found(id).into());
    };
    erase::refuse_erased(&found, id)?;
    let lane = group.lane(found.lane()).await?;
    let journal = place::journal_if(&group.conn, id, found.flags()).await?;
    let counters: Counters = lifecycle::edit(found.state(), found.counters(), &journal)?;
    if copied::covers(&group.conn, id).await? {
        let what =
            format!("the payload of {id} cannot be changed: it came with a backup, and may have gone on elsewhere");
        return Err(StoreError::conflict(what).hint("redrive it as it is, or enqueue a new message").into());
    }
    let before = place::body(&group.conn, id, &lane).await?.payload;
    if *before == *after {
        return Ok(Edited { before: before.clone(), after: before });
    }
    group.conn.execute(PAYLOAD, &[&id.as_i64(), &after]).await?;
    group.conn.execute(ROUND, &[&id.as_i64(), &row::narrow(counters.round)]).await?;
    let line = Ending {
        at: group.now,
        attempt: counters.attempt,
        generation: counters.generation,
        outcome: "edited".to_owned(),
        state: State::Dead,
        code: String::new(),
        detail: request.act.reason.clone(),
        due_at: None,
    };
    place::history(group, id, line);
    let [was, is] = [&*before, after].map(|text| digest16(&[text.as_bytes()]));
    let detail = format!("payload {} became {}", Hex(&was), Hex(&is));
    group.audit(&request.act, "edit", Some(id), Some(lane.queue_id), &detail);
    Ok(Edited { before, after: after.into() })
}
