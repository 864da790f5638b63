//! The worker: claims what it has handlers and free slots for, and runs each message as an attempt.
//!
//! It never claims more than it can start. It is woken by this process's commits, by a slot that falls free while more is
//! waiting, by the next due time, and by a poll for what other processes enqueued. It decides nothing about a message.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::{Clock, Random};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{Kind, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::retry::Policy;
use tidegate_core::store::{ClaimRequest, Claimed, QueueSlots, Store};
use tokio::sync::{RwLock, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tracing::{info, warn};

use crate::attempt;
use crate::check::{self, Report};
use crate::client::Tidegate;
use crate::context::Context;
use crate::handler::{Handled, Handler, Message};
use crate::keepalive::{Keepalive, Stopped};
use crate::news::Subscription;
use crate::probe::Probe;
use crate::settler::Settler;
use crate::telemetry::Metrics;

/// How many messages of a queue run at once unless it is said otherwise.
const DEFAULT_CONCURRENCY: u32 = 16;
/// How often a worker looks for what other processes enqueued.
const DEFAULT_POLL: Duration = Duration::from_millis(100);
/// How long a drain waits for handlers unless it is said otherwise.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// How long a drain waits for handlers that were told to stop.
const GRACE: Duration = Duration::from_secs(2);
/// The longest pause between claims while the store does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How soon a worker asks again for what is due by its clock and not yet by the store's.
const CLOCKS_DIFFER: Duration = Duration::from_millis(20);
/// How often a worker compares what waits in its queues with what it has handlers for.
const LOOK_FOR_STRANGERS: Duration = Duration::from_secs(30);

/// What attempts of one worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) keepalive: Keepalive,
    pub(crate) settler: Settler,
    pub(crate) handlers: BTreeMap<Kind, Arc<Handler>>,
    /// Read by every attempt, written by a suspect: shared by all workers of this process's `Tidegate`.
    pub(crate) alone: Arc<RwLock<()>>,
    pub(crate) lease: Duration,
    pub(crate) max_payload: usize,
    /// Set by `testing` only.
    pub(crate) probe: Option<Arc<dyn Probe>>,
}

/// Says what a worker runs, and how much of it at once.
#[must_use = "a worker does nothing before it is started"]
pub struct WorkerBuilder {
    tide: Tidegate,
    handlers: Vec<Result<Handler, StoreError>>,
    concurrency: u32,
    queues: BTreeMap<String, u32>,
    lease: Option<Duration>,
    name: Option<String>,
    poll_every: Duration,
}

impl WorkerBuilder {
    pub(crate) fn new(tide: Tidegate) -> Self {
        Self {
            tide,
            handlers: Vec::new(),
            concurrency: DEFAULT_CONCURRENCY,
            queues: BTreeMap::new(),
            lease: None,
            name: None,
            poll_every: DEFAULT_POLL,
        }
    }

    /// Runs messages of the handler's type, with the default [`Policy`]; serves the type's queue.
    ///
    /// State is captured: `handle(move |context, message| capture(Arc::clone(&gateway), context, message))`.
    pub fn handle<M, F, Fut>(self, handler: F) -> Self
    where
        M: Message,
        F: Fn(Context, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Handled<M::Answer>> + Send + 'static,
    {
        self.handle_with(handler, Policy::default())
    }

    /// The same under a policy of its own: attempts, backoff, time-out and crash limit of the kind.
    pub fn handle_with<M, F, Fut>(mut self, handler: F, policy: Policy) -> Self
    where
        M: Message,
        F: Fn(Context, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Handled<M::Answer>> + Send + 'static,
    {
        self.handlers.push(Handler::new(handler, policy));
        self
    }

    /// How many messages of each queue run at once; 16 unless said otherwise.
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// How many messages of one queue run at once. A queue that no handler's type names is served as well.
    pub fn queue_concurrency(mut self, queue: &str, concurrency: u32) -> Self {
        self.queues.insert(queue.to_owned(), concurrency);
        self
    }

    /// How long a lease holds without being extended; 30 s unless said otherwise. The messages of a worker that was killed
    /// come back after this time.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// What people see as the holder of a lease; made from the process id unless said otherwise.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// How often it looks for what other processes enqueued; every 100 ms unless said otherwise.
    pub fn poll_every(mut self, poll_every: Duration) -> Self {
        self.poll_every = poll_every;
        self
    }

    /// The store it is for: what a handler captures of it, such as [`Tidegate::sqlite`].
    #[must_use]
    pub fn tide(&self) -> &Tidegate {
        &self.tide
    }

    /// Decodes the payload of every queued, scheduled, running, parked and dead message of its kinds with the handlers of
    /// this program, and runs nothing: what to do with a new version of a program before it is rolled out.
    ///
    /// # Errors
    /// `Invalid` as [`WorkerBuilder::start`]; `Unavailable`, `Corrupt`.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn check(&self) -> Result<Report, StoreError> {
        check::run(self.tide.store().as_ref(), &checked(self.handlers.clone())?).await
    }

    /// Declares the policies in the store and starts to claim. Where a server does not let this worker declare the policy of
    /// a kind, because other queues know the kind as well, what is stored there holds, and a warning says so.
    ///
    /// # Errors
    /// `Invalid` when there is no handler, two for one kind, a wrong name or a concurrency of 0; `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropped, no worker runs; the policies may have been declared.
    pub async fn start(self) -> Result<Worker, StoreError> {
        let handlers = checked(self.handlers)?;
        let slots = slots(&handlers, &self.queues, self.concurrency)?;
        let name = match &self.name {
            Some(name) => WorkerId::new(name)?,
            None => default_name(self.tide.random())?,
        };
        let lease = self.lease.unwrap_or_else(|| self.tide.lease());
        if lease < Duration::from_millis(30) {
            return Err(StoreError::invalid(format!("invalid lease of {lease:?}"))
                .hint("30 ms or longer; seconds, unless this is a test"));
        }
        declare(self.tide.store().as_ref(), &handlers, &name).await?;
        let (store, clock) = (Arc::clone(self.tide.store()), Arc::clone(self.tide.clock()));
        let metrics = Arc::clone(self.tide.metrics_arc());
        let keepalive =
            Keepalive::start(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&metrics), lease, self.tide.host())?;
        let kinds = handlers.values().map(|handler| (handler.kind.clone(), handler.version)).collect();
        let subscription = self.tide.newsroom().subscribe(slots.iter().map(|slot| slot.queue.clone()).collect());
        let stop = watch::Sender::new(None);
        let dispatcher = Dispatcher {
            subscription,
            name: name.clone(),
            kinds,
            slots,
            running: JoinSet::new(),
            queue_of: HashMap::new(),
            saturated: false,
            poll_every: self.poll_every,
            known_strangers: HashSet::new(),
            shared: Arc::new(Shared {
                settler: Settler::new(Arc::clone(&store)),
                store,
                clock,
                random: Arc::clone(self.tide.random()),
                metrics,
                keepalive,
                handlers: shared_out(handlers),
                alone: Arc::clone(self.tide.alone()),
                lease,
                max_payload: self.tide.max_payload(),
                probe: None,
            }),
            // The store and its housekeeping live for as long as somebody claims from it.
            tide: self.tide,
        };
        info!(worker.id = %name, "worker {name} started");
        let host = dispatcher.tide.host().clone();
        let task = tokio::spawn(host.own("dispatcher", dispatcher.run(stop.subscribe())));
        Ok(Worker { stop, task: Some(task), name })
    }
}

/// A worker without its loop: `testing` runs one message at a time.
#[cfg(feature = "sqlite")]
#[derive(Debug)]
pub(crate) struct Inline {
    pub(crate) shared: Shared,
    pub(crate) name: WorkerId,
}

#[cfg(feature = "sqlite")]
impl WorkerBuilder {
    /// Declares the policies, and hands out what an attempt needs instead of claiming. `store` is what the attempts see.
    pub(crate) async fn inline(self, store: Arc<dyn Store>, probe: Arc<dyn Probe>) -> Result<Inline, StoreError> {
        let handlers = checked(self.handlers)?;
        let name = WorkerId::new(self.name.as_deref().unwrap_or("inline"))?;
        let lease = self.lease.unwrap_or_else(|| self.tide.lease());
        declare(store.as_ref(), &handlers, &name).await?;
        let (clock, metrics) = (Arc::clone(self.tide.clock()), Arc::clone(self.tide.metrics_arc()));
        let keepalive = Keepalive::idle(Arc::clone(&clock), Arc::clone(&metrics), lease);
        let shared = Shared {
            settler: Settler::new(Arc::clone(&store)),
            store,
            clock,
            random: Arc::clone(self.tide.random()),
            metrics,
            keepalive,
            handlers: shared_out(handlers),
            alone: Arc::new(RwLock::new(())),
            lease,
            max_payload: self.tide.max_payload(),
            probe: Some(probe),
        };
        Ok(Inline { shared, name })
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("handlers", &self.handlers).finish_non_exhaustive()
    }
}

/// Says what the kinds allow, as far as this worker may.
async fn declare(store: &dyn Store, handlers: &BTreeMap<Kind, Handler>, worker: &WorkerId) -> Result<(), StoreError> {
    let policies: Vec<_> = handlers.values().map(|handler| (handler.kind.clone(), handler.policy.clone())).collect();
    match store.declare(policies.clone()).await {
        Err(error) if error.is_forbidden() => {}
        declared => return declared,
    }
    // One of them is not this worker's to declare, and the others may be. Whether it may work at all its claims are told.
    for (kind, policy) in policies {
        match store.declare(vec![(kind.clone(), policy)]).await {
            Err(error) if error.is_forbidden() => warn!(
                worker.id = %worker, message.kind = %kind, error = %error,
                "worker {worker} may not declare the policy of kind {kind}: the attempts, backoff and crash limit that the \
                 server has stored for it hold, not those of this program"
            ),
            declared => declared?,
        }
    }
    Ok(())
}

fn checked(handlers: Vec<Result<Handler, StoreError>>) -> Result<BTreeMap<Kind, Handler>, StoreError> {
    let mut by_kind = BTreeMap::new();
    for handler in handlers {
        let handler = handler?;
        if handler.version == 0 || handler.policy.max_attempts == 0 || handler.policy.timeout.is_zero() {
            return Err(StoreError::invalid(format!(
                "kind {} has a version, max_attempts or time-out of 0",
                handler.kind
            ))
            .hint("versions and attempts are counted from 1"));
        }
        if let Some(twin) = by_kind.insert(handler.kind.clone(), handler) {
            return Err(StoreError::invalid(format!("two handlers for kind {}", twin.kind))
                .hint("a kind names one handler; give one of the message types another KIND"));
        }
    }
    if by_kind.is_empty() {
        return Err(StoreError::invalid("a worker without a handler").hint("add one with WorkerBuilder::handle"));
    }
    Ok(by_kind)
}

/// Every attempt has its handler for itself, without a copy.
fn shared_out(handlers: BTreeMap<Kind, Handler>) -> BTreeMap<Kind, Arc<Handler>> {
    handlers.into_iter().map(|(kind, handler)| (kind, Arc::new(handler))).collect()
}

fn slots(
    handlers: &BTreeMap<Kind, Handler>,
    queues: &BTreeMap<String, u32>,
    concurrency: u32,
) -> Result<Vec<Slots>, StoreError> {
    let mut slots: BTreeMap<QueueName, u32> =
        handlers.values().map(|handler| (handler.queue.clone(), concurrency)).collect();
    for (queue, concurrency) in queues {
        slots.insert(QueueName::new(queue)?, *concurrency);
    }
    if let Some((queue, _)) = slots.iter().find(|(_, concurrency)| **concurrency == 0) {
        return Err(StoreError::invalid(format!("a concurrency of 0 for queue {queue}"))
            .hint("pause the queue if nothing of it is to run"));
    }
    Ok(slots.into_iter().map(|(queue, most)| Slots { queue, most, running: 0 }).collect())
}

fn default_name(random: &Arc<dyn Random>) -> Result<WorkerId, StoreError> {
    let mut bytes = [0; 3];
    random.fill(&mut bytes);
    WorkerId::new(&format!("pid{}-{}", std::process::id(), tidegate_core::id::Hex(&bytes)))
}

/// A running worker. Dropped, it drains in the background; [`Worker::stop`] waits for that.
pub struct Worker {
    stop: watch::Sender<Option<Duration>>,
    task: Option<JoinHandle<Drained>>,
    name: WorkerId,
}

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Attempts that ended by themselves.
    pub finished: usize,
    /// Attempts that were told to stop; their messages went back to their queues, and no attempt was counted.
    pub released: usize,
    /// Handlers that did not yield; their messages come back when their leases lapse.
    pub abandoned: usize,
}

impl Worker {
    /// What people see as the holder of its leases.
    #[must_use]
    pub fn name(&self) -> &WorkerId {
        &self.name
    }

    /// Claims nothing more, lets what runs finish for up to 30 s, hands back the rest.
    ///
    /// # Errors
    /// `Unavailable` when the worker's own task died.
    ///
    /// # Cancel safety
    /// Safe: the worker was told to drain at the first poll, and goes on draining.
    pub async fn stop(self) -> Result<Drained, StoreError> {
        self.drain(DEFAULT_DRAIN).await
    }

    /// Claims nothing more, lets what runs finish `within` this time, hands back the rest uncounted.
    ///
    /// # Errors
    /// `Unavailable` when the worker's own task died.
    ///
    /// # Cancel safety
    /// Safe, as [`Worker::stop`].
    pub async fn drain(mut self, within: Duration) -> Result<Drained, StoreError> {
        self.stop.send_replace(Some(within));
        let Some(task) = self.task.take() else { return Ok(Drained::default()) };
        task.await.map_err(|e| StoreError::unavailable("the worker's task died").source(e))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.send_if_modified(|within| {
            let changes = within.is_none();
            within.get_or_insert(DEFAULT_DRAIN);
            changes
        });
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The slots of one queue.
#[derive(Debug)]
struct Slots {
    queue: QueueName,
    most: u32,
    running: u32,
}

struct Dispatcher {
    shared: Arc<Shared>,
    subscription: Arc<Subscription>,
    tide: Tidegate,
    name: WorkerId,
    kinds: Vec<(Kind, u32)>,
    slots: Vec<Slots>,
    running: JoinSet<()>,
    queue_of: HashMap<Id, usize>,
    /// The last claim was bounded by free slots, not by what was there: a slot that falls free is worth a claim.
    saturated: bool,
    poll_every: Duration,
    known_strangers: HashSet<(QueueName, Kind, u32)>,
}

impl Dispatcher {
    async fn run(mut self, mut stop: watch::Receiver<Option<Duration>>) -> Drained {
        let mut missing = None;
        let mut pause = Duration::ZERO;
        let mut look_for_strangers_at = Duration::ZERO;
        loop {
            self.reap();
            if stop.borrow().is_some() {
                break;
            }
            let look_in = match self.claim(&mut missing).await {
                Ok(look_in) => {
                    pause = Duration::ZERO;
                    look_in
                }
                Err(error) => {
                    pause = (pause * 2).clamp(Duration::from_millis(50), LONGEST_PAUSE);
                    warn!(error = %error, "could not claim; next try in {pause:?}");
                    pause
                }
            };
            if self.shared.clock.monotonic() >= look_for_strangers_at {
                look_for_strangers_at = self.shared.clock.monotonic() + LOOK_FOR_STRANGERS;
                self.look_for_strangers().await;
            }
            self.wait(look_in, &mut stop).await;
        }
        let within = stop.borrow().unwrap_or(DEFAULT_DRAIN);
        self.drain(within).await
    }

    /// Fills the free slots; says when to look again if nothing else happens.
    ///
    /// `missing` is a claim whose reply is missing, with the time at which it was first sent: repeated under its nonce it
    /// gives the same leases, which hold no longer for being told twice.
    async fn claim(&mut self, missing: &mut Option<(Nonce, Duration)>) -> Result<Duration, StoreError> {
        loop {
            let free = self.free();
            let wanted: u32 = free.iter().map(|slots| slots.slots).sum();
            if wanted == 0 {
                self.saturated = true;
                return Ok(self.poll_every);
            }
            let now = self.shared.clock.monotonic();
            // What that call may have leased has lapsed by now: a lease told of again would be cut off as it starts, and
            // one that is only granted now would be taken for as old as the call.
            if missing.is_some_and(|(_, sent_at)| now >= sent_at.saturating_add(self.shared.lease)) {
                *missing = None;
            }
            let (nonce, sent_at) = *missing.get_or_insert_with(|| (Nonce::new(self.shared.random.as_ref()), now));
            let request = ClaimRequest {
                worker: self.name.clone(),
                tenant: Tenant::default(),
                queues: free,
                kinds: self.kinds.clone(),
                nonce,
                lease: self.shared.lease,
            };
            let Claimed { leases, next_due, ended } = match self.shared.store.claim(request).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    // Only an unknown outcome is worth repeating; any other refusal took nothing.
                    if error.kind() != StoreErrorKind::Unavailable {
                        *missing = None;
                    }
                    return Err(error);
                }
            };
            *missing = None;
            let got = leases.len();
            if got > 0 {
                failpoint::reach("worker.after_claim");
            }
            for lease in leases {
                self.start(lease, sent_at);
            }
            self.shared.metrics.slots(&self.name, self.running.len(), self.slots.iter().map(|s| s.most as usize).sum());
            self.saturated = self.slots.iter().any(|slots| slots.running >= slots.most);
            if got == 0 && ended > 0 {
                continue;
            }
            let due_in = match next_due.map(|due| due.since(self.shared.clock.now())) {
                // Due by our clock, and the store that looked by its own did not give it out: to ask again at once would be to
                // ask all the time until the other clock is there as well.
                Some(Duration::ZERO) if got == 0 => CLOCKS_DIFFER,
                Some(due_in) => due_in,
                None => self.poll_every,
            };
            return Ok(due_in.min(self.poll_every).max(Duration::from_millis(1)));
        }
    }

    fn free(&self) -> Vec<QueueSlots> {
        self.slots
            .iter()
            .filter(|slots| slots.running < slots.most)
            .map(|slots| QueueSlots { queue: slots.queue.clone(), slots: slots.most - slots.running })
            .collect()
    }

    fn start(&mut self, lease: tidegate_core::store::Lease, sent_at: Duration) {
        let place = self.slots.iter().position(|slots| slots.queue == lease.message.queue);
        let shared = Arc::clone(&self.shared);
        // Boxed: a task is moved about ten times between here and its end, and an attempt is some kilobytes.
        let run = Box::pin(async move { attempt::run(&shared, lease, sent_at).await });
        let started = self.running.spawn(self.tide.host().own("attempt", run));
        if let Some(place) = place {
            self.slots[place].running += 1;
            self.queue_of.insert(started.id(), place);
        }
    }

    /// Frees the slots of attempts that ended; says how many.
    fn reap(&mut self) -> usize {
        let mut ended = 0;
        while let Some(joined) = self.running.try_join_next_with_id() {
            self.ended(joined);
            ended += 1;
        }
        ended
    }

    fn ended(&mut self, joined: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match joined {
            Ok((id, ())) => id,
            Err(error) => {
                // Handlers' panics are caught inside the attempt: this one is ours.
                warn!(error = %error, "an attempt's task died; its message comes back when its lease lapses");
                error.id()
            }
        };
        if let Some(place) = self.queue_of.remove(&id) {
            self.slots[place].running -= 1;
        }
    }

    async fn wait(&mut self, look_in: Duration, stop: &mut watch::Receiver<Option<Duration>>) {
        let look = tokio::time::sleep(look_in);
        tokio::pin!(look);
        loop {
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                () = &mut look => return,
                () = self.subscription.wake.notified() => return,
                // Last: attempts that end one after another must not hide that it is time to look.
                Some(joined) = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    self.ended(joined);
                    self.reap();
                    if self.saturated {
                        return;
                    }
                }
            }
        }
    }

    /// Warns of what waits in our queues and has no handler here: it waits, at no cost, for a worker that knows it.
    async fn look_for_strangers(&mut self) {
        let Ok(stats) = self.shared.store.stats().await else { return };
        for lane in stats.lanes {
            let ours = self.slots.iter().any(|slots| slots.queue == lane.queue);
            let known = self.kinds.iter().any(|(kind, newest)| *kind == lane.kind && lane.version <= *newest);
            let stranger = (lane.queue, lane.kind, lane.version);
            if ours && !known && self.known_strangers.insert(stranger.clone()) {
                let (queue, kind, version) = stranger;
                warn!(queue.name = %queue, message.kind = %kind, version,
                    "messages of kind {kind} version {version} wait in queue {queue}: this worker has no handler for them");
            }
        }
    }

    async fn drain(mut self, within: Duration) -> Drained {
        let mut drained = Drained::default();
        let running = self.running.len();
        failpoint::reach("drain.begin");
        info!(worker.id = %self.name, running, "worker {} drains", self.name);
        if tokio::time::timeout(within, self.join_all()).await.is_ok() {
            drained.finished = running;
        } else {
            drained.finished = running - self.running.len();
            let told = self.running.len();
            self.shared.keepalive.stop_all(Stopped::Drained);
            let ended = tokio::time::timeout(GRACE, self.join_all()).await.is_ok();
            drained.abandoned = if ended { 0 } else { self.running.len() };
            drained.released = told - drained.abandoned;
            self.running.detach_all();
        }
        failpoint::reach("drain.end");
        self.shared.metrics.slots(&self.name, 0, 0);
        drop(self.tide);
        drained
    }

    async fn join_all(&mut self) {
        while let Some(joined) = self.running.join_next_with_id().await {
            self.ended(joined);
        }
    }
}
