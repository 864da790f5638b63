//! Whether the handlers of this program can read what is stored, asked before the program is rolled out.
//!
//! Only the application's own binary has its handlers, so the check belongs there: a command of its own that calls
//! [`WorkerBuilder::check`](crate::WorkerBuilder::check). It reads page by page beside running workers and writes nothing.

use std::collections::BTreeMap;
use std::fmt;

use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, MessageId, QueueName};
use tidegate_core::lifecycle::State;
use tidegate_core::message::Failure;
use tidegate_core::store::{Filter, Store};

use crate::handler::Handler;

/// How many messages are read at once.
const PAGE: u32 = 500;
/// The most undecodable messages that are listed; the others are counted.
const MOST_LISTED: usize = 1000;

/// What may still be handed to a handler. Completed, failed and cancelled messages have had their end.
const MAY_RUN: [State; 4] = [State::Ready, State::Leased, State::Parked, State::Dead];

/// What [`WorkerBuilder::check`](crate::WorkerBuilder::check) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages whose payload was decoded.
    pub decoded: u64,
    /// Messages of a newer version than this program knows: they wait for a newer one, and are no reason against this.
    pub newer: u64,
    /// Messages whose payload does not decode: claimed by this program they would be dead at once.
    pub undecodable: u64,
    /// The first thousand of those.
    pub listed: Vec<Undecodable>,
}

/// A message whose payload does not decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// Which message.
    pub id: MessageId,
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// The version of its payload.
    pub version: u32,
    /// Where it stands.
    pub state: State,
    /// Why it does not decode.
    pub failure: Failure,
}

impl Report {
    /// Whether this program can run everything that is stored for it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.undecodable == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Undecodable { id, queue, kind, version, state, failure } in &self.listed {
            writeln!(f, "{id} {kind} version {version}, {state} in queue {queue}: {}", failure.detail)?;
        }
        let Self { decoded, newer, undecodable, listed } = self;
        let unlisted = *undecodable - u64::try_from(listed.len()).unwrap_or(*undecodable);
        if unlisted > 0 {
            writeln!(f, "and {unlisted} more")?;
        }
        write!(f, "{decoded} decode, {undecodable} do not, {newer} wait for a newer version of the program")
    }
}

/// Reads every message of these kinds that may still run.
pub(crate) async fn run(store: &dyn Store, handlers: &BTreeMap<Kind, Handler>) -> Result<Report, StoreError> {
    let mut report = Report::default();
    for handler in handlers.values() {
        of_kind(store, handler, &mut report).await?;
    }
    report.listed.sort_by_key(|undecodable| undecodable.id);
    Ok(report)
}

async fn of_kind(store: &dyn Store, handler: &Handler, report: &mut Report) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let kind = Some(handler.kind.clone());
        let filter = Filter { kind, states: MAY_RUN.to_vec(), after, limit: PAGE, ..Filter::default() };
        let ids: Vec<MessageId> = store.list(filter).await?.into_iter().map(|summary| summary.id).collect();
        let Some(last) = ids.last().copied() else { return Ok(()) };
        // One that ended and was forgotten between the two reads needs no handler any more.
        for view in store.inspect(ids).await?.into_iter().flatten() {
            let message = view.message;
            if message.version > handler.version {
                report.newer += 1;
                continue;
            }
            let Err(failure) = handler.check(message.version, &message.payload) else {
                report.decoded += 1;
                continue;
            };
            report.undecodable += 1;
            if report.listed.len() < MOST_LISTED {
                let (id, queue, kind, version) = (message.id, message.queue, message.kind, message.version);
                report.listed.push(Undecodable { id, queue, kind, version, state: view.state, failure });
            }
        }
        after = Some(last);
    }
}
