//! Follows a gateway's ledger while it grows: how many deposits were charged more often than once so far.
//!
//! For the display only. The proof reads the whole ledger again when the gateway has ended.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::Context;
use deposits::gateway::{LedgerEntry, LedgerResult};

/// A ledger and how far it was read.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    read: u64,
    charged: HashMap<String, i64>,
}

impl Tail {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, charged: HashMap::new() }
    }

    /// Deposits charged more than once, and not refunded, as of now.
    pub(super) fn doubled(&mut self) -> anyhow::Result<u64> {
        let mut text = Vec::new();
        let context = || format!("cannot follow the ledger {}", self.path.display());
        let mut file = File::open(&self.path).with_context(context)?;
        file.seek(SeekFrom::Start(self.read)).with_context(context)?;
        file.read_to_end(&mut text).with_context(context)?;
        // The last line may be half written; it is read next time.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
            let entry: LedgerEntry = serde_json::from_slice(line).with_context(context)?;
            let change = match entry.result {
                LedgerResult::Captured => 1,
                LedgerResult::Refunded => -1,
                LedgerResult::Authorised | LedgerResult::Declined | LedgerResult::Receipt => continue,
            };
            *self.charged.entry(entry.deposit).or_default() += change;
        }
        self.read += whole as u64;
        Ok(self.charged.values().filter(|times| **times > 1).count() as u64)
    }
}
