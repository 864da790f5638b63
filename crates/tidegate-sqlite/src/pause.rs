//! Pauses, resumes and limits queues; claims and enqueues read it in their own transactions.

use rusqlite::params;
use tidegate_core::store::{ChangeQueue, QueueChange};

use crate::group::Group;
use crate::trouble::Trouble;

/// Changes a queue, which need not have been used yet.
pub(crate) fn pause(group: &mut Group<'_>, request: &ChangeQueue) -> Result<(), Trouble> {
    const PAUSE: &str = "-- pause
        update tide_queue set paused = ?2, seal = tide_reseal(seal, 3, paused, ?2) where id = ?1";
    const LIMIT: &str = "-- limit
        update tide_queue set max_depth = ?2, seal = tide_reseal(seal, 4, max_depth, ?2) where id = ?1";
    let queue_id = group.queue(&request.tenant, &request.queue)?;
    let (act, detail) = match request.change {
        QueueChange::Pause => ("pause", String::new()),
        QueueChange::Resume => ("resume", String::new()),
        QueueChange::Limit(None) => ("limit", "none".to_owned()),
        QueueChange::Limit(Some(most)) => ("limit", most.to_string()),
    };
    match request.change {
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
    group.audit(&request.act, act, None, Some(queue_id), &detail)
}
