//! What failures have in common: the group of a dead letter, so that ten thousand of them are looked at as twelve.
//!
//! Two failures are of one group when kind, code and effect are the same and the first line of what was said differs in
//! nothing but numbers, identifiers and quoted text. A pure function, computed once when the message is settled.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::effect::{EffectRow, EffectState};
use crate::error::StoreError;
use crate::id::{self, EffectName, Kind, digest16};

/// Names a group of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u64);

impl GroupId {
    /// The group of a failure.
    #[must_use]
    pub fn of(kind: &Kind, code: &str, effect: Option<&EffectName>, detail: &str) -> Self {
        let effect = effect.map_or("", EffectName::as_str);
        let pattern = pattern(detail);
        let mut first = [0; 8];
        let parts = [kind.as_str(), code, effect, &pattern].map(str::as_bytes);
        first.copy_from_slice(&digest16(&parts)[..8]);
        Self(u64::from_be_bytes(first))
    }

    /// As an engine stores it.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::from_be_bytes(self.0.to_be_bytes())
    }

    /// From what an engine stored.
    #[must_use]
    pub fn from_i64(stored: i64) -> Self {
        Self(u64::from_be_bytes(stored.to_be_bytes()))
    }
}

const PREFIX: &str = "grp_";

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:016x}", self.0)
    }
}

impl FromStr for GroupId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.len() == 16);
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Self).ok_or_else(|| {
            StoreError::invalid(format!("group {} is not grp_ and 16 hexadecimal digits", id::quoted(text)))
                .hint("groups are listed by: tidegate dead groups")
        })
    }
}

impl Serialize for GroupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GroupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The effect a run failed at: the one tried last that did not happen. None where no effect was tried, or all happened.
#[must_use]
pub fn failed_effect(journal: &[EffectRow]) -> Option<&EffectName> {
    let happened = |row: &&EffectRow| matches!(row.state, EffectState::Confirmed { .. });
    let tried = journal.iter().filter(|row| !happened(row));
    tried.max_by_key(|row| (row.first_intent_at, &row.effect, row.seq)).map(|row| &row.effect.name)
}

/// The longest pattern, in characters.
const LONGEST: usize = 200;

/// The first line of a text with everything masked that differs from message to message: `#` stands for a number, a
/// hexadecimal text or a UUID, `"…"` for a quoted text.
#[must_use]
pub fn pattern(detail: &str) -> String {
    let line: Vec<char> = detail.lines().next().unwrap_or_default().trim().chars().take(LONGEST * 4).collect();
    let mut out: Vec<char> = Vec::new();
    let mut at = 0;
    while let Some(&c) = line.get(at) {
        let rest = &line[at..];
        if let Some(length) = quoted(rest, out.last().copied()) {
            out.extend(['"', '…', '"']);
            at += length;
        } else if is_uuid(rest) {
            put_number(&mut out, &[]);
            at += UUID;
        } else if c.is_ascii_alphanumeric() {
            let length = rest.iter().take_while(|c| c.is_ascii_alphanumeric()).count();
            put_word(&mut out, &rest[..length]);
            at += length;
        } else {
            out.push(c);
            at += 1;
        }
    }
    out.into_iter().take(LONGEST).collect()
}

/// How long the quoted text is that begins here. An apostrophe inside a word begins none.
fn quoted(rest: &[char], before: Option<char>) -> Option<usize> {
    let quote = *rest.first()?;
    if !matches!(quote, '"' | '\'' | '`') || before.is_some_and(char::is_alphanumeric) {
        return None;
    }
    let inside = rest[1..].iter().position(|c| *c == quote)?;
    Some(inside + 2)
}

const UUID: usize = 36;

fn is_uuid(rest: &[char]) -> bool {
    let fits = |(place, c): (usize, &char)| match place {
        8 | 13 | 18 | 23 => *c == '-',
        _ => c.is_ascii_hexdigit(),
    };
    rest.len() >= UUID
        && rest[..UUID].iter().enumerate().all(fits)
        && !rest.get(UUID).is_some_and(char::is_ascii_alphanumeric)
}

/// A word without digits stays; letters before one number stay (`dep123`); everything else with a digit is an identifier.
fn put_word(out: &mut Vec<char>, word: &[char]) {
    let Some(first_digit) = word.iter().position(char::is_ascii_digit) else {
        out.extend(word);
        return;
    };
    let (letters, rest) = word.split_at(first_digit);
    let is_hex = word.iter().all(char::is_ascii_hexdigit);
    let is_numbered = !is_hex && rest.iter().all(char::is_ascii_digit);
    put_number(out, if is_numbered { letters } else { &[] });
}

/// `#`, but one for all of `12.5`, `10:17:03` or `10.0.0.7`.
fn put_number(out: &mut Vec<char>, letters: &[char]) {
    out.extend(letters);
    if letters.is_empty() && matches!(out[..], [.., '#', '.' | ',' | ':' | '-']) {
        out.pop();
        return;
    }
    out.push('#');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_differs_from_message_to_message_is_masked() {
        for (text, expected) in [
            ("", ""),
            ("gateway did not answer within 2000 ms", "gateway did not answer within # ms"),
            ("no reply within 12.5 s\nat line 3", "no reply within # s"),
            ("account acc_8f3a91bc is closed", "account acc_# is closed"),
            ("charge 0xDEADBEEF01 of dep-123", "charge # of dep-#"),
            ("order f81d4fae-7dec-11d0-a765-00a0c91e6bf6 unknown", "order # unknown"),
            ("missing field `amount` at line 1 column 27", "missing field \"…\" at line # column #"),
            ("currency \"EUR\" isn't served, says 'gw-7'", "currency \"…\" isn't served, says \"…\""),
            ("10.0.0.7:8080 refused at 2026-11-24T14:16:32.017Z", "# refused at #"),
            ("message msg_1m86ympgh0000 of queue2", "message msg_# of queue#"),
            ("an \"open quote", "an \"open quote"),
            ("ошибка 17 €", "ошибка # €"),
        ] {
            assert_eq!(pattern(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_group_is_told_by_kind_code_effect_and_pattern() {
        let kind = |name: &str| Kind::new(name).unwrap();
        let effect = EffectName::new("capture").unwrap();
        let group = GroupId::of(&kind("deposit"), "timeout", Some(&effect), "no reply within 2 s");
        assert_eq!(group, GroupId::of(&kind("deposit"), "timeout", Some(&effect), "no reply within 30 s"));
        for other in [
            GroupId::of(&kind("payout"), "timeout", Some(&effect), "no reply within 2 s"),
            GroupId::of(&kind("deposit"), "refused", Some(&effect), "no reply within 2 s"),
            GroupId::of(&kind("deposit"), "timeout", None, "no reply within 2 s"),
            GroupId::of(&kind("deposit"), "timeout", Some(&effect), "reset by peer"),
        ] {
            assert_ne!(other, group);
        }
    }

    #[test]
    fn a_group_is_read_as_it_is_written() {
        let group = GroupId::from_i64(-2);
        assert_eq!(group.to_string(), "grp_fffffffffffffffe");
        assert_eq!("grp_fffffffffffffffe".parse(), Ok(group));
        assert_eq!(GroupId::from_i64(group.as_i64()), group);
        for wrong in
            ["", "grp_", "fffffffffffffffe", "grp_FFFFFFFFFFFFFFFE", "grp_0fffffffffffffffe", "grp_+ffffffffffffffe"]
        {
            assert!(wrong.parse::<GroupId>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_digit_is_left_and_the_pattern_is_one_bounded_line(text in any::<String>()) {
            let pattern = pattern(&text);
            prop_assert!(!pattern.contains(|c: char| c.is_ascii_digit() || c == '\n'), "{pattern:?}");
            prop_assert!(pattern.chars().count() <= LONGEST);
        }

        #[test]
        fn numbers_ids_and_quoted_text_make_no_difference(
            words in "[a-z ]{0,20}[g-z]", one: (u32, u128, u64), other: (u32, u128, u64),
            quoted in "[^\"\n]{0,20}", otherwise in "[^\"\n]{0,20}",
        ) {
            let text = |(number, id, hex): (u32, u128, u64), quoted: &str| {
                let digits = format!("{id:032x}");
                let uuid = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-");
                format!("{words} {number} of {uuid}, key 0x{hex:x}, said \"{quoted}\"\nat {number}")
            };
            prop_assert_eq!(pattern(&text(one, &quoted)), pattern(&text(other, &otherwise)));
        }
    }
}
