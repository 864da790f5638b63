//! What operators read and do: queues, figures, groups, parked messages, the audit, and acts on messages.

use http::Method;
use serde_json::{Value, json};
use tidegate::journal::{self, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate::lifecycle::Outcome;
use tidegate::message::{NewMessage, Payload};
use tidegate::store::{ClaimRequest, Enqueued, Journal, JournalWrite, Lease, QueueSlots, Settle};
use tidegate::{
    Backoff, Context, EffectAnswer, EffectName, Failure, HandlerError, IdempotencyKey, Kind, Message, MessageId, Nonce,
    Policy, QueueName, SystemRandom, Tenant, Tidegate, WorkerId,
};
use tidegate_server::Serving;

use crate::scopes::{guarded, token};
use crate::stage::{Reply, Stage, answer_next};

/// Enqueues so many messages on a queue of a tenant.
pub(crate) async fn put(tide: &Tidegate, tenant: &str, queue: &str, count: usize) -> Vec<MessageId> {
    let random = SystemRandom;
    let message = |_| NewMessage {
        tenant: Tenant::new(tenant).unwrap(),
        ..NewMessage::new(
            QueueName::new(queue).unwrap(),
            Kind::new("work").unwrap(),
            IdempotencyKey::unique(&random),
            Payload::from_json(r#"{"card":"4242-4242-4242","cents":100}"#).unwrap(),
        )
    };
    let stored = tide.store().enqueue((0..count).map(message).collect()).await.unwrap();
    let id = |enqueued| match enqueued {
        Ok(Enqueued::New { id }) => id,
        other => panic!("{other:?}"),
    };
    stored.into_iter().map(id).collect()
}

/// Enqueues so many and has them die of what was said.
pub(crate) async fn kill(tide: &Tidegate, tenant: &str, queue: &str, count: usize, said: &str) -> Vec<MessageId> {
    let ids = put(tide, tenant, queue, count).await;
    let leases = lease(tide, tenant, queue, count).await;
    assert_eq!(leases.len(), count, "others were waiting on queue {queue}");
    let ends = |lease: &Lease| ends(lease, Outcome::Undecodable { failure: Failure::new("decode", said) });
    for settled in tide.store().settle(leases.iter().map(ends).collect()).await.unwrap() {
        assert_eq!(settled.unwrap().state, tidegate::State::Dead);
    }
    ids
}

/// Claims so many messages of a queue.
async fn lease(tide: &Tidegate, tenant: &str, queue: &str, count: usize) -> Vec<Lease> {
    let claim = ClaimRequest {
        worker: WorkerId::new("test").unwrap(),
        tenant: Tenant::new(tenant).unwrap(),
        queues: vec![QueueSlots { queue: QueueName::new(queue).unwrap(), slots: u32::try_from(count).unwrap() }],
        kinds: vec![(Kind::new("work").unwrap(), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease: std::time::Duration::from_secs(60),
    };
    tide.store().claim(claim).await.unwrap().leases
}

fn ends(lease: &Lease, outcome: Outcome) -> Settle {
    let (id, token) = (lease.message.id, lease.token);
    Settle { id, token, outcome, journal: Vec::new(), then: Vec::new(), compensate: Vec::new(), unit: 0.5 }
}

/// A message of kind `work` on the queue of that name.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Work {
    pub(crate) card: String,
    pub(crate) cents: u32,
}

impl Message for Work {
    const KIND: &'static str = "work";
    type Answer = u32;

    fn key(&self) -> String {
        format!("{}-{}", self.card, self.cents)
    }
}

/// Runs are counted, and come back at once.
pub(crate) fn at_once(max_attempts: u32) -> Policy {
    let millis = std::time::Duration::from_millis;
    Policy { max_attempts, backoff: Backoff { base: millis(1), cap: millis(2) }, ..Policy::default() }
}

/// Parks a message: its one send has no answer.
async fn park(tide: &Tidegate) -> MessageId {
    let handler = |context: Context, _: Work| async move {
        let effect = context.effect("capture").at_most_once();
        let _: u32 =
            effect.call(|_| async { EffectAnswer::unknown("time-out after the send of 4242-4242-4242") }).await?;
        Err::<u32, _>(HandlerError::retryable("not_reached", "the effect has no answer"))
    };
    let worker = tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = tide.enqueue(Work { card: "4242-4242-4242".into(), cents: 1 }).await.unwrap();
    let answer = sent.answer(std::time::Duration::from_secs(30)).await.unwrap();
    assert!(matches!(answer, tidegate::Answer::Parked { .. }), "{answer:?}");
    worker.stop().await.unwrap();
    sent.id()
}

fn statuses(reply: &Value) -> Vec<u64> {
    reply["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect()
}

async fn audit(stage: &Stage) -> Vec<tidegate::store::AuditEntry> {
    stage.tide.store().audit(0, 1000).await.unwrap()
}

// --- queues, figures -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_queue_is_read_paused_limited_and_resumed_with_who_and_why() {
    let stage = Stage::new().await;
    put(&stage.tide, "", "mail", 3).await;
    kill(&stage.tide, "", "pay", 2, "no such field").await;
    let queues = stage.get("/v1/queues").await.of(200);
    let names: Vec<&str> = queues["queues"].as_array().unwrap().iter().map(|q| q["queue"].as_str().unwrap()).collect();
    assert_eq!(names, ["mail", "pay"]);
    let pay = stage.get("/v1/queues/pay").await.of(200);
    assert_eq!((&pay["dead"], &pay["paused"], &pay["max_depth"]), (&json!(2), &json!(false), &Value::Null));
    assert!(pay["oldest_dead_ms"].is_u64() && pay["oldest_ready_ms"].is_null(), "{pay}");
    stage.get("/v1/queues/nowhere").await.problem("not-found");

    let body = r#"{"paused":true,"max_depth":7,"reason":"maintenance","actor":"ada"}"#;
    let changed = stage.patch("/v1/queues/mail", body).await.of(200);
    assert_eq!((&changed["paused"], &changed["max_depth"], &changed["ready"]), (&json!(true), &json!(7), &json!(3)));
    let back = stage.patch("/v1/queues/mail", r#"{"paused":false,"max_depth":null}"#).await.of(200);
    assert_eq!((&back["paused"], &back["max_depth"]), (&json!(false), &Value::Null));
    let rows = audit(&stage).await;
    let acts: Vec<(&str, &str, &str)> =
        rows.iter().map(|row| (row.act.as_str(), row.reason.as_str(), row.actor.as_str())).collect();
    assert_eq!(acts[..2], [("limit", "maintenance", "ada"), ("pause", "maintenance", "ada")]);
    assert_eq!((acts[2].0, acts[3].0), ("limit", "resume"));

    for (body, slug) in
        [("{}", "invalid"), (r#"{"pause":true}"#, "malformed"), (r#"{"max_depth":-1}"#, "malformed"), ("", "malformed")]
    {
        assert_eq!(stage.patch("/v1/queues/mail", body).await.problem(slug)["status"], 400, "{body}");
    }
    assert_eq!(audit(&stage).await.len(), 4, "what was refused did something");
}

#[tokio::test]
async fn a_request_that_changes_a_queue_makes_no_more_queues_than_there_may_be() {
    let stage = Stage::with(|mut serving: Serving| {
        serving.limits.queues = 1;
        serving
    })
    .await;
    stage.patch("/v1/queues/one", r#"{"paused":true}"#).await.of(200);
    stage.patch("/v1/queues/one", r#"{"paused":false}"#).await.of(200);
    assert_eq!(stage.patch("/v1/queues/two", r#"{"paused":true}"#).await.status, 429);
}

#[tokio::test]
async fn figures_are_told_as_the_store_has_them_and_no_sum_tells_of_another_tenant() {
    let stage = guarded().await;
    put(&stage.tide, "", "mail", 1).await;
    answer_next(&stage.tide, "mail", "work", "1").await;
    kill(&stage.tide, "", "shared", 1, "x").await;
    kill(&stage.tide, "acme", "shared", 5, "x").await;
    let all = token(&stage.tide, "all", &["read"], "*").await;
    let figures = stage.ask(&all, Method::GET, "/v1/stats?all_tenants=true", "").await.of(200);
    let stats = stage.tide.store().stats().await.unwrap();
    assert_eq!(figures["queues"].as_array().unwrap().len(), 3);
    assert_eq!(figures["tallies"], serde_json::to_value(&stats.tallies).unwrap());
    assert_eq!(figures["open_effects"], 0);
    let of_one = stage.ask(&all, Method::GET, "/v1/stats", "").await.of(200);
    assert_eq!((of_one["queues"].as_array().unwrap().len(), &of_one["open_effects"]), (2, &Value::Null));
    // Of one tenant: `shared` counts for both, and so its sums are left out.
    let one = token(&stage.tide, "one", &["read"], "").await;
    let figures = stage.ask(&one, Method::GET, "/v1/stats", "").await.of(200);
    assert_eq!(figures["queues"].as_array().unwrap().len(), 2);
    assert_eq!(figures["open_effects"], Value::Null);
    let tallies = figures["tallies"].as_array().unwrap();
    assert!(!tallies.is_empty() && tallies.iter().all(|tally| tally["queue"] == "mail"), "{figures}");
    // Who reads nothing is told so, rather than shown nothing.
    let none = token(&stage.tide, "none", &["operate"], "*").await;
    for path in ["/v1/stats", "/v1/queues", "/v1/operations", "/v1/groups", "/v1/parked", "/v1/audit"] {
        stage.ask(&none, Method::GET, path, "").await.problem("forbidden");
        stage.ask(&none, Method::GET, &format!("{path}?all_tenants=true"), "").await.problem("forbidden");
    }
    // And queues, with and without the others'.
    let of = async |token: &str, path: &str| {
        stage.ask(token, Method::GET, path, "").await.of(200)["queues"].as_array().unwrap().len()
    };
    assert_eq!(of(&all, "/v1/queues").await, 2);
    assert_eq!(of(&all, "/v1/queues?all_tenants=true").await, 3);
    assert_eq!(of(&one, "/v1/queues?all_tenants=true").await, 2);
}

// --- groups, parked, audit -------------------------------------------------------------------------------------------

#[tokio::test]
async fn dead_letters_are_told_by_what_they_have_in_common() {
    let stage = Stage::new().await;
    let first = kill(&stage.tide, "", "pay", 3, "no field 17").await;
    kill(&stage.tide, "", "mail", 2, "no field 4").await;
    kill(&stage.tide, "", "mail", 1, "cents are negative").await;
    let reply = stage.get("/v1/groups").await.of(200);
    let groups = reply["groups"].as_array().unwrap();
    assert_eq!(groups.iter().map(|group| group["count"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 1]);
    assert_eq!((&groups[0]["pattern"], &groups[0]["kind"]), (&json!("no field #"), &json!("work")));
    assert_eq!(groups[0]["sample"], first[0].to_string());
    let count =
        async |query: &str| stage.get(&format!("/v1/groups?{query}")).await.of(200)["groups"].as_array().unwrap().len();
    assert_eq!((count("queue=pay").await, count("queue=mail").await, count("limit=1").await), (1, 2, 1));
    assert_eq!((count("state=parked").await, count("kind=other").await, count("code=decode").await), (0, 0, 2));
    for (query, slug) in [
        ("state=ready", "invalid"),
        ("limit=0", "invalid"),
        ("limit=10001", "invalid"),
        ("code=%00", "invalid"),
        ("code=%7F", "invalid"),
        ("queue=a%20b", "malformed"),
    ] {
        stage.get(&format!("/v1/groups?{query}")).await.problem(slug);
    }
}

#[tokio::test]
async fn a_group_counts_only_what_its_reader_may_see() {
    let stage = guarded().await;
    kill(&stage.tide, "", "pay.in", 3, "no field 17").await;
    kill(&stage.tide, "", "pay.out", 2, "no field 18").await;
    kill(&stage.tide, "", "mail", 4, "no field 19").await;
    kill(&stage.tide, "acme", "pay.in", 7, "no field 20").await;
    let counts = async |token: &str, path: &str| {
        let reply = stage.ask(token, Method::GET, path, "").await.of(200);
        reply["groups"].as_array().unwrap().iter().map(|group| group["count"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let pay = token(&stage.tide, "pay", &["read:pay.*"], "").await;
    assert_eq!(counts(&pay, "/v1/groups").await, [5]);
    assert_eq!(counts(&pay, "/v1/groups?all_tenants=true").await, [5]);
    assert_eq!(counts(&pay, "/v1/groups?queue=pay.out").await, [2]);
    stage.ask(&pay, Method::GET, "/v1/groups?queue=mail", "").await.problem("forbidden");
    let all = token(&stage.tide, "all", &["read"], "*").await;
    assert_eq!(counts(&all, "/v1/groups").await, [9]);
    assert_eq!(counts(&all, "/v1/groups?all_tenants=true").await, [16]);
    assert_eq!(counts(&all, "/v1/groups?all_tenants=true&queue=pay.in").await, [10]);
}

#[tokio::test]
async fn parked_messages_are_listed_with_what_has_to_be_found_out_and_resolved_with_it() {
    let stage = Stage::new().await;
    let id = park(&stage.tide).await;
    let reply = stage.get("/v1/parked").await;
    let page = reply.of(200);
    let parked = &page["messages"][0];
    assert_eq!((&parked["message"]["id"], &page["next"]), (&json!(id.to_string()), &Value::Null));
    assert_eq!(parked["message"]["state"], "parked");
    let effect = &parked["open_effects"][0];
    assert_eq!(
        (&effect["effect"], &effect["open"], &effect["policy"]),
        (&json!("capture"), &json!(true), &json!("at_most_once"))
    );
    assert!(effect["key"].as_str().unwrap().len() > 8 && parked["evidence"] == json!([]), "{parked}");
    assert_eq!(stage.get("/v1/parked?queue=other").await.of(200)["messages"], json!([]));
    stage.get("/v1/parked?limit=201").await.problem("invalid");

    let path = format!("/v1/messages/{id}/effects/resolve");
    for (body, status) in [
        (r#"{"effect":"capture","resolution":"happened","reason":"seen"}"#, 400),
        (r#"{"effect":"capture","resolution":"happened","result":7}"#, 400),
        (r#"{"effect":"capture","resolution":"happened","result":7,"reason":" "}"#, 400),
        (r#"{"effect":"other","resolution":"happened","result":7,"reason":"seen"}"#, 404),
        (r#"{"effect":"capture","resolution":"maybe","reason":"seen"}"#, 400),
    ] {
        let reply = stage.post(&path, body).await;
        assert_eq!(reply.status.as_u16(), status, "{body}: {}", reply.text());
    }
    let body = r#"{"effect":"capture","resolution":"happened","result":7,"reason":"in the ledger","actor":"ada"}"#;
    let resolved = stage.post(&path, body).await.of(200);
    assert_eq!((&resolved["state"], &resolved["still_open"]), (&json!("ready"), &json!(0)));
    let rows = audit(&stage).await;
    let row = rows.last().unwrap();
    assert_eq!((&*row.act, &*row.actor, &*row.reason, row.message), ("resolve", "ada", "in the ledger", Some(id)));
    let view = stage.tide.store().inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert!(format!("{:?}", view.journal).contains("Confirmed"), "{:?}", view.journal);
    // It is parked no more.
    assert_eq!(stage.get("/v1/parked").await.of(200)["messages"], json!([]));
}

#[tokio::test]
async fn a_confirmation_that_came_too_late_is_listed_as_evidence_and_masked() {
    let stage = guarded().await;
    put(&stage.tide, "", "pay", 1).await;
    let lease = lease(&stage.tide, "", "pay", 1).await.pop().unwrap();
    let id = lease.message.id;
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: Some("2".to_owned()) };
    let quarantine = std::time::Duration::from_secs(3600);
    let policy = EffectPolicy::AtMostOnce;
    let reached = Reached { effect: effect.clone(), policy, request_hash: [1; 16], quarantine };
    let times = IntentTimes { send_within: std::time::Duration::ZERO, reconcile_for: quarantine };
    let journal = async |write| {
        let journal = Journal { id, token: lease.token, before: Vec::new(), write };
        stage.tide.store().journal(vec![journal]).await.unwrap().pop().unwrap()
    };
    journal(JournalWrite::Intent { reached, times }).await.unwrap();
    let unknown = Outcome::Unknown { failure: Failure::new("timeout", "no reply") };
    let parked = stage.tide.store().settle(vec![ends(&lease, unknown)]).await.unwrap().pop().unwrap().unwrap();
    assert_eq!(parked.state, tidegate::State::Parked);
    let answer = journal::EffectAnswer::Confirmed { value: r#"{"charge":"ch_4242-4242-4242"}"#.into() };
    journal(JournalWrite::Answer { effect, seq: 0, answer }).await.unwrap_err();

    let reader = token(&stage.tide, "reader", &["read", "operate"], "").await;
    let page = stage.ask(&reader, Method::GET, "/v1/parked", "").await;
    let evidence = &page.of(200)["messages"][0]["evidence"][0];
    assert_eq!((&evidence["effect"], &evidence["item"]), (&json!("capture"), &json!("2")));
    assert_eq!(evidence["value"], json!({"masked": true, "bytes": 30}));
    assert!(!page.text().contains("4242-4242-4242"), "{}", page.text());
    // That it did not happen is not believed yet; that it did needs no waiting, and twice is once.
    let path = format!("/v1/messages/{id}/effects/resolve");
    let body = r#"{"effect":"capture","item":"2","resolution":"did_not_happen","reason":"not in the ledger"}"#;
    stage.ask(&reader, Method::POST, &path, body).await.problem("conflict");
    let body = r#"{"effect":"capture","item":"2","resolution":"happened","result":{"charge":"ch_4242-4242-4242"},"reason":"late"}"#;
    for _ in 0..2 {
        assert_eq!(stage.ask(&reader, Method::POST, &path, body).await.of(200)["state"], "ready");
    }
}

#[tokio::test]
async fn the_audit_is_read_page_by_page_and_by_each_as_much_as_they_may_see() {
    let stage = guarded().await;
    let ops = token(&stage.tide, "ops", &["read", "operate"], "*").await;
    let pay = token(&stage.tide, "pay", &["read:pay"], "").await;
    let dead = kill(&stage.tide, "", "pay", 2, "x").await;
    let other = kill(&stage.tide, "", "mail", 1, "x").await;
    stage.ask(&ops, Method::PATCH, "/v1/queues/mail", r#"{"paused":true,"reason":"r1"}"#).await.of(200);
    let redrive = |ids: &[MessageId]| json!({"ids": ids, "reason": "r2"}).to_string();
    stage.ask(&ops, Method::POST, "/v1/messages/redrive", &redrive(&dead[..1])).await.of(200);
    stage.ask(&ops, Method::POST, "/v1/messages/redrive", &redrive(&[dead[1], other[0]])).await.of(200);
    stage.ask(&ops, Method::PATCH, "/v1/queues/pay", r#"{"paused":true,"reason":"r3"}"#).await.of(200);
    let acts = |page: &Value| -> Vec<String> {
        page["entries"].as_array().unwrap().iter().map(|entry| entry["act"].as_str().unwrap().to_owned()).collect()
    };
    let mut all = Vec::new();
    let mut after = 0;
    loop {
        let page = stage.ask(&ops, Method::GET, &format!("/v1/audit?limit=2&after={after}"), "").await.of(200);
        all.extend(acts(&page));
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(all, ["token", "token", "pause", "redrive", "redrive", "pause"]);
    // The redrive of one message is found by its queue; of the one of many, and of tokens, no queue is said.
    let seen = stage.ask(&pay, Method::GET, "/v1/audit", "").await.of(200);
    assert_eq!(acts(&seen), ["redrive", "pause"], "{seen}");
    assert_eq!(seen["entries"][0]["message"], dead[0].to_string());
    assert_eq!(seen["entries"][1]["actor"], "token:ops");
    stage.ask(&ops, Method::GET, "/v1/audit?limit=1001", "").await.problem("invalid");
}

#[tokio::test]
async fn an_act_that_changes_nothing_is_noted_and_passes_for_no_act_of_the_store() {
    let stage = guarded().await;
    let ops = token(&stage.tide, "ops", &["operate:pay"], "").await;
    let mine = put(&stage.tide, "", "pay", 1).await[0];
    let other = put(&stage.tide, "", "mail", 1).await[0];
    let before = audit(&stage).await.len();
    let note = async |what: &str, messages: &[MessageId]| {
        let body = json!({"what": what, "messages": messages, "detail": "to a ticket", "reason": "4711"}).to_string();
        stage.ask(&ops, Method::POST, "/v1/audit", &body).await
    };
    assert_eq!(note("export", &[mine]).await.of(200), json!({"noted": 1}));
    let row = audit(&stage).await.pop().unwrap();
    assert_eq!((&*row.act, &*row.actor, row.message, &*row.detail), ("export", "token:ops", Some(mine), "to a ticket"));
    note("redrive", &[mine]).await.problem("invalid");
    note("two words", &[mine]).await.problem("invalid");
    // One that it may not see: nothing is noted, of none of them.
    note("export", &[mine, other]).await.problem("not-found");
    note("export", &[]).await.problem("forbidden");
    assert_eq!(audit(&stage).await.len(), before + 1);
}

// --- raw reads -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn many_messages_are_read_in_their_order_and_masked_unless_they_may_be_revealed() {
    let stage = guarded().await;
    let mine = put(&stage.tide, "", "pay", 2).await;
    let mail = put(&stage.tide, "", "mail", 1).await[0];
    let hidden = put(&stage.tide, "", "hidden", 1).await[0];
    let body = |reveal: &str| {
        let ids = [mine[1], hidden, mail, mine[0], MessageId::from_i64(5)];
        let mut body = json!({"ids": ids});
        if !reveal.is_empty() {
            body["reveal"] = json!(reveal);
        }
        body.to_string()
    };
    let support = token(&stage.tide, "support", &["read:pay", "read:mail", "reveal:pay"], "").await;
    let before = audit(&stage).await.len();
    let masked = stage.ask(&support, Method::POST, "/v1/messages/inspect", &body("")).await;
    let messages = masked.of(200)["messages"].clone();
    let found = |at: usize| messages[at]["id"].as_str().map(ToOwned::to_owned);
    assert_eq!([0, 2, 3].map(found), [mine[1], mail, mine[0]].map(|id| Some(id.to_string())));
    assert_eq!((&messages[1], &messages[4]), (&Value::Null, &Value::Null));
    assert!(!masked.text().contains("4242-4242-4242"), "{}", masked.text());
    assert_eq!(audit(&stage).await.len(), before, "masked, it is no reveal");

    let shown = stage.ask(&support, Method::POST, "/v1/messages/inspect", &body("payload")).await.of(200);
    assert_eq!(shown["messages"][0]["payload"]["card"], "4242-4242-4242");
    assert_eq!(shown["messages"][2]["payload"]["masked"], true, "it may read the queue mail and not reveal on it");
    let rows = audit(&stage).await;
    let revealed: Vec<_> = rows[before..].iter().map(|row| (row.act.as_str(), row.message.unwrap())).collect();
    assert_eq!(revealed, [("reveal", mine[1]), ("reveal", mine[0])]);

    let many = json!({"ids": vec![mine[0]; 101]}).to_string();
    stage.ask(&support, Method::POST, "/v1/messages/inspect", &many).await.problem("too-large");
    stage.ask(&support, Method::POST, "/v1/messages/inspect", &body("everything")).await.problem("malformed");
}

#[tokio::test]
async fn where_messages_stand_is_told_with_the_result_to_whoever_it_belongs_to() {
    let stage = guarded().await;
    let id = put(&stage.tide, "", "pay", 1).await[0];
    let dead = kill(&stage.tide, "", "mail", 1, "x").await[0];
    answer_next(&stage.tide, "pay", "work", r#""ch_1""#).await;
    let body = json!({"ids": [id, dead, MessageId::from_i64(5)]});
    let reveal = json!({"ids": [id], "reveal": "payload"});
    let ask = async |token: &str, body: &Value| {
        stage.ask(token, Method::POST, "/v1/messages/progress", &body.to_string()).await.of(200)["messages"].clone()
    };
    let reader = token(&stage.tide, "reader", &["read"], "").await;
    let producer = token(&stage.tide, "producer", &["read:pay", "produce:pay"], "").await;
    let support = token(&stage.tide, "support", &["read", "reveal"], "*").await;
    let before = audit(&stage).await.len();
    let told = ask(&reader, &body).await;
    assert_eq!((&told[0]["state"], &told[1]["state"], &told[2]), (&json!("completed"), &json!("dead"), &Value::Null));
    assert_eq!((&told[1]["reason"], &told[0]["answer"]["result"]["masked"]), (&json!("decode"), &json!(true)));
    assert_eq!(ask(&reader, &reveal).await[0]["answer"]["result"]["masked"], true);
    let told = ask(&producer, &body).await;
    assert_eq!((&told[0]["answer"]["result"], &told[1]), (&json!("ch_1"), &Value::Null));
    assert_eq!(audit(&stage).await.len(), before);
    assert_eq!(ask(&support, &reveal).await[0]["answer"]["result"], "ch_1");
    let row = audit(&stage).await.pop().unwrap();
    assert_eq!((&*row.act, row.message), ("reveal", Some(id)));
}

// --- acts ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn dead_letters_are_redriven_once_under_an_operation_each_with_its_own_verdict() {
    let stage = Stage::new().await;
    let dead = kill(&stage.tide, "", "pay", 2, "x").await;
    let ready = put(&stage.tide, "", "pay", 1).await[0];
    let body = json!({
        "ids": [dead[0], ready, MessageId::from_i64(5), dead[1]], "operation": "fix-1", "reason": "repaired", "actor": "ada"
    })
    .to_string();
    let reply = stage.post("/v1/messages/redrive", &body).await.of(200);
    assert_eq!((statuses(&reply), &reply["operation"]), (vec![200, 409, 404, 200], &json!("fix-1")));
    assert_eq!(reply["results"][1]["problem"]["type"], "/problems/conflict");
    assert_eq!(reply["results"][2]["problem"]["type"], "/problems/not-found");
    let generation = async |id: MessageId| {
        stage.tide.store().inspect(vec![id]).await.unwrap().pop().flatten().unwrap().counters.generation
    };
    assert_eq!(generation(dead[0]).await, 1);
    // Its reply was lost: sent again, it is done once.
    assert_eq!(statuses(&stage.post("/v1/messages/redrive", &body).await.of(200)), [200, 409, 404, 200]);
    assert_eq!(generation(dead[0]).await, 1);
    let rows = audit(&stage).await;
    assert_eq!((rows.len(), &*rows[0].act, &*rows[0].actor, &*rows[0].reason), (1, "redrive", "ada", "repaired"));

    let unnamed = stage.post("/v1/messages/redrive", r#"{"ids":[]}"#).await.of(200);
    assert!(unnamed["operation"].as_str().unwrap().starts_with("redrive-"), "{unnamed}");
    for (body, slug) in [
        (json!({"ids": [ready], "again": true}), "invalid"),
        (json!({"ids": [ready], "operation": ""}), "invalid"),
        (json!({"ids": [ready], "operation": "a\u{0}b"}), "invalid"),
        (json!({"ids": ["nonsense"]}), "malformed"),
        (json!({"ids": vec![ready; 1001]}), "too-large"),
        (json!({"ids": [ready], "agian": true}), "malformed"),
    ] {
        stage.post("/v1/messages/redrive", &body.to_string()).await.problem(slug);
    }
}

#[tokio::test]
async fn an_act_is_done_to_the_messages_of_a_batch_that_its_token_may_operate() {
    let stage = guarded().await;
    let ops = token(&stage.tide, "ops", &["operate:pay", "read:pay", "read:mail"], "").await;
    let pay = kill(&stage.tide, "", "pay", 3, "x").await;
    let mail = kill(&stage.tide, "", "mail", 1, "x").await[0];
    let hidden = kill(&stage.tide, "", "hidden", 1, "x").await[0];
    let theirs = kill(&stage.tide, "acme", "pay", 1, "x").await[0];
    for (verb, mine) in [("redrive", pay[0]), ("discard", pay[1]), ("cancel", pay[0])] {
        let body = json!({"ids": [mail, mine, hidden, theirs, MessageId::from_i64(5)], "reason": "a test"}).to_string();
        let reply = stage.ask(&ops, Method::POST, &format!("/v1/messages/{verb}"), &body).await.of(200);
        assert_eq!(statuses(&reply), [403, 200, 404, 404, 404], "{verb}: {reply}");
        let detail = |at: usize| reply["results"][at]["problem"]["detail"].as_str().unwrap().replace("msg_", "");
        // What may not be seen is told as what is not there.
        let of = |at: usize, id: MessageId| detail(at).replace(id.to_string().trim_start_matches("msg_"), "ID");
        assert_eq!(of(2, hidden), of(4, MessageId::from_i64(5)));
    }
    let states = stage.tide.store().progress(vec![mail, hidden, theirs]).await.unwrap();
    assert!(states.iter().flatten().all(|progress| progress.state == tidegate::State::Dead), "{states:?}");
    let rows = audit(&stage).await;
    let acts: Vec<_> = rows.iter().filter(|row| row.act != "token").map(|row| (&*row.act, &*row.actor)).collect();
    assert_eq!(acts, [("redrive", "token:ops"), ("discard", "token:ops"), ("cancel", "token:ops")]);
}

#[tokio::test]
async fn dead_letters_are_discarded_with_a_reason() {
    let stage = Stage::new().await;
    let dead = kill(&stage.tide, "", "pay", 2, "x").await;
    let ready = put(&stage.tide, "", "pay", 1).await[0];
    let body = json!({"ids": [dead[0], ready], "reason": "test data"}).to_string();
    assert_eq!(statuses(&stage.post("/v1/messages/discard", &body).await.of(200)), [200, 409]);
    assert_eq!(statuses(&stage.post("/v1/messages/discard", &body).await.of(200)), [200, 409], "twice is once");
    stage.post("/v1/messages/discard", &json!({"ids": [dead[1]], "reason": " "}).to_string()).await.problem("invalid");
    stage.post("/v1/messages/discard", &json!({"ids": [dead[1]]}).to_string()).await.problem("malformed");
    let left = stage.get("/v1/messages?state=dead").await.of(200);
    assert_eq!(left["messages"].as_array().unwrap().len(), 1);
    assert_eq!(left["messages"][0]["id"], dead[1].to_string());
}

#[tokio::test]
async fn a_message_is_called_off_at_once_or_when_its_run_ends() {
    let stage = Stage::new().await;
    let ids = put(&stage.tide, "", "pay", 2).await;
    let running = lease(&stage.tide, "", "pay", 1).await.pop().unwrap().message.id;
    let waiting = ids.iter().copied().find(|id| *id != running).unwrap();
    let body = json!({"ids": [running, waiting], "release_key": true, "reason": "withdrawn"}).to_string();
    let reply = stage.post("/v1/messages/cancel", &body).await.of(200);
    assert_eq!(statuses(&reply), [200, 200]);
    assert_eq!(
        (&reply["results"][0]["cancelled"], &reply["results"][1]["cancelled"]),
        (&json!("requested"), &json!("now"))
    );
    assert_eq!(stage.get(&format!("/v1/messages/{waiting}")).await.of(200)["state"], "cancelled");
    assert_eq!(stage.get(&format!("/v1/messages/{running}")).await.of(200)["cancel_requested"], true);
    let again = stage.post("/v1/messages/cancel", &json!({"ids": [waiting]}).to_string()).await.of(200);
    assert_eq!(statuses(&again), [409]);
    let details: Vec<String> = audit(&stage).await.into_iter().map(|row| row.detail).collect();
    assert_eq!(details, ["requested, key to be released", "cancelled, key released"]);
}

#[tokio::test]
async fn a_payload_is_changed_and_what_changed_is_shown_to_whoever_may_see_it() {
    let stage = guarded().await;
    let id = kill(&stage.tide, "", "pay", 1, "cents are euros").await[0];
    let ready = put(&stage.tide, "", "pay", 1).await[0];
    let ops = token(&stage.tide, "ops", &["operate:pay"], "").await;
    let both = token(&stage.tide, "both", &["operate:pay", "reveal:pay"], "").await;
    let edit =
        async |token: &str, path: &str, body: &str| -> Reply { stage.ask(token, Method::PATCH, path, body).await };
    let path = format!("/v1/messages/{id}");
    let shown = format!("{path}?reveal=payload");
    let body = r#"{"payload":{ "card":"4242-4242-4242","cents":10000},"reason":"cents were euros"}"#;
    edit(&ops, &shown, body).await.problem("forbidden");
    let masked = edit(&ops, &path, body).await;
    let edited = masked.of(200);
    assert_eq!((&edited["changed"], &edited["changes"]), (&json!(true), &Value::Null));
    assert!(!masked.text().contains("4242-4242-4242"), "{}", masked.text());
    let view = stage.tide.store().inspect(vec![id]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(&*view.message.payload, r#"{ "card":"4242-4242-4242","cents":10000}"#);

    let body = r#"{"payload":{"card":"4242-4242-4242","cents":99,"note":null},"reason":"and again"}"#;
    let edited = edit(&both, &shown, body).await.of(200);
    assert_eq!(
        edited["changes"],
        json!([{"path": "cents", "before": "10000", "after": "99"}, {"path": "note", "after": "null"}])
    );
    assert_eq!((&edited["before"]["cents"], &edited["after"]["cents"]), (&json!(10000), &json!(99)));
    // Its reply was lost: sent again it changes nothing.
    assert_eq!(edit(&both, &path, body).await.of(200)["changed"], false);
    let rows = audit(&stage).await;
    let acts: Vec<_> =
        rows.iter().filter(|row| row.act != "token").map(|row| (&*row.act, &*row.actor, &*row.reason)).collect();
    assert_eq!(
        acts,
        [("edit", "token:ops", "cents were euros"), ("reveal", "token:both", ""), ("edit", "token:both", "and again")]
    );

    for (path, body, slug) in [
        (&*path, r#"{"payload":1}"#, "malformed"),
        (&*path, r#"{"payload":1,"reason":""}"#, "invalid"),
        (&*path, r#"{"reason":"nothing"}"#, "invalid"),
        (&*path, r#"{"payload":1,"payload_text":"1","reason":"two"}"#, "invalid"),
        (&*path, r#"{"payload":{"a":1,"a":2},"reason":"twice"}"#, "malformed"),
        (&*format!("/v1/messages/{ready}"), r#"{"payload":1,"reason":"it is not dead"}"#, "conflict"),
    ] {
        edit(&ops, path, body).await.problem(slug);
    }
}

#[tokio::test]
async fn what_a_problem_is_about_is_found_where_the_router_is_mounted() {
    let stage = Stage::with(|serving: Serving| Serving { prefix: "/queues".to_owned(), ..serving }).await;
    let id = put(&stage.tide, "", "pay", 1).await[0];
    let absent = MessageId::from_i64(5);
    let alone = stage.get(&format!("/v1/messages/{absent}")).await.problem("not-found");
    assert_eq!(alone["instance"], format!("/queues/v1/messages/{absent}"));
    let body = json!({"ids": [id, absent]}).to_string();
    let reply = stage.post("/v1/messages/redrive", &body).await.of(200);
    assert_eq!(reply["results"][1]["problem"]["instance"], format!("/queues/v1/messages/{absent}"));
}
