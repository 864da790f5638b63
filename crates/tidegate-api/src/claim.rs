//! A claim of messages, and the leases it comes back with.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::store::{self, ClaimRequest, QueueSlots};
use tidegate::{
    IdempotencyKey, Kind, MessageId, Priority, QueueName, StoreError, Tenant, Timestamp, WorkerId, lifecycle, message,
};
use utoipa::ToSchema;

use crate::lease::{ClaimNonce, LeaseProof};
use crate::message::{Effect, Show, millis};
use crate::schema;
use crate::text::Text;

/// Asks for messages to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Who runs them, as people are told.
    #[schema(value_type = schema::Name)]
    pub worker: WorkerId,
    /// Free slots by queue: never more than can be started now.
    #[schema(value_type = BTreeMap<String, u32>, examples(json!({"capture": 4})))]
    pub queues: BTreeMap<QueueName, u32>,
    /// Kinds there are handlers for, each with the newest version of its payload that they read.
    #[schema(value_type = BTreeMap<String, u32>, examples(json!({"capture": 1})))]
    pub kinds: BTreeMap<Kind, u32>,
    /// Made for this claim, and sent again when the claim is repeated because its answer is missing: then the same leases
    /// come back.
    #[schema(value_type = schema::Hex16)]
    pub nonce: ClaimNonce,
    /// How long each lease holds without being extended.
    #[schema(minimum = 30, maximum = 86_400_000)]
    pub lease_ms: u64,
    /// How long to wait for something, where nothing is there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 60_000, default = 0)]
    pub wait_ms: Option<u64>,
    /// Whose messages; that of the header `Tidegate-Tenant` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::TenantName>)]
    pub tenant: Option<Tenant>,
}

impl Claim {
    /// The claim as a request for it is written; one that does not wait.
    #[must_use]
    pub fn of(request: &ClaimRequest) -> Self {
        let mut queues = BTreeMap::new();
        for slots in &request.queues {
            let of_queue: &mut u32 = queues.entry(slots.queue.clone()).or_default();
            *of_queue = of_queue.saturating_add(slots.slots);
        }
        let mut kinds: BTreeMap<Kind, u32> = BTreeMap::new();
        for (kind, newest) in &request.kinds {
            let known = kinds.entry(kind.clone()).or_default();
            *known = (*known).max(*newest);
        }
        Self {
            worker: request.worker.clone(),
            queues,
            kinds,
            nonce: ClaimNonce(request.nonce),
            lease_ms: millis(request.lease),
            wait_ms: None,
            tenant: Some(request.tenant.clone()),
        }
    }

    /// The claim as a store takes it. How long to wait is not the store's business.
    #[must_use]
    pub fn into_request(self, tenant: &Tenant) -> ClaimRequest {
        ClaimRequest {
            worker: self.worker,
            tenant: self.tenant.unwrap_or_else(|| tenant.clone()),
            queues: self.queues.into_iter().map(|(queue, slots)| QueueSlots { queue, slots }).collect(),
            kinds: self.kinds.into_iter().collect(),
            nonce: self.nonce.0,
            lease: Duration::from_millis(self.lease_ms),
        }
    }
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Claimed {
    /// The leases, in the order to start them.
    pub leases: Vec<ClaimedLease>,
    /// When the next message of these queues becomes due, if one is scheduled.
    #[schema(value_type = Option<schema::Time>)]
    pub next_due: Option<Timestamp>,
    /// Messages that were due but too late to begin, or called off: they ended instead.
    pub ended: u32,
}

impl From<&store::Claimed> for Claimed {
    fn from(claimed: &store::Claimed) -> Self {
        let leases = claimed.leases.iter().map(ClaimedLease::from).collect();
        Self { leases, next_due: claimed.next_due, ended: claimed.ended }
    }
}

impl Claimed {
    /// What a store answers.
    ///
    /// # Errors
    /// `Corrupt` when a word of a journal is not known.
    pub fn into_claimed(self) -> Result<store::Claimed, StoreError> {
        let leases = self.leases.into_iter().map(ClaimedLease::into_lease).collect::<Result<_, _>>()?;
        Ok(store::Claimed { leases, next_due: self.next_due, ended: self.ended })
    }
}

/// The time-limited right to run a message and to settle it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClaimedLease {
    /// What is to be run.
    pub message: ClaimedMessage,
    /// Proves the lease; a secret of whoever claimed.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// When it lapses unless it is extended, by the store's clock. A worker counts by its own, from before it asked.
    #[schema(value_type = schema::Time)]
    pub until: Timestamp,
    /// What is counted, this run included.
    pub counters: Counters,
    /// An effect of an earlier run is open: reach it, and it is cleared up before anything new begins.
    pub reconciling: bool,
    /// An earlier run crashed: run it with nothing else in the process, and say so with `alone` of an extension before it
    /// starts.
    pub suspect: bool,
    /// When the message became claimable.
    #[schema(value_type = schema::Time)]
    pub due_at: Timestamp,
    /// The journal of earlier runs, with its contents.
    pub journal: Vec<Effect>,
}

impl From<&store::Lease> for ClaimedLease {
    fn from(lease: &store::Lease) -> Self {
        Self {
            message: ClaimedMessage::from(&lease.message),
            token: LeaseProof(lease.token),
            until: lease.until,
            counters: lease.counters.into(),
            reconciling: lease.reconciling,
            suspect: lease.suspect,
            due_at: lease.due_at,
            journal: lease.journal.iter().map(|row| Effect::of(row, Show::ALL)).collect(),
        }
    }
}

impl ClaimedLease {
    /// The lease as a store gives it.
    ///
    /// # Errors
    /// `Corrupt` when a word of the journal is not known.
    pub fn into_lease(self) -> Result<store::Lease, StoreError> {
        let token = self.token.0;
        Ok(store::Lease {
            message: self.message.into(),
            token,
            until: self.until,
            counters: self.counters.into(),
            reconciling: self.reconciling,
            suspect: self.suspect,
            due_at: self.due_at,
            journal: self.journal.into_iter().map(|row| row.into_row_under(token)).collect::<Result<_, _>>()?,
        })
    }
}

/// A message as its worker gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClaimedMessage {
    /// Its id.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Whose it is; empty where there is only one.
    #[schema(value_type = schema::TenantName)]
    pub tenant: Tenant,
    /// Which line it waited in.
    #[schema(value_type = schema::Name)]
    pub queue: QueueName,
    /// Which handler it is for.
    #[schema(value_type = schema::Name)]
    pub kind: Kind,
    /// The version of the payload's shape.
    pub version: u32,
    /// Names what is to happen once.
    #[schema(value_type = schema::Key)]
    pub key: IdempotencyKey,
    /// What the handler gets, byte for byte.
    pub payload: Text,
    /// The same in a string, where there is white space around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// 0 is claimed first, 9 last.
    #[schema(value_type = u8, minimum = 0, maximum = 9)]
    pub priority: Priority,
    /// When the store took it.
    #[schema(value_type = schema::Time)]
    pub enqueued_at: Timestamp,
    /// When it could first be claimed.
    #[schema(value_type = schema::Time)]
    pub first_due_at: Timestamp,
    /// After this no attempt and no effect begins.
    #[schema(value_type = Option<schema::Time>)]
    pub deadline: Option<Timestamp>,
    /// After this it is given up rather than retried.
    #[schema(value_type = schema::Time)]
    pub expires_at: Timestamp,
    /// The first message of its flow.
    #[schema(value_type = schema::Id)]
    pub flow: MessageId,
    /// The message it follows from.
    #[schema(value_type = Option<schema::Id>)]
    pub parent: Option<MessageId>,
    /// Carried along: `traceparent` and such.
    pub headers: BTreeMap<String, String>,
}

impl From<&message::Message> for ClaimedMessage {
    fn from(message: &message::Message) -> Self {
        let payload = Text::of(&message.payload);
        let payload_text = (payload.get() != &*message.payload).then(|| message.payload.to_string());
        Self {
            id: message.id,
            tenant: message.tenant.clone(),
            queue: message.queue.clone(),
            kind: message.kind.clone(),
            version: message.version,
            key: message.key.clone(),
            payload,
            payload_text,
            priority: message.priority,
            enqueued_at: message.enqueued_at,
            first_due_at: message.first_due_at,
            deadline: message.deadline,
            expires_at: message.expires_at,
            flow: message.flow,
            parent: message.parent,
            headers: message.headers.clone(),
        }
    }
}

impl From<ClaimedMessage> for message::Message {
    fn from(message: ClaimedMessage) -> Self {
        let ClaimedMessage { id, tenant, queue, kind, version, key, payload, payload_text, priority, .. } = message;
        let ClaimedMessage { enqueued_at, first_due_at, deadline, expires_at, flow, parent, headers, .. } = message;
        let payload = payload_text.map_or_else(|| payload.stored(), Into::into);
        Self {
            id,
            tenant,
            queue,
            kind,
            version,
            key,
            payload,
            priority,
            enqueued_at,
            first_due_at,
            deadline,
            expires_at,
            flow,
            parent,
            headers,
        }
    }
}

/// What is counted of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Claims ever.
    pub claims: u32,
    /// Counted runs of this generation; the running one included.
    pub attempt: u32,
    /// Crashes of this generation while it ran alone.
    pub crashes: u32,
    /// Redrives so far.
    pub generation: u32,
    /// Rises when a redrive lets a rejected effect be sent again.
    pub round: u32,
}

impl From<lifecycle::Counters> for Counters {
    fn from(counters: lifecycle::Counters) -> Self {
        let lifecycle::Counters { claims, attempt, crashes, generation, round } = counters;
        Self { claims, attempt, crashes, generation, round }
    }
}

impl From<Counters> for lifecycle::Counters {
    fn from(counters: Counters) -> Self {
        let Counters { claims, attempt, crashes, generation, round } = counters;
        Self { claims, attempt, crashes, generation, round }
    }
}
