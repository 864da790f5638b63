use deposits::gateway::{Faults, GatewayMode};
use deposits::intake::{self, IntakeOptions};
use deposits::service::Service;
use deposits::steps::{self, WorkOptions};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

async fn post(intake: &Service, key: Option<&str>, body: &Value) -> Response {
    let mut request = super::client().post(format!("{}/deposits", intake.url())).body(body.to_string());
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    request.send().await.unwrap()
}

async fn get(intake: &Service, path: &str) -> Response {
    super::client().get(format!("{}{path}", intake.url())).send().await.unwrap()
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

/// The status, the code and that it is a problem.
async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(header(&response, "content-type").as_deref(), Some("application/problem+json"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_request_is_answered_at_once_and_a_repeated_key_gets_the_same_answer() {
    let directory = tempfile::tempdir().unwrap();
    let tide = steps::open(&directory.path().join("d.db"), &super::scale()).await.unwrap();
    let intake = intake::start(tide, IntakeOptions::default()).await.unwrap();
    let body = json!({ "deposit": "dep-1", "account": "acct-1", "cents": 100 });

    let first = post(&intake, Some("dep-1"), &body).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    assert_eq!(header(&first, "idempotency-replayed"), None);
    let location = header(&first, "location").unwrap();
    let first = first.text().await.unwrap();

    let view: Value = get(&intake, &location).await.json().await.unwrap();
    assert_eq!((&view["state"], &view["deposit"]), (&json!("processing"), &json!("dep-1")));

    // With the quotes of a structured field it is the same key.
    for key in ["dep-1", "\"dep-1\""] {
        let again = post(&intake, Some(key), &body).await;
        assert_eq!(again.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&again, "idempotency-replayed").as_deref(), Some("true"));
        assert_eq!(header(&again, "location").as_deref(), Some(location.as_str()));
        assert_eq!(again.text().await.unwrap(), first);
    }
    intake.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_taken_is_a_problem_with_a_code() {
    let directory = tempfile::tempdir().unwrap();
    let tide = steps::open(&directory.path().join("d.db"), &super::scale()).await.unwrap();
    let intake = intake::start(tide, IntakeOptions { max_depth: Some(1), ..IntakeOptions::default() }).await.unwrap();
    let body = |deposit: &str, cents: i64| json!({ "deposit": deposit, "account": "acct-1", "cents": cents });
    assert_eq!(post(&intake, Some("dep-1"), &body("dep-1", 100)).await.status(), StatusCode::ACCEPTED);

    let cases: [(Option<&str>, Value, u16, &str); 8] = [
        (None, body("dep-2", 100), 400, "key_missing"),
        (Some("\"\""), body("dep-2", 100), 400, "key_missing"),
        (Some("dep-3"), body("dep-2", 100), 400, "key_mismatch"),
        (Some("dep-2"), body("dep-2", 0), 400, "invalid_cents"),
        (Some("dep-2"), json!("nonsense"), 400, "malformed"),
        (Some("dep-2"), json!({ "account": "acct-1", "cents": 1, "tip": 1 }), 400, "malformed"),
        (Some("dep-1"), body("dep-1", 101), 422, "key_reused"),
        (Some("dep-2"), body("dep-2", 100), 429, "queue_full"),
    ];
    for (key, body, status, code) in cases {
        let response = post(&intake, key, &body).await;
        assert_eq!(response.headers().contains_key("retry-after"), status == 429, "{code}");
        assert_eq!(problem(response).await, (status, code.to_owned()));
    }
    for path in ["/deposits/msg_0000000000001", "/deposits/dep-1"] {
        assert_eq!(problem(get(&intake, path).await).await, (404, "not_found".to_owned()));
    }
    // A known key is answered although the queue is full.
    assert_eq!(post(&intake, Some("dep-1"), &body("dep-1", 100)).await.status(), StatusCode::ACCEPTED);
    intake.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_waits_reads_the_end_and_a_repeated_key_gets_it_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("d.db");
    let gateway = super::gateway(&directory.path().join("ledger"), GatewayMode::Idempotent, Faults::default());
    let tide = steps::open(&store, &super::scale()).await.unwrap();
    drop(deposits::books::prepare(&store, &["closed".to_owned()]).unwrap());
    let options = WorkOptions {
        gateway: gateway.url(),
        mode: GatewayMode::Idempotent,
        scale: super::scale(),
        concurrency: 4,
        name: "worker".to_owned(),
        without: Vec::new(),
    };
    let worker = steps::start(&tide, &options).await.unwrap();
    let intake = intake::start(tide, IntakeOptions::default()).await.unwrap();

    let cases = [
        ("dep-1", "acct-1", "ok", json!("completed"), Value::Null),
        ("dep-2", "acct-1", "declined", json!("failed"), json!("card_declined")),
        ("dep-3", "closed", "ok", json!("failed"), json!("account_closed")),
    ];
    for (deposit, account, card, state, code) in cases {
        let body = json!({ "account": account, "cents": 100, "card": card });
        let location = header(&post(&intake, Some(deposit), &body).await, "location").unwrap();
        assert_eq!(
            problem(get(&intake, &format!("{location}?wait=soon")).await).await,
            (400, "invalid_wait".to_owned())
        );
        let read = get(&intake, &format!("{location}?wait=20s")).await.text().await.unwrap();
        let view: Value = serde_json::from_str(&read).unwrap();
        assert_eq!((&view["state"], &view["code"]), (&state, &code), "{deposit}");
        for _repeat in 0..2 {
            let again = post(&intake, Some(deposit), &body).await;
            assert_eq!(again.status(), StatusCode::OK);
            assert_eq!(header(&again, "idempotency-replayed").as_deref(), Some("true"));
            assert_eq!(again.text().await.unwrap(), read);
        }
    }
    intake.stop().await.unwrap();
    worker.stop().await.unwrap();
    gateway.stop().await.unwrap();
}
