//! The payments reference application: take a deposit (authorise, capture, credit, notify) so that it takes effect
//! once.
//!
//! [`intake`] takes deposits over HTTP or from a file, [`steps`] carries them out, [`books`] is the wallet that has to
//! balance, [`operator`] the person who resolves what only a person may. All of that uses nothing but `tidegate`.
//!
//! Around it stands a world that does not know Tidegate: the payment [`gateway`] with its own ledger and scripted
//! faults, the synchronous [`twin`] (the usual code, for comparison), the [`load`] generator that sends one seeded
//! [`trace`] to both, and the [`proof`], which is computed from the gateway's ledger and from what the customers of
//! each side read, never from a side's own store. [`soak`] sends a file of deposits through it all while the worker is
//! killed. On a PostgreSQL server, the demo and the torture have a [`schema`] of their own.
//!
//! One program plays all the [`role`]s, each in a [`process`] of its own; those that listen are a
//! [`service`]. Everything listens on 127.0.0.1 and nothing
//! leaves the machine.

pub mod books;
pub mod clock;
pub mod gateway;
pub mod intake;
pub mod load;
pub mod operator;
pub mod process;
pub mod proof;
pub mod role;
pub mod schema;
pub mod service;
pub mod signal;
pub mod soak;
pub mod steps;
pub mod trace;
pub mod twin;

pub use role::{Role, RoleArgs, run_role};
