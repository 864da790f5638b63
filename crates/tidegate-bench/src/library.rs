//! The engine as an application uses it: `enqueue_all` from several tasks, a worker, a handler that does nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tidegate::clock::{Clock, SystemClock};
use tidegate::postgres::PostgresStore;
use tidegate::postgres::tokio_postgres::Client;
use tidegate::sqlite::SqliteStore;
use tidegate::store::{CommitListener, News};
use tidegate::{Address, Context, Handled, Message, Server, Tidegate, Worker, postgres};
use tokio::sync::{Notify, mpsc};

use crate::keys::Key;
use crate::{Look, PAYLOAD_BYTES, Parameters, Round, Used, server};

/// Queue and kind of the measured messages.
pub(crate) const KIND: &str = "bench";

/// What is enqueued: a key, and enough beside it for the size of a payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Work {
    key: String,
    filler: String,
}

impl Work {
    pub(crate) fn of(key: &Key) -> Self {
        let around = r#"{"key":"","filler":""}"#.len() + key.text.len();
        Self { key: key.text.clone(), filler: "x".repeat(PAYLOAD_BYTES - around) }
    }
}

impl Message for Work {
    const KIND: &'static str = KIND;
    type Answer = u32;

    fn key(&self) -> String {
        self.key.clone()
    }
}

/// The same on a queue of its own, whose handler says when it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Timed {
    pub(crate) number: u32,
    pub(crate) work: Work,
}

impl Message for Timed {
    const KIND: &'static str = "bench-timed";
    type Answer = u32;

    fn key(&self) -> String {
        self.work.key.clone()
    }
}

/// What a store has done so far, as it says itself or its server does.
pub(crate) enum Meter {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>, Box<Client>),
}

impl Meter {
    async fn of(tide: &Tidegate, server: Option<&Server>) -> anyhow::Result<Self> {
        match (tide.engine(), server) {
            (tidegate::Engine::Sqlite(store), _) => Ok(Self::Sqlite(Arc::clone(store))),
            (tidegate::Engine::Postgres(store), Some(server)) => {
                let client = postgres::connect(server.reveal()).await?;
                Ok(Self::Postgres(Arc::clone(store), Box::new(client)))
            }
            (tidegate::Engine::Postgres(_) | tidegate::Engine::Other(_), _) => {
                anyhow::bail!("what this store does cannot be measured")
            }
        }
    }

    pub(crate) async fn used(&self) -> anyhow::Result<Used> {
        match self {
            Self::Sqlite(store) => {
                let stats = store.group_stats();
                Ok(Used {
                    commits: stats.commits,
                    log_bytes: stats.wal_bytes,
                    checkpoints: Some((stats.checkpoint_time, stats.longest_checkpoint)),
                    commit_p50: stats.commit_p50(),
                })
            }
            Self::Postgres(store, client) => Ok(Used {
                commits: store.group_stats().commits,
                log_bytes: server::log_bytes(client).await?,
                checkpoints: None,
                commit_p50: None,
            }),
        }
    }
}

/// A store that is open, with its worker running.
pub(crate) struct Engine {
    pub(crate) tide: Tidegate,
    pub(crate) meter: Meter,
    worker: Worker,
    ended: Arc<Ended>,
    pub(crate) clock: Arc<SystemClock>,
    /// Which timed message started, and when.
    pub(crate) starts: tokio::sync::Mutex<mpsc::UnboundedReceiver<(u32, Duration)>>,
}

impl Engine {
    pub(crate) async fn start(store: &Address, parameters: &Parameters) -> anyhow::Result<Self> {
        let clock = Arc::new(SystemClock::new());
        let tide = Tidegate::builder().create(false).open_at(store).await?;
        let meter = Meter::of(&tide, store.server()).await?;
        let (start, starts) = mpsc::unbounded_channel();
        let handler_clock = Arc::clone(&clock);
        let timed = move |_: Context, timed: Timed| {
            // The first thing a handler does is to say that it runs; nobody listens any more when the bench ends.
            let _ended = start.send((timed.number, handler_clock.monotonic()));
            async { Handled::Ok(0) }
        };
        let empty = |_: Context, _: Work| async { Handled::Ok(0) };
        let worker = tide.worker().handle(empty).handle(timed).concurrency(parameters.concurrency).start().await?;
        let ended = Arc::new(Ended::default());
        let listener: Weak<Ended> = Arc::downgrade(&ended);
        tide.store().on_commit(listener);
        Ok(Self { tide, meter, worker, ended, clock, starts: tokio::sync::Mutex::new(starts) })
    }

    /// From the first enqueue to the last durable settlement.
    pub(crate) async fn round(&self, keys: &[Key], parameters: &Parameters) -> anyhow::Result<Round> {
        let count = u32::try_from(keys.len())?;
        let batches: Vec<Vec<Work>> =
            keys.chunks(parameters.batch.max(1) as usize).map(|keys| keys.iter().map(Work::of).collect()).collect();
        let target = self.ended.count() + u64::from(count);
        let before = Look::at(self.clock.monotonic(), self.meter.used().await?)?;
        let batches = Arc::new(std::sync::Mutex::new(batches));
        let producers: Vec<_> = (0..parameters.producers.max(1))
            .map(|_| tokio::spawn(produce(self.tide.clone(), Arc::clone(&batches))))
            .collect();
        for producer in producers {
            producer.await??;
        }
        tokio::time::timeout(Duration::from_secs(600), self.ended.reach(target)).await.with_context(|| {
            format!("{} of {count} messages had not ended after 10 minutes", target - self.ended.count())
        })?;
        let after = Look::at(self.clock.monotonic(), self.meter.used().await?)?;
        Ok(Round::of(count, &before, &after))
    }

    /// Ends the worker; the store stays open, without what the library does around it.
    pub(crate) async fn stop(self) -> anyhow::Result<tidegate::Engine> {
        let engine = self.tide.engine().clone();
        self.worker.stop().await?;
        Ok(engine)
    }
}

type Batches = Arc<std::sync::Mutex<Vec<Vec<Work>>>>;

async fn produce(tide: Tidegate, batches: Batches) -> anyhow::Result<()> {
    loop {
        let batch = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let Some(batch) = batch else { return Ok(()) };
        for sent in tide.enqueue_all(batch).await? {
            anyhow::ensure!(sent?.is_new(), "a key of the benchmark was known already");
        }
    }
}

/// Counts messages that ended, as the engine tells after each commit.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    count: AtomicU64,
    more: Notify,
}

impl CommitListener for Ended {
    fn committed(&self, news: &News) {
        if !news.ended.is_empty() {
            self.count.fetch_add(news.ended.len() as u64, Ordering::SeqCst);
            self.more.notify_waiters();
        }
    }
}

impl Ended {
    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) async fn reach(&self, target: u64) {
        loop {
            // Asked for before the look, so that a commit between the two is not missed.
            let more = self.more.notified();
            if self.count() >= target {
                return;
            }
            more.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyOrder, Keys};

    #[test]
    fn a_payload_has_the_size_that_is_reported() {
        let work = Work::of(&Keys::new(KeyOrder::Random, 1).take(1)[0]);
        assert_eq!(serde_json::to_string(&work).unwrap().len(), PAYLOAD_BYTES);
    }
}
