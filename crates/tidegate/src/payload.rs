//! From a stored payload to a message type, whichever version it was enqueued under.
//!
//! A payload is stored for good in the shape it was enqueued in. The type in the running code knows one shape, its
//! [`VERSION`](Message::VERSION); an older payload is led there one version at a time by [`Message::upcast`]. The handler,
//! the check before a roll-out and the comparison of two payloads under one key all decode here, so that they cannot
//! disagree.

use std::sync::Arc;

use tidegate_core::canonical::canonicalize;
use tidegate_core::message::{Failure, Message as Stored, NewMessage, Payload};

use crate::handler::Message;

/// Reads a payload of this version as `M`. The failure has the code `decode` and never the payload's values in our words.
pub(crate) fn decode<M: Message>(version: u32, payload: &str) -> Result<M, Failure> {
    let no_message = |e: serde_json::Error| undecodable(format!("the payload is no {}: {e}", M::KIND));
    if version == M::VERSION {
        return serde_json::from_str(payload).map_err(no_message);
    }
    if version > M::VERSION {
        let newest = M::VERSION;
        return Err(undecodable(format!("the payload has version {version}, and this program knows {newest} at most")));
    }
    let mut value = exact(payload)?;
    for from in version..M::VERSION {
        value = M::upcast(from, value).map_err(|why| {
            undecodable(format!("the payload of {} could not be up-cast from version {from}: {why}", M::KIND))
        })?;
    }
    serde_json::from_value(value).map_err(|e| {
        undecodable(format!("the payload, up-cast from version {version} to {}, is no {}: {e}", M::VERSION, M::KIND))
    })
}

/// The new message in the words of the known one, if the known one is older and, up-cast, asks for the same.
pub(crate) fn as_known<M: Message>(new: &NewMessage, known: &Stored) -> Option<NewMessage> {
    if known.kind != new.kind || known.version >= new.version {
        return None;
    }
    // Through the type, not only through the up-casts: what the type fills in by default is part of what is asked for.
    let upcast = Payload::of(&decode::<M>(known.version, &known.payload).ok()?).ok()?;
    let payload = Payload::from_json(Arc::clone(&known.payload)).ok()?;
    (upcast.canonical() == new.payload.canonical()).then(|| NewMessage {
        version: known.version,
        payload,
        ..new.clone()
    })
}

/// The payload as a value, if a value can carry it: an integer of more than 64 bits would be rounded on its way through.
fn exact(payload: &str) -> Result<serde_json::Value, Failure> {
    let value: serde_json::Value =
        serde_json::from_str(payload).map_err(|e| undecodable(format!("the payload is no JSON: {e}")))?;
    let same = matches!((canonicalize(payload), canonicalize(&value.to_string())), (Ok(a), Ok(b)) if a == b);
    if same {
        return Ok(value);
    }
    Err(undecodable(
        "the payload has a number that an up-cast would round; hint: keep the version, and let the type read both shapes"
            .to_owned(),
    ))
}

fn undecodable(detail: String) -> Failure {
    Failure::new("decode", detail)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;

    /// Version 1 had `eur`, version 2 `cents`, version 3 has `cents` and `currency`.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pay {
        cents: i64,
        currency: String,
    }

    impl Message for Pay {
        const KIND: &'static str = "pay";
        const VERSION: u32 = 3;
        type Answer = ();
        fn key(&self) -> String {
            "k".to_owned()
        }
        fn upcast(from: u32, mut payload: Value) -> Result<Value, String> {
            match from {
                1 => {
                    let eur = payload["eur"].as_i64().ok_or("eur is missing")?;
                    Ok(json!({ "cents": eur * 100 }))
                }
                2 => {
                    payload["currency"] = json!("EUR");
                    Ok(payload)
                }
                _ => Err(format!("version {from} never existed")),
            }
        }
    }

    #[test]
    fn a_payload_is_led_to_the_newest_shape_one_version_at_a_time() {
        let pay = |cents| Pay { cents, currency: "EUR".to_owned() };
        for (version, payload) in
            [(1, r#"{"eur":5}"#), (2, r#"{"cents":500}"#), (3, r#"{"cents":500,"currency":"EUR"}"#)]
        {
            assert_eq!(decode::<Pay>(version, payload), Ok(pay(500)), "version {version}");
        }
    }

    #[test]
    fn what_cannot_be_up_cast_says_where_the_chain_broke() {
        for (version, payload, expected) in [
            (1, r#"{"usd":5}"#, "the payload of pay could not be up-cast from version 1: eur is missing"),
            (2, r#"{"amount":5}"#, "the payload, up-cast from version 2 to 3, is no pay: missing field `cents`"),
            (4, "{}", "the payload has version 4, and this program knows 3 at most"),
            (2, r#"{"cents":123456789012345678901234567890}"#, "the payload has a number that an up-cast would round"),
        ] {
            let failure = decode::<Pay>(version, payload).unwrap_err();
            assert_eq!(failure.code, "decode");
            assert!(failure.detail.starts_with(expected), "{}", failure.detail);
        }
    }

    #[test]
    fn a_type_without_up_casts_refuses_an_older_payload_and_says_what_to_write() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Bare;
        impl Message for Bare {
            const KIND: &'static str = "bare";
            const VERSION: u32 = 2;
            type Answer = ();
            fn key(&self) -> String {
                "k".to_owned()
            }
        }
        let failure = decode::<Bare>(1, "null").unwrap_err();
        assert!(failure.detail.contains("hint: implement Message::upcast"), "{}", failure.detail);
    }
}
