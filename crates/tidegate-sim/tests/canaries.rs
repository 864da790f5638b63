//! Rules of the protocol, broken one at a time in the library and in the core: the simulation must notice.
//!
//! One test, because a broken rule is broken for the whole process.

use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::{Clock as _, SystemClock};
use tidegate_sim::{Settings, Violation};

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
fn every_rule_that_only_a_simulation_breaks_on_is_missed() {
    let clock = SystemClock::new();
    assert_eq!(tidegate_sim::run(&busy(1)).err(), None, "with nothing broken, everything holds");
    let mut missed = Vec::new();
    for canary in CAUGHT {
        let began = clock.monotonic();
        match catch(*canary, 30) {
            Some((seed, violation)) => {
                let took = clock.monotonic().saturating_sub(began);
                println!("{}: seed {seed} in {took:.1?}: {violation}", canary.name());
            }
            None => missed.push(canary.name()),
        }
    }
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
}
