//! The doctor: a healthy store passes every check, and each check finds what it is there for.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use tidegate_core::clock::{Clock as _, SystemClock};
use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::id::EffectName;
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{Due, Failure, NewMessage};
use tidegate_core::store::{Act, Cancel, Discard, Journal, JournalWrite, Lease, Settle};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{Check, Doctor, SqliteStore};

use crate::fixture::{Place, claim, completion, message, run, started};

/// How a store is damaged so that a check has something to find.
enum Damage {
    Sql(&'static str),
    /// The same, and nothing of the log is too small.
    Log,
    /// Where a small file system is to be had: in `disk_full`.
    Disk,
}

const FIXTURES: [(&str, Damage); 17] = [
    (
        "pages",
        Damage::Sql(
            "pragma writable_schema = on; delete from sqlite_schema where name = 'tide_result_by_time';
             pragma writable_schema = reset",
        ),
    ),
    ("migrations", Damage::Sql("update tide_migration set checksum = x'0011'")),
    ("decode", Damage::Sql("update tide_effect set policy = 'nonsense'")),
    ("one_state", Damage::Sql("delete from tide_ready")),
    ("bodies", Damage::Sql("delete from tide_message where id in (select id from tide_result)")),
    ("keys", Damage::Sql("delete from tide_key")),
    ("ids", Damage::Sql("update tide_store set last_id = 0")),
    ("lanes", Damage::Sql("update tide_result set lane = lane + 1000")),
    ("placement", Damage::Sql("update tide_ready set due_at = due_at - 5")),
    ("counts", Damage::Sql("update tide_queue set ready = ready + 1")),
    ("journal", Damage::Sql("update tide_held set flags = 0")),
    ("open_effects", Damage::Sql("update tide_held set state = 'dead' where state = 'parked'")),
    ("tallies", Damage::Sql("delete from tide_tally")),
    ("leases", Damage::Sql("update tide_lease set until = 0")),
    ("wal", Damage::Log),
    ("room", Damage::Disk),
    ("clock", Damage::Sql("insert into tide_jump (at, by_ms, seal) values (unixepoch() * 1000, 7200000, 0)")),
];

async fn settle(store: &SqliteStore, lease: &Lease, outcome: Outcome) {
    store.settle(vec![Settle { outcome, ..completion(lease) }]).await.unwrap().remove(0).unwrap();
}

/// An effect that was sent and not answered.
pub(crate) async fn unanswered(store: &SqliteStore, lease: &Lease) {
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let reached = Reached {
        effect: effect.clone(),
        policy: EffectPolicy::AtMostOnce,
        request_hash: [1; 16],
        quarantine: Duration::ZERO,
    };
    let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::from_secs(60) };
    for write in [
        JournalWrite::Intent { reached, times },
        JournalWrite::Answer { effect, seq: 0, answer: EffectAnswer::Unknown { why: "no reply".into() } },
    ] {
        let journal = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
        store.journal(vec![journal]).await.unwrap().remove(0).unwrap();
    }
}

/// A store with a message in every state and every table.
async fn inhabited(place: &Place) {
    let store = place.open();
    inhabit(&store).await;
    store.close().await;
}

/// A message in every state.
pub(crate) async fn inhabit(store: &SqliteStore) {
    settle(store, &started(store, "completed").await, Outcome::Completed { result: "1".into(), orphans: false }).await;
    let failure = || Failure::new("declined", "no funds");
    let lease = started(store, "failed").await;
    settle(store, &lease, Outcome::Permanent { failure: failure(), compensated: false, orphans: false }).await;
    let lease = started(store, "dead").await;
    settle(store, &lease, Outcome::Exhausted { failure: failure() }).await;
    let lease = started(store, "discarded").await;
    settle(store, &lease, Outcome::Exhausted { failure: failure() }).await;
    let act = Act { actor: "tester".into(), reason: "a test".into() };
    let discard = Discard { ids: vec![lease.message.id], act };
    store.discard(discard).await.unwrap().remove(0).unwrap();
    let lease = started(store, "parked").await;
    unanswered(store, &lease).await;
    settle(store, &lease, Outcome::Unknown { failure: failure() }).await;
    let lease = started(store, "retried").await;
    settle(store, &lease, Outcome::Retryable { failure: failure(), after: Some(Duration::from_secs(3600)) }).await;
    let later = NewMessage { due: Due::In(Duration::from_secs(3600)), ..message("later") };
    store.enqueue(vec![later, message("leased")]).await.unwrap();
    assert_eq!(claim(store, 1).await.len(), 1);
    let called_off = store.enqueue(vec![message("called-off")]).await.unwrap().remove(0).unwrap();
    let tidegate_core::store::Enqueued::New { id } = called_off else { panic!("it is new") };
    let act = Act { actor: "tester".into(), reason: "a test".into() };
    store.cancel(Cancel { ids: vec![id], release_key: true, act }).await.unwrap().remove(0).unwrap();
    store.enqueue(vec![message("ready")]).await.unwrap();
}

fn doctor(largest_wal: u64) -> Doctor {
    Doctor { now: SystemClock::new().now(), largest_wal }
}

fn failed(checks: &[Check]) -> Vec<&str> {
    checks.iter().filter(|check| !check.ok).map(|check| check.name).collect()
}

#[test]
fn every_check_passes_a_healthy_store_and_finds_its_own_damage() {
    let place = Place::new();
    run(inhabited(&place));
    let checks = SqliteStore::doctor(place.path(), doctor(Doctor::LARGEST_WAL)).unwrap();
    assert_eq!(failed(&checks), Vec::<&str>::new(), "{checks:?}");
    assert_eq!(
        checks.iter().map(|check| check.name).collect::<Vec<_>>(),
        SqliteStore::doctor_checks().collect::<Vec<_>>()
    );
    for name in SqliteStore::doctor_checks() {
        let (_, damage) = FIXTURES.iter().find(|(of, _)| *of == name).unwrap_or_else(|| panic!("no fixture of {name}"));
        let path = place.directory.path().join(format!("{name}.db"));
        fs::copy(place.path(), &path).unwrap();
        let conn = Connection::open(&path).unwrap();
        let (sql, largest_wal) = match damage {
            Damage::Sql(sql) => (*sql, Doctor::LARGEST_WAL),
            Damage::Disk => continue,
            Damage::Log => ("pragma wal_autocheckpoint = 0; update tide_store set created_at = created_at + 1", 0),
        };
        conn.execute_batch("pragma journal_mode = wal").unwrap();
        conn.execute_batch(sql).unwrap();
        let checks = SqliteStore::doctor(&path, doctor(largest_wal)).unwrap();
        let check = checks.iter().find(|check| check.name == name).unwrap();
        assert!(!check.ok && check.found > 0, "{name} found nothing: {checks:?}");
        let finding = &check.findings[0];
        assert!(!finding.what.contains("could not be made") && !finding.what.is_empty(), "{name}: {finding:?}");
    }
}

#[test]
fn a_store_in_use_is_looked_over_and_not_changed() {
    let place = Place::new();
    let store = place.open();
    run(started(&store, "m"));
    let before: Vec<(PathBuf, Vec<u8>)> = files(&place);
    let checks = SqliteStore::doctor(place.path(), doctor(Doctor::LARGEST_WAL)).unwrap();
    assert_eq!(failed(&checks), Vec::<&str>::new(), "{checks:?}");
    assert_eq!(files(&place), before);
}

/// The file and its log; the index beside them is shared memory and takes notes of readers.
fn files(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.display().to_string().ends_with("-shm"));
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn a_store_that_is_not_there_cannot_be_looked_over() {
    let error = SqliteStore::doctor(Path::new("no/where.db"), doctor(0)).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}
