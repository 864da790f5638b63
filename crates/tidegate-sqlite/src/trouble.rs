//! What goes wrong inside a group: one item's fault, or everybody's.

use rusqlite::ErrorCode;
use tidegate_core::error::StoreError;

/// Why a step of a group did not happen.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// This item is refused; the group goes on. Nothing of the item was written.
    Item(StoreError),
    /// SQLite failed: the group is rolled back, and every call in it is answered so.
    Group(rusqlite::Error),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Item(error)
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Group(error)
    }
}

impl Trouble {
    /// Rolls the group back: what is remembered or was removed cannot be put right one by one. Everybody in it tries again.
    pub(crate) fn undo(why: String) -> Self {
        let abort = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT);
        Self::Group(rusqlite::Error::SqliteFailure(abort, Some(why)))
    }

    /// The error a caller gets.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Item(error) => error,
            Self::Group(error) => store_error(error),
        }
    }
}

/// One item's verdict, or the end of the group.
pub(crate) fn verdict<T>(step: Result<T, Trouble>) -> Result<Result<T, StoreError>, rusqlite::Error> {
    match step {
        Ok(value) => Ok(Ok(value)),
        Err(Trouble::Item(error)) => Ok(Err(error)),
        Err(Trouble::Group(error)) => Err(error),
    }
}

/// Whether somebody else has the file, so that nothing happened. A peer that is stopped while it writes the head of the log's
/// index leaves one that nobody can read: SQLite tries for some ten seconds then, and calls it a failure of its locks.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed))
}

/// What SQLite's own failures mean to a caller.
pub(crate) fn store_error(error: rusqlite::Error) -> StoreError {
    let code = error.sqlite_error_code();
    let text = error.to_string();
    let answer = match code {
        Some(ErrorCode::DiskFull) => {
            StoreError::unavailable("the disk of the store is full; nothing of this call was stored")
                .hint("free space, then repeat the call under the same key")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            StoreError::unavailable("another process held the store for too long; nothing of this call was stored")
                .hint("a process that was stopped inside its write transaction blocks the file until it ends")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            StoreError::unavailable(format!("the store cannot be written: {text}"))
                .hint("the file and its directory must be writable by this user")
        }
        Some(ErrorCode::CannotOpen) => StoreError::unavailable(format!("the store cannot be opened: {text}"))
            .hint("the directory must exist and be writable by this user"),
        Some(ErrorCode::NotADatabase) => {
            StoreError::corrupt("the file", &text).hint("this file is no SQLite database; it was left as it is")
        }
        Some(ErrorCode::DatabaseCorrupt) => StoreError::corrupt("the file", &text)
            .hint("stop its users, keep a copy of the file with its -wal, and restore a backup"),
        _ => StoreError::unavailable(format!("the store failed: {text}")),
    };
    answer.source(error)
}
