//! What the PostgreSQL engine does: the conformance suite of every engine, and what only this one has.

mod broken_commits;
mod doctor;
mod duties;
mod engine;
mod enqueue_function;
mod enqueue_in;
#[cfg(feature = "sqlx")]
mod enqueue_in_sqlx;
mod erase;
mod fixture;
mod leases;
mod log_bytes;
mod lost;
mod many;
mod migrated;
mod model_check;
mod operators;
mod plans;
mod pooler;
mod process;
mod races;
mod refused;
mod restored;
mod rolling;
mod round_trips;
mod through;
mod versions;
mod wake_ups;
mod wire;
mod within;

mod conformance {
    tidegate_testkit::conformance!(crate::engine::Postgres);
}
