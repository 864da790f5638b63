//! Small things the engine's own tests share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tidegate_core::clock::SystemRandom;
use tidegate_core::effect::{EffectId, EffectPolicy, Reached};
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::store::{ClaimRequest, Lease, QueueSlots, Settle};
use tidegate_core::{Store as _, StoreError, StoreErrorKind};
use tidegate_sqlite::{Options, SqliteStore};

/// A place for a store, gone with the test.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory can be made") }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("tidegate.db")
    }

    pub(crate) fn open(&self) -> Arc<SqliteStore> {
        SqliteStore::open(self.path(), Options::default()).expect("a store can be opened")
    }

    /// A connection as an application has one of its own.
    pub(crate) fn connection(&self) -> rusqlite::Connection {
        let conn = rusqlite::Connection::open(self.path()).expect("the file can be opened");
        conn.pragma_update(None, "synchronous", "full").expect("a setting");
        SqliteStore::teach(&conn).expect("two functions");
        conn
    }

    pub(crate) fn refused(&self, options: Options) -> StoreError {
        SqliteStore::open(self.path(), options).expect_err("it must be refused")
    }
}

pub(crate) fn run<F: Future>(future: F) -> F::Output {
    tidegate_testkit::run(future)
}

pub(crate) fn queue() -> QueueName {
    QueueName::new("work").expect("a valid name")
}

pub(crate) fn kind() -> Kind {
    Kind::new("work").expect("a valid name")
}

pub(crate) fn message(key: &str) -> NewMessage {
    sized(key, 2)
}

/// A message with a payload of so many bytes.
pub(crate) fn sized(key: &str, size: usize) -> NewMessage {
    let key = IdempotencyKey::new(key).expect("a valid key");
    let payload = Payload::from_json(format!("\"{}\"", "x".repeat(size - 2))).expect("JSON");
    NewMessage::new(queue(), kind(), key, payload)
}

pub(crate) async fn claim(store: &SqliteStore, slots: u32) -> Vec<Lease> {
    let request = ClaimRequest {
        worker: WorkerId::new("worker").expect("a valid name"),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue(), slots }],
        kinds: vec![(kind(), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease: Duration::from_secs(3600),
    };
    store.claim(request).await.expect("a claim is answered").leases
}

/// A running message.
pub(crate) async fn started(store: &SqliteStore, key: &str) -> Lease {
    store.enqueue(vec![message(key)]).await.expect("answered").remove(0).expect("stored");
    claim(store, 1).await.remove(0)
}

pub(crate) fn completion(lease: &Lease) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::Completed { result: "1".into(), orphans: false },
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    }
}

pub(crate) fn transactional(name: &str) -> Reached {
    Reached {
        effect: EffectId { name: EffectName::new(name).expect("a valid name"), item: None },
        policy: EffectPolicy::Transactional,
        request_hash: [7; 16],
        quarantine: Duration::ZERO,
    }
}

pub(crate) fn kind_of<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> StoreErrorKind {
    refused.expect_err("it must be refused").kind()
}
