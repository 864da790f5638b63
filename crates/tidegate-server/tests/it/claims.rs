//! Claims: once under a nonce, at once or when there is something, and of nothing that may not be had.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tidegate::Tidegate;

use crate::scopes::{guarded, token};
use crate::stage::Stage;
use crate::thin::{Held, Still, claim, enqueue, nonce, post_as};

const LEASES: &str = "/v1/leases";

async fn claimed(stage: &Stage, body: &Value) -> Vec<Value> {
    stage.post(LEASES, &body.to_string()).await.of(200)["leases"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_claim_repeated_under_its_nonce_gives_the_same_leases_and_takes_nothing_more() {
    let stage = Stage::new().await;
    for key in ["a", "b", "c"] {
        enqueue(&stage, "capture", key).await;
    }
    let mut body = claim("capture", &nonce());
    body["queues"]["capture"] = json!(2);
    let first = claimed(&stage, &body).await;
    assert_eq!(first.len(), 2);
    assert_eq!(claimed(&stage, &body).await, first);
    let (message, token) = (&first[0]["message"], first[0]["token"].as_str().unwrap());
    assert_eq!((&message["key"], &message["payload"]), (&json!("a"), &json!({"cents": 100})));
    assert!(token.starts_with("1.") && token.ends_with(body["nonce"].as_str().unwrap()), "{token}");
    assert_eq!(first[0]["counters"]["attempt"], 1);
    body["nonce"] = json!(nonce());
    assert_eq!(claimed(&stage, &body).await.len(), 1);
}

#[tokio::test]
async fn a_payload_comes_as_it_was_sent() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"k","payload":{ "n" : 9007199254740993, "f": 1.50 },"key":"a"}"#;
    stage.post("/v1/queues/k/messages", body).await.of(202);
    let reply = stage.post(LEASES, &claim("k", &nonce()).to_string()).await;
    assert!(reply.text().contains(r#""payload":{ "n" : 9007199254740993, "f": 1.50 }"#), "{}", reply.text());
}

#[tokio::test]
async fn only_kinds_and_versions_that_the_worker_knows_are_claimed() {
    let stage = Stage::new().await;
    for (kind, version) in [("capture", 1), ("capture", 2), ("refund", 1)] {
        let body = json!({"kind": kind, "version": version, "payload": 1, "key": format!("{kind}-{version}")});
        stage.post("/v1/queues/pay/messages", &body.to_string()).await.of(202);
    }
    let mut body =
        json!({"worker": "w", "queues": {"pay": 9}, "kinds": {"capture": 1}, "nonce": nonce(), "lease_ms": 30_000});
    let keys = |leases: Vec<Value>| leases.iter().map(|lease| lease["message"]["key"].clone()).collect::<Vec<_>>();
    assert_eq!(keys(claimed(&stage, &body).await), [json!("capture-1")]);
    body["nonce"] = json!(nonce());
    body["kinds"] = json!({"capture": 2, "refund": 3});
    assert_eq!(keys(claimed(&stage, &body).await), [json!("capture-2"), json!("refund-1")]);
}

#[tokio::test]
async fn a_claim_that_waits_is_answered_by_the_enqueue_it_waited_for() {
    let stage = Arc::new(Stage::new().await);
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move {
            let mut body = claim("capture", &nonce());
            body["wait_ms"] = json!(60_000);
            claimed(&stage, &body).await
        }
    });
    let began = tokio::time::Instant::now();
    let id = enqueue(&stage, "capture", "a").await;
    let leases = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert_eq!(leases[0]["message"]["id"], id);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn of_many_that_wait_each_gets_a_message_of_its_own() {
    const WORKERS: usize = 12;
    let stage = Arc::new(Stage::new().await);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let stage = Arc::clone(&stage);
        waiting.spawn(async move {
            let mut body = claim("capture", &nonce());
            body["wait_ms"] = json!(60_000);
            claimed(&stage, &body).await[0]["message"]["id"].to_string()
        });
    }
    for n in 0..WORKERS {
        enqueue(&stage, "capture", &format!("dep-{n}")).await;
    }
    let all = tokio::time::timeout(Duration::from_secs(20), waiting.join_all()).await.unwrap();
    let different: std::collections::BTreeSet<String> = all.into_iter().collect();
    assert_eq!(different.len(), WORKERS);
}

/// Returns when the metrics have this line.
async fn measured(stage: &Stage, line: &str) {
    let began = tokio::time::Instant::now();
    while !stage.send_plain(Method::GET, "/metrics", &[]).await.1.contains(line) {
        assert!(began.elapsed() < Duration::from_secs(20), "no {line}");
    }
}

#[tokio::test]
async fn a_claim_whose_worker_left_while_it_waited_takes_nothing() {
    let stage = Stage::new().await;
    let mut body = claim("capture", &nonce());
    body["wait_ms"] = json!(60_000);
    let body = body.to_string();
    let head = format!(
        "POST /v1/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let worker = stage.begin(format!("{head}{body}").as_bytes()).await;
    measured(&stage, "tidegate_store_call_seconds_count{verb=\"claim\"}").await;
    drop(worker);
    measured(&stage, "tidegate_http_requests_total{route=\"/v1/leases\",method=\"POST\",status=\"gone\"} 1").await;
    enqueue(&stage, "capture", "a").await;
    assert_eq!(Held::claim(&stage, "capture").await.lease["counters"]["claims"], 1);
}

#[tokio::test]
async fn a_claim_that_waits_finds_what_another_process_enqueued() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.db");
    let stage = Arc::new(Stage::over(Tidegate::open(&file).await.unwrap(), |serving| serving).await);
    let elsewhere = Stage::over(Tidegate::open(&file).await.unwrap(), |serving| serving).await;
    let waiting = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move {
            let mut body = claim("capture", &nonce());
            body["wait_ms"] = json!(60_000);
            claimed(&stage, &body).await
        }
    });
    let id = enqueue(&elsewhere, "capture", "a").await;
    let leases = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert_eq!(leases[0]["message"]["id"], id);
}

#[tokio::test]
async fn when_the_time_of_a_claim_is_up_it_says_when_to_ask_again() {
    let stage = Stage::new().await;
    let later = json!({"kind": "capture", "payload": 1, "key": "later", "delay_ms": 3_600_000}).to_string();
    stage.post("/v1/queues/capture/messages", &later).await.of(202);
    let mut body = claim("capture", &nonce());
    body["wait_ms"] = json!(30);
    let reply = stage.post(LEASES, &body.to_string()).await.of(200);
    assert_eq!(reply["leases"], json!([]));
    assert!(reply["next_due"].is_string(), "{reply}");
    body["wait_ms"] = json!(60_001);
    stage.post(LEASES, &body.to_string()).await.problem("invalid");
}

#[tokio::test]
async fn a_server_that_is_being_stopped_hands_out_nothing_and_lets_what_runs_end() {
    let still = Still::new().await;
    let stage = &still.stage;
    still.enqueue("capture", "a").await;
    still.enqueue("capture", "b").await;
    let running = still.claim("capture").await;
    let mut waits = claim("other", &nonce());
    waits["wait_ms"] = json!(60_000);
    let waits = waits.to_string();
    let waiting = stage.post(LEASES, &waits);
    let stop = async {
        // Some claim has begun to wait, or will be told at once: either way it is told.
        stage.get("/v1/messages").await.of(200);
        stage.stopping.stop();
    };
    let (told, ()) =
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(waiting, stop) }).await.unwrap();
    told.problem("busy");
    assert!(told.header("retry-after").is_some());
    stage.post(LEASES, &claim("capture", &nonce()).to_string()).await.problem("busy");
    // What runs is finished: its lease, its effects and its settlement.
    assert_eq!(running.extend().await["status"], 200);
    let send = running.reach(json!({"effect": "mail", "policy": "lookup"})).await.of(200);
    assert_eq!(send["do"], "send");
    running.answer(json!({"effect": "mail", "seq": 0, "answer": "confirmed", "value": 1})).await.of(200);
    assert_eq!(running.settle(json!({"outcome": "completed", "result": 1})).await["state"], "completed");
    let ready = stage.everything().await.into_iter().filter(|message| message.state == tidegate::State::Ready).count();
    assert_eq!(ready, 1, "something was handed out");
}

#[tokio::test]
async fn a_suspect_says_that_it_runs_alone_before_it_starts() {
    let still = Still::new().await;
    let policy = r#"{"max_attempts":20,"crash_limit":1}"#;
    let headers = [("content-type", "application/json")];
    still.stage.send(Method::PUT, "/v1/kinds/capture/policy", &headers, policy).await.of(200);
    still.enqueue("capture", "a").await;
    assert_eq!(still.claim("capture").await.lease["suspect"], false);
    still.lapse().await;
    let suspect = still.claim("capture").await;
    assert_eq!(suspect.lease["suspect"], true);
    let alone = json!({"leases": [{"id": suspect.id, "token": suspect.token, "lease_ms": 30_000, "alone": true}]});
    let extended = still.stage.post("/v1/leases/extend", &alone.to_string()).await.of(200);
    assert_eq!(extended["results"][0]["status"], 200);
    still.lapse().await;
    let message = still.message(&suspect.id).await;
    assert_eq!((&message["state"], &message["reason"]), (&json!("dead"), &json!("crash_limit")));
}

#[tokio::test]
async fn a_claim_of_a_queue_that_the_token_may_not_work_takes_nothing_of_any() {
    let stage = guarded().await;
    let worker = token(&stage.tide, "worker", &["work:mine", "produce:*"], "").await;
    for queue in ["mine", "other"] {
        let body = json!({"kind": "k", "payload": 1, "key": "a"});
        post_as(&stage, &worker, &format!("/v1/queues/{queue}/messages"), &body).await.of(202);
    }
    let mut body = json!({"worker": "w", "queues": {"mine": 1, "other": 1}, "kinds": {"k": 1}, "nonce": nonce(), "lease_ms": 30_000});
    post_as(&stage, &worker, LEASES, &body).await.problem("forbidden");
    assert!(stage.everything().await.iter().all(|message| message.state == tidegate::State::Ready));
    body["queues"] = json!({"mine": 1});
    assert_eq!(post_as(&stage, &worker, LEASES, &body).await.of(200)["leases"].as_array().unwrap().len(), 1);
    body["tenant"] = json!("acme");
    post_as(&stage, &worker, LEASES, &body).await.problem("forbidden");
}

#[tokio::test]
async fn a_policy_is_declared_by_whoever_may_work_every_queue_that_knows_the_kind() {
    let stage = guarded().await;
    let narrow = token(&stage.tide, "narrow", &["work:mine", "produce:*"], "").await;
    let wide = token(&stage.tide, "wide", &["work"], "*").await;
    let put = async |token: &str, kind: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
        stage.send(Method::PUT, &format!("/v1/kinds/{kind}/policy"), &headers, body.to_owned()).await
    };
    let declared = put(&narrow, "shared", r#"{"max_attempts":3}"#).await.of(200);
    assert_eq!(declared["backoff"], json!({"base_ms": 1000, "cap_ms": 600_000}));
    for (queue, key) in [("mine", "a"), ("other", "b")] {
        let body = json!({"kind": "shared", "payload": 1, "key": key});
        post_as(&stage, &narrow, &format!("/v1/queues/{queue}/messages"), &body).await.of(202);
    }
    put(&narrow, "shared", r#"{"max_attempts":1}"#).await.problem("forbidden");
    put(&wide, "shared", r#"{"max_attempts":4}"#).await.of(200);
    put(&wide, "shared", r#"{"max_attempts":0}"#).await.problem("invalid");
    put(&wide, "shared", r#"{"max_attemps":2}"#).await.problem("malformed");
    let id = stage.everything().await[0].id;
    let policy = stage.tide.store().explain(id).await.unwrap().unwrap().policy.unwrap();
    assert_eq!(policy.max_attempts, 4);
}

#[tokio::test]
async fn a_policy_is_not_declared_by_one_tenant_for_the_kind_of_another() {
    let stage = guarded().await;
    let acme = token(&stage.tide, "acme", &["work"], "acme").await;
    let put = async |kind: &str| {
        let bearer = format!("Bearer {acme}");
        let headers = [("content-type", "application/json"), ("authorization", &*bearer), ("tidegate-tenant", "acme")];
        stage.send(Method::PUT, &format!("/v1/kinds/{kind}/policy"), &headers, r#"{"max_attempts":1}"#).await
    };
    crate::operators::put(&stage.tide, "acme", "own", 1).await;
    put("work").await.of(200);
    crate::operators::put(&stage.tide, "", "pay", 1).await;
    let refused = put("work").await.problem("forbidden");
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("every queue that knows kind work") && !detail.contains("pay"), "{detail}");
    put("unheard").await.of(200);
}

#[tokio::test]
async fn a_claim_that_names_too_much_is_refused() {
    let stage = Stage::new().await;
    let names = |count: u32| -> Value {
        let name = |n: u32| (format!("n{n}"), json!(1));
        Value::Object((0..count).map(name).collect())
    };
    for member in ["queues", "kinds"] {
        let mut body = claim("capture", &nonce());
        body[member] = names(1001);
        stage.post(LEASES, &body.to_string()).await.problem("too-large");
        body[member] = names(1000);
        assert_eq!(claimed(&stage, &body).await, Vec::<Value>::new(), "{member}");
    }
}

#[tokio::test]
async fn messages_that_a_token_may_not_work_on_are_not_read_and_many_are_read_in_parts() {
    let stage = guarded().await;
    let reader = token(&stage.tide, "reader", &["read"], "*").await;
    let worker = token(&stage.tide, "worker", &["work:mine"], "").await;
    let lease = |n: i64| {
        let id = tidegate::MessageId::from_i64(n).to_string();
        json!({"id": id, "token": "1.00000000000000000000000000000000", "lease_ms": 30_000})
    };
    let body = json!({"leases": (1..=1000).map(lease).collect::<Vec<_>>()});
    let inspected = "tidegate_store_call_seconds_count{verb=\"inspect\"}";
    for (token, calls) in [(&reader, None), (&worker, Some(10))] {
        let reply = post_as(&stage, token, "/v1/leases/extend", &body).await.of(200);
        let results = reply["results"].as_array().unwrap();
        assert_eq!(results.len(), 1000);
        assert!(results.iter().all(|verdict| verdict["status"] == 404), "{}", results[0]);
        let metrics = stage.tide.metrics().encode_own();
        let counted = metrics.lines().find_map(|line| line.strip_prefix(inspected)?.trim().parse::<u32>().ok());
        assert_eq!(counted, calls);
    }
}

#[tokio::test]
async fn a_claim_that_is_none_is_refused_with_what_is_wrong() {
    let stage = Stage::new().await;
    for (member, value, slug) in [
        ("nonce", json!("abc"), "malformed"),
        ("nonce", json!("A".repeat(32)), "malformed"),
        ("lease_ms", json!(0), "invalid"),
        ("lease_ms", json!(100_000_000), "invalid"),
        ("queues", json!({"a b": 1}), "malformed"),
        ("queues", json!({"a": -1}), "malformed"),
        ("wait", json!("20s"), "malformed"),
    ] {
        let mut body = claim("capture", &nonce());
        body[member] = value;
        stage.post(LEASES, &body.to_string()).await.problem(slug);
    }
}

#[tokio::test]
async fn what_is_handed_out_is_measured() {
    let stage = Stage::new().await;
    enqueue(&stage, "capture", "a").await;
    let held = Held::claim(&stage, "capture").await;
    held.settle(json!({"outcome": "completed", "result": 1})).await;
    let (status, metrics) = stage.send_plain(Method::GET, "/metrics", &[]).await;
    assert_eq!(status, 200);
    for line in [
        "tidegate_wait_seconds_count{queue=\"capture\",kind=\"capture\"} 1",
        "tidegate_run_seconds_count{queue=\"capture\",kind=\"capture\"} 1",
        "tidegate_end_to_end_seconds_count 1",
        "tidegate_http_requests_total{route=\"/v1/leases/settle\",method=\"POST\",status=\"2xx\"} 1",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
}
