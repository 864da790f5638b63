//! `GET /v1/parked`: the messages with an effect of which nobody knows whether it happened, with what has to be found out.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::lifecycle::State as MessageState;
use tidegate::store::{Filter, MessageView, Summary};
use tidegate::{Kind, MessageId, QueueName};
use tidegate_api::{Parked, ParkedPage, Show, schema};

use crate::paging;
use crate::principal::{Action, Caller};
use crate::problem::{Common, Problem};
use crate::serving::Serving;
use crate::url::UrlQuery;
use crate::whose::Whose;

/// So many where nothing else is asked for.
const USUAL: u32 = 50;
/// The most of one page: each is looked at as a whole.
const MOST: u32 = 200;

/// Which messages.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Only this queue.
    #[param(value_type = Option<schema::Name>)]
    queue: Option<QueueName>,
    /// Only this kind.
    #[param(value_type = Option<schema::Name>)]
    kind: Option<Kind>,
    /// Only this reason of being parked.
    code: Option<String>,
    /// Of every tenant that this token may read, and not only of the one that the request is about.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    all_tenants: bool,
    /// Only messages after this one: `next` of the page before.
    #[param(value_type = Option<schema::Id>)]
    after: Option<MessageId>,
    /// At most so many; 50 where it is left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
}

/// List parked messages
///
/// With their open effects and the evidence that came too late to be applied: ask the other side for the key of the effect,
/// then resolve it. Contents are masked; `GET /v1/messages/{id}?reveal=payload` shows them. A page may hold fewer messages
/// than were asked for, and `next` says whether more follow.
#[utoipa::path(
    get,
    path = "/v1/parked",
    tag = "operators",
    params(Asked, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose messages")),
    responses((status = 200, description = "A page of parked messages", body = ParkedPage), Common),
)]
pub(crate) async fn parked(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<ParkedPage>, Problem> {
    let limit = paging::limit(asked.limit, USUAL, MOST.min(serving.limits.page))?;
    let Asked { queue, kind, code, all_tenants, after, .. } = asked;
    tidegate_api::check_code(code.as_deref())?;
    let whose = Whose { all_tenants };
    whose.demand(&caller, queue.as_ref())?;
    let filter = Filter {
        tenant: whose.only(&caller),
        queue,
        kind,
        code,
        states: vec![MessageState::Parked],
        after,
        limit,
        ..Filter::default()
    };
    let found = serving.tide.store().list(filter).await?;
    let next = found.last().map(|last| last.id).filter(|_| paging::is_full(found.len(), limit));
    let seen = |summary: &Summary| caller.sees(Action::Read, &summary.tenant, &summary.queue);
    let found: Vec<Summary> = found.into_iter().filter(seen).collect();
    let views = serving.tide.store().inspect(found.iter().map(|summary| summary.id).collect()).await?;
    let views: HashMap<MessageId, MessageView> =
        views.into_iter().flatten().map(|view| (view.message.id, view)).collect();
    // Resolved since the list was read: it is parked no more.
    let parked = |summary: Summary| {
        let view = views.get(&summary.id).filter(|view| view.state == MessageState::Parked)?;
        Some(Parked::of(summary, view, Show::default()))
    };
    Ok(Json(ParkedPage { messages: found.into_iter().filter_map(parked).collect(), next }))
}
