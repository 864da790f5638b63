//! Who is told of this process's commits: workers that wait for messages, callers that wait for answers.
//!
//! Commits of other processes are not heard of here; whoever waits polls as well.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tidegate_core::id::QueueName;
use tidegate_core::store::{CommitListener, News};
use tokio::sync::Notify;

use crate::waiter::Waiter;

/// Spreads the news of commits.
#[derive(Debug, Default)]
pub(crate) struct Newsroom {
    workers: Mutex<Vec<Weak<Subscription>>>,
    pub(crate) waiter: Waiter,
}

/// A worker's interest in queues.
#[derive(Debug)]
pub(crate) struct Subscription {
    queues: Vec<QueueName>,
    pub(crate) wake: Notify,
}

impl Newsroom {
    /// Wakes the worker whenever one of its queues may have something; for as long as the subscription lives.
    pub(crate) fn subscribe(&self, queues: Vec<QueueName>) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription { queues, wake: Notify::new() });
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // Where nothing is enqueued for long, those that come and go are cleared away by those that come.
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&subscription));
        drop(workers);
        subscription
    }
}

/// Wakes one who waits for messages of some queues, for as long as it lives.
///
/// It hears of what this process commits, and of what others do where their store tells it; who waits longer than a moment
/// looks again by itself as well.
#[derive(Debug)]
pub struct Wakeups(pub(crate) Arc<Subscription>);

impl Wakeups {
    /// Resolves when one of the queues may have something: at once, if that was so since the last time.
    ///
    /// # Cancel safety
    /// Safe: what it would have told is told the next time.
    pub async fn woken(&self) {
        self.0.wake.notified().await;
    }
}

impl CommitListener for Newsroom {
    fn committed(&self, news: &News) {
        if !news.ready.is_empty() {
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).retain(|worker| {
                let Some(worker) = worker.upgrade() else { return false };
                if worker.queues.iter().any(|queue| news.ready.contains(queue)) {
                    worker.wake.notify_one();
                }
                true
            });
        }
        if !news.ended.is_empty() {
            self.waiter.ended(&news.ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture() -> QueueName {
        QueueName::new("capture").unwrap()
    }

    #[test]
    fn those_that_left_are_cleared_away_though_nothing_is_committed() {
        let room = Newsroom::default();
        let stays = room.subscribe(vec![capture()]);
        for _ in 0..1000 {
            drop(room.subscribe(vec![capture()]));
        }
        assert!(room.workers.lock().unwrap().len() <= 2);
        drop(stays);
    }

    #[tokio::test]
    async fn a_wake_up_between_two_looks_is_not_missed() {
        let room = Newsroom::default();
        let (ours, other) = (Wakeups(room.subscribe(vec![capture()])), QueueName::new("other").unwrap());
        room.committed(&News { ready: vec![other], ended: Vec::new() });
        let nothing = tokio::time::timeout(std::time::Duration::ZERO, ours.woken()).await;
        assert!(nothing.is_err(), "woken by another queue");
        room.committed(&News { ready: vec![capture()], ended: Vec::new() });
        ours.woken().await;
    }
}
