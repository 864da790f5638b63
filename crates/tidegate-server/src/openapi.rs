//! `GET /openapi.json`: the document of this API, made from the endpoints themselves.

use axum::Extension;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use utoipa::OpenApi;

/// What the document says before its first endpoint.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidegate",
        description = "Runs the work that must take effect exactly once. Everything that is not as it should be is \
                       answered as `application/problem+json`; members that are not known are ignored, and what is \
                       added later never changes what is there.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(tidegate_api::Problem, tidegate_api::schema::Group, tidegate_api::schema::Wait)),
    tags(
        (name = "messages", description = "Enqueue messages, and read what became of them"),
        (name = "operators", description = "Queues, dead letters, parked messages, redrives of many, and what was done. Requests of \
            these with a member that is not known are refused: a guard that is misspelt must not be a guard that is missing"),
        (name = "workers", description = "Run messages elsewhere: claim them, make their effects, settle. A body with a member that is not \
            known is refused here"),
        (name = "tokens", description = "Who may do what"),
        (name = "about", description = "This document, and what problems mean"),
    )
)]
struct Head;

pub(crate) fn head() -> utoipa::openapi::OpenApi {
    let mut head = Head::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut head.info.version);
    head
}

/// The document: every endpoint of [`router`](crate::router), what it takes and what it may answer.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    crate::routes().into_openapi()
}

/// The document as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Document(Bytes);

impl Document {
    pub(crate) fn of(document: &utoipa::openapi::OpenApi) -> Self {
        Self(serde_json::to_vec(document).expect("the document is plain data").into())
    }
}

/// The document of this API (OpenAPI 3.1)
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "about",
    responses((status = 200, description = "This document", body = Object, content_type = "application/json")),
)]
pub(crate) async fn document(Extension(Document(document)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}
