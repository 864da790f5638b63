//! `POST /v1/messages/redrive`: puts ended messages back to ready, each with attempt 1 of a new generation.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store::{self, REDRIVE_CHUNK};
use tidegate_api::{ActResult, Redrive, Redriven};

use crate::acting::Batch;
use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::operations::{checked, made_name};
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// Redrive messages
///
/// Dead letters; cancelled ones nothing was ever tried of; failed ones with `again` and a reason. At most 1000, each with a
/// verdict in `results`, in the order of the request. Sent again under the same `operation` it redrives nothing twice. For
/// more of them, or with care, begin an operation: `POST /v1/operations`.
#[utoipa::path(
    post,
    path = "/v1/messages/redrive",
    tag = "operators",
    request_body = Redrive,
    responses((status = 200, description = "A verdict for each message", body = Redriven), Common, Bodied),
)]
pub(crate) async fn redrive(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(asked): JsonBody<Redrive>,
) -> Result<Json<Redriven>, Problem> {
    enough(asked.ids.len(), REDRIVE_CHUNK.min(serving.limits.batch))?;
    let act = caller.act(asked.reason, asked.actor.as_deref());
    let operation = match asked.operation {
        Some(name) => checked(name)?,
        None => made_name(&serving),
    };
    let batch = Batch::of(&serving, &caller, asked.ids).await?;
    let ids = batch.allowed();
    let verdicts = if ids.is_empty() {
        Vec::new()
    } else {
        let request = store::Redrive { ids, again: asked.again, operation: operation.clone(), act };
        serving.tide.store().redrive(request).await?
    };
    Ok(Json(Redriven { operation, results: batch.results(&serving, verdicts, |id, _| ActResult::done(id)) }))
}
