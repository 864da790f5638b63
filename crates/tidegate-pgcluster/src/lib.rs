//! A PostgreSQL cluster to throw away, for tests and demonstrations.
//!
//! - [`Cluster`] makes a cluster in a directory of its own and starts it on a free port of the loopback interface, with a
//!   password made for it. It can be killed, restarted and stopped, and takes everything it made away when it is dropped.
//! - [`Pooler`] is a pgbouncer in front of one, pooling by transaction.
//! - [`programs`] finds the server's programs, and installs them where that is asked for and can be done.
//! - `watchdog` is who cleans up: a process that outlives this one, so that a test that is killed leaves nothing behind.
//!
//! A test takes [`Cluster::shared`]: one for its process, or the one that `cargo xtask test` started for the whole run.
//! Where there is no PostgreSQL it gets an error that says what to install; no test is left out for want of a server.
//!
//! Standard library only, and nothing of ours. It talks to the server through `psql`, so that it knows no protocol.

mod cluster;
mod pooler;
pub mod programs;
mod watchdog;

use std::fmt;

pub use cluster::{Cluster, Settings, TEST_POSTGRES};
pub use pooler::Pooler;

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    hint: Option<String>,
}

impl Error {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl std::error::Error for Error {}
