//! The tests of this crate: one binary. Figures of long runs are in `docs/reliability/power-loss.md`.
#![cfg(target_os = "linux")]

mod failing;
mod lints;
mod power;
