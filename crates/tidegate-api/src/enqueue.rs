//! A message on its way in, and the verdict on it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::message::{self, Due, NewMessage, Payload, TRACE_PARENT};
use tidegate::{IdempotencyKey, Kind, MessageId, Priority, QueueName, Random, StoreError, Tenant, Timestamp, store};
use utoipa::ToSchema;

use crate::message::Answer;
use crate::problem::Problem;
use crate::schema;
use crate::text::Text;

/// A message to enqueue.
///
/// The key, the kind and the payload say what is asked for. The rest are options: under a key that is known the first ones
/// count, and the answer lists those of a repeat that were ignored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Enqueue {
    /// Which line it waits in. Needed where the address does not name the queue, and the same where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Name>)]
    pub queue: Option<QueueName>,
    /// Which handler it is for.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// What the handler gets. A program for which the white space around it matters sends the text in a string,
    /// `payload_text`, in its place.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Text, required = true)]
    pub payload: Option<Text>,
    /// The text of the payload, in a string; instead of `payload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub payload_text: Option<String>,
    /// Names what is to happen once: the same key never does so twice. Where one message is sent, the header
    /// `Idempotency-Key` may say it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Key>)]
    pub key: Option<IdempotencyKey>,
    /// Instead of a key: each such request is new work, deliberately.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unique_key: bool,
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
    #[schema(minimum = 0)]
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
    /// When the key was made. A key that is unknown and older than answers are kept is refused: it may have been done and
    /// forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub key_time: Option<Timestamp>,
    /// Carried along to the handler and to all that follows: `traceparent` and such.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Whose it is; that of the header `Tidegate-Tenant` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::TenantName>)]
    pub tenant: Option<Tenant>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde's `skip_serializing_if` calls for")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

/// What the request says around a message.
#[derive(Debug, Clone, Default)]
pub struct IntakeDefaults {
    /// The tenant of the request.
    pub tenant: Tenant,
    /// The queue in the address.
    pub queue: Option<QueueName>,
    /// The key in the header.
    pub key: Option<IdempotencyKey>,
    /// Added where the message has none of the name: `traceparent`, `tracestate`.
    pub headers: BTreeMap<String, String>,
}

/// Why a message on its way in is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMessage {
    /// It has no key.
    KeyMissing,
    /// It has two keys that differ.
    TwoKeys,
    /// A value is not allowed, or missing.
    Invalid(StoreError),
}

impl From<StoreError> for NoMessage {
    fn from(error: StoreError) -> Self {
        Self::Invalid(error)
    }
}

impl Enqueue {
    /// The message as a request for it is written.
    #[must_use]
    pub fn of(message: &NewMessage) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (delay_ms, due_at) = match message.due {
            Due::Now => (None, None),
            Due::In(delay) => (Some(millis(delay)), None),
            Due::At(at) => (None, Some(at)),
        };
        let text = message.payload.text();
        let (payload, payload_text) = match text.trim_matches([' ', '\t', '\r', '\n']) == text {
            true => (Some(Text::of(text)), None),
            false => (None, Some(text.to_owned())),
        };
        Self {
            queue: Some(message.queue.clone()),
            kind: message.kind.clone(),
            payload,
            payload_text,
            key: Some(message.key.clone()),
            unique_key: false,
            version: Some(message.version),
            priority: Some(message.priority),
            delay_ms,
            due_at,
            deadline: message.deadline,
            max_age_ms: message.max_age.map(millis),
            key_time: message.key_time,
            headers: message.headers.clone(),
            tenant: Some(message.tenant.clone()),
        }
    }

    /// The message as a store takes it.
    ///
    /// # Errors
    /// What is missing, or not allowed.
    pub fn into_message(self, defaults: &IntakeDefaults, random: &dyn Random) -> Result<NewMessage, NoMessage> {
        let queue = match (self.queue, &defaults.queue) {
            (Some(own), Some(address)) if own != *address => {
                let what = format!("the message is for queue {own}, the address names {address}");
                return Err(StoreError::invalid(what).hint("send it to its own queue").into());
            }
            (Some(queue), _) => queue,
            (None, Some(queue)) => queue.clone(),
            (None, None) => {
                return Err(StoreError::invalid("the message names no queue").hint("add the member \"queue\"").into());
            }
        };
        let key = match (self.key, &defaults.key, self.unique_key) {
            (Some(own), Some(header), _) if own != *header => return Err(NoMessage::TwoKeys),
            (Some(_), _, true) | (None, Some(_), true) => return Err(NoMessage::TwoKeys),
            (Some(key), _, false) => key,
            (None, Some(key), false) => key.clone(),
            (None, None, true) => IdempotencyKey::unique(random),
            (None, None, false) => return Err(NoMessage::KeyMissing),
        };
        let due = match (self.delay_ms, self.due_at) {
            (None, None) => Due::Now,
            (Some(delay), None) => Due::In(Duration::from_millis(delay)),
            (None, Some(at)) => Due::At(at),
            (Some(_), Some(_)) => {
                let what = "both delay_ms and due_at say when the message is due";
                return Err(StoreError::invalid(what).hint("send one of them").into());
            }
        };
        let payload = match (self.payload, self.payload_text) {
            (Some(payload), None) => Payload::from_json(payload.stored())?,
            (None, Some(text)) => Payload::from_json(text)?,
            (None, None) => {
                return Err(StoreError::invalid("the message has no payload")
                    .hint("add the member \"payload\"")
                    .into());
            }
            (Some(_), Some(_)) => {
                let what = "both payload and payload_text say what the handler gets";
                return Err(StoreError::invalid(what).hint("send one of them").into());
            }
        };
        let mut headers = self.headers;
        // The state belongs to the parent beside which it came: of another's it says nothing.
        if !headers.contains_key(TRACE_PARENT) {
            for (name, value) in &defaults.headers {
                headers.insert(name.clone(), value.clone());
            }
        }
        Ok(NewMessage {
            tenant: self.tenant.unwrap_or_else(|| defaults.tenant.clone()),
            version: self.version.unwrap_or(1),
            priority: self.priority.unwrap_or_default(),
            due,
            deadline: self.deadline,
            max_age: self.max_age_ms.map(Duration::from_millis),
            key_time: self.key_time,
            headers,
            ..NewMessage::new(queue, self.kind, key, payload)
        })
    }
}

/// Messages to enqueue; each gets a verdict of its own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EnqueueMany {
    /// The messages, each with its queue and its key.
    pub messages: Vec<Enqueue>,
}

/// What an enqueue came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is stored.
    Added,
    /// The key is known and has no answer yet, or none that is ever given: no work begins.
    Known,
    /// The key is known and answered: here is the answer.
    Replayed,
}

/// The verdict on an enqueue that was not refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enqueued {
    /// The message: the new one, or the one that is known.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// What the enqueue came to.
    pub result: Verdict,
    /// Where the message stands.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Options of this request that were ignored because the first ones count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// The stored answer, byte for byte, where it is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

impl Enqueued {
    /// The verdict of a store; none for a key that is too old to be done.
    #[must_use]
    pub fn of(enqueued: &store::Enqueued) -> Option<Self> {
        let plain = |id: MessageId, result, state| Self { id, result, state, ignored: Vec::new(), answer: None };
        match enqueued {
            store::Enqueued::New { id } => Some(plain(*id, Verdict::Added, State::Ready)),
            store::Enqueued::Existing { id, state, ignored } => Some(Self {
                ignored: ignored.iter().map(|&option| option.to_owned()).collect(),
                ..plain(*id, Verdict::Known, *state)
            }),
            store::Enqueued::Replayed { id, answer } => {
                let state = match answer {
                    message::Answer::Completed(_) => State::Completed,
                    message::Answer::Failed(_) => State::Failed,
                };
                Some(Self { answer: Some(Answer::of(answer, true)), ..plain(*id, Verdict::Replayed, state) })
            }
            store::Enqueued::Stale => None,
        }
    }

    /// The status of an answer with this verdict.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.result {
            Verdict::Added | Verdict::Known => 202,
            Verdict::Replayed => 200,
        }
    }
}

/// What became of one message of many: `problem` where it was refused, else the members of a single enqueue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnqueueResult {
    /// The status it would have had alone.
    pub status: u16,
    /// The message: the new one, or the one that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Id>)]
    pub id: Option<MessageId>,
    /// What the enqueue came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Verdict>,
    /// Where the message stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::StateName>)]
    pub state: Option<State>,
    /// Options that were ignored because the first ones count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// The stored answer, byte for byte, where it is replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl From<Enqueued> for EnqueueResult {
    fn from(enqueued: Enqueued) -> Self {
        Self {
            status: enqueued.status(),
            id: Some(enqueued.id),
            result: Some(enqueued.result),
            state: Some(enqueued.state),
            ignored: enqueued.ignored,
            answer: enqueued.answer,
            problem: None,
        }
    }
}

impl From<Problem> for EnqueueResult {
    fn from(problem: Problem) -> Self {
        Self {
            status: problem.status,
            id: None,
            result: None,
            state: None,
            ignored: Vec::new(),
            answer: None,
            problem: Some(problem),
        }
    }
}

/// What became of many messages, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnqueueResults {
    /// One for each message.
    pub results: Vec<EnqueueResult>,
}

#[cfg(test)]
mod tests {
    use tidegate::SystemRandom;

    use super::*;

    fn read(json: &str) -> Enqueue {
        serde_json::from_str(json).unwrap()
    }

    fn defaults() -> IntakeDefaults {
        IntakeDefaults { queue: Some(QueueName::new("deposits").unwrap()), ..IntakeDefaults::default() }
    }

    #[test]
    fn every_option_arrives_and_is_written_as_it_was_read() {
        let written = concat!(
            r#"{"queue":"deposits","kind":"capture","payload":{ "cents":1.50 },"key":"d-1","version":2,"priority":1,"#,
            r#""delay_ms":1500,"deadline":"2026-11-23T10:00:00.000Z","max_age_ms":60000,"#,
            r#""key_time":"2026-11-22T10:00:00.000Z","headers":{"traceparent":"00"},"tenant":"acme"}"#
        );
        let message = read(written).into_message(&defaults(), &SystemRandom).unwrap();
        assert_eq!(message.payload.text(), r#"{ "cents":1.50 }"#);
        assert_eq!(message.due, Due::In(Duration::from_millis(1500)));
        assert_eq!(message.tenant.as_str(), "acme");
        assert_eq!(serde_json::to_string(&Enqueue::of(&message)).unwrap(), written);
    }

    #[test]
    fn white_space_around_a_payload_travels_in_a_string() {
        let read = read(r#"{"kind":"k","payload_text":" 1.50\n","key":"a"}"#);
        let message = read.into_message(&defaults(), &SystemRandom).unwrap();
        assert_eq!(message.payload.text(), " 1.50\n");
        assert_eq!(Enqueue::of(&message).payload_text.as_deref(), Some(" 1.50\n"));
    }

    #[test]
    fn a_message_without_a_key_is_none_unless_it_says_that_it_is_unique() {
        let bare = read(r#"{"kind":"capture","payload":1}"#);
        assert_eq!(bare.into_message(&defaults(), &SystemRandom).unwrap_err(), NoMessage::KeyMissing);
        let unique =
            || read(r#"{"kind":"capture","payload":1,"unique_key":true}"#).into_message(&defaults(), &SystemRandom);
        assert_ne!(unique().unwrap().key, unique().unwrap().key);
    }

    #[test]
    fn two_keys_of_one_message_have_to_be_the_same() {
        let header = |key: &str| IntakeDefaults { key: Some(IdempotencyKey::new(key).unwrap()), ..defaults() };
        let message = || read(r#"{"kind":"capture","payload":1,"key":"a"}"#);
        assert!(message().into_message(&header("a"), &SystemRandom).is_ok());
        assert_eq!(message().into_message(&header("b"), &SystemRandom).unwrap_err(), NoMessage::TwoKeys);
        let both = read(r#"{"kind":"capture","payload":1,"key":"a","unique_key":true}"#);
        assert_eq!(both.into_message(&defaults(), &SystemRandom).unwrap_err(), NoMessage::TwoKeys);
    }

    #[test]
    fn the_trace_of_the_request_is_taken_where_the_message_has_none() {
        let defaults = IntakeDefaults {
            headers: [("traceparent", "of the request"), ("tracestate", "its state")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..defaults()
        };
        let none = read(r#"{"kind":"k","payload":1,"key":"a","headers":{"x":"y"}}"#);
        let none = none.into_message(&defaults, &SystemRandom).unwrap().headers;
        assert_eq!((none["traceparent"].as_str(), none["x"].as_str()), ("of the request", "y"));
        let own = read(r#"{"kind":"k","payload":1,"key":"a","headers":{"traceparent":"own"}}"#);
        let own = own.into_message(&defaults, &SystemRandom).unwrap().headers;
        assert_eq!(own.into_iter().collect::<Vec<_>>(), [("traceparent".to_owned(), "own".to_owned())]);
    }
}
