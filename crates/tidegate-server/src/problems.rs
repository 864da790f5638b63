//! `GET /problems` and `GET /problems/{slug}`: what each type of problem means, for whoever follows its address.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use serde::Serialize;
use tidegate_api::ProblemType;
use utoipa::ToSchema;

use crate::docs;
use crate::problem::{Named, Problem};
use crate::url::UrlPath;

/// A type of problem.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct About {
    /// Its name: the `type` of a problem.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    kind: ProblemType,
    /// The sort in words.
    title: &'static str,
    /// The status of an answer with it.
    status: u16,
    /// Whether the same request can succeed later.
    retryable: bool,
    /// What it means.
    about: String,
    /// What to do.
    fix: &'static str,
}

impl About {
    fn of(kind: ProblemType) -> Self {
        let about = kind.about().lines().map(str::trim).collect::<Vec<_>>().join(" ");
        Self {
            kind,
            title: kind.title(),
            status: kind.status(),
            retryable: kind.is_retryable(),
            about,
            fix: kind.fix(),
        }
    }
}

/// List the types of problems
#[utoipa::path(
    get,
    path = "/problems",
    tag = "about",
    responses((status = 200, description = "Every type there is", body = Vec<About>, content_type = "application/json")),
)]
pub(crate) async fn index() -> Json<Vec<About>> {
    Json(ProblemType::ALL.iter().copied().map(About::of).collect())
}

/// Say what a type of problem means
#[utoipa::path(
    get,
    path = "/problems/{slug}",
    tag = "about",
    params(("slug" = String, Path, description = "The last part of a problem's `type`")),
    responses(
        (status = 200, description = "What it means", content((About = "application/json"), (String = "text/html"))),
        Named,
    ),
)]
pub(crate) async fn page(UrlPath(slug): UrlPath<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let kind = ProblemType::from_slug(&slug).ok_or_else(|| {
        Problem::new(ProblemType::NotFound, "there is no such type of problem").fix("all of them: GET /problems")
    })?;
    let about = About::of(kind);
    if prefers_html(&headers) { Ok(docs::problem(&about.into_page())) } else { Ok(Json(about).into_response()) }
}

/// A browser names HTML first; a program that says nothing gets what programs read.
fn prefers_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let place = |media_type: &str| accepted.find(media_type);
    match (place("text/html"), place("application/json")) {
        (Some(html), Some(json)) => html < json,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

impl About {
    fn into_page(self) -> docs::ProblemPage {
        docs::ProblemPage {
            slug: self.kind.slug(),
            title: self.title,
            status: self.status,
            retryable: self.retryable,
            about: self.about,
            fix: self.fix,
        }
    }
}
