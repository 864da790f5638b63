//! Chance from a seed: one stream for each purpose, so that a fault left out changes nothing but what it did.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_core::Random;

/// A stream of chance.
#[derive(Debug)]
pub(crate) struct Chance(Mutex<ChaCha8Rng>);

impl Chance {
    /// The stream of a purpose under a seed.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        let mut mixed = seed ^ 0x9E37_79B9_7F4A_7C15;
        for byte in purpose.bytes() {
            mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3).rotate_left(7);
        }
        Self(Mutex::new(ChaCha8Rng::seed_from_u64(mixed)))
    }

    fn rng<T>(&self, draw: impl FnOnce(&mut ChaCha8Rng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number below `end`; 0 when there is none.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.rng(|rng| rng.random_range(0..end.max(1)))
    }

    /// A number in the range, both ends included.
    pub(crate) fn within(&self, from: u64, to: u64) -> u64 {
        self.rng(|rng| rng.random_range(from..=to.max(from)))
    }

    /// True once in so many times.
    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// So many milliseconds, both ends included.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.within(from, to))
    }

    /// How long until the next arrival of a stream with this mean.
    pub(crate) fn until_next(&self, mean: Duration) -> Duration {
        let unit: f64 = self.rng(|rng| rng.random());
        mean.mul_f64(-(1.0 - unit).ln())
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        of.get(usize::try_from(self.below(of.len() as u64)).unwrap_or(0))
    }

    /// So many of them, whichever.
    pub(crate) fn some<T>(&self, mut of: Vec<T>, most: usize) -> Vec<T> {
        let first = of.len().saturating_sub(most);
        for last in (first.max(1)..of.len()).rev() {
            of.swap(last, usize::try_from(self.below(last as u64 + 1)).unwrap_or(0));
        }
        of.split_off(first)
    }

    /// In another order.
    pub(crate) fn shuffle<T>(&self, of: &mut [T]) {
        for last in (1..of.len()).rev() {
            of.swap(last, usize::try_from(self.below(last as u64 + 1)).unwrap_or(0));
        }
    }
}

impl Random for Chance {
    fn fill(&self, bytes: &mut [u8]) {
        self.rng(|rng| rng.fill_bytes(bytes));
    }
}
