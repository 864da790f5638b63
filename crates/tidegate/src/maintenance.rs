//! Housekeeping: takes over leases that lapsed, makes scheduled messages claimable, and ends retentions.
//!
//! It begins with [`Tidegate::open`](crate::Tidegate::open), worker or not, on a thread of its own, so that a handler that
//! blocks its runtime does not stop it. A stall is not a death: a sweeper that was itself asleep, or had no store, waits
//! one full lease before it takes anything over, because the leases' holders were probably asleep as well.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::{Clock, Random};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::store::{Store, SweepRequest, Swept};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::process::Host;
use crate::telemetry::Metrics;
use crate::trace;

/// How housekeeping is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Housekeeping {
    /// How often it looks for lapsed leases.
    pub sweep_every: Duration,
    /// The longest lease of this store's workers: how long a sweeper that was asleep waits.
    pub lease: Duration,
    /// How long answers and keys are kept; `None` keeps them for ever.
    pub retention: Option<Duration>,
}

/// The most rows of each sort that one sweep takes.
const LIMIT: u32 = 500;

/// Ends housekeeping when it is dropped.
#[derive(Debug)]
pub(crate) struct Maintenance {
    end: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Maintenance {
    /// Ends it, and waits until its thread has let go of the store.
    pub(crate) async fn end(mut self) {
        self.end.notify_one();
        let Some(thread) = self.thread.take() else { return };
        // A panic of the thread was logged by it; there is nothing left to end.
        drop(tokio::task::spawn_blocking(move || thread.join()).await);
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.end.notify_one();
    }
}

/// Starts the thread.
pub(crate) fn start(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: Arc<Metrics>,
    housekeeping: Housekeeping,
    host: &Host,
) -> Result<Maintenance, StoreError> {
    let end = Arc::new(Notify::new());
    let sweeper = Sweeper { store, clock, random, metrics, housekeeping, stall: Stall::default() };
    let for_thread = Arc::clone(&end);
    let sweeping = async move { sweeper.run(&for_thread).await };
    let Some(sweeping) = host.needs_a_thread("sweep", sweeping) else {
        return Ok(Maintenance { end, thread: None });
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| StoreError::unavailable("cannot start the housekeeping's runtime").source(e))?;
    let thread = std::thread::Builder::new()
        .name("tide-sweep".into())
        .spawn(move || runtime.block_on(sweeping))
        .map_err(|e| StoreError::unavailable("cannot start the housekeeping's thread").source(e))?;
    Ok(Maintenance { end, thread: Some(thread) })
}

struct Sweeper {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: Arc<Metrics>,
    housekeeping: Housekeeping,
    stall: Stall,
}

/// Whether the sweeper itself was away; times by the monotonic clock.
#[derive(Debug, Default)]
struct Stall {
    /// When a sweep last succeeded.
    last_good: Option<Duration>,
    /// Nothing is taken over before this.
    hold_until: Duration,
}

impl Stall {
    /// Called before each sweep; says how long the sweeper was away, if that was too long.
    fn look(&mut self, now: Duration, housekeeping: &Housekeeping) -> Option<Duration> {
        let Housekeeping { sweep_every, lease, .. } = *housekeeping;
        // The first sweep of a process has not been asleep.
        let away = now.saturating_sub(self.last_good?);
        if away <= lease / 3 + sweep_every {
            return None;
        }
        self.hold_until = now + lease;
        // Once for one stall: without a store, every look would find the same one again.
        self.last_good = Some(now);
        Some(away)
    }
}

impl Sweeper {
    async fn run(mut self, end: &Notify) {
        loop {
            let more = self.sweep().await;
            let pause = if more { Duration::ZERO } else { self.housekeeping.sweep_every };
            tokio::select! {
                biased;
                () = end.notified() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One sweep; says whether there is more to do at once.
    async fn sweep(&mut self) -> bool {
        let now = self.clock.monotonic();
        if let Some(away) = self.stall.look(now, &self.housekeeping) {
            let lease = self.housekeeping.lease;
            info!("housekeeping was asleep or had no store for {away:?}: leases are left alone for {lease:?}");
        }
        let request = SweepRequest {
            take_over: now >= self.stall.hold_until || canary::is(Canary::StallSwept),
            retention: self.housekeeping.retention,
            limit: LIMIT,
            unit: self.random.unit(),
        };
        failpoint::reach("maintenance.before_sweep");
        match self.store.sweep(request).await {
            Ok(swept) => {
                self.stall.last_good = Some(self.clock.monotonic());
                self.report(&swept);
                self.trace(&swept).await;
                swept.more
            }
            Err(error) => {
                warn!(error = %error, "housekeeping failed");
                false
            }
        }
    }

    /// Ends the attempts of those that were taken over in their traces: whoever made them is gone.
    async fn trace(&self, swept: &Swept) {
        if swept.taken_over.is_empty() || !trace::is_on() {
            return;
        }
        match self.store.inspect(swept.taken_over.iter().map(|taken| taken.id).collect()).await {
            Ok(views) => {
                for (taken, view) in swept.taken_over.iter().zip(views) {
                    if let Some(view) = view {
                        trace::taken_over(&view, taken);
                    }
                }
            }
            Err(error) => warn!(error = %error, "what was taken over is missing in its traces"),
        }
    }

    fn report(&self, swept: &Swept) {
        for taken in &swept.taken_over {
            self.metrics.taken_over(&taken.queue);
            warn!(message.id = %taken.id, queue.name = %taken.queue, worker.id = %taken.worker, state = %taken.state,
                "the lease of message {} lapsed: it was taken from worker {} and is {}", taken.id, taken.worker, taken.state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweeper_that_was_asleep_waits_one_full_lease() {
        let seconds = Duration::from_secs;
        let lease = seconds(30);
        let housekeeping = Housekeeping { sweep_every: seconds(3), lease, retention: None };
        let mut stall = Stall::default();
        assert_eq!(stall.look(seconds(50), &housekeeping), None, "the first sweep of a process has not been asleep");
        stall.last_good = Some(seconds(1));
        assert_eq!(stall.look(seconds(14), &housekeeping), None, "13 s are a third of the lease and a pause");
        assert_eq!(stall.look(seconds(100), &housekeeping), Some(seconds(99)));
        assert_eq!(stall.hold_until, seconds(130));
        assert_eq!(stall.look(seconds(110), &housekeeping), None, "one stall is noticed once");
    }
}
