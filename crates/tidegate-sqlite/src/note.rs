//! Notes acts in the audit that changed nothing, such as that somebody looked at payloads.

use std::collections::BTreeMap;

use tidegate_core::store::Note;

use crate::group::Group;
use crate::place;
use crate::trouble::Trouble;

/// One row for each message, or one in all.
pub(crate) fn note(group: &mut Group<'_>, note: &Note) -> Result<(), Trouble> {
    if note.messages.is_empty() {
        return group.audit(&note.act, &note.what, None, None, &note.detail);
    }
    let mut queues: BTreeMap<i64, i64> = BTreeMap::new();
    for id in &note.messages {
        // One that is gone by now was looked at all the same.
        let queue = match place::find(group.conn, *id)? {
            None => None,
            Some(found) => match queues.get(&found.lane()) {
                Some(queue) => Some(*queue),
                None => {
                    let queue = group.lane(found.lane())?.queue_id;
                    queues.insert(found.lane(), queue);
                    Some(queue)
                }
            },
        };
        group.audit(&note.act, &note.what, Some(*id), queue, &note.detail)?;
    }
    Ok(())
}
