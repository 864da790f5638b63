use std::time::Duration;
use std::sync::Arc;
use tidegate_core::clock::*;
use tidegate_core::id::*;
use tidegate_core::lifecycle::*;
use tidegate_core::message::*;
use tidegate_core::store::*;
use tidegate_sqlite::*;

fn message(key: &str) -> NewMessage {
    NewMessage::new(QueueName::new("q").unwrap(), Kind::new("k").unwrap(), IdempotencyKey::new(key).unwrap(), Payload::from_json("{\"a\":1}").unwrap())
}

#[tokio::test]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("t.db"), Options::default()).unwrap();
    let v = store.enqueue(vec![message("a"), message("b"), message("a")]).await.unwrap();
    println!("{v:?}");
    let c = store.claim(ClaimRequest { worker: WorkerId::new("w").unwrap(), tenant: Tenant::default(), queues: vec![QueueSlots { queue: QueueName::new("q").unwrap(), slots: 10 }], kinds: vec![(Kind::new("k").unwrap(), 1)], nonce: Nonce::new(&SystemRandom), lease: Duration::from_secs(30) }).await.unwrap();
    println!("{c:?}");
    let batch: Vec<Settle> = c.leases.iter().map(|l| Settle { id: l.message.id, token: l.token, outcome: Outcome::Completed { result: "1".into(), orphans: false }, journal: vec![], then: vec![message("x")], compensate: vec![], unit: 0.5 }).collect();
    println!("{:?}", store.settle(batch.clone()).await.unwrap());
    println!("{:?}", store.settle(batch).await.unwrap());
    println!("{:?}", store.stats().await.unwrap());
    println!("{:?}", store.sweep(SweepRequest { take_over: true, retention: None, limit: 10, unit: 0.0 }).await.unwrap());
    println!("{:?}", store.inspect(vec![c.leases[0].message.id]).await.unwrap());
    println!("{:?}", store.list(Filter { limit: 10, ..Filter::default() }).await.unwrap());
    println!("{:?}", store.group_stats());
    store.close().await;
    println!("{:?}", store.stats().await);
    let _: Arc<dyn Store> = store;
}
