//! `PUT /v1/kinds/{kind}/policy`: what the workers of a kind declare of it.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store::Counted;
use tidegate::{Kind, Policy, QueueName, StoreError};
use tidegate_api::{KindPolicy, schema};

use crate::body::JsonBody;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Named, Problem};
use crate::serving::Serving;
use crate::url::UrlPath;

/// Declare the policy of a kind
///
/// How often its messages are tried, how soon, and after how many crashes they are given up: read whenever a run ends,
/// whoever ran it. Workers declare it when they start, again and again the same. A policy is one for the whole store: a token
/// may declare it that may work on every queue in which the kind was ever enqueued, whichever tenants have a queue of that
/// name.
#[utoipa::path(
    put,
    path = "/v1/kinds/{kind}/policy",
    tag = "workers",
    params(("kind" = schema::Name, Path, description = "Of which kind")),
    request_body = KindPolicy,
    responses((status = 200, description = "The policy, with what was left out", body = KindPolicy), Common, Bodied, Named),
)]
pub(crate) async fn declare(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlPath(kind): UrlPath<Kind>,
    JsonBody(policy): JsonBody<KindPolicy>,
) -> Result<Json<KindPolicy>, Problem> {
    caller.may_somewhere(Action::Work)?;
    if !caller.principal.may_all(Action::Work) {
        let stats = serving.tide.store().stats().await?;
        let of_kind = stats.tallies.iter().filter(|tally| tally.what == Counted::Enqueued && tally.kind == kind);
        let knowing: HashSet<&QueueName> = of_kind.map(|tally| &tally.queue).collect();
        // Counted by the name of a queue, for all its tenants: any of them may know the kind.
        let mut queues = stats.queues.iter().filter(|queue| knowing.contains(&queue.queue));
        if !queues.all(|queue| caller.sees(Action::Work, &queue.tenant, &queue.queue)) {
            return Err(caller.forbidden(Action::Work, format_args!("every queue that knows kind {kind}")));
        }
    }
    let policy = Policy::from(policy);
    if policy.max_attempts == 0 || policy.timeout.is_zero() {
        let what = format!("kind {kind} has max_attempts or a time-out of 0");
        return Err(StoreError::invalid(what).hint("attempts are counted from 1").into());
    }
    let answer = KindPolicy::from(&policy);
    serving.tide.store().declare(vec![(kind, policy)]).await?;
    Ok(Json(answer))
}
