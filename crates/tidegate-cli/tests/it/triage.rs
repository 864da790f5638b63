//! A night at the desk: ten thousand dead letters after a bug, found, repaired and sent again, with the command alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::lifecycle::Outcome;
use tidegate::message::{Failure, NewMessage, Payload};
use tidegate::{Context, Handled, HandlerError, IdempotencyKey, Kind, Message, MessageId, Policy, QueueName};
use tidegate::{State, Tenant, Tidegate, Worker};
use tokio::sync::Semaphore;

use crate::desk::{Bench, Desk};
use crate::documents::TRIAGE;
use crate::transcript;

const HOUR: Duration = Duration::from_secs(3600);
const ALL: usize = 10_000;
/// Every other one died of the bug; the rest died of eleven other things.
const OF_THE_BUG: usize = ALL / 2;

#[derive(Serialize, Deserialize)]
struct Deposit {
    deposit: String,
    currency: Option<String>,
}

impl Message for Deposit {
    const KIND: &'static str = "deposit";
    type Answer = String;

    fn key(&self) -> String {
        self.deposit.clone()
    }
}

fn what_it_died_of(n: usize) -> Failure {
    if n.is_multiple_of(2) {
        return Failure::new("missing", format!("missing field `currency` at line 1 column {n}"));
    }
    match n % 11 {
        0 => Failure::new("timeout", format!("gateway did not answer within {n} ms")),
        1 => Failure::new("timeout", format!("ledger did not answer within {n} ms")),
        2 => Failure::new("refused", format!("connection refused by 10.0.0.{}:443", n % 250)),
        3 => Failure::new("reset", format!("connection reset after {n} bytes")),
        4 => Failure::new("http", format!("502 from gw-{}, request {n:032x}", n % 7)),
        5 => Failure::new("http", format!("no route for \"/deposits/{n}\"")),
        6 => Failure::new("tls", format!("certificate {n:08x} expired")),
        7 => Failure::new("overdrawn", format!("account acc_{n:08x} is overdrawn")),
        8 => Failure::new("locked", format!("account acc_{n:08x} is locked")),
        9 => Failure::new("dns", format!("no address for gw-{}.example.org", n % 9)),
        _ => Failure::new("panic", format!("index {n} out of bounds")),
    }
}

async fn dead_letters(bench: &Bench) {
    bench.one_attempt().await;
    let message = |n: usize| {
        NewMessage::new(
            QueueName::new("deposit").unwrap(),
            Kind::new("deposit").unwrap(),
            IdempotencyKey::new(format!("dep-{n}")).unwrap(),
            Payload::from_json(format!(r#"{{"deposit":"dep-{n}"}}"#)).unwrap(),
        )
    };
    for chunk in (0..ALL).collect::<Vec<_>>().chunks(1000) {
        bench.store.enqueue(chunk.iter().map(|n| message(*n)).collect()).await.unwrap();
        let leases = bench.claim(1000, HOUR).await;
        assert_eq!(leases.len(), 1000);
        let settlements = chunk.iter().zip(&leases).map(|(n, lease)| {
            Bench::settlement(lease, Outcome::Retryable { failure: what_it_died_of(*n), after: None })
        });
        let settled = bench.store.settle(settlements.collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok));
    }
}

/// The service beside the desk; `repaired` is the deployment of the right fix.
async fn worker(tide: &Tidegate, repaired: &Arc<AtomicBool>) -> Worker {
    let repaired = Arc::clone(repaired);
    let handler = move |_: Context, deposit: Deposit| {
        let ok = repaired.load(Ordering::SeqCst) || deposit.currency.is_some();
        async move { if ok { Handled::Ok(deposit.deposit) } else { Err(missing()) } }
    };
    let policy = Policy { max_attempts: 1, ..Policy::default() };
    tide.worker().handle_with(handler, policy).concurrency(64).start().await.unwrap()
}

fn missing() -> HandlerError {
    HandlerError::retryable("missing", "missing field `currency` at line 1 column 17")
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn ten_thousand_dead_letters_are_found_repaired_and_sent_again() {
    let desk = Desk::new();
    desk.prepare(dead_letters);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let repaired = Arc::new(AtomicBool::new(false));
    let tide = runtime.block_on(Tidegate::open(desk.path("tidegate.db"))).unwrap();
    let service = runtime.block_on(worker(&tide, &repaired));

    // Found: twelve groups, the bug on top.
    let groups = desk.run(&["dead", "groups", "--json"]).ends(0).out;
    let groups: Vec<serde_json::Value> = groups.lines().map(json).collect();
    assert_eq!(groups.len(), 12, "{groups:#?}");
    let counts: u64 = groups.iter().map(|group| group["count"].as_u64().unwrap()).sum();
    assert_eq!(counts, ALL as u64);
    assert_eq!(groups[0]["count"], OF_THE_BUG);
    assert_eq!(groups[0]["pattern"], "missing field \"…\" at line # column #");
    let (bug, sample) = (groups[0]["id"].as_str().unwrap(), groups[0]["sample"].as_str().unwrap());
    let other = groups[11]["id"].as_str().unwrap();
    desk.run(&["dead", "list", "--group", bug, "--limit", "1"]).ends(0).shows(sample);
    desk.run(&["dead", "redrive", "--group", bug, "--dry-run"])
        .ends(0)
        .shows(bug)
        .says(&format!("queue deposit: {OF_THE_BUG}"))
        .says(&format!("{OF_THE_BUG} would be redriven, 0 refused"));

    // Edited: one is repaired by hand and goes through.
    let payload = r#"{"deposit":"dep-0","currency":"EUR"}"#;
    desk.run(&["dead", "edit", sample, "--payload", payload, "--reason", "the producer forgot it"])
        .ends(0)
        .prints("+ currency: \"EUR\"\n");
    desk.run(&["dead", "redrive", sample, "--canary", "1"]).ends(0).shows("ended well\t1\n");

    // Canaried: the fix was wrong, and the operation stops by itself after five.
    let careful = ["--canary", "5", "--stop-over", "10", "--rate", "2500", "--yes", "--reason", "fixed in 1.4.2"];
    let redrive = [&["dead", "redrive", "--group", bug], &careful[..]].concat();
    let stopped = desk.run(&[&redrive[..], &["--operation", "wrong"]].concat()).ends(1);
    stopped.says("stopped: 5 of 5 that ended have ended badly").shows("state\tstopped\n").shows("redriven\t5\n");
    desk.run(&["dead", "redrive", "--resume", "wrong"]).ends(4).says("--reason");
    desk.run(&["dead", "redrive", "--cancel", "wrong"]).ends(0).shows("state\tcancelled\n");
    let found = desk.run(&["dead", "groups", "--json", "--limit", "1"]).ends(0).out;
    assert_eq!(json(&found)["count"], OF_THE_BUG - 1, "the canary is back where it came from: {found}");

    // Redriven at a rate: the fix is right, and it finishes.
    repaired.store(true, Ordering::SeqCst);
    let done = desk.run(&[&redrive[..], &["--operation", "right"]].concat()).ends(0);
    done.shows("state\tdone\n").shows(&format!("redriven\t{}\n", OF_THE_BUG - 1)).shows("ended badly\t0\n");
    desk.run(&["dead", "operations", "right"]).ends(0).shows("right\tdone\t");
    desk.run(&[&redrive[..], &["--operation", "right"]].concat()).ends(0);

    // Discarded: what nobody needs.
    let discarded = desk.run(&["dead", "discard", "--group", other, "--reason", "test data"]).ends(0).out;
    assert!(discarded.starts_with(&format!("discarded\t{}\n", groups[11]["count"])), "{discarded}");
    desk.run(&["dead", "list", "--group", other]).ends(0).prints("");

    // And the rest.
    desk.run(&["dead", "redrive", "--all", "--yes", "--operation", "rest"]).ends(0).shows("refused\t0\n");
    desk.run(&["dead", "groups"]).ends(0).prints("");
    runtime.block_on(async {
        for n in 0..ALL {
            let key = IdempotencyKey::new(format!("dep-{n}")).unwrap();
            let queue = QueueName::new("deposit").unwrap();
            let id: MessageId = tide.store().find(Default::default(), queue, key).await.unwrap().unwrap();
            let state = tide.wait(id, Duration::from_secs(60)).await.unwrap().state;
            assert!(matches!(state.as_str(), "completed" | "dead"), "dep-{n} is {state}");
        }
        service.stop().await.unwrap();
    });
    let stats = desk.run(&["stats", "--json"]).ends(0).out;
    assert!(stats.contains("\"dead\":0,") && stats.contains("\"ready\":0,"), "{stats}");

    // Every act is kept: who, what and why.
    let audit = desk.run(&["audit", "--json", "--limit", "1000"]).ends(0).out;
    let acts: Vec<String> = audit.lines().map(|line| json(line)["act"].as_str().unwrap().to_owned()).collect();
    for act in ["edit", "operation", "redrive", "discard"] {
        assert!(acts.iter().any(|kept| kept == act), "{act} is not in {acts:?}");
    }
    assert!(acts.len() < 100, "a row a chunk, not a row a message");
    assert!(audit.contains("stopped: 5 of 5 ended badly"), "{audit}");
}

#[test]
fn the_guide_shows_what_is_printed_when_it_is_typed_in_its_order() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        bench.dead("dep-0").await;
        bench.one_attempt().await;
        for n in 1..10 {
            let lease = bench.lease(&format!("dep-{n}")).await;
            bench.settle(&lease, Outcome::Retryable { failure: what_it_died_of(n * 2), after: None }).await;
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tide = runtime.block_on(Tidegate::open(desk.path("tidegate.db"))).unwrap();
    // The edited one and the canary end at once, the rest only when the page has been read: it shows them under way.
    let gate = Arc::new(Semaphore::new(6));
    let opened = Arc::clone(&gate);
    let handler = move |_: Context, deposit: Deposit| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Handled::Ok(deposit.deposit)
        }
    };
    let service = runtime.block_on(tide.worker().handle(handler).start()).unwrap();
    transcript::run(&desk, TRIAGE);
    opened.add_permits(3);
    runtime.block_on(async {
        for n in 1..10 {
            let key = IdempotencyKey::new(format!("dep-{n}")).unwrap();
            let queue = QueueName::new("deposit").unwrap();
            let id = tide.store().find(Tenant::default(), queue, key).await.unwrap().unwrap();
            assert_eq!(tide.wait(id, Duration::from_secs(60)).await.unwrap().state, State::Completed, "dep-{n}");
        }
        service.stop().await.unwrap();
    });
    desk.run(&["dead", "operations", "night-1"]).ends(0).shows("night-1\tdone\t8\t8\t0\t5\t0\t");
    desk.run(&["dead", "list"]).ends(0).prints("");
}
