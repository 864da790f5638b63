//! Accepting messages: keys, fingerprints, answers, limits (protocol §2).

use std::collections::BTreeMap;

use tidegate_core::lifecycle::State;
use tidegate_core::message::{Answer, DEFAULT_MAX_PAYLOAD, Due, NewMessage, Priority};
use tidegate_core::store::{Counted, Enqueued, QueueChange};
use tidegate_core::{StoreErrorKind, Tenant};

use super::stage::*;
use crate::Engine;

/// What is stored is what was given, byte for byte.
pub async fn a_new_message_is_stored_as_given_and_ready(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let headers = BTreeMap::from([("traceparent".to_owned(), "00-ab-cd-01".to_owned())]);
    let given = NewMessage {
        payload: payload(" { \"b\" : 1.50, \"a\" : [ ] } "),
        priority: Priority::FIRST,
        version: 1,
        headers: headers.clone(),
        ..message("m")
    };
    let id = stage.put(given).await;
    let view = stage.view(id).await;
    assert_eq!(view.state, State::Ready);
    assert_eq!(&*view.message.payload, " { \"b\" : 1.50, \"a\" : [ ] } ");
    assert_eq!((view.message.queue, view.message.kind, view.message.key), (queue("work"), kind("work"), key("m")));
    assert_eq!((view.message.priority, view.message.version), (Priority::FIRST, 1));
    assert_eq!(view.message.headers, headers);
    assert_eq!((view.message.enqueued_at, view.message.first_due_at), (stage.now(), stage.now()));
    assert_eq!((view.message.flow, view.message.parent), (id, None));
    assert_eq!(view.counters, tidegate_core::lifecycle::Counters::default());
    assert_eq!((view.due_at, view.answer, view.ended_at, view.lease), (Some(stage.now()), None, None, None));
}

/// Ids grow in the order of acceptance, even while the clock stands or goes back.
pub async fn ids_grow_even_when_the_clock_goes_back(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.put(message("first")).await;
    let second = stage.put(message("second")).await;
    stage.clock.jump_back(DAY);
    let third = stage.put(message("third")).await;
    assert!(first < second && second < third, "{first} {second} {third}");
}

/// An accepted message is there for ever after, over any restart.
pub async fn a_message_survives_that_the_store_is_closed(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    stage.reopen().await;
    assert_eq!(stage.take_one().await.message.id, id);
}

/// Another handle on the same place sees what was accepted.
pub async fn a_message_is_seen_by_another_handle(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let other = stage.other_handle().await;
    let known = only(other.enqueue(vec![message("m")]).await);
    assert_eq!(known, Ok(Enqueued::Existing { id, state: State::Ready, ignored: vec![] }));
}

/// A known key is never a silent no-op: the reply says which message it is and where it stands.
pub async fn a_known_key_that_waits_or_runs_is_told_as_existing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let existing = |state| Ok(Enqueued::Existing { id, state, ignored: vec![] });
    assert_eq!(stage.enqueue(message("m")).await, existing(State::Ready));
    stage.take_one().await;
    assert_eq!(stage.enqueue(message("m")).await, existing(State::Leased));
    assert_eq!(stage.all().await, [id], "no second message was stored");
}

/// A duplicate of a completed message gets the stored answer, byte-identical.
pub async fn a_completed_key_is_answered_byte_for_byte(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let id = stage.completed("m").await;
    let replayed = Ok(Enqueued::Replayed { id, answer: Answer::Completed("{\"done\": 1.50}".into()) });
    assert_eq!(stage.enqueue(message("m")).await, replayed);
    stage.reopen().await;
    stage.clock.advance(DAY * 6);
    assert_eq!(stage.enqueue(message("m")).await, replayed, "for the whole retention");
    assert!(stage.take(10).await.is_empty(), "nothing runs again");
}

/// A duplicate of a failed message gets its failure: the handler is not asked again.
pub async fn a_failed_key_gets_its_failure_replayed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.failed("m").await;
    let replayed = Ok(Enqueued::Replayed { id, answer: Answer::Failed(failure("declined")) });
    assert_eq!(stage.enqueue(message("m")).await, replayed);
    assert!(stage.take(10).await.is_empty());
}

/// Dead, parked and cancelled never answer, and no duplicate ever starts work.
pub async fn dead_parked_and_cancelled_keys_never_answer_and_start_no_work(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let dead = stage.dead("dead").await;
    let parked = stage.parked("parked").await;
    let cancelled = stage.cancelled("cancelled").await;
    for (name, id, state) in
        [("dead", dead, State::Dead), ("parked", parked, State::Parked), ("cancelled", cancelled, State::Cancelled)]
    {
        assert_eq!(stage.enqueue(message(name)).await, Ok(Enqueued::Existing { id, state, ignored: vec![] }));
    }
    assert!(stage.take(10).await.is_empty());
}

/// The same key with another payload is refused before anything changes, and names the known message.
pub async fn a_key_with_another_payload_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let other = NewMessage { payload: payload("{\"of\":\"another\"}"), ..message("m") };
    let error = stage.enqueue(other.clone()).await.expect_err("another payload");
    assert_eq!((error.kind(), error.conflicting_id()), (StoreErrorKind::KeyConflict, Some(id)));
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    assert_eq!(refused(stage.enqueue(other).await), StoreErrorKind::KeyConflict, "also when it is answered");
    assert_eq!(stage.all().await, [id]);
}

/// The kind belongs to the fingerprint.
pub async fn a_key_with_another_kind_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("m")).await;
    let other = NewMessage { kind: kind("other"), ..message("m") };
    assert_eq!(refused(stage.enqueue(other).await), StoreErrorKind::KeyConflict);
}

/// Layout, order of members and the way a number is written are no difference; a digit far behind is one.
pub async fn payloads_are_compared_by_their_value(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let with = |json: &str| NewMessage { payload: payload(json), ..message("m") };
    let id = stage.put(with("{\"a\":9007199254740993,\"b\":[2]}")).await;
    let same = stage.enqueue(with(" { \"b\" : [ 2.0 ], \"a\" : 9007199254740993 } ")).await;
    assert_eq!(same, Ok(Enqueued::Existing { id, state: State::Ready, ignored: vec![] }));
    let neighbour = stage.enqueue(with("{\"a\":9007199254740992,\"b\":[2]}")).await;
    assert_eq!(refused(neighbour), StoreErrorKind::KeyConflict);
}

/// Options are no part of what a key asks for: the first ones win, and the reply lists those ignored.
pub async fn ignored_options_are_listed(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let deadline = |after| Some(stage.now().after(after));
    let first = NewMessage { priority: Priority::FIRST, deadline: deadline(HOUR), ..message("m") };
    let id = stage.put(first.clone()).await;
    let existing = |ignored| Ok(Enqueued::Existing { id, state: State::Ready, ignored });
    assert_eq!(stage.enqueue(first.clone()).await, existing(vec![]), "the same call again ignores nothing");
    let other = NewMessage { priority: Priority::LAST, deadline: deadline(DAY), ..first };
    let Ok(Enqueued::Existing { mut ignored, .. }) = stage.enqueue(other).await else { panic!("not existing") };
    ignored.sort_unstable();
    assert_eq!(ignored, ["deadline", "priority"]);
    let view = stage.view(id).await;
    assert_eq!((view.message.priority, view.message.deadline), (Priority::FIRST, deadline(HOUR)));
}

/// The payload version is not in the fingerprint.
pub async fn another_payload_version_is_no_conflict(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    match stage.enqueue(NewMessage { version: 2, ..message("m") }).await {
        Ok(Enqueued::Existing { id: known, state: State::Ready, .. }) => assert_eq!(known, id),
        other => panic!("{other:?}"),
    }
}

/// The scope of a key is tenant and queue: the same deposit id on four queues is four keys.
pub async fn a_key_on_another_queue_or_of_another_tenant_is_another_key(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.put(message("m")).await;
    let elsewhere = NewMessage { queue: queue("elsewhere"), payload: payload("7"), ..message("m") };
    let second = stage.put(elsewhere).await;
    let tenant = Tenant::new("acme").expect("a valid name");
    let third = stage.put(NewMessage { tenant: tenant.clone(), payload: payload("8"), ..message("m") }).await;
    let found = [
        stage.store.find(Tenant::default(), queue("work"), key("m")).await,
        stage.store.find(Tenant::default(), queue("elsewhere"), key("m")).await,
        stage.store.find(tenant, queue("work"), key("m")).await,
    ];
    assert_eq!(found, [Ok(Some(first)), Ok(Some(second)), Ok(Some(third))]);
}

/// A key that is a UUID is a key like any other.
pub async fn a_uuid_is_a_key_like_any_other(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let uuid = "0190d6a0-7b1c-7def-8123-456789abcdef";
    let id = stage.put(message(uuid)).await;
    let existing = Ok(Enqueued::Existing { id, state: State::Ready, ignored: vec![] });
    assert_eq!(stage.enqueue(message(uuid)).await, existing);
    stage.put(message(&uuid.to_uppercase())).await;
    assert_eq!(stage.view(id).await.message.key, key(uuid));
}

/// An unknown key older than the retention may have been done and forgotten: it is not executed.
pub async fn an_unknown_key_older_than_the_retention_is_stale(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let made = |ago| NewMessage { key_time: Some(stage.now().before(ago)), ..message("m") };
    assert_eq!(stage.enqueue(made(DAY * 7 + SECOND)).await, Ok(Enqueued::Stale));
    assert!(stage.all().await.is_empty(), "nothing is stored");
    let id = stage.put(made(DAY * 7 - SECOND)).await;
    let existing = Ok(Enqueued::Existing { id, state: State::Ready, ignored: vec![] });
    assert_eq!(stage.enqueue(made(DAY * 8)).await, existing, "a known key is answered, however old");
}

/// A queue at its limit refuses with a word on when to come again, and stores nothing.
pub async fn a_full_queue_refuses_and_says_when_to_come_again(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.change_queue("work", QueueChange::Limit(Some(2))).await;
    stage.put(message("ready")).await;
    let later = NewMessage { due: Due::In(HOUR), ..message("scheduled") };
    stage.put(later).await;
    let error = stage.enqueue(message("third")).await.expect_err("the queue is full");
    assert_eq!(error.kind(), StoreErrorKind::QueueFull);
    assert!(error.retry_after_duration().is_some_and(|after| !after.is_zero()), "{error}");
    assert_eq!(stage.store.find(Tenant::default(), queue("work"), key("third")).await, Ok(None));
    stage.put(NewMessage { queue: queue("elsewhere"), ..message("third") }).await;
}

/// The limit counts what is leased too, and gives way when a message ended or the limit is lifted.
pub async fn a_queue_takes_again_when_a_message_ended_or_its_limit_was_lifted(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.change_queue("work", QueueChange::Limit(Some(1))).await;
    let lease = stage.started("first").await;
    assert_eq!(refused(stage.enqueue(message("second")).await), StoreErrorKind::QueueFull, "leased counts");
    stage.end(&lease, completed()).await;
    stage.put(message("second")).await;
    assert_eq!(refused(stage.enqueue(message("third")).await), StoreErrorKind::QueueFull);
    stage.change_queue("work", QueueChange::Limit(None)).await;
    stage.put(message("third")).await;
}

/// The limit holds inside a batch as it does between batches, item by item.
pub async fn a_batch_fills_a_queue_up_to_its_limit(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.change_queue("work", QueueChange::Limit(Some(2))).await;
    let batch = ["a", "b", "c", "a"].map(message).to_vec();
    let verdicts = stage.store.enqueue(batch).await.expect("the batch is answered");
    assert!(matches!(verdicts[..2], [Ok(Enqueued::New { .. }), Ok(Enqueued::New { .. })]), "{verdicts:?}");
    assert_eq!(verdicts[2].as_ref().map_err(tidegate_core::StoreError::kind), Err(StoreErrorKind::QueueFull));
    assert!(matches!(verdicts[3], Ok(Enqueued::Existing { .. })), "{verdicts:?}");
}

/// A duplicate needs no room.
pub async fn a_duplicate_is_answered_even_when_the_queue_is_full(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let done = stage.completed("done").await;
    stage.change_queue("work", QueueChange::Limit(Some(0))).await;
    let replayed = Enqueued::Replayed { id: done, answer: Answer::Completed("{\"done\": 1.50}".into()) };
    assert_eq!(stage.enqueue(message("done")).await, Ok(replayed));
    assert_eq!(refused(stage.enqueue(message("new")).await), StoreErrorKind::QueueFull);
}

/// A wrong item is refused alone; the rest of its batch is stored.
pub async fn a_bad_item_of_a_batch_is_refused_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let known = stage.put(message("known")).await;
    let big = format!("\"{}\"", "x".repeat(DEFAULT_MAX_PAYLOAD));
    let batch = vec![
        message("first"),
        NewMessage { payload: payload(&big), ..message("big") },
        NewMessage { payload: payload("0"), ..message("known") },
        NewMessage { version: 0, ..message("versionless") },
        NewMessage { max_age: Some(std::time::Duration::ZERO), ..message("ageless") },
        message("last"),
    ];
    let verdicts = stage.store.enqueue(batch).await.expect("the batch is answered");
    let kinds: Vec<_> = verdicts.iter().map(|v| v.as_ref().err().map(tidegate_core::StoreError::kind)).collect();
    let invalid = Some(StoreErrorKind::Invalid);
    assert_eq!(kinds, [None, invalid, Some(StoreErrorKind::KeyConflict), invalid, invalid, None]);
    assert_eq!(stage.all().await.len(), 3);
    assert_eq!(stage.state(known).await, State::Ready);
}

/// Two items of one batch under one key are a message and its duplicate.
pub async fn a_duplicate_within_a_batch_is_told_as_existing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let batch = vec![message("m"), message("m"), NewMessage { payload: payload("0"), ..message("m") }];
    let verdicts = stage.store.enqueue(batch).await.expect("the batch is answered");
    let [Ok(Enqueued::New { id }), second, third] = &verdicts[..] else { panic!("{verdicts:?}") };
    assert_eq!(*second, Ok(Enqueued::Existing { id: *id, state: State::Ready, ignored: vec![] }));
    assert_eq!(third.as_ref().map_err(tidegate_core::StoreError::kind), Err(StoreErrorKind::KeyConflict));
}

/// An empty batch is answered with no verdicts.
pub async fn an_empty_batch_is_answered_with_nothing(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    assert_eq!(stage.store.enqueue(Vec::new()).await, Ok(Vec::new()));
}

/// A message that could never begin is the caller's mistake.
pub async fn a_deadline_that_is_over_before_the_message_is_due_is_refused(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let past = NewMessage { deadline: Some(stage.now()), ..message("past") };
    assert_eq!(refused(stage.enqueue(past).await), StoreErrorKind::Invalid);
    let deadline = Some(stage.now().after(MINUTE));
    let too_late = NewMessage { deadline, due: Due::In(HOUR), ..message("late") };
    assert_eq!(refused(stage.enqueue(too_late).await), StoreErrorKind::Invalid);
    stage.put(NewMessage { deadline, ..message("in-time") }).await;
}

/// The deadline bounds the work, not the answer.
pub async fn a_duplicate_after_its_deadline_still_gets_its_answer(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let given = NewMessage { deadline: Some(stage.now().after(MINUTE)), ..message("m") };
    let id = stage.put(given.clone()).await;
    let lease = stage.take_one().await;
    stage.end(&lease, completed()).await;
    stage.clock.advance(HOUR);
    let replayed = Enqueued::Replayed { id, answer: Answer::Completed("{\"done\": 1.50}".into()) };
    assert_eq!(stage.enqueue(given).await, Ok(replayed));
}

/// A due time in the past means at once.
pub async fn a_due_time_in_the_past_means_at_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(NewMessage { due: Due::At(stage.now().before(DAY)), ..message("m") }).await;
    let view = stage.view(id).await;
    assert_eq!((view.message.first_due_at, view.due_at), (stage.now(), Some(stage.now())));
}

/// Every verdict is counted where it was given.
pub async fn every_verdict_is_counted(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.completed("done").await;
    stage.put(message("live")).await;
    stage.change_queue("work", QueueChange::Limit(Some(1))).await;
    for _ in 0..2 {
        stage.enqueue(message("done")).await.expect("answered");
        stage.enqueue(message("live")).await.expect("answered");
        assert!(stage.enqueue(NewMessage { payload: payload("0"), ..message("live") }).await.is_err());
        assert!(stage.enqueue(message("more")).await.is_err());
    }
    for (what, n) in [
        (Counted::Enqueued, 2),
        (Counted::Replayed, 2),
        (Counted::Deduplicated, 2),
        (Counted::KeyConflicts, 2),
        (Counted::QueueFull, 2),
    ] {
        assert_eq!(stage.tally(what).await, n, "{what:?}");
    }
}
