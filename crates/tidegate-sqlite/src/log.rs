//! The write-ahead log, looked at before SQLite reads it.
//!
//! SQLite takes a log up to its first frame that is not in order: after a crash, that is where the last commit was being
//! written. A flipped bit in the middle looks the same to it, and everything acknowledged behind it is gone without a word; so
//! is a log that was cut off or taken away. Two things tell such a log from one that a crash left:
//!
//! - Behind the first frame out of order, frames go on that fit one another and hold two commits. A commit is on disk
//!   before the next one begins, so a crash leaves one unfinished commit, not two.
//! - The index beside the log, written in this very run of the system, names more frames than the log has.
//!
//! What lost its log and its index both cannot be told from a store that was in order earlier.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tidegate_core::error::{StoreError, StoreErrorKind};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Refuses a log that acknowledged commits are missing from, as far as that can be known.
pub(crate) fn check(path: &Path) -> Result<(), StoreError> {
    // Another process may be at work: what is found has to be found twice to be true.
    let Some(found) = look(path) else { return Ok(()) };
    if look(path).as_ref() != Some(&found) {
        return Ok(());
    }
    let log = beside(path, "-wal");
    let error = |what, hint: &str| StoreError::new(StoreErrorKind::Corrupt, what).hint(hint);
    Err(match found {
        Found::Damaged { frame } => error(
            format!("{} is damaged at frame {frame}: commits behind it would be lost", log.display()),
            "keep a copy of the file with its -wal, then restore a backup, or move the -wal away and lose what only it has; \
             nothing was changed",
        ),
        Found::Short { frames, there } => error(
            format!("{} has {there} of the {frames} frames that were written to it", log.display()),
            "put the -wal back where it was taken from; to go on without what it held, remove the -shm beside it; nothing \
             was changed",
        ),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Damaged { frame: u64 },
    Short { frames: u64, there: u64 },
}

fn look(path: &Path) -> Option<Found> {
    // The index first: a log only grows behind what its index says.
    let index = Index::of(&beside(path, "-shm"));
    let mut log = Log::open(&beside(path, "-wal"));
    if let Some(index) = index
        && index.frames > index.copied
    {
        let (frames, there) = (u64::from(index.frames), log.as_ref().map_or(0, |log| log.frames));
        let same = log.as_ref().is_none_or(|log| log.salt == index.salt);
        if same && there < frames {
            return Some(Found::Short { frames, there });
        }
    }
    log.as_mut().and_then(Log::damage)
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What the index says, the shared memory of all processes.
struct Index {
    frames: u32,
    /// Frames that are in the file already.
    copied: u32,
    salt: [u8; 8],
}

impl Index {
    fn of(path: &Path) -> Option<Self> {
        let mut bytes = [0; 100];
        File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
        let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        // Two copies of a header that agree, in the version that SQLite has had since 3.7.
        let sound = bytes[..48] == bytes[48..96] && number(0) == 3_007_000 && bytes[12] == 1;
        if !sound || !of_this_run(path) {
            return None;
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&bytes[32..40]);
        Some(Self { frames: number(16), copied: number(96), salt })
    }
}

/// An index is never made durable: one from before the system started may be of any age.
fn of_this_run(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|about| about.modified()).ok();
    let up = fs::read_to_string("/proc/uptime").ok().and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let (Some(changed), Some(up)) = (changed, up) else { return false };
    #[expect(
        clippy::disallowed_methods,
        reason = "the file's own times are the system's, whatever clock a store was given"
    )]
    let now = SystemTime::now();
    now.checked_sub(Duration::from_secs_f64(up)).is_some_and(|started| changed >= started)
}

/// The first frame that is not in order.
struct Broken {
    frame: u64,
    /// It ended a commit.
    ended: bool,
    /// Commits in the frames that go on behind it, once they do.
    commits: Option<u32>,
}

struct Log {
    file: BufReader<File>,
    page: usize,
    big_endian: bool,
    salt: [u8; 8],
    sum: [u32; 2],
    frames: u64,
}

/// A frame as it is in the log.
struct Frame {
    commit: bool,
    salt: [u8; 8],
    sum: [u32; 2],
}

impl Log {
    /// `None` for a log that SQLite takes for empty.
    fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let size = file.metadata().ok()?.len();
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        let big_endian = match number(&header, 0) {
            0x377f_0682 => false,
            0x377f_0683 => true,
            _ => return None,
        };
        let page = usize::try_from(number(&header, 8)).ok()?;
        let sum = checksum(big_endian, [0, 0], &header[..24]);
        let sound = sum == [number(&header, 24), number(&header, 28)] && (512..=65536).contains(&page);
        if !sound {
            return None;
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&header[16..24]);
        let frames = size.saturating_sub(HEADER as u64) / (FRAME_HEADER + page) as u64;
        Some(Self { file, page, big_endian, salt, sum, frames })
    }

    /// The next frame, and whether it fits the one before.
    fn next(&mut self, before: [u32; 2], buffer: &mut [u8]) -> Option<(Frame, bool)> {
        self.file.read_exact(buffer).ok()?;
        let sum = checksum(self.big_endian, checksum(self.big_endian, before, &buffer[..8]), &buffer[FRAME_HEADER..]);
        let mut salt = [0; 8];
        salt.copy_from_slice(&buffer[8..16]);
        let frame = Frame { commit: number(buffer, 4) != 0, salt, sum: [number(buffer, 16), number(buffer, 20)] };
        let fits = frame.salt == self.salt && frame.sum == sum && number(buffer, 0) != 0;
        Some((frame, fits))
    }

    /// Where the log is damaged: commits go on behind a frame that is not in order.
    fn damage(&mut self) -> Option<Found> {
        let mut buffer = vec![0; FRAME_HEADER + self.page];
        let mut before = self.sum;
        let mut broken: Option<Broken> = None;
        for frame in 1.. {
            let (read, fits) = self.next(before, &mut buffer)?;
            before = read.sum;
            let same_log = read.salt == self.salt;
            match (&mut broken, fits) {
                (None, true) => {}
                (None, false) => broken = Some(Broken { frame, ended: read.commit && same_log, commits: None }),
                (Some(Broken { frame: at, commits: Some(commits), .. }), true) => {
                    *commits += u32::from(read.commit);
                    if *commits >= 2 {
                        return Some(Found::Damaged { frame: *at });
                    }
                }
                (Some(broken), true) => {
                    // What fits the broken frame itself was written after it: then its commit was made as well.
                    let its_own = broken.ended && frame == broken.frame + 1;
                    let commits = u32::from(its_own) + u32::from(read.commit);
                    broken.commits = Some(commits);
                    if commits >= 2 {
                        return Some(Found::Damaged { frame: broken.frame });
                    }
                }
                // A frame whose own checksum is damaged makes the next one not fit either.
                (Some(Broken { frame: at, commits: None, .. }), false) if frame == *at + 1 => {}
                // What does not go on from here is what a crash left, perhaps on top of what an earlier one left.
                (Some(_), false) => return None,
            }
        }
        None
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The checksum of the log's format.
fn checksum(big_endian: bool, seed: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    let word = |chunk: &[u8]| {
        let chunk = [chunk[0], chunk[1], chunk[2], chunk[3]];
        if big_endian { u32::from_be_bytes(chunk) } else { u32::from_le_bytes(chunk) }
    };
    bytes.chunks_exact(8).fold(seed, |[a, b], pair| {
        let a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        let b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
        [a, b]
    })
}
