//! What the PostgreSQL engine does: the conformance suite of every engine, and what only this one has.

mod doctor;
mod duties;
mod engine;
mod enqueue_function;
mod enqueue_in;
mod erase;
mod fixture;
mod lost;
mod model_check;
mod operators;
mod plans;
mod pooler;
mod races;
mod refused;
mod restored;
mod through;
mod wake_ups;
mod within;

mod conformance {
    tidegate_testkit::conformance!(crate::engine::Postgres);
}
