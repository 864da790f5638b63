//! `tidegate completions`: what a shell needs to complete the program's command lines.

use clap_complete::Shell;

use crate::exit::{Code, Problem};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate completions bash > ~/.local/share/bash-completion/completions/tidegate
  tidegate completions zsh > ~/.zfunc/_tidegate
  tidegate completions fish > ~/.config/fish/completions/tidegate.fish";

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which shell
    #[arg(value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

pub(crate) fn run(args: &Args, program: &clap::Command, output: &Output) -> Result<Code, Problem> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut advertised(program), "tidegate", &mut script);
    output.data(&String::from_utf8_lossy(&script))?;
    Ok(Code::Done)
}

/// The program without what it keeps to itself: some shells would offer that all the same.
fn advertised(program: &clap::Command) -> clap::Command {
    let shown = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("tidegate")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_flag(true)
        .args(program.get_arguments().cloned())
        .subcommands(shown)
}
