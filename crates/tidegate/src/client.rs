//! The way into a store for an application: open it, enqueue, wait, operate, start workers.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tidegate_core::clock::{Clock, Random, SystemClock, SystemRandom};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::NewMessage;
use tidegate_core::store::{
    Act, Cancel, ChangeQueue, CommitListener, DEFAULT_RETENTION, Enqueued, Progress, QueueChange, Redrive, Resolve,
    Resolved, Store, Verdicts,
};
use tokio::sync::RwLock;
use tracing::Instrument as _;

use crate::address::Address;
use crate::answer::{Flow, Sent};
use crate::engine::{Engine, Opening};
use crate::handler::Message;
use crate::instrumented::Instrumented;
use crate::maintenance::{self, Housekeeping, Maintenance};
use crate::news::{Newsroom, Wakeups};
use crate::options::Options;
use crate::payload;
use crate::process::Host;
use crate::telemetry::Metrics;
use crate::trace;
use crate::waiter;
use crate::worker::WorkerBuilder;

/// How long a lease holds unless a worker or the builder says otherwise.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);
/// The most messages that one call hands to the store at once.
const ENQUEUE_CHUNK: usize = 1000;

/// An open store, with its housekeeping. Cheap to clone; what it started ends when the last clone is dropped.
#[derive(Clone)]
pub struct Tidegate(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: Arc<Metrics>,
    news: Arc<Newsroom>,
    alone: Arc<RwLock<()>>,
    lease: Duration,
    max_payload: usize,
    host: Host,
    engine: Engine,
    /// Its drop ends the thread.
    maintenance: Mutex<Option<Maintenance>>,
}

impl Tidegate {
    /// Opens the store at `path`, creating it if it is not there, and starts housekeeping: an SQLite file, or
    /// `postgres://user@host/database`, if the engine for it is built in (the features `sqlite` and `postgres`).
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened or written, or another process holds it, or when the server cannot be
    /// reached; `Corrupt` when it is damaged; `Invalid` when it is another program's database or was written by a newer
    /// Tidegate, or when its engine is not built in. A file that is refused is left as it was.
    ///
    /// # Cancel safety
    /// Dropped, the store may have been created.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder().open(path).await
    }

    /// Opens a store otherwise than by default.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The store, for everything this type has no method for.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// The SQLite engine, if that is what was opened: enqueue in your own transaction, effects in the same file.
    #[cfg(feature = "sqlite")]
    #[must_use]
    pub fn sqlite(&self) -> Option<&Arc<tidegate_sqlite::SqliteStore>> {
        match &self.0.engine {
            Engine::Sqlite(store) => Some(store),
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => None,
            Engine::Other(_) => None,
        }
    }

    /// The PostgreSQL engine, if that is what was opened: enqueue in your own transaction, effects in the same database.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn postgres(&self) -> Option<&Arc<tidegate_postgres::PostgresStore>> {
        match &self.0.engine {
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => None,
            Engine::Postgres(store) => Some(store),
            Engine::Other(_) => None,
        }
    }

    /// What keeps the store, for what only an engine can do.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Begins a worker.
    pub fn worker(&self) -> WorkerBuilder {
        WorkerBuilder::new(self.clone())
    }

    /// Stores a message; it is durable when this returns. Under a known key nothing new begins: see [`Sent::is_new`]. A
    /// message that is known in an older version of its payload is compared as [`Message::upcast`] leads it to this one.
    ///
    /// # Errors
    /// `KeyConflict` (the key is known with another payload), `QueueFull` (with a retry-after), `Invalid`, `Conflict` (the
    /// key is older than the retention and unknown): nothing was stored. `Unavailable`: nobody knows; enqueue it again.
    ///
    /// # Cancel safety
    /// Dropped, the message may have been stored all the same. Enqueue it again under the same key: one message results.
    pub async fn enqueue<M: Message>(&self, message: M) -> Result<Sent<M>, StoreError> {
        self.enqueue_with(message, Options::default()).await
    }

    /// Stores a message with options.
    ///
    /// # Errors
    /// As [`Tidegate::enqueue`].
    ///
    /// # Cancel safety
    /// As [`Tidegate::enqueue`].
    pub async fn enqueue_with<M: Message>(&self, message: M, options: Options) -> Result<Sent<M>, StoreError> {
        let mut prepared = options.prepare(&message, self.0.random.as_ref())?;
        let span = trace::enqueue(&mut prepared);
        let mut verdicts = self.store_all::<M>(vec![prepared]).instrument(span.clone()).await?;
        failpoint::reach("client.after_enqueue");
        let verdict = verdicts.pop().unwrap_or_else(|| Err(StoreError::unavailable("the store gave no verdict")));
        trace::enqueued(&span, &verdict);
        self.verdict(verdict?)
    }

    /// Stores many messages in few commits, with a verdict for each.
    ///
    /// # Errors
    /// `Unavailable` for the whole call: nobody knows which are stored; enqueue them again. The verdicts as
    /// [`Tidegate::enqueue`].
    ///
    /// # Cancel safety
    /// As [`Tidegate::enqueue`].
    pub async fn enqueue_all<M: Message>(
        &self,
        messages: impl IntoIterator<Item = M> + Send,
    ) -> Result<Verdicts<Sent<M>>, StoreError> {
        let options = Options::default();
        let names = options.names::<M>();
        let prepare = |message: M| options.prepare_under(&message, names.clone()?, self.0.random.as_ref());
        let prepared: Vec<_> = messages.into_iter().map(prepare).collect();
        let mut sent = Vec::with_capacity(prepared.len());
        let mut prepared = prepared.into_iter().peekable();
        while prepared.peek().is_some() {
            let (mut good, mut places) = (Vec::new(), Vec::new());
            for prepared in prepared.by_ref().take(ENQUEUE_CHUNK) {
                places.push(prepared.map(|mut message| {
                    let span = trace::enqueue(&mut message);
                    good.push(message);
                    span
                }));
            }
            let mut verdicts = self.store_all::<M>(good).await?.into_iter();
            failpoint::reach("client.after_enqueue");
            let no_verdict = || Err(StoreError::unavailable("the store gave no verdict"));
            sent.extend(places.into_iter().map(|place| {
                let span = place?;
                let verdict = verdicts.next().unwrap_or_else(no_verdict);
                trace::enqueued(&span, &verdict);
                verdict.and_then(|enqueued| self.verdict(enqueued))
            }));
        }
        Ok(sent)
    }

    /// Stores messages of one type. A key that is known with a payload of an older version is no conflict if that payload,
    /// up-cast, asks for the same.
    async fn store_all<M: Message>(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        failpoint::reach("client.before_enqueue");
        if M::VERSION == 1 {
            return self.0.store.enqueue(batch).await;
        }
        let mut verdicts = self.0.store.enqueue(batch.clone()).await?;
        let conflicting = |verdict: &Result<Enqueued, StoreError>| verdict.as_ref().err()?.conflicting_id();
        let (places, known): (Vec<usize>, Vec<MessageId>) =
            verdicts.iter().enumerate().filter_map(|(place, verdict)| Some((place, conflicting(verdict)?))).unzip();
        if known.is_empty() {
            return Ok(verdicts);
        }
        let known = self.0.store.inspect(known).await?;
        let (places, again): (Vec<usize>, Vec<NewMessage>) = (places.into_iter().zip(known))
            .filter_map(|(place, view)| Some((place, payload::as_known::<M>(&batch[place], &view?.message)?)))
            .unzip();
        // The store is asked again in the words it knows, so that it is the store that says what the key means. Its first
        // answer stays counted as a key conflict.
        for (place, verdict) in places.into_iter().zip(self.0.store.enqueue(again).await?) {
            verdicts[place] = verdict;
        }
        Ok(verdicts)
    }

    /// The message as a store takes it: for the engine's own `enqueue_in`, inside the caller's transaction.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn prepare<M: Message>(&self, message: &M, options: &Options) -> Result<NewMessage, StoreError> {
        let mut prepared = options.prepare(message, self.0.random.as_ref())?;
        // The transaction is the caller's, and so is what it takes; the message is marked all the same.
        drop(trace::enqueue(&mut prepared));
        Ok(prepared)
    }

    fn verdict<M: Message>(&self, enqueued: Enqueued) -> Result<Sent<M>, StoreError> {
        let id = match &enqueued {
            Enqueued::New { id } | Enqueued::Existing { id, .. } | Enqueued::Replayed { id, .. } => *id,
            Enqueued::Stale => {
                let what = "the key is unknown and older than the retention: it may have been done and forgotten";
                return Err(StoreError::conflict(what)
                    .hint("find out whether it took effect; if it did not, enqueue it under a new key"));
            }
        };
        Ok(Sent::new(self.clone(), id, Some(enqueued)))
    }

    /// A handle on a message that was enqueued before, perhaps by another process.
    #[must_use]
    pub fn sent<M: Message>(&self, id: MessageId) -> Sent<M> {
        Sent::new(self.clone(), id, None)
    }

    /// Waits until the message has ended or is parked; when the time is up, says where it stands. Cancels nothing.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn wait(&self, id: MessageId, timeout: Duration) -> Result<Progress, StoreError> {
        let ended = self.0.news.waiter.watch(id);
        match tokio::time::timeout(timeout, ended).await {
            Ok(Ok(answered)) => answered,
            // The time is up, or the one who looks is gone: look ourselves.
            Ok(Err(_)) | Err(_) => {
                let mut found = self.0.store.progress(vec![id]).await?;
                found.pop().flatten().ok_or_else(|| StoreError::not_found(id))
            }
        }
    }

    /// The message and all that followed from it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn flow(&self, root: MessageId) -> Result<Flow, StoreError> {
        let messages = self.0.store.flow(root).await?;
        if messages.is_empty() { Err(StoreError::not_found(root)) } else { Ok(Flow { messages }) }
    }

    /// Waits until nothing of the flow is ready or leased any more; when the time is up, says where it stands. Cancels
    /// nothing.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn wait_flow(&self, root: MessageId, timeout: Duration) -> Result<Flow, StoreError> {
        let give_up = tokio::time::sleep(timeout);
        tokio::pin!(give_up);
        loop {
            // Asked for before the look, so that an end between the two is not missed.
            let any_end = self.0.news.waiter.any_end.notified();
            let flow = self.flow(root).await?;
            if !flow.is_live() {
                return Ok(flow);
            }
            tokio::select! {
                biased;
                () = &mut give_up => return Ok(flow),
                () = any_end => {}
                () = tokio::time::sleep(waiter::POLL) => {}
            }
        }
    }

    /// Calls a message off that has not taken effect. Asked for again it is answered as before, and changes nothing.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` with the reason, `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped, it may have been called off.
    pub async fn cancel(&self, id: MessageId, act: Act) -> Result<Cancellation, StoreError> {
        let mut verdicts = self.0.store.cancel(Cancel { ids: vec![id], release_key: false, act }).await?;
        verdicts.pop().unwrap_or_else(|| Err(StoreError::not_found(id)))
    }

    /// Stops claims from a queue, in all processes, until it is resumed.
    ///
    /// # Errors
    /// `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped, it may have been paused.
    pub async fn pause(&self, queue: &QueueName, act: Act) -> Result<(), StoreError> {
        self.change(queue, QueueChange::Pause, act).await
    }

    /// Allows claims from a queue again.
    ///
    /// # Errors
    /// `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped, it may have been resumed.
    pub async fn resume(&self, queue: &QueueName, act: Act) -> Result<(), StoreError> {
        self.change(queue, QueueChange::Resume, act).await
    }

    /// Bounds the ready, scheduled and leased messages of a queue; above it, enqueue answers `QueueFull`.
    ///
    /// # Errors
    /// `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped, the limit may have been set.
    pub async fn limit(&self, queue: &QueueName, most: Option<u64>, act: Act) -> Result<(), StoreError> {
        self.change(queue, QueueChange::Limit(most), act).await
    }

    async fn change(&self, queue: &QueueName, change: QueueChange, act: Act) -> Result<(), StoreError> {
        self.0.store.pause(ChangeQueue { tenant: Tenant::default(), queue: queue.clone(), change, act }).await
    }

    /// Says what became of a parked message's open effect; fit for a gateway's webhook, because repeating it is harmless.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    ///
    /// # Cancel safety
    /// Dropped, it may have been resolved; resolve it again alike.
    pub async fn resolve(&self, resolve: Resolve) -> Result<Resolved, StoreError> {
        self.0.store.resolve(resolve).await
    }

    /// Puts ended messages back to ready.
    ///
    /// # Errors
    /// As [`Store::redrive`].
    ///
    /// # Cancel safety
    /// Dropped, some may have been redriven; redrive them again under the same operation id.
    pub async fn redrive(&self, redrive: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.0.store.redrive(redrive).await
    }

    /// Everything that is measured.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The metrics in the OpenMetrics text format, with depths and counters as they stand in the store now.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn metrics_text(&self) -> Result<String, StoreError> {
        let stats = self.0.store.stats().await?;
        #[cfg(feature = "sqlite")]
        if let Some(disk) = self.sqlite().map(|sqlite| sqlite.disk()).filter(|disk| disk.free < u64::MAX) {
            self.0.metrics.disk(disk.free, disk.reserve, disk.room_for.as_str());
        }
        Ok(self.0.metrics.encode(&stats))
    }

    /// Ends housekeeping and closes the store, for every clone of this handle; what still uses it is told `Unavailable`.
    ///
    /// A program that ends without it loses nothing, but may leave its latest commits in the file's `-wal`, from where the
    /// next one reads them. After it the file is whole by itself, unless another process has it open.
    ///
    /// # Cancel safety
    /// Dropped half-way, it goes on closing in the background.
    pub async fn close(self) {
        let maintenance = self.0.maintenance.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(maintenance) = maintenance {
            maintenance.end().await;
        }
        self.0.engine.close().await;
    }

    pub(crate) fn metrics_arc(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Where the time comes from.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Wakes one who claims from these queues by its own hand, as a worker is woken.
    #[must_use]
    pub fn wakeups(&self, queues: Vec<QueueName>) -> Wakeups {
        Wakeups(self.0.news.subscribe(queues))
    }

    pub(crate) fn random(&self) -> &Arc<dyn Random> {
        &self.0.random
    }

    pub(crate) fn newsroom(&self) -> &Newsroom {
        &self.0.news
    }

    pub(crate) fn alone(&self) -> &Arc<RwLock<()>> {
        &self.0.alone
    }

    pub(crate) fn lease(&self) -> Duration {
        self.0.lease
    }

    pub(crate) fn host(&self) -> &Host {
        &self.0.host
    }

    pub(crate) fn max_payload(&self) -> usize {
        self.0.max_payload
    }
}

impl fmt::Debug for Tidegate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tidegate").field("store", &self.0.store).finish_non_exhaustive()
    }
}

/// Opens a store otherwise than by default.
#[derive(Debug)]
#[must_use = "nothing is opened before `open` or `store`"]
pub struct Builder {
    random: Arc<dyn Random>,
    lease: Duration,
    sweep_every: Option<Duration>,
    housekeeping: bool,
    redelivery_horizon: Duration,
    opening: Opening,
    host: Host,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            random: Arc::new(SystemRandom),
            lease: DEFAULT_LEASE,
            sweep_every: None,
            housekeeping: true,
            redelivery_horizon: DEFAULT_RETENTION,
            opening: Opening::default(),
            host: Host::default(),
        }
    }
}

impl Builder {
    /// Where the time comes from. Unless said otherwise, a worker's from this machine, and a store's from the one that keeps
    /// it.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.opening.clock = Some(clock);
        self
    }

    /// Where nonces and jitter come from.
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// How long leases of this store's workers hold; 30 s unless said otherwise.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How often housekeeping looks for lapsed leases; a twentieth of the lease, at most a second, unless said otherwise.
    pub fn sweep_every(mut self, sweep_every: Duration) -> Self {
        self.sweep_every = Some(sweep_every);
        self
    }

    /// Whether housekeeping runs here. A command that does one thing and ends leaves it to the services.
    pub fn housekeeping(mut self, housekeeping: bool) -> Self {
        self.housekeeping = housekeeping;
        self
    }

    /// How long answers and keys are kept; 7 days unless said otherwise.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.opening.retention = retention;
        self
    }

    /// How long after its first delivery a producer may deliver a message again; 7 days unless said otherwise. A retention
    /// that is shorter is refused: the late delivery would be new work.
    pub fn redelivery_horizon(mut self, horizon: Duration) -> Self {
        self.redelivery_horizon = horizon;
        self
    }

    /// The largest payload, result or effect value, in bytes; 1 MiB unless said otherwise.
    pub fn max_payload(mut self, max_payload: usize) -> Self {
        self.opening.max_payload = max_payload;
        self
    }

    /// Whether a store that is not there is made; yes, unless said otherwise.
    pub fn create(mut self, create: bool) -> Self {
        self.opening.create = create;
        self
    }

    /// How much room an SQLite store leaves on its disk: with less than 64 MiB free it accepts nothing new, with less than
    /// 32 MiB it claims nothing, and it keeps a reserve of 16 MiB, unless said otherwise.
    #[cfg(feature = "sqlite")]
    pub fn room(mut self, room: tidegate_sqlite::Room) -> Self {
        self.opening.room = room;
        self
    }

    /// The simulated process that everything which is opened here runs in.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn process(mut self, process: Arc<dyn crate::process::Process>) -> Self {
        self.host.process = Some(process);
        self
    }

    /// Opens the store at `path`, which may be the address of a server.
    ///
    /// # Errors
    /// As [`Tidegate::open`]; `Invalid` when the retention is shorter than the redelivery horizon.
    ///
    /// # Cancel safety
    /// As [`Tidegate::open`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<Tidegate, StoreError> {
        let address = Address::of_path(path.as_ref())?;
        self.open_at(&address).await
    }

    /// Opens the store at an address.
    ///
    /// # Errors
    /// As [`Builder::open`].
    ///
    /// # Cancel safety
    /// As [`Tidegate::open`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open_at(self, address: &Address) -> Result<Tidegate, StoreError> {
        self.check()?;
        let engine = Engine::open(address, self.opening.clone()).await?;
        self.build(engine)
    }

    /// Uses a store that is open already.
    ///
    /// # Errors
    /// `Invalid` when the retention is shorter than the redelivery horizon.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn store(self, store: Arc<dyn Store>) -> Result<Tidegate, StoreError> {
        self.check()?;
        self.build(Engine::Other(store))
    }

    fn check(&self) -> Result<(), StoreError> {
        let (retention, horizon) = (self.opening.retention, self.redelivery_horizon);
        if retention < horizon {
            return Err(StoreError::invalid(format!(
                "a retention of {retention:?} is shorter than the redelivery horizon of {horizon:?}"
            ))
            .hint(
                "a message delivered again after its retention is new work: keep answers longer, or promise with \
                   redelivery_horizon that no producer delivers so late",
            ));
        }
        Ok(())
    }

    fn build(self, engine: Engine) -> Result<Tidegate, StoreError> {
        let metrics = Arc::new(Metrics::new());
        let clock = self.opening.clock.unwrap_or_else(|| Arc::new(SystemClock::new()));
        let store: Arc<dyn Store> =
            Arc::new(Instrumented::new(engine.store(), Arc::clone(&clock), Arc::clone(&metrics)));
        let news = Arc::new(Newsroom::default());
        let listener: Weak<Newsroom> = Arc::downgrade(&news);
        store.on_commit(listener.clone() as Weak<dyn CommitListener>);
        tokio::spawn(self.host.own("waiter", waiter::serve(listener, Arc::clone(&store))));
        let sweep_every =
            self.sweep_every.unwrap_or((self.lease / 20).clamp(Duration::from_millis(5), Duration::from_secs(1)));
        let maintenance = if self.housekeeping {
            let housekeeping = Housekeeping { sweep_every, lease: self.lease, retention: Some(self.opening.retention) };
            let (store, clock, random) = (Arc::clone(&store), Arc::clone(&clock), Arc::clone(&self.random));
            Some(maintenance::start(store, clock, random, Arc::clone(&metrics), housekeeping, &self.host)?)
        } else {
            None
        };
        Ok(Tidegate(Arc::new(Inner {
            store,
            clock,
            random: self.random,
            metrics,
            news,
            alone: Arc::new(RwLock::new(())),
            lease: self.lease,
            max_payload: self.opening.max_payload,
            host: self.host,
            engine,
            maintenance: Mutex::new(maintenance),
        })))
    }
}
