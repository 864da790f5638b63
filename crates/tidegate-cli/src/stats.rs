//! `tidegate stats`: depths, ages and counters of a store, exact as of one moment.

use std::sync::Arc;

use tidegate::Store;

use crate::exit::{Code, Problem};
use crate::open::{Access, with_store};
use crate::output::{Output, Paint};
use crate::queue;

const EXAMPLES: &str = "\
Examples:
  tidegate stats
  tidegate stats --json | jq '.tallies[] | select(.what == \"dead\")'";

const COLUMNS: &str = "\
When piped: the lines of `queue list`, then the counters (queue, kind, what, code, how often), then
`open effects` and their number; blank lines between.";

/// Show depths, ages and counters
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {}

pub(crate) async fn run(_: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let stats = store.stats().await?;
        if output.json {
            output.object(&stats)?;
            return Ok(Code::Done);
        }
        queue::print(&stats.queues, output)?;
        output.data("\n")?;
        let rows: Vec<Vec<String>> = (stats.tallies.iter())
            .map(|tally| {
                vec![
                    tally.queue.to_string(),
                    tally.kind.to_string(),
                    tally.what.as_str().to_owned(),
                    tally.code.clone(),
                    tally.n.to_string(),
                ]
            })
            .collect();
        output.rows(&["queue", "kind", "counted", "code", "times"], &rows)?;
        output.data("\n")?;
        let open = stats.open_effects.to_string();
        let open = if stats.open_effects > 0 { output.paint(Paint::Waits, &open) } else { open };
        output.fields(&[("open effects", open)])?;
        Ok(Code::Done)
    })
    .await
}
