//! Records what a person or a webhook knows of a parked effect.

use tidegate_core::error::StoreError;
use tidegate_core::store::{Resolve, Resolved};

use crate::group::Group;
use crate::trouble::Trouble;

/// Does it.
pub(crate) async fn resolve(_group: &mut Group, _request: &Resolve) -> Result<Resolved, Trouble> {
    Err(StoreError::unavailable("resolve is not written yet").into())
}
