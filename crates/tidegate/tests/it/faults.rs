//! The runtime on a store that fails, forgets to answer, is late, or does things twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::journal::EffectKey;
use tidegate::store::Filter;
use tidegate::{Answer, Context, EffectAnswer, Handled, State, Store, SystemClock, Tidegate, Worker};
use tidegate_testkit::faulty::{Fault, FaultyStore, Verb};
use tidegate_testkit::model::Model;
use tidegate_testkit::recount::Recount;

use crate::stage::{Next, SOON, Work, at_once};

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);
const LEASE: Duration = Duration::from_millis(900);

/// What a remote that deduplicates by key has done: how often each key arrived.
type Ledger = Arc<Mutex<BTreeMap<String, u32>>>;

fn charge(ledger: &Ledger, key: &EffectKey) -> EffectAnswer<u32> {
    *ledger.lock().unwrap().entry(key.to_string()).or_default() += 1;
    EffectAnswer::confirmed(7)
}

/// Charges and is followed by a notice: everything a handler does with the store.
async fn start(tide: &Tidegate, ledger: &Ledger) -> Result<Worker, tidegate::StoreError> {
    let shared = Arc::clone(ledger);
    let first = move |context: Context, work: Work| {
        let ledger = Arc::clone(&shared);
        async move {
            let capture = context.effect("capture").keyed(LONG);
            let value = capture.call(|key| async move { charge(&ledger, &key) }).await?;
            context.effect("stamp").natural().call(|_| async { EffectAnswer::confirmed(()) }).await?;
            context.then(Next { of: work.n });
            Handled::Ok(work.n + value)
        }
    };
    let next = |_: Context, next: Next| async move { Handled::Ok(next.of) };
    let worker = tide.worker().handle_with(first, at_once(50)).handle_with(next, at_once(50));
    worker.concurrency(4).poll_every(Duration::from_millis(20)).start().await
}

/// Lets go of whatever is held back, for as long as it runs.
async fn let_go(store: &FaultyStore) {
    loop {
        store.holds_one().await;
        store.release();
        tokio::task::yield_now().await;
    }
}

async fn open(store: &Arc<FaultyStore>) -> Tidegate {
    let tide = Tidegate::builder().lease(LEASE).sweep_every(Duration::from_millis(30));
    tide.store(Arc::clone(store) as Arc<dyn Store>).unwrap()
}

/// Enqueues until the answer is known, as a producer does: by the same key.
async fn enqueue(tide: &Tidegate, work: Work) -> tidegate::Sent<Work> {
    loop {
        match tide.enqueue(work.clone()).await {
            Ok(sent) => return sent,
            Err(error) => assert_eq!(error.kind(), tidegate::StoreErrorKind::Unavailable, "{error}"),
        }
    }
}

#[tokio::test]
async fn one_spoilt_call_of_any_verb_changes_nothing_about_what_takes_effect() {
    let verbs = [Verb::Enqueue, Verb::Claim, Verb::Journal, Verb::Settle, Verb::Sweep, Verb::Progress, Verb::Flow];
    for verb in verbs {
        for fault in Fault::ALL {
            let inner: Arc<dyn Store> = Arc::new(Model::new(Arc::new(SystemClock::new())));
            let store = FaultyStore::new(Arc::clone(&inner));
            let tide = open(&store).await;
            let ledger = Ledger::default();
            let worker = start(&tide, &ledger).await.unwrap();
            store.spoil(verb, fault);
            let scenario = async {
                let sent = enqueue(&tide, Work { n: 1 }).await;
                // A reader's failure is its caller's to repeat.
                let answer = loop {
                    if let Ok(answer) = sent.answer(SOON).await {
                        break answer;
                    }
                };
                assert_eq!(answer, Answer::Completed(8), "{verb:?} {fault:?}");
                loop {
                    match sent.flow(SOON).await {
                        Ok(flow) => break flow,
                        Err(error) => assert_eq!(error.kind(), tidegate::StoreErrorKind::Unavailable),
                    }
                }
            };
            let flow = tokio::select! {
                flow = scenario => flow,
                () = let_go(&store) => unreachable!("it goes on for ever"),
            };
            assert!(flow.is_completed() && flow.messages.len() == 2, "{verb:?} {fault:?}: {flow:?}");
            assert_eq!(ledger.lock().unwrap().len(), 1, "{verb:?} {fault:?}: more than one key was charged");
            store.release();
            worker.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_any_mixture_of_faults_every_message_takes_effect_once_and_is_counted_once() {
    for seed in [1, 2, 3] {
        let dir = tempfile::TempDir::new().unwrap();
        let options = tidegate::sqlite::Options::default();
        let inner: Arc<dyn Store> = tidegate::sqlite::SqliteStore::open(dir.path().join("tide.db"), options).unwrap();
        let store = FaultyStore::seeded(Arc::clone(&inner), seed, 0.25, &Fault::ALL);
        let tide = open(&store).await;
        let ledger = Ledger::default();
        let worker = loop {
            // Even the declaration of the policies is spoilt now and then.
            let started = tokio::select! {
                started = start(&tide, &ledger) => started,
                () = let_go(&store) => unreachable!("it goes on for ever"),
            };
            if let Ok(worker) = started {
                break worker;
            }
        };
        let scenario = async {
            for n in 0..30 {
                enqueue(&tide, Work { n }).await;
            }
            loop {
                let stats = inner.stats().await.unwrap();
                if stats.queues.iter().all(|queue| queue.ready + queue.scheduled + queue.leased == 0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(SOON * 3, scenario) => assert!(ended.is_ok(), "seed {seed}: {:?}", inner.stats().await),
            () = let_go(&store) => unreachable!("it goes on for ever"),
        }
        let stopped = tokio::select! {
            stopped = worker.stop() => stopped,
            () = let_go(&store) => unreachable!("it goes on for ever"),
        };
        stopped.unwrap();
        drop(tide);
        store.release();

        let messages = inner.list(Filter { limit: 1000, ..Filter::default() }).await.unwrap();
        assert_eq!(messages.len(), 60, "seed {seed}: each message and its one follow-up");
        assert!(messages.iter().all(|message| message.state == State::Completed), "seed {seed}: {messages:?}");
        assert_eq!(ledger.lock().unwrap().len(), 30, "seed {seed}: one key for each charge, however often it was sent");
        assert!(store.spoilt().len() > 20, "seed {seed}: nothing much was spoilt");
        let mut recount = Recount::default();
        let now = tidegate::Clock::now(&SystemClock::new());
        for view in inner.inspect(messages.iter().map(|message| message.id).collect()).await.unwrap() {
            recount.add(&view.unwrap(), now);
        }
        assert_eq!(recount.differences(&inner.stats().await.unwrap()), Vec::<String>::new(), "seed {seed}");
    }
}

#[tokio::test]
async fn a_handler_is_cut_off_before_a_lease_can_lapse_that_cannot_be_extended() {
    let inner: Arc<dyn Store> = Arc::new(Model::new(Arc::new(SystemClock::new())));
    let store = FaultyStore::new(Arc::clone(&inner));
    for _ in 0..1000 {
        store.spoil(Verb::Extend, Fault::FailBefore);
    }
    let tide = open(&store).await;
    let handler = |context: Context, work: Work| async move {
        if context.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Handled::Ok(work.n)
    };
    let worker = tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    let view = inner.inspect(vec![sent.id()]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!((view.history[0].outcome.as_str(), view.history[0].code.as_str()), ("retryable", "lease"));
    assert!(view.history[0].at.since(view.message.enqueued_at) < LEASE, "it was settled before the lease could lapse");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_intent_whose_reply_is_lost_was_not_sent_and_waits_for_nobody() {
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        let inner: Arc<dyn Store> = Arc::new(Model::new(Arc::new(SystemClock::new())));
        let store = FaultyStore::new(Arc::clone(&inner));
        let tide = open(&store).await;
        let ledger = Ledger::default();
        let shared = Arc::clone(&ledger);
        let handler = move |context: Context, work: Work| {
            let ledger = Arc::clone(&shared);
            async move {
                let capture = context.effect("capture").at_most_once();
                let value = capture.call(|key| async move { charge(&ledger, &key) }).await?;
                Handled::Ok(work.n + value)
            }
        };
        let worker = tide.worker().handle_with(handler, at_once(2)).start().await.unwrap();
        store.spoil(Verb::Journal, fault);
        let sent = enqueue(&tide, Work { n: 1 }).await;
        assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(8), "{fault:?}");
        assert_eq!(ledger.lock().unwrap().values().sum::<u32>(), 1, "{fault:?}");
        let view = inner.inspect(vec![sent.id()]).await.unwrap().pop().flatten().unwrap();
        assert_eq!(view.counters.attempt, 1, "{fault:?}: the run in which nothing left counts nothing");
        worker.stop().await.unwrap();
    }
}
