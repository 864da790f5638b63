//! Looking at messages: views, lists, flows, explanations, the audit.

use tidegate_core::explain::explain;
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Answer, Due, Failure, NewMessage, Priority};
use tidegate_core::store::{Filter, Progress, QueueChange, Settle};
use tidegate_core::{MessageId, Tenant};

use super::stage::*;
use crate::Engine;

/// An id nobody has is none, in its place among the others.
pub async fn an_unknown_id_is_none_in_its_place(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let id = stage.put(message("m")).await;
    let nobody = MessageId::from_i64(7);
    let views = stage.store.inspect(vec![nobody, id, nobody, id]).await.expect("an inspection is answered");
    assert_eq!(views.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, true]);
    let progress = stage.store.progress(vec![id, nobody]).await.expect("progress is answered");
    let ready = Progress { state: State::Ready, reason: None, answer: None };
    assert_eq!(progress, [Some(ready), None]);
    assert_eq!(stage.store.explain(nobody).await, Ok(None));
    assert_eq!(stage.store.flow(nobody).await, Ok(vec![]));
    assert_eq!(stage.store.find(Tenant::default(), queue("never-used"), key("m")).await, Ok(None));
}

/// What a waiting client polls: the state, and the answer once there is one.
pub async fn progress_tells_state_reason_and_answer(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = vec![
        stage.completed("completed").await,
        stage.failed("failed").await,
        stage.dead("dead").await,
        stage.parked("parked").await,
        stage.cancelled("cancelled").await,
        stage.started("leased").await.message.id,
    ];
    let progress: Vec<_> = stage.store.progress(ids).await.expect("answered").into_iter().flatten().collect();
    let at = |state, reason: Option<&str>, answer| Progress { state, reason: reason.map(Into::into), answer };
    let expected = [
        at(State::Completed, None, Some(Answer::Completed("{\"done\": 1.50}".into()))),
        at(State::Failed, None, Some(Answer::Failed(failure("declined")))),
        at(State::Dead, Some("decode"), None),
        at(State::Parked, Some("outcome_unknown"), None),
        at(State::Cancelled, None, None),
        at(State::Leased, None, None),
    ];
    assert_eq!(progress, expected);
}

/// A list is by ascending id, page by page, and no message is in two pages or none.
pub async fn a_list_is_paged_by_ascending_id(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(stage.put(message(&format!("m{n}"))).await);
    }
    stage.take(2).await;
    let mut seen = Vec::new();
    let mut after = None;
    for _ in 0..10 {
        let page = stage.list(Filter { after, limit: 3, ..Filter::default() }).await;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(*last);
        seen.extend(page);
    }
    assert_eq!(seen, ids);
}

/// A list is by what was asked for, and everything asked for at once.
pub async fn a_list_shows_only_what_was_asked_for(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let completed = stage.completed("completed").await;
    let failed = stage.failed("failed").await;
    let dead = stage.dead("dead").await;
    let parked = stage.parked("parked").await;
    let ready = stage.put(message("ready")).await;
    let elsewhere = stage.put(NewMessage { queue: queue("other"), ..message("ready") }).await;
    let foreign = stage.put(NewMessage { kind: kind("foreign"), ..message("foreign") }).await;
    let theirs = stage.put(NewMessage { tenant: tenant("acme"), ..message("ready") }).await;
    let all = || Filter { limit: 100, ..Filter::default() };
    let states = |states: &[State]| Filter { states: states.to_vec(), ..all() };
    for (filter, expected) in [
        (states(&[State::Completed]), vec![completed]),
        (states(&[State::Dead, State::Failed]), vec![failed, dead]),
        (states(&[State::Ready]), vec![ready, elsewhere, foreign, theirs]),
        (Filter { tenant: Some(tenant("acme")), ..all() }, vec![theirs]),
        (Filter { tenant: Some(tenant("")), ..states(&[State::Ready]) }, vec![ready, elsewhere, foreign]),
        (Filter { tenant: Some(tenant("acme")), queue: Some(queue("other")), ..all() }, vec![]),
        (Filter { queue: Some(queue("other")), ..all() }, vec![elsewhere]),
        (Filter { kind: Some(kind("foreign")), ..all() }, vec![foreign]),
        (
            Filter { queue: Some(queue("work")), kind: Some(kind("work")), ..states(&[State::Ready]) },
            vec![ready, theirs],
        ),
        (Filter { queue: Some(queue("never-used")), ..all() }, vec![]),
        (Filter { code: Some("declined".into()), ..all() }, vec![failed]),
        (Filter { code: Some("outcome_unknown".into()), ..all() }, vec![parked]),
        (Filter { code: Some("decode".into()), ..all() }, vec![dead]),
        (Filter { code: Some("nothing".into()), ..all() }, vec![]),
    ] {
        assert_eq!(stage.list(filter.clone()).await, expected, "{filter:?}");
    }
}

/// What a list shows of a message is what the message is.
pub async fn a_summary_says_what_the_message_is(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let started = stage.now();
    let lease = stage.started("m").await;
    stage.clock.advance(SECOND);
    stage.end(&lease, retryable()).await;
    let summary = stage.store.list(Filter { limit: 1, ..Filter::default() }).await.expect("answered").remove(0);
    assert_eq!((summary.id, summary.flow, summary.state), (lease.message.id, lease.message.id, State::Ready));
    assert_eq!((summary.queue, summary.kind, summary.key), (queue("work"), kind("work"), key("m")));
    assert_eq!(summary.tenant, tenant(""));
    assert_eq!((summary.attempt, summary.code.as_deref()), (1, Some("oops")), "the last attempt's failure");
    assert_eq!(summary.due_at, Some(stage.now().after(SECOND * 5)));
    assert_eq!((summary.enqueued_at, summary.ended_at), (started, None));
    stage.clock.advance(MINUTE);
    let lease = stage.take_one().await;
    stage.end(&lease, permanent()).await;
    let summary = stage.store.list(Filter { limit: 1, ..Filter::default() }).await.expect("answered").remove(0);
    assert_eq!((summary.state, summary.code.as_deref(), summary.attempt), (State::Failed, Some("declined"), 2));
    assert_eq!((summary.due_at, summary.ended_at), (None, Some(stage.now())));
}

/// A flow is all that followed from one message, the first one first.
pub async fn a_flow_shows_all_that_followed_the_first_one_first(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let first = stage.started("first").await;
    let settle = Settle {
        then: vec![message("second"), NewMessage { queue: queue("other"), ..message("third") }],
        ..settlement(&first, completed())
    };
    let follow_ups = stage.settle(settle).await.expect("the lease is held").follow_ups;
    stage.put(message("stranger")).await;
    let flow = stage.store.flow(first.message.id).await.expect("answered");
    assert_eq!(flow[0].id, first.message.id);
    let mut ids: Vec<_> = flow.iter().map(|summary| summary.id).collect();
    ids.sort_unstable();
    let mut expected = vec![first.message.id];
    expected.extend(follow_ups);
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert!(flow.iter().all(|summary| summary.flow == first.message.id));
}

/// An explanation is fed by the claim's own predicates.
pub async fn an_explanation_knows_what_holds_a_message_back(engine: &dyn Engine) {
    let stage = Stage::without_policy(engine).await;
    let first = stage.put(message("first")).await;
    let second = stage.put(message("second")).await;
    let later = stage.put(NewMessage { due: Due::In(HOUR), ..message("later") }).await;
    let facts = |id| {
        let store = stage.store.clone();
        async move { store.explain(id).await.expect("answered").expect("it exists") }
    };
    let unserved = facts(first).await;
    assert_eq!((unserved.policy.clone(), unserved.paused, unserved.ahead), (None, false, 0));
    assert_eq!(unserved.now, stage.now());
    stage.declare("work", Stage::policy()).await;
    assert_eq!(facts(first).await.policy, Some(Stage::policy()));
    let behind = facts(second).await;
    assert_eq!(behind.ahead, 1, "of its lane");
    assert_eq!(behind.view, stage.view(second).await);
    stage.put(NewMessage { priority: Priority::FIRST, ..message("other-lane") }).await;
    assert_eq!(facts(second).await.ahead, 1);
    assert_eq!(explain(&facts(later).await).label, "scheduled");
    stage.change_queue("work", QueueChange::Pause).await;
    assert!(facts(first).await.paused);
    assert_eq!(explain(&facts(first).await).label, "held");
}

/// The audit is in the order of the acts, and can be read on from where one stopped.
pub async fn the_audit_is_read_in_order_and_in_pages(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    for n in 0..5 {
        stage.clock.advance(SECOND);
        stage.change_queue(&format!("q{n}"), QueueChange::Pause).await;
    }
    stage.reopen().await;
    let mut seen = Vec::new();
    let mut after = 0;
    for _ in 0..10 {
        let page = stage.store.audit(after, 2).await.expect("the audit is answered");
        assert!(page.len() <= 2);
        let Some(last) = page.last() else { break };
        after = last.seq;
        seen.extend(page);
    }
    assert!(seen.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].at < pair[1].at));
    let queues: Vec<_> = seen.iter().filter_map(|row| row.queue.as_ref().map(ToString::to_string)).collect();
    assert_eq!(queues, ["q0", "q1", "q2", "q3", "q4"]);
}

/// A message with a long history is shown with all that is known of it, in order.
pub async fn a_view_tells_the_whole_story_in_order(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let id = lease.message.id;
    stage.end(&lease, retryable()).await;
    stage.clock.advance(MINUTE);
    stage.take_one().await;
    stage.crash().await;
    let lease = stage.take_one().await;
    stage.intend(&lease, &at_most_once()).await;
    stage.end(&lease, unknown()).await;
    stage.resolve(id, tidegate_core::lifecycle::Resolution::Happened { value: "1".into() }).await.expect("parked");
    let lease = stage.take_one().await;
    stage.end(&lease, permanent()).await;
    stage.redrive(id, false).await.expect("dead");
    let history = stage.view(id).await.history;
    let told: Vec<_> = history.iter().map(|e| (e.outcome.as_str(), e.state, e.generation)).collect();
    assert_eq!(
        told,
        [
            ("retryable", State::Ready, 0),
            ("lease_expired", State::Ready, 0),
            ("unknown", State::Parked, 0),
            ("resolved", State::Ready, 0),
            ("permanent", State::Dead, 0),
            ("redriven", State::Ready, 1),
        ]
    );
    assert!(history.windows(2).all(|pair| pair[0].at <= pair[1].at));
}

/// Dead letters are grouped by kind, code, effect and what was said; what differs from one to the next is masked.
pub async fn dead_letters_are_grouped_by_what_they_have_in_common(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut dead = Vec::new();
    for (name, detail) in [("a", "column 7 of \"x\""), ("b", "column 12 of \"y\""), ("c", "empty")] {
        dead.push(stage.put(message(name)).await);
        let lease = stage.take_one().await;
        stage.end(&lease, Outcome::Undecodable { failure: Failure::new("decode", detail) }).await;
        stage.clock.advance(SECOND);
    }
    let lease = stage.started("d").await;
    let row = stage.intend(&lease, &keyed()).await;
    stage.answer(&lease, &row, rejected()).await;
    stage.end(&lease, Outcome::Undecodable { failure: Failure::new("decode", "empty") }).await;
    stage.parked("parked").await;
    let all = Filter { limit: 9, ..Filter::default() };
    let groups = stage.store.groups(all.clone()).await.expect("groups are answered");
    assert_eq!(groups.iter().map(|group| group.count).collect::<Vec<_>>(), [2, 1, 1]);
    let first = &groups[0];
    assert_eq!((first.code.as_str(), first.pattern.as_str()), ("decode", "column # of \"…\""));
    assert_eq!((first.sample, first.effect.as_ref()), (dead[0], None));
    assert_eq!(first.last_seen.since(first.first_seen), SECOND);
    assert!(groups[1..].iter().any(|group| group.effect.as_ref() == Some(&row.effect.name)));
    assert_eq!(stage.list(Filter { group: Some(first.id), ..all.clone() }).await, dead[..2]);
    let none = Filter { code: Some("timeout".into()), ..all.clone() };
    assert_eq!(stage.store.groups(none).await, Ok(vec![]));
    let elsewhere = Filter { queue: Some(queue("elsewhere")), ..all.clone() };
    let theirs = Filter { tenant: Some(tenant("acme")), ..all.clone() };
    assert_eq!(stage.store.groups(theirs).await, Ok(vec![]));
    let ours = Filter { tenant: Some(tenant("")), ..all.clone() };
    assert_eq!(stage.store.groups(ours).await.expect("answered").len(), 3);
    assert_eq!(stage.store.groups(elsewhere).await, Ok(vec![]));
    assert_eq!(stage.store.groups(Filter { limit: 1, ..all.clone() }).await.expect("answered").len(), 1);
    let parked = Filter { states: vec![State::Parked], ..all };
    assert_eq!(stage.store.groups(parked).await.expect("answered").len(), 1);
}
