//! The journal of a running message: intents before a send, answers after it, and what comes too late (protocol §3).

use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectKey, EffectPolicy, EffectRow, EffectState, Reached};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{ClaimRequest, Counted, Journal, JournalWrite, Lease, MOST_EVIDENCE, QueueSlots, Settle};
use tidegate_core::{LeaseToken, StoreErrorKind};

use super::stage::*;
use crate::Engine;

/// An intent is durable, with all that any process needs to decide about it without the handler's code.
pub async fn an_intent_is_stored_with_everything_needed_to_decide_about_it(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let now = stage.now();
    let expected = EffectRow {
        effect: effect_id("capture"),
        seq: 0,
        policy: EffectPolicy::Keyed { window: HOUR, or_lookup: false },
        key: EffectKey::of(&lease.message, &effect_id("capture"), 0),
        request_hash: [1; 16],
        round: 0,
        token: lease.token,
        sends: 1,
        first_intent_at: now,
        last_possible_send: now.after(SEND_WITHIN),
        valid_until: Some(now.after(HOUR)),
        quarantine: QUARANTINE,
        reconcile_until: now.after(HOUR),
        state: EffectState::Intent,
    };
    assert_eq!(row, expected);
    stage.reopen().await;
    assert_eq!(stage.view(lease.message.id).await.journal, [expected]);
}

/// Each of the four answers leaves its state.
pub async fn each_answer_leaves_its_state(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, answer, state) in [
        ("yes", confirmed("{\"id\":7}"), EffectState::Confirmed { value: "{\"id\":7}".into() }),
        ("no", rejected(), EffectState::Rejected { code: "declined".into(), detail: "no funds".into() }),
        ("not", EffectAnswer::NotDone, EffectState::NotDone),
        ("what", no_answer(), EffectState::Unknown { why: "time-out".into() }),
    ] {
        let lease = stage.started(name).await;
        let intended = stage.intend(&lease, &keyed()).await;
        let answered = stage.answer(&lease, &intended, answer).await;
        assert_eq!(answered, EffectRow { state, ..intended });
        assert_eq!(stage.view(lease.message.id).await.journal, [answered]);
    }
}

/// Only what has no answer is open.
pub async fn open_effects_are_counted(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    assert_eq!(stage.stats().await.open_effects, 0);
    let row = stage.intend(&lease, &keyed()).await;
    assert_eq!(stage.stats().await.open_effects, 1);
    let row = stage.answer(&lease, &row, no_answer()).await;
    assert_eq!(stage.stats().await.open_effects, 1);
    stage.answer(&lease, &row, confirmed("1")).await;
    assert_eq!(stage.stats().await.open_effects, 0);
}

/// After a takeover no write of the old token lands, and each is counted.
pub async fn after_a_takeover_nothing_is_written_under_the_old_token(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    for write in [intent(&reached("other", EffectPolicy::Lookup)), answer_to(&row, rejected())] {
        assert_eq!(refused(stage.journal(&lease, write).await), StoreErrorKind::LeaseLost);
    }
    let view = stage.view(lease.message.id).await;
    assert_eq!(view.journal, [row]);
    assert!(view.evidence.is_empty(), "only a confirmation is evidence");
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 2);
}

/// The token is both: how often the message was claimed, and the nonce of the claim.
pub async fn nothing_is_written_under_a_token_with_another_nonce_or_count(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let old = stage.started("m").await;
    let row = stage.intend(&old, &keyed()).await;
    stage.crash().await;
    stage.clock.advance(HOUR * 2);
    let lease = stage.take_one().await;
    let other_nonce = LeaseToken { nonce: stage.nonce(), ..lease.token };
    for token in [old.token, other_nonce] {
        let forged = Lease { token, ..lease.clone() };
        for write in [intent(&keyed()), answer_to(&row, no_answer()), answer_to(&row, confirmed("1"))] {
            assert_eq!(refused(stage.journal(&forged, write).await), StoreErrorKind::LeaseLost);
        }
    }
    assert_eq!(stage.view(lease.message.id).await.journal, [row]);
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 6);
}

/// The remote must know the same effect again, whoever sends it.
pub async fn an_effect_has_one_key_over_all_attempts_and_generations(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.started("m").await;
    let row = stage.intend(&first, &keyed()).await;
    stage.answer(&first, &row, no_answer()).await;
    stage.end(&first, unknown()).await;
    stage.clock.advance(MINUTE * 10);
    let second = stage.take_one().await;
    let resent = stage.intend(&second, &keyed()).await;
    assert_eq!((resent.sends, &resent.key), (2, &row.key), "another attempt");
    let decided = stage.answer(&second, &resent, rejected()).await;
    assert!(!decided.state.is_open());
    stage.end(&second, Outcome::Undecodable { failure: failure("decode") }).await;
    stage.redrive(second.message.id, false).await.expect("a dead message is redriven");
    let third = stage.take_one().await;
    let other = stage.intend(&third, &reached("notify", EffectPolicy::Lookup)).await;
    assert_eq!(other.key, EffectKey::of(&first.message, &effect_id("notify"), third.counters.round));
    let not_done = stage.answer(&third, &other, EffectAnswer::NotDone).await;
    assert_eq!(not_done.state, EffectState::NotDone);
    stage.end(&third, Outcome::Undecodable { failure: failure("decode") }).await;
    stage.redrive(third.message.id, false).await.expect("a dead message is redriven");
    let fourth = stage.take_one().await;
    let again = stage.intend(&fourth, &reached("notify", EffectPolicy::Lookup)).await;
    assert_eq!((again.seq, &again.key), (1, &other.key), "another generation");
}

/// The same deposit id on two step queues is two keys, of the store and of the remote.
pub async fn one_message_key_on_two_queues_makes_two_effect_keys(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut keys = Vec::new();
    for name in ["work", "other"] {
        stage.put(NewMessage::new(queue(name), kind("work"), key("m"), payload("1"))).await;
        let queues = vec![QueueSlots { queue: queue(name), slots: 1 }];
        let lease = stage.claim(&ClaimRequest { queues, ..stage.request(1) }).await.leases.remove(0);
        keys.push(stage.intend(&lease, &keyed()).await.key);
    }
    assert_ne!(keys[0], keys[1]);
}

/// A late confirmation is not applied, but kept as evidence.
pub async fn a_late_confirmation_is_kept_as_evidence_and_not_applied(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    let arrived = stage.now();
    let late = stage.journal(&lease, answer_to(&row, confirmed("\"ch_1\""))).await;
    assert_eq!(refused(late), StoreErrorKind::LeaseLost);
    let view = stage.view(lease.message.id).await;
    assert_eq!(view.journal[0].state, EffectState::Intent, "not applied");
    let evidence: Vec<_> = view.evidence.iter().map(|e| (e.at, e.effect.clone(), &*e.value)).collect();
    assert_eq!(evidence, [(arrived, effect_id("capture"), "\"ch_1\"")]);
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 1);
}

/// The same confirmation again says nothing new, and what a worker that lost its lease can say is bounded: of each effect
/// the first and the latest are kept.
pub async fn late_evidence_is_kept_once_and_of_an_effect_the_first_and_the_latest(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    let arrived = stage.now();
    for value in ["1", "1", "2", "1"] {
        let late = Journal {
            id: lease.message.id,
            token: lease.token,
            before: vec![answer_to(&row, confirmed(value))],
            write: answer_to(&row, confirmed(value)),
        };
        assert_eq!(refused(only(stage.store.journal(vec![late]).await)), StoreErrorKind::LeaseLost);
        stage.clock.advance(MILLI);
    }
    let settle = Settle { journal: vec![answer_to(&row, confirmed("2"))], ..settlement(&lease, completed()) };
    assert_eq!(refused(stage.settle(settle).await), StoreErrorKind::LeaseLost);
    let values = async || -> Vec<String> {
        stage
            .view(lease.message.id)
            .await
            .evidence
            .iter()
            .map(|late| format!("{}={}", late.effect, late.value))
            .collect()
    };
    assert_eq!(values().await, ["capture=1", "capture=2"]);
    assert_eq!(stage.view(lease.message.id).await.evidence[0].at, arrived, "when it was first said");
    let other = JournalWrite::Answer { effect: effect_id("notify"), seq: 0, answer: confirmed("1") };
    assert_eq!(refused(stage.journal(&lease, other).await), StoreErrorKind::LeaseLost);
    let many = MOST_EVIDENCE + 3;
    for value in 3..=many {
        let late = stage.journal(&lease, answer_to(&row, confirmed(&value.to_string()))).await;
        assert_eq!(refused(late), StoreErrorKind::LeaseLost);
    }
    let mut kept = values().await;
    kept.sort_by_key(|value| (value.starts_with("notify"), value.len(), value.clone()));
    let latest = (many - MOST_EVIDENCE + 2..=many).map(|value| format!("capture={value}"));
    let expected: Vec<_> = ["capture=1".to_owned()].into_iter().chain(latest).chain(["notify=1".to_owned()]).collect();
    assert_eq!(kept, expected);
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 4 + 1 + 1 + (many as u64 - 2), "all are counted");
}

/// A confirmation that was to be written before another row is evidence all the same.
pub async fn a_late_confirmation_among_other_writes_is_evidence_too(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    let journal = Journal {
        id: lease.message.id,
        token: lease.token,
        before: vec![answer_to(&row, confirmed("1"))],
        write: intent(&reached("other", EffectPolicy::Lookup)),
    };
    assert_eq!(refused(only(stage.store.journal(vec![journal]).await)), StoreErrorKind::LeaseLost);
    let view = stage.view(lease.message.id).await;
    assert_eq!((view.journal.len(), view.evidence.len()), (1, 1));
}

/// A new intent requires an unlapsed lease; an answer to an old one does not.
pub async fn a_lapsed_lease_may_answer_but_not_intend(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.clock.advance(LEASE + MILLI);
    stage.answer(&lease, &row, confirmed("1")).await;
    let next = reached("notify", EffectPolicy::AtMostOnce);
    assert_eq!(refused(stage.journal(&lease, intent(&next)).await), StoreErrorKind::LeaseLost);
    stage.extend(lease.message.id, lease.token).await.expect("nobody took it");
    stage.intend(&lease, &next).await;
}

/// The deadline refuses a new effect; one that is open is cleared up, and after a confirmed one the rest must follow.
pub async fn after_the_deadline_no_effect_begins_unless_one_is_open_or_confirmed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut leases = Vec::new();
    for name in ["nothing", "open", "confirmed", "natural"] {
        stage.put(NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message(name) }).await;
        leases.push(stage.take_one().await);
    }
    let [nothing, open, confirmed_one, natural_one] = leases.try_into().expect("four messages were claimed");
    stage.intend(&open, &keyed()).await;
    let row = stage.intend(&confirmed_one, &keyed()).await;
    stage.answer(&confirmed_one, &row, confirmed("1")).await;
    let natural = JournalWrite::Natural { reached: reached("stamp", EffectPolicy::Natural), value: "1".into() };
    stage.journal(&natural_one, natural).await.expect("nothing forbids it");

    stage.clock.advance(MINUTE);
    for lease in [&nothing, &open, &confirmed_one, &natural_one] {
        stage.extend(lease.message.id, lease.token).await.expect("nobody took it");
    }
    let next = reached("notify", EffectPolicy::AtMostOnce);
    assert_eq!(refused(stage.journal(&nothing, intent(&next)).await), StoreErrorKind::Conflict);
    assert_eq!(refused(stage.journal(&natural_one, intent(&next)).await), StoreErrorKind::Conflict);
    assert_eq!(stage.intend(&open, &keyed()).await.sends, 2);
    stage.intend(&confirmed_one, &next).await;
}

/// Nothing new begins beside an effect that may have happened.
pub async fn no_new_effect_begins_while_another_is_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let next = reached("notify", EffectPolicy::AtMostOnce);
    assert_eq!(refused(stage.journal(&lease, intent(&next)).await), StoreErrorKind::Conflict);
    stage.answer(&lease, &row, rejected()).await;
    stage.intend(&lease, &next).await;
}

/// A confirmation may share the commit of the next intent.
pub async fn a_confirmation_rides_the_next_intent(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let next = reached("notify", EffectPolicy::AtMostOnce);
    let journal = Journal {
        id: lease.message.id,
        token: lease.token,
        before: vec![answer_to(&row, confirmed("1"))],
        write: intent(&next),
    };
    let second = only(stage.store.journal(vec![journal]).await).expect("the first is decided");
    assert_eq!((second.effect.clone(), second.state.clone()), (effect_id("notify"), EffectState::Intent));
    let mut rows = stage.view(lease.message.id).await.journal;
    rows.sort_by(|a, b| a.effect.cmp(&b.effect));
    assert_eq!(rows, [EffectRow { state: EffectState::Confirmed { value: "1".into() }, ..row }, second]);
}

/// A write that is refused takes what was to be written before it along.
pub async fn a_write_and_what_comes_before_it_are_written_together_or_not_at_all(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let journal = Journal {
        id: lease.message.id,
        token: lease.token,
        before: vec![answer_to(&row, no_answer())],
        write: intent(&reached("notify", EffectPolicy::AtMostOnce)),
    };
    assert_eq!(refused(only(stage.store.journal(vec![journal]).await)), StoreErrorKind::Conflict);
    assert_eq!(stage.view(lease.message.id).await.journal, [row]);
}

/// A decided row takes no other answer.
pub async fn a_decided_effect_takes_no_other_answer(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let row = stage.answer(&lease, &row, confirmed("1")).await;
    for answer in [confirmed("2"), rejected(), EffectAnswer::NotDone, no_answer()] {
        assert_eq!(refused(stage.journal(&lease, answer_to(&row, answer)).await), StoreErrorKind::Conflict);
    }
    assert_eq!(stage.view(lease.message.id).await.journal, [row]);
}

/// The reply to an answer may be lost: the same again is answered with the row.
pub async fn the_same_answer_again_is_answered_with_the_row(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, answer) in [("yes", confirmed("1")), ("no", rejected()), ("not", EffectAnswer::NotDone)] {
        let lease = stage.started(name).await;
        let row = stage.intend(&lease, &keyed()).await;
        let row = stage.answer(&lease, &row, answer.clone()).await;
        assert_eq!(stage.journal(&lease, answer_to(&row, answer)).await, Ok(row.clone()), "{name}");
        assert_eq!(stage.view(lease.message.id).await.journal, [row]);
    }
}

/// An answer to an effect nobody intended is refused.
pub async fn an_answer_without_an_intent_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let write = JournalWrite::Answer { effect: effect_id("capture"), seq: 0, answer: confirmed("1") };
    let kind = refused(stage.journal(&lease, write).await);
    assert!(matches!(kind, StoreErrorKind::Conflict | StoreErrorKind::NotFound | StoreErrorKind::Invalid), "{kind:?}");
    assert!(stage.view(lease.message.id).await.journal.is_empty());
}

/// A confirmed effect is not sent again, whatever changed in the code.
pub async fn a_confirmed_effect_is_never_intended_again(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    for again in [keyed(), Reached { request_hash: [2; 16], ..lookup() }] {
        assert_eq!(refused(stage.journal(&lease, intent(&again)).await), StoreErrorKind::Conflict);
    }
}

/// Ends a run with the effect's answer missing, and starts the next one a little later.
async fn after_unknown(stage: &Stage<'_>, name: &str, effect: &Reached, later: Duration) -> (Lease, EffectRow) {
    let lease = stage.started(name).await;
    let row = stage.intend(&lease, effect).await;
    let row = stage.answer(&lease, &row, no_answer()).await;
    assert_eq!(stage.end(&lease, unknown()).await.state, State::Ready);
    stage.clock.advance(later);
    (stage.take_one().await, row)
}

/// `keyed`: the same key again inside the window, whose end a resend never moves.
pub async fn a_keyed_effect_is_sent_again_under_the_same_key_within_its_window(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (lease, first) = after_unknown(&stage, "m", &keyed(), MINUTE).await;
    let again = stage.intend(&lease, &keyed()).await;
    assert_eq!((again.seq, again.sends, again.state.clone()), (0, 2, EffectState::Intent));
    assert_eq!(
        (&again.key, again.valid_until, again.first_intent_at),
        (&first.key, first.valid_until, first.first_intent_at)
    );
    assert_eq!((again.token, again.last_possible_send), (lease.token, stage.now().after(SEND_WITHIN)));
    assert_eq!(stage.view(lease.message.id).await.journal, [again], "one row");
}

/// After a lost answer, a "not done" of a second send says nothing about the first.
pub async fn a_not_done_of_the_second_send_leaves_the_effect_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (lease, _) = after_unknown(&stage, "m", &keyed(), MINUTE).await;
    let again = stage.intend(&lease, &keyed()).await;
    let answered = stage.answer(&lease, &again, EffectAnswer::NotDone).await;
    assert!(answered.state.is_open(), "{:?}", answered.state);
}

/// A "not done" of a run that did not send says nothing about the send of the run before it, whose answer is missing.
pub async fn a_not_done_of_another_run_leaves_the_effect_open(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.started("m").await;
    let row = stage.intend(&first, &lookup()).await;
    stage.crash().await;
    stage.clock.advance(SEND_WITHIN + QUARANTINE);
    let second = stage.take_one().await;
    let answered = stage.answer(&second, &row, EffectAnswer::NotDone).await;
    assert!(answered.state.is_open(), "{:?}", answered.state);
}

/// An open effect that the code now describes otherwise is another effect and not sent.
pub async fn an_open_effect_that_changed_in_the_code_is_not_sent(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (lease, row) = after_unknown(&stage, "m", &keyed(), MINUTE).await;
    for changed in [Reached { request_hash: [2; 16], ..keyed() }, at_most_once(), lookup()] {
        assert_eq!(refused(stage.journal(&lease, intent(&changed)).await), StoreErrorKind::Conflict, "{changed:?}");
    }
    assert_eq!(stage.view(lease.message.id).await.journal, [row]);
}

/// `keyed` without a look-up is not sent once the remote may have forgotten the key.
pub async fn a_keyed_effect_is_not_sent_again_after_its_window(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (lease, _) = after_unknown(&stage, "m", &keyed(), MINUTE * 59).await;
    for _ in 0..4 {
        stage.clock.advance(SECOND * 20);
        stage.extend(lease.message.id, lease.token).await.expect("the lease is held");
    }
    assert_eq!(refused(stage.journal(&lease, intent(&keyed())).await), StoreErrorKind::Conflict);
}

/// `lookup`: an open effect is not sent, and "not found" is believed only when the quarantine is over.
pub async fn not_found_is_believed_only_after_the_quarantine(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (lease, row) = after_unknown(&stage, "m", &lookup(), HOUR).await;
    assert_eq!(refused(stage.journal(&lease, intent(&lookup())).await), StoreErrorKind::Conflict, "look it up first");
    let closed = stage.answer(&lease, &row, EffectAnswer::NotFound).await;
    assert_eq!(closed.state, EffectState::NotDone);
    let second = stage.intend(&lease, &lookup()).await;
    assert_eq!((second.seq, second.sends, &second.key), (1, 1, &row.key), "a new row, the same key");
    let early = stage.journal(&lease, answer_to(&second, EffectAnswer::NotFound)).await;
    assert_eq!(refused(early), StoreErrorKind::Conflict);
    stage.clock.advance(SEND_WITHIN + QUARANTINE - MILLI);
    let early = stage.journal(&lease, answer_to(&second, EffectAnswer::NotFound)).await;
    assert_eq!(refused(early), StoreErrorKind::Conflict, "a millisecond too early");
    stage.clock.advance(MILLI);
    assert_eq!(stage.answer(&lease, &second, EffectAnswer::NotFound).await.state, EffectState::NotDone);
}

/// A forward jump of the wall clock restarts running quarantines: no time has passed.
pub async fn a_forward_clock_jump_restarts_a_running_quarantine(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &lookup()).await;
    let row = stage.answer(&lease, &row, no_answer()).await;
    stage.clock.jump_forward(DAY / 2);
    let early = stage.journal(&lease, answer_to(&row, EffectAnswer::NotFound)).await;
    assert_eq!(refused(early), StoreErrorKind::Conflict, "half a day on the wall, nothing on the stop-watch");
    stage.clock.advance(QUARANTINE - SECOND);
    let early = stage.journal(&lease, answer_to(&row, EffectAnswer::NotFound)).await;
    assert_eq!(refused(early), StoreErrorKind::Conflict);
    stage.clock.advance(SEND_WITHIN + SECOND);
    assert_eq!(stage.answer(&lease, &row, EffectAnswer::NotFound).await.state, EffectState::NotDone);
}

/// A quarantine takes as long as it was to take when the clock is set back, whether it had been right or ahead.
pub async fn a_quarantine_is_neither_shortened_nor_prolonged_when_the_clock_is_set_back(engine: &dyn Engine) {
    for ahead in [Duration::ZERO, DAY * 3650] {
        let stage = Stage::new(engine).await;
        stage.clock.jump_forward(ahead);
        stage.sweep().await;
        let lease = stage.started("m").await;
        let row = stage.intend(&lease, &lookup()).await;
        let row = stage.answer(&lease, &row, no_answer()).await;
        stage.clock.advance(SECOND);
        stage.clock.jump_back(DAY * 3650);
        stage.extend(lease.message.id, lease.token).await.expect("the lease is held");
        stage.clock.advance(SEND_WITHIN + QUARANTINE - SECOND - MILLI);
        let early = stage.journal(&lease, answer_to(&row, EffectAnswer::NotFound)).await;
        assert_eq!(refused(early), StoreErrorKind::Conflict, "a millisecond too early, ahead by {ahead:?}");
        stage.clock.advance(MILLI);
        assert_eq!(stage.answer(&lease, &row, EffectAnswer::NotFound).await.state, EffectState::NotDone);
    }
}

/// One that was running when the clock was set right runs on when it is set ahead again.
pub async fn a_quarantine_that_was_dated_ahead_is_restarted_like_any_other(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.clock.jump_forward(DAY * 3650);
    stage.sweep().await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &lookup()).await;
    let row = stage.answer(&lease, &row, no_answer()).await;
    stage.clock.jump_back(DAY * 3650);
    stage.sweep().await;
    stage.clock.jump_forward(DAY / 2);
    let early = stage.journal(&lease, answer_to(&row, EffectAnswer::NotFound)).await;
    assert_eq!(refused(early), StoreErrorKind::Conflict, "no time has passed");
    stage.clock.advance(SEND_WITHIN + QUARANTINE);
    assert_eq!(stage.answer(&lease, &row, EffectAnswer::NotFound).await.state, EffectState::NotDone);
}

/// `at_most_once`: after an answer that is missing there is no second send; after "not done" there may be.
pub async fn an_at_most_once_effect_is_sent_again_only_after_not_done(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let first = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &first, EffectAnswer::NotDone).await;
    let second = stage.intend(&lease, &at_most_once()).await;
    assert_eq!((second.seq, &second.key), (1, &first.key));
    stage.answer(&lease, &second, no_answer()).await;
    assert_eq!(refused(stage.journal(&lease, intent(&at_most_once())).await), StoreErrorKind::Conflict);
}

/// A rejection replays until an operator opens another round, which sends under another key.
pub async fn a_rejected_effect_is_sent_again_only_in_a_new_round(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, rejected()).await;
    assert_eq!(refused(stage.journal(&lease, intent(&keyed())).await), StoreErrorKind::Conflict);
    assert_eq!(stage.end(&lease, permanent()).await.state, State::Failed);
    stage.redrive(lease.message.id, true).await.expect("failed, again, with a reason");
    let lease = stage.take_one().await;
    assert_eq!(lease.counters.round, 1);
    let again = stage.intend(&lease, &keyed()).await;
    assert_eq!((again.seq, again.round), (1, 1));
    assert_eq!(again.key, EffectKey::of(&lease.message, &effect_id("capture"), 1));
    assert_ne!(again.key, row.key);
}

/// `natural`: no intent, only a confirmation.
pub async fn a_natural_effect_is_confirmed_without_an_intent(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let write = JournalWrite::Natural { reached: reached("log", EffectPolicy::Natural), value: "true".into() };
    let row = stage.journal(&lease, write).await.expect("a natural effect can be confirmed");
    assert_eq!((row.seq, row.state.clone()), (0, EffectState::Confirmed { value: "true".into() }));
    assert_eq!(stage.view(lease.message.id).await.journal, [row]);
}

/// Effects of one name are told apart by their item.
pub async fn effects_are_told_apart_by_their_item(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let item = |item: &str| {
        let mut reached = keyed();
        reached.effect.item = Some(item.to_owned());
        reached
    };
    for (name, value) in [("1", "10"), ("2", "20"), ("", "0")] {
        let row = stage.intend(&lease, &item(name)).await;
        stage.answer(&lease, &row, confirmed(value)).await;
    }
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("\"none\"")).await;
    let rows = stage.view(lease.message.id).await.journal;
    let keys: std::collections::HashSet<_> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!((rows.len(), keys.len()), (4, 4));
}

/// The journal is written item by item.
pub async fn a_refused_write_of_a_batch_is_refused_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("a")).await;
    stage.put(message("b")).await;
    let leases = stage.take(2).await;
    let row = stage.intend(&leases[0], &keyed()).await;
    let write = |lease: &Lease, write| Journal { id: lease.message.id, token: lease.token, before: vec![], write };
    let batch = vec![
        write(&leases[0], intent(&reached("other", EffectPolicy::Lookup))),
        write(&leases[1], intent(&keyed())),
        write(&leases[0], answer_to(&row, confirmed("1"))),
    ];
    let verdicts = stage.store.journal(batch).await.expect("the batch is answered");
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
}

/// An intent under a token that is no longer current reads as unknown; nobody has to write it.
pub async fn an_intent_of_a_crashed_run_is_open_to_the_next(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.crash().await;
    let next = stage.take_one().await;
    assert!(next.reconciling, "an effect is open");
    assert_eq!(next.journal, [row]);
    let again = stage.intend(&next, &keyed()).await;
    assert_eq!((again.sends, again.token), (2, next.token));
}

/// Whoever missed the reply to an intent sent nothing, and says so with the settlement: an effect that is sent at most once
/// goes back to its queue instead of to a person. Without an intent it says nothing.
pub async fn an_intent_whose_send_never_left_is_not_done(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let not_sent = || JournalWrite::NotSent { effect: effect_id("capture") };
    for (name, written) in [("lost", true), ("never-written", false)] {
        let lease = stage.started(name).await;
        if written {
            stage.intend(&lease, &at_most_once()).await;
        }
        let settle = Settle { journal: vec![not_sent()], ..settlement(&lease, not_done()) };
        let settled = stage.settle(settle).await.expect("it is settled");
        assert_eq!(settled.state, State::Ready);
        let states: Vec<EffectState> =
            stage.view(lease.message.id).await.journal.into_iter().map(|r| r.state).collect();
        assert_eq!(states, if written { vec![EffectState::NotDone] } else { vec![] });
    }
    let lease = stage.started("answered").await;
    let row = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &row, no_answer()).await;
    let settle = Settle { journal: vec![not_sent()], ..settlement(&lease, not_done()) };
    assert_eq!(stage.settle(settle).await.expect("it is settled").state, State::Parked, "its send did leave");
}

/// That nothing was sent is said with the next intent of the same effect. Alone or beside another effect it may come late,
/// when the effect is on its way: it is refused, with all that comes along.
pub async fn that_an_effect_was_not_sent_is_said_with_its_next_intent_or_at_the_end(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let first = stage.intend(&lease, &at_most_once()).await;
    let not_sent = || JournalWrite::NotSent { effect: effect_id("capture") };
    let other = Reached { effect: effect_id("notify"), ..keyed() };
    let natural = reached("notify", EffectPolicy::Natural);
    let written = async |before: Vec<JournalWrite>, write: JournalWrite| {
        let journal = Journal { id: lease.message.id, token: lease.token, before, write };
        only(stage.store.journal(vec![journal]).await)
    };
    for (before, write) in [
        (vec![], not_sent()),
        (vec![not_sent()], intent(&other)),
        (vec![not_sent()], JournalWrite::Natural { reached: natural, value: "1".into() }),
    ] {
        let refused = written(before, write).await.expect_err("it may be on its way");
        assert_eq!(refused.kind(), StoreErrorKind::Invalid, "{refused}");
        assert_eq!(stage.view(lease.message.id).await.journal, std::slice::from_ref(&first));
    }
    // Reached again, it is another row under the same key.
    let again = written(vec![not_sent()], intent(&at_most_once())).await.expect("it may be sent");
    assert_eq!((again.seq, again.sends, &again.key), (1, 1, &first.key));
    // Nothing else may be sent while it is open, and what it confirmed stays.
    stage.answer(&lease, &again, confirmed("1")).await;
    written(vec![], intent(&other)).await.expect("nothing is open");
}
