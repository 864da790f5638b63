//! `tidegate dead edit`: changes the payload of a dead letter and shows what changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tidegate::message::Payload;
use tidegate::store::{Edit, Edited};
use tidegate::{MessageId, Store};

use crate::exit::{Code, Problem};
use crate::open::{Access, Asked, act, with_store};
use crate::output::{Output, one_line};
use crate::redrive::reason;

const EXAMPLES: &str = "\
Examples:
  tidegate dead edit msg_01jcz4t6q8000 --payload '{\"deposit\":\"dep-1\",\"cents\":500}' --reason \"cents were euros\"
  tidegate dead edit msg_01jcz4t6q8000 --payload @repaired.json --reason \"cents were euros\"";

/// Change the payload of a dead letter; refused once an effect of it happened or may have
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which message
    id: MessageId,
    /// What its handler gets from now on: JSON, or @FILE with JSON in it
    #[arg(long, value_name = "JSON")]
    payload: String,
    /// Why; kept with who and when
    #[arg(long, value_parser = reason)]
    reason: String,
}

#[derive(Serialize)]
struct Report<'a> {
    id: MessageId,
    changed: bool,
    before: &'a str,
    after: &'a str,
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    let text = match args.payload.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Problem::usage(format!("{file} cannot be read: {error}")).hint("--payload @FILE"))?,
        None => args.payload,
    };
    let payload = Payload::from_json(text.trim())?;
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let id = args.id;
        let Edited { before, after } = store.edit(Edit { id, payload, act: act(Some(&args.reason)) }).await?;
        let changed = before != after;
        if output.json {
            output.object(&Report { id, changed, before: &before, after: &after })?;
        } else {
            output.data(&differences(&before, &after))?;
        }
        match changed {
            true => output.next(format!("tidegate dead redrive {id}")),
            false => output.say("the payload was that already"),
        }
        Ok(Code::Done)
    })
    .await
}

/// What changed, a line for each value before and after, by its path.
fn differences(before: &str, after: &str) -> String {
    let [before, after] = [before, after].map(|text| {
        let mut values = BTreeMap::new();
        // Values are shown as they are written: through a number type, large ones would be shown as others.
        flatten("", &serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())), &mut values);
        values
    });
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut lines = String::new();
    for path in paths {
        let (was, is) = (before.get(path), after.get(path));
        if was != is {
            let line = |sign, value: &String| format!("{sign} {}: {}\n", one_line(path), one_line(value));
            lines.extend(was.map(|value| line('-', value)));
            lines.extend(is.map(|value| line('+', value)));
        }
    }
    lines
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let member = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) if !members.is_empty() => {
            members.iter().for_each(|(name, value)| flatten(&member(name), value, into));
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                flatten(&format!("{path}[{at}]"), item, into);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) | Value::Array(_) => {
            into.insert(if path.is_empty() { "payload".to_owned() } else { path.to_owned() }, value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_shown_by_its_path() {
        let before = r#"{"a":1,"b":{"c":[1,2]},"same":"x"}"#;
        let after = r#"{"a":2,"b":{"c":[1]},"same":"x","new":null}"#;
        assert_eq!(differences(before, after), "- a: 1\n+ a: 2\n- b.c[1]: 2\n+ new: null\n");
        assert_eq!(differences("1", "2"), "- payload: 1\n+ payload: 2\n");
        assert_eq!(differences("{}", "{}"), "");
    }
}
