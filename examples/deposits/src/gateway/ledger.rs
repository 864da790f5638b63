//! The gateway's ledger: what really happened to the money, one JSON object per line, append-only.
//!
//! An answer leaves the gateway only after its entry was written and `fdatasync`ed. One thread writes; entries that
//! wait at the same moment share one `fdatasync`. The ledger is the judge of the proof, so it is read strictly: only a
//! torn last line (no newline, hence never answered) is forgiven; anything else unreadable is an error with its line.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::clock;

/// How many waiting entries share one `fdatasync` at most.
const GREATEST_GROUP: usize = 1024;

/// What a caller asked the gateway to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Hold the amount on the card.
    Authorise,
    /// Take the amount.
    Capture,
    /// Give the amount back.
    Refund,
    /// Tell the customer; harmless however often it is asked.
    Receipt,
}

impl Operation {
    /// The name in paths, in the ledger and in references.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Authorise => "authorise",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Receipt => "receipt",
        }
    }
}

/// What the gateway did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerResult {
    /// The amount is held.
    Authorised,
    /// The amount was taken: the customer is charged.
    Captured,
    /// The card was declined: nothing was held or taken.
    Declined,
    /// The amount was given back.
    Refunded,
    /// A receipt was sent.
    Receipt,
}

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// From 1, without a gap.
    pub seq: u64,
    /// When it was written, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What was asked.
    pub operation: Operation,
    /// The idempotency key, or the caller's reference: the same thing to this gateway.
    pub key: String,
    /// The deposit it belongs to.
    pub deposit: String,
    /// The customer's account.
    pub account: String,
    /// The amount.
    pub cents: i64,
    /// What was done.
    pub result: LedgerResult,
    /// How long a scripted fault held the request before it was processed.
    pub late_ms: u64,
}

/// An entry before the writer gives it its place and time.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) operation: Operation,
    pub(crate) key: String,
    pub(crate) deposit: String,
    pub(crate) account: String,
    pub(crate) cents: i64,
    pub(crate) result: LedgerResult,
    pub(crate) late_ms: u64,
}

impl Draft {
    fn placed(self, seq: u64) -> LedgerEntry {
        LedgerEntry {
            seq,
            at_ms: clock::wall_ms(),
            operation: self.operation,
            key: self.key,
            deposit: self.deposit,
            account: self.account,
            cents: self.cents,
            result: self.result,
            late_ms: self.late_ms,
        }
    }
}

/// Reads a ledger from its file; a torn last line is left out, as the gateway itself would cut it off.
///
/// # Errors
/// The file cannot be read, or a line of it is not an entry with the next sequence number: the error names the line.
pub fn read_ledger(path: &Path) -> anyhow::Result<Vec<LedgerEntry>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read the ledger {}", path.display()))?;
    let (entries, _whole) = parse(&text).with_context(|| format!("the ledger {} is damaged", path.display()))?;
    Ok(entries)
}

/// The entries of a ledger's text, and how many bytes of it are whole lines.
fn parse(text: &[u8]) -> anyhow::Result<(Vec<LedgerEntry>, usize)> {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let mut entries = Vec::new();
    for (index, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let entry: LedgerEntry =
            serde_json::from_slice(line).with_context(|| format!("line {number} is not a ledger entry"))?;
        ensure!(
            entry.seq == number as u64,
            "line {number} carries seq {}, expected {number}; hint: lines were removed, added or reordered",
            entry.seq
        );
        entries.push(entry);
    }
    Ok((entries, whole))
}

struct Append {
    draft: Draft,
    done: oneshot::Sender<Result<LedgerEntry, String>>,
}

/// The open ledger: hands entries to the thread that writes them.
#[derive(Debug)]
pub(crate) struct Ledger {
    sender: mpsc::Sender<Append>,
}

/// The thread behind a [`Ledger`]; it ends when the last handle of the ledger is gone.
pub(crate) type LedgerThread = JoinHandle<()>;

impl Ledger {
    /// Opens or creates the file, cuts a torn last line off, and starts the writer.
    pub(crate) fn open(path: &Path) -> anyhow::Result<(Self, Vec<LedgerEntry>, LedgerThread)> {
        let (file, entries) = open_file(path)?;
        let (sender, receiver) = mpsc::channel();
        let mut writer = Writer { file, last_seq: entries.len() as u64, syncs: 0 };
        let shown = path.display().to_string();
        let thread = std::thread::Builder::new()
            .name("gateway-ledger".to_owned())
            .spawn(move || {
                if let Err(error) = writer.serve(&receiver) {
                    tracing::error!(error = %error, "the ledger {shown} can no longer be written");
                }
            })
            .context("cannot start the ledger's thread")?;
        Ok((Self { sender }, entries, thread))
    }

    /// Writes one entry; returns when it is on disk.
    pub(crate) async fn append(&self, draft: Draft) -> anyhow::Result<LedgerEntry> {
        let (done, written) = oneshot::channel();
        if self.sender.send(Append { draft, done }).is_err() {
            bail!("the ledger stopped after a failed write; hint: restart the gateway");
        }
        match written.await {
            Ok(Ok(entry)) => Ok(entry),
            Ok(Err(why)) => bail!("the ledger could not be written: {why}"),
            Err(_) => bail!("the ledger stopped before this entry was written; hint: restart the gateway"),
        }
    }
}

fn open_file(path: &Path) -> anyhow::Result<(File, Vec<LedgerEntry>)> {
    let context = || format!("cannot open the ledger {}", path.display());
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).truncate(false).open(path).with_context(context)?;
    if let Err(error) = file.try_lock() {
        bail!("the ledger {} is in use: {error}; hint: stop the other gateway", path.display());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).with_context(context)?;
    let (entries, whole) = parse(&text).with_context(|| format!("the ledger {} is damaged", path.display()))?;
    if whole < text.len() {
        tracing::warn!("cut a torn last line of {} bytes off the ledger {}", text.len() - whole, path.display());
        file.set_len(whole as u64).with_context(context)?;
    }
    file.sync_all().with_context(context)?;
    sync_directory(path)?;
    Ok((file, entries))
}

/// A new file survives a crash of the machine only when its directory was synced too.
fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync the directory {}", directory.display()))
}

struct Writer {
    file: File,
    last_seq: u64,
    syncs: u64,
}

impl Writer {
    fn serve(&mut self, receiver: &mpsc::Receiver<Append>) -> std::io::Result<()> {
        while let Ok(first) = receiver.recv() {
            let mut group = vec![first];
            group.extend(receiver.try_iter().take(GREATEST_GROUP - 1));
            self.write(group)?;
        }
        Ok(())
    }

    fn write(&mut self, group: Vec<Append>) -> std::io::Result<()> {
        let mut text = Vec::new();
        let mut placed = Vec::with_capacity(group.len());
        for append in group {
            self.last_seq += 1;
            let entry = append.draft.placed(self.last_seq);
            serde_json::to_writer(&mut text, &entry).map_err(std::io::Error::other)?;
            text.push(b'\n');
            placed.push((entry, append.done));
        }
        let written = self.file.write_all(&text).and_then(|()| self.sync());
        for (entry, done) in placed {
            let answer = match &written {
                Ok(()) => Ok(entry),
                Err(error) => Err(error.to_string()),
            };
            // Nobody waits any more only while the gateway itself is being torn down; the entry stands regardless.
            drop(done.send(answer));
        }
        written
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.syncs += 1;
        loop {
            match self.file.sync_data() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64) -> String {
        format!(
            "{{\"seq\":{seq},\"at_ms\":1,\"operation\":\"capture\",\"key\":\"k{seq}\",\"deposit\":\"d\",\
             \"account\":\"a\",\"cents\":100,\"result\":\"captured\",\"late_ms\":0}}\n"
        )
    }

    fn draft() -> Draft {
        Draft {
            operation: Operation::Capture,
            key: "k".to_owned(),
            deposit: "d".to_owned(),
            account: "a".to_owned(),
            cents: 100,
            result: LedgerResult::Captured,
            late_ms: 0,
        }
    }

    #[test]
    fn a_torn_last_line_is_left_out_wherever_it_was_torn() {
        let last = line(2);
        for kept in 0..last.len() {
            let text = format!("{}{}", line(1), &last[..kept]);
            let (entries, whole) = parse(text.as_bytes()).unwrap();
            assert_eq!((entries.len(), whole), (1, line(1).len()), "torn after {kept} bytes");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_that_names_it() {
        let text = format!("{}{{\"seq\":2,\n{}", line(1), line(3));
        let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
        assert!(error.contains("line 2 is not a ledger entry"), "{error}");
    }

    #[test]
    fn a_missing_line_is_an_error_that_names_the_gap() {
        let text = format!("{}{}", line(1), line(3));
        let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
        assert!(error.contains("line 2 carries seq 3"), "{error}");
    }

    #[test]
    fn entries_that_wait_together_share_one_fdatasync() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let (file, _) = open_file(&path).unwrap();
        let (sender, receiver) = mpsc::channel();
        let mut answers = Vec::new();
        for _ in 0..10 {
            let (done, written) = oneshot::channel();
            sender.send(Append { draft: draft(), done }).unwrap();
            answers.push(written);
        }
        drop(sender);
        let mut writer = Writer { file, last_seq: 0, syncs: 0 };
        writer.serve(&receiver).unwrap();
        assert_eq!(writer.syncs, 1);
        let seqs: Vec<u64> = answers.into_iter().map(|answer| answer.blocking_recv().unwrap().unwrap().seq).collect();
        assert_eq!(seqs, (1..=10).collect::<Vec<u64>>());
        assert_eq!(read_ledger(&path).unwrap().len(), 10);
    }

    #[test]
    fn a_ledger_in_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let _held = open_file(&path).unwrap();
        let error = open_file(&path).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
    }
}
