//! A sweep: what a store does by itself again and again, as a request.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::store;
use tidegate::{MessageId, QueueName, WorkerId};
use utoipa::ToSchema;

use crate::message::millis;
use crate::schema;

/// Asks for a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Take over leases that lapsed.
    pub take_over: bool,
    /// Delete answers and keys older than this; nothing, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// At most so many rows of each sort.
    #[schema(minimum = 1, maximum = 10_000)]
    pub limit: u32,
    /// Where in `0.0..1.0` the jitter of retries lies; by chance, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    pub unit: Option<f64>,
}

impl From<&store::SweepRequest> for Sweep {
    fn from(request: &store::SweepRequest) -> Self {
        let store::SweepRequest { take_over, retention, limit, unit } = *request;
        Self { take_over, retention_ms: retention.map(millis), limit, unit: Some(unit) }
    }
}

impl Sweep {
    /// The sweep as a store takes it.
    #[must_use]
    pub fn into_request(self, by_chance: f64) -> store::SweepRequest {
        store::SweepRequest {
            take_over: self.take_over,
            retention: self.retention_ms.map(Duration::from_millis),
            limit: self.limit,
            unit: self.unit.unwrap_or(by_chance),
        }
    }
}

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Swept {
    /// Messages whose lease was taken over, and what they became.
    pub taken_over: Vec<TakenOver>,
    /// Scheduled messages that are claimable now.
    pub promoted: u32,
    /// Messages deleted after their retention.
    pub deleted: u32,
    /// There is more to do.
    pub more: bool,
}

impl From<store::Swept> for Swept {
    fn from(swept: store::Swept) -> Self {
        let store::Swept { taken_over, promoted, deleted, more } = swept;
        Self { taken_over: taken_over.into_iter().map(TakenOver::from).collect(), promoted, deleted, more }
    }
}

impl From<Swept> for store::Swept {
    fn from(swept: Swept) -> Self {
        let Swept { taken_over, promoted, deleted, more } = swept;
        Self { taken_over: taken_over.into_iter().map(store::TakenOver::from).collect(), promoted, deleted, more }
    }
}

/// A message that was taken from a worker that no longer extended its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakenOver {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// What it became.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Who had held it.
    #[schema(value_type = schema::Name)]
    pub worker: WorkerId,
    /// Its queue.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
}

impl From<store::TakenOver> for TakenOver {
    fn from(taken: store::TakenOver) -> Self {
        let store::TakenOver { id, state, worker, queue } = taken;
        Self { id, state, worker, queue }
    }
}

impl From<TakenOver> for store::TakenOver {
    fn from(taken: TakenOver) -> Self {
        let TakenOver { id, state, worker, queue } = taken;
        Self { id, state, worker, queue }
    }
}
