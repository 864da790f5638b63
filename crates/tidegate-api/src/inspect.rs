//! Many messages read at once, whole or only where they stand.

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::{MessageId, StoreError, store};
use utoipa::ToSchema;

use crate::message::{Answer, Message};
use crate::schema;

/// What of a message may be shown that is masked otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Revealed {
    /// Everything: the payload, the result, the values of effects, late evidence.
    Payload,
}

/// Asks for messages by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// Which messages.
    #[schema(value_type = Vec<schema::Id>)]
    pub ids: Vec<MessageId>,
    /// Shows what is masked otherwise, of those messages where the token may reveal; is written down for each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reveal: Option<Revealed>,
}

/// Messages in the order in which they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inspected {
    /// Null for one that is not there, or that may not be read.
    pub messages: Vec<Option<Message>>,
}

/// Where a message stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Its state.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Why it is dead or parked.
    pub reason: Option<String>,
    /// Its answer, if it is completed or failed.
    pub answer: Option<Answer>,
}

impl Progress {
    /// Where a message stands, with its result if that may be seen.
    #[must_use]
    pub fn of(progress: &store::Progress, show: bool) -> Self {
        let store::Progress { state, reason, answer } = progress;
        Self { state: *state, reason: reason.clone(), answer: answer.as_ref().map(|answer| Answer::of(answer, show)) }
    }

    /// The same as a store tells it.
    ///
    /// # Errors
    /// `Invalid` when the result is masked.
    pub fn into_progress(self) -> Result<store::Progress, StoreError> {
        let answer = self.answer.map(Answer::into_answer).transpose()?;
        Ok(store::Progress { state: self.state, reason: self.reason, answer })
    }
}

/// Where messages stand, in the order in which they were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressList {
    /// Null for one that is not there, or that may not be read.
    pub messages: Vec<Option<Progress>>,
}
