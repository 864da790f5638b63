//! Who may do what: every endpoint, asked by a token of each action, on its own queue, on another one and for another tenant.
//!
//! The endpoints are those of the document: one that has no row here fails the test, whoever added it. A token with one
//! scope is allowed exactly what its row says, and no answer to it names anything of a queue that it may not see.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::json;
use tidegate::message::{NewMessage, Payload};
use tidegate::store::{Act, ChangeToken, Enqueued, NewOperation, Operate, Pace, Selection};
use tidegate::token::{Action, Glob, Scope, Secret, TokenChange};
use tidegate::{IdempotencyKey, Kind, QueueName, SystemRandom, Tenant, Tidegate, TokenName};
use tidegate_server::{Demand, Guard, Serving};

use crate::stage::{Reply, Stage};

/// A stage where everybody needs a token.
pub(crate) async fn guarded() -> Stage {
    Stage::with(|mut serving: Serving| {
        serving.guard = Guard::new(Arc::clone(serving.tide.store()), Demand::Always);
        serving
    })
    .await
}

/// Makes a token and gives it back.
pub(crate) async fn token(tide: &Tidegate, name: &str, scopes: &[&str], tenant: &str) -> String {
    let secret = Secret::new(&SystemRandom);
    let change = TokenChange::Add {
        hash: secret.hash(),
        scopes: scopes.iter().map(|scope| scope.parse::<Scope>().unwrap()).collect(),
        tenant: Glob::new(tenant).unwrap(),
        expires_at: None,
    };
    let act = Act { actor: "test".into(), reason: String::new() };
    tide.store().change_token(ChangeToken { name: TokenName::new(name).unwrap(), change, act }).await.unwrap();
    secret.reveal().to_owned()
}

/// Stands in the key and the payload of what is not to be seen.
const CANARY: &str = "canary-7d1f";

/// Two messages of one tenant, on a queue that the tokens are for and on another one; and one of another tenant on the
/// first queue's name.
struct Scene {
    mine: String,
    other: String,
    theirs: String,
}

async fn put(tide: &Tidegate, tenant: &str, queue: &str, key: String) -> String {
    let payload = Payload::from_json(format!("{{\"of\":\"{key}\"}}")).unwrap();
    let message = NewMessage {
        tenant: Tenant::new(tenant).unwrap(),
        ..NewMessage::new(
            QueueName::new(queue).unwrap(),
            Kind::new("work").unwrap(),
            IdempotencyKey::new(key).unwrap(),
            payload,
        )
    };
    let Enqueued::New { id } = tide.store().enqueue(vec![message]).await.unwrap().remove(0).unwrap() else {
        panic!("the key is new")
    };
    id.to_string()
}

async fn scene(tide: &Tidegate, turn: usize) -> Scene {
    Scene {
        mine: put(tide, "", "mine", format!("m-{turn}")).await,
        other: put(tide, "", "other", format!("{CANARY}-o-{turn}")).await,
        theirs: put(tide, "acme", "mine", format!("{CANARY}-t-{turn}")).await,
    }
}

/// A request: method and address come from the operation, holes are filled by these.
struct Request {
    path: String,
    body: serde_json::Value,
}

/// What an endpoint demands.
#[derive(Clone, Copy)]
enum Needs {
    /// Nothing.
    Nothing,
    /// One of these, on the queue that it is about.
    One(&'static [Action]),
    /// One of these on any queue: it is about all of them, and leaves out what is not to be seen.
    Listed(&'static [Action]),
}

/// Where the queue, the id and the turn stand in a request.
type Of = fn(queue: &str, id: &str, turn: usize) -> Request;

struct Row {
    operation: &'static str,
    needs: Needs,
    of: Of,
}

fn at(path: impl Into<String>) -> Request {
    Request { path: path.into(), body: serde_json::Value::Null }
}

fn with(path: impl Into<String>, body: serde_json::Value) -> Request {
    Request { path: path.into(), body }
}

const PRODUCE: Needs = Needs::One(&[Action::Produce]);
const READ: Needs = Needs::One(&[Action::Read]);
const WORK: Needs = Needs::One(&[Action::Work]);
/// What is asked for of no queue: whoever may do it somewhere is answered.
const ABOUT_NO_QUEUE: [&str; 2] = ["GET /v1/tokens", "PUT /v1/kinds/{kind}/policy"];
/// A lease token of nobody.
const NO_LEASE: &str = "1.00000000000000000000000000000000";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { operation: "GET /openapi.json", needs: Needs::Nothing, of: |_, _, _| at("/openapi.json") },
    Row { operation: "GET /docs", needs: Needs::Nothing, of: |_, _, _| at("/docs") },
    Row { operation: "GET /docs/{file}", needs: Needs::Nothing, of: |_, _, _| at("/docs/style.css") },
    Row { operation: "GET /problems", needs: Needs::Nothing, of: |_, _, _| at("/problems") },
    Row { operation: "GET /problems/{slug}", needs: Needs::Nothing, of: |_, _, _| at("/problems/forbidden") },
    Row { operation: "POST /v1/queues/{queue}/messages", needs: PRODUCE, of: |queue, _, turn| with(
        format!("/v1/queues/{queue}/messages"), json!({"kind": "work", "key": format!("new-{turn}"), "payload": 1})) },
    Row { operation: "POST /v1/messages", needs: PRODUCE, of: |queue, _, turn| with(
        "/v1/messages", json!({"messages": [{"queue": queue, "kind": "work", "key": format!("many-{turn}"), "payload": 1}]})) },
    Row { operation: "POST /v1/queues/{queue}/events", needs: PRODUCE, of: |queue, _, turn| with(
        format!("/v1/queues/{queue}/events"),
        json!({"specversion": "1.0", "id": format!("e-{turn}"), "source": "/test", "type": "work", "data": 1})) },
    Row { operation: "GET /v1/messages", needs: READ, of: |queue, _, _| at(format!("/v1/messages?queue={queue}")) },
    Row { operation: "GET /v1/messages/{id}", needs: READ, of: |_, id, _| at(format!("/v1/messages/{id}")) },
    Row { operation: "GET /v1/messages/{id}/explanation", needs: READ, of: |_, id, _| at(format!("/v1/messages/{id}/explanation")) },
    Row { operation: "GET /v1/flows/{id}", needs: READ, of: |_, id, _| at(format!("/v1/flows/{id}")) },
    Row { operation: "GET /v1/queues/{queue}/keys/{key}", needs: READ, of: |queue, _, turn| {
        let key = if queue == "mine" { format!("m-{turn}") } else { format!("{CANARY}-o-{turn}") };
        at(format!("/v1/queues/{queue}/keys/{key}")) } },
    Row { operation: "GET /v1/tokens", needs: Needs::One(&[Action::Admin]), of: |_, _, _| at("/v1/tokens") },
    Row { operation: "POST /v1/tokens", needs: Needs::One(&[Action::Admin]), of: |queue, _, turn| with(
        "/v1/tokens", json!({"name": format!("made-{turn}"), "scopes": [format!("work:{queue}")]})) },
    Row { operation: "POST /v1/tokens/{name}/rotate", needs: Needs::One(&[Action::Admin]), of: |queue, _, _| with(
        format!("/v1/tokens/rotated-{queue}/rotate"), json!({"overlap_ms": 0})) },
    Row { operation: "DELETE /v1/tokens/{name}", needs: Needs::One(&[Action::Admin]), of: |queue, _, _| at(
        format!("/v1/tokens/revoked-{queue}")) },
    // Of workers. No lease is theirs: who may ask is told that it was lost, who may not, that nothing is there.
    Row { operation: "POST /v1/leases", needs: WORK, of: |queue, _, turn| with("/v1/leases", json!({
        "worker": "w", "queues": {queue: 1}, "kinds": {"work": 1}, "nonce": format!("{turn:032x}"), "lease_ms": 30_000})) },
    Row { operation: "POST /v1/leases/extend", needs: WORK, of: |_, id, _| with(
        "/v1/leases/extend", json!({"leases": [{"id": id, "token": NO_LEASE, "lease_ms": 30_000}]})) },
    Row { operation: "POST /v1/leases/journal", needs: WORK, of: |_, id, _| with(
        "/v1/leases/journal", json!({"writes": [{"id": id, "token": NO_LEASE, "write": {"write": "not_sent", "effect": "e"}}]})) },
    Row { operation: "POST /v1/leases/settle", needs: WORK, of: |_, id, _| with(
        "/v1/leases/settle", json!({"settlements": [{"id": id, "token": NO_LEASE, "outcome": "released"}]})) },
    Row { operation: "POST /v1/messages/{id}/effects", needs: WORK, of: |_, id, _| with(
        format!("/v1/messages/{id}/effects"), json!({"token": NO_LEASE, "effect": "e", "policy": "natural"})) },
    Row { operation: "POST /v1/messages/{id}/effects/answer", needs: WORK, of: |_, id, _| with(
        format!("/v1/messages/{id}/effects/answer"), json!({"token": NO_LEASE, "effect": "e", "seq": 0, "answer": "not_done"})) },
    Row { operation: "PUT /v1/kinds/{kind}/policy", needs: WORK, of: |_, _, turn| with(format!("/v1/kinds/new-{turn}/policy"), json!({})) },
    Row { operation: "POST /v1/sweeps", needs: Needs::One(&[]), of: |_, _, _| with(
        "/v1/sweeps", json!({"take_over": false, "limit": 1})) },
];

const OPERATE: Needs = Needs::One(&[Action::Operate]);
const LISTED: Needs = Needs::Listed(&[Action::Read]);

/// Those of operators.
#[rustfmt::skip]
const OPERATORS: &[Row] = &[
    Row { operation: "GET /v1/queues", needs: LISTED, of: |_, _, _| at("/v1/queues") },
    Row { operation: "GET /v1/queues/{queue}", needs: READ, of: |queue, _, _| at(format!("/v1/queues/{queue}")) },
    Row { operation: "PATCH /v1/queues/{queue}", needs: OPERATE, of: |queue, _, _| with(
        format!("/v1/queues/{queue}"), json!({"max_depth": null})) },
    Row { operation: "GET /v1/stats", needs: LISTED, of: |_, _, _| at("/v1/stats") },
    Row { operation: "GET /v1/groups", needs: READ, of: |queue, _, _| at(format!("/v1/groups?queue={queue}")) },
    Row { operation: "GET /v1/parked", needs: READ, of: |queue, _, _| at(format!("/v1/parked?queue={queue}")) },
    Row { operation: "GET /v1/audit", needs: LISTED, of: |_, _, _| at("/v1/audit") },
    Row { operation: "POST /v1/audit", needs: OPERATE, of: |_, id, _| with(
        "/v1/audit", json!({"what": "export", "messages": [id]})) },
    Row { operation: "POST /v1/messages/inspect", needs: READ, of: |_, id, _| with(
        "/v1/messages/inspect", json!({"ids": [id]})) },
    Row { operation: "POST /v1/messages/progress", needs: READ, of: |_, id, _| with(
        "/v1/messages/progress", json!({"ids": [id]})) },
    Row { operation: "POST /v1/messages/redrive", needs: OPERATE, of: |_, id, _| with(
        "/v1/messages/redrive", json!({"ids": [id], "reason": "a test"})) },
    Row { operation: "POST /v1/messages/discard", needs: OPERATE, of: |_, id, _| with(
        "/v1/messages/discard", json!({"ids": [id], "reason": "a test"})) },
    Row { operation: "POST /v1/messages/cancel", needs: OPERATE, of: |_, id, _| with(
        "/v1/messages/cancel", json!({"ids": [id]})) },
    Row { operation: "PATCH /v1/messages/{id}", needs: OPERATE, of: |_, id, _| with(
        format!("/v1/messages/{id}"), json!({"payload": 1, "reason": "a test"})) },
    Row { operation: "POST /v1/messages/{id}/effects/resolve", needs: OPERATE, of: |_, id, _| with(
        format!("/v1/messages/{id}/effects/resolve"),
        json!({"effect": "capture", "resolution": "did_not_happen", "reason": "a test"})) },
    Row { operation: "POST /v1/operations/preview", needs: OPERATE, of: |queue, _, _| with(
        "/v1/operations/preview", json!({"selection": {"queue": queue}})) },
    Row { operation: "POST /v1/operations", needs: OPERATE, of: |queue, _, turn| with(
        "/v1/operations", json!({"name": format!("op-{turn}"), "selection": {"queue": queue}})) },
    Row { operation: "GET /v1/operations", needs: LISTED, of: |_, _, _| at("/v1/operations") },
    // Whoever may act on one sees how far it has come.
    Row { operation: "GET /v1/operations/{name}", needs: Needs::One(&[Action::Read, Action::Operate]),
        of: |queue, _, _| at(format!("/v1/operations/of-{queue}")) },
    Row { operation: "PATCH /v1/operations/{name}", needs: OPERATE, of: |queue, _, _| with(
        format!("/v1/operations/of-{queue}"), json!({"act": "step"})) },
];

fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(OPERATORS)
}

fn operations() -> BTreeSet<String> {
    let document = serde_json::to_value(tidegate_server::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &serde_json::Value)| {
        let methods: Vec<String> = item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        methods.into_iter().map(|method| format!("{method} {path}")).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

#[test]
fn every_endpoint_of_the_document_has_a_row() {
    let rows: BTreeSet<String> = rows().map(|row| row.operation.to_owned()).collect();
    assert_eq!(rows.len(), self::rows().count(), "an endpoint has two rows");
    let operations = operations();
    let missing: Vec<_> = operations.difference(&rows).collect();
    assert!(missing.is_empty(), "say in ROWS who may use {missing:?}");
    let gone: Vec<_> = rows.difference(&operations).collect();
    assert!(gone.is_empty(), "{gone:?} are no endpoints");
}

/// How an answer treats who asked.
#[derive(Debug, PartialEq, Eq)]
enum Treated {
    Unknown,
    Refused,
    Answered,
}

fn treated(reply: &Reply) -> Treated {
    match reply.status {
        StatusCode::UNAUTHORIZED => Treated::Unknown,
        // Of a message that may be seen it is said that it has no such effect.
        StatusCode::NOT_FOUND if reply.text().contains("has no effect") => Treated::Answered,
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Treated::Refused,
        // A batch answers each of its items.
        StatusCode::OK if reply.header("content-type") == Some("application/json") => {
            let body = reply.json();
            let verdicts = body["results"].as_array().cloned().unwrap_or_default();
            let refused = |verdict: &serde_json::Value| matches!(verdict["status"].as_u64(), Some(403 | 404));
            // What may not be read is null in its place.
            let messages = body["messages"].as_array().cloned().unwrap_or_default();
            let nothing = |all: &[serde_json::Value], is: &dyn Fn(&serde_json::Value) -> bool| {
                !all.is_empty() && all.iter().all(is)
            };
            let is_refused = nothing(&verdicts, &refused) || nothing(&messages, &serde_json::Value::is_null);
            if is_refused { Treated::Refused } else { Treated::Answered }
        }
        _ => Treated::Answered,
    }
}

async fn ask(stage: &Stage, row: &Row, request: &Request, token: Option<&str>, tenant: &str) -> Reply {
    let method = Method::from_bytes(row.operation.split(' ').next().unwrap().as_bytes()).unwrap();
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers: Vec<(&str, &str)> = Vec::new();
    let media_type =
        if row.operation.ends_with("/events") { "application/cloudevents+json" } else { "application/json" };
    let body = if request.body.is_null() { String::new() } else { request.body.to_string() };
    if !body.is_empty() {
        headers.push(("content-type", media_type));
    }
    if let Some(bearer) = &bearer {
        headers.push(("authorization", bearer));
    }
    if !tenant.is_empty() {
        headers.push(("tidegate-tenant", tenant));
    }
    stage.send(method, &request.path, &headers, body).await
}

/// Operations that some rows act upon.
async fn operations_to_act_on(tide: &Tidegate) {
    for queue in ["mine", "other"] {
        let selection = Selection {
            tenant: Some(Tenant::default()),
            queue: Some(QueueName::new(queue).unwrap()),
            ..Selection::default()
        };
        let act = Act { actor: "test".into(), reason: CANARY.to_owned() };
        let act = if queue == "mine" { Act { reason: String::new(), ..act } } else { act };
        let new = NewOperation { name: format!("of-{queue}"), selection, again: false, pace: Pace::default(), act };
        tide.store().operate(Operate::Begin(Box::new(new))).await.unwrap();
    }
}

/// Tokens that some rows act upon.
async fn tokens_to_act_on(tide: &Tidegate, row: &Row) {
    operations_to_act_on(tide).await;
    if !row.operation.contains("/v1/tokens/") {
        return;
    }
    for what in ["rotated", "revoked"] {
        for queue in ["mine", "other"] {
            let name = TokenName::new(&format!("{what}-{queue}")).unwrap();
            let act = Act { actor: "test".into(), reason: String::new() };
            match tide.store().change_token(ChangeToken { name, change: TokenChange::Revoke, act }).await {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), tidegate::StoreErrorKind::NotFound, "{error}"),
            }
            token(tide, &format!("{what}-{queue}"), &[&format!("work:{queue}")], "").await;
        }
    }
}

#[tokio::test]
async fn a_token_of_one_action_is_allowed_what_its_row_says_on_its_queue_and_nothing_elsewhere() {
    let stage = guarded().await;
    let mut tokens = Vec::new();
    for action in Action::ALL {
        let scope = format!("{action}:mine");
        tokens.push((action, token(&stage.tide, &format!("only-{action}"), &[&scope], "").await));
    }
    let mut turn = 0;
    for row in rows() {
        for (action, token) in &tokens {
            for queue in ["mine", "other"] {
                tokens_to_act_on(&stage.tide, row).await;
                let scene = scene(&stage.tide, turn).await;
                let id = if queue == "mine" { &scene.mine } else { &scene.other };
                let request = (row.of)(queue, id, turn);
                let reply = ask(&stage, row, &request, Some(token), "").await;
                let expected = match row.needs {
                    Needs::Nothing => Treated::Answered,
                    Needs::One(actions) if queue == "mine" && actions.contains(action) => Treated::Answered,
                    // What is listed and is not about one queue is answered, with nothing in it of what is not to be seen.
                    Needs::One(actions) if ABOUT_NO_QUEUE.contains(&row.operation) && actions.contains(action) => {
                        Treated::Answered
                    }
                    Needs::Listed(actions) if actions.contains(action) => Treated::Answered,
                    Needs::One(_) | Needs::Listed(_) => Treated::Refused,
                };
                let who = format!("{} by {action} of mine on {queue}", row.operation);
                assert_eq!(treated(&reply), expected, "{who}: {} {}", reply.status, reply.text());
                assert!(!reply.text().contains(CANARY), "{who} tells of another queue: {}", reply.text());
                turn += 1;
            }
        }
    }
}

#[tokio::test]
async fn nobody_without_a_token_and_no_token_of_another_tenant_is_answered() {
    let stage = guarded().await;
    let all: Vec<String> = Action::ALL.iter().map(ToString::to_string).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let stranger = token(&stage.tide, "stranger", &all, "acme").await;
    for (turn, row) in rows().enumerate() {
        tokens_to_act_on(&stage.tide, row).await;
        let scene = scene(&stage.tide, turn).await;
        let request = (row.of)("mine", &scene.mine, turn);
        let open = matches!(row.needs, Needs::Nothing);
        let reply = ask(&stage, row, &request, None, "").await;
        let expected = if open { Treated::Answered } else { Treated::Unknown };
        assert_eq!(treated(&reply), expected, "{} without a token: {}", row.operation, reply.text());
        for wrong in ["tg_0000000000000000000000000000000000000000000000000000000000000000", "x"] {
            let reply = ask(&stage, row, &request, Some(wrong), "").await;
            assert_eq!(treated(&reply), expected, "{} with no token of ours: {}", row.operation, reply.text());
        }
        // Of the tenant that the messages belong to, with a token of another one.
        let reply = ask(&stage, row, &request, Some(&stranger), "").await;
        let expected = if open { Treated::Answered } else { Treated::Refused };
        assert_eq!(treated(&reply), expected, "{} by another tenant: {}", row.operation, reply.text());
        // The id of a message of the one tenant, asked for in the name of the other.
        if row.operation.contains("{id}") {
            let reply = ask(&stage, row, &request, Some(&stranger), "acme").await;
            assert_eq!(treated(&reply), Treated::Refused, "{} for another tenant: {}", row.operation, reply.text());
            let own = (row.of)("mine", &scene.theirs, turn);
            let reply = ask(&stage, row, &own, Some(&stranger), "acme").await;
            assert_eq!(treated(&reply), Treated::Answered, "{} by its own tenant: {}", row.operation, reply.text());
        }
    }
}

#[tokio::test]
async fn each_item_of_a_batch_is_asked_for_by_itself() {
    let stage = guarded().await;
    let token = token(&stage.tide, "producer", &["produce:mine"], "").await;
    let item =
        |queue: &str, tenant: &str| json!({"queue": queue, "tenant": tenant, "kind": "k", "key": "a", "payload": 1});
    let body = json!({"messages": [item("mine", ""), item("other", ""), item("mine", "acme")]}).to_string();
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let reply = stage.send(Method::POST, "/v1/messages", &headers, body).await.of(200);
    let statuses: Vec<_> =
        reply["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 403, 403], "{reply}");
    let stored = stage.tide.store().list(tidegate::store::Filter { limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!(stored.len(), 1);
}

#[tokio::test]
async fn a_revoked_token_and_one_that_expired_are_told_as_unknown_ones_are() {
    let stage = guarded().await;
    let revoked = token(&stage.tide, "revoked", &["read"], "").await;
    let of = |token: &str| [("authorization", format!("Bearer {token}"))];
    let ask = async |token: &str| {
        let headers = of(token);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        stage.send(Method::GET, "/v1/messages", &headers, "").await
    };
    assert_eq!(ask(&revoked).await.status, StatusCode::OK);
    let name = TokenName::new("revoked").unwrap();
    let act = Act { actor: "test".into(), reason: String::new() };
    let began = tokio::time::Instant::now();
    stage.tide.store().change_token(ChangeToken { name, change: TokenChange::Revoke, act }).await.unwrap();
    // Another process revoked it: this server looks again within seconds.
    let told = loop {
        let reply = ask(&revoked).await;
        if reply.status == StatusCode::UNAUTHORIZED {
            break reply;
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "it is still let in");
        tokio::task::yield_now().await;
    };
    let unknown = ask("tg_1111").await;
    assert_eq!(told.problem("unauthorized")["detail"], unknown.problem("unauthorized")["detail"]);
    assert_eq!(told.header("www-authenticate"), Some("Bearer"));
}

#[tokio::test]
async fn a_new_token_is_let_in_at_once_and_is_told_once() {
    let stage = guarded().await;
    let admin = token(&stage.tide, "admin", &["admin"], "*").await;
    let bearer = format!("Bearer {admin}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let body = json!({"name": "app", "scopes": ["read"], "reason": "a test"}).to_string();
    let reply = stage.send(Method::POST, "/v1/tokens", &headers, body).await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let made = reply.of(201);
    let token = made["token"].as_str().unwrap();
    assert!(token.starts_with("tg_"));
    let own = format!("Bearer {token}");
    let own = [("authorization", &*own)];
    assert_eq!(stage.send(Method::GET, "/v1/messages", &own, "").await.status, StatusCode::OK);
    let listed = stage.send(Method::GET, "/v1/tokens", &headers[1..], "").await;
    assert!(listed.text().contains("\"app\"") && !listed.text().contains(token), "{}", listed.text());
    let audit = stage.tide.store().audit(0, 99).await.unwrap();
    let last = audit.last().unwrap();
    assert_eq!((last.actor.as_str(), last.act.as_str(), last.reason.as_str()), ("token:admin", "token", "a test"));
    assert!(!last.detail.contains(token));
}

#[tokio::test]
async fn nobody_makes_a_token_for_more_than_they_administer() {
    let stage = guarded().await;
    let admin = token(&stage.tide, "admin", &["admin:pay.*"], "acme").await;
    let bearer = format!("Bearer {admin}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer), ("tidegate-tenant", "acme")];
    for (scopes, tenant, status) in [
        (json!(["work:pay.in"]), "acme", 201),
        (json!(["work:pay.in.*", "admin:pay.*"]), "acme", 201),
        (json!(["work:*"]), "acme", 403),
        (json!(["work:pay.in", "read:other"]), "acme", 403),
        (json!(["work:pay.in"]), "*", 403),
        (json!(["work:pay.in"]), "", 403),
    ] {
        let name = format!("t-{}", scopes.to_string().len() + tenant.len());
        let body = json!({"name": name, "scopes": scopes, "tenant": tenant}).to_string();
        let reply = stage.send(Method::POST, "/v1/tokens", &headers, body).await;
        assert_eq!(reply.status.as_u16(), status, "{scopes} of {tenant:?}: {}", reply.text());
    }
}
