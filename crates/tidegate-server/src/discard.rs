//! `POST /v1/messages/discard`: gives dead letters up.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store::{self, REDRIVE_CHUNK};
use tidegate_api::{ActResult, ActResults, Discard};

use crate::acting::Batch;
use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// Discard dead letters
///
/// They leave the desk, and are deleted after their retention. At most 1000, each with a verdict in `results`, in the order
/// of the request. Discarding twice is discarding once.
#[utoipa::path(
    post,
    path = "/v1/messages/discard",
    tag = "operators",
    request_body = Discard,
    responses((status = 200, description = "A verdict for each message", body = ActResults), Common, Bodied),
)]
pub(crate) async fn discard(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<Discard>,
) -> Result<Json<ActResults>, Problem> {
    enough(asked.ids.len(), REDRIVE_CHUNK.min(serving.limits.batch))?;
    let act = caller.act(asked.reason, asked.actor.as_deref());
    let batch = Batch::of(&serving, &caller, asked.ids).await?;
    let ids = batch.allowed();
    let verdicts =
        if ids.is_empty() { Vec::new() } else { serving.tide.store().discard(store::Discard { ids, act }).await? };
    Ok(Json(ActResults { results: batch.results(&serving, verdicts, |id, _| ActResult::done(id)) }))
}
