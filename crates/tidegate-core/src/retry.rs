//! When a failed attempt is tried again, and what a kind of message allows. Pure: chance is passed in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::canary::{self, Canary};

/// Exponential backoff with full jitter.
///
/// The delay after attempt *n* is uniform in `0..=min(cap, base × 2ⁿ⁻¹)` ("full jitter": it spreads a herd of messages
/// that failed together better than a jittered part of the delay does), on top of the floor a remote asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The longest delay after the first attempt.
    #[serde(with = "millis")]
    pub base: Duration,
    /// The longest delay of all.
    #[serde(with = "millis")]
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), cap: Duration::from_secs(600) }
    }
}

/// The longest `Retry-After` that is obeyed: a remote's typing error must not hold a message for a year.
pub const MAX_FLOOR: Duration = Duration::from_secs(24 * 3600);

impl Backoff {
    /// The delay before the next run, where `attempt` (from 1) just ended and `unit` is uniform in `0.0..1.0`.
    #[must_use]
    pub fn delay(&self, attempt: u32, floor: Option<Duration>, unit: f64) -> Duration {
        let ceiling = self.base.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1).min(31))).min(self.cap);
        let floor = floor.filter(|_| !canary::is(Canary::RetryAfterIgnored));
        floor.unwrap_or_default().min(MAX_FLOOR).saturating_add(ceiling.mul_f64(unit.clamp(0.0, 1.0)))
    }
}

/// What a kind of message allows: declared into the store by the workers that serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Runs that are counted before a message is a dead letter.
    pub max_attempts: u32,
    /// When a retryable failure comes back.
    pub backoff: Backoff,
    /// How long a handler may run before it is cancelled; the attempt then counts as retryable with code `timeout`.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Crashes while running alone before a message is a dead letter.
    pub crash_limit: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { max_attempts: 20, backoff: Backoff::default(), timeout: Duration::from_secs(300), crash_limit: 3 }
    }
}

/// Durations as whole milliseconds, in stored JSON.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the duration as milliseconds.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads milliseconds.
    ///
    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_lies_between_the_floor_and_the_floor_plus_the_ceiling(
            base in 0_u64..100_000, cap in 0_u64..10_000_000, attempt in 0_u32..200,
            floor in proptest::option::of(0_u64..200_000_000), unit in 0.0..1.0_f64,
        ) {
            let backoff = Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap) };
            let floor = floor.map(Duration::from_millis);
            let delay = backoff.delay(attempt, floor, unit);
            let least = floor.unwrap_or_default().min(MAX_FLOOR);
            prop_assert!(delay >= least, "{:?} below the floor {:?}", delay, least);
            prop_assert!(delay <= least + backoff.cap + Duration::from_nanos(1));
        }

        #[test]
        fn the_ceiling_never_falls_from_one_attempt_to_the_next(base in 1_u64..10_000, attempt in 1_u32..100) {
            let backoff = Backoff { base: Duration::from_millis(base), cap: Duration::from_secs(600) };
            prop_assert!(backoff.delay(attempt + 1, None, 0.999) >= backoff.delay(attempt, None, 0.999));
        }

        #[test]
        fn all_of_the_range_is_used(attempt in 1_u32..20) {
            let backoff = Backoff::default();
            prop_assert_eq!(backoff.delay(attempt, None, 0.0), Duration::ZERO);
            prop_assert!(backoff.delay(attempt, None, 0.75) > backoff.delay(attempt, None, 0.25));
        }
    }

    #[test]
    fn the_ceiling_doubles_until_the_cap() {
        let backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(10) };
        let ceilings: Vec<u64> = (1..=6).map(|attempt| backoff.delay(attempt, None, 1.0).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_policy_keeps_its_defaults_for_what_a_stored_row_does_not_name() {
        let policy: Policy = serde_json::from_str(r#"{"max_attempts":3}"#).unwrap();
        assert_eq!(policy, Policy { max_attempts: 3, ..Policy::default() });
    }
}
