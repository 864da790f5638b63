//! A store, a clock and one message at a time: what the harness and the proof both stand on.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::{Clock, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, MessageId, Nonce, QueueName, Tenant};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{ClaimRequest, Filter, QueueSlots, Store, SweepRequest, Swept};

use super::boundary::Boundary;
use super::clock::{RepeatableRandom, VirtualClock};
use super::recorder::{Recorder, Watched};
use super::scratch::Scratch;
use crate::attempt;
use crate::client::Tidegate;
use crate::worker::{Inline, WorkerBuilder};

/// How many messages are looked through for the next one.
const PAGE: u32 = 1000;
/// The file that a backup is made into.
const COPY: &str = "copy.db";
/// More runs than this are not a test but a loop.
pub(super) const MOST_RUNS: usize = 10_000;

/// The real engine in a directory of its own, under a virtual clock.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) tide: Tidegate,
    pub(super) clock: Arc<VirtualClock>,
    pub(super) recorder: Arc<Recorder>,
    /// Dropped last: the store is in it.
    scratch: Scratch,
}

impl Rig {
    pub(super) async fn new(interrupt_at: Option<Boundary>) -> Result<Self, StoreError> {
        let scratch = Scratch::new()?;
        let clock = Arc::new(VirtualClock::default());
        let tide = opened(&scratch, &clock, "test.db", 0).await?;
        Ok(Self { tide, clock, recorder: Arc::new(Recorder::new(interrupt_at)), scratch })
    }

    /// Copies the store as it is now.
    pub(super) async fn back_up(&self) -> Result<(), StoreError> {
        let store = self.tide.sqlite().ok_or_else(|| StoreError::invalid("a rig stands on a file"))?;
        store.backup(self.scratch.path().join(COPY)).await.map(drop)
    }

    /// The store is lost, and the copy takes its place.
    pub(super) async fn restore(&mut self) -> Result<(), StoreError> {
        // What comes by chance, as ids of follow-ups do, comes otherwise than in the store that was lost.
        let copy = opened(&self.scratch, &self.clock, COPY, u64::MAX / 3).await?;
        std::mem::replace(&mut self.tide, copy).close().await;
        Ok(())
    }

    /// A process with these handlers.
    pub(super) async fn process(&self, handlers: WorkerBuilder) -> Result<Process, StoreError> {
        let recorder = Arc::clone(&self.recorder);
        let watched = Watched { store: Arc::clone(self.tide.store()), recorder: Arc::clone(&self.recorder) };
        let inline = handlers.inline(Arc::new(watched), recorder).await?;
        Ok(Process { inline, store: Arc::clone(self.tide.store()) })
    }

    /// Lets time pass until something of this process's becomes due, or a lapsed lease can be taken over; false when
    /// nothing will.
    pub(super) async fn pass_time(&self, process: &Process) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let waiting = process.list(&[State::Ready, State::Leased]).await?;
        let due = waiting.iter().filter_map(|summary| summary.due_at).filter(|due| *due > now).min();
        let leased = waiting.iter().any(|summary| summary.state == State::Leased);
        let lapses = leased.then(|| now.after(process.inline.shared.lease + Duration::from_millis(1)));
        let Some(next) = due.into_iter().chain(lapses).min() else { return Ok(false) };
        self.clock.advance_to(next);
        Ok(true)
    }
}

async fn opened(scratch: &Scratch, clock: &Arc<VirtualClock>, name: &str, seed: u64) -> Result<Tidegate, StoreError> {
    Tidegate::builder()
        .clock(Arc::clone(clock) as Arc<dyn Clock>)
        .random(Arc::new(RepeatableRandom::of(seed)))
        // Sweeps are part of the course of things here, not of a thread beside it.
        .housekeeping(false)
        .open(scratch.path().join(name))
        .await
}

/// What a worker process is without its loop: it runs one message when it is told to.
#[derive(Debug)]
pub(super) struct Process {
    inline: Inline,
    /// Not watched: what a test looks at is no boundary.
    store: Arc<dyn Store>,
}

impl Process {
    /// The kinds of which a message may lose an attempt and go on.
    pub(super) fn with_attempts_to_spare(&self) -> HashSet<Kind> {
        let handlers = self.inline.shared.handlers.values();
        handlers.filter(|handler| handler.policy.max_attempts > 1).map(|handler| handler.kind.clone()).collect()
    }

    /// Claims the next due message and runs it as one attempt; none when nothing is due.
    pub(super) async fn run_next(&self) -> Result<Option<MessageId>, StoreError> {
        self.sweep().await?;
        for queue in self.queues_with_due().await? {
            if let Some(id) = self.run_from(&queue).await? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    async fn run_from(&self, queue: &QueueName) -> Result<Option<MessageId>, StoreError> {
        let shared = &self.inline.shared;
        loop {
            let sent_at = shared.clock.monotonic();
            let request = ClaimRequest {
                worker: self.inline.name.clone(),
                tenant: Tenant::default(),
                queues: vec![QueueSlots { queue: queue.clone(), slots: 1 }],
                kinds: shared.handlers.values().map(|handler| (handler.kind.clone(), handler.version)).collect(),
                nonce: Nonce::new(shared.random.as_ref()),
                lease: shared.lease,
            };
            let mut claimed = shared.store.claim(request).await?;
            if let Some(lease) = claimed.leases.pop() {
                let id = lease.message.id;
                attempt::run(shared, lease, sent_at).await;
                return Ok(Some(id));
            }
            // Something was due and too late to begin; behind it there may be more.
            if claimed.ended == 0 {
                return Ok(None);
            }
        }
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        loop {
            let request = SweepRequest { take_over: true, retention: None, limit: PAGE, unit: 0.5 };
            let Swept { more, .. } = self.store.sweep(request).await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Queues with a due message of a kind that this process knows, the longest due first.
    async fn queues_with_due(&self) -> Result<Vec<QueueName>, StoreError> {
        let now = self.inline.shared.clock.now();
        let mut due: Vec<(Timestamp, MessageId, QueueName)> = (self.list(&[State::Ready]).await?.into_iter())
            .filter_map(|summary| Some((summary.due_at?, summary.id, summary.queue)))
            .filter(|(due_at, ..)| *due_at <= now)
            .collect();
        due.sort_by_key(|(due_at, id, _)| (*due_at, *id));
        let mut known = BTreeSet::new();
        Ok(due.into_iter().map(|(.., queue)| queue).filter(|queue| known.insert(queue.clone())).collect())
    }

    /// Messages in these states of the kinds that this process knows.
    pub(super) async fn list(&self, states: &[State]) -> Result<Vec<tidegate_core::store::Summary>, StoreError> {
        let filter = Filter { states: states.to_vec(), limit: PAGE, ..Filter::default() };
        let mut found = self.store.list(filter).await?;
        found.retain(|summary| self.inline.shared.handlers.contains_key(&summary.kind));
        Ok(found)
    }
}
