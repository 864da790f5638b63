//! A message and everything that followed from it.

use serde::{Deserialize, Serialize};
use tidegate::MessageId;
use utoipa::ToSchema;

use crate::list::Summary;
use crate::schema;

/// A message and everything that followed from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// The first message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Whether anything of it is still to be run.
    pub live: bool,
    /// Whether every message of it completed.
    pub completed: bool,
    /// The first message that did not complete and is not under way.
    #[schema(value_type = Option<schema::Id>)]
    pub stopped_at: Option<MessageId>,
    /// All of them, the first one first.
    pub messages: Vec<Summary>,
}

impl Flow {
    /// A flow by its first message.
    #[must_use]
    pub fn of(id: MessageId, flow: tidegate::Flow) -> Self {
        Self {
            id,
            live: flow.is_live(),
            completed: flow.is_completed(),
            stopped_at: flow.stopped_at().map(|summary| summary.id),
            messages: flow.messages.into_iter().map(Summary::from).collect(),
        }
    }
}
