//! What a store that was restored, promoted or copied does not believe of what it finds in itself.

use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{Fate, JournalFacts};

use crate::group::Group;
use crate::row::COPIED;
use crate::trouble::Trouble;

/// Puts a restored store right before it does its first work.
#[expect(clippy::unused_async, reason = "not written yet")]
pub(crate) async fn begin(_group: &mut Group) -> Result<(), Trouble> {
    Ok(())
}

/// Counts an open effect for a message that was here before and has not run since: it does not end unasked.
pub(crate) fn count_in(journal: &mut JournalFacts, flags: i64, now: Timestamp) {
    if flags & COPIED != 0 {
        journal.open.push(Fate::Reconcile { not_before: now });
        journal.intents = true;
    }
}
