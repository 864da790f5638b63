//! CloudEvents over HTTP, in all three modes.

use http::Method;
use serde_json::json;

use crate::enqueue::id;
use crate::stage::{Stage, answer_next};

const EVENTS: &str = "/v1/queues/deposits/events";

const WHOLE: [(&str, &str); 5] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "7"),
    ("ce-source", "/till/3"),
    ("ce-type", "com.example.deposit"),
    ("content-type", "application/json"),
];

fn structured(id: u32, data: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"/till/3","type":"com.example.deposit","data":{data}}}"#)
}

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=UTF-8");
const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

#[tokio::test]
async fn an_event_is_one_message_in_whatever_mode_it_comes() {
    let stage = Stage::new().await;
    let data = r#"{ "cents" : 1.50 }"#;
    let in_headers = [&WHOLE[..], &[("ce-subject", "Euro%20%E2%82%AC")]].concat();
    let first = stage.send(Method::POST, EVENTS, &in_headers, data).await;
    assert_eq!(first.of(202)["result"], "added");
    let view = stage.tide.store().inspect(vec![id(&first)]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*view.message.payload, data);
    assert_eq!((view.message.kind.as_str(), view.message.key.as_str()), ("com.example.deposit", "/till/3|7"));
    assert_eq!(view.message.headers["ce-subject"], "Euro €");

    let again = stage.send(Method::POST, EVENTS, &[STRUCTURED], structured(7, r#"{"cents":1.5}"#)).await;
    assert_eq!((&again.of(202)["result"], id(&again)), (&json!("known"), id(&first)));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let other = stage.send(Method::POST, EVENTS, &[STRUCTURED], structured(7, "2")).await;
    other.problem("key-conflict");

    answer_next(&stage.tide, "deposits", "com.example.deposit", "\"done\"").await;
    let replayed = stage.send(Method::POST, EVENTS, &in_headers, data).await;
    assert_eq!(replayed.of(200)["answer"], json!({"result": "done"}));
}

#[tokio::test]
async fn a_batch_has_a_verdict_for_each_event() {
    let stage = Stage::new().await;
    let body =
        format!("[{},{},{{\"specversion\":\"1.0\"}},{},7]", structured(1, "1"), structured(2, "2"), structured(1, "1"));
    let reply = stage.send(Method::POST, EVENTS, &[BATCH], body).await.of(200);
    let statuses: Vec<_> = reply["results"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!(statuses, [202, 202, 400, 202, 400]);
    assert_eq!(reply["results"][3]["result"], "known");
    let detail = reply["results"][4]["problem"]["detail"].as_str().unwrap();
    assert!(detail.contains("$[4]"), "{detail}");
    assert_eq!(stage.send(Method::POST, EVENTS, &[BATCH], "[]").await.of(200), json!({"results": []}));
    stage
        .send(Method::POST, EVENTS, &[BATCH, ("idempotency-key", "a")], "[]")
        .await
        .problem("idempotency-key-malformed");
}

#[tokio::test]
async fn a_key_in_the_header_goes_before_that_of_the_event() {
    let stage = Stage::new().await;
    let headers = [&WHOLE[..], &[("idempotency-key", "\"own\"")]].concat();
    let reply = stage.send(Method::POST, EVENTS, &headers, "1").await;
    let view = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(view.message.key.as_str(), "own");
}

#[tokio::test]
async fn an_event_without_data_has_a_payload_of_null() {
    let stage = Stage::new().await;
    let no_type: Vec<_> = WHOLE.into_iter().filter(|(name, _)| *name != "content-type").collect();
    let reply = stage.send(Method::POST, EVENTS, &no_type, "").await;
    let view = stage.tide.store().inspect(vec![id(&reply)]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*view.message.payload, "null");
}

#[tokio::test]
async fn what_is_no_event_is_refused_and_nothing_is_stored() {
    let stage = Stage::new().await;
    let without = |name: &str| WHOLE.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    for name in ["ce-id", "ce-source", "ce-type"] {
        let reply = stage.send(Method::POST, EVENTS, &without(name), "1").await;
        assert_eq!(reply.status, 400);
        reply.problem("malformed");
    }
    type Case<'a> = (Vec<(&'a str, &'a str)>, &'a str, u16);
    let cases: [Case<'_>; 8] = [
        (without("ce-specversion"), "1", 400),
        (without("content-type"), "1", 415),
        (vec![("content-type", "text/plain")], "1", 415),
        (vec![("content-type", "application/cloudevents+avro")], "1", 415),
        ([&without("content-type")[..], &[("content-type", "text/xml")]].concat(), "<a/>", 415),
        ([&WHOLE[..], &[("ce-subject", "%ff")]].concat(), "1", 400),
        ([&without("ce-type")[..], &[("ce-type", "no kind at all")]].concat(), "1", 400),
        (WHOLE.to_vec(), "{\"a\":1,\"a\":2}", 400),
    ];
    for (headers, body, status) in cases {
        let reply = stage.send(Method::POST, EVENTS, &headers, body).await;
        assert_eq!(reply.status, status, "{headers:?}: {}", reply.text());
    }
    let not_utf8 = [&without("ce-subject")[..]].concat();
    let reply = stage.send(Method::POST, EVENTS, &not_utf8, &b"\"\xff\""[..]).await;
    assert!(reply.problem("malformed")["detail"].as_str().unwrap().contains("not UTF-8"));
    assert!(stage.everything().await.is_empty(), "something was stored");
}
