//! apalis with its SQLite backend.
//!
//! Its `setup` switches `synchronous` off on the connection it runs on. Here it runs on a pool that is closed again; the
//! pool that is measured is opened with WAL and `synchronous=FULL`, and every connection of it is asked. Tasks are fetched
//! in large batches and not marked a second time when they start (`lock_tasks`), as its documentation allows for speed.
//!
//! After the preload the tables are analysed. Nothing in its documentation says so, but without statistics SQLite finds
//! the acknowledged tasks by the worker's name, which reads all that this worker ever did, each time anew.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::{Context as Waking, Poll};
use std::time::Duration;

use anyhow::Context as _;
use apalis::prelude::*;
use apalis_core::backend::ext::poll_strategy::{PollSnapshot, PollStrategy};
use apalis_sqlite::{Config, SqliteStorage};
use futures::stream;
use peer_line::{
    Acknowledged, Arguments, BUILD, Contract, Counts, LIMIT, Payload, Pragmas, Rates, Record, Report, Runs, Stopwatch,
};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row as _, SqlitePool};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const QUEUE: &str = "bench";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1)).map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string(&run(&arguments).await?)?);
    Ok(())
}

/// The backend with its settings, and where to look whether everything is done.
struct Bench {
    pool: SqlitePool,
    storage: SqliteStorage<Payload>,
    runs: Arc<Runs>,
    poll: Duration,
}

async fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let special = |name: &str, otherwise: u32| arguments.special(name, otherwise).map_err(anyhow::Error::msg);
    let (connections, fetch) = (special("connections", 2)?, special("fetch", 250)?);
    let poll = Duration::from_millis(special("poll_ms", 2)?.into());
    let is_analysed = special("analyze", 1)? == 1;
    let file = arguments.dir.join("apalis.db");
    if !file.exists() {
        let pool = open(&file, 1, SqliteSynchronous::Off).await?;
        SqliteStorage::setup(&pool).await?;
        if arguments.preload > 0 {
            preload(pool.clone(), arguments, is_analysed).await?;
        }
        pool.close().await;
    }
    // Opened only now, so that it plans with the statistics and nothing of the set-up is left in it.
    let pool = open(&file, connections, SqliteSynchronous::Full).await?;
    let pragmas = pragmas(&pool, connections).await?;
    let warm_up = if arguments.serial { 0 } else { arguments.warm_up() };
    let config = Config::default().queue(QUEUE).batch_size(fetch as usize).lock_tasks(false);
    let bench = Bench {
        storage: SqliteStorage::new(&pool).with_config(config),
        pool,
        runs: Arc::new(Runs::new(arguments.seed, warm_up + arguments.messages)),
        poll,
    };
    let rates = if arguments.serial { serial(&bench, arguments).await? } else { loaded(&bench, arguments).await? };
    let counts = Counts::of_records(&bench.runs, records(&bench.pool).await?);
    let sqlite_version = sqlx::query("select sqlite_version()").fetch_one(&bench.pool).await?.get(0);
    bench.pool.close().await;
    Ok(Report {
        name: "apalis-sqlite",
        version: "1.0.0",
        contract: Contract {
            keys: if arguments.keys { "dropped in silence, for good, without an answer" } else { "none" },
            results: "stored in the task's row",
            history: "the task's row, until it is vacuumed by hand",
            fencing: "the worker's name only",
        },
        acknowledged: Acknowledged {
            enqueue: "fsynced, a batch in one commit",
            completion: "fsynced, what the worker has gathered in one commit",
        },
        sqlite_version,
        pragmas,
        settings: HashMap::from([
            ("producers", arguments.producers.to_string()),
            ("enqueue batch", arguments.batch.to_string()),
            ("handlers at once", arguments.concurrency.to_string()),
            ("connections", connections.to_string()),
            ("fetch batch", fetch.to_string()),
            ("lock_tasks", "off".to_owned()),
            ("analysed", is_analysed.to_string()),
            ("poll interval", format!("{} ms", poll.as_millis())),
        ]),
        messages: arguments.messages,
        preloaded: arguments.preload,
        keys: arguments.keys,
        serial: arguments.serial,
        enqueue_per_s: rates.enqueue,
        lifecycles_per_s: rates.lifecycles,
        cpu_us_per_message: rates.cpu_us,
        counts,
        build: BUILD,
    })
}

async fn open(file: &Path, connections: u32, synchronous: SqliteSynchronous) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        // What its `setup` sets beside that, on one connection only.
        .pragma("temp_store", "memory")
        .pragma("cache_size", "64000")
        .pragma("journal_size_limit", "67108864")
        .busy_timeout(Duration::from_secs(30));
    // As many from the start as there will ever be, so that every one of them can be asked.
    let pool = SqlitePoolOptions::new()
        .min_connections(connections)
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// Asks every connection of the pool.
async fn pragmas(pool: &SqlitePool, connections: u32) -> anyhow::Result<Pragmas> {
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(pool.acquire().await?);
    }
    let mut answers = Vec::new();
    for connection in &mut held {
        answers.push(Pragmas {
            asked_by: "this program, on every connection of the queue's pool",
            connections: 1,
            journal_mode: sqlx::query("pragma journal_mode").fetch_one(&mut **connection).await?.get(0),
            synchronous: sqlx::query("pragma synchronous").fetch_one(&mut **connection).await?.get(0),
            wal_autocheckpoint: Some(
                sqlx::query("pragma wal_autocheckpoint").fetch_one(&mut **connection).await?.get(0),
            ),
        });
    }
    Pragmas::agreed(answers).map_err(anyhow::Error::msg)
}

async fn handle(payload: Payload, runs: Data<Arc<Runs>>) -> Result<String, BoxDynError> {
    Ok(runs.handle(&payload))
}

/// Looks for tasks every so often.
///
/// Its own interval strategy begins a new delay without asking it to wake anybody. When a delay ends just while a fetch
/// finds nothing, the worker sleeps until its next heartbeat, 30 s later; with the short interval of a benchmark that
/// happened in most rounds. This one always leaves a wake-up behind.
struct Every(tokio::time::Interval);

impl PollStrategy for Every {
    fn poll_drive(&mut self, waking: &mut Waking<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let mut driven = Poll::Pending;
        while self.0.poll_tick(waking).is_ready() {
            driven = Poll::Ready(Some(()));
        }
        driven
    }
}

/// A worker that runs until it is told to stop.
struct Running {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), WorkerError>>,
}

impl Bench {
    fn start(&self, name: &str, concurrency: u32) -> Running {
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = WorkerBuilder::new(name)
            .backend(self.storage.clone().poll_with_strategy(Every(tokio::time::interval(self.poll))))
            .data(Arc::clone(&self.runs))
            .concurrency(concurrency as usize)
            .build(handle);
        let until = async move {
            let _told = stopped.await;
            Ok::<(), std::io::Error>(())
        };
        Running { stop, ended: tokio::spawn(worker.run_until(until)) }
    }

    /// Waits until no task of the queue is left to be done. It tells nobody when a result is stored, so the file is asked;
    /// the question reads one entry of an index.
    async fn is_done(&self) -> anyhow::Result<()> {
        const LEFT: &str = "select
            exists (select 1 from Jobs where job_type = 'bench' and status = 'Pending')
            or exists (select 1 from Jobs where job_type = 'bench' and status = 'Queued')
            or exists (select 1 from Jobs where job_type = 'bench' and status = 'Running')
            or exists (select 1 from Jobs where job_type = 'bench' and status = 'Failed')";
        let watch = Stopwatch::start();
        while sqlx::query(LEFT).fetch_one(&self.pool).await?.get::<bool, _>(0) {
            anyhow::ensure!(!watch.is_over(LIMIT), "not every task had ended after {} s", LIMIT.as_secs());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

impl Running {
    async fn stop(self) -> anyhow::Result<()> {
        self.stop.send(()).ok().context("the worker ended by itself")?;
        self.ended.await??;
        Ok(())
    }
}

async fn loaded(bench: &Bench, arguments: &Arguments) -> anyhow::Result<Rates> {
    let warm_up = arguments.warm_up();
    let first = Payload::batches(arguments.seed, 0..warm_up, arguments.batch);
    let rest = Payload::batches(arguments.seed, warm_up..warm_up + arguments.messages, arguments.batch);
    let watch = Stopwatch::start();
    push(bench, first, arguments).await?;
    let enqueue = watch.rate(warm_up);
    let running = bench.start(&format!("bench-{}", arguments.seed), arguments.concurrency);
    bench.is_done().await?;

    let watch = Stopwatch::start();
    push(bench, rest, arguments).await?;
    bench.is_done().await?;
    let (lifecycles, cpu_us) = (watch.rate(arguments.messages), watch.cpu_us(arguments.messages));
    running.stop().await?;
    Ok(Rates { enqueue: Some(enqueue), lifecycles: Some(lifecycles), cpu_us })
}

async fn serial(bench: &Bench, arguments: &Arguments) -> anyhow::Result<Rates> {
    let running = bench.start(&format!("serial-{}", arguments.seed), 1);
    for number in 0..arguments.messages {
        let task = task(Payload::new(arguments.seed, number), arguments.keys);
        bench.storage.clone().push_task(task).await.map_err(failed)?;
        bench.is_done().await?;
    }
    running.stop().await?;
    Ok(Rates::default())
}

fn task(payload: Payload, keys: bool) -> Task<Payload> {
    let key = payload.key.clone();
    let task = TaskBuilder::new(payload);
    if keys { task.idempotency_key(key).build() } else { task.build() }
}

async fn push(bench: &Bench, batches: Vec<Vec<Payload>>, arguments: &Arguments) -> anyhow::Result<()> {
    let batches = Arc::new(Mutex::new(batches.into_iter()));
    let producers: Vec<_> = (0..arguments.producers)
        .map(|_| {
            let (mut storage, batches, keys) = (bench.storage.clone(), Arc::clone(&batches), arguments.keys);
            tokio::spawn(async move {
                loop {
                    let batch = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(batch) = batch else { return anyhow::Ok(()) };
                    let tasks: Vec<_> = batch.into_iter().map(|payload| task(payload, keys)).collect();
                    storage.push_all(stream::iter(tasks)).await.map_err(failed)?;
                }
            })
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the queue did not take a task: {error:?}")
}

async fn records(pool: &SqlitePool) -> anyhow::Result<Vec<Record>> {
    const RECORDS: &str = "select cast(job as text) ->> 'key', status, json_quote(last_result ->> '$.Ok') from Jobs";
    let rows = sqlx::query(RECORDS).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let status: String = row.try_get(1)?;
            Ok(Record { key: row.try_get(0)?, completed: status == "Done", result: row.try_get(2)? })
        })
        .collect()
}

/// Everything of a finished task that its copies have in common with it.
const COPY: &str = "
    with recursive n(i) as (select 1 union all select i + 1 from n where i < ?1)
    insert into Jobs (job, id, job_type, status, attempts, max_attempts, run_at, last_result, lock_at, lock_by, done_at,
        priority, metadata, idempotency_key)
    select cast(json_set(cast(job as text), '$.key', 'preloaded-' || i) as blob), upper(hex(randomblob(13))), job_type,
        status, attempts, max_attempts, run_at, last_result, lock_at, lock_by, done_at, priority, metadata,
        case when idempotency_key is null then null else lower(hex(randomblob(16))) end
    from (select * from Jobs limit 1), n";

/// One task through its life, and then copies of its row: through the queue itself it would take minutes.
async fn preload(pool: SqlitePool, arguments: &Arguments, is_analysed: bool) -> anyhow::Result<()> {
    let bench = Bench {
        storage: SqliteStorage::new(&pool).with_config(Config::default().queue(QUEUE)),
        pool,
        runs: Arc::new(Runs::new(0, 0)),
        poll: Duration::from_millis(10),
    };
    let running = bench.start("preload", 1);
    bench.storage.clone().push_task(task(Payload::pattern(), arguments.keys)).await.map_err(failed)?;
    bench.is_done().await?;
    running.stop().await?;
    sqlx::query(COPY).bind(arguments.preload - 1).execute(&bench.pool).await?;
    if is_analysed {
        sqlx::query("analyze").execute(&bench.pool).await?;
    }
    sqlx::query("pragma wal_checkpoint(truncate)").execute(&bench.pool).await?;
    Ok(())
}
