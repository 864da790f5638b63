//! The command as its users meet it: a process, its two outputs and its exit code.
//!
//! `desk` runs the program and prepares stores; the rest is by subject. What `--json` prints is compared as text, with
//! placeholders for ids and times: it is a promise to scripts.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

mod again;
mod bad_input;
mod care;
mod demo;
mod deploy;
mod desk;
mod documents;
mod enqueue;
mod grafana;
mod help;
mod inspect;
mod logs;
mod operate;
mod reconcile;
mod remote;
mod serve;
mod server;
mod slow_clients;
mod terminal;
mod torture;
#[cfg(feature = "otlp")]
mod traces;
mod transcript;
mod triage;
