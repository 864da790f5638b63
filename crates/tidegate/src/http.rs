//! What an HTTP answer says about an effect: classifiers for the closure of [`Effect::call`](crate::Effect::call).
//!
//! | answer | verdict | because |
//! |---|---|---|
//! | 2xx | success: read the body and confirm | it happened |
//! | 400 402 404 405 406 410 411 413 414 415 416 417 421 422 424 426 428 431 451 | rejected, `http_402` | looked at and refused |
//! | 401 403 407 | not done | our credentials are wrong: nothing happened, and repairing them mends it |
//! | 425 429 | not done, `Retry-After` obeyed | refused before it was looked at |
//! | 503 with `Retry-After` | not done, `Retry-After` obeyed | the server says that it does not serve now |
//! | 408 409 423, 503 without, other 4xx and 5xx, 1xx, 3xx | unknown | it may be under way or done |
//!
//! A gateway that promises less, or more, is classified by its author: match on the status first.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::effect::EffectAnswer;

/// What a status and its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It happened; the body says what.
    Success,
    /// Refused, finally.
    Rejected {
        /// `http_402` and such.
        code: String,
    },
    /// Nothing happened.
    NotDone {
        /// The status.
        why: String,
        /// When to come again, if the server said so in seconds.
        after: Option<Duration>,
    },
    /// Nobody knows.
    Unknown {
        /// The status.
        why: String,
    },
}

impl Verdict {
    /// The answer, where the verdict is one already. `None` for success: what happened is in the body.
    #[must_use]
    pub fn into_answer<T>(self, detail: impl Into<String>) -> Option<EffectAnswer<T>> {
        Some(match self {
            Self::Success => return None,
            Self::Rejected { code } => EffectAnswer::Rejected { code, detail: detail.into() },
            Self::NotDone { why, after } => EffectAnswer::NotDone { why, after },
            Self::Unknown { why } => EffectAnswer::Unknown { why },
        })
    }
}

/// Classifies an answer that was received. `now` is needed for a `Retry-After` that names a date.
#[must_use]
pub fn classify(status: StatusCode, headers: &HeaderMap, now: crate::Timestamp) -> Verdict {
    let after = retry_after(headers, now);
    let why = || format!("answered {status}");
    match status.as_u16() {
        200..=299 => Verdict::Success,
        401 | 403 | 407 | 425 | 429 => Verdict::NotDone { why: why(), after },
        503 if after.is_some() => Verdict::NotDone { why: why(), after },
        // Only what the standards say was looked at and refused. Others are made by proxies about connections they lost
        // (444, 460, 499): the request may have gone through to the server behind them.
        400 | 402 | 404..=406 | 410 | 411 | 413..=417 | 421 | 422 | 424 | 426 | 428 | 431 | 451 => {
            Verdict::Rejected { code: format!("http_{}", status.as_u16()) }
        }
        _ => Verdict::Unknown { why: why() },
    }
}

/// The pause a server asked for: whole seconds, or the time until an HTTP date.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: crate::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(crate::Timestamp::EPOCH.after(at).since(now))
}

/// Classifies a request of `reqwest` that got no whole answer: only a connection that was never made is *not done*.
///
/// A connection that was reset may have carried the request, a time-out may hide a charge: both are unknown. Switch the
/// client's own retries off (`reqwest::retry::never()`), or it sends what the journal knows nothing about.
#[cfg(feature = "reqwest")]
#[must_use]
pub fn of_reqwest_error<T>(error: &reqwest::Error) -> EffectAnswer<T> {
    let why = crate::answer::chain(error);
    if error.is_connect() || error.is_builder() { EffectAnswer::not_done(why) } else { EffectAnswer::unknown(why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    fn verdict(status: u16, after: Option<&str>) -> Verdict {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, after.parse().unwrap());
        }
        classify(StatusCode::from_u16(status).unwrap(), &headers, Timestamp::from_millis(1_700_000_000_000))
    }

    #[test]
    fn a_status_is_never_taken_for_more_than_it_says() {
        let unknown = |status: &str| Verdict::Unknown { why: format!("answered {status}") };
        let not_done = |status: &str, after| Verdict::NotDone { why: format!("answered {status}"), after };
        #[rustfmt::skip]
        let table = [
            (200, None, Verdict::Success),
            (202, None, Verdict::Success),
            (302, None, unknown("302 Found")),
            (402, None, Verdict::Rejected { code: "http_402".into() }),
            (401, None, not_done("401 Unauthorized", None)),
            (408, None, unknown("408 Request Timeout")),
            (404, None, Verdict::Rejected { code: "http_404".into() }),
            (422, None, Verdict::Rejected { code: "http_422".into() }),
            (409, None, unknown("409 Conflict")),
            (499, None, unknown("499 <unknown status code>")),
            (429, Some("3"), not_done("429 Too Many Requests", Some(Duration::from_secs(3)))),
            (500, None, unknown("500 Internal Server Error")),
            (503, None, unknown("503 Service Unavailable")),
            (503, Some("1"), not_done("503 Service Unavailable", Some(Duration::from_secs(1)))),
            (503, Some("soon"), unknown("503 Service Unavailable")),
            (504, Some("1"), unknown("504 Gateway Timeout")),
        ];
        for (status, after, expected) in table {
            assert_eq!(verdict(status, after), expected, "{status} {after:?}");
        }
    }

    #[test]
    fn a_retry_after_may_be_a_date() {
        let expected =
            Verdict::NotDone { why: "answered 429 Too Many Requests".into(), after: Some(Duration::from_secs(10)) };
        assert_eq!(verdict(429, Some("Tue, 14 Nov 2023 22:13:30 GMT")), expected);
    }
}
