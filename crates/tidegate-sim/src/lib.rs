//! Deterministic simulation: the real client, worker, attempts, effects, keepalive and housekeeping of Tidegate, as several
//! processes in one thread, with a store, a remote, a network and clocks that go wrong as one seed has it.
//!
//! [`run`] makes one run: the same settings give the same run, event for event. Faults are drawn before it begins, as a list
//! that can be shortened: when an invariant does not hold, [`hunt`] leaves out faults while it still does not, and shows the
//! seed, what is left, and the last events. What is checked is in `oracle.rs` and `gateway.rs`, each check under the name of
//! its invariant.

mod chance;
mod clients;
mod clock;
mod gateway;
mod link;
mod node;
mod operator;
mod oracle;
mod overload;
mod plan;
mod process;
mod run;
mod settings;
mod sim;
mod steps;
mod trace;

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub use settings::{Broken, Failure, Report, Settings, Violation};

/// One run.
///
/// # Errors
/// The first invariant that did not hold.
pub fn run(settings: &Settings) -> Result<Report, Violation> {
    run::run(settings, &plan::draw(settings)).result
}

/// How much longer than it took to violate something a shortened script may take.
const MARGIN: Duration = Duration::from_secs(600);

/// One run; a violation is shown by as few faults as can be found within so many further runs.
///
/// # Errors
/// The seed, the shortened script, and what it violates.
pub fn hunt(settings: &Settings, tries: u32) -> Result<Report, Box<Failure>> {
    let whole = plan::draw(settings);
    let ended = run::run(settings, &whole);
    let violation = match ended.result {
        Ok(report) => return Ok(report),
        Err(violation) => violation,
    };
    let faults = whole.len();
    let mut shown = (violation, ended.last);
    // A candidate that holds need not run to the end of the day.
    let settings = &Settings { span: settings.span.min(shown.0.at + MARGIN), ..settings.clone() };
    let mut script: Vec<_> = whole.into_iter().filter(|planned| planned.at <= shown.0.at).collect();
    let mut tried = 0;
    let mut part = script.len().div_ceil(2);
    while part > 0 && tried < tries {
        let mut from = 0;
        let mut shorter = false;
        while from < script.len() && tried < tries {
            let mut candidate = script.clone();
            candidate.drain(from..(from + part).min(script.len()));
            tried += 1;
            let ended = run::run(settings, &candidate);
            match ended.result {
                // Another violation than the one that is looked for would lead astray.
                Err(violation) if violation.invariant == shown.0.invariant => {
                    candidate.retain(|planned| planned.at <= violation.at);
                    script = candidate;
                    shown = (violation, ended.last);
                    shorter = true;
                }
                Ok(_) | Err(_) => from += part,
            }
        }
        if !shorter || part > 1 {
            part /= 2;
        }
    }
    let script = script.iter().map(ToString::to_string).collect();
    Err(Box::new(Failure { seed: settings.seed, violation: shown.0, script, faults, last: shown.1 }))
}

/// The answer of a store that never waits.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("the reference model never waits"),
    }
}
