//! The header `Idempotency-Key`, as the draft of the IETF has it: a quoted string of structured fields (RFC 8941), or bare.

use http::HeaderMap;
use tidegate::IdempotencyKey;
use tidegate_api::ProblemType;

use crate::problem::Problem;

/// The header of a request.
pub(crate) const KEY: &str = "idempotency-key";
/// The header of an answer to a request that was done before.
pub(crate) const REPLAYED: &str = "idempotency-replayed";

/// The key of a request, if it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut named = headers.get_all(KEY).iter();
    match (named.next(), named.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(malformed("the header Idempotency-Key is there more than once")),
        (Some(value), None) => parse(value.as_bytes()).map(Some).map_err(|what| malformed(&what)),
    }
}

/// A key that is no key.
pub(crate) fn malformed(what: &str) -> Problem {
    Problem::new(ProblemType::KeyMalformed, what)
}

/// A key, quoted or bare. What is between quotes and what is bare is one key if it reads the same.
pub(crate) fn parse(value: &[u8]) -> Result<IdempotencyKey, String> {
    let not_ascii = || "the header Idempotency-Key has bytes that are not ASCII".to_owned();
    let text = std::str::from_utf8(value).map_err(|_| not_ascii())?.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(quoted) => unquoted(quoted)?,
    };
    IdempotencyKey::new(key).map_err(|error| error.what().to_owned())
}

/// A string of structured fields, after its first quote and to the last: nothing may follow, as no parameter is known.
fn unquoted(quoted: &str) -> Result<String, String> {
    let mut key = String::new();
    let mut letters = quoted.chars();
    loop {
        match letters.next() {
            Some('"') => break,
            Some('\\') => match letters.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                Some(_) | None => {
                    return Err("in the key a backslash stands before neither a quote nor a backslash".to_owned());
                }
            },
            Some(letter @ ' '..='~') => key.push(letter),
            Some(letter) => {
                return Err(format!("the key holds {letter:?}, which a string of structured fields cannot"));
            }
            None => return Err("the key begins with a quote and does not end with one".to_owned()),
        }
    }
    if letters.as_str().is_empty() {
        Ok(key)
    } else {
        Err("after the closing quote of the key there is more".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Result<String, String> {
        parse(value.as_bytes()).map(|key| key.as_str().to_owned())
    }

    #[test]
    fn a_key_is_taken_quoted_and_bare() {
        for value in ["\"deposit-7231\"", "deposit-7231", "  \"deposit-7231\" "] {
            assert_eq!(read(value).as_deref(), Ok("deposit-7231"), "{value}");
        }
        assert_eq!(read(r#""a\"b\\c""#).as_deref(), Ok(r#"a"b\c"#));
        assert_eq!(read("8e03978e-40d5-43e8-bc93-6894a57f9324").map(|key| key.len()), Ok(36));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("\"{}\"", "k".repeat(256));
        for value in [
            "",
            "\"\"",
            "\"",
            "\"a",
            "\"a\"b",
            "\"a\";p=1",
            "\"a\", \"b\"",
            "a b",
            "\"a b\"",
            r#""a\b""#,
            "käse",
            &long,
        ] {
            assert!(read(value).is_err(), "{value:?} was taken");
        }
        assert!(parse(b"\"a\xff\"").is_err());
        assert_eq!(read(&"k".repeat(255)).map(|key| key.len()), Ok(255));
    }

    #[test]
    fn two_headers_are_no_key() {
        let mut headers = HeaderMap::new();
        assert!(key(&headers).unwrap().is_none());
        headers.append(KEY, "a".parse().unwrap());
        assert_eq!(key(&headers).unwrap().unwrap().as_str(), "a");
        headers.append(KEY, "a".parse().unwrap());
        assert_eq!(key(&headers).unwrap_err().kind(), ProblemType::KeyMalformed);
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_from_its_quoted_form(key in "[!-~]{1,255}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(read(&quoted), Ok(key));
        }

        #[test]
        fn a_bare_key_without_a_quote_at_its_start_is_itself(key in "[!#-~][!-~]{0,254}") {
            prop_assert_eq!(read(&key), Ok(key));
        }

        #[test]
        fn no_bytes_panic_and_only_keys_come_out(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = parse(&bytes) {
                prop_assert!(IdempotencyKey::new(key.as_str()).is_ok());
            }
        }
    }
}
