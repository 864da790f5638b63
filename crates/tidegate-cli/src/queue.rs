//! `tidegate queue`: what waits where, and pausing, resuming and limiting a queue.

use std::sync::Arc;

use serde::Serialize;
use tidegate::explain::span;
use tidegate::store::{ChangeQueue, QueueChange, QueueStats};
use tidegate::{QueueName, Store, Tenant};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate queue list
  tidegate queue pause deposit --reason \"gateway maintenance until 14:00\"
  tidegate queue resume deposit
  tidegate queue limit deposit 100000";

/// Queues: list, pause, resume, limit
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List queues with what waits in them
    #[command(after_help = COLUMNS)]
    List,
    /// Stop claims on a queue; what runs goes on, and messages are still taken
    Pause(Change),
    /// Allow claims again
    Resume(Change),
    /// Bound how many messages wait in a queue; an enqueue beyond it is refused as full
    Limit {
        /// Which queue; it need not exist yet
        queue: QueueName,
        /// At most so many ready, scheduled and leased messages, or `none`
        #[arg(value_parser = limit)]
        limit: Limit,
        /// Why; kept with who and when
        #[arg(long, value_parser = reason)]
        reason: Option<String>,
    },
}

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  queue, paused, ready, scheduled, leased, parked, dead, age of the oldest ready and the oldest parked
  in milliseconds, limit";

#[derive(Debug, clap::Args)]
struct Change {
    /// Which queue; it need not exist yet
    queue: QueueName,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => number.parse().map(|n| Limit(Some(n))).map_err(|_| "a whole number, or none".to_owned()),
    }
}

#[derive(Serialize)]
struct Changed<'a> {
    queue: &'a QueueName,
    act: &'static str,
    /// Of a limit: null where there is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_depth: Option<Option<u64>>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    match args.command {
        Command::List => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                let stats = store.stats().await?;
                if output.json {
                    stats.queues.iter().try_for_each(|queue| output.object(queue))?;
                } else {
                    print(&stats.queues, output)?;
                }
                Ok(Code::Done)
            })
            .await
        }
        Command::Pause(Change { queue, reason }) => change(queue, QueueChange::Pause, reason, store, output).await,
        Command::Resume(Change { queue, reason }) => change(queue, QueueChange::Resume, reason, store, output).await,
        Command::Limit { queue, limit: Limit(limit), reason } => {
            change(queue, QueueChange::Limit(limit), reason, store, output).await
        }
    }
}

/// A row for each queue, as `stats` shows them too.
pub(crate) fn print(queues: &[QueueStats], output: &Output) -> Result<(), Problem> {
    let age = |age: Option<std::time::Duration>| match age {
        Some(age) if output.terminal => span(age),
        Some(age) => age.as_millis().to_string(),
        None => output.nothing(),
    };
    let header =
        ["queue", "paused", "ready", "scheduled", "leased", "parked", "dead", "oldest ready", "oldest parked", "limit"];
    let rows: Vec<Vec<String>> = (queues.iter())
        .map(|queue| {
            vec![
                queue.queue.to_string(),
                if queue.paused { "paused".to_owned() } else { output.nothing() },
                queue.ready.to_string(),
                queue.scheduled.to_string(),
                queue.leased.to_string(),
                queue.parked.to_string(),
                queue.dead.to_string(),
                age(queue.oldest_ready),
                age(queue.oldest_parked),
                queue.max_depth.map_or_else(|| output.nothing(), |limit| limit.to_string()),
            ]
        })
        .collect();
    output.rows(&header, &rows)
}

async fn change(
    queue: QueueName,
    change: QueueChange,
    reason: Option<String>,
    store: &Asked,
    output: &Output,
) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let request =
            ChangeQueue { tenant: Tenant::default(), queue: queue.clone(), change, act: act(reason.as_deref()) };
        // Before: the act makes the queue known.
        let known = store.stats().await?.queues.iter().any(|known| known.queue == queue);
        store.pause(request).await?;
        let (word, max_depth, next) = match change {
            QueueChange::Pause => ("paused", None, format!("tidegate queue resume {queue}")),
            QueueChange::Resume => ("resumed", None, "tidegate queue list".to_owned()),
            QueueChange::Limit(limit) => ("limited", Some(limit), "tidegate queue list".to_owned()),
        };
        if output.json {
            output.object(&Changed { queue: &queue, act: word, max_depth })?;
        } else {
            let mut cells = vec![queue.to_string(), word.to_owned()];
            cells.extend(max_depth.map(|limit| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())));
            output.rows(["queue", "now", "limit"].get(..cells.len()).unwrap_or_default(), &[cells])?;
        }
        if !known {
            output.say(format!("no message has been on queue {queue}: is the name right? tidegate queue list"));
        }
        output.next(next);
        Ok(Code::Done)
    })
    .await
}
