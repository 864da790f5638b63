//! `POST /v1/leases/settle`: the ends of runs, each with its result, its journal and what follows from it in one commit.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate::journal::{EffectId, EffectRow, open_rows};
use tidegate::lifecycle::Outcome;
use tidegate::store::{Settle, Settled, Verdicts};
use tidegate::{StoreError, trace};
use tidegate_api::{SettleFacts, SettleLeases, SettleResult, SettleResults, Settlement, Write, WriteName};
use tracing::Span;

use crate::body::JsonBody;
use crate::items;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;
use crate::workers::{Known, Of};

/// The body before its items are read: one that cannot be read is refused alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Items {
    settlements: Vec<Box<RawValue>>,
}

/// Settle runs
///
/// The result, the state, the journal and what follows are stored in one commit. What the message becomes is the store's to
/// say: while an effect of it is open, it is run again to clear that up, or waits for a person. Sent again, the same
/// settlement is answered as before and changes nothing; another one under the same token is refused (`conflict`), and one
/// that comes after somebody else took the message is too (`lease-lost`). For messages that follow, the token needs the right
/// to produce on their queues.
#[utoipa::path(
    post,
    path = "/v1/leases/settle",
    tag = "workers",
    request_body = SettleLeases,
    responses((status = 200, description = "What became of each message, or why it was refused", body = SettleResults), Common, Bodied),
)]
pub(crate) async fn settle(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(items): JsonBody<Items>,
) -> Result<Json<SettleResults>, Problem> {
    let read = items::each::<Settlement>(&serving, "settlements", items.settlements)?;
    let known = known(&serving, &caller, &read).await?;
    let mut settles = Vec::with_capacity(read.len());
    for (item, known) in read.into_iter().zip(&known) {
        settles.push(match (item, known) {
            (Ok(item), Ok(known)) => checked(&serving, &caller, item, known.as_deref()).await,
            (Ok(_), Err(problem)) => Err(problem.clone()),
            (Err(problem), _) => Err(problem),
        });
    }
    let (mut batch, places) = items::taken(settles);
    let runs: Vec<_> = batch.iter().map(|settle| serving.workers.recall(settle.id, settle.token)).collect();
    let spans = spans(&serving, &caller, &mut batch).await;
    let verdicts = if batch.is_empty() { Ok(Vec::new()) } else { serving.tide.store().settle(batch).await };
    tell_traces(&spans, &verdicts);
    let verdicts = verdicts?;
    for (verdict, run) in verdicts.iter().zip(runs) {
        if let (Ok(settled), Some(run)) = (verdict, run) {
            measure(&serving, settled, &run);
        }
    }
    let results = items::at_their_places(places, verdicts);
    let result = |verdict: Result<Settled, Problem>| match verdict {
        Ok(settled) => SettleResult::from(&settled),
        Err(problem) => SettleResult::from(problem.into_wire()),
    };
    Ok(Json(SettleResults { results: results.into_iter().map(result).collect() }))
}

/// What is known of the message of a settlement, where it had to be asked for.
type Found = Result<Option<Arc<Known>>, Problem>;

/// What is asked for before a settlement can be carried out.
#[derive(Debug, Clone, Copy)]
struct Asked {
    of: Of,
    /// The settlement is refused where it cannot be had.
    is_needed: bool,
}

/// What is known of the message of each settlement; nothing, of one that says all by itself by a caller that may do all.
async fn known(
    serving: &Serving,
    caller: &Caller,
    read: &[Result<Settlement, Problem>],
) -> Result<Vec<Found>, Problem> {
    let may_all = caller.principal.may_all(Action::Work);
    let asked = |item: &Settlement| {
        let needs = item.needs();
        match needs.message || needs.orphans {
            true => Some(Asked { of: Of::Lease(item.id, item.token.0), is_needed: true }),
            false => (needs.trace || !may_all).then_some(Asked { of: Of::Any(item.id), is_needed: !may_all }),
        }
    };
    let asked: Vec<Option<Asked>> = read.iter().map(|item| item.as_ref().ok().and_then(asked)).collect();
    let to_find: Vec<Of> = asked.iter().flatten().map(|asked| asked.of).collect();
    let mut found = serving.known(caller, &to_find).await?.into_iter();
    let of = |asked: Option<Asked>| match asked {
        Some(Asked { is_needed: true, .. }) => found.next().transpose(),
        // For its trace alone: where that cannot be told, what follows begins one, and the store says what is refused.
        Some(Asked { is_needed: false, .. }) => Ok(found.next().and_then(Result::ok)),
        None => Ok(None),
    };
    Ok(asked.into_iter().map(of).collect())
}

/// The settlement as the store takes it, if the caller may have what follows from it.
async fn checked(
    serving: &Serving,
    caller: &Caller,
    item: Settlement,
    known: Option<&Known>,
) -> Result<Settle, Problem> {
    let orphans = item.needs().orphans && has_orphans(serving, &item, known).await?;
    let facts = SettleFacts {
        message: known.map(|known| &known.message),
        payload: known.map(|known| known.payload),
        orphans,
        unit: serving.random.unit(),
    };
    let settle = item.into_settle(&facts)?;
    for follow_up in settle.then.iter().chain(&settle.compensate) {
        caller.may(Action::Produce, &follow_up.tenant, &follow_up.queue)?;
        serving.admit(caller, follow_up).await?;
    }
    Ok(settle)
}

/// Whether an open effect of an earlier run was not reached by this one: it was neither sent again nor answered.
async fn has_orphans(serving: &Serving, item: &Settlement, known: Option<&Known>) -> Result<bool, Problem> {
    let token = item.token.0;
    if known.is_some_and(|known| known.is_of(token) && !known.reconciling) {
        return Ok(false);
    }
    let Some(view) = serving.tide.store().inspect(vec![item.id]).await?.pop().flatten() else { return Ok(false) };
    let is_answered = |effect: &EffectId| {
        let answers = |write: &Write| write.write == WriteName::Answer;
        item.journal.iter().any(|write| answers(write) && write.effect == effect.name && write.item == effect.item)
    };
    let is_orphan = |row: &EffectRow| row.token.claims != token.claims && !is_answered(&row.effect);
    Ok(open_rows(&view.journal).any(is_orphan))
}

/// The span of each settlement and how its run ended, whichever server had handed it out; none, where nobody exports any.
async fn spans(serving: &Serving, caller: &Caller, batch: &mut [Settle]) -> Vec<(Span, Outcome)> {
    if !trace::is_on() {
        return Vec::new();
    }
    let asked: Vec<Of> = batch.iter().map(|settle| Of::Any(settle.id)).collect();
    // They are settled, whether it can be told or not.
    let Ok(known) = serving.known(caller, &asked).await else { return Vec::new() };
    let span = |(settle, known): (&mut Settle, Result<Arc<Known>, Problem>)| {
        let span = known.map_or_else(|_| Span::none(), |known| trace::settle_elsewhere(&known.message, settle));
        (span, settle.outcome.clone())
    };
    batch.iter_mut().zip(known).map(span).collect()
}

/// Tells the trace of each message how its run was settled.
fn tell_traces(spans: &[(Span, Outcome)], verdicts: &Result<Verdicts<Settled>, StoreError>) {
    for (at, (span, outcome)) in spans.iter().enumerate() {
        match verdicts {
            Ok(verdicts) => verdicts.get(at).into_iter().for_each(|said| trace::settled_elsewhere(span, outcome, said)),
            Err(error) => trace::settled_elsewhere(span, outcome, &Err(error.clone())),
        }
    }
}

/// A run that was settled: how long it took since it was handed out, if that was here.
fn measure(serving: &Serving, settled: &Settled, known: &Known) {
    let metrics = serving.tide.metrics();
    metrics.settled(&known.message, settled);
    if let Some(claimed_at) = known.claimed_at.filter(|_| !settled.repeated) {
        metrics.ran(&known.message, claimed_at.elapsed());
    }
}
