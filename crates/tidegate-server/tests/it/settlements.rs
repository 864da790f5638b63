//! The ends of runs: once under a token, one by one in a batch, with what follows in the same commit.

use http::Method;
use serde_json::{Value, json};

use crate::scopes::{guarded, token};
use crate::stage::Stage;
use crate::thin::{Held, Still, claim, enqueue, nonce, post_as};

#[tokio::test]
async fn a_settlement_that_is_repeated_is_answered_as_before_and_another_one_is_refused() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "a").await;
    let held = still.claim("capture").await;
    let next = json!({"queue": "credit", "kind": "credit", "payload": 1});
    let end = json!({"outcome": "completed", "result": {"charge": "ch_1"}, "then": [next]});
    let first = held.settle(end.clone()).await;
    assert_eq!((&first["status"], &first["repeated"]), (&json!(200), &json!(false)), "{first}");
    let again = held.settle(end).await;
    assert_eq!((&again["state"], &again["repeated"]), (&first["state"], &json!(true)));
    assert_eq!(again["follow_ups"], first["follow_ups"]);
    let other = held.settle(json!({"outcome": "completed", "result": 2})).await;
    assert_eq!((&other["status"], &other["problem"]["type"]), (&json!(409), &json!("/problems/conflict")));
    assert_eq!(still.message(&id).await["answer"], json!({"result": {"charge": "ch_1"}}));
    assert_eq!(still.stage.everything().await.len(), 2, "what follows was enqueued twice");
}

#[tokio::test]
async fn every_outcome_has_its_end() {
    for (end, state, reason) in [
        (json!({"outcome": "completed", "result": null}), "completed", None),
        (json!({"outcome": "permanent", "code": "declined", "detail": "no"}), "failed", None),
        (json!({"outcome": "retryable", "code": "http", "detail": "503", "after_ms": 5000}), "ready", None),
        (json!({"outcome": "not_done", "code": "http", "detail": "503"}), "ready", None),
        (json!({"outcome": "unknown", "code": "http"}), "ready", None),
        (json!({"outcome": "snooze", "after_ms": 60_000}), "ready", None),
        (json!({"outcome": "released"}), "ready", None),
        (json!({"outcome": "park", "reason": "journal_decode", "code": "x"}), "parked", Some("journal_decode")),
        (json!({"outcome": "exhausted", "code": "x"}), "dead", Some("exhausted")),
        (json!({"outcome": "undecodable", "code": "x"}), "dead", Some("decode")),
        (json!({"outcome": "refused", "code": "x"}), "dead", Some("settlement_refused")),
    ] {
        let still = Still::new().await;
        still.enqueue("capture", "a").await;
        let settled = still.claim("capture").await.settle(end.clone()).await;
        assert_eq!((&settled["state"], &settled["reason"]), (&json!(state), &json!(reason)), "{end}: {settled}");
    }
}

#[tokio::test]
async fn what_follows_has_a_key_of_its_own_and_inherits_tenant_flow_and_headers() {
    let still = Still::new().await;
    let body = json!({"kind": "capture", "payload": 1, "key": "a", "headers": {"traceparent": "00-x", "mine": "1"}});
    still.stage.post("/v1/queues/capture/messages", &body.to_string()).await.of(202);
    let held = still.claim("capture").await;
    let of =
        |item: &str| json!({"queue": "line", "kind": "line", "payload": item, "item": item, "headers": {"mine": "2"}});
    let twice = held.settle(json!({"outcome": "completed", "result": 1, "then": [of("1"), of("1")]})).await;
    assert_eq!(twice["status"], 400, "{twice}");
    let settled = held.settle(json!({"outcome": "completed", "result": 1, "then": [of("1"), of("2")]})).await;
    let follow_ups = settled["follow_ups"].as_array().unwrap();
    assert_eq!(follow_ups.len(), 2, "{settled}");
    let follow_up = still.message(follow_ups[0].as_str().unwrap()).await;
    assert_eq!((&follow_up["parent"], &follow_up["flow"]), (&json!(held.id), &json!(held.id)));
    assert_eq!(follow_up["headers"], json!({"traceparent": "00-x", "mine": "2"}));
    // The key that the library makes for the same follow-up.
    let parent =
        still.stage.tide.store().inspect(vec![held.id.parse().unwrap()]).await.unwrap().pop().flatten().unwrap();
    let kind = tidegate::Kind::new("line").unwrap();
    let key = tidegate::message::NewMessage::follow_up_key(&parent.message, "then", &kind, Some("1"));
    assert_eq!(follow_up["key"], key.as_str());
}

#[tokio::test]
async fn what_follows_goes_on_in_the_trace_of_the_message_that_ends_unless_it_names_one() {
    let of_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let inherited = json!({"traceparent": of_parent, "tracestate": "a=1"});
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.db");
    let first = Stage::over(tidegate::Tidegate::open(&file).await.unwrap(), |serving| serving).await;
    let second = Stage::over(tidegate::Tidegate::open(&file).await.unwrap(), |serving| serving).await;
    // Whether the server remembers what it handed out, or never saw it.
    for (settles, key) in [(&first, "a"), (&second, "b")] {
        let body = json!({"kind": "capture", "payload": 1, "key": key, "headers": {"mine": "1"}});
        let headers = [("content-type", "application/json"), ("traceparent", of_parent), ("tracestate", "a=1")];
        first.send(Method::POST, "/v1/queues/capture/messages", &headers, body.to_string()).await.of(202);
        let lease = Held::claim(&first, "capture").await.lease;
        let held = Held::of(settles, lease);
        let next = |name: &str, headers: Value| {
            let key = format!("{name}-{key}");
            json!({"queue": "credit", "kind": "credit", "payload": 1, "tenant": "", "key": key, "headers": headers})
        };
        let then = [next("none", json!({})), next("own", json!({"traceparent": own}))];
        let settled = held.settle(json!({"outcome": "completed", "result": 1, "orphans": false, "then": then})).await;
        let mut found = Vec::new();
        for id in settled["follow_ups"].as_array().unwrap_or_else(|| panic!("{settled}")) {
            let path = format!("/v1/messages/{}?reveal=payload", id.as_str().unwrap());
            found.push(settles.get(&path).await.of(200)["headers"].clone());
        }
        assert_eq!(found, [inherited.clone(), json!({"traceparent": own})], "{key}");
    }
}

#[tokio::test]
async fn a_trace_that_cannot_be_told_is_not_why_a_settlement_is_refused() {
    let still = Still::new().await;
    let next = json!({"queue": "credit", "kind": "credit", "payload": 1, "tenant": "", "key": "a"});
    let gone = json!({"id": tidegate::MessageId::from_i64(1), "token": format!("1.{}", nonce()), "outcome": "completed",
        "result": 1, "orphans": false, "then": [next]});
    let body = json!({"settlements": [gone]}).to_string();
    let refused = still.stage.post("/v1/leases/settle", &body).await.of(200)["results"][0].clone();
    assert_eq!(refused["problem"]["type"], "/problems/lease-lost", "{refused}");
}

#[tokio::test]
async fn a_compensation_commits_with_what_failed_after_an_effect() {
    let still = Still::new().await;
    still.enqueue("capture", "a").await;
    let held = still.claim("capture").await;
    held.reach(json!({"effect": "hold", "policy": "lookup"})).await.of(200);
    held.answer(json!({"effect": "hold", "seq": 0, "answer": "confirmed", "value": "h_1"})).await.of(200);
    let undo = json!({"queue": "undo", "kind": "undo", "payload": "h_1"});
    let settled = held.settle(json!({"outcome": "permanent", "code": "fraud", "compensate": [undo]})).await;
    assert_eq!(
        (&settled["state"], settled["follow_ups"].as_array().unwrap().len()),
        (&json!("failed"), 1),
        "{settled}"
    );
}

#[tokio::test]
async fn a_handler_that_no_longer_reaches_what_is_open_does_not_complete_its_message() {
    let still = Still::new().await;
    still.enqueue("capture", "a").await;
    let first = still.claim("capture").await;
    first.reach(json!({"effect": "old", "policy": "keyed", "window_ms": 500_000_000})).await.of(200);
    let lost = first.answer(json!({"effect": "old", "seq": 0, "answer": "unknown"})).await.of(200);
    first.stop(&lost).await;
    let second = still.claim_when_due("capture").await;
    let settled = second.settle(json!({"outcome": "completed", "result": 1})).await;
    assert_eq!((&settled["state"], &settled["reason"]), (&json!("parked"), &json!("effect_orphaned")), "{settled}");
    let again = second.settle(json!({"outcome": "completed", "result": 1})).await;
    assert_eq!((&again["status"], &again["repeated"]), (&json!(200), &json!(true)), "{again}");
}

#[tokio::test]
async fn a_server_that_did_not_hand_the_message_out_settles_it_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.db");
    let first = Stage::over(tidegate::Tidegate::open(&file).await.unwrap(), |serving| serving).await;
    let second = Stage::over(tidegate::Tidegate::open(&file).await.unwrap(), |serving| serving).await;
    enqueue(&first, "capture", "a").await;
    let lease = Held::claim(&first, "capture").await.lease;
    let held = Held::of(&second, lease);
    assert_eq!(held.reach(json!({"effect": "mail", "policy": "natural"})).await.of(200)["do"], "send");
    let done = json!({"effect": "mail", "policy": "natural", "answer": "confirmed", "value": 1});
    held.answer(done).await.of(200);
    let next = json!({"queue": "credit", "kind": "credit", "payload": 1});
    let settled = held.settle(json!({"outcome": "completed", "result": 1, "then": [next]})).await;
    assert_eq!(
        (&settled["state"], settled["follow_ups"].as_array().unwrap().len()),
        (&json!("completed"), 1),
        "{settled}"
    );
}

/// A token that may work one queue, two messages that are leased, one of them of another queue, and the lease of each.
async fn two_queues() -> (Stage, String, Value, Value) {
    let stage = guarded().await;
    let all = token(&stage.tide, "all", &["work", "produce"], "*").await;
    let narrow = token(&stage.tide, "narrow", &["work:mine"], "").await;
    let mut leases = Vec::new();
    for queue in ["mine", "other"] {
        let body = json!({"kind": queue, "payload": 1, "key": "a"});
        post_as(&stage, &all, &format!("/v1/queues/{queue}/messages"), &body).await.of(202);
        let claimed = post_as(&stage, &all, "/v1/leases", &claim(queue, &nonce())).await.of(200);
        leases.push(claimed["leases"][0].clone());
    }
    let other = leases.pop().unwrap();
    (stage, narrow, leases.pop().unwrap(), other)
}

fn statuses(reply: &Value) -> Vec<u64> {
    reply["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn items_of_queues_that_the_token_may_not_work_are_refused_one_by_one() {
    let (stage, narrow, mine, other) = two_queues().await;
    let of = |lease: &Value, more: Value| {
        let mut item = more;
        item["id"] = lease["message"]["id"].clone();
        item["token"] = lease["token"].clone();
        item
    };
    let nobody = |more: Value| {
        let mut item = of(&mine, more);
        item["id"] = json!("msg_01jcz4t6q8000");
        item
    };
    let extend = || json!({"lease_ms": 30_000});
    let body = json!({"leases": [of(&other, extend()), of(&mine, extend()), nobody(extend()), 17]});
    let reply = post_as(&stage, &narrow, "/v1/leases/extend", &body).await.of(200);
    assert_eq!(statuses(&reply), [404, 200, 404, 400], "{reply}");
    assert!(reply["results"][3]["problem"]["detail"].as_str().unwrap().contains("$.leases[3]"), "{reply}");

    let intent = || json!({"write": {"write": "intent", "effect": "charge", "policy": "lookup"}});
    let body = json!({"writes": [of(&other, intent()), of(&mine, intent()), nobody(intent())]});
    let reply = post_as(&stage, &narrow, "/v1/leases/journal", &body).await.of(200);
    assert_eq!(statuses(&reply), [404, 200, 404], "{reply}");
    assert_eq!(reply["results"][1]["effect"]["state"], "intent");
    let answer =
        json!({"write": {"write": "answer", "effect": "charge", "seq": 0, "answer": "confirmed", "value": [1]}});
    let body = json!({"writes": [of(&mine, answer)]});
    let reply = post_as(&stage, &narrow, "/v1/leases/journal", &body).await.of(200);
    assert_eq!(reply["results"][0]["effect"]["value"], json!([1]));

    let end = || json!({"outcome": "completed", "result": 1});
    let mut follows = of(&mine, end());
    follows["then"] = json!([{"queue": "other", "kind": "x", "payload": 1}]);
    let body =
        json!({"settlements": [of(&other, end()), follows, nobody(end()), of(&mine, json!({"outcome": "completed"}))]});
    let reply = post_as(&stage, &narrow, "/v1/leases/settle", &body).await.of(200);
    assert_eq!(statuses(&reply), [404, 403, 404, 400], "{reply}");
    let body = json!({"settlements": [of(&other, end()), of(&mine, end())]});
    let reply = post_as(&stage, &narrow, "/v1/leases/settle", &body).await.of(200);
    assert_eq!(statuses(&reply), [404, 200], "{reply}");

    let path = |what: &str| format!("/v1/messages/{}/{what}", other["message"]["id"].as_str().unwrap());
    let reach = json!({"token": other["token"], "effect": "charge", "policy": "natural"});
    post_as(&stage, &narrow, &path("effects"), &reach).await.problem("not-found");
    let answer = json!({"token": other["token"], "effect": "charge", "seq": 0, "answer": "not_done"});
    post_as(&stage, &narrow, &path("effects/answer"), &answer).await.problem("not-found");
    let states: Vec<_> = stage.everything().await.iter().map(|message| message.state.as_str()).collect();
    assert_eq!(states, ["completed", "leased"]);
}

#[tokio::test]
async fn of_a_flow_over_tenants_each_token_reads_its_own_messages() {
    let stage = guarded().await;
    let worker = token(&stage.tide, "worker", &["work", "produce"], "*").await;
    let all = token(&stage.tide, "all", &["read"], "*").await;
    let own = token(&stage.tide, "own", &["read"], "").await;
    let body = json!({"kind": "mine", "payload": 1, "key": "a"});
    post_as(&stage, &worker, "/v1/queues/mine/messages", &body).await.of(202);
    let lease = post_as(&stage, &worker, "/v1/leases", &claim("mine", &nonce())).await.of(200)["leases"][0].clone();
    let next = json!({"queue": "mine", "kind": "mine", "payload": 1, "tenant": "acme"});
    let (id, proof) = (&lease["message"]["id"], &lease["token"]);
    let end = json!({"id": id, "token": proof, "outcome": "completed", "result": 1, "then": [next]});
    let settled = post_as(&stage, &worker, "/v1/leases/settle", &json!({"settlements": [end]})).await.of(200);
    let follows = &settled["results"][0]["follow_ups"][0];
    assert!(follows.is_string(), "{settled}");
    let path = format!("/v1/flows/{}", id.as_str().unwrap());
    for (reader, sees) in [(&all, vec![id, follows]), (&own, vec![id])] {
        let flow = stage.ask(reader, Method::GET, &path, "").await.of(200);
        let ids: Vec<_> = flow["messages"].as_array().unwrap().iter().map(|message| &message["id"]).collect();
        assert_eq!(ids, sees);
        assert_eq!(flow["live"], true, "what follows has not run");
    }
}

#[tokio::test]
async fn what_follows_to_a_queue_that_the_token_may_produce_on_is_stored() {
    let stage = guarded().await;
    let worker = token(&stage.tide, "worker", &["work:mine", "produce:mine", "produce:next"], "").await;
    let body = json!({"kind": "mine", "payload": 1, "key": "a"});
    post_as(&stage, &worker, "/v1/queues/mine/messages", &body).await.of(202);
    let lease = post_as(&stage, &worker, "/v1/leases", &claim("mine", &nonce())).await.of(200)["leases"][0].clone();
    let next = json!({"queue": "next", "kind": "next", "payload": 1});
    let (id, token) = (&lease["message"]["id"], &lease["token"]);
    let end = json!({"id": id, "token": token, "outcome": "completed", "result": 1, "then": [next]});
    let reply = post_as(&stage, &worker, "/v1/leases/settle", &json!({"settlements": [end]})).await.of(200);
    assert_eq!(reply["results"][0]["follow_ups"].as_array().unwrap().len(), 1, "{reply}");
}
