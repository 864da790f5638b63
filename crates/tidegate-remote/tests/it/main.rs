//! A store over HTTP in front of the server's own router: in this process where nothing of a network matters, over sockets
//! where it does.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

mod conformance;
mod lost;
mod model_check;
mod network;
mod refused;
mod stage;
mod verbs;
mod worker;
