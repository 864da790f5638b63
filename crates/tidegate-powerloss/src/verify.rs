//! Opens what a power cut left, with the real engine, and compares it with the book.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::store::{Enqueued, Filter, MessageView};
use tidegate_core::{Store as _, StoreErrorKind, Timestamp};
use tidegate_sqlite::{Doctor, SqliteStore};
use tokio::runtime::Runtime;

use crate::disk::Image;
use crate::workload::{self, Book, Digest, STORE, Step};

/// How what was found is worse than what was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// Something that was answered is not there.
    Lost,
    /// It cannot be opened, or is damaged.
    Corrupt,
    /// It is neither what it was before a call nor what it was after it.
    Half,
}

/// What was found instead of what was promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// How bad.
    pub harm: Harm,
    /// In words.
    pub what: String,
}

fn violation(harm: Harm, what: impl Into<String>) -> Violation {
    Violation { harm, what: what.into() }
}

/// How closely an image is looked at. Every one is opened by the engine, which checks its pages, and all rows of all its
/// tables are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// No more than that.
    Rows,
    /// Every message as the engine shows it as well.
    Messages,
    /// And the doctor looks at it, and the store goes on working.
    Doctor,
}

/// What may be found.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// All steps so far; the first is what the disk held at the beginning, if it held a store.
    pub steps: &'a [Step],
    /// How many of them were answered before the cut.
    pub answered: usize,
    /// How many of them had begun.
    pub begun: usize,
}

/// Checks one image in an empty directory and answers which step it is; `None` when nothing was answered yet and there is
/// no store.
///
/// # Errors
/// What is wrong with it.
pub fn verify(
    image: &Image,
    expected: Expected<'_>,
    directory: &Path,
    depth: Depth,
    runtime: &Runtime,
) -> Result<Option<usize>, Violation> {
    image.write(directory).map_err(|e| violation(Harm::Half, format!("the image cannot be written: {e}")))?;
    let promised = expected.answered > 0;
    // A store that nobody was told of may be missing, or be made anew.
    let now = expected.steps[..expected.begun].last().map_or(Timestamp::EPOCH, |step| step.book.now);
    let store = workload::reopen(directory, now, !promised).map_err(|error| {
        let harm = if error.kind() == StoreErrorKind::NotFound { Harm::Lost } else { Harm::Corrupt };
        violation(harm, format!("it does not open: {error}"))
    })?;
    let checked = opened(&store, expected, directory, depth, runtime);
    drop(store);
    checked
}

fn opened(
    store: &Arc<SqliteStore>,
    expected: Expected<'_>,
    directory: &Path,
    depth: Depth,
    runtime: &Runtime,
) -> Result<Option<usize>, Violation> {
    let found = {
        let conn = Connection::open_with_flags(directory.join(STORE), OpenFlags::SQLITE_OPEN_READ_ONLY);
        conn.and_then(|conn| workload::digest(&conn))
            .map_err(|e| violation(Harm::Corrupt, format!("its tables cannot be read: {e}")))?
    };
    let first = expected.answered.saturating_sub(1);
    let at = (first..expected.begun).find(|step| *expected.steps[*step].digest == found);
    let Some(at) = at else {
        if expected.answered == 0 {
            return new_store(store, runtime).map(|()| None);
        }
        return Err(neither(&found, expected, directory));
    };
    let book = &expected.steps[at].book;
    backups(book, directory)?;
    if depth >= Depth::Messages {
        views(store, book, runtime)?;
    }
    if depth >= Depth::Doctor {
        healthy(directory, book.now)?;
        goes_on(store, book, runtime)?;
    }
    Ok(Some(at))
}

/// It was made by this very opening, or before anything was answered: nothing is in it.
fn new_store(store: &Arc<SqliteStore>, runtime: &Runtime) -> Result<(), Violation> {
    let list = runtime.block_on(store.list(Filter { limit: 1, ..Filter::default() }));
    match list {
        Ok(list) if list.is_empty() => Ok(()),
        other => Err(violation(Harm::Half, format!("a store in which nothing was stored yet shows {other:?}"))),
    }
}

/// Says what it is when it is no state it may be in.
fn neither(found: &Digest, expected: Expected<'_>, directory: &Path) -> Violation {
    let last = &expected.steps[expected.answered - 1];
    if let Some(earlier) = expected.steps[..expected.answered].iter().rposition(|step| *step.digest == *found) {
        let gone = expected.answered - 1 - earlier;
        return violation(Harm::Lost, format!("{gone} answered calls are gone, the last of them {}", last.what));
    }
    let differing: Vec<&String> = {
        let tables = last.digest.keys().chain(found.keys());
        let mut tables: Vec<&String> = tables.filter(|table| last.digest.get(*table) != found.get(*table)).collect();
        tables.sort();
        tables.dedup();
        tables
    };
    match healthy(directory, last.book.now) {
        Err(damage) => damage,
        Ok(()) => violation(Harm::Half, format!("after {}, {differing:?} are of no moment there was", last.what)),
    }
}

/// Every message, byte for byte, as it was.
fn views(store: &Arc<SqliteStore>, book: &Book, runtime: &Runtime) -> Result<(), Violation> {
    let ids: Vec<MessageId> = book.messages.keys().copied().collect();
    let views = runtime.block_on(store.inspect(ids));
    let views = views.map_err(|error| violation(Harm::Corrupt, format!("its messages cannot be read: {error}")))?;
    for ((id, known), view) in book.messages.iter().zip(&views) {
        if view.as_ref() != Some(&**known) {
            let harm = if view.is_none() { Harm::Lost } else { Harm::Half };
            return Err(violation(harm, format!("{id} was {known:?}\nand is {view:?}")));
        }
    }
    Ok(())
}

/// A finished backup is there, byte for byte.
fn backups(book: &Book, directory: &Path) -> Result<(), Violation> {
    for (name, backup) in &book.backups {
        match fs::read(directory.join(name)) {
            Ok(found) if found == *backup.content => {}
            Ok(_) => return Err(violation(Harm::Corrupt, format!("{name} is not what the backup wrote"))),
            Err(error) => return Err(violation(Harm::Lost, format!("{name}: {error}"))),
        }
    }
    Ok(())
}

/// The doctor finds nothing. What it says of times is about the clock, not about the disk.
fn healthy(directory: &Path, now: Timestamp) -> Result<(), Violation> {
    let checks = SqliteStore::doctor(directory.join(STORE), Doctor { now, largest_wal: Doctor::LARGEST_WAL })
        .map_err(|error| violation(Harm::Corrupt, format!("the doctor cannot read it: {error}")))?;
    let sick = checks.into_iter().find(|check| !check.ok && !matches!(check.name, "leases" | "clock"));
    match sick {
        None => Ok(()),
        Some(check) => Err(violation(Harm::Corrupt, format!("{}: {:?}", check.name, check.findings))),
    }
}

/// What ended is answered again and identically, what did not is not begun twice, and something new is stored.
fn goes_on(store: &Arc<SqliteStore>, book: &Book, runtime: &Runtime) -> Result<(), Violation> {
    // A follow-up's key is its parent's, and a cancelled message may have given its key away.
    let keeps_its_key = |view: &&Arc<MessageView>| view.message.parent.is_none() && view.state != State::Cancelled;
    let known: Vec<&Arc<MessageView>> = book.messages.values().filter(keeps_its_key).collect();
    let again: Vec<NewMessage> = known.iter().map(|view| repeated(view)).collect();
    let verdicts = runtime.block_on(store.enqueue(again));
    let verdicts = verdicts.map_err(|error| violation(Harm::Corrupt, format!("it takes nothing more: {error}")))?;
    for (view, verdict) in known.iter().zip(verdicts) {
        let id = view.message.id;
        let right = match (&verdict, &view.answer) {
            (Ok(Enqueued::Replayed { id: again, answer }), Some(known)) => *again == id && answer == known,
            (Ok(Enqueued::Existing { id: again, .. }), None) => *again == id,
            // Its payload was edited: its producer's would match, this one does not.
            (Err(error), _) => error.kind() == StoreErrorKind::KeyConflict,
            (Ok(_), _) => false,
        };
        if !right {
            return Err(violation(Harm::Half, format!("a duplicate of {id} is answered {verdict:?}, it was {view:?}")));
        }
    }
    let mut fresh = book.messages.values().next().map(|view| repeated(view));
    if let Some(message) = &mut fresh {
        message.key = tidegate_core::IdempotencyKey::new("after-the-cut").expect("a valid key");
    }
    let Some(message) = fresh else { return Ok(()) };
    match runtime.block_on(store.enqueue(vec![message])).as_deref() {
        Ok([Ok(Enqueued::New { .. })]) => Ok(()),
        other => Err(violation(Harm::Half, format!("a new message is answered {other:?}"))),
    }
}

fn repeated(view: &MessageView) -> NewMessage {
    let message = &view.message;
    let payload = Payload::from_json(Arc::clone(&message.payload)).expect("it was stored");
    NewMessage::new(message.queue.clone(), message.kind.clone(), message.key.clone(), payload)
}
