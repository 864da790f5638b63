//! Putting ended messages back, by an operator (protocol §4).

use tidegate_core::effect::{EffectAnswer, Reached};
use tidegate_core::lifecycle::{Counters, Outcome, State};
use tidegate_core::message::{Failure, NewMessage};
use tidegate_core::store::{
    Act, Counted, Discard, Edit, Enqueued, Filter, NewOperation, Operate, OperationState, Pace, REDRIVE_CHUNK, Redrive,
    Selection, Settle, Stepped, Waits,
};
use tidegate_core::{MessageId, StoreError, StoreErrorKind};

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

/// What a compensation undoes is not completed afterwards: its confirmed effects would replay, and nothing backs them.
pub async fn a_compensated_message_is_not_redriven(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for (name, outcome, state) in [
        ("failed", Outcome::Permanent { failure: failure("no"), compensated: true, orphans: false }, State::Failed),
        ("dead", Outcome::Undecodable { failure: failure("decode") }, State::Dead),
    ] {
        let lease = stage.started(name).await;
        let id = lease.message.id;
        let settle = Settle { compensate: vec![message(&format!("undo-{name}"))], ..settlement(&lease, outcome) };
        assert_eq!(stage.settle(settle).await.expect("the lease is held").state, state);
        assert!(stage.view(id).await.compensated);
        assert_eq!(refused(stage.redrive(id, true).await), StoreErrorKind::Conflict, "{name}");
        assert_eq!(stage.view(id).await.state, state);
        let undo = stage.take_one().await;
        stage.end(&undo, completed()).await;
    }
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
    let kinds: Vec<_> = verdicts.iter().map(|v| v.as_ref().err().map(StoreError::kind)).collect();
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
    stage.end(&lease, Outcome::Undecodable { failure: failure("decode") }).await;
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

// --- operations ------------------------------------------------------------------------------------------------------

const GENTLE: Pace = Pace { canary: 0, per_second: None, stop_over_percent: None };

fn operation(name: &str, selection: Selection, pace: Pace) -> Operate {
    let act = act("fixed the cause");
    Operate::Begin(Box::new(NewOperation { name: name.into(), selection, again: false, pace, act }))
}

async fn step(stage: &Stage<'_>, name: &str) -> Stepped {
    stage.store.operate(Operate::Step { name: name.into() }).await.expect("it is known")
}

/// Dead letters, one claim for all: they have one failure in common.
async fn many_dead(stage: &Stage<'_>, count: u32) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(stage.put(message(&format!("m-{n}"))).await);
    }
    for lease in stage.take(count).await {
        stage.end(&lease, undecodable(&format!("missing field at column {}", lease.token.claims))).await;
    }
    ids
}

fn undecodable(detail: &str) -> Outcome {
    Outcome::Undecodable { failure: Failure::new("decode", detail) }
}

/// All is redriven by steps, and the operation is done; a message that died later is not of it.
pub async fn an_operation_redrives_all_that_were_dead_when_it_began(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let ids = many_dead(&stage, 3).await;
    let begun = stage.store.operate(operation("op", Selection::default(), GENTLE)).await.expect("it begins");
    assert_eq!((begun.operation.selected, begun.operation.redriven), (3, 0));
    assert_eq!(begun.operation.state, OperationState::Running);
    stage.clock.advance(SECOND);
    let later = stage.dead("later").await;
    stage.reopen().await;
    assert_eq!(step(&stage, "op").await.operation.redriven, 3);
    let done = step(&stage, "op").await;
    assert_eq!((done.operation.state, done.waits), (OperationState::Done, None));
    for id in ids {
        assert_eq!(stage.state(id).await, State::Ready);
    }
    assert_eq!(stage.state(later).await, State::Dead);
    assert_eq!(stage.store.operations(None, 9).await, Ok(vec![done.operation.clone()]));
    assert_eq!(stage.store.operations(Some("other".into()), 9).await, Ok(vec![]));
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let acts: Vec<&str> = audit.iter().map(|row| row.act.as_str()).collect();
    assert_eq!(acts, ["redrive"], "one row for its chunk");
}

/// A selection names a queue, a kind, a code or a group; only such are redriven.
pub async fn an_operation_redrives_only_what_it_selects(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = many_dead(&stage, 2).await;
    let other = stage.dead("other").await;
    let groups = stage.store.groups(Filter { limit: 9, ..Filter::default() }).await.expect("answered");
    let group = Some(groups[0].id);
    for (name, selection, selected) in [
        ("queue", Selection { queue: Some(queue("nobodys")), ..Selection::default() }, 0),
        ("tenant", Selection { tenant: Some(tenant("acme")), ..Selection::default() }, 0),
        ("kind", Selection { kind: Some(kind("nobodys")), ..Selection::default() }, 0),
        ("code", Selection { code: Some("nothing".into()), ..Selection::default() }, 0),
        ("group", Selection { group, ..Selection::default() }, 2),
        ("id", Selection { ids: vec![other], ..Selection::default() }, 1),
    ] {
        let begun = stage.store.operate(operation(name, selection, GENTLE)).await.expect("it begins");
        assert_eq!(begun.operation.selected, selected, "{name}");
        assert_eq!(step(&stage, name).await.operation.redriven, selected, "{name}");
    }
    for id in ids.into_iter().chain([other]) {
        assert_eq!(stage.view(id).await.counters.generation, 1);
    }
}

/// What it names and may not redrive is refused with the reason, and counted.
pub async fn an_operation_tells_what_it_refuses(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let dead = stage.dead("dead").await;
    let completed = stage.completed("completed").await;
    let nobody = MessageId::from_i64(7);
    let selection = Selection { ids: vec![dead, completed, nobody, dead], ..Selection::default() };
    let begun = stage.store.operate(operation("op", selection, GENTLE)).await.expect("it begins");
    assert_eq!(begun.operation.selected, 3, "each once");
    let stepped = step(&stage, "op").await;
    assert_eq!((stepped.operation.redriven, stepped.operation.refused), (1, 2));
    let mut refused: Vec<_> = stepped.refused.iter().map(|(id, error)| (*id, error.kind())).collect();
    refused.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(refused, [(nobody, StoreErrorKind::NotFound), (completed, StoreErrorKind::Conflict)]);
}

/// Begun again under its name it is the same operation; another selection under the name is refused.
pub async fn an_operation_is_begun_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 1).await;
    stage.store.operate(operation("op", Selection::default(), GENTLE)).await.expect("it begins");
    step(&stage, "op").await;
    let known = stage.store.operate(operation("op", Selection::default(), GENTLE)).await.expect("it is known");
    assert_eq!(known.operation.redriven, 1);
    let other = Selection { code: Some("timeout".into()), ..Selection::default() };
    assert_eq!(refused(stage.store.operate(operation("op", other, GENTLE)).await), StoreErrorKind::Conflict);
    let nobody = stage.store.operate(Operate::Step { name: "nobody".into() }).await;
    assert_eq!(refused(nobody), StoreErrorKind::NotFound);
}

/// An operation that makes no sense, or replaces answers without naming them and saying why, does not begin.
pub async fn an_operation_without_sense_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.failed("m").await;
    let named = Selection { ids: vec![id], ..Selection::default() };
    let again = |selection: Selection, reason: &str| {
        let (name, pace, act) = ("again".to_owned(), GENTLE, act(reason));
        Operate::Begin(Box::new(NewOperation { name, selection, again: true, pace, act }))
    };
    for senseless in [
        operation("", Selection::default(), GENTLE),
        operation("op", Selection::default(), Pace { per_second: Some(0), ..GENTLE }),
        operation("op", Selection::default(), Pace { stop_over_percent: Some(101), ..GENTLE }),
        again(Selection::default(), "why"),
        again(named.clone(), " "),
    ] {
        assert_eq!(refused(stage.store.operate(senseless).await), StoreErrorKind::Invalid);
    }
    stage.store.operate(again(named, "declined by mistake")).await.expect("it begins");
    assert_eq!(step(&stage, "again").await.operation.redriven, 1);
}

/// The first ones are watched to their end before the rest follow.
pub async fn a_canary_ends_before_the_rest_is_redriven(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 5).await;
    let pace = Pace { canary: 2, stop_over_percent: Some(10), ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    assert_eq!(step(&stage, "op").await.operation.redriven, 2);
    let waiting = step(&stage, "op").await;
    assert_eq!((waiting.operation.redriven, waiting.waits), (2, Some(Waits::Canary)));
    let canary = stage.take(9).await;
    stage.end(&canary[0], completed()).await;
    assert_eq!(step(&stage, "op").await.waits, Some(Waits::Canary), "one of them still runs");
    stage.end(&canary[1], completed()).await;
    let rest = step(&stage, "op").await;
    assert_eq!((rest.operation.redriven, rest.operation.ended_well, rest.waits), (5, 2, None));
    assert_eq!(step(&stage, "op").await.operation.state, OperationState::Done);
}

/// When too many end badly it stops; a person lets it go on, with a new canary.
pub async fn an_operation_stops_when_too_many_end_badly(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 6).await;
    let pace = Pace { canary: 2, stop_over_percent: Some(50), ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    step(&stage, "op").await;
    for lease in stage.take(9).await {
        stage.end(&lease, undecodable("still not repaired")).await;
    }
    let stopped = step(&stage, "op").await.operation;
    assert_eq!((stopped.state, stopped.ended_badly, stopped.redriven), (OperationState::Stopped, 2, 2));
    assert_eq!(step(&stage, "op").await.operation.redriven, 2, "a step of a stopped one redrives nothing");
    let resume = |reason: &str| Operate::Resume { name: "op".into(), act: act(reason) };
    assert_eq!(refused(stage.store.operate(resume("")).await), StoreErrorKind::Invalid);
    let resumed = stage.store.operate(resume("deployed the other fix")).await.expect("it goes on");
    assert_eq!(resumed.operation.state, OperationState::Running);
    assert_eq!(step(&stage, "op").await.operation.redriven, 4, "another canary");
    for lease in stage.take(9).await {
        stage.end(&lease, completed()).await;
    }
    let rest = step(&stage, "op").await.operation;
    assert_eq!((rest.state, rest.redriven), (OperationState::Running, 6), "what was bad before is forgiven");
}

/// No more than the share it may is no reason to stop, and few that ended early are none either.
pub async fn an_operation_goes_on_while_few_end_badly(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 4).await;
    let pace = Pace { canary: 2, stop_over_percent: Some(50), ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    step(&stage, "op").await;
    let canary = stage.take(9).await;
    stage.end(&canary[0], completed()).await;
    stage.end(&canary[1], permanent()).await;
    let stepped = step(&stage, "op").await.operation;
    assert_eq!((stepped.state, stepped.redriven), (OperationState::Running, 4));
    assert_eq!((stepped.ended_well, stepped.ended_badly), (1, 1));
}

/// A canary that is larger than all there is, is judged as well.
pub async fn a_canary_of_all_is_judged_at_its_end(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 1).await;
    let pace = Pace { canary: 5, stop_over_percent: Some(0), ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    step(&stage, "op").await;
    assert_eq!(step(&stage, "op").await.waits, Some(Waits::Canary));
    let lease = stage.take_one().await;
    stage.end(&lease, undecodable("still not repaired")).await;
    assert_eq!(step(&stage, "op").await.operation.state, OperationState::Stopped);
}

/// No faster than its rate, whoever drives it.
pub async fn an_operation_keeps_to_its_rate(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    many_dead(&stage, 5).await;
    let pace = Pace { per_second: Some(2), ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    assert_eq!(step(&stage, "op").await.operation.redriven, 2);
    let waiting = step(&stage, "op").await;
    assert_eq!((waiting.operation.redriven, waiting.waits), (2, Some(Waits::Until(stage.now().after(SECOND)))));
    stage.clock.advance(SECOND);
    assert_eq!(step(&stage, "op").await.operation.redriven, 4);
}

/// Called off it redrives no more, and cannot go on.
pub async fn a_cancelled_operation_redrives_no_more(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = many_dead(&stage, 2).await;
    let pace = Pace { canary: 1, ..GENTLE };
    stage.store.operate(operation("op", Selection::default(), pace)).await.expect("it begins");
    step(&stage, "op").await;
    let cancel = Operate::Cancel { name: "op".into(), act: act("the wrong fix") };
    let cancelled = stage.store.operate(cancel.clone()).await.expect("it runs");
    assert_eq!(cancelled.operation.state, OperationState::Cancelled);
    assert_eq!(stage.store.operate(cancel).await, Ok(cancelled), "twice is once");
    assert_eq!(step(&stage, "op").await.operation.redriven, 1);
    assert_eq!(stage.state(ids[1]).await, State::Dead);
    let resume = Operate::Resume { name: "op".into(), act: act("after all") };
    assert_eq!(refused(stage.store.operate(resume).await), StoreErrorKind::Conflict);
}

// --- edit ------------------------------------------------------------------------------------------------------------

fn edit(id: MessageId, json: &str, reason: &str) -> Edit {
    Edit { id, payload: payload(json), act: act(reason) }
}

/// The handler gets the new payload; the key still answers to the old one.
pub async fn an_edited_payload_is_run_and_its_key_keeps_the_first_fingerprint(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    let edited = stage.store.edit(edit(id, "{\"cents\":500}", "cents were euros")).await.expect("it is dead");
    assert_eq!((&*edited.before, &*edited.after), (message("m").payload.text(), "{\"cents\":500}"));
    assert_eq!(stage.view(id).await.history.last().map(|e| e.outcome.clone()), Some("edited".into()));
    assert_eq!(stage.state(id).await, State::Dead, "changed, not redriven");
    stage.redrive(id, false).await.expect("dead");
    let lease = stage.take_one().await;
    assert_eq!((&*lease.message.payload, lease.counters.round), ("{\"cents\":500}", 1));
    let existing = Ok(Enqueued::Existing { id, state: State::Leased, ignored: vec![] });
    assert_eq!(stage.enqueue(message("m")).await, existing, "the producer repeats what it sent");
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let row = audit.iter().find(|row| row.act == "edit").expect("an audit row");
    assert_eq!((row.message, row.reason.as_str()), (Some(id), "cents were euros"));
}

/// A remote that remembers the request under a key must not take the new one for it.
pub async fn after_an_edit_an_effect_that_was_not_done_has_another_key(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let id = lease.message.id;
    let first = stage.intend(&lease, &at_most_once()).await;
    stage.answer(&lease, &first, EffectAnswer::NotDone).await;
    let refused = Outcome::Refused { failure: failure("too_large") };
    assert_eq!(stage.end(&lease, refused).await.state, State::Dead);
    stage.store.edit(edit(id, "{\"cents\":500}", "cents were euros")).await.expect("nothing happened");
    stage.redrive(id, false).await.expect("dead");
    let lease = stage.take_one().await;
    let edited = Reached { request_hash: [2; 16], ..at_most_once() };
    let second = stage.intend(&lease, &edited).await;
    assert_eq!((second.seq, second.round), (1, 1));
    assert_ne!(second.key, first.key);
}

/// Once an effect of the old payload happened or may have, the payload stands.
pub async fn a_payload_of_which_an_effect_happened_is_not_changed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("confirmed").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, confirmed("7")).await;
    assert_eq!(stage.end(&lease, permanent()).await.state, State::Dead);
    let parked = stage.parked("parked").await;
    let completed = stage.completed("completed").await;
    let dead = stage.dead("dead").await;
    let ready = stage.put(message("ready")).await;
    let before = stage.view(lease.message.id).await;
    for id in [lease.message.id, parked, ready, completed] {
        assert_eq!(refused(stage.store.edit(edit(id, "1", "why")).await), StoreErrorKind::Conflict);
    }
    assert_eq!(stage.view(lease.message.id).await, before);
    assert_eq!(refused(stage.store.edit(edit(MessageId::from_i64(7), "1", "why")).await), StoreErrorKind::NotFound);
    assert_eq!(refused(stage.store.edit(edit(dead, "1", " ")).await), StoreErrorKind::Invalid);
}

/// The same payload again changes nothing.
pub async fn an_edit_repeated_is_harmless(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    stage.store.edit(edit(id, "1", "why")).await.expect("it is dead");
    let view = stage.view(id).await;
    let again = stage.store.edit(edit(id, "1", "why")).await.expect("it is dead");
    assert_eq!(again.before, again.after);
    assert_eq!(stage.view(id).await, view);
}

// --- discard ---------------------------------------------------------------------------------------------------------

async fn discard(stage: &Stage<'_>, id: MessageId) -> Result<MessageId, StoreError> {
    only(stage.store.discard(Discard { ids: vec![id], act: act("nobody needs it") }).await)
}

/// A discarded dead letter leaves the desk, keeps its key, and goes after its retention; no other one does.
pub async fn only_a_discarded_dead_letter_expires(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    let kept = stage.dead("kept").await;
    stage.clock.advance(DAY * 30);
    assert_eq!(discard(&stage, id).await, Ok(id));
    assert_eq!(discard(&stage, id).await, Ok(id), "twice is once");
    assert_eq!(stage.expire().await, 0, "its retention counts from the discard");
    let dead = Filter { states: vec![State::Dead], limit: 9, ..Filter::default() };
    assert_eq!(stage.list(dead.clone()).await, [kept]);
    assert_eq!(stage.list(Filter { discarded: true, ..dead.clone() }).await, [id, kept]);
    assert_eq!(stage.store.groups(dead).await.expect("answered").iter().map(|group| group.count).sum::<u64>(), 1);
    assert_eq!(stage.queue_stats("work").await.dead, 1);
    assert_eq!(stage.view(id).await.history.last().map(|e| e.outcome.clone()), Some("discarded".into()));
    let existing = Ok(Enqueued::Existing { id, state: State::Dead, ignored: vec![] });
    assert_eq!(stage.enqueue(message("m")).await, existing);
    stage.clock.advance(DAY * 8);
    assert_eq!(stage.expire().await, 1);
    assert!(stage.view_if_any(id).await.is_none() && stage.view_if_any(kept).await.is_some());
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    assert_eq!(audit.iter().filter(|row| row.act == "discard").count(), 1);
}

/// A discard was a mistake: until it is gone it is redriven like any other.
pub async fn a_discarded_dead_letter_can_be_redriven(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.dead("m").await;
    discard(&stage, id).await.expect("it is dead");
    assert_eq!(stage.redrive(id, false).await, Ok(id));
    assert_eq!((stage.queue_stats("work").await.dead, stage.queue_stats("work").await.ready), (0, 1));
    let lease = stage.take_one().await;
    stage.end(&lease, undecodable("again")).await;
    assert_eq!(stage.queue_stats("work").await.dead, 1, "back on the desk");
}

/// Only dead letters are discarded, and with a reason.
pub async fn only_a_dead_letter_is_discarded(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let completed = stage.completed("completed").await;
    let parked = stage.parked("parked").await;
    let dead = stage.dead("dead").await;
    let ready = stage.put(message("ready")).await;
    for id in [completed, parked, ready] {
        assert_eq!(refused(discard(&stage, id).await), StoreErrorKind::Conflict);
    }
    assert_eq!(refused(discard(&stage, MessageId::from_i64(7)).await), StoreErrorKind::NotFound);
    let silent = stage.store.discard(Discard { ids: vec![dead], act: act("") }).await;
    assert_eq!(refused(silent), StoreErrorKind::Invalid);
}
