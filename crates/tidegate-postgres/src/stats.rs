//! Depths, ages and counters, exact as of one moment, without a look at the backlog.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, QueueName, Tenant};
use tidegate_core::store::{Counted, LaneStats, MOST_CODES, OTHER_CODES, QueueStats, Stats, Tally};

use crate::conn::Conn;
use crate::names::Lane;
use crate::read::Snapshot;
use crate::row;
use crate::trouble::Trouble;

/// All of it, from one snapshot.
pub(crate) async fn stats(snapshot: &Snapshot) -> Result<Stats, Trouble> {
    const OPEN: &str = "-- stats: effects whose answer is missing
        select count(*) from tidegate.effect where state in ('intent', 'unknown')";
    let (conn, now) = (&snapshot.conn, snapshot.now);
    let mut queues = queues(conn).await?;
    let mut lane_stats = Vec::new();
    for (lane, ages) in lanes(snapshot).await? {
        let Some(queue) = queues.get_mut(&lane.queue_id) else { continue };
        let since = |at: Option<Timestamp>| at.map(|at| now.since(at));
        // A due message that no sweep or claim came by yet is claimable all the same.
        queue.scheduled = queue.scheduled.saturating_sub(ages.due);
        queue.ready += ages.due;
        let oldest = since(ages.ready).max(since(ages.sched.filter(|due_at| *due_at <= now)));
        if let Some(oldest) = oldest {
            queue.oldest_ready = queue.oldest_ready.max(Some(oldest));
            lane_stats.push(LaneStats {
                queue: lane.queue.clone(),
                kind: lane.kind.clone(),
                version: lane.version,
                priority: lane.priority,
                oldest,
            });
        }
        queue.oldest_leased = queue.oldest_leased.max(since(ages.leased));
        queue.oldest_parked = queue.oldest_parked.max(since(ages.parked));
        queue.oldest_dead = queue.oldest_dead.max(since(ages.dead));
    }
    lane_stats
        .sort_by(|a, b| (&a.queue, &a.kind, a.version, a.priority).cmp(&(&b.queue, &b.kind, b.version, b.priority)));
    let mut queues: Vec<QueueStats> = queues.into_values().collect();
    queues.sort_by(|a, b| (&a.tenant, &a.queue).cmp(&(&b.tenant, &b.queue)));
    Ok(Stats {
        queues,
        tallies: tallies(conn).await?,
        open_effects: u64::try_from(row::first_i64(&conn.query(OPEN, &[]).await?)?).unwrap_or_default(),
        lanes: lane_stats,
    })
}

/// Times in a lane.
struct Ages {
    /// Messages that are due and were not made claimable yet.
    due: u64,
    ready: Option<Timestamp>,
    sched: Option<Timestamp>,
    leased: Option<Timestamp>,
    parked: Option<Timestamp>,
    dead: Option<Timestamp>,
}

async fn lanes(snapshot: &Snapshot) -> Result<Vec<(Arc<Lane>, Ages)>, Trouble> {
    // The head of a lane is the one that became claimable first. It is looked for where this process's claims saw it: what
    // lies before that is gone.
    const LANES: &str = "-- stats: heads of lanes, and how long what is held has waited
        select l.id, l.queue, l.kind, l.version, l.priority, q.tenant, q.name,
            (select count(*) from tidegate.sched s where s.lane = l.id and s.due_at <= $1) due,
            (select r.due_at from tidegate.ready r where r.lane = l.id order by r.pos, r.due_at, r.id limit 1) ready,
            (select s.due_at from tidegate.sched s where s.lane = l.id order by s.due_at, s.id limit 1) sched,
            (select h.at from tidegate.held h where h.state = 'parked' and h.lane = l.id order by h.at limit 1) parked,
            (select h.at from tidegate.held h where h.state = 'dead' and h.discarded_at is null and h.lane = l.id
                order by h.at limit 1) dead
        from tidegate.lane l join tidegate.queue q on q.id = l.queue order by l.id";
    const LEASED: &str = "-- stats: as many rows as there are running handlers
        select lane, min(due_at) due_at from tidegate.lease group by lane";
    let now = snapshot.now.as_millis();
    let answers = snapshot.conn.many(&[(LANES, &[&now]), (LEASED, &[])]).await?;
    let mut leased = HashMap::new();
    for row in answers.get(1).into_iter().flatten() {
        leased.insert(row::column::<i64, _>(row, 0, "lease")?, row::time(row, 1, "lease")?);
    }
    let mut lanes = Vec::new();
    for row in answers.first().into_iter().flatten() {
        let lane = snapshot.shared.names.note(row)?;
        let ages = Ages {
            due: row::unsigned(row, "due", "sched")?,
            ready: row::maybe_time(row, "ready", "ready")?,
            sched: row::maybe_time(row, "sched", "sched")?,
            leased: leased.get(&lane.id).copied(),
            parked: row::maybe_time(row, "parked", "held")?,
            dead: row::maybe_time(row, "dead", "held")?,
        };
        lanes.push((lane, ages));
    }
    Ok(lanes)
}

async fn queues(conn: &Conn) -> Result<BTreeMap<i64, QueueStats>, Trouble> {
    const QUEUES: &str = "-- stats: what commits added and took, and the sweep summed up
        select q.id, q.tenant, q.name, q.paused, q.max_depth, coalesce(sum(d.ready), 0)::bigint ready,
            coalesce(sum(d.scheduled), 0)::bigint scheduled, coalesce(sum(d.leased), 0)::bigint leased,
            coalesce(sum(d.parked), 0)::bigint parked, coalesce(sum(d.dead), 0)::bigint dead
        from tidegate.queue q left join tidegate.depth d on d.queue = q.id
        group by q.id, q.tenant, q.name, q.paused, q.max_depth";
    let mut queues = BTreeMap::new();
    for row in &conn.query(QUEUES, &[]).await? {
        let count = |name: &'static str| {
            let count: i64 = row::column(row, name, "depth")?;
            Ok::<u64, Trouble>(u64::try_from(count).unwrap_or_default())
        };
        let queue = row::queue(row)?;
        let stats = QueueStats {
            tenant: Tenant::new(queue.tenant.as_str())?,
            queue: queue.name,
            paused: queue.paused,
            max_depth: queue.max_depth.and_then(|most| u64::try_from(most).ok()),
            ready: count("ready")?,
            scheduled: count("scheduled")?,
            leased: count("leased")?,
            parked: count("parked")?,
            dead: count("dead")?,
            oldest_ready: None::<Duration>,
            oldest_leased: None,
            oldest_parked: None,
            oldest_dead: None,
        };
        queues.insert(queue.id, stats);
    }
    Ok(queues)
}

async fn tallies(conn: &Conn) -> Result<Vec<Tally>, Trouble> {
    // The same rule as in `fold.rs`: the first codes of a counter keep their names.
    const TALLIES: &str = "-- stats: counters of all processes
        with codes as (
            select t.queue, t.kind, t.what, t.code, min(t.seq) first, sum(t.n) n from tidegate.tally t
            group by t.queue, t.kind, t.what, t.code
        ), ranked as (
            select *, count(*) filter (where code not in ('', $2)) over
                (partition by queue, kind, what order by first, code) place from codes
        )
        select q.name, r.kind, r.what, case when r.code = '' or r.place <= $1 then r.code else $2 end code,
            sum(r.n)::bigint n
        from ranked r join tidegate.queue q on q.id = r.queue group by 1, 2, 3, 4 order by 1, 2, 3, 4";
    let table = "tally";
    let mut tallies = Vec::new();
    for row in &conn.query(TALLIES, &[&i64::from(MOST_CODES), &OTHER_CODES]).await? {
        let what: &str = row::column(row, "what", table)?;
        let Some(what) = Counted::from_word(what) else {
            return Err(StoreError::corrupt("tally.what", &format!("no such counter {what:?}")).into());
        };
        tallies.push(Tally {
            queue: row::parsed::<QueueName>(row, "name", table)?,
            kind: row::parsed::<Kind>(row, "kind", table)?,
            what,
            code: row::column(row, "code", table)?,
            n: row::unsigned(row, "n", table)?,
        });
    }
    // The database's order of texts may be that of a language.
    tallies.sort_by(|a, b| {
        (a.queue.as_str(), a.kind.as_str(), a.what.as_str(), &a.code).cmp(&(
            b.queue.as_str(),
            b.kind.as_str(),
            b.what.as_str(),
            &b.code,
        ))
    });
    Ok(tallies)
}
