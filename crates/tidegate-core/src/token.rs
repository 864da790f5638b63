//! Who may do what over the network: tokens, what they allow, and how they change.
//!
//! A token is a secret of 256 random bits that is shown once; a store keeps its digest, never the token. What it allows is
//! a list of scopes, an action on queues each, for the tenants that one pattern names. Two secrets of one name may live
//! at a time, so that a client can be moved from the old to the new. Pure: an engine calls [`change`] inside its
//! transaction and keeps what it decided.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::clock::{Random, Timestamp};
use crate::error::{StoreError, StoreErrorKind};
use crate::id::{Hex, MAX_NAME, QueueName, Tenant, TokenName, quoted};

/// What every token begins with, so that scanners of source code and logs find one that leaked.
pub const TOKEN_PREFIX: &str = "tg_";
/// The most scopes one token has.
pub const MOST_SCOPES: usize = 64;
/// How many secrets of one name live at a time: the old and the new of a rotation.
pub const MOST_LIVE: usize = 2;

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Enqueue, and see what became of what one enqueued: state and answer, but no payload.
    Produce,
    /// Claim, extend, journal, settle. A claim hands out payloads.
    Work,
    /// Everything about messages and queues but payloads, results and effect values.
    Read,
    /// Payloads, results and effect values as well; each look is noted in the audit.
    Reveal,
    /// Dead letters, parked messages, queues, operations.
    Operate,
    /// Tokens, sweeps, configuration.
    Admin,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Produce, Self::Work, Self::Read, Self::Reveal, Self::Operate, Self::Admin];

    /// The word that is stored, typed and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Work => "work",
            Self::Read => "read",
            Self::Reveal => "reveal",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Action {
    type Err = StoreError;

    fn from_str(word: &str) -> Result<Self, StoreError> {
        Self::ALL.into_iter().find(|action| action.as_str() == word).ok_or_else(|| {
            StoreError::invalid(format!("no such action {}", quoted(word)))
                .hint("produce, work, read, reveal, operate or admin")
        })
    }
}

/// A pattern of names: `*` stands for any number of characters, the empty pattern for the empty name alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Glob(String);

impl Glob {
    /// A checked pattern.
    ///
    /// # Errors
    /// `Invalid` when it is longer than 100 bytes or has a character outside `A-Z a-z 0-9 . _ - *`.
    pub fn new(pattern: &str) -> Result<Self, StoreError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*');
        if pattern.len() <= MAX_NAME && pattern.bytes().all(allowed) {
            return Ok(Self(pattern.to_owned()));
        }
        Err(StoreError::invalid(format!("invalid pattern {}", quoted(pattern)))
            .hint(format!("at most {MAX_NAME} of the characters A-Z a-z 0-9 . _ - and * for any number of them")))
    }

    /// Every name.
    #[must_use]
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// The pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut last: Option<&str> = None;
        for part in parts {
            // Each part but the last is taken where it first stands: what is left for the others is longest then.
            if let Some(part) = last {
                let Some(at) = rest.find(part) else { return false };
                rest = &rest[at + part.len()..];
            }
            last = Some(part);
        }
        match last {
            None => rest.is_empty(),
            Some(last) => rest.ends_with(last),
        }
    }

    /// Whether everything that `other` names is named by this one as well. Of two patterns that could be compared only by
    /// going through all names, it is not believed.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self == other || (!other.0.contains('*') && self.matches(&other.0)) {
            return true;
        }
        match self.0.strip_suffix('*') {
            Some(start) if !start.contains('*') => other.0.split('*').next().unwrap_or_default().starts_with(start),
            Some(_) | None => false,
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Glob {
    type Err = StoreError;

    fn from_str(pattern: &str) -> Result<Self, StoreError> {
        Self::new(pattern)
    }
}

/// One thing a token allows: an action on the queues of a pattern. Written `produce:payments.*`; `work` alone is `work:*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// What may be done.
    pub action: Action,
    /// On which queues.
    pub queues: Glob,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.action, self.queues)
    }
}

impl FromStr for Scope {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let (action, queues) = text.split_once(':').unwrap_or((text, "*"));
        if queues.is_empty() {
            return Err(
                StoreError::invalid(format!("scope {} names no queue", quoted(text))).hint("write produce:* for all")
            );
        }
        Ok(Self { action: action.parse()?, queues: Glob::new(queues)? })
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text! { Action Glob Scope TokenHash }

/// A token itself. Shows itself only where that is asked for by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// 256 fresh random bits.
    #[must_use]
    pub fn new(random: &dyn Random) -> Self {
        let mut bytes = [0; 32];
        random.fill(&mut bytes[..]);
        Self(format!("{TOKEN_PREFIX}{}", Hex(&bytes)))
    }

    /// The text of the token: for whoever asked for it, once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a store keeps of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The SHA-256 of a token. Of 256 random bits nothing slower is needed: there is nothing to guess.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token as a client sent it.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// From the bytes an engine stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes an engine stores.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Hex(&self.0))
    }
}

impl fmt::Debug for TokenHash {
    /// As much of it as tells two of them apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({}…)", Hex(&self.0[..4]))
    }
}

impl FromStr for TokenHash {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = || StoreError::invalid("not the SHA-256 of a token").hint("64 lowercase hexadecimal digits");
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0]).ok_or_else(wrong)? << 4 | digit(pair[1]).ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

fn digit(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    }
}

/// What a store keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name: who acts, in the audit. Both secrets of a rotation have it.
    pub name: TokenName,
    /// The digest of the secret.
    #[serde(rename = "sha256")]
    pub hash: TokenHash,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// For which tenants; the empty pattern is the default tenant alone.
    pub tenant: Glob,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl TokenRecord {
    /// Whether it may be used at this moment.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }

    /// Whether it allows an action on a queue of a tenant.
    #[must_use]
    pub fn allows(&self, action: Action, tenant: &Tenant, queue: &QueueName) -> bool {
        self.tenant.matches(tenant.as_str())
            && self.scopes.iter().any(|scope| scope.action == action && scope.queues.matches(queue.as_str()))
    }

    /// Whether it allows an action that concerns no queue in particular, or all of a tenant's: on any queue at all.
    #[must_use]
    pub fn allows_some(&self, action: Action, tenant: &Tenant) -> bool {
        self.tenant.matches(tenant.as_str()) && self.scopes.iter().any(|scope| scope.action == action)
    }
}

/// A change of the tokens of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenChange {
    /// A name that has no live token gets one. Repeated with the same digest it changes nothing.
    Add {
        /// The digest of the secret.
        hash: TokenHash,
        /// What it allows; at least one.
        scopes: Vec<Scope>,
        /// For which tenants.
        tenant: Glob,
        /// When it ends by itself.
        expires_at: Option<Timestamp>,
    },
    /// A second secret with the same scopes; the first one ends when the overlap is over.
    Rotate {
        /// The digest of the new secret.
        hash: TokenHash,
        /// How long the old one goes on.
        overlap: Duration,
        /// When the new one ends by itself.
        expires_at: Option<Timestamp>,
    },
    /// All secrets of the name end now.
    Revoke,
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedToken {
    /// All that is kept under the name now, the oldest first.
    pub records: Vec<TokenRecord>,
    /// What was done, for the audit; none when it had been done before.
    pub done: Option<String>,
}

/// Decides about a change. `known` is what the store keeps under this name or this digest.
///
/// # Errors
/// `Invalid`, `NotFound` (no such name), `Conflict` (the name or the digest is taken, two secrets live already).
pub fn change(
    known: &[TokenRecord],
    name: &TokenName,
    change: &TokenChange,
    now: Timestamp,
) -> Result<ChangedToken, StoreError> {
    let hash = match change {
        TokenChange::Add { hash, .. } | TokenChange::Rotate { hash, .. } => Some(*hash),
        TokenChange::Revoke => None,
    };
    if known.iter().any(|record| record.name != *name && Some(record.hash) == hash) {
        return Err(StoreError::conflict("this token is another name's").hint("make a new one"));
    }
    let mut records: Vec<TokenRecord> = known.iter().filter(|record| record.name == *name).cloned().collect();
    records.sort_by_key(|record| (record.created_at, record.hash));
    let live: Vec<usize> = (0..records.len()).filter(|at| records[*at].is_live(now)).collect();
    let repeated = live.iter().any(|at| Some(records[*at].hash) == hash);
    let done = match change {
        TokenChange::Add { .. } | TokenChange::Rotate { .. } if repeated => None,
        TokenChange::Add { hash, scopes, tenant, expires_at } => {
            check(scopes, *expires_at, now)?;
            refuse_known(&records, *hash)?;
            if !live.is_empty() {
                return Err(StoreError::conflict(format!("there is a live token named {name}"))
                    .hint("rotate it, revoke it, or choose another name"));
            }
            let scopes: Vec<Scope> = scopes.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
            let record = TokenRecord {
                name: name.clone(),
                hash: *hash,
                scopes,
                tenant: tenant.clone(),
                created_at: now,
                expires_at: *expires_at,
                revoked_at: None,
            };
            let done = format!("{name}: added, {}", told(&record));
            records.push(record);
            Some(done)
        }
        TokenChange::Rotate { hash, overlap, expires_at } => {
            refuse_known(&records, *hash)?;
            let Some(newest) = live.last().map(|at| records[*at].clone()) else { return Err(unknown(name)) };
            check(&newest.scopes, *expires_at, now)?;
            if live.len() >= MOST_LIVE {
                let until =
                    records[live[0]].expires_at.map_or_else(String::new, |at| format!(", one of them until {at}"));
                return Err(StoreError::conflict(format!("{name} has {MOST_LIVE} live tokens already{until}"))
                    .hint("wait for its end, or revoke all of them"));
            }
            let ends = now.after(*overlap);
            for at in live {
                records[at].expires_at = Some(records[at].expires_at.map_or(ends, |known| known.min(ends)));
            }
            let record = TokenRecord { hash: *hash, created_at: now, expires_at: *expires_at, ..newest };
            let done = format!("{name}: rotated, the one before ends at {ends}; {}", told(&record));
            records.push(record);
            Some(done)
        }
        TokenChange::Revoke if records.is_empty() => return Err(unknown(name)),
        TokenChange::Revoke if live.is_empty() => None,
        TokenChange::Revoke => {
            for at in &live {
                records[*at].revoked_at = Some(now);
            }
            Some(format!("{name}: revoked"))
        }
    };
    Ok(ChangedToken { records, done })
}

fn check(scopes: &[Scope], expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), StoreError> {
    if scopes.is_empty() {
        return Err(StoreError::invalid("a token without a scope allows nothing").hint("such as produce:payments.*"));
    }
    if scopes.len() > MOST_SCOPES {
        return Err(StoreError::invalid(format!("{} scopes are more than {MOST_SCOPES}", scopes.len()))
            .hint("use a pattern such as produce:payments.*, or several tokens"));
    }
    match expires_at {
        Some(at) if at <= now => Err(StoreError::invalid(format!("a token that expires at {at} was never live"))),
        Some(_) | None => Ok(()),
    }
}

/// A digest that was used and ended is never used again.
fn refuse_known(records: &[TokenRecord], hash: TokenHash) -> Result<(), StoreError> {
    if records.iter().any(|record| record.hash == hash) {
        return Err(StoreError::conflict("this token has ended").hint("make a new one"));
    }
    Ok(())
}

fn unknown(name: &TokenName) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, format!("no live token named {name}"))
}

fn told(record: &TokenRecord) -> String {
    let scopes: Vec<String> = record.scopes.iter().map(ToString::to_string).collect();
    let until = record.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    format!("{} of tenant {:?}, expires {until}", scopes.join(" "), record.tenant)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_names_what_it_spells_and_any_run_for_a_star() {
        #[rustfmt::skip]
        let table = [
            ("*", "", true), ("*", "payments", true), ("", "", true), ("", "a", false), ("a", "a", true), ("a", "ab", false),
            ("pay.*", "pay.in", true), ("pay.*", "pay", false), ("*.in", "pay.in", true), ("*.in", "pay.inn", false),
            ("a*b*c", "abc", true), ("a*b*c", "a-b-b-c", true), ("a*b*c", "acb", false), ("a*a", "a", false),
            ("*ab*ab", "ab", false), ("*ab*ab", "abab", true), ("**", "x", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(Glob::new(pattern).unwrap().matches(name), expected, "{pattern:?} and {name:?}");
        }
        assert!(Glob::new("a b").is_err() && Glob::new(&"x".repeat(101)).is_err());
    }

    /// Slow and plain.
    fn names(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|at| names(rest, &name[at..])),
            Some((letter, rest)) => {
                name.split_first().is_some_and(|(first, more)| first == letter && names(rest, more))
            }
        }
    }

    #[test]
    fn a_pattern_that_covers_another_names_all_that_it_names() {
        for (pattern, other, expected) in [
            ("*", "pay.*", true),
            ("*", "", true),
            ("pay.*", "pay.*", true),
            ("pay.*", "pay.in", true),
            ("pay.*", "pay.in.*", true),
            ("pay.*", "pay*", false),
            ("pay.*", "*", false),
            ("", "", true),
            ("", "*", false),
            ("*.in", "pay.in", true),
            ("*.in", "*.in", true),
            ("pay.in", "pay.*", false),
        ] {
            assert_eq!(Glob::new(pattern).unwrap().covers(&Glob::new(other).unwrap()), expected, "{pattern} {other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_covered_names_nothing_that_the_other_does_not(
            pattern in "[ab*]{0,5}", other in "[ab*]{0,5}", name in "[ab]{0,6}",
        ) {
            let (pattern, other) = (Glob::new(&pattern).unwrap(), Glob::new(&other).unwrap());
            prop_assert!(!pattern.covers(&other) || !other.matches(&name) || pattern.matches(&name));
        }

        #[test]
        fn a_pattern_names_what_the_plain_rule_says(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            let expected = names(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Glob::new(&pattern).unwrap().matches(&name), expected);
        }

        #[test]
        fn a_scope_reads_back_from_what_it_prints(action in 0..6_usize, queues in "[a-z.*]{1,12}") {
            let scope = Scope { action: Action::ALL[action], queues: Glob::new(&queues).unwrap() };
            prop_assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
        }
    }

    #[test]
    fn a_token_is_256_bits_behind_its_prefix_and_shows_neither_itself_nor_its_digest() {
        let secret = Secret::new(&crate::SystemRandom);
        assert!(secret.reveal().starts_with("tg_") && secret.reveal().len() == 3 + 64);
        assert_ne!(secret, Secret::new(&crate::SystemRandom));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        let hash = secret.hash();
        assert_eq!(hash.to_string().parse::<TokenHash>().unwrap(), hash);
        assert!(format!("{hash:?}").len() < 24);
    }

    fn name(name: &str) -> TokenName {
        TokenName::new(name).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn add(token: &str, scopes: &[&str]) -> TokenChange {
        TokenChange::Add {
            hash: TokenHash::of(token),
            scopes: scopes.iter().map(|scope| scope.parse().unwrap()).collect(),
            tenant: Glob::default(),
            expires_at: None,
        }
    }

    fn rotate(token: &str) -> TokenChange {
        TokenChange::Rotate { hash: TokenHash::of(token), overlap: Duration::from_secs(60), expires_at: None }
    }

    #[test]
    fn a_name_has_two_live_secrets_at_most_and_the_old_one_ends_after_the_overlap() {
        let app = name("app");
        let first = change(&[], &app, &add("one", &["produce:pay.*", "produce:pay.*"]), at(0)).unwrap().records;
        assert_eq!(first[0].scopes.len(), 1, "told once");
        let both = change(&first, &app, &rotate("two"), at(10)).unwrap().records;
        assert_eq!(both.iter().map(|r| r.is_live(at(69))).collect::<Vec<_>>(), [true, true]);
        assert_eq!(both.iter().map(|r| r.is_live(at(70))).collect::<Vec<_>>(), [false, true]);
        assert_eq!(both[0].scopes, both[1].scopes);
        let refused = change(&both, &app, &rotate("three"), at(20)).unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Conflict);
        assert!(change(&both, &app, &rotate("three"), at(70)).is_ok());
        let ended = change(&both, &app, &TokenChange::Revoke, at(20)).unwrap().records;
        assert!(ended.iter().all(|record| !record.is_live(at(20))));
    }

    #[test]
    fn a_change_that_is_repeated_changes_nothing() {
        let app = name("app");
        let first = change(&[], &app, &add("one", &["work"]), at(0)).unwrap();
        assert!(first.done.is_some());
        let again = change(&first.records, &app, &add("one", &["work"]), at(1)).unwrap();
        assert_eq!((again.done, &again.records), (None, &first.records));
        let both = change(&first.records, &app, &rotate("two"), at(2)).unwrap().records;
        assert_eq!(change(&both, &app, &rotate("two"), at(3)).unwrap().done, None);
        let ended = change(&both, &app, &TokenChange::Revoke, at(4)).unwrap().records;
        assert_eq!(change(&ended, &app, &TokenChange::Revoke, at(5)).unwrap().done, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        use StoreErrorKind::{Conflict, Invalid, NotFound};
        let app = name("app");
        let known = change(&[], &app, &add("one", &["work"]), at(0)).unwrap().records;
        let ended = change(&known, &app, &TokenChange::Revoke, at(1)).unwrap().records;
        let late = TokenChange::Add {
            hash: TokenHash::of("x"),
            scopes: vec!["work".parse().unwrap()],
            tenant: Glob::all(),
            expires_at: Some(at(1)),
        };
        let table = [
            (&[][..], "app", add("x", &[]), Invalid),
            (&[], "app", late, Invalid),
            (&[], "app", rotate("x"), NotFound),
            (&[], "app", TokenChange::Revoke, NotFound),
            (&known, "app", add("x", &["work"]), Conflict),
            (&known, "other", add("one", &["work"]), Conflict),
            (&ended, "app", add("one", &["work"]), Conflict),
            (&ended, "app", rotate("x"), NotFound),
        ];
        for (known, of, wish, expected) in table {
            let refused = change(known, &name(of), &wish, at(2)).unwrap_err();
            assert_eq!(refused.kind(), expected, "{wish:?}: {refused}");
        }
        assert!(change(&ended, &app, &add("x", &["work"]), at(2)).is_ok(), "a name whose tokens ended is free");
    }

    #[test]
    fn a_token_allows_its_actions_on_its_queues_for_its_tenants_and_nothing_else() {
        let app = name("app");
        let wish = TokenChange::Add {
            hash: TokenHash::of("one"),
            scopes: vec!["produce:pay.*".parse().unwrap(), "read".parse().unwrap()],
            tenant: Glob::new("acme-*").unwrap(),
            expires_at: None,
        };
        let record = change(&[], &app, &wish, at(0)).unwrap().records.remove(0);
        let allows = |action, tenant: &str, queue: &str| {
            record.allows(action, &Tenant::new(tenant).unwrap(), &QueueName::new(queue).unwrap())
        };
        assert!(allows(Action::Produce, "acme-eu", "pay.in") && allows(Action::Read, "acme-eu", "other"));
        assert!(!allows(Action::Produce, "acme-eu", "other"), "another queue");
        assert!(!allows(Action::Produce, "", "pay.in"), "another tenant");
        assert!(!allows(Action::Reveal, "acme-eu", "pay.in"), "another action");
        assert!(record.allows_some(Action::Produce, &Tenant::new("acme-eu").unwrap()));
        assert!(!record.allows_some(Action::Admin, &Tenant::new("acme-eu").unwrap()));
    }
}
