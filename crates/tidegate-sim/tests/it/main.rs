//! The simulation as a test: the same seed is the same run, fixed and fresh seeds hold, and what is broken is caught.

use std::time::Duration;

use tidegate_core::{Clock as _, Random as _, SystemClock, SystemRandom};
use tidegate_sim::{Broken, Settings};

/// A run that a debug build makes in a few seconds.
fn short(seed: u64) -> Settings {
    let whole = Settings::of(seed, Duration::from_secs(900));
    let clients_per_hour = whole.clients_per_hour.clamp(600, 1_200);
    Settings { clients_per_hour, faults_per_hour: clients_per_hour / 2, ..whole }
}

fn holds(settings: &Settings) -> tidegate_sim::Report {
    match tidegate_sim::hunt(settings, 30) {
        Ok(report) => report,
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let first = holds(&short(7));
    assert_eq!(holds(&short(7)), first, "a run must come from its seed and nothing else");
    assert_ne!(holds(&short(8)).trace, first.trace);
}

#[test]
fn fixed_seeds_hold_their_invariants() {
    let mut faults = 0;
    for seed in 1..=4 {
        faults += holds(&short(seed)).all_faults();
    }
    assert!(faults > 100, "{faults} faults are no simulation of faults");
}

#[test]
fn a_fresh_seed_holds_its_invariants() {
    let mut bytes = [0; 6];
    SystemRandom.fill(&mut bytes);
    let seed = bytes.iter().fold(0_u64, |seed, byte| seed << 8 | u64::from(*byte));
    println!("fresh seed {seed}");
    let report = holds(&short(seed));
    println!("{report:?}");
}

#[test]
fn what_is_broken_on_purpose_is_caught_and_named() {
    // The invariants that may be named: what breaks first depends on the seed.
    #[rustfmt::skip]
    let table: [(Broken, &[&str]); 6] = [
        (Broken::AcknowledgedBeforeCommit, &["I1"]),
        (Broken::AnswerLost,               &["I13"]),
        (Broken::NoFence,                  &["I3", "I4"]),
        (Broken::AttemptInTheKey,          &["I8"]),
        (Broken::NoQuarantine,             &["I7"]),
        (Broken::SentBeforeIntent,         &["I8"]),
    ];
    let clock = SystemClock::new();
    for (broken, named) in table {
        let began = clock.monotonic();
        let caught = (1..=40).find_map(|seed| {
            let settings = short(seed);
            let retention = if broken == Broken::AnswerLost { Duration::from_secs(600) } else { settings.retention };
            tidegate_sim::run(&Settings { broken: Some(broken), retention, ..settings }).err().map(|it| (seed, it))
        });
        let (seed, violation) = caught.unwrap_or_else(|| panic!("{broken:?} was not caught by 40 seeds"));
        println!("{broken:?}: seed {seed} in {:?}: {violation}", clock.monotonic().saturating_sub(began));
        assert!(named.contains(&violation.invariant), "{broken:?} was named {violation}");
    }
}
