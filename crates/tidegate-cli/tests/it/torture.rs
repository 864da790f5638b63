//! The torture, small: its processes, its faults, its audit, and that the audit can fail.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn torture(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["torture", "--lease", "1s", "--dir"]).arg(directory).args(args);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Processes with this directory on their command line, by their numbers.
fn left_behind(directory: &Path) -> Vec<String> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of_run = |entry: &std::fs::DirEntry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(directory.to_str().unwrap())
    };
    all.flatten().filter(of_run).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_small_torture_passes_with_every_failpoint_killed_and_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("run");
    let faults =
        ["--kills", "50", "--stops", "5", "--redeploys", "3", "--failpoints", "first", "--seed", "5", "--json"];
    let output = torture(&dir, &faults).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}"));
    assert_eq!(report["pass"], true);
    assert!(count("/faults/kills") >= 50 && count("/faults/stops") >= 5, "{report}");
    assert_eq!(count("/faults/redeploys"), 3);
    let points = report["faults"]["failpoints"].as_object().unwrap();
    let unreached: Vec<_> = points.iter().filter(|(_, point)| point["reached"] == 0).map(|(name, _)| name).collect();
    assert_eq!(unreached, Vec::<&String>::new());
    assert_eq!(points.len() + report["faults"]["not_applicable"].as_array().unwrap().len(), 41);
    assert!(count("/deposits/accepted") > 50 && count("/recovery/messages") > 0, "{report}");
    for zero in ["/deposits/lost", "/deposits/unexpected", "/deposits/duplicated", "/effects/duplicates"] {
        assert_eq!(count(zero), 0, "{zero}");
    }
    assert_eq!(left_behind(&dir), Vec::<String>::new());
}

#[test]
fn a_gateway_that_does_not_keep_its_promise_is_found_by_the_audit() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("run");
    let faults = ["--kills", "15", "--stops", "1", "--redeploys", "1", "--failpoints", "none", "--seed", "5"];
    let output = torture(&dir, &[&faults[..], &["--gateway-really", "none"]].concat()).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for line in ["TORTURE: FAIL   seed 5", "happened twice, by the gateway's ledger (", "doctor"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(dir.join("gateway.ledger").exists(), "what failed is kept");
    assert_eq!(left_behind(&dir), Vec::<String>::new());
}

#[test]
fn ctrl_c_ends_every_process_and_says_what_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("run");
    let mut command = torture(&dir, &["--for", "10m"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let attacked = |line: &str| line.contains("killed") && !line.contains("killed 0 ");
    assert!(lines.by_ref().any(|line| attacked(&line.unwrap())), "it ended before anything was killed");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains(dir.to_str().unwrap())), "{rest:?}");
    // Killed children are gone when their parent has ended; the system may need a moment to say so.
    let gone = (0..200).any(|_| {
        let gone = left_behind(&dir).is_empty();
        if !gone {
            std::thread::park_timeout(Duration::from_millis(25));
        }
        gone
    });
    assert!(gone, "{:?}", left_behind(&dir));
}

#[test]
fn a_directory_that_holds_something_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mine.txt"), "mine").unwrap();
    let output = torture(directory.path(), &["--kills", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("is not empty"), "{}", said(&output));
    let too_short = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(["torture", "--lease", "10ms"]).output().unwrap();
    assert_eq!(too_short.status.code(), Some(2));
}
