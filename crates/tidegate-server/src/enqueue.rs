//! `POST /v1/queues/{queue}/messages`: one message, durable when it is answered.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tidegate::message::NewMessage;
use tidegate::{QueueName, StoreError, store};
use tidegate_api::{Enqueue, Enqueued, IntakeDefaults, NoMessage, ProblemType, Verdict, schema};
use tracing::Instrument as _;

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Intake, Named, Problem};
use crate::serving::Serving;
use crate::trace;
use crate::url::UrlPath;
use crate::{idempotency, observe};

/// Enqueue one message
///
/// It is on disk when this answers. The key (header `Idempotency-Key`, or the member `key`) names what is to happen once:
/// sent again, the same request is answered and starts no second work. While there is no answer yet, that is 202 with where
/// the message stands; once there is one, it is 200 with that answer, byte for byte.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/messages",
    tag = "messages",
    params(
        ("queue" = schema::Name, Path, description = "Which line it waits in"),
        ("Idempotency-Key" = Option<String>, Header, description = "The key, as a quoted string or bare: 1 to 255 visible ASCII characters"),
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose message it is"),
        ("traceparent" = Option<String>, Header, description = "The trace it belongs to (W3C), carried to the handler"),
        ("tracestate" = Option<String>, Header, description = "The state of that trace"),
    ),
    request_body = Enqueue,
    responses(
        (status = 202, description = "It is stored, or it was before and has no answer yet", body = Enqueued, headers(
            ("Location" = String, description = "The address of the message"),
            ("Idempotency-Replayed" = String, description = "`true` where the key was known"),
        )),
        (status = 200, description = "The key is known and answered: this is the answer", body = Enqueued, headers(
            ("Location" = String, description = "The address of the message"),
            ("Idempotency-Replayed" = String, description = "`true`"),
        )),
        Common, Bodied, Named, Intake,
    ),
)]
pub(crate) async fn enqueue(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(queue): UrlPath<QueueName>,
    headers: HeaderMap,
    JsonBody(message): JsonBody<Enqueue>,
) -> Result<Response, Problem> {
    let defaults = IntakeDefaults {
        tenant: caller.tenant.clone(),
        queue: Some(queue),
        key: idempotency::key(&headers)?,
        headers: trace::of(&headers),
    };
    let message = message.into_message(&defaults, &*serving.random).map_err(refused)?;
    take(&serving, &caller, message).await
}

/// Stores a message of this caller, and answers with the verdict.
pub(crate) async fn take(serving: &Serving, caller: &Caller, mut message: NewMessage) -> Result<Response, Problem> {
    caller.may(Action::Produce, &message.tenant, &message.queue)?;
    serving.admit(caller, &message).await?;
    let span = tidegate::trace::enqueue(&mut message);
    let verdict = serving.tide.store().enqueue(vec![message]).instrument(span.clone()).await?.pop();
    let no_verdict = || Err(StoreError::unavailable("the store gave no verdict"));
    let verdict = verdict.unwrap_or_else(no_verdict);
    tidegate::trace::enqueued(&span, &verdict);
    let enqueued = verdict_of(verdict)?;
    observe::about(enqueued.id);
    let location = serving.address(format_args!("/v1/messages/{}", enqueued.id));
    let location = HeaderValue::from_str(&location).map_err(|_| {
        Problem::new(ProblemType::Internal, "the router is mounted under a prefix that cannot stand in a header")
    })?;
    let known = match enqueued.result {
        Verdict::Added => None,
        Verdict::Known | Verdict::Replayed => {
            Some([(HeaderName::from_static(idempotency::REPLAYED), HeaderValue::from_static("true"))])
        }
    };
    let status = StatusCode::from_u16(enqueued.status()).unwrap_or(StatusCode::ACCEPTED);
    Ok((status, [(header::LOCATION, location)], known, Json(enqueued)).into_response())
}

/// The verdict of a store as it is answered.
pub(crate) fn verdict_of(verdict: Result<store::Enqueued, StoreError>) -> Result<Enqueued, Problem> {
    Enqueued::of(&verdict?).ok_or_else(|| {
        Problem::new(
            ProblemType::StaleKey,
            "the key is unknown and older than the retention: it may have been done and forgotten",
        )
    })
}

/// Why a message is none.
pub(crate) fn refused(why: NoMessage) -> Problem {
    match why {
        NoMessage::KeyMissing => Problem::new(ProblemType::KeyMissing, "the message has no idempotency key"),
        NoMessage::TwoKeys => idempotency::malformed("the message has two keys that are not the same")
            .fix("send the header Idempotency-Key, the member \"key\" or \"unique_key\": one of them"),
        NoMessage::Invalid(error) => error.into(),
    }
}
