//! The library itself over HTTP: a worker whose store is a server's, on a network that loses replies.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{Context, EffectAnswer, Handled, Kind, Message, Policy, QueueName, State, StoreErrorKind, Tidegate};
use tidegate_api::{ProblemType, Refusal};

use crate::network::Net;
use crate::refused::{token, with_token};
use crate::stage::Stage;

#[derive(Serialize, Deserialize)]
struct Deposit {
    number: u32,
}

impl Message for Deposit {
    const KIND: &'static str = "deposit";
    type Answer = String;
    fn key(&self) -> String {
        format!("dep-{}", self.number)
    }
}

/// What a gateway was asked for, by key: it does what it is asked once for each key, and counts.
type Ledger = Arc<Mutex<HashMap<String, u32>>>;

async fn capture(ledger: Ledger, context: Context, _: Deposit) -> Handled<String> {
    let day = Duration::from_secs(24 * 3600 * 7);
    let effect = context.effect("capture").keyed(day);
    effect
        .call(|key| {
            let key = key.as_str().to_owned();
            *ledger.lock().unwrap().entry(key.clone()).or_default() += 1;
            async move { EffectAnswer::confirmed(format!("ch_{key}")) }
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_over_a_network_that_loses_replies_takes_each_message_and_sends_each_effect_under_one_key() {
    const MESSAGES: u32 = 40;
    let net = Net::new(None).await;
    let store = net.store(&format!("http://{}", net.proxy), |_| {});
    let tide = Tidegate::builder().housekeeping(false).store(Arc::new(store)).unwrap();
    let ledger = Ledger::default();
    let with_ledger = Arc::clone(&ledger);
    let worker = tide.worker().handle(move |context, message| capture(Arc::clone(&with_ledger), context, message));
    let worker = worker.start().await.unwrap();
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        if number % 4 == 0 {
            net.lose.fetch_add(1, Ordering::SeqCst);
        }
        sent.push(tide.enqueue(Deposit { number }).await.unwrap());
    }
    for one in &sent {
        let answer = one.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap();
        assert!(answer.starts_with("ch_"), "{answer}");
    }
    worker.stop().await.unwrap();
    assert_eq!(net.lose.load(Ordering::SeqCst), 0, "replies were lost");
    // One key for each deposit, and the server's own store says that each is done.
    assert_eq!(ledger.lock().unwrap().len(), MESSAGES as usize);
    let ids: Vec<_> = sent.iter().map(tidegate::Sent::id).collect();
    let found = net.tide.store().progress(ids).await.unwrap();
    assert!(found.into_iter().all(|progress| progress.unwrap().state == State::Completed));
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    number: u32,
}

impl Message for Receipt {
    const KIND: &'static str = "receipt";
    type Answer = u32;
    fn key(&self) -> String {
        format!("receipt-{}", self.number)
    }
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn tries(max_attempts: u32) -> Policy {
    Policy { max_attempts, ..Policy::default() }
}

#[tokio::test]
async fn a_worker_that_may_not_declare_the_policy_of_a_kind_says_what_holds_and_works() {
    // With one subscriber only, whether a line is wanted is asked of the thread that comes by first, and kept for all.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _listening = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let local = stage.tide.store();
    local.declare(vec![(Kind::new("deposit").unwrap(), tries(3))]).await.unwrap();
    // Another queue knows the kind of deposits as well.
    let elsewhere = tidegate::Options::default().queue(QueueName::new("elsewhere").unwrap());
    stage.tide.enqueue_with(Deposit { number: 0 }, elsewhere).await.unwrap();
    let scopes = ["work:deposit", "work:receipt", "produce", "read"];
    let remote = with_token(&stage.tide, Some(token(&stage.tide, "narrow", &scopes).await));
    let tide = Tidegate::builder().housekeeping(false).store(Arc::new(remote)).unwrap();
    let worker = tide.worker().name("w-1");
    let worker =
        worker.handle_with(async |_: Context, deposit: Deposit| Handled::Ok(deposit.number.to_string()), tries(9));
    let worker = worker.handle_with(async |_: Context, receipt: Receipt| Handled::Ok(receipt.number), tries(9));
    let worker = worker.start().await.unwrap();
    let sent = tide.enqueue(Deposit { number: 7 }).await.unwrap();
    assert_eq!(sent.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap(), "7");
    let receipt = tide.enqueue(Receipt { number: 7 }).await.unwrap();
    assert_eq!(receipt.answer(Duration::from_secs(60)).await.unwrap().completed().unwrap(), 7);
    worker.stop().await.unwrap();
    let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one warning: {text}") };
    for part in [
        "worker w-1 may not declare the policy of kind deposit",
        "hold, not those of this program",
        "narrow may not work",
    ] {
        assert!(warning.contains(part), "{part:?} is not in {warning}");
    }
    // Its own kind it has declared, and the other is as it was.
    for (id, expected) in [(sent.id(), 3), (receipt.id(), 9)] {
        let policy = local.explain(id).await.unwrap().unwrap().policy.unwrap();
        assert_eq!(policy.max_attempts, expected);
    }
}

#[tokio::test]
async fn a_worker_whose_token_is_not_known_does_not_start() {
    let stage = Stage::new().await;
    let remote = with_token(&stage.tide, Some("tg_nobodys".to_owned()));
    let tide = Tidegate::builder().housekeeping(false).store(Arc::new(remote)).unwrap();
    let worker = tide.worker().handle(async |_: Context, deposit: Deposit| Handled::Ok(deposit.number.to_string()));
    let error = worker.start().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Invalid);
    assert_eq!(Refusal::of(&error).unwrap().kind, Some(ProblemType::Unauthorized), "{error}");
}

/// A handler that blocks the only thread of its runtime for longer than the lease, as it should not.
#[tokio::test]
async fn a_lease_is_extended_while_its_handler_blocks_the_runtime() {
    let lease = Duration::from_millis(900);
    let net = Net::with_lease(None, lease).await;
    let address = net.proxy;
    // A worker in a runtime of its own, with one thread.
    let worked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let url = format!("http://{address}").parse().unwrap();
            let store = tidegate_remote::RemoteStore::new(&url, tidegate_remote::Options::default()).unwrap();
            let tide = Tidegate::builder().housekeeping(false).lease(lease).store(Arc::new(store)).unwrap();
            let worker = tide.worker().handle(async |_: Context, message: Deposit| {
                #[expect(clippy::disallowed_methods, reason = "what the test is about")]
                std::thread::sleep(Duration::from_millis(2500));
                Handled::Ok(message.number.to_string())
            });
            let worker = worker.start().await.unwrap();
            let sent = tide.enqueue(Deposit { number: 7 }).await.unwrap();
            let answer = sent.answer(Duration::from_secs(30)).await.unwrap().completed().unwrap();
            worker.stop().await.unwrap();
            (sent.id(), answer)
        })
    });
    let worked = tokio::task::spawn_blocking(move || worked.join().unwrap());
    let (id, answer) = worked.await.unwrap();
    assert_eq!(answer, "7");
    let view = net.tide.store().inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(view.counters.claims, 1, "nobody took it over: its lease was extended");
}
