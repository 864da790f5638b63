//! Removes what ended messages say about a person, and keeps what keeps the promises: key, fingerprint, state, the fact
//! that an answer was given, and an audit row of the act.
//!
//! The old text is overwritten in the file in the same commit (`secure_delete`). Copies that are not this file's pages stay
//! out of reach: the write-ahead log until it begins anew, and backups.

use rusqlite::params;
use tidegate_core::effect;
pub use tidegate_core::erase::{Also, Erase, TOMBSTONE};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::store::Verdicts;

use crate::group::Group;
use crate::place::{self, Found};
use crate::row::{ANSWER_ERASED, ERASED};
use crate::trouble::{Trouble, verdict};

/// Erases a list of messages.
pub(crate) fn erase(group: &mut Group<'_>, request: &Erase) -> Result<Verdicts<()>, Trouble> {
    if request.act.reason.trim().is_empty() {
        return Err(StoreError::invalid("erasing needs a reason").hint("say why; it is kept with who and when").into());
    }
    let mut verdicts = Vec::with_capacity(request.ids.len());
    group.conn.pragma_update(None, "secure_delete", true)?;
    for id in &request.ids {
        let erased = group.atomically(|group| one(group, request, *id));
        match verdict(erased) {
            Ok(erased) => verdicts.push(erased),
            Err(error) => {
                group.conn.pragma_update(None, "secure_delete", false)?;
                return Err(error.into());
            }
        }
    }
    // Overwriting costs a write for each freed page, and nobody else's text has to go.
    group.conn.pragma_update(None, "secure_delete", false)?;
    Ok(verdicts)
}

fn one(group: &mut Group<'_>, request: &Erase, id: MessageId) -> Result<(), Trouble> {
    const PAYLOAD: &str = "-- erase: its fingerprint stays with the key, so that a duplicate is still recognised
        update tide_message set payload = ?2, seal = tide_reseal(seal, 3, payload, ?2) where id = ?1";
    const HEADERS: &str =
        "update tide_message set headers = null, seal = tide_reseal(seal, 10, headers, null) where id = ?1";
    const RESULT: &str = "-- erase: noted in the row, so that nobody takes the tombstone for an answer or runs it
        update tide_result set flags = flags | ?2, seal = tide_reseal(seal, 9, flags, flags | ?2) where id = ?1";
    const HELD: &str =
        "update tide_held set flags = flags | ?2, seal = tide_reseal(seal, 9, flags, flags | ?2) where id = ?1";
    const ANSWER: &str = "update tide_result set body = null, seal = tide_reseal(seal, 11, body, null) where id = ?1";
    const EFFECTS: &str = "-- erase: that it happened stays
        update tide_effect set value = iif(state = 'rejected', value, ?2), detail = iif(detail is null, null, ?2),
            seal = tide_reseal(seal, 17, value, iif(state = 'rejected', value, ?2),
                18, detail, iif(detail is null, null, ?2))
        where message = ?1 and value is not null";
    const EVIDENCE: &str =
        "update tide_evidence set value = ?2, seal = tide_reseal(seal, 5, value, ?2) where message = ?1";
    const HISTORY: &str =
        "update tide_history set detail = '', seal = tide_reseal(seal, 8, detail, '') where message = ?1";
    const DETAIL: &str = "update tide_held set detail = null, seal = tide_reseal(seal, 12, detail, null) where id = ?1";
    let Some(found) = place::find(group.conn, id)? else { return Err(StoreError::not_found(id).into()) };
    let ended = match &found {
        Found::Ended(ended) if ended.state.is_terminal() => ended,
        Found::Ready { .. } | Found::Leased(_) | Found::Ended(_) => return Err(refused(&found, id).into()),
    };
    if effect::open_rows(&place::journal(group.conn, id)?).next().is_some() {
        return Err(StoreError::conflict(format!("{id} cannot be erased: an effect of it is open"))
            .hint("what became of it has to be found out first: tidegate doctor lists it")
            .message_id(id)
            .into());
    }
    let run = |sql: &str| group.conn.prepare_cached(sql)?.execute([id.as_i64()]);
    let replace = |sql: &str| group.conn.prepare_cached(sql)?.execute(params![id.as_i64(), TOMBSTONE]);
    if replace(PAYLOAD)? == 0 {
        let what = "the body of an ended message is missing";
        return Err(StoreError::corrupt(&format!("tide_message, row {}", id.as_i64()), what).message_id(id).into());
    }
    let Also { answer, effects, headers, history } = request.also;
    let answered = matches!(ended.state, State::Completed | State::Failed);
    let flags = ERASED | if answer && answered { ANSWER_ERASED } else { 0 };
    for sql in [RESULT, HELD] {
        group.conn.prepare_cached(sql)?.execute([id.as_i64(), flags])?;
    }
    if headers {
        run(HEADERS)?;
    }
    if answer {
        run(ANSWER)?;
    }
    if effects {
        replace(EFFECTS)?;
        replace(EVIDENCE)?;
    }
    if history {
        run(HISTORY)?;
        run(DETAIL)?;
    }
    let lane = group.lane(found.lane())?;
    group.audit(&request.act, "erase", Some(id), Some(lane.queue_id), &request.also.words())
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
