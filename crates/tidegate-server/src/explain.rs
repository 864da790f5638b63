//! `GET /v1/messages/{id}/explanation`: why a message is where it is, and what happens next.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::MessageId;
use tidegate::explain::explain as explained;
use tidegate_api::{Explanation, schema};

use crate::principal::{Action, Caller};
use crate::problem::{Common, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;

/// Say why a message is where it is, and what happens next
#[utoipa::path(
    get,
    path = "/v1/messages/{id}/explanation",
    tag = "messages",
    params(("id" = schema::Id, Path, description = "Which message")),
    responses((status = 200, description = "The explanation", body = Explanation), Common, Named),
)]
pub(crate) async fn explain(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
) -> Result<Json<Explanation>, Problem> {
    let facts = serving.tide.store().explain(id).await?;
    let facts = facts
        .filter(|facts| caller.sees(Action::Read, &facts.view.message.tenant, &facts.view.message.queue))
        .ok_or_else(|| Problem::no_message(id))?;
    Ok(Json(Explanation::of(id, facts.view.state, explained(&facts))))
}
