//! `POST /v1/messages/{id}/effects/resolve`: says what became of a parked effect. A person does, or a gateway's webhook.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::{MessageId, store};
use tidegate_api::{Resolve, Resolved, schema};

use crate::acting::one;
use crate::body::JsonBody;
use crate::principal::Caller;
use crate::problem::{Acting, Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;

/// Resolve a parked effect
///
/// It happened, with what the other side returned; or it did not, which is believed only from `quarantined_until` on. When
/// all open effects of the message are resolved it goes on. Resolving twice alike is resolving once.
#[utoipa::path(
    post,
    path = "/v1/messages/{id}/effects/resolve",
    tag = "operators",
    params(("id" = schema::Id, Path, description = "Which message")),
    request_body = Resolve,
    responses((status = 200, description = "Where the message stands now", body = Resolved), Common, Named, Bodied, Acting),
)]
pub(crate) async fn resolve(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    JsonBody(asked): JsonBody<Resolve>,
) -> Result<Json<Resolved>, Problem> {
    one(&serving, &caller, id).await?;
    let (effect, resolution) = (asked.effect_id(), asked.resolution()?);
    let act = caller.act(asked.reason, asked.actor.as_deref());
    let resolved = serving.tide.store().resolve(store::Resolve { id, effect, resolution, act }).await?;
    Ok(Json(Resolved::of(id, resolved)))
}
