//! `GET /v1/stats`: depths, ages and counters.
//!
//! A store counts by the name of a queue, for all its tenants together. A token that reads some of the tenants alone must
//! not learn the others' figures from a sum, so that a sum is shown only where every part of it may be seen.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tidegate::store;
use tidegate::{QueueName, Tenant};
use tidegate_api::{Stats, schema};

use crate::principal::Caller;
use crate::problem::{Common, Problem};
use crate::serving::Serving;
use crate::url::UrlQuery;
use crate::whose::Whose;

/// Read depths, ages and counters
///
/// Exact as of one moment. Counters and lanes are told by the name of their queue for all tenants together, and so only
/// where every queue of that name was asked for and may be read; open effects only where that is so of every queue there is.
#[utoipa::path(
    get,
    path = "/v1/stats",
    tag = "operators",
    params(Whose, ("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose figures")),
    responses((status = 200, description = "The figures", body = Stats), Common),
)]
pub(crate) async fn stats(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    UrlQuery(whose): UrlQuery<Whose>,
) -> Result<Json<Stats>, Problem> {
    whose.demand(&caller, None)?;
    let stats = serving.tide.store().stats().await?;
    Ok(Json(visible(&stats, |tenant, queue| whose.includes(&caller, tenant, queue))))
}

/// As much of the figures as somebody may see who sees these queues.
fn visible(stats: &store::Stats, sees: impl Fn(&Tenant, &QueueName) -> bool) -> Stats {
    let mut by_name: HashMap<&QueueName, bool> = HashMap::new();
    for queue in &stats.queues {
        *by_name.entry(&queue.queue).or_insert(true) &= sees(&queue.tenant, &queue.queue);
    }
    let whole = by_name.values().all(|seen| *seen);
    let is_seen = |queue: &QueueName| by_name.get(queue).copied().unwrap_or(whole);
    let tallies = stats.tallies.iter().filter(|tally| is_seen(&tally.queue)).cloned().collect();
    let lanes = stats.lanes.iter().filter(|lane| is_seen(&lane.queue)).cloned().collect();
    let queues = stats.queues.iter().filter(|queue| sees(&queue.tenant, &queue.queue)).cloned().collect();
    let open_effects = stats.open_effects;
    let seen = Stats::from(store::Stats { queues, tallies, open_effects, lanes });
    Stats { open_effects: whole.then_some(open_effects), ..seen }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate::store::{Counted, LaneStats, QueueStats, Tally};
    use tidegate::{Kind, Priority};

    use super::*;

    fn queue(tenant: &str, name: &str) -> QueueStats {
        QueueStats {
            tenant: Tenant::new(tenant).unwrap(),
            queue: QueueName::new(name).unwrap(),
            paused: false,
            max_depth: None,
            ready: 1,
            scheduled: 0,
            leased: 0,
            parked: 0,
            dead: 0,
            oldest_ready: None,
            oldest_leased: None,
            oldest_parked: None,
            oldest_dead: None,
        }
    }

    #[test]
    fn a_sum_over_tenants_is_shown_only_to_whoever_sees_all_its_parts() {
        let kind = Kind::new("k").unwrap();
        let name = |name: &str| QueueName::new(name).unwrap();
        let tally = |queue: &str| Tally {
            queue: name(queue),
            kind: kind.clone(),
            what: Counted::Completed,
            code: String::new(),
            n: 1,
        };
        let lane = |queue: &str| LaneStats {
            queue: name(queue),
            kind: kind.clone(),
            version: 1,
            priority: Priority::default(),
            oldest: Duration::ZERO,
        };
        let stats = || store::Stats {
            queues: vec![queue("", "mine"), queue("acme", "mine"), queue("acme", "own")],
            tallies: vec![tally("mine"), tally("own")],
            open_effects: 3,
            lanes: vec![lane("mine"), lane("own")],
        };
        let seen = visible(&stats(), |_, _| true);
        assert_eq!((seen.queues.len(), seen.tallies.len(), seen.lanes.len(), seen.open_effects), (3, 2, 2, Some(3)));
        // Of the tenant acme: what the queue `mine` counts is partly another tenant's.
        let seen = visible(&stats(), |tenant, _| tenant.as_str() == "acme");
        assert_eq!((seen.queues.len(), seen.open_effects), (2, None));
        assert_eq!(seen.tallies.iter().map(|tally| tally.queue.as_str()).collect::<Vec<_>>(), ["own"]);
        assert_eq!(seen.lanes.iter().map(|lane| lane.queue.as_str()).collect::<Vec<_>>(), ["own"]);
        let seen = visible(&stats(), |_, _| false);
        assert_eq!((seen.queues.len(), seen.tallies.len(), seen.lanes.len(), seen.open_effects), (0, 0, 0, None));
    }
}
