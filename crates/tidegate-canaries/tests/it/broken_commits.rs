//! Commits that fail: what was acknowledged is there, what belongs together is there together, and the store stops.
//!
//! A copy of this process works on a store whose log must not grow beyond some size; the system refuses the write that
//! would, in the middle of a commit. Everything between two such sizes is tried, so that every commit is the one that fails.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::store::{ClaimRequest, QueueSlots, Settle};
use tidegate_core::{IdempotencyKey, Kind, MessageId, Nonce, QueueName, Store, Tenant, WorkerId};
use tidegate_sqlite::{Options, SqliteStore};
use tidegate_testkit::SeededRandom;

/// How the copy is told its store.
const STORE: &str = "TIDEGATE_TEST_STORE";
/// Before this stands what the copy says.
const SAYS: &str = "@copy ";
/// Bytes of what follows: its commit is to be long.
const LONG: usize = 40_000;
/// More messages than fit under any of the limits.
const MOST: u32 = 200;

fn open(path: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(path, Options::default()).unwrap()
}

fn message(key: &str, payload: &str) -> NewMessage {
    let (queue, kind) = (QueueName::new("work").unwrap(), Kind::new("work").unwrap());
    NewMessage::new(queue, kind, IdempotencyKey::new(key).unwrap(), Payload::from_json(payload).unwrap())
}

fn follow_up(n: u32) -> NewMessage {
    let queue = QueueName::new("next").unwrap();
    NewMessage { queue, ..message(&format!("next-{n}"), &format!("\"{}\"", "x".repeat(LONG))) }
}

/// What a copy was told before its store failed, and whether the store still answered afterwards.
#[derive(Debug, Default)]
struct Told {
    enqueued: Vec<u32>,
    settled: Vec<u32>,
    answered_after: bool,
}

fn say(what: &str) {
    // The harness leaves its own line unfinished; a line that starts anew can be told from it.
    writeln!(std::io::stdout(), "\n{SAYS}{what}").expect("the parent listens");
}

/// Works until a call is refused, and says what was acknowledged.
async fn work(store: &SqliteStore) {
    let random = SeededRandom::new(7);
    for n in 0..MOST {
        let Ok(mut verdicts) = store.enqueue(vec![message(&format!("work-{n}"), "1")]).await else { return };
        verdicts.pop().unwrap().unwrap();
        say(&format!("enqueued {n}"));
        let request = ClaimRequest {
            worker: WorkerId::new("copy").unwrap(),
            tenant: Tenant::default(),
            queues: vec![QueueSlots { queue: QueueName::new("work").unwrap(), slots: 1 }],
            kinds: vec![(Kind::new("work").unwrap(), 1)],
            nonce: Nonce::new(&random),
            lease: std::time::Duration::from_secs(3600),
        };
        let Ok(claimed) = store.claim(request).await else { return };
        let settle = Settle {
            id: claimed.leases[0].message.id,
            token: claimed.leases[0].token,
            outcome: Outcome::Completed { result: "true".into(), orphans: false },
            journal: Vec::new(),
            then: vec![follow_up(n)],
            compensate: Vec::new(),
            unit: 0.0,
        };
        let Ok(mut verdicts) = store.settle(vec![settle]).await else { return };
        verdicts.pop().unwrap().unwrap();
        say(&format!("settled {n}"));
    }
    panic!("no commit failed");
}

#[test]
fn a_copy_that_works_until_its_disk_refuses() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a copy")]
    let Ok(path) = std::env::var(STORE) else { return };
    tidegate_testkit::run(async {
        let store = open(Path::new(&path));
        work(&store).await;
        if store.stats().await.is_ok() {
            say("answered");
        }
    });
}

/// Starts a copy whose files must not grow beyond this many blocks of 512 bytes.
fn run_under(path: &Path, blocks: u32) -> Told {
    // The shell sets what only the process itself can set, and the copy inherits it.
    let script = format!("trap \"\" XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["broken_commits::a_copy_that_works_until_its_disk_refuses", "--exact", "--nocapture"])
        .env(STORE, path)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let mut told = Told::default();
    for line in said.lines().filter_map(|line| line.strip_prefix(SAYS)) {
        match line.split_once(' ') {
            Some(("enqueued", n)) => told.enqueued.push(n.parse().unwrap()),
            Some(("settled", n)) => told.settled.push(n.parse().unwrap()),
            _ => told.answered_after |= line == "answered",
        }
    }
    told
}

async fn find(store: &SqliteStore, queue: &str, key: String) -> Option<MessageId> {
    let (queue, key) = (QueueName::new(queue).unwrap(), IdempotencyKey::new(&key).unwrap());
    store.find(Tenant::default(), queue, key).await.unwrap()
}

/// Everything that is wrong with what the next process finds.
async fn wrong(path: &Path, told: &Told) -> Vec<String> {
    let mut wrong = Vec::new();
    if told.answered_after {
        wrong.push("the store went on after a commit whose outcome nobody knows".to_owned());
    }
    let store = open(path);
    for n in 0..MOST {
        let id = find(&store, "work", format!("work-{n}")).await;
        if id.is_none() && told.enqueued.contains(&n) {
            wrong.push(format!("message {n} was acknowledged and is lost"));
        }
        let state = match id {
            Some(id) => store.inspect(vec![id]).await.unwrap().pop().unwrap().map(|view| view.state),
            None => None,
        };
        let completed = state == Some(State::Completed);
        if told.settled.contains(&n) && !completed {
            wrong.push(format!("the settlement of message {n} was acknowledged, and it is {state:?}"));
        }
        let followed = find(&store, "next", format!("next-{n}")).await.is_some();
        if followed != completed {
            wrong.push(format!("message {n} is {state:?}, and that its follow-up is there is {followed}"));
        }
    }
    wrong
}

#[test]
fn after_a_commit_that_failed_what_was_acknowledged_is_there_and_the_store_had_stopped() {
    let mut reached = 0;
    for blocks in (512..800).step_by(24) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tide.db");
        drop(open(&path));
        let told = run_under(&path, blocks);
        reached += told.settled.len();
        let wrong = tidegate_testkit::run(wrong(&path, &told));
        assert!(wrong.is_empty(), "files of at most {blocks} blocks: {wrong:#?}");
    }
    assert!(reached > 12, "nothing much was done before the disk refused");
}
