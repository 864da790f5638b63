//! What the intake says when it does not do what was asked: problem+json (RFC 9457), from one exhaustive match.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidegate::{StoreError, StoreErrorKind};

use super::Refused;

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::new(StatusCode::BAD_REQUEST, refused.code, refused.why)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (status, code) = match error.kind() {
            StoreErrorKind::KeyConflict => (StatusCode::UNPROCESSABLE_ENTITY, "key_reused"),
            StoreErrorKind::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            // Nobody knows whether it is stored: the same key again finds out.
            StoreErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            StoreErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
            StoreErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            StoreErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
            StoreErrorKind::LeaseLost | StoreErrorKind::Corrupt => {
                tracing::error!(error = %error, "the store refused a request of the intake");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        let retryable = matches!(error.kind(), StoreErrorKind::QueueFull | StoreErrorKind::Unavailable);
        let retry_after = retryable.then(|| error.retry_after_duration().unwrap_or(Duration::from_secs(1)));
        Self { status, code, detail: error.to_string(), retry_after }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:tidegate:deposits:{}", self.code),
            "title": self.code.replace('_', " "),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = self.retry_after {
            // In whole seconds, rounded up: a client that obeys must not come too early.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
