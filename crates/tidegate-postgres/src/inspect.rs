//! Everything about messages, read beside the writers; lists of them are in [`list`](crate::list).
//!
//! What is asked about several messages is read together: a reading costs as many round trips for one as for a
//! thousand.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::effect::EffectRow;
use tidegate_core::id::{IdempotencyKey, MessageId, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::State;
use tidegate_core::message::{Failure, Message};
use tidegate_core::store::{AuditEntry, Ending, Evidence, ExplainFacts, MessageView, Progress};
use tokio_postgres::Row;

use crate::conn::Param;
use crate::group;
use crate::names::{self, Lane};
use crate::place::{self, Found, Lock};
use crate::read::Snapshot;
use crate::row;
use crate::trouble::Trouble;

/// Messages ahead of an explained one are counted up to here.
const MOST_AHEAD: i64 = 10_000;

/// Everything about messages.
pub(crate) async fn inspect(snapshot: &Snapshot, ids: &[MessageId]) -> Result<Vec<Option<MessageView>>, Trouble> {
    const HISTORY: &str = "-- inspect: how their runs ended
        select * from tidegate.history where message = any($1) order by message, seq";
    const EVIDENCE: &str = "-- inspect: confirmations that came too late
        select * from tidegate.evidence where message = any($1) order by message, seq";
    let conn = &snapshot.conn;
    let found = place::find_all(conn, ids, Lock::Nothing).await?;
    if found.is_empty() {
        return Ok(vec![None; ids.len()]);
    }
    let mut journals = place::journals_if(conn, found.iter().map(|(id, found)| (*id, found.flags()))).await?;
    let lanes = lanes_of(snapshot, &found).await?;
    let there: Vec<i64> = found.keys().map(|id| id.as_i64()).collect();
    let answers = conn.many(&[(place::BODIES, &[&there]), (HISTORY, &[&there]), (EVIDENCE, &[&there])]).await?;
    let [bodies, history, evidence] = &answers[..] else { unreachable!("an answer for each statement") };
    let mut histories = by_message(history, "history", ending)?;
    let mut evidences = by_message(evidence, "evidence", late)?;
    let mut messages = HashMap::with_capacity(bodies.len());
    for body in bodies {
        let id = row::message_id(body, 0, "message")?;
        let Some(found) = found.get(&id) else { continue };
        let message = row::message(body, 0, place::lane_of(&lanes, found.lane())?)?;
        messages.insert(id, place::in_force(message, found.expires_at()));
    }
    let mut views = HashMap::with_capacity(found.len());
    for (id, found) in &found {
        let known = Known {
            message: messages.remove(id).ok_or_else(|| place::bodiless(*id))?,
            journal: journals.remove(id).transpose()?.unwrap_or_default(),
            evidence: evidences.remove(id).unwrap_or_default(),
            history: histories.remove(id).unwrap_or_default(),
        };
        views.insert(*id, view(found, known)?);
    }
    Ok(ids.iter().map(|id| views.get(id).cloned()).collect())
}

/// The lanes of messages that were found.
pub(crate) async fn lanes_of(
    snapshot: &Snapshot,
    found: &HashMap<MessageId, Found>,
) -> Result<HashMap<i64, Arc<Lane>>, Trouble> {
    let lanes: Vec<i64> = found.values().map(Found::lane).collect();
    snapshot.shared.names.lanes(&snapshot.conn, &lanes).await
}

/// What is known of a message besides where it stands.
struct Known {
    message: Message,
    journal: Vec<EffectRow>,
    evidence: Vec<Evidence>,
    history: Vec<Ending>,
}

fn view(found: &Found, Known { message, journal, evidence, history }: Known) -> Result<MessageView, Trouble> {
    let last_failure = || {
        let last = history.iter().rev().find(|ending| !ending.code.is_empty());
        last.map(|ending| Failure { code: ending.code.clone(), detail: ending.detail.clone() })
    };
    let (reason, failure, answer, ended_at) = match found {
        Found::Ready { .. } | Found::Leased(_) => (None, last_failure(), None, None),
        Found::Ended(ended) => {
            let failure = match ended.state {
                State::Completed => None,
                State::Failed | State::Dead | State::Parked | State::Cancelled | State::Ready | State::Leased => {
                    ended.failure.clone().or_else(last_failure)
                }
            };
            (ended.reason.clone(), failure, ended.answer(), Some(ended.at))
        }
    };
    let lease = match found {
        Found::Leased(lease) => Some((WorkerId::new(&lease.worker)?, lease.until)),
        Found::Ready { .. } | Found::Ended(_) => None,
    };
    let live = matches!(found, Found::Ready { .. } | Found::Leased(_));
    Ok(MessageView {
        message,
        state: found.state(),
        counters: found.counters(),
        due_at: found.due_at(),
        reason,
        failure,
        answer,
        ended_at,
        lease,
        cancel_requested: !found.state().is_terminal() && found.flags() & row::CANCEL != 0,
        suspect: live && found.flags() & row::SUSPECT != 0,
        compensated: found.flags() & row::COMPENSATED != 0,
        journal,
        evidence,
        history,
    })
}

/// Rows of several messages, by message, in the order in which they were read.
fn by_message<T>(
    rows: &[Row],
    table: &str,
    read: fn(&Row) -> Result<T, Trouble>,
) -> Result<HashMap<MessageId, Vec<T>>, Trouble> {
    let mut by_message: HashMap<MessageId, Vec<T>> = HashMap::new();
    for row in rows {
        by_message.entry(row::message_id(row, "message", table)?).or_default().push(read(row)?);
    }
    Ok(by_message)
}

/// A row of `history`.
pub(crate) fn ending(row: &Row) -> Result<Ending, Trouble> {
    let table = "history";
    Ok(Ending {
        at: row::time(row, "at", table)?,
        attempt: row::count(row, "attempt", table)?,
        generation: row::count(row, "generation", table)?,
        outcome: row::column(row, "outcome", table)?,
        state: row::state(row, table)?,
        code: row::column(row, "code", table)?,
        detail: row::column(row, "detail", table)?,
        due_at: row::maybe_time(row, "due_at", table)?,
    })
}

/// A row of `evidence`.
pub(crate) fn late(row: &Row) -> Result<Evidence, Trouble> {
    let table = "evidence";
    Ok(Evidence {
        at: row::time(row, "at", table)?,
        effect: row::effect_id(row, table)?,
        value: row::shared(row, "value", table)?,
    })
}

/// The message of a key.
pub(crate) async fn find(
    snapshot: &Snapshot,
    tenant: &Tenant,
    queue: &QueueName,
    key: &IdempotencyKey,
) -> Result<Option<MessageId>, Trouble> {
    const FIND: &str = "-- find: by queue and key
        select k.id from tidegate.queue q join tidegate.key k on k.queue = q.id
        where q.tenant = $1 and q.name = $2 and k.hash = $3";
    let found = snapshot.conn.query_opt(FIND, &[&tenant.as_str(), &queue.as_str(), &key.hash()]).await?;
    found.as_ref().map(|row| row::message_id(row, "id", "key")).transpose()
}

/// Where messages stand, in one statement: what waiting clients poll, a thousand messages at a time. One statement sees
/// one moment, so that it needs no transaction around it.
pub(crate) async fn progress(snapshot: &Snapshot, ids: &[MessageId]) -> Result<Vec<Option<Progress>>, Trouble> {
    // `limit 1` keeps each look-up one of the index: what was stored since the last analysis must not make it a scan.
    // The tables of the living are looked into only for who is not in the first two, and in none of them is nobody's place.
    const PROGRESS: &str = "-- progress
        select e.state, e.flags, e.code, e.body, e.reason, case when e.state is null then coalesce(
            (select 'leased' from tidegate.lease where id = i.id), (select 'ready' from tidegate.ready where id = i.id),
            (select 'ready' from tidegate.sched where id = i.id),
            (select 'astray' from tidegate.message where id = i.id)
            ) end live, i.id
        from unnest($1::bigint[]) with ordinality i (id, place)
        left join lateral (
            (select state, flags, code, body, null reason from tidegate.result where id = i.id limit 1)
            union all (select state, flags, null, null, reason from tidegate.held where id = i.id limit 1) limit 1
        ) e on true
        order by i.place";
    let rows = snapshot.conn.query(PROGRESS, &[&row::id_list(ids)]).await?;
    rows.iter().map(standing).collect()
}

fn standing(row: &Row) -> Result<Option<Progress>, Trouble> {
    const LIVE: [State; 2] = [State::Ready, State::Leased];
    let live: Option<&str> = row::column(row, "live", "message")?;
    let Some(live) = live else { return row::progress(row) };
    match LIVE.into_iter().find(|state| state.as_str() == live) {
        Some(state) => Ok(Some(Progress { state, reason: None, answer: None })),
        None => Err(place::astray(row::message_id(row, "id", "message")?).into()),
    }
}

/// What an explanation needs to know.
pub(crate) async fn explain(snapshot: &Snapshot, id: MessageId) -> Result<Option<ExplainFacts>, Trouble> {
    const AHEAD: &str =
        "-- explain: in the order of the claim; what is yet to be made claimable gets the place it fell due at
        select count(*) from (select from tidegate.ready r where r.lane = $1 and (r.pos, r.due_at, r.id) < (
            coalesce((select pos from tidegate.ready where id = $2), $3), $4, $2) limit $5) ahead";
    let Some(view) = inspect(snapshot, &[id]).await?.remove(0) else { return Ok(None) };
    let (conn, now) = (&snapshot.conn, snapshot.now);
    let Some(found) = place::find(conn, id, Lock::Nothing).await? else { return Ok(None) };
    let lane = snapshot.lane(found.lane()).await?;
    let paused = names::queue(conn, lane.queue_id).await?.paused;
    let ahead = match view.due_at.filter(|due_at| *due_at <= now) {
        Some(due_at) => {
            let place = [&lane.id as &dyn Param, &id.as_i64(), &due_at.as_millis(), &due_at.as_millis(), &MOST_AHEAD];
            u32::try_from(row::first_i64(&conn.query(AHEAD, &place).await?)?).unwrap_or(u32::MAX)
        }
        None => 0,
    };
    let policy = group::policies(conn).await?.remove(&lane.kind);
    Ok(Some(ExplainFacts { view, now, paused, ahead, policy }))
}

/// Acts of operators after a sequence number.
pub(crate) async fn audit(snapshot: &Snapshot, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Trouble> {
    const AUDIT: &str = "-- audit
        select a.*, q.name queue_name, q.tenant from tidegate.audit a left join tidegate.queue q on q.id = a.queue
        where a.seq > $1 order by a.seq limit $2";
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = snapshot.conn.query(AUDIT, &[&after, &i64::from(limit)]).await?;
    rows.iter().map(entry).collect()
}

fn entry(row: &Row) -> Result<AuditEntry, Trouble> {
    let table = "audit";
    let queue: Option<&str> = row::column(row, "queue_name", table)?;
    let tenant: Option<&str> = row::column(row, "tenant", table)?;
    let message: Option<i64> = row::column(row, "message", table)?;
    Ok(AuditEntry {
        seq: row::unsigned(row, "seq", table)?,
        at: row::time(row, "at", table)?,
        actor: row::column(row, "actor", table)?,
        act: row::column(row, "act", table)?,
        reason: row::column(row, "reason", table)?,
        message: message.map(MessageId::from_i64),
        tenant: tenant.map(Tenant::new).transpose()?,
        queue: queue.map(QueueName::new).transpose()?,
        detail: row::column(row, "detail", table)?,
    })
}
