//! The command on a PostgreSQL server: what it says about a store there, and that it says the same as about a file.

use std::time::Duration;

use serde_json::Value;
use tidegate_pgcluster::Cluster;

use crate::again::{again, again_everywhere};
use crate::desk::{Desk, Ran, new_address, on_a_server};

const HOUR: Duration = Duration::from_secs(3600);

again_everywhere! { on_a_server }

// What is done on a store itself.
again! {
    on_a_server;
    logs::no_payload_key_or_token_is_in_a_log_however_much_of_it_is_asked_for,
    inspect::looking_changes_nothing_and_starts_no_housekeeping,
    care::what_ended_is_erased_and_the_rest_refused_with_why,
    serve::an_operation_that_nobody_drives_is_taken_up_by_a_server_that_starts_and_holds_up_none_that_stops,
}

#[test]
fn a_password_is_shown_nowhere() {
    let desk = Desk::new();
    let nobody_there = "postgres://ada:secret@127.0.0.1:1/shop";
    for command in [&["list"][..], &["doctor"], &["migrate", "status"], &["backup", "x.db"], &["--json", "stats"]] {
        let Ran { out, err, code } = desk.run(&[&["--store", nobody_there], command].concat());
        assert_ne!(code, Some(0), "{command:?}");
        assert!(!out.contains("secret") && !err.contains("secret"), "{command:?}: {out}{err}");
    }
    let mut help = desk.command(&["--help"]);
    let help = Ran::of(help.env("TIDEGATE_STORE", nobody_there).output().unwrap()).ends(0);
    assert!(!help.out.contains("secret"), "{}", help.out);
    desk.run(&["--store", nobody_there, "list"]).ends(5).says("hint");
}

#[test]
fn a_password_may_come_from_the_environment() {
    let desk = Desk::new();
    let address = new_address();
    let (user, rest) = address.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
    let (user, password) = user.split_once(':').unwrap();
    let without = format!("postgres://{user}@{rest}");
    desk.run(&["--store", &without, "migrate", "up"]).ends(5);
    let mut command = desk.command(&["--store", &without, "migrate", "up"]);
    Ran::of(command.env("PGPASSWORD", password).output().unwrap()).ends(0).shows("0001_init");
}

#[test]
fn a_store_that_does_not_show_that_it_was_restored_is_told() {
    on_a_server(|| {
        let desk = Desk::new();
        desk.prepare(async |bench| {
            bench.lease("dep-1").await;
            bench.enqueue("dep-2").await;
        });
        desk.run(&["restored"]).ends(2);
        desk.run(&["restored", "--reason", "snapshot of Monday"])
            .ends(0)
            .prints("incarnation\t2\nreleased\t1\nunsure\t2\n");
        let again: Value =
            serde_json::from_str(&desk.run(&["restored", "--reason", "again", "--json"]).ends(0).out).unwrap();
        assert_eq!((&again["incarnation"], &again["released"], &again["unsure"]), (&3.into(), &0.into(), &2.into()));
        desk.run(&["audit"]).ends(0).shows("snapshot of Monday");
        desk.run(&["doctor"]).ends(0);
    });
    let desk = Desk::new();
    desk.run(&["restored", "--reason", "a copy"]).ends(4).says("tidegate backup");
}

#[test]
fn only_what_stores_something_makes_a_store() {
    on_a_server(|| {
        let desk = Desk::new();
        desk.run(&["list"]).ends(3).says("no tidegate store in schema desk_").says("tidegate migrate up");
        desk.run(&["doctor"]).ends(1).shows("migrations");
        desk.run(&["enqueue", "--kind", "greet", "--key", "a", "--payload", "{}"]).ends(0);
        desk.run(&["list"]).ends(0).shows("greet");
        let json: Value = serde_json::from_str(&desk.run(&["stats", "--json"]).ends(0).out).unwrap();
        assert_eq!((json["queues"][0]["ready"].as_u64(), json.get("disk")), (Some(1), None));
        desk.run(&["stats"]).ends(0).shows("open effects");
        assert!(desk.files().is_empty(), "{:?}", desk.files());
    });
}

#[test]
fn the_steps_of_a_store_are_shown_taken_and_can_be_taken_by_hand() {
    let desk = Desk::new();
    let address = new_address();
    let run = |words: &[&str]| desk.run(&[&["--store", &address, "migrate"], words].concat());
    let steps = run(&["status"]).ends(1).says("tidegate migrate up").out;
    assert!(steps.starts_with("1\t0001_init\t-\n"), "{steps}");
    // As whoever looks after the database does it, who does not let a program make tables.
    let printed = run(&["print"]).ends(0).out;
    Cluster::shared().sql("tidegate_cli", &printed).unwrap();
    run(&["status"]).ends(0);
    run(&["up"]).ends(0).prints("").says("no step was missing");
    desk.run(&["--store", &address, "enqueue", "--kind", "greet", "--key", "a", "--payload", "{}"]).ends(0);
    desk.run(&["--store", &address, "doctor"]).ends(0);
    let other = new_address();
    desk.run(&["--store", &other, "migrate", "up"]).ends(0).shows("0001_init\t20");
    let json: Value =
        serde_json::from_str(&desk.run(&["--store", &other, "migrate", "status", "--json"]).ends(0).out).unwrap();
    assert_eq!(json["current"], true);
    assert!(!json["store"].as_str().unwrap().contains(":5"), "{json}");
}

/// A store of the step before the last, with a message in it that an older worker runs; its address and its schema.
fn older_store(desk: &Desk) -> (String, String) {
    let address = new_address();
    let printed = desk.run(&["--store", &address, "migrate", "print"]).ends(0).out;
    let (before, last) = printed.split_once("-- step 4:").unwrap();
    assert!(last.contains("0004_less_log"), "{last}");
    Cluster::shared().sql("tidegate_cli", before).unwrap();
    let (_, schema) = address.split_once("?schema=").unwrap();
    let runs = format!(
        "insert into {schema}.lease (id, lane, due_at, until, enqueued_at, max_age_ms, claims, attempt, crashes, generation,
            round, flags, nonce, worker)
         select 1, 1, 0, (extract(epoch from clock_timestamp()) * 1000)::bigint + 3600000, 0, 0, 1, 1, 0, 0, 0, 0, '', 'old-1'"
    );
    Cluster::shared().sql("tidegate_cli", &runs).unwrap();
    (address.clone(), schema.to_owned())
}

#[test]
fn a_step_waits_for_the_end_of_older_workers_unless_it_is_to_be_taken_beside_them() {
    let desk = Desk::new();
    let (address, schema) = older_store(&desk);
    let run = |words: &[&str]| desk.run(&[&["--store", &address, "migrate"], words].concat());
    run(&["up"]).ends(4).says("step 5 (0005_older_fail)").says("worker old-1 holds 1 message").says("--beside-older");
    run(&["status"]).ends(1);
    Cluster::shared().sql("tidegate_cli", &format!("delete from {schema}.lease")).unwrap();
    run(&["up"]).ends(0).shows("4\t0004_less_log\t20");
    let (other, _) = older_store(&desk);
    desk.run(&["--store", &other, "migrate", "up", "--beside-older"]).ends(0).shows("4\t0004_less_log\t20");
}

#[test]
fn the_doctor_looks_over_a_store_on_a_server() {
    on_a_server(|| {
        let desk = Desk::new();
        desk.prepare(async |bench| {
            bench.completed("dep-1").await;
            bench.failed("dep-2").await;
            bench.parked("dep-3", HOUR).await;
            bench.lease("dep-4").await;
            bench.enqueue("dep-5").await;
        });
        desk.run(&["doctor"]).ends(0).shows("ok\tone_state\t").shows("ok\topen_effects\t");
        let json: Value = serde_json::from_str(&desk.run(&["doctor", "--json"]).ends(0).out).unwrap();
        assert!(json["store"].as_str().unwrap().contains(":…@"), "{json}");
    });
}

#[test]
fn the_demo_passes_with_three_workers_on_one_database() {
    let desk = Desk::new();
    let database = Cluster::shared().database("tidegate_demo").unwrap();
    let ran = desk.run(&["--store", &database, "demo", "--fast", "--json", "--seed", "1"]).ends(0);
    let proof: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(proof["pass"], true);
    assert!(ran.err.contains("kill -9: two of three workers"), "{}", ran.err);
    let left = "select count(*) from pg_namespace where nspname like 'demo%'";
    assert_eq!(Cluster::shared().sql("tidegate_demo", left).unwrap().trim(), "0", "its schemas go with it");
}

#[test]
fn a_small_torture_on_a_server_of_its_own_loses_and_repeats_nothing_over_restarts_and_unanswered_commits() {
    let desk = Desk::new();
    let dir = desk.path("run");
    let faults = ["--kills", "12", "--stops", "3", "--redeploys", "2", "--terminations", "6", "--restarts", "2"];
    let run = ["torture", "--store", "throw-away", "--lease", "3s", "--failpoints", "none", "--seed", "5", "--json"];
    let ran = desk.run(&[&run[..], &faults, &["--dir", dir.to_str().unwrap()]].concat());
    let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{}", ran.err));
    let count = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}"));
    // How soon something is free again is a question to a machine that does nothing else: a housekeeping that was kept from
    // its store for a third of a lease leaves leases alone for a whole one. Everything else holds on any machine.
    let broken = report["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false);
    let broken: Vec<&Value> = broken.filter(|check| check["name"] != "recovery").collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(report["store"], "postgres");
    assert!(count("/faults/kills") >= 12 && count("/faults/terminations_in_commit") >= 6, "{report}");
    assert_eq!((count("/faults/restarts"), count("/services")), (2, 3));
    for zero in ["/deposits/lost", "/deposits/unexpected", "/deposits/duplicated", "/effects/duplicates"] {
        assert_eq!(count(zero), 0, "{zero}");
    }
}

#[test]
fn the_benchmark_has_the_same_figures_on_a_server() {
    let desk = Desk::new();
    let database = Cluster::shared().database("tidegate_bench").unwrap();
    let ran = desk.run(&["--store", &database, "bench", "--quick", "--keys", "time", "--json"]).ends(0);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["store"], "postgres");
    for figure in ["lifecycles_per_s", "raw_bound_per_s", "ratio", "wal_bytes_per_message", "pickup_p50_ms"] {
        assert!(report[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {report}");
    }
    let costs = report["claim_cost"].as_array().unwrap();
    assert!(costs.iter().all(|cost| cost["buffers_per_claim"].as_f64().is_some_and(|n| n > 0.0)), "{report}");
    assert_eq!(costs.iter().filter(|cost| cost["held_snapshot"] == true).count(), 1);
    let left = "select count(*) from pg_namespace where nspname like 'bench%'";
    assert_eq!(Cluster::shared().sql("tidegate_bench", left).unwrap().trim(), "0", "its schemas go with it");
}
