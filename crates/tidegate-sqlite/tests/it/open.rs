//! Opening: what is made, what is refused, and that a refusal changes nothing.

use std::fs;
use std::sync::{Arc, Barrier};

use tidegate_core::{Store as _, StoreErrorKind, Timestamp};
use tidegate_sqlite::{Doctor, Migrate, Options, SqliteStore};

use crate::fixture::{Place, message, run};

#[test]
fn a_new_file_is_private_and_in_wal_mode() {
    let place = Place::new();
    let store = place.open();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        for suffix in ["", "-wal", "-shm"] {
            let file = format!("{}{suffix}", place.path().display());
            let mode = fs::metadata(&file).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
    let mode: String = place.connection().pragma_query_value(None, "journal_mode", |row| row.get(0)).expect("a mode");
    assert_eq!(mode, "wal");
    assert_eq!(store.path(), place.path().canonicalize().expect("a path"));
}

#[test]
fn a_store_that_is_not_there_is_not_made_unless_that_is_wanted() {
    let place = Place::new();
    let error = place.refused(Options { create: false, ..Options::default() });
    assert_eq!(error.kind(), StoreErrorKind::NotFound);
    assert!(error.what().contains("tidegate.db"), "{error}");
    assert!(!place.path().exists());
}

#[test]
fn a_database_without_a_table_is_no_store_to_whoever_only_looks() {
    let place = Place::new();
    let conn = rusqlite::Connection::open(place.path()).expect("a database");
    let _wal: String = conn.query_row("pragma journal_mode = wal", [], |row| row.get(0)).expect("a header");
    drop(conn);
    let before = fs::read(place.path()).expect("read");
    assert!(!before.is_empty());
    let error = place.refused(Options { create: false, ..Options::default() });
    assert_eq!(error.kind(), StoreErrorKind::NotFound);
    assert!(error.what().ends_with("is a database without a single table"), "{error}");
    assert_eq!(fs::read(place.path()).expect("read"), before, "nothing was made in it");
}

#[test]
fn a_copy_without_its_log_is_seen_to_be_a_store() {
    let place = Place::new();
    let store = place.open();
    run(store.enqueue(vec![message("a")])).expect("stored");
    let copy = place.directory.path().join("copy.db");
    fs::copy(place.path(), &copy).expect("copied");
    SqliteStore::open(&copy, Options { create: false, ..Options::default() }).expect("an older one, but a store");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let place = Place::new();
    let error =
        SqliteStore::open(place.directory.path().join("no/where.db"), Options::default()).expect_err("no directory");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("no/where.db") && error.to_string().contains("directory must exist"), "{error}");
}

#[test]
fn a_directory_is_no_store() {
    let place = Place::new();
    let error = SqliteStore::open(place.directory.path(), Options::default()).expect_err("a directory");
    assert_eq!(error.kind(), StoreErrorKind::Invalid);
    assert!(error.what().ends_with("is a directory"), "{error}");
}

#[test]
fn a_file_that_is_no_database_is_left_as_it_is() {
    let place = Place::new();
    let text = "a list of customers\n".repeat(500);
    fs::write(place.path(), &text).expect("written");
    let error = place.refused(Options::default());
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    assert!(error.what().contains("tidegate.db is no SQLite database"), "{error}");
    assert_eq!(fs::read_to_string(place.path()).expect("read"), text);
}

#[test]
fn the_database_of_another_program_is_left_as_it_is() {
    for (sql, name) in
        [("create table customers (name text)", "tables"), ("pragma application_id = 7; create table t (x)", "mark")]
    {
        let place = Place::new();
        rusqlite::Connection::open(place.path()).and_then(|conn| conn.execute_batch(sql)).expect("made");
        let before = fs::read(place.path()).expect("read");
        let error = place.refused(Options::default());
        assert_eq!(error.kind(), StoreErrorKind::Invalid, "{name}");
        assert!(error.what().contains("of another program"), "{error}");
        assert_eq!(fs::read(place.path()).expect("read"), before, "{name}");
        assert_eq!(fs::read_dir(place.directory.path()).expect("read").count(), 1, "{name}: no file beside it");
    }
}

#[test]
fn a_newer_store_and_one_of_other_steps_are_refused() {
    for (sql, says) in [
        (
            "insert into tide_migration values (99, '0099_later', x'00', 0)",
            "a newer tidegate: it has step 99 (0099_later)",
        ),
        ("update tide_migration set checksum = x'0011'", "step 1 of"),
    ] {
        let place = Place::new();
        run(place.open().close());
        place.connection().execute_batch(sql).expect("changed");
        let error = place.refused(Options { migrate: Migrate::Older, ..Options::default() });
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains(says) && error.what().contains("tidegate.db"), "{error}");
    }
}

#[test]
fn a_damaged_file_is_refused_and_not_repaired() {
    let place = Place::new();
    let store = place.open();
    let batch = (0..500).map(|n| message(&format!("m{n}"))).collect();
    run(store.enqueue(batch)).expect("answered");
    run(store.close());
    drop(store);
    let mut bytes = fs::read(place.path()).expect("read");
    let last = bytes.len() - 4096;
    for page in (4096..=last).step_by(4096) {
        bytes[page + 1..page + 40].fill(0xAA);
    }
    fs::write(place.path(), &bytes).expect("written");
    let error = place.refused(Options::default());
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    assert!(error.what().contains("tidegate.db is damaged"), "{error}");
    assert_eq!(fs::read(place.path()).expect("read"), bytes);
}

#[test]
fn an_older_store_is_migrated_only_where_that_is_wanted_and_by_nobody_beside_others() {
    let place = Place::new();
    let store = place.open();
    // A store that lacks the last step, as far as its own book says.
    let older = place.connection();
    older.execute_batch("delete from tide_migration").expect("changed");
    let error = place.refused(Options::default());
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert!(error.what().contains("an older tidegate, at step 0"), "{error}");
    let error = place.refused(Options { migrate: Migrate::Older, ..Options::default() });
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert!(error.what().contains("is in use"), "{error}");
    drop((store, older));
    // Alone it gets to the step, which fails here, as its tables are there already; and leaves the store as it was.
    let error = place.refused(Options { migrate: Migrate::Older, ..Options::default() });
    assert!(error.what().contains("table tide_migration already exists"), "{error}");
    let steps: i64 =
        place.connection().query_row("select count(*) from tide_migration", [], |row| row.get(0)).expect("a count");
    assert_eq!(steps, 0);
}

#[test]
fn several_that_make_one_file_at_the_same_moment_all_get_the_same_store() {
    for _ in 0..10 {
        let place = Place::new();
        let barrier = Barrier::new(6);
        let stores: Vec<Arc<SqliteStore>> = std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                place.open()
            };
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it opens")).collect()
        });
        for (n, store) in stores.iter().enumerate() {
            let stored = run(store.enqueue(vec![message(&format!("m{n}"))])).expect("answered");
            assert!(stored[0].is_ok());
        }
        let stats = run(stores[0].stats()).expect("answered");
        assert_eq!(stats.queues[0].ready, 6);
    }
}

#[test]
fn a_closed_store_refuses_and_another_opens_it() {
    let place = Place::new();
    let store = place.open();
    run(store.enqueue(vec![message("m")])).expect("answered");
    run(store.close());
    assert_eq!(run(store.stats()).expect_err("closed").kind(), StoreErrorKind::Unavailable);
    assert_eq!(run(store.enqueue(vec![message("n")])).expect_err("closed").kind(), StoreErrorKind::Unavailable);
    assert_eq!(fs::read_dir(place.directory.path()).expect("read").count(), 1, "the log is tidied up");
    assert_eq!(run(place.open().stats()).expect("answered").queues[0].ready, 1);
}

/// What lies on the disk when the power fails while SQLite writes a file with a rollback journal: both, half done.
fn interrupted(conn: &rusqlite::Connection, path: &std::path::Path, into: &std::path::Path) {
    conn.execute_batch(
        "pragma journal_mode = delete; pragma cache_size = 1; pragma cache_spill = 1; begin immediate;
         create table half (n integer primary key, filler blob);
         with recursive n(i) as (select 1 union all select i + 1 from n where i < 300)
            insert into half select i, zeroblob(900) from n;",
    )
    .expect("it is written, and not committed");
    let journal = path.with_extension("db-journal");
    assert!(fs::metadata(&journal).expect("there is a journal").len() > 512, "it has something to undo");
    fs::copy(path, into).expect("copied");
    fs::copy(&journal, into.with_extension("db-journal")).expect("copied");
    conn.execute_batch("rollback").expect("this one ends well");
}

#[test]
fn a_file_that_was_being_made_or_restored_when_the_power_failed_is_put_right() {
    let place = Place::new();
    let store = place.open();
    run(store.enqueue(vec![message("m")])).expect("answered");
    // A backup is no WAL file yet: turning it into one is what was interrupted.
    let backup = place.directory.path().join("backup.db");
    run(store.backup(&backup)).expect("made");
    let restored = Place::new();
    let conn = rusqlite::Connection::open(&backup).expect("opened");
    interrupted(&conn, &backup, &restored.path());
    let seen = SqliteStore::doctor(restored.path(), Doctor { now: Timestamp::EPOCH, largest_wal: Doctor::LARGEST_WAL });
    assert!(seen.expect_err("it cannot be read yet").to_string().contains("put right by whatever opens it to write"));
    assert_eq!(run(restored.open().stats()).expect("answered").queues[0].ready, 1);
    assert!(!restored.path().with_extension("db-journal").exists());
}

#[test]
fn somebody_elses_interrupted_database_is_refused_and_left_as_it_is() {
    let theirs = Place::new();
    let conn = rusqlite::Connection::open(theirs.path()).expect("opened");
    conn.execute_batch("pragma application_id = 7; create table theirs (n);").expect("made");
    let place = Place::new();
    interrupted(&conn, &theirs.path(), &place.path());
    let files = || [place.path(), place.path().with_extension("db-journal")].map(|path| fs::read(path).expect("there"));
    let before = files();
    let refused = place.refused(Options::default());
    assert!(refused.to_string().contains("of another program"), "{refused}");
    assert_eq!(files(), before);
}
