//! The producers' log: what was sent, and what was accepted. An acceptance counts only when its line is on disk, so that
//! what the audit demands of the store never rests on a memory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use deposits::trace::DepositRequest;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Line {
    /// It is about to be sent for the first time.
    Sent {
        /// What.
        request: DepositRequest,
    },
    /// A service said that it is taken.
    Accepted {
        /// Which.
        deposit: String,
        /// The id it was given.
        id: String,
    },
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Log {
    sender: Option<Sender<Append>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

#[derive(Debug)]
struct Append {
    text: Vec<u8>,
    written: oneshot::Sender<()>,
}

impl Log {
    /// Makes the file, and starts the thread that writes it.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot make the producers' log {}", path.display());
        let file = OpenOptions::new().create_new(true).append(true).open(path).with_context(context)?;
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("producer-log".to_owned()).spawn(move || serve(file, &receiver));
        Ok(Self { sender: Some(sender), thread: Some(thread.with_context(context)?) })
    }

    /// Writes a line; returns when it is on disk.
    pub(crate) async fn append(&self, line: &Line) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line).context("a line of the producers' log is plain data")?;
        text.push(b'\n');
        let (written, on_disk) = oneshot::channel();
        let gone = || "the producers' log can no longer be written";
        self.sender.as_ref().with_context(gone)?.send(Append { text, written }).ok().with_context(gone)?;
        on_disk.await.with_context(gone)
    }

    /// Closes it, and says if a line could not be written.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        drop(self.sender.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended.context("the producers' log could not be written"),
            Some(Err(_)) => bail!("the thread of the producers' log panicked"),
            None => Ok(()),
        }
    }
}

fn serve(mut file: File, receiver: &Receiver<Append>) -> std::io::Result<()> {
    while let Ok(first) = receiver.recv() {
        let mut group = vec![first];
        group.extend(receiver.try_iter().take(255));
        let text: Vec<u8> = group.iter().flat_map(|append| append.text.iter().copied()).collect();
        file.write_all(&text)?;
        file.sync_data()?;
        for append in group {
            // A producer that was cancelled counts nothing; the line stands.
            append.written.send(()).unwrap_or_default();
        }
    }
    Ok(())
}

/// Reads a log back, strictly: a damaged one proves nothing.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    (1..)
        .zip(text.lines())
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("line {number} of {} is damaged", path.display()))
        })
        .collect()
}
