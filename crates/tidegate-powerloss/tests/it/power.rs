//! The engine keeps its promises over power cuts, and one that does not is found out.

use tidegate_powerloss::campaign::{Campaign, Settings, Totals};
use tidegate_powerloss::verify::Harm;
use tidegate_sqlite::Synchronous;

/// Runs chains and gives what was found.
fn run(settings: Settings, chains: u64) -> Totals {
    let mut campaign = Campaign::new(settings, Totals::default()).expect("a directory can be made");
    (0..chains).for_each(|chain| campaign.chain(chain));
    campaign.totals
}

#[test]
fn nothing_answered_is_lost_and_nothing_is_half_there_after_a_power_cut() {
    let totals = run(Settings::default(), 4);
    println!("{} cuts, {} of them different", totals.points, totals.distinct);
    assert_eq!(totals.found, [], "seed 1");
    assert!(totals.points >= 1_700, "{totals:#?}");
    // What it says it tries, it tried.
    assert!(totals.distinct * 10 > totals.points * 8, "{totals:#?}");
    assert!(totals.recoveries >= 8 && totals.errors > 0 && totals.log_starts > 50, "{totals:#?}");
}

/// One life, cut often enough.
fn control(synchronous: Synchronous) -> Totals {
    run(Settings { synchronous, links: 1, calls: 40, points: 80, failing_points: 0, ..Settings::default() }, 2)
}

#[test]
fn a_store_that_does_not_wait_for_its_commits_is_found_out() {
    let totals = control(Synchronous::Normal);
    println!("synchronous=NORMAL: {:?} of {} cuts", totals.violations, totals.points);
    assert!(totals.violations[&Harm::Lost] >= 16, "{totals:#?}");
}

#[test]
fn a_store_that_waits_for_nothing_is_found_out_and_damaged_as_well() {
    let totals = control(Synchronous::Off);
    println!("synchronous=OFF: {:?} of {} cuts", totals.violations, totals.points);
    assert!(totals.violations[&Harm::Lost] >= 8 && totals.violations[&Harm::Corrupt] >= 8, "{totals:#?}");
}

#[test]
fn one_seed_does_the_same_operations_and_another_one_others() {
    let operations = |seed| {
        let settings = Settings { seed, calls: 25, ..Settings::default() };
        let campaign = Campaign::new(settings, Totals::default()).expect("a directory can be made");
        campaign.operations(3).expect("it lives")
    };
    let first = operations(7);
    assert!(first.len() > 100, "{} operations", first.len());
    assert_eq!(first, operations(7));
    assert_ne!(first, operations(8));
}
