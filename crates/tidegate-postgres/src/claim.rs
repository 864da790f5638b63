//! Takes due messages under a lease.

use std::time::Duration;

use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::store::{ClaimRequest, Claimed};

use crate::group::Group;
use crate::trouble::Trouble;

/// Where the claimable rows of a lane began, and what it cost to look for them from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hint {
    /// Place of the first row of the last look that found one.
    pub(crate) from: Timestamp,
    /// When the next look from the start may be.
    pub(crate) next_full: Duration,
}

/// Claims for one worker.
pub(crate) async fn claim(_group: &mut Group, _request: &ClaimRequest) -> Result<Claimed, Trouble> {
    Err(StoreError::unavailable("claim is not written yet").into())
}
