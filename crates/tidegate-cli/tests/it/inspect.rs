//! What the looking commands print: text for pipes, and JSON whose shape is a promise.

use std::time::Duration;

use tidegate::lifecycle::Outcome;
use tidegate::message::Failure;

use crate::desk::Desk;

const HOUR: Duration = Duration::from_secs(3600);

/// A store with a message in every state.
fn all_states() -> Desk {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        bench.completed("dep-1").await;
        bench.failed("dep-2").await;
        bench.dead("dep-3").await;
        bench.parked("dep-4", HOUR).await;
        let cancelled = bench.enqueue("dep-5").await;
        bench.lease_of(cancelled).await;
        bench.enqueue("dep-7").await;
    });
    let id = id_of(&desk, "dep-7");
    desk.run(&["cancel", &id, "--reason", "withdrawn"]).ends(0);
    desk.run(&["enqueue", "--kind", "deposit", "--key", "dep-6", "--payload", r#"{"deposit":"dep-6"}"#]).ends(0);
    desk
}

impl crate::desk::Bench {
    /// Leaves the message running at a worker.
    async fn lease_of(&self, id: tidegate::MessageId) {
        let lease = self.claim(1, HOUR).await.pop().unwrap();
        assert_eq!(lease.message.id, id);
    }
}

fn id_of(desk: &Desk, key: &str) -> String {
    let got = desk.run(&["get", "--queue", "deposit", "--key", key, "--json"]).ends(0).out;
    serde_json::from_str::<serde_json::Value>(&got).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_list_leaves_out_what_needs_nobody_any_more() {
    let desk = all_states();
    desk.run(&["list"]).ends(0).prints(
        "ID1\tdead\tdeposit\tdeposit\tdep-3\t1\tTIME\texhausted: timeout: gateway did not answer\n\
         ID2\tparked\tdeposit\tdeposit\tdep-4\t1\tTIME\toutcome_unknown: timeout: no reply within 2 s\n\
         ID3\tleased\tdeposit\tdeposit\tdep-5\t1\t\t\n\
         ID4\tready\tdeposit\tdeposit\tdep-6\t0\tTIME\t\n",
    );
    assert_eq!(desk.run(&["list", "--all"]).ends(0).out.lines().count(), 7);
}

#[test]
pub(crate) fn a_list_is_filtered_and_paged() {
    let desk = all_states();
    let keys = |arguments: &[&str]| {
        let out = desk.run(&[&["list"], arguments].concat()).ends(0).out;
        out.lines().map(|line| line.split('\t').nth(4).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&["--state", "completed,failed"]), ["dep-1", "dep-2"]);
    assert_eq!(keys(&["--state", "cancelled", "--state", "dead"]), ["dep-3", "dep-7"]);
    assert_eq!(keys(&["--all", "--code", "declined"]), ["dep-2"]);
    assert_eq!(keys(&["--all", "--queue", "other"]), Vec::<String>::new());
    assert_eq!(keys(&["--all", "--kind", "deposit", "--limit", "2"]), ["dep-1", "dep-2"]);
    let page = desk.run(&["list", "--all", "--limit", "2"]).ends(0);
    let last = page.out.lines().last().unwrap().split('\t').next().unwrap().to_owned();
    let page = page.says(&format!("--after {last}"));
    assert_eq!(page.out.lines().count(), 2);
    assert_eq!(keys(&["--all", "--after", &last, "--limit", "100"]), ["dep-3", "dep-4", "dep-5", "dep-7", "dep-6"]);
    desk.run(&["list", "--state", "done"]).ends(2).says("no state \"done\"").says("one of ready");
}

#[test]
pub(crate) fn a_list_in_json_is_an_object_a_line() {
    let desk = all_states();
    desk.run(&["list", "--state", "dead,ready", "--json"]).ends(0).prints(
        "{\"id\":\"ID1\",\"tenant\":\"\",\"queue\":\"deposit\",\"kind\":\"deposit\",\"key\":\"dep-3\",\"state\":\"dead\",\"attempt\":1,\
         \"due_at\":null,\"code\":\"exhausted\",\"detail\":\"timeout: gateway did not answer\",\"enqueued_at\":\"TIME\",\
         \"ended_at\":\"TIME\",\"flow\":\"ID1\"}\n\
         {\"id\":\"ID2\",\"tenant\":\"\",\"queue\":\"deposit\",\"kind\":\"deposit\",\"key\":\"dep-6\",\"state\":\"ready\",\"attempt\":0,\
         \"due_at\":\"TIME\",\"code\":null,\"detail\":null,\"enqueued_at\":\"TIME\",\"ended_at\":null,\"flow\":\"ID2\"}\n",
    );
}

#[test]
pub(crate) fn get_shows_everything_as_one_object() {
    let desk = all_states();
    desk.run(&["get", &id_of(&desk, "dep-1"), "--json"]).ends(0).prints(
        "{\"id\":\"ID1\",\"queue\":\"deposit\",\"kind\":\"deposit\",\"key\":\"dep-1\",\"state\":\"completed\",\
         \"reason\":null,\"failure\":null,\"answer\":{\"result\":{\"charge\": \"ch_1\"}},\"version\":1,\"priority\":5,\
         \"attempt\":1,\"generation\":0,\"crashes\":0,\"claims\":1,\"enqueued_at\":\"TIME\",\"due_at\":null,\
         \"deadline\":null,\"expires_at\":\"TIME\",\"ended_at\":\"TIME\",\"lease\":null,\"cancel_requested\":false,\
         \"suspect\":false,\"flow\":\"ID1\",\"parent\":null,\"headers\":{},\"payload\":{\"deposit\":\"dep-1\"},\
         \"journal\":[],\"evidence\":[],\"history\":[]}\n",
    );
    let parked = desk.run(&["get", &id_of(&desk, "dep-4"), "--json"]).ends(0);
    let journal = crate::desk::masked(&parked.out);
    let journal = &journal[journal.find("\"journal\"").unwrap()..];
    assert_eq!(
        journal,
        "\"journal\":[{\"effect\":\"capture\",\"item\":null,\"seq\":0,\"state\":\"unknown\",\"open\":true,\"key\":\"KEY\",\
         \"policy\":\"at_most_once\",\"sends\":1,\"round\":0,\"first_intent_at\":\"TIME\",\"last_possible_send\":\"TIME\",\
         \"quarantined_until\":\"TIME\",\"valid_until\":null,\"reconcile_until\":\"TIME\",\"value\":null,\"code\":null,\
         \"detail\":\"no reply within 2 s\"}],\"evidence\":[],\"history\":[{\"at\":\"TIME\",\"attempt\":1,\"generation\":0,\
         \"outcome\":\"unknown\",\"state\":\"parked\",\"code\":\"timeout\",\"detail\":\"no reply within 2 s\",\
         \"due_at\":null}]}\n"
    );
    let leased = desk.run(&["get", &id_of(&desk, "dep-5"), "--json"]).ends(0).out;
    assert!(crate::desk::masked(&leased).contains(r#""lease":{"worker":"w1","until":"TIME"}"#), "{leased}");
}

#[test]
pub(crate) fn get_shows_a_line_for_each_thing_known() {
    let desk = all_states();
    desk.run(&["get", &id_of(&desk, "dep-2")]).ends(0).prints(
        "id\tID1\nstate\tfailed\nqueue\tdeposit\nkind\tdeposit\nkey\tdep-2\nfailure\tdeclined: card expired\nattempt\t1\n\
         priority\t5\nenqueued\tTIME\nended\tTIME\npayload\t{\"deposit\":\"dep-2\"}\n\nhistory\nattempt\t1\nended\tTIME\n\
         outcome\tpermanent\nbecame\tfailed\nfailure\tdeclined: card expired\n",
    );
}

#[test]
pub(crate) fn a_parked_message_has_not_ended() {
    let desk = all_states();
    let parked = desk.run(&["get", &id_of(&desk, "dep-4")]).ends(0).shows("\nparked since\t2").out;
    let head = parked.split("\n\n").next().unwrap();
    assert!(!head.contains("\nended\t"), "{head}");
}

#[test]
pub(crate) fn the_code_of_a_failure_is_said_once() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        let lease = bench.lease("dep-1").await;
        let failure = Failure::new("decode", "the payload lacks a field");
        bench.settle(&lease, Outcome::Undecodable { failure }).await;
    });
    desk.run(&["dead", "list"])
        .ends(0)
        .prints("ID1\tdeposit\tdeposit\tdep-1\t1\tTIME\tdecode: the payload lacks a field\n");
}

#[test]
pub(crate) fn explain_says_for_every_state_why_and_what_next() {
    let desk = all_states();
    let said = |key: &str| {
        let out = desk.run(&["explain", &id_of(&desk, key)]).ends(0).out;
        let field = |name: &str| {
            let line = out.lines().find(|line| line.starts_with(&format!("{name}\t"))).unwrap();
            line.split_once('\t').unwrap().1.to_owned()
        };
        (field("state"), field("why"), field("next"))
    };
    for (key, label, why, next) in [
        ("dep-1", "completed", "it completed at", "gets the stored answer"),
        ("dep-2", "failed", "its handler said never", "gets the stored answer"),
        ("dep-3", "dead", "it was given up", "tidegate dead redrive msg_"),
        ("dep-4", "parked", "the outcome of capture (key ", "--effect 'capture' --happened --result 'JSON' --reason"),
        ("dep-5", "leased", "attempt 1 runs at worker w1", "a sweep takes it over"),
        ("dep-6", "ready", "no worker has claimed it yet", "The next free worker of queue deposit"),
        ("dep-7", "cancelled", "it was cancelled at", "Nothing."),
    ] {
        let explained = said(key);
        assert_eq!(explained.0, label);
        assert!(explained.1.contains(why) && explained.2.contains(next), "{key}: {explained:?}");
    }
}

#[test]
pub(crate) fn explain_evaluates_the_predicates_of_a_claim() {
    let desk = all_states();
    desk.run(&["queue", "pause", "deposit"]).ends(0);
    let out = desk.run(&["explain", &id_of(&desk, "dep-6"), "--json"]).ends(0).out;
    let explained: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((explained["state"].as_str(), explained["label"].as_str()), (Some("ready"), Some("held")));
    assert_eq!(
        explained["predicates"].to_string(),
        "[{\"asks\":\"it is ready\",\"holds\":true},{\"asks\":\"its queue is not paused\",\"holds\":false},\
         {\"asks\":\"a worker has served its kind\",\"holds\":true},{\"asks\":\"it is due\",\"holds\":true},\
         {\"asks\":\"nothing of its lane is ahead of it\",\"holds\":true}]"
    );
    assert!(explained["next"].as_str().unwrap().contains("tidegate queue resume deposit"), "{explained}");
    desk.run(&["explain", &id_of(&desk, "dep-6")]).ends(0).shows("state\tready, held\n");
    let help = desk.run(&["explain", "--help"]).ends(0).out;
    for label in ["scheduled", "retrying", "reconciling", "held"] {
        assert!(help.contains(&format!("  {label} ")), "{label}: {help}");
    }
}

#[test]
fn queues_and_counters_are_shown() {
    let desk = all_states();
    let out = desk.run(&["queue", "list"]).ends(0).out;
    let cells: Vec<&str> = out.trim_end_matches('\n').split('\t').collect();
    assert_eq!(cells[..7], ["deposit", "", "1", "0", "1", "1", "1"], "{out}");
    let json = desk.run(&["queue", "list", "--json"]).ends(0).out;
    let queue: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (queue["ready"].as_u64(), queue["parked"].as_u64(), queue["dead"].as_u64()),
        (Some(1), Some(1), Some(1))
    );
    let stats = desk.run(&["stats"]).ends(0).out;
    for line in ["deposit\tdeposit\tenqueued\t\t7", "deposit\tdeposit\tdead\texhausted\t1", "open effects\t1"] {
        assert!(stats.lines().any(|printed| printed == line), "{line:?} is not in:\n{stats}");
    }
    let stats = desk.run(&["stats", "--json"]).ends(0).out;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    let names: Vec<&String> = stats.as_object().unwrap().keys().collect();
    assert_eq!(names, ["disk", "lanes", "open_effects", "queues", "tallies"]);
    assert_eq!(stats["open_effects"], 1);
}

#[test]
pub(crate) fn looking_changes_nothing_and_starts_no_housekeeping() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| {
        let id = bench.enqueue("dep-1").await;
        // Lapsed as soon as it is given: any sweep would take it over.
        bench.claim(1, Duration::ZERO).await;
        id
    });
    let id = id.to_string();
    for command in [&["list"][..], &["stats"], &["get", &id], &["explain", &id], &["audit"], &["queue", "list"]] {
        desk.run(command).ends(0);
    }
    assert_eq!(desk.prepare(async |bench| bench.state(id.parse().unwrap()).await), "leased");
    desk.run(&["explain", &id]).ends(0).shows("the next sweep takes it over");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let desk = Desk::new();
    desk.write("many.ndjson", (0..5000).map(|n| format!("{{\"id\":{n}}}\n")).collect::<String>());
    desk.run(&["enqueue", "--kind", "k", "--key-field", "id", "many.ndjson"]).ends(0);
    let mut command = desk.command(&["list", "--limit", "5000", "--json"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = crate::desk::Ran::of(child.wait_with_output().unwrap()).ends(0);
    assert_eq!(ran.err, "");
}

#[test]
fn the_benchmark_prints_its_figures_as_one_object() {
    let desk = Desk::new();
    let out = desk.run(&["bench", "--store", "sqlite", "--quick", "--keys", "time", "--json"]).ends(0).out;
    assert_eq!(out.lines().count(), 1);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    for name in [
        "lifecycles_per_s",
        "raw_bound_per_s",
        "ratio",
        "fsyncs_per_message",
        "wal_bytes_per_message",
        "fsync_p50_ms",
        "pickup_p50_ms",
        "pickup_p99_ms",
    ] {
        assert!(report[name].as_f64().is_some_and(|figure| figure >= 0.0), "{name}: {report}");
    }
    assert!(
        report["ratio"].as_f64().unwrap() > 0.0 && report["fsyncs_per_message"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert_eq!(report["parameters"]["key_order"], "time");
    assert_eq!(desk.files(), Vec::<String>::new(), "its files are gone");
    desk.run(&["bench", "--store", "x.db", "--quick"]).ends(2).says("no engine \"x.db\"");
}
