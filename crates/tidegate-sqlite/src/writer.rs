//! The one writer of this process: a thread that owns the writing connection and commits calls in groups.
//!
//! It takes what waits, begins, runs all of it, commits, and only then answers and tells. While it commits, the next group
//! gathers by itself: at rest a call commits at once, under load one fsync serves many, and nobody ever lingers.
//!
//! A commit that fails leaves the outcome of its group unknown: everybody in it is told so, and the store refuses all
//! further use until it is opened again. Only a full disk rolls back and answers for certain.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::{Clock, SystemClock};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::store::{CommitListener, News};
use tokio::sync::oneshot;

use crate::copier::{self, Copied, Copier, Pass};
use crate::group::{Group, Interned, Limits};
use crate::open;
use crate::room::{self, Disk, Room, Watch};
use crate::trouble::{Trouble, is_busy, store_error};
use crate::watch::{self, Hands};

/// No group takes longer than this to gather and run before its commit.
const GROUP_TIME: Duration = Duration::from_millis(10);
/// No group has more items than this.
const GROUP_ITEMS: usize = 4096;
/// From this size of the WAL on, what is in it is copied into the file, as far as readers allow.
const CHECKPOINT: u64 = 16 << 20;
/// From this size on the writer waits for the copy and begins the WAL anew.
const RESTART: u64 = 64 << 20;
/// How much the WAL must grow before a copy that could not finish is tried again; and what is left of it to copy when the
/// writer ends the copy itself.
const RETRY_CHECKPOINT: u64 = 4 << 20;
/// How long to wait between two tries for the write lock of a busy file.
const BUSY_STEP: Duration = Duration::from_millis(2);
/// How many commit times are kept.
const SAMPLES: usize = 4096;

/// What the writer of this process did since the store was opened.
#[derive(Debug, Clone, Default)]
pub struct GroupStats {
    /// Transactions, those without a write included.
    pub groups: u64,
    /// Commits that wrote: each is one fsync.
    pub commits: u64,
    /// Calls in those commits.
    pub calls: u64,
    /// Items of those calls: messages, leases, settlements and so on.
    pub items: u64,
    /// Steps that SQLite's virtual machine took in the statements run for the items: unlike time, the same on every machine.
    pub steps: u64,
    /// Bytes the commits wrote to the write-ahead log. Those of another process in between are counted as well.
    pub wal_bytes: u64,
    /// How often the writer copied from the log into the file, and waited for such a copy. Meanwhile it does nothing else.
    pub checkpoints: u64,
    /// How long that took in all.
    pub checkpoint_time: Duration,
    /// How long the longest took.
    pub longest_checkpoint: Duration,
    /// How often the log was copied beside the writer.
    pub copies: u64,
    /// How long that took in all.
    pub copy_time: Duration,
    /// How long the latest commits took, fsync included; at most some thousands.
    pub commit_times: Vec<Duration>,
}

impl GroupStats {
    /// The time that half of the latest commits took at most.
    #[must_use]
    pub fn commit_p50(&self) -> Option<Duration> {
        let mut times = self.commit_times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    fn sample(&mut self, took: Duration) {
        if self.commit_times.len() < SAMPLES {
            self.commit_times.push(took);
        } else {
            let at = usize::try_from(self.commits).unwrap_or(0) % SAMPLES;
            self.commit_times[at] = took;
        }
    }
}

/// What the thread and its callers share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    listeners: Mutex<Vec<Weak<dyn CommitListener>>>,
    stats: Mutex<GroupStats>,
    /// Why the store refuses all further use.
    poison: OnceLock<StoreError>,
    /// The store's clock as the last group saw it.
    hands: Mutex<Option<Hands>>,
    /// The disk as the last group saw it, and how much may be enqueued beside the writer.
    disk: Mutex<(Disk, Option<u64>)>,
    /// Whether anybody ever claimed here: from then on a reserve is kept.
    works: AtomicBool,
}

impl Shared {
    /// Refuses once the outcome of a commit is unknown.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.poison.get() {
            Some(error) => Err(stopped(error)),
            None => Ok(()),
        }
    }

    fn seen(&self, hands: Hands) {
        *self.hands.lock().unwrap_or_else(PoisonError::into_inner) = Some(hands);
    }

    /// Whether the wall clock was set since the last group: until the next one, stored times are not those in force.
    pub(crate) fn clock_jumped(&self, clock: &dyn Clock) -> bool {
        let seen = *self.hands.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| seen.jumped(Hands::of(clock)))
    }

    /// Somebody is about to claim.
    pub(crate) fn works(&self) {
        self.works.store(true, Ordering::Relaxed);
    }

    fn looked(&self, watch: &Watch) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = (watch.seen(), Some(watch.allowance()));
    }

    /// The disk as the last group saw it.
    pub(crate) fn disk(&self) -> Disk {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// How many bytes of new messages there was room for.
    pub(crate) fn allowance(&self) -> u64 {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).1.unwrap_or(u64::MAX)
    }

    fn poison(&self, error: &StoreError) {
        // The first trouble is the one that explains the others.
        let _first = self.poison.set(error.clone());
    }
}

fn stopped(error: &StoreError) -> StoreError {
    StoreError::unavailable(format!("the store stopped after a failure whose outcome is unknown: {}", error.what()))
        .hint("open it again: what was committed is there, and repeating a call is safe")
}

/// Settings of the writer.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    pub(crate) busy_timeout: Duration,
    pub(crate) room: Room,
    pub(crate) tuning: Tuning,
}

/// What the product never varies; the power-loss harness does, through the feature `power-loss`.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "power-loss"), expect(unreachable_pub, reason = "public for the power-loss harness alone"))]
pub struct Tuning {
    /// What a commit waits for: below `Full` it proves that the harness sees what is lost.
    pub synchronous: Synchronous,
    /// From this size of the WAL on, in bytes, it is copied into the file as far as readers allow.
    pub checkpoint: u64,
    /// From this size on the writer waits for the copy and begins the WAL anew.
    pub restart: u64,
    /// How much the WAL must grow before the next copy is tried after one that could not finish, and how little is left
    /// to copy when the writer does it itself.
    pub retry: u64,
    /// Who copies.
    pub copying: Copying,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Full,
            checkpoint: CHECKPOINT,
            restart: RESTART,
            retry: RETRY_CHECKPOINT,
            copying: Copying::Beside,
        }
    }
}

/// SQLite's `synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "power-loss"), expect(dead_code, reason = "only the power-loss harness weakens a store"))]
#[cfg_attr(not(feature = "power-loss"), expect(unreachable_pub, reason = "public for the power-loss harness alone"))]
pub enum Synchronous {
    /// Nothing is waited for.
    Off,
    /// Checkpoints are waited for, commits are not.
    Normal,
    /// Every commit is waited for: the only one the product uses.
    Full,
}

impl Synchronous {
    /// SQLite's word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Normal => "normal",
            Self::Full => "full",
        }
    }
}

/// Who copies the log into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "power-loss"), expect(dead_code, reason = "only the power-loss harness has it otherwise"))]
#[cfg_attr(not(feature = "power-loss"), expect(unreachable_pub, reason = "public for the power-loss harness alone"))]
pub enum Copying {
    /// A thread beside the writer: the only one the product uses.
    Beside,
    /// The same, and the writer waits for it, so that what happens on the disk has one order.
    BesideAndWaitedFor,
    /// The writer, between two groups.
    Here,
}

/// The handle on the thread.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) room: Room,
    calls: Mutex<Option<Sender<Box<dyn Call>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(conn: Connection, path: &Path, settings: Settings) -> Result<Self, StoreError> {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let hands = watch::first(&conn, &*settings.clock).map_err(store_error)?;
        shared.seen(hands);
        let room = settings.room;
        let real = SystemClock::new();
        let mut watch = Watch::new(path, room);
        watch.look(&conn, real.monotonic());
        shared.looked(&watch);
        let thread = Thread {
            path: path.to_owned(),
            copier: None,
            watch,
            conn,
            shared: Arc::clone(&shared),
            settings,
            real,
            interned: Interned::default(),
            data_version: None,
            hands,
            rested: true,
            wal: Wal::default(),
        };
        let thread = std::thread::Builder::new()
            .name("tidegate-writer".into())
            .spawn(move || thread.run(&receiver))
            .map_err(|e| StoreError::unavailable(format!("no writer thread for {}: {e}", path.display())).source(e))?;
        Ok(Self { shared, room, calls: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Has the work done in a group, and answers after its commit. `items` is how much of the group it takes.
    pub(crate) async fn call<T, F>(&self, items: usize, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Group<'_>) -> Result<T, Trouble> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.shared.check()?;
        let waiting = Waiting { work: Some(work), outcome: None, reply, items: items.max(1) };
        let sent = match &*self.calls.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(calls) => calls.send(Box::new(waiting)).is_ok(),
            None => return Err(closed()),
        };
        if !sent {
            return Err(ended());
        }
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    pub(crate) fn listen(&self, listener: Weak<dyn CommitListener>) {
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    pub(crate) fn stats(&self) -> GroupStats {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no more calls, finishes those that wait, and gives back the thread to be joined.
    pub(crate) fn close(&self) -> Option<JoinHandle<()>> {
        drop(self.calls.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Writer {
    /// The file is free once a store is dropped: whoever opens it next finds no trace of this one.
    fn drop(&mut self) {
        if let Some(thread) = self.close()
            && thread.thread().id() != std::thread::current().id()
        {
            let _panicked = thread.join();
        }
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("the store is closed").hint("open it again")
}

fn ended() -> StoreError {
    StoreError::unavailable("the writer of the store ended while it had the call; its outcome is unknown")
        .hint("open the store again and repeat the call")
}

/// A call on its way through the writer.
trait Call: Send {
    fn items(&self) -> usize;
    fn run(&mut self, group: &mut Group<'_>) -> Result<(), rusqlite::Error>;
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, error: StoreError);
}

struct Waiting<T, F> {
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    items: usize,
}

impl<T, F> Call for Waiting<T, F>
where
    T: Send,
    F: FnOnce(&mut Group<'_>) -> Result<T, Trouble> + Send,
{
    fn items(&self) -> usize {
        self.items
    }

    fn run(&mut self, group: &mut Group<'_>) -> Result<(), rusqlite::Error> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.outcome = Some(match work(group) {
            Ok(value) => Ok(value),
            Err(Trouble::Item(error)) => Err(error),
            Err(Trouble::Group(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>) {
        let this = *self;
        // A caller that went away does not undo what was committed.
        let _gone = this.reply.send(this.outcome.unwrap_or_else(|| Err(ended())));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        let _gone = self.reply.send(Err(error));
    }
}

/// How a group failed.
enum Failed {
    /// Nothing of it was stored, for certain.
    RolledBack(StoreError),
    /// Nobody knows; nothing may be done on this handle any more.
    Unknown(StoreError),
}

/// What a group consisted of.
#[derive(Debug, Clone, Copy)]
struct Done {
    calls: usize,
    items: usize,
    steps: u64,
}

/// The write-ahead log as this process last saw it, in frames.
#[derive(Debug, Default)]
struct Wal {
    frames: u64,
    /// How many of them are in the file as well, as far as this process copied them.
    copied: u64,
    /// Whether the last copy of this thread met somebody who reads an older state, or copies as well.
    held_up: bool,
    /// How often it began anew, and the same when the pass that is under way began.
    begun: u64,
    pass_of: u64,
    /// Size at which the next checkpoint is tried.
    next_try: u64,
    /// The same while the disk is short of room.
    next_short: u64,
}

struct Thread {
    // Dropped before the connection: the last one to a file tidies up its log.
    copier: Option<Copier>,
    conn: Connection,
    path: PathBuf,
    shared: Arc<Shared>,
    settings: Settings,
    /// Real time, whatever clock the store was given: how long a commit takes and how long a file is busy are facts of
    /// the machine, and must pass while a test's clock stands still.
    real: SystemClock,
    interned: Interned,
    data_version: Option<i64>,
    /// The store's clock as the last group saw it; at first as it was when the store was opened.
    hands: Hands,
    /// Whether a group was committed yet.
    rested: bool,
    wal: Wal,
    watch: Watch,
}

impl Thread {
    fn run(mut self, receiver: &Receiver<Box<dyn Call>>) {
        let frames = wal_frames(&self.conn).unwrap_or(0);
        let next_try = self.settings.tuning.checkpoint;
        self.wal = Wal { frames, next_try, next_short: room::SHORT_CHECKPOINT, ..Wal::default() };
        while let Ok(first) = receiver.recv() {
            self.look_at_the_copier();
            if let Err(error) = self.shared.check() {
                first.fail(error);
                continue;
            }
            let mut calls = vec![first];
            match self.group(receiver, &mut calls) {
                Ok(news) => {
                    failpoint::reach("group.after_commit");
                    for call in calls {
                        call.answer();
                    }
                    failpoint::reach("group.after_answers");
                    self.tell(&news);
                    self.checkpoint();
                }
                Err(Failed::RolledBack(error)) => {
                    self.interned.forget();
                    for call in calls {
                        call.fail(error.clone());
                    }
                    self.checkpoint();
                }
                Err(Failed::Unknown(error)) => {
                    self.stop(&error);
                    let error = stopped(&error);
                    for call in calls {
                        call.fail(error.clone());
                    }
                }
            }
        }
        // What it still copied may have failed as well, and then nothing is tidied up.
        if let Some(pass) = self.copier.as_mut().and_then(Copier::wait) {
            self.passed(pass);
        }
        self.watch.close();
    }

    /// Runs one transaction; what joins while it runs belongs to it.
    fn group(&mut self, receiver: &Receiver<Box<dyn Call>>, calls: &mut Vec<Box<dyn Call>>) -> Result<News, Failed> {
        if self.shared.works.load(Ordering::Relaxed) {
            self.watch.works();
        }
        self.watch.look(&self.conn, self.real.monotonic());
        self.shared.looked(&self.watch);
        self.begin(receiver, calls)?;
        failpoint::reach("group.after_begin");
        let changes = self.conn.total_changes();
        let Self { conn, settings, interned, real, data_version, hands, rested, watch, .. } = self;
        let mut run =
            |conn: &Connection, calls: &mut Vec<Box<dyn Call>>| -> Result<(News, Done, Hands), rusqlite::Error> {
                let version: i64 = conn.prepare_cached("pragma data_version")?.query_row([], |row| row.get(0))?;
                if data_version.replace(version) != Some(version) {
                    interned.others_wrote();
                }
                let started = real.monotonic();
                let now = Hands::of(&*settings.clock);
                if *rested {
                    watch::after_rest(conn, hands.wall)?;
                }
                let now = watch::look(conn, *hands, now)?;
                if conn.total_changes() != changes {
                    // A clock that was set moves leases.
                    interned.others_wrote();
                }
                let mut group = Group::new(conn, now.wall, settings.limits, interned);
                (group.room_for, group.allowance) = (watch.seen().room_for, watch.allowance());
                let (mut at, mut weight) = (0, 0);
                loop {
                    while let Some(call) = calls.get_mut(at) {
                        weight += call.items();
                        call.run(&mut group)?;
                        at += 1;
                    }
                    if weight >= GROUP_ITEMS || real.monotonic().saturating_sub(started) >= GROUP_TIME {
                        break;
                    }
                    match receiver.try_recv() {
                        Ok(call) => calls.push(call),
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                    }
                }
                let done = Done { calls: at, items: group.items, steps: group.take_steps() };
                Ok((group.finish()?, done, now))
            };
        let ran = catch_unwind(AssertUnwindSafe(|| run(conn, calls)));
        let (news, done, now) = match ran {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => return Err(self.roll_back(error)),
            Err(panic) => return Err(self.roll_back_panic(&*panic)),
        };
        if self.conn.is_autocommit() {
            let what = "the transaction ended by itself before its commit";
            return Err(Failed::Unknown(StoreError::unavailable(what)));
        }
        let wrote = self.conn.total_changes() != changes;
        failpoint::reach("group.before_commit");
        if canary::is(Canary::AcknowledgeBeforeCommit) {
            for call in calls.drain(..) {
                call.answer();
            }
        }
        self.commit(wrote, done)?;
        // Only now: what a look noted would be gone with a group that was rolled back.
        (self.hands, self.rested) = (now, false);
        self.shared.seen(now);
        Ok(news)
    }

    /// Takes the write lock of the file. The busy time-out is ours, not SQLite's: its own sleeps grow, and the calls
    /// behind this one can join the group meanwhile.
    fn begin(&mut self, receiver: &Receiver<Box<dyn Call>>, calls: &mut Vec<Box<dyn Call>>) -> Result<(), Failed> {
        let started = self.real.monotonic();
        loop {
            let begun = self.conn.prepare_cached("begin immediate").and_then(|mut begin| begin.execute([]));
            let Err(error) = begun else { return Ok(()) };
            if !is_busy(&error) {
                return Err(self.roll_back(error));
            }
            if self.real.monotonic().saturating_sub(started) >= self.settings.busy_timeout {
                return Err(Failed::RolledBack(store_error(error)));
            }
            match receiver.recv_timeout(BUSY_STEP) {
                Ok(call) => calls.push(call),
                // Closed: what waits is still done. Parking is no busy loop and no sleep that cannot be cut short.
                Err(RecvTimeoutError::Disconnected) => std::thread::park_timeout(BUSY_STEP),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn commit(&mut self, wrote: bool, done: Done) -> Result<(), Failed> {
        let started = self.real.monotonic();
        if let Err(error) = self.conn.prepare_cached("commit").and_then(|mut commit| commit.execute([])) {
            if canary::is(Canary::FailedCommitIgnored) {
                let _undone = self.conn.execute_batch("rollback");
                return Err(Failed::RolledBack(store_error(error)));
            }
            let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
            return Err(if full { self.roll_back(error) } else { Failed::Unknown(store_error(error)) });
        }
        let took = self.real.monotonic().saturating_sub(started);
        let frames = if wrote { wal_frames(&self.conn) } else { None };
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.groups += 1;
        stats.steps += done.steps;
        if wrote {
            stats.commits += 1;
            stats.calls += done.calls as u64;
            stats.items += done.items as u64;
            stats.sample(took);
        }
        if let Some(frames) = frames {
            // Fewer than before: the log began anew with this commit.
            let written = frames.checked_sub(self.wal.frames).unwrap_or_else(|| {
                (self.wal.copied, self.wal.begun) = (0, self.wal.begun + 1);
                frames
            });
            stats.wal_bytes += written * FRAME;
            self.watch.wrote(written * FRAME);
            self.wal.frames = frames;
        }
        Ok(())
    }

    /// Undoes the group after an error before its commit. A damaged file or a failed read or write leaves no certainty.
    fn roll_back(&mut self, error: rusqlite::Error) -> Failed {
        let code = error.sqlite_error_code();
        if code == Some(ErrorCode::DiskFull) {
            self.watch.met_the_end();
            self.wal.next_short = 0;
        }
        let undone = self.conn.is_autocommit() || self.conn.execute_batch("rollback").is_ok();
        let answer = store_error(error);
        match code {
            _ if !undone => Failed::Unknown(answer),
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::FileLockingProtocolFailed,
            ) => Failed::Unknown(answer),
            Some(_) | None => Failed::RolledBack(answer),
        }
    }

    fn roll_back_panic(&self, panic: &(dyn Any + Send)) -> Failed {
        let said = panic_text(panic);
        let answer =
            StoreError::unavailable(format!("a call of the store panicked ({said}); nothing of its group was stored"))
                .hint("this is a defect of the store; calls of other groups are not affected");
        let undone = self.conn.is_autocommit() || self.conn.execute_batch("rollback").is_ok();
        if undone { Failed::RolledBack(answer) } else { Failed::Unknown(answer) }
    }

    fn tell(&self, news: &News) {
        if news.ready.is_empty() && news.ended.is_empty() {
            return;
        }
        let listeners: Vec<_> = {
            let mut listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            // A listener that panics loses its news, not everybody's writer.
            let _panicked = catch_unwind(AssertUnwindSafe(|| listener.committed(news)));
        }
    }

    /// Sees that the log is copied into the file, beside this thread as far as that goes.
    fn checkpoint(&mut self) {
        self.look_at_the_copier();
        let size = self.wal.frames * FRAME;
        let Tuning { checkpoint, restart, retry, copying, .. } = self.settings.tuning;
        // A commit that met the end of the disk asks for it as well: what the log frees may be all there is.
        let short = self.watch.short() || self.wal.next_short == 0;
        if size < if short { self.wal.next_short } else { self.wal.next_try } {
            if size < checkpoint {
                self.wal.next_try = checkpoint;
            }
            if size < room::SHORT_CHECKPOINT {
                self.wal.next_short = room::SHORT_CHECKPOINT;
            }
            return;
        }
        let left = self.wal.frames.saturating_sub(self.wal.copied) * FRAME;
        match copying {
            // The log gives its space back. The file may have to grow for it; if it cannot, the log stays as it is.
            _ if short => {
                self.copy_here("pragma wal_checkpoint(truncate)");
                if self.wal.held_up {
                    // The next group tries again, however little is written by then: where there is no room nothing is.
                    self.wal.next_short = 0;
                }
            }
            // Whoever copies is slower than this writer, or a reader holds it up: the log must not grow for ever.
            _ if size >= restart => self.copy_here("pragma wal_checkpoint(restart)"),
            Copying::Here => self.copy_here("pragma wal_checkpoint(passive)"),
            Copying::Beside | Copying::BesideAndWaitedFor if self.copier_is_busy() => {}
            Copying::Beside | Copying::BesideAndWaitedFor if left <= retry => {
                self.copy_here("pragma wal_checkpoint(passive)");
            }
            Copying::Beside => self.copy_beside(),
            Copying::BesideAndWaitedFor => {
                self.copy_beside();
                self.wait_for_the_copier();
            }
        }
    }

    fn copier_is_busy(&self) -> bool {
        self.copier.as_ref().is_some_and(Copier::under_way)
    }

    /// Begins a pass beside this thread; without a thread for it the pass is made here.
    fn copy_beside(&mut self) {
        let copier = match self.copier.take() {
            Some(copier) => Ok(copier),
            None => Copier::start(self.path.clone(), self.settings.tuning.synchronous),
        };
        let begun = copier.map(|mut copier| {
            let begun = copier.begin();
            self.wal.pass_of = self.wal.begun;
            self.copier = begun.then_some(copier);
            begun
        });
        if !begun.unwrap_or(false) {
            self.copy_here("pragma wal_checkpoint(passive)");
        }
    }

    fn look_at_the_copier(&mut self) {
        if let Some(pass) = self.copier.as_mut().and_then(Copier::ended) {
            self.passed(pass);
        }
    }

    fn wait_for_the_copier(&mut self) {
        if let Some(pass) = self.copier.as_mut().and_then(Copier::wait) {
            self.passed(pass);
        }
    }

    fn passed(&mut self, Pass { done, took }: Pass) {
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.copies += 1;
        stats.copy_time += took;
        drop(stats);
        // Of a log that began anew since, nothing is copied yet.
        let same = self.wal.pass_of == self.wal.begun;
        self.copied(done.map(|copied| if same { copied } else { Copied { frames: 0, ..copied } }));
    }

    /// Copies on this thread, which no group waits for but the next one.
    fn copy_here(&mut self, how: &str) {
        let started = self.real.monotonic();
        self.wait_for_the_copier();
        if self.shared.check().is_err() {
            return;
        }
        let done = copier::copy(&self.conn, how);
        self.wal.held_up = done.as_ref().is_ok_and(|copied| !copied.all);
        let took = self.real.monotonic().saturating_sub(started);
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.checkpoints += 1;
        stats.checkpoint_time += took;
        stats.longest_checkpoint = stats.longest_checkpoint.max(took);
        drop(stats);
        self.wal.next_short = self.wal.frames * FRAME + room::SHORT_CHECKPOINT;
        self.copied(done);
        // Unless the next commit begins the log anew, somebody still looks at it.
        self.wal.next_try = self.wal.frames * FRAME + self.settings.tuning.retry;
    }

    /// Takes note of a copy. Its failure is no group's, which was answered; but a disk that fails here is not asked again.
    fn copied(&mut self, done: rusqlite::Result<Copied>) {
        let retry = self.settings.tuning.retry;
        match done {
            Ok(Copied { all, frames }) => {
                self.wal.copied = frames;
                if !all {
                    self.wal.next_try = self.wal.frames * FRAME + retry;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log could not be copied into the store's file");
                self.wal.next_try = self.wal.frames * FRAME + retry;
                if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
                    self.stop(&store_error(error));
                }
            }
        }
    }

    /// Ends all use of the file. A sync that failed is never tried again, not even by the last connection that tidies up
    /// when it is closed: the kernel drops what it could not write and calls it clean, so the second one would succeed
    /// without it.
    fn stop(&self, error: &StoreError) {
        self.shared.poison(error);
        if let Err(error) = open::tidy_up_when_closed(&self.conn, false) {
            tracing::warn!(%error, "the write-ahead log may be tidied up when the store is closed");
        }
    }
}

/// Bytes of a page in the log, with its header.
const FRAME: u64 = 4096 + 24;

/// How many frames the log has. Asks without copying anything (SQLite 3.51 and later).
fn wal_frames(conn: &Connection) -> Option<u64> {
    let frames: i64 = conn.prepare_cached("pragma wal_checkpoint(noop)").ok()?.query_row([], |row| row.get(1)).ok()?;
    u64::try_from(frames).ok()
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text").to_owned()
}
