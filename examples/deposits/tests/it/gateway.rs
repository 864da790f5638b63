use std::time::Duration;

use deposits::gateway::{
    FaultScript, FaultWindow, Faults, GatewayMode, GatewayOptions, LatencyMs, LedgerResult, Operation, ScriptStart,
    read_ledger,
};
use reqwest::{Response, StatusCode};
use serde_json::json;

async fn call(url: &str, operation: &str, key: &str, cents: i64, card: &str) -> reqwest::Result<Response> {
    super::client()
        .post(format!("{url}/{operation}"))
        .header("Idempotency-Key", key)
        .json(&json!({ "deposit": "dep-1", "account": "acct-1", "cents": cents, "card": card }))
        .send()
        .await
}

async fn find(url: &str, operation: &str, key: &str) -> StatusCode {
    super::client().get(format!("{url}/find?operation={operation}&key={key}")).send().await.unwrap().status()
}

#[tokio::test]
async fn an_idempotent_gateway_repeats_its_first_answer_to_the_byte_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let mut answers = Vec::new();
    for _restart in 0..2 {
        let gateway = super::gateway(&ledger, GatewayMode::Idempotent, Faults::default());
        for _repeat in 0..2 {
            let answer = call(&gateway.url(), "capture", "k", 100, "ok").await.unwrap();
            answers.push((answer.status(), answer.text().await.unwrap()));
        }
        assert_eq!(find(&gateway.url(), "capture", "k").await, StatusCode::OK);
        gateway.stop().await.unwrap();
    }
    assert_eq!(answers[0].0, StatusCode::OK);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(read_ledger(&ledger).unwrap().len(), 1);
}

#[tokio::test]
async fn the_other_gateways_carry_out_every_call_and_only_one_of_them_can_be_asked() {
    for (mode, found) in [(GatewayMode::Lookup, StatusCode::OK), (GatewayMode::None, StatusCode::NOT_FOUND)] {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger");
        let gateway = super::gateway(&ledger, mode, Faults::default());
        for _repeat in 0..2 {
            assert_eq!(call(&gateway.url(), "capture", "k", 100, "ok").await.unwrap().status(), StatusCode::OK);
        }
        assert_eq!(find(&gateway.url(), "capture", "k").await, found);
        assert_eq!(find(&gateway.url(), "capture", "other").await, StatusCode::NOT_FOUND);
        gateway.stop().await.unwrap();
        assert_eq!(read_ledger(&ledger).unwrap().len(), 2, "{mode}");
    }
}

#[tokio::test]
async fn a_declined_card_is_declined_and_a_reused_key_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let gateway = super::gateway(&ledger, GatewayMode::Idempotent, Faults::default());
    let url = gateway.url();
    for operation in ["authorise", "capture"] {
        let answer = call(&url, operation, "k", 100, "declined").await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYMENT_REQUIRED);
        assert!(answer.text().await.unwrap().contains("card_declined"));
    }
    assert_eq!(call(&url, "capture", "k", 101, "ok").await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    gateway.stop().await.unwrap();
    let results: Vec<LedgerResult> = read_ledger(&ledger).unwrap().iter().map(|entry| entry.result).collect();
    assert_eq!(results, [LedgerResult::Declined, LedgerResult::Declined]);
}

/// What a client sees of a fault.
#[derive(Debug, PartialEq)]
enum Seen {
    Answer(u16),
    NoAnswer,
}

#[tokio::test]
async fn each_fault_is_seen_and_ledgered_as_the_script_says() {
    let none = Faults::default();
    let cases = [
        ("429", Faults { too_many: 1.0, ..none }, Seen::Answer(429), 0),
        ("503", Faults { unavailable: 1.0, ..none }, Seen::Answer(503), 0),
        ("hang", Faults { hang: 1.0, ..none }, Seen::NoAnswer, 0),
        ("reset before", Faults { reset_before: 1.0, ..none }, Seen::NoAnswer, 0),
        ("reply lost", Faults { lost_reply: 1.0, ..none }, Seen::NoAnswer, 1),
        ("500 after", Faults { internal_after: 1.0, ..none }, Seen::Answer(500), 1),
        ("drip", Faults { drip: 1.0, ..none }, Seen::Answer(200), 1),
        ("late", Faults { late: 1.0, ..none }, Seen::Answer(200), 1),
    ];
    for (name, faults, expected, entries) in cases {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger");
        let gateway = super::gateway(&ledger, GatewayMode::Lookup, faults);
        let seen = match call(&gateway.url(), "capture", "k", 100, "ok").await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let refused = [429, 503].contains(&status);
                assert_eq!(answer.headers().contains_key("retry-after"), refused, "{name}");
                assert!(!answer.bytes().await.unwrap().is_empty(), "{name}");
                Seen::Answer(status)
            }
            Err(_) => Seen::NoAnswer,
        };
        assert_eq!(seen, expected, "{name}");
        gateway.stop().await.unwrap();
        let ledger = read_ledger(&ledger).unwrap();
        assert_eq!(ledger.len(), entries, "{name}");
        assert!(ledger.iter().all(|entry| entry.late_ms <= super::scale().greatest_lateness_ms), "{name}");
    }
}

#[tokio::test]
async fn a_late_call_is_carried_out_although_its_client_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let window = FaultWindow { from_ms: 0, to_ms: 3_600_000, faults: Faults { late: 1.0, ..Faults::default() } };
    let script = FaultScript { windows: vec![window], greatest_lateness_ms: 3000, ..FaultScript::default() };
    let options = GatewayOptions { script, ..GatewayOptions::new(GatewayMode::Lookup, &ledger) };
    let gateway = deposits::gateway::start(options).unwrap();
    // A second is time enough for each call to arrive, and too short for the answers of most of them.
    let impatient = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build().unwrap();
    let calls = (0..20).map(|number| {
        let call = impatient
            .post(format!("{}/capture", gateway.url()))
            .header("Idempotency-Key", format!("k{number}"))
            .json(&json!({ "deposit": "dep-1", "account": "acct-1", "cents": 1 }));
        tokio::spawn(call.send())
    });
    let mut gave_up = 0;
    for call in calls.collect::<Vec<_>>() {
        gave_up += usize::from(call.await.unwrap().is_err());
    }
    gateway.stop().await.unwrap();
    let ledger = read_ledger(&ledger).unwrap();
    assert!(gave_up > 0, "no call was late enough");
    assert_eq!(ledger.len(), 20, "stopping waits for what is under way");
    assert!(ledger.iter().all(|entry| entry.operation == Operation::Capture));
}

#[tokio::test]
async fn a_closed_listener_refuses_connections_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    // Long enough for a call to come while it is closed, however late a busy machine is with the first one.
    let refused = FaultWindow { from_ms: 0, to_ms: 3000, faults: Faults { refused: true, ..Faults::default() } };
    let script = FaultScript { windows: vec![refused], ..FaultScript::default() };
    let options = GatewayOptions {
        script,
        script_start: ScriptStart::AtOnce,
        ..GatewayOptions::new(GatewayMode::Lookup, directory.path().join("ledger"))
    };
    let gateway = deposits::gateway::start(options).unwrap();
    let mut refused = false;
    let mut beat = tokio::time::interval(Duration::from_millis(10));
    let comes_back = async {
        loop {
            beat.tick().await;
            match call(&gateway.url(), "capture", "k", 100, "ok").await {
                Ok(answer) if refused => return answer.status(),
                // The first call may come before the listener closes.
                Ok(_) => {}
                Err(error) => refused |= error.is_connect(),
            }
        }
    };
    // Bounded: the window ends by time alone, and a refused connect answers at once.
    let status = tokio::time::timeout(Duration::from_secs(30), comes_back).await;
    assert_eq!(status.expect("a connection is refused, and one is taken afterwards"), StatusCode::OK);
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn a_script_starts_with_the_first_call() {
    let directory = tempfile::tempdir().unwrap();
    let unavailable = Faults { unavailable: 1.0, ..Faults::default() };
    let window = FaultWindow { from_ms: 0, to_ms: 3_600_000, faults: unavailable };
    let script = FaultScript { windows: vec![window], ..FaultScript::default() };
    let options =
        GatewayOptions { script, ..GatewayOptions::new(GatewayMode::Lookup, directory.path().join("ledger")) };
    let gateway = deposits::gateway::start(options).unwrap();
    let answer = call(&gateway.url(), "capture", "k", 100, "ok").await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn calls_above_the_gateways_limit_are_refused_and_not_carried_out() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let script = FaultScript { latency_ms: LatencyMs { min: 700, max: 700 }, ..FaultScript::default() };
    let options = GatewayOptions { script, concurrency: 2, ..GatewayOptions::new(GatewayMode::Lookup, &ledger) };
    let gateway = deposits::gateway::start(options).unwrap();
    let url = gateway.url();
    let calls = (0..6).map(|number| {
        let url = url.clone();
        tokio::spawn(async move { call(&url, "capture", &format!("k{number}"), 100, "ok").await.unwrap().status() })
    });
    let mut statuses = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        statuses.push(call.await.unwrap());
    }
    gateway.stop().await.unwrap();
    let done = statuses.iter().filter(|status| **status == StatusCode::OK).count();
    assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
    assert_eq!(read_ledger(&ledger).unwrap().len(), done);
}
