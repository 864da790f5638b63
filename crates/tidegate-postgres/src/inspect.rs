//! What people and programs ask about messages.

use tidegate_core::error::StoreError;
use tidegate_core::id::{IdempotencyKey, MessageId, QueueName, Tenant};
use tidegate_core::store::{AuditEntry, ExplainFacts, FailureGroup, Filter, MessageView, Progress, Summary};

use crate::read::Snapshot;
use crate::trouble::Trouble;

/// Everything about messages.
pub(crate) async fn inspect(_snapshot: &Snapshot, _ids: &[MessageId]) -> Result<Vec<Option<MessageView>>, Trouble> {
    Err(StoreError::unavailable("inspect is not written yet").into())
}

/// The message of a key.
pub(crate) async fn find(
    _snapshot: &Snapshot,
    _tenant: &Tenant,
    _queue: &QueueName,
    _key: &IdempotencyKey,
) -> Result<Option<MessageId>, Trouble> {
    Err(StoreError::unavailable("find is not written yet").into())
}

/// Where messages stand.
pub(crate) async fn progress(_snapshot: &Snapshot, _ids: &[MessageId]) -> Result<Vec<Option<Progress>>, Trouble> {
    Err(StoreError::unavailable("progress is not written yet").into())
}

/// All messages of a flow.
pub(crate) async fn flow(_snapshot: &Snapshot, _root: MessageId) -> Result<Vec<Summary>, Trouble> {
    Err(StoreError::unavailable("flow is not written yet").into())
}

/// Messages by filter.
pub(crate) async fn list(_snapshot: &Snapshot, _filter: &Filter) -> Result<Vec<Summary>, Trouble> {
    Err(StoreError::unavailable("list is not written yet").into())
}

/// What dead letters have in common.
pub(crate) async fn groups(_snapshot: &Snapshot, _filter: &Filter) -> Result<Vec<FailureGroup>, Trouble> {
    Err(StoreError::unavailable("groups is not written yet").into())
}

/// What an explanation needs to know.
pub(crate) async fn explain(_snapshot: &Snapshot, _id: MessageId) -> Result<Option<ExplainFacts>, Trouble> {
    Err(StoreError::unavailable("explain is not written yet").into())
}

/// Acts of operators.
pub(crate) async fn audit(_snapshot: &Snapshot, _after: u64, _limit: u32) -> Result<Vec<AuditEntry>, Trouble> {
    Err(StoreError::unavailable("audit is not written yet").into())
}
