//! Small things the engine's own tests share.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::SystemRandom;
use tidegate_core::effect::{EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::store::{
    Act, ClaimRequest, Enqueued, Journal, JournalWrite, Lease, QueueSlots, Settle, SweepRequest,
};
use tidegate_core::{MessageId, Store as _, StoreError, StoreErrorKind};
use tidegate_postgres::{Options, PostgresStore};
use tokio_postgres::{Client, NoTls};

use crate::engine::{Schema, database, sql};

/// How often it is looked whether something that is waited for is there.
pub(crate) const EVERY: Duration = Duration::from_millis(20);

/// A schema of its own and a store in it.
pub(crate) struct Place {
    pub(crate) store: Arc<PostgresStore>,
    pub(crate) schema: Schema,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        Self { store, schema }
    }

    /// Its schema before a name.
    pub(crate) fn name(&self, of: &str) -> String {
        format!("{}.{of}", self.schema.name())
    }
}

pub(crate) async fn open(url: &str) -> Arc<PostgresStore> {
    PostgresStore::open(url, Options::default()).await.expect("a store can be opened")
}

/// Runs a future to its end on this thread, with what a driver needs.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made").block_on(future)
}

/// A connection as an application has one of its own.
pub(crate) async fn connect() -> Client {
    connect_to(&database()).await
}

pub(crate) async fn connect_to(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the server answers");
    tokio::spawn(connection);
    client
}

pub(crate) fn queue() -> QueueName {
    QueueName::new("work").expect("a valid name")
}

pub(crate) fn kind() -> Kind {
    Kind::new("work").expect("a valid name")
}

pub(crate) fn message(key: &str) -> NewMessage {
    with_payload(key, "{\"cents\": 1200}")
}

pub(crate) fn with_payload(key: &str, payload: &str) -> NewMessage {
    let key = IdempotencyKey::new(key).expect("a valid key");
    NewMessage::new(queue(), kind(), key, Payload::from_json(payload).expect("JSON"))
}

pub(crate) async fn ready(store: &PostgresStore) -> u64 {
    store.stats().await.expect("answered").queues.iter().map(|queue| queue.ready).sum()
}

pub(crate) async fn claim(store: &PostgresStore, slots: u32) -> Vec<Lease> {
    claim_for(store, slots, Duration::from_secs(3600)).await
}

pub(crate) async fn claim_for(store: &PostgresStore, slots: u32, lease: Duration) -> Vec<Lease> {
    let request = ClaimRequest { lease, ..claim_request(Nonce::new(&SystemRandom), slots) };
    store.claim(request).await.expect("a claim is answered").leases
}

/// A claim for an hour.
pub(crate) fn claim_request(nonce: Nonce, slots: u32) -> ClaimRequest {
    ClaimRequest {
        worker: WorkerId::new("worker").expect("a valid name"),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue(), slots }],
        kinds: vec![(kind(), 1)],
        nonce,
        lease: Duration::from_secs(3600),
    }
}

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

pub(crate) fn completed() -> Outcome {
    Outcome::Completed { result: "1".into(), orphans: false }
}

pub(crate) fn completion(lease: &Lease) -> Settle {
    settlement(lease, completed())
}

/// Claims the one message there is and ends it.
pub(crate) async fn end(store: &PostgresStore, outcome: Outcome) {
    let lease = claim(store, 1).await.remove(0);
    store.settle(vec![settlement(&lease, outcome)]).await.expect("answered").remove(0).expect("settled");
}

/// Stores a new message.
pub(crate) async fn put(store: &PostgresStore, key: &str) -> MessageId {
    let enqueued = store.enqueue(vec![message(key)]).await.expect("answered").remove(0).expect("stored");
    let Enqueued::New { id } = enqueued else { panic!("not new: {enqueued:?}") };
    id
}

pub(crate) fn reached(name: &str, policy: EffectPolicy) -> Reached {
    let effect = EffectId { name: EffectName::new(name).expect("a valid name"), item: None };
    Reached { effect, policy, request_hash: [1; 16], quarantine: Duration::from_secs(120) }
}

pub(crate) fn at_most_once() -> Reached {
    reached("capture", EffectPolicy::AtMostOnce)
}

pub(crate) fn intent(lease: &Lease, reached: Reached) -> Journal {
    let times = IntentTimes { send_within: Duration::from_secs(10), reconcile_for: Duration::from_secs(86_400) };
    let write = JournalWrite::Intent { reached, times };
    Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write }
}

pub(crate) fn sweep() -> SweepRequest {
    SweepRequest { take_over: true, retention: None, limit: 10, unit: 0.5 }
}

pub(crate) fn act() -> Act {
    Act { actor: "tester".into(), reason: "a test".into() }
}

/// Waits until somebody waits for a lock while it is at work on this table.
pub(crate) async fn somebody_waits(table: &str) {
    let waits = format!(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%{table}%'
         and pid <> pg_backend_pid()"
    );
    let mut beat = tokio::time::interval(EVERY);
    for _ in 0..500 {
        if sql(&waits).trim() != "0" {
            return;
        }
        beat.tick().await;
    }
    panic!("nobody waits for {table}");
}

/// The doctor finds nothing.
pub(crate) async fn is_well(schema: &Schema) {
    let checks = PostgresStore::doctor(&schema.url(), Options::default()).await.expect("it can be looked at");
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

pub(crate) fn kind_of<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> StoreErrorKind {
    refused.expect_err("it must be refused").kind()
}
