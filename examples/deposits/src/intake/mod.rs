//! The intake: takes deposits over HTTP, or from a file, and answers as soon as they are on disk.
//!
//! `POST /deposits` with an `Idempotency-Key` answers 202 and where to look; the same key again gets the answer of the
//! first, and with another payload it is refused. Nothing here talks to the gateway: when it is down, customers do not
//! notice. [`take_file`] does the same for a file of requests.

mod file;
mod http;
mod problem;

use serde::Deserialize;
use tidegate::IdempotencyKey;

pub use file::{FileFormat, Taken, take_file};
pub use http::{IntakeOptions, start};

use crate::steps::Authorise;
use crate::trace::Card;

/// The largest deposit that is taken, in cents: a typing error in a file of 100,000 lines must not charge a million.
pub const GREATEST_CENTS: i64 = 100_000_000;

/// A request for a deposit as customers and files write it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// Names the deposit; over HTTP the idempotency key does.
    #[serde(default)]
    deposit: Option<String>,
    account: String,
    cents: i64,
    /// Missing, or empty in a CSV, it is a good one.
    #[serde(default)]
    card: Option<Card>,
}

/// Why a request is refused, in words and as a code.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    code: &'static str,
    why: String,
}

impl Request {
    /// The message, under this key or, without one, under the deposit's name.
    fn into_message(self, key: Option<&str>) -> Result<Authorise, Refused> {
        let refused = |code, why: String| Err(Refused { code, why });
        let deposit = match (key, self.deposit) {
            (Some(key), Some(deposit)) if key != deposit => {
                // Two keys for one deposit would be two deposits.
                let why = format!(
                    "the Idempotency-Key {key:?} is not the deposit's name {deposit:?}; hint: send the name as the key"
                );
                return refused("key_mismatch", why);
            }
            (Some(key), _) => key.to_owned(),
            (None, Some(deposit)) => deposit,
            (None, None) => {
                return refused(
                    "deposit_missing",
                    "the field deposit is missing; hint: it is the idempotency key".into(),
                );
            }
        };
        if let Err(error) = IdempotencyKey::new(deposit.as_str()) {
            return refused("invalid_key", error.to_string());
        }
        if self.account.is_empty() || self.account.len() > 100 {
            return refused("invalid_account", format!("the account {:?} is not 1 to 100 bytes long", self.account));
        }
        if !(1..=GREATEST_CENTS).contains(&self.cents) {
            let why = format!("the amount of {} cents is not between 1 and {GREATEST_CENTS}", self.cents);
            return refused("invalid_cents", why);
        }
        Ok(Authorise { deposit, account: self.account, cents: self.cents, card: self.card.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str, key: Option<&str>) -> Result<Authorise, &'static str> {
        let request: Request = serde_json::from_str(json).map_err(|_| "malformed")?;
        request.into_message(key).map_err(|refused| refused.code)
    }

    #[test]
    fn a_request_is_taken_or_refused_with_a_code() {
        let good = r#"{"deposit":"d","account":"a","cents":1}"#;
        let cases = [
            (good, None, Ok("d")),
            (good, Some("d"), Ok("d")),
            (good, Some("e"), Err("key_mismatch")),
            (r#"{"account":"a","cents":1}"#, Some("e"), Ok("e")),
            (r#"{"account":"a","cents":1}"#, None, Err("deposit_missing")),
            (r#"{"deposit":"a b","account":"a","cents":1}"#, None, Err("invalid_key")),
            (r#"{"deposit":"","account":"a","cents":1}"#, None, Err("invalid_key")),
            (r#"{"deposit":"d","account":"","cents":1}"#, None, Err("invalid_account")),
            (r#"{"deposit":"d","account":"a","cents":0}"#, None, Err("invalid_cents")),
            (r#"{"deposit":"d","account":"a","cents":100000001}"#, None, Err("invalid_cents")),
            (r#"{"deposit":"d","account":"a","cents":1.5}"#, None, Err("malformed")),
            (r#"{"deposit":"d","account":"a","cents":1,"currency":"EUR"}"#, None, Err("malformed")),
        ];
        for (json, key, expected) in cases {
            assert_eq!(message(json, key).map(|taken| taken.deposit), expected.map(str::to_owned), "{json} {key:?}");
        }
    }
}
