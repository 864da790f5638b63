//! Removes what ended messages say about a person, and keeps what keeps the promises: key, fingerprint, state, the fact
//! that an answer was given, and an audit row of the act.
//!
//! The old text is in no row any more when the call has returned. Copies that are not rows of the tables stay out of
//! reach: dead row versions until a vacuum, the write-ahead log, standbys until they have followed, and backups.

use tidegate_core::effect;
use tidegate_core::erase::{Also, Erase, TOMBSTONE};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::store::Verdicts;

use crate::group::Group;
use crate::place::{self, Found};
use crate::row::{self, ANSWER_ERASED, ERASED};
use crate::trouble::{Trouble, verdict};

/// Erases a list of messages.
pub(crate) async fn erase(group: &mut Group, request: &Erase) -> Result<Verdicts<()>, Trouble> {
    if request.act.reason.trim().is_empty() {
        return Err(StoreError::invalid("erasing needs a reason").hint("say why; it is kept with who and when").into());
    }
    let found = place::find_each(&group.conn, &request.ids).await?;
    let mut verdicts = Vec::with_capacity(request.ids.len());
    for id in &request.ids {
        verdicts.push(verdict(one(group, request, *id, found.get(id)).await)?);
    }
    Ok(verdicts)
}

/// Erases one; its refusal has written nothing.
async fn one(
    group: &mut Group,
    request: &Erase,
    id: MessageId,
    found: Option<&Result<Found, StoreError>>,
) -> Result<(), Trouble> {
    const PAYLOAD: &str = "-- erase: its fingerprint stays with the key, so that a duplicate is still recognised
        update tidegate.message set payload = $2 where id = $1";
    const HEADERS: &str = "-- erase: all of them
        update tidegate.message set headers = null where id = $1";
    const RESULT: &str = "-- erase: noted in the row, so that nobody takes the tombstone for an answer or runs it
        update tidegate.result set flags = flags | $2 where id = $1";
    const HELD: &str = "-- erase: the same of a dead letter
        update tidegate.held set flags = flags | $2 where id = $1";
    const ANSWER: &str = "-- erase: a duplicate learns the state only
        update tidegate.result set body = null where id = $1";
    const EFFECTS: &str = "-- erase: that it happened stays
        update tidegate.effect set value = case when state = 'rejected' then value else $2 end,
            detail = case when detail is null then null else $2 end
        where message = $1 and value is not null";
    const EVIDENCE: &str = "-- erase: that something was confirmed stays
        update tidegate.evidence set value = $2 where message = $1";
    const HISTORY: &str = "-- erase: codes stay
        update tidegate.history set detail = '' where message = $1";
    const DETAIL: &str = "-- erase: the code stays
        update tidegate.held set detail = null where id = $1";
    let found = place::known(found, id)?;
    let ended = match found {
        Found::Ended(ended) if ended.state.is_terminal() => ended,
        Found::Ready { .. } | Found::Leased(_) | Found::Ended(_) => return Err(refused(found, id).into()),
    };
    if effect::open_rows(&place::journal(&group.conn, id).await?).next().is_some() {
        return Err(StoreError::conflict(format!("{id} cannot be erased: an effect of it is open"))
            .hint("what became of it has to be found out first: tidegate doctor lists it")
            .message_id(id)
            .into());
    }
    let lane = group.lane(found.lane()).await?;
    let number = id.as_i64();
    if group.conn.execute(PAYLOAD, &[&number, &TOMBSTONE]).await? == 0 {
        let what = "the body of an ended message is missing";
        return Err(StoreError::corrupt(&format!("message, row {number}"), what).message_id(id).into());
    }
    let Also { answer, effects, headers, history } = request.also;
    let answered = matches!(ended.state, State::Completed | State::Failed);
    let flags = row::bits(ERASED | if answer && answered { ANSWER_ERASED } else { 0 });
    for sql in [RESULT, HELD] {
        group.conn.execute(sql, &[&number, &flags]).await?;
    }
    let chosen = [(HEADERS, headers), (ANSWER, answer), (HISTORY, history), (DETAIL, history)];
    for (sql, _) in chosen.into_iter().filter(|(_, chosen)| *chosen) {
        group.conn.execute(sql, &[&number]).await?;
    }
    for sql in [EFFECTS, EVIDENCE].into_iter().filter(|_| effects) {
        group.conn.execute(sql, &[&number, &TOMBSTONE]).await?;
    }
    group.audit(&request.act, "erase", Some(id), Some(lane.queue_id), &request.also.words());
    Ok(())
}

fn refused(found: &Found, id: MessageId) -> StoreError {
    let hint = match found.state() {
        State::Parked => "resolve it first: tidegate parked resolve",
        State::Ready | State::Leased => "let it end, or call it off: tidegate cancel",
        State::Completed | State::Failed | State::Dead | State::Cancelled => "it has ended; repeat the command",
    };
    let what = format!("{id} cannot be erased: it is {}", found.state());
    StoreError::new(StoreErrorKind::Conflict, what).hint(hint).message_id(id)
}

/// Refuses to run a message whose payload is gone.
pub(crate) fn refuse_erased(found: &Found, id: MessageId) -> Result<(), StoreError> {
    if found.flags() & ERASED == 0 {
        return Ok(());
    }
    Err(StoreError::conflict(format!("{id} cannot be redriven: its payload was erased"))
        .hint("enqueue the work anew under another key, if it still has to be done")
        .message_id(id))
}
