//! `GET /v1/queues`, `GET /v1/queues/{queue}`, `PATCH /v1/queues/{queue}`: what waits where, and pausing, resuming and
//! limiting a queue.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store::{self, QueueStats};
use tidegate::{QueueName, Tenant};
use tidegate_api::{ChangeQueue, ProblemType, Queue, Queues, schema};

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::{UrlPath, UrlQuery};
use crate::whose::Whose;

/// List queues
///
/// With what waits in them and for how long, exact as of one moment. Queues that this token may not read are left out.
#[utoipa::path(
    get,
    path = "/v1/queues",
    tag = "operators",
    params(Whose, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose queues")),
    responses((status = 200, description = "Queues, by tenant and name", body = Queues), Common),
)]
pub(crate) async fn list_queues(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(whose): UrlQuery<Whose>,
) -> Result<Json<Queues>, Problem> {
    whose.demand(&caller, None)?;
    let queues = serving.tide.store().stats().await?.queues.into_iter();
    let is_asked_for = |queue: &QueueStats| whose.includes(&caller, &queue.tenant, &queue.queue);
    Ok(Json(Queues { queues: queues.filter(is_asked_for).map(Queue::from).collect() }))
}

/// Read one queue
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}",
    tag = "operators",
    params(
        ("queue" = schema::Name, Path, description = "Which queue"),
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose queue"),
    ),
    responses((status = 200, description = "The queue", body = Queue), Common, Named),
)]
pub(crate) async fn get_queue(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(queue): UrlPath<QueueName>,
) -> Result<Json<Queue>, Problem> {
    caller.may(Action::Read, &caller.tenant, &queue)?;
    one(&serving, &caller.tenant, &queue).await.map(Json)
}

/// Pause, resume or limit a queue
///
/// Paused, nothing is claimed from it; what runs goes on, and messages are still taken. Acts on a queue that nobody used yet
/// as well. With both members the limit is set first; each is a commit of its own. Repeating it is harmless.
#[utoipa::path(
    patch,
    path = "/v1/queues/{queue}",
    tag = "operators",
    params(
        ("queue" = schema::Name, Path, description = "Which queue"),
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose queue"),
    ),
    request_body = ChangeQueue,
    responses((status = 200, description = "The queue as it is now", body = Queue), Common, Named, Bodied),
)]
pub(crate) async fn change_queue(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(queue): UrlPath<QueueName>,
    JsonBody(asked): JsonBody<ChangeQueue>,
) -> Result<Json<Queue>, Problem> {
    let tenant = caller.tenant.clone();
    caller.may(Action::Operate, &tenant, &queue)?;
    let changes = asked.changes();
    if changes.is_empty() {
        return Err(Problem::new(ProblemType::Invalid, "the request changes nothing")
            .fix("send \"paused\": true or false, or \"max_depth\": a number or null"));
    }
    serving.admit_queue(&caller, &tenant, &queue).await?;
    for change in changes {
        let act = caller.act(asked.reason.clone(), asked.actor.as_deref());
        let request = store::ChangeQueue { tenant: tenant.clone(), queue: queue.clone(), change, act };
        serving.tide.store().pause(request).await?;
    }
    one(&serving, &tenant, &queue).await.map(Json)
}

async fn one(serving: &Serving, tenant: &Tenant, queue: &QueueName) -> Result<Queue, Problem> {
    let queues = serving.tide.store().stats().await?.queues;
    let found = queues.into_iter().find(|known| known.tenant == *tenant && known.queue == *queue);
    found.map(Queue::from).ok_or_else(|| {
        Problem::new(ProblemType::NotFound, format!("no message has ever been on queue {queue}"))
            .fix("the queues there are: GET /v1/queues")
    })
}
