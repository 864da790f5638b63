//! Checked names and identifiers: a value of one of these types cannot be wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::clock::Random;
use crate::error::StoreError;

/// The longest queue, kind, tenant or effect name, in bytes.
pub const MAX_NAME: usize = 100;
/// The longest idempotency key, in bytes.
pub const MAX_KEY: usize = 255;

fn check_name(what: &str, name: &str) -> Result<(), StoreError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(StoreError::invalid(format!("invalid {what} {}", quoted(name)))
        .hint(format!("1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -")))
}

/// A value in an error message: quoted, escaped, cut to a readable length.
pub(crate) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { format!("{short:?}… ({} bytes)", text.len()) } else { format!("{short:?}") }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            #[doc = concat!("A checked ", $what, ".")]
            ///
            /// # Errors
            /// `Invalid` when it is empty, longer than 100 bytes, or has a character outside `A-Z a-z 0-9 . _ -`.
            pub fn new(name: &str) -> Result<Self, StoreError> {
                check_name($what, name)?;
                Ok(Self(name.into()))
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = StoreError;
            fn from_str(name: &str) -> Result<Self, StoreError> {
                Self::new(name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A named line of messages with its own limits.
    QueueName, "queue name"
);
name!(
    /// Which handler a message is for.
    Kind, "kind"
);
name!(
    /// Names one effect inside a handler; with the optional item it is the effect's identity.
    EffectName, "effect name"
);
name!(
    /// The process that runs handlers, as shown to people.
    WorkerId, "worker id"
);
name!(
    /// Who acts over the network, as the audit shows it.
    TokenName, "token name"
);

/// Who a message belongs to; the empty tenant is the only one until an installation has several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Tenant(String);

impl Tenant {
    /// A checked tenant; empty is allowed.
    ///
    /// # Errors
    /// `Invalid` as for the other names.
    pub fn new(name: &str) -> Result<Self, StoreError> {
        if !name.is_empty() {
            check_name("tenant", name)?;
        }
        Ok(Self(name.to_owned()))
    }

    /// The name; empty for the default tenant.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Tenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The caller's name for one intended effect: to the caller for ever, to the store until the retention after the message's
/// end is over. From then on the key is unknown, and using it again is new work.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// A checked key.
    ///
    /// # Errors
    /// `Invalid` when it is empty, longer than 255 bytes or has anything but visible ASCII (no spaces).
    pub fn new(key: impl Into<String>) -> Result<Self, StoreError> {
        let key = key.into();
        if !key.is_empty() && key.len() <= MAX_KEY && key.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(key));
        }
        Err(StoreError::invalid(format!("invalid idempotency key {}", quoted(&key)))
            .hint(format!("1 to {MAX_KEY} visible ASCII characters, no spaces; hash anything longer")))
    }

    /// A key nobody else has: for a message that is deliberately not deduplicated.
    #[must_use]
    pub fn unique(random: &dyn Random) -> Self {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        Self(format!("unique-{}", Hex(&bytes)))
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sixteen bytes by which a store finds the key.
    ///
    /// A key that is a UUID in its canonical form is its own sixteen bytes, so that time-ordered UUIDs stay neighbours
    /// in the index; anything else is hashed. The mapping is injective but for collisions of 128 bits of SHA-256.
    #[must_use]
    pub fn hash(&self) -> [u8; 16] {
        canonical_uuid(&self.0).unwrap_or_else(|| digest16(&[self.0.as_bytes()]))
    }
}

fn canonical_uuid(text: &str) -> Option<[u8; 16]> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|&dash| bytes[dash] != b'-') {
        return None;
    }
    let mut digits = [0; 32];
    let mut found = bytes.iter().filter(|&&b| b != b'-');
    for digit in &mut digits {
        *digit = *found.next()?;
    }
    found.next().is_none().then(|| parse_hex(&digits))?
}

/// Sixteen bytes from 32 lowercase hexadecimal digits; anything else is `None`.
fn parse_hex(digits: &[u8]) -> Option<[u8; 16]> {
    let value = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for IdempotencyKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// SHA-256 over length-prefixed parts, so that no two lists of parts run into each other.
#[must_use]
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The first sixteen bytes of [`digest`].
#[must_use]
pub fn digest16(parts: &[&[u8]]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&digest(parts)[..16]);
    short
}

/// Prints bytes as lowercase hexadecimal.
#[derive(Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which message. Assigned by the store, grows with time, never reused. Prints as `msg_` and thirteen characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(i64);

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl MessageId {
    /// From the number an engine stores.
    #[must_use]
    pub fn from_i64(id: i64) -> Self {
        Self(id)
    }

    /// The number an engine stores.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        self.0
    }

    /// The id after `last` at this moment: time-ordered, and growing even when the clock does not.
    #[must_use]
    pub fn next_after(last: Self, now: crate::Timestamp) -> Self {
        // 43 bits of milliseconds reach the year 2248; twenty bits leave a million ids a millisecond.
        let millis = now.as_millis().min((1 << 43) - 1);
        Self((millis << 20).max(last.0 + 1))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0.cast_unsigned();
        f.write_str("msg_")?;
        for place in (0..13).rev() {
            let digit = (value >> (place * 5)) & 31;
            write!(f, "{}", char::from(BASE32[usize::try_from(digit).unwrap_or(0)]))?;
        }
        Ok(())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = || {
            StoreError::invalid(format!("not a message id: {}", quoted(text)))
                .hint("a message id looks like msg_01hfz6xqk0g00, as printed by enqueue and list")
        };
        let digits = text.strip_prefix("msg_").filter(|digits| digits.len() == 13).ok_or_else(wrong)?;
        let mut value: u64 = 0;
        for (place, b) in digits.bytes().enumerate() {
            let digit = BASE32.iter().position(|&d| d == b.to_ascii_lowercase()).ok_or_else(wrong)? as u64;
            if place == 0 && digit > 7 {
                return Err(wrong());
            }
            value = value << 5 | digit;
        }
        i64::try_from(value).map(Self).map_err(|_| wrong())
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// 128 random bits that a worker makes for one claim call.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// A fresh nonce.
    #[must_use]
    pub fn new(random: &dyn Random) -> Self {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        Self(bytes)
    }

    /// From the bytes an engine stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes an engine stores.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Nonce {
    /// Never the nonce itself: it is the secret that proves a lease.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(…)")
    }
}

/// The proof of a lease: how often the message had been claimed, and the claiming worker's nonce.
///
/// The count alone would come back after a restored backup; the nonce alone would not order two claims of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseToken {
    /// Claims of this message so far; strictly growing.
    pub claims: u32,
    /// What only the claimer knows.
    pub nonce: Nonce,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_outside_the_alphabet_is_refused_with_the_name() {
        let long = "x".repeat(101);
        for bad in ["", "a b", "käse", "a/b", "a\n", long.as_str()] {
            let error = QueueName::new(bad).unwrap_err();
            assert!(error.what().starts_with("invalid queue name \""), "{error}");
        }
        assert_eq!(QueueName::new("deposits.capture-1_x").unwrap().as_str(), "deposits.capture-1_x");
    }

    #[test]
    fn a_key_is_visible_ascii_of_at_most_255_bytes() {
        for bad in [String::new(), "a b".into(), "ä".into(), "k".repeat(256)] {
            assert!(IdempotencyKey::new(bad).is_err());
        }
        assert!(IdempotencyKey::new("k".repeat(255)).is_ok());
    }

    #[test]
    fn only_the_canonical_form_of_a_uuid_is_taken_as_its_bytes() {
        let hash = |text: &str| IdempotencyKey::new(text).unwrap().hash();
        let uuid = "0190d6a0-7b1c-7def-8123-456789abcdef";
        assert_eq!(hash(uuid)[..4], [0x01, 0x90, 0xd6, 0xa0]);
        assert_ne!(hash(uuid), hash(&uuid.to_uppercase()), "another key, another hash");
        assert_ne!(hash(uuid), hash(&uuid.replace('-', "")));
    }

    #[test]
    fn parts_of_a_digest_do_not_run_into_each_other() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"", b"a"]), digest(&[b"a", b""]));
    }

    #[test]
    fn a_nonce_does_not_show_itself() {
        assert_eq!(format!("{:?}", Nonce::from_bytes([7; 16])), "Nonce(…)");
    }

    #[test]
    fn ids_grow_even_when_the_clock_goes_back() {
        let late = MessageId::next_after(MessageId::from_i64(0), crate::Timestamp::from_millis(2_000));
        let later = MessageId::next_after(late, crate::Timestamp::from_millis(1_000));
        assert!(later > late);
    }

    proptest! {
        #[test]
        fn a_message_id_reads_back_from_what_it_prints(id in 0..i64::MAX) {
            let id = MessageId::from_i64(id);
            prop_assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        }

        #[test]
        fn printed_ids_sort_as_the_ids_do(a in 0..i64::MAX, b in 0..i64::MAX) {
            let (a, b) = (MessageId::from_i64(a), MessageId::from_i64(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_panics_the_id_parser(text in ".*") {
            let _unused = text.parse::<MessageId>();
        }
    }
}
