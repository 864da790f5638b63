//! Time and randomness, as values that are passed in.
//!
//! Everything that needs the time takes a [`Clock`], everything that needs chance a [`Random`]; only [`SystemClock`] and
//! [`SystemRandom`] ask the machine. A test passes its own and is exact.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::quoted;

/// A moment of wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
///
/// Milliseconds, because a 48-bit integer is what an engine stores in every row; durations inside a process are measured
/// with [`Clock::monotonic`]. Prints and serialises as RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest moment that is used: the Unix epoch.
    pub const EPOCH: Self = Self(0);
    /// Later than any moment that is stored: 9999-12-31, the last year RFC 3339 can write.
    pub const FAR_FUTURE: Self = Self(253_402_207_200_000);

    /// From milliseconds since the Unix epoch, clamped to what can be written as a date.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(0, Self::FAR_FUTURE.0))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment plus a duration, clamped to [`Timestamp::FAR_FUTURE`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// This moment minus a duration, clamped to the epoch.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(millis))
    }

    /// How long ago `earlier` was; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(moment) => write!(f, "{moment:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(|moment| Self::from_millis(moment.as_millisecond())).map_err(|e| {
            // What is wrong is told with the text in it, which may be of any length.
            let why: String = e.to_string().chars().take(200).collect();
            format!("not a time: {} ({why}); hint: RFC 3339, such as 2026-11-23T10:00:00Z", quoted(text))
        })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock. It may jump, in either direction; what must not, uses [`Clock::monotonic`].
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment of this process; never goes back, unaffected by changes of the wall clock.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine for the time")]
    pub fn new() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine for the time")]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::EPOCH.after(since_epoch)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Where chance comes from: nonces and jitter.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills the buffer with bytes nobody can guess.
    fn fill(&self, bytes: &mut [u8]);

    /// A number in `0.0..1.0`, uniformly.
    fn unit(&self) -> f64 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
    }
}

/// The operating system's generator.
#[derive(Debug, Clone, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine for randomness")]
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system's random generator answers");
    }

    /// Jitter spreads a herd and guards nothing, and every settlement carries one: a call of the system for each would be
    /// dear for that. So each thread asks once, and goes on from there (`SplitMix64`).
    fn unit(&self) -> f64 {
        thread_local! {
            static STATE: Cell<Option<u64>> = const { Cell::new(None) };
        }
        STATE.with(|state| {
            let last = state.get().unwrap_or_else(|| {
                let mut seed = [0; 8];
                self.fill(&mut seed);
                u64::from_le_bytes(seed)
            });
            let next = last.wrapping_add(0x9e37_79b9_7f4a_7c15);
            state.set(Some(next));
            let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            let drawn = ((mixed ^ mixed >> 31) >> 32) as u32;
            f64::from(drawn) / (f64::from(u32::MAX) + 1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339_and_reads_back() {
        let moment = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(moment.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(moment.to_string().parse(), Ok(moment));
        assert_eq!(Timestamp::FAR_FUTURE.to_string().parse(), Ok(Timestamp::FAR_FUTURE));
    }

    #[test]
    fn arithmetic_saturates_at_the_ends_of_time() {
        assert_eq!(Timestamp::FAR_FUTURE.after(Duration::MAX), Timestamp::FAR_FUTURE);
        assert_eq!(Timestamp::EPOCH.before(Duration::MAX), Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::FAR_FUTURE), Duration::ZERO);
    }

    #[test]
    fn jitter_is_spread_evenly_and_differs_between_threads() {
        let draws: Vec<f64> = (0..4000).map(|_| SystemRandom.unit()).collect();
        assert!(draws.iter().all(|unit| (0.0..1.0).contains(unit)));
        for tenth in 0..10 {
            let from = f64::from(tenth) / 10.0;
            let within = draws.iter().filter(|unit| (from..from + 0.1).contains(*unit)).count();
            assert!((250..550).contains(&within), "{within} of 4000 from {from}");
        }
        let elsewhere = std::thread::spawn(|| SystemRandom.unit()).join().unwrap();
        assert!(!draws.contains(&elsewhere));
    }

    #[test]
    fn a_text_that_is_no_time_is_refused_with_the_text() {
        let error = "tomorrow".parse::<Timestamp>().unwrap_err();
        assert!(error.contains("\"tomorrow\"") && error.contains("RFC 3339"), "{error}");
    }
}
