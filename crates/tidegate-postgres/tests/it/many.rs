//! Many rows at once go another way into the tables than a few, and must come to the same.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Answer, Failure, NewMessage};
use tidegate_core::store::{Enqueued, Lease, Settle};
use tidegate_core::{MessageId, QueueName, Store as _};
use tidegate_postgres::{Options, PostgresStore};

use crate::engine::{Schema, sql};
use crate::fixture::{Place, claim, completion, connect, is_well, message, open, run, settlement, somebody_waits};

/// More than are inserted one by one.
const MANY: usize = 300;
/// The same, as a claim takes it.
const SLOTS: u32 = 300;

fn messages(of: &str) -> Vec<NewMessage> {
    (0..MANY).map(|n| message(&format!("{of}-{n:04}"))).collect()
}

fn id_of(enqueued: &Enqueued) -> MessageId {
    match enqueued {
        Enqueued::New { id } | Enqueued::Existing { id, .. } | Enqueued::Replayed { id, .. } => *id,
        Enqueued::Stale => panic!("no key of these tests is old"),
    }
}

fn news(verdicts: &[Enqueued]) -> usize {
    verdicts.iter().filter(|enqueued| matches!(enqueued, Enqueued::New { .. })).count()
}

async fn stored(store: &PostgresStore, batch: Vec<NewMessage>) -> Vec<Enqueued> {
    store.enqueue(batch).await.unwrap().into_iter().map(Result::unwrap).collect()
}

#[test]
fn many_messages_live_as_one_does() {
    run(async {
        let place = Place::new().await;
        let mut batch = messages("m");
        batch.extend(messages("m").into_iter().take(7));
        let first = stored(&place.store, batch).await;
        assert_eq!(news(&first), MANY, "a key that comes twice in a batch is one message");
        assert_eq!(news(&stored(&place.store, messages("m")).await), 0, "all of them are known");

        let leases = claim(&place.store, SLOTS + 10).await;
        assert_eq!(leases.len(), MANY);
        for (lease, new) in leases.iter().zip(messages("m")) {
            assert_eq!((lease.message.key.as_str(), &*lease.message.payload), (new.key.as_str(), new.payload.text()));
            assert_eq!((lease.counters.claims, lease.counters.attempt, lease.counters.crashes), (1, 1, 0));
        }
        let outcome = |n: usize| match n % 3 {
            0 => Outcome::Permanent {
                failure: Failure::new("declined", "no\0funds"),
                compensated: false,
                orphans: false,
            },
            _ => Outcome::Completed { result: format!("{{\"n\": {n}, \"é\": \"\\\\\\t\"}}").into(), orphans: false },
        };
        let settles = leases.iter().enumerate().map(|(n, lease)| settlement(lease, outcome(n)));
        let settles: Vec<_> = settles.collect();
        for verdict in place.store.settle(settles.clone()).await.unwrap() {
            assert!(!verdict.unwrap().repeated);
        }
        for verdict in place.store.settle(settles).await.unwrap() {
            assert!(verdict.unwrap().repeated, "under the same token it is the same settlement");
        }
        for (n, enqueued) in stored(&place.store, messages("m")).await.into_iter().enumerate() {
            let Enqueued::Replayed { id, answer } = enqueued else { panic!("it has ended: {enqueued:?}") };
            assert_eq!(id, leases[n].message.id);
            match (outcome(n), answer) {
                (Outcome::Completed { result, .. }, Answer::Completed(answer)) => assert_eq!(*answer, *result),
                (Outcome::Permanent { .. }, Answer::Failed(failure)) => {
                    assert_eq!((failure.code.as_str(), failure.detail.as_str()), ("declined", "no\u{fffd}funds"));
                }
                (outcome, answer) => panic!("{outcome:?} was answered with {answer:?}"),
            }
        }
        is_well(&place.schema).await;
    });
}

#[test]
fn two_producers_of_the_same_many_keys_make_one_message_of_each() {
    run(async {
        let place = Place::new().await;
        let other = open(&place.schema.url()).await;
        for round in 0..6 {
            let of = format!("r{round}");
            let (one, two) = tokio::join!(stored(&place.store, messages(&of)), stored(&other, messages(&of)));
            assert_eq!(news(&one) + news(&two), MANY);
            let ids = |of: &[Enqueued]| of.iter().map(id_of).collect::<Vec<_>>();
            assert_eq!(ids(&one), ids(&two), "both were told of the same messages");
        }
        let rows = sql(&format!("select count(*) from {}", place.name("message")));
        assert_eq!(rows.trim(), (6 * MANY).to_string());
        other.close().await;
        is_well(&place.schema).await;
    });
}

#[test]
fn many_messages_that_follow_are_stored_with_what_they_follow_from() {
    run(async {
        let place = Place::new().await;
        stored(&place.store, messages("m")).await;
        let leases = claim(&place.store, SLOTS).await;
        let next = QueueName::new("next").unwrap();
        let follows = |lease: &Lease| Settle {
            then: vec![NewMessage { queue: next.clone(), ..message(lease.message.key.as_str()) }],
            ..completion(lease)
        };
        let settled = place.store.settle(leases.iter().map(follows).collect()).await.unwrap();
        let followed: BTreeSet<MessageId> =
            settled.into_iter().flat_map(|settled| settled.unwrap().follow_ups).collect();
        assert_eq!(followed.len(), MANY);
        let views = place.store.inspect(followed.into_iter().collect()).await.unwrap();
        for view in views {
            let view = view.unwrap();
            assert_eq!((view.state, view.message.parent.is_some()), (State::Ready, true));
        }
        is_well(&place.schema).await;
    });
}

#[test]
fn a_batch_of_many_that_is_refused_leaves_nothing_and_the_store_goes_on() {
    run(async {
        let place = Place::new().await;
        stored(&place.store, vec![message("before")]).await;
        // Somebody else took the number that a row of it is about to have.
        let trap = format!(
            "create function {0}.refuse() returns trigger language plpgsql as $$ begin
                if new.key like '%-0123' then raise exception 'not this one' using errcode = '23514'; end if;
                return new; end $$;
             create trigger refuse before insert on {1} for each row execute function {0}.refuse()",
            place.schema.name(),
            place.name("message")
        );
        sql(&trap);
        let verdicts = place.store.enqueue(messages("m")).await.unwrap();
        let refused: Vec<usize> = (0..MANY).filter(|n| verdicts[*n].is_err()).collect();
        assert_eq!(refused, [123], "the others of its call are stored without it");
        assert_eq!(news(&stored(&place.store, messages("n").into_iter().take(100).collect()).await), 100);
        sql(&format!("drop trigger refuse on {}", place.name("message")));
        assert_eq!(news(&stored(&place.store, messages("m")).await), 1);
        is_well(&place.schema).await;
    });
}

#[test]
fn a_key_that_somebody_else_takes_meanwhile_ends_the_transaction_and_not_the_connection() {
    run(async {
        let schema = Schema::new();
        let url = format!("{}&application_name={}", schema.url(), schema.name());
        let store = PostgresStore::open(&url, Options { writers: 1, ..Options::default() }).await.unwrap();
        stored(&store, vec![message("before")]).await;
        // But for the one that listens, which is made when it is.
        let sessions = || {
            sql(&format!(
                "select string_agg(pid::text, ' ' order by pid) from pg_stat_activity
                 where application_name = '{}' and query <> '' and query not like '%listen%'",
                schema.name()
            ))
        };
        let before = sessions();
        let mut other = connect().await;
        let tx = other.transaction().await.unwrap();
        let takes =
            format!("select from {}.enqueue('work', 'work', 'm-0123', '{{\"cents\": 1200}}'::text)", schema.name());
        tx.execute(&takes, &[]).await.unwrap();
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { stored(&store, messages("m")).await }
        });
        somebody_waits(&format!("copy {}.key", schema.name())).await;
        tx.commit().await.unwrap();
        let all = waiting.await.unwrap();
        let known: Vec<usize> = (0..MANY).filter(|n| matches!(all[*n], Enqueued::Existing { .. })).collect();
        assert_eq!((news(&all), known), (MANY - 1, vec![123]));
        assert!(store.group_stats().repeated > 0, "it was refused, and carried out again");
        assert_eq!(sessions(), before, "on the same connection");
        store.close().await;
        is_well(&schema).await;
    });
}
