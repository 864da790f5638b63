//! What failures have in common.

use serde::{Deserialize, Serialize};
use tidegate::group::GroupId;
use tidegate::{EffectName, Kind, MessageId, Timestamp, store};
use utoipa::ToSchema;

use crate::schema;

/// What failures have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureGroup {
    /// Its name.
    #[schema(value_type = schema::Group)]
    pub id: GroupId,
    /// The kind of its messages.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// The code of the failure they ended with, or the reason where they ended without one.
    pub code: String,
    /// The effect they failed at, if they failed at one.
    #[schema(value_type = Option<schema::Name>)]
    pub effect: Option<EffectName>,
    /// What was said, with numbers, identifiers and quoted text masked.
    pub pattern: String,
    /// How many there are.
    pub count: u64,
    /// When the first of them ended.
    #[schema(value_type = schema::Time)]
    pub first_seen: Timestamp,
    /// When the last of them ended.
    #[schema(value_type = schema::Time)]
    pub last_seen: Timestamp,
    /// The first of them by id.
    #[schema(value_type = schema::Id)]
    pub sample: MessageId,
}

impl From<store::FailureGroup> for FailureGroup {
    fn from(group: store::FailureGroup) -> Self {
        let store::FailureGroup { id, kind, code, effect, pattern, count, first_seen, last_seen, sample } = group;
        Self { id, kind, code, effect, pattern, count, first_seen, last_seen, sample }
    }
}

impl From<FailureGroup> for store::FailureGroup {
    fn from(group: FailureGroup) -> Self {
        let FailureGroup { id, kind, code, effect, pattern, count, first_seen, last_seen, sample } = group;
        Self { id, kind, code, effect, pattern, count, first_seen, last_seen, sample }
    }
}

/// Groups of failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Groups {
    /// The largest first.
    pub groups: Vec<FailureGroup>,
}
