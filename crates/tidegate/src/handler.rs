//! What an application writes: a message type, a handler, and what a handler may report.
//!
//! A [`HandlerError`] is opaque on purpose. One that came from an effect whose answer is missing stays what it is: no
//! handler can turn "it may have happened" into "it failed".

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::id::{Kind, QueueName};
use tidegate_core::message::Failure;
use tidegate_core::retry::Policy;

use crate::context::Context;
use crate::{StoreError, answer, payload};

/// A message type: what is to be done, which handler does it, and the key that names it.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// Which handler it is for. Stored with every message: renaming it is a new kind.
    const KIND: &'static str;
    /// The queue it waits in; one of its own unless it says otherwise, so that a failure stays where it is.
    const QUEUE: &'static str = Self::KIND;
    /// The version of the payload's shape, from 1. A worker leaves newer versions alone, and leads older ones here by
    /// [`Message::upcast`].
    const VERSION: u32 = 1;
    /// What its handler returns, kept for whoever asks.
    type Answer: Serialize + DeserializeOwned + Send + 'static;

    /// The idempotency key: names the one intended effect, `deposit-7231`, and is never used for another one. The store
    /// knows it until the retention after the message's end is over. An empty key is refused; a message that is
    /// deliberately not deduplicated is enqueued with [`Options::unique_key`](crate::Options::unique_key).
    fn key(&self) -> String;

    /// Turns a payload of version `from` into one of version `from + 1`. Called step by step until [`Message::VERSION`] is
    /// reached, before the payload is decoded; what cannot be turned is a dead letter with reason `decode`.
    ///
    /// Must be a pure function: two processes that up-cast one payload must get the same.
    ///
    /// # Errors
    /// A text for whoever finds the dead letter. Without an implementation, every older payload is refused.
    fn upcast(from: u32, payload: serde_json::Value) -> Result<serde_json::Value, String> {
        drop(payload);
        Err(format!("kind {} reads version {from} no more; hint: implement Message::upcast", Self::KIND))
    }
}

/// What a handler returns.
pub type Handled<T> = Result<T, HandlerError>;

/// Why a handler did not finish.
///
/// Any `std::error::Error` converts into a retryable one with code `error`, so that a bare `?` means "try again".
pub struct HandlerError(pub(crate) Box<Stop>);

/// What ends a handler early.
pub(crate) enum Stop {
    Retryable {
        failure: Failure,
        after: Option<Duration>,
    },
    Permanent {
        failure: Failure,
    },
    Rejected(Rejection),
    Snooze(Duration),
    /// An effect ended the attempt; what it means stands in the context.
    Ended,
}

/// What a remote said when it refused an effect, finally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The remote's code.
    pub code: String,
    /// What it said.
    pub detail: String,
}

impl HandlerError {
    /// It may pass: the message comes again with growing pauses until its attempts are used up.
    ///
    /// `code` is short and stable, for metrics and groups; `detail` is for people and must hold no secrets.
    pub fn retryable(code: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::of(Stop::Retryable { failure: Failure::new(code, detail.to_string()), after: None })
    }

    /// The same, and not before `after` from now.
    pub fn retryable_after(code: impl Into<String>, detail: impl fmt::Display, after: Duration) -> Self {
        Self::of(Stop::Retryable { failure: Failure::new(code, detail.to_string()), after: Some(after) })
    }

    /// Never: a fact of the business. It is the stored answer, and every duplicate gets it.
    pub fn permanent(code: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::of(Stop::Permanent { failure: Failure::new(code, detail.to_string()) })
    }

    /// Not now: run again after a while. Counts no attempt; bounded by the message's `max_age`.
    #[must_use]
    pub fn snooze(after: Duration) -> Self {
        Self::of(Stop::Snooze(after))
    }

    /// What the remote said, if this is the rejection of an effect. Passed on with `?` it is permanent, under its code.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match &*self.0 {
            Stop::Rejected(rejection) => Some(rejection),
            Stop::Retryable { .. } | Stop::Permanent { .. } | Stop::Snooze(_) | Stop::Ended => None,
        }
    }

    pub(crate) fn of(stop: Stop) -> Self {
        Self(Box::new(stop))
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retryable("error", answer::chain(&error))
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Stop::Retryable { failure, .. } => write!(f, "retryable, {failure}"),
            Stop::Permanent { failure } => write!(f, "permanent, {failure}"),
            Stop::Rejected(rejection) => write!(f, "rejected, {}: {}", rejection.code, rejection.detail),
            Stop::Snooze(after) => write!(f, "snoozed for {after:?}"),
            Stop::Ended => f.write_str("an effect ended this attempt"),
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

type Run = dyn Fn(Context, &str) -> Result<Running, Failure> + Send + Sync;
type Running = Pin<Box<dyn Future<Output = Result<String, HandlerError>> + Send>>;

/// A handler without its types.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) kind: Kind,
    pub(crate) queue: QueueName,
    pub(crate) version: u32,
    pub(crate) policy: Policy,
    run: Arc<Run>,
    check: fn(u32, &str) -> Result<(), Failure>,
}

impl Handler {
    pub(crate) fn new<M, F, Fut>(handler: F, policy: Policy) -> Result<Self, StoreError>
    where
        M: Message,
        F: Fn(Context, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Handled<M::Answer>> + Send + 'static,
    {
        let run = move |context: Context, payload: &str| -> Result<Running, Failure> {
            let message: M = payload::decode(context.message().version, payload)?;
            let running = handler(context.clone(), message);
            Ok(Box::pin(async move {
                let answer = running.await?;
                serde_json::to_string(&answer).map_err(|e| {
                    let detail = format!("the result of {} does not serialise to JSON: {e}", M::KIND);
                    context.end(crate::context::Ended::Refused(Failure::new("result", detail)));
                    HandlerError::of(Stop::Ended)
                })
            }))
        };
        Ok(Self {
            kind: Kind::new(M::KIND)?,
            queue: QueueName::new(M::QUEUE)?,
            version: M::VERSION,
            policy,
            run: Arc::new(run),
            check: |version, payload| payload::decode::<M>(version, payload).map(drop),
        })
    }

    /// Decodes the payload and begins.
    pub(crate) fn begin(&self, context: Context, payload: &str) -> Result<Running, Failure> {
        (self.run)(context, payload)
    }

    /// Decodes the payload, and no more.
    pub(crate) fn check(&self, version: u32, payload: &str) -> Result<(), Failure> {
        (self.check)(version, payload)
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("kind", &self.kind).field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_question_mark_is_retryable_and_keeps_the_whole_chain_of_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot reach the ledger")]
        struct Outer(#[source] fmt::Error);
        let error = HandlerError::from(Outer(fmt::Error));
        let expected = format!("retryable, error: cannot reach the ledger: {}", fmt::Error);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn only_a_rejection_shows_what_the_remote_said() {
        let said = Rejection { code: "declined".into(), detail: "no funds".into() };
        assert_eq!(HandlerError::of(Stop::Rejected(said.clone())).rejection(), Some(&said));
        assert_eq!(HandlerError::permanent("declined", "no funds").rejection(), None);
    }
}
