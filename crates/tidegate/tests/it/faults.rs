//! The runtime on a store that fails, forgets to answer, is late, or does things twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::journal::EffectKey;
use tidegate::store::{ClaimRequest, Filter, QueueSlots};
use tidegate::{
    Answer, Backoff, Clock, Context, EffectAnswer, Handled, Kind, Nonce, Policy, QueueName, State, Store, SystemClock,
    Tenant, Tidegate, Worker, WorkerId,
};
use tidegate_testkit::faulty::{Fault, FaultyStore, Verb};
use tidegate_testkit::model::Model;
use tidegate_testkit::recount::Recount;
use tidegate_testkit::{ManualClock, SeededRandom};

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
        let now = SystemClock::new().now();
        for view in inner.inspect(messages.iter().map(|message| message.id).collect()).await.unwrap() {
            recount.add(&view.unwrap(), now);
        }
        assert_eq!(recount.differences(&inner.stats().await.unwrap()), Vec::<String>::new(), "seed {seed}");
    }
}

#[tokio::test]
async fn a_handler_is_cut_off_before_a_lease_can_lapse_that_cannot_be_extended() {
    // A machine that is busy may need longer for the settlement than a sixth of so short a lease: then once more.
    let mut too_late = Vec::new();
    for _ in 0..5 {
        match cut_off().await {
            Ok(()) => return,
            Err(ending) => too_late.push(ending),
        }
    }
    panic!("the lease lapsed each time: {too_late:?}");
}

/// A run whose lease cannot be extended; what is told of it unless it ended before the lease could lapse.
async fn cut_off() -> Result<(), String> {
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
    // However it ends: a handler that is not cut off would be found out by the sweep.
    let first_run_ends = async {
        loop {
            let view = inner.inspect(vec![sent.id()]).await.unwrap().pop().unwrap().unwrap();
            if !view.history.is_empty() {
                return view;
            }
            tokio::task::yield_now().await;
        }
    };
    let view = tokio::time::timeout(SOON, first_run_ends).await.expect("a run ends before its lease does");
    let ending = &view.history[0];
    let is_cut_off = (ending.outcome.as_str(), ending.code.as_str()) == ("retryable", "lease");
    if !is_cut_off || ending.at.since(view.message.enqueued_at) >= LEASE {
        return Err(format!("{ending:?}"));
    }
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    worker.stop().await.unwrap();
    Ok(())
}

/// A clock in the hand and a store that can be held up, with nothing else that runs by itself.
async fn by_hand(housekeeping: bool, lease: Duration) -> (Arc<ManualClock>, Arc<FaultyStore>, Tidegate) {
    let clock = Arc::new(ManualClock::default());
    let store = FaultyStore::new(Arc::new(Model::new(Arc::clone(&clock) as Arc<dyn Clock>)));
    let builder = Tidegate::builder().clock(Arc::clone(&clock) as Arc<dyn Clock>).lease(lease);
    let builder = builder.sweep_every(Duration::from_millis(5)).housekeeping(housekeeping);
    let tide = builder.store(Arc::clone(&store) as Arc<dyn Store>).unwrap();
    (clock, store, tide)
}

#[tokio::test]
async fn nothing_is_sent_when_the_intent_took_longer_to_store_than_the_send_may_last() {
    let (clock, store, tide) = by_hand(false, LONG).await;
    let ledger = Ledger::default();
    let shared = Arc::clone(&ledger);
    let handler = move |context: Context, _: Work| {
        let ledger = Arc::clone(&shared);
        async move {
            let capture = context.effect("capture").send_within(Duration::from_secs(10)).at_most_once();
            capture.call(|key| async move { charge(&ledger, &key) }).await
        }
    };
    store.spoil(Verb::Journal, Fault::Delay);
    // The next attempt is far away, and this clock does not go there.
    let backoff = Backoff { base: LONG, cap: LONG };
    let worker = tide.worker().handle_with(handler, Policy { backoff, ..at_once(1) }).start().await.unwrap();
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    store.holds_one().await;
    clock.advance(Duration::from_secs(11));
    store.release();
    let ended = async {
        loop {
            let view = tide.store().inspect(vec![sent.id()]).await.unwrap().pop().unwrap().unwrap();
            match view.history.first() {
                Some(run) => return run.outcome.clone(),
                None if view.state.is_terminal() => return view.state.to_string(),
                None => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, ended).await.expect("the attempt ends"), "not_done");
    assert!(ledger.lock().unwrap().is_empty(), "a request left when the store believed that none could any more");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_sweeper_that_was_asleep_takes_nothing_over_for_one_lease() {
    let lease = Duration::from_secs(30);
    let (clock, store, tide) = by_hand(true, lease).await;
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    let request = ClaimRequest {
        worker: WorkerId::new("asleep-as-well").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: QueueName::new("work").unwrap(), slots: 1 }],
        kinds: vec![(Kind::new("work").unwrap(), 1)],
        nonce: Nonce::new(&SeededRandom::new(1)),
        lease,
    };
    assert_eq!(store.claim(request).await.unwrap().leases.len(), 1);
    // A sweep that is noted as it begins: the one before it has ended by then.
    let have_begun = async |n: usize| {
        while store.spoilt().len() < n {
            tokio::task::yield_now().await;
        }
    };
    let away = 200;
    (0..2).for_each(|_| store.spoil(Verb::Sweep, Fault::Duplicate));
    // Asked for before the sleep, a sweep must not arrive after it: for a while none arrives.
    (0..away).for_each(|_| store.spoil(Verb::Sweep, Fault::FailBefore));
    (0..3).for_each(|_| store.spoil(Verb::Sweep, Fault::Duplicate));
    have_begun(3).await;
    // The machine slept: every lease has lapsed, and every holder is about to extend his.
    clock.advance(lease * 3);
    have_begun(2 + away + 3).await;
    let view = tide.store().inspect(vec![sent.id()]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!((view.state, view.history.len()), (State::Leased, 0), "taken from a worker that had no time to extend");
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
