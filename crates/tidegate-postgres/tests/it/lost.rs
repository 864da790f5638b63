//! Connections that are lost, servers that go and come back, and servers that a store must not be on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::clock::SystemRandom;
use tidegate_core::id::{IdempotencyKey, Tenant};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Counted, Enqueued, Lease};
use tidegate_core::{MessageId, Nonce, Store as _, StoreErrorKind};
use tidegate_pgcluster::{Cluster, Settings};
use tidegate_postgres::{Options, PostgresStore};

use crate::engine::{Schema, sql};
use crate::fixture::{claim_request, completion, kind_of, message, open, queue, run};

/// No call is silent for longer than the store tries, and a little.
const LONGEST: Duration = Duration::from_secs(45);

/// Ends every connection of an application.
fn end_connections(application: &str) -> u32 {
    let ended = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = '{application}'"
    );
    sql(&ended).trim().parse().expect("a number")
}

#[test]
fn connections_that_are_ended_between_two_calls_cost_no_call() {
    run(async {
        let schema = Schema::new();
        let store = open(&format!("{}&application_name={}", schema.url(), schema.name())).await;
        for round in 0..4 {
            let key = format!("m{round}");
            let stored = store.enqueue(vec![message(&key)]).await.expect("answered").remove(0).expect("stored");
            assert!(matches!(stored, Enqueued::New { .. }));
            assert!(end_connections(schema.name()) > 0);
            let lease =
                store.claim(claim_request(Nonce::new(&SystemRandom), 5)).await.expect("answered").leases.remove(0);
            assert!(end_connections(schema.name()) > 0);
            store.settle(vec![completion(&lease)]).await.expect("answered").remove(0).expect("settled");
            assert!(end_connections(schema.name()) > 0);
            let view = store.inspect(vec![lease.message.id]).await.expect("answered").remove(0).expect("it is there");
            assert_eq!(view.state, State::Completed);
        }
        assert!(store.group_stats().lost > 0, "what was lost is counted");
    });
}

/// What a producer and a worker got done while their server came and went.
struct Told {
    stored: Vec<MessageId>,
    settled: Vec<MessageId>,
    unavailable: u32,
}

/// Enqueues, claims and settles until it is told to stop, repeating what was `Unavailable` as a caller does.
async fn work(store: Arc<PostgresStore>, end: Arc<AtomicBool>) -> Told {
    let mut told = Told { stored: Vec::new(), settled: Vec::new(), unavailable: 0 };
    let mut n = 0;
    while !end.load(Ordering::Relaxed) {
        n += 1;
        let batch: Vec<_> = (0..5).map(|at| message(&format!("m{n}-{at}"))).collect();
        let stored = loop {
            let answer = tokio::time::timeout(LONGEST, store.enqueue(batch.clone())).await.expect("not silent");
            match answer {
                Ok(verdicts) => break verdicts,
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
                    told.unavailable += 1;
                }
            }
        };
        for verdict in stored {
            match verdict.expect("nothing is refused") {
                Enqueued::New { id } | Enqueued::Existing { id, .. } => told.stored.push(id),
                other @ (Enqueued::Replayed { .. } | Enqueued::Stale) => panic!("{other:?}"),
            }
        }
        // Under one nonce for as long as it is not answered, or a lease would be nobody's.
        let nonce = Nonce::new(&SystemRandom);
        let leases = loop {
            match tokio::time::timeout(LONGEST, store.claim(claim_request(nonce, 5))).await.expect("not silent") {
                Ok(claimed) => break claimed.leases,
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
                    told.unavailable += 1;
                }
            }
        };
        assert_eq!(leases.len(), 5);
        loop {
            let batch = leases.iter().map(completion).collect();
            match tokio::time::timeout(LONGEST, store.settle(batch)).await.expect("not silent") {
                Ok(verdicts) => {
                    for (verdict, lease) in verdicts.into_iter().zip(&leases) {
                        verdict.expect("settled, or settled before");
                        told.settled.push(lease.message.id);
                    }
                    break;
                }
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
                    told.unavailable += 1;
                }
            }
        }
    }
    told
}

#[test]
fn a_server_that_is_restarted_at_once_loses_nothing_and_nobody_falls_silent() {
    run(async {
        let cluster = Arc::new(Cluster::start(Settings::default()).expect("a cluster of its own"));
        let store = open(&cluster.url()).await;
        let end = Arc::new(AtomicBool::new(false));
        let working = tokio::spawn(work(Arc::clone(&store), Arc::clone(&end)));
        for _restart in 0..4 {
            let server = Arc::clone(&cluster);
            let commits = store.group_stats().commits;
            tokio::task::spawn_blocking(move || server.restart_immediately())
                .await
                .expect("joined")
                .expect("restarted");
            // It is back at work by itself.
            let back = async {
                while store.group_stats().commits < commits + 3 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(LONGEST, back).await.expect("back at work");
        }
        end.store(true, Ordering::Relaxed);
        let told = working.await.expect("the worker ends");
        let mut stored = told.stored.clone();
        stored.sort_unstable();
        stored.dedup();
        assert_eq!((stored.len(), told.settled.len()), (told.stored.len(), told.stored.len()), "each of them once");
        for view in store.inspect(stored).await.expect("answered") {
            assert_eq!(view.expect("nothing is lost").state, State::Completed);
        }
        let stats = store.stats().await.expect("answered");
        let counted = |what| stats.tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum::<u64>();
        let all = u64::try_from(told.stored.len()).expect("a number");
        assert_eq!((counted(Counted::Enqueued), counted(Counted::Completed)), (all, all));
        let queue = stats.queues.first().expect("the queue");
        assert_eq!((queue.ready, queue.leased), (0, 0));
    });
}

#[test]
fn a_call_waits_for_a_server_that_comes_back() {
    run(async {
        let cluster = Arc::new(Cluster::start(Settings::default()).expect("a cluster of its own"));
        let store = open(&cluster.url()).await;
        store.enqueue(vec![message("a")]).await.expect("answered").remove(0).expect("stored");
        cluster.stop().expect("it runs");
        let lost = store.group_stats().lost;
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.enqueue(vec![message("b")]).await }
        });
        let noticed = async {
            while store.group_stats().lost == lost {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONGEST, noticed).await.expect("the lost connection is counted");
        assert!(!waiting.is_finished(), "it waits");
        let server = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || server.start_again()).await.expect("joined").expect("started");
        let stored = waiting.await.expect("joined").expect("answered").remove(0).expect("stored");
        assert!(matches!(stored, Enqueued::New { .. }));
    });
}

#[test]
fn a_server_that_may_lose_what_it_acknowledged_is_refused_unless_that_is_allowed() {
    run(async {
        let settings = |line: &str| Settings { configuration: vec![line.to_owned()], ..Settings::default() };
        for name in ["fsync", "full_page_writes"] {
            let cluster = Cluster::start(settings(&format!("{name} = off"))).expect("a cluster of its own");
            let refused = PostgresStore::open(&cluster.url(), Options::default()).await;
            let error = refused.expect_err("it may lose messages");
            assert!(error.what().starts_with(name), "{error}");
            let allowed = Options { allow_unsafe: true, ..Options::default() };
            PostgresStore::open(&cluster.url(), allowed).await.expect("it was allowed");
        }
        let cluster = Cluster::start(settings("synchronous_commit = off")).expect("a cluster of its own");
        let store = open(&cluster.url()).await;
        store.enqueue(vec![message("durable")]).await.expect("answered").remove(0).expect("stored");
        // Killed at the moment of the answer: what its default would have lost.
        cluster.kill().expect("it runs");
        cluster.start_again().expect("it starts");
        let key = IdempotencyKey::new("durable").expect("a valid key");
        assert!(store.find(Tenant::default(), queue(), key).await.expect("answered").is_some());
    });
}

#[test]
fn a_standby_is_refused_and_a_schema_without_a_store_is_not_made_where_that_was_not_asked_for() {
    run(async {
        let waits = Settings { configuration: vec!["restore_command = 'false'".to_owned()], ..Settings::default() };
        let cluster = Cluster::start(waits).expect("a cluster of its own");
        let never = Options { migrate: tidegate_postgres::Migrate::Never, ..Options::default() };
        let refused = PostgresStore::open(&cluster.url(), never).await;
        assert_eq!(kind_of(refused.map(drop)), StoreErrorKind::NotFound);
        drop(open(&cluster.url()).await);
        cluster.stop().expect("it runs");
        let data: &Path = cluster.directory().expect("its own");
        std::fs::write(data.join("data/standby.signal"), "").expect("its directory can be written");
        cluster.start_again().expect("it starts");
        let refused = PostgresStore::open(&cluster.url(), Options::default()).await;
        let error = refused.expect_err("it only reads");
        assert!(error.what().contains("standby"), "{error}");
    });
}

#[test]
fn a_claim_that_is_repeated_beside_its_first_try_gets_its_leases_and_no_others() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        let batch: Vec<_> = (0..40).map(|n| message(&format!("m{n}"))).collect();
        store.enqueue(batch).await.expect("answered");
        let other = open(&schema.url()).await;
        for _round in 0..8 {
            let nonce = Nonce::new(&SystemRandom);
            let (here, there) =
                tokio::join!(store.claim(claim_request(nonce, 5)), other.claim(claim_request(nonce, 5)));
            let ids = |leases: Vec<Lease>| leases.into_iter().map(|lease| lease.message.id).collect::<Vec<_>>();
            let (here, there) = (ids(here.expect("answered").leases), ids(there.expect("answered").leases));
            assert_eq!((here.len(), &here), (5, &there));
        }
    });
}
