//! A store that was restored, or whose server was promoted: it may have gone on elsewhere, and is careful.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectPolicy, EffectState};
use tidegate_core::lifecycle::{Cancellation, Outcome, State};
use tidegate_core::message::Failure;
use tidegate_core::store::{Act, Cancel, Extend, Journal, JournalWrite, Lease};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_pgcluster::{Cluster, Settings};
use tidegate_postgres::PostgresStore;

use crate::engine::{Schema, sql};
use crate::fixture::{act, at_most_once, claim, intent, kind_of, message, open, put, reached, run, settlement};

async fn started(store: &PostgresStore, key: &str) -> Lease {
    let id = put(store, key).await;
    let lease = claim(store, 1).await.remove(0);
    assert_eq!(lease.message.id, id);
    lease
}

/// A store in which one message is parked, one runs and one waits: what runs is told.
async fn peopled(store: &PostgresStore) -> Lease {
    let parked = started(store, "parked").await;
    let row = store.journal(vec![intent(&parked, at_most_once())]).await.unwrap();
    assert!(row[0].is_ok());
    let unknown = Outcome::Unknown { failure: Failure::new("timeout", "no reply") };
    store.settle(vec![settlement(&parked, unknown)]).await.unwrap().remove(0).unwrap();
    let running = started(store, "running").await;
    put(store, "waiting").await;
    running
}

async fn depths(store: &PostgresStore) -> [u64; 3] {
    let stats = store.stats().await.unwrap();
    stats.queues.iter().fold([0; 3], |sum, q| [sum[0] + q.ready, sum[1] + q.leased, sum[2] + q.parked])
}

/// What a dump that is restored does: the table is another one with the same rows.
fn dump_and_restore(schema: &Schema) {
    let name = schema.name();
    sql(&format!(
        "begin; set local search_path = {name}; alter table store rename to dumped; \
         create table store (like dumped including all); insert into store select * from dumped; \
         drop table dumped; commit"
    ));
}

fn incarnation(schema: &Schema) -> String {
    sql(&format!("select incarnation from {}.store", schema.name())).trim().to_owned()
}

#[test]
fn a_store_that_stays_where_it_is_is_opened_as_it_was_left() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        let running = peopled(&store).await;
        store.close().await;
        let again = open(&schema.url()).await;
        assert_eq!((depths(&again).await, incarnation(&schema).as_str()), ([1, 1, 1], "1"));
        again.settle(vec![settlement(&running, Outcome::Released)]).await.unwrap().remove(0).expect("it is still held");
    });
}

#[test]
fn a_restored_store_holds_no_leases_and_lets_nothing_end_unasked() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        let running = peopled(&store).await;
        store.close().await;
        dump_and_restore(&schema);
        let copy = open(&schema.url()).await;
        assert_eq!((depths(&copy).await, incarnation(&schema).as_str()), ([2, 0, 1], "2"));
        let late = copy.settle(vec![settlement(&running, Outcome::Released)]).await.unwrap().remove(0);
        assert_eq!(kind_of(late), StoreErrorKind::LeaseLost);
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
            let extend =
                Extend { id: lease.message.id, token: lease.token, lease: Duration::from_secs(60), alone: false };
            let extended = copy.extend(vec![extend]).await.unwrap().remove(0).unwrap();
            assert!(!extended.cancel_requested, "nor is it stopped before it has found out");
        }
        // The run that found out ends it as it was asked to.
        let lease = leases.iter().find(|lease| Some(lease.message.id) == waiting).unwrap();
        let down = Outcome::Retryable { failure: Failure::new("down", "not yet"), after: None };
        let settled = copy.settle(vec![settlement(lease, down)]).await.unwrap().remove(0).unwrap();
        assert_eq!(settled.state, State::Cancelled);
    });
}

#[test]
fn an_older_message_of_a_restored_store_reaches_its_effects_as_if_they_had_been_sent() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        for key in ["once", "keyed", "confirmed"] {
            put(&store, key).await;
        }
        let lease = claim(&store, 3).await.into_iter().find(|lease| lease.message.key.as_str() == "confirmed").unwrap();
        let row = store
            .journal(vec![intent(&lease, reached("a", EffectPolicy::AtMostOnce))])
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        let answer = EffectAnswer::Confirmed { value: "1".into() };
        let write = JournalWrite::Answer { effect: row.effect, seq: row.seq, answer };
        let answered = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
        store.journal(vec![answered]).await.unwrap().remove(0).unwrap();
        store.close().await;
        dump_and_restore(&schema);
        let copy = open(&schema.url()).await;
        put(&copy, "new").await;
        let leases = claim(&copy, 10).await;
        let named = |key: &str| leases.iter().find(|lease| lease.message.key.as_str() == key).unwrap();
        let journal =
            async |key: &str, reached| copy.journal(vec![intent(named(key), reached)]).await.unwrap().remove(0);

        let once = journal("once", reached("a", EffectPolicy::AtMostOnce)).await.unwrap();
        assert!(matches!(once.state, EffectState::Unknown { .. }), "{once:?}");
        let unknown = Outcome::Unknown { failure: Failure::new("restored", "it may have been sent") };
        let settled = copy.settle(vec![settlement(named("once"), unknown)]).await.unwrap().remove(0).unwrap();
        assert_eq!(settled.state, State::Parked, "a person decides");

        let keyed = EffectPolicy::Keyed { window: Duration::from_secs(86_400), or_lookup: false };
        let first = journal("keyed", reached("a", keyed.clone())).await.unwrap();
        assert!(matches!(first.state, EffectState::Unknown { .. }), "{first:?}");
        let again = journal("keyed", reached("a", keyed)).await.unwrap();
        assert_eq!((again.state, again.sends, &again.key), (EffectState::Intent, 2, &first.key), "the same key again");

        let replayed = &named("confirmed").journal[0];
        assert!(matches!(replayed.state, EffectState::Confirmed { .. }), "what it knows of stays known");
        let next = journal("confirmed", reached("b", EffectPolicy::AtMostOnce)).await.unwrap();
        assert!(matches!(next.state, EffectState::Unknown { .. }), "{next:?}");

        assert!(!named("new").reconciling);
        let new = journal("new", reached("a", EffectPolicy::AtMostOnce)).await.unwrap();
        assert_eq!(new.state, EffectState::Intent, "what came after the restore has nothing to find out");
    });
}

#[test]
fn processes_that_find_a_restored_store_at_the_same_moment_put_it_right_once() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        peopled(&store).await;
        store.close().await;
        dump_and_restore(&schema);
        let url = schema.url();
        let (one, two, three) = tokio::join!(open(&url), open(&url), open(&url));
        assert_eq!(incarnation(&schema), "2");
        for store in [one, two, three] {
            assert_eq!(depths(&store).await, [2, 0, 1]);
        }
    });
}

#[test]
fn a_store_on_another_cluster_is_a_restored_one() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        peopled(&store).await;
        store.close().await;
        sql(&format!("update {}.store set system_id = system_id + 1", schema.name()));
        let copy = open(&schema.url()).await;
        assert_eq!((depths(&copy).await, incarnation(&schema).as_str()), ([2, 0, 1], "2"));
    });
}

#[test]
fn a_store_that_shows_nothing_of_its_restore_is_told() {
    run(async {
        let schema = Schema::new();
        let store = open(&schema.url()).await;
        let running = peopled(&store).await;
        let why = store.restored(Act { reason: " ".to_owned(), ..act() }).await;
        assert_eq!(kind_of(why), StoreErrorKind::Invalid);
        for (told, released) in [("2", 1), ("3", 0)] {
            let restored = store.restored(act()).await.unwrap();
            assert_eq!(
                (restored.incarnation.to_string().as_str(), restored.released, restored.unsure),
                (told, released, 2)
            );
            assert_eq!((depths(&store).await, incarnation(&schema).as_str()), ([2, 0, 1], told));
        }
        let audit = store.audit(0, 10).await.unwrap();
        let acts: Vec<_> = audit.iter().map(|entry| (entry.act.as_str(), entry.reason.as_str())).collect();
        assert_eq!(acts, [("restored", "a test"); 2]);
        let late = store.settle(vec![settlement(&running, Outcome::Released)]).await.unwrap().remove(0);
        assert_eq!(kind_of(late), StoreErrorKind::LeaseLost);
        assert!(claim(&store, 10).await.iter().all(|lease| lease.reconciling));
    });
}

/// Lets the server recover to the end of its log and begin another history, as a standby does that is promoted.
fn promote(cluster: &Cluster, data: &Path) {
    cluster.stop().unwrap();
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    cluster.start_again().unwrap();
    for _ in 0..600 {
        if cluster.sql("postgres", "select pg_is_in_recovery()").unwrap().trim() == "f" {
            return;
        }
        // A process ends its recovery when it likes; the answer to a query takes its time as well.
        cluster.sql("postgres", "select pg_sleep(0.05)").unwrap();
    }
    panic!("the server does not end its recovery");
}

#[test]
fn a_store_whose_server_is_promoted_under_its_hands_is_careful_from_the_next_call_on() {
    run(async {
        let settings = Settings { configuration: vec!["restore_command = 'false'".to_owned()], ..Settings::default() };
        let cluster = Cluster::start(settings).unwrap();
        let data = cluster.directory().unwrap().join("data");
        let store = open(&cluster.url()).await;
        let incarnation =
            || cluster.sql("postgres", "select incarnation from tidegate.store").unwrap().trim().to_owned();
        let running = peopled(&store).await;
        cluster.restart_immediately().unwrap();
        put(&store, "after-a-restart").await;
        assert_eq!((depths(&store).await, incarnation().as_str()), ([2, 1, 1], "1"), "a restart is no promotion");
        promote(&cluster, &data);
        let late = store.settle(vec![settlement(&running, Outcome::Released)]).await.unwrap().remove(0);
        assert_eq!(kind_of(late), StoreErrorKind::LeaseLost);
        assert_eq!((depths(&store).await, incarnation().as_str()), ([3, 0, 1], "2"));
        assert!(claim(&store, 10).await.iter().all(|lease| lease.reconciling));
        let other: Arc<PostgresStore> = open(&cluster.url()).await;
        assert_eq!((depths(&other).await, incarnation().as_str()), ([0, 3, 1], "2"), "once for all processes");
    });
}
