//! The contract of a store: what every engine does, verb by verb.
//!
//! Verbs take batches and answer one verdict per item: an item that is wrong is refused alone, an infrastructure error
//! fails the whole call with [`StoreErrorKind::Unavailable`](crate::StoreErrorKind::Unavailable) and an unknown outcome.
//! Nothing is answered before it is durable. What a message becomes is decided by [`lifecycle`](crate::lifecycle) and
//! [`effect`](crate::effect), called with facts read in the same transaction; an engine persists what they decided under
//! the lease token, and decides nothing itself but which messages a claim takes and whether a key is known.
//!
//! Time is the store's: every verb reads the [`Clock`](crate::Clock) the store was opened with.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::effect::{EffectAnswer, EffectId, EffectRow, IntentTimes, Reached};
use crate::error::StoreError;
use crate::group::GroupId;
use crate::id::{
    EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, TokenName, WorkerId, digest16,
};
use crate::lifecycle::{Cancellation, Counters, Outcome, Resolution, State};
use crate::message::{Answer, Failure, Message, NewMessage, Payload, Priority};
use crate::retry::{Policy, millis};
use crate::token::{TokenChange, TokenRecord};

/// One verdict per item of a batch.
pub type Verdicts<T> = Vec<Result<T, StoreError>>;

/// How long answers and keys are kept after a message ended.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// The contract every engine fulfils; `tidegate-testkit` holds its conformance suite.
///
/// # Cancel safety
/// Dropping the future of a verb does not undo it: the call may be carried out all the same, as after a lost reply. All
/// writing verbs are safe to repeat: enqueue by key, claim by nonce, journal and settle by token, the others by effect.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Stores messages; answers after they are durable. A known key is answered, never a silent no-op.
    ///
    /// Verdicts: `KeyConflict` (same key, another payload; carries the known message's id), `QueueFull` (the queue is at
    /// its `max_depth`; carries a retry-after), `Invalid`.
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError>;

    /// Takes due messages under a lease, counting each attempt before it starts. Repeated under the same nonce it returns
    /// the same leases.
    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError>;

    /// Declares what a kind allows and when its messages are given up, for the sweeps of every process.
    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError>;

    /// Prolongs leases and tells of cancel requests. A lapsed lease that nobody took over is prolonged.
    ///
    /// Verdicts: `LeaseLost`.
    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError>;

    /// Writes the journal of running messages: intents before a send, answers after it.
    ///
    /// Verdicts: `LeaseLost` (a late *confirmed* is kept as evidence; an intent also needs an unlapsed lease), `Conflict`
    /// (the row is decided, or the effect may not be sent now).
    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError>;

    /// Ends runs: result, state, follow-ups and journal commit together. Repeating a settlement is harmless.
    ///
    /// Verdicts: `LeaseLost`, `Conflict` (another settlement was made under this token).
    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError>;

    /// Takes over lapsed leases, makes due messages claimable and deletes what is past its retention, in bounded steps.
    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError>;

    /// Puts ended messages back to ready, with one audit row for all. Repeated under the same operation id it redrives
    /// nothing twice.
    ///
    /// Verdicts: `NotFound`, `Conflict` with the reason.
    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError>;

    /// Begins a redrive of many, takes it a step further, calls it off or lets it go on. Everything about it is in the
    /// store, so that whoever names it can drive it on. A step commits at most [`REDRIVE_CHUNK`] messages and one audit row.
    ///
    /// # Errors
    /// `NotFound` (no such operation), `Conflict` (the name is taken by another selection; it has ended), `Invalid`.
    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError>;

    /// Operations, the newest first; only the one of this name when there is one.
    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError>;

    /// Changes the payload of a dead letter, with an audit row. The key keeps the fingerprint of the payload it came with:
    /// its producer's duplicates still match, whatever an operator repaired since.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` (not dead, an effect is open or confirmed), `Invalid` (no reason, too large).
    async fn edit(&self, request: Edit) -> Result<Edited, StoreError>;

    /// Gives dead letters up: they leave the desk, and their retention begins. Discarding twice is discarding once.
    ///
    /// Verdicts: `NotFound`, `Conflict`. Without a reason all is `Invalid`.
    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError>;

    /// Calls messages off that have not taken effect. Repeated it answers where that stands and changes nothing, nor does it
    /// leave another audit row.
    ///
    /// Verdicts: `NotFound`, `Conflict`.
    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError>;

    /// Pauses, resumes or limits a queue, with an audit row. Acts on a queue nobody used yet as well. What changes nothing, and
    /// is what the same actor said last for the same reason, leaves no second row: its reply was lost.
    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError>;

    /// Records what a person or a webhook knows of a parked effect. When all open effects of the message are resolved it
    /// becomes ready, due now.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` (not parked, quarantine not over, decided otherwise), `Invalid` (no reason given).
    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError>;

    /// Everything about messages; `None` for an id nobody has.
    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError>;

    /// The message of a key.
    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError>;

    /// Where messages stand, as cheaply as can be: what a waiting client polls. `None` for an id nobody has.
    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError>;

    /// All messages of a flow, the first one first.
    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError>;

    /// Messages by filter, by ascending id after `filter.after`.
    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError>;

    /// What dead letters have in common, the largest group first; parked ones as well when their state is asked for. Of the
    /// filter, `after` and `group` are not looked at, nor discarded messages.
    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError>;

    /// What an explanation of a message needs to know besides the message: read by the claim's own predicates.
    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError>;

    /// Acts of operators, oldest first, after a sequence number.
    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError>;

    /// Notes an act in the audit that changed nothing, such as that somebody looked at payloads: one row for each of its
    /// messages, or one in all when it names none. Whether there are such messages is not asked. The same note again within
    /// [`NOTED_ONCE_WITHIN`] leaves no second row: its reply was lost.
    async fn note(&self, note: Note) -> Result<(), StoreError>;

    /// Everything that is kept of tokens, by name and age; those that ended as well.
    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError>;

    /// Adds, rotates or revokes the tokens of a name, with an audit row; decided by [`token::change`](crate::token::change).
    /// Answered with all that is kept under the name then. Repeating a change is harmless.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`.
    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError>;

    /// Depths, ages and counters, exact as of one moment.
    async fn stats(&self) -> Result<Stats, StoreError>;

    /// Tells a listener of every commit of this process, after it is durable. Held weakly: drop it to stop.
    fn on_commit(&self, listener: Weak<dyn CommitListener>);
}

/// Hears of this process's commits, so that workers and waiters need not poll for them.
pub trait CommitListener: Send + Sync {
    /// Called after the commit, on the engine's own thread: must not block.
    fn committed(&self, news: &News);
}

/// What a commit changed.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// Queues that got a message that may be claimable now or soon.
    pub ready: Vec<QueueName>,
    /// Messages that reached a terminal state or were parked.
    pub ended: Vec<MessageId>,
}

// --- enqueue ---------------------------------------------------------------------------------------------------------

/// The verdict on one enqueue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// It is stored.
    New {
        /// Its id.
        id: MessageId,
    },
    /// The key is known and has no answer yet (or none that is ever given): no work begins.
    Existing {
        /// The known message.
        id: MessageId,
        /// Where it stands: never completed or failed.
        state: State,
        /// Options of this call that were ignored because the first ones won.
        ignored: Vec<&'static str>,
    },
    /// The key is known and answered: the stored answer, byte for byte.
    Replayed {
        /// The known message.
        id: MessageId,
        /// Its answer.
        answer: Answer,
    },
    /// The key is unknown but older than the retention: it may have been done and forgotten, so it is not executed.
    Stale,
}

// --- claim -----------------------------------------------------------------------------------------------------------

/// What a worker can take on.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who claims.
    pub worker: WorkerId,
    /// Whose messages.
    pub tenant: Tenant,
    /// Free slots by queue. Never more is claimed than fits.
    pub queues: Vec<QueueSlots>,
    /// Kinds this worker has handlers for, each with the newest payload version it reads.
    pub kinds: Vec<(Kind, u32)>,
    /// Made for this call; a repeat of the call repeats it.
    pub nonce: Nonce,
    /// How long each lease holds without being extended.
    pub lease: Duration,
}

/// Free slots of one queue.
#[derive(Debug, Clone)]
pub struct QueueSlots {
    /// Which queue.
    pub queue: QueueName,
    /// How many messages at most.
    pub slots: u32,
}

/// The verdict on a claim.
#[derive(Debug, Clone, Default)]
pub struct Claimed {
    /// The leases, in the order to start them.
    pub leases: Vec<Lease>,
    /// When the next message of these queues becomes due, if one is scheduled.
    pub next_due: Option<Timestamp>,
    /// Messages that were due but too late to begin, or called off: they ended instead.
    pub ended: u32,
}

/// The time-limited right to run a message and to settle it.
#[derive(Debug, Clone)]
pub struct Lease {
    /// What is to be run.
    pub message: Message,
    /// Proves the lease.
    pub token: LeaseToken,
    /// When it lapses unless extended, by the store's clock.
    pub until: Timestamp,
    /// What is counted, this run included.
    pub counters: Counters,
    /// An effect of an earlier run is open: clear it up first.
    pub reconciling: bool,
    /// An earlier run crashed: run it with nothing else in the process, and say so with [`Extend::alone`] before it starts.
    pub suspect: bool,
    /// When the message became claimable.
    pub due_at: Timestamp,
    /// The journal of earlier runs.
    pub journal: Vec<EffectRow>,
}

// --- extend ----------------------------------------------------------------------------------------------------------

/// Asks for more time.
#[derive(Debug, Clone)]
pub struct Extend {
    /// Which message.
    pub id: MessageId,
    /// Proves the lease.
    pub token: LeaseToken,
    /// How long from now.
    pub lease: Duration,
    /// The message now runs with nothing else in its process: a crash from here on counts against it.
    pub alone: bool,
}

/// The verdict on an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    /// When the lease lapses now.
    pub until: Timestamp,
    /// An operator asked to cancel the message.
    pub cancel_requested: bool,
}

// --- journal ---------------------------------------------------------------------------------------------------------

/// A write to the journal of a running message.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Which message.
    pub id: MessageId,
    /// Proves the lease.
    pub token: LeaseToken,
    /// Decided rows of effects answered since the last write; they are applied first, in order.
    pub before: Vec<JournalWrite>,
    /// The write whose row is the verdict.
    pub write: JournalWrite,
}

impl Journal {
    /// Whether the writes may stand here. That nothing was sent is said with the next intent of the effect, or by the
    /// settlement that ends the run: alone, or beside another effect, it may come late, when the effect is being sent.
    ///
    /// # Errors
    /// `Invalid`, with the effect of which it is said.
    pub fn check(&self) -> Result<(), StoreError> {
        let intended = match &self.write {
            JournalWrite::Intent { reached, .. } => Some(&reached.effect),
            JournalWrite::Answer { .. } | JournalWrite::NotSent { .. } | JournalWrite::Natural { .. } => None,
        };
        for write in self.before.iter().chain([&self.write]) {
            if let JournalWrite::NotSent { effect } = write
                && intended != Some(effect)
            {
                return Err(not_sent_here(effect));
            }
        }
        Ok(())
    }
}

/// What says of this effect that it was not sent has no place where it stands.
#[must_use]
pub fn not_sent_here(effect: &EffectId) -> StoreError {
    StoreError::invalid(format!("that effect {effect} was not sent cannot be said here: it may be on its way by now"))
        .hint("say it when the effect is reached again, or in the journal of the settlement that ends the run")
}

/// One transition of one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "write", rename_all = "snake_case")]
pub enum JournalWrite {
    /// Before a send: `effect::intend`.
    Intent {
        /// The effect as the handler reached it.
        reached: Reached,
        /// How long it may be sent and reconciled.
        times: IntentTimes,
    },
    /// After a send or a look-up: `effect::answered`.
    Answer {
        /// Which effect.
        effect: EffectId,
        /// Which of its rows.
        seq: u32,
        /// The answer.
        answer: EffectAnswer,
    },
    /// The reply to an intent was missing, and so its send never left: `effect::not_sent`. Said with the next intent of the
    /// effect, or by the settlement: [`Journal::check`]. Changes nothing where this lease left no intent.
    NotSent {
        /// Which effect.
        effect: EffectId,
    },
    /// A natural effect was done: `effect::confirmed_at_once`.
    Natural {
        /// The effect as the handler reached it.
        reached: Reached,
        /// JSON text of its value.
        value: Arc<str>,
    },
}

// --- settle ----------------------------------------------------------------------------------------------------------

/// The end of a run.
#[derive(Debug, Clone)]
pub struct Settle {
    /// Which message.
    pub id: MessageId,
    /// Proves the lease.
    pub token: LeaseToken,
    /// How the run ended.
    pub outcome: Outcome,
    /// Journal writes that were not written yet; applied before the decision.
    pub journal: Vec<JournalWrite>,
    /// Enqueued in the same commit if the message becomes completed; not held back by `max_depth`.
    pub then: Vec<NewMessage>,
    /// Enqueued in the same commit if the message becomes failed or dead.
    pub compensate: Vec<NewMessage>,
    /// Uniform in `0.0..1.0`: the jitter of a retry. Not part of what makes two settlements the same.
    pub unit: f64,
}

impl Settle {
    /// Identifies the settlement: a repeat under the same token must have the same digest.
    #[must_use]
    pub fn digest(&self) -> [u8; 16] {
        let outcome = serde_json::to_vec(&self.outcome).expect("an outcome is plain data");
        let journal = serde_json::to_vec(&self.journal).expect("a journal write is plain data");
        let follow_ups: Vec<u8> = (self.then.iter().chain(&self.compensate))
            .flat_map(|m| [m.key.hash(), m.fingerprint().0])
            .flatten()
            .collect();
        digest16(&[&outcome, &journal, &follow_ups])
    }
}

/// The verdict on a settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What the message became.
    pub state: State,
    /// When it may be claimed again, if it is ready.
    pub due_at: Option<Timestamp>,
    /// Why it is dead or parked.
    pub reason: Option<&'static str>,
    /// Messages enqueued with it.
    pub follow_ups: Vec<MessageId>,
    /// Set when this was the last live message of its flow: how long the flow took from its first enqueue.
    pub flow_took: Option<Duration>,
    /// The settlement had been made before; its reply was lost.
    pub repeated: bool,
}

// --- sweep -----------------------------------------------------------------------------------------------------------

/// What a sweep does, and how much of it at once.
#[derive(Debug, Clone)]
pub struct SweepRequest {
    /// Take over leases that lapsed. Withheld by a sweeper that was itself asleep: their holders may still extend.
    pub take_over: bool,
    /// Delete answers and keys older than this; `None` deletes nothing.
    pub retention: Option<Duration>,
    /// At most so many rows of each sort.
    pub limit: u32,
    /// Uniform in `0.0..1.0`: the jitter of retries.
    pub unit: f64,
}

/// What a sweep did.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// Messages whose lease was taken over, and what they became.
    pub taken_over: Vec<TakenOver>,
    /// Scheduled messages that are claimable now.
    pub promoted: u32,
    /// Messages deleted after their retention.
    pub deleted: u32,
    /// There is more to do.
    pub more: bool,
}

/// A message that was taken from a worker that no longer extended its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOver {
    /// Which message.
    pub id: MessageId,
    /// What it became.
    pub state: State,
    /// Who had held it.
    pub worker: WorkerId,
    /// Its queue.
    pub queue: QueueName,
}

// --- operators -------------------------------------------------------------------------------------------------------

/// Who acts, and why; stored with the act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// The operating system's user, a token's name, a webhook.
    pub actor: String,
    /// Mandatory where the act replaces an answer or decides about an effect.
    pub reason: String,
}

/// Puts messages back to ready.
#[derive(Debug, Clone)]
pub struct Redrive {
    /// Which; at most [`REDRIVE_CHUNK`] a call.
    pub ids: Vec<MessageId>,
    /// Also failed ones, whose answer was given; needs a reason.
    pub again: bool,
    /// Names the operation over all its chunks: a message is redriven at most once under it.
    pub operation: String,
    /// Who and why.
    pub act: Act,
}

/// The most messages one redrive commits.
pub const REDRIVE_CHUNK: usize = 1000;

/// Which messages an operation redrives: those that are named, or else all dead letters of a sort.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selection {
    /// These; at most [`MOST_NAMED`]. The rest of the selection is not looked at then.
    #[serde(default)]
    pub ids: Vec<MessageId>,
    /// Only this tenant's; everybody's when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Only this queue.
    pub queue: Option<QueueName>,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only this reason, or this code of the last failure.
    pub code: Option<String>,
    /// Only this group of failures.
    pub group: Option<GroupId>,
}

/// The most messages one operation names.
pub const MOST_NAMED: usize = 10_000;

/// An act on an operation.
#[derive(Debug, Clone)]
pub enum Operate {
    /// Begins one; answered with the known one when it was begun before. Nothing is redriven yet.
    Begin(Box<NewOperation>),
    /// Looks what became of the messages redriven so far, and redrives the next ones if that may be now.
    Step {
        /// Which.
        name: String,
    },
    /// Redrives no more of it.
    Cancel {
        /// Which.
        name: String,
        /// Who and why.
        act: Act,
    },
    /// Goes on after it stopped by itself: with a new canary, and judged by what it redrives from now on.
    Resume {
        /// Which.
        name: String,
        /// Who and why; the reason is mandatory.
        act: Act,
    },
}

/// An operation to begin.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Its name; no other operation has it.
    pub name: String,
    /// Which messages. Of a sort, those that were dead when it began.
    pub selection: Selection,
    /// Also failed ones; only with named ids and a reason.
    pub again: bool,
    /// How fast and how carefully.
    pub pace: Pace,
    /// Who and why.
    pub act: Act,
}

/// How fast and how carefully an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pace {
    /// So many are redriven first, and nothing more before all of them have ended; 0 for none.
    pub canary: u32,
    /// At most so many a second.
    pub per_second: Option<u32>,
    /// Stops when more than so many of a hundred that ended have ended badly: failed, dead or parked.
    pub stop_over_percent: Option<u32>,
}

/// Without a canary an operation is not judged by fewer ended messages than this, unless none is under way.
pub const JUDGED_FROM: u64 = 20;

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Its steps redrive.
    Running,
    /// Too many of its messages ended badly.
    Stopped,
    /// All it selected was redriven or refused; what is under way is still watched.
    Done,
    /// Called off.
    Cancelled,
}

impl OperationState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Running, Self::Stopped, Self::Done, Self::Cancelled];

    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A redrive of many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Which messages.
    pub selection: Selection,
    /// Also failed ones.
    pub again: bool,
    /// How fast and how carefully.
    pub pace: Pace,
    /// Where it stands.
    pub state: OperationState,
    /// How many messages it found when it began.
    pub selected: u64,
    /// How many it redrove.
    pub redriven: u64,
    /// How many it could not.
    pub refused: u64,
    /// How many of the redriven completed, or were called off.
    pub ended_well: u64,
    /// How many of the redriven failed, died or were parked.
    pub ended_badly: u64,
    /// Who began it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When.
    pub created_at: Timestamp,
}

impl Operation {
    /// How many of the redriven are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.redriven.saturating_sub(self.ended_well + self.ended_badly)
    }
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Stepped {
    /// The operation after it.
    pub operation: Operation,
    /// What this step could not redrive, and why.
    pub refused: Vec<(MessageId, StoreError)>,
    /// Nothing was redriven because of this.
    pub waits: Option<Waits>,
}

/// What the next step of an operation waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The canary has to end first.
    Canary,
    /// Its rate allows the next one then.
    Until(Timestamp),
}

/// Changes the payload of a dead letter.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Which message.
    pub id: MessageId,
    /// What its handler gets from now on.
    pub payload: Payload,
    /// Who and why; the reason is mandatory.
    pub act: Act,
}

/// The verdict on an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The payload before.
    pub before: Arc<str>,
    /// The payload now.
    pub after: Arc<str>,
}

/// Gives dead letters up.
#[derive(Debug, Clone)]
pub struct Discard {
    /// Which; at most [`REDRIVE_CHUNK`] a call.
    pub ids: Vec<MessageId>,
    /// Who and why; the reason is mandatory.
    pub act: Act,
}

/// What failures have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureGroup {
    /// Its name.
    pub id: GroupId,
    /// The kind of its messages.
    pub kind: Kind,
    /// The code of the failure they ended with, or the reason where they ended without one: in a crash, or out of time.
    pub code: String,
    /// The effect they failed at, if they failed at one.
    pub effect: Option<EffectName>,
    /// What was said, with numbers, identifiers and quoted text masked.
    pub pattern: String,
    /// How many there are.
    pub count: u64,
    /// When the first of them ended.
    pub first_seen: Timestamp,
    /// When the last of them ended.
    pub last_seen: Timestamp,
    /// The first of them by id.
    pub sample: MessageId,
}

/// Calls messages off.
#[derive(Debug, Clone)]
pub struct Cancel {
    /// Which.
    pub ids: Vec<MessageId>,
    /// Frees the key for another message; refused once an intent was written.
    pub release_key: bool,
    /// Who and why.
    pub act: Act,
}

/// Changes a queue.
#[derive(Debug, Clone)]
pub struct ChangeQueue {
    /// Whose.
    pub tenant: Tenant,
    /// Which.
    pub queue: QueueName,
    /// How.
    pub change: QueueChange,
    /// Who and why.
    pub act: Act,
}

/// A change of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueChange {
    /// No more claims.
    Pause,
    /// Claims again.
    Resume,
    /// At most so many ready and leased messages; `None` lifts the limit.
    Limit(Option<u64>),
}

/// Says what became of a parked effect.
#[derive(Debug, Clone)]
pub struct Resolve {
    /// Which message.
    pub id: MessageId,
    /// Which of its effects.
    pub effect: EffectId,
    /// What happened.
    pub resolution: Resolution,
    /// Who and why; the reason is mandatory.
    pub act: Act,
}

/// The verdict on a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Parked while other effects are open, else ready.
    pub state: State,
    /// Effects that are still open.
    pub still_open: u32,
}

/// Changes the tokens of a name.
#[derive(Debug, Clone)]
pub struct ChangeToken {
    /// Which name.
    pub name: TokenName,
    /// How.
    pub change: TokenChange,
    /// Who and why.
    pub act: Act,
}

/// A note that says the same of the same message by the same actor is one note, if so much time lies between. Later it is
/// another act: whoever looks at a payload again looks again.
pub const NOTED_ONCE_WITHIN: Duration = Duration::from_secs(60);

/// An act that changes nothing and is kept all the same.
#[derive(Debug, Clone)]
pub struct Note {
    /// The act in a word, such as `reveal`.
    pub what: String,
    /// On which messages.
    pub messages: Vec<MessageId>,
    /// Particulars.
    pub detail: String,
    /// Who and why.
    pub act: Act,
}

/// One act of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Its place in the log.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// `redrive`, `operation`, `edit`, `discard`, `cancel`, `pause`, `resume`, `limit`, `resolve`, `token`, or a [`Note`]'s.
    pub act: String,
    /// Why.
    pub reason: String,
    /// On which message, if it was on one.
    pub message: Option<MessageId>,
    /// Whose, if it was on a queue.
    pub tenant: Option<Tenant>,
    /// On which queue, if it was on one.
    pub queue: Option<QueueName>,
    /// Particulars: an operation id, an effect, a limit.
    pub detail: String,
}

// --- inspect ---------------------------------------------------------------------------------------------------------

/// Where a message stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Its state.
    pub state: State,
    /// Why it is dead or parked.
    pub reason: Option<String>,
    /// Its answer, if it is completed or failed.
    pub answer: Option<Answer>,
}

/// A message in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Its id.
    pub id: MessageId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: IdempotencyKey,
    /// Where it stands.
    pub state: State,
    /// Counted attempts so far.
    pub attempt: u32,
    /// When it may be claimed, if it is ready.
    pub due_at: Option<Timestamp>,
    /// Why it failed, died or was parked; or the last attempt's failure.
    pub code: Option<String>,
    /// The same for people.
    pub detail: Option<String>,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it ended or was parked.
    pub ended_at: Option<Timestamp>,
    /// The first message of its flow.
    pub flow: MessageId,
}

/// Which messages to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this tenant's; everybody's when there is none.
    pub tenant: Option<Tenant>,
    /// Only this queue.
    pub queue: Option<QueueName>,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only these states; all when empty.
    pub states: Vec<State>,
    /// Only this code of failure, or reason of being dead or parked.
    pub code: Option<String>,
    /// Only this group of failures, and so only dead and parked ones.
    pub group: Option<GroupId>,
    /// Also dead letters that were discarded; without it they are not listed.
    pub discarded: bool,
    /// Only ids after this one.
    pub after: Option<MessageId>,
    /// At most so many.
    pub limit: u32,
}

/// Everything about one message.
#[derive(Debug, Clone, PartialEq)]
pub struct MessageView {
    /// As enqueued.
    pub message: Message,
    /// Where it stands.
    pub state: State,
    /// What is counted.
    pub counters: Counters,
    /// When it may be claimed, if it is ready.
    pub due_at: Option<Timestamp>,
    /// Why it is dead or parked.
    pub reason: Option<String>,
    /// The failure it ended or last failed with.
    pub failure: Option<Failure>,
    /// Its answer, if it is completed or failed.
    pub answer: Option<Answer>,
    /// When it ended or was parked.
    pub ended_at: Option<Timestamp>,
    /// Who runs it and until when, if it is leased.
    pub lease: Option<(WorkerId, Timestamp)>,
    /// An operator asked to cancel it.
    pub cancel_requested: bool,
    /// It must run alone.
    pub suspect: bool,
    /// A compensation was enqueued when it ended: it cannot be redriven.
    pub compensated: bool,
    /// Its journal.
    pub journal: Vec<EffectRow>,
    /// Confirmations that arrived under a lost lease: not applied, kept for whoever resolves.
    pub evidence: Vec<Evidence>,
    /// Runs that ended otherwise than completed, oldest first.
    pub history: Vec<Ending>,
}

/// So many late confirmations of one effect are kept: the first one and the latest. What came between says nothing that a
/// person who resolves would decide by, and all of them are counted as [`Counted::RejectedLateWrites`].
pub const MOST_EVIDENCE: usize = 8;

/// A confirmation that came too late to be applied. The same one again is not kept twice; see [`MOST_EVIDENCE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// When it arrived.
    pub at: Timestamp,
    /// Of which effect.
    pub effect: EffectId,
    /// The value it confirmed.
    pub value: Arc<str>,
}

/// How one run ended, or what an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// When.
    pub at: Timestamp,
    /// Counted attempts at that time.
    pub attempt: u32,
    /// The generation it belonged to.
    pub generation: u32,
    /// [`Outcome::as_str`], or `redriven`, `resolved`, `cancelled`.
    pub outcome: String,
    /// What the message became.
    pub state: State,
    /// Code of the failure.
    pub code: String,
    /// The failure for people.
    pub detail: String,
    /// When it was to be claimed again, if it became ready.
    pub due_at: Option<Timestamp>,
}

/// What an explanation needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainFacts {
    /// The message.
    pub view: MessageView,
    /// The store's time.
    pub now: Timestamp,
    /// Its queue is paused.
    pub paused: bool,
    /// Messages of its lane that are claimed before it; capped at 10,000.
    pub ahead: u32,
    /// The policy a worker declared for its kind; none when no worker ever served it.
    pub policy: Option<Policy>,
}

// --- stats -----------------------------------------------------------------------------------------------------------

/// Depths, ages and counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// By queue, in the order of their names.
    pub queues: Vec<QueueStats>,
    /// Counters that survive restarts, over all processes.
    pub tallies: Vec<Tally>,
    /// Effects whose answer is missing.
    pub open_effects: u64,
    /// Lanes with ready messages: what a worker compares with what it serves.
    pub lanes: Vec<LaneStats>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QueueStats {
    /// Its tenant.
    pub tenant: Tenant,
    /// Its name.
    pub queue: QueueName,
    /// No claims.
    pub paused: bool,
    /// The most ready and leased messages it takes.
    pub max_depth: Option<u64>,
    /// Claimable now.
    pub ready: u64,
    /// Ready, but due later.
    pub scheduled: u64,
    /// Running.
    pub leased: u64,
    /// Waiting for a person.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest claimable message has been due.
    #[serde(with = "maybe_millis", rename = "oldest_ready_ms")]
    pub oldest_ready: Option<Duration>,
    /// How long ago the oldest running message became due: its wait and its run so far.
    #[serde(with = "maybe_millis", rename = "oldest_leased_ms")]
    pub oldest_leased: Option<Duration>,
    /// How long the oldest parked message has been parked.
    #[serde(with = "maybe_millis", rename = "oldest_parked_ms")]
    pub oldest_parked: Option<Duration>,
    /// How long the oldest dead letter has been one.
    #[serde(with = "maybe_millis", rename = "oldest_dead_ms")]
    pub oldest_dead: Option<Duration>,
}

/// One lane with ready messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneStats {
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// The payload version of its messages.
    pub version: u32,
    /// Their priority.
    pub priority: Priority,
    /// How long its head has been due.
    #[serde(with = "millis", rename = "oldest_ms")]
    pub oldest: Duration,
}

/// The most codes that are told apart of one queue, kind and counter; what comes after them is counted as [`OTHER_CODES`].
pub const MOST_CODES: u32 = 100;
/// The code of all codes beyond [`MOST_CODES`].
pub const OTHER_CODES: &str = "other";

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Of which queue.
    pub queue: QueueName,
    /// Of which kind.
    pub kind: Kind,
    /// What is counted.
    pub what: Counted,
    /// Code of the failure or reason, where there is one; [`OTHER_CODES`] beyond the first [`MOST_CODES`].
    pub code: String,
    /// How often.
    pub n: u64,
}

/// What is counted durably, in the commit of the act itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Messages stored, follow-ups included.
    Enqueued,
    /// Enqueues of a known key without an answer.
    Deduplicated,
    /// Enqueues of a known key that got its answer.
    Replayed,
    /// Enqueues refused for another payload under the key.
    KeyConflicts,
    /// Enqueues refused for the queue's limit.
    QueueFull,
    /// Runs that ended, by outcome.
    Attempts,
    /// Runs after which the message became ready again, by code.
    Retries,
    /// Runs that ended in a failure of any sort, by code.
    Failures,
    /// Messages completed.
    Completed,
    /// Messages failed, by code.
    Failed,
    /// Messages dead, by reason.
    Dead,
    /// Messages parked, by reason.
    Parked,
    /// Messages cancelled.
    Cancelled,
    /// Messages redriven.
    Redriven,
    /// Parked messages that were resolved.
    Resolved,
    /// Leases taken over.
    LostLeases,
    /// Writes refused because their token was no longer current.
    RejectedLateWrites,
    /// Messages deleted after their retention.
    Deleted,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Enqueued,
        Self::Deduplicated,
        Self::Replayed,
        Self::KeyConflicts,
        Self::QueueFull,
        Self::Attempts,
        Self::Retries,
        Self::Failures,
        Self::Completed,
        Self::Failed,
        Self::Dead,
        Self::Parked,
        Self::Cancelled,
        Self::Redriven,
        Self::Resolved,
        Self::LostLeases,
        Self::RejectedLateWrites,
        Self::Deleted,
    ];

    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enqueued => "enqueued",
            Self::Deduplicated => "deduplicated",
            Self::Replayed => "replayed",
            Self::KeyConflicts => "key_conflicts",
            Self::QueueFull => "queue_full",
            Self::Attempts => "attempts",
            Self::Retries => "retries",
            Self::Failures => "failures",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Parked => "parked",
            Self::Cancelled => "cancelled",
            Self::Redriven => "redriven",
            Self::Resolved => "resolved",
            Self::LostLeases => "lost_leases",
            Self::RejectedLateWrites => "rejected_late_writes",
            Self::Deleted => "deleted",
        }
    }

    /// The counter behind a stored word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|counted| counted.as_str() == word)
    }
}

mod maybe_millis {
    use std::time::Duration;

    use serde::Serializer;

    #[expect(clippy::ref_option, reason = "the shape serde's `with` calls for")]
    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}
