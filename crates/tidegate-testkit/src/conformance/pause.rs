//! Pausing, resuming and limiting queues.

use tidegate_core::lifecycle::State;
use tidegate_core::message::NewMessage;
use tidegate_core::store::{Act, ChangeQueue, QueueChange};

use super::stage::*;
use crate::Engine;

/// What is running goes on; nothing new begins, in any process.
pub async fn a_paused_queue_lets_running_messages_end_and_starts_none(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let lease = stage.started("running").await;
    stage.put(message("waiting")).await;
    stage.change_queue("work", QueueChange::Pause).await;
    assert!(stage.take(10).await.is_empty());
    let other = stage.other_handle().await;
    assert!(other.claim(stage.request(10)).await.expect("a claim is answered").leases.is_empty());
    assert!(stage.extend(lease.message.id, lease.token).await.is_ok());
    assert_eq!(stage.end(&lease, completed()).await.state, State::Completed);
    stage.reopen().await;
    assert!(stage.take(10).await.is_empty(), "also after a restart");
    assert!(stage.queue_stats("work").await.paused);
    other
        .pause(ChangeQueue {
            tenant: tidegate_core::Tenant::default(),
            queue: queue("work"),
            change: QueueChange::Resume,
            act: act("over"),
        })
        .await
        .expect("a queue can be resumed");
    assert_eq!(stage.take(10).await.len(), 1);
    assert!(!stage.queue_stats("work").await.paused);
}

/// A paused queue accepts messages.
pub async fn a_paused_queue_accepts_messages(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.change_queue("work", QueueChange::Pause).await;
    stage.put(message("m")).await;
    assert!(stage.take(10).await.is_empty());
}

/// A queue that nobody used yet can be paused and limited, and is shown.
pub async fn a_queue_nobody_used_yet_can_be_paused_and_limited(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.change_queue("fresh", QueueChange::Pause).await;
    stage.change_queue("fresh", QueueChange::Limit(Some(1))).await;
    let shown = stage.queue_stats("fresh").await;
    assert_eq!((shown.paused, shown.max_depth, shown.ready), (true, Some(1), 0));
    stage.put(NewMessage { queue: queue("fresh"), ..message("m") }).await;
    assert!(stage.enqueue(NewMessage { queue: queue("fresh"), ..message("n") }).await.is_err());
}

/// One queue's pause is no other's.
pub async fn a_pause_concerns_one_queue(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("m")).await;
    stage.change_queue("other", QueueChange::Pause).await;
    assert_eq!(stage.take(10).await.len(), 1);
}

/// Pausing twice and resuming what is not paused are harmless.
pub async fn pausing_and_resuming_twice_is_harmless(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    stage.put(message("m")).await;
    for change in [QueueChange::Resume, QueueChange::Pause, QueueChange::Pause, QueueChange::Resume] {
        stage.change_queue("work", change).await;
    }
    assert_eq!(stage.take(10).await.len(), 1);
}

/// Each act is in the audit, on its queue.
pub async fn every_change_of_a_queue_leaves_an_audit_row(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    for change in [QueueChange::Pause, QueueChange::Resume, QueueChange::Limit(Some(5)), QueueChange::Limit(None)] {
        stage.change_queue("work", change).await;
    }
    let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
    let acts: Vec<_> = audit.iter().map(|row| (row.act.as_str(), row.queue.clone(), row.reason.as_str())).collect();
    let on = |act| (act, Some(queue("work")), "for a test");
    assert_eq!(acts, [on("pause"), on("resume"), on("limit"), on("limit")]);
    assert!(audit.iter().all(|row| row.tenant == Some(tenant(""))), "{audit:?}");
    assert!(audit[2].detail.contains('5'), "{:?}", audit[2].detail);
}

/// The same act again, as after a lost reply, changes nothing and stands in the audit once. What another says, or for another
/// reason, is kept although nothing changes; and after another act it is an act again.
pub async fn an_act_on_a_queue_that_is_repeated_stands_in_the_audit_once(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    let acts = async |stage: &Stage<'_>| -> Vec<String> {
        let audit = stage.store.audit(0, 100).await.expect("the audit is answered");
        audit.iter().map(|row| format!("{} {} {}{}", row.act, row.actor, row.reason, row.detail)).collect()
    };
    let change = |name: &str, change, actor: &str, reason: &str| ChangeQueue {
        tenant: tenant(""),
        queue: queue(name),
        change,
        act: Act { actor: actor.to_owned(), reason: reason.to_owned() },
    };
    let five = QueueChange::Limit(Some(5));
    for (name, how, actor, reason) in [
        ("work", QueueChange::Pause, "ada", "night"),
        ("work", QueueChange::Pause, "ada", "night"),
        ("work", five, "ada", "load"),
        // The limit is another matter, and so is another queue.
        ("work", QueueChange::Pause, "ada", "night"),
        ("other", QueueChange::Pause, "ada", "night"),
        ("work", five, "ada", "load"),
        // Somebody else says so as well, and why.
        ("work", QueueChange::Pause, "bob", "night"),
        ("work", QueueChange::Pause, "bob", "stock-taking"),
    ] {
        stage.store.pause(change(name, how, actor, reason)).await.expect("a queue can be changed");
    }
    stage.reopen().await;
    stage.store.pause(change("work", QueueChange::Pause, "bob", "stock-taking")).await.expect("as before");
    for (how, times) in [(QueueChange::Resume, 2), (QueueChange::Pause, 1), (QueueChange::Limit(None), 2)] {
        for _ in 0..times {
            stage.store.pause(change("work", how, "bob", "stock-taking")).await.expect("a queue can be changed");
        }
    }
    assert!(stage.queue_stats("work").await.paused);
    assert_eq!(
        acts(&stage).await,
        [
            "pause ada night",
            "limit ada load5",
            "pause ada night",
            "pause bob night",
            "pause bob stock-taking",
            "resume bob stock-taking",
            "pause bob stock-taking",
            "limit bob stock-takingnone",
        ]
    );
}
