//! The payment gateway as this application calls it: one call, one answer, no retry.
//!
//! This is where what came back becomes one of four answers. Whoever reads a reply too hopefully here charges a
//! customer twice; when in doubt it is *unknown*, and the effect's policy clears it up.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate::http::{self, Verdict};
use tidegate::{Clock, EffectAnswer, EffectKey, Found, Timestamp};

use crate::gateway::{LedgerEntry, LedgerResult, Operation, OperationBody};

/// What the gateway confirmed, as it is kept in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The gateway's own name for it, `capture-17`.
    pub reference: String,
}

impl Done {
    /// What the gateway would have answered for an entry of its ledger.
    #[must_use]
    pub fn of_entry(entry: &LedgerEntry) -> Self {
        Self { reference: format!("{}-{}", entry.operation.name(), entry.seq) }
    }
}

/// The gateway as the steps use it: over HTTP in production, a double in a proof.
pub trait Remote: fmt::Debug + Send + Sync {
    /// Asks for an operation.
    fn send<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
        body: &'a OperationBody,
    ) -> Pin<Box<dyn Future<Output = EffectAnswer<Done>> + Send + 'a>>;

    /// Asks whether an operation took effect under this key.
    fn find<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
    ) -> Pin<Box<dyn Future<Output = Found<Done>> + Send + 'a>>;
}

impl Remote for GatewayClient {
    fn send<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
        body: &'a OperationBody,
    ) -> Pin<Box<dyn Future<Output = EffectAnswer<Done>> + Send + 'a>> {
        Box::pin(Self::send(self, operation, key, body))
    }

    fn find<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
    ) -> Pin<Box<dyn Future<Output = Found<Done>> + Send + 'a>> {
        Box::pin(Self::find(self, operation, key))
    }
}

/// A connection to the gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayClient {
    http: reqwest::Client,
    clock: Arc<dyn Clock>,
    url: String,
}

impl GatewayClient {
    /// A client that gives up after `timeout`: sooner than a worker loses its lease, so that it is this code that sees
    /// "unknown".
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(url: impl Into<String>, timeout: Duration, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .no_proxy()
            // It would send what the journal knows nothing about.
            .retry(reqwest::retry::never())
            .build()
            .context("cannot make the HTTP client for the gateway")?;
        Ok(Self { http, clock, url: url.into() })
    }

    /// Asks for an operation.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the request: it may have left.
    pub async fn send(&self, operation: Operation, key: &EffectKey, body: &OperationBody) -> EffectAnswer<Done> {
        let path = match operation {
            Operation::Receipt => "receipts",
            Operation::Authorise | Operation::Capture | Operation::Refund => operation.name(),
        };
        let url = format!("{}/{path}", self.url);
        let request = self.http.post(url).header("Idempotency-Key", key.as_str()).json(body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return http::of_reqwest_error(&error),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        match answer.bytes().await {
            Ok(bytes) => read(operation, status, &headers, &bytes, self.clock.now()),
            // The head came, so the gateway had the request; what it says about it did not come.
            Err(error) => {
                EffectAnswer::Unknown { why: format!("the answer {status} to {} broke off: {error}", operation.name()) }
            }
        }
    }

    /// Asks whether an operation took effect under this key.
    ///
    /// # Cancel safety
    /// Safe: a look-up changes nothing.
    pub async fn find(&self, operation: Operation, key: &EffectKey) -> Found<Done> {
        let url = format!("{}/find?operation={}&key={key}", self.url, operation.name());
        let answer = match self.http.get(url).send().await {
            Ok(answer) => answer,
            Err(error) => return Found::Unknown { why: format!("the look-up got no answer: {error}") },
        };
        let status = answer.status();
        match answer.bytes().await {
            Ok(bytes) => read_found(operation, status, &bytes),
            Err(error) => Found::Unknown { why: format!("the answer {status} to the look-up broke off: {error}") },
        }
    }
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    message: String,
}

fn read(
    operation: Operation,
    status: StatusCode,
    headers: &reqwest::header::HeaderMap,
    bytes: &[u8],
    now: Timestamp,
) -> EffectAnswer<Done> {
    if status == StatusCode::PAYMENT_REQUIRED {
        // Only with the gateway's own words is it a "no" about the card; a 402 of something in between is not.
        return match serde_json::from_slice::<Refusal>(bytes) {
            Ok(said) => EffectAnswer::Rejected { code: said.code, detail: said.message },
            Err(error) => EffectAnswer::Unknown { why: format!("402 to {} without a code: {error}", operation.name()) },
        };
    }
    match http::classify(status, headers, now) {
        Verdict::Success => match serde_json::from_slice::<Done>(bytes) {
            Ok(done) => EffectAnswer::Confirmed(done),
            Err(error) => {
                EffectAnswer::Unknown { why: format!("{status} to {} without a reference: {error}", operation.name()) }
            }
        },
        Verdict::Rejected { code } => {
            EffectAnswer::Rejected { code, detail: String::from_utf8_lossy(bytes).chars().take(200).collect() }
        }
        Verdict::NotDone { why, after } => EffectAnswer::NotDone { why, after },
        Verdict::Unknown { why } => EffectAnswer::Unknown { why },
    }
}

fn read_found(operation: Operation, status: StatusCode, bytes: &[u8]) -> Found<Done> {
    let unknown = |why: String| Found::Unknown { why };
    match status {
        StatusCode::OK => match serde_json::from_slice::<LedgerEntry>(bytes) {
            Ok(entry) if entry.result == LedgerResult::Declined => {
                Found::Rejected { code: "card_declined".to_owned(), detail: format!("entry {} says so", entry.seq) }
            }
            Ok(entry) => Found::Confirmed(Done::of_entry(&entry)),
            Err(error) => unknown(format!("the look-up of a {} was answered with no entry: {error}", operation.name())),
        },
        // 404 is believed only with the code that means it: any proxy answers 404.
        StatusCode::NOT_FOUND => match serde_json::from_slice::<Refusal>(bytes) {
            Ok(said) if said.code == "not_found" => Found::NotFound,
            Ok(said) => unknown(format!("the look-up was answered with {}: {}", said.code, said.message)),
            Err(error) => unknown(format!("404 to the look-up without a code: {error}")),
        },
        other => unknown(format!("the look-up was answered with {other}")),
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;

    /// What the four answers are called here, to compare them in a table.
    fn name<T>(answer: &EffectAnswer<T>) -> &'static str {
        match answer {
            EffectAnswer::Confirmed(_) => "confirmed",
            EffectAnswer::Rejected { .. } => "rejected",
            EffectAnswer::NotDone { .. } => "not_done",
            EffectAnswer::Unknown { .. } => "unknown",
        }
    }

    #[test]
    fn every_status_is_one_of_four_answers_and_only_what_is_proven_is_certain() {
        let cases: [(u16, Option<&str>, &str, &str); 9] = [
            (200, None, r#"{"reference":"capture-1"}"#, "confirmed"),
            (200, None, "<html>", "unknown"),
            (200, None, "", "unknown"),
            (402, None, r#"{"code":"card_declined"}"#, "rejected"),
            (402, None, "pay the proxy", "unknown"),
            (429, Some("1"), "{}", "not_done"),
            (503, Some("1"), "{}", "not_done"),
            (500, None, "{}", "unknown"),
            (504, None, "{}", "unknown"),
        ];
        for (status, retry_after, body, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(seconds) = retry_after {
                headers.insert("retry-after", seconds.parse().unwrap());
            }
            let status = StatusCode::from_u16(status).unwrap();
            let answer = read(Operation::Capture, status, &headers, body.as_bytes(), Timestamp::EPOCH);
            assert_eq!(name(&answer), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_look_up_believes_only_the_gateways_own_words() {
        let entry = |result: &str| {
            format!(
                r#"{{"seq":7,"at_ms":1,"operation":"capture","key":"k","deposit":"d","account":"a","cents":5,
                "result":"{result}","late_ms":0}}"#
            )
        };
        let found = |status: u16, body: &str| {
            read_found(Operation::Capture, StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert!(matches!(found(200, &entry("captured")), Found::Confirmed(done) if done.reference == "capture-7"));
        assert!(matches!(found(200, &entry("declined")), Found::Rejected { code, .. } if code == "card_declined"));
        assert!(matches!(found(404, r#"{"code":"not_found"}"#), Found::NotFound));
        assert!(matches!(found(404, r#"{"code":"lookup_unsupported"}"#), Found::Unknown { .. }));
        for (status, body) in [(404, "no such page"), (200, "{}"), (503, "{}"), (429, "{}")] {
            assert!(matches!(found(status, body), Found::Unknown { .. }), "{status} {body}");
        }
    }
}
