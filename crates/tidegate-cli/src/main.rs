//! The program `tidegate`: one command a file, named as it is typed.
//!
//! This file reads the command line and the environment, starts what was asked for, and turns how it ended into an exit
//! code. A command works on a store through the contract of `tidegate::Store`, starts no housekeeping, and prints through
//! [`output`]: data on standard output, talk on standard error.

mod audit;
mod backup;
mod bench;
mod cancel;
mod completions;
mod config;
mod context;
mod contexts;
mod dead;
mod demo;
mod dev;
mod discard;
mod doctor;
mod edit;
mod enqueue;
mod erase;
mod exit;
mod explain;
#[cfg(test)]
mod fuzzed;
mod get;
mod groups;
mod input;
mod ledger;
mod list;
mod log;
mod man;
mod metrics;
mod migrate;
mod open;
mod openapi;
mod operations;
#[cfg_attr(not(feature = "otlp"), path = "no_otlp.rs")]
mod otlp;
mod output;
mod parked;
mod probe;
mod production;
mod queue;
mod reconcile;
mod redrive;
mod resolve;
mod restored;
mod role;
mod serve;
mod settings;
mod stats;
mod target;
mod token;
mod top;
mod torture;
mod view;

use std::io::Write;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::contexts::Contexts;
use crate::exit::{Code, Problem};
use crate::open::Asked;
use crate::output::{Colour, Output};
use crate::target::{Named, Reach, Target};

/// A build of the whole workspace with all features has rules that can be broken; what comes out of it is not to be shipped.
const _: () = assert!(
    cfg!(debug_assertions) || !tidegate::canary::COMPILED,
    "a release build of the command must not have the feature canaries: build it alone, with -p tidegate-cli"
);

const EXAMPLES: &str = "\
Examples:
  tidegate demo
  tidegate torture --for 2m
  tidegate dev
  tidegate enqueue --kind greet --key greet-ada --payload '{\"name\":\"Ada\"}'
  tidegate list
  tidegate explain msg_01jcz4t6q8000
  tidegate parked list
  tidegate dead redrive msg_01jcz4t6q8000 --reason \"gateway certificate renewed\"";

/// Background work that takes effect exactly once: look at a store, put messages in, decide what waits for a person
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, before_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    /// The store: a file, sqlite://PATH, or postgres://HOST/DATABASE
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "TIDEGATE_STORE",
        hide_env_values = true,
        default_value = "tidegate.db",
        help_heading = GLOBAL
    )]
    store: String,
    /// Print JSON: one object, or one a line for lists
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// When to use colour; `auto` is on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t, help_heading = GLOBAL)]
    color: Colour,
    /// Ask nothing: neither about many messages, nor before an act in production
    #[arg(long, global = true, help_heading = GLOBAL)]
    yes: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

const GLOBAL: &str = "Options of every command";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Torture(torture::TortureArgs),
    Serve(serve::Args),
    Dev(dev::Args),
    Probe(probe::Args),
    Token(token::Args),
    Config(config::Args),
    Openapi(openapi::Args),
    Metrics(metrics::Args),
    Context(context::Args),
    Enqueue(enqueue::Args),
    Get(get::Args),
    List(list::Args),
    Explain(explain::Args),
    Cancel(cancel::Args),
    Dead(dead::Args),
    Parked(parked::Args),
    Reconcile(reconcile::Args),
    Queue(queue::Args),
    Audit(audit::Args),
    Stats(stats::Args),
    Top(top::Args),
    Doctor(doctor::Args),
    Backup(backup::Args),
    Restored(restored::Args),
    Migrate(migrate::Args),
    Erase(erase::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Role(role::Args),
}

fn main() -> ExitCode {
    let matches = match dressed(Cli::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(told) if told.use_stderr() => return wrongly_used(&told),
        Err(told) => {
            // There is nobody left to tell that the terminal is gone.
            let _told = told.print();
            if !told.render().to_string().ends_with('\n') {
                let _told = writeln!(std::io::stdout());
            }
            return Code::Done.into();
        }
    };
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => {
            let cli = Cli { reach: cli.reach.without_empty(), ..cli };
            let sources = Sources { store: matches.value_source("store"), typed: cli.reach.typed(&matches) };
            run(cli, sources)
        }
        Err(told) => wrongly_used(&told),
    }
}

/// What is said on the command line itself, and not only in the environment.
struct Sources {
    store: Option<ValueSource>,
    typed: Reach,
}

/// Arguments that cannot be understood: told like every other problem, whatever else was wrong beside `--json`.
fn wrongly_used(told: &clap::Error) -> ExitCode {
    let mut words = std::env::args_os().skip(1).take_while(|word| word != "--");
    if words.any(|word| word == "--json") {
        Output::new(true, Colour::Never).problem(&of_clap(told));
        return Code::Usage.into();
    }
    if told.to_string().contains(INLINE_HINT) {
        let text = told.render();
        let text =
            if Output::new(false, Colour::Auto).talks_in_colour() { text.ansi().to_string() } else { text.to_string() };
        // There is nobody left to tell that standard error cannot be written.
        let _told = write!(std::io::stderr(), "{}", text.replacen(INLINE_HINT, "\nhint: ", 1));
    } else {
        let _told = told.print();
    }
    Code::Usage.into()
}

/// How the error of a value says its hint when it is shown inside another one.
const INLINE_HINT: &str = "; hint: ";

/// What clap says in several paragraphs: what is wrong, tips, the usage.
fn of_clap(told: &clap::Error) -> Problem {
    let text = told.render().to_string();
    let on_one_line = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = on_one_line(text.split("\n\n").next().unwrap_or_default());
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let Some(what) = first.strip_prefix("error: ") else {
        // The help itself, because nothing was asked for.
        return Problem::usage("a command is missing").hint("tidegate --help lists them");
    };
    // Commands are the usage's to list, and not all are for users.
    let what = what.split(" [subcommands:").next().unwrap_or(what);
    if let Some((what, hint)) = what.split_once(INLINE_HINT) {
        return Problem::usage(what).hint(hint);
    }
    let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    match (tip, usage) {
        (Some(tip), _) => Problem::usage(what).hint(tip),
        (None, Some(usage)) => Problem::usage(what).hint(format!("usage: {usage}")),
        (None, None) => Problem::usage(what).hint("--help says what can be given"),
    }
}

/// Examples before everything else, the exit codes at the end, and one help: `-h` and `--help` say the same, a line to an
/// option.
fn dressed(command: clap::Command) -> clap::Command {
    let codes = if command.get_name() == "tidegate" { exit::HELP } else { exit::HELP_IN_SHORT };
    let own = command.get_after_help().map(|own| format!("{own}\n\n")).unwrap_or_default();
    let help = clap::Arg::new("help").short('h').long("help").action(clap::ArgAction::HelpShort).help("Print this");
    command
        .disable_help_flag(true)
        .arg(help.help_heading(GLOBAL))
        .help_template("{about-with-newline}\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}")
        .mut_subcommands(dressed)
        .after_help(format!("{own}{codes}"))
}

fn run(cli: Cli, sources: Sources) -> ExitCode {
    let output = Output::new(cli.json, cli.color);
    // These two log as their settings say, which they read first.
    if !matches!(cli.command, Command::Serve(_) | Command::Dev(_)) {
        let traced = matches!(cli.command, Command::Enqueue(_) | Command::Role(_));
        let settings = traced.then(config::of_environment);
        // That connections end and servers are away is what torture does, and no news.
        let breaks = matches!(cli.command, Command::Torture(_));
        let level = if breaks { LevelFilter::ERROR } else { LevelFilter::WARN };
        log::for_a_command(level, settings.as_ref(), &output);
    }
    // They say themselves what they leave behind.
    let listens = !matches!(cli.command, Command::Torture(_) | Command::Serve(_) | Command::Dev(_));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(Err(Problem::new(Code::Failed, format!("cannot start: {error}"))), &output),
    };
    let ending = runtime.block_on(async {
        tokio::select! {
            ending = command(cli, sources, &output) => ending,
            interrupted = tokio::signal::ctrl_c(), if listens => Err(match interrupted {
                Ok(()) => Problem::new(Code::Interrupted, "interrupted")
                    .hint("what was acknowledged is stored; giving the same input again adds nothing twice"),
                Err(error) => Problem::new(Code::Failed, format!("cannot listen for Ctrl-C: {error}")),
            }),
        }
    });
    otlp::end();
    // Not dropped: a thread that waits for the terminal would have to be waited for.
    runtime.shutdown_background();
    ended(ending, &output)
}

fn ended(ending: Result<ExitCode, Problem>, output: &Output) -> ExitCode {
    match ending {
        Ok(code) => code,
        Err(problem) => {
            if problem.code != Code::Done {
                output.problem(&problem);
            }
            problem.code.into()
        }
    }
}

async fn command(cli: Cli, sources: Sources, output: &Output) -> Result<ExitCode, Problem> {
    let Cli { store, reach, yes, command, .. } = cli;
    // Demo, torture and bench make stores of their own, and must not take one from the environment for a place to do so.
    let typed = (sources.store == Some(ValueSource::CommandLine)).then_some(store.as_str());
    let named = Named { store: &store, store_source: sources.store, reach: &reach, typed: &sources.typed };
    let target =
        || Target::of(&named, || context::file().map_or_else(|| Ok(Contexts::default()), |path| Contexts::read(&path)));
    let of_none = |command: &str| no_server(command, &sources.typed);
    let ask = || Ok::<_, Problem>(Asked { target: target()?, yes, output: output.clone() });
    let code = match command {
        // These print for themselves, and know their own exit codes.
        Command::Demo(args) => {
            of_none("demo")?;
            return demo::run(args, typed).await;
        }
        Command::Torture(args) => {
            of_none("torture")?;
            return Box::pin(torture::run(args, typed, output)).await;
        }
        Command::Role(args) => return Ok(role::run(args).await?),
        Command::Serve(args) => {
            of_none("serve")?;
            Box::pin(serve::run(args, typed, output)).await
        }
        Command::Dev(args) => {
            of_none("dev")?;
            Box::pin(dev::run(args, typed, output)).await
        }
        Command::Probe(args) => {
            of_none("probe")?;
            probe::run(args, typed, output).await
        }
        Command::Token(args) => token::run(args, &ask()?, output).await,
        Command::Config(args) => {
            of_none("config")?;
            config::run(args, typed, output)
        }
        Command::Openapi(args) => {
            of_none("openapi")?;
            openapi::run(&args, output)
        }
        Command::Metrics(args) => {
            of_none("metrics")?;
            metrics::run(&args, output)
        }
        Command::Context(args) => context::run(args, &sources.typed, context::file(), output),
        Command::Enqueue(args) => enqueue::run(args, &ask()?, output).await,
        Command::Get(args) => get::run(args, &ask()?, output).await,
        Command::List(args) => list::run(args, &ask()?, output).await,
        Command::Explain(args) => explain::run(args, &ask()?, output).await,
        Command::Cancel(args) => cancel::run(args, &ask()?, output).await,
        Command::Dead(args) => dead::run(args, &ask()?, output).await,
        Command::Parked(args) => parked::run(args, &ask()?, output).await,
        Command::Reconcile(args) => reconcile::run(args, &ask()?, output).await,
        Command::Queue(args) => queue::run(args, &ask()?, output).await,
        Command::Audit(args) => audit::run(args, &ask()?, output).await,
        Command::Stats(args) => stats::run(args, &ask()?, output).await,
        Command::Top(args) => top::run(args, &ask()?, output).await,
        Command::Doctor(args) => doctor::run(args, target()?.store("doctor", WHERE_IT_IS)?, output).await,
        Command::Backup(args) => backup::run(args, target()?.store("backup", WHERE_IT_IS)?, output).await,
        Command::Restored(args) => restored::run(args, target()?.store("restored", WHERE_IT_IS)?, output).await,
        Command::Migrate(args) => migrate::run(args, target()?.store("migrate", WHERE_IT_IS)?, output).await,
        Command::Erase(args) => erase::run(args, target()?.store("erase", WHERE_IT_IS)?, output).await,
        Command::Completions(args) => completions::run(&args, &dressed(Cli::command()), output),
        Command::Man(args) => man::run(&args, dressed(Cli::command()), output),
        Command::Bench(args) => {
            of_none("bench")?;
            bench::run(args, typed, output).await
        }
    };
    Ok(code?.into())
}

/// What to do instead of asking a server for what only a store can do.
const WHERE_IT_IS: &str = "run it on the machine of the server, or where its database can be reached: \
    --store names the store that it serves";

/// Refuses a server that was named to a command that works on none.
fn no_server(command: &str, typed: &Reach) -> Result<(), Problem> {
    match typed.url.as_ref().or(typed.context.as_ref()) {
        None => Ok(()),
        Some(named) => Err(Problem::usage(format!("{command} asks no server, and {named} was named"))
            .hint(format!("leave out --url and --context; tidegate {command} --help says what it works on"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        dressed(Cli::command()).debug_assert();
    }
}
