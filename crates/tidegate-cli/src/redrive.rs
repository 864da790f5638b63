//! `tidegate dead redrive`: sends dead letters again, one, those of a group, or all that a filter finds.
//!
//! Each redrive is an operation that the store keeps: this command begins it and drives it, step by step. A canary of a few
//! is watched to its end first; a rate spares what was just repaired; too many bad ends stop it. Interrupted, it goes on
//! with `--resume`; what it redrove it never redrives twice.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tidegate::clock::{Clock, Random, SystemClock, SystemRandom};
use tidegate::group::GroupId;
use tidegate::id::Hex;
use tidegate::journal::JournalFacts;
use tidegate::lifecycle::{self, State};
use tidegate::store::{
    FailureGroup, Filter, NewOperation, Operate, Operation, OperationState, Pace, REDRIVE_CHUNK, Selection, Stepped,
    Waits,
};
use tidegate::{Kind, MessageId, QueueName, Store, StoreError};

use crate::exit::{Code, Problem};
use crate::groups;
use crate::list;
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate dead redrive msg_01jcz4t6q8000 --reason \"gateway certificate renewed\"
  tidegate dead redrive --group grp_5e884898da280471 --dry-run
  tidegate dead redrive --group grp_5e884898da280471 --canary 5 --stop-over 10 --rate 50 --reason \"fixed in 1.4.2\"
  tidegate dead redrive --resume redrive-1795513800000-5e884898
  tidegate dead redrive msg_01jcz4t6q8000 --again --reason \"declined by mistake, says the gateway\"";

/// Send dead letters again, each with attempt 1 of a new generation
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["ids", "queue", "kind", "code", "group", "all", "resume", "cancel"])))]
pub(crate) struct Args {
    /// Which messages; cancelled ones may be named as well, and failed ones with --again
    #[arg(value_name = "ID", conflicts_with_all = ["queue", "kind", "code", "group", "all"])]
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
    /// All dead letters of this group, as `dead groups` names it
    #[arg(long)]
    group: Option<GroupId>,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["queue", "kind", "code", "group"])]
    all: bool,
    /// Redrive so many first, and the rest only when all of them have ended
    #[arg(long, value_name = "N", default_value_t = 0)]
    canary: u32,
    /// At most so many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Stop by itself when more than so many percent of those that ended have failed, died or been parked again
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    stop_over: Option<u32>,
    /// Also a failed message, whose answer was given and may be replaced; needs --reason
    #[arg(long, requires = "reason")]
    again: bool,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
    /// Say which messages would be redriven, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Give the operation this name; the name of one that was interrupted goes on with it
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Go on with this operation; with --reason also when it stopped by itself
    #[arg(long, value_name = "NAME", conflicts_with_all = ["ids", "queue", "kind", "code", "group", "all", "dry_run"])]
    resume: Option<String>,
    /// Call this operation off; what it redrove stays redriven
    #[arg(long, value_name = "NAME", conflicts_with_all = ["ids", "queue", "kind", "code", "group", "all", "dry_run", "resume"])]
    cancel: Option<String>,
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
    redriven: u64,
    refused: Vec<Refused>,
    /// Those of a dry run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    would_redrive: Vec<MessageId>,
    /// What those of a dry run have in common.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<FailureGroup>,
    /// Where an operation with a canary, a rate or a stop stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Operation>,
}

impl Report {
    fn empty(dry_run: bool) -> Self {
        Self {
            operation: None,
            dry_run,
            redriven: 0,
            refused: Vec::new(),
            would_redrive: Vec::new(),
            groups: Vec::new(),
            progress: None,
        }
    }
}

/// A message that was not taken, and why.
#[derive(Serialize)]
pub(crate) struct Refused {
    id: MessageId,
    #[serde(flatten)]
    problem: Problem,
}

impl Refused {
    pub(crate) fn new(id: MessageId, error: StoreError) -> Self {
        Self { id, problem: error.into() }
    }

    pub(crate) fn sentence(&self) -> String {
        format!("{}: {}", self.id, self.problem.sentence())
    }
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let yes = store.yes;
    if args.again && args.ids.is_empty() {
        return Err(Problem::usage("--again without ids")
            .hint("name the messages whose answers may be replaced: tidegate list --state failed"));
    }
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        if let Some(name) = args.cancel {
            let act = act(args.reason.as_deref());
            let stepped = store.operate(Operate::Cancel { name, act }).await?;
            return ended(&stepped.operation, Vec::new(), output);
        }
        if let Some(name) = args.resume {
            resume(&*store, &name, args.reason.as_deref()).await?;
            return drive(&*store, name, None, output).await;
        }
        let Args { queue, kind, code, group, .. } = &args;
        let selection = Selection {
            ids: args.ids.clone(),
            tenant: None,
            queue: queue.clone(),
            kind: kind.clone(),
            code: code.clone(),
            group: *group,
        };
        if args.dry_run {
            return dry_run(&*store, &selection, args.again, output).await;
        }
        if !yes {
            confirm(matching(&*store, &selection).await?.len(), "redriven", output).await?;
        }
        let name = args.operation.unwrap_or_else(operation);
        let pace = Pace { canary: args.canary, per_second: args.rate, stop_over_percent: args.stop_over };
        let act = act(args.reason.as_deref());
        let new = NewOperation { name: name.clone(), selection, again: args.again, pace, act };
        store.operate(Operate::Begin(Box::new(new))).await?;
        let single = match &args.ids[..] {
            [id] => Some(*id),
            [..] => None,
        };
        drive(&*store, name, single, output).await
    })
    .await
}

fn filter(selection: &Selection) -> Filter {
    let Selection { tenant, queue, kind, code, group, ids: _ } = selection.clone();
    Filter { tenant, queue, kind, code, group, states: vec![State::Dead], ..Filter::default() }
}

async fn matching(store: &dyn Store, selection: &Selection) -> Result<Vec<MessageId>, Problem> {
    match &selection.ids[..] {
        [] => list::ids(store, filter(selection)).await,
        ids => Ok(ids.to_vec()),
    }
}

// --- driving ---------------------------------------------------------------------------------------------------------

async fn resume(store: &dyn Store, name: &str, reason: Option<&str>) -> Result<(), Problem> {
    let known = store.operations(Some(name.to_owned()), 1).await?.pop();
    match known.map(|operation| operation.state) {
        Some(OperationState::Stopped) if reason.is_none() => {
            Err(Problem::new(Code::Conflict, format!("operation {name:?} stopped by itself: too many ended badly"))
                .hint("--reason says why it goes on all the same; or begin another one"))
        }
        Some(OperationState::Stopped) => {
            store.operate(Operate::Resume { name: name.to_owned(), act: act(reason) }).await?;
            Ok(())
        }
        // The step says of one that nobody knows that nobody knows it.
        Some(OperationState::Running | OperationState::Done | OperationState::Cancelled) | None => Ok(()),
    }
}

/// How often a canary is looked after.
const LOOK: Duration = Duration::from_millis(100);

/// Steps until there is nothing more to do. `single`: the one message that was named, whose refusal is the command's own.
async fn drive(store: &dyn Store, name: String, single: Option<MessageId>, output: &Output) -> Result<Code, Problem> {
    let bar = bar(output);
    let mut refused = Vec::new();
    let operation = loop {
        let stepped: Stepped = store.operate(Operate::Step { name: name.clone() }).await.map_err(|error| {
            let problem = Problem::from(error);
            if problem.code == Code::NotFound {
                return problem;
            }
            problem.hint(format!("go on with: tidegate dead redrive --resume {name}"))
        })?;
        refused.extend(stepped.refused.into_iter().map(|(id, error)| Refused::new(id, error)));
        show(&bar, &stepped.operation, stepped.waits);
        match (stepped.operation.state, stepped.waits) {
            (OperationState::Running, None) => {}
            (OperationState::Running, Some(Waits::Canary)) => tokio::time::sleep(LOOK).await,
            (OperationState::Running, Some(Waits::Until(at))) => {
                tokio::time::sleep(at.since(SystemClock::new().now()).clamp(Duration::from_millis(5), LOOK)).await;
            }
            (OperationState::Stopped | OperationState::Done | OperationState::Cancelled, _) => break stepped.operation,
        }
    };
    bar.finish_and_clear();
    // One message that was named and refused is the command's own failure, with its own code.
    if single.is_some()
        && let Some(refused) = refused.pop()
    {
        return Err(refused.problem);
    }
    let redriven = operation.redriven;
    let code = ended(&operation, refused, output)?;
    if redriven > 0 && code == Code::Done {
        output.next(match single {
            Some(id) => format!("tidegate explain {id}"),
            None => "tidegate queue list".to_owned(),
        });
    }
    Ok(code)
}

fn ended(operation: &Operation, refused: Vec<Refused>, output: &Output) -> Result<Code, Problem> {
    let is_plain = operation.pace == Pace::default() && operation.state == OperationState::Done;
    let state = operation.state;
    let report = Report {
        operation: Some(operation.name.clone()),
        redriven: operation.redriven,
        refused,
        progress: (!is_plain).then(|| operation.clone()),
        ..Report::empty(false)
    };
    if output.json {
        output.object(&report)?;
    } else {
        report.refused.iter().for_each(|refused| output.say(refused.sentence()));
        let mut fields = vec![("redriven", operation.redriven.to_string()), ("refused", operation.refused.to_string())];
        fields.push(("operation", operation.name.clone()));
        if !is_plain {
            fields.push(("state", state.as_str().to_owned()));
            fields.push(("selected", operation.selected.to_string()));
            fields.push(("ended well", operation.ended_well.to_string()));
            fields.push(("ended badly", operation.ended_badly.to_string()));
            fields.push(("under way", operation.under_way().to_string()));
        }
        output.fields(&fields)?;
    }
    if state == OperationState::Stopped {
        output.say(format!(
            "stopped: {} of {} that ended have ended badly",
            operation.ended_badly,
            operation.ended_badly + operation.ended_well
        ));
        output.next("tidegate dead groups");
    }
    let good = state != OperationState::Stopped && report.refused.is_empty();
    Ok(if good { Code::Done } else { Code::Failed })
}

/// A bar for a person who watches; nothing for anybody else.
fn bar(output: &Output) -> ProgressBar {
    if !output.talk_terminal || output.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{bar:30} {pos} of {len}  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, operation: &Operation, waits: Option<Waits>) {
    bar.set_length(operation.selected);
    bar.set_position(operation.redriven + operation.refused);
    let waits = match waits {
        Some(Waits::Canary) => "; the canary runs",
        Some(Waits::Until(_)) | None => "",
    };
    let (well, badly, under_way) = (operation.ended_well, operation.ended_badly, operation.under_way());
    bar.set_message(format!("{well} well, {badly} badly, {under_way} under way{waits}"));
}

// --- looking ahead ---------------------------------------------------------------------------------------------------

/// What the rule of the store says to each message now; the store itself decides again when it is done.
async fn dry_run(store: &dyn Store, selection: &Selection, again: bool, output: &Output) -> Result<Code, Problem> {
    let ids = matching(store, selection).await?;
    let single = ids.len() == 1;
    let mut report = Report::empty(true);
    let mut queues: BTreeMap<QueueName, u64> = BTreeMap::new();
    for chunk in ids.chunks(REDRIVE_CHUNK) {
        for (id, view) in chunk.iter().zip(store.inspect(chunk.to_vec()).await?) {
            let allowed = match view {
                None => Err(StoreError::not_found(*id)),
                Some(view) => {
                    *queues.entry(view.message.queue.clone()).or_default() += 1;
                    let facts = JournalFacts::of(&view.journal, SystemClock::new().now());
                    let how = lifecycle::Redriving { again, compensated: view.compensated };
                    lifecycle::redrive(view.state, view.counters, &facts, how).map(|_| ())
                }
            };
            match allowed {
                Ok(()) => report.would_redrive.push(*id),
                Err(error) => report.refused.push(Refused::new(*id, error)),
            }
        }
    }
    if single && let Some(refused) = report.refused.pop() {
        return Err(refused.problem);
    }
    if selection.ids.is_empty() {
        let all = Filter { limit: u32::MAX, code: None, ..filter(selection) };
        report.groups = store.groups(all).await?;
        report.groups.retain(|group| selection.group.is_none_or(|wanted| group.id == wanted));
        report.groups.retain(|group| selection.code.is_none() || report.would_redrive.contains(&group.sample));
    }
    if output.json {
        output.object(&report)?;
    } else {
        report.refused.iter().for_each(|refused| output.say(refused.sentence()));
        if selection.ids.is_empty() {
            let rows: Vec<Vec<String>> = report.groups.iter().map(|group| groups::row(group, output)).collect();
            output.rows(&groups::HEADER, &rows)?;
        } else {
            let rows: Vec<Vec<String>> = report.would_redrive.iter().map(|id| vec![id.to_string()]).collect();
            output.rows(&["would be redriven"], &rows)?;
        }
        for (queue, count) in queues {
            output.say(format!("queue {queue}: {count}"));
        }
        output.say(format!("{} would be redriven, {} refused", report.would_redrive.len(), report.refused.len()));
    }
    output.next("the same without --dry-run does it");
    Ok(if report.refused.is_empty() { Code::Done } else { Code::Failed })
}

/// A name nobody else's operation has.
fn operation() -> String {
    let mut bytes = [0; 4];
    SystemRandom.fill(&mut bytes);
    format!("redrive-{}-{}", SystemClock::new().now().as_millis(), Hex(&bytes))
}

/// Asks a person to type the number, if there are many. Nobody is asked who cannot answer.
pub(crate) async fn confirm(count: usize, what: &str, output: &Output) -> Result<(), Problem> {
    if count <= WITHOUT_ASKING {
        return Ok(());
    }
    let refused = |why: &str| {
        Problem::usage(format!("{count} dead letters would be {what}, and {why}")).hint("--yes does it without asking")
    };
    if !io::stdin().is_terminal() {
        return Err(refused("nobody can be asked: standard input is no terminal"));
    }
    output.say(format!("{count} dead letters would be {what}. Type {count} to do it:"));
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
