//! Time and chance that a test holds in its hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::clock::{Clock, Random, Timestamp};

/// A clock that moves only when it is told to. It drives delays, backoffs, quarantines, leases and deadlines; it does not
/// drive `tokio::time`, so the time-out of a handler or a send that hangs still takes its real time.
#[derive(Debug)]
pub struct VirtualClock(Mutex<Hands>);

#[derive(Debug, Clone, Copy)]
struct Hands {
    wall: Timestamp,
    monotonic: Duration,
}

impl VirtualClock {
    /// Where it stands at first, in milliseconds since the epoch: 2026-01-01T00:00:00Z.
    pub const START_MS: i64 = 1_767_225_600_000;

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        let mut hands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *hands = Hands { wall: hands.wall.after(by), monotonic: hands.monotonic.saturating_add(by) };
    }

    /// Time passes until this moment; nothing happens if it is past.
    pub fn advance_to(&self, moment: Timestamp) {
        self.advance(moment.since(self.now()));
    }

    fn read(&self) -> Hands {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self(Mutex::new(Hands { wall: Timestamp::from_millis(Self::START_MS), monotonic: Duration::ZERO }))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.read().wall
    }

    fn monotonic(&self) -> Duration {
        self.read().monotonic
    }
}

/// Chance that repeats itself from run to run, so that a crash can be put at the same place again (SplitMix64).
#[derive(Debug)]
pub(super) struct RepeatableRandom(AtomicU64);

impl RepeatableRandom {
    pub(super) fn of(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Random for RepeatableRandom {
    fn fill(&self, bytes: &mut [u8]) {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        for chunk in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}
