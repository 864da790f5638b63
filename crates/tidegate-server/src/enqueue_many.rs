//! `POST /v1/messages`: many messages at once, each with a verdict of its own.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate::message::NewMessage;
use tidegate::{StoreError, trace};
use tidegate_api::{Enqueue, EnqueueMany, EnqueueResult, EnqueueResults, IntakeDefaults, ProblemType, schema};
use tracing::Span;

use crate::body::{JsonBody, malformed};
use crate::enqueue::{refused, verdict_of};
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;
use crate::strict::{self, Wrong};
use crate::{idempotency, trace as trace_context};

/// The body before its items are read: one that cannot be read is refused alone.
#[derive(Debug, Deserialize)]
pub(crate) struct Items {
    messages: Vec<Box<RawValue>>,
}

/// Enqueue many messages
///
/// Each names its queue and its key, and has a verdict in `results`, in the order of the request; one that is refused holds
/// no other back. All that were stored are on disk when this answers. A 503 leaves open which of them are: send the same
/// request again.
#[utoipa::path(
    post,
    path = "/v1/messages",
    tag = "messages",
    params(
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose messages they are, where they do not say it"),
        ("traceparent" = Option<String>, Header, description = "The trace they belong to (W3C), where they do not say it"),
        ("tracestate" = Option<String>, Header, description = "The state of that trace"),
    ),
    request_body = EnqueueMany,
    responses(
        (status = 200, description = "A verdict for each message", body = EnqueueResults),
        Common, Bodied,
    ),
)]
pub(crate) async fn enqueue_many(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(items): JsonBody<Items>,
) -> Result<Json<EnqueueResults>, Problem> {
    no_key(&headers)?;
    let defaults =
        IntakeDefaults { tenant: caller.tenant.clone(), queue: None, key: None, headers: trace_context::of(&headers) };
    enough(items.messages.len(), serving.limits.batch)?;
    let read = |(index, raw): (usize, Box<RawValue>)| -> Result<NewMessage, Problem> {
        let message: Enqueue = strict::read(raw.get().as_bytes(), serving.limits.depth).map_err(|wrong| {
            let path = wrong.path.replacen('$', &format!("$.messages[{index}]"), 1);
            malformed(&Wrong { path, ..wrong })
        })?;
        message.into_message(&defaults, &*serving.random).map_err(refused)
    };
    let messages = items.messages.into_iter().enumerate().map(read).collect();
    Ok(Json(take(&serving, &caller, messages).await?))
}

/// Stores those that are messages of this caller, and answers with a verdict for each.
pub(crate) async fn take(
    serving: &Serving,
    caller: &Caller,
    messages: Vec<Result<NewMessage, Problem>>,
) -> Result<EnqueueResults, Problem> {
    let mut batch = Vec::with_capacity(messages.len());
    let mut places: Vec<Result<Span, Problem>> = Vec::with_capacity(messages.len());
    for message in messages {
        places.push(match allowed(serving, caller, message).await {
            Ok(mut message) => {
                let span = trace::enqueue(&mut message);
                batch.push(message);
                Ok(span)
            }
            Err(problem) => Err(problem),
        });
    }
    let verdicts = if batch.is_empty() { Vec::new() } else { serving.tide.store().enqueue(batch).await? };
    let mut verdicts = verdicts.into_iter();
    let no_verdict = || Err(StoreError::unavailable("the store gave no verdict"));
    let result = |place: Result<Span, Problem>| {
        let verdict = place.and_then(|span| {
            let verdict = verdicts.next().unwrap_or_else(no_verdict);
            trace::enqueued(&span, &verdict);
            verdict_of(verdict)
        });
        verdict.map_or_else(|problem| EnqueueResult::from(serving.wire(problem)), EnqueueResult::from)
    };
    Ok(EnqueueResults { results: places.into_iter().map(result).collect() })
}

async fn allowed(
    serving: &Serving,
    caller: &Caller,
    message: Result<NewMessage, Problem>,
) -> Result<NewMessage, Problem> {
    let message = message?;
    caller.may(Action::Produce, &message.tenant, &message.queue)?;
    serving.admit(caller, &message).await?;
    Ok(message)
}

/// A key of the request would be the key of which of its messages?
pub(crate) fn no_key(headers: &HeaderMap) -> Result<(), Problem> {
    match idempotency::key(headers)? {
        None => Ok(()),
        Some(_) => Err(idempotency::malformed("one Idempotency-Key cannot be the key of many messages")
            .fix("each message has its own key, and the request needs none: sent again, it does nothing twice")),
    }
}

/// Fails when there are more items than a request may bring.
pub(crate) fn enough(count: usize, most: usize) -> Result<(), Problem> {
    if count <= most {
        return Ok(());
    }
    Err(Problem::new(ProblemType::TooLarge, format!("{count} items are over the limit of {most}"))
        .fix(format!("send at most {most} items at once")))
}
