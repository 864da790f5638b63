//! Counters and depths, counted again from what happened: histories, states and journals, never from counters.
//!
//! A store's tallies are written with the acts they count; this is the other way to the same numbers. It holds at
//! quiescence of a store from which nothing was deleted yet, as the histories of deleted messages are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::effect::open_rows;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Counted, Ending, Filter, MessageView, Stats};
use tidegate_core::{Kind, QueueName, Store, StoreError, Tenant, Timestamp};

/// The numbers as they must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recount {
    tallies: BTreeMap<(QueueName, Kind, Counted, String), u64>,
    depths: BTreeMap<(Tenant, QueueName), Depth>,
    open_effects: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Depth {
    ready: u64,
    scheduled: u64,
    leased: u64,
    parked: u64,
    dead: u64,
    oldest_ready: Option<Duration>,
    oldest_parked: Option<Duration>,
    oldest_dead: Option<Duration>,
}

/// What can be recounted; the rest leaves no trace but its counter.
const RECOUNTED: [Counted; 12] = [
    Counted::Enqueued,
    Counted::Attempts,
    Counted::Retries,
    Counted::Failures,
    Counted::Completed,
    Counted::Failed,
    Counted::Dead,
    Counted::Parked,
    Counted::Cancelled,
    Counted::Redriven,
    Counted::Resolved,
    Counted::LostLeases,
];

/// Whether the code of a counter is in the history, too.
fn by_code(what: Counted) -> bool {
    matches!(what, Counted::Attempts | Counted::Retries | Counted::Failures | Counted::Failed)
}

/// Every message of a store, page by page.
///
/// # Errors
/// Those of the store.
///
/// # Cancel safety
/// It only reads.
pub async fn every_view(store: &dyn Store) -> Result<Vec<MessageView>, StoreError> {
    let mut views = Vec::new();
    let mut filter = Filter { limit: 500, ..Filter::default() };
    loop {
        let page = store.list(filter.clone()).await?;
        let Some(last) = page.last() else { return Ok(views) };
        filter.after = Some(last.id);
        views.extend(store.inspect(page.iter().map(|summary| summary.id).collect()).await?.into_iter().flatten());
    }
}

/// Recounts a store as of a moment of its clock.
///
/// # Errors
/// Those of the store.
///
/// # Cancel safety
/// It only reads.
pub async fn recount(store: &dyn Store, now: Timestamp) -> Result<Recount, StoreError> {
    let mut recount = Recount::default();
    for view in every_view(store).await? {
        recount.add(&view, now);
    }
    Ok(recount)
}

/// What an operator did, as opposed to how a run ended.
fn is_act(ending: &Ending) -> bool {
    matches!(ending.outcome.as_str(), "redriven" | "resolved" | "cancelled")
}

impl Recount {
    /// Counts one message.
    pub fn add(&mut self, view: &MessageView, now: Timestamp) {
        self.open_effects += open_rows(&view.journal).count() as u64;
        self.add_depth(view, now);
        self.count(view, Counted::Enqueued, "");
        let mut before: Option<State> = None;
        for ending in &view.history {
            self.add_ending(view, ending, before);
            before = Some(ending.state);
        }
        match view.state {
            State::Completed => {
                self.count(view, Counted::Attempts, "completed");
                self.count(view, Counted::Completed, "");
            }
            State::Dead => self.count(view, Counted::Dead, ""),
            State::Cancelled => self.count(view, Counted::Cancelled, ""),
            State::Ready | State::Leased | State::Failed | State::Parked => {}
        }
    }

    fn add_ending(&mut self, view: &MessageView, ending: &Ending, before: Option<State>) {
        match ending.outcome.as_str() {
            "redriven" => {
                self.count(view, Counted::Redriven, "");
                // What it was until then; a death at a claim is no run's end and may be missing in the history.
                match before {
                    Some(State::Failed) => {}
                    Some(State::Cancelled) => self.count(view, Counted::Cancelled, ""),
                    Some(State::Dead | State::Ready | State::Leased | State::Completed | State::Parked) | None => {
                        self.count(view, Counted::Dead, "");
                    }
                }
            }
            "resolved" if ending.state == State::Ready => self.count(view, Counted::Resolved, ""),
            _ => {}
        }
        if is_act(ending) || !is_run(ending) {
            return;
        }
        self.count(view, Counted::Attempts, &ending.outcome);
        if ending.outcome == "lease_expired" {
            self.count(view, Counted::LostLeases, "");
        } else if !ending.code.is_empty() {
            self.count(view, Counted::Failures, &ending.code);
        }
        match ending.state {
            State::Ready => self.count(view, Counted::Retries, &ending.code),
            State::Parked => self.count(view, Counted::Parked, ""),
            State::Failed => self.count(view, Counted::Failed, &ending.code),
            State::Leased | State::Completed | State::Dead | State::Cancelled => {}
        }
    }

    fn add_depth(&mut self, view: &MessageView, now: Timestamp) {
        let depth = self.depths.entry((view.message.tenant.clone(), view.message.queue.clone())).or_default();
        match view.state {
            State::Ready if view.due_at.is_none_or(|due_at| due_at <= now) => {
                depth.ready += 1;
                depth.oldest_ready = depth.oldest_ready.max(view.due_at.map(|due_at| now.since(due_at)));
            }
            State::Ready => depth.scheduled += 1,
            State::Leased => depth.leased += 1,
            State::Parked => {
                depth.parked += 1;
                depth.oldest_parked = depth.oldest_parked.max(view.ended_at.map(|at| now.since(at)));
            }
            State::Dead => {
                depth.dead += 1;
                depth.oldest_dead = depth.oldest_dead.max(view.ended_at.map(|at| now.since(at)));
            }
            State::Completed | State::Failed | State::Cancelled => {}
        }
    }

    fn count(&mut self, view: &MessageView, what: Counted, code: &str) {
        let message = &view.message;
        *self.tallies.entry((message.queue.clone(), message.kind.clone(), what, code.to_owned())).or_default() += 1;
    }

    /// What a store says otherwise, in words; empty when the two agree.
    #[must_use]
    pub fn differences(&self, stats: &Stats) -> Vec<String> {
        let mut told: BTreeMap<(QueueName, Kind, Counted, String), u64> = BTreeMap::new();
        for tally in stats.tallies.iter().filter(|tally| RECOUNTED.contains(&tally.what) && tally.n > 0) {
            if tally.what == Counted::Failures && tally.code == "lease_expired" {
                // Whether a lost lease is a failure, too, is the engine's word; it is counted as one above.
                continue;
            }
            let code = if by_code(tally.what) { tally.code.clone() } else { String::new() };
            *told.entry((tally.queue.clone(), tally.kind.clone(), tally.what, code)).or_default() += tally.n;
        }
        let mut differences = compare("tally", &self.tallies, &told);

        let told: BTreeMap<_, _> = (stats.queues.iter())
            .map(|q| {
                let depth = Depth {
                    ready: q.ready,
                    scheduled: q.scheduled,
                    leased: q.leased,
                    parked: q.parked,
                    dead: q.dead,
                    oldest_ready: q.oldest_ready,
                    oldest_parked: q.oldest_parked,
                    oldest_dead: q.oldest_dead,
                };
                ((q.tenant.clone(), q.queue.clone()), depth)
            })
            .filter(|(_, depth)| *depth != Depth::default())
            .collect();
        let counted: BTreeMap<_, _> =
            self.depths.iter().filter(|(_, d)| **d != Depth::default()).map(|(k, d)| (k.clone(), d.clone())).collect();
        differences.extend(compare("queue", &counted, &told));
        if self.open_effects != stats.open_effects {
            differences.push(format!("open effects: counted {}, told {}", self.open_effects, stats.open_effects));
        }
        differences
    }
}

fn is_run(ending: &Ending) -> bool {
    const RUNS: [&str; 12] = [
        "completed",
        "permanent",
        "retryable",
        "not_done",
        "unknown",
        "snooze",
        "park",
        "exhausted",
        "undecodable",
        "refused",
        "released",
        "lease_expired",
    ];
    RUNS.contains(&ending.outcome.as_str())
}

fn compare<K, V>(what: &str, counted: &BTreeMap<K, V>, told: &BTreeMap<K, V>) -> Vec<String>
where
    K: Ord + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    let mut keys: Vec<&K> = counted.keys().chain(told.keys()).collect();
    keys.sort();
    keys.dedup();
    (keys.into_iter())
        .filter(|key| counted.get(*key) != told.get(*key))
        .map(|key| format!("{what} {key:?}: counted {:?}, told {:?}", counted.get(key), told.get(key)))
        .collect()
}
