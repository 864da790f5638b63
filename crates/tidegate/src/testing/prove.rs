//! The proof that a handler may be interrupted anywhere: record a run, then interrupt it at each of its boundaries.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use tidegate_core::clock::{Clock, SystemRandom};
use tidegate_core::effect::{EffectRow, open_rows};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{Resolution, State};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{Act, Resolve};

use super::boundary::Boundary;
use super::rig::{MOST_RUNS, Process, Rig};
use crate::handler::Message;
use crate::options::Options;
use crate::worker::WorkerBuilder;

/// More rounds with a person than this do not come to an end.
const MOST_DECISIONS: usize = 100;

/// The world outside of the handlers, as a test double: it survives the crashes.
pub trait World: Send + Sync {
    /// What has taken effect so far, and how often: `capture dep-1` → 1. Counted where it happens, in the double, by what
    /// was done and not by the key that was sent. What is harmless to repeat is counted once or not at all.
    fn effects(&self) -> BTreeMap<String, u32>;

    /// What a person would find out about a parked effect by asking the remote. Without an answer it stays parked, and the
    /// proof says no more than that nothing happened twice.
    fn person(&self, parked: &EffectRow) -> Option<Resolution> {
        let _ = parked;
        None
    }
}

/// What was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Where a run was interrupted, once each.
    pub boundaries: Vec<Boundary>,
    /// How many of those runs parked an effect that a person then decided.
    pub resolved: usize,
    /// How many of those runs ended with a parked effect that nobody decided.
    pub parked: usize,
    /// What took effect, in every run alike.
    pub effects: BTreeMap<String, u32>,
}

/// Why it was not proven.
pub enum NotProven {
    /// The undisturbed run did not end as a whole.
    FirstRun {
        /// What it ended as.
        ended: String,
    },
    /// The undisturbed run had no effect that could have happened twice.
    NoEffect,
    /// Two undisturbed runs were not alike: what differs, a line each.
    Differs {
        /// The kind of the message.
        kind: String,
        /// In words.
        differences: Vec<String>,
    },
    /// A boundary of the first run was not reached again.
    NotRepeatable(Boundary),
    /// An interruption made a difference.
    Refuted(Refuted),
    /// The store failed.
    Store(StoreError),
}

/// The interruptions that made a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuted {
    /// The kind of the message.
    pub kind: String,
    /// What took effect without one.
    pub expected: BTreeMap<String, u32>,
    /// In the order of their boundaries; at least one.
    pub interrupted: Vec<Interrupted>,
    /// How many were tried.
    pub tried: usize,
}

/// A run that came out otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    /// Where it was interrupted.
    pub boundary: Boundary,
    /// What took effect.
    pub effects: BTreeMap<String, u32>,
    /// Messages that ended otherwise, effects and follow-ups that were others: what a handler did otherwise.
    pub endings: Vec<String>,
    /// Whether an effect or a follow-up has another identity than in the undisturbed run.
    pub renamed: bool,
}

/// Proves that a message and all that follows from it take effect alike wherever the process dies.
///
/// A first run on the real engine, in a directory of its own, records its boundaries: each claim, each intent and answer
/// that is stored, each send, look-up and transaction of an effect, each settlement. Then, for each boundary, a fresh
/// world and store run until just before it, and until just after it; there the attempt is abandoned, nothing is settled,
/// the lease lapses and is taken over, and another process runs on until nothing is left to do. For each send there are two
/// more: in one the process lives and the reply is lost; in the other the store is lost after the send, and a backup that
/// was made before the first claim is put to work, so that everything is made again in other attempts. What then took effect
/// must be what took effect in the first run, and effects and follow-ups must be the same ones by name and item.
///
/// `handlers` is called for each process; it may capture whatever it likes of the world.
///
/// # Errors
/// [`NotProven`], whose text names the boundary, the effect and both counts.
///
/// # Cancel safety
/// Safe: what was made is deleted.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn prove_idempotent<W: World, M: Message>(
    world: impl Fn() -> W + Send + Sync,
    handlers: impl Fn(&W, WorkerBuilder) -> WorkerBuilder + Send + Sync,
    message: M,
) -> Result<Proof, NotProven> {
    let message = Options::default().prepare(&message, &SystemRandom);
    prove(&world, &handlers, message?).await
}

async fn prove<W: World>(
    world: &(impl Fn() -> W + Send + Sync),
    handlers: &(impl Fn(&W, WorkerBuilder) -> WorkerBuilder + Send + Sync),
    message: NewMessage,
) -> Result<Proof, NotProven> {
    let first = run(&world(), handlers, &message, None).await?;
    if let Some(ended) = first.not_whole() {
        return Err(NotProven::FirstRun { ended });
    }
    if first.effects.is_empty() {
        return Err(NotProven::NoEffect);
    }
    // Whatever a handler makes of chance or of the machine's time is another in the next run.
    let second = run(&world(), handlers, &message, None).await?;
    let differences = first.differences(&second);
    if !differences.is_empty() {
        return Err(NotProven::Differs { kind: message.kind.to_string(), differences });
    }
    let mut proof =
        Proof { boundaries: first.boundaries.clone(), resolved: 0, parked: 0, effects: first.effects.clone() };
    let mut interrupted = Vec::new();
    for boundary in &proof.boundaries {
        let end = run(&world(), handlers, &message, Some(boundary.clone())).await?;
        match end.interrupted {
            true => {}
            false if interrupted.is_empty() => return Err(NotProven::NotRepeatable(boundary.clone())),
            // It is refuted already, and what refutes it may be what leads past this boundary.
            false => continue,
        }
        proof.resolved += usize::from(end.resolved);
        proof.parked += usize::from(end.is_parked());
        let renamed = first.renamed(&end);
        let parked = end.is_parked() && happened_at_most_as_often(&end.effects, &proof.effects);
        let endings = if parked { Vec::new() } else { first.other_endings(&end) };
        if !renamed.is_empty() || !endings.is_empty() || (!parked && end.effects != proof.effects) {
            let (effects, is_renamed) = (end.effects, !renamed.is_empty());
            let endings = [renamed, endings].concat();
            interrupted.push(Interrupted { boundary: boundary.clone(), effects, endings, renamed: is_renamed });
        }
    }
    if interrupted.is_empty() {
        return Ok(proof);
    }
    let Proof { boundaries, effects: expected, .. } = proof;
    Err(NotProven::Refuted(Refuted { kind: message.kind.to_string(), expected, interrupted, tried: boundaries.len() }))
}

/// How a run ended.
struct End {
    boundaries: Vec<Boundary>,
    effects: BTreeMap<String, u32>,
    /// By kind and key, so that two runs can be compared.
    states: BTreeMap<(String, String), State>,
    /// By the kind of their message and their name.
    begun: BTreeSet<(String, String)>,
    interrupted: bool,
    resolved: bool,
}

impl End {
    fn is_parked(&self) -> bool {
        self.states.values().any(|state| *state == State::Parked)
    }

    /// Why an undisturbed run is nothing to compare with.
    fn not_whole(&self) -> Option<String> {
        let whole = |state: &State| match state {
            State::Completed | State::Failed => true,
            State::Ready | State::Leased | State::Dead | State::Cancelled | State::Parked => false,
        };
        let ((kind, _), state) = self.states.iter().find(|(_, state)| !whole(state))?;
        Some(format!("message {kind} is {state}"))
    }

    /// What another undisturbed run did otherwise than this one.
    fn differences(&self, other: &Self) -> Vec<String> {
        let gone = (self.begun.difference(&other.begun)).map(|(kind, effect)| {
            format!("effect {effect} of {kind} was begun in the first run, and not in the second")
        });
        let new = (other.begun.difference(&self.begun)).map(|(kind, effect)| {
            format!("effect {effect} of {kind} was begun in the second run, and not in the first")
        });
        let mut differences: Vec<String> = gone.chain(new).chain(self.renamed_messages(other)).collect();
        differences.extend(self.other_endings(other));
        differences.extend(effects_that_differ(&other.effects, &self.effects, "the first run"));
        differences
    }

    /// Effects and follow-ups of another run that this one does not know by their identity.
    fn renamed(&self, other: &Self) -> Vec<String> {
        let effects = (other.begun.difference(&self.begun)).map(|(kind, effect)| {
            format!("effect {effect} of {kind} was begun, which the undisturbed run does not know")
        });
        effects.chain(self.renamed_messages(other)).collect()
    }

    fn renamed_messages(&self, other: &Self) -> Vec<String> {
        let is_new = |message: &&(String, String)| !self.states.contains_key(*message);
        let of_known_kind = |kind: &str| self.states.keys().any(|(known, _)| known == kind);
        (other.states.keys().filter(is_new))
            .map(|(kind, _)| {
                let known = if of_known_kind(kind) { "under another key" } else { "and did not" };
                format!("message {kind} followed {known} in the undisturbed run")
            })
            .collect()
    }

    /// Messages of both runs that ended otherwise, and those that did not follow.
    fn other_endings(&self, other: &Self) -> Vec<String> {
        (self.states.iter())
            .filter_map(|(message, was)| match other.states.get(message) {
                Some(is) if is == was => None,
                Some(is) => Some(format!("message {} is {is}, and was {was} in the undisturbed run", message.0)),
                None => Some(format!("message {} did not follow as in the undisturbed run", message.0)),
            })
            .collect()
    }
}

async fn run<W: World>(
    world: &W,
    handlers: &(impl Fn(&W, WorkerBuilder) -> WorkerBuilder + Send + Sync),
    message: &NewMessage,
    interrupt_at: Option<Boundary>,
) -> Result<End, NotProven> {
    let interrupts = interrupt_at.is_some();
    let mut to_restore = interrupt_at.as_ref().is_some_and(Boundary::restores);
    let mut rig = Rig::new(interrupt_at).await?;
    let mut process = rig.process(handlers(world, rig.tide.worker())).await?;
    for verdict in rig.tide.store().enqueue(vec![message.clone()]).await? {
        verdict?;
    }
    if to_restore {
        rig.back_up().await?;
        rig.recorder.spend_first_attempts(process.with_attempts_to_spare());
    }
    let mut resolved = 0;
    loop {
        let died = tokio::select! {
            biased;
            () = rig.recorder.died() => true,
            idle = until_idle(&rig, &process) => {
                idle?;
                false
            }
        };
        if died {
            // The attempt was dropped where it stood. What it held is gone with its process; the lease lapses by itself.
            rig.recorder.restart();
            if to_restore && rig.recorder.was_interrupted() {
                to_restore = false;
                rig.recorder.spend_first_attempts(HashSet::new());
                rig.restore().await?;
            }
            process = rig.process(handlers(world, rig.tide.worker())).await?;
        } else if ask_person(&rig, &process, world).await? {
            resolved += 1;
            if resolved > MOST_DECISIONS {
                let what = format!("{MOST_DECISIONS} decisions of a person, and there is always another effect parked");
                return Err(StoreError::conflict(what).into());
            }
        } else {
            break;
        }
    }
    let all =
        [State::Ready, State::Leased, State::Completed, State::Failed, State::Dead, State::Cancelled, State::Parked];
    let states = process
        .list(&all)
        .await?
        .into_iter()
        .map(|summary| ((summary.kind.to_string(), summary.key.to_string()), summary.state));
    Ok(End {
        boundaries: rig.recorder.boundaries(),
        effects: world.effects(),
        states: states.collect(),
        begun: rig.recorder.begun(),
        interrupted: interrupts && rig.recorder.was_interrupted(),
        resolved: resolved > 0,
    })
}

async fn until_idle(rig: &Rig, process: &Process) -> Result<(), StoreError> {
    for _ in 0..MOST_RUNS {
        if process.run_next().await?.is_none() && !rig.pass_time(process).await? {
            return Ok(());
        }
    }
    Err(StoreError::conflict(format!("{MOST_RUNS} runs, and there is always another one to come")))
}

/// Lets a person decide what is parked, as soon as a person is believed; says whether anything was decided.
async fn ask_person<W: World>(rig: &Rig, process: &Process, world: &W) -> Result<bool, StoreError> {
    let parked: Vec<MessageId> = process.list(&[State::Parked]).await?.into_iter().map(|summary| summary.id).collect();
    let mut any = false;
    for view in rig.tide.store().inspect(parked).await?.into_iter().flatten() {
        for row in open_rows(&view.journal) {
            let Some(resolution) = world.person(row) else { continue };
            if rig.clock.now() < row.quarantined_until() {
                rig.clock.advance_to(row.quarantined_until());
            }
            let act = Act { actor: "person".to_owned(), reason: "asked the remote".to_owned() };
            let resolve = Resolve { id: view.message.id, effect: row.effect.clone(), resolution, act };
            rig.tide.store().resolve(resolve).await?;
            any = true;
        }
    }
    Ok(any)
}

fn happened_at_most_as_often(effects: &BTreeMap<String, u32>, expected: &BTreeMap<String, u32>) -> bool {
    effects.iter().all(|(effect, times)| *times <= expected.get(effect).copied().unwrap_or_default())
}

impl Interrupted {
    /// What happened otherwise, worst first.
    fn differences(&self, expected: &BTreeMap<String, u32>) -> Vec<String> {
        let effects = effects_that_differ(&self.effects, expected, "the undisturbed run");
        effects.into_iter().chain(self.endings.iter().cloned()).collect()
    }

    fn hint(&self) -> String {
        if self.renamed { SAME_NAMES.to_owned() } else { self.boundary.hint() }
    }
}

/// What to do about an effect or a follow-up that is another one in each run.
const SAME_NAMES: &str = "name and item are the identity of an effect, kind and item that of a follow-up: make them of the \
                          payload and of confirmed answers only, nothing of the attempt, the time or chance in them";

/// What happened more or less often than it was to, worst first.
fn effects_that_differ(
    effects: &BTreeMap<String, u32>,
    expected: &BTreeMap<String, u32>,
    expected_in: &str,
) -> Vec<String> {
    let all: BTreeSet<&String> = expected.keys().chain(effects.keys()).collect();
    let mut found: Vec<(bool, String)> = Vec::new();
    for effect in all {
        let times = |effects: &BTreeMap<String, u32>| effects.get(effect).copied().unwrap_or_default();
        let (was, is) = (times(expected), times(effects));
        if was != is {
            found.push((
                is < was,
                format!("effect {effect:?} happened {}, and {} in {expected_in}", often(is), often(was)),
            ));
        }
    }
    found.sort();
    found.into_iter().map(|(_, text)| text).collect()
}

fn often(times: u32) -> String {
    match times {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        more => format!("{more} times"),
    }
}

impl fmt::Display for Refuted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, expected, interrupted, tried } = self;
        write!(
            f,
            "message {kind} is not idempotent: {} of {tried} interruptions made a difference",
            interrupted.len()
        )?;
        for run in interrupted.iter().take(5) {
            write!(f, "\n- {}", run.boundary.event())?;
            for difference in run.differences(expected) {
                write!(f, "\n    {difference}")?;
            }
        }
        if let Some(more) = interrupted.len().checked_sub(5).filter(|more| *more > 0) {
            write!(f, "\n- and {more} more")?;
        }
        match interrupted.first() {
            Some(run) => write!(f, "\nhint: {}", run.hint()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NotProven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstRun { ended } => write!(
                f,
                "the undisturbed run did not end: {ended}\nhint: give it a handler for every follow-up, and a world \
                 in which everything works; faults are tested with Harness"
            ),
            Self::NoEffect => write!(
                f,
                "the undisturbed run had no effect, so nothing could happen twice\nhint: World::effects counts what \
                 the remote's double did"
            ),
            Self::Differs { kind, differences } => write!(
                f,
                "message {kind} does not repeat itself: two undisturbed runs differ\n- {}\nhint: {SAME_NAMES}",
                differences.join("\n- ")
            ),
            Self::NotRepeatable(boundary) => write!(
                f,
                "a run was to come to this, and did not: {}\nhint: a run must repeat itself: no chance, no time of the \
                 machine, and no order of threads in handlers and world",
                boundary.event()
            ),
            Self::Refuted(refuted) => refuted.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for NotProven {
    /// The text for people: it is what a test that unwraps shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for NotProven {}

impl From<StoreError> for NotProven {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
