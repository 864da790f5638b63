//! The hidden `tidegate role ..`: the processes of the demo, which starts this very program again for each.
//!
//! What a role does stands in `examples/deposits`; `deposits ROLE ..` is the same thing.

use std::process::ExitCode;

use deposits::RoleArgs;

/// Be one of the processes of the demo
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    role: RoleArgs,
}

/// Plays the role until it is done or told to stop.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    deposits::run_role(args.role, &["role"]).await
}
