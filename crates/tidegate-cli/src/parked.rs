//! `tidegate parked`: the messages with an effect of which nobody knows whether it happened, for a person who finds out.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use tidegate::journal::open_rows;
use tidegate::lifecycle::State;
use tidegate::store::{MessageView, Summary};
use tidegate::{MessageId, Store};

use crate::dead::{in_state, show};
use crate::exit::{Code, Problem};
use crate::list::Page;
use crate::open::{Access, Asked, with_store};
use crate::output::Output;
use crate::resolve;
use crate::view::EffectView;

const EXAMPLES: &str = "\
Examples:
  tidegate parked list
  tidegate parked show msg_01jcz4t6q8000
  tidegate parked resolve msg_01jcz4t6q8000 --effect capture --did-not-happen --reason \"support: no such charge\"";

/// Messages whose effect may have happened: list them, look at one, resolve
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List parked messages with their open effects, the oldest first
    #[command(after_help = COLUMNS)]
    List(Page),
    /// Show a parked message: its journal, late evidence, history
    Show {
        /// Which message
        id: MessageId,
    },
    Resolve(resolve::Args),
}

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  id, queue, key, reason, open effects, since when, from when \"did not happen\" is believed";

/// A parked message of a list, with what has to be found out.
#[derive(Serialize)]
struct Parked<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    open_effects: Vec<EffectView<'a>>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    match args.command {
        Command::List(page) => {
            with_store(
                store,
                Access::Existing,
                |store: Arc<dyn Store>| async move { list(&*store, &page, output).await },
            )
            .await
        }
        Command::Show { id } => {
            with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
                let view = in_state(&*store, id, State::Parked).await?;
                show(&view, output)?;
                if let Some(row) = open_rows(&view.journal).next() {
                    output.next(format!(
                    "ask the other side for key {}, then: tidegate parked resolve {id} --effect '{}' --reason '...', \
                         and --happened --result 'JSON' or --did-not-happen",
                    row.key, row.effect
                ));
                }
                Ok(Code::Done)
            })
            .await
        }
        Command::Resolve(args) => resolve::run(args, store, output).await,
    }
}

/// So many are looked at in detail at once.
const PAGE: u32 = 200;

async fn list(store: &dyn Store, page: &Page, output: &Output) -> Result<Code, Problem> {
    let header = ["id", "queue", "key", "reason", "open effects", "parked", "not found believed"];
    let mut rows = Vec::new();
    let mut left = page.limit;
    let mut filter = page.filter(vec![State::Parked]);
    let (mut more, mut oldest) = (None, None);
    while left > 0 {
        filter.limit = left.min(PAGE);
        let found = store.list(filter.clone()).await?;
        let ids: Vec<MessageId> = found.iter().map(|summary| summary.id).collect();
        let views = store.inspect(ids).await?;
        let views: HashMap<MessageId, MessageView> =
            views.into_iter().flatten().map(|view| (view.message.id, view)).collect();
        for summary in &found {
            // Resolved since the list was read.
            let Some(view) = views.get(&summary.id) else { continue };
            oldest = summary.ended_at.into_iter().chain(oldest).min();
            if output.json {
                let open_effects = open_rows(&view.journal).map(EffectView::of).collect();
                output.object(&Parked { summary, open_effects })?;
            } else {
                rows.push(row(summary, view, output));
            }
        }
        more = found.last().map(|summary| summary.id);
        left -= u32::try_from(found.len()).unwrap_or(left).min(left);
        if found.len() < filter.limit as usize {
            more = None;
            break;
        }
        filter.after = more;
    }
    output.rows(&header, &rows)?;
    if let Some(oldest) = oldest.filter(|_| output.terminal) {
        output.say(format!("the oldest was parked {}", output.time(oldest)));
    }
    match more {
        Some(last) => output.next(format!("there may be more: the same command with --after {last}")),
        None if rows.is_empty() && output.terminal => output.say("no messages"),
        None => {}
    }
    Ok(Code::Done)
}

fn row(summary: &Summary, view: &MessageView, output: &Output) -> Vec<String> {
    let effects: Vec<String> = open_rows(&view.journal).map(|row| row.effect.to_string()).collect();
    let believed = open_rows(&view.journal).map(tidegate::journal::EffectRow::quarantined_until).max();
    vec![
        summary.id.to_string(),
        summary.queue.to_string(),
        summary.key.to_string(),
        view.reason.clone().unwrap_or_else(|| output.nothing()),
        if effects.is_empty() { output.nothing() } else { effects.join(", ") },
        output.maybe_time(summary.ended_at),
        output.maybe_time(believed),
    ]
}
