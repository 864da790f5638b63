//! The API over real connections on loopback, on a real store in a directory of its own.

mod cloudevents;
mod document;
mod enqueue;
mod enqueue_many;
mod hostile;
mod limits;
mod observe;
mod open;
mod read;
mod scopes;
mod slow;
mod stage;
mod tls;
