use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tidegate::{Answer, Context, HandlerError, Message, Options, Policy, QueueName, State, StoreErrorKind};
use tokio::sync::Notify;

use crate::stage::{Count, Next, SOON, Stage, Work, at_once};

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<std::sync::Mutex<Vec<u8>>>);

impl Logged {
    fn new() -> (Self, impl tracing::Subscriber + Send + Sync) {
        // While there is one subscriber only, whether a line is wanted is asked of the thread that comes by first, and kept
        // for all; tests run on many threads, and most of them have none. With a second one all are asked.
        static SECOND: std::sync::LazyLock<tracing::Dispatch> =
            std::sync::LazyLock::new(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new()));
        std::sync::LazyLock::force(&SECOND);
        let logged = Self::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let subscriber = subscriber.with_max_level(tracing::Level::TRACE).finish();
        (logged, subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Tells when it is dropped, as a handler's future is that was cancelled.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_panic_is_a_retryable_failure_with_its_message() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        assert!(context.attempt() > 1, "the first attempt of {} stumbles", work.n);
        Ok(work.n)
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(2)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 4 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(4));
    let history = stage.view(sent.id()).await.history;
    assert_eq!((history[0].code.as_str(), history[0].detail.as_str()), ("panic", "the first attempt of 4 stumbles"));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_handler_that_never_returns_is_cut_off_and_counts_as_a_timeout() {
    let stage = Stage::new().await;
    let dropped = Arc::new(Notify::new());
    let on_drop = Arc::clone(&dropped);
    let handler = move |_: Context, _: Work| {
        let on_drop = OnDrop(Arc::clone(&on_drop));
        async move {
            let _dropped = on_drop;
            std::future::pending::<Result<u32, HandlerError>>().await
        }
    };
    let policy = Policy { timeout: Duration::from_millis(40), ..at_once(1) };
    let worker = stage.tide.worker().handle_with(handler, policy).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    dropped.notified().await;
    assert_eq!(stage.view(sent.id()).await.history[0].code, "timeout");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_snooze_comes_again_and_counts_nothing() {
    let stage = Stage::new().await;
    let runs = Count::default();
    let counted = runs.clone();
    let handler = move |_: Context, work: Work| {
        let before = counted.up();
        async move { if before < 3 { Err(HandlerError::snooze(Duration::from_millis(5))) } else { Ok(work.n) } }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    assert_eq!((runs.get(), stage.view(sent.id()).await.counters.attempt), (4, 1));
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_runtime_for_three_leases_keeps_its_lease() {
    let lease = Duration::from_secs(1);
    let stage = Stage::with_lease(lease).await;
    let elsewhere = stage.again(lease).await;
    let runs = Count::default();
    let counted = runs.clone();
    let handler = move |_: Context, work: Work| {
        let runs = counted.clone();
        async move {
            runs.up();
            // Nobody sends: this blocks the thread, as a handler must not and some do.
            let (_sender, receiver) = mpsc::channel::<()>();
            assert!(receiver.recv_timeout(lease * 3).is_err());
            Ok(work.n)
        }
    };
    let worker = stage.tide.worker().handle(handler.clone()).start().await.unwrap();
    let rival = elsewhere.worker().handle(handler).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    let view = stage.view(sent.id()).await;
    assert_eq!((runs.get(), view.counters.claims, view.history.len()), (1, 1, 0));
    worker.stop().await.unwrap();
    rival.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_cancels_the_handler_and_settles_nothing() {
    let stage = Stage::with_lease(Duration::from_secs(2)).await;
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let dropped = Arc::new(Notify::new());
    let on_drop = Arc::clone(&dropped);
    let handler = move |context: Context, work: Work| {
        let (started, on_drop) = (started.clone(), OnDrop(Arc::clone(&on_drop)));
        async move {
            if context.attempt() > 1 {
                return Ok(work.n);
            }
            started.send(()).unwrap();
            let _dropped = on_drop;
            std::future::pending().await
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(5)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 3 }).await.unwrap();
    has_started.recv().await.unwrap();
    let rival = stage.an_hour_ahead().await;
    dropped.notified().await;
    drop(rival);
    let view = stage.view_when(sent.id(), |view| !view.history.is_empty()).await;
    assert_eq!(view.history[0].outcome, "lease_expired");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_drain_hands_back_what_does_not_finish_and_counts_no_attempt() {
    let stage = Stage::new().await;
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |context: Context, _: Work| {
        started.send(context.attempt()).unwrap();
        std::future::pending::<Result<u32, HandlerError>>()
    };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(has_started.recv().await, Some(1));
    let drained = worker.drain(Duration::from_millis(20)).await.unwrap();
    assert_eq!((drained.finished, drained.released, drained.abandoned), (0, 1, 0));
    let view = stage.view(sent.id()).await;
    assert_eq!((view.state, view.counters.attempt), (State::Ready, 0));
    assert_eq!(view.due_at, Some(view.message.first_due_at), "it keeps its place");
    let next = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    next.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_lets_what_runs_finish_and_claims_nothing_more() {
    let stage = Stage::new().await;
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let handler = move |_: Context, work: Work| {
        let (started, go_on) = (started.clone(), Arc::clone(&waits));
        async move {
            started.send(()).unwrap();
            go_on.notified().await;
            Ok(work.n)
        }
    };
    let worker = stage.tide.worker().concurrency(1).handle(handler).start().await.unwrap();
    let running = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    has_started.recv().await.unwrap();
    let waiting = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    let stopping = tokio::spawn(worker.stop());
    // The stop was asked for before the handler goes on.
    while !stopping.is_finished() && stage.view(running.id()).await.state == State::Leased {
        go_on.notify_one();
        tokio::task::yield_now().await;
    }
    assert_eq!(stopping.await.unwrap().unwrap().finished, 1);
    assert_eq!(running.answer(SOON).await.unwrap(), Answer::Completed(1));
    assert_eq!(stage.view(waiting.id()).await.state, State::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_a_message_runs_with_nothing_beside_it() {
    let stage = Stage::with_lease(Duration::from_millis(500)).await;
    // A worker that dies with its runtime, as a process does.
    let path = stage.dir.path().join("tide.db");
    let crashed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lease = Duration::from_millis(500);
            let tide = tidegate::Tidegate::builder().lease(lease).housekeeping(false).open(path).await.unwrap();
            let started = Arc::new(Notify::new());
            let starts = Arc::clone(&started);
            let handler = move |_: Context, _: Work| {
                starts.notify_one();
                std::future::pending::<Result<u32, HandlerError>>()
            };
            let worker = tide.worker().lease(lease).handle(handler).start().await.unwrap();
            let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
            started.notified().await;
            std::mem::forget(worker);
            sent.id()
        })
    });
    let suspect = crashed.join().unwrap();
    let (beside, overlaps) = (Count::default(), Count::default());
    let (running, seen) = (beside.clone(), overlaps.clone());
    let others = move |_: Context, next: Next| {
        let running = running.clone();
        async move {
            running.up();
            tokio::task::yield_now().await;
            running.down();
            Ok(next.of)
        }
    };
    let alone = move |_: Context, work: Work| {
        let (running, overlaps) = (beside.clone(), seen.clone());
        async move {
            for _ in 0..50 {
                if running.get() > 0 {
                    overlaps.up();
                }
                tokio::task::yield_now().await;
            }
            Ok(work.n)
        }
    };
    let worker = stage.tide.worker().handle(alone).handle(others).start().await.unwrap();
    let mut n = 0;
    loop {
        let batch = stage.tide.enqueue_all((n..n + 20).map(|of| Next { of })).await.unwrap();
        n += 20;
        batch.last().unwrap().as_ref().unwrap().answer(SOON).await.unwrap();
        if stage.view(suspect).await.state == State::Completed {
            break;
        }
        assert!(n < 20_000, "{:?}", stage.view(suspect).await);
    }
    let view = stage.view(suspect).await;
    assert_eq!((overlaps.get(), view.counters.claims, view.counters.crashes), (0, 2, 0));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_unknown_kind_and_a_newer_version_wait_for_a_worker_that_knows_them() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Newer {
        n: u32,
    }
    impl Message for Newer {
        const KIND: &'static str = "work";
        const VERSION: u32 = 2;
        type Answer = u32;
        fn key(&self) -> String {
            format!("newer-{}", self.n)
        }
    }
    let (logged, subscriber) = Logged::new();
    // Of this thread, on which this test's runtime runs everything.
    let _listening = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let newer = stage.tide.enqueue(Newer { n: 1 }).await.unwrap();
    let queue = QueueName::new("work").unwrap();
    let stranger = stage.tide.enqueue_with(Next { of: 1 }, Options::default().queue(queue)).await.unwrap();
    let old = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let known = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(known.answer(SOON).await.unwrap(), Answer::Completed(1));
    for id in [newer.id(), stranger.id()] {
        let view = stage.view(id).await;
        assert_eq!((view.state, view.counters.claims), (State::Ready, 0));
    }
    for what in
        ["messages of kind work version 2 wait in queue work", "messages of kind next version 1 wait in queue work"]
    {
        while !logged.text().contains(what) {
            tokio::task::yield_now().await;
        }
    }
    let new = stage.tide.worker().handle(|_, newer: Newer| async move { Ok(newer.n + 100) });
    let new = new.handle(|_, next: Next| async move { Ok(next.of) }).start().await.unwrap();
    assert_eq!(newer.answer(SOON).await.unwrap(), Answer::Completed(101));
    assert_eq!(stranger.answer(SOON).await.unwrap(), Answer::Completed(1));
    new.stop().await.unwrap();
    old.stop().await.unwrap();
}

#[tokio::test]
async fn a_failure_is_logged_with_its_code_and_never_with_what_was_said_or_asked_for() {
    let (logged, subscriber) = Logged::new();
    let _listening = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new().await;
    let handler = |_: Context, work: Work| async move {
        if work.n.is_multiple_of(2) {
            return Err(HandlerError::retryable("timed-out", "canary of the handler"));
        }
        Err::<u32, _>(HandlerError::permanent("declined", "canary of the handler"))
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let dead = stage.tide.enqueue(Work { n: 987_654_320 }).await.unwrap();
    let failed = stage.tide.enqueue(Work { n: 987_654_321 }).await.unwrap();
    let ended = (dead.answer(SOON).await.unwrap(), failed.answer(SOON).await.unwrap());
    assert!(matches!(ended, (Answer::Dead { .. }, Answer::Failed(_))), "{ended:?}");
    worker.stop().await.unwrap();
    let text = logged.text();
    for (id, code) in [(dead.id(), "timed-out"), (failed.id(), "declined")] {
        let told = text.lines().find(|line| line.contains(&id.to_string()) && line.contains(code));
        assert!(told.is_some(), "no line about {id} with {code}: {text}");
    }
    // Payloads and keys have the number in them.
    for secret in ["canary", "98765432"] {
        assert!(!text.contains(secret), "{secret} is in the log: {text}");
    }
}

#[tokio::test]
async fn a_worker_that_could_not_run_anything_is_refused() {
    let stage = Stage::new().await;
    let handler = |_: Context, work: Work| async move { Ok(work.n) };
    let refused = [
        (stage.tide.worker(), "a worker without a handler"),
        (stage.tide.worker().handle(handler).handle(handler), "two handlers for kind work"),
        (stage.tide.worker().handle(handler).queue_concurrency("work", 0), "a concurrency of 0 for queue work"),
        (stage.tide.worker().handle(handler).queue_concurrency("a b", 1), "invalid queue name \"a b\""),
        (stage.tide.worker().handle(handler).lease(Duration::from_millis(1)), "invalid lease of 1ms"),
    ];
    for (builder, what) in refused {
        let error = builder.start().await.unwrap_err();
        assert_eq!((error.kind(), error.what()), (StoreErrorKind::Invalid, what));
    }
}
