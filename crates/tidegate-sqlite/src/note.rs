//! Notes acts in the audit that changed nothing, such as that somebody looked at payloads.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;
use tidegate_core::id::MessageId;
use tidegate_core::store::{NOTED_ONCE_WITHIN, Note};

use crate::group::Group;
use crate::place;
use crate::trouble::Trouble;

/// One row for each message, or one in all; none where the same was noted lately.
pub(crate) fn note(group: &mut Group<'_>, note: &Note) -> Result<(), Trouble> {
    let mut noted = noted(group, note)?;
    if note.messages.is_empty() && noted.insert(None) {
        return group.audit(&note.act, &note.what, None, None, &note.detail);
    }
    let mut queues: BTreeMap<i64, i64> = BTreeMap::new();
    for id in &note.messages {
        if !noted.insert(Some(*id)) {
            continue;
        }
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

/// Of which messages the same was noted lately, or of none.
fn noted(group: &Group<'_>, note: &Note) -> Result<BTreeSet<Option<MessageId>>, Trouble> {
    const NOTED: &str = "-- note: what was noted lately; the audit is read from its end, as far as that goes
        select at, message, actor = ?1 and act = ?2 and reason = ?3 and detail = ?4 from tide_audit order by seq desc";
    let since = group.now.before(NOTED_ONCE_WITHIN).as_millis();
    let mut statement = group.conn.prepare_cached(NOTED)?;
    let mut rows = statement.query(params![note.act.actor, note.what, note.act.reason, note.detail])?;
    let mut noted = BTreeSet::new();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(0)? < since {
            break;
        }
        if row.get(2)? {
            noted.insert(row.get::<_, Option<i64>>(1)?.map(MessageId::from_i64));
        }
    }
    Ok(noted)
}
