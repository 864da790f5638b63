//! The transition table, written anew from the protocol: what a claim, an end of a run, an operator and an effect's
//! answer do to a message. Shares no decision with `lifecycle.rs` or `effect.rs` of the core: two tellings of one law,
//! so that a slip in either shows as a difference.
//!
//! Told as the protocol tells it: first what a run *costs*, then whether an effect is *open* (which overrules all
//! wishes), then what the outcome *asks for*, then whether there are attempts and time for it.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::effect::{
    EffectAnswer, EffectId, EffectKey, EffectPolicy, EffectRow, EffectState, IntentTimes, MAX_RECONCILE, Reached,
};
use tidegate_core::lifecycle::{Counters, DeadReason, Outcome, ParkReason, State};
use tidegate_core::message::Message;
use tidegate_core::retry::Policy;
use tidegate_core::{LeaseToken, StoreError, Timestamp};

use super::Mutation;

/// What the journal says, newest row of each effect first of all.
pub(super) struct Journal<'a> {
    newest: Vec<&'a EffectRow>,
    all: &'a [EffectRow],
}

impl<'a> Journal<'a> {
    pub(super) fn of(rows: &'a [EffectRow]) -> Self {
        let mut newest: BTreeMap<&EffectId, &EffectRow> = BTreeMap::new();
        for row in rows {
            let known = newest.entry(&row.effect).or_insert(row);
            if row.seq > known.seq {
                *known = row;
            }
        }
        Self { newest: newest.into_values().collect(), all: rows }
    }

    pub(super) fn newest(&self, effect: &EffectId) -> Option<&'a EffectRow> {
        self.newest.iter().copied().find(|row| row.effect == *effect)
    }

    /// Effects that may have happened and nobody knows.
    pub(super) fn open(&self) -> Vec<&'a EffectRow> {
        self.newest.iter().copied().filter(|row| is_open(&row.state)).collect()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.open().is_empty()
    }

    /// Money may have moved.
    pub(super) fn is_confirmed(&self) -> bool {
        (self.newest.iter())
            .any(|row| row.policy != EffectPolicy::Natural && matches!(row.state, EffectState::Confirmed { .. }))
    }

    /// A refusal is the last word of this message: nothing was done because of it, instead of it.
    pub(super) fn is_rejected(&self) -> bool {
        self.newest.iter().any(|row| self.is_last_word(row))
    }

    fn is_last_word(&self, row: &EffectRow) -> bool {
        let done_instead = |other: &&EffectRow| {
            other.effect != row.effect
                && other.policy != EffectPolicy::Natural
                && matches!(other.state, EffectState::Confirmed { .. })
                && (other.token.claims > row.token.claims
                    || other.token.claims == row.token.claims && other.first_intent_at >= row.first_intent_at)
        };
        matches!(row.state, EffectState::Rejected { .. })
            && !self.newest.iter().copied().any(|other| done_instead(&other))
    }

    /// An effect that an earlier claim than this one tried turned out not to have happened, and nobody tried it since.
    fn was_in_vain_before(&self, claims: u32) -> bool {
        self.newest.iter().any(|row| {
            row.policy != EffectPolicy::Natural && row.state == EffectState::NotDone && row.token.claims < claims
        })
    }

    /// Something left this process, or was about to.
    pub(super) fn was_tried(&self) -> bool {
        self.all.iter().any(|row| row.policy != EffectPolicy::Natural)
    }
}

fn is_open(state: &EffectState) -> bool {
    match state {
        EffectState::Intent | EffectState::Unknown { .. } => true,
        EffectState::Confirmed { .. } | EffectState::Rejected { .. } | EffectState::NotDone => false,
    }
}

fn quarantined_until(row: &EffectRow) -> Timestamp {
    row.last_possible_send.after(row.quarantine)
}

// --- effects ---------------------------------------------------------------------------------------------------------

/// What can be done about an open effect at a moment.
enum Remedy {
    SendAgain,
    LookUpFrom(Timestamp),
    Nobody(ParkReason),
}

fn remedy(row: &EffectRow, now: Timestamp) -> Remedy {
    let in_time = now < row.reconcile_until;
    let look_up = || {
        if in_time {
            Remedy::LookUpFrom(quarantined_until(row))
        } else {
            Remedy::Nobody(ParkReason::ReconcileExhausted)
        }
    };
    match &row.policy {
        EffectPolicy::AtMostOnce => Remedy::Nobody(ParkReason::OutcomeUnknown),
        EffectPolicy::Lookup => look_up(),
        EffectPolicy::Keyed { or_lookup, .. } => {
            let remembered = row.valid_until.is_some_and(|until| now < until);
            match (remembered, or_lookup) {
                (true, _) if in_time => Remedy::SendAgain,
                (true, _) => Remedy::Nobody(ParkReason::ReconcileExhausted),
                (false, true) => look_up(),
                (false, false) => Remedy::Nobody(ParkReason::WindowPassed),
            }
        }
        EffectPolicy::Natural | EffectPolicy::Transactional => Remedy::Nobody(ParkReason::EffectChanged),
    }
}

/// The row an intent leaves.
pub(super) fn intent(
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    times: IntentTimes,
    token: LeaseToken,
    round: u32,
    now: Timestamp,
) -> Result<EffectRow, StoreError> {
    let journal = Journal::of(rows);
    let refused = || Err(StoreError::conflict(format!("effect {} may not be sent", reached.effect)));
    let last_possible_send = now.after(times.send_within);
    let newest = journal.newest(&reached.effect);
    let another_is_open = journal.open().iter().any(|row| row.effect != reached.effect);
    let (seq, key, round) = match newest {
        _ if another_is_open && newest.is_none_or(|row| !is_open(&row.state)) => return refused(),
        None => (0, EffectKey::of(message, &reached.effect, round), round),
        Some(row) => match &row.state {
            EffectState::Confirmed { .. } => return refused(),
            EffectState::Rejected { .. } if row.round >= round || !journal.is_last_word(row) => return refused(),
            EffectState::Rejected { .. } => (row.seq + 1, EffectKey::of(message, &reached.effect, round), round),
            // Another payload, by an operator's hand: the remote must not take it for the old one.
            EffectState::NotDone if row.round != round && row.request_hash != reached.request_hash => {
                (row.seq + 1, EffectKey::of(message, &reached.effect, round), round)
            }
            EffectState::NotDone => (row.seq + 1, row.key.clone(), row.round),
            EffectState::Intent | EffectState::Unknown { .. } => {
                let same = row.policy == reached.policy && row.request_hash == reached.request_hash;
                if !same || !matches!(remedy(row, now), Remedy::SendAgain) {
                    return refused();
                }
                let mut again = row.clone();
                again.token = token;
                again.sends += 1;
                again.last_possible_send = last_possible_send;
                again.state = EffectState::Intent;
                return Ok(again);
            }
        },
    };
    // Past its time a message begins nothing, unless something happened that must be gone through with.
    let in_time = message.deadline.is_none_or(|deadline| now < deadline) && now < message.expires_at;
    if !in_time && !journal.is_confirmed() {
        return refused();
    }
    let (valid_until, bound) = match reached.policy {
        EffectPolicy::Keyed { window, or_lookup } => {
            (Some(now.after(window)), if or_lookup { MAX_RECONCILE } else { window.min(MAX_RECONCILE) })
        }
        EffectPolicy::Lookup | EffectPolicy::AtMostOnce | EffectPolicy::Natural | EffectPolicy::Transactional => {
            (None, MAX_RECONCILE)
        }
    };
    Ok(EffectRow {
        effect: reached.effect.clone(),
        seq,
        policy: reached.policy.clone(),
        key,
        request_hash: reached.request_hash,
        round,
        token,
        sends: 1,
        first_intent_at: now,
        last_possible_send,
        valid_until,
        quarantine: reached.quarantine,
        reconcile_until: now.after(times.reconcile_for.min(bound)),
        state: EffectState::Intent,
    })
}

/// Whether an answer was written before: its reply was lost.
pub(super) fn says_already(row: &EffectRow, answer: &EffectAnswer) -> bool {
    match (answer, &row.state) {
        (EffectAnswer::Confirmed { value }, EffectState::Confirmed { value: known }) => value == known,
        (EffectAnswer::Rejected { code, detail }, EffectState::Rejected { code: c, detail: d }) => {
            (code, detail) == (c, d)
        }
        (EffectAnswer::NotDone | EffectAnswer::NotFound, EffectState::NotDone) => true,
        _ => false,
    }
}

/// What an answer makes of an open row.
pub(super) fn answer(
    row: &EffectRow,
    answer: &EffectAnswer,
    token: LeaseToken,
    now: Timestamp,
) -> Result<EffectState, StoreError> {
    if !is_open(&row.state) {
        return Err(StoreError::conflict(format!("effect {} is decided", row.effect)));
    }
    Ok(match answer {
        EffectAnswer::Confirmed { value } => EffectState::Confirmed { value: value.clone() },
        EffectAnswer::Rejected { code, detail } => EffectState::Rejected { code: code.clone(), detail: detail.clone() },
        EffectAnswer::Unknown { why } => EffectState::Unknown { why: why.clone() },
        // Of one's own only send one knows that nothing happened; of an earlier one whose answer is missing nobody does.
        EffectAnswer::NotDone if row.sends > 1 || row.state != EffectState::Intent || row.token != token => {
            EffectState::Unknown { why: "not done now; an earlier send may have been".into() }
        }
        EffectAnswer::NotDone => EffectState::NotDone,
        EffectAnswer::NotFound if now >= quarantined_until(row) => EffectState::NotDone,
        EffectAnswer::NotFound => return Err(StoreError::conflict("not found proves nothing yet")),
    })
}

/// The row of an effect that is confirmed without an intent.
pub(super) fn natural(
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    value: &std::sync::Arc<str>,
    token: LeaseToken,
    round: u32,
    now: Timestamp,
) -> Result<EffectRow, StoreError> {
    let newest = Journal::of(rows).newest(&reached.effect);
    let seq = match newest.map(|row| &row.state) {
        Some(EffectState::Intent | EffectState::Unknown { .. } | EffectState::Confirmed { .. }) => {
            return Err(StoreError::conflict(format!("effect {} is open or confirmed", reached.effect)));
        }
        Some(EffectState::Rejected { .. } | EffectState::NotDone) | None => newest.map_or(0, |row| row.seq + 1),
    };
    Ok(EffectRow {
        effect: reached.effect.clone(),
        seq,
        policy: reached.policy.clone(),
        key: EffectKey::of(message, &reached.effect, round),
        request_hash: reached.request_hash,
        round,
        token,
        sends: 1,
        first_intent_at: now,
        last_possible_send: now,
        valid_until: None,
        quarantine: reached.quarantine,
        reconcile_until: now,
        state: EffectState::Confirmed { value: value.clone() },
    })
}

// --- claims ----------------------------------------------------------------------------------------------------------

/// Why nothing may begin at a moment, if so: time does not run while an effect is open, nor once one is confirmed.
pub(super) fn too_late(message: &Message, journal: &Journal<'_>, when: Timestamp) -> Option<DeadReason> {
    if journal.is_open() || journal.is_confirmed() {
        None
    } else if message.deadline.is_some_and(|deadline| deadline <= when) {
        Some(DeadReason::Deadline)
    } else if message.expires_at <= when {
        Some(DeadReason::MaxAge)
    } else {
        None
    }
}

// --- ends of runs ----------------------------------------------------------------------------------------------------

/// A run that ended.
pub(super) struct Run<'a> {
    pub(super) message: &'a Message,
    pub(super) journal: Journal<'a>,
    pub(super) counters: Counters,
    pub(super) due_at: Timestamp,
    pub(super) reconciling: bool,
    pub(super) suspect: bool,
    pub(super) alone: bool,
    pub(super) cancel_wanted: bool,
    pub(super) policy: &'a Policy,
    /// A sweep makes no dead letter of a kind nobody has declared, whatever the reason: the next claim may.
    pub(super) may_die: bool,
    pub(super) now: Timestamp,
    pub(super) unit: f64,
    pub(super) mutation: Option<Mutation>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) state: State,
    pub(super) due_at: Option<Timestamp>,
    pub(super) reason: Option<&'static str>,
    pub(super) counters: Counters,
    pub(super) suspect: bool,
}

/// Whether a run that ended so costs no attempt.
fn is_free(outcome: &Outcome, run: &Run<'_>) -> bool {
    match outcome {
        Outcome::Released => true,
        // What time no longer bounds (something happened that must be gone through with), attempts do.
        Outcome::NotDone { .. } | Outcome::Snooze { .. } => run.now < run.message.expires_at,
        // It waited to be alone and never began.
        Outcome::LeaseExpired => run.reconciling || (run.suspect && !run.alone),
        // It found out what had become of an effect, and no more.
        Outcome::Exhausted { .. } => run.reconciling,
        Outcome::Completed { .. }
        | Outcome::Permanent { .. }
        | Outcome::Retryable { .. }
        | Outcome::Unknown { .. }
        | Outcome::Park { .. }
        | Outcome::Undecodable { .. }
        | Outcome::Refused { .. } => false,
    }
}

/// Where a run leads that ended so.
enum Goal {
    Answer(State),
    Dead(DeadReason),
    Cancelled,
    Parked(ParkReason),
    Ready(Timestamp),
}

pub(super) fn end(run: &Run<'_>, outcome: &Outcome) -> Ended {
    let open = run.journal.is_open() && run.mutation != Some(Mutation::TerminalWithOpenEffect);
    let cancelled = run.cancel_wanted
        && !run.journal.is_confirmed()
        && !matches!(outcome, Outcome::Completed { .. } | Outcome::Permanent { .. } | Outcome::Park { .. });

    let mut counters = run.counters;
    let free = is_free(outcome, run) && !cancelled;
    if run.reconciling {
        counters.attempt += u32::from(!free && !run.journal.is_open());
    } else if free && run.mutation != Some(Mutation::AttemptNotReturned) {
        counters.attempt -= 1;
    }
    let crashed = matches!(outcome, Outcome::LeaseExpired);
    if crashed && (run.alone || run.mutation == Some(Mutation::InnocentsConvicted)) {
        counters.crashes += 1;
    }

    let goal = if open {
        clear_up(run, &counters, outcome, cancelled)
    } else if cancelled {
        Goal::Cancelled
    } else {
        grant(run, &counters, outcome, free)
    };
    let (state, due_at, reason) = match goal {
        Goal::Answer(state) => (state, None, None),
        Goal::Dead(reason) => (State::Dead, None, Some(reason.as_str())),
        Goal::Cancelled => (State::Cancelled, None, None),
        Goal::Parked(reason) => (State::Parked, None, Some(reason.as_str())),
        Goal::Ready(due_at) => (State::Ready, Some(due_at), None),
    };
    let suspect = state == State::Ready && (crashed || (matches!(outcome, Outcome::Released) && run.suspect));
    Ended { state, due_at, reason, counters, suspect }
}

fn backoff(run: &Run<'_>, runs: u32, floor: Option<Duration>) -> Timestamp {
    run.now.after(run.policy.backoff.delay(runs.max(1), floor, run.unit))
}

/// An effect is open: somebody must find out before anything else happens.
fn clear_up(run: &Run<'_>, counters: &Counters, outcome: &Outcome, cancelled: bool) -> Goal {
    let mut due_at = match outcome {
        Outcome::Park { reason, .. } => return Goal::Parked(*reason),
        Outcome::Completed { orphans: true, .. } | Outcome::Permanent { orphans: true, .. } => {
            return Goal::Parked(ParkReason::EffectOrphaned);
        }
        // Called off, whatever the run said it waits its turn like any other that has to find out.
        _ if cancelled => backoff(run, counters.claims, None),
        Outcome::Released => run.due_at,
        Outcome::Snooze { after } => run.now.after(*after),
        Outcome::LeaseExpired if run.policy.crash_limit > counters.crashes => run.now,
        Outcome::Retryable { after, .. } | Outcome::NotDone { after, .. } => backoff(run, counters.claims, *after),
        Outcome::Completed { .. }
        | Outcome::Permanent { .. }
        | Outcome::Unknown { .. }
        | Outcome::Exhausted { .. }
        | Outcome::Undecodable { .. }
        | Outcome::Refused { .. }
        | Outcome::LeaseExpired => backoff(run, counters.claims, None),
    };
    for row in run.journal.open() {
        match remedy(row, run.now) {
            Remedy::Nobody(reason) => return Goal::Parked(reason),
            Remedy::LookUpFrom(moment) => due_at = due_at.max(moment),
            Remedy::SendAgain => due_at = due_at.max(run.now),
        }
    }
    Goal::Ready(due_at)
}

/// No effect is open: the outcome gets what it asks for, within attempts and time.
fn grant(run: &Run<'_>, counters: &Counters, outcome: &Outcome, free: bool) -> Goal {
    let none_left = counters.attempt >= run.policy.max_attempts;
    let in_vain = run.reconciling && none_left && run.journal.was_in_vain_before(counters.claims);
    let again = |due_at: Timestamp| {
        if none_left && !free || in_vain {
            return Goal::Dead(DeadReason::Exhausted);
        }
        let too_late = too_late(run.message, &run.journal, due_at).filter(|_| run.may_die);
        too_late.map_or(Goal::Ready(due_at), Goal::Dead)
    };
    match outcome {
        Outcome::Completed { .. } => Goal::Answer(State::Completed),
        Outcome::Permanent { compensated, .. } if *compensated || !run.journal.is_confirmed() => {
            Goal::Answer(State::Failed)
        }
        Outcome::Permanent { .. } => Goal::Dead(DeadReason::PermanentAfterEffect),
        Outcome::Undecodable { .. } => Goal::Dead(DeadReason::Decode),
        Outcome::Refused { .. } => Goal::Dead(DeadReason::SettlementRefused),
        Outcome::Exhausted { .. } => Goal::Dead(DeadReason::Exhausted),
        Outcome::Park { reason, .. } => Goal::Parked(*reason),
        Outcome::Released if in_vain => Goal::Dead(DeadReason::Exhausted),
        Outcome::Released => Goal::Ready(run.due_at),
        Outcome::Snooze { after } => again(run.now.after(*after)),
        Outcome::NotDone { after, .. } => {
            again(backoff(run, if free { counters.claims } else { counters.attempt }, *after))
        }
        Outcome::Retryable { after, .. } => again(backoff(run, counters.attempt, *after)),
        Outcome::Unknown { .. } => again(backoff(run, counters.attempt, None)),
        Outcome::LeaseExpired if counters.crashes >= run.policy.crash_limit => Goal::Dead(DeadReason::CrashLimit),
        Outcome::LeaseExpired => again(run.now),
    }
}

// --- operators -------------------------------------------------------------------------------------------------------

/// The counters after a redrive.
pub(super) fn redrive(
    state: State,
    counters: Counters,
    journal: &Journal<'_>,
    again: bool,
    undone: bool,
) -> Result<Counters, StoreError> {
    let allowed = !undone
        && match state {
            State::Dead => true,
            State::Failed => again,
            State::Cancelled => !journal.was_tried(),
            State::Ready | State::Leased | State::Parked | State::Completed => false,
        };
    if !allowed || journal.is_open() {
        return Err(StoreError::conflict(format!("cannot be redriven while {state}")));
    }
    let round = counters.round + u32::from(journal.is_rejected());
    Ok(Counters { claims: counters.claims, attempt: 0, crashes: 0, generation: counters.generation + 1, round })
}

/// What "it did not happen" can be said of: an open effect whose quarantine is over.
pub(super) fn may_be_denied(row: &EffectRow, now: Timestamp) -> bool {
    is_open(&row.state) && now >= quarantined_until(row)
}
