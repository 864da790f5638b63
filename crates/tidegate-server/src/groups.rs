//! `GET /v1/groups`: what dead letters, or parked messages, have in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::lifecycle::State as MessageState;
use tidegate::store::{FailureGroup, Filter};
use tidegate::token::Glob;
use tidegate::{Kind, QueueName};
use tidegate_api::{Groups, ProblemType, schema};

use crate::list::states;
use crate::paging;
use crate::principal::{Action, Caller};
use crate::problem::{Common, Problem};
use crate::serving::Serving;
use crate::url::UrlQuery;
use crate::whose::Whose;

/// So many where nothing else is asked for.
const USUAL: u32 = 50;
/// The most groups of one answer.
const MOST: u32 = 10_000;
/// The most queues that are put together for a token that reads some of them alone.
const QUEUES: usize = 200;

/// Which failures.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// `dead`, `parked`, or both separated by a comma; dead where it is left out.
    #[param(value_type = Option<Vec<schema::StateName>>, style = Form, explode = false)]
    #[serde(default, deserialize_with = "states")]
    state: Vec<MessageState>,
    /// Only this queue.
    #[param(value_type = Option<schema::Name>)]
    queue: Option<QueueName>,
    /// Only this kind.
    #[param(value_type = Option<schema::Name>)]
    kind: Option<Kind>,
    /// Only this code.
    code: Option<String>,
    /// Of every tenant that this token may read, and not only of the one that the request is about.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    all_tenants: bool,
    /// At most so many; 50 where it is left out.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
}

/// Group failures by what they have in common
///
/// By kind, code, effect and what was said with everything masked that differs from message to message. Messages on queues
/// that this token may not read are not counted.
#[utoipa::path(
    get,
    path = "/v1/groups",
    tag = "operators",
    params(Asked, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose failures")),
    responses((status = 200, description = "Groups, the largest first", body = Groups), Common),
)]
pub(crate) async fn groups(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Groups>, Problem> {
    let limit = paging::limit(asked.limit, USUAL, MOST)?;
    let Asked { state, queue, kind, code, all_tenants, .. } = asked;
    tidegate_api::check_code(code.as_deref())?;
    let waits_for_a_person = |state: &MessageState| matches!(state, MessageState::Dead | MessageState::Parked);
    if let Some(other) = state.iter().find(|state| !waits_for_a_person(state)) {
        return Err(Problem::new(ProblemType::Invalid, format!("messages that are {other} are in no group"))
            .fix("ask for dead, parked, or dead,parked"));
    }
    let whose = Whose { all_tenants };
    whose.demand(&caller, queue.as_ref())?;
    let states = if state.is_empty() { vec![MessageState::Dead] } else { state };
    let filter = Filter { tenant: whose.only(&caller), queue, kind, states, code, limit, ..Filter::default() };
    let groups = of(&serving, &caller, Action::Read, filter).await?;
    Ok(Json(Groups { groups: groups.into_iter().map(Into::into).collect() }))
}

/// The groups of a filter, as far as the caller may do this with their messages.
pub(crate) async fn of(
    serving: &Serving,
    caller: &Caller,
    action: Action,
    filter: Filter,
) -> Result<Vec<FailureGroup>, Problem> {
    let store = serving.tide.store();
    if may_on_all(caller, action, &filter) {
        return Ok(store.groups(filter).await?);
    }
    // A group does not say how many of it are on which queue: those that may be seen are asked for one by one.
    let is_meant = |tenant: &tidegate::Tenant, queue: &QueueName| {
        filter.tenant.as_ref().is_none_or(|of| of == tenant)
            && filter.queue.as_ref().is_none_or(|of| of == queue)
            && caller.sees(action, tenant, queue)
    };
    let queues = store.stats().await?.queues.into_iter();
    let queues: Vec<_> = queues.filter(|queue| is_meant(&queue.tenant, &queue.queue)).collect();
    if queues.len() > QUEUES {
        let what = format!("{} queues are more than the {QUEUES} that are put together for this token", queues.len());
        return Err(Problem::new(ProblemType::Invalid, what).fix("name one with queue="));
    }
    let mut all: BTreeMap<_, FailureGroup> = BTreeMap::new();
    for queue in queues {
        let (tenant, queue) = (Some(queue.tenant), Some(queue.queue));
        for group in store.groups(Filter { tenant, queue, limit: MOST, ..filter.clone() }).await? {
            match all.get_mut(&group.id) {
                Some(known) => add(known, &group),
                None => drop(all.insert(group.id, group)),
            }
        }
    }
    let mut groups: Vec<FailureGroup> = all.into_values().collect();
    groups.sort_by_key(|group| (std::cmp::Reverse(group.count), group.id));
    groups.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
    Ok(groups)
}

/// Whether the caller may do this with everything that a filter can find.
pub(crate) fn may_on_all(caller: &Caller, action: Action, filter: &Filter) -> bool {
    let exactly = |name: Option<&str>| name.map_or_else(|| Some(Glob::all()), |name| Glob::new(name).ok());
    let tenant = exactly(filter.tenant.as_ref().map(tidegate::Tenant::as_str));
    let queue = exactly(filter.queue.as_ref().map(QueueName::as_str));
    match (tenant, queue) {
        (Some(tenant), Some(queue)) => caller.principal.may_wherever(action, &tenant, &queue),
        (_, _) => false,
    }
}

fn add(known: &mut FailureGroup, more: &FailureGroup) {
    known.count += more.count;
    known.first_seen = known.first_seen.min(more.first_seen);
    known.last_seen = known.last_seen.max(more.last_seen);
    known.sample = known.sample.min(more.sample);
}
