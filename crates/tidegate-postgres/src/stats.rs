//! Depths, ages and counters, exact as of one moment, without a look at the backlog.

use tidegate_core::error::StoreError;
use tidegate_core::store::Stats;

use crate::read::Snapshot;
use crate::trouble::Trouble;

/// All of it, from one snapshot.
pub(crate) async fn stats(_snapshot: &Snapshot) -> Result<Stats, Trouble> {
    Err(StoreError::unavailable("stats is not written yet").into())
}
