//! Notes acts in the audit that changed nothing, such as that somebody looked at payloads.

use std::collections::HashSet;

use tidegate_core::id::MessageId;
use tidegate_core::store::{NOTED_ONCE_WITHIN, Note};

use crate::group::Group;
use crate::place::{self, Lock};
use crate::row;
use crate::trouble::Trouble;

/// One row for each message, or one in all; none where the same was noted lately.
pub(crate) async fn note(group: &mut Group, note: &Note) -> Result<(), Trouble> {
    let mut noted = noted(group, note).await?;
    if note.messages.is_empty() && noted.insert(None) {
        group.audit(&note.act, &note.what, None, None, &note.detail);
        return Ok(());
    }
    let found = place::find_all(&group.conn, &note.messages, Lock::Nothing).await?;
    let lanes: Vec<i64> = found.values().map(place::Found::lane).collect();
    let lanes = group.lanes(&lanes).await?;
    for id in &note.messages {
        if !noted.insert(Some(*id)) {
            continue;
        }
        // One that is gone by now was looked at all the same.
        let queue = match found.get(id) {
            Some(found) => Some(place::lane_of(&lanes, found.lane())?.queue_id),
            None => None,
        };
        group.audit(&note.act, &note.what, Some(*id), queue, &note.detail);
    }
    Ok(())
}

/// Of which messages the same was noted lately, or of none. What another process is about to commit is not seen.
async fn noted(group: &Group, note: &Note) -> Result<HashSet<Option<MessageId>>, Trouble> {
    const NOTED: &str = "-- note: what was noted lately; the audit is read from its end, as far as that goes
        select message from tidegate.audit
        where seq > coalesce((select seq from tidegate.audit where at < $1 order by seq desc limit 1), 0)
            and actor = $2 and act = $3 and reason = $4 and detail = $5";
    let since = group.now.before(NOTED_ONCE_WITHIN).as_millis();
    let (actor, reason) = (row::storable(&note.act.actor), row::storable(&note.act.reason));
    let detail = row::storable(&note.detail);
    let rows = group.conn.query(NOTED, &[&since, &&*actor, &&*note.what, &&*reason, &&*detail]).await?;
    let unsent = group.writes.audits.iter();
    let unsent = unsent.filter(|audit| audit.act == note.act && audit.what == note.what && audit.detail == note.detail);
    let mut noted: HashSet<Option<MessageId>> = unsent.map(|audit| audit.message).collect();
    for row in &rows {
        noted.insert(row::column::<Option<i64>, _>(row, 0, "audit")?.map(MessageId::from_i64));
    }
    Ok(noted)
}
