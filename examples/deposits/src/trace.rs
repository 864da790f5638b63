//! The seeded trace: which deposits are requested, when, and what goes wrong at the gateway meanwhile.
//!
//! A [`Preset`] lays the phases of the demo out in time: calm, a spike, an outage, time-outs after processing with a
//! crash in the middle, recovery. From the seed alone come the same requests, to the byte, for both sides. All times
//! that shrink together in the fast preset stand in one [`Scale`], which the demo prints.

use std::fmt;

use anyhow::ensure;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::gateway::{FaultScript, FaultWindow, Faults, LatencyMs};

/// The customer's card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Card {
    /// Has the money.
    #[default]
    Ok,
    /// Is declined, always: a business fact, no fault.
    Declined,
}

/// What the customer asks for: the body of `POST /deposits`, the same bytes for every copy of a deposit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepositRequest {
    /// Names the deposit for ever, `dep-000123`; the idempotency key of its request.
    pub deposit: String,
    /// The customer's account, `acct-0042`.
    pub account: String,
    /// The amount.
    pub cents: i64,
    /// The card to charge.
    #[serde(default)]
    pub card: Card,
}

/// One request of the trace. Not part of the body: a double click sends the same body at another time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedRequest {
    /// When it is sent, milliseconds from the start of the trace.
    pub at_ms: u64,
    /// 1, or 2 for the second click on the same deposit.
    pub copy: u8,
    /// What is sent.
    pub request: DepositRequest,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseKind {
    /// Nothing is wrong.
    Calm,
    /// Ten times the requests.
    Spike,
    /// The gateway is down in three ways.
    Outage,
    /// The gateway charges and does not say so; in the middle the workers are killed.
    Timeout,
    /// Nothing is wrong any more.
    Recovery,
}

impl PhaseKind {
    /// What a person reads about the phase.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Spike => "spike",
            Self::Outage => "outage",
            Self::Timeout => "time-out after processing",
            Self::Recovery => "recovery",
        }
    }

    /// What goes wrong in it, in one line.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Calm => "nothing is wrong; a few cards are declined",
            Self::Spike => "ten times the requests; the gateway is slow and answers 429 above its limit",
            Self::Outage => "the gateway refuses connections, then answers 503, then never answers",
            Self::Timeout => "the gateway charges, then withholds or drips the reply, or charges late; then a kill -9",
            Self::Recovery => "nothing is wrong any more; what waited is worked off",
        }
    }
}

/// A phase of a trace with its place in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What is going on.
    pub kind: PhaseKind,
    /// Its first millisecond.
    pub from_ms: u64,
    /// The first millisecond after it.
    pub to_ms: u64,
    /// Deposits requested per second (double clicks come on top).
    pub per_second: u64,
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| format!("{}.{}", ms / 1000, ms % 1000 / 100);
        let (from, to) = (seconds(self.from_ms), seconds(self.to_ms));
        write!(out, "{from:>5}-{to:<5} s  {}: {}/s, {}", self.kind.title(), self.per_second, self.kind.description())
    }
}

/// From what a trace is made, beside its seed.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// One after the other.
    pub phases: Vec<Phase>,
    /// The share of deposits whose card is declined.
    pub declined_share: f64,
    /// The share of deposits that are requested a second time within `double_click_ms`.
    pub double_click_share: f64,
    /// The greatest pause between the two clicks.
    pub double_click_ms: u64,
    /// How many customers there are.
    pub accounts: u32,
    /// How many of their accounts are closed: a deposit to one is captured, cannot be credited, and is refunded.
    pub closed_accounts: u32,
}

impl TraceOptions {
    /// The demo's shares over these phases: 1 % declined, 2 % double clicks within 100 ms, 200 customers of whom two
    /// have closed their account.
    #[must_use]
    pub fn of_phases(phases: Vec<Phase>) -> Self {
        Self {
            phases,
            declined_share: 0.01,
            double_click_share: 0.02,
            double_click_ms: 100,
            accounts: 200,
            closed_accounts: 2,
        }
    }

    /// The closed accounts: the last ones.
    #[must_use]
    pub fn closed(&self) -> Vec<String> {
        (self.accounts.saturating_sub(self.closed_accounts)..self.accounts).map(account).collect()
    }
}

/// The requests of a run, in the order of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What it was made from.
    pub seed: u64,
    /// The phases it runs through.
    pub phases: Vec<Phase>,
    /// What is sent.
    pub requests: Vec<TimedRequest>,
}

impl Trace {
    /// Makes the trace of a seed: the same seed and options give the same requests.
    ///
    /// # Errors
    /// A phase ends before it begins, a share is no share, or there is nobody to make a deposit.
    pub fn generate(seed: u64, options: &TraceOptions) -> anyhow::Result<Self> {
        check(options)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut requests = Vec::new();
        let mut number = 0_u64;
        for phase in &options.phases {
            let length = phase.to_ms - phase.from_ms;
            let count = length * phase.per_second / 1000;
            for index in 0..count {
                number += 1;
                // One slot each, at a random instant in it: even enough to compare, uneven enough to be real.
                let slot = index * length / count..(index + 1) * length / count;
                let at_ms = phase.from_ms + if slot.is_empty() { slot.start } else { rng.random_range(slot) };
                let request = deposit(number, options, &mut rng);
                if rng.random_bool(options.double_click_share) {
                    let again = at_ms + rng.random_range(0..=options.double_click_ms);
                    requests.push(TimedRequest { at_ms: again, copy: 2, request: request.clone() });
                }
                requests.push(TimedRequest { at_ms, copy: 1, request });
            }
        }
        requests.sort_by(|a, b| {
            (a.at_ms, a.copy).cmp(&(b.at_ms, b.copy)).then_with(|| a.request.deposit.cmp(&b.request.deposit))
        });
        Ok(Self { seed, phases: options.phases.clone(), requests })
    }

    /// How many different deposits it requests.
    #[must_use]
    pub fn deposits(&self) -> usize {
        self.requests.iter().filter(|timed| timed.copy == 1).count()
    }

    /// The first millisecond after its last phase.
    #[must_use]
    pub fn length_ms(&self) -> u64 {
        self.phases.last().map_or(0, |phase| phase.to_ms)
    }
}

fn check(options: &TraceOptions) -> anyhow::Result<()> {
    for share in [options.declined_share, options.double_click_share] {
        ensure!((0.0..=1.0).contains(&share), "a share of the trace is {share}, not between 0 and 1");
    }
    ensure!(options.accounts > 0, "the trace has no accounts");
    let mut free_from = 0;
    for phase in &options.phases {
        let Phase { kind, from_ms, to_ms, .. } = phase;
        ensure!(from_ms < to_ms, "the phase {kind:?} ends at {to_ms} ms, not after its start at {from_ms} ms");
        ensure!(*from_ms >= free_from, "the phase {kind:?} starts at {from_ms} ms, before {free_from} ms");
        free_from = *to_ms;
    }
    Ok(())
}

fn deposit(number: u64, options: &TraceOptions, rng: &mut ChaCha8Rng) -> DepositRequest {
    DepositRequest {
        deposit: format!("dep-{number:06}"),
        account: account(rng.random_range(0..options.accounts)),
        cents: rng.random_range(100..=50_000),
        card: if rng.random_bool(options.declined_share) { Card::Declined } else { Card::Ok },
    }
}

fn account(number: u32) -> String {
    format!("acct-{number:04}")
}

/// Every time that shrinks with the fast preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// How long a side waits for the gateway's answer.
    pub call_timeout_ms: u64,
    /// How late the gateway may process a call at most.
    pub greatest_lateness_ms: u64,
    /// How long after the last possible send a look-up may be believed.
    pub quarantine_ms: u64,
    /// How long a claim of a message lasts.
    pub lease_ms: u64,
    /// How often a worker with nothing to do looks.
    pub poll_ms: u64,
    /// The first pause of a backoff.
    pub backoff_first_ms: u64,
    /// The greatest pause of a backoff.
    pub backoff_greatest_ms: u64,
    /// How long after the kill the killed processes are started again.
    pub restart_after_ms: u64,
    /// After this long the gateway cuts a connection it never answered.
    pub hang_limit_ms: u64,
    /// How long after the trace the load waits for final states.
    pub finish_within_ms: u64,
    /// How long a customer waits for an answer before going away.
    pub patience_ms: u64,
    /// The greatest pause between two looks of a polling client.
    pub look_every_ms: u64,
}

impl Scale {
    /// Times as in production.
    pub const FULL: Self = Self {
        call_timeout_ms: 2_000,
        greatest_lateness_ms: 4_000,
        quarantine_ms: 6_500,
        lease_ms: 5_000,
        poll_ms: 50,
        backoff_first_ms: 200,
        backoff_greatest_ms: 2_000,
        restart_after_ms: 1_000,
        hang_limit_ms: 30_000,
        finish_within_ms: 45_000,
        patience_ms: 40_000,
        look_every_ms: 2_000,
    };

    /// About a tenth of them.
    pub const FAST: Self = Self {
        call_timeout_ms: 250,
        greatest_lateness_ms: 500,
        quarantine_ms: 1_500,
        lease_ms: 1_000,
        poll_ms: 10,
        backoff_first_ms: 30,
        backoff_greatest_ms: 300,
        restart_after_ms: 200,
        hang_limit_ms: 3_000,
        finish_within_ms: 20_000,
        patience_ms: 5_000,
        look_every_ms: 250,
    };

    /// Times for a worker that is killed and stopped all the time: everything follows from its lease, of at least 100 ms.
    ///
    /// A process may be stopped for up to 1.75 leases between its last look at the clock and the departure of its request,
    /// which is late by as much, and then by what the gateway adds; the quarantine is longer than both together.
    #[must_use]
    pub fn of_lease(lease_ms: u64) -> Self {
        Self {
            // More than a third of a lease, so that a call without an answer has its lease extended.
            call_timeout_ms: lease_ms * 2 / 5,
            greatest_lateness_ms: lease_ms / 4,
            quarantine_ms: lease_ms * 3,
            lease_ms,
            poll_ms: 20,
            backoff_first_ms: 30,
            backoff_greatest_ms: 300,
            restart_after_ms: 0,
            hang_limit_ms: lease_ms,
            finish_within_ms: 120_000,
            patience_ms: 5_000,
            look_every_ms: 250,
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "call time-out {} ms, greatest lateness {} ms, quarantine {} ms, lease {} ms, poll {} ms, \
             backoff {}-{} ms, restart after {} ms",
            self.call_timeout_ms,
            self.greatest_lateness_ms,
            self.quarantine_ms,
            self.lease_ms,
            self.poll_ms,
            self.backoff_first_ms,
            self.backoff_greatest_ms,
            self.restart_after_ms
        )
    }
}

/// Which of the phases a run has; calm and recovery are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// Every phase, with the crash.
    All,
    /// The spike alone.
    Spike,
    /// The outage alone.
    Outage,
    /// The time-outs after processing, without the crash.
    Timeout,
    /// The time-outs after processing, with the crash.
    Crash,
}

impl Scenario {
    fn has(self, kind: PhaseKind) -> bool {
        match kind {
            PhaseKind::Calm | PhaseKind::Recovery => true,
            PhaseKind::Spike => matches!(self, Self::All | Self::Spike),
            PhaseKind::Outage => matches!(self, Self::All | Self::Outage),
            PhaseKind::Timeout => matches!(self, Self::All | Self::Timeout | Self::Crash),
        }
    }

    fn crashes(self) -> bool {
        matches!(self, Self::All | Self::Crash)
    }
}

/// Everything a run needs to know: its phases, the gateway's script, the scaled times, the instant of the crash.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// From which the trace is made.
    pub trace: TraceOptions,
    /// The faults of the gateway; its clock starts with the trace.
    pub script: FaultScript,
    /// The scaled times.
    pub scale: Scale,
    /// How many calls the gateway works on at once.
    pub gateway_concurrency: usize,
    /// When the workers and the twin are killed, milliseconds from the start of the trace.
    pub crash_at_ms: Option<u64>,
}

/// The lengths and rates in which the two presets differ.
struct Pace {
    calm_ms: u64,
    spike_ms: u64,
    spike_per_second: u64,
    outage_ms: u64,
    timeout_ms: u64,
    crash_after_ms: u64,
    recovery_ms: u64,
    drip_ms: u64,
    scale: Scale,
}

const CALM_PER_SECOND: u64 = 40;

impl Preset {
    /// The demo as a person watches it: 50 s of requests.
    #[must_use]
    pub fn full(scenario: Scenario) -> Self {
        Self::laid_out(
            &Pace {
                calm_ms: 8_000,
                spike_ms: 10_000,
                spike_per_second: 400,
                outage_ms: 10_000,
                timeout_ms: 10_000,
                crash_after_ms: 6_000,
                recovery_ms: 12_000,
                drip_ms: 50,
                scale: Scale::FULL,
            },
            scenario,
        )
    }

    /// The same for a test: 6.4 s of requests, client time-outs scaled down.
    #[must_use]
    pub fn fast(scenario: Scenario) -> Self {
        Self::laid_out(
            &Pace {
                calm_ms: 900,
                spike_ms: 1_500,
                spike_per_second: 300,
                outage_ms: 1_500,
                timeout_ms: 1_500,
                crash_after_ms: 900,
                recovery_ms: 1_000,
                drip_ms: 10,
                scale: Scale::FAST,
            },
            scenario,
        )
    }

    /// Lets the gateway process calls this late, and a quarter of those in the time-out phase: so late that it exceeds
    /// the quarantine, this shows where the guarantee ends.
    pub fn set_lateness(&mut self, greatest_lateness_ms: u64) {
        self.script.greatest_lateness_ms = greatest_lateness_ms;
        self.scale.greatest_lateness_ms = greatest_lateness_ms;
        for window in self.script.windows.iter_mut().filter(|window| window.faults.late > 0.0) {
            window.faults.late = 0.25;
        }
    }

    fn laid_out(pace: &Pace, scenario: Scenario) -> Self {
        let plan = [
            (PhaseKind::Calm, pace.calm_ms, CALM_PER_SECOND),
            (PhaseKind::Spike, pace.spike_ms, pace.spike_per_second),
            (PhaseKind::Outage, pace.outage_ms, CALM_PER_SECOND),
            (PhaseKind::Timeout, pace.timeout_ms, CALM_PER_SECOND),
            (PhaseKind::Recovery, pace.recovery_ms, CALM_PER_SECOND),
        ];
        let (mut phases, mut windows, mut crash_at_ms, mut from_ms) = (Vec::new(), Vec::new(), None, 0);
        for (kind, length_ms, per_second) in plan {
            if !scenario.has(kind) {
                continue;
            }
            let phase = Phase { kind, from_ms, to_ms: from_ms + length_ms, per_second };
            windows.extend(windows_of(&phase));
            if kind == PhaseKind::Timeout && scenario.crashes() {
                crash_at_ms = Some(from_ms + pace.crash_after_ms);
            }
            from_ms = phase.to_ms;
            phases.push(phase);
        }
        let script = FaultScript {
            windows,
            latency_ms: LatencyMs { min: 2, max: 8 },
            greatest_lateness_ms: pace.scale.greatest_lateness_ms,
            hang_limit_ms: pace.scale.hang_limit_ms,
            drip_ms: pace.drip_ms,
            retry_after_s: 1,
        };
        let trace = TraceOptions::of_phases(phases);
        Self { trace, script, scale: pace.scale, gateway_concurrency: 50, crash_at_ms }
    }
}

/// What is wrong at the gateway in a phase.
fn windows_of(phase: &Phase) -> Vec<FaultWindow> {
    let parts: Vec<Faults> = match phase.kind {
        PhaseKind::Calm | PhaseKind::Recovery => vec![],
        // Slow, so that three calls per deposit exceed the gateway's limit.
        PhaseKind::Spike => vec![Faults { latency_ms: Some(LatencyMs { min: 40, max: 80 }), ..Faults::default() }],
        PhaseKind::Outage => vec![
            Faults { refused: true, ..Faults::default() },
            Faults { unavailable: 0.9, reset_before: 0.1, ..Faults::default() },
            Faults { hang: 0.8, unavailable: 0.2, ..Faults::default() },
        ],
        PhaseKind::Timeout => vec![Faults {
            lost_reply: 0.2,
            late: 0.05,
            drip: 0.03,
            internal_after: 0.02,
            too_many: 0.02,
            ..Faults::default()
        }],
    };
    let (length, count) = (phase.to_ms - phase.from_ms, parts.len() as u64);
    (0..count)
        .zip(parts)
        .map(|(index, faults)| FaultWindow {
            from_ms: phase.from_ms + index * length / count,
            to_ms: phase.from_ms + (index + 1) * length / count,
            faults,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn trace(seed: u64, preset: &Preset) -> Trace {
        Trace::generate(seed, &preset.trace).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
        let preset = Preset::fast(Scenario::All);
        assert_eq!(trace(42, &preset), trace(42, &preset));
        assert_ne!(trace(42, &preset).requests, trace(43, &preset).requests);
    }

    #[test]
    fn a_second_click_repeats_the_request_within_a_tenth_of_a_second() {
        let trace = trace(42, &Preset::full(Scenario::All));
        let first: HashMap<_, _> = trace
            .requests
            .iter()
            .filter(|timed| timed.copy == 1)
            .map(|timed| (timed.request.deposit.clone(), timed))
            .collect();
        let again: Vec<_> = trace.requests.iter().filter(|timed| timed.copy == 2).collect();
        for second in &again {
            let first = first[&second.request.deposit];
            assert_eq!(first.request, second.request);
            assert!((first.at_ms..=first.at_ms + 100).contains(&second.at_ms));
        }
        let share = again.len() as f64 / trace.deposits() as f64;
        assert!((0.012..0.028).contains(&share), "{share}");
        assert_eq!(first.len(), trace.deposits(), "every deposit has its own name");
    }

    #[test]
    fn the_spike_sends_ten_times_the_requests_and_all_are_in_order() {
        let trace = trace(1, &Preset::full(Scenario::All));
        let sent = |kind| {
            let phase = trace.phases.iter().find(|phase| phase.kind == kind).unwrap();
            let window = phase.from_ms..phase.to_ms;
            trace.requests.iter().filter(|timed| timed.copy == 1 && window.contains(&timed.at_ms)).count()
        };
        assert_eq!((sent(PhaseKind::Calm), sent(PhaseKind::Spike)), (320, 4_000));
        assert!(trace.requests.is_sorted_by_key(|timed| timed.at_ms));
        assert_eq!(trace.length_ms(), 50_000);
    }

    #[test]
    fn a_few_cards_are_declined() {
        let trace = trace(42, &Preset::full(Scenario::All));
        let declined: HashSet<_> = trace
            .requests
            .iter()
            .filter(|timed| timed.request.card == Card::Declined)
            .map(|timed| &timed.request.deposit)
            .collect();
        assert!((25..100).contains(&declined.len()), "{}", declined.len());
    }

    #[test]
    fn every_preset_has_a_script_that_can_be_followed_and_a_quarantine_longer_than_the_lateness() {
        for scenario in [Scenario::All, Scenario::Spike, Scenario::Outage, Scenario::Timeout, Scenario::Crash] {
            for preset in [Preset::full(scenario), Preset::fast(scenario)] {
                preset.script.check().unwrap();
                assert!(preset.scale.quarantine_ms > preset.scale.greatest_lateness_ms + preset.script.latency_ms.max);
                assert_eq!(preset.crash_at_ms.is_some(), scenario.crashes());
                let end = trace(1, &preset).length_ms();
                assert!(preset.script.windows.iter().all(|window| window.to_ms <= end));
            }
        }
        assert!(trace(1, &Preset::fast(Scenario::All)).length_ms() <= 7_000);
    }

    #[test]
    fn a_phase_says_what_it_is_in_one_line() {
        let phase = Phase { kind: PhaseKind::Spike, from_ms: 8_000, to_ms: 18_000, per_second: 400 };
        let expected =
            "  8.0-18.0  s  spike: 400/s, ten times the requests; the gateway is slow and answers 429 above its limit";
        assert_eq!(phase.to_string(), expected);
    }

    #[test]
    fn a_trace_that_makes_no_sense_is_refused() {
        let phase = Phase { kind: PhaseKind::Calm, from_ms: 5, to_ms: 5, per_second: 1 };
        let error = Trace::generate(1, &TraceOptions::of_phases(vec![phase])).unwrap_err().to_string();
        assert!(error.contains("Calm ends at 5 ms"), "{error}");
    }
}
