//! Effects that are writes into the store's own database.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate_core::effect::{EffectId, EffectPolicy, Reached};
use tidegate_core::id::EffectName;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Counted, Extend, Lease};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_postgres::{EffectInError, Options, PostgresStore, Work, Working};
use tidegate_testkit::ManualClock;
use tokio::sync::oneshot;

use crate::engine::sql;
use crate::fixture::{Place, claim, completion, message, run, sweep};

fn transactional(name: &str) -> Reached {
    Reached {
        effect: EffectId { name: EffectName::new(name).expect("a valid name"), item: None },
        policy: EffectPolicy::Transactional,
        request_hash: [7; 16],
        quarantine: Duration::ZERO,
    }
}

/// A running message, and a table of the application's beside it.
async fn started(place: &Place) -> (Lease, String) {
    let ledger = place.name("ledger");
    sql(&format!("create table {ledger} (cents bigint not null)"));
    place.store.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
    (claim(&place.store, 1).await.remove(0), ledger)
}

fn booked(ledger: &str) -> String {
    sql(&format!("select count(*) || '/' || coalesce(sum(cents), 0) from {ledger}")).trim().to_owned()
}

/// Books so much, says how much it booked, and counts how often it ran.
fn book(ledger: &str, cents: i64, runs: &Arc<AtomicU32>) -> Work {
    let (insert, runs) = (format!("insert into {ledger} values ({cents})"), Arc::clone(runs));
    Box::new(move |tx| -> Working<'_> {
        Box::pin(async move {
            runs.fetch_add(1, Ordering::Relaxed);
            tx.execute(&insert, &[]).await?;
            Ok(format!("{{\"booked\":{cents}}}").into())
        })
    })
}

async fn effect_in(store: &PostgresStore, lease: &Lease, work: Work) -> Result<Arc<str>, EffectInError> {
    store.effect_in(lease.message.id, lease.token, transactional("book"), work).await
}

fn refusal(refused: Result<Arc<str>, EffectInError>) -> StoreErrorKind {
    match refused.expect_err("it must be refused") {
        EffectInError::Store(error) => error.kind(),
        EffectInError::Work(error) => panic!("the work: {error}"),
    }
}

#[test]
fn an_effect_in_the_store_commits_with_its_confirmation_and_is_done_once() {
    run(async {
        let place = Place::new().await;
        let (lease, ledger) = started(&place).await;
        let runs = Arc::new(AtomicU32::new(0));
        for _ in 0..2 {
            let value = effect_in(&place.store, &lease, book(&ledger, 100, &runs)).await.unwrap();
            assert_eq!(&*value, "{\"booked\":100}");
        }
        assert_eq!((runs.load(Ordering::Relaxed), booked(&ledger).as_str()), (1, "1/100"), "the second is a replay");
        let view = place.store.inspect(vec![lease.message.id]).await.unwrap().remove(0).unwrap();
        assert_eq!(view.journal[0].state.as_str(), "confirmed");
        let settled = place.store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
        assert_eq!(settled.state, State::Completed);
    });
}

#[test]
fn work_that_fails_or_panics_leaves_nothing_and_harms_nobody() {
    run(async {
        let place = Place::new().await;
        let (lease, ledger) = started(&place).await;
        for panics in [false, true] {
            let insert = format!("insert into {ledger} values (100)");
            let work: Work = Box::new(move |tx| -> Working<'_> {
                Box::pin(async move {
                    tx.execute(&insert, &[]).await?;
                    assert!(!panics, "the work is wrong");
                    Err("no such account".into())
                })
            });
            let error = effect_in(&place.store, &lease, work).await.expect_err("it fails");
            let EffectInError::Work(error) = error else { panic!("{error:?}") };
            let says = if panics { "panicked: the work is wrong" } else { "no such account" };
            assert!(error.to_string().contains(says), "{error}");
        }
        // What the database itself refuses is the work's error as well.
        let wrong: Work = Box::new(|tx| -> Working<'_> {
            Box::pin(async move {
                tx.execute("insert into nowhere values (1)", &[]).await?;
                Ok("1".into())
            })
        });
        assert!(matches!(effect_in(&place.store, &lease, wrong).await, Err(EffectInError::Work(_))));
        assert_eq!(booked(&ledger), "0/0");
        let view = place.store.inspect(vec![lease.message.id]).await.unwrap().remove(0).unwrap();
        assert!(view.journal.is_empty());
        let runs = Arc::new(AtomicU32::new(0));
        effect_in(&place.store, &lease, book(&ledger, 5, &runs)).await.unwrap();
        assert_eq!(booked(&ledger), "1/5");
    });
}

#[test]
fn an_effect_in_the_store_needs_the_lease_and_a_late_one_is_counted() {
    run(async {
        let place = Place::new().await;
        let (lease, ledger) = started(&place).await;
        let runs = Arc::new(AtomicU32::new(0));
        let other = tidegate_core::LeaseToken { claims: lease.token.claims + 1, ..lease.token };
        let forged = Lease { token: other, ..lease.clone() };
        let refused = effect_in(&place.store, &forged, book(&ledger, 1, &runs)).await;
        assert_eq!(refusal(refused), StoreErrorKind::LeaseLost);
        place.store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
        let refused = effect_in(&place.store, &lease, book(&ledger, 1, &runs)).await;
        assert_eq!(refusal(refused), StoreErrorKind::LeaseLost);
        assert_eq!((runs.load(Ordering::Relaxed), booked(&ledger).as_str()), (0, "0/0"));
        let late = place.store.stats().await.unwrap().tallies;
        let late: u64 =
            late.iter().filter(|tally| tally.what == Counted::RejectedLateWrites).map(|tally| tally.n).sum();
        assert_eq!(late, 2);
    });
}

/// Work that says that it began, and ends when it is told to.
fn held(ledger: &str, began: oneshot::Sender<()>, go_on: oneshot::Receiver<()>) -> Work {
    let insert = format!("insert into {ledger} values (100)");
    Box::new(move |tx| -> Working<'_> {
        Box::pin(async move {
            tx.execute(&insert, &[]).await?;
            began.send(()).expect("the test listens");
            go_on.await?;
            Ok("100".into())
        })
    })
}

#[test]
fn while_its_work_runs_a_lease_is_prolonged_and_not_taken_over() {
    run(async {
        let clock = Arc::new(ManualClock::default());
        let options = || Options { clock: Some(clock.clone()), ..Options::default() };
        let schema = crate::engine::Schema::new();
        let store = PostgresStore::open(&schema.url(), options()).await.unwrap();
        let other = PostgresStore::open(&schema.url(), options()).await.unwrap();
        let place = Place { store, schema };
        let (lease, ledger) = started(&place).await;
        let ((began, has_begun), (go_on, told)) = (oneshot::channel(), oneshot::channel());
        let effect = effect_in(&place.store, &lease, held(&ledger, began, told));
        let meanwhile = async {
            has_begun.await.unwrap();
            // The worker was silent for longer than its lease.
            clock.advance(Duration::from_secs(4000));
            assert!(other.sweep(sweep()).await.unwrap().taken_over.is_empty(), "it is passed over");
            let extend =
                Extend { id: lease.message.id, token: lease.token, lease: Duration::from_secs(30), alone: false };
            other.extend(vec![extend]).await.unwrap().remove(0).expect("the keepalive does not wait");
            clock.advance(Duration::from_secs(31));
            assert!(other.sweep(sweep()).await.unwrap().taken_over.is_empty(), "it is passed over again");
            go_on.send(()).unwrap();
        };
        let (value, ()) = tokio::join!(effect, meanwhile);
        assert_eq!(&*value.unwrap(), "100", "what began under the lease is committed under it");
        assert_eq!(other.sweep(sweep()).await.unwrap().taken_over.len(), 1);
        // The one who held it comes too late, and its successor replays.
        let runs = Arc::new(AtomicU32::new(0));
        let late = effect_in(&place.store, &lease, book(&ledger, 1, &runs)).await;
        assert_eq!(refusal(late), StoreErrorKind::LeaseLost);
        let next = claim(&other, 1).await.remove(0);
        let value = effect_in(&other, &next, book(&ledger, 1, &runs)).await.unwrap();
        assert_eq!((&*value, runs.load(Ordering::Relaxed), booked(&ledger).as_str()), ("100", 0, "1/100"));
    });
}

#[test]
fn an_effect_whose_connection_dies_before_its_commit_never_was() {
    run(async {
        let place = Place::new().await;
        let (lease, ledger) = started(&place).await;
        let ((began, has_begun), (go_on, told)) = (oneshot::channel(), oneshot::channel());
        let effect = effect_in(&place.store, &lease, held(&ledger, began, told));
        let meanwhile = async {
            has_begun.await.unwrap();
            sql(&format!(
                "select pg_terminate_backend(l.pid) from pg_locks l \
                 where l.relation = '{ledger}'::regclass and l.pid <> pg_backend_pid()"
            ));
            go_on.send(()).unwrap();
        };
        let (lost, ()) = tokio::join!(effect, meanwhile);
        assert_eq!(refusal(lost), StoreErrorKind::Unavailable);
        assert_eq!(booked(&ledger), "0/0");
        let runs = Arc::new(AtomicU32::new(0));
        for _ in 0..2 {
            effect_in(&place.store, &lease, book(&ledger, 7, &runs)).await.unwrap();
        }
        assert_eq!((runs.load(Ordering::Relaxed), booked(&ledger).as_str()), (1, "1/7"));
    });
}

#[test]
fn work_that_ends_the_stores_transaction_is_told_and_nothing_is_confirmed() {
    run(async {
        let place = Place::new().await;
        let (lease, _) = started(&place).await;
        for ends in ["commit", "rollback", "commit; begin"] {
            let work: Work = Box::new(move |tx| -> Working<'_> {
                Box::pin(async move {
                    tx.batch_execute(ends).await?;
                    Ok("1".into())
                })
            });
            let EffectInError::Store(error) = effect_in(&place.store, &lease, work).await.unwrap_err() else {
                panic!("not the work's")
            };
            assert!(error.what().contains("ended the store's transaction"), "{ends}: {error}");
        }
        let view = place.store.inspect(vec![lease.message.id]).await.unwrap().remove(0).unwrap();
        assert!(view.journal.is_empty());
        assert_eq!(
            place.store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap().state,
            State::Completed
        );
    });
}

#[test]
fn two_calls_of_one_run_beside_each_other_are_done_once() {
    run(async {
        let place = Place::new().await;
        let (lease, ledger) = started(&place).await;
        let ((began, has_begun), (go_on, told)) = (oneshot::channel(), oneshot::channel());
        let runs = Arc::new(AtomicU32::new(0));
        let slow = effect_in(&place.store, &lease, held(&ledger, began, told));
        let quick = async {
            has_begun.await.unwrap();
            let value = effect_in(&place.store, &lease, book(&ledger, 7, &runs)).await;
            go_on.send(()).unwrap();
            value
        };
        let (slow, quick) = tokio::join!(slow, quick);
        assert_eq!(&*quick.unwrap(), "{\"booked\":7}");
        assert_eq!(&*slow.unwrap(), "{\"booked\":7}", "the slower one finds what the quicker one confirmed");
        assert_eq!(booked(&ledger), "1/7");
    });
}
