//! Why a message is where it is, and what happens next.

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::store::ExplainFacts;
use tidegate::{MessageId, Policy, StoreError, Timestamp, explain};
use utoipa::ToSchema;

use crate::message::{Message, Show};
use crate::policy::KindPolicy;
use crate::schema;

/// Why a message is where it is, and what happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Where it stands.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// The state, or which sort of ready it is: `scheduled`, `retrying`, `reconciling`, `held`.
    pub label: String,
    /// Why it is where it is.
    pub why: String,
    /// What happens next, and who has to do it.
    pub next: String,
    /// The conditions of a claim, in its order.
    pub predicates: Vec<Predicate>,
    /// What all of this was concluded from, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
}

/// What an explanation is concluded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Facts {
    /// The message, as far as it is shown.
    pub message: Message,
    /// The store's time.
    #[schema(value_type = schema::Time)]
    pub now: Timestamp,
    /// Its queue is paused.
    pub paused: bool,
    /// Messages of its lane that are claimed before it; not counted beyond 10,000.
    pub ahead: u32,
    /// What a worker declared of its kind; null when no worker ever served it.
    pub policy: Option<KindPolicy>,
}

impl Facts {
    /// What a store knows, as far as it is shown.
    #[must_use]
    pub fn of(facts: &ExplainFacts, show: Show) -> Self {
        Self {
            message: Message::of(&facts.view, show),
            now: facts.now,
            paused: facts.paused,
            ahead: facts.ahead,
            policy: facts.policy.as_ref().map(KindPolicy::from),
        }
    }

    /// The same as a store tells it; what is masked stays so.
    ///
    /// # Errors
    /// `Corrupt` when a word is not known.
    pub fn into_facts(self) -> Result<ExplainFacts, StoreError> {
        Ok(ExplainFacts {
            view: self.message.into_view_as_shown()?,
            now: self.now,
            paused: self.paused,
            ahead: self.ahead,
            policy: self.policy.map(Policy::from),
        })
    }
}

/// One condition of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Predicate {
    /// What is asked.
    pub asks: String,
    /// Whether it holds.
    pub holds: bool,
}

impl Explanation {
    /// The explanation of a message.
    #[must_use]
    pub fn of(id: MessageId, state: State, explanation: explain::Explanation) -> Self {
        let predicate =
            |predicate: explain::Predicate| Predicate { asks: predicate.asks.to_owned(), holds: predicate.holds };
        Self {
            id,
            state,
            label: explanation.label.to_owned(),
            why: explanation.why,
            next: explanation.next,
            predicates: explanation.predicates.into_iter().map(predicate).collect(),
            facts: None,
        }
    }
}
