use tidegate::lifecycle::Cancellation;
use tidegate::store::Redrive;
use tidegate::{Answer, Context, HandlerError, QueueName, State};

use crate::stage::{SOON, Stage, Work, act, at_once};

#[tokio::test]
async fn a_ready_message_is_cancelled_on_the_spot_and_keeps_its_key() {
    let stage = Stage::new().await;
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(stage.tide.cancel(sent.id(), act()).await, Ok(Cancellation::Now));
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Cancelled);
    assert!(!stage.tide.enqueue(Work { n: 1 }).await.unwrap().is_new());
    assert_eq!(stage.tide.cancel(sent.id(), act()).await, Ok(Cancellation::Now), "asked for again");
}

#[tokio::test]
async fn a_running_handler_is_told_of_a_cancel_request_and_may_return_early() {
    let stage = Stage::with_lease(std::time::Duration::from_secs(2)).await;
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |context: Context, _: Work| {
        let started = started.clone();
        async move {
            started.send(()).unwrap();
            context.stopped().await;
            Err::<u32, _>(HandlerError::retryable("called_off", "as asked"))
        }
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(5)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    has_started.recv().await.unwrap();
    assert_eq!(stage.tide.cancel(sent.id(), act()).await, Ok(Cancellation::Requested));
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Cancelled);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_is_claimed_from_a_paused_queue_until_it_is_resumed() {
    let stage = Stage::new().await;
    let queue = QueueName::new("work").unwrap();
    stage.tide.pause(&queue, act()).await.unwrap();
    let worker = stage.tide.worker().handle(|_, work: Work| async move { Ok(work.n) }).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let still = sent.answer(std::time::Duration::from_millis(300)).await.unwrap();
    assert_eq!(still, Answer::Pending(State::Ready));
    stage.tide.resume(&queue, act()).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_redriven_dead_letter_begins_anew() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        let generation = context.message().id;
        if context.is_reconciling() {
            return Err(HandlerError::permanent("unexpected", generation));
        }
        Ok(work.n)
    };
    let broken = |_: Context, _: Work| async move { Err::<u32, _>(HandlerError::retryable("broken", "a bug")) };
    let worker = stage.tide.worker().handle_with(broken, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    worker.stop().await.unwrap();
    let repaired = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let redrive = Redrive { ids: vec![sent.id()], again: false, operation: "op-1".into(), act: act() };
    assert_eq!(stage.tide.redrive(redrive).await.unwrap(), [Ok(sent.id())]);
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(1));
    assert_eq!(stage.view(sent.id()).await.counters.generation, 1);
    repaired.stop().await.unwrap();
}
