//! The doctor: a healthy store passes every check, and each check finds what it is there for.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::time::Duration;

use tidegate_core::doctor::Check;
use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::id::EffectName;
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{Due, Failure, NewMessage};
use tidegate_core::store::{Cancel, Discard, Enqueued, Journal, JournalWrite, Lease};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_postgres::{Options, PostgresStore};
use tokio_postgres::Client;

use crate::fixture::{Place, act, claim, completed, connect, message, run, settlement};

/// How a store is damaged so that a check has something to find, and how what no table holds is put right again.
const FIXTURES: [(&str, &str, &str); 17] = [
    // Of the doctor's own connections: set for a role or the database, the stores of all other tests would have it too.
    ("settings", "", ""),
    ("migrations", "update tidegate.schema_migration set checksum = '\\x0011'", ""),
    ("decode", "update tidegate.effect set policy = 'nonsense'", ""),
    ("one_state", "delete from tidegate.ready", ""),
    ("bodies", "delete from tidegate.message where id in (select id from tidegate.result)", ""),
    ("keys", "delete from tidegate.key", ""),
    ("ids", "select setval('tidegate.message_id', 1)", "select setval('tidegate.message_id', 1 << 62)"),
    ("lanes", "update tidegate.result set lane = lane + 1000", ""),
    ("placement", "update tidegate.ready set pos = pos + 3600000", ""),
    ("counts", "update tidegate.depth set ready = ready + 1", ""),
    ("journal", "update tidegate.held set flags = 0", ""),
    ("open_effects", "update tidegate.held set state = 'dead' where state = 'parked'", ""),
    ("tallies", "delete from tidegate.tally", ""),
    ("leases", "update tidegate.lease set until = 0", ""),
    ("duties", "insert into tidegate.duty values ('mischief', 'nobody', '\\x00', 9000000000000)", ""),
    ("clock", "insert into tidegate.jump (at, by_ms) values (extract(epoch from now()) * 1000, 7200000)", ""),
    (
        "vacuum",
        "alter table tidegate.ready set (autovacuum_enabled = off)",
        "alter table tidegate.ready reset (autovacuum_enabled)",
    ),
];

async fn settle(store: &PostgresStore, lease: &Lease, outcome: Outcome) {
    store.settle(vec![settlement(lease, outcome)]).await.unwrap().remove(0).unwrap();
}

/// A running message.
pub(crate) async fn started(store: &PostgresStore, key: &str) -> Lease {
    store.enqueue(vec![message(key)]).await.unwrap().remove(0).unwrap();
    claim(store, 1).await.remove(0)
}

/// An effect that was sent and not answered.
pub(crate) async fn unanswered(store: &PostgresStore, lease: &Lease) {
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

/// A parked message.
pub(crate) async fn parked(store: &PostgresStore, key: &str) -> Lease {
    let lease = started(store, key).await;
    unanswered(store, &lease).await;
    settle(store, &lease, Outcome::Unknown { failure: Failure::new("no_reply", "nothing was heard") }).await;
    lease
}

/// A dead letter.
pub(crate) async fn dead(store: &PostgresStore, key: &str) -> Lease {
    let lease = started(store, key).await;
    settle(store, &lease, Outcome::Exhausted { failure: Failure::new("declined", "no funds") }).await;
    lease
}

/// A message in every state and every table.
async fn inhabit(store: &PostgresStore) {
    settle(store, &started(store, "completed").await, completed()).await;
    let failure = || Failure::new("declined", "no funds");
    let lease = started(store, "failed").await;
    settle(store, &lease, Outcome::Permanent { failure: failure(), compensated: false, orphans: false }).await;
    dead(store, "dead").await;
    let discarded = dead(store, "discarded").await.message.id;
    store.discard(Discard { ids: vec![discarded], act: act() }).await.unwrap().remove(0).unwrap();
    parked(store, "parked").await;
    let lease = started(store, "retried").await;
    settle(store, &lease, Outcome::Retryable { failure: failure(), after: Some(Duration::from_secs(3600)) }).await;
    let later = NewMessage { due: Due::In(Duration::from_secs(3600)), ..message("later") };
    store.enqueue(vec![later, message("leased")]).await.unwrap();
    assert_eq!(claim(store, 1).await.len(), 1);
    let called_off = store.enqueue(vec![message("called-off")]).await.unwrap().remove(0).unwrap();
    let Enqueued::New { id } = called_off else { panic!("it is new") };
    store.cancel(Cancel { ids: vec![id], release_key: true, act: act() }).await.unwrap().remove(0).unwrap();
    store.enqueue(vec![message("ready")]).await.unwrap();
}

fn failed(checks: &[Check]) -> Vec<&str> {
    checks.iter().filter(|check| !check.ok).map(|check| check.name).collect()
}

async fn examined(place: &Place) -> Vec<Check> {
    PostgresStore::doctor(&place.schema.url(), Options::default()).await.unwrap()
}

/// Through connections whose commits are not waited for.
async fn examined_forgetfully(place: &Place) -> Vec<Check> {
    let url = format!("{}&options=-c%20synchronous_commit%3Doff", place.schema.url());
    PostgresStore::doctor(&url, Options::default()).await.unwrap()
}

/// Copies of all tables, from which they are filled again after each damage.
async fn kept(client: &Client, place: &Place) -> Vec<(String, String)> {
    let tables = "select tablename::text from pg_tables where schemaname = $1";
    let mut kept = Vec::new();
    for row in client.query(tables, &[&place.schema.name()]).await.unwrap() {
        let (table, copy) = (place.name(row.get(0)), format!("kept_{}", row.get::<_, &str>(0)));
        client.batch_execute(&format!("create temp table {copy} as table {table}")).await.unwrap();
        kept.push((table, copy));
    }
    kept
}

async fn put_right(client: &Client, kept: &[(String, String)]) {
    let all: Vec<&str> = kept.iter().map(|(table, _)| table.as_str()).collect();
    let mut text = format!("truncate {};", all.join(", "));
    for (table, copy) in kept {
        text.push_str(&format!("insert into {table} overriding system value table {copy};"));
    }
    // What refers to what is as it was when all of them are full again.
    client.batch_execute(&format!("set session_replication_role = replica; {text}")).await.unwrap();
}

#[test]
fn every_check_passes_a_healthy_store_and_finds_its_own_damage() {
    run(async {
        let place = Place::new().await;
        inhabit(&place.store).await;
        let checks = examined(&place).await;
        assert_eq!(failed(&checks), Vec::<&str>::new(), "{checks:?}");
        let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, PostgresStore::doctor_checks().collect::<Vec<_>>());
        let client = connect().await;
        let kept = kept(&client, &place).await;
        for name in names {
            let (_, damage, undo) =
                FIXTURES.iter().find(|(of, ..)| *of == name).unwrap_or_else(|| panic!("no fixture of {name}"));
            client.batch_execute(&damage.replace("tidegate.", &place.name(""))).await.unwrap();
            let checks = if name == "settings" { examined_forgetfully(&place).await } else { examined(&place).await };
            client.batch_execute(&undo.replace("tidegate.", &place.name(""))).await.unwrap();
            put_right(&client, &kept).await;
            let check = checks.iter().find(|check| check.name == name).unwrap();
            assert!(check.found > 0, "{name} found nothing: {checks:?}");
            // What may become a problem is told, and is none.
            assert_eq!(check.ok, name == "vacuum", "{name}");
            let finding = &check.findings[0];
            assert!(!finding.what.contains("could not be made") && !finding.what.is_empty(), "{name}: {finding:?}");
        }
    });
}

#[test]
fn a_store_whose_tables_are_not_there_is_looked_over_all_the_same() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        client.batch_execute(&format!("drop table {} cascade", place.name("effect"))).await.unwrap();
        let checks = examined(&place).await;
        assert_eq!(failed(&checks), ["decode", "journal", "open_effects"], "{checks:?}");
        let elsewhere = format!("{}_nowhere", place.schema.url());
        let nothing = PostgresStore::doctor(&elsewhere, Options::default()).await.unwrap();
        let migrations = nothing.iter().find(|check| check.name == "migrations").unwrap();
        assert!(!migrations.ok && migrations.findings[0].what.contains("no tables"), "{migrations:?}");
        let refused = PostgresStore::doctor("postgres://", Options { schema: "No".into(), ..Options::default() }).await;
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Invalid);
    });
}
