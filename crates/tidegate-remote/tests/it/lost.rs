//! What is lost on the way: nothing is done twice, and what nobody knows is said to be unknown.

use std::time::Duration;

use tidegate::journal::{EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate::lifecycle::{Cancellation, Outcome};
use tidegate::store::{
    Act, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Discard, Edit, Enqueued, Extend, Filter, Journal,
    JournalWrite, Lease, Note, QueueChange, QueueSlots, Redrive, Settle,
};
use tidegate::token::{Glob, Scope, Secret, TokenChange};
use tidegate::{
    EffectName, Failure, Kind, Nonce, State, Store, StoreErrorKind, SystemRandom, Tenant, TokenName, WorkerId,
};

use crate::stage::{Fate, Stage, message, queue};

fn act() -> Act {
    Act { actor: "ada".to_owned(), reason: "a test".to_owned() }
}

/// A message that is being run.
async fn leased(stage: &Stage) -> Lease {
    let local = stage.tide.store();
    local.enqueue(vec![message("a")]).await.unwrap();
    local.claim(claim(1)).await.unwrap().leases.remove(0)
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
async fn what_was_sent_once_is_not_called_unsent_because_the_server_is_gone_by_then() {
    let stage = Stage::new().await;
    // Whether a proxy's 502 was passed on before is not known. (The store itself would take real time, which a paused clock skips.)
    let passed_on = Fate::Answered(502, &[("content-type", "text/html")], "bad gateway");
    stage.wire.will([vec![passed_on], vec![Fate::NotSent; 100]].concat());
    let error = stage.remote.enqueue(vec![message("a")]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    for part in ["gave no answer to enqueue", "connection refused", "whether it was done is not known"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    assert!(!error.to_string().contains("nothing was sent"), "{error}");
    assert!(stage.wire.tries() > 5, "it was tried as long as patience lasts");
}

#[tokio::test]
async fn a_write_that_a_proxy_answered_is_not_called_refused() {
    const HTML: &[(&str, &str)] = &[("content-type", "text/html")];
    let stage = Stage::new().await;
    for status in [200, 408, 500, 524] {
        stage.wire.will([Fate::Answered(status, HTML, "<h1>it is so</h1>")]);
        let error = stage.remote.enqueue(vec![message("a")]).await.unwrap_err();
        assert_eq!((error.kind(), stage.wire.tries()), (StoreErrorKind::Unavailable, 1), "{status}: {error}");
        assert!(error.what().contains("whether enqueue was done is not known"), "{error}");
    }
}

#[tokio::test]
async fn an_intent_that_may_have_arrived_is_not_sent_again_and_is_taken_back_by_the_settlement() {
    let stage = Stage::new().await;
    let lease = leased(&stage).await;
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let policy = EffectPolicy::AtMostOnce;
    let reached = Reached { effect: effect.clone(), policy, request_hash: [1; 16], quarantine: Duration::ZERO };
    let times = IntentTimes { send_within: Duration::from_secs(10), reconcile_for: Duration::from_secs(3600) };
    let write = JournalWrite::Intent { reached, times };
    let intent = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
    // What never left is sent again; what may be there is not.
    stage.wire.will([Fate::NotSent, Fate::ReplyLost]);
    let error = stage.remote.journal(vec![intent]).await.unwrap_err();
    assert_eq!((error.kind(), stage.wire.tries()), (StoreErrorKind::Unavailable, 2), "{error}");
    let settle = Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::NotDone { failure: Failure::new("journal", "no answer"), after: None },
        journal: vec![JournalWrite::NotSent { effect }],
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    };
    let settled = stage.remote.settle(vec![settle]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!(settled.state, State::Ready);
}

#[tokio::test]
async fn a_connection_that_is_silent_costs_one_extension_and_no_lease() {
    let stage = Stage::new().await;
    let lease = leased(&stage).await;
    let extend = || Extend { id: lease.message.id, token: lease.token, lease: Duration::from_secs(30), alone: false };
    stage.wire.will([Fate::Silent]);
    // Only for as long as nothing but time is waited for: a store beneath has threads of its own.
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let error = stage.remote.extend(vec![extend()]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    tokio::time::resume();
    let extended = stage.remote.extend(vec![extend()]).await.unwrap();
    assert!(extended[0].is_ok(), "{extended:?}");
    assert_eq!(stage.wire.tries(), 2);
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
    // What turned a request away took nothing in.
    stage.wire.will(vec![Fate::Answered(503, HEADERS, BUSY); 10]);
    let error = stage.remote.enqueue(vec![message("c")]).await.unwrap_err();
    assert_eq!((error.kind(), error.what()), (StoreErrorKind::Unavailable, "it stops"));
    stage.wire.clear();
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
    let Ok(Enqueued::New { id }) = stage.remote.enqueue(vec![message("a")]).await.unwrap().remove(0) else { panic!() };
    let note = Note { what: "export".into(), messages: vec![id], detail: String::new(), act: act() };
    stage.wire.will([Fate::ReplyLost]);
    stage.remote.note(note).await.unwrap();
    let audit = stage.tide.store().audit(0, 100).await.unwrap();
    assert_eq!(audit.iter().map(|row| row.act.as_str()).collect::<Vec<_>>(), ["pause", "export"], "once each");
}

// --- a refusal that answers a repetition -------------------------------------------------------------------------------

const IN_DOUBT: &str = "whether an earlier try of this";

pub(crate) fn settlement(lease: &Lease, outcome: Outcome) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome,
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.5,
    }
}

pub(crate) fn claim(nonce: u8) -> ClaimRequest {
    ClaimRequest {
        worker: WorkerId::new("w").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue("work"), slots: 1 }],
        kinds: vec![(Kind::new("work").unwrap(), 1)],
        nonce: Nonce::from_bytes([nonce; 16]),
        lease: Duration::from_secs(30),
    }
}

/// A message with a run that asked to be run again at once.
async fn snoozed(stage: &Stage) -> (Lease, Settle) {
    let lease = leased(stage).await;
    let settle = settlement(&lease, Outcome::Snooze { after: Duration::ZERO });
    (lease, settle)
}

#[tokio::test]
async fn a_settlement_that_was_stored_and_whose_message_went_on_is_not_told_as_plainly_lost() {
    let stage = Stage::new().await;
    let (_, settle) = snoozed(&stage).await;
    let local = stage.tide.store();
    // The first try arrives and its reply is lost; another worker has the message when the second one comes.
    local.settle(vec![settle.clone()]).await.unwrap().remove(0).unwrap();
    let next = local.claim(claim(2)).await.unwrap().leases.remove(0);
    stage.wire.will([Fate::Swallowed]);
    let error = stage.remote.settle(vec![settle.clone()]).await.unwrap().remove(0).unwrap_err();
    assert_eq!((error.kind(), stage.wire.tries()), (StoreErrorKind::LeaseLost, 2));
    assert!(error.what().contains(IN_DOUBT) && error.what().contains("this settle"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("where it stands")), "{error}");
    // Asked once, it is what it is; and so it is where nothing had left.
    for fates in [vec![], vec![Fate::NotSent]] {
        stage.wire.will(fates);
        let error = stage.remote.settle(vec![settle.clone()]).await.unwrap().remove(0).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::LeaseLost);
        assert!(!error.to_string().contains("not known"), "{error}");
    }
    let view = local.inspect(vec![next.message.id]).await.unwrap().remove(0).unwrap();
    assert_eq!((view.state, view.counters.claims), (State::Leased, 2), "the late repetitions changed nothing");
}

#[tokio::test]
async fn a_settlement_whose_reply_was_lost_is_answered_as_it_was_as_long_as_the_message_stays_there() {
    let stage = Stage::new().await;
    for (nonce, outcome, state) in [
        (1, Outcome::Completed { result: "1".into(), orphans: false }, State::Completed),
        (2, Outcome::Snooze { after: Duration::from_secs(60) }, State::Ready),
    ] {
        stage.tide.store().enqueue(vec![message(&format!("m-{nonce}"))]).await.unwrap();
        let lease = stage.tide.store().claim(claim(nonce)).await.unwrap().leases.remove(0);
        stage.wire.will([Fate::ReplyLost, Fate::ReplyLost]);
        let settled = stage.remote.settle(vec![settlement(&lease, outcome)]).await.unwrap().remove(0).unwrap();
        assert_eq!((settled.state, settled.repeated), (state, true));
    }
}

#[tokio::test]
async fn an_enqueue_that_is_refused_by_its_key_was_refused_the_first_time_as_well() {
    let stage = Stage::new().await;
    stage.tide.store().enqueue(vec![message("a")]).await.unwrap();
    let another = tidegate::message::NewMessage { kind: Kind::new("other").unwrap(), ..message("a") };
    stage.wire.will([Fate::ReplyLost]);
    let error = stage.remote.enqueue(vec![another]).await.unwrap().remove(0).unwrap_err();
    assert_eq!((error.kind(), stage.wire.tries()), (StoreErrorKind::KeyConflict, 2));
    assert!(!error.to_string().contains("not known"), "{error}");
}

#[tokio::test]
async fn an_answer_of_an_effect_that_comes_again_after_the_lease_is_lost_may_have_been_written() {
    let stage = Stage::new().await;
    let (lease, settle) = snoozed(&stage).await;
    stage.tide.store().settle(vec![settle]).await.unwrap().remove(0).unwrap();
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let write = JournalWrite::Answer { effect, seq: 0, answer: tidegate::journal::EffectAnswer::NotDone };
    let answer = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
    stage.wire.will([Fate::Swallowed]);
    let error = stage.remote.journal(vec![answer]).await.unwrap().remove(0).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::LeaseLost);
    assert!(error.what().contains(IN_DOUBT) && error.what().contains("this journal"), "{error}");
}

#[tokio::test]
async fn a_token_that_ends_between_two_tries_does_not_say_that_nothing_was_done() {
    const HEADERS: &[(&str, &str)] = &[("content-type", "application/problem+json"), ("tidegate-version", "0.1.0")];
    const ENDED: &str = r#"{"type":"/problems/unauthorized","title":"t","status":401,"detail":"the token has ended","retryable":false,"fix":"make a token"}"#;
    const HTML: &[(&str, &str)] = &[("content-type", "text/html")];
    let stage = Stage::new().await;
    for refusal in [Fate::Answered(401, HEADERS, ENDED), Fate::Answered(403, HTML, "<h1>not you</h1>")] {
        stage.wire.will([Fate::ReplyLost, refusal.clone()]);
        let error = stage.remote.enqueue(vec![message("a")]).await.unwrap_err();
        assert!(error.to_string().contains("not known"), "{error}");
        // What only looks, and what was refused at once, changed nothing.
        stage.wire.will([Fate::ReplyLost, refusal.clone()]);
        let error = stage.remote.list(Filter { limit: 1, ..Filter::default() }).await.unwrap_err();
        assert!(!error.to_string().contains("not known"), "{error}");
        stage.wire.will([refusal]);
        let error = stage.remote.enqueue(vec![message("b")]).await.unwrap_err();
        assert!(!error.to_string().contains("not known"), "{error}");
    }
    let all = stage.tide.store().list(Filter { limit: 9, ..Filter::default() }).await.unwrap();
    assert_eq!(all.len(), 1, "the first of each pair was done, the last was not");
}

#[tokio::test]
async fn an_act_that_is_refused_the_second_time_may_be_what_it_is_refused_for() {
    let stage = Stage::new().await;
    let local = stage.tide.store();
    let lease = leased(&stage).await;
    let id = lease.message.id;
    let failure = Failure::new("oops", "it broke");
    let dead = settlement(&lease, Outcome::Undecodable { failure });
    assert_eq!(local.settle(vec![dead]).await.unwrap().remove(0).unwrap().state, State::Dead);
    let payload = tidegate::message::Payload::from_json(r#"{"of":"b"}"#).unwrap();
    let edit = || Edit { id, payload: payload.clone(), act: act() };
    // As long as the message stays there, a repetition is answered as having changed nothing.
    stage.wire.will([Fate::ReplyLost]);
    let edited = stage.remote.edit(edit()).await.unwrap();
    assert_eq!(edited.before, edited.after);
    let redrive = Redrive { ids: vec![id], again: false, operation: "op".to_owned(), act: act() };
    stage.wire.will([Fate::ReplyLost]);
    assert_eq!(stage.remote.redrive(redrive).await.unwrap(), [Ok(id)]);
    // It went on: nobody can tell from the refusal whether the edit is in what runs.
    stage.wire.will([Fate::Swallowed]);
    let error = stage.remote.edit(edit()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert!(error.what().contains(IN_DOUBT) && error.what().contains("this edit"), "{error}");
    stage.wire.will([Fate::Swallowed]);
    let discard = Discard { ids: vec![id], act: act() };
    let error = stage.remote.discard(discard).await.unwrap().remove(0).unwrap_err();
    assert!(error.what().contains(IN_DOUBT), "{error}");
    // A cancel is answered as the first time.
    stage.wire.will([Fate::ReplyLost]);
    let cancel = Cancel { ids: vec![id], release_key: false, act: act() };
    assert_eq!(stage.remote.cancel(cancel).await.unwrap(), [Ok(Cancellation::Now)]);
    let audit = local.audit(0, 100).await.unwrap();
    assert_eq!(audit.iter().filter(|row| row.act == "cancel").count(), 1, "{audit:?}");
}
