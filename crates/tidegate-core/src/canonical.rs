//! One text for one JSON value: what the fingerprint of a payload is taken from.
//!
//! Members are sorted by their name's bytes, strings are written with the fewest escapes, numbers by their exact decimal
//! value. What two JSON readers could understand differently is refused with its path: a member that appears twice, a
//! fraction or exponent that does not survive a double, a lone surrogate. Integers of any length are exact. (RFC 8785
//! goes through doubles instead, which turns 9007199254740993 into …992 and so merges two payloads.)

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use crate::id::{Kind, digest16};

/// The deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 64;
/// So many members of one object are compared one by one.
const FEW_MEMBERS: usize = 16;

/// Why a text is no canonicalisable JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalError {
    /// Path of the value, such as `$.items[3].price`.
    pub path: String,
    /// What was wrong there, with the value.
    pub what: String,
    /// Byte offset in the text.
    pub offset: usize,
}

impl fmt::Display for CanonicalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} (byte {})", self.what, self.path, self.offset)
    }
}

impl std::error::Error for CanonicalError {}

/// Identifies what a message asks for: SHA-256 over kind and canonical payload, sixteen bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The fingerprint of a payload that is already canonical.
    #[must_use]
    pub fn of(kind: &Kind, canonical: &str) -> Self {
        Self(digest16(&[kind.as_str().as_bytes(), canonical.as_bytes()]))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", crate::id::Hex(&self.0))
    }
}

/// The canonical text of a JSON text.
///
/// # Errors
/// When the text is not JSON, nests deeper than [`MAX_DEPTH`], names a member twice, or holds a number that does not
/// survive a double.
pub fn canonicalize(text: &str) -> Result<String, CanonicalError> {
    let mut reader = Reader { text, at: 0, path: Vec::new() };
    let mut out = String::with_capacity(text.len());
    reader.space();
    reader.value(&mut out)?;
    reader.space();
    if reader.at < text.len() {
        return Err(reader.wrong("more text after the value"));
    }
    Ok(out)
}

enum Step<'a> {
    Member(Cow<'a, str>),
    Item(usize),
}

/// A member that was written: its name, and where its text begins.
struct Member<'a> {
    name: Cow<'a, str>,
    from: usize,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    path: Vec<Step<'a>>,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: impl Into<String>) -> CanonicalError {
        let mut path = String::from("$");
        for step in &self.path {
            match step {
                Step::Member(name) => {
                    path.push('.');
                    path.push_str(name);
                }
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        CanonicalError { path, what: what.into(), offset: self.at }
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

    fn unexpected(&self) -> CanonicalError {
        match self.text[self.at..].chars().next() {
            Some(c) => self.wrong(format!("unexpected {c:?}")),
            None => self.wrong("the text ends too early"),
        }
    }

    fn value(&mut self, out: &mut String) -> Result<(), CanonicalError> {
        match self.peek() {
            Some(b'{') => self.object(out),
            Some(b'[') => self.array(out),
            Some(b'"') => {
                let string = self.string()?;
                write_string(out, &string);
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => self.number(out),
            _ => self.word(out),
        }
    }

    fn word(&mut self, out: &mut String) -> Result<(), CanonicalError> {
        let Some(word) = ["true", "false", "null"].into_iter().find(|word| self.text[self.at..].starts_with(word))
        else {
            return Err(self.unexpected());
        };
        self.at += word.len();
        out.push_str(word);
        Ok(())
    }

    fn enter(&mut self, step: Step<'a>) -> Result<(), CanonicalError> {
        if self.path.len() == MAX_DEPTH {
            return Err(self.wrong(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.path.push(step);
        Ok(())
    }

    fn array(&mut self, out: &mut String) -> Result<(), CanonicalError> {
        self.at += 1;
        out.push('[');
        self.space();
        if self.eat(b']') {
            out.push(']');
            return Ok(());
        }
        for index in 0.. {
            self.enter(Step::Item(index))?;
            self.space();
            self.value(out)?;
            self.path.pop();
            self.space();
            if self.eat(b']') {
                break;
            }
            if !self.eat(b',') {
                return Err(self.unexpected());
            }
            out.push(',');
        }
        out.push(']');
        Ok(())
    }

    /// Writes the members as they come, which is their order where a program wrote them sorted; else puts them in order after.
    fn object(&mut self, out: &mut String) -> Result<(), CanonicalError> {
        self.at += 1;
        let start = out.len();
        out.push('{');
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut sorted = true;
        // Of a few members each is compared with each; of very many, that would be work for an attacker to order.
        let mut many: HashSet<Cow<'a, str>> = HashSet::new();
        self.space();
        if !self.eat(b'}') {
            loop {
                self.space();
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected());
                }
                let name = self.string()?;
                self.enter(Step::Member(name.clone()))?;
                self.space();
                if !self.eat(b':') {
                    return Err(self.unexpected());
                }
                self.space();
                if !members.is_empty() {
                    out.push(',');
                }
                let from = out.len();
                write_string(out, &name);
                out.push(':');
                self.value(out)?;
                // A name behind all others is none of them.
                sorted = sorted && members.last().is_none_or(|last| last.name < name);
                let known = !sorted
                    && if members.len() < FEW_MEMBERS {
                        members.iter().any(|known| known.name == name)
                    } else {
                        if many.is_empty() {
                            many.extend(members.iter().map(|known| known.name.clone()));
                        }
                        !many.insert(name.clone())
                    };
                if known {
                    return Err(self.wrong(format!("member {name:?} appears twice")));
                }
                self.path.pop();
                members.push(Member { name, from });
                self.space();
                if self.eat(b'}') {
                    break;
                }
                if !self.eat(b',') {
                    return Err(self.unexpected());
                }
            }
        }
        if !sorted {
            sort(out, start, &members);
        }
        out.push('}');
        Ok(())
    }

    /// Reads a string by serde's rules for escapes; finds its end by ours. A borrowed one is written as it stands.
    fn string(&mut self) -> Result<Cow<'a, str>, CanonicalError> {
        let start = self.at;
        self.at += 1;
        let mut plain = true;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let Some(next) = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ') else {
                self.at = self.text.len();
                return Err(self.wrong("a string is not closed"));
            };
            self.at += next;
            match rest[next] {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
            plain = false;
        }
        self.at += 1;
        let literal = &self.text[start..self.at];
        if plain {
            // Nothing to decode and nothing that JSON forbids in a string: most strings.
            return Ok(Cow::Borrowed(&literal[1..literal.len() - 1]));
        }
        serde_json::from_str(literal).map(Cow::Owned).map_err(|e| {
            self.at = start;
            self.wrong(format!("not a string: {e}"))
        })
    }

    fn number(&mut self, out: &mut String) -> Result<(), CanonicalError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let literal = &self.text[start..self.at];
        match canonical_number(literal) {
            Ok(number) => {
                out.push_str(&number);
                Ok(())
            }
            Err(what) => {
                self.at = start;
                Err(self.wrong(what))
            }
        }
    }
}

/// Puts the members of an object, which begins at `start` and is not closed, into the order of their names.
fn sort(out: &mut String, start: usize, members: &[Member<'_>]) {
    let written = out.split_off(start + 1);
    let ends = members.iter().skip(1).map(|next| next.from - 1).chain([start + 1 + written.len()]);
    let mut texts: Vec<(&str, &str)> = (members.iter().zip(ends))
        .map(|(member, end)| (&*member.name, &written[member.from - start - 1..end - start - 1]))
        .collect();
    texts.sort_unstable_by_key(|(name, _)| *name);
    for (index, (_, text)) in texts.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(text);
    }
}

#[expect(clippy::ptr_arg, reason = "whether it is borrowed says whether there is anything to escape")]
fn write_string(out: &mut String, string: &Cow<'_, str>) {
    out.push('"');
    let mut written = 0;
    let decoded = if matches!(string, Cow::Borrowed(_)) { &[] } else { string.as_bytes() };
    for (at, byte) in decoded.iter().enumerate() {
        // All of them are ASCII, so that what lies between two is whole characters: copied at once, not one by one.
        if *byte >= b' ' && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.push_str(&string[written..at]);
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            control => out.push_str(&format!("\\u{control:04x}")),
        }
        written = at + 1;
    }
    out.push_str(&string[written..]);
    out.push('"');
}

/// A decimal number as its sign, its digits without leading or trailing zeros, and the power of ten of the last digit.
#[derive(PartialEq, Eq, Debug)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

/// Reads a JSON number literal; `None` when the grammar of RFC 8259 does not allow it.
fn decimal(literal: &str) -> Option<Decimal> {
    let (negative, unsigned) = literal.strip_prefix('-').map_or((false, literal), |rest| (true, rest));
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (mantissa, exponent.strip_prefix('+').unwrap_or(exponent).parse::<i32>().ok()?)
        }
        None => (unsigned, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    if whole.is_empty() || leading_zero || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let kept = all.trim_end_matches('0');
    let dropped = i64::try_from(all.len() - kept.len()).ok()?;
    let exponent = i64::from(exponent) - i64::try_from(fraction.len()).ok()? + dropped;
    let digits = kept.trim_start_matches('0').to_owned();
    if digits.is_empty() {
        return Some(Decimal { negative: false, digits, exponent: 0 });
    }
    Some(Decimal { negative, digits, exponent })
}

fn canonical_number(literal: &str) -> Result<String, String> {
    let short = || literal.chars().take(60).collect::<String>();
    let number = decimal(literal).ok_or_else(|| format!("not a JSON number: {}", short()))?;
    if literal.contains(['.', 'e', 'E']) && !survives_a_double(literal, &number) {
        return Err(format!("the number {} does not survive a double; send it as a string", short()));
    }
    Ok(write_decimal(&number))
}

/// Whether a reader that goes through an IEEE double sees the same decimal value, as some writer of doubles prints it.
///
/// Where two shortest decimals are equally near to a double (1095195527305423.25), writers differ in which they print: what
/// one of them printed must not be refused.
fn survives_a_double(literal: &str, number: &Decimal) -> bool {
    let Ok(double) = literal.parse::<f64>() else { return false };
    let Some(elsewhere) = serde_json::Number::from_f64(double) else { return false };
    [format!("{double:e}"), elsewhere.to_string()].iter().any(|text| decimal(text).as_ref() == Some(number))
}

/// Plain digits for what a person would write plainly, `<digits>e<exponent>` for the rest.
fn write_decimal(number: &Decimal) -> String {
    let Decimal { negative, digits, exponent } = number;
    if digits.is_empty() {
        return "0".to_owned();
    }
    let sign = if *negative { "-" } else { "" };
    let point = i64::try_from(digits.len()).unwrap_or(i64::MAX).saturating_add(*exponent);
    match (usize::try_from(*exponent), usize::try_from(point)) {
        (Ok(zeros), _) if zeros <= 400 => format!("{sign}{digits}{}", "0".repeat(zeros)),
        (Err(_), Ok(point)) if point > 0 => format!("{sign}{}.{}", &digits[..point], &digits[point..]),
        (Err(_), Ok(_)) => format!("{sign}0.{digits}"),
        (Err(_), Err(_)) if point >= -20 => {
            let zeros = usize::try_from(-point).unwrap_or(0);
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
        _ => format!("{sign}{digits}e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(canonicalize(text).as_deref(), Ok(expected), "{text}");
    }

    fn refused(text: &str, path: &str, what: &str) {
        let error = canonicalize(text).unwrap_err();
        assert_eq!(error.path, path, "{error}");
        assert!(error.what.contains(what), "{error}");
    }

    #[test]
    fn members_are_sorted_and_space_is_dropped() {
        check(" { \"b\" : [ 1 , true , null ] , \"a\" : { } } ", r#"{"a":{},"b":[1,true,null]}"#);
        check("[]", "[]");
        check(r#""\u00e4\/\n\u0041""#, "\"ä/\\u000aA\"");
    }

    #[test]
    fn integers_keep_every_digit() {
        check("9007199254740993", "9007199254740993");
        check("123456789012345678901234567890", "123456789012345678901234567890");
        check("-0", "0");
        check("100", "100");
    }

    #[test]
    fn one_number_has_one_text() {
        for text in ["1.5", "1.50", "15e-1", "0.15E+1"] {
            check(text, "1.5");
        }
        for text in ["100", "1e2", "100.0"] {
            check(text, "100");
        }
        check("0.001", "0.001");
        check("1e-300", "1e-300");
        check("-0.0", "0");
    }

    #[test]
    fn either_of_two_shortest_decimals_of_a_double_is_taken_and_they_stay_apart() {
        check("1095195527305423.2", "1095195527305423.2");
        check("1095195527305423.3", "1095195527305423.3");
    }

    #[test]
    fn a_number_that_does_not_survive_a_double_is_refused_with_its_path() {
        refused(r#"{"a":[0,{"b":0.1000000000000000055}]}"#, "$.a[1].b", "0.1000000000000000055");
        refused("1e400", "$", "does not survive");
        refused("9007199254740993.0", "$", "does not survive");
    }

    #[test]
    fn a_member_that_appears_twice_is_refused_with_its_path() {
        refused(r#"{"x":{"a":1,"b":2,"a":1}}"#, "$.x.a", "\"a\" appears twice");
        refused(r#"{"a":1,"\u0061":2}"#, "$.a", "appears twice");
        for members in [15, 16, 17, 18, 40] {
            let all: Vec<String> = (0..members).map(|n| format!("\"m{n}\":0")).collect();
            assert!(canonicalize(&format!("{{{}}}", all.join(","))).is_ok());
            for doubled in 0..members {
                let twice = format!("{{{},\"m{doubled}\":0}}", all.join(","));
                refused(&twice, &format!("$.m{doubled}"), "appears twice");
            }
        }
    }

    #[test]
    fn an_object_with_very_many_members_costs_no_more_than_its_length() {
        let many: Vec<String> = (0..200_000).map(|n| format!("\"m{n}\":0")).collect();
        assert!(canonicalize(&format!("{{{}}}", many.join(","))).is_ok());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "tru",
            "\"\\ud800\"",
            "\"a",
            "\"\u{1}\"",
            "1 2",
            "nan",
            "\"\\",
        ] {
            assert!(canonicalize(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(canonicalize(&deep(MAX_DEPTH)).is_ok());
        assert!(canonicalize(&deep(100_000)).is_err());
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::btree_map(".{0,5}", inner, 0..5)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_text_is_a_fixed_point_and_means_the_same(value in json()) {
            let once = canonicalize(&value.to_string()).unwrap();
            prop_assert_eq!(canonicalize(&once).unwrap(), once.as_str());
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(canonicalize(&pretty).unwrap(), once);
        }

        #[test]
        fn integers_of_any_length_are_distinct(a in "[1-9][0-9]{0,60}", b in "[1-9][0-9]{0,60}") {
            prop_assert_eq!(canonicalize(&a).unwrap() == canonicalize(&b).unwrap(), a == b);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _unused = canonicalize(&text);
        }

        #[test]
        fn what_is_taken_is_json_to_serde_as_well(text in r#"[\[\]{}",:0-9eE.+\-tfn \\u]{0,24}"#) {
            if canonicalize(&text).is_ok() {
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
            }
        }
    }
}
