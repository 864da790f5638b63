use std::collections::HashMap;

use deposits::books::Books;
use deposits::gateway::{Faults, GatewayMode, LedgerResult, read_ledger};
use deposits::service::Service;
use deposits::twin::{self, TwinOptions};
use reqwest::StatusCode;
use serde_json::json;

async fn ask(twin: &Service, deposit: &str, account: &str, card: &str) -> StatusCode {
    let body = json!({ "deposit": deposit, "account": account, "cents": 100, "card": card });
    super::client().post(format!("{}/deposits", twin.url())).json(&body).send().await.unwrap().status()
}

#[tokio::test]
async fn the_usual_code_is_right_as_long_as_nothing_goes_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, wallet) = (directory.path().join("ledger"), directory.path().join("wallet.db"));
    let gateway = super::gateway(&ledger, GatewayMode::None, Faults::default());
    let options = TwinOptions { closed: vec!["closed".to_owned()], ..TwinOptions::new(gateway.url(), &wallet) };
    let twin = twin::start(options).unwrap();
    assert_eq!(ask(&twin, "dep-1", "acct-1", "ok").await, StatusCode::OK);
    assert_eq!(ask(&twin, "dep-2", "acct-1", "declined").await, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(ask(&twin, "dep-3", "closed", "ok").await, StatusCode::CONFLICT);
    twin.stop().await.unwrap();
    gateway.stop().await.unwrap();
    let results: Vec<(String, LedgerResult)> =
        read_ledger(&ledger).unwrap().into_iter().map(|entry| (entry.deposit, entry.result)).collect();
    let expected = [
        ("dep-1", LedgerResult::Authorised),
        ("dep-1", LedgerResult::Captured),
        ("dep-1", LedgerResult::Receipt),
        // Asked once: it does not try a declined card again.
        ("dep-2", LedgerResult::Declined),
        ("dep-3", LedgerResult::Authorised),
        ("dep-3", LedgerResult::Captured),
        ("dep-3", LedgerResult::Refunded),
    ];
    assert_eq!(results, expected.map(|(deposit, result)| (deposit.to_owned(), result)));
    let books = Books::read(&wallet).unwrap();
    assert_eq!((books.sums.wallet_total, books.credited.len()), (100, 1));
}

#[tokio::test]
async fn a_lost_reply_makes_the_usual_code_charge_again() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger");
    let faults = Faults { internal_after: 0.5, ..Faults::default() };
    let gateway = super::gateway(&ledger, GatewayMode::Idempotent, faults);
    let twin = twin::start(TwinOptions::new(gateway.url(), directory.path().join("wallet.db"))).unwrap();
    for number in 0..20 {
        // Whatever it answers: what counts is what the gateway did.
        let _status = ask(&twin, &format!("dep-{number}"), "acct-1", "ok").await;
    }
    twin.stop().await.unwrap();
    gateway.stop().await.unwrap();
    let mut charged: HashMap<String, u32> = HashMap::new();
    for entry in read_ledger(&ledger).unwrap().iter().filter(|entry| entry.result == LedgerResult::Captured) {
        *charged.entry(entry.deposit.clone()).or_default() += 1;
    }
    assert!(charged.values().any(|times| *times > 1), "{charged:?}");
}
