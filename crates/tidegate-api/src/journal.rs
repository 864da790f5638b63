//! Writes to the journal of a running message.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::journal::{
    DEFAULT_QUARANTINE, EffectAnswer, EffectId, EffectPolicy, EffectRow, IntentTimes, MAX_RECONCILE, Reached,
};
use tidegate::store::{self, Journal};
use tidegate::{EffectName, Failure, LeaseToken, MessageId, StoreError, id::MAX_KEY};
use utoipa::ToSchema;

use crate::lease::{Digest, LeaseProof};
use crate::message::{Effect, millis};
use crate::problem::Problem;
use crate::schema;
use crate::text::Text;

/// How long a send may take unless the effect says otherwise.
pub const DEFAULT_SEND_WITHIN: Duration = Duration::from_secs(30);

/// Writes to journals, each with a verdict of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteJournal {
    /// The writes.
    pub writes: Vec<JournalItem>,
}

/// A write to the journal of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JournalItem {
    /// Which message.
    #[schema(value_type = schema::Id)]
    pub id: MessageId,
    /// Proves the lease.
    #[schema(value_type = schema::LeaseToken)]
    pub token: LeaseProof,
    /// Answers that were not written yet; applied first, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Write>,
    /// The write whose row is the verdict.
    pub write: Write,
}

impl From<&Journal> for JournalItem {
    fn from(journal: &Journal) -> Self {
        Self {
            id: journal.id,
            token: LeaseProof(journal.token),
            before: journal.before.iter().map(Write::of).collect(),
            write: Write::of(&journal.write),
        }
    }
}

impl JournalItem {
    /// The writes as a store takes them. `payload` is what stands for a request that is not named.
    ///
    /// # Errors
    /// `Invalid`: what is missing, or not allowed.
    pub fn into_journal(self, payload: Option<[u8; 16]>) -> Result<Journal, StoreError> {
        let before = self.before.into_iter().map(|write| write.into_write(payload)).collect::<Result<_, _>>()?;
        Ok(Journal { id: self.id, token: self.token.0, before, write: self.write.into_write(payload)? })
    }

    /// Whether one of the writes leaves its request to be that of the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        self.write.needs_payload() || self.before.iter().any(Write::needs_payload)
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WriteName {
    /// Before a send.
    Intent,
    /// After a send or a look-up.
    Answer,
    /// The answer to an intent was missing, and so its send never left.
    NotSent,
    /// An effect that is harmless to repeat was done.
    Natural,
}

/// How an unknown answer may be cleared up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyName {
    /// The other side recognises our key for a while: the same key is sent again.
    Keyed,
    /// The other side can be asked whether it happened.
    Lookup,
    /// A write in the store's own database, committed with its confirmation: not over HTTP.
    Transactional,
    /// Harmless to repeat.
    Natural,
    /// Sent at most once; a missing answer waits for a person.
    AtMostOnce,
}

/// What the other side answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerName {
    /// It happened; `value` is what a later step needs of it.
    Confirmed,
    /// The other side said no, finally.
    Rejected,
    /// Certainly nothing happened: connection refused, 429, a 503 that promises so. Said of a send; a look-up that was not
    /// answered is unknown.
    NotDone,
    /// Anything else: a time-out, a reset, a reply that cannot be read.
    Unknown,
    /// A look-up, made when it is believed, did not find it: it never happened.
    NotFound,
}

impl AnswerName {
    /// The word for it on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
            Self::NotDone => "not_done",
            Self::Unknown => "unknown",
            Self::NotFound => "not_found",
        }
    }
}

/// One write to a journal. Which members it has is said by `write`: an intent has those from `policy` to
/// `reconcile_for_ms`, an answer has `seq`, `answer` and what belongs to that, a natural effect its `value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// What is written.
    pub write: WriteName,
    /// Which effect.
    #[schema(value_type = schema::Name)]
    pub effect: EffectName,
    /// Tells repetitions of it apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub item: Option<String>,
    /// How an unknown answer may be cleared up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// How long the other side remembers the key, if the policy is `keyed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// Whether it is looked up when the window is over, if the policy is `keyed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_lookup: Option<bool>,
    /// Digest of the request; that of the payload where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Hex16>)]
    pub request_hash: Option<Digest>,
    /// How long after the last possible send "it did not happen" is believed; two minutes where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_ms: Option<u64>,
    /// After this the sender gives up; 30 s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_within_ms: Option<u64>,
    /// How long an unknown answer is cleared up before it waits for a person; a day where it is left out, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile_for_ms: Option<u64>,
    /// Which row of the effect is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u32>,
    /// What the other side answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerName>,
    /// Confirmed: what a later step needs of it.
    #[serde(default, deserialize_with = "crate::text::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>)]
    pub value: Option<Text>,
    /// The text of the value, in a string; instead of `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub value_text: Option<String>,
    /// Rejected: the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Rejected: what the other side said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Unknown: what was seen instead of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Write {
    fn bare(write: WriteName, effect: &EffectId) -> Self {
        Self {
            write,
            effect: effect.name.clone(),
            item: effect.item.clone(),
            policy: None,
            window_ms: None,
            or_lookup: None,
            request_hash: None,
            quarantine_ms: None,
            send_within_ms: None,
            reconcile_for_ms: None,
            seq: None,
            answer: None,
            value: None,
            value_text: None,
            code: None,
            detail: None,
            why: None,
        }
    }

    /// A write as it is sent.
    #[must_use]
    pub fn of(write: &store::JournalWrite) -> Self {
        match write {
            store::JournalWrite::Intent { reached, times } => Self {
                send_within_ms: Some(millis(times.send_within)),
                reconcile_for_ms: Some(millis(times.reconcile_for)),
                ..Self::reached(WriteName::Intent, reached)
            },
            store::JournalWrite::Answer { effect, seq, answer } => {
                Self { seq: Some(*seq), ..Self::answered(Self::bare(WriteName::Answer, effect), answer) }
            }
            store::JournalWrite::NotSent { effect } => Self::bare(WriteName::NotSent, effect),
            store::JournalWrite::Natural { reached, value } => {
                Self::reached(WriteName::Natural, reached).with_value(value)
            }
        }
    }

    fn reached(write: WriteName, reached: &Reached) -> Self {
        let (policy, window_ms, or_lookup) = policy_form(&reached.policy);
        Self {
            policy: Some(policy),
            window_ms,
            or_lookup,
            request_hash: Some(Digest(reached.request_hash)),
            quarantine_ms: Some(millis(reached.quarantine)),
            ..Self::bare(write, &reached.effect)
        }
    }

    fn answered(self, answer: &EffectAnswer) -> Self {
        match answer {
            EffectAnswer::Confirmed { value } => Self { answer: Some(AnswerName::Confirmed), ..self }.with_value(value),
            EffectAnswer::Rejected { code, detail } => Self {
                answer: Some(AnswerName::Rejected),
                code: Some(code.clone()),
                detail: Some(detail.clone()),
                ..self
            },
            EffectAnswer::NotDone => Self { answer: Some(AnswerName::NotDone), ..self },
            EffectAnswer::Unknown { why } => Self { answer: Some(AnswerName::Unknown), why: Some(why.clone()), ..self },
            EffectAnswer::NotFound => Self { answer: Some(AnswerName::NotFound), ..self },
        }
    }

    fn with_value(self, value: &str) -> Self {
        let (value, value_text) = text_form(value);
        Self { value, value_text, ..self }
    }

    /// Whether its request is left to be that of the payload.
    #[must_use]
    pub fn needs_payload(&self) -> bool {
        match self.write {
            WriteName::Intent | WriteName::Natural => self.request_hash.is_none(),
            WriteName::Answer | WriteName::NotSent => false,
        }
    }

    /// The write as a store takes it. `payload` is what stands for a request that is not named.
    ///
    /// # Errors
    /// `Invalid`: what is missing, or not allowed.
    pub fn into_write(self, payload: Option<[u8; 16]>) -> Result<store::JournalWrite, StoreError> {
        let effect = checked(&self.effect, self.item.as_deref())?;
        Ok(match self.write {
            WriteName::Intent => {
                let policy = self.policy.ok_or_else(|| missing(&effect, "policy"))?;
                let reached = self.as_reached(effect, policy, payload)?;
                store::JournalWrite::Intent { reached, times: times(self.send_within_ms, self.reconcile_for_ms) }
            }
            WriteName::Answer => {
                let seq = self.seq.ok_or_else(|| missing(&effect, "seq"))?;
                let answer = self.answer.ok_or_else(|| missing(&effect, "answer"))?;
                let answer = answer_of(&effect, answer, self.value, self.value_text, self.code, self.detail, self.why)?;
                store::JournalWrite::Answer { effect, seq, answer }
            }
            WriteName::NotSent => store::JournalWrite::NotSent { effect },
            WriteName::Natural => {
                let reached = self.as_reached(effect, self.policy.unwrap_or(PolicyName::Natural), payload)?;
                let value = stored(self.value, self.value_text, &reached.effect)?;
                store::JournalWrite::Natural { reached, value }
            }
        })
    }

    fn as_reached(
        &self,
        effect: EffectId,
        policy: PolicyName,
        payload: Option<[u8; 16]>,
    ) -> Result<Reached, StoreError> {
        let request_hash = self.request_hash.map(|digest| digest.0).or(payload);
        let usual = if policy == PolicyName::Natural { Duration::ZERO } else { DEFAULT_QUARANTINE };
        Ok(Reached {
            policy: policy_of(&effect, policy, self.window_ms, self.or_lookup)?,
            request_hash: request_hash.ok_or_else(|| missing(&effect, "request_hash"))?,
            quarantine: self.quarantine_ms.map_or(usual, Duration::from_millis),
            effect,
        })
    }
}

/// A text as one of the two members that may carry it.
pub(crate) fn text_form(stored: &str) -> (Option<Text>, Option<String>) {
    let text = Text::of(stored);
    if text.get() == stored { (Some(text), None) } else { (None, Some(stored.to_owned())) }
}

/// The text that one of two members carries.
pub(crate) fn text_of(
    value: Option<Text>,
    text: Option<String>,
    what: impl FnOnce() -> String,
) -> Result<Arc<str>, StoreError> {
    match (value, text) {
        (Some(value), None) => Ok(value.stored()),
        (None, Some(text)) => match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            Ok(_) => Ok(text.into()),
            Err(error) => Err(StoreError::invalid(format!("{} is no JSON: {error}", what()))),
        },
        (None, None) => Err(StoreError::invalid(format!("{} is missing", what()))),
        (Some(_), Some(_)) => Err(StoreError::invalid(format!("{} is there twice, as a value and as a text", what()))),
    }
}

fn stored(value: Option<Text>, text: Option<String>, effect: &EffectId) -> Result<Arc<str>, StoreError> {
    text_of(value, text, || format!("the value of effect {effect}"))
}

pub(crate) fn missing(effect: &EffectId, member: &str) -> StoreError {
    StoreError::invalid(format!("the member {member:?} is missing for effect {effect}"))
        .hint("the document at /openapi.json says which members belong together")
}

/// The name of an effect, and an item that is no longer than a key may be.
pub(crate) fn checked(name: &EffectName, item: Option<&str>) -> Result<EffectId, StoreError> {
    match item.map(str::len).filter(|size| *size > MAX_KEY) {
        None => Ok(EffectId { name: name.clone(), item: item.map(str::to_owned) }),
        Some(size) => Err(StoreError::invalid(format!("the item of effect {name} has {size} bytes, over {MAX_KEY}"))
            .hint("name the item by a number or an id; hash anything longer")),
    }
}

pub(crate) fn policy_of(
    effect: &EffectId,
    policy: PolicyName,
    window_ms: Option<u64>,
    or_lookup: Option<bool>,
) -> Result<EffectPolicy, StoreError> {
    if policy != PolicyName::Keyed && (window_ms.is_some() || or_lookup.is_some()) {
        let what = format!("effect {effect} has a window or a look-up behind it, and its policy is not keyed");
        return Err(StoreError::invalid(what).hint("send window_ms and or_lookup with the policy keyed alone"));
    }
    Ok(match policy {
        PolicyName::Keyed => EffectPolicy::Keyed {
            window: Duration::from_millis(window_ms.ok_or_else(|| missing(effect, "window_ms"))?),
            or_lookup: or_lookup.unwrap_or_default(),
        },
        PolicyName::Lookup => EffectPolicy::Lookup,
        PolicyName::Transactional => EffectPolicy::Transactional,
        PolicyName::Natural => EffectPolicy::Natural,
        PolicyName::AtMostOnce => EffectPolicy::AtMostOnce,
    })
}

fn policy_form(policy: &EffectPolicy) -> (PolicyName, Option<u64>, Option<bool>) {
    match policy {
        EffectPolicy::Keyed { window, or_lookup } => (PolicyName::Keyed, Some(millis(*window)), Some(*or_lookup)),
        EffectPolicy::Lookup => (PolicyName::Lookup, None, None),
        EffectPolicy::Transactional => (PolicyName::Transactional, None, None),
        EffectPolicy::Natural => (PolicyName::Natural, None, None),
        EffectPolicy::AtMostOnce => (PolicyName::AtMostOnce, None, None),
    }
}

pub(crate) fn times(send_within_ms: Option<u64>, reconcile_for_ms: Option<u64>) -> IntentTimes {
    IntentTimes {
        send_within: send_within_ms.map_or(DEFAULT_SEND_WITHIN, Duration::from_millis),
        reconcile_for: reconcile_for_ms.map_or(MAX_RECONCILE, Duration::from_millis),
    }
}

/// The answer that these members make.
pub(crate) fn answer_of(
    effect: &EffectId,
    answer: AnswerName,
    value: Option<Text>,
    value_text: Option<String>,
    code: Option<String>,
    detail: Option<String>,
    why: Option<String>,
) -> Result<EffectAnswer, StoreError> {
    Ok(match answer {
        AnswerName::Confirmed => EffectAnswer::Confirmed { value: stored(value, value_text, effect)? },
        AnswerName::Rejected => {
            let code = code.ok_or_else(|| missing(effect, "code"))?;
            // Cut as every failure is: what the other side says is nobody's to bound otherwise.
            let Failure { code, detail } = Failure::new(code, detail.unwrap_or_default());
            EffectAnswer::Rejected { code, detail }
        }
        AnswerName::NotDone => EffectAnswer::NotDone,
        AnswerName::Unknown => EffectAnswer::Unknown { why: Failure::new("unknown", why.unwrap_or_default()).detail },
        AnswerName::NotFound => EffectAnswer::NotFound,
    })
}

/// What became of one write: the row, or `problem` where it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalResult {
    /// 200, or the status of the problem.
    pub status: u16,
    /// The row as it stands now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl From<&EffectRow> for JournalResult {
    fn from(row: &EffectRow) -> Self {
        Self { status: 200, effect: Some(Effect::of(row, crate::Show::ALL)), problem: None }
    }
}

impl From<Problem> for JournalResult {
    fn from(problem: Problem) -> Self {
        Self { status: problem.status, effect: None, problem: Some(problem) }
    }
}

impl JournalResult {
    /// The verdict of a store on a write under this lease.
    ///
    /// # Errors
    /// The refusal; `Corrupt` when it is neither a refusal nor a row.
    pub fn into_verdict(self, token: LeaseToken) -> Result<EffectRow, StoreError> {
        match (self.problem, self.effect) {
            (Some(problem), _) => Err(problem.into_store_error()),
            (None, Some(effect)) => effect.into_row_under(token),
            (None, None) => Err(StoreError::corrupt("the server's answer", "a write to a journal has no row")),
        }
    }
}

/// What became of the writes, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalResults {
    /// One for each.
    pub results: Vec<JournalResult>,
}

#[cfg(test)]
mod tests {
    use tidegate::Nonce;

    use super::*;

    fn effect() -> EffectId {
        EffectId { name: EffectName::new("capture").unwrap(), item: Some("line-1".to_owned()) }
    }

    fn reached(policy: EffectPolicy) -> Reached {
        Reached { effect: effect(), policy, request_hash: [7; 16], quarantine: Duration::from_secs(9) }
    }

    fn writes() -> Vec<store::JournalWrite> {
        let times = IntentTimes { send_within: Duration::from_secs(3), reconcile_for: Duration::from_secs(60) };
        let policies = [
            EffectPolicy::Keyed { window: Duration::from_secs(60), or_lookup: true },
            EffectPolicy::Lookup,
            EffectPolicy::Transactional,
            EffectPolicy::AtMostOnce,
        ];
        let answers = [
            EffectAnswer::Confirmed { value: "null".into() },
            EffectAnswer::Confirmed { value: " {\"a\": 1.50} ".into() },
            EffectAnswer::Rejected { code: "declined".into(), detail: "no".into() },
            EffectAnswer::NotDone,
            EffectAnswer::Unknown { why: "reset".into() },
            EffectAnswer::NotFound,
        ];
        let intents = policies.map(|policy| store::JournalWrite::Intent { reached: reached(policy), times });
        let answers = answers.map(|answer| store::JournalWrite::Answer { effect: effect(), seq: 2, answer });
        let others = [
            store::JournalWrite::NotSent { effect: effect() },
            store::JournalWrite::Natural { reached: reached(EffectPolicy::Natural), value: "[1]".into() },
        ];
        intents.into_iter().chain(answers).chain(others).collect()
    }

    #[test]
    fn every_write_of_the_contract_is_read_back_as_it_was() {
        let token = LeaseToken { claims: 2, nonce: Nonce::from_bytes([3; 16]) };
        for write in writes() {
            let journal = Journal { id: MessageId::from_i64(7), token, before: writes(), write: write.clone() };
            let sent = serde_json::to_string(&JournalItem::from(&journal)).unwrap();
            let read: JournalItem = serde_json::from_str(&sent).unwrap();
            let read = read.into_journal(None).unwrap();
            assert_eq!((read.id, read.token, read.before, read.write), (journal.id, token, writes(), write), "{sent}");
        }
    }

    #[test]
    fn what_a_write_lacks_is_named() {
        for (json, says) in [
            (r#"{"write":"intent","effect":"capture"}"#, "\"policy\" is missing"),
            (r#"{"write":"intent","effect":"capture","policy":"keyed"}"#, "\"window_ms\" is missing"),
            (r#"{"write":"intent","effect":"capture","policy":"lookup","window_ms":1}"#, "policy is not keyed"),
            (r#"{"write":"intent","effect":"capture","policy":"lookup"}"#, "\"request_hash\" is missing"),
            (r#"{"write":"answer","effect":"capture","answer":"not_done"}"#, "\"seq\" is missing"),
            (r#"{"write":"answer","effect":"capture","seq":0,"answer":"confirmed"}"#, "capture is missing"),
            (r#"{"write":"answer","effect":"capture","seq":0,"answer":"confirmed","value_text":"{"}"#, "is no JSON"),
            (r#"{"write":"natural","effect":"capture","value":1,"value_text":"1"}"#, "is missing"),
        ] {
            let write: Write = serde_json::from_str(json).unwrap();
            let error = write.into_write(None).unwrap_err();
            assert!(error.to_string().contains(says), "{json}: {error}");
        }
        assert!(serde_json::from_str::<Write>(r#"{"write":"not_sent","effect":"capture","windo_ms":1}"#).is_err());
    }
}
