//! Room on the disk: what a store does before its disk is full, so that work that began can still end.
//!
//! A full disk is worst between an effect and its settlement. So a store stops in steps, by the free space of the file
//! system, which every process on the file sees alike: first nothing new is accepted, then nothing is claimed, while
//! settlements, journals, extensions and sweeps go on to the end. For the time when another program took even the last
//! byte, a *reserve* of real blocks is kept in a file beside the store; it is given up when space runs out and made again
//! when there is room for it. All of this ends by itself.
//!
//! Looking costs one system call: once a second, sooner after much was written, and before each group while room is short.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde::Serialize;
use tidegate_core::error::{StoreError, StoreErrorKind};

/// How often the free space is looked at while there is plenty.
const LOOK: Duration = Duration::from_secs(1);
/// How long a caller waits before it tries a store again that accepts nothing for want of room.
const SHORT_RETRY: Duration = Duration::from_secs(5);
/// What a message takes beside its texts: its rows and their share of pages, in the log and in the file.
const ROWS: u64 = 2048;
/// From this size of the log on it is copied into the file and cut off while room is short.
pub(crate) const SHORT_CHECKPOINT: u64 = 1 << 20;

/// How much room a store leaves on its disk, in bytes. 0 for all of them switches this off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// With less than this free, nothing new is accepted: enqueues are refused as `QueueFull`.
    pub accept: u64,
    /// With less than this free, nothing is claimed either. At least one and a quarter of the reserve.
    pub claim: u64,
    /// The size of the reserve. What runs at the same moment should fit: for each handler its largest result and journal,
    /// twice.
    pub reserve: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { accept: 64 << 20, claim: 32 << 20, reserve: 16 << 20 }
    }
}

impl Room {
    /// Looks at nothing and keeps nothing: a full disk is then noticed when a commit fails.
    pub const UNWATCHED: Self = Self { accept: 0, claim: 0, reserve: 0 };

    /// With less than this free the reserve is given up: enough for a commit and the start of a checkpoint.
    fn brink(self) -> u64 {
        self.reserve / 4
    }

    pub(crate) fn check(self) -> Result<(), StoreError> {
        if self.accept >= self.claim && self.claim >= self.reserve + self.brink() {
            return Ok(());
        }
        let Self { accept, claim, reserve } = self;
        Err(StoreError::invalid(format!("room of {accept} to accept, {claim} to claim, and a reserve of {reserve}")).hint(
            "accept at least as much as claim, and claim one and a quarter of the reserve: giving the reserve up must not \
             look like room for new work",
        ))
    }
}

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomFor {
    /// What runs is settled; nothing is claimed, nothing accepted.
    Settling,
    /// What was accepted is worked off; nothing new is accepted.
    Claiming,
    /// Everything.
    #[default]
    Accepting,
}

impl RoomFor {
    /// The name used in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settling => "settling",
            Self::Claiming => "claiming",
            Self::Accepting => "accepting",
        }
    }
}

/// The disk of a store as it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Disk {
    /// Bytes that this user may still use, those that the reserve lacks taken off, those free inside the file added.
    pub free: u64,
    /// Bytes of the reserve that are there.
    pub reserve: u64,
    /// What there is room for.
    pub room_for: RoomFor,
}

/// Watches the disk for the writer of one process.
#[derive(Debug)]
pub(crate) struct Watch {
    room: Room,
    directory: PathBuf,
    reserve: PathBuf,
    next_look: Duration,
    /// Bytes that this process wrote since it last looked.
    written: u64,
    /// Whether this process works on the store: only then is a reserve worth its space.
    works: bool,
    seen: Disk,
}

impl Watch {
    pub(crate) fn new(path: &Path, room: Room) -> Self {
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let seen = Disk { free: u64::MAX, ..Disk::default() };
        Self { room, directory, reserve: reserve_of(path), next_look: Duration::ZERO, written: 0, works: false, seen }
    }

    /// What was last seen.
    pub(crate) fn seen(&self) -> Disk {
        self.seen
    }

    pub(crate) fn short(&self) -> bool {
        self.seen.room_for < RoomFor::Accepting
    }

    /// A commit met a full disk: the reserve is what it was kept for.
    pub(crate) fn met_the_end(&mut self) {
        give_up(&self.reserve);
        self.next_look = Duration::ZERO;
    }

    /// This process claims: from now on a reserve is kept.
    pub(crate) fn works(&mut self) {
        if !self.works {
            (self.works, self.next_look) = (true, Duration::ZERO);
        }
    }

    /// So many bytes went into the log.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// Looks at the disk if it is time; `now` is monotonic. Says what changed.
    pub(crate) fn look(&mut self, conn: &Connection, now: Duration) {
        // What is in the log is going to be in the file as well; and others write too.
        let much = self.written.saturating_mul(4) >= self.seen.free.saturating_sub(self.room.accept);
        if self.room == Room::UNWATCHED || (now < self.next_look && !much) {
            return;
        }
        self.written = 0;
        // A file system that cannot be asked is taken for one with room: the commit will tell.
        let Some(free) = free(&self.directory) else {
            self.next_look = now + LOOK;
            return;
        };
        let mut kept = kept(&self.reserve);
        let mut free = free;
        if free < self.room.brink() && kept > 0 {
            give_up(&self.reserve);
            free = free.saturating_add(kept);
            kept = 0;
        }
        let lacking = self.room.reserve.saturating_sub(kept);
        // Not so early that it would be given up at once. What it lacks counts as taken in any case, below.
        if self.works && lacking > 0 && free >= lacking.saturating_add(2 * self.room.brink()) {
            match make(&self.reserve, self.room.reserve) {
                Ok(()) => (free, kept) = (free.saturating_sub(lacking), self.room.reserve),
                Err(error) => {
                    tracing::warn!(%error, "no reserve could be made beside the store");
                    give_up(&self.reserve);
                }
            }
        }
        let owed = if self.works { self.room.reserve.saturating_sub(kept) } else { 0 };
        let free = free.saturating_sub(owed);
        // Pages that are free inside the file take new rows; but a commit needs space for the log all the same.
        let inside = if free < self.room.accept { free_pages(conn) } else { 0 };
        let usable = free.saturating_add(if free + owed >= self.room.brink() { inside } else { 0 });
        let room_for = match usable {
            _ if usable < self.room.claim => RoomFor::Settling,
            _ if usable < self.room.accept => RoomFor::Claiming,
            _ => RoomFor::Accepting,
        };
        self.tell(room_for, usable);
        self.seen = Disk { free: usable, reserve: kept, room_for };
        let near = usable < self.room.accept.saturating_mul(2);
        self.next_look = if near { now } else { now + LOOK };
    }

    fn tell(&self, room_for: RoomFor, free: u64) {
        let Room { accept, claim, .. } = self.room;
        match (self.seen.room_for, room_for) {
            (before, now) if before == now => {}
            (_, RoomFor::Settling) => {
                tracing::warn!(
                    disk.free = free,
                    disk.claim = claim,
                    "the disk of the store is nearly full: nothing is \
                    claimed and nothing accepted until space is freed; what runs is still settled"
                );
            }
            (_, RoomFor::Claiming) => {
                tracing::warn!(
                    disk.free = free,
                    disk.accept = accept,
                    "the disk of the store fills up: nothing new is \
                    accepted until space is freed; what was accepted is worked off"
                );
            }
            (_, RoomFor::Accepting) => tracing::info!(disk.free = free, "there is room on the disk of the store again"),
        }
    }

    /// How much may be enqueued in one group: what it writes must leave the room for claims untouched.
    pub(crate) fn allowance(&self) -> u64 {
        match self.seen.room_for {
            RoomFor::Accepting => self.seen.free.saturating_sub(self.room.claim),
            RoomFor::Claiming | RoomFor::Settling => 0,
        }
    }

    /// The store is closed in good order. Where room is short the reserve stays for whoever opens it next.
    pub(crate) fn close(&self) {
        if self.works && !self.short() {
            give_up(&self.reserve);
        }
    }
}

/// What a message of so many bytes takes, in the log and in the file.
pub(crate) fn needs(bytes: usize) -> u64 {
    (bytes as u64).saturating_mul(2).saturating_add(ROWS)
}

/// Refuses a message for want of room.
pub(crate) fn refuse() -> StoreError {
    StoreError::new(StoreErrorKind::QueueFull, "the disk of the store has no room for new messages")
        .hint("free space: tidegate stats shows how much there is and must be; then repeat it under the same key")
        .retry_after(SHORT_RETRY)
}

/// The disk of a store that nobody here watches, by the limits that hold unless said otherwise.
pub(crate) fn look_once(path: &Path) -> Option<Disk> {
    let room = Room::default();
    let free = free(path.parent()?)?;
    let room_for = match free {
        _ if free < room.claim => RoomFor::Settling,
        _ if free < room.accept => RoomFor::Claiming,
        _ => RoomFor::Accepting,
    };
    Some(Disk { free, reserve: kept(&reserve_of(path)), room_for })
}

/// Before a store is opened on a disk without a byte left: its log's index needs some.
pub(crate) fn before_opening(path: &Path, room: Room) {
    if path.parent().and_then(free).is_some_and(|free| free < room.brink()) {
        give_up(&reserve_of(path));
    }
}

/// The file of the reserve.
fn reserve_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-reserve");
    PathBuf::from(name)
}

/// Bytes of the reserve that are there.
fn kept(reserve: &Path) -> u64 {
    fs::metadata(reserve).map_or(0, |about| about.len())
}

fn give_up(reserve: &Path) {
    match fs::remove_file(reserve) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "the reserve beside the store could not be given up"),
    }
}

/// Makes the reserve, with blocks of its own. Several processes may do so at once: they make the same file.
fn make(reserve: &Path, size: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    allocate(&options.open(reserve)?, size)
}

#[cfg(unix)]
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let size = nix::libc::off_t::try_from(size).map_err(io::Error::other)?;
    Ok(nix::fcntl::posix_fallocate(file, 0, size)?)
}

#[cfg(not(unix))]
fn allocate(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Bytes that this user may still use on the file system.
#[cfg(unix)]
fn free(directory: &Path) -> Option<u64> {
    let about = nix::sys::statvfs::statvfs(directory).ok()?;
    #[expect(clippy::useless_conversion, reason = "the types differ between systems")]
    let (blocks, size) = (u64::from(about.blocks_available()), u64::from(about.fragment_size()));
    Some(blocks.saturating_mul(size))
}

#[cfg(not(unix))]
fn free(_directory: &Path) -> Option<u64> {
    None
}

/// Bytes of pages that are free inside the file.
fn free_pages(conn: &Connection) -> u64 {
    let pages: i64 = conn
        .prepare_cached("pragma freelist_count")
        .and_then(|mut count| count.query_row([], |row| row.get(0)))
        .unwrap_or(0);
    u64::try_from(pages).unwrap_or(0).saturating_mul(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_the_reserve_up_never_looks_like_room() {
        let mib = |accept: u64, claim: u64, reserve: u64| Room {
            accept: accept << 20,
            claim: claim << 20,
            reserve: reserve << 20,
        };
        for (room, good) in [
            (Room::default(), true),
            (Room::UNWATCHED, true),
            (mib(4, 2, 1), true),
            (mib(2, 4, 1), false),
            (mib(4, 2, 2), false),
        ] {
            assert_eq!(room.check().is_ok(), good, "{room:?}");
        }
    }

    #[test]
    fn a_reserve_has_blocks_and_is_made_again_where_it_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = directory.path().join("r");
        fs::write(&reserve, b"cut short").unwrap();
        make(&reserve, 1 << 20).unwrap();
        assert_eq!(kept(&reserve), 1 << 20);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            assert!(fs::metadata(&reserve).unwrap().blocks() * 512 >= 1 << 20, "a sparse file reserves nothing");
        }
        give_up(&reserve);
        assert_eq!(kept(&reserve), 0);
    }
}
