//! What a power cut may leave of a store, opened again and compared with what was answered.
//!
//! A process that is killed loses nothing it wrote: the kernel still has it. A machine that loses power loses whatever was
//! not synced, in parts and in any order. This crate records what the engine does to its files (`shim.rs`), works out what
//! a disk may hold after a cut at any operation (`disk.rs`), and has the real engine open it (`verify.rs`): every answered
//! call is there, to the byte, and nothing is half there. `workload.rs` is the life that is cut, `campaign.rs` cuts many.
//!
//! Linux only: elsewhere the crate is empty. `docs/reliability/power-loss.md` says what is simulated and what is not.

#![cfg(target_os = "linux")]

mod ack;
pub mod campaign;
pub mod disk;
pub mod shim;
pub mod verify;
pub mod workload;
