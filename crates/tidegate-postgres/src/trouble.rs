//! What goes wrong inside a group: one item's fault, or everybody's.

use std::time::Duration;

use tidegate_core::error::StoreError;
use tokio_postgres::error::SqlState;

/// Why a step of a group did not happen.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// This item is refused; the group goes on. Nothing of the item was written.
    Item(StoreError),
    /// PostgreSQL failed: the group is rolled back. What becomes of its calls depends on the error.
    Group(tokio_postgres::Error),
    /// Somebody else changed what was read: the group is rolled back and carried out again.
    Again(&'static str),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Item(error)
    }
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Group(error)
    }
}

impl Trouble {
    /// The error a caller gets.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Item(error) => error,
            Self::Group(error) => store_error(error),
            Self::Again(what) => StoreError::unavailable(format!("{what}, again and again"))
                .hint("nothing of this call was stored; repeat it"),
        }
    }
}

/// One item's verdict, or the end of the group.
pub(crate) fn verdict<T>(step: Result<T, Trouble>) -> Result<Result<T, StoreError>, Trouble> {
    match step {
        Ok(value) => Ok(Ok(value)),
        Err(Trouble::Item(error)) => Ok(Err(error)),
        Err(trouble) => Err(trouble),
    }
}

/// What a failure of PostgreSQL means for the group it ended, as long as no COMMIT was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Two transactions were in each other's way: again.
    Again,
    /// Another transaction holds what this one waits for.
    Locked,
    /// The connection or the server is gone: again on another one.
    Lost,
    /// What was to be stored is refused, by itself.
    Data,
    /// Anything else: nothing was stored, and nothing says that it would be another time.
    Failed,
}

/// How long a caller waits before it repeats what waited for a twin in flight.
const IN_FLIGHT: Duration = Duration::from_secs(1);

pub(crate) fn class(error: &tokio_postgres::Error) -> Class {
    let Some(code) = error.code() else {
        // Without an answer of the server: the connection is gone, or what was to be sent cannot be.
        return if error.is_closed() || error.to_string().contains("communicating") {
            Class::Lost
        } else {
            Class::Failed
        };
    };
    let text = code.code();
    match text {
        "40001" | "40P01" => Class::Again,
        "55P03" => Class::Locked,
        // A new id that somebody else has: another one.
        "23505" => Class::Again,
        // Fewer rows were taken away than were locked (`writes.rs`): that must not be, and is not committed.
        "22012" => Class::Again,
        // It says that an earlier statement failed, not why: nothing was stored, and a rollback makes an end of it.
        "25P02" => Class::Again,
        // Shut down, crashed, starting up; read-only since it became a standby.
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "25006" | "53300" => Class::Lost,
        // A standby that is being promoted is not there yet ("during recovery", "recovery is in progress"); or the plan of
        // a statement does not fit tables that were migrated since, and another connection makes a new one.
        "0A000" | "55000" => Class::Lost,
        _ if text.starts_with("08") => Class::Lost,
        _ if text.starts_with("22") || text.starts_with("23") || text == "54000" => Class::Data,
        _ => Class::Failed,
    }
}

/// What PostgreSQL's own failures mean to a caller. The group was rolled back.
pub(crate) fn store_error(error: tokio_postgres::Error) -> StoreError {
    let said = said(&error);
    let answer = match error.code() {
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
            StoreError::unavailable("another transaction is at work on the same key or message: it is in flight")
                .hint("repeat the call; it is answered when that transaction has ended")
                .retry_after(IN_FLIGHT)
                .in_flight()
        }
        Some(code) if *code == SqlState::DISK_FULL => {
            StoreError::unavailable("the disk of the server is full; nothing of this call was stored")
                .hint("free space, then repeat the call under the same key")
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            StoreError::unavailable(format!("the database refused it: {said}"))
                .hint("the user needs usage of the schema and all rights on its tables")
        }
        Some(code) if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN => {
            StoreError::unavailable(format!("the tables are not those of this program: {said}"))
                .hint("see: tidegate migrate status")
        }
        _ => match class(&error) {
            Class::Data => StoreError::invalid(format!("the database refused the data: {said}")),
            Class::Lost => StoreError::unavailable(format!("the database cannot be reached: {said}"))
                .hint("it is tried again; repeating the call is safe"),
            Class::Again | Class::Locked | Class::Failed => {
                StoreError::unavailable(format!("the database failed: {said}; nothing of this call was stored"))
            }
        },
    };
    answer.source(error)
}

/// What the server said, or else the driver.
pub(crate) fn said(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
