//! Depths, ages and counters: exact, and equal to what can be counted otherwise (protocol §8).

use tidegate_core::Tenant;
use tidegate_core::lifecycle::{Outcome, Resolution};
use tidegate_core::message::{Due, NewMessage, Priority};
use tidegate_core::store::{Counted, LaneStats, QueueChange, Settle};

use super::stage::*;
use crate::Engine;
use crate::recount::recount;

/// An empty store has nothing to tell.
pub async fn an_empty_store_counts_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let stats = stage.stats().await;
    assert!(stats.queues.iter().all(|q| q.ready + q.scheduled + q.leased + q.parked + q.dead == 0));
    assert!(stats.tallies.iter().all(|tally| tally.n == 0), "{:?}", stats.tallies);
    assert_eq!((stats.open_effects, stats.lanes.len()), (0, 0));
}

/// A message is counted where it stands, and nowhere else.
pub async fn depths_follow_a_message_through_its_states(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let depths = || async {
        let q = stage.queue_stats("work").await;
        [q.ready, q.scheduled, q.leased, q.parked, q.dead]
    };
    let id = stage.put(NewMessage { due: Due::In(MINUTE), ..message("m") }).await;
    assert_eq!(depths().await, [0, 1, 0, 0, 0]);
    stage.clock.advance(MINUTE);
    assert_eq!(depths().await, [1, 0, 0, 0, 0], "due, with or without a sweep");
    let lease = stage.take_one().await;
    assert_eq!(depths().await, [0, 0, 1, 0, 0]);
    stage.intend(&lease, &at_most_once()).await;
    stage.end(&lease, unknown()).await;
    assert_eq!(depths().await, [0, 0, 0, 1, 0]);
    stage.resolve(id, Resolution::Happened { value: "1".into() }).await.expect("parked");
    assert_eq!(depths().await, [1, 0, 0, 0, 0]);
    let lease = stage.take_one().await;
    stage.end(&lease, permanent()).await;
    assert_eq!(depths().await, [0, 0, 0, 0, 1]);
    stage.redrive(id, false).await.expect("dead");
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    assert_eq!(depths().await, [0, 0, 0, 0, 0]);
}

/// Ages are those of the oldest: how long it has been due, running or not; how long parked; how long dead.
pub async fn ages_are_those_of_the_oldest(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.parked("parked").await;
    stage.clock.advance(MINUTE);
    stage.put(NewMessage { due: Due::In(MINUTE), ..message("first") }).await;
    let ages = || async {
        let q = stage.queue_stats("work").await;
        (q.oldest_ready, q.oldest_parked)
    };
    assert_eq!(ages().await, (None, Some(MINUTE)), "what is not due does not wait");
    stage.clock.advance(MINUTE * 2);
    stage.put(message("second")).await;
    assert_eq!(ages().await, (Some(MINUTE), Some(MINUTE * 3)));
    let lease = stage.take_one().await;
    stage.clock.advance(SECOND);
    let q = stage.queue_stats("work").await;
    assert_eq!((q.oldest_leased, q.oldest_dead), (Some(MINUTE + SECOND), None), "since it was due");
    stage.end(&lease, Outcome::Undecodable { failure: failure("decode") }).await;
    stage.clock.advance(SECOND * 2);
    let q = stage.queue_stats("work").await;
    assert_eq!((q.oldest_leased, q.oldest_dead), (None, Some(SECOND * 2)));
}

/// A lane is told with the age of its head, so that a worker sees what it does not serve.
pub async fn lanes_with_ready_messages_are_told(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("a")).await;
    stage.clock.advance(SECOND);
    stage.put(message("b")).await;
    stage.put(NewMessage { version: 2, ..message("newer") }).await;
    stage.put(NewMessage { kind: kind("foreign"), priority: Priority::LAST, ..message("foreign") }).await;
    let mut lanes = stage.stats().await.lanes;
    lanes.sort_by_key(|lane| (lane.kind.clone(), lane.version));
    let lane = |name: &str, version, priority, oldest| LaneStats {
        queue: queue("work"),
        kind: kind(name),
        version,
        priority,
        oldest,
    };
    let usual = Priority::default();
    let none = std::time::Duration::ZERO;
    let expected =
        [lane("foreign", 1, Priority::LAST, none), lane("work", 1, usual, SECOND), lane("work", 2, usual, none)];
    assert_eq!(lanes, expected);
}

/// Queues are told in the order of their names, each with its limits.
pub async fn queues_are_told_in_the_order_of_their_names(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for name in ["b", "c", "a"] {
        stage.put(NewMessage { queue: queue(name), ..message("m") }).await;
    }
    stage.change_queue("b", QueueChange::Limit(Some(3))).await;
    let queues = stage.stats().await.queues;
    let told: Vec<_> = queues.iter().map(|q| (q.queue.as_str(), q.max_depth, q.ready)).collect();
    assert_eq!(told, [("a", None, 1), ("b", Some(3), 1), ("c", None, 1)]);
    assert!(queues.iter().all(|q| q.tenant == Tenant::default()));
}

/// Each ending is counted once, under its outcome, its code and what the message became.
pub async fn every_ending_is_counted_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.completed("completed").await;
    stage.failed("failed").await;
    stage.dead("dead").await;
    stage.parked("parked").await;
    let lease = stage.started("retried").await;
    stage.end(&lease, retryable()).await;
    stage.clock.advance(MINUTE);
    stage.take_one().await;
    stage.crash().await;
    for (what, code, n) in [
        (Counted::Attempts, "completed", 1),
        (Counted::Attempts, "permanent", 1),
        (Counted::Attempts, "undecodable", 1),
        (Counted::Attempts, "unknown", 1),
        (Counted::Attempts, "retryable", 1),
        (Counted::Attempts, "lease_expired", 1),
        (Counted::Failures, "declined", 1),
        (Counted::Failures, "oops", 1),
        (Counted::Failures, "timeout", 1),
        (Counted::Retries, "oops", 1),
        (Counted::Failed, "declined", 1),
        (Counted::Dead, "decode", 1),
        (Counted::Parked, "outcome_unknown", 1),
    ] {
        assert_eq!(stage.tally_of(what, code).await, n, "{what:?} {code}");
    }
    for (what, n) in [(Counted::Completed, 1), (Counted::LostLeases, 1), (Counted::Attempts, 6), (Counted::Retries, 2)]
    {
        assert_eq!(stage.tally(what).await, n, "{what:?}");
    }
}

/// Counters survive a restart, and every handle tells the same.
pub async fn counters_survive_a_restart_and_are_the_same_for_every_handle(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    stage.completed("m").await;
    let before = stage.stats().await;
    stage.reopen().await;
    assert_eq!(stage.stats().await, before);
    let other = stage.other_handle().await;
    assert_eq!(other.stats().await.expect("answered"), before);
}

/// After a busy day the counters and depths are what histories, states and journals say.
pub async fn counters_and_depths_equal_a_recount(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..60_usize {
        stage.put(NewMessage { queue: queue(["work", "other"][n % 2]), ..message(&format!("m{n}")) }).await;
    }
    let outcomes = every_outcome();
    for round in 0..6_usize {
        let queues = ["work", "other"].map(|name| tidegate_core::store::QueueSlots { queue: queue(name), slots: 20 });
        let request = tidegate_core::store::ClaimRequest { queues: queues.to_vec(), ..stage.request(0) };
        for (n, lease) in stage.claim(&request).await.leases.iter().enumerate() {
            let outcome = outcomes[(n * 7 + round) % outcomes.len()].clone();
            if lease.reconciling {
                stage.end(lease, unknown()).await;
            } else if n % 9 == 8 {
                continue; // crashes
            } else if matches!(outcome, Outcome::Park { .. }) || n % 5 == 4 {
                stage.intend(lease, &[at_most_once(), lookup(), keyed()][n % 3]).await;
                stage.end(lease, outcome).await;
            } else {
                let then =
                    vec![NewMessage { queue: queue("other"), ..message(&format!("{}-{round}", lease.message.key)) }];
                let compensate = then.clone();
                stage.settle(Settle { then, compensate, ..settlement(lease, outcome) }).await.expect("held");
            }
        }
        stage.clock.advance(HOUR);
        stage.sweep().await;
        for id in stage.all().await.into_iter().step_by(7) {
            // Refusals are as good as grants here: both must leave the counters right.
            stage.redrive(id, true).await.ok();
            stage.resolve(id, Resolution::DidNotHappen).await.ok();
            if round % 2 == 1 {
                stage.cancel(id).await.ok();
            }
        }
        let counted = recount(&*stage.store, stage.now()).await.expect("answered");
        let differences = counted.differences(&stage.stats().await);
        assert!(differences.is_empty(), "after round {round}:\n{}", differences.join("\n"));
    }
}
