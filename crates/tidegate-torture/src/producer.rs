//! The producers: send deposits at a fixed rate, however slow the answers are, and send again under the same key whatever
//! has no answer. They believe nobody: what is accepted counts when their own log has it on disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use deposits::steps::View;
use deposits::trace::{Card, DepositRequest, Scale};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reqwest::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::log::{Line, Log};
use crate::stage::{Stage, up};

/// How often a deposit is sent before its producer gives up, with its outcome unknown.
const TRIES: u32 = 12;
/// Requests under way at once; a producer that has so many waits.
const UNDER_WAY: usize = 512;

/// Sends until told to stop, and then waits for what is under way.
pub(crate) async fn produce(
    stage: Arc<Stage>,
    seed: u64,
    per_second: u32,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let http = client()?;
    let log = Arc::new(Log::create(&stage.producers)?);
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1));
    let mut ticks = interval(Duration::from_secs(1) / per_second.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut customers = JoinSet::new();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        while let Some(ended) = customers.try_join_next() {
            ended.context("a producer's task died")??;
        }
        if customers.len() >= UNDER_WAY {
            continue;
        }
        number += 1;
        let request = request(number, &mut rng);
        let customer = Customer {
            stage: Arc::clone(&stage),
            http: http.clone(),
            log: Arc::clone(&log),
            clicks: if rng.random_bool(0.05) { 2 } else { 1 },
            rng: ChaCha8Rng::seed_from_u64(rng.random()),
        };
        customers.spawn(customer.send(request, stop.clone()));
    }
    while let Some(ended) = customers.join_next().await {
        ended.context("a producer's task died")??;
    }
    Arc::into_inner(log).context("a producer still holds the log")?.close()
}

/// Without idle connections: a service that drains would wait for them.
pub(crate) fn client() -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(3));
    builder.build().context("cannot make the producers' HTTP client")
}

fn request(number: u64, rng: &mut ChaCha8Rng) -> DepositRequest {
    DepositRequest {
        deposit: format!("dep-{number:07}"),
        account: format!("acct-{:04}", rng.random_range(0..50)),
        cents: rng.random_range(100..=50_000),
        card: if rng.random_bool(0.02) { Card::Declined } else { Card::Ok },
    }
}

/// What came back.
pub(crate) enum Came {
    /// Taken: what the service says of it, and the bytes that said it.
    Taken { view: View, body: Vec<u8> },
    /// Certainly not taken.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Sends a deposit once.
pub(crate) async fn ask(http: &reqwest::Client, url: &str, request: &DepositRequest) -> Came {
    let asking = http.post(format!("{url}/deposits")).header("Idempotency-Key", &request.deposit).json(request);
    let Ok(answer) = asking.send().await else { return Came::Unknown };
    let status = answer.status();
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Came::Refused;
    }
    let Ok(body) = answer.bytes().await else { return Came::Unknown };
    match serde_json::from_slice(&body) {
        Ok(view) if status.is_success() => Came::Taken { view, body: body.to_vec() },
        Ok(_) | Err(_) => Came::Unknown,
    }
}

struct Customer {
    stage: Arc<Stage>,
    http: reqwest::Client,
    log: Arc<Log>,
    /// 2: an impatient one, who sends the same again without waiting.
    clicks: u8,
    rng: ChaCha8Rng,
}

impl Customer {
    async fn send(mut self, request: DepositRequest, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        self.log.append(&Line::Sent { request: request.clone() }).await?;
        up(&self.stage.counts.sent);
        let mut accepted = false;
        for _ in 0..TRIES {
            if let Some(url) = self.stage.url(self.rng.random_range(0..1024)) {
                let twice = self.clicks == 2;
                self.clicks = 1;
                let again = async { if twice { Some(ask(&self.http, &url, &request).await) } else { None } };
                let (first, second) = tokio::join!(ask(&self.http, &url, &request), again);
                for came in [Some(first), second].into_iter().flatten() {
                    if let Came::Taken { view, .. } = came {
                        let line = Line::Accepted { deposit: request.deposit.clone(), id: view.id.to_string() };
                        self.log.append(&line).await?;
                        accepted = true;
                    }
                }
                if accepted {
                    up(&self.stage.counts.accepted);
                    return Ok(());
                }
            }
            // Told to stop, a producer tries once more at once and then leaves it unknown.
            if *stop.borrow() {
                break;
            }
            sleep(Duration::from_millis(self.rng.random_range(20..250))).await;
        }
        up(&self.stage.counts.unanswered);
        Ok(())
    }
}

/// Sends a deposit until it is taken: the faults are over.
pub(crate) async fn until_taken(
    stage: &Stage,
    http: &reqwest::Client,
    scale: &Scale,
    request: &DepositRequest,
) -> anyhow::Result<(View, Vec<u8>)> {
    let trying = async {
        for number in 0.. {
            if let Some(url) = stage.url(number)
                && let Came::Taken { view, body } = ask(http, &url, request).await
            {
                return (view, body);
            }
            sleep(Duration::from_millis(scale.poll_ms)).await;
        }
        unreachable!("the numbers do not end")
    };
    timeout(Duration::from_millis(scale.finish_within_ms), trying)
        .await
        .with_context(|| format!("deposit {} was not taken although the faults are over", request.deposit))
}
