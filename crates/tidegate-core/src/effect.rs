//! One external side effect inside a handler: its identity, its journal, and what may be done about it next. Pure.
//!
//! A durable **intent** row precedes every send. The answer is one of four: *confirmed*, *rejected* (the remote said no),
//! *not done* (nothing happened), *unknown* (everything else, a crash included). A row without an answer, or with
//! *unknown*, is **open**: it is reconciled before anything else happens to the message. [`reach`] decides what a handler
//! that reaches an effect does; [`fate`] what becomes of a message whose run ended with an open row; [`intend`] and
//! [`answered`] are the only transitions of a row. Engines persist rows, they decide nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::canary::{self, Canary};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::{EffectName, Hex, LeaseToken, digest16};
use crate::lifecycle::ParkReason;
use crate::message::Message;
use crate::retry::millis;

/// The quarantine of policies that do not name one: how long after the last possible send "did not happen" is believed.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(120);
/// The longest that an open effect is reconciled before it is parked for a person.
pub const MAX_RECONCILE: Duration = Duration::from_secs(24 * 3600);

/// Which effect of a message: its name and, where one handler repeats it, the item. Not its position, not the code's version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectId {
    /// Chosen by the author of the handler.
    pub name: EffectName,
    /// Tells repetitions apart: a line number, a recipient.
    pub item: Option<String>,
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.item {
            Some(item) => write!(f, "{}[{item}]", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// What the remote sees as the idempotency key: the same for every send of an effect, over all attempts and processes.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectKey(Arc<str>);

impl EffectKey {
    /// The key of an effect in a round: H(tenant, queue, idempotency key, effect, item, round), 32 hexadecimal digits.
    #[must_use]
    pub fn of(message: &Message, effect: &EffectId, round: u32) -> Self {
        let queue = if canary::is(Canary::QueueNotInEffectKey) { "" } else { message.queue.as_str() };
        let hash = digest16(&[
            message.tenant.as_str().as_bytes(),
            queue.as_bytes(),
            message.key.as_str().as_bytes(),
            effect.name.as_str().as_bytes(),
            effect.item.as_deref().unwrap_or_default().as_bytes(),
            &[u8::from(effect.item.is_some())],
            &round.to_le_bytes(),
        ]);
        Self(Hex(&hash).to_string().into())
    }

    /// From what an engine stored.
    #[must_use]
    pub fn from_stored(key: &str) -> Self {
        Self(key.into())
    }

    /// The key as it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// How an unknown answer may be cleared up. The author of the effect picks one; there is no default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case")]
pub enum EffectPolicy {
    /// The remote deduplicates our key for this long: send the same key again. Afterwards look it up, or park.
    Keyed {
        /// How long the remote remembers a key, from its first send.
        #[serde(with = "millis", rename = "window_ms")]
        window: Duration,
        /// Whether the handler can look the effect up when the window has passed.
        or_lookup: bool,
    },
    /// The remote can be asked whether it happened, some time after the last possible send.
    Lookup,
    /// The effect is a write in the store's own database, committed with its confirmation.
    Transactional,
    /// Harmless to repeat: no intent; the confirmation rides the settlement.
    Natural,
    /// At most one send whose answer is not *not done*; unknown waits for a person.
    AtMostOnce,
}

impl EffectPolicy {
    /// The name used in logs and JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Keyed { .. } => "keyed",
            Self::Lookup => "lookup",
            Self::Transactional => "transactional",
            Self::Natural => "natural",
            Self::AtMostOnce => "at_most_once",
        }
    }

    /// Whether the two are the same policy in the journal, which keeps whole milliseconds, and no more than a number holds:
    /// a window of `Duration::MAX` is not another one for having been stored.
    fn is_stored_as(&self, other: &Self) -> bool {
        let millis = |window: &Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        match (self, other) {
            (Self::Keyed { window, or_lookup }, Self::Keyed { window: other_window, or_lookup: other_or_lookup }) => {
                millis(window) == millis(other_window) && or_lookup == other_or_lookup
            }
            (
                Self::Keyed { .. } | Self::Lookup | Self::Transactional | Self::Natural | Self::AtMostOnce,
                Self::Keyed { .. } | Self::Lookup | Self::Transactional | Self::Natural | Self::AtMostOnce,
            ) => self == other,
        }
    }
}

/// What a row of the journal says of its effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EffectState {
    /// Sent or about to be; no answer yet. Under a token that is no longer current it reads as unknown.
    Intent,
    /// It may have happened.
    Unknown {
        /// What was seen instead of an answer.
        why: String,
    },
    /// It happened; the value replays for ever.
    Confirmed {
        /// JSON text of the value.
        value: Arc<str>,
    },
    /// The remote said no; replays until an operator opens another round.
    Rejected {
        /// The remote's code.
        code: String,
        /// What it said.
        detail: String,
    },
    /// Nothing happened: the same key may be sent again, in a new row.
    NotDone,
}

impl EffectState {
    /// Whether the effect may have happened and nobody knows.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Intent | Self::Unknown { .. } => true,
            Self::Confirmed { .. } | Self::Rejected { .. } | Self::NotDone => false,
        }
    }

    /// The name used in logs and JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Unknown { .. } => "unknown",
            Self::Confirmed { .. } => "confirmed",
            Self::Rejected { .. } => "rejected",
            Self::NotDone => "not_done",
        }
    }
}

/// What the remote answered, as the author of the call classified it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum EffectAnswer {
    /// It happened.
    Confirmed {
        /// JSON text of the value.
        value: Arc<str>,
    },
    /// The remote said no, finally.
    Rejected {
        /// The remote's code.
        code: String,
        /// What it said.
        detail: String,
    },
    /// Refused before anything happened: connection refused, 429, 503 with a promise.
    NotDone,
    /// Anything else: time-out, reset, 5xx.
    Unknown {
        /// What was seen.
        why: String,
    },
    /// A look-up, made after the quarantine, did not find it: it never happened.
    NotFound,
}

/// One row of a message's journal: one intent of one effect, with all its sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectRow {
    /// Which effect.
    pub effect: EffectId,
    /// Which of its rows, from 0.
    pub seq: u32,
    /// As the author declared it when the intent was written.
    pub policy: EffectPolicy,
    /// What the remote sees.
    pub key: EffectKey,
    /// Hash of the request: another request under an open row is another effect.
    pub request_hash: [u8; 16],
    /// Which round of the message.
    pub round: u32,
    /// The lease under which it was last sent.
    pub token: LeaseToken,
    /// Sends under this row, from 1.
    pub sends: u32,
    /// When the first intent was written.
    pub first_intent_at: Timestamp,
    /// After this the sender had given up: no request of ours can leave later.
    pub last_possible_send: Timestamp,
    /// Until when the remote is known to deduplicate the key (keyed only).
    pub valid_until: Option<Timestamp>,
    /// How long after the last possible send a look-up (or a person) is believed that says "did not happen".
    pub quarantine: Duration,
    /// After this an open row is parked.
    pub reconcile_until: Timestamp,
    /// What is known.
    pub state: EffectState,
}

impl EffectRow {
    /// Whether it was decided before the store was restored from a backup: claims count from 1, and a restored store sets
    /// those of such rows to 0. What was decided then may have been begun anew since, elsewhere.
    #[must_use]
    pub fn is_from_before_the_backup(&self) -> bool {
        self.token.claims == 0
    }

    /// From when "it did not happen" can be believed.
    #[must_use]
    pub fn quarantined_until(&self) -> Timestamp {
        if canary::is(Canary::LookUpWithoutQuarantine) {
            return self.first_intent_at;
        }
        self.last_possible_send.after(self.quarantine)
    }
}

/// An effect as the handler reached it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which effect.
    pub effect: EffectId,
    /// Its policy in the running code.
    pub policy: EffectPolicy,
    /// Hash of its request in the running code.
    pub request_hash: [u8; 16],
    /// Its quarantine in the running code.
    #[serde(with = "millis", rename = "quarantine_ms")]
    pub quarantine: Duration,
}

/// What to do at an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It happened before: the stored value.
    Replay(Arc<str>),
    /// It was refused before.
    ReplayRejected {
        /// The remote's code.
        code: String,
        /// What it said.
        detail: String,
    },
    /// Write an intent, then send.
    Send,
    /// Look it up first.
    LookUp {
        /// Earlier, "not found" proves nothing.
        not_before: Timestamp,
    },
    /// Only a person can decide.
    Park(ParkReason),
}

/// The newest row of an effect.
#[must_use]
pub fn latest<'a>(rows: &'a [EffectRow], effect: &EffectId) -> Option<&'a EffectRow> {
    rows.iter().filter(|row| row.effect == *effect).max_by_key(|row| row.seq)
}

/// What a handler that reaches an effect does.
///
/// `rows` is the message's journal; `round` the message's current round. Confirmed effects replay whatever changed in the
/// code; an open row whose policy or request changed is another effect and parks.
#[must_use]
pub fn reach(rows: &[EffectRow], reached: &Reached, round: u32, now: Timestamp) -> Decision {
    // Begin nothing beside an effect that may have happened, not even what was tried and not done before: the answer that
    // is missing may forbid it, as that of one gateway forbids the charge at another.
    let begin = || {
        let another_is_open =
            open_rows(rows).any(|row| row.effect != reached.effect) && !canary::is(Canary::EffectBesideOpenEffect);
        if another_is_open { Decision::Park(ParkReason::EffectOrphaned) } else { Decision::Send }
    };
    let Some(row) = latest(rows, &reached.effect) else { return begin() };
    match &row.state {
        EffectState::Confirmed { value } => Decision::Replay(value.clone()),
        EffectState::Rejected { .. } if canary::is(Canary::RejectedSentAgain) => begin(),
        EffectState::Rejected { .. } if row.round < round && !is_passed(rows, row) => begin(),
        EffectState::Rejected { code, detail } => {
            Decision::ReplayRejected { code: code.clone(), detail: detail.clone() }
        }
        EffectState::NotDone => begin(),
        EffectState::Intent | EffectState::Unknown { .. } => {
            let changed = row.request_hash != reached.request_hash || !row.policy.is_stored_as(&reached.policy);
            if changed && !canary::is(Canary::ChangedEffectResent) {
                return Decision::Park(ParkReason::EffectChanged);
            }
            reconcile(row, now)
        }
    }
}

/// Whether the handler knew of this rejection and went on to another effect, which happened: the second card was charged
/// because the first was declined. No round opens such a rejection again, or both cards would be charged. Effects of a
/// message run one after another, so that the later claim, or the later intent within one, tells; in doubt, within one
/// millisecond, the other was later.
fn is_passed(rows: &[EffectRow], rejected: &EffectRow) -> bool {
    let place = |row: &EffectRow| (row.token.claims, row.first_intent_at);
    rows.iter().any(|row| {
        row.effect != rejected.effect
            && row.policy != EffectPolicy::Natural
            && matches!(row.state, EffectState::Confirmed { .. })
            && place(row) >= place(rejected)
            && is_latest(rows, row)
    })
}

/// How an open row may be cleared up now.
fn reconcile(row: &EffectRow, now: Timestamp) -> Decision {
    let exhausted = now >= row.reconcile_until;
    let unless_exhausted = |decision| if exhausted { Decision::Park(ParkReason::ReconcileExhausted) } else { decision };
    match row.policy {
        EffectPolicy::Keyed { .. } if canary::is(Canary::WindowIgnored) => Decision::Send,
        EffectPolicy::Keyed { .. } if row.valid_until.is_some_and(|until| now < until) => {
            unless_exhausted(Decision::Send)
        }
        EffectPolicy::Keyed { or_lookup: false, .. } => Decision::Park(ParkReason::WindowPassed),
        EffectPolicy::Keyed { or_lookup: true, .. } | EffectPolicy::Lookup => {
            unless_exhausted(Decision::LookUp { not_before: row.quarantined_until() })
        }
        EffectPolicy::AtMostOnce if canary::is(Canary::AtMostOnceResent) => Decision::Send,
        EffectPolicy::AtMostOnce => Decision::Park(ParkReason::OutcomeUnknown),
        // Neither writes an intent, so neither can be open; a row that says so is not guessed about.
        EffectPolicy::Transactional | EffectPolicy::Natural => Decision::Park(ParkReason::EffectChanged),
    }
}

/// What becomes of a message whose run ended while this row is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Run again, not before this, to clear it up.
    Reconcile {
        /// The earliest useful moment.
        not_before: Timestamp,
    },
    /// Wait for a person.
    Park(ParkReason),
}

/// What becomes of a message whose run ended while `row` is open.
#[must_use]
pub fn fate(row: &EffectRow, now: Timestamp) -> Fate {
    match reconcile(row, now) {
        Decision::Park(reason) => Fate::Park(reason),
        Decision::LookUp { not_before } => Fate::Reconcile { not_before },
        Decision::Send | Decision::Replay(_) | Decision::ReplayRejected { .. } => Fate::Reconcile { not_before: now },
    }
}

/// The open rows of a journal: the newest row of each effect, where it is open.
pub fn open_rows(rows: &[EffectRow]) -> impl Iterator<Item = &EffectRow> {
    rows.iter().filter(|row| row.state.is_open() && is_latest(rows, row))
}

fn is_latest(rows: &[EffectRow], row: &EffectRow) -> bool {
    !rows.iter().any(|other| other.effect == row.effect && other.seq > row.seq)
}

/// Times of an intent, as durations that the store adds to its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentTimes {
    /// The sender gives up this long after the intent: no request leaves later.
    #[serde(with = "millis", rename = "send_within_ms")]
    pub send_within: Duration,
    /// How long an unknown answer is reconciled before it is parked; at most [`MAX_RECONCILE`] and the key's window.
    #[serde(with = "millis", rename = "reconcile_for_ms")]
    pub reconcile_for: Duration,
}

/// Whether it is too late to begin an effect: the deadline or the age of the message is over, and nothing has happened that
/// the rest of its handler must follow. What is open already is cleared up however late it is.
#[must_use]
pub fn too_late(message: &Message, rows: &[EffectRow], now: Timestamp) -> bool {
    let over = now >= message.expires_at || message.deadline.is_some_and(|deadline| now >= deadline);
    over && !JournalFacts::of(rows, now).confirmed
}

/// The row that a (re)send writes before anything leaves: a new one, or the open one with one more send. `message` has the
/// deadline and the age that are in force.
///
/// # Errors
/// `Conflict` when [`reach`] does not say [`Decision::Send`] (the journal moved on since the handler read it), or when it
/// is [too late](too_late) to begin.
pub fn intend(
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    times: IntentTimes,
    token: LeaseToken,
    round: u32,
    now: Timestamp,
) -> Result<EffectRow, StoreError> {
    if reach(rows, reached, round, now) != Decision::Send {
        return Err(StoreError::conflict(format!("effect {} of {} may not be sent now", reached.effect, message.id)));
    }
    let last_possible_send = now.after(times.send_within);
    let previous = latest(rows, &reached.effect);
    if let Some(open) = previous.filter(|row| row.state.is_open()) {
        let resend =
            EffectRow { token, sends: open.sends + 1, last_possible_send, state: EffectState::Intent, ..open.clone() };
        return Ok(match reached.policy {
            _ if canary::is(Canary::AttemptInEffectKey) => {
                EffectRow { key: EffectKey::of(message, &reached.effect, token.claims), ..resend }
            }
            EffectPolicy::Keyed { window, .. } if canary::is(Canary::WindowExtended) => {
                EffectRow { valid_until: Some(now.after(window)), ..resend }
            }
            EffectPolicy::Keyed { .. }
            | EffectPolicy::Lookup
            | EffectPolicy::Transactional
            | EffectPolicy::Natural
            | EffectPolicy::AtMostOnce => resend,
        });
    }
    if too_late(message, rows, now) {
        let what = format!("effect {} of {} would begin after the deadline", reached.effect, message.id);
        return Err(StoreError::conflict(what));
    }
    Ok(first_intent(message, previous, reached, times, token, round, now))
}

/// A new row: the first intent of an effect, or the first after the row `previous` was decided.
fn first_intent(
    message: &Message,
    previous: Option<&EffectRow>,
    reached: &Reached,
    times: IntentTimes,
    token: LeaseToken,
    round: u32,
    now: Timestamp,
) -> EffectRow {
    let last_possible_send = now.after(times.send_within);
    // After "not done" the key stays. An operator's new round changes it after a rejection, and where an edit made another
    // request of it: a remote that compares would refuse the old key with the new request.
    let asks_the_same = |row: &&EffectRow| row.round == round || row.request_hash == reached.request_hash;
    let same_key = previous.filter(|row| row.state == EffectState::NotDone).filter(asks_the_same);
    let (key, round) = match same_key {
        _ if canary::is(Canary::AttemptInEffectKey) => (EffectKey::of(message, &reached.effect, token.claims), round),
        Some(row) => (row.key.clone(), row.round),
        None => (EffectKey::of(message, &reached.effect, round), round),
    };
    let window = match reached.policy {
        EffectPolicy::Keyed { window, .. } => Some(window),
        EffectPolicy::Lookup | EffectPolicy::Transactional | EffectPolicy::Natural | EffectPolicy::AtMostOnce => None,
    };
    // A window without a look-up behind it bounds the reconciliation; with one, it goes on by look-up.
    let bound = match reached.policy {
        EffectPolicy::Keyed { window, or_lookup: false } => window.min(MAX_RECONCILE),
        EffectPolicy::Keyed { .. }
        | EffectPolicy::Lookup
        | EffectPolicy::Transactional
        | EffectPolicy::Natural
        | EffectPolicy::AtMostOnce => MAX_RECONCILE,
    };
    EffectRow {
        effect: reached.effect.clone(),
        seq: previous.map_or(0, |row| row.seq + 1),
        policy: reached.policy.clone(),
        key,
        request_hash: reached.request_hash,
        round,
        token,
        sends: 1,
        first_intent_at: now,
        last_possible_send,
        valid_until: window.map(|window| now.after(window)),
        quarantine: reached.quarantine,
        reconcile_until: now.after(times.reconcile_for.min(bound)),
        state: EffectState::Intent,
    }
}

/// Between which moments an effect can have been sent of which a store that came out of a backup knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unrecorded {
    /// When the copy was made: whatever was sent before it is in its journal.
    pub from: Timestamp,
    /// When the copy was put to work: the store it was copied from was out of use by then.
    pub until: Timestamp,
}

/// The row that a message from a backup gets where its journal has none: as if an intent existed.
///
/// The store that was copied went on, and may have sent what the copy knows nothing of: an effect without a row, one whose
/// last row was decided *not done*, or one of a new round. Such an effect is open with the first and the last moment at
/// which it can have been sent, and is cleared up as its policy says: the same key again within the window, a look-up
/// after the quarantine, or a person. `None` when the journal knows the effect from this store's own runs. However late
/// it is: this begins nothing.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "as `intend`, whose place it takes")]
pub fn assumed(
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    times: IntentTimes,
    token: LeaseToken,
    round: u32,
    unrecorded: Unrecorded,
    now: Timestamp,
) -> Option<EffectRow> {
    let previous = latest(rows, &reached.effect);
    let known = previous.is_some_and(|row| row.state.is_open() || !row.is_from_before_the_backup());
    if known || reach(rows, reached, round, now) != Decision::Send {
        return None;
    }
    let row = first_intent(message, previous, reached, times, token, round, now);
    let window = match reached.policy {
        EffectPolicy::Keyed { window, .. } => Some(window),
        EffectPolicy::Lookup | EffectPolicy::Transactional | EffectPolicy::Natural | EffectPolicy::AtMostOnce => None,
    };
    let why = format!("this store was restored from a backup of {}; it may have been sent since", unrecorded.from);
    Some(EffectRow {
        first_intent_at: unrecorded.from,
        last_possible_send: unrecorded.until,
        valid_until: window.map(|window| unrecorded.from.after(window)),
        state: EffectState::Unknown { why },
        ..row
    })
}

/// The state of an open row after an answer.
///
/// A *not done* closes a row only if nothing else was ever sent under it: after a first send whose answer was lost, a 503
/// to the second says nothing about the first. A *not found* is believed only after the quarantine. The same answer
/// again changes nothing: its writer may not have learnt that the first writing of it was committed.
///
/// # Errors
/// `Conflict` when the row is decided otherwise already, or when a look-up came too early to prove anything.
pub fn answered(row: &EffectRow, answer: &EffectAnswer, now: Timestamp) -> Result<EffectState, StoreError> {
    if repeats(row, answer) {
        return Ok(row.state.clone());
    }
    if !row.state.is_open() {
        let what = format!("effect {} is already {}", row.effect, row.state.as_str());
        return Err(StoreError::conflict(what));
    }
    match answer {
        EffectAnswer::Confirmed { value } => Ok(EffectState::Confirmed { value: value.clone() }),
        EffectAnswer::Rejected { code, detail } => {
            Ok(EffectState::Rejected { code: code.clone(), detail: detail.clone() })
        }
        EffectAnswer::NotDone if canary::is(Canary::NotDoneClosesLostSend) => Ok(EffectState::NotDone),
        EffectAnswer::NotDone if row.sends == 1 && row.state == EffectState::Intent => Ok(EffectState::NotDone),
        EffectAnswer::NotDone => Ok(EffectState::Unknown { why: "not done now; an earlier send may have been".into() }),
        EffectAnswer::Unknown { why } => Ok(EffectState::Unknown { why: why.clone() }),
        EffectAnswer::NotFound if now < row.quarantined_until() => Err(StoreError::conflict(format!(
            "effect {} was looked up before its quarantine ends at {}",
            row.effect,
            row.quarantined_until()
        ))),
        EffectAnswer::NotFound => Ok(EffectState::NotDone),
    }
}

/// The row as the holder of this lease sees it. An intent under another token is a send whose answer is missing: whoever did
/// not send it cannot say that it was not done, so it reads as unknown (PROTOCOL §3).
#[must_use]
pub fn seen_under(row: &EffectRow, token: LeaseToken) -> EffectRow {
    if row.state == EffectState::Intent && row.token != token {
        return EffectRow { state: EffectState::Unknown { why: "no answer".into() }, ..row.clone() };
    }
    row.clone()
}

/// The row of an intent whose send never left, because the reply to its writing was missing. `None` when the lease left none.
///
/// Only the holder of the lease can know that, and says so when it ends the run: without it, an effect that is sent at most
/// once would wait for a person although nothing was sent.
#[must_use]
pub fn not_sent(rows: &[EffectRow], effect: &EffectId, token: LeaseToken, now: Timestamp) -> Option<EffectRow> {
    let row = latest(rows, effect).filter(|row| row.token == token && row.state == EffectState::Intent)?;
    let state = answered(row, &EffectAnswer::NotDone, now).ok()?;
    Some(EffectRow { state, ..row.clone() })
}

/// Whether the row says already what the answer says: the reply to the first writing of it was lost.
#[must_use]
pub fn repeats(row: &EffectRow, answer: &EffectAnswer) -> bool {
    match (&row.state, answer) {
        (EffectState::Confirmed { value: known }, EffectAnswer::Confirmed { value }) => known == value,
        (EffectState::Rejected { code: known, detail: said }, EffectAnswer::Rejected { code, detail }) => {
            known == code && said == detail
        }
        (EffectState::NotDone, EffectAnswer::NotDone | EffectAnswer::NotFound) => true,
        (
            EffectState::Intent
            | EffectState::Unknown { .. }
            | EffectState::Confirmed { .. }
            | EffectState::Rejected { .. }
            | EffectState::NotDone,
            EffectAnswer::Confirmed { .. }
            | EffectAnswer::Rejected { .. }
            | EffectAnswer::NotDone
            | EffectAnswer::Unknown { .. }
            | EffectAnswer::NotFound,
        ) => false,
    }
}

/// The decided row of an effect that writes no intent of its own: natural ones and those committed in the store itself.
///
/// Confirmed under the same lease with the same value it is the same row: a write whose reply was lost, made again.
///
/// # Errors
/// `Conflict` when the effect is already confirmed otherwise or has an open row.
pub fn confirmed_at_once(
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    value: Arc<str>,
    token: LeaseToken,
    round: u32,
    now: Timestamp,
) -> Result<EffectRow, StoreError> {
    let previous = latest(rows, &reached.effect);
    let again = |row: &&EffectRow| {
        row.token == token && matches!(&row.state, EffectState::Confirmed { value: known } if *known == value)
    };
    if let Some(row) = previous.filter(again) {
        return Ok(row.clone());
    }
    if let Some(row) = previous.filter(|row| row.state.is_open() || matches!(row.state, EffectState::Confirmed { .. }))
    {
        return Err(StoreError::conflict(format!("effect {} is already {}", row.effect, row.state.as_str())));
    }
    Ok(EffectRow {
        effect: reached.effect.clone(),
        seq: previous.map_or(0, |row| row.seq + 1),
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
        state: EffectState::Confirmed { value },
    })
}

/// What the journal means for the message as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalFacts {
    /// The fate of each open effect.
    pub open: Vec<Fate>,
    /// An effect that is not natural is confirmed: money may have moved.
    pub confirmed: bool,
    /// An intent was ever written.
    pub intents: bool,
    /// The newest row of some effect is a rejection, and no effect happened after it.
    pub rejected: bool,
    /// The newest row of some effect says that it did not happen: the claim under which it was tried, the earliest one of them.
    pub not_happened: Option<u32>,
}

impl JournalFacts {
    /// The facts of a journal at a moment.
    #[must_use]
    pub fn of(rows: &[EffectRow], now: Timestamp) -> Self {
        let newest = || rows.iter().filter(|row| is_latest(rows, row));
        Self {
            open: newest().filter(|row| row.state.is_open()).map(|row| fate(row, now)).collect(),
            confirmed: newest()
                .any(|row| matches!(row.state, EffectState::Confirmed { .. }) && row.policy != EffectPolicy::Natural),
            intents: rows.iter().any(|row| row.policy != EffectPolicy::Natural),
            rejected: newest().any(|row| matches!(row.state, EffectState::Rejected { .. }) && !is_passed(rows, row)),
            not_happened: newest()
                .filter(|row| row.policy != EffectPolicy::Natural && row.state == EffectState::NotDone)
                .map(|row| row.token.claims)
                .min(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::id::{IdempotencyKey, Kind, MessageId, Nonce, QueueName, Tenant};
    use crate::message::Priority;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);
    const T0: Timestamp = Timestamp::EPOCH;

    pub(crate) fn message() -> Message {
        Message {
            id: MessageId::from_i64(1),
            tenant: Tenant::default(),
            queue: QueueName::new("capture").unwrap(),
            kind: Kind::new("capture").unwrap(),
            version: 1,
            key: IdempotencyKey::new("dep-1").unwrap(),
            payload: "{}".into(),
            priority: Priority::default(),
            enqueued_at: T0,
            first_due_at: T0,
            deadline: None,
            expires_at: T0.after(DAY * 3),
            flow: MessageId::from_i64(1),
            parent: None,
            headers: BTreeMap::new(),
        }
    }

    fn token(claims: u32) -> LeaseToken {
        LeaseToken { claims, nonce: Nonce::from_bytes([9; 16]) }
    }

    fn reached(policy: EffectPolicy) -> Reached {
        let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
        Reached { effect, policy, request_hash: [1; 16], quarantine: MINUTE }
    }

    const TIMES: IntentTimes = IntentTimes { send_within: Duration::from_secs(10), reconcile_for: MAX_RECONCILE };

    fn intent(rows: &[EffectRow], reached: &Reached, now: Timestamp) -> EffectRow {
        intend(&message(), rows, reached, TIMES, token(1), 0, now).unwrap()
    }

    fn keyed(or_lookup: bool) -> EffectPolicy {
        EffectPolicy::Keyed { window: DAY, or_lookup }
    }

    fn unknown(row: &EffectRow) -> EffectRow {
        EffectRow { state: EffectState::Unknown { why: "time-out".into() }, ..row.clone() }
    }

    fn policies() -> [EffectPolicy; 4] {
        [keyed(false), keyed(true), EffectPolicy::Lookup, EffectPolicy::AtMostOnce]
    }

    fn other(policy: EffectPolicy) -> Reached {
        let effect = EffectId { name: EffectName::new("capture").unwrap(), item: Some("second".into()) };
        Reached { effect, ..reached(policy) }
    }

    fn rejected_row(row: &EffectRow) -> EffectRow {
        let state = EffectState::Rejected { code: "declined".into(), detail: String::new() };
        EffectRow { state, ..row.clone() }
    }

    fn confirmed_row(row: &EffectRow) -> EffectRow {
        EffectRow { state: EffectState::Confirmed { value: "7".into() }, ..row.clone() }
    }

    #[test]
    fn an_effect_without_a_row_of_this_store_is_open_after_a_restore() {
        let (from, until) = (T0.after(MINUTE), T0.after(MINUTE * 60));
        let keyed = |or_lookup| EffectPolicy::Keyed { window: MINUTE * 30, or_lookup };
        let long = EffectPolicy::Keyed { window: DAY, or_lookup: false };
        let quarantined = until.after(MINUTE);
        let cases = [
            // policy, then what is done about it at once
            (long, Decision::Send),
            (keyed(true), Decision::LookUp { not_before: quarantined }),
            (keyed(false), Decision::Park(ParkReason::WindowPassed)),
            (EffectPolicy::Lookup, Decision::LookUp { not_before: quarantined }),
            (EffectPolicy::AtMostOnce, Decision::Park(ParkReason::OutcomeUnknown)),
        ];
        for (policy, expected) in cases {
            let reached = reached(policy);
            let unrecorded = Unrecorded { from, until };
            let assume =
                |rows: &[EffectRow]| assumed(&message(), rows, &reached, TIMES, token(3), 0, unrecorded, until);
            let row = assume(&[]).expect("it is assumed");
            assert_eq!(row.key, EffectKey::of(&message(), &reached.effect, 0), "the key the other store sent");
            assert_eq!(reach(std::slice::from_ref(&row), &reached, 0, until), expected, "{:?}", reached.policy);
            // A refusal of the next send says nothing about the one that may have been.
            let refused = answered(&row, &EffectAnswer::NotDone, until).unwrap();
            assert!(refused.is_open());
            assert_eq!(assume(std::slice::from_ref(&row)), None, "once");
            // What was decided before the backup may have been begun anew; what this store decided was not.
            let decided = EffectRow { state: EffectState::NotDone, ..row.clone() };
            assert_eq!(assume(std::slice::from_ref(&decided)), None);
            let before = EffectRow { token: token(0), ..decided };
            assert_eq!(assume(&[before]).map(|row| (row.seq, row.state.is_open())), Some((1, true)));
            let confirmed = EffectRow { token: token(0), state: EffectState::Confirmed { value: "1".into() }, ..row };
            assert_eq!(assume(&[confirmed]), None);
        }
    }

    #[test]
    fn nothing_begins_beside_an_open_effect_not_even_what_was_not_done_or_rejected_before() {
        let first = intent(&[], &reached(keyed(false)), T0);
        let not_done = EffectRow { state: EffectState::NotDone, ..first.clone() };
        for decided in [not_done, rejected_row(&first)] {
            let open = unknown(&intent(&[], &other(keyed(false)), T0.after(MINUTE)));
            let parked = Decision::Park(ParkReason::EffectOrphaned);
            let rows = [decided, open];
            assert_eq!(reach(&rows, &reached(keyed(false)), 1, T0.after(MINUTE)), parked);
            let resend = reach(&rows, &other(keyed(false)), 1, T0.after(MINUTE));
            assert_eq!(resend, Decision::Send, "the open one itself is cleared up");
        }
    }

    #[test]
    fn a_new_round_opens_a_rejection_unless_another_effect_happened_because_of_it() {
        let first_card = rejected_row(&intent(&[], &reached(keyed(false)), T0.after(MINUTE)));
        let second_card = |at| confirmed_row(&intent(&[], &other(keyed(false)), at));
        let replay = Decision::ReplayRejected { code: "declined".into(), detail: String::new() };
        #[rustfmt::skip]
        let table = [
            // the other effect was confirmed      what a new round does
            (T0,                                   Decision::Send, true),
            (T0.after(MINUTE),                     replay.clone(), false),
            (T0.after(MINUTE * 2),                 replay,         false),
        ];
        for (at, expected, opens_a_round) in table {
            let rows = [first_card.clone(), second_card(at)];
            assert_eq!(reach(&rows, &reached(keyed(false)), 1, T0.after(DAY)), expected);
            assert_eq!(JournalFacts::of(&rows, T0.after(DAY)).rejected, opens_a_round);
        }
        let natural = EffectRow { policy: EffectPolicy::Natural, ..second_card(T0.after(DAY)) };
        let rows = [first_card, natural];
        assert_eq!(
            reach(&rows, &reached(keyed(false)), 1, T0.after(DAY)),
            Decision::Send,
            "a note in a log is no charge"
        );
    }

    #[test]
    fn a_window_is_the_same_for_having_been_stored_in_milliseconds() {
        for window in [Duration::from_micros(90_000_500_700), Duration::MAX] {
            let policy = EffectPolicy::Keyed { window, or_lookup: false };
            let row = unknown(&intent(&[], &reached(policy.clone()), T0));
            let stored = serde_json::from_str(&serde_json::to_string(&row.policy).unwrap()).unwrap();
            let row = EffectRow { policy: stored, ..row };
            assert_eq!(reach(&[row], &reached(policy), 0, T0.after(MINUTE)), Decision::Send, "{window:?}");
        }
    }

    #[test]
    fn an_effect_reached_for_the_first_time_is_sent() {
        for policy in policies() {
            assert_eq!(reach(&[], &reached(policy), 0, T0), Decision::Send);
        }
    }

    #[test]
    fn a_confirmed_effect_replays_whatever_changed_in_the_code() {
        let mut row = intent(&[], &reached(keyed(false)), T0);
        row.state = EffectState::Confirmed { value: "7".into() };
        let changed = Reached { request_hash: [2; 16], ..reached(EffectPolicy::AtMostOnce) };
        assert_eq!(reach(&[row], &changed, 5, T0.after(DAY * 30)), Decision::Replay("7".into()));
    }

    #[test]
    fn an_open_row_whose_policy_or_request_changed_parks() {
        let row = intent(&[], &reached(keyed(false)), T0);
        let other_request = Reached { request_hash: [2; 16], ..reached(keyed(false)) };
        let parked = Decision::Park(ParkReason::EffectChanged);
        assert_eq!(reach(std::slice::from_ref(&row), &other_request, 0, T0), parked);
        assert_eq!(reach(&[row], &reached(EffectPolicy::Lookup), 0, T0), parked);
    }

    #[test]
    fn an_open_effect_is_cleared_up_as_its_policy_says() {
        let quarantine_end = T0.after(TIMES.send_within + MINUTE);
        #[rustfmt::skip]
        let table = [
            // policy                    after      what happens
            (keyed(false),               MINUTE,    Decision::Send),
            (keyed(false),               DAY,       Decision::Park(ParkReason::WindowPassed)),
            (keyed(true),                DAY,       Decision::Park(ParkReason::ReconcileExhausted)),
            (keyed(true),                MINUTE,    Decision::Send),
            (EffectPolicy::Lookup,       MINUTE,    Decision::LookUp { not_before: quarantine_end }),
            (EffectPolicy::Lookup,       DAY,       Decision::Park(ParkReason::ReconcileExhausted)),
            (EffectPolicy::AtMostOnce,   MINUTE,    Decision::Park(ParkReason::OutcomeUnknown)),
        ];
        for (policy, after, expected) in table {
            let row = unknown(&intent(&[], &reached(policy.clone()), T0));
            assert_eq!(
                reach(&[row], &reached(policy.clone()), 0, T0.after(after)),
                expected,
                "{policy:?} after {after:?}"
            );
        }
    }

    #[test]
    fn past_its_window_a_keyed_effect_is_looked_up_or_parked() {
        let short = |or_lookup| EffectPolicy::Keyed { window: MINUTE, or_lookup };
        let past = T0.after(MINUTE);
        let row = unknown(&intent(&[], &reached(short(true)), T0));
        assert_eq!(row.valid_until, Some(past));
        assert_eq!(
            reach(std::slice::from_ref(&row), &reached(short(true)), 0, past),
            Decision::LookUp { not_before: row.quarantined_until() }
        );
        // Without a look-up the reconciliation ends with the window; a longer one would only wait for it.
        let row = unknown(&intent(&[], &reached(short(false)), T0));
        assert_eq!(reach(&[row], &reached(short(false)), 0, past), Decision::Park(ParkReason::WindowPassed));
    }

    #[test]
    fn the_window_of_a_key_is_never_extended_by_a_resend() {
        let reached = reached(keyed(false));
        let first = unknown(&intent(&[], &reached, T0));
        let again = intent(std::slice::from_ref(&first), &reached, T0.after(MINUTE));
        assert_eq!((again.seq, again.sends, again.valid_until), (0, 2, first.valid_until));
        assert_eq!(again.key, first.key);
        assert!(again.last_possible_send > first.last_possible_send);
    }

    #[test]
    fn a_not_done_of_the_second_send_leaves_the_first_unknown() {
        let reached = reached(keyed(false));
        let first = intent(&[], &reached, T0);
        assert_eq!(answered(&first, &EffectAnswer::NotDone, T0), Ok(EffectState::NotDone));
        let second = intent(&[unknown(&first)], &reached, T0.after(MINUTE));
        assert!(answered(&second, &EffectAnswer::NotDone, T0).unwrap().is_open());
    }

    #[test]
    fn a_not_done_that_comes_after_an_unknown_answer_changes_nothing() {
        let row = unknown(&intent(&[], &reached(keyed(false)), T0));
        assert!(answered(&row, &EffectAnswer::NotDone, T0).unwrap().is_open());
    }

    #[test]
    fn the_same_answer_again_changes_nothing_and_another_one_is_a_conflict() {
        let row = intent(&[], &reached(keyed(false)), T0);
        let confirmed = |value: &str| EffectAnswer::Confirmed { value: value.into() };
        let answers = [
            confirmed("1"),
            EffectAnswer::Rejected { code: "no".into(), detail: "said so".into() },
            EffectAnswer::NotDone,
        ];
        for answer in answers {
            let state = answered(&row, &answer, T0).unwrap();
            let decided = EffectRow { state: state.clone(), ..row.clone() };
            assert_eq!(answered(&decided, &answer, T0), Ok(state));
            assert!(answered(&decided, &confirmed("2"), T0).is_err());
            assert!(answered(&decided, &EffectAnswer::Unknown { why: "late".into() }, T0).is_err());
        }
    }

    #[test]
    fn confirming_at_once_twice_under_one_lease_is_one_row() {
        let natural = reached(EffectPolicy::Natural);
        let confirm = |rows: &[EffectRow], value: &str, claims| {
            confirmed_at_once(&message(), rows, &natural, value.into(), token(claims), 0, T0)
        };
        let row = confirm(&[], "1", 1).unwrap();
        let rows = std::slice::from_ref(&row);
        assert_eq!(confirm(rows, "1", 1), Ok(row.clone()));
        assert!(confirm(rows, "2", 1).is_err());
        assert!(confirm(rows, "1", 2).is_err());
    }

    #[test]
    fn after_not_done_the_same_key_is_sent_in_a_new_row() {
        let reached = reached(EffectPolicy::AtMostOnce);
        let mut first = intent(&[], &reached, T0);
        first.state = EffectState::NotDone;
        let second = intent(std::slice::from_ref(&first), &reached, T0.after(MINUTE));
        assert_eq!((second.seq, &second.key, second.sends), (1, &first.key, 1));
    }

    #[test]
    fn another_request_in_another_round_has_another_key_though_nothing_happened() {
        let not_done = EffectRow { state: EffectState::NotDone, ..intent(&[], &reached(EffectPolicy::AtMostOnce), T0) };
        let rows = std::slice::from_ref(&not_done);
        let edited = Reached { request_hash: [2; 16], ..reached(EffectPolicy::AtMostOnce) };
        let next = |reached: &Reached, round| {
            intend(&message(), rows, reached, TIMES, token(2), round, T0.after(MINUTE)).unwrap()
        };
        #[rustfmt::skip]
        let table = [
            // request                              round  the same key
            (&reached(EffectPolicy::AtMostOnce),    0,     true),
            (&reached(EffectPolicy::AtMostOnce),    1,     true),
            (&edited,                               0,     true),
            (&edited,                               1,     false),
        ];
        for (reached, round, same) in table {
            assert_eq!(next(reached, round).key == not_done.key, same, "{reached:?} in round {round}");
        }
    }

    #[test]
    fn a_send_that_never_left_undoes_its_own_intent_and_nobody_elses() {
        let effect = reached(EffectPolicy::AtMostOnce).effect;
        let row = intent(&[], &reached(EffectPolicy::AtMostOnce), T0);
        let said = |row: &EffectRow, by| not_sent(std::slice::from_ref(row), &effect, by, T0);
        assert_eq!(said(&row, row.token), Some(EffectRow { state: EffectState::NotDone, ..row.clone() }));
        assert_eq!(said(&row, token(7)), None, "another lease's intent may have been sent");
        assert_eq!(said(&unknown(&row), row.token), None, "it was answered: it was sent");
        assert_eq!(not_sent(&[], &effect, row.token, T0), None);
        let keyed = reached(keyed(false));
        let resend = intent(&[unknown(&intent(&[], &keyed, T0))], &keyed, T0.after(MINUTE));
        assert!(said(&resend, resend.token).unwrap().state.is_open(), "the first send may have happened");
    }

    #[test]
    fn only_a_new_round_sends_a_rejected_effect_again_under_another_key() {
        let reached = reached(keyed(false));
        let mut first = intent(&[], &reached, T0);
        first.state = EffectState::Rejected { code: "declined".into(), detail: String::new() };
        let replay = Decision::ReplayRejected { code: "declined".into(), detail: String::new() };
        assert_eq!(reach(std::slice::from_ref(&first), &reached, 0, T0), replay);
        assert_eq!(reach(std::slice::from_ref(&first), &reached, 1, T0), Decision::Send);
        let second = intend(&message(), std::slice::from_ref(&first), &reached, TIMES, token(2), 1, T0).unwrap();
        assert_ne!(second.key, first.key);
    }

    #[test]
    fn not_found_before_the_quarantine_proves_nothing() {
        let row = unknown(&intent(&[], &reached(EffectPolicy::Lookup), T0));
        let early = row.quarantined_until().before(Duration::from_millis(1));
        assert_eq!(answered(&row, &EffectAnswer::NotFound, early).unwrap_err().kind(), crate::StoreErrorKind::Conflict);
        assert_eq!(answered(&row, &EffectAnswer::NotFound, row.quarantined_until()), Ok(EffectState::NotDone));
    }

    #[test]
    fn after_the_deadline_no_effect_begins_but_an_open_one_is_cleared_up_and_a_confirmed_one_is_followed() {
        let late = T0.after(MINUTE);
        let message = Message { deadline: Some(late), ..message() };
        let begin = |rows: &[EffectRow], reached: &Reached| intend(&message, rows, reached, TIMES, token(1), 0, late);
        let first = reached(keyed(false));
        let mut other = first.clone();
        other.effect.name = EffectName::new("notify").unwrap();
        let open = intent(&[], &first, T0);
        let with = |state| [EffectRow { state, ..open.clone() }];
        assert!(begin(&[], &first).is_err());
        assert!(
            begin(&with(EffectState::NotDone), &first).is_err(),
            "nothing happened: sending it now is beginning it"
        );
        assert!(begin(&[unknown(&open)], &first).is_ok());
        assert!(begin(&with(EffectState::Confirmed { value: "1".into() }), &other).is_ok());
        let natural = EffectRow { policy: EffectPolicy::Natural, ..open.clone() };
        let natural = EffectRow { state: EffectState::Confirmed { value: "1".into() }, ..natural };
        assert!(begin(&[natural], &other).is_err(), "what is harmless to repeat obliges to nothing");
    }

    #[test]
    fn nothing_new_begins_beside_an_open_effect() {
        let open = intent(&[], &reached(keyed(false)), T0);
        let mut other = reached(keyed(false));
        other.effect.name = EffectName::new("notify").unwrap();
        assert_eq!(reach(&[open], &other, 0, T0), Decision::Park(ParkReason::EffectOrphaned));
    }

    #[test]
    fn effect_keys_differ_by_item_and_round_and_by_nothing_else() {
        let plain = reached(keyed(false)).effect;
        let item = EffectId { item: Some(String::new()), ..plain.clone() };
        let key = EffectKey::of(&message(), &plain, 0);
        assert_eq!(EffectKey::of(&Message { version: 2, payload: "[]".into(), ..message() }, &plain, 0), key);
        assert_ne!(EffectKey::of(&message(), &item, 0), key);
        assert_ne!(EffectKey::of(&message(), &plain, 1), key);
    }

    proptest! {
        /// I7 for any history of sends and answers: one key for all sends of a round, at most one row open, and at most
        /// one send of an at-most-once effect whose answer is not "not done".
        #[test]
        fn any_history_of_sends_keeps_the_policys_promise(
            policy in proptest::sample::select(policies().to_vec()),
            steps in proptest::collection::vec((0_u8..5, 0_u64..30_000), 1..40),
        ) {
            let reached = reached(policy.clone());
            let mut rows: Vec<EffectRow> = Vec::new();
            let mut now = T0;
            let mut risky_sends = 0;
            for (answer, pause_s) in steps {
                now = now.after(Duration::from_secs(pause_s));
                let decision = reach(&rows, &reached, 0, now);
                let sent = decision == Decision::Send;
                match decision {
                    Decision::Send => {
                        let Ok(row) = intend(&message(), &rows, &reached, TIMES, token(1), 0, now) else {
                            prop_assert!(too_late(&message(), &rows, now), "it may be sent, and is refused");
                            break;
                        };
                        rows.retain(|old| old.seq != row.seq);
                        rows.push(row);
                        risky_sends += u32::from(answer != 2);
                    }
                    Decision::LookUp { not_before } if now < not_before => continue,
                    Decision::LookUp { .. } | Decision::Park(_) | Decision::Replay(_) | Decision::ReplayRejected { .. } => {}
                }
                let Some(row) = rows.last_mut().filter(|row| row.state.is_open()) else { continue };
                let answer = match answer {
                    // "Not done" answers a send; without one in this step there is nothing to answer.
                    2 if !sent => continue,
                    0 => EffectAnswer::Confirmed { value: "1".into() },
                    1 => EffectAnswer::Rejected { code: "no".into(), detail: String::new() },
                    2 => EffectAnswer::NotDone,
                    3 => EffectAnswer::NotFound,
                    _ => EffectAnswer::Unknown { why: "?".into() },
                };
                // At most once has no look-up; a not-found there would be an operator's, which is another path.
                if answer == EffectAnswer::NotFound && policy == EffectPolicy::AtMostOnce { continue }
                if let Ok(state) = answered(row, &answer, now) { row.state = state; }
            }
            prop_assert!(open_rows(&rows).count() <= 1);
            prop_assert!(rows.windows(2).all(|pair| pair[0].key == pair[1].key));
            if policy == EffectPolicy::AtMostOnce { prop_assert!(risky_sends <= 1, "{} sends", risky_sends); }
        }
    }
}
