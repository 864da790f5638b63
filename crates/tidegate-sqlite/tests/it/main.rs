//! What the SQLite engine does: the conformance suite of every engine, and what only this one has.

mod backup;
mod bit_flips;
mod copier;
mod disk_full;
mod doctor;
mod engine;
mod erase;
mod fixture;
mod golden;
mod groups;
mod model_check;
mod open;
mod plans;
mod review;
mod within;

mod conformance {
    tidegate_testkit::conformance!(crate::engine::Sqlite);
}
