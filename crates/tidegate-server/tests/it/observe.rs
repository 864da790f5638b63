//! What supervisors and scrapes are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use http::{Method, StatusCode};
use tidegate_server::{Health, Rejected, Stopping, metrics_specimen, prometheus_text};

use crate::scopes::token;
use crate::stage::Stage;

#[tokio::test]
async fn a_process_lives_begins_and_is_ready_until_it_is_told_to_stop() {
    let seen = Arc::new(Mutex::new(None::<(Arc<Health>, Stopping)>));
    let kept = Arc::clone(&seen);
    let stage = Stage::with(move |serving| {
        *kept.lock().unwrap() = Some((Arc::clone(&serving.health), serving.stopping.clone()));
        serving
    })
    .await;
    let (health, stopping) = seen.lock().unwrap().take().unwrap();

    let reply = stage.raw(b"GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "a probe needs no token: {reply}");
    assert_eq!(plain(&stage, "/startupz").await.0, 503, "its listeners may not stand yet");
    health.started();
    assert_eq!(plain(&stage, "/startupz").await, (200, "ok\n".to_owned()));
    let (status, said) = plain(&stage, "/readyz?verbose").await;
    assert_eq!(status, 200, "{said}");
    assert!(said.contains("[+] store: answers\n"), "{said}");

    stopping.stop();
    let (status, said) = plain(&stage, "/readyz").await;
    assert_eq!((status, said.as_str()), (503, "[-] draining: about to end\nnot ready\n"));
    assert_eq!(plain(&stage, "/livez").await.0, 200, "it still lives");
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_what_a_client_makes_up() {
    let stage = Stage::new().await;
    let secret = "canary-4711";
    let sent = stage.get(&format!("/v1/queues/pay/keys/{secret}")).await;
    assert_eq!(sent.status, StatusCode::NOT_FOUND);
    assert_eq!(stage.get(&format!("/{secret}")).await.status, StatusCode::NOT_FOUND);
    let (status, text) = plain(&stage, "/metrics").await;
    assert_eq!(status, 200);
    let counted =
        "tidegate_http_requests_total{route=\"/v1/queues/{queue}/keys/{key}\",method=\"GET\",status=\"4xx\"} 1";
    assert!(text.contains(counted), "no {counted} in\n{text}");
    assert!(text.contains("# TYPE tidegate_http_requests_total counter\n"), "{text}");
    assert!(text.contains("\ntidegate_store_up 1\n"), "{text}");
    assert!(text.contains("\ntidegate_open_effects 0\n"), "what the store knows is there too: {text}");
    assert!(text.contains(&format!("reason=\"{}\"", Rejected::SlowClient.as_str())), "{text}");
    assert!(!text.contains(secret), "{text}");
}

/// Each series of a text with the names of its labels.
fn series(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
        let labels = labels.rsplit_once('}').map_or("", |(labels, _)| labels);
        let names = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name.to_owned());
        found.entry(name.to_owned()).or_default().extend(names);
    }
    found
}

/// Alerts and the dashboard are held against the specimen: what it does not have, they cannot name.
#[tokio::test]
async fn what_a_server_measures_is_in_the_specimen_with_its_labels() {
    let stage = Stage::new().await;
    let body = r#"{"kind":"k","key":"a","payload":1}"#;
    let json = [("content-type", "application/json")];
    for _ in 0..2 {
        assert_eq!(stage.send(Method::POST, "/v1/queues/pay/messages", &json, body).await.status, 202);
    }
    let (status, text) = plain(&stage, "/metrics").await;
    assert_eq!(status, 200);
    let specimen = metrics_specimen();
    let specimen = series(&prometheus_text(&format!("{}{}", specimen.of_store, specimen.of_process)));
    let measured = series(&text);
    assert!(measured.contains_key("tidegate_deduplicated_total") && measured.len() > 15, "{measured:?}");
    for (name, labels) in &measured {
        let known = specimen.get(name).unwrap_or_else(|| panic!("no {name} in the specimen"));
        assert_eq!(labels, known, "labels of {name}");
    }
}

#[tokio::test]
async fn metrics_are_for_who_may_read_all_once_there_are_tokens() {
    let stage = Stage::new().await;
    let reader = token(&stage.tide, "scrape", &["read"], "").await;
    let worker = token(&stage.tide, "worker", &["work"], "").await;
    let asked = async |token: &str| {
        let bearer = format!("Bearer {token}");
        stage.send_plain(Method::GET, "/metrics", &[("authorization", &*bearer)]).await.0
    };
    assert_eq!(asked(&worker).await, 403);
    assert_eq!(asked(&reader).await, 403, "the token reads one tenant, the metrics tell of all");
}

#[tokio::test]
async fn a_request_has_an_id_which_its_client_may_choose() {
    let stage = Stage::new().await;
    let with = [("x-request-id", "mine-1")];
    let reply = stage.send(Method::GET, "/v1/messages", &with, "").await;
    assert_eq!(reply.headers["x-request-id"], "mine-1");
    let reply = stage.send(Method::GET, "/v1/messages", &[("x-request-id", "not plain, at all")], "").await;
    assert_eq!(reply.headers["x-request-id"].len(), 16);
}

async fn plain(stage: &Stage, path: &str) -> (u16, String) {
    stage.send_plain(Method::GET, path, &[]).await
}
