//! The suite that every engine passes, over HTTP: the server's router on SQLite with the clock of the case beneath, and this
//! crate in front of it. Whatever the contract says, a server and a client say together.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate::{Clock, Store, StoreError, Tidegate};
use tidegate_remote::{Options, RemoteStore};
use tidegate_server::Demand;
use tidegate_testkit::engine::contend_in_threads;
use tidegate_testkit::{Claimer, Engine, Place, Taken};

use crate::stage::{InProcess, served, url};

/// A server's store on a file, each handle with a server of its own.
#[derive(Debug)]
struct Remote;

#[async_trait]
impl Engine for Remote {
    async fn fresh(&self) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate.db");
        Place::new(path.to_str().unwrap(), directory)
    }

    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
        open(place.address(), clock).await
    }

    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>> {
        let mut handles = Vec::new();
        for claimer in claimers {
            let clock = Arc::new(tidegate::SystemClock::new());
            handles.push((claimer, open(place.address(), clock).await.unwrap()));
        }
        contend_in_threads(handles)
    }
}

async fn open(path: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError> {
    // A case sweeps when it wants to.
    let tide = Tidegate::builder().clock(clock).housekeeping(false).open(path).await?;
    let mut options = Options::default();
    options.reveal = true;
    Ok(Arc::new(RemoteStore::over(Arc::new(InProcess(served(&tide, Demand::Never))), &url(), options)?))
}

tidegate_testkit::conformance!(Remote);
