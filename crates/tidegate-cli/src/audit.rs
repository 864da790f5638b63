//! `tidegate audit`: what operators did, who, when and why; each entry was committed with its act.

use std::sync::Arc;

use tidegate::Store;

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate audit
  tidegate audit --after 120 --limit 1000 --json";

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  number, time, actor, act, message or queue, reason, particulars";

/// List the acts of operators, the oldest first
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    /// Only entries after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let entries = store.audit(args.after, args.limit).await?;
        if output.json {
            entries.iter().try_for_each(|entry| output.object(entry))?;
        } else {
            let header = ["number", "when", "who", "act", "on", "why", "particulars"];
            let rows: Vec<Vec<String>> = (entries.iter())
                .map(|entry| {
                    let message = entry.message.map(|id| id.to_string());
                    let queue = || entry.queue.as_ref().map(ToString::to_string);
                    vec![
                        entry.seq.to_string(),
                        output.time(entry.at),
                        entry.actor.clone(),
                        entry.act.clone(),
                        message.or_else(queue).unwrap_or_else(|| output.nothing()),
                        entry.reason.clone(),
                        entry.detail.clone(),
                    ]
                })
                .collect();
            output.rows(&header, &rows)?;
        }
        if let Some(last) = entries.last().filter(|_| entries.len() >= args.limit as usize) {
            output.next(format!("there may be more: tidegate audit --after {}", last.seq));
        }
        Ok(Code::Done)
    })
    .await
}
