//! `PATCH /v1/messages/{id}`: changes the payload of a dead letter, and says what changed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate::{MessageId, store};
use tidegate_api::{Edit, Edited, schema};

use crate::acting::one;
use crate::body::JsonBody;
use crate::get::Reveal;
use crate::inspect::note;
use crate::principal::{Action, Caller};
use crate::problem::{Acting, Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};

/// What may be asked for along with an edit.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// `payload` shows both payloads and what differs between them. Needs the right to reveal, and is written down.
    #[param(value_type = Option<Reveal>, inline)]
    reveal: Option<Reveal>,
}

/// Change the payload of a dead letter
///
/// Refused once an effect of it happened or may have. Its key keeps the payload it came with: its producer's repeats still
/// match. Redrive it afterwards. Repeating an edit is harmless.
#[utoipa::path(
    patch,
    path = "/v1/messages/{id}",
    tag = "operators",
    params(("id" = schema::Id, Path, description = "Which message"), Asked),
    request_body = Edit,
    responses((status = 200, description = "What changed", body = Edited), Common, Named, Bodied, Acting),
)]
pub(crate) async fn edit(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    UrlQuery(asked): UrlQuery<Asked>,
    JsonBody(edit): JsonBody<Edit>,
) -> Result<Json<Edited>, Problem> {
    let view = one(&serving, &caller, id).await?;
    let payload = edit.payload()?;
    let show = match asked.reveal {
        None => false,
        Some(Reveal::Payload) => {
            caller.may(Action::Reveal, &view.message.tenant, &view.message.queue)?;
            note(&serving, &caller, vec![id]).await?;
            true
        }
    };
    let act = caller.act(edit.reason, edit.actor.as_deref());
    let edited = serving.tide.store().edit(store::Edit { id, payload, act }).await?;
    Ok(Json(Edited::of(id, &edited, show)))
}
