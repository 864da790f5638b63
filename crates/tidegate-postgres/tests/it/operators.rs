//! Operators of several processes at once: each act is done once, or refused, whoever came first.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tidegate_core::effect::EffectId;
use tidegate_core::id::{EffectName, MessageId};
use tidegate_core::lifecycle::{Cancellation, Outcome, Resolution, State};
use tidegate_core::message::Failure;
use tidegate_core::store::{
    Cancel, Counted, Discard, Enqueued, Filter, Lease, NewOperation, Operate, OperationState, Pace, REDRIVE_CHUNK,
    Redrive, Resolve, Selection,
};
use tidegate_core::{Store as _, StoreError, StoreErrorKind, Tenant};
use tidegate_postgres::PostgresStore;

use crate::doctor::{dead, parked};
use crate::fixture::{Place, act, claim, completion, connect, kind_of, message, open, run, settlement};

/// How often two are let loose on one message: who is first is not the same each time.
const ROUNDS: usize = 12;

fn redrive(ids: Vec<MessageId>, operation: &str) -> Redrive {
    Redrive { ids, again: false, operation: operation.into(), act: act() }
}

/// A store, and another handle on it that shares nothing with the first, as in another process.
async fn two(place: &Place) -> [Arc<PostgresStore>; 2] {
    [Arc::clone(&place.store), open(&place.schema.url()).await]
}

async fn generation(store: &PostgresStore, id: MessageId) -> u32 {
    store.inspect(vec![id]).await.unwrap().remove(0).unwrap().counters.generation
}

async fn tally(store: &PostgresStore, what: Counted) -> u64 {
    let tallies = store.stats().await.unwrap().tallies;
    tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum()
}

#[test]
fn of_two_redrives_under_different_operations_one_is_done_and_the_other_refused() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for round in 0..ROUNDS {
            let id = dead(&place.store, &format!("m-{round}")).await.message.id;
            let [one, other] = ["one", "other"].map(|operation| redrive(vec![id], operation));
            let (one, other) = tokio::join!(stores[0].redrive(one), stores[1].redrive(other));
            let verdicts = [one.unwrap().remove(0), other.unwrap().remove(0)];
            let refused: Vec<&StoreError> = verdicts.iter().filter_map(|verdict| verdict.as_ref().err()).collect();
            assert_eq!(refused.len(), 1, "{verdicts:?}");
            assert!(refused[0].what().contains("it is ready"), "{verdicts:?}");
            assert_eq!(generation(&place.store, id).await, 1);
            claim(&place.store, 1).await.remove(0);
        }
        assert_eq!(tally(&place.store, Counted::Redriven).await, ROUNDS as u64);
        let audit = place.store.audit(0, 100).await.unwrap();
        assert_eq!(audit.iter().filter(|entry| entry.act == "redrive").count(), ROUNDS);
    });
}

#[test]
fn of_two_redrives_under_one_operation_both_are_answered_and_one_is_done() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for round in 0..ROUNDS {
            let id = dead(&place.store, &format!("m-{round}")).await.message.id;
            let operation = format!("op-{round}");
            let (one, other) = tokio::join!(
                stores[0].redrive(redrive(vec![id], &operation)),
                stores[1].redrive(redrive(vec![id], &operation))
            );
            assert_eq!((one, other), (Ok(vec![Ok(id)]), Ok(vec![Ok(id)])));
            assert_eq!(generation(&place.store, id).await, 1);
            claim(&place.store, 1).await.remove(0);
        }
        assert_eq!(tally(&place.store, Counted::Redriven).await, ROUNDS as u64);
    });
}

/// Either it is called off and nobody runs it, or it runs and is told: never both, never neither.
#[test]
fn a_cancel_beside_a_claim_comes_before_it_or_is_a_wish() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for round in 0..ROUNDS {
            let new = place.store.enqueue(vec![message(&format!("m-{round}"))]).await.unwrap().remove(0).unwrap();
            let Enqueued::New { id } = new else { panic!("{new:?}") };
            let cancel = Cancel { ids: vec![id], release_key: false, act: act() };
            let (cancelled, leases) = tokio::join!(stores[0].cancel(cancel), claim(&stores[1], 1));
            let view = place.store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
            match cancelled.unwrap().remove(0).unwrap() {
                Cancellation::Now => {
                    assert_eq!((leases.len(), view.state), (0, State::Cancelled));
                    assert!(claim(&place.store, 1).await.is_empty());
                }
                Cancellation::Requested => {
                    assert_eq!((leases.len(), view.state, view.cancel_requested), (1, State::Leased, true));
                }
            }
        }
    });
}

#[test]
fn of_two_resolutions_that_contradict_one_holds_and_the_other_is_refused() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for round in 0..ROUNDS {
            let id = parked(&place.store, &format!("m-{round}")).await.message.id;
            let resolve = |value: &str| Resolve {
                id,
                effect: EffectId { name: EffectName::new("capture").unwrap(), item: None },
                resolution: Resolution::Happened { value: value.into() },
                act: act(),
            };
            let (one, other) = tokio::join!(stores[0].resolve(resolve("1")), stores[1].resolve(resolve("2")));
            let (held, refused) = if one.is_ok() { (one, other) } else { (other, one) };
            assert_eq!(held.unwrap().state, State::Ready);
            assert_eq!(kind_of(refused), StoreErrorKind::Conflict);
            let lease = claim(&place.store, 1).await.remove(0);
            assert_eq!((lease.message.id, lease.journal.len()), (id, 1));
            // The same again from both is the same act, wherever the message is by now.
            let value = if lease.journal[0].state.as_str() == "confirmed" { &lease.journal[0].state } else { panic!() };
            let tidegate_core::effect::EffectState::Confirmed { value } = value else { panic!("{value:?}") };
            let (one, other) = tokio::join!(stores[0].resolve(resolve(value)), stores[1].resolve(resolve(value)));
            assert_eq!((one.unwrap().state, other.unwrap().state), (State::Leased, State::Leased));
        }
        assert_eq!(tally(&place.store, Counted::Resolved).await, ROUNDS as u64);
    });
}

#[test]
fn lists_of_messages_in_opposite_orders_are_called_off_by_two_operators_without_an_error() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for round in 0..ROUNDS {
            let batch = (0..30).map(|n| message(&format!("m-{round}-{n}"))).collect();
            let verdicts = place.store.enqueue(batch).await.unwrap().into_iter().map(Result::unwrap);
            let mut ids: Vec<MessageId> =
                verdicts.map(|new| if let Enqueued::New { id } = new { id } else { panic!("{new:?}") }).collect();
            let ascending = Cancel { ids: ids.clone(), release_key: false, act: act() };
            ids.reverse();
            let descending = Cancel { ids: ids.clone(), release_key: true, act: act() };
            let (one, other) = tokio::join!(stores[0].cancel(ascending), stores[1].cancel(descending));
            // Whoever comes second is told that it is done.
            for verdict in one.unwrap().into_iter().chain(other.unwrap()) {
                assert_eq!(verdict, Ok(Cancellation::Now));
            }
            // The one who wants the keys freed has them freed, whoever came first.
            let key = message(&format!("m-{round}-7")).key;
            assert_eq!(place.store.find(Tenant::default(), message("m").queue, key).await, Ok(None));
        }
        assert_eq!(tally(&place.store, Counted::Cancelled).await, 30 * ROUNDS as u64);
        let ready = Filter { states: vec![State::Ready], limit: 9, ..Filter::default() };
        assert_eq!(place.store.list(ready).await.unwrap(), []);
    });
}

#[test]
fn a_chunk_of_dead_letters_is_redriven_and_discarded_whole() {
    run(async {
        let place = Place::new().await;
        let store = &place.store;
        let batch = (0..REDRIVE_CHUNK).map(|n| message(&format!("m-{n}"))).collect();
        store.enqueue(batch).await.unwrap();
        let leases = claim(store, u32::try_from(REDRIVE_CHUNK).unwrap()).await;
        assert_eq!(leases.len(), REDRIVE_CHUNK);
        let failure = || Failure::new("timeout", "no answer within 2000 ms");
        let died = |lease: &Lease| settlement(lease, Outcome::Exhausted { failure: failure() });
        let settled = store.settle(leases.iter().map(died).collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok));
        let ids: Vec<MessageId> = leases.iter().map(|lease| lease.message.id).collect();
        let groups = store.groups(Filter { limit: 9, ..Filter::default() }).await.unwrap();
        assert_eq!((groups.len(), groups[0].count), (1, REDRIVE_CHUNK as u64));
        let redriven = store.redrive(redrive(ids.clone(), "all")).await.unwrap();
        assert!(redriven.iter().all(Result::is_ok));
        let progress = store.progress(ids.clone()).await.unwrap();
        assert!(progress.iter().all(|progress| progress.as_ref().is_some_and(|p| p.state == State::Ready)));
        let leases = claim(store, u32::try_from(REDRIVE_CHUNK).unwrap()).await;
        assert!(leases.iter().all(|lease| lease.counters.generation == 1));
        store.settle(leases.iter().map(died).collect()).await.unwrap();
        let discarded = store.discard(Discard { ids, act: act() }).await.unwrap();
        assert!(discarded.iter().all(Result::is_ok));
        assert_eq!(store.stats().await.unwrap().queues[0].dead, 0);
    });
}

/// An operation that two processes drive on at once redrives each of its messages once, and counts it once.
#[test]
fn an_operation_that_two_processes_drive_on_comes_to_every_message_once() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        for n in 0..20 {
            dead(&place.store, &format!("m-{n}")).await;
        }
        let begin = || {
            let (name, selection) = ("all".to_owned(), Selection::default());
            let pace = Pace { canary: 4, per_second: None, stop_over_percent: None };
            Operate::Begin(Box::new(NewOperation { name, selection, again: false, pace, act: act() }))
        };
        let begun = join_all(stores.iter().map(|store| store.operate(begin()))).await;
        assert!(
            begun.iter().all(|begun| begun.as_ref().is_ok_and(|begun| begun.operation.selected == 20)),
            "{begun:?}"
        );
        for step in 0.. {
            assert!(step < 50, "it ends");
            let steps = join_all(stores.iter().map(|store| store.operate(Operate::Step { name: "all".into() }))).await;
            let steps: Vec<_> = steps.into_iter().map(Result::unwrap).collect();
            assert!(steps.iter().all(|step| step.refused.is_empty()), "{steps:?}");
            for lease in claim(&place.store, 9).await {
                place.store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
            }
            let known = place.store.operations(Some("all".into()), 1).await.unwrap().remove(0);
            if known.state == OperationState::Done && known.under_way() == 0 {
                assert_eq!((known.redriven, known.ended_well, known.refused), (20, 20, 0));
                break;
            }
        }
        assert_eq!(tally(&place.store, Counted::Redriven).await, 20);
    });
}

/// Whoever reads the audit page by page sees every act, though two processes write it at once.
#[test]
fn the_audit_is_read_on_without_a_gap_while_others_write_it() {
    run(async {
        let place = Place::new().await;
        let stores = two(&place).await;
        let mut ids = Vec::new();
        for n in 0..40 {
            let new = place.store.enqueue(vec![message(&format!("m-{n}"))]).await.unwrap().remove(0).unwrap();
            let Enqueued::New { id } = new else { panic!("{new:?}") };
            ids.push(id);
        }
        let writing = join_all(ids.iter().enumerate().map(|(n, id)| {
            let cancel = Cancel { ids: vec![*id], release_key: false, act: act() };
            stores[n % 2].cancel(cancel)
        }));
        let reading = async {
            let (mut seen, mut after) = (Vec::new(), 0);
            for _ in 0..2000 {
                let page = place.store.audit(after, 3).await.unwrap();
                after = page.last().map_or(after, |last| last.seq);
                seen.extend(page.into_iter().filter_map(|entry| entry.message));
                if seen.len() == ids.len() {
                    break;
                }
            }
            seen
        };
        let (written, mut seen) = tokio::join!(writing, reading);
        assert!(written.iter().all(Result::is_ok), "{written:?}");
        seen.sort_unstable();
        assert_eq!(seen, ids);
    });
}

/// What is asked about a thousand messages is one statement, and in the order of the question.
#[test]
fn progress_answers_in_the_order_it_was_asked_and_tells_nobody_from_astray() {
    run(async {
        let place = Place::new().await;
        let id = dead(&place.store, "m").await.message.id;
        let ready = place.store.enqueue(vec![message("n")]).await.unwrap().remove(0).unwrap();
        let Enqueued::New { id: ready } = ready else { panic!("{ready:?}") };
        let nobody = MessageId::from_i64(7);
        let asked = vec![ready, nobody, id, ready];
        let progress = place.store.progress(asked).await.unwrap();
        let states: Vec<_> = progress.iter().map(|progress| progress.as_ref().map(|p| p.state)).collect();
        assert_eq!(states, [Some(State::Ready), None, Some(State::Dead), Some(State::Ready)]);
        let client = connect().await;
        client.batch_execute(&format!("delete from {}", place.name("ready"))).await.unwrap();
        let astray = place.store.progress(vec![ready]).await;
        assert_eq!(kind_of(astray), StoreErrorKind::Corrupt);
    });
}

/// A row that cannot be read is in nobody else's way.
#[test]
fn of_a_chunk_only_the_message_that_cannot_be_read_is_refused() {
    run(async {
        let place = Place::new().await;
        let mut ids = Vec::new();
        for n in 0..3 {
            ids.push(dead(&place.store, &format!("m-{n}")).await.message.id);
        }
        let client = connect().await;
        let spoil = format!("update {} set last_digest = '\\x00' where id = {}", place.name("held"), ids[1].as_i64());
        client.batch_execute(&spoil).await.unwrap();
        let redriven = place.store.redrive(redrive(ids.clone(), "op")).await.unwrap();
        let kinds: Vec<_> = redriven.iter().map(|verdict| verdict.as_ref().err().map(StoreError::kind)).collect();
        assert_eq!(kinds, [None, Some(StoreErrorKind::Corrupt), None]);
        assert_eq!(claim(&place.store, 9).await.len(), 2);
    });
}

/// Whoever reads all of it in one look holds up nobody for longer than that.
#[test]
fn a_cancel_does_not_wait_for_the_work_of_a_transactional_effect() {
    // The lock of the lease's key, as a transactional effect holds it while its work runs.
    run(async {
        let place = Place::new().await;
        let lease = crate::doctor::started(&place.store, "m").await;
        let mut client = connect().await;
        let tx = client.transaction().await.unwrap();
        let held = format!("select 1 from {} where id = $1 for key share", place.name("lease"));
        tx.query_one(&held, &[&lease.message.id.as_i64()]).await.unwrap();
        let cancel = Cancel { ids: vec![lease.message.id], release_key: false, act: act() };
        let cancelled = tokio::time::timeout(Duration::from_secs(30), place.store.cancel(cancel)).await;
        assert_eq!(cancelled.expect("it does not wait").unwrap().remove(0), Ok(Cancellation::Requested));
        tx.rollback().await.unwrap();
    });
}
