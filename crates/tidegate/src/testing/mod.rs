//! Tests of handlers, on the real engine and through the real attempt code, without a worker's loop and without waiting.
//!
//! A [`Harness`] runs messages inline under a [`VirtualClock`], so that retries, delays and quarantines take no time; it
//! loses the reply of a call, counts sends by effect key, and shows what was enqueued. [`prove_idempotent`] goes further:
//! it kills the process at every boundary of a run and compares what took effect. Neither replaces anything of the
//! library: what they run is what a worker runs.
//!
//! Use the multi-threaded or the current-thread runtime of tokio as it is. Under tokio's paused time the time-outs of
//! handlers and sends would run out while the store writes.

mod boundary;
mod clock;
mod harness;
mod prove;
mod recorder;
mod rig;
mod scratch;

pub use boundary::Boundary;
pub use clock::VirtualClock;
pub use harness::{Harness, Ran};
pub use prove::{Interrupted, NotProven, Proof, Refuted, World, prove_idempotent};
