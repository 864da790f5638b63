//! `tidegate dead`: the messages that were given up, for a person who finds what they have in common, repairs the cause and
//! sends them again, changes or discards them.

use std::sync::Arc;

use tidegate::group::GroupId;
use tidegate::lifecycle::State;
use tidegate::store::{Filter, MessageView, Summary};
use tidegate::{MessageId, Store};

use crate::exit::{Code, Problem};
use crate::list::{self, Page};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;
use crate::view::{self, View};
use crate::{discard, edit, get, groups, operations, redrive};

const EXAMPLES: &str = "\
Examples:
  tidegate dead groups
  tidegate dead list --group grp_5e884898da280471
  tidegate dead show msg_01jcz4t6q8000
  tidegate dead redrive msg_01jcz4t6q8000 --reason \"gateway certificate renewed\"
  tidegate dead redrive --group grp_5e884898da280471 --canary 5 --stop-over 10 --rate 50";

/// Dead letters: what they have in common, one by one, redrive, edit, discard
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Groups(groups::Args),
    /// List dead letters, the oldest first
    #[command(after_help = COLUMNS)]
    List(List),
    /// Show a dead letter with every attempt it had
    Show {
        /// Which message
        id: MessageId,
    },
    Redrive(redrive::Args),
    Operations(operations::Args),
    Edit(edit::Args),
    Discard(discard::Args),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    page: Page,
    /// Only this group, as `dead groups` names it
    #[arg(long)]
    group: Option<GroupId>,
    /// Also those that were discarded
    #[arg(long)]
    discarded: bool,
}

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  id, queue, kind, key, attempt, when it died, reason and last failure";

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    match args.command {
        Command::Groups(args) => groups::run(args, store, output).await,
        Command::List(List { page, group, discarded }) => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                let header = ["id", "queue", "kind", "key", "attempt", "died", "why"];
                let row = |summary: &Summary| {
                    vec![
                        summary.id.to_string(),
                        summary.queue.to_string(),
                        summary.kind.to_string(),
                        summary.key.to_string(),
                        summary.attempt.to_string(),
                        output.maybe_time(summary.ended_at),
                        view::why(summary, output),
                    ]
                };
                let filter = Filter { group, discarded, ..page.filter(vec![State::Dead]) };
                list::print(&*store, filter, &header, row, output).await?;
                Ok(Code::Done)
            })
            .await
        }
        Command::Show { id } => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                let view = in_state(&*store, id, State::Dead).await?;
                show(&view, output)?;
                output.next(format!("repair the cause, then: tidegate dead redrive {id}"));
                Ok(Code::Done)
            })
            .await
        }
        Command::Redrive(args) => redrive::run(args, store, output).await,
        Command::Operations(args) => operations::run(args, store, output).await,
        Command::Edit(args) => edit::run(args, store, output).await,
        Command::Discard(args) => discard::run(args, store, output).await,
    }
}

/// The message, if it is in the state the command is about.
pub(crate) async fn in_state(store: &dyn Store, id: MessageId, state: State) -> Result<MessageView, Problem> {
    let view = get::one(store, id).await?;
    if view.state == state {
        return Ok(view);
    }
    Err(Problem::new(Code::Conflict, format!("{id} is {}, not {state}", view.state)).hint(format!("tidegate get {id}")))
}

/// Everything about a message that waits for a person.
pub(crate) fn show(view: &MessageView, output: &Output) -> Result<(), Problem> {
    if output.json {
        return output.object(&View::of(view));
    }
    output.data(&(output.fields_text(&view::head(view, output)) + &view::records(view, output)))
}
