//! What one request may ask for: over a limit it is refused whole, before anything is done, and told which limit it was.

use serde_json::json;

use crate::stage::Stage;

async fn stored(stage: &Stage) -> usize {
    stage.tide.store().list(tidegate::store::Filter { limit: 5000, ..Default::default() }).await.unwrap().len()
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_announcement_and_by_its_bytes() {
    let stage = Stage::with(|mut serving| {
        serving.limits.body = 1 << 20;
        serving
    })
    .await;
    let large = json!({"kind": "k", "key": "a", "payload": "x".repeat(1 << 20)}).to_string();
    let reply = stage.post("/v1/queues/q/messages", &large).await;
    assert!(reply.problem("too-large")["detail"].as_str().unwrap().contains("1048576"), "{}", reply.text());
    // Without a length, byte by byte.
    let head = "POST /v1/queues/q/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
        Idempotency-Key: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let mut chunked = head.as_bytes().to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&vec![b' '; 1 << 16]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = stage.raw(&chunked).await;
    assert!(reply.starts_with("HTTP/1.1 413 ") && reply.contains("/problems/too-large"), "{reply}");
    assert_eq!(stored(&stage).await, 0);
}

#[tokio::test]
async fn json_may_be_nested_so_deep_and_no_deeper() {
    let stage = Stage::new().await;
    let nested = |depth: usize| {
        let payload = "[".repeat(depth) + &"]".repeat(depth);
        format!("{{\"kind\":\"k\",\"key\":\"deep-{depth}\",\"payload\":{payload}}}")
    };
    stage.post("/v1/queues/q/messages", &nested(63)).await.of(202);
    stage.post("/v1/queues/q/messages", &nested(65)).await.problem("malformed");
    stage.post("/v1/queues/q/messages", &nested(100_000)).await.problem("malformed");
    assert_eq!(stored(&stage).await, 1);
}

#[tokio::test]
async fn a_batch_has_so_many_items_and_no_more() {
    let stage = Stage::new().await;
    let batch = |count: usize| {
        let item = |n: usize| json!({"queue": "q", "kind": "k", "key": format!("{count}-{n}"), "payload": 1});
        json!({"messages": (0..count).map(item).collect::<Vec<_>>()}).to_string()
    };
    let many = stage.post("/v1/messages", &batch(1000)).await.of(200);
    assert_eq!(many["results"].as_array().unwrap().len(), 1000);
    stage.post("/v1/messages", &batch(1001)).await.problem("too-large");
    assert_eq!(stored(&stage).await, 1000);
}

#[tokio::test]
async fn a_head_over_the_limit_is_told_as_a_problem_and_one_far_over_it_is_not_read() {
    let stage = Stage::new().await;
    let of = |bytes: usize| {
        format!(
            "GET /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: {}\r\n\r\n",
            "x".repeat(bytes)
        )
    };
    assert!(stage.raw(of(15_000).as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let told = stage.raw(of(17_000).as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 431 ") && told.contains("/problems/headers-too-large"), "{told}");
    let address = format!(
        "GET /v1/messages?code={} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "x".repeat(17_000)
    );
    assert!(stage.raw(address.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let cut = stage.raw(of(200_000).as_bytes()).await;
    assert!(cut.is_empty() || cut.starts_with("HTTP/1.1 431 "), "{cut}");
}

#[tokio::test]
async fn requests_make_so_many_queues_and_no_more() {
    let stage = Stage::with(|mut serving| {
        serving.limits.queues = 3;
        serving.limits.new_queue_depth = Some(2);
        serving
    })
    .await;
    let put = async |queue: &str, key: &str| {
        let body = json!({"kind": "k", "key": key, "payload": 1}).to_string();
        stage.post(&format!("/v1/queues/{queue}/messages"), &body).await
    };
    for queue in ["a", "b", "c"] {
        put(queue, "1").await.of(202);
    }
    let refused = put("d", "1").await;
    assert!(refused.problem("queue-full")["detail"].as_str().unwrap().contains("queue d"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    put("a", "2").await.of(202);
    // Each new queue got the limit of new ones.
    put("a", "3").await.problem("queue-full");
    let item = |queue: &str| json!({"queue": queue, "kind": "k", "key": "9", "payload": 1});
    let many = stage.post("/v1/messages", &json!({"messages": [item("b"), item("e")]}).to_string()).await.of(200);
    let statuses: Vec<_> = many["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(202), Some(429)], "{many}");
    // A hundred names cost no hundred questions, and make none.
    for n in 0..100 {
        put(&format!("made-up-{n}"), "1").await.problem("queue-full");
    }
    assert_eq!(stage.tide.store().stats().await.unwrap().queues.len(), 3);
}
