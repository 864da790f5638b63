//! A simulated process: all futures of one `Tidegate`, which stop together, and never take another step once it is killed.
//!
//! Every poll of any of them is one step. A crash or a pause is due after a number of steps, so that it can hit any await of
//! any of them. To be killed is to lose all futures at once, whatever they were in the middle of; a process that is paused
//! takes no step while timers run out and replies arrive, and takes them all at once when it goes on.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};

use tidegate::simulation::{Adopted, Process};
use tokio::sync::Notify;

use crate::chance::Chance;
use crate::oracle::Broke;

/// What hits a process after so many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    Kill,
    Pause,
}

/// A process and its futures.
#[derive(Debug)]
pub(crate) struct SimProcess {
    /// Which one.
    pub(crate) number: u8,
    state: Mutex<State>,
    /// Told when a blow has hit, and when a future panicked.
    pub(crate) struck: Notify,
    order: Chance,
    /// Attempts under way, and how many there may be.
    attempts: Arc<AtomicU32>,
    most: u32,
}

/// An attempt, for as long as it is under way.
struct Attempt(Arc<AtomicU32>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct State {
    dead: bool,
    paused: bool,
    steps: u64,
    blow: Option<(u64, Blow)>,
    slots: Vec<Weak<Slot>>,
    waiting: Vec<Waker>,
    broke: Option<Broke>,
}

/// Where a future lies between two of its steps.
struct Slot(Mutex<Option<Adopted>>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    fn take(&self) -> Option<Adopted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, future: Adopted) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(future);
    }
}

/// Whether a step may be taken.
enum Step {
    Taken,
    NotNow,
    Never,
}

impl SimProcess {
    /// A process that runs at most so many attempts.
    pub(crate) fn new(number: u8, most: u32, order: Chance) -> Arc<Self> {
        let (state, struck, attempts) = (Mutex::default(), Notify::new(), Arc::default());
        Arc::new(Self { number, state, struck, order, attempts, most })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// What went wrong in it: one of its futures panicked outside of a handler, or there were too many of them.
    pub(crate) fn broke(&self) -> Option<Broke> {
        self.state().broke.clone()
    }

    /// The blow falls after so many steps from now.
    pub(crate) fn strike(&self, steps: u64, blow: Blow) {
        let mut state = self.state();
        if !state.dead && state.blow.is_none() {
            state.blow = Some((state.steps + steps.max(1), blow));
        }
    }

    /// Takes all futures away: nothing of it ever runs again.
    pub(crate) fn kill(&self) {
        let slots = {
            let mut state = self.state();
            state.dead = true;
            state.paused = false;
            state.blow = None;
            state.waiting.clear();
            std::mem::take(&mut state.slots)
        };
        for slot in slots.iter().filter_map(Weak::upgrade) {
            drop(slot.take());
        }
        self.struck.notify_one();
    }

    /// It goes on, all its futures in some order.
    pub(crate) fn resume(&self) {
        let mut waiting = {
            let mut state = self.state();
            state.paused = false;
            std::mem::take(&mut state.waiting)
        };
        self.order.shuffle(&mut waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn step(&self, waker: &Waker) -> Step {
        let mut state = self.state();
        if state.dead {
            return Step::Never;
        }
        if state.paused {
            state.waiting.push(waker.clone());
            return Step::NotNow;
        }
        state.steps += 1;
        match state.blow {
            Some((at, blow)) if state.steps >= at => {
                state.blow = None;
                match blow {
                    Blow::Kill => {
                        drop(state);
                        self.kill();
                        Step::Never
                    }
                    Blow::Pause => {
                        state.paused = true;
                        state.waiting.push(waker.clone());
                        drop(state);
                        self.struck.notify_one();
                        Step::NotNow
                    }
                }
            }
            Some(_) | None => Step::Taken,
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        self.breaks(("panic", format!("process {} panicked: {text}", self.number)));
    }

    fn breaks(&self, broke: Broke) {
        self.state().broke.get_or_insert(broke);
        self.struck.notify_one();
    }

    /// Takes a future in, of the library or of the application.
    pub(crate) fn run(self: &Arc<Self>, future: Adopted) -> impl Future<Output = ()> + Send + 'static {
        let slot = Arc::new(Slot(Mutex::new(Some(future))));
        {
            let mut state = self.state();
            if state.dead {
                drop(slot.take());
            } else {
                if state.slots.len() > 64 && state.slots.len().is_power_of_two() {
                    state.slots.retain(|slot| slot.strong_count() > 0);
                }
                state.slots.push(Arc::downgrade(&slot));
            }
        }
        let process = Arc::clone(self);
        poll_fn(move |cx| {
            match process.step(cx.waker()) {
                Step::Taken => {}
                Step::NotNow | Step::Never => return Poll::Pending,
            }
            // Taken out while it runs: it may be its own step that kills the process.
            let Some(mut future) = slot.take() else { return Poll::Pending };
            let polled = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(polled) => polled,
                Err(panic) => {
                    process.panicked(panic.as_ref());
                    return Poll::Pending;
                }
            };
            if polled.is_pending() && !process.is_dead() {
                slot.put(future);
            }
            polled
        })
    }
}

/// What the library knows a process by.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<SimProcess>);

impl Process for Handle {
    fn adopt(&self, role: &'static str, future: Adopted) -> Adopted {
        if role != "attempt" {
            return Box::pin(self.0.run(future));
        }
        let under_way = self.0.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        if under_way > self.0.most {
            let what = format!("process {} runs {under_way} attempts, it has slots for {}", self.0.number, self.0.most);
            self.0.breaks(("I17", what));
        }
        let attempt = Attempt(Arc::clone(&self.0.attempts));
        Box::pin(self.0.run(Box::pin(async move {
            future.await;
            drop(attempt);
        })))
    }
}
