//! Taking over lapsed leases and ending retention (protocol §2, §4).

use std::time::Duration;

use tidegate_core::effect::EffectAnswer;
use tidegate_core::lifecycle::{Counters, Outcome, State};
use tidegate_core::message::{Due, NewMessage};
use tidegate_core::store::{Counted, Discard, Enqueued, SweepRequest, TakenOver};
use tidegate_core::{StoreErrorKind, Tenant, WorkerId};

use super::stage::*;
use crate::Engine;

/// A lapsed lease is taken over, straight to the next state.
pub async fn a_lapsed_lease_is_taken_over(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(LEASE + MILLI);
    let swept = stage.sweep().await;
    let worker = WorkerId::new("worker-1").expect("a valid name");
    let expected = TakenOver { id: lease.message.id, state: State::Ready, worker, queue: queue("work") };
    assert_eq!((swept.taken_over, swept.more), (vec![expected], false));
    let view = stage.view(lease.message.id).await;
    assert_eq!((view.state, view.lease, view.due_at), (State::Ready, None, Some(stage.now())));
    assert_eq!(view.counters, Counters { claims: 1, attempt: 1, ..Counters::default() }, "a crash spends its attempt");
    assert_eq!(view.history.len(), 1);
    assert_eq!((view.history[0].outcome.as_str(), view.history[0].state), ("lease_expired", State::Ready));
    assert_eq!(stage.tally(Counted::LostLeases).await, 1);
}

/// Nothing is taken from a worker whose lease holds.
pub async fn a_lease_that_holds_is_not_taken_over(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    for _ in 0..3 {
        stage.clock.advance(LEASE - MILLI);
        assert!(stage.sweep().await.taken_over.is_empty());
        stage.extend(lease.message.id, lease.token).await.expect("the lease is held");
    }
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
}

/// A sweeper that was itself asleep takes nothing over, but goes on with the rest.
pub async fn a_sweep_that_is_told_not_to_takes_nothing_over(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(DAY);
    let request = SweepRequest { take_over: false, retention: Some(DAY * 7), limit: 100, unit: 0.5 };
    assert!(stage.sweep_with(request).await.taken_over.is_empty());
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
}

/// Sweeps go in bounded steps and say when there is more.
pub async fn a_sweep_is_bounded_and_says_when_there_is_more(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..5 {
        stage.put(message(&format!("m{n}"))).await;
    }
    assert_eq!(stage.take(5).await.len(), 5);
    stage.clock.advance(LEASE + MILLI);
    let mut taken = 0;
    for _ in 0..10 {
        let swept = stage.sweep_with(SweepRequest { take_over: true, retention: None, limit: 2, unit: 0.5 }).await;
        assert!(swept.taken_over.len() <= 2);
        taken += swept.taken_over.len();
        if !swept.more {
            break;
        }
    }
    assert_eq!(taken, 5);
}

/// Two sweepers take a message over once.
pub async fn a_lease_is_taken_over_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.started("m").await;
    stage.clock.advance(LEASE + MILLI);
    let other = stage.other_handle().await;
    let request = || SweepRequest { take_over: true, retention: None, limit: 10, unit: 0.5 };
    let first = stage.sweep_with(request()).await.taken_over.len();
    let second = other.sweep(request()).await.expect("a sweep is answered").taken_over.len();
    assert_eq!((first, second), (1, 0));
    assert_eq!(stage.tally(Counted::LostLeases).await, 1);
}

/// Without a policy row a message goes back to ready, never dead.
pub async fn without_a_policy_no_crash_makes_a_dead_letter(engine: &dyn Engine) {
    let stage = Stage::without_policy(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 0..30 {
        let lease = stage.take_one().await;
        stage.alone(&lease).await;
        stage.crash().await;
        assert_eq!(stage.state(id).await, State::Ready);
    }
}

/// Nor does it change what is counted.
pub async fn without_a_policy_a_suspect_that_never_ran_alone_spends_no_attempt(engine: &dyn Engine) {
    let stage = Stage::without_policy(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 0..3 {
        let lease = stage.take_one().await;
        stage.alone(&lease).await;
        stage.crash().await;
    }
    stage.take_one().await;
    stage.crash().await;
    let view = stage.view(id).await;
    assert_eq!(view.counters, Counters { claims: 4, attempt: 3, crashes: 3, ..Counters::default() });
}

/// A policy that any worker declared is what the sweep of every process goes by.
pub async fn a_crash_spends_an_attempt_and_the_last_one_is_dead(engine: &dyn Engine) {
    let stage = Stage::without_policy(engine).await;
    let policy = tidegate_core::retry::Policy { max_attempts: 2, crash_limit: 10, ..Stage::policy() };
    stage.other_handle().await.declare(vec![(kind("work"), policy)]).await.expect("a policy can be declared");
    let id = stage.put(message("m")).await;
    for _ in 0..2 {
        let lease = stage.take_one().await;
        stage.alone(&lease).await;
        stage.crash().await;
    }
    assert_eq!(stage.end_of(id).await, (State::Dead, Some("exhausted".into())));
    assert_eq!(stage.tally_of(Counted::Dead, "exhausted").await, 1);
}

/// Crash limit without innocents: the first crash makes a suspect, and only a crash while alone counts.
pub async fn only_a_crash_while_alone_counts_towards_the_crash_limit(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.declare("work", tidegate_core::retry::Policy { max_attempts: 100, ..Stage::policy() }).await;
    let id = stage.put(message("m")).await;
    for _ in 0..5 {
        stage.take_one().await;
        stage.crash().await;
        let view = stage.view(id).await;
        assert_eq!((view.state, view.counters.crashes, view.suspect), (State::Ready, 0, true));
    }
    let lease = stage.take_one().await;
    stage.alone(&lease).await;
    stage.crash().await;
    assert_eq!(stage.view(id).await.counters.crashes, 1);
    let lease = stage.take_one().await;
    stage.alone(&lease).await;
    let swept = stage.crash().await;
    assert_eq!(swept.taken_over[0].state, State::Dead);
    assert_eq!(stage.end_of(id).await, (State::Dead, Some("crash_limit".into())));
}

/// A suspect whose process went down before it was alone had not started.
pub async fn a_suspect_that_never_ran_alone_spends_no_attempt(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    stage.take_one().await;
    stage.crash().await;
    assert_eq!(stage.view(id).await.counters.attempt, 1);
    for _ in 0..5 {
        stage.take_one().await;
        stage.crash().await;
    }
    assert_eq!(stage.view(id).await.counters, Counters { claims: 6, attempt: 1, ..Counters::default() });
}

/// A crash with an open effect is reconciled or parked, never dead.
pub async fn a_crash_with_an_open_effect_is_never_the_end(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.declare("work", tidegate_core::retry::Policy { max_attempts: 1, crash_limit: 1, ..Stage::policy() }).await;
    for (name, effect, state) in [("keyed", keyed(), State::Ready), ("once", at_most_once(), State::Parked)] {
        let lease = stage.started(name).await;
        stage.alone(&lease).await;
        stage.intend(&lease, &effect).await;
        let swept = stage.crash().await;
        assert_eq!(swept.taken_over[0].state, state, "{name}");
    }
}

/// A wish to cancel is granted when the crash is swept and nothing has taken effect.
pub async fn a_crashed_message_that_was_to_be_cancelled_is_cancelled(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.cancel(lease.message.id).await.expect("a leased message can be called off");
    let swept = stage.crash().await;
    assert_eq!(swept.taken_over[0].state, State::Cancelled);
}

/// Retention counts from the terminal state, not from the enqueue.
pub async fn retention_counts_from_the_end_of_a_message(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { max_age: Some(DAY * 30), ..message("m") }).await;
    stage.clock.advance(DAY * 10);
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    stage.clock.advance(DAY * 7 - SECOND);
    assert_eq!(stage.expire().await, 0);
    assert!(matches!(stage.enqueue(message("m")).await, Ok(Enqueued::Replayed { .. })), "up to the last second");
    stage.clock.advance(SECOND * 2);
    assert_eq!(stage.expire().await, 1);
    assert_eq!(stage.view_if_any(id).await, None);
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(None));
    assert_eq!(stage.tally(Counted::Deleted).await, 1);
}

/// Completed, failed and cancelled messages are deleted; nothing that waits, runs, is parked or dead ever is.
pub async fn only_completed_failed_and_cancelled_messages_expire(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.completed("completed").await;
    stage.failed("failed").await;
    stage.cancelled("cancelled").await;
    let dead = stage.dead("dead").await;
    let parked = stage.parked("parked").await;
    let leased = stage.started("leased").await.message.id;
    let ready = stage.put(message("ready")).await;
    let mut kept = vec![dead, parked, leased, ready];
    kept.sort_unstable();
    stage.clock.advance(DAY * 400);
    assert_eq!(stage.expire().await, 3);
    assert_eq!(stage.all().await, kept);
    assert_eq!(stage.expire().await, 0);
}

/// A deleted key is forgotten with everything of its message; the same key is a new message.
pub async fn after_its_retention_a_key_is_new_unless_it_is_known_to_be_old(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let made = stage.now();
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    stage.end(&lease, completed()).await;
    stage.clock.advance(DAY * 8);
    assert_eq!(stage.expire().await, 1);
    let old = NewMessage { key_time: Some(made), ..message("m") };
    assert_eq!(stage.enqueue(old).await, Ok(Enqueued::Stale), "it may have been done and forgotten");
    let id = stage.put(message("m")).await;
    let view = stage.view(id).await;
    assert!(id != lease.message.id && view.journal.is_empty() && view.history.is_empty());
}

/// Without a retention nothing is deleted.
pub async fn a_sweep_without_a_retention_deletes_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.completed("m").await;
    stage.clock.advance(DAY * 400);
    assert_eq!(stage.sweep().await.deleted, 0);
    assert_eq!(stage.state(id).await, State::Completed);
}

/// Deleting goes in bounded steps too.
pub async fn deleting_is_bounded_and_says_when_there_is_more(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..5 {
        stage.cancelled(&format!("m{n}")).await;
    }
    stage.clock.advance(DAY * 8);
    let mut deleted = 0;
    for _ in 0..10 {
        let request = SweepRequest { take_over: false, retention: Some(DAY * 7), limit: 2, unit: 0.5 };
        let swept = stage.sweep_with(request).await;
        assert!(swept.deleted <= 2);
        deleted += swept.deleted;
        if !swept.more {
            break;
        }
    }
    assert_eq!((deleted, stage.all().await.len()), (5, 0));
}

/// A redriven message is no longer terminal, whatever its age.
pub async fn a_message_that_was_redriven_does_not_expire(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.failed("m").await;
    stage.clock.advance(DAY * 6);
    stage.redrive(id, true).await.expect("failed, again, with a reason");
    stage.clock.advance(DAY * 2);
    assert_eq!(stage.expire().await, 0);
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    stage.clock.advance(DAY * 6);
    assert_eq!(stage.expire().await, 0, "its clock starts anew");
}

/// A wall clock that jumps ahead deletes nothing early: no time has passed.
pub async fn a_forward_clock_jump_deletes_nothing_early(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.completed("m").await;
    stage.clock.jump_forward(DAY * 8);
    assert_eq!(stage.expire().await, 0);
    assert!(matches!(stage.enqueue(message("m")).await, Ok(Enqueued::Replayed { .. })));
    stage.clock.advance(DAY * 6);
    assert_eq!(stage.expire().await, 0, "six days have passed");
    stage.clock.advance(DAY * 9);
    assert_eq!(stage.expire().await, 1, "and in the end it goes all the same");
    assert_eq!(stage.view_if_any(id).await, None);
}

/// A clock that is set back by a year delays deletion, loses nothing and stops nothing.
pub async fn a_backward_clock_jump_loses_nothing_and_stops_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let done = stage.completed("done").await;
    stage.clock.jump_back(DAY * 365);
    assert_eq!(stage.expire().await, 0);
    assert!(matches!(stage.enqueue(message("done")).await, Ok(Enqueued::Replayed { .. })));
    let lease = stage.started("new").await;
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
    assert_eq!(stage.state(done).await, State::Completed);
}

/// What could be claimed stays claimable when the clock is set back.
pub async fn a_backward_clock_jump_holds_back_nothing_that_could_be_claimed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    stage.clock.jump_back(DAY);
    assert_eq!(stage.queue_stats("work").await.ready, 1);
    assert_eq!(stage.take_one().await.message.id, id);
}

/// A wait that began while the clock was ahead takes as long as it was to take: years ahead of a clock that was set right it
/// would be stranded.
pub async fn a_wait_that_began_while_the_clock_was_ahead_ends_in_time(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    let snoozed = stage.started("snoozed").await;
    stage.end(&snoozed, Outcome::Snooze { after: MINUTE * 2 }).await;
    let delayed = stage.put(NewMessage { due: Due::In(HOUR), ..message("delayed") }).await;
    stage.clock.advance(MINUTE);
    stage.clock.jump_back(DAY * 3650);
    stage.sweep().await;
    let due_in = async |id| stage.view(id).await.due_at.map(|due_at| due_at.since(stage.now()));
    assert_eq!(due_in(snoozed.message.id).await, Some(MINUTE), "a minute of the two has passed");
    assert_eq!(due_in(delayed).await, Some(HOUR - MINUTE));
    stage.clock.advance(MINUTE);
    assert_eq!(stage.take_one().await.message.id, snoozed.message.id);
    stage.clock.advance(HOUR - MINUTE * 2);
    assert_eq!(stage.take_one().await.message.id, delayed);
}

/// What was claimed while the clock was ahead and is handed back when it is right can be claimed at once, in its place.
pub async fn a_release_after_the_clock_was_set_right_is_due_at_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    let before = stage.started("before").await;
    let after = stage.put(message("after")).await;
    stage.clock.jump_back(DAY * 3650);
    stage.sweep().await;
    stage.end(&before, Outcome::Released).await;
    let after = stage.take(2).await.into_iter().find(|lease| lease.message.id == after).expect("it was claimable");
    stage.end(&after, Outcome::Released).await;
    let again: Vec<_> = stage.take(2).await.into_iter().map(|lease| lease.message.id).collect();
    assert_eq!(again.len() + 1, 2, "what was not handed back is leased: {again:?}");
    assert_eq!(again, [after.message.id]);
}

/// What was put off before the clock went ahead, to a day beyond that, is due on that day.
pub async fn a_date_that_was_given_before_the_clock_went_ahead_stays(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let due_at = stage.now().after(DAY * 7300);
    let id = stage.put(NewMessage { due: Due::At(due_at), ..message("m") }).await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    stage.clock.jump_back(DAY * 3650);
    stage.sweep().await;
    assert_eq!(stage.view(id).await.due_at, Some(due_at));
}

/// A clock that was ahead for a while prolongs no retention by more than its caution: neither of what had ended, nor of what
/// ended meanwhile.
pub async fn a_clock_that_was_ahead_prolongs_no_retention(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let before = stage.completed("before").await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    let meanwhile = stage.completed("meanwhile").await;
    let dead = stage.dead("given-up").await;
    stage.store.discard(Discard { ids: vec![dead], act: act("not wanted") }).await.expect("a dead letter is discarded");
    stage.clock.jump_back(DAY * 3650);
    stage.sweep().await;
    for id in [meanwhile, dead] {
        assert_eq!(stage.view(id).await.ended_at, Some(stage.now()), "no time has passed since");
    }
    stage.clock.advance(DAY * 7 - HOUR);
    assert_eq!(stage.expire().await, 0, "an hour too early");
    stage.clock.advance(HOUR * 2);
    assert_eq!(stage.expire().await, 3);
    assert_eq!(stage.view_if_any(before).await, None);
}

/// Set back by half of what it was ahead, it is still ahead: what had ended before is no older for it.
pub async fn a_clock_that_is_set_half_right_deletes_nothing_early(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.completed("m").await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    stage.clock.jump_back(DAY * 1825);
    stage.sweep().await;
    stage.clock.advance(DAY * 6);
    assert_eq!(stage.expire().await, 0, "six days have passed");
}

/// A jump ahead releases at most every lease once; the fence holds.
pub async fn after_a_forward_clock_jump_the_fence_holds(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.jump_forward(DAY);
    let taken = stage.sweep().await.taken_over.len();
    let late = stage.settle(settlement(&lease, completed())).await;
    match taken {
        0 => assert!(late.is_ok(), "not taken over, so it is still held"),
        _ => assert_eq!(refused(late), StoreErrorKind::LeaseLost),
    }
}

/// A retry is due when it is due, with or without a sweep.
pub async fn a_sweep_makes_due_messages_claimable(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.end(&lease, Outcome::Snooze { after: MINUTE }).await;
    assert_eq!(stage.sweep().await.promoted, 0);
    stage.clock.advance(MINUTE);
    stage.sweep().await;
    let view = stage.view(lease.message.id).await;
    assert_eq!((view.state, view.due_at), (State::Ready, Some(stage.now())));
    assert_eq!(stage.queue_stats("work").await.ready, 1);
    stage.take_one().await;
}

/// An effect that was decided before the crash leaves nothing to reconcile.
pub async fn a_crash_after_a_decided_effect_is_an_ordinary_crash(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &row, EffectAnswer::NotDone).await;
    assert_eq!(stage.crash().await.taken_over[0].state, State::Ready);
    let again = stage.take_one().await;
    assert_eq!((again.reconciling, again.counters.attempt), (false, 2));
    assert_eq!(stage.store.stats().await.map(|stats| stats.open_effects), Ok(0));
    assert_eq!(again.due_at.since(lease.due_at), LEASE + MILLI + Duration::ZERO);
}
