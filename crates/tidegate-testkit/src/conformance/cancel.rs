//! Calling messages off (protocol §2, §4).

use tidegate_core::lifecycle::{Cancellation, State};
use tidegate_core::message::{Due, NewMessage};
use tidegate_core::store::{Cancel, Counted, Enqueued};
use tidegate_core::{MessageId, StoreErrorKind, Tenant};

use super::stage::*;
use crate::Engine;

/// Ready and untouched: called off on the spot, due or not.
pub async fn a_waiting_message_is_cancelled_at_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ready = stage.put(message("ready")).await;
    let later = stage.put(NewMessage { due: Due::In(HOUR), ..message("later") }).await;
    for id in [ready, later] {
        assert_eq!(stage.cancel(id).await, Ok(Cancellation::Now));
        let view = stage.view(id).await;
        assert_eq!((view.state, view.ended_at, view.due_at), (State::Cancelled, Some(stage.now()), None));
        assert_eq!(view.answer, None);
    }
    stage.clock.advance(DAY);
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.tally(Counted::Cancelled).await, 2);
}

/// Leased: a wish, delivered with the next extension.
pub async fn a_running_message_is_asked_to_stop(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    assert_eq!(stage.cancel(lease.message.id).await, Ok(Cancellation::Requested));
    assert_eq!(stage.state(lease.message.id).await, State::Leased);
    assert!(stage.extend(lease.message.id, lease.token).await.is_ok_and(|extended| extended.cancel_requested));
}

/// An effect is open: the wish waits until it is decided.
pub async fn with_an_open_effect_the_wish_waits(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, no_answer()).await;
    stage.end(&lease, unknown()).await;
    assert_eq!(stage.cancel(lease.message.id).await, Ok(Cancellation::Requested));
    assert_eq!(stage.state(lease.message.id).await, State::Ready);
    stage.clock.advance(MINUTE);
    let lease = stage.take_one().await;
    assert!(lease.reconciling);
    stage.answer(&lease, &row, rejected()).await;
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Cancelled);
}

/// An effect is confirmed, or the message is parked or has ended: refused.
pub async fn what_took_effect_or_ended_cannot_be_cancelled(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("confirmed").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("1")).await;
    assert_eq!(refused(stage.cancel(lease.message.id).await), StoreErrorKind::Conflict, "leased");
    stage.end(&lease, retryable()).await;
    assert_eq!(refused(stage.cancel(lease.message.id).await), StoreErrorKind::Conflict, "ready");
    let ended = [
        stage.parked("parked").await,
        stage.completed("completed").await,
        stage.failed("failed").await,
        stage.dead("dead").await,
    ];
    for id in ended {
        let before = stage.view(id).await;
        assert_eq!(refused(stage.cancel(id).await), StoreErrorKind::Conflict, "{:?}", before.state);
        assert_eq!(stage.view(id).await, before);
    }
}

/// Each item has its verdict.
pub async fn an_unknown_id_of_a_batch_is_not_found_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let cancel = Cancel { ids: vec![MessageId::from_i64(7), id], release_key: false, act: act("not wanted") };
    let verdicts = stage.store.cancel(cancel).await.expect("the batch is answered");
    assert_eq!(verdicts[0].as_ref().map_err(tidegate_core::StoreError::kind), Err(StoreErrorKind::NotFound));
    assert_eq!(verdicts[1], Ok(Cancellation::Now));
}

/// A cancelled message keeps its key.
pub async fn a_cancelled_message_keeps_its_key(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.cancelled("m").await;
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(Some(id)));
    let other = NewMessage { payload: payload("0"), ..message("m") };
    assert_eq!(refused(stage.enqueue(other).await), StoreErrorKind::KeyConflict);
}

/// Unless it is released: then the key is free for another message, with another payload even.
pub async fn a_released_key_is_free_for_another_message(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.put(message("m")).await;
    assert_eq!(stage.cancel_with(first, true).await, Ok(Cancellation::Now));
    let second = stage.put(NewMessage { payload: payload("0"), ..message("m") }).await;
    assert_ne!(first, second);
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(Some(second)));
    assert_eq!(stage.state(first).await, State::Cancelled);
    assert_eq!(stage.take_one().await.message.id, second);
}

/// A redrive takes the key back, unless it names another message by now: two messages never share one.
pub async fn a_redriven_message_takes_its_released_key_back_if_it_is_free(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.put(message("m")).await;
    stage.cancel_with(first, true).await.expect("it waits");
    stage.redrive(first, false).await.expect("nobody has the key");
    assert!(matches!(stage.enqueue(message("m")).await, Ok(Enqueued::Existing { id, .. }) if id == first));
    stage.cancel_with(first, true).await.expect("it waits");
    let second = stage.put(message("m")).await;
    assert_eq!(refused(stage.redrive(first, false).await), StoreErrorKind::Conflict);
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(Some(second)));
}

/// A key is not released once an intent was written: its effect may be known under the key.
pub async fn a_key_is_not_released_once_an_intent_was_written(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, rejected()).await;
    stage.end(&lease, retryable()).await;
    assert_eq!(refused(stage.cancel_with(lease.message.id, true).await), StoreErrorKind::Conflict);
    assert_eq!(stage.state(lease.message.id).await, State::Ready, "refused as a whole");
    assert_eq!(stage.cancel(lease.message.id).await, Ok(Cancellation::Now));
}

/// Asked again, as after a lost reply: answered as before, and nothing is done twice. What ended otherwise stays refused.
pub async fn a_cancel_that_is_asked_for_again_is_answered_and_changes_nothing(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("running").await;
    let running = lease.message.id;
    let waiting = stage.put(message("waiting")).await;
    let released = stage.put(message("released")).await;
    let wishes = [(waiting, false), (running, false), (released, true)];
    let mut before = Vec::new();
    for (id, release_key) in wishes {
        let first = stage.cancel_with(id, release_key).await.expect("nothing of it took effect");
        before.push((first, stage.view(id).await));
    }
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    stage.clock.advance(MINUTE);
    stage.reopen().await;
    for ((id, release_key), (first, view)) in wishes.into_iter().zip(before) {
        assert_eq!(stage.cancel_with(id, release_key).await, Ok(first));
        assert_eq!(stage.view(id).await, view);
    }
    assert_eq!(stage.store.audit(0, 100).await, Ok(audit.clone()), "no second row");
    assert_eq!(stage.tally(Counted::Cancelled).await, 2);
    // What came of the wish is the answer from then on; where it did not come to it, it is refused as ever.
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Cancelled);
    assert_eq!(stage.cancel(running).await, Ok(Cancellation::Now));
    let ran = stage.started("ran").await;
    assert_eq!(stage.cancel(ran.message.id).await, Ok(Cancellation::Requested));
    assert_eq!(stage.end(&ran, completed()).await.state, State::Completed);
    assert_eq!(refused(stage.cancel(ran.message.id).await), StoreErrorKind::Conflict);
    assert_eq!(stage.store.audit(0, 100).await.map(|all| all.len()), Ok(audit.len() + 1));
}

/// One call may name a message twice.
pub async fn a_message_that_is_named_twice_is_cancelled_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let cancel = Cancel { ids: vec![id, id], release_key: true, act: act("not wanted") };
    let verdicts = stage.store.cancel(cancel).await.expect("the batch is answered");
    assert_eq!(verdicts, [Ok(Cancellation::Now), Ok(Cancellation::Now)]);
    assert_eq!(stage.store.audit(0, 100).await.map(|all| all.len()), Ok(1));
    assert_eq!(stage.tally(Counted::Cancelled).await, 1);
}

/// To release a key that was kept is another act, and possible as long as it names this message.
pub async fn a_key_that_was_kept_can_be_released_afterwards(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.cancelled("m").await;
    let view = stage.view(first).await;
    assert_eq!(stage.cancel_with(first, true).await, Ok(Cancellation::Now));
    assert_eq!(stage.view(first).await, view);
    let second = stage.put(NewMessage { payload: payload("0"), ..message("m") }).await;
    assert_ne!(first, second);
    assert_eq!(stage.cancel_with(first, true).await, Ok(Cancellation::Now));
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(Some(second)), "not its key");
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    assert_eq!(
        audit.iter().map(|row| (row.act.as_str(), row.message)).collect::<Vec<_>>(),
        [("cancel", Some(first)); 2]
    );
}

/// A wish to release the key as well is more than the wish to cancel.
pub async fn a_wish_that_asks_for_more_is_kept_as_well(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    for release_key in [false, true, true, false] {
        assert_eq!(stage.cancel_with(lease.message.id, release_key).await, Ok(Cancellation::Requested));
    }
    assert_eq!(stage.store.audit(0, 100).await.map(|all| all.len()), Ok(2));
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Cancelled);
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("m")).await, Ok(None));
}

/// The act is in the audit.
pub async fn a_cancellation_leaves_an_audit_row(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.cancelled("m").await;
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let row = audit.iter().find(|row| row.act == "cancel").expect("an audit row");
    assert_eq!((row.message, row.actor.as_str(), row.reason.as_str()), (Some(id), "tester", "not wanted"));
}
