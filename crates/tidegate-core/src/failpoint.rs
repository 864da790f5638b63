//! Places at which a process may be made to die: one at each arrow of the protocol.
//!
//! [`reach`] stands in the code of the engine and of the library. While nothing is armed it is one relaxed load of a flag
//! that stays in the cache and a branch that is never taken (on x86-64: mov, test, jne), so it is always compiled in: the
//! program that is shipped is the one that is tortured. `tidegate torture` arms a point in a child process, by that
//! child's hidden command line; nothing else does, and no setting or variable of a user's process can.
//!
//! What happens at an armed point is the caller's to say: this crate sends no signals.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// `verb.place`, as it is armed and printed.
    pub name: &'static str,
    /// What has happened when it is reached, and what has not.
    pub says: &'static str,
    /// Whether it lies inside a write transaction: a process stopped there blocks every other one on the file.
    pub in_transaction: bool,
}

const fn open(name: &'static str, says: &'static str) -> Point {
    Point { name, says, in_transaction: true }
}

const fn point(name: &'static str, says: &'static str) -> Point {
    Point { name, says, in_transaction: false }
}

/// Every point there is, in the order in which a message passes them.
pub const ALL: &[Point] = &[
    // The engine's transaction, whatever it is for.
    open("group.after_begin", "the write lock is held, and nothing is written"),
    open("group.before_commit", "every call of the group has run, and COMMIT was not sent"),
    point("group.after_commit", "COMMIT returned, and no call has its answer"),
    point("group.after_answers", "every call has its answer, and no worker was woken"),
    // Enqueue.
    point("client.before_enqueue", "the message is checked, and the store has not seen it"),
    open("enqueue.after_key", "the key is taken, and the message has no body"),
    open("enqueue.before_commit", "the rows of every message are written"),
    point("enqueue.after_commit", "the messages are stored, and the caller does not know"),
    point("client.after_enqueue", "the library knows that it is stored, and the application does not"),
    // Claim.
    open("claim.after_removal", "the messages left their lanes, and have no lease"),
    open("claim.before_commit", "the leases are written, the attempts counted"),
    point("claim.after_commit", "the leases are stored, and the worker does not know"),
    point("worker.after_claim", "the worker has the leases, and started nothing"),
    point("attempt.before_handler", "the lease is kept alive, and the handler has not begun"),
    // The effect.
    point("effect.before_intent", "an effect is about to be made, and nothing says so"),
    open("journal.before_commit", "the rows of the journal are written"),
    point("journal.after_commit", "the journal is stored, and the attempt does not know"),
    point("effect.before_send", "the intent is durable, and no request has left"),
    point("effect.after_send", "the remote has answered, and nothing says so"),
    point("effect.after_answer", "the answer is noted, or rides with the next commit"),
    point("effect.before_look_up", "an answer is missing, and the remote is about to be asked"),
    point("effect.after_look_up", "the remote has said what happened, and nothing says so"),
    open("transactional.after_work", "the application's rows are written, their confirmation is not"),
    open("transactional.before_commit", "the application's rows and their confirmation are written"),
    point("transactional.after_commit", "both are stored, and the attempt does not know"),
    // The lease.
    point("keepalive.before_extend", "leases are to be extended, and the store has not been asked"),
    open("extend.before_commit", "the leases are extended"),
    point("extend.after_commit", "the extension is stored, and the keepalive does not know"),
    // The end of a run.
    point("attempt.before_settle", "the handler has ended, and the store has not been told"),
    open("settle.after_journal", "the last answers are in the journal, and the run has not ended"),
    open("settle.after_lease", "the lease is gone, and the message is nowhere"),
    open("settle.after_state", "the new state and its result are written, what follows is not"),
    open("settle.before_commit", "result, state, journal and what follows are written"),
    point("settle.after_commit", "the settlement is stored, and the attempt does not know"),
    point("attempt.after_settle", "the attempt knows that it is settled, and frees its slot"),
    // Housekeeping.
    point("maintenance.before_sweep", "a sweep is due, and the store has not been asked"),
    open("sweep.after_take_over", "a lapsed lease was taken over, others were not"),
    open("sweep.before_commit", "what lapsed is taken over, what is due is claimable"),
    point("sweep.after_commit", "the sweep is stored, and nobody was told"),
    // The end of a worker.
    point("drain.begin", "the worker claims nothing more, and waits for its handlers"),
    point("drain.end", "its handlers have ended or were told to, and the worker is about to end"),
];

/// Set while a point is armed or visits are counted.
static WATCHED: AtomicBool = AtomicBool::new(false);
static WATCH: Mutex<Watch> = Mutex::new(Watch { armed: Vec::new(), visits: None });

struct Watch {
    armed: Vec<Armed>,
    visits: Option<BTreeMap<&'static str, u64>>,
}

struct Armed {
    point: &'static str,
    left: u64,
    act: fn(&'static str),
}

/// The code has come to this point.
#[inline]
pub fn reach(point: &'static str) {
    // Relaxed: a child arms its points before it starts anything that could reach one.
    if WATCHED.load(Ordering::Relaxed) {
        reached(point);
    }
}

#[cold]
#[inline(never)]
fn reached(point: &'static str) {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(visits) = &mut watch.visits {
        *visits.entry(point).or_default() += 1;
    }
    let mut acts = Vec::new();
    for armed in watch.armed.iter_mut().filter(|armed| armed.point == point && armed.left > 0) {
        armed.left -= 1;
        if armed.left == 0 {
            acts.push(armed.act);
        }
    }
    // An act that stops the process must not keep others from reaching their points after it is let go.
    drop(watch);
    for act in acts {
        act(point);
    }
}

/// Has `act` done, with the point's name, when this process comes to it for the `nth` time from now, counted from 1. Only the hidden roles
/// of the program call this, before they start anything.
///
/// # Errors
/// There is no such point, or `nth` is 0.
pub fn arm(point: &str, nth: u64, act: fn(&'static str)) -> Result<(), UnknownPoint> {
    let Some(point) = find(point).filter(|_| nth > 0) else { return Err(UnknownPoint { name: point.to_owned(), nth }) };
    WATCH.lock().unwrap_or_else(PoisonError::into_inner).armed.push(Armed { point: point.name, left: nth, act });
    WATCHED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The point of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Point> {
    ALL.iter().find(|point| point.name == name)
}

/// Counts visits from now on: for a test that every point is reached, and is listed.
pub fn count_visits() {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner).visits.get_or_insert_default();
    WATCHED.store(true, Ordering::Relaxed);
}

/// How often each point was reached since [`count_visits`].
#[must_use]
pub fn visits() -> BTreeMap<&'static str, u64> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner).visits.clone().unwrap_or_default()
}

/// A point that cannot be armed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPoint {
    name: String,
    nth: u64,
}

impl fmt::Display for UnknownPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nth == 0 {
            return write!(
                f,
                "failpoint {} cannot be armed for its visit 0\nhint: visits are counted from 1",
                self.name
            );
        }
        write!(f, "no failpoint is called {:?}\nhint: tidegate torture --list-failpoints", self.name)
    }
}

impl std::error::Error for UnknownPoint {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    use super::*;

    static DONE: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn a_point_acts_once_at_the_visit_it_was_armed_for() {
        arm("drain.end", 2, |_| {
            DONE.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            reach("drain.end");
            reach("drain.begin");
            seen.push(DONE.load(Ordering::Relaxed));
        }
        assert_eq!(seen, [0, 1, 1, 1]);
    }

    #[test]
    fn a_point_that_does_not_exist_cannot_be_armed() {
        assert!(arm("settle.somewhere", 1, |_| {}).unwrap_err().to_string().contains("settle.somewhere"));
        assert!(arm("drain.end", 0, |_| {}).unwrap_err().to_string().contains("counted from 1"));
    }

    #[test]
    fn names_are_unique_and_each_says_what_has_happened() {
        let names: BTreeSet<_> = ALL.iter().map(|point| point.name).collect();
        assert_eq!(names.len(), ALL.len());
        for point in ALL {
            assert!(point.name.split_once('.').is_some(), "{}", point.name);
            assert!(point.says.len() > 10 && !point.says.ends_with('.'), "{}: {}", point.name, point.says);
        }
    }
}
