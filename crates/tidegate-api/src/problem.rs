//! What an answer looks like that is not what was asked for: `application/problem+json` (RFC 9457), and the types there are.
//!
//! A type is stable: programs decide by it. Its page is served by the program itself under [`ProblemType::path`].

use serde::{Deserialize, Serialize};
use tidegate::{MessageId, StoreError, StoreErrorKind};
use utoipa::ToSchema;

use crate::schema;

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not done, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which sort of problem: decide by this. An address that leads to a page about it.
    #[serde(rename = "type")]
    #[schema(value_type = String, examples("/problems/queue-full"))]
    pub kind: ProblemType,
    /// The sort in words.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What was wrong this time, with the value that was wrong.
    pub detail: String,
    /// What this occurrence is about: the address of the message that stands in the way, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// When a further try is worth it, in seconds; also in the header `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
    /// What to do.
    pub fix: String,
    /// The message that stands in the way, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Id>)]
    pub message: Option<MessageId>,
}

impl Problem {
    /// A problem of a type; what was wrong is lowercase and without a full stop, as everywhere.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind,
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            instance: None,
            retryable: kind.is_retryable(),
            retry_after_s: None,
            fix: kind.fix().to_owned(),
            message: None,
        }
    }

    /// The error of a store that this problem was made from, or what comes nearest: for a program that keeps its store
    /// elsewhere.
    #[must_use]
    pub fn into_store_error(self) -> StoreError {
        let refusal = Refusal { status: self.status, kind: Some(self.kind), title: self.title };
        let mut error = StoreError::new(self.kind.store_kind(), self.detail).source(refusal);
        // What is said where a problem does not know better is said in words of HTTP; whoever has a store elsewhere never
        // wrote a request.
        if self.fix != self.kind.fix() || matches!(self.kind, ProblemType::Unauthorized | ProblemType::Forbidden) {
            error = error.hint(self.fix);
        }
        if self.kind == ProblemType::InFlight {
            error = error.in_flight();
        }
        if self.kind == ProblemType::Forbidden {
            error = error.forbidden();
        }
        if let Some(seconds) = self.retry_after_s {
            error = error.retry_after(std::time::Duration::from_secs(seconds));
        }
        match self.message {
            Some(id) => error.message_id(id),
            None => error,
        }
    }
}

/// What a server said that an error of a store was made from: its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// The sort of problem; none for one of a newer server.
    pub kind: Option<ProblemType>,
    /// The sort in the server's words.
    pub title: String,
}

impl Refusal {
    /// What a server said, if it was one that the error comes from.
    #[must_use]
    pub fn of(error: &StoreError) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server answered {}: {}", self.status, self.title)
    }
}

impl std::error::Error for Refusal {}

macro_rules! problem_types {
    ($($(#[doc = $doc:literal])+ $variant:ident = $slug:literal, $status:literal, $retryable:literal, $title:literal, $fix:literal, $store:ident;)+) => {
        /// A sort of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemType {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ProblemType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in the address of its page.
            #[must_use]
            pub fn slug(self) -> &'static str {
                match self { $(Self::$variant => $slug,)+ }
            }

            /// The status of an answer with it.
            #[must_use]
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// Whether the same request can succeed later.
            #[must_use]
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)+ }
            }

            /// The sort in words.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What to do, where a problem does not know better.
            #[must_use]
            pub fn fix(self) -> &'static str {
                match self { $(Self::$variant => $fix,)+ }
            }

            /// What it means, for its page.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc, "\n"),+),)+ }
            }

            /// What a caller of a store would do about it.
            #[must_use]
            pub fn store_kind(self) -> StoreErrorKind {
                match self { $(Self::$variant => StoreErrorKind::$store,)+ }
            }
        }
    };
}

problem_types! {
    /// The body, an address or a header cannot be read: no JSON, a member twice, nested too deep, a value of another type.
    /// The detail names the place. Nothing was done.
    Malformed = "malformed", 400, false, "the request cannot be read",
        "send what the document at /openapi.json describes", Invalid;
    /// A value is not what it must be: a name with other characters, a priority above 9, a payload over the limit. The
    /// detail names the value. Nothing was done.
    Invalid = "invalid", 400, false, "a value of the request is not allowed",
        "change the value; the same request can never succeed", Invalid;
    /// An enqueue has neither the header `Idempotency-Key` nor the member `key`. The key names what is to happen once:
    /// with it, a repeat of the request is answered and never done twice. Nothing was stored.
    KeyMissing = "idempotency-key-missing", 400, false, "the idempotency key is missing",
        "name what is to happen once: Idempotency-Key: \"deposit-7231\"; if every request is to be new work, send \"unique_key\": true",
        Invalid;
    /// The header `Idempotency-Key` is no key: 1 to 255 visible ASCII characters without a space, either as a quoted string
    /// of structured fields or bare; sent once; and the same as the member `key`, if that is sent as well. Nothing was stored.
    KeyMalformed = "idempotency-key-malformed", 400, false, "the idempotency key cannot be read",
        "send 1 to 255 visible ASCII characters: Idempotency-Key: \"deposit-7231\"", Invalid;
    /// The request carries no token that is known and valid.
    Unauthorized = "unauthorized", 401, false, "no valid token",
        "send Authorization: Bearer and a token; tokens are made with: tidegate token create", Invalid;
    /// The token does not allow this act on this queue.
    Forbidden = "forbidden", 403, false, "the token does not allow this",
        "use a token whose scopes name the action and the queue", Invalid;
    /// Nothing is at this address, or it is nothing that this token may see. A message is forgotten when its retention is
    /// over.
    NotFound = "not-found", 404, false, "not found",
        "check the address; a message is forgotten when its retention is over", NotFound;
    /// The address exists, but not for this method; the header `Allow` lists those it has.
    MethodNotAllowed = "method-not-allowed", 405, false, "this address has no such method",
        "use a method that the header Allow lists", Invalid;
    /// The client took too long to send its request.
    RequestTimeout = "request-timeout", 408, true, "the request was not sent in time",
        "send the request again, faster; under the same key nothing is done twice", Unavailable;
    /// The state of the message, queue or operation does not allow the act; the detail says why. Nothing was changed.
    Conflict = "conflict", 409, false, "the state does not allow this",
        "look at the message first: GET /v1/messages/{id}/explanation", Conflict;
    /// The same key is being accepted in another request or transaction at this moment, and how that ends is not known yet.
    InFlight = "in-flight", 409, true, "the same key is being accepted at this moment",
        "send the same request again in a moment", Unavailable;
    /// The lease was lost: another worker has the message, or it was taken back after the lease had run out. What this
    /// worker would have stored is refused.
    LeaseLost = "lease-lost", 409, false, "the lease is no longer held by this token",
        "stop working on the message and drop the result", LeaseLost;
    /// The key is unknown and was made (`key_time`) longer ago than answers are kept: it may have been done and forgotten,
    /// so it is not done. Nothing was stored.
    StaleKey = "stale-key", 409, false, "the key is older than the retention and unknown",
        "find out whether it took effect; if it did not, send it under a new key", Conflict;
    /// The body, or the number of items in it, is over the limit. Nothing was done.
    TooLarge = "too-large", 413, false, "the request is over a limit",
        "send less at once; store a large document elsewhere and enqueue a reference to it", Invalid;
    /// The body is of a media type that this address does not take.
    UnsupportedMediaType = "unsupported-media-type", 415, false, "the media type is not taken here",
        "send Content-Type: application/json", Invalid;
    /// The key is known with another kind or payload: two different operations were given one key. The payload it is known
    /// with is not shown. Nothing was stored.
    KeyConflict = "key-conflict", 422, false, "the key is known with another payload",
        "use one key for one operation: find the mistake, then send it under its own key", KeyConflict;
    /// The queue holds as many messages as it may, or the disk has no room for new ones. Nothing was stored.
    QueueFull = "queue-full", 429, true, "the queue is full",
        "send the same request again after Retry-After, and slow down", QueueFull;
    /// This client sends more than it may. Nothing was done.
    TooManyRequests = "too-many-requests", 429, true, "too many requests",
        "send the same request again after Retry-After, and slow down", QueueFull;
    /// The headers of the request are over the limit.
    HeadersTooLarge = "headers-too-large", 431, false, "the headers are over the limit",
        "send fewer or shorter headers", Invalid;
    /// Stored data cannot be read as what it must be. It is refused, not served and not deleted.
    Corrupt = "corrupt", 500, false, "stored data is damaged",
        "run: tidegate doctor; then restore a backup", Corrupt;
    /// The server made a mistake. Its log has the particulars.
    Internal = "internal", 500, false, "the server made a mistake",
        "look into the log of the server; a request with a key may be sent again under the same key", Unavailable;
    /// The store could not be reached or could not commit: whether the request took effect is not known.
    Unavailable = "unavailable", 503, true, "the store cannot be reached",
        "send the same request again after Retry-After; under the same key nothing is done twice", Unavailable;
    /// The server is being stopped, and another one is started, or it has more work than it takes on. Nothing was done.
    Busy = "busy", 503, true, "the server takes no more requests at this moment",
        "send the same request again after Retry-After", Unavailable;
}

impl ProblemType {
    /// The address of its page, which is also its name in a problem.
    #[must_use]
    pub fn path(self) -> String {
        format!("/problems/{}", self.slug())
    }

    /// The type of a slug.
    #[must_use]
    pub fn from_slug(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.slug() == slug)
    }
}

impl Serialize for ProblemType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.path())
    }
}

impl<'de> Deserialize<'de> for ProblemType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = String::deserialize(deserializer)?;
        let slug = path.rsplit('/').next().unwrap_or_default();
        Self::from_slug(slug).ok_or_else(|| serde::de::Error::custom(format!("no problem type {path:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_name_of_its_own_and_reads_back_from_it() {
        for kind in ProblemType::ALL {
            assert_eq!(ProblemType::from_slug(kind.slug()), Some(*kind));
            let text = serde_json::to_string(kind).unwrap();
            assert_eq!(serde_json::from_str::<ProblemType>(&text).unwrap(), *kind);
            assert!((400..600).contains(&kind.status()), "{kind:?}");
        }
    }

    #[test]
    fn only_what_is_retryable_is_called_so_by_its_status() {
        for kind in ProblemType::ALL {
            let by_status = matches!(kind.status(), 408 | 429 | 503) || *kind == ProblemType::InFlight;
            assert_eq!(kind.is_retryable(), by_status, "{kind:?}");
        }
    }

    #[test]
    fn a_store_far_away_gets_the_error_back() {
        let problem = Problem {
            message: Some(MessageId::from_i64(7)),
            fix: "slow down".to_owned(),
            ..Problem::new(ProblemType::KeyConflict, "the key d-1 is known with another payload")
        };
        let error = problem.into_store_error();
        assert_eq!(error.kind(), StoreErrorKind::KeyConflict);
        assert_eq!(error.what(), "the key d-1 is known with another payload");
        assert_eq!(error.hint_text(), Some("slow down"));
        assert_eq!(error.conflicting_id(), Some(MessageId::from_i64(7)));
        assert_eq!(Refusal::of(&error).unwrap().status, 422);
        assert_eq!(Refusal::of(&StoreError::invalid("of a store")), None);
        let in_flight = Problem::new(ProblemType::InFlight, "another request has the key").into_store_error();
        assert!(in_flight.is_in_flight() && in_flight.hint_text().is_none(), "{in_flight:?}");
        for kind in ProblemType::ALL {
            let is_forbidden = Problem::new(*kind, "x").into_store_error().is_forbidden();
            assert_eq!(is_forbidden, *kind == ProblemType::Forbidden, "{kind:?}");
        }
    }
}
