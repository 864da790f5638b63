//! Long runs of the simulation.
use std::time::{Duration, Instant};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let from: u64 = args[1].parse().unwrap();
    let to: u64 = args[2].parse().unwrap();
    let hours: f64 = args[3].parse().unwrap();
    let tries: u32 = args.get(4).map_or(0, |t| t.parse().unwrap());
    for seed in from..to {
        let settings = tidegate_sim::Settings::of(seed, Duration::from_secs_f64(hours * 3600.0));
        let started = Instant::now();
        match tidegate_sim::hunt(&settings, tries) {
            Ok(report) => println!(
                "{seed} ok in {:?}: {} msgs {} h {} faults {} events {:x} {:?} {:?} eff {} runs {}",
                started.elapsed(),
                report.messages,
                report.simulated_ms / 3_600_000,
                report.all_faults(),
                report.events,
                report.trace,
                report.ended,
                report.faults,
                report.effects,
                report.runs
            ),
            Err(failure) => println!("FAILED in {:?} {failure}", started.elapsed()),
        }
    }
}
