//! What a request is read from, as targets of `crates/tidegate-fuzz`: each takes any bytes, and panics where a promise is
//! broken.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use axum::extract::Query;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::Value;
use tidegate::canonical::{canonicalize, look_through};

use crate::cloudevents::{self, Read};
use crate::wait::Span;
use crate::{guard, idempotency, list, strict, trace};

/// The longest that an error may be, whatever it is about: it goes back to the client and into its log.
const LONGEST: usize = 2048;
/// The deepest nesting that a server takes unless it is told otherwise.
const DEPTH: usize = 64;

fn is_readable(what: &str) {
    assert!(!what.is_empty() && what.len() <= LONGEST, "an error of {} bytes: {what:.200}", what.len());
}

/// The header `Idempotency-Key`.
pub fn idempotency_key(bytes: &[u8]) {
    match idempotency::parse(bytes) {
        Ok(key) => {
            let quoted = format!("\"{}\"", key.as_str().replace('\\', "\\\\").replace('"', "\\\""));
            assert_eq!(idempotency::parse(quoted.as_bytes()).as_ref(), Ok(&key), "{quoted} is the same key");
        }
        Err(what) => is_readable(&what),
    }
}

/// `traceparent`, and `tracestate` a line each.
pub fn traceparent(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for (name, line) in std::iter::once("traceparent").chain(std::iter::repeat("tracestate")).zip(lines.by_ref()) {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(HeaderName::from_static(name), value);
    }
    let carried = trace::of(&headers);
    assert!(carried.is_empty() || carried.contains_key("traceparent"), "a state without its parent: {carried:?}");
    assert!(carried.values().all(|value| value.len() <= 512), "{carried:?}");
    let mut again = HeaderMap::new();
    for (name, value) in &carried {
        let name = HeaderName::from_str(name).expect("what was a header");
        again.insert(name, value.parse().expect("what was a header's value"));
    }
    assert_eq!(trace::of(&again), carried, "what is carried along is carried further");
}

/// A body of JSON.
pub fn json_body(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes);
    match strict::read::<Value>(bytes, DEPTH) {
        Ok(value) => {
            let text = text.expect("JSON is UTF-8");
            assert_eq!(serde_json::from_str::<Value>(text).expect("it is JSON"), value, "{text}");
            let again = strict::read::<Value>(value.to_string().as_bytes(), DEPTH);
            assert!(again.is_ok(), "{value} was read, and is not when it is written again: {again:?}");
        }
        Err(wrong) => {
            is_readable(&wrong.what);
            assert!(wrong.path.starts_with('$') && wrong.path.len() < DEPTH * 256, "{}", wrong.path.len());
        }
    }
    let Ok(text) = text else { return };
    if canonicalize(text).is_ok() {
        assert_eq!(look_through(text, DEPTH), Ok(()), "what can be a payload can be in a body: {text}");
    }
}

/// A CloudEvent: headers a line each, an empty line, and a body.
pub fn cloud_event(bytes: &[u8]) {
    let Some((headers, body)) = request(bytes) else { return };
    match cloudevents::read(&headers, body, DEPTH) {
        Err(problem) => {
            let problem = problem.into_wire();
            is_readable(&problem.detail);
            assert!((400..500).contains(&problem.status), "{problem:?}");
        }
        Ok(events) => events.into_iter().for_each(alike),
    }
}

/// An event is the same in either mode, and its data is the payload byte for byte.
fn alike(event: Read) {
    // In a structured event the data is one level deeper than in the body of a binary one.
    let deeper = DEPTH + 2;
    let members = event.attributes.iter().map(|(name, value)| format!("{}:{}", quoted(name), quoted(value)));
    let members: Vec<String> = members.chain([format!("\"data\":{}", event.data)]).collect();
    let structured = format!("{{{}}}", members.join(","));
    let read = cloudevents::structured(structured.as_bytes(), deeper, "$");
    assert_eq!(read.map_err(|problem| problem.into_wire().detail).as_ref(), Ok(&event), "{structured}");
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    for (name, value) in &event.attributes {
        let name = HeaderName::from_str(&format!("ce-{name}")).expect("letters and digits");
        headers.insert(name, percent_encoded(value).parse().expect("visible ASCII"));
    }
    let read = cloudevents::binary(&headers, event.data.as_bytes(), deeper);
    assert_eq!(read.map_err(|problem| problem.into_wire().detail).as_ref(), Ok(&event), "{headers:?}");
    let data = event.data.clone();
    if let Ok(message) = cloudevents::to_message(event) {
        assert_eq!(message.payload.text(), data);
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn percent_encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%\"\\".contains(&byte);
    value.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Headers a line each, an empty line, and the rest.
fn request(bytes: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let at = bytes.windows(2).position(|two| two == b"\n\n")?;
    let mut headers = HeaderMap::new();
    for line in bytes[..at].split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some((headers, &bytes[at + 2..]))
}

/// The header `Authorization`, and the name by which a server is called.
pub fn who_asks(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        headers.insert("authorization", value);
        match guard::bearer(&headers) {
            Ok(token) => {
                let token = token.expect("the header is there").to_owned();
                assert!(!token.is_empty() && token.trim() == token, "{token:?}");
                headers.insert("authorization", format!("Bearer {token}").parse().expect("it was in a header"));
                assert_eq!(guard::bearer(&headers).ok(), Some(Some(&*token)), "one token, written alike");
            }
            Err(problem) => is_readable(&problem.into_wire().detail),
        }
    }
    let Ok(host) = std::str::from_utf8(bytes) else { return };
    if guard::is_loopback_name(host) {
        let authority = Authority::from_str(host);
        let name = authority.as_ref().map_or(host, |authority| authority.host());
        let bare = name.trim_matches(['[', ']']);
        let is_here = bare.eq_ignore_ascii_case("localhost")
            || bare.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
            || authority.is_err();
        assert!(is_here, "{host:?} is taken for a name of this machine");
    }
}

/// What comes after the question mark: a wait, and what a list is asked for.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Span>() {
        Ok(span) => {
            let written = format!("{}ms", span.0.as_millis());
            assert_eq!(written.parse::<Span>(), Ok(span), "{written}");
        }
        Err(what) => is_readable(&what),
    }
    let Ok(uri) = format!("/v1/messages?{text}").parse::<Uri>() else { return };
    if let Err(rejection) = Query::<list::Asked>::try_from_uri(&uri) {
        assert!(rejection.body_text().len() <= text.len() + LONGEST, "{}", rejection.body_text().len());
    }
    let _pairs: Option<BTreeMap<String, String>> = Query::try_from_uri(&uri).ok().map(|Query(pairs)| pairs);
}
