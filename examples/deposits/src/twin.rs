//! The synchronous twin: the usual code. One request does everything, inline, while the customer waits.
//!
//! Authorise, capture, credit the wallet, send the receipt; a client time-out and three blind retries on any error; a
//! fresh reference per call, because nobody thought of a key. It is written fairly: the wallet is double entry with
//! `synchronous = FULL`, a declined card is not retried, and a receipt that cannot be sent does not fail a deposit that
//! was credited. What it cannot do is tell "refused" from "done, but the answer was lost". It never looks anything up.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;
use serde_json::json;

use crate::books::{self, Credited, Sums};
use crate::clock;
use crate::gateway::{Operation, OperationBody};
use crate::service::Service;
use crate::trace::DepositRequest;

/// How a twin is started.
#[derive(Clone, Debug)]
pub struct TwinOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The gateway's base URL.
    pub gateway: String,
    /// The wallet's SQLite file; created if missing.
    pub wallet: PathBuf,
    /// How long it waits for an answer of the gateway.
    pub call_timeout: Duration,
    /// How often it sends a call again, whatever went wrong.
    pub retries: u32,
    /// Customers' accounts that are closed.
    pub closed: Vec<String>,
}

impl TwinOptions {
    /// Two seconds of patience and three blind retries, on a free port.
    #[must_use]
    pub fn new(gateway: impl Into<String>, wallet: impl Into<PathBuf>) -> Self {
        Self {
            port: 0,
            gateway: gateway.into(),
            wallet: wallet.into(),
            call_timeout: Duration::from_secs(2),
            retries: 3,
            closed: Vec::new(),
        }
    }
}

/// Opens the wallet and starts to listen.
///
/// # Errors
/// The wallet cannot be opened, or the port is taken.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(options: TwinOptions) -> anyhow::Result<Service> {
    let port = options.port;
    let app = Arc::new(App::open(options)?);
    let router = Router::new().route("/deposits", post(take_deposit)).route("/books", get(sums)).with_state(app);
    Service::of_router("twin", port, router)
}

/// Why a deposit failed, as far as this code can know.
#[derive(Debug)]
enum Failure {
    Declined,
    AccountClosed,
    TimedOut,
    Broken(String),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, body) = match self {
            Self::Declined => (StatusCode::PAYMENT_REQUIRED, json!({ "state": "failed", "code": "card_declined" })),
            Self::AccountClosed => (StatusCode::CONFLICT, json!({ "state": "failed", "code": "account_closed" })),
            Self::TimedOut => (StatusCode::GATEWAY_TIMEOUT, json!({ "state": "failed", "code": "gateway_timeout" })),
            Self::Broken(why) => {
                (StatusCode::BAD_GATEWAY, json!({ "state": "failed", "code": "gateway_error", "message": why }))
            }
        };
        (status, Json(body)).into_response()
    }
}

async fn take_deposit(
    State(app): State<Arc<App>>,
    Json(request): Json<DepositRequest>,
) -> Result<Json<serde_json::Value>, Failure> {
    app.call(Operation::Authorise, &request).await?;
    app.call(Operation::Capture, &request).await?;
    let credited = credit(&app, &request).await.map_err(|error| Failure::Broken(format!("{error:#}")))?;
    if credited == Credited::AccountClosed {
        // It gives the money back as it took it: with blind retries, and with nobody to notice when they fail.
        app.call(Operation::Refund, &request).await?;
        return Err(Failure::AccountClosed);
    }
    if let Err(failure) = app.call(Operation::Receipt, &request).await {
        tracing::debug!("no receipt for deposit {}: {failure:?}", request.deposit);
    }
    Ok(Json(json!({ "state": "completed", "deposit": request.deposit })))
}

async fn sums(State(app): State<Arc<App>>) -> Result<Json<Sums>, (StatusCode, String)> {
    let sums = on_wallet(&app, |wallet| Sums::read(wallet)).await;
    sums.map(Json).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))
}

#[derive(Debug)]
struct App {
    options: TwinOptions,
    client: reqwest::Client,
    wallet: Mutex<Connection>,
    rng: Mutex<ChaCha8Rng>,
}

impl App {
    fn open(options: TwinOptions) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(options.call_timeout)
            .no_proxy()
            .build()
            .context("cannot make the HTTP client of the twin")?;
        let wallet = books::prepare(&options.wallet, &options.closed)?;
        // From the clock: references must differ from those before a restart.
        let rng = ChaCha8Rng::seed_from_u64(clock::wall_ms());
        Ok(Self { options, client, wallet: Mutex::new(wallet), rng: Mutex::new(rng) })
    }

    /// Sends a call, and again on any error: this is where a lost answer becomes a second charge.
    async fn call(&self, operation: Operation, request: &DepositRequest) -> Result<(), Failure> {
        let mut left = self.options.retries;
        loop {
            match self.send(operation, request).await {
                Err(Failure::TimedOut | Failure::Broken(_)) if left > 0 => left -= 1,
                ended => return ended,
            }
        }
    }

    async fn send(&self, operation: Operation, request: &DepositRequest) -> Result<(), Failure> {
        let path = match operation {
            Operation::Receipt => "receipts",
            Operation::Authorise | Operation::Capture | Operation::Refund => operation.name(),
        };
        let body = OperationBody {
            deposit: request.deposit.clone(),
            account: request.account.clone(),
            cents: request.cents,
            card: request.card,
        };
        let sent = self
            .client
            .post(format!("{}/{path}", self.options.gateway))
            .header("Idempotency-Key", self.fresh_reference())
            .json(&body)
            .send()
            .await;
        let answer = sent.map_err(|error| failure(&error))?;
        let status = answer.status();
        // The answer counts when it was read whole: a receipt number the customer sees is in it.
        let text = answer.text().await.map_err(|error| failure(&error))?;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::PAYMENT_REQUIRED => Err(Failure::Declined),
            status => Err(Failure::Broken(format!("{} answered {status}: {text}", operation.name()))),
        }
    }

    fn fresh_reference(&self) -> String {
        let number: u128 = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random();
        format!("ref-{number:032x}")
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_timeout() { Failure::TimedOut } else { Failure::Broken(error.to_string()) }
}

async fn credit(app: &Arc<App>, request: &DepositRequest) -> anyhow::Result<Credited> {
    let (deposit, account, cents) = (request.deposit.clone(), request.account.clone(), request.cents);
    on_wallet(app, move |wallet| {
        let context = || format!("cannot credit deposit {deposit}");
        let transaction = wallet.transaction().with_context(context)?;
        let credited = books::credit(&transaction, &deposit, &account, cents).with_context(context)?;
        transaction.commit().with_context(context)?;
        Ok(credited)
    })
    .await
}

/// SQLite blocks, and `synchronous = FULL` waits for the disk, so neither happens on a thread of the runtime.
async fn on_wallet<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&mut Connection) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let app = Arc::clone(app);
    let done = tokio::task::spawn_blocking(move || {
        let mut wallet = app.wallet.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut wallet)
    });
    done.await.context("the wallet's thread died")?
}
