//! The commands that act: redrive, resolve, cancel, pause; and what the audit keeps of them.

use std::time::Duration;

use tidegate::lifecycle::Outcome;
use tidegate::message::Failure;

use crate::desk::{Desk, timed_out};

const HOUR: Duration = Duration::from_secs(3600);

fn state(desk: &Desk, id: &str) -> &'static str {
    desk.prepare(async |bench| bench.state(id.parse().unwrap()).await)
}

// --- dead ------------------------------------------------------------------------------------------------------------

#[test]
pub(crate) fn a_dead_letter_is_listed_shown_and_redriven() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.dead("dep-1").await).to_string();
    desk.run(&["dead", "list"])
        .ends(0)
        .prints("ID1\tdeposit\tdeposit\tdep-1\t1\tTIME\texhausted: timeout: gateway did not answer\n");
    desk.run(&["dead", "show", &id])
        .ends(0)
        .shows("reason\texhausted\n")
        .shows("failure\ttimeout: gateway did not answer\n")
        .shows("outcome\tretryable\n")
        .says("tidegate dead redrive msg_");
    desk.run(&["dead", "redrive", &id, "--dry-run"]).ends(0).prints("ID1\n").says("1 would be redriven, 0 refused");
    assert_eq!(state(&desk, &id), "dead");
    desk.run(&["dead", "redrive", &id, "--reason", "repaired"])
        .ends(0)
        .prints("redriven\t1\nrefused\t0\noperation\tOPERATION\n");
    assert_eq!(state(&desk, &id), "ready");
    desk.run(&["get", &id]).ends(0).shows("attempt\t0\ngeneration\t1\n");
    desk.run(&["dead", "redrive", &id]).ends(4).says("cannot be redriven: it is ready");
    desk.run(&["dead", "show", &id]).ends(4).says("is ready, not dead");
    desk.run(&["dead", "list"]).ends(0).prints("");
}

#[test]
pub(crate) fn redriving_in_json_is_one_object() {
    let desk = Desk::new();
    let (dead, completed) =
        desk.prepare(async |bench| (bench.dead("dep-1").await.to_string(), bench.completed("dep-2").await.to_string()));
    desk.run(&["dead", "redrive", &dead, &completed, "--dry-run", "--json"]).ends(1).prints(
        "{\"operation\":null,\"dry_run\":true,\"redriven\":0,\"refused\":[{\"id\":\"ID1\",\
         \"error\":\"cannot be redriven: it is completed\",\
         \"hint\":\"only dead, failed (--again) and cancelled messages can be\",\"kind\":\"conflict\",\"exit_code\":4}],\
         \"would_redrive\":[\"ID2\"]}\n",
    );
    desk.run(&["dead", "redrive", &dead, &completed, "--json"]).ends(1).prints(
        "{\"operation\":\"OPERATION\",\"dry_run\":false,\"redriven\":1,\"refused\":[{\"id\":\"ID1\",\
         \"error\":\"cannot be redriven: it is completed\",\
         \"hint\":\"only dead, failed (--again) and cancelled messages can be\",\"kind\":\"conflict\",\"exit_code\":4}]}\n",
    );
    desk.run(&["dead", "redrive", &completed, "--json"]).ends(4).prints("").says("\"exit_code\":4}");
}

#[test]
pub(crate) fn a_failed_message_is_redriven_only_again_and_with_a_reason() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.failed("dep-1").await).to_string();
    desk.run(&["dead", "redrive", &id]).ends(4).says("its answer has been given").says("--again");
    desk.run(&["dead", "redrive", &id, "--again"]).ends(2).says("--reason");
    desk.run(&["dead", "redrive", &id, "--again", "--reason", " "]).ends(2).says("a reason says why");
    desk.run(&["dead", "redrive", "--all", "--again", "--reason", "x"]).ends(2).says("name the messages");
    assert_eq!(state(&desk, &id), "failed");
    desk.run(&["dead", "redrive", &id, "--again", "--reason", "declined by mistake"]).ends(0);
    assert_eq!(state(&desk, &id), "ready");
}

#[test]
pub(crate) fn what_is_redriven_has_to_be_said() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.dead("dep-1").await);
    desk.run(&["dead", "redrive"]).ends(2);
    desk.run(&["dead", "redrive", "msg_0000000000001"]).ends(3).says("no message msg_0000000000001");
    desk.run(&["dead", "redrive", "msg_0000000000001", "--queue", "deposit"]).ends(2);
    desk.run(&["dead", "redrive", "--queue", "other"]).ends(0).shows("redriven\t0\n");
    desk.run(&["dead", "redrive", "--queue", "deposit", "--code", "declined"]).ends(0).shows("redriven\t0\n");
    desk.run(&["dead", "redrive", "--kind", "deposit", "--code", "exhausted"]).ends(0).shows("redriven\t1\n");
}

#[test]
pub(crate) fn more_than_a_thousand_want_to_be_confirmed_and_an_operation_redrives_nothing_twice() {
    let desk = Desk::new();
    desk.write("many.ndjson", (0..1001).map(|n| format!("{{\"id\":{n}}}\n")).collect::<String>());
    desk.run(&["enqueue", "--kind", "deposit", "--key-field", "id", "many.ndjson"]).ends(0);
    let die = async |bench: &crate::desk::Bench| {
        bench.one_attempt().await;
        for lease in bench.claim(1001, HOUR).await {
            bench.settle(&lease, timed_out()).await;
        }
    };
    desk.prepare(die);
    let all = ["dead", "redrive", "--all"];
    desk.run(&all).ends(2).says("1001 dead letters would be redriven").says("--yes");
    desk.run(&[&all[..], &["--dry-run"]].concat()).ends(0).says("1001 would be redriven, 0 refused");
    let named = [&all[..], &["--yes", "--operation", "after-the-outage"]].concat();
    desk.run(&named).ends(0).prints("redriven\t1001\nrefused\t0\noperation\tafter-the-outage\n");
    desk.prepare(die);
    desk.run(&named).ends(0);
    let stats = desk.run(&["stats", "--json"]).ends(0).out;
    assert!(stats.contains("\"dead\":1001,"), "given again under its name, it leaves those that died again: {stats}");
    desk.run(&[&all[..], &["--yes"]].concat()).ends(0).shows("redriven\t1001\n");
}

// --- parked ----------------------------------------------------------------------------------------------------------

#[test]
pub(crate) fn a_parked_message_is_listed_with_what_has_to_be_found_out() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", HOUR).await).to_string();
    desk.run(&["parked", "list"]).ends(0).prints("ID1\tdeposit\tdep-1\toutcome_unknown\tcapture\tTIME\tTIME\n");
    let json = desk.run(&["parked", "list", "--json"]).ends(0).out;
    let line: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((line["code"].as_str(), line["key"].as_str()), (Some("outcome_unknown"), Some("dep-1")), "{line}");
    assert_eq!(line["open_effects"][0]["effect"], "capture");
    desk.run(&["parked", "show", &id])
        .ends(0)
        .shows("journal\neffect\tcapture\nstate\tunknown\nkey\t")
        .shows("last possible send\t")
        .shows("not found believed\t")
        .says("--effect 'capture'");
}

#[test]
pub(crate) fn did_not_happen_is_refused_until_the_quarantine_is_over() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", HOUR).await).to_string();
    let resolve = ["parked", "resolve", &id, "--effect", "capture", "--did-not-happen", "--reason", "support said so"];
    desk.run(&resolve).ends(4).says("effect capture may still arrive until 2").says("hint: ask the remote again");
    assert_eq!(state(&desk, &id), "parked");
}

#[test]
pub(crate) fn resolving_lets_the_message_go_on_and_alike_twice_does_no_harm() {
    let desk = Desk::new();
    let (first, second) = desk.prepare(async |bench| {
        (bench.parked("dep-1", Duration::ZERO).await.to_string(), bench.parked("dep-2", HOUR).await.to_string())
    });
    let not = |id: &str| {
        desk.run(&["parked", "resolve", id, "--effect", "capture", "--did-not-happen", "--reason", "no such charge"])
    };
    not(&first).ends(0).prints("id\tID1\neffect\tcapture\nresolution\tdid_not_happen\nstate\tready\nstill open\t0\n");
    assert_eq!(state(&desk, &first), "ready");
    let got = crate::desk::masked(&desk.run(&["get", &first]).ends(0).out);
    assert!(
        got.ends_with("\n\nhistory\nact\tresolved\nat\tTIME\nbecame\tready\nreason\tno such charge\ndue\tTIME\n"),
        "{got}"
    );
    not(&first).ends(0);
    let happened = |id: &str, result: &str| {
        let arguments = ["parked", "resolve", id, "--effect", "capture", "--happened", "--result", result];
        desk.run(&[&arguments[..], &["--reason", "in the gateway's ledger", "--json"]].concat())
    };
    happened(&second, "\"ch_123\"").ends(0).prints(
        "{\"id\":\"ID1\",\"effect\":\"capture\",\"resolution\":\"happened\",\"state\":\"ready\",\"still_open\":0}\n",
    );
    happened(&second, "\"ch_999\"").ends(4).says("is not parked, it is ready");
    happened(&first, "\"ch_123\"").ends(4);
    let got = desk.run(&["get", &second, "--json"]).ends(0);
    got.shows(r#""state":"confirmed","open":false"#).shows(r#""value":"ch_123""#);
}

#[test]
pub(crate) fn all_open_effects_are_resolved_before_it_goes_on() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| {
        let lease = bench.lease("dep-1").await;
        bench.open_effect(&lease, "capture", HOUR).await;
        bench.settle(&lease, Outcome::Unknown { failure: Failure::new("timeout", "") }).await;
        lease.message.id.to_string()
    });
    let resolve = |effect: &str| {
        let arguments = ["parked", "resolve", &id, "--effect", effect, "--happened", "--result", "1", "--reason", "x"];
        desk.run(&arguments)
    };
    resolve("refund").ends(3).says("refund");
    resolve("capture[1]").ends(3);
    resolve("capture").ends(0).shows("still open\t0\n");
}

#[test]
pub(crate) fn what_a_resolution_lacks_is_said() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", Duration::ZERO).await).to_string();
    let begin = ["parked", "resolve", &id, "--effect", "capture"];
    for (rest, says) in [
        (&["--did-not-happen"][..], "--reason"),
        (&["--did-not-happen", "--reason", ""], "a reason says why"),
        (&["--reason", "x"], "--happened|--did-not-happen"),
        (&["--happened", "--reason", "x"], "--result"),
        (&["--happened", "--did-not-happen", "--result", "1", "--reason", "x"], "cannot be used with"),
        (&["--happened", "--result", "ch_123", "--reason", "x"], "hint: a text is quoted"),
    ] {
        desk.run(&[&begin[..], rest].concat()).ends(2).says(says);
    }
    desk.run(&["parked", "resolve", &id, "--did-not-happen", "--reason", "x"]).ends(2).says("--effect");
    assert_eq!(state(&desk, &id), "parked");
    let ready = desk.prepare(async |bench| bench.enqueue("dep-2").await).to_string();
    let resolve = ["parked", "resolve", &ready, "--effect", "capture", "--did-not-happen", "--reason", "x"];
    let ran = desk.run(&resolve);
    assert!(matches!(ran.code, Some(3 | 4)), "{ran:?}");
    desk.run(&["parked", "show", &ready]).ends(4).says("is ready, not parked");
}

// --- cancel, queues, audit -------------------------------------------------------------------------------------------

#[test]
pub(crate) fn what_has_not_taken_effect_is_called_off() {
    let desk = Desk::new();
    let (ready, leased, parked) = desk.prepare(async |bench| {
        let leased = bench.lease("dep-2").await.message.id.to_string();
        let parked = bench.parked("dep-3", HOUR).await.to_string();
        (bench.enqueue("dep-1").await.to_string(), leased, parked)
    });
    desk.run(&["cancel", &ready]).ends(0).prints("ID1\tcancelled\n");
    desk.run(&["cancel", &leased, "--json"]).ends(0).prints("{\"id\":\"ID1\",\"result\":\"requested\"}\n");
    desk.run(&["cancel", &parked]).ends(4).says("its effect may have happened").says("tidegate parked resolve");
    desk.run(&["cancel", "msg_0000000000001"]).ends(3).says("no message msg_0000000000001");
    desk.run(&["cancel"]).ends(2);
    let several = desk.run(&["cancel", &ready, &parked, "--json"]).ends(1);
    assert_eq!(several.out.lines().count(), 2);
    several.shows("\"result\":\"refused\",\"error\":\"cannot be cancelled: it is parked");
    desk.run(&["cancel", &ready]).ends(0).prints("ID1\tcancelled\n");
    let again = ["enqueue", "--kind", "deposit", "--key", "dep-1", "--payload", r#"{"deposit":"dep-1"}"#];
    desk.run(&again).ends(0).prints("ID1\tknown\tcancelled\n");
}

#[test]
pub(crate) fn a_key_is_released_only_when_it_is_asked_for() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.enqueue("dep-1").await).to_string();
    desk.run(&["cancel", &id, "--release-key", "--reason", "typing error"]).ends(0);
    desk.run(&["enqueue", "--kind", "deposit", "--key", "dep-1", "--payload", "2"])
        .ends(0)
        .prints("ID1\tadded\tready\n");
}

#[test]
pub(crate) fn a_queue_is_paused_resumed_and_limited() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.enqueue("dep-1").await);
    let paused = || desk.run(&["queue", "list", "--json"]).ends(0).out.contains("\"paused\":true");
    desk.run(&["queue", "pause", "deposit"]).ends(0).prints("deposit\tpaused\n").says("tidegate queue resume deposit");
    assert!(paused());
    desk.run(&["queue", "resume", "deposit", "--json"]).ends(0).prints("{\"queue\":\"deposit\",\"act\":\"resumed\"}\n");
    assert!(!paused());
    desk.run(&["queue", "limit", "deposit", "7", "--json"])
        .ends(0)
        .prints("{\"queue\":\"deposit\",\"act\":\"limited\",\"max_depth\":7}\n");
    desk.run(&["queue", "list", "--json"]).ends(0).shows("\"max_depth\":7,");
    desk.run(&["queue", "limit", "deposit", "5"]).ends(0).prints("deposit\tlimited\t5\n");
    desk.run(&["queue", "limit", "deposit", "none", "--json"])
        .ends(0)
        .prints("{\"queue\":\"deposit\",\"act\":\"limited\",\"max_depth\":null}\n");
    desk.run(&["queue", "limit", "deposit", "none"]).ends(0).prints("deposit\tlimited\tnone\n");
    let known = desk.run(&["queue", "pause", "deposit"]).ends(0);
    assert!(!known.err.contains("no message"), "{}", known.err);
    desk.run(&["queue", "pause", "depsoit"]).ends(0).says("no message has been on queue depsoit");
    assert!(!desk.run(&["queue", "list", "--json"]).ends(0).out.contains("\"max_depth\":7"));
    desk.run(&["queue", "limit", "deposit", "many"]).ends(2).says("a whole number, or none");
    desk.run(&["queue", "pause", "not a name"]).ends(2).says("invalid queue name \"not a name\"");
}

#[test]
pub(crate) fn every_act_is_kept_with_who_when_and_why() {
    let desk = Desk::new();
    let (dead, ready) = desk.prepare(async |bench| {
        let dead = bench.dead("dep-1").await.to_string();
        (dead, bench.enqueue("dep-2").await.to_string())
    });
    desk.run(&["queue", "pause", "deposit", "--reason", "gateway maintenance"]).ends(0);
    desk.run(&["dead", "redrive", &dead, "--reason", "certificate renewed"]).ends(0);
    desk.run(&["cancel", &ready, "--reason", "withdrawn"]).ends(0);
    let out = desk.run(&["audit"]).ends(0).out;
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split('\t').collect()).collect();
    let acts: Vec<(&str, &str, &str)> = rows.iter().map(|row| (row[3], row[4], row[5])).collect();
    assert_eq!(
        acts,
        [
            ("pause", "deposit", "gateway maintenance"),
            ("redrive", dead.as_str(), "certificate renewed"),
            ("cancel", ready.as_str(), "withdrawn"),
        ]
    );
    assert!(rows.iter().all(|row| !row[2].is_empty()), "somebody did it: {out}");
    let page = desk.run(&["audit", "--limit", "1", "--json"]).ends(0);
    assert_eq!(page.out.lines().count(), 1);
    let first: serde_json::Value = serde_json::from_str(&page.out).unwrap();
    let names: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(names, ["act", "actor", "at", "detail", "message", "queue", "reason", "seq", "tenant"]);
    desk.run(&["audit", "--after", rows[0][0]]).ends(0).shows("certificate renewed");
}
