//! A store on a fresh place with the clock in hand, and the few words most cases are told in.
//!
//! Every stage has one queue and one kind called `work`, declared with three attempts, a backoff from ten seconds and a
//! crash limit of two; leases hold thirty seconds. Runs are settled with a jitter of one half.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, EffectRow, IntentTimes, Reached};
use tidegate_core::lifecycle::{Cancellation, Outcome, ParkReason, Resolution, State};
use tidegate_core::message::{Failure, NewMessage, Payload};
use tidegate_core::retry::{Backoff, Policy};
use tidegate_core::store::{
    Act, Cancel, ChangeQueue, ClaimRequest, Claimed, Counted, Enqueued, Extend, Extended, Filter, Journal,
    JournalWrite, Lease, MessageView, QueueChange, QueueSlots, QueueStats, Redrive, Resolve, Resolved, Settle, Settled,
    Stats, SweepRequest, Swept, Verdicts,
};
use tidegate_core::{
    Clock as _, EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Store, StoreError,
    StoreErrorKind, Tenant, Timestamp, WorkerId,
};

use crate::{Engine, ManualClock, Place, SeededRandom};

pub(crate) const MILLI: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the leases of a stage hold.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// How long after its last possible send an effect of a stage is quarantined.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(120);
/// How long an effect of a stage may be sent.
pub(crate) const SEND_WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::new(name).expect("the kit's names are valid")
}

pub(crate) fn tenant(name: &str) -> Tenant {
    Tenant::new(name).expect("the kit's names are valid")
}

pub(crate) fn kind(name: &str) -> Kind {
    Kind::new(name).expect("the kit's names are valid")
}

pub(crate) fn key(key: &str) -> IdempotencyKey {
    IdempotencyKey::new(key).expect("the kit's keys are valid")
}

pub(crate) fn payload(json: &str) -> Payload {
    Payload::from_json(json).expect("the kit's payloads are JSON")
}

/// A message for the queue and kind `work`, whose payload is its key.
pub(crate) fn message(name: &str) -> NewMessage {
    NewMessage::new(queue("work"), kind("work"), key(name), payload(&format!("{{\"of\":\"{name}\"}}")))
}

pub(crate) fn act(reason: &str) -> Act {
    Act { actor: "tester".into(), reason: reason.into() }
}

pub(crate) fn failure(code: &str) -> Failure {
    Failure::new(code, "as the test wants it")
}

pub(crate) fn completed() -> Outcome {
    Outcome::Completed { result: "{\"done\": 1.50}".into(), orphans: false }
}

pub(crate) fn permanent() -> Outcome {
    Outcome::Permanent { failure: failure("declined"), compensated: false, orphans: false }
}

pub(crate) fn retryable() -> Outcome {
    Outcome::Retryable { failure: failure("oops"), after: None }
}

pub(crate) fn not_done() -> Outcome {
    Outcome::NotDone { failure: failure("busy"), after: None }
}

pub(crate) fn unknown() -> Outcome {
    Outcome::Unknown { failure: failure("timeout") }
}

/// Every outcome a worker reports, orphans apart; `exhausted` and `park` only mean something beside an effect.
pub(crate) fn every_outcome() -> Vec<Outcome> {
    vec![
        completed(),
        permanent(),
        Outcome::Permanent { failure: failure("declined"), compensated: true, orphans: false },
        retryable(),
        not_done(),
        unknown(),
        Outcome::Snooze { after: SECOND },
        Outcome::Park { reason: ParkReason::EffectChanged, failure: failure("changed") },
        Outcome::Exhausted { failure: failure("exhausted") },
        Outcome::Undecodable { failure: failure("decode") },
        Outcome::Refused { failure: failure("too_big") },
        Outcome::Released,
    ]
}

pub(crate) fn effect_id(name: &str) -> EffectId {
    EffectId { name: EffectName::new(name).expect("the kit's names are valid"), item: None }
}

pub(crate) fn reached(name: &str, policy: EffectPolicy) -> Reached {
    Reached { effect: effect_id(name), policy, request_hash: [1; 16], quarantine: QUARANTINE }
}

/// An effect `capture` whose remote knows our key for an hour.
pub(crate) fn keyed() -> Reached {
    reached("capture", EffectPolicy::Keyed { window: HOUR, or_lookup: false })
}

/// An effect `capture` that can be looked up.
pub(crate) fn lookup() -> Reached {
    reached("capture", EffectPolicy::Lookup)
}

/// An effect `capture` that is sent at most once.
pub(crate) fn at_most_once() -> Reached {
    reached("capture", EffectPolicy::AtMostOnce)
}

pub(crate) fn intent(reached: &Reached) -> JournalWrite {
    let times = IntentTimes { send_within: SEND_WITHIN, reconcile_for: DAY };
    JournalWrite::Intent { reached: reached.clone(), times }
}

pub(crate) fn answer_to(row: &EffectRow, answer: EffectAnswer) -> JournalWrite {
    JournalWrite::Answer { effect: row.effect.clone(), seq: row.seq, answer }
}

pub(crate) fn confirmed(value: &str) -> EffectAnswer {
    EffectAnswer::Confirmed { value: value.into() }
}

pub(crate) fn no_answer() -> EffectAnswer {
    EffectAnswer::Unknown { why: "time-out".into() }
}

pub(crate) fn rejected() -> EffectAnswer {
    EffectAnswer::Rejected { code: "declined".into(), detail: "no funds".into() }
}

/// The settlement of a lease with nothing beside the outcome.
pub(crate) fn settlement(lease: &Lease, outcome: Outcome) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome,
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    }
}

/// The kind of a refusal; panics with the answer when it is none.
pub(crate) fn refused<T: std::fmt::Debug>(verdict: Result<T, StoreError>) -> StoreErrorKind {
    verdict.expect_err("the call must be refused").kind()
}

/// The one verdict of a batch of one.
pub(crate) fn only<T>(verdicts: Result<Verdicts<T>, StoreError>) -> Result<T, StoreError> {
    let mut verdicts = verdicts?;
    assert_eq!(verdicts.len(), 1, "one verdict per item");
    verdicts.remove(0)
}

/// A store on a fresh place.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    engine: &'a dyn Engine,
    place: Place,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Arc<dyn Store>,
    random: SeededRandom,
}

impl<'a> Stage<'a> {
    pub(crate) async fn new(engine: &'a dyn Engine) -> Self {
        let stage = Self::without_policy(engine).await;
        stage.declare("work", Stage::policy()).await;
        stage
    }

    /// A stage whose kind no worker has declared yet.
    pub(crate) async fn without_policy(engine: &'a dyn Engine) -> Self {
        let place = engine.fresh().await;
        let clock = Arc::new(ManualClock::default());
        let store = engine.open(&place, clock.clone()).await.expect("a fresh place can be opened");
        Self { engine, place, clock, store, random: SeededRandom::new(1) }
    }

    pub(crate) async fn declare(&self, name: &str, policy: Policy) {
        self.store.declare(vec![(kind(name), policy)]).await.expect("a policy can be declared");
    }

    pub(crate) fn policy() -> Policy {
        let backoff = Backoff { base: SECOND * 10, cap: SECOND * 1000 };
        Policy { max_attempts: 3, backoff, crash_limit: 2, ..Policy::default() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn engine(&self) -> &'a dyn Engine {
        self.engine
    }

    /// A second handle on the same place, as another process has it.
    pub(crate) async fn other_handle(&self) -> Arc<dyn Store> {
        self.engine.open(&self.place, self.clock.clone()).await.expect("the place can be opened twice")
    }

    /// Closes the store and opens its place again.
    pub(crate) async fn reopen(&mut self) {
        let other = self.engine.fresh().await;
        let elsewhere = self.engine.open(&other, self.clock.clone()).await.expect("a fresh place can be opened");
        self.engine.close(std::mem::replace(&mut self.store, elsewhere)).await;
        let again = self.engine.open(&self.place, self.clock.clone()).await.expect("the place can be opened again");
        self.engine.close(std::mem::replace(&mut self.store, again)).await;
    }

    pub(crate) async fn enqueue(&self, message: NewMessage) -> Result<Enqueued, StoreError> {
        only(self.store.enqueue(vec![message]).await)
    }

    /// Enqueues a message that must be new.
    pub(crate) async fn put(&self, message: NewMessage) -> MessageId {
        match self.enqueue(message).await {
            Ok(Enqueued::New { id }) => id,
            other => panic!("not new: {other:?}"),
        }
    }

    pub(crate) fn nonce(&self) -> Nonce {
        Nonce::new(&self.random)
    }

    /// A claim of the queue and kind `work`.
    pub(crate) fn request(&self, slots: u32) -> ClaimRequest {
        ClaimRequest {
            worker: WorkerId::new("worker-1").expect("a valid name"),
            tenant: Tenant::default(),
            queues: vec![QueueSlots { queue: queue("work"), slots }],
            kinds: vec![(kind("work"), 1)],
            nonce: self.nonce(),
            lease: LEASE,
        }
    }

    pub(crate) async fn claim(&self, request: &ClaimRequest) -> Claimed {
        self.store.claim(request.clone()).await.expect("a claim is answered")
    }

    pub(crate) async fn take(&self, slots: u32) -> Vec<Lease> {
        self.claim(&self.request(slots)).await.leases
    }

    /// The lease of the one message that can be claimed first.
    pub(crate) async fn take_one(&self) -> Lease {
        let mut leases = self.take(1).await;
        assert_eq!(leases.len(), 1, "a message can be claimed");
        leases.remove(0)
    }

    /// Enqueues a message and claims it.
    pub(crate) async fn started(&self, name: &str) -> Lease {
        let id = self.put(message(name)).await;
        let lease = self.take_one().await;
        assert_eq!(lease.message.id, id, "nothing else is there to be claimed");
        lease
    }

    pub(crate) async fn settle(&self, settle: Settle) -> Result<Settled, StoreError> {
        only(self.store.settle(vec![settle]).await)
    }

    /// Settles a lease that must be held.
    pub(crate) async fn end(&self, lease: &Lease, outcome: Outcome) -> Settled {
        self.settle(settlement(lease, outcome)).await.expect("the lease is held")
    }

    pub(crate) async fn extend(&self, id: MessageId, token: LeaseToken) -> Result<Extended, StoreError> {
        only(self.store.extend(vec![Extend { id, token, lease: LEASE, alone: false }]).await)
    }

    /// Says that the message now runs alone.
    pub(crate) async fn alone(&self, lease: &Lease) {
        let extend = Extend { id: lease.message.id, token: lease.token, lease: LEASE, alone: true };
        only(self.store.extend(vec![extend]).await).expect("the lease is held");
    }

    pub(crate) async fn journal(&self, lease: &Lease, write: JournalWrite) -> Result<EffectRow, StoreError> {
        let journal = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
        only(self.store.journal(vec![journal]).await)
    }

    /// Writes an intent that must be allowed.
    pub(crate) async fn intend(&self, lease: &Lease, reached: &Reached) -> EffectRow {
        self.journal(lease, intent(reached)).await.expect("the effect may be sent")
    }

    /// Writes an answer that must be accepted.
    pub(crate) async fn answer(&self, lease: &Lease, row: &EffectRow, answer: EffectAnswer) -> EffectRow {
        self.journal(lease, answer_to(row, answer)).await.expect("the answer is accepted")
    }

    pub(crate) async fn sweep(&self) -> Swept {
        self.sweep_with(SweepRequest { take_over: true, retention: None, limit: 1000, unit: 0.5 }).await
    }

    pub(crate) async fn sweep_with(&self, request: SweepRequest) -> Swept {
        self.store.sweep(request).await.expect("a sweep is answered")
    }

    /// Deletes what is older than the retention of seven days.
    pub(crate) async fn expire(&self) -> u32 {
        let request = SweepRequest { take_over: false, retention: Some(DAY * 7), limit: 1000, unit: 0.5 };
        self.sweep_with(request).await.deleted
    }

    /// Lets every lease lapse and sweeps: as if the worker had crashed.
    pub(crate) async fn crash(&self) -> Swept {
        self.clock.advance(LEASE + MILLI);
        self.sweep().await
    }

    pub(crate) async fn view(&self, id: MessageId) -> MessageView {
        self.view_if_any(id).await.expect("the message is there")
    }

    pub(crate) async fn view_if_any(&self, id: MessageId) -> Option<MessageView> {
        self.store.inspect(vec![id]).await.expect("an inspection is answered").remove(0)
    }

    pub(crate) async fn state(&self, id: MessageId) -> State {
        self.view(id).await.state
    }

    /// State and reason, as one looks them up together.
    pub(crate) async fn end_of(&self, id: MessageId) -> (State, Option<String>) {
        let view = self.view(id).await;
        (view.state, view.reason)
    }

    pub(crate) async fn list(&self, filter: Filter) -> Vec<MessageId> {
        self.store.list(filter).await.expect("a list is answered").into_iter().map(|summary| summary.id).collect()
    }

    pub(crate) async fn all(&self) -> Vec<MessageId> {
        self.list(Filter { limit: 10_000, ..Filter::default() }).await
    }

    pub(crate) async fn stats(&self) -> Stats {
        self.store.stats().await.expect("stats are answered")
    }

    pub(crate) async fn queue_stats(&self, name: &str) -> QueueStats {
        let stats = self.stats().await;
        stats.queues.into_iter().find(|q| q.queue.as_str() == name).expect("the queue is listed")
    }

    /// A counter, over all queues, kinds and codes.
    pub(crate) async fn tally(&self, what: Counted) -> u64 {
        self.stats().await.tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum()
    }

    /// A counter under one code.
    pub(crate) async fn tally_of(&self, what: Counted, code: &str) -> u64 {
        let stats = self.stats().await;
        stats.tallies.iter().filter(|tally| tally.what == what && tally.code == code).map(|tally| tally.n).sum()
    }

    pub(crate) async fn change_queue(&self, name: &str, change: QueueChange) {
        let change = ChangeQueue { tenant: Tenant::default(), queue: queue(name), change, act: act("for a test") };
        self.store.pause(change).await.expect("a queue can be changed");
    }

    pub(crate) async fn cancel(&self, id: MessageId) -> Result<Cancellation, StoreError> {
        self.cancel_with(id, false).await
    }

    pub(crate) async fn cancel_with(&self, id: MessageId, release_key: bool) -> Result<Cancellation, StoreError> {
        only(self.store.cancel(Cancel { ids: vec![id], release_key, act: act("not wanted") }).await)
    }

    /// Redrives one message under an operation of its own.
    pub(crate) async fn redrive(&self, id: MessageId, again: bool) -> Result<MessageId, StoreError> {
        let operation = format!("operation-{}", tidegate_core::id::Hex(self.nonce().as_bytes()));
        only(self.store.redrive(Redrive { ids: vec![id], again, operation, act: act("fixed the cause") }).await)
    }

    pub(crate) async fn resolve(&self, id: MessageId, resolution: Resolution) -> Result<Resolved, StoreError> {
        self.resolve_effect(id, "capture", resolution).await
    }

    pub(crate) async fn resolve_effect(
        &self,
        id: MessageId,
        effect: &str,
        resolution: Resolution,
    ) -> Result<Resolved, StoreError> {
        let effect = effect_id(effect);
        self.store.resolve(Resolve { id, effect, resolution, act: act("asked the gateway") }).await
    }

    /// A message that is dead because its payload does not decode.
    pub(crate) async fn dead(&self, name: &str) -> MessageId {
        let lease = self.started(name).await;
        let settled = self.end(&lease, Outcome::Undecodable { failure: failure("decode") }).await;
        assert_eq!(settled.state, State::Dead);
        lease.message.id
    }

    /// A message that is parked with an open effect `capture` of which nothing can be found out by code.
    pub(crate) async fn parked(&self, name: &str) -> MessageId {
        let lease = self.started(name).await;
        let row = self.intend(&lease, &at_most_once()).await;
        self.answer(&lease, &row, no_answer()).await;
        let settled = self.end(&lease, unknown()).await;
        assert_eq!((settled.state, settled.reason), (State::Parked, Some("outcome_unknown")));
        lease.message.id
    }

    pub(crate) async fn completed(&self, name: &str) -> MessageId {
        let lease = self.started(name).await;
        self.end(&lease, completed()).await;
        lease.message.id
    }

    pub(crate) async fn failed(&self, name: &str) -> MessageId {
        let lease = self.started(name).await;
        self.end(&lease, permanent()).await;
        lease.message.id
    }

    pub(crate) async fn cancelled(&self, name: &str) -> MessageId {
        let id = self.put(message(name)).await;
        assert_eq!(self.cancel(id).await, Ok(Cancellation::Now));
        id
    }
}
