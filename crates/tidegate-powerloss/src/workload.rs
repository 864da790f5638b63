//! A mixed life of a store, from a seed, through its verbs; written down answer by answer.
//!
//! After every call the messages it touched are looked at through the engine and compared with what it answered; that is
//! the [`Book`]. With it goes a digest of all rows of all tables. A store that is opened after a power cut has to be, to the
//! byte, what the book said after the last call that was answered, or after the one that was under way.
//!
//! One call at a time, on a clock that only the workload moves: the same seed on the same disk does the same operations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tidegate_core::effect::{self, Decision, EffectAnswer, EffectId, EffectPolicy, EffectState, IntentTimes, Reached};
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::{Outcome, Resolution, State};
use tidegate_core::message::{Answer, Due, Failure, NewMessage, Payload, Priority};
use tidegate_core::retry::{Backoff, Policy};
use tidegate_core::store::{
    Act, Cancel, ChangeQueue, ClaimRequest, Discard, Edit, Enqueued, Extend, Journal, JournalWrite, MessageView,
    QueueChange, QueueSlots, Redrive, Resolve, Settle, SweepRequest,
};
use tidegate_core::{Clock as _, Store as _, StoreError, StoreErrorKind, Timestamp};
use tidegate_sqlite::{Options, Room, SqliteStore, Tuning};
use tidegate_testkit::ManualClock;
use tokio::runtime::Runtime;

use crate::ack::answered;
use crate::shim::{self, Recording};

/// The name of the store's file.
pub const STORE: &str = "tidegate.db";
/// How long leases hold.
const LEASE: Duration = Duration::from_secs(30);
/// How long answers are kept in the workload, so that some are deleted.
const RETENTION: Duration = Duration::from_secs(1800);

/// A finished backup.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its bytes.
    pub content: Arc<Vec<u8>>,
    /// What was known of the store it was made of.
    pub book: Arc<Book>,
}

/// A small reserve: it is made, kept and given up as any, and it is on every disk that is cut.
const ROOM: Room = Room { accept: 1 << 20, claim: 1 << 20, reserve: 64 << 10 };

/// What is known of a store from its answers.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// Every message, as it was after the last call that touched it.
    pub messages: BTreeMap<MessageId, Arc<MessageView>>,
    /// Finished backups by file name, byte for byte.
    pub backups: BTreeMap<String, Backup>,
    /// The store's time.
    pub now: Timestamp,
    tokens: BTreeMap<MessageId, LeaseToken>,
    made: u64,
    has_tables: bool,
}

impl Book {
    /// The same, with names for what is new that nothing on the disk can have: what the last life had begun may be there
    /// although nobody was told.
    pub(crate) fn apart(&self) -> Self {
        Self { made: self.made + 1_000, ..self.clone() }
    }

    /// The same with other backups.
    pub(crate) fn with_backups(&self, backups: BTreeMap<String, Backup>) -> Self {
        Self { backups, ..self.clone() }
    }
}

/// The rows of all tables, as one number each.
pub type Digest = BTreeMap<String, u64>;

/// One call and what was known after it.
#[derive(Debug, Clone)]
pub struct Step {
    /// Which verb.
    pub what: &'static str,
    /// Operations before it was called.
    pub begun: usize,
    /// Operations when it was answered.
    pub answered: usize,
    /// What was known then.
    pub book: Arc<Book>,
    /// What the tables held.
    pub digest: Arc<Digest>,
}

/// How a workload ended.
#[derive(Debug)]
pub struct Life {
    /// Its calls.
    pub steps: Vec<Step>,
    /// The call that failed, and whether the store refused all further use, as it must after a failed commit.
    pub failed: Option<Failed>,
}

/// A call that failed for an injected error.
#[derive(Debug)]
pub struct Failed {
    /// Which verb.
    pub what: &'static str,
    /// What it said.
    pub error: String,
    /// Whether it went through the store's writer.
    pub by_the_writer: bool,
    /// Operations before it was called.
    pub begun: usize,
    /// A further call was refused.
    pub stopped: bool,
}

/// What a workload is made from.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory of the store.
    pub directory: PathBuf,
    /// What happens.
    pub seed: u64,
    /// How many calls.
    pub calls: u32,
    /// How the store is opened.
    pub tuning: Tuning,
    /// What is known of the store that is there.
    pub book: Arc<Book>,
    /// The store came out of a backup: when it begins to work, it puts right what it believes of all its messages.
    pub restored: bool,
}

/// Lives a life on the directory of a recording under way.
///
/// # Errors
/// Says which call answered something else than the engine then showed: a defect found before any power was cut.
pub fn live(plan: &Plan, recording: &Recording, runtime: &Runtime) -> Result<Life, String> {
    let clock = Arc::new(ManualClock::at(plan.book.now.max(Timestamp::from_millis(ManualClock::START))));
    let mut driver = Driver {
        plan,
        runtime,
        clock,
        random: ChaCha8Rng::seed_from_u64(plan.seed),
        book: Book::clone(&plan.book),
        store: None,
        application: None,
        onlooker: None,
        steps: Vec::new(),
        begun: recording.position(),
    };
    let lived = driver.open().and_then(|()| {
        for _ in 0..plan.calls {
            driver.step()?;
        }
        driver.close()
    });
    let failed = match lived {
        Ok(()) => None,
        Err(Stop::Failed(what, error)) => Some(driver.after_failure(what, &error)),
        Err(Stop::Wrong(what)) => return Err(what),
    };
    Ok(Life { steps: driver.steps, failed })
}

/// Why a life ended early.
enum Stop {
    /// The engine said so.
    Failed(&'static str, StoreError),
    /// The engine's answers do not agree with one another.
    Wrong(String),
}

struct Driver<'a> {
    plan: &'a Plan,
    runtime: &'a Runtime,
    clock: Arc<ManualClock>,
    random: ChaCha8Rng,
    book: Book,
    store: Option<Arc<SqliteStore>>,
    /// A connection of the application to the same file.
    application: Option<Connection>,
    /// A connection that reads what the tables hold.
    onlooker: Option<Connection>,
    steps: Vec<Step>,
    begun: usize,
}

/// A disagreement, in words.
fn wrong(what: impl fmt::Display) -> Stop {
    Stop::Wrong(what.to_string())
}

fn queue_name(name: &str) -> QueueName {
    QueueName::new(name).expect("a valid name")
}

fn kind(name: &str) -> Kind {
    Kind::new(name).expect("a valid name")
}

fn act(reason: &str) -> Act {
    Act { actor: "powerloss".into(), reason: reason.into() }
}

const QUEUES: [&str; 2] = ["deposits", "mail"];
const KINDS: [&str; 2] = ["charge", "notify"];
const EFFECTS: [&str; 3] = ["charge_card", "send_mail", "book_ledger"];

impl Driver<'_> {
    fn path(&self) -> PathBuf {
        self.plan.directory.join(STORE)
    }

    fn store(&self) -> Arc<SqliteStore> {
        Arc::clone(self.store.as_ref().expect("a life opens its store first"))
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    // --- the frame of a call -----------------------------------------------------------------------------------------

    fn begin(&mut self) {
        self.begun = shim::position();
    }

    /// Waits until the writer has nothing left to do after its last answer: a group of nothing is behind all that.
    fn settle_down(&self) -> Result<(), Stop> {
        let store = self.store();
        answered(store.declare(Vec::new())).0.map_err(|error| Stop::Failed("checkpoint", error))
    }

    /// Makes a call of the writer.
    fn call<T>(
        &mut self,
        what: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<(T, usize), Stop> {
        self.begin();
        let (answer, at) = answered(call);
        answer.map(|answer| (answer, at)).map_err(|error| Stop::Failed(what, error))
    }

    /// Looks at what a call touched, and notes the step.
    fn note(&mut self, what: &'static str, answered: usize, touched: &[MessageId]) -> Result<(), Stop> {
        self.settle_down()?;
        if self.plan.restored {
            let known = self.book.messages.keys().chain(touched);
            self.look_at(&known.copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())?;
        } else {
            self.look_at(touched)?;
        }
        self.book.now = self.clock.now();
        let onlooker = self.onlooker.as_ref().expect("a life looks on");
        let digest = digest(onlooker).map_err(|e| wrong(format!("{what}: the tables cannot be read: {e}")))?;
        let (begun, book, digest) = (self.begun, Arc::new(self.book.clone()), Arc::new(digest));
        self.steps.push(Step { what, begun, answered, book, digest });
        Ok(())
    }

    fn look_at(&mut self, touched: &[MessageId]) -> Result<(), Stop> {
        if touched.is_empty() {
            return Ok(());
        }
        let views = self.inspect(touched.to_vec())?;
        for (id, view) in touched.iter().zip(views) {
            match view {
                Some(view) => {
                    self.book.messages.insert(*id, Arc::new(view));
                }
                None => drop(self.book.messages.remove(id)),
            }
        }
        Ok(())
    }

    fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, Stop> {
        let store = self.store();
        self.runtime.block_on(store.inspect(ids)).map_err(|error| Stop::Failed("inspect", error))
    }

    fn view(&self, id: MessageId) -> Result<&MessageView, Stop> {
        self.book.messages.get(&id).map(|view| &**view).ok_or_else(|| wrong(format!("{id} is not there")))
    }

    fn ids(&self, wanted: impl Fn(&MessageView) -> bool) -> Vec<MessageId> {
        self.book.messages.iter().filter(|(_, view)| wanted(view)).map(|(id, _)| *id).collect()
    }

    /// Some of these, at most `most`.
    fn some_of(&mut self, mut ids: Vec<MessageId>, most: usize) -> Vec<MessageId> {
        let wanted = 1 + self.below(most);
        while ids.len() > wanted {
            let at = self.below(ids.len());
            ids.remove(at);
        }
        ids
    }

    // --- opening and closing -----------------------------------------------------------------------------------------

    fn options(&self) -> Options {
        Options { clock: Arc::clone(&self.clock) as _, retention: RETENTION, room: ROOM, ..Options::default() }
    }

    fn open(&mut self) -> Result<(), Stop> {
        self.begin();
        let opened = SqliteStore::open_tuned(self.path(), self.options(), self.plan.tuning);
        let at = shim::position();
        self.store = Some(opened.map_err(|error| Stop::Failed("open", error))?);
        let onlooker = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY);
        self.onlooker = Some(onlooker.map_err(|e| wrong(format!("the store cannot be looked at: {e}")))?);
        self.note("open", at, &[])?;
        let whole = self.inspect(self.book.messages.keys().copied().collect())?;
        for (view, known) in whole.into_iter().zip(self.book.messages.values()) {
            if view.as_ref() != Some(&**known) {
                return Err(wrong(format!("opened, it shows {view:?}\nbut had shown {known:?}")));
            }
        }
        let policy = Policy {
            max_attempts: 2,
            backoff: Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(20) },
            ..Policy::default()
        };
        let store = self.store();
        let policies = KINDS.map(|name| (kind(name), policy.clone())).to_vec();
        let ((), at) = self.call("declare", store.declare(policies))?;
        self.note("declare", at, &[])
    }

    fn close(&mut self) -> Result<(), Stop> {
        self.application = None;
        self.onlooker = None;
        if let Some(store) = self.store.take() {
            self.runtime.block_on(store.close());
        }
        Ok(())
    }

    fn close_and_open(&mut self) -> Result<(), Stop> {
        self.close()?;
        self.open()
    }

    fn after_failure(&mut self, what: &'static str, error: &StoreError) -> Failed {
        let by_the_writer = !matches!(what, "open" | "backup" | "application" | "inspect");
        let stopped = !by_the_writer
            || self.store.as_ref().is_none_or(|store| {
                let refused = answered(store.enqueue(vec![self.plain("after")])).0;
                refused.is_err_and(|error| error.kind() == StoreErrorKind::Unavailable)
            });
        let (Ok(()) | Err(_)) = self.close();
        Failed { what, error: error.to_string(), by_the_writer, begun: self.begun, stopped }
    }

    // --- the calls ---------------------------------------------------------------------------------------------------

    fn step(&mut self) -> Result<(), Stop> {
        let leased = !self.book.tokens.is_empty();
        match self.below(100) {
            0..20 => self.enqueue(),
            20..38 => self.claim(),
            38..50 if leased => self.intend(),
            50..58 if leased => self.answer(),
            58..76 if leased => self.settle(),
            76..79 if leased => self.extend(),
            79..84 => self.sweep(),
            84..86 => self.resolve(),
            86..88 => self.redrive(),
            88..90 => self.operate_on_one(),
            90..92 => self.pause(),
            92..95 => self.application(),
            95..97 if leased => self.effect_in(),
            97..98 => self.backup(),
            98..100 => self.close_and_open(),
            _ => self.enqueue(),
        }
    }

    fn plain(&self, key: &str) -> NewMessage {
        let key = IdempotencyKey::new(key).expect("a valid key");
        NewMessage::new(queue_name(QUEUES[0]), kind(KINDS[0]), key, Payload::from_json("{}").expect("JSON"))
    }

    fn fresh(&mut self) -> NewMessage {
        self.book.made += 1;
        let size = match self.below(12) {
            0 => 9_000,
            1..4 => 1_500,
            _ => 80,
        };
        let amount = self.below(1_000_000);
        let note: String = (0..size).map(|_| char::from(b'a' + self.random.random_range(0..26_u8))).collect();
        let payload = Payload::from_json(format!("{{\"amount\": {amount}, \"note\": \"{note}\"}}")).expect("JSON");
        let key = IdempotencyKey::new(format!("key-{}", self.book.made)).expect("a valid key");
        let (queue, kind_name) = (QUEUES[self.below(2)], KINDS[self.below(2)]);
        let mut message = NewMessage::new(queue_name(queue), kind(kind_name), key, payload);
        if self.chance(0.15) {
            message.due = Due::In(Duration::from_secs(self.random.random_range(1..120)));
        }
        message.priority = Priority::new(self.random.random_range(4..7)).expect("a valid priority");
        if self.chance(0.3) {
            message
                .headers
                .insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        }
        message
    }

    /// The message of a view, as its producer would send it again.
    fn again(view: &MessageView) -> NewMessage {
        let message = &view.message;
        let payload = Payload::from_json(Arc::clone(&message.payload)).expect("it was stored");
        NewMessage::new(message.queue.clone(), message.kind.clone(), message.key.clone(), payload)
    }

    fn enqueue(&mut self) -> Result<(), Stop> {
        let mut batch: Vec<NewMessage> = (0..=self.below(5)).map(|_| self.fresh()).collect();
        if self.chance(0.3) {
            let known = self.ids(|view| view.message.parent.is_none());
            if let Some(id) = self.some_of(known, 1).first() {
                batch.push(Self::again(self.view(*id)?));
            }
        }
        let store = self.store();
        let (verdicts, at) = self.call("enqueue", store.enqueue(batch.clone()))?;
        let touched = self.check_enqueued(&batch, &verdicts)?;
        self.note("enqueue", at, &touched)?;
        self.check_stored(&batch, &verdicts)
    }

    fn check_enqueued(
        &self,
        batch: &[NewMessage],
        verdicts: &[Result<Enqueued, StoreError>],
    ) -> Result<Vec<MessageId>, Stop> {
        let mut touched = Vec::new();
        for (message, verdict) in batch.iter().zip(verdicts) {
            match verdict {
                Ok(Enqueued::New { id }) => touched.push(*id),
                Ok(Enqueued::Existing { id, .. }) => touched.push(*id),
                Ok(Enqueued::Replayed { id, answer }) => {
                    if self.view(*id)?.answer.as_ref() != Some(answer) {
                        return Err(wrong(format!("{id} was answered {answer:?}, but {:?}", self.view(*id)?.answer)));
                    }
                    touched.push(*id);
                }
                // An edited payload no longer has the fingerprint of its key.
                Err(error) if error.kind() == StoreErrorKind::KeyConflict => {}
                Ok(Enqueued::Stale) | Err(_) => {
                    return Err(wrong(format!("{} was answered {verdict:?}", message.key.as_str())));
                }
            }
        }
        Ok(touched)
    }

    fn check_stored(&self, batch: &[NewMessage], verdicts: &[Result<Enqueued, StoreError>]) -> Result<(), Stop> {
        for (message, verdict) in batch.iter().zip(verdicts) {
            if let Ok(Enqueued::New { id }) = verdict {
                let view = self.view(*id)?;
                let same = *view.message.payload == *message.payload.text() && view.message.key == message.key;
                if !same || view.state != State::Ready {
                    return Err(wrong(format!("{id} was stored as {view:?}")));
                }
            }
        }
        Ok(())
    }

    fn claim(&mut self) -> Result<(), Stop> {
        let nonce = Nonce::from_bytes(self.random.random());
        let slots = u32::try_from(1 + self.below(3)).expect("a small number");
        let request = ClaimRequest {
            worker: WorkerId::new("worker-1").expect("a valid name"),
            tenant: Tenant::default(),
            queues: QUEUES.iter().map(|name| QueueSlots { queue: queue_name(name), slots }).collect(),
            kinds: KINDS.iter().map(|name| (kind(name), 1)).collect(),
            nonce,
            lease: LEASE,
        };
        let store = self.store();
        let (claimed, at) = self.call("claim", store.claim(request))?;
        let mut touched: Vec<MessageId> = claimed.leases.iter().map(|lease| lease.message.id).collect();
        for lease in &claimed.leases {
            self.book.tokens.insert(lease.message.id, lease.token);
        }
        if claimed.ended > 0 {
            touched.extend(self.ids(|view| view.state == State::Ready));
        }
        self.note("claim", at, &touched)?;
        for lease in &claimed.leases {
            let view = self.view(lease.message.id)?;
            if view.state != State::Leased || view.counters != lease.counters || view.journal != lease.journal {
                return Err(wrong(format!("{} was leased as {lease:?}, and is {view:?}", lease.message.id)));
            }
        }
        Ok(())
    }

    /// One of the leased messages with its token.
    fn leased(&mut self) -> Result<(MessageId, LeaseToken), Stop> {
        let leased: Vec<_> = self.book.tokens.iter().map(|(id, token)| (*id, *token)).collect();
        let at = self.below(leased.len());
        leased.get(at).copied().ok_or_else(|| wrong("nothing is leased"))
    }

    fn reached(&mut self, id: MessageId) -> Result<Reached, Stop> {
        let at = self.below(EFFECTS.len());
        let name = EffectName::new(EFFECTS[at]).expect("a valid name");
        let item = (at == 2 && self.chance(0.5)).then(|| format!("line-{}", self.below(3)));
        let effect = EffectId { name, item };
        // What an earlier run declared stays: the code did not change.
        if let Some(row) = effect::latest(&self.view(id)?.journal, &effect) {
            let (policy, request_hash, quarantine) = (row.policy.clone(), row.request_hash, row.quarantine);
            return Ok(Reached { effect, policy, request_hash, quarantine });
        }
        let policy = match self.below(3) {
            0 => EffectPolicy::Keyed { window: Duration::from_secs(3600), or_lookup: self.chance(0.5) },
            1 => EffectPolicy::Lookup,
            _ => EffectPolicy::AtMostOnce,
        };
        Ok(Reached { effect, policy, request_hash: self.random.random(), quarantine: Duration::from_secs(10) })
    }

    fn intend(&mut self) -> Result<(), Stop> {
        let (id, token) = self.leased()?;
        let reached = self.reached(id)?;
        let view = self.view(id)?;
        let may = effect::reach(&view.journal, &reached, view.counters.round, self.clock.now()) == Decision::Send;
        let times = IntentTimes { send_within: Duration::from_secs(5), reconcile_for: Duration::from_secs(600) };
        let write = JournalWrite::Intent { reached, times };
        // A restored store may know that the other one has sent it.
        let expected = (may && !self.plan.restored).then_some("intent");
        self.journal("intent", id, token, write, expected)
    }

    fn journal(
        &mut self,
        what: &'static str,
        id: MessageId,
        token: LeaseToken,
        write: JournalWrite,
        expected: Option<&str>,
    ) -> Result<(), Stop> {
        let store = self.store();
        let batch = vec![Journal { id, token, before: Vec::new(), write }];
        let (mut verdicts, at) = self.call(what, store.journal(batch))?;
        self.note(what, at, &[id])?;
        match verdicts.remove(0) {
            Ok(row) if !self.view(id)?.journal.contains(&row) => {
                Err(wrong(format!("{what} of {id} was answered {row:?}, and is not in its journal")))
            }
            Ok(row) if expected.is_some_and(|state| row.state.as_str() != state) => {
                Err(wrong(format!("{what} of {id} was answered {row:?}")))
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), StoreErrorKind::Conflict | StoreErrorKind::LeaseLost) => Ok(()),
            Err(error) => Err(wrong(format!("{what} of {id}: {error}"))),
        }
    }

    fn open_effects(&self, id: MessageId) -> Result<Vec<(EffectId, u32)>, Stop> {
        Ok(effect::open_rows(&self.view(id)?.journal).map(|row| (row.effect.clone(), row.seq)).collect())
    }

    fn answer(&mut self) -> Result<(), Stop> {
        let (id, token) = self.leased()?;
        let Some((effect, seq)) = self.open_effects(id)?.pop() else { return self.intend() };
        let answer = match self.below(6) {
            0..3 => EffectAnswer::Confirmed { value: format!("{{\"receipt\": {}}}", self.below(1000)).into() },
            3 => EffectAnswer::Rejected { code: "declined".into(), detail: "not enough".into() },
            4 => EffectAnswer::NotDone,
            _ => EffectAnswer::Unknown { why: "reset".into() },
        };
        self.journal("answer", id, token, JournalWrite::Answer { effect, seq, answer }, None)
    }

    fn settle(&mut self) -> Result<(), Stop> {
        let leased: Vec<MessageId> = self.book.tokens.keys().copied().collect();
        let mut batch = Vec::new();
        for id in self.some_of(leased, 3) {
            let token = self.book.tokens[&id];
            let mut journal = Vec::new();
            for (effect, seq) in self.open_effects(id)? {
                if self.chance(0.7) {
                    let answer = EffectAnswer::Confirmed { value: format!("\"{}\"", self.below(1000)).into() };
                    journal.push(JournalWrite::Answer { effect, seq, answer });
                }
            }
            let failure = Failure::new("gateway", format!("answered {}", self.below(600)));
            let outcome = match self.below(20) {
                0..11 => {
                    let result =
                        format!("{{\"done\": {}, \"padding\": \"{}\"}}", id.as_i64(), "r".repeat(self.below(400)));
                    Outcome::Completed { result: result.into(), orphans: false }
                }
                11..13 => Outcome::Permanent { failure, compensated: true, orphans: false },
                13..16 => Outcome::Retryable { failure, after: None },
                16 => Outcome::Unknown { failure },
                17 => Outcome::Snooze { after: Duration::from_secs(self.random.random_range(1..60)) },
                18 => Outcome::Undecodable { failure },
                _ => Outcome::Released,
            };
            let follow = if self.chance(0.4) { 1 + self.below(2) } else { 0 };
            let then = (0..follow).map(|n| self.follow_up(id, "then", n)).collect::<Result<_, _>>()?;
            let compensate = vec![self.follow_up(id, "undo", 0)?];
            let unit = self.random.random_range(0.0..1.0);
            batch.push(Settle { id, token, outcome, journal, then, compensate, unit });
        }
        let store = self.store();
        let (verdicts, at) = self.call("settle", store.settle(batch.clone()))?;
        let mut touched: Vec<MessageId> = batch.iter().map(|settle| settle.id).collect();
        for (settle, verdict) in batch.iter().zip(&verdicts) {
            match verdict {
                Ok(settled) => {
                    touched.extend(&settled.follow_ups);
                    self.book.tokens.remove(&settle.id);
                }
                Err(error) if error.kind() == StoreErrorKind::LeaseLost => {
                    self.book.tokens.remove(&settle.id);
                }
                Err(_) => {}
            }
        }
        self.note("settle", at, &touched)?;
        for (settle, verdict) in batch.iter().zip(&verdicts) {
            let Ok(settled) = verdict else { continue };
            let view = self.view(settle.id)?;
            if view.state != settled.state || (view.state == State::Ready && view.due_at != settled.due_at) {
                return Err(wrong(format!("{} was settled as {settled:?}, and is {view:?}", settle.id)));
            }
            if let (State::Completed, Outcome::Completed { result, .. }) = (settled.state, &settle.outcome)
                && view.answer != Some(Answer::Completed(Arc::clone(result)))
            {
                return Err(wrong(format!("{} was completed with {result}, and answers {:?}", settle.id, view.answer)));
            }
            for follow_up in &settled.follow_ups {
                if self.view(*follow_up)?.message.parent != Some(settle.id) {
                    return Err(wrong(format!("{follow_up} does not follow from {}", settle.id)));
                }
            }
        }
        Ok(())
    }

    fn follow_up(&mut self, parent: MessageId, role: &str, n: usize) -> Result<NewMessage, Stop> {
        let mut message = self.fresh();
        let item = n.to_string();
        message.key = NewMessage::follow_up_key(&self.view(parent)?.message, role, &message.kind, Some(&item));
        Ok(message)
    }

    fn extend(&mut self) -> Result<(), Stop> {
        let (id, token) = self.leased()?;
        let alone = self.chance(0.3);
        self.clock.advance(Duration::from_secs(5));
        let store = self.store();
        let (verdicts, at) = self.call("extend", store.extend(vec![Extend { id, token, lease: LEASE, alone }]))?;
        self.note("extend", at, &[id])?;
        match &verdicts[0] {
            Ok(extended) if self.view(id)?.lease.as_ref().map(|(_, until)| *until) == Some(extended.until) => Ok(()),
            Err(error) if error.kind() == StoreErrorKind::LeaseLost => Ok(()),
            verdict => Err(wrong(format!("{id} was extended {verdict:?}, and is {:?}", self.view(id)?))),
        }
    }

    fn sweep(&mut self) -> Result<(), Stop> {
        let by = [1, 10, 45, 45, 300, 900][self.below(6)];
        self.clock.advance(Duration::from_secs(by));
        let retention = self.chance(0.3).then_some(RETENTION);
        let unit = self.random.random_range(0.0..1.0);
        let store = self.store();
        let request = SweepRequest { take_over: true, retention, limit: 100, unit };
        let (swept, at) = self.call("sweep", store.sweep(request))?;
        for taken in &swept.taken_over {
            self.book.tokens.remove(&taken.id);
        }
        let before = self.book.messages.clone();
        let all: Vec<MessageId> = before.keys().copied().collect();
        self.note("sweep", at, &all)?;
        for taken in &swept.taken_over {
            if self.view(taken.id)?.state != taken.state {
                return Err(wrong(format!("{taken:?}, and is {:?}", self.view(taken.id)?)));
            }
        }
        // Only what had ended long enough ago may be gone.
        let now = self.clock.now();
        let mut gone = 0;
        for (id, view) in before.iter().filter(|(id, _)| !self.book.messages.contains_key(id)) {
            let old = view.ended_at.is_some_and(|ended| now.since(ended) >= RETENTION);
            if retention.is_none() || !view.state.is_terminal() || !old {
                return Err(wrong(format!("{id} was deleted: {view:?}")));
            }
            gone += 1;
        }
        if gone == swept.deleted { Ok(()) } else { Err(wrong(format!("{gone} are gone of {}", swept.deleted))) }
    }

    fn resolve(&mut self) -> Result<(), Stop> {
        let parked = self.ids(|view| view.state == State::Parked);
        let Some(id) = self.some_of(parked, 1).pop() else { return self.sweep() };
        let Some((effect, _)) = self.open_effects(id)?.pop() else { return self.sweep() };
        let resolution =
            if self.chance(0.5) { Resolution::Happened { value: "\"seen\"".into() } } else { Resolution::DidNotHappen };
        let store = self.store();
        self.begin();
        let request = Resolve { id, effect, resolution, act: act("asked the gateway") };
        let (resolved, at) = answered(store.resolve(request));
        let refused = resolved.as_ref().err().map(StoreError::kind);
        match refused {
            None | Some(StoreErrorKind::Conflict) => {}
            Some(_) => return resolved.map(drop).map_err(|error| Stop::Failed("resolve", error)),
        }
        self.note("resolve", at, &[id])?;
        match resolved {
            Ok(resolved) if self.view(id)?.state != resolved.state => {
                Err(wrong(format!("{id} was resolved {resolved:?}, and is {:?}", self.view(id)?)))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn redrive(&mut self) -> Result<(), Stop> {
        let ended = self.ids(|view| matches!(view.state, State::Dead | State::Failed));
        if ended.is_empty() {
            return self.settle_or_claim();
        }
        let ids = self.some_of(ended, 3);
        self.book.made += 1;
        let request = Redrive {
            ids: ids.clone(),
            again: true,
            operation: format!("operation-{}", self.book.made),
            act: act("the gateway is back"),
        };
        let store = self.store();
        let (verdicts, at) = self.call("redrive", store.redrive(request))?;
        self.note("redrive", at, &ids)?;
        for verdict in verdicts.into_iter().flatten() {
            if self.view(verdict)?.state != State::Ready {
                return Err(wrong(format!("{verdict} was redriven, and is {:?}", self.view(verdict)?)));
            }
        }
        Ok(())
    }

    fn settle_or_claim(&mut self) -> Result<(), Stop> {
        if self.book.tokens.is_empty() { self.claim() } else { self.settle() }
    }

    /// Cancels, edits or discards.
    fn operate_on_one(&mut self) -> Result<(), Stop> {
        let store = self.store();
        let dead = self.ids(|view| view.state == State::Dead);
        if let Some(id) = self.some_of(dead, 1).pop() {
            if self.chance(0.5) {
                let payload = Payload::from_json(format!("{{\"edited\": {}}}", self.below(1000))).expect("JSON");
                self.begin();
                let (edited, at) = answered(store.edit(Edit { id, payload, act: act("wrong account") }));
                match edited {
                    Ok(edited) => {
                        self.note("edit", at, &[id])?;
                        let now = &self.view(id)?.message.payload;
                        return if *now == edited.after { Ok(()) } else { Err(wrong(format!("{id} is now {now}"))) };
                    }
                    Err(error) if error.kind() == StoreErrorKind::Conflict => return self.note("edit", at, &[id]),
                    Err(error) => return Err(Stop::Failed("edit", error)),
                }
            }
            let (_, at) =
                self.call("discard", store.discard(Discard { ids: vec![id], act: act("settled by hand") }))?;
            return self.note("discard", at, &[id]);
        }
        let ready = self.ids(|view| matches!(view.state, State::Ready | State::Leased));
        let ids = self.some_of(ready, 2);
        let release_key = self.chance(0.3);
        let request = Cancel { ids: ids.clone(), release_key, act: act("not wanted") };
        let (_, at) = self.call("cancel", store.cancel(request))?;
        self.note("cancel", at, &ids)
    }

    fn pause(&mut self) -> Result<(), Stop> {
        let change = if self.chance(0.3) { QueueChange::Pause } else { QueueChange::Resume };
        let request =
            ChangeQueue { tenant: Tenant::default(), queue: queue_name(QUEUES[1]), change, act: act("maintenance") };
        let store = self.store();
        let ((), at) = self.call("pause", store.pause(request))?;
        self.note("pause", at, &[])
    }

    /// The application writes a row of its own and enqueues, in one transaction of its own.
    fn application(&mut self) -> Result<(), Stop> {
        let batch = vec![self.fresh()];
        let store = self.store();
        self.settle_down()?;
        self.begin();
        let failed = |e: rusqlite::Error| Stop::Failed("application", StoreError::unavailable(e.to_string()));
        if self.application.is_none() {
            let conn = Connection::open(self.path()).map_err(failed)?;
            conn.execute_batch("pragma synchronous = full; pragma wal_autocheckpoint = 0").map_err(failed)?;
            self.application = Some(conn);
        }
        let conn = self.application.take().expect("it was opened");
        conn.execute_batch("begin immediate").map_err(failed)?;
        if !self.book.has_tables {
            conn.execute_batch("create table if not exists app (n integer primary key, note text)").map_err(failed)?;
        }
        conn.execute("insert into app (note) values (?1)", [self.book.made.to_string()]).map_err(failed)?;
        let verdicts = store.enqueue_in(&conn, batch.clone()).map_err(|e| Stop::Failed("application", e))?;
        conn.execute_batch("commit").map_err(failed)?;
        let at = shim::position();
        self.application = Some(conn);
        self.book.has_tables = true;
        let touched = self.check_enqueued(&batch, &verdicts)?;
        self.note("application", at, &touched)?;
        self.check_stored(&batch, &verdicts)
    }

    /// A write into the store's own file as an effect.
    fn effect_in(&mut self) -> Result<(), Stop> {
        let (id, token) = self.leased()?;
        let reached = Reached {
            effect: EffectId { name: EffectName::new("book").expect("a valid name"), item: None },
            policy: EffectPolicy::Transactional,
            request_hash: [7; 16],
            quarantine: Duration::ZERO,
        };
        let note = format!("effect of {id}");
        let store = self.store();
        self.begin();
        let work = Box::new(move |conn: &Connection| {
            conn.execute_batch("create table if not exists app (n integer primary key, note text)")?;
            conn.execute("insert into app (note) values (?1)", [&note])?;
            Ok(Arc::from(conn.last_insert_rowid().to_string()))
        });
        let (done, at) = answered(store.effect_in(id, token, reached, work));
        let value = match done {
            Ok(value) => Some(value),
            Err(tidegate_sqlite::EffectInError::Store(error))
                if matches!(error.kind(), StoreErrorKind::Conflict | StoreErrorKind::LeaseLost) =>
            {
                None
            }
            Err(tidegate_sqlite::EffectInError::Store(error)) => return Err(Stop::Failed("effect_in", error)),
            Err(error @ tidegate_sqlite::EffectInError::Work(_)) => {
                return Err(Stop::Failed("effect_in", StoreError::unavailable(error.to_string())));
            }
        };
        self.note("effect_in", at, &[id])?;
        let Some(value) = value else { return Ok(()) };
        self.book.has_tables = true;
        let confirmed = EffectState::Confirmed { value };
        let view = self.view(id)?;
        if view.journal.iter().any(|row| row.state == confirmed) {
            return Ok(());
        }
        Err(wrong(format!("{id} had {confirmed:?}, and shows {:?}", view.journal)))
    }

    fn backup(&mut self) -> Result<(), Stop> {
        self.book.made += 1;
        let name = format!("backup-{}.db", self.book.made);
        let target = self.plan.directory.join(&name);
        let store = self.store();
        self.settle_down()?;
        self.begin();
        let copied = self.runtime.block_on(store.backup(&target));
        let at = shim::position();
        copied.map_err(|error| Stop::Failed("backup", error))?;
        let content = std::fs::read(&target).map_err(|e| wrong(format!("the backup cannot be read: {e}")))?;
        let book = Arc::new(self.book.with_backups(BTreeMap::new()));
        self.book.backups.insert(name, Backup { content: Arc::new(content), book });
        self.note("backup", at, &[])
    }
}

/// The rows of every table, a number for each table.
///
/// # Errors
/// Those of SQLite.
pub fn digest(conn: &Connection) -> rusqlite::Result<Digest> {
    let mut tables = conn.prepare_cached("select name from sqlite_schema where type = 'table' order by name")?;
    let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    conn.execute_batch("begin")?;
    let digests = tables.into_iter().map(|table| Ok((table.clone(), rows_of(conn, &table)?))).collect();
    conn.execute_batch("commit")?;
    digests
}

fn rows_of(conn: &Connection, table: &str) -> rusqlite::Result<u64> {
    let mut statement = conn.prepare_cached(&format!("select * from {table}"))?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut hasher = DefaultHasher::new();
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => hasher.write_u8(0),
                ValueRef::Integer(value) => hasher.write_i64(value),
                ValueRef::Real(value) => hasher.write_u64(value.to_bits()),
                ValueRef::Text(text) | ValueRef::Blob(text) => {
                    hasher.write_usize(text.len());
                    hasher.write(text);
                }
            }
        }
    }
    Ok(hasher.finish())
}

/// Opens the store in a directory as a service would, and expects it to be there.
///
/// # Errors
/// Those of opening it.
pub(crate) fn reopen(directory: &Path, now: Timestamp, create: bool) -> Result<Arc<SqliteStore>, StoreError> {
    let clock = Arc::new(ManualClock::at(now.max(Timestamp::from_millis(ManualClock::START))));
    let options = Options { clock, retention: RETENTION, room: ROOM, create, ..Options::default() };
    SqliteStore::open(directory.join(STORE), options)
}
