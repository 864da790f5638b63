//! Depths, ages and counters, exact as of one moment, without a look at the backlog.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, QueueName, Tenant};
use tidegate_core::store::{Counted, LaneStats, QueueStats, Stats, Tally};

use crate::group::{Lane, load_lane};
use crate::row;
use crate::seal;
use crate::trouble::Trouble;

/// All of it, from one snapshot.
pub(crate) fn stats(conn: &Connection, now: Timestamp) -> Result<Stats, Trouble> {
    const OPEN: &str = "-- stats: effects whose answer is missing
        select count(*) from tide_effect where state in ('intent', 'unknown')";
    let lanes = lanes(conn)?;
    let mut queues = queues(conn)?;
    let mut lane_stats = Vec::new();
    for lane in &lanes {
        let Some((_, queue)) = queues.iter_mut().find(|(id, _)| *id == lane.queue_id) else { continue };
        // A due message that no sweep or claim came by yet is claimable all the same.
        let due = due_unpromoted(conn, lane, now)?;
        queue.scheduled = queue.scheduled.saturating_sub(due);
        queue.ready += due;
        if let Some(oldest) = oldest(conn, lane, now)? {
            queue.oldest_ready = queue.oldest_ready.max(Some(oldest));
            lane_stats.push(LaneStats {
                queue: lane.queue.clone(),
                kind: lane.kind.clone(),
                version: lane.version,
                priority: lane.priority,
                oldest,
            });
        }
        queue.oldest_parked = queue.oldest_parked.max(oldest_held(conn, lane, PARKED, now)?);
        queue.oldest_dead = queue.oldest_dead.max(oldest_held(conn, lane, DEAD, now)?);
    }
    for (lane, oldest) in oldest_leased(conn, now)? {
        let queue_id = lanes.iter().find(|other| other.id == lane).map(|lane| lane.queue_id);
        if let Some((_, queue)) = queues.iter_mut().find(|(id, _)| Some(*id) == queue_id) {
            queue.oldest_leased = queue.oldest_leased.max(Some(oldest));
        }
    }
    let open: i64 = conn.prepare_cached(OPEN)?.query_row([], |row| row.get(0))?;
    lane_stats
        .sort_by(|a, b| (&a.queue, &a.kind, a.version, a.priority).cmp(&(&b.queue, &b.kind, b.version, b.priority)));
    Ok(Stats {
        queues: queues.into_iter().map(|(_, queue)| queue).collect(),
        tallies: tallies(conn)?,
        open_effects: u64::try_from(open).unwrap_or_default(),
        lanes: lane_stats,
    })
}

fn lanes(conn: &Connection) -> Result<Vec<Lane>, Trouble> {
    let ids: Vec<i64> = {
        let mut statement = conn.prepare_cached("select id from tide_lane order by id")?;
        let ids = statement.query_map([], |row| row.get(0))?;
        ids.collect::<Result<_, _>>()?
    };
    ids.into_iter().map(|id| load_lane(conn, id)).collect()
}

fn queues(conn: &Connection) -> Result<Vec<(i64, QueueStats)>, Trouble> {
    const QUEUES: &str = "-- stats: counts that the commits kept
        select * from tide_queue order by tenant, name";
    let table = "tide_queue";
    let mut statement = conn.prepare_cached(QUEUES)?;
    let mut rows = statement.query([])?;
    let mut queues = Vec::new();
    while let Some(row) = rows.next()? {
        seal::check(row, seal::QUEUE)?;
        let count = |name: &'static str| {
            let count: i64 = row::column(row, name, table)?;
            Ok::<u64, Trouble>(u64::try_from(count).unwrap_or_default())
        };
        let tenant: String = row::column(row, "tenant", table)?;
        let max_depth: Option<i64> = row::column(row, "max_depth", table)?;
        queues.push((
            row::column(row, "id", table)?,
            QueueStats {
                tenant: Tenant::new(&tenant)?,
                queue: row::parsed::<QueueName>(row, "name", table)?,
                paused: row::column(row, "paused", table)?,
                max_depth: max_depth.and_then(|most| u64::try_from(most).ok()),
                ready: count("ready")?,
                scheduled: count("scheduled")?,
                leased: count("leased")?,
                parked: count("parked")?,
                dead: count("dead")?,
                oldest_ready: None,
                oldest_leased: None,
                oldest_parked: None,
                oldest_dead: None,
            },
        ));
    }
    Ok(queues)
}

fn due_unpromoted(conn: &Connection, lane: &Lane, now: Timestamp) -> Result<u64, Trouble> {
    const DUE: &str = "-- stats: due since the last sweep
        select count(*) from tide_sched where lane = ?1 and due_at <= ?2";
    let due: i64 = conn.prepare_cached(DUE)?.query_row([lane.id, now.as_millis()], |row| row.get(0))?;
    Ok(u64::try_from(due).unwrap_or_default())
}

/// How long the head of a lane has been due.
fn oldest(conn: &Connection, lane: &Lane, now: Timestamp) -> Result<Option<Duration>, Trouble> {
    const READY: &str = "-- stats: the head of a lane
        select due_at from tide_ready where lane = ?1 order by due_at, id limit 1";
    const SCHED: &str = "-- stats: the head of what is due later, which may be due by now
        select due_at from tide_sched where lane = ?1 order by due_at, id limit 1";
    let mut oldest = None;
    for sql in [READY, SCHED] {
        let due_at: Option<i64> = conn.prepare_cached(sql)?.query_row([lane.id], |row| row.get(0)).optional()?;
        let due_at = due_at.map(Timestamp::from_millis).filter(|due_at| sql == READY || *due_at <= now);
        oldest = oldest.max(due_at.map(|due_at| now.since(due_at)));
    }
    Ok(oldest)
}

const PARKED: &str = "-- stats: the longest parked of a lane
    select at from tide_held where state = 'parked' and lane = ?1 order by at limit 1";
const DEAD: &str = "-- stats: the oldest dead letter of a lane
    select at from tide_held where state = 'dead' and discarded_at is null and lane = ?1 order by at limit 1";

/// How long the first of what waits for a person has waited.
fn oldest_held(conn: &Connection, lane: &Lane, sql: &str, now: Timestamp) -> Result<Option<Duration>, Trouble> {
    let at: Option<i64> = conn.prepare_cached(sql)?.query_row([lane.id], |row| row.get(0)).optional()?;
    Ok(at.map(|at| now.since(Timestamp::from_millis(at))))
}

/// By lane, how long ago the oldest running message became due.
fn oldest_leased(conn: &Connection, now: Timestamp) -> Result<Vec<(i64, Duration)>, Trouble> {
    const LEASED: &str = "-- stats: as many rows as there are running handlers
        select lane, min(due_at) from tide_lease group by lane";
    let mut statement = conn.prepare_cached(LEASED)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    let oldest = rows.map(|row| row.map(|(lane, due_at)| (lane, now.since(Timestamp::from_millis(due_at)))));
    Ok(oldest.collect::<Result<_, _>>()?)
}

fn tallies(conn: &Connection) -> Result<Vec<Tally>, Trouble> {
    const TALLIES: &str = "-- stats: counters of all processes
        select q.name, t.kind, t.what, t.code, sum(t.n) n from tide_tally t join tide_queue q on q.id = t.queue
        group by q.name, t.kind, t.what, t.code order by q.name, t.kind, t.what, t.code";
    let table = "tide_tally";
    let mut statement = conn.prepare_cached(TALLIES)?;
    let mut rows = statement.query([])?;
    let mut tallies = Vec::new();
    while let Some(row) = rows.next()? {
        let what: String = row::column(row, "what", table)?;
        let Some(what) = Counted::from_word(&what) else {
            return Err(StoreError::corrupt("tide_tally.what", &format!("no such counter {what:?}")).into());
        };
        let n: i64 = row::column(row, "n", table)?;
        tallies.push(Tally {
            queue: row::parsed::<QueueName>(row, "name", table)?,
            kind: row::parsed::<Kind>(row, "kind", table)?,
            what,
            code: row::column(row, "code", table)?,
            n: u64::try_from(n).unwrap_or_default(),
        });
    }
    Ok(tallies)
}
