//! One process tells another that a queue has something.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::store::{CommitListener, News};
use tidegate_core::{QueueName, Store as _};
use tidegate_postgres::PostgresStore;
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

/// Ends the connections that listen for stores of this test's process, once there are as many as are expected.
async fn end_listening(at_least: usize) {
    let listening = "from pg_stat_activity
        where datname = current_database() and (query like 'listen %' or query like '-- listen:%')";
    let number = |text: String| text.trim().parse::<usize>().expect("a number");
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    for _ in 0..400 {
        beat.tick().await;
        if number(sql(&format!("select count(*) {listening}"))) >= at_least {
            sql(&format!("select count(pg_terminate_backend(pid)) {listening}"));
            return;
        }
    }
    panic!("fewer than {at_least} listen");
}

/// Enqueues until the other process is told: a connection that is being made, or made again, hears nothing yet.
async fn told(here: &PostgresStore, far: &Ear, prefix: &str) {
    let before = far.times();
    for n in 0..200 {
        here.enqueue(vec![message(&format!("{prefix}{n}"))]).await.expect("answered").remove(0).expect("stored");
        if tokio::time::timeout(Duration::from_millis(100), far.more_than(before)).await.is_ok() {
            return;
        }
    }
    panic!("nobody listens");
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
        told(&here, &far, "a").await;
        assert_eq!(far.heard.lock().unwrap()[0], queue());
        assert!(!claim(&there, 1).await.is_empty());
        // Connections that are lost are replaced.
        // One of each store: the other one was told, and this one may still be about to listen.
        end_listening(2).await;
        told(&here, &far, "b").await;
        assert!(near.times() > 0, "its own process is told as well, by itself");
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
        for prefix in ["a", "b", "c", "d", "e"] {
            told(&here, &far, prefix).await;
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
        told(&here, &far, "first").await;
        let (sent, before) = (400, far.times());
        let calls = (0..sent).map(|n| here.enqueue(vec![message(&format!("m{n}"))]));
        for verdicts in futures_util::future::join_all(calls).await {
            verdicts.unwrap().remove(0).unwrap();
        }
        far.more_than(before).await;
        assert!(far.times() < sent, "{} notifications", far.times());
        assert!(far.heard.lock().unwrap().iter().all(|heard| *heard == queue()));
    });
}
