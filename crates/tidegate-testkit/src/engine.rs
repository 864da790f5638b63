//! What an engine gives the test kit so that it can be tried: places to open stores on, and processes that compete.
//!
//! A test crate implements [`Engine`] once and expands [`conformance!`](crate::conformance!) beside it. For claimers in
//! processes of their own the test binary runs itself again: [`contend_in_processes`] starts it with a text that the
//! child hands to [`claimer_process`]. How that text travels (an argument, a variable of the environment) is the test
//! crate's affair; the kit reads neither.

use std::any::Any;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_core::lifecycle::Outcome;
use tidegate_core::store::{ClaimRequest, QueueSlots, Settle};
use tidegate_core::{Clock, Kind, MessageId, Nonce, QueueName, Store, StoreError, SystemClock, Tenant, WorkerId};

use crate::clock::SeededRandom;

/// An engine under test.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// A place that no store was opened on yet; what it needs (a directory, a database) is removed with it.
    async fn fresh(&self) -> Place;

    /// Opens a store on a place, with the engine's default limits; creates it if it is not there yet.
    ///
    /// Opened twice, the second handle shares nothing with the first but the place, as in another process.
    ///
    /// # Errors
    /// Whatever the engine says.
    async fn open(&self, place: &Place, clock: Arc<dyn Clock>) -> Result<Arc<dyn Store>, StoreError>;

    /// Closes a handle in good order and returns when it is closed. The default drops it, for engines where that is all.
    async fn close(&self, store: Arc<dyn Store>) {
        drop(store);
    }

    /// Lets claimers loose on one place, all at the same moment, each in an operating-system process of its own.
    ///
    /// An engine whose stores live in the memory of one process runs them with [`contend_in_threads`] instead.
    async fn contend(&self, place: &Place, claimers: Vec<Claimer>) -> Vec<Vec<Taken>>;
}

/// Where a store is.
#[derive(Debug)]
pub struct Place {
    address: String,
    #[expect(dead_code, reason = "kept for what its drop removes")]
    keep: Box<dyn Any + Send + Sync>,
}

impl Place {
    /// A place by its path, URL or name, with a value that is dropped when the place is no longer needed.
    pub fn new(address: impl Into<String>, keep: impl Any + Send + Sync) -> Self {
        Self { address: address.into(), keep: Box::new(keep) }
    }

    /// The path, URL or name.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// What one competitor does: claims from a queue and completes what it got until there is nothing left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claimer {
    /// Where the store is.
    pub address: String,
    /// Its name; also the seed of its nonces.
    pub number: u32,
    /// From which queue.
    pub queue: QueueName,
    /// Which kind, version 1.
    pub kind: Kind,
    /// At most so many at a time.
    pub slots: u32,
}

/// A message that a competitor got, and the count of claims in its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Which message.
    pub id: MessageId,
    /// How often it had been claimed, this time included.
    pub claims: u32,
}

impl Claimer {
    /// Claims and completes until a claim comes back empty.
    ///
    /// # Errors
    /// The first the store gives.
    ///
    /// # Cancel safety
    /// Dropped half-way, it leaves leases behind.
    pub async fn run(&self, store: &dyn Store) -> Result<Vec<Taken>, StoreError> {
        let random = SeededRandom::new(u64::from(self.number) + 1_000_000);
        let mut taken = Vec::new();
        loop {
            let request = ClaimRequest {
                worker: WorkerId::new(&format!("claimer-{}", self.number))?,
                tenant: Tenant::default(),
                queues: vec![QueueSlots { queue: self.queue.clone(), slots: self.slots }],
                kinds: vec![(self.kind.clone(), 1)],
                nonce: Nonce::new(&random),
                lease: Duration::from_secs(3600),
            };
            let claimed = store.claim(request).await?;
            if claimed.leases.is_empty() {
                return Ok(taken);
            }
            let batch: Vec<Settle> = (claimed.leases.iter())
                .map(|lease| Settle {
                    id: lease.message.id,
                    token: lease.token,
                    outcome: Outcome::Completed { result: "true".into(), orphans: false },
                    journal: Vec::new(),
                    then: Vec::new(),
                    compensate: Vec::new(),
                    unit: 0.0,
                })
                .collect();
            taken.extend(claimed.leases.iter().map(|l| Taken { id: l.message.id, claims: l.token.claims }));
            for verdict in store.settle(batch).await? {
                verdict?;
            }
        }
    }
}

/// Runs each claimer on a thread with a handle of its own, all released by one barrier.
///
/// # Panics
/// When a claimer's store refuses something.
#[must_use]
pub fn contend_in_threads(claimers: Vec<(Claimer, Arc<dyn Store>)>) -> Vec<Vec<Taken>> {
    let barrier = Barrier::new(claimers.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (claimers.into_iter())
            .map(|(claimer, store)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    crate::run(claimer.run(&*store)).expect("a claimer's store answers")
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a claimer does not panic")).collect()
    })
}

/// Before this stands every line a claimer process says: its output also carries the test harness's.
const SAYS: &str = "@claimer ";

/// Runs each claimer in a process of its own, all released at the same moment, after every one of them opened its store.
///
/// `command` makes the command that starts a child with an assignment; the child must call [`claimer_process`] with it.
/// Blocks until all have ended.
///
/// # Panics
/// When a process cannot be started, fails, or says something else than a claimer does.
pub fn contend_in_processes(claimers: Vec<Claimer>, command: impl Fn(&str) -> Command) -> Vec<Vec<Taken>> {
    let mut processes: Vec<Process> = (claimers.into_iter())
        .map(|claimer| {
            let assignment = serde_json::to_string(&claimer).expect("a claimer is plain data");
            Process::start(command(&assignment))
        })
        .collect();
    for process in &mut processes {
        assert_eq!(process.hear().as_deref(), Some("ready"), "a claimer opens its store and says so");
    }
    for process in &mut processes {
        process.release();
    }
    processes.into_iter().map(Process::taken).collect()
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the test binary starts itself");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("asked for above"));
        Self { child, input, output }
    }

    /// The next thing it says; none when it is done.
    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.output.read_line(&mut line).expect("a claimer's output is text") == 0 {
                return None;
            }
            if let Some((_, said)) = line.split_once(SAYS) {
                return Some(said.trim_end().to_owned());
            }
        }
    }

    fn release(&mut self) {
        // Dropping the pipe ends the child's read: the barrier opens.
        drop(self.input.take());
    }

    fn taken(mut self) -> Vec<Taken> {
        let mut taken = Vec::new();
        while let Some(said) = self.hear() {
            taken.push(serde_json::from_str(&said).expect("a claimer says what it took"));
        }
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "a claimer ended with {status}");
        taken
    }
}

impl Drop for Process {
    /// A parent that panics leaves no child behind.
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The body of a claimer process: opens the store, says so, waits for the release, claims, and says what it got.
///
/// # Panics
/// When the assignment is not one, or the store refuses something: the parent sees the exit code.
pub fn claimer_process<F>(assignment: &str, open: impl FnOnce(String, Arc<dyn Clock>) -> F)
where
    F: Future<Output = Result<Arc<dyn Store>, StoreError>>,
{
    let claimer: Claimer = serde_json::from_str(assignment).expect("the parent wrote the assignment");
    crate::run(async {
        let store = open(claimer.address.clone(), Arc::new(SystemClock::new())).await.expect("the place can be opened");
        say("ready");
        let mut line = String::new();
        io::stdin().read_line(&mut line).expect("the parent closes the pipe");
        for taken in claimer.run(&*store).await.expect("the store answers") {
            say(&serde_json::to_string(&taken).expect("plain data"));
        }
    });
}

fn say(what: &str) {
    // The harness leaves its own line unfinished; a line that starts anew can be told from it.
    writeln!(io::stdout(), "\n{SAYS}{what}").expect("the parent listens");
}
