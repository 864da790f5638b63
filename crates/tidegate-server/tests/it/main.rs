//! The API over real connections on loopback, on a real store in a directory of its own.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

mod cloudevents;
mod document;
mod enqueue;
mod enqueue_many;
mod guide;
mod hostile;
mod limits;
mod observe;
mod open;
mod operations;
mod operators;
mod rates;
mod read;
mod scopes;
mod slow;
mod stage;
mod tls;

// Of workers.
mod claims;
mod effects;
mod guide_workers;
mod settlements;
mod thin;
