//! A machine on which one process after another runs: started, killed, paused, replaced by a newer version.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate::{Clock, Random, Store, Tidegate};
use tidegate_core::MessageId;
use tokio::sync::{Notify, oneshot};

use crate::chance::Chance;
use crate::clock::SimClock;
use crate::link::Link;
use crate::process::{Blow, Handle, SimProcess};
use crate::sim::Sim;
use crate::steps;

/// A place where a process runs.
#[derive(Debug)]
pub(crate) struct Node {
    seed: u64,
    boots: AtomicU64,
    version: AtomicU32,
    drain: Notify,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    process: Option<Arc<SimProcess>>,
    tide: Option<Tidegate>,
    clock: Option<Arc<SimClock>>,
    /// How far its wall clock is off, besides what all clocks are.
    skew_ms: i64,
    down: Duration,
    frozen: Duration,
}

impl Node {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            boots: AtomicU64::new(0),
            version: AtomicU32::new(1),
            drain: Notify::new(),
            running: Mutex::default(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What clients talk to, if it takes requests now.
    pub(crate) fn serving(&self) -> Option<(Arc<SimProcess>, Tidegate)> {
        let running = self.running();
        Some((running.process.clone()?, running.tide.clone()?))
    }

    /// The version of the program that runs here.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    pub(crate) fn crash(&self, steps: u64, down: Duration) {
        let mut running = self.running();
        running.down = down;
        if let Some(process) = &running.process {
            process.strike(steps, Blow::Kill);
        }
    }

    pub(crate) fn freeze(&self, steps: u64, frozen: Duration) {
        let mut running = self.running();
        running.frozen = frozen;
        if let Some(process) = &running.process {
            process.strike(steps, Blow::Pause);
        }
    }

    /// Drains what runs, and starts this version in its place.
    pub(crate) fn redeploy(&self, version: u32) {
        self.version.fetch_max(version, Ordering::Relaxed);
        self.drain.notify_one();
    }

    /// Its wall clock is off by so much, on top of what all clocks are off by.
    pub(crate) fn skew(&self, skew_ms: i64, all_ms: i64) {
        let mut running = self.running();
        running.skew_ms = skew_ms;
        if let Some(clock) = &running.clock {
            clock.set_by(skew_ms + all_ms);
        }
    }

    /// Its wall clock drifts by so many millionths; what it had drifted so far is put right.
    pub(crate) fn drift(&self, ppm: i64) {
        if let Some(clock) = &self.running().clock {
            clock.drift(ppm);
        }
    }

    /// All clocks are off by so much.
    pub(crate) fn clocks_set(&self, all_ms: i64) {
        let skew_ms = self.running().skew_ms;
        self.skew(skew_ms, all_ms);
    }

    /// It takes no more requests.
    fn close(&self) {
        // Dropped outside of the lock: its end reaches far.
        let tide = self.running().tide.take();
        drop(tide);
    }

    /// Ends everything, so that nothing of a run outlives it.
    pub(crate) fn end(&self) {
        let running = std::mem::take(&mut *self.running());
        if let Some(process) = &running.process {
            process.kill();
        }
    }
}

/// Keeps a process running on a node.
pub(crate) async fn keep(sim: Arc<Sim>, number: u8) {
    let node = &sim.nodes[usize::from(number)];
    loop {
        let boot = node.boots.fetch_add(1, Ordering::Relaxed);
        let process = SimProcess::new(
            number,
            sim.settings.concurrency * steps::QUEUES,
            Chance::new(node.seed, &format!("order {number} {boot}")),
        );
        let clock = Arc::new(SimClock::new(sim.started(), Duration::from_secs(1_000 * (u64::from(number) + 1))));
        {
            let mut running = node.running();
            running.process = Some(Arc::clone(&process));
            running.clock = Some(Arc::clone(&clock));
        }
        node.clocks_set(sim.clock.is_set_by());
        sim.note(Some(number), "starts", MessageId::from_i64(0), boot);
        let (ended, mut end) = oneshot::channel();
        let program = program(Arc::clone(&sim), boot, Arc::clone(&process), clock, ended);
        drop(tokio::spawn(process.run(Box::pin(program))));
        let died = loop {
            tokio::select! {
                biased;
                () = process.struck.notified() => {
                    if let Some(broke) = process.broke() {
                        sim.check(Err(broke));
                    }
                    if process.is_dead() {
                        break true;
                    }
                    if process.is_paused() {
                        thaw(&sim, &process).await;
                    }
                }
                _ = &mut end => break process.is_dead(),
            }
        };
        node.close();
        process.kill();
        sim.note(Some(number), if died { "died" } else { "ended" }, MessageId::from_i64(0), boot);
        if died {
            sim.count("crash");
            let down = node.running().down;
            tokio::time::sleep(down).await;
        } else {
            sim.count("redeploy");
        }
    }
}

async fn thaw(sim: &Sim, process: &SimProcess) {
    let node = &sim.nodes[usize::from(process.number)];
    let frozen = node.running().frozen;
    sim.count("freeze");
    sim.note(
        Some(process.number),
        "stands still",
        MessageId::from_i64(0),
        u64::try_from(frozen.as_millis()).unwrap_or(0),
    );
    tokio::time::sleep(frozen).await;
    sim.note(Some(process.number), "goes on", MessageId::from_i64(0), 0);
    process.resume();
}

/// What a process does from its start to its drain.
async fn program(sim: Arc<Sim>, boot: u64, process: Arc<SimProcess>, clock: Arc<SimClock>, ended: oneshot::Sender<()>) {
    let number = process.number;
    let node = &sim.nodes[usize::from(number)];
    let random: Arc<dyn Random> = Arc::new(Chance::new(node.seed, &format!("random {number} {boot}")));
    let store: Arc<dyn Store> = Link::new(Arc::clone(&sim), Arc::clone(&process));
    let settings = &sim.settings;
    let opened = Tidegate::builder()
        .clock(clock as Arc<dyn Clock>)
        .random(random)
        .lease(settings.lease)
        .sweep_every(settings.sweep_every)
        .retention(settings.retention)
        .redelivery_horizon(settings.retention)
        .process(Arc::new(Handle(Arc::clone(&process))))
        .store(store);
    let tide = match opened {
        Ok(tide) => tide,
        Err(error) => return sim.check(Err(("start", format!("a process could not open its store: {error}")))),
    };
    node.running().tide = Some(tide.clone());
    let version = node.version();
    let worker = loop {
        match steps::worker(&sim, &tide, number, boot, version).start().await {
            Ok(worker) => break worker,
            // The store may be away for a while.
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    node.drain.notified().await;
    node.close();
    let within = sim.chance.millis(100, 60_000);
    let drained = worker.drain(within).await;
    if let Err(error) = drained {
        sim.check(Err(("drain", format!("process {number} could not drain: {error}"))));
    }
    tide.close().await;
    // Nobody waits for a process that was killed.
    ended.send(()).ok();
}
