//! Copies a store that is in use into a file of its own, marked as a copy.
//!
//! One read of the whole file in one snapshot: writers go on beside it. The copy gets an identity of its own and the mark
//! that `copied.rs` acts upon when somebody puts it to work. It appears under its name only once it is complete, checked
//! and on disk; what has that name already is never touched.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, params};
use tidegate_core::clock::{Random, SystemRandom, Timestamp};
use tidegate_core::error::{StoreError, StoreErrorKind};

use crate::open;
use crate::seal;
use crate::trouble::store_error;

/// A copy that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Where it is; absolute.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Which copy of copies it is: the original is 1.
    pub incarnation: u32,
    /// What was committed before this moment is in it.
    pub at: Timestamp,
}

/// Copies the store at `source` to `target`, which must not be there.
pub(crate) fn backup(source: &Path, target: &Path, now: Timestamp) -> Result<Copied, StoreError> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(there_already(target));
    }
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let directory = fs::canonicalize(&directory).map_err(|e| failed(&directory, "found", e))?;
    let Some(name) = target.file_name() else {
        return Err(StoreError::invalid(format!("{} is no name of a file", target.display())));
    };
    let target = directory.join(name);
    let partial = Partial::new(&target)?;
    let incarnation = write(source, &partial.0, now)?;
    let file = File::open(&partial.0).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
    let bytes = file.map_err(|e| failed(&partial.0, "made durable", e))?.len();
    // A link, because a rename would replace what somebody put there meanwhile.
    fs::hard_link(&partial.0, &target).map_err(|e| {
        if e.kind() == io::ErrorKind::AlreadyExists { there_already(&target) } else { failed(&target, "named", e) }
    })?;
    drop(partial);
    File::open(&directory).and_then(|it| it.sync_all()).map_err(|e| failed(&directory, "made durable", e))?;
    Ok(Copied { path: target, bytes, incarnation, at: now })
}

fn there_already(target: &Path) -> StoreError {
    StoreError::conflict(format!("{} is there already", target.display()))
        .hint("a backup overwrites nothing; give it another name")
}

fn failed(path: &Path, what: &str, error: io::Error) -> StoreError {
    StoreError::unavailable(format!("{} cannot be {what}: {error}", path.display()))
        .hint("the directory must exist, be writable by this user and have room for the store")
        .source(error)
}

/// The file while it is not complete; gone when this is.
struct Partial(PathBuf);

impl Partial {
    fn new(target: &Path) -> Result<Self, StoreError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = target.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        match options.open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::conflict(format!("{} is there already", path.display()))
                    .hint("another backup is writing it, or one was interrupted: then remove it and repeat"))
            }
            Err(e) => Err(failed(&path, "made", e)),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed is in nobody's way but that of the next backup, which says so.
        let _removed = fs::remove_file(&self.0);
    }
}

fn write(source: &Path, partial: &Path, now: Timestamp) -> Result<u32, StoreError> {
    let from = open::reader(source)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut copy = Connection::open_with_flags(partial, flags).map_err(store_error)?;
    {
        let backup = Backup::new(&from, &mut copy).map_err(store_error)?;
        // All pages in one step: one snapshot, however much is written meanwhile.
        match backup.step(-1).map_err(store_error)? {
            StepResult::Done => {}
            StepResult::More | StepResult::Busy | StepResult::Locked => {
                return Err(StoreError::unavailable("the store was held by another process for too long"));
            }
            _ => return Err(StoreError::unavailable("SQLite did not finish the copy")),
        }
    }
    let incarnation = mark(&copy, now).map_err(store_error)?;
    let checked: String = copy.query_row("pragma quick_check(1)", [], |row| row.get(0)).map_err(store_error)?;
    if checked != "ok" {
        return Err(StoreError::new(
            StoreErrorKind::Corrupt,
            format!("the copy is damaged, as the store is: {checked}"),
        )
        .hint("see what is wrong with the store: tidegate doctor"));
    }
    copy.close().map_err(|(_, e)| store_error(e))?;
    Ok(incarnation)
}

/// Gives the copy an identity of its own, and notes up to where its messages may have gone on elsewhere.
fn mark(copy: &Connection, now: Timestamp) -> rusqlite::Result<u32> {
    const MARK: &str = "-- backup: of a copy's copy, what the first one lacked is still unknown, so its time stays
        update tide_store set uuid = ?1, incarnation = incarnation + 1, copied_at = coalesce(copied_at, ?2),
            copied_id = last_id, begun_at = null,
            seal = tide_reseal(seal, 1, uuid, ?1, 3, incarnation, incarnation + 1,
                4, copied_at, coalesce(copied_at, ?2), 5, copied_id, last_id, 6, begun_at, null)
        returning incarnation";
    // One file, without a log beside it. It becomes a WAL file again when it is opened as a store.
    seal::teach(copy)?;
    copy.execute_batch("pragma journal_mode = delete; pragma synchronous = full;")?;
    let mut uuid = [0; 16];
    SystemRandom.fill(&mut uuid);
    // In a transaction of its own: a statement that returns a row has not been committed yet when it does.
    copy.execute_batch("begin immediate")?;
    let incarnation = copy.query_row(MARK, params![uuid, now.as_millis()], |row| row.get(0))?;
    copy.execute_batch("commit")?;
    Ok(incarnation)
}
