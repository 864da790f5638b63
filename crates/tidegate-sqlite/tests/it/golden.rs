//! A store that an older program made, kept as a file: it is refused until somebody migrates it, and then all of it is there.
//!
//! `step-1.sqlite3` was made by the command of the first step's program: three messages of which one is due later and one
//! cancelled, and a paused queue.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_core::clock::SystemRandom;
use tidegate_core::id::{IdempotencyKey, Kind, Nonce, QueueName, Tenant, TokenName, WorkerId};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::store::{
    Act, ChangeToken, ClaimRequest, Enqueued, Filter, MessageView, QueueSlots, Settle, Summary,
};
use tidegate_core::token::{Glob, Secret, TokenChange};
use tidegate_core::{Store as _, StoreErrorKind, Timestamp};
use tidegate_sqlite::{Doctor, Migrate, Options, SqliteStore};

use crate::fixture::{Place, run};

fn golden() -> Place {
    let place = Place::new();
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/step-1.sqlite3");
    fs::copy(kept, place.path()).expect("it is kept with the tests");
    place
}

#[test]
fn a_store_of_the_first_step_is_refused_until_somebody_migrates_it() {
    let place = golden();
    let before = fs::read(place.path()).expect("read");
    let steps = SqliteStore::steps(place.path()).expect("it can be read");
    let taken: Vec<_> = steps.iter().map(|step| (step.name, step.applied_at.is_some())).collect();
    assert_eq!(taken[0], ("0001_init", true));
    assert!(taken.len() > 1 && taken[1..].iter().all(|(_, taken)| !taken), "{taken:?}");
    let refused = place.refused(Options::default());
    assert_eq!(refused.kind(), StoreErrorKind::Conflict);
    assert!(refused.to_string().contains("tidegate migrate up"), "{refused}");
    assert_eq!(fs::read(place.path()).expect("read"), before, "it is as it was");
}

#[test]
fn a_store_of_the_first_step_holds_its_messages_after_its_migration_and_works_on() {
    let place = golden();
    let older = Options { migrate: Migrate::Older, ..Options::default() };
    run(SqliteStore::open(place.path(), older).expect("it is migrated").close());
    let store = place.open();

    let all: Vec<Summary> = run(store.list(Filter { limit: 9, ..Filter::default() })).expect("answered");
    let told: Vec<_> = all.iter().map(|m| (m.key.as_str(), m.queue.as_str(), m.tenant.as_str(), m.state)).collect();
    assert_eq!(
        told,
        [
            ("ready-1", "greet", "", State::Ready),
            ("later-1", "payments", "", State::Ready),
            ("off-1", "greet", "", State::Cancelled),
        ]
    );
    let views: Vec<MessageView> =
        run(store.inspect(all.iter().map(|m| m.id).collect())).expect("answered").into_iter().flatten().collect();
    let payloads: Vec<&str> = views.iter().map(|view| &*view.message.payload).collect();
    assert_eq!(payloads, [r#"{"name":"Ada"}"#, r#"{"cents":1250}"#, r#"{"name":"Bob"}"#]);
    let acts = run(store.audit(0, 9)).expect("answered");
    let acts: Vec<_> = acts.iter().map(|row| (row.act.as_str(), row.reason.as_str())).collect();
    assert_eq!(acts, [("cancel", "ordered twice"), ("pause", "the bank is closed")]);
    let queues = run(store.stats()).expect("answered").queues;
    let paused: Vec<_> = queues.iter().filter(|queue| queue.paused).map(|queue| queue.queue.as_str()).collect();
    assert_eq!(paused, ["payments"]);

    // Its keys are known, its messages run, and what the later steps brought is there.
    let again = run(store.enqueue(vec![tidegate_core::message::NewMessage::new(
        QueueName::new("greet").expect("a name"),
        Kind::new("greet").expect("a name"),
        IdempotencyKey::new("ready-1").expect("a key"),
        tidegate_core::message::Payload::from_json(r#"{"name":"Ada"}"#).expect("JSON"),
    )]));
    let again = again.expect("answered").remove(0).expect("known");
    assert!(matches!(&again, Enqueued::Existing { id, state: State::Ready, .. } if *id == all[0].id), "{again:?}");
    let request = ClaimRequest {
        worker: WorkerId::new("w").expect("a name"),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: QueueName::new("greet").expect("a name"), slots: 9 }],
        kinds: vec![(Kind::new("greet").expect("a name"), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease: Duration::from_secs(30),
    };
    let lease = run(store.claim(request)).expect("answered").leases.remove(0);
    let settle = Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::Completed { result: "1".into(), orphans: false },
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.0,
    };
    run(store.settle(vec![settle])).expect("answered").remove(0).expect("its lease");
    let change = TokenChange::Add {
        hash: Secret::new(&SystemRandom).hash(),
        scopes: vec!["produce".parse().expect("a scope")],
        tenant: Glob::default(),
        expires_at: None,
    };
    let act = Act { actor: "t".into(), reason: String::new() };
    run(store.change_token(ChangeToken { name: TokenName::new("app").expect("a name"), change, act })).expect("added");
    assert_eq!(run(store.tokens()).expect("answered").len(), 1);
    run(store.close());

    let doctor = Doctor { now: Timestamp::EPOCH, largest_wal: u64::MAX };
    let checks = SqliteStore::doctor(place.path(), doctor).expect("it can be read");
    // The golden store's times are those of its making.
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok && check.name != "clock").collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
