//! What an engine of Tidegate must pass, and what a test of anything above one needs.
//!
//! - [`mod@conformance`] and [`conformance!`]: every rule of the protocol that a store can show, one case each; an engine runs all of them.
//! - [`model`]: a store in memory that states the rules anew, so that a slip in the core or an engine shows.
//! - [`check`]: random commands on the model and on an engine, compared after each; replayed from a seed, minimised.
//! - [`faulty`]: a store that fails, delays, reorders and repeats calls as a network and a crash would.
//! - [`recount`]: the counters of a store, counted again from histories, audit rows and views.
//! - [`clock`], [`engine`]: time and chance held in the hand; what an engine gives to be tried.
//!
//! The kit is used in tests and panics like one. It reads no environment and no clock but those it is given.

pub mod check;
pub mod clock;
pub mod conformance;
pub mod engine;
pub mod faulty;
pub mod model;
pub mod recount;

pub use clock::{ManualClock, SeededRandom};
pub use engine::{Claimer, Engine, Place, Taken};

/// Runs a future to its end on this thread.
///
/// # Panics
/// When called from within a runtime.
pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O needs nothing of the machine")
        .block_on(future)
}
