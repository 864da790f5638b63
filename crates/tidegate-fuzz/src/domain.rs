//! Targets of the core: what is public there.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use http::{HeaderMap, HeaderValue};
use serde::de::IgnoredAny;
use serde_json::Value;
use tidegate::canonical::{MAX_DEPTH, canonicalize, look_through, place_of};
use tidegate::token::{Action, Glob, Scope, TokenHash};
use tidegate::{Address, IdempotencyKey, Kind, MessageId, QueueName, StoreError, Tenant, Timestamp};

/// The longest that an error may be, whatever it is about.
pub(crate) const LONGEST: usize = 2048;

pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(crate) fn is_readable(what: &str) {
    assert!(!what.is_empty() && what.len() <= LONGEST, "an error of {} bytes: {what:.200}", what.len());
}

/// A payload.
pub(crate) fn canonical(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match canonicalize(text) {
        Ok(once) => {
            assert_eq!(canonicalize(&once).as_ref(), Ok(&once), "the canonical text of a canonical text is itself");
            assert_eq!(look_through(text, MAX_DEPTH), Ok(()), "who looks only takes no less");
            let is_json =
                serde_json::from_str::<IgnoredAny>(text).is_ok() && serde_json::from_str::<IgnoredAny>(&once).is_ok();
            assert!(is_json, "what is canonical is JSON to serde: {text} is {once}");
            // A value of serde has no integers beyond the doubles; a payload has.
            if let Ok(value) = serde_json::from_str::<Value>(text) {
                let again: Value = serde_json::from_str(&once).expect("what is canonical means the same");
                assert!(alike(&value, &again), "{text} is {once}");
            }
            let everywhere = (0..=text.len()).step_by(1 + text.len() / 16);
            everywhere.for_each(|byte| assert!(place_of(text, byte).starts_with('$')));
        }
        Err(error) => {
            is_readable(&error.what);
            assert!(error.path.starts_with('$') && error.path.len() < MAX_DEPTH * 256, "{}", error.path.len());
            assert!(error.offset <= text.len(), "{} of {}", error.offset, text.len());
        }
    }
}

/// The same but for the last digit of a double, which serde reads a little otherwise where it is written otherwise.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(a), Some(b)) => one == other || (a - b).abs() <= a.abs() * 1e-14,
            (_, _) => one == other,
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(name, value): (&String, &Value)| other.get(name).is_some_and(|other| alike(value, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (one, other) => one == other,
    }
}

/// What is read is shown, and read from that again.
fn read<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            let again = shown.parse::<T>().map_err(|error| error.to_string());
            assert_eq!(again.as_ref(), Ok(&value), "{text:?} is shown as {shown:?}");
        }
        Err(error) => is_readable(&error.to_string()),
    }
}

/// A name is exactly what was given, or none.
fn named<T>(text: &str, new: impl Fn(&str) -> Result<T, StoreError>, name: impl Fn(&T) -> &str, longest: usize) {
    match new(text) {
        Ok(named) => {
            assert_eq!(name(&named), text);
            assert!(text.len() <= longest && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
        }
        Err(error) => is_readable(&error.to_string()),
    }
}

/// Names, keys, ids, times, addresses.
pub(crate) fn names(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    named(text, QueueName::new, QueueName::as_str, 100);
    named(text, Kind::new, Kind::as_str, 100);
    named(text, Tenant::new, Tenant::as_str, 100);
    named(text, |text| IdempotencyKey::new(text), IdempotencyKey::as_str, 255);
    read::<MessageId>(text);
    read::<tidegate::group::GroupId>(text);
    read::<Timestamp>(text);
    read::<tidegate_api::LeaseProof>(text);
    read::<tidegate_api::ClaimNonce>(text);
    read::<tidegate_api::Digest>(text);
    read::<TokenHash>(text);
    match text.parse::<Address>() {
        Ok(address) => {
            let revealed = address.reveal().expect("it was text");
            // Of a file it is the path, which as an address may need its scheme.
            let named = if address.file().is_some() { format!("sqlite://{revealed}") } else { revealed.to_owned() };
            assert_eq!(named.parse::<Address>().ok().as_ref(), Some(&address), "{text:?} is revealed as {revealed:?}");
            // Neither in what is shown nor in what is logged.
            let has_password = text.starts_with("postgres://ada:hunter2@")
                || ["?password=hunter2", "&password=hunter2"].iter().any(|parameter| text.contains(parameter));
            for shown in [address.to_string(), format!("{address:?}")] {
                let is_hidden = !shown.contains("hunter2") || text.matches("hunter2").count() > 1;
                let is_file = address.file().is_some();
                assert!(!has_password || is_hidden || is_file, "{text:?} is shown as {shown:?}");
            }
        }
        Err(error) => is_readable(&error.to_string()),
    }
}

/// Scopes, and a pattern with a name a line each.
pub(crate) fn scopes(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    read::<Scope>(text);
    read::<Action>(text);
    let mut lines = text.split('\n');
    let (Some(pattern), Some(other)) = (lines.next(), lines.next()) else { return };
    let (Ok(pattern), Ok(other)) = (Glob::new(pattern), Glob::new(other)) else { return };
    for name in lines.take(8) {
        let matched = pattern.matches(name);
        assert_eq!(matched, by_the_letter(pattern.as_str().as_bytes(), name.as_bytes()), "{pattern} and {name:?}");
        assert!(!pattern.covers(&other) || !other.matches(name) || matched, "{pattern} covers {other}, not {name:?}");
    }
}

/// What a pattern means, the slow way.
fn by_the_letter(pattern: &[u8], name: &[u8]) -> bool {
    // For each beginning of the name, whether the pattern so far names it.
    let mut named: Vec<bool> = (0..=name.len()).map(|length| length == 0).collect();
    for &letter in pattern {
        let before = named.clone();
        for length in 0..=name.len() {
            named[length] = match (letter, length.checked_sub(1)) {
                (b'*', None) => before[0],
                (b'*', Some(shorter)) => before[length] || named[shorter],
                (_, None) => false,
                (letter, Some(shorter)) => before[shorter] && name[shorter] == letter,
            };
        }
    }
    named[name.len()]
}

/// The header `Retry-After` of a gateway.
pub(crate) fn retry_after(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("retry-after", value);
    let now = Timestamp::from_millis(1_700_000_000_000);
    let Some(after) = tidegate::http::retry_after(&headers, now) else { return };
    // Whatever was said, there is a moment for it.
    assert!(now.after(after) >= now && now.after(after) <= Timestamp::FAR_FUTURE);
    let unavailable = StoreError::unavailable("x").retry_after(after);
    assert_eq!(unavailable.retry_after_duration(), Some(after));
}
