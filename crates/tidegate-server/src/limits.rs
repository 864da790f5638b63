//! How much one request may ask for. What is over a limit is refused before anything is done, never cut.

use std::time::Duration;

/// How much one request may ask for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// The longest body, in bytes.
    pub body: usize,
    /// The deepest nesting of JSON.
    pub depth: usize,
    /// The most items of a batch.
    pub batch: usize,
    /// The most messages of a page.
    pub page: u32,
    /// The longest that a request waits for an answer.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 4 << 20, depth: 64, batch: 1000, page: 1000, wait: Duration::from_secs(60) }
    }
}
