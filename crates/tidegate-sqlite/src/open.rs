//! Opens a store's file, makes it, or refuses it: each refusal is clear, names the path, and has changed nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tidegate_core::clock::{Clock, SystemClock};
use tidegate_core::error::{StoreError, StoreErrorKind};

use crate::Options;
use crate::log;
use crate::migrate::{self, Kind, Looked};
use crate::room;
use crate::row;
use crate::seal;
use crate::trouble::{Trouble, is_busy, store_error};
use crate::writer::Synchronous;

/// The first SQLite without the bug by which two connections that write and checkpoint at once can corrupt a WAL file.
const LEAST_SQLITE: i32 = 3_051_003;
const NO_DATABASE: &str =
    "give the path of a tidegate store, or of a file that does not exist yet; this one was left as it is";
/// The smallest page of a database. SQLite takes a shorter file for an empty one, and would write over it.
const LEAST_FILE: u64 = 512;
/// How long to wait between two tries on a file that another process is just making.
const STEP: Duration = Duration::from_millis(5);
/// Statements kept ready on a connection; there are fewer than this.
const STATEMENTS: usize = 160;

/// What opening a file gave.
pub(crate) struct Opened {
    pub(crate) conn: Connection,
    /// Absolute: the process may change its directory later.
    pub(crate) path: PathBuf,
    pub(crate) uuid: [u8; 16],
}

/// Opens or makes the file of a store.
pub(crate) fn open(path: &Path, options: &Options, synchronous: Synchronous) -> Result<Opened, StoreError> {
    check_sqlite()?;
    prepare_file(path, options.create)?;
    let path = fs::canonicalize(path).map_err(|e| unreachable_file(path, "found", e))?;
    log::check(&path)?;
    room::before_opening(&path, options.room);
    let opening = Opening { path: &path, options, synchronous, real: SystemClock::new() };
    let conn = opening.open()?;
    // Before the first answer, and whoever made the file: a power cut must not take its name, nor that of its log, nor bring
    // back the journal with which it was turned into a WAL file, which would undo what came after. SQLite syncs the
    // directory for its log, but does not tell if that fails.
    sync_directory(&path)?;
    let uuid = uuid(&conn).map_err(|trouble| match trouble {
        Trouble::Item(error) => error,
        Trouble::Group(error) => opening.failed(error),
    })?;
    tidy_up_when_closed(&conn, true).map_err(|e| opening.failed(e))?;
    Ok(Opened { conn, path, uuid })
}

fn check_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() >= LEAST_SQLITE {
        return Ok(());
    }
    Err(StoreError::invalid(format!("SQLite {} can corrupt a file with several writers", rusqlite::version()))
        .hint("build with the bundled SQLite, 3.51.3 or later"))
}

/// Sees that there is a file that can be written.
fn prepare_file(path: &Path, create: bool) -> Result<(), StoreError> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            return Err(StoreError::invalid(format!("{} is a directory", path.display()))
                .hint("give the path of a file in it, such as tidegate.db"));
        }
        Ok(_) => {
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| unreachable_file(path, "written", e))?;
            return Ok(());
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && !create => {
            return Err(StoreError::new(StoreErrorKind::NotFound, format!("no store at {}", path.display()))
                .hint("check the path; a store is made by whatever enqueues first")
                .source(e));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(unreachable_file(path, "looked at", e)),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        // Payloads are nobody else's business. The -wal and -shm files take the mode of this one.
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    match options.open(path) {
        Ok(_) => Ok(()),
        // Another process was faster; then it is its file.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(unreachable_file(path, "made", e)),
    }
}

fn unreachable_file(path: &Path, what: &str, error: io::Error) -> StoreError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a hint only where there is one to give")]
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "the file and its directory must be writable by this user",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only",
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "the directory must exist; make it first",
        io::ErrorKind::StorageFull => "free space on the disk",
        _ => "see the cause; nothing was changed",
    };
    StoreError::unavailable(format!("{} cannot be {what}: {error}", path.display())).hint(hint).source(error)
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|e| {
        StoreError::unavailable(format!("directory {} cannot be made durable: {e}", directory.display())).source(e)
    })
}

struct Opening<'a> {
    path: &'a Path,
    options: &'a Options,
    /// `Full`, but for the power-loss harness.
    synchronous: Synchronous,
    /// Real time: waiting for another process must end while a test's clock stands still.
    real: SystemClock,
}

impl Opening<'_> {
    fn open(&self) -> Result<Connection, StoreError> {
        let size = fs::metadata(self.path).map_err(|e| unreachable_file(self.path, "looked at", e))?.len();
        if size == 0 && !self.options.create {
            return Err(StoreError::new(
                StoreErrorKind::NotFound,
                format!("{} is empty, and no store", self.path.display()),
            )
            .hint("a store is made by whatever enqueues first; if there was one, restore a backup"));
        }
        if (1..LEAST_FILE).contains(&size) {
            let what = format!("{} is no SQLite database: it has only {size} bytes", self.path.display());
            return Err(StoreError::new(StoreErrorKind::Corrupt, what).hint(NO_DATABASE));
        }
        if size > 0 && matches!(self.look_first()?, Kind::Older { .. }) && self.options.migrate == Migrate::Older {
            // Before this process has the file open otherwise.
            self.patiently(|| self.migrate_alone(&self.path.display().to_string()))?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(self.path, flags).map_err(|e| self.failed(e))?;
        // Until all went well: a sync that failed must not be tried again by closing the connection.
        tidy_up_when_closed(&conn, false).map_err(|e| self.failed(e))?;
        if conn.is_readonly("main").map_err(|e| self.failed(e))? {
            return Err(StoreError::unavailable(format!("{} can only be read", self.path.display()))
                .hint("the file and its directory must be writable by this user"));
        }
        // Before anything is read with this connection. A store of other steps is not migrated by a mere open.
        self.patiently(|| settings(&conn, self.synchronous))?;
        self.patiently(|| self.bring_up(&conn))?;
        if size <= self.options.check_up_to {
            self.check_pages(&conn)?;
        }
        if let Some(what) = migrate::altered(&conn).map_err(|e| self.failed(e))? {
            return Err(damaged(self.path, &what));
        }
        Ok(conn)
    }

    /// Looks at a file that has content, read-only: what is refused here was not touched.
    fn look_first(&self) -> Result<Kind, StoreError> {
        let path = self.path.display().to_string();
        let kind = self.patiently(|| {
            let looked = read_only(self.path).map_err(Looked::from).and_then(|conn| migrate::look(&conn, &path));
            match looked {
                Err(Looked::Sqlite(error)) if was_interrupted(&error) => self.put_right(&path),
                looked => looked,
            }
        })?;
        self.refuse_foreign_log()?;
        Ok(kind)
    }

    /// A log that lies beside the file and belongs to another one would be played over it.
    fn refuse_foreign_log(&self) -> Result<(), StoreError> {
        let with_log = reader(self.path).ok().and_then(|conn| uuid(&conn).ok());
        // The file as it is without its log; what cannot be read so has no identity yet, or is being written.
        let without_log = immutable(self.path).ok().and_then(|file| uuid(&file).ok());
        if without_log.is_some() && with_log.is_some() && without_log != with_log {
            let what = format!("{} is the log of another store", log::beside(self.path, "-wal").display());
            return Err(StoreError::new(StoreErrorKind::Corrupt, what)
                .hint("put the store's own -wal beside it, or move this one away; nothing was changed"));
        }
        Ok(())
    }

    /// Undoes what was under way when the power failed or the process died while the file was made or turned into a store:
    /// until then it was no WAL file, and only a connection that may write can play its journal back.
    fn put_right(&self, path: &str) -> Result<Kind, Looked> {
        if application_id(self.path).is_some_and(|id| id != 0 && i64::from(id) != migrate::APPLICATION_ID) {
            return Err(migrate::foreign(path).into());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(self.path, flags)?;
        conn.busy_timeout(Duration::ZERO)?;
        tidy_up_when_closed(&conn, false)?;
        migrate::look(&conn, path)
    }

    /// Tries again while another process makes or migrates the file.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T, Looked>) -> Result<T, StoreError> {
        let started = self.real.monotonic();
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(Looked::Refused(error)) => return Err(error),
                Err(Looked::Sqlite(error)) => error,
            };
            let passes = is_busy(&error)
                || matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseLocked | ErrorCode::SchemaChanged));
            if !passes || self.real.monotonic().saturating_sub(started) >= self.options.busy_timeout {
                return Err(self.failed(error));
            }
            std::thread::park_timeout(STEP);
        }
    }

    /// Makes the tables of an empty file. An older store was migrated by now, or may not be.
    fn bring_up(&self, conn: &Connection) -> Result<(), Looked> {
        let path = self.path.display().to_string();
        match migrate::look(conn, &path)? {
            Kind::Current => Ok(()),
            // Several processes may be here at once with one new file: the first to get the lock makes it, the others
            // look again once they have it.
            Kind::Empty if self.options.create => {
                self.in_transaction(conn, "begin immediate", &path)?;
                // The tables belong into the file itself: a copy made without its log is then seen to be a store, and an
                // old one, instead of an empty file. Somebody else at work on the new file is no reason to fail.
                conn.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(()))?;
                Ok(())
            }
            Kind::Empty => {
                let what = format!("{path} is a database without a single table");
                Err(StoreError::new(StoreErrorKind::NotFound, what)
                    .hint(
                        "a store is made by whatever enqueues first; a copy needs its -wal file as well, or is made by \
                           tidegate backup",
                    )
                    .into())
            }
            Kind::Older { has } => {
                let what = format!("{path} is a store of an older tidegate, at step {has}");
                Err(StoreError::conflict(what)
                    .hint("stop its users, back it up, then bring it up to date with: tidegate migrate up (a program of your \
                           own opens it once with Migrate::Older)")
                    .into())
            }
        }
    }

    fn in_transaction(&self, conn: &Connection, begin: &str, path: &str) -> Result<(), Looked> {
        conn.execute_batch(begin)?;
        let made = migrate::look(conn, path).and_then(|kind| match kind {
            Kind::Current => Ok(()),
            Kind::Empty => Ok(migrate::apply(conn, 0, self.options.clock.now())?),
            Kind::Older { has } => Ok(migrate::apply(conn, has, self.options.clock.now())?),
        });
        match made {
            Ok(()) => Ok(conn.execute_batch("commit")?),
            Err(error) => {
                // The error says more than a rollback could; closing the connection rolls back as well.
                let _rolled_back = conn.execute_batch("rollback");
                Err(error)
            }
        }
    }

    /// Migrates on a connection that has the file to itself: a process that uses the old tables must not find new ones.
    fn migrate_alone(&self, path: &str) -> Result<(), Looked> {
        let alone = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(self.path, flags)?;
            conn.busy_timeout(Duration::ZERO)?;
            // In WAL mode SQLite grants this only while nobody else has the file open.
            conn.pragma_update(None, "locking_mode", "exclusive")?;
            conn.pragma_update(None, "synchronous", "full")?;
            self.in_transaction(&conn, "begin exclusive", path)
        };
        match alone() {
            Err(Looked::Sqlite(error)) if is_busy(&error) => {
                let what = format!("{path} is in use and cannot be migrated");
                Err(StoreError::conflict(what).hint("stop every process that has it open, then repeat").into())
            }
            other => other,
        }
    }

    fn check_pages(&self, conn: &Connection) -> Result<(), StoreError> {
        let found: String =
            conn.query_row("pragma integrity_check(1)", [], |row| row.get(0)).map_err(|e| self.failed(e))?;
        if found == "ok" {
            return Ok(());
        }
        Err(damaged(self.path, &found))
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        failed(self.path, error)
    }
}

/// An error of SQLite while a file was opened, with its path.
pub(crate) fn failed(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            StoreError::new(StoreErrorKind::Corrupt, format!("{} is no SQLite database", path.display()))
                .hint(NO_DATABASE)
                .source(error)
        }
        Some(ErrorCode::DatabaseCorrupt) => damaged(path, &error.to_string()).source(error),
        _ if was_interrupted(&error) => StoreError::unavailable(format!(
            "{} was being made or restored when the power failed or its program died",
            path.display()
        ))
        .hint("it is put right by whatever opens it to write next, such as the service")
        .source(error),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            StoreError::unavailable(format!("{} cannot be opened for writing: {error}", path.display()))
                .hint("the file and its directory must be writable by this user")
                .source(error)
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed) => {
            StoreError::unavailable(format!("{} was held by another process for too long", path.display()))
                .hint("a process that was stopped inside its write transaction blocks the file until it ends")
                .source(error)
        }
        // A statement of ours that does not fit the tables, or text that is none.
        Some(ErrorCode::Unknown) | None => damaged(path, &error.to_string()).source(error),
        _ => {
            let StoreErrorParts { kind, what, hint } = StoreErrorParts::of(&store_error(error));
            let error = StoreError::new(kind, format!("{}: {what}", path.display()));
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
    }
}

struct StoreErrorParts {
    kind: StoreErrorKind,
    what: String,
    hint: Option<String>,
}

impl StoreErrorParts {
    fn of(error: &StoreError) -> Self {
        Self { kind: error.kind(), what: error.what().to_owned(), hint: error.hint_text().map(str::to_owned) }
    }
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format!("{} is damaged: {what}", path.display()))
        .hint("stop its users, keep a copy of the file with its -wal, and restore a backup; nothing was changed")
}

/// The settings of the writing connection, read back where a silent refusal would cost messages.
fn settings(conn: &Connection, synchronous: Synchronous) -> Result<(), Looked> {
    conn.busy_timeout(Duration::ZERO)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    stable_plans(conn)?;
    seal::teach(conn)?;
    // To its end: the row that says "wal" comes before the change is committed, and that may fail.
    let mut mode = String::new();
    let mut asked = conn.prepare("pragma journal_mode = wal")?;
    let mut rows = asked.query([])?;
    while let Some(row) = rows.next()? {
        mode = row.get(0)?;
    }
    conn.execute_batch(
        "pragma synchronous = full;
         pragma trusted_schema = off;
         pragma cell_size_check = on;
         pragma secure_delete = off;
         pragma wal_autocheckpoint = 0;
         pragma temp_store = memory;
         pragma mmap_size = 0;
         pragma cache_size = -65536;",
    )?;
    let least = match synchronous {
        Synchronous::Full => 2,
        Synchronous::Normal | Synchronous::Off => {
            conn.pragma_update(None, "synchronous", synchronous.as_str())?;
            0
        }
    };
    let synchronous: i64 = conn.query_row("pragma synchronous", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") || synchronous < least {
        let what = format!("SQLite refused durable settings: journal_mode is {mode}, synchronous is {synchronous}");
        return Err(StoreError::unavailable(what)
            .hint("the file must be on a local disk; network file systems cannot share a store")
            .into());
    }
    Ok(())
}

/// Keeps a statement's plan whatever is bound to it. Otherwise a bundled SQLite (with STAT4) prepares a statement with a
/// range anew for each execution, which was measured as a fifth of the writer's time.
fn stable_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

/// Whether the connection, if it is the last one, copies the log into the file and removes it when it is closed.
pub(crate) fn tidy_up_when_closed(conn: &Connection, tidy: bool) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !tidy).map(|_| ())
}

/// Whether a journal lies beside the file that has to be played back first.
fn was_interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK)
}

/// What the file's header says whose it is, read past SQLite.
fn application_id(path: &Path) -> Option<i32> {
    const AT: u64 = 68;
    let mut file = File::open(path).ok()?;
    let mut bytes = [0; 4];
    file.seek(SeekFrom::Start(AT)).and_then(|_| file.read_exact(&mut bytes)).ok()?;
    Some(i32::from_be_bytes(bytes))
}

/// A connection that only reads.
pub(crate) fn reader(path: &Path) -> Result<Connection, StoreError> {
    read_only(path).map_err(|e| failed(path, e))
}

fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // A reader waits only for the moments in which another process recovers the log.
    stable_plans(&conn)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.execute_batch("pragma trusted_schema = off; pragma cell_size_check = on; pragma cache_size = -8192;")?;
    Ok(conn)
}

/// A connection to the file alone, as if it had no log and nobody wrote to it.
fn immutable(path: &Path) -> rusqlite::Result<Connection> {
    let name = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)
}

/// The identity of a store's file, from a row that agrees with its seal.
pub(crate) fn uuid(conn: &Connection) -> Result<[u8; 16], Trouble> {
    let mut statement = conn.prepare("select * from tide_store")?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else {
        return Err(Trouble::Item(StoreError::corrupt("tide_store, row 1", "the row is missing")));
    };
    seal::check(row, seal::STORE)?;
    row::column(row, "uuid", "tide_store")
}

/// Which stores an open may change the tables of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// Makes the tables of a new file; a store of an older version is refused.
    #[default]
    NewFile,
    /// Also brings an older store up to date, if no other process has it open.
    Older,
}
