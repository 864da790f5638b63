//! Writes the journal of running messages. `effect.rs` of the core decides each row; a late confirmation is kept as
//! evidence and applied to nothing.

use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::store::{Journal, Verdicts};

use crate::group::Group;
use crate::trouble::Trouble;

/// Writes a batch.
pub(crate) async fn journal(_group: &mut Group, _batch: &[&Journal]) -> Result<Verdicts<EffectRow>, Trouble> {
    Err(StoreError::unavailable("journal is not written yet").into())
}
