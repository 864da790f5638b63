//! A worker that knows nothing but HTTP: what a client in any language does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tidegate::testing::VirtualClock;
use tidegate::{Nonce, Random, SystemRandom, Tidegate};
use tidegate_api::ClaimNonce;

use crate::stage::{Reply, Stage};

/// A server whose store's time stands still until it is told to pass.
pub(crate) struct Still {
    pub(crate) stage: Stage,
    pub(crate) clock: Arc<VirtualClock>,
    _directory: tempfile::TempDir,
}

impl Still {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(VirtualClock::default());
        let stage = stage(directory.path().join("tidegate.db"), Arc::clone(&clock)).await;
        Self { stage, clock, _directory: directory }
    }

    /// A server over a copy of the store, a minute after it was made: this one goes on beside it.
    pub(crate) async fn restored(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy.db");
        self.stage.tide.sqlite().unwrap().backup(&copy).await.unwrap();
        self.clock.advance(Duration::from_secs(60));
        let clock = Arc::clone(&self.clock);
        Self { stage: stage(copy, Arc::clone(&clock)).await, clock, _directory: directory }
    }

    /// A message of this kind on the queue of the same name.
    pub(crate) async fn enqueue(&self, kind: &str, key: &str) -> String {
        enqueue(&self.stage, kind, key).await
    }

    /// Claims one message.
    pub(crate) async fn claim(&self, kind: &str) -> Held<'_> {
        Held::claim(&self.stage, kind).await
    }

    /// Time passes until the message may be claimed, and it is.
    pub(crate) async fn claim_when_due(&self, kind: &str) -> Held<'_> {
        let next = self.stage.post("/v1/leases", &claim(kind, &nonce()).to_string()).await.of(200);
        assert_eq!(next["leases"], json!([]), "it is due already");
        let due: tidegate::Timestamp = serde_json::from_value(next["next_due"].clone()).unwrap();
        self.clock.advance_to(due);
        self.claim(kind).await
    }

    /// The lease lapses and is taken over.
    pub(crate) async fn lapse(&self) {
        self.clock.advance(Duration::from_secs(31));
        let swept = self.stage.post("/v1/sweeps", r#"{"take_over":true,"limit":100,"unit":0}"#).await.of(200);
        assert_eq!(swept["taken_over"].as_array().unwrap().len(), 1, "{swept}");
    }

    pub(crate) async fn message(&self, id: &str) -> Value {
        self.stage.get(&format!("/v1/messages/{id}?reveal=payload")).await.of(200)
    }
}

async fn stage(file: PathBuf, clock: Arc<VirtualClock>) -> Stage {
    let tide = Tidegate::builder().clock(clock).housekeeping(false).open(file).await.unwrap();
    Stage::over(tide, |serving| serving).await
}

pub(crate) async fn enqueue(stage: &Stage, kind: &str, key: &str) -> String {
    let body = json!({"kind": kind, "payload": {"cents": 100}}).to_string();
    let sent = stage.post_under(key, &format!("/v1/queues/{kind}/messages"), &body).await.of(202);
    sent["id"].as_str().unwrap().to_owned()
}

pub(crate) fn nonce() -> String {
    let mut bytes = [0; 16];
    SystemRandom.fill(&mut bytes);
    ClaimNonce(Nonce::from_bytes(bytes)).to_string()
}

/// A claim of one message of a kind, on the queue of the same name.
pub(crate) fn claim(kind: &str, nonce: &str) -> Value {
    json!({"worker": "thin", "queues": {kind: 1}, "kinds": {kind: 1}, "nonce": nonce, "lease_ms": 30_000})
}

/// A lease.
pub(crate) struct Held<'a> {
    stage: &'a Stage,
    pub(crate) lease: Value,
    pub(crate) id: String,
    pub(crate) token: String,
}

impl<'a> Held<'a> {
    pub(crate) async fn claim(stage: &'a Stage, kind: &str) -> Self {
        let claimed = stage.post("/v1/leases", &claim(kind, &nonce()).to_string()).await.of(200);
        Self::of(stage, claimed["leases"][0].clone())
    }

    pub(crate) fn of(stage: &'a Stage, lease: Value) -> Self {
        let id = lease["message"]["id"].as_str().unwrap_or_else(|| panic!("there is no lease: {lease}")).to_owned();
        let token = lease["token"].as_str().unwrap().to_owned();
        Self { stage, lease, id, token }
    }

    fn with(&self, mut body: Value) -> String {
        body["token"] = json!(self.token);
        body.to_string()
    }

    pub(crate) async fn reach(&self, body: Value) -> Reply {
        self.stage.post(&format!("/v1/messages/{}/effects", self.id), &self.with(body)).await
    }

    pub(crate) async fn answer(&self, body: Value) -> Reply {
        self.stage.post(&format!("/v1/messages/{}/effects/answer", self.id), &self.with(body)).await
    }

    /// Settles; the verdict.
    pub(crate) async fn settle(&self, mut settlement: Value) -> Value {
        settlement["id"] = json!(self.id);
        settlement["token"] = json!(self.token);
        let body = json!({"settlements": [settlement]}).to_string();
        self.stage.post("/v1/leases/settle", &body).await.of(200)["results"][0].clone()
    }

    /// Settles as an instruction says.
    pub(crate) async fn stop(&self, instruction: &Value) -> Value {
        assert_eq!(instruction["do"], "stop", "{instruction}");
        self.settle(instruction["settle"].clone()).await
    }

    pub(crate) async fn extend(&self) -> Value {
        let lease = json!({"id": self.id, "token": self.token, "lease_ms": 30_000});
        let body = json!({"leases": [lease]}).to_string();
        self.stage.post("/v1/leases/extend", &body).await.of(200)["results"][0].clone()
    }
}

/// A request with a token.
pub(crate) async fn post_as(stage: &Stage, token: &str, path: &str, body: &Value) -> Reply {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    stage.send(Method::POST, path, &headers, body.to_string()).await
}
