//! From the end of a span to the collector: a queue of bounded length, and the thread that empties it.
//!
//! Whoever ends a span never waits: a queue that is full refuses it, and it is counted. What is refused by the collector for
//! a while is tried again with growing pauses, behind which the queue fills; after half a minute it is given up. Told to
//! end, every request is tried once more, and the process waits only so long.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver as Ended, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message as _;
use tidegate::trace::Exported;
use tidegate_remote::Transport;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::exit::{Code, Problem};

/// The most spans of one request.
const BATCH: usize = 512;
/// How long the first span of a request waits for company.
const GATHERING: Duration = Duration::from_secs(1);
/// The first pause before a request is sent again; each one after it is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a request is sent again.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of spans.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    pub(crate) fn exported(&self) -> Exported {
        Exported { sent: self.sent.load(Ordering::Relaxed), dropped: self.dropped.load(Ordering::Relaxed) }
    }

    fn sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn dropped(&self, n: usize) {
        self.dropped.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Where ended spans go in.
#[derive(Debug)]
pub(crate) struct Queue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.counts.dropped(1);
        }
    }

    // The end of the process waits for the exporter itself.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What receives spans.
pub(crate) struct Collector {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) address: Uri,
    /// Not shown to anybody.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) resource: ResourceAttributesWithSchema,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Why a collector did not take spans.
#[derive(Debug)]
struct Refused {
    why: String,
    /// It may take them later.
    for_now: bool,
}

impl Collector {
    /// How many it took: it may take a part.
    async fn take(&self, body: Bytes, count: usize) -> Result<usize, Refused> {
        let mut request = Request::post(self.address.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|error| Refused { why: error.to_string(), for_now: false })?;
        let answer = self.transport.send(request).await.map_err(|none| Refused { why: none.why, for_now: true })?;
        let status = answer.status();
        if !status.is_success() {
            const LATER: [StatusCode; 4] = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ];
            return Err(Refused { why: format!("it answered {status}"), for_now: LATER.contains(&status) });
        }
        let partial =
            ExportTraceServiceResponse::decode(answer.body().clone()).ok().and_then(|said| said.partial_success);
        let rejected = partial.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or(0));
        Ok(count.saturating_sub(rejected))
    }

    fn encoded(&self, spans: Vec<SpanData>) -> Bytes {
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }
}

/// The thread that sends, as the rest of the process sees it.
#[derive(Debug)]
pub(crate) struct Exporter {
    end: Arc<Notify>,
    ended: Mutex<Ended<()>>,
    within: Duration,
    given_up: AtomicBool,
}

impl Exporter {
    /// Waits for the last spans, and no longer than a collector may take to answer.
    pub(crate) fn end(&self) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        self.end.notify_one();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Late, or gone: there is nobody left to tell.
        let _ended = ended.recv_timeout(self.within);
    }

    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// Starts the thread.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(
    collector: Collector,
    longest: usize,
    within: Duration,
    counts: Arc<Counts>,
) -> Result<(Queue, Exporter), Problem> {
    let cannot =
        |error: std::io::Error| Problem::new(Code::Failed, format!("the sending of traces cannot start: {error}"));
    let (sender, spans) = mpsc::channel(longest.min(mpsc_most()));
    let end = Arc::new(Notify::new());
    let (tell, ended) = sync_channel(1);
    let sending = Sending {
        collector,
        spans,
        end: Arc::clone(&end),
        counts: Arc::clone(&counts),
        is_ending: false,
        is_away: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(cannot)?;
    let run = move || {
        runtime.block_on(sending.run());
        // Whoever waited may have lost patience.
        let _told = tell.send(());
    };
    std::thread::Builder::new().name("tide-traces".into()).spawn(run).map_err(cannot)?;
    Ok((
        Queue { spans: sender, counts },
        Exporter { end, ended: Mutex::new(ended), within, given_up: AtomicBool::new(false) },
    ))
}

/// The longest queue there can be.
fn mpsc_most() -> usize {
    tokio::sync::Semaphore::MAX_PERMITS
}

struct Sending {
    collector: Collector,
    spans: mpsc::Receiver<SpanData>,
    end: Arc<Notify>,
    counts: Arc<Counts>,
    /// Told to end: what is here is sent, and nothing more comes.
    is_ending: bool,
    /// The collector took nothing of late, and that was said.
    is_away: bool,
}

impl Sending {
    async fn run(mut self) {
        loop {
            let batch = self.gather().await;
            if batch.is_empty() {
                return;
            }
            self.hand_over(batch).await;
        }
    }

    /// The spans of the next request; none when all are sent and nothing more comes.
    async fn gather(&mut self) -> Vec<SpanData> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut until = None;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            if self.is_ending {
                // Closed: it gives what is left, and then nothing at once.
                if self.spans.recv_many(&mut batch, room).await == 0 {
                    break;
                }
                continue;
            }
            let is_first = batch.is_empty();
            tokio::select! {
                biased;
                () = self.end.notified() => self.close(),
                () = at(until) => break,
                got = self.spans.recv_many(&mut batch, room) => match got {
                    0 => break,
                    _ if is_first => until = Some(Instant::now() + GATHERING),
                    _ => {}
                },
            }
        }
        batch
    }

    fn close(&mut self) {
        self.is_ending = true;
        self.spans.close();
    }

    async fn hand_over(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        let body = self.collector.encoded(batch);
        let give_up_at = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let Refused { why, for_now } = match self.collector.take(body.clone(), count).await {
                Ok(taken) => {
                    self.counts.sent(taken);
                    self.counts.dropped(count - taken);
                    return self.is_back();
                }
                Err(refused) => refused,
            };
            self.is_not_there(&why);
            if !for_now || self.is_ending || Instant::now() + pause > give_up_at {
                return self.counts.dropped(count);
            }
            tokio::select! {
                biased;
                () = self.end.notified() => self.close(),
                () = tokio::time::sleep(pause) => {}
            }
            pause *= 2;
        }
    }

    /// Said once, until it takes some again.
    fn is_not_there(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_away, true) {
            let address = &self.collector.address;
            warn!("the collector at {address} does not take spans: {why}; what does not fit into the queue is dropped");
        }
    }

    fn is_back(&mut self) {
        if std::mem::replace(&mut self.is_away, false) {
            info!("the collector at {} takes spans again", self.collector.address);
        }
    }
}

/// That moment; never, if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
