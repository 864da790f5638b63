//! The body of a request: its media type, its length, and its JSON.
//!
//! A media type has to be named. It is one a page in a browser cannot send to another origin without asking first, so that
//! no web page enqueues anything on a server that listens on loopback without tokens.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tidegate_api::ProblemType;

use crate::pace::TooSlow;
use crate::problem::Problem;
use crate::serving::Serving;
use crate::strict;

/// A body of `application/json`, read strictly.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Serving>> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, serving: &Arc<Serving>) -> Result<Self, Problem> {
        let media_type = media_type(request.headers())?;
        if !is_json(&media_type) {
            return Err(not_taken(&media_type));
        }
        let bytes = all(request, serving.limits.body).await?;
        json(&bytes, serving.limits.depth).map(Self)
    }
}

/// A JSON text read strictly, as one that a client sent.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8], depth: usize) -> Result<T, Problem> {
    strict::read(bytes, depth).map_err(|wrong| malformed(&wrong))
}

/// What a client sent is wrong at a place.
pub(crate) fn malformed(wrong: &strict::Wrong) -> Problem {
    Problem::new(ProblemType::Malformed, format!("the body is wrong at {}: {}", wrong.path, wrong.what))
}

/// All of a body, if it is not longer than this.
pub(crate) async fn all(request: Request, most: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(ProblemType::TooLarge, format!("the body is over the limit of {most} bytes"))
            .fix("send less at once; store a large document elsewhere and enqueue a reference to it")
    };
    // Said before a byte of it is read.
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > most as u64) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            if caused_by::<LengthLimitError>(&*error) {
                return Err(too_large());
            }
            if caused_by::<TooSlow>(&*error) {
                return Err(Problem::new(ProblemType::RequestTimeout, "the body came too slowly"));
            }
            Err(Problem::new(ProblemType::Malformed, format!("the body ended before it was whole: {error}")))
        }
    }
}

/// Whether an error of this type is beneath.
fn caused_by<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The media type of a body, without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> Result<String, Problem> {
    let mut named = headers.get_all(header::CONTENT_TYPE).iter();
    match (named.next(), named.next()) {
        (None, _) => Err(Problem::new(ProblemType::UnsupportedMediaType, "the body has no Content-Type")),
        (Some(_), Some(_)) => {
            Err(Problem::new(ProblemType::UnsupportedMediaType, "the body has more than one Content-Type"))
        }
        (Some(named), None) => {
            let named = named.to_str().unwrap_or_default();
            Ok(named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
        }
    }
}

/// Whether a body of this media type is JSON.
pub(crate) fn is_json(media_type: &str) -> bool {
    media_type == "application/json"
}

/// The media type is one that the address does not take.
pub(crate) fn not_taken(media_type: &str) -> Problem {
    let short: String = media_type.chars().take(80).collect();
    Problem::new(ProblemType::UnsupportedMediaType, format!("a body of {short:?} is not taken here"))
}
