//! Rules of the protocol, broken one at a time in the library and in the core: the simulation must notice.
//!
//! One test, because a broken rule is broken for the whole process.

use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::{Clock as _, SystemClock};
use tidegate_sim::{Failure, Settings, Violation};

/// Those that show only where what is broken meets what goes wrong around it.
const CAUGHT: &[Canary] = &[
    Canary::AttemptInEffectKey,
    Canary::EffectBeforeIntent,
    Canary::TimeoutReadAsNotDone,
    Canary::NotDoneClosesLostSend,
    Canary::LookUpWithoutQuarantine,
    Canary::AtMostOnceResent,
    Canary::TerminalWithOpenEffect,
    Canary::NotDoneCounted,
];

/// How many faults a shortened script may have: they are hundreds before.
const SHORT: usize = 8;

fn busy(seed: u64) -> Settings {
    let whole = Settings::of(seed, Duration::from_secs(1_800));
    let clients_per_hour = whole.clients_per_hour.clamp(900, 1_800);
    Settings { clients_per_hour, faults_per_hour: clients_per_hour / 2, ..whole }
}

fn catch(canary: Canary, seeds: u64) -> Option<(u64, Violation)> {
    canary::set(Some(canary));
    let caught = (1..=seeds).find_map(|seed| Some((seed, tidegate_sim::run(&busy(seed)).err()?)));
    canary::set(None);
    caught
}

#[test]
fn each_rule_that_is_broken_is_noticed() {
    let clock = SystemClock::new();
    assert_eq!(tidegate_sim::run(&busy(1)).err(), None, "with nothing broken, everything holds");
    let (mut missed, mut long) = (Vec::new(), Vec::new());
    for canary in CAUGHT {
        let began = clock.monotonic();
        let Some((seed, violation)) = catch(*canary, 30) else {
            missed.push(canary.name());
            continue;
        };
        let took = clock.monotonic().saturating_sub(began);
        println!("{}: seed {seed} in {took:.1?}: {violation}", canary.name());
        let failure = shorten(*canary, seed);
        println!("{failure}");
        if failure.script.len() > SHORT {
            long.push((canary.name(), failure.script.len()));
        }
    }
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
    assert!(long.is_empty(), "nobody reads a script of more than {SHORT} faults: {long:?}");
}

/// The script of a failing seed, shortened.
fn shorten(canary: Canary, seed: u64) -> Box<Failure> {
    canary::set(Some(canary));
    let hunted = tidegate_sim::hunt(&busy(seed), 150);
    canary::set(None);
    hunted.expect_err("it failed before")
}
