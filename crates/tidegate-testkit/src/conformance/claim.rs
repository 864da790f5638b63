//! Taking messages under a lease: what is counted, in which order, and what waits (protocol §1, §4).

use std::collections::BTreeSet;

use tidegate_core::lifecycle::{Cancellation, Counters, Outcome, Resolution, State};
use tidegate_core::message::{Due, NewMessage, Priority};
use tidegate_core::store::{ClaimRequest, Counted, Lease, QueueChange, QueueSlots};
use tidegate_core::{MessageId, Tenant};

use super::stage::*;
use crate::Engine;

fn ids(leases: &[Lease]) -> Vec<MessageId> {
    leases.iter().map(|lease| lease.message.id).collect()
}

/// The attempt is counted before it starts, and the token is the count of claims and the worker's nonce.
pub async fn a_claim_counts_the_attempt_and_hands_out_a_token(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let request = stage.request(1);
    let lease = stage.claim(&request).await.leases.remove(0);
    assert_eq!(lease.counters, Counters { claims: 1, attempt: 1, ..Counters::default() });
    assert_eq!((lease.token.claims, lease.token.nonce), (1, request.nonce));
    assert_eq!((lease.until, lease.due_at), (stage.now().after(LEASE), stage.now()));
    assert!(!lease.reconciling && !lease.suspect && lease.journal.is_empty());
    let view = stage.view(id).await;
    assert_eq!(view.message, lease.message);
    assert_eq!((view.state, view.counters), (State::Leased, lease.counters));
    assert_eq!(view.lease, Some((request.worker, lease.until)));
}

/// The second attempt is the second, and the epoch of its token is higher.
pub async fn every_claim_of_a_message_has_a_higher_count(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.end(&lease, Outcome::Snooze { after: SECOND }).await;
    stage.clock.advance(SECOND);
    let again = stage.take_one().await;
    assert_eq!(again.counters, Counters { claims: 2, attempt: 1, ..Counters::default() }, "a snooze counts nothing");
    stage.end(&again, retryable()).await;
    stage.clock.advance(HOUR);
    let third = stage.take_one().await;
    assert_eq!(third.counters, Counters { claims: 3, attempt: 2, ..Counters::default() });
    assert_eq!(third.token.claims, 3);
}

/// The reply of a claim may have been lost: repeated under its nonce it returns the same leases and takes nothing more.
pub async fn a_claim_repeated_under_its_nonce_returns_the_same_leases(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    for name in ["a", "b", "c"] {
        stage.put(message(name)).await;
    }
    let request = stage.request(2);
    let first = stage.claim(&request).await.leases;
    let facts = |leases: &[Lease]| -> Vec<_> {
        leases.iter().map(|l| (l.message.clone(), l.token, l.until, l.counters)).collect()
    };
    assert_eq!(first.len(), 2);
    stage.clock.advance(SECOND);
    assert_eq!(facts(&stage.claim(&request).await.leases), facts(&first));
    let other = stage.other_handle().await;
    let elsewhere = other.claim(request.clone()).await.expect("a claim is answered").leases;
    assert_eq!(facts(&elsewhere), facts(&first), "as any handle says");
    stage.reopen().await;
    assert_eq!(facts(&stage.claim(&request).await.leases), facts(&first), "and after a restart");
    assert_eq!(stage.take(10).await.len(), 1, "nothing was taken twice");
}

/// A repeat of a claim returns only what is still held under it.
pub async fn a_repeated_claim_does_not_return_what_was_settled(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("a")).await;
    stage.put(message("b")).await;
    let request = stage.request(2);
    let leases = stage.claim(&request).await.leases;
    stage.end(&leases[0], completed()).await;
    assert_eq!(ids(&stage.claim(&request).await.leases), [leases[1].message.id]);
}

/// No prefetch: never more is claimed than there are free slots, queue by queue.
pub async fn never_more_is_claimed_than_there_are_slots(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..5 {
        stage.put(message(&format!("m{n}"))).await;
        stage.put(NewMessage { queue: queue("other"), ..message(&format!("m{n}")) }).await;
    }
    let slots = |name: &str, slots| QueueSlots { queue: queue(name), slots };
    let request = ClaimRequest { queues: vec![slots("work", 2), slots("other", 3)], ..stage.request(0) };
    let leases = stage.claim(&request).await.leases;
    let of = |name: &str| leases.iter().filter(|l| l.message.queue.as_str() == name).count();
    assert_eq!((of("work"), of("other")), (2, 3));
    let request = ClaimRequest { queues: vec![slots("work", 0), slots("other", 100)], ..stage.request(0) };
    let leases = stage.claim(&request).await.leases;
    assert_eq!(leases.len(), 2, "nothing of a queue without free slots: {leases:?}");
    assert!(leases.iter().all(|l| l.message.queue.as_str() == "other"));
}

/// Priority first, whenever it came; within a lane the one that became due first; then the order of acceptance.
pub async fn messages_are_claimed_by_priority_then_due_time_then_order(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let with = |name: &str, priority, seconds| NewMessage {
        priority: Priority::new(priority).expect("a valid priority"),
        due: Due::In(SECOND * seconds),
        ..message(name)
    };
    let mut expected = Vec::new();
    for (name, priority, seconds, place) in [
        ("last", 9, 0, 5),
        ("later", 5, 20, 4),
        ("tie-a", 5, 10, 2),
        ("tie-b", 5, 10, 3),
        ("first", 0, 30, 0),
        ("second", 1, 0, 1),
    ] {
        expected.push((place, stage.put(with(name, priority, seconds)).await));
    }
    expected.sort_unstable();
    stage.clock.advance(MINUTE);
    let claimed = ids(&stage.take(10).await);
    assert_eq!(claimed, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

/// Taken one by one the order is the same.
pub async fn the_order_does_not_depend_on_how_many_are_claimed_at_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut expected = Vec::new();
    for n in 0..6_u8 {
        let priority = Priority::new(n % 3).expect("a valid priority");
        expected.push((n % 3, stage.put(NewMessage { priority, ..message(&format!("m{n}")) }).await));
    }
    expected.sort_unstable();
    for (_, id) in expected {
        assert_eq!(stage.take_one().await.message.id, id);
    }
}

/// A kind nobody serves waits, costs no attempt, and is no obstacle to what is behind it.
pub async fn an_unknown_kind_waits_and_costs_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let unknown = stage.put(NewMessage { kind: kind("foreign"), priority: Priority::FIRST, ..message("u") }).await;
    let known = stage.put(message("k")).await;
    assert_eq!(ids(&stage.take(10).await), [known]);
    let view = stage.view(unknown).await;
    assert_eq!((view.state, view.counters), (State::Ready, Counters::default()));
    let request = ClaimRequest { kinds: vec![(kind("foreign"), 1)], ..stage.request(10) };
    assert_eq!(ids(&stage.claim(&request).await.leases), [unknown]);
}

/// A newer payload version stays queued for a worker that reads it; older ones are read.
pub async fn a_newer_payload_version_waits_and_an_older_one_is_read(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let newer = stage.put(NewMessage { version: 3, ..message("newer") }).await;
    let older = stage.put(message("older")).await;
    let reads = |version| ClaimRequest { kinds: vec![(kind("work"), version)], ..stage.request(10) };
    assert_eq!(ids(&stage.claim(&reads(2)).await.leases), [older]);
    assert_eq!(stage.view(newer).await.counters, Counters::default());
    assert_eq!(ids(&stage.claim(&reads(3)).await.leases), [newer]);
}

/// Messages of a paused queue wait and cost nothing.
pub async fn a_paused_queue_waits_and_costs_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let paused = stage.put(message("m")).await;
    let elsewhere = stage.put(NewMessage { queue: queue("other"), ..message("m") }).await;
    stage.change_queue("work", QueueChange::Pause).await;
    let slots = |name: &str| QueueSlots { queue: queue(name), slots: 10 };
    let both = ClaimRequest { queues: vec![slots("work"), slots("other")], ..stage.request(0) };
    assert_eq!(ids(&stage.claim(&both).await.leases), [elsewhere]);
    assert_eq!(stage.view(paused).await.counters, Counters::default());
    stage.change_queue("work", QueueChange::Resume).await;
    assert_eq!(ids(&stage.take(10).await), [paused]);
}

/// A claim is for one tenant.
pub async fn messages_of_another_tenant_are_not_claimed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let tenant = Tenant::new("acme").expect("a valid name");
    let theirs = stage.put(NewMessage { tenant: tenant.clone(), ..message("m") }).await;
    let ours = stage.put(message("m")).await;
    assert_eq!(ids(&stage.take(10).await), [ours]);
    let request = ClaimRequest { tenant, ..stage.request(10) };
    assert_eq!(ids(&stage.claim(&request).await.leases), [theirs]);
}

/// A scheduled message is not claimed before it is due, needs no sweep to become claimable, and is announced.
pub async fn a_scheduled_message_is_claimed_when_it_is_due_and_not_before(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let due_at = stage.now().after(MINUTE);
    let id = stage.put(NewMessage { due: Due::In(MINUTE), ..message("delayed") }).await;
    stage.put(NewMessage { due: Due::At(due_at.after(SECOND)), ..message("later") }).await;
    stage.clock.advance(MINUTE - MILLI);
    let early = stage.claim(&stage.request(10)).await;
    assert_eq!((early.leases.len(), early.next_due), (0, Some(due_at)));
    stage.clock.advance(MILLI);
    let claimed = stage.claim(&stage.request(10)).await;
    assert_eq!(ids(&claimed.leases), [id]);
    assert_eq!((claimed.leases[0].due_at, claimed.next_due), (due_at, Some(due_at.after(SECOND))));
}

/// When nothing is scheduled there is nothing to announce.
pub async fn without_scheduled_messages_nothing_is_announced(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.started("m").await;
    let claimed = stage.claim(&stage.request(10)).await;
    assert_eq!((claimed.leases.len(), claimed.next_due, claimed.ended), (0, None, 0));
}

/// The deadline refuses a new attempt: the message is a dead letter, and no attempt was counted for it.
pub async fn after_its_deadline_a_message_is_dead_instead_of_claimed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let late = NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message("late") };
    let late = stage.put(late).await;
    let good = stage.put(message("good")).await;
    stage.clock.advance(MINUTE);
    let claimed = stage.claim(&stage.request(10)).await;
    assert_eq!((ids(&claimed.leases), claimed.ended), (vec![good], 1));
    let view = stage.view(late).await;
    assert_eq!((view.state, view.reason.as_deref(), view.counters.attempt), (State::Dead, Some("deadline"), 0));
    assert_eq!((view.ended_at, view.due_at), (Some(stage.now()), None));
    assert_eq!(stage.tally_of(Counted::Dead, "deadline").await, 1);
}

/// Up to its deadline a message begins.
pub async fn just_before_its_deadline_a_message_begins(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message("m") }).await;
    stage.clock.advance(MINUTE - MILLI);
    stage.take_one().await;
}

/// Every message has a `max_age`, three days unless it says otherwise.
pub async fn a_message_that_waited_longer_than_its_max_age_is_dead(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let usual = stage.put(message("usual")).await;
    let short = stage.put(NewMessage { max_age: Some(HOUR), ..message("short") }).await;
    stage.clock.advance(HOUR);
    let claimed = stage.claim(&ClaimRequest { queues: vec![], ..stage.request(0) }).await;
    assert_eq!((claimed.leases.len(), claimed.ended), (0, 0), "a claim of no queue touches nothing");
    let lease = stage.take_one().await;
    assert_eq!(lease.message.id, usual);
    stage.end(&lease, Outcome::Snooze { after: SECOND }).await;
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.end_of(short).await, (State::Dead, Some("max_age".into())));
    stage.clock.advance(DAY * 3);
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.end_of(usual).await, (State::Dead, Some("max_age".into())));
}

/// A deadline stands in for a `max_age` that was not given.
pub async fn a_deadline_stands_in_for_an_absent_max_age(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { deadline: Some(stage.now().after(DAY * 5)), ..message("m") }).await;
    stage.clock.advance(DAY * 4);
    assert_eq!(stage.take_one().await.message.id, id);
}

/// A delay that was asked for is no ageing: a message due in a week begins in a week.
pub async fn a_message_delayed_beyond_the_default_max_age_begins_when_it_is_due(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { due: Due::In(DAY * 7), ..message("m") }).await;
    stage.clock.advance(DAY * 7 + HOUR);
    assert_eq!(stage.take_one().await.message.id, id);
}

/// A run that has to clear up an open effect is not counted, and gets the journal.
pub async fn a_reconciling_run_is_uncounted_and_carries_the_journal(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let row = stage.answer(&lease, &row, no_answer()).await;
    assert_eq!(stage.end(&lease, unknown()).await.state, State::Ready);
    stage.clock.advance(MINUTE);
    let again = stage.take_one().await;
    assert!(again.reconciling);
    assert_eq!(again.counters, Counters { claims: 2, attempt: 1, ..Counters::default() });
    assert_eq!(again.journal, [row]);
}

/// The deadline is suspended while an effect is open.
pub async fn the_deadline_is_suspended_while_an_effect_is_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message("m") }).await;
    let lease = stage.take_one().await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    stage.clock.advance(MINUTE * 10);
    let again = stage.take_one().await;
    assert!(again.message.id == id && again.reconciling);
}

/// Once a non-natural effect is confirmed the deadline is waived: money may have moved, the rest must follow.
pub async fn the_deadline_is_waived_once_an_effect_is_confirmed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message("m") }).await;
    let lease = stage.take_one().await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    stage.clock.advance(MINUTE);
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Ready, "and a retry may lie beyond it");
    stage.clock.advance(DAY * 4);
    let again = stage.take_one().await;
    assert!(again.message.id == id && !again.reconciling);
}

/// Only `sweep` takes over: a lapsed lease is not claimed by the next worker.
pub async fn a_lapsed_lease_is_not_claimed_before_a_sweep_took_it_over(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(HOUR);
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed, "its holder may still settle");
}

/// After a crash a message is a suspect, until a run of it comes back.
pub async fn a_message_that_crashed_is_claimed_as_a_suspect(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.started("m").await;
    stage.crash().await;
    let suspect = stage.take_one().await;
    assert!(suspect.suspect);
    assert!(stage.view(suspect.message.id).await.suspect);
    stage.end(&suspect, Outcome::Released).await;
    let suspect = stage.take_one().await;
    assert!(suspect.suspect, "released before it ran");
    stage.alone(&suspect).await;
    stage.end(&suspect, retryable()).await;
    stage.clock.advance(MINUTE);
    assert!(!stage.take_one().await.suspect, "it came back");
}

/// A wish to cancel that had to wait takes effect at the next claim.
pub async fn a_cancel_request_that_had_to_wait_takes_effect_at_the_claim(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let id = lease.message.id;
    let row = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &row, no_answer()).await;
    assert_eq!(stage.cancel(id).await, Ok(Cancellation::Requested));
    assert_eq!(stage.end(&lease, unknown()).await.state, State::Parked);
    stage.clock.advance(HOUR);
    stage.resolve(id, Resolution::DidNotHappen).await.expect("the quarantine is over");
    let claimed = stage.claim(&stage.request(10)).await;
    assert_eq!((claimed.leases.len(), claimed.ended), (0, 1));
    assert_eq!(stage.state(id).await, State::Cancelled);
}

/// Two claims share no message.
pub async fn two_claims_share_no_message(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..10 {
        stage.put(message(&format!("m{n}"))).await;
    }
    let other = stage.other_handle().await;
    let mut seen = BTreeSet::new();
    for round in 0..5 {
        let handle = if round % 2 == 0 { &stage.store } else { &other };
        for lease in handle.claim(stage.request(2)).await.expect("a claim is answered").leases {
            assert!(seen.insert(lease.message.id), "{} was claimed twice", lease.message.id);
        }
    }
    assert_eq!(seen.len(), 10);
}
