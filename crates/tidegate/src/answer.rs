//! What the enqueuing side gets: a handle on a message, its answer, and the flow it began.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::message::{self, Failure};
use tidegate_core::store::{Enqueued, Progress, Summary};

use crate::client::Tidegate;
use crate::handler::Message;

/// A handle on a stored message.
pub struct Sent<M: Message> {
    tide: Tidegate,
    id: MessageId,
    enqueued: Option<Enqueued>,
    kind: PhantomData<fn() -> M>,
}

impl<M: Message> Sent<M> {
    pub(crate) fn new(tide: Tidegate, id: MessageId, enqueued: Option<Enqueued>) -> Self {
        Self { tide, id, enqueued, kind: PhantomData }
    }

    /// Which message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The store's verdict on the enqueue; none for a handle made from an id.
    #[must_use]
    pub fn enqueued(&self) -> Option<&Enqueued> {
        self.enqueued.as_ref()
    }

    /// Whether this enqueue stored the message: false when its key was known.
    #[must_use]
    pub fn is_new(&self) -> bool {
        matches!(self.enqueued, Some(Enqueued::New { .. }))
    }

    /// Whether the key was known and answered, so that [`Sent::answer`] is a replay.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        matches!(self.enqueued, Some(Enqueued::Replayed { .. }))
    }

    /// Waits for the answer; works whichever process runs the handler.
    ///
    /// When the time is up it is [`Answer::Pending`], and nothing was cancelled.
    ///
    /// # Errors
    /// `Unavailable`; `NotFound` when the message is past its retention; `Corrupt` when the stored result is not of the
    /// type `M::Answer`.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn answer(&self, timeout: Duration) -> Result<Answer<M::Answer>, StoreError> {
        if let Some(Enqueued::Replayed { answer, .. }) = &self.enqueued {
            return decoded::<M>(self.id, answer.clone());
        }
        let Progress { state, reason, answer } = self.tide.wait(self.id, timeout).await?;
        let reason = reason.unwrap_or_default();
        match (state, answer) {
            (State::Completed | State::Failed, Some(answer)) => decoded::<M>(self.id, answer),
            (State::Completed | State::Failed, None) => {
                let what = format!("{} is {state}, and its answer was erased", self.id);
                Err(StoreError::new(StoreErrorKind::NotFound, what).message_id(self.id))
            }
            (State::Dead, _) => Ok(Answer::Dead { reason }),
            (State::Parked, _) => Ok(Answer::Parked { reason }),
            (State::Cancelled, _) => Ok(Answer::Cancelled),
            (State::Ready | State::Leased, _) => Ok(Answer::Pending(state)),
        }
    }

    /// Waits until nothing of the message's flow is ready or leased any more, or the time is up.
    ///
    /// # Errors
    /// `Unavailable`; `NotFound` when the flow is past its retention.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn flow(&self, timeout: Duration) -> Result<Flow, StoreError> {
        self.tide.wait_flow(self.id, timeout).await
    }
}

impl<M: Message> fmt::Debug for Sent<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").field("id", &self.id).field("kind", &M::KIND).finish_non_exhaustive()
    }
}

fn decoded<M: Message>(id: MessageId, answer: message::Answer) -> Result<Answer<M::Answer>, StoreError> {
    match answer {
        message::Answer::Failed(failure) => Ok(Answer::Failed(failure)),
        message::Answer::Completed(result) => serde_json::from_str(&result).map(Answer::Completed).map_err(|e| {
            StoreError::corrupt(&format!("the result of {id}"), &format!("it is no answer of kind {}: {e}", M::KIND))
                .message_id(id)
        }),
    }
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// The handler did it.
    Completed(T),
    /// The handler said never.
    Failed(Failure),
    /// It was given up; a person may redrive it.
    Dead {
        /// Why, as [`DeadReason`](crate::lifecycle::DeadReason) says it.
        reason: String,
    },
    /// An effect of it may have happened, and a person has to find out.
    Parked {
        /// Why, as [`ParkReason`](crate::lifecycle::ParkReason) says it.
        reason: String,
    },
    /// It was called off.
    Cancelled,
    /// It had no end yet when the time was up.
    Pending(State),
}

impl<T> Answer<T> {
    /// The result, if it completed.
    ///
    /// # Errors
    /// What else became of it.
    pub fn completed(self) -> Result<T, NotCompleted> {
        match self {
            Self::Completed(result) => Ok(result),
            Self::Failed(failure) => Err(NotCompleted(format!("the message failed: {failure}"))),
            Self::Dead { reason } => Err(NotCompleted(format!("the message is dead ({reason})"))),
            Self::Parked { reason } => Err(NotCompleted(format!("the message is parked ({reason})"))),
            Self::Cancelled => Err(NotCompleted("the message was cancelled".into())),
            Self::Pending(state) => Err(NotCompleted(format!(
                "the message has no answer yet, it is {state}; hint: wait longer; `tidegate explain` says what it waits for"
            ))),
        }
    }
}

/// The message did not complete; says what it did instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotCompleted(String);

impl fmt::Display for NotCompleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotCompleted {}

/// A message and everything that followed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The first message first.
    pub messages: Vec<Summary>,
}

impl Flow {
    /// Whether anything of it is still to be run.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.messages.iter().any(|message| matches!(message.state, State::Ready | State::Leased))
    }

    /// Whether every message of it completed.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.messages.iter().all(|message| message.state == State::Completed)
    }

    /// The first message that did not complete and is not under way.
    #[must_use]
    pub fn stopped_at(&self) -> Option<&Summary> {
        self.messages.iter().find(|message| match message.state {
            State::Failed | State::Dead | State::Parked | State::Cancelled => true,
            State::Ready | State::Leased | State::Completed => false,
        })
    }
}

/// An error with all its causes, for a detail that people read.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors print their source themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
