//! What reads bytes from outside, as targets that any bytes are thrown at.
//!
//! A target takes bytes and panics where a promise is broken. "Does not panic" is the least of them: what was read and is
//! written again reads the same, what one reader takes the other one takes, limits hold, and an error is short enough to be
//! read and says where. The same targets run in two ways: with libFuzzer, which looks for new paths (`fuzz/`, by hand), and
//! with the changes of known inputs that [`Drive`] makes, in every run of the tests.
//!
//! Decoders that are private to their crate are called through that crate's feature `fuzz`, which nothing else has.

mod domain;
mod drive;
mod wire;

use std::path::{Path, PathBuf};

pub use drive::Drive;

/// A decoder with its promises.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the file in `fuzz/fuzz_targets` and of the directory in `fuzz/seeds`.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Takes any bytes, and panics where a promise is broken.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, about: &'static str, run: fn(&[u8])) -> Target {
    Target { name, about, run }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("canonical", "payloads, and the canonical text their fingerprint is of", domain::canonical),
    target("names", "names, keys, ids, times and addresses of stores", domain::names),
    target("scopes", "scopes and patterns of tokens", domain::scopes),
    target("retry_after", "what a gateway says of when to come again", domain::retry_after),
    target("enqueue", "a message on its way in", wire::enqueue),
    target("wire", "every other wire form of the HTTP API", wire::wire),
    target("idempotency_key", "the header Idempotency-Key", tidegate_server::fuzz::idempotency_key),
    target("traceparent", "the headers traceparent and tracestate", tidegate_server::fuzz::traceparent),
    target("json_body", "a body of JSON, read strictly", tidegate_server::fuzz::json_body),
    target("cloud_event", "CloudEvents, binary, structured and in batches", tidegate_server::fuzz::cloud_event),
    target("who_asks", "the headers Authorization and Host", tidegate_server::fuzz::who_asks),
    target("query", "what comes after the question mark: waits, filters, pages", tidegate_server::fuzz::query),
    target("remote_answer", "what a server answers, problems above all", tidegate_remote::fuzz::answer),
    target("server_url", "the address of a server", tidegate_remote::fuzz::server_url),
    target("sqlite_row", "rows of the SQLite engine, sealed and not", tidegate_sqlite::fuzz::row),
];

/// Runs the target of a name once.
///
/// # Panics
/// Where a promise is broken, and where there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of TARGETS");
    (target.run)(bytes);
}

/// Where the seeds of a target are: inputs that it knows, and what once broke it.
#[must_use]
pub fn seeds_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(name)
}
