use proptest::prelude::*;

use super::*;

const T0: Timestamp = Timestamp::EPOCH;
const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Timestamp {
    T0.after(SECOND * u32::try_from(seconds).unwrap())
}

fn policy() -> Policy {
    let backoff = crate::retry::Backoff { base: SECOND * 10, cap: SECOND * 1000 };
    Policy { max_attempts: 3, backoff, crash_limit: 2, ..Policy::default() }
}

fn facts() -> Facts {
    Facts {
        counters: Counters { claims: 1, attempt: 1, ..Counters::default() },
        journal: JournalFacts::default(),
        due_at: at(50),
        deadline: None,
        expires_at: at(100_000),
        cancel_requested: false,
        reconciling: false,
        suspect: false,
        alone: false,
    }
}

fn failure() -> Failure {
    Failure::new("oops", "it broke")
}

fn completed() -> Outcome {
    Outcome::Completed { result: "1".into(), orphans: false }
}

fn permanent(compensated: bool) -> Outcome {
    Outcome::Permanent { failure: failure(), compensated, orphans: false }
}

fn retryable(after: Option<Duration>) -> Outcome {
    Outcome::Retryable { failure: failure(), after }
}

fn not_done(after: Option<Duration>) -> Outcome {
    Outcome::NotDone { failure: failure(), after }
}

fn park(reason: ParkReason) -> Outcome {
    Outcome::Park { reason, failure: failure() }
}

/// Every outcome there is. The match makes a new variant fail to compile until it stands here.
fn all_outcomes() -> Vec<Outcome> {
    let all = vec![
        completed(),
        Outcome::Completed { result: "1".into(), orphans: true },
        permanent(false),
        permanent(true),
        Outcome::Permanent { failure: failure(), compensated: false, orphans: true },
        retryable(None),
        retryable(Some(SECOND * 7)),
        not_done(None),
        not_done(Some(SECOND * 7)),
        Outcome::Unknown { failure: failure() },
        Outcome::Snooze { after: SECOND * 7 },
        park(ParkReason::JournalDecode),
        Outcome::Exhausted { failure: failure() },
        Outcome::Undecodable { failure: failure() },
        Outcome::Refused { failure: failure() },
        Outcome::Released,
        Outcome::LeaseExpired,
    ];
    for outcome in &all {
        match outcome {
            Outcome::Completed { .. }
            | Outcome::Permanent { .. }
            | Outcome::Retryable { .. }
            | Outcome::NotDone { .. }
            | Outcome::Unknown { .. }
            | Outcome::Snooze { .. }
            | Outcome::Park { .. }
            | Outcome::Exhausted { .. }
            | Outcome::Undecodable { .. }
            | Outcome::Refused { .. }
            | Outcome::Released
            | Outcome::LeaseExpired => {}
        }
    }
    all
}

fn ready(seconds: u64) -> Next {
    Next::Ready { due_at: at(seconds) }
}

/// The whole table for a message with no open effect, at t = 100 s, full jitter at its ceiling (unit = 1).
#[test]
fn every_outcome_leads_where_the_table_says() {
    let last = |f: Facts| Facts { counters: Counters { claims: 9, attempt: 3, ..f.counters }, ..f };
    let confirmed = |f: Facts| Facts { journal: JournalFacts { confirmed: true, intents: true, ..f.journal }, ..f };
    let deadline = |f: Facts| Facts { deadline: Some(at(105)), ..f };
    let old = |f: Facts| Facts { expires_at: at(105), ..f };
    let aged = |f: Facts| Facts { expires_at: at(100), ..f };
    let cancel = |f: Facts| Facts { cancel_requested: true, ..f };
    let suspect = |f: Facts| Facts { suspect: true, ..f };
    let alone = |f: Facts| Facts { suspect: true, alone: true, ..f };
    let crashed = |f: Facts| Facts { counters: Counters { crashes: 1, ..f.counters }, ..f };
    let reconciling = |f: Facts| Facts { reconciling: true, ..f };
    let dead = Next::Dead;
    #[rustfmt::skip]
    let table: Vec<(Facts, Outcome, Next, u32)> = vec![
        // facts                        outcome                              next                                   attempt
        (facts(),                       completed(),                         Next::Completed,                       1),
        (cancel(facts()),               completed(),                         Next::Completed,                       1),
        (facts(),                       permanent(false),                    Next::Failed,                          1),
        (cancel(facts()),               permanent(false),                    Next::Failed,                          1),
        (confirmed(facts()),            permanent(false),                    dead(DeadReason::PermanentAfterEffect),1),
        (confirmed(facts()),            permanent(true),                     Next::Failed,                          1),
        (facts(),                       retryable(None),                     ready(110),                            1),
        (facts(),                       retryable(Some(SECOND * 7)),         ready(117),                            1),
        (last(facts()),                 retryable(None),                     dead(DeadReason::Exhausted),           3),
        (last(confirmed(facts())),      retryable(None),                     dead(DeadReason::Exhausted),           3),
        (deadline(facts()),             retryable(None),                     dead(DeadReason::Deadline),            1),
        (deadline(confirmed(facts())),  retryable(None),                     ready(110),                            1),
        (old(facts()),                  retryable(None),                     dead(DeadReason::MaxAge),              1),
        (old(confirmed(facts())),       retryable(None),                     ready(110),                            1),
        (cancel(facts()),               retryable(None),                     Next::Cancelled,                       1),
        (cancel(confirmed(facts())),    retryable(None),                     ready(110),                            1),
        (facts(),                       not_done(None),                      ready(110),                            0),
        (facts(),                       not_done(Some(SECOND * 7)),          ready(117),                            0),
        (last(facts()),                 not_done(None),                      ready(1100),                           2),
        (old(facts()),                  not_done(None),                      dead(DeadReason::MaxAge),              0),
        (facts(),                       Outcome::Snooze { after: SECOND*7 }, ready(107),                            0),
        (last(facts()),                 Outcome::Snooze { after: SECOND*7 }, ready(107),                            2),
        (deadline(facts()),             Outcome::Snooze { after: SECOND*7 }, dead(DeadReason::Deadline),            0),
        (facts(),                       park(ParkReason::JournalDecode),     Next::Parked(ParkReason::JournalDecode), 1),
        (cancel(facts()),               park(ParkReason::JournalDecode),     Next::Parked(ParkReason::JournalDecode), 1),
        (reconciling(facts()),          Outcome::Exhausted { failure: failure() }, dead(DeadReason::Exhausted),     1),
        (facts(),                       Outcome::Undecodable { failure: failure() }, dead(DeadReason::Decode),      1),
        (facts(),                       Outcome::Refused { failure: failure() }, dead(DeadReason::SettlementRefused), 1),
        (facts(),                       Outcome::Released,                   ready(50),                             0),
        (deadline(facts()),             Outcome::Released,                   ready(50),                             0),
        (cancel(facts()),               Outcome::Released,                   Next::Cancelled,                       1),
        (facts(),                       Outcome::LeaseExpired,               ready(100),                            1),
        (last(facts()),                 Outcome::LeaseExpired,               dead(DeadReason::Exhausted),           3),
        (suspect(facts()),              Outcome::LeaseExpired,               ready(100),                            0),
        (alone(facts()),                Outcome::LeaseExpired,               ready(100),                            1),
        (crashed(alone(facts())),       Outcome::LeaseExpired,               dead(DeadReason::CrashLimit),          1),
        (crashed(suspect(facts())),     Outcome::LeaseExpired,               ready(100),                            0),
        // A run that cleared up its effects went on as an attempt; cut off, it keeps what it was granted.
        (reconciling(facts()),          retryable(None),                     ready(120),                            2),
        (reconciling(last(facts())),    retryable(None),                     dead(DeadReason::Exhausted),           4),
        (reconciling(last(facts())),    Outcome::LeaseExpired,               ready(100),                            3),
        (reconciling(facts()),          not_done(None),                      ready(110),                            1),
        // Past its age it comes again only because of a confirmed effect: then what is otherwise free is counted.
        (aged(confirmed(facts())),      not_done(None),                      ready(110),                            1),
        (aged(confirmed(facts())),      Outcome::Snooze { after: SECOND*7 }, ready(107),                            1),
        (aged(confirmed(facts())),      Outcome::Released,                   ready(50),                             0),
        (last(aged(confirmed(facts()))), not_done(None),                     dead(DeadReason::Exhausted),           3),
        (last(aged(confirmed(facts()))), Outcome::Snooze { after: SECOND*7 }, dead(DeadReason::Exhausted),          3),
        (last(old(confirmed(facts()))), not_done(None),                      ready(1100),                           2),
    ];
    for (facts, outcome, next, attempt) in table {
        let transition = settle(&facts, &outcome, &policy(), at(100), 1.0);
        assert_eq!((transition.next, transition.counters.attempt), (next, attempt), "{outcome:?} given {facts:?}");
    }
}

#[test]
fn an_open_effect_turns_every_end_into_reconciling_or_parked() {
    let quarantine = Fate::Reconcile { not_before: at(500) };
    let open = |fate| Facts {
        journal: JournalFacts { open: vec![fate], intents: true, ..JournalFacts::default() },
        ..facts()
    };
    #[rustfmt::skip]
    let table = [
        (open(quarantine),                          completed(),             ready(500)),
        (open(quarantine),                          permanent(false),        ready(500)),
        (open(quarantine),                          Outcome::Unknown { failure: failure() }, ready(500)),
        (open(quarantine),                          Outcome::LeaseExpired,   ready(500)),
        (open(quarantine),                          Outcome::Released,       ready(500)),
        (open(Fate::Reconcile { not_before: T0 }),  retryable(None),         ready(110)),
        (open(Fate::Park(ParkReason::OutcomeUnknown)), completed(),          Next::Parked(ParkReason::OutcomeUnknown)),
        (open(quarantine), Outcome::Completed { result: "1".into(), orphans: true }, Next::Parked(ParkReason::EffectOrphaned)),
        (open(quarantine),                          park(ParkReason::EffectChanged), Next::Parked(ParkReason::EffectChanged)),
    ];
    for (facts, outcome, next) in table {
        let transition = settle(&facts, &outcome, &policy(), at(100), 1.0);
        assert_eq!(transition.next, next, "{outcome:?} given {:?}", facts.journal);
    }
}

#[test]
fn a_reconciling_run_is_not_counted_however_often_it_runs() {
    let mut facts = facts();
    facts.counters.attempt = 3;
    facts.journal.open = vec![Fate::Reconcile { not_before: T0 }];
    for _ in 0..50 {
        let Admission::Start { counters, reconciling: true } = admit(&facts, at(100)) else { panic!("not admitted") };
        assert_eq!(counters.attempt, 3, "beyond max_attempts and uncounted");
        let running = Facts { counters, reconciling: true, ..facts.clone() };
        let transition = settle(&running, &Outcome::Unknown { failure: failure() }, &policy(), at(100), 0.5);
        assert!(matches!(transition.next, Next::Ready { .. }));
        facts.counters = transition.counters;
    }
    assert_eq!((facts.counters.attempt, facts.counters.claims), (3, 51));
}

#[test]
fn what_is_not_counted_backs_off_by_its_claims() {
    let due = |claims| {
        let counters = Counters { claims, attempt: 1, ..Counters::default() };
        let next = settle(&Facts { counters, ..facts() }, &not_done(None), &policy(), at(100), 1.0).next;
        let Next::Ready { due_at } = next else { panic!("{next:?}") };
        due_at.since(at(100))
    };
    assert_eq!([due(1), due(2), due(5)], [SECOND * 10, SECOND * 20, SECOND * 160]);
}

#[test]
fn an_attempt_is_counted_before_it_starts_and_nothing_begins_too_late() {
    let fresh = Facts { counters: Counters::default(), ..facts() };
    let started = |counters| Admission::Start { counters, reconciling: false };
    assert_eq!(admit(&fresh, at(1)), started(Counters { claims: 1, attempt: 1, ..Counters::default() }));
    let late = Facts { deadline: Some(at(10)), ..fresh.clone() };
    assert_eq!(admit(&late, at(9)), started(Counters { claims: 1, attempt: 1, ..Counters::default() }));
    assert_eq!(admit(&late, at(10)), Admission::Dead(DeadReason::Deadline));
    assert_eq!(admit(&fresh, at(100_000)), Admission::Dead(DeadReason::MaxAge));
    let mut moved = late.clone();
    moved.journal.confirmed = true;
    assert!(matches!(admit(&moved, at(10)), Admission::Start { .. }), "waived once an effect is confirmed");
    let mut open = late;
    open.journal.open = vec![Fate::Reconcile { not_before: T0 }];
    assert!(matches!(admit(&open, at(10)), Admission::Start { reconciling: true, .. }), "suspended while one is open");
}

#[test]
fn a_cancel_request_that_had_to_wait_takes_effect_at_the_next_claim() {
    let wanted = Facts { cancel_requested: true, ..facts() };
    assert_eq!(admit(&wanted, at(1)), Admission::Cancelled);
    let mut moved = wanted;
    moved.journal.confirmed = true;
    assert!(matches!(admit(&moved, at(1)), Admission::Start { .. }));
}

#[test]
fn a_crash_makes_a_suspect_and_only_a_crash_while_alone_counts() {
    let transition = settle(&facts(), &Outcome::LeaseExpired, &policy(), at(100), 1.0);
    assert!(transition.suspect && transition.counters.crashes == 0);
    let alone = Facts { suspect: true, alone: true, ..facts() };
    let transition = settle(&alone, &Outcome::LeaseExpired, &policy(), at(100), 1.0);
    assert!(transition.suspect && transition.counters.crashes == 1);
    let transition = settle(&alone, &retryable(None), &policy(), at(100), 1.0);
    assert!(!transition.suspect, "a run that came back clears the suspicion");
    let waiting = Facts { suspect: true, ..facts() };
    assert!(settle(&waiting, &Outcome::Released, &policy(), at(100), 1.0).suspect, "released before it ran");
}

#[test]
fn cancelling_is_refused_once_something_took_effect() {
    let plain = JournalFacts::default();
    let confirmed = JournalFacts { confirmed: true, intents: true, ..JournalFacts::default() };
    let open =
        JournalFacts { open: vec![Fate::Reconcile { not_before: T0 }], intents: true, ..JournalFacts::default() };
    assert_eq!(cancel(State::Ready, &plain), Ok(Cancellation::Now));
    assert_eq!(cancel(State::Leased, &plain), Ok(Cancellation::Requested));
    assert_eq!(cancel(State::Ready, &open), Ok(Cancellation::Requested));
    for (state, journal) in [
        (State::Ready, &confirmed),
        (State::Leased, &confirmed),
        (State::Parked, &open),
        (State::Completed, &plain),
        (State::Failed, &plain),
        (State::Dead, &plain),
    ] {
        assert_eq!(cancel(state, journal).unwrap_err().kind(), crate::StoreErrorKind::Conflict, "{state}");
    }
}

#[test]
fn what_is_cancelled_already_is_told_so_again() {
    let tried = JournalFacts { intents: true, rejected: true, ..JournalFacts::default() };
    for journal in [JournalFacts::default(), tried] {
        assert_eq!(cancel(State::Cancelled, &journal), Ok(Cancellation::Now));
    }
}

#[test]
fn a_request_to_cancel_that_is_made_again_is_known_for_one() {
    use Cancellation::{Now, Requested};
    for (cancellation, state, release_key, noted, expected) in [
        (Requested, State::Leased, false, false, Before::Never),
        (Requested, State::Leased, true, false, Before::Never),
        (Requested, State::Leased, true, true, Before::Stands),
        (Requested, State::Ready, false, true, Before::Stands),
        (Now, State::Ready, false, false, Before::Never),
        // A wish that was noted before its open effect was decided is none that was carried out.
        (Now, State::Ready, true, true, Before::Never),
        (Now, State::Cancelled, false, false, Before::Stands),
        (Now, State::Cancelled, true, true, Before::IfKeyIsFree),
    ] {
        let asked = Asked { release_key, noted };
        assert_eq!(cancellation.before(state, asked), expected, "{cancellation:?} {state} {asked:?}");
    }
}

#[test]
fn the_audit_tells_what_became_of_a_request_to_cancel() {
    for (cancellation, state, release_key, expected) in [
        (Cancellation::Now, State::Ready, false, "cancelled"),
        (Cancellation::Now, State::Ready, true, "cancelled, key released"),
        (Cancellation::Requested, State::Leased, false, "requested"),
        (Cancellation::Requested, State::Ready, true, "requested, key to be released"),
        (Cancellation::Now, State::Cancelled, true, "key released"),
    ] {
        assert_eq!(cancellation.audited(state, release_key), expected);
    }
}

#[test]
fn a_key_is_not_released_once_an_effect_was_tried() {
    let id = MessageId::from_i64(7);
    check_release(id, &JournalFacts::default()).unwrap();
    let refused = check_release(id, &JournalFacts { intents: true, ..JournalFacts::default() }).unwrap_err();
    assert_eq!(refused.kind(), crate::StoreErrorKind::Conflict);
    assert!(refused.what().contains(&id.to_string()), "{refused}");
}

#[test]
fn only_what_ended_without_completing_can_be_redriven() {
    let before = Counters { claims: 7, attempt: 3, crashes: 1, generation: 1, round: 0 };
    let after = Counters { claims: 7, attempt: 0, crashes: 0, generation: 2, round: 0 };
    let how = |again| Redriving { again, compensated: false };
    let plain = JournalFacts::default();
    let tried = JournalFacts { intents: true, ..JournalFacts::default() };
    let rejected = JournalFacts { rejected: true, ..tried.clone() };
    assert_eq!(redrive(State::Dead, before, &tried, how(false)), Ok(after));
    assert_eq!(redrive(State::Dead, before, &rejected, how(false)), Ok(Counters { round: 1, ..after }));
    assert_eq!(redrive(State::Failed, before, &plain, how(true)), Ok(after));
    assert_eq!(redrive(State::Cancelled, before, &plain, how(false)), Ok(after));
    for (state, journal, again) in [
        (State::Failed, &plain, false),
        (State::Cancelled, &tried, true),
        (State::Completed, &plain, true),
        (State::Parked, &plain, true),
        (State::Leased, &plain, true),
        (State::Ready, &plain, true),
    ] {
        assert!(redrive(state, before, journal, how(again)).is_err(), "{state}");
    }
    for state in [State::Dead, State::Failed] {
        let undone = Redriving { again: true, compensated: true };
        assert!(redrive(state, before, &plain, undone).is_err(), "{state}, and undone");
    }
}

#[test]
fn only_a_dead_letter_is_edited_or_discarded() {
    let counters = Counters { claims: 7, attempt: 3, ..Counters::default() };
    assert_eq!(edit(State::Dead, counters, &[]), Ok(Counters { round: 1, ..counters }));
    assert_eq!(discard(State::Dead, &JournalFacts { confirmed: true, ..JournalFacts::default() }), Ok(()));
    for state in State::ALL.into_iter().filter(|state| *state != State::Dead) {
        assert!(edit(state, counters, &[]).is_err(), "{state}");
        assert!(discard(state, &JournalFacts::default()).is_err(), "{state}");
    }
}

#[test]
fn a_resolved_message_has_an_attempt_left() {
    let used_up = Counters { attempt: 3, ..Counters::default() };
    assert_eq!(resolved(used_up, &policy()).attempt, 2);
    assert_eq!(resolved(Counters { attempt: 1, ..used_up }, &policy()).attempt, 1);
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        (0_u64..10_000).prop_map(|s| Fate::Reconcile { not_before: at(s) }),
        proptest::sample::select(ParkReason::ALL).prop_map(Fate::Park),
    ]
}

prop_compose! {
    fn any_facts()(
        claims in 1_u32..50, attempt in 0_u32..8, crashes in 0_u32..4, confirmed: bool, intents: bool, rejected: bool,
        not_happened in proptest::option::of(0_u32..50), open in proptest::collection::vec(any_fate(), 0..3),
        cancel_requested: bool, reconciling: bool, suspect: bool,
        alone: bool, deadline in proptest::option::of(0_u64..400), expires in 0_u64..400,
    ) -> Facts {
        Facts {
            counters: Counters { claims, attempt, crashes, ..Counters::default() },
            journal: JournalFacts { open, confirmed, intents, rejected, not_happened },
            due_at: at(50),
            deadline: deadline.map(at),
            expires_at: at(expires),
            cancel_requested,
            reconciling,
            suspect,
            alone: alone && suspect,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_becomes_terminal_while_an_effect_is_open(facts in any_facts(), unit in 0.0..1.0_f64) {
        for outcome in all_outcomes() {
            let next = settle(&facts, &outcome, &policy(), at(100), unit).next;
            if !facts.journal.open.is_empty() {
                prop_assert!(!next.state().is_terminal(), "{:?} led to {:?}", outcome, next);
            }
        }
        if !facts.journal.open.is_empty() {
            let started = matches!(admit(&facts, at(100)), Admission::Start { reconciling: true, .. });
            prop_assert!(started, "an open effect is always admitted, to be cleared up");
            for state in State::ALL {
                // What is cancelled is so already; nothing can be open there.
                if state != State::Cancelled {
                    prop_assert_ne!(cancel(state, &facts.journal).ok(), Some(Cancellation::Now));
                }
                let how = Redriving { again: true, compensated: false };
                prop_assert!(redrive(state, facts.counters, &facts.journal, how).is_err());
                prop_assert!(discard(state, &facts.journal).is_err());
            }
        }
    }

    #[test]
    fn an_open_effect_that_code_cannot_decide_is_parked(facts in any_facts(), unit in 0.0..1.0_f64) {
        let must_park = facts.journal.open.iter().any(|fate| matches!(fate, Fate::Park(_)));
        for outcome in all_outcomes() {
            let next = settle(&facts, &outcome, &policy(), at(100), unit).next;
            prop_assert!(!must_park || next.state() == State::Parked, "{:?} led to {:?}", outcome, next);
        }
    }

    #[test]
    fn counters_are_bounded_and_claims_never_fall(facts in any_facts(), unit in 0.0..1.0_f64) {
        for outcome in all_outcomes() {
            let after = settle(&facts, &outcome, &policy(), at(100), unit).counters;
            prop_assert_eq!(after.claims, facts.counters.claims);
            prop_assert!(after.attempt <= facts.counters.attempt + u32::from(facts.reconciling));
            prop_assert!(after.attempt + 1 >= facts.counters.attempt);
            prop_assert!(after.crashes <= facts.counters.crashes + 1);
        }
    }

    #[test]
    fn a_ready_message_may_begin_when_it_is_due(facts in any_facts(), unit in 0.0..1.0_f64) {
        for outcome in all_outcomes() {
            // A release goes back to where it was, even if that is too late by now: the next claim says so.
            if outcome == Outcome::Released { continue }
            let transition = settle(&facts, &outcome, &policy(), at(100), unit);
            if let Next::Ready { due_at } = transition.next {
                let again = Facts { counters: transition.counters, ..facts.clone() };
                let admitted = !matches!(admit(&again, due_at), Admission::Dead(_));
                prop_assert!(admitted, "{:?}: retried only to die at {}", outcome, due_at);
            }
        }
    }
}

#[test]
fn a_take_over_makes_no_dead_letter_of_a_kind_that_nobody_declared() {
    let spent = Counters { claims: 99, attempt: 99, crashes: 99, ..Counters::default() };
    let facts = Facts { counters: spent, alone: true, ..facts() };
    let declared = take_over(&facts, Some(&policy()), at(100), 0.5);
    assert_eq!(declared.next, Next::Dead(DeadReason::CrashLimit));
    let undeclared = take_over(&facts, None, at(100), 0.5);
    assert_eq!((undeclared.next, undeclared.suspect), (Next::Ready { due_at: at(100) }, true));
}

#[test]
fn a_run_that_had_not_begun_spends_no_attempt_even_where_earlier_crashes_end_the_message() {
    let counters = Counters { claims: 4, attempt: 4, crashes: 3, ..Counters::default() };
    #[rustfmt::skip]
    let table = [
        // suspect  alone  reconciling   attempts after it
        (true,      false, false,        3),   // waited to be alone
        (false,     false, true,         4),   // cleared up, was never counted
        (true,      true,  false,        4),   // ran, and took its process with it
    ];
    for (suspect, alone, reconciling, attempts) in table {
        let facts = Facts { counters, suspect, alone, reconciling, ..facts() };
        let transition = settle(&facts, &Outcome::LeaseExpired, &policy(), at(100), 0.5);
        assert_eq!(transition.next, Next::Dead(DeadReason::CrashLimit));
        assert_eq!(
            transition.counters.attempt, attempts,
            "suspect {suspect}, alone {alone}, reconciling {reconciling}"
        );
    }
}

/// Found by the simulation, seed 201: each run that found out that the effect never happened and then lost its lease came
/// back for one more attempt than there are.
#[test]
fn what_never_happened_and_has_no_attempt_left_is_dead_however_the_run_ends() {
    let spent = Counters { claims: 9, attempt: policy().max_attempts, ..Counters::default() };
    let journal = JournalFacts { intents: true, not_happened: Some(8), ..JournalFacts::default() };
    let facts = Facts { counters: spent, reconciling: true, journal: journal.clone(), ..facts() };
    let back = [
        Outcome::LeaseExpired,
        Outcome::Released,
        Outcome::Snooze { after: Duration::from_secs(1) },
        Outcome::NotDone { failure: Failure::new("busy", ""), after: None },
    ];
    for outcome in &back {
        let transition = settle(&facts, outcome, &policy(), at(100), 0.5);
        assert_eq!(transition.next, Next::Dead(DeadReason::Exhausted), "{outcome:?}");
        assert_eq!(transition.counters.attempt, spent.attempt, "{outcome:?}: finding out is not counted");

        let left = Counters { attempt: spent.attempt - 1, ..spent };
        let goes_on = [
            ("an attempt is left", Facts { counters: left, ..facts.clone() }),
            (
                "tried by this run, after what was open had happened",
                Facts { journal: JournalFacts { not_happened: Some(9), ..journal.clone() }, ..facts.clone() },
            ),
        ];
        for (why, facts) in goes_on {
            let next = settle(&facts, outcome, &policy(), at(100), 0.5).next;
            assert_eq!(next.state(), State::Ready, "{outcome:?}: {why}");
        }
    }
    assert_eq!(take_over(&facts, Some(&policy()), at(100), 0.5).next, Next::Dead(DeadReason::Exhausted));
}

#[test]
fn what_cannot_be_read_ends_by_itself_only_without_a_journal() {
    assert_eq!(unreadable(false), Next::Dead(DeadReason::Decode));
    assert_eq!(unreadable(true), Next::Parked(ParkReason::JournalDecode));
}

/// Facts that differ in whatever a decision looks at.
fn all_facts() -> Vec<Facts> {
    let journals = [
        JournalFacts::default(),
        JournalFacts { confirmed: true, intents: true, ..JournalFacts::default() },
        JournalFacts { open: vec![Fate::Reconcile { not_before: at(200) }], intents: true, ..JournalFacts::default() },
        JournalFacts { open: vec![Fate::Park(ParkReason::OutcomeUnknown)], intents: true, ..JournalFacts::default() },
    ];
    let mut all = Vec::new();
    for journal in journals {
        for (attempt, crashes) in [(1, 0), (3, 1)] {
            for deadline in [None, Some(at(90))] {
                for cancel_requested in [false, true] {
                    let counters = Counters { claims: 5, attempt, crashes, ..Counters::default() };
                    let journal = journal.clone();
                    let one = Facts { counters, journal, deadline, cancel_requested, ..facts() };
                    all.push(Facts { suspect: true, alone: true, ..one.clone() });
                    all.push(one);
                }
            }
        }
    }
    all
}

/// From where, by which verb, to where: all that this module can decide.
fn transitions() -> std::collections::BTreeSet<(&'static str, &'static str, &'static str)> {
    let mut all = std::collections::BTreeSet::from([("–", "enqueue", "ready")]);
    let now = at(100);
    for facts in all_facts() {
        let admitted = match admit(&facts, now) {
            Admission::Start { .. } => "leased",
            Admission::Dead(_) => "dead",
            Admission::Cancelled => "cancelled",
        };
        all.insert(("ready", "claim", admitted));
        for outcome in all_outcomes().iter().filter(|outcome| **outcome != Outcome::LeaseExpired) {
            let next = settle(&facts, outcome, &policy(), now, 1.0).next;
            all.insert(("leased", "settle", next.state().as_str()));
        }
        let next = take_over(&facts, Some(&policy()), now, 1.0).next;
        all.insert(("leased", "sweep", next.state().as_str()));
        for state in State::ALL {
            let from = state.as_str();
            // Cancelling what is cancelled leads nowhere.
            if cancel(state, &facts.journal) == Ok(Cancellation::Now) && state != State::Cancelled {
                all.insert((from, "cancel", "cancelled"));
            }
            for again in [false, true] {
                let how = Redriving { again, compensated: false };
                if redrive(state, facts.counters, &facts.journal, how).is_ok() {
                    all.insert((from, "redrive", "ready"));
                }
            }
        }
    }
    // Whose open effects are all resolved becomes ready: there is nothing to decide about it.
    all.insert(("parked", "resolve", "ready"));
    all
}

#[test]
fn the_page_of_states_has_every_transition_there_is_and_no_other() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/states.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("| From | By | To |").unwrap();
    let word = |cell: &'_ str| cell.trim().trim_matches('`').to_owned();
    let mut on_page = std::collections::BTreeSet::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        for to in cells[2].split(',') {
            assert!(on_page.insert((word(cells[0]), word(cells[1]), word(to))), "twice: {row}");
        }
    }
    let there: std::collections::BTreeSet<_> =
        transitions().into_iter().map(|(from, by, to)| (from.to_owned(), by.to_owned(), to.to_owned())).collect();
    assert_eq!(on_page, there);
}

#[test]
fn the_page_of_states_names_every_state_and_says_which_are_final() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/states.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows: Vec<Vec<&str>> = (page.lines().filter(|line| line.starts_with("| `")))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for state in State::ALL {
        let named = format!("`{state}`");
        let row = rows.iter().find(|row| row[0] == named && row.len() == 4).unwrap_or_else(|| panic!("no {state}"));
        assert_eq!(row[1] == "yes", state.is_terminal(), "{state}: {row:?}");
    }
}
