//! The script of the gateway's faults: windows of time with the share of requests each fault takes.
//!
//! The script is data (a JSON file, or made by [`crate::trace`] beside the requests). The dice that pick a fault for a
//! request are seeded. Nothing here does I/O on a connection: [`crate::gateway`] carries out what was picked.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How long processing takes when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyMs {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
}

/// What is wrong during a window. The shares are of the requests that arrive in it; together they are at most 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The listener is closed for the whole window: a connect is refused. Then no share below matters.
    pub refused: bool,
    /// 429 with `Retry-After`, not processed.
    pub too_many: f64,
    /// 503 with `Retry-After`, not processed.
    pub unavailable: f64,
    /// Never answered and not processed: held until the client goes, or the hang limit.
    pub hang: f64,
    /// Processed, then answered a byte at a time.
    pub drip: f64,
    /// Processed, then the reply is withheld or the connection is reset, half and half.
    pub lost_reply: f64,
    /// Held up to `greatest_lateness_ms` and processed *then*, even when the client has gone.
    pub late: f64,
    /// The connection is reset before anything was processed.
    pub reset_before: f64,
    /// Processed, then answered 500.
    pub internal_after: f64,
    /// How long processing takes in this window; without it, the script's own.
    pub latency_ms: Option<LatencyMs>,
}

impl Faults {
    fn shares(&self) -> [f64; 8] {
        [
            self.too_many,
            self.unavailable,
            self.hang,
            self.drip,
            self.lost_reply,
            self.late,
            self.reset_before,
            self.internal_after,
        ]
    }
}

/// One window of the script, in milliseconds from its start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultWindow {
    /// The first millisecond of the window.
    pub from_ms: u64,
    /// The first millisecond after it.
    pub to_ms: u64,
    /// What is wrong during it.
    pub faults: Faults,
}

/// The whole script.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultScript {
    /// In order, not overlapping; between them nothing is wrong.
    pub windows: Vec<FaultWindow>,
    /// Processing outside the windows, and in windows that do not say.
    pub latency_ms: LatencyMs,
    /// A late request is held this long at most: what the gateway promises to whoever waits before a look-up.
    pub greatest_lateness_ms: u64,
    /// After this long an unanswered connection is reset.
    pub hang_limit_ms: u64,
    /// The pause before each byte of a dripped answer.
    pub drip_ms: u64,
    /// What `Retry-After` says.
    pub retry_after_s: u64,
}

impl Default for FaultScript {
    fn default() -> Self {
        Self {
            windows: Vec::new(),
            latency_ms: LatencyMs { min: 2, max: 8 },
            greatest_lateness_ms: 4_000,
            hang_limit_ms: 30_000,
            drip_ms: 50,
            retry_after_s: 1,
        }
    }
}

impl FaultScript {
    /// Reads a script from a JSON file and checks it.
    ///
    /// # Errors
    /// The file cannot be read, is not a script, or fails [`FaultScript::check`].
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read the fault script {}", path.display());
        let text = std::fs::read(path).with_context(context)?;
        let script: Self = serde_json::from_slice(&text).with_context(context)?;
        script.check().with_context(context)?;
        Ok(script)
    }

    /// Refuses a script whose windows overlap or whose shares are not shares.
    ///
    /// # Errors
    /// Names the window and the value that is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        check_latency(self.latency_ms)?;
        let mut free_from = 0;
        for (index, window) in self.windows.iter().enumerate() {
            check_window(window, free_from).with_context(|| format!("window {index} of the script is wrong"))?;
            free_from = window.to_ms;
        }
        Ok(())
    }

    fn at(&self, elapsed_ms: u64) -> Option<&FaultWindow> {
        self.windows.iter().find(|window| (window.from_ms..window.to_ms).contains(&elapsed_ms))
    }

    /// The window that is running or comes next in which the listener is closed.
    pub(crate) fn next_refusal(&self, elapsed_ms: u64) -> Option<&FaultWindow> {
        self.windows.iter().find(|window| window.faults.refused && window.to_ms > elapsed_ms)
    }
}

fn check_window(window: &FaultWindow, free_from: u64) -> anyhow::Result<()> {
    let FaultWindow { from_ms, to_ms, faults } = window;
    ensure!(from_ms < to_ms, "it ends at {to_ms} ms, not after its start at {from_ms} ms");
    ensure!(*from_ms >= free_from, "it starts at {from_ms} ms, before its predecessor ends at {free_from} ms");
    for share in faults.shares() {
        ensure!((0.0..=1.0).contains(&share), "a share is {share}, not between 0 and 1");
    }
    let sum: f64 = faults.shares().iter().sum();
    // Shares such as 0.1 + 0.2 + 0.7 do not add up exactly.
    ensure!(sum <= 1.0 + 1e-9, "its shares add up to {sum}, more than 1");
    faults.latency_ms.map_or(Ok(()), check_latency)
}

fn check_latency(latency: LatencyMs) -> anyhow::Result<()> {
    ensure!(latency.min <= latency.max, "latency_ms has min {} above max {}", latency.min, latency.max);
    Ok(())
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    TooMany,
    Unavailable,
    Hang,
    Drip,
    LostReply { reset: bool },
    Late { ms: u64 },
    ResetBefore,
    InternalAfter,
}

/// One throw of the dice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roll {
    pub(crate) fault: Fault,
    pub(crate) latency_ms: u64,
}

/// The script with its seeded dice.
#[derive(Debug)]
pub(crate) struct Dice {
    script: FaultScript,
    rng: Mutex<ChaCha8Rng>,
}

impl Dice {
    pub(crate) fn new(script: FaultScript, seed: u64) -> Self {
        Self { script, rng: Mutex::new(ChaCha8Rng::seed_from_u64(seed)) }
    }

    pub(crate) fn script(&self) -> &FaultScript {
        &self.script
    }

    /// Decides about a request that arrived so long after the script's start; `None`: it has not started.
    pub(crate) fn roll(&self, elapsed_ms: Option<u64>) -> Roll {
        let faults = elapsed_ms.and_then(|ms| self.script.at(ms)).map(|window| window.faults).unwrap_or_default();
        let latency = faults.latency_ms.unwrap_or(self.script.latency_ms);
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        Roll {
            fault: pick(&faults, self.script.greatest_lateness_ms, &mut rng),
            latency_ms: rng.random_range(latency.min..=latency.max),
        }
    }
}

fn pick(faults: &Faults, greatest_lateness_ms: u64, rng: &mut ChaCha8Rng) -> Fault {
    let throw: f64 = rng.random();
    let late = Fault::Late { ms: rng.random_range(0..=greatest_lateness_ms) };
    let lost = Fault::LostReply { reset: rng.random() };
    let outcomes = [
        Fault::TooMany,
        Fault::Unavailable,
        Fault::Hang,
        Fault::Drip,
        lost,
        late,
        Fault::ResetBefore,
        Fault::InternalAfter,
    ];
    let mut upper = 0.0;
    for (share, fault) in faults.shares().into_iter().zip(outcomes) {
        upper += share;
        if throw < upper {
            return fault;
        }
    }
    Fault::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from_ms: u64, to_ms: u64, faults: Faults) -> FaultWindow {
        FaultWindow { from_ms, to_ms, faults }
    }

    fn script(windows: Vec<FaultWindow>) -> FaultScript {
        FaultScript { windows, ..FaultScript::default() }
    }

    #[test]
    fn a_script_that_cannot_be_followed_is_refused_with_the_reason() {
        let overlapping = vec![window(0, 10, Faults::default()), window(9, 20, Faults::default())];
        let cases = [
            (vec![window(5, 5, Faults::default())], "not after its start"),
            (overlapping, "before its predecessor ends"),
            (vec![window(0, 1, Faults { hang: 1.5, ..Faults::default() })], "not between 0 and 1"),
            (vec![window(0, 1, Faults { hang: 0.6, late: 0.6, ..Faults::default() })], "more than 1"),
            (
                vec![window(0, 1, Faults { latency_ms: Some(LatencyMs { min: 2, max: 1 }), ..Faults::default() })],
                "min 2 above max 1",
            ),
        ];
        for (windows, reason) in cases {
            let error = format!("{:#}", script(windows).check().unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_share_is_met_over_many_requests_and_only_inside_its_window() {
        let faults = Faults { lost_reply: 0.3, ..Faults::default() };
        let dice = Dice::new(script(vec![window(100, 200, faults)]), 7);
        let lost = |at| (0..4_000).filter(|_| dice.roll(at).fault != Fault::Nothing).count();
        assert!((1_080..=1_320).contains(&lost(Some(150))));
        assert_eq!((lost(None), lost(Some(99)), lost(Some(200))), (0, 0, 0));
    }

    #[test]
    fn the_same_seed_throws_the_same_dice() {
        let faults = Faults { late: 0.5, hang: 0.2, ..Faults::default() };
        let rolls = |seed| {
            let dice = Dice::new(script(vec![window(0, 10, faults)]), seed);
            (0..200).map(|_| dice.roll(Some(5))).collect::<Vec<_>>()
        };
        assert_eq!(rolls(1), rolls(1));
        assert_ne!(rolls(1), rolls(2));
    }

    #[test]
    fn lateness_never_exceeds_the_greatest() {
        let script = FaultScript {
            greatest_lateness_ms: 20,
            ..script(vec![window(0, 10, Faults { late: 1.0, ..Faults::default() })])
        };
        let dice = Dice::new(script, 3);
        for _ in 0..500 {
            let Fault::Late { ms } = dice.roll(Some(1)).fault else { panic!("every request is late") };
            assert!(ms <= 20, "{ms}");
        }
    }

    #[test]
    fn a_script_survives_its_file() {
        let faults = Faults { refused: true, latency_ms: Some(LatencyMs { min: 1, max: 2 }), ..Faults::default() };
        let script = script(vec![window(0, 10, faults)]);
        let text = serde_json::to_string(&script).unwrap();
        assert_eq!(serde_json::from_str::<FaultScript>(&text).unwrap(), script);
        assert!(serde_json::from_str::<FaultScript>("{\"windos\":[]}").is_err());
    }
}
