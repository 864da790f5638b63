//! Commits that fail: nothing of them is answered as done, and what belongs together is missing together.
//!
//! A constraint of the test's own, which is looked at when the transaction commits, refuses the commit of one message.

use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{Enqueued, Settle};
use tidegate_core::{IdempotencyKey, MessageId, QueueName, Store as _, StoreErrorKind, Tenant};

use crate::engine::sql;
use crate::fixture::{Place, claim, kind_of, message, queue, run};

/// Has every commit fail that stores a message under this key, as late as a commit can fail.
fn refuse(place: &Place, key: &str) {
    sql(&format!(
        "create function {refuse}() returns trigger language plpgsql as $$ begin
            raise exception 'this commit is refused' using errcode = 'P0001';
        end $$;
        create constraint trigger refused after insert on {message} deferrable initially deferred
            for each row when (new.key = '{key}') execute function {refuse}();",
        refuse = place.name("refuse"),
        message = place.name("message"),
    ));
}

fn allow(place: &Place) {
    sql(&format!("drop trigger refused on {}", place.name("message")));
}

async fn find(place: &Place, queue: QueueName, key: &str) -> Option<MessageId> {
    let key = IdempotencyKey::new(key).expect("a valid key");
    place.store.find(Tenant::default(), queue, key).await.expect("answered")
}

#[test]
fn what_a_commit_that_fails_was_to_store_is_neither_acknowledged_nor_there() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("before")]).await.unwrap().remove(0).unwrap();
        refuse(&place, "refused");
        let answer = place.store.enqueue(vec![message("refused")]).await;
        assert_eq!(kind_of(answer), StoreErrorKind::Unavailable, "nobody knows whether it was stored");
        assert_eq!(find(&place, queue(), "refused").await, None);
        allow(&place);
        // Repeating it is safe, and what others stored is there.
        let stored = place.store.enqueue(vec![message("refused"), message("before")]).await.unwrap();
        assert!(matches!(stored[..], [Ok(Enqueued::New { .. }), Ok(Enqueued::Existing { .. })]), "{stored:?}");
    });
}

#[test]
fn a_message_whose_follow_up_cannot_be_committed_has_not_ended() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
        let lease = claim(&place.store, 1).await.remove(0);
        let next = QueueName::new("next").unwrap();
        let settlement = || Settle {
            id: lease.message.id,
            token: lease.token,
            outcome: Outcome::Completed { result: "true".into(), orphans: false },
            journal: Vec::new(),
            then: vec![NewMessage { queue: next.clone(), ..message("follows") }],
            compensate: Vec::new(),
            unit: 0.5,
        };
        refuse(&place, "follows");
        let answer = place.store.settle(vec![settlement()]).await;
        assert_eq!(kind_of(answer), StoreErrorKind::Unavailable, "nobody knows whether it ended");
        let view = place.store.inspect(vec![lease.message.id]).await.unwrap().remove(0).unwrap();
        assert_eq!((view.state, find(&place, next.clone(), "follows").await), (State::Leased, None));
        allow(&place);
        let settled = place.store.settle(vec![settlement()]).await.unwrap().remove(0).unwrap();
        assert_eq!((settled.state, settled.follow_ups.len()), (State::Completed, 1));
        assert!(find(&place, next.clone(), "follows").await.is_some());
    });
}
