//! `GET /v1/messages`: messages by filter, a page at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Deserializer};
use tidegate::group::GroupId;
use tidegate::lifecycle::State as MessageState;
use tidegate::store::Filter;
use tidegate::{Kind, MessageId, QueueName};
use tidegate_api::{Page, ProblemType, Summary, schema};

use crate::principal::{Action, Caller};
use crate::problem::{Common, Problem};
use crate::serving::Serving;
use crate::url::UrlQuery;
use crate::whose::Whose;

/// So many where nothing else is asked for.
const PAGE: u32 = 50;

/// Which messages.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only this queue.
    #[param(value_type = Option<schema::Name>)]
    queue: Option<QueueName>,
    /// Only this kind.
    #[param(value_type = Option<schema::Name>)]
    kind: Option<Kind>,
    /// Only these states, separated by commas; all where it is left out.
    #[param(value_type = Option<Vec<schema::StateName>>, style = Form, explode = false)]
    #[serde(default, deserialize_with = "states")]
    state: Vec<MessageState>,
    /// Only this code of a failure, or reason of being dead or parked.
    code: Option<String>,
    /// Only this group of failures.
    #[param(value_type = Option<schema::Group>)]
    group: Option<GroupId>,
    /// Also dead letters that were given up.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    discarded: bool,
    /// Of every tenant that this token may read, and not only of the one that the request is about.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    all_tenants: bool,
    /// Only messages after this one: `next` of the page before.
    #[param(value_type = Option<schema::Id>)]
    after: Option<MessageId>,
    /// At most so many, and at most 1000; 50 where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

pub(crate) fn states<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<MessageState>, D::Error> {
    let list = String::deserialize(deserializer)?;
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

/// List messages
///
/// By ascending id, which is the order in which they were enqueued. Without a queue, those of every queue that this token
/// may read: a page may then hold fewer messages than were asked for, and `next` says whether more follow.
#[utoipa::path(
    get,
    path = "/v1/messages",
    tag = "messages",
    params(Asked),
    responses((status = 200, description = "A page of messages", body = Page), Common),
)]
pub(crate) async fn list(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Page>, Problem> {
    let limit = asked.limit.unwrap_or(PAGE);
    let most = serving.limits.page;
    if limit == 0 || limit > most {
        let what = format!("a page of {limit} messages is not one of 1 to {most}");
        return Err(Problem::new(ProblemType::Invalid, what).fix("ask for less, and go on at `next`"));
    }
    tidegate_api::check_code(asked.code.as_deref())?;
    let whose = Whose { all_tenants: asked.all_tenants };
    whose.demand(&caller, asked.queue.as_ref())?;
    let filter = Filter {
        tenant: whose.only(&caller),
        queue: asked.queue,
        kind: asked.kind,
        states: asked.state,
        code: asked.code,
        group: asked.group,
        discarded: asked.discarded,
        after: asked.after,
        limit,
    };
    let found = serving.tide.store().list(filter).await?;
    let full = u32::try_from(found.len()).unwrap_or(u32::MAX) >= limit;
    let next = found.last().map(|last| last.id).filter(|_| full);
    let seen = |summary: &tidegate::store::Summary| caller.sees(Action::Read, &summary.tenant, &summary.queue);
    let messages = found.into_iter().filter(seen).map(Summary::from).collect();
    Ok(Json(Page { messages, next }))
}
