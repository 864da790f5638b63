//! Every span that is exported of a message, with its name and its attributes. No other file knows one.
//!
//! One message is one trace. The span of its enqueue marks it with `traceparent` and `tracestate` (W3C), which are stored
//! with it; whoever runs it, whenever and wherever, begins there, and what follows from it begins at the attempt that
//! brought it. The spans are `tracing` spans of one target, [`TARGET`], named as OpenTelemetry names those of messaging.
//! They are made after [`install`] and not before: until then each place is one look at whether there is a tracer. No
//! payload, key or answer is in any of them, and nothing that a failure said but its code.
//!
//! A program exports them with a layer of `tracing-opentelemetry`, filtered to [`TARGET`], and a [`Tracer`] of a few lines.
//! `tidegate serve` does so if it is told where to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use tidegate_core::effect::{Decision, Reached};
use tidegate_core::error::StoreError;
use tidegate_core::id::digest16;
use tidegate_core::lifecycle::Outcome;
use tidegate_core::message::{Message, NewMessage, TRACE_PARENT};
use tidegate_core::store::{Enqueued, Lease, MessageView, Settle, Settled, TakenOver};
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::probe::How;

/// The target of every span here: what a layer that exports them lets through, and one that logs leaves out.
pub const TARGET: &str = module_path!();

/// `traceparent` and `tracestate`, as a message has them among its headers.
pub type Headers = BTreeMap<String, String>;

/// How spans of `tracing` hang together with traces. One for a process, beside its subscriber.
pub trait Tracer: Send + Sync + fmt::Debug {
    /// Makes a span that was not entered yet part of the trace of these headers; if they name none, leaves it as it is.
    fn continue_from(&self, span: &Span, headers: &Headers);

    /// Makes a span that was not entered yet part of the trace of this id: of what nobody began a trace for.
    fn adopt(&self, span: &Span, trace: [u8; 16]);

    /// What continues the trace from this span; nothing, if it is in none.
    fn headers_of(&self, span: &Span) -> Headers;

    /// What continues the trace from the innermost span around the caller; nothing, if there is none.
    fn current(&self) -> Headers;

    /// What became of the spans so far.
    fn exported(&self) -> Exported {
        Exported::default()
    }
}

/// What became of spans, counted since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// A collector took them.
    pub sent: u64,
    /// Given up: the queue was full, or no collector took them in time.
    pub dropped: u64,
}

static TRACER: OnceLock<Arc<dyn Tracer>> = OnceLock::new();

/// Begins to make spans. The first tracer of a process stays; whether it is this one.
pub fn install(tracer: Arc<dyn Tracer>) -> bool {
    TRACER.set(tracer).is_ok()
}

/// Whether spans are made.
#[must_use]
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// What became of the spans so far; none, if nobody exports them.
#[must_use]
pub fn exported() -> Option<Exported> {
    TRACER.get().map(|tracer| tracer.exported())
}

/// What a handler sends along with a call, so that its trace goes on at the other side: `traceparent` and `tracestate` of
/// the span around the caller. Empty where nothing is traced.
#[must_use]
pub fn headers() -> Headers {
    TRACER.get().map(|tracer| tracer.current()).unwrap_or_default()
}

// --- into the store ----------------------------------------------------------------------------------------------------

/// The span of a request over HTTP: `http.route` as it stands in the code, never its path. `None` begins a trace for it, if
/// it brings none, only where a message may come of it: what workers ask for all day is no trace of anybody.
#[must_use]
pub fn request(method: &str, route: &str, brought: &Headers, begins: bool) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::none() };
    if !begins && !brought.contains_key(TRACE_PARENT) {
        return Span::none();
    }
    let span = info_span!(
        parent: None,
        "request",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
    );
    tracer.continue_from(&span, brought);
    span
}

/// How a request was answered; not at all, where its client left before.
pub fn answered(span: &Span, status: Option<u16>) {
    if let Some(status) = status {
        span.record("http.response.status_code", i64::from(status));
    }
    if status.is_none_or(|status| status >= 500) {
        span.record("otel.status_code", "error");
    }
}

/// The span of a message on its way into the store, and the mark of it on the message. One that has a trace of its own stays
/// in it; any other one is of the trace at hand, or begins one.
#[must_use]
pub fn enqueue(message: &mut NewMessage) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::none() };
    let span = info_span!(
        "enqueue",
        otel.name = format_args!("enqueue {}", message.queue),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = "tidegate",
        messaging.operation.name = "enqueue",
        "messaging.operation.type" = "send",
        messaging.destination.name = message.queue.as_str(),
        messaging.message.id = Empty,
        tidegate.kind = message.kind.as_str(),
        tidegate.verdict = Empty,
        "error.type" = Empty,
    );
    // Of the trace at hand already: then the span around this one is nearer than the one that sent it.
    if trace_of(&message.headers) != trace_of(&tracer.current()) {
        tracer.continue_from(&span, &message.headers);
    }
    message.mark_trace(&tracer.headers_of(&span));
    span
}

/// What the store said of an enqueue.
pub fn enqueued(span: &Span, verdict: &Result<Enqueued, StoreError>) {
    if span.is_disabled() {
        return;
    }
    let (id, word) = match verdict {
        Ok(Enqueued::New { id }) => (Some(*id), "new"),
        Ok(Enqueued::Existing { id, .. }) => (Some(*id), "existing"),
        Ok(Enqueued::Replayed { id, .. }) => (Some(*id), "replayed"),
        Ok(Enqueued::Stale) => (None, "stale"),
        Err(error) => return failed(span, error.kind().as_str()),
    };
    span.record("tidegate.verdict", word);
    if let Some(id) = id {
        span.record("messaging.message.id", display(id));
    }
}

/// Marks what follows from the attempt at hand: it begins where that is, unless it was given a trace of its own.
pub(crate) fn follow_up(follow_up: &mut NewMessage) {
    let here = headers();
    let own = trace_of(&follow_up.headers);
    if own.is_none() || own == trace_of(&here) {
        follow_up.mark_trace(&here);
    }
}

/// The id of the trace that headers are of.
fn trace_of(headers: &Headers) -> Option<&str> {
    headers.get(TRACE_PARENT)?.split('-').nth(1).filter(|id| id.len() == 32)
}

/// Makes a span part of the trace of a message. One that was not marked when it was enqueued, by a program without traces or
/// a function of the database, has a trace that every process can tell.
fn join(tracer: &Arc<dyn Tracer>, span: &Span, message: &Message) {
    if trace_of(&message.headers).is_some() {
        return tracer.continue_from(span, &message.headers);
    }
    let (id, queue) = (message.id.as_i64().to_be_bytes(), message.queue.as_str().as_bytes());
    tracer.adopt(span, digest16(&[b"trace", &id, queue, message.key.as_str().as_bytes()]));
}

// --- attempts ----------------------------------------------------------------------------------------------------------

/// The span of an attempt, in the trace of its message.
pub(crate) fn attempt(lease: &Lease) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::none() };
    let message = &lease.message;
    let span = info_span!(
        parent: None,
        "attempt",
        otel.name = format_args!("attempt {}", message.queue),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = "tidegate",
        messaging.operation.name = "attempt",
        "messaging.operation.type" = "process",
        messaging.destination.name = message.queue.as_str(),
        messaging.message.id = %message.id,
        messaging.message.conversation_id = %message.flow,
        tidegate.kind = message.kind.as_str(),
        tidegate.attempt = i64::from(lease.counters.attempt),
        tidegate.claim = i64::from(lease.token.claims),
        tidegate.reconciling = lease.reconciling,
        tidegate.outcome = Empty,
        tidegate.state = Empty,
        tidegate.reason = Empty,
        "error.type" = Empty,
    );
    join(tracer, &span, message);
    span
}

/// How the attempt at hand was settled.
pub(crate) fn settled(outcome: &Outcome, settled: &Settled) {
    if is_on() {
        settlement(&Span::current(), outcome, settled);
    }
}

/// The attempt at hand ended without a settlement: its lease was lost, or the store refused what it said.
pub(crate) fn unsettled(error: &StoreError) {
    if is_on() {
        let span = Span::current();
        span.record("tidegate.outcome", "unsettled");
        failed(&span, error.kind().as_str());
    }
}

fn settlement(span: &Span, outcome: &Outcome, settled: &Settled) {
    span.record("tidegate.outcome", outcome.as_str());
    span.record("tidegate.state", display(settled.state));
    if let Some(reason) = settled.reason {
        span.record("tidegate.reason", reason);
    }
    let Some(failure) = outcome.failure() else { return };
    span.record("error.type", failure.code.as_str());
    // That a handler says never is a fact of the business: nothing went wrong here.
    if !matches!(outcome, Outcome::Permanent { .. }) {
        span.record("otel.status_code", "error");
    }
}

fn failed(span: &Span, code: &str) {
    span.record("error.type", code);
    span.record("otel.status_code", "error");
}

/// The span of the call that settles the attempt at hand.
pub(crate) fn settle(message: &Message) -> Span {
    if !is_on() {
        return Span::none();
    }
    info_span!(
        "settle",
        otel.name = format_args!("settle {}", message.queue),
        otel.kind = "client",
        messaging.system = "tidegate",
        messaging.operation.name = "settle",
        "messaging.operation.type" = "settle",
        messaging.destination.name = message.queue.as_str(),
        messaging.message.id = %message.id,
    )
}

/// A lease was taken over from a worker that is gone, and with it an attempt whose own span nobody exports any more.
pub(crate) fn taken_over(view: &MessageView, taken: &TakenOver) {
    let Some(tracer) = TRACER.get() else { return };
    let span = info_span!(
        parent: None,
        "sweep",
        otel.name = format_args!("sweep {}", taken.queue),
        otel.kind = "consumer",
        otel.status_code = "error",
        messaging.system = "tidegate",
        messaging.operation.name = "sweep",
        "messaging.operation.type" = "settle",
        messaging.destination.name = taken.queue.as_str(),
        messaging.message.id = %taken.id,
        messaging.message.conversation_id = %view.message.flow,
        messaging.client.id = taken.worker.as_str(),
        tidegate.kind = view.message.kind.as_str(),
        tidegate.attempt = i64::from(view.counters.attempt),
        tidegate.claim = i64::from(view.counters.claims),
        tidegate.outcome = Outcome::LeaseExpired.as_str(),
        tidegate.state = %taken.state,
        "error.type" = Outcome::LeaseExpired.as_str(),
    );
    join(tracer, &span, &view.message);
}

// --- effects -----------------------------------------------------------------------------------------------------------

/// The span of an effect that the handler at hand reached.
pub(crate) fn effect(reached: &Reached) -> Span {
    if !is_on() {
        return Span::none();
    }
    let name = reached.effect.name.as_str();
    info_span!(
        "effect",
        otel.name = format_args!("effect {name}"),
        otel.kind = "internal",
        otel.status_code = Empty,
        tidegate.effect.name = name,
        tidegate.effect.policy = reached.policy.as_str(),
        tidegate.effect.decision = Empty,
        tidegate.effect.answer = Empty,
        "error.type" = Empty,
    )
}

/// What the journal allows the effect at hand. The last decision stays: a look-up that found nothing is followed by a send.
pub(crate) fn decided(decision: &Decision) {
    if is_on() {
        Span::current().record("tidegate.effect.decision", word_of(decision));
    }
}

fn word_of(decision: &Decision) -> &'static str {
    match decision {
        Decision::Replay(_) | Decision::ReplayRejected { .. } => "replay",
        Decision::Send => "send",
        Decision::LookUp { .. } => "look_up",
        Decision::Park(_) => "park",
    }
}

/// What came of the effect at hand: how its answer is called, and a code if it was none that one hopes for.
pub(crate) fn effect_ended(answer: &str, code: Option<&str>) {
    if is_on() {
        let span = Span::current();
        span.record("tidegate.effect.answer", answer);
        if let Some(code) = code {
            failed(&span, code);
        }
    }
}

/// The span of what an effect makes leave the process.
pub(crate) fn leaving(how: How, reached: &Reached) -> Span {
    if !is_on() {
        return Span::none();
    }
    let (name, how) = (reached.effect.name.as_str(), how.as_str());
    info_span!(
        "leaving",
        otel.name = format_args!("{how} {name}"),
        otel.kind = "client",
        tidegate.effect.name = name,
        tidegate.effect.how = how,
    )
}

// --- workers elsewhere -------------------------------------------------------------------------------------------------

/// A message was handed out to a worker elsewhere. What it does there is its own to tell; that it began is told here.
pub fn claimed(lease: &Lease) {
    let Some(tracer) = TRACER.get() else { return };
    let message = &lease.message;
    let span = info_span!(
        parent: None,
        "claim",
        otel.name = format_args!("claim {}", message.queue),
        otel.kind = "consumer",
        messaging.system = "tidegate",
        messaging.operation.name = "claim",
        "messaging.operation.type" = "receive",
        messaging.destination.name = message.queue.as_str(),
        messaging.message.id = %message.id,
        messaging.message.conversation_id = %message.flow,
        tidegate.kind = message.kind.as_str(),
        tidegate.attempt = i64::from(lease.counters.attempt),
        tidegate.claim = i64::from(lease.token.claims),
        tidegate.reconciling = lease.reconciling,
    );
    join(tracer, &span, message);
}

/// A worker elsewhere reached an effect of a message; `told` is what it was told to do.
pub fn reached(message: &Message, effect: &str, told: &str) {
    effect_elsewhere(message, "reach", effect, None, told);
}

/// A worker elsewhere said what the other side answered; `told` is how it was told to go on.
pub fn answered_effect(message: &Message, effect: &str, answer: &str, told: &str) {
    effect_elsewhere(message, "answer", effect, Some(answer), told);
}

fn effect_elsewhere(message: &Message, verb: &str, effect: &str, answer: Option<&str>, told: &str) {
    let Some(tracer) = TRACER.get() else { return };
    let span = info_span!(
        parent: None,
        "effect",
        otel.name = format_args!("{verb} {effect}"),
        otel.kind = "internal",
        messaging.message.id = %message.id,
        tidegate.effect.name = effect,
        tidegate.effect.decision = told,
        tidegate.effect.answer = answer,
    );
    join(tracer, &span, message);
}

/// The span of a settlement by a worker elsewhere, in the trace of its message, and its mark on what follows: that goes on
/// here, unless the worker said where.
#[must_use]
pub fn settle_elsewhere(message: &Message, settle: &mut Settle) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::none() };
    let span = info_span!(
        parent: None,
        "settle",
        otel.name = format_args!("settle {}", message.queue),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = "tidegate",
        messaging.operation.name = "settle",
        "messaging.operation.type" = "settle",
        messaging.destination.name = message.queue.as_str(),
        messaging.message.id = %message.id,
        messaging.message.conversation_id = %message.flow,
        tidegate.kind = message.kind.as_str(),
        tidegate.claim = i64::from(settle.token.claims),
        tidegate.outcome = Empty,
        tidegate.state = Empty,
        tidegate.reason = Empty,
        "error.type" = Empty,
    );
    join(tracer, &span, message);
    let here = tracer.headers_of(&span);
    for follow_up in settle.then.iter_mut().chain(&mut settle.compensate) {
        // A worker that makes spans of its own marked it with one, which is nearer to what it did.
        let own = follow_up.headers.get(TRACE_PARENT);
        if own.is_none() || own == message.headers.get(TRACE_PARENT) {
            follow_up.mark_trace(&here);
        }
    }
    span
}

/// What the store said of a settlement by a worker elsewhere.
pub fn settled_elsewhere(span: &Span, outcome: &Outcome, verdict: &Result<Settled, StoreError>) {
    match verdict {
        Ok(settled) => settlement(span, outcome, settled),
        Err(error) => {
            span.record("tidegate.outcome", "unsettled");
            failed(span, error.kind().as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn without_a_tracer_there_is_no_span_and_no_mark() {
        assert!(request("POST", "/v1/messages", &headers(&[(TRACE_PARENT, HERE)]), true).is_none());
        assert!(super::headers().is_empty());
        assert_eq!(exported(), None);
    }

    #[test]
    fn the_id_of_a_trace_is_the_second_part() {
        assert_eq!(trace_of(&headers(&[(TRACE_PARENT, HERE)])), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_of(&headers(&[(TRACE_PARENT, "nonsense")])), None);
    }
}
