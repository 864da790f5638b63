//! The SQLite engine as the test kit wants it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;
use tidegate_core::{Clock, Store, StoreError, Timestamp};
use tidegate_sqlite::{Doctor, Options, SqliteStore};
use tidegate_testkit::engine::{claimer_process, contend_in_processes};
use tidegate_testkit::{Claimer, Engine, Place, Taken};

/// How a claimer's assignment reaches the process that this test binary starts of itself.
const ASSIGNMENT: &str = "TIDEGATE_TEST_CLAIMER";

/// After each case every row agrees with its seal, whatever the case did to it.
#[derive(Debug)]
struct Sealed {
    path: PathBuf,
    _directory: TempDir,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if std::thread::panicking() || !self.path.exists() {
            return;
        }
        let doctor = Doctor { now: Timestamp::EPOCH, largest_wal: u64::MAX };
        let checks = SqliteStore::doctor(&self.path, doctor).expect("a store that can be read");
        let decode = checks.iter().find(|check| check.name == "decode").expect("a check of that name");
        assert!(decode.ok, "{:?}", decode.findings);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Sqlite;

#[async_trait]
impl Engine for Sqlite {
    async fn fresh(&self) -> Place {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("tidegate.db");
        Place::new(path.to_str().expect("a path of text"), Sealed { path: path.clone(), _directory: directory })
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        open(place.address(), clock)
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

fn open(path: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    Ok(SqliteStore::open(path, Options { clock, ..Options::default() })?)
}

#[test]
fn a_claimer_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let assignment = std::env::var(ASSIGNMENT);
    if let Ok(assignment) = assignment {
        claimer_process(&assignment, |path, clock| async move { open(&path, clock) });
    }
}
