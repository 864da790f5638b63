//! What an address says: the names in its path, and what comes after the question mark.

use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use serde::de::DeserializeOwned;
use tidegate_api::ProblemType;

use crate::problem::Problem;

/// The names in a path.
#[derive(Debug)]
pub(crate) struct UrlPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for UrlPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            // What cannot be a name is the name of nothing.
            Err(rejection) => Err(Problem::new(
                ProblemType::NotFound,
                format!("nothing is at {}: {}", parts.uri.path(), said(&rejection.body_text())),
            )),
        }
    }
}

/// What comes after the question mark. Members that are not known are ignored, as those of bodies are.
#[derive(Debug)]
pub(crate) struct UrlQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for UrlQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Problem::new(ProblemType::Malformed, said(&rejection.body_text()))
                .fix("the parameters of this address are in /openapi.json")),
        }
    }
}

/// What a rejection says, begun as our own sentences are.
fn said(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}
