//! Pauses, resumes and limits queues; claims and enqueues read it in their own transactions.

use rusqlite::{OptionalExtension, params};
use tidegate_core::store::{ChangeQueue, QueueChange};

use crate::group::Group;
use crate::trouble::Trouble;

/// Changes a queue, which need not have been used yet.
pub(crate) fn pause(group: &mut Group<'_>, request: &ChangeQueue) -> Result<(), Trouble> {
    const PAUSE: &str = "-- pause
        update tide_queue set paused = ?2, seal = tide_reseal(seal, 3, paused, ?2) where id = ?1 and paused is not ?2";
    const LIMIT: &str = "-- limit
        update tide_queue set max_depth = ?2, seal = tide_reseal(seal, 4, max_depth, ?2)
        where id = ?1 and max_depth is not ?2";
    let queue_id = group.queue(&request.tenant, &request.queue)?;
    let (act, detail) = match request.change {
        QueueChange::Pause => ("pause", String::new()),
        QueueChange::Resume => ("resume", String::new()),
        QueueChange::Limit(None) => ("limit", "none".to_owned()),
        QueueChange::Limit(Some(most)) => ("limit", most.to_string()),
    };
    let changed = match request.change {
        QueueChange::Pause => group.conn.prepare_cached(PAUSE)?.execute([queue_id, 1])?,
        QueueChange::Resume => {
            group.announce(&request.queue);
            group.conn.prepare_cached(PAUSE)?.execute([queue_id, 0])?
        }
        QueueChange::Limit(most) => {
            let most = most.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
            group.conn.prepare_cached(LIMIT)?.execute(params![queue_id, most])?
        }
    };
    group.settings_changed();
    if changed == 0 && is_said(group, request, queue_id, act, &detail)? {
        return Ok(());
    }
    group.audit(&request.act, act, None, Some(queue_id), &detail)
}

/// Whether this is what was last said of the queue, by the same actor for the same reason: its reply was lost.
fn is_said(group: &Group<'_>, request: &ChangeQueue, queue_id: i64, act: &str, detail: &str) -> Result<bool, Trouble> {
    const SAID: &str = "-- pause: what was last said of it; the audit is read from its end
        select actor = ?2 and act = ?3 and reason = ?4 and detail = ?5 from tide_audit
        where queue = ?1 and act in ('pause', 'resume', 'limit') and (act = 'limit') = (?3 = 'limit')
        order by seq desc limit 1";
    let said = params![queue_id, request.act.actor, act, request.act.reason, detail];
    Ok(group.conn.prepare_cached(SAID)?.query_row(said, |row| row.get(0)).optional()?.unwrap_or(false))
}
