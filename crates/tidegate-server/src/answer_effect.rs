//! `POST /v1/messages/{id}/effects/answer`: what the other side answered to a send or a look-up; the worker is told how to go
//! on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use tidegate::journal::{EffectAnswer, EffectId, EffectRow};
use tidegate::lifecycle::ParkReason;
use tidegate::store::{Journal, JournalWrite};
use tidegate::{Failure, LeaseToken, MessageId, StoreError, StoreErrorKind};
use tidegate_api::{AnswerEffect, Instruction, SettleWith, schema};

use crate::body::JsonBody;
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Holding, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;
use crate::workers::{Known, Of};

/// Answer an effect
///
/// Says what the other side answered, and is told how to go on. The same answer again changes nothing. A `confirmed` under a
/// lease that is lost is kept as evidence, and refused.
#[utoipa::path(
    post,
    path = "/v1/messages/{id}/effects/answer",
    tag = "workers",
    params(("id" = schema::Id, Path, description = "Of which message")),
    request_body = AnswerEffect,
    responses((status = 200, description = "How to go on", body = Instruction), Common, Bodied, Named, Holding),
)]
pub(crate) async fn answer_effect(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(id): UrlPath<MessageId>,
    JsonBody(asked): JsonBody<AnswerEffect>,
) -> Result<Json<Instruction>, Problem> {
    let token = asked.token.0;
    let known = serving.known(&caller, &[Of::Lease(id, token)]).await?.pop();
    let known = known.unwrap_or_else(|| Err(Problem::no_message(id)))?;
    let told = Told { serving: &serving, id, token, known: &known };
    let (effect, word) = (asked.effect.clone(), asked.answer.as_str());
    let instruction = match asked.row()? {
        None => told.natural(asked).await?,
        Some(seq) => told.answer(asked, seq).await?,
    };
    tidegate::trace::answered_effect(&known.message, effect.as_str(), word, instruction.what.as_str());
    Ok(Json(instruction))
}

/// An answer, and of whom it is told.
struct Told<'a> {
    serving: &'a Serving,
    id: MessageId,
    token: LeaseToken,
    known: &'a Known,
}

impl Told<'_> {
    async fn answer(&self, asked: AnswerEffect, seq: u32) -> Result<Instruction, Problem> {
        let after = asked.after_ms.map(Duration::from_millis);
        let (effect, seen) = (asked.effect_id()?, asked.why.clone().unwrap_or_default());
        let answer = asked.into_answer()?;
        let write = JournalWrite::Answer { effect: effect.clone(), seq, answer: answer.clone() };
        let row = match self.write(write).await {
            Ok(row) => row,
            // It happened, and nobody but a person can supply another value.
            Err(error) if is_too_large(&error, &answer) => {
                let reason = ParkReason::JournalDecode;
                let failure = Failure::new(reason.as_str(), confirmed_but(&effect, &error));
                return Ok(Instruction::stop(SettleWith::park(reason, failure)));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(match answer {
            EffectAnswer::Confirmed { value } => Instruction::value(&value),
            EffectAnswer::Rejected { code, detail } => Instruction::rejected(&code, &detail),
            EffectAnswer::NotDone => Instruction::stop(SettleWith::not_done(Failure::new("not_done", seen), after)),
            EffectAnswer::Unknown { why } => {
                // What an earlier run sent, this one only looked up.
                let code = if row.token.claims == self.token.claims { "unknown" } else { "lookup" };
                Instruction::stop(SettleWith::unknown(Failure::new(code, why)))
            }
            EffectAnswer::NotFound => match self.none_left(&row).await? {
                true => {
                    let detail = format!("effect {effect} never happened, and no attempt is left to make it");
                    Instruction::stop(SettleWith::exhausted(Failure::new("exhausted", detail)))
                }
                false => Instruction::reach_again(),
            },
        })
    }

    /// A run that reconciles was not counted; it may send again only if an attempt is left for that.
    async fn none_left(&self, looked_up: &EffectRow) -> Result<bool, StoreError> {
        // A server that did not hand the message out sees only the row, which this answer may have closed already.
        let was_handed_out_open = self.known.is_of(self.token) && self.known.reconciling;
        if looked_up.token.claims == self.token.claims && !was_handed_out_open {
            return Ok(false);
        }
        let Some(facts) = self.serving.tide.store().explain(self.id).await? else { return Ok(false) };
        Ok(facts.view.counters.attempt >= facts.policy.unwrap_or_default().max_attempts)
    }

    /// Nothing is written of an effect that is harmless to repeat but that it was done.
    async fn natural(&self, asked: AnswerEffect) -> Result<Instruction, Problem> {
        let after = asked.after_ms.map(Duration::from_millis);
        let (reached, seen) = (asked.natural(self.known.payload)?, asked.why.clone().unwrap_or_default());
        let answer = asked.into_answer()?;
        Ok(match &answer {
            EffectAnswer::Confirmed { value } => {
                let effect = reached.effect.clone();
                match self.write(JournalWrite::Natural { reached, value: value.clone() }).await {
                    Ok(_) => Instruction::value(value),
                    // No row is open that a person could resolve, and doing it again is harmless: a dead letter, not parked.
                    Err(error) if is_too_large(&error, &answer) => {
                        let failure = Failure::new("effect_value", confirmed_but(&effect, &error));
                        Instruction::stop(SettleWith::refused(failure))
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            EffectAnswer::Rejected { code, detail } => Instruction::rejected(code, detail),
            EffectAnswer::NotDone => Instruction::stop(SettleWith::not_done(Failure::new("not_done", seen), after)),
            // Repeating it is harmless, so there is nothing to clear up: an ordinary failure.
            EffectAnswer::Unknown { .. } | EffectAnswer::NotFound => {
                Instruction::stop(SettleWith::retryable(Failure::new("unknown", seen)))
            }
        })
    }

    async fn write(&self, write: JournalWrite) -> Result<EffectRow, StoreError> {
        let call = Journal { id: self.id, token: self.token, before: Vec::new(), write };
        let mut verdicts = self.serving.tide.store().journal(vec![call]).await?;
        verdicts.pop().unwrap_or_else(|| Err(StoreError::unavailable("the store gave no verdict")))
    }
}

/// Whether what was refused is the value: nothing else of an answer can be, once it was read.
fn is_too_large(error: &StoreError, answer: &EffectAnswer) -> bool {
    error.kind() == StoreErrorKind::Invalid && matches!(answer, EffectAnswer::Confirmed { .. })
}

fn confirmed_but(effect: &EffectId, error: &StoreError) -> String {
    format!("effect {effect} was confirmed, and its value cannot be stored: {}", error.what())
}
