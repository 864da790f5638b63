//! A directory with a store in it, the program run in that directory, and messages brought into any state.

use std::cell::{Cell, OnceCell};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tidegate::engine::Opening;
use tidegate::journal::{EffectAnswer, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate::lifecycle::Outcome;
use tidegate::message::{Failure, NewMessage, Payload};
use tidegate::retry::Policy;
use tidegate::store::{ClaimRequest, Enqueued, Journal, JournalWrite, Lease, QueueSlots, Settle};
use tidegate::{
    Address, EffectName, Engine, IdempotencyKey, Kind, MessageId, Nonce, QueueName, Store, SystemRandom, Tenant,
    WorkerId,
};

use tidegate_pgcluster::Cluster;

use crate::serve::Server;

/// A place to work in, gone with the test.
pub(crate) struct Desk {
    /// Serves the store of the directory, if commands go over HTTP; begun with the first of them, and ended before the
    /// directory is removed.
    http: Option<OnceCell<Server>>,
    dir: tempfile::TempDir,
    /// The address of its store, if that is not the usual file in the directory.
    server: Option<String>,
}

thread_local! {
    static ON_A_SERVER: Cell<bool> = const { Cell::new(false) };
    static OVER_HTTP: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test with its desks behind `tidegate serve`: the same commands, the same words.
pub(crate) fn over_http(test: impl FnOnce()) {
    OVER_HTTP.set(true);
    test();
    OVER_HTTP.set(false);
}

/// Runs a test with its desks on a PostgreSQL server: the same commands, the same words.
pub(crate) fn on_a_server(test: impl FnOnce()) {
    ON_A_SERVER.set(true);
    test();
    ON_A_SERVER.set(false);
}

/// The address of a store that there is not yet, on the tests' server.
pub(crate) fn new_address() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let database = Cluster::shared().database("tidegate_cli").unwrap();
    format!("{database}?schema=desk_{}_{number}", std::process::id())
}

/// What a run of the program printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: Option<i32>,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
        Self { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }

    /// Asserts the exit code; gives back the run for more.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "standard output:\n{}\nstandard error:\n{}", self.out, self.err);
        self
    }

    /// Asserts that standard error says this.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{text:?} is not in:\n{}", self.err);
        self
    }

    /// Asserts that standard output has this somewhere.
    #[track_caller]
    pub(crate) fn shows(self, text: &str) -> Self {
        assert!(self.out.contains(text), "{text:?} is not in:\n{}", self.out);
        self
    }

    /// Asserts what standard output is, with placeholders for ids and times.
    #[track_caller]
    pub(crate) fn prints(self, expected: &str) -> Self {
        assert_eq!(masked(&self.out), expected, "standard error:\n{}", self.err);
        self
    }
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            http: OVER_HTTP.get().then(OnceCell::new),
            dir: tempfile::tempdir().unwrap(),
            server: ON_A_SERVER.get().then(new_address),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The password of its store's server, if it has one.
    pub(crate) fn password(&self) -> Option<String> {
        let (user, _) = self.server.as_deref()?.strip_prefix("postgres://")?.split_once('@')?;
        Some(user.split_once(':')?.1.to_owned())
    }

    /// Names of the files that are there.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = (std::fs::read_dir(self.dir.path()).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The program in this directory, with an empty environment. Over HTTP it asks the server, and for contents as well.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let Some(http) = &self.http else { return self.at_home(arguments) };
        let url = http.get_or_init(|| Server::of(self.at_home(&["serve", "--listen", "127.0.0.1:0"]))).url();
        self.at_home(&[&["--url", &url, "--reveal"], arguments].concat())
    }

    /// The program in this directory, with nothing in its environment but that it talks to people though no terminal is there.
    pub(crate) fn at_home(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.env("TIDEGATE_LOG_FORMAT", "text");
        if let Some(server) = &self.server {
            command.env("TIDEGATE_STORE", server);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // On a thread of its own, or a program that answers before it has read all would wait for us and we for it.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // It may end before it has read everything.
        let _may_be_closed = writer.join().unwrap();
        Ran::of(output)
    }

    /// Works on the store from within the test; it is closed again afterwards.
    pub(crate) fn prepare<T>(&self, work: impl AsyncFnOnce(&Bench) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let usual = || Address::from(self.path("tidegate.db"));
            let address = self.server.as_ref().map_or_else(usual, |server| server.parse().unwrap());
            let engine = Engine::open(&address, Opening::default()).await.unwrap();
            let made = work(&Bench { store: engine.store() }).await;
            engine.close().await;
            made
        })
    }
}

/// A store that is open inside a test. Queue and kind are both `deposit` here.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
}

impl Bench {
    pub(crate) async fn enqueue(&self, key: &str) -> MessageId {
        let message = NewMessage::new(
            QueueName::new("deposit").unwrap(),
            Kind::new("deposit").unwrap(),
            IdempotencyKey::new(key).unwrap(),
            Payload::from_json(format!(r#"{{"deposit":"{key}"}}"#)).unwrap(),
        );
        let enqueued = self.store.enqueue(vec![message]).await.unwrap().pop().unwrap().unwrap();
        let Enqueued::New { id } = enqueued else { panic!("{key} is not new: {enqueued:?}") };
        id
    }

    /// Leases of what waits, at most so many.
    pub(crate) async fn claim(&self, slots: u32, lease: Duration) -> Vec<Lease> {
        let request = ClaimRequest {
            worker: WorkerId::new("w1").unwrap(),
            tenant: Tenant::default(),
            queues: vec![QueueSlots { queue: QueueName::new("deposit").unwrap(), slots }],
            kinds: vec![(Kind::new("deposit").unwrap(), 1)],
            nonce: Nonce::new(&SystemRandom),
            lease,
        };
        self.store.claim(request).await.unwrap().leases
    }

    pub(crate) async fn lease(&self, key: &str) -> Lease {
        let id = self.enqueue(key).await;
        let lease = self.claim(1, Duration::from_secs(600)).await.pop().unwrap();
        assert_eq!(lease.message.id, id, "nothing else waits");
        lease
    }

    pub(crate) fn settlement(lease: &Lease, outcome: Outcome) -> Settle {
        Settle {
            id: lease.message.id,
            token: lease.token,
            outcome,
            journal: Vec::new(),
            then: Vec::new(),
            compensate: Vec::new(),
            unit: 0.0,
        }
    }

    pub(crate) async fn settle(&self, lease: &Lease, outcome: Outcome) {
        self.store.settle(vec![Self::settlement(lease, outcome)]).await.unwrap().pop().unwrap().unwrap();
    }

    pub(crate) async fn completed(&self, key: &str) -> MessageId {
        let lease = self.lease(key).await;
        self.settle(&lease, Outcome::Completed { result: r#"{"charge": "ch_1"}"#.into(), orphans: false }).await;
        lease.message.id
    }

    pub(crate) async fn failed(&self, key: &str) -> MessageId {
        let lease = self.lease(key).await;
        let failure = Failure::new("declined", "card expired");
        self.settle(&lease, Outcome::Permanent { failure, compensated: false, orphans: false }).await;
        lease.message.id
    }

    /// Every attempt is the last one from now on.
    pub(crate) async fn one_attempt(&self) {
        let policy = Policy { max_attempts: 1, ..Policy::default() };
        self.store.declare(vec![(Kind::new("deposit").unwrap(), policy)]).await.unwrap();
    }

    pub(crate) async fn dead(&self, key: &str) -> MessageId {
        self.one_attempt().await;
        let lease = self.lease(key).await;
        self.settle(&lease, timed_out()).await;
        lease.message.id
    }

    /// Parked with the open effect `capture`. Not "not found" is believed before `quarantine` is over.
    pub(crate) async fn parked(&self, key: &str, quarantine: Duration) -> MessageId {
        let lease = self.lease(key).await;
        self.open_effect(&lease, "capture", quarantine).await;
        let failure = Failure::new("timeout", "no reply within 2 s");
        self.settle(&lease, Outcome::Unknown { failure }).await;
        lease.message.id
    }

    /// An intent that was answered with nothing.
    pub(crate) async fn open_effect(&self, lease: &Lease, name: &str, quarantine: Duration) {
        let effect = EffectId { name: EffectName::new(name).unwrap(), item: None };
        let reached =
            Reached { effect: effect.clone(), policy: EffectPolicy::AtMostOnce, request_hash: [1; 16], quarantine };
        let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::from_secs(3600) };
        self.journal(lease, JournalWrite::Intent { reached, times }).await;
        let answer = EffectAnswer::Unknown { why: "no reply within 2 s".to_owned() };
        self.journal(lease, JournalWrite::Answer { effect, seq: 0, answer }).await;
    }

    /// An intent that was answered with this value.
    pub(crate) async fn confirm_effect(&self, lease: &Lease, name: &str, value: &str) {
        let effect = EffectId { name: EffectName::new(name).unwrap(), item: None };
        let policy = EffectPolicy::AtMostOnce;
        let reached = Reached { effect: effect.clone(), policy, request_hash: [1; 16], quarantine: Duration::ZERO };
        let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::from_secs(3600) };
        self.journal(lease, JournalWrite::Intent { reached, times }).await;
        let answer = EffectAnswer::Confirmed { value: value.into() };
        self.journal(lease, JournalWrite::Answer { effect, seq: 0, answer }).await;
    }

    async fn journal(&self, lease: &Lease, write: JournalWrite) {
        let journal = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
        self.store.journal(vec![journal]).await.unwrap().pop().unwrap().unwrap();
    }

    pub(crate) async fn state(&self, id: MessageId) -> &'static str {
        self.store.progress(vec![id]).await.unwrap().pop().unwrap().unwrap().state.as_str()
    }
}

pub(crate) fn timed_out() -> Outcome {
    Outcome::Retryable { failure: Failure::new("timeout", "gateway did not answer"), after: None }
}

/// A text with `ID1`, `ID2`, .. for message ids in the order of their appearance, `TIME` for times, `KEY` for effect keys,
/// `OPERATION` for operation ids.
pub(crate) fn masked(text: &str) -> String {
    let mut ids: Vec<&str> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(id) = rest.get(..17).filter(|id| id.starts_with("msg_") && !id.contains(char::is_whitespace)) {
            let place = ids.iter().position(|known| *known == id).unwrap_or_else(|| {
                ids.push(id);
                ids.len() - 1
            });
            out.push_str(&format!("ID{}", place + 1));
            rest = &rest[17..];
        } else if rest.get(..24).is_some_and(is_time) {
            out.push_str("TIME");
            rest = &rest[24..];
        } else if rest.get(..32).is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            out.push_str("KEY");
            rest = &rest[32..];
        } else if rest.starts_with("redrive-") {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
            out.push_str("OPERATION");
            rest = &rest[end..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// `2026-11-24T14:16:32.017Z`
fn is_time(text: &str) -> bool {
    let shape = "dddd-dd-ddTdd:dd:dd.dddZ";
    text.bytes()
        .zip(shape.bytes())
        .all(|(byte, shape)| if shape == b'd' { byte.is_ascii_digit() } else { byte == shape })
}

#[test]
fn what_differs_from_run_to_run_is_masked() {
    let text =
        "msg_1m86ympgh0000 at 2026-11-24T14:16:32.017Z, msg_1m86ympgh0001 and msg_1m86ympgh0000 ä redrive-17-ab, x";
    assert_eq!(masked(text), "ID1 at TIME, ID2 and ID1 ä OPERATION, x");
}
