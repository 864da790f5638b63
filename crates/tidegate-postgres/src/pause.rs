//! Pauses, resumes and limits queues; claims and enqueues read it in their own transactions.

use tidegate_core::store::{ChangeQueue, QueueChange};

use crate::group::Group;
use crate::names;
use crate::trouble::Trouble;

/// Changes a queue, which need not have been used yet.
pub(crate) async fn pause(group: &mut Group, request: &ChangeQueue) -> Result<(), Trouble> {
    const NEW: &str = "-- pause: a queue that nobody used yet
        insert into tidegate.queue (tenant, name) values ($1, $2) on conflict (tenant, name) do nothing";
    const PAUSE: &str = "-- pause
        update tidegate.queue set paused = $2 where id = $1";
    const LIMIT: &str = "-- limit
        update tidegate.queue set max_depth = $2 where id = $1";
    let (tenant, name) = (request.tenant.as_str(), request.queue.as_str());
    group.conn.execute(NEW, &[&tenant, &name]).await?;
    let found = names::find_queue(&group.conn, &request.tenant, &request.queue).await?;
    let queue_id = found.ok_or(Trouble::Again("a queue was made and is not there"))?.id;
    let (act, detail) = match request.change {
        QueueChange::Pause => ("pause", String::new()),
        QueueChange::Resume => ("resume", String::new()),
        QueueChange::Limit(None) => ("limit", "none".to_owned()),
        QueueChange::Limit(Some(most)) => ("limit", most.to_string()),
    };
    match request.change {
        QueueChange::Pause => group.conn.execute(PAUSE, &[&queue_id, &true]).await?,
        QueueChange::Resume => {
            group.announce(&request.queue);
            group.conn.execute(PAUSE, &[&queue_id, &false]).await?
        }
        QueueChange::Limit(most) => {
            let most = most.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
            group.conn.execute(LIMIT, &[&queue_id, &most]).await?
        }
    };
    group.audit(&request.act, act, None, Some(queue_id), &detail);
    Ok(())
}
