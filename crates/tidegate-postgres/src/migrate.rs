//! The tables of a store, in numbered steps that are only ever added.
//!
//! Each step's text is known by its SHA-256: a store made by other steps than this program's is refused, not guessed
//! about. All missing steps are one transaction, under a lock that lets one process migrate at a time.

use sha2::{Digest, Sha256};
use tidegate_core::clock::{Random, SystemRandom, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::id::Hex;
use tidegate_core::migration::Step;

use crate::conn::Conn;
use crate::row;
use crate::trouble::Trouble;

struct Migration {
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: [Migration; 5] = [
    Migration { name: "0001_init", sql: include_str!("../migrations/0001_init.sql") },
    Migration { name: "0002_enqueue_function", sql: include_str!("../migrations/0002_enqueue_function.sql") },
    Migration { name: "0003_tokens", sql: include_str!("../migrations/0003_tokens.sql") },
    Migration { name: "0004_less_log", sql: include_str!("../migrations/0004_less_log.sql") },
    // What step 4 stores older programs take for damaged: they claim nothing more.
    Migration { name: "0005_older_fail", sql: include_str!("../migrations/0005_older_fail.sql") },
];

/// Which stores an open may change the tables of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// Makes the tables in a schema that has none; a store of an older version is refused.
    #[default]
    NewStore,
    /// Also brings an older store up to date.
    Older,
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
    (1..).zip(&MIGRATIONS).map(|(number, step)| by_hand(number, step, schema)).collect()
}

/// A step as it is taken by hand: all of it or nothing, with the notes by which a store knows its steps.
fn by_hand(number: u32, step: &Migration, schema: &str) -> String {
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
    let Migration { name, sql } = step;
    let (first, store) = if number == 1 { (FIRST, STORE) } else { ("", "") };
    let text = format!(
        "begin;
{first}{sql}
insert into tidegate.schema_migration (number, name, checksum, applied_at)
    values ({number}, '{name}', '\\x{}', (extract(epoch from clock_timestamp()) * 1000)::bigint);
{store}commit;
",
        Hex(&digest(sql))
    );
    text.replace("create schema if not exists tidegate;", &format!("create schema if not exists {schema};"))
        .replace("tidegate.", &format!("{schema}."))
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
        sql: by_hand(number, step, conn.texts().schema()),
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

/// Takes the steps that are missing, if that is allowed. Several processes may be here at once: the first to get the lock
/// does it, the others look again once they have it.
pub(crate) async fn bring_up(conn: &Conn, allowed: Migrate, now: Timestamp) -> Result<(), Trouble> {
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
        (Kind::Empty, Migrate::NewStore | Migrate::Older) | (Kind::Older { .. }, Migrate::Older) => {}
    }
    conn.client().batch_execute("begin").await?;
    let taken = take(conn, now).await;
    match taken {
        Ok(()) => Ok(conn.client().batch_execute("commit").await?),
        Err(trouble) => {
            // The error says more than a rollback could; a connection that cannot roll back is closed by its owner.
            let _rolled_back = conn.client().batch_execute("rollback").await;
            Err(trouble)
        }
    }
}

async fn take(conn: &Conn, now: Timestamp) -> Result<(), Trouble> {
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
    for (number, Migration { name, sql }) in (1_i64..).zip(&MIGRATIONS).skip(has) {
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
}
