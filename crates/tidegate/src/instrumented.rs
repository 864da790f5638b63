//! Measures every call of a store. Engines emit no metrics themselves.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use tidegate_core::clock::Clock;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, Kind, MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::NewMessage;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary, SweepRequest, Swept,
    Verdicts,
};
use tidegate_core::token::TokenRecord;

use crate::telemetry::Metrics;

/// A store whose calls are timed, and its failures counted by kind.
#[derive(Debug)]
pub(crate) struct Instrumented {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Instrumented {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { store, clock, metrics }
    }

    async fn timed<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let started = self.clock.monotonic();
        let answer = call.await;
        self.metrics.store_call(verb, self.clock.monotonic().saturating_sub(started), answer.as_ref().err());
        answer
    }
}

macro_rules! timed {
    ($($verb:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Instrumented {
            $(async fn $verb(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.timed(stringify!($verb), self.store.$verb($($argument),*)).await
            })*

            fn on_commit(&self, listener: Weak<dyn CommitListener>) {
                self.store.on_commit(listener);
            }
        }
    };
}

timed! {
    enqueue(batch: Vec<NewMessage>) -> Verdicts<Enqueued>;
    claim(request: ClaimRequest) -> Claimed;
    declare(policies: Vec<(Kind, Policy)>) -> ();
    extend(batch: Vec<Extend>) -> Verdicts<Extended>;
    journal(batch: Vec<Journal>) -> Verdicts<EffectRow>;
    settle(batch: Vec<Settle>) -> Verdicts<Settled>;
    sweep(request: SweepRequest) -> Swept;
    redrive(request: Redrive) -> Verdicts<MessageId>;
    operate(request: Operate) -> Stepped;
    operations(name: Option<String>, limit: u32) -> Vec<Operation>;
    edit(request: Edit) -> Edited;
    discard(request: Discard) -> Verdicts<MessageId>;
    cancel(request: Cancel) -> Verdicts<Cancellation>;
    pause(request: ChangeQueue) -> ();
    resolve(request: Resolve) -> Resolved;
    inspect(ids: Vec<MessageId>) -> Vec<Option<MessageView>>;
    find(tenant: Tenant, queue: QueueName, key: IdempotencyKey) -> Option<MessageId>;
    progress(ids: Vec<MessageId>) -> Vec<Option<Progress>>;
    flow(root: MessageId) -> Vec<Summary>;
    list(filter: Filter) -> Vec<Summary>;
    groups(filter: Filter) -> Vec<FailureGroup>;
    explain(id: MessageId) -> Option<ExplainFacts>;
    audit(after: u64, limit: u32) -> Vec<AuditEntry>;
    note(note: Note) -> ();
    tokens() -> Vec<TokenRecord>;
    change_token(request: ChangeToken) -> Vec<TokenRecord>;
    stats() -> Stats;
}
