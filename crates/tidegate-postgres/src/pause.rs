//! Pauses, resumes and limits queues; claims and enqueues read it in their own transactions.

use tidegate_core::store::{ChangeQueue, QueueChange};

use crate::group::Group;
use crate::names;
use crate::row;
use crate::trouble::Trouble;
use crate::writes::NewAudit;

/// Changes a queue, which need not have been used yet.
pub(crate) async fn pause(group: &mut Group, request: &ChangeQueue) -> Result<(), Trouble> {
    const NEW: &str = "-- pause: a queue that nobody used yet
        insert into tidegate.queue (tenant, name) values ($1, $2) on conflict (tenant, name) do nothing";
    const PAUSE: &str = "-- pause
        update tidegate.queue set paused = $2 where id = $1 and paused is distinct from $2";
    const LIMIT: &str = "-- limit
        update tidegate.queue set max_depth = $2 where id = $1 and max_depth is distinct from $2";
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
    let changed = match request.change {
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
    if changed > 0 || !is_said(group, request, queue_id, act, &detail).await? {
        group.audit(&request.act, act, None, Some(queue_id), &detail);
    }
    Ok(())
}

/// Whether this is what was last said of the queue, by the same actor for the same reason: its reply was lost.
async fn is_said(
    group: &Group,
    request: &ChangeQueue,
    queue_id: i64,
    act: &str,
    detail: &str,
) -> Result<bool, Trouble> {
    const SAID: &str = "-- pause: what was last said of it; the audit is read from its end
        select actor = $2 and act = $3 and reason = $4 and detail = $5 from tidegate.audit
        where queue = $1 and act in ('pause', 'resume', 'limit') and (act = 'limit') = ($3 = 'limit')
        order by seq desc limit 1";
    let is_limit = act == "limit";
    let on_it = |audit: &&NewAudit| {
        let of_queue = matches!(&*audit.what, "pause" | "resume" | "limit") && audit.queue == Some(queue_id);
        of_queue && (audit.what == "limit") == is_limit
    };
    // What this transaction has not sent yet comes after what is stored.
    if let Some(audit) = group.writes.audits.iter().rev().find(on_it) {
        return Ok(audit.act == request.act && audit.what == act && audit.detail == detail);
    }
    let (actor, reason) = (row::storable(&request.act.actor), row::storable(&request.act.reason));
    let said = group.conn.query_opt(SAID, &[&queue_id, &&*actor, &act, &&*reason, &detail]).await?;
    said.map_or(Ok(false), |row| row::column(&row, 0, "audit"))
}
