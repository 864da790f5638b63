//! The system calls of this process that change files, recorded on their way to the kernel.
//!
//! SQLite is linked statically and the standard library calls the C library by name, so functions of these names in the
//! executable are called instead of the C library's. Each hands its call to the kernel, and, while a [`Recording`] is under
//! way and the file lies in its directory, writes down what the call did: SQLite's writes as well as those of our own code.
//! Reading, locking and mapping are not recorded; nor is the `-shm` file, which is memory that only looks like a file.
//!
//! Nothing is taken on trust: whoever records compares the recorded disk with the real directory afterwards
//! ([`crate::disk::Disk::differences`]), so that a call this file does not know is an error and not a blind spot.

#![expect(
    unsafe_code,
    reason = "defining C functions and calling the kernel is unsafe; each block says what it relies on"
)]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_char, c_int, c_long, c_void, iovec, mode_t, off64_t, size_t, ssize_t};

use crate::disk::{FileId, Op};

/// Whether calls are looked at at all; everything else in the process pays for this load.
static RECORDING: AtomicBool = AtomicBool::new(false);
/// The recording under way. A call is made and noted under this lock, so that the notes are in the order of the calls.
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);
/// One recording at a time.
static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug)]
struct Recorder {
    root: PathBuf,
    root_id: Inode,
    files: HashMap<Inode, FileId>,
    next: u32,
    ops: Vec<Op>,
    fault: Option<Fault>,
    fault_at: Option<usize>,
}

/// Device and number: what the kernel knows a file by.
type Inode = (u64, u64);

/// Which calls an injected error counts and hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// Syncs of files and of the directory.
    Syncs,
    /// Writes and truncations.
    Writes,
    /// All that is recorded.
    All,
}

/// An `EIO` to come.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which calls are counted.
    pub calls: Calls,
    /// So many of them succeed first.
    pub after: u32,
    /// All later ones fail as well, not only the one.
    pub lasting: bool,
}

/// Records what happens in one directory until it is finished or dropped. There is one at a time; others wait.
#[derive(Debug)]
pub struct Recording {
    _turn: MutexGuard<'static, ()>,
}

impl Recording {
    /// Begins to record a directory whose files are those of `known`, by name.
    ///
    /// # Panics
    /// When the directory cannot be looked at.
    #[must_use]
    pub fn start(root: &Path, known: impl IntoIterator<Item = (String, FileId)>) -> Self {
        interposed();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let root = root.canonicalize().expect("the directory to record is there");
        let root_id = inode_of(&root).expect("the directory to record can be looked at");
        let mut recorder =
            Recorder { root, root_id, files: HashMap::new(), next: 0, ops: Vec::new(), fault: None, fault_at: None };
        for (name, file) in known {
            let inode = inode_of(&recorder.root.join(&name)).expect("a known file is there");
            recorder.files.insert(inode, file);
            recorder.next = recorder.next.max(file.0 + 1);
        }
        *lock() = Some(recorder);
        RECORDING.store(true, Ordering::SeqCst);
        Self { _turn: turn }
    }

    /// How many operations were recorded until now.
    #[must_use]
    pub fn position(&self) -> usize {
        position()
    }

    /// Makes calls fail from now on.
    pub fn fail(&self, fault: Fault) {
        if let Some(recorder) = lock().as_mut() {
            recorder.fault = Some(fault);
        }
    }

    /// Where the first injected error hit, if it did.
    #[must_use]
    pub fn failed_at(&self) -> Option<usize> {
        lock().as_ref().and_then(|recorder| recorder.fault_at)
    }

    /// Ends it and gives what happened, in order.
    #[must_use]
    pub fn finish(self) -> Vec<Op> {
        RECORDING.store(false, Ordering::SeqCst);
        lock().take().map(|recorder| recorder.ops).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.store(false, Ordering::SeqCst);
        drop(lock().take());
    }
}

/// How many operations the recording under way has; 0 without one. May be called from any thread.
#[must_use]
pub fn position() -> usize {
    lock().as_ref().map_or(0, |recorder| recorder.ops.len())
}

/// Does something while no recorded call can be made by another thread; it must make none itself.
pub(crate) fn hold<T>(act: impl FnOnce() -> T) -> T {
    let _held = lock();
    act()
}

fn lock() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names every function below, so that the linker takes this file's code before it looks into the C library.
fn interposed() {
    let functions: [usize; 21] = [
        write as *const () as usize,
        pwrite as *const () as usize,
        pwrite64 as *const () as usize,
        writev as *const () as usize,
        pwritev as *const () as usize,
        pwritev64 as *const () as usize,
        ftruncate as *const () as usize,
        ftruncate64 as *const () as usize,
        fallocate as *const () as usize,
        fallocate64 as *const () as usize,
        posix_fallocate as *const () as usize,
        posix_fallocate64 as *const () as usize,
        fsync as *const () as usize,
        fdatasync as *const () as usize,
        open as *const () as usize,
        open64 as *const () as usize,
        rename as *const () as usize,
        unlink as *const () as usize,
        link as *const () as usize,
        linkat as *const () as usize,
        copy_file_range as *const () as usize,
    ];
    std::hint::black_box(functions);
}

// --- the kernel ------------------------------------------------------------------------------------------------------

/// A system call that fails as the C library's function does: -1 and `errno`.
macro_rules! kernel {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: the arguments are those of the C function this stands in for, handed on as they came; whoever called it
        // vouches for them. `syscall` sets `errno` as that function would.
        unsafe { libc::syscall($number $(, $argument)*) }
    };
}

fn small(answer: c_long) -> c_int {
    c_int::try_from(answer).unwrap_or(-1)
}

fn size(answer: c_long) -> ssize_t {
    ssize_t::try_from(answer).unwrap_or(-1)
}

fn stat(fd: c_int) -> Option<libc::stat64> {
    // SAFETY: a zeroed `stat64` is one, and the kernel writes no more than its size into it.
    unsafe {
        let mut found: libc::stat64 = std::mem::zeroed();
        (libc::fstat64(fd, &raw mut found) == 0).then_some(found)
    }
}

fn inode_of_fd(fd: c_int) -> Option<Inode> {
    stat(fd).map(|found| (found.st_dev, found.st_ino))
}

fn inode_of(path: &Path) -> Option<Inode> {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().ok().map(|found| (found.dev(), found.ino()))
}

fn set_errno(code: c_int) {
    // SAFETY: the C library gives a valid pointer to this thread's `errno`.
    unsafe { *libc::__errno_location() = code };
}

fn errno() -> c_int {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() }
}

// --- the recorder ----------------------------------------------------------------------------------------------------

impl Recorder {
    /// The file name of a path in the recorded directory.
    fn name<'p>(&self, path: &'p Path) -> Option<&'p str> {
        let name = path.file_name()?.to_str()?;
        (path.parent()? == self.root && !name.ends_with("-shm")).then_some(name)
    }

    fn file(&self, fd: c_int) -> Option<FileId> {
        self.files.get(&inode_of_fd(fd)?).copied()
    }

    /// The file of this name, if it has no other.
    fn last_name(&self, name: &str) -> Option<Inode> {
        use std::os::unix::fs::MetadataExt as _;
        let found = self.root.join(name).symlink_metadata().ok()?;
        (found.nlink() == 1).then(|| (found.dev(), found.ino()))
    }

    /// A file without a name is on no disk that is found again, and the kernel gives its number to the next file, anybody's.
    fn forget(&mut self, file: Option<Inode>) {
        if let Some(inode) = file {
            self.files.remove(&inode);
        }
    }

    /// Whether this call is the one to fail.
    fn fails(&mut self, calls: Calls) -> bool {
        let Some(fault) = &mut self.fault else { return false };
        if fault.calls != Calls::All && fault.calls != calls {
            return false;
        }
        if fault.after > 0 {
            fault.after -= 1;
            return false;
        }
        if !fault.lasting {
            self.fault = None;
        }
        self.fault_at.get_or_insert(self.ops.len());
        set_errno(libc::EIO);
        true
    }
}

/// Runs a call under the lock of the recording, or just runs it.
fn recorded<T>(plain: impl FnOnce() -> T, noted: impl FnOnce(&mut Recorder) -> Option<T>) -> T {
    if RECORDING.load(Ordering::Relaxed)
        && let Some(recorder) = lock().as_mut()
        && let Some(answer) = noted(recorder)
    {
        return answer;
    }
    plain()
}

fn bytes_of(buffer: *const c_void, length: ssize_t) -> Vec<u8> {
    let Ok(length) = usize::try_from(length) else { return Vec::new() };
    // SAFETY: the kernel just read this many bytes from this buffer.
    unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec()
}

/// A write at an offset, or where the file stands.
fn write_at(fd: c_int, buffer: *const c_void, length: size_t, offset: Option<off64_t>) -> ssize_t {
    let call = || match offset {
        Some(offset) => size(kernel!(libc::SYS_pwrite64, fd, buffer, length, offset)),
        None => size(kernel!(libc::SYS_write, fd, buffer, length)),
    };
    recorded(call, |recorder| {
        let file = recorder.file(fd)?;
        if recorder.fails(Calls::Writes) {
            return Some(-1);
        }
        let written = call();
        if written > 0 {
            let saved = errno();
            let end = match offset {
                Some(offset) => offset + off64_t::try_from(written).unwrap_or(0),
                None => kernel!(libc::SYS_lseek, fd, 0_i64, libc::SEEK_CUR),
            };
            let at = u64::try_from(end).unwrap_or(0).saturating_sub(u64::try_from(written).unwrap_or(0));
            recorder.ops.push(Op::Write { file, at, bytes: bytes_of(buffer, written) });
            set_errno(saved);
        }
        Some(written)
    })
}

/// A gathering write, as so many single ones: the caller goes on where a short write ended.
fn write_first(fd: c_int, parts: *const iovec, count: c_int, offset: Option<off64_t>) -> ssize_t {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller gives `count` parts, each a valid buffer, as the C function asks for.
    let parts = unsafe { std::slice::from_raw_parts(parts, count) };
    match parts.iter().find(|part| part.iov_len > 0) {
        Some(part) => write_at(fd, part.iov_base, part.iov_len, offset),
        None => 0,
    }
}

fn resize(fd: c_int, length: off64_t) -> c_int {
    let call = || small(kernel!(libc::SYS_ftruncate, fd, length));
    recorded(call, |recorder| {
        let file = recorder.file(fd)?;
        if recorder.fails(Calls::Writes) {
            return Some(-1);
        }
        let answer = call();
        if answer == 0 {
            recorder.ops.push(Op::Truncate { file, length: u64::try_from(length).unwrap_or(0) });
        }
        Some(answer)
    })
}

/// Blocks for a file: what is recorded is that it is longer. Punching holes and the like is not modelled, and is refused.
fn allocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
    let call = || small(kernel!(libc::SYS_fallocate, fd, mode, offset, length));
    recorded(call, |recorder| {
        let file = recorder.file(fd)?;
        if mode != 0 {
            set_errno(libc::EOPNOTSUPP);
            return Some(-1);
        }
        if recorder.fails(Calls::Writes) {
            return Some(-1);
        }
        let before = stat(fd)?.st_size;
        let answer = call();
        if answer == 0 && offset + length > before {
            recorder.ops.push(Op::Truncate { file, length: u64::try_from(offset + length).unwrap_or(0) });
        }
        Some(answer)
    })
}

fn sync(fd: c_int, number: c_long) -> c_int {
    let call = || small(kernel!(number, fd));
    recorded(call, |recorder| {
        let inode = inode_of_fd(fd)?;
        let file = recorder.files.get(&inode).copied();
        if file.is_none() && inode != recorder.root_id {
            return None;
        }
        if recorder.fails(Calls::Syncs) {
            // What it was to make durable is not, and the kernel calls those pages clean: no later sync brings them back.
            recorder.ops.push(file.map_or(Op::DirectorySyncFailed, |file| Op::SyncFailed { file }));
            return Some(-1);
        }
        // The real one is left out: the recorded disk is the one that counts, and the real one need not survive anything.
        recorder.ops.push(file.map_or(Op::SyncDirectory, |file| Op::Sync { file }));
        Some(0)
    })
}

fn open_file(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // What the C library adds for its callers on a 64-bit kernel.
    let flags = flags | libc::O_LARGEFILE;
    let call = || small(kernel!(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode));
    if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
        return call();
    }
    recorded(call, |recorder| {
        let name = recorder.name(path_of(path)?)?.to_owned();
        let there = inode_of(&recorder.root.join(&name)).is_some();
        if !there && recorder.fails(Calls::Writes) {
            return Some(-1);
        }
        let fd = call();
        if fd < 0 {
            return Some(fd);
        }
        let inode = inode_of_fd(fd)?;
        if !there {
            let file = FileId(recorder.next);
            recorder.next += 1;
            recorder.files.insert(inode, file);
            recorder.ops.push(Op::Create { name, file });
        } else if flags & libc::O_TRUNC != 0
            && let Some(file) = recorder.files.get(&inode).copied()
        {
            recorder.ops.push(Op::Truncate { file, length: 0 });
        }
        Some(fd)
    })
}

fn path_of<'p>(path: *const c_char) -> Option<&'p Path> {
    // SAFETY: the C function this stands in for takes a string that ends with a zero, valid for the call.
    let path = (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) })?;
    Some(Path::new(OsStr::from_bytes(path.to_bytes())))
}

fn name_file(from: *const c_char, to: *const c_char, call: impl Fn() -> c_int) -> c_int {
    recorded(&call, |recorder| {
        let name = recorder.name(path_of(to)?)?.to_owned();
        let file = *recorder.files.get(&inode_of(path_of(from)?)?)?;
        if recorder.fails(Calls::Writes) {
            return Some(-1);
        }
        let answer = call();
        if answer == 0 {
            recorder.ops.push(Op::Link { name, file });
        }
        Some(answer)
    })
}

// --- the functions that are called instead of the C library's ----------------------------------------------------------

macro_rules! stand_in {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty $body:block)*) => {$(
        // SAFETY: of the name, arguments and meaning of the C library's function, which it replaces in this executable.
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> $answer $body
    )*};
}

stand_in! {
    write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t { write_at(fd, buffer, length, None) }
    pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off64_t) -> ssize_t {
        write_at(fd, buffer, length, Some(offset))
    }
    pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: off64_t) -> ssize_t {
        write_at(fd, buffer, length, Some(offset))
    }
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t { write_first(fd, parts, count, None) }
    pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off64_t) -> ssize_t {
        write_first(fd, parts, count, Some(offset))
    }
    pwritev64(fd: c_int, parts: *const iovec, count: c_int, offset: off64_t) -> ssize_t {
        write_first(fd, parts, count, Some(offset))
    }
    ftruncate(fd: c_int, length: off64_t) -> c_int { resize(fd, length) }
    ftruncate64(fd: c_int, length: off64_t) -> c_int { resize(fd, length) }
    fallocate(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int { allocate(fd, mode, offset, length) }
    fallocate64(fd: c_int, mode: c_int, offset: off64_t, length: off64_t) -> c_int {
        allocate(fd, mode, offset, length)
    }
    posix_fallocate(fd: c_int, offset: off64_t, length: off64_t) -> c_int {
        // Unlike the others it answers the error itself.
        if allocate(fd, 0, offset, length) == 0 { 0 } else { errno() }
    }
    posix_fallocate64(fd: c_int, offset: off64_t, length: off64_t) -> c_int {
        if allocate(fd, 0, offset, length) == 0 { 0 } else { errno() }
    }
    fsync(fd: c_int) -> c_int { sync(fd, libc::SYS_fsync) }
    fdatasync(fd: c_int) -> c_int { sync(fd, libc::SYS_fdatasync) }
    // The C library's take the mode as a variable argument; on Linux it arrives where a third argument does.
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { open_file(path, flags, mode) }
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { open_file(path, flags, mode) }
    rename(from: *const c_char, to: *const c_char) -> c_int {
        let call = || small(kernel!(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0_u32));
        recorded(call, |recorder| {
            let from = recorder.name(path_of(from)?)?.to_owned();
            let to = recorder.name(path_of(to)?)?.to_owned();
            if recorder.fails(Calls::Writes) {
                return Some(-1);
            }
            let last = recorder.last_name(&to);
            let answer = call();
            if answer == 0 {
                recorder.forget(last);
                recorder.ops.push(Op::Rename { from, to });
            }
            Some(answer)
        })
    }
    unlink(path: *const c_char) -> c_int {
        let call = || small(kernel!(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0));
        recorded(call, |recorder| {
            let name = recorder.name(path_of(path)?)?.to_owned();
            if recorder.fails(Calls::Writes) {
                return Some(-1);
            }
            let last = recorder.last_name(&name);
            let answer = call();
            if answer == 0 {
                recorder.forget(last);
                recorder.ops.push(Op::Unlink { name });
            }
            Some(answer)
        })
    }
    link(from: *const c_char, to: *const c_char) -> c_int {
        name_file(from, to, || small(kernel!(libc::SYS_linkat, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0)))
    }
    linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int {
        name_file(from, to, || small(kernel!(libc::SYS_linkat, from_dir, from, to_dir, to, flags)))
    }
    copy_file_range(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, length: size_t, flags: u32)
        -> ssize_t
    {
        let call = || size(kernel!(libc::SYS_copy_file_range, from, from_at, to, to_at, length, flags));
        // As an old kernel answers: the caller then reads and writes.
        recorded(call, |recorder| {
            recorder.file(to)?;
            set_errno(libc::ENOSYS);
            Some(-1)
        })
    }
}
