//! Time and chance that a test holds in its hand.
//!
//! A [`ManualClock`] stands still until it is told to move: both of its hands together with [`ManualClock::advance`], as
//! time passes, or the wall clock alone with [`ManualClock::jump_to`], as an operator or a time server sets it.
//! [`SeededRandom`] gives the same bytes for the same seed. Neither ever asks the machine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_core::{Clock, Random, Timestamp};

/// A clock that moves only when it is told to.
#[derive(Debug)]
pub struct ManualClock(Mutex<Hands>);

#[derive(Debug, Clone, Copy)]
struct Hands {
    wall: Timestamp,
    monotonic: Duration,
}

impl ManualClock {
    /// Where a clock stands that was not told otherwise: 2026-01-01T00:00:00Z.
    pub const START: i64 = 1_767_225_600_000;

    /// A clock that shows this moment.
    #[must_use]
    pub fn at(wall: Timestamp) -> Self {
        Self(Mutex::new(Hands { wall, monotonic: Duration::ZERO }))
    }

    /// Time passes: both hands move.
    pub fn advance(&self, by: Duration) {
        self.change(|hands| *hands = Hands { wall: hands.wall.after(by), monotonic: hands.monotonic + by });
    }

    /// Somebody sets the wall clock; no time passes.
    pub fn jump_to(&self, wall: Timestamp) {
        self.change(|hands| hands.wall = wall);
    }

    /// Somebody sets the wall clock ahead; no time passes.
    pub fn jump_forward(&self, by: Duration) {
        self.change(|hands| hands.wall = hands.wall.after(by));
    }

    /// Somebody sets the wall clock back; no time passes.
    pub fn jump_back(&self, by: Duration) {
        self.change(|hands| hands.wall = hands.wall.before(by));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Hands) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::at(Timestamp::from_millis(Self::START))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.change(|hands| hands.wall)
    }

    fn monotonic(&self) -> Duration {
        self.change(|hands| hands.monotonic)
    }
}

/// A source of chance that repeats itself for the same seed. Nobody must take its bytes for secrets.
#[derive(Debug)]
pub struct SeededRandom(Mutex<ChaCha8Rng>);

impl SeededRandom {
    /// The source of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(ChaCha8Rng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_passes_moves_both_hands_and_a_set_clock_only_one() {
        let clock = ManualClock::default();
        let start = clock.now();
        clock.advance(Duration::from_secs(5));
        clock.jump_forward(Duration::from_secs(60));
        assert_eq!((clock.now().since(start), clock.monotonic()), (Duration::from_secs(65), Duration::from_secs(5)));
        clock.jump_back(Duration::from_secs(65));
        assert_eq!((clock.now(), clock.monotonic()), (start, Duration::from_secs(5)));
        clock.jump_to(Timestamp::EPOCH);
        assert_eq!(clock.now(), Timestamp::EPOCH);
    }

    #[test]
    fn one_seed_gives_the_same_bytes_and_another_seed_others() {
        let bytes = |seed| {
            let mut bytes = [0; 32];
            SeededRandom::new(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
    }
}
