//! The API over real connections on loopback, on a real store in a directory of its own.

mod enqueue;
mod limits;
mod open;
mod scopes;
mod slow;
mod stage;
mod tls;
