//! Honker, queues in SQLite.
//!
//! It opens its one connection with `synchronous=NORMAL`, so what it acknowledges may be gone after a power cut. Here the
//! same connection is set to FULL through `with_conn` before anything is measured, and asked. Batches are its documented
//! fast way: many enqueues in a transaction, `claim_batch`, `ack_batch`. It has no keys, and deletes what is done. A result
//! would be a commit of its own (`save_result`), so none is kept here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use honker::{Database, EnqueueOpts, Queue, QueueOpts};
use peer_line::{
    Acknowledged, Arguments, BUILD, Contract, Counts, LIMIT, Payload, Pragmas, Rates, Report, Runs, Stopwatch,
};

const WORKER: &str = "bench";

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1)).map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string(&run(&arguments)?)?);
    Ok(())
}

fn run(arguments: &Arguments) -> anyhow::Result<Report> {
    ensure!(!arguments.keys, "--keys on: honker has no keys");
    let fetch: i64 = arguments.special("fetch", 1000).map_err(anyhow::Error::msg)?;
    let db = Database::open(arguments.dir.join("honker.db"))?;
    let pragmas = db.with_conn(|conn| -> anyhow::Result<Pragmas> {
        conn.execute_batch("pragma synchronous = full")?;
        let number = |pragma: &str| conn.query_row(pragma, [], |row| row.get(0));
        Ok(Pragmas {
            asked_by: "this program, on the queue's one connection",
            connections: 1,
            journal_mode: conn.query_row("pragma journal_mode", [], |row| row.get(0))?,
            synchronous: number("pragma synchronous")?,
            wal_autocheckpoint: Some(number("pragma wal_autocheckpoint")?),
        })
    })?;
    let warm_up = if arguments.serial { 0 } else { arguments.warm_up() };
    let runs = Arc::new(Runs::new(arguments.seed, warm_up + arguments.messages));
    let rates = if arguments.serial { serial(&db, &runs, arguments)? } else { loaded(&db, &runs, arguments, fetch)? };
    let (left, sqlite_version) = db.with_conn(|conn| -> anyhow::Result<_> {
        const LEFT: &str =
            "select payload ->> 'key' from _honker_live union all select payload ->> 'key' from _honker_dead";
        let mut statement = conn.prepare(LEFT)?;
        let left = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        Ok((left, conn.query_row("select sqlite_version()", [], |row| row.get(0))?))
    })?;
    Ok(Report {
        name: "honker",
        version: "0.5.0",
        contract: Contract {
            keys: "none",
            results: "not kept here: each would be a commit of its own",
            history: "nothing: the row is deleted",
            fencing: "the worker's name and the claim's time",
        },
        acknowledged: Acknowledged {
            enqueue: "fsynced, a transaction of many",
            completion: "fsynced, a batch in one commit",
        },
        sqlite_version,
        pragmas,
        settings: HashMap::from([
            ("producers", arguments.producers.to_string()),
            ("enqueue batch", arguments.batch.to_string()),
            ("claim and ack batch", fetch.to_string()),
            ("connections", "1".to_owned()),
        ]),
        messages: arguments.messages,
        preloaded: 0,
        keys: false,
        serial: arguments.serial,
        enqueue_per_s: rates.enqueue,
        lifecycles_per_s: rates.lifecycles,
        cpu_us_per_message: rates.cpu_us,
        counts: Counts::of_absence(&runs, left),
        build: BUILD,
    })
}

fn queue(db: &Database) -> Queue {
    db.queue("bench", QueueOpts::default())
}

fn loaded(db: &Database, runs: &Arc<Runs>, arguments: &Arguments, fetch: i64) -> anyhow::Result<Rates> {
    let warm_up = arguments.warm_up();
    let first = Payload::batches(arguments.seed, 0..warm_up, arguments.batch);
    let rest = Payload::batches(arguments.seed, warm_up..warm_up + arguments.messages, arguments.batch);
    let watch = Stopwatch::start();
    enqueue(db, first, arguments.producers)?;
    let enqueue_per_s = watch.rate(warm_up);

    let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let worker = thread::spawn({
        let (db, runs, stop, acked) = (db.clone(), Arc::clone(runs), Arc::clone(&stop), Arc::clone(&acked));
        move || work(&db, &runs, fetch, &stop, &acked)
    });
    let lifecycles = reach(&acked, warm_up).and_then(|()| {
        let watch = Stopwatch::start();
        enqueue(db, rest, arguments.producers)?;
        reach(&acked, warm_up + arguments.messages)?;
        Ok((watch.rate(arguments.messages), watch.cpu_us(arguments.messages)))
    });
    stop.store(true, Ordering::SeqCst);
    worker.join().ok().context("the worker panicked")??;
    let (lifecycles, cpu_us) = lifecycles?;
    Ok(Rates { enqueue: Some(enqueue_per_s), lifecycles: Some(lifecycles), cpu_us })
}

fn serial(db: &Database, runs: &Runs, arguments: &Arguments) -> anyhow::Result<Rates> {
    let queue = queue(db);
    for number in 0..arguments.messages {
        queue.enqueue(&Payload::new(arguments.seed, number), EnqueueOpts::default())?;
        let job = queue.claim_one(WORKER)?.context("the job that was enqueued is not there")?;
        runs.handle(&job.payload_as()?);
        ensure!(job.ack()?, "a job was not acknowledged");
    }
    Ok(Rates::default())
}

fn enqueue(db: &Database, batches: Vec<Vec<Payload>>, producers: u32) -> anyhow::Result<()> {
    let batches = Mutex::new(batches.into_iter());
    thread::scope(|scope| {
        let producers: Vec<_> = (0..producers)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let batch = batches.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                        let Some(batch) = batch else { return anyhow::Ok(()) };
                        let transaction = db.transaction()?;
                        for payload in &batch {
                            queue(db).enqueue_tx(&transaction, payload, EnqueueOpts::default())?;
                        }
                        transaction.commit()?;
                    }
                })
            })
            .collect();
        producers.into_iter().try_for_each(|producer| producer.join().ok().context("a producer panicked")?)
    })
}

/// Claims, handles and acknowledges in batches; woken by the database's own update watcher when there is nothing.
fn work(db: &Database, runs: &Runs, fetch: i64, stop: &AtomicBool, acked: &AtomicU32) -> anyhow::Result<()> {
    let (queue, updates) = (queue(db), db.update_events());
    while !stop.load(Ordering::SeqCst) {
        let jobs = queue.claim_batch(WORKER, fetch)?;
        if jobs.is_empty() {
            updates.recv_timeout(Duration::from_millis(50))?;
            continue;
        }
        let mut ids = Vec::with_capacity(jobs.len());
        for job in &jobs {
            runs.handle(&job.payload_as()?);
            ids.push(job.id);
        }
        let done = u32::try_from(queue.ack_batch(&ids, WORKER)?)?;
        ensure!(done as usize == ids.len(), "{done} of {} jobs were acknowledged", ids.len());
        acked.fetch_add(done, Ordering::SeqCst);
    }
    Ok(())
}

fn reach(acked: &AtomicU32, count: u32) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    while acked.load(Ordering::SeqCst) < count {
        ensure!(!watch.is_over(LIMIT), "{count} jobs had not ended after {} s", LIMIT.as_secs());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
