//! `tidegate enqueue`: one message, many messages, the same ones again.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::desk::{Desk, Ran, masked};

const ONE: [&str; 7] = ["enqueue", "--kind", "greet", "--key", "greet-ada", "--payload", r#"{"name":"Ada"}"#];

#[test]
pub(crate) fn a_message_is_stored_once_however_often_it_is_enqueued() {
    let desk = Desk::new();
    desk.run(&ONE).ends(0).prints("ID1\tadded\tready\n").says("next: tidegate explain msg_");
    desk.run(&ONE).ends(0).prints("ID1\tknown\tready\n").says("no new work");
    desk.run(&["list"]).ends(0).prints("ID1\tready\tgreet\tgreet\tgreet-ada\t0\tTIME\t\n");
}

#[test]
pub(crate) fn what_was_decided_by_the_first_enqueue_is_said_to_be_ignored() {
    let desk = Desk::new();
    desk.run(&ONE).ends(0);
    desk.run(&[&ONE[..], &["--priority", "1"]].concat()).ends(0).says("ignored").says("priority");
}

#[test]
pub(crate) fn json_says_what_became_of_one_message() {
    let desk = Desk::new();
    let json = [&ONE[..], &["--json"]].concat();
    desk.run(&json).ends(0).prints("{\"result\":\"added\",\"id\":\"ID1\",\"queue\":\"greet\",\"key\":\"greet-ada\"}\n");
    desk.run(&[&json[..], &["--priority", "1"]].concat()).ends(0).prints(
        "{\"result\":\"known\",\"id\":\"ID1\",\"queue\":\"greet\",\"key\":\"greet-ada\",\"state\":\"ready\",\
         \"ignored\":[\"priority\"]}\n",
    );
}

#[test]
fn a_duplicate_of_an_answered_message_gets_the_stored_answer_byte_for_byte() {
    let desk = Desk::new();
    desk.prepare(async |bench| {
        bench.completed("dep-1").await;
        bench.failed("dep-2").await;
    });
    let again = |key: &str| {
        let payload = format!(r#"{{"deposit":"{key}"}}"#);
        desk.run(&["enqueue", "--kind", "deposit", "--key", key, "--payload", &payload, "--json"]).ends(0)
    };
    again("dep-1").prints(
        "{\"result\":\"replayed\",\"id\":\"ID1\",\"queue\":\"deposit\",\"key\":\"dep-1\",\"state\":\"completed\",\
         \"answer\":{\"result\":{\"charge\": \"ch_1\"}}}\n",
    );
    again("dep-2").prints(
        "{\"result\":\"replayed\",\"id\":\"ID1\",\"queue\":\"deposit\",\"key\":\"dep-2\",\"state\":\"failed\",\
         \"answer\":{\"failure\":{\"code\":\"declined\",\"detail\":\"card expired\"}}}\n",
    );
}

#[test]
pub(crate) fn options_reach_the_store() {
    let desk = Desk::new();
    let options = ["--queue", "slow", "--priority", "2", "--delay", "1h", "--version", "3"];
    desk.run(&[&ONE[..], &options, &["--deadline", "2999-01-01T00:00:00Z"]].concat()).ends(0);
    let got = desk.run(&["get", "--queue", "slow", "--key", "greet-ada", "--json"]).ends(0).out;
    let got: serde_json::Value = serde_json::from_str(&got).unwrap();
    assert_eq!((got["priority"].as_u64(), got["version"].as_u64()), (Some(2), Some(3)), "{got}");
    assert_eq!(got["deadline"], "2999-01-01T00:00:00.000Z");
    assert_ne!(got["due_at"], got["enqueued_at"]);
    desk.run(&["explain", got["id"].as_str().unwrap()]).ends(0).shows("state\tready, scheduled\n");
}

#[test]
pub(crate) fn a_unique_key_makes_new_work_every_time() {
    let desk = Desk::new();
    let unique = ["enqueue", "--kind", "ping", "--unique-key", "--payload", "1"];
    desk.run(&unique).ends(0);
    desk.run(&unique).ends(0);
    assert_eq!(desk.run(&["list"]).ends(0).out.lines().count(), 2);
}

#[test]
fn a_payload_can_come_from_standard_input() {
    let desk = Desk::new();
    let arguments = ["enqueue", "--kind", "k", "--key", "a", "--payload", "-"];
    desk.run_with_input(&arguments, b" {\"n\": 1.50}\n").ends(0);
    let got = desk.run(&["get", "--queue", "k", "--key", "a", "--json"]).ends(0).out;
    assert!(got.contains(r#""payload":{"n": 1.50},"#), "{got}");
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Greet {
    name: String,
}

impl tidegate::Message for Greet {
    const KIND: &'static str = "greet";
    type Answer = String;

    fn key(&self) -> String {
        format!("greet-{}", self.name)
    }
}

#[test]
fn a_service_that_has_the_store_open_runs_what_the_command_enqueues() {
    let desk = Desk::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let tide = tidegate::Tidegate::open(desk.path("tidegate.db")).await.unwrap();
        let greet = async |_: tidegate::Context, greet: Greet| tidegate::Handled::Ok(format!("hello, {}", greet.name));
        let worker = tide.worker().handle(greet).start().await.unwrap();
        let id = desk.run(&ONE).ends(0).out.split('\t').next().unwrap().parse().unwrap();
        let progress = tide.wait(id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(progress.state.as_str(), "completed");
        desk.run(&ONE).ends(0).prints("ID1\treplayed\tcompleted\n").says("it was answered before");
        desk.run(&["get", &id.to_string()]).ends(0).shows("result\t\"hello, Ada\"\n");
        worker.stop().await.unwrap();
    });
}

// --- many ------------------------------------------------------------------------------------------------------------

const FILE: [&str; 6] = ["enqueue", "--kind", "deposit", "--key-field", "id", "deposits.ndjson"];

fn deposits(count: usize) -> String {
    (0..count).map(|n| format!("{{\"id\":\"dep-{n}\",\"cents\":{n}}}\n")).collect()
}

#[test]
fn a_file_given_again_adds_nothing() {
    let desk = Desk::new();
    desk.write("deposits.ndjson", deposits(2500));
    desk.run(&FILE).ends(0).prints("lines\t2500\nadded\t2500\nknown\t0\nreplayed\t0\nrefused\t0\n");
    desk.run(&FILE).ends(0).prints("lines\t2500\nadded\t0\nknown\t2500\nreplayed\t0\nrefused\t0\n");
    let stats = desk.run(&["stats", "--json"]).ends(0).out;
    assert!(stats.contains("\"ready\":2500,"), "{stats}");
}

#[test]
fn a_file_that_was_taken_half_is_completed() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.completed("dep-7").await);
    // What was completed had another payload here; a line of its own with the same one is replayed.
    desk.write("deposits.ndjson", "{\"deposit\":\"dep-7\"}\n");
    let by_deposit = ["enqueue", "--kind", "deposit", "--key-field", "deposit", "deposits.ndjson"];
    desk.run(&by_deposit).ends(0).prints("lines\t1\nadded\t0\nknown\t0\nreplayed\t1\nrefused\t0\n");
    desk.write("deposits.ndjson", deposits(5));
    desk.run(&FILE).ends(0);
    desk.write("deposits.ndjson", deposits(7));
    desk.run(&[&FILE[..], &["--json"]].concat())
        .ends(0)
        .prints("{\"lines\":7,\"added\":2,\"known\":5,\"replayed\":0,\"refused\":0,\"refusals\":[]}\n");
}

#[test]
pub(crate) fn malformed_lines_are_named_and_the_rest_is_taken() {
    let desk = Desk::new();
    let lines = [
        &b"{\"id\":\"a\",\"cents\":1}\n"[..],
        b"\n",
        b"{\"id\":\"b\",\n",
        b"{\"ID\":\"c\"}\n",
        b"\xff\xfe\n",
        b"{\"id\":\"a\",\"cents\":2}\n",
        b"{\"id\":\"d\",\"cents\":0.1000000000000000055}\n",
        b"{\"id\":\"has space\"}\n",
        b"{\"id\":\"e\"}",
    ];
    desk.write("deposits.ndjson", lines.concat());
    let ran = desk.run(&FILE).ends(1);
    assert_eq!(ran.out, "lines\t8\nadded\t2\nknown\t0\nreplayed\t0\nrefused\t6\n");
    let expected = [
        "line 3: not JSON: EOF while parsing",
        "line 4: no key field \"id\"",
        "line 5: not UTF-8 at byte 1",
        "line 6: key \"a\" is known in queue deposit with another payload: ID1",
        "line 7: payload refused: the number 0.1000000000000000055 does not survive a double",
        "line 8: invalid idempotency key \"has space\"",
    ];
    let said = masked(&ran.err);
    let told: Vec<&str> = said.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(told.len(), expected.len(), "{said}");
    for (line, start) in told.iter().zip(expected) {
        assert!(line.starts_with(start), "{line:?} does not begin with {start:?}");
    }
    let listed = desk.run(&["list"]).ends(0).out;
    let keys: Vec<&str> = listed.lines().map(|line| line.split('\t').nth(4).unwrap()).collect();
    assert_eq!(keys, ["a", "e"]);
}

#[test]
pub(crate) fn refusals_are_in_the_summary_for_programs() {
    let desk = Desk::new();
    desk.write("deposits.ndjson", "{\"id\":\"a\"}\n[]\n");
    let ran = desk.run(&[&FILE[..], &["--json"]].concat()).ends(1);
    ran.prints(
        "{\"lines\":2,\"added\":1,\"known\":0,\"replayed\":0,\"refused\":1,\
         \"refusals\":[{\"line\":2,\"reason\":\"the line is no JSON object\"}]}\n",
    );
}

#[test]
fn a_file_in_which_nothing_is_a_message_makes_no_store() {
    let desk = Desk::new();
    desk.write("deposits.ndjson", "nonsense\n{}\n");
    desk.run(&FILE).ends(1);
    assert_eq!(desk.files(), ["deposits.ndjson"]);
    desk.write("deposits.ndjson", "");
    desk.run(&FILE).ends(0).prints("lines\t0\nadded\t0\nknown\t0\nreplayed\t0\nrefused\t0\n");
    assert_eq!(desk.files(), ["deposits.ndjson"]);
}

#[test]
fn csv_rows_are_objects_of_texts_and_of_json_where_it_is_said() {
    let desk = Desk::new();
    desk.write("deposits.csv", "id,cents,name\ndep-1,0500,\"Ada, L.\"\ndep-2,7\n,8,x\ndep-4,900,Bob\n");
    let file = ["enqueue", "--kind", "deposit", "--key-field", "id", "deposits.csv"];
    desk.run(&file)
        .ends(1)
        .says("line 3: 2 fields, the heading has 3")
        .says("line 4: key field \"id\" is empty")
        .prints("lines\t4\nadded\t2\nknown\t0\nreplayed\t0\nrefused\t2\n");
    let got = desk.run(&["get", "--queue", "deposit", "--key", "dep-1", "--json"]).ends(0).out;
    assert!(got.contains(r#""payload":{"id":"dep-1","cents":"0500","name":"Ada, L."},"#), "{got}");
    let typed = [&file[..5], &["--queue", "typed", "--json-field", "cents", "deposits.csv"]].concat();
    desk.run(&typed).ends(1).says("line 2: column \"cents\": not JSON");
    let got = desk.run(&["get", "--queue", "typed", "--key", "dep-4", "--json"]).ends(0).out;
    assert!(got.contains(r#""payload":{"id":"dep-4","cents":900,"name":"Bob"},"#), "{got}");
}

#[test]
fn a_line_without_a_key_field_is_an_envelope_and_says_everything() {
    let desk = Desk::new();
    let lines = concat!(
        r#"{"key":"a","payload":{"n":1},"kind":"one","queue":"q1","headers":{"traceparent":"00-1"}}"#,
        "\n",
        r#"{"key":"b","payload":{"n":2}}"#,
        "\n",
        r#"{"key":"c","payload":{"n":3},"kind":"one","prio":1}"#,
        "\n"
    );
    let ran = desk.run_with_input(&["enqueue", "-"], lines.as_bytes()).ends(1);
    let ran = ran.says("line 2: no kind: neither the line nor --kind says it").says("line 3: unknown field `prio`");
    ran.prints("lines\t3\nadded\t1\nknown\t0\nreplayed\t0\nrefused\t2\n");
    let got = desk.run(&["get", "--queue", "q1", "--key", "a", "--json"]).ends(0).out;
    assert!(got.contains(r#""headers":{"traceparent":"00-1"},"payload":{"n":1},"#), "{got}");
}

#[test]
fn a_full_queue_stops_the_file_and_the_same_file_goes_on_later() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.completed("first").await);
    desk.run(&["queue", "limit", "deposit", "3"]).ends(0);
    desk.write("deposits.ndjson", deposits(2000));
    let ran = desk.run(&FILE).ends(5).says("line 4: queue deposit").says("not added twice");
    assert!(ran.out.starts_with("lines\t1000\nadded\t3\n"), "the second thousand is not even tried: {}", ran.out);
    assert_eq!(ran.err.matches("line ").count(), 1, "said once, as the error: {}", ran.err);
    desk.run(&["queue", "limit", "deposit", "none"]).ends(0);
    desk.run(&FILE).ends(0).prints("lines\t2000\nadded\t1997\nknown\t3\nreplayed\t0\nrefused\t0\n");
    let one = ["enqueue", "--kind", "deposit", "--key", "more", "--payload", "1"];
    desk.run(&["queue", "limit", "deposit", "3"]).ends(0);
    desk.run(&one).ends(5).says("queue deposit");
}

#[test]
fn an_interrupted_command_ends_with_130_and_keeps_what_it_acknowledged() {
    let desk = Desk::new();
    let mut command = desk.command(&["enqueue", "--kind", "deposit", "--key-field", "id", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, deposits(1000).as_bytes()).unwrap();
    // A whole batch was read, so it is stored although the input goes on; then the program surely listens for signals.
    until("the first batch is stored", || {
        let stats = desk.run(&["stats", "--json"]);
        stats.code == Some(0) && stats.out.contains("\"ready\":1000,")
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    ran.ends(130).says("error: interrupted").says("adds nothing twice");
    drop(stdin);
    assert_eq!(desk.run(&["list", "--limit", "2000"]).ends(0).out.lines().count(), 1000);
}

#[test]
fn a_full_queue_is_told_at_once_even_if_the_pipe_stays_open() {
    let desk = Desk::new();
    desk.prepare(async |bench| bench.completed("first").await);
    desk.run(&["queue", "limit", "deposit", "3"]).ends(0);
    let mut command = desk.command(&["enqueue", "--kind", "deposit", "--key-field", "id", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, deposits(1000).as_bytes()).unwrap();
    Ran::of(child.wait_with_output().unwrap()).ends(5);
    drop(stdin);
}

/// Looks again and again, because a process leaves no signal when it has come so far.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a deadline for a test that has to end")]
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
    }
}
