//! Ends runs: result, state, follow-ups and journal in one commit, under the lease token.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::lifecycle::{self, DeadReason, Next, Outcome, ParkReason, State, Transition};
use tidegate_core::message::{Failure, Message};
use tidegate_core::store::{self, Counted, Enqueued, Settle, Settled, Verdicts};

use crate::completion;
use crate::enqueue::{self, Origin};
use crate::extend;
use crate::group::{Group, Lane, Place};
use crate::journal;
use crate::place::{self, Ending, Found};
use crate::row::{self, LastSettlement, LeaseRow, Life};
use crate::seal;
use crate::trouble::{Trouble, verdict};

/// A settlement that was hashed and whose follow-ups were checked, on its caller's thread.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) settle: Settle,
    pub(crate) digest: [u8; 16],
    pub(crate) then: Vec<Result<enqueue::Prepared, StoreError>>,
    pub(crate) compensate: Vec<Result<enqueue::Prepared, StoreError>>,
}

impl Prepared {
    pub(crate) fn of(mut settle: Settle, max_payload: usize) -> Self {
        let digest = settle.digest();
        let prepare = |messages: Vec<_>| {
            messages.into_iter().map(|message| enqueue::Prepared::of(message, max_payload)).collect()
        };
        let then = prepare(std::mem::take(&mut settle.then));
        let compensate = prepare(std::mem::take(&mut settle.compensate));
        Self { settle, digest, then, compensate }
    }

    /// What is enqueued with a message that becomes this.
    fn follow_ups(&self, state: State) -> &[Result<enqueue::Prepared, StoreError>] {
        match state {
            State::Completed => &self.then,
            State::Failed | State::Dead if canary::is(Canary::FollowUpsWithoutCompletion) => &self.then,
            State::Failed | State::Dead => &self.compensate,
            State::Ready | State::Leased | State::Cancelled | State::Parked => &[],
        }
    }
}

/// Settles a batch.
pub(crate) fn settle(group: &mut Group<'_>, batch: &[Prepared]) -> Result<Verdicts<Settled>, Trouble> {
    group.items += batch.len();
    let mut verdicts = Vec::with_capacity(batch.len());
    let mut completions = Vec::new();
    for item in batch {
        // A refusal here is of this one alone: nothing was changed for it.
        match verdict(completion::decide(group, item, &mut completions))? {
            Ok(None) => {}
            Ok(Some(settled)) => {
                verdicts.push(Ok(settled));
                continue;
            }
            Err(refused) => {
                verdicts.push(Err(refused));
                continue;
            }
        }
        // What is not plain may have to do with what was settled just now: with the same message, or with its flow.
        completion::write(group, &mut completions)?;
        verdicts.push(verdict(one(group, item))?);
    }
    completion::write(group, &mut completions)?;
    failpoint::reach("settle.before_commit");
    Ok(verdicts)
}

/// Which of a settlement's parts are carried out.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Journal writes that cannot be stored are left out instead of refusing the settlement.
    lenient: bool,
    follow_ups: bool,
}

fn one(group: &mut Group<'_>, item: &Prepared) -> Result<Settled, Trouble> {
    let settle = &item.settle;
    let lease = match journal::current(group, settle.id, settle.token)? {
        None if canary::is(Canary::NoFence) => place::lease(group.conn, settle.id)?,
        lease => lease,
    };
    let Some(lease) = lease else { return repeated(group, item) };
    let lane = group.lane(lease.life.lane)?;
    if canary::is(Canary::FollowUpsInSecondCommit) {
        return in_two_commits(group, &lane, &lease, item);
    }
    let writes_once = settle.journal.is_empty() && item.then.is_empty() && item.compensate.is_empty();
    let all = Extent { lenient: false, follow_ups: true };
    let first = match too_large(group, &settle.outcome) {
        Some(error) => Err(Trouble::Item(error)),
        // Nothing in such a settlement can be refused after its first write, so it needs no savepoint.
        None if writes_once => end(group, &lane, &lease, item, &settle.outcome, all),
        None => group.atomically(|group| end(group, &lane, &lease, item, &settle.outcome, all)),
    };
    let error = match first {
        Err(Trouble::Item(error)) if is_data_error(&error) => error,
        other => return other,
    };
    // What cannot be stored ends this message for a person to look at, and nobody else's.
    let outcome = Outcome::Refused { failure: Failure::new("settlement_refused", error.what()) };
    for follow_ups in [true, false] {
        let extent = Extent { lenient: true, follow_ups };
        match group.atomically(|group| end(group, &lane, &lease, item, &outcome, extent)) {
            Err(Trouble::Item(error)) if is_data_error(&error) => {}
            other => return other,
        }
    }
    Err(error.into())
}

/// What must never be: the end of the message is durable before what follows from it.
fn in_two_commits(group: &mut Group<'_>, lane: &Lane, lease: &LeaseRow, item: &Prepared) -> Result<Settled, Trouble> {
    let first = Extent { lenient: false, follow_ups: false };
    let settled = end(group, lane, lease, item, &item.settle.outcome, first)?;
    group.conn.execute_batch("commit; begin immediate")?;
    let follow_ups = follow(group, lease, item.settle.id, item.follow_ups(settled.state))?;
    Ok(Settled { follow_ups, ..settled })
}

fn is_data_error(error: &StoreError) -> bool {
    matches!(error.kind(), StoreErrorKind::Invalid | StoreErrorKind::KeyConflict)
}

fn too_large(group: &Group<'_>, outcome: &Outcome) -> Option<StoreError> {
    let Outcome::Completed { result, .. } = outcome else { return None };
    let (size, most) = (result.len(), group.limits.max_payload);
    (size > most).then(|| StoreError::invalid(format!("result of {size} bytes is over the limit of {most}")))
}

/// Carries out one settlement under a lease that was just read.
fn end(
    group: &mut Group<'_>,
    lane: &Lane,
    lease: &LeaseRow,
    item: &Prepared,
    outcome: &Outcome,
    extent: Extent,
) -> Result<Settled, Trouble> {
    let id = item.settle.id;
    let mut rows = place::journal_if(group.conn, id, lease.life.flags)?;
    if !item.settle.journal.is_empty() {
        let message = place::body(group.conn, id, lane)?;
        write_journal(group, lease, &message, &mut rows, item, extent)?;
        failpoint::reach("settle.after_journal");
    }
    let facts = place::facts(&lease.life, lease.limits, &rows, group.now);
    let policy = group.policy(&lane.kind)?.unwrap_or_default();
    let transition = lifecycle::settle(&facts, outcome, &policy, group.now, item.settle.unit);
    let last = LastSettlement { nonce: *lease.token.nonce.as_bytes(), digest: item.digest };
    move_on(group, lane, lease, id, outcome, &transition, &rows, Some(last))?;

    failpoint::reach("settle.after_state");

    let state = transition.next.state();
    let follow_ups = if extent.follow_ups { follow(group, lease, id, item.follow_ups(state))? } else { Vec::new() };
    if !follow_ups.is_empty() && matches!(state, State::Failed | State::Dead) {
        note_compensated(group, id)?;
    }
    let flow_took = match state.is_terminal() {
        // Messages follow from what ends; of what never ended before, only what was enqueued just now.
        true if is_whole_flow(id, lease) && follow_ups.is_empty() => Some(group.now.since(lease.enqueued_at)),
        true => flow_took(group, id, lease)?,
        false => None,
    };
    Ok(Settled {
        state,
        due_at: due_at(transition.next),
        reason: reason(transition.next),
        follow_ups,
        flow_took,
        repeated: false,
    })
}

/// Notes where the message is now that what follows undoes it: a redrive would complete what was given back.
fn note_compensated(group: &Group<'_>, id: MessageId) -> Result<(), Trouble> {
    const FAILED: &str = "-- settle: a compensation commits with it
        update tide_result set flags = flags | ?2, seal = tide_reseal(seal, 9, flags, flags | ?2) where id = ?1";
    const DEAD: &str = "-- settle: a compensation commits with it
        update tide_held set flags = flags | ?2, seal = tide_reseal(seal, 9, flags, flags | ?2) where id = ?1";
    for sql in [FAILED, DEAD] {
        group.conn.prepare_cached(sql)?.execute([id.as_i64(), row::COMPENSATED])?;
    }
    Ok(())
}

fn write_journal(
    group: &mut Group<'_>,
    lease: &LeaseRow,
    message: &Message,
    rows: &mut Vec<EffectRow>,
    item: &Prepared,
    extent: Extent,
) -> Result<(), Trouble> {
    for write in &item.settle.journal {
        match journal::apply_all(group, lease, message, rows, std::slice::from_ref(write)) {
            Err(Trouble::Item(error)) if extent.lenient && is_data_error(&error) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Moves a leased message to where the transition says, with its history and counters.
#[expect(clippy::too_many_arguments, reason = "the whole of what a run's end consists of; two callers")]
pub(crate) fn move_on(
    group: &mut Group<'_>,
    lane: &Lane,
    lease: &LeaseRow,
    id: MessageId,
    outcome: &Outcome,
    transition: &Transition,
    rows: &[EffectRow],
    last: Option<LastSettlement>,
) -> Result<(), Trouble> {
    remove_lease(group, lane, id, lease.token)?;
    failpoint::reach("settle.after_lease");
    if canary::is(Canary::CheckActStore) {
        // It was never taken out of its lane; with an answer it is.
        let Life { lane, due_at, .. } = lease.life;
        group.conn.prepare_cached("delete from tide_ready where lane = ?1 and due_at = ?2 and id = ?3")?.execute([
            lane,
            due_at.as_millis(),
            id.as_i64(),
        ])?;
    }
    let reported = !matches!(outcome, Outcome::LeaseExpired | Outcome::Released);
    let mut flags = crate::copied::flags_after(lease.life.flags, reported) & row::LASTING & !row::SUSPECT;
    if !rows.is_empty() {
        flags |= row::JOURNALED;
    }
    if transition.suspect {
        flags |= row::SUSPECT;
    }
    let life = Life {
        lane: lane.id,
        due_at: lease.life.due_at,
        counters: transition.counters,
        flags,
        expires_at: lease.life.expires_at,
        last,
    };
    let failure = outcome.failure();
    if transition.next == Next::Cancelled {
        let facts = tidegate_core::effect::JournalFacts::of(rows, group.now);
        crate::cancel::called_off(group, lane, id, &life, &facts)?;
    } else {
        let result = match outcome {
            Outcome::Completed { result, .. } if transition.next == Next::Completed => Some(&**result),
            Outcome::Completed { .. }
            | Outcome::Permanent { .. }
            | Outcome::Retryable { .. }
            | Outcome::NotDone { .. }
            | Outcome::Unknown { .. }
            | Outcome::Snooze { .. }
            | Outcome::Park { .. }
            | Outcome::Exhausted { .. }
            | Outcome::Undecodable { .. }
            | Outcome::Refused { .. }
            | Outcome::Released
            | Outcome::LeaseExpired => None,
        };
        place::put(group, lane, id, &life, &Ending { next: transition.next, result, failure })?;
    }
    if transition.next != Next::Completed {
        place::history(
            group,
            id,
            &store::Ending {
                at: group.now,
                attempt: transition.counters.attempt,
                generation: transition.counters.generation,
                outcome: outcome.as_str().to_owned(),
                state: transition.next.state(),
                code: failure.map_or_else(String::new, |failure| failure.code.clone()),
                detail: failure.map_or_else(String::new, |failure| failure.detail.clone()),
                due_at: due_at(transition.next),
            },
        )?;
    }
    count(group, lane, outcome, transition.next);
    Ok(())
}

fn remove_lease(group: &mut Group<'_>, lane: &Lane, id: MessageId, token: LeaseToken) -> Result<(), Trouble> {
    const END: &str = "-- settle: ends the run
        delete from tide_lease where id = ?1
          and claims = ?2 and nonce = ?3           -- the lease token";
    drop(group.take_lease(id));
    let removed = group.sql(END)?.execute(params![id.as_i64(), token.claims, token.nonce.as_bytes()])?;
    if removed == 0 {
        return Err(extend::lost(group, id)?.into());
    }
    group.count(lane.queue_id, Place::Leased, -1);
    Ok(())
}

fn count(group: &mut Group<'_>, lane: &Lane, outcome: &Outcome, next: Next) {
    group.tally(lane, Counted::Attempts, outcome.as_str());
    let code = outcome.failure().map(|failure| failure.code.clone());
    if matches!(next, Next::Ready { .. }) {
        group.tally(lane, Counted::Retries, code.clone().unwrap_or_default());
    }
    // A lost lease is a failure nobody could report a code of.
    let lost = || matches!(outcome, Outcome::LeaseExpired).then(|| outcome.as_str().to_owned());
    if let Some(code) = code.or_else(lost) {
        group.tally(lane, Counted::Failures, code);
    }
}

fn due_at(next: Next) -> Option<Timestamp> {
    match next {
        Next::Ready { due_at } => Some(due_at),
        Next::Completed | Next::Failed | Next::Dead(_) | Next::Parked(_) | Next::Cancelled => None,
    }
}

fn reason(next: Next) -> Option<&'static str> {
    match next {
        Next::Dead(reason) => Some(reason.as_str()),
        Next::Parked(reason) => Some(reason.as_str()),
        Next::Ready { .. } | Next::Completed | Next::Failed | Next::Cancelled => None,
    }
}

/// Enqueues what follows from the message, in its flow.
fn follow(
    group: &mut Group<'_>,
    lease: &LeaseRow,
    id: MessageId,
    follow_ups: &[Result<enqueue::Prepared, StoreError>],
) -> Result<Vec<MessageId>, Trouble> {
    let origin = Origin::Follows { flow: lease.flow.unwrap_or(id), parent: id };
    let mut ids = Vec::with_capacity(follow_ups.len());
    for follow_up in follow_ups {
        match follow_up {
            Ok(prepared) => match enqueue::one(group, prepared, origin)? {
                Enqueued::New { id } | Enqueued::Existing { id, .. } | Enqueued::Replayed { id, .. } => ids.push(id),
                Enqueued::Stale => {
                    let what = format!("a message that follows from {id} has a key older than the retention");
                    return Err(StoreError::invalid(what).into());
                }
            },
            Err(refused) => {
                let what = format!("a message that follows from {id} is refused: {}", refused.what());
                return Err(StoreError::invalid(what).into());
            }
        }
    }
    Ok(ids)
}

/// Whether no message can have followed from this one before: it is the first of its flow, and was never put back after it
/// had ended, which begins a generation.
pub(crate) fn is_whole_flow(id: MessageId, lease: &LeaseRow) -> bool {
    lease.flow.unwrap_or(id) == id && lease.life.counters.generation == 0
}

/// How long the flow took, if this was its last message to end.
fn flow_took(group: &Group<'_>, id: MessageId, lease: &LeaseRow) -> Result<Option<Duration>, Trouble> {
    const LIVE: &str = "-- settle: another message of the flow that has not ended; the newest is the likeliest
        select 1 from tide_message m where m.flow = ?1
          and not exists (select 1 from tide_result r where r.id = m.id)
          and not exists (select 1 from tide_held h where h.id = m.id and h.state = 'dead')
        order by m.id desc limit 1";
    const FIRST: &str = "-- settle: the first message of the flow, and whether it has ended
        select enqueued_at, exists (select 1 from tide_result r where r.id = m.id)
          or exists (select 1 from tide_held h where h.id = m.id and h.state = 'dead')
        from tide_message m where m.id = ?1";
    let root = lease.flow.unwrap_or(id);
    let live = group.sql(LIVE)?.exists([root.as_i64()])?;
    if live {
        return Ok(None);
    }
    if root == id {
        return Ok(Some(group.now.since(lease.enqueued_at)));
    }
    let first: Option<(i64, bool)> = group
        .conn
        .prepare_cached(FIRST)?
        .query_row([root.as_i64()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(match first {
        Some((enqueued_at, true)) => Some(group.now.since(Timestamp::from_millis(enqueued_at))),
        Some((_, false)) | None => None,
    })
}

/// The token is not current: this settlement was made before and its reply was lost, or another one was, or the lease is
/// lost. The row that the message moved to says which; once it was claimed again the token is an old one.
fn repeated(group: &mut Group<'_>, item: &Prepared) -> Result<Settled, Trouble> {
    let (id, token) = (item.settle.id, item.settle.token);
    let found = place::find(group.conn, id)?.filter(|_| !canary::is(Canary::RepeatedSettlementRefused));
    let made = |found: &Found| {
        let last = found.last().filter(|last| last.nonce == *token.nonce.as_bytes());
        last.filter(|_| found.counters().claims == token.claims)
    };
    match found.as_ref().and_then(|found| Some((found, made(found)?))) {
        Some((found, last)) if last.digest == item.digest => repeated_verdict(group, item, found),
        Some(_) => {
            let what = format!("another settlement of {id} was made under this lease token");
            Err(StoreError::conflict(what).message_id(id).into())
        }
        None => {
            journal::keep_evidence(group, id, item.settle.journal.iter())?;
            Err(extend::lost(group, id)?.into())
        }
    }
}

/// What the last run of a message made of it.
fn last_run(group: &Group<'_>, id: MessageId) -> Result<Option<(State, Option<Timestamp>)>, Trouble> {
    const LAST_RUN: &str = "-- settle, repeated: the last ending that is no operator's act
        select * from tide_history where message = ?1 and outcome <> 'cancelled'
        order by seq desc limit 1";
    let mut statement = group.conn.prepare_cached(LAST_RUN)?;
    let mut rows = statement.query([id.as_i64()])?;
    let table = "tide_history";
    let Some(row) = rows.next()? else { return Ok(None) };
    seal::check(row, seal::HISTORY)?;
    Ok(Some((row::state(row, table)?, row::maybe_time(row, "due_at", table)?)))
}

fn repeated_verdict(group: &mut Group<'_>, item: &Prepared, found: &Found) -> Result<Settled, Trouble> {
    let (state, due_at, reason) = match found {
        Found::Ready { .. } | Found::Leased(_) => (found.state(), found.due_at(), None),
        // An operator may have called it off since: what the settlement made of it stands in the history.
        Found::Ended(ended) if ended.state == State::Cancelled => {
            let (state, due_at) = last_run(group, item.settle.id)?.unwrap_or((State::Cancelled, None));
            (state, due_at, None)
        }
        Found::Ended(ended) => {
            let code = ended.reason.as_deref().unwrap_or_default();
            let dead = DeadReason::from_code(code).map(DeadReason::as_str);
            (ended.state, None, dead.or(ParkReason::from_code(code).map(ParkReason::as_str)))
        }
    };
    let mut follow_ups = Vec::new();
    for prepared in item.follow_ups(state).iter().flatten() {
        follow_ups.extend(enqueue::whose(group, prepared)?);
    }
    Ok(Settled { state, due_at, reason, follow_ups, flow_took: None, repeated: true })
}
