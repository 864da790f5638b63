//! Random scripts of commands. A command names messages, leases and effects by how far back they are, not by id, so that
//! a script still means something after some of its commands were taken out.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// One command of a script.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Enqueues messages in one batch.
    Enqueue(Vec<Item>),
    /// Claims from both queues.
    Claim {
        /// Which worker, 0 to 2.
        worker: u8,
        /// Free slots of each queue.
        slots: [u32; 2],
        /// Only kind `a` in version 1, or everything.
        narrow: bool,
        /// From the second handle on the place.
        other_handle: bool,
    },
    /// Repeats the last claim under its nonce.
    ClaimAgain,
    /// Extends a lease, held or lost.
    Extend {
        /// How many leases back.
        lease: usize,
        /// Says that the message runs alone.
        alone: bool,
    },
    /// Writes an intent.
    Intend {
        /// How many leases back.
        lease: usize,
        /// Which effect, 0 to 2.
        effect: u8,
        /// Which policy; see [`POLICIES`].
        policy: u8,
        /// The request differs from the usual one.
        changed: bool,
        /// Answers the effect's open row in the same write, first.
        answering: Option<u8>,
    },
    /// Answers the newest row of an effect.
    Answer {
        /// How many leases back.
        lease: usize,
        /// Which effect.
        effect: u8,
        /// Which answer; see [`ANSWERS`].
        answer: u8,
    },
    /// Confirms a natural effect.
    Natural {
        /// How many leases back.
        lease: usize,
        /// Which effect.
        effect: u8,
    },
    /// Ends a run.
    Settle {
        /// How many leases back.
        lease: usize,
        /// Which outcome; see [`OUTCOMES`].
        outcome: u8,
        /// With follow-ups and compensations.
        follow_ups: bool,
        /// Answers an effect in the same commit, first.
        answering: Option<(u8, u8)>,
        /// Jitter in hundredths.
        jitter: u8,
    },
    /// Repeats an earlier settlement.
    SettleAgain {
        /// How many settlements back.
        settlement: usize,
    },
    /// Sweeps.
    Sweep {
        /// Takes lapsed leases over.
        take_over: bool,
        /// Deletes what ended so many days ago.
        retention_days: Option<u8>,
    },
    /// Claims from both queues, lets the leases lapse and sweeps, several times over.
    Crash {
        /// The messages ran alone.
        alone: bool,
        /// How often.
        times: u8,
    },
    /// Time passes.
    Advance {
        /// So many seconds.
        seconds: u32,
    },
    /// The wall clock is set.
    Jump {
        /// So many seconds ahead, or back.
        seconds: i64,
    },
    /// Redrives messages.
    Redrive {
        /// How many messages back.
        messages: Vec<usize>,
        /// Failed ones, too.
        again: bool,
        /// Under which operation.
        operation: u8,
    },
    /// Begins to redrive many.
    Begin {
        /// Which operation, 0 or 1.
        operation: u8,
        /// These, so many messages back; all dead letters of `queue` when there are none.
        messages: Vec<usize>,
        /// Failed ones, too.
        again: bool,
        /// Only of this queue.
        queue: Option<u8>,
        /// Only of one of the groups there are.
        group: Option<usize>,
        /// So many first.
        canary: u8,
        /// At most so many a second.
        per_second: Option<u8>,
        /// Stops when more of a hundred end badly.
        stop_over: Option<u8>,
    },
    /// Takes an operation's next step.
    Step {
        /// Which operation.
        operation: u8,
    },
    /// Calls an operation off.
    CallOff {
        /// Which operation.
        operation: u8,
    },
    /// Lets an operation go on that stopped.
    GoOn {
        /// Which operation.
        operation: u8,
    },
    /// Changes the payload of a dead letter.
    Edit {
        /// How many messages back.
        message: usize,
        /// Which payload.
        payload: u8,
    },
    /// Gives dead letters up.
    Discard {
        /// How many messages back.
        messages: Vec<usize>,
    },
    /// Cancels a message.
    Cancel {
        /// How many messages back.
        message: usize,
        /// And frees its key.
        release_key: bool,
    },
    /// Resolves an effect.
    Resolve {
        /// How many messages back.
        message: usize,
        /// Which effect.
        effect: u8,
        /// It happened with this value, or it did not.
        happened: Option<u8>,
    },
    /// Pauses or resumes a queue.
    Pause {
        /// Which queue.
        queue: u8,
        /// Or resumes it.
        paused: bool,
    },
    /// Limits a queue.
    Limit {
        /// Which queue.
        queue: u8,
        /// The most it takes.
        limit: Option<u8>,
    },
    /// Declares the policy of kind `b`, which has none at first.
    Declare {
        /// Attempts it allows.
        max_attempts: u8,
    },
}

/// One message of an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Which key, 0 to 11.
    pub key: u8,
    /// Which payload; 0 is the usual one.
    pub payload: u8,
    /// Which queue, 0 or 1.
    pub queue: u8,
    /// Which kind, 0 or 1.
    pub kind: u8,
    /// Which payload version, 1 or 2.
    pub version: u8,
    /// Its priority.
    pub priority: u8,
    /// Due in so many seconds.
    pub delay: u32,
    /// With a deadline so many seconds ahead.
    pub deadline: Option<u32>,
    /// With a `max_age` of so many seconds.
    pub max_age: Option<u32>,
    /// With a key made so many days ago.
    pub key_age_days: Option<u8>,
}

/// What the numbers of policies mean.
pub const POLICIES: [&str; 5] = ["keyed", "keyed or look-up", "lookup", "at most once", "short keyed"];
/// What the numbers of answers mean.
pub const ANSWERS: [&str; 5] = ["confirmed", "rejected", "not done", "unknown", "not found"];
/// What the numbers of outcomes mean.
pub const OUTCOMES: [&str; 15] = [
    "completed",
    "permanent",
    "permanent, compensated",
    "retryable",
    "retryable after a minute",
    "not done",
    "not done after a minute",
    "unknown",
    "snooze",
    "park",
    "exhausted",
    "undecodable",
    "refused",
    "released",
    "completed, leaving an orphan",
];

/// A script of so many commands from a seed.
///
/// Every fourth script sets the wall clock in between; it leaves out what is measured by elapsed time, as two engines
/// may notice a jump at different calls.
#[must_use]
pub fn script(seed: u64, commands: usize) -> Vec<Command> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let jumps = seed % 4 == 3;
    (0..commands).map(|_| command(&mut random, jumps)).collect()
}

fn command(random: &mut ChaCha8Rng, jumps: bool) -> Command {
    let back = |random: &mut ChaCha8Rng| -> usize {
        // Mostly the newest; now and then one that is long lost.
        if random.random_bool(0.7) { random.random_range(0..3) } else { random.random_range(0..20) }
    };
    let effect =
        |random: &mut ChaCha8Rng| -> u8 { if random.random_bool(0.8) { 0 } else { random.random_range(0..3) } };
    let answer = |random: &mut ChaCha8Rng| -> u8 { random.random_range(0..if jumps { 4 } else { 5 }) };
    let messages = |random: &mut ChaCha8Rng, least: u32| -> Vec<usize> {
        (0..random.random_range(least..4)).map(|_| random.random_range(0..16)).collect()
    };
    match random.random_range(0..109_u32) {
        0..16 => {
            let n = random.random_range(1..4);
            Command::Enqueue((0..n).map(|_| item(random)).collect())
        }
        16..32 => Command::Claim {
            worker: random.random_range(0..3),
            slots: [random.random_range(0..3), random.random_range(0..3)],
            narrow: random.random_bool(0.2),
            other_handle: random.random_bool(0.3),
        },
        32..34 => Command::ClaimAgain,
        34..38 => Command::Extend { lease: back(random), alone: random.random_bool(0.5) },
        38..47 => Command::Intend {
            lease: back(random),
            effect: effect(random),
            policy: policy(random, jumps),
            changed: random.random_bool(0.1),
            answering: random.random_bool(0.2).then(|| answer(random)),
        },
        47..54 => Command::Answer { lease: back(random), effect: effect(random), answer: answer(random) },
        54..55 => Command::Natural { lease: back(random), effect: 2 },
        55..71 => Command::Settle {
            lease: back(random),
            outcome: if random.random_bool(0.25) { 0 } else { random.random_range(0..15) },
            follow_ups: random.random_bool(0.3),
            answering: random.random_bool(0.2).then(|| (effect(random), answer(random))),
            jitter: random.random_range(0..100),
        },
        71..74 => Command::SettleAgain { settlement: random.random_range(0..3) },
        74..80 => Command::Sweep {
            take_over: random.random_bool(0.8),
            retention_days: (!jumps && random.random_bool(0.4)).then_some(7),
        },
        80..82 => Command::Crash { alone: random.random_bool(0.6), times: random.random_range(1..5) },
        82..90 => Command::Advance { seconds: seconds(random) },
        90..91 if jumps => Command::Jump { seconds: jump(random) },
        91..92 if jumps => Command::Jump { seconds: -jump(random) },
        90..92 => Command::Advance { seconds: 31 },
        92..94 => Command::Redrive {
            messages: messages(random, 1),
            again: random.random_bool(0.6),
            operation: random.random_range(0..4),
        },
        94..96 => Command::Cancel { message: random.random_range(0..12), release_key: random.random_bool(0.3) },
        96..98 => Command::Resolve {
            message: random.random_range(0..12),
            effect: effect(random),
            happened: (jumps || random.random_bool(0.5)).then(|| random.random_range(0..2)),
        },
        98 => Command::Pause { queue: random.random_range(0..2), paused: random.random_bool(0.5) },
        99..101 => Command::Begin {
            operation: random.random_range(0..2),
            messages: if random.random_bool(0.5) { messages(random, 1) } else { Vec::new() },
            again: random.random_bool(0.3),
            queue: random.random_bool(0.3).then(|| random.random_range(0..2)),
            group: random.random_bool(0.2).then(|| random.random_range(0..8)),
            canary: random.random_range(0..3),
            per_second: (!jumps && random.random_bool(0.3)).then(|| random.random_range(1..3)),
            stop_over: random.random_bool(0.5).then(|| [0, 40, 100][random.random_range(0..3)]),
        },
        101..105 => Command::Step { operation: random.random_range(0..2) },
        105 if random.random_bool(0.3) => Command::CallOff { operation: random.random_range(0..2) },
        105 => Command::GoOn { operation: random.random_range(0..2) },
        106 => Command::Edit { message: random.random_range(0..12), payload: random.random_range(0..3) },
        107 => Command::Discard { messages: messages(random, 1) },
        _ => {
            if random.random_bool(0.7) {
                let limit = random.random_bool(0.5).then(|| random.random_range(0..8));
                Command::Limit { queue: random.random_range(0..2), limit }
            } else {
                Command::Declare { max_attempts: random.random_range(1..4) }
            }
        }
    }
}

fn item(random: &mut ChaCha8Rng) -> Item {
    let seldom = |random: &mut ChaCha8Rng, values: &[u32]| {
        random.random_bool(0.12).then(|| values[random.random_range(0..values.len())])
    };
    Item {
        key: random.random_range(0..12),
        payload: u8::from(random.random_bool(0.1)),
        queue: u8::from(random.random_bool(0.4)),
        kind: u8::from(random.random_bool(0.3)),
        version: 1 + u8::from(random.random_bool(0.1)),
        priority: [5, 5, 0, 9][random.random_range(0..4)],
        delay: seldom(random, &[5, 40, 4000]).unwrap_or(0),
        deadline: seldom(random, &[1, 20, 100, 5000, 500_000]),
        max_age: seldom(random, &[20, 100, 5000, 900_000]),
        key_age_days: seldom(random, &[1, 6, 8]).map(|days| u8::try_from(days).unwrap_or(1)),
    }
}

fn policy(random: &mut ChaCha8Rng, jumps: bool) -> u8 {
    // Usually the same, or nearly every resend would be of a changed effect.
    match (random.random_range(0..10_u32), jumps) {
        (0..5, _) => 0,
        (5, false) => 1,
        (6 | 7, false) => 2,
        (8, _) => 3,
        (9, _) => 4,
        _ => 0,
    }
}

fn seconds(random: &mut ChaCha8Rng) -> u32 {
    [1, 3, 7, 31, 61, 61, 131, 601, 3601, 3601, 90_000, 700_000][random.random_range(0..12)]
}

/// Far enough that nobody takes it for the ordinary drift of a clock.
fn jump(random: &mut ChaCha8Rng) -> i64 {
    [601, 3601, 90_000][random.random_range(0..3)]
}
