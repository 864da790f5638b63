//! Around every request: its id, one line in the log, and its share of the metrics.
//!
//! Nothing of a request is logged but its method, the route as it stands in the code, status, duration, its id and that of
//! the message it is about: paths hold keys, headers hold tokens, bodies hold payloads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tidegate::MessageId;
use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, debug, error_span, info, warn};

use crate::metrics::{HttpMetrics, OTHER, Rejected, known as method_word};
use crate::serving::Serving;
use crate::trace;

/// Names a request in the answer and in the log; a client may choose it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// By which a client tells a server of another version from something that is none.
const VERSION: HeaderName = HeaderName::from_static(tidegate_api::VERSION_HEADER);
/// The longest that is taken from a client.
const LONGEST_ID: usize = 64;
/// The part of the log that has a line for each request: to be switched on and off by itself.
const REQUESTS: &str = "tidegate_server::requests";
/// The field of the log that says which message a request is about.
const MESSAGE_ID: &str = "message.id";

/// The middleware. It is laid over routes, so that it knows which one was found.
pub(crate) async fn observe(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or(OTHER, MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = request_id(&serving, &request);
    // At the highest level, so that whatever is told from within it has the ids, however little is told.
    let span = error_span!(
        "request",
        request.id = id,
        http.request.method = method_word(&method),
        http.route = route,
        message.id = Empty
    );
    if let Some(message) = message_of(&route, request.uri().path()) {
        span.record(MESSAGE_ID, display(message));
    }
    // Of one message, or of events: the messages of a batch have nothing to do with each other, and begin a trace each.
    let begins = method == Method::POST && (route.ends_with("{queue}/messages") || route.ends_with("{queue}/events"));
    let brought = if is_asked_all_the_time(&route) { BTreeMap::new() } else { trace::of(request.headers()) };
    // Around the one that the log has: handlers tell the log's, the innermost, what the request is about.
    let traced = tidegate::trace::request(method_word(&method), &route, &brought, begins);
    let under_way = UnderWay {
        http: Arc::clone(&serving.http),
        route,
        method,
        begun: Instant::now(),
        span: span.clone(),
        traced: traced.clone(),
        is_answered: false,
    };
    let mut response = next.run(request).instrument(span).instrument(traced).await;
    if let Some(reason) = Rejected::why(&response) {
        serving.http.rejected(reason);
    }
    under_way.answered(response.status());
    let id = HeaderValue::from_str(&id).expect("made of characters that a header may have");
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert(VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}

/// Says in the log which message the request at hand is about, once that is known.
pub(crate) fn about(message: MessageId) {
    Span::current().record(MESSAGE_ID, display(message));
}

/// The message that the address names, if it names one: it may as well name nonsense, which no log needs.
fn message_of(route: &str, path: &str) -> Option<MessageId> {
    // From the end: a router may be mounted below a prefix that one of the two does not have.
    let mut parts = route.rsplit('/').zip(path.rsplit('/'));
    parts.find(|(hole, _)| *hole == "{id}").and_then(|(_, id)| id.parse().ok())
}

/// The client's, if it is one that can stand in a log as it is; otherwise a new one.
fn request_id(serving: &Serving, request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        let is_fine = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(is_fine)
    };
    given.filter(is_plain).map_or_else(
        || {
            let mut bytes = [0; 8];
            serving.random.fill(&mut bytes);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        },
        str::to_owned,
    )
}

/// A request between its head and its answer. Dropped before, its client has left.
struct UnderWay {
    http: Arc<HttpMetrics>,
    route: String,
    method: Method,
    begun: Instant,
    span: Span,
    traced: Span,
    is_answered: bool,
}

impl UnderWay {
    fn answered(mut self, status: StatusCode) {
        self.is_answered = true;
        self.tell(Some(status));
    }

    fn tell(&self, status: Option<StatusCode>) {
        let took = self.begun.elapsed();
        self.http.answered(&self.route, &self.method, status, took);
        tidegate::trace::answered(&self.traced, status.map(|status| status.as_u16()));
        let _inside = self.span.enter();
        let took = milliseconds(took);
        match status.map(|status| status.as_u16()) {
            None => info!(target: REQUESTS, duration_ms = took, "the client left before the answer"),
            // A 503 says that the store is away or the process drains: told where that is noticed.
            Some(status) if status >= 500 && status != 503 => {
                warn!(target: REQUESTS, status, duration_ms = took, "answered")
            }
            Some(status) if is_asked_all_the_time(&self.route) => {
                debug!(target: REQUESTS, status, duration_ms = took, "answered")
            }
            Some(status) => info!(target: REQUESTS, status, duration_ms = took, "answered"),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.is_answered {
            self.tell(None);
        }
    }
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// Health and metrics: their lines would be most of a quiet log.
fn is_asked_all_the_time(route: &str) -> bool {
    ["/livez", "/readyz", "/startupz", "/metrics"].iter().any(|quiet| route.ends_with(quiet))
}
