//! Gives dead letters up.

use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::store::{Discard, Verdicts};

use crate::group::Group;
use crate::trouble::Trouble;

/// Does it.
pub(crate) async fn discard(_group: &mut Group, _request: &Discard) -> Result<Verdicts<MessageId>, Trouble> {
    Err(StoreError::unavailable("discard is not written yet").into())
}
