//! One text for one JSON value: what the fingerprint of a payload is taken from.
//!
//! Members are sorted by their name's bytes, strings are written with the fewest escapes, numbers by their exact decimal
//! value. What two JSON readers could understand differently is refused with its path: a member that appears twice, a
//! fraction or exponent that does not survive a double, a lone surrogate. Integers of any length are exact. (RFC 8785
//! goes through doubles instead, which turns 9007199254740993 into …992 and so merges two payloads.)

use std::borrow::Cow;
use std::fmt;

use crate::id::{Kind, digest16};
use crate::scan::{Member, Out, Scanner, short};

/// The deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: usize = 64;

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
    Scanner::new(text, MAX_DEPTH, String::with_capacity(text.len())).whole()
}

/// Whether a text is JSON that everybody reads alike: the same without a canonical text. What a number is worth is not
/// looked at, only whether it is one.
///
/// # Errors
/// When the text is not JSON, nests deeper than `depth`, or names a member twice.
pub fn look_through(text: &str, depth: usize) -> Result<(), CanonicalError> {
    Scanner::new(text, depth, Nowhere).whole().map(|Nowhere| ())
}

/// The path of the value in which a reader of the text stood at this byte. The text is JSON: it was looked through.
#[must_use]
pub fn place_of(text: &str, byte: usize) -> String {
    // The only way not to come to its end is to come to the place.
    match Scanner::new(text, usize::MAX, Nowhere).until(byte).whole() {
        Ok(Nowhere) => "$".to_owned(),
        Err(stopped) => stopped.path,
    }
}

/// Where nothing is written to.
struct Nowhere;

impl Out for Nowhere {
    fn at(&self) -> usize {
        0
    }

    fn plain(&mut self, _: &str) {}

    fn string(&mut self, _: &Cow<'_, str>) {}

    fn number(&mut self, literal: &str) -> Result<(), String> {
        if is_number(literal) { Ok(()) } else { Err(no_number(literal)) }
    }

    fn sort(&mut self, _: usize, _: &[Member<'_>]) {}
}

impl Out for String {
    fn at(&self) -> usize {
        self.len()
    }

    fn plain(&mut self, text: &str) {
        self.push_str(text);
    }

    fn string(&mut self, string: &Cow<'_, str>) {
        write_string(self, string);
    }

    fn number(&mut self, literal: &str) -> Result<(), String> {
        self.push_str(&canonical_number(literal)?);
        Ok(())
    }

    fn sort(&mut self, start: usize, members: &[Member<'_>]) {
        sort(self, start, members);
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

/// The parts of a JSON number literal: whole digits, those of the fraction, and the exponent as it is written. `None` when
/// the grammar of RFC 8259 does not allow it.
fn parts(unsigned: &str) -> Option<(&str, &str, &str)> {
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let written = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if written.is_empty() || !digits(written) {
                return None;
            }
            (mantissa, exponent)
        }
        None => (unsigned, "0"),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    let sound = !whole.is_empty() && !leading_zero && digits(whole) && digits(fraction);
    sound.then_some((whole, fraction, exponent))
}

fn is_number(literal: &str) -> bool {
    parts(literal.strip_prefix('-').unwrap_or(literal)).is_some()
}

fn no_number(literal: &str) -> String {
    format!("not a JSON number: {}", short(literal))
}

/// Reads a JSON number literal; `None` when it is none, or of an exponent that no reader has a number for.
fn decimal(literal: &str) -> Option<Decimal> {
    let (negative, unsigned) = literal.strip_prefix('-').map_or((false, literal), |rest| (true, rest));
    let (whole, fraction, exponent) = parts(unsigned)?;
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent).parse::<i32>().ok()?;
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
    let number = decimal(literal).ok_or_else(|| no_number(literal))?;
    if literal.contains(['.', 'e', 'E']) && !survives_a_double(literal, &number) {
        return Err(format!("the number {} does not survive a double; send it as a string", short(literal)));
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

    #[test]
    fn who_only_looks_bounds_nesting_as_it_was_told_at_the_very_level() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert_eq!(look_through(&deep(65), 64), Ok(()), "65 brackets are 64 levels of items and an empty list");
        assert!(look_through(&deep(66), 64).unwrap_err().what.contains("deeper than 64"));
        assert!(look_through(&deep(1_000_000), 64).unwrap_err().what.contains("deeper than 64"));
        assert!(look_through(&deep(3), 1).is_err() && look_through(&deep(2), 1).is_ok());
    }

    #[test]
    fn an_object_with_very_many_members_is_looked_through_in_one_go() {
        let many: Vec<String> = (0..200_000).map(|n| format!("\"m{n}\":0")).collect();
        let once = format!("{{{}}}", many.join(","));
        assert_eq!(look_through(&once, 64), Ok(()));
        let twice = format!("{{{},\"m7\":1}}", many.join(","));
        assert_eq!(look_through(&twice, 64).unwrap_err().path, "$.m7");
    }

    #[test]
    fn an_error_shows_as_much_of_a_name_as_a_person_reads() {
        let name = "n".repeat(100_000);
        let error = canonicalize(&format!(r#"{{"{name}":1,"{name}":2}}"#)).unwrap_err().to_string();
        assert!(error.len() < 500 && error.contains("nnn…"), "{} bytes", error.len());
        let error = canonicalize(&format!(r#"{{"{name}":{{"{name}":{}}}}}"#, "1".repeat(100_000) + "x")).unwrap_err();
        assert!(error.to_string().len() < 500, "{} bytes", error.to_string().len());
    }

    #[test]
    fn a_place_is_the_value_in_which_a_reader_stood() {
        let text = r#"{"a":[1,{"b":"x"}],"c":2}"#;
        for (byte, place) in [(0, "$"), (4, "$.a"), (6, "$.a[0]"), (10, "$.a[1].b"), (15, "$.a[1].b"), (22, "$.c")] {
            assert_eq!(place_of(text, byte), place, "{byte}");
        }
        assert_eq!(place_of(text, 1000), "$");
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
            let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            if look_through(&text, MAX_DEPTH).is_ok() {
                prop_assert!(is_json(), "{}", text);
            } else {
                // The canonical form refuses more (numbers), never less.
                prop_assert!(canonicalize(&text).is_err(), "{}", text);
            }
        }

        #[test]
        fn a_member_that_is_doubled_anywhere_is_found(value in json(), name in "[a-c]{1,2}") {
            let doubled = format!("{{\"x\":[{value},{{\"{name}\":1,\"y\":{value},\"{name}\":2}}]}}");
            let wrong = look_through(&doubled, 64).unwrap_err();
            prop_assert_eq!(wrong.path, format!("$.x[1].{name}"));
        }
    }
}
