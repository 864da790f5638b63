//! What the gateway does with one call: the rules of each mode, and the answers. No connection and no fault in here.
//!
//! A call is a request that was read whole. [`Bank::execute`] turns it into a ledger entry and the entry into an
//! answer; the answer is made from the entry alone, so a repeated key gets the same bytes, also after a restart.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OnceCell;

use super::ledger::{Draft, Ledger, LedgerEntry, LedgerResult, Operation};
use crate::trace::Card;

/// What the gateway promises to whoever sends a call twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayMode {
    /// One effect per (operation, key); the same key gets the first answer, byte-identical. `find` works too.
    Idempotent,
    /// Every call takes effect; `GET /find` tells whether a key took effect.
    Lookup,
    /// Every call takes effect, and nothing can be looked up.
    None,
}

impl GatewayMode {
    /// The name on the command line and in the proof.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idempotent => "idempotent",
            Self::Lookup => "lookup",
            Self::None => "none",
        }
    }
}

impl fmt::Display for GatewayMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for GatewayMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "idempotent" => Ok(Self::Idempotent),
            "lookup" => Ok(Self::Lookup),
            "none" => Ok(Self::None),
            other => Err(format!("no gateway mode is called `{other}`; hint: idempotent, lookup or none")),
        }
    }
}

/// The body of every operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationBody {
    /// The deposit the call belongs to.
    pub deposit: String,
    /// The customer's account.
    pub account: String,
    /// The amount.
    pub cents: i64,
    /// The card; a declined one is declined by every authorisation and capture.
    #[serde(default)]
    pub card: Card,
}

/// A status and a body: everything an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) retry_after_s: Option<u64>,
}

impl Answer {
    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self { status, body: Bytes::from(body.to_string()), retry_after_s: None }
    }

    pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "code": code, "message": message }))
    }

    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    fn of_entry(entry: &LedgerEntry) -> Self {
        let reference = format!("{}-{}", entry.operation.name(), entry.seq);
        let told = json!({
            "reference": reference,
            "operation": entry.operation,
            "key": entry.key,
            "deposit": entry.deposit,
            "account": entry.account,
            "cents": entry.cents,
            "result": entry.result,
        });
        match entry.result {
            LedgerResult::Declined => {
                let code = json!({ "code": "card_declined", "deposit": entry.deposit, "reference": reference });
                Self::json(StatusCode::PAYMENT_REQUIRED, &code)
            }
            LedgerResult::Authorised | LedgerResult::Captured | LedgerResult::Refunded | LedgerResult::Receipt => {
                Self::json(StatusCode::OK, &told)
            }
        }
    }
}

/// A request that was read whole and understood.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Operate { operation: Operation, key: String, body: OperationBody },
    Find { operation: Operation, key: String },
}

type Cell = Arc<OnceCell<LedgerEntry>>;

/// The gateway's books: its mode, its ledger, and what it remembers of each key.
#[derive(Debug)]
pub(crate) struct Bank {
    mode: GatewayMode,
    ledger: Ledger,
    /// The first entry of each key. In mode idempotent the cell also makes the second caller wait for the first.
    first: Mutex<HashMap<(Operation, String), Cell>>,
}

impl Bank {
    pub(crate) fn new(mode: GatewayMode, ledger: Ledger, entries: Vec<LedgerEntry>) -> Self {
        let mut first: HashMap<(Operation, String), Cell> = HashMap::new();
        for entry in entries {
            // A ledger written in another mode may hold a key twice: the first entry is the one that answers.
            first
                .entry((entry.operation, entry.key.clone()))
                .or_insert_with(|| Arc::new(OnceCell::new_with(Some(entry))));
        }
        Self { mode, ledger, first: Mutex::new(first) }
    }

    /// Carries a call out. Never called from a connection's own future: it must go on when the client has gone.
    pub(crate) async fn execute(&self, call: Call, late_ms: u64) -> Answer {
        match call {
            Call::Operate { operation, key, body } => self.operate(operation, key, body, late_ms).await,
            Call::Find { operation, key } => self.find(operation, key),
        }
    }

    async fn operate(&self, operation: Operation, key: String, body: OperationBody, late_ms: u64) -> Answer {
        let cell = self.cell(operation, &key);
        let draft = draft(operation, key, &body, late_ms);
        let written = match (self.mode, operation) {
            (GatewayMode::Idempotent, _) | (_, Operation::Receipt) => {
                cell.get_or_try_init(|| self.ledger.append(draft)).await.cloned()
            }
            (
                GatewayMode::Lookup | GatewayMode::None,
                Operation::Authorise | Operation::Capture | Operation::Refund,
            ) => self.ledger.append(draft).await.inspect(|entry| {
                // Not the first under this key: the cell keeps the first, the ledger has both.
                drop(cell.set(entry.clone()));
            }),
        };
        match written {
            Ok(entry)
                if entry.deposit == body.deposit && entry.account == body.account && entry.cents == body.cents =>
            {
                Answer::of_entry(&entry)
            }
            Ok(entry) => Answer::error(
                StatusCode::UNPROCESSABLE_ENTITY,
                "key_reused",
                &format!("the key `{}` was used for another {}", entry.key, operation.name()),
            ),
            Err(error) => {
                tracing::error!(error = %error, "an operation of deposit {} was not ledgered", body.deposit);
                Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "ledger_failed", &error.to_string())
            }
        }
    }

    fn find(&self, operation: Operation, key: String) -> Answer {
        if self.mode == GatewayMode::None {
            let message = "this gateway cannot look up what it did";
            return Answer::error(StatusCode::NOT_FOUND, "lookup_unsupported", message);
        }
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let found = first.get(&(operation, key)).and_then(|cell| cell.get());
        match found {
            // 200 also for a declined one: the look-up succeeded, and `result` says what it found.
            Some(entry) => Answer::json(StatusCode::OK, &json!(entry)),
            None => Answer::error(StatusCode::NOT_FOUND, "not_found", "nothing was done under this key"),
        }
    }

    fn cell(&self, operation: Operation, key: &str) -> Cell {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(first.entry((operation, key.to_owned())).or_default())
    }
}

fn draft(operation: Operation, key: String, body: &OperationBody, late_ms: u64) -> Draft {
    let result = match (operation, body.card) {
        (Operation::Authorise | Operation::Capture, Card::Declined) => LedgerResult::Declined,
        (Operation::Authorise, Card::Ok) => LedgerResult::Authorised,
        (Operation::Capture, Card::Ok) => LedgerResult::Captured,
        (Operation::Refund, _) => LedgerResult::Refunded,
        (Operation::Receipt, _) => LedgerResult::Receipt,
    };
    Draft {
        operation,
        key,
        deposit: body.deposit.clone(),
        account: body.account.clone(),
        cents: body.cents,
        result,
        late_ms,
    }
}
