//! An effect of a running message, as a worker elsewhere makes it: it says which one it reached, is told what to do, and says
//! what the other side answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::journal::{DEFAULT_QUARANTINE, EffectAnswer, EffectId, EffectPolicy, EffectRow, IntentTimes, Reached};
use tidegate::lifecycle::ParkReason;
use tidegate::{EffectKey, EffectName, Failure, StoreError, Timestamp, canonical::canonicalize, id::digest16};
use utoipa::ToSchema;

use crate::enqueue::is_false;
use crate::journal::{AnswerName, PolicyName, Write, answer_of, checked, missing, policy_of, times};
use crate::lease::{Digest, LeaseProof};
use crate::message::{Effect, Show, millis};
use crate::schema;
use crate::settle::{OutcomeName, ParkName};
use crate::text::Text;

/// Says that the handler of a message reached an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Proves the lease.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// Which effect: the same name over all runs and versions of the code, used once in a run.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Tells repetitions of it inside a handler apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub item: Option<String>,
    /// How an unknown answer may be cleared up.
    pub policy: PolicyName,
    /// How long the other side remembers the key, if the policy is `keyed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// Whether it can be looked up when the window is over, if the policy is `keyed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_lookup: Option<bool>,
    /// What is asked of the other side, if it is more or less than the payload of the message. Another request under an open
    /// effect is another effect, and waits for a person.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub request: Option<Text>,
    /// A digest of the request, instead of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Hex16>)]
    pub request_hash: Option<Digest>,
    /// How long the call may take: after it no request leaves any more, and the answer is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, default = 30_000)]
    pub send_within_ms: Option<u64>,
    /// How long after the last possible send "it did not happen" is believed, of a look-up or a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = 120_000)]
    pub quarantine_ms: Option<u64>,
    /// How long a missing answer is cleared up before it waits for a person; a day at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = 86_400_000)]
    pub reconcile_for_ms: Option<u64>,
    /// Answers that were not written yet: they are written along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Write>,
    /// An earlier request like this one, in this run, got no answer, and so nothing was sent. Where the run ends before it is
    /// told to send, its settlement says so: `not_sent` in its journal.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unsent: bool,
}

impl Reach {
    /// The effect as the handler reached it. `payload` is the digest of the message's payload.
    ///
    /// # Errors
    /// `Invalid`: what is missing, or not allowed.
    pub fn reached(&self, payload: [u8; 16]) -> Result<Reached, StoreError> {
        let effect = checked(&self.effect, self.item.as_deref())?;
        if self.policy == PolicyName::Transactional {
            let what = format!("effect {effect} is transactional, and the store's database is not here");
            return Err(StoreError::invalid(what).hint("choose keyed, lookup, at_most_once or natural"));
        }
        let usual = if self.policy == PolicyName::Natural { Duration::ZERO } else { DEFAULT_QUARANTINE };
        Ok(Reached {
            policy: policy_of(&effect, self.policy, self.window_ms, self.or_lookup)?,
            request_hash: request_hash(&effect, self.request.as_ref(), self.request_hash, payload)?,
            quarantine: self.quarantine_ms.map_or(usual, Duration::from_millis),
            effect,
        })
    }

    /// How long it may be sent and cleared up.
    #[must_use]
    pub fn times(&self) -> IntentTimes {
        times(self.send_within_ms, self.reconcile_for_ms)
    }
}

fn request_hash(
    effect: &EffectId,
    request: Option<&Text>,
    hash: Option<Digest>,
    payload: [u8; 16],
) -> Result<[u8; 16], StoreError> {
    match (request, hash) {
        (None, None) => Ok(payload),
        (None, Some(hash)) => Ok(hash.0),
        // In one form, so that the order of members and the white space of a client's JSON make no other request of it.
        (Some(request), None) => match canonicalize(request.get()) {
            Ok(canonical) => Ok(digest16(&[canonical.as_bytes()])),
            Err(error) => Err(StoreError::invalid(format!("the request of effect {effect} is refused: {error}"))),
        },
        (Some(_), Some(_)) => {
            let what = format!("effect {effect} has both a request and a request_hash");
            Err(StoreError::invalid(what).hint("send one of them"))
        }
    }
}

/// Says what the other side answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerEffect {
    /// Proves the lease.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// Which effect.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Tells repetitions of it inside a handler apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub item: Option<String>,
    /// Which of its rows, as the instruction said. An effect that is harmless to repeat has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u32>,
    /// Said of an effect that is harmless to repeat: `natural`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Of an effect that is harmless to repeat: what was asked, as it was reached.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub request: Option<Text>,
    /// A digest of the request, instead of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Hex16>)]
    pub request_hash: Option<Digest>,
    /// What the other side answered. In doubt it is unknown.
    pub answer: AnswerName,
    /// Confirmed: what a later step needs of it.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub value: Option<Text>,
    /// Rejected: the code of the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Rejected: what it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Not done, or unknown: what was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Not done: when the other side asked to be called again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
}

impl AnswerEffect {
    /// Which effect.
    ///
    /// # Errors
    /// `Invalid` when the item is too long.
    pub fn effect_id(&self) -> Result<EffectId, StoreError> {
        checked(&self.effect, self.item.as_deref())
    }

    /// Which of its rows is answered; none of an effect that is harmless to repeat.
    ///
    /// # Errors
    /// `Invalid` when it is not said.
    pub fn row(&self) -> Result<Option<u32>, StoreError> {
        match (self.policy, self.seq) {
            (Some(PolicyName::Natural), None) => Ok(None),
            (_, Some(seq)) => Ok(Some(seq)),
            (_, None) => Err(missing(&self.effect_id()?, "seq")),
        }
    }

    /// An effect that is harmless to repeat, as it was reached.
    ///
    /// # Errors
    /// `Invalid`: what is not allowed.
    pub fn natural(&self, payload: [u8; 16]) -> Result<Reached, StoreError> {
        let effect = self.effect_id()?;
        Ok(Reached {
            policy: EffectPolicy::Natural,
            request_hash: request_hash(&effect, self.request.as_ref(), self.request_hash, payload)?,
            quarantine: Duration::ZERO,
            effect,
        })
    }

    /// The answer.
    ///
    /// # Errors
    /// `Invalid`: what is missing.
    pub fn into_answer(self) -> Result<EffectAnswer, StoreError> {
        let effect = self.effect_id()?;
        answer_of(&effect, self.answer, self.value, None, self.code, self.detail, self.why)
    }
}

/// What a worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Do {
    /// Send to the other side under `key`, once, and say what it answered.
    Send,
    /// Ask the other side whether it happened under `key`, and say what it answered.
    LookUp,
    /// It happened: `value` is what the other side returned. Go on.
    Value,
    /// The other side said no, finally. Go on with that.
    Rejected,
    /// Reach the effect again: it never happened.
    Reach,
    /// End the run with the settlement in `settle`, and reach nothing more.
    Stop,
}

impl Do {
    /// The word for it on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::LookUp => "look_up",
            Self::Value => "value",
            Self::Rejected => "rejected",
            Self::Reach => "reach",
            Self::Stop => "stop",
        }
    }
}

/// What a worker does next at an effect. Which members it has is said by `do`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instruction {
    /// What to do.
    #[serde(rename = "do")]
    pub what: Do,
    /// What the other side knows the effect by: the same for every send of it, over all runs and processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which row of the effect is to be answered; none of one that is harmless to repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u32>,
    /// No byte leaves later than this after the worker *asked*, by its own clock, nor after its lease lapsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
    /// The same by the store's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Time>)]
    pub until: Option<Timestamp>,
    /// The row as it stands, without its contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What the other side returned.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub value: Option<Text>,
    /// Rejected: the code of the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Rejected: what it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why the run ends, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How to settle: the members to put beside id and token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<SettleWith>,
}

impl Instruction {
    fn bare(what: Do) -> Self {
        Self {
            what,
            key: None,
            seq: None,
            within_ms: None,
            until: None,
            effect: None,
            value: None,
            code: None,
            detail: None,
            why: None,
            settle: None,
        }
    }

    /// The intent is durable: send.
    #[must_use]
    pub fn send(row: &EffectRow, within: Duration) -> Self {
        Self { until: Some(row.last_possible_send), ..Self::ask(Do::Send, row, within) }
    }

    /// It is harmless to repeat: send.
    #[must_use]
    pub fn send_natural(key: &EffectKey, within: Duration) -> Self {
        Self { key: Some(key.as_str().to_owned()), within_ms: Some(millis(within)), ..Self::bare(Do::Send) }
    }

    /// It may have happened: look it up.
    #[must_use]
    pub fn look_up(row: &EffectRow, within: Duration) -> Self {
        Self::ask(Do::LookUp, row, within)
    }

    fn ask(what: Do, row: &EffectRow, within: Duration) -> Self {
        Self {
            key: Some(row.key.as_str().to_owned()),
            seq: Some(row.seq),
            within_ms: Some(millis(within)),
            effect: Some(Effect::of(row, Show::default())),
            ..Self::bare(what)
        }
    }

    /// It happened.
    #[must_use]
    pub fn value(value: &str) -> Self {
        Self { value: Some(Text::of(value)), ..Self::bare(Do::Value) }
    }

    /// The other side said no.
    #[must_use]
    pub fn rejected(code: &str, detail: &str) -> Self {
        Self { code: Some(code.to_owned()), detail: Some(detail.to_owned()), ..Self::bare(Do::Rejected) }
    }

    /// It never happened.
    #[must_use]
    pub fn reach_again() -> Self {
        Self::bare(Do::Reach)
    }

    /// The run ends here.
    #[must_use]
    pub fn stop(settle: SettleWith) -> Self {
        Self { why: Some(settle.detail.clone()), settle: Some(settle), ..Self::bare(Do::Stop) }
    }
}

/// How a run is to be settled that an effect ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SettleWith {
    /// How the run ended.
    pub outcome: OutcomeName,
    /// Why only a person can decide, if the outcome is `park`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ParkName>,
    /// Short and stable.
    pub code: String,
    /// For people.
    pub detail: String,
    /// The earliest next run, if the other side said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
}

impl SettleWith {
    fn with(outcome: OutcomeName, failure: Failure) -> Self {
        Self { outcome, reason: None, code: failure.code, detail: failure.detail, after_ms: None }
    }

    /// Tried again, and counted.
    #[must_use]
    pub fn retryable(failure: Failure) -> Self {
        Self::with(OutcomeName::Retryable, failure)
    }

    /// Nothing happened: tried again, and not counted.
    #[must_use]
    pub fn not_done(failure: Failure, after: Option<Duration>) -> Self {
        Self { after_ms: after.map(millis), ..Self::with(OutcomeName::NotDone, failure) }
    }

    /// It may have happened: its open rows decide.
    #[must_use]
    pub fn unknown(failure: Failure) -> Self {
        Self::with(OutcomeName::Unknown, failure)
    }

    /// A person decides.
    #[must_use]
    pub fn park(reason: ParkReason, failure: Failure) -> Self {
        Self { reason: Some(reason.into()), ..Self::with(OutcomeName::Park, failure) }
    }

    /// It never happened, and no attempt is left to make it.
    #[must_use]
    pub fn exhausted(failure: Failure) -> Self {
        Self::with(OutcomeName::Exhausted, failure)
    }

    /// What was to be stored cannot be, and doing it again is harmless.
    #[must_use]
    pub fn refused(failure: Failure) -> Self {
        Self::with(OutcomeName::Refused, failure)
    }
}
