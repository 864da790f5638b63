//! Many messages at once.

use serde_json::json;

use crate::stage::{Stage, answer_next};

const MANY: &str = "/v1/messages";

#[tokio::test]
async fn each_message_has_a_verdict_of_its_own_and_none_holds_another_back() {
    let stage = Stage::new().await;
    let known = r#"{"queue":"deposits","kind":"capture","payload":{"cents":1},"key":"known"}"#;
    stage.post(MANY, &format!(r#"{{"messages":[{known}]}}"#)).await.of(200);
    answer_next(&stage.tide, "deposits", "capture", "\"ch_1\"").await;
    let body = format!(
        r#"{{"messages":[
            {{"queue":"deposits","kind":"capture","payload":{{"cents":2}},"key":"new"}},
            {known},
            {{"queue":"deposits","kind":"capture","payload":{{"cents":3}},"key":"known"}},
            {{"queue":"deposits","kind":"capture","payload":1}},
            {{"kind":"capture","payload":1,"key":"a"}},
            {{"queue":"deposits","kind":"cap ture","payload":1,"key":"b"}},
            17,
            {{"queue":"deposits","kind":"capture","payload":{{"cents":2}},"key":"new"}},
            {{"queue":"refunds","kind":"refund","payload":null,"key":"null"}}
        ]}}"#
    );
    let reply = stage.post(MANY, &body).await;
    let results = reply.of(200)["results"].as_array().unwrap().clone();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 200, 422, 400, 400, 400, 400, 202, 202]);
    assert_eq!(results[1]["answer"], json!({"result": "ch_1"}));
    assert_eq!((&results[7]["result"], &results[7]["id"]), (&json!("known"), &results[0]["id"]));
    for (at, slug, says) in [
        (2, "key-conflict", "another payload"),
        (3, "idempotency-key-missing", "no idempotency key"),
        (4, "invalid", "names no queue"),
        (5, "malformed", "$.messages[5].kind: invalid kind"),
        (6, "malformed", "$.messages[6]: invalid type"),
    ] {
        let problem = &results[at]["problem"];
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    assert_eq!(stage.everything().await.len(), 3);
}

#[tokio::test]
async fn nothing_is_the_answer_to_nothing() {
    let stage = Stage::new().await;
    assert_eq!(stage.post(MANY, r#"{"messages":[]}"#).await.of(200), json!({"results": []}));
}

#[tokio::test]
async fn more_than_a_batch_is_refused_whole() {
    let stage = Stage::with(|mut serving| {
        serving.limits.batch = 2;
        serving
    })
    .await;
    let one = |n: u32| format!(r#"{{"queue":"q","kind":"k","payload":1,"key":"k{n}"}}"#);
    let of = |n: u32| format!(r#"{{"messages":[{}]}}"#, (0..n).map(one).collect::<Vec<_>>().join(","));
    stage.post(MANY, &of(2)).await.of(200);
    let reply = stage.post(MANY, &of(3)).await;
    assert_eq!(reply.status, 413);
    assert!(reply.problem("too-large")["detail"].as_str().unwrap().contains("3 items are over the limit of 2"));
    assert_eq!(stage.everything().await.len(), 2);
}

#[tokio::test]
async fn one_key_in_the_header_is_the_key_of_no_message_of_many() {
    let stage = Stage::new().await;
    let body = r#"{"messages":[{"queue":"q","kind":"k","payload":1,"key":"a"}]}"#;
    stage.post_under("a", MANY, body).await.problem("idempotency-key-malformed");
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn a_thousand_messages_are_stored_in_one_request_and_known_in_the_next() {
    let stage = Stage::new().await;
    let one = |n: u32| format!(r#"{{"queue":"q","kind":"k","payload":{n},"key":"k{n}"}}"#);
    let body = format!(r#"{{"messages":[{}]}}"#, (0..1000).map(one).collect::<Vec<_>>().join(","));
    for expected in ["added", "known"] {
        let reply = stage.post(MANY, &body).await.of(200);
        let results = reply["results"].as_array().unwrap();
        assert_eq!(results.len(), 1000);
        assert!(results.iter().all(|result| result["result"] == expected), "not all are {expected}");
    }
}
