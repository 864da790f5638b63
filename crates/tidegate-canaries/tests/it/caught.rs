//! Breaks one rule at a time in a copy of this process, and demands that a test fails.

use std::io::Read as _;

use tidegate_canaries::{CAUGHT, Canary, page};
use tidegate_core::{Clock as _, SystemClock};

use crate::copies::{Copy, LIMIT, all_are_caught, all_pass, failed, for_each};

/// The rings in the order of what they cost, for a walk from the cheapest on. The tests of one ring share a process.
const RINGS: &[&[&str]] = &[
    &["decisions::"],
    &[
        "client::",
        "effects::",
        "faults::",
        "follow_ups::",
        "operators::",
        "restored::",
        "review::",
        "testing::",
        "worker::",
    ],
    &["conformance::"],
    &["broken_commits::"],
    &["model_check::"],
];

#[test]
fn every_canary_is_caught_by_its_test_within_a_minute() {
    all_are_caught(CAUGHT, &[]);
}

#[test]
fn with_nothing_broken_the_same_tests_pass() {
    all_pass(CAUGHT, &[]);
}

#[test]
fn every_canary_stands_in_the_table_once_in_the_order_of_the_protocol() {
    let listed: Vec<Canary> = CAUGHT.iter().map(|caught| caught.canary).collect();
    assert_eq!(listed, Canary::ALL);
}

#[test]
fn the_page_in_the_documentation_is_this_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reliability/canaries.md");
    let mut written = String::new();
    std::fs::File::open(path).unwrap().read_to_string(&mut written).unwrap();
    assert!(written == page(), "hint: cargo run -p tidegate-canaries -- table > docs/reliability/canaries.md");
}

/// Not a check but a search: which ring notices first, when nobody says where to look. Minutes long, so asked for.
#[test]
#[expect(clippy::disallowed_methods, reason = "how a tester asks for more than usual")]
fn walk() {
    let Ok(asked) = std::env::var("TIDEGATE_CANARY_WALK") else { return };
    let clock = SystemClock::new();
    let wanted: Vec<Canary> = match Canary::named(&asked) {
        Some(canary) => vec![canary],
        None => Canary::ALL.to_vec(),
    };
    let results = for_each(&wanted, |canary| {
        let started = clock.monotonic();
        for ring in RINGS {
            let left = LIMIT.saturating_sub(clock.monotonic() - started);
            let mut copy = Copy::start(Some(*canary), &[ring, &["--test-threads=8"][..]].concat(), &[]);
            if let Ok(line) = copy.says(left, failed) {
                let took = (clock.monotonic() - started).as_secs_f64();
                println!("{:<30} {took:>7.2}  {line}", canary.name());
                return true;
            }
        }
        println!("{:<30}          not caught", canary.name());
        false
    });
    assert!(results.into_iter().all(|caught| caught), "a canary lives");
}
