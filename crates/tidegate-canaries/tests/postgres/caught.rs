//! Breaks one rule at a time in a copy of this process, and demands that a test of the engine fails.

use std::collections::BTreeSet;
use std::path::Path;

use tidegate_canaries::{CAUGHT_ON_POSTGRES, Canary};
use tidegate_pgcluster::{Cluster, TEST_POSTGRES};

use crate::copies::{all_are_caught, all_pass};

/// All copies share one server.
fn server() -> [(&'static str, String); 1] {
    [(TEST_POSTGRES, Cluster::shared().url())]
}

#[test]
fn every_canary_is_caught_by_its_test_within_a_minute() {
    all_are_caught(CAUGHT_ON_POSTGRES, &server());
}

#[test]
fn with_nothing_broken_the_same_tests_pass() {
    all_pass(CAUGHT_ON_POSTGRES, &server());
}

/// The rules that stand in the source of an engine.
fn broken_in(engine: &str) -> BTreeSet<Canary> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(engine).join("src");
    let mut found = BTreeSet::new();
    for file in source.read_dir().unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for rest in text.split("Canary::").skip(1) {
            let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            found.extend(Canary::ALL.iter().filter(|canary| format!("{canary:?}") == name));
        }
    }
    found
}

#[test]
fn every_rule_that_an_engine_keeps_can_be_broken_in_both_and_stands_in_the_table() {
    let here = broken_in("tidegate-postgres");
    assert_eq!(here, broken_in("tidegate-sqlite"));
    let listed: Vec<Canary> = CAUGHT_ON_POSTGRES.iter().map(|caught| caught.canary).collect();
    assert_eq!(listed, Vec::from_iter(here), "each once, in the order of the protocol");
}
