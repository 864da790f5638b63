//! What a run does to the server that its store is on: ends connections, between a COMMIT and its answer if it can, and
//! restarts it when it is a throw-away one of the run's own.
//!
//! A commit that has happened and whose answer never comes is the hardest thing that a server can do to a client. On a
//! server of ours it is made to happen: commits are told to wait for a standby that there is not, which they do after
//! they are on disk, and there the connection is ended. On a server of somebody else's one looks for a commit that is
//! under way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use deposits::{clock, schema};
use tidegate::postgres::tokio_postgres::Client;
use tidegate::{Address, Server, postgres};
use tidegate_pgcluster::{Cluster, Settings};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::plan::Possible;

/// How long a commit is looked for. A service that is up extends its leases, claims and settles all the time.
const COMMITS_WITHIN: Duration = Duration::from_secs(3);
/// In this time the server has done what a stopped service had sent it.
const SENT_IS_OVER: Duration = Duration::from_millis(100);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a server may be away for whoever needs it.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Where the store of a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// In a file in the run's directory.
    #[default]
    File,
    /// On a server that somebody else looks after: in a schema of its own there, and nothing is restarted.
    Server(Server),
    /// On a server that is made for the run and goes with it.
    ThrowAway,
}

/// The server of a run.
#[derive(Debug)]
pub(crate) struct Database {
    server: Server,
    cluster: Option<Arc<Cluster>>,
    /// One thing at a time is done to it.
    gate: Mutex<()>,
}

/// What came of ending the connections of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminated {
    /// It committed, and its answer will never come.
    InCommit,
    /// Somewhere.
    Somewhere,
    /// It had none.
    Nothing,
}

impl Database {
    /// The server of a run, made if that is asked for; none for a file. `name` becomes the store's schema, unless the address
    /// names one.
    pub(crate) async fn of(store: &Store, directory: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        let (server, cluster) = match store {
            Store::File => return Ok(None),
            Store::Server(server) => (server.clone(), None),
            Store::ThrowAway => {
                // PostgreSQL runs as another user when this is root, who may not enter the run's directory.
                let within = (!nix::unistd::geteuid().is_root()).then(|| directory.to_owned());
                let settings = Settings { within, ..Settings::default() };
                let started = tokio::task::spawn_blocking(move || Cluster::start(settings)).await;
                let cluster = started.context("the start of the server died")?.map_err(|e| anyhow!("{e}"))?;
                let Address::Server(server) = Address::of(&cluster.url())? else {
                    anyhow::bail!("a cluster has no address of a server");
                };
                (server, Some(Arc::new(cluster)))
            }
        };
        let database = Self { server: server.with("schema", name), cluster, gate: Mutex::default() };
        schema::is_unused(&database.server).await?;
        Ok(Some(database))
    }

    pub(crate) fn possible(&self) -> Possible {
        Possible { terminations: true, restarts: self.cluster.is_some() }
    }

    /// It was made for the run.
    pub(crate) fn is_ours(&self) -> bool {
        self.cluster.is_some()
    }

    /// The address of the store.
    pub(crate) fn address(&self) -> Address {
        Address::Server(self.server.clone())
    }

    /// The address of the store for a service of this name, by which its connections are known.
    pub(crate) fn address_for(&self, name: &str) -> Address {
        Address::Server(self.server.clone().with("application_name", name))
    }

    pub(crate) fn schema(&self) -> &str {
        self.server.parameter("schema").unwrap_or("tidegate")
    }

    /// Takes away what the run made on a server that stays.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        if self.cluster.is_some() {
            return Ok(());
        }
        schema::remove(&self.server).await
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let started = clock::now();
        loop {
            match postgres::connect(self.server.reveal()).await {
                Ok(client) => return Ok(client),
                Err(error) if clock::now().saturating_duration_since(started) > BACK_WITHIN => {
                    return Err(error).with_context(|| format!("cannot connect to {}", self.server));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Waits until nothing else is done to the server. What is done to it is done under this.
    pub(crate) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// Ends the connections of a service.
    pub(crate) async fn terminate(&self, name: &str, in_commit: bool) -> anyhow::Result<Terminated> {
        let client = self.connect().await?;
        if in_commit {
            let hit =
                if self.cluster.is_some() { hold_commits(&client, name).await? } else { catch(&client, name).await? };
            if hit {
                return Ok(Terminated::InCommit);
            }
        }
        const ALL: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = $1";
        let ended: i64 = client.query_one(ALL, &[&name]).await.context("cannot end a connection")?.get(0);
        Ok(if ended > 0 { Terminated::Somewhere } else { Terminated::Nothing })
    }

    /// Whether a service that was just stopped is inside a transaction, and so may hold rows: what it had sent is over by
    /// now, and the server waits for more; or its last statement waits for somebody else, and what it locked before stays locked.
    pub(crate) async fn in_transaction(&self, name: &str) -> anyhow::Result<bool> {
        const OPEN: &str = "select exists (select 1 from pg_stat_activity
            where application_name = $1 and xact_start is not null)";
        let started = clock::now();
        loop {
            let client = self.connect().await?;
            sleep(SENT_IS_OVER).await;
            match client.query_one(OPEN, &[&name]).await {
                Ok(row) => return Ok(row.get(0)),
                // A restart ended this connection as well as whatever transaction there was: looked at once more, it is gone.
                Err(_) if clock::now().saturating_duration_since(started) < BACK_WITHIN => {}
                Err(error) => return Err(error).context("cannot look at the transactions"),
            }
        }
    }

    /// Restarts the server as if it had crashed.
    pub(crate) async fn restart(&self) -> anyhow::Result<()> {
        let Some(cluster) = self.cluster.clone() else { return Ok(()) };
        let restarted = tokio::task::spawn_blocking(move || cluster.restart_immediately()).await;
        restarted.context("the restart of the server died")?.map_err(|e| anyhow!("{e}"))
    }
}

/// Has the next commit of a service wait behind its disk, and ends the connection there.
async fn hold_commits(client: &Client, name: &str) -> anyhow::Result<bool> {
    const WAITING: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = $1 and wait_event = 'SyncRep'";
    const RELOAD: &str = "select pg_reload_conf()";
    const HELD: &str = "select exists (select 1 from pg_stat_activity where wait_event = 'SyncRep')";
    client.batch_execute("alter system set synchronous_standby_names = 'no_such_standby'").await?;
    client.batch_execute(RELOAD).await?;
    let started = clock::now();
    let mut hit = 0_i64;
    while hit == 0 && clock::now().saturating_duration_since(started) < COMMITS_WITHIN {
        hit = client.query_one(WAITING, &[&name]).await.context("cannot look for a commit")?.get(0);
        sleep(LOOK_EVERY).await;
    }
    // Whatever came of it: everybody else waits as well.
    client.batch_execute("alter system reset synchronous_standby_names").await?;
    client.batch_execute(RELOAD).await?;
    // They are let go by the checkpointer when it reads its settings: until then nobody can commit, or take anything over.
    let told = clock::now();
    while clock::now().saturating_duration_since(told) < BACK_WITHIN {
        let held: bool = client.query_one(HELD, &[]).await.context("cannot look for a commit")?.get(0);
        if !held {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(hit > 0)
}

/// Looks for a commit of a service that is under way, and ends the connection if there is one at that moment.
async fn catch(client: &Client, name: &str) -> anyhow::Result<bool> {
    const COMMITTING: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where application_name = $1 and state = 'active' and query ilike 'commit%'";
    let started = clock::now();
    while clock::now().saturating_duration_since(started) < COMMITS_WITHIN {
        let hit: i64 = client.query_one(COMMITTING, &[&name]).await.context("cannot look for a commit")?.get(0);
        if hit > 0 {
            return Ok(true);
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(false)
}
