//! A message as it is shown: everything about it for `get`, `dead show` and `parked show`, a row of a list elsewhere.
//!
//! The JSON is a promise to scripts, which the tests hold as text. Payload and result appear byte for byte.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use tidegate::journal::{EffectPolicy, EffectRow, EffectState};
use tidegate::lifecycle::State;
use tidegate::message::{Answer, Failure};
use tidegate::store::{Ending, Evidence, MessageView, Summary};
use tidegate::{EffectName, IdempotencyKey, Kind, MessageId, QueueName, Timestamp, WorkerId};

use crate::output::{Output, Paint};

/// Everything about a message, for a program.
#[derive(Serialize)]
pub(crate) struct View<'a> {
    id: MessageId,
    queue: &'a QueueName,
    kind: &'a Kind,
    key: &'a IdempotencyKey,
    state: State,
    /// Why it is dead or parked.
    reason: Option<&'a str>,
    failure: Option<&'a Failure>,
    answer: Option<AnswerView<'a>>,
    version: u32,
    priority: u8,
    attempt: u32,
    generation: u32,
    crashes: u32,
    claims: u32,
    enqueued_at: Timestamp,
    due_at: Option<Timestamp>,
    deadline: Option<Timestamp>,
    expires_at: Timestamp,
    ended_at: Option<Timestamp>,
    lease: Option<LeaseView<'a>>,
    cancel_requested: bool,
    suspect: bool,
    flow: MessageId,
    parent: Option<MessageId>,
    headers: &'a BTreeMap<String, String>,
    payload: Text<'a>,
    journal: Vec<EffectView<'a>>,
    evidence: Vec<EvidenceView<'a>>,
    history: &'a [Ending],
}

impl<'a> View<'a> {
    pub(crate) fn of(view: &'a MessageView) -> Self {
        let message = &view.message;
        Self {
            id: message.id,
            queue: &message.queue,
            kind: &message.kind,
            key: &message.key,
            state: view.state,
            reason: view.reason.as_deref(),
            failure: view.failure.as_ref(),
            answer: view.answer.as_ref().map(AnswerView::of),
            version: message.version,
            priority: message.priority.get(),
            attempt: view.counters.attempt,
            generation: view.counters.generation,
            crashes: view.counters.crashes,
            claims: view.counters.claims,
            enqueued_at: message.enqueued_at,
            due_at: view.due_at,
            deadline: message.deadline,
            expires_at: message.expires_at,
            ended_at: view.ended_at,
            lease: view.lease.as_ref().map(|(worker, until)| LeaseView { worker, until: *until }),
            cancel_requested: view.cancel_requested,
            suspect: view.suspect,
            flow: message.flow,
            parent: message.parent,
            headers: &message.headers,
            payload: Text(&message.payload),
            journal: view.journal.iter().map(EffectView::of).collect(),
            evidence: view.evidence.iter().map(EvidenceView::of).collect(),
            history: &view.history,
        }
    }
}

#[derive(Serialize)]
struct LeaseView<'a> {
    worker: &'a WorkerId,
    until: Timestamp,
}

/// A stored JSON text, as it is; as a string where it is, against all checks, no JSON.
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => self.0.serialize(serializer),
        }
    }
}

/// What a duplicate of a key gets.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AnswerView<'a> {
    Result(Text<'a>),
    Failure(&'a Failure),
}

impl<'a> AnswerView<'a> {
    pub(crate) fn of(answer: &'a Answer) -> Self {
        match answer {
            Answer::Completed(result) => Self::Result(Text(result)),
            Answer::Failed(failure) => Self::Failure(failure),
        }
    }

    /// The state that has this answer.
    pub(crate) fn state(answer: &Answer) -> &'static str {
        match answer {
            Answer::Completed(_) => State::Completed.as_str(),
            Answer::Failed(_) => State::Failed.as_str(),
        }
    }
}

/// A row of the journal.
#[derive(Serialize)]
pub(crate) struct EffectView<'a> {
    effect: &'a EffectName,
    item: Option<&'a str>,
    seq: u32,
    state: &'static str,
    open: bool,
    /// What the other side knows the effect by.
    key: &'a str,
    policy: &'static str,
    sends: u32,
    round: u32,
    first_intent_at: Timestamp,
    last_possible_send: Timestamp,
    /// From then on "it did not happen" is believed.
    quarantined_until: Timestamp,
    valid_until: Option<Timestamp>,
    reconcile_until: Timestamp,
    /// Confirmed: the value.
    value: Option<Text<'a>>,
    /// Rejected: the code.
    code: Option<&'a str>,
    /// Rejected: what the other side said. Unknown: what was seen instead of an answer.
    detail: Option<&'a str>,
}

impl<'a> EffectView<'a> {
    pub(crate) fn of(row: &'a EffectRow) -> Self {
        let (value, code, detail) = match &row.state {
            EffectState::Confirmed { value } => (Some(Text(value)), None, None),
            EffectState::Rejected { code, detail } => (None, Some(code.as_str()), Some(detail.as_str())),
            EffectState::Unknown { why } => (None, None, Some(why.as_str())),
            EffectState::Intent | EffectState::NotDone => (None, None, None),
        };
        Self {
            effect: &row.effect.name,
            item: row.effect.item.as_deref(),
            seq: row.seq,
            state: row.state.as_str(),
            open: row.state.is_open(),
            key: row.key.as_str(),
            policy: row.policy.as_str(),
            sends: row.sends,
            round: row.round,
            first_intent_at: row.first_intent_at,
            last_possible_send: row.last_possible_send,
            quarantined_until: row.quarantined_until(),
            valid_until: row.valid_until,
            reconcile_until: row.reconcile_until,
            value,
            code,
            detail,
        }
    }
}

#[derive(Serialize)]
struct EvidenceView<'a> {
    at: Timestamp,
    effect: &'a EffectName,
    item: Option<&'a str>,
    value: Text<'a>,
}

impl<'a> EvidenceView<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let Evidence { at, effect, value } = evidence;
        Self { at: *at, effect: &effect.name, item: effect.item.as_deref(), value: Text(value) }
    }
}

// --- for people ------------------------------------------------------------------------------------------------------

/// The head of a message, a line for each thing known.
pub(crate) fn head(view: &MessageView, output: &Output) -> Vec<(&'static str, String)> {
    let message = &view.message;
    let mut fields = vec![
        ("id", message.id.to_string()),
        ("state", state(view.state, output)),
        ("queue", message.queue.to_string()),
        ("kind", message.kind.to_string()),
        ("key", message.key.to_string()),
    ];
    let mut add = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    add("reason", view.reason.clone());
    add("failure", view.failure.as_ref().map(|failure| one(&failure.to_string())));
    match &view.answer {
        Some(Answer::Completed(result)) => add("result", Some(one(result))),
        Some(Answer::Failed(_)) | None => {}
    }
    let counters = &view.counters;
    add("attempt", Some(counters.attempt.to_string()));
    add("generation", (counters.generation > 0).then(|| counters.generation.to_string()));
    add("crashes", (counters.crashes > 0).then(|| counters.crashes.to_string()));
    add("priority", Some(message.priority.get().to_string()));
    add("version", (message.version != 1).then(|| message.version.to_string()));
    add("enqueued", Some(output.time(message.enqueued_at)));
    add("due", view.due_at.map(|at| output.time(at)));
    add("deadline", message.deadline.map(|at| output.time(at)));
    let ended = if view.state == State::Parked { "parked since" } else { "ended" };
    add(ended, view.ended_at.map(|at| output.time(at)));
    add("worker", view.lease.as_ref().map(|(worker, _)| worker.to_string()));
    add("lease until", view.lease.as_ref().map(|(_, until)| output.time(*until)));
    add("cancel", view.cancel_requested.then(|| "requested".to_owned()));
    add("suspect", view.suspect.then(|| "an earlier run crashed; it runs alone".to_owned()));
    add("flow", (message.flow != message.id).then(|| message.flow.to_string()));
    add("parent", message.parent.map(|id| id.to_string()));
    add("payload", Some(one(&message.payload)));
    fields
}

/// The journal, the late evidence and the history, each under its name, where there is any.
pub(crate) fn records(view: &MessageView, output: &Output) -> String {
    let mut text = String::new();
    for row in &view.journal {
        let effect = EffectView::of(row);
        let mut fields = vec![
            ("effect", row.effect.to_string()),
            ("state", if effect.open { output.paint(Paint::Waits, effect.state) } else { effect.state.to_owned() }),
            ("key", effect.key.to_owned()),
            ("policy", policy(&row.policy)),
            ("sends", effect.sends.to_string()),
            ("first intent", output.time(row.first_intent_at)),
            ("last possible send", output.time(row.last_possible_send)),
            ("not found believed", output.time(row.quarantined_until())),
        ];
        fields.extend(row.valid_until.map(|at| ("key valid until", output.time(at))));
        fields.extend(effect.value.as_ref().map(|value| ("value", one(value.0))));
        fields.extend(effect.code.map(|code| ("code", one(code))));
        fields.extend(effect.detail.map(|detail| ("seen", one(detail))));
        section(&mut text, "journal", &fields, output);
    }
    for evidence in &view.evidence {
        let fields = [
            ("effect", evidence.effect.to_string()),
            ("arrived", output.time(evidence.at)),
            ("confirmed", one(&evidence.value)),
        ];
        section(&mut text, "late evidence, not applied", &fields, output);
    }
    for ending in &view.history {
        if is_an_act(ending) {
            let mut fields = vec![
                ("act", ending.outcome.clone()),
                ("at", output.time(ending.at)),
                ("became", ending.state.to_string()),
            ];
            fields.extend((!ending.detail.is_empty()).then(|| ("reason", one(&ending.detail))));
            fields.extend(ending.due_at.map(|at| ("due", output.time(at))));
            section(&mut text, "history", &fields, output);
            continue;
        }
        let mut fields = vec![
            ("attempt", ending.attempt.to_string()),
            ("ended", output.time(ending.at)),
            ("outcome", ending.outcome.clone()),
            ("became", ending.state.to_string()),
        ];
        if !ending.code.is_empty() || !ending.detail.is_empty() {
            fields.push((
                "failure",
                one(&Failure { code: ending.code.clone(), detail: ending.detail.clone() }.to_string()),
            ));
        }
        fields.extend(ending.due_at.map(|at| ("due", output.time(at))));
        section(&mut text, "history", &fields, output);
    }
    text
}

/// What an operator did, and no run of a handler: its detail is the reason that was given.
fn is_an_act(ending: &Ending) -> bool {
    matches!(ending.outcome.as_str(), "redriven" | "resolved" | "cancelled" | "edited" | "discarded")
}

fn section(text: &mut String, name: &str, fields: &[(&'static str, String)], output: &Output) {
    text.push_str(&format!("\n{}\n", output.paint(Paint::Bold, name)));
    text.push_str(&output.fields_text(fields));
}

fn policy(policy: &EffectPolicy) -> String {
    match policy {
        EffectPolicy::Keyed { window, or_lookup } => {
            let then = if *or_lookup { ", then look-up" } else { "" };
            format!("keyed for {}{then}", tidegate::explain::span(*window))
        }
        EffectPolicy::Lookup | EffectPolicy::Transactional | EffectPolicy::Natural | EffectPolicy::AtMostOnce => {
            policy.as_str().to_owned()
        }
    }
}

fn one(text: &str) -> String {
    crate::output::one_line(text)
}

/// A state in the colour of what it asks of a person.
pub(crate) fn state(state: State, output: &Output) -> String {
    match state {
        State::Completed => output.paint(Paint::Good, state.as_str()),
        State::Failed | State::Dead => output.paint(Paint::Bad, state.as_str()),
        State::Parked => output.paint(Paint::Waits, state.as_str()),
        State::Ready | State::Leased | State::Cancelled => state.as_str().to_owned(),
    }
}

/// What a message in a list failed of.
pub(crate) fn why(summary: &Summary, output: &Output) -> String {
    match (&summary.code, &summary.detail) {
        (None, _) => output.nothing(),
        // The failure of a message that died at once begins with the code it died of.
        (Some(code), Some(detail)) if detail.starts_with(&format!("{code}: ")) => detail.clone(),
        (Some(code), Some(detail)) if !detail.is_empty() => format!("{code}: {detail}"),
        (Some(code), _) => code.clone(),
    }
}
