//! Keeping a lease: what prolongs it, and when it is lost (protocol §4).

use tidegate_core::lifecycle::{Cancellation, State};
use tidegate_core::store::{Counted, Extend, Extended};
use tidegate_core::{LeaseToken, StoreErrorKind};

use super::stage::*;
use crate::Engine;

/// An extended lease is not swept when it would have lapsed.
pub async fn an_extended_lease_holds_from_now_on(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(LEASE);
    let until = stage.now().after(LEASE);
    let extended = stage.extend(lease.message.id, lease.token).await;
    assert_eq!(extended, Ok(Extended { until, cancel_requested: false }));
    stage.clock.advance(LEASE);
    assert!(stage.sweep().await.taken_over.is_empty());
    assert_eq!(stage.view(lease.message.id).await.lease.map(|(_, until)| until), Some(until));
}

/// A lease is lost at takeover, not at expiry.
pub async fn a_lapsed_lease_that_nobody_took_is_prolonged(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.clock.advance(HOUR);
    assert!(stage.extend(lease.message.id, lease.token).await.is_ok());
    assert!(stage.sweep().await.taken_over.is_empty());
}

/// After the takeover the token is worth nothing, and the write is counted.
pub async fn after_a_takeover_the_lease_is_lost_and_the_late_write_counted(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.crash().await;
    assert_eq!(refused(stage.extend(lease.message.id, lease.token).await), StoreErrorKind::LeaseLost);
    let next = stage.take_one().await;
    assert_eq!(refused(stage.extend(lease.message.id, lease.token).await), StoreErrorKind::LeaseLost);
    assert_eq!(stage.tally(Counted::RejectedLateWrites).await, 2);
    assert!(stage.extend(next.message.id, next.token).await.is_ok(), "the new holder is not disturbed");
}

/// What is settled is no longer leased.
pub async fn a_settled_message_has_no_lease_to_extend(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    stage.end(&lease, completed()).await;
    assert_eq!(refused(stage.extend(lease.message.id, lease.token).await), StoreErrorKind::LeaseLost);
    assert_eq!(stage.state(lease.message.id).await, State::Completed);
}

/// Both halves of a token count.
pub async fn a_token_with_another_nonce_or_count_is_not_the_lease(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    let other_nonce = LeaseToken { nonce: stage.nonce(), ..lease.token };
    let other_count = LeaseToken { claims: lease.token.claims + 1, ..lease.token };
    for token in [other_nonce, other_count] {
        assert_eq!(refused(stage.extend(lease.message.id, token).await), StoreErrorKind::LeaseLost);
    }
    assert_eq!(stage.view(lease.message.id).await.lease.map(|(_, until)| until), Some(lease.until), "nothing moved");
}

/// A request to cancel is delivered with the next extension.
pub async fn an_extension_tells_of_a_request_to_cancel(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    assert_eq!(stage.cancel(lease.message.id).await, Ok(Cancellation::Requested));
    let extended = stage.extend(lease.message.id, lease.token).await;
    assert!(extended.is_ok_and(|extended| extended.cancel_requested));
    assert!(stage.view(lease.message.id).await.cancel_requested);
}

/// An extension is answered item by item.
pub async fn a_lost_lease_in_a_batch_is_refused_alone(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lost = stage.started("lost").await;
    stage.crash().await;
    stage.put(message("held")).await;
    let leases = stage.take(2).await;
    let batch: Vec<Extend> = [&lost, &leases[0], &leases[1]]
        .map(|lease| Extend { id: lease.message.id, token: lease.token, lease: LEASE, alone: false })
        .to_vec();
    let verdicts = stage.store.extend(batch).await.expect("the batch is answered");
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
}

/// An extension counts nothing.
pub async fn an_extension_counts_no_attempt(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let lease = stage.started("m").await;
    for _ in 0..3 {
        stage.clock.advance(SECOND);
        stage.extend(lease.message.id, lease.token).await.expect("the lease is held");
    }
    assert_eq!(stage.view(lease.message.id).await.counters, lease.counters);
}
