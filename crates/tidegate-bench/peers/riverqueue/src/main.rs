//! riverqueue, River for Rust, on SQLite.
//!
//! Set up as its documentation says for speed: `insert_many`, the shortest fetch cooldown, many workers, its completer's
//! own batches. The pool is opened here, with WAL and `synchronous=FULL`: River uses the caller's pool as it is.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use peer_line::{
    Acknowledged, Arguments, BUILD, Contract, Counts, LIMIT, Payload, Pragmas, Rates, Record, Report, Runs, Stopwatch,
};
use riverqueue::event::SubscribeConfig;
use riverqueue::migrate::SqliteMigrator;
use riverqueue::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use riverqueue::sqlx::{self, Row as _, SqlitePool};
use riverqueue::{
    Client, EventKind, EventReceiver, InsertOpts, Job, JobArgs, QueueConfig, UniqueOpts, WorkContext, WorkOutcome,
    Workers,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, JobArgs, Serialize)]
#[river(kind = "bench")]
#[serde(transparent)]
struct Work {
    payload: Payload,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1)).map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string(&run(&arguments).await?)?);
    Ok(())
}

async fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    let connections = arguments.special("connections", 1).map_err(anyhow::Error::msg)?;
    let cooldown = Duration::from_millis(arguments.special("cooldown_ms", 1).map_err(anyhow::Error::msg)?);
    let file = arguments.dir.join("riverqueue.db");
    let is_new = !file.exists();
    let pool = open(&file, connections).await?;
    SqliteMigrator::new(pool.clone()).migrate_up().await?;
    let pragmas = pragmas(&pool, connections).await?;

    let warm_up = if arguments.serial { 0 } else { arguments.warm_up() };
    let runs = Arc::new(Runs::new(arguments.seed, warm_up + arguments.messages));
    let handler_runs = Arc::clone(&runs);
    let mut workers = Workers::new();
    workers.add_fn(move |context: WorkContext, job: Job<Work>| {
        let answer = handler_runs.handle(&job.args.payload);
        async move {
            context.record_output(answer)?;
            Ok::<_, serde_json::Error>(WorkOutcome::Complete)
        }
    })?;
    let queue = QueueConfig::new(arguments.concurrency as usize)
        .with_fetch_cooldown(cooldown)
        .with_fetch_poll_interval(Duration::from_millis(10).max(cooldown));
    let client =
        Client::builder(pool.clone()).workers(workers).fetch_cooldown(cooldown).queue("default", queue).build()?;
    let capacity = std::num::NonZeroUsize::new(1 << 20).context("a capacity above 0")?;
    let kinds = [EventKind::JobCompleted, EventKind::JobFailed];
    let mut events = client.subscribe_config(SubscribeConfig::new(kinds)?.with_buffer_capacity(capacity))?;

    if is_new && arguments.preload > 0 {
        preload(&client, &mut events, &file, arguments).await?;
    }
    let rates = if arguments.serial {
        serial(&client, &mut events, arguments).await?
    } else {
        loaded(&client, &mut events, arguments).await?
    };
    let counts = Counts::of_records(&runs, records(&pool).await?);
    let sqlite_version = sqlx::query("select sqlite_version()").fetch_one(&pool).await?.get(0);
    pool.close().await;
    Ok(Report {
        name: "riverqueue",
        version: "0.5.0",
        contract: Contract {
            keys: if arguments.keys { "the job that is there; the arguments are the key" } else { "none" },
            results: "recorded in the job's metadata",
            history: "the job's row, for 24 h",
            fencing: "none: only a job that is still running is settled, whoever claimed it",
        },
        acknowledged: Acknowledged {
            enqueue: "fsynced, a call of insert_many in one commit",
            completion: "fsynced, batched by its completer",
        },
        sqlite_version,
        pragmas,
        settings: HashMap::from([
            ("producers", arguments.producers.to_string()),
            ("enqueue batch", arguments.batch.to_string()),
            ("handlers at once", arguments.concurrency.to_string()),
            ("connections", connections.to_string()),
            ("fetch cooldown", format!("{} ms", cooldown.as_millis())),
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

async fn open(file: &Path, connections: u32) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
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

async fn loaded(client: &Client, events: &mut EventReceiver, arguments: &Arguments) -> anyhow::Result<Rates> {
    let warm_up = arguments.warm_up();
    let first = Payload::batches(arguments.seed, 0..warm_up, arguments.batch);
    let rest = Payload::batches(arguments.seed, warm_up..warm_up + arguments.messages, arguments.batch);
    let watch = Stopwatch::start();
    insert(client, first, arguments).await?;
    let enqueue = watch.rate(warm_up);
    let mut running = client.start()?;
    reach(events, warm_up).await?;

    let watch = Stopwatch::start();
    let (inserted, ended) = tokio::join!(insert(client, rest, arguments), reach(events, arguments.messages));
    inserted.and(ended)?;
    let (lifecycles, cpu_us) = (watch.rate(arguments.messages), watch.cpu_us(arguments.messages));
    running.stop().await?;
    Ok(Rates { enqueue: Some(enqueue), lifecycles: Some(lifecycles), cpu_us })
}

async fn serial(client: &Client, events: &mut EventReceiver, arguments: &Arguments) -> anyhow::Result<Rates> {
    let mut running = client.start()?;
    for number in 0..arguments.messages {
        let work = Work { payload: Payload::new(arguments.seed, number) };
        client.insert(work).opts(options(arguments.keys)).await?;
        reach(events, 1).await?;
    }
    running.stop().await?;
    Ok(Rates::default())
}

fn options(keys: bool) -> InsertOpts {
    let options = InsertOpts::default();
    if keys { options.with_unique(UniqueOpts::new().with_by_args(true)) } else { options }
}

/// Waits for so many events, each sent after the job's new state was committed.
async fn reach(events: &mut EventReceiver, count: u32) -> anyhow::Result<()> {
    for done in 0..count {
        let event = tokio::time::timeout(LIMIT, events.recv())
            .await
            .with_context(|| format!("{done} of {count} jobs had ended after {} s", LIMIT.as_secs()))??;
        let job = event.as_job().context("an event without its job")?;
        ensure!(job.job.finalized_at.is_some(), "a job of the benchmark failed: {:?}", job.job.errors);
    }
    Ok(())
}

async fn insert(client: &Client, batches: Vec<Vec<Payload>>, arguments: &Arguments) -> anyhow::Result<()> {
    let batches = Arc::new(Mutex::new(batches.into_iter()));
    let producers: Vec<_> = (0..arguments.producers)
        .map(|_| {
            let (client, batches, keys) = (client.clone(), Arc::clone(&batches), arguments.keys);
            tokio::spawn(async move {
                loop {
                    let batch = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(batch) = batch else { return anyhow::Ok(()) };
                    let jobs = batch.into_iter().map(|payload| (Work { payload }, options(keys)));
                    let inserted = client.insert_many(jobs).await?;
                    ensure!(
                        inserted.iter().all(|job| !job.unique_skipped_as_duplicate),
                        "a key of the benchmark was known already"
                    );
                }
            })
        })
        .collect();
    for producer in producers {
        producer.await??;
    }
    Ok(())
}

async fn records(pool: &SqlitePool) -> anyhow::Result<Vec<Record>> {
    let rows = sqlx::query("select args ->> 'key', state, metadata -> 'output' from river_job").fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let state: String = row.try_get(1)?;
            Ok(Record { key: row.try_get(0)?, completed: state == "completed", result: row.try_get(2)? })
        })
        .collect()
}

/// Everything of a finished job that its copies have in common with it.
const COPY: &str = "
    with recursive n(i) as (select 1 union all select i + 1 from n where i < ?1)
    insert into river_job (args, attempt, attempted_at, attempted_by, created_at, errors, finalized_at, kind,
        max_attempts, metadata, priority, queue, scheduled_at, state, tags, unique_key, unique_states)
    select jsonb_set(args, '$.key', 'preloaded-' || i), attempt, attempted_at, attempted_by, created_at, errors,
        finalized_at, kind, max_attempts, metadata, priority, queue, scheduled_at, state, tags,
        case when unique_key is null then null else randomblob(32) end, unique_states
    from river_job, n where river_job.id = (select max(id) from river_job)";

/// One job through its life, and then copies of its row: through the queue itself it would take minutes.
async fn preload(
    client: &Client,
    events: &mut EventReceiver,
    file: &Path,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let mut running = client.start()?;
    let work = Work { payload: Payload::pattern() };
    client.insert(work).opts(options(arguments.keys)).await?;
    reach(events, 1).await?;
    running.stop().await?;
    let fast = SqliteConnectOptions::new().filename(file).synchronous(SqliteSynchronous::Off);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(fast).await?;
    sqlx::query(COPY).bind(arguments.preload - 1).execute(&pool).await?;
    sqlx::query("pragma wal_checkpoint(truncate)").execute(&pool).await?;
    pool.close().await;
    Ok(())
}
