//! Messages, lists, flows and explanations.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::enqueue::id;
use crate::scopes::{guarded, token};
use crate::stage::{Stage, answer_next};

const DEPOSITS: &str = "/v1/queues/deposits/messages";

async fn enqueue(stage: &Stage, key: &str, kind: &str) -> String {
    let body = format!(r#"{{"kind":"{kind}","payload":{{"card":"4242"}}}}"#);
    id(&stage.post_under(key, DEPOSITS, &body).await).to_string()
}

#[tokio::test]
async fn contents_are_shown_to_whoever_asks_for_them_and_to_nobody_else() {
    let stage = Stage::new().await;
    let id = enqueue(&stage, "d-1", "capture").await;
    let masked = stage.get(&format!("/v1/messages/{id}")).await;
    assert_eq!(masked.of(200)["payload"], json!({"masked": true, "bytes": 15}));
    assert!(!masked.text().contains("4242"));
    let shown = stage.get(&format!("/v1/messages/{id}?reveal=payload")).await.of(200);
    assert_eq!(shown["payload"], json!({"card": "4242"}));
    assert_eq!((&shown["key"], &shown["queue"], &shown["state"]), (&json!("d-1"), &json!("deposits"), &json!("ready")));
    stage.get(&format!("/v1/messages/{id}?reveal=everything")).await.problem("malformed");
}

#[tokio::test]
async fn whoever_waits_for_an_answer_gets_it_when_it_is_there() {
    let stage = std::sync::Arc::new(Stage::new().await);
    let id = enqueue(&stage, "d-1", "capture").await;
    let waiting = tokio::spawn({
        let (stage, path) = (std::sync::Arc::clone(&stage), format!("/v1/messages/{id}?wait=30s"));
        async move { stage.get(&path).await.of(200) }
    });
    answer_next(&stage.tide, "deposits", "capture", r#"{"charge":"ch_1"}"#).await;
    let answered = waiting.await.unwrap();
    assert_eq!(
        (&answered["state"], &answered["answer"]),
        (&json!("completed"), &json!({"result": {"charge": "ch_1"}}))
    );
    // It has ended: nobody waits for it any more.
    assert_eq!(stage.get(&format!("/v1/messages/{id}?wait=60s")).await.of(200)["state"], "completed");
}

#[tokio::test]
async fn when_the_time_is_up_the_answer_says_where_the_message_stands() {
    let stage = Stage::new().await;
    let id = enqueue(&stage, "d-1", "capture").await;
    let reply = stage.get(&format!("/v1/messages/{id}?wait=20ms")).await.of(200);
    assert_eq!((&reply["state"], &reply["answer"]), (&json!("ready"), &Value::Null));
    for (wait, slug) in
        [("61s", "invalid"), ("1d", "invalid"), ("20", "malformed"), ("-1s", "malformed"), ("", "malformed")]
    {
        let reply = stage.get(&format!("/v1/messages/{id}?wait={wait}")).await;
        assert_eq!(reply.status, 400, "{wait}");
        reply.problem(slug);
    }
}

#[tokio::test]
async fn whoever_waits_is_answered_at_once_when_the_server_is_being_stopped() {
    let stage = std::sync::Arc::new(Stage::new().await);
    let id = enqueue(&stage, "d-1", "capture").await;
    let waits = |path: String| {
        let stage = std::sync::Arc::clone(&stage);
        tokio::spawn(async move { stage.get(&path).await.of(200) })
    };
    let (message, flow) = (waits(format!("/v1/messages/{id}?wait=60s")), waits(format!("/v1/flows/{id}?wait=60s")));
    stage.stopping.stop();
    let answers = async { (message.await.unwrap(), flow.await.unwrap()) };
    let (message, flow) = tokio::time::timeout(Duration::from_secs(20), answers).await.unwrap();
    assert_eq!((&message["state"], &flow["live"]), (&json!("ready"), &json!(true)));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let stage = Stage::new().await;
    for path in [
        "/v1/messages/msg_01jcz4t6q8000",
        "/v1/messages/nonsense",
        "/v1/messages/%ff",
        "/v1/messages/msg_01jcz4t6q8000?wait=1s",
        "/v1/messages/msg_01jcz4t6q8000/explanation",
        "/v1/flows/msg_01jcz4t6q8000",
        "/v1/queues/deposits/keys/d-1",
        "/v1/queues/dep%20osits/keys/d-1",
        "/v1/nothing",
        "/problems/nothing",
        "/docs/nothing",
        "/",
    ] {
        let reply = stage.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        reply.problem("not-found");
    }
}

#[tokio::test]
async fn a_message_is_found_by_its_key() {
    let stage = Stage::new().await;
    let id = enqueue(&stage, "a%2Fb/%C3", "capture").await;
    // The key is text with a percent sign in it: in an address that is percent-encoded.
    let found = stage.get("/v1/queues/deposits/keys/a%252Fb%2F%25C3").await.of(200);
    assert_eq!(found["id"], id);
    assert_eq!(found["payload"]["masked"], true);
    stage.get("/v1/queues/other/keys/a%252Fb%2F%25C3").await.problem("not-found");
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_by_what_is_asked_for() {
    let stage = Stage::new().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(enqueue(&stage, &format!("d-{n}"), if n == 2 { "refund" } else { "capture" }).await);
    }
    stage.post_under("x", "/v1/queues/other/messages", r#"{"kind":"capture","payload":1}"#).await.of(202);
    let listed = |page: &Value| -> Vec<String> {
        page["messages"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut all = Vec::new();
    let mut path = "/v1/messages?queue=deposits&limit=2".to_owned();
    for expected in [2, 2, 1] {
        let page = stage.get(&path).await.of(200);
        assert_eq!(listed(&page).len(), expected);
        all.extend(listed(&page));
        path = format!("/v1/messages?queue=deposits&limit=2&after={}", page["next"].as_str().unwrap_or("none"));
    }
    assert_eq!(all, ids);
    assert!(path.ends_with("none"), "a page that was not full says that more follow");

    answer_next(&stage.tide, "deposits", "capture", "1").await;
    for (query, expected) in [
        ("", 6),
        ("?kind=refund", 1),
        ("?state=completed", 1),
        ("?state=ready,leased", 5),
        ("?state=dead", 0),
        ("?queue=deposits&kind=capture&state=ready", 3),
        ("?code=declined", 0),
        ("?discarded=true&unknown=1", 6),
    ] {
        let page = stage.get(&format!("/v1/messages{query}")).await.of(200);
        assert_eq!(listed(&page).len(), expected, "{query}");
        assert!(!page.to_string().contains("4242"));
    }
    for (query, slug) in [
        ("limit=0", "invalid"),
        ("limit=1001", "invalid"),
        ("limit=many", "malformed"),
        ("state=asleep", "malformed"),
        ("after=nonsense", "malformed"),
        ("queue=a%20b", "malformed"),
        ("group=grp_1", "malformed"),
        ("queue=a&queue=b", "malformed"),
        ("code=%00", "invalid"),
        ("code=a%0Ab", "invalid"),
        ("queue=%00", "malformed"),
        ("kind=%1B", "malformed"),
        ("state=%00", "malformed"),
    ] {
        let reply = stage.get(&format!("/v1/messages?{query}")).await;
        assert_eq!(reply.status, 400, "{query}");
        reply.problem(slug);
    }
}

#[tokio::test]
async fn a_flow_is_read_and_waited_for() {
    let stage = std::sync::Arc::new(Stage::new().await);
    let id = enqueue(&stage, "d-1", "capture").await;
    let live = stage.get(&format!("/v1/flows/{id}")).await.of(200);
    assert_eq!(
        (&live["live"], &live["completed"], live["messages"].as_array().unwrap().len()),
        (&json!(true), &json!(false), 1)
    );
    let waiting = tokio::spawn({
        let (stage, path) = (std::sync::Arc::clone(&stage), format!("/v1/flows/{id}?wait=30s"));
        async move { stage.get(&path).await.of(200) }
    });
    answer_next(&stage.tide, "deposits", "capture", "1").await;
    let ended = waiting.await.unwrap();
    assert_eq!(
        (&ended["live"], &ended["completed"], &ended["stopped_at"]),
        (&json!(false), &json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn an_explanation_says_why_a_message_waits() {
    let stage = Stage::new().await;
    let id = enqueue(&stage, "d-1", "capture").await;
    let explained = stage.get(&format!("/v1/messages/{id}/explanation")).await.of(200);
    assert_eq!((&explained["id"], &explained["label"]), (&json!(id), &json!("ready")));
    let next = explained["next"].as_str().unwrap();
    assert!(next.contains("none has ever served kind capture"), "{next}");
    assert!(explained["predicates"].as_array().unwrap().iter().any(|predicate| predicate["holds"] == false));
}

#[tokio::test]
async fn a_payload_that_a_token_reveals_is_written_down_with_who_looked() {
    let stage = Stage::new().await;
    let sent = stage.post_under("k-1", "/v1/queues/pay/messages", r#"{"kind":"k","payload":{"card":"4711"}}"#).await;
    let id = sent.of(202)["id"].as_str().unwrap().to_owned();
    let token = token(&stage.tide, "support", &["read", "reveal"], "").await;
    let bearer = format!("Bearer {token}");
    let with = [("authorization", &*bearer)];
    let audit = async || stage.tide.store().audit(0, 100).await.unwrap();
    let before = audit().await.len();
    stage.send(Method::GET, &format!("/v1/messages/{id}"), &with, "").await.of(200);
    assert_eq!(audit().await.len(), before, "masked, it is no reveal");
    let shown = stage.send(Method::GET, &format!("/v1/messages/{id}?reveal=payload"), &with, "").await.of(200);
    assert!(shown.to_string().contains("4711"), "{shown}");
    let rows = audit().await;
    let row = rows.last().unwrap();
    assert_eq!((rows.len(), row.act.as_str()), (before + 1, "reveal"));
    assert!(row.actor.contains("support"), "{}", row.actor);
    assert_eq!(row.message.map(|id| id.to_string()), Some(id));
}

#[tokio::test]
async fn whoever_may_only_produce_is_told_what_it_takes_to_read_and_gets_the_answer_by_the_key() {
    let stage = guarded().await;
    let producer = token(&stage.tide, "producer", &["produce:deposits"], "").await;
    let other = token(&stage.tide, "other", &["produce:other", "work"], "").await;
    let body = r#"{"kind":"capture","key":"d-1","payload":1}"#;
    let added = stage.ask(&producer, Method::POST, DEPOSITS, body).await.of(202);
    let path = format!("/v1/messages/{}?wait=20ms", added["id"].as_str().unwrap());
    let refused = stage.ask(&producer, Method::GET, &path, "").await.problem("forbidden");
    assert!(refused["detail"].as_str().unwrap().contains("may not read on queue deposits"), "{refused}");
    assert!(refused["fix"].as_str().unwrap().contains("--scope read:deposits"), "{refused}");
    // To whoever may not produce there, it is not there.
    stage.ask(&other, Method::GET, &path, "").await.problem("not-found");
    answer_next(&stage.tide, "deposits", "capture", "7").await;
    let replayed = stage.ask(&producer, Method::POST, DEPOSITS, body).await.of(200);
    assert_eq!(replayed["answer"], json!({"result": 7}));
    let both = token(&stage.tide, "both", &["produce:deposits", "read:deposits"], "").await;
    assert_eq!(stage.ask(&both, Method::GET, &path, "").await.of(200)["answer"], json!({"result": 7}));
}
