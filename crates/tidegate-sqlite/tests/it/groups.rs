//! Commit groups: what shares a commit, and what a failure means to those in it.

use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tidegate_core::store::Enqueued;
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{Options, SqliteStore};

use crate::fixture::{Place, claim, completion, kind_of, message, run, sized, started, transactional};

#[test]
fn calls_that_wait_share_one_commit() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let lease = started(&store, "first").await;
        let before = store.group_stats();
        // The work of an effect holds the writer until everybody waits.
        let (hold, held) = mpsc::channel::<()>();
        let (began, begun) = tokio::sync::oneshot::channel();
        let work = Box::new(move |_: &rusqlite::Connection| {
            let _heard = began.send(());
            let _released = held.recv();
            Ok(Arc::from("1"))
        });
        let effect = store.effect_in(lease.message.id, lease.token, transactional("hold"), work);
        let enqueues = async {
            begun.await.expect("the work begins");
            let mut waiting = tokio::task::JoinSet::new();
            for n in 0..50 {
                let store = Arc::clone(&store);
                waiting.spawn(async move { store.enqueue(vec![message(&format!("m{n}"))]).await });
            }
            // All fifty have run up to their first wait once this task comes around again.
            for _ in 0..60 {
                tokio::task::yield_now().await;
            }
            drop(hold);
            while let Some(stored) = waiting.join_next().await {
                stored.expect("it ends").expect("answered").remove(0).expect("stored");
            }
        };
        let (effect, ()) = tokio::join!(effect, enqueues);
        effect.expect("done");
        let after = store.group_stats();
        assert_eq!(after.items - before.items, 51);
        let commits = after.commits - before.commits;
        assert!(commits <= 2, "{commits} commits for 51 calls");
        assert!(after.wal_bytes > before.wal_bytes && after.commit_p50().is_some());
    });
}

#[test]
fn a_call_alone_commits_at_once_and_one_without_a_write_not_at_all() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let commits = || store.group_stats().commits;
        let before = commits();
        for n in 0..5 {
            store.enqueue(vec![message(&format!("m{n}"))]).await.expect("answered");
        }
        assert_eq!(commits() - before, 5);
        let leases = claim(&store, 10).await;
        assert_eq!(commits() - before, 6);
        assert!(claim(&store, 10).await.is_empty());
        assert_eq!(commits() - before, 6, "nothing was taken, so nothing is synced");
        store.settle(leases.iter().map(completion).collect()).await.expect("answered");
        assert_eq!(commits() - before, 7);
    });
}

#[test]
fn a_full_disk_is_answered_for_certain_and_the_store_goes_on() {
    let place = Place::new();
    let store = place.open();
    let limit = |key: &str, sql: &'static str| {
        let lease = run(started(&store, key));
        let work = Box::new(move |conn: &rusqlite::Connection| {
            conn.query_row(sql, [], |row| row.get::<_, i64>(0))?;
            Ok(Arc::from("1"))
        });
        run(store.effect_in(lease.message.id, lease.token, transactional("limit"), work)).expect("a setting");
    };
    limit("small", "pragma max_page_count = 60");
    let error = run(store.enqueue(vec![message("small-a"), sized("big", 500_000)])).expect_err("no room");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.what().contains("disk of the store is full; nothing of this call was stored"), "{error}");
    let id = run(store.find(tidegate_core::Tenant::default(), crate::fixture::queue(), message("small-a").key));
    assert_eq!(id, Ok(None), "nothing of the group is there");
    limit("large", "pragma max_page_count = 100000");
    run(store.enqueue(vec![sized("big", 500_000)])).expect("there is room").remove(0).expect("stored");
}

#[test]
fn a_file_held_by_another_process_is_tried_again_and_then_given_up() {
    let place = Place::new();
    let options = Options { busy_timeout: Duration::from_millis(50), ..Options::default() };
    let store = SqliteStore::open(place.path(), options).expect("opened");
    let conn = place.connection();
    conn.execute_batch("begin immediate").expect("held");
    let error = run(store.enqueue(vec![message("m")])).expect_err("it is held");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.what().contains("another process held the store"), "{error}");
    assert!(run(store.stats()).is_ok(), "readers are not concerned");
    conn.execute_batch("rollback").expect("released");
    run(store.enqueue(vec![message("m")])).expect("answered").remove(0).expect("stored");
}

/// A peer that is stopped while it writes the head of the log's index leaves one that nobody can read, and holds the lock that it
/// takes to mend it. After ten seconds SQLite calls that a failure of its locks. It is a busy file like any other.
#[test]
fn a_file_whose_holder_stopped_in_the_head_of_the_logs_index_is_busy_and_used_again_afterwards() {
    let place = Place::new();
    let options = Options { busy_timeout: Duration::from_millis(50), ..Options::default() };
    let store = SqliteStore::open(place.path(), options).expect("opened");
    run(store.enqueue(vec![message("before")])).expect("answered").remove(0).expect("stored");
    let conn = place.connection();
    conn.execute_batch("begin immediate").expect("held");
    // The head stands there twice, and is written in that order; what is between the two counts for nothing.
    let index = std::fs::File::options().read(true).write(true).open(format!("{}-shm", place.path().display()));
    let index = index.expect("an index");
    let mut head = [0; 48];
    index.read_exact_at(&mut head, 0).expect("read");
    index.write_all_at(&head.map(|byte| byte ^ 0xff), 0).expect("half written");
    let error = run(store.enqueue(vec![message("m")])).expect_err("it is held");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.what().contains("another process held the store"), "{error}");
    index.write_all_at(&head, 0).expect("goes on");
    conn.execute_batch("rollback").expect("released");
    run(store.enqueue(vec![message("m")])).expect("answered").remove(0).expect("stored");
}

#[test]
fn a_writer_that_waits_for_the_file_gets_it_when_it_is_released() {
    let place = Place::new();
    let store = place.open();
    let conn = place.connection();
    conn.execute_batch("begin immediate").expect("held");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(store.enqueue(vec![message("m")])));
        conn.execute_batch("create table mine (x)").expect("made");
        conn.execute_batch("commit").expect("released");
        waiting.join().expect("it ends").expect("answered").remove(0).expect("stored");
    });
}

#[test]
fn the_log_does_not_grow_without_end() {
    let place = Place::new();
    let store = place.open();
    run(async {
        for round in 0..60 {
            let batch = (0..20).map(|n| sized(&format!("{round}-{n}"), 50_000)).collect();
            store.enqueue(batch).await.expect("answered");
        }
    });
    let log = std::fs::metadata(format!("{}-wal", place.path().display())).expect("a log").len();
    let written = store.group_stats().wal_bytes;
    assert!(written > 60 << 20, "{written}");
    assert!(log < 32 << 20, "{log} of {written} bytes are still in the log");
    assert_eq!(
        kind_of(run(store.enqueue(vec![sized("x", 2 << 20)])).expect("answered").remove(0)),
        StoreErrorKind::Invalid
    );
}

#[test]
fn two_handles_make_ids_and_lanes_that_agree() {
    let place = Place::new();
    let (one, two) = (place.open(), place.open());
    let mut ids = Vec::new();
    for n in 0..20 {
        let store = if n % 2 == 0 { &one } else { &two };
        let message = tidegate_core::message::NewMessage {
            priority: tidegate_core::message::Priority::new(n % 10).expect("a priority"),
            ..message(&format!("m{n}"))
        };
        let stored = run(store.enqueue(vec![message])).expect("answered").remove(0);
        let Ok(Enqueued::New { id }) = stored else { panic!("{stored:?}") };
        ids.push(id);
    }
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
    // Each handle claims from lanes that only the other one ever saw.
    assert_eq!(run(claim(&one, 100)).len(), 20);
}
