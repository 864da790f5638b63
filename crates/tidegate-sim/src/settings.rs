//! What a run is made from, and what it came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::chance::Chance;

/// Something broken on purpose in the simulated surroundings: what the oracles must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The store says that a message is stored before it is.
    AcknowledgedBeforeCommit,
    /// The store loses a message that had completed, before its retention is over.
    AnswerLost,
    /// The store takes a settlement under any token.
    NoFence,
    /// Handlers put the number of their attempt into the key they send.
    AttemptInTheKey,
    /// Handlers believe a look-up at once.
    NoQuarantine,
    /// An effect leaves before its intent is stored.
    SentBeforeIntent,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AcknowledgedBeforeCommit,
        Self::AnswerLost,
        Self::NoFence,
        Self::AttemptInTheKey,
        Self::NoQuarantine,
        Self::SentBeforeIntent,
    ];
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Everything that chance decides comes from it.
    pub seed: u64,
    /// How long faults and clients come; the run goes on until all is quiet.
    pub span: Duration,
    /// How many processes serve one store.
    pub processes: u8,
    /// How many clients come in an hour; each enqueues a message, from which others follow.
    pub clients_per_hour: u32,
    /// How much goes wrong in an hour.
    pub faults_per_hour: u32,
    /// How long a lease holds.
    pub lease: Duration,
    /// How long answers are kept.
    pub retention: Duration,
    /// How many messages of a queue one process runs at once.
    pub concurrency: u32,
    /// How often a worker looks for what other processes enqueued.
    pub poll_every: Duration,
    /// How often housekeeping looks for lapsed leases.
    pub sweep_every: Duration,
    /// What is broken on purpose.
    pub broken: Option<Broken>,
}

impl Settings {
    /// The run of a seed: how busy, how faulty and how large it is comes from the seed as well. On average some 1,200 clients
    /// come in an hour, who make some 2,500 messages, and some 300 things go wrong that hit: a year of it is 20 million messages.
    #[must_use]
    pub fn of(seed: u64, span: Duration) -> Self {
        let chance = Chance::new(seed, "settings");
        let clients_per_hour = *chance.pick(&[200, 400, 800, 1_600, 3_200]).unwrap_or(&800);
        let faults_per_hour = clients_per_hour / u32::try_from(chance.within(1, 4)).unwrap_or(2);
        Self {
            seed,
            span,
            processes: u8::try_from(chance.within(2, 4)).unwrap_or(2),
            clients_per_hour,
            faults_per_hour,
            lease: Duration::from_secs(*chance.pick(&[10, 20, 60]).unwrap_or(&20)),
            retention: Duration::from_secs(*chance.pick(&[3_600, 6 * 3_600, 7 * 24 * 3_600]).unwrap_or(&3_600)),
            concurrency: u32::try_from(chance.within(1, 16)).unwrap_or(4),
            poll_every: Duration::from_millis(*chance.pick(&[1_000, 2_000, 5_000]).unwrap_or(&2_000)),
            sweep_every: Duration::from_millis(*chance.pick(&[1_000, 2_000, 3_000]).unwrap_or(&2_000)),
            broken: None,
        }
    }
}

/// What a run came to in which nothing was violated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How much time passed in the simulation.
    pub simulated_ms: u64,
    /// Messages stored, follow-ups included.
    pub messages: u64,
    /// How they ended or stand, by state.
    pub ended: BTreeMap<String, u64>,
    /// Messages that were deleted after their retention.
    pub deleted: u64,
    /// Effects that the gateway made.
    pub effects: u64,
    /// Runs of handlers.
    pub runs: u64,
    /// What went wrong, by kind: only what hit.
    pub faults: BTreeMap<String, u64>,
    /// Attempts beyond the limit, granted to what had none left when it was found out what became of its effect.
    pub granted: u64,
    /// How long the backlog of the overload at the end took to drain.
    pub drained_in_ms: u64,
    /// Verdicts, transitions and requests that were checked.
    pub checks: u64,
    /// Two runs of one seed have the same.
    pub trace: u64,
    /// Events in the trace.
    pub events: u64,
}

impl Report {
    /// How much went wrong.
    #[must_use]
    pub fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its number, as `I7`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
    /// When, in simulated time.
    pub at: Duration,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violated after {:?}: {}", self.invariant, self.at, self.what)
    }
}

/// A run that showed a violation, and how to have it again.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was violated, in the run of the shortened script.
    pub violation: Violation,
    /// What is left of the faults, one a line.
    pub script: Vec<String>,
    /// How many faults there were before.
    pub faults: usize,
    /// The last events before it.
    pub last: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        writeln!(f, "script, {} of {} faults:", self.script.len(), self.faults)?;
        self.script.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "the last events:")?;
        self.last.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}
