//! Notes acts in the audit that changed nothing, such as that somebody looked at payloads.

use tidegate_core::store::Note;

use crate::group::Group;
use crate::place::{self, Lock};
use crate::trouble::Trouble;

/// One row for each message, or one in all.
pub(crate) async fn note(group: &mut Group, note: &Note) -> Result<(), Trouble> {
    if note.messages.is_empty() {
        group.audit(&note.act, &note.what, None, None, &note.detail);
        return Ok(());
    }
    let found = place::find_all(&group.conn, &note.messages, Lock::Nothing).await?;
    let lanes: Vec<i64> = found.values().map(place::Found::lane).collect();
    let lanes = group.lanes(&lanes).await?;
    for id in &note.messages {
        // One that is gone by now was looked at all the same.
        let queue = match found.get(id) {
            Some(found) => Some(place::lane_of(&lanes, found.lane())?.queue_id),
            None => None,
        };
        group.audit(&note.act, &note.what, Some(*id), queue, &note.detail);
    }
    Ok(())
}
