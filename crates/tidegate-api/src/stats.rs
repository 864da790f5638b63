//! Depths, ages and counters.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::store::{self, Counted};
use tidegate::{Kind, Priority, QueueName, StoreError, StoreErrorKind};
use utoipa::ToSchema;

use crate::queue::{Queue, millis};
use crate::schema;

/// Depths, ages and counters, as of one moment.
///
/// A counter and a lane are told by the name of their queue, for all its tenants together: they are there where every
/// tenant that has such a queue may be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// By tenant and name.
    pub queues: Vec<Queue>,
    /// Counters that survive restarts, over all processes.
    pub tallies: Vec<Tally>,
    /// Effects whose answer is missing, in the whole store; null where not all of it may be read.
    pub open_effects: Option<u64>,
    /// Lanes with ready messages.
    pub lanes: Vec<Lane>,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tally {
    /// Of which queue.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Of which kind.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// What is counted, such as `completed`, `retries` or `rejected_late_writes`.
    pub what: String,
    /// Code of the failure or reason, where there is one.
    pub code: String,
    /// How often.
    pub n: u64,
}

/// One lane with ready messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LaneStats)]
pub struct Lane {
    /// Its queue.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Its kind.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// The payload version of its messages.
    pub version: u32,
    /// Their priority.
    #[schema(value_type = u8, minimum = 0, maximum = 9)]
    pub priority: Priority,
    /// How long its head has been due.
    pub oldest_ms: u64,
}

impl From<store::Tally> for Tally {
    fn from(tally: store::Tally) -> Self {
        let store::Tally { queue, kind, what, code, n } = tally;
        Self { queue, kind, what: what.as_str().to_owned(), code, n }
    }
}

impl From<store::LaneStats> for Lane {
    fn from(lane: store::LaneStats) -> Self {
        let store::LaneStats { queue, kind, version, priority, oldest } = lane;
        Self { queue, kind, version, priority, oldest_ms: millis(oldest) }
    }
}

impl From<Lane> for store::LaneStats {
    fn from(lane: Lane) -> Self {
        let Lane { queue, kind, version, priority, oldest_ms } = lane;
        Self { queue, kind, version, priority, oldest: Duration::from_millis(oldest_ms) }
    }
}

impl From<store::Stats> for Stats {
    fn from(stats: store::Stats) -> Self {
        let store::Stats { queues, tallies, open_effects, lanes } = stats;
        Self {
            queues: queues.into_iter().map(Queue::from).collect(),
            tallies: tallies.into_iter().map(Tally::from).collect(),
            open_effects: Some(open_effects),
            lanes: lanes.into_iter().map(Lane::from).collect(),
        }
    }
}

impl Stats {
    /// The figures as a store gives them. Open effects that may not be known are none.
    ///
    /// # Errors
    /// `Corrupt` when a counter is of a sort that this version does not know.
    pub fn into_stats(self) -> Result<store::Stats, StoreError> {
        let tally = |Tally { queue, kind, what, code, n }: Tally| {
            let what = Counted::from_word(&what).ok_or_else(|| {
                StoreError::new(StoreErrorKind::Corrupt, format!("the server counts {what:?}, which is not known"))
                    .hint("server and client are of different versions")
            })?;
            Ok(store::Tally { queue, kind, what, code, n })
        };
        Ok(store::Stats {
            queues: self.queues.into_iter().map(store::QueueStats::from).collect(),
            tallies: self.tallies.into_iter().map(tally).collect::<Result<_, StoreError>>()?,
            open_effects: self.open_effects.unwrap_or_default(),
            lanes: self.lanes.into_iter().map(store::LaneStats::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tidegate::Tenant;

    use super::*;

    #[test]
    fn figures_arrive_as_the_store_gave_them() {
        let queue = QueueName::new("deposits").unwrap();
        let kind = Kind::new("capture").unwrap();
        let tally = |what| store::Tally { queue: queue.clone(), kind: kind.clone(), what, code: "c".to_owned(), n: 3 };
        let stats = store::Stats {
            queues: vec![store::QueueStats {
                tenant: Tenant::new("acme").unwrap(),
                queue: queue.clone(),
                paused: true,
                max_depth: Some(9),
                ready: 1,
                scheduled: 2,
                leased: 3,
                parked: 4,
                dead: 5,
                oldest_ready: Some(Duration::from_millis(6)),
                oldest_leased: None,
                oldest_parked: Some(Duration::from_millis(7)),
                oldest_dead: Some(Duration::from_millis(8)),
            }],
            tallies: Counted::ALL.map(tally).to_vec(),
            open_effects: 11,
            lanes: vec![store::LaneStats {
                queue: queue.clone(),
                kind: kind.clone(),
                version: 2,
                priority: Priority::new(3).unwrap(),
                oldest: Duration::from_millis(10),
            }],
        };
        let sent = serde_json::to_string(&Stats::from(stats.clone())).unwrap();
        let read: Stats = serde_json::from_str(&sent).unwrap();
        assert_eq!(read.into_stats().unwrap(), stats);
    }
}
