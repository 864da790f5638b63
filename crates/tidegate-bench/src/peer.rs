//! Tidegate as one of several queues in a comparison: the same command line, work and counts as the programs in `peers/`.
//!
//! Everything is done as an application does it, through the library; only the counts at the end are read from the file,
//! as they are for the others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use anyhow::Context as _;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tidegate::{Context, Handled, Message, Tidegate};

use crate::keys::{KeyOrder, Keys};
use crate::library::{Ended, KIND};
use crate::line::{Acknowledged, Arguments, BUILD, Contract, Counts, LIMIT, Payload, Pragmas, Rates, Record, Report};
use crate::line::{Runs, Stopwatch};
use crate::preload;

/// Seed of the keys that are there before: none of a round's.
const PRELOADED: u64 = 0x7469_6465;

/// The payload as a message of ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Work(Payload);

impl Message for Work {
    const KIND: &'static str = KIND;
    type Answer = String;

    fn key(&self) -> String {
        self.0.key.clone()
    }
}

/// One round in the directory's file.
///
/// # Errors
/// When a file cannot be made or written, an argument does not fit, or the store answers what it must not.
///
/// # Cancel safety
/// Dropped, the round is given up; what was enqueued stays in the file.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    anyhow::ensure!(arguments.keys, "--keys off: a message of Tidegate always has a key");
    let file = arguments.dir.join("tidegate.db");
    if !file.exists() {
        let (file, preloaded) = (file.clone(), arguments.preload);
        tokio::task::spawn_blocking(move || {
            preload::fill(&file, &Keys::new(KeyOrder::Random, PRELOADED).take(preloaded))
        })
        .await??;
    }
    let tide = Tidegate::builder().create(false).open(&file).await?;
    let ended = Arc::new(Ended::default());
    let listener: Weak<Ended> = Arc::downgrade(&ended);
    tide.store().on_commit(listener);
    let warm_up = if arguments.serial { 0 } else { arguments.warm_up() };
    let runs = Arc::new(Runs::new(arguments.seed, warm_up + arguments.messages));
    let rates = if arguments.serial {
        serial(&tide, &ended, &runs, arguments).await?
    } else {
        loaded(&tide, &ended, &runs, arguments).await?
    };
    tide.close().await;
    let (pragmas, counts) = tokio::task::spawn_blocking(move || looked_at(&file, &runs)).await??;
    Ok(report(arguments, rates, pragmas, counts))
}

/// First the enqueues alone, then everything at once.
async fn loaded(tide: &Tidegate, ended: &Ended, runs: &Arc<Runs>, arguments: &Arguments) -> anyhow::Result<Rates> {
    let warm_up = arguments.warm_up();
    let first = Payload::batches(arguments.seed, 0..warm_up, arguments.batch);
    let rest = Payload::batches(arguments.seed, warm_up..warm_up + arguments.messages, arguments.batch);
    let watch = Stopwatch::start();
    enqueue(tide, first, arguments.producers).await?;
    let enqueue_per_s = watch.rate(warm_up);
    let worker = tide.worker().handle(handler(runs)).concurrency(arguments.concurrency).start().await?;
    reach(ended, warm_up).await?;

    let watch = Stopwatch::start();
    enqueue(tide, rest, arguments.producers).await?;
    reach(ended, warm_up + arguments.messages).await?;
    let (lifecycles_per_s, cpu_us) = (watch.rate(arguments.messages), watch.cpu_us(arguments.messages));
    worker.stop().await?;
    Ok(Rates { enqueue: Some(enqueue_per_s), lifecycles: Some(lifecycles_per_s), cpu_us })
}

/// One message after the other, each waited for from its enqueue to its durable end.
async fn serial(tide: &Tidegate, ended: &Ended, runs: &Arc<Runs>, arguments: &Arguments) -> anyhow::Result<Rates> {
    let worker = tide.worker().handle(handler(runs)).concurrency(1).start().await?;
    for number in 0..arguments.messages {
        let sent = tide.enqueue(Work(Payload::new(arguments.seed, number))).await?;
        anyhow::ensure!(sent.is_new(), "a key of the benchmark was known already");
        reach(ended, number + 1).await?;
    }
    worker.stop().await?;
    Ok(Rates::default())
}

fn handler(runs: &Arc<Runs>) -> impl Fn(Context, Work) -> std::future::Ready<Handled<String>> + Send + Sync + 'static {
    let runs = Arc::clone(runs);
    move |_, work: Work| std::future::ready(Handled::Ok(runs.handle(&work.0)))
}

async fn reach(ended: &Ended, count: u32) -> anyhow::Result<()> {
    tokio::time::timeout(LIMIT, ended.reach(count.into()))
        .await
        .with_context(|| format!("{count} messages had not ended after {} s", LIMIT.as_secs()))
}

async fn enqueue(tide: &Tidegate, batches: Vec<Vec<Payload>>, producers: u32) -> anyhow::Result<()> {
    let batches = Arc::new(Mutex::new(batches.into_iter()));
    let producers: Vec<_> = (0..producers)
        .map(|_| {
            let (tide, batches) = (tide.clone(), Arc::clone(&batches));
            tokio::spawn(async move {
                loop {
                    let batch = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(batch) = batch else { return Ok(()) };
                    for sent in tide.enqueue_all(batch.into_iter().map(Work).collect::<Vec<_>>()).await? {
                        anyhow::ensure!(sent?.is_new(), "a key of the benchmark was known already");
                    }
                }
            })
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    Ok(())
}

/// Everything the file has with a key, each with its result if it completed.
const RECORDS: &str = "-- peer records
select m.key, r.state is 'completed', r.body from tide_message m left join tide_result r on r.id = m.id";

/// From a closed store: what became of the messages, and the settings of its writer.
fn looked_at(file: &Path, runs: &Runs) -> anyhow::Result<(Pragmas, Counts)> {
    let conn = Connection::open(file).context("the store cannot be opened for counting")?;
    let mut statement = conn.prepare(RECORDS)?;
    let records =
        statement.query_map([], |row| Ok(Record { key: row.get(0)?, completed: row.get(1)?, result: row.get(2)? }))?;
    let counts = Counts::of_records(runs, records.collect::<rusqlite::Result<Vec<_>>>()?);
    // The writer's connection is the store's own and not to be had. `SqliteStore::open` asks it and refuses a store
    // below FULL, so that it opened is the answer; what it waits for is counted from outside.
    let pragmas = Pragmas {
        asked_by: "the store, which does not open below 2",
        connections: 1,
        journal_mode: conn.query_row("pragma journal_mode", [], |row| row.get(0))?,
        synchronous: 2,
        wal_autocheckpoint: None,
    };
    Ok((pragmas, counts))
}

fn report(arguments: &Arguments, rates: Rates, pragmas: Pragmas, counts: Counts) -> Report {
    Report {
        name: "tidegate",
        version: env!("CARGO_PKG_VERSION"),
        contract: Contract {
            keys: "the same answer again for the whole retention; another payload is refused",
            results: "stored with the settlement, by key",
            history: "a row of each message until its retention is over",
            fencing: "a lease token with every write",
        },
        acknowledged: Acknowledged {
            enqueue: "fsynced, with others in one commit",
            completion: "fsynced, with others in one commit",
        },
        sqlite_version: rusqlite::version().to_owned(),
        pragmas,
        settings: HashMap::from([
            ("producers", arguments.producers.to_string()),
            ("enqueue batch", arguments.batch.to_string()),
            ("handlers at once", arguments.concurrency.to_string()),
        ]),
        messages: arguments.messages,
        preloaded: arguments.preload,
        keys: true,
        serial: arguments.serial,
        enqueue_per_s: rates.enqueue,
        lifecycles_per_s: rates.lifecycles,
        cpu_us_per_message: rates.cpu_us,
        counts,
        build: BUILD,
    }
}
