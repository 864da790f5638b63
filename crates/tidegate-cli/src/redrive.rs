//! `tidegate dead redrive`: sends dead letters again, one or all that a filter finds.
//!
//! What is to be redriven is collected first, so that a message that dies again meanwhile is not redriven twice, and shown
//! before it is done (`--dry-run`). More than a thousand want to be confirmed. The work is done in chunks under one
//! operation id; given again under that id, what was redriven is left alone.

use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;

use serde::Serialize;
use tidegate::clock::{Clock, Random, SystemClock, SystemRandom};
use tidegate::id::Hex;
use tidegate::journal::JournalFacts;
use tidegate::lifecycle::{self, State};
use tidegate::store::{Filter, REDRIVE_CHUNK, Redrive};
use tidegate::{Kind, MessageId, QueueName, Store, StoreError};

use crate::exit::{Code, Problem};
use crate::list;
use crate::open::{Access, act, with_store};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate dead redrive msg_01jcz4t6q8000 --reason \"gateway certificate renewed\"
  tidegate dead redrive --queue deposit --code timeout --dry-run
  tidegate dead redrive --all --yes
  tidegate dead redrive msg_01jcz4t6q8000 --again --reason \"declined by mistake, says the gateway\"";

/// Send dead letters again, each with attempt 1 of a new generation
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "queue", "kind", "code", "all"])))]
pub(crate) struct Args {
    /// Which messages; cancelled ones may be named as well, and failed ones with --again
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "kind", "code", "all"])]
    ids: Vec<MessageId>,
    /// All dead letters of this queue
    #[arg(long)]
    queue: Option<QueueName>,
    /// All dead letters of this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// All dead letters with this reason, or with this code of their last failure
    #[arg(long)]
    code: Option<String>,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["queue", "kind", "code"])]
    all: bool,
    /// Also a failed message, whose answer was given and may be replaced; needs --reason
    #[arg(long, requires = "reason")]
    again: bool,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
    /// Say which messages would be redriven, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask, however many there are
    #[arg(long)]
    yes: bool,
    /// Go on with an operation that was interrupted
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
}

/// A reason that says something.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Err("a reason says why; it is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// More than so many are confirmed by typing their number.
const WITHOUT_ASKING: usize = 1000;

#[derive(Serialize)]
struct Report {
    operation: Option<String>,
    dry_run: bool,
    redriven: usize,
    refused: Vec<Refused>,
    /// Those of a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would_redrive: Vec<MessageId>,
}

#[derive(Serialize)]
struct Refused {
    id: MessageId,
    #[serde(flatten)]
    problem: Problem,
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    if args.again && args.ids.is_empty() {
        return Err(Problem::usage("--again without ids")
            .hint("name the messages whose answers may be replaced: tidegate list --state failed"));
    }
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let ids = match &args.ids[..] {
            [] => {
                let Args { queue, kind, code, .. } = &args;
                let filter =
                    Filter { queue: queue.clone(), kind: kind.clone(), code: code.clone(), ..Filter::default() };
                list::ids(&*store, Filter { states: vec![State::Dead], ..filter }).await?
            }
            ids => ids.to_vec(),
        };
        if args.dry_run {
            return dry_run(&*store, ids, args.again, output).await;
        }
        if ids.len() > WITHOUT_ASKING && !args.yes {
            confirm(ids.len(), output).await?;
        }
        redrive(&*store, ids, args, output).await
    })
    .await
}

async fn redrive(store: &dyn Store, ids: Vec<MessageId>, args: Args, output: &Output) -> Result<Code, Problem> {
    let operation = args.operation.unwrap_or_else(operation);
    let act = act(args.reason.as_deref());
    let single = ids.len() == 1 && !args.ids.is_empty();
    let mut report =
        Report { operation: None, dry_run: false, redriven: 0, refused: Vec::new(), would_redrive: Vec::new() };
    for chunk in ids.chunks(REDRIVE_CHUNK) {
        let request =
            Redrive { ids: chunk.to_vec(), again: args.again, operation: operation.clone(), act: act.clone() };
        let verdicts = store.redrive(request).await.map_err(|error| {
            let done = report.redriven;
            let problem = Problem::from(error);
            let what = format!("after {done} of {}: {}", ids.len(), problem.what);
            Problem { what, ..problem }.hint(format!("go on with: the same command and --operation {operation}"))
        })?;
        for (id, verdict) in chunk.iter().zip(verdicts) {
            match verdict {
                Ok(_) => report.redriven += 1,
                Err(error) => report.refused.push(Refused { id: *id, problem: error.into() }),
            }
        }
    }
    // One message that was named and refused is the command's own failure, with its own code.
    if single && let Some(refused) = report.refused.pop() {
        return Err(refused.problem);
    }
    report.operation = Some(operation);
    tell(&report, output)?;
    if report.redriven > 0 {
        output.next(match &ids[..] {
            [id] => format!("tidegate explain {id}"),
            _ => "tidegate queue list".to_owned(),
        });
    }
    Ok(if report.refused.is_empty() { Code::Done } else { Code::Failed })
}

/// What the rule of the store says to each message now; the store itself decides again when it is done.
async fn dry_run(store: &dyn Store, ids: Vec<MessageId>, again: bool, output: &Output) -> Result<Code, Problem> {
    let single = ids.len() == 1;
    let mut report =
        Report { operation: None, dry_run: true, redriven: 0, refused: Vec::new(), would_redrive: Vec::new() };
    for chunk in ids.chunks(REDRIVE_CHUNK) {
        for (id, view) in chunk.iter().zip(store.inspect(chunk.to_vec()).await?) {
            let allowed = match view {
                None => Err(StoreError::not_found(*id)),
                Some(view) => {
                    let facts = journal_facts(&view);
                    lifecycle::redrive(view.state, view.counters, &facts, again).map(|_| ())
                }
            };
            match allowed {
                Ok(()) => report.would_redrive.push(*id),
                Err(error) => report.refused.push(Refused { id: *id, problem: error.into() }),
            }
        }
    }
    if single && let Some(refused) = report.refused.pop() {
        return Err(refused.problem);
    }
    tell(&report, output)?;
    output.next("the same without --dry-run does it");
    Ok(if report.refused.is_empty() { Code::Done } else { Code::Failed })
}

fn journal_facts(view: &tidegate::store::MessageView) -> JournalFacts {
    JournalFacts::of(&view.journal, SystemClock::new().now())
}

fn tell(report: &Report, output: &Output) -> Result<(), Problem> {
    if output.json {
        return output.object(report);
    }
    for Refused { id, problem } in &report.refused {
        output.say(format!("{id}: {}", problem.sentence()));
    }
    if report.dry_run {
        let rows: Vec<Vec<String>> = report.would_redrive.iter().map(|id| vec![id.to_string()]).collect();
        output.rows(&["would be redriven"], &rows)?;
        output.say(format!("{} would be redriven, {} refused", report.would_redrive.len(), report.refused.len()));
        return Ok(());
    }
    let mut fields = vec![("redriven", report.redriven.to_string()), ("refused", report.refused.len().to_string())];
    fields.extend(report.operation.clone().map(|operation| ("operation", operation)));
    output.fields(&fields)
}

/// A name nobody else's operation has.
fn operation() -> String {
    let mut bytes = [0; 4];
    SystemRandom.fill(&mut bytes);
    format!("redrive-{}-{}", SystemClock::new().now().as_millis(), Hex(&bytes))
}

/// Asks a person to type the number. Nobody is asked who cannot answer.
async fn confirm(count: usize, output: &Output) -> Result<(), Problem> {
    let refused = |why: &str| {
        Problem::usage(format!("{count} dead letters would be redriven, and {why}"))
            .hint("--dry-run shows which; --yes redrives them without asking")
    };
    if !io::stdin().is_terminal() {
        return Err(refused("nobody can be asked: standard input is no terminal"));
    }
    output.say(format!("{count} dead letters would be redriven. Type {count} to do it:"));
    let typed = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let typed = typed.await.map_err(|_| refused("the answer could not be read"))?.map_err(Problem::from)?;
    if typed.trim() == count.to_string() { Ok(()) } else { Err(refused("that was not confirmed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_not_empty() {
        assert_eq!(reason(" because "), Ok("because".to_owned()));
        assert!(reason("  ").is_err());
    }

    #[test]
    fn two_operations_have_two_names() {
        assert_ne!(operation(), operation());
    }
}
