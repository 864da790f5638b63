//! What a server refuses, and what is no server of ours.

use std::sync::Arc;

use tidegate::store::{Act, ChangeQueue, ChangeToken, Enqueued, Filter, QueueChange};
use tidegate::token::{Glob, Scope, Secret, TokenChange};
use tidegate::{Kind, Store, StoreErrorKind, SystemRandom, Tenant, Tidegate, TokenName};
use tidegate_api::{ProblemType, Refusal};
use tidegate_remote::{Options, RemoteStore};
use tidegate_server::Demand;

use crate::stage::{Fate, InProcess, Stage, message, queue, served, url};

/// Makes a token and gives it back.
pub(crate) async fn token(tide: &Tidegate, name: &str, scopes: &[&str]) -> String {
    token_of(tide, name, scopes, "").await
}

/// The same for tenants.
async fn token_of(tide: &Tidegate, name: &str, scopes: &[&str], tenants: &str) -> String {
    let secret = Secret::new(&SystemRandom);
    let change = TokenChange::Add {
        hash: secret.hash(),
        scopes: scopes.iter().map(|scope| scope.parse::<Scope>().unwrap()).collect(),
        tenant: Glob::new(tenants).unwrap(),
        expires_at: None,
    };
    let act = Act { actor: "test".into(), reason: String::new() };
    tide.store().change_token(ChangeToken { name: TokenName::new(name).unwrap(), change, act }).await.unwrap();
    secret.reveal().to_owned()
}

pub(crate) fn with_token(tide: &Tidegate, token: Option<String>) -> RemoteStore {
    let mut options = Options::default();
    options.token = token;
    RemoteStore::over(Arc::new(InProcess(served(tide, Demand::Always))), &url(), options).unwrap()
}

#[tokio::test]
async fn errors_of_the_store_are_the_same_over_http() {
    let stage = Stage::new().await;
    let (local, remote) = (stage.tide.store(), &stage.remote);
    local.enqueue(vec![message("a")]).await.unwrap();
    let limit = QueueChange::Limit(Some(1));
    let act = Act { actor: "ada".to_owned(), reason: String::new() };
    local.pause(ChangeQueue { tenant: Tenant::default(), queue: queue("work"), change: limit, act }).await.unwrap();
    let another = tidegate::message::NewMessage { kind: Kind::new("other").unwrap(), ..message("a") };
    let full = message("b");
    let too_late = tidegate::message::NewMessage {
        deadline: Some(tidegate::Timestamp::EPOCH),
        due: tidegate::message::Due::At(tidegate::Timestamp::from_millis(4_000_000_000_000)),
        ..message("c")
    };
    for case in [another, full, too_late] {
        let here = local.enqueue(vec![case.clone()]).await.unwrap().pop().unwrap().unwrap_err();
        let there = remote.enqueue(vec![case]).await.unwrap().pop().unwrap().unwrap_err();
        assert_eq!(here, there);
        assert_eq!(here.conflicting_id(), there.conflicting_id(), "{here}");
        assert_eq!(here.hint_text(), there.hint_text(), "{here}");
        assert_eq!(here.retry_after_duration().is_some(), there.retry_after_duration().is_some(), "{here}");
    }
}

#[tokio::test]
async fn a_token_that_is_refused_is_told_as_what_it_is() {
    let stage = Stage::new().await;
    stage.tide.store().enqueue(vec![message("a")]).await.unwrap();
    let reader = token(&stage.tide, "reader", &["read:other"]).await;
    for (token, kind, status) in [
        (None, ProblemType::Unauthorized, 401),
        (Some("tg_nobodys".to_owned()), ProblemType::Unauthorized, 401),
        (Some(reader), ProblemType::Forbidden, 403),
    ] {
        let remote = with_token(&stage.tide, token);
        let filter =
            Filter { queue: Some(queue("work")), tenant: Some(Tenant::default()), limit: 1, ..Filter::default() };
        let error = remote.list(filter).await.unwrap_err();
        let refusal = Refusal::of(&error).unwrap();
        assert_eq!((refusal.kind, refusal.status), (Some(kind), status), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("token")), "{error}");
        assert!(!error.to_string().contains("tg_nobodys"), "{error}");
    }
}

#[tokio::test]
async fn of_all_tenants_a_token_sees_its_own_and_one_that_may_not_read_is_refused() {
    let stage = Stage::new().await;
    let theirs = tidegate::message::NewMessage { tenant: Tenant::new("acme").unwrap(), ..message("theirs") };
    stage.tide.store().enqueue(vec![message("ours"), theirs]).await.unwrap();
    let everything = || Filter { limit: 9, ..Filter::default() };
    let of_acme = with_token(&stage.tide, Some(token_of(&stage.tide, "acme", &["read"], "acme").await));
    let seen = of_acme.list(everything()).await.unwrap();
    assert_eq!(seen.iter().map(|summary| summary.key.as_str()).collect::<Vec<_>>(), ["theirs"]);
    assert_eq!(of_acme.groups(everything()).await, Ok(vec![]));
    let producer = with_token(&stage.tide, Some(token(&stage.tide, "producer", &["produce", "read:else*"]).await));
    for refused in [
        producer.list(Filter { queue: Some(queue("work")), ..everything() }).await.map(drop),
        producer.groups(Filter { queue: Some(queue("work")), ..everything() }).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(Refusal::of(&error).unwrap().status, 403, "{error}");
    }
    assert_eq!(producer.list(everything()).await, Ok(vec![]), "it may read some queue, on which there is nothing");
    let worker = with_token(&stage.tide, Some(token(&stage.tide, "worker", &["work"]).await));
    for refused in [worker.list(everything()).await.map(drop), worker.audit(0, 9).await.map(drop)] {
        assert_eq!(Refusal::of(&refused.unwrap_err()).unwrap().status, 403);
    }
}

#[tokio::test]
async fn contents_are_masked_unless_they_are_asked_for_by_one_who_may() {
    let stage = Stage::new().await;
    let Enqueued::New { id } = stage.tide.store().enqueue(vec![message("a")]).await.unwrap().remove(0).unwrap() else {
        panic!("the key is new")
    };
    let reader = with_token(&stage.tide, Some(token(&stage.tide, "reader", &["read"]).await));
    let view = reader.inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*view.message.payload, r#"{"masked":true,"bytes":14}"#);
    let view = stage.remote.inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*view.message.payload, r#"{ "of" : "a" }"#);
}

#[tokio::test]
async fn what_is_no_server_of_ours_is_told_as_that() {
    let stage = Stage::new().await;
    const HTML: &[(&str, &str)] = &[("content-type", "text/html; charset=utf-8")];
    for (fate, part) in [
        (Fate::Answered(200, HTML, "<h1>hello</h1>"), "is no Tidegate server: it said 200 OK as text/html"),
        (Fate::Answered(404, HTML, "<h1>no</h1>"), "is no Tidegate server: it said 404 Not Found as text/html"),
        (Fate::Answered(301, &[], ""), "is no Tidegate server: it said 301 Moved Permanently"),
    ] {
        stage.wire.will([fate]);
        let error = stage.remote.tokens().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Invalid);
        assert!(error.what().contains(part) && error.what().contains("http://127.0.0.1:7401"), "{error}");
        assert!(error.hint_text().unwrap().contains("check the address"), "{error}");
    }
}

#[tokio::test]
async fn a_server_of_another_version_is_told_as_that() {
    const JSON: &[(&str, &str)] = &[("content-type", "application/json"), ("tidegate-version", "9.1.0")];
    const PROBLEM: &[(&str, &str)] = &[("content-type", "application/problem+json"), ("tidegate-version", "0.0.1")];
    const NOTHING: &str = r#"{"type":"/problems/not-found","title":"t","status":404,"detail":"nothing is at /v1/tokens","retryable":false,"fix":"f"}"#;
    let stage = Stage::new().await;
    stage.wire.will([Fate::Answered(200, JSON, r#"{"tokens":[{"nome":"app"}]}"#)]);
    let error = stage.remote.tokens().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    for part in ["Tidegate 9.1.0", "cannot read", "missing field", "different versions"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    stage.wire.will([Fate::Answered(404, PROBLEM, NOTHING)]);
    let error = stage.remote.tokens().await.unwrap_err();
    for part in ["has no tokens", "it is Tidegate 0.0.1", "update the older"] {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
}
