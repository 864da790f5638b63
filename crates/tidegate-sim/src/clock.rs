//! Clocks of the simulation: time passes as the paused runtime lets it; a wall clock can be set by anybody, and can drift.

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
    /// How fast it drifts, in millionths, since so many milliseconds after the start.
    drift_ppm: AtomicI64,
    drifts_since_ms: AtomicI64,
}

impl SimClock {
    /// A clock that is right.
    pub(crate) fn new(started: Instant, uptime: Duration) -> Self {
        Self {
            started,
            uptime,
            set_by_ms: AtomicI64::new(0),
            drift_ppm: AtomicI64::new(0),
            drifts_since_ms: AtomicI64::new(0),
        }
    }

    /// Sets the wall clock so far from the right time.
    pub(crate) fn set_by(&self, ms: i64) {
        self.set_by_ms.store(ms, Ordering::Relaxed);
    }

    /// From now on the wall clock gains so many millionths, or loses them; what it had drifted so far is put right.
    pub(crate) fn drift(&self, ppm: i64) {
        self.drifts_since_ms.store(self.passed_ms(), Ordering::Relaxed);
        self.drift_ppm.store(ppm, Ordering::Relaxed);
    }

    fn passed_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// How far it was set from the right time.
    pub(crate) fn is_set_by(&self) -> i64 {
        self.set_by_ms.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let passed = self.passed_ms();
        let drifts_for = passed - self.drifts_since_ms.load(Ordering::Relaxed);
        let drifted = drifts_for * self.drift_ppm.load(Ordering::Relaxed) / 1_000_000;
        Timestamp::from_millis(ManualClock::START + passed + drifted + self.is_set_by())
    }

    fn monotonic(&self) -> Duration {
        self.uptime + self.started.elapsed()
    }
}
