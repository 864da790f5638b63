use std::time::Duration;

use tidegate::store::Redrive;
use tidegate::{Answer, Context, EffectAnswer, HandlerError, Options, State};

use crate::stage::{Count, Next, SOON, Stage, Work, act, at_once};

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

#[tokio::test]
async fn follow_ups_come_with_the_completion_and_a_flow_ends_when_all_of_it_has() {
    let stage = Stage::new().await;
    let first = |context: Context, work: Work| async move {
        context.then(Next { of: work.n });
        context.then_with(Next { of: work.n + 1 }, Options::default().item("second"));
        if context.attempt() == 1 {
            return Err(HandlerError::retryable("stumbled", "nothing may follow from this attempt"));
        }
        Ok(work.n)
    };
    let next = |_, next: Next| async move { Ok(next.of) };
    let worker = stage.tide.worker().handle_with(first, at_once(3)).handle(next).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let flow = sent.flow(SOON).await.unwrap();
    assert!(flow.is_completed(), "{flow:?}");
    assert_eq!(flow.messages.len(), 3);
    assert!(flow.messages.iter().all(|message| message.flow == sent.id()));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_compensation_comes_with_the_failure_and_only_then() {
    let stage = Stage::new().await;
    let first = |context: Context, work: Work| async move {
        let capture = context.effect("capture").keyed(LONG);
        capture.call(|_| async { EffectAnswer::confirmed(()) }).await?;
        context.compensate(Next { of: work.n });
        if work.n == 1 { Err(HandlerError::permanent("closed", "the account is closed")) } else { Ok(work.n) }
    };
    let next = |_, next: Next| async move { Ok(next.of) };
    let worker = stage.tide.worker().handle(first).handle(next).start().await.unwrap();
    let failed = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let flow = failed.flow(SOON).await.unwrap();
    let states: Vec<State> = flow.messages.iter().map(|message| message.state).collect();
    assert_eq!(states, [State::Failed, State::Completed]);
    let completed = stage.tide.enqueue(Work { n: 2 }).await.unwrap();
    assert_eq!(completed.flow(SOON).await.unwrap().messages.len(), 1);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn never_after_a_confirmed_effect_and_without_a_compensation_is_a_dead_letter() {
    let stage = Stage::new().await;
    let handler = |context: Context, _: Work| async move {
        let capture = context.effect("capture").keyed(LONG);
        capture.call(|_| async { EffectAnswer::confirmed(()) }).await?;
        Err::<u32, _>(HandlerError::permanent("closed", "the account is closed"))
    };
    let worker = stage.tide.worker().handle(handler).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let answer = sent.answer(SOON).await.unwrap();
    assert_eq!(answer, Answer::Dead { reason: "permanent_after_effect".into() });
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_follow_up_that_cannot_be_stored_stops_the_attempt_before_another_effect() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Big {
        text: String,
    }
    impl tidegate::Message for Big {
        const KIND: &'static str = "big";
        type Answer = ();
        fn key(&self) -> String {
            "big".into()
        }
    }
    let stage = Stage::new().await;
    let handler = |context: Context, _: Work| async move {
        context.then(Big { text: "x".repeat(2 << 20) });
        let capture = context.effect("capture").keyed(LONG);
        capture.call(|_| async { panic!("sent all the same") }).await
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "settlement_refused".into() });
    let view = stage.view(sent.id()).await;
    assert!(view.failure.unwrap().detail.contains("over the limit of 1048576") && view.journal.is_empty());
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn what_was_undone_is_not_completed_by_a_redrive() {
    let stage = Stage::new().await;
    let repaired = Count::default();
    let is_repaired = repaired.clone();
    let handler = move |context: Context, work: Work| {
        let repaired = is_repaired.get() > 0;
        async move {
            let charge = context.effect("charge").keyed(LONG);
            charge.call(|_| async { EffectAnswer::confirmed(()) }).await?;
            context.compensate(Next { of: work.n });
            if repaired { Ok(work.n) } else { Err(HandlerError::retryable("books", "they are down")) }
        }
    };
    let refund = |_: Context, next: Next| async move { Ok(next.of) };
    let worker = stage.tide.worker().handle_with(handler, at_once(2)).handle(refund).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let flow = sent.flow(SOON).await.unwrap();
    let states: Vec<State> = flow.messages.iter().map(|message| message.state).collect();
    assert_eq!(states, [State::Dead, State::Completed], "charged, given up, and given back");
    repaired.up();
    let redrive = Redrive { ids: vec![sent.id()], again: true, operation: "op".into(), act: act() };
    let refused = stage.tide.redrive(redrive).await.unwrap().remove(0).unwrap_err();
    assert!(refused.what().contains("a compensation that undoes it"), "{refused}");
    worker.stop().await.unwrap();
}
