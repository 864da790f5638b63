//! `tidegate dead groups`: what dead letters have in common, so that ten thousand are looked at as twelve.

use std::sync::Arc;

use tidegate::lifecycle::State;
use tidegate::store::{FailureGroup, Filter};
use tidegate::{Kind, QueueName, Store};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate dead groups
  tidegate dead groups --queue deposit --json";

const COLUMNS: &str = "\
Columns when piped, separated by tabs:
  group, how many, kind, code, effect, first seen, last seen, one of them, what was said";

/// Group dead letters by kind, code, effect and what was said; the largest group first
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    /// Only this queue
    #[arg(long)]
    queue: Option<QueueName>,
    /// Only this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only this code
    #[arg(long)]
    code: Option<String>,
    /// Parked messages instead
    #[arg(long)]
    parked: bool,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

pub(crate) const HEADER: [&str; 9] = ["group", "count", "kind", "code", "effect", "first", "last", "sample", "said"];

/// A group as a row of [`HEADER`].
pub(crate) fn row(group: &FailureGroup, output: &Output) -> Vec<String> {
    vec![
        group.id.to_string(),
        group.count.to_string(),
        group.kind.to_string(),
        group.code.clone(),
        group.effect.as_ref().map_or_else(|| output.nothing(), ToString::to_string),
        output.time(group.first_seen),
        output.time(group.last_seen),
        group.sample.to_string(),
        group.pattern.clone(),
    ]
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let Args { queue, kind, code, parked, limit } = args;
        let states = vec![if parked { State::Parked } else { State::Dead }];
        let groups = store.groups(Filter { queue, kind, code, states, limit, ..Filter::default() }).await?;
        if output.json {
            groups.iter().try_for_each(|group| output.object(group))?;
            return Ok(Code::Done);
        }
        let rows: Vec<Vec<String>> = groups.iter().map(|group| row(group, output)).collect();
        output.rows(&HEADER, &rows)?;
        match groups.first() {
            Some(first) if !parked => output.next(format!("tidegate dead show {}", first.sample)),
            Some(first) => output.next(format!("tidegate parked show {}", first.sample)),
            None if output.terminal => output.say("no messages"),
            None => {}
        }
        Ok(Code::Done)
    })
    .await
}
