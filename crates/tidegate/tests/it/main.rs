//! The library on the SQLite engine, in one process and in several handles on one file, as several processes would be.

mod client;
mod effects;
mod faults;
mod follow_ups;
mod metrics;
mod operators;
mod stage;
mod worker;
