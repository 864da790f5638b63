//! `tidegate reconcile`: compares what the other side settled with the journal.
//!
//! The export of a gateway says what happened; the journal says what we believe. Each line is matched by the key of the
//! effect. With `--resolve`, a parked effect that is in the export is resolved as happened, under the rules of
//! `parked resolve`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tidegate::journal::{EffectId, EffectPolicy, EffectState};
use tidegate::lifecycle::{Resolution, State};
use tidegate::store::{Filter, Resolve};
use tidegate::{EffectName, MessageId, QueueName, Store, Timestamp};

use crate::exit::{Code, Problem};
use crate::ledger::{self, Entry, Line};
use crate::list;
use crate::open::{Access, Asked, act, with_store};
use crate::output::{Output, one_line};
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate reconcile --ledger settlements.ndjson --effect capture
  tidegate reconcile --ledger settlements.csv --key idempotency_key --amount cents --amount-field cents
  tidegate reconcile --ledger settlements.ndjson --result charge --resolve --reason \"settlement file of 24 Nov\"";

const COLUMNS: &str = "\
What differs:
  missing   confirmed here, not in the file
  extra     in the file; here unknown, not done, rejected, or not there at all
  amount    in both, with another amount
  unreadable  a line that is no object, or has no key

Columns when piped, separated by tabs:
  what differs, key, line of the file, message, effect, state of the effect here, particulars, what was done

Ends with 1 if anything differs that was not resolved";

/// Compare a gateway's settlement export with the journal
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = COLUMNS)]
pub(crate) struct Args {
    /// The export: NDJSON, or CSV with a heading if its name ends in .csv
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// Its field with the key of the effect
    #[arg(long, value_name = "FIELD", default_value = "key")]
    key: String,
    /// Its field with the amount
    #[arg(long, value_name = "FIELD", default_value = "amount")]
    amount: String,
    /// The field of our payload that has to be the same amount; without it amounts are not compared
    #[arg(long, value_name = "FIELD")]
    amount_field: Option<String>,
    /// Its field with what our handler would have been returned; without it, the whole line
    #[arg(long, value_name = "FIELD")]
    result: Option<String>,
    /// Only effects of this name
    #[arg(long)]
    effect: Option<EffectName>,
    /// Only messages of this queue
    #[arg(long)]
    queue: Option<QueueName>,
    /// The file begins here: what was first sent before is not missing
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// The file ends here: what was first sent after is not missing
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Resolve parked effects that are in the file as happened; needs --reason
    #[arg(long, requires = "reason")]
    resolve: bool,
    /// Where the file is from; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
}

/// What we believe of one effect key.
struct Known {
    id: MessageId,
    state: State,
    effect: EffectId,
    effect_state: EffectState,
    first_intent_at: Timestamp,
    payload: Arc<str>,
}

#[derive(Default, Serialize)]
struct Difference {
    differs: &'static str,
    key: Option<String>,
    line: Option<u64>,
    message: Option<MessageId>,
    effect: Option<String>,
    /// The state of the effect in the journal.
    state: Option<&'static str>,
    detail: String,
    /// `resolved`, or why not.
    done: Option<String>,
}

impl Difference {
    fn of(differs: &'static str, key: &str, known: Option<&Known>) -> Self {
        Self {
            differs,
            key: Some(key.to_owned()),
            message: known.map(|known| known.id),
            effect: known.map(|known| known.effect.to_string()),
            state: known.map(|known| known.effect_state.as_str()),
            ..Self::default()
        }
    }
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    if args.amount_field.is_some() && store.masks() {
        return Err(Problem::usage("amounts are compared with payloads, which the server masks")
            .hint("--reveal asks for them; it needs a token that may reveal, and is written down"));
    }
    let lines = ledger::read(&args.ledger)?;
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let journal = journal(&*store, &args).await?;
        let mut seen = BTreeSet::new();
        let mut differences = Vec::new();
        for line in &lines {
            differences.extend(compare(&*store, &args, &journal, &mut seen, line).await);
        }
        let confirmed = |known: &Known| matches!(known.effect_state, EffectState::Confirmed { .. });
        let inside = |known: &Known| {
            args.since.is_none_or(|since| known.first_intent_at >= since)
                && args.until.is_none_or(|until| known.first_intent_at <= until)
        };
        for (key, known) in &journal {
            if confirmed(known) && inside(known) && !seen.contains(key) {
                differences.push(Difference::of("missing", key, Some(known)));
            }
        }
        tell(&differences, lines.len(), output)?;
        let left = differences.iter().any(|difference| difference.done.as_deref() != Some("resolved"));
        Ok(if left { Code::Failed } else { Code::Done })
    })
    .await
}

/// The journal by effect key. Effects without a remote have no key there.
async fn journal(store: &dyn Store, args: &Args) -> Result<BTreeMap<String, Known>, Problem> {
    const PAGE: usize = 200;
    let filter = Filter { queue: args.queue.clone(), discarded: true, ..Filter::default() };
    let ids = list::ids(store, filter).await?;
    let mut journal: BTreeMap<String, Known> = BTreeMap::new();
    for chunk in ids.chunks(PAGE) {
        for view in store.inspect(chunk.to_vec()).await?.into_iter().flatten() {
            for row in &view.journal {
                let has_remote = match row.policy {
                    EffectPolicy::Keyed { .. } | EffectPolicy::Lookup | EffectPolicy::AtMostOnce => true,
                    EffectPolicy::Transactional | EffectPolicy::Natural => false,
                };
                if !has_remote || args.effect.as_ref().is_some_and(|wanted| *wanted != row.effect.name) {
                    continue;
                }
                // Several rows may share a key: rows come in their order, and the last one is what is believed now.
                let known = Known {
                    id: view.message.id,
                    state: view.state,
                    effect: row.effect.clone(),
                    effect_state: row.state.clone(),
                    first_intent_at: row.first_intent_at,
                    payload: view.message.payload.clone(),
                };
                journal.insert(row.key.as_str().to_owned(), known);
            }
        }
    }
    Ok(journal)
}

async fn compare(
    store: &dyn Store,
    args: &Args,
    journal: &BTreeMap<String, Known>,
    seen: &mut BTreeSet<String>,
    line: &Line,
) -> Option<Difference> {
    let unreadable = |detail: String| Difference { differs: "unreadable", detail, ..Difference::default() };
    let mut difference = match &line.entry {
        Err(why) => unreadable(why.clone()),
        Ok(entry) => match entry.text_of(&args.key) {
            None => unreadable(format!("no field {:?}", args.key)),
            Some(key) => {
                let known = journal.get(&key);
                let difference = one(store, args, &key, known, entry).await;
                seen.insert(key);
                difference?
            }
        },
    };
    difference.line = Some(line.number);
    Some(difference)
}

async fn one(store: &dyn Store, args: &Args, key: &str, known: Option<&Known>, entry: &Entry) -> Option<Difference> {
    let extra = || Difference::of("extra", key, known);
    let Some(known) = known else {
        return Some(Difference { detail: "no effect has this key".to_owned(), ..extra() });
    };
    let amounts =
        args.amount_field.as_ref().map(|field| (entry.text_of(&args.amount), field_of(&known.payload, field)));
    let other = amounts.filter(|(there, here)| there.as_deref().map(decimal) != here.as_deref().map(decimal));
    if let Some((there, here)) = other {
        let [there, here] = [there, here].map(|amount| amount.unwrap_or_else(|| "nothing".to_owned()));
        let detail = format!("{there} there, {here} here");
        // Not resolved: what happened is not what was meant, and a person has to look.
        return Some(Difference { detail, ..Difference::of("amount", key, Some(known)) });
    }
    match known.effect_state {
        EffectState::Confirmed { .. } => None,
        EffectState::Rejected { .. } | EffectState::NotDone => Some(extra()),
        EffectState::Intent | EffectState::Unknown { .. } if !args.resolve => Some(extra()),
        EffectState::Intent | EffectState::Unknown { .. } if known.state != State::Parked => {
            let done = format!("not resolved: {} is {}, not parked", known.id, known.state);
            Some(Difference { done: Some(done), ..extra() })
        }
        EffectState::Intent | EffectState::Unknown { .. } => {
            let done = match resolve(store, args, known, entry).await {
                Ok(()) => "resolved".to_owned(),
                Err(why) => format!("not resolved: {why}"),
            };
            Some(Difference { done: Some(done), ..extra() })
        }
    }
}

async fn resolve(store: &dyn Store, args: &Args, known: &Known, entry: &Entry) -> Result<(), String> {
    let value = match &args.result {
        None => Some(entry.json.as_str()),
        Some(field) => entry.json_of(field),
    };
    let value =
        value.ok_or_else(|| format!("the line has no field {:?}", args.result.as_deref().unwrap_or_default()))?;
    let (id, effect) = (known.id, known.effect.clone());
    let resolution = Resolution::Happened { value: value.into() };
    let request = Resolve { id, effect, resolution, act: act(args.reason.as_deref()) };
    store.resolve(request).await.map(drop).map_err(|error| error.what().to_owned())
}

/// A field of a payload, by its path: `cents`, `amount.cents`.
fn field_of(payload: &str, path: &str) -> Option<String> {
    let mut value: Box<serde_json::value::RawValue> = serde_json::from_str(payload).ok()?;
    for name in path.split('.') {
        let mut members: BTreeMap<String, Box<serde_json::value::RawValue>> = serde_json::from_str(value.get()).ok()?;
        value = members.remove(name)?;
    }
    Some(serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned()))
}

/// An amount without what makes no difference: `5.00` is `5`.
fn decimal(amount: &str) -> &str {
    let amount = amount.trim();
    if amount.contains('.') && amount.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-')) {
        return amount.trim_end_matches('0').trim_end_matches('.');
    }
    amount
}

fn tell(differences: &[Difference], lines: usize, output: &Output) -> Result<(), Problem> {
    if output.json {
        return differences.iter().try_for_each(|difference| output.object(difference));
    }
    let header = ["differs", "key", "line", "message", "effect", "state", "particulars", "done"];
    let cell = |text: Option<String>| text.map_or_else(|| output.nothing(), |text| one_line(&text));
    let rows: Vec<Vec<String>> = (differences.iter())
        .map(|difference| {
            vec![
                difference.differs.to_owned(),
                cell(difference.key.clone()),
                cell(difference.line.map(|line| line.to_string())),
                cell(difference.message.map(|id| id.to_string())),
                cell(difference.effect.clone()),
                cell(difference.state.map(str::to_owned)),
                one_line(&difference.detail),
                cell(difference.done.clone()),
            ]
        })
        .collect();
    output.rows(&header, &rows)?;
    output.say(format!("{lines} lines compared, {} differ", differences.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_as_they_are_written() {
        assert_eq!(field_of(r#"{"a":{"cents":9007199254740993}}"#, "a.cents").as_deref(), Some("9007199254740993"));
        assert_eq!(field_of(r#"{"a":"5.00"}"#, "a").as_deref(), Some("5.00"));
        assert_eq!(field_of("7", "a"), None);
        for (one, other, same) in
            [("5.00", "5", true), ("500", "5", false), ("0.50", "0.5", true), ("50", "5.0", false)]
        {
            assert_eq!(decimal(one) == decimal(other), same, "{one} {other}");
        }
    }
}
