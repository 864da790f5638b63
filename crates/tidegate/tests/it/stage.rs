//! What the tests stand on: a store in a directory of its own, small message types, a clock that runs ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidegate::store::{Act, MessageView};
use tidegate::{Backoff, Clock, Message, MessageId, Policy, SystemClock, Tidegate, Timestamp};

/// Long enough for anything that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A store in a directory that goes when the test ends.
pub(crate) struct Stage {
    pub(crate) tide: Tidegate,
    pub(crate) dir: TempDir,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with_lease(Duration::from_secs(10)).await
    }

    pub(crate) async fn with_lease(lease: Duration) -> Self {
        let dir = TempDir::new().unwrap();
        let tide = Tidegate::builder().lease(lease).open(dir.path().join("tide.db")).await.unwrap();
        Self { tide, dir }
    }

    /// Another handle on the same file, as another process has it.
    pub(crate) async fn again(&self, lease: Duration) -> Tidegate {
        Tidegate::builder().lease(lease).open(self.dir.path().join("tide.db")).await.unwrap()
    }

    /// Another process, whose clock runs an hour ahead: it finds every lease lapsed.
    pub(crate) async fn an_hour_ahead(&self) -> Tidegate {
        let clock = Arc::new(Ahead(SystemClock::new(), Duration::from_secs(3600)));
        Tidegate::builder().clock(clock).open(self.dir.path().join("tide.db")).await.unwrap()
    }

    pub(crate) async fn view(&self, id: MessageId) -> MessageView {
        self.tide.store().inspect(vec![id]).await.unwrap().pop().unwrap().unwrap()
    }

    /// Waits until the message looks as it should.
    pub(crate) async fn view_when(&self, id: MessageId, when: impl Fn(&MessageView) -> bool + Sync) -> MessageView {
        let looking = async {
            loop {
                let view = self.view(id).await;
                if when(&view) {
                    return view;
                }
                tokio::task::yield_now().await;
            }
        };
        match tokio::time::timeout(SOON, looking).await {
            Ok(view) => view,
            Err(_) => panic!("still {:?}", self.view(id).await),
        }
    }
}

#[derive(Debug)]
struct Ahead(SystemClock, Duration);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now().after(self.1)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

pub(crate) fn act() -> Act {
    Act { actor: "tester".into(), reason: "a test".into() }
}

/// A policy under which retries come at once.
pub(crate) fn at_once(max_attempts: u32) -> Policy {
    let backoff = Backoff { base: Duration::from_millis(1), cap: Duration::from_millis(5) };
    Policy { max_attempts, backoff, ..Policy::default() }
}

/// A message with a number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) n: u32,
}

impl Message for Work {
    const KIND: &'static str = "work";
    type Answer = u32;
    fn key(&self) -> String {
        format!("work-{}", self.n)
    }
}

/// What follows from work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Next {
    pub(crate) of: u32,
}

impl Message for Next {
    const KIND: &'static str = "next";
    type Answer = u32;
    fn key(&self) -> String {
        format!("next-{}", self.of)
    }
}

/// Counts calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(Arc<AtomicU32>);

impl Count {
    /// One more; says how many there were before.
    pub(crate) fn up(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn down(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
