//! Writes the journal of running messages. `effect.rs` of the core decides each row; a late confirmation is kept as
//! evidence and applied to nothing.

use std::sync::Arc;

use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::store::{Journal, Verdicts};

use crate::group::{Group, Limits};
use crate::trouble::Trouble;

/// Writes a batch.
pub(crate) async fn journal(_group: &mut Group, _batch: &[&Journal]) -> Result<Verdicts<EffectRow>, Trouble> {
    Err(StoreError::unavailable("journal is not written yet").into())
}

/// Refuses a value that is too large to be kept for ever.
pub(crate) fn check_value(limits: Limits, value: &Arc<str>) -> Result<(), StoreError> {
    let (size, most) = (value.len(), limits.max_payload);
    if size <= most {
        return Ok(());
    }
    Err(StoreError::invalid(format!("effect value of {size} bytes is over the limit of {most}"))
        .hint("confirm with a reference to what the remote returned"))
}
