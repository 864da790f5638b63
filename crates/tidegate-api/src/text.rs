//! Stored JSON on the wire: byte for byte as it is, or only its size.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

/// A JSON text as it was written: no digit of a number and no space is changed on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(Box<RawValue>);

impl Text {
    /// A text that is stored; one that is, against all checks, no JSON becomes a JSON string of itself.
    #[must_use]
    pub fn of(stored: &str) -> Self {
        let raw = serde_json::from_str::<Box<RawValue>>(stored);
        Self(raw.unwrap_or_else(|_| {
            let string = serde_json::Value::from(stored).to_string();
            RawValue::from_string(string).expect("a JSON string is JSON")
        }))
    }

    /// The text.
    #[must_use]
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// The text as the library keeps it.
    #[must_use]
    pub fn stored(&self) -> Arc<str> {
        self.get().into()
    }
}

/// A member that is given even where it is null: to serde that is a missing one.
pub(crate) fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text>, D::Error> {
    Text::deserialize(deserializer).map(Some)
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Text {}

impl PartialSchema for Text {
    fn schema() -> RefOr<Schema> {
        let any = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        RefOr::T(Schema::Object(any.description(Some("any JSON value, kept byte for byte")).build()))
    }
}

impl ToSchema for Text {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Json")
    }
}

/// A stored text that a reader sees only when it asked for it and may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Only how long it is.
    Masked {
        /// Its length.
        bytes: usize,
    },
    /// The text.
    Shown(Text),
}

impl Hidden {
    /// The text, or its length.
    #[must_use]
    pub fn of(stored: &str, show: bool) -> Self {
        if show { Self::Shown(Text::of(stored)) } else { Self::Masked { bytes: stored.len() } }
    }

    /// The text, if it is shown.
    #[must_use]
    pub fn shown(&self) -> Option<&Text> {
        match self {
            Self::Shown(text) => Some(text),
            Self::Masked { .. } => None,
        }
    }

    /// The text, or where it is masked the mask: what a client can show of it.
    #[must_use]
    pub fn as_shown(&self) -> Arc<str> {
        match self {
            Self::Shown(text) => text.stored(),
            Self::Masked { bytes } => {
                let mask = Mask { masked: true, bytes: *bytes };
                serde_json::to_string(&mask).expect("a mask is plain data").into()
            }
        }
    }
}

/// What stands in the place of a text that is not shown.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mask {
    masked: bool,
    bytes: usize,
}

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Masked { bytes } => Mask { masked: true, bytes: *bytes }.serialize(serializer),
            Self::Shown(text) => text.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Hidden {
    /// A payload may itself look like a mask: who asked for it knows which it is, and takes [`Hidden::shown`] of what
    /// was asked for with `reveal`. Without having asked, it is a mask.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        Ok(match serde_json::from_str::<Mask>(text.get()) {
            Ok(Mask { masked: true, bytes }) => Self::Masked { bytes },
            Ok(Mask { masked: false, .. }) | Err(_) => Self::Shown(text),
        })
    }
}

impl PartialSchema for Hidden {
    fn schema() -> RefOr<Schema> {
        let masked = ObjectBuilder::new()
            .property("masked", ObjectBuilder::new().schema_type(Type::Boolean))
            .property("bytes", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)))
            .required("masked")
            .required("bytes")
            .description(Some("what stands here unless it was asked for with `reveal` by one who may see it"));
        let any =
            ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some("the stored JSON, byte for byte"));
        RefOr::T(Schema::AnyOf(AnyOfBuilder::new().item(masked).item(any).build()))
    }
}

impl ToSchema for Hidden {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Hidden")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_keeps_every_byte_both_ways() {
        let written = r#"{"payload": { "n" : 9007199254740993, "f": 1.50 } }"#;
        #[derive(Serialize, Deserialize)]
        struct Carrier {
            payload: Text,
        }
        let read: Carrier = serde_json::from_str(written).unwrap();
        assert_eq!(read.payload.get(), r#"{ "n" : 9007199254740993, "f": 1.50 }"#);
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"{"payload":{ "n" : 9007199254740993, "f": 1.50 }}"#);
    }

    #[test]
    fn what_is_hidden_says_only_how_long_it_is() {
        let masked = Hidden::of("\"secret\"", false);
        assert_eq!(serde_json::to_string(&masked).unwrap(), r#"{"masked":true,"bytes":8}"#);
        assert_eq!(serde_json::from_str::<Hidden>(r#"{"masked":true,"bytes":8}"#).unwrap(), masked);
        let shown = Hidden::of("\"secret\"", true);
        assert_eq!(serde_json::from_str::<Hidden>("\"secret\"").unwrap(), shown);
    }

    #[test]
    fn a_stored_text_that_is_no_json_is_shown_as_a_string() {
        assert_eq!(Text::of("{").get(), "\"{\"");
    }
}
