//! What the document says of the values that are checked elsewhere: names, keys, ids, states, times.
//!
//! Named as the `value_type` of a field or a parameter; nobody makes a value of them.

use std::borrow::Cow;

use tidegate::State;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $build:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let build: fn(ObjectBuilder) -> ObjectBuilder = $build;
                RefOr::T(Schema::Object(build(ObjectBuilder::new().schema_type(Type::String)).build()))
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }

    };
}

/// The alphabet of names.
const NAME: &str = "^[A-Za-z0-9._-]{1,100}$";

text!(
    /// The name of a queue, a kind, a worker or an effect.
    Name,
    |object| object.pattern(Some(NAME)).min_length(Some(1)).max_length(Some(100))
);
text!(
    /// A tenant; empty is the one that is meant where none is named.
    TenantName,
    |object| object.pattern(Some("^[A-Za-z0-9._-]{0,100}$")).max_length(Some(100))
);
text!(
    /// An idempotency key.
    Key,
    |object| object.pattern(Some("^[!-~]{1,255}$")).min_length(Some(1)).max_length(Some(255))
);
text!(
    /// The id of a message.
    Id,
    |object| object.pattern(Some("^msg_[0-9a-hjkmnp-tv-z]{13}$")).examples(["msg_01jcz4t6q8000"])
);
text!(
    /// The id of a group of failures.
    Group,
    |object| object.pattern(Some("^grp_[0-9a-f]{16}$"))
);
text!(
    /// A digest, in hexadecimal.
    Sha256,
    |object| object.pattern(Some("^[0-9a-f]{64}$"))
);
text!(
    /// A moment, in UTC.
    Time,
    |object| object
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples(["2026-11-23T10:00:00.000Z"])
);
text!(
    /// Where a message stands.
    StateName,
    |object| object.enum_values(Some(State::ALL.map(State::as_str)))
);
text!(
    /// A duration as it is written in an address.
    Wait,
    |object| object.pattern(Some("^[0-9]{1,12}(ms|s|m|h|d)$")).examples(["20s"])
);

// --- of workers ------------------------------------------------------------------------------------------------------

text!(
    /// What proves a lease: the claims of the message so far, a dot, and the nonce of the claim.
    LeaseToken,
    |object| object
        .pattern(Some("^[0-9]{1,10}\\.[0-9a-f]{32}$"))
        .examples(["1.9f86d081884c7d659a2feaa0c55ad015"])
);
text!(
    /// Sixteen bytes, in hexadecimal.
    Hex16,
    |object| object.pattern(Some("^[0-9a-f]{32}$")).examples(["9f86d081884c7d659a2feaa0c55ad015"])
);
