//! `POST /v1/sweeps`: does now what the store's housekeeping does by itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::StoreError;
use tidegate_api::{Sweep, Swept};

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;

/// The most rows of each sort.
const MOST: u32 = 10_000;

/// Sweep
///
/// Takes lapsed leases over, makes due messages claimable and deletes what is past its retention. The server does so by
/// itself: workers need it not. It acts on every queue of every tenant, and deletes: for those that may administer all of
/// the store.
#[utoipa::path(
    post,
    path = "/v1/sweeps",
    tag = "workers",
    request_body = Sweep,
    responses((status = 200, description = "What it did", body = Swept), Common, Bodied),
)]
pub(crate) async fn sweep(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(sweep): JsonBody<Sweep>,
) -> Result<Json<Swept>, Problem> {
    caller.may_all(Action::Admin)?;
    if !(1..=MOST).contains(&sweep.limit) {
        let what = format!("a sweep of {} rows is not one of 1 to {MOST}", sweep.limit);
        return Err(StoreError::invalid(what).hint("sweep again while there is more").into());
    }
    let request = sweep.into_request(serving.random.unit());
    Ok(Json(serving.tide.store().sweep(request).await?.into()))
}
