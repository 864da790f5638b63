//! Parked messages, with what has to be found out about them.

use serde::{Deserialize, Serialize};
use tidegate::MessageId;
use tidegate::journal::open_rows;
use tidegate::store::{self, MessageView};
use utoipa::ToSchema;

use crate::list::Summary;
use crate::message::{Effect, Evidence, Show};
use crate::schema;

/// A parked message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Parked {
    /// The message.
    pub message: Summary,
    /// Why it is parked.
    pub reason: Option<String>,
    /// The effects that may have happened, each with the key that the other side knows it by.
    pub open_effects: Vec<Effect>,
    /// Confirmations that came too late to be applied.
    pub evidence: Vec<Evidence>,
}

impl Parked {
    /// A parked message with as much of it as may be seen.
    #[must_use]
    pub fn of(summary: store::Summary, view: &MessageView, show: Show) -> Self {
        Self {
            message: summary.into(),
            reason: view.reason.clone(),
            open_effects: open_rows(&view.journal).map(|row| Effect::of(row, show)).collect(),
            evidence: view.evidence.iter().map(|evidence| Evidence::of(evidence, show)).collect(),
        }
    }
}

/// A page of parked messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParkedPage {
    /// By ascending id.
    pub messages: Vec<Parked>,
    /// Where the next page begins: the same request with `after` set to it. Nothing follows where it is null.
    #[schema(value_type = Option<schema::Id>)]
    pub next: Option<MessageId>,
}
