//! The end of a run: how it is reported, and what became of the message.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::{DeadReason, Outcome, ParkReason, State};
use tidegate::message::{Message, NewMessage, TRACE_PARENT};
use tidegate::store::{self, Settle};
use tidegate::{Failure, IdempotencyKey, Kind, MessageId, Priority, QueueName, StoreError, Tenant, Timestamp};
use utoipa::ToSchema;

use crate::enqueue::{Enqueue, IntakeDefaults, NoMessage};
use crate::journal::{Write, text_form, text_of};
use crate::lease::LeaseProof;
use crate::message::millis;
use crate::problem::Problem;
use crate::schema;
use crate::text::Text;

/// Ends of runs, each with a verdict of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettleLeases {
    /// The settlements.
    pub settlements: Vec<Settlement>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeName {
    /// The handler returned its result.
    Completed,
    /// The handler said never.
    Permanent,
    /// It failed in a way that may pass.
    Retryable,
    /// An effect was refused before anything happened: again, and nothing is counted.
    NotDone,
    /// An effect may have happened, or cannot be looked up yet.
    Unknown,
    /// The handler asks to be run again later; counts nothing.
    Snooze,
    /// An effect cannot be decided by code: a person has to.
    Park,
    /// An effect never happened, and no attempt is left to make it.
    Exhausted,
    /// The payload does not decode.
    Undecodable,
    /// What the handler wants to store cannot be.
    Refused,
    /// The worker stops: the message goes back to where it was; counts nothing.
    Released,
}

/// Why only a person can decide about an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParkName {
    /// Its policy allows neither a resend nor a look-up.
    OutcomeUnknown,
    /// The other side may have forgotten the key, and there is no look-up.
    WindowPassed,
    /// It was not cleared up in time.
    ReconcileExhausted,
    /// The code now describes another effect under the same name.
    EffectChanged,
    /// The code no longer reaches the open effect.
    EffectOrphaned,
    /// A confirmed value no longer decodes.
    JournalDecode,
}

impl From<ParkReason> for ParkName {
    fn from(reason: ParkReason) -> Self {
        match reason {
            ParkReason::OutcomeUnknown => Self::OutcomeUnknown,
            ParkReason::WindowPassed => Self::WindowPassed,
            ParkReason::ReconcileExhausted => Self::ReconcileExhausted,
            ParkReason::EffectChanged => Self::EffectChanged,
            ParkReason::EffectOrphaned => Self::EffectOrphaned,
            ParkReason::JournalDecode => Self::JournalDecode,
        }
    }
}

impl From<ParkName> for ParkReason {
    fn from(name: ParkName) -> Self {
        match name {
            ParkName::OutcomeUnknown => Self::OutcomeUnknown,
            ParkName::WindowPassed => Self::WindowPassed,
            ParkName::ReconcileExhausted => Self::ReconcileExhausted,
            ParkName::EffectChanged => Self::EffectChanged,
            ParkName::EffectOrphaned => Self::EffectOrphaned,
            ParkName::JournalDecode => Self::JournalDecode,
        }
    }
}

/// The end of one run. Which members it has is said by `outcome`: `completed` has a result, `snooze` has `after_ms`, `park`
/// a reason, and all but these and `released` have `code` and `detail`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Proves the lease.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// How the run ended.
    pub outcome: OutcomeName,
    /// What the handler returned: the answer of the message, byte for byte.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub result: Option<Text>,
    /// The text of the result, in a string; instead of `result`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub result_text: Option<String>,
    /// Why only a person can decide, if the outcome is `park`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ParkName>,
    /// What went wrong: short and stable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What went wrong, for people: without payloads or secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The earliest next run from now, if the other side said one (`retryable`, `not_done`); when to run again (`snooze`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// Whether an open effect of an earlier run was not reached by this one (`completed`, `permanent`); where it is left out,
    /// the server finds out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<bool>,
    /// Whether a compensation commits with it (`permanent`); where it is left out, whether there is one in `compensate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensated: Option<bool>,
    /// Writes to the journal that were not written yet; applied before anything is decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub journal: Vec<Write>,
    /// Enqueued in the same commit if the message becomes completed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<FollowUp>,
    /// Enqueued in the same commit if the message becomes failed or dead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compensate: Vec<FollowUp>,
    /// Where in `0.0..1.0` the jitter of a retry lies; by chance, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1)]
    pub unit: Option<f64>,
}

/// What the server knows besides a settlement.
#[derive(Debug, Clone, Copy)]
pub struct SettleFacts<'a> {
    /// The message, if the settlement [needs](Settlement::needs) it or its trace; its payload may be left out.
    pub message: Option<&'a Message>,
    /// The digest of its payload.
    pub payload: Option<[u8; 16]>,
    /// Whether an open effect was not reached, where the settlement does not say it.
    pub orphans: bool,
    /// The jitter, where the settlement does not say it.
    pub unit: f64,
}

/// What has to be known to read a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The message: what follows gets its key or its tenant from it, or the digest of its payload stands for a request.
    pub message: bool,
    /// The trace of the message: what follows goes on in it. No reason to refuse the settlement where it cannot be had.
    pub trace: bool,
    /// Whether an open effect was not reached.
    pub orphans: bool,
}

impl Settlement {
    fn bare(settle: &Settle, outcome: OutcomeName) -> Self {
        Self {
            id: settle.id,
            token: LeaseProof(settle.token),
            outcome,
            result: None,
            result_text: None,
            reason: None,
            code: None,
            detail: None,
            after_ms: None,
            orphans: None,
            compensated: None,
            journal: settle.journal.iter().map(Write::of).collect(),
            then: settle.then.iter().map(FollowUp::of).collect(),
            compensate: settle.compensate.iter().map(FollowUp::of).collect(),
            unit: Some(settle.unit),
        }
    }

    fn failed(self, failure: &Failure) -> Self {
        Self { code: Some(failure.code.clone()), detail: Some(failure.detail.clone()), ..self }
    }

    /// The settlement as it is sent.
    ///
    /// # Errors
    /// `Invalid` for a lapsed lease, which only the sweep reports.
    pub fn of(settle: &Settle) -> Result<Self, StoreError> {
        let bare = |outcome| Self::bare(settle, outcome);
        Ok(match &settle.outcome {
            Outcome::Completed { result, orphans } => {
                let (result, result_text) = text_form(result);
                Self { result, result_text, orphans: Some(*orphans), ..bare(OutcomeName::Completed) }
            }
            Outcome::Permanent { failure, compensated, orphans } => Self {
                compensated: Some(*compensated),
                orphans: Some(*orphans),
                ..bare(OutcomeName::Permanent).failed(failure)
            },
            Outcome::Retryable { failure, after } => {
                Self { after_ms: after.map(millis), ..bare(OutcomeName::Retryable).failed(failure) }
            }
            Outcome::NotDone { failure, after } => {
                Self { after_ms: after.map(millis), ..bare(OutcomeName::NotDone).failed(failure) }
            }
            Outcome::Unknown { failure } => bare(OutcomeName::Unknown).failed(failure),
            Outcome::Snooze { after } => Self { after_ms: Some(millis(*after)), ..bare(OutcomeName::Snooze) },
            Outcome::Park { reason, failure } => {
                Self { reason: Some((*reason).into()), ..bare(OutcomeName::Park).failed(failure) }
            }
            Outcome::Exhausted { failure } => bare(OutcomeName::Exhausted).failed(failure),
            Outcome::Undecodable { failure } => bare(OutcomeName::Undecodable).failed(failure),
            Outcome::Refused { failure } => bare(OutcomeName::Refused).failed(failure),
            Outcome::Released => bare(OutcomeName::Released),
            Outcome::LeaseExpired => {
                return Err(StoreError::invalid("a worker cannot report that its lease expired")
                    .hint("the sweep takes lapsed leases over"));
            }
        })
    }

    /// What has to be known to read it.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let follow_ups = || self.then.iter().chain(&self.compensate);
        let is_made = |follow_up: &FollowUp| follow_up.key.is_none() || follow_up.tenant.is_none();
        let message = self.journal.iter().any(Write::needs_payload) || follow_ups().any(is_made);
        let trace = follow_ups().any(|follow_up| !follow_up.headers.contains_key(TRACE_PARENT));
        let may_have_orphans = match self.outcome {
            OutcomeName::Completed | OutcomeName::Permanent => true,
            OutcomeName::Retryable
            | OutcomeName::NotDone
            | OutcomeName::Unknown
            | OutcomeName::Snooze
            | OutcomeName::Park
            | OutcomeName::Exhausted
            | OutcomeName::Undecodable
            | OutcomeName::Refused
            | OutcomeName::Released => false,
        };
        Needs { message, trace, orphans: may_have_orphans && self.orphans.is_none() }
    }

    /// The settlement as a store takes it.
    ///
    /// # Errors
    /// `Invalid`: what is missing, or not allowed.
    pub fn into_settle(self, facts: &SettleFacts<'_>) -> Result<Settle, StoreError> {
        let after = self.after_ms.map(Duration::from_millis);
        let orphans = self.orphans.unwrap_or(facts.orphans);
        let failure = || {
            let code = self.code.clone().filter(|code| !code.is_empty()).ok_or_else(|| {
                StoreError::invalid("the settlement has no code").hint("say what went wrong in \"code\" and \"detail\"")
            })?;
            Ok::<_, StoreError>(Failure::new(code, self.detail.clone().unwrap_or_default()))
        };
        let outcome = match self.outcome {
            OutcomeName::Completed => {
                let result = text_of(self.result, self.result_text, || "the result".to_owned())?;
                Outcome::Completed { result, orphans }
            }
            OutcomeName::Permanent => {
                let compensated = self.compensated.unwrap_or(!self.compensate.is_empty());
                Outcome::Permanent { failure: failure()?, compensated, orphans }
            }
            OutcomeName::Retryable => Outcome::Retryable { failure: failure()?, after },
            OutcomeName::NotDone => Outcome::NotDone { failure: failure()?, after },
            OutcomeName::Unknown => Outcome::Unknown { failure: failure()? },
            OutcomeName::Snooze => {
                let after = after.ok_or_else(|| {
                    StoreError::invalid("a snooze has no after_ms").hint("say when the message is to be run again")
                })?;
                Outcome::Snooze { after }
            }
            OutcomeName::Park => {
                let reason = self.reason.ok_or_else(|| {
                    StoreError::invalid("a settlement that parks has no reason")
                        .hint("as the instruction said it; journal_decode for a value that no longer decodes")
                })?;
                Outcome::Park { reason: reason.into(), failure: failure()? }
            }
            OutcomeName::Exhausted => Outcome::Exhausted { failure: failure()? },
            OutcomeName::Undecodable => Outcome::Undecodable { failure: failure()? },
            OutcomeName::Refused => Outcome::Refused { failure: failure()? },
            OutcomeName::Released => Outcome::Released,
        };
        let journal =
            self.journal.into_iter().map(|write| write.into_write(facts.payload)).collect::<Result<_, _>>()?;
        Ok(Settle {
            id: self.id,
            token: self.token.0,
            outcome,
            journal,
            then: follow_ups(self.then, facts.message, "then")?,
            compensate: follow_ups(self.compensate, facts.message, "undo")?,
            unit: self.unit.unwrap_or(facts.unit),
        })
    }
}

fn follow_ups(all: Vec<FollowUp>, parent: Option<&Message>, role: &str) -> Result<Vec<NewMessage>, StoreError> {
    let mut messages: Vec<NewMessage> = Vec::with_capacity(all.len());
    for follow_up in all {
        let is_made = follow_up.key.is_none();
        let message = follow_up.into_message(parent, role)?;
        if is_made && messages.iter().any(|other| other.key == message.key) {
            let what = format!("two messages of kind {} follow, and nothing tells them apart", message.kind);
            return Err(StoreError::invalid(what).hint("name each by the member \"item\""));
        }
        messages.push(message);
    }
    Ok(messages)
}

/// A message that is enqueued in the commit that ends another.
///
/// Without a key, it is made from the message that ends, the kind and the item, so that it follows once, however often that
/// is run; headers are inherited, but for those that it names. The trace of the message that ends is inherited in any case,
/// unless the headers have a `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FollowUp {
    /// Which line it waits in.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Which handler it is for.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// What the handler gets.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Text, required = true)]
    pub payload: Option<Text>,
    /// The text of the payload, in a string; instead of `payload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub payload_text: Option<String>,
    /// Tells several of one kind apart that follow from one message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// Instead of the key that is made for it: then no headers are inherited, but for those of the trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Key>)]
    pub key: Option<IdempotencyKey>,
    /// The version of the payload's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, default = 1)]
    pub version: Option<u32>,
    /// 0 is claimed first, 9 last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u8>, minimum = 0, maximum = 9, default = 5)]
    pub priority: Option<Priority>,
    /// Not before so many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Not before this time; instead of `delay_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub due_at: Option<Timestamp>,
    /// After this no attempt and no effect begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub deadline: Option<Timestamp>,
    /// Bounds waiting, retries and holds; three days where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub max_age_ms: Option<u64>,
    /// When the key was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub key_time: Option<Timestamp>,
    /// Carried along.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Whose it is; that of the message it follows from where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::TenantName>)]
    pub tenant: Option<Tenant>,
}

impl FollowUp {
    /// A message with its key, as it is sent.
    #[must_use]
    pub fn of(message: &NewMessage) -> Self {
        let Enqueue { kind, payload, payload_text, key, version, priority, delay_ms, .. } = Enqueue::of(message);
        let Enqueue { due_at, deadline, max_age_ms, key_time, headers, tenant, .. } = Enqueue::of(message);
        Self {
            queue: message.queue.clone(),
            kind,
            payload,
            payload_text,
            item: None,
            key,
            version,
            priority,
            delay_ms,
            due_at,
            deadline,
            max_age_ms,
            key_time,
            headers,
            tenant,
        }
    }

    /// The message as a store takes it. `role` tells what follows a completion (`then`) from what undoes a failure (`undo`).
    ///
    /// # Errors
    /// `Invalid`: what is missing, or not allowed.
    pub fn into_message(self, parent: Option<&Message>, role: &str) -> Result<NewMessage, StoreError> {
        let is_made = self.key.is_none();
        let key = match (self.key, parent) {
            (Some(key), _) => key,
            (None, Some(parent)) => NewMessage::follow_up_key(parent, role, &self.kind, self.item.as_deref()),
            (None, None) => return Err(StoreError::invalid("a follow-up has no key, and nothing to make it from")),
        };
        let enqueue = Enqueue {
            queue: Some(self.queue),
            kind: self.kind,
            payload: self.payload,
            payload_text: self.payload_text,
            key: Some(key),
            unique_key: false,
            version: self.version,
            priority: self.priority,
            delay_ms: self.delay_ms,
            due_at: self.due_at,
            deadline: self.deadline,
            max_age_ms: self.max_age_ms,
            key_time: self.key_time,
            headers: self.headers,
            tenant: self.tenant,
        };
        let tenant = parent.map_or_else(Tenant::default, |parent| parent.tenant.clone());
        let defaults = IntakeDefaults { tenant, ..IntakeDefaults::default() };
        // Nothing is made by chance: it has a key.
        let mut message = enqueue.into_message(&defaults, &tidegate::SystemRandom).map_err(|why| match why {
            NoMessage::Invalid(error) => error,
            NoMessage::KeyMissing | NoMessage::TwoKeys => StoreError::invalid("a follow-up has two keys, or none"),
        })?;
        match parent {
            Some(parent) if is_made => message.inherit_headers(parent),
            Some(parent) => message.inherit_trace(parent),
            None => {}
        }
        Ok(message)
    }
}

/// What became of one settlement: `problem` where it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettleResult {
    /// 200, or the status of the problem.
    pub status: u16,
    /// What the message became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::StateName>)]
    pub state: Option<State>,
    /// When it may be claimed again, if it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub due_at: Option<Timestamp>,
    /// Why it is dead or parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Messages enqueued with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<schema::Id>>)]
    pub follow_ups: Option<Vec<MessageId>>,
    /// Set when this was the last live message of its flow: how long the flow took from its first enqueue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_took_ms: Option<u64>,
    /// The settlement had been made before; its answer was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<bool>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl From<&store::Settled> for SettleResult {
    fn from(settled: &store::Settled) -> Self {
        Self {
            status: 200,
            state: Some(settled.state),
            due_at: settled.due_at,
            reason: settled.reason.map(str::to_owned),
            follow_ups: Some(settled.follow_ups.clone()),
            flow_took_ms: settled.flow_took.map(millis),
            repeated: Some(settled.repeated),
            problem: None,
        }
    }
}

impl From<Problem> for SettleResult {
    fn from(problem: Problem) -> Self {
        Self {
            status: problem.status,
            state: None,
            due_at: None,
            reason: None,
            follow_ups: None,
            flow_took_ms: None,
            repeated: None,
            problem: Some(problem),
        }
    }
}

impl SettleResult {
    /// The verdict of a store.
    ///
    /// # Errors
    /// The refusal; `Corrupt` when it is neither a refusal nor a settlement.
    pub fn into_verdict(self) -> Result<store::Settled, StoreError> {
        if let Some(problem) = self.problem {
            return Err(problem.into_store_error());
        }
        let what = "a settlement says no state";
        let state = self.state.ok_or_else(|| StoreError::corrupt("the server's answer", what))?;
        let word = |code: &String| {
            let dead = DeadReason::from_code(code).map(DeadReason::as_str);
            dead.or_else(|| ParkReason::from_code(code).map(ParkReason::as_str))
        };
        Ok(store::Settled {
            state,
            due_at: self.due_at,
            reason: self.reason.as_ref().and_then(word),
            follow_ups: self.follow_ups.unwrap_or_default(),
            flow_took: self.flow_took_ms.map(Duration::from_millis),
            repeated: self.repeated.unwrap_or_default(),
        })
    }
}

/// What became of the settlements, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettleResults {
    /// One for each.
    pub results: Vec<SettleResult>,
}

#[cfg(test)]
mod tests {
    use tidegate::message::Payload;
    use tidegate::{LeaseToken, Nonce};

    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let failure = || Failure::new("timeout", "no answer");
        let after = Some(Duration::from_millis(1500));
        vec![
            Outcome::Completed { result: "null".into(), orphans: false },
            Outcome::Completed { result: " 1.50 ".into(), orphans: true },
            Outcome::Permanent { failure: failure(), compensated: true, orphans: true },
            Outcome::Retryable { failure: failure(), after },
            Outcome::Retryable { failure: failure(), after: None },
            Outcome::NotDone { failure: failure(), after },
            Outcome::Unknown { failure: failure() },
            Outcome::Snooze { after: Duration::from_secs(3) },
            Outcome::Park { reason: ParkReason::JournalDecode, failure: failure() },
            Outcome::Exhausted { failure: failure() },
            Outcome::Undecodable { failure: failure() },
            Outcome::Refused { failure: failure() },
            Outcome::Released,
        ]
    }

    fn message(key: &str) -> NewMessage {
        let headers = [("traceparent".to_owned(), "00".to_owned())].into();
        NewMessage {
            headers,
            tenant: Tenant::new("acme").unwrap(),
            max_age: Some(Duration::from_secs(60)),
            ..NewMessage::new(
                QueueName::new("credit").unwrap(),
                Kind::new("credit").unwrap(),
                IdempotencyKey::new(key).unwrap(),
                Payload::from_json("{\"cents\": 1.50}").unwrap(),
            )
        }
    }

    const KNOWN: SettleFacts<'_> = SettleFacts { message: None, payload: None, orphans: false, unit: 0.0 };

    #[test]
    fn every_settlement_of_the_contract_is_read_back_as_it_was_and_has_the_same_digest() {
        for outcome in outcomes() {
            let settle = Settle {
                id: MessageId::from_i64(7),
                token: LeaseToken { claims: 2, nonce: Nonce::from_bytes([3; 16]) },
                outcome,
                journal: Vec::new(),
                then: vec![message("a"), message("b")],
                compensate: vec![message("c")],
                unit: 0.25,
            };
            let sent = serde_json::to_string(&Settlement::of(&settle).unwrap()).unwrap();
            let read: Settlement = serde_json::from_str(&sent).unwrap();
            assert_eq!(read.needs(), Needs::default(), "all of it is said: {sent}");
            let read = read.into_settle(&KNOWN).unwrap();
            assert_eq!((read.id, read.token, &read.outcome), (settle.id, settle.token, &settle.outcome), "{sent}");
            assert_eq!((&read.then, &read.compensate), (&settle.then, &settle.compensate));
            assert_eq!(read.digest(), settle.digest());
        }
    }

    /// A message that ends, with these headers.
    fn parent(headers: &[(&str, &str)]) -> Message {
        Message {
            id: MessageId::from_i64(1),
            tenant: Tenant::new("acme").unwrap(),
            queue: QueueName::new("capture").unwrap(),
            kind: Kind::new("capture").unwrap(),
            version: 1,
            key: IdempotencyKey::new("dep-1").unwrap(),
            payload: "{}".into(),
            priority: Priority::default(),
            enqueued_at: Timestamp::EPOCH,
            first_due_at: Timestamp::EPOCH,
            deadline: None,
            expires_at: Timestamp::EPOCH,
            flow: MessageId::from_i64(1),
            parent: None,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn what_has_a_key_of_its_own_goes_on_in_the_trace_and_inherits_no_other_header() {
        let parent = parent(&[("traceparent", "of the parent"), ("tracestate", "a=1"), ("mine", "1")]);
        let (id, proof) = (parent.id, "ab".repeat(16));
        let of = |members: &str| {
            let json = format!(
                r#"{{"id":"{id}","token":"1.{proof}","outcome":"completed","result":1,"orphans":false,
                    "then":[{{"queue":"q","kind":"k","payload":1,"key":"a"{members}}}]}}"#
            );
            let read: Settlement = serde_json::from_str(&json).unwrap();
            let needs = read.needs();
            let settle = read.into_settle(&SettleFacts { message: Some(&parent), ..KNOWN }).unwrap();
            (needs, settle.then[0].tenant.clone(), settle.then[0].headers.clone().into_iter().collect::<Vec<_>>())
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let of_parent = [pair("traceparent", "of the parent"), pair("tracestate", "a=1")];
        let (needs, tenant, headers) = of("");
        assert_eq!((needs, tenant.as_str()), (Needs { message: true, trace: true, orphans: false }, "acme"));
        assert_eq!(headers, of_parent);
        let (needs, tenant, headers) = of(r#","tenant":"other""#);
        assert_eq!((needs, tenant.as_str()), (Needs { trace: true, ..Needs::default() }, "other"));
        assert_eq!(headers, of_parent);
        let (needs, _, headers) = of(r#","tenant":"other","headers":{"traceparent":"own"}"#);
        assert_eq!((needs, headers), (Needs::default(), vec![pair("traceparent", "own")]));
    }

    #[test]
    fn what_is_left_out_is_made_from_the_message_that_ends() {
        let parent = parent(&[("traceparent", "00")]);
        let json = format!(
            r#"{{"id":"{}","token":"1.{}","outcome":"permanent","code":"declined",
                "compensate":[{{"queue":"undo","kind":"undo","payload":1}},{{"queue":"undo","kind":"undo","payload":1,"item":"2"}}]}}"#,
            parent.id,
            "ab".repeat(16)
        );
        let read: Settlement = serde_json::from_str(&json).unwrap();
        assert_eq!(read.needs(), Needs { message: true, trace: true, orphans: true });
        let settle = read.into_settle(&SettleFacts { message: Some(&parent), orphans: true, ..KNOWN }).unwrap();
        let Outcome::Permanent { compensated, orphans, .. } = settle.outcome else { panic!("{:?}", settle.outcome) };
        assert!(compensated && orphans);
        let undo = Kind::new("undo").unwrap();
        assert_eq!(settle.compensate[0].key, NewMessage::follow_up_key(&parent, "undo", &undo, None));
        assert_eq!(settle.compensate[1].key, NewMessage::follow_up_key(&parent, "undo", &undo, Some("2")));
        assert_eq!((settle.compensate[0].tenant.as_str(), &settle.compensate[0].headers), ("acme", &parent.headers));
    }

    #[test]
    fn what_a_settlement_lacks_is_named() {
        let of = |members: &str| {
            let id = MessageId::from_i64(1);
            let json = format!(r#"{{"id":"{id}","token":"1.{}",{members}}}"#, "ab".repeat(16));
            serde_json::from_str::<Settlement>(&json).unwrap().into_settle(&KNOWN).unwrap_err().to_string()
        };
        assert!(of(r#""outcome":"completed""#).contains("the result is missing"));
        assert!(of(r#""outcome":"retryable""#).contains("has no code"));
        assert!(of(r#""outcome":"snooze""#).contains("has no after_ms"));
        assert!(of(r#""outcome":"park","code":"x""#).contains("has no reason"));
        let twice = r#"{"queue":"q","kind":"k","payload":1,"key":"a"}"#;
        assert!(
            of(&format!(r#""outcome":"completed","result":1,"then":[{twice},{}]"#, r#"{"queue":"q","kind":"k"}"#))
                .contains("no key")
        );
    }
}
