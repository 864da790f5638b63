//! The SQLite engine of Tidegate: a store in one file, shared by any number of processes of one machine.
//!
//! [`SqliteStore`] implements the contract of [`tidegate_core::store`]. Each verb is a file of its name, with its SQL above
//! the function that binds it. Writes go through one thread per process that commits them in groups (`writer.rs`); reads
//! run beside it. What a message becomes is decided by the core alone; `place.rs` maps states to tables and `row.rs` alone
//! decodes rows.
//!
//! Two things only this engine can do: [`SqliteStore::enqueue_in`] enqueues inside a transaction of the application's own,
//! and [`SqliteStore::effect_in`] runs a write into the same file as an effect that happens exactly once.

mod backup;
mod cancel;
mod claim;
mod completion;
mod copied;
mod copier;
mod discard;
mod doctor;
mod edit;
mod enqueue;
mod erase;
mod extend;
mod group;
mod inspect;
mod journal;
mod log;
mod many;
mod migrate;
mod note;
mod open;
mod operate;
mod pause;
mod place;
mod policy;
mod read;
mod redrive;
mod resolve;
mod room;
mod row;
mod seal;
mod settle;
mod statements;
mod stats;
mod sweep;
mod token;
mod trouble;
mod watch;
mod within;
mod writer;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::clock::{Clock, SystemClock};
use tidegate_core::effect::{EffectRow, Reached};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{IdempotencyKey, Kind, LeaseToken, MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::{DEFAULT_MAX_PAYLOAD, NewMessage};
use tidegate_core::migration::Step;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, DEFAULT_RETENTION, Discard,
    Edit, Edited, Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate,
    Operation, Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary, SweepRequest,
    Swept, Verdicts,
};
use tidegate_core::token::TokenRecord;

pub use backup::Copied;
pub use doctor::{Check, Doctor, Finding};
pub use erase::{Also, Erase, TOMBSTONE};
pub use open::Migrate;
pub use room::{Disk, Room, RoomFor};
/// The version of rusqlite whose connections [`SqliteStore::enqueue_in`] and [`SqliteStore::effect_in`] take.
pub use rusqlite;
pub use within::{EffectInError, Work};
pub use writer::GroupStats;
#[cfg(not(feature = "power-loss"))]
use writer::Tuning;
#[cfg(feature = "power-loss")]
#[doc(hidden)]
pub use writer::{Copying, Synchronous, Tuning};

use crate::group::Limits;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the store's time comes from.
    pub clock: Arc<dyn Clock>,
    /// The largest payload, result or effect value, in bytes.
    pub max_payload: usize,
    /// How long answers are kept: an unknown key that is older is `Stale`.
    pub retention: Duration,
    /// Which stores may be changed to the tables of this version.
    pub migrate: Migrate,
    /// Makes the file if it is not there.
    pub create: bool,
    /// How long a file that another process holds is tried again.
    pub busy_timeout: Duration,
    /// Files up to this many bytes are checked page by page, with their indexes, when they are opened. Larger ones would keep
    /// a service from starting for too long: have `tidegate doctor` look at a backup of them.
    pub check_up_to: u64,
    /// How much room is left on the disk.
    pub room: Room,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            max_payload: DEFAULT_MAX_PAYLOAD,
            retention: DEFAULT_RETENTION,
            migrate: Migrate::NewFile,
            create: true,
            busy_timeout: Duration::from_secs(30),
            check_up_to: 8 << 20,
            room: Room::default(),
        }
    }
}

/// A store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    // Dropped first: the last connection to a file tidies up its log, and only a writing one can.
    readers: Arc<read::Readers>,
    writer: writer::Writer,
    path: PathBuf,
    uuid: [u8; 16],
    clock: Arc<dyn Clock>,
    limits: Limits,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes it, and starts its writer thread. Blocks while it reads the file.
    ///
    /// # Errors
    /// `Invalid` when the file is a foreign database, a store of a newer version, or a directory; `Corrupt` when it is no
    /// database or damaged; `Unavailable` when it cannot be written or is held by another process; `NotFound` when it is
    /// not there and may not be made; `Conflict` when it is a store of an older version and may not be migrated now. The
    /// file was not changed then.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>, StoreError> {
        Self::open_with(path.as_ref(), options, Tuning::default())
    }

    /// Opens a store with other sizes of its log, or with less than durable commits. For the power-loss harness, which has to
    /// show that it sees what such a store loses; no feature of the product leads here.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    #[cfg(feature = "power-loss")]
    #[doc(hidden)]
    pub fn open_tuned(path: impl AsRef<Path>, options: Options, tuning: Tuning) -> Result<Arc<Self>, StoreError> {
        Self::open_with(path.as_ref(), options, tuning)
    }

    fn open_with(path: &Path, options: Options, tuning: Tuning) -> Result<Arc<Self>, StoreError> {
        options.room.check()?;
        let opened = open::open(path, &options, tuning.synchronous)?;
        let limits = Limits { max_payload: options.max_payload, retention: options.retention };
        let settings = writer::Settings {
            clock: Arc::clone(&options.clock),
            limits,
            busy_timeout: options.busy_timeout,
            room: options.room,
            tuning,
        };
        let writer = writer::Writer::start(opened.conn, &opened.path, settings)?;
        Ok(Arc::new(Self {
            readers: Arc::new(read::Readers::new(opened.path.clone())),
            writer,
            path: opened.path,
            uuid: opened.uuid,
            clock: options.clock,
            limits,
        }))
    }

    /// Where the file is; absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Enqueues inside a write transaction that the caller began on its own connection to this store's file: the messages
    /// are stored if and only if the caller commits.
    ///
    /// Nobody is told of that commit: a worker finds the messages when it polls next. Busy errors of the transaction are
    /// the caller's to retry. Blocks like any statement of that connection.
    ///
    /// # Errors
    /// `Invalid`, with the statement that helps, when the connection is not in a write transaction (a deferred one that
    /// only read is none), has `synchronous` below `FULL`, or is on another file; `Unavailable` when SQLite fails, with
    /// nothing of this call in the transaction.
    pub fn enqueue_in(
        &self,
        tx: &rusqlite::Connection,
        batch: Vec<NewMessage>,
    ) -> Result<Verdicts<Enqueued>, StoreError> {
        self.writer.shared.check()?;
        within::enqueue_in(tx, &self.uuid, self.clock.now(), self.limits, self.writer.shared.allowance(), batch)
    }

    /// Runs `work` as a transactional effect of a running message: its writes and its confirmation are one commit, under
    /// the lease token. An effect that is confirmed already is answered without running the work again.
    ///
    /// The work runs on the writer's thread, inside the group's transaction: it must be short, and must neither end that
    /// transaction nor change settings of the connection. Its tables live in the store's file; their names should not
    /// begin with `tide_`.
    ///
    /// # Errors
    /// `Store(LeaseLost)` when the token is not current or the lease lapsed; `Store(Conflict)` when the effect may not
    /// happen now; `Work` when the work failed or panicked, with nothing of it stored.
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
        let item = within::EffectIn { id, token, reached, work };
        self.writer
            .call(1, move |group| within::effect_in(group, item))
            .await?
            .inspect(|_| failpoint::reach("transactional.after_commit"))
    }

    /// Copies the store into a new file, beside everybody who uses it. The copy appears under its name when it is complete,
    /// checked and on disk, readable by this user only.
    ///
    /// It is marked as a copy. What this store does after it, the copy cannot know: whoever puts the copy to work in its
    /// place finds each older message with effects that may have happened already, and clears them up by their policies.
    ///
    /// # Errors
    /// `Conflict` when there is a file of that name; `Unavailable` when the copy cannot be written; `Corrupt` when what was
    /// copied is damaged. No file of that name was left then.
    ///
    /// # Cancel safety
    /// Dropped, the copy is made all the same.
    pub async fn backup(&self, target: impl AsRef<Path>) -> Result<Copied, StoreError> {
        self.writer.shared.check()?;
        let (source, target, now) = (self.path.clone(), target.as_ref().to_owned(), self.clock.now());
        let copied = tokio::task::spawn_blocking(move || backup::backup(&source, &target, now)).await;
        copied.unwrap_or_else(|e| Err(StoreError::unavailable(format!("the backup ended: {e}"))))
    }

    /// Replaces the payload of ended messages, and what else is asked for, by a [`TOMBSTONE`]. Key, fingerprint and state
    /// stay: a duplicate still starts no work, and gets its answer unless that was erased as well.
    ///
    /// # Errors
    /// `Invalid` without a reason. The verdicts: `NotFound`; `Conflict` when the message is live, parked, or has an open
    /// effect; `Corrupt`.
    ///
    /// # Cancel safety
    /// Dropped, they may have been erased; erasing them again is harmless.
    pub async fn erase(&self, request: Erase) -> Result<Verdicts<()>, StoreError> {
        self.writer.call(request.ids.len(), move |group| erase::erase(group, &request)).await
    }

    /// Gives a connection of your own the SQL functions with which this engine seals rows: a statement that changes a row by
    /// hand, in a repair or a test, brings the row's seal along with `tide_reseal(seal, place, old, new)`, the place of the
    /// column counted from 0. A row whose seal does not agree is refused as `Corrupt`.
    ///
    /// # Errors
    /// When SQLite refuses them, such as on a connection in the middle of a statement.
    pub fn teach(conn: &rusqlite::Connection) -> rusqlite::Result<()> {
        seal::teach(conn)
    }

    /// Looks the store at `path` over without changing it; services may be using it. Blocks while it reads all of it.
    ///
    /// # Errors
    /// When the file cannot be read at all, as [`SqliteStore::open`].
    pub fn doctor(path: impl AsRef<Path>, doctor: Doctor) -> Result<Vec<Check>, StoreError> {
        doctor::examine(path.as_ref(), doctor)
    }

    /// The names of the doctor's checks.
    pub fn doctor_checks() -> impl Iterator<Item = &'static str> {
        doctor::names()
    }

    /// The steps of this program's tables, and when the file at `path` took each; a file that is not there took none. Blocks
    /// while it reads the file, and does not change it.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], but that an older store is none.
    pub fn steps(path: impl AsRef<Path>) -> Result<Vec<Step>, StoreError> {
        migrate::steps(path.as_ref())
    }

    /// The disk as this store last looked at it, which it does with the writes it makes: `free` is `u64::MAX` before the
    /// first of them, and stays so where nothing is watched.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.writer.shared.disk()
    }

    /// The room that this store was opened with.
    #[must_use]
    pub fn room(&self) -> Room {
        self.writer.room
    }

    /// What this process's writer did since the store was opened.
    #[must_use]
    pub fn group_stats(&self) -> GroupStats {
        self.writer.stats()
    }

    /// Finishes the calls that wait, takes no more, and lets go of the file. Further calls are `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped half-way, the store closes all the same.
    pub async fn close(&self) {
        self.readers.close();
        if let Some(thread) = self.writer.close() {
            // A join blocks; the caller's thread may have other things to do.
            let _joined = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, trouble::Trouble> + Send + 'static,
    {
        self.writer.shared.check()?;
        if self.writer.shared.clock_jumped(&*self.clock) {
            // An empty group has the leases and quarantines put right that this read is going to show.
            self.writer.call(1, |_| Ok(())).await?;
        }
        self.readers.read(read).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        let max_payload = self.limits.max_payload;
        let batch: Vec<_> = batch.into_iter().map(|message| enqueue::Prepared::of(message, max_payload)).collect();
        // The batch comes back: what a caller allocated is given back by the caller, and not on the writer's time.
        self.writer
            .call(batch.len(), move |group| Ok((enqueue::enqueue(group, &batch)?, batch)))
            .await
            .map(|(verdicts, _batch)| verdicts)
            .inspect(|_| failpoint::reach("enqueue.after_commit"))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        self.writer.shared.works();
        let slots = request.queues.iter().map(|queue| queue.slots as usize).sum();
        self.writer
            .call(slots, move |group| claim::claim(group, &request))
            .await
            .inspect(|_| failpoint::reach("claim.after_commit"))
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.writer.call(policies.len(), move |group| policy::declare(group, &policies)).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.writer
            .call(batch.len(), move |group| extend::extend(group, &batch))
            .await
            .inspect(|_| failpoint::reach("extend.after_commit"))
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.writer
            .call(batch.len(), move |group| journal::journal(group, &batch))
            .await
            .inspect(|_| failpoint::reach("journal.after_commit"))
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        let max_payload = self.limits.max_payload;
        let batch: Vec<_> = batch.into_iter().map(|settle| settle::Prepared::of(settle, max_payload)).collect();
        self.writer
            .call(batch.len(), move |group| Ok((settle::settle(group, &batch)?, batch)))
            .await
            .map(|(verdicts, _batch)| verdicts)
            .inspect(|_| failpoint::reach("settle.after_commit"))
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        self.writer
            .call(1, move |group| sweep::sweep(group, &request))
            .await
            .inspect(|_| failpoint::reach("sweep.after_commit"))
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.writer.call(request.ids.len(), move |group| redrive::redrive(group, &request)).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.writer.call(1, move |group| operate::operate(group, &request)).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.read(move |conn| operate::operations(conn, name.as_deref(), limit)).await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.writer.call(1, move |group| edit::edit(group, &request)).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.writer.call(request.ids.len(), move |group| discard::discard(group, &request)).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.writer.call(request.ids.len(), move |group| cancel::cancel(group, &request)).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.writer.call(1, move |group| pause::pause(group, &request)).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.writer.call(1, move |group| resolve::resolve(group, &request)).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.read(move |conn| inspect::inspect(conn, &ids)).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        self.read(move |conn| inspect::find(conn, &tenant, &queue, &key)).await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.read(move |conn| inspect::progress(conn, &ids)).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.read(move |conn| inspect::flow(conn, root)).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.read(move |conn| inspect::list(conn, &filter)).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.read(move |conn| inspect::groups(conn, &filter)).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        let clock = Arc::clone(&self.clock);
        self.read(move |conn| inspect::explain(conn, id, clock.now())).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(move |conn| inspect::audit(conn, after, limit)).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.writer.call(note.messages.len().max(1), move |group| note::note(group, &note)).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.read(token::tokens).await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.writer.call(1, move |group| token::change(group, &request)).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        let clock = Arc::clone(&self.clock);
        self.read(move |conn| stats::stats(conn, clock.now())).await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.writer.listen(listener);
    }
}
