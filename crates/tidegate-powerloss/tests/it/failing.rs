//! Calls to the system that fail while a store is made, restored or copied.

use std::fs;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tidegate_core::Store as _;
use tidegate_core::id::{IdempotencyKey, Kind, QueueName};
use tidegate_core::message::{NewMessage, Payload};
use tidegate_powerloss::disk::{Disk, Entries, Image, Loss};
use tidegate_powerloss::shim::{Calls, Fault, Recording};
use tidegate_powerloss::workload::STORE;
use tidegate_sqlite::{Options, SqliteStore};
use tidegate_testkit::run;

#[test]
fn whichever_call_of_the_first_opening_fails_the_store_can_be_made_afterwards() {
    let mut tried = 0;
    for after in 0..200 {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let recording = Recording::start(directory.path(), []);
        recording.fail(Fault { calls: Calls::All, after, lasting: false });
        let opened = SqliteStore::open(directory.path().join(STORE), Options::default());
        let failed = recording.failed_at().is_some();
        let refused = opened.as_ref().err().map(ToString::to_string);
        drop(opened);
        let mut disk = Disk::default();
        recording.finish().iter().for_each(|op| disk.apply(op));
        if !failed {
            assert_eq!(refused, None, "nothing failed");
            break;
        }
        tried += 1;
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn, Loss::Some] {
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(after));
            let image = disk.cut(Entries::Strict, loss, &mut random);
            let found = tempfile::tempdir().expect("a directory can be made");
            image.write(found.path()).expect("it can be written");
            let again = SqliteStore::open(found.path().join(STORE), Options::default());
            let names: Vec<_> = fs::read_dir(found.path()).expect("read").flatten().map(|e| e.file_name()).collect();
            assert!(again.is_ok(), "call {after} failed ({refused:?}), {loss:?}, left {names:?}: {again:?}");
        }
    }
    assert!(tried > 20, "only {tried} calls of an opening were seen");
}

/// A backup of a store with one message.
fn backup() -> Image {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = SqliteStore::open(directory.path().join("first.db"), Options::default()).expect("opened");
    run(store.enqueue(vec![message("before")])).expect("answered");
    run(store.backup(directory.path().join(STORE))).expect("copied");
    Image([(STORE.to_owned(), fs::read(directory.path().join(STORE)).expect("there"))].into())
}

fn message(key: &str) -> NewMessage {
    let name = |name| QueueName::new(name).expect("a valid name");
    let key = IdempotencyKey::new(key).expect("a valid key");
    NewMessage::new(name("work"), Kind::new("work").expect("a valid name"), key, Payload::from_json("1").expect("JSON"))
}

#[test]
fn whichever_call_of_opening_a_restored_backup_fails_what_is_answered_afterwards_is_not_lost() {
    let backup = backup();
    let mut tried = 0;
    for after in 0..200 {
        let directory = tempfile::tempdir().expect("a directory can be made");
        backup.write(directory.path()).expect("it can be written");
        let mut disk = Disk::of(&backup);
        let recording = Recording::start(directory.path(), disk.names());
        recording.fail(Fault { calls: Calls::All, after, lasting: false });
        let opened = SqliteStore::open(directory.path().join(STORE), Options::default());
        let stored = opened.as_ref().is_ok_and(|store| run(store.enqueue(vec![message("after")])).is_ok());
        let failed = recording.failed_at().is_some();
        let position = recording.position();
        drop(opened);
        recording.finish()[..position].iter().for_each(|op| disk.apply(op));
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn, Loss::Some] {
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(after));
            let image = disk.cut(Entries::Strict, loss, &mut random);
            let found = tempfile::tempdir().expect("a directory can be made");
            image.write(found.path()).expect("it can be written");
            let again = SqliteStore::open(found.path().join(STORE), Options::default());
            let again = again.unwrap_or_else(|e| panic!("call {after} failed, {loss:?}, {:?}: {e}", image.0.keys()));
            let ready = run(again.stats()).expect("answered").queues[0].ready;
            assert!(ready > u64::from(stored), "call {after} failed, {loss:?}: {ready} messages");
        }
        if !failed {
            assert!(stored, "nothing failed");
            break;
        }
        tried += 1;
    }
    assert!(tried > 10, "only {tried} calls of an opening were seen");
}

#[test]
fn whichever_call_of_a_backup_fails_a_finished_one_is_marked_as_a_copy() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = SqliteStore::open(directory.path().join("first.db"), Options::default()).expect("opened");
    run(store.enqueue(vec![message("m")])).expect("answered");
    let mut tried = 0;
    for after in 0..400 {
        let copies = tempfile::tempdir().expect("a directory can be made");
        let recording = Recording::start(copies.path(), []);
        recording.fail(Fault { calls: Calls::All, after, lasting: false });
        let copied = run(store.backup(copies.path().join("copy.db")));
        let failed = recording.failed_at().is_some();
        drop(recording);
        if copied.is_ok() {
            let conn = rusqlite::Connection::open(copies.path().join("copy.db")).expect("opened");
            let marked = "select copied_id is not null from tide_store";
            let marked: bool = conn.query_row(marked, [], |row| row.get(0)).expect("a store");
            assert!(marked, "call {after} failed, and the copy takes itself for the original");
        }
        if !failed {
            break;
        }
        tried += 1;
    }
    assert!(tried > 20, "only {tried} calls of a backup were seen");
}
