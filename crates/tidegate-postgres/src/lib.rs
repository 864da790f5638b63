//! The PostgreSQL engine of Tidegate: one store for any number of processes on any number of machines.
//!
//! [`PostgresStore`] implements the contract of [`tidegate_core::store`]. Each verb is a file of its name, with its SQL above
//! the function that binds it, as in the SQLite engine. A verb locks the rows it decides about, reads them, lets the core
//! decide and writes what it decided, all in one transaction (`group.rs`, `writes.rs`); transactions are shared by calls
//! (`writer.rs`). `place.rs` maps states to tables and `row.rs` alone decodes rows.

mod cancel;
mod claim;
mod conn;
mod copied;
mod copy;
mod discard;
mod doctor;
mod edit;
mod enqueue;
mod enqueue_in;
mod erase;
mod extend;
mod fold;
mod group;
mod inspect;
mod journal;
mod list;
mod listen;
mod migrate;
mod names;
mod note;
mod open;
mod operate;
mod pause;
mod place;
mod policy;
mod read;
mod redrive;
mod resolve;
mod row;
mod settle;
mod shared;
mod stats;
mod sweep;
mod token;
mod trouble;
mod watch;
mod within;
mod writer;
mod writes;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::clock::Clock;
use tidegate_core::doctor::Check;
use tidegate_core::effect::{EffectRow, Reached};
use tidegate_core::erase::Erase;
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{IdempotencyKey, Kind, LeaseToken, MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::{DEFAULT_MAX_PAYLOAD, NewMessage};
use tidegate_core::migration::Step;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    Act, AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, DEFAULT_RETENTION,
    Discard, Edit, Edited, Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note,
    Operate, Operation, Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary,
    SweepRequest, Swept, Verdicts,
};
use tidegate_core::token::TokenRecord;

pub use conn::Statements;
pub use copied::Restored;
pub use enqueue_in::EnqueueSql;
pub use migrate::{Migrate, migration_sql};
pub use open::{connect, schema_of};
pub use shared::GroupStats;
/// The version of sqlx whose transactions this engine takes.
#[cfg(feature = "sqlx")]
pub use sqlx;
/// The version of tokio-postgres whose connections and transactions this engine takes.
pub use tokio_postgres;
pub use within::{EffectInError, Work, WorkError, Working};

use crate::read::Snapshot;
use crate::writer::{CLOSING, Engine, Hot, Writer};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the store's time comes from; from the server when there is none.
    pub clock: Option<Arc<dyn Clock>>,
    /// The largest payload, result or effect value, in bytes.
    pub max_payload: usize,
    /// How long answers are kept: an unknown key that is older is `Stale`.
    pub retention: Duration,
    /// Which stores may be changed to the tables of this version.
    pub migrate: Migrate,
    /// The schema of the tables, unless the URL says `schema=…`.
    pub schema: String,
    /// The most connections of this process.
    pub pool_size: usize,
    /// How many groups are carried out at a time, each on a connection of its own.
    pub writers: usize,
    /// How statements are sent, unless the URL says `statements=…`.
    pub statements: Statements,
    /// Opens a store on a server that can lose what it acknowledged (`fsync` or `full_page_writes` off).
    pub allow_unsafe: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: None,
            max_payload: DEFAULT_MAX_PAYLOAD,
            retention: DEFAULT_RETENTION,
            migrate: Migrate::NewStore,
            schema: "tidegate".to_owned(),
            pool_size: 8,
            writers: 2,
            statements: Statements::Prepared,
            allow_unsafe: false,
        }
    }
}

/// A store in one schema of a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresStore {
    writer: Writer,
}

impl PostgresStore {
    /// Connects to the database of `url`, makes the tables if there are none, and starts the store's thread.
    ///
    /// `postgres://user:password@host:5432/database`, with these parameters beside the driver's own: `schema`,
    /// `statements=unnamed` behind a proxy that pools transactions, `pool_size` for the most connections of this process,
    /// `sslrootcert` for a certificate authority of your own.
    /// With `sslmode=require` (and `prefer`, where the server offers TLS) the server's certificate is checked.
    ///
    /// # Errors
    /// `Invalid` when the URL or the schema's name cannot be read, the server is older than 14 or not in UTF-8, or the
    /// tables are those of a newer version; `Unavailable` when the server cannot be reached, is a standby, or may lose
    /// what it acknowledged; `NotFound` and `Conflict` when tables would have to be made or migrated and may not be.
    ///
    /// # Cancel safety
    /// Dropped, the tables may have been made all the same.
    pub async fn open(url: &str, options: Options) -> Result<Arc<Self>, StoreError> {
        let (shared, line) = open::prepare(url, &options)?;
        let engine = Engine::start()?;
        let writers = options.writers;
        Engine::run(&engine.handle, open::open(Arc::clone(&shared), options)).await?;
        engine.handle.spawn(listen::serve(line, Arc::clone(&shared.messenger), Arc::downgrade(&shared)));
        Ok(Arc::new(Self { writer: Writer::start(engine, shared, writers) }))
    }

    /// The steps of this program's tables, and which of them the store at `url` has.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn migrations(url: &str, options: Options) -> Result<Vec<Step>, StoreError> {
        let (shared, _) = open::prepare(url, &options)?;
        let engine = Engine::start()?;
        Engine::run(&engine.handle, async move {
            let conn = shared.connect().await.map_err(|none| none.error)?;
            migrate::status(&conn).await.map_err(trouble::Trouble::into_store_error)
        })
        .await
    }

    /// Says that this store was restored from a copy of the cluster's files or a snapshot of its disk, and that the original
    /// may have gone on: what runs is given back, and the first run of each older message clears its effects up as if they
    /// had been sent. Say it before workers start.
    ///
    /// A store that was recovered to some moment, promoted, dumped and restored, or moved to another cluster is recognised
    /// without it. Saying it twice is harmless.
    ///
    /// # Errors
    /// `Invalid` without a reason; `Unavailable` when the database fails.
    ///
    /// # Cancel safety
    /// Dropped, it may have been done.
    pub async fn restored(&self, act: Act) -> Result<Restored, StoreError> {
        self.writer.alone(act, |group, act| Box::pin(copied::declare(group, act))).await
    }

    /// Runs `work` as a transactional effect of a running message: its writes and its confirmation are one commit, under
    /// the lease token. An effect that is confirmed already is answered without running the work again.
    ///
    /// The work gets a transaction on a connection of the store's own pool, in which the lease cannot be taken over: it
    /// must be short, must neither end that transaction nor leave settings on the connection, and runs on the store's
    /// thread. Other calls of the process go on meanwhile.
    ///
    /// # Errors
    /// `Store(LeaseLost)` when the token is not current or the lease lapsed; `Store(Conflict)` when the effect may not
    /// happen now; `Store(Unavailable)` when the database failed, or did not answer the commit; `Work` when the work failed
    /// or panicked, with nothing of it stored.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo it; the effect replays its value when it is reached again.
    pub async fn effect_in(
        &self,
        id: MessageId,
        token: LeaseToken,
        reached: Reached,
        work: Work,
    ) -> Result<Arc<str>, EffectInError> {
        self.writer.shared.check()?;
        let item = within::EffectIn { id, token, reached, work };
        let shared = Arc::clone(&self.writer.shared);
        let done = self.writer.run(async move { Ok(within::effect_in(&shared, item).await) }).await?;
        if done.as_ref().is_err_and(within::is_late) {
            self.writer
                .alone(id, |group, id| Box::pin(async move { extend::lost(group, *id).await.map(|_| ()) }))
                .await?;
        }
        done.inspect(|_| failpoint::reach("transactional.after_commit"))
    }

    /// Looks the store at `url` over, without changing it: the server's settings, and what the rows promise one another.
    /// Reads all of it in one snapshot, beside everybody who uses it.
    ///
    /// # Errors
    /// `Invalid` when the URL or the schema's name cannot be read; `Unavailable` when the server cannot be reached. What is
    /// wrong with the store is no error but a finding.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn doctor(url: &str, options: Options) -> Result<Vec<Check>, StoreError> {
        let (shared, _) = open::prepare(url, &options)?;
        let engine = Engine::start()?;
        Engine::run(&engine.handle, async move {
            read::read(&shared, &(), &|snapshot: &Snapshot, ()| Box::pin(doctor::examine(snapshot))).await
        })
        .await
    }

    /// The names of the checks that [`PostgresStore::doctor`] makes.
    pub fn doctor_checks() -> impl Iterator<Item = &'static str> {
        doctor::names()
    }

    /// Replaces the payload of ended messages, and what else is asked for, by a
    /// [`TOMBSTONE`](tidegate_core::erase::TOMBSTONE). Key, fingerprint and state
    /// stay: a duplicate still starts no work, and gets its answer unless that was erased as well.
    ///
    /// # Errors
    /// `Invalid` without a reason. The verdicts: `NotFound`; `Conflict` when the message is live, parked, or has an open
    /// effect; `Corrupt`.
    ///
    /// # Cancel safety
    /// Dropped, they may have been erased; erasing them again is harmless.
    pub async fn erase(&self, request: Erase) -> Result<Verdicts<()>, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(erase::erase(group, request))).await
    }

    /// The schema of the store's tables.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.writer.shared.texts.schema()
    }

    /// What this process's writers did since the store was opened.
    #[must_use]
    pub fn group_stats(&self) -> GroupStats {
        self.writer.shared.stats()
    }

    /// Messages as a statement for a transaction of the caller's own, with whatever driver that has. What is refused before
    /// anything is sent keeps its place among the verdicts.
    #[must_use]
    pub fn enqueue_sql(&self, batch: Vec<NewMessage>) -> EnqueueSql {
        EnqueueSql::of(batch, &self.writer.shared)
    }

    /// Enqueues in a transaction that the caller began: stored when that commits, and never there when it rolls back.
    ///
    /// Workers find such a message when they next look, at most their poll later: nobody is told of a commit that is not
    /// the store's. A verdict that is an error leaves the transaction as it was.
    ///
    /// # Errors
    /// `Invalid` when the connection is on another store; nothing was enqueued. `Unavailable` when the statement failed, as
    /// with another transaction that holds the key: the transaction is over, and repeating it is safe. The verdicts as
    /// [`Store::enqueue`].
    ///
    /// # Cancel safety
    /// Dropped, the messages may be in the transaction all the same: roll it back.
    pub async fn enqueue_in(
        &self,
        transaction: &tokio_postgres::Transaction<'_>,
        batch: Vec<NewMessage>,
    ) -> Result<Verdicts<Enqueued>, StoreError> {
        self.enqueue_sql(batch).send(transaction).await
    }

    /// The same in a transaction of sqlx.
    ///
    /// ```
    /// # async fn pay(store: &tidegate_postgres::PostgresStore, pool: &sqlx::PgPool, message: tidegate_core::message::NewMessage)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// let mut transaction = pool.begin().await?;
    /// sqlx::query("insert into orders (id) values (7)").execute(&mut *transaction).await?;
    /// store.enqueue_in_sqlx(&mut transaction, vec![message]).await?.remove(0)?;
    /// transaction.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`PostgresStore::enqueue_in`].
    ///
    /// # Cancel safety
    /// Dropped, the messages may be in the transaction all the same: roll it back.
    #[cfg(feature = "sqlx")]
    pub async fn enqueue_in_sqlx(
        &self,
        transaction: &mut sqlx::Transaction<'_, sqlx::Postgres>,
        batch: Vec<NewMessage>,
    ) -> Result<Verdicts<Enqueued>, StoreError> {
        self.enqueue_sql(batch).send_sqlx(transaction).await
    }

    /// Finishes the calls that wait, takes no more, and closes the connections. Further calls are `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped half-way, the store closes all the same.
    pub async fn close(&self) {
        let thread = self.writer.close();
        let shared = Arc::clone(&self.writer.shared);
        // The writers end when nothing waits any more, and give their connections back.
        let _closed = self
            .writer
            .run(async move {
                let idle = async {
                    while shared.pool.status().available < shared.pool.status().size {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                let _in_time = tokio::time::timeout(CLOSING, idle).await;
                shared.pool.close();
                Ok(())
            })
            .await;
        self.writer.stop();
        if let Some(thread) = thread {
            // A join blocks, but this thread has nothing left to do.
            let _joined = thread.join();
        }
    }

    async fn read<R, T, F>(&self, request: R, read: F) -> Result<T, StoreError>
    where
        R: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'a> Fn(&'a Snapshot, &'a R) -> group::Doing<'a, T> + Send + Sync + 'static,
    {
        self.writer.shared.check()?;
        if watch::jumped(&self.writer.shared) {
            // An empty group has the leases and quarantines put right that this read is going to show.
            self.writer.alone((), |_, ()| Box::pin(async { Ok(()) })).await?;
        }
        let shared = Arc::clone(&self.writer.shared);
        self.writer.run(async move { read::read(&shared, &request, &read).await }).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        let max_payload = self.writer.shared.limits.max_payload;
        let batch: Vec<_> = batch.into_iter().map(|message| enqueue::Prepared::of(message, max_payload)).collect();
        self.writer.hot(Hot::Enqueue, batch).await.inspect(|_| failpoint::reach("enqueue.after_commit"))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        let mut verdicts = self.writer.hot(Hot::Claim, vec![request]).await?;
        let claimed = verdicts.pop().unwrap_or_else(|| Ok(Claimed::default()));
        claimed.inspect(|_| failpoint::reach("claim.after_commit"))
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.writer.alone(policies, |group, policies| Box::pin(policy::declare(group, policies))).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.writer.hot(Hot::Extend, batch).await.inspect(|_| failpoint::reach("extend.after_commit"))
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.writer.hot(Hot::Journal, batch).await.inspect(|_| failpoint::reach("journal.after_commit"))
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        let max_payload = self.writer.shared.limits.max_payload;
        let batch: Vec<_> = batch.into_iter().map(|settle| settle::Prepared::of(settle, max_payload)).collect();
        self.writer.hot(Hot::Settle, batch).await.inspect(|_| failpoint::reach("settle.after_commit"))
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        // A sweep that waited for the server would find leases lapsed that nobody could extend meanwhile: whoever asked for
        // it has to know that the store was away.
        self.writer
            .alone_within(Duration::ZERO, request, |group, request| Box::pin(sweep::sweep(group, request)))
            .await
            .inspect(|_| failpoint::reach("sweep.after_commit"))
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(redrive::redrive(group, request))).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(operate::operate(group, request))).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.read((name, limit), |snapshot, (name, limit)| {
            Box::pin(operate::operations(snapshot, name.as_deref(), *limit))
        })
        .await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(edit::edit(group, request))).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(discard::discard(group, request))).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(cancel::cancel(group, request))).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.writer.alone(request, |group, request| Box::pin(pause::pause(group, request))).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(resolve::resolve(group, request))).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.read(ids, |snapshot, ids| Box::pin(inspect::inspect(snapshot, ids))).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        self.read((tenant, queue, key), |snapshot, (tenant, queue, key)| {
            Box::pin(inspect::find(snapshot, tenant, queue, key))
        })
        .await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.read(ids, |snapshot, ids| Box::pin(inspect::progress(snapshot, ids))).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.read(root, |snapshot, root| Box::pin(list::flow(snapshot, *root))).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.read(filter, |snapshot, filter| Box::pin(list::list(snapshot, filter))).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.read(filter, |snapshot, filter| Box::pin(list::groups(snapshot, filter))).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        self.read(id, |snapshot, id| Box::pin(inspect::explain(snapshot, *id))).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.read((after, limit), |snapshot, (after, limit)| Box::pin(inspect::audit(snapshot, *after, *limit))).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.writer.alone(note, |group, note| Box::pin(note::note(group, note))).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.read((), |snapshot, ()| Box::pin(token::tokens(snapshot))).await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.writer.alone(request, |group, request| Box::pin(token::change(group, request))).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.read((), |snapshot, ()| Box::pin(stats::stats(snapshot))).await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.writer.shared.listen(listener);
    }
}
