//! The wire forms of Tidegate's HTTP API: what a request and an answer look like, whoever sends them.
//!
//! Used by the server, by a store that is kept elsewhere, and by commands. Each form knows how it becomes what the library
//! calls it, and back; texts that were stored as JSON travel byte for byte. Nothing here does any I/O, and nothing decides
//! who may see what: a form is made with a [`Show`] that says it.

mod act;
mod audit;
mod edit;
mod enqueue;
mod event;
mod explanation;
mod flow;
mod group;
mod inspect;
mod list;
mod message;
mod operation;
mod parked;
mod problem;
mod queue;
mod resolve;
pub mod schema;
mod stats;
mod text;
mod token;

/// The header by which a server says of every answer which version of Tidegate gave it.
pub const VERSION_HEADER: &str = "tidegate-version";

pub use act::{ActResult, ActResults, CalledOff, Cancel, Discard, Redrive, Redriven};
pub use audit::{AuditEntry, AuditPage, Note, Noted};
pub use edit::{Change, Edit, Edited};
// Of workers.
mod claim;
mod extend;
mod journal;
mod lease;
mod policy;
mod reach;
mod settle;
mod sweep;

pub use enqueue::{Enqueue, EnqueueMany, EnqueueResult, EnqueueResults, Enqueued, IntakeDefaults, NoMessage, Verdict};
pub use event::Event;
pub use explanation::{Explanation, Facts, Predicate};
pub use flow::Flow;
pub use group::{FailureGroup, Groups};
pub use inspect::{Inspect, Inspected, Progress, ProgressList, Revealed};
pub use list::{Page, Summary};
pub use message::{Answer, Effect, Ending, Evidence, Failure, Lease, Message, Show};
pub use operation::{
    ActOnOperation, NewOperation, Operation, OperationAct, OperationState, Operations, Pace, Preview, PreviewOperation,
    QueueCount, RefusedMessage, Selection, Stepped, Waits, check_code,
};
pub use parked::{Parked, ParkedPage};
pub use problem::{PROBLEM_JSON, Problem, ProblemType, Refusal};
pub use queue::{ChangeQueue, Queue, Queues};
pub use resolve::{Resolution, Resolve, Resolved};
pub use stats::{Lane, Stats, Tally};
pub use text::{Hidden, Text};
pub use token::{MadeToken, NewToken, RotateToken, Token, Tokens};

pub use claim::{Claim, Claimed, ClaimedLease, ClaimedMessage, Counters};
pub use extend::{ExtendLease, ExtendLeases, ExtendResult, ExtendResults};
pub use journal::{
    AnswerName, DEFAULT_SEND_WITHIN, JournalItem, JournalResult, JournalResults, PolicyName, Write, WriteJournal,
    WriteName,
};
pub use lease::{ClaimNonce, Digest, LeaseProof};
pub use policy::{KindBackoff, KindPolicy};
pub use reach::{AnswerEffect, Do, Instruction, Reach, SettleWith};
pub use settle::{
    FollowUp, Needs, OutcomeName, ParkName, SettleFacts, SettleLeases, SettleResult, SettleResults, Settlement,
};
pub use sweep::{Sweep, Swept, TakenOver};
