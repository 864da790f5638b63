//! `POST /v1/messages/cancel`: calls messages off that have not taken effect.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store;
use tidegate_api::{ActResult, ActResults, Cancel};

use crate::acting::Batch;
use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// Cancel messages
///
/// A message that waits is called off at once; of one that runs, or whose effect is open, the wish is kept, and `cancelled`
/// says `requested`. One that took effect is refused; one that is cancelled already is answered so again. Each has a
/// verdict in `results`, in the order of the request.
#[utoipa::path(
    post,
    path = "/v1/messages/cancel",
    tag = "operators",
    request_body = Cancel,
    responses((status = 200, description = "A verdict for each message", body = ActResults), Common, Bodied),
)]
pub(crate) async fn cancel(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<Cancel>,
) -> Result<Json<ActResults>, Problem> {
    enough(asked.ids.len(), serving.limits.batch)?;
    let act = caller.act(asked.reason, asked.actor.as_deref());
    let batch = Batch::of(&serving, &caller, asked.ids).await?;
    let ids = batch.allowed();
    let verdicts = if ids.is_empty() {
        Vec::new()
    } else {
        serving.tide.store().cancel(store::Cancel { ids, release_key: asked.release_key, act }).await?
    };
    Ok(Json(ActResults { results: batch.results(&serving, verdicts, ActResult::cancelled) }))
}
