//! Prolonging leases.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::store::{self, Extend};
use tidegate::{MessageId, StoreError, Timestamp};
use utoipa::ToSchema;

use crate::enqueue::is_false;
use crate::lease::LeaseProof;
use crate::message::millis;
use crate::problem::Problem;
use crate::schema;

/// Asks for more time for leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendLeases {
    /// Which.
    pub leases: Vec<ExtendLease>,
}

/// Asks for more time for one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Proves the lease.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// How long it holds from now on.
    #[schema(minimum = 30, maximum = 86_400_000)]
    pub lease_ms: u64,
    /// The message now runs with nothing else in its process: a crash from here on counts against it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub alone: bool,
}

impl From<&Extend> for ExtendLease {
    fn from(extend: &Extend) -> Self {
        let Extend { id, token, lease, alone } = extend.clone();
        Self { id, token: LeaseProof(token), lease_ms: millis(lease), alone }
    }
}

impl From<ExtendLease> for Extend {
    fn from(extend: ExtendLease) -> Self {
        let ExtendLease { id, token, lease_ms, alone } = extend;
        Self { id, token: token.0, lease: Duration::from_millis(lease_ms), alone }
    }
}

/// What became of one lease: `problem` where it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendResult {
    /// 200, or the status of the problem.
    pub status: u16,
    /// When the lease lapses now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub until: Option<Timestamp>,
    /// Somebody asked to cancel the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested: Option<bool>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl From<store::Extended> for ExtendResult {
    fn from(extended: store::Extended) -> Self {
        let store::Extended { until, cancel_requested } = extended;
        Self { status: 200, until: Some(until), cancel_requested: Some(cancel_requested), problem: None }
    }
}

impl From<Problem> for ExtendResult {
    fn from(problem: Problem) -> Self {
        Self { status: problem.status, until: None, cancel_requested: None, problem: Some(problem) }
    }
}

impl ExtendResult {
    /// The verdict of a store.
    ///
    /// # Errors
    /// The refusal; `Corrupt` when it is neither a refusal nor an extension.
    pub fn into_verdict(self) -> Result<store::Extended, StoreError> {
        match (self.problem, self.until) {
            (Some(problem), _) => Err(problem.into_store_error()),
            (None, Some(until)) => {
                Ok(store::Extended { until, cancel_requested: self.cancel_requested.unwrap_or_default() })
            }
            (None, None) => Err(StoreError::corrupt("the server's answer", "an extension says no time")),
        }
    }
}

/// What became of the leases, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendResults {
    /// One for each.
    pub results: Vec<ExtendResult>,
}
