//! Redrives of many, step by step.

use tidegate_core::error::StoreError;
use tidegate_core::store::{Operate, Operation, Stepped};

use crate::group::Group;
use crate::read::Snapshot;
use crate::trouble::Trouble;

/// An act on an operation.
pub(crate) async fn operate(_group: &mut Group, _request: &Operate) -> Result<Stepped, Trouble> {
    Err(StoreError::unavailable("operate is not written yet").into())
}

/// Operations, the newest first.
pub(crate) async fn operations(
    _snapshot: &Snapshot,
    _name: Option<&str>,
    _limit: u32,
) -> Result<Vec<Operation>, Trouble> {
    Err(StoreError::unavailable("operations is not written yet").into())
}
