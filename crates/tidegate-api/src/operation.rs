//! Redrives of many, step by step.

use serde::{Deserialize, Serialize};
use tidegate::group::GroupId;
use tidegate::{Kind, MessageId, QueueName, StoreError, Tenant, Timestamp, store};
use utoipa::ToSchema;

use crate::group::FailureGroup;
use crate::problem::Problem;
use crate::schema;

/// Which messages an operation redrives: those that are named, or else all dead letters of a sort.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// These. The rest of the selection is not looked at then.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Id>)]
    pub ids: Vec<MessageId>,
    /// Only this tenant's; the one of the request where it is left out.
    #[serde(default)]
    #[schema(value_type = Option<schema::TenantName>)]
    pub tenant: Option<Tenant>,
    /// Every tenant's.
    #[serde(default)]
    pub all_tenants: bool,
    /// Only this queue.
    #[serde(default)]
    #[schema(value_type = Option<schema::Name>)]
    pub queue: Option<QueueName>,
    /// Only this kind.
    #[serde(default)]
    #[schema(value_type = Option<schema::Name>)]
    pub kind: Option<Kind>,
    /// Only this reason, or this code of the last failure.
    #[serde(default)]
    pub code: Option<String>,
    /// Only this group of failures.
    #[serde(default)]
    #[schema(value_type = Option<schema::Group>)]
    pub group: Option<GroupId>,
}

impl From<store::Selection> for Selection {
    fn from(selection: store::Selection) -> Self {
        let store::Selection { ids, tenant, queue, kind, code, group } = selection;
        Self { ids, all_tenants: tenant.is_none(), tenant, queue, kind, code, group }
    }
}

/// Whether messages can be looked for by this code. PostgreSQL holds no NUL, and what else is no sign is a mistake.
///
/// # Errors
/// `Invalid` when it has a control character in it.
pub fn check_code(code: Option<&str>) -> Result<(), StoreError> {
    match code.filter(|code| code.chars().any(char::is_control)) {
        None => Ok(()),
        Some(code) => Err(StoreError::invalid(format!("the code {code:?} has a control character in it"))
            .hint("codes are words, such as declined; look by queue, kind or group where one is not")),
    }
}

impl Selection {
    /// The selection as a store takes it, in a request of this tenant.
    ///
    /// # Errors
    /// `Invalid` when it names a tenant and every tenant, or a code with control characters.
    pub fn into_selection(self, of: &Tenant) -> Result<store::Selection, StoreError> {
        let Self { ids, tenant, all_tenants, queue, kind, code, group } = self;
        check_code(code.as_deref())?;
        let tenant = match (tenant, all_tenants) {
            (Some(tenant), true) => {
                let what = format!("both tenant {:?} and all_tenants say whose messages", tenant.as_str());
                return Err(StoreError::invalid(what).hint("send one of them"));
            }
            (None, true) => None,
            (Some(tenant), false) => Some(tenant),
            (None, false) => Some(of.clone()),
        };
        Ok(store::Selection { ids, tenant, queue, kind, code, group })
    }
}

/// How fast and how carefully an operation goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// So many are redriven first, and nothing more before all of them have ended; 0 for none.
    #[serde(default)]
    pub canary: u32,
    /// At most so many a second.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub per_second: Option<u32>,
    /// Stops by itself when more than so many of a hundred that ended have failed, died or been parked.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub stop_over_percent: Option<u32>,
}

impl From<store::Pace> for Pace {
    fn from(pace: store::Pace) -> Self {
        let store::Pace { canary, per_second, stop_over_percent } = pace;
        Self { canary, per_second, stop_over_percent }
    }
}

impl From<Pace> for store::Pace {
    fn from(pace: Pace) -> Self {
        let Pace { canary, per_second, stop_over_percent } = pace;
        Self { canary, per_second, stop_over_percent }
    }
}

fn yes() -> bool {
    true
}

/// Begins an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOperation {
    /// Its name, so that the request may be sent again; one is made up where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    /// Which messages. Of a sort, those that are dead when it begins.
    pub selection: Selection,
    /// Also failed ones, whose answer was given and may be replaced; only with named ids and a reason.
    #[serde(default)]
    pub again: bool,
    /// How fast and how carefully; at once and whatever comes of it, where it is left out.
    #[serde(default)]
    pub pace: Pace,
    /// Whether the server drives it on at once. A client that takes the steps itself says no; when it takes none for a
    /// while, the server goes on with it all the same.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub drive: bool,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// Asks what an operation would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewOperation {
    /// Which messages.
    pub selection: Selection,
    /// Also failed ones.
    #[serde(default)]
    pub again: bool,
}

/// What an operation would do, if it began now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    /// How many messages it would select.
    pub selected: u64,
    /// How many of them were looked at one by one: the first of them, by id.
    pub looked_at: u64,
    /// How many of those it would redrive.
    pub would_redrive: u64,
    /// How many of those it could not.
    pub would_refuse: u64,
    /// The first of those that it could not, and why.
    pub refused: Vec<RefusedMessage>,
    /// Where those that were looked at are.
    pub queues: Vec<QueueCount>,
    /// What the selected ones have in common, the largest group first.
    pub groups: Vec<FailureGroup>,
}

/// So many messages of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueCount {
    /// Whose queue.
    #[schema(value_type = schema::TenantName)]
    pub tenant: Tenant,
    /// Which queue.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// How many.
    pub n: u64,
}

/// A message that is not redriven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedMessage {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Why not.
    pub problem: Problem,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Its steps redrive.
    Running,
    /// Too many of its messages ended badly.
    Stopped,
    /// All it selected was redriven or refused.
    Done,
    /// Called off.
    Cancelled,
}

impl From<store::OperationState> for OperationState {
    fn from(state: store::OperationState) -> Self {
        match state {
            store::OperationState::Running => Self::Running,
            store::OperationState::Stopped => Self::Stopped,
            store::OperationState::Done => Self::Done,
            store::OperationState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<OperationState> for store::OperationState {
    fn from(state: OperationState) -> Self {
        match state {
            OperationState::Running => Self::Running,
            OperationState::Stopped => Self::Stopped,
            OperationState::Done => Self::Done,
            OperationState::Cancelled => Self::Cancelled,
        }
    }
}

/// A redrive of many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Which messages.
    pub selection: Selection,
    /// Also failed ones.
    pub again: bool,
    /// How fast and how carefully.
    pub pace: Pace,
    /// Where it stands.
    pub state: OperationState,
    /// How many messages it found when it began.
    pub selected: u64,
    /// How many it redrove.
    pub redriven: u64,
    /// How many it could not.
    pub refused: u64,
    /// How many of the redriven completed, or were called off.
    pub ended_well: u64,
    /// How many of the redriven failed, died or were parked.
    pub ended_badly: u64,
    /// How many of the redriven have not ended.
    pub under_way: u64,
    /// Who began it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When.
    #[schema(value_type = schema::Time)]
    pub created_at: Timestamp,
}

impl From<store::Operation> for Operation {
    fn from(operation: store::Operation) -> Self {
        let under_way = operation.under_way();
        let store::Operation {
            name,
            selection,
            again,
            pace,
            state,
            selected,
            redriven,
            refused,
            ended_well,
            ended_badly,
            actor,
            reason,
            created_at,
        } = operation;
        Self {
            name,
            selection: selection.into(),
            again,
            pace: pace.into(),
            state: state.into(),
            selected,
            redriven,
            refused,
            ended_well,
            ended_badly,
            under_way,
            actor,
            reason,
            created_at,
        }
    }
}

impl From<Operation> for store::Operation {
    fn from(operation: Operation) -> Self {
        let Operation {
            name,
            selection: Selection { ids, tenant, all_tenants: _, queue, kind, code, group },
            again,
            pace,
            state,
            selected,
            redriven,
            refused,
            ended_well,
            ended_badly,
            under_way: _,
            actor,
            reason,
            created_at,
        } = operation;
        Self {
            name,
            selection: store::Selection { ids, tenant, queue, kind, code, group },
            again,
            pace: pace.into(),
            state: state.into(),
            selected,
            redriven,
            refused,
            ended_well,
            ended_badly,
            actor,
            reason,
            created_at,
        }
    }
}

/// Operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operations {
    /// The newest first.
    pub operations: Vec<Operation>,
}

/// What the next step of an operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Waits {
    /// The canary has to end first.
    Canary,
    /// Its rate allows the next one then.
    Rate {
        /// When.
        #[schema(value_type = schema::Time)]
        until: Timestamp,
    },
}

impl From<store::Waits> for Waits {
    fn from(waits: store::Waits) -> Self {
        match waits {
            store::Waits::Canary => Self::Canary,
            store::Waits::Until(until) => Self::Rate { until },
        }
    }
}

impl From<Waits> for store::Waits {
    fn from(waits: Waits) -> Self {
        match waits {
            Waits::Canary => Self::Canary,
            Waits::Rate { until } => Self::Until(until),
        }
    }
}

/// Where an operation stands after a step, or after what was done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stepped {
    /// The operation.
    pub operation: Operation,
    /// What could not be redriven, and why: in this step; or, where nobody took one, as far as this server has seen it.
    pub refused: Vec<RefusedMessage>,
    /// Nothing is redriven at this moment because of this.
    pub waits: Option<Waits>,
}

impl From<Stepped> for store::Stepped {
    fn from(stepped: Stepped) -> Self {
        let Stepped { operation, refused, waits } = stepped;
        let error = |RefusedMessage { id, problem }: RefusedMessage| (id, problem.into_store_error());
        Self {
            operation: operation.into(),
            refused: refused.into_iter().map(error).collect(),
            waits: waits.map(store::Waits::from),
        }
    }
}

/// What is to be done with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationAct {
    /// Look what became of the messages redriven so far, and redrive the next ones if that may be now.
    Step,
    /// Redrive no more of it.
    Cancel,
    /// Go on after it stopped by itself: with a new canary, and judged by what it redrives from now on. Needs a reason.
    Resume,
}

/// Does something with an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActOnOperation {
    /// What.
    pub act: OperationAct,
    /// Whether the server drives it on at once when it is resumed.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub drive: bool,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

#[cfg(test)]
mod tests {
    use tidegate::StoreErrorKind;

    use super::*;
    use crate::problem::ProblemType;

    fn operation() -> store::Operation {
        store::Operation {
            name: "redrive-1".to_owned(),
            selection: store::Selection {
                ids: vec![MessageId::from_i64(5)],
                tenant: Some(Tenant::new("acme").unwrap()),
                queue: Some(QueueName::new("deposits").unwrap()),
                kind: Some(Kind::new("capture").unwrap()),
                code: Some("timeout".to_owned()),
                group: Some(GroupId::from_i64(77)),
            },
            again: true,
            pace: store::Pace { canary: 5, per_second: Some(50), stop_over_percent: Some(0) },
            state: store::OperationState::Stopped,
            selected: 10,
            redriven: 7,
            refused: 1,
            ended_well: 2,
            ended_badly: 3,
            actor: "token:ops".to_owned(),
            reason: "fixed".to_owned(),
            created_at: Timestamp::from_millis(1000),
        }
    }

    #[test]
    fn an_operation_arrives_as_the_store_keeps_it() {
        for state in store::OperationState::ALL {
            for waits in [None, Some(store::Waits::Canary), Some(store::Waits::Until(Timestamp::from_millis(9)))] {
                let error = StoreError::conflict("it is ready");
                let operation = store::Operation { state, ..operation() };
                let sent = Stepped {
                    operation: operation.clone().into(),
                    refused: vec![RefusedMessage {
                        id: MessageId::from_i64(5),
                        problem: Problem::new(ProblemType::Conflict, error.what()),
                    }],
                    waits: waits.map(Waits::from),
                };
                assert_eq!(sent.operation.under_way, 2);
                let sent = serde_json::to_string(&sent).unwrap();
                let read = store::Stepped::from(serde_json::from_str::<Stepped>(&sent).unwrap());
                assert_eq!(read, store::Stepped { operation, refused: vec![(MessageId::from_i64(5), error)], waits });
            }
        }
    }

    #[test]
    fn whose_messages_are_selected_is_said_or_taken_from_the_request() {
        let of = Tenant::new("acme").unwrap();
        let read = |json: &str| serde_json::from_str::<Selection>(json).unwrap().into_selection(&of);
        assert_eq!(read("{}").unwrap().tenant, Some(of.clone()));
        assert_eq!(read(r#"{"tenant":""}"#).unwrap().tenant, Some(Tenant::default()));
        assert_eq!(read(r#"{"all_tenants":true}"#).unwrap().tenant, None);
        let both = read(r#"{"tenant":"acme","all_tenants":true}"#).unwrap_err();
        assert_eq!(both.kind(), StoreErrorKind::Invalid);
        for tenant in [None, Some(of.clone())] {
            let selection = store::Selection { tenant, ..operation().selection };
            let sent = serde_json::to_string(&Selection::from(selection.clone())).unwrap();
            let read: Selection = serde_json::from_str(&sent).unwrap();
            assert_eq!(read.into_selection(&Tenant::default()).unwrap(), selection, "{sent}");
        }
    }

    #[test]
    fn a_guard_that_is_misspelt_is_refused_rather_than_ignored() {
        let wrong = r#"{"selection":{},"pace":{"canary":1,"stop_over":10}}"#;
        let error = serde_json::from_str::<NewOperation>(wrong).unwrap_err();
        assert!(error.to_string().contains("stop_over"), "{error}");
    }
}
