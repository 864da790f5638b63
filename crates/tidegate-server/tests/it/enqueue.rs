//! One message.

use http::Method;
use serde_json::json;
use tidegate::store::{Act, ChangeQueue, QueueChange};
use tidegate::{MessageId, QueueName, Tenant, Timestamp};

use crate::stage::{Reply, Stage, answer_next};

const DEPOSITS: &str = "/v1/queues/deposits/messages";
const CAPTURE: &str = r#"{"kind":"capture","payload":{"cents":150}}"#;

pub(crate) fn id(reply: &Reply) -> MessageId {
    reply.json()["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_message_is_stored_byte_for_byte_before_it_is_answered() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"capture","payload":{ "cents" : 9007199254740993, "f": 1.50 }}"#;
    let reply = stage.post_under("\"d-1\"", DEPOSITS, body).await;
    let sent = reply.of(202);
    assert_eq!((&sent["result"], &sent["state"]), (&json!("added"), &json!("ready")));
    assert_eq!(reply.header("location").unwrap(), format!("/v1/messages/{}", id(&reply)));
    assert!(reply.header("idempotency-replayed").is_none());
    let stored = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*stored.message.payload, r#"{ "cents" : 9007199254740993, "f": 1.50 }"#);
    assert_eq!((stored.message.queue.as_str(), stored.message.key.as_str()), ("deposits", "d-1"));
}

#[tokio::test]
async fn a_key_that_is_known_is_answered_and_starts_no_second_work() {
    let stage = Stage::new().await;
    let first = stage.post_under("\"d-1\"", DEPOSITS, CAPTURE).await;
    // Bare and quoted are one key; so are the header and the member.
    let again = stage.post_under("d-1", DEPOSITS, CAPTURE).await;
    let sent = again.of(202);
    assert_eq!((&sent["result"], &sent["state"], id(&again)), (&json!("known"), &json!("ready"), id(&first)));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.header("location"), first.header("location"));
    let member =
        stage.post(DEPOSITS, r#"{"kind":"capture","payload":{"cents":150},"key":"d-1","delay_ms":9000}"#).await;
    assert_eq!((id(&member), &member.of(202)["ignored"]), (id(&first), &json!(["due"])));

    answer_next(&stage.tide, "deposits", "capture", r#"{ "charge" : "ch_1" }"#).await;
    let replayed = stage.post_under("\"d-1\"", DEPOSITS, CAPTURE).await;
    assert_eq!(replayed.header("idempotency-replayed"), Some("true"));
    assert_eq!(replayed.of(200)["result"], "replayed");
    assert!(replayed.text().contains(r#""answer":{"result":{ "charge" : "ch_1" }}"#), "{}", replayed.text());
    let repeated = stage.post_under("\"d-1\"", DEPOSITS, CAPTURE).await;
    assert_eq!(repeated.body, replayed.body, "two repeats got two answers");
}

#[tokio::test]
async fn another_payload_under_a_key_is_refused_and_the_earlier_one_is_not_shown() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"capture","payload":{"card":"4242-secret"}}"#;
    let first = stage.post_under("\"d-1\"", DEPOSITS, body).await;
    let other = stage.post_under("\"d-1\"", DEPOSITS, CAPTURE).await;
    assert_eq!(other.status, 422);
    let problem = other.problem("key-conflict");
    assert_eq!(problem["message"], id(&first).to_string());
    assert_eq!(problem["instance"], format!("/v1/messages/{}", id(&first)));
    assert_eq!(problem["retryable"], false);
    assert!(!other.text().contains("4242"), "{}", other.text());
    // Another kind is another thing to do as well; the same key on another queue is another key.
    let kind = stage.post_under("\"d-1\"", DEPOSITS, r#"{"kind":"refund","payload":{"card":"4242-secret"}}"#).await;
    kind.problem("key-conflict");
    assert_ne!(id(&stage.post_under("\"d-1\"", "/v1/queues/refunds/messages", body).await), id(&first));
}

#[tokio::test]
async fn a_message_needs_a_key_that_is_one() {
    let stage = Stage::new().await;
    let missing = stage.post(DEPOSITS, CAPTURE).await;
    assert_eq!(missing.status, 400);
    missing.problem("idempotency-key-missing");
    for key in ["\"\"", "\"a", "\"a b\"", "a b", "\"a\";v=1"] {
        let reply = stage.post_under(key, DEPOSITS, CAPTURE).await;
        assert_eq!(reply.status, 400, "{key}");
        reply.problem("idempotency-key-malformed");
    }
    let json = ("content-type", "application/json");
    let twice = [json, ("idempotency-key", "a"), ("idempotency-key", "a")];
    stage.send(Method::POST, DEPOSITS, &twice, CAPTURE).await.problem("idempotency-key-malformed");
    let differs = r#"{"kind":"capture","payload":1,"key":"b"}"#;
    stage.post_under("a", DEPOSITS, differs).await.problem("idempotency-key-malformed");
    assert!(stage.everything().await.is_empty(), "something was stored");

    let unique = r#"{"kind":"capture","payload":1,"unique_key":true}"#;
    assert_ne!(id(&stage.post(DEPOSITS, unique).await), id(&stage.post(DEPOSITS, unique).await));
}

#[tokio::test]
async fn every_option_arrives_at_the_store() {
    let stage = Stage::new().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = r#"{"kind":"capture","payload":1,"version":3,"priority":2,"due_at":"2100-01-01T00:00:00Z",
        "deadline":"2100-02-01T00:00:00Z","max_age_ms":60000,"headers":{"x":"y"}}"#;
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("idempotency-key", "\"d-1\""),
        ("tidegate-tenant", "acme"),
        ("traceparent", parent),
        ("tracestate", "a=1"),
    ];
    let reply = stage.send(Method::POST, DEPOSITS, &headers, body).await;
    let view = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    let message = view.message;
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    assert_eq!((message.version, message.priority.get()), (3, 2));
    assert_eq!(message.first_due_at, time("2100-01-01T00:00:00Z"));
    assert_eq!(message.deadline, Some(time("2100-02-01T00:00:00Z")));
    assert_eq!(message.tenant, Tenant::new("acme").unwrap());
    let headers: Vec<_> = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, [("traceparent", parent), ("tracestate", "a=1"), ("x", "y")]);

    let delayed = r#"{"kind":"capture","payload":1,"delay_ms":3600000,"tenant":"other"}"#;
    let reply = stage.post_under("d-2", DEPOSITS, delayed).await;
    let view = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    let waits = view.message.first_due_at.since(view.message.enqueued_at);
    assert_eq!((waits.as_secs(), view.message.tenant.as_str()), (3600, "other"));
}

#[tokio::test]
async fn a_trace_that_is_not_valid_is_dropped_without_a_word() {
    let stage = Stage::new().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("traceparent", "00-nonsense")];
    let reply = stage.send(Method::POST, DEPOSITS, &headers, CAPTURE).await;
    reply.of(202);
    let view = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    assert!(view.message.headers.is_empty(), "{:?}", view.message.headers);
}

#[tokio::test]
async fn a_key_that_may_have_been_done_and_forgotten_is_not_done() {
    let stage = Stage::new().await;
    let old = r#"{"kind":"capture","payload":1,"key_time":"2020-01-01T00:00:00Z"}"#;
    let reply = stage.post_under("a", DEPOSITS, old).await;
    assert_eq!(reply.status, 409);
    reply.problem("stale-key");
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let stage = Stage::new().await;
    let change = ChangeQueue {
        tenant: Tenant::default(),
        queue: QueueName::new("deposits").unwrap(),
        change: QueueChange::Limit(Some(1)),
        act: Act { actor: "test".to_owned(), reason: String::new() },
    };
    stage.tide.store().pause(change).await.unwrap();
    stage.post_under("a", DEPOSITS, CAPTURE).await.of(202);
    let full = stage.post_under("b", DEPOSITS, CAPTURE).await;
    assert_eq!(full.status, 429);
    let problem = full.problem("queue-full");
    let seconds: u64 = full.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds > 0);
    assert_eq!((&problem["retry_after_s"], &problem["retryable"]), (&json!(seconds), &json!(true)));
    // What is known is answered all the same.
    stage.post_under("a", DEPOSITS, CAPTURE).await.of(202);
}

#[tokio::test]
async fn a_store_that_is_closed_is_a_503_to_be_repeated() {
    let stage = Stage::new().await;
    stage.tide.clone().close().await;
    let reply = stage.post_under("a", DEPOSITS, CAPTURE).await;
    assert_eq!(reply.status, 503);
    reply.problem("unavailable");
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn requests_under_one_key_at_the_same_time_are_one_message() {
    let stage = std::sync::Arc::new(Stage::new().await);
    let all: Vec<_> = (0..16)
        .map(|_| {
            let stage = std::sync::Arc::clone(&stage);
            tokio::spawn(async move { stage.post_under("\"d-1\"", DEPOSITS, CAPTURE).await })
        })
        .collect();
    let mut added = 0;
    for each in all {
        let reply = each.await.unwrap();
        added += usize::from(reply.of(202)["result"] == "added");
    }
    assert_eq!((added, stage.everything().await.len()), (1, 1));
}

#[tokio::test]
async fn a_router_that_is_mounted_elsewhere_answers_with_its_own_addresses() {
    let stage = Stage::with(|serving| tidegate_server::Serving { prefix: "/tide".to_owned(), ..serving }).await;
    let reply = stage.post_under("a", DEPOSITS, CAPTURE).await;
    assert_eq!(reply.header("location").unwrap(), format!("/tide/v1/messages/{}", id(&reply)));
}

#[tokio::test]
async fn what_a_message_may_not_be_is_named() {
    let stage = Stage::new().await;
    for (body, slug, says) in [
        (r#"{"payload":1}"#, "malformed", "missing field `kind`"),
        (r#"{"kind":"capture"}"#, "invalid", "no payload"),
        (r#"{"kind":"cap ture","payload":1}"#, "malformed", "$.kind: invalid kind \"cap ture\""),
        (r#"{"kind":"capture","payload":1,"priority":10}"#, "malformed", "$.priority: invalid priority 10"),
        (r#"{"kind":"capture","payload":1,"priority":-1}"#, "malformed", "$.priority"),
        (r#"{"kind":"capture","payload":1,"version":0}"#, "invalid", "payload version 0"),
        (
            r#"{"kind":"capture","payload":1,"delay_ms":1,"due_at":"2100-01-01T00:00:00Z"}"#,
            "invalid",
            "both delay_ms and due_at",
        ),
        (r#"{"kind":"capture","payload":1,"due_at":"tomorrow"}"#, "malformed", "$.due_at: not a time"),
        (r#"{"kind":"capture","payload":1,"queue":"other"}"#, "invalid", "the address names deposits"),
        (r#"{"kind":"capture","payload":1e400}"#, "invalid", "does not survive a double"),
        (r#"{"kind":"capture","payload":1,"tenant":"a b"}"#, "malformed", "$.tenant"),
        (r#"{"kind":"capture","payload":1,"headers":{"x":1}}"#, "malformed", "$.headers.x"),
        (r#"{"kind":"capture","payload":{"a":1,"a":2}}"#, "malformed", "$.payload.a"),
        ("[]", "malformed", "at $"),
        ("", "malformed", "ends too early"),
    ] {
        let reply = stage.post_under("a", DEPOSITS, body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text());
        let detail = reply.problem(slug)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(says), "{body}: {detail}");
    }
    assert!(stage.everything().await.is_empty(), "something was stored");
    // Members that are not known are ignored: what comes later must not break what is there.
    let later = r#"{"kind":"capture","payload":1,"of_a_later_version":{"x":[]}}"#;
    stage.post_under("a", DEPOSITS, later).await.of(202);
}
