//! Putting ended messages back, by an operator (protocol §4).

use tidegate_core::lifecycle::{Counters, State};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{Act, Counted, Enqueued, REDRIVE_CHUNK, Redrive};
use tidegate_core::{MessageId, StoreErrorKind};

use super::stage::*;
use crate::Engine;

fn redrive(ids: Vec<MessageId>, operation: &str) -> Redrive {
    Redrive { ids, again: false, operation: operation.into(), act: act("fixed the cause") }
}

/// A dead message is ready at once, in a new generation with all its attempts, in its own queue.
pub async fn a_dead_message_starts_a_new_generation(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    stage.clock.advance(HOUR);
    assert_eq!(stage.redrive(id, false).await, Ok(id));
    let view = stage.view(id).await;
    assert_eq!((view.state, view.due_at, view.reason, view.ended_at), (State::Ready, Some(stage.now()), None, None));
    assert_eq!(view.counters, Counters { claims: 1, generation: 1, ..Counters::default() });
    assert_eq!(view.message.queue, queue("work"));
    assert_eq!(view.history.last().map(|e| (e.outcome.as_str(), e.state)), Some(("redriven", State::Ready)));
    let lease = stage.take_one().await;
    assert_eq!(lease.counters, Counters { claims: 2, attempt: 1, generation: 1, ..Counters::default() });
    assert_eq!(stage.tally(Counted::Redriven).await, 1);
}

/// A failed message gave its answer: only `again`, with a reason, may replace it.
pub async fn a_failed_message_is_redriven_only_again_and_with_a_reason(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.failed("m").await;
    assert_eq!(refused(stage.redrive(id, false).await), StoreErrorKind::Conflict);
    let nameless =
        Redrive { again: true, act: Act { actor: "tester".into(), reason: " ".into() }, ..redrive(vec![id], "o") };
    let kind = match stage.store.redrive(nameless).await {
        Err(error) => error.kind(),
        verdicts => refused(only(verdicts)),
    };
    assert_eq!(kind, StoreErrorKind::Invalid, "the reason is mandatory");
    assert!(matches!(stage.enqueue(message("m")).await, Ok(Enqueued::Replayed { .. })), "nothing changed");
    assert_eq!(stage.redrive(id, true).await, Ok(id));
    let existing = Ok(Enqueued::Existing { id, state: State::Ready, ignored: vec![] });
    assert_eq!(stage.enqueue(message("m")).await, existing, "the answer is gone");
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    assert!(matches!(stage.enqueue(message("m")).await, Ok(Enqueued::Replayed { .. })), "and replaced");
}

/// A cancelled message is redriven only if no intent was ever written.
pub async fn a_cancelled_message_is_redriven_unless_an_effect_was_tried(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let untouched = stage.cancelled("untouched").await;
    assert_eq!(stage.redrive(untouched, false).await, Ok(untouched));
    let lease = stage.take_one().await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, rejected()).await;
    stage.cancel(untouched).await.expect("nothing took effect");
    assert_eq!(stage.end(&lease, retryable()).await.state, State::Cancelled);
    assert_eq!(refused(stage.redrive(untouched, true).await), StoreErrorKind::Conflict);
}

/// What lives, is parked or completed is not redriven; who does not exist is not found; each item for itself.
pub async fn only_what_ended_without_completing_is_redriven(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let dead = stage.dead("dead").await;
    let completed = stage.completed("completed").await;
    let parked = stage.parked("parked").await;
    let leased = stage.started("leased").await.message.id;
    let ready = stage.put(message("ready")).await;
    let nobody = MessageId::from_i64(7);
    let ids = vec![completed, parked, leased, ready, nobody, dead];
    let verdicts = stage.store.redrive(Redrive { again: true, ..redrive(ids, "o") }).await.expect("answered");
    let kinds: Vec<_> = verdicts.iter().map(|v| v.as_ref().err().map(tidegate_core::StoreError::kind)).collect();
    let conflict = Some(StoreErrorKind::Conflict);
    assert_eq!(kinds, [conflict, conflict, conflict, conflict, Some(StoreErrorKind::NotFound), None]);
    assert_eq!(stage.state(parked).await, State::Parked);
}

/// A redrive repeated under its operation id redrives nothing twice, though the message may be dead again by then.
pub async fn a_redrive_repeated_under_its_operation_redrives_nothing_twice(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    let request = redrive(vec![id], "op-1");
    assert_eq!(only(stage.store.redrive(request.clone()).await), Ok(id));
    assert_eq!(only(stage.store.redrive(request.clone()).await), Ok(id), "it was done");
    assert_eq!(stage.view(id).await.counters.generation, 1);
    let lease = stage.take_one().await;
    stage.end(&lease, tidegate_core::lifecycle::Outcome::Undecodable { failure: failure("decode") }).await;
    stage.reopen().await;
    assert_eq!(only(stage.store.redrive(request).await), Ok(id));
    assert_eq!(stage.state(id).await, State::Dead, "not redriven again under the same operation");
    assert_eq!(only(stage.store.redrive(redrive(vec![id], "op-2")).await), Ok(id));
    assert_eq!((stage.state(id).await, stage.tally(Counted::Redriven).await), (State::Ready, 2));
}

/// A later chunk of an operation redrives what the earlier ones did not.
pub async fn an_operation_goes_on_with_its_next_chunk(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.dead("first").await;
    let second = stage.dead("second").await;
    assert_eq!(stage.store.redrive(redrive(vec![first], "op")).await, Ok(vec![Ok(first)]));
    assert_eq!(stage.store.redrive(redrive(vec![first, second], "op")).await, Ok(vec![Ok(first), Ok(second)]));
    assert_eq!(stage.view(first).await.counters.generation, 1);
    assert_eq!(stage.state(second).await, State::Ready);
}

/// A chunk is bounded.
pub async fn a_redrive_of_more_than_a_chunk_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = vec![MessageId::from_i64(7); REDRIVE_CHUNK + 1];
    assert_eq!(refused(stage.store.redrive(redrive(ids, "op")).await), StoreErrorKind::Invalid);
}

/// The act is in the audit, with who and why.
pub async fn a_redrive_leaves_an_audit_row(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    only(stage.store.redrive(redrive(vec![id], "op-77")).await).expect("dead");
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let row = audit.iter().find(|row| row.act == "redrive").expect("an audit row");
    assert_eq!((row.actor.as_str(), row.reason.as_str(), row.at), ("tester", "fixed the cause", stage.now()));
    assert!(row.detail.contains("op-77"), "{:?}", row.detail);
}

/// Confirmed effects stay and are not sent again; a rejected one gets a new round.
pub async fn confirmed_effects_survive_a_redrive(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let row = stage.intend(&lease, &keyed()).await;
    let row = stage.answer(&lease, &row, confirmed("7")).await;
    assert_eq!(stage.end(&lease, permanent()).await.state, State::Dead);
    stage.redrive(lease.message.id, false).await.expect("dead");
    let again = stage.take_one().await;
    assert_eq!((again.journal, again.counters.round), (vec![row], 0));
}

/// A dead letter may lie for weeks: redriven, it has its `max_age` before it again.
pub async fn a_dead_letter_that_lay_longer_than_its_max_age_runs_when_redriven(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("old").await;
    let short = stage.put(NewMessage { max_age: Some(HOUR), ..message("short") }).await;
    stage.clock.advance(DAY * 10);
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.end_of(short).await, (State::Dead, Some("max_age".into())));
    for id in [id, short] {
        stage.redrive(id, false).await.expect("dead");
        let lease = stage.take_one().await;
        assert_eq!(lease.message.id, id);
        stage.end(&lease, completed()).await;
    }
}

/// Crashes of an earlier generation are forgiven.
pub async fn a_redriven_message_is_no_suspect_with_a_record(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    for _ in 0..2 {
        let lease = stage.take_one().await;
        stage.alone(&lease).await;
        stage.crash().await;
    }
    assert_eq!(stage.state(id).await, State::Dead);
    stage.redrive(id, false).await.expect("dead");
    let lease = stage.take_one().await;
    assert_eq!((lease.counters.crashes, lease.counters.attempt), (0, 1));
}

/// A person wants it to run: a deadline that was missed is past caring, and what is shown is the time that is in force.
pub async fn a_redriven_message_shows_the_time_it_has_left(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { deadline: Some(stage.now().after(HOUR)), ..message("m") }).await;
    stage.clock.advance(DAY);
    assert!(stage.take(10).await.is_empty());
    assert_eq!(stage.end_of(id).await, (State::Dead, Some("deadline".into())));
    stage.redrive(id, false).await.expect("dead");
    let shown = stage.view(id).await.message;
    assert!(shown.deadline.is_none() && shown.expires_at > stage.now(), "{shown:?}");
    let facts = stage.store.explain(id).await.expect("answered").expect("it exists");
    let next = tidegate_core::explain::explain(&facts).next;
    assert!(!next.contains("too late"), "{next}");
    let lease = stage.take_one().await;
    assert_eq!(lease.message, shown);
}
