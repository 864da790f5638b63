//! The domain of Tidegate: what a message is, how it lives, what an effect may do, and what a store must keep.
//!
//! A **message** names one intended effect by its idempotency key. It is enqueued once, claimed under a **lease**, run by
//! a handler, and *settled*: completed, failed, retried, dead, cancelled or parked. Inside a handler every external side
//! effect is journalled: a durable *intent* before the call, one of four answers after it, and while an answer is missing
//! nothing about the message becomes final.
//!
//! This crate decides; it performs no I/O. [`lifecycle`] alone chooses a next state, [`effect`] alone decides about a row
//! of the journal, [`store`] states what an engine must do with those decisions. Time and randomness are passed in.

pub mod canary;
pub mod canonical;
pub mod clock;
pub mod doctor;
pub mod effect;
pub mod erase;
pub mod error;
pub mod explain;
pub mod failpoint;
pub mod group;
pub mod id;
pub mod lifecycle;
pub mod message;
pub mod migration;
pub mod retry;
mod scan;
pub mod store;
pub mod token;

pub use clock::{Clock, Random, SystemClock, SystemRandom, Timestamp};
pub use error::{StoreError, StoreErrorKind};
pub use id::{EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, TokenName, WorkerId};
pub use store::Store;
