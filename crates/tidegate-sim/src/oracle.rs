//! What must hold, checked after every call that reached the store.
//!
//! The oracle keeps a picture of its own of every message: what it saw last, under which lease, with which answer. After each
//! verb it looks at the messages the verb touched, and nowhere else, so that a step costs the same however long a run is.
//! A transition that the verb cannot have made, a verdict the picture does not bear out, an answer that changed, a message
//! that is gone: each is a violation, named by its invariant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::effect::{EffectPolicy, EffectRow, EffectState, open_rows};
use tidegate_core::lifecycle::{Counters, Outcome, State};
use tidegate_core::message::{Answer, NewMessage};
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    ClaimRequest, Claimed, Counted, Enqueued, Extend, Extended, Journal, JournalWrite, Lease, Settle, Settled, Stats,
    Swept, Verdicts,
};
use tidegate_core::{IdempotencyKey, Kind, LeaseToken, MessageId, QueueName, StoreErrorKind, Tenant};
use tidegate_testkit::model::{Glance, Model};

use crate::plan::DRIFT_PPM;

/// An invariant and what was seen instead.
pub(crate) type Broke = (&'static str, String);
type Held = Result<(), Broke>;

macro_rules! must {
    ($holds:expr, $invariant:literal, $($what:tt)+) => {
        if !$holds {
            return Err(($invariant, format!($($what)+)));
        }
    };
}

/// Which verb a change is put down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Claim,
    Write,
    Settle,
    Sweep,
    Redrive,
    Resolve,
    Cancel,
    Edit,
    Discard,
}

/// A message as the oracle knows it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) scope: (QueueName, IdempotencyKey),
    pub(crate) kind: Kind,
    pub(crate) state: State,
    pub(crate) parent: Option<MessageId>,
    pub(crate) compensated: bool,
    fingerprint: [u8; 16],
    counters: Counters,
    token: Option<LeaseToken>,
    /// When its lease was given or extended last, and until when it holds.
    leased_at: Duration,
    holds_until: Duration,
    /// Its run began with an open effect: only to find out.
    reconciling: bool,
    /// Attempts of this generation beyond the limit, each granted by a run that found out what became of an effect.
    granted: u32,
    answer: Option<Answer>,
    ended: Option<Duration>,
    rows: Vec<EffectRow>,
    starts: u32,
    settled: Option<(LeaseToken, [u8; 16], State)>,
    has_its_key: bool,
}

impl Known {
    /// The token under which it is leased.
    pub(crate) fn token(&self) -> Option<LeaseToken> {
        self.token
    }
}

/// How much longer or shorter than it says a lease may be by a clock that drifts, and by the thousandths that are cut off.
const DRIFTS: Duration = Duration::from_millis(1 + 60_000 * DRIFT_PPM.unsigned_abs() / 1_000_000);

/// How often what happened.
#[derive(Debug, Default)]
struct Seen {
    by_what: BTreeMap<Counted, u64>,
}

/// The picture, and the rules.
#[derive(Debug)]
pub(crate) struct Oracle {
    model: Arc<Model>,
    policies: BTreeMap<Kind, Policy>,
    retention: Duration,
    messages: BTreeMap<MessageId, Known>,
    scopes: BTreeMap<(QueueName, IdempotencyKey), MessageId>,
    over: BTreeSet<(Duration, MessageId)>,
    /// Deleted after their retention.
    gone: BTreeSet<MessageId>,
    by_state: BTreeMap<State, BTreeSet<MessageId>>,
    seen: Seen,
    /// Since when no clock was set: leases that were given since hold as long as they say. None while one is wrong.
    right_since: Option<Duration>,
    pub(crate) checks: u64,
    pub(crate) deleted: u64,
    /// Attempts beyond the limit that were granted.
    pub(crate) granted: u64,
}

impl Oracle {
    pub(crate) fn new(model: Arc<Model>, policies: BTreeMap<Kind, Policy>, retention: Duration) -> Self {
        Self {
            model,
            policies,
            retention,
            messages: BTreeMap::new(),
            scopes: BTreeMap::new(),
            over: BTreeSet::new(),
            gone: BTreeSet::new(),
            by_state: BTreeMap::new(),
            seen: Seen::default(),
            right_since: Some(Duration::ZERO),
            checks: 0,
            deleted: 0,
            granted: 0,
        }
    }

    pub(crate) fn known(&self, id: MessageId) -> Option<&Known> {
        self.messages.get(&id)
    }

    /// Messages in a state, by id.
    pub(crate) fn in_state(&self, state: State) -> Vec<MessageId> {
        self.by_state.get(&state).into_iter().flatten().copied().collect()
    }

    pub(crate) fn count(&self, state: State) -> u64 {
        self.by_state.get(&state).map_or(0, |ids| ids.len() as u64)
    }

    /// How many messages are there.
    pub(crate) fn there(&self) -> u64 {
        self.messages.len() as u64
    }

    pub(crate) fn stored(&self) -> u64 {
        self.seen(Counted::Enqueued)
    }

    /// How often a message came to an end.
    pub(crate) fn ends(&self) -> u64 {
        [Counted::Completed, Counted::Failed, Counted::Dead, Counted::Cancelled]
            .map(|what| self.seen(what))
            .iter()
            .sum()
    }

    fn seen(&self, what: Counted) -> u64 {
        self.seen.by_what.get(&what).copied().unwrap_or(0)
    }

    fn saw(&mut self, what: Counted) {
        *self.seen.by_what.entry(what).or_default() += 1;
    }

    fn is_there(&self, id: MessageId) -> bool {
        self.model.glance(id, |found| found.is_some())
    }

    fn holder(&self, (queue, key): &(QueueName, IdempotencyKey)) -> Option<MessageId> {
        self.model.holder(&(Tenant::default(), queue.clone(), key.clone()))
    }

    /// The clock of the store was set: right, or by somebody who is wrong.
    pub(crate) fn clock_is_set(&mut self, right: bool, now: Duration) {
        self.right_since = right.then_some(now);
    }

    /// Whether the clock of the store was right for as long as a lease has been held.
    fn can_be_timed(&self, leased_at: Duration) -> bool {
        self.right_since.is_some_and(|since| leased_at > since)
    }

    // --- one message -------------------------------------------------------------------------------------------------

    fn meet(&mut self, id: MessageId, fingerprint: [u8; 16], now: Duration) -> Held {
        must!(!self.messages.contains_key(&id), "I2", "{id} was handed out for a second message");
        let met = self.model.glance(id, |found| {
            found.map(|view| Known {
                scope: (view.message.queue.clone(), view.message.key.clone()),
                kind: view.message.kind.clone(),
                state: view.state,
                parent: view.message.parent,
                compensated: view.compensated,
                fingerprint,
                counters: view.counters,
                token: None,
                leased_at: Duration::ZERO,
                holds_until: Duration::ZERO,
                reconciling: false,
                granted: 0,
                answer: None,
                ended: None,
                rows: Vec::new(),
                starts: 0,
                settled: None,
                has_its_key: true,
            })
        });
        let Some(known) = met else {
            return Err(("I1", format!("{id} was acknowledged and is not in the store")));
        };
        if let Some(other) = self.scopes.get(&known.scope) {
            let other = *other;
            return Err(("I1", format!("the key of {other} was taken for unknown and made {id}")));
        }
        self.scopes.insert(known.scope.clone(), id);
        self.by_state.entry(known.state).or_default().insert(id);
        self.saw(Counted::Enqueued);
        self.messages.insert(id, known);
        self.look(id, Cause::Write, now)
    }

    /// Compares a message with what was known of it, and puts the difference down to a verb.
    pub(crate) fn look(&mut self, id: MessageId, cause: Cause, now: Duration) -> Held {
        self.checks += 1;
        let model = Arc::clone(&self.model);
        let called_off = model.glance(id, |found| {
            let Some(view) = found else {
                return Err(("I1", format!("{id} is gone after a {cause:?}, before its retention was over")));
            };
            let Some(known) = self.messages.get_mut(&id) else {
                return Err(("I1", format!("{id} came from nowhere")));
            };
            may_follow(id, known, &view, cause)?;
            self.granted += u64::from(grants(known, &view, cause, self.policies.get(&known.kind)));
            stays_bounded(id, known, &view, self.policies.get(&known.kind))?;
            keeps_its_effects(id, known, &view)?;
            ends_as_it_should(id, &view)?;
            let called_off = view.state == State::Cancelled && known.state != State::Cancelled;
            self.take(id, &view, now);
            Ok(called_off)
        })?;
        if called_off {
            self.released(id);
        }
        Ok(())
    }

    fn take(&mut self, id: MessageId, view: &Glance<'_>, now: Duration) {
        let Some(known) = self.messages.get_mut(&id) else { return };
        let (was, is) = (known.state, view.state);
        known.counters = view.counters;
        if known.rows != view.journal {
            view.journal.clone_into(&mut known.rows);
        }
        known.compensated = view.compensated;
        known.state = is;
        if known.answer.as_ref() != view.answer {
            known.answer = view.answer.cloned();
        }
        if was == is {
            return;
        }
        if let Some(ids) = self.by_state.get_mut(&was) {
            ids.remove(&id);
        }
        self.by_state.entry(is).or_default().insert(id);
        if is != State::Leased {
            known.token = None;
            known.reconciling = false;
        }
        if let Some(ended) = known.ended.take() {
            self.over.remove(&(ended, id));
        }
        if is.is_terminal() {
            known.ended = Some(now);
            if is != State::Dead {
                self.over.insert((now, id));
            }
        }
        match is {
            State::Completed => self.saw(Counted::Completed),
            State::Failed => self.saw(Counted::Failed),
            State::Dead => self.saw(Counted::Dead),
            State::Cancelled => self.saw(Counted::Cancelled),
            State::Parked => self.saw(Counted::Parked),
            State::Ready | State::Leased => {}
        }
    }

    /// A message was called off, and perhaps gave its key free.
    fn released(&mut self, id: MessageId) {
        let Some(scope) = self.messages.get(&id).map(|known| known.scope.clone()) else { return };
        let keeps = self.holder(&scope) == Some(id);
        if let Some(known) = self.messages.get_mut(&id) {
            known.has_its_key = keeps;
        }
        if !keeps {
            self.scopes.remove(&scope);
        }
    }

    // --- enqueue -----------------------------------------------------------------------------------------------------

    pub(crate) fn enqueued(&mut self, new: &NewMessage, verdict: &Verdict<Enqueued>, now: Duration) -> Held {
        self.checks += 1;
        let scope = (new.queue.clone(), new.key.clone());
        let holder = self.scopes.get(&scope).copied();
        let fingerprint = new.fingerprint().0;
        let known = holder.and_then(|id| self.messages.get(&id));
        match verdict {
            Ok(Enqueued::New { id }) => {
                if let Some(holder) = holder {
                    return Err(("I1", format!("key {} of {holder} was taken for unknown and made {id}", new.key)));
                }
                self.meet(*id, fingerprint, now)
            }
            Ok(Enqueued::Existing { id, state, .. }) => {
                let Some(known) = known else { return Err(("I1", format!("{id} is said to exist and is unknown"))) };
                must!(holder == Some(*id), "I2", "key {} is {holder:?}, and {id} was answered", new.key);
                must!(known.fingerprint == fingerprint, "I6", "another payload under the key of {id} was taken");
                must!(*state == known.state, "I5", "{id} is {} and was said to be {state}", known.state);
                must!(known.answer.is_none(), "I5", "{id} has an answer, and a duplicate did not get it");
                self.saw(Counted::Deduplicated);
                Ok(())
            }
            Ok(Enqueued::Replayed { id, answer }) => {
                let Some(known) = known else { return Err(("I5", format!("{id} answered and is unknown"))) };
                must!(holder == Some(*id), "I2", "key {} is {holder:?}, and {id} was answered", new.key);
                must!(known.fingerprint == fingerprint, "I6", "another payload under the key of {id} was answered");
                must!(known.answer.as_ref() == Some(answer), "I5", "{id} gave another answer to a duplicate");
                self.saw(Counted::Replayed);
                Ok(())
            }
            Ok(Enqueued::Stale) => Err(("I1", "a key without a time was called stale".to_owned())),
            Err(error) if error.kind() == StoreErrorKind::KeyConflict => {
                let Some(known) = known else { return Err(("I6", format!("key {} is unknown: {error}", new.key))) };
                must!(known.fingerprint != fingerprint, "I6", "a true duplicate of {holder:?} was refused");
                self.saw(Counted::KeyConflicts);
                Ok(())
            }
            Err(error) if error.kind() == StoreErrorKind::QueueFull => {
                must!(holder.is_none(), "I5", "a duplicate of {holder:?} was refused: {error}");
                Ok(())
            }
            Err(error) => Err(("I1", format!("an enqueue was refused: {error}"))),
        }
    }

    /// A producer was told that this message is stored.
    pub(crate) fn acknowledged(&mut self, id: MessageId) -> Held {
        self.checks += 1;
        let is_there = self.gone.contains(&id) || self.is_there(id);
        must!(is_there, "I1", "{id} was acknowledged and is not in the store");
        Ok(())
    }

    // --- claim, extend -----------------------------------------------------------------------------------------------

    pub(crate) fn claimed(
        &mut self,
        request: &ClaimRequest,
        claimed: &Claimed,
        paused: &[QueueName],
        now: Duration,
    ) -> Held {
        let mut before: Option<&Lease> = None;
        for lease in &claimed.leases {
            let id = lease.message.id;
            let Some(known) = self.messages.get(&id) else {
                return Err(("I1", format!("{id} was claimed and is unknown")));
            };
            must!(lease.token.nonce == request.nonce, "I3", "{id} was claimed under another nonce");
            let again = known.token == Some(lease.token);
            must!(again || known.state == State::Ready, "I3", "{id} was claimed while {}", known.state);
            must!(
                again || lease.token.claims == known.counters.claims + 1,
                "I3",
                "{id} was claimed {} times and its new token says {}",
                known.counters.claims,
                lease.token.claims
            );
            must!(again || !paused.contains(&known.scope.0), "I22", "{id} was claimed from a paused queue");
            let counted = lease.counters.attempt > known.counters.attempt || lease.reconciling || again;
            must!(counted, "I9", "{id} was claimed and no attempt was counted");
            let overtakes = before.is_some_and(|before| {
                before.message.queue == lease.message.queue
                    && (before.message.priority, before.due_at, before.message.id)
                        > (lease.message.priority, lease.due_at, id)
            });
            must!(again || !overtakes, "I11", "{id} was claimed behind one that was due later");
            before = Some(lease);
            self.look(id, Cause::Claim, now)?;
            if let Some(known) = self.messages.get_mut(&id) {
                known.token = Some(lease.token);
                known.reconciling = lease.reconciling;
                if !again {
                    known.leased_at = now;
                    known.holds_until = now + request.lease;
                    known.settled = None;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn extended(&mut self, extend: &Extend, verdict: &Verdict<Extended>, now: Duration) -> Held {
        self.checks += 1;
        let Some(known) = self.messages.get_mut(&extend.id) else { return Ok(()) };
        let current = known.token == Some(extend.token);
        if verdict.is_ok() {
            must!(current, "I3", "a lease of {} was extended under a token that is not current", extend.id);
            known.leased_at = now;
            known.holds_until = now + extend.lease;
        } else {
            must!(!current, "I3", "the current lease of {} was not extended: {verdict:?}", extend.id);
        }
        Ok(())
    }

    // --- journal, settle ---------------------------------------------------------------------------------------------

    pub(crate) fn journaled(&mut self, journal: &Journal, verdict: &Verdict<EffectRow>, now: Duration) -> Held {
        let Some(known) = self.messages.get(&journal.id) else { return Ok(()) };
        let current = known.token == Some(journal.token);
        if verdict.is_ok() {
            must!(current, "I3", "the journal of {} was written under a token that is not current", journal.id);
            let intends = matches!(journal.write, JournalWrite::Intent { .. });
            if intends && self.can_be_timed(known.leased_at) {
                let held = now <= known.holds_until + DRIFTS;
                must!(held, "I8", "{} intended under a lease that had lapsed", journal.id);
            }
        }
        self.look(journal.id, Cause::Write, now)
    }

    pub(crate) fn settled(&mut self, settle: &Settle, verdict: &Verdict<Settled>, now: Duration) -> Held {
        let id = settle.id;
        let Some(known) = self.messages.get(&id) else { return Ok(()) };
        let (current, before) = (known.token == Some(settle.token), known.settled);
        let same = before.filter(|(token, _, _)| *token == settle.token);
        match verdict {
            Ok(settled) if settled.repeated => {
                let Some((_, digest, state)) = same else {
                    return Err(("I4", format!("{id} was never settled under a token that is called settled")));
                };
                must!(digest == settle.digest(), "I4", "another settlement of {id} was called a repeat");
                must!(
                    state == settled.state,
                    "I4",
                    "a repeat of the settlement of {id} was answered {}",
                    settled.state
                );
                return self.look(id, Cause::Write, now);
            }
            Ok(settled) => {
                must!(current, "I3", "{id} was settled under a token that is not current");
                self.follow(settle, settled, now)?;
                if let Some(known) = self.messages.get_mut(&id) {
                    known.settled = Some((settle.token, settle.digest(), settled.state));
                }
            }
            Err(error) if error.kind() == StoreErrorKind::LeaseLost => {
                must!(!current, "I3", "the holder of {id} was told that its lease is lost");
            }
            Err(error) if error.kind() == StoreErrorKind::Conflict => {
                let repeats = same.is_some_and(|(_, digest, _)| digest == settle.digest());
                must!(!repeats, "I4", "a repeated settlement of {id} was refused: {error}");
            }
            Err(_) => {}
        }
        self.look(id, Cause::Settle, now)
    }

    /// What follows is there with the settlement, or not at all.
    fn follow(&mut self, settle: &Settle, settled: &Settled, now: Duration) -> Held {
        let refused = matches!(settle.outcome, Outcome::Completed { .. }) && settled.state != State::Completed;
        let due: &[NewMessage] = match settled.state {
            State::Completed => &settle.then,
            State::Failed | State::Dead if !refused => &settle.compensate,
            State::Failed | State::Dead | State::Ready | State::Leased | State::Parked | State::Cancelled => &[],
        };
        let made: BTreeSet<MessageId> = settled.follow_ups.iter().copied().collect();
        for new in settle.then.iter().chain(&settle.compensate) {
            let scope = (new.queue.clone(), new.key.clone());
            let found = self.holder(&scope);
            let was = self.scopes.get(&scope).copied();
            if due.contains(new) {
                let Some(id) = found else {
                    return Err(("I15", format!("{} is {} and what follows is not there", settle.id, settled.state)));
                };
                if was.is_none() {
                    must!(made.contains(&id), "I15", "{id} follows from {} and was not told of", settle.id);
                    self.meet(id, new.fingerprint().0, now)?;
                    let parent = self.messages.get(&id).and_then(|known| known.parent);
                    must!(parent == Some(settle.id), "I15", "{id} follows from {parent:?}, not from {}", settle.id);
                }
            } else {
                must!(found == was, "I15", "{} is {}, and what would follow is there", settle.id, settled.state);
            }
        }
        Ok(())
    }

    // --- sweep -------------------------------------------------------------------------------------------------------

    pub(crate) fn swept(&mut self, swept: &Swept, now: Duration) -> Held {
        for taken in &swept.taken_over {
            let known = self.messages.get(&taken.id);
            if known.is_some_and(|known| self.can_be_timed(known.leased_at)) {
                let lapsed = known.is_some_and(|known| now + DRIFTS >= known.holds_until);
                must!(lapsed, "I14", "the lease of {} was taken over while it held", taken.id);
            }
            self.saw(Counted::LostLeases);
            if let Some(known) = self.messages.get_mut(&taken.id) {
                known.settled = None;
            }
            self.look(taken.id, Cause::Sweep, now)?;
        }
        if swept.deleted > 0 {
            self.forget(swept.deleted, now)?;
        }
        Ok(())
    }

    /// Only what had ended, and so long ago as the retention is, may be gone.
    fn forget(&mut self, deleted: u32, now: Duration) -> Held {
        let old_enough = |(ended, _): &&(Duration, MessageId)| now.saturating_sub(*ended) >= self.retention;
        let candidates = self.over.iter().take_while(old_enough).copied();
        let deleted_now: Vec<_> =
            candidates.filter(|(_, id)| !self.is_there(*id)).take(usize::try_from(deleted).unwrap_or(0)).collect();
        let gone = u32::try_from(deleted_now.len()).unwrap_or(u32::MAX);
        for (ended, id) in deleted_now {
            self.over.remove(&(ended, id));
            self.drop_known(id);
        }
        if gone == deleted {
            self.deleted += u64::from(gone);
            return Ok(());
        }
        let early = self.messages.keys().find(|id| !self.is_there(**id));
        let how = early.and_then(|id| Some((id, self.messages.get(id)?)));
        let how = how.map(|(id, known)| {
            format!("{id}, {} since {:?}", known.state, known.ended.map(|ended| now.saturating_sub(ended)))
        });
        Err(("I13", format!("{deleted} messages were deleted, {gone} had been kept long enough: {how:?}")))
    }

    fn drop_known(&mut self, id: MessageId) {
        let Some(known) = self.messages.remove(&id) else { return };
        if let Some(ids) = self.by_state.get_mut(&known.state) {
            ids.remove(&id);
        }
        if self.scopes.get(&known.scope) == Some(&id) {
            self.scopes.remove(&known.scope);
        }
        self.gone.insert(id);
        self.saw(Counted::Deleted);
    }

    // --- operators ---------------------------------------------------------------------------------------------------

    /// Messages that an operator may have put back.
    pub(crate) fn maybe_redriven(&mut self, ids: Vec<MessageId>, now: Duration) -> Held {
        for id in ids {
            let Some(before) = self.messages.get(&id).map(|known| known.counters.generation) else { continue };
            self.look(id, Cause::Redrive, now)?;
            let Some(known) = self.messages.get_mut(&id) else { continue };
            if known.counters.generation > before {
                known.settled = None;
                known.granted = 0;
                if !known.has_its_key {
                    known.has_its_key = true;
                    let scope = known.scope.clone();
                    self.scopes.insert(scope, id);
                }
                self.saw(Counted::Redriven);
            }
        }
        Ok(())
    }

    pub(crate) fn resolved(&mut self, id: MessageId, became_ready: bool, now: Duration) -> Held {
        let was = self.messages.get(&id).map(|known| known.state);
        self.look(id, Cause::Resolve, now)?;
        if became_ready && was == Some(State::Parked) {
            // It has attempts left: what was granted before is spent.
            if let Some(known) = self.messages.get_mut(&id) {
                known.granted = 0;
            }
            self.saw(Counted::Resolved);
        }
        Ok(())
    }

    pub(crate) fn discarded(&mut self, id: MessageId, now: Duration) -> Held {
        self.look(id, Cause::Discard, now)?;
        let Some(known) = self.messages.get_mut(&id) else { return Ok(()) };
        let ended = known.ended;
        if let Some(ended) = ended
            && !self.over.contains(&(ended, id))
        {
            known.ended = Some(now);
            self.over.insert((now, id));
        }
        Ok(())
    }

    // --- handlers and effects ----------------------------------------------------------------------------------------

    /// A handler began.
    pub(crate) fn began(&mut self, id: MessageId) -> Held {
        self.checks += 1;
        let Some(known) = self.messages.get_mut(&id) else { return Ok(()) };
        known.starts += 1;
        let (starts, claims) = (known.starts, known.counters.claims);
        must!(starts <= claims, "I9", "the handler of {id} began {starts} times after {claims} claims");
        Ok(())
    }

    /// A request is about to leave for an effect of a message, under this key.
    pub(crate) fn leaves(&mut self, id: MessageId, effect: &str, key: &str) -> Held {
        self.checks += 1;
        // Its retention can be over only if its sender slept through it; the gateway's own ledger tells then.
        let Some(known) = self.messages.get(&id) else { return Ok(()) };
        let intended = known.rows.iter().any(|row| row.effect.name.as_str() == effect && row.key.as_str() == key);
        must!(intended, "I8", "effect {effect} of {id} leaves, and no intent under its key is stored");
        Ok(())
    }

    // --- all of it ---------------------------------------------------------------------------------------------------

    /// What the store says of itself, against what was seen.
    pub(crate) fn agrees_with(&mut self, stats: &Stats) -> Held {
        self.checks += 1;
        let told: [u64; 3] = stats.queues.iter().fold([0; 3], |[ready, leased, parked], queue| {
            [ready + queue.ready + queue.scheduled, leased + queue.leased, parked + queue.parked]
        });
        let seen = [State::Ready, State::Leased, State::Parked].map(|state| self.count(state));
        must!(told == seen, "I16", "ready, leased, parked are told as {told:?} and were seen as {seen:?}");
        for what in [
            Counted::Enqueued,
            Counted::Completed,
            Counted::Failed,
            Counted::Dead,
            Counted::Parked,
            Counted::Cancelled,
            Counted::Redriven,
            Counted::Resolved,
            Counted::LostLeases,
            Counted::Deleted,
            Counted::Replayed,
            Counted::Deduplicated,
            Counted::KeyConflicts,
        ] {
            let told: u64 = stats.tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum();
            let seen = self.seen(what);
            must!(told == seen, "I16", "{} is told as {told} and was seen {seen} times", what.as_str());
        }
        Ok(())
    }

    /// Every message is where it was last seen, and nothing else is there.
    pub(crate) fn is_all_there(&mut self, now: Duration) -> Held {
        let ids: Vec<MessageId> = self.messages.keys().copied().collect();
        let live = ids.len() as u64;
        for id in ids {
            self.look(id, Cause::Write, now)?;
        }
        let sum = live + self.seen(Counted::Deleted);
        let stored = self.stored();
        must!(sum == stored, "I1", "{stored} messages were stored, and {sum} are there or were deleted");
        Ok(())
    }
}

/// One verdict.
pub(crate) type Verdict<T> = <Verdicts<T> as IntoIterator>::Item;

/// Whether a verb can have led from what was known to what is seen.
fn may_follow(id: MessageId, known: &Known, view: &Glance<'_>, cause: Cause) -> Held {
    let (was, is) = (known.state, view.state);
    let (old, new) = (known.counters, view.counters);
    must!(new.claims >= old.claims, "I12", "the claims of {id} fell from {} to {}", old.claims, new.claims);
    must!(new.generation >= old.generation, "I12", "the generation of {id} fell");
    let redriven = new.generation == old.generation + 1 && cause == Cause::Redrive;
    must!(redriven || new.generation == old.generation, "I12", "the generation of {id} rose after a {cause:?}");
    must!(
        new.claims == old.claims || (cause == Cause::Claim && new.claims == old.claims + 1),
        "I12",
        "{id} was claimed by a {cause:?}"
    );
    if was.is_terminal() && !redriven {
        must!(is == was, "I2", "{id} was {was} and is {is} after a {cause:?}");
        must!(view.answer == known.answer.as_ref(), "I5", "the answer of {id} changed after a {cause:?}");
        return Ok(());
    }
    let possible = match (was, is) {
        _ if was == is => true,
        (State::Ready, State::Leased | State::Dead) => cause == Cause::Claim,
        (State::Ready, State::Cancelled) => matches!(cause, Cause::Claim | Cause::Cancel),
        (State::Leased, State::Completed | State::Failed) => cause == Cause::Settle,
        (State::Leased, State::Ready | State::Dead | State::Cancelled | State::Parked) => {
            matches!(cause, Cause::Settle | Cause::Sweep)
        }
        (State::Parked, State::Ready) => cause == Cause::Resolve,
        (State::Dead | State::Failed | State::Cancelled, State::Ready) => redriven,
        (State::Ready | State::Leased | State::Parked | State::Completed, _)
        | (State::Dead | State::Failed | State::Cancelled, _) => false,
    };
    must!(possible, "I12", "{id} was {was} and is {is} after a {cause:?}");
    let returned = cause == Cause::Redrive || cause == Cause::Resolve || new.attempt + 1 >= old.attempt;
    must!(returned, "I12", "the attempts of {id} fell from {} to {} after a {cause:?}", old.attempt, new.attempt);
    Ok(())
}

/// A run that began with an open effect and ended with none went on, although no attempt was left: the protocol grants it
/// that attempt (§3). It spends it at its end, or, if it was given back or crashed, at the next claim.
fn grants(known: &mut Known, view: &Glance<'_>, cause: Cause, policy: Option<&Policy>) -> bool {
    let ended = known.state == State::Leased && view.state != State::Leased;
    let found_out = known.reconciling && ended && open_rows(view.journal).next().is_none();
    let none_left = policy.is_some_and(|policy| known.counters.attempt >= policy.max_attempts);
    let goes_on = view.state == State::Ready || view.counters.attempt > known.counters.attempt;
    let grants = found_out && none_left && goes_on && matches!(cause, Cause::Settle | Cause::Sweep);
    known.granted += u32::from(grants);
    grants
}

fn stays_bounded(id: MessageId, known: &Known, view: &Glance<'_>, policy: Option<&Policy>) -> Held {
    let policy = policy.cloned().unwrap_or_default();
    let (attempt, crashes) = (view.counters.attempt, view.counters.crashes);
    let most = policy.max_attempts + known.granted;
    must!(attempt <= most, "I9", "{id} has had {attempt} attempts of {most}");
    // Each is for another effect: what is decided is not opened again with no attempt left.
    let effects = view.journal.iter().filter(|row| row.policy != EffectPolicy::Natural && row.seq == 0).count();
    must!(known.granted as usize <= effects, "I9", "{id} was granted {} attempts", known.granted);
    // Where an effect is open a crash is never the end: then it comes again to find out, for as long as that is allowed.
    let convicted = crashes > known.counters.crashes && crashes >= policy.crash_limit;
    let ends = view.state == State::Dead || open_rows(view.journal).next().is_some();
    must!(!convicted || ends, "I9", "{id} crashed {crashes} times and is {}", view.state);
    Ok(())
}

/// What was decided about an effect stays decided, and its key stays its key.
fn keeps_its_effects(id: MessageId, known: &Known, view: &Glance<'_>) -> Held {
    for old in &known.rows {
        let row = view.journal.iter().find(|row| row.effect == old.effect && row.seq == old.seq);
        let Some(row) = row else { return Err(("I8", format!("a row of effect {} of {id} is gone", old.effect))) };
        must!(row.key == old.key, "I7", "the key of effect {} of {id} changed", old.effect);
        must!(row.sends >= old.sends, "I8", "a send of effect {} of {id} is forgotten", old.effect);
        if let EffectState::Confirmed { value } = &old.state {
            let kept = matches!(&row.state, EffectState::Confirmed { value: now } if now == value);
            must!(kept, "I7", "effect {} of {id} was confirmed and is {}", old.effect, row.state.as_str());
        }
        let decided = matches!(old.state, EffectState::Rejected { .. } | EffectState::NotDone);
        must!(!decided || row.state == old.state, "I7", "effect {} of {id} was decided twice", old.effect);
    }
    for row in view.journal {
        let twin = view.journal.iter().find(|other| other.effect == row.effect && other.round == row.round);
        must!(twin.is_none_or(|twin| twin.key == row.key), "I7", "effect {} of {id} has two keys", row.effect);
    }
    Ok(())
}

/// What ended says how and why, and leaves nothing open.
fn ends_as_it_should(id: MessageId, view: &Glance<'_>) -> Held {
    let (state, open) = (view.state, open_rows(view.journal).next());
    if state.is_terminal() {
        must!(
            open.is_none(),
            "I7",
            "{id} is {state} while effect {} is open",
            open.map_or(String::new(), |row| row.effect.to_string())
        );
    }
    match state {
        State::Completed | State::Failed => must!(view.answer.is_some(), "I10", "{id} is {state} without an answer"),
        State::Dead | State::Parked => must!(view.has_reason, "I10", "{id} is {state} without a reason"),
        State::Ready | State::Leased | State::Cancelled => {}
    }
    must!(
        state == State::Completed || state == State::Failed || view.answer.is_none(),
        "I5",
        "{id} is {state} with an answer"
    );
    Ok(())
}
