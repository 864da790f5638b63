//! How often a call waits for the server: counted on the wire, between the store and its server.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::Store as _;
use tidegate_postgres::{Options, PostgresStore};

use crate::engine::Schema;
use crate::fixture::{claim, completion, message, run};
use crate::wire::{Ear, between};

/// One connection: how often the client spoke after the server had.
#[derive(Debug, Default)]
struct Turns {
    turns: AtomicU64,
    server_spoke: AtomicBool,
}

impl Ear for Turns {
    fn client_speaks(&self, _said: &mut [u8]) {
        if self.server_spoke.swap(false, Ordering::SeqCst) {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn server_speaks(&self) {
        self.server_spoke.store(true, Ordering::SeqCst);
    }
}

/// Stands before the server and counts.
struct Counter {
    connections: Arc<Mutex<Vec<Arc<Turns>>>>,
    url: String,
}

impl Counter {
    async fn start(schema: &Schema) -> Self {
        let connections: Arc<Mutex<Vec<Arc<Turns>>>> = Arc::default();
        let kept = Arc::clone(&connections);
        let ear = move || {
            let turns = Arc::new(Turns::default());
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&turns));
            turns
        };
        Self { connections, url: between(schema, ear).await }
    }

    fn so_far(&self) -> Vec<u64> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().map(|turns| turns.turns.load(Ordering::SeqCst)).collect()
    }

    /// How often the connection that was used most waited for the server meanwhile: others tell what there is news of.
    async fn of<T>(&self, call: impl Future<Output = T>) -> (u64, T) {
        let before = self.so_far();
        let answer = call.await;
        // One that was made meanwhile tells others that there is news: it is not of those.
        let waited = self.so_far().into_iter().zip(before).map(|(after, before)| after - before);
        (waited.max().unwrap(), answer)
    }
}

async fn lives(counter: &Counter, store: &PostgresStore, of: &str, many: u32) -> [u64; 3] {
    let batch = (0..many).map(|n| message(&format!("{of}-{n}"))).collect();
    let (enqueued, verdicts) = counter.of(store.enqueue(batch)).await;
    assert!(verdicts.unwrap().iter().all(Result::is_ok));
    let (claimed, leases) = counter.of(claim(store, many)).await;
    assert_eq!(leases.len(), many as usize);
    let (settled, verdicts) = counter.of(store.settle(leases.iter().map(completion).collect())).await;
    assert!(verdicts.unwrap().iter().all(Result::is_ok));
    [enqueued, claimed, settled]
}

#[test]
fn a_call_waits_for_the_server_no_more_often_than_it_has_to() {
    run(async {
        let schema = Schema::new();
        let counter = Counter::start(&schema).await;
        let store = PostgresStore::open(&counter.url, Options { writers: 1, ..Options::default() }).await.unwrap();
        // Statements are prepared when they are first used.
        for (of, many) in [("warm", 1), ("warmer", 300), ("warmest", 1), ("hot", 300)] {
            lives(&counter, &store, of, many).await;
        }
        // enqueue: begin; limits and ids; keys; rows and commit. claim: begin and what it may take from; heads; leases and
        // commit. settle: begin and leases; results and commit.
        assert_eq!(lives(&counter, &store, "one", 1).await, [4, 3, 2]);
        // Many rows are copied, which waits once for each table: keys, bodies, claimable rows; leases; results.
        assert_eq!(lives(&counter, &store, "many", 300).await, [7, 4, 3]);
        store.close().await;
    });
}
