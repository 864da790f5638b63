//! The load generator: the customers. It sends one seeded trace to both sides and writes down what they were told.
//!
//! Open loop: requests leave at their times however slow the answers are, and both sides get the same bytes. A customer
//! of the synchronous side reads the answer of the request; a customer of Tidegate's side is told "accepted" and looks
//! again until the deposit has an end. One line per request goes to a file of each side, synced before this ends;
//! together with the gateway's ledger it is all that the proof reads.

use std::fs::File;
use std::future::Future;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::clock;
use crate::proof::percentile;
use crate::steps::{Told, View};
use crate::trace::{Card, DepositRequest, Scale, TimedRequest, Trace};

/// Looks at once, of all polling customers together: they are many, and the machine is small.
const LOOKS_AT_ONCE: usize = 16;
/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// One request and what became of it: a line of the load generator's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The deposit that was requested.
    pub deposit: String,
    /// 1, or 2 for the second click.
    pub copy: u8,
    /// The customer's account.
    pub account: String,
    /// The amount.
    pub cents: i64,
    /// The card.
    pub card: Card,
    /// When it was first sent, milliseconds from the start of the trace.
    pub sent_ms: u64,
    /// How often it was sent: more than once only where the side told the client to come again.
    pub tries: u32,
    /// The status of the answer; none when there was no answer.
    pub status: Option<u16>,
    /// What was seen instead of an answer.
    pub error: Option<String>,
    /// How long after the first send the answer (or the end of patience) came.
    pub answer_ms: u64,
    /// It was answered with yes: done, or taken on.
    pub accepted: bool,
    /// What the customer last read.
    pub told: Told,
    /// When that was read, milliseconds from the start of the trace.
    pub told_ms: u64,
}

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SideName {
    /// The usual code.
    Synchronous,
    /// The same steps on Tidegate.
    Tidegate,
}

impl SideName {
    /// The name of its file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Synchronous => "load-synchronous.ndjson",
            Self::Tidegate => "load-tidegate.ndjson",
        }
    }
}

/// Where a side is.
#[derive(Clone, Debug)]
pub struct Target {
    /// Which.
    pub side: SideName,
    /// Its base URL.
    pub url: String,
    /// The base URL of its gateway, whose script is started with the trace.
    pub gateway: String,
}

/// How a load is sent.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What is sent, and when.
    pub trace: Trace,
    /// Patience, the pauses between looks, and how long to wait at the end.
    pub scale: Scale,
    /// To whom.
    pub targets: Vec<Target>,
    /// The directory for the files.
    pub directory: PathBuf,
}

/// What the customers of one side have read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that left.
    pub sent: u64,
    /// Requests that were answered, or given up.
    pub answered: u64,
    /// Requests answered with yes.
    pub accepted: u64,
    /// Requests whose customer last read this.
    pub processing: u64,
    /// Likewise.
    pub completed: u64,
    /// Likewise.
    pub failed: u64,
    /// Likewise.
    pub parked: u64,
    /// Likewise.
    pub dead: u64,
    /// 99 of 100 answers came within this time.
    pub p99_answer_ms: u64,
}

impl Counts {
    fn of(&mut self, told: Told) -> &mut u64 {
        match told {
            Told::Processing => &mut self.processing,
            Told::Completed => &mut self.completed,
            Told::Failed => &mut self.failed,
            Told::Parked => &mut self.parked,
            Told::Dead => &mut self.dead,
        }
    }
}

/// How far the load is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Milliseconds from the start of the trace.
    pub at_ms: u64,
    /// The usual code.
    pub synchronous: Counts,
    /// Tidegate's side.
    pub tidegate: Counts,
}

/// Sends the trace, waits until every deposit has an end or the time is up, and writes the files.
///
/// `report` hears of the progress four times a second; `stop` ends the waiting early, and the files say how far it was.
///
/// # Errors
/// A gateway's script cannot be started, or a file cannot be written.
///
/// # Cancel safety
/// Dropping the future writes no file.
pub async fn run(
    options: LoadOptions,
    mut report: impl FnMut(&Progress) + Send,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let LoadOptions { trace, scale, targets, directory } = options;
    let http = client()?;
    for target in &targets {
        start_script(&http, &target.gateway).await?;
    }
    let start = clock::now();
    let give_up = watch::Sender::new(false);
    let mut sides = Vec::new();
    for target in targets {
        sides.push(Arc::new(Side {
            // A client of its own, or one side's slow answers would hold the other's connections.
            http: client()?,
            target,
            scale,
            start,
            looks: Semaphore::new(LOOKS_AT_ONCE),
            counts: Mutex::default(),
            answer_ms: Mutex::default(),
            give_up: give_up.subscribe(),
        }));
    }
    let mut customers = JoinSet::new();
    let mut reports = tokio::time::interval(REPORT_EVERY);
    let mut stop = std::pin::pin!(stop);
    let mut stopped = false;
    {
        let mut sending = std::pin::pin!(send_all(&trace, start, &sides, &mut customers));
        loop {
            tokio::select! {
                () = &mut sending => break,
                () = &mut stop => {
                    stopped = true;
                    break;
                }
                _ = reports.tick() => report(&progress(start, &sides)),
            }
        }
    }
    give_up.send_replace(stopped);
    let mut asked: Vec<(SideName, Asked)> = Vec::new();
    let deadline =
        tokio::time::Instant::from_std(start) + Duration::from_millis(trace.length_ms() + scale.finish_within_ms);
    loop {
        tokio::select! {
            customer = customers.join_next() => match customer {
                Some(customer) => asked.push(customer.context("a customer's task died")?),
                None => break,
            },
            () = &mut stop, if !stopped => {
                stopped = true;
                give_up.send_replace(true);
            }
            () = sleep_until(deadline), if !stopped => {
                stopped = true;
                give_up.send_replace(true);
            }
            _ = reports.tick() => report(&progress(start, &sides)),
        }
    }
    report(&progress(start, &sides));
    for side in &sides {
        let of_side = asked.iter().filter(|(name, _)| *name == side.target.side).map(|(_, asked)| asked);
        write_asked(&directory.join(side.target.side.file()), of_side)?;
    }
    Ok(())
}

fn client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().build().context("cannot make the HTTP client of the load generator")
}

async fn start_script(http: &reqwest::Client, gateway: &str) -> anyhow::Result<()> {
    let url = format!("{gateway}/script/start");
    let answer = http.post(&url).send().await.with_context(|| format!("cannot start the script at {url}"))?;
    ensure!(answer.status().is_success(), "{url} answered {}", answer.status());
    Ok(())
}

async fn send_all(trace: &Trace, start: Instant, sides: &[Arc<Side>], customers: &mut JoinSet<(SideName, Asked)>) {
    for timed in &trace.requests {
        sleep_until(tokio::time::Instant::from_std(start) + Duration::from_millis(timed.at_ms)).await;
        let body: Arc<str> = serde_json::to_string(&timed.request).expect("a request is plain data").into();
        for side in sides {
            let (side, timed, body) = (Arc::clone(side), timed.clone(), Arc::clone(&body));
            customers.spawn(async move { (side.target.side, side.customer(&timed, &body).await) });
        }
    }
}

fn progress(start: Instant, sides: &[Arc<Side>]) -> Progress {
    let mut progress = Progress { at_ms: clock::ms_since(start), ..Progress::default() };
    for side in sides {
        let counts = match side.target.side {
            SideName::Synchronous => &mut progress.synchronous,
            SideName::Tidegate => &mut progress.tidegate,
        };
        *counts = *side.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let answer_ms = side.answer_ms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counts.p99_answer_ms = percentile(answer_ms, 99);
    }
    progress
}

/// A side, as its customers share it.
struct Side {
    http: reqwest::Client,
    target: Target,
    scale: Scale,
    start: Instant,
    looks: Semaphore,
    counts: Mutex<Counts>,
    answer_ms: Mutex<Vec<u64>>,
    give_up: watch::Receiver<bool>,
}

/// What came back for a request.
enum Came {
    Answer { status: StatusCode, location: Option<String>, retry_after: Option<Duration>, body: Vec<u8> },
    Nothing { why: String },
}

impl Side {
    /// One customer: asks, and is told something; looks again until that is final.
    async fn customer(&self, timed: &TimedRequest, body: &Arc<str>) -> Asked {
        self.count(|counts| counts.sent += 1);
        let DepositRequest { deposit, account, cents, card } = timed.request.clone();
        let sent = clock::now();
        let sent_ms = clock::ms_since(self.start);
        let (came, tries) = match self.target.side {
            // Sent once: the customer of the usual code sees whatever comes.
            SideName::Synchronous => (self.ask(&deposit, body, self.patience()).await, 1),
            SideName::Tidegate => self.ask_until_answered(&deposit, body, sent).await,
        };
        let answer_ms = clock::ms_since(sent);
        let mut asked = Asked {
            deposit,
            copy: timed.copy,
            account,
            cents,
            card,
            sent_ms,
            tries,
            status: None,
            error: None,
            answer_ms,
            accepted: false,
            told: Told::Failed,
            told_ms: clock::ms_since(self.start),
        };
        let mut look_at = None;
        match came {
            Came::Nothing { why } => asked.error = Some(why),
            Came::Answer { status, location, body, .. } => {
                asked.status = Some(status.as_u16());
                asked.accepted = status.is_success();
                match self.target.side {
                    SideName::Synchronous if asked.accepted => asked.told = Told::Completed,
                    SideName::Tidegate if asked.accepted => {
                        let view: Option<View> = serde_json::from_slice(&body).ok();
                        asked.told = view.map_or(Told::Processing, |view| view.state);
                        look_at = location;
                    }
                    SideName::Synchronous | SideName::Tidegate => {}
                }
            }
        }
        self.answer_ms.lock().unwrap_or_else(PoisonError::into_inner).push(answer_ms);
        self.count(|counts| {
            counts.answered += 1;
            counts.accepted += u64::from(asked.accepted);
            *counts.of(asked.told) += 1;
        });
        if let Some(path) = look_at {
            self.look_until_final(&path, &mut asked).await;
        }
        asked
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.scale.patience_ms)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Asks with the same key until there is an answer that is no "come again": what a key is for.
    async fn ask_until_answered(&self, deposit: &str, body: &Arc<str>, since: Instant) -> (Came, u32) {
        let mut pause = Duration::from_millis(self.scale.backoff_first_ms);
        let mut tries = 0;
        loop {
            tries += 1;
            let left = self.patience().saturating_sub(Duration::from_millis(clock::ms_since(since)));
            let came = self.ask(deposit, body, left).await;
            let again_in = match &came {
                Came::Answer {
                    status: StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE,
                    retry_after,
                    ..
                } => retry_after.unwrap_or(pause),
                Came::Nothing { .. } => pause,
                Came::Answer { .. } => return (came, tries),
            };
            if again_in >= left || *self.give_up.borrow() {
                return (came, tries);
            }
            sleep(again_in).await;
            pause = (pause * 2).min(Duration::from_millis(self.scale.backoff_greatest_ms));
        }
    }

    async fn ask(&self, deposit: &str, body: &Arc<str>, timeout: Duration) -> Came {
        let request = self
            .http
            .post(format!("{}/deposits", self.target.url))
            .header("Idempotency-Key", deposit)
            .header(CONTENT_TYPE, "application/json")
            .timeout(timeout)
            .body(body.to_string());
        let nothing = |error: &reqwest::Error| Came::Nothing { why: chain(error) };
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return nothing(&error),
        };
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (location, retry_after) = (header(LOCATION), header(RETRY_AFTER));
        let retry_after = retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        match answer.bytes().await {
            Ok(body) => Came::Answer { status, location, retry_after, body: body.to_vec() },
            Err(error) => nothing(&error),
        }
    }

    /// The polling customer: looks again with growing pauses until the deposit has an end, or the load gives up.
    async fn look_until_final(&self, path: &str, asked: &mut Asked) {
        let mut give_up = self.give_up.clone();
        let greatest = Duration::from_millis(self.scale.look_every_ms);
        let mut pause = greatest / 8;
        while !asked.told.is_final() {
            tokio::select! {
                () = sleep(pause) => {}
                _ = give_up.wait_for(|give_up| *give_up) => return,
            }
            pause = (pause * 2).min(greatest);
            let Ok(_permit) = self.looks.acquire().await else { return };
            let Some(view) = self.look(path).await else { continue };
            self.count(|counts| {
                *counts.of(asked.told) -= 1;
                *counts.of(view.state) += 1;
            });
            asked.told = view.state;
            asked.told_ms = clock::ms_since(self.start);
        }
    }

    async fn look(&self, path: &str) -> Option<View> {
        let url = format!("{}{path}", self.target.url);
        let answer = self.http.get(url).timeout(Duration::from_secs(5)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        answer.json().await.ok()
    }
}

fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Writes a side's file: whole and synced, or not at all.
fn write_asked<'a>(path: &Path, asked: impl Iterator<Item = &'a Asked>) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let unfinished = path.with_extension("unfinished");
    let mut file = BufWriter::new(File::create(&unfinished).with_context(context)?);
    for asked in asked {
        serde_json::to_writer(&mut file, asked).with_context(context)?;
        file.write_all(b"\n").with_context(context)?;
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&unfinished, path).with_context(context)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).with_context(context)
}

/// Reads a side's file back, strictly: a damaged file proves nothing.
///
/// # Errors
/// The file cannot be read, or a line of it is no request: the error names the line.
pub fn read_asked(path: &Path) -> anyhow::Result<Vec<Asked>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        bail!("{} ends in the middle of a line; hint: the load generator did not finish", path.display());
    }
    (1..)
        .zip(text.lines())
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("line {number} of {} is no request", path.display()))
        })
        .collect()
}
