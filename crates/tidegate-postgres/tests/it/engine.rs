//! The PostgreSQL engine as the test kit wants it: a schema for each case, in one server.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tidegate_core::{Clock, Store, StoreError};
use tidegate_pgcluster::Cluster;
use tidegate_postgres::{Options, PostgresStore};
use tidegate_testkit::engine::{claimer_process, contend_in_processes};
use tidegate_testkit::{Claimer, Engine, Place, Taken};

/// How a claimer's assignment reaches the process that this test binary starts of itself.
const ASSIGNMENT: &str = "TIDEGATE_TEST_CLAIMER";
/// The database of these tests in the server they share with others.
pub(crate) const DATABASE: &str = "tidegate_postgres";

/// Goes with its schema.
#[derive(Debug)]
pub(crate) struct Schema(String);

impl Schema {
    /// A name that no other test has.
    pub(crate) fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        Self(format!("case_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// The URL of a store in it.
    pub(crate) fn url(&self) -> String {
        format!("{}?schema={}", database(), self.0)
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        // What a case that failed left is looked at, if somebody keeps the server.
        if !std::thread::panicking() {
            let drop = format!("set lock_timeout = '20s'; drop schema if exists {} cascade", self.0);
            Cluster::shared().sql(DATABASE, &drop).expect("nobody is at work in it any more");
        }
    }
}

/// The URL of the database of these tests.
pub(crate) fn database() -> String {
    Cluster::shared().database(DATABASE).expect("a superuser may make a database")
}

/// Runs statements in the database of these tests; answers what they print.
pub(crate) fn sql(statements: &str) -> String {
    Cluster::shared().sql(DATABASE, statements).unwrap_or_else(|error| panic!("{error}"))
}

#[derive(Debug, Default)]
pub(crate) struct Postgres;

#[async_trait]
impl Engine for Postgres {
    async fn fresh(&self) -> Place {
        let schema = Schema::new();
        Place::new(schema.url(), schema)
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        open(place.address(), clock).await
    }

    async fn contend(&self, _place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        contend_in_processes(claimers, |assignment| {
            let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
            command.args(["engine::a_claimer_in_a_process_of_its_own", "--exact", "--nocapture"]);
            command.env(ASSIGNMENT, assignment);
            command
        })
    }
}

async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    Ok(PostgresStore::open(url, Options { clock: Some(clock), ..Options::default() }).await?)
}

#[test]
fn a_claimer_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let assignment = std::env::var(ASSIGNMENT);
    if let Ok(assignment) = assignment {
        claimer_process(&assignment, |url, clock| async move { open(&url, clock).await });
    }
}
