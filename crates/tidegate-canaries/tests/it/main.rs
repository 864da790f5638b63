//! The tests of the core, the engine and the library in one binary that can be broken, and whether they notice.
//!
//! `TIDEGATE_CANARY=<name>` breaks one rule of this process. `caught.rs` does that to copies of it, one canary each.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say")]

mod broken_commits;
mod caught;
mod copies;
mod decisions;

/// The suite of every engine, on the one that is shipped.
mod conformance {
    tidegate_testkit::conformance!(crate::engine::Sqlite);
}

#[path = "../../../tidegate-sqlite/tests/it/engine.rs"]
mod engine;
#[path = "../../../tidegate-sqlite/tests/it/model_check.rs"]
mod model_check;

#[path = "../../../tidegate/tests/it/client.rs"]
mod client;
#[path = "../../../tidegate/tests/it/effects.rs"]
mod effects;
#[path = "../../../tidegate/tests/it/faults.rs"]
mod faults;
#[path = "../../../tidegate/tests/it/follow_ups.rs"]
mod follow_ups;
#[path = "../../../tidegate/tests/it/operators.rs"]
mod operators;
#[path = "../../../tidegate/tests/it/restored.rs"]
mod restored;
#[path = "../../../tidegate/tests/it/review.rs"]
mod review;
#[path = "../../../tidegate/tests/it/stage.rs"]
mod stage;
#[path = "../../../tidegate/tests/it/testing.rs"]
mod testing;
#[path = "../../../tidegate/tests/it/worker.rs"]
mod worker;
