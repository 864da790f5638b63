//! What is enqueued, and what is kept of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::canonical::{Fingerprint, canonicalize};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::id::{IdempotencyKey, Kind, MessageId, QueueName, Tenant, digest16};

/// The largest payload, result or effect value unless a store was opened with another limit, in bytes.
pub const DEFAULT_MAX_PAYLOAD: usize = 1 << 20;
/// The longest detail of a failure that is stored, in bytes; the rest is cut off.
pub const MAX_DETAIL: usize = 2048;
/// The most bytes of names and values of a message's headers.
pub const MAX_HEADERS: usize = 16 * 1024;
/// The header by which a message is part of a trace (W3C Trace Context).
pub const TRACE_PARENT: &str = "traceparent";
/// The state of that trace. It belongs to the parent beside which it came: of another's it says nothing.
pub const TRACE_STATE: &str = "tracestate";
/// How long a message may wait, retry and be held before it is a dead letter, unless it says otherwise.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(3 * 24 * 3600);

/// A JSON text, kept byte for byte as it was given, with its canonical form for the fingerprint.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    text: Arc<str>,
    canonical: Option<Arc<str>>,
}

impl Payload {
    /// A payload from a JSON text.
    ///
    /// # Errors
    /// `Invalid` when the text is no JSON, or JSON that two readers could understand differently; with the path.
    pub fn from_json(text: impl Into<Arc<str>>) -> Result<Self, StoreError> {
        let text = text.into();
        let canonical = canonicalize(&text).map_err(|e| StoreError::invalid(format!("payload refused: {e}")))?;
        let canonical = (canonical != *text).then(|| canonical.into());
        Ok(Self { text, canonical })
    }

    /// A payload from a value.
    ///
    /// # Errors
    /// `Invalid` when the value does not serialise to JSON, or holds a float that no JSON text carries.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, StoreError> {
        let text = serde_json::to_string(value)
            .map_err(|e| StoreError::invalid(format!("payload does not serialise to JSON: {e}")))?;
        Self::from_json(text)
    }

    /// The text as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The canonical text.
    #[must_use]
    pub fn canonical(&self) -> &str {
        self.canonical.as_ref().unwrap_or(&self.text)
    }
}

impl fmt::Debug for Payload {
    /// Never the content: payloads do not belong in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.text.len())
    }
}

/// Which of a queue's messages are claimed first: 0 before 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Priority(u8);

impl Priority {
    /// Claimed before all others.
    pub const FIRST: Self = Self(0);
    /// Claimed after all others.
    pub const LAST: Self = Self(9);

    /// A priority from 0 (first) to 9 (last).
    ///
    /// # Errors
    /// `Invalid` above 9.
    pub fn new(priority: u8) -> Result<Self, StoreError> {
        if priority <= 9 {
            return Ok(Self(priority));
        }
        Err(StoreError::invalid(format!("invalid priority {priority}")).hint("0 (claimed first) to 9 (claimed last)"))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(5)
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u8::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// When a message may first be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// A while after the store took it.
    In(Duration),
    /// At this time of the store's clock; at once when that is past.
    At(Timestamp),
}

/// A message that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Who it belongs to.
    pub tenant: Tenant,
    /// Which line it waits in.
    pub queue: QueueName,
    /// Which handler it is for.
    pub kind: Kind,
    /// The version of the payload's shape, from 1.
    pub version: u32,
    /// Names the intended effect; its scope is tenant and queue.
    pub key: IdempotencyKey,
    /// What the handler gets.
    pub payload: Payload,
    /// Its place among the queue's messages.
    pub priority: Priority,
    /// When it may first be claimed.
    pub due: Due,
    /// After this no new attempt or effect begins.
    pub deadline: Option<Timestamp>,
    /// Bounds waiting, retries and holds; [`DEFAULT_MAX_AGE`] when absent.
    pub max_age: Option<Duration>,
    /// When the caller made the key; older than the retention and unknown means it may have been done and forgotten.
    pub key_time: Option<Timestamp>,
    /// Carried along: [`traceparent`](TRACE_PARENT) and such. No engine looks into them.
    pub headers: BTreeMap<String, String>,
}

impl NewMessage {
    /// A message with the defaults of everything optional.
    #[must_use]
    pub fn new(queue: QueueName, kind: Kind, key: IdempotencyKey, payload: Payload) -> Self {
        Self {
            tenant: Tenant::default(),
            queue,
            kind,
            version: 1,
            key,
            payload,
            priority: Priority::default(),
            due: Due::Now,
            deadline: None,
            max_age: None,
            key_time: None,
            headers: BTreeMap::new(),
        }
    }

    /// What the message asks for, for the comparison of two messages under one key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.kind, self.payload.canonical())
    }

    /// What every engine refuses before it stores anything.
    ///
    /// # Errors
    /// `Invalid`, naming the field and its value.
    pub fn check(&self, max_payload: usize) -> Result<(), StoreError> {
        let size = self.payload.text().len();
        if size > max_payload {
            return Err(StoreError::invalid(format!("payload of {size} bytes is over the limit of {max_payload}"))
                .hint("store the document elsewhere and enqueue a reference to it"));
        }
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers > MAX_HEADERS {
            return Err(StoreError::invalid(format!("headers of {headers} bytes are over the limit of {MAX_HEADERS}")));
        }
        if self.version == 0 {
            return Err(StoreError::invalid("invalid payload version 0").hint("versions are counted from 1"));
        }
        if self.max_age == Some(Duration::ZERO) {
            return Err(StoreError::invalid("invalid max_age of zero").hint("leave it out for the default of 3 days"));
        }
        Ok(())
    }

    /// Carries along what the message that it follows from carries, but for what it names itself.
    pub fn inherit_headers(&mut self, parent: &Message) {
        for (name, value) in &parent.headers {
            if name != TRACE_PARENT && name != TRACE_STATE {
                self.headers.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        self.inherit_trace(parent);
    }

    /// Goes on in the trace of the message that it follows from, unless it names one of its own: a flow is one trace.
    pub fn inherit_trace(&mut self, parent: &Message) {
        if !self.headers.contains_key(TRACE_PARENT) {
            self.mark_trace(&parent.headers);
        }
    }

    /// Makes it part of the trace that these headers name, whatever it was part of. It stays as it is if they name none, and
    /// if its headers would be over [`MAX_HEADERS`]: a mark must not be why a message is refused.
    pub fn mark_trace(&mut self, headers: &BTreeMap<String, String>) {
        let Some(parent) = headers.get(TRACE_PARENT) else { return };
        let marks = [(TRACE_PARENT, Some(parent)), (TRACE_STATE, headers.get(TRACE_STATE))];
        let is_mark = |name: &str| name == TRACE_PARENT || name == TRACE_STATE;
        let kept: usize = (self.headers.iter().filter(|(name, _)| !is_mark(name)))
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let added: usize = marks.iter().filter_map(|(name, mark)| mark.map(|mark| name.len() + mark.len())).sum();
        if kept + added > MAX_HEADERS {
            return;
        }
        self.headers.remove(TRACE_STATE);
        self.headers.extend(marks.into_iter().filter_map(|(name, mark)| Some((name.to_owned(), mark?.clone()))));
    }

    /// The key of a message that follows from another: the same parent, role, kind and item always give the same key.
    ///
    /// `role` tells a follow-up (`then`) from a compensation (`undo`).
    #[must_use]
    pub fn follow_up_key(parent: &Message, role: &str, kind: &Kind, item: Option<&str>) -> IdempotencyKey {
        let hash = digest16(&[
            parent.tenant.as_str().as_bytes(),
            parent.queue.as_str().as_bytes(),
            parent.key.as_str().as_bytes(),
            role.as_bytes(),
            kind.as_str().as_bytes(),
            item.unwrap_or_default().as_bytes(),
            &[u8::from(item.is_some())],
        ]);
        IdempotencyKey::new(format!("{role}/{kind}/{}", crate::id::Hex(&hash))).expect("made of names and digits")
    }
}

/// A stored message: immutable from its enqueue on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Assigned by the store.
    pub id: MessageId,
    /// Who it belongs to.
    pub tenant: Tenant,
    /// Which line it waits in.
    pub queue: QueueName,
    /// Which handler it is for.
    pub kind: Kind,
    /// The version of the payload's shape.
    pub version: u32,
    /// Names the intended effect.
    pub key: IdempotencyKey,
    /// JSON text, byte for byte as enqueued.
    pub payload: Arc<str>,
    /// Its place among the queue's messages.
    pub priority: Priority,
    /// When the store took it.
    pub enqueued_at: Timestamp,
    /// When it could first be claimed.
    pub first_due_at: Timestamp,
    /// After this no new attempt or effect begins.
    pub deadline: Option<Timestamp>,
    /// After this the message is a dead letter rather than retried or held again.
    pub expires_at: Timestamp,
    /// The first message of the flow; its own id when it is the first.
    pub flow: MessageId,
    /// The message it follows from.
    pub parent: Option<MessageId>,
    /// Carried along.
    pub headers: BTreeMap<String, String>,
}

/// Why an attempt failed: a code for machines and metrics, a detail for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Short and stable: `declined`, `timeout`, `panic`.
    pub code: String,
    /// What happened, without payloads or secrets; at most [`MAX_DETAIL`] bytes.
    pub detail: String,
}

impl Failure {
    /// A failure; the code is cut to 100 bytes and the detail to [`MAX_DETAIL`].
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: cut(code.into(), 100), detail: cut(detail.into(), MAX_DETAIL) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.code) } else { write!(f, "{}: {}", self.code, self.detail) }
    }
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = text.floor_char_boundary(most);
        text.truncate(end);
    }
    text
}

/// The stored answer of a completed or failed message: what every duplicate of its key gets, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The handler's result, a JSON text.
    Completed(Arc<str>),
    /// The handler said never.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> NewMessage {
        NewMessage::new(
            QueueName::new("q").unwrap(),
            Kind::new("k").unwrap(),
            IdempotencyKey::new("key").unwrap(),
            Payload::from_json(payload).unwrap(),
        )
    }

    #[test]
    fn the_fingerprint_ignores_layout_and_member_order_but_no_value() {
        let first = message(r#"{"a":1,"b":[2]}"#).fingerprint();
        assert_eq!(message(r#" { "b" : [ 2.0 ], "a" : 1 } "#).fingerprint(), first);
        assert_ne!(message(r#"{"a":1,"b":[3]}"#).fingerprint(), first);
        let other_kind = NewMessage { kind: Kind::new("k2").unwrap(), ..message(r#"{"a":1,"b":[2]}"#) };
        assert_ne!(other_kind.fingerprint(), first);
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn headers(pairs: Pairs<'_>) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn parent(headers: BTreeMap<String, String>) -> Message {
        Message {
            id: MessageId::from_i64(1),
            tenant: Tenant::default(),
            queue: QueueName::new("q").unwrap(),
            kind: Kind::new("k").unwrap(),
            version: 1,
            key: IdempotencyKey::new("parent").unwrap(),
            payload: "1".into(),
            priority: Priority::default(),
            enqueued_at: Timestamp::EPOCH,
            first_due_at: Timestamp::EPOCH,
            deadline: None,
            expires_at: Timestamp::EPOCH,
            flow: MessageId::from_i64(1),
            parent: None,
            headers,
        }
    }

    #[test]
    fn what_follows_goes_on_in_the_trace_of_its_parent_unless_it_names_one() {
        let of_parent = [(TRACE_PARENT, "theirs"), (TRACE_STATE, "s=1"), ("mine", "parent's"), ("more", "1")];
        let stateless = [(TRACE_PARENT, "theirs")];
        #[rustfmt::skip]
        let table: [(Pairs<'_>, Pairs<'_>, Pairs<'_>); 6] = [
            // Of the parent, its own, both together.
            (&of_parent, &[("mine", "own")], &[(TRACE_PARENT, "theirs"), (TRACE_STATE, "s=1"), ("mine", "own"), ("more", "1")]),
            (&of_parent, &[(TRACE_PARENT, "own")], &[(TRACE_PARENT, "own"), ("mine", "parent's"), ("more", "1")]),
            (&of_parent, &[(TRACE_PARENT, "own"), (TRACE_STATE, "o=1")],
                &[(TRACE_PARENT, "own"), (TRACE_STATE, "o=1"), ("mine", "parent's"), ("more", "1")]),
            // The state of no parent, or of another one, is none of this trace.
            (&stateless, &[(TRACE_STATE, "o=1")], &[(TRACE_PARENT, "theirs")]),
            (&[(TRACE_STATE, "s=1")], &[], &[]),
            (&[("more", "1")], &[("mine", "own")], &[("mine", "own"), ("more", "1")]),
        ];
        for (row, (of_parent, own, expected)) in table.into_iter().enumerate() {
            let parent = parent(headers(of_parent));
            let mut inherits = NewMessage { headers: headers(own), ..message("1") };
            inherits.inherit_headers(&parent);
            assert_eq!(inherits.headers, headers(expected), "row {row}");
            // And of the trace alone, the same without what is none of it.
            let mut traced = NewMessage { headers: headers(own), ..message("1") };
            traced.inherit_trace(&parent);
            let mut of_trace = inherits.headers;
            of_trace.retain(|name, _| {
                [TRACE_PARENT, TRACE_STATE].contains(&&**name) || own.iter().any(|own| own.0 == name)
            });
            assert_eq!(traced.headers, of_trace, "row {row}");
        }
    }

    #[test]
    fn a_mark_takes_the_place_of_the_one_before_and_leaves_the_rest() {
        let old = headers(&[("mine", "1"), (TRACE_PARENT, "old"), (TRACE_STATE, "old=1")]);
        let mut marked = NewMessage { headers: old, ..message("1") };
        marked.mark_trace(&headers(&[(TRACE_PARENT, "new"), ("theirs", "1")]));
        assert_eq!(marked.headers, headers(&[("mine", "1"), (TRACE_PARENT, "new")]));
        marked.mark_trace(&BTreeMap::new());
        assert_eq!(
            marked.headers,
            headers(&[("mine", "1"), (TRACE_PARENT, "new")]),
            "no mark is no reason to lose one"
        );
    }

    #[test]
    fn a_message_whose_headers_are_full_is_not_marked_rather_than_refused() {
        let mark = headers(&[(TRACE_PARENT, "12345")]);
        let room = MAX_HEADERS - "mine".len() - TRACE_PARENT.len() - 5;
        for (taken, is_marked) in [(room, true), (room + 1, false)] {
            let mut full = NewMessage { headers: headers(&[("mine", &"x".repeat(taken))]), ..message("1") };
            full.mark_trace(&mark);
            assert_eq!(full.headers.contains_key(TRACE_PARENT), is_marked, "{taken}");
            full.check(usize::MAX).unwrap();
        }
    }

    #[test]
    fn a_payload_keeps_its_bytes() {
        assert_eq!(Payload::from_json(" 1.50 ").unwrap().text(), " 1.50 ");
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_with_both_sizes() {
        let error = message("\"0123456789\"").check(11).unwrap_err();
        assert_eq!(error.what(), "payload of 12 bytes is over the limit of 11");
    }

    #[test]
    fn a_payload_does_not_show_itself() {
        assert_eq!(format!("{:?}", Payload::from_json("\"secret\"").unwrap()), "Payload(8 bytes)");
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        let failure = Failure::new("x", "ä".repeat(2000));
        assert_eq!(failure.detail.len(), MAX_DETAIL);
    }
}
