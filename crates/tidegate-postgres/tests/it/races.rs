//! Two handles on the same message at the same moment: whoever comes second finds what the first one did.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::lifecycle::{Cancellation, Outcome, State};
use tidegate_core::message::Failure;
use tidegate_core::store::{Act, Cancel, Counted, Extend, Lease, MessageView, Redrive, Settle};
use tidegate_core::{Clock as _, MessageId, Store as _, StoreErrorKind};
use tidegate_postgres::{Options, PostgresStore};
use tidegate_testkit::ManualClock;

use crate::engine::{Schema, sql};
use crate::fixture::{
    EVERY, Place, act, at_most_once, claim, completion, connect, intent, message, put, run, settlement, somebody_waits,
    sweep,
};

const ROUNDS: usize = 40;

/// Two handles that share nothing but the place and the clock.
struct Two {
    one: Arc<PostgresStore>,
    other: Arc<PostgresStore>,
    clock: Arc<ManualClock>,
    schema: Schema,
}

impl Two {
    async fn new() -> Self {
        let schema = Schema::new();
        let clock = Arc::new(ManualClock::default());
        let options = || Options { clock: Some(clock.clone()), ..Options::default() };
        let one = PostgresStore::open(&schema.url(), options()).await.unwrap();
        let other = PostgresStore::open(&schema.url(), options()).await.unwrap();
        Self { one, other, clock, schema }
    }

    async fn put(&self, key: &str) -> MessageId {
        put(&self.one, key).await
    }

    async fn started(&self, key: &str) -> Lease {
        let id = self.put(key).await;
        let lease = claim(&self.one, 1).await.remove(0);
        assert_eq!(lease.message.id, id);
        lease
    }

    /// The claims of these tests hold for an hour.
    fn lapse(&self) {
        self.clock.advance(Duration::from_secs(3601));
    }

    async fn sweep(&self) -> Vec<MessageId> {
        self.other.sweep(sweep()).await.unwrap().taken_over.into_iter().map(|taken| taken.id).collect()
    }

    async fn view(&self, id: MessageId) -> MessageView {
        self.one.inspect(vec![id]).await.unwrap().remove(0).unwrap()
    }

    async fn tally(&self, what: Counted) -> u64 {
        let tallies = self.one.stats().await.unwrap().tallies;
        tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum()
    }

    /// Depths are what is there.
    async fn depths(&self) -> [u64; 5] {
        let stats = self.other.stats().await.unwrap();
        stats.queues.iter().fold([0; 5], |sum, q| {
            [sum[0] + q.ready, sum[1] + q.scheduled, sum[2] + q.leased, sum[3] + q.parked, sum[4] + q.dead]
        })
    }
}

fn cancel(ids: Vec<MessageId>) -> Cancel {
    Cancel { ids, release_key: false, act: act() }
}

#[test]
fn of_a_settlement_and_a_takeover_one_happens() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let lease = two.started(&format!("m{n}")).await;
            let id = lease.message.id;
            two.lapse();
            let late = two.tally(Counted::RejectedLateWrites).await;
            let follow_up = vec![tidegate_core::message::NewMessage {
                queue: tidegate_core::id::QueueName::new("next").unwrap(),
                ..message(&format!("next{n}"))
            }];
            let settle = Settle { then: follow_up, ..completion(&lease) };
            let (settled, taken) = tokio::join!(two.one.settle(vec![settle]), two.sweep());
            match settled.unwrap().remove(0) {
                Ok(settled) => {
                    assert_eq!((settled.state, settled.follow_ups.len(), taken), (State::Completed, 1, vec![]));
                    assert_eq!(two.view(id).await.state, State::Completed);
                }
                Err(refused) => {
                    assert_eq!((refused.kind(), taken), (StoreErrorKind::LeaseLost, vec![id]));
                    assert_eq!(two.tally(Counted::RejectedLateWrites).await, late + 1);
                    let view = two.view(id).await;
                    assert_eq!((view.state, view.answer), (State::Ready, None));
                    let next = claim(&two.other, 1).await.remove(0);
                    two.other.settle(vec![completion(&next)]).await.unwrap().remove(0).unwrap();
                }
            }
        }
        assert_eq!(two.depths().await[2], 0);
    });
}

#[test]
fn the_same_settlement_on_two_handles_is_one() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let lease = two.started(&format!("m{n}")).await;
            let settle = || vec![completion(&lease)];
            let (one, other) = tokio::join!(two.one.settle(settle()), two.other.settle(settle()));
            let (one, other) = (one.unwrap().remove(0).unwrap(), other.unwrap().remove(0).unwrap());
            assert!(one.repeated != other.repeated, "{one:?} {other:?}");
            assert_eq!((one.state, other.state), (State::Completed, State::Completed));
        }
        assert_eq!(two.tally(Counted::Completed).await, ROUNDS as u64);
        assert_eq!(two.depths().await, [0; 5]);
    });
}

#[test]
fn of_two_settlements_under_one_token_the_second_is_a_conflict() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let lease = two.started(&format!("m{n}")).await;
            let failure = Failure::new("down", "not now");
            let retry = Outcome::Retryable { failure, after: None };
            let (one, other) = tokio::join!(
                two.one.settle(vec![completion(&lease)]),
                two.other.settle(vec![settlement(&lease, retry)])
            );
            let (one, other) = (one.unwrap().remove(0), other.unwrap().remove(0));
            let (made, refused) = match (one, other) {
                (Ok(made), Err(refused)) | (Err(refused), Ok(made)) => (made, refused),
                both => panic!("{both:?}"),
            };
            assert_eq!(refused.kind(), StoreErrorKind::Conflict);
            assert_eq!(two.view(lease.message.id).await.state, made.state);
            two.one.cancel(cancel(vec![lease.message.id])).await.unwrap().remove(0).ok();
        }
        assert_eq!(two.depths().await, [0; 5]);
    });
}

#[test]
fn an_intent_that_was_written_is_seen_by_the_takeover_beside_it() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let lease = two.started(&format!("m{n}")).await;
            let id = lease.message.id;
            // Not lapsed for the intent by a millisecond, and lapsed for a sweep a moment later.
            two.clock.advance(Duration::from_secs(3600));
            let writes = two.one.journal(vec![intent(&lease, at_most_once())]);
            let lapses = async {
                two.clock.advance(Duration::from_millis(1));
                two.sweep().await
            };
            let (written, taken) = tokio::join!(writes, lapses);
            let written = written.unwrap().remove(0);
            if taken.is_empty() {
                two.lapse();
                assert_eq!(two.sweep().await, [id]);
            }
            let view = two.view(id).await;
            match written {
                Ok(row) => assert_eq!((view.state, &view.journal[..]), (State::Parked, &[row][..])),
                Err(refused) => {
                    assert_eq!(refused.kind(), StoreErrorKind::LeaseLost);
                    assert_eq!((view.state, view.journal.len()), (State::Ready, 0));
                    two.one.cancel(cancel(vec![id])).await.unwrap().remove(0).unwrap();
                }
            }
        }
        let depths = two.depths().await;
        assert_eq!((depths[0], depths[2]), (0, 0));
    });
}

#[test]
fn an_extension_beside_a_takeover_holds_or_is_refused() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let lease = two.started(&format!("m{n}")).await;
            let id = lease.message.id;
            two.lapse();
            let extend = Extend { id, token: lease.token, lease: Duration::from_secs(3600), alone: false };
            let (extended, taken) = tokio::join!(two.one.extend(vec![extend]), two.sweep());
            match extended.unwrap().remove(0) {
                Ok(extended) => {
                    assert!(taken.is_empty());
                    let held = two.view(id).await.lease.map(|(_, until)| until);
                    assert_eq!(held, Some(extended.until));
                    two.one.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
                }
                Err(refused) => {
                    assert_eq!((refused.kind(), taken), (StoreErrorKind::LeaseLost, vec![id]));
                    two.one.cancel(cancel(vec![id])).await.unwrap().remove(0).unwrap();
                }
            }
        }
        assert_eq!(two.depths().await, [0; 5]);
    });
}

#[test]
fn a_message_that_is_claimed_and_cancelled_is_one_of_both() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS {
            let id = two.put(&format!("m{n}")).await;
            let (leases, cancelled) = tokio::join!(claim(&two.one, 1), two.other.cancel(cancel(vec![id])));
            match (leases.first(), cancelled.unwrap().remove(0).unwrap()) {
                (None, Cancellation::Now) => assert_eq!(two.view(id).await.state, State::Cancelled),
                (Some(lease), Cancellation::Requested) => {
                    let view = two.view(id).await;
                    assert!(view.state == State::Leased && view.cancel_requested);
                    let settled = two.one.settle(vec![settlement(lease, Outcome::Released)]).await.unwrap().remove(0);
                    assert_eq!(settled.unwrap().state, State::Cancelled);
                }
                (None, Cancellation::Requested) => panic!("nobody runs {id}"),
                (Some(lease), Cancellation::Now) => panic!("{id} was cancelled and runs: {lease:?}"),
            }
        }
        assert_eq!(two.depths().await, [0; 5]);
    });
}

#[test]
fn a_dead_letter_that_two_operators_redrive_begins_one_generation() {
    run(async {
        let two = Two::new().await;
        for n in 0..ROUNDS / 4 {
            let lease = two.started(&format!("m{n}")).await;
            let id = lease.message.id;
            let decode = Outcome::Undecodable { failure: Failure::new("decode", "no such field") };
            two.one.settle(vec![settlement(&lease, decode)]).await.unwrap().remove(0).unwrap();
            let redrive = |operation: &str| Redrive {
                ids: vec![id],
                again: false,
                operation: format!("{operation}-{n}"),
                act: Act { actor: "tester".into(), reason: "fixed".into() },
            };
            let (one, other) = tokio::join!(two.one.redrive(redrive("one")), two.other.redrive(redrive("other")));
            let redriven = [one.unwrap().remove(0), other.unwrap().remove(0)];
            assert_eq!(redriven.iter().filter(|verdict| verdict.is_ok()).count(), 1, "{redriven:?}");
            let view = two.view(id).await;
            assert_eq!((view.state, view.counters.generation), (State::Ready, 1));
            let again = claim(&two.one, 1).await.remove(0);
            two.one.settle(vec![completion(&again)]).await.unwrap().remove(0).unwrap();
        }
        assert_eq!(two.depths().await, [0; 5]);
    });
}

#[test]
fn a_settlement_whose_lease_is_locked_for_long_is_told_so_whatever_its_outcome() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
        let lease = claim(&place.store, 1).await.remove(0);
        let mut stopped = connect().await;
        let tx = stopped.transaction().await.unwrap();
        tx.execute(&format!("select from {} for update", place.name("lease")), &[]).await.unwrap();
        let retryable = || Outcome::Retryable { failure: Failure::new("down", "not yet"), after: None };
        let settle = || settlement(&lease, retryable());
        let error = place.store.settle(vec![settle()]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(error.is_in_flight() && error.retry_after_duration().is_some(), "{error}");
        tx.rollback().await.unwrap();
        let settled = place.store.settle(vec![settle()]).await.unwrap().remove(0).unwrap();
        assert_eq!(settled.state, State::Ready);
    });
}

/// It read the clock before it was set, and committed after somebody else had noticed that.
#[test]
fn what_is_dated_by_a_clock_that_is_set_meanwhile_is_put_right_with_the_rest() {
    const HOUR: Duration = Duration::from_secs(3600);
    run(async {
        let two = Two::new().await;
        let id = two.put("m").await;
        assert!(two.sweep().await.is_empty(), "both have seen the clock");
        let mut stopped = connect().await;
        let tx = stopped.transaction().await.unwrap();
        let table = format!("{}.claimed", two.schema.name());
        tx.batch_execute(&format!("lock table {table} in share mode")).await.unwrap();
        let (one, other) = (Arc::clone(&two.one), Arc::clone(&two.other));
        let claiming = tokio::spawn(async move { claim(&one, 1).await.len() });
        somebody_waits(&format!("into {table}")).await;
        two.clock.jump_forward(HOUR);
        let noticing = tokio::spawn(async move { other.sweep(sweep()).await.unwrap() });
        // Whoever puts things right waits for the one that is under way, or has done so without it.
        let waits = format!(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%{}.clock%'
             and pid <> pg_backend_pid()",
            two.schema.name()
        );
        let mut beat = tokio::time::interval(EVERY);
        while !noticing.is_finished() && sql(&waits).trim() == "0" {
            beat.tick().await;
        }
        tx.rollback().await.unwrap();
        assert_eq!(claiming.await.unwrap(), 1);
        assert!(noticing.await.unwrap().taken_over.is_empty());
        let until = two.view(id).await.lease.map(|(_, until)| until);
        assert_eq!(until, Some(two.clock.now().after(HOUR)), "a lease holds as long as it was given");
    });
}
