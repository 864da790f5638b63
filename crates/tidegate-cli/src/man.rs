//! `tidegate man`: the help of every command as manual pages.

use std::path::PathBuf;

use crate::exit::{Code, Problem};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate man man1
  tidegate man /usr/local/share/man/man1";

/// Write a manual page for each command into a directory
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// The directory; made if it is not there. Pages of an earlier version are replaced
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn run(args: &Args, program: clap::Command, output: &Output) -> Result<Code, Problem> {
    let shown = args.directory.display();
    let failed = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::PermissionDenied { Code::NotAllowed } else { Code::Failed };
        Problem::new(code, format!("manual pages cannot be written into {shown}: {error}"))
    };
    std::fs::create_dir_all(&args.directory).map_err(failed)?;
    clap_mangen::generate_to(program, &args.directory).map_err(failed)?;
    output.next(format!("man {}", args.directory.join("tidegate.1").display()));
    Ok(Code::Done)
}
