//! The payload of a dead letter, changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate::message::Payload;
use tidegate::{MessageId, StoreError, store};
use utoipa::ToSchema;

use crate::schema;
use crate::text::{Hidden, Text};

/// Changes the payload of a dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// What the handler gets from now on. A program for which the white space around it matters sends the text in a string,
    /// `payload_text`, in its place.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Text, required = true)]
    pub payload: Option<Text>,
    /// The text of the payload, in a string; instead of `payload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub payload_text: Option<String>,
    /// Why.
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl Edit {
    /// An edit as a request for it is written.
    #[must_use]
    pub fn of(payload: &Payload, reason: &str, actor: Option<&str>) -> Self {
        let text = payload.text();
        let (payload, payload_text) = match text.trim_matches([' ', '\t', '\r', '\n']) == text {
            true => (Some(Text::of(text)), None),
            false => (None, Some(text.to_owned())),
        };
        Self { payload, payload_text, reason: reason.to_owned(), actor: actor.map(str::to_owned) }
    }

    /// The payload as a store takes it.
    ///
    /// # Errors
    /// `Invalid` when there is none, there are two, or it is no payload.
    pub fn payload(&self) -> Result<Payload, StoreError> {
        match (&self.payload, &self.payload_text) {
            (Some(payload), None) => Payload::from_json(payload.stored()),
            (None, Some(text)) => Payload::from_json(text.as_str()),
            (None, None) => Err(StoreError::invalid("the edit has no payload").hint("add the member \"payload\"")),
            (Some(_), Some(_)) => {
                let what = "both payload and payload_text say what the handler gets";
                Err(StoreError::invalid(what).hint("send one of them"))
            }
        }
    }
}

/// What an edit changed. Contents are shown to whoever asked for them with `reveal` and may see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Edited {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Whether it is another payload now.
    pub changed: bool,
    /// The payload before.
    pub before: Hidden,
    /// The payload now.
    pub after: Hidden,
    /// What differs, value by value; null where contents are not shown.
    pub changes: Option<Vec<Change>>,
}

impl Edited {
    /// What an edit changed, as far as it is shown.
    #[must_use]
    pub fn of(id: MessageId, edited: &store::Edited, show: bool) -> Self {
        let store::Edited { before, after } = edited;
        Self {
            id,
            changed: before != after,
            before: Hidden::of(before, show),
            after: Hidden::of(after, show),
            changes: show.then(|| Change::between(before, after)),
        }
    }

    /// The same as a store tells it.
    ///
    /// # Errors
    /// `Invalid` when the contents are masked.
    pub fn into_edited(self) -> Result<store::Edited, StoreError> {
        match (self.before.shown(), self.after.shown()) {
            (Some(before), Some(after)) => Ok(store::Edited { before: before.stored(), after: after.stored() }),
            (_, _) => Err(StoreError::invalid("the payload is changed, and both texts of it are masked")
                .hint("ask for them with reveal=payload and a token that may reveal")),
        }
    }
}

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Where in the payload, such as `lines[2].cents`; empty for the payload itself.
    pub path: String,
    /// The JSON that stood there; left out where nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The JSON that stands there now; left out where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl Change {
    /// What differs between two texts of JSON, by path. Values are compared and shown as they are written.
    #[must_use]
    pub fn between(before: &str, after: &str) -> Vec<Self> {
        let [mut before, mut after] = [before, after].map(|text| {
            let mut values = BTreeMap::new();
            flatten(String::new(), text, &mut values);
            values
        });
        let paths: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
        let change = |path: String| {
            let (before, after) = (before.remove(&path), after.remove(&path));
            (before != after).then_some(Self { path, before, after })
        };
        paths.into_iter().filter_map(change).collect()
    }
}

/// Every value that has no other one in it, by its path. Through a number type large ones would become others.
fn flatten(path: String, text: &str, into: &mut BTreeMap<String, String>) {
    let text = text.trim();
    let members = serde_json::from_str::<BTreeMap<String, &RawValue>>(text).ok().filter(|members| !members.is_empty());
    if let Some(members) = members {
        for (name, value) in members {
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            flatten(path, value.get(), into);
        }
        return;
    }
    let items = serde_json::from_str::<Vec<&RawValue>>(text).ok().filter(|items| !items.is_empty());
    match items {
        Some(items) => {
            for (at, item) in items.into_iter().enumerate() {
                flatten(format!("{path}[{at}]"), item.get(), into);
            }
        }
        None => drop(into.insert(path, text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(before: &str, after: &str) -> Vec<String> {
        let line = |change: Change| {
            format!("{}: {} -> {}", change.path, change.before.unwrap_or_default(), change.after.unwrap_or_default())
        };
        Change::between(before, after).into_iter().map(line).collect()
    }

    #[test]
    fn what_changed_is_told_by_its_path_and_as_it_is_written() {
        let before = r#"{"a":1,"b":{"c":[1,2]},"same":"x","n":9007199254740993}"#;
        let after = r#"{"a":2,"b":{"c":[1]},"same": "x","new":null,"n":9007199254740992}"#;
        assert_eq!(
            between(before, after),
            ["a: 1 -> 2", "b.c[1]: 2 -> ", "n: 9007199254740993 -> 9007199254740992", "new:  -> null"]
        );
        assert_eq!(between("1", "2"), [": 1 -> 2"]);
        assert_eq!(between("{}", "{ }"), [": {} -> { }"]);
        assert!(between(r#"{"a":[]}"#, r#"{"a":[]}"#).is_empty());
    }

    #[test]
    fn an_edit_arrives_as_it_was_sent_and_shows_nothing_to_whoever_may_not_see_it() {
        let payload = Payload::from_json(" {\"card\":\"4242\"}\n").unwrap();
        let sent = serde_json::to_string(&Edit::of(&payload, "typo", Some("ada"))).unwrap();
        let read: Edit = serde_json::from_str(&sent).unwrap();
        assert_eq!(read.payload().unwrap().text(), payload.text());
        let edited = store::Edited { before: "1".into(), after: "{\"card\":\"4242\"}".into() };
        let masked = serde_json::to_string(&Edited::of(MessageId::from_i64(1), &edited, false)).unwrap();
        assert!(!masked.contains("card") && masked.contains("\"changed\":true"), "{masked}");
        let shown = serde_json::to_string(&Edited::of(MessageId::from_i64(1), &edited, true)).unwrap();
        assert_eq!(serde_json::from_str::<Edited>(&shown).unwrap().into_edited().unwrap(), edited);
        assert!(serde_json::from_str::<Edited>(&masked).unwrap().into_edited().is_err());
    }
}
