//! A disk that fills up: a real file system of a few MiB, filled again and again by the store itself, by somebody else's
//! file, and with a process killed in the middle.
//!
//! The test starts itself again inside a mount namespace of its own. The long run is the same test with another number:
//! `TIDEGATE_FILLS=500 cargo test --release -p tidegate-sqlite --test it disk_full::a_full_disk`.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::{Clock as _, SystemClock, SystemRandom};
use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, IntentTimes, Reached};
use tidegate_core::id::{EffectName, MessageId, Nonce, Tenant, WorkerId};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{
    ClaimRequest, Counted, Enqueued, Extend, Journal, JournalWrite, Lease, QueueSlots, SweepRequest,
};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{Doctor, Options, Room, RoomFor, SqliteStore};

use crate::fixture::{completion, kind, queue, run, sized};

/// How many fills are made where nothing else is said.
const FILLS: u32 = 20;
/// The size of the file system.
const SIZE: &str = "size=10m";
const ROOM: Room = Room { accept: 3 << 20, claim: 2 << 20, reserve: 1 << 20 };
/// A payload, in bytes.
const PAYLOAD: usize = 3000;
/// Tells the test that it is the one inside: the directory of the file system, and how many fills.
const INSIDE: &str = "TIDEGATE_TEST_SMALL_DISK";
/// Tells the test that it is the process to be killed.
const VICTIM: &str = "TIDEGATE_TEST_DISK_VICTIM";

#[expect(clippy::disallowed_methods, reason = "the only way to tell a test something")]
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
fn a_full_disk_stops_what_is_new_and_loses_nothing() {
    let fills = told("TIDEGATE_FILLS").map_or(FILLS, |fills| fills.parse().expect("TIDEGATE_FILLS is a number"));
    let directory = tempfile::tempdir().unwrap();
    let mounted = directory.path().join("small");
    fs::create_dir(&mounted).unwrap();
    let mut said = Vec::new();
    // Without privileges a user namespace is the way; root in a container may lack those and have the other.
    for how in [&["--user", "--map-root-user", "--mount"][..], &["--mount"][..]] {
        const MOUNT: &str = "mount -t tmpfs -o \"$1\" tidegate \"$0\" && shift && exec \"$@\"";
        let probe =
            Command::new("unshare").args(how).args(["sh", "-c", MOUNT]).arg(&mounted).args([SIZE, "true"]).output();
        match probe {
            Ok(probe) if probe.status.success() => {}
            Ok(probe) => {
                said.push(format!("unshare {how:?}: {}", String::from_utf8_lossy(&probe.stderr).trim()));
                continue;
            }
            Err(error) => {
                said.push(format!("unshare {how:?}: {error}"));
                continue;
            }
        }
        let mut inside = Command::new("unshare");
        inside.args(how).args(["sh", "-c", MOUNT]).arg(&mounted).arg(SIZE);
        inside.arg(std::env::current_exe().unwrap());
        inside.args(["disk_full::inside_the_small_file_system", "--exact", "--nocapture"]);
        inside.env(INSIDE, format!("{fills} {}", mounted.display()));
        let ran = inside.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{out}\n{err}");
        let figures = out.lines().find(|line| line.starts_with("fills: ")).unwrap_or_else(|| panic!("{out}\n{err}"));
        println!("{figures}");
        return;
    }
    panic!(
        "this machine offers no small file system: {}\nhint: the test needs util-linux, and either user namespaces \
         (kernel.unprivileged_userns_clone, or a container that is allowed them) or root with CAP_SYS_ADMIN",
        said.join("; ")
    );
}

#[test]
fn inside_the_small_file_system() {
    let Some(told) = told(INSIDE) else { return };
    let (fills, directory) = told.split_once(' ').unwrap();
    let figures = run(Fill::new(Path::new(directory)).all(fills.parse().unwrap()));
    read_only(Path::new(directory));
    println!("{figures}");
}

/// Permissions bind nobody who is root; a file system that is mounted read-only does.
fn read_only(directory: &Path) {
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(directory).status().unwrap();
    assert!(remounted.success());
    let error = SqliteStore::open(directory.join("tidegate.db"), Options::default()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("tidegate.db") && error.to_string().contains("read-only"), "{error}");
}

#[test]
fn the_process_that_is_killed_when_the_disk_is_full() {
    let Some(directory) = told(VICTIM) else { return };
    let directory = Path::new(&directory);
    run(async {
        let store = open(directory);
        let mut accepted = Vec::new();
        let mut n = 0;
        while let Some(id) = offer(&store, &format!("victim-{}-{n}", SystemClock::new().now())).await {
            accepted.push(id.as_i64());
            n += 1;
        }
        // Held by nobody once this process is dead.
        let leases = claim(&store, 4, Duration::from_millis(1)).await;
        assert_eq!(leases.len(), 4);
        let _foreign = fill_up(directory);
        // The first of its commits may be the one that finds out.
        let _met_the_end = store.settle(vec![completion(&leases[0])]).await;
        println!("victim: {}", serde_json::to_string(&accepted).unwrap());
        std::io::stdout().flush().unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
    });
}

fn open(directory: &Path) -> Arc<SqliteStore> {
    let options = Options { room: ROOM, ..Options::default() };
    SqliteStore::open(directory.join("tidegate.db"), options).unwrap()
}

async fn offer(store: &SqliteStore, key: &str) -> Option<MessageId> {
    let offered = store.enqueue(vec![sized(key, PAYLOAD)]).await;
    match offered.unwrap_or_else(|error| panic!("{key}: {error}; {:?}", store.disk())).remove(0) {
        Ok(Enqueued::New { id }) => Some(id),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert_eq!(error.kind(), StoreErrorKind::QueueFull, "{error}");
            assert!(error.hint_text().is_some() && error.retry_after_duration().is_some());
            None
        }
    }
}

async fn claim(store: &SqliteStore, slots: u32, lease: Duration) -> Vec<Lease> {
    let request = ClaimRequest {
        worker: WorkerId::new("worker").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: queue(), slots }],
        kinds: vec![(kind(), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease,
    };
    store.claim(request).await.unwrap().leases
}

/// Somebody else's file, up to the last byte of the file system.
fn fill_up(directory: &Path) -> PathBuf {
    let path = directory.join("foreign");
    let mut file = File::create(&path).unwrap();
    for size in [64 << 10, 4096, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    path
}

/// What is repeated after each refusal: a worker does not give up before its lease is lost.
async fn insist<T, F: Future<Output = Result<T, tidegate_core::StoreError>>>(
    tries: &mut u32,
    call: impl Fn() -> F,
) -> T {
    for _ in 0..4 {
        match call().await {
            Ok(value) => return value,
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
                assert!(error.what().contains("disk of the store is full"), "{error}");
                *tries += 1;
            }
        }
    }
    panic!("what runs cannot be settled");
}

struct Fill {
    directory: PathBuf,
    store: Arc<SqliteStore>,
    /// Every message that was accepted, and whether it was completed.
    accepted: BTreeMap<MessageId, bool>,
    offered: u64,
    refused: u64,
    retries: u32,
    kills: u32,
    foreign: u32,
}

impl Fill {
    fn new(directory: &Path) -> Self {
        let store = open(directory);
        let (accepted, directory) = (BTreeMap::new(), directory.to_owned());
        Self { directory, store, accepted, offered: 0, refused: 0, retries: 0, kills: 0, foreign: 0 }
    }

    async fn all(mut self, fills: u32) -> String {
        let mut completed = 0;
        for fill in 0..fills {
            match fill % 3 {
                0 => self.by_itself().await,
                1 => self.by_somebody_else().await,
                _ => self.with_a_kill().await,
            }
            completed += self.work_off().await;
            self.look_over();
            self.forget().await;
        }
        let tally = |what| {
            let stats = run_here(self.store.stats());
            stats.tallies.iter().filter(|tally| tally.what == what).map(|tally| tally.n).sum::<u64>()
        };
        let stored = tally(Counted::Enqueued);
        assert_eq!((stored, tally(Counted::Completed)), (completed, completed), "the books do not balance");
        let Self { refused, retries, kills, foreign, .. } = self;
        format!(
            "fills: {fills}, by somebody else {foreign}, with a kill {kills}; messages: {stored} accepted, {completed} \
             completed, 0 lost; refused {refused}; settlements and journals tried again: {retries}"
        )
    }

    /// Enqueues until the store refuses.
    async fn fill(&mut self) {
        loop {
            self.offered += 1;
            match offer(&self.store, &format!("m-{}", self.offered)).await {
                Some(id) => drop(self.accepted.insert(id, false)),
                None => break,
            }
        }
        self.refused += 1;
        assert_ne!(self.store.disk().room_for, RoomFor::Settling, "{:?}", self.store.disk());
        // A key that is known is answered all the same.
        let (known, _) = self.accepted.last_key_value().unwrap();
        let again = self.store.inspect(vec![*known]).await.unwrap().remove(0).unwrap().message;
        let again = self.store.enqueue(vec![sized(again.key.as_str(), PAYLOAD)]).await.unwrap().remove(0);
        assert!(matches!(again, Ok(Enqueued::Existing { .. })), "{again:?}");
    }

    async fn by_itself(&mut self) {
        self.fill().await;
    }

    async fn by_somebody_else(&mut self) {
        self.fill().await;
        let running = claim(&self.store, 8, Duration::from_secs(3600)).await;
        assert_eq!(running.len(), 8, "what was accepted is worked off: {:?}", self.store.disk());
        let foreign = fill_up(&self.directory);
        self.foreign += 1;
        self.settle_all(&running).await;
        assert_eq!(self.store.disk().room_for, RoomFor::Settling, "{:?}", self.store.disk());
        assert!(
            claim(&self.store, 8, Duration::from_secs(3600)).await.is_empty(),
            "what cannot be settled is not begun"
        );
        assert_eq!(offer(&self.store, "too-much").await, None);
        fs::remove_file(foreign).unwrap();
    }

    async fn settle_all(&mut self, running: &[Lease]) {
        let Self { store, retries, .. } = self;
        for lease in running {
            let extend = || async {
                let lease =
                    Extend { id: lease.message.id, token: lease.token, lease: Duration::from_secs(60), alone: false };
                store.extend(vec![lease]).await
            };
            insist(retries, extend).await.remove(0).unwrap();
            for write in effect() {
                let journal = || async {
                    let write = write.clone();
                    let journal = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
                    store.journal(vec![journal]).await
                };
                insist(retries, journal).await.remove(0).unwrap();
            }
            let settle = || store.settle(vec![completion(lease)]);
            assert_eq!(insist(retries, settle).await.remove(0).unwrap().state, State::Completed);
            self.accepted.insert(lease.message.id, true);
        }
    }

    async fn with_a_kill(&mut self) {
        self.store.close().await;
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["disk_full::the_process_that_is_killed_when_the_disk_is_full", "--exact", "--nocapture"])
            .env(VICTIM, &self.directory)
            .env_remove(INSIDE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let accepted = lines.find_map(|line| line.unwrap().strip_prefix("victim: ").map(str::to_owned));
        victim.kill().unwrap();
        victim.wait().unwrap();
        self.kills += 1;
        let accepted: Vec<i64> = serde_json::from_str(&accepted.expect("it got to the end of the disk")).unwrap();
        assert!(!accepted.is_empty());
        self.accepted.extend(accepted.into_iter().map(|id| (MessageId::from_i64(id), false)));
        // Still full: the store opens, and what nobody holds any more is taken over.
        self.store = open(&self.directory);
        assert!(claim(&self.store, 8, Duration::from_secs(60)).await.is_empty());
        let store = &self.store;
        let mut taken = 0;
        for _ in 0..1000 {
            let sweep = || store.sweep(SweepRequest { take_over: true, retention: None, limit: 100, unit: 0.5 });
            taken += insist(&mut self.retries, sweep).await.taken_over.len();
            if store.stats().await.unwrap().queues[0].leased == 0 {
                break;
            }
        }
        assert!((3..=4).contains(&taken), "one of the four may have been settled: {taken}");
        fs::remove_file(self.directory.join("foreign")).unwrap();
    }

    /// With space freed everything goes on; how many were completed.
    async fn work_off(&mut self) -> u64 {
        let mut looks = 0;
        loop {
            let running = claim(&self.store, 64, Duration::from_secs(3600)).await;
            if running.is_empty() {
                if self.store.stats().await.unwrap().queues[0].ready == 0 {
                    break;
                }
                // The store looks at its disk now and then: it may not have seen yet that there is room again.
                looks += 1;
                assert!(looks < 1_000_000, "there is room, and nothing is claimed");
                continue;
            }
            for chunk in running.chunks(16) {
                let store = &self.store;
                let settle = || store.settle(chunk.iter().map(completion).collect());
                for settled in insist(&mut self.retries, settle).await {
                    assert_eq!(settled.unwrap().state, State::Completed);
                }
            }
            self.accepted.extend(running.iter().map(|lease| (lease.message.id, true)));
        }
        let ids: Vec<MessageId> = self.accepted.keys().copied().collect();
        for (id, view) in ids.iter().zip(self.store.inspect(ids.clone()).await.unwrap()) {
            let view = view.unwrap_or_else(|| panic!("{id} is lost"));
            assert_eq!(view.state, State::Completed, "{view:?}");
        }
        ids.len() as u64
    }

    fn look_over(&self) {
        let doctor = Doctor { now: SystemClock::new().now(), largest_wal: Doctor::LARGEST_WAL };
        let checks = SqliteStore::doctor(self.directory.join("tidegate.db"), doctor).unwrap();
        let found: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(found, ["room"], "{checks:?}");
    }

    /// The retention of everything is over: the next fill begins with the room that this one took.
    async fn forget(&mut self) {
        for _ in 0..1000 {
            let request = SweepRequest { take_over: true, retention: Some(Duration::ZERO), limit: 200, unit: 0.5 };
            let store = &self.store;
            let swept = insist(&mut self.retries, || store.sweep(request.clone())).await;
            if swept.deleted == 0 && !swept.more {
                break;
            }
        }
        self.accepted.clear();
        self.store.sweep(SweepRequest { take_over: false, retention: None, limit: 1, unit: 0.5 }).await.unwrap();
        let disk = self.store.disk();
        assert_eq!(disk.room_for, RoomFor::Accepting, "{disk:?}");
    }
}

fn run_here<T>(future: impl Future<Output = Result<T, tidegate_core::StoreError>> + Send) -> T
where
    T: Send,
{
    std::thread::scope(|scope| scope.spawn(|| run(future)).join().unwrap()).unwrap()
}

/// An effect that is sent and confirmed.
fn effect() -> [JournalWrite; 2] {
    let effect = EffectId { name: EffectName::new("capture").unwrap(), item: None };
    let reached = Reached {
        effect: effect.clone(),
        policy: EffectPolicy::AtMostOnce,
        request_hash: [1; 16],
        quarantine: Duration::ZERO,
    };
    let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::from_secs(60) };
    let answer = EffectAnswer::Confirmed { value: "1".into() };
    [JournalWrite::Intent { reached, times }, JournalWrite::Answer { effect, seq: 0, answer }]
}
