//! Prolongs leases. A lease is lost when it is taken over, not when it lapses: the token is all that is asked.

use tidegate_core::error::StoreError;
use tidegate_core::store::{Extend, Extended, Verdicts};

use crate::group::Group;
use crate::trouble::Trouble;

/// Prolongs a batch.
pub(crate) async fn extend(_group: &mut Group, _batch: &[&Extend]) -> Result<Verdicts<Extended>, Trouble> {
    Err(StoreError::unavailable("extend is not written yet").into())
}
