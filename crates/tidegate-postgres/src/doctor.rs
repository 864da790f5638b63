//! Looks a store over, without changing it: the server's settings, and what the rows promise one another.
//!
//! Each check is a name, what it looks at, and what it found, with table and row. The list is [`CHECKS`]; a test has a
//! damaged store for each. Everything is read in one snapshot of a transaction that cannot write, so that it may run
//! beside services; it holds back vacuum for as long as it takes. It judges; it repairs nothing.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;

use futures_util::TryStreamExt as _;
use tidegate_core::doctor::{Check, Finding};
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, MessageId};
use tidegate_core::store::Counted;
use tokio_postgres::Row;

use crate::conn::{Conn, Param};
use crate::inspect;
use crate::migrate::{self, Kind};
use crate::names::Lane;
use crate::operate;
use crate::read::Snapshot;
use crate::row::{self, JOURNALED};
use crate::trouble::{Trouble, said};

/// So many findings of a check are listed; the others are counted.
const LISTED: usize = 100;
/// What a clock may be off, and a sweep late, before it is worth a word.
const SLACK_MS: i64 = 60_000;
/// What is due later is made claimable by every sweep; a sweep that left it for so long did not see it.
const OVERDUE_MS: i64 = 600_000;
/// How long a jump of the clock is worth a word.
const RECENT_MS: i64 = 24 * 3_600_000;
/// A duty is taken for seconds; one that is held for so long is held by a mistake, and kept from everybody else.
const LONGEST_DUTY_MS: i64 = 3_600_000;

type Found = Vec<Finding>;

/// Each check: its name, what it looks at, whether its findings are no more than warnings.
const CHECKS: [(&str, &str, bool); 17] = [
    ("settings", "what the server was told about durability lets a commit mean what it says", false),
    ("migrations", "the tables were made by the steps this program knows", false),
    ("decode", "every row can be read", false),
    ("one_state", "every message is in exactly one of the tables of its states", false),
    ("bodies", "every row of a state has the body of its message", false),
    ("keys", "every key names a message, and every message has its key", false),
    ("ids", "ids only grow: none is beyond the last one given", false),
    ("lanes", "every row is in the lane of its message, and every lane in a queue", false),
    ("placement", "what can be claimed is where claims look for it, and what is due is claimable", false),
    ("counts", "what each queue counts is what a recount finds", false),
    ("journal", "rows of the journal and of the history belong to messages, which know that they have them", false),
    ("open_effects", "nothing that ended has an effect whose outcome is unknown", false),
    ("tallies", "counters count at least what is there", false),
    ("leases", "leases that ran out are taken over", false),
    ("duties", "what one process does for all is nobody's for ever", false),
    ("clock", "the wall clock was not set of late, and is not behind the store", false),
    ("vacuum", "dead rows are cleared away, and nothing keeps them from it", true),
];

/// The names of all checks.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, ..)| *name)
}

/// Looks a store over.
pub(crate) async fn examine(snapshot: &Snapshot) -> Result<Vec<Check>, Trouble> {
    let conn = &snapshot.conn;
    conn.client().batch_execute(THOROUGH).await?;
    let mut checks = Vec::with_capacity(CHECKS.len());
    for (name, what, warns) in CHECKS {
        let mut findings = match look(conn, name, snapshot.now.as_millis()).await {
            Ok(findings) => findings,
            Err(Trouble::Item(error)) => vec![unmade(error.what())],
            // A statement that failed has ended the transaction: what cannot be looked at is no reason to look at
            // nothing else, so that it begins anew, with a later snapshot.
            Err(Trouble::Group(error)) if !conn.client().is_closed() => {
                conn.client().batch_execute(AGAIN).await?;
                conn.client().batch_execute(THOROUGH).await?;
                vec![unmade(&said(&error))]
            }
            Err(trouble) => return Err(trouble),
        };
        let found = findings.len();
        findings.truncate(LISTED);
        checks.push(Check { name, what, ok: found == 0 || warns, found, findings });
    }
    Ok(checks)
}

/// Whoever reads all of every table is not served by plans that look nothing through.
const THOROUGH: &str =
    "set local plan_cache_mode = 'auto'; set local enable_seqscan = on; set local enable_hashjoin = on;
    set local enable_mergejoin = on";

/// Ends a failed transaction of a reader, and begins another one.
const AGAIN: &str = "rollback; begin isolation level repeatable read, read only";

fn unmade(why: &str) -> Finding {
    finding("", "", format!("the check could not be made: {why}"))
}

async fn look(conn: &Conn, name: &str, now: i64) -> Result<Found, Trouble> {
    match name {
        "settings" => settings(conn).await,
        "migrations" => migrations(conn).await,
        "decode" => decode(conn).await,
        "one_state" => one_state(conn).await,
        "bodies" => findings(conn, BODIES, &[]).await,
        "keys" => keys(conn).await,
        "ids" => ids(conn).await,
        "lanes" => lanes(conn).await,
        "placement" => placement(conn, now).await,
        "counts" => counts(conn).await,
        "journal" => journal(conn).await,
        "open_effects" => findings(conn, OPEN, &[]).await,
        "tallies" => tallies(conn).await,
        "leases" => findings(conn, LAPSED, &[&now, &SLACK_MS]).await,
        "duties" => findings(conn, DUTIES, &[&now, &LONGEST_DUTY_MS]).await,
        "clock" => clock(conn, now).await,
        "vacuum" => vacuum(conn).await,
        other => unreachable!("no check {other}"),
    }
}

fn finding(table: &str, row: impl fmt::Display, what: impl Into<String>) -> Finding {
    // These tables are keyed by the number of a message; the others have numbers of their own.
    let of_messages =
        ["message", "ready", "sched", "lease", "result", "held", "key", "effect", "evidence", "history", "redriven"];
    let row = row.to_string();
    let message = row.parse().ok().filter(|_| of_messages.contains(&table)).map(MessageId::from_i64);
    Finding { table: table.to_owned(), row, message, what: what.into() }
}

/// Runs a statement whose rows are findings: table, row, what.
async fn findings(conn: &Conn, sql: &'static str, params: &[&dyn Param]) -> Result<Found, Trouble> {
    let rows = conn.query(sql, params).await?;
    rows.iter().map(found).collect()
}

fn found(row: &Row) -> Result<Finding, Trouble> {
    let (table, name): (&str, Option<&str>) = (row::column(row, 0, "finding")?, row::column(row, 1, "finding")?);
    Ok(finding(table, name.unwrap_or_default(), row::column::<&str, _>(row, 2, "finding")?))
}

/// Looks at every row of a statement that may have very many: they are read as they come, and not kept.
async fn each(
    conn: &Conn,
    sql: &'static str,
    mut read: impl FnMut(&Row) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let text = conn.texts().in_schema(sql);
    let none: [(&(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type); 0] = [];
    let mut rows = pin!(conn.client().query_typed_raw(&text, none).await?);
    while let Some(row) = rows.try_next().await? {
        read(&row)?;
    }
    Ok(())
}

async fn settings(conn: &Conn) -> Result<Found, Trouble> {
    const SETTINGS: &str = "-- doctor: an acknowledged message must be on disk; a standby takes no writes
        select '', name, 'it is ' || setting || ': ' || case name
            when 'fsync' then 'after a crash of the machine the whole cluster may be corrupt'
            when 'full_page_writes' then 'a page that was torn by a crash of the machine stays torn'
            else 'a crash of the server takes back what was answered' end
        from pg_catalog.pg_settings
        where setting = 'off' and name in ('fsync', 'full_page_writes', 'synchronous_commit')
        union all select '', 'pg_is_in_recovery', 'the server is a standby: nothing can be stored'
        where pg_catalog.pg_is_in_recovery()";
    findings(conn, SETTINGS, &[]).await
}

async fn migrations(conn: &Conn) -> Result<Found, Trouble> {
    let what = match migrate::look(conn).await {
        Ok(Kind::Current) => return Ok(Vec::new()),
        Ok(Kind::Empty) => "the schema has no tables yet".to_owned(),
        Ok(Kind::Older { has }) => format!("the store is at step {has}, of an older tidegate"),
        Err(Trouble::Item(error)) => error.what().to_owned(),
        Err(trouble) => return Err(trouble),
    };
    Ok(vec![finding("schema_migration", "", what)])
}

/// Reads every row as the engine reads it.
async fn decode(conn: &Conn) -> Result<Found, Trouble> {
    const LANES: &str = "select l.id, l.queue, l.kind, l.version, l.priority, q.tenant, q.name
        from tidegate.lane l join tidegate.queue q on q.id = l.queue";
    const QUEUES: &str = "select id, tenant, name, paused, max_depth from tidegate.queue";
    const MESSAGES: &str = concat!("select ", row::message_columns!(), " from tidegate.message m");
    const READY: &str = concat!("select ", row::life_columns!(), " from tidegate.ready r");
    const SCHED: &str = concat!("select ", row::life_columns!(), " from tidegate.sched r");
    const LEASES: &str = concat!("select ", row::lease_columns!(), " from tidegate.lease l");
    let mut found = Vec::new();
    let mut lanes: HashMap<i64, Lane> = HashMap::new();
    each(conn, QUEUES, |row| judge(&mut found, "queue", row, row::queue(row).map(drop))).await?;
    each(conn, LANES, |row| match row::lane(row) {
        Ok(lane) => {
            lanes.insert(lane.id, lane);
            Ok(())
        }
        Err(trouble) => judge(&mut found, "lane", row, Err(trouble)),
    })
    .await?;
    each(conn, MESSAGES, |row| {
        // A lane that is not there is the finding of another check.
        let Some(lane) = lanes.get(&row::message_lane(row, 0)?) else { return Ok(()) };
        judge(&mut found, "message", row, body(row, lane))
    })
    .await?;
    each(conn, READY, |row| judge(&mut found, "ready", row, row::life(row, 0, "ready").map(drop))).await?;
    each(conn, SCHED, |row| judge(&mut found, "sched", row, row::life(row, 0, "sched").map(drop))).await?;
    each(conn, LEASES, |row| judge(&mut found, "lease", row, row::lease(row, 0).map(drop))).await?;
    each(conn, "select * from tidegate.result", |row| {
        judge(&mut found, "result", row, row::ended_result(row).map(drop))
    })
    .await?;
    each(conn, "select * from tidegate.held", |row| judge(&mut found, "held", row, row::ended_held(row).map(drop)))
        .await?;
    each(conn, "select * from tidegate.effect", |row| judge(&mut found, "effect", row, row::effect(row).map(drop)))
        .await?;
    each(conn, "select * from tidegate.history", |row| {
        judge(&mut found, "history", row, inspect::ending(row).map(drop))
    })
    .await?;
    each(conn, "select * from tidegate.evidence", |row| {
        judge(&mut found, "evidence", row, inspect::late(row).map(drop))
    })
    .await?;
    each(conn, "select * from tidegate.operation", |row| {
        judge(&mut found, "operation", row, operate::read(row).map(drop))
    })
    .await?;
    each(conn, "select * from tidegate.policy", |row| judge(&mut found, "policy", row, row::policy(row).map(drop)))
        .await?;
    each(conn, "select * from tidegate.token", |row| judge(&mut found, "token", row, row::token(row).map(drop)))
        .await?;
    Ok(found)
}

/// A row that cannot be read is a finding; anything else ends the look.
fn judge(found: &mut Found, table: &str, row: &Row, read: Result<(), Trouble>) -> Result<(), Trouble> {
    let error = match read {
        Ok(()) => return Ok(()),
        Err(Trouble::Item(error)) => error,
        Err(trouble) => return Err(trouble),
    };
    let number = ["id", "message"].iter().find_map(|name| row.try_get::<_, i64>(*name).ok());
    let name = ["name", "kind"].iter().find_map(|name| row.try_get::<_, String>(*name).ok());
    let row = number.map(|number| number.to_string()).or(name).unwrap_or_default();
    found.push(finding(table, row, error.what()));
    Ok(())
}

fn body(row: &Row, lane: &Lane) -> Result<(), Trouble> {
    let message = row::message(row, 0, lane)?;
    let parsed: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&message.payload);
    parsed.map(drop).map_err(|e| StoreError::corrupt("message.payload", &e.to_string()).into())
}

/// Every row that says where a message stands.
macro_rules! states {
    () => {
        "(select id, lane, 'ready' t, flags from tidegate.ready
        union all select id, lane, 'sched', flags from tidegate.sched
        union all select id, lane, 'lease', flags from tidegate.lease
        union all select id, lane, 'result', flags from tidegate.result
        union all select id, lane, 'held', flags from tidegate.held) s"
    };
}

async fn one_state(conn: &Conn) -> Result<Found, Trouble> {
    const NONE: &str = concat!(
        "-- doctor: accepted, and in no state
        select 'message', m.id::text, 'it is in none of the tables of its states'
        from tidegate.message m left join ",
        states!(),
        " on s.id = m.id where s.id is null"
    );
    const TWICE: &str = concat!(
        "-- doctor: in two states at once
        select 'message', id::text, 'it is in ' || string_agg(t, ' and ') from ",
        states!(),
        " group by id having count(*) > 1"
    );
    let mut found = findings(conn, NONE, &[]).await?;
    found.append(&mut findings(conn, TWICE, &[]).await?);
    Ok(found)
}

const BODIES: &str = concat!(
    "-- doctor: nothing to run, nothing to show
    select s.t, s.id::text, 'its message has no body' from ",
    states!(),
    " left join tidegate.message m on m.id = s.id where m.id is null"
);

async fn keys(conn: &Conn) -> Result<Found, Trouble> {
    const DANGLING: &str = "-- doctor: its duplicates can get no answer
        select 'key', k.id::text, 'the key names a message that is not there'
        from tidegate.key k left join tidegate.message m on m.id = k.id where m.id is null";
    const OWN: &str = "-- doctor: a cancelled message may have given its key away
        select m.id, m.key, k.hash, l.queue, k.queue from tidegate.message m
        left join tidegate.lane l on l.id = m.lane left join tidegate.key k on k.id = m.id
        where k.id is not null
            or not exists (select from tidegate.result r where r.id = m.id and r.state = 'cancelled')";
    let mut found = findings(conn, DANGLING, &[]).await?;
    each(conn, OWN, |row| {
        let table = "message";
        let id: i64 = row::column(row, 0, table)?;
        let key: &str = row::column(row, 1, table)?;
        let hash: Option<&[u8]> = row::column(row, 2, table)?;
        let (queue, of): (Option<i64>, Option<i64>) = (row::column(row, 3, table)?, row::column(row, 4, table)?);
        // A key that is none is the finding of another check.
        let Ok(key) = IdempotencyKey::new(key) else { return Ok(()) };
        match hash {
            None => {
                found.push(finding("message", id, "its key is not in the table of keys: a duplicate would run again"))
            }
            Some(hash) if *hash != key.hash() || queue != of => {
                found.push(finding("key", id, "the row is not that of the message's key and queue"));
            }
            Some(_) => {}
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

async fn ids(conn: &Conn) -> Result<Found, Trouble> {
    const STORE: &str = "-- doctor: what the whole store agrees on
        select 'store', '1', 'the row is missing' where not exists (select from tidegate.store)";
    const BEYOND: &str = "-- doctor: the next id could be one that is taken
        select 'message', m.id::text, 'it is beyond the last id that was given, ' || s.last_value
        from tidegate.message m, tidegate.message_id s where m.id > s.last_value";
    let mut found = findings(conn, STORE, &[]).await?;
    found.append(&mut findings(conn, BEYOND, &[]).await?);
    Ok(found)
}

async fn lanes(conn: &Conn) -> Result<Found, Trouble> {
    const QUEUELESS: &str = "-- doctor: a lane nobody can ask for
        select 'lane', l.id::text, 'its queue is not there'
        from tidegate.lane l left join tidegate.queue q on q.id = l.queue where q.id is null";
    const LANELESS: &str = "-- doctor: a body nobody can ask for
        select 'message', m.id::text, 'its lane is not there'
        from tidegate.message m left join tidegate.lane l on l.id = m.lane where l.id is null";
    const ELSEWHERE: &str = concat!(
        "-- doctor: claimed by workers of another kind
        select s.t, s.id::text, 'it is in lane ' || s.lane || ', its message in lane ' || m.lane from ",
        states!(),
        " join tidegate.message m on m.id = s.id where s.lane <> m.lane"
    );
    let mut found = findings(conn, QUEUELESS, &[]).await?;
    found.append(&mut findings(conn, LANELESS, &[]).await?);
    found.append(&mut findings(conn, ELSEWHERE, &[]).await?);
    Ok(found)
}

async fn placement(conn: &Conn, now: i64) -> Result<Found, Trouble> {
    const EARLY: &str = "-- doctor: unless the clock was set back, what is claimable was due once
        select 'ready', id::text,
            'it is claimable before its time: due at ' || due_at || ', and in its lane from ' || pos
        from tidegate.ready where greatest(due_at, pos) > $1 + $2 and not exists (select from tidegate.jump)";
    const LATE: &str = "-- doctor: every sweep moves what is due
        select 'sched', id::text, 'it was due at ' || due_at || ' and no sweep made it claimable'
        from tidegate.sched where due_at + $1 < (select last_tick from tidegate.store)";
    let mut found = findings(conn, EARLY, &[&now, &SLACK_MS]).await?;
    found.append(&mut findings(conn, LATE, &[&OVERDUE_MS]).await?);
    Ok(found)
}

async fn counts(conn: &Conn) -> Result<Found, Trouble> {
    const COUNTS: &str = "-- doctor: the sums of the commits' differences against the rows
        with there as (
            select lane, 'ready' place, count(*) n from tidegate.ready group by lane
            union all select lane, 'scheduled', count(*) from tidegate.sched group by lane
            union all select lane, 'leased', count(*) from tidegate.lease group by lane
            union all select lane, 'parked', count(*) from tidegate.held where state = 'parked' group by lane
            union all select lane, 'dead', count(*) from tidegate.held
                where state = 'dead' and discarded_at is null group by lane),
        counted as (
            select d.queue, p.place, sum(p.n)::bigint n from tidegate.depth d, lateral (values ('ready', d.ready),
                ('scheduled', d.scheduled), ('leased', d.leased), ('parked', d.parked), ('dead', d.dead)) p (place, n)
            group by d.queue, p.place),
        recounted as (
            select l.queue, t.place, sum(t.n)::bigint n from there t join tidegate.lane l on l.id = t.lane
            group by l.queue, t.place)
        select 'depth', q.name, 'queue ' || q.name || ' counts ' || coalesce(c.n, 0) || ' ' || place || ' and has '
            || coalesce(r.n, 0)
        from counted c full join recounted r using (queue, place) join tidegate.queue q on q.id = queue
        where coalesce(c.n, 0) <> coalesce(r.n, 0)";
    const NOBODYS: &str = "-- doctor: what hangs on no queue is in no sum
        select 'depth', d.seq::text, 'its queue is not there' from tidegate.depth d
        where not exists (select from tidegate.queue q where q.id = d.queue)";
    let mut found = findings(conn, COUNTS, &[]).await?;
    found.append(&mut findings(conn, NOBODYS, &[]).await?);
    Ok(found)
}

async fn journal(conn: &Conn) -> Result<Found, Trouble> {
    const NOBODYS: &str = "-- doctor: what hangs on a message goes with it
        select o.t, o.message::text, 'its message is not there' from (
            select distinct message, 'effect' t from tidegate.effect
            union all select distinct message, 'evidence' from tidegate.evidence
            union all select distinct message, 'history' from tidegate.history
            union all select distinct message, 'redriven' from tidegate.redriven) o
        left join tidegate.message m on m.id = o.message where m.id is null";
    const UNREAD: &str = concat!(
        "-- doctor: a decision about it would not see its effects
        select s.t, s.id::text, 'it has a journal and its flags say that it has none' from ",
        states!(),
        " where s.flags & $1 = 0 and exists (select from tidegate.effect e where e.message = s.id)"
    );
    let mut found = findings(conn, NOBODYS, &[]).await?;
    found.append(&mut findings(conn, UNREAD, &[&row::bits(JOURNALED)]).await?);
    Ok(found)
}

const OPEN: &str = "-- doctor: the rule above all others; the newest row of an effect counts
    select 'effect', e.message::text, 'effect ' || e.name || ' is ' || e.state || ', and the message is ' || s.state
    from tidegate.effect e join (select id, state from tidegate.result
        union all select id, state from tidegate.held where state = 'dead') s on s.id = e.message
    where e.state in ('intent', 'unknown') and not exists (select from tidegate.effect n
        where n.message = e.message and n.name = e.name and n.item = e.item and n.seq > e.seq)";

async fn tallies(conn: &Conn) -> Result<Found, Trouble> {
    const ROWS: &str = "-- doctor: what each counter came to
        select t.kind, t.what, sum(t.n)::bigint, bool_and(q.id is not null)
        from tidegate.tally t left join tidegate.queue q on q.id = t.queue group by t.queue, t.kind, t.what, t.code";
    const SHORT: &str = "-- doctor: what is there was counted when it came
        with there as (
            select l.queue, l.kind, r.state what from tidegate.result r join tidegate.lane l on l.id = r.lane
            union all select l.queue, l.kind, h.state from tidegate.held h join tidegate.lane l on l.id = h.lane
            union all select l.queue, l.kind, 'enqueued' from tidegate.message m join tidegate.lane l on l.id = m.lane),
        recounted as (select queue, kind, what, count(*) n from there group by queue, kind, what),
        counted as (select queue, kind, what, sum(n)::bigint n from tidegate.tally group by queue, kind, what)
        select 'tally', r.what, 'queue ' || q.name || ', kind ' || r.kind || ': ' || r.n || ' are there, '
            || coalesce(c.n, 0) || ' were counted'
        from recounted r join tidegate.queue q on q.id = r.queue left join counted c using (queue, kind, what)
        where r.n > coalesce(c.n, 0)";
    let mut found = Vec::new();
    for row in &conn.query(ROWS, &[]).await? {
        let table = "tally";
        let (kind, what): (&str, &str) = (row::column(row, 0, table)?, row::column(row, 1, table)?);
        let (n, has_queue): (i64, bool) = (row::column(row, 2, table)?, row::column(row, 3, table)?);
        let name = format!("{kind} {what}");
        if Counted::from_word(what).is_none() {
            found.push(finding(table, &name, format!("no such counter {what:?}")));
        }
        if n < 0 {
            found.push(finding(table, &name, format!("it counted {n}")));
        }
        if !has_queue {
            found.push(finding(table, &name, "its queue is not there"));
        }
    }
    found.append(&mut findings(conn, SHORT, &[]).await?);
    Ok(found)
}

const LAPSED: &str = "-- doctor: nobody holds the leases of a restored store that has not worked yet
    select 'lease', id::text, 'the lease of worker ' || coalesce(l.worker,
        (select c.worker from tidegate.claimed c where c.nonce = l.nonce), 'unknown') || ' ran out at ' || until ||
        ' and nobody took it over: does any process sweep?'
    from tidegate.lease l where until + $2 < $1
      and not exists (select from tidegate.store where copied_id is not null and begun_at is null)";

const DUTIES: &str = "-- doctor: a duty is another's when its time is over, and not before
    select 'duty', name, 'it is held by ' || holder || ' until ' || until || ': nobody else can take it'
    from tidegate.duty where until > $1 + $2";

async fn clock(conn: &Conn, now: i64) -> Result<Found, Trouble> {
    const JUMPS: &str = "-- doctor: quarantines began anew then, and nothing was deleted for an hour
        select 'jump', seq::text, 'the clock was set by ' || by_ms || ' ms'
        from tidegate.jump where at > $1 - $2 order by seq";
    const BEHIND: &str = "-- doctor: the last sweep was in the future
        select 'store', '1', 'the clock is ' || (last_tick - $1) || ' ms behind the last sweep'
        from tidegate.store where last_tick > $1 + $2";
    let mut found = findings(conn, JUMPS, &[&now, &RECENT_MS]).await?;
    found.append(&mut findings(conn, BEHIND, &[&now, &SLACK_MS]).await?);
    Ok(found)
}

async fn vacuum(conn: &Conn) -> Result<Found, Trouble> {
    const OFF: &str = "-- doctor: rows come and go; without vacuum a claim steps over what is gone
        select '', name, 'it is off: dead rows are not cleared away'
        from pg_catalog.pg_settings where name in ('autovacuum', 'track_counts') and setting = 'off'";
    const TABLES: &str = "-- doctor: the same of the tables whose rows come and go
        select c.relname, '', 'autovacuum is switched off for this table'
        from pg_catalog.pg_class c, unnest(c.reloptions) o
        where o ilike 'autovacuum_enabled=%' and o !~* '=(true|on|1)$'
          and c.oid = any (array['tidegate.ready', 'tidegate.sched', 'tidegate.lease', 'tidegate.depth',
            'tidegate.tally', 'tidegate.message', 'tidegate.key', 'tidegate.result']::regclass[])
        union all
        select s.relname, '', s.n_dead_tup || ' dead rows beside ' || s.n_live_tup || ' live ones, last cleared away '
            || coalesce(greatest(s.last_vacuum, s.last_autovacuum)::text, 'never')
        from pg_catalog.pg_stat_all_tables s where s.n_dead_tup > 100000 and s.n_dead_tup > s.n_live_tup
          and s.relid = any (array['tidegate.ready', 'tidegate.sched', 'tidegate.lease', 'tidegate.depth',
            'tidegate.tally']::regclass[])";
    const HELD_BACK: &str = "-- doctor: what the oldest snapshot might still see cannot be cleared away
        select '', 'process ' || pid, 'its transaction has been open since ' || xact_start || ' and holds back vacuum'
        from pg_catalog.pg_stat_activity
        where backend_xmin is not null and xact_start < now() - interval '10 minutes' and pid <> pg_backend_pid()
        union all select '', 'prepared transaction ' || gid,
            'it was prepared at ' || prepared || ' and holds back vacuum'
        from pg_catalog.pg_prepared_xacts where prepared < now() - interval '10 minutes'
        union all select '', 'replication slot ' || slot_name, 'it keeps ' || age(coalesce(xmin, catalog_xmin))
            || ' transactions from vacuum'
        from pg_catalog.pg_replication_slots where age(coalesce(xmin, catalog_xmin)) > 10000000";
    let mut found = findings(conn, OFF, &[]).await?;
    found.append(&mut findings(conn, TABLES, &[]).await?);
    found.append(&mut findings(conn, HELD_BACK, &[]).await?);
    Ok(found)
}
