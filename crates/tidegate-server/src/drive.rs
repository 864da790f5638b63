//! Drives redrive operations on, so that whoever began one may leave.
//!
//! Everything about an operation is in the store; a step is one commit, and steps of several processes do not hurt one
//! another. So that this task needs no memory: when it starts it takes up what is running in the store, later also what
//! nobody moved between two looks, such as after another server died. What it does keep is for people: which messages were
//! refused, as far as it saw, and what an operation waits for.
//!
//! A client that takes the steps itself, to show them, is left alone for as long as it does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate::store::{Operate, Operation, OperationState, Stepped, Waits};
use tidegate::{Clock as _, MessageId, Store, StoreError, StoreErrorKind, SystemClock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::acting::Whereabouts;
use crate::serving::{Serving, Stopping};

/// How often the store is asked for operations that nobody drives.
const LOOK: Duration = Duration::from_secs(15);
/// How many operations it is asked for, the newest first: when the task starts, and later.
const LOOKED_AT: (u32, u32) = (1000, 100);
/// How long an operation is left to a client that took its last step itself.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// Between two looks after a canary: at first, and at most.
const CANARY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Between two looks after what is still under way of an operation that is done.
const WATCH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long what is under way of an operation that is done is looked after.
const WATCHED: Duration = Duration::from_secs(3600);
/// Between two tries while the store is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The shortest and the longest that a rate is waited for at once.
const RATE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// So many refused messages of one operation are kept.
const REFUSED: usize = 1000;
/// So many operations are remembered.
const REMEMBERED: usize = 1000;

/// Where the messages of an operation are that it names by their ids.
pub(crate) type Places = Arc<BTreeSet<Whereabouts>>;

/// What a server knows of operations beyond what the store keeps.
#[derive(Default)]
pub struct Driver {
    known: Mutex<HashMap<String, Known>>,
    places: Mutex<HashMap<String, Places>>,
    wake: Notify,
    is_driving: AtomicBool,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("is_driving", &self.is_driving).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct Known {
    /// When its next step is; none when there is nothing more to do.
    due: Option<Instant>,
    /// Counts what clients do with it: a step that was under way meanwhile does not say when the next one is.
    told: u64,
    /// How long it was waited for the last time.
    pause: Duration,
    /// So many had ended when it was last looked at.
    ended: u64,
    /// When it was seen to be done.
    done: Option<Instant>,
    refused: Vec<(MessageId, StoreError)>,
    waits: Option<Waits>,
}

impl Known {
    fn due_at(due: Instant) -> Self {
        Self { due: Some(due), told: 0, pause: Duration::ZERO, ended: 0, done: None, refused: Vec::new(), waits: None }
    }

    /// The next pause of a sort: the first one, or twice the last one.
    fn longer(&mut self, (first, most): (Duration, Duration)) -> Duration {
        self.pause = (self.pause * 2).clamp(first, most);
        self.pause
    }

    /// A client says when the next step is.
    fn tell(&mut self, due: Option<Instant>) {
        self.due = due;
        self.told += 1;
    }

    fn remember(&mut self, stepped: &Stepped) {
        self.waits = stepped.waits;
        let room = REFUSED.saturating_sub(self.refused.len());
        self.refused.extend(stepped.refused.iter().take(room).cloned());
    }

    /// When the next step is after this one.
    fn next(&mut self, operation: &Operation, waits: Option<Waits>) -> Option<Duration> {
        let ended = operation.ended_well + operation.ended_badly;
        if std::mem::replace(&mut self.ended, ended) != ended {
            self.pause = Duration::ZERO;
        }
        match (operation.state, waits) {
            (OperationState::Running, None) => Some(Duration::ZERO),
            (OperationState::Running, Some(Waits::Canary)) => Some(self.longer(CANARY)),
            (OperationState::Running, Some(Waits::Until(at))) => {
                Some(at.since(SystemClock::new().now()).clamp(RATE.0, RATE.1))
            }
            // What is under way is counted on, so that whoever looks later finds how it ended.
            (OperationState::Done, _) if operation.under_way() > 0 => {
                let done = *self.done.get_or_insert_with(Instant::now);
                (done.elapsed() < WATCHED).then(|| self.longer(WATCH))
            }
            (OperationState::Done | OperationState::Stopped | OperationState::Cancelled, _) => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// An operation was begun or allowed to go on, and is driven from now on; or, where a client says that it takes the
    /// steps itself, from when it took none for a while.
    pub(crate) fn begun(&self, name: &str, at_once: bool) {
        if !self.is_driving.load(Ordering::Acquire) {
            warn!(operation = name, "nothing drives operations on in this process: run the future of Serving::drive");
        }
        let due = if at_once { Instant::now() } else { Instant::now() + LEFT_ALONE };
        let mut known = lock(&self.known);
        known.entry(name.to_owned()).or_insert_with(|| Known::due_at(due)).tell(Some(due));
        Self::bound(&mut known);
        drop(known);
        self.wake.notify_one();
    }

    /// A client took a step.
    pub(crate) fn stepped(&self, stepped: &Stepped) {
        let due = Instant::now() + LEFT_ALONE;
        let mut known = lock(&self.known);
        let one = known.entry(stepped.operation.name.clone()).or_insert_with(|| Known::due_at(due));
        one.remember(stepped);
        one.tell(match stepped.operation.state {
            OperationState::Running => Some(due),
            OperationState::Done if stepped.operation.under_way() > 0 => Some(due),
            OperationState::Stopped | OperationState::Done | OperationState::Cancelled => None,
        });
        Self::bound(&mut known);
    }

    /// An operation was called off.
    pub(crate) fn ended(&self, name: &str) {
        if let Some(known) = lock(&self.known).get_mut(name) {
            known.tell(None);
            known.waits = None;
        }
    }

    /// What was refused of an operation as far as this server saw, and what it waits for.
    pub(crate) fn told(&self, name: &str) -> (Vec<(MessageId, StoreError)>, Option<Waits>) {
        let known = lock(&self.known);
        known.get(name).map(|known| (known.refused.clone(), known.waits)).unwrap_or_default()
    }

    /// Where the messages are that an operation names, if that was found out before: a message never moves.
    pub(crate) fn places(&self, name: &str) -> Option<Places> {
        lock(&self.places).get(name).cloned()
    }

    /// Remembers where they are.
    pub(crate) fn set_places(&self, name: &str, found: &Places) {
        let mut places = lock(&self.places);
        if places.len() >= REMEMBERED {
            places.clear();
        }
        places.insert(name.to_owned(), Arc::clone(found));
    }

    /// Forgets operations that are over, where there are too many.
    fn bound(known: &mut HashMap<String, Known>) {
        if known.len() > REMEMBERED {
            known.retain(|_, known| known.due.is_some());
        }
    }

    async fn drive(&self, store: Arc<dyn Store>, stopping: Stopping) {
        self.is_driving.store(true, Ordering::Release);
        let _driving = Driving(&self.is_driving);
        let mut looks = Looks::default();
        let mut look = Instant::now();
        while !stopping.is_stopping() {
            let now = Instant::now();
            if look <= now {
                self.take_up(&*store, &mut looks).await;
                look = Instant::now() + LOOK;
                continue;
            }
            match self.first_due() {
                Some((name, due)) if due <= now => {
                    // Not given up half way when it is being stopped: one step is short.
                    self.step(&*store, &name, &mut looks).await;
                }
                first => {
                    let until = first.map_or(look, |(_, due)| due.min(look));
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = self.wake.notified() => {}
                        () = stopping.stopped() => {}
                    }
                }
            }
        }
    }

    fn first_due(&self) -> Option<(String, Instant)> {
        let known = lock(&self.known);
        let first = known.iter().filter_map(|(name, known)| Some((known.due?, name))).min()?;
        Some((first.1.clone(), first.0))
    }

    /// Looks for operations that run and that nobody drives.
    async fn take_up(&self, store: &dyn Store, looks: &mut Looks) {
        let limit = if looks.looked { LOOKED_AT.1 } else { LOOKED_AT.0 };
        let operations = match store.operations(None, limit).await {
            Ok(operations) => operations,
            Err(error) => {
                debug!("operations cannot be looked for: {error}");
                return;
            }
        };
        let running = operations.iter().filter(|operation| operation.state == OperationState::Running);
        let is_first = std::mem::replace(&mut looks.looked, true);
        let before = std::mem::take(&mut looks.seen);
        for operation in running {
            let Operation { name, redriven, refused, ended_well, ended_badly, .. } = operation;
            let counts = [*redriven, *refused, *ended_well, *ended_badly];
            let stands_still = before.get(name) == Some(&counts);
            looks.seen.insert(name.clone(), counts);
            let is_driven = lock(&self.known).get(name).is_some_and(|known| known.due.is_some());
            if !is_driven && !looks.given_up.contains(name) && (is_first || stands_still) {
                info!(operation = name, "an operation that nobody drives is taken up");
                self.begun(name, true);
            }
        }
    }

    async fn step(&self, store: &dyn Store, name: &str, looks: &mut Looks) {
        let told = lock(&self.known).get(name).map(|known| known.told);
        let stepped = store.operate(Operate::Step { name: name.to_owned() }).await;
        let mut known = lock(&self.known);
        let Some(one) = known.get_mut(name) else { return };
        let due = match stepped {
            Ok(stepped) => {
                one.remember(&stepped);
                let due = one.next(&stepped.operation, stepped.waits).map(|pause| Instant::now() + pause);
                let Operation { state, redriven, refused, ended_well, ended_badly, .. } = &stepped.operation;
                if !stepped.refused.is_empty() {
                    info!(operation = name, n = stepped.refused.len(), "an operation could not redrive messages");
                }
                if *state != OperationState::Running && due.is_none() {
                    let state = state.as_str();
                    info!(
                        operation = name,
                        state, redriven, refused, ended_well, ended_badly, "an operation has ended"
                    );
                }
                due
            }
            Err(error) if error.kind() == StoreErrorKind::Unavailable => {
                debug!(operation = name, "a step of an operation has to wait: {error}");
                Some(Instant::now() + one.longer(AWAY))
            }
            Err(error) => {
                warn!(operation = name, "an operation is not driven on: {error:?}");
                looks.given_up.insert(name.to_owned());
                None
            }
        };
        if Some(one.told) == told {
            one.due = due;
        }
    }
}

/// What the task remembers from look to look.
#[derive(Default)]
struct Looks {
    looked: bool,
    seen: HashMap<String, [u64; 4]>,
    given_up: HashSet<String>,
}

/// Says that nobody drives any more when the task ends, however it does.
struct Driving<'a>(&'a AtomicBool);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Serving {
    /// Drives operations on until [`Stopping`] says that the server stops; ends when the step that is under way has. Spawn it
    /// beside the router, and await it before the store is closed.
    ///
    /// # Cancel safety
    /// Dropped, a step that is under way may be carried out all the same, as after a lost reply; nothing is lost by it.
    pub fn drive(&self) -> impl Future<Output = ()> + Send + use<> {
        let (driver, store, stopping) =
            (Arc::clone(&self.driver), Arc::clone(self.tide.store()), self.stopping.clone());
        async move { driver.drive(store, stopping).await }
    }
}

#[cfg(test)]
mod tests {
    use tidegate::Timestamp;
    use tidegate::store::{Pace, Selection};

    use super::*;

    fn operation(state: OperationState, redriven: u64, ended_well: u64) -> Operation {
        Operation {
            name: "op".to_owned(),
            selection: Selection::default(),
            again: false,
            pace: Pace::default(),
            state,
            selected: 9,
            redriven,
            refused: 0,
            ended_well,
            ended_badly: 0,
            actor: String::new(),
            reason: String::new(),
            created_at: Timestamp::from_millis(0),
        }
    }

    #[test]
    fn the_next_step_is_when_it_is_worth_it() {
        let ms = Duration::from_millis;
        let mut known = Known::due_at(Instant::now());
        let mut next = |state, ended, waits| known.next(&operation(state, 5, ended), waits);
        let canary = Some(Waits::Canary);
        assert_eq!(next(OperationState::Running, 0, None), Some(ms(0)));
        let waited: Vec<_> = (0..7).map(|_| next(OperationState::Running, 0, canary).unwrap()).collect();
        assert_eq!(waited, [50, 100, 200, 400, 800, 1000, 1000].map(ms), "less and less often");
        assert_eq!(next(OperationState::Running, 1, canary), Some(ms(50)), "one has ended: others may soon");
        let rate = Some(Waits::Until(Timestamp::from_millis(0)));
        assert_eq!(next(OperationState::Running, 1, rate), Some(ms(5)), "its time has come");
        let waited: Vec<_> = (0..7).map(|_| next(OperationState::Done, 2, None).unwrap()).collect();
        assert_eq!(waited, [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs), "what is under way is watched");
        assert_eq!(next(OperationState::Done, 5, None), None);
        assert_eq!(next(OperationState::Stopped, 2, None), None);
        assert_eq!(next(OperationState::Cancelled, 2, None), None);
    }

    #[tokio::test]
    async fn only_so_much_is_remembered_of_what_was_refused() {
        let driver = Driver::default();
        let refused = vec![(MessageId::from_i64(1), StoreError::conflict("it is ready")); REFUSED / 2 + 1];
        let stepped =
            Stepped { operation: operation(OperationState::Running, 0, 0), refused, waits: Some(Waits::Canary) };
        for _ in 0..3 {
            driver.stepped(&stepped);
        }
        let (refused, waits) = driver.told("op");
        assert_eq!((refused.len(), waits), (REFUSED, Some(Waits::Canary)));
        assert_eq!(driver.told("another"), (Vec::new(), None));
        driver.ended("op");
        assert_eq!((driver.told("op").1, driver.first_due()), (None, None));
    }
}
