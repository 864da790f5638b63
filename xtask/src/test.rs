//! `cargo xtask test`: every test of the workspace, examples and doc tests included, from one build.
//!
//! Checks first that what the build needs is there and says what to install when not. (Where there has never been a C
//! compiler, this program cannot be linked either, and rustc says that `cc` is missing.) Starts one PostgreSQL server for
//! the whole run; what that needs is installed where it can be.

use std::path::Path;

use tidegate_pgcluster::TEST_POSTGRES;

use crate::pg;
use crate::run::{Program, is_installed, timed};

/// One command line for all: a second `cargo test` with other features would build everything a second time.
pub(crate) const ARGUMENTS: [&str; 3] = ["test", "--workspace", "--all-features"];

pub(crate) fn run(root: &Path, rest: &[&str]) -> Result<(), String> {
    timed("prerequisites", prerequisites).0?;
    timed("tests", || all(root, rest)).0
}

/// The tests themselves, with a server for those that need one.
pub(crate) fn all(root: &Path, rest: &[&str]) -> Result<(), String> {
    let server = pg::server()?;
    Program::cargo(&[&ARGUMENTS[..], rest].concat()).with_env(TEST_POSTGRES, &server.url()).run(root)
}

/// What must be installed for the workspace to build: a C compiler, because SQLite is compiled from its source.
pub(crate) fn prerequisites() -> Result<(), String> {
    if is_installed("cc", &["--version"]) {
        return Ok(());
    }
    Err("no C compiler: `cc --version` cannot be run, and SQLite is built from source\n\
         hint: install one, on Debian: apt-get install gcc libc6-dev"
        .to_owned())
}
