//! Messages in a list, a page at a time.

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::State;
use tidegate::{IdempotencyKey, Kind, MessageId, QueueName, Tenant, Timestamp, store};
use utoipa::ToSchema;

use crate::schema;

/// A message in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Whose it is.
    #[serde(default)]
    #[schema(value_type = schema::TenantName)]
    pub tenant: Tenant,
    /// Which line it waits in.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Which handler it is for.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// Names what is to happen once.
    #[schema(value_type = schema::Key)]
    pub key: IdempotencyKey,
    /// Where it stands.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Counted attempts so far.
    pub attempt: u32,
    /// When it may be claimed, if it is ready.
    #[schema(value_type = Option<schema::Time>)]
    pub due_at: Option<Timestamp>,
    /// Why it failed, died or was parked; or the last attempt's failure.
    pub code: Option<String>,
    /// The same for people.
    pub detail: Option<String>,
    /// When it was enqueued.
    #[schema(value_type = schema::Time)]
    pub enqueued_at: Timestamp,
    /// When it ended or was parked.
    #[schema(value_type = Option<schema::Time>)]
    pub ended_at: Option<Timestamp>,
    /// The first message of its flow.
    #[schema(value_type = schema::Id)]
    pub flow: MessageId,
}

impl From<store::Summary> for Summary {
    fn from(summary: store::Summary) -> Self {
        let store::Summary {
            id,
            tenant,
            queue,
            kind,
            key,
            state,
            attempt,
            due_at,
            code,
            detail,
            enqueued_at,
            ended_at,
            flow,
        } = summary;
        Self { id, tenant, queue, kind, key, state, attempt, due_at, code, detail, enqueued_at, ended_at, flow }
    }
}

impl From<Summary> for store::Summary {
    fn from(summary: Summary) -> Self {
        let Summary { id, tenant, queue, kind, key, state, attempt, due_at, code, detail, enqueued_at, ended_at, flow } =
            summary;
        Self { id, tenant, queue, kind, key, state, attempt, due_at, code, detail, enqueued_at, ended_at, flow }
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page {
    /// The messages, by ascending id.
    pub messages: Vec<Summary>,
    /// Where the next page begins: the same request with `after` set to it. Nothing follows where it is null.
    #[schema(value_type = Option<schema::Id>)]
    pub next: Option<MessageId>,
}
