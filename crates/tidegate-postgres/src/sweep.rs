//! Takes over lapsed leases, makes due messages claimable and deletes what is past its retention, in bounded steps.

use tidegate_core::error::StoreError;
use tidegate_core::store::{SweepRequest, Swept};

use crate::group::Group;
use crate::trouble::Trouble;

/// One sweep.
pub(crate) async fn sweep(_group: &mut Group, _request: &SweepRequest) -> Result<Swept, Trouble> {
    Err(StoreError::unavailable("sweep is not written yet").into())
}
