//! The commands that look after a store: doctor, backup, erase; and those that look on: top, completions, man.

use std::time::Duration;

use crate::desk::Desk;

const HOUR: Duration = Duration::from_secs(3600);

// --- doctor ----------------------------------------------------------------------------------------------------------

#[test]
fn a_healthy_store_passes_every_check() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        bench.completed("dep-1").await;
        bench.failed("dep-2").await;
        bench.parked("dep-3", HOUR).await;
        bench.lease("dep-4").await;
        bench.enqueue("dep-5").await;
    });
    let ran = desk.run(&["doctor"]).ends(0).shows("ok\tpages\t").shows("ok\topen_effects\t");
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("ok\t")).count(), ran.out.lines().count());
    let json: serde_json::Value = serde_json::from_str(&desk.run(&["doctor", "--json"]).ends(0).out).unwrap();
    assert_eq!(json["ok"], true);
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["ok"] == true && check["findings"].as_array().unwrap().is_empty()));
}

#[test]
fn what_the_doctor_finds_is_told_with_its_row_and_exit_code_1() {
    let desk = Desk::new();
    let id = desk.prepare(async |bench| bench.parked("dep-1", HOUR).await);
    let damage = format!("update tide_held set state = 'dead' where id = {}", id.as_i64());
    rusqlite(&desk, &damage);
    let found = format!("open_effects\ttide_effect\t{id}\teffect capture is unknown, and the message is dead\n");
    desk.run(&["doctor"]).ends(1).shows("found 1\topen_effects\t").shows(&found).says("doctor.md");
    let json: serde_json::Value = serde_json::from_str(&desk.run(&["doctor", "--json"]).ends(1).out).unwrap();
    let check = json["checks"].as_array().unwrap().iter().find(|check| check["name"] == "open_effects").unwrap();
    assert_eq!((check["found"].as_u64(), check["findings"][0]["message"].as_str()), (Some(1), Some(&*id.to_string())));
}

#[test]
fn there_has_to_be_a_store_to_look_over() {
    let desk = Desk::new();
    desk.run(&["doctor"]).ends(3).says("no store at tidegate.db");
    desk.write("notes.txt", "no database, but long enough to be looked at".repeat(100));
    desk.run(&["doctor", "--store", "notes.txt"]).ends(1);
    assert_eq!(desk.files(), ["notes.txt"]);
}

fn rusqlite(desk: &Desk, sql: &str) {
    let conn = tidegate::sqlite::rusqlite::Connection::open(desk.path("tidegate.db")).unwrap();
    conn.execute_batch(sql).unwrap();
}

// --- backup ----------------------------------------------------------------------------------------------------------

#[test]
fn a_backup_is_made_once_and_passes_the_doctor() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.completed("dep-1").await);
    let ran = desk.run(&["backup", "copy.db", "--json"]).ends(0);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["incarnation"], 2);
    assert_eq!(json["bytes"].as_u64(), Some(std::fs::metadata(desk.path("copy.db")).unwrap().len()));
    desk.run(&["backup", "copy.db"]).ends(4).says("is there already").says("overwrites nothing");
    desk.run(&["backup", "tidegate.db"]).ends(4).says("is there already");
    desk.run(&["doctor", "--store", "copy.db"]).ends(0);
    desk.run(&["list", "--store", "copy.db", "--state", "completed"]).ends(0).shows("dep-1");
    desk.run(&["backup", "no/copy.db"]).ends(5).says("cannot be found");
    let server = ["--store", "postgres://ada:secret@localhost/shop", "backup", "copy2.db"];
    let said = desk.run(&server).ends(4).says("PostgreSQL's own means").says("pg_dump");
    assert!(!said.err.contains("secret"), "{}", said.err);
}

// --- migrate ---------------------------------------------------------------------------------------------------------

#[test]
fn the_steps_of_a_store_are_shown_printed_and_taken() {
    let desk = Desk::new();
    desk.run(&["migrate", "status"]).ends(1).prints("1\t0001_init\t-\n2\t0002_tokens\t-\n").says("tidegate migrate up");
    desk.run(&["migrate", "print"]).ends(0).shows("-- step 1: 0001_init\n").shows("create table tide_message");
    assert!(desk.files().is_empty(), "{:?}", desk.files());
    desk.run(&["migrate", "up"]).ends(0).prints("1\t0001_init\tTIME\n2\t0002_tokens\tTIME\n");
    desk.run(&["migrate", "up"]).ends(0).prints("").says("no step was missing");
    desk.run(&["migrate", "print"]).ends(0).prints("").says("no step is missing");
    desk.run(&["migrate", "print", "--all"]).ends(0).shows("create table tide_message");
    let json = desk.run(&["migrate", "status", "--json"]).ends(0);
    json.prints(
        "{\"store\":\"tidegate.db\",\"current\":true,\"steps\":[{\"number\":1,\"name\":\"0001_init\",\
         \"applied_at\":\"TIME\"},{\"number\":2,\"name\":\"0002_tokens\",\"applied_at\":\"TIME\"}]}\n",
    );
    desk.write("notes.txt", "no database, but long enough to be looked at".repeat(100));
    desk.run(&["migrate", "status", "--store", "notes.txt"]).ends(1).says("is no SQLite database");
    desk.run(&["doctor"]).ends(0);
}

// --- erase -----------------------------------------------------------------------------------------------------------

#[test]
pub(crate) fn what_ended_is_erased_and_the_rest_refused_with_why() {
    let desk = Desk::new();
    let (done, waits) = desk
        .prepare(async |bench| (bench.completed("dep-1").await.to_string(), bench.enqueue("dep-2").await.to_string()));
    desk.run(&["erase", &done]).ends(2).says("--reason");
    desk.run(&["erase", &waits, "--reason", "x"]).ends(4).says("cannot be erased: it is ready");
    desk.run(&["erase", &done, &waits, "--reason", "x", "--json"])
        .ends(1)
        .shows("\"result\":\"erased\"")
        .shows("\"result\":\"refused\"");
    desk.run(&["get", &done, "--json"]).ends(0).shows("erased");
    let again = ["enqueue", "--queue", "deposit", "--kind", "deposit", "--key", "dep-1"];
    let again = [&again[..], &["--payload", "{\"deposit\":\"dep-1\"}"]].concat();
    desk.run(&again).ends(0).shows("replayed");
    desk.run(&["erase", &done, "--everything", "--reason", "request 7"]).ends(0).says("backups keep the old text");
    desk.run(&again).ends(0).shows("completed");
    desk.run(&["get", &done]).ends(0);
    desk.run(&["dead", "redrive", &done, "--again", "--reason", "x"]).ends(4).says("its payload was erased");
    desk.run(&["audit"]).ends(0).shows("erase").shows("request 7");
}

// --- top -------------------------------------------------------------------------------------------------------------

#[test]
pub(crate) fn one_look_at_the_queues_needs_no_terminal() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        bench.dead("dep-1").await;
        bench.enqueue("dep-2").await;
    });
    desk.run(&["top"]).ends(2).says("no terminal").says("--once");
    desk.run(&["top", "--once"]).ends(0).shows("QUEUE").shows("deposit").shows("timeout");
    let json: serde_json::Value = serde_json::from_str(&desk.run(&["top", "--once", "--json"]).ends(0).out).unwrap();
    let queue = &json["queues"][0];
    assert_eq!(
        (queue["queue"].as_str(), queue["ready"].as_u64(), queue["dead"].as_u64()),
        (Some("deposit"), Some(1), Some(1))
    );
    assert_eq!((queue["enqueued"].as_u64(), queue["ended"].as_u64()), (Some(2), Some(1)));
    assert_eq!(json["failures"][0]["code"], "timeout");
}

// --- completions, man ------------------------------------------------------------------------------------------------

#[test]
fn completions_know_every_command_and_keep_the_internal_one_to_themselves() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = desk.run(&["completions", shell]).ends(0).out;
        for word in ["doctor", "redrive", "completions"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
        assert!(!script.split(|c: char| !c.is_alphanumeric()).any(|word| word == "role"), "{shell}");
    }
    desk.run(&["completions", "tcsh"]).ends(2);
    assert!(desk.files().is_empty());
}

#[test]
fn there_is_a_manual_page_for_every_command_that_is_advertised() {
    let desk = Desk::new();
    desk.run(&["man", "pages/man1"]).ends(0).says("tidegate.1");
    let pages: Vec<String> = (std::fs::read_dir(desk.path("pages/man1")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in ["tidegate.1", "tidegate-doctor.1", "tidegate-parked-resolve.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} is not in {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.contains("role")), "{pages:?}");
    let text = std::fs::read_to_string(desk.path("pages/man1/tidegate-erase.1")).unwrap();
    assert!(text.contains("tombstone") && text.contains("130 interrupted"), "{text}");
    desk.write("file", "");
    desk.run(&["man", "file"]).ends(1).says("cannot be written into file");
}
