//! Why a message is where it is, and what happens next.

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::{MessageId, explain};
use utoipa::ToSchema;

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
        }
    }
}
