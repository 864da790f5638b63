//! `POST /v1/leases`: takes messages to run, at once or when there are some.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use tidegate::StoreError;
use tidegate::store::{self, ClaimRequest, QueueSlots};
use tidegate_api::{Claim, Claimed, ProblemType, schema};
use tokio::time::Instant;

use crate::body::JsonBody;
use crate::enqueue_many::enough;
use crate::principal::{Action, Caller};
use crate::problem::{Bodied, Common, Problem};
use crate::serving::Serving;
use crate::wait::{self, Span};

/// How often one that waits looks for what other processes enqueued, while few wait.
const POLL: Duration = Duration::from_millis(100);
/// The most that is between two looks.
const LONGEST_POLL: Duration = Duration::from_secs(1);
/// So many claims wait without looking less often than one would.
const FEW: usize = 4;
/// The shortest lease; seconds, unless it is a test.
const SHORTEST_LEASE: Duration = Duration::from_millis(30);
/// The longest: so long a message is lost to all others when its worker is.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Claim messages to run
///
/// Each comes with a lease: the time-limited right to run it, to make its effects and to settle it. Its attempt is counted
/// before this answers. With `wait_ms` it is answered when there is something, or when the time is up. A claim whose answer
/// is missing is repeated under its nonce: then the same leases come back, and nothing more is taken. A server that is being
/// stopped hands out nothing, and answers 503.
#[utoipa::path(
    post,
    path = "/v1/leases",
    tag = "workers",
    params(("Tidegate-Tenant" = Option<schema::TenantName>, Header, description = "Whose messages, where the body does not say it")),
    request_body = Claim,
    responses((status = 200, description = "The leases, in the order to start them", body = Claimed), Common, Bodied),
)]
pub(crate) async fn claim(
    State(serving): State<Arc<Serving>>,
    caller: Caller,
    JsonBody(claim): JsonBody<Claim>,
) -> Result<Json<Claimed>, Problem> {
    let wait = Duration::from_millis(claim.wait_ms.unwrap_or_default());
    let wait = wait::allowed(Some(Span(wait)), &serving.limits)?;
    enough(claim.queues.len().max(claim.kinds.len()), serving.limits.batch)?;
    let mut request = claim.into_request(&caller.tenant);
    check_lease(request.lease)?;
    for slots in &request.queues {
        caller.may(Action::Work, &request.tenant, &slots.queue)?;
    }
    bound(&mut request.queues, serving.limits.batch);
    let mut claimed = take(&serving, request, wait).await?;
    // A nonce that is repeated brings its leases back whatever the queues: those of others are not told.
    claimed.leases.retain(|lease| caller.sees(Action::Work, &lease.message.tenant, &lease.message.queue));
    let now = serving.tide.clock().now();
    for lease in &claimed.leases {
        serving.workers.remember(lease);
        tidegate::trace::claimed(lease);
        serving.tide.metrics().started(&lease.message, now.since(lease.due_at));
    }
    Ok(Json(Claimed::from(&claimed)))
}

/// Refuses a lease that is none.
pub(crate) fn check_lease(lease: Duration) -> Result<(), Problem> {
    if (SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
        return Ok(());
    }
    Err(StoreError::invalid(format!("invalid lease of {} ms", lease.as_millis()))
        .hint("from 30 ms to a day; seconds, unless this is a test")
        .into())
}

/// No more at once than one answer brings.
fn bound(queues: &mut [QueueSlots], most: usize) {
    let mut left = u32::try_from(most).unwrap_or(u32::MAX);
    for slots in queues {
        slots.slots = slots.slots.min(left);
        left -= slots.slots;
    }
}

/// Claims until there is something, or the time is up.
async fn take(serving: &Serving, request: ClaimRequest, wait: Duration) -> Result<store::Claimed, Problem> {
    let give_up = Instant::now() + wait;
    // Before the first look: what comes between the two wakes it.
    let wakeups = (!wait.is_zero()).then(|| {
        let queues = request.queues.iter().map(|slots| slots.queue.clone()).collect();
        (serving.tide.wakeups(queues), serving.workers.waits())
    });
    let mut ended = 0;
    loop {
        if serving.stopping.is_stopping() {
            return Err(draining());
        }
        let mut claimed = serving.tide.store().claim(request.clone()).await?;
        ended += claimed.ended;
        let left = give_up.saturating_duration_since(Instant::now());
        let Some((wakeups, _)) = wakeups.as_ref().filter(|_| claimed.leases.is_empty() && !left.is_zero()) else {
            claimed.ended = ended;
            return Ok(claimed);
        };
        if claimed.ended > 0 {
            // What was in the way is gone.
            continue;
        }
        tokio::select! {
            biased;
            () = serving.stopping.stopped() => {}
            () = wakeups.woken() => {}
            () = tokio::time::sleep(look_in(serving, &claimed).min(left)) => {}
        }
    }
}

/// When to look again if nothing else happens. All that wait share the looking: they find each other's messages no later
/// than one of them alone would.
fn look_in(serving: &Serving, claimed: &store::Claimed) -> Duration {
    let share = u32::try_from(serving.workers.how_many_wait() / FEW).unwrap_or(u32::MAX).max(1);
    let poll = POLL.saturating_mul(share).min(LONGEST_POLL);
    match claimed.next_due.map(|due| due.since(serving.tide.clock().now())) {
        // Due by this clock and not yet by the store's: to ask at once would be to ask all the time.
        Some(due_in) => due_in.clamp(POLL / 5, poll),
        None => poll,
    }
}

fn draining() -> Problem {
    Problem::new(ProblemType::Busy, "this server is being stopped, and hands out nothing more")
        .fix("claim again after Retry-After, under the same nonce: another server answers it")
}

#[cfg(test)]
mod tests {
    use tidegate::QueueName;

    use super::*;

    #[test]
    fn one_answer_brings_no_more_than_a_batch() {
        let slots = |queue: &str, slots| QueueSlots { queue: QueueName::new(queue).unwrap(), slots };
        let mut queues = [slots("a", 3), slots("b", u32::MAX), slots("c", 5)];
        bound(&mut queues, 10);
        assert_eq!(queues.map(|slots| slots.slots), [3, 7, 0]);
    }
}
