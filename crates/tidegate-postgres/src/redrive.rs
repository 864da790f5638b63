//! Puts ended messages back to ready, at most once under one operation.

use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::store::{Redrive, Verdicts};

use crate::group::Group;
use crate::trouble::Trouble;

/// Does it.
pub(crate) async fn redrive(_group: &mut Group, _request: &Redrive) -> Result<Verdicts<MessageId>, Trouble> {
    Err(StoreError::unavailable("redrive is not written yet").into())
}
