//! The tests of this crate: one binary.
#![cfg(target_os = "linux")]

use tidegate_powerloss::campaign::{Campaign, Settings, Totals};

#[test]
fn nothing_answered_is_lost_at_any_point() {
    let mut campaign = Campaign::new(Settings::default(), Totals::default()).unwrap();
    for chain in 0..12 {
        campaign.chain(chain);
    }
    println!("{:#?}", campaign.totals);
    assert_eq!(campaign.totals.broken(), 0);
}
