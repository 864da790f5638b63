//! Pauses, resumes and limits queues; claims and enqueues read it in their own transactions.

use tidegate_core::error::StoreError;
use tidegate_core::store::ChangeQueue;

use crate::group::Group;
use crate::trouble::Trouble;

/// Does it.
pub(crate) async fn pause(_group: &mut Group, _request: &ChangeQueue) -> Result<(), Trouble> {
    Err(StoreError::unavailable("pause is not written yet").into())
}
