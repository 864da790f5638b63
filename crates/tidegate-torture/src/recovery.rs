//! How soon the messages of a killed worker are free again: looked up in the store from the moment it died.
//!
//! A message is *free* when it no longer belongs to the dead worker, and runs *again* when another one has it, or it has
//! ended. Time after the lapse of its lease in which no service was there that could take anything over (all were down,
//! stopped, or just let go) is left out, and reported. The measurement looks every 25 ms; when it is itself kept from
//! looking, the machine stood still, and that time is noted beside the figures instead of being blamed on the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use deposits::clock;
use deposits::proof::percentile;
use tidegate::store::{Filter, MessageView};
use tidegate::{MessageId, State, StoreError, StoreErrorKind, Tidegate};
use tokio::sync::mpsc;

use crate::report::Recovery;
use crate::stage::Stage;

/// On top of the lease: how soon the messages of a killed worker must be free.
const SLACK: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A look that comes later than this was kept from coming.
const STALL: Duration = Duration::from_millis(250);
/// A store that is away for longer than this is gone.
const AWAY_FOR: Duration = Duration::from_secs(30);
/// Nothing is followed for longer than this; it counts as late.
const GIVE_UP: Duration = Duration::from_secs(60);

/// A worker that was killed.
#[derive(Debug)]
pub(crate) struct Death {
    pub(crate) worker: String,
    pub(crate) at: Instant,
}

/// What a dead worker held.
struct Held {
    worker: String,
    at: Instant,
    stalled: Duration,
    /// How long nobody was there who could take it over.
    nobody: Duration,
    free: bool,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    free_ms: Vec<u64>,
    again_ms: Vec<u64>,
    stalled: Duration,
    nobody: Duration,
    wall_ms: u64,
    /// In words, those that took too long.
    pub(crate) late: Vec<String>,
}

impl Measured {
    pub(crate) fn recovery(&self, lease: Duration) -> Recovery {
        let of = |values: &[u64], percent| percentile(values.to_vec(), percent);
        Recovery {
            messages: self.free_ms.len() as u64,
            p50_ms: of(&self.free_ms, 50),
            p99_ms: of(&self.free_ms, 99),
            max_ms: self.free_ms.iter().copied().max().unwrap_or(0),
            again_p50_ms: of(&self.again_ms, 50),
            again_p99_ms: of(&self.again_ms, 99),
            bound_ms: millis(lease + SLACK),
            late: self.late.len() as u64,
            machine_stalled_ms: millis(self.stalled),
            nobody_there_ms: millis(self.nobody),
            max_with_nobody_there_ms: self.wall_ms,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Follows the messages of all workers that die, until nobody is left who could tell of another and all are back.
pub(crate) async fn measure(
    stage: Arc<Stage>,
    tide: Tidegate,
    mut deaths: mpsc::UnboundedReceiver<Death>,
    lease: Duration,
) -> anyhow::Result<Measured> {
    let bound = lease + SLACK;
    let mut measured = Measured::default();
    let mut held: HashMap<(MessageId, String), Held> = HashMap::new();
    let mut open = true;
    let mut looked = clock::now();
    while open || !held.is_empty() {
        tokio::select! {
            death = deaths.recv(), if open => match death {
                Some(death) => held.extend(held_by(&tide, &death).await?),
                None => open = false,
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = clock::now();
        let passed = now.saturating_duration_since(looked);
        looked = now;
        let kept = passed.saturating_sub(STALL);
        let nobody = if stage.somebody_sweeps() { Duration::ZERO } else { passed };
        measured.stalled += kept;
        measured.nobody += nobody;
        for held in held.values_mut() {
            held.stalled += kept;
            // Before its lease lapses nobody may take a message over, whoever is there.
            if now.saturating_duration_since(held.at) > lease {
                held.nobody += nobody;
            }
        }
        look(&tide, &mut held, &mut measured, bound).await?;
    }
    Ok(measured)
}

/// The messages that were leased to a worker when it died. Its leases have not lapsed yet, so nobody took them over.
async fn held_by(tide: &Tidegate, death: &Death) -> anyhow::Result<Vec<((MessageId, String), Held)>> {
    let filter = Filter { states: vec![State::Leased], limit: 10_000, ..Filter::default() };
    let leased = patiently(|| tide.store().list(filter.clone())).await;
    let leased = leased.context("cannot list what the killed worker held")?;
    let ids: Vec<MessageId> = leased.into_iter().map(|summary| summary.id).collect();
    let views = patiently(|| tide.store().inspect(ids.clone())).await?;
    let of_it = views.into_iter().flatten().filter(|view| is_held_by(view, &death.worker));
    Ok(of_it
        .map(|view| {
            let held = Held {
                worker: death.worker.clone(),
                at: death.at,
                stalled: Duration::ZERO,
                nobody: Duration::ZERO,
                free: false,
            };
            ((view.message.id, death.worker.clone()), held)
        })
        .collect())
}

/// Asks a store again that is away for the moment, as a server is that was just restarted.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let started = clock::now();
    loop {
        match ask().await {
            Err(error)
                if error.kind() == StoreErrorKind::Unavailable
                    && clock::now().saturating_duration_since(started) < AWAY_FOR =>
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            answered => return answered,
        }
    }
}

fn is_held_by(view: &MessageView, worker: &str) -> bool {
    view.lease.as_ref().is_some_and(|(holder, _)| holder.as_str() == worker)
}

async fn look(
    tide: &Tidegate,
    held: &mut HashMap<(MessageId, String), Held>,
    measured: &mut Measured,
    bound: Duration,
) -> anyhow::Result<()> {
    if held.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<MessageId> = held.keys().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    let views = patiently(|| tide.store().inspect(ids.clone())).await;
    let views = views.context("cannot look at the messages of a killed worker")?;
    let views: HashMap<MessageId, MessageView> =
        views.into_iter().flatten().map(|view| (view.message.id, view)).collect();
    let now = clock::now();
    held.retain(|(id, _), held| {
        let wall = now.saturating_duration_since(held.at);
        let took = wall.saturating_sub(held.nobody);
        let Some(view) = views.get(id) else { return false };
        if !held.free {
            let free = !is_held_by(view, &held.worker);
            if free || wall > GIVE_UP {
                held.free = true;
                measured.free_ms.push(millis(took));
                measured.wall_ms = measured.wall_ms.max(millis(wall));
                if took > bound + held.stalled {
                    measured.late.push(format!(
                        "{id}, held by {}, was free after {took:?}, or {wall:?} with nobody there",
                        held.worker
                    ));
                }
            }
        }
        let again = match view.state {
            State::Leased => !is_held_by(view, &held.worker),
            State::Ready => false,
            State::Completed | State::Failed | State::Dead | State::Cancelled | State::Parked => true,
        };
        if again {
            measured.again_ms.push(millis(took));
        }
        !again && wall <= GIVE_UP
    });
    Ok(())
}
