//! `cargo xtask pg`: a PostgreSQL server to throw away, and the one that a run of the tests shares.
//!
//! What a machine lacks is installed where that can be done (as root, with apt-get); elsewhere it is named.

use std::path::Path;
use std::process::Command;

use tidegate_pgcluster::programs::{self, Programs};
use tidegate_pgcluster::{Cluster, Settings, TEST_POSTGRES};

/// The server of the tests: the one that the environment names, or a new one that goes with this value.
pub(crate) fn server() -> Result<Cluster, String> {
    match Cluster::named() {
        Some(theirs) => theirs.map_err(|e| e.to_string()),
        None => start(),
    }
}

fn start() -> Result<Cluster, String> {
    let programs = Programs::find_or_install().map_err(|e| e.to_string())?;
    programs::pgbouncer_or_install().map_err(|e| e.to_string())?;
    Cluster::start_with(programs, Settings::default()).map_err(|e| e.to_string())
}

/// Starts a server and waits to be interrupted, or runs a command that finds the server in its environment.
pub(crate) fn run(root: &Path, command: &[&str]) -> Result<(), String> {
    let cluster = start()?;
    let Some((program, arguments)) = command.split_first() else {
        println!("{}", cluster.url());
        println!("hint: Ctrl-C ends it, and nothing of it stays; {TEST_POSTGRES}=URL has tests use it");
        // Ctrl-C ends this process, and the cluster's watchdog takes the cluster away.
        loop {
            std::thread::park();
        }
    };
    let status = Command::new(program)
        .args(arguments)
        .env(TEST_POSTGRES, cluster.url())
        .current_dir(root)
        .status()
        .map_err(|e| format!("cannot start `{program}`: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}", command.join(" "))) }
}
