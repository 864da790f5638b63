//! What the program ends with: the exit codes, and the problem that is told before a code other than 0.
//!
//! `docs/reference/exit-codes.md` is the page for users. The mapping from the store's errors is one exhaustive match, so
//! that a new kind of error has to choose its code here.

use std::fmt;
use std::io;
use std::process::ExitCode;

use serde::Serialize;
use tidegate::postgres::tokio_postgres::{self, error::SqlState};
use tidegate::sqlite::rusqlite;
use tidegate::{StoreError, StoreErrorKind};
use tidegate_api::{ProblemType, Refusal};

/// Listed at the end of `tidegate --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    failed, or a check came out negative
  2    wrong usage
  3    not found
  4    conflict, or a precondition is not met
  5    unreachable, busy or full: retry later
  6    not allowed
  130  interrupted";

/// The same at the end of every command's help.
pub(crate) const HELP_IN_SHORT: &str = "\
Exit codes: 0 done, 1 failed or negative, 2 wrong usage, 3 not found, 4 conflict or a precondition not met, \
5 unreachable, busy or full: retry later, 6 not allowed, 130 interrupted";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Later = 5,
    NotAllowed = 6,
    Interrupted = 130,
}

impl Code {
    /// The code for an error of a store.
    pub(crate) fn of(kind: StoreErrorKind) -> Self {
        match kind {
            StoreErrorKind::Unavailable | StoreErrorKind::QueueFull => Self::Later,
            StoreErrorKind::LeaseLost | StoreErrorKind::KeyConflict | StoreErrorKind::Conflict => Self::Conflict,
            StoreErrorKind::NotFound => Self::NotFound,
            StoreErrorKind::Invalid => Self::Usage,
            StoreErrorKind::Corrupt => Self::Failed,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a command did not do what it was asked for: what was wrong, and what to do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "error")]
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// A word for programs.
    pub(crate) kind: &'static str,
    #[serde(rename = "exit_code", serialize_with = "as_number")]
    pub(crate) code: Code,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde's `serialize_with` calls for")]
fn as_number<S: serde::Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(*code as u8)
}

impl Problem {
    pub(crate) fn new(code: Code, what: impl Into<String>) -> Self {
        let kind = match code {
            Code::Done => "done",
            Code::Failed => "failed",
            Code::Usage => "invalid",
            Code::NotFound => "not_found",
            Code::Conflict => "conflict",
            Code::Later => "unavailable",
            Code::NotAllowed => "not_allowed",
            Code::Interrupted => "interrupted",
        };
        Self { code, kind, what: what.into(), hint: None }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Code::Usage, what)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The problem without its code, to be told about one of many items.
    pub(crate) fn sentence(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{} ({hint})", self.what),
            None => self.what.clone(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (code, kind) = if is_forbidden(&error) {
            (Code::NotAllowed, "not_allowed")
        } else {
            (Code::of(error.kind()), error.kind().as_str())
        };
        let retry =
            error.retry_after_duration().map(|after| format!("try again in {}", tidegate::explain::span(after)));
        let by_token = match Refusal::of(&error).and_then(|refusal| refusal.kind) {
            Some(ProblemType::Unauthorized) => Some(
                "give a token that lives: --token-file FILE, TIDEGATE_TOKEN, or tidegate context set; where the store is, \
                 tidegate token create makes one",
            ),
            Some(_) | None => None,
        };
        let hint = match (by_token.or(error.hint_text()), retry) {
            (Some(hint), Some(retry)) => Some(format!("{hint}; {retry}")),
            (Some(hint), None) => Some(hint.to_owned()),
            (None, retry) => retry,
        };
        Self { code, kind, what: error.what().to_owned(), hint }
    }
}

/// To a store a forbidden write is one of many ways of being unavailable; a caller with other rights could do it at once.
fn is_forbidden(error: &StoreError) -> bool {
    if Refusal::of(error).is_some_and(|refusal| matches!(refusal.status, 401 | 403)) {
        return true;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let by_sqlite = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        let by_system = error.downcast_ref::<io::Error>().map(io::Error::kind);
        let by_server = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        let refused = [
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ];
        if by_server.is_some_and(|code| refused.contains(code)) {
            return true;
        }
        if matches!(by_sqlite, Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied))
            || matches!(by_system, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<StoreError>() {
            Ok(error) => error.into(),
            Err(error) => Self::new(Code::Failed, format!("{error:#}")),
        }
    }
}

/// Writing to standard output fails when the disk behind it is full, or when nobody reads any more.
impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        // `tidegate list | head`: the reader has what it wanted.
        let code = if error.kind() == io::ErrorKind::BrokenPipe { Code::Done } else { Code::Failed };
        Self::new(code, format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_store_error_has_the_code_its_reader_expects() {
        let expected = [
            (StoreErrorKind::Unavailable, 5),
            (StoreErrorKind::QueueFull, 5),
            (StoreErrorKind::LeaseLost, 4),
            (StoreErrorKind::KeyConflict, 4),
            (StoreErrorKind::Conflict, 4),
            (StoreErrorKind::NotFound, 3),
            (StoreErrorKind::Invalid, 2),
            (StoreErrorKind::Corrupt, 1),
        ];
        for (kind, code) in expected {
            assert_eq!(Code::of(kind) as u8, code, "{kind:?}");
        }
    }

    #[test]
    fn a_write_that_is_forbidden_is_not_allowed_rather_than_retried() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let problem = Problem::from(StoreError::unavailable("the store cannot be written").source(denied));
        assert_eq!((problem.code, problem.kind), (Code::NotAllowed, "not_allowed"));
    }

    #[test]
    fn a_problem_says_what_and_then_what_to_do() {
        let problem = Problem::from(StoreError::invalid("priority 12").hint("0 to 9"));
        assert_eq!(problem.to_string(), "priority 12\nhint: 0 to 9");
    }

    #[test]
    fn every_code_is_in_the_help() {
        let codes = [Code::Done, Code::Failed, Code::Usage, Code::NotFound, Code::Conflict, Code::Later];
        for code in codes.into_iter().chain([Code::NotAllowed, Code::Interrupted]) {
            assert!(HELP.lines().any(|line| line.starts_with(&format!("  {} ", code as u8))), "{code:?}");
        }
    }
}
