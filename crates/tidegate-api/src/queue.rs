//! Queues, as they are told of and changed.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use tidegate::store::{QueueChange, QueueStats};
use tidegate::{QueueName, Tenant};
use utoipa::ToSchema;

use crate::schema;

/// One queue: what waits in it and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queue {
    /// Whose it is.
    #[serde(default)]
    #[schema(value_type = schema::TenantName)]
    pub tenant: Tenant,
    /// Its name.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Nothing is claimed from it.
    pub paused: bool,
    /// The most ready and leased messages it takes; null where there is no limit.
    pub max_depth: Option<u64>,
    /// Claimable now.
    pub ready: u64,
    /// Ready, but due later.
    pub scheduled: u64,
    /// Running.
    pub leased: u64,
    /// Waiting for a person.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest claimable message has been due.
    pub oldest_ready_ms: Option<u64>,
    /// How long ago the oldest running message became due.
    pub oldest_leased_ms: Option<u64>,
    /// How long the oldest parked message has been parked.
    pub oldest_parked_ms: Option<u64>,
    /// How long the oldest dead letter has been one.
    pub oldest_dead_ms: Option<u64>,
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<QueueStats> for Queue {
    fn from(stats: QueueStats) -> Self {
        let QueueStats {
            tenant,
            queue,
            paused,
            max_depth,
            ready,
            scheduled,
            leased,
            parked,
            dead,
            oldest_ready,
            oldest_leased,
            oldest_parked,
            oldest_dead,
        } = stats;
        Self {
            tenant,
            queue,
            paused,
            max_depth,
            ready,
            scheduled,
            leased,
            parked,
            dead,
            oldest_ready_ms: oldest_ready.map(millis),
            oldest_leased_ms: oldest_leased.map(millis),
            oldest_parked_ms: oldest_parked.map(millis),
            oldest_dead_ms: oldest_dead.map(millis),
        }
    }
}

impl From<Queue> for QueueStats {
    fn from(queue: Queue) -> Self {
        let Queue {
            tenant,
            queue,
            paused,
            max_depth,
            ready,
            scheduled,
            leased,
            parked,
            dead,
            oldest_ready_ms,
            oldest_leased_ms,
            oldest_parked_ms,
            oldest_dead_ms,
        } = queue;
        Self {
            tenant,
            queue,
            paused,
            max_depth,
            ready,
            scheduled,
            leased,
            parked,
            dead,
            oldest_ready: oldest_ready_ms.map(Duration::from_millis),
            oldest_leased: oldest_leased_ms.map(Duration::from_millis),
            oldest_parked: oldest_parked_ms.map(Duration::from_millis),
            oldest_dead: oldest_dead_ms.map(Duration::from_millis),
        }
    }
}

/// Queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queues {
    /// By tenant and name.
    pub queues: Vec<Queue>,
}

/// Changes a queue: what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQueue {
    /// Whether nothing is to be claimed from it. What runs goes on, and messages are still taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// At most so many ready, scheduled and leased messages; null lifts the limit.
    #[serde(default, deserialize_with = "even_null", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub max_depth: Option<Option<u64>>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// A member that is given even where it is null: to serde that is a missing one.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl ChangeQueue {
    /// A change as a request for it is written, with nobody and no reason yet.
    #[must_use]
    pub fn of(change: QueueChange) -> Self {
        match change {
            QueueChange::Pause => Self { paused: Some(true), ..Self::default() },
            QueueChange::Resume => Self { paused: Some(false), ..Self::default() },
            QueueChange::Limit(limit) => Self { max_depth: Some(limit), ..Self::default() },
        }
    }

    /// What a store is asked for, in this order.
    #[must_use]
    pub fn changes(&self) -> Vec<QueueChange> {
        let pausing = |paused| if paused { QueueChange::Pause } else { QueueChange::Resume };
        (self.max_depth.map(QueueChange::Limit).into_iter()).chain(self.paused.map(pausing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_as_it_is_written_and_a_limit_of_null_is_not_a_limit_left_out() {
        for change in [QueueChange::Pause, QueueChange::Resume, QueueChange::Limit(Some(7)), QueueChange::Limit(None)] {
            let written = serde_json::to_string(&ChangeQueue::of(change)).unwrap();
            let read: ChangeQueue = serde_json::from_str(&written).unwrap();
            assert_eq!(read.changes(), [change], "{written}");
        }
        assert_eq!(serde_json::from_str::<ChangeQueue>("{}").unwrap().changes(), []);
        let both: ChangeQueue = serde_json::from_str(r#"{"paused":true,"max_depth":null}"#).unwrap();
        assert_eq!(both.changes(), [QueueChange::Limit(None), QueueChange::Pause]);
    }

    #[test]
    fn a_member_that_is_no_change_is_refused_rather_than_ignored() {
        let error = serde_json::from_str::<ChangeQueue>(r#"{"pause":true}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `pause`"), "{error}");
    }
}
