//! Keeps the leases of running attempts, on an operating-system thread of its own.
//!
//! A handler that blocks its runtime must not lose its lease for it, so the thread brings its own small runtime. It
//! extends leases when a third of their time is gone, tells an attempt that its lease was lost or that somebody asked to
//! cancel it, and, when the store cannot be reached, stops the attempt *before* its lease can lapse: that deadline is
//! monotonic and counted from before the call that granted it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Clock;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::store::{Extend, Extended, Lease, Store, Verdicts};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use crate::process::Host;
use crate::telemetry::Metrics;

/// Why an attempt should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Somebody else has the message by now.
    LeaseLost,
    /// The lease could not be extended and is about to lapse.
    OutOfTime,
    /// An operator asked to cancel the message.
    CancelRequested,
    /// The worker drains and its time is up.
    Drained,
}

/// The lease of one attempt, kept until it is released.
#[derive(Debug)]
pub(crate) struct Held {
    id: MessageId,
    token: LeaseToken,
    lease: Duration,
    stop: watch::Sender<Option<Stopped>>,
    times: Mutex<Times>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// Monotonic: from here on somebody else may have the message.
    lapses_at: Duration,
    /// Its settlement is on its way: an extension behind it would be refused as late.
    settling: bool,
    /// Monotonic: the handler should have ended by now.
    overdue_at: Option<Duration>,
}

impl Held {
    /// Why the attempt should stop, if it should.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        *self.stop.borrow()
    }

    /// Resolves when the attempt should stop.
    pub(crate) async fn wait_stopped(&self) -> Stopped {
        let mut stop = self.stop.subscribe();
        let reason = stop.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
        // The sender lives in `self`, so the channel cannot close under us.
        reason.unwrap_or(Stopped::LeaseLost)
    }

    /// Resolves when the attempt should stop for another reason than a cancel request.
    pub(crate) async fn wait_beyond_cancel(&self) {
        let mut stop = self.stop.subscribe();
        let beyond = |reason: &Option<Stopped>| reason.is_some_and(|reason| reason != Stopped::CancelRequested);
        // The sender lives in `self`: it cannot be gone while this waits.
        drop(stop.wait_for(beyond).await);
    }

    /// The first reason counts, except that losing the lease overrides all others.
    pub(crate) fn stop(&self, reason: Stopped) {
        self.stop.send_if_modified(|stopped| {
            let overrides = reason != Stopped::CancelRequested && *stopped == Some(Stopped::CancelRequested);
            let changes = stopped.is_none() || reason == Stopped::LeaseLost || overrides;
            if changes {
                *stopped = Some(reason);
            }
            changes
        });
    }

    /// When somebody else may have the message, by the monotonic clock.
    pub(crate) fn lapses_at(&self) -> Duration {
        self.times().lapses_at
    }

    /// Its settlement is about to be sent.
    pub(crate) fn settling(&self) {
        self.times().settling = true;
    }

    /// Its handler must end before this, by the monotonic clock.
    pub(crate) fn overdue_at(&self, at: Duration) {
        self.times().overdue_at = Some(at);
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps leases until it is dropped.
#[derive(Debug)]
pub(crate) struct Keepalive(Arc<Shared>);

/// Which lease: a message, how often it had been claimed, and the nonce of that claim.
type Name = (MessageId, u32, [u8; 16]);

fn name(id: MessageId, token: LeaseToken) -> Name {
    (id, token.claims, *token.nonce.as_bytes())
}

#[derive(Debug)]
struct Shared {
    /// In an order that two runs share.
    held: Mutex<BTreeMap<Name, Arc<Held>>>,
    end: Notify,
    clock: Arc<dyn Clock>,
    lease: Duration,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keepalive {
    fn drop(&mut self) {
        self.0.end.notify_one();
    }
}

impl Keepalive {
    /// Starts the thread.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        lease: Duration,
        host: &Host,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared { held: Mutex::default(), end: Notify::new(), clock, lease, metrics });
        let for_thread = Arc::clone(&shared);
        let serving = async move { serve(&for_thread, store.as_ref()).await };
        let Some(serving) = host.needs_a_thread("keepalive", serving) else { return Ok(Self(shared)) };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| StoreError::unavailable("cannot start the keepalive's runtime").source(e))?;
        std::thread::Builder::new()
            .name("tide-keepalive".into())
            .spawn(move || runtime.block_on(serving))
            .map_err(|e| StoreError::unavailable("cannot start the keepalive's thread").source(e))?;
        Ok(Self(shared))
    }

    /// One that extends nothing: for attempts during which no time passes.
    #[cfg(feature = "sqlite")]
    pub(crate) fn idle(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, lease: Duration) -> Self {
        Self(Arc::new(Shared { held: Mutex::default(), end: Notify::new(), clock, lease, metrics }))
    }

    /// Keeps a lease that was granted by a call sent at `sent_at` of the monotonic clock, until the guard is dropped: then
    /// it was settled, or is somebody else's.
    pub(crate) fn hold(&self, lease: &Lease, sent_at: Duration) -> Guard {
        let held = Arc::new(Held {
            id: lease.message.id,
            token: lease.token,
            lease: self.0.lease,
            stop: watch::Sender::new(None),
            times: Mutex::new(Times {
                lapses_at: sent_at.saturating_add(self.0.lease),
                settling: false,
                overdue_at: None,
            }),
        });
        self.0.held().insert(name(held.id, held.token), Arc::clone(&held));
        Guard { held, keepalive: Arc::clone(&self.0) }
    }

    /// Tells all attempts to stop.
    pub(crate) fn stop_all(&self, reason: Stopped) {
        self.0.held().values().for_each(|held| held.stop(reason));
    }
}

/// A lease that is kept for as long as this lives.
#[derive(Debug)]
pub(crate) struct Guard {
    held: Arc<Held>,
    keepalive: Arc<Shared>,
}

impl std::ops::Deref for Guard {
    type Target = Arc<Held>;

    fn deref(&self) -> &Arc<Held> {
        &self.held
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.keepalive.held().remove(&name(self.held.id, self.held.token));
    }
}

type Call<'a> =
    Pin<Box<dyn Future<Output = (Vec<Arc<Held>>, Duration, Result<Verdicts<Extended>, StoreError>)> + Send + 'a>>;

async fn serve(shared: &Shared, store: &dyn Store) {
    // Six looks a lease: one extension may fail and a second still be in time.
    let mut tick = tokio::time::interval((shared.lease / 6).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // One call at a time: while the store is stuck, more of them would only queue behind it.
    let mut under_way: Option<Call<'_>> = None;
    loop {
        tokio::select! {
            biased;
            () = shared.end.notified() => return,
            // Before the tick: an extension that was granted must not be taken for one that is overdue.
            (held, sent_at, verdicts) = answer_of(&mut under_way) => {
                under_way = None;
                apply(&held, sent_at, verdicts);
            }
            _ = tick.tick() => {
                watch_deadlines(shared);
                if under_way.is_none() {
                    under_way = extend_due(shared, store);
                }
            }
        }
    }
}

/// The answer of the call under way; for ever, if there is none.
async fn answer_of(call: &mut Option<Call<'_>>) -> (Vec<Arc<Held>>, Duration, Result<Verdicts<Extended>, StoreError>) {
    match call {
        Some(call) => call.as_mut().await,
        None => std::future::pending().await,
    }
}

fn extend_due<'a>(shared: &Shared, store: &'a dyn Store) -> Option<Call<'a>> {
    let now = shared.clock.monotonic();
    let is_due = |held: &&Arc<Held>| {
        let times = held.times();
        let left = times.lapses_at.saturating_sub(now);
        // A settlement that takes long still needs its lease.
        left <= if times.settling { held.lease / 3 } else { held.lease / 3 * 2 }
    };
    let due: Vec<Arc<Held>> = shared.held().values().filter(is_due).cloned().collect();
    if due.is_empty() || canary::is(Canary::KeepaliveSilent) {
        return None;
    }
    let batch =
        due.iter().map(|held| Extend { id: held.id, token: held.token, lease: held.lease, alone: false }).collect();
    failpoint::reach("keepalive.before_extend");
    Some(Box::pin(async move { (due, now, store.extend(batch).await) }))
}

fn apply(held: &[Arc<Held>], sent_at: Duration, verdicts: Result<Verdicts<Extended>, StoreError>) {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(error) => {
            // Not the end: the deadlines are watched, and the next tick tries again.
            warn!(error = %error, leases = held.len(), "could not extend leases");
            return;
        }
    };
    for (held, verdict) in held.iter().zip(verdicts) {
        match verdict {
            Ok(extended) => {
                held.times().lapses_at = sent_at.saturating_add(held.lease);
                if extended.cancel_requested {
                    held.stop(Stopped::CancelRequested);
                }
            }
            Err(error) if error.kind() == StoreErrorKind::LeaseLost => held.stop(Stopped::LeaseLost),
            Err(error) => debug!(message.id = %held.id, error = %error, "could not extend a lease"),
        }
    }
}

fn watch_deadlines(shared: &Shared) {
    let now = shared.clock.monotonic();
    for held in shared.held().values() {
        let mut times = held.times();
        // A handler that blocks its thread cannot be cancelled; that it keeps its slot must at least be seen.
        if times.overdue_at.is_some_and(|at| now >= at) {
            times.overdue_at = None;
            shared.metrics.overdue.inc();
            warn!(message.id = %held.id, "the handler of message {} is over its time and does not yield", held.id);
        }
        let lapses_soon = now.saturating_add(held.lease / 5) >= times.lapses_at && !canary::is(Canary::LapseNotWatched);
        drop(times);
        if lapses_soon && held.stopped().is_none_or(|reason| reason == Stopped::CancelRequested) {
            held.stop(Stopped::OutOfTime);
        }
    }
}
