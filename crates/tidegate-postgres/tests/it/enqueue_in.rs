//! Enqueueing in a transaction of the caller's, from Rust.

use tidegate_core::lifecycle::State;
use tidegate_core::message::{NewMessage, Priority};
use tidegate_core::store::{Act, ChangeQueue, Enqueued, QueueChange};
use tidegate_core::{Store as _, StoreErrorKind, Tenant};

use crate::engine::sql;
use crate::fixture::{Place, claim, connect, connect_to, kind_of, message, open, queue, ready, run, with_payload};

#[test]
fn messages_are_stored_if_and_only_if_the_callers_transaction_commits() {
    run(async {
        let place = Place::new().await;
        let mut client = connect().await;
        let orders = place.name("orders");
        client.batch_execute(&format!("create table {orders} (id bigint)")).await.unwrap();

        let tx = client.transaction().await.unwrap();
        tx.execute(&format!("insert into {orders} values (1)"), &[]).await.unwrap();
        let verdicts = place.store.enqueue_in(&tx, vec![message("m"), message("m")]).await.unwrap();
        assert!(matches!(verdicts[..], [Ok(Enqueued::New { .. }), Ok(Enqueued::Existing { .. })]), "{verdicts:?}");
        tx.rollback().await.unwrap();
        let stats = place.store.stats().await.unwrap();
        assert_eq!(stats.queues.iter().map(|queue| queue.ready).sum::<u64>(), 0);
        assert!(stats.tallies.is_empty(), "what never was is not counted: {:?}", stats.tallies);
        assert_eq!(sql(&format!("select count(*) from {orders}")).trim(), "0");

        let tx = client.transaction().await.unwrap();
        tx.execute(&format!("insert into {orders} values (1)"), &[]).await.unwrap();
        place.store.enqueue_in(&tx, vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert_eq!(ready(&place.store).await, 0, "nobody sees it before the commit");
        tx.commit().await.unwrap();
        assert_eq!(ready(&place.store).await, 1);
        assert_eq!(claim(&place.store, 1).await.len(), 1);
    });
}

#[test]
fn a_refusal_leaves_the_callers_transaction_as_it_was() {
    run(async {
        let place = Place::new().await;
        let mut client = connect().await;
        let first = place.store.enqueue(vec![message("known")]).await.unwrap().remove(0).unwrap();
        let Enqueued::New { id } = first else { panic!("{first:?}") };
        let huge = with_payload("huge", &format!("\"{}\"", "x".repeat(1 << 20)));
        let other = with_payload("known", "{\"cents\": 1}");

        let tx = client.transaction().await.unwrap();
        let verdicts = place.store.enqueue_in(&tx, vec![huge, other, message("new")]).await.unwrap();
        let [Err(too_large), Err(conflict), Ok(Enqueued::New { .. })] = &verdicts[..] else { panic!("{verdicts:?}") };
        assert_eq!(too_large.kind(), StoreErrorKind::Invalid);
        assert_eq!((conflict.kind(), conflict.conflicting_id()), (StoreErrorKind::KeyConflict, Some(id)));
        tx.commit().await.unwrap();
        assert_eq!(ready(&place.store).await, 2);
    });
}

#[test]
fn a_queues_limit_holds_for_it_as_well() {
    run(async {
        let place = Place::new().await;
        let limit = ChangeQueue {
            tenant: Tenant::default(),
            queue: queue(),
            change: QueueChange::Limit(Some(2)),
            act: Act { actor: "tester".to_owned(), reason: "to see".to_owned() },
        };
        place.store.pause(limit).await.unwrap();
        let mut client = connect().await;
        let tx = client.transaction().await.unwrap();
        let batch = ["a", "b", "c", "a"].map(message).to_vec();
        let verdicts = place.store.enqueue_in(&tx, batch).await.unwrap();
        assert!(verdicts[0].is_ok() && verdicts[1].is_ok() && verdicts[3].is_ok(), "{verdicts:?}");
        let error = verdicts[2].as_ref().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::QueueFull);
        assert!(error.what().contains("holds its 2 messages") && error.retry_after_duration().is_some(), "{error}");
        tx.commit().await.unwrap();
    });
}

#[test]
fn a_connection_to_another_store_is_refused() {
    run(async {
        let place = Place::new().await;
        let elsewhere = Place::new().await;
        let mut client = connect().await;
        // The same names, and another store behind them.
        let renamed = format!("update {} set uuid = '\\x00000000000000000000000000000000'", elsewhere.name("store"));
        sql(&renamed);
        let tx = client.transaction().await.unwrap();
        let error = elsewhere.store.enqueue_in(&tx, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains("another tidegate store"), "{error}");
        tx.rollback().await.unwrap();

        let mut client = connect_to(&tidegate_pgcluster::Cluster::shared().url()).await;
        let tx = client.transaction().await.unwrap();
        let error = place.store.enqueue_in(&tx, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains("without this tidegate store"), "{error}");
    });
}

#[test]
fn a_transaction_that_would_not_wait_for_its_commit_does_once_it_enqueues() {
    run(async {
        let place = Place::new().await;
        let mut client = connect().await;
        client.batch_execute("set synchronous_commit = off").await.unwrap();
        let tx = client.transaction().await.unwrap();
        place.store.enqueue_in(&tx, vec![message("m")]).await.unwrap().remove(0).unwrap();
        let setting: String = tx.query_one("show synchronous_commit", &[]).await.unwrap().get(0);
        assert_eq!(setting, "on");
        tx.commit().await.unwrap();
        let setting: String = client.query_one("show synchronous_commit", &[]).await.unwrap().get(0);
        assert_eq!(setting, "off", "the caller's setting is the caller's again");
    });
}

#[test]
fn a_key_in_flight_is_waited_for_and_then_told_as_what_it_became() {
    run(async {
        let place = Place::new().await;
        let (mut one, mut two) = (connect().await, connect().await);
        // The queue and the lane are there already.
        place.store.enqueue(vec![message("first")]).await.unwrap().remove(0).unwrap();

        let first = one.transaction().await.unwrap();
        place.store.enqueue_in(&first, vec![message("m")]).await.unwrap().remove(0).unwrap();
        let second = two.transaction().await.unwrap();
        let error = place.store.enqueue_in(&second, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(error.what().contains("in flight") && error.retry_after_duration().is_some(), "{error}");
        second.rollback().await.unwrap();

        let second = two.transaction().await.unwrap();
        let (verdicts, ()) = tokio::join!(place.store.enqueue_in(&second, vec![message("m")]), async {
            blocked().await;
            first.commit().await.unwrap();
        });
        let verdict = verdicts.unwrap().remove(0).unwrap();
        assert!(matches!(verdict, Enqueued::Existing { state: State::Ready, .. }), "{verdict:?}");
        second.commit().await.unwrap();
    });
}

/// Returns when some session waits for a lock that another one's transaction holds.
async fn blocked() {
    let client = connect().await;
    for _ in 0..1000 {
        let waiting: i64 = client
            .query_one("select count(*) from pg_stat_activity where wait_event = 'transactionid' and query like '%enqueue_batch%'", &[])
            .await
            .expect("answered")
            .get(0);
        if waiting > 0 {
            return;
        }
    }
    panic!("nobody waits");
}

#[test]
fn what_the_caller_sends_itself_is_read_as_if_the_store_had_sent_it() {
    run(async {
        let place = Place::new().await;
        let client = connect().await;
        let urgent = NewMessage { priority: Priority::FIRST, ..message("m") };
        let prepared = place.store.enqueue_sql(vec![message("m"), urgent]);
        let row = client.query_one(prepared.statement(), &[&prepared.parameter()]).await.unwrap();
        let answer: String = row.get(0);
        let verdicts = prepared.verdicts(&answer).unwrap();
        let [Ok(Enqueued::New { id }), Ok(Enqueued::Existing { id: known, state: State::Ready, ignored })] =
            &verdicts[..]
        else {
            panic!("{verdicts:?}");
        };
        assert_eq!((id, &ignored[..]), (known, &["priority"][..]));

        let prepared = place.store.enqueue_sql(vec![message("m")]);
        assert_eq!(kind_of(prepared.verdicts("nonsense")), StoreErrorKind::Corrupt);
        // Another handle on the store finds the same message.
        let again = open(&place.schema.url()).await.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert!(matches!(again, Enqueued::Existing { id: found, .. } if found == *id), "{again:?}");
    });
}
