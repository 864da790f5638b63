//! What nobody means well by: each is answered with a problem, and nothing is stored.

use http::Method;

use crate::stage::Stage;

const DEPOSITS: &str = "/v1/queues/deposits/messages";
const JSON: (&str, &str) = ("content-type", "application/json");
const KEY: (&str, &str) = ("idempotency-key", "a");

#[tokio::test]
async fn a_body_over_the_limit_is_refused_whether_it_says_so_or_not() {
    let stage = Stage::with(|mut serving| {
        serving.limits.body = 1000;
        serving
    })
    .await;
    let body = |bytes: usize| format!(r#"{{"kind":"k","payload":"{}"}}"#, "x".repeat(bytes - 25));
    stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body(1000)).await.of(202);
    let over = stage.send(Method::POST, DEPOSITS, &[JSON, ("idempotency-key", "b")], body(1001)).await;
    assert_eq!(over.status, 413);
    assert!(over.problem("too-large")["detail"].as_str().unwrap().contains("1000 bytes"));

    // In chunks it says nothing about its length beforehand.
    let chunk = format!("{:x}\r\n{}\r\n", 600, "x".repeat(600));
    let request = format!(
        "POST {DEPOSITS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: c\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    let answer = stage.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("/problems/too-large"), "{answer}");
    assert_eq!(stage.everything().await.len(), 1);
}

#[tokio::test]
async fn a_body_that_announces_more_than_the_limit_is_refused_before_it_is_sent() {
    let stage = Stage::new().await;
    let request = format!(
        "POST {DEPOSITS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: a\r\ncontent-length: 99999999999\r\n\r\n"
    );
    let answer = stage.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn a_body_that_ends_too_early_is_no_message() {
    let stage = Stage::new().await;
    let request = format!(
        "POST {DEPOSITS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nidempotency-key: a\r\n\
         content-length: 500\r\n\r\n{{\"kind\":\"k\",\"payload\":1}}"
    );
    // The server may close without a word: nobody is left to read one.
    let answer = stage.half(request.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn nesting_beyond_the_limit_is_refused_with_its_place() {
    let stage = Stage::new().await;
    for levels in [64, 1000, 1_000_000] {
        let body = format!(r#"{{"kind":"k","payload":{}{}}}"#, "[".repeat(levels + 1), "]".repeat(levels + 1));
        let reply = stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body).await;
        assert_eq!(reply.status, 400);
        let detail = reply.problem("malformed")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("nested deeper than 64 levels") && detail.contains("$.payload[0]"), "{detail}");
    }
    let body = format!(r#"{{"kind":"k","payload":{}{}}}"#, "[".repeat(64), "]".repeat(64));
    stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body).await.of(202);
}

#[tokio::test]
async fn very_many_members_are_read_in_their_time() {
    let stage = Stage::new().await;
    let members: Vec<String> = (0..60_000).map(|n| format!("\"m{n}\":0")).collect();
    let body = format!(r#"{{"kind":"k","payload":{{{}}}}}"#, members.join(","));
    let reply = stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body).await;
    reply.of(202);
}

#[tokio::test]
async fn a_body_that_a_page_of_another_origin_could_send_is_not_taken() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"k","payload":1,"key":"a"}"#;
    for media_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""]
    {
        let reply = stage.send(Method::POST, DEPOSITS, &[("content-type", media_type)], body).await;
        assert_eq!(reply.status, 415, "{media_type}");
        reply.problem("unsupported-media-type");
    }
    stage.send(Method::POST, DEPOSITS, &[], body).await.problem("unsupported-media-type");
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn what_is_not_utf_8_or_names_two_tenants_is_refused() {
    let stage = Stage::new().await;
    let reply = stage.send(Method::POST, DEPOSITS, &[JSON, KEY], &b"{\"kind\":\"k\",\"payload\":\"\xff\"}"[..]).await;
    assert!(reply.problem("malformed")["detail"].as_str().unwrap().contains("not UTF-8"));
    let two = [JSON, KEY, ("tidegate-tenant", "a"), ("tidegate-tenant", "b")];
    stage.send(Method::POST, DEPOSITS, &two, r#"{"kind":"k","payload":1}"#).await.problem("malformed");
    let bad = [JSON, KEY, ("tidegate-tenant", "a/../b")];
    stage.send(Method::POST, DEPOSITS, &bad, r#"{"kind":"k","payload":1}"#).await.problem("invalid");
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn names_that_are_paths_or_markup_are_names_of_nothing() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"k","payload":1}"#;
    for queue in ["..%2F..%2Fetc", "a%20b", "%3Cscript%3E", "%00", "%ff", &"q".repeat(101)] {
        let reply = stage.send(Method::POST, &format!("/v1/queues/{queue}/messages"), &[JSON, KEY], body).await;
        assert_eq!(reply.status, 404, "{queue}");
        reply.problem("not-found");
    }
    assert!(stage.everything().await.is_empty());
}

#[tokio::test]
async fn a_payload_over_the_limit_of_the_store_is_refused_with_both_sizes() {
    let stage = Stage::new().await;
    let body = format!(r#"{{"kind":"k","payload":"{}"}}"#, "x".repeat(1 << 20));
    let reply = stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body).await;
    assert_eq!(reply.status, 400);
    let detail = reply.problem("invalid")["detail"].as_str().unwrap().to_owned();
    assert_eq!(detail, "payload of 1048578 bytes is over the limit of 1048576");
    // Of the limit it is taken, with what stands around it.
    let body = format!(r#"{{"kind":"k","payload":"{}"}}"#, "x".repeat((1 << 20) - 2));
    stage.send(Method::POST, DEPOSITS, &[JSON, KEY], body).await.of(202);
    let headers = format!(r#"{{"kind":"k","payload":1,"headers":{{"x":"{}"}}}}"#, "y".repeat(20_000));
    stage.send(Method::POST, DEPOSITS, &[JSON, KEY], headers).await.problem("invalid");
}
