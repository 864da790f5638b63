//! What a store answers when it cannot do what was asked.
//!
//! A kind exists only where a caller would act differently. The source is kept for the log and never shown as an API.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::MessageId;

/// What the caller should do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The store could not be reached or could not commit: the outcome is not known. Try again later, with the same key.
    Unavailable,
    /// Somebody else owns the message by now: stop, drop the result.
    LeaseLost,
    /// The key is known with another payload: the caller mixed up two operations.
    KeyConflict,
    /// The message is in a state that does not allow this.
    Conflict,
    /// The queue is at its `max_depth`, or the store's disk has no room for new messages: nothing was stored; slow down.
    QueueFull,
    /// No such message, queue or effect.
    NotFound,
    /// The caller's mistake: the same call can never succeed.
    Invalid,
    /// Stored data cannot be read as what it must be: it is refused, not served and not deleted.
    Corrupt,
}

impl StoreErrorKind {
    /// The name used in logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::LeaseLost => "lease_lost",
            Self::KeyConflict => "key_conflict",
            Self::Conflict => "conflict",
            Self::QueueFull => "queue_full",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid",
            Self::Corrupt => "corrupt",
        }
    }
}

/// A refusal or failure of a store. Cheap to clone: one failed commit answers every call of its group.
#[derive(Clone)]
pub struct StoreError(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: StoreErrorKind,
    what: String,
    hint: Option<String>,
    retry_after: Option<Duration>,
    message_id: Option<MessageId>,
    in_flight: bool,
    forbidden: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error of a kind. `what` is lowercase, without a full stop, with the value that was wrong.
    pub fn new(kind: StoreErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            hint: None,
            retry_after: None,
            message_id: None,
            in_flight: false,
            forbidden: false,
            source: None,
        }))
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says when a further try is worth it.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Names the message that stands in the way.
    #[must_use]
    pub fn message_id(mut self, id: MessageId) -> Self {
        self.0.message_id = Some(id);
        self
    }

    /// Says that another transaction is at work on the same key or message, and that nothing else is wrong.
    #[must_use]
    pub fn in_flight(mut self) -> Self {
        self.0.in_flight = true;
        self
    }

    /// Says that whoever asks is known, and may not do this.
    #[must_use]
    pub fn forbidden(mut self) -> Self {
        self.0.forbidden = true;
        self
    }

    /// Says more about what was wrong.
    #[must_use]
    pub fn moreover(mut self, more: impl fmt::Display) -> Self {
        self.0.what = format!("{}; {more}", self.0.what);
        self
    }

    /// Keeps the error beneath, for the log.
    #[must_use]
    pub fn source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.0.kind
    }

    /// What was wrong, without the hint.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What to do about it, if there is more to say than the kind does.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// When a further try is worth it, if the store knows.
    #[must_use]
    pub fn retry_after_duration(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The message that stands in the way, if there is one.
    #[must_use]
    pub fn conflicting_id(&self) -> Option<MessageId> {
        self.0.message_id
    }

    /// Whether all that is wrong is another transaction at work on the same key or message.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        self.0.in_flight
    }

    /// Whether all that is wrong is that whoever asks may not do this. A store in this process never says so.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.0.forbidden
    }

    /// A write under a token that is not current.
    #[must_use]
    pub fn lease_lost(id: MessageId) -> Self {
        Self::new(StoreErrorKind::LeaseLost, format!("the lease of {id} is no longer held by this token"))
            .message_id(id)
    }

    /// No message has this id.
    #[must_use]
    pub fn not_found(id: MessageId) -> Self {
        Self::new(StoreErrorKind::NotFound, format!("no message {id}"))
            .hint("it may have passed its retention, or belong to another store")
            .message_id(id)
    }

    /// The caller's mistake.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Invalid, what)
    }

    /// The state does not allow it.
    pub fn conflict(what: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Conflict, what)
    }

    /// Not reachable, or the outcome of a commit is unknown.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Unavailable, what)
    }

    /// Stored data is not what it must be; `place` names table, column and row.
    #[must_use]
    pub fn corrupt(place: &str, what: &str) -> Self {
        Self::new(StoreErrorKind::Corrupt, format!("corrupt data in {place}: {what}"))
            .hint("the row is kept as it is; restore a backup or look at it with the sqlite3 shell on a copy")
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind.as_str())?;
        if let Some(source) = &self.0.source {
            write!(f, " ({source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

/// By kind and text: what a caller can see.
impl PartialEq for StoreError {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind == other.0.kind && self.0.what == other.0.what
    }
}

impl Eq for StoreError {}
