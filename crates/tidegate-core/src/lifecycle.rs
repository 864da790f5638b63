//! The life of a message: every transition there is. Pure: no clock, no store, no async.
//!
//! ```text
//! ready ──claim──▶ leased ──settle──▶ completed | failed | dead | cancelled     (terminal)
//!   ▲                │  └───────────▶ parked ──resolve──▶ ready                 (waits for a person)
//!   └──retry, snooze, release, sweep─┘            dead | failed | cancelled ──redrive──▶ ready
//! ```
//!
//! [`admit`] decides when a message is claimed, [`settle`] when a run ended (reported, crashed or released), [`cancel`],
//! [`redrive`] and [`resolve`] what an operator may do. An engine calls them inside its transaction with the facts it
//! read there, and persists what they say; nobody else chooses a state.
//!
//! The rule above all others: **no message becomes terminal, by any path, while an effect is open.**

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::canary::{self, Canary};
use crate::clock::Timestamp;
use crate::effect::{EffectRow, EffectState, Fate, JournalFacts};
use crate::error::StoreError;
use crate::id::MessageId;
use crate::message::Failure;
use crate::retry::Policy;

/// Where a message is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits to be claimed, now or when it is due.
    Ready,
    /// A worker runs it.
    Leased,
    /// The handler did it; the result is stored.
    Completed,
    /// The handler said never: a fact of the business.
    Failed,
    /// Attempts, crashes or time are used up: a fact of operations.
    Dead,
    /// Called off before it took effect.
    Cancelled,
    /// An effect may have happened, and only a person or a reconciliation may decide.
    Parked,
}

impl State {
    /// All states, in the order they are shown.
    pub const ALL: [Self; 7] =
        [Self::Ready, Self::Leased, Self::Parked, Self::Completed, Self::Failed, Self::Dead, Self::Cancelled];

    /// Whether nothing but an operator changes it any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Ready | Self::Leased | Self::Parked => false,
            Self::Completed | Self::Failed | Self::Dead | Self::Cancelled => true,
        }
    }

    /// The word for it everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Parked => "parked",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for State {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            StoreError::invalid(format!("no state {text:?}")).hint(format!("one of {all}"))
        })
    }
}

macro_rules! reason {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code that is stored, counted and shown.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The reason behind a stored code.
            #[must_use]
            pub fn from_code(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == code)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reason! {
    /// Why a message is dead.
    DeadReason {
        /// `max_attempts` counted attempts ended without an answer.
        Exhausted = "exhausted",
        /// The next attempt would begin after the deadline.
        Deadline = "deadline",
        /// The next attempt would begin after `max_age`.
        MaxAge = "max_age",
        /// The process crashed `crash_limit` times while it ran alone.
        CrashLimit = "crash_limit",
        /// The payload does not decode.
        Decode = "decode",
        /// The handler said never after an effect was confirmed, and attached no compensation.
        PermanentAfterEffect = "permanent_after_effect",
        /// What the handler returned cannot be stored.
        SettlementRefused = "settlement_refused",
    }
}

reason! {
    /// Why a message is parked.
    ParkReason {
        /// Its policy allows neither a resend nor a look-up.
        OutcomeUnknown = "outcome_unknown",
        /// The remote may have forgotten the key, and there is no look-up.
        WindowPassed = "window_passed",
        /// It was not cleared up in time.
        ReconcileExhausted = "reconcile_exhausted",
        /// The code now describes another effect under the same name.
        EffectChanged = "effect_changed",
        /// The code no longer reaches the open effect.
        EffectOrphaned = "effect_orphaned",
        /// A confirmed value no longer decodes.
        JournalDecode = "journal_decode",
    }
}

/// How a run ended, as its worker reports it; or as the sweep reports it for a worker that cannot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The handler returned its result.
    Completed {
        /// JSON text.
        result: Arc<str>,
        /// Open effects of earlier attempts that this run did not reach.
        orphans: bool,
    },
    /// The handler said never.
    Permanent {
        /// Why.
        failure: Failure,
        /// Whether a compensation commits with it.
        compensated: bool,
        /// Open effects of earlier attempts that this run did not reach.
        orphans: bool,
    },
    /// The handler failed in a way that may pass: an error, a panic, a time-out.
    Retryable {
        /// Why.
        failure: Failure,
        /// The earliest next run, if the remote said one.
        after: Option<Duration>,
    },
    /// An effect was refused before anything happened: try again, and count nothing.
    NotDone {
        /// Why.
        failure: Failure,
        /// The earliest next run, if the remote said one.
        after: Option<Duration>,
    },
    /// An effect may have happened, or cannot be looked up yet: the run ends here, its open rows decide.
    Unknown {
        /// What was seen.
        failure: Failure,
    },
    /// The handler asks to be run again later; counts nothing.
    Snooze {
        /// How much later.
        after: Duration,
    },
    /// An effect cannot be decided by code.
    Park {
        /// Why.
        reason: ParkReason,
        /// What was seen.
        failure: Failure,
    },
    /// A reconciliation found that the effect never happened, and no attempt is left to send it again.
    Exhausted {
        /// Why.
        failure: Failure,
    },
    /// The payload does not decode.
    Undecodable {
        /// What the decoder said.
        failure: Failure,
    },
    /// The handler's result or follow-ups cannot be stored.
    Refused {
        /// Why.
        failure: Failure,
    },
    /// The worker drains: the message was not finished and goes back to where it was; counts nothing.
    Released,
    /// The lease was taken over: its holder crashed, hung or was cut off.
    LeaseExpired,
}

impl Outcome {
    /// The word for it in history, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Permanent { .. } => "permanent",
            Self::Retryable { .. } => "retryable",
            Self::NotDone { .. } => "not_done",
            Self::Unknown { .. } => "unknown",
            Self::Snooze { .. } => "snooze",
            Self::Park { .. } => "park",
            Self::Exhausted { .. } => "exhausted",
            Self::Undecodable { .. } => "undecodable",
            Self::Refused { .. } => "refused",
            Self::Released => "released",
            Self::LeaseExpired => "lease_expired",
        }
    }

    /// What went wrong, where something did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Permanent { failure, .. }
            | Self::Retryable { failure, .. }
            | Self::NotDone { failure, .. }
            | Self::Unknown { failure }
            | Self::Park { failure, .. }
            | Self::Exhausted { failure }
            | Self::Undecodable { failure }
            | Self::Refused { failure } => Some(failure),
            Self::Completed { .. } | Self::Snooze { .. } | Self::Released | Self::LeaseExpired => None,
        }
    }
}

/// What is counted of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Claims ever; the epoch of the lease token, never falls.
    pub claims: u32,
    /// Counted runs of this generation; the running one included.
    pub attempt: u32,
    /// Crashes of this generation while it ran alone.
    pub crashes: u32,
    /// Redrives so far.
    pub generation: u32,
    /// Rises when a redrive lets a rejected effect be sent again.
    pub round: u32,
}

/// What the store knows about a message at the moment of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What is counted, as of the running claim.
    pub counters: Counters,
    /// What the journal means.
    pub journal: JournalFacts,
    /// When the message became claimable, for a release.
    pub due_at: Timestamp,
    /// The message's deadline.
    pub deadline: Option<Timestamp>,
    /// End of its `max_age`.
    pub expires_at: Timestamp,
    /// An operator asked to cancel it.
    pub cancel_requested: bool,
    /// This run began with an open effect and was not counted.
    pub reconciling: bool,
    /// An earlier run crashed: it must run alone.
    pub suspect: bool,
    /// This run ran with nothing else in its process.
    pub alone: bool,
}

/// What to do with a message that a claim found due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Lease it.
    Start {
        /// The counters of the lease.
        counters: Counters,
        /// An effect is open: clear it up first; the run is not counted.
        reconciling: bool,
    },
    /// Too late to begin.
    Dead(DeadReason),
    /// Called off while it could not be, and now it can.
    Cancelled,
}

/// Decides at claim: counts the attempt before it starts, and begins nothing after the deadline.
///
/// The deadline is suspended while an effect is open, and waived once one is confirmed: money may have moved, the rest of
/// the handler must follow.
#[must_use]
pub fn admit(facts: &Facts, now: Timestamp) -> Admission {
    let reconciling = !facts.journal.open.is_empty();
    if facts.cancel_requested && !reconciling && !facts.journal.confirmed {
        return Admission::Cancelled;
    }
    let suspended = reconciling && !canary::is(Canary::DeadlineDespiteOpenEffect);
    if let Some(reason) = too_late(facts, now).filter(|_| !suspended) {
        return Admission::Dead(reason);
    }
    let counted = !reconciling && !canary::is(Canary::AttemptsCountedAtFailure);
    let counters = Counters {
        claims: facts.counters.claims + 1,
        attempt: facts.counters.attempt + u32::from(counted),
        ..facts.counters
    };
    Admission::Start { counters, reconciling }
}

/// Whether a run that begins at `when` begins too late.
fn too_late(facts: &Facts, when: Timestamp) -> Option<DeadReason> {
    if facts.journal.confirmed {
        return None;
    }
    match facts.deadline {
        Some(deadline) if when >= deadline => Some(DeadReason::Deadline),
        _ if when >= facts.expires_at => Some(DeadReason::MaxAge),
        _ => None,
    }
}

/// What becomes of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Where it goes.
    pub next: Next,
    /// Its counters there.
    pub counters: Counters,
    /// It must run alone from now on.
    pub suspect: bool,
}

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Back to the queue.
    Ready {
        /// When it may be claimed.
        due_at: Timestamp,
    },
    /// The result is its answer; follow-ups commit with it.
    Completed,
    /// The failure is its answer; compensations commit with it.
    Failed,
    /// A dead letter; compensations commit with it.
    Dead(DeadReason),
    /// Waits for a person.
    Parked(ParkReason),
    /// Called off.
    Cancelled,
}

impl Next {
    /// The state this leads to.
    #[must_use]
    pub fn state(&self) -> State {
        match self {
            Self::Ready { .. } => State::Ready,
            Self::Completed => State::Completed,
            Self::Failed => State::Failed,
            Self::Dead(_) => State::Dead,
            Self::Parked(_) => State::Parked,
            Self::Cancelled => State::Cancelled,
        }
    }
}

/// What a run's end would mean if no effect were open.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Terminal(Next),
    Again { after: Option<Duration>, backoff: bool, counted: bool },
    Back,
    Park(ParkReason),
}

/// Decides at the end of a run. `unit` is uniform in `0.0..1.0`, for the jitter.
#[must_use]
pub fn settle(facts: &Facts, outcome: &Outcome, policy: &Policy, now: Timestamp, unit: f64) -> Transition {
    let convicts = facts.alone || canary::is(Canary::InnocentsConvicted);
    let crashed_alone = convicts && matches!(outcome, Outcome::LeaseExpired);
    let crashes = facts.counters.crashes + u32::from(crashed_alone);
    // A run that was not alone may be innocent: it becomes a suspect, and only a crash while alone convicts it.
    let suspect = match outcome {
        Outcome::LeaseExpired => true,
        Outcome::Released => facts.suspect,
        Outcome::Completed { .. }
        | Outcome::Permanent { .. }
        | Outcome::Retryable { .. }
        | Outcome::NotDone { .. }
        | Outcome::Unknown { .. }
        | Outcome::Snooze { .. }
        | Outcome::Park { .. }
        | Outcome::Exhausted { .. }
        | Outcome::Undecodable { .. }
        | Outcome::Refused { .. } => false,
    };
    let wish = called_off(facts, outcome).unwrap_or_else(|| wish(facts, outcome, policy, crashes, now));
    // Also where it is the end of it: this run had not begun, or was one that clears up and went no further.
    let free = match outcome {
        Outcome::LeaseExpired => facts.reconciling || (facts.suspect && !facts.alone),
        Outcome::Exhausted { .. } => facts.reconciling,
        Outcome::Completed { .. }
        | Outcome::Permanent { .. }
        | Outcome::Retryable { .. }
        | Outcome::NotDone { .. }
        | Outcome::Unknown { .. }
        | Outcome::Snooze { .. }
        | Outcome::Park { .. }
        | Outcome::Undecodable { .. }
        | Outcome::Refused { .. }
        | Outcome::Released => false,
    };
    let uncounted = match wish {
        Wish::Back => true,
        Wish::Again { counted, .. } => !counted,
        Wish::Terminal(Next::Dead(_)) => free,
        Wish::Terminal(_) | Wish::Park(_) => false,
    };
    let attempt = if canary::is(Canary::AttemptsCountedAtFailure) {
        facts.counters.attempt + u32::from(!uncounted && !matches!(outcome, Outcome::LeaseExpired))
    } else {
        counted_attempts(facts, uncounted)
    };
    let counters = Counters { attempt, crashes, ..facts.counters };
    let facts = &Facts { counters, ..facts.clone() };

    let next = if facts.journal.open.is_empty() || canary::is(Canary::TerminalWithOpenEffect) {
        when_decided(facts, wish, policy, now, unit)
    } else {
        while_open(facts, outcome, &wish, policy, now, unit)
    };
    Transition { next, counters, suspect: suspect && matches!(next, Next::Ready { .. }) }
}

/// Decides when a sweep takes a lapsed lease over. `policy` is what the kind's workers declared, if any ever did: without it
/// nobody's limit can have been reached, so that the message goes back to ready and its next worker decides.
#[must_use]
pub fn take_over(facts: &Facts, policy: Option<&Policy>, now: Timestamp, unit: f64) -> Transition {
    // Asked without limits, not bent afterwards: a run that never began must not be counted either.
    let unlimited = Policy { max_attempts: u32::MAX, crash_limit: u32::MAX, ..Policy::default() };
    let usual = Policy::default();
    let policy = policy.or_else(|| canary::is(Canary::SweepWithoutPolicy).then_some(&usual));
    let declared = settle(facts, &Outcome::LeaseExpired, policy.unwrap_or(&unlimited), now, unit);
    match declared.next {
        // Only its time can be over; the next claim says so.
        Next::Dead(_) if policy.is_none() => {
            Transition { next: Next::Ready { due_at: now }, suspect: true, ..declared }
        }
        Next::Dead(_) | Next::Ready { .. } | Next::Completed | Next::Failed | Next::Parked(_) | Next::Cancelled => {
            declared
        }
    }
}

/// Where a message goes whose stored rows cannot be read. With a journal an effect may be open, so only a person may end it.
#[must_use]
pub fn unreadable(journaled: bool) -> Next {
    if journaled { Next::Parked(ParkReason::JournalDecode) } else { Next::Dead(DeadReason::Decode) }
}

/// How many counted attempts the message has had after this run.
fn counted_attempts(facts: &Facts, uncounted: bool) -> u32 {
    let attempt = facts.counters.attempt;
    if facts.reconciling {
        // Not counted at the claim. Once its effects are decided it went on as an attempt of its own.
        let went_on = facts.journal.open.is_empty() && !uncounted;
        attempt + u32::from(went_on)
    } else {
        attempt - u32::from(uncounted).min(attempt)
    }
}

/// A cancel request takes effect at the end of a run that did not complete, if nothing has taken effect.
fn called_off(facts: &Facts, outcome: &Outcome) -> Option<Wish> {
    let completion = matches!(outcome, Outcome::Completed { .. } | Outcome::Permanent { .. });
    let may =
        facts.cancel_requested && !completion && !facts.journal.confirmed && !matches!(outcome, Outcome::Park { .. });
    may.then_some(Wish::Terminal(Next::Cancelled))
}

fn wish(facts: &Facts, outcome: &Outcome, policy: &Policy, crashes: u32, now: Timestamp) -> Wish {
    let dead = |reason| Wish::Terminal(Next::Dead(reason));
    // Past its age a message still comes again only because an effect of it is confirmed. Then what is otherwise free counts,
    // or a remote that refuses for ever, or a handler that snoozes for ever, would keep it from ending at all.
    let aged = now >= facts.expires_at;
    match outcome {
        Outcome::Completed { .. } => Wish::Terminal(Next::Completed),
        Outcome::Permanent { compensated: false, .. }
            if facts.journal.confirmed && !canary::is(Canary::PermanentAfterEffectFails) =>
        {
            dead(DeadReason::PermanentAfterEffect)
        }
        Outcome::Permanent { .. } => Wish::Terminal(Next::Failed),
        Outcome::Retryable { after, .. } => Wish::Again { after: *after, backoff: true, counted: true },
        Outcome::NotDone { after, .. } => {
            let counted = aged || canary::is(Canary::NotDoneCounted);
            Wish::Again { after: *after, backoff: true, counted }
        }
        Outcome::Unknown { .. } => Wish::Again { after: None, backoff: true, counted: true },
        Outcome::Snooze { after } => Wish::Again { after: Some(*after), backoff: false, counted: aged },
        Outcome::Park { reason, .. } => Wish::Park(*reason),
        Outcome::Exhausted { .. } => dead(DeadReason::Exhausted),
        Outcome::Undecodable { .. } => dead(DeadReason::Decode),
        Outcome::Refused { .. } => dead(DeadReason::SettlementRefused),
        Outcome::Released => Wish::Back,
        Outcome::LeaseExpired if crashes >= policy.crash_limit => dead(DeadReason::CrashLimit),
        // A suspect whose process went down before it was alone had not started; a reconciling run was never counted.
        Outcome::LeaseExpired => {
            let started = facts.alone || !facts.suspect;
            Wish::Again { after: None, backoff: false, counted: started && !facts.reconciling }
        }
    }
}

/// No effect is open: the wish is granted, within attempts and time.
fn when_decided(facts: &Facts, wish: Wish, policy: &Policy, now: Timestamp, unit: f64) -> Next {
    match wish {
        Wish::Terminal(next) => next,
        Wish::Park(reason) => Next::Parked(reason),
        Wish::Again { counted: true, .. } if facts.counters.attempt >= policy.max_attempts => {
            Next::Dead(DeadReason::Exhausted)
        }
        // A run that cleared up costs nothing, however it ended. Sent back it would be claimed as one attempt more, and as
        // another one each time it got no further than this.
        Wish::Back | Wish::Again { .. } if found_nothing_and_has_none_left(facts, policy) => {
            Next::Dead(DeadReason::Exhausted)
        }
        Wish::Back => Next::Ready { due_at: facts.due_at },
        Wish::Again { after, backoff, counted } => {
            let due_at = now.after(pause(facts, after, backoff, counted, policy, unit));
            too_late(facts, due_at).map_or(Next::Ready { due_at }, Next::Dead)
        }
    }
}

/// The run found out that an effect of an earlier run did not happen, and no attempt is left to make it. An effect that the
/// run itself tried is another matter: it went on, by the attempt that is granted to whoever finds that something did happen.
fn found_nothing_and_has_none_left(facts: &Facts, policy: &Policy) -> bool {
    let found_nothing = facts.journal.not_happened.is_some_and(|claims| claims < facts.counters.claims);
    facts.reconciling && found_nothing && facts.counters.attempt >= policy.max_attempts
}

/// An effect is open: nothing becomes terminal. Reconcile if every open effect can be, park if one cannot.
fn while_open(facts: &Facts, outcome: &Outcome, wish: &Wish, policy: &Policy, now: Timestamp, unit: f64) -> Next {
    if let Wish::Park(reason) = wish {
        return Next::Parked(*reason);
    }
    if matches!(outcome, Outcome::Completed { orphans: true, .. } | Outcome::Permanent { orphans: true, .. }) {
        return Next::Parked(ParkReason::EffectOrphaned);
    }
    let mut due_at = match wish {
        Wish::Back => facts.due_at,
        Wish::Again { after, backoff, .. } => now.after(pause(facts, *after, *backoff, false, policy, unit)),
        Wish::Terminal(_) | Wish::Park(_) => now.after(pause(facts, None, true, false, policy, unit)),
    };
    for fate in &facts.journal.open {
        match *fate {
            Fate::Park(reason) => return Next::Parked(reason),
            Fate::Reconcile { not_before } => due_at = due_at.max(not_before),
        }
    }
    Next::Ready { due_at }
}

/// How long until the next run. What is not counted backs off by its claims instead, or an outage would be hammered.
fn pause(facts: &Facts, after: Option<Duration>, backoff: bool, counted: bool, policy: &Policy, unit: f64) -> Duration {
    let run = if counted { facts.counters.attempt } else { facts.counters.claims };
    if backoff { policy.backoff.delay(run.max(1), after, unit) } else { after.unwrap_or_default() }
}

/// What a request to cancel means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellation {
    /// Called off on the spot; also said of one that was called off before.
    Now,
    /// Kept as a wish: a run is under way, or an open effect has to be decided first.
    Requested,
}

/// A request to cancel, beside what stands at its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The key is to be freed for another message.
    pub release_key: bool,
    /// All that is asked for was noted at the message before.
    pub noted: bool,
}

/// Whether a request to cancel was made before and stands: its reply may have been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It was not: it is to be carried out.
    Never,
    /// It was, and nothing is left to do.
    Stands,
    /// It is cancelled. Its key may have been kept then, and is to be freed only now: made before if the key names this
    /// message no more.
    IfKeyIsFree,
}

impl Cancellation {
    /// Whether this was asked for before, of a message in this state.
    #[must_use]
    pub fn before(self, state: State, asked: Asked) -> Before {
        match (self, state) {
            (Self::Requested, _) if asked.noted => Before::Stands,
            (Self::Requested, _) | (Self::Now, State::Ready | State::Leased) => Before::Never,
            (Self::Now, State::Cancelled | State::Completed | State::Failed | State::Dead | State::Parked) => {
                if asked.release_key { Before::IfKeyIsFree } else { Before::Stands }
            }
        }
    }

    /// How the audit has it, of a message that was in this state.
    #[must_use]
    pub fn audited(self, state: State, release_key: bool) -> &'static str {
        match (self, release_key) {
            _ if state == State::Cancelled => "key released",
            (Self::Now, false) => "cancelled",
            (Self::Now, true) => "cancelled, key released",
            (Self::Requested, false) => "requested",
            (Self::Requested, true) => "requested, key to be released",
        }
    }
}

/// Decides about a request to cancel. One that was called off already is told so, and nothing is left to do: whoever asks
/// again because the reply was lost is not told of a failure.
///
/// # Errors
/// `Conflict` when it has taken effect already, is parked, or has ended otherwise.
pub fn cancel(state: State, journal: &JournalFacts) -> Result<Cancellation, StoreError> {
    let refused = |why: &str, hint: &str| Err(StoreError::conflict(format!("cannot be cancelled: {why}")).hint(hint));
    match state {
        State::Ready | State::Leased if journal.confirmed => {
            refused("an effect of it is confirmed", "let it finish, and undo it with a message of its own")
        }
        State::Ready if journal.open.is_empty() || canary::is(Canary::CancelDespiteOpenEffect) => Ok(Cancellation::Now),
        State::Ready | State::Leased => Ok(Cancellation::Requested),
        State::Cancelled => Ok(Cancellation::Now),
        State::Parked => {
            refused("it is parked, its effect may have happened", "resolve it first: tidegate parked resolve")
        }
        State::Completed | State::Failed | State::Dead => {
            refused(&format!("it is {state}"), "only ready and leased messages can be")
        }
    }
}

/// Refuses to free the key of a message of which an effect was tried.
///
/// # Errors
/// `Conflict` when one was.
pub fn check_release(id: MessageId, journal: &JournalFacts) -> Result<(), StoreError> {
    if may_release_key(journal) {
        return Ok(());
    }
    let what = format!("the key of {id} cannot be released: an effect of it was tried");
    Err(StoreError::conflict(what).hint("cancel it without releasing the key"))
}

/// Whether cancelling may free the key for another message.
#[must_use]
pub fn may_release_key(journal: &JournalFacts) -> bool {
    !journal.intents || canary::is(Canary::KeyReleasedAfterIntent)
}

/// The counters of a dead letter whose payload an operator changes: its effects get another round, and with it other keys.
///
/// # Errors
/// `Conflict` when it is not dead, or when an effect of the old payload happened or may have: what stands in the world and
/// what the message says would no longer be one thing.
pub fn edit(state: State, counters: Counters, journal: &[EffectRow]) -> Result<Counters, StoreError> {
    if state != State::Dead {
        let what = format!("its payload cannot be changed: it is {state}");
        return Err(StoreError::conflict(what).hint("only the payload of a dead letter can be"));
    }
    for row in journal {
        match row.state {
            EffectState::Intent | EffectState::Unknown { .. } | EffectState::Confirmed { .. } => {
                let what = format!("its payload cannot be changed: effect {} is {}", row.effect, row.state.as_str());
                return Err(StoreError::conflict(what)
                    .hint("an effect of this payload happened or may have; enqueue a new message under another key"));
            }
            EffectState::Rejected { .. } | EffectState::NotDone => {}
        }
    }
    Ok(Counters { round: counters.round + 1, ..counters })
}

/// Whether an operator may give a message up for good.
///
/// # Errors
/// `Conflict` when it is not dead, or an effect of it is open.
pub fn discard(state: State, journal: &JournalFacts) -> Result<(), StoreError> {
    if !journal.open.is_empty() {
        let what = "cannot be discarded: an effect of it is open";
        return Err(StoreError::conflict(what).hint("resolve it first: tidegate parked resolve"));
    }
    match state {
        State::Dead => Ok(()),
        State::Ready | State::Leased | State::Completed | State::Failed | State::Cancelled | State::Parked => {
            let what = format!("cannot be discarded: it is {state}");
            Err(StoreError::conflict(what).hint("only a dead letter can be; a waiting message is called off: cancel"))
        }
    }
}

/// What bears on a redrive beside the message's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Redriving {
    /// The operator says so, with a reason: an answer that was given may be replaced.
    pub again: bool,
    /// A compensation was enqueued when the message ended.
    pub compensated: bool,
}

/// The counters of a message that an operator puts back.
///
/// # Errors
/// `Conflict`, with the reason, when it may not be redriven.
pub fn redrive(
    state: State,
    counters: Counters,
    journal: &JournalFacts,
    how: Redriving,
) -> Result<Counters, StoreError> {
    let refused = |why: String, hint: &str| Err(StoreError::conflict(format!("cannot be redriven: {why}")).hint(hint));
    match state {
        State::Parked if canary::is(Canary::ParkedRedriven) => {}
        _ if !journal.open.is_empty() => {
            return refused("an effect of it is open".into(), "resolve it first: tidegate parked resolve");
        }
        // Its confirmed effects would replay, and it would complete on the strength of what was given back.
        State::Dead | State::Failed if how.compensated => {
            return refused(
                "a compensation that undoes it was enqueued when it ended".into(),
                "enqueue a new message under a new key",
            );
        }
        State::Dead => {}
        State::Failed if how.again => {}
        State::Failed => {
            return refused(
                "it failed for good and its answer has been given".into(),
                "--again with a reason replaces the answer",
            );
        }
        State::Cancelled if !journal.intents => {}
        State::Cancelled => {
            return refused("it was cancelled after an effect was tried".into(), "enqueue a new message");
        }
        State::Ready | State::Leased | State::Completed | State::Parked => {
            return refused(format!("it is {state}"), "only dead, failed (--again) and cancelled messages can be");
        }
    }
    Ok(Counters {
        attempt: 0,
        crashes: 0,
        generation: counters.generation + 1,
        round: counters.round + u32::from(journal.rejected),
        claims: counters.claims,
    })
}

/// What an operator, or a gateway's webhook, knows about a parked effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It happened.
    Happened {
        /// JSON text of the value the handler would have got.
        value: Arc<str>,
    },
    /// It did not happen, and no request of ours can arrive any more.
    DidNotHappen,
}

/// The state of a row that a person decided.
///
/// # Errors
/// `Conflict` when it is decided otherwise already, or when "did not happen" comes before the quarantine ends.
pub fn resolve(
    row: &EffectRow,
    reason: ParkReason,
    resolution: &Resolution,
    now: Timestamp,
) -> Result<EffectState, StoreError> {
    let undecodable = reason == ParkReason::JournalDecode && matches!(row.state, EffectState::Confirmed { .. });
    match (resolution, &row.state) {
        // Resolving twice alike is the same act.
        (Resolution::Happened { value }, EffectState::Confirmed { value: known }) if value == known => {
            Ok(row.state.clone())
        }
        (Resolution::DidNotHappen, EffectState::NotDone) => Ok(EffectState::NotDone),
        (_, state) if !state.is_open() && !undecodable => Err(StoreError::conflict(format!(
            "effect {} is already {} and cannot be resolved otherwise",
            row.effect,
            state.as_str()
        ))),
        (Resolution::Happened { value }, _) => Ok(EffectState::Confirmed { value: value.clone() }),
        (Resolution::DidNotHappen, _) if undecodable => Err(StoreError::conflict(format!(
            "effect {} is confirmed; it did happen, only its value does not decode",
            row.effect
        ))
        .hint("resolve it as happened, with a value the running code decodes")),
        (Resolution::DidNotHappen, _) if canary::is(Canary::ResolveInQuarantine) => Ok(EffectState::NotDone),
        (Resolution::DidNotHappen, _) if now < row.quarantined_until() => Err(StoreError::conflict(format!(
            "effect {} may still arrive until {}",
            row.effect,
            row.quarantined_until()
        ))
        .hint("ask the remote again after that time; until then its \"not found\" proves nothing")),
        (Resolution::DidNotHappen, _) => Ok(EffectState::NotDone),
    }
}

/// The counters of a message whose open effects are all resolved: due now, with one granted attempt if none was left.
#[must_use]
pub fn resolved(counters: Counters, policy: &Policy) -> Counters {
    Counters { attempt: counters.attempt.min(policy.max_attempts.saturating_sub(1)), ..counters }
}

#[cfg(test)]
mod tests;
