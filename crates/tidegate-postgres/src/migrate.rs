//! The tables of a store, in numbered steps that are only ever added.
//!
//! Each step's text is known by its SHA-256: a store made by other steps than this program's is refused, not guessed
//! about. All missing steps are one transaction, under a lock that lets one process migrate at a time.
//!
//! A program opens no store that has steps it does not know, so that whoever is at work on a store knows exactly the steps it
//! has. Where one of the missing steps is such that older programs cannot live with it, none is taken while they are at work.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tidegate_core::clock::{Clock as _, Random, SystemRandom, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::id::Hex;
use tidegate_core::migration::Step;

use crate::conn::Conn;
use crate::open;
use crate::row;
use crate::shared::Shared;
use crate::trouble::Trouble;

struct Migration {
    name: &'static str,
    sql: &'static str,
    /// Whether older programs cannot live with it, and have to be ended first.
    ends_older: bool,
}

const MIGRATIONS: [Migration; 5] = [
    Migration { name: "0001_init", sql: include_str!("../migrations/0001_init.sql"), ends_older: false },
    Migration {
        name: "0002_enqueue_function",
        sql: include_str!("../migrations/0002_enqueue_function.sql"),
        ends_older: false,
    },
    Migration { name: "0003_tokens", sql: include_str!("../migrations/0003_tokens.sql"), ends_older: false },
    // A null where there was a number is a damaged row to them, and its message is set aside.
    Migration { name: "0004_less_log", sql: include_str!("../migrations/0004_less_log.sql"), ends_older: true },
    // So that they claim nothing: a step that older programs cannot live with has to be one that they fail at.
    Migration { name: "0005_older_fail", sql: include_str!("../migrations/0005_older_fail.sql"), ends_older: true },
];

/// After this long without a sweep nobody is at work who sweeps: the library lets no more than a second pass between two.
const ENDED_AFTER: Duration = Duration::from_secs(3);
/// How long a session outlives its process at most.
const CLOSES_IN: Duration = Duration::from_secs(1);
/// How often it is looked whether whoever is just ending has ended.
const LOOKS_AGAIN: Duration = Duration::from_millis(100);
/// The most that a refusal names.
const NAMED: usize = 8;
/// The server keeps no more of what a session calls itself.
const LONGEST_NAME: usize = 63;

/// Which stores an open may change the tables of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// Makes the tables in a schema that has none; a store of an older version is refused.
    #[default]
    NewStore,
    /// Also brings an older store up to date, unless older programs are at work on it that cannot live with a missing step.
    Older,
    /// The same whoever is at work on it: older programs can claim nothing more, and runs of theirs may end as crashes do.
    OlderBeside,
    /// Changes nothing: a schema without tables is refused as well.
    Never,
}

/// What a schema is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There are no tables of ours.
    Empty,
    /// A store with all steps of this program.
    Current,
    /// A store that lacks steps.
    Older {
        /// Steps it has.
        has: usize,
    },
}

/// The statements of all steps, for whoever takes them by hand.
#[must_use]
pub fn migration_sql(schema: &str) -> String {
    (1..).zip(&MIGRATIONS).map(|(number, step)| by_hand(number, step, schema, true)).collect()
}

/// A step as it is taken by hand: all of it or nothing, with the notes by which a store knows its steps, and with the refusal
/// where there is a store already that older programs may be at work on.
fn by_hand(number: u32, step: &Migration, schema: &str, new: bool) -> String {
    const FIRST: &str = "create schema if not exists tidegate;
create table tidegate.schema_migration (
    number     bigint primary key,
    name       text   not null,
    checksum   bytea  not null,
    applied_at bigint not null
);
";
    const STORE: &str = "insert into tidegate.store (one, uuid, created_at, incarnation)
    values (1, uuid_send(gen_random_uuid()), (extract(epoch from clock_timestamp()) * 1000)::bigint, 1);
";
    let Migration { name, sql, ends_older } = step;
    let (first, store) = if number == 1 { (FIRST, STORE) } else { ("", "") };
    let refusal = if *ends_older && !new { refusal_by_hand(number, schema) } else { String::new() };
    let text = format!(
        "begin;
{refusal}{first}{sql}
insert into tidegate.schema_migration (number, name, checksum, applied_at)
    values ({number}, '{name}', '\\x{}', (extract(epoch from clock_timestamp()) * 1000)::bigint);
{store}commit;
",
        Hex(&digest(sql))
    );
    text.replace("create schema if not exists tidegate;", &format!("create schema if not exists {schema};"))
        .replace("tidegate.", &format!("{schema}."))
}

/// What [`refused`] says, for whoever takes a step by hand.
fn refusal_by_hand(number: u32, schema: &str) -> String {
    let found = AT_WORK
        .replace("$1", "(extract(epoch from clock_timestamp()) * 1000)::bigint")
        .replace("$2", &format!("'{schema}'"))
        .replace("$3", &number.to_string());
    format!(
        "lock table tidegate.schema_migration in access exclusive mode;
-- Without this block the step is taken whoever is at work on the store.
do $$
begin
    if exists ({found}) then
        raise exception 'older programs are at work on schema {schema}, and cannot live with step {number}'
            using hint = 'end them first; see who they are with: tidegate migrate up';
    end if;
end $$;
"
    )
}

fn digest(sql: &str) -> [u8; 32] {
    Sha256::digest(sql.as_bytes()).into()
}

/// Looks at a schema without changing it.
///
/// # Errors
/// `Invalid` for a newer store, or one made by other steps.
pub(crate) async fn look(conn: &Conn) -> Result<Kind, Trouble> {
    let mut has = 0;
    for (number, name, checksum, _) in applied(conn).await? {
        let Some(known) = usize::try_from(number - 1).ok().and_then(|at| MIGRATIONS.get(at)) else {
            let what = format!(
                "schema {} is a store of a newer tidegate: it has step {number} ({name}), this program knows {}",
                conn.texts().schema(),
                MIGRATIONS.len()
            );
            return Err(StoreError::invalid(what).hint("run the newer program").into());
        };
        if checksum != digest(known.sql) {
            let what = format!(
                "step {number} of schema {} is {} there and {} in this program",
                conn.texts().schema(),
                Hex(&checksum),
                Hex(&digest(known.sql))
            );
            return Err(StoreError::invalid(what)
                .hint("the store was made by another build; run the program that made it, or use another schema")
                .into());
        }
        has += 1;
    }
    Ok(match has {
        0 => Kind::Empty,
        _ if has == MIGRATIONS.len() => Kind::Current,
        _ => Kind::Older { has },
    })
}

/// The steps of this program, and when the store took them.
pub(crate) async fn status(conn: &Conn) -> Result<Vec<Step>, Trouble> {
    // What a newer program made is refused here as it is when a store is opened.
    look(conn).await?;
    let applied = applied(conn).await?;
    let status = (1_u32..).zip(&MIGRATIONS).map(|(number, step)| Step {
        number,
        name: step.name,
        sql: by_hand(number, step, conn.texts().schema(), applied.is_empty()),
        applied_at: applied.iter().find(|(of, ..)| *of == i64::from(number)).map(|(.., at)| *at),
    });
    Ok(status.collect())
}

type Applied = (i64, String, Vec<u8>, Timestamp);

async fn applied(conn: &Conn) -> Result<Vec<Applied>, Trouble> {
    const THERE: &str = "-- migrate: whether the schema has a store
        select to_regclass($1) is not null";
    const STEPS: &str = "-- migrate: steps a store has
        select number, name, checksum, applied_at from tidegate.schema_migration order by number";
    let table = format!("{}.schema_migration", conn.texts().schema());
    let there = conn.query(THERE, &[&table]).await?;
    if !row::first_bool(&there)? {
        return Ok(Vec::new());
    }
    let table = "schema_migration";
    let steps = conn.query(STEPS, &[]).await?;
    steps
        .iter()
        .map(|step| {
            Ok((
                row::column(step, "number", table)?,
                row::column(step, "name", table)?,
                row::column(step, "checksum", table)?,
                row::time(step, "applied_at", table)?,
            ))
        })
        .collect()
}

/// What a program of these steps calls its sessions: by it a later step knows those that it has to wait for.
pub(crate) fn session_name(schema: &str) -> String {
    let mut name = format!("tidegate {} {schema}", MIGRATIONS.len());
    name.truncate(LONGEST_NAME);
    name
}

/// Takes the steps that are missing, if that is allowed. Several processes may be here at once: the first to get the lock
/// does it, the others look again once they have it.
pub(crate) async fn bring_up(shared: &Shared, conn: &Conn, allowed: Migrate, now: Timestamp) -> Result<(), Trouble> {
    let schema = conn.texts().schema();
    match (look(conn).await?, allowed) {
        (Kind::Current, _) => return Ok(()),
        (Kind::Empty, Migrate::Never) => {
            let what = format!("there is no tidegate store in schema {schema}");
            return Err(StoreError::new(tidegate_core::StoreErrorKind::NotFound, what)
                .hint("make it with: tidegate migrate up")
                .into());
        }
        (Kind::Older { has }, Migrate::Never | Migrate::NewStore) => {
            let what =
                format!("schema {schema} is a store of an older tidegate, at step {has} of {}", MIGRATIONS.len());
            return Err(StoreError::conflict(what).hint("bring it up to date with: tidegate migrate up").into());
        }
        (Kind::Older { has }, Migrate::Older) => wait_for_older(shared, conn, has).await?,
        (Kind::Empty, Migrate::NewStore | Migrate::Older | Migrate::OlderBeside)
        | (Kind::Older { .. }, Migrate::OlderBeside) => {}
    }
    conn.client().batch_execute("begin").await?;
    let taken = take(shared, conn, allowed, now).await;
    match taken {
        Ok(()) => Ok(conn.client().batch_execute("commit").await?),
        Err(trouble) => {
            // The error says more than a rollback could; a connection that cannot roll back is closed by its owner.
            let _rolled_back = conn.client().batch_execute("rollback").await;
            Err(trouble)
        }
    }
}

/// Somebody who knows no more steps than a store has, and what shows that.
#[derive(Debug)]
struct AtWork {
    how: How,
    who: String,
    /// How many leases or sessions.
    n: i64,
    /// Until when leases hold, when it was swept, since when there are sessions; of those of another user that may be secret.
    at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Lease,
    Sweep,
    Session,
}

impl fmt::Display for AtWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { how, who, n, at } = self;
        let many = if *n == 1 { "" } else { "s" };
        match how {
            How::Lease => write!(f, "worker {who} holds {n} message{many} until {at}"),
            How::Sweep => write!(f, "{who} swept it at {at}"),
            How::Session if *at == Timestamp::EPOCH => write!(f, "{n} session{many} of {who}"),
            How::Session => write!(f, "{n} session{many} of {who} since {at}"),
        }
    }
}

/// Older programs at work on a store at $1, as far as anything shows it, before step $3: whoever holds messages; whoever
/// swept it a moment ago, which one process does for all that have it open; and sessions, whose programs say by
/// [`session_name`] which steps they know and which schema ($2) they are on. Before step 5 they called themselves
/// `tidegate`, in whichever schema.
const AT_WORK: &str = "-- migrate: older programs at work, in as many rows as there are running handlers
    select 'lease' as how, coalesce(l.worker, 'unknown') as who, count(*) as n, max(l.until) as at
    from tidegate.lease l where l.until > $1 group by l.worker
    union all
    select 'sweep', coalesce(nullif(d.holder, ''), 'a process'), 1, max(seen.at)
    from tidegate.store s cross join tidegate.duty d cross join lateral (values (s.last_tick), (d.until)) as seen (at)
    where d.name = 'sweep' and seen.at between $1 - 3000 and $1 + 2000
        -- a time further ahead was written by a clock that was set back since
    group by d.holder
    union all
    select 'session', coalesce(usename::text, 'unknown') || coalesce(' at ' || host(client_addr), ''), count(*),
        coalesce(min((extract(epoch from backend_start) * 1000)::bigint), 0)
    from pg_stat_activity
    where datname = current_database() and case when application_name ~ '^tidegate [0-9]{1,6} '
        then split_part(application_name, ' ', 2)::integer < $3
            and application_name = left('tidegate ' || split_part(application_name, ' ', 2) || ' ' || $2, 63)
        else application_name = 'tidegate' end
    group by usename, client_addr
    order by 1, 2";

async fn at_work(conn: &Conn, before: u32, now: Timestamp) -> Result<Vec<AtWork>, Trouble> {
    let schema = conn.texts().schema();
    let rows = conn.query(AT_WORK, &[&now.as_millis(), &schema, &row::narrow(before)]).await?;
    let table = "pg_stat_activity";
    let found = rows.iter().map(|found| {
        let how = match row::column(found, 0, table)? {
            "lease" => How::Lease,
            "sweep" => How::Sweep,
            _ => How::Session,
        };
        let (who, n) = (row::column(found, 1, table)?, row::column(found, 2, table)?);
        Ok(AtWork { how, who, n, at: row::time(found, 3, table)? })
    });
    found.collect()
}

/// The last of the missing steps that older programs cannot live with.
fn ends_older(has: usize) -> Option<(u32, &'static Migration)> {
    (1_u32..).zip(&MIGRATIONS).skip(has).filter(|(_, step)| step.ends_older).last()
}

/// Waits for older programs that are just ending, and refuses while they are at work.
async fn wait_for_older(shared: &Shared, conn: &Conn, has: usize) -> Result<(), Trouble> {
    let Some((number, _)) = ends_older(has) else { return Ok(()) };
    let started = shared.real.monotonic();
    loop {
        let found = at_work(conn, number, open::now(shared, conn).await?).await?;
        if found.is_empty() {
            return Ok(());
        }
        // Of one that ended in order its last sweep is the last that is seen.
        let swept = found.iter().all(|one| one.how == How::Sweep);
        let patience = if swept { ENDED_AFTER + CLOSES_IN } else { CLOSES_IN };
        if shared.real.monotonic().saturating_sub(started) > patience {
            return Err(refused(conn, has, &found).into());
        }
        tokio::time::sleep(LOOKS_AGAIN).await;
    }
}

/// Why steps are not taken.
fn refused(conn: &Conn, has: usize, found: &[AtWork]) -> StoreError {
    let schema = conn.texts().schema();
    let (number, name) = ends_older(has).map_or((0, ""), |(number, step)| (number, step.name));
    let mut named: Vec<String> = found.iter().take(NAMED).map(AtWork::to_string).collect();
    if found.len() > NAMED {
        named.push(format!("and {} more", found.len() - NAMED));
    }
    let what = format!(
        "older programs cannot live with step {number} ({name}), and programs of step {has} are at work on schema {schema}: {}",
        named.join("; ")
    );
    StoreError::conflict(what).hint(
        "end them, then repeat it; of a worker that died the leases have to be over first, and a session may be on another \
         schema of this database, which programs before step 5 do not say; to take the step all the same: \
         tidegate migrate up --beside-older",
    )
}

async fn take(shared: &Shared, conn: &Conn, allowed: Migrate, now: Timestamp) -> Result<(), Trouble> {
    const LOCK: &str = "-- migrate: one process at a time, until the transaction ends
        select pg_advisory_xact_lock(hashtextextended('tidegate migrate ' || $1, 0))";
    const THERE: &str = "-- migrate: whether the schema is there already
        select to_regnamespace($1) is not null";
    const NOTE: &str = "-- migrate: a step was taken
        insert into tidegate.schema_migration (number, name, checksum, applied_at) values ($1, $2, $3, $4)";
    const STORE: &str = "-- migrate: the one row of a new store
        insert into tidegate.store (one, uuid, created_at, incarnation) values (1, $1, $2, 1)";
    let schema = conn.texts().schema();
    conn.query(LOCK, &[&schema]).await?;
    let has = match look(conn).await? {
        Kind::Current => return Ok(()),
        Kind::Empty => 0,
        Kind::Older { has } => has,
    };
    if let Some((number, _)) = ends_older(has).filter(|_| has > 0 && allowed != Migrate::OlderBeside) {
        // Whoever opens the store from now on looks at its steps after the commit, and is refused. Whoever looked before has a
        // session by now.
        let steps = conn.texts().in_schema("lock table tidegate.schema_migration in access exclusive mode");
        conn.client().batch_execute(&steps).await?;
        let found = at_work(conn, number, open::now(shared, conn).await?).await?;
        if !found.is_empty() {
            return Err(refused(conn, has, &found).into());
        }
    }
    if has == 0 {
        // A user who may not make schemas can be given one.
        if !row::first_bool(&conn.query(THERE, &[&schema]).await?)? {
            conn.client().batch_execute(&format!("create schema {schema}")).await?;
        }
        const TABLE: &str = "create table tidegate.schema_migration (
            number     bigint primary key,
            name       text   not null,
            checksum   bytea  not null,
            applied_at bigint not null
        )";
        conn.client().batch_execute(&conn.texts().in_schema(TABLE)).await?;
    }
    for (number, Migration { name, sql, .. }) in (1_i64..).zip(&MIGRATIONS).skip(has) {
        conn.client().batch_execute(&conn.texts().in_schema(sql)).await?;
        conn.query(NOTE, &[&number, name, &digest(sql), &now.as_millis()]).await?;
    }
    if has == 0 {
        let mut uuid = [0_u8; 16];
        SystemRandom.fill(&mut uuid);
        conn.query(STORE, &[&uuid, &now.as_millis()]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_steps_name_the_schema_that_was_asked_for() {
        let text = migration_sql("payments");
        assert!(text.contains("create table payments.message"));
        assert!(!text.contains("tidegate."), "{text}");
    }

    #[test]
    fn a_step_by_hand_refuses_what_a_program_refuses_where_there_is_a_store() {
        let last = |new| by_hand(4, &MIGRATIONS[3], "payments", new);
        assert!(last(false).contains("from payments.lease"), "{}", last(false));
        assert!(!last(false).contains("tidegate.") && !last(false).contains("$1"), "{}", last(false));
        assert!(!last(true).contains("raise exception"), "a new store has no older programs: {}", last(true));
        assert!(!by_hand(3, &MIGRATIONS[2], "payments", false).contains("raise exception"));
    }

    #[test]
    fn what_is_a_moment_ago_in_the_statement_is_how_long_the_end_is_waited_for() {
        assert!(AT_WORK.contains(&format!("between $1 - {} and", ENDED_AFTER.as_millis())));
        assert!(AT_WORK.contains(&format!("|| $2, {LONGEST_NAME})")));
    }

    #[test]
    fn whoever_is_at_work_is_said_with_what_shows_it() {
        let moment = Timestamp::from_millis(1_767_225_600_000);
        for (how, n, at, expected) in [
            (How::Lease, 2, moment, "worker ship-1 holds 2 messages until 2026-01-01T00:00:00.000Z"),
            (How::Sweep, 1, moment, "ship-1 swept it at 2026-01-01T00:00:00.000Z"),
            (How::Session, 1, moment, "1 session of ship-1 since 2026-01-01T00:00:00.000Z"),
            (How::Session, 3, Timestamp::EPOCH, "3 sessions of ship-1"),
        ] {
            assert_eq!(AtWork { how, who: "ship-1".to_owned(), n, at }.to_string(), expected);
        }
    }

    #[test]
    fn only_a_missing_step_that_older_programs_cannot_live_with_has_to_wait_for_their_end() {
        for (has, expected) in [(0, Some(5)), (3, Some(5)), (4, Some(5)), (5, None)] {
            assert_eq!(ends_older(has).map(|(number, _)| number), expected, "{has}");
        }
    }

    #[test]
    fn a_session_says_which_steps_its_program_knows_and_is_cut_as_the_server_cuts_it() {
        assert_eq!(session_name("payments"), format!("tidegate {} payments", MIGRATIONS.len()));
        assert_eq!(session_name(&"s".repeat(63)).len(), LONGEST_NAME);
    }
}
