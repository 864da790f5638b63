//! Lists of messages, and what dead letters have in common: what operators look at.

use std::collections::HashMap;

use tidegate_core::group::{GroupId, pattern};
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{FailureGroup, Filter, Summary};
use tokio_postgres::Row;

use crate::conn::Conn;
use crate::inspect;
use crate::place::{self, Ended, Found, Lock};
use crate::read::Snapshot;
use crate::row;
use crate::trouble::Trouble;

/// Messages by filter, by ascending id.
pub(crate) async fn list(snapshot: &Snapshot, filter: &Filter) -> Result<Vec<Summary>, Trouble> {
    // One table per state, each in the order of ids and no further than the page; those that are not asked for are not
    // looked into at all.
    const LIST: &str = "-- list
        select id from (
            (select id from tidegate.result where $6 and id > $1 and lane = any($2) and state = any($3)
                and ($4::text is null or code = $4) order by id limit $5)
            union all
            (select id from tidegate.held where $7 and id > $1 and lane = any($2) and state = any($3)
                and ($4::text is null or reason = $4 or code = $4) and ($8::bigint is null or fgroup = $8)
                and ($9 or discarded_at is null) order by id limit $5)
            union all
            (select id from tidegate.lease l where $10 and id > $1 and lane = any($2) and ($4::text is null or $4 =
                (select code from tidegate.history where message = l.id order by seq desc limit 1))
                order by id limit $5)
            union all
            (select id from tidegate.ready r where $11 and id > $1 and lane = any($2) and ($4::text is null or $4 =
                (select code from tidegate.history where message = r.id order by seq desc limit 1))
                order by id limit $5)
            union all
            (select id from tidegate.sched s where $11 and id > $1 and lane = any($2) and ($4::text is null or $4 =
                (select code from tidegate.history where message = s.id order by seq desc limit 1))
                order by id limit $5)
        ) page order by id limit $5";
    let lanes = lanes(&snapshot.conn, filter).await?;
    let group = filter.group.map(GroupId::as_i64);
    let wanted = |state: &State| filter.states.is_empty() || filter.states.contains(state);
    let states: Vec<&str> = State::ALL.iter().filter(|state| wanted(state)).map(|state| state.as_str()).collect();
    // Only parked and dead ones are of a group.
    let any = |of: &[State]| group.is_none() && of.iter().any(wanted);
    let after = filter.after.map_or(i64::MIN, MessageId::as_i64);
    let rows = snapshot
        .conn
        .query(
            LIST,
            &[
                &after,
                &lanes,
                &states,
                &filter.code,
                &i64::from(filter.limit),
                &any(&[State::Completed, State::Failed, State::Cancelled]),
                &[State::Parked, State::Dead].iter().any(wanted),
                &group,
                &filter.discarded,
                &any(&[State::Leased]),
                &any(&[State::Ready]),
            ],
        )
        .await?;
    summaries(snapshot, &ids(&rows)?).await
}

/// All messages of a flow, the first one first.
pub(crate) async fn flow(snapshot: &Snapshot, root: MessageId) -> Result<Vec<Summary>, Trouble> {
    const FLOW: &str = "-- flow
        select id from tidegate.message where id = $1
        union all select id from tidegate.message where flow = $1 order by id";
    let rows = snapshot.conn.query(FLOW, &[&root.as_i64()]).await?;
    summaries(snapshot, &ids(&rows)?).await
}

fn ids(rows: &[Row]) -> Result<Vec<MessageId>, Trouble> {
    rows.iter().map(|row| row::message_id(row, "id", "message")).collect()
}

/// What a body says of its message in a list.
struct Head {
    key: IdempotencyKey,
    enqueued_at: tidegate_core::Timestamp,
    flow: Option<MessageId>,
}

/// Messages as a list shows them, in this order.
async fn summaries(snapshot: &Snapshot, ids: &[MessageId]) -> Result<Vec<Summary>, Trouble> {
    const HEADS: &str = "-- list: of the bodies no more than is shown
        select id, key, enqueued_at, flow from tidegate.message where id = any($1)";
    const LAST: &str = "-- list: each one's last attempt's failure
        select i.message, h.code, h.detail from unnest($1::bigint[]) i (message) cross join lateral
            (select code, detail from tidegate.history where message = i.message order by seq desc limit 1) h";
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let conn = &snapshot.conn;
    let found = place::find_all(conn, ids, Lock::Nothing).await?;
    let lanes = inspect::lanes_of(snapshot, &found).await?;
    let numbers = row::id_list(ids);
    let answers = conn.many(&[(HEADS, &[&numbers]), (LAST, &[&numbers])]).await?;
    let [heads, last] = &answers[..] else { unreachable!("an answer for each statement") };
    let heads: HashMap<MessageId, Head> = heads.iter().map(head).collect::<Result<_, _>>()?;
    let last: HashMap<MessageId, (String, String)> = last.iter().map(last_failure).collect::<Result<_, _>>()?;
    let mut summaries = Vec::with_capacity(ids.len());
    for id in ids {
        let Some(found) = found.get(id) else { continue };
        let lane = place::lane_of(&lanes, found.lane())?;
        let head = heads.get(id).ok_or_else(|| place::bodiless(*id))?;
        let (code, detail, ended_at) = match found {
            Found::Ready { .. } | Found::Leased(_) => match last.get(id) {
                Some((code, detail)) if !code.is_empty() => (Some(code.clone()), Some(detail.clone()), None),
                Some(_) | None => (None, None, None),
            },
            Found::Ended(ended) => {
                let (code, detail) = why(ended);
                (code, detail, Some(ended.at))
            }
        };
        summaries.push(Summary {
            id: *id,
            tenant: lane.tenant.clone(),
            queue: lane.queue.clone(),
            kind: lane.kind.clone(),
            key: head.key.clone(),
            state: found.state(),
            attempt: found.counters().attempt,
            due_at: found.due_at(),
            code,
            detail,
            enqueued_at: head.enqueued_at,
            ended_at,
            flow: head.flow.unwrap_or(*id),
        });
    }
    Ok(summaries)
}

fn head(row: &Row) -> Result<(MessageId, Head), Trouble> {
    let table = "message";
    let flow: Option<i64> = row::column(row, "flow", table)?;
    let head = Head {
        key: row::key(row)?,
        enqueued_at: row::time(row, "enqueued_at", table)?,
        flow: flow.map(MessageId::from_i64),
    };
    Ok((row::message_id(row, "id", table)?, head))
}

fn last_failure(row: &Row) -> Result<(MessageId, (String, String)), Trouble> {
    let table = "history";
    let failure = (row::column(row, "code", table)?, row::column(row, "detail", table)?);
    Ok((row::message_id(row, "message", table)?, failure))
}

/// Why it failed, died or was parked. A reason comes before the failure that led to it.
fn why(ended: &Ended) -> (Option<String>, Option<String>) {
    match (&ended.reason, &ended.failure) {
        (Some(reason), failure) => (Some(reason.clone()), failure.as_ref().map(ToString::to_string)),
        (None, Some(failure)) => (Some(failure.code.clone()), Some(failure.detail.clone())),
        (None, None) => (None, None),
    }
}

/// What dead letters have in common, the largest group first.
pub(crate) async fn groups(snapshot: &Snapshot, filter: &Filter) -> Result<Vec<FailureGroup>, Trouble> {
    const GROUPS: &str = "-- groups: counted from the index; the first of each says what they have in common
        select g.fgroup, g.n, g.first_at, g.last_at, g.id, h.lane, coalesce(h.code, h.reason) code, h.effect, h.detail
        from (select fgroup, count(*) n, min(at) first_at, max(at) last_at, min(id) id from tidegate.held
            where state = any($1) and lane = any($2) and discarded_at is null group by fgroup) g
        join tidegate.held h on h.id = g.id
        where $3::text is null or coalesce(h.code, h.reason) = $3
        -- the names of groups have no sign
        order by g.n desc, g.fgroup < 0, g.fgroup limit $4";
    let wanted = |state: &State| match filter.states[..] {
        [] => *state == State::Dead,
        [..] => filter.states.contains(state),
    };
    let states: Vec<&str> = [State::Dead, State::Parked].into_iter().filter(wanted).map(State::as_str).collect();
    let conn = &snapshot.conn;
    let of = lanes(conn, filter).await?;
    let rows = conn.query(GROUPS, &[&states, &of, &filter.code, &i64::from(filter.limit)]).await?;
    let of = rows.iter().map(|row| row::column(row, "lane", "held")).collect::<Result<Vec<i64>, _>>()?;
    let lanes = snapshot.shared.names.lanes(conn, &of).await?;
    let mut groups = Vec::with_capacity(rows.len());
    for (row, lane) in rows.iter().zip(of) {
        groups.push(group(row, place::lane_of(&lanes, lane)?.kind.clone())?);
    }
    Ok(groups)
}

fn group(row: &Row, kind: Kind) -> Result<FailureGroup, Trouble> {
    let table = "held";
    let effect: Option<&str> = row::column(row, "effect", table)?;
    let detail: Option<&str> = row::column(row, "detail", table)?;
    Ok(FailureGroup {
        id: GroupId::from_i64(row::column(row, "fgroup", table)?),
        kind,
        code: row::column(row, "code", table)?,
        effect: effect.map(EffectName::new).transpose()?,
        pattern: pattern(detail.unwrap_or_default()),
        count: row::unsigned(row, "n", table)?,
        first_seen: row::time(row, "first_at", table)?,
        last_seen: row::time(row, "last_at", table)?,
        sample: row::message_id(row, "id", table)?,
    })
}

/// The lanes a filter allows.
pub(crate) async fn lanes(conn: &Conn, filter: &Filter) -> Result<Vec<i64>, Trouble> {
    const LANES: &str = "-- list: lanes are few, and each says queue and kind for all its messages
        select l.id from tidegate.lane l join tidegate.queue q on q.id = l.queue
        where ($1::text is null or q.name = $1) and ($2::text is null or l.kind = $2)
          and ($3::text is null or q.tenant = $3)";
    let queue = filter.queue.as_ref().map(QueueName::as_str);
    let kind = filter.kind.as_ref().map(Kind::as_str);
    let tenant = filter.tenant.as_ref().map(Tenant::as_str);
    let rows = conn.query(LANES, &[&queue, &kind, &tenant]).await?;
    rows.iter().map(|row| row::column(row, "id", "lane")).collect()
}
