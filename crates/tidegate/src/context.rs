//! What a handler holds: its message, the way to effects and follow-ups, and the word that it should stop.
//!
//! The context also keeps what the attempt has done so far (journal, pending writes, follow-ups) for the settlement.
//! It decides nothing: [`reach`](tidegate_core::effect::reach) says what an effect may do, `attempt.rs` what is reported.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::clock::Clock;
use tidegate_core::effect::{EffectId, EffectRow, JournalFacts, latest, open_rows};
use tidegate_core::error::StoreError;
use tidegate_core::id::{EffectName, MAX_KEY, MessageId};
use tidegate_core::lifecycle::ParkReason;
use tidegate_core::message::{Failure, Message as Stored, NewMessage};
use tidegate_core::retry::Policy;
use tidegate_core::store::{JournalWrite, Lease, Store};

use crate::effect::EffectBuilder;
use crate::handler::Message;
use crate::keepalive::{Held, Stopped};
use crate::options::Options;
use crate::probe::Probe;
use crate::trace;

/// One attempt, as its handler sees it. Cheap to clone.
#[derive(Clone)]
pub struct Context(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) policy: Policy,
    pub(crate) held: Arc<Held>,
    pub(crate) max_payload: usize,
    pub(crate) cancel_seen: AtomicBool,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    pub(crate) progress: Mutex<Progress>,
}

/// What the attempt has done so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) journal: Vec<EffectRow>,
    pub(crate) reached: BTreeSet<EffectId>,
    /// Journal writes that ride the next commit.
    pub(crate) pending: Vec<JournalWrite>,
    pub(crate) then: Vec<NewMessage>,
    pub(crate) compensate: Vec<NewMessage>,
    /// What ended the attempt, whatever the handler makes of it.
    pub(crate) ended: Option<Ended>,
    /// The effect that is under way: one at a time, or nobody could say which of two came first.
    pub(crate) under_way: Option<EffectId>,
}

/// What ended an attempt before its handler returned.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// An effect was refused before anything happened.
    NotDone { failure: Failure, after: Option<Duration> },
    /// An effect may have happened, or cannot be looked up yet.
    Unknown(Failure),
    /// Only a person can decide about an effect.
    Park(ParkReason, Failure),
    /// A reconciliation found that nothing happened, and no attempt is left.
    Exhausted(Failure),
    /// What the handler wants to store cannot be.
    Refused(Failure),
    /// The handler's use of the context was wrong, or the store was away.
    Retryable(Failure),
    /// An effect was dropped by its handler before its answer was known.
    CutOff(Failure),
    /// Somebody else has the message by now.
    LeaseLost,
}

/// An effect under way. Dropped before [`UnderWay::over`], its answer is missing: nothing else may begin in this attempt.
pub(crate) struct UnderWay(Option<Context>);

impl UnderWay {
    /// The effect ended as it should: answered, or with the reason why the attempt ends.
    pub(crate) fn over(mut self) {
        if let Some(context) = self.0.take() {
            context.progress().under_way = None;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(context) = self.0.take() else { return };
        let effect = context.progress().under_way.take();
        if let Some(effect) = effect {
            let detail = format!("effect {effect} was dropped before its answer was known");
            context.end(Ended::CutOff(Failure::new("cut_off", detail)));
        }
    }
}

impl Context {
    /// The message.
    #[must_use]
    pub fn message(&self) -> &Stored {
        &self.0.lease.message
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.message().id
    }

    /// The first message of its flow.
    #[must_use]
    pub fn flow(&self) -> MessageId {
        self.message().flow
    }

    /// Its idempotency key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.message().key.as_str()
    }

    /// Which attempt this is, from 1. A run that clears up an open effect is not counted and has the number before it.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.lease.counters.attempt
    }

    /// Whether an earlier run left an effect open: this one clears it up before anything new begins.
    #[must_use]
    pub fn is_reconciling(&self) -> bool {
        self.0.lease.reconciling
    }

    /// Whether an operator asked to cancel the message. No first effect begins then; a handler may return early, and one
    /// that completes all the same wins. Once an effect is confirmed the wish can no longer be granted.
    #[must_use]
    pub fn is_cancel_requested(&self) -> bool {
        self.0.cancel_seen.load(Ordering::Relaxed) || self.0.held.stopped() == Some(Stopped::CancelRequested)
    }

    /// Resolves when there is no point in going on: the lease was lost or a cancel was asked for.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn stopped(&self) {
        self.0.held.wait_stopped().await;
    }

    /// An external side effect of this handler. The name is its identity over all attempts and versions of the code, and
    /// may be used once in an attempt; repetitions inside a handler take an [`item`](EffectBuilder::item).
    pub fn effect(&self, name: &str) -> EffectBuilder {
        EffectBuilder::new(self.clone(), name)
    }

    /// Enqueues a message in the commit that completes this one, and only in that.
    ///
    /// Its key is made from this message, so that it follows once, however often this runs. A message that cannot be
    /// stored (too large, a wrong name) ends the attempt as a dead letter before another effect begins.
    pub fn then<M: Message>(&self, message: M) {
        self.then_with(message, Options::default());
    }

    /// The same with options; [`Options::item`] tells several follow-ups of one kind apart.
    #[expect(clippy::needless_pass_by_value, reason = "the message is given away: nobody should go on using it")]
    pub fn then_with<M: Message>(&self, message: M, options: Options) {
        self.follow(&message, &options, "then");
    }

    /// Enqueues a message in the commit that makes this one failed or dead: what undoes an effect that was confirmed.
    pub fn compensate<M: Message>(&self, message: M) {
        self.compensate_with(message, Options::default());
    }

    /// The same with options.
    #[expect(clippy::needless_pass_by_value, reason = "the message is given away: nobody should go on using it")]
    pub fn compensate_with<M: Message>(&self, message: M, options: Options) {
        self.follow(&message, &options, "undo");
    }

    fn follow<M: Message>(&self, message: &M, options: &Options, role: &str) {
        let prepared = options.follow_up(message, self.message(), role).and_then(|mut follow_up| {
            trace::follow_up(&mut follow_up);
            follow_up.check(self.0.max_payload)?;
            Ok(follow_up)
        });
        let mut progress = self.progress();
        let follow_up = match prepared {
            Ok(follow_up) => follow_up,
            Err(error) => {
                let detail = format!("the follow-up of kind {} cannot be stored: {error}", M::KIND);
                drop(progress);
                return self.end(Ended::Refused(Failure::new("follow_up", detail)));
            }
        };
        let list = if role == "then" { &mut progress.then } else { &mut progress.compensate };
        if list.iter().any(|other| other.key == follow_up.key) {
            drop(progress);
            let detail = format!("two follow-ups of kind {}; hint: tell them apart with Options::item", M::KIND);
            return self.end(Ended::Refused(Failure::new("follow_up", detail)));
        }
        list.push(follow_up);
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the attempt; the first reason counts.
    pub(crate) fn end(&self, ended: Ended) {
        self.progress().ended.get_or_insert(ended);
    }

    /// Marks an effect as reached and under way.
    pub(crate) fn reach(&self, effect: &EffectId) -> Result<UnderWay, Failure> {
        let mut progress = self.progress();
        if let Some(other) = &progress.under_way {
            let detail = format!("effect {effect} was begun beside effect {other}; hint: await one, then the other");
            return Err(Failure::new("effect_concurrent", detail));
        }
        if !progress.reached.insert(effect.clone()) {
            let detail = format!("effect {effect} was used twice in one attempt; hint: tell them apart with .item(..)");
            return Err(Failure::new("effect_repeated", detail));
        }
        progress.under_way = Some(effect.clone());
        Ok(UnderWay(Some(self.clone())))
    }

    /// Whether an open effect of an earlier run was not reached by this one.
    pub(crate) fn has_orphans(&self) -> bool {
        let progress = self.progress();
        open_rows(&progress.journal).any(|row| !progress.reached.contains(&row.effect))
    }

    /// Whether an effect that is not natural is confirmed: money may have moved.
    pub(crate) fn has_confirmed(&self) -> bool {
        JournalFacts::of(&self.progress().journal, self.0.clock.now()).confirmed
    }

    /// The newest row of an effect.
    pub(crate) fn row(&self, effect: &EffectId) -> Option<EffectRow> {
        latest(&self.progress().journal, effect).cloned()
    }

    /// Puts a row into the attempt's picture of the journal, over the one of the same effect and number.
    pub(crate) fn note(&self, row: EffectRow) {
        let mut progress = self.progress();
        progress.journal.retain(|old| old.effect != row.effect || old.seq != row.seq);
        progress.journal.push(row);
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("message", &self.id()).field("attempt", &self.attempt()).finish_non_exhaustive()
    }
}

/// A checked effect name, and an item that is no longer than a key may be: both stand in every row of its journal.
pub(crate) fn effect_id(name: &str, item: Option<String>) -> Result<EffectId, StoreError> {
    let name = EffectName::new(name)?;
    match item.as_deref().map(str::len).filter(|size| *size > MAX_KEY) {
        None => Ok(EffectId { name, item }),
        Some(size) => Err(StoreError::invalid(format!("the item of effect {name} has {size} bytes, over {MAX_KEY}"))
            .hint("name the item by a number or an id; hash anything longer")),
    }
}
