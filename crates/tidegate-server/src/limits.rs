//! How much one request may ask for. What is over a limit is refused before anything is done, never cut.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate_api::ProblemType;

use crate::problem::Problem;
use crate::rates::Rate;
use crate::serving::Serving;

/// How much one request may ask for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// The longest body, in bytes.
    pub body: usize,
    /// The longest head of a request, in bytes: method, address and headers.
    pub headers: usize,
    /// The deepest nesting of JSON.
    pub depth: usize,
    /// The most items of a batch.
    pub batch: usize,
    /// The most messages of a page.
    pub page: u32,
    /// The longest that a request waits for an answer.
    pub wait: Duration,
    /// The most queues that there may be for a request to make another one.
    pub queues: usize,
    /// The limit of waiting messages that a queue gets which a request makes.
    pub new_queue_depth: Option<u64>,
    /// How many requests one client may send; none: as many as it can.
    pub rate: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The largest payload and what stands around it; a batch has several.
            body: 4 << 20,
            headers: 16 << 10,
            depth: 64,
            batch: 1000,
            page: 1000,
            wait: Duration::from_secs(60),
            queues: 10_000,
            new_queue_depth: None,
            // What is scarce has a limit of its own: messages of a queue, bytes, connections. A number of requests that is
            // right for every machine there is none, and a producer that catches up is what a queue is for.
            rate: None,
        }
    }
}

/// Refuses a request whose head is over the limit.
pub(crate) async fn head(State(serving): State<Arc<Serving>>, request: Request, next: Next) -> Response {
    // As they stand in HTTP/1.1: `name: value` and the end of the line.
    let of_headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let address = request.uri().path_and_query().map_or(0, |address| address.as_str().len());
    let (bytes, most) = (request.method().as_str().len() + address + 13 + of_headers, serving.limits.headers);
    if bytes > most {
        let what = format!("method, address and headers have {bytes} bytes, over the limit of {most}");
        return Problem::new(ProblemType::HeadersTooLarge, what).into_response();
    }
    next.run(request).await
}
