//! What may be said about one enqueue beside the message itself.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_core::clock::{Random, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, Kind, QueueName, Tenant};
use tidegate_core::message::{Due, NewMessage, Payload, Priority};

use crate::handler::Message;

/// Options of an enqueue. They do not tell messages apart: under a known key the first ones count, and the verdict lists
/// those that were ignored.
#[derive(Debug, Clone, Default)]
pub struct Options {
    queue: Option<QueueName>,
    priority: Option<Priority>,
    due: Due,
    deadline: Option<Timestamp>,
    max_age: Option<Duration>,
    key_time: Option<Timestamp>,
    headers: BTreeMap<String, String>,
    key: KeyChoice,
    item: Option<String>,
}

#[derive(Debug, Clone, Default)]
enum KeyChoice {
    #[default]
    OfMessage,
    Named(String),
    Unique,
}

/// Where messages of a type wait, and which handler they are for.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    queue: QueueName,
    kind: Kind,
}

impl Options {
    /// Another queue than the message's own. The same key on two queues is two messages.
    #[must_use]
    pub fn queue(mut self, queue: QueueName) -> Self {
        self.queue = Some(queue);
        self
    }

    /// 0 is claimed first, 9 last; 5 without it.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Not before so long from now.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.due = Due::In(delay);
        self
    }

    /// Not before this time.
    #[must_use]
    pub fn due_at(mut self, at: Timestamp) -> Self {
        self.due = Due::At(at);
        self
    }

    /// No attempt and no effect begins after this.
    #[must_use]
    pub fn deadline(mut self, deadline: Timestamp) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Bounds waiting and retrying; 3 days without it.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// When the caller made the key. An unknown key that is older than the retention is refused as stale.
    #[must_use]
    pub fn key_time(mut self, at: Timestamp) -> Self {
        self.key_time = Some(at);
        self
    }

    /// Carried along to the handler and to follow-ups: `traceparent` and such.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Another key than the message's own.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = KeyChoice::Named(key.into());
        self
    }

    /// A key nobody else has: each such enqueue is new work, deliberately.
    #[must_use]
    pub fn unique_key(mut self) -> Self {
        self.key = KeyChoice::Unique;
        self
    }

    /// Tells several follow-ups of one kind apart; see [`Context::then_with`](crate::Context::then_with).
    #[must_use]
    pub fn item(mut self, item: impl Into<String>) -> Self {
        self.item = Some(item.into());
        self
    }

    /// The message a store takes.
    pub(crate) fn prepare<M: Message>(&self, message: &M, random: &dyn Random) -> Result<NewMessage, StoreError> {
        self.prepare_under(message, self.names::<M>()?, random)
    }

    /// The names that all messages of a type have: checked once for a batch.
    pub(crate) fn names<M: Message>(&self) -> Result<Names, StoreError> {
        let queue = match &self.queue {
            Some(queue) => queue.clone(),
            None => QueueName::new(M::QUEUE)?,
        };
        Ok(Names { queue, kind: Kind::new(M::KIND)? })
    }

    /// The message a store takes, under names that were checked.
    pub(crate) fn prepare_under<M: Message>(
        &self,
        message: &M,
        names: Names,
        random: &dyn Random,
    ) -> Result<NewMessage, StoreError> {
        let key = match &self.key {
            KeyChoice::OfMessage => self.checked_key(message.key(), M::KIND)?,
            KeyChoice::Named(key) => self.checked_key(key.clone(), M::KIND)?,
            KeyChoice::Unique => IdempotencyKey::unique(random),
        };
        self.with_key(message, names, key)
    }

    /// The message that follows from another: its key is made from the parent's.
    pub(crate) fn follow_up<M: Message>(
        &self,
        message: &M,
        parent: &tidegate_core::message::Message,
        role: &str,
    ) -> Result<NewMessage, StoreError> {
        let names = self.names::<M>()?;
        let key = NewMessage::follow_up_key(parent, role, &names.kind, self.item.as_deref());
        let mut follow_up = self.with_key(message, names, key)?;
        follow_up.inherit_headers(parent);
        follow_up.tenant = parent.tenant.clone();
        Ok(follow_up)
    }

    fn checked_key(&self, key: String, kind: &str) -> Result<IdempotencyKey, StoreError> {
        if key.is_empty() {
            return Err(StoreError::invalid(format!("a message of kind {kind} has no idempotency key")).hint(
                "return from Message::key what names the intended effect; if every enqueue is to be new work, say so \
                 with Options::unique_key",
            ));
        }
        IdempotencyKey::new(key)
    }

    fn with_key<M: Message>(&self, message: &M, names: Names, key: IdempotencyKey) -> Result<NewMessage, StoreError> {
        let Names { queue, kind } = names;
        Ok(NewMessage {
            tenant: Tenant::default(),
            queue,
            kind,
            version: M::VERSION,
            key,
            payload: Payload::of(message)?,
            priority: self.priority.unwrap_or_default(),
            due: self.due,
            deadline: self.deadline,
            max_age: self.max_age,
            key_time: self.key_time,
            headers: self.headers.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Nameless;

    impl Message for Nameless {
        const KIND: &'static str = "nameless";
        type Answer = ();
        fn key(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn a_missing_key_is_an_error_unless_a_unique_one_is_asked_for() {
        let random = tidegate_core::SystemRandom;
        let error = Options::default().prepare(&Nameless, &random).unwrap_err();
        assert_eq!(error.what(), "a message of kind nameless has no idempotency key");
        let first = Options::default().unique_key().prepare(&Nameless, &random).unwrap();
        let second = Options::default().unique_key().prepare(&Nameless, &random).unwrap();
        assert_ne!(first.key, second.key);
    }
}
