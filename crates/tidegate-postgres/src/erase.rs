//! Replaces payloads of ended messages by a tombstone.

use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;

use crate::place::Found;
use crate::row::ERASED;

/// A message whose payload was erased cannot run again.
#[expect(dead_code, reason = "not written yet")]
pub(crate) fn refuse_erased(found: &Found, id: MessageId) -> Result<(), StoreError> {
    if found.flags() & ERASED == 0 {
        return Ok(());
    }
    Err(StoreError::conflict(format!("the payload of {id} was erased")).message_id(id))
}
