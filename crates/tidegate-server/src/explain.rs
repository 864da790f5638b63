//! `GET /v1/messages/{id}/explanation`: why a message is where it is, and what happens next.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::MessageId;
use tidegate::explain::explain as explained;
use tidegate_api::{Explanation, Facts, schema};

use crate::get::{Reveal, show};
use crate::principal::{Action, Caller};
use crate::problem::{Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};

/// What may be asked for along with an explanation.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Also what it was concluded from: the message, the policy of its kind.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    facts: bool,
    /// `payload` shows the contents of the message of the facts. Needs the right to reveal, and is written down.
    #[param(value_type = Option<Reveal>, inline)]
    reveal: Option<Reveal>,
}

/// Say why a message is where it is, and what happens next
#[utoipa::path(
    get,
    path = "/v1/messages/{id}/explanation",
    tag = "messages",
    params(("id" = schema::Id, Path, description = "Which message"), Asked),
    responses((status = 200, description = "The explanation", body = Explanation), Common, Named),
)]
pub(crate) async fn explain(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    UrlQuery(asked): UrlQuery<Asked>,
) -> Result<Json<Explanation>, Problem> {
    let facts = serving.tide.store().explain(id).await?;
    let facts = facts
        .filter(|facts| caller.sees(Action::Read, &facts.view.message.tenant, &facts.view.message.queue))
        .ok_or_else(|| Problem::no_message(id))?;
    let explanation = Explanation::of(id, facts.view.state, explained(&facts));
    if !asked.facts {
        return Ok(Json(explanation));
    }
    let show = show(&serving, &caller, &facts.view, asked.reveal).await?;
    Ok(Json(Explanation { facts: Some(Facts::of(&facts, show)), ..explanation }))
}
