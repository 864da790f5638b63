//! Everything about one message.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::journal::{EffectId, EffectPolicy, EffectRow, EffectState};
use tidegate::lifecycle::{Counters, State};
use tidegate::store::{self, MessageView};
use tidegate::{
    EffectKey, EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, Priority, QueueName, StoreError,
    StoreErrorKind, Tenant, Timestamp, WorkerId, id::Hex, message,
};
use utoipa::ToSchema;

use crate::schema;
use crate::text::{Hidden, Text};

/// What a reader gets to see beyond what says nothing about the contents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Show {
    /// The payload, the values of effects, late evidence.
    pub contents: bool,
    /// The result that the handler returned.
    pub result: bool,
}

impl Show {
    /// Everything.
    pub const ALL: Self = Self { contents: true, result: true };
}

/// Gives every masked text back as its mask. A text that was asked for with `reveal` may look like one, and is that then.
fn unmasked(hidden: &Hidden) -> Hidden {
    Hidden::Shown(Text::of(&hidden.as_shown()))
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Short and stable.
    pub code: String,
    /// What happened, for people.
    pub detail: String,
}

impl From<&message::Failure> for Failure {
    fn from(failure: &message::Failure) -> Self {
        Self { code: failure.code.clone(), detail: failure.detail.clone() }
    }
}

impl From<Failure> for message::Failure {
    fn from(failure: Failure) -> Self {
        Self::new(failure.code, failure.detail)
    }
}

/// The stored answer of a message that completed or failed: what every repeat of its key gets, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the handler returned.
    Result(Hidden),
    /// The handler said never.
    Failure(Failure),
}

impl Answer {
    /// A stored answer.
    #[must_use]
    pub fn of(answer: &message::Answer, show: bool) -> Self {
        match answer {
            message::Answer::Completed(result) => Self::Result(Hidden::of(result, show)),
            message::Answer::Failed(failure) => Self::Failure(failure.into()),
        }
    }

    /// The answer as the library keeps it.
    ///
    /// # Errors
    /// `Invalid` when it is masked.
    pub fn into_answer(self) -> Result<message::Answer, StoreError> {
        match self {
            Self::Result(result) => Ok(message::Answer::Completed(revealed(&result, "the result")?.stored())),
            Self::Failure(failure) => Ok(message::Answer::Failed(failure.into())),
        }
    }

    /// The answer as far as it is shown: a mask stands where its result does not.
    #[must_use]
    pub fn into_answer_as_shown(self) -> message::Answer {
        match self {
            Self::Result(result) => message::Answer::Completed(result.as_shown()),
            Self::Failure(failure) => message::Answer::Failed(failure.into()),
        }
    }
}

fn revealed<'a>(hidden: &'a Hidden, what: &str) -> Result<&'a Text, StoreError> {
    hidden.shown().ok_or_else(|| {
        StoreError::invalid(format!("{what} is masked"))
            .hint("ask for it with reveal=payload and a token that may reveal")
    })
}

/// Who runs a message, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// The worker.
    #[schema(value_type = schema::Name)]
    pub worker: WorkerId,
    /// When the lease lapses unless it is extended.
    #[schema(value_type = schema::Time)]
    pub until: Timestamp,
}

/// A row of the journal: one intent of one effect, with all its sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Effect {
    /// Which effect.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Tells repetitions of it apart.
    pub item: Option<String>,
    /// Which of its rows, from 0.
    pub seq: u32,
    /// `intent`, `unknown`, `confirmed`, `rejected` or `not_done`.
    #[schema(value_type = String)]
    pub state: String,
    /// Whether it may have happened and nobody knows.
    pub open: bool,
    /// What the other side knows it by.
    pub key: String,
    /// `keyed`, `lookup`, `transactional`, `natural` or `at_most_once`.
    pub policy: String,
    /// How long the other side remembers the key, if the policy is `keyed`.
    pub window_ms: Option<u64>,
    /// Whether it is looked up when the window is over, if the policy is `keyed`.
    pub or_lookup: Option<bool>,
    /// Digest of the request, in hexadecimal digits.
    pub request_hash: String,
    /// Which round of the message.
    pub round: u32,
    /// The claim under which it was last sent.
    pub claims: u32,
    /// Sends under this row.
    pub sends: u32,
    /// When the first intent was written.
    #[schema(value_type = schema::Time)]
    pub first_intent_at: Timestamp,
    /// No request of ours leaves later.
    #[schema(value_type = schema::Time)]
    pub last_possible_send: Timestamp,
    /// From then on "it did not happen" is believed.
    #[schema(value_type = schema::Time)]
    pub quarantined_until: Timestamp,
    /// How long after the last possible send that is.
    pub quarantine_ms: u64,
    /// Until when the other side is known to remember the key.
    #[schema(value_type = Option<schema::Time>)]
    pub valid_until: Option<Timestamp>,
    /// After this an open row waits for a person.
    #[schema(value_type = schema::Time)]
    pub reconcile_until: Timestamp,
    /// Confirmed: the value.
    pub value: Option<Hidden>,
    /// Rejected: the code.
    pub code: Option<String>,
    /// Rejected: what the other side said. Unknown: what was seen instead of an answer.
    pub detail: Option<String>,
}

/// Whole milliseconds, and no more than a number holds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Effect {
    /// A row of the journal.
    #[must_use]
    pub fn of(row: &EffectRow, show: Show) -> Self {
        let (value, code, detail) = match &row.state {
            EffectState::Confirmed { value } => (Some(Hidden::of(value, show.contents)), None, None),
            EffectState::Rejected { code, detail } => (None, Some(code.clone()), Some(detail.clone())),
            EffectState::Unknown { why } => (None, None, Some(why.clone())),
            EffectState::Intent | EffectState::NotDone => (None, None, None),
        };
        let (window_ms, or_lookup) = match &row.policy {
            EffectPolicy::Keyed { window, or_lookup } => (Some(millis(*window)), Some(*or_lookup)),
            EffectPolicy::Lookup | EffectPolicy::Transactional | EffectPolicy::Natural | EffectPolicy::AtMostOnce => {
                (None, None)
            }
        };
        Self {
            effect: row.effect.name.clone(),
            item: row.effect.item.clone(),
            seq: row.seq,
            state: row.state.as_str().to_owned(),
            open: row.state.is_open(),
            key: row.key.as_str().to_owned(),
            policy: row.policy.as_str().to_owned(),
            window_ms,
            or_lookup,
            request_hash: Hex(&row.request_hash).to_string(),
            round: row.round,
            claims: row.token.claims,
            sends: row.sends,
            first_intent_at: row.first_intent_at,
            last_possible_send: row.last_possible_send,
            quarantined_until: row.quarantined_until(),
            quarantine_ms: millis(row.quarantine),
            valid_until: row.valid_until,
            reconcile_until: row.reconcile_until,
            value,
            code,
            detail,
        }
    }

    /// The row as the library keeps it, but for the secret half of its lease token, which does not travel.
    ///
    /// # Errors
    /// `Invalid` when its value is masked; `Corrupt` when a word is not known.
    pub fn into_row(self) -> Result<EffectRow, StoreError> {
        let state = match self.state.as_str() {
            "intent" => EffectState::Intent,
            "unknown" => EffectState::Unknown { why: self.detail.unwrap_or_default() },
            "confirmed" => {
                // A value that is null is, to serde, a value that is not there.
                let value = match &self.value {
                    Some(value) => revealed(value, "the value of an effect")?.stored(),
                    None => "null".into(),
                };
                EffectState::Confirmed { value }
            }
            "rejected" => {
                EffectState::Rejected { code: self.code.unwrap_or_default(), detail: self.detail.unwrap_or_default() }
            }
            "not_done" => EffectState::NotDone,
            other => return Err(odd("state", other)),
        };
        let policy = match self.policy.as_str() {
            "keyed" => EffectPolicy::Keyed {
                window: Duration::from_millis(self.window_ms.unwrap_or_default()),
                or_lookup: self.or_lookup.unwrap_or_default(),
            },
            "lookup" => EffectPolicy::Lookup,
            "transactional" => EffectPolicy::Transactional,
            "natural" => EffectPolicy::Natural,
            "at_most_once" => EffectPolicy::AtMostOnce,
            other => return Err(odd("policy", other)),
        };
        Ok(EffectRow {
            effect: EffectId { name: self.effect, item: self.item },
            seq: self.seq,
            policy,
            key: EffectKey::from_stored(&self.key),
            request_hash: hex(&self.request_hash).ok_or_else(|| odd("request_hash", &self.request_hash))?,
            round: self.round,
            token: LeaseToken { claims: self.claims, nonce: Nonce::from_bytes([0; 16]) },
            sends: self.sends,
            first_intent_at: self.first_intent_at,
            last_possible_send: self.last_possible_send,
            valid_until: self.valid_until,
            quarantine: Duration::from_millis(self.quarantine_ms),
            reconcile_until: self.reconcile_until,
            state,
        })
    }
}

impl Effect {
    /// The row of a lease's own journal, as the worker that holds the lease keeps it: a row that was written under it has its
    /// whole token. What is shown there is the value, also where it looks like a mask.
    ///
    /// # Errors
    /// `Corrupt` when a word is not known.
    pub fn into_row_under(mut self, token: LeaseToken) -> Result<EffectRow, StoreError> {
        if let Some(value @ Hidden::Masked { .. }) = &self.value {
            let text = serde_json::to_string(value).expect("a mask is plain data");
            self.value = Some(Hidden::of(&text, true));
        }
        let row = self.into_row()?;
        let nonce = if row.token.claims == token.claims { token.nonce } else { row.token.nonce };
        Ok(EffectRow { token: LeaseToken { nonce, ..row.token }, ..row })
    }
}

fn odd(member: &str, value: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format!("the server sent an effect whose {member} is {value:?}"))
        .hint("server and client are of different versions")
}

/// Sixteen bytes from 32 lowercase hexadecimal digits.
pub(crate) fn hex(digits: &str) -> Option<[u8; 16]> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 32 || !digits.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A confirmation that came too late to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// When it arrived.
    #[schema(value_type = schema::Time)]
    pub at: Timestamp,
    /// Of which effect.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Tells repetitions of it apart.
    pub item: Option<String>,
    /// The value it confirmed.
    pub value: Hidden,
}

impl Evidence {
    /// A late confirmation as far as it is shown.
    #[must_use]
    pub fn of(evidence: &store::Evidence, show: Show) -> Self {
        let store::Evidence { at, effect, value } = evidence;
        Self {
            at: *at,
            effect: effect.name.clone(),
            item: effect.item.clone(),
            value: Hidden::of(value, show.contents),
        }
    }
}

/// How one run ended, or what an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ending {
    /// When.
    #[schema(value_type = schema::Time)]
    pub at: Timestamp,
    /// Counted attempts at that time.
    pub attempt: u32,
    /// The generation it belonged to.
    pub generation: u32,
    /// How the run ended, or `redriven`, `resolved`, `cancelled`, `edited`, `discarded`.
    pub outcome: String,
    /// What the message became.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Code of the failure.
    pub code: String,
    /// The failure for people.
    pub detail: String,
    /// When it was to be claimed again, if it became ready.
    #[schema(value_type = Option<schema::Time>)]
    pub due_at: Option<Timestamp>,
}

impl From<&store::Ending> for Ending {
    fn from(ending: &store::Ending) -> Self {
        let store::Ending { at, attempt, generation, outcome, state, code, detail, due_at } = ending.clone();
        Self { at, attempt, generation, outcome, state, code, detail, due_at }
    }
}

impl From<Ending> for store::Ending {
    fn from(ending: Ending) -> Self {
        let Ending { at, attempt, generation, outcome, state, code, detail, due_at } = ending;
        Self { at, attempt, generation, outcome, state, code, detail, due_at }
    }
}

/// Everything about one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Whose it is; empty where there is only one.
    #[schema(value_type = schema::TenantName)]
    pub tenant: Tenant,
    /// Which line it waits in.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Which handler it is for.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// Names what is to happen once.
    #[schema(value_type = schema::Key)]
    pub key: IdempotencyKey,
    /// Where it stands.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Why it is dead or parked.
    pub reason: Option<String>,
    /// The failure it ended or last failed with.
    pub failure: Option<Failure>,
    /// Its answer, if it completed or failed.
    pub answer: Option<Answer>,
    /// The version of the payload's shape.
    pub version: u32,
    /// 0 is claimed first, 9 last.
    #[schema(value_type = u8, minimum = 0, maximum = 9)]
    pub priority: Priority,
    /// Counted attempts so far.
    pub attempt: u32,
    /// Redrives so far.
    pub generation: u32,
    /// Crashes while it ran alone.
    pub crashes: u32,
    /// Claims ever.
    pub claims: u32,
    /// Rises when a redrive lets a rejected effect be sent again.
    pub round: u32,
    /// When the store took it.
    #[schema(value_type = schema::Time)]
    pub enqueued_at: Timestamp,
    /// When it could first be claimed.
    #[schema(value_type = schema::Time)]
    pub first_due_at: Timestamp,
    /// When it may be claimed, if it is ready.
    #[schema(value_type = Option<schema::Time>)]
    pub due_at: Option<Timestamp>,
    /// After this no attempt and no effect begins.
    #[schema(value_type = Option<schema::Time>)]
    pub deadline: Option<Timestamp>,
    /// After this it is given up rather than retried.
    #[schema(value_type = schema::Time)]
    pub expires_at: Timestamp,
    /// When it ended or was parked.
    #[schema(value_type = Option<schema::Time>)]
    pub ended_at: Option<Timestamp>,
    /// Who runs it, if it is leased.
    pub lease: Option<Lease>,
    /// Somebody asked to cancel it.
    pub cancel_requested: bool,
    /// An earlier run crashed: it runs alone.
    pub suspect: bool,
    /// A compensation was enqueued when it ended: it cannot be redriven.
    pub compensated: bool,
    /// The first message of its flow.
    #[schema(value_type = schema::Id)]
    pub flow: MessageId,
    /// The message it follows from.
    #[schema(value_type = Option<schema::Id>)]
    pub parent: Option<MessageId>,
    /// Carried along.
    pub headers: BTreeMap<String, String>,
    /// What its handler gets.
    pub payload: Hidden,
    /// The same in a string, where it is shown and there is white space around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// Its effects.
    pub journal: Vec<Effect>,
    /// Confirmations that came too late to be applied.
    pub evidence: Vec<Evidence>,
    /// Runs that ended otherwise than completed, and acts of operators, oldest first.
    pub history: Vec<Ending>,
}

impl Message {
    /// A message as far as it is shown.
    #[must_use]
    pub fn of(view: &MessageView, show: Show) -> Self {
        let message = &view.message;
        let counters = &view.counters;
        Self {
            id: message.id,
            tenant: message.tenant.clone(),
            queue: message.queue.clone(),
            kind: message.kind.clone(),
            key: message.key.clone(),
            state: view.state,
            reason: view.reason.clone(),
            failure: view.failure.as_ref().map(Failure::from),
            answer: view.answer.as_ref().map(|answer| Answer::of(answer, show.result)),
            version: message.version,
            priority: message.priority,
            attempt: counters.attempt,
            generation: counters.generation,
            crashes: counters.crashes,
            claims: counters.claims,
            round: counters.round,
            enqueued_at: message.enqueued_at,
            first_due_at: message.first_due_at,
            due_at: view.due_at,
            deadline: message.deadline,
            expires_at: message.expires_at,
            ended_at: view.ended_at,
            lease: view.lease.as_ref().map(|(worker, until)| Lease { worker: worker.clone(), until: *until }),
            cancel_requested: view.cancel_requested,
            suspect: view.suspect,
            compensated: view.compensated,
            flow: message.flow,
            parent: message.parent,
            headers: message.headers.clone(),
            payload: Hidden::of(&message.payload, show.contents),
            payload_text: (show.contents && Text::of(&message.payload).get() != &*message.payload)
                .then(|| message.payload.to_string()),
            journal: view.journal.iter().map(|row| Effect::of(row, show)).collect(),
            evidence: view.evidence.iter().map(|evidence| Evidence::of(evidence, show)).collect(),
            history: view.history.iter().map(Ending::from).collect(),
        }
    }

    /// The message as a store shows it, as far as it is shown: where contents are masked stands their mask.
    ///
    /// # Errors
    /// `Corrupt` when a word is not known.
    pub fn into_view_as_shown(mut self) -> Result<MessageView, StoreError> {
        self.payload = unmasked(&self.payload);
        for effect in &mut self.journal {
            effect.value = effect.value.as_ref().map(unmasked);
        }
        for evidence in &mut self.evidence {
            evidence.value = unmasked(&evidence.value);
        }
        let answer = self.answer.take().map(Answer::into_answer_as_shown);
        Ok(MessageView { answer, ..self.into_view()? })
    }

    /// The message as a store shows it, but for the secret half of lease tokens, which does not travel.
    ///
    /// # Errors
    /// `Invalid` when something of it is masked; `Corrupt` when a word is not known.
    pub fn into_view(self) -> Result<MessageView, StoreError> {
        let evidence = |evidence: Evidence| {
            Ok(store::Evidence {
                at: evidence.at,
                effect: EffectId { name: evidence.effect, item: evidence.item },
                value: revealed(&evidence.value, "late evidence")?.stored(),
            })
        };
        Ok(MessageView {
            message: message::Message {
                id: self.id,
                tenant: self.tenant,
                queue: self.queue,
                kind: self.kind,
                version: self.version,
                key: self.key,
                payload: match self.payload_text {
                    Some(text) => text.into(),
                    None => revealed(&self.payload, "the payload")?.stored(),
                },
                priority: self.priority,
                enqueued_at: self.enqueued_at,
                first_due_at: self.first_due_at,
                deadline: self.deadline,
                expires_at: self.expires_at,
                flow: self.flow,
                parent: self.parent,
                headers: self.headers,
            },
            state: self.state,
            counters: Counters {
                claims: self.claims,
                attempt: self.attempt,
                crashes: self.crashes,
                generation: self.generation,
                round: self.round,
            },
            due_at: self.due_at,
            reason: self.reason,
            failure: self.failure.map(message::Failure::from),
            answer: self.answer.map(Answer::into_answer).transpose()?,
            ended_at: self.ended_at,
            lease: self.lease.map(|lease| (lease.worker, lease.until)),
            cancel_requested: self.cancel_requested,
            suspect: self.suspect,
            compensated: self.compensated,
            journal: self.journal.into_iter().map(Effect::into_row).collect::<Result<_, _>>()?,
            evidence: self.evidence.into_iter().map(evidence).collect::<Result<_, StoreError>>()?,
            history: self.history.into_iter().map(store::Ending::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> MessageView {
        let at = Timestamp::from_millis;
        let id = MessageId::from_i64(77);
        MessageView {
            message: message::Message {
                id,
                tenant: Tenant::new("acme").unwrap(),
                queue: QueueName::new("deposits").unwrap(),
                kind: Kind::new("capture").unwrap(),
                version: 2,
                key: IdempotencyKey::new("d-1").unwrap(),
                payload: r#"{ "cents":1.50 }"#.into(),
                priority: Priority::new(3).unwrap(),
                enqueued_at: at(1000),
                first_due_at: at(1001),
                deadline: Some(at(9000)),
                expires_at: at(10_000),
                flow: id,
                parent: Some(MessageId::from_i64(76)),
                headers: [("traceparent".to_owned(), "00".to_owned())].into(),
            },
            state: State::Completed,
            counters: Counters { claims: 4, attempt: 3, crashes: 2, generation: 1, round: 5 },
            due_at: None,
            reason: None,
            failure: Some(message::Failure::new("timeout", "no answer in 2 s")),
            answer: Some(message::Answer::Completed("\"ch_1\"".into())),
            ended_at: Some(at(2000)),
            lease: None,
            cancel_requested: false,
            suspect: true,
            compensated: false,
            journal: vec![EffectRow {
                effect: EffectId { name: EffectName::new("capture").unwrap(), item: Some("1".to_owned()) },
                seq: 1,
                policy: EffectPolicy::Keyed { window: Duration::from_secs(60), or_lookup: true },
                key: EffectKey::from_stored("abc"),
                request_hash: [0xab; 16],
                round: 5,
                token: LeaseToken { claims: 4, nonce: Nonce::from_bytes([7; 16]) },
                sends: 2,
                first_intent_at: at(1100),
                last_possible_send: at(1200),
                valid_until: Some(at(61_100)),
                quarantine: Duration::from_secs(120),
                reconcile_until: at(5000),
                state: EffectState::Confirmed { value: "{\"secret\":1}".into() },
            }],
            evidence: vec![store::Evidence {
                at: at(1300),
                effect: EffectId { name: EffectName::new("capture").unwrap(), item: None },
                value: "2".into(),
            }],
            history: vec![store::Ending {
                at: at(1500),
                attempt: 2,
                generation: 0,
                outcome: "retryable".to_owned(),
                state: State::Ready,
                code: "timeout".to_owned(),
                detail: "no answer".to_owned(),
                due_at: Some(at(1600)),
            }],
        }
    }

    #[test]
    fn a_message_that_is_shown_whole_is_read_back_as_the_store_shows_it_but_for_the_nonce() {
        let sent = serde_json::to_string(&Message::of(&view(), Show::ALL)).unwrap();
        assert!(!sent.contains("0707"), "the secret half of a lease token travelled: {sent}");
        let mut expected = view();
        expected.journal[0].token.nonce = Nonce::from_bytes([0; 16]);
        let read: Message = serde_json::from_str(&sent).unwrap();
        assert_eq!(read.into_view().unwrap(), expected);
    }

    #[test]
    fn nothing_of_the_contents_is_in_a_message_that_is_not_shown() {
        let sent = serde_json::to_string(&Message::of(&view(), Show::default())).unwrap();
        for secret in ["cents", "ch_1", "secret"] {
            assert!(!sent.contains(secret), "{secret} is in {sent}");
        }
        let read: Message = serde_json::from_str(&sent).unwrap();
        assert_eq!(read.payload, Hidden::Masked { bytes: 16 });
        assert!(read.clone().into_view().is_err());
        let shown = read.into_view_as_shown().unwrap();
        assert_eq!(&*shown.message.payload, r#"{"masked":true,"bytes":16}"#);
        assert_eq!(shown.answer, Some(message::Answer::Completed(r#"{"masked":true,"bytes":6}"#.into())));
        assert_eq!(shown.history, view().history);
    }

    #[test]
    fn a_payload_that_is_odd_is_read_back_as_it_is() {
        let mut odd = view();
        for payload in [r#"{"masked":true,"bytes":3}"#, " 9.75\n", "null"] {
            odd.message.payload = payload.into();
            let sent = serde_json::to_string(&Message::of(&odd, Show::ALL)).unwrap();
            let read: Message = serde_json::from_str(&sent).unwrap();
            assert_eq!(read.into_view_as_shown().unwrap().message.payload, odd.message.payload);
            assert!(!serde_json::to_string(&Message::of(&odd, Show::default())).unwrap().contains("9.75"));
        }
    }
}
