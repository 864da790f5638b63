//! Everything about messages, read beside the writer.

use rusqlite::{Connection, Row, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::group::{GroupId, pattern};
use tidegate_core::id::{EffectName, IdempotencyKey, MessageId, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::State;
use tidegate_core::message::Failure;
use tidegate_core::store::{
    AuditEntry, Ending, Evidence, ExplainFacts, FailureGroup, Filter, MessageView, Progress, Summary,
};

use crate::enqueue;
use crate::group::{self, load_lane};
use crate::place::{self, Ended, Found};
use crate::row::{self, id_list};
use crate::seal;
use crate::trouble::Trouble;

/// Messages ahead of an explained one are counted up to here.
const MOST_AHEAD: u32 = 10_000;

/// Everything about messages.
pub(crate) fn inspect(conn: &Connection, ids: &[MessageId]) -> Result<Vec<Option<MessageView>>, Trouble> {
    ids.iter().map(|id| view(conn, *id)).collect()
}

fn view(conn: &Connection, id: MessageId) -> Result<Option<MessageView>, Trouble> {
    let Some(found) = place::find(conn, id)? else { return Ok(None) };
    let lane = load_lane(conn, found.lane())?;
    let history = history(conn, id)?;
    let last_failure = || {
        let last = history.iter().rev().find(|ending| !ending.code.is_empty());
        last.map(|ending| Failure { code: ending.code.clone(), detail: ending.detail.clone() })
    };
    let (reason, failure, answer, ended_at) = match &found {
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
    let lease = match &found {
        Found::Leased(lease) => Some((WorkerId::new(&lease.worker)?, lease.until)),
        Found::Ready { .. } | Found::Ended(_) => None,
    };
    let live = matches!(found, Found::Ready { .. } | Found::Leased(_));
    Ok(Some(MessageView {
        message: place::in_force(place::body(conn, id, &lane)?, found.expires_at()),
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
        journal: place::journal_if(conn, id, found.flags())?,
        evidence: evidence(conn, id)?,
        history,
    }))
}

fn history(conn: &Connection, id: MessageId) -> Result<Vec<Ending>, Trouble> {
    const HISTORY: &str = "-- inspect: how its runs ended
        select * from tide_history where message = ?1 order by seq";
    let table = "tide_history";
    let mut statement = conn.prepare_cached(HISTORY)?;
    let mut rows = statement.query([id.as_i64()])?;
    let mut history = Vec::new();
    while let Some(row) = rows.next()? {
        seal::check(row, seal::HISTORY)?;
        history.push(Ending {
            at: row::time(row, "at", table)?,
            attempt: row::column(row, "attempt", table)?,
            generation: row::column(row, "generation", table)?,
            outcome: row::column(row, "outcome", table)?,
            state: row::state(row, table)?,
            code: row::column(row, "code", table)?,
            detail: row::column(row, "detail", table)?,
            due_at: row::maybe_time(row, "due_at", table)?,
        });
    }
    Ok(history)
}

fn evidence(conn: &Connection, id: MessageId) -> Result<Vec<Evidence>, Trouble> {
    const EVIDENCE: &str = "-- inspect: confirmations that came too late
        select * from tide_evidence where message = ?1 order by seq";
    let table = "tide_evidence";
    let mut statement = conn.prepare_cached(EVIDENCE)?;
    let mut rows = statement.query([id.as_i64()])?;
    let mut evidence = Vec::new();
    while let Some(row) = rows.next()? {
        seal::check(row, seal::EVIDENCE)?;
        let value: String = row::column(row, "value", table)?;
        evidence.push(Evidence {
            at: row::time(row, "at", table)?,
            effect: row::effect_id(row, table)?,
            value: value.into(),
        });
    }
    Ok(evidence)
}

/// The message of a key.
pub(crate) fn find(
    conn: &Connection,
    tenant: &Tenant,
    queue: &QueueName,
    key: &IdempotencyKey,
) -> Result<Option<MessageId>, Trouble> {
    let Some(queue_id) = group::find_queue(conn, tenant, queue)? else { return Ok(None) };
    Ok(enqueue::key_row(conn, queue_id, key.hash())?.map(|(id, _)| id))
}

/// Where messages stand.
pub(crate) fn progress(conn: &Connection, ids: &[MessageId]) -> Result<Vec<Option<Progress>>, Trouble> {
    ids.iter().map(|id| progress_of(conn, *id)).collect()
}

fn progress_of(conn: &Connection, id: MessageId) -> Result<Option<Progress>, Trouble> {
    if let Some(ended) = place::ended(conn, id)? {
        let answer = ended.answer();
        return Ok(Some(Progress { state: ended.state, reason: ended.reason, answer }));
    }
    // That it has not ended is believed only if it is found where a message is that has not.
    let found = place::find(conn, id)?;
    Ok(found.map(|found| Progress { state: found.state(), reason: None, answer: None }))
}

/// All messages of a flow, the first one first.
pub(crate) fn flow(conn: &Connection, root: MessageId) -> Result<Vec<Summary>, Trouble> {
    const FLOW: &str = "-- flow
        select ?1 as id where exists (select 1 from tide_message where id = ?1)
        union all select id from tide_message where flow = ?1 order by id";
    let ids: Vec<i64> = {
        let mut statement = conn.prepare_cached(FLOW)?;
        let ids = statement.query_map([root.as_i64()], |row| row.get(0))?;
        ids.collect::<Result<_, _>>()?
    };
    let mut summaries = Vec::with_capacity(ids.len());
    for id in ids {
        summaries.extend(summary(conn, MessageId::from_i64(id))?);
    }
    Ok(summaries)
}

fn summary(conn: &Connection, id: MessageId) -> Result<Option<Summary>, Trouble> {
    let Some(found) = place::find(conn, id)? else { return Ok(None) };
    let lane = load_lane(conn, found.lane())?;
    let message = place::body(conn, id, &lane)?;
    let (code, detail, ended_at) = match &found {
        Found::Ready { .. } | Found::Leased(_) => {
            let (code, detail) = last_failure(conn, id)?;
            (code, detail, None)
        }
        Found::Ended(ended) => {
            let (code, detail) = why(ended);
            (code, detail, Some(ended.at))
        }
    };
    Ok(Some(Summary {
        id,
        tenant: lane.tenant,
        queue: lane.queue,
        kind: lane.kind,
        key: message.key,
        state: found.state(),
        attempt: found.counters().attempt,
        due_at: found.due_at(),
        code,
        detail,
        enqueued_at: message.enqueued_at,
        ended_at,
        flow: message.flow,
    }))
}

/// Why it failed, died or was parked. A reason comes before the failure that led to it.
fn why(ended: &Ended) -> (Option<String>, Option<String>) {
    match (&ended.reason, &ended.failure) {
        (Some(reason), failure) => (Some(reason.clone()), failure.as_ref().map(ToString::to_string)),
        (None, Some(failure)) => (Some(failure.code.clone()), Some(failure.detail.clone())),
        (None, None) => (None, None),
    }
}

fn last_failure(conn: &Connection, id: MessageId) -> Result<(Option<String>, Option<String>), Trouble> {
    const LAST: &str = "-- list: the last attempt's failure
        select * from tide_history where message = ?1 order by seq desc limit 1";
    let table = "tide_history";
    let mut statement = conn.prepare_cached(LAST)?;
    let mut rows = statement.query([id.as_i64()])?;
    let Some(row) = rows.next()? else { return Ok((None, None)) };
    seal::check(row, seal::HISTORY)?;
    let (code, detail): (String, String) = (row::column(row, "code", table)?, row::column(row, "detail", table)?);
    Ok(if code.is_empty() { (None, None) } else { (Some(code), Some(detail)) })
}

/// Messages by filter, by ascending id.
pub(crate) fn list(conn: &Connection, filter: &Filter) -> Result<Vec<Summary>, Trouble> {
    // One table per state, each in the order of ids; ready rows are in the order of claims and are sorted.
    const ENDED: &str = "-- list: completed, failed, cancelled
        select id from tide_result where id > ?1 and lane in (select value from json_each(?2))
          and state in (select value from json_each(?3)) and (?4 is null or code = ?4) order by id limit ?5";
    const HELD: &str = "-- list: parked, dead
        select id from tide_held where id > ?1 and lane in (select value from json_each(?2))
          and state in (select value from json_each(?3)) and (?4 is null or reason = ?4 or code = ?4)
          and (?6 is null or fgroup = ?6) and (?7 or discarded_at is null) order by id limit ?5";
    const LEASED: &str = "-- list: leased
        select id from tide_lease l where id > ?1 and lane in (select value from json_each(?2))
          and 'leased' in (select value from json_each(?3)) and (?4 is null or ?4 =
            (select code from tide_history where message = l.id order by seq desc limit 1)) order by id limit ?5";
    const READY: &str = "-- list: ready
        select id from tide_ready l where id > ?1 and lane in (select value from json_each(?2))
          and 'ready' in (select value from json_each(?3)) and (?4 is null or ?4 =
            (select code from tide_history where message = l.id order by seq desc limit 1)) order by id limit ?5";
    const SCHED: &str = "-- list: ready, due later
        select id from tide_sched l where id > ?1 and lane in (select value from json_each(?2))
          and 'ready' in (select value from json_each(?3)) and (?4 is null or ?4 =
            (select code from tide_history where message = l.id order by seq desc limit 1)) order by id limit ?5";
    let lanes = lanes(conn, filter)?;
    let wanted = |state: &State| filter.states.is_empty() || filter.states.contains(state);
    let states: Vec<&str> = State::ALL.iter().filter(|state| wanted(state)).map(|state| state.as_str()).collect();
    let states = serde_json::to_string(&states).expect("words are JSON");
    let tables: [(&str, &[State]); 5] = [
        (ENDED, &[State::Completed, State::Failed, State::Cancelled]),
        (HELD, &[State::Parked, State::Dead]),
        (LEASED, &[State::Leased]),
        (READY, &[State::Ready]),
        (SCHED, &[State::Ready]),
    ];
    let after = filter.after.map_or(i64::MIN, MessageId::as_i64);
    let mut ids: Vec<i64> = Vec::new();
    for (sql, of) in tables {
        if !of.iter().any(wanted) {
            continue;
        }
        let mut statement = conn.prepare_cached(sql)?;
        let common = params![after, lanes, states, filter.code, filter.limit];
        let group = filter.group.map(GroupId::as_i64);
        let found: Vec<i64> = if sql == HELD {
            let held = [common, params![group, filter.discarded]].concat();
            statement.query_map(&held[..], |row| row.get(0))?.collect::<Result<_, _>>()?
        } else if group.is_some() {
            Vec::new()
        } else {
            statement.query_map(common, |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        ids.extend(found);
    }
    ids.sort_unstable();
    ids.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
    let mut summaries = Vec::with_capacity(ids.len());
    for id in ids {
        summaries.extend(summary(conn, MessageId::from_i64(id))?);
    }
    Ok(summaries)
}

/// What dead letters have in common, the largest group first.
pub(crate) fn groups(conn: &Connection, filter: &Filter) -> Result<Vec<FailureGroup>, Trouble> {
    const GROUPS: &str = "-- groups: read from the index alone; the first of each says what they have in common
        select fgroup, count(*) n, min(at) first_at, max(at) last_at, min(id) id from tide_held
        where state in (select value from json_each(?1)) and lane in (select value from json_each(?2))
          and discarded_at is null
        group by fgroup";
    const SAMPLE: &str = "-- groups: one of each
        select * from tide_held where id = ?1";
    let wanted = |state: &State| match filter.states[..] {
        [] => *state == State::Dead,
        [..] => filter.states.contains(state),
    };
    let states: Vec<&str> = [State::Dead, State::Parked].into_iter().filter(wanted).map(State::as_str).collect();
    let states = serde_json::to_string(&states).expect("words are JSON");
    let table = "tide_held";
    let mut statement = conn.prepare_cached(GROUPS)?;
    let mut rows = statement.query(params![states, lanes(conn, filter)?])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let sample: i64 = row::column(row, "id", table)?;
        let mut of_sample = conn.prepare_cached(SAMPLE)?;
        let mut samples = of_sample.query([sample])?;
        let Some(first) = samples.next()? else { continue };
        seal::check(first, seal::HELD)?;
        let failures: i64 = row::column(first, "fgroup", table)?;
        if failures != row::column::<i64>(row, "fgroup", table)? {
            let what = "the index of groups leads to a message of another one";
            return Err(StoreError::corrupt(&format!("{table}, row {sample}"), what).into());
        }
        let code = match row::column::<Option<String>>(first, "code", table)? {
            Some(code) => code,
            None => row::column(first, "reason", table)?,
        };
        if filter.code.as_ref().is_some_and(|wanted| *wanted != code) {
            continue;
        }
        let effect: Option<String> = row::column(first, "effect", table)?;
        let detail: Option<String> = row::column(first, "detail", table)?;
        groups.push(FailureGroup {
            id: GroupId::from_i64(failures),
            kind: load_lane(conn, row::column(first, "lane", table)?)?.kind,
            code,
            effect: effect.as_deref().map(EffectName::new).transpose()?,
            pattern: pattern(&detail.unwrap_or_default()),
            count: row::column::<u32>(row, "n", table)?.into(),
            first_seen: row::time(row, "first_at", table)?,
            last_seen: row::time(row, "last_at", table)?,
            sample: MessageId::from_i64(sample),
        });
    }
    groups.sort_by_key(|group| (std::cmp::Reverse(group.count), group.id));
    groups.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
    Ok(groups)
}

/// The lanes a filter allows, as one argument.
pub(crate) fn lanes(conn: &Connection, filter: &Filter) -> Result<rusqlite::types::Value, Trouble> {
    const LANES: &str = "-- list: lanes are few, and each says queue and kind for all its messages
        select l.id from tide_lane l join tide_queue q on q.id = l.queue
        where (?1 is null or q.name = ?1) and (?2 is null or l.kind = ?2) and (?3 is null or q.tenant = ?3)";
    let queue = filter.queue.as_ref().map(QueueName::as_str);
    let kind = filter.kind.as_ref().map(tidegate_core::Kind::as_str);
    let tenant = filter.tenant.as_ref().map(Tenant::as_str);
    let mut statement = conn.prepare_cached(LANES)?;
    let lanes = statement.query_map(params![queue, kind, tenant], |row| row.get(0))?;
    let lanes: Vec<i64> = lanes.collect::<Result<_, _>>()?;
    Ok(id_list(&lanes))
}

/// What an explanation needs to know.
pub(crate) fn explain(conn: &Connection, id: MessageId, now: Timestamp) -> Result<Option<ExplainFacts>, Trouble> {
    const AHEAD: &str = "-- explain: in the order of the claim
        select count(*) from (select 1 from tide_ready where lane = ?1 and (due_at, id) < (?2, ?3) limit ?4)";
    let Some(view) = view(conn, id)? else { return Ok(None) };
    let Some(found) = place::find(conn, id)? else { return Ok(None) };
    let lane = load_lane(conn, found.lane())?;
    let paused = group::queue_row(conn, lane.queue_id)?.paused;
    let ahead = match view.due_at.filter(|due_at| *due_at <= now) {
        Some(due_at) => conn
            .prepare_cached(AHEAD)?
            .query_row(params![lane.id, due_at.as_millis(), id.as_i64(), MOST_AHEAD], |row| row.get(0))?,
        None => 0,
    };
    let policy = group::policy(conn, &lane.kind)?;
    Ok(Some(ExplainFacts { view, now, paused, ahead, policy }))
}

/// Acts of operators after a sequence number.
pub(crate) fn audit(conn: &Connection, after: u64, limit: u32) -> Result<Vec<AuditEntry>, Trouble> {
    const AUDIT: &str = "-- audit
        select a.*, q.name queue_name, q.tenant from tide_audit a left join tide_queue q on q.id = a.queue
        where a.seq > ?1 order by a.seq limit ?2";
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(AUDIT)?;
    let mut rows = statement.query(params![after, limit])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(entry(row)?);
    }
    Ok(entries)
}

fn entry(row: &Row<'_>) -> Result<AuditEntry, Trouble> {
    let table = "tide_audit";
    seal::check(row, seal::AUDIT)?;
    let queue: Option<String> = row::column(row, "queue_name", table)?;
    let queue = queue.map(|name| QueueName::new(&name)).transpose().map_err(|e: StoreError| Trouble::Item(e))?;
    let tenant: Option<String> = row::column(row, "tenant", table)?;
    let tenant = tenant.map(|name| Tenant::new(&name)).transpose().map_err(|e: StoreError| Trouble::Item(e))?;
    let message: Option<i64> = row::column(row, "message", table)?;
    Ok(AuditEntry {
        seq: u64::try_from(row::column::<i64>(row, "seq", table)?).unwrap_or_default(),
        at: row::time(row, "at", table)?,
        actor: row::column(row, "actor", table)?,
        act: row::column(row, "act", table)?,
        reason: row::column(row, "reason", table)?,
        message: message.map(MessageId::from_i64),
        tenant,
        queue,
        detail: row::column(row, "detail", table)?,
    })
}
