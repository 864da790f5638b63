//! `tidegate parked resolve`: tells parked messages what a person found out about their effects, one or a file of them.
//!
//! Whether it may be told so now (parked at all, quarantine over, not decided otherwise) is the store's to say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tidegate::journal::EffectId;
use tidegate::lifecycle::{Resolution, State};
use tidegate::message::Payload;
use tidegate::store::Resolve;
use tidegate::{EffectName, MessageId, Store, StoreError};

use crate::exit::{Code, Problem};
use crate::ledger::{self, Entry};
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate parked resolve msg_01jcz4t6q8000 --effect capture --happened --result '\"ch_123\"' \\
      --reason \"found in the gateway's ledger\"
  tidegate parked resolve msg_01jcz4t6q8000 --effect capture --did-not-happen \\
      --reason \"gateway support: no such charge\"
  tidegate parked resolve --from answers.ndjson --reason \"gateway support, ticket 4711\"

A line of the file:
  {\"id\":\"msg_01jcz4t6q8000\",\"effect\":\"capture\",\"resolution\":\"happened\",\"result\":\"ch_123\",\"reason\":\"seen\"}
or, in a file that ends in .csv, a row under the heading id,effect,resolution,result,reason";

/// Say whether an effect happened; when all are decided, the message goes on
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["happened", "did_not_happen", "from"])))]
pub(crate) struct Args {
    /// Which message
    #[arg(required_unless_present = "from")]
    id: Option<MessageId>,
    /// Which of its effects, as `parked show` names it: `capture`, or `line[3]` for one of several
    #[arg(long, value_name = "EFFECT", value_parser = effect, required_unless_present = "from")]
    effect: Option<EffectId>,
    /// It happened: it is not sent again; needs --result
    #[arg(long, requires = "result")]
    happened: bool,
    /// What the other side returned, as JSON; later steps need it
    #[arg(long, value_name = "JSON", conflicts_with = "did_not_happen")]
    result: Option<String>,
    /// It did not happen, and no request of ours is under way any more: it is sent again
    #[arg(long)]
    did_not_happen: bool,
    /// How you know; kept with who and when. Of a file, for the lines that give no reason of their own
    #[arg(long, value_parser = reason, required_unless_present = "from")]
    reason: Option<String>,
    /// Resolve what the lines of this file say; giving it again is harmless
    #[arg(long, value_name = "FILE", conflicts_with_all = ["id", "effect", "result"])]
    from: Option<PathBuf>,
}

fn effect(text: &str) -> Result<EffectId, StoreError> {
    let (name, item) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, item)) => (name, Some(item.to_owned())),
        None => (text, None),
    };
    Ok(EffectId { name: EffectName::new(name)?, item })
}

#[derive(Serialize)]
struct Report {
    id: MessageId,
    effect: String,
    resolution: &'static str,
    state: State,
    still_open: u32,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let Args { from, id, effect, reason, .. } = &args;
    let (id, effect, reason) = match (from, id, effect, reason) {
        (Some(file), ..) => return from_file(file, reason.as_deref(), store, output).await,
        (None, Some(id), Some(effect), Some(reason)) => (*id, effect.clone(), reason.clone()),
        (None, ..) => return Err(Problem::usage("a resolution needs an id, --effect and --reason")),
    };
    let (resolution, word) = match &args.result {
        Some(result) if args.happened => {
            let value = Payload::from_json(result.trim()).map_err(|error| {
                let problem = Problem::from(error);
                let what = problem.what.replace("payload refused", "--result is no JSON");
                Problem { what, ..problem }.hint("a text is quoted: --result '\"ch_123\"'")
            })?;
            (Resolution::Happened { value: value.text().into() }, "happened")
        }
        Some(_) | None => (Resolution::DidNotHappen, "did_not_happen"),
    };
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let request = Resolve { id, effect: effect.clone(), resolution, act: act(Some(&reason)) };
        let resolved = store.resolve(request).await?;
        let report = Report {
            id,
            effect: effect.to_string(),
            resolution: word,
            state: resolved.state,
            still_open: resolved.still_open,
        };
        if output.json {
            output.object(&report)?;
        } else {
            output.fields(&[
                ("id", id.to_string()),
                ("effect", report.effect),
                ("resolution", word.to_owned()),
                ("state", resolved.state.to_string()),
                ("still open", resolved.still_open.to_string()),
            ])?;
        }
        output.next(match resolved.still_open {
            0 => format!("tidegate explain {id}"),
            _ => format!("resolve the others: tidegate parked show {id}"),
        });
        Ok(Code::Done)
    })
    .await
}

/// What became of one line.
#[derive(Serialize)]
struct Answered {
    line: u64,
    id: Option<MessageId>,
    effect: Option<String>,
    /// `resolved`, or `refused`.
    result: &'static str,
    #[serde(flatten)]
    problem: Option<Problem>,
}

async fn from_file(file: &Path, reason: Option<&str>, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let lines = ledger::read(file)?;
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let (mut resolved, mut refused) = (0_u64, 0_u64);
        for line in lines {
            let asked = line.entry.map_err(Problem::usage).and_then(|entry| request(&entry, reason));
            let (id, effect, answer) = match asked {
                Err(problem) => (None, None, Err(problem)),
                Ok(request) => {
                    let (id, effect) = (request.id, request.effect.to_string());
                    (Some(id), Some(effect), store.resolve(request).await.map_err(Problem::from))
                }
            };
            // Whoever cannot be reached now cannot be reached for the next line either.
            let answer = match answer {
                Err(problem) if problem.code == Code::Later => {
                    let what = format!("at line {}: {}", line.number, problem.what);
                    return Err(
                        Problem { what, ..problem }.hint("give the same file again: what was resolved stays so")
                    );
                }
                answer => answer,
            };
            let number = line.number;
            let problem = answer.err();
            match &problem {
                None => resolved += 1,
                Some(problem) => {
                    refused += 1;
                    output.say(format!("line {number}: {}", problem.sentence()));
                }
            }
            if output.json {
                let result = if problem.is_none() { "resolved" } else { "refused" };
                output.object(&Answered { line: number, id, effect, result, problem })?;
            }
        }
        if !output.json {
            output.fields(&[("resolved", resolved.to_string()), ("refused", refused.to_string())])?;
        }
        Ok(if refused == 0 { Code::Done } else { Code::Failed })
    })
    .await
}

/// What a line asks for.
fn request(entry: &Entry, reason: Option<&str>) -> Result<Resolve, Problem> {
    let missing = |name: &str| Problem::usage(format!("no field {name:?}"));
    let member = |name: &str| entry.text_of(name).ok_or_else(|| missing(name));
    let resolution = match member("resolution")?.as_str() {
        "happened" => {
            let result =
                entry.json_of("result").ok_or_else(|| missing("result").hint("what the other side returned"))?;
            Resolution::Happened { value: Payload::from_json(meant(entry, result))?.text().into() }
        }
        "did-not-happen" | "did_not_happen" => Resolution::DidNotHappen,
        other => {
            let what = format!("resolution {other:?} is not happened or did-not-happen");
            return Err(Problem::usage(what));
        }
    };
    let own = entry.text_of("reason");
    let reason = own.as_deref().or(reason).ok_or_else(|| missing("reason").hint("or give one for all: --reason"))?;
    Ok(Resolve { id: member("id")?.parse()?, effect: effect(&member("effect")?)?, resolution, act: act(Some(reason)) })
}

/// A CSV cell with JSON in it is that JSON; with anything else, a text.
fn meant(entry: &Entry, result: &str) -> String {
    let inside: Option<String> = serde_json::from_str(result).ok().filter(|_| entry.texts);
    let is_json = |text: &String| serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok();
    inside.filter(is_json).unwrap_or_else(|| result.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_is_named_as_it_is_shown() {
        for text in ["capture", "line[3]", "mail[a[b]@example.org]"] {
            assert_eq!(effect(text).unwrap().to_string(), text);
        }
        assert_eq!(effect("line[3]").unwrap().item.as_deref(), Some("3"));
        for wrong in ["", "[3]", "a b", "a[", "a]"] {
            assert!(effect(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
