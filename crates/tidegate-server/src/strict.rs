//! JSON that two readers could understand differently is refused, with the place where.
//!
//! Before a body is read into its type it is looked through once: nesting is bounded, no object names a member twice, and
//! the text is UTF-8 and JSON to its end. When the type refuses a value, the place is found from where the reader stood.
//! The looking is the core's, the same that makes a payload canonical.

use serde::de::DeserializeOwned;
use tidegate::canonical::{CanonicalError, look_through, place_of};

/// As much of what was wrong as a person reads, in characters.
const LONGEST: usize = 300;

/// Why a text is not taken, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The place, such as `$.messages[3].kind`.
    pub(crate) path: String,
    /// What was wrong there.
    pub(crate) what: String,
}

/// Reads a text into a type.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8], depth: usize) -> Result<T, Wrong> {
    let text = std::str::from_utf8(bytes).map_err(|e| Wrong {
        path: "$".to_owned(),
        what: format!("the text is not UTF-8 at byte {}", e.valid_up_to()),
    })?;
    look_through(text, depth)?;
    serde_json::from_str(text).map_err(|error| refused(text, &error))
}

/// Why a type refused a text that is JSON, and where.
fn refused(text: &str, error: &serde_json::Error) -> Wrong {
    let said = error.to_string();
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    let line_start = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let until = (line_start + error.column()).min(text.len());
    // A value that was read and then refused is told of at the end of the object around it, as is a member that is missing.
    let until = match text.get(..until).and_then(|read| read.strip_suffix('}')) {
        Some(members) if !what.starts_with("missing field") => members.trim_end().len(),
        Some(_) | None => until,
    };
    Wrong { path: place_of(text, until), what: readable(what) }
}

/// What a type says has the value in it, which may be as long as the body.
fn readable(what: &str) -> String {
    let short: String = what.chars().take(LONGEST).collect();
    if short.len() < what.len() { format!("{short}… ({} bytes)", what.len()) } else { short }
}

impl From<CanonicalError> for Wrong {
    fn from(error: CanonicalError) -> Self {
        let CanonicalError { path, what, offset } = error;
        Self { path, what: format!("{what} at byte {offset}") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read, to see where reading fails")]
    struct Item {
        kind: tidegate::Kind,
        n: Option<u8>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read, to see where reading fails")]
    struct Items {
        messages: Vec<Item>,
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            ("", "$", "ends too early"),
            ("{", "$", "ends too early"),
            (r#"{"messages":[]} x"#, "$", "more text after"),
            (r#"{"messages":[{"kind":"a","n":1,"n":2}]}"#, "$.messages[0].n", "member \"n\" appears twice"),
            (r#"{"a":1,"\u0061":2}"#, "$.a", "appears twice"),
            (r#"{"messages":[{"kind":"a"},{"kind":"b b"}]}"#, "$.messages[1].kind", "invalid kind \"b b\""),
            (r#"{"messages":[{"kind":"a","n":300}]}"#, "$.messages[0].n", "invalid value: integer `300`"),
            (r#"{"messages":[{"kind":"a","n":"x"}]}"#, "$.messages[0].n", "invalid type: string \"x\""),
            (r#"{"messages":[{"n":1}]}"#, "$.messages[0]", "missing field `kind`"),
            (r#"{"messages":[{"kind":{"a":1}}]}"#, "$.messages[0].kind", "invalid type: map"),
            (
                "{\n \"messages\": [\n  {\"kind\": \"a\"},\n  {\"kind\": 7}\n ]\n}",
                "$.messages[1].kind",
                "invalid type: integer `7`",
            ),
            ("{\"messages\":[{\"kind\":\"\u{1}\"}]}", "$.messages[0].kind", "control character"),
            (r#"{"messages":[01]}"#, "$.messages[0]", "not a JSON number: 01"),
            ("{}", "$", "missing field `messages`"),
            ("[]", "$", "invalid"),
        ];
        for (text, path, what) in cases {
            let wrong = read::<Items>(text.as_bytes(), 64).unwrap_err();
            assert_eq!(wrong.path, path, "{text}: {}", wrong.what);
            assert!(wrong.what.contains(what), "{text}: {}", wrong.what);
        }
        assert!(
            read::<Items>(b"{\"messages\":[{\"kind\":\"\xff\"}]}", 64)
                .unwrap_err()
                .what
                .contains("not UTF-8 at byte 22")
        );
    }

    #[test]
    fn a_value_that_is_refused_is_not_sent_back_whole() {
        let long = "x".repeat(100_000);
        let wrong = read::<Items>(format!(r#"{{"messages":"{long}"}}"#).as_bytes(), 64).unwrap_err();
        assert_eq!(wrong.path, "$.messages");
        assert!(wrong.what.len() < 500 && wrong.what.starts_with("invalid type: string \"xxx"), "{}", wrong.what.len());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            // Doubles that their shortest text reads back from without a last digit lost: that is serde's to read.
            any::<i32>().prop_map(|n| (f64::from(n) / 8.0).into()),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::btree_map(".{0,5}", inner, 0..25)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_serde_writes_is_taken_and_read_alike(value in json()) {
            let text = value.to_string();
            prop_assert_eq!(&read::<serde_json::Value>(text.as_bytes(), 64).unwrap(), &value);
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(read::<serde_json::Value>(pretty.as_bytes(), 64).unwrap(), value);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _unused = read::<serde_json::Value>(&bytes, 64);
        }
    }
}
