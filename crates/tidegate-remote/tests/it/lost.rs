//! What is lost on the way: nothing is done twice, and what nobody knows is said to be unknown.

use std::time::Duration;

use tidegate::store::{Act, ChangeQueue, ChangeToken, Enqueued, Filter, QueueChange};
use tidegate::token::{Glob, Scope, Secret, TokenChange};
use tidegate::{Store, StoreErrorKind, SystemRandom, Tenant, TokenName};

use crate::stage::{Fate, Stage, message, queue};

fn act() -> Act {
    Act { actor: "ada".to_owned(), reason: "a test".to_owned() }
}

#[tokio::test]
async fn an_enqueue_whose_reply_was_lost_is_sent_again_and_stores_one_message() {
    let stage = Stage::new().await;
    stage.wire.will([Fate::ReplyLost, Fate::ReplyLost]);
    let verdict = stage.remote.enqueue(vec![message("a")]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!(stage.wire.tries(), 3);
    let all = stage.tide.store().list(Filter { limit: 10, ..Filter::default() }).await.unwrap();
    assert_eq!(all.len(), 1);
    // Nobody but this call has enqueued it, and that cannot be known: the key is.
    let Enqueued::Existing { id, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(id, all[0].id);
}

#[tokio::test(start_paused = true)]
async fn when_no_answer_ever_comes_an_act_is_said_to_be_unknown_and_a_look_is_not() {
    let stage = Stage::new().await;
    stage.wire.will(vec![Fate::Swallowed; 100]);
    let began = tokio::time::Instant::now();
    let error = stage.remote.enqueue(vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    for part in ["gave no answer to enqueue", "connection reset", "whether it was done is not known", "done twice"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    assert!(began.elapsed() <= Duration::from_secs(20), "patience ends: {:?}", began.elapsed());
    assert!(stage.wire.tries() > 5, "it was tried as long as patience lasts");
    let error = stage.remote.list(Filter { limit: 1, ..Filter::default() }).await.unwrap_err();
    assert!(error.to_string().contains("nothing is changed by it"), "{error}");
    assert!(!error.to_string().contains("not known"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_is_told_of_at_once_and_nothing_was_sent() {
    let stage = Stage::new().await;
    stage.wire.will(vec![Fate::NotSent; 100]);
    let began = tokio::time::Instant::now();
    let error = stage.remote.enqueue(vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    for part in ["cannot reach the server at http://127.0.0.1:7401", "connection refused", "nothing was sent"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(stage.wire.tries(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_restarted_is_waited_for_as_long_as_it_asks() {
    const BUSY: &str = r#"{"type":"/problems/busy","title":"t","status":503,"detail":"it stops","retryable":true,"retry_after_s":3,"fix":"wait"}"#;
    const HEADERS: &[(&str, &str)] =
        &[("content-type", "application/problem+json"), ("retry-after", "3"), ("tidegate-version", "0.1.0")];
    let stage = Stage::new().await;
    stage.wire.will([Fate::Answered(503, HEADERS, BUSY), Fate::NotSent]);
    let began = tokio::time::Instant::now();
    assert!(matches!(stage.remote.enqueue(vec![message("a")]).await.unwrap()[..], [Ok(Enqueued::New { .. })]));
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(stage.wire.tries(), 3);
    // Longer than patience lasts, it is not waited for at all.
    const LONG: &[(&str, &str)] =
        &[("content-type", "application/problem+json"), ("retry-after", "600"), ("tidegate-version", "0.1.0")];
    stage.wire.will([Fate::Answered(503, LONG, BUSY)]);
    let began = tokio::time::Instant::now();
    let error = stage.remote.enqueue(vec![message("b")]).await.unwrap_err();
    assert_eq!((error.kind(), error.what()), (StoreErrorKind::Unavailable, "it stops"));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_token_whose_making_was_not_answered_is_made_once() {
    let stage = Stage::new().await;
    let secret = Secret::new(&SystemRandom);
    let change = |change| ChangeToken { name: TokenName::new("app").unwrap(), change, act: act() };
    let add = TokenChange::Add {
        hash: secret.hash(),
        scopes: vec!["read".parse::<Scope>().unwrap()],
        tenant: Glob::default(),
        expires_at: None,
    };
    stage.wire.will([Fate::ReplyLost]);
    let kept = stage.remote.change_token(change(add)).await.unwrap();
    assert_eq!((kept.len(), kept[0].hash), (1, secret.hash()));
    stage.wire.will([Fate::ReplyLost]);
    let kept = stage.remote.change_token(change(TokenChange::Revoke)).await.unwrap();
    assert!(kept[0].revoked_at.is_some());
    assert_eq!(stage.remote.tokens().await.unwrap(), stage.tide.store().tokens().await.unwrap());
    let sent = stage.wire.sent.lock().unwrap().join(" ");
    assert!(!sent.contains(secret.reveal()), "the token itself travelled");
}

#[tokio::test]
async fn a_pause_whose_reply_was_lost_is_a_pause() {
    let stage = Stage::new().await;
    stage.wire.will([Fate::ReplyLost]);
    let change =
        ChangeQueue { tenant: Tenant::default(), queue: queue("work"), change: QueueChange::Pause, act: act() };
    stage.remote.pause(change).await.unwrap();
    assert!(stage.tide.store().stats().await.unwrap().queues[0].paused);
}
