//! Redrives of many, driven on by the server: nobody here takes a step unless a test says so. What has become of an
//! operation is read from the store.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tidegate::store::{NewOperation, Operate, Operation, OperationState, Pace, Selection};
use tidegate::{Context, HandlerError, MessageId, QueueName, Tidegate, Worker};

use crate::operators::{Work, at_once, kill, put};
use crate::scopes::{guarded, token};
use crate::stage::Stage;

/// The operation when it is as it should become; the test ends here if it does not in half a minute.
async fn until(tide: &Tidegate, name: &str, is: impl Fn(&Operation) -> bool + Send + Sync) -> Operation {
    let mut last = None;
    let wait = async {
        loop {
            last = tide.store().operations(Some(name.to_owned()), 1).await.unwrap().pop();
            if let Some(operation) = last.as_ref().filter(|operation| is(operation)) {
                return operation.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), wait).await;
    found.unwrap_or_else(|_| panic!("it came to {last:?}"))
}

fn state(is: OperationState) -> impl Fn(&Operation) -> bool + Send + Sync {
    move |operation| operation.state == is
}

fn has_ended(operation: &Operation) -> bool {
    operation.state == OperationState::Done && operation.under_way() == 0
}

async fn repaired(tide: &Tidegate) -> Worker {
    let handler = |_: Context, work: Work| async move { Ok(work.cents) };
    tide.worker().handle_with(handler, at_once(1)).start().await.unwrap()
}

/// Runs everything and has it die.
async fn broken(tide: &Tidegate) -> Worker {
    let handler = |_: Context, _: Work| async move { Err::<u32, _>(HandlerError::retryable("broken", "as before")) };
    tide.worker().handle_with(handler, at_once(1)).start().await.unwrap()
}

async fn begin(stage: &Stage, body: Value) -> Value {
    stage.post("/v1/operations", &body.to_string()).await.of(202)
}

#[tokio::test]
async fn an_operation_stops_by_itself_when_the_fix_is_wrong_and_finishes_when_it_is_right_and_nobody_looks() {
    let stage = Stage::new().await;
    kill(&stage.tide, "", "work", 300, "no field 17").await;
    let others = kill(&stage.tide, "", "work", 2, "cents are negative").await;
    let groups = stage.get("/v1/groups").await.of(200);
    let group = &groups["groups"][0];
    assert_eq!(group["count"], 300);

    let worker = broken(&stage.tide).await;
    let begun = begin(
        &stage,
        json!({
            "name": "fix 1/2", "selection": {"group": group["id"]}, "reason": "fixed in 1.4.2", "actor": "ada",
            "pace": {"canary": 5, "per_second": 1000, "stop_over_percent": 10}
        }),
    )
    .await;
    assert_eq!((&begun["operation"]["state"], &begun["operation"]["selected"]), (&json!("running"), &json!(300)));
    let stopped = until(&stage.tide, "fix 1/2", state(OperationState::Stopped)).await;
    assert_eq!((stopped.redriven, stopped.ended_badly, stopped.ended_well), (5, 5, 0), "no more than the canary");
    worker.stop().await.unwrap();

    // The name is any text: its address is the one that was told.
    let path = "/v1/operations/fix%201%2F2";
    let told = stage.get(path).await.of(200);
    assert_eq!((&told["operation"]["state"], &told["waits"]), (&json!("stopped"), &Value::Null));
    stage.patch(path, r#"{"act":"resume"}"#).await.problem("invalid");
    let worker = repaired(&stage.tide).await;
    let resumed = stage.patch(path, r#"{"act":"resume","reason":"fixed in 1.4.3"}"#).await.of(200);
    assert_eq!(resumed["operation"]["state"], "running");
    let done = until(&stage.tide, "fix 1/2", has_ended).await;
    assert_eq!((done.redriven, done.refused, done.ended_well, done.ended_badly), (300, 0, 295, 5));
    worker.stop().await.unwrap();
    // The other group is as it was.
    let left = stage.tide.store().progress(others).await.unwrap();
    assert!(left.iter().flatten().all(|progress| progress.state == tidegate::State::Dead), "{left:?}");
    let audit = stage.tide.store().audit(0, 1000).await.unwrap();
    assert!(audit.iter().any(|row| row.act == "operation" && row.detail.contains("stopped: 5 of 5")), "{audit:?}");
    assert!(audit.iter().all(|row| row.actor == "ada" || row.actor == "http"), "{audit:?}");
}

#[tokio::test]
async fn an_operation_that_a_server_left_is_taken_up_by_the_next_one() {
    let mut stage = Stage::new().await;
    kill(&stage.tide, "", "work", 200, "x").await;
    begin(&stage, json!({"name": "op", "selection": {"queue": "work"}, "pace": {"canary": 3}})).await;
    // Nothing runs: the canary waits, and with it the operation.
    until(&stage.tide, "op", |operation| operation.redriven == 3).await;
    assert_eq!(told_to_wait(&stage).await, json!({"for": "canary"}));
    stage.drained().await;

    let worker = repaired(&stage.tide).await;
    let next = Stage::over(stage.tide.clone(), |serving| serving).await;
    let done = until(&next.tide, "op", has_ended).await;
    assert_eq!((done.redriven, done.ended_well), (200, 200));
    worker.stop().await.unwrap();
}

/// What the operation waits for, as soon as the server knows.
async fn told_to_wait(stage: &Stage) -> Value {
    loop {
        let told = stage.get("/v1/operations/op").await.of(200);
        if !told["waits"].is_null() {
            return told["waits"].clone();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_server_that_stops_takes_no_further_step() {
    let mut stage = Stage::new().await;
    kill(&stage.tide, "", "work", 50, "x").await;
    stage.drained().await;
    // It takes requests until it is gone, and what it began is the next one's.
    begin(&stage, json!({"name": "op", "selection": {"queue": "work"}})).await;
    let operation = stage.tide.store().operations(Some("op".to_owned()), 1).await.unwrap().pop().unwrap();
    assert_eq!((operation.state, operation.redriven), (OperationState::Running, 0));
    let next = Stage::over(stage.tide.clone(), |serving| serving).await;
    until(&next.tide, "op", |operation| operation.redriven == 50).await;
}

#[tokio::test]
async fn a_client_that_takes_the_steps_itself_sees_every_one_of_them() {
    let stage = Stage::new().await;
    let dead = kill(&stage.tide, "", "work", 4, "x").await;
    let ready = put(&stage.tide, "", "work", 1).await[0];
    let ids: Vec<MessageId> = dead.iter().copied().chain([ready]).collect();
    let body = json!({"name": "op", "selection": {"ids": ids}, "pace": {"canary": 2}, "drive": false});
    begin(&stage, body.clone()).await;
    let step = async || stage.patch("/v1/operations/op", r#"{"act":"step"}"#).await.of(200);
    let first = step().await;
    assert_eq!((&first["operation"]["redriven"], &first["operation"]["under_way"]), (&json!(2), &json!(2)));
    let waits = step().await;
    assert_eq!((&waits["operation"]["redriven"], &waits["waits"]), (&json!(2), &json!({"for": "canary"})));
    let worker = repaired(&stage.tide).await;
    until_progress(&stage.tide, &dead[..2]).await;
    let rest = step().await;
    assert_eq!((&rest["operation"]["redriven"], &rest["operation"]["refused"]), (&json!(4), &json!(1)));
    assert_eq!(
        (&rest["refused"][0]["id"], &rest["refused"][0]["problem"]["status"]),
        (&json!(ready.to_string()), &json!(409))
    );
    // What was refused is told to whoever looks later as well.
    assert_eq!(stage.get("/v1/operations/op").await.of(200)["refused"], rest["refused"]);
    // Begun again it is the same; with another selection it is another one, and the name is taken.
    assert_eq!(begin(&stage, body).await["operation"]["refused"], 1);
    let other = json!({"name": "op", "selection": {"ids": [ready]}}).to_string();
    stage.post("/v1/operations", &other).await.problem("conflict");
    worker.stop().await.unwrap();
}

async fn until_progress(tide: &Tidegate, ids: &[MessageId]) {
    for id in ids {
        tide.wait(*id, Duration::from_secs(30)).await.unwrap();
    }
}

#[tokio::test]
async fn an_operation_is_called_off_and_what_it_redrove_stays_redriven() {
    let stage = Stage::new().await;
    kill(&stage.tide, "", "work", 10, "x").await;
    begin(&stage, json!({"name": "op", "selection": {"queue": "work"}, "pace": {"canary": 3}})).await;
    until(&stage.tide, "op", |operation| operation.redriven == 3).await;
    let off = stage.patch("/v1/operations/op", r#"{"act":"cancel","reason":"not yet","actor":"ada"}"#).await.of(200);
    assert_eq!((&off["operation"]["state"], &off["operation"]["redriven"]), (&json!("cancelled"), &json!(3)));
    let again = stage.patch("/v1/operations/op", r#"{"act":"resume","reason":"now"}"#).await;
    again.problem("conflict");
    for (body, slug) in
        [(r#"{"act":"stop"}"#, "malformed"), (r#"{}"#, "malformed"), (r#"{"act":"step","name":"op"}"#, "malformed")]
    {
        stage.patch("/v1/operations/op", body).await.problem(slug);
    }
    stage.patch("/v1/operations/none", r#"{"act":"step"}"#).await.problem("not-found");
    for name in ["none", "%00", "a%0Ab", &"x".repeat(201)] {
        stage.get(&format!("/v1/operations/{name}")).await.problem("not-found");
    }
}

#[tokio::test]
async fn what_an_operation_would_do_is_said_without_doing_it() {
    let stage = Stage::new().await;
    kill(&stage.tide, "", "work", 12, "no field 1").await;
    kill(&stage.tide, "", "mail", 3, "no field 2").await;
    let ready = put(&stage.tide, "", "mail", 1).await[0];
    let preview = async |selection: Value| {
        stage.post("/v1/operations/preview", &json!({ "selection": selection }).to_string()).await.of(200)
    };
    let all = preview(json!({})).await;
    let counts = |preview: &Value| {
        ["selected", "looked_at", "would_redrive", "would_refuse"].map(|count| preview[count].as_u64().unwrap())
    };
    assert_eq!(counts(&all), [15, 15, 15, 0]);
    assert_eq!(
        all["queues"],
        json!([{"tenant": "", "queue": "mail", "n": 3}, {"tenant": "", "queue": "work", "n": 12}])
    );
    assert_eq!((&all["groups"][0]["count"], all["groups"].as_array().unwrap().len()), (&json!(15), 1));
    assert_eq!(counts(&preview(json!({"queue": "work"})).await), [12, 12, 12, 0]);
    assert_eq!(counts(&preview(json!({"code": "other"})).await), [0, 0, 0, 0]);
    assert_eq!(counts(&preview(json!({"tenant": "acme"})).await), [0, 0, 0, 0]);
    let named = preview(json!({"ids": [ready]})).await;
    assert_eq!((counts(&named), &named["refused"][0]["problem"]["type"]), ([1, 1, 0, 1], &json!("/problems/conflict")));
    assert_eq!(stage.tide.store().operations(None, 9).await.unwrap(), []);
    assert_eq!(stage.get("/v1/operations").await.of(200), json!({"operations": []}));
}

#[tokio::test]
async fn a_request_for_an_operation_that_cannot_be_is_refused_and_nothing_is_begun() {
    let stage = Stage::new().await;
    let dead = kill(&stage.tide, "", "work", 1, "x").await[0];
    let selection = json!({"queue": "work"});
    for (body, slug) in [
        (json!({"name": "", "selection": selection}), "invalid"),
        (json!({"name": "a\nb", "selection": selection}), "invalid"),
        (json!({"name": "x".repeat(201), "selection": selection}), "invalid"),
        (json!({"selection": {"tenant": "", "all_tenants": true}}), "invalid"),
        (json!({"selection": {"code": "\u{0}"}}), "invalid"),
        (json!({"selection": {"queue": "work", "groop": "x"}}), "malformed"),
        (json!({"selection": selection, "pace": {"stop_over": 10}}), "malformed"),
        (json!({"selection": selection, "pace": {"per_second": 0}}), "invalid"),
        (json!({"selection": selection, "pace": {"stop_over_percent": 101}}), "invalid"),
        (json!({"selection": selection, "again": true, "reason": "x"}), "invalid"),
        (json!({"selection": {"ids": [dead]}, "again": true}), "invalid"),
        (json!({}), "malformed"),
    ] {
        stage.post("/v1/operations", &body.to_string()).await.problem(slug);
    }
    assert_eq!(stage.tide.store().operations(None, 9).await.unwrap(), []);
}

#[tokio::test]
async fn an_operation_belongs_to_the_messages_it_selects() {
    let stage = guarded().await;
    let pay = kill(&stage.tide, "", "pay", 1, "x").await[0];
    let mail = kill(&stage.tide, "", "mail", 1, "x").await[0];
    let theirs = kill(&stage.tide, "acme", "pay", 1, "x").await[0];
    let ops = token(&stage.tide, "ops", &["operate:pay", "read:pay"], "").await;
    let begin = async |name: &str, selection: Value| {
        let body = json!({"name": name, "selection": selection, "drive": false}).to_string();
        stage.ask(&ops, Method::POST, "/v1/operations", &body).await
    };
    for selection in [
        json!({}),
        json!({"queue": "mail"}),
        json!({"queue": "pay", "all_tenants": true}),
        json!({"queue": "pay", "tenant": "acme"}),
    ] {
        begin("no", selection.clone()).await.problem("forbidden");
        let body = json!({ "selection": selection }).to_string();
        stage.ask(&ops, Method::POST, "/v1/operations/preview", &body).await.problem("forbidden");
    }
    for id in [mail, theirs, MessageId::from_i64(5)] {
        begin("no", json!({"ids": [pay, id]})).await.problem("not-found");
    }
    begin("sort", json!({"queue": "pay"})).await.of(202);
    begin("named", json!({"ids": [pay]})).await.of(202);
    assert_eq!(
        stage.ask(&ops, Method::PATCH, "/v1/operations/named", r#"{"act":"step"}"#).await.of(200)["operation"]["redriven"],
        1
    );

    let act = || tidegate::store::Act { actor: "boss".into(), reason: "secret".into() };
    for (name, selection) in [
        ("of all", Selection::default()),
        ("of mail", Selection { queue: Some(QueueName::new("mail").unwrap()), ..Selection::default() }),
        ("of both", Selection { ids: vec![pay, mail], ..Selection::default() }),
    ] {
        let new = NewOperation { name: name.to_owned(), selection, again: false, pace: Pace::default(), act: act() };
        stage.tide.store().operate(Operate::Begin(Box::new(new))).await.unwrap();
        let path = format!("/v1/operations/{}", name.replace(' ', "%20"));
        stage.ask(&ops, Method::GET, &path, "").await.problem("not-found");
        stage.ask(&ops, Method::PATCH, &path, r#"{"act":"cancel"}"#).await.problem("not-found");
    }
    let listed = stage.ask(&ops, Method::GET, "/v1/operations", "").await.of(200);
    let mut names: Vec<&str> =
        listed["operations"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["named", "sort"]);
    let whole = token(&stage.tide, "whole", &["read"], "*").await;
    let listed = stage.ask(&whole, Method::GET, "/v1/operations?all_tenants=true&limit=200", "").await.of(200);
    assert_eq!(listed["operations"].as_array().unwrap().len(), 5);
    stage.ask(&whole, Method::GET, "/v1/operations?limit=201", "").await.problem("invalid");
    // Whoever reads alone sees it, and does nothing with it.
    let reader = token(&stage.tide, "reader", &["read:pay"], "").await;
    stage.ask(&reader, Method::GET, "/v1/operations/sort", "").await.of(200);
    stage.ask(&reader, Method::PATCH, "/v1/operations/sort", r#"{"act":"cancel"}"#).await.problem("forbidden");
}
