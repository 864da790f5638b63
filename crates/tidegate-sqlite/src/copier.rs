//! Copies the log into the file beside the writer.
//!
//! A copy reads, writes and syncs for some tens of milliseconds. SQLite lets a writer append to the log meanwhile, so a
//! thread with a connection of its own makes it and no commit waits. Only its end is the writer's: a log begins anew once
//! all of it was copied, which never happens behind a writer that goes on writing. So when little is left, the writer copies
//! that little between two groups.
//!
//! A copy whose sync failed is not repeated: the error goes to the writer, which stops the store.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tidegate_core::clock::{Clock, SystemClock};

use crate::open;
use crate::writer::Synchronous;

/// What one pass over the log came to.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) done: rusqlite::Result<Copied>,
    pub(crate) took: Duration,
}

/// How far the log was copied, in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// All of what was in the log when the pass began; not so while somebody still reads an older state, or copies as well.
    pub(crate) all: bool,
    pub(crate) frames: u64,
}

/// Copies the log by a connection: as far as readers allow, or as `how` says.
pub(crate) fn copy(conn: &Connection, how: &str) -> rusqlite::Result<Copied> {
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let (busy, log, copied) = conn.prepare_cached(how)?.query_row([], row)?;
    // Both are -1 for somebody who did not get to look.
    Ok(Copied { all: busy == 0 && log == copied, frames: u64::try_from(copied).unwrap_or(0) })
}

/// The thread, as its writer sees it.
#[derive(Debug)]
pub(crate) struct Copier {
    begin: Option<Sender<()>>,
    passes: Receiver<Pass>,
    thread: Option<JoinHandle<()>>,
    under_way: bool,
}

impl Copier {
    /// Starts the thread, which opens its connection at its first pass.
    pub(crate) fn start(path: PathBuf, synchronous: Synchronous) -> std::io::Result<Self> {
        let (begin, begun) = channel();
        let (pass, passes) = channel();
        let run = move || run(&path, synchronous, &begun, &pass);
        let thread = std::thread::Builder::new().name("tidegate-copier".into()).spawn(run)?;
        Ok(Self { begin: Some(begin), passes, thread: Some(thread), under_way: false })
    }

    /// Whether a pass was begun whose end is not known yet.
    pub(crate) fn under_way(&self) -> bool {
        self.under_way
    }

    /// Begins a pass; false when the thread ended, and nobody copies but the writer.
    pub(crate) fn begin(&mut self) -> bool {
        self.under_way = self.begin.as_ref().is_some_and(|begin| begin.send(()).is_ok());
        self.under_way
    }

    /// The pass that ended since the last look; none while it is under way, or when the thread died of it.
    pub(crate) fn ended(&mut self) -> Option<Pass> {
        match self.passes.try_recv() {
            Ok(pass) => {
                self.under_way = false;
                Some(pass)
            }
            Err(std::sync::mpsc::TryRecvError::Empty) => None,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                self.under_way = false;
                None
            }
        }
    }

    /// Waits for the end of the pass that is under way.
    pub(crate) fn wait(&mut self) -> Option<Pass> {
        let pass = if self.under_way { self.passes.recv().ok() } else { None };
        self.under_way = false;
        pass
    }
}

impl Drop for Copier {
    /// Its connection is closed before the writer's: the last one tidies up the log.
    fn drop(&mut self) {
        drop(self.begin.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn run(path: &std::path::Path, synchronous: Synchronous, begun: &Receiver<()>, passes: &Sender<Pass>) {
    let clock = SystemClock::new();
    let mut conn = None;
    while begun.recv().is_ok() {
        let started = clock.monotonic();
        let done = match &conn {
            Some(conn) => copy(conn, "pragma wal_checkpoint(passive)"),
            None => connect(path, synchronous)
                .and_then(|opened| copy(conn.insert(opened), "pragma wal_checkpoint(passive)")),
        };
        let failed = done.is_err();
        let took = clock.monotonic().saturating_sub(started);
        if passes.send(Pass { done, took }).is_err() || failed {
            return;
        }
    }
}

/// A connection that copies: it syncs as the writer does, and never tidies up.
fn connect(path: &std::path::Path, synchronous: Synchronous) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    open::tidy_up_when_closed(&conn, false)?;
    conn.busy_timeout(Duration::ZERO)?;
    conn.execute_batch("pragma trusted_schema = off; pragma mmap_size = 0; pragma wal_autocheckpoint = 0;")?;
    conn.pragma_update(None, "synchronous", synchronous.as_str())?;
    Ok(conn)
}
