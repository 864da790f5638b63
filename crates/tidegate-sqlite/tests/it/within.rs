//! Work that commits together with the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::TransactionBehavior;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Enqueued, SweepRequest};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{EffectInError, SqliteStore};

use crate::fixture::{Place, claim, completion, kind_of, message, run, started, transactional};

fn ready(store: &SqliteStore) -> u64 {
    run(store.stats()).expect("answered").queues.iter().map(|queue| queue.ready).sum()
}

#[test]
fn messages_are_stored_if_and_only_if_the_callers_transaction_commits() {
    let place = Place::new();
    let store = place.open();
    let mut conn = place.connection();
    conn.execute_batch("create table orders (id integer primary key)").expect("made");

    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("begun");
    tx.execute("insert into orders values (1)", []).expect("inserted");
    let verdicts = store.enqueue_in(&tx, vec![message("m"), message("m")]).expect("a write transaction");
    assert!(matches!(verdicts[..], [Ok(Enqueued::New { .. }), Ok(Enqueued::Existing { .. })]), "{verdicts:?}");
    tx.rollback().expect("rolled back");
    assert_eq!(ready(&store), 0);

    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("begun");
    tx.execute("insert into orders values (1)", []).expect("inserted");
    store.enqueue_in(&tx, vec![message("m")]).expect("a write transaction").remove(0).expect("new");
    tx.commit().expect("committed");
    assert_eq!(ready(&store), 1);
    assert_eq!(run(claim(&store, 1)).len(), 1);
}

#[test]
fn a_caller_without_a_durable_write_transaction_is_told_the_statement_that_helps() {
    let place = Place::new();
    let store = place.open();
    let conn = place.connection();
    let refusal = |conn: &rusqlite::Connection| store.enqueue_in(conn, vec![message("m")]).expect_err("refused");

    assert!(refusal(&conn).to_string().contains("BEGIN IMMEDIATE"), "no transaction");
    conn.execute_batch("begin; select count(*) from tide_queue").expect("begun");
    let error = refusal(&conn);
    assert_eq!(error.kind(), StoreErrorKind::Invalid);
    assert!(error.what().contains("write lock") && error.to_string().contains("BEGIN IMMEDIATE"), "{error}");
    conn.execute_batch("commit; pragma synchronous = normal; begin immediate").expect("begun");
    assert!(refusal(&conn).to_string().contains("PRAGMA synchronous = FULL"));
    conn.execute_batch("rollback").expect("ended");

    let elsewhere = Place::new();
    let _other = elsewhere.open();
    let conn = elsewhere.connection();
    conn.execute_batch("begin immediate").expect("begun");
    assert!(refusal(&conn).what().contains("another tidegate store"));
    let conn = rusqlite::Connection::open_in_memory().expect("opened");
    conn.execute_batch("create table t (x); begin immediate; insert into t values (1)").expect("begun");
    assert!(refusal(&conn).what().contains("no tidegate store"));
    assert_eq!(ready(&store), 0);
}

#[test]
fn an_effect_in_the_store_commits_with_its_confirmation_and_is_done_once() {
    let place = Place::new();
    let store = place.open();
    place.connection().execute_batch("create table ledger (cents integer)").expect("made");
    let runs = Arc::new(AtomicU32::new(0));
    let lease = run(started(&store, "m"));
    let effect = || {
        let runs = Arc::clone(&runs);
        let work = Box::new(move |conn: &rusqlite::Connection| {
            runs.fetch_add(1, Ordering::Relaxed);
            conn.execute("insert into ledger values (100)", [])?;
            Ok(Arc::from("{\"booked\":100}"))
        });
        run(store.effect_in(lease.message.id, lease.token, transactional("book"), work))
    };
    for _ in 0..2 {
        assert_eq!(effect().expect("done").as_ref(), "{\"booked\":100}");
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1, "the second is a replay");
    let booked: i64 =
        place.connection().query_row("select sum(cents) from ledger", [], |row| row.get(0)).expect("a sum");
    assert_eq!(booked, 100);
    let view = run(store.inspect(vec![lease.message.id])).expect("answered").remove(0).expect("there");
    assert_eq!(view.journal[0].state.as_str(), "confirmed");
    assert_eq!(
        run(store.settle(vec![completion(&lease)])).expect("answered").remove(0).map(|s| s.state),
        Ok(State::Completed)
    );
}

#[test]
fn work_that_fails_or_panics_leaves_nothing_and_harms_nobody() {
    let place = Place::new();
    let store = place.open();
    place.connection().execute_batch("create table ledger (cents integer)").expect("made");
    let lease = run(started(&store, "m"));
    for panics in [false, true] {
        let work = Box::new(move |conn: &rusqlite::Connection| {
            conn.execute("insert into ledger values (100)", [])?;
            assert!(!panics, "the work is wrong");
            Err("no such account".into())
        });
        let error =
            run(store.effect_in(lease.message.id, lease.token, transactional("book"), work)).expect_err("it fails");
        let EffectInError::Work(error) = error else { panic!("{error:?}") };
        let says = if panics { "panicked: the work is wrong" } else { "no such account" };
        assert!(error.to_string().contains(says), "{error}");
    }
    let rows: i64 = place.connection().query_row("select count(*) from ledger", [], |row| row.get(0)).expect("a count");
    assert_eq!(rows, 0);
    run(store.enqueue(vec![message("after")])).expect("the writer lives").remove(0).expect("stored");
    assert!(
        run(store.inspect(vec![lease.message.id])).expect("answered")[0].as_ref().is_some_and(|v| v.journal.is_empty())
    );
}

#[test]
fn an_effect_in_the_store_needs_the_lease() {
    let place = Place::new();
    let store = place.open();
    let lease = run(started(&store, "m"));
    run(store.settle(vec![completion(&lease)])).expect("answered").remove(0).expect("settled");
    let work = Box::new(|_: &rusqlite::Connection| panic!("it must not run"));
    let refused = run(store.effect_in(lease.message.id, lease.token, transactional("book"), work));
    assert!(matches!(refused, Err(EffectInError::Store(error)) if error.kind() == StoreErrorKind::LeaseLost));
}

#[test]
fn work_that_ends_the_stores_transaction_stops_the_store_until_it_is_opened_again() {
    let place = Place::new();
    let store = place.open();
    let lease = run(started(&store, "m"));
    let work = Box::new(|conn: &rusqlite::Connection| {
        conn.execute_batch("commit")?;
        Ok(Arc::from("1"))
    });
    let refused = run(store.effect_in(lease.message.id, lease.token, transactional("book"), work));
    assert!(matches!(refused, Err(EffectInError::Store(error)) if error.kind() == StoreErrorKind::Unavailable));
    // Nobody knows what became of that group: nothing is answered from here on, reads included.
    assert_eq!(kind_of(run(store.enqueue(vec![message("n")]))), StoreErrorKind::Unavailable);
    assert_eq!(kind_of(run(store.stats())), StoreErrorKind::Unavailable);
    let sweep = SweepRequest { take_over: true, retention: None, limit: 1, unit: 0.0 };
    assert_eq!(kind_of(run(store.sweep(sweep))), StoreErrorKind::Unavailable);
    drop(store);
    assert_eq!(run(place.open().stats()).expect("answered").queues[0].leased, 1);
}
