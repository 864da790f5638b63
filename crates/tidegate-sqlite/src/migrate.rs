//! The tables of a store, in numbered steps that are only ever added.
//!
//! Each step's text is known by its SHA-256: a store made by other steps than this program's is refused, not guessed
//! about. All missing steps are one transaction, with the mark that makes the file a store.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, params};
use tidegate_core::clock::{Random, SystemRandom, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::id::Hex;
use tidegate_core::migration::Step;

use crate::open;
use crate::seal;

use sha2::{Digest, Sha256};

/// Marks a file as a store of ours: "TIDE".
pub(crate) const APPLICATION_ID: i64 = 0x5449_4445;

struct Migration {
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: [Migration; 2] = [
    Migration { name: "0001_init", sql: include_str!("../migrations/0001_init.sql") },
    Migration { name: "0002_tokens", sql: include_str!("../migrations/0002_tokens.sql") },
];

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing was ever stored in it.
    Empty,
    /// A store with all steps of this program.
    Current,
    /// A store that lacks steps.
    Older {
        /// Steps it has.
        has: usize,
    },
}

/// Looks at a file without changing it.
///
/// # Errors
/// `Invalid` for a foreign or newer file, or one made by other steps; SQLite's own as they come.
pub(crate) fn look(conn: &Connection, path: &str) -> Result<Kind, Looked> {
    // One statement, one snapshot: between two, another process may make this very file a store.
    const MARK: &str =
        "select (select application_id from pragma_application_id), (select count(*) from sqlite_schema)";
    let (id, tables): (i64, i64) = conn.query_row(MARK, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if id != APPLICATION_ID {
        if id == 0 && tables == 0 {
            return Ok(Kind::Empty);
        }
        return Err(foreign(path).into());
    }
    let mut statement = conn.prepare("select number, name, checksum from tide_migration order by number")?;
    let applied = statement
        .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?)))?;
    let mut has = 0;
    for row in applied {
        let (number, name, checksum) = row?;
        let Some(known) = usize::try_from(number - 1).ok().and_then(|at| MIGRATIONS.get(at)) else {
            let what = format!(
                "{path} is a store of a newer tidegate: it has step {number} ({name}), this program \
                knows {}",
                MIGRATIONS.len()
            );
            return Err(StoreError::invalid(what)
                .hint("run the newer program, or restore the backup from before")
                .into());
        };
        if checksum != digest(known.sql) {
            let what = format!(
                "step {number} of {path} is {} there and {} in this program",
                Hex(&checksum),
                Hex(&digest(known.sql))
            );
            return Err(StoreError::invalid(what)
                .hint("the store was made by another build; run the program that made it, or open another file")
                .into());
        }
        has += 1;
    }
    Ok(if has == MIGRATIONS.len() { Kind::Current } else { Kind::Older { has } })
}

/// Refuses somebody else's database.
pub(crate) fn foreign(path: &str) -> StoreError {
    StoreError::invalid(format!("{path} is an SQLite database of another program"))
        .hint("give the path of a tidegate store, or of a file that does not exist yet; this one was left as it is")
}

/// A refusal, or SQLite's own error.
#[derive(Debug)]
pub(crate) enum Looked {
    Refused(StoreError),
    Sqlite(rusqlite::Error),
}

impl From<StoreError> for Looked {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Looked {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The steps of this program, and when the file took each. Nothing is written.
pub(crate) fn steps(path: &Path) -> Result<Vec<Step>, StoreError> {
    const TAKEN: &str = "-- steps: what was done to this file, and when
        select number, applied_at from tide_migration";
    let mut taken: HashMap<i64, i64> = HashMap::new();
    // An empty file is what an interrupted creation leaves.
    if path.metadata().map_or(0, |about| about.len()) > 0 {
        let conn = open::reader(path)?;
        let failed = |looked| match looked {
            Looked::Refused(error) => error,
            Looked::Sqlite(error) => open::failed(path, error),
        };
        if look(&conn, &path.display().to_string()).map_err(failed)? != Kind::Empty {
            let mut statement = conn.prepare(TAKEN).map_err(|e| open::failed(path, e))?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            taken = rows.and_then(Iterator::collect).map_err(|e| open::failed(path, e))?;
        }
    }
    let step = |(number, migration): (u32, &Migration)| Step {
        number,
        name: migration.name,
        sql: migration.sql.to_owned(),
        applied_at: taken.get(&i64::from(number)).map(|at| Timestamp::from_millis(*at)),
    };
    Ok((1..).zip(&MIGRATIONS).map(step).collect())
}

fn digest(sql: &str) -> [u8; 32] {
    Sha256::digest(sql.as_bytes()).into()
}

/// Takes the steps that are missing. The caller holds the file's write lock in a transaction, looked inside it, and
/// commits.
pub(crate) fn apply(conn: &Connection, has: usize, now: Timestamp) -> rusqlite::Result<()> {
    if has == 0 {
        conn.execute_batch(
            "create table tide_migration (
                number     integer primary key,
                name       text    not null,
                checksum   blob    not null,
                applied_at integer not null
            ) strict;",
        )?;
    }
    for (number, Migration { name, sql }) in (1_i64..).zip(&MIGRATIONS).skip(has) {
        conn.execute_batch(sql)?;
        conn.execute(
            "insert into tide_migration (number, name, checksum, applied_at) values (?1, ?2, ?3, ?4)",
            params![number, name, digest(sql), now.as_millis()],
        )?;
    }
    if has == 0 {
        let mut uuid = [0; 16];
        SystemRandom.fill(&mut uuid);
        const STORE: &str =
            "insert into tide_store (one, uuid, created_at, incarnation, copied_at, copied_id, begun_at, seal)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let store = params![1, uuid, now.as_millis(), 1, None::<i64>, None::<i64>, None::<i64>];
        seal::execute(&mut conn.prepare_cached(STORE)?, seal::STORE, store)?;
        conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    conn.pragma_update(None, "user_version", MIGRATIONS.len() as i64)
}

/// Type, name, table and text of a table or index.
type Made = (String, String, String, Option<String>);

/// What of the tables and indexes is not as the steps make it: a flipped bit in their texts would change what they mean.
/// An application may have tables of its own in the file.
pub(crate) fn altered(conn: &Connection) -> rusqlite::Result<Option<String>> {
    let expected = {
        let fresh = Connection::open_in_memory()?;
        apply(&fresh, 0, Timestamp::EPOCH)?;
        made(&fresh)?
    };
    let there = made(conn)?;
    let missing = expected.into_iter().find(|made| !there.contains(made));
    Ok(missing.map(|(kind, name, ..)| format!("{kind} {name} is not as the steps of this program make it")))
}

fn made(conn: &Connection) -> rusqlite::Result<HashSet<Made>> {
    let mut statement = conn.prepare("select type, name, tbl_name, sql from sqlite_schema")?;
    let made = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    made.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrated() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        apply(&conn, 0, Timestamp::EPOCH).unwrap();
        conn
    }

    fn refusal(conn: &Connection) -> String {
        match look(conn, "the file") {
            Err(Looked::Refused(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_migrated_file_is_current_and_an_untouched_one_empty() {
        assert_eq!(look(&Connection::open_in_memory().unwrap(), "f").unwrap(), Kind::Empty);
        assert_eq!(look(&migrated(), "f").unwrap(), Kind::Current);
    }

    #[test]
    fn a_changed_checksum_is_refused() {
        let conn = migrated();
        conn.execute("update tide_migration set checksum = x'00'", []).unwrap();
        assert!(refusal(&conn).contains("made by another build"));
    }

    #[test]
    fn a_newer_step_is_refused() {
        let conn = migrated();
        conn.execute("insert into tide_migration values (99, 'later', x'00', 0)", []).unwrap();
        assert!(refusal(&conn).contains("newer tidegate: it has step 99 (later)"));
    }
}
