//! Saying what became of a parked effect (protocol §4).

use tidegate_core::effect::EffectState;
use tidegate_core::lifecycle::{Outcome, ParkReason, Resolution, State};
use tidegate_core::store::{Act, Counted, Resolve, Resolved};
use tidegate_core::{MessageId, StoreErrorKind};

use super::stage::*;
use crate::Engine;

fn happened(value: &str) -> Resolution {
    Resolution::Happened { value: value.into() }
}

/// It happened: the value replays, and the message is ready at once.
pub async fn a_parked_effect_that_happened_goes_on_with_its_value(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.clock.advance(MINUTE);
    let resolved = stage.resolve(id, happened("\"ch_1\"")).await;
    assert_eq!(resolved, Ok(Resolved { state: State::Ready, still_open: 0 }));
    let view = stage.view(id).await;
    assert_eq!((view.state, view.due_at, view.reason, view.ended_at), (State::Ready, Some(stage.now()), None, None));
    assert_eq!(view.journal[0].state, EffectState::Confirmed { value: "\"ch_1\"".into() });
    assert_eq!(view.history.last().map(|e| (e.outcome.as_str(), e.state)), Some(("resolved", State::Ready)));
    let lease = stage.take_one().await;
    assert!(!lease.reconciling);
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
    assert_eq!(stage.tally(Counted::Resolved).await, 1);
}

/// "Did not happen" is believed only when no request of ours can arrive any more.
pub async fn did_not_happen_is_refused_before_the_quarantine_ends(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    assert_eq!(refused(stage.resolve(id, Resolution::DidNotHappen).await), StoreErrorKind::Conflict);
    stage.clock.advance(SEND_WITHIN + QUARANTINE - MILLI);
    assert_eq!(refused(stage.resolve(id, Resolution::DidNotHappen).await), StoreErrorKind::Conflict);
    stage.clock.advance(MILLI);
    let resolved = stage.resolve(id, Resolution::DidNotHappen).await;
    assert_eq!(resolved, Ok(Resolved { state: State::Ready, still_open: 0 }));
    let lease = stage.take_one().await;
    assert_eq!((lease.reconciling, lease.journal[0].state.clone()), (false, EffectState::NotDone));
    let again = stage.intend(&lease, &at_most_once()).await;
    assert_eq!((again.seq, &again.key), (1, &lease.journal[0].key), "it may be sent again, under the same key");
}

/// A wall clock set ahead ends no quarantine.
pub async fn a_forward_clock_jump_ends_no_quarantine(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.clock.jump_forward(DAY);
    assert_eq!(refused(stage.resolve(id, Resolution::DidNotHappen).await), StoreErrorKind::Conflict);
    stage.clock.advance(SEND_WITHIN + QUARANTINE);
    assert!(stage.resolve(id, Resolution::DidNotHappen).await.is_ok());
}

/// The reason is mandatory.
pub async fn a_resolution_needs_a_reason(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    for reason in ["", " "] {
        let act = Act { actor: "tester".into(), reason: reason.into() };
        let resolve = Resolve { id, effect: effect_id("capture"), resolution: happened("1"), act };
        assert_eq!(refused(stage.store.resolve(resolve).await), StoreErrorKind::Invalid);
    }
    assert_eq!(stage.state(id).await, State::Parked);
}

/// A webhook may come twice: the same again is the same act.
pub async fn the_same_resolution_again_is_the_same_act(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.resolve(id, happened("1")).await.expect("parked");
    assert_eq!(stage.resolve(id, happened("1")).await, Ok(Resolved { state: State::Ready, still_open: 0 }));
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    assert!(stage.resolve(id, happened("1")).await.is_ok(), "also when the message has ended");
    assert_eq!(stage.state(id).await, State::Completed);
    assert_eq!(stage.tally(Counted::Resolved).await, 1);
}

/// What is decided is not decided otherwise.
pub async fn a_contradicting_resolution_is_refused_and_changes_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.resolve(id, happened("1")).await.expect("parked");
    stage.clock.advance(HOUR);
    let before = stage.view(id).await;
    for otherwise in [happened("2"), Resolution::DidNotHappen] {
        assert_eq!(refused(stage.resolve(id, otherwise).await), StoreErrorKind::Conflict);
    }
    assert_eq!(stage.view(id).await, before);
}

/// Only in `parked`: while a run may still find out, nobody decides beside it.
pub async fn only_a_parked_message_can_be_resolved(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    assert_eq!(refused(stage.resolve(lease.message.id, happened("1")).await), StoreErrorKind::Conflict, "leased");
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    assert_eq!(refused(stage.resolve(lease.message.id, happened("1")).await), StoreErrorKind::Conflict, "reconciling");
    assert!(stage.view(lease.message.id).await.journal[0].state.is_open());
}

/// Who or what does not exist is not found.
pub async fn an_unknown_message_or_effect_is_not_found(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    assert_eq!(refused(stage.resolve_effect(id, "refund", happened("1")).await), StoreErrorKind::NotFound);
    assert_eq!(refused(stage.resolve(MessageId::from_i64(7), happened("1")).await), StoreErrorKind::NotFound);
}

/// A resolved message whose attempts are used up is granted one.
pub async fn an_exhausted_message_is_granted_one_attempt(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 0..2 {
        let lease = stage.take_one().await;
        stage.end(&lease, retryable()).await;
        stage.clock.advance(HOUR);
    }
    let lease = stage.take_one().await;
    assert_eq!(lease.counters.attempt, 3);
    stage.intend(&lease, &at_most_once()).await;
    assert_eq!(stage.end(&lease, unknown()).await.state, State::Parked);
    stage.resolve(id, happened("1")).await.expect("parked");
    let lease = stage.take_one().await;
    assert_eq!(lease.counters.attempt, 3);
    assert_eq!(stage.end(&lease, retryable()).await.reason, Some("exhausted"));
}

/// A parked message waits for a person as long as it takes: no deadline or age runs there.
pub async fn no_time_runs_out_while_parked(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.clock.advance(DAY * 30);
    stage.sweep().await;
    assert_eq!(stage.expire().await, 0);
    assert_eq!(stage.state(id).await, State::Parked);
    stage.resolve(id, happened("1")).await.expect("parked");
    assert_eq!(stage.take_one().await.message.id, id, "an effect is confirmed: the rest must follow");
}

/// A confirmed value that no longer decodes is replaced by one that does; that it happened stays.
pub async fn an_undecodable_value_is_resolved_with_a_readable_one(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("\"old shape\"")).await;
    let park = Outcome::Park { reason: ParkReason::JournalDecode, failure: failure("shape") };
    assert_eq!(stage.end(&lease, park).await.reason, Some("journal_decode"));
    stage.clock.advance(HOUR);
    let id = lease.message.id;
    assert_eq!(refused(stage.resolve(id, Resolution::DidNotHappen).await), StoreErrorKind::Conflict);
    let resolved = stage.resolve(id, happened("{\"new\":1}")).await;
    assert_eq!(resolved, Ok(Resolved { state: State::Ready, still_open: 0 }));
    assert_eq!(stage.take_one().await.journal[0].state, EffectState::Confirmed { value: "{\"new\":1}".into() });
}

/// Late evidence that contradicts changes nothing, but is kept.
pub async fn late_evidence_that_contradicts_is_kept_and_changes_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &at_most_once()).await;
    assert_eq!(stage.crash().await.taken_over[0].state, State::Parked);
    stage.clock.advance(HOUR);
    stage.resolve(lease.message.id, Resolution::DidNotHappen).await.expect("the quarantine is over");
    let late = stage.journal(&lease, answer_to(&row, confirmed("1"))).await;
    assert_eq!(refused(late), StoreErrorKind::LeaseLost);
    let view = stage.view(lease.message.id).await;
    assert_eq!((view.journal[0].state.clone(), view.evidence.len()), (EffectState::NotDone, 1));
}

/// The act is in the audit, with its effect.
pub async fn a_resolution_leaves_an_audit_row(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.parked("m").await;
    stage.resolve(id, happened("1")).await.expect("parked");
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let row = audit.iter().find(|row| row.act == "resolve").expect("an audit row");
    assert_eq!((row.message, row.actor.as_str(), row.reason.as_str()), (Some(id), "tester", "asked the gateway"));
    assert!(row.detail.contains("capture"), "{:?}", row.detail);
}
