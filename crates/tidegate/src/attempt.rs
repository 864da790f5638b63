//! The life of one attempt, from the lease to the report. Start reading here.
//!
//! stored result → decode → run → classify → settle → report. The first step has no code: the commit that stores a
//! result removes the row that can be claimed, so whatever was claimed has no result yet. The handler runs under its
//! time-out with its panics caught; what it reports becomes an [`Outcome`]; the store decides what the message becomes.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::Failure;
use tidegate_core::store::{Extend, Journal, JournalWrite, Lease, Settle, Settled};
use tracing::{Instrument, debug, error, info_span, warn};

use crate::context::{Context, Ended, Inner, Progress};
use crate::handler::{Handler, HandlerError, Stop};
use crate::keepalive::{Held, Stopped};
use crate::trace;
use crate::worker::Shared;

/// The longest pause between two tries to settle.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Runs one claimed message. `sent_at` is when the claim was sent, by the monotonic clock.
pub(crate) async fn run(worker: &Shared, lease: Lease, sent_at: Duration) {
    let span = info_span!("attempt", message.id = %lease.message.id, queue.name = %lease.message.queue,
        message.kind = %lease.message.kind, attempt = lease.counters.attempt);
    // Inside of the one that the log has: what is settled is told to the innermost.
    let traced = trace::attempt(&lease);
    async {
        // Released by its drop: a panic of ours must not keep a lease alive for ever.
        let held = worker.keepalive.hold(&lease, sent_at);
        attempt(worker, Arc::new(lease), &held).await;
    }
    .instrument(traced)
    .instrument(span)
    .await;
}

async fn attempt(worker: &Shared, lease: Arc<Lease>, held: &Arc<Held>) {
    // Taken before the gate: what a suspect may do to its process must not happen beside others.
    let Some(_gate) = pass_gate(worker, &lease, held).await else { return };
    let started = worker.clock.monotonic();
    worker.metrics.started(&lease.message, worker.clock.now().since(lease.due_at));

    let Some(handler) = worker.handlers.get(&lease.message.kind) else {
        // The claim asked for our kinds only; an engine that hands out another one must not lose it.
        return settle(worker, &lease, held, Outcome::Released, Progress::default()).await;
    };
    let context = context(worker, &lease, handler, held);
    failpoint::reach("attempt.before_handler");
    let ran = run_handler(&context, handler, held).await;
    let outcome = outcome(&context, ran);
    worker.metrics.ran(&lease.message, worker.clock.monotonic().saturating_sub(started));

    let progress = std::mem::take(&mut *context.progress());
    let Some(outcome) = outcome else {
        trace::unsettled(&StoreError::lease_lost(lease.message.id));
        debug!("the lease of message {} was lost while its handler was running", lease.message.id);
        return leave_evidence(worker, &lease, progress.pending).await;
    };
    settle(worker, &lease, held, outcome, progress).await;
}

/// Who may run: everybody together, or a suspect alone. `None` when the lease was lost while waiting.
async fn pass_gate(worker: &Shared, lease: &Lease, held: &Arc<Held>) -> Option<Gate> {
    if !lease.suspect || canary::is(Canary::SuspectInCompany) {
        let stopped = tokio::select! {
            biased;
            passed = Arc::clone(&worker.alone).read_owned() => return Some(Gate::Together(passed)),
            stopped = held.wait_stopped() => stopped,
        };
        // Not beside the gate: one that opens meanwhile must not start what is on its way back.
        give_back(worker, lease, held, stopped).await;
        return None;
    }
    let passed = tokio::select! {
        biased;
        passed = Arc::clone(&worker.alone).write_owned() => Ok(passed),
        stopped = held.wait_stopped() => Err(stopped),
    };
    let alone = match passed {
        Ok(alone) => alone,
        Err(stopped) => {
            give_back(worker, lease, held, stopped).await;
            return None;
        }
    };
    // Said before it starts, or a crash would be held against nobody, for ever.
    let say = Extend { id: lease.message.id, token: lease.token, lease: worker.lease, alone: true };
    let said = match worker.store.extend(vec![say]).await {
        Ok(mut verdicts) => verdicts.pop().unwrap_or_else(|| Err(StoreError::unavailable("the store gave no verdict"))),
        Err(error) => Err(error),
    };
    match said {
        Ok(_) => Some(Gate::Alone(alone)),
        Err(error) if error.kind() == StoreErrorKind::LeaseLost => None,
        Err(error) => {
            warn!(error = %error, "a suspect did not start: that it runs alone could not be stored");
            // It may have been stored all the same: left to lapse, the lease would count as a crash of what never ran.
            settle(worker, lease, held, Outcome::Released, Progress::default()).await;
            None
        }
    }
}

/// Hands back a message that did not start, where that is still ours to do.
async fn give_back(worker: &Shared, lease: &Lease, held: &Arc<Held>, stopped: Stopped) {
    match stopped {
        Stopped::LeaseLost => {}
        Stopped::OutOfTime | Stopped::Drained | Stopped::CancelRequested => {
            settle(worker, lease, held, Outcome::Released, Progress::default()).await;
        }
    }
}

/// Held for as long as the attempt runs.
#[derive(Debug)]
#[expect(dead_code, reason = "the guards are held for their dropping")]
enum Gate {
    Together(tokio::sync::OwnedRwLockReadGuard<()>),
    Alone(tokio::sync::OwnedRwLockWriteGuard<()>),
}

fn context(worker: &Shared, lease: &Arc<Lease>, handler: &Handler, held: &Arc<Held>) -> Context {
    Context(Arc::new(Inner {
        store: Arc::clone(&worker.store),
        clock: Arc::clone(&worker.clock),
        lease: Arc::clone(lease),
        policy: handler.policy.clone(),
        held: Arc::clone(held),
        max_payload: worker.max_payload,
        cancel_seen: std::sync::atomic::AtomicBool::new(false),
        probe: worker.probe.clone(),
        progress: Mutex::new(Progress { journal: lease.journal.clone(), ..Progress::default() }),
    }))
}

/// How a run ended, before it is judged.
enum Ran {
    Returned(Result<String, HandlerError>),
    Undecodable(Failure),
    Panicked(Failure),
    TimedOut(Duration),
    Stopped(Stopped),
}

async fn run_handler(context: &Context, handler: &Arc<Handler>, held: &Arc<Held>) -> Ran {
    let timeout = handler.policy.timeout;
    held.overdue_at(context.0.clock.monotonic().saturating_add(timeout).saturating_add(timeout / 10));
    let payload = Arc::clone(&context.message().payload);
    let (for_handler, handler) = (context.clone(), Arc::clone(handler));
    // Decoding and the handler's own first steps are user code as well: they are polled inside the net.
    let running = async move {
        match handler.begin(for_handler, &payload) {
            Ok(running) => Ran::Returned(running.await),
            Err(failure) => Ran::Undecodable(failure),
        }
    };
    let mut running = pin!(running);
    let guarded = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(polled) => polled,
        Err(panic) => std::task::Poll::Ready(Ran::Panicked(Failure::new("panic", panic_text(panic.as_ref())))),
    });
    tokio::select! {
        biased;
        ran = tokio::time::timeout(timeout, guarded) => ran.unwrap_or(Ran::TimedOut(timeout)),
        stopped = must_stop(context, held) => Ran::Stopped(stopped),
    }
}

/// Waits for a reason to drop the handler. A cancel request is only told to it: dropping it in the middle of a send would
/// make an unknown outcome of one that is about to be known.
async fn must_stop(context: &Context, held: &Held) -> Stopped {
    loop {
        match held.wait_stopped().await {
            Stopped::CancelRequested => {
                context.0.cancel_seen.store(true, std::sync::atomic::Ordering::Relaxed);
                held.wait_beyond_cancel().await;
            }
            stopped @ (Stopped::LeaseLost | Stopped::OutOfTime | Stopped::Drained) => return stopped,
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

/// What is reported. `None`: nothing, because somebody else has the message.
fn outcome(context: &Context, ran: Ran) -> Option<Outcome> {
    // What an effect ended stays ended, whatever the handler made of it. A handler that was itself cut off says why.
    let ended = context.progress().ended.clone();
    match ended {
        Some(Ended::CutOff(_)) if !matches!(ran, Ran::Returned(_)) => {}
        Some(ended) => return ended_outcome(ended),
        None => {}
    }
    let orphans = context.has_orphans();
    let retryable =
        |code: &str, detail: String| Outcome::Retryable { failure: Failure::new(code, detail), after: None };
    Some(match ran {
        Ran::Returned(Ok(result)) => completed(context, result, orphans),
        Ran::Returned(Err(error)) => match *error.0 {
            Stop::Retryable { failure, after } => Outcome::Retryable { failure, after },
            Stop::Permanent { failure } => permanent(context, failure, orphans),
            Stop::Rejected(rejection) => permanent(context, Failure::new(rejection.code, rejection.detail), orphans),
            Stop::Snooze(after) => Outcome::Snooze { after },
            // Unreachable while `ended` is set with it; if it ever is not, trying again is the safe reading.
            Stop::Ended => retryable("error", "an effect of another attempt ended this one".to_owned()),
        },
        Ran::Undecodable(failure) => Outcome::Undecodable { failure },
        Ran::Panicked(failure) => Outcome::Retryable { failure, after: None },
        Ran::TimedOut(timeout) => retryable("timeout", format!("the handler did not end within {timeout:?}")),
        Ran::Stopped(Stopped::LeaseLost) => return None,
        Ran::Stopped(Stopped::Drained | Stopped::CancelRequested) => Outcome::Released,
        Ran::Stopped(Stopped::OutOfTime) => {
            retryable("lease", "the lease could not be extended: the store did not answer in time".to_owned())
        }
    })
}

fn ended_outcome(ended: Ended) -> Option<Outcome> {
    Some(match ended {
        Ended::NotDone { failure, after } => Outcome::NotDone { failure, after },
        Ended::Unknown(failure) | Ended::CutOff(failure) => Outcome::Unknown { failure },
        Ended::Park(reason, failure) => Outcome::Park { reason, failure },
        Ended::Exhausted(failure) => Outcome::Exhausted { failure },
        Ended::Refused(failure) => Outcome::Refused { failure },
        Ended::Retryable(failure) => Outcome::Retryable { failure, after: None },
        Ended::LeaseLost => return None,
    })
}

fn completed(context: &Context, result: String, orphans: bool) -> Outcome {
    let (size, most) = (result.len(), context.0.max_payload);
    if size > most {
        let detail = format!("the result of {size} bytes is over the limit of {most}; hint: return a reference to it");
        return Outcome::Refused { failure: Failure::new("result", detail) };
    }
    Outcome::Completed { result: result.into(), orphans }
}

fn permanent(context: &Context, failure: Failure, orphans: bool) -> Outcome {
    let compensated = !context.progress().compensate.is_empty();
    Outcome::Permanent { failure, compensated, orphans }
}

/// Tells the store what was confirmed under a lease that is lost: it is applied to nothing, and kept for whoever resolves.
async fn leave_evidence(worker: &Shared, lease: &Lease, mut pending: Vec<JournalWrite>) {
    let Some(write) = pending.pop() else { return };
    let late = Journal { id: lease.message.id, token: lease.token, before: pending, write };
    if let Err(error) = worker.store.journal(vec![late]).await {
        warn!(error = %error, "what message {} confirmed under a lost lease could not be kept", lease.message.id);
    }
}

/// Stores the end of the run, again and again until it is known to be stored or somebody else has the message.
async fn settle(worker: &Shared, lease: &Lease, held: &Held, outcome: Outcome, progress: Progress) {
    held.settling();
    let word = outcome.as_str();
    let settle = Settle {
        id: lease.message.id,
        token: lease.token,
        outcome,
        journal: progress.pending,
        then: progress.then,
        compensate: progress.compensate,
        unit: worker.random.unit(),
    };
    let mut pause = Duration::from_millis(10);
    failpoint::reach("attempt.before_settle");
    loop {
        match worker.settler.settle(settle.clone()).instrument(trace::settle(&lease.message)).await {
            Ok(settled) => {
                failpoint::reach("attempt.after_settle");
                return report(worker, lease, &settle.outcome, &settled);
            }
            // The commit may have happened: settling again under the same token is harmless.
            Err(error) if error.kind() == StoreErrorKind::Unavailable && !is_over(worker, held) => {
                warn!(error = %error, outcome = word, "could not settle yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SETTLE_PAUSE);
            }
            Err(error) if error.kind() == StoreErrorKind::LeaseLost => {
                trace::unsettled(&error);
                // An earlier try may have settled it, if the message went on since: the error says so where that can be.
                return debug!(error = %error, outcome = word, "message {} is not held any more", lease.message.id);
            }
            Err(error) => {
                trace::unsettled(&error);
                return error!(error = %error, outcome = word, "message {} was not settled", lease.message.id);
            }
        }
    }
}

/// Whether there is no point in settling any more: the sweep will end the run.
fn is_over(worker: &Shared, held: &Held) -> bool {
    held.stopped() == Some(Stopped::LeaseLost) || worker.clock.monotonic() > held.lapses_at()
}

fn report(worker: &Shared, lease: &Lease, outcome: &Outcome, settled: &Settled) {
    worker.metrics.settled(&lease.message, settled);
    trace::settled(outcome, settled);
    let reason = settled.reason.unwrap_or_default();
    let (state, word) = (settled.state, outcome.as_str());
    // Not what the handler said: it may hold what a payload does. Operators find it with the message.
    let code = outcome.failure().map(|failure| failure.code.as_str()).unwrap_or_default();
    match state {
        // A handler that says never states a fact of the business: nothing for an operator to do.
        State::Completed | State::Ready | State::Leased | State::Cancelled | State::Failed => {
            debug!(outcome = word, %state, code, "message {} is {state} after {word}", lease.message.id);
        }
        State::Dead | State::Parked => {
            warn!(outcome = word, %state, reason, code, "message {} is {state}", lease.message.id);
        }
    }
}
