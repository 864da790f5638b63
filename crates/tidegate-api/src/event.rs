//! A CloudEvent in its JSON form, as the document describes it; the server reads it attribute by attribute.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;
use crate::text::Text;

/// An event in the JSON form of CloudEvents 1.0. Further attributes are extensions and are carried along.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Always `1.0`.
    #[schema(pattern = "^1\\.0$")]
    pub specversion: String,
    /// With `source` it names what is to happen once: together they are the key.
    #[schema(min_length = 1)]
    pub id: String,
    /// Where the event comes from.
    #[schema(min_length = 1)]
    pub source: String,
    /// Becomes the kind of the message.
    #[serde(rename = "type")]
    #[schema(value_type = schema::Name)]
    pub kind: String,
    /// What in the source it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub subject: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub time: Option<String>,
    /// The media type of `data`: JSON is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^application/json$")]
    pub datacontenttype: Option<String>,
    /// The schema of `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub dataschema: Option<String>,
    /// Becomes the payload of the message, byte for byte; without it the payload is null.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    pub data: Option<Text>,
}
