//! Ending runs: what each outcome becomes, what commits with it, and repeats (protocol §3, §4, §5).

use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectPolicy, EffectState};
use tidegate_core::lifecycle::{Counters, DeadReason, Outcome, ParkReason, State};
use tidegate_core::message::{Answer, DEFAULT_MAX_PAYLOAD, NewMessage};
use tidegate_core::retry::Policy;
use tidegate_core::store::{Counted, Enqueued, JournalWrite, Lease, QueueChange, Settle};
use tidegate_core::{LeaseToken, StoreErrorKind, Timestamp};

use super::stage::*;
use crate::Engine;

/// Completed: the result is the answer, and the message is nothing a worker finds any more.
pub async fn a_completed_message_keeps_its_result(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let settled = stage.end(&lease, completed()).await;
    assert_eq!(
        (settled.state, settled.due_at, settled.reason, settled.repeated),
        (State::Completed, None, None, false)
    );
    stage.reopen().await;
    let view = stage.view(lease.message.id).await;
    assert_eq!(view.answer, Some(Answer::Completed("{\"done\": 1.50}".into())));
    assert_eq!((view.ended_at, view.lease, view.counters), (Some(stage.now()), None, lease.counters));
    stage.clock.advance(DAY);
    assert!(stage.take(10).await.is_empty() && stage.sweep().await.taken_over.is_empty());
}

/// Failed: the handler said never; its failure is the answer.
pub async fn a_permanent_failure_is_the_answer(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.failed("m").await;
    let view = stage.view(id).await;
    assert_eq!((view.state, view.answer), (State::Failed, Some(Answer::Failed(failure("declined")))));
    assert_eq!(view.failure, Some(failure("declined")));
}

async fn due_after(stage: &Stage<'_>, outcome: Outcome) -> (Option<Duration>, Counters) {
    let lease = stage.started(&format!("m-{}", stage.all().await.len())).await;
    let settled = stage.end(&lease, outcome).await;
    let view = stage.view(lease.message.id).await;
    assert_eq!((settled.state, settled.due_at), (view.state, view.due_at), "the verdict is what is stored");
    stage.cancel(lease.message.id).await.ok();
    (settled.due_at.map(|due: Timestamp| due.since(stage.now())), view.counters)
}

/// A retryable failure comes back after its backoff, above the floor the remote asked for; the attempt counts.
pub async fn a_retryable_failure_comes_back_after_its_backoff(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let counted = Counters { claims: 1, attempt: 1, ..Counters::default() };
    assert_eq!(due_after(&stage, retryable()).await, (Some(SECOND * 5), counted));
    let floor = Outcome::Retryable { failure: failure("oops"), after: Some(MINUTE) };
    assert_eq!(due_after(&stage, floor).await, (Some(SECOND * 65), counted));
    assert_eq!(due_after(&stage, unknown()).await, (Some(SECOND * 5), counted), "no effect is open: like a failure");
}

/// Not done: nothing happened, nothing is counted, and a `Retry-After` is a floor.
pub async fn not_done_counts_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let uncounted = Counters { claims: 1, attempt: 0, ..Counters::default() };
    assert_eq!(due_after(&stage, not_done()).await, (Some(SECOND * 5), uncounted));
    let floor = Outcome::NotDone { failure: failure("busy"), after: Some(MINUTE) };
    assert_eq!(due_after(&stage, floor).await, (Some(SECOND * 65), uncounted));
}

/// An outage costs no attempts: not-done runs far beyond `max_attempts` leave the message alive.
pub async fn an_outage_costs_no_attempts(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 0..20 {
        let lease = stage.take_one().await;
        assert_eq!(stage.end(&lease, not_done()).await.state, State::Ready);
        stage.clock.advance(SECOND * 1000);
    }
    assert_eq!(stage.view(id).await.counters, Counters { claims: 20, ..Counters::default() });
}

/// A snooze comes back when it asked to, and counts nothing.
pub async fn a_snooze_counts_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let uncounted = Counters { claims: 1, attempt: 0, ..Counters::default() };
    assert_eq!(due_after(&stage, Outcome::Snooze { after: MINUTE }).await, (Some(MINUTE), uncounted));
}

/// Something happened that must be gone through with, so that time no longer ends it: what was free is counted from then on.
pub async fn past_its_age_a_message_with_a_confirmed_effect_has_its_attempts_left_and_no_more(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let lease = stage.take_one().await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    assert_eq!(stage.end(&lease, not_done()).await.state, State::Ready);
    assert_eq!(stage.view(id).await.counters.attempt, 0, "in time it counts nothing");
    stage.clock.advance(DAY * 4);
    for (attempt, outcome) in [(1, not_done()), (2, Outcome::Snooze { after: MINUTE }), (3, not_done())] {
        let lease = stage.take_one().await;
        assert_eq!(lease.counters.attempt, attempt);
        stage.end(&lease, outcome).await;
        stage.clock.advance(HOUR);
    }
    assert_eq!(stage.end_of(id).await, (State::Dead, Some(DeadReason::Exhausted.to_string())));
}

/// A release on drain counts nothing and keeps `due_at` and the head position.
pub async fn a_release_goes_back_to_the_head_and_counts_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.put(message("first")).await;
    stage.clock.advance(SECOND);
    stage.put(message("second")).await;
    let lease = stage.take_one().await;
    stage.clock.advance(SECOND);
    let settled = stage.end(&lease, Outcome::Released).await;
    assert_eq!((settled.state, settled.due_at), (State::Ready, Some(lease.due_at)));
    assert_eq!(stage.view(first).await.counters.attempt, 0);
    assert_eq!(stage.take_one().await.message.id, first, "before what came later");
}

/// Attempts are bounded.
pub async fn a_message_that_used_up_its_attempts_is_dead(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    for attempt in 1..=3 {
        let lease = stage.take_one().await;
        assert_eq!(lease.counters.attempt, attempt);
        stage.end(&lease, retryable()).await;
        stage.clock.advance(HOUR);
    }
    let view = stage.view(id).await;
    assert_eq!(
        (view.state, view.reason.as_deref(), view.failure),
        (State::Dead, Some("exhausted"), Some(failure("oops")))
    );
    assert_eq!(view.answer, None, "dead is no answer");
    assert!(stage.take(10).await.is_empty());
}

/// A kind nobody declared has the default policy.
pub async fn a_kind_without_a_policy_has_the_default_one(engine: &dyn Engine) {
    let stage = Stage::without_policy(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 1..Policy::default().max_attempts {
        let lease = stage.take_one().await;
        assert_eq!(stage.end(&lease, retryable()).await.state, State::Ready);
        stage.clock.advance(MINUTE * 20);
    }
    let lease = stage.take_one().await;
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Dead);
    assert_eq!(stage.end_of(id).await, (State::Dead, Some("exhausted".into())));
}

/// What cannot be decoded is dead at once, never failed; so is what cannot be stored.
pub async fn undecodable_and_refused_messages_are_dead_at_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (outcome, reason) in [
        (Outcome::Undecodable { failure: failure("decode") }, "decode"),
        (Outcome::Refused { failure: failure("too_big") }, "settlement_refused"),
        (Outcome::Exhausted { failure: failure("not_found") }, "exhausted"),
    ] {
        let lease = stage.started(reason).await;
        let settled = stage.end(&lease, outcome).await;
        assert_eq!((settled.state, settled.reason), (State::Dead, Some(reason)));
        assert_eq!(stage.end_of(lease.message.id).await, (State::Dead, Some(reason.into())));
        assert_eq!(stage.tally_of(Counted::Dead, reason).await, 1);
    }
}

/// A retry beyond the deadline or the `max_age` is a dead letter now, not a wait for nothing.
pub async fn a_retry_beyond_the_deadline_is_dead_now(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let soon = Some(stage.now().after(SECOND * 5));
    for (name, message, outcome, reason) in [
        ("a", NewMessage { deadline: soon, ..message("a") }, retryable(), "deadline"),
        ("b", NewMessage { max_age: Some(SECOND * 5), ..message("b") }, retryable(), "max_age"),
        ("c", NewMessage { deadline: soon, ..message("c") }, Outcome::Snooze { after: MINUTE }, "deadline"),
        ("d", NewMessage { max_age: Some(SECOND * 5), ..message("d") }, not_done(), "max_age"),
    ] {
        stage.put(message).await;
        let lease = stage.take_one().await;
        let settled = stage.end(&lease, outcome).await;
        assert_eq!((settled.state, settled.reason), (State::Dead, Some(reason)), "{name}");
    }
}

/// A completion after the deadline is a completion: the deadline never interrupts.
pub async fn the_deadline_never_interrupts_a_run(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(NewMessage { deadline: Some(stage.now().after(SECOND)), ..message("m") }).await;
    let lease = stage.take_one().await;
    stage.clock.advance(MINUTE);
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
}

/// A run that failed is followed by the next attempt with its history.
pub async fn runs_that_did_not_complete_are_kept_as_history(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    for outcome in [retryable(), not_done(), retryable()] {
        let lease = stage.take_one().await;
        stage.end(&lease, outcome).await;
        stage.clock.advance(HOUR);
    }
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    let history = stage.view(id).await.history;
    let told: Vec<_> = history.iter().map(|e| (e.outcome.as_str(), e.attempt, e.state, e.code.as_str())).collect();
    assert_eq!(
        told,
        [
            ("retryable", 1, State::Ready, "oops"),
            ("not_done", 1, State::Ready, "busy"),
            ("retryable", 2, State::Ready, "oops")
        ]
    );
    assert!(history.iter().all(|ending| ending.due_at.is_some() && ending.detail == "as the test wants it"));
}

/// Permanent after a confirmed effect is no failure: something happened that nobody undid.
pub async fn permanent_after_a_confirmed_effect_is_dead(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    let settled = stage.end(&lease, permanent()).await;
    assert_eq!((settled.state, settled.reason), (State::Dead, Some("permanent_after_effect")));
}

/// With a compensation it is a failure, and the compensation commits with it.
pub async fn permanent_after_a_confirmed_effect_with_a_compensation_is_failed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    let outcome = Outcome::Permanent { failure: failure("declined"), compensated: true, orphans: false };
    let settle = Settle { compensate: vec![message("undo")], ..settlement(&lease, outcome) };
    let settled = stage.settle(settle).await.expect("the lease is held");
    assert_eq!((settled.state, settled.follow_ups.len()), (State::Failed, 1));
    assert_eq!(stage.state(settled.follow_ups[0]).await, State::Ready);
}

/// A natural effect is no obstacle to a failure.
pub async fn permanent_after_a_natural_effect_is_failed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let write = JournalWrite::Natural { reached: reached("log", EffectPolicy::Natural), value: "1".into() };
    let settled = stage.settle(Settle { journal: vec![write], ..settlement(&lease, permanent()) }).await;
    assert_eq!(settled.map(|settled| settled.state), Ok(State::Failed));
}

/// The rule above all others, for every outcome and each way an effect can be open.
pub async fn nothing_becomes_terminal_while_an_effect_is_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut orphans = vec![
        Outcome::Completed { result: "1".into(), orphans: true },
        Outcome::Permanent { failure: failure("declined"), compensated: true, orphans: true },
    ];
    orphans.extend(every_outcome());
    let mut n = 0;
    for outcome in orphans {
        for (effect, answered) in [(keyed(), true), (keyed(), false), (lookup(), true), (at_most_once(), true)] {
            n += 1;
            let lease = stage.started(&format!("m{n}")).await;
            let row = stage.intend(&lease, &effect).await;
            if answered {
                stage.answer(&lease, &row, no_answer()).await;
            }
            let settle = Settle {
                then: vec![message(&format!("then{n}"))],
                compensate: vec![message(&format!("undo{n}"))],
                ..settlement(&lease, outcome.clone())
            };
            let settled = stage.settle(settle).await.expect("the lease is held");
            assert!(!settled.state.is_terminal(), "{outcome:?} with {effect:?} led to {settled:?}");
            assert!(settled.follow_ups.is_empty(), "nothing follows from what is not decided");
            let view = stage.view(lease.message.id).await;
            assert_eq!((view.state, view.answer), (settled.state, None));
            // Out of the way of the next one.
            stage.clock.advance(DAY);
            for lease in stage.take(10).await {
                let park = Outcome::Park { reason: ParkReason::EffectChanged, failure: failure("aside") };
                assert_eq!(stage.end(&lease, park).await.state, State::Parked);
            }
        }
    }
}

/// What becomes of an open effect is its policy's affair.
pub async fn an_open_effect_is_reconciled_or_parked_as_its_policy_says(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let short = |or_lookup| reached("capture", EffectPolicy::Keyed { window: SECOND * 20, or_lookup });
    let quarantined = SEND_WITHIN + QUARANTINE;
    for (name, effect, wait, expected) in [
        ("keyed", keyed(), Duration::ZERO, Ok(SECOND * 5)),
        ("lookup", lookup(), Duration::ZERO, Ok(quarantined)),
        ("past", short(false), SECOND * 20, Err("window_passed")),
        ("past-lookup", short(true), SECOND * 20, Ok(quarantined.saturating_sub(SECOND * 20))),
        ("once", at_most_once(), Duration::ZERO, Err("outcome_unknown")),
    ] {
        let lease = stage.started(name).await;
        let row = stage.intend(&lease, &effect).await;
        stage.answer(&lease, &row, no_answer()).await;
        stage.clock.advance(wait);
        let settled = stage.end(&lease, unknown()).await;
        let seen = match settled.reason {
            Some(reason) => Err(reason),
            None => Ok(settled.due_at.expect("ready").since(stage.now())),
        };
        assert_eq!(seen, expected, "{name}");
        stage.clock.advance(HOUR / 2);
        for lease in stage.take(10).await {
            let park = Outcome::Park { reason: ParkReason::EffectChanged, failure: failure("aside") };
            stage.end(&lease, park).await;
        }
    }
}

/// An open effect the run did not reach parks.
pub async fn an_open_effect_that_the_run_did_not_reach_parks(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    stage.clock.advance(MINUTE);
    let lease = stage.take_one().await;
    let settled = stage.end(&lease, Outcome::Completed { result: "1".into(), orphans: true }).await;
    assert_eq!((settled.state, settled.reason), (State::Parked, Some("effect_orphaned")));
    let view = stage.view(lease.message.id).await;
    assert_eq!((view.ended_at, view.reason.as_deref()), (Some(stage.now()), Some("effect_orphaned")));
    assert_eq!(stage.tally_of(Counted::Parked, "effect_orphaned").await, 1);
}

/// Reconciling is uncounted, goes beyond `max_attempts`, and is bounded by `reconcile_for`.
pub async fn reconciling_is_uncounted_and_ends_parked(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &lookup()).await;
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    for _ in 0..10 {
        stage.clock.advance(HOUR);
        let lease = stage.take_one().await;
        assert!(lease.reconciling && lease.counters.attempt == 1, "{:?}", lease.counters);
        assert_eq!(stage.end(&lease, unknown()).await.state, State::Ready);
    }
    stage.clock.advance(HOUR * 14);
    let lease = stage.take_one().await;
    let settled = stage.end(&lease, unknown()).await;
    assert_eq!((settled.state, settled.reason), (State::Parked, Some("reconcile_exhausted")));
}

/// Decided "confirmed", a reconciling run goes on and completes.
pub async fn a_reconciling_run_that_finds_its_effect_confirmed_goes_on(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &lookup()).await;
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    stage.clock.advance(HOUR);
    let lease = stage.take_one().await;
    stage.answer(&lease, &row, confirmed("7")).await;
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
}

/// Result, state, follow-ups and journal are one commit.
pub async fn result_state_follow_ups_and_journal_commit_together(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let settle = Settle {
        journal: vec![answer_to(&row, confirmed("7"))],
        then: vec![message("next"), NewMessage { queue: queue("elsewhere"), ..message("next") }],
        compensate: vec![message("undo")],
        ..settlement(&lease, completed())
    };
    let settled = stage.settle(settle).await.expect("the lease is held");
    assert_eq!((settled.state, settled.follow_ups.len()), (State::Completed, 2), "and no compensation");
    stage.reopen().await;
    let view = stage.view(lease.message.id).await;
    assert_eq!(view.state, State::Completed);
    assert_eq!(view.journal[0].state, EffectState::Confirmed { value: "7".into() });
    for id in &settled.follow_ups {
        let next = stage.view(*id).await;
        assert_eq!((next.state, next.message.key.as_str()), (State::Ready, "next"));
        assert_eq!((next.message.flow, next.message.parent), (lease.message.id, Some(lease.message.id)));
    }
    assert_eq!(stage.all().await.len(), 3);
    assert_eq!(stage.tally(Counted::Enqueued).await, 3, "follow-ups included");
}

/// A confirmation that rides the settlement decides: the message completes.
pub async fn a_confirmation_that_rides_the_settlement_is_applied_before_the_decision(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &at_most_once()).await;
    let settle = Settle { journal: vec![answer_to(&row, no_answer())], ..settlement(&lease, completed()) };
    assert_eq!(stage.settle(settle).await.map(|s| s.state), Ok(State::Parked), "so does a missing one");
}

/// The flow is inherited by the follow-ups of follow-ups, and ends with its last live message.
pub async fn a_flow_is_inherited_and_its_end_is_told(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.started("first").await;
    let then = |lease: &Lease, name: &str| Settle { then: vec![message(name)], ..settlement(lease, completed()) };
    stage.clock.advance(SECOND);
    assert_eq!(stage.settle(then(&first, "second")).await.map(|s| s.flow_took), Ok(None));
    let second = stage.take_one().await;
    stage.clock.advance(SECOND);
    assert_eq!(stage.settle(then(&second, "third")).await.map(|s| s.flow_took), Ok(None));
    let third = stage.take_one().await;
    assert_eq!(third.message.flow, first.message.id);
    stage.clock.advance(SECOND);
    assert_eq!(stage.end(&third, completed()).await.flow_took, Some(SECOND * 3));
}

/// A repeated settlement is answered and changes nothing: no second follow-up, no second count.
pub async fn repeating_a_settlement_is_harmless(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let settle = Settle { then: vec![message("next")], ..settlement(&lease, completed()) };
    let first = stage.settle(settle.clone()).await.expect("the lease is held");
    let before = (stage.view(lease.message.id).await, stage.stats().await.tallies);
    for unit in [0.5, 0.9] {
        let again = stage.settle(Settle { unit, ..settle.clone() }).await.expect("the same again");
        assert!(again.repeated && again.state == first.state, "{again:?}");
    }
    stage.reopen().await;
    assert!(stage.settle(settle).await.is_ok_and(|settled| settled.repeated), "also after a restart");
    assert_eq!((stage.view(lease.message.id).await, stage.stats().await.tallies), before);
    assert_eq!(stage.all().await.len(), 2);
}

/// The same holds where the message did not end.
pub async fn repeating_the_settlement_of_a_retried_parked_or_dead_message_is_harmless(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, effect, outcome) in [
        ("retried", None, retryable()),
        ("snoozed", None, Outcome::Snooze { after: HOUR }),
        ("failed", None, permanent()),
        ("dead", None, Outcome::Undecodable { failure: failure("decode") }),
        ("parked", Some(at_most_once()), unknown()),
    ] {
        let lease = stage.started(name).await;
        if let Some(effect) = effect {
            stage.intend(&lease, &effect).await;
        }
        let settle = settlement(&lease, outcome);
        let first = stage.settle(settle.clone()).await.expect("the lease is held");
        let before = stage.view(lease.message.id).await;
        let again = stage.settle(settle).await.expect("the same again");
        assert!(again.repeated, "{name}");
        assert_eq!((again.state, again.due_at, again.reason), (first.state, first.due_at, first.reason), "{name}");
        assert_eq!(stage.view(lease.message.id).await, before, "{name}");
    }
}

/// Another settlement under the same token is a conflict, and nothing changes.
pub async fn another_settlement_under_the_same_token_is_a_conflict(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.end(&lease, completed()).await;
    let before = stage.view(lease.message.id).await;
    let other = Outcome::Completed { result: "2".into(), orphans: false };
    for settle in [
        settlement(&lease, other),
        settlement(&lease, permanent()),
        Settle { then: vec![message("next")], ..settlement(&lease, completed()) },
    ] {
        assert_eq!(refused(stage.settle(settle).await), StoreErrorKind::Conflict);
    }
    assert_eq!(stage.view(lease.message.id).await, before);
    assert_eq!(stage.all().await.len(), 1);
}

/// An older token than the last is a lost lease, whatever it says.
pub async fn an_older_token_is_a_lost_lease(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let old = stage.started("m").await;
    stage.end(&old, retryable()).await;
    stage.clock.advance(HOUR);
    let new = stage.take_one().await;
    assert_eq!(refused(stage.settle(settlement(&old, retryable())).await), StoreErrorKind::LeaseLost);
    stage.end(&new, completed()).await;
    assert_eq!(refused(stage.settle(settlement(&old, retryable())).await), StoreErrorKind::LeaseLost);
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 2);
    assert_eq!(stage.state(old.message.id).await, State::Completed);
}

/// After a takeover no settlement of the old holder lands, whether the message waits, runs or has ended by then.
pub async fn after_a_takeover_no_settlement_of_the_old_holder_lands(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let old = stage.started("m").await;
    stage.crash().await;
    let late = || Settle { then: vec![message("next")], ..settlement(&old, completed()) };
    assert_eq!(refused(stage.settle(late()).await), StoreErrorKind::LeaseLost, "it waits");
    let new = stage.take_one().await;
    assert_eq!(refused(stage.settle(late()).await), StoreErrorKind::LeaseLost, "it runs");
    stage.end(&new, permanent()).await;
    assert_eq!(refused(stage.settle(late()).await), StoreErrorKind::LeaseLost, "it has ended");
    assert_eq!(stage.view(new.message.id).await.answer, Some(Answer::Failed(failure("declined"))));
    assert_eq!(stage.all().await.len(), 1, "no follow-up");
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 3);
}

/// The token is both: how often the message was claimed, and the nonce of the claim.
pub async fn a_token_with_another_nonce_or_count_settles_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let other_nonce = LeaseToken { nonce: stage.nonce(), ..lease.token };
    let other_count = LeaseToken { claims: lease.token.claims + 1, ..lease.token };
    for token in [other_nonce, other_count] {
        let forged = Settle { token, ..settlement(&lease, completed()) };
        assert_eq!(refused(stage.settle(forged).await), StoreErrorKind::LeaseLost);
    }
    assert_eq!(stage.state(lease.message.id).await, State::Leased);
    stage.end(&lease, completed()).await;
}

/// What a late settlement confirms is evidence.
pub async fn the_confirmations_of_a_late_settlement_are_kept_as_evidence(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    let late = Settle { journal: vec![answer_to(&row, confirmed("7"))], ..settlement(&lease, completed()) };
    assert_eq!(refused(stage.settle(late).await), StoreErrorKind::LeaseLost);
    let view = stage.view(lease.message.id).await;
    assert_eq!(view.journal, [row]);
    assert_eq!(view.evidence.iter().map(|e| &*e.value).collect::<Vec<_>>(), ["7"]);
}

/// A redrive makes every earlier token worthless.
pub async fn after_a_redrive_no_settlement_of_the_old_generation_lands(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let dead = settlement(&lease, Outcome::Undecodable { failure: failure("decode") });
    stage.settle(dead.clone()).await.expect("the lease is held");
    stage.redrive(lease.message.id, false).await.expect("a dead message can be redriven");
    let again = stage.take_one().await;
    assert_eq!(refused(stage.settle(dead).await), StoreErrorKind::LeaseLost);
    assert_eq!(stage.state(again.message.id).await, State::Leased);
}

/// The follow-ups of a settlement are not held back by a full queue: nothing accepted is lost half-way.
pub async fn follow_ups_are_not_held_back_by_a_full_queue(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.change_queue("work", QueueChange::Limit(Some(0))).await;
    let settle = Settle { then: vec![message("a"), message("b")], ..settlement(&lease, completed()) };
    let settled = stage.settle(settle).await.expect("the lease is held");
    assert_eq!((settled.state, settled.follow_ups.len()), (State::Completed, 2));
    assert_eq!(refused(stage.enqueue(message("c")).await), StoreErrorKind::QueueFull);
}

/// Compensations commit with failed and with dead, follow-ups with completed, and with a retry neither.
pub async fn what_follows_depends_on_what_the_message_becomes(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, outcome, follows) in [
        ("completed", completed(), Some("then")),
        ("failed", Outcome::Permanent { failure: failure("no"), compensated: true, orphans: false }, Some("undo")),
        ("dead", Outcome::Undecodable { failure: failure("decode") }, Some("undo")),
        ("retried", retryable(), None),
        ("released", Outcome::Released, None),
    ] {
        let lease = stage.started(name).await;
        let follow_up = |role: &str| vec![NewMessage { queue: queue("follow"), ..message(&format!("{role}-{name}")) }];
        let settle = Settle { then: follow_up("then"), compensate: follow_up("undo"), ..settlement(&lease, outcome) };
        let settled = stage.settle(settle).await.expect("the lease is held");
        let mut keys = Vec::new();
        for id in &settled.follow_ups {
            keys.push(stage.view(*id).await.message.key.to_string());
        }
        assert_eq!(keys, follows.map(|role| format!("{role}-{name}")).into_iter().collect::<Vec<_>>(), "{name}");
    }
}

/// A follow-up whose key is known already is the message it names, not a second one.
pub async fn a_follow_up_that_exists_already_is_not_made_twice(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let elsewhere = || NewMessage { queue: queue("elsewhere"), ..message("next") };
    let known = stage.put(elsewhere()).await;
    let lease = stage.started("m").await;
    let settle = Settle { then: vec![elsewhere()], ..settlement(&lease, completed()) };
    assert_eq!(stage.settle(settle).await.map(|s| s.state), Ok(State::Completed));
    assert_eq!(stage.all().await, [known, lease.message.id]);
}

/// A data error is isolated and turns that message into `dead(settlement_refused)`; nothing of it is half-written.
pub async fn a_settlement_that_cannot_be_stored_ends_its_message_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let elsewhere = |json| NewMessage { queue: queue("elsewhere"), payload: payload(json), ..message("taken") };
    stage.put(elsewhere("1")).await;
    for name in ["big", "taken", "good"] {
        stage.put(message(name)).await;
    }
    let leases = stage.take(3).await;
    let result = format!("\"{}\"", "x".repeat(DEFAULT_MAX_PAYLOAD)).into();
    let big = Settle {
        then: vec![message("after-big")],
        ..settlement(&leases[0], Outcome::Completed { result, orphans: false })
    };
    let taken = Settle { then: vec![message("after-taken"), elsewhere("2")], ..settlement(&leases[1], completed()) };
    let batch = vec![big, taken, settlement(&leases[2], completed())];
    let verdicts = stage.store.settle(batch).await.expect("the batch is answered");
    assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
    for lease in &leases[..2] {
        let end = stage.end_of(lease.message.id).await;
        assert_eq!(end, (State::Dead, Some("settlement_refused".into())), "{}", lease.message.key);
    }
    assert_eq!(stage.state(leases[2].message.id).await, State::Completed);
    assert_eq!(stage.all().await.len(), 4, "no follow-up of what was refused");
}

/// A compensation commits with *dead*, whatever made it so; only one that cannot be stored itself is left out.
pub async fn what_cannot_be_stored_is_compensated_all_the_same(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let elsewhere = |json| NewMessage { queue: queue("elsewhere"), payload: payload(json), ..message("taken") };
    stage.put(elsewhere("1")).await;
    let result = || format!("\"{}\"", "x".repeat(DEFAULT_MAX_PAYLOAD)).into();
    for (name, undo, enqueued) in [("good", message("undo"), true), ("taken", elsewhere("2"), false)] {
        let lease = stage.started(name).await;
        let big = Outcome::Completed { result: result(), orphans: false };
        let settle = Settle { compensate: vec![undo], ..settlement(&lease, big) };
        let settled = stage.settle(settle).await.expect("it is settled");
        assert_eq!((settled.state, settled.follow_ups.len()), (State::Dead, usize::from(enqueued)), "{name}");
        assert_eq!(stage.view(lease.message.id).await.compensated, enqueued, "{name}");
        if enqueued {
            stage.end(&stage.take_one().await, completed()).await;
        }
    }
}

/// What cannot be stored is not terminal either while an effect is open.
pub async fn a_settlement_that_cannot_be_stored_with_an_open_effect_is_not_the_end(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.intend(&lease, &at_most_once()).await;
    let result = format!("\"{}\"", "x".repeat(DEFAULT_MAX_PAYLOAD)).into();
    let settled = stage.end(&lease, Outcome::Completed { result, orphans: false }).await;
    assert_eq!(settled.state, State::Parked);
}

/// Each item of a batch has its own verdict.
pub async fn a_lost_lease_in_a_batch_of_settlements_is_refused_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lost = stage.started("lost").await;
    stage.crash().await;
    let held = stage.take_one().await;
    stage.put(message("other")).await;
    let other = stage.take_one().await;
    let batch = [&lost, &held, &other].map(|lease| settlement(lease, completed())).to_vec();
    let verdicts = stage.store.settle(batch).await.expect("the batch is answered");
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
}

/// A lapsed lease that nobody took over still settles.
pub async fn a_lapsed_lease_that_nobody_took_still_settles(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(DAY);
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
}

/// A cancel request takes effect at the end of a run that did not complete, and completion wins.
pub async fn a_cancel_request_takes_effect_at_the_end_unless_the_run_completes(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, outcome, state) in [
        ("completed", completed(), State::Completed),
        ("failed", permanent(), State::Failed),
        ("retried", retryable(), State::Cancelled),
        ("released", Outcome::Released, State::Cancelled),
    ] {
        let lease = stage.started(name).await;
        stage.cancel(lease.message.id).await.expect("a leased message can be called off");
        assert_eq!(stage.end(&lease, outcome).await.state, state, "{name}");
        assert_eq!(stage.state(lease.message.id).await, state);
    }
}

/// The journal outlives the run: the next one replays what is confirmed.
pub async fn confirmed_effects_stay_for_the_next_run(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let row = stage.answer(&lease, &row, confirmed("7")).await;
    stage.end(&lease, retryable()).await;
    stage.clock.advance(MINUTE);
    let lease = stage.take_one().await;
    assert_eq!((lease.journal, lease.reconciling), (vec![row], false));
}

/// An effect that was not done is no open effect.
pub async fn an_effect_that_was_not_done_is_not_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &row, EffectAnswer::NotDone).await;
    let settled = stage.end(&lease, not_done()).await;
    assert_eq!((settled.state, settled.reason), (State::Ready, None));
    stage.clock.advance(HOUR);
    assert!(!stage.take_one().await.reconciling);
}

/// The key of what ended stays known: an enqueue by the same key replays and makes no second run.
pub async fn a_settled_key_stays_known(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let settle = Settle { then: vec![message("next")], ..settlement(&lease, completed()) };
    let follow_up = stage.settle(settle).await.expect("the lease is held").follow_ups[0];
    let known = stage.enqueue(message("next")).await;
    assert_eq!(known, Ok(Enqueued::Existing { id: follow_up, state: State::Ready, ignored: vec![] }));
}

/// A handler that puts a number into its codes makes no row, and no series of a metric, for each.
pub async fn codes_beyond_the_first_hundred_are_counted_together(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for n in 0..105 {
        stage.put(message(&format!("m{n}"))).await;
    }
    for (n, lease) in stage.take(105).await.iter().enumerate() {
        let failure = failure(&format!("code-{n}"));
        stage.end(lease, Outcome::Retryable { failure, after: None }).await;
    }
    let stats = stage.stats().await;
    let codes: Vec<_> = stats.tallies.iter().filter(|tally| tally.what == Counted::Failures).collect();
    assert_eq!((codes.len(), codes.iter().map(|tally| tally.n).sum::<u64>()), (101, 105));
    assert_eq!(stage.tally_of(Counted::Failures, "other").await, 5);
    assert_eq!(stage.tally_of(Counted::Failures, "code-0").await, 1, "the first ones keep their names");
}

/// A settlement that was long in coming changes nothing of what a successor makes of the message, whatever that is: no
/// state, no answer, no history, nothing that follows.
pub async fn a_delayed_settlement_never_overwrites_a_successor(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (n, outcome) in every_outcome().into_iter().enumerate() {
        let delayed = stage.started(&format!("m{n}")).await;
        stage.crash().await;
        let successor = stage.take_one().await;
        let id = successor.message.id;
        for settled in [false, true] {
            if settled {
                stage.end(&successor, outcome.clone()).await;
            }
            let (before, all) = (stage.view(id).await, stage.all().await.len());
            for late in [completed(), permanent(), retryable(), Outcome::Released] {
                let (then, compensate) = (vec![message("next")], vec![message("back")]);
                let late = Settle { then, compensate, ..settlement(&delayed, late) };
                assert_eq!(refused(stage.settle(late).await), StoreErrorKind::LeaseLost, "{outcome:?}");
            }
            assert_eq!((stage.view(id).await, stage.all().await.len()), (before, all), "{outcome:?}");
        }
        // What became ready again must not be in the way of the next one.
        stage.cancel(id).await.ok();
    }
}

/// A worker that comes back under the name of one that is gone has leases of its own: none of its namesake's writes count.
pub async fn reuse_of_a_workers_name_lets_no_stale_settlement_in(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let (first, second) = (stage.request(1), stage.request(1));
    assert_eq!(first.worker, second.worker);
    let stale = stage.claim(&first).await.leases.remove(0);
    stage.crash().await;
    let lease = stage.claim(&second).await.leases.remove(0);
    assert!(
        stage.claim(&first).await.leases.is_empty(),
        "the claim of its namesake, repeated, gets nothing of its own"
    );
    let before = stage.view(id).await;
    for outcome in [completed(), retryable(), Outcome::Released] {
        assert_eq!(refused(stage.settle(settlement(&stale, outcome)).await), StoreErrorKind::LeaseLost);
    }
    assert_eq!(refused(stage.extend(id, stale.token).await), StoreErrorKind::LeaseLost);
    assert_eq!(refused(stage.journal(&stale, intent(&keyed())).await), StoreErrorKind::LeaseLost);
    assert_eq!(stage.view(id).await, before);
    stage.end(&lease, completed()).await;
    assert_eq!(refused(stage.settle(settlement(&stale, completed())).await), StoreErrorKind::LeaseLost);
}

/// After a takeover the old holder neither settles nor extends, whatever the takeover made of the message, and every such
/// write is counted.
pub async fn settlement_and_extension_after_a_takeover_are_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut late_writes = 0;
    let mut refuses = async |old: &Lease| {
        let before = stage.view(old.message.id).await;
        assert_eq!(refused(stage.settle(settlement(old, completed())).await), StoreErrorKind::LeaseLost);
        assert_eq!(refused(stage.extend(old.message.id, old.token).await), StoreErrorKind::LeaseLost);
        assert_eq!(stage.view(old.message.id).await, before);
        late_writes += 2;
        assert_eq!(stage.tally(Counted::RejectedLateWrites).await, late_writes);
        before.state
    };
    let old = stage.started("m").await;
    stage.crash().await;
    assert_eq!(refuses(&old).await, State::Ready);
    let new = stage.take_one().await;
    assert_eq!(refuses(&old).await, State::Leased);
    stage.end(&new, completed()).await;
    assert_eq!(refuses(&old).await, State::Completed);
    let old = stage.started("parked").await;
    stage.intend(&old, &at_most_once()).await;
    stage.crash().await;
    assert_eq!(refuses(&old).await, State::Parked);
    stage.declare("work", Policy { max_attempts: 1, ..Stage::policy() }).await;
    let old = stage.started("dead").await;
    stage.crash().await;
    assert_eq!(refuses(&old).await, State::Dead);
}

/// What goes back to its queue is found by whoever asks when it is due: by a handle that had looked past its place before,
/// without a sweep, and after a restart.
pub async fn no_retry_is_stranded(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let again = [retryable(), not_done(), unknown(), Outcome::Snooze { after: SECOND }, Outcome::Released];
    for (n, outcome) in again.into_iter().enumerate() {
        let lease = stage.started(&format!("m{n}")).await;
        let other = stage.other_handle().await;
        // Both handles have been further along the queue than where the message goes back to.
        for (name, store) in [("a", &stage.store), ("b", &other)] {
            stage.clock.advance(SECOND);
            stage.put(message(&format!("{name}{n}"))).await;
            let ahead = store.claim(stage.request(10)).await.expect("answered").leases;
            assert_eq!(ahead.len(), 1, "{outcome:?}");
            stage.end(&ahead[0], completed()).await;
            assert!(store.claim(stage.request(10)).await.expect("answered").leases.is_empty());
        }
        let due = stage.end(&lease, outcome.clone()).await.due_at.expect("it is ready again");
        stage.clock.advance(due.since(stage.now()));
        let store = if n % 2 == 0 { other } else { stage.store.clone() };
        let found = store.claim(stage.request(10)).await.expect("answered").leases;
        assert_eq!(found.iter().map(|l| l.message.id).collect::<Vec<_>>(), [lease.message.id], "{outcome:?}");
        stage.end(&found[0], retryable()).await;
        stage.reopen().await;
        stage.clock.advance(HOUR);
        let found = stage.take_one().await;
        assert_eq!(found.message.id, lease.message.id, "{outcome:?}");
        stage.end(&found, completed()).await;
    }
}
