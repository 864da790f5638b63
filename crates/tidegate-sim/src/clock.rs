//! Clocks of the simulation: time passes as the paused runtime lets it, and a wall clock can be set by anybody.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidegate_core::{Clock, Timestamp};
use tidegate_testkit::ManualClock;
use tokio::time::Instant;

/// The clock of a machine.
#[derive(Debug)]
pub(crate) struct SimClock {
    started: Instant,
    /// How much its monotonic hand had run when the simulation began: no two machines agree about it.
    uptime: Duration,
    set_by_ms: AtomicI64,
}

impl SimClock {
    /// A clock that is right.
    pub(crate) fn new(started: Instant, uptime: Duration) -> Self {
        Self { started, uptime, set_by_ms: AtomicI64::new(0) }
    }

    /// Sets the wall clock so far from the right time.
    pub(crate) fn set_by(&self, ms: i64) {
        self.set_by_ms.store(ms, Ordering::Relaxed);
    }

    /// How far it is from the right time.
    pub(crate) fn is_set_by(&self) -> i64 {
        self.set_by_ms.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(ManualClock::START + passed + self.is_set_by())
    }

    fn monotonic(&self) -> Duration {
        self.uptime + self.started.elapsed()
    }
}
