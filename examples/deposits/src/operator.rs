//! The person who resolves parked deposits: looks into the gateway's ledger and says what happened.
//!
//! A program plays the part here, for the demo and the tests, by the rules a person has: only parked messages, only
//! from the gateway's own records, and "it did not happen" only when no request of ours can arrive any more.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use tidegate::journal::open_rows;
use tidegate::lifecycle::Resolution;
use tidegate::store::{Act, Filter, Resolve};
use tidegate::{MessageId, State, StoreErrorKind, Tidegate};

use crate::gateway::{LedgerEntry, LedgerResult, read_ledger};
use crate::steps::Done;

/// How many parked messages one round looks at.
const ROUND: u32 = 500;

/// What one round of an operator did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Effects that were found in the ledger.
    pub happened: u64,
    /// Effects that were not, after their quarantine.
    pub did_not_happen: u64,
    /// Effects that are not in the ledger yet, and may still arrive.
    pub must_wait: u64,
}

impl Round {
    /// Effects that were resolved.
    #[must_use]
    pub fn resolved(self) -> u64 {
        self.happened + self.did_not_happen
    }
}

impl std::ops::AddAssign for Round {
    /// Adds up what was done; who must wait is what the later round says.
    fn add_assign(&mut self, later: Self) {
        self.happened += later.happened;
        self.did_not_happen += later.did_not_happen;
        self.must_wait = later.must_wait;
    }
}

/// Looks through the parked messages once and resolves what the ledger decides.
///
/// # Errors
/// The ledger or the store cannot be read; a resolution is refused for another reason than the time.
///
/// # Cancel safety
/// Safe: each resolution is one commit, and resolving again changes nothing.
pub async fn resolve_parked(tide: &Tidegate, ledger: &Path) -> anyhow::Result<Round> {
    let store = tide.store();
    let filter = Filter { states: vec![State::Parked], limit: ROUND, ..Filter::default() };
    let parked: Vec<MessageId> = store.list(filter).await?.into_iter().map(|summary| summary.id).collect();
    let mut round = Round::default();
    if parked.is_empty() {
        return Ok(round);
    }
    let views = store.inspect(parked).await?;
    // Read after the list: what the ledger does not show now was not done before these messages parked.
    let ledger = Ledger::read(ledger)?;
    for view in views.into_iter().flatten().filter(|view| view.state == State::Parked) {
        for row in open_rows(&view.journal) {
            let (resolution, reason) = match ledger.entry(row.effect.name.as_str(), row.key.as_str()) {
                // A declined card took nothing. Sent again it is declined again, and then the answer is known.
                Some(entry) if entry.result != LedgerResult::Declined => {
                    let value = serde_json::to_string(&Done::of_entry(entry)).context("a reference is plain data")?;
                    let reason = format!("entry {} of the gateway's ledger", entry.seq);
                    (Resolution::Happened { value: value.into() }, reason)
                }
                Some(_) | None => (Resolution::DidNotHappen, "not in the gateway's ledger".to_owned()),
            };
            let happened = matches!(resolution, Resolution::Happened { .. });
            let act = Act { actor: "operator".to_owned(), reason };
            let resolve = Resolve { id: view.message.id, effect: row.effect.clone(), resolution, act };
            match store.resolve(resolve).await {
                Ok(_) if happened => round.happened += 1,
                Ok(_) => round.did_not_happen += 1,
                // Before its quarantine ends "not there" proves nothing; the next round asks again.
                Err(error) if error.kind() == StoreErrorKind::Conflict && !happened => round.must_wait += 1,
                Err(error) => return Err(error).with_context(|| format!("cannot resolve {}", view.message.id)),
            }
        }
    }
    Ok(round)
}

/// The gateway's ledger, by what an operator searches for.
struct Ledger {
    entries: HashMap<(&'static str, String), LedgerEntry>,
}

impl Ledger {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut entries = HashMap::new();
        for entry in read_ledger(path)? {
            entries.entry((entry.operation.name(), entry.key.clone())).or_insert(entry);
        }
        Ok(Self { entries })
    }

    fn entry(&self, operation: &str, key: &str) -> Option<&LedgerEntry> {
        let operation = ["authorise", "capture", "refund", "receipt"].into_iter().find(|name| *name == operation)?;
        self.entries.get(&(operation, key.to_owned()))
    }
}
