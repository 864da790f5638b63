//! One external side effect, as a handler makes it: intent, send, answer.
//!
//! [`reach`] in the core says what the journal allows: replay the confirmed value, send, look up first, or leave it to a
//! person. This file carries that out. The intent is durable before anything leaves; the send is bounded in time, so that
//! "the last moment at which a request of ours can have left" is known; what the closure says of the answer is written
//! down, and an effect whose answer is missing ends the attempt, whatever the handler makes of the error.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::canary::{self, Canary};
use tidegate_core::effect::{
    self, DEFAULT_QUARANTINE, Decision, EffectId, EffectKey, EffectPolicy, EffectRow, EffectState, IntentTimes,
    MAX_RECONCILE, Reached, reach,
};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::digest16;
use tidegate_core::message::Failure;
use tidegate_core::store::{Journal, JournalWrite};
use tracing::{Instrument as _, debug};

use crate::context::{Context, Ended, UnderWay, effect_id};
use crate::handler::{HandlerError, Rejection, Stop};
use crate::keepalive::Stopped;
use crate::probe::{Arrival, How, Leaving};
use crate::trace;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::transactional::Transactional;

/// How long a send may take unless the effect says otherwise.
const DEFAULT_SEND_WITHIN: Duration = Duration::from_secs(30);

/// Why an answer is unknown that a test took away.
const LOST: &str = "a test lost the answer";

/// What came back from a remote, as the author of the call understands it. There is no conversion from errors: whether
/// nothing happened or nobody knows is for the author to say. In doubt it is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectAnswer<T> {
    /// It happened, and here is what a later step needs of it.
    Confirmed(T),
    /// The remote said no, finally: a declined card.
    Rejected {
        /// The remote's code.
        code: String,
        /// What it said.
        detail: String,
    },
    /// Certainly nothing happened: connection refused, 429, a 503 that promises so.
    NotDone {
        /// What was seen.
        why: String,
        /// When the remote asked to be called again.
        after: Option<Duration>,
    },
    /// Anything else: a time-out, a reset, a reply that cannot be read.
    Unknown {
        /// What was seen.
        why: String,
    },
}

impl<T> EffectAnswer<T> {
    /// It happened.
    pub fn confirmed(value: T) -> Self {
        Self::Confirmed(value)
    }

    /// The remote said no, finally.
    pub fn rejected(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Rejected { code: code.into(), detail: detail.into() }
    }

    /// Certainly nothing happened.
    pub fn not_done(why: impl Into<String>) -> Self {
        Self::NotDone { why: why.into(), after: None }
    }

    /// Certainly nothing happened, and the remote asked to be called again after a while.
    pub fn not_done_after(why: impl Into<String>, after: Duration) -> Self {
        Self::NotDone { why: why.into(), after: Some(after) }
    }

    /// Nobody knows.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    /// The same answer about another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> EffectAnswer<U> {
        match self {
            Self::Confirmed(value) => EffectAnswer::Confirmed(change(value)),
            Self::Rejected { code, detail } => EffectAnswer::Rejected { code, detail },
            Self::NotDone { why, after } => EffectAnswer::NotDone { why, after },
            Self::Unknown { why } => EffectAnswer::Unknown { why },
        }
    }
}

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// It happened.
    Confirmed(T),
    /// The remote had said no.
    Rejected {
        /// The remote's code.
        code: String,
        /// What it said.
        detail: String,
    },
    /// The remote answered, and knows nothing under this key.
    NotFound,
    /// The look-up itself was not answered.
    Unknown {
        /// What was seen.
        why: String,
    },
}

type Looking<'a, T> = Pin<Box<dyn Future<Output = Found<T>> + Send + 'a>>;
type Lookup<'a, T> = Box<dyn FnOnce(EffectKey) -> Looking<'a, T> + Send + 'a>;

fn boxed<'a, T, F, Fut>(find: F) -> Lookup<'a, T>
where
    F: FnOnce(EffectKey) -> Fut + Send + 'a,
    Fut: Future<Output = Found<T>> + Send + 'a,
{
    Box::new(move |key| Box::pin(find(key)))
}

/// An effect whose author has not yet said what may be done when its answer is missing. There is no default.
#[must_use = "an effect does nothing before a policy is chosen and it is called"]
pub struct EffectBuilder {
    pub(crate) context: Context,
    effect: Result<EffectId, StoreError>,
    request_hash: Option<[u8; 16]>,
    send_within: Option<Duration>,
    reconcile_for: Duration,
    quarantine: Duration,
}

impl EffectBuilder {
    pub(crate) fn new(context: Context, name: &str) -> Self {
        let effect = effect_id(name, None);
        Self {
            context,
            effect,
            request_hash: None,
            send_within: None,
            reconcile_for: MAX_RECONCILE,
            quarantine: DEFAULT_QUARANTINE,
        }
    }

    /// Tells repetitions of one effect inside a handler apart: a line number, a recipient; at most 255 bytes.
    pub fn item(mut self, item: impl Into<String>) -> Self {
        self.effect = self.effect.and_then(|effect| effect_id(effect.name.as_str(), Some(item.into())));
        self
    }

    /// What is asked of the remote, if it is more or less than the message's payload. Another request under an open
    /// effect is another effect, and parks instead of being sent.
    pub fn request<T: Serialize + ?Sized>(mut self, request: &T) -> Self {
        match serde_json::to_vec(request) {
            Ok(bytes) => self.request_hash = Some(digest16(&[&bytes])),
            Err(e) => {
                self.effect = self
                    .effect
                    .and_then(|_| Err(StoreError::invalid(format!("the request does not serialise to JSON: {e}"))));
            }
        }
        self
    }

    /// How long the call may take, 30 s unless said otherwise: after it no request leaves any more, and the answer is
    /// unknown. Quarantines count from its end.
    pub fn send_within(mut self, send_within: Duration) -> Self {
        self.send_within = Some(send_within);
        self
    }

    /// How long a missing answer is cleared up before a person has to; a day at most.
    pub fn reconcile_for(mut self, reconcile_for: Duration) -> Self {
        self.reconcile_for = reconcile_for;
        self
    }

    /// How long after the last possible send a *person* is believed who says that it did not happen; 2 minutes unless said
    /// otherwise. A look-up names its own.
    pub fn quarantine(mut self, quarantine: Duration) -> Self {
        self.quarantine = quarantine;
        self
    }

    /// The remote recognises our key for this long from the first send: the same key is sent again.
    pub fn keyed<'a, T>(self, window: Duration) -> Effect<'a, T> {
        let quarantine = self.quarantine;
        self.with(EffectPolicy::Keyed { window, or_lookup: false }, quarantine, None)
    }

    /// The remote can be asked whether it happened; "not found" is believed `quarantine` after the last possible send.
    pub fn lookup<'a, T, F, Fut>(self, quarantine: Duration, find: F) -> Effect<'a, T>
    where
        F: FnOnce(EffectKey) -> Fut + Send + 'a,
        Fut: Future<Output = Found<T>> + Send + 'a,
    {
        self.with(EffectPolicy::Lookup, quarantine, Some(boxed(find)))
    }

    /// Sent at most once; a missing answer waits for a person.
    pub fn at_most_once<'a, T>(self) -> Effect<'a, T> {
        let quarantine = self.quarantine;
        self.with(EffectPolicy::AtMostOnce, quarantine, None)
    }

    /// Harmless to repeat: no intent is written, and a missing answer is tried again.
    pub fn natural<'a, T>(self) -> Effect<'a, T> {
        self.with(EffectPolicy::Natural, Duration::ZERO, None)
    }

    /// A write into the store's own database, committed together with its confirmation.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub fn transactional(self) -> Transactional {
        Transactional::new(self)
    }

    fn with<T>(self, policy: EffectPolicy, quarantine: Duration, lookup: Option<Lookup<'_, T>>) -> Effect<'_, T> {
        Effect { builder: self, policy, quarantine, lookup }
    }

    pub(crate) fn reached(&self, policy: EffectPolicy, quarantine: Duration) -> Result<Reached, StoreError> {
        let payload = || digest16(&[self.context.message().payload.as_bytes()]);
        Ok(Reached {
            effect: self.effect.clone()?,
            policy,
            request_hash: self.request_hash.unwrap_or_else(payload),
            quarantine,
        })
    }
}

impl fmt::Debug for EffectBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EffectBuilder").field("effect", &self.effect).finish_non_exhaustive()
    }
}

/// An effect with its policy, ready to be called.
#[must_use = "an effect does nothing before it is called"]
pub struct Effect<'a, T> {
    builder: EffectBuilder,
    policy: EffectPolicy,
    quarantine: Duration,
    lookup: Option<Lookup<'a, T>>,
}

impl<T> fmt::Debug for Effect<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effect")
            .field("effect", &self.builder.effect)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send> Effect<'a, T> {
    /// What to do when the window of a keyed effect has passed: ask before sending again.
    pub fn or_lookup<F, Fut>(mut self, quarantine: Duration, find: F) -> Self
    where
        F: FnOnce(EffectKey) -> Fut + Send + 'a,
        Fut: Future<Output = Found<T>> + Send + 'a,
    {
        if let EffectPolicy::Keyed { or_lookup, .. } = &mut self.policy {
            *or_lookup = true;
            self.quarantine = quarantine;
            self.lookup = Some(boxed(find));
        }
        self
    }

    /// Makes the effect, or replays what is known of it.
    ///
    /// `send` gets the key to send: the same in every attempt and process. It runs at most once, after the intent is
    /// durable, and is dropped when its time is up.
    ///
    /// # Errors
    /// The remote's [rejection](HandlerError::rejection), permanent if it is passed on; otherwise the end of this attempt:
    /// hand it on with `?`. What becomes of the message then is decided by the effect's policy, not by the handler.
    ///
    /// # Cancel safety
    /// Not cancel safe in the sense of the effect: dropped while the send is under way, its answer is missing, and is
    /// cleared up as the policy says.
    pub async fn call<F, Fut>(self, send: F) -> Result<T, HandlerError>
    where
        F: FnOnce(EffectKey) -> Fut + Send,
        Fut: Future<Output = EffectAnswer<T>> + Send,
    {
        let context = self.builder.context.clone();
        let (reached, under_way) = ready(&context, self.builder.reached(self.policy, self.quarantine))?;
        let times = IntentTimes {
            send_within: self.builder.send_within.unwrap_or(DEFAULT_SEND_WITHIN),
            reconcile_for: self.builder.reconcile_for,
        };
        let span = trace::effect(&reached);
        let made = Call { context, reached, times }.run(self.lookup, send).instrument(span).await;
        under_way.over();
        made
    }
}

/// Marks the effect as reached, or refuses it because the attempt is over already.
pub(crate) fn ready(
    context: &Context,
    reached: Result<Reached, StoreError>,
) -> Result<(Reached, UnderWay), HandlerError> {
    if context.progress().ended.is_some() {
        return Err(HandlerError::of(Stop::Ended));
    }
    let reached = match reached {
        Ok(reached) => reached,
        Err(error) => return Err(stop(context, Ended::Retryable(Failure::new("effect", error.to_string())))),
    };
    let under_way = context.reach(&reached.effect).map_err(|failure| stop(context, Ended::Retryable(failure)))?;
    Ok((reached, under_way))
}

fn stop(context: &Context, ended: Ended) -> HandlerError {
    context.end(ended);
    HandlerError::of(Stop::Ended)
}

/// An intent that is durable, and until when it may be sent.
struct Sending {
    row: EffectRow,
    give_up_at: Duration,
}

/// One effect under way.
pub(crate) struct Call {
    pub(crate) context: Context,
    pub(crate) reached: Reached,
    pub(crate) times: IntentTimes,
}

impl Call {
    async fn run<T, F, Fut>(self, mut lookup: Option<Lookup<'_, T>>, send: F) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send,
        F: FnOnce(EffectKey) -> Fut + Send,
        Fut: Future<Output = EffectAnswer<T>> + Send,
    {
        loop {
            let decision = self.decide();
            trace::decided(&decision);
            match decision {
                Decision::Replay(value) => return self.decode(&value),
                Decision::ReplayRejected { code, detail } => return Err(rejected(code, detail)),
                Decision::Park(reason) => {
                    let detail = format!("effect {} cannot be decided by code ({reason})", self.reached.effect);
                    return Err(self.stop(Ended::Park(reason, Failure::new(reason.as_str(), detail))));
                }
                Decision::LookUp { not_before } => {
                    let now = self.context.0.clock.now();
                    let Some(find) = lookup.take().filter(|_| now >= not_before) else {
                        let detail = format!("effect {} is looked up from {not_before} on", self.reached.effect);
                        return Err(self.stop(Ended::Unknown(Failure::new("quarantine", detail))));
                    };
                    if let Some(value) = self.look_up(find).await? {
                        return Ok(value);
                    }
                    // It never happened: go round again, the journal now allows a send.
                }
                Decision::Send if self.reached.policy == EffectPolicy::Natural => return self.natural(send).await,
                Decision::Send => {
                    if let Some(sending) = self.begin().await? {
                        return self.send(sending, send).await;
                    }
                    // The store came out of a backup and knows that it may have been sent: go round again.
                }
            }
        }
    }

    pub(crate) fn decide(&self) -> Decision {
        let inner = &self.context.0;
        reach(&self.context.progress().journal, &self.reached, inner.lease.counters.round, inner.clock.now())
    }

    /// Writes the intent. `None`: the store answered with a row that is open already, and which has to be cleared up.
    async fn begin(&self) -> Result<Option<Sending>, HandlerError> {
        self.may_begin()?;
        failpoint::reach("effect.before_intent");
        // Counted from before the intent, so that the store's "last possible send" is never too early.
        let give_up_at = self.context.0.clock.monotonic().saturating_add(self.times.send_within);
        let row = self.intend().await?;
        Ok((row.state == EffectState::Intent).then_some(Sending { row, give_up_at }))
    }

    async fn send<T, F, Fut>(&self, Sending { row, give_up_at }: Sending, send: F) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send,
        F: FnOnce(EffectKey) -> Fut + Send,
        Fut: Future<Output = EffectAnswer<T>> + Send,
    {
        let now = self.context.0.clock.monotonic();
        // The intent's commit may have taken longer than the lease: then somebody else may be sending.
        let over = now >= self.context.0.held.lapses_at() || now >= give_up_at;
        if over && !canary::is(Canary::SendAfterDeadline) {
            let why = "the lease or the time to send was over before the request left";
            return self.not_done(&row, why.into(), None).await;
        }
        failpoint::reach("effect.before_send");
        let sending = self.watched_send(&row.key, send(row.key.clone()));
        let answer = match tokio::time::timeout(give_up_at.saturating_sub(now), sending).await {
            Ok(answer) => answer,
            Err(_) if canary::is(Canary::TimeoutReadAsNotDone) => EffectAnswer::not_done("no answer"),
            Err(_) => EffectAnswer::Unknown { why: format!("no answer within {:?}", self.times.send_within) },
        };
        failpoint::reach("effect.after_send");
        match answer {
            EffectAnswer::Confirmed(value) => self.confirm(&row, value).await,
            EffectAnswer::Rejected { code, detail } => self.rejected(&row, code, detail).await,
            EffectAnswer::NotDone { why, after } => self.not_done(&row, why, after).await,
            EffectAnswer::Unknown { why } => self.unknown(&row, why).await,
        }
    }

    /// What leaves the process, with a test's eyes on both its ends.
    pub(crate) async fn watched<T: Send>(
        &self,
        how: How,
        key: &EffectKey,
        leaving: impl Future<Output = T> + Send,
    ) -> (T, Arrival) {
        let leaving = leaving.instrument(trace::leaving(how, &self.reached));
        let Some(probe) = &self.context.0.probe else { return (leaving.await, Arrival::Arrives) };
        let seen = Leaving::new(how, self.context.message(), &self.reached, key);
        probe.before(&seen).await;
        let came = leaving.await;
        let arrival = probe.after(&seen).await;
        (came, arrival)
    }

    async fn watched_send<T: Send>(
        &self,
        key: &EffectKey,
        sending: impl Future<Output = EffectAnswer<T>> + Send,
    ) -> EffectAnswer<T> {
        match self.watched(How::Send, key, sending).await {
            (answer, Arrival::Arrives) => answer,
            (_, Arrival::Lost) => EffectAnswer::Unknown { why: LOST.to_owned() },
        }
    }

    /// What forbids a new effect: a cancel request, a lost lease, a deadline. An open one may always be cleared up.
    pub(crate) fn may_begin(&self) -> Result<(), HandlerError> {
        let inner = &self.context.0;
        if self.context.row(&self.reached.effect).is_some_and(|row| row.state.is_open()) {
            return Ok(());
        }
        let stopped = inner.held.stopped();
        if let Some(Stopped::LeaseLost) = stopped {
            return Err(self.stop(Ended::LeaseLost));
        }
        // Once an effect is confirmed the message cannot be called off any more: the rest of its handler must follow.
        let may_be_called_off = !self.context.has_confirmed();
        if may_be_called_off && self.context.is_cancel_requested() {
            let failure = Failure::new("cancel_requested", "called off before the effect began");
            return Err(self.stop(Ended::Retryable(failure)));
        }
        if let Some(reason) = stopped.filter(|reason| *reason != Stopped::CancelRequested) {
            let failure =
                Failure::new("stopped", format!("the attempt was to end before the effect began: {reason:?}"));
            return Err(self.stop(Ended::Retryable(failure)));
        }
        if effect::too_late(&inner.lease.message, &self.context.progress().journal, inner.clock.now()) {
            let failure = Failure::new("deadline", "no effect begins after the deadline");
            return Err(self.stop(Ended::Retryable(failure)));
        }
        self.window_is_long_enough()
    }

    /// A keyed effect whose window ends before the message's age does could be retried when the remote has forgotten the
    /// key; without a look-up that is a second effect waiting to happen.
    fn window_is_long_enough(&self) -> Result<(), HandlerError> {
        let left = self.context.0.lease.message.expires_at.since(self.context.0.clock.now());
        let EffectPolicy::Keyed { window, or_lookup: false } = self.reached.policy else { return Ok(()) };
        if window >= left {
            return Ok(());
        }
        let detail = format!(
            "effect {}: the remote forgets a key after {window:?}, and the message may be retried for {left:?}; hint: add \
             .or_lookup(..), or give the message a shorter max_age",
            self.reached.effect
        );
        Err(self.stop(Ended::Retryable(Failure::new("window_too_short", detail))))
    }

    async fn intend(&self) -> Result<EffectRow, HandlerError> {
        let write = JournalWrite::Intent { reached: self.reached.clone(), times: self.times };
        if canary::is(Canary::EffectBeforeIntent) {
            return self.intend_later(write);
        }
        match self.wrote(write).await {
            Ok(row) => Ok(row),
            Err(error) if error.kind() == StoreErrorKind::Unavailable => {
                // It may be durable, but its send will not leave: said with the settlement, so that nobody has to find out.
                let not_sent = JournalWrite::NotSent { effect: self.reached.effect.clone() };
                self.context.progress().pending.push(not_sent);
                let failure = Failure::new("journal", error.to_string());
                Err(self.stop(Ended::NotDone { failure, after: None }))
            }
            Err(error) => Err(self.unwritten(&error)),
        }
    }

    /// What must never be: the row is made up here, and stored when there is something else to store.
    fn intend_later(&self, write: JournalWrite) -> Result<EffectRow, HandlerError> {
        let (lease, now) = (&self.context.0.lease, self.context.0.clock.now());
        let mut progress = self.context.progress();
        let (token, round) = (lease.token, lease.counters.round);
        let made_up = effect::intend(&lease.message, &progress.journal, &self.reached, self.times, token, round, now);
        let Ok(row) = made_up else {
            drop(progress);
            return Err(self.stop(Ended::Retryable(Failure::new("journal", "no intent can be made"))));
        };
        progress.pending.push(write);
        drop(progress);
        self.context.note(row.clone());
        Ok(row)
    }

    /// Writes to the journal now, with what was waiting to be written.
    async fn write(&self, write: JournalWrite) -> Result<EffectRow, HandlerError> {
        self.wrote(write).await.map_err(|error| self.unwritten(&error))
    }

    fn unwritten(&self, error: &StoreError) -> HandlerError {
        let failure = Failure::new("journal", error.to_string());
        self.stop(match error.kind() {
            StoreErrorKind::LeaseLost => Ended::LeaseLost,
            StoreErrorKind::Unavailable => Ended::Unknown(failure),
            StoreErrorKind::KeyConflict
            | StoreErrorKind::Conflict
            | StoreErrorKind::QueueFull
            | StoreErrorKind::NotFound
            | StoreErrorKind::Invalid
            | StoreErrorKind::Corrupt => Ended::Retryable(failure),
        })
    }

    async fn wrote(&self, write: JournalWrite) -> Result<EffectRow, StoreError> {
        let inner = &self.context.0;
        let before = std::mem::take(&mut self.context.progress().pending);
        let call = Journal { id: self.context.id(), token: inner.lease.token, before: before.clone(), write };
        let verdict = match inner.store.journal(vec![call]).await {
            Ok(mut verdicts) => verdicts.pop().unwrap_or_else(|| Err(StoreError::unavailable("no verdict"))),
            Err(error) => Err(error),
        };
        match verdict {
            Ok(row) => {
                self.context.note(row.clone());
                Ok(row)
            }
            Err(error) if error.kind() == StoreErrorKind::LeaseLost => Err(error),
            Err(error) => {
                // Whether it is durable is not known: the settlement carries the answers again, and repeats are harmless.
                self.context.progress().pending = before;
                debug!(message.id = %self.context.id(), error = %error, "the journal could not be written");
                Err(error)
            }
        }
    }

    /// Notes an answer: for a keyed effect with the next commit of this message (lost before it, the same key is sent
    /// again), for all others now.
    async fn answer(&self, row: &EffectRow, answer: effect::EffectAnswer) -> Result<(), HandlerError> {
        let write = JournalWrite::Answer { effect: row.effect.clone(), seq: row.seq, answer };
        let rides_along = matches!(row.policy, EffectPolicy::Keyed { .. });
        if rides_along {
            self.ride(row, write);
            Ok(())
        } else {
            self.write(write).await.map(drop)
        }
    }

    /// Leaves a write to the next commit of this message.
    fn ride(&self, row: &EffectRow, write: JournalWrite) {
        if let JournalWrite::Answer { answer, .. } = &write
            && let Ok(state) = effect::answered(row, answer, self.context.0.clock.now())
        {
            self.context.note(EffectRow { state, ..row.clone() });
        }
        self.context.progress().pending.push(write);
    }

    async fn confirm<T: Serialize>(&self, row: &EffectRow, value: T) -> Result<T, HandlerError> {
        let text = self.encode(&value)?;
        trace::effect_ended("confirmed", None);
        self.answer(row, effect::EffectAnswer::Confirmed { value: text }).await?;
        failpoint::reach("effect.after_answer");
        Ok(value)
    }

    async fn rejected<T>(&self, row: &EffectRow, code: String, detail: String) -> Result<T, HandlerError> {
        // Cut as every failure is: what a remote says is not ours to bound otherwise.
        let Failure { code, detail } = Failure::new(code, detail);
        trace::effect_ended("rejected", None);
        self.answer(row, effect::EffectAnswer::Rejected { code: code.clone(), detail: detail.clone() }).await?;
        Err(rejected(code, detail))
    }

    async fn not_done<T>(&self, row: &EffectRow, why: String, after: Option<Duration>) -> Result<T, HandlerError> {
        let write =
            JournalWrite::Answer { effect: row.effect.clone(), seq: row.seq, answer: effect::EffectAnswer::NotDone };
        self.ride(row, write);
        trace::effect_ended("not_done", Some("not_done"));
        Err(self.stop(Ended::NotDone { failure: Failure::new("not_done", why), after }))
    }

    async fn unknown<T>(&self, row: &EffectRow, why: String) -> Result<T, HandlerError> {
        let failure = Failure::new("unknown", why);
        trace::effect_ended("unknown", Some("unknown"));
        let answer = effect::EffectAnswer::Unknown { why: failure.detail.clone() };
        self.ride(row, JournalWrite::Answer { effect: row.effect.clone(), seq: row.seq, answer });
        Err(self.stop(Ended::Unknown(failure)))
    }

    /// Asks the remote. `None`: it never happened, and may be sent.
    async fn look_up<T>(&self, find: Lookup<'_, T>) -> Result<Option<T>, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send,
    {
        let Some(row) = self.context.row(&self.reached.effect) else {
            return Err(self.stop(Ended::Retryable(Failure::new("journal", "the row to look up is gone"))));
        };
        failpoint::reach("effect.before_look_up");
        let finding = self.watched(How::LookUp, &row.key, find(row.key.clone()));
        let found = match tokio::time::timeout(self.times.send_within, finding).await {
            Ok((_, Arrival::Lost)) => Found::Unknown { why: LOST.to_owned() },
            Ok((found, Arrival::Arrives)) => found,
            Err(_) => Found::Unknown { why: format!("no answer within {:?}", self.times.send_within) },
        };
        failpoint::reach("effect.after_look_up");
        match found {
            Found::Confirmed(value) => self.confirm(&row, value).await.map(Some),
            Found::Rejected { code, detail } => self.rejected(&row, code, detail).await,
            Found::Unknown { why } => {
                trace::effect_ended("unknown", Some("lookup"));
                let failure = Failure::new("lookup", format!("effect {}: {why}", self.reached.effect));
                Err(self.stop(Ended::Unknown(failure)))
            }
            Found::NotFound => {
                let answer = effect::EffectAnswer::NotFound;
                self.write(JournalWrite::Answer { effect: row.effect.clone(), seq: row.seq, answer }).await?;
                self.has_attempt_left()?;
                Ok(None)
            }
        }
    }

    /// A run that reconciles was not counted; it may send again only if an attempt is left for that.
    fn has_attempt_left(&self) -> Result<(), HandlerError> {
        let inner = &self.context.0;
        if inner.lease.reconciling && inner.lease.counters.attempt >= inner.policy.max_attempts {
            let detail = format!("effect {} never happened, and no attempt is left to make it", self.reached.effect);
            return Err(self.stop(Ended::Exhausted(Failure::new("exhausted", detail))));
        }
        Ok(())
    }

    async fn natural<T, F, Fut>(&self, send: F) -> Result<T, HandlerError>
    where
        T: Serialize + Send,
        F: FnOnce(EffectKey) -> Fut + Send,
        Fut: Future<Output = EffectAnswer<T>> + Send,
    {
        self.may_begin()?;
        let inner = &self.context.0;
        let key = EffectKey::of(self.context.message(), &self.reached.effect, inner.lease.counters.round);
        let sending = self.watched_send(&key, send(key.clone()));
        let answer = match tokio::time::timeout(self.times.send_within, sending).await {
            Ok(answer) => answer,
            Err(_) => EffectAnswer::Unknown { why: format!("no answer within {:?}", self.times.send_within) },
        };
        match answer {
            EffectAnswer::Confirmed(value) => {
                // No row is open that a person could resolve, and doing it again is harmless: a dead letter, not parked.
                let text = self
                    .encoded(&value)
                    .map_err(|what| self.stop(Ended::Refused(Failure::new("effect_value", what))))?;
                let write = JournalWrite::Natural { reached: self.reached.clone(), value: text };
                self.context.progress().pending.push(write);
                trace::effect_ended("confirmed", None);
                Ok(value)
            }
            EffectAnswer::Rejected { code, detail } => {
                trace::effect_ended("rejected", None);
                Err(rejected(code, detail))
            }
            EffectAnswer::NotDone { why, after } => {
                trace::effect_ended("not_done", Some("not_done"));
                Err(self.stop(Ended::NotDone { failure: Failure::new("not_done", why), after }))
            }
            // Repeating it is harmless, so there is nothing to clear up: an ordinary failure.
            EffectAnswer::Unknown { why } => {
                trace::effect_ended("unknown", Some("unknown"));
                Err(HandlerError::retryable("unknown", why))
            }
        }
    }

    /// The value for an effect with an open row. It happened, but if what it returned cannot be replayed, nobody but a
    /// person can supply another value.
    fn encode<T: Serialize>(&self, value: &T) -> Result<Arc<str>, HandlerError> {
        self.encoded(value).map_err(|what| {
            let reason = tidegate_core::lifecycle::ParkReason::JournalDecode;
            self.stop(Ended::Park(reason, Failure::new(reason.as_str(), what)))
        })
    }

    fn encoded<T: Serialize>(&self, value: &T) -> Result<Arc<str>, String> {
        let most = self.context.0.max_payload;
        let problem = match serde_json::to_string(value) {
            Ok(text) if text.len() <= most => return Ok(text.into()),
            Ok(text) => format!("is {} bytes long, over the limit of {most}", text.len()),
            Err(e) => format!("does not serialise to JSON: {e}"),
        };
        Err(format!("effect {} was confirmed, and its value {problem}", self.reached.effect))
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self, value: &str) -> Result<T, HandlerError> {
        serde_json::from_str(value).map_err(|e| {
            let reason = tidegate_core::lifecycle::ParkReason::JournalDecode;
            let detail = format!("the confirmed value of effect {} no longer decodes: {e}", self.reached.effect);
            self.stop(Ended::Park(reason, Failure::new(reason.as_str(), detail)))
        })
    }

    pub(crate) fn stop(&self, ended: Ended) -> HandlerError {
        stop(&self.context, ended)
    }
}

pub(crate) fn rejected(code: String, detail: String) -> HandlerError {
    HandlerError::of(Stop::Rejected(Rejection { code, detail }))
}
