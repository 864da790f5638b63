use std::collections::BTreeMap;

use tidegate::store::{Counted, Filter};
use tidegate::{Context, EffectAnswer, HandlerError, State, StoreErrorKind, Tidegate};

use crate::stage::{Next, SOON, Stage, Work, at_once};

const LONG: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// At quiescence every counter is what a recount of messages and their histories gives.
#[tokio::test]
async fn counters_equal_a_recount_of_what_is_stored() {
    let stage = Stage::new().await;
    let handler = |context: Context, work: Work| async move {
        match work.n % 5 {
            0 => Ok(work.n),
            1 if context.attempt() < 3 => Err(HandlerError::retryable("flaky", "again")),
            1 => Ok(work.n),
            2 => Err(HandlerError::permanent("never", "a fact")),
            3 => Err(HandlerError::retryable("broken", "always")),
            _ => {
                context.then(Next { of: work.n });
                let effect = context.effect("capture").at_most_once();
                effect.call(|_| async { EffectAnswer::unknown("time-out") }).await
            }
        }
    };
    let next = |context: Context, next: Next| async move {
        context.effect("mail").keyed(LONG).call(|_| async { EffectAnswer::confirmed(()) }).await?;
        Ok(next.of)
    };
    let worker = stage.tide.worker().handle_with(handler, at_once(4)).handle(next).start().await.unwrap();
    let sent = stage.tide.enqueue_all((0..25).map(|n| Work { n })).await.unwrap();
    for sent in &sent {
        sent.as_ref().unwrap().answer(SOON).await.unwrap();
    }
    stage.tide.enqueue(Work { n: 0 }).await.unwrap();
    stage.tide.enqueue(Work { n: 3 }).await.unwrap();
    worker.stop().await.unwrap();

    let stats = stage.tide.store().stats().await.unwrap();
    let mut counted: BTreeMap<(Counted, String), u64> = BTreeMap::new();
    for tally in &stats.tallies {
        *counted.entry((tally.what, tally.code.clone())).or_default() += tally.n;
    }
    let messages = stage.tide.store().list(Filter { limit: 1000, ..Filter::default() }).await.unwrap();
    let views = stage.tide.store().inspect(messages.iter().map(|message| message.id).collect()).await.unwrap();
    let mut recount: BTreeMap<(Counted, String), u64> = BTreeMap::new();
    let mut up = |what, code: &str| *recount.entry((what, code.to_owned())).or_default() += 1;
    for view in views.iter().flatten() {
        up(Counted::Enqueued, "");
        match view.state {
            State::Completed => {
                up(Counted::Completed, "");
                up(Counted::Attempts, "completed");
            }
            State::Failed => up(Counted::Failed, &view.failure.as_ref().unwrap().code),
            State::Dead => up(Counted::Dead, view.reason.as_ref().unwrap()),
            State::Parked => up(Counted::Parked, view.reason.as_ref().unwrap()),
            State::Ready | State::Leased | State::Cancelled => panic!("{view:?}"),
        }
        for ending in &view.history {
            up(Counted::Attempts, &ending.outcome);
            up(Counted::Failures, &ending.code);
            if ending.state == State::Ready {
                up(Counted::Retries, &ending.code);
            }
        }
    }
    up(Counted::Replayed, "");
    up(Counted::Deduplicated, "");
    assert_eq!(counted, recount);
    assert_eq!(stats.open_effects, 5);
    let depth = |state| views.iter().flatten().filter(|view| view.state == state).count() as u64;
    let (dead, parked) = stats.queues.iter().fold((0, 0), |sum, queue| (sum.0 + queue.dead, sum.1 + queue.parked));
    assert_eq!((dead, parked), (depth(State::Dead), depth(State::Parked)));

    let text = stage.tide.metrics_text().await.unwrap();
    for line in [
        "tidegate_completed_total{queue=\"work\",kind=\"work\"} 10",
        "tidegate_failed_total{queue=\"work\",kind=\"work\",code=\"never\"} 5",
        "tidegate_dead_total{queue=\"work\",kind=\"work\",reason=\"exhausted\"} 5",
        "tidegate_parked_total{queue=\"work\",kind=\"work\",reason=\"outcome_unknown\"} 5",
        "tidegate_queue_messages{queue=\"work\",tenant=\"\",state=\"parked\"} 5",
        "tidegate_open_effects 5",
        "tidegate_run_seconds_count{queue=\"work\",kind=\"work\"} 50",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

/// The limits are beyond any disk, so that none has room; a real full disk is the engine's own test.
#[tokio::test]
async fn without_room_on_the_disk_nothing_is_accepted_or_claimed_and_the_metrics_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.db");
    let with = async |accept, claim| {
        let room = tidegate::sqlite::Room { accept, claim, reserve: 0 };
        Tidegate::builder().room(room).open(&path).await.unwrap()
    };
    let roomy = with(0, 0).await;
    let sent = roomy.enqueue(Work { n: 1 }).await.unwrap();
    roomy.close().await;

    let short = with(1 << 60, 1 << 60).await;
    let refused = short.enqueue(Work { n: 2 }).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::QueueFull);
    assert!(refused.retry_after_duration().is_some() && refused.to_string().contains("hint: free space"), "{refused}");
    assert!(!short.enqueue(Work { n: 1 }).await.unwrap().is_new(), "what is known is answered");
    let handler = |_: Context, work: Work| async move { Ok(work.n) };
    let worker = short.worker().handle(handler).start().await.unwrap();
    let text = short.metrics_text().await.unwrap();
    for line in ["tidegate_disk_room{for=\"settling\"} 1", "tidegate_disk_room{for=\"accepting\"} 0"] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    worker.stop().await.unwrap();
    let view = short.store().inspect(vec![sent.id()]).await.unwrap().remove(0).unwrap();
    assert_eq!((view.state, view.counters.claims), (State::Ready, 0), "it was not begun");
    short.close().await;

    let roomy = with(0, 0).await;
    let worker = roomy.worker().handle(handler).start().await.unwrap();
    assert_eq!(roomy.sent::<Work>(sent.id()).answer(SOON).await.unwrap().completed().unwrap(), 1);
    worker.stop().await.unwrap();
}
