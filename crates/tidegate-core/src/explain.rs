//! Why a message is where it is, and what happens next, in a sentence. Pure.
//!
//! Evaluates the same predicates as a claim does, one by one, so that an operator sees which of them holds it back.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::effect::open_rows;
use crate::lifecycle::State;
use crate::store::ExplainFacts;

/// An explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `ready`, or one of its labels: scheduled, retrying, reconciling, held; else the state.
    pub label: &'static str,
    /// Why it is where it is.
    pub why: String,
    /// What happens next, and who has to do it.
    pub next: String,
    /// The predicates of a claim, in its order.
    pub predicates: Vec<Predicate>,
}

/// One condition of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Predicate {
    /// What is asked.
    pub asks: &'static str,
    /// Whether it holds.
    pub holds: bool,
}

/// Explains a message.
#[must_use]
pub fn explain(facts: &ExplainFacts) -> Explanation {
    let view = &facts.view;
    let id = view.message.id;
    let due = view.due_at.is_none_or(|due_at| due_at <= facts.now);
    let predicates = vec![
        Predicate { asks: "it is ready", holds: view.state == State::Ready },
        Predicate { asks: "its queue is not paused", holds: !facts.paused },
        Predicate { asks: "a worker has served its kind", holds: facts.policy.is_some() },
        Predicate { asks: "it is due", holds: due },
        Predicate { asks: "nothing of its lane is ahead of it", holds: facts.ahead == 0 },
    ];
    let (label, why, next) = match view.state {
        State::Ready => ready(facts, due),
        State::Leased => {
            let (worker, until) =
                view.lease.as_ref().map_or(("?", facts.now), |(worker, until)| (worker.as_str(), *until));
            let again = if view.cancel_requested { " A cancel request waits for its end." } else { "" };
            let next = if until < facts.now {
                format!("The lease lapsed {} ago; the next sweep takes it over.{again}", span(facts.now.since(until)))
            } else {
                format!(
                    "The worker settles it; if it dies, the lease lapses at {until} and a sweep takes it over.{again}"
                )
            };
            ("leased", format!("attempt {} runs at worker {worker}", view.counters.attempt), next)
        }
        State::Parked => {
            let effects: Vec<String> =
                open_rows(&view.journal).map(|row| format!("{} (key {})", row.effect, row.key)).collect();
            let earliest = open_rows(&view.journal).map(|row| row.quarantined_until()).max();
            let not_before = match earliest.filter(|at| *at > facts.now) {
                Some(at) => format!(" \"Did not happen\" is believed from {at} on."),
                None => String::new(),
            };
            (
                "parked",
                format!("{}: the outcome of {} is not known", reason(facts), list(&effects)),
                format!("Ask the remote for that key, then: {}.{not_before}", resolve_commands(facts)),
            )
        }
        State::Completed => ("completed", format!("it completed at {}", ended(facts)), kept()),
        State::Failed => ("failed", format!("its handler said never at {}: {}", ended(facts), failure(facts)), kept()),
        State::Dead => (
            "dead",
            format!("it was given up at {} ({}): {}", ended(facts), reason(facts), failure(facts)),
            if view.compensated {
                "Nothing: its compensation undid it. What is still wanted is a new message under a new key.".to_owned()
            } else {
                format!("Nothing, until a person redrives it: tidegate dead redrive {id}.")
            },
        ),
        State::Cancelled => ("cancelled", format!("it was cancelled at {}", ended(facts)), "Nothing.".to_owned()),
    };
    Explanation { label, why, next, predicates }
}

fn ready(facts: &ExplainFacts, due: bool) -> (&'static str, String, String) {
    let view = &facts.view;
    let when = view.due_at.unwrap_or(facts.now);
    let reconciling = open_rows(&view.journal).next();
    let label = match view.history.last() {
        _ if reconciling.is_some() => "reconciling",
        _ if facts.paused => "held",
        Some(_) if !due => "retrying",
        None if !due => "scheduled",
        Some(_) | None => "ready",
    };
    let mut why = match (view.history.last(), reconciling) {
        (_, Some(row)) => format!("effect {} may have happened and is cleared up before anything else", row.effect),
        (Some(last), None) if !last.code.is_empty() => {
            format!("attempt {} ended {} ago: {}", last.attempt, span(facts.now.since(last.at)), failure(facts))
        }
        (Some(last), None) => format!("it was {} {} ago", last.outcome, span(facts.now.since(last.at))),
        (None, None) => {
            let what = if due { "no worker has claimed it yet" } else { "it was to begin later" };
            format!("{what}; it was enqueued {} ago", span(facts.now.since(view.message.enqueued_at)))
        }
    };
    let too_late = [Some(view.message.expires_at), view.message.deadline].into_iter().flatten().min();
    let next = if facts.paused {
        why.push_str("; its queue is paused");
        format!("Nothing, until the queue is resumed: tidegate queue resume {}.", view.message.queue)
    } else if !due {
        format!("It is due in {} (at {when}).", span(when.since(facts.now)))
    } else if facts.policy.is_none() {
        format!("It waits for a worker: none has ever served kind {} on this store.", view.message.kind)
    } else if reconciling.is_none() && too_late.is_some_and(|end| end <= facts.now) {
        "It is too late to begin; the next claim makes it a dead letter.".to_owned()
    } else if facts.ahead > 0 {
        format!("{} of its lane are claimed before it.", facts.ahead)
    } else {
        format!("The next free worker of queue {} that reads kind {} claims it.", view.message.queue, view.message.kind)
    };
    (label, why, next)
}

/// What to type for the first effect of which nobody knows, with either answer.
fn resolve_commands(facts: &ExplainFacts) -> String {
    let id = facts.view.message.id;
    let Some(row) = open_rows(&facts.view.journal).next() else { return format!("tidegate parked show {id}") };
    let command = format!("tidegate parked resolve {id} --effect '{}'", row.effect);
    format!(
        "{command} --happened --result 'JSON' --reason '...' if it happened, else {command} --did-not-happen --reason '...'"
    )
}

fn reason(facts: &ExplainFacts) -> &str {
    facts.view.reason.as_deref().unwrap_or("no reason stored")
}

fn failure(facts: &ExplainFacts) -> String {
    facts.view.failure.as_ref().map_or_else(|| "no failure stored".to_owned(), ToString::to_string)
}

fn ended(facts: &ExplainFacts) -> Timestamp {
    facts.view.ended_at.unwrap_or(facts.now)
}

fn kept() -> String {
    "Every duplicate of its key gets the stored answer until the retention ends.".to_owned()
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "an effect".to_owned() } else { items.join(", ") }
}

/// A duration as a person says it.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
