//! `POST /v1/leases/journal`: writes to the journals of running messages, as a store takes them.
//!
//! For programs that decide by themselves what an effect may do, with the library over a store that is kept here. Others
//! reach an effect and are told.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_api::{JournalItem, JournalResult, JournalResults, WriteJournal};

use crate::body::JsonBody;
use crate::items;
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;
use crate::workers::Of;

/// The body before its items are read: one that cannot be read is refused alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Items {
    writes: Vec<Box<RawValue>>,
}

/// Write to journals
///
/// Intents before a send, answers after it, as a store takes them: for programs that decide with the library what an effect
/// may do. Answers may be repeated at will. A `confirmed` under a lease that is lost is kept as evidence, and refused.
#[utoipa::path(
    post,
    path = "/v1/leases/journal",
    tag = "workers",
    request_body = WriteJournal,
    responses((status = 200, description = "The row of each write, or why it was refused", body = JournalResults), Common, Bodied),
)]
pub(crate) async fn journal(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(items): JsonBody<Items>,
) -> Result<Json<JournalResults>, Problem> {
    let read = items::each::<JournalItem>(&serving, "writes", items.writes)?;
    let ids: Vec<_> = read.iter().flatten().map(|item| item.id).collect();
    let mut may = serving.may_work(&caller, &ids).await?.into_iter();
    let mut writes = Vec::with_capacity(read.len());
    for item in read {
        writes.push(match item {
            Ok(item) => match may.next().unwrap_or_else(|| Err(Problem::no_message(item.id))) {
                Ok(()) => read_item(&serving, &caller, item).await,
                Err(problem) => Err(problem),
            },
            Err(problem) => Err(problem),
        });
    }
    let (batch, places) = items::taken(writes);
    let verdicts = if batch.is_empty() { Vec::new() } else { serving.tide.store().journal(batch).await? };
    let results = items::at_their_places(places, verdicts).into_iter();
    let result = |verdict: Result<tidegate::journal::EffectRow, Problem>| match verdict {
        Ok(row) => JournalResult::from(&row),
        Err(problem) => JournalResult::from(problem.into_wire()),
    };
    Ok(Json(JournalResults { results: results.map(result).collect() }))
}

async fn read_item(serving: &Serving, caller: &Caller, item: JournalItem) -> Result<tidegate::store::Journal, Problem> {
    let payload = if item.needs_payload() {
        let known = serving.known(caller, &[Of::Lease(item.id, item.token.0)]).await?.pop();
        Some(known.unwrap_or_else(|| Err(Problem::no_message(item.id)))?.payload)
    } else {
        None
    };
    Ok(item.into_journal(payload)?)
}
