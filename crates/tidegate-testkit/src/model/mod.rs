//! The reference model: a store in memory, slow and plain, that says what every verb must do.
//!
//! It states the transition table a second time, in `rules.rs`; it calls none of the core's decisions. The conformance
//! suite runs on it as on any engine, and the [model check](crate::check) compares engines with it. It keeps a
//! world per place, so that two handles on one place share it as two processes share a file. Nothing is durable.

mod by_core;
mod rules;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use tidegate_core::effect::EffectRow;
use tidegate_core::lifecycle::{Cancellation, Counters, State};
use tidegate_core::message::{Answer, Message, NewMessage};
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, News, Note, Operate,
    Operation, Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Summary, SweepRequest, Swept,
    Verdicts,
};
use tidegate_core::token::TokenRecord;
use tidegate_core::{Clock, IdempotencyKey, Kind, MessageId, QueueName, Store, StoreError, Tenant};

use crate::engine::contend_in_threads;
use crate::{Claimer, Engine, Place, Taken};
use world::World;

/// One rule broken on purpose: what the model check must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A settlement is taken under any token.
    NoFence,
    /// A released, snoozed or refused run keeps its attempt.
    AttemptNotReturned,
    /// An open effect holds nothing back.
    TerminalWithOpenEffect,
    /// Retention counts from the enqueue.
    RetentionFromEnqueue,
    /// A repeated settlement makes its follow-ups again.
    FollowUpsTwice,
    /// Another payload under a known key is taken for a duplicate.
    KeyConflictIgnored,
    /// A sweep goes by the default policy where none was declared.
    DeadWithoutPolicy,
    /// A late confirmation is applied.
    LateConfirmApplied,
    /// A lapsed lease may still intend.
    IntentAfterLapse,
    /// A pause holds nothing back.
    PauseIgnored,
    /// Every crash counts, alone or not.
    InnocentsConvicted,
    /// A claim repeated under its nonce takes more.
    NonceForgotten,
    /// What is ready is claimed in the order of acceptance only.
    PriorityIgnored,
    /// A late write is refused, but not counted.
    LateWritesUncounted,
}

#[cfg(test)]
impl Mutation {
    pub(crate) const ALL: [Self; 14] = [
        Self::NoFence,
        Self::AttemptNotReturned,
        Self::TerminalWithOpenEffect,
        Self::RetentionFromEnqueue,
        Self::FollowUpsTwice,
        Self::KeyConflictIgnored,
        Self::DeadWithoutPolicy,
        Self::LateConfirmApplied,
        Self::IntentAfterLapse,
        Self::PauseIgnored,
        Self::InnocentsConvicted,
        Self::NonceForgotten,
        Self::PriorityIgnored,
        Self::LateWritesUncounted,
    ];
}

/// A message as it lies in the model.
#[derive(Debug, Clone, Copy)]
pub struct Glance<'a> {
    /// As it was stored.
    pub message: &'a Message,
    /// Where it is in its life.
    pub state: State,
    /// What is counted of it.
    pub counters: Counters,
    /// Whether it says why it is where it is.
    pub has_reason: bool,
    /// The answer of a message that has one.
    pub answer: Option<&'a Answer>,
    /// A compensation undoes it.
    pub compensated: bool,
    /// Its effects.
    pub journal: &'a [EffectRow],
}

/// A store in memory that states the rules anew.
#[derive(Debug)]
pub struct Model {
    world: Arc<Mutex<World>>,
    clock: Arc<dyn Clock>,
    listeners: Listeners,
}

#[derive(Default)]
struct Listeners(Mutex<Vec<Weak<dyn CommitListener>>>);

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listeners")
    }
}

impl Model {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::on(Arc::default(), clock)
    }

    /// An empty store in which the core decides, at every step, and the rules of the model are only compared with it: see
    /// [`Model::differences`].
    #[must_use]
    pub fn decided_by_the_core(clock: Arc<dyn Clock>) -> Self {
        let model = Self::new(clock);
        model.lock().differences = Some(Vec::new());
        model
    }

    /// Where the core decided otherwise than the rules of the model, since this was last asked.
    #[must_use]
    pub fn differences(&self) -> Vec<String> {
        self.lock().differences.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Looks at a message where it lies: for a simulation that looks after every verb. No clock is read.
    pub fn glance<T>(&self, id: MessageId, look: impl FnOnce(Option<Glance<'_>>) -> T) -> T {
        look(self.lock().glance(id))
    }

    /// Which message has this key.
    #[must_use]
    pub fn holder(&self, scope: &(Tenant, QueueName, IdempotencyKey)) -> Option<MessageId> {
        self.lock().keys.get(scope).copied()
    }

    fn on(world: Arc<Mutex<World>>, clock: Arc<dyn Clock>) -> Self {
        Self { world, clock, listeners: Listeners::default() }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a verb at one moment, and tells the listeners afterwards.
    fn act<T>(&self, verb: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        world.tick(&*self.clock);
        let answer = verb(&mut world);
        let news = std::mem::take(&mut world.news);
        drop(world);
        self.tell(&news);
        answer
    }

    fn tell(&self, news: &News) {
        if news.ready.is_empty() && news.ended.is_empty() {
            return;
        }
        let listeners: Vec<_> = {
            let mut known = self.listeners.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|listener| listener.strong_count() > 0);
            known.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.committed(news);
        }
    }
}

#[async_trait]
impl Store for Model {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        Ok(self.act(|world| batch.iter().map(|message| world.enqueue(message)).collect()))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        Ok(self.act(|world| world.claim(&request)))
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.act(|world| world.policies.extend(policies));
        Ok(())
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        Ok(self.act(|world| batch.iter().map(|extend| world.extend(extend)).collect()))
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        Ok(self.act(|world| batch.iter().map(|journal| world.journal(journal)).collect()))
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        Ok(self.act(|world| batch.iter().map(|settle| world.settle(settle)).collect()))
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        Ok(self.act(|world| world.sweep(&request)))
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.act(|world| world.redrive(&request))
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.act(|world| world.operate(&request))
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        Ok(self.act(|world| world.operations(name.as_deref(), limit)))
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.act(|world| world.edit(&request))
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.act(|world| world.discard(&request))
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        Ok(self.act(|world| request.ids.iter().map(|id| world.cancel(*id, &request)).collect()))
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.act(|world| world.pause(&request));
        Ok(())
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.act(|world| world.resolve(&request))
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        Ok(self.act(|world| ids.iter().map(|id| world.view(*id)).collect()))
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        Ok(self.act(|world| world.keys.get(&(tenant, queue, key)).copied()))
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        let progress = |view: MessageView| Progress { state: view.state, reason: view.reason, answer: view.answer };
        Ok(self.act(|world| ids.iter().map(|id| world.view(*id).map(progress)).collect()))
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        Ok(self.act(|world| world.flow(root)))
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        Ok(self.act(|world| world.list(&filter)))
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        Ok(self.act(|world| world.groups(&filter)))
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        Ok(self.act(|world| world.explain(id)))
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(self.act(|world| world.audit.iter().filter(|row| row.seq > after).take(limit).cloned().collect()))
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.act(|world| world.note(&note));
        Ok(())
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        Ok(self.act(|world| world.tokens()))
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.act(|world| world.change_token(&request))
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        Ok(self.act(|world| world.stats()))
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.listeners.0.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }
}

/// The model as an engine: its places are names, and live as long as it does.
#[derive(Debug, Default)]
pub struct ModelEngine {
    worlds: Mutex<BTreeMap<String, Arc<Mutex<World>>>>,
    next: AtomicU64,
    mutation: Option<Mutation>,
}

#[cfg(test)]
impl ModelEngine {
    /// An engine that breaks one rule.
    pub(crate) fn broken(mutation: Mutation) -> Self {
        Self { mutation: Some(mutation), ..Self::default() }
    }
}

#[async_trait]
impl Engine for ModelEngine {
    async fn fresh(&self) -> Place {
        Place::new(format!("place-{}", self.next.fetch_add(1, Ordering::Relaxed)), ())
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        let mut worlds = self.worlds.lock().unwrap_or_else(PoisonError::into_inner);
        let world = worlds.entry(place.address().to_owned()).or_default().clone();
        world.lock().unwrap_or_else(PoisonError::into_inner).mutation = self.mutation;
        Ok(Arc::new(Model::on(world, clock)))
    }

    /// In threads: what is in memory has no other processes.
    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        let mut contenders = Vec::new();
        for claimer in claimers {
            let clock: Arc<dyn Clock> = Arc::new(tidegate_core::SystemClock::new());
            let store = self.open(place, clock).await.expect("a model can always be opened");
            contenders.push((claimer, store));
        }
        contend_in_threads(contenders)
    }
}
