use std::time::Duration;

use tidegate::store::Enqueued;
use tidegate::{Answer, HandlerError, Options, Priority, QueueName, State, StoreErrorKind};

use crate::stage::{Count, SOON, Stage, Work, act, at_once};

#[tokio::test]
async fn a_duplicate_gets_the_stored_answer_and_its_handler_does_not_run() {
    let stage = Stage::new().await;
    let runs = Count::default();
    let counted = runs.clone();
    let handler = move |_, work: Work| {
        let runs = counted.clone();
        async move { Ok(work.n * 10 + runs.up()) }
    };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let first = stage.tide.enqueue(Work { n: 7 }).await.unwrap();
    assert!(first.is_new());
    assert_eq!(first.answer(SOON).await.unwrap(), Answer::Completed(70));
    let second = stage.tide.enqueue(Work { n: 7 }).await.unwrap();
    assert!(second.is_replayed() && second.id() == first.id());
    assert_eq!(second.answer(SOON).await.unwrap(), Answer::Completed(70));
    assert_eq!(runs.get(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn every_message_of_a_batch_gets_a_verdict_of_its_own() {
    let stage = Stage::new().await;
    stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let verdicts = stage.tide.enqueue_all([0, 1, 2].map(|n| Work { n })).await.unwrap();
    let new: Vec<bool> = verdicts.iter().map(|verdict| verdict.as_ref().unwrap().is_new()).collect();
    assert_eq!(new, [true, false, true]);
}

#[tokio::test]
async fn another_payload_under_a_known_key_is_refused_with_the_known_message() {
    let stage = Stage::new().await;
    let first = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let options = Options::default().key("work-1");
    let error = stage.tide.enqueue_with(Work { n: 2 }, options).await.unwrap_err();
    assert_eq!((error.kind(), error.conflicting_id()), (StoreErrorKind::KeyConflict, Some(first.id())));
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let stage = Stage::new().await;
    stage.tide.limit(&QueueName::new("work").unwrap(), Some(1), act()).await.unwrap();
    stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let error = stage.tide.enqueue(Work { n: 2 }).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::QueueFull);
    assert!(error.retry_after_duration().is_some());
    // What is known is no new depth.
    assert!(!stage.tide.enqueue(Work { n: 1 }).await.unwrap().is_new());
}

#[tokio::test]
async fn a_delayed_message_waits_and_an_answer_that_is_not_there_yet_is_pending() {
    let stage = Stage::new().await;
    let worker = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let options = Options::default().delay(Duration::from_secs(3600));
    let sent = stage.tide.enqueue_with(Work { n: 1 }, options).await.unwrap();
    assert_eq!(sent.answer(Duration::from_millis(1)).await.unwrap(), Answer::Pending(State::Ready));
    let sooner = Options::default().delay(Duration::from_millis(30));
    let sooner = stage.tide.enqueue_with(Work { n: 2 }, sooner).await.unwrap();
    assert_eq!(sooner.answer(SOON).await.unwrap(), Answer::Completed(2));
    let view = stage.view(sooner.id()).await;
    assert!(view.ended_at.unwrap().since(view.message.enqueued_at) >= Duration::from_millis(30));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_lower_number_of_priority_runs_first() {
    let stage = Stage::new().await;
    for (n, priority) in [(1, 9), (2, 5), (3, 0)] {
        let options = Options::default().priority(Priority::new(priority).unwrap());
        stage.tide.enqueue_with(Work { n }, options).await.unwrap();
    }
    let (order, ran) = tokio::sync::mpsc::unbounded_channel();
    let mut ran = ran;
    let handler = move |_, work: Work| {
        order.send(work.n).unwrap();
        async move { Ok(work.n) }
    };
    let worker = stage.tide.worker().concurrency(1).handle(handler).start().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(ran.recv().await.unwrap());
    }
    assert_eq!(seen, [3, 2, 1]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_failure_is_an_answer_with_its_code_and_replays() {
    let stage = Stage::new().await;
    let handler =
        |_, _: Work| async move { Err::<u32, _>(HandlerError::permanent("no_such_account", "it was closed")) };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let first = stage.tide.enqueue(Work { n: 1 }).await.unwrap().answer(SOON).await.unwrap();
    let Answer::Failed(failure) = &first else { panic!("{first:?}") };
    assert_eq!((failure.code.as_str(), failure.detail.as_str()), ("no_such_account", "it was closed"));
    let again = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert!(matches!(again.enqueued(), Some(Enqueued::Replayed { .. })));
    assert_eq!(again.answer(SOON).await.unwrap(), first);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_retryable_failure_comes_again_until_the_attempts_are_used_up() {
    let stage = Stage::new().await;
    let handler = |context: tidegate::Context, work: Work| async move {
        if work.n > context.attempt() {
            return Err(HandlerError::retryable("not_yet", format!("attempt {}", context.attempt())));
        }
        Ok(context.attempt())
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let passes = stage.tide.enqueue(Work { n: 3 }).await.unwrap();
    assert_eq!(passes.answer(SOON).await.unwrap(), Answer::Completed(3));
    let dies = stage.tide.enqueue(Work { n: 4 }).await.unwrap();
    assert_eq!(dies.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    let codes: Vec<String> = stage.view(dies.id()).await.history.into_iter().map(|ending| ending.code).collect();
    assert_eq!(codes, ["not_yet", "not_yet", "not_yet"]);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_answer_comes_from_whichever_process_ran_the_handler() {
    let stage = Stage::new().await;
    let elsewhere = stage.again(Duration::from_secs(10)).await;
    let worker = elsewhere.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 5 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(5));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_payload_that_does_not_decode_is_a_dead_letter_at_once() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Other {
        name: String,
    }
    impl tidegate::Message for Other {
        const KIND: &'static str = "work";
        type Answer = u32;
        fn key(&self) -> String {
            self.name.clone()
        }
    }
    let stage = Stage::new().await;
    let worker = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let sent = stage.tide.enqueue(Other { name: "x".into() }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "decode".into() });
    let view = stage.view(sent.id()).await;
    assert!(view.failure.unwrap().detail.contains("missing field `n`"));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_retention_below_the_redelivery_horizon_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("tide.db");
    let hour = Duration::from_secs(3600);
    let error = tidegate::Tidegate::builder().retention(hour).open(&path).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Invalid);
    assert!(!path.exists(), "refused before anything was made");
    tidegate::Tidegate::builder().retention(hour).redelivery_horizon(hour).open(&path).await.unwrap();
}

#[tokio::test]
async fn once_it_is_closed_a_store_is_whole_in_its_one_file() {
    let stage = Stage::new().await;
    let worker = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    sent.answer(SOON).await.unwrap();
    worker.stop().await.unwrap();
    let Stage { tide, dir } = stage;
    let clone = tide.clone();
    tide.close().await;
    assert_eq!(clone.enqueue(Work { n: 2 }).await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["tide.db"]);
    let copy = dir.path().join("copy.db");
    std::fs::copy(dir.path().join("tide.db"), &copy).unwrap();
    let tide = tidegate::Tidegate::open(&copy).await.unwrap();
    assert!(tide.enqueue(Work { n: 1 }).await.unwrap().is_replayed());
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_told_to_those_who_wait_for_it_and_to_nobody_else() {
    let stage = Stage::new().await;
    let worker = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let (spoilt, whole) =
        (stage.tide.enqueue(Work { n: 1 }).await.unwrap(), stage.tide.enqueue(Work { n: 2 }).await.unwrap());
    for sent in [&spoilt, &whole] {
        sent.answer(SOON).await.unwrap();
    }
    let file = tidegate::sqlite::rusqlite::Connection::open(stage.tide.sqlite().unwrap().path()).unwrap();
    file.execute_batch("pragma ignore_check_constraints = on").unwrap();
    let spoil = "update tide_result set state = 'nonsense' where id = ?1";
    assert_eq!(file.execute(spoil, [spoilt.id().as_i64()]).unwrap(), 1);
    // Both are waited for before the reader runs: it looks them up together.
    let (refused, answered) = tokio::join!(spoilt.answer(SOON), whole.answer(SOON));
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Corrupt);
    assert_eq!(answered.unwrap(), Answer::Completed(2));
    worker.stop().await.unwrap();
}
