//! How soon a message runs: from the acknowledged enqueue to the start of its handler, on a store that is idle otherwise.
//!
//! The load is open: a message goes out when its time has come, whether or not the one before is done, so that a slow one
//! does not thin out those that would have been slow as well.

use std::time::Duration;

use anyhow::Context as _;
use tidegate::Tidegate;
use tidegate::clock::{Clock, SystemClock};
use tokio::time::MissedTickBehavior;

use crate::Parameters;
use crate::keys::Keys;
use crate::library::{Engine, Timed, Work};

/// The time of each message; nothing when the handler had started before the enqueue returned to its caller.
pub(crate) async fn measure(
    engine: &Engine,
    parameters: &Parameters,
    keys: &mut Keys,
) -> anyhow::Result<Vec<Duration>> {
    let count = parameters.pickups;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / parameters.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = Vec::new();
    for (number, key) in (0..).zip(keys.take(count)) {
        tick.tick().await;
        let timed = Timed { number, work: Work::of(&key) };
        sent.push(tokio::spawn(acknowledged(engine.tide.clone(), engine.clock.clone(), timed)));
    }
    let mut acknowledged = Vec::with_capacity(sent.len());
    for task in sent {
        acknowledged.push(task.await??);
    }
    let mut starts = engine.starts.lock().await;
    let mut times = Vec::with_capacity(acknowledged.len());
    for _ in 0..count {
        let start = tokio::time::timeout(Duration::from_secs(60), starts.recv()).await;
        let (number, started) =
            start.context("a handler did not start within a minute")?.context("the worker is gone")?;
        times.push(started.saturating_sub(acknowledged[number as usize]));
    }
    Ok(times)
}

async fn acknowledged(tide: Tidegate, clock: std::sync::Arc<SystemClock>, timed: Timed) -> anyhow::Result<Duration> {
    let sent = tide.enqueue(timed).await?;
    let at = clock.monotonic();
    anyhow::ensure!(sent.is_new(), "a key of the benchmark was known already");
    Ok(at)
}
