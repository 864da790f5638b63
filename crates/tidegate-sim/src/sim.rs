//! What everything in one run shares: the time, the store behind its oracle, the remote, the faults that wait, the trace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_core::lifecycle::State;
use tidegate_core::store::{CommitListener, News, QueueChange, Store as _};
use tidegate_core::{MessageId, QueueName};
use tidegate_testkit::faulty::Verb;
use tidegate_testkit::model::Model;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::at_once;
use crate::chance::Chance;
use crate::clock::SimClock;
use crate::gateway::Gateway;
use crate::node::Node;
use crate::oracle::{Broke, Oracle};
use crate::plan::Loss;
use crate::settings::{Settings, Violation};
use crate::steps;
use crate::trace::{Event, Trace};

/// How many events a failure shows.
const SHOWN: usize = 60;
/// How many checked calls lie between two looks at the store's own statistics.
const STATS_EVERY: u64 = 20_000;

/// One run.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) settings: Settings,
    started: Instant,
    /// Of the machine that the store is on.
    pub(crate) clock: Arc<SimClock>,
    pub(crate) model: Arc<Model>,
    pub(crate) gateway: Gateway,
    pub(crate) chance: Chance,
    pub(crate) nodes: Vec<Node>,
    /// From now on handlers that always failed succeed, and nothing goes wrong any more.
    pub(crate) calm: AtomicBool,
    pub(crate) violated: Notify,
    pub(crate) runs: AtomicU64,
    news: Arc<Desk>,
    oracle: Mutex<Oracle>,
    trace: Mutex<Trace>,
    violation: Mutex<Option<Violation>>,
    calls: Mutex<Vec<(Verb, Loss)>>,
    down_until: Mutex<Duration>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    paused: Mutex<Vec<QueueName>>,
    since_stats: AtomicU64,
    /// How long the backlog of the overload took to drain.
    drained_in: Mutex<Duration>,
}

/// Keeps what the store says of a commit until whoever made the commit passes it on.
#[derive(Debug, Default)]
struct Desk(Mutex<News>);

impl CommitListener for Desk {
    fn committed(&self, news: &News) {
        let mut desk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        desk.ready.extend(news.ready.iter().cloned());
        desk.ended.extend(news.ended.iter().copied());
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    /// Everything is made, and nothing runs yet.
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let started = Instant::now();
        let clock = Arc::new(SimClock::new(started, Duration::ZERO));
        let model = Arc::new(Model::decided_by_the_core(Arc::clone(&clock) as Arc<dyn tidegate_core::Clock>));
        let news = Arc::new(Desk::default());
        let listener = Arc::downgrade(&news);
        model.on_commit(listener);
        let oracle = Oracle::new(Arc::clone(&model), steps::policies(), settings.retention);
        Arc::new(Self {
            started,
            clock,
            gateway: Gateway::default(),
            chance: Chance::new(settings.seed, "world"),
            nodes: (0..settings.processes).map(|_| Node::new(settings.seed)).collect(),
            calm: AtomicBool::new(false),
            violated: Notify::new(),
            runs: AtomicU64::new(0),
            news,
            oracle: Mutex::new(oracle),
            trace: Mutex::new(Trace::new(SHOWN)),
            violation: Mutex::default(),
            calls: Mutex::default(),
            down_until: Mutex::default(),
            counts: Mutex::default(),
            paused: Mutex::default(),
            since_stats: AtomicU64::new(0),
            drained_in: Mutex::default(),
            model,
            settings,
        })
    }

    /// How much time has passed.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Keeps the first violation, and ends the run.
    pub(crate) fn check(&self, held: Result<(), Broke>) {
        let Err((invariant, what)) = held else { return };
        self.note(None, "violated", MessageId::from_i64(0), 0);
        lock(&self.violation).get_or_insert(Violation { invariant, what, at: self.now() });
        self.violated.notify_one();
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        lock(&self.violation).clone()
    }

    pub(crate) fn note(&self, process: Option<u8>, what: &'static str, id: MessageId, detail: u64) {
        let at_ms = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        lock(&self.trace).note(Event { at_ms, process, what, id: id.as_i64(), detail });
    }

    pub(crate) fn trace(&self) -> MutexGuard<'_, Trace> {
        lock(&self.trace)
    }

    /// Something went wrong, as it was to.
    pub(crate) fn count(&self, fault: &'static str) {
        *lock(&self.counts).entry(fault).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.counts).clone()
    }

    // --- the way to the store ----------------------------------------------------------------------------------------

    pub(crate) fn spoil(&self, verb: Verb, loss: Loss) {
        lock(&self.calls).push((verb, loss));
    }

    pub(crate) fn store_down_until(&self, until: Duration) {
        *lock(&self.down_until) = until;
    }

    /// From now on every call arrives.
    pub(crate) fn connect(&self) {
        lock(&self.calls).clear();
        *lock(&self.down_until) = Duration::ZERO;
    }

    pub(crate) fn is_down(&self) -> bool {
        self.now() < *lock(&self.down_until)
    }

    pub(crate) fn draw(&self, verb: Verb) -> Option<Loss> {
        let mut calls = lock(&self.calls);
        let at = calls.iter().position(|(of, _)| *of == verb)?;
        Some(calls.remove(at).1)
    }

    // --- the store ---------------------------------------------------------------------------------------------------

    pub(crate) fn paused(&self) -> Vec<QueueName> {
        lock(&self.paused).clone()
    }

    pub(crate) fn queue_changed(&self, queue: &QueueName, change: QueueChange) {
        let mut paused = lock(&self.paused);
        match change {
            QueueChange::Pause => paused.push(queue.clone()),
            QueueChange::Resume => paused.retain(|known| known != queue),
            QueueChange::Limit(_) => {}
        }
    }

    /// What the commit that was just made has changed, besides what its verdicts say.
    pub(crate) fn take_news(&self) -> News {
        std::mem::take(&mut *lock(&self.news.0))
    }

    /// Looks now and then at what the store says of itself.
    pub(crate) fn look_at_stats(&self) {
        if self.since_stats.fetch_add(1, Ordering::Relaxed) < STATS_EVERY {
            return;
        }
        self.since_stats.store(0, Ordering::Relaxed);
        self.compare_stats();
    }

    pub(crate) fn compare_stats(&self) {
        let stats = at_once(self.model.stats());
        let held = match &stats {
            Ok(stats) => self.oracle().agrees_with(stats),
            Err(error) => Err(("I16", format!("the store has no statistics: {error}"))),
        };
        self.check(held);
    }

    pub(crate) fn drained_in(&self) -> Duration {
        *lock(&self.drained_in)
    }

    pub(crate) fn drained(&self, within: Duration) {
        *lock(&self.drained_in) = within;
    }

    /// The clocks were set: right, or by somebody who is wrong.
    pub(crate) fn clocks_are_set(&self, right: bool) {
        let now = self.now();
        self.oracle().clock_is_set(right, now);
    }

    /// How many are ready, leased and parked.
    pub(crate) fn unfinished(&self) -> [u64; 3] {
        let oracle = self.oracle();
        [State::Ready, State::Leased, State::Parked].map(|state| oracle.count(state))
    }
}
