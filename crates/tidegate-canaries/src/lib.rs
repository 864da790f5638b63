//! Whether the tests of Tidegate would notice.
//!
//! [`CAUGHT`] says of every rule that can be broken ([`Canary`]) which test fails when it is. `tests/it` holds those tests,
//! the very ones of the engine and the library, in a binary that can be broken: it runs itself again for each canary, in a
//! process of its own, and demands that the test fails, and that all of them pass when nothing is broken. `tests/postgres`
//! does the same with the tests of the other engine, for the rules that an engine keeps itself.
//!
//! [`duplicates`] counts what the rules are worth: charges made twice per million keys, under one schedule of faults, by
//! the protocol of a usual case study and by ours.

mod caught;
pub mod duplicates;

pub use caught::{CAUGHT, CAUGHT_ON_POSTGRES, Caught, page};
pub use tidegate_core::canary::Canary;
