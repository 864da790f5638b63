//! Calls messages off that have not taken effect.

use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{Cancellation, State};
use tidegate_core::store::{self, Cancel, Verdicts};

use crate::group::Group;
use crate::names::Lane;
use crate::place;
use crate::row::Life;
use crate::trouble::Trouble;

/// Calls a list of messages off.
pub(crate) async fn cancel(_group: &mut Group, _request: &Cancel) -> Result<Verdicts<Cancellation>, Trouble> {
    Err(StoreError::unavailable("cancel is not written yet").into())
}

/// Ends a message as cancelled, and frees its key if that was asked for and nothing was ever tried.
pub(crate) async fn called_off(
    _group: &mut Group,
    _lane: &Lane,
    _id: MessageId,
    _life: &Life,
    _facts: &JournalFacts,
    _journal: &[EffectRow],
) -> Result<(), Trouble> {
    Err(StoreError::unavailable("cancel is not written yet").into())
}

/// Tells in the history that it was called off between two runs.
pub(crate) fn note_history(group: &mut Group, id: MessageId, life: &Life, reason: &str) {
    let line = store::Ending {
        at: group.now,
        attempt: life.counters.attempt,
        generation: life.counters.generation,
        outcome: "cancelled".to_owned(),
        state: State::Cancelled,
        code: String::new(),
        detail: reason.to_owned(),
        due_at: None,
    };
    place::history(group, id, line);
}
