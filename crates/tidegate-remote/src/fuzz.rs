//! What is read from a server or typed as its address, as targets of `crates/tidegate-fuzz`: each takes any bytes, and
//! panics where a promise is broken.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use tidegate::Timestamp;
use tidegate_api::Refusal;

use crate::ServerUrl;
use crate::exchange::{Ended, fits, pause, problem};

/// A status, headers a line each, an empty line, and a body.
pub fn answer(bytes: &[u8]) {
    let Some(answer) = answer_of(bytes) else { return };
    if let Some(error) = problem(&answer).map(|told| told.into_store_error()) {
        assert!(Refusal::of(&error).is_some(), "{error:?} does not say that it comes from a server");
    }
    for tries in [1, 2, 40] {
        let waits = pause(&Ended::Answered(answer.clone()), tries, 0.5, Timestamp::from_millis(1_700_000_000_000));
        let is_short = waits.is_none_or(|pause| fits(Duration::from_secs(1), pause, Duration::from_secs(20)));
        // A long one is what somebody asked for.
        let is_said = answer.headers().contains_key(http::header::RETRY_AFTER);
        assert!(is_short || is_said, "{} waits {waits:?}", answer.status());
    }
}

fn answer_of(bytes: &[u8]) -> Option<Response<Bytes>> {
    let at = bytes.windows(2).position(|two| two == b"\n\n")?;
    let mut lines = bytes[..at].split(|byte| *byte == b'\n');
    let status: u16 = std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok()?;
    let mut answer = Response::builder().status(status);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        answer = answer.header(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    answer.body(Bytes::copy_from_slice(&bytes[at + 2..])).ok()
}

/// The address of a server.
pub fn server_url(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let url: ServerUrl = match text.parse() {
        Ok(url) => url,
        Err(_) => return,
    };
    let shown = url.to_string();
    assert!(!shown.contains('@') && !shown.contains('?'), "{shown:?} says more than where a server is");
    assert_eq!(shown.parse::<ServerUrl>().as_ref(), Ok(&url), "{shown:?} is what {text:?} is shown as");
    if let Ok(address) = url.at("/v1/messages?limit=1") {
        assert!(address.path().ends_with("/v1/messages") && address.query() == Some("limit=1"), "{address}");
    }
}
