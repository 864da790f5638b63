use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use deposits::books::Books;
use deposits::gateway::read_ledger;
use deposits::load::{Progress, SideName, read_asked};
use deposits::process::Program;
use deposits::proof::{Evidence, judge};
use serde_json::Value;
use tokio::io::AsyncReadExt;

fn deposits(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_deposits")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_deposit_of_a_file_is_accounted_for_although_the_worker_is_killed_twice() {
    for mode in ["idempotent", "lookup", "none"] {
        let directory = tempfile::tempdir().unwrap();
        let output = deposits(&[
            "soak",
            "--count",
            "200",
            "--kills",
            "2",
            "--within",
            "90",
            "--mode",
            mode,
            "--dir",
            text(directory.path()),
        ]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{mode}: {told}{}", String::from_utf8_lossy(&output.stderr));
        let account: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&account["deposits"], &account["kills"], &account["unaccounted"]),
            (&200.into(), &2.into(), &0.into())
        );
    }
}

#[tokio::test]
async fn customers_of_the_http_intake_are_told_the_truth_although_the_worker_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let evidence = Evidence::in_directory(directory.path(), SideName::Tidegate);
    let program = Program::new(env!("CARGO_BIN_EXE_deposits"), [""; 0], directory.path());
    let start = |name: &str, role: &[&str]| {
        let role: Vec<String> = role.iter().map(|arg| (*arg).to_owned()).collect();
        program.start(name, &role).unwrap()
    };
    let (ledger, store) = (text(&evidence.ledger), text(evidence.wallet.file().unwrap()));
    let mut gateway = start("gateway", &["gateway", "--ledger", ledger, "--mode", "lookup", "--demo", "--fast"]);
    let gateway_url = gateway.listening().await.unwrap();
    let mut intake = start("intake", &["intake", "--database", store, "--fast"]);
    let intake_url = intake.listening().await.unwrap();
    let work = ["work", "--database", store, "--gateway", &gateway_url, "--mode", "lookup", "--fast"];
    let mut worker = start("work", &work);
    worker.announced().await.unwrap();
    let out = text(directory.path());
    let load = ["load", "--tidegate", &intake_url, "--tidegate-gateway", &gateway_url, "--out", out, "--fast"];
    // Patient on a machine that is busy: whoever goes away is told nothing, and may be charged all the same.
    let mut load = start("load", &[&load[..], &["--patience-ms", "60000", "--finish-within-ms", "90000"]].concat());

    let mut killed = false;
    while let Some(line) = load.line().await.unwrap() {
        let progress: Progress = serde_json::from_str(&line).unwrap();
        // In the midst of the spike, when every slot is taken.
        if !killed && progress.tidegate.accepted > 200 {
            killed = true;
            worker.kill_9().await.unwrap();
            worker = start("work", &work);
            worker.announced().await.unwrap();
        }
    }
    load.ended().await.unwrap();
    let within = Duration::from_secs(20);
    for process in [worker, intake, gateway] {
        process.stop(within).await.unwrap();
    }
    assert!(killed);
    let (ledger, asked) = (read_ledger(&evidence.ledger).unwrap(), read_asked(&evidence.load).unwrap());
    let verdict = judge(&ledger, &asked, &Books::read(&evidence.wallet).unwrap());
    assert_eq!(verdict.broken, Vec::<String>::new(), "{:?}", verdict.side);
    assert_eq!((verdict.side.sent, verdict.side.accepted), (646, 646));
}

#[test]
fn a_file_with_a_wrong_line_is_taken_and_ends_with_1() {
    let directory = tempfile::tempdir().unwrap();
    let (file, store) = (directory.path().join("in.ndjson"), directory.path().join("d.db"));
    std::fs::write(&file, "{\"deposit\":\"d1\",\"account\":\"a\",\"cents\":1}\nwrong\n").unwrap();
    let output = deposits(&["take", text(&file), "--database", text(&store)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 lines: 1 added, 0 known, 1 wrong\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("in.ndjson:2: "), "{said}");
}

#[tokio::test]
async fn a_child_stops_when_its_parent_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_deposits"))
        .args(["gateway", "--ledger", text(&directory.path().join("ledger")), "--stop-with-stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"listening ");
    drop(child.stdin.take());
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    assert!(ended.expect("the gateway went on without its parent").unwrap().success());
}

#[test]
fn an_unknown_mode_is_refused_with_the_modes_there_are() {
    let output = deposits(&["gateway", "--ledger", "x", "--mode", "magic"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`magic`") && said.contains("idempotent, lookup or none"), "{said}");
}
