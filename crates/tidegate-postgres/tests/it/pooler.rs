//! Behind a proxy that pools by transaction: a connection is another one after each commit, and nothing can be heard.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tidegate_core::{Clock, Store, StoreError};
use tidegate_pgcluster::{Cluster, Pooler};
use tidegate_postgres::{Options, PostgresStore};
use tidegate_testkit::check::{Check, assert_agrees};
use tidegate_testkit::conformance::contention;
use tidegate_testkit::engine::contend_in_threads;
use tidegate_testkit::{Claimer, Engine, Place, Taken};

use crate::engine::{DATABASE, Schema, database};
use crate::fixture::{claim, connect_to, message, open, run};

/// A pgbouncer for all tests of this process.
fn pooler() -> &'static Pooler {
    static POOLER: OnceLock<Pooler> = OnceLock::new();
    POOLER.get_or_init(|| {
        database();
        Pooler::start(Cluster::shared()).unwrap_or_else(|error| panic!("this test needs a pgbouncer: {error}"))
    })
}

fn url(schema: &Schema) -> String {
    format!("{}?statements=unnamed&schema={}", pooler().url(DATABASE), schema.name())
}

/// The engine, with the proxy before its server.
#[derive(Debug)]
struct Behind;

#[async_trait]
impl Engine for Behind {
    async fn fresh(&self) -> Place {
        let schema = Schema::new();
        Place::new(url(&schema), schema)
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        Ok(PostgresStore::open(place.address(), Options { clock: Some(clock), ..Options::default() }).await?)
    }

    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        let mut stores = Vec::new();
        for claimer in claimers {
            let clock: Arc<dyn Clock> = Arc::new(tidegate_core::SystemClock::new());
            stores.push((claimer, self.open(place, clock).await.expect("the place can be opened")));
        }
        contend_in_threads(stores)
    }
}

#[test]
fn random_commands_mean_the_same_behind_a_proxy_that_pools_transactions() {
    assert_agrees(&Behind, &Check { scripts: 3, ..Check::default() });
}

#[test]
fn claimers_behind_a_proxy_never_get_one_message_twice() {
    tidegate_testkit::run(contention::threads_with_a_handle_each_never_get_one_message_twice(&Behind));
    tidegate_testkit::run(contention::one_key_sent_at_the_same_moment_is_one_message(&Behind));
}

#[test]
fn behind_a_proxy_messages_are_enqueued_and_claimed_and_enqueued_in_a_transaction() {
    run(async {
        let schema = Schema::new();
        let (direct, behind) = (open(&schema.url()).await, open(&url(&schema)).await);
        behind.enqueue(vec![message("a")]).await.unwrap().remove(0).unwrap();
        assert_eq!(claim(&direct, 1).await.len(), 1);
        let mut client = connect_to(&pooler().url(DATABASE)).await;
        let tx = client.transaction().await.unwrap();
        let prepared = behind.enqueue_sql(vec![message("b")]);
        let row = tx
            .query_typed(prepared.statement(), &[(&prepared.parameter(), tokio_postgres::types::Type::TEXT)])
            .await
            .unwrap();
        prepared.verdicts(row[0].get(0)).unwrap().remove(0).unwrap();
        tx.commit().await.unwrap();
        assert_eq!(claim(&behind, 1).await.len(), 1);
    });
}
