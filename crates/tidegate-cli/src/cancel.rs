//! `tidegate cancel`: calls messages off that have not taken effect.

use std::sync::Arc;

use serde::Serialize;
use tidegate::lifecycle::Cancellation;
use tidegate::store::Cancel;
use tidegate::{MessageId, Store};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate cancel msg_01jcz4t6q8000 --reason \"the customer withdrew\"";

/// Call messages off, as long as nothing of them has taken effect
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which messages
    #[arg(value_name = "ID", required = true)]
    ids: Vec<MessageId>,
    /// Free the key for another message; refused once an effect was tried
    #[arg(long)]
    release_key: bool,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

#[derive(Serialize)]
struct Cancelled<'a> {
    id: MessageId,
    /// `cancelled`, `requested` (at the end of its run), or `refused`.
    result: &'static str,
    #[serde(flatten)]
    problem: Option<&'a Problem>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let Args { ids, release_key, reason } = args;
        let verdicts = store.cancel(Cancel { ids: ids.clone(), release_key, act: act(reason.as_deref()) }).await?;
        let (mut rows, mut refused) = (Vec::new(), Vec::new());
        for (id, verdict) in ids.iter().zip(verdicts) {
            let (result, problem) = match verdict {
                Ok(Cancellation::Now) => ("cancelled", None),
                Ok(Cancellation::Requested) => ("requested", None),
                // One message that is refused is the command's own failure, and told as such.
                Err(error) if ids.len() == 1 => return Err(error.into()),
                Err(error) => ("refused", Some(Problem::from(error))),
            };
            if output.json {
                output.object(&Cancelled { id: *id, result, problem: problem.as_ref() })?;
            }
            rows.push(vec![id.to_string(), result.to_owned()]);
            refused.extend(problem.map(|problem| format!("{id}: {}", problem.sentence())));
        }
        if !output.json {
            output.rows(&["id", "now"], &rows)?;
            refused.iter().for_each(|refused| output.say(refused));
        }
        Ok(if refused.is_empty() { Code::Done } else { Code::Failed })
    })
    .await
}
