//! JSON that two readers could understand differently is refused, with the place where.
//!
//! Before a body is read into its type it is looked through once: nesting is bounded, no object names a member twice, and
//! the text is UTF-8 and JSON to its end. When the type refuses a value, the place is found from where the reader stood.
//! Nothing of the body is copied, and the work grows with its length alone, whatever is in it.

use std::collections::HashSet;

use serde::de::DeserializeOwned;

/// So many members of one object are compared one by one; beyond, a set costs less.
const FEW: usize = 16;

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

/// Fails where the text is not JSON that everybody reads alike.
pub(crate) fn look_through(text: &str, depth: usize) -> Result<(), Wrong> {
    let mut reader = Reader { text, at: 0, depth, place: Vec::new(), until: usize::MAX };
    reader.space();
    reader.value()?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.wrong("there is more text after the value"));
    }
    Ok(())
}

/// Why a type refused a text that is JSON, and where.
fn refused(text: &str, error: &serde_json::Error) -> Wrong {
    let said = error.to_string();
    let what = said.split_once(" at line ").map_or(said.as_str(), |(what, _)| what).to_owned();
    let line_start = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let until = (line_start + error.column()).min(text.len());
    // A value that was read and then refused is told of at the end of the object around it, as is a member that is missing.
    let until = match text.get(..until).and_then(|read| read.strip_suffix('}')) {
        Some(members) if !what.starts_with("missing field") => members.trim_end().len(),
        Some(_) | None => until,
    };
    let mut reader = Reader { text, at: 0, depth: usize::MAX, place: Vec::new(), until };
    reader.space();
    // It is JSON: the only way not to come to its end is to come to the place.
    let path = match reader.value() {
        Ok(()) => "$".to_owned(),
        Err(wrong) => wrong.path,
    };
    Wrong { path, what }
}

enum Step<'a> {
    Member(&'a str),
    Item(usize),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    place: Vec<Step<'a>>,
    /// Where to stop, to know the place.
    until: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: impl Into<String>) -> Wrong {
        let mut path = String::from("$");
        for step in &self.place {
            match step {
                Step::Member(raw) => {
                    path.push('.');
                    // A name may be as long as the body: of it only as much as a person reads.
                    let name = decoded(raw);
                    path.extend(name.chars().take(60));
                    if name.chars().count() > 60 {
                        path.push('…');
                    }
                }
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        Wrong { path, what: what.into() }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self) -> Wrong {
        match self.text[self.at..].chars().next() {
            Some(c) => self.wrong(format!("unexpected {c:?} at byte {}", self.at)),
            None => self.wrong("the text ends too early"),
        }
    }

    /// Stops where the reader of the type stood.
    fn passed(&self) -> Result<(), Wrong> {
        if self.at >= self.until { Err(self.wrong("")) } else { Ok(()) }
    }

    fn value(&mut self) -> Result<(), Wrong> {
        // It may have stood before a value that it did not want at all.
        self.passed()?;
        match self.peek() {
            Some(b'{') => self.object()?,
            Some(b'[') => self.array()?,
            Some(b'"') => {
                self.string()?;
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        }
        self.passed()
    }

    fn word(&mut self) -> Result<(), Wrong> {
        let words = ["true", "false", "null"];
        let Some(word) = words.into_iter().find(|word| self.text[self.at..].starts_with(word)) else {
            return Err(self.unexpected());
        };
        self.at += word.len();
        Ok(())
    }

    /// The grammar of RFC 8259; what a number may be worth is its reader's business.
    fn number(&mut self) -> Result<(), Wrong> {
        let digits = |reader: &mut Self| {
            let start = reader.at;
            while matches!(reader.peek(), Some(b'0'..=b'9')) {
                reader.at += 1;
            }
            if reader.at > start { Ok(()) } else { Err(reader.unexpected()) }
        };
        self.eat(b'-');
        if !self.eat(b'0') {
            digits(self)?;
        }
        if self.eat(b'.') {
            digits(self)?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            digits(self)?;
        }
        Ok(())
    }

    fn enter(&mut self, step: Step<'a>) -> Result<(), Wrong> {
        if self.place.len() >= self.depth {
            return Err(self.wrong(format!("nested deeper than {} levels", self.depth)));
        }
        self.place.push(step);
        Ok(())
    }

    fn array(&mut self) -> Result<(), Wrong> {
        self.at += 1;
        self.space();
        if self.eat(b']') {
            return Ok(());
        }
        for index in 0.. {
            self.space();
            self.enter(Step::Item(index))?;
            self.value()?;
            self.place.pop();
            self.space();
            if self.eat(b']') {
                break;
            }
            if !self.eat(b',') {
                return Err(self.unexpected());
            }
        }
        Ok(())
    }

    fn object(&mut self) -> Result<(), Wrong> {
        self.at += 1;
        self.space();
        if self.eat(b'}') {
            return Ok(());
        }
        let mut names = Names::default();
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.unexpected());
            }
            let name = self.string()?;
            self.enter(Step::Member(name))?;
            if !names.add(name) {
                return Err(self.wrong(format!("the member {name} is there twice")));
            }
            self.passed()?;
            self.space();
            if !self.eat(b':') {
                return Err(self.unexpected());
            }
            self.space();
            self.value()?;
            self.place.pop();
            self.space();
            if self.eat(b'}') {
                return Ok(());
            }
            if !self.eat(b',') {
                return Err(self.unexpected());
            }
        }
    }

    /// A string with its quotes.
    fn string(&mut self) -> Result<&'a str, Wrong> {
        let start = self.at;
        self.at += 1;
        let mut plain = true;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    plain = false;
                    self.at += 2;
                }
                Some(byte) => {
                    plain &= byte >= b' ';
                    self.at += 1;
                }
                None => {
                    self.at = self.text.len();
                    return Err(self.wrong("a string is not closed"));
                }
            }
        }
        self.at += 1;
        let literal = &self.text[start..self.at];
        if !plain && serde_json::from_str::<String>(literal).is_err() {
            self.at = start;
            return Err(self.wrong("a string has an escape or a control character that JSON does not have"));
        }
        Ok(literal)
    }
}

/// The text of a string literal.
fn decoded(literal: &str) -> String {
    serde_json::from_str(literal).unwrap_or_else(|_| literal.to_owned())
}

/// The members of one object so far.
#[derive(Default)]
struct Names<'a> {
    few: Vec<&'a str>,
    many: HashSet<std::borrow::Cow<'a, str>>,
}

impl<'a> Names<'a> {
    /// False when it was there already. Two spellings of one name are one name.
    fn add(&mut self, literal: &'a str) -> bool {
        let name = |literal: &'a str| match literal.contains('\\') {
            true => std::borrow::Cow::Owned(decoded(literal)),
            false => std::borrow::Cow::Borrowed(&literal[1..literal.len() - 1]),
        };
        if !self.many.is_empty() {
            return self.many.insert(name(literal));
        }
        let new = name(literal);
        if self.few.iter().any(|&known| name(known) == new) {
            return false;
        }
        self.few.push(literal);
        if self.few.len() > FEW {
            self.many = self.few.drain(..).map(name).collect();
        }
        true
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
            (r#"{"messages":[{"kind":"a","n":1,"n":2}]}"#, "$.messages[0].n", "the member \"n\" is there twice"),
            (r#"{"a":1,"\u0061":2}"#, "$.a", "is there twice"),
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
            (r#"{"messages":[01]}"#, "$.messages", "unexpected '1'"),
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
    fn nesting_is_bounded_at_the_very_level() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(look_through(&deep(65), 64), Ok(()), "65 brackets are 64 levels of items and an empty list");
        assert!(look_through(&deep(66), 64).unwrap_err().what.contains("deeper than 64"));
        assert!(look_through(&deep(1_000_000), 64).unwrap_err().what.contains("deeper than 64"));
    }

    #[test]
    fn an_object_with_very_many_members_is_looked_through_in_one_go() {
        let many: Vec<String> = (0..200_000).map(|n| format!("\"m{n}\":0")).collect();
        let once = format!("{{{}}}", many.join(","));
        assert_eq!(look_through(&once, 64), Ok(()));
        let twice = format!("{{{},\"m7\":1}}", many.join(","));
        assert_eq!(look_through(&twice, 64).unwrap_err().path, "$.m7");
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
        fn what_is_taken_is_json_to_serde_and_to_the_canonical_form(text in r#"[\[\]{}",:0-9eE.+\-tfn \\u]{0,24}"#) {
            let taken = look_through(&text, 64).is_ok();
            if taken {
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
            } else {
                // The canonical form refuses more (numbers), never less.
                prop_assert!(tidegate::canonical::canonicalize(&text).is_err(), "{}", text);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _unused = read::<serde_json::Value>(&bytes, 64);
        }

        #[test]
        fn a_member_that_is_doubled_anywhere_is_found(value in json(), name in "[a-c]{1,2}") {
            let doubled = format!("{{\"x\":[{value},{{\"{name}\":1,\"y\":{value},\"{name}\":2}}]}}");
            let wrong = look_through(&doubled, 64).unwrap_err();
            prop_assert_eq!(wrong.path, format!("$.x[1].{name}"));
        }
    }
}
