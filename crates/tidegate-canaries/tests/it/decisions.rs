//! The decisions of the core, alone: the invariants stated over everything that can come before them. No store, no time.

use std::time::Duration;

use tidegate_core::effect::{
    self, Decision, EffectAnswer, EffectId, EffectKey, EffectPolicy, EffectRow, EffectState, Fate, IntentTimes,
    JournalFacts, Reached,
};
use tidegate_core::lifecycle::{self, Admission, Counters, Facts, Next, Outcome, ParkReason, Resolution, State};
use tidegate_core::message::{Failure, Message, Priority};
use tidegate_core::retry::{Backoff, Policy};
use tidegate_core::{EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, Timestamp};
use tidegate_testkit::SeededRandom;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TIMES: IntentTimes = IntentTimes { send_within: Duration::from_secs(30), reconcile_for: DAY };

fn at(hours: u32) -> Timestamp {
    Timestamp::from_millis(1_000_000_000_000).after(HOUR * hours)
}

fn message(queue: &str) -> Message {
    Message {
        id: MessageId::from_i64(1),
        tenant: Tenant::default(),
        queue: QueueName::new(queue).unwrap(),
        kind: Kind::new("work").unwrap(),
        version: 1,
        key: IdempotencyKey::new("deposit-1").unwrap(),
        payload: "{}".into(),
        priority: Priority::default(),
        enqueued_at: at(0),
        first_due_at: at(0),
        deadline: None,
        expires_at: at(72),
        flow: MessageId::from_i64(1),
        parent: None,
        headers: std::collections::BTreeMap::new(),
    }
}

fn effect_id(name: &str) -> EffectId {
    EffectId { name: EffectName::new(name).unwrap(), item: None }
}

fn reached(policy: EffectPolicy) -> Reached {
    Reached { effect: effect_id("charge"), policy, request_hash: [1; 16], quarantine: MINUTE * 2 }
}

fn keyed() -> EffectPolicy {
    EffectPolicy::Keyed { window: HOUR * 2, or_lookup: false }
}

fn token(claims: u32) -> LeaseToken {
    LeaseToken { claims, nonce: Nonce::new(&SeededRandom::new(u64::from(claims))) }
}

/// The row of a first intent at hour 0.
fn intended(policy: EffectPolicy) -> EffectRow {
    effect::intend(&message("work"), &[], &reached(policy), TIMES, token(1), 0, at(0)).unwrap()
}

fn unknown(row: EffectRow) -> EffectRow {
    EffectRow { state: EffectState::Unknown { why: "time-out".into() }, ..row }
}

fn facts(open: Vec<Fate>) -> Facts {
    Facts {
        counters: Counters { claims: 1, attempt: 1, ..Counters::default() },
        journal: JournalFacts { intents: !open.is_empty(), open, ..JournalFacts::default() },
        due_at: at(0),
        deadline: None,
        expires_at: at(72),
        cancel_requested: false,
        reconciling: false,
        suspect: false,
        alone: false,
    }
}

fn failure() -> Failure {
    Failure::new("oops", "it broke")
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Completed { result: "1".into(), orphans: false },
        Outcome::Completed { result: "1".into(), orphans: true },
        Outcome::Permanent { failure: failure(), compensated: false, orphans: false },
        Outcome::Permanent { failure: failure(), compensated: true, orphans: false },
        Outcome::Retryable { failure: failure(), after: None },
        Outcome::NotDone { failure: failure(), after: None },
        Outcome::Unknown { failure: failure() },
        Outcome::Snooze { after: HOUR * 100 },
        Outcome::Park { reason: ParkReason::EffectChanged, failure: failure() },
        Outcome::Exhausted { failure: failure() },
        Outcome::Undecodable { failure: failure() },
        Outcome::Refused { failure: failure() },
        Outcome::Released,
        Outcome::LeaseExpired,
    ]
}

#[test]
fn no_end_of_a_run_is_terminal_while_an_effect_is_open() {
    let policy = Policy { max_attempts: 1, crash_limit: 1, ..Policy::default() };
    for fate in [Fate::Reconcile { not_before: at(1) }, Fate::Park(ParkReason::OutcomeUnknown)] {
        for outcome in outcomes() {
            for now in [at(1), at(100)] {
                for wanted in [false, true] {
                    let facts = Facts { cancel_requested: wanted, alone: wanted, ..facts(vec![fate]) };
                    let next = lifecycle::settle(&facts, &outcome, &policy, now, 0.5).next;
                    assert!(!next.state().is_terminal(), "{outcome:?} beside {fate:?} became {next:?}");
                }
            }
        }
    }
}

#[test]
fn a_claim_counts_what_it_starts_and_ends_nothing_whose_effect_is_open() {
    let Admission::Start { counters, reconciling: false } = lifecycle::admit(&facts(Vec::new()), at(1)) else {
        panic!("it starts")
    };
    assert_eq!((counters.claims, counters.attempt), (2, 2));
    let open = Facts { deadline: Some(at(1)), ..facts(vec![Fate::Reconcile { not_before: at(0) }]) };
    let late = lifecycle::admit(&open, at(100));
    assert!(matches!(late, Admission::Start { reconciling: true, .. }), "{late:?}");
    assert_eq!(lifecycle::cancel(State::Ready, &open.journal), Ok(lifecycle::Cancellation::Requested));
    assert!(!lifecycle::may_release_key(&open.journal));
}

#[test]
fn an_outage_spends_no_attempt_and_a_crash_convicts_only_who_was_alone() {
    let policy = Policy { max_attempts: 1, crash_limit: 1, ..Policy::default() };
    let not_done = Outcome::NotDone { failure: failure(), after: None };
    let after = lifecycle::settle(&facts(Vec::new()), &not_done, &policy, at(1), 0.5);
    assert!(matches!(after.next, Next::Ready { .. }) && after.counters.attempt == 0, "{after:?}");
    let policy = Policy { max_attempts: 10, ..policy };
    for (alone, crashes) in [(false, 0), (true, 1)] {
        let crashed = Facts { alone, suspect: alone, ..facts(Vec::new()) };
        let after = lifecycle::settle(&crashed, &Outcome::LeaseExpired, &policy, at(1), 0.5);
        assert_eq!((after.counters.crashes, after.next.state().is_terminal()), (crashes, alone));
    }
    let used_up = Facts { counters: Counters { claims: 99, attempt: 99, ..Counters::default() }, ..facts(Vec::new()) };
    assert_eq!(lifecycle::take_over(&used_up, None, at(1), 0.5).next.state(), State::Ready, "nobody said how often");
}

#[test]
fn never_after_half_of_it_happened_is_a_dead_letter() {
    let journal = JournalFacts { confirmed: true, intents: true, ..JournalFacts::default() };
    let half = Facts { journal, ..facts(Vec::new()) };
    let never = Outcome::Permanent { failure: failure(), compensated: false, orphans: false };
    assert_eq!(lifecycle::settle(&half, &never, &Policy::default(), at(1), 0.5).next.state(), State::Dead);
}

#[test]
fn an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way() {
    let lookup = EffectPolicy::Lookup;
    let quarantine_ends = at(0).after(TIMES.send_within + MINUTE * 2);
    for (policy, hours, expected) in [
        (keyed(), 1, Decision::Send),
        (keyed(), 2, Decision::Park(ParkReason::WindowPassed)),
        (lookup, 1, Decision::LookUp { not_before: quarantine_ends }),
        (EffectPolicy::AtMostOnce, 1, Decision::Park(ParkReason::OutcomeUnknown)),
    ] {
        let row = unknown(intended(policy.clone()));
        let decision = effect::reach(&[row], &reached(policy.clone()), 0, at(hours));
        assert_eq!(decision, expected, "{policy:?} after {hours} h");
    }
    let changed = Reached { request_hash: [2; 16], ..reached(keyed()) };
    let open = [unknown(intended(keyed()))];
    assert_eq!(effect::reach(&open, &changed, 0, at(1)), Decision::Park(ParkReason::EffectChanged));
    let other = Reached { effect: effect_id("other"), ..reached(keyed()) };
    assert_eq!(effect::reach(&open, &other, 0, at(1)), Decision::Park(ParkReason::EffectOrphaned));
    let declined = EffectState::Rejected { code: "declined".into(), detail: String::new() };
    let rejected = [EffectRow { state: declined, ..intended(keyed()) }];
    let decision = effect::reach(&rejected, &reached(keyed()), 0, at(1));
    assert!(matches!(decision, Decision::ReplayRejected { .. }), "{decision:?}");
}

#[test]
fn an_effect_is_sent_under_one_key_within_one_window_however_often() {
    let first = intended(keyed());
    let open = [unknown(first.clone())];
    let again = effect::intend(&message("work"), &open, &reached(keyed()), TIMES, token(2), 0, at(1)).unwrap();
    assert_eq!((&again.key, again.valid_until, again.sends), (&first.key, first.valid_until, 2));
    let not_done = [EffectRow { state: EffectState::NotDone, ..first.clone() }];
    let anew = effect::intend(&message("work"), &not_done, &reached(keyed()), TIMES, token(3), 0, at(1)).unwrap();
    assert_eq!((anew.seq, &anew.key), (1, &first.key));
    let elsewhere = EffectKey::of(&message("next"), &effect_id("charge"), 0);
    assert_ne!(EffectKey::of(&message("work"), &effect_id("charge"), 0), elsewhere);
}

#[test]
fn that_nothing_happened_is_believed_only_of_a_single_send_or_after_the_quarantine() {
    let resent = EffectRow { sends: 2, ..intended(keyed()) };
    let state = effect::answered(&resent, &EffectAnswer::NotDone, at(1)).unwrap();
    assert!(state.is_open(), "{state:?}");
    let row = unknown(intended(EffectPolicy::Lookup));
    let early = at(0).after(TIMES.send_within + MINUTE);
    assert!(effect::answered(&row, &EffectAnswer::NotFound, early).is_err());
    let resolved = lifecycle::resolve(&row, ParkReason::OutcomeUnknown, &Resolution::DidNotHappen, early);
    assert!(resolved.is_err(), "{resolved:?}");
    assert_eq!(effect::answered(&row, &EffectAnswer::NotFound, at(1)).unwrap(), EffectState::NotDone);
}

#[test]
fn what_is_parked_is_resolved_and_not_redriven() {
    let open = JournalFacts { open: vec![Fate::Park(ParkReason::OutcomeUnknown)], intents: true, ..Default::default() };
    let how = lifecycle::Redriving { again: true, compensated: false };
    assert!(lifecycle::redrive(State::Parked, Counters::default(), &open, how).is_err());
}

#[test]
fn what_a_remote_asks_for_is_a_floor() {
    let backoff = Backoff::default();
    assert_eq!(backoff.delay(1, Some(MINUTE), 0.0), MINUTE);
}
