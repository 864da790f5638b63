//! Kills, stops and restarts real services on one store, under load, and audits afterwards what really happened.
//!
//! The services are the deposits application, each a process that takes deposits and carries them out, all on one file or
//! all on one PostgreSQL database.
//! Producers send deposits in an open loop and write down, synced, what was accepted. A payment gateway with a synced
//! ledger of its own loses replies, is late, answers errors after it charged, and has brown-outs. Meanwhile a seeded plan
//! of faults is carried out: SIGKILL at random and at every failpoint of the protocol, SIGSTOP for longer than the lease,
//! SIGTERM in the midst of the load. A server ends connections as well, between a COMMIT and its answer too, and is
//! restarted as if it had crashed if it was made for the run.
//! The captures may be left to a program in another language, whose workers and whose server are hurt likewise.
//!
//! In the end the faults stop, what is left is worked off, and `audit.rs` asks the gateway's ledger, the wallet's books and
//! the producers' log whether anything was lost or happened twice; the store is asked last, and only about itself.
//!
//! Every process is ended by its number. Nothing is ever killed by name, and no process outlives a run: each ends when its
//! standard input closes.

mod audit;
mod capture;
mod log;
mod plan;
mod producer;
mod recovery;
mod report;
mod run;
mod server;
mod service;
mod stage;
mod victim;

pub use capture::CaptureWith;
pub use plan::{Amount, Failpoints, Faults};
pub use report::{
    CaptureFaults, Check, Deposits, Drains, Effects, FaultCounts, PointCount, Recovery, Report, ServerFaults,
};
pub use run::{Options, Phase, Progress, run};
pub use server::Store;
