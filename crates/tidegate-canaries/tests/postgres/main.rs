//! The tests of the PostgreSQL engine in a binary of their own that can be broken, and whether they notice. The rules are
//! those that an engine keeps itself.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say")]

mod caught;
#[path = "../it/copies.rs"]
mod copies;

/// The suite of every engine, on this one.
mod conformance {
    tidegate_testkit::conformance!(crate::engine::Postgres);
}

#[path = "../../../tidegate-postgres/tests/it/broken_commits.rs"]
mod broken_commits;
#[path = "../../../tidegate-postgres/tests/it/engine.rs"]
mod engine;
#[path = "../../../tidegate-postgres/tests/it/fixture.rs"]
#[expect(dead_code, reason = "the engine's own tests need all of it")]
mod fixture;
