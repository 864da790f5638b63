//! Enqueueing in a transaction of the caller's that is one of sqlx.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tidegate_core::lifecycle::State;
use tidegate_core::store::Enqueued;
use tidegate_core::{Store as _, StoreErrorKind};

use crate::engine::{database, sql};
use crate::fixture::{Place, claim, kind_of, message, ready, run, with_payload};

async fn connect() -> PgConnection {
    PgConnection::connect(&database()).await.expect("the server answers")
}

/// A table of the application's own, beside the store's.
async fn orders(place: &Place, connection: &mut PgConnection) -> String {
    let orders = place.name("orders");
    sqlx::raw_sql(AssertSqlSafe(format!("create table {orders} (id bigint)")))
        .execute(connection)
        .await
        .expect("a table of its own");
    orders
}

#[test]
fn messages_are_stored_if_and_only_if_the_callers_transaction_commits() {
    run(async {
        let place = Place::new().await;
        let mut connection = connect().await;
        let orders = orders(&place, &mut connection).await;
        let order = format!("insert into {orders} values (1)");

        let mut tx = connection.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(order.clone())).execute(&mut *tx).await.unwrap();
        let verdicts = place.store.enqueue_in_sqlx(&mut tx, vec![message("m"), message("m")]).await.unwrap();
        assert!(matches!(verdicts[..], [Ok(Enqueued::New { .. }), Ok(Enqueued::Existing { .. })]), "{verdicts:?}");
        tx.rollback().await.unwrap();
        // Dropped without a word, it rolls back as well.
        let mut tx = connection.begin().await.unwrap();
        place.store.enqueue_in_sqlx(&mut tx, vec![message("m")]).await.unwrap().remove(0).unwrap();
        drop(tx);
        let mut tx = connection.begin().await.unwrap();
        let tables = ["message", "key", "ready", "sched", "depth", "tally", "queue", "lane"].map(|of| place.name(of));
        for table in tables.iter().chain([&orders]) {
            let count = AssertSqlSafe(format!("select count(*) from {table}"));
            let rows: i64 = sqlx::query_scalar(count).fetch_one(&mut *tx).await.unwrap();
            assert_eq!(rows, 0, "what was rolled back left nothing in {table}");
        }
        tx.rollback().await.unwrap();

        let mut tx = connection.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(order)).execute(&mut *tx).await.unwrap();
        place.store.enqueue_in_sqlx(&mut tx, vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert_eq!(ready(&place.store).await, 0, "nobody sees it before the commit");
        tx.commit().await.unwrap();
        assert_eq!((ready(&place.store).await, sql(&format!("select count(*) from {orders}")).trim()), (1, "1"));
        assert_eq!(claim(&place.store, 1).await.len(), 1);
    });
}

#[test]
fn a_refusal_leaves_the_callers_transaction_as_it_was() {
    run(async {
        let place = Place::new().await;
        let mut connection = connect().await;
        let first = place.store.enqueue(vec![message("known")]).await.unwrap().remove(0).unwrap();
        let Enqueued::New { id } = first else { panic!("{first:?}") };
        let huge = || with_payload("huge", &format!("\"{}\"", "x".repeat(1 << 20)));
        let other = with_payload("known", "{\"cents\": 1}");

        let mut tx = connection.begin().await.unwrap();
        let verdicts = place.store.enqueue_in_sqlx(&mut tx, vec![huge(), other, message("new")]).await.unwrap();
        let [Err(too_large), Err(conflict), Ok(Enqueued::New { .. })] = &verdicts[..] else { panic!("{verdicts:?}") };
        assert_eq!(too_large.kind(), StoreErrorKind::Invalid);
        assert_eq!((conflict.kind(), conflict.conflicting_id()), (StoreErrorKind::KeyConflict, Some(id)));
        let alone = place.store.enqueue_in_sqlx(&mut tx, vec![huge()]).await.unwrap().remove(0);
        assert_eq!(kind_of(alone), StoreErrorKind::Invalid);
        tx.commit().await.unwrap();
        assert_eq!(ready(&place.store).await, 2);
    });
}

#[test]
fn a_key_in_flight_is_told_as_such_and_can_be_repeated() {
    run(async {
        let place = Place::new().await;
        let (mut one, mut two) = (connect().await, connect().await);
        // The queue and the lane are there already.
        place.store.enqueue(vec![message("first")]).await.unwrap().remove(0).unwrap();

        let mut first = one.begin().await.unwrap();
        place.store.enqueue_in_sqlx(&mut first, vec![message("m")]).await.unwrap().remove(0).unwrap();
        let mut second = two.begin().await.unwrap();
        let error = place.store.enqueue_in_sqlx(&mut second, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(error.is_in_flight() && error.retry_after_duration().is_some(), "{error}");
        second.rollback().await.unwrap();
        first.commit().await.unwrap();

        let mut second = two.begin().await.unwrap();
        let verdict = place.store.enqueue_in_sqlx(&mut second, vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert!(matches!(verdict, Enqueued::Existing { state: State::Ready, .. }), "{verdict:?}");
        second.commit().await.unwrap();
    });
}

#[test]
fn a_connection_to_another_store_is_refused() {
    run(async {
        let place = Place::new().await;
        let elsewhere = Place::new().await;
        let mut connection = connect().await;
        // The same names, and another store behind them.
        sql(&format!("update {} set uuid = '\\x00000000000000000000000000000000'", elsewhere.name("store")));
        let mut tx = connection.begin().await.unwrap();
        let error = elsewhere.store.enqueue_in_sqlx(&mut tx, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains("another tidegate store"), "{error}");
        tx.rollback().await.unwrap();

        let mut connection = PgConnection::connect(&tidegate_pgcluster::Cluster::shared().url()).await.unwrap();
        let mut tx = connection.begin().await.unwrap();
        let error = place.store.enqueue_in_sqlx(&mut tx, vec![message("m")]).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains("without this tidegate store"), "{error}");
    });
}
