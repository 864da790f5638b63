//! What operators did, and notes of acts that changed nothing.

use serde::{Deserialize, Serialize};
use tidegate::{MessageId, QueueName, Tenant, Timestamp, store};
use utoipa::ToSchema;

use crate::schema;

/// One act of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its place in the log.
    pub seq: u64,
    /// When.
    #[schema(value_type = schema::Time)]
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// `redrive`, `operation`, `edit`, `discard`, `cancel`, `pause`, `resume`, `limit`, `resolve`, `token`, `reveal`, or the
    /// word of a note.
    pub act: String,
    /// Why.
    pub reason: String,
    /// On which message, if it was on one.
    #[schema(value_type = Option<schema::Id>)]
    pub message: Option<MessageId>,
    /// Whose, if it was on a queue.
    #[schema(value_type = Option<schema::TenantName>)]
    pub tenant: Option<Tenant>,
    /// On which queue, if it was on one.
    #[schema(value_type = Option<schema::Name>)]
    pub queue: Option<QueueName>,
    /// Particulars: the name of an operation, an effect, a limit.
    pub detail: String,
}

impl From<store::AuditEntry> for AuditEntry {
    fn from(entry: store::AuditEntry) -> Self {
        let store::AuditEntry { seq, at, actor, act, reason, message, tenant, queue, detail } = entry;
        Self { seq, at, actor, act, reason, message, tenant, queue, detail }
    }
}

impl From<AuditEntry> for store::AuditEntry {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { seq, at, actor, act, reason, message, tenant, queue, detail } = entry;
        Self { seq, at, actor, act, reason, message, tenant, queue, detail }
    }
}

/// A page of what operators did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The oldest first.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins: the same request with `after` set to it. Nothing follows yet where it is null.
    pub next: Option<u64>,
}

/// Notes an act that changes nothing, such as that somebody took contents elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The act in a word of letters, digits, dots, dashes and underscores; none of the store's own acts.
    #[schema(value_type = schema::Name)]
    pub what: String,
    /// On which messages: one row for each; one in all where it names none.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Id>)]
    pub messages: Vec<MessageId>,
    /// Particulars.
    #[serde(default)]
    pub detail: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// What was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Noted {
    /// Rows that were written.
    pub noted: usize,
}
