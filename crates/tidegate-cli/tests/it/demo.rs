//! The demo, whole: its processes, its kill -9 and its proof.

use std::process::{Command, Output};

use serde_json::Value;

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("demo").arg("--fast").args(args).output().unwrap()
}

#[test]
fn the_demo_passes_with_every_gateway_and_prints_the_promised_object() {
    for (seed, mode) in [("1", "idempotent"), ("2", "lookup"), ("3", "none")] {
        let output = demo(&["--json", "--seed", seed, "--gateway", mode]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{mode}: {said}");
        let proof: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&proof["pass"], &proof["gateway"]), (&Value::Bool(true), &mode.into()));
        let count = |side: &str, name: &str| proof[side][name].as_u64().unwrap();
        // On a machine that is busy a customer goes away now and then.
        let (sent, accepted) = (count("tidegate", "sent"), count("tidegate", "accepted"));
        assert!(accepted > 0 && accepted <= sent, "{mode}: {accepted} of {sent}");
        assert_eq!((count("tidegate", "duplicates"), count("tidegate", "charged_but_told_failed")), (0, 0));
        let harm = count("synchronous", "duplicates") + count("synchronous", "charged_but_told_failed");
        assert!(harm > 0, "{mode}: the usual code came through unharmed, so nothing was shown");
        for line in ["kill -9", "quarantine 1500 ms", "outage:"] {
            assert!(said.contains(line), "{mode}: {said}");
        }
        if mode == "none" {
            assert!(said.contains("an operator looks parked deposits up"), "{said}");
        }
    }
}

#[test]
fn lateness_beyond_the_quarantine_shows_the_documented_limit_and_ends_with_1() {
    let output = demo(&["--gateway", "lookup", "--seed", "3", "--lateness-ms", "5000"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("PROOF: FAIL   seed 3   gateway lookup"));
    assert!(said.contains("took effect more than once") && said.contains("the documented limit"), "{said}");
}

#[test]
fn an_unknown_gateway_is_wrong_usage() {
    let output = demo(&["--gateway", "magic"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("idempotent, lookup or none"));
}
