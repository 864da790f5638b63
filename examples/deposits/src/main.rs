//! The payments reference application as a program of its own; what it does is in the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use deposits::{RoleArgs, run_role};

/// Takes deposits so that each takes effect exactly once, and plays the world around that.
#[derive(Debug, Parser)]
#[command(name = "deposits", version)]
struct Command {
    #[command(flatten)]
    role: RoleArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Command::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(tracing::Level::WARN).init();
    match run_role(command.role, &[]).await {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell that standard error is closed.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
