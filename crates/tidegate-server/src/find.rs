//! `GET /v1/queues/{queue}/keys/{key}`: the message of a key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::{IdempotencyKey, QueueName};
use tidegate_api::{Message, ProblemType, schema};

use crate::get::{show, visible};
use crate::principal::{Action, Caller};
use crate::problem::{Common, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;

/// Find the message of a key
///
/// A key belongs to its queue. It is forgotten when the retention after the end of its message is over.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}/keys/{key}",
    tag = "messages",
    params(
        ("queue" = schema::Name, Path, description = "The queue of the key"),
        ("key" = schema::Key, Path, description = "The key, percent-encoded"),
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose key it is"),
    ),
    responses((status = 200, description = "The message", body = Message), Common, Named),
)]
pub(crate) async fn find(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath((queue, key)): UrlPath<(QueueName, IdempotencyKey)>,
) -> Result<Json<Message>, Problem> {
    caller.may(Action::Read, &caller.tenant, &queue)?;
    let found = serving.tide.store().find(caller.tenant.clone(), queue.clone(), key).await?;
    let id = found.ok_or_else(|| {
        Problem::new(ProblemType::NotFound, format!("queue {queue} knows no such key"))
            .fix("a key belongs to its queue; it is forgotten when its retention is over")
    })?;
    let view = visible(&serving.tide, &caller, id).await?;
    let show = show(&serving, &caller, &view, None).await?;
    Ok(Json(Message::of(&view, show)))
}
