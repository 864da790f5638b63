//! How much one request may ask for. What is over a limit is refused before anything is done, never cut.

use std::time::Duration;

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
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            headers: 16 << 10,
            depth: 64,
            batch: 1000,
            page: 1000,
            wait: Duration::from_secs(60),
            queues: 10_000,
            new_queue_depth: None,
        }
    }
}
