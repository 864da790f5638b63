//! Targets of the wire forms: what a request or an answer holds.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate::lifecycle::Outcome;
use tidegate::{IdempotencyKey, QueueName, SystemRandom, Tenant, Timestamp, store};
use tidegate_api as api;

use crate::domain::text;

/// Reads a form; what it was read as is written, and reads and writes the same again.
fn again<T: Serialize + DeserializeOwned>(text: &str) -> Option<T> {
    let form: T = serde_json::from_str(text).ok()?;
    let written = json(&form);
    let read: T = serde_json::from_str(&written)
        .unwrap_or_else(|error| panic!("{text} was read, and is not as it is written: {error} in {written}"));
    assert_eq!(json(&read), written, "{text}");
    Some(form)
}

fn json(form: &impl Serialize) -> String {
    serde_json::to_string(form).expect("a wire form is plain data")
}

/// A message on its way in.
pub(crate) fn enqueue(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Some(form) = again::<api::Enqueue>(text) else { return };
    let defaults = api::IntakeDefaults {
        tenant: Tenant::default(),
        queue: QueueName::new("q").ok(),
        key: form.key.is_none().then(|| IdempotencyKey::new("k").ok()).flatten(),
        headers: BTreeMap::from([("traceparent".to_owned(), "x".to_owned())]),
    };
    let Ok(message) = form.into_message(&defaults, &SystemRandom) else { return };
    // As another server would be told of it.
    let told: api::Enqueue = serde_json::from_str(&json(&api::Enqueue::of(&message))).expect("a form is read");
    let heard = told.into_message(&api::IntakeDefaults::default(), &SystemRandom);
    assert_eq!(heard.as_ref(), Ok(&message), "{text}");
    assert_eq!(heard.map(|heard| heard.fingerprint()), Ok(message.fingerprint()));
}

macro_rules! each {
    ($text:expr; $($form:ident),+ $(,)?) => { $( let _read = again::<api::$form>($text); )+ };
}

/// Every other form, and what becomes of it.
pub(crate) fn wire(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    // One that is no object is none of them.
    if !text.trim_start().starts_with('{') {
        return;
    }
    #[rustfmt::skip]
    each!(text;
        EnqueueMany, EnqueueResult, Redrive, Discard, Cancel, ActResult, ActResults, Redriven, AuditEntry, AuditPage, Note, Noted,
        Claimed, Counters, Edit, ExtendLeases, ExtendResult, Flow, Groups, Inspect, Inspected, WriteJournal, JournalResult,
        Page, Parked, ParkedPage, NewOperation, PreviewOperation, Preview, Operation, Stepped, ActOnOperation, Queue, Queues,
        ChangeQueue, Resolve, Resolved, SettleLeases, FollowUp, SettleResult, Tally, Lane, Sweep, Swept, NewToken, RotateToken,
        Token, Tokens, MadeToken,
    );
    reads(text);
    writes(text);
}

/// What a store elsewhere reads of answers.
fn reads(text: &str) {
    if let Some(lease) = again::<api::ClaimedLease>(text) {
        let _read = lease.into_lease();
    }
    if let Some(message) = again::<api::Message>(text) {
        let _read = message.clone().into_view();
        let _shown = message.into_view_as_shown();
    }
    if let Some(effect) = again::<api::Effect>(text) {
        let _row = effect.into_row();
    }
    if let Some(problem) = again::<api::Problem>(text) {
        let error = problem.into_store_error();
        assert!(api::Refusal::of(&error).is_some(), "{error:?}");
    }
    if let Some(progress) = again::<api::Progress>(text) {
        let _read = progress.into_progress();
    }
    if let Some(facts) = again::<api::Facts>(text) {
        let _read = facts.into_facts();
    }
    if let Some(stats) = again::<api::Stats>(text) {
        let _read = stats.into_stats();
    }
    if let Some(edited) = again::<api::Edited>(text) {
        let _read = edited.into_edited();
    }
    if let Some(instruction) = again::<api::Instruction>(text) {
        let _shown = format!("{instruction:?}");
    }
}

/// What a server reads of requests.
fn writes(text: &str) {
    let tenant = Tenant::default();
    if let Some(claim) = again::<api::Claim>(text) {
        let request = claim.into_request(&tenant);
        let told = api::Claim::of(&request).into_request(&tenant);
        assert_eq!(format!("{told:?}"), format!("{request:?}"), "{text}");
    }
    if let Some(extend) = again::<api::ExtendLease>(text) {
        let _asked: store::Extend = extend.into();
    }
    if let Some(write) = again::<api::Write>(text) {
        let _write = write.into_write(Some([7; 16]));
    }
    if let Some(item) = again::<api::JournalItem>(text)
        && let Ok(journal) = item.into_journal(Some([7; 16]))
    {
        let told = api::JournalItem::from(&journal).into_journal(Some([7; 16]));
        assert_eq!(format!("{:?}", told.ok()), format!("{:?}", Some(journal)), "{text}");
    }
    if let Some(reach) = again::<api::Reach>(text) {
        let _reached = reach.reached([7; 16]);
    }
    if let Some(answer) = again::<api::AnswerEffect>(text) {
        let (_effect, _row, _natural) = (answer.effect_id(), answer.row(), answer.natural([7; 16]));
        let _answer = answer.into_answer();
    }
    if let Some(selection) = again::<api::Selection>(text) {
        let _selection = selection.into_selection(&tenant);
    }
    if let Some(policy) = again::<api::KindPolicy>(text) {
        let policy = tidegate::Policy::from(policy);
        let told = tidegate::Policy::from(api::KindPolicy::from(&policy));
        assert_eq!(format!("{told:?}"), format!("{policy:?}"), "{text}");
    }
    if let Some(settlement) = again::<api::Settlement>(text) {
        settle(settlement, text);
    }
}

fn settle(settlement: api::Settlement, text: &str) {
    let facts = api::SettleFacts { message: None, payload: Some([7; 16]), orphans: false, unit: 0.5 };
    let Ok(settle) = settlement.into_settle(&facts) else { return };
    // Whenever it says to come again, there is a moment for it.
    if let Outcome::Retryable { after: Some(after), .. } | Outcome::Snooze { after } = &settle.outcome {
        assert!(Timestamp::EPOCH.after(*after) <= Timestamp::FAR_FUTURE);
    }
    if let Ok(told) = api::Settlement::of(&settle) {
        let heard = told.into_settle(&facts).expect("what was settled can be told");
        assert_eq!(format!("{heard:?}"), format!("{settle:?}"), "{text}");
    }
}
