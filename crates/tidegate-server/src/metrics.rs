//! `GET /metrics`: what the store counts, what the library measures of this process, and what HTTP adds to it.
//!
//! Prometheus' text format unless OpenMetrics is asked for; they differ in how a counter is announced. While the store cannot
//! be asked the process still says what it knows of itself, with `tidegate_store_up 0`. Labels are routes as they are written in
//! the code, methods and classes of status: nothing that a client can make up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tidegate::telemetry::{PREFIX, Specimen, specimen};

use crate::principal::{Action, Caller};
use crate::problem::Problem;
use crate::serving::Serving;

/// What stands for a method that is none of the known ones, and for an address that is no route.
pub(crate) const OTHER: &str = "_OTHER";
/// How long a scrape waits for the store.
const PATIENCE: Duration = Duration::from_secs(5);
/// In seconds. A request that waits for an answer takes as long as it asked for.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Why a request was turned away before it reached the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// No token, or one that is unknown, expired or revoked.
    Unauthorized,
    /// The token does not allow it.
    Forbidden,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// There are more headers, or longer ones, than the limit allows.
    HeadersTooLarge,
    /// The request did not arrive, or was not answered, within its time.
    TimedOut,
    /// The queue is full; with a `Retry-After`.
    Busy,
    /// One token or address sends more than it may; with a `Retry-After`.
    TooManyRequests,
    /// The store is away or the process drains; with a `Retry-After`.
    Unavailable,
    /// There are as many connections as the limit allows.
    TooManyConnections,
    /// A client that sent or read too slowly for too long.
    SlowClient,
    /// A TLS handshake that failed or took too long.
    Handshake,
}

impl Rejected {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::BodyTooLarge,
        Self::HeadersTooLarge,
        Self::TimedOut,
        Self::Busy,
        Self::TooManyRequests,
        Self::Unavailable,
        Self::TooManyConnections,
        Self::SlowClient,
        Self::Handshake,
    ];

    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadersTooLarge => "headers_too_large",
            Self::TimedOut => "timed_out",
            Self::Busy => "busy",
            Self::TooManyRequests => "too_many_requests",
            Self::Unavailable => "unavailable",
            Self::TooManyConnections => "too_many_connections",
            Self::SlowClient => "slow_client",
            Self::Handshake => "handshake",
        }
    }

    /// Why an answer is none: as it says itself, else as its status does.
    pub(crate) fn why(answer: &Response) -> Option<Self> {
        answer.extensions().get::<Self>().copied().or_else(|| Self::of(answer.status()))
    }

    /// The reason that a status says by itself.
    fn of(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            401 => Some(Self::Unauthorized),
            403 => Some(Self::Forbidden),
            408 => Some(Self::TimedOut),
            413 => Some(Self::BodyTooLarge),
            429 => Some(Self::Busy),
            431 => Some(Self::HeadersTooLarge),
            503 => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// What is measured of HTTP. One for a process.
pub struct HttpMetrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    connections: Gauge,
    rejected: Family<Labels, Counter>,
}

impl HttpMetrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            connections: Gauge::default(),
            rejected: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "http_requests",
            "Requests answered, by route, method and class of status; gone: the client left before the answer",
            metrics.requests.clone(),
        );
        registry.register(
            "http_request_seconds",
            "From the head of a request to that of its answer",
            metrics.seconds.clone(),
        );
        registry.register("http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "http_rejected",
            "Requests and connections that were turned away, by reason",
            metrics.rejected.clone(),
        );
        let build: Family<Labels, Gauge> = Family::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        registry.register("build_info", "1, with the version of the program", build);
        // From the start, so that the first one of a kind is an increase.
        for reason in Rejected::ALL {
            drop(metrics.rejected.get_or_create(&vec![("reason", reason.as_str().to_owned())]));
        }
        metrics
    }

    /// Counts a connection for as long as what is returned lives.
    #[must_use = "dropped, the connection is closed"]
    pub fn connection(&self) -> Connection {
        self.connections.inc();
        Connection(self.connections.clone())
    }

    /// Counts a request or a connection that is turned away.
    pub fn rejected(&self, reason: Rejected) {
        self.rejected.get_or_create(&vec![("reason", reason.as_str().to_owned())]).inc();
    }

    /// How many were turned away for this reason since the process began.
    #[must_use]
    pub fn how_many_rejected(&self, reason: Rejected) -> u64 {
        self.rejected.get_or_create(&vec![("reason", reason.as_str().to_owned())]).get()
    }

    /// Counts a request that was answered, or whose client left (`None`).
    pub(crate) fn answered(&self, route: &str, method: &Method, status: Option<StatusCode>, took: Duration) {
        let labels = |more: Option<(&'static str, &str)>| -> Labels {
            let own = [("route", route.to_owned()), ("method", known(method).to_owned())];
            own.into_iter().chain(more.map(|(name, value)| (name, value.to_owned()))).collect()
        };
        self.requests.get_or_create(&labels(Some(("status", class(status))))).inc();
        self.seconds.get_or_create(&labels(None)).observe(took.as_secs_f64());
    }

    fn encode(&self, store_is_up: bool) -> String {
        let mut last = Registry::with_prefix(PREFIX);
        let up = Gauge::<i64>::default();
        up.set(i64::from(store_is_up));
        last.register("store_up", "1 if the store could be read for this scrape", up);
        let mut text = String::new();
        let written = encode_registry(&mut text, &self.registry).and_then(|()| encode_registry(&mut text, &last));
        written.expect("a String takes whatever is written to it");
        text
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HttpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpMetrics").finish_non_exhaustive()
    }
}

/// An open connection, as far as the metrics know.
#[derive(Debug)]
pub struct Connection(Gauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A client may send any word as a method.
pub(crate) fn known(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS") => known,
        _ => OTHER,
    }
}

fn class(status: Option<StatusCode>) -> &'static str {
    match status.map(|status| status.as_u16() / 100) {
        None => "gone",
        Some(1) => "1xx",
        Some(2) => "2xx",
        Some(3) => "3xx",
        Some(4) => "4xx",
        Some(_) => "5xx",
    }
}

pub(crate) fn routes() -> Router<Arc<Serving>> {
    Router::new().route("/metrics", get(handler))
}

async fn handler(State(serving): State<Arc<Serving>>, caller: Caller, headers: HeaderMap) -> Result<Response, Problem> {
    caller.may_all(Action::Read)?;
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let text = text(&serving).await;
    Ok(if accepts.contains("application/openmetrics-text") {
        ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
    } else {
        ([(CONTENT_TYPE, PROMETHEUS)], prometheus_text(&text)).into_response()
    })
}

/// All of it as OpenMetrics.
async fn text(serving: &Serving) -> String {
    let of_library = tokio::time::timeout(PATIENCE, serving.tide.metrics_text()).await;
    let is_up = matches!(of_library, Ok(Ok(_)));
    let of_library = match of_library {
        Ok(Ok(text)) => text,
        Ok(Err(_)) | Err(_) => serving.tide.metrics().encode_own(),
    };
    let of_library = of_library.trim_end().trim_end_matches("# EOF");
    format!("{of_library}{}# EOF\n", serving.http.encode(is_up))
}

/// One of each metric that `/metrics` has, in the OpenMetrics text format; see [`specimen`].
#[must_use]
pub fn metrics_specimen() -> Specimen {
    let http = HttpMetrics::new();
    http.answered("/v1/queues/{queue}/messages", &Method::POST, Some(StatusCode::ACCEPTED), Duration::ZERO);
    let mut specimen = specimen();
    specimen.of_process.push_str(&http.encode(true));
    specimen
}

/// Metrics in the OpenMetrics text format, in Prometheus' own: in that one a counter is announced under the name of its sample.
#[must_use]
pub fn prometheus_text(open_metrics: &str) -> String {
    let counters: Vec<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let announced = ["# HELP ", "# TYPE "].into_iter().find_map(|what| Some((what, line.strip_prefix(what)?)));
        match announced.and_then(|(what, rest)| Some((what, rest.split_once(' ')?))) {
            Some((what, (name, rest))) if counters.contains(&name) => {
                text.push_str(&format!("{what}{name}_total {rest}\n"));
            }
            Some(_) | None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_announced_under_its_samples_name() {
        let open = "# HELP t_a A.\n# TYPE t_a counter\nt_a_total{q=\"# TYPE t_b counter\"} 1\n# HELP t_b B.\n\
                    # TYPE t_b gauge\nt_b 2\n# EOF\n";
        let expected = "# HELP t_a_total A.\n# TYPE t_a_total counter\nt_a_total{q=\"# TYPE t_b counter\"} 1\n\
                        # HELP t_b B.\n# TYPE t_b gauge\nt_b 2\n";
        assert_eq!(prometheus_text(open), expected);
    }

    #[test]
    fn what_a_client_makes_up_is_no_label() {
        let metrics = HttpMetrics::new();
        let method = Method::from_bytes(b"BREW").unwrap();
        metrics.answered("/v1/messages", &method, Some(StatusCode::METHOD_NOT_ALLOWED), Duration::ZERO);
        metrics.answered("/v1/messages", &Method::GET, None, Duration::ZERO);
        metrics.rejected(Rejected::of(StatusCode::UNAUTHORIZED).unwrap());
        let held = metrics.connection();
        let text = metrics.encode(true);
        for line in [
            "tidegate_http_requests_total{route=\"/v1/messages\",method=\"_OTHER\",status=\"4xx\"} 1",
            "tidegate_http_requests_total{route=\"/v1/messages\",method=\"GET\",status=\"gone\"} 1",
            "tidegate_http_rejected_total{reason=\"unauthorized\"} 1",
            "tidegate_http_rejected_total{reason=\"handshake\"} 0",
            "tidegate_http_connections 1",
            "tidegate_store_up 1",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        drop(held);
        assert!(metrics.encode(false).contains("tidegate_http_connections 0"));
    }
}
