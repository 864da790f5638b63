//! What a kind of message allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{Backoff, Policy};
use utoipa::ToSchema;

use crate::message::millis;

/// What a kind of message allows, as its workers declare it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KindPolicy {
    /// Runs that are counted before a message is a dead letter.
    #[schema(minimum = 1, default = 20)]
    pub max_attempts: u32,
    /// When a retryable failure comes back.
    pub backoff: KindBackoff,
    /// How long a handler may run before its worker cancels it.
    #[schema(minimum = 1, default = 300_000)]
    pub timeout_ms: u64,
    /// Crashes while running alone before a message is a dead letter.
    #[schema(minimum = 0, default = 3)]
    pub crash_limit: u32,
}

impl Default for KindPolicy {
    fn default() -> Self {
        Self::from(&Policy::default())
    }
}

/// Exponential backoff with full jitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KindBackoff {
    /// The longest delay after the first attempt.
    #[schema(default = 1000)]
    pub base_ms: u64,
    /// The longest delay of all.
    #[schema(default = 600_000)]
    pub cap_ms: u64,
}

impl Default for KindBackoff {
    fn default() -> Self {
        KindPolicy::default().backoff
    }
}

impl From<&Policy> for KindPolicy {
    fn from(policy: &Policy) -> Self {
        let backoff = KindBackoff { base_ms: millis(policy.backoff.base), cap_ms: millis(policy.backoff.cap) };
        Self {
            max_attempts: policy.max_attempts,
            backoff,
            timeout_ms: millis(policy.timeout),
            crash_limit: policy.crash_limit,
        }
    }
}

impl From<KindPolicy> for Policy {
    fn from(policy: KindPolicy) -> Self {
        let KindPolicy { max_attempts, backoff, timeout_ms, crash_limit } = policy;
        let backoff =
            Backoff { base: Duration::from_millis(backoff.base_ms), cap: Duration::from_millis(backoff.cap_ms) };
        Self { max_attempts, backoff, timeout: Duration::from_millis(timeout_ms), crash_limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_librarys_default_and_all_of_it_is_read_back() {
        let read: KindPolicy = serde_json::from_str(r#"{"max_attempts":3,"backoff":{"base_ms":5}}"#).unwrap();
        let policy = Policy::from(read);
        let backoff = Backoff { base: Duration::from_millis(5), ..Backoff::default() };
        assert_eq!(policy, Policy { max_attempts: 3, backoff, ..Policy::default() });
        let sent = serde_json::to_string(&KindPolicy::from(&policy)).unwrap();
        assert_eq!(Policy::from(serde_json::from_str::<KindPolicy>(&sent).unwrap()), policy);
    }
}
