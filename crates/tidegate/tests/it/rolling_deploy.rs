//! Workers of two versions at once, as processes of their own on one PostgreSQL: what only the new one knows waits for it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidegate::{Context, Handled, Message, MessageId, State, Tidegate};
use tidegate_pgcluster::Cluster;

/// How a worker learns which store is its, and of which version it is.
const STORE: &str = "TIDEGATE_TEST_ROLLING_STORE";
const VERSION: &str = "TIDEGATE_TEST_ROLLING_VERSION";
/// Nothing here takes that long.
const LONG: Duration = Duration::from_secs(60);

/// What the old program knows.
#[derive(Serialize, Deserialize)]
struct OldPay {
    order: String,
    eur: i64,
}

impl Message for OldPay {
    const KIND: &'static str = "pay";
    type Answer = i64;
    fn key(&self) -> String {
        self.order.clone()
    }
}

/// What the new one makes of it.
#[derive(Serialize, Deserialize)]
struct Pay {
    order: String,
    cents: i64,
}

impl Message for Pay {
    const KIND: &'static str = "pay";
    const VERSION: u32 = 2;
    type Answer = i64;
    fn key(&self) -> String {
        self.order.clone()
    }

    fn upcast(_: u32, payload: Value) -> Result<Value, String> {
        let eur = payload["eur"].as_i64().ok_or("eur is missing")?;
        Ok(json!({ "order": payload["order"], "cents": eur * 100 }))
    }
}

/// A kind that the old program has never heard of.
#[derive(Serialize, Deserialize)]
struct Refund {
    order: String,
}

impl Message for Refund {
    const KIND: &'static str = "refund";
    type Answer = i64;
    fn key(&self) -> String {
        self.order.clone()
    }
    // On the queue that the old program works on: there it must not stand in anybody's way.
    const QUEUE: &'static str = "pay";
}

/// Read by the test, which started this process.
#[expect(clippy::print_stdout, reason = "this is how the processes of the test talk")]
fn tell_ran(order: &str) {
    println!("\n@ran {order}");
}

async fn old_pay(_: Context, pay: OldPay) -> Handled<i64> {
    tell_ran(&pay.order);
    Ok(pay.eur * 100)
}

async fn pay(_: Context, pay: Pay) -> Handled<i64> {
    tell_ran(&pay.order);
    Ok(pay.cents)
}

async fn refund(_: Context, refund: Refund) -> Handled<i64> {
    tell_ran(&refund.order);
    Ok(0)
}

#[test]
fn a_worker_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let (Ok(url), Ok(version)) = (std::env::var(STORE), std::env::var(VERSION)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tide = Tidegate::open(&url).await.unwrap();
        let worker = tide.worker();
        let worker = if version == "1" { worker.handle(old_pay) } else { worker.handle(pay).handle(refund) };
        let worker = worker.start().await.unwrap();
        println!("\n@works");
        // The parent closes the pipe, or is gone.
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
        worker.stop().await.unwrap();
        tide.close().await;
    });
}

/// A worker of one version.
struct Process {
    child: Child,
    ran: Receiver<String>,
}

impl Process {
    fn start(url: &str, version: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["rolling_deploy::a_worker_in_a_process_of_its_own", "--exact", "--nocapture"])
            .env(STORE, url)
            .env(VERSION, version.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "@works"), "a worker says that it works");
        let (sender, ran) = channel();
        // Ends with the child, which ends with `self` at the latest.
        std::thread::spawn(move || {
            let keys = lines.filter_map(|line| line.strip_prefix("@ran ").map(str::to_owned));
            keys.map_while(|key| sender.send(key).ok()).for_each(drop);
        });
        Self { child, ran }
    }

    /// Has it drain, and says what it ran, sorted.
    fn stop(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
        let mut ran: Vec<String> = self.ran.iter().collect();
        ran.sort();
        ran
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn names(of: &str, range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("{of}-{n:02}")).collect()
}

async fn enqueue<M: Message>(tide: &Tidegate, messages: impl IntoIterator<Item = M>) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for message in messages {
        ids.push(tide.enqueue(message).await.unwrap().id());
    }
    ids
}

async fn completed(tide: &Tidegate, ids: &[MessageId], cents: i64) {
    for id in ids {
        let answer = tide.sent::<Pay>(*id).answer(LONG).await.unwrap();
        assert_eq!(answer.completed().unwrap(), cents);
    }
    // Each at its first attempt: nobody had it who could not read it.
    for view in tide.store().inspect(ids.to_vec()).await.unwrap() {
        assert_eq!(view.unwrap().counters.attempt, 1);
    }
}

#[tokio::test]
async fn what_only_the_new_version_knows_waits_for_it_and_stands_in_nobodys_way() {
    let url = format!("{}?schema=rolling_{}", Cluster::shared().database("tidegate").unwrap(), std::process::id());
    let tide = Tidegate::builder().housekeeping(false).open(&url).await.unwrap();
    let old_shape = |names: Vec<String>| names.into_iter().map(|order| OldPay { order, eur: 5 });
    let new_shape = |names: Vec<String>| names.into_iter().map(|order| Pay { order, cents: 700 });
    let refunds = |names: Vec<String>| names.into_iter().map(|order| Refund { order });

    // The producers are new already, and the worker is not.
    let old = Process::start(&url, 1);
    let mut new_only = enqueue(&tide, new_shape(names("new", 0..20))).await;
    new_only.extend(enqueue(&tide, refunds(names("refund", 0..5))).await);
    let first = enqueue(&tide, old_shape(names("old", 0..20))).await;
    completed(&tide, &first, 500).await;
    for view in tide.store().inspect(new_only.clone()).await.unwrap() {
        let view = view.unwrap();
        assert_eq!((view.state, view.counters.claims), (State::Ready, 0), "it waits, and nobody touched it");
    }

    // Both at once.
    let new = Process::start(&url, 2);
    completed(&tide, &new_only[..20], 700).await;
    completed(&tide, &new_only[20..], 0).await;
    let second = enqueue(&tide, old_shape(names("old", 20..40))).await;
    let third = enqueue(&tide, new_shape(names("new", 20..40))).await;
    completed(&tide, &second, 500).await;
    completed(&tide, &third, 700).await;

    // The old one is gone: the new one reads what it left.
    let ran_by_old = old.stop();
    let fourth = enqueue(&tide, old_shape(names("old", 40..50))).await;
    completed(&tide, &fourth, 500).await;
    let mut ran = new.stop();
    assert!(ran_by_old.iter().all(|key| key.starts_with("old-")), "{ran_by_old:?}");
    ran.extend(ran_by_old);
    ran.sort();
    assert_eq!(ran, [names("new", 0..40), names("old", 0..50), names("refund", 0..5)].concat(), "each of them once");
    tide.close().await;
}
