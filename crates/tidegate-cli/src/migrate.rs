//! `tidegate migrate`: the steps of a store's tables, for whoever looks after its database.
//!
//! A service makes a new store by itself, and takes no step on one that is there: that is done here, once, when it suits.

use clap::Subcommand;
use serde::Serialize;
use tidegate::engine::{self, Opening};
use tidegate::migration::Step;

use crate::exit::{Code, Problem};
use crate::open::{Access, open_with, place};
use crate::output::{Output, Paint};

const EXAMPLES: &str = "\
Examples:
  tidegate migrate status
  tidegate migrate print > steps.sql
  tidegate migrate up";

const COLUMNS: &str = "\
When piped, `status` is a line for each step (number, name, when it was taken, or `-`). Exit code 1 of `status`: steps are
missing.";

const OLDER: &str = "\
A step that programs of the version before cannot live with is not taken while they are at work: `up` says who they are, by
the leases that hold, by who swept the store in the last three seconds, and by the sessions of the database. End them, and
repeat it. What it cannot see, and what becomes of programs that a store was migrated beside: docs/operations/postgresql.md.
A file that any other process has open is not migrated at all.";

/// Show, take or print the steps of the store's tables
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Status(StatusArgs),
    Up(UpArgs),
    Print(PrintArgs),
}

/// List the steps, and when the store took them; changes nothing
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate migrate status --json")]
struct StatusArgs {}

/// Take the steps that are missing, all or none of them; makes the store if it is not there
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate migrate up\n  tidegate migrate up --beside-older", after_help = OLDER)]
struct UpArgs {
    /// Take a step also while older programs are at work that cannot live with it: they can claim nothing more
    #[arg(long)]
    beside_older: bool,
}

/// Print the SQL of the steps that are missing; changes nothing
#[derive(Debug, clap::Args)]
#[command(before_help = "Examples:\n  tidegate migrate print\n  tidegate migrate print --all")]
struct PrintArgs {
    /// Every step, whether or not the store took it
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Status<'a> {
    store: String,
    /// No step is missing.
    current: bool,
    steps: &'a [Step],
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    match args.what {
        What::Status(StatusArgs {}) => status(store, output).await,
        What::Up(args) => up(&args, store, output).await,
        What::Print(PrintArgs { all }) => print(all, store, output).await,
    }
}

async fn status(store: &str, output: &Output) -> Result<Code, Problem> {
    let place = place(store)?;
    let steps = engine::steps(&place).await?;
    let current = missing(&steps).next().is_none();
    if output.json {
        output.object(&Status { store: place.to_string(), current, steps: &steps })?;
    } else {
        let rows: Vec<Vec<String>> = steps.iter().map(|step| row(step, output)).collect();
        output.rows(&["step", "name", "taken"], &rows)?;
    }
    if !current {
        output.next("tidegate migrate print shows what is missing, tidegate migrate up takes it");
    }
    Ok(if current { Code::Done } else { Code::Failed })
}

async fn up(args: &UpArgs, store: &str, output: &Output) -> Result<Code, Problem> {
    let place = place(store)?;
    let before = engine::steps(&place).await?;
    let mut opening = Opening::default();
    opening.migrate = true;
    opening.beside_older = args.beside_older;
    open_with(&place, Access::Create, opening).await?.close().await;
    let after = engine::steps(&place).await?;
    let taken: Vec<Step> = (after.into_iter())
        .filter(|step| step.applied_at.is_some() && missing(&before).any(|missing| missing.number == step.number))
        .collect();
    if output.json {
        output.object(&Status { store: place.to_string(), current: true, steps: &taken })?;
    } else {
        let rows: Vec<Vec<String>> = taken.iter().map(|step| row(step, output)).collect();
        output.rows(&["step", "name", "taken"], &rows)?;
    }
    if taken.is_empty() {
        output.say("no step was missing");
    }
    Ok(Code::Done)
}

async fn print(all: bool, store: &str, output: &Output) -> Result<Code, Problem> {
    let steps = engine::steps(&place(store)?).await?;
    let wanted: Vec<&Step> = steps.iter().filter(|step| all || step.applied_at.is_none()).collect();
    for step in &wanted {
        output.data(&format!("-- step {}: {}\n{}\n", step.number, step.name, step.sql.trim_end()))?;
    }
    if wanted.is_empty() {
        output.say("no step is missing");
    }
    Ok(Code::Done)
}

fn missing(steps: &[Step]) -> impl Iterator<Item = &Step> {
    steps.iter().filter(|step| step.applied_at.is_none())
}

fn row(step: &Step, output: &Output) -> Vec<String> {
    let taken = step.applied_at.map_or_else(|| output.paint(Paint::Waits, "-"), |at| output.time(at));
    vec![step.number.to_string(), step.name.to_owned(), taken]
}
