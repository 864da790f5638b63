//! The payments reference application: take a deposit (authorise, capture, credit, notify) so that it takes effect once.
//!
//! This library holds the surroundings that do not know Tidegate: the payment [`gateway`] with its own ledger and
//! scripted faults, the synchronous [`twin`] (the usual code, for comparison), the [`load`] generator that sends one
//! seeded [`trace`] to both, and the [`proof`], which is computed from the gateway's ledger and from what the client
//! of each side read, never from a side's own store. Everything listens on 127.0.0.1 and nothing leaves the machine.

pub mod clock;
pub mod gateway;
pub mod load;
pub mod proof;
pub mod signal;
pub mod trace;
pub mod twin;
