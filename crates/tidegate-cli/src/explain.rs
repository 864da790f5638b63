//! `tidegate explain`: why a message is where it is and what happens next, in a sentence.
//!
//! The store answers with what its claim would look at, and `tidegate::explain` says it; nothing is decided here.

use std::sync::Arc;

use serde::Serialize;
use tidegate::explain::{Explanation, explain};
use tidegate::lifecycle::State;
use tidegate::{MessageId, Store, StoreError};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, with_store};
use crate::output::{Output, Paint};

const EXAMPLES: &str = "\
Examples:
  tidegate explain msg_01jcz4t6q8000";

/// Say why a message is where it is, and what happens next
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = LABELS)]
pub(crate) struct Args {
    /// Which message
    id: MessageId,
}

#[derive(Serialize)]
struct Explained<'a> {
    id: MessageId,
    state: State,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

/// The state as every other command calls it, and which kind of ready it is.
fn state(state: State, label: &str) -> String {
    if state.as_str() == label { label.to_owned() } else { format!("{state}, {label}") }
}

const LABELS: &str = "\
What ready can mean:
  scheduled    it was enqueued for a later time
  retrying     an attempt ended, the next one comes after a delay
  reconciling  an effect may have happened; the next attempt finds out before anything else
  held         its queue is paused";

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let facts = store.explain(args.id).await?.ok_or_else(|| StoreError::not_found(args.id))?;
        let explanation = explain(&facts);
        if output.json {
            output.object(&Explained { id: args.id, state: facts.view.state, explanation: &explanation })?;
            return Ok(Code::Done);
        }
        let mut fields = vec![
            ("id", args.id.to_string()),
            ("state", output.paint(Paint::Bold, &state(facts.view.state, explanation.label))),
            ("why", explanation.why.clone()),
            ("next", explanation.next.clone()),
        ];
        // What holds a ready message back; in every other state the sentence has said it.
        if facts.view.state == State::Ready {
            fields.extend(explanation.predicates.iter().map(|predicate| {
                let holds = if predicate.holds { ("holds", Paint::Good) } else { ("not so", Paint::Waits) };
                ("claim", format!("{}: {}", predicate.asks, output.paint(holds.1, holds.0)))
            }));
        }
        output.fields(&fields)?;
        Ok(Code::Done)
    })
    .await
}
