//! The same decisions as in `rules.rs`, asked of the core: for a simulation that wants to see the core decide.
//!
//! The model calls none of this unless it was made to. What the core says is done then, and where the rules say otherwise
//! the difference is kept: two tellings of one law must agree on every step of every run.

use tidegate_core::effect::{
    EffectRow, JournalFacts, answered, confirmed_at_once, intend, latest, not_sent, seen_under,
};
use tidegate_core::lifecycle::{self, Admission, Facts, Next, Outcome, State, Transition};
use tidegate_core::store::JournalWrite;
use tidegate_core::{LeaseToken, StoreError, Timestamp};

use super::rules;
use super::world::Record;

/// What a journal write makes of a row; none when there is nothing to write.
pub(super) fn row(
    record: &Record,
    rows: &[EffectRow],
    write: &JournalWrite,
    token: LeaseToken,
    now: Timestamp,
) -> Result<Option<EffectRow>, StoreError> {
    let (message, round) = (&record.message, record.counters.round);
    match write {
        JournalWrite::Intent { reached, times } => intend(message, rows, reached, *times, token, round, now).map(Some),
        JournalWrite::Natural { reached, value } => {
            confirmed_at_once(message, rows, reached, value.clone(), token, round, now).map(Some)
        }
        JournalWrite::Answer { effect, seq, answer } => {
            let row = rows.iter().find(|row| row.effect == *effect && row.seq == *seq);
            let row = row.ok_or_else(|| StoreError::conflict(format!("effect {effect} has no row {seq}")))?;
            Ok(Some(EffectRow { state: answered(&seen_under(row, token), answer, now)?, ..row.clone() }))
        }
        JournalWrite::NotSent { effect } => Ok(latest(rows, effect).and_then(|_| not_sent(rows, effect, token, now))),
    }
}

/// What becomes of a message that a claim found due.
pub(super) fn admit(record: &Record, due_at: Timestamp, now: Timestamp) -> Admission {
    lifecycle::admit(&facts(record, due_at, now), now)
}

fn facts(record: &Record, due_at: Timestamp, now: Timestamp) -> Facts {
    Facts {
        counters: record.counters,
        journal: JournalFacts::of(&record.journal, now),
        due_at,
        deadline: record.message.deadline,
        expires_at: record.message.expires_at,
        cancel_requested: record.cancel_wanted,
        reconciling: false,
        suspect: record.suspect,
        alone: false,
    }
}

/// What becomes of a message whose run ended.
pub(super) fn end(record: &Record, run: &rules::Run<'_>, outcome: &Outcome) -> rules::Ended {
    let facts = Facts { reconciling: run.reconciling, alone: run.alone, ..facts(record, run.due_at, run.now) };
    let transition = match outcome {
        Outcome::LeaseExpired => lifecycle::take_over(&facts, run.may_die.then_some(run.policy), run.now, run.unit),
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
        | Outcome::Released => lifecycle::settle(&facts, outcome, run.policy, run.now, run.unit),
    };
    let Transition { next, counters, suspect } = transition;
    let (state, due_at, reason) = match next {
        Next::Ready { due_at } => (State::Ready, Some(due_at), None),
        Next::Completed => (State::Completed, None, None),
        Next::Failed => (State::Failed, None, None),
        Next::Cancelled => (State::Cancelled, None, None),
        Next::Dead(reason) => (State::Dead, None, Some(reason.as_str())),
        Next::Parked(reason) => (State::Parked, None, Some(reason.as_str())),
    };
    rules::Ended { state, due_at, reason, counters, suspect }
}
