//! `POST /v1/queues/{queue}/events`: CloudEvents 1.0.2 over HTTP, one in headers or in JSON, or a batch of them.
//!
//! `source` and `id` name an event, and so what is to happen once: together they are the key. `type` becomes the kind, the
//! data the payload, byte for byte; the attributes are carried along as headers `ce-…`. An event that is not one is
//! refused: nothing is guessed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName};
use serde_json::value::RawValue;
use tidegate::id::{Hex, digest};
use tidegate::message::{NewMessage, Payload};
use tidegate::{IdempotencyKey, Kind, QueueName, Tenant, Timestamp};
use tidegate_api::{EnqueueResults, Enqueued, Event, ProblemType, schema};

use crate::enqueue_many::{enough, no_key};
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Intake, Named, Problem};
use crate::serving::Serving;
use crate::strict::{self, Wrong};
use crate::url::UrlPath;
use crate::{body, enqueue, enqueue_many, idempotency, trace};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
/// What the headers of attributes begin with.
const PREFIX: &str = "ce-";
/// The longest name of an attribute; the standard asks for no more than 20 to be understood.
const LONGEST_NAME: usize = 64;

/// Take CloudEvents
///
/// One event in binary mode (attributes in headers `ce-…`, data in the body), one in structured mode
/// (`application/cloudevents+json`), or a batch (`application/cloudevents-batch+json`), which is answered with a verdict for
/// each. `source` and `id` are the key, unless a single event comes with the header `Idempotency-Key`; `type` is the kind;
/// the data, which has to be JSON, is the payload.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/events",
    tag = "messages",
    params(
        ("queue" = schema::Name, Path, description = "Which line the messages wait in"),
        ("Idempotency-Key" = Option<String>, Header, description = "The key of a single event, instead of `source` and `id`"),
        ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose messages they are"),
        ("ce-specversion" = Option<String>, Header, description = "In binary mode: `1.0`"),
        ("ce-id" = Option<String>, Header, description = "In binary mode: the attribute `id`"),
        ("ce-source" = Option<String>, Header, description = "In binary mode: the attribute `source`"),
        ("ce-type" = Option<String>, Header, description = "In binary mode: the attribute `type`"),
        ("traceparent" = Option<String>, Header, description = "The trace they belong to (W3C), where an event does not say it"),
        ("tracestate" = Option<String>, Header, description = "The state of that trace"),
    ),
    request_body(content(
        (Event = "application/cloudevents+json"),
        (Vec<Event> = "application/cloudevents-batch+json"),
        (tidegate_api::Text = "application/json"),
    )),
    responses(
        (status = 202, description = "It is stored, or it was before and has no answer yet", body = Enqueued, headers(
            ("Location" = String, description = "The address of the message"),
            ("Idempotency-Replayed" = String, description = "`true` where the event was known"),
        )),
        (status = 200, description = "The event is known and answered, or: a verdict for each event of a batch", content(
            (Received = "application/json"),
        ), headers(
            ("Location" = String, description = "The address of the message"),
            ("Idempotency-Replayed" = String, description = "`true` where a single event was known"),
        )),
        Common, Bodied, Named, Intake,
    ),
)]
pub(crate) async fn take_events(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(queue): UrlPath<QueueName>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let mode = Mode::of(&headers)?;
    let bytes = body::all(request, serving.limits.body).await?;
    let around = Around { tenant: caller.tenant.clone(), queue, trace: trace::of(&headers) };
    let depth = serving.limits.depth;
    let event = match mode {
        Mode::Batch => {
            no_key(&headers)?;
            let events: Vec<Box<RawValue>> = body::json(&bytes, depth)?;
            enough(events.len(), serving.limits.batch)?;
            let read = |event: Result<Read, Problem>| around.message(event?, None);
            let messages = batched(events, depth).map(read).collect();
            return Ok(Json(enqueue_many::take(&serving, &caller, messages).await?).into_response());
        }
        Mode::Structured => structured(&bytes, depth, "$")?,
        Mode::Binary => binary(&headers, &bytes, depth)?,
    };
    let message = around.message(event, idempotency::key(&headers)?)?;
    enqueue::take(&serving, &caller, message).await
}

/// The events of a batch, each by itself.
fn batched(events: Vec<Box<RawValue>>, depth: usize) -> impl Iterator<Item = Result<Read, Problem>> {
    let events = events.into_iter().enumerate();
    events.map(move |(index, event)| structured(event.get().as_bytes(), depth, &format!("$[{index}]")))
}

/// The events of a request, all or why not.
#[cfg(feature = "fuzz")]
pub(crate) fn read(headers: &HeaderMap, bytes: &[u8], depth: usize) -> Result<Vec<Read>, Problem> {
    match Mode::of(headers)? {
        Mode::Batch => batched(body::json(bytes, depth)?, depth).collect(),
        Mode::Structured => Ok(vec![structured(bytes, depth, "$")?]),
        Mode::Binary => Ok(vec![binary(headers, bytes, depth)?]),
    }
}

/// The message that an event becomes on some queue.
#[cfg(feature = "fuzz")]
pub(crate) fn to_message(event: Read) -> Result<NewMessage, Problem> {
    let queue = QueueName::new("events")?;
    Around { tenant: Tenant::default(), queue, trace: BTreeMap::new() }.message(event, None)
}

/// What a 200 holds.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "what the document says; the two are answered by those who make them")]
pub(crate) enum Received {
    /// A single event that was answered before.
    One(Enqueued),
    /// A batch.
    Batch(EnqueueResults),
}

/// How events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Binary,
    Structured,
    Batch,
}

impl Mode {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let is_binary = headers.contains_key("ce-specversion");
        let has_type = headers.contains_key(http::header::CONTENT_TYPE);
        if is_binary && !has_type {
            return Ok(Self::Binary);
        }
        let media_type = body::media_type(headers)?;
        match media_type.as_str() {
            STRUCTURED => Ok(Self::Structured),
            BATCH => Ok(Self::Batch),
            other if is_binary && is_json(other) => Ok(Self::Binary),
            other if is_binary => Err(not_json(other)),
            other if other.starts_with("application/cloudevents") => {
                Err(body::not_taken(other)
                    .fix(format!("send {STRUCTURED}, {BATCH}, or the attributes in headers ce-…")))
            }
            other if is_json(other) => Err(wrong("the request has no header ce-specversion")),
            other => {
                Err(body::not_taken(other)
                    .fix(format!("send {STRUCTURED}, {BATCH}, or the attributes in headers ce-…")))
            }
        }
    }
}

fn is_json(media_type: &str) -> bool {
    body::is_json(media_type) || media_type == "text/json" || media_type.ends_with("+json")
}

fn not_json(media_type: &str) -> Problem {
    body::not_taken(media_type).fix("the data of an event becomes the payload of a message, which is JSON")
}

fn wrong(what: impl Into<String>) -> Problem {
    Problem::new(ProblemType::Malformed, format!("this is no CloudEvent: {}", what.into()))
        .fix("send the attributes specversion 1.0, id, source and type, as CloudEvents 1.0.2 has them")
}

/// An event, however it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// All but the data, by their names.
    pub(crate) attributes: BTreeMap<String, String>,
    /// A JSON text.
    pub(crate) data: String,
}

// --- binary ----------------------------------------------------------------------------------------------------------

pub(crate) fn binary(headers: &HeaderMap, bytes: &[u8], depth: usize) -> Result<Read, Problem> {
    let mut attributes = BTreeMap::new();
    for name in headers.keys().filter(|name| name.as_str().starts_with(PREFIX)) {
        let attribute = &name.as_str()[PREFIX.len()..];
        check_name(attribute)?;
        if attribute == "datacontenttype" {
            return Err(wrong(
                "in binary mode the header Content-Type says what the data is, ce-datacontenttype must not",
            ));
        }
        attributes.insert(attribute.to_owned(), header_value(headers, name)?);
    }
    let data = if bytes.is_empty() {
        "null".to_owned()
    } else {
        if !headers.contains_key(http::header::CONTENT_TYPE) {
            return Err(Problem::new(ProblemType::UnsupportedMediaType, "the data has no Content-Type"));
        }
        let text: Box<RawValue> = body::json(bytes, depth)?;
        String::from(Box::<str>::from(text))
    };
    checked(Read { attributes, data })
}

fn header_value(headers: &HeaderMap, name: &HeaderName) -> Result<String, Problem> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(wrong(format!("the header {name} is there more than once")));
    };
    decoded(value.as_bytes()).map_err(|why| wrong(format!("the header {name} {why}")))
}

/// The value of an attribute in a header: quotes are taken off first, then it is percent-decoded, once.
fn decoded(value: &[u8]) -> Result<String, String> {
    let unquoted = match value {
        [b'"', inner @ .., b'"'] => {
            let mut unquoted = Vec::with_capacity(inner.len());
            let mut bytes = inner.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'"' => return Err("has a quote inside its quotes".to_owned()),
                    b'\\' => match bytes.next() {
                        Some(escaped) => unquoted.push(*escaped),
                        None => return Err("ends in a backslash that escapes nothing".to_owned()),
                    },
                    byte => unquoted.push(*byte),
                }
            }
            unquoted
        }
        value => value.to_vec(),
    };
    let mut bytes = Vec::with_capacity(unquoted.len());
    let mut rest = unquoted.as_slice();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err("has a % without two hexadecimal digits after it".to_owned());
        };
        let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16)) else {
            return Err("has a % without two hexadecimal digits after it".to_owned());
        };
        bytes.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 after it was percent-decoded".to_owned())
}

// --- structured ------------------------------------------------------------------------------------------------------

pub(crate) fn structured(bytes: &[u8], depth: usize, path: &str) -> Result<Read, Problem> {
    let members: BTreeMap<String, Box<RawValue>> = strict::read(bytes, depth)
        .map_err(|wrong: Wrong| body::malformed(&Wrong { path: wrong.path.replacen('$', path, 1), ..wrong }))?;
    let mut attributes = BTreeMap::new();
    let (mut data, mut base64) = (None, None);
    for (name, value) in members {
        match name.as_str() {
            "data" => data = Some(value.get().to_owned()),
            "data_base64" => base64 = Some(value),
            _ => {
                check_name(&name)?;
                attributes.extend(attribute(&name, &value)?.map(|value| (name, value)));
            }
        }
    }
    // Not an attribute like the others: it says what the data is, and in JSON that is JSON unless it says otherwise.
    if let Some(media_type) = attributes.remove("datacontenttype") {
        let plain = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if !is_json(&plain) {
            return Err(not_json(&plain));
        }
    }
    let data = match (data, base64) {
        (Some(_), Some(_)) => return Err(wrong("it has both data and data_base64")),
        (Some(data), None) => data,
        (None, Some(encoded)) => {
            let encoded: String =
                serde_json::from_str(encoded.get()).map_err(|_| wrong("data_base64 is not a string"))?;
            let bytes = from_base64(&encoded).ok_or_else(|| wrong("data_base64 is not Base64"))?;
            let text: Box<RawValue> = strict::read(&bytes, depth).map_err(|inside: Wrong| {
                let what = format!("its data_base64 holds no JSON: at {}: {}", inside.path, inside.what);
                wrong(what).fix("the data of an event becomes the payload of a message, which is JSON")
            })?;
            String::from(Box::<str>::from(text))
        }
        (None, None) => "null".to_owned(),
    };
    checked(Read { attributes, data })
}

/// The value of an attribute in JSON: a text, a whole number or a truth value; null is as if it were not there.
fn attribute(name: &str, value: &RawValue) -> Result<Option<String>, Problem> {
    match serde_json::from_str(value.get()) {
        Ok(serde_json::Value::Null) => Ok(None),
        Ok(serde_json::Value::String(text)) => Ok(Some(text)),
        Ok(serde_json::Value::Bool(truth)) => Ok(Some(truth.to_string())),
        Ok(serde_json::Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            Ok(Some(number.to_string()))
        }
        Ok(serde_json::Value::Number(_) | serde_json::Value::Array(_) | serde_json::Value::Object(_)) | Err(_) => {
            Err(wrong(format!("the attribute {name} is neither a string, a whole number of 32 bits nor a truth value")))
        }
    }
}

/// Base64 with its padding (RFC 4648 §4).
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    let padding = bytes.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    let digits = &bytes[..bytes.len() - padding];
    let mut decoded = Vec::with_capacity(bytes.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut bits = 0;
        for &digit in group {
            bits = bits << 6 | value(digit)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, first, second, third] = bits.to_be_bytes();
        let whole = [first, second, third];
        let kept = group.len().checked_sub(1)?;
        // What is left over of the last digit has to be nothing: one text for one value.
        if whole[kept..].iter().any(|&byte| byte != 0) {
            return None;
        }
        decoded.extend_from_slice(&whole[..kept]);
    }
    Some(decoded)
}

// --- both ------------------------------------------------------------------------------------------------------------

/// The name of an attribute: lower-case letters and digits.
fn check_name(name: &str) -> Result<(), Problem> {
    let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(sound) && name != "data" {
        return Ok(());
    }
    let short: String = name.chars().take(LONGEST_NAME).collect();
    Err(wrong(format!("{short:?} is not the name of an attribute, which has lower-case letters and digits")))
}

/// Fails where an event lacks what every event has.
fn checked(event: Read) -> Result<Read, Problem> {
    let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
    for name in ["specversion", "id", "source", "type"] {
        if attribute(name).is_none_or(str::is_empty) {
            return Err(wrong(format!("the attribute {name} is missing or empty")));
        }
    }
    if attribute("specversion") != Some("1.0") {
        let version: String = attribute("specversion").unwrap_or_default().chars().take(20).collect();
        return Err(wrong(format!("specversion {version:?} is not 1.0")));
    }
    for name in ["subject", "dataschema"] {
        if attribute(name).is_some_and(str::is_empty) {
            return Err(wrong(format!("the attribute {name} is empty")));
        }
    }
    if let Some(time) = attribute("time") {
        let parsed: Result<Timestamp, _> = time.parse();
        parsed.map_err(|_| wrong("the attribute time is not a time of RFC 3339, such as 2026-11-23T10:00:00Z"))?;
    }
    Ok(event)
}

/// What an event does not say itself.
#[derive(Debug)]
struct Around {
    tenant: Tenant,
    queue: QueueName,
    trace: BTreeMap<String, String>,
}

impl Around {
    /// The message an event becomes.
    fn message(&self, event: Read, key: Option<IdempotencyKey>) -> Result<NewMessage, Problem> {
        let attribute = |name: &str| event.attributes.get(name).map_or("", String::as_str);
        let key = match key {
            Some(key) => key,
            None => key_of(attribute("source"), attribute("id"))?,
        };
        let kind = Kind::new(attribute("type"))?;
        let payload = Payload::from_json(event.data.as_str())?;
        // The trace of the event itself (extension "distributed tracing") is its own; that of the request is how it came.
        let own = event.attributes.get("traceparent").map(|parent| {
            trace::with_state(parent, event.attributes.get("tracestate").map(String::as_str).into_iter())
        });
        let mut headers = own.filter(|trace| !trace.is_empty()).unwrap_or_else(|| self.trace.clone());
        headers.extend(event.attributes.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)));
        let tenant = self.tenant.clone();
        Ok(NewMessage { tenant, headers, ..NewMessage::new(self.queue.clone(), kind, key, payload) })
    }
}

/// The key of an event: `source|id` where that is a key and cannot be read otherwise, else a digest of the two.
fn key_of(source: &str, id: &str) -> Result<IdempotencyKey, Problem> {
    if !source.contains('|')
        && let Ok(key) = IdempotencyKey::new(format!("{source}|{id}"))
    {
        return Ok(key);
    }
    Ok(IdempotencyKey::new(format!("ce-{}", Hex(&digest(&[source.as_bytes(), id.as_bytes()]))))?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), http::HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const WHOLE: [(&str, &str); 5] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/till/3"),
        ("ce-type", "com.example.deposit"),
        ("content-type", "application/json"),
    ];

    fn around() -> Around {
        Around { tenant: Tenant::default(), queue: QueueName::new("deposits").unwrap(), trace: BTreeMap::new() }
    }

    fn said(problem: Problem) -> String {
        problem.into_wire().detail
    }

    #[test]
    fn one_event_is_the_same_message_in_either_mode() {
        let data = r#"{ "cents": 1.50 }"#;
        let in_headers = binary(&headers(&[&WHOLE[..], &[("ce-lane", "fast")]].concat()), data.as_bytes(), 64).unwrap();
        let in_json = format!(
            r#"{{"specversion":"1.0","id":"7","source":"/till/3","type":"com.example.deposit","lane":"fast","datacontenttype":"application/json","data":{data}}}"#
        );
        let in_json = structured(in_json.as_bytes(), 64, "$").unwrap();
        assert_eq!(in_headers, in_json);
        let message = around().message(in_json, None).unwrap();
        assert_eq!(message.payload.text(), data);
        assert_eq!(message.kind.as_str(), "com.example.deposit");
        assert_eq!(message.key.as_str(), "/till/3|7");
        assert_eq!(message.headers["ce-lane"], "fast");
        assert_eq!(message.headers["ce-id"], "7");
    }

    #[test]
    fn a_value_in_a_header_is_unquoted_and_then_decoded_once() {
        let cases = [
            ("plain", "plain"),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("%2525", "%25"),
            (r#""a \"b\" %20""#, "a \"b\"  "),
            (r#""back\\slash""#, r"back\slash"),
            ("\"\"", ""),
        ];
        for (sent, meant) in cases {
            assert_eq!(decoded(sent.as_bytes()).as_deref(), Ok(meant), "{sent}");
        }
        for bad in ["%", "%2", "%zz", "%E2%82", "%ff", "\"a\"b\"", "\"a\\\""] {
            assert!(decoded(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_is_no_event_is_refused_with_what_is_wrong() {
        for left_out in ["ce-id", "ce-source", "ce-type"] {
            let some: Vec<_> = WHOLE.into_iter().filter(|(name, _)| *name != left_out).collect();
            let what = said(binary(&headers(&some), b"1", 64).unwrap_err());
            assert!(what.contains(&left_out[3..]), "{what}");
        }
        let with = |name: &'static str, value: &'static str| {
            let mut all: Vec<_> = WHOLE.into_iter().filter(|(other, _)| *other != name).collect();
            all.push((name, value));
            binary(&headers(&all), b"1", 64).map_err(said)
        };
        assert!(with("ce-specversion", "0.3").unwrap_err().contains("\"0.3\" is not 1.0"));
        assert!(with("ce-time", "yesterday").unwrap_err().contains("time"));
        assert!(with("ce-time", "2026-11-23T10:00:00+01:00").is_ok());
        assert!(with("ce-datacontenttype", "application/json").unwrap_err().contains("Content-Type"));
        assert!(with("ce-data", "1").unwrap_err().contains("name of an attribute"));
        assert!(with("ce-sub-ject", "1").unwrap_err().contains("name of an attribute"));
        assert!(with("ce-subject", "%00%ff").unwrap_err().contains("not UTF-8"));
        let twice = headers(&[&WHOLE[..], &[("ce-id", "8")]].concat());
        assert!(said(binary(&twice, b"1", 64).unwrap_err()).contains("more than once"));
        for (json, what) in [
            (r#"{"specversion":"1.0"}"#, "id is missing"),
            (r#"{"specversion":"1.0","id":"1","source":"","type":"t"}"#, "source is missing or empty"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","Upper":1}"#, "\"Upper\""),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":{}}"#, "attribute x"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":1.5}"#, "attribute x"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":""}"#, "both"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"!"}"#, "not Base64"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"e30"}"#, "not Base64"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"eyI="}"#, "no JSON"),
            (
                r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/xml","data":"<a/>"}"#,
                "text/xml",
            ),
            (r#"{"id":"1","id":"2"}"#, "appears twice"),
            ("[]", "wrong at $"),
        ] {
            let problem = structured(json.as_bytes(), 64, "$").unwrap_err();
            let detail = said(problem);
            assert!(detail.contains(what), "{json}: {detail}");
        }
    }

    #[test]
    fn data_in_base64_is_taken_where_it_is_json() {
        let json = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"eyJhIjogMX0="}"#;
        assert_eq!(structured(json.as_bytes(), 64, "$").unwrap().data, r#"{"a": 1}"#);
    }

    #[test]
    fn two_events_never_share_a_key() {
        let key = |source: &str, id: &str| key_of(source, id).unwrap().as_str().to_owned();
        assert_ne!(key("a|b", "c"), key("a", "b|c"));
        assert_eq!(key("a", "b|c"), "a|b|c");
        let long = "x".repeat(300);
        assert_eq!(key(&long, "1").len(), 67);
        assert_ne!(key(&long, "1"), key(&long, "2"));
        assert_ne!(key("ü", "1"), key("ö", "1"));
    }

    #[test]
    fn the_trace_of_the_event_goes_before_that_of_the_request() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let around = Around { trace: [("traceparent".to_owned(), "of the request".to_owned())].into(), ..around() };
        let event = |more: &str| {
            let json = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{more}}}"#);
            around.message(structured(json.as_bytes(), 64, "$").unwrap(), None).unwrap().headers["traceparent"].clone()
        };
        assert_eq!(event(""), "of the request");
        assert_eq!(event(&format!(r#","traceparent":"{parent}""#)), parent);
        assert_eq!(event(r#","traceparent":"nonsense""#), "of the request");
    }

    fn encoded(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let mut bits = 0;
            for at in 0..3 {
                bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or_default());
            }
            for place in 0..4 {
                let digit = DIGITS[usize::try_from(bits >> (18 - 6 * place) & 63).unwrap()];
                text.push(if place <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text
    }

    proptest! {
        #[test]
        fn every_text_is_read_back_from_its_percent_encoding(text in ".{0,40}") {
            let sent: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decoded(sent.as_bytes()), Ok(text));
        }

        #[test]
        fn every_text_is_read_back_from_quotes(text in "[ !#$&-\\[\\]-~]{0,40}") {
            prop_assert_eq!(decoded(format!("\"{text}\"").as_bytes()), Ok(text));
        }

        #[test]
        fn all_bytes_are_read_back_from_base64(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(from_base64(&encoded(&bytes)), Some(bytes));
        }

        #[test]
        fn no_header_and_no_body_panics_and_what_is_taken_is_a_message(
            value in prop::collection::vec(any::<u8>(), 0..40), body in prop::collection::vec(any::<u8>(), 0..60),
            json in r#"\{"(specversion|id|data|data_base64)":("1.0"|"x"|null|[0-9]{1,12}|"[A-Za-z0-9+/=]{0,8}")\}"#,
        ) {
            let _unused = decoded(&value);
            let mut all = headers(&WHOLE);
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                all.insert("ce-subject", value);
            }
            if let Ok(event) = binary(&all, &body, 64) {
                prop_assert!(body.is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(&event.data).is_ok());
            }
            let _unused = structured(&body, 64, "$");
            let _unused = structured(json.as_bytes(), 64, "$");
        }

        #[test]
        fn keys_of_different_events_differ(a in "[a-c|]{1,4}", b in "[a-c|]{1,4}", c in "[a-c|]{1,4}", d in "[a-c|]{1,4}") {
            let (first, second) = (key_of(&a, &b).unwrap(), key_of(&c, &d).unwrap());
            prop_assert_eq!(first == second, (a, b) == (c, d));
        }
    }
}
