//! Which faults happen, in which order: from a seed alone.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deposits::clock;
use deposits::gateway::GatewayMode;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tidegate::failpoint::{self, Point};

use crate::victim::Victim;

/// Which failpoints are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failpoints {
    /// Each at its first visit, and again at a later one.
    All,
    /// Each at its first visit.
    First,
    /// None: every kill is at a random moment.
    None,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Faults of all sorts until the time is over, every failpoint first.
    For(Duration),
    /// So many.
    Count(Faults),
}

/// How many faults of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// SIGKILLs, those at failpoints included.
    pub kills: u64,
    /// SIGSTOPs for longer than the lease.
    pub stops: u64,
    /// SIGTERMs with a new process afterwards.
    pub redeploys: u64,
    /// Connections of a service that the server ends; of a file there are none.
    pub terminations: u64,
    /// Immediate restarts of the server.
    pub restarts: u64,
}

/// Which faults there can be besides those of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Possible {
    /// The store is on a server, which can end connections.
    pub(crate) terminations: bool,
    /// The server is ours to restart.
    pub(crate) restarts: bool,
}

/// One fault, for whichever process of its sort is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL at a random moment.
    Kill { after: Duration },
    /// SIGKILL at a failpoint.
    KillAt { point: &'static Point, nth: u64 },
    /// SIGSTOP at a random moment, then SIGCONT.
    Stop { after: Duration, length: Duration },
    /// SIGSTOP at a failpoint, then SIGCONT.
    StopAt { point: &'static Point, nth: u64, length: Duration },
    /// SIGTERM, and a new process when the old one has drained.
    Redeploy { after: Duration },
    /// The server ends the connections of a service: at a random moment, or between a COMMIT and its answer.
    Terminate { after: Duration, in_commit: bool },
    /// The server is restarted as if it had crashed.
    Restart { after: Duration },
}

/// The faults that are still to come, shared by all processes of a sort.
#[derive(Debug)]
pub(crate) struct Plan(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    fixed: VecDeque<Fault>,
    until: Option<Instant>,
    lease: Duration,
    points: Vec<&'static Point>,
    possible: Possible,
    rng: ChaCha8Rng,
}

/// A point that no run with this gateway and store comes to: nothing is ever looked up at one that recognises keys, or
/// cannot be asked; and a server writes in one statement what a file is written row by row.
pub(crate) fn unreachable(point: &Point, gateway: GatewayMode, possible: Possible) -> bool {
    let in_one_statement = ["claim.after_removal"];
    (point.name.ends_with("_look_up") && gateway != GatewayMode::Lookup)
        || (possible.terminations && in_one_statement.contains(&point.name))
}

/// What a process comes to once at most, or seldom: a later visit is not waited for.
fn is_rare(point: &Point) -> bool {
    ["drain.", "sweep.", "maintenance.", "keepalive.", "extend."].iter().any(|start| point.name.starts_with(start))
        || point.name.ends_with("_look_up")
}

/// What is planned for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) seed: u64,
    pub(crate) lease: Duration,
    pub(crate) gateway: GatewayMode,
    pub(crate) failpoints: Failpoints,
    pub(crate) amount: Amount,
    pub(crate) possible: Possible,
}

impl Plan {
    /// The faults of one sort of process. Failpoints are armed in services only, and connections are those of whoever is at
    /// the store.
    pub(crate) fn new(victim: Victim, asked: Asked) -> Self {
        let Asked { seed, lease, gateway, .. } = asked;
        let (failpoints, possible) = match victim {
            Victim::Service => (asked.failpoints, asked.possible),
            Victim::Server => (Failpoints::None, Possible { restarts: false, ..asked.possible }),
            Victim::CaptureWorker => (Failpoints::None, Possible::default()),
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ victim.salt());
        let points: Vec<_> = match victim {
            Victim::Service => failpoint::ALL.iter().filter(|point| !unreachable(point, gateway, possible)).collect(),
            Victim::Server | Victim::CaptureWorker => Vec::new(),
        };
        let mut fixed: Vec<Fault> = Vec::new();
        if failpoints != Failpoints::None {
            fixed.extend(points.iter().map(|point| Fault::KillAt { point, nth: 1 }));
        }
        if failpoints == Failpoints::All {
            let often = points.iter().filter(|point| !is_rare(point));
            fixed.extend(often.map(|point| Fault::KillAt { point, nth: rng.random_range(2..=12) }));
        }
        let until = match victim.share(asked.amount) {
            Amount::For(length) => Some(clock::now() + length),
            Amount::Count(Faults { kills, stops, redeploys, terminations, restarts }) => {
                let at_points = fixed.len() as u64;
                fixed.extend((at_points..kills).map(|_| kill(&mut rng)));
                let stop = |number, rng: &mut ChaCha8Rng| stop(number % 2 == 0, lease, &points, rng);
                fixed.extend((0..stops).map(|number| stop(number, &mut rng)));
                fixed.extend((0..redeploys).map(|_| redeploy(&mut rng)));
                let terminations = if possible.terminations { terminations } else { 0 };
                fixed.extend((0..terminations).map(|_| terminate(true, &mut rng)));
                let restarts = if possible.restarts { restarts } else { 0 };
                fixed.extend((0..restarts).map(|_| restart(&mut rng)));
                None
            }
        };
        fixed.shuffle(&mut rng);
        Self(Mutex::new(Inner { fixed: fixed.into(), until, lease, points, possible, rng }))
    }

    /// How many faults are fixed beforehand and not yet taken.
    pub(crate) fn left(&self) -> usize {
        self.inner().fixed.len()
    }

    /// The next fault; none when it is time to end.
    pub(crate) fn next(&self) -> Option<Fault> {
        let mut inner = self.inner();
        let Inner { fixed, until, lease, points, possible, rng } = &mut *inner;
        if until.is_some_and(|until| clock::now() >= until) {
            return None;
        }
        // A run by the clock has faults of all sorts from its beginning, also while failpoints are left.
        if until.is_some() && (fixed.is_empty() || rng.random_bool(0.25)) {
            if possible.terminations && rng.random_bool(0.2) {
                return Some(terminate(rng.random_bool(0.7), rng));
            }
            if possible.restarts && rng.random_bool(0.08) {
                return Some(restart(rng));
            }
            return Some(match rng.random_range(0..100) {
                0..70 => kill(rng),
                70..93 => stop(rng.random(), *lease, points, rng),
                _ => redeploy(rng),
            });
        }
        fixed.pop_front()
    }

    /// A fault that could not be carried out comes again.
    pub(crate) fn again(&self, fault: Fault) {
        self.inner().fixed.push_back(fault);
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kill(rng: &mut ChaCha8Rng) -> Fault {
    Fault::Kill { after: Duration::from_micros(rng.random_range(1_000..400_000)) }
}

fn redeploy(rng: &mut ChaCha8Rng) -> Fault {
    Fault::Redeploy { after: Duration::from_micros(rng.random_range(50_000..400_000)) }
}

fn terminate(in_commit: bool, rng: &mut ChaCha8Rng) -> Fault {
    Fault::Terminate { after: Duration::from_micros(rng.random_range(5_000..200_000)), in_commit }
}

fn restart(rng: &mut ChaCha8Rng) -> Fault {
    Fault::Restart { after: Duration::from_micros(rng.random_range(50_000..400_000)) }
}

fn stop(at_point: bool, lease: Duration, points: &[&'static Point], rng: &mut ChaCha8Rng) -> Fault {
    let length = lease * rng.random_range(125..=175) / 100;
    // Inside a transaction it would block everybody: the documented limit, and nothing to be learnt from.
    let outside: Vec<_> = points.iter().filter(|point| !point.in_transaction && !is_rare(point)).collect();
    if at_point && !outside.is_empty() {
        let point = outside[rng.random_range(0..outside.len())];
        return Fault::StopAt { point, nth: rng.random_range(1..=8), length };
    }
    Fault::Stop { after: Duration::from_micros(rng.random_range(50_000..400_000)), length }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    fn all(failpoints: Failpoints, gateway: GatewayMode, faults: Faults) -> Vec<Fault> {
        all_of(failpoints, gateway, faults, Possible::default())
    }

    fn all_of(failpoints: Failpoints, gateway: GatewayMode, faults: Faults, possible: Possible) -> Vec<Fault> {
        let plan = Plan::new(Victim::Service, asked(failpoints, gateway, Amount::Count(faults), possible));
        std::iter::from_fn(|| plan.next()).collect()
    }

    fn asked(failpoints: Failpoints, gateway: GatewayMode, amount: Amount, possible: Possible) -> Asked {
        Asked { seed: 7, lease: LEASE, gateway, failpoints, amount, possible }
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_in_the_same_order() {
        let faults = Faults { kills: 100, stops: 20, redeploys: 5, ..Faults::default() };
        let [first, second] = [(); 2].map(|()| all(Failpoints::All, GatewayMode::Idempotent, faults));
        assert_eq!(first, second);
        let count = |of: fn(&Fault) -> bool| first.iter().filter(|fault| of(fault)).count() as u64;
        assert_eq!(count(|fault| matches!(fault, Fault::Kill { .. } | Fault::KillAt { .. })), 100);
        assert_eq!(count(|fault| matches!(fault, Fault::Stop { .. } | Fault::StopAt { .. })), 20);
        assert_eq!(count(|fault| matches!(fault, Fault::Redeploy { .. })), 5);
    }

    #[test]
    fn a_server_is_hurt_as_well_and_only_ours_is_restarted() {
        let faults = Faults { terminations: 8, restarts: 3, ..Faults::default() };
        let count = |possible| {
            let all = all_of(Failpoints::None, GatewayMode::Idempotent, faults, possible);
            let of = |of: fn(&Fault) -> bool| all.iter().filter(|fault| of(fault)).count();
            (of(|fault| matches!(fault, Fault::Terminate { .. })), of(|fault| matches!(fault, Fault::Restart { .. })))
        };
        assert_eq!(count(Possible::default()), (0, 0));
        assert_eq!(count(Possible { terminations: true, restarts: false }), (8, 0));
        assert_eq!(count(Possible { terminations: true, restarts: true }), (8, 3));
    }

    #[test]
    fn every_point_that_can_be_reached_is_killed_at_its_first_visit() {
        for gateway in [GatewayMode::Idempotent, GatewayMode::Lookup, GatewayMode::None] {
            let faults = all(Failpoints::First, gateway, Faults::default());
            for point in failpoint::ALL {
                let killed = faults.contains(&Fault::KillAt { point, nth: 1 });
                assert_eq!(killed, !unreachable(point, gateway, Possible::default()), "{gateway}: {}", point.name);
            }
        }
    }

    #[test]
    fn nothing_is_stopped_inside_a_transaction_and_nothing_for_less_than_a_lease() {
        let faults = all(Failpoints::None, GatewayMode::Lookup, Faults { stops: 300, ..Faults::default() });
        for fault in faults {
            match fault {
                Fault::StopAt { point, length, .. } => assert!(!point.in_transaction && length > LEASE),
                Fault::Stop { length, .. } => assert!(length > LEASE),
                Fault::Kill { .. }
                | Fault::KillAt { .. }
                | Fault::Redeploy { .. }
                | Fault::Terminate { .. }
                | Fault::Restart { .. } => panic!("{fault:?}"),
            }
        }
    }

    #[test]
    fn a_run_by_the_clock_ends_with_it() {
        let asked = asked(Failpoints::All, GatewayMode::None, Amount::For(Duration::ZERO), Possible::default());
        assert_eq!(Plan::new(Victim::Service, asked).next(), None);
    }

    #[test]
    fn beside_the_services_nothing_is_armed_and_no_connection_of_a_capture_worker_is_ended() {
        let faults = Faults { kills: 20, stops: 10, redeploys: 5, terminations: 10, restarts: 5 };
        let possible = Possible { terminations: true, restarts: true };
        let asked = asked(Failpoints::All, GatewayMode::Lookup, Amount::Count(faults), possible);
        for (victim, kills, terminations) in [(Victim::CaptureWorker, 20, 0), (Victim::Server, 4, 2)] {
            let plan = Plan::new(victim, asked);
            let all: Vec<Fault> = std::iter::from_fn(|| plan.next()).collect();
            let count = |of: fn(&Fault) -> bool| all.iter().filter(|fault| of(fault)).count();
            assert_eq!(count(|fault| matches!(fault, Fault::Kill { .. })), kills, "{victim:?}");
            assert_eq!(count(|fault| matches!(fault, Fault::Terminate { .. })), terminations, "{victim:?}");
            let never =
                |fault: &Fault| matches!(fault, Fault::KillAt { .. } | Fault::StopAt { .. } | Fault::Restart { .. });
            assert!(!all.iter().any(never), "{all:?}");
        }
    }
}
