//! A store that goes wrong the way networks and crashes do, around one that works.
//!
//! A [`FaultyStore`] passes every verb on to the store it wraps, and spoils the calls its plan names: it fails before the
//! call, loses the reply of a call that was carried out, holds a call back until it is let go, lets a later call overtake
//! it, or carries it out twice. The plan is a script ([`FaultyStore::spoil`]) or drawn from a seed
//! ([`FaultyStore::seeded`]). Whatever is built on a store must get along with all of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_core::effect::EffectRow;
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::NewMessage;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Summary, SweepRequest, Swept, Verdicts,
};
use tidegate_core::token::TokenRecord;
use tidegate_core::{IdempotencyKey, Kind, MessageId, QueueName, Store, StoreError, Tenant};
use tokio::sync::Notify;

/// A method of [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Verb {
    Enqueue,
    Claim,
    Declare,
    Extend,
    Journal,
    Settle,
    Sweep,
    Redrive,
    Operate,
    Operations,
    Edit,
    Discard,
    Cancel,
    Pause,
    Resolve,
    Inspect,
    Find,
    Progress,
    Flow,
    List,
    Groups,
    Explain,
    Audit,
    Note,
    Tokens,
    ChangeToken,
    Stats,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::Enqueue,
        Self::Claim,
        Self::Declare,
        Self::Extend,
        Self::Journal,
        Self::Settle,
        Self::Sweep,
        Self::Redrive,
        Self::Operate,
        Self::Operations,
        Self::Edit,
        Self::Discard,
        Self::Cancel,
        Self::Pause,
        Self::Resolve,
        Self::Inspect,
        Self::Find,
        Self::Progress,
        Self::Flow,
        Self::List,
        Self::Groups,
        Self::Explain,
        Self::Audit,
        Self::Note,
        Self::Tokens,
        Self::ChangeToken,
        Self::Stats,
    ];
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It never arrives: `Unavailable`, and nothing happened.
    FailBefore,
    /// It is carried out and its reply is lost: `Unavailable`, though it happened.
    FailAfter,
    /// It waits before it is carried out, until [`FaultyStore::release`].
    Delay,
    /// It waits until another call has been carried out, whichever comes next.
    Reorder,
    /// It arrives twice; the second reply is given.
    Duplicate,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::FailBefore, Self::FailAfter, Self::Delay, Self::Reorder, Self::Duplicate];
}

/// A store around another one that spoils some calls.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Mutex<Plan>,
    released: Notify,
    overtaken: Notify,
    held: Notify,
}

#[derive(Debug)]
struct Plan {
    script: VecDeque<(Verb, Fault)>,
    seeded: Option<Seeded>,
    holding: usize,
    spoilt: Vec<(Verb, Fault)>,
}

#[derive(Debug)]
struct Seeded {
    random: ChaCha8Rng,
    rate: f64,
    faults: Vec<Fault>,
}

impl Seeded {
    fn draw(&mut self) -> Option<Fault> {
        let spoilt = self.random.random_bool(self.rate);
        spoilt.then(|| self.faults[self.random.random_range(0..self.faults.len())])
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyStore {
    /// A store that spoils nothing yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Self::planned(inner, None)
    }

    /// A store that spoils this share of all calls, in one of these ways, by chance from a seed.
    ///
    /// # Panics
    /// When the rate is no share, or no fault is given.
    #[must_use]
    pub fn seeded(inner: Arc<dyn Store>, seed: u64, rate: f64, faults: &[Fault]) -> Arc<Self> {
        assert!((0.0..=1.0).contains(&rate) && !faults.is_empty(), "a share of calls, and a way to spoil them");
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self::planned(inner, Some(Seeded { random, rate, faults: faults.to_vec() }))
    }

    fn planned(inner: Arc<dyn Store>, seeded: Option<Seeded>) -> Arc<Self> {
        let plan = Plan { script: VecDeque::new(), seeded, holding: 0, spoilt: Vec::new() };
        Arc::new(Self {
            inner,
            plan: Mutex::new(plan),
            released: Notify::new(),
            overtaken: Notify::new(),
            held: Notify::new(),
        })
    }

    /// Spoils the next call of a verb; several for one verb spoil its calls one after another.
    pub fn spoil(&self, verb: Verb, fault: Fault) {
        self.plan(|plan| plan.script.push_back((verb, fault)));
    }

    /// Lets go of every call that is held back, delayed or waiting to be overtaken.
    pub fn release(&self) {
        self.released.notify_waiters();
        self.overtaken.notify_waiters();
    }

    /// Returns when a call is held back.
    ///
    /// # Cancel safety
    /// Dropped, it has done nothing.
    pub async fn holds_one(&self) {
        loop {
            let held = self.held.notified();
            if self.plan(|plan| plan.holding > 0) {
                return;
            }
            held.await;
        }
    }

    /// Which calls were spoilt so far, and how.
    #[must_use]
    pub fn spoilt(&self) -> Vec<(Verb, Fault)> {
        self.plan(|plan| plan.spoilt.clone())
    }

    fn plan<T>(&self, act: impl FnOnce(&mut Plan) -> T) -> T {
        act(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn draw(&self, verb: Verb) -> Option<Fault> {
        self.plan(|plan| {
            let scripted = plan.script.iter().position(|(of, _)| *of == verb);
            let fault = match (scripted, &mut plan.seeded) {
                (Some(at), _) => plan.script.remove(at).map(|(_, fault)| fault),
                (None, Some(seeded)) => seeded.draw(),
                (None, None) => None,
            };
            plan.spoilt.extend(fault.map(|fault| (verb, fault)));
            fault
        })
    }

    async fn hold(&self, until: &Notify) {
        // Made before anybody can hear of it: from here on no signal is missed.
        let signal = until.notified();
        let _holding = Holding::new(self);
        self.held.notify_waiters();
        signal.await;
    }

    /// Carries a call out as its fault has it.
    async fn call<T, F>(&self, verb: Verb, call: impl Fn() -> F + Send + Sync) -> Result<T, StoreError>
    where
        T: Send,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let lost = |what: &str| StoreError::unavailable(format!("{what} of {verb:?} was lost, as the test has it"));
        let reply = match self.draw(verb) {
            None => call().await,
            Some(Fault::FailBefore) => return Err(lost("the request")),
            Some(Fault::FailAfter) => {
                call().await?;
                Err(lost("the reply"))
            }
            Some(Fault::Delay) => {
                self.hold(&self.released).await;
                call().await
            }
            Some(Fault::Reorder) => {
                self.hold(&self.overtaken).await;
                return call().await;
            }
            Some(Fault::Duplicate) => {
                call().await?;
                call().await
            }
        };
        self.overtaken.notify_waiters();
        reply
    }
}

/// Counts a call that is held back for as long as it is, dropped or not.
struct Holding<'a>(&'a FaultyStore);

impl<'a> Holding<'a> {
    fn new(store: &'a FaultyStore) -> Self {
        store.plan(|plan| plan.holding += 1);
        Self(store)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.plan(|plan| plan.holding -= 1);
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        self.call(Verb::Enqueue, || self.inner.enqueue(batch.clone())).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        self.call(Verb::Claim, || self.inner.claim(request.clone())).await
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.call(Verb::Declare, || self.inner.declare(policies.clone())).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.call(Verb::Extend, || self.inner.extend(batch.clone())).await
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.call(Verb::Journal, || self.inner.journal(batch.clone())).await
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        self.call(Verb::Settle, || self.inner.settle(batch.clone())).await
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        self.call(Verb::Sweep, || self.inner.sweep(request.clone())).await
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.call(Verb::Redrive, || self.inner.redrive(request.clone())).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.call(Verb::Operate, || self.inner.operate(request.clone())).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.call(Verb::Operations, || self.inner.operations(name.clone(), limit)).await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.call(Verb::Edit, || self.inner.edit(request.clone())).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.call(Verb::Discard, || self.inner.discard(request.clone())).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.call(Verb::Cancel, || self.inner.cancel(request.clone())).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.call(Verb::Pause, || self.inner.pause(request.clone())).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.call(Verb::Resolve, || self.inner.resolve(request.clone())).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.call(Verb::Inspect, || self.inner.inspect(ids.clone())).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        self.call(Verb::Find, || self.inner.find(tenant.clone(), queue.clone(), key.clone())).await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.call(Verb::Progress, || self.inner.progress(ids.clone())).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.call(Verb::Flow, || self.inner.flow(root)).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.call(Verb::List, || self.inner.list(filter.clone())).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.call(Verb::Groups, || self.inner.groups(filter.clone())).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        self.call(Verb::Explain, || self.inner.explain(id)).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.call(Verb::Audit, || self.inner.audit(after, limit)).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.call(Verb::Note, || self.inner.note(note.clone())).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.call(Verb::Tokens, || self.inner.tokens()).await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.call(Verb::ChangeToken, || self.inner.change_token(request.clone())).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.call(Verb::Stats, || self.inner.stats()).await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.inner.on_commit(listener);
    }
}

#[cfg(test)]
mod tests;
