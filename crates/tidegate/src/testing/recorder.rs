//! Sees what a run does, and is where a simulated process dies.
//!
//! The recorder hears of everything that leaves an attempt, from the probe inside effects and from [`Watched`] around the
//! store. At the boundary at which the process is to die it says so and never returns: whoever runs the attempt then drops
//! it, exactly there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, Kind, MessageId, QueueName, Tenant};
use tidegate_core::lifecycle::Cancellation;
use tidegate_core::message::NewMessage;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, JournalWrite, Lease, MessageView, Note,
    Operate, Operation, Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary,
    SweepRequest, Swept, Verdicts,
};
use tidegate_core::token::TokenRecord;
use tokio::sync::watch;

use super::boundary::{Boundary, Point, Side};
use crate::probe::{Arrival, How, Leaving, Probe};

#[derive(Debug)]
pub(super) struct Recorder {
    seen: Mutex<Seen>,
    dead: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Seen {
    /// How often each point was reached.
    reached: HashMap<Point, u32>,
    /// Points in the order in which they were passed.
    passed: Vec<(Point, u32)>,
    interrupt_at: Option<Boundary>,
    /// Sends by effect, then by key.
    sends: BTreeMap<String, BTreeMap<String, u32>>,
    /// How many answers of an effect are still to be lost.
    lose: BTreeMap<String, u32>,
    kinds: HashMap<MessageId, String>,
    /// Kinds with an attempt to spare: their first one dies with its process before the handler begins, so that the runs
    /// that are seen are second attempts.
    to_spare: HashSet<Kind>,
}

impl Recorder {
    pub(super) fn new(interrupt_at: Option<Boundary>) -> Self {
        Self { seen: Mutex::new(Seen { interrupt_at, ..Seen::default() }), dead: watch::Sender::new(false) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every boundary that was passed, in order.
    pub(super) fn boundaries(&self) -> Vec<Boundary> {
        let sides = |point: &Point| match point {
            Point::Leaving { how: How::Send, .. } => &[Side::Before, Side::After, Side::Lost, Side::Restored][..],
            Point::Claim { .. }
            | Point::Intent { .. }
            | Point::Answer { .. }
            | Point::Leaving { .. }
            | Point::Settle { .. } => &[Side::Before, Side::After][..],
        };
        let passed = &self.seen().passed;
        let all = |(point, nth): &(Point, u32)| {
            let boundary = |side: &Side| Boundary { point: point.clone(), nth: *nth, side: *side };
            sides(point).iter().map(boundary).collect::<Vec<_>>()
        };
        passed.iter().flat_map(all).collect()
    }

    /// The effects that were begun, as the kind of their message and their name: those of which a row is written. A
    /// natural one leaves nothing behind that a later run could miss.
    pub(super) fn begun(&self) -> BTreeSet<(String, String)> {
        let begun = |(point, _): &(Point, u32)| match point {
            Point::Intent { kind, effect } | Point::Leaving { how: How::Transaction, kind, effect, .. } => {
                Some((kind.clone(), effect.clone()))
            }
            Point::Claim { .. } | Point::Answer { .. } | Point::Leaving { .. } | Point::Settle { .. } => None,
        };
        self.seen().passed.iter().filter_map(begun).collect()
    }

    /// From now on the first attempt of a message of these kinds dies before its handler begins; of none, if there are none.
    pub(super) fn spend_first_attempts(&self, kinds: HashSet<Kind>) {
        self.seen().to_spare = kinds;
    }

    /// Whether the run was interrupted where it was to be.
    pub(super) fn was_interrupted(&self) -> bool {
        self.seen().interrupt_at.is_none()
    }

    /// Resolves when the process died.
    pub(super) async fn died(&self) {
        // The sender lives in `self`: the channel cannot close under us.
        drop(self.dead.subscribe().wait_for(|dead| *dead).await);
    }

    /// Another process begins.
    pub(super) fn restart(&self) {
        self.dead.send_replace(false);
    }

    pub(super) fn sends(&self, effect: &str) -> BTreeMap<String, u32> {
        self.seen().sends.get(effect).cloned().unwrap_or_default()
    }

    pub(super) fn lose(&self, effect: &str, times: u32) {
        self.seen().lose.insert(effect.to_owned(), times);
    }

    /// Which of its kind the point is that is reached now.
    fn reach(&self, point: &Point) -> u32 {
        let mut seen = self.seen();
        let nth = seen.reached.entry(point.clone()).or_default();
        *nth += 1;
        *nth
    }

    fn pass(&self, point: &Point, nth: u32) {
        self.seen().passed.push((point.clone(), nth));
    }

    /// Whether the run is to be interrupted here; once.
    fn is_here(&self, point: &Point, nth: u32, side: Side) -> bool {
        let mut seen = self.seen();
        let here = seen.interrupt_at.as_ref().is_some_and(|at| at.point == *point && at.nth == nth && at.side == side);
        here && seen.interrupt_at.take().is_some()
    }

    async fn side(&self, point: &Point, nth: u32, side: Side) {
        if self.is_here(point, nth, side) {
            self.die().await;
        }
    }

    async fn die(&self) {
        self.dead.send_replace(true);
        std::future::pending::<()>().await;
    }

    /// Carries out what outlives the process, between its two boundaries.
    async fn around<T>(&self, point: Point, act: impl Future<Output = T> + Send) -> T
    where
        T: Send,
    {
        let nth = self.reach(&point);
        self.side(&point, nth, Side::Before).await;
        let done = act.await;
        self.pass(&point, nth);
        self.side(&point, nth, Side::After).await;
        done
    }

    fn kind(&self, id: MessageId) -> String {
        self.seen().kinds.get(&id).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Probe for Recorder {
    async fn before(&self, leaving: &Leaving) {
        let point = Point::of(leaving);
        let nth = self.reach(&point);
        self.side(&point, nth, Side::Before).await;
        if leaving.how == How::Send {
            let mut seen = self.seen();
            *seen.sends.entry(leaving.effect.clone()).or_default().entry(leaving.key.clone()).or_default() += 1;
        }
    }

    async fn after(&self, leaving: &Leaving) -> Arrival {
        let point = Point::of(leaving);
        let nth = self.seen().reached.get(&point).copied().unwrap_or_default();
        self.pass(&point, nth);
        self.side(&point, nth, Side::After).await;
        self.side(&point, nth, Side::Restored).await;
        if self.is_here(&point, nth, Side::Lost) {
            return Arrival::Lost;
        }
        let mut seen = self.seen();
        match seen.lose.get_mut(&leaving.effect) {
            Some(left) if *left > 0 && leaving.how == How::Send => {
                *left -= 1;
                Arrival::Lost
            }
            Some(_) | None => Arrival::Arrives,
        }
    }
}

/// The store as an attempt sees it: every commit that an attempt makes is a boundary.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) store: Arc<dyn Store>,
    pub(super) recorder: Arc<Recorder>,
}

impl Watched {
    async fn claimed(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        let queues: Vec<&str> = request.queues.iter().map(|slots| slots.queue.as_str()).collect();
        let point = Point::Claim { queue: queues.join(", ") };
        let nth = self.recorder.reach(&point);
        self.recorder.side(&point, nth, Side::Before).await;
        let claimed = self.store.claim(request).await?;
        if claimed.leases.is_empty() {
            return Ok(claimed);
        }
        for lease in &claimed.leases {
            self.recorder.seen().kinds.insert(lease.message.id, lease.message.kind.to_string());
        }
        self.recorder.pass(&point, nth);
        self.recorder.side(&point, nth, Side::After).await;
        let spent =
            |lease: &Lease| lease.counters.claims == 1 && self.recorder.seen().to_spare.contains(&lease.message.kind);
        if claimed.leases.iter().any(spent) {
            self.recorder.die().await;
        }
        Ok(claimed)
    }

    async fn journalled(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        // An attempt writes one at a time.
        let Some(Journal { id, write, .. }) = batch.first() else { return self.store.journal(batch).await };
        let kind = self.recorder.kind(*id);
        let point = match write {
            JournalWrite::Intent { reached, .. } | JournalWrite::Natural { reached, .. } => {
                Point::Intent { kind, effect: reached.effect.to_string() }
            }
            JournalWrite::Answer { effect, .. } | JournalWrite::NotSent { effect } => {
                Point::Answer { kind, effect: effect.to_string() }
            }
        };
        self.recorder.around(point, self.store.journal(batch)).await
    }

    async fn settled(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        let kind = batch.first().map(|settle| self.recorder.kind(settle.id)).unwrap_or_default();
        self.recorder.around(Point::Settle { kind }, self.store.settle(batch)).await
    }
}

macro_rules! passed_on {
    ($($verb:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for Watched {
            $(async fn $verb(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                self.store.$verb($($argument),*).await
            })*

            async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
                self.claimed(request).await
            }

            async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
                self.journalled(batch).await
            }

            async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
                self.settled(batch).await
            }

            fn on_commit(&self, listener: Weak<dyn CommitListener>) {
                self.store.on_commit(listener);
            }
        }
    };
}

passed_on! {
    enqueue(batch: Vec<NewMessage>) -> Verdicts<Enqueued>;
    declare(policies: Vec<(Kind, Policy)>) -> ();
    extend(batch: Vec<Extend>) -> Verdicts<Extended>;
    sweep(request: SweepRequest) -> Swept;
    redrive(request: Redrive) -> Verdicts<MessageId>;
    operate(request: Operate) -> Stepped;
    operations(name: Option<String>, limit: u32) -> Vec<Operation>;
    edit(request: Edit) -> Edited;
    discard(request: Discard) -> Verdicts<MessageId>;
    cancel(request: Cancel) -> Verdicts<Cancellation>;
    pause(request: ChangeQueue) -> ();
    resolve(request: Resolve) -> Resolved;
    inspect(ids: Vec<MessageId>) -> Vec<Option<MessageView>>;
    find(tenant: Tenant, queue: QueueName, key: IdempotencyKey) -> Option<MessageId>;
    progress(ids: Vec<MessageId>) -> Vec<Option<Progress>>;
    flow(root: MessageId) -> Vec<Summary>;
    list(filter: Filter) -> Vec<Summary>;
    groups(filter: Filter) -> Vec<FailureGroup>;
    explain(id: MessageId) -> Option<ExplainFacts>;
    audit(after: u64, limit: u32) -> Vec<AuditEntry>;
    note(note: Note) -> ();
    tokens() -> Vec<TokenRecord>;
    change_token(request: ChangeToken) -> Vec<TokenRecord>;
    stats() -> Stats;
}
