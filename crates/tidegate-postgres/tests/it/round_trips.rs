//! How often a call waits for the server: counted on the wire, between the store and its server.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::Store as _;
use tidegate_core::lifecycle::Outcome;
use tidegate_core::store::{Lease, Settle};
use tidegate_postgres::{Options, PostgresStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::engine::{Schema, database};
use crate::fixture::{claim, message, run};

/// One connection: how often the client spoke after the server had.
#[derive(Debug, Default)]
struct Turns {
    turns: AtomicU64,
    server_spoke: AtomicBool,
}

impl Turns {
    fn client_speaks(&self) {
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
        let url = database();
        let (who, rest) = url.split_once('@').unwrap();
        let (server, path) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Arc<Turns>>>> = Arc::default();
        let (kept, server) = (Arc::clone(&connections), server.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let turns = Arc::new(Turns::default());
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&turns));
                let server = TcpStream::connect(&server).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let said = Arc::clone(&turns);
                tokio::spawn(async move { pass(from_client, to_server, || said.client_speaks()).await });
                tokio::spawn(async move { pass(from_server, to_client, || turns.server_speaks()).await });
            }
        });
        Self { connections, url: format!("{who}@{here}/{path}?schema={}", schema.name()) }
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

async fn pass(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, speaks: impl Fn()) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        speaks();
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

fn settlement(lease: &Lease) -> Settle {
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

async fn lives(counter: &Counter, store: &PostgresStore, of: &str, many: u32) -> [u64; 3] {
    let batch = (0..many).map(|n| message(&format!("{of}-{n}"))).collect();
    let (enqueued, verdicts) = counter.of(store.enqueue(batch)).await;
    assert!(verdicts.unwrap().iter().all(Result::is_ok));
    let (claimed, leases) = counter.of(claim(store, many)).await;
    assert_eq!(leases.len(), many as usize);
    let (settled, verdicts) = counter.of(store.settle(leases.iter().map(settlement).collect())).await;
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
