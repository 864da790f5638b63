//! Deposits over HTTP.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tidegate::store::{Act, Enqueued};
use tidegate::{Message, MessageId, QueueName, Sent, Tidegate};

use super::Request;
use super::problem::Problem;
use crate::service::Service;
use crate::steps::{Authorise, Told, View, read_flow};

/// A deposit request is a few hundred bytes.
const GREATEST_BODY: usize = 64 * 1024;
/// A client that wants to wait longer asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// How an intake is started.
#[derive(Clone, Debug, Default)]
pub struct IntakeOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The most deposits that may wait for their authorisation; beyond it 429. Without it no limit is set.
    pub max_depth: Option<u64>,
}

/// Starts to listen.
///
/// # Errors
/// The limit cannot be set, or the port is taken.
///
/// # Cancel safety
/// Safe: nothing was started before it returned; a limit may have been set.
pub async fn start(tide: Tidegate, options: IntakeOptions) -> anyhow::Result<Service> {
    if options.max_depth.is_some() {
        let queue = QueueName::new(Authorise::QUEUE)?;
        let act = Act { actor: "intake".to_owned(), reason: "the limit it was started with".to_owned() };
        tide.limit(&queue, options.max_depth, act).await?;
    }
    let router = Router::new()
        .route("/deposits", post(take))
        .route("/deposits/{id}", get(look))
        .layer(DefaultBodyLimit::max(GREATEST_BODY))
        .with_state(tide);
    Service::of_router("intake", options.port, router)
}

async fn take(State(tide): State<Tidegate>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let key = key_of(&headers)?;
    let request: Request = serde_json::from_slice(&body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", format!("the body is no deposit request: {error}"))
    })?;
    let message = request.into_message(Some(&key))?;
    let sent = tide.enqueue(message).await?;
    match sent.enqueued() {
        Some(Enqueued::New { .. }) => Ok(accepted(&sent, &key, false)),
        Some(Enqueued::Existing { .. } | Enqueued::Replayed { .. }) => again(&tide, &sent, &key).await,
        Some(Enqueued::Stale) | None => {
            let detail = format!("the key {key:?} is older than answers are kept");
            Err(Problem::new(StatusCode::CONFLICT, "stale", detail))
        }
    }
}

/// The answer to a key that is known: what became of its deposit, or again that it was accepted.
async fn again(tide: &Tidegate, sent: &Sent<Authorise>, key: &str) -> Result<Response, Problem> {
    let view = read_flow(tide, sent.id()).await?;
    match view {
        Some(view) if view.state.is_final() => {
            let mut response = told(StatusCode::OK, &view);
            response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Some(_) | None => Ok(accepted(sent, key, true)),
    }
}

fn accepted(sent: &Sent<Authorise>, key: &str, replayed: bool) -> Response {
    let view = View { id: sent.id(), deposit: key.to_owned(), state: Told::Processing, code: None };
    let mut response = told(StatusCode::ACCEPTED, &view);
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

fn told(status: StatusCode, view: &View) -> Response {
    let body = serde_json::to_string(view).expect("a view is plain data");
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let location = HeaderValue::try_from(format!("/deposits/{}", view.id)).expect("an id is plain ASCII");
    headers.insert(header::LOCATION, location);
    response
}

/// The header's value, without the quotes of a structured field if it has them.
fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let missing = || {
        let detail = "the header Idempotency-Key is missing; hint: send one key per deposit, and the same key with \
                      every repetition of the request";
        Problem::new(StatusCode::BAD_REQUEST, "key_missing", detail)
    };
    let value = headers.get(IDEMPOTENCY_KEY).ok_or_else(missing)?;
    let text = value.to_str().map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_key", "the header Idempotency-Key is not visible ASCII")
    })?;
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if bare.is_empty() { Err(missing()) } else { Ok(bare.to_owned()) }
}

#[derive(Deserialize)]
struct Look {
    wait: Option<String>,
}

async fn look(
    State(tide): State<Tidegate>,
    Path(id): Path<String>,
    Query(look): Query<Look>,
) -> Result<Response, Problem> {
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "not_found", format!("no deposit {id:?}"));
    let id: MessageId = id.parse().map_err(|_| not_found())?;
    let wait = look.wait.as_deref().map(duration).transpose()?.unwrap_or_default().min(LONGEST_WAIT);
    let mut view = read_flow(&tide, id).await?.ok_or_else(not_found)?;
    if view.state == Told::Processing && !wait.is_zero() {
        tide.sent::<Authorise>(id).flow(wait).await?;
        view = read_flow(&tide, id).await?.ok_or_else(not_found)?;
    }
    let mut response = told(StatusCode::OK, &view);
    response.headers_mut().remove(header::LOCATION);
    Ok(response)
}

/// `2s`, `500ms` or bare seconds.
fn duration(text: &str) -> Result<Duration, Problem> {
    let (digits, millis_each) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1000),
        (None, None) => (text, 1000),
    };
    match digits.parse::<u32>() {
        Ok(count) => Ok(Duration::from_millis(u64::from(count) * millis_each)),
        Err(_) => {
            let detail = format!("wait is {text:?}; hint: a duration such as 2s or 500ms");
            Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_wait", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_written_with_or_without_a_unit() {
        let cases =
            [("2s", Some(2_000)), ("500ms", Some(500)), ("3", Some(3_000)), ("", None), ("2m", None), ("-1s", None)];
        for (text, expected) in cases {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
    }
}
