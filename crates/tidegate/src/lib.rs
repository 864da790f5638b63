//! Runs the work that must take effect exactly once, in the background, whatever crashes.
//!
//! A program opens a [`Tidegate`], enqueues [`Message`]s and starts a [`Worker`] with a handler for each kind. What a
//! handler does to the outside world goes through [`Context::effect`], which writes down the intent before the call and
//! the answer after it, so that a lost reply is cleared up instead of guessed about.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use serde::{Deserialize, Serialize};
//! use tidegate::{Context, Handled, Message, Tidegate};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet { name: String }
//!
//! impl Message for Greet {
//!     const KIND: &'static str = "greet";
//!     type Answer = String;
//!     fn key(&self) -> String { format!("greet-{}", self.name) }
//! }
//!
//! async fn greet(_: Context, message: Greet) -> Handled<String> {
//!     Ok(format!("hello, {}", message.name))
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let tide = Tidegate::open("tidegate.db").await?;
//! let worker = tide.worker().handle(greet).start().await?;
//! let sent = tide.enqueue(Greet { name: "Ada".into() }).await?;
//! println!("{}", sent.answer(Duration::from_secs(5)).await?.completed()?);
//! worker.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The life of an attempt is one function, `attempt::run`. What a message becomes is decided in `tidegate-core`
//! ([`lifecycle`]), what an effect may do next in [`journal`]; a store persists both.

mod address;
mod answer;
mod attempt;
mod check;
mod client;
mod context;
mod effect;
pub mod engine;
mod handler;
pub mod http;
mod instrumented;
mod keepalive;
mod maintenance;
mod news;
mod options;
mod payload;
#[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "only `testing` looks, and it stands on SQLite"))]
mod probe;
mod process;
mod settler;
pub mod telemetry;
#[cfg(feature = "sqlite")]
pub mod testing;
pub mod trace;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transactional;
mod waiter;
mod worker;

pub use address::{Address, Server};
pub use answer::{Answer, Flow, NotCompleted, Sent};
pub use check::{Report, Undecodable};
pub use client::{Builder, Tidegate};
pub use context::Context;
pub use effect::{Effect, EffectAnswer, EffectBuilder, Found};
pub use engine::Engine;
pub use handler::{Handled, HandlerError, Message, Rejection};
pub use maintenance::Housekeeping;
pub use news::Wakeups;
pub use options::Options;
pub use telemetry::Metrics;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use transactional::Transactional;
#[cfg(feature = "postgres")]
pub use transactional::Working;
pub use worker::{Drained, Worker, WorkerBuilder};

/// For `tidegate-sim` alone: no part of what this crate promises.
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation {
    pub use crate::process::{Adopted, Process};
}

#[doc(hidden)]
pub use tidegate_core::canary;
pub use tidegate_core::effect as journal;
pub use tidegate_core::effect::EffectKey;
pub use tidegate_core::id::{
    EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, TokenName, WorkerId,
};
pub use tidegate_core::lifecycle::State;
pub use tidegate_core::message::{Failure, Priority};
pub use tidegate_core::retry::{Backoff, Policy};
pub use tidegate_core::{
    Clock, Random, Store, StoreError, StoreErrorKind, SystemClock, SystemRandom, Timestamp, canonical, clock, doctor,
    erase, error, explain, group, id, lifecycle, message, migration, retry, store, token,
};

/// Where `tidegate torture` has its child processes die; of no use to an application.
#[doc(hidden)]
pub use tidegate_core::failpoint;

#[cfg(feature = "postgres")]
pub use tidegate_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use tidegate_sqlite as sqlite;

/// The programs in the guides are run as tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/guides/idempotent-handlers.md")]
    struct IdempotentHandlers;
    #[cfg(feature = "reqwest")]
    #[doc = include_str!("../../../docs/guides/timeout-after-charge.md")]
    struct TimeoutAfterCharge;
    #[doc = include_str!("../../../docs/guides/testing.md")]
    struct Testing;
    #[doc = include_str!("../../../docs/guides/payload-versions.md")]
    struct PayloadVersions;
    #[doc = include_str!("../../../docs/operations/disk-full.md")]
    struct DiskFull;
}
