//! What PostgreSQL itself refuses to store ends its own message, and nobody else's.

use std::fmt::Write as _;
use std::time::Duration;

use tidegate_core::Store as _;
use tidegate_core::effect::{EffectId, EffectPolicy, Reached};
use tidegate_core::id::EffectName;
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::Failure;
use tidegate_core::store::{Enqueued, JournalWrite, Lease, Settle};

use crate::fixture::{Place, claim, message, run};

fn settlement(lease: &Lease, journal: Vec<JournalWrite>) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::Completed { result: "1".into(), orphans: false },
        journal,
        then: vec![message(&format!("after-{}", lease.message.key))],
        compensate: Vec::new(),
        unit: 0.5,
    }
}

/// A natural effect whose item is longer than any key of an index may be, and cannot be compressed to less.
fn too_long_for_an_index() -> JournalWrite {
    let mut item = String::new();
    for n in 0..2000_u64 {
        write!(item, "{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).expect("a string takes it");
    }
    let effect = EffectId { name: EffectName::new("note").expect("a valid name"), item: Some(item) };
    let reached = Reached { effect, policy: EffectPolicy::Natural, request_hash: [1; 16], quarantine: Duration::ZERO };
    JournalWrite::Natural { reached, value: "1".into() }
}

#[test]
fn a_settlement_that_the_database_refuses_ends_its_message_alone() {
    run(async {
        let place = Place::new().await;
        for key in ["good", "bad", "better"] {
            place.store.enqueue(vec![message(key)]).await.unwrap().remove(0).unwrap();
        }
        let leases = claim(&place.store, 3).await;
        let journal = |lease: &Lease| match lease.message.key.as_str() {
            "bad" => vec![too_long_for_an_index()],
            _ => Vec::new(),
        };
        let batch = || leases.iter().map(|lease| settlement(lease, journal(lease))).collect();
        let settled = place.store.settle(batch()).await.unwrap();
        for (lease, verdict) in leases.iter().zip(settled) {
            let settled = verdict.unwrap();
            let bad = lease.message.key.as_str() == "bad";
            let expected = if bad { (State::Dead, Some("settlement_refused")) } else { (State::Completed, None) };
            assert_eq!((settled.state, settled.reason), expected, "{}", lease.message.key);
            assert_eq!(settled.follow_ups.len(), usize::from(!bad));
        }
        // Its reply was lost: the same settlement again is recognised, although less of it was stored.
        for verdict in place.store.settle(batch()).await.unwrap() {
            assert!(verdict.unwrap().repeated);
        }
    });
}

#[test]
fn what_a_remote_or_a_handler_said_is_stored_whatever_bytes_it_has() {
    run(async {
        let place = Place::new().await;
        let Ok(Enqueued::New { id }) = place.store.enqueue(vec![message("m")]).await.unwrap().remove(0) else {
            panic!("it is new")
        };
        let lease = claim(&place.store, 1).await.remove(0);
        let failure = Failure::new("broken", "a zero \0 in the middle");
        let settle = Settle {
            outcome: Outcome::Permanent { failure, compensated: false, orphans: false },
            ..settlement(&lease, Vec::new())
        };
        assert_eq!(place.store.settle(vec![settle]).await.unwrap().remove(0).unwrap().state, State::Failed);
        let view = place.store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
        assert_eq!(view.failure.map(|failure| failure.detail).as_deref(), Some("a zero \u{fffd} in the middle"));
    });
}
