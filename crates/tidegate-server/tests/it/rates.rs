//! So many requests a second of one client and no more; and never at the cost of a lease.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tidegate::store::{Act, ChangeToken};
use tidegate::testing::VirtualClock;
use tidegate::token::{Secret, TokenChange};
use tidegate::{Clock, SystemRandom, TokenName};
use tidegate_server::{Demand, Guard, Rate, Rates, Serving};

use crate::scopes::token;
use crate::stage::{Reply, Stage};
use crate::thin::{Held, claim, enqueue, nonce};

/// A server that lets two requests of a client pass at once, and one a second; its time stands still.
async fn strict(demand: Demand) -> (Stage, Arc<VirtualClock>) {
    let clock = Arc::new(VirtualClock::default());
    let rates = Rates::with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let stage = Stage::with(|mut serving: Serving| {
        serving.guard = Guard::new(Arc::clone(serving.tide.store()), demand);
        serving.limits.rate = Some(Rate { per_s: NonZeroU32::MIN, burst: NonZeroU32::MIN.saturating_add(1) });
        Serving { rates, ..serving }
    })
    .await;
    (stage, clock)
}

/// The queues' list: the cheapest request that counts.
async fn look(stage: &Stage) -> Reply {
    stage.get("/v1/queues").await
}

#[tokio::test]
async fn who_sends_too_much_is_told_when_to_come_again_and_is_served_then() {
    let (stage, clock) = strict(Demand::Unless).await;
    for _ in 0..2 {
        look(&stage).await.of(200);
    }
    let refused = look(&stage).await;
    let problem = refused.problem("too-many-requests");
    assert_eq!(refused.status, 429);
    assert_eq!(problem["detail"], "more than 1 requests a second, and 2 at once");
    assert_eq!(problem["retryable"], true);
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&after), "{after}");
    clock.advance(Duration::from_secs(after));
    look(&stage).await.of(200);
    while look(&stage).await.status == 200 {}
    let enqueue = async || stage.post_under("a", "/v1/queues/q/messages", r#"{"kind":"k","payload":1}"#).await;
    enqueue().await.problem("too-many-requests");
    assert_eq!(stage.everything().await.len(), 0, "what was refused was stored");
    // A quiet hour gives no more than what passes at once.
    clock.advance(Duration::from_secs(3600));
    for status in [200, 200, 429] {
        assert_eq!(look(&stage).await.status, status);
    }
    clock.advance(Duration::from_secs(1));
    enqueue().await.of(202);
}

#[tokio::test]
async fn each_token_has_its_own_share_and_both_secrets_of_a_rotation_have_one_together() {
    let (stage, _clock) = strict(Demand::Always).await;
    let old = token(&stage.tide, "ada", &["read"], "").await;
    let other = token(&stage.tide, "bob", &["read"], "").await;
    let new = Secret::new(&SystemRandom);
    let change = TokenChange::Rotate { hash: new.hash(), overlap: Duration::from_secs(600), expires_at: None };
    let act = Act { actor: "test".into(), reason: String::new() };
    let name = TokenName::new("ada").unwrap();
    stage.tide.store().change_token(ChangeToken { name, change, act }).await.unwrap();
    let ask = async |token: &str| stage.ask(token, Method::GET, "/v1/queues", "").await.status.as_u16();
    assert_eq!(
        [ask(&old).await, ask(new.reveal()).await, ask(&old).await, ask(new.reveal()).await],
        [200, 200, 429, 429]
    );
    assert_eq!([ask(&other).await, ask(&other).await, ask(&other).await], [200, 200, 429]);
    // Whoever has no token that is valid is an address, and takes nothing of theirs.
    let stranger = async || stage.ask("tg_nobody", Method::GET, "/v1/queues", "").await.status.as_u16();
    assert_eq!([stranger().await, stranger().await, stranger().await], [401, 401, 429]);
    assert_eq!(look(&stage).await.status, 429, "without any it is the same address");
}

/// The lease would be lost, and an attempt with it, because of a limit that is there to protect the store.
#[tokio::test]
async fn a_worker_that_is_over_the_limit_goes_on_with_what_it_has_leased() {
    let (stage, clock) = strict(Demand::Unless).await;
    enqueue(&stage, "capture", "dep-1").await;
    enqueue(&stage, "capture", "dep-2").await;
    assert_eq!(look(&stage).await.status, 429, "its producer has used it up");
    // To ask for work counts by itself.
    let held = Held::claim(&stage, "capture").await;
    let journalled = Held::claim(&stage, "capture").await;
    stage.post("/v1/leases", &claim("capture", &nonce()).to_string()).await.problem("too-many-requests");
    for _ in 0..20 {
        assert_eq!(held.extend().await["status"], 200);
    }
    let day = 24 * 3_600_000;
    let told = held.reach(json!({"effect": "charge", "policy": "keyed", "window_ms": 4 * day})).await.of(200);
    assert_eq!(told["do"], "send", "{told}");
    held.answer(json!({"effect": "charge", "seq": 0, "answer": "confirmed", "value": "ch_1"})).await.of(200);
    assert_eq!(held.settle(json!({"outcome": "completed", "result": "ch_1"})).await["state"], "completed");
    let write = json!({"write": "natural", "effect": "note", "item": "", "value": 1});
    let writes = json!({"writes": [{"id": journalled.id, "token": journalled.token, "before": [], "write": write}]});
    stage.post("/v1/leases/journal", &writes.to_string()).await.of(200);
    assert_eq!(journalled.settle(json!({"outcome": "completed", "result": 1})).await["state"], "completed");
    assert_eq!(look(&stage).await.status, 429, "nothing of it was given back");
    clock.advance(Duration::from_secs(1));
    look(&stage).await.of(200);
}

#[tokio::test]
async fn how_a_server_fares_is_told_to_whoever_is_over_the_limit_and_how_many_were_refused() {
    let (stage, _clock) = strict(Demand::Unless).await;
    while look(&stage).await.status == 200 {}
    look(&stage).await.problem("too-many-requests");
    for path in ["/livez", "/metrics", "/openapi.json", "/docs", "/problems/too-many-requests"] {
        for _ in 0..3 {
            assert_eq!(stage.send_plain(Method::GET, path, &[]).await.0, 200, "{path}");
        }
    }
    let text = stage.send_plain(Method::GET, "/metrics", &[]).await.1;
    for line in [
        "tidegate_http_rejected_total{reason=\"too_many_requests\"} 2\n",
        // Which tells queues that are full.
        "tidegate_http_rejected_total{reason=\"busy\"} 0\n",
        "tidegate_http_requests_total{route=\"/v1/queues\",method=\"GET\",status=\"4xx\"} 2\n",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn without_a_limit_nobody_is_counted() {
    let stage = Stage::with(|serving| {
        assert_eq!(serving.limits.rate, None);
        serving
    })
    .await;
    let reader = token(&stage.tide, "ada", &["read"], "").await;
    for _ in 0..200 {
        assert_eq!(stage.ask(&reader, Method::GET, "/v1/queues", "").await.status, 200);
    }
}
