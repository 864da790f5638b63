//! Watches the store's clock against the time that really passed, at the start of every group.

use std::sync::PoisonError;
use std::time::Duration;

use tidegate_core::clock::Timestamp;

use crate::group::Group;
use crate::shared::Shared;
use crate::trouble::Trouble;

/// Both hands of the store's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hands {
    pub(crate) wall: Timestamp,
    pub(crate) monotonic: Duration,
    /// The last jump that was noted when they were read.
    pub(crate) noted: i64,
}

/// Compares the hands with those of this process's last group; answers the hands to compare with next time.
#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn look(group: &mut Group) -> Result<Hands, Trouble> {
    Ok(Hands { wall: group.now, monotonic: group.shared.monotonic(), noted: group.noted })
}

/// A group was committed that saw the clock so.
pub(crate) fn seen(shared: &Shared, hands: Hands) {
    *shared.hands.lock().unwrap_or_else(PoisonError::into_inner) = Some(hands);
}

/// Whether the clock was set since the last group: until the next one, stored times are not those in force.
pub(crate) fn jumped(_shared: &Shared) -> bool {
    false
}

/// Notes that the store was swept now.
#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn tick(_group: &mut Group) -> Result<(), Trouble> {
    Ok(())
}

/// Before which moment an ending is older than the retention, by time that really passed; none while the clock has not
/// been steady for long enough to delete by it.
#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn retained_from(group: &mut Group, retention: Duration) -> Result<Option<Timestamp>, Trouble> {
    Ok(Some(group.now.before(retention)))
}
