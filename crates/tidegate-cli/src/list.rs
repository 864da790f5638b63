//! `tidegate list`: messages by filter, page after page; the pages of `dead list` and `parked list` as well.

use std::sync::Arc;

use tidegate::lifecycle::State;
use tidegate::store::{Filter, Summary};
use tidegate::{Kind, MessageId, QueueName, Store};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;
use crate::view;

const EXAMPLES: &str = "\
Examples:
  tidegate list
  tidegate list --queue deposit --state failed --code declined
  tidegate list --all --limit 1000 --json | jq -r .id";

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  id, state, queue, kind, key, attempt, when it is due or ended, code and detail of the failure";

/// List messages; those that completed, failed or were cancelled only when asked for
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) page: Page,
    /// Only these states: ready, leased, parked, completed, failed, dead, cancelled
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',', conflicts_with = "all")]
    states: Vec<State>,
    /// Every state
    #[arg(long)]
    all: bool,
}

/// Which messages, and how many of them.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Page {
    /// Only this queue
    #[arg(long)]
    pub(crate) queue: Option<QueueName>,
    /// Only this kind
    #[arg(long)]
    pub(crate) kind: Option<Kind>,
    /// Only this code of a failure, or reason of being dead or parked
    #[arg(long)]
    pub(crate) code: Option<String>,
    /// Only messages after this one: the last of the page before
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<MessageId>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// So many are read from the store at once, however many are asked for.
const PAGE: u32 = 1000;

impl Page {
    pub(crate) fn filter(&self, states: Vec<State>) -> Filter {
        let Self { queue, kind, code, after, limit } = self.clone();
        Filter { queue, kind, states, code, after, limit, ..Filter::default() }
    }
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let states = match args {
        Args { all: true, .. } => Vec::new(),
        Args { ref states, .. } if !states.is_empty() => states.clone(),
        Args { .. } => vec![State::Ready, State::Leased, State::Parked, State::Dead],
    };
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let header = ["id", "state", "queue", "kind", "key", "attempt", "due or ended", "why"];
        let row = |summary: &Summary| {
            vec![
                summary.id.to_string(),
                summary.state.to_string(),
                summary.queue.to_string(),
                summary.kind.to_string(),
                summary.key.to_string(),
                summary.attempt.to_string(),
                output.maybe_time(summary.due_at.or(summary.ended_at)),
                view::why(summary, output),
            ]
        };
        print(&*store, args.page.filter(states), &header, row, output).await?;
        Ok(Code::Done)
    })
    .await
}

/// Prints what a filter finds, a page of the store at a time.
pub(crate) async fn print(
    store: &dyn Store,
    filter: Filter,
    header: &[&str],
    row: impl Fn(&Summary) -> Vec<String> + Send,
    output: &Output,
) -> Result<(), Problem> {
    let mut rows = Vec::new();
    let mut left = filter.limit;
    let mut next = Filter { limit: left.min(PAGE), ..filter };
    let mut last = None;
    while left > 0 {
        let page = store.list(next.clone()).await?;
        let got = u32::try_from(page.len()).unwrap_or(u32::MAX);
        for summary in &page {
            if output.json { output.object(summary)? } else { rows.push(row(summary)) }
        }
        last = page.last().map(|summary| summary.id).or(last);
        left = left.saturating_sub(got);
        if got < next.limit {
            last = None;
            break;
        }
        // A table needs all its rows for its widths; a pipe gets them as they come.
        if !output.terminal {
            output.rows(header, &std::mem::take(&mut rows))?;
        }
        next = Filter { after: last, limit: left.min(PAGE), ..next };
    }
    output.rows(header, &rows)?;
    match last {
        Some(last) => output.next(format!("there may be more: the same command with --after {last}")),
        None if rows.is_empty() && output.terminal => output.say("no messages"),
        None => {}
    }
    Ok(())
}

/// All ids a filter finds, in order.
pub(crate) async fn ids(store: &dyn Store, filter: Filter) -> Result<Vec<MessageId>, Problem> {
    let mut ids = Vec::new();
    let mut next = Filter { limit: PAGE, ..filter };
    loop {
        let page = store.list(next.clone()).await?;
        ids.extend(page.iter().map(|summary| summary.id));
        if page.len() < PAGE as usize {
            return Ok(ids);
        }
        next.after = ids.last().copied();
    }
}
