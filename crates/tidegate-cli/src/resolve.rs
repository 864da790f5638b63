//! `tidegate parked resolve`: tells a parked message what a person found out about its effect.
//!
//! Whether it may be told so now (parked at all, quarantine over, not decided otherwise) is the store's to say.

use std::sync::Arc;

use serde::Serialize;
use tidegate::journal::EffectId;
use tidegate::lifecycle::{Resolution, State};
use tidegate::message::Payload;
use tidegate::store::Resolve;
use tidegate::{EffectName, MessageId, Store, StoreError};

use crate::exit::{Code, Problem};
use crate::open::{Access, act, with_store};
use crate::output::Output;
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate parked resolve msg_01jcz4t6q8000 --effect capture --happened --result '\"ch_123\"' \\
      --reason \"found in the gateway's ledger\"
  tidegate parked resolve msg_01jcz4t6q8000 --effect capture --did-not-happen \\
      --reason \"gateway support: no such charge\"";

/// Say whether an effect happened; when all are decided, the message goes on
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["happened", "did_not_happen"])))]
pub(crate) struct Args {
    /// Which message
    id: MessageId,
    /// Which of its effects, as `parked show` names it: `capture`, or `line[3]` for one of several
    #[arg(long, value_name = "EFFECT", value_parser = effect)]
    effect: EffectId,
    /// It happened: it is not sent again
    #[arg(long, requires = "result")]
    happened: bool,
    /// What the other side returned, as JSON; later steps need it
    #[arg(long, value_name = "JSON", conflicts_with = "did_not_happen")]
    result: Option<String>,
    /// It did not happen, and no request of ours is under way any more: it is sent again
    #[arg(long)]
    did_not_happen: bool,
    /// How you know; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: String,
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

pub(crate) async fn run(args: Args, store: &str, output: &Output) -> Result<Code, Problem> {
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
        let Args { id, effect, reason, .. } = args;
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
