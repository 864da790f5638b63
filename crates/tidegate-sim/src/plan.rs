//! What goes wrong and when: an explicit list, drawn from a seed before anything runs, so that it can be read and shortened.

use std::fmt;
use std::time::Duration;

use tidegate_testkit::faulty::Verb;

use crate::chance::Chance;
use crate::settings::Settings;

/// How the way to the store fails for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The request never arrives.
    Request,
    /// It is carried out, and nobody is told.
    Reply,
    /// It arrives so much later, when its caller was told long ago that nobody knows.
    Late(u32),
    /// It takes so many milliseconds there.
    SlowRequest(u32),
    /// It takes so many milliseconds back.
    SlowReply(u32),
    /// It arrives twice.
    Twice,
}

/// How the gateway fails for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// The connection is refused.
    Refused,
    /// 429 or 503: not done, come again after so many milliseconds.
    Busy(u32),
    /// 500, and nothing happened.
    ErrorBefore,
    /// 500, and it happened.
    ErrorAfter,
    /// It never arrives, and nobody says so.
    Lost,
    /// It happened, and the reply is lost.
    ReplyLost,
    /// It arrives so many milliseconds late, when its sender has given up.
    Late(u32),
    /// The reply takes so many milliseconds.
    Slow(u32),
    /// The network delivers it twice.
    Twice,
}

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Puts dead letters back.
    Redrive,
    /// Puts a failed message back, whose answer was given.
    RedriveAgain,
    /// The same as an operation with a canary and a rate.
    Operate,
    /// Gives a dead letter up.
    Discard,
    /// Changes the payload of a dead letter.
    Edit,
    /// Calls a waiting or running message off.
    Cancel { release_key: bool },
    /// Says what became of parked effects.
    Resolve,
    /// Stops a queue for so many milliseconds.
    Pause(u32),
    /// Bounds a queue for so many milliseconds.
    Limit(u32),
}

/// One thing that goes wrong, or that somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process dies after so many of its steps, and is started again so many milliseconds later.
    Crash { process: u8, steps: u64, down_ms: u32 },
    /// A process stands still from one of its steps on.
    Freeze { process: u8, steps: u64, for_ms: u32 },
    /// A process is told to drain and is replaced.
    Redeploy { process: u8, version: u32 },
    /// The next call of a verb.
    Call { verb: Verb, loss: Loss },
    /// The store does not answer anybody.
    StoreDown { for_ms: u32 },
    /// Every clock is set, and set right again after a while.
    Jump { by_ms: i64, for_ms: u32 },
    /// The clock of one process is set, and set right again after a while.
    Skew { process: u8, by_ms: i64, for_ms: u32 },
    /// The clock of one process drifts for a while, and is put right; for a process that is not there, that of the store.
    Drift { process: u8, ppm: i64, for_ms: u32 },
    /// The next request to the gateway.
    Gateway(Mischief),
    /// The gateway refuses everything.
    GatewayDown { for_ms: u32 },
    /// The gateway answers nothing: half of it happens all the same.
    BrownOut { for_ms: u32 },
    /// Many clients come at once.
    Burst { clients: u32 },
    /// An operator acts.
    Operator(Deed),
}

impl Fault {
    /// What it is counted as.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::Freeze { .. } => "freeze",
            Self::Redeploy { .. } => "redeploy",
            Self::Call { loss, .. } => match loss {
                Loss::Request => "request lost",
                Loss::Reply => "reply lost",
                Loss::Late(_) => "request late",
                Loss::SlowRequest(_) | Loss::SlowReply(_) => "slow call",
                Loss::Twice => "call twice",
            },
            Self::StoreDown { .. } => "store down",
            Self::Jump { .. } => "clock jump",
            Self::Skew { .. } => "clock skew",
            Self::Drift { .. } => "clock drift",
            Self::Gateway(mischief) => match mischief {
                Mischief::Refused => "gateway refused",
                Mischief::Busy(_) => "gateway busy",
                Mischief::ErrorBefore => "gateway error before",
                Mischief::ErrorAfter => "gateway error after",
                Mischief::Lost => "gateway request lost",
                Mischief::ReplyLost => "gateway reply lost",
                Mischief::Late(_) => "gateway request late",
                Mischief::Slow(_) => "gateway slow",
                Mischief::Twice => "gateway request twice",
            },
            Self::GatewayDown { .. } => "gateway down",
            Self::BrownOut { .. } => "brown-out",
            Self::Burst { .. } => "burst",
            Self::Operator(_) => "operator",
        }
    }
}

/// A fault and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7}.{:03} s  {:?}", self.at.as_secs(), self.at.subsec_millis(), self.fault)
    }
}

/// The longest that a request to the gateway is under way: below every quarantine, as the documents demand.
pub(crate) const LATEST: u32 = 45_000;
/// The longest that a process is paused: far beyond every lease.
const LONGEST_FREEZE: u64 = 200_000;
/// How fast a clock drifts at most, in millionths: ten times as fast as a bad one.
pub(crate) const DRIFT_PPM: i64 = 1_000;
/// The longest that a clock drifts, in milliseconds: then it is off by less than anybody takes for a jump.
const LONGEST_DRIFT: u64 = 4 * 3_600_000;
/// So many faults an hour may be of those that hit everybody for minutes: with more of them nothing else would be seen.
const WIDE_PER_HOUR: u32 = 300;
const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

/// The faults of a seed, in order.
pub(crate) fn draw(settings: &Settings) -> Vec<Planned> {
    let chance = Chance::new(settings.seed, "plan");
    let mean = Duration::from_secs(3600) / settings.faults_per_hour.max(1);
    let mut plan = Vec::new();
    if settings.faults_per_hour == 0 {
        return plan;
    }
    let mut at = chance.until_next(mean);
    while at < settings.span {
        plan.push(Planned { at, fault: fault(&chance, settings) });
        at += chance.until_next(mean);
    }
    plan
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn fault(chance: &Chance, settings: &Settings) -> Fault {
    let process = || u8::try_from(chance.below(u64::from(settings.processes))).unwrap_or(0);
    // A step is a poll: near ones hit what is busy, far ones what comes later.
    let steps = || if chance.one_in(2) { chance.within(1, 40) } else { chance.within(1, 2_000) };
    let wide = chance.one_in(u64::from(settings.faults_per_hour / WIDE_PER_HOUR).max(1));
    match chance.below(1000) {
        0..=59 => Fault::Crash { process: process(), steps: steps(), down_ms: small(chance.within(100, 60_000)) },
        60..=84 => {
            Fault::Freeze { process: process(), steps: steps(), for_ms: small(chance.within(500, LONGEST_FREEZE)) }
        }
        85..=94 => Fault::Redeploy { process: process(), version: small(chance.within(1, 2)) },
        95..=100 if wide => Fault::StoreDown { for_ms: small(chance.within(100, 90_000)) },
        101..=103 if wide => Fault::Jump { by_ms: jump(chance), for_ms: small(chance.within(1_000, 3_600_000)) },
        104..=106 if wide => {
            Fault::Skew { process: process(), by_ms: jump(chance), for_ms: small(chance.within(1_000, 600_000)) }
        }
        107..=110 if wide => Fault::GatewayDown { for_ms: small(chance.within(1_000, 600_000)) },
        111..=114 if wide => Fault::BrownOut { for_ms: small(chance.within(1_000, 300_000)) },
        115..=117 if wide => Fault::Burst { clients: small(chance.within(20, 200)) },
        118..=120 => {
            let whose = u8::try_from(chance.within(0, u64::from(settings.processes))).unwrap_or(0);
            let ppm = i64::try_from(chance.within(1, DRIFT_PPM.unsigned_abs())).unwrap_or(DRIFT_PPM);
            let ppm = if chance.one_in(2) { ppm } else { -ppm };
            Fault::Drift { process: whose, ppm, for_ms: small(chance.within(60_000, LONGEST_DRIFT)) }
        }
        121..=170 => Fault::Operator(deed(chance)),
        171..=499 => Fault::Gateway(mischief(chance)),
        _ => Fault::Call { verb: verb(chance), loss: loss(chance) },
    }
}

fn jump(chance: &Chance) -> i64 {
    let far = i64::try_from(chance.within(61_000, 600_000)).unwrap_or(0);
    let by = match chance.below(4) {
        0 => 10 * YEAR_MS,
        1 => i64::try_from(chance.within(3_600_000, 40 * 24 * 3_600_000)).unwrap_or(0),
        2 => far / 40,
        _ => far,
    };
    if chance.one_in(2) { by } else { -by }
}

fn deed(chance: &Chance) -> Deed {
    match chance.below(20) {
        0..=4 => Deed::Redrive,
        5 => Deed::RedriveAgain,
        6 => Deed::Operate,
        7 => Deed::Discard,
        8 => Deed::Edit,
        9..=12 => Deed::Cancel { release_key: chance.one_in(4) },
        13..=17 => Deed::Resolve,
        18 => Deed::Pause(small(chance.within(1_000, 120_000))),
        _ => Deed::Limit(small(chance.within(1_000, 120_000))),
    }
}

fn mischief(chance: &Chance) -> Mischief {
    match chance.below(9) {
        0 => Mischief::Refused,
        1 => Mischief::Busy(small(chance.within(0, 5_000))),
        2 => Mischief::ErrorBefore,
        3 => Mischief::ErrorAfter,
        4 => Mischief::Lost,
        5 => Mischief::ReplyLost,
        6 => Mischief::Late(small(chance.within(10_000, u64::from(LATEST)))),
        7 => Mischief::Slow(small(chance.within(500, 30_000))),
        _ => Mischief::Twice,
    }
}

/// The verbs that a run lives by come most often.
fn verb(chance: &Chance) -> Verb {
    const OFTEN: [Verb; 6] = [Verb::Enqueue, Verb::Claim, Verb::Journal, Verb::Settle, Verb::Extend, Verb::Sweep];
    if chance.one_in(12) {
        return chance.pick(&Verb::ALL).copied().unwrap_or(Verb::Claim);
    }
    chance.pick(&OFTEN).copied().unwrap_or(Verb::Claim)
}

fn loss(chance: &Chance) -> Loss {
    match chance.below(8) {
        0 | 1 => Loss::Request,
        2..=4 => Loss::Reply,
        5 => Loss::Late(small(chance.within(50, 60_000))),
        6 => {
            let ms = small(chance.within(10, 20_000));
            if chance.one_in(2) { Loss::SlowRequest(ms) } else { Loss::SlowReply(ms) }
        }
        _ => Loss::Twice,
    }
}
