//! Effects of a worker that only sends, looks up, answers and settles.

use std::time::Duration;

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::thin::{Held, Still};

const DAY_MS: u64 = 24 * 3_600_000;

fn keyed(effect: &str) -> Value {
    json!({"effect": effect, "policy": "keyed", "window_ms": 4 * DAY_MS})
}

#[expect(clippy::needless_pass_by_value, reason = "it is made where it is said")]
fn confirmed(effect: &str, seq: u32, value: Value) -> Value {
    json!({"effect": effect, "seq": seq, "answer": "confirmed", "value": value})
}

fn unknown(effect: &str) -> Value {
    json!({"effect": effect, "seq": 0, "answer": "unknown", "why": "no answer within 10 s"})
}

/// Reaches an effect, and is told to do this.
async fn told(held: &Held<'_>, body: Value, what: &str) -> Value {
    let told = held.reach(body).await.of(200);
    assert_eq!(told["do"], what, "{told}");
    told
}

#[tokio::test]
async fn a_keyed_effect_whose_reply_was_lost_is_sent_again_under_its_key_and_takes_effect_once() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let first = still.claim("capture").await;
    assert_eq!((&first.lease["reconciling"], &first.lease["counters"]["attempt"]), (&json!(false), &json!(1)));
    assert_eq!(first.lease["message"]["payload"], json!({"cents": 100}));
    let send = told(&first, keyed("charge"), "send").await;
    assert_eq!(
        (&send["seq"], &send["within_ms"], &send["effect"]["state"]),
        (&json!(0), &json!(30_000), &json!("intent"))
    );
    // It is charged, and its reply is lost.
    let lost = first.answer(unknown("charge")).await.of(200);
    assert_eq!(lost["settle"]["outcome"], "unknown");
    let settled = first.stop(&lost).await;
    assert_eq!((&settled["status"], &settled["state"]), (&json!(200), &json!("ready")), "{settled}");

    let second = still.claim_when_due("capture").await;
    assert_eq!(second.lease["reconciling"], true);
    assert_eq!(second.lease["journal"][0]["state"], "unknown");
    let again = told(&second, keyed("charge"), "send").await;
    assert_eq!((&again["key"], &again["effect"]["sends"]), (&send["key"], &json!(2)));
    let value = second.answer(confirmed("charge", 0, json!({"charge": "ch_1"}))).await.of(200);
    assert_eq!((&value["do"], &value["value"]), (&json!("value"), &json!({"charge": "ch_1"})));
    // Reached once more, it is told as it is known.
    assert_eq!(told(&second, keyed("charge"), "value").await["value"], json!({"charge": "ch_1"}));
    let credit = json!({"queue": "credit", "kind": "credit", "payload": {"charge": "ch_1"}});
    let settled = second.settle(json!({"outcome": "completed", "result": "ch_1", "then": [credit]})).await;
    assert_eq!(settled["state"], "completed", "{settled}");

    let flow = still.stage.get(&format!("/v1/flows/{id}")).await.of(200);
    let of_flow: Vec<_> = flow["messages"].as_array().unwrap().iter().map(|message| message["id"].clone()).collect();
    assert_eq!(of_flow, [json!(id), settled["follow_ups"][0].clone()]);
    let duplicate = r#"{"kind":"capture","payload":{"cents":100}}"#;
    let replay = still.stage.post_under("dep-1", "/v1/queues/capture/messages", duplicate).await.of(200);
    assert_eq!(replay["answer"], json!({"result": "ch_1"}));
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_is_refused_everywhere_and_what_it_confirms_is_kept_as_evidence() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let stale = still.claim("capture").await;
    let sent = told(&stale, keyed("charge"), "send").await;
    still.lapse().await;
    let second = still.claim("capture").await;
    assert_eq!((&second.lease["reconciling"], &second.lease["suspect"]), (&json!(true), &json!(true)));
    assert_eq!(second.lease["counters"]["claims"], 2);

    stale.reach(keyed("charge")).await.problem("lease-lost");
    let mut rides = keyed("notify");
    rides["before"] =
        json!([{"write": "answer", "effect": "charge", "seq": 0, "answer": "confirmed", "value": "ch_rode"}]);
    stale.reach(rides).await.problem("lease-lost");
    stale.answer(confirmed("charge", 0, json!("ch_late"))).await.problem("lease-lost");
    let rides = json!([{"write": "answer", "effect": "charge", "seq": 0, "answer": "confirmed", "value": "ch_end"}]);
    let end = json!({"outcome": "completed", "result": 1, "journal": rides});
    for refused in [stale.extend().await, stale.settle(end).await] {
        assert_eq!((&refused["status"], &refused["problem"]["type"]), (&json!(409), &json!("/problems/lease-lost")));
    }
    let message = still.message(&id).await;
    assert_eq!(message["state"], "leased", "the stale settlement landed");
    let evidence = message["evidence"].as_array().unwrap();
    let values: Vec<_> = evidence.iter().map(|late| late["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["ch_rode", "ch_late", "ch_end"]);
    assert_eq!(message["journal"][0]["state"], "intent", "the late confirmation was applied");

    let again = told(&second, keyed("charge"), "send").await;
    assert_eq!(again["key"], sent["key"]);
    second.answer(confirmed("charge", 0, json!("ch_1"))).await.of(200);
    assert_eq!(second.settle(json!({"outcome": "completed", "result": "ch_1"})).await["state"], "completed");
}

#[tokio::test]
async fn a_reach_whose_answer_was_lost_is_repeated_and_nothing_counts_as_sent() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    let once = || json!({"effect": "wire", "policy": "at_most_once"});
    let lost = told(&held, once(), "send").await;
    // Repeated as it was, it may have been sent: only a person can decide.
    let blind = told(&held, once(), "stop").await;
    assert_eq!((&blind["settle"]["outcome"], &blind["settle"]["reason"]), (&json!("park"), &json!("outcome_unknown")));
    let mut repeated = once();
    repeated["unsent"] = json!(true);
    let send = told(&held, repeated, "send").await;
    assert_eq!((&send["key"], &send["seq"], &send["effect"]["sends"]), (&lost["key"], &json!(1), &json!(1)));
    held.answer(confirmed("wire", 1, json!("tx"))).await.of(200);
    held.settle(json!({"outcome": "completed", "result": null})).await;
    let journal = still.message(&id).await["journal"].clone();
    let states: Vec<_> = journal.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["not_done", "confirmed"], "{journal}");
}

/// Somebody wishes to cancel a message that runs.
async fn call_off(still: &Still, id: &str) {
    let called_off = still.stage.post("/v1/messages/cancel", &json!({"ids": [id]}).to_string()).await.of(200);
    assert_eq!(called_off["results"][0]["cancelled"], "requested", "{called_off}");
}

#[tokio::test]
async fn a_repeated_reach_that_comes_late_does_not_undo_what_is_being_sent() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    let again = || json!({"effect": "wire", "policy": "at_most_once", "unsent": true});
    told(&held, again(), "send").await;
    call_off(&still, &id).await;
    // One that the client gave up on, before the one by which it was told to send.
    let late = told(&held, again(), "stop").await;
    assert_eq!(late["settle"]["code"], "cancel_requested");
    assert_eq!(still.message(&id).await["journal"][0]["state"], "intent", "it is being sent");
    held.answer(confirmed("wire", 0, json!("tx"))).await.of(200);
    assert_eq!(held.settle(json!({"outcome": "completed", "result": "tx"})).await["state"], "completed");
}

#[tokio::test]
async fn a_run_that_ends_before_its_effect_was_sent_says_so_when_it_is_settled() {
    let still = Still::new().await;
    for (key, journal, state) in [
        ("dep-1", json!([{"write": "not_sent", "effect": "wire"}]), "cancelled"),
        // Not said, it may have been sent.
        ("dep-2", json!([]), "parked"),
    ] {
        let id = still.enqueue("capture", key).await;
        let held = still.claim("capture").await;
        told(&held, json!({"effect": "wire", "policy": "at_most_once"}), "send").await;
        call_off(&still, &id).await;
        let stop = told(&held, json!({"effect": "wire", "policy": "at_most_once", "unsent": true}), "stop").await;
        let mut settlement = stop["settle"].clone();
        settlement["journal"] = journal;
        let settled = held.settle(settlement).await;
        assert_eq!(settled["state"], state, "{settled}");
    }
}

#[tokio::test]
async fn no_reach_says_of_another_effect_that_it_was_not_sent() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    let wire = || json!({"effect": "wire", "policy": "at_most_once"});
    told(&held, wire(), "send").await;
    // It comes late: the wire is on its way.
    let not_sent = json!([{"write": "not_sent", "effect": "wire"}]);
    for mut late in [keyed("notify"), json!({"effect": "log", "policy": "natural"})] {
        late["before"] = not_sent.clone();
        let refused = held.reach(late).await.problem("invalid");
        assert!(refused["detail"].as_str().unwrap().contains("effect wire was not sent"), "{refused}");
        assert!(refused["fix"].as_str().unwrap().contains("settlement"), "{refused}");
    }
    assert_eq!(still.message(&id).await["journal"][0]["state"], "intent", "it is being sent");
    // Of the effect that is reached it may be said in either way.
    let mut again = wire();
    again["before"] = not_sent;
    assert_eq!(told(&held, again, "send").await["seq"], 1);
}

#[tokio::test]
async fn what_comes_along_with_an_effect_that_comes_after_the_lease_lapsed_is_kept() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    told(&held, keyed("charge"), "send").await;
    // Nobody took the message over: nothing begins any more, and what happened is known.
    still.clock.advance(Duration::from_secs(31));
    let mut rides = keyed("notify");
    rides["before"] =
        json!([{"write": "answer", "effect": "charge", "seq": 0, "answer": "confirmed", "value": "ch_1"}]);
    held.reach(rides).await.problem("lease-lost");
    let journal = still.message(&id).await["journal"].clone();
    let rows: Vec<_> = journal.as_array().unwrap().iter().map(|row| (&row["effect"], &row["state"])).collect();
    assert_eq!(rows, [(&json!("charge"), &json!("confirmed"))], "{journal}");
}

#[tokio::test]
async fn an_unknown_answer_of_what_is_sent_at_most_once_waits_for_a_person() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    told(&held, json!({"effect": "wire", "policy": "at_most_once"}), "send").await;
    let lost = held.answer(unknown("wire")).await.of(200);
    let settled = held.stop(&lost).await;
    assert_eq!((&settled["state"], &settled["reason"]), (&json!("parked"), &json!("outcome_unknown")), "{settled}");
}

#[tokio::test]
async fn what_can_be_looked_up_is_looked_up_after_its_quarantine_and_sent_again_when_it_never_happened() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let lookup = || json!({"effect": "wire", "policy": "lookup", "quarantine_ms": 60_000, "send_within_ms": 5000});
    let first = still.claim("capture").await;
    let send = told(&first, lookup(), "send").await;
    assert_eq!(send["within_ms"], 5000);
    let lost = first.answer(unknown("wire")).await.of(200);
    // Asked at once, the other side may not know of it yet.
    let early = told(&first, lookup(), "stop").await;
    assert_eq!((&early["settle"]["outcome"], &early["settle"]["code"]), (&json!("unknown"), &json!("quarantine")));
    first.answer(json!({"effect": "wire", "seq": 0, "answer": "not_found"})).await.problem("conflict");
    first.stop(&lost).await;

    let second = still.claim_when_due("capture").await;
    let look_up = told(&second, lookup(), "look_up").await;
    assert_eq!((&look_up["key"], &look_up["seq"]), (&send["key"], &json!(0)));
    let never = second.answer(json!({"effect": "wire", "seq": 0, "answer": "not_found"})).await.of(200);
    assert_eq!(never["do"], "reach");
    let again = told(&second, lookup(), "send").await;
    assert_eq!((&again["key"], &again["seq"]), (&send["key"], &json!(1)));
    second.answer(confirmed("wire", 1, json!(null))).await.of(200);
    // A value that is null is a value.
    assert!(told(&second, lookup(), "value").await.as_object().unwrap().contains_key("value"));
    assert_eq!(second.settle(json!({"outcome": "completed", "result": null})).await["state"], "completed");
}

#[tokio::test]
async fn a_look_up_that_is_not_answered_ends_the_run_and_one_that_finds_it_confirms_it() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let lookup = || json!({"effect": "wire", "policy": "lookup", "quarantine_ms": 0, "send_within_ms": 1});
    let first = still.claim("capture").await;
    told(&first, lookup(), "send").await;
    let lost = first.answer(unknown("wire")).await.of(200);
    first.stop(&lost).await;
    let second = still.claim_when_due("capture").await;
    told(&second, lookup(), "look_up").await;
    let silent = second.answer(unknown("wire")).await.of(200);
    assert_eq!(silent["settle"]["code"], "lookup");
    second.stop(&silent).await;
    let third = still.claim_when_due("capture").await;
    told(&third, lookup(), "look_up").await;
    let found = third.answer(confirmed("wire", 0, json!({"id": 7}))).await.of(200);
    assert_eq!(found["value"], json!({"id": 7}));
}

#[tokio::test]
async fn a_look_up_that_was_not_done_says_nothing_of_the_send_before_it() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let lookup = || json!({"effect": "wire", "policy": "lookup", "quarantine_ms": 0, "send_within_ms": 1});
    told(&still.claim("capture").await, lookup(), "send").await;
    still.lapse().await;
    let second = still.claim("capture").await;
    told(&second, lookup(), "look_up").await;
    let busy = second.answer(json!({"effect": "wire", "seq": 0, "answer": "not_done", "why": "429"})).await.of(200);
    second.stop(&busy).await;
    let third = still.claim_when_due("capture").await;
    told(&third, lookup(), "look_up").await;
}

#[tokio::test]
async fn a_look_up_that_finds_nothing_when_no_attempt_is_left_ends_the_message() {
    let still = Still::new().await;
    still
        .stage
        .send(
            http::Method::PUT,
            "/v1/kinds/capture/policy",
            &[("content-type", "application/json")],
            r#"{"max_attempts":1,"backoff":{"base_ms":1}}"#,
        )
        .await
        .of(200);
    still.enqueue("capture", "dep-1").await;
    let lookup = || json!({"effect": "wire", "policy": "lookup", "quarantine_ms": 1000});
    let first = still.claim("capture").await;
    told(&first, lookup(), "send").await;
    let lost = first.answer(unknown("wire")).await.of(200);
    first.stop(&lost).await;
    let second = still.claim_when_due("capture").await;
    told(&second, lookup(), "look_up").await;
    let never = second.answer(json!({"effect": "wire", "seq": 0, "answer": "not_found"})).await.of(200);
    assert_eq!(never["settle"]["outcome"], "exhausted", "{never}");
    // Its answer was lost, and it is repeated at a server that did not hand the message out.
    let elsewhere = Stage::over(still.stage.tide.clone(), |serving| serving).await;
    let there = Held::of(&elsewhere, second.lease.clone());
    let again = there.answer(json!({"effect": "wire", "seq": 0, "answer": "not_found"})).await.of(200);
    assert_eq!(again["settle"]["outcome"], "exhausted", "{again}");
    let settled = second.stop(&never).await;
    assert_eq!((&settled["state"], &settled["reason"]), (&json!("dead"), &json!("exhausted")), "{settled}");
}

#[tokio::test]
async fn what_the_other_side_refused_is_told_again_and_what_it_did_not_do_counts_no_attempt() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let first = still.claim("capture").await;
    told(&first, keyed("charge"), "send").await;
    let busy = json!({"effect": "charge", "seq": 0, "answer": "not_done", "why": "503", "after_ms": 5000});
    for _ in 0..2 {
        let told = first.answer(busy.clone()).await.of(200);
        assert_eq!((&told["settle"]["outcome"], &told["settle"]["after_ms"]), (&json!("not_done"), &json!(5000)));
    }
    let told_of = first.answer(busy).await.of(200);
    assert_eq!(first.stop(&told_of).await["state"], "ready");
    let second = still.claim_when_due("capture").await;
    assert_eq!(second.lease["counters"]["attempt"], 1, "an attempt was counted");
    let send = told(&second, keyed("charge"), "send").await;
    let declined =
        json!({"effect": "charge", "seq": send["seq"], "answer": "rejected", "code": "declined", "detail": "no funds"});
    let rejected = second.answer(declined).await.of(200);
    for rejected in [rejected, told(&second, keyed("charge"), "rejected").await] {
        assert_eq!((&rejected["code"], &rejected["detail"]), (&json!("declined"), &json!("no funds")));
    }
    // Decided is decided.
    second.answer(confirmed("charge", 1, json!(1))).await.problem("conflict");
    let settled = second.settle(json!({"outcome": "permanent", "code": "declined", "detail": "no funds"})).await;
    assert_eq!(settled["state"], "failed", "{settled}");
}

#[tokio::test]
async fn what_is_harmless_to_repeat_needs_no_intent_and_its_confirmation_may_ride_the_settlement() {
    let still = Still::new().await;
    let id = still.enqueue("notify", "n-1").await;
    let held = still.claim("notify").await;
    let mail = || json!({"effect": "mail", "policy": "natural"});
    let send = told(&held, mail(), "send").await;
    assert!(send["key"].is_string() && send.get("seq").is_none() && send.get("effect").is_none(), "{send}");
    assert_eq!(still.message(&id).await["journal"], json!([]), "an intent was written");
    let silent = held.answer(json!({"effect": "mail", "policy": "natural", "answer": "unknown", "why": "reset"})).await;
    assert_eq!(silent.of(200)["settle"]["outcome"], "retryable");
    let done = json!({"effect": "mail", "policy": "natural", "answer": "confirmed", "value": "m_1"});
    for _ in 0..2 {
        assert_eq!(held.answer(done.clone()).await.of(200)["value"], "m_1");
    }
    assert_eq!(told(&held, mail(), "value").await["value"], "m_1");
    told(&held, json!({"effect": "push", "policy": "natural"}), "send").await;
    let rides = json!([{"write": "natural", "effect": "push", "value": 2}]);
    let settled = held.settle(json!({"outcome": "completed", "result": null, "journal": rides})).await;
    assert_eq!(settled["state"], "completed", "{settled}");
    let journal = still.message(&id).await["journal"].clone();
    let values: Vec<_> = journal.as_array().unwrap().iter().map(|row| row["value"].clone()).collect();
    assert_eq!(values, [json!("m_1"), json!(2)]);
}

#[tokio::test]
async fn an_answer_may_ride_the_next_reach_or_the_settlement() {
    let still = Still::new().await;
    let id = still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    told(&held, keyed("hold"), "send").await;
    // Beside an effect that may have happened nothing else begins.
    let beside = told(&held, keyed("charge"), "stop").await;
    assert_eq!(beside["settle"]["reason"], "effect_orphaned");
    let answer =
        |effect: &str| json!({"write": "answer", "effect": effect, "seq": 0, "answer": "confirmed", "value": effect});
    let mut charge = keyed("charge");
    charge["before"] = json!([answer("hold")]);
    told(&held, charge.clone(), "send").await;
    // Its answer was lost: what rides along is taken twice.
    charge["unsent"] = json!(true);
    told(&held, charge, "send").await;
    let mut known = keyed("hold");
    known["before"] = json!([{"write": "answer", "effect": "charge", "seq": 1, "answer": "rejected", "code": "no"}]);
    assert_eq!(told(&held, known, "value").await["value"], "hold");
    assert_eq!(told(&held, keyed("charge"), "rejected").await["code"], "no", "what rode along was not written");
    let settled = held.settle(json!({"outcome": "permanent", "code": "no", "journal": [answer("hold")]})).await;
    assert_eq!(
        (&settled["state"], &settled["reason"]),
        (&json!("dead"), &json!("permanent_after_effect")),
        "{settled}"
    );
    assert_eq!(still.message(&id).await["journal"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn another_request_under_an_open_effect_is_another_effect_however_it_is_written() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    let with = |request: &str| {
        let mut body = keyed("charge");
        body["request"] = serde_json::from_str(request).unwrap();
        body
    };
    told(&held, with(r#"{"cents": 100, "to": "a"}"#), "send").await;
    told(&held, with(r#"{"to": "a", "cents": 100}"#), "send").await;
    let other = told(&held, with(r#"{"to": "a", "cents": 101}"#), "stop").await;
    assert_eq!((&other["settle"]["outcome"], &other["settle"]["reason"]), (&json!("park"), &json!("effect_changed")));
    assert_eq!(held.stop(&other).await["state"], "parked");
}

#[tokio::test]
async fn nothing_new_begins_after_the_deadline_or_a_wish_to_cancel_or_where_the_window_is_too_short() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    let short = told(&held, json!({"effect": "charge", "policy": "keyed", "window_ms": 1000}), "stop").await;
    assert_eq!(short["settle"]["code"], "window_too_short");
    let act = tidegate::store::Act { actor: "test".into(), reason: "a test".into() };
    still.stage.tide.cancel(held.id.parse().unwrap(), act).await.unwrap();
    assert_eq!(held.extend().await["cancel_requested"], true);
    let called_off = told(&held, keyed("charge"), "stop").await;
    assert_eq!(called_off["settle"]["code"], "cancel_requested");
    assert_eq!(held.stop(&called_off).await["state"], "cancelled");

    let deadline = still.stage.tide.clock().now().after(Duration::from_secs(5)).to_string();
    let body = json!({"kind": "late", "payload": 1, "key": "l", "deadline": deadline}).to_string();
    still.stage.post("/v1/queues/late/messages", &body).await.of(202);
    let late = still.claim("late").await;
    still.clock.advance(Duration::from_secs(6));
    let too_late = told(&late, json!({"effect": "charge", "policy": "natural"}), "stop").await;
    assert_eq!(too_late["settle"]["code"], "deadline");
    let settled = late.stop(&too_late).await;
    assert_eq!((&settled["state"], &settled["reason"]), (&json!("dead"), &json!("deadline")), "{settled}");
}

#[tokio::test]
async fn a_store_that_came_out_of_a_backup_says_that_an_effect_may_have_been_sent_since() {
    let still = Still::new().await;
    for kind in ["once", "asked", "keyed"] {
        still.enqueue(kind, "dep-1").await;
    }
    let copy = still.restored().await;
    let once = told(&copy.claim("once").await, json!({"effect": "wire", "policy": "at_most_once"}), "stop").await;
    assert_eq!(once["settle"]["outcome"], "park", "{once}");
    let lookup = json!({"effect": "wire", "policy": "lookup", "quarantine_ms": 0});
    told(&copy.claim("asked").await, lookup, "look_up").await;
    // Under the key that the other store sent it under, and not as the first send.
    let send = told(&copy.claim("keyed").await, keyed("wire"), "send").await;
    let sent = told(&still.claim("keyed").await, keyed("wire"), "send").await;
    assert_eq!((&send["key"], &send["effect"]["sends"]), (&sent["key"], &json!(2)));
}

#[tokio::test]
async fn a_value_that_is_too_large_to_keep_waits_for_a_person() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    told(&held, keyed("charge"), "send").await;
    let large = "x".repeat(2 << 20);
    let told_of = held.answer(confirmed("charge", 0, json!(large))).await.of(200);
    assert_eq!(
        (&told_of["settle"]["outcome"], &told_of["settle"]["reason"]),
        (&json!("park"), &json!("journal_decode"))
    );
    assert_eq!(held.stop(&told_of).await["state"], "parked");
}

#[tokio::test]
async fn what_is_not_an_effect_is_refused_with_what_is_wrong() {
    let still = Still::new().await;
    still.enqueue("capture", "dep-1").await;
    let held = still.claim("capture").await;
    for (body, slug, says) in [
        (json!({"effect": "charge"}), "malformed", "policy"),
        (json!({"effect": "charge", "policy": "keyed"}), "invalid", "window_ms"),
        (json!({"effect": "charge", "policy": "lookup", "window_ms": 1}), "invalid", "not keyed"),
        (json!({"effect": "charge", "policy": "transactional"}), "invalid", "transactional"),
        (json!({"effect": "charge", "policy": "natural", "or_look_up": true}), "malformed", "or_look_up"),
        (json!({"effect": "cha rge", "policy": "natural"}), "malformed", "cha rge"),
        (json!({"effect": "charge", "policy": "natural", "item": "x".repeat(256)}), "invalid", "256 bytes"),
        (
            json!({"effect": "charge", "policy": "natural", "request": 1, "request_hash": "0".repeat(32)}),
            "invalid",
            "both",
        ),
    ] {
        let problem = held.reach(body).await.problem(slug);
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    held.answer(json!({"effect": "charge", "answer": "confirmed", "value": 1})).await.problem("invalid");
    held.answer(json!({"effect": "charge", "seq": 0, "answer": "confirmed"})).await.problem("invalid");
    held.answer(confirmed("charge", 0, json!(1))).await.problem("conflict");
    let unread = json!({"token": "1.zz", "effect": "charge", "policy": "natural"}).to_string();
    still.stage.post(&format!("/v1/messages/{}/effects", held.id), &unread).await.problem("malformed");
    let nobody = json!({"token": held.token, "effect": "charge", "policy": "natural"}).to_string();
    still.stage.post("/v1/messages/msg_01jcz4t6q8000/effects", &nobody).await.problem("not-found");
}
