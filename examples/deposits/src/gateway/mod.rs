//! The payment gateway of the demo: a process of its own, with its own ledger, that fails by script.
//!
//! It serves HTTP/1 on 127.0.0.1 with hyper, because faults need the connection in hand. A call is processed in a task
//! of its own: a client that gives up never stops what it started, as with a real gateway. What it did stands in its
//! ledger before the answer leaves; the proof reads that file. It never asks a side what the side believes.
//!
//! `POST /authorise | /capture | /refund` with `{deposit, account, cents, card}` and `Idempotency-Key`,
//! `POST /receipts` (harmless), `GET /find?operation=capture&key=K`, `POST /script/start`.

mod api;
mod faults;
mod ledger;
mod wire;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

pub use api::{GatewayMode, OperationBody};
pub use faults::{FaultScript, FaultWindow, Faults, LatencyMs};
pub use ledger::{LedgerEntry, LedgerResult, Operation, read_ledger};

use api::{Answer, Bank, Call};
use faults::{Dice, Fault};
use ledger::{Ledger, LedgerThread};
use wire::{AnswerBody, Wire};

use crate::clock;
use crate::service::{self, Service, Stop};

const GREATEST_BODY: usize = 64 * 1024;

/// When the clock of the fault script starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptStart {
    /// With the first call, or the first `POST /script/start` before it.
    OnRequest,
    /// When the gateway is ready.
    AtOnce,
}

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What it promises about repeated calls.
    pub mode: GatewayMode,
    /// The ledger's file; created if missing, read back if not.
    pub ledger: PathBuf,
    /// How many calls it works on at once; above it, 429.
    pub concurrency: usize,
    /// What goes wrong, and when.
    pub script: FaultScript,
    /// When that script starts.
    pub script_start: ScriptStart,
    /// The seed of the script's dice.
    pub seed: u64,
}

impl GatewayOptions {
    /// A faultless gateway on a free port.
    #[must_use]
    pub fn new(mode: GatewayMode, ledger: impl Into<PathBuf>) -> Self {
        Self {
            port: 0,
            mode,
            ledger: ledger.into(),
            concurrency: 50,
            script: FaultScript::default(),
            script_start: ScriptStart::OnRequest,
            seed: 42,
        }
    }
}

/// Opens the ledger and starts to listen. Told to stop, it cuts connections, finishes the calls in work and closes the
/// ledger; dropped, it does that without anybody waiting for it.
///
/// # Errors
/// The script is wrong, the ledger is damaged or in use, or the port is taken.
///
/// # Panics
/// Outside a tokio runtime.
pub fn start(options: GatewayOptions) -> anyhow::Result<Service> {
    options.script.check()?;
    ensure!(options.concurrency > 0, "the gateway's concurrency is 0; hint: give it at least 1");
    let (ledger, entries, ledger_thread) = Ledger::open(&options.ledger)?;
    let (listener, port) = service::listen(options.port)?;
    let started = match options.script_start {
        ScriptStart::AtOnce => Some(clock::now()),
        ScriptStart::OnRequest => None,
    };
    let shared = Arc::new(Shared {
        bank: Bank::new(options.mode, ledger, entries),
        dice: Dice::new(options.script, options.seed),
        started: watch::Sender::new(started),
        slots: Arc::new(Semaphore::new(options.concurrency)),
        in_work: watch::Sender::new(0),
        closings: watch::Sender::new(0),
    });
    Service::of_listener("gateway", listener, |listener, stop| {
        Server { port, shared, ledger_thread, stop }.serve(listener)
    })
}

/// What every connection needs.
#[derive(Debug)]
struct Shared {
    bank: Bank,
    dice: Dice,
    started: watch::Sender<Option<Instant>>,
    slots: Arc<Semaphore>,
    in_work: watch::Sender<usize>,
    /// Counts up when a window closes the listener: connections then end after the call they carry.
    closings: watch::Sender<u64>,
}

impl Shared {
    /// Starts the script's clock, unless it runs already. Says whether it did.
    fn start_script(&self) -> bool {
        self.started.send_if_modified(|started| {
            let first = started.is_none();
            started.get_or_insert_with(clock::now);
            first
        })
    }

    fn elapsed_ms(&self) -> Option<u64> {
        self.started.borrow().map(clock::ms_since)
    }
}

/// What the accept loop woke up for.
enum Event {
    Connection(std::io::Result<tokio::net::TcpStream>),
    Refuse { until: tokio::time::Instant },
    Stop,
}

struct Server {
    port: u16,
    shared: Arc<Shared>,
    ledger_thread: LedgerThread,
    stop: Stop,
}

impl Server {
    async fn serve(mut self, mut listener: TcpListener) -> anyhow::Result<()> {
        let mut connections = JoinSet::new();
        let mut started = self.shared.started.subscribe();
        loop {
            while connections.try_join_next().is_some() {}
            let event = tokio::select! {
                accepted = listener.accept() => Event::Connection(accepted.map(|(stream, _)| stream)),
                until = next_refusal(&self.shared, &mut started) => Event::Refuse { until },
                () = self.stop.told() => Event::Stop,
            };
            match event {
                Event::Connection(Ok(stream)) => {
                    connections.spawn(connection(Wire::new(stream), Arc::clone(&self.shared)));
                }
                Event::Connection(Err(error)) => {
                    tracing::warn!(error = %error, "could not accept a connection");
                    // Out of descriptors: the loop would spin until a connection ends.
                    sleep(Duration::from_millis(10)).await;
                }
                Event::Refuse { until } => {
                    drop(listener);
                    let closed = service::reserve(self.port)?;
                    self.shared.closings.send_modify(|closings| *closings += 1);
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = self.stop.told() => {}
                    }
                    listener = service::listen_on(closed).context("the refused window is over")?;
                }
                Event::Stop => break,
            }
        }
        drop(listener);
        self.finish(connections).await
    }

    async fn finish(self, mut connections: JoinSet<()>) -> anyhow::Result<()> {
        connections.shutdown().await;
        // The calls in work outlive their connections; each is bounded by the script's lateness and latency.
        let mut in_work = self.shared.in_work.subscribe();
        in_work.wait_for(|calls| *calls == 0).await.context("lost count of the calls in work")?;
        drop(in_work);
        drop(self.shared);
        let joined = tokio::task::spawn_blocking(|| self.ledger_thread.join()).await;
        ensure!(matches!(joined, Ok(Ok(()))), "the ledger's thread panicked");
        Ok(())
    }
}

/// Waits for the next window that closes the listener; says when it ends. For ever, if none comes.
async fn next_refusal(shared: &Shared, started: &mut watch::Receiver<Option<Instant>>) -> tokio::time::Instant {
    let start = started.wait_for(Option::is_some).await.ok().and_then(|start| *start);
    let (Some(start), script) = (start, shared.dice.script()) else { return std::future::pending().await };
    let Some(window) = script.next_refusal(clock::ms_since(start)) else { return std::future::pending().await };
    let start = tokio::time::Instant::from_std(start);
    tokio::time::sleep_until(start + Duration::from_millis(window.from_ms)).await;
    start + Duration::from_millis(window.to_ms)
}

async fn connection(wire: Wire, shared: Arc<Shared>) {
    let reset = wire.reset_on_drop();
    let mut closings = shared.closings.subscribe();
    let service = service_fn(|request| {
        let (shared, reset) = (Arc::clone(&shared), Arc::clone(&reset));
        async move { answer(&shared, &reset, request).await }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(wire), service);
    let mut served = std::pin::pin!(served);
    // What ends a connection (the client went, a scripted reset) is the script's business, not an error of ours.
    tokio::select! {
        ended = &mut served => tracing::trace!(?ended, "a connection ended"),
        _ = closings.changed() => {
            served.as_mut().graceful_shutdown();
            let ended = served.await;
            tracing::trace!(?ended, "a connection ended before a refused window");
        }
    }
}

/// The connection is to be cut without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the script cut this connection")
    }
}

impl std::error::Error for Cut {}

async fn answer(
    shared: &Arc<Shared>,
    reset: &AtomicBool,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Cut> {
    if request.method() == Method::POST && request.uri().path() == "/script/start" {
        return Ok(response(start_script(shared), None));
    }
    let call = match read(request).await {
        Ok(call) => call,
        Err(refusal) => return Ok(response(refusal, None)),
    };
    shared.start_script();
    let roll = shared.dice.roll(shared.elapsed_ms());
    let script = shared.dice.script();
    match roll.fault {
        Fault::TooMany => return Ok(response(too_many(script), None)),
        Fault::Unavailable => return Ok(response(unavailable(script), None)),
        Fault::Hang => return Err(hold(script, reset).await),
        Fault::ResetBefore => return Err(cut(reset)),
        Fault::Nothing | Fault::Drip | Fault::LostReply { .. } | Fault::Late { .. } | Fault::InternalAfter => {}
    }
    let Some(work) = start_work(shared, call, roll.fault, roll.latency_ms) else {
        return Ok(response(too_many(script), None));
    };
    let Ok(done) = work.await else { return Err(cut(reset)) };
    match roll.fault {
        Fault::InternalAfter => {
            let message = "something went wrong after the call was processed";
            Ok(response(Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "internal", message), None))
        }
        Fault::LostReply { reset: true } => Err(cut(reset)),
        Fault::LostReply { reset: false } => Err(hold(script, reset).await),
        Fault::Drip => Ok(response(done, Some(Duration::from_millis(script.drip_ms)))),
        Fault::Nothing
        | Fault::Late { .. }
        | Fault::TooMany
        | Fault::Unavailable
        | Fault::Hang
        | Fault::ResetBefore => Ok(response(done, None)),
    }
}

/// Starts to process a call in a task of its own; `None` when all slots are taken.
fn start_work(shared: &Arc<Shared>, call: Call, fault: Fault, latency_ms: u64) -> Option<JoinHandle<Answer>> {
    let late_ms = match fault {
        Fault::Late { ms } => ms,
        Fault::Nothing
        | Fault::TooMany
        | Fault::Unavailable
        | Fault::Hang
        | Fault::Drip
        | Fault::LostReply { .. }
        | Fault::ResetBefore
        | Fault::InternalAfter => 0,
    };
    // A late call lies in some queue on the way, so it takes no slot while it waits, and none when it arrives.
    let slot = if late_ms > 0 { None } else { Some(Arc::clone(&shared.slots).try_acquire_owned().ok()?) };
    let in_work = InWork::new(Arc::clone(shared));
    Some(tokio::spawn(async move {
        sleep(Duration::from_millis(late_ms)).await;
        sleep(Duration::from_millis(latency_ms)).await;
        let done = in_work.shared.bank.execute(call, late_ms).await;
        drop((slot, in_work));
        done
    }))
}

/// Counts a call in work, down again also when its task dies.
struct InWork {
    shared: Arc<Shared>,
}

impl InWork {
    fn new(shared: Arc<Shared>) -> Self {
        shared.in_work.send_modify(|calls| *calls += 1);
        Self { shared }
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.shared.in_work.send_modify(|calls| *calls -= 1);
    }
}

fn start_script(shared: &Shared) -> Answer {
    let first = shared.start_script();
    Answer::json(StatusCode::OK, &json!({ "started": first, "elapsed_ms": shared.elapsed_ms() }))
}

async fn read(request: Request<Incoming>) -> Result<Call, Answer> {
    let bad = |code: &str, message: &str| Answer::error(StatusCode::BAD_REQUEST, code, message);
    let (parts, body) = request.into_parts();
    let operation = match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/authorise") => Operation::Authorise,
        (&Method::POST, "/capture") => Operation::Capture,
        (&Method::POST, "/refund") => Operation::Refund,
        (&Method::POST, "/receipts") => Operation::Receipt,
        (&Method::GET, "/find") => return read_find(parts.uri.query().unwrap_or_default()),
        _ => return Err(Answer::error(StatusCode::NOT_FOUND, "no_such_operation", "hint: POST /capture")),
    };
    let body = Limited::new(body, GREATEST_BODY).collect().await.map_err(|error| bad("body", &error.to_string()))?;
    let body: OperationBody =
        serde_json::from_slice(&body.to_bytes()).map_err(|error| bad("body", &error.to_string()))?;
    let key = match key_of(&parts.headers) {
        Some(key) => key,
        // A receipt is harmless, so the deposit itself is key enough.
        None if operation == Operation::Receipt => body.deposit.clone(),
        None => return Err(bad("key_missing", "hint: send the header Idempotency-Key")),
    };
    Ok(Call::Operate { operation, key, body })
}

/// The header's value, without the quotes of a structured field if it has them.
fn key_of(headers: &HeaderMap) -> Option<String> {
    let key = headers.get("idempotency-key")?.to_str().ok()?;
    let bare = key.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(key);
    (!bare.is_empty()).then(|| bare.to_owned())
}

fn read_find(query: &str) -> Result<Call, Answer> {
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(given, _)| *given == name).map(|(_, value)| value)
    };
    let operation = match value("operation") {
        Some("authorise") => Operation::Authorise,
        Some("capture") => Operation::Capture,
        Some("refund") => Operation::Refund,
        Some("receipt") => Operation::Receipt,
        other => {
            let message = format!("operation is {other:?}; hint: authorise, capture, refund or receipt");
            return Err(Answer::error(StatusCode::BAD_REQUEST, "operation", &message));
        }
    };
    match value("key").and_then(percent_decoded).filter(|key| !key.is_empty()) {
        Some(key) => Ok(Call::Find { operation, key }),
        None => Err(Answer::error(StatusCode::BAD_REQUEST, "key_missing", "hint: GET /find?operation=capture&key=K")),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn too_many(script: &FaultScript) -> Answer {
    Answer::error(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "not processed; hint: try again later")
        .with_retry_after(script.retry_after_s)
}

fn unavailable(script: &FaultScript) -> Answer {
    Answer::error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "not processed; hint: try again later")
        .with_retry_after(script.retry_after_s)
}

/// Keeps the client waiting, then cuts the connection. When the client goes first, hyper drops this future.
async fn hold(script: &FaultScript, reset: &AtomicBool) -> Cut {
    sleep(Duration::from_millis(script.hang_limit_ms)).await;
    cut(reset)
}

/// Marks the connection to end with a reset, not with an orderly close.
fn cut(reset: &AtomicBool) -> Cut {
    reset.store(true, Ordering::Relaxed);
    Cut
}

fn response(answer: Answer, drip: Option<Duration>) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::new(answer.body, drip));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = answer.retry_after_s {
        headers.insert(hyper::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The body's error type: a body made here cannot fail.
type Never = Infallible;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_stand_in_quotes_or_bare() {
        for (header, expected) in [("\"dep-1\"", Some("dep-1")), ("dep-1", Some("dep-1")), ("\"\"", None), ("", None)] {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", HeaderValue::from_str(header).unwrap());
            assert_eq!(key_of(&headers).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn percent_escapes_are_decoded_and_broken_ones_refused() {
        let cases =
            [("a%3Ab", Some("a:b")), ("plain", Some("plain")), ("%C3%A9", Some("é")), ("%4", None), ("%zz", None)];
        for (text, expected) in cases {
            assert_eq!(percent_decoded(text).as_deref(), expected, "{text}");
        }
    }
}
