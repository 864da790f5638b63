//! How soon the messages of a killed worker are free again: looked up in the store from the moment it died.
//!
//! A message is *free* when it no longer belongs to the dead worker, and runs *again* when another one has it, or it has
//! ended. Time after the lapse of its lease in which no service was there that could take anything over (all were down,
//! stopped, or just let go, or the server was away) is left out, and reported. Who is there is looked at every 25 ms, by
//! itself, because whoever asks the store waits for a server that is away. When that look is itself kept from coming, the
//! machine stood still, and that time is noted beside the figures instead of being blamed on the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use deposits::clock;
use deposits::proof::percentile;
use tidegate::store::{Filter, MessageView};
use tidegate::{MessageId, State, StoreError, StoreErrorKind, Tidegate};
use tokio::sync::mpsc;

use crate::report::Recovery;
use crate::stage::Stage;
use crate::victim::Victim;

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
    pub(crate) victim: Victim,
    pub(crate) at: Instant,
}

/// What a dead worker held.
struct Held {
    worker: String,
    at: Instant,
    free: bool,
}

/// When something was the case.
#[derive(Debug, Default)]
struct Spans(Vec<(Instant, Instant)>);

impl Spans {
    /// It may be found out late, but never of a time after the last one.
    fn add(&mut self, mut from: Instant, to: Instant) {
        while let Some((begin, _)) = self.0.pop_if(|(_, end)| *end >= from) {
            from = from.min(begin);
        }
        self.0.push((from, to));
    }

    /// How long it was the case in this time.
    fn within(&self, from: Instant, to: Instant) -> Duration {
        self.0.iter().map(|(begin, end)| (*end).min(to).saturating_duration_since((*begin).max(from))).sum()
    }
}

/// What is watched from the beginning, however long the store lets others wait.
#[derive(Debug, Default)]
struct Watched {
    /// The machine did not let the watch look.
    stalled: Spans,
    /// Nobody was there who could take anything over.
    nobody: Spans,
}

/// Watches until it is aborted.
async fn watch(stage: Arc<Stage>, watched: Arc<Mutex<Watched>>) {
    let mut looked = clock::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = clock::now();
        let mut watched = lock(&watched);
        if now.saturating_duration_since(looked) > STALL {
            watched.stalled.add(looked + STALL, now);
        }
        if !stage.somebody_sweeps() {
            watched.nobody.add(stage.rows_held_since().map_or(looked, |since| since.min(looked)), now);
        }
        looked = now;
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    free_ms: Vec<u64>,
    again_ms: Vec<u64>,
    stalled: Duration,
    nobody: Duration,
    wall_ms: u64,
    /// By workers of another program when they were killed.
    pub(crate) held_captures: u64,
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
    let watched = Arc::new(Mutex::new(Watched::default()));
    let watching = tokio::spawn(watch(stage, Arc::clone(&watched)));
    let started = clock::now();
    let followed = follow(&tide, &mut deaths, &watched, lease).await;
    watching.abort();
    let mut measured = followed?;
    let (watched, now) = (lock(&watched), clock::now());
    measured.stalled = watched.stalled.within(started, now);
    measured.nobody = watched.nobody.within(started, now);
    Ok(measured)
}

async fn follow(
    tide: &Tidegate,
    deaths: &mut mpsc::UnboundedReceiver<Death>,
    watched: &Mutex<Watched>,
    lease: Duration,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let mut held: HashMap<(MessageId, String), Held> = HashMap::new();
    let mut open = true;
    while open || !held.is_empty() {
        tokio::select! {
            death = deaths.recv(), if open => match death {
                Some(death) => {
                    let of_it = held_by(tide, &death).await?;
                    if death.victim == Victim::CaptureWorker {
                        measured.held_captures += of_it.len() as u64;
                    }
                    held.extend(of_it);
                }
                None => open = false,
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        look(tide, &mut held, watched, &mut measured, lease).await?;
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
            let held = Held { worker: death.worker.clone(), at: death.at, free: false };
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
    watched: &Mutex<Watched>,
    measured: &mut Measured,
    lease: Duration,
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
    let (now, watched) = (clock::now(), lock(watched));
    held.retain(|(id, _), held| {
        let wall = now.saturating_duration_since(held.at);
        // Before its lease lapses nobody may take a message over, whoever is there.
        let took = wall.saturating_sub(watched.nobody.within(held.at + lease, now));
        let stalled = watched.stalled.within(held.at, now);
        let Some(view) = views.get(id) else { return false };
        if !held.free {
            let free = !is_held_by(view, &held.worker);
            if free || wall > GIVE_UP {
                held.free = true;
                measured.free_ms.push(millis(took));
                measured.wall_ms = measured.wall_ms.max(millis(wall));
                if took > lease + SLACK + stalled {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_something_was_the_case_counts_where_it_falls_into_the_time_asked_for() {
        let begin = clock::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut spans = Spans::default();
        for (from, to) in [(100, 125), (125, 150), (400, 1000)] {
            spans.add(at(from), at(to));
        }
        assert_eq!(spans.0.len(), 2, "what follows at once is one span");
        for (from, to, expected) in [(0, 50, 0), (0, 2000, 650), (120, 140, 20), (140, 500, 110), (1000, 2000, 0)] {
            assert_eq!(spans.within(at(from), at(to)), Duration::from_millis(expected), "{from}..{to}");
        }
    }

    #[test]
    fn what_is_found_out_late_counts_once_and_from_its_beginning() {
        let begin = clock::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut spans = Spans::default();
        for (from, to) in [(0, 10), (100, 125), (150, 175), (90, 400), (400, 425)] {
            spans.add(at(from), at(to));
        }
        assert_eq!(spans.0, [(at(0), at(10)), (at(90), at(425))]);
    }
}
