//! `tidegate dead discard`: gives dead letters up for good.

use std::sync::Arc;

use serde::Serialize;
use tidegate::group::GroupId;
use tidegate::lifecycle::State;
use tidegate::store::{Discard, Filter, REDRIVE_CHUNK};
use tidegate::{MessageId, Store};

use crate::exit::{Code, Problem};
use crate::list;
use crate::open::{Access, Asked, act, with_store};
use crate::output::Output;
use crate::redrive::{Refused, confirm, reason};

const EXAMPLES: &str = "\
Examples:
  tidegate dead discard msg_01jcz4t6q8000 --reason \"the customer cancelled\"
  tidegate dead discard --group grp_5e884898da280471 --reason \"test data, says the producer\"";

/// Give dead letters up: they leave the desk and are deleted after their retention
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "group"])))]
pub(crate) struct Args {
    /// Which messages
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
    /// All dead letters of this group, as `dead groups` names it
    #[arg(long)]
    group: Option<GroupId>,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: String,
}

#[derive(Serialize)]
struct Report {
    discarded: usize,
    refused: Vec<Refused>,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let yes = store.yes;
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let ids = match args.group {
            Some(group) => {
                let filter = Filter { group: Some(group), states: vec![State::Dead], ..Filter::default() };
                list::ids(&*store, filter).await?
            }
            None => args.ids.clone(),
        };
        if !yes {
            confirm(ids.len(), "discarded", output).await?;
        }
        let mut report = Report { discarded: 0, refused: Vec::new() };
        for chunk in ids.chunks(REDRIVE_CHUNK) {
            let request = Discard { ids: chunk.to_vec(), act: act(Some(&args.reason)) };
            for (id, verdict) in chunk.iter().zip(store.discard(request).await?) {
                match verdict {
                    Ok(_) => report.discarded += 1,
                    Err(error) if ids.len() == 1 => return Err(error.into()),
                    Err(error) => report.refused.push(Refused::new(*id, error)),
                }
            }
        }
        if output.json {
            output.object(&report)?;
        } else {
            report.refused.iter().for_each(|refused| output.say(refused.sentence()));
            let (discarded, refused) = (report.discarded.to_string(), report.refused.len().to_string());
            output.fields(&[("discarded", discarded), ("refused", refused)])?;
        }
        Ok(if report.refused.is_empty() { Code::Done } else { Code::Failed })
    })
    .await
}
