//! Backups: made beside those who write, complete or not there, and careful when they are put to work.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::fs;
use std::time::Duration;

use tidegate_core::effect::EffectState;
use tidegate_core::lifecycle::{Cancellation, State};
use tidegate_core::store::{Act, Cancel, Edit, Extend, Settle, SweepRequest};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{Options, SqliteStore};

use crate::doctor::unanswered;
use crate::fixture::{Place, claim, completion, kind_of, message, run, started};

fn act() -> Act {
    Act { actor: "tester".into(), reason: "a test".into() }
}

#[test]
fn a_backup_is_one_private_file_with_an_identity_of_its_own() {
    let place = Place::new();
    let store = place.open();
    run(store.enqueue(vec![message("m")])).unwrap();
    let target = place.directory.path().join("copy.db");
    let copied = run(store.backup(&target)).unwrap();
    assert_eq!(copied.incarnation, 2);
    assert_eq!(copied.bytes, fs::metadata(&target).unwrap().len());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let mut names: Vec<String> = fs::read_dir(place.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("copy"))
        .collect();
    names.sort();
    assert_eq!(names, ["copy.db"], "neither a log nor a part is left");
    let uuid = |path: &std::path::Path| -> Vec<u8> {
        let conn = rusqlite::Connection::open(path).unwrap();
        conn.query_row("select uuid from tide_store", [], |row| row.get(0)).unwrap()
    };
    assert_ne!(uuid(&target), uuid(&place.path()));
    // A copy of the copy counts on.
    let copy = SqliteStore::open(&target, Options::default()).unwrap();
    let again = run(copy.backup(place.directory.path().join("again.db"))).unwrap();
    assert_eq!(again.incarnation, 3);
}

#[test]
fn a_backup_overwrites_nothing() {
    let place = Place::new();
    let store = place.open();
    for name in ["copy.db", "copy.db.partial"] {
        let there = place.directory.path().join(name);
        fs::write(&there, "something else").unwrap();
        let refused = run(store.backup(place.directory.path().join("copy.db")));
        assert_eq!(kind_of(refused), StoreErrorKind::Conflict, "{name}");
        assert_eq!(fs::read_to_string(&there).unwrap(), "something else");
        fs::remove_file(there).unwrap();
    }
    assert_eq!(kind_of(run(store.backup(place.directory.path().join("no/copy.db")))), StoreErrorKind::Unavailable);
    run(store.backup(place.directory.path().join("copy.db"))).unwrap();
}

#[test]
fn a_backup_made_beside_writers_holds_what_was_acknowledged_before_it() {
    let place = Place::new();
    let store = place.open();
    run(async {
        for n in 0..50 {
            store.enqueue(vec![message(&format!("before-{n}"))]).await.unwrap().remove(0).unwrap();
        }
        let target = place.directory.path().join("copy.db");
        let writing = async {
            for n in 0..50 {
                store.enqueue(vec![message(&format!("during-{n}"))]).await.unwrap().remove(0).unwrap();
            }
        };
        let (copied, ()) = tokio::join!(store.backup(&target), writing);
        copied.unwrap();
        let copy = SqliteStore::open(&target, Options::default()).unwrap();
        let there = copy.stats().await.unwrap().queues[0].ready;
        assert!((50..=100).contains(&there), "{there}");
    });
}

/// A copy of a store in which one message was running, one waits and one is parked; then the store and the copy.
async fn copied(place: &Place) -> std::sync::Arc<SqliteStore> {
    let store = place.open();
    let lease = started(&store, "parked").await;
    unanswered(&store, &lease).await;
    let failure = tidegate_core::message::Failure::new("timeout", "no reply");
    let unknown = tidegate_core::lifecycle::Outcome::Unknown { failure };
    store.settle(vec![Settle { outcome: unknown, ..completion(&lease) }]).await.unwrap();
    started(&store, "running").await;
    store.enqueue(vec![message("waiting")]).await.unwrap();
    let target = place.directory.path().join("copy.db");
    store.backup(&target).await.unwrap();
    SqliteStore::open(&target, Options::default()).unwrap()
}

#[test]
fn looking_at_a_copy_does_not_put_it_to_work() {
    let place = Place::new();
    run(async {
        let copy = copied(&place).await;
        let queue = &copy.stats().await.unwrap().queues[0];
        assert_eq!((queue.ready, queue.leased, queue.parked), (1, 1, 1));
        copy.enqueue(vec![message("new")]).await.unwrap();
        let conn = rusqlite::Connection::open(copy.path()).unwrap();
        let begun: Option<i64> = conn.query_row("select begun_at from tide_store", [], |row| row.get(0)).unwrap();
        assert_eq!(begun, None);
    });
}

#[test]
fn a_copy_that_is_put_to_work_holds_no_leases_and_lets_nothing_end_unasked() {
    let place = Place::new();
    run(async {
        let copy = copied(&place).await;
        let sweep = SweepRequest { take_over: true, retention: None, limit: 100, unit: 0.5 };
        copy.sweep(sweep.clone()).await.unwrap();
        let queue = &copy.stats().await.unwrap().queues[0];
        assert_eq!((queue.ready, queue.leased, queue.parked), (2, 0, 1));
        // What waits may have happened elsewhere: it is called off only once a run has found out.
        let waiting = copy.find(Default::default(), crate::fixture::queue(), message("waiting").key).await.unwrap();
        let cancel = Cancel { ids: vec![waiting.unwrap()], release_key: false, act: act() };
        assert_eq!(copy.cancel(cancel.clone()).await.unwrap().remove(0).unwrap(), Cancellation::Requested);
        let release = Cancel { release_key: true, ..cancel };
        assert_eq!(kind_of(copy.cancel(release).await.unwrap().remove(0)), StoreErrorKind::Conflict);
        let leases = claim(&copy, 10).await;
        assert_eq!(leases.len(), 2);
        for lease in &leases {
            assert!(lease.reconciling, "the first run is uncounted");
            assert_eq!(lease.counters.attempt, 0);
            let lease_for = Duration::from_secs(60);
            let extend = Extend { id: lease.message.id, token: lease.token, lease: lease_for, alone: false };
            let extended = copy.extend(vec![extend]).await.unwrap().remove(0).unwrap();
            assert!(!extended.cancel_requested, "nor is it stopped before it has found out");
        }
        // The run that found out ends it as it was asked to.
        let lease = leases.iter().find(|lease| Some(lease.message.id) == waiting).unwrap();
        let failure = tidegate_core::message::Failure::new("down", "not yet");
        let outcome = tidegate_core::lifecycle::Outcome::Retryable { failure, after: None };
        let settled = copy.settle(vec![Settle { outcome, ..completion(lease) }]).await.unwrap().remove(0).unwrap();
        assert_eq!(settled.state, State::Cancelled);
        let checks = SqliteStore::doctor(
            copy.path(),
            tidegate_sqlite::Doctor { now: tidegate_core::Timestamp::EPOCH, largest_wal: u64::MAX },
        );
        let ok = checks.unwrap().into_iter().filter(|check| !check.ok).map(|check| check.name).collect::<Vec<_>>();
        assert_eq!(ok, ["clock"], "which is about the time that this test gave");
    });
}

#[test]
fn a_quarantine_of_a_copy_counts_from_when_it_is_put_to_work() {
    let place = Place::new();
    run(async {
        let copy = copied(&place).await;
        let id = copy.find(Default::default(), crate::fixture::queue(), message("parked").key).await.unwrap().unwrap();
        let last_send = async |copy: &SqliteStore| {
            let view = copy.inspect(vec![id]).await.unwrap().remove(0).unwrap();
            assert_eq!(view.state, State::Parked);
            assert!(matches!(view.journal[0].state, EffectState::Unknown { .. }));
            view.journal[0].last_possible_send
        };
        let before = last_send(&copy).await;
        let conn = rusqlite::Connection::open(copy.path()).unwrap();
        SqliteStore::teach(&conn).unwrap();
        let earlier = "update tide_effect set last_possible_send = last_possible_send - 3600000,
            seal = tide_reseal(seal, 12, last_possible_send, last_possible_send - 3600000)";
        conn.execute(earlier, []).unwrap();
        claim(&copy, 1).await;
        assert!(last_send(&copy).await >= before);
    });
}

#[test]
fn a_payload_that_may_have_been_sent_elsewhere_is_not_edited_in_a_copy() {
    let place = Place::new();
    run(async {
        let store = place.open();
        let lease = started(&store, "dead").await;
        let failure = tidegate_core::message::Failure::new("decode", "no such field");
        let outcome = tidegate_core::lifecycle::Outcome::Undecodable { failure };
        store.settle(vec![Settle { outcome, ..completion(&lease) }]).await.unwrap().remove(0).unwrap();
        let target = place.directory.path().join("copy.db");
        store.backup(&target).await.unwrap();
        let copy = SqliteStore::open(&target, Options::default()).unwrap();
        // Another payload has other keys: what the store went on to send could not be found under them.
        let payload = tidegate_core::message::Payload::from_json("1").unwrap();
        let edit = Edit { id: lease.message.id, payload, act: act() };
        assert_eq!(kind_of(copy.edit(edit.clone()).await), StoreErrorKind::Conflict);
        store.edit(edit).await.unwrap();
    });
}
