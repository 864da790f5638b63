//! One process tells another that a queue has something.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::store::{CommitListener, News};
use tidegate_core::{QueueName, Store as _};
use tokio::sync::Notify;

use crate::engine::{Schema, sql};
use crate::fixture::{claim, message, open, queue, run};

/// What a store told its process.
#[derive(Debug, Default)]
struct Ear {
    heard: Mutex<Vec<QueueName>>,
    told: Notify,
}

impl Ear {
    fn times(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns when it was told something it was not told of before.
    async fn more_than(&self, before: usize) {
        while self.times() <= before {
            tokio::time::timeout(Duration::from_secs(20), self.told.notified()).await.expect("told within its time");
        }
    }
}

impl CommitListener for Ear {
    fn committed(&self, news: &News) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend(news.ready.iter().cloned());
        self.told.notify_one();
    }
}

/// Ends the connections that listen for stores of this test's process; says how many there were.
fn end_listening() -> usize {
    let listening = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and (query like 'listen %' or query like '-- listen:%')";
    sql(listening).trim().parse().expect("a number")
}

#[test]
fn another_process_is_told_of_what_was_committed_here() {
    run(async {
        let schema = Schema::new();
        let (here, there) = (open(&schema.url()).await, open(&schema.url()).await);
        let (near, far) = (Arc::new(Ear::default()), Arc::new(Ear::default()));
        let (weak_near, weak_far) = (Arc::downgrade(&near), Arc::downgrade(&far));
        here.on_commit(weak_near);
        there.on_commit(weak_far);
        here.enqueue(vec![message("a")]).await.unwrap().remove(0).unwrap();
        far.more_than(0).await;
        assert_eq!(far.heard.lock().unwrap()[0], queue());
        assert_eq!(claim(&there, 1).await.len(), 1);

        // Connections that are lost are replaced, and whoever was not told finds it by polling meanwhile.
        let before = far.times();
        assert!(end_listening() >= 2, "one for each store");
        for n in 0..200 {
            here.enqueue(vec![message(&format!("b{n}"))]).await.unwrap().remove(0).unwrap();
            if tokio::time::timeout(Duration::from_millis(100), far.more_than(before)).await.is_ok() {
                break;
            }
        }
        assert!(far.times() > before, "nobody listens any more");
        assert!(near.times() > 0, "its own process is told at once");
    });
}

#[test]
fn stores_of_other_schemas_are_not_told() {
    run(async {
        let (mine, other) = (Schema::new(), Schema::new());
        let (here, there) = (open(&mine.url()).await, open(&mine.url()).await);
        let elsewhere = open(&other.url()).await;
        let (far, stranger) = (Arc::new(Ear::default()), Arc::new(Ear::default()));
        let (weak_far, weak_stranger) = (Arc::downgrade(&far), Arc::downgrade(&stranger));
        there.on_commit(weak_far);
        elsewhere.on_commit(weak_stranger);
        for n in 0..5 {
            let before = far.times();
            here.enqueue(vec![message(&format!("m{n}"))]).await.unwrap().remove(0).unwrap();
            far.more_than(before).await;
        }
        assert_eq!(stranger.times(), 0);
    });
}

#[test]
fn many_commits_are_told_in_few_notifications() {
    run(async {
        let schema = Schema::new();
        let (here, there) = (open(&schema.url()).await, open(&schema.url()).await);
        let far = Arc::new(Ear::default());
        let weak = Arc::downgrade(&far);
        there.on_commit(weak);
        let sent = 400;
        let calls = (0..sent).map(|n| here.enqueue(vec![message(&format!("m{n}"))]));
        for verdicts in futures_util::future::join_all(calls).await {
            verdicts.unwrap().remove(0).unwrap();
        }
        far.more_than(0).await;
        assert!(far.times() < sent, "{} notifications", far.times());
        assert!(far.heard.lock().unwrap().iter().all(|heard| *heard == queue()));
    });
}
