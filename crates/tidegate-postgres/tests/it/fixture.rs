//! Small things the engine's own tests share.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::SystemRandom;
use tidegate_core::id::{IdempotencyKey, Kind, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::store::{ClaimRequest, Lease, QueueSlots, Settle};
use tidegate_core::{Store as _, StoreError, StoreErrorKind};
use tidegate_postgres::{Options, PostgresStore};
use tokio_postgres::{Client, NoTls};

use crate::engine::{Schema, database};

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
    let request = ClaimRequest {
        worker: WorkerId::new("worker").expect("a valid name"),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue(), slots }],
        kinds: vec![(kind(), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease,
    };
    store.claim(request).await.expect("a claim is answered").leases
}

/// Claims the one message there is and ends it.
pub(crate) async fn end(store: &PostgresStore, outcome: Outcome) {
    let lease = claim(store, 1).await.remove(0);
    let settle = Settle {
        id: lease.message.id,
        token: lease.token,
        outcome,
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    };
    store.settle(vec![settle]).await.expect("answered").remove(0).expect("settled");
}

pub(crate) fn kind_of<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> StoreErrorKind {
    refused.expect_err("it must be refused").kind()
}
