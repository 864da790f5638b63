//! `GET /v1/flows/{id}`: a message and all that followed from it, at once or when nothing of it runs any more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::MessageId;
use tidegate_api::{Flow, schema};

use crate::get::visible;
use crate::principal::{Action, Caller};
use crate::problem::{Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};
use crate::wait::{self, Span};

/// What may be asked for along with a flow.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Answer when nothing of the flow is ready or leased any more, or after this time, whichever comes first. At most
    /// 60 s.
    #[param(value_type = Option<schema::Wait>)]
    wait: Option<Span>,
}

/// Read a flow, or wait until nothing of it runs any more
///
/// A flow is a message and all that followed from it, directly or not. Messages that this token may not read are left out of
/// the list; whether the flow runs and whether it completed is said of all of them.
#[utoipa::path(
    get,
    path = "/v1/flows/{id}",
    tag = "messages",
    params(("id" = schema::Id, Path, description = "The first message of the flow"), Asked),
    responses((status = 200, description = "The flow", body = Flow), Common, Named),
)]
pub(crate) async fn flow(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Flow>, Problem> {
    let wait = wait::allowed(asked.wait, &serving.limits)?;
    visible(&serving.tide, &caller, id).await?;
    let found = if wait.is_zero() {
        serving.tide.flow(id).await?
    } else {
        tokio::select! {
            found = serving.tide.wait_flow(id, wait) => found?,
            () = serving.stopping.stopped() => serving.tide.flow(id).await?,
        }
    };
    let mut flow = Flow::of(id, found);
    flow.messages.retain(|summary| caller.sees(Action::Read, &summary.tenant, &summary.queue));
    Ok(Json(flow))
}
