//! `tidegate erase`: removes what ended messages say about a person, and keeps their keys and answers working.

use serde::Serialize;
use tidegate::erase::{Also, Erase};
use tidegate::{Engine, MessageId};

use crate::exit::{Code, Problem};
use crate::open::{Access, act, with_engine};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate erase msg_01jcz4t6q8000 --reason \"erasure request 1871\"
  tidegate erase msg_01jcz4t6q8000 --everything --reason \"erasure request 1871\"";

const KEPT: &str = "\
Key, state, counters, failure codes and the audit stay. A duplicate of an erased message starts no work: it gets the
stored answer, or only the state where the answer was erased. An erased message cannot be redriven.";

/// Replace the payload of ended messages by a tombstone; cannot be undone
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = KEPT)]
pub(crate) struct Args {
    /// Which messages: completed, failed, cancelled or dead ones
    #[arg(value_name = "ID", required = true)]
    ids: Vec<MessageId>,
    /// Also the result, or the detail of the failure
    #[arg(long)]
    answer: bool,
    /// Also the values of effects, and late evidence
    #[arg(long)]
    effects: bool,
    /// Also the headers
    #[arg(long)]
    headers: bool,
    /// Also what the history and a dead letter's failure say; codes stay
    #[arg(long)]
    history: bool,
    /// All of these
    #[arg(long)]
    everything: bool,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: String,
}

#[derive(Serialize)]
struct Erased<'a> {
    id: MessageId,
    /// `erased` or `refused`.
    result: &'static str,
    #[serde(flatten)]
    problem: Option<&'a Problem>,
}

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
    with_engine(store, Access::Existing, |engine: Engine| async move {
        let Args { ids, answer, effects, headers, history, everything, reason } = args;
        let all = |one: bool| one || everything;
        let also = Also { answer: all(answer), effects: all(effects), headers: all(headers), history: all(history) };
        let verdicts = engine.erase(Erase { ids: ids.clone(), also, act: act(Some(&reason)) }).await?;
        let (mut rows, mut refused) = (Vec::new(), Vec::new());
        for (id, verdict) in ids.iter().zip(verdicts) {
            let (result, problem) = match verdict {
                Ok(()) => ("erased", None),
                // One message that is refused is the command's own failure, and told as such.
                Err(error) if ids.len() == 1 => return Err(error.into()),
                Err(error) => ("refused", Some(Problem::from(error))),
            };
            if output.json {
                output.object(&Erased { id: *id, result, problem: problem.as_ref() })?;
            }
            rows.push(vec![id.to_string(), result.to_owned()]);
            refused.extend(problem.map(|problem| format!("{id}: {}", problem.sentence())));
        }
        if !output.json {
            output.rows(&["id", "now"], &rows)?;
            refused.iter().for_each(|refused| output.say(refused));
        }
        output.next(match engine {
            Engine::Sqlite(_) => {
                "backups keep the old text until you delete them; the write-ahead log keeps it until it begins anew, at \
                 the latest when the last process closes the store"
            }
            Engine::Postgres(_) => {
                "backups keep the old text until you delete them, and so do archived logs; the server's own pages keep it \
                 until it vacuums"
            }
            Engine::Other(_) => "backups keep the old text until you delete them",
        });
        Ok(if refused.is_empty() { Code::Done } else { Code::Failed })
    })
    .await
}
