//! What became of a parked effect, told by whoever found out.

use serde::{Deserialize, Serialize};
use tidegate::journal::EffectId;
use tidegate::lifecycle::{self, State};
use tidegate::message::Payload;
use tidegate::{EffectName, MessageId, StoreError, store};
use utoipa::ToSchema;

use crate::schema;
use crate::text::Text;

/// Whether an effect happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It did: it is not sent again.
    Happened,
    /// It did not, and no request of ours is under way any more: it is sent again.
    DidNotHappen,
}

/// Says what became of a parked effect.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// Which of the message's effects.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Which repetition of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// Whether it happened.
    pub resolution: Resolution,
    /// What the other side returned: needed where it happened, because later steps get it.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub result: Option<Text>,
    /// How it is known.
    pub reason: String,
    /// Who asks; stands beside the token's name in the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl Resolve {
    /// A resolution as a request for it is written.
    #[must_use]
    pub fn of(effect: EffectId, resolution: &lifecycle::Resolution, reason: &str, actor: Option<&str>) -> Self {
        let (resolution, result) = match resolution {
            lifecycle::Resolution::Happened { value } => (Resolution::Happened, Some(Text::of(value))),
            lifecycle::Resolution::DidNotHappen => (Resolution::DidNotHappen, None),
        };
        let EffectId { name, item } = effect;
        let actor = actor.map(str::to_owned);
        Self { effect: name, item, resolution, result, reason: reason.to_owned(), actor }
    }

    /// Which effect.
    #[must_use]
    pub fn effect_id(&self) -> EffectId {
        EffectId { name: self.effect.clone(), item: self.item.clone() }
    }

    /// The resolution as a store takes it.
    ///
    /// # Errors
    /// `Invalid` when a result is missing or one too many.
    pub fn resolution(&self) -> Result<lifecycle::Resolution, StoreError> {
        match (self.resolution, &self.result) {
            (Resolution::Happened, Some(result)) => {
                Ok(lifecycle::Resolution::Happened { value: Payload::from_json(result.stored())?.text().into() })
            }
            (Resolution::DidNotHappen, None) => Ok(lifecycle::Resolution::DidNotHappen),
            (Resolution::Happened, None) => Err(StoreError::invalid("an effect that happened has a result")
                .hint("add the member \"result\": what the other side returned, or null")),
            (Resolution::DidNotHappen, Some(_)) => {
                Err(StoreError::invalid("an effect that did not happen has no result").hint("leave \"result\" out"))
            }
        }
    }
}

/// What a resolution came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resolved {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Parked while other effects are open, else ready.
    #[schema(value_type = schema::StateName)]
    pub state: State,
    /// Effects that are still open.
    pub still_open: u32,
}

impl Resolved {
    /// The verdict of a store.
    #[must_use]
    pub fn of(id: MessageId, resolved: store::Resolved) -> Self {
        let store::Resolved { state, still_open } = resolved;
        Self { id, state, still_open }
    }
}

impl From<Resolved> for store::Resolved {
    fn from(resolved: Resolved) -> Self {
        let Resolved { id: _, state, still_open } = resolved;
        Self { state, still_open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolution_arrives_as_it_was_sent() {
        let effect = || EffectId { name: EffectName::new("capture").unwrap(), item: Some("3".to_owned()) };
        for resolution in [
            lifecycle::Resolution::Happened { value: "{ \"n\":1.50 }".into() },
            lifecycle::Resolution::Happened { value: "null".into() },
            lifecycle::Resolution::DidNotHappen,
        ] {
            let sent = serde_json::to_string(&Resolve::of(effect(), &resolution, "seen", None)).unwrap();
            let read: Resolve = serde_json::from_str(&sent).unwrap();
            assert_eq!((read.effect_id(), read.resolution().unwrap()), (effect(), resolution), "{sent}");
        }
    }

    #[test]
    fn only_what_happened_has_a_result() {
        for wrong in [
            r#"{"effect":"capture","resolution":"happened","reason":"x"}"#,
            r#"{"effect":"capture","resolution":"did_not_happen","result":1,"reason":"x"}"#,
        ] {
            assert!(serde_json::from_str::<Resolve>(wrong).unwrap().resolution().is_err(), "{wrong}");
        }
    }
}
