//! Acts on many messages at once, each with a verdict of its own.

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::Cancellation;
use tidegate::{MessageId, StoreError};
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::schema;

/// Puts ended messages back to ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Redrive {
    /// Which messages.
    #[schema(value_type = Vec<schema::Id>)]
    pub ids: Vec<MessageId>,
    /// Also failed ones, whose answer was given and may be replaced; needs a reason.
    #[serde(default)]
    pub again: bool,
    /// Names the operation over all its requests: under it a message is redriven at most once, so that the request may be
    /// sent again. One is made up where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 200)]
    pub operation: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// Gives dead letters up: they leave the desk, and are deleted after their retention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Discard {
    /// Which messages.
    #[schema(value_type = Vec<schema::Id>)]
    pub ids: Vec<MessageId>,
    /// Why.
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// Calls messages off that have not taken effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Which messages.
    #[schema(value_type = Vec<schema::Id>)]
    pub ids: Vec<MessageId>,
    /// Frees the key for another message; refused once an effect was tried.
    #[serde(default)]
    pub release_key: bool,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// How a message was called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CalledOff {
    /// On the spot, or before.
    Now,
    /// Kept as a wish: a run is under way, or an open effect has to be decided first.
    Requested,
}

impl From<Cancellation> for CalledOff {
    fn from(cancellation: Cancellation) -> Self {
        match cancellation {
            Cancellation::Now => Self::Now,
            Cancellation::Requested => Self::Requested,
        }
    }
}

impl From<CalledOff> for Cancellation {
    fn from(cancelled: CalledOff) -> Self {
        match cancelled {
            CalledOff::Now => Self::Now,
            CalledOff::Requested => Self::Requested,
        }
    }
}

/// What became of one message of many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActResult {
    /// The status it would have had alone.
    pub status: u16,
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// How it was called off, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<CalledOff>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl ActResult {
    /// It was done.
    #[must_use]
    pub fn done(id: MessageId) -> Self {
        Self { status: 200, id, cancelled: None, problem: None }
    }

    /// It was called off.
    #[must_use]
    pub fn cancelled(id: MessageId, cancellation: Cancellation) -> Self {
        Self { cancelled: Some(cancellation.into()), ..Self::done(id) }
    }

    /// It was refused.
    #[must_use]
    pub fn refused(id: MessageId, problem: Problem) -> Self {
        Self { status: problem.status, problem: Some(problem), ..Self::done(id) }
    }

    /// The verdict as a store gives it.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn into_verdict(self) -> Result<MessageId, StoreError> {
        match self.problem {
            None => Ok(self.id),
            Some(problem) => Err(problem.into_store_error()),
        }
    }

    /// The verdict on a cancel as a store gives it.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn into_cancellation(self) -> Result<Cancellation, StoreError> {
        match (self.problem, self.cancelled) {
            (None, Some(cancelled)) => Ok(cancelled.into()),
            (None, None) => {
                Err(StoreError::unavailable(format!("the server does not say how {} was called off", self.id)))
            }
            (Some(problem), _) => Err(problem.into_store_error()),
        }
    }
}

/// What became of many messages, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActResults {
    /// One for each message.
    pub results: Vec<ActResult>,
}

/// What a redrive came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Redriven {
    /// The name of the operation: with it the request may be sent again.
    pub operation: String,
    /// One for each message.
    pub results: Vec<ActResult>,
}

#[cfg(test)]
mod tests {
    use tidegate::StoreErrorKind;

    use super::*;
    use crate::problem::ProblemType;

    #[test]
    fn a_verdict_arrives_as_the_store_gave_it() {
        let id = MessageId::from_i64(7);
        let sent = |result: ActResult| -> ActResult {
            serde_json::from_str(&serde_json::to_string(&result).unwrap()).unwrap()
        };
        assert_eq!(sent(ActResult::done(id)).into_verdict(), Ok(id));
        for cancellation in [Cancellation::Now, Cancellation::Requested] {
            assert_eq!(sent(ActResult::cancelled(id, cancellation)).into_cancellation(), Ok(cancellation));
        }
        let refused = ActResult::refused(id, Problem::new(ProblemType::Conflict, "it is completed"));
        assert_eq!(refused.status, 409);
        assert_eq!(sent(refused.clone()).into_verdict().unwrap_err().kind(), StoreErrorKind::Conflict);
        assert_eq!(sent(refused).into_cancellation().unwrap_err().what(), "it is completed");
    }
}
