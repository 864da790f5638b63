//! Changes payloads of dead letters.

use tidegate_core::error::StoreError;
use tidegate_core::store::{Edit, Edited};

use crate::group::Group;
use crate::trouble::Trouble;

/// Does it.
pub(crate) async fn edit(_group: &mut Group, _request: &Edit) -> Result<Edited, Trouble> {
    Err(StoreError::unavailable("edit is not written yet").into())
}
