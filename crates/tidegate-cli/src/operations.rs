//! `tidegate dead operations`: the redrives of many, running, stopped and over.

use std::sync::Arc;

use tidegate::Store;
use tidegate::store::{Operation, OperationState};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate dead operations
  tidegate dead operations redrive-1795513800000-5e884898 --json";

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  name, state, selected, redriven, refused, ended well, ended badly, when it began, who, why";

/// List redrives, the newest first, and how far each has come
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    /// Only the one of this name
    name: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let operations = store.operations(args.name.clone(), args.limit).await?;
        if let (Some(name), true) = (&args.name, operations.is_empty()) {
            let what = format!("no operation {name:?}");
            return Err(Problem::new(Code::NotFound, what).hint("tidegate dead operations"));
        }
        if output.json {
            operations.iter().try_for_each(|operation| output.object(operation))?;
            return Ok(Code::Done);
        }
        let header = ["name", "state", "selected", "redriven", "refused", "well", "badly", "began", "who", "why"];
        let rows: Vec<Vec<String>> = operations.iter().map(|operation| row(operation, output)).collect();
        output.rows(&header, &rows)?;
        let unfinished = |operation: &&Operation| operation.state == OperationState::Running;
        if let Some(operation) = operations.iter().find(unfinished) {
            output.next(format!("if nobody drives it: tidegate dead redrive --resume {}", operation.name));
        }
        Ok(Code::Done)
    })
    .await
}

fn row(operation: &Operation, output: &Output) -> Vec<String> {
    vec![
        operation.name.clone(),
        operation.state.as_str().to_owned(),
        operation.selected.to_string(),
        operation.redriven.to_string(),
        operation.refused.to_string(),
        operation.ended_well.to_string(),
        operation.ended_badly.to_string(),
        output.time(operation.created_at),
        operation.actor.clone(),
        operation.reason.clone(),
    ]
}
