//! temporary measurement
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_core::Store as _;
use tidegate_core::clock::*;
use tidegate_core::id::*;
use tidegate_core::lifecycle::*;
use tidegate_core::message::*;
use tidegate_core::store::*;
use tidegate_sqlite::*;

fn message(q: &str, key: String, body: &str) -> NewMessage {
    NewMessage::new(
        QueueName::new(q).unwrap(),
        Kind::new("k").unwrap(),
        IdempotencyKey::new(key).unwrap(),
        Payload::from_json(body).unwrap(),
    )
}

async fn one(store: Arc<SqliteStore>, n: usize, b: usize, seed: usize, what: u8) {
    let body = format!("{{\"text\":\"{}\"}}", "x".repeat(188));
    let q = "q";
    let random = SystemRandom;
    if what & 1 != 0 {
        for i in 0..n / b {
            let batch = (0..b)
                .map(|j| {
                    let mut k = [0u8; 16];
                    Random::fill(&random, &mut k);
                    message(q, format!("{:?}-{seed}-{i}-{j}", u128::from_le_bytes(k)), &body)
                })
                .collect();
            for v in store.enqueue(batch).await.unwrap() {
                v.unwrap();
            }
        }
    }
    if what & 2 != 0 {
        let mut done = 0;
        while done < n {
            let c = store
                .claim(ClaimRequest {
                    worker: WorkerId::new("w").unwrap(),
                    tenant: Tenant::default(),
                    queues: vec![QueueSlots { queue: QueueName::new(q).unwrap(), slots: b as u32 }],
                    kinds: vec![(Kind::new("k").unwrap(), 1)],
                    nonce: Nonce::new(&random),
                    lease: Duration::from_secs(30),
                })
                .await
                .unwrap();
            if c.leases.is_empty() {
                break;
            }
            done += c.leases.len();
            let batch: Vec<Settle> = c
                .leases
                .iter()
                .map(|l| Settle {
                    id: l.message.id,
                    token: l.token,
                    outcome: Outcome::Completed { result: "\"ok-ok-ok-ok-ok\"".into(), orphans: false },
                    journal: vec![],
                    then: vec![],
                    compensate: vec![],
                    unit: 0.5,
                })
                .collect();
            for v in store.settle(batch).await.unwrap() {
                v.unwrap();
            }
        }
    }
}

fn main() {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    rt.block_on(async {
        let dir = tempfile::tempdir_in("/work").unwrap();
        let store = SqliteStore::open(dir.path().join("t.db"), Options::default()).unwrap();
        let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
        let (n, b, tasks) = (args[0], args[1], args[2]);
        for (name, what) in [("enqueue", 1), ("claim+settle", 2), ("all", 3)] {
            let before = store.group_stats();
            let started = Instant::now();
            let mut set = tokio::task::JoinSet::new();
            for t in 0..tasks {
                set.spawn(one(store.clone(), n / tasks, b, t * 10 + what as usize, what));
            }
            while set.join_next().await.is_some() {}
            let took = started.elapsed();
            let s = store.group_stats();
            println!(
                "{name}: {} in {took:?} = {:.0}/s; commits {} items/commit {:.0} wal/msg {} p50 {:?}",
                n,
                n as f64 / took.as_secs_f64(),
                s.commits - before.commits,
                (s.items - before.items) as f64 / (s.commits - before.commits) as f64,
                (s.wal_bytes - before.wal_bytes) / n as u64,
                s.commit_p50()
            );
        }
        store.close().await;
    });
}
