//! `tidegate dead`: the messages that were given up, for a person who repairs the cause and sends them again.

use std::sync::Arc;

use tidegate::lifecycle::State;
use tidegate::store::{MessageView, Summary};
use tidegate::{MessageId, Store};

use crate::exit::{Code, Problem};
use crate::list::{self, Page};
use crate::open::{Access, with_store};
use crate::output::Output;
use crate::view::{self, View};
use crate::{get, redrive};

const EXAMPLES: &str = "\
Examples:
  tidegate dead list --queue deposit
  tidegate dead show msg_01jcz4t6q8000
  tidegate dead redrive msg_01jcz4t6q8000 --reason \"gateway certificate renewed\"
  tidegate dead redrive --queue deposit --code timeout --dry-run";

/// Dead letters: list them, look at one, redrive
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, the oldest first
    #[command(after_help = COLUMNS)]
    List(Page),
    /// Show a dead letter with every attempt it had
    Show {
        /// Which message
        id: MessageId,
    },
    Redrive(redrive::Args),
}

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  id, queue, kind, key, attempt, when it died, reason and last failure";

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    match args.command {
        Command::List(page) => {
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
                list::print(&*store, page.filter(vec![State::Dead]), &header, row, output).await?;
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
