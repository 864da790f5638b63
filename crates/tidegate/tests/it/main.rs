//! The library on the SQLite engine, in one process and in several handles on one file, as several processes would be.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say")]

mod client;
mod effects;
mod failpoints;
mod faults;
mod follow_ups;
mod metrics;
mod operators;
mod payload_versions;
mod restored;
mod review;
#[cfg(feature = "postgres")]
mod rolling_deploy;
mod settings;
mod stage;
mod testing;
mod worker;
