//! `POST /v1/messages/{id}/effects`: the handler of a message, run elsewhere, reached an effect; it is told what to do.
//!
//! [`effect::reach`] in the core says what the journal allows, as it does for a handler in the same process. This file does
//! what the library does with that: it writes the intent before anything may leave, and says how the run ends where it
//! ends. A worker only sends, looks up, answers and settles.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::journal::{
    self as effect, Decision, EffectKey, EffectPolicy, EffectRow, EffectState, JournalFacts, Reached,
};
use tidegate::lifecycle::State as MessageState;
use tidegate::store::{ExplainFacts, Journal, JournalWrite, not_sent_here};
use tidegate::{Failure, LeaseToken, MessageId, StoreError, StoreErrorKind, Timestamp, id::digest16};
use tidegate_api::{Instruction, ProblemType, Reach, SettleWith, schema};
use tracing::warn;

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Holding, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;

/// So often a decision is made anew because the journal moved on between the look and the write.
const TRIES: u32 = 3;

/// Reach an effect
///
/// Says which effect the handler reached, and is told what to do: send under a key, look it up, go on with the value that is
/// known or the refusal, or end the run. Where it says `send`, the intent is on disk. A request without an answer is repeated
/// with `unsent`, because nothing was sent; without it, the effect counts as sent. Repeated after its answer was told, it
/// gives the value.
#[utoipa::path(
    post,
    path = "/v1/messages/{id}/effects",
    tag = "workers",
    params(("id" = schema::Id, Path, description = "Of which message")),
    request_body = Reach,
    responses((status = 200, description = "What to do", body = Instruction), Common, Bodied, Named, Holding),
)]
pub(crate) async fn reach(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    JsonBody(reach): JsonBody<Reach>,
) -> Result<Json<Instruction>, Problem> {
    let mut tries = 0;
    loop {
        let run = match Run::of(&serving, &caller, id, reach.token.0).await {
            Err(problem) if problem.kind() == ProblemType::LeaseLost => {
                leave_evidence(&serving, id, reach).await;
                return Err(problem);
            }
            run => run?,
        };
        let reached = reach.reached(run.payload())?;
        let mut call =
            Call { serving: &serving, rows: run.facts.view.journal.clone(), run, reached, before: Vec::new() };
        call.note(&reach)?;
        match call.carry_out(&reach).await {
            Ok(instruction) => {
                let (message, effect) = (&call.run.facts.view.message, call.reached.effect.name.as_str());
                tidegate::trace::reached(message, effect, instruction.what.as_str());
                return Ok(Json(instruction));
            }
            // The journal moved on since it was read: another request of this run came between.
            Err(error) if error.kind() == StoreErrorKind::Conflict => {
                tries += 1;
                if tries == TRIES {
                    let failure = Failure::new("journal", error.to_string());
                    return Ok(Json(Instruction::stop(SettleWith::retryable(failure))));
                }
            }
            Err(error) => {
                // Also of a lease that lapsed and that nobody took over: what came along was refused with the intent.
                if error.kind() == StoreErrorKind::LeaseLost {
                    leave_evidence(&serving, id, reach).await;
                }
                return Err(error.into());
            }
        }
    }
}

/// What came back from what was sent earlier is written without the rest of the request. Where somebody else has the message
/// it is applied to nothing, and what was confirmed is kept for whoever resolves.
async fn leave_evidence(serving: &Serving, id: MessageId, reach: Reach) {
    let token = reach.token.0;
    let writes = reach.before.into_iter().filter_map(|write| write.into_write(None).ok());
    let mut before: Vec<JournalWrite> =
        writes.filter(|write| matches!(write, JournalWrite::Answer { .. } | JournalWrite::Natural { .. })).collect();
    let Some(write) = before.pop() else { return };
    match serving.tide.store().journal(vec![Journal { id, token, before, write }]).await {
        // Refused where somebody else has the message: then it is kept as evidence.
        Ok(_verdicts) => {}
        Err(error) => {
            warn!(message.id = %id, error = %error, "what was confirmed under a lost lease could not be kept")
        }
    }
}

/// A run of a message, as the store has it.
struct Run {
    facts: ExplainFacts,
    token: LeaseToken,
}

impl Run {
    /// The run that this token is of.
    ///
    /// What only reads is answered to whoever names the claim that is current; every write is asked for the whole token.
    async fn of(serving: &Serving, caller: &Caller, id: MessageId, token: LeaseToken) -> Result<Self, Problem> {
        let facts = serving.tide.store().explain(id).await?.filter(|facts| {
            let message = &facts.view.message;
            caller.sees(Action::Work, &message.tenant, &message.queue)
        });
        let facts = facts.ok_or_else(|| Problem::no_message(id))?;
        if facts.view.state != MessageState::Leased || facts.view.counters.claims != token.claims {
            return Err(StoreError::lease_lost(id).into());
        }
        Ok(Self { facts, token })
    }

    fn payload(&self) -> [u8; 16] {
        digest16(&[self.facts.view.message.payload.as_bytes()])
    }

    fn now(&self) -> Timestamp {
        self.facts.now
    }
}

/// One effect that is reached.
struct Call<'a> {
    serving: &'a Serving,
    run: Run,
    reached: Reached,
    /// The journal with what is to be written along.
    rows: Vec<EffectRow>,
    before: Vec<JournalWrite>,
}

impl Call<'_> {
    /// Takes what the worker says beside the effect into the picture of the journal. It is written with the next write.
    fn note(&mut self, reach: &Reach) -> Result<(), Problem> {
        let payload = Some(self.run.payload());
        for write in reach.before.clone() {
            let write = write.into_write(payload)?;
            // Of another effect only the settlement may say so: this request may be late, and that effect on its way.
            if let JournalWrite::NotSent { effect } = &write
                && *effect != self.reached.effect
            {
                return Err(not_sent_here(effect).into());
            }
            self.note_write(write)?;
        }
        if reach.unsent {
            self.note_write(JournalWrite::NotSent { effect: self.reached.effect.clone() })?;
        }
        Ok(())
    }

    fn note_write(&mut self, write: JournalWrite) -> Result<(), StoreError> {
        let (now, token) = (self.run.now(), self.run.token);
        let row = match &write {
            JournalWrite::Intent { reached, .. } => {
                let what = format!("an intent of effect {} is written by reaching it", reached.effect);
                return Err(StoreError::invalid(what).hint("reach it with a request of its own"));
            }
            JournalWrite::Answer { effect, seq, answer } => {
                let row = self.rows.iter().find(|row| row.effect == *effect && row.seq == *seq).ok_or_else(|| {
                    let id = self.run.facts.view.message.id;
                    StoreError::conflict(format!("no row {seq} of effect {effect} in the journal of {id}"))
                })?;
                EffectRow { state: effect::answered(&effect::seen_under(row, token), answer, now)?, ..row.clone() }
            }
            JournalWrite::NotSent { effect } => match effect::not_sent(&self.rows, effect, token, now) {
                Some(row) => row,
                None => return Ok(()),
            },
            JournalWrite::Natural { reached, value } => {
                let (message, round) = (&self.run.facts.view.message, self.run.facts.view.counters.round);
                effect::confirmed_at_once(message, &self.rows, reached, value.clone(), token, round, now)?
            }
        };
        self.see(row);
        self.before.push(write);
        Ok(())
    }

    fn see(&mut self, row: EffectRow) {
        self.rows.retain(|old| old.effect != row.effect || old.seq != row.seq);
        self.rows.push(row);
    }

    fn open_row(&self) -> Option<&EffectRow> {
        effect::latest(&self.rows, &self.reached.effect).filter(|row| row.state.is_open())
    }

    async fn carry_out(&mut self, reach: &Reach) -> Result<Instruction, StoreError> {
        loop {
            let round = self.run.facts.view.counters.round;
            let instruction = match effect::reach(&self.rows, &self.reached, round, self.run.now()) {
                Decision::Replay(value) => Instruction::value(&value),
                Decision::ReplayRejected { code, detail } => Instruction::rejected(&code, &detail),
                Decision::Park(reason) => {
                    let detail = format!("effect {} cannot be decided by code ({reason})", self.reached.effect);
                    Instruction::stop(SettleWith::park(reason, Failure::new(reason.as_str(), detail)))
                }
                Decision::LookUp { not_before } => self.look_up(reach, not_before),
                Decision::Send => match self.forbidden() {
                    Some(stop) => stop,
                    None if self.reached.policy == EffectPolicy::Natural => {
                        let key = EffectKey::of(&self.run.facts.view.message, &self.reached.effect, round);
                        Instruction::send_natural(&key, reach.times().send_within)
                    }
                    None => match self.intend(reach).await? {
                        Some(instruction) => return Ok(instruction),
                        // The store came out of a backup and knows that it may have been sent: go round again.
                        None => continue,
                    },
                },
            };
            self.write_before().await?;
            return Ok(instruction);
        }
    }

    fn look_up(&self, reach: &Reach, not_before: Timestamp) -> Instruction {
        match self.open_row() {
            Some(row) if self.run.now() >= not_before => Instruction::look_up(row, reach.times().send_within),
            Some(_) | None => {
                let detail = format!("effect {} is looked up from {not_before} on", self.reached.effect);
                Instruction::stop(SettleWith::unknown(Failure::new("quarantine", detail)))
            }
        }
    }

    /// What forbids a new effect: a wish to cancel, a deadline, a window that is too short. What is open already may always be
    /// cleared up.
    fn forbidden(&self) -> Option<Instruction> {
        if self.open_row().is_some() {
            return None;
        }
        let (view, now) = (&self.run.facts.view, self.run.now());
        let stop =
            |code: &str, detail: String| Some(Instruction::stop(SettleWith::retryable(Failure::new(code, detail))));
        // Once an effect is confirmed the message cannot be called off any more: the rest of its handler must follow.
        if view.cancel_requested && !JournalFacts::of(&self.rows, now).confirmed {
            return stop("cancel_requested", "called off before the effect began".to_owned());
        }
        if effect::too_late(&view.message, &self.rows, now) {
            return stop("deadline", "no effect begins after the deadline".to_owned());
        }
        let left = view.message.expires_at.since(now);
        match self.reached.policy {
            EffectPolicy::Keyed { window, or_lookup: false } if window < left => {
                let detail = format!(
                    "effect {}: the remote forgets a key after {window:?}, and the message may be retried for {left:?}; \
                     hint: say or_lookup and look it up, or give the message a shorter max_age",
                    self.reached.effect
                );
                stop("window_too_short", detail)
            }
            EffectPolicy::Keyed { .. }
            | EffectPolicy::Lookup
            | EffectPolicy::Transactional
            | EffectPolicy::Natural
            | EffectPolicy::AtMostOnce => None,
        }
    }

    /// Writes the intent. `None`: the store answered with a row that is open already, and which has to be cleared up.
    async fn intend(&mut self, reach: &Reach) -> Result<Option<Instruction>, StoreError> {
        let times = reach.times();
        let write = JournalWrite::Intent { reached: self.reached.clone(), times };
        let before = std::mem::take(&mut self.before);
        let row = self.write(before, write).await?;
        let is_intent = row.state == EffectState::Intent;
        let instruction = is_intent.then(|| Instruction::send(&row, times.send_within));
        self.see(row);
        Ok(instruction)
    }

    /// Writes what the worker said beside an effect that is not sent now.
    async fn write_before(&mut self) -> Result<(), StoreError> {
        let mut before = std::mem::take(&mut self.before);
        // The request may be late, and a later one have been told to send: alone, this would say of that send that it was
        // never made. With an intent behind it the effect stays open. Where the run ends, its settlement says it, under a
        // token that ends with it.
        before.retain(|write| !matches!(write, JournalWrite::NotSent { .. }));
        let Some(last) = before.pop() else { return Ok(()) };
        self.write(before, last).await.map(drop)
    }

    async fn write(&self, before: Vec<JournalWrite>, write: JournalWrite) -> Result<EffectRow, StoreError> {
        let call = Journal { id: self.run.facts.view.message.id, token: self.run.token, before, write };
        let mut verdicts = self.serving.tide.store().journal(vec![call]).await?;
        verdicts.pop().unwrap_or_else(|| Err(StoreError::unavailable("the store gave no verdict")))
    }
}
