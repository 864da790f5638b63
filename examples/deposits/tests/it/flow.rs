use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use deposits::books::{self, Books};
use deposits::gateway::{Faults, GatewayMode, LedgerResult, read_ledger};
use deposits::operator;
use deposits::steps::{self, Authorise, Capture, Step, Told, WorkOptions, read_flow};
use deposits::trace::Card;
use tidegate::{Address, Message, MessageId, State, Tidegate};
use tidegate_pgcluster::Cluster;

/// Everything that can go wrong with a reply, at once.
const HARM: Faults = Faults {
    refused: false,
    too_many: 0.0,
    unavailable: 0.05,
    hang: 0.05,
    drip: 0.0,
    lost_reply: 0.15,
    late: 0.1,
    reset_before: 0.05,
    internal_after: 0.1,
    latency_ms: None,
};

async fn enqueue(tide: &Tidegate, count: usize) -> Vec<MessageId> {
    let message = |number: usize| Authorise {
        deposit: format!("dep-{number}"),
        account: if number % 10 == 9 { "closed".to_owned() } else { "acct-1".to_owned() },
        cents: 100,
        card: if number % 10 == 8 { Card::Declined } else { Card::Ok },
    };
    let sent = tide.enqueue_all((0..count).map(message)).await.unwrap();
    sent.into_iter().map(|sent| sent.unwrap().id()).collect()
}

/// Waits for the end of every flow, and plays the operator where one parked. Bounded in time: a quarantine ends by it alone.
async fn finish(tide: &Tidegate, ledger: &Path, flows: &[MessageId]) -> Vec<Told> {
    let bound = Duration::from_secs(60);
    tokio::time::timeout(bound, operate(tide, ledger, flows)).await.expect("every flow comes to an end")
}

async fn operate(tide: &Tidegate, ledger: &Path, flows: &[MessageId]) -> Vec<Told> {
    loop {
        let mut told = Vec::new();
        for flow in flows {
            tide.sent::<Authorise>(*flow).flow(Duration::from_secs(1)).await.unwrap();
            told.push(read_flow(tide, *flow).await.unwrap().unwrap().state);
        }
        if told.iter().all(|told| told.is_final()) {
            return told;
        }
        operator::resolve_parked(tide, ledger).await.unwrap();
    }
}

fn work(gateway: String, mode: GatewayMode) -> WorkOptions {
    let (name, without) = ("worker".to_owned(), Vec::new());
    WorkOptions { gateway, mode, scale: super::scale(), concurrency: 4, name, without }
}

async fn a_misbehaving_gateway(mode: GatewayMode) {
    let directory = tempfile::tempdir().unwrap();
    on_this_store(mode, &directory.path().join("d.db").into()).await;
}

async fn on_this_store(mode: GatewayMode, store: &Address) {
    const COUNT: usize = 30;
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let gateway = super::gateway(&ledger, mode, HARM);
    let tide = steps::open(store, &super::scale()).await.unwrap();
    books::prepare_at(store, &["closed".to_owned()]).await.unwrap();
    let options = work(gateway.url(), mode);
    let worker = steps::start(&tide, &options).await.unwrap();
    // As another process would: it knows nothing of the first but what is in the store.
    let beside = match store.server() {
        Some(_) => {
            let other = steps::open(store, &super::scale()).await.unwrap();
            Some(steps::start(&other, &WorkOptions { name: "beside".to_owned(), ..options }).await.unwrap())
        }
        None => None,
    };
    let flows = enqueue(&tide, COUNT).await;
    let told = finish(&tide, &ledger, &flows).await;
    worker.stop().await.unwrap();
    if let Some(beside) = beside {
        beside.stop().await.unwrap();
    }
    gateway.stop().await.unwrap();

    let mut taken: HashMap<String, (u32, u32)> = HashMap::new();
    for entry in read_ledger(&ledger).unwrap() {
        let (captures, refunds) = taken.entry(entry.deposit).or_default();
        match entry.result {
            LedgerResult::Captured => *captures += 1,
            LedgerResult::Refunded => *refunds += 1,
            LedgerResult::Authorised | LedgerResult::Declined | LedgerResult::Receipt => {}
        }
    }
    let books = Books::read(store).unwrap();
    for (number, told) in told.into_iter().enumerate() {
        let name = format!("dep-{number}");
        let credits = books.credited.get(&name).map_or(0, |credit| credit.times);
        let expected = match number % 10 {
            8 => ((0, 0), 0, Told::Failed),
            9 => ((1, 1), 0, Told::Failed),
            _ => ((1, 0), 1, Told::Completed),
        };
        assert_eq!((taken.get(&name).copied().unwrap_or_default(), credits, told), expected, "{mode} {name}");
    }
    assert_eq!(books.sums.debits, books.sums.credits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_deposit_takes_effect_once_with_a_gateway_that_recognises_keys() {
    a_misbehaving_gateway(GatewayMode::Idempotent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_deposit_takes_effect_once_with_a_gateway_that_can_be_asked() {
    a_misbehaving_gateway(GatewayMode::Lookup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_deposit_takes_effect_once_with_a_gateway_that_can_do_neither_and_an_operator() {
    a_misbehaving_gateway(GatewayMode::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_deposit_takes_effect_once_with_two_workers_on_a_postgresql_server() {
    let database = tokio::task::spawn_blocking(|| Cluster::shared().database("deposits").unwrap()).await.unwrap();
    for mode in [GatewayMode::Idempotent, GatewayMode::Lookup] {
        let address = format!("{database}?schema=flow_{}_{}", std::process::id(), mode.name());
        on_this_store(mode, &address.parse().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_left_to_others_is_neither_claimed_nor_declared_and_another_worker_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ledger) = (Address::from(directory.path().join("d.db")), directory.path().join("ledger"));
    let gateway = super::gateway(&ledger, GatewayMode::Idempotent, Faults::default());
    let tide = steps::open(&store, &super::scale()).await.unwrap();
    books::prepare_at(&store, &[]).await.unwrap();
    let options = work(gateway.url(), GatewayMode::Idempotent);
    let others = WorkOptions { without: vec![Step::Capture], ..options.clone() };
    let worker = steps::start(&tide, &others).await.unwrap();
    let flows = enqueue(&tide, 3).await;
    for flow in &flows {
        tide.sent::<Authorise>(*flow).answer(Duration::from_secs(30)).await.unwrap().completed().unwrap();
        let flow = tide.flow(*flow).await.unwrap();
        let capture = flow.messages.iter().find(|message| message.kind.as_str() == Capture::KIND).unwrap();
        let facts = tide.store().explain(capture.id).await.unwrap().unwrap();
        assert_eq!((facts.view.state, facts.view.counters.claims, facts.policy), (State::Ready, 0, None));
    }
    let without = vec![Step::Authorise, Step::Credit, Step::Notify, Step::Refund];
    let capture = WorkOptions { without, name: "capture".to_owned(), ..options };
    let capture = steps::start(&tide, &capture).await.unwrap();
    assert_eq!(finish(&tide, &ledger, &flows).await, vec![Told::Completed; 3]);
    for worker in [worker, capture] {
        worker.stop().await.unwrap();
    }
    gateway.stop().await.unwrap();
}
