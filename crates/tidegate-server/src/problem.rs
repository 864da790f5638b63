//! What is answered instead of what was asked for: the one place where an error of the store gets its status.
//!
//! Everything that is not as it should be becomes `application/problem+json`: also an address that is not there, a method
//! it does not have, a body that cannot be read, and a panic.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use tidegate::{MessageId, StoreError, StoreErrorKind};
use tidegate_api::{PROBLEM_JSON, ProblemType};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, ResponseBuilder};

use crate::serving::Serving;

/// Why a request is not done.
#[derive(Debug, Clone)]
pub struct Problem(Box<tidegate_api::Problem>);

impl Problem {
    /// A problem of a type. What was wrong is lowercase, with the value, without a full stop.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        let mut problem = tidegate_api::Problem::new(kind, detail);
        problem.retry_after_s = (kind.status() == 429 || kind.status() == 503).then(|| spread(Duration::from_secs(1)));
        Self(Box::new(problem))
    }

    /// Says what to do about it.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.0.fix = fix.into();
        self
    }

    /// Says when a further try is worth it; some of those who are told come a little later than others.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after_s = Some(spread(after));
        self
    }

    /// Names the message that stands in the way.
    #[must_use]
    pub fn message(mut self, id: MessageId) -> Self {
        self.0.instance = Some(format!("/v1/messages/{id}"));
        self.0.message = Some(id);
        self
    }

    /// The same from a router that is mounted at `prefix`: what it is about is found there.
    #[must_use]
    pub(crate) fn placed(mut self, prefix: &str) -> Self {
        if let Some(id) = self.0.message.filter(|_| self.0.instance.is_some()) {
            self.0.instance = Some(format!("{prefix}/v1/messages/{id}"));
        }
        self
    }

    /// No message has this id, or none that the caller may see: which of the two is not said.
    #[must_use]
    pub fn no_message(id: MessageId) -> Self {
        Self::from(StoreError::not_found(id))
    }

    /// Which type it is of.
    #[must_use]
    pub fn kind(&self) -> ProblemType {
        self.0.kind
    }

    /// As it is written, alone or as one verdict of many.
    #[must_use]
    pub fn into_wire(self) -> tidegate_api::Problem {
        *self.0
    }
}

/// The type of each error of a store.
fn kind_of(error: &StoreError) -> ProblemType {
    match error.kind() {
        StoreErrorKind::Unavailable if error.is_in_flight() => ProblemType::InFlight,
        StoreErrorKind::Unavailable => ProblemType::Unavailable,
        StoreErrorKind::LeaseLost => ProblemType::LeaseLost,
        StoreErrorKind::KeyConflict => ProblemType::KeyConflict,
        StoreErrorKind::Conflict => ProblemType::Conflict,
        StoreErrorKind::QueueFull => ProblemType::QueueFull,
        StoreErrorKind::NotFound => ProblemType::NotFound,
        StoreErrorKind::Invalid => ProblemType::Invalid,
        StoreErrorKind::Corrupt => ProblemType::Corrupt,
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let kind = kind_of(&error);
        if kind.status() >= 500 {
            // Handled here and nowhere else: the caller is told what it may know, the log the rest.
            tracing::warn!(problem = kind.slug(), "a request was not done: {error:?}");
        }
        let mut problem = Self::new(kind, error.what());
        if let Some(hint) = error.hint_text() {
            problem = problem.fix(hint);
        }
        if let Some(after) = error.retry_after_duration() {
            problem = problem.retry_after(after);
        }
        match error.conflicting_id() {
            Some(id) => problem.message(id),
            None => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let of_a_message = self.0.instance.is_some().then(|| self.clone());
        let problem = self.0;
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).expect("a problem is plain data");
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(seconds) = problem.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Where the router is mounted is known to [`place`].
        if let Some(problem) = of_a_message {
            response.extensions_mut().insert(problem);
        }
        response
    }
}

/// Writes a problem about a message anew where the router is mounted below the root: an endpoint does not know where.
pub(crate) async fn place(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Problem>() {
        Some(problem) if !serving.prefix.is_empty() => {
            let mut placed = problem.placed(&serving.prefix).into_response();
            placed.extensions_mut().remove::<Problem>();
            placed
        }
        Some(_) | None => response,
    }
}

/// Whole seconds from a duration up to half as much again, so that those who were refused together do not come back
/// together. Steps of the golden ratio fill the range evenly, which chance does not.
fn spread(after: Duration) -> u64 {
    const GOLDEN: u32 = 2_654_435_769;
    static TURN: AtomicU32 = AtomicU32::new(0);
    let turn = TURN.fetch_add(GOLDEN, Ordering::Relaxed);
    let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).clamp(1, 86_400_000);
    let room = (millis / 2).max(1000);
    let extra = room.saturating_mul(u64::from(turn)) >> 32;
    (millis + extra).div_ceil(1000)
}

// --- what no endpoint answers ----------------------------------------------------------------------------------------

pub(crate) async fn no_such_address(uri: Uri) -> Problem {
    Problem::new(ProblemType::NotFound, format!("nothing is at {}", uri.path()))
        .fix("the addresses there are: GET /openapi.json, or /docs for people")
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(ProblemType::MethodNotAllowed, format!("{} has no method {method}", uri.path()))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape the layer calls for")]
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::error!("an endpoint panicked: {said}");
    Problem::new(ProblemType::Internal, "the endpoint failed in a way it must not").into_response()
}

// --- what the document says of problems ------------------------------------------------------------------------------

/// Problems as an endpoint lists them: `responses((status = 200, …), Reading)`.
macro_rules! listed {
    ($($(#[$doc:meta])* $name:ident = [$($kind:ident),+ $(,)?];)+) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
                documented(&[$(ProblemType::$kind),+])
            }
        }
    )+};
}

listed! {
    /// Of every endpoint that reads or writes messages.
    Common = [Malformed, Invalid, Unauthorized, Forbidden, TooManyRequests, HeadersTooLarge, Corrupt, Internal, Unavailable, Busy];
    /// Of an endpoint whose address names something.
    Named = [NotFound];
    /// Of an endpoint with a body.
    Bodied = [RequestTimeout, TooLarge, UnsupportedMediaType];
    /// Of an endpoint that acts on what has a state.
    Acting = [Conflict];
    /// Of an endpoint that writes under a lease.
    Holding = [LeaseLost, Conflict];
    /// Of an endpoint that takes one message.
    Intake = [KeyMissing, KeyMalformed, InFlight, StaleKey, KeyConflict, QueueFull];
}

/// The entries of the document for problems of these types, one for each status.
pub(crate) fn documented(kinds: &[ProblemType]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let mut by_status: BTreeMap<u16, Vec<ProblemType>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(kind.status()).or_default().push(*kind);
    }
    let response = |(status, kinds): (u16, Vec<ProblemType>)| {
        let titles: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}", kind.slug(), kind.title())).collect();
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let mut response = ResponseBuilder::new().description(titles.join("; ")).content(PROBLEM_JSON, content);
        if kinds.iter().any(|kind| matches!(kind.status(), 429 | 503)) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
            let header =
                HeaderBuilder::new().schema(Some(seconds)).description(Some("seconds until a further try is worth it"));
            response = response.header("Retry-After", header.build());
        }
        (status.to_string(), RefOr::T(response.build()))
    };
    by_status.into_iter().map(response).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_store_error_has_the_status_its_reader_expects() {
        let expected = [
            (StoreErrorKind::Unavailable, 503),
            (StoreErrorKind::LeaseLost, 409),
            (StoreErrorKind::KeyConflict, 422),
            (StoreErrorKind::Conflict, 409),
            (StoreErrorKind::QueueFull, 429),
            (StoreErrorKind::NotFound, 404),
            (StoreErrorKind::Invalid, 400),
            (StoreErrorKind::Corrupt, 500),
        ];
        for (kind, status) in expected {
            let problem = Problem::from(StoreError::new(kind, "x")).into_wire();
            assert_eq!(problem.status, status, "{kind:?}");
            assert_eq!(problem.clone().into_store_error().kind(), kind, "{kind:?} over HTTP is another error");
        }
        let in_flight = Problem::from(StoreError::unavailable("x").in_flight()).into_wire();
        assert_eq!((in_flight.status, in_flight.kind), (409, ProblemType::InFlight));
    }

    #[test]
    fn whoever_is_refused_for_a_moment_is_told_for_how_long_and_not_all_the_same() {
        let seconds: Vec<u64> = (0..64)
            .map(|_| {
                Problem::new(ProblemType::QueueFull, "x").retry_after(Duration::from_secs(10)).0.retry_after_s.unwrap()
            })
            .collect();
        assert!(seconds.iter().all(|seconds| (10..=15).contains(seconds)), "{seconds:?}");
        for each in 11..=15 {
            assert!(seconds.contains(&each), "nobody comes back after {each} s: {seconds:?}");
        }
        let response = Problem::from(StoreError::unavailable("x")).into_response();
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }
}
