//! `POST /v1/leases/extend`: more time for what runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate::store::Extend;
use tidegate_api::{ExtendLease, ExtendLeases, ExtendResult, ExtendResults};

use crate::body::JsonBody;
use crate::claim::check_lease;
use crate::items;
use crate::principal::Caller;
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// The body before its items are read: one that cannot be read is refused alone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Items {
    leases: Vec<Box<RawValue>>,
}

/// Extend leases
///
/// Each has a verdict in `results`, in the order of the request. A lease that lapsed is extended as well, as long as nobody
/// took the message over; `lease-lost` says that somebody did: stop working on it. May be repeated at will.
#[utoipa::path(
    post,
    path = "/v1/leases/extend",
    tag = "workers",
    request_body = ExtendLeases,
    responses((status = 200, description = "A verdict for each lease", body = ExtendResults), Common, Bodied),
)]
pub(crate) async fn extend(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(items): JsonBody<Items>,
) -> Result<Json<ExtendResults>, Problem> {
    let read = items::each::<ExtendLease>(&serving, "leases", items.leases)?;
    let ids: Vec<_> = read.iter().flatten().map(|extend| extend.id).collect();
    let mut may = serving.may_work(&caller, &ids).await?.into_iter();
    let allowed = |item: Result<ExtendLease, Problem>| {
        let extend = Extend::from(item?);
        may.next().unwrap_or_else(|| Err(Problem::no_message(extend.id)))?;
        check_lease(extend.lease)?;
        Ok(extend)
    };
    let (batch, places) = items::taken(read.into_iter().map(allowed).collect());
    let verdicts = if batch.is_empty() { Vec::new() } else { serving.tide.store().extend(batch).await? };
    let results = items::at_their_places(places, verdicts).into_iter();
    let result = |verdict: Result<_, Problem>| {
        verdict.map_or_else(|problem| ExtendResult::from(problem.into_wire()), ExtendResult::from)
    };
    Ok(Json(ExtendResults { results: results.map(result).collect() }))
}
