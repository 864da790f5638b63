//! Looks a store over, without changing it: the file, and what the rows promise one another.
//!
//! Each check is a name, what it looks at, and what it found, with table and row. The list is [`CHECKS`]; a test has a
//! damaged store for each. Everything is read in one snapshot through a connection that cannot write, so that it may run
//! beside services. It judges; it repairs nothing.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, params};
use tidegate_core::clock::Timestamp;
pub use tidegate_core::doctor::{Check, Finding};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::store::Counted;

use crate::group::{Lane, load_lane};
use crate::migrate::{self, Kind, Looked};
use crate::open;
use crate::place;
use crate::room::{self, Disk, RoomFor};
use crate::row::{self, JOURNALED};
use crate::seal::{self, EFFECT, HELD, LEASE, MESSAGE, READY, RESULT, SCHED, SEALED};
use crate::trouble::{Trouble, store_error};

/// So many findings of a check are listed; the others are counted.
const LISTED: usize = 100;
/// What a clock may be off, and a sweep late, before it is worth a word.
const SLACK_MS: i64 = 60_000;
/// What is due later is made claimable by every sweep; a sweep that left it for so long did not see it.
const OVERDUE_MS: i64 = 600_000;
/// How long a jump of the clock is worth a word.
const RECENT_MS: i64 = 24 * 3_600_000;

/// With what a store is looked over.
#[derive(Debug, Clone, Copy)]
pub struct Doctor {
    /// The time now.
    pub now: Timestamp,
    /// The largest write-ahead log, in bytes, that is nothing to worry about.
    pub largest_wal: u64,
}

impl Doctor {
    /// The write-ahead log begins anew at 64 MiB; four times as much means that something keeps it from it.
    pub const LARGEST_WAL: u64 = 256 << 20;
}

type Found = Vec<Finding>;
type Look = fn(&Patient<'_>) -> Result<Found, Trouble>;

struct Patient<'a> {
    conn: &'a Connection,
    path: &'a Path,
    doctor: Doctor,
}

/// Every check: its name, what it looks at, and the look itself.
const CHECKS: [(&str, &str, Look); 17] = [
    ("pages", "the file's pages and indexes are whole (integrity_check)", pages),
    ("migrations", "the tables were made by the steps this program knows", migrations),
    ("decode", "every row can be read and agrees with its seal", decode),
    ("one_state", "every message is in exactly one of the tables of its states", one_state),
    ("bodies", "every row of a state has the body of its message", bodies),
    ("keys", "every key names a message, and every message has its key", keys),
    ("ids", "ids only grow: none is beyond the last one given", ids),
    ("lanes", "every row is in the lane of its message, and every lane in a queue", lanes),
    ("placement", "what can be claimed is found where claims look for it, and what is due is claimable", placement),
    ("counts", "what each queue counts is what a recount finds", counts),
    ("journal", "rows of the journal and of the history belong to messages, which know that they have them", journal),
    ("open_effects", "nothing that ended has an effect whose outcome is unknown", open_effects),
    ("tallies", "counters count at least what is there", tallies),
    ("leases", "leases that ran out are taken over", leases),
    ("wal", "the write-ahead log is of a bearable size", wal),
    ("room", "the disk has room for new messages, and for those that wait", room),
    ("clock", "the wall clock was not set of late, and is not behind the store", clock),
];

/// The names of all checks.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, ..)| *name)
}

/// Looks the store at `path` over.
pub(crate) fn examine(path: &Path, doctor: Doctor) -> Result<Vec<Check>, StoreError> {
    let conn = open::reader(path)?;
    // One snapshot: a message moves between tables, and a recount has to see what the counters saw.
    conn.execute_batch("begin").map_err(store_error)?;
    let patient = Patient { conn: &conn, path, doctor };
    let mut checks = Vec::with_capacity(CHECKS.len());
    for (name, what, look) in CHECKS {
        let mut findings = match look(&patient) {
            Ok(findings) => findings,
            // What cannot be looked at is no reason to look at nothing else.
            Err(trouble) => vec![finding("", "", format!("the check could not be made: {}", cause(trouble)))],
        };
        let found = findings.len();
        findings.truncate(LISTED);
        checks.push(Check { name, what, ok: found == 0, found, findings });
    }
    Ok(checks)
}

fn cause(trouble: Trouble) -> String {
    match trouble {
        Trouble::Item(error) => error.what().to_owned(),
        Trouble::Group(error) => error.to_string(),
    }
}

fn finding(table: &str, row: impl fmt::Display, what: impl Into<String>) -> Finding {
    // These tables are keyed by the number of a message; the others have numbers of their own.
    let of_messages = [
        "tide_message",
        "tide_ready",
        "tide_sched",
        "tide_lease",
        "tide_result",
        "tide_held",
        "tide_key",
        "tide_effect",
        "tide_evidence",
        "tide_history",
        "tide_redriven",
    ];
    let row = row.to_string();
    let message = row.parse().ok().filter(|_| of_messages.contains(&table)).map(MessageId::from_i64);
    Finding { table: table.to_owned(), row, message, what: what.into() }
}

/// A value that names a row, as text.
fn named(value: Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => text,
        Value::Real(number) => number.to_string(),
        Value::Null | Value::Blob(_) => String::new(),
    }
}

/// Runs a statement whose rows are findings: table, row, what.
fn findings(patient: &Patient<'_>, sql: &str) -> Result<Found, Trouble> {
    collect(patient.conn, sql, [])
}

fn collect(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Found, Trouble> {
    let mut statement = conn.prepare(sql)?;
    let rows = statement.query_map(params, |row| {
        let table: String = row.get(0)?;
        Ok(finding(&table, named(row.get(1)?), row.get::<_, String>(2)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn pages(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let mut statement = patient.conn.prepare("pragma integrity_check(100)")?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").map(|line| finding("", "", line)).collect())
}

fn migrations(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let what = match migrate::look(patient.conn, &patient.path.display().to_string()) {
        Ok(Kind::Current) => match migrate::altered(patient.conn)? {
            Some(what) => what,
            None => return Ok(Vec::new()),
        },
        Ok(Kind::Empty) => "the file has no tables yet".to_owned(),
        Ok(Kind::Older { has }) => format!("the store is at step {has}, of an older tidegate"),
        Err(Looked::Refused(error)) => error.what().to_owned(),
        Err(Looked::Sqlite(error)) => return Err(error.into()),
    };
    Ok(vec![finding("tide_migration", "", what)])
}

/// Reads every row as the engine reads it.
fn decode(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let conn = patient.conn;
    let mut found = Vec::new();
    let lanes: HashMap<i64, Lane> = {
        let mut statement = conn.prepare("select id from tide_lane")?;
        let ids: Vec<i64> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut lanes = HashMap::new();
        for id in ids {
            match load_lane(conn, id) {
                Ok(lane) => drop(lanes.insert(id, lane)),
                Err(trouble) => found.push(finding("tide_lane", id, cause(trouble))),
            }
        }
        lanes
    };
    let mut each = |sql: &str, table: &str, read: &mut dyn FnMut(&rusqlite::Row<'_>) -> Result<(), Trouble>| {
        let mut statement = conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Err(trouble) = read(row) {
                let id = ["id", "message"].iter().find_map(|name| row.get::<_, Value>(*name).ok());
                found.push(finding(table, id.map(named).unwrap_or_default(), cause(trouble)));
            }
        }
        Ok::<(), Trouble>(())
    };
    each("select * from tide_message", "tide_message", &mut |row| {
        // A lane that is not there is the finding of another check.
        let Some(lane) = lanes.get(&row::column::<i64>(row, "lane", "tide_message")?) else { return Ok(()) };
        let message = row::message(row, lane)?;
        let parsed: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&message.payload);
        parsed.map(drop).map_err(|e| StoreError::corrupt("tide_message.payload", &e.to_string()).into())
    })?;
    for table in ["tide_ready", "tide_sched"] {
        each(&format!("select * from {table}"), table, &mut |row| row::life(row, table).map(drop))?;
    }
    each("select * from tide_lease", "tide_lease", &mut |row| row::lease(row).map(drop))?;
    each("select * from tide_result", "tide_result", &mut |row| place::ended_result(row).map(drop))?;
    each("select * from tide_held", "tide_held", &mut |row| place::ended_held(row).map(drop))?;
    each("select * from tide_effect", "tide_effect", &mut |row| row::effect(row).map(drop))?;
    each("select * from tide_history", "tide_history", &mut |row| row::state(row, "tide_history").map(drop))?;
    for sealed in SEALED {
        // Those above were held against their seals as they were read.
        if ![MESSAGE, READY, SCHED, LEASE, RESULT, HELD, EFFECT].contains(&sealed) {
            each(&format!("select * from {}", sealed.table), sealed.table, &mut |row| seal::check(row, sealed))?;
        }
    }
    Ok(found)
}

/// Every row that says where a message stands.
const STATES: &str = "
    select id, lane, 'tide_ready' t, flags from tide_ready union all select id, lane, 'tide_sched', flags from tide_sched
    union all select id, lane, 'tide_lease', flags from tide_lease
    union all select id, lane, 'tide_result', flags from tide_result
    union all select id, lane, 'tide_held', flags from tide_held";

fn one_state(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const NONE: &str = "-- doctor: accepted, and in no state
        select 'tide_message', id, 'it is in none of the tables of its states' from tide_message
        where id not in (select id from tide_ready union all select id from tide_sched union all select id from tide_lease
            union all select id from tide_result union all select id from tide_held)";
    let mut found = findings(patient, NONE)?;
    let twice = format!(
        "-- doctor: in two states at once
        select 'tide_message', id, 'it is in ' || group_concat(t, ' and ') from ({STATES}) group by id having count(*) > 1"
    );
    found.append(&mut findings(patient, &twice)?);
    Ok(found)
}

fn bodies(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let sql = format!(
        "-- doctor: nothing to run, nothing to show
        select t, id, 'its message has no body' from ({STATES}) where id not in (select id from tide_message)"
    );
    findings(patient, &sql)
}

fn keys(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const DANGLING: &str = "-- doctor: its duplicates can get no answer
        select 'tide_key', id, 'the key names a message that is not there' from tide_key
        where id not in (select id from tide_message)";
    const OWN: &str = "-- doctor: a cancelled message may have given its key away
        select m.id, m.key, k.hash, l.queue, k.queue from tide_message m left join tide_lane l on l.id = m.lane
        left join (select id, hash, queue from tide_key) k on k.id = m.id
        where k.id is not null or m.id not in (select id from tide_result where state = 'cancelled')";
    let mut found = findings(patient, DANGLING)?;
    let mut statement = patient.conn.prepare(OWN)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let key: String = row.get(1)?;
        let (hash, queue, of): (Option<Vec<u8>>, Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?, row.get(4)?);
        // A key that is none is the finding of another check.
        let Ok(key) = tidegate_core::id::IdempotencyKey::new(key) else { continue };
        match hash {
            None => found.push(finding("tide_message", id, "its key is not in tide_key: a duplicate would run again")),
            Some(hash) if hash != key.hash() || queue != of => {
                found.push(finding("tide_key", id, "the row is not that of the message's key and queue"));
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

fn ids(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const BEYOND: &str = "-- doctor: the next id could be one that is taken
        select 'tide_message', id, 'it is beyond the last id that was given, ' || last_id
        from tide_message, tide_store where id > last_id";
    const STORE: &str = "-- doctor: what the whole store agrees on
        select 'tide_store', '1', 'the row is missing' where not exists (select 1 from tide_store)";
    let mut found = findings(patient, STORE)?;
    found.append(&mut findings(patient, BEYOND)?);
    Ok(found)
}

fn lanes(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const QUEUELESS: &str = "-- doctor: a lane nobody can ask for
        select 'tide_lane', id, 'its queue is not there' from tide_lane where queue not in (select id from tide_queue)";
    const LANELESS: &str = "-- doctor: a body nobody can ask for
        select 'tide_message', id, 'its lane is not there' from tide_message where lane not in (select id from tide_lane)";
    let mut found = findings(patient, QUEUELESS)?;
    found.append(&mut findings(patient, LANELESS)?);
    let elsewhere = format!(
        "-- doctor: claimed by workers of another kind
        select s.t, s.id, 'it is in lane ' || s.lane || ', its message in lane ' || m.lane
        from ({STATES}) s join tide_message m on m.id = s.id where s.lane <> m.lane"
    );
    found.append(&mut findings(patient, &elsewhere)?);
    Ok(found)
}

fn placement(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const LOST: &str = "-- doctor: found by key, not by a scan: as `find` computes it
        select t, id, 'it is due at ' || due_at || ', and looked for at ' || expected from (
            select r.t, r.id, r.due_at, coalesce(
                (select due_at from tide_history where message = r.id order by seq desc limit 1),
                m.first_due_at, m.enqueued_at) expected
            from (select 'tide_ready' t, id, due_at from tide_ready
                  union all select 'tide_sched', id, due_at from tide_sched) r join tide_message m on m.id = r.id)
        where due_at <> expected";
    const EARLY: &str = "-- doctor: unless the clock was set back, what is claimable was due once
        select 'tide_ready', id, 'it is claimable before it is due, at ' || due_at from tide_ready
        where due_at > ?1 + ?2 and not exists (select 1 from tide_jump)";
    const LATE: &str = "-- doctor: every sweep moves what is due
        select 'tide_sched', id, 'it was due at ' || due_at || ' and no sweep made it claimable' from tide_sched
        where due_at + ?1 < (select last_tick from tide_store)";
    let mut found = findings(patient, LOST)?;
    found.append(&mut collect(patient.conn, EARLY, params![patient.doctor.now.as_millis(), SLACK_MS])?);
    found.append(&mut collect(patient.conn, LATE, [OVERDUE_MS])?);
    Ok(found)
}

fn counts(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const COUNTS: &str = "-- doctor: increments of the commits against the rows
        select q.id, q.name, q.ready, q.scheduled, q.leased, q.parked, q.dead,
            (select count(*) from tide_ready r join tide_lane l on l.id = r.lane where l.queue = q.id),
            (select count(*) from tide_sched r join tide_lane l on l.id = r.lane where l.queue = q.id),
            (select count(*) from tide_lease r join tide_lane l on l.id = r.lane where l.queue = q.id),
            (select count(*) from tide_held r join tide_lane l on l.id = r.lane where l.queue = q.id and state = 'parked'),
            (select count(*) from tide_held r join tide_lane l on l.id = r.lane
                where l.queue = q.id and state = 'dead' and discarded_at is null)
        from tide_queue q";
    let mut found = Vec::new();
    let mut statement = patient.conn.prepare(COUNTS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        for (at, word) in (2..).zip(["ready", "scheduled", "leased", "parked", "dead"]) {
            let (counted, there): (i64, i64) = (row.get(at)?, row.get(at + 5)?);
            if counted != there {
                let what = format!("queue {name} counts {counted} {word} and has {there}");
                found.push(finding("tide_queue", row.get::<_, i64>(0)?, what));
            }
        }
    }
    Ok(found)
}

fn journal(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const NOBODYS: &str = "-- doctor: what hangs on a message goes with it
        select t, message, 'its message is not there' from (
            select distinct message, 'tide_effect' t from tide_effect
            union all select distinct message, 'tide_evidence' from tide_evidence
            union all select distinct message, 'tide_history' from tide_history
            union all select distinct message, 'tide_redriven' from tide_redriven)
        where message not in (select id from tide_message)";
    let mut found = findings(patient, NOBODYS)?;
    let unread = format!(
        "-- doctor: a decision about it would not see its effects
        select t, id, 'it has a journal and its flags say that it has none' from ({STATES})
        where flags & ?1 = 0 and id in (select message from tide_effect)"
    );
    found.append(&mut collect(patient.conn, &unread, [JOURNALED])?);
    Ok(found)
}

fn open_effects(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const OPEN: &str = "-- doctor: the rule above all others; the newest row of an effect counts
        select 'tide_effect', e.message, 'effect ' || e.name || ' is ' || e.state || ', and the message is ' || s.state
        from tide_effect e join (select id, state from tide_result
            union all select id, state from tide_held where state = 'dead') s on s.id = e.message
        where e.state in ('intent', 'unknown') and not exists (select 1 from tide_effect n
            where n.message = e.message and n.name = e.name and n.item = e.item and n.seq > e.seq)";
    findings(patient, OPEN)
}

fn tallies(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const ROWS: &str = "select queue, kind, what, n, queue in (select id from tide_queue) from tide_tally";
    const SHORT: &str = "-- doctor: what is there was counted when it came
        with there as (
            select l.queue, l.kind, r.state what from tide_result r join tide_lane l on l.id = r.lane
            union all select l.queue, l.kind, h.state from tide_held h join tide_lane l on l.id = h.lane
            union all select l.queue, l.kind, 'enqueued' from tide_message m join tide_lane l on l.id = m.lane)
        select 'tide_tally', t.what, 'queue ' || q.name || ', kind ' || t.kind || ': ' || count(*) || ' are there, ' ||
            coalesce((select sum(n) from tide_tally y where y.queue = t.queue and y.kind = t.kind and y.what = t.what), 0)
            || ' were counted'
        from there t join tide_queue q on q.id = t.queue group by t.queue, t.kind, t.what
        having count(*) > coalesce((select sum(n) from tide_tally y
            where y.queue = t.queue and y.kind = t.kind and y.what = t.what), 0)";
    let mut found = Vec::new();
    let mut statement = patient.conn.prepare(ROWS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let what: String = row.get(2)?;
        let name = format!("{} {}", row.get::<_, String>(1)?, what);
        if Counted::from_word(&what).is_none() {
            found.push(finding("tide_tally", &name, format!("no such counter {what:?}")));
        }
        let n: i64 = row.get(3)?;
        if n < 0 {
            found.push(finding("tide_tally", &name, format!("it counted {n}")));
        }
        if !row.get::<_, bool>(4)? {
            found.push(finding("tide_tally", &name, "its queue is not there"));
        }
    }
    found.append(&mut findings(patient, SHORT)?);
    Ok(found)
}

fn leases(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const LAPSED: &str = "-- doctor: nobody holds the leases of a copy that has not worked yet
        select 'tide_lease', id, 'the lease of worker ' || worker || ' ran out at ' || until ||
            ' and nobody took it over: does any process sweep?'
        from tide_lease where until + ?2 < ?1
          and not exists (select 1 from tide_store where copied_id is not null and begun_at is null)";
    collect(patient.conn, LAPSED, params![patient.doctor.now.as_millis(), SLACK_MS])
}

fn wal(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let mut name = patient.path.as_os_str().to_owned();
    name.push("-wal");
    let size = std::fs::metadata(Path::new(&name)).map_or(0, |log| log.len());
    if size <= patient.doctor.largest_wal {
        return Ok(Vec::new());
    }
    let what = format!("the log has {size} bytes: a reader that never ends keeps it from beginning anew");
    Ok(vec![finding("", Path::new(&name).display(), what)])
}

fn room(patient: &Patient<'_>) -> Result<Found, Trouble> {
    let found = room::look_once(patient.path).filter(|disk| disk.room_for < RoomFor::Accepting);
    let what = |disk: Disk| format!("{} bytes are free: there is room for {} only", disk.free, disk.room_for.as_str());
    Ok(found.map(|disk| finding("", patient.path.display(), what(disk))).into_iter().collect())
}

fn clock(patient: &Patient<'_>) -> Result<Found, Trouble> {
    const JUMPS: &str = "-- doctor: quarantines began anew then, and nothing was deleted for an hour
        select 'tide_jump', seq, 'the clock was set by ' || by_ms || ' ms' from tide_jump where at > ?1 - ?2 order by seq";
    const BEHIND: &str = "-- doctor: the last sweep was in the future
        select 'tide_store', '1', 'the clock is ' || (last_tick - ?1) || ' ms behind the last sweep' from tide_store
        where last_tick > ?1 + ?2";
    let now = patient.doctor.now.as_millis();
    let mut found = collect(patient.conn, JUMPS, params![now, RECENT_MS])?;
    found.append(&mut collect(patient.conn, BEHIND, params![now, SLACK_MS])?);
    Ok(found)
}
