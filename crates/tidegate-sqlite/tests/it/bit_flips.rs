//! Flipped bits: a file with a row of every sort is damaged bit by bit, and everything in it is read through the store.
//!
//! What a store says of a damaged file is compared with what it said of the whole one, item by item. It may refuse, it may
//! say `Corrupt`, and it may miss what it can no longer find if the doctor then finds why; it must never say anything else
//! than before. The long run damages every byte:
//! `TIDEGATE_FLIPS=4096 cargo test --release -p tidegate-sqlite --test it bit_flips -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::id::{EffectName, MessageId, Tenant, TokenName};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Failure, NewMessage};
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    Act, ChangeQueue, ChangeToken, Enqueued, Filter, Journal, JournalWrite, Lease, NewOperation, Operate, Pace,
    QueueChange, Selection, Settle, SweepRequest,
};
use tidegate_core::token::{Glob, TokenChange, TokenHash};
use tidegate_core::{Store as _, StoreError, StoreErrorKind};
use tidegate_sqlite::{Doctor, Options, Room, SqliteStore};
use tidegate_testkit::ManualClock;

use crate::doctor::inhabit;
use crate::fixture::{claim, completion, kind, message, queue, run, sized, started};

const PAGE: usize = 4096;
/// How many bytes of a page get a flipped bit where nothing else is said.
const EACH: usize = 4;

fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn open(path: &Path, clock: &Arc<ManualClock>) -> Result<Arc<SqliteStore>, StoreError> {
    // As a large file is opened: what the pages hold is found out only as they are read.
    let options = Options {
        clock: Arc::clone(clock) as _,
        create: false,
        check_up_to: 0,
        room: Room::UNWATCHED,
        busy_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    SqliteStore::open(path, options)
}

fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn act() -> Act {
    Act { actor: "tester".into(), reason: "a test".into() }
}

/// A file with rows of every sort in every table, pages that are free, and rows larger than a page.
fn golden(path: &Path, clock: &Arc<ManualClock>) {
    let options = Options { clock: Arc::clone(clock) as _, room: Room::UNWATCHED, ..Options::default() };
    let store = SqliteStore::open(path, options).unwrap();
    run(async {
        for n in 0..4 {
            let lease = started_with(&store, sized(&format!("gone-{n}"), 20_000)).await;
            store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
        }
        let past = SweepRequest { take_over: false, retention: Some(Duration::ZERO), limit: 100, unit: 0.5 };
        assert_eq!(store.sweep(past).await.unwrap().deleted, 4);
        store.declare(vec![(kind(), Policy { max_attempts: 3, ..Policy::default() })]).await.unwrap();
        inhabit(&store).await;
        let late = started(&store, "late").await;
        confirm(&store, &late, "\"done\"").await;
        store.settle(vec![Settle { then: vec![message("follows")], ..completion(&late) }]).await.unwrap();
        let write = answer("\"too late\"");
        let late = Journal { id: late.message.id, token: late.token, before: Vec::new(), write };
        assert_eq!(store.journal(vec![late]).await.unwrap().remove(0).unwrap_err().kind(), StoreErrorKind::LeaseLost);
        let outcome = Outcome::Completed { result: format!("\"{}\"", "r".repeat(7000)).into(), orphans: false };
        let large = started_with(&store, sized("large", 9000)).await;
        store.settle(vec![Settle { outcome, ..completion(&large) }]).await.unwrap();
        for n in 0..6 {
            let dead = started(&store, &format!("dead-{n}")).await;
            let outcome = Outcome::Exhausted { failure: Failure::new("broken", format!("reason {n}")) };
            store.settle(vec![Settle { outcome, ..completion(&dead) }]).await.unwrap();
        }
        let selection = Selection { code: Some("broken".into()), ..Selection::default() };
        let pace = Pace { canary: 1, ..Pace::default() };
        let new = NewOperation { name: "again".into(), selection, again: false, pace, act: act() };
        store.operate(Operate::Begin(Box::new(new))).await.unwrap();
        store.operate(Operate::Step { name: "again".into() }).await.unwrap();
        let limit = QueueChange::Limit(Some(100));
        store
            .pause(ChangeQueue { tenant: Tenant::default(), queue: queue(), change: limit, act: act() })
            .await
            .unwrap();
        let scopes = vec!["produce:work".parse().unwrap()];
        let change = TokenChange::Add { hash: TokenHash::of("tg_x"), scopes, tenant: Glob::all(), expires_at: None };
        store.change_token(ChangeToken { name: TokenName::new("app").unwrap(), change, act: act() }).await.unwrap();
        clock.jump_forward(Duration::from_secs(3600));
        store.enqueue((0..12).map(|n| sized(&format!("waits-{n}"), 300)).collect()).await.unwrap();
        clock.jump_back(Duration::from_secs(3600));
        store.stats().await.unwrap();
        store.close().await;
    });
}

async fn started_with(store: &SqliteStore, message: NewMessage) -> Lease {
    store.enqueue(vec![message]).await.unwrap().remove(0).unwrap();
    claim(store, 1).await.remove(0)
}

fn answer(value: &str) -> JournalWrite {
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    JournalWrite::Answer { effect, seq: 0, answer: EffectAnswer::Confirmed { value: value.into() } }
}

async fn confirm(store: &SqliteStore, lease: &Lease, value: &str) {
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let reached =
        Reached { effect, policy: EffectPolicy::AtMostOnce, request_hash: [1; 16], quarantine: Duration::ZERO };
    let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::from_secs(60) };
    for write in [JournalWrite::Intent { reached, times }, answer(value)] {
        let journal = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
        store.journal(vec![journal]).await.unwrap().remove(0).unwrap();
    }
}

/// Everything a store says, item by item: a name, and what is said under it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Picture {
    said: BTreeMap<String, String>,
    /// Calls that were refused.
    refused: usize,
}

impl Picture {
    fn say(&mut self, name: String, what: impl Debug) {
        self.said.insert(name, format!("{what:?}"));
    }

    fn heard<T>(&mut self, answer: Result<T, StoreError>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                let told = [StoreErrorKind::Corrupt, StoreErrorKind::Unavailable].contains(&error.kind());
                // A refusal that is no answer about the data is something else than was said before.
                if !told {
                    self.say(format!("error {}", error.what()), error.kind());
                }
                self.refused += usize::from(told);
                None
            }
        }
    }

    async fn of(store: &SqliteStore, messages: &[(MessageId, NewMessage)]) -> Self {
        let mut this = Self::default();
        for (id, message) in messages {
            let view = this.heard(store.inspect(vec![*id]).await).and_then(|mut views| views.remove(0));
            if let Some(mut view) = view {
                for row in std::mem::take(&mut view.journal) {
                    this.say(format!("journal {id} {} {}", row.effect, row.seq), row);
                }
                for (name, row) in std::mem::take(&mut view.history).into_iter().map(|row| (format!("{row:?}"), row)) {
                    this.say(format!("history {id} {name}"), row.at);
                }
                for (name, row) in std::mem::take(&mut view.evidence).into_iter().map(|row| (format!("{row:?}"), row)) {
                    this.say(format!("evidence {id} {name}"), row.at);
                }
                if matches!(view.state, State::Ready | State::Leased) {
                    // It is taken from the history, which was looked at above.
                    view.failure = None;
                }
                this.say(format!("message {id}"), view);
            }
            if let Some(progress) = this.heard(store.progress(vec![*id]).await).and_then(|mut all| all.remove(0)) {
                this.say(format!("progress {id}"), progress);
            }
            let key = message.key.clone();
            if let Some(found) = this.heard(store.find(Tenant::default(), queue(), key).await).flatten() {
                this.say(format!("find {:?}", message.key), found);
            }
            for member in this.heard(store.flow(*id).await).unwrap_or_default() {
                this.say(format!("flow {id} {}", member.id), (member.key, member.kind, member.state));
            }
        }
        for entry in this.heard(store.audit(0, 1000).await).unwrap_or_default() {
            this.say(format!("audit {}", entry.seq), entry);
        }
        for operation in this.heard(store.operations(None, 100).await).unwrap_or_default() {
            this.say(format!("operation {}", operation.name), operation);
        }
        for token in this.heard(store.tokens().await).unwrap_or_default() {
            this.say(format!("token {:?}", token.hash), token);
        }
        for state in State::ALL {
            let filter = Filter { states: vec![state], discarded: true, limit: 1000, ..Filter::default() };
            for one in this.heard(store.list(filter).await).unwrap_or_default() {
                this.say(
                    format!("list {state} {}", one.id),
                    (one.key, one.kind, one.queue, one.state, one.enqueued_at),
                );
            }
        }
        let filter = Filter { states: vec![State::Dead, State::Parked], limit: 1000, ..Filter::default() };
        for group in this.heard(store.groups(filter).await).unwrap_or_default() {
            // How many there are, and when, is counted over an index.
            this.say(format!("group {:?}", group.id), (group.kind, group.code, group.effect));
        }
        if let Some(stats) = this.heard(store.stats().await) {
            for queue in stats.queues {
                this.say(format!("number {}", queue.queue), queue);
            }
            for tally in stats.tallies {
                this.say(format!("number {} {} {:?} {}", tally.queue, tally.kind, tally.what, tally.code), tally.n);
            }
            this.say("number open".into(), stats.open_effects);
        }
        this.write(store, messages).await;
        this
    }

    /// What comes of a duplicate of each message, and of a claim.
    async fn write(&mut self, store: &SqliteStore, messages: &[(MessageId, NewMessage)]) {
        let all = messages.iter().map(|(_, message)| message.clone()).collect();
        let verdicts = self.heard(store.enqueue(all).await).unwrap_or_default();
        for ((_, message), verdict) in messages.iter().zip(verdicts) {
            match self.heard(verdict) {
                // Its key is not found: missed, not said otherwise.
                Some(Enqueued::New { .. }) | None => {}
                Some(known) => self.say(format!("duplicate {:?}", message.key), known),
            }
        }
        let request = tidegate_core::store::ClaimRequest {
            worker: tidegate_core::id::WorkerId::new("worker").unwrap(),
            tenant: Tenant::default(),
            queues: vec![tidegate_core::store::QueueSlots { queue: queue(), slots: 200 }],
            kinds: vec![(kind(), 1)],
            nonce: tidegate_core::id::Nonce::from_bytes([9; 16]),
            lease: Duration::from_secs(60),
        };
        let claimed = self.heard(store.claim(request).await);
        for lease in claimed.map(|claimed| claimed.leases).unwrap_or_default() {
            // A message that a duplicate of a lost key made is not one of those.
            if messages.iter().any(|(id, _)| *id == lease.message.id) {
                self.say(format!("claim {}", lease.message.id), (lease.message, lease.counters, lease.journal));
            }
        }
    }
}

/// What became of a flipped bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The file was refused when it was opened.
    Refused,
    /// A call said `Corrupt`, and no other call said anything new.
    Told,
    /// Nothing was told; something was not found or a number differs, and the doctor finds out.
    Doctor,
    /// Nothing differs.
    Harmless,
    /// A number or an order differs, and nobody finds out.
    Unseen,
    /// Something else was said than before.
    Wrong,
}

/// The whole file, what is in it, and what was said of it.
struct Golden {
    bytes: Vec<u8>,
    clock: Arc<ManualClock>,
    messages: Vec<(MessageId, NewMessage)>,
    picture: Picture,
}

impl Golden {
    fn new() -> Self {
        let directory = scratch();
        let path = directory.path().join("golden.db");
        let clock = Arc::new(ManualClock::at(now()));
        golden(&path, &clock);
        let bytes = fs::read(&path).unwrap();
        let store = open(&path, &clock).unwrap();
        let messages = run(async {
            let all = Filter { discarded: true, limit: 1000, ..Filter::default() };
            let ids: Vec<MessageId> = store.list(all).await.unwrap().into_iter().map(|one| one.id).collect();
            let views = store.inspect(ids).await.unwrap().into_iter().flatten();
            let new = |view: tidegate_core::store::MessageView| {
                let payload = tidegate_core::message::Payload::from_json(&*view.message.payload).unwrap();
                (view.message.id, NewMessage { key: view.message.key, payload, ..message("x") })
            };
            let messages: Vec<_> = views.map(new).collect();
            store.close().await;
            messages
        });
        drop(store);
        let mut this = Self { bytes, clock, messages, picture: Picture::default() };
        let path = directory.path().join("same.db");
        fs::write(&path, &this.bytes).unwrap();
        this.picture = this.look(&path).unwrap();
        assert_eq!(this.picture.refused, 0, "the whole file is in order");
        assert!(failed(&path).is_empty(), "{:?}", failed(&path));
        fs::write(&path, &this.bytes).unwrap();
        assert_eq!(this.look(&path).unwrap(), this.picture, "it says the same each time");
        this
    }

    fn look(&self, path: &Path) -> Result<Picture, StoreError> {
        let store = open(path, &self.clock)?;
        let picture = run(Picture::of(&store, &self.messages));
        run(store.close());
        Ok(picture)
    }

    fn fate(&self, bytes: &[u8], directory: &Path) -> (Fate, String) {
        let path = directory.join("flipped.db");
        for suffix in ["", "-wal", "-shm"] {
            let _not_there = fs::remove_file(beside(&path, suffix));
        }
        fs::write(&path, bytes).unwrap();
        let picture = match self.look(&path) {
            Ok(picture) => picture,
            Err(error) => {
                assert!(error.hint_text().is_some(), "{error}");
                assert!(fs::read(&path).unwrap() == bytes, "a refused file was changed: {error}");
                return (Fate::Refused, error.to_string());
            }
        };
        assert!(fs::metadata(&path).unwrap().len() >= bytes.len() as u64, "nothing of the file is taken away");
        let golden = &self.picture.said;
        let mut missing = golden.keys().filter(|name| !picture.said.contains_key(*name));
        let mut numbers = None;
        for (name, said) in &picture.said {
            if golden.get(name) == Some(said) {
                continue;
            }
            if name.starts_with("number ") {
                numbers = Some(name.clone());
                continue;
            }
            return (Fate::Wrong, format!("{name}: {said}; was {:?}", golden.get(name)));
        }
        if picture.refused > 0 {
            return (Fate::Told, String::new());
        }
        // The file as it was found: what was written since could have covered it up.
        fs::write(&path, bytes).unwrap();
        let found = failed(&path);
        let differs = missing.next().cloned().or(numbers);
        match (differs, found.is_empty()) {
            (Some(name), false) => (Fate::Doctor, format!("{name}: {found:?}")),
            (Some(name), true) => (Fate::Unseen, name),
            (None, false) => (Fate::Doctor, format!("{found:?}")),
            (None, true) => (Fate::Harmless, String::new()),
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// The doctor's findings that are about the data.
fn failed(path: &Path) -> Vec<String> {
    let doctor = Doctor { now: now(), largest_wal: Doctor::LARGEST_WAL };
    let checks = match SqliteStore::doctor(path, doctor) {
        Ok(checks) => checks,
        Err(error) => return vec![error.to_string()],
    };
    let surroundings = ["leases", "wal", "room", "clock"];
    let data = checks.into_iter().filter(|check| !check.ok && !surroundings.contains(&check.name));
    data.map(|check| format!("{} {:?}", check.name, check.findings.first().map(|found| &found.what))).collect()
}

/// Which bits are flipped: byte and bit.
fn flips(length: usize, each: usize) -> Vec<(usize, u8)> {
    let bit = |at: usize| u8::try_from((at * 7 + at / PAGE) % 8).unwrap();
    if each >= PAGE {
        return (0..length).map(|at| (at, bit(at))).collect();
    }
    let mut flips = Vec::new();
    let mut random: u64 = 20_260_724;
    for page in 0..length / PAGE {
        let first = page * PAGE + if page == 0 { 100 } else { 0 };
        // The page's kind, its number of cells, where its content begins, a pointer to a cell.
        let places = [first, first + 3, first + 5, first + 9];
        flips.push((places[page % 4], bit(page)));
        for _ in 1..each {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(random >> 33).unwrap() % PAGE;
            flips.push((page * PAGE + at, bit(usize::try_from(random >> 20 & 7).unwrap())));
        }
    }
    // The file's own header.
    flips.extend((0..100).step_by(5).map(|at| (at, bit(at))));
    flips
}

#[test]
fn no_flipped_bit_makes_a_store_say_what_was_never_stored() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell a test how long it may take")]
    let each = std::env::var("TIDEGATE_FLIPS").map_or(EACH, |each| each.parse().expect("TIDEGATE_FLIPS is a number"));
    let golden = Golden::new();
    let flips = flips(golden.bytes.len(), each);
    let (next, fates) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                let directory = scratch();
                let mut bytes = golden.bytes.clone();
                while let Some((at, bit)) = flips.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    bytes[at] ^= 1 << bit;
                    let (fate, why) = golden.fate(&bytes, directory.path());
                    bytes[at] ^= 1 << bit;
                    fates.lock().unwrap().push((fate, at, bit, why));
                }
            });
        }
    });
    let fates = fates.into_inner().unwrap();
    assert_eq!(fates.len(), flips.len());
    let count = |fate| fates.iter().filter(|(of, ..)| *of == fate).count();
    println!(
        "flips: {} in {} pages; refused {}, told {}, found by the doctor {}, harmless {}, unseen {}, wrong {}",
        flips.len(),
        golden.bytes.len() / PAGE,
        count(Fate::Refused),
        count(Fate::Told),
        count(Fate::Doctor),
        count(Fate::Harmless),
        count(Fate::Unseen),
        count(Fate::Wrong),
    );
    for (fate, at, bit, why) in fates.iter().filter(|(fate, ..)| *fate >= Fate::Unseen) {
        println!("{fate:?}: bit {bit} of byte {} of page {}: {why}", at % PAGE, at / PAGE + 1);
    }
    let bad: Vec<_> = fates.iter().filter(|(fate, ..)| *fate == Fate::Wrong).collect();
    assert!(bad.is_empty(), "{bad:?}");
    // A counter that nothing can be recounted against, and no more than that.
    let lost: Vec<_> =
        fates.iter().filter(|(fate, .., why)| *fate == Fate::Unseen && !why.starts_with("number ")).collect();
    assert!(lost.is_empty(), "something is missing, and the doctor does not find it: {lost:?}");
}

// --- the log ---------------------------------------------------------------------------------------------------------

/// A store that was killed with so many commits in its log: the files as a kill leaves them.
struct Killed {
    directory: TempDir,
    clock: Arc<ManualClock>,
    /// How long the log was after each commit.
    ends: Vec<usize>,
    log: Vec<u8>,
}

impl Killed {
    const COMMITS: usize = 8;

    fn new() -> Self {
        let directory = scratch();
        let path = directory.path().join("tidegate.db");
        let clock = Arc::new(ManualClock::at(now()));
        let options = Options { clock: Arc::clone(&clock) as _, room: Room::UNWATCHED, ..Options::default() };
        let store = SqliteStore::open(&path, options).unwrap();
        run(store.enqueue(vec![message("first")])).unwrap();
        run(store.close());
        let store = open(&path, &clock).unwrap();
        let log = || usize::try_from(fs::metadata(beside(&path, "-wal")).unwrap().len()).unwrap();
        let mut ends = Vec::new();
        for n in 0..Self::COMMITS {
            run(store.enqueue(vec![sized(&format!("m{n}"), 5000)])).unwrap().remove(0).unwrap();
            ends.push(log());
        }
        // What a kill leaves is what is there now: nobody tidies up.
        let killed = scratch();
        for suffix in ["", "-wal", "-shm"] {
            fs::copy(beside(&path, suffix), beside(&killed.path().join("tidegate.db"), suffix)).unwrap();
        }
        run(store.close());
        let log = fs::read(beside(&killed.path().join("tidegate.db"), "-wal")).unwrap();
        Self { directory: killed, clock, ends, log }
    }

    /// Opens a copy whose log is this one, with or without its index; how many of the commits are there.
    fn open(&self, log: Option<&[u8]>, index: bool) -> Result<usize, StoreError> {
        let directory = scratch();
        let path = directory.path().join("tidegate.db");
        let killed = self.directory.path().join("tidegate.db");
        fs::copy(&killed, &path).unwrap();
        if let Some(log) = log {
            fs::write(beside(&path, "-wal"), log).unwrap();
        }
        if index {
            fs::copy(beside(&killed, "-shm"), beside(&path, "-shm")).unwrap();
        }
        let store = match open(&path, &self.clock) {
            Ok(store) => store,
            Err(error) => {
                assert!(error.hint_text().is_some(), "{error}");
                assert_eq!(fs::read(beside(&path, "-wal")).ok().as_deref(), log, "a refused log was changed");
                return Err(error);
            }
        };
        let listed = run(store.list(Filter { limit: 1000, ..Filter::default() })).unwrap();
        let keys: Vec<String> = listed.iter().map(|one| one.key.as_str().to_owned()).collect();
        run(store.close());
        assert_eq!(failed(&path), Vec::<String>::new());
        let expected: Vec<String> =
            std::iter::once("first".to_owned()).chain((0..keys.len() - 1).map(|n| format!("m{n}"))).collect();
        assert_eq!(keys, expected, "commits are there up to one of them, and none behind it");
        Ok(keys.len() - 1)
    }
}

const FRAME: usize = PAGE + 24;
const LOG_HEADER: usize = 32;

#[test]
fn a_log_that_was_cut_off_or_taken_away_is_noticed_while_its_index_is_there() {
    let killed = Killed::new();
    assert_eq!(killed.open(Some(&killed.log), true).unwrap(), Killed::COMMITS);
    assert_eq!(killed.open(Some(&killed.log), false).unwrap(), Killed::COMMITS);
    // At each boundary between frames, and inside each frame.
    let boundaries = (LOG_HEADER..killed.log.len()).step_by(FRAME);
    let cuts =
        boundaries.flat_map(|at| [at, at + 10, at + 24 + 512]).chain([0, 10]).filter(|cut| *cut < killed.log.len());
    for cut in cuts {
        let log = &killed.log[..cut];
        let there = killed.ends.iter().filter(|end| **end <= cut).count();
        // After a power cut there is no index to be believed: what is left is a store as it was at some commit.
        assert_eq!(killed.open(Some(log), false).unwrap(), there, "cut at {cut}");
        let error = killed.open(Some(log), true).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
        assert!(error.what().contains("-wal has ") && error.to_string().contains("remove the -shm"), "{error}");
    }
    assert_eq!(killed.open(None, false).unwrap(), 0);
    assert_eq!(killed.open(None, true).unwrap_err().kind(), StoreErrorKind::Corrupt);
}

#[test]
fn a_log_with_a_flipped_bit_is_refused_or_ends_before_the_last_two_commits_at_most() {
    let killed = Killed::new();
    let (mut refused, mut shorter, mut harmless) = (0, 0, 0);
    let frames = (killed.log.len() - LOG_HEADER) / FRAME;
    for frame in 0..frames {
        let first = LOG_HEADER + frame * FRAME;
        // Page, end of a commit, salts, checksums; and what the page says.
        for (place, at) in [0, 6, 9, 17, 21, 24, 700, 2048, FRAME - 1].into_iter().enumerate() {
            let mut log = killed.log.clone();
            log[first + at] ^= 1 << ((frame + place) % 8);
            let commit = killed.ends.iter().filter(|end| **end <= first).count();
            match killed.open(Some(&log), false) {
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
                    refused += 1;
                }
                Ok(Killed::COMMITS) => harmless += 1,
                Ok(there) => {
                    assert_eq!(there, commit, "byte {at} of frame {frame}");
                    assert!(commit >= Killed::COMMITS - 2, "byte {at} of frame {frame}: {commit} commits are left");
                    shorter += 1;
                }
            }
        }
    }
    println!("flips in the log: {refused} refused, {shorter} without the last commits, {harmless} harmless");
    assert!(refused > shorter && harmless == 0);
    // The header: SQLite takes the log for empty, and it is not.
    for at in 0..LOG_HEADER {
        let mut log = killed.log.clone();
        log[at] ^= 4;
        assert_eq!(killed.open(Some(&log), true).unwrap_err().kind(), StoreErrorKind::Corrupt, "byte {at}");
    }
}

#[test]
fn the_log_of_another_store_is_refused() {
    let (one, other) = (Killed::new(), Killed::new());
    let directory = scratch();
    let path = directory.path().join("tidegate.db");
    fs::copy(one.directory.path().join("tidegate.db"), &path).unwrap();
    fs::write(beside(&path, "-wal"), &other.log).unwrap();
    let error = open(&path, &one.clock).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    assert!(error.what().contains("-wal is the log of another store"), "{error}");
}

#[test]
fn a_file_that_was_cut_off_or_emptied_is_refused() {
    let golden = Golden::new();
    let directory = scratch();
    for length in [0, 1, 50, 100, PAGE / 2, PAGE, 2 * PAGE, golden.bytes.len() / 2, golden.bytes.len() - PAGE] {
        let path = directory.path().join(format!("{length}.db"));
        fs::write(&path, &golden.bytes[..length]).unwrap();
        let error = open(&path, &golden.clock).expect_err("what is missing is missed");
        assert!([StoreErrorKind::Corrupt, StoreErrorKind::NotFound].contains(&error.kind()), "{length}: {error}");
        assert!(error.hint_text().is_some(), "{error}");
        assert_eq!(fs::read(&path).unwrap(), &golden.bytes[..length], "it is left as it is");
    }
}
