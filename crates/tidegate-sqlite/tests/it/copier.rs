//! The log is copied into the file beside the writer, and what the writer remembers is what the store says.

use tidegate_core::Store as _;
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::Failure;
use tidegate_core::store::Settle;
use tidegate_sqlite::{Options, Room, SqliteStore};

use crate::fixture::{Place, claim, completion, message, run, sized, started};

const MIB: u64 = 1 << 20;

#[test]
fn a_log_that_grows_is_copied_beside_the_writer_and_begins_anew() {
    let place = Place::new();
    let log = place.directory.path().join("tidegate.db-wal");
    let store = place.open();
    run(async {
        // More than a log is allowed to have, by half.
        for number in 0..96 {
            let batch = (0..16).map(|at| sized(&format!("{number}-{at}"), 64 << 10)).collect();
            for verdict in store.enqueue(batch).await.expect("answered") {
                verdict.expect("stored");
            }
        }
        let stats = store.group_stats();
        assert!(stats.wal_bytes > 96 * MIB, "{}", stats.wal_bytes);
        assert!(stats.copies > 0, "{stats:?}");
        let size = std::fs::metadata(&log).expect("a log").len();
        assert!(size < 72 * MIB, "the log has {size} bytes");
        assert_eq!(claim(&store, 2000).await.len(), 96 * 16);
        store.close().await;
    });
    assert!(!log.exists(), "the writer's connection is the last one, and tidies up");
}

#[test]
fn a_log_that_somebody_was_reading_is_cut_off_for_want_of_room_although_nothing_more_is_written() {
    let place = Place::new();
    let log = place.directory.path().join("tidegate.db-wal");
    let size = || std::fs::metadata(&log).expect("a log").len();
    let store = place.open();
    run(async {
        let batch = (0..200).map(|at| message(&at.to_string())).collect();
        store.enqueue(batch).await.expect("answered");
        store.close().await;
    });
    // No disk has as much as this one wants before it accepts anything.
    let room = Room { accept: 1 << 62, claim: 1 << 20, reserve: 0 };
    let store = SqliteStore::open(place.path(), Options { room, ..Options::default() }).expect("it opens");
    run(async {
        let mut reader = place.connection();
        let reading = reader.transaction().expect("a transaction");
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        assert_eq!(reading.query_row("select count(*) from tide_message", [], count).expect("a number"), 200);
        for _ in 0..200 {
            let lease = claim(&store, 1).await.remove(0);
            store.settle(vec![completion(&lease)]).await.expect("answered").remove(0).expect("settled");
        }
        assert!(size() > 2 * MIB, "{} bytes were written while somebody read", size());
        drop(reading);
        // The log is cut off behind the answer: the second claim comes after it.
        for _ in 0..2 {
            assert!(claim(&store, 1).await.is_empty());
        }
        assert_eq!(size(), 0);
    });
}

#[test]
fn a_lease_that_another_process_wrote_to_is_read_again() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let lease = started(&store, "a").await;
        let cancel = "update tide_lease set flags = flags | 4, seal = tide_reseal(seal, 8, flags, flags | 4)";
        assert_eq!(place.connection().execute(cancel, []).expect("another process asks to cancel it"), 1);
        let failed = Outcome::Retryable { failure: Failure::new("timeout", "no reply"), after: None };
        let settle = Settle { outcome: failed, ..completion(&lease) };
        let settled = store.settle(vec![settle]).await.expect("answered").remove(0).expect("settled");
        assert_eq!(settled.state, State::Cancelled);
    });
}

#[test]
fn a_lease_that_another_process_removed_cannot_be_settled() {
    let place = Place::new();
    let store = place.open();
    run(async {
        store.enqueue(vec![message("a")]).await.expect("answered").remove(0).expect("stored");
        let rows = |sql: &str| place.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        let lease = claim(&store, 1).await.remove(0);
        assert_eq!(rows("select count(*) from tide_lease"), 1);
        place.connection().execute("delete from tide_lease", []).expect("it is gone");
        let refused = store.settle(vec![completion(&lease)]).await.expect("answered").remove(0);
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(rows("select count(*) from tide_result"), 0);
    });
}
