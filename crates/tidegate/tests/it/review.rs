//! What an adversary tried against the runtime: each of these once went wrong.

use std::sync::Arc;
use std::time::Duration;

use tidegate::lifecycle::Cancellation;
use tidegate::store::Filter;
use tidegate::{Answer, Context, EffectAnswer, HandlerError, Policy, State, Store, Tidegate};
use tidegate_testkit::faulty::{Fault, FaultyStore, Verb};
use tokio::sync::Notify;

use crate::stage::{Count, Next, SOON, Stage, Work, act, at_once};

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_another_process_is_heard_however_often_this_one_is_woken() {
    let stage = Stage::new().await;
    let elsewhere = stage.again(Duration::from_secs(10)).await;
    let worker = elsewhere.worker().handle(|_: Context, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    // A front of many callers: each begins to wait a little after the one before, for what nobody answers.
    let never = stage.tide.enqueue(Next { of: 1 }).await.unwrap().id();
    let tide = stage.tide.clone();
    let callers = tokio::spawn(async move {
        let mut due = tokio::time::interval(Duration::from_millis(5));
        loop {
            due.tick().await;
            let tide = tide.clone();
            tokio::spawn(async move { tide.wait(never, Duration::from_millis(500)).await });
        }
    });
    let sent = stage.tide.enqueue(Work { n: 3 }).await.unwrap();
    let answer = tokio::time::timeout(SOON, sent.answer(SOON * 2)).await;
    callers.abort();
    assert_eq!(answer.expect("heard long before the caller gives up").unwrap(), Answer::Completed(3));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_cancel_request_that_can_no_longer_be_granted_does_not_keep_the_rest_of_a_handler_from_its_effects() {
    // Short, because an extension tells of the request; and long enough for a machine that is busy to extend it in time.
    let stage = Stage::with_lease(Duration::from_secs(2)).await;
    let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, waits) = (Arc::clone(&started), Arc::clone(&go_on));
    let handler = move |context: Context, work: Work| {
        let (started, go_on) = (Arc::clone(&starts), Arc::clone(&waits));
        async move {
            let charge = context.effect("charge").keyed(LONG).call(|_| async move {
                started.notify_one();
                go_on.notified().await;
                EffectAnswer::confirmed(1)
            });
            charge.await?;
            context.stopped().await;
            let book = context.effect("book").keyed(LONG).call(|_| async { EffectAnswer::confirmed(2) }).await?;
            Ok(work.n + book)
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    started.notified().await;
    assert_eq!(stage.tide.cancel(sent.id(), act()).await, Ok(Cancellation::Requested));
    go_on.notify_one();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(3));
    assert_eq!(stage.view(sent.id()).await.counters.attempt, 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_natural_effect_whose_value_cannot_be_stored_is_a_dead_letter_and_not_parked_for_ever() {
    let dir = tempfile::TempDir::new().unwrap();
    let tide = Tidegate::builder().max_payload(100).open(dir.path().join("tide.db")).await.unwrap();
    let handler = |context: Context, work: Work| async move {
        context.effect("list").natural().call(|_| async { EffectAnswer::confirmed("x".repeat(200)) }).await?;
        Ok(work.n)
    };
    let worker = tide.worker().handle(handler).start().await.unwrap();
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "settlement_refused".into() });
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn the_longest_durations_there_are_mean_for_ever_and_harm_nothing() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        let effect = context.effect("capture").send_within(Duration::MAX).keyed(Duration::MAX);
        let value = effect.call(|_| async { EffectAnswer::confirmed(1) }).await?;
        Ok(work.n + value)
    };
    let policy = Policy { timeout: Duration::MAX, ..Policy::default() };
    let worker = stage.tide.worker().lease(Duration::MAX).handle_with(handler, policy).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(2));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_claimed_after_an_outage_longer_than_a_lease_is_not_cut_off_as_it_starts() {
    let stage = Stage::new().await;
    let sqlite: Arc<dyn Store> = Arc::clone(stage.tide.sqlite().unwrap()) as Arc<dyn Store>;
    let store = FaultyStore::new(sqlite);
    let lease = Duration::from_secs(1);
    let tide =
        Tidegate::builder().housekeeping(false).lease(lease).store(Arc::clone(&store) as Arc<dyn Store>).unwrap();
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    // The pauses between the tries, from 50 ms on and each twice as long, add up to more than the lease.
    for _ in 0..5 {
        store.spoil(Verb::Claim, Fault::FailBefore);
    }
    let sends = Count::default();
    let counted = sends.clone();
    let handler = move |context: Context, work: Work| {
        let sends = counted.clone();
        async move {
            let effect = context.effect("capture").at_most_once();
            let value = effect.call(|_| async move { EffectAnswer::confirmed(sends.up()) }).await?;
            Ok(work.n + value)
        }
    };
    let worker = tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    let view = stage.view(sent.id()).await;
    assert_eq!((view.counters.claims, view.history.len()), (1, 0), "one run, and no lost start");
    worker.stop().await.unwrap();
}

/// Lets a worker begin what waits and die with its runtime, as a process does.
async fn crash_once(stage: &Stage, lease: Duration) {
    let path = stage.dir.path().join("tide.db");
    let crashed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tide = Tidegate::builder().lease(lease).housekeeping(false).open(path).await.unwrap();
            let started = Arc::new(Notify::new());
            let starts = Arc::clone(&started);
            let handler = move |_: Context, _: Work| {
                starts.notify_one();
                std::future::pending::<Result<u32, HandlerError>>()
            };
            let worker = tide.worker().handle(handler).start().await.unwrap();
            started.notified().await;
            std::mem::forget(worker);
        });
    });
    tokio::task::spawn_blocking(move || crashed.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_is_on_its_way_back_is_not_started_by_a_gate_that_opens_meanwhile() {
    let lease = Duration::from_secs(1);
    let stage = Stage::with_lease(lease).await;
    let suspect = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    crash_once(&stage, lease).await;
    stage.view_when(suspect.id(), |view| view.suspect).await;
    let sqlite: Arc<dyn Store> = Arc::clone(stage.tide.sqlite().unwrap()) as Arc<dyn Store>;
    let store = FaultyStore::new(sqlite);
    let tide = Tidegate::builder().lease(lease).store(Arc::clone(&store) as Arc<dyn Store>).unwrap();
    let (started, go_on, ran) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Count::default());
    let (starts, goes, counts) = (Arc::clone(&started), Arc::clone(&go_on), ran.clone());
    let work = move |_: Context, work: Work| {
        let (starts, goes) = (Arc::clone(&starts), Arc::clone(&goes));
        async move {
            if work.n == 1 {
                starts.notify_one();
                goes.notified().await;
            }
            Ok::<u32, HandlerError>(work.n)
        }
    };
    let next = move |_: Context, next: Next| {
        counts.up();
        async move { Ok::<u32, HandlerError>(next.of) }
    };
    let worker = tide.worker().handle(work).handle(next).start().await.unwrap();
    // The suspect runs alone, and the next one waits for it.
    started.notified().await;
    let waits = stage.tide.enqueue(Next { of: 1 }).await.unwrap();
    stage.view_when(waits.id(), |view| view.state == State::Leased).await;
    store.spoil(Verb::Settle, Fault::Delay);
    assert_eq!(stage.tide.cancel(waits.id(), act()).await, Ok(Cancellation::Requested));
    store.holds_one().await;
    // It is on its way back. Now the gate opens.
    go_on.notify_one();
    assert_eq!(suspect.answer(SOON).await.unwrap(), Answer::Completed(1));
    let passes = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    assert_eq!(passes.answer(SOON).await.unwrap(), Answer::Completed(2));
    store.release();
    stage.view_when(waits.id(), |view| view.state == State::Cancelled).await;
    assert_eq!(ran.get(), 0, "it was called off before it began");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_suspect_that_could_not_say_that_it_runs_alone_is_handed_back_and_no_crash_is_counted() {
    let lease = Duration::from_millis(300);
    let stage = Stage::with_lease(lease).await;
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    crash_once(&stage, lease).await;
    stage.view_when(sent.id(), |view| view.suspect).await;

    let sqlite: Arc<dyn Store> = Arc::clone(stage.tide.sqlite().unwrap()) as Arc<dyn Store>;
    let store = FaultyStore::new(sqlite);
    // Nobody waits for this one to lapse.
    let tide = Tidegate::builder().lease(SOON).store(Arc::clone(&store) as Arc<dyn Store>).unwrap();
    store.spoil(Verb::Extend, Fault::FailAfter);
    let worker = tide.worker().handle(|_: Context, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    let view = stage.view(sent.id()).await;
    let endings: Vec<&str> = view.history.iter().map(|ending| ending.outcome.as_str()).collect();
    assert_eq!((view.counters.crashes, endings), (0, vec!["lease_expired", "released"]));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_handler_that_leaves_a_task_behind_cannot_begin_an_effect_after_its_message_was_settled() {
    let stage = Stage::new().await;
    let sends = Count::default();
    let counted = sends.clone();
    let (settled, tried) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (goes, done) = (Arc::clone(&settled), Arc::clone(&tried));
    let handler = move |context: Context, work: Work| {
        let (sends, settled, tried) = (counted.clone(), Arc::clone(&goes), Arc::clone(&done));
        async move {
            tokio::spawn(async move {
                settled.notified().await;
                let effect = context.effect("late").at_most_once();
                let made = effect.call(|_| async move { EffectAnswer::confirmed(sends.up()) }).await;
                assert!(made.is_err());
                tried.notify_one();
            });
            Ok(work.n)
        }
    };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    settled.notify_one();
    tried.notified().await;
    assert_eq!(sends.get(), 0);
    assert!(stage.view(sent.id()).await.journal.is_empty());
    assert_eq!(stage.tide.store().list(Filter { limit: 10, ..Filter::default() }).await.unwrap().len(), 1);
    worker.stop().await.unwrap();
}
