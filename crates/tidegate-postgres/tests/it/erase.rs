//! Erasing what ended messages say about a person.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use tidegate_core::erase::{Also, Erase, TOMBSTONE};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Answer, Failure, NewMessage};
use tidegate_core::store::{Act, Enqueued, Redrive};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_postgres::PostgresStore;

use crate::doctor::parked;
use crate::fixture::{Place, claim, connect, end, kind_of, run, with_payload};

const ADA: &str = "Ada Lovelace, 12 St James's Square";

fn erase(id: MessageId, also: Also) -> Erase {
    Erase { ids: vec![id], also, act: Act { actor: "tester".into(), reason: "asked by letter".into() } }
}

const ALL: Also = Also { answer: true, effects: true, headers: true, history: true };

fn about_ada(key: &str) -> NewMessage {
    let mut message = with_payload(key, &format!("{{\"name\":\"{ADA}\"}}"));
    message.headers.insert("customer".into(), ADA.into());
    message
}

async fn ended(store: &PostgresStore, key: &str, outcome: Outcome) -> MessageId {
    let new = store.enqueue(vec![about_ada(key)]).await.unwrap().remove(0).unwrap();
    let Enqueued::New { id } = new else { panic!("{new:?}") };
    end(store, outcome).await;
    id
}

fn completed() -> Outcome {
    Outcome::Completed { result: format!("\"{ADA}\"").into(), orphans: false }
}

#[test]
fn an_erased_message_keeps_its_key_and_its_answer() {
    run(async {
        let place = Place::new().await;
        let store = &place.store;
        let id = ended(store, "a", completed()).await;
        store.erase(erase(id, Also::default())).await.unwrap().remove(0).unwrap();
        let view = store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
        assert_eq!(&*view.message.payload, TOMBSTONE);
        assert_eq!((view.state, view.message.headers.len()), (State::Completed, 1));
        let again = store.enqueue(vec![about_ada("a")]).await.unwrap().remove(0).unwrap();
        let Enqueued::Replayed { id: of, answer: Answer::Completed(answer) } = again else { panic!("{again:?}") };
        assert_eq!((of, &*answer), (id, &*format!("\"{ADA}\"")));
        assert_eq!(
            kind_of(store.enqueue(vec![with_payload("a", "1")]).await.unwrap().remove(0)),
            StoreErrorKind::KeyConflict
        );
        let audit = store.audit(0, 10).await.unwrap();
        assert_eq!((audit[0].act.as_str(), audit[0].message, audit[0].detail.as_str()), ("erase", Some(id), "payload"));
    });
}

#[test]
fn where_the_answer_was_erased_a_duplicate_learns_the_state_and_starts_nothing() {
    run(async {
        let place = Place::new().await;
        let store = &place.store;
        let failed = Outcome::Permanent { failure: Failure::new("declined", ADA), compensated: false, orphans: false };
        for (key, outcome, state) in [("a", completed(), State::Completed), ("b", failed, State::Failed)] {
            let id = ended(store, key, outcome).await;
            store.erase(erase(id, ALL)).await.unwrap().remove(0).unwrap();
            let again = store.enqueue(vec![about_ada(key)]).await.unwrap().remove(0).unwrap();
            let Enqueued::Existing { id: of, state: is, .. } = again else { panic!("{again:?}") };
            assert_eq!((of, is), (id, state));
            assert_eq!(store.progress(vec![id]).await.unwrap()[0].as_ref().unwrap().answer, None);
        }
        assert!(claim(store, 10).await.is_empty());
    });
}

#[test]
fn what_was_erased_is_in_no_row() {
    run(async {
        let place = Place::new().await;
        let id = ended(&place.store, "a", Outcome::Exhausted { failure: Failure::new("timeout", ADA) }).await;
        place.store.erase(erase(id, ALL)).await.unwrap().remove(0).unwrap();
        let client = connect().await;
        let tables = "select tablename::text from pg_tables where schemaname = $1";
        for table in client.query(tables, &[&place.schema.name()]).await.unwrap() {
            let table = place.name(table.get(0));
            let holds = format!("select exists (select from {table} t where t::text like '%Lovelace%')");
            assert!(!client.query_one(&holds, &[]).await.unwrap().get::<_, bool>(0), "{table}");
        }
    });
}

#[test]
fn an_erased_message_never_runs_again() {
    run(async {
        let place = Place::new().await;
        let id = ended(&place.store, "a", Outcome::Exhausted { failure: Failure::new("timeout", "gone") }).await;
        place.store.erase(erase(id, Also::default())).await.unwrap().remove(0).unwrap();
        let act = Act { actor: "tester".into(), reason: "x".into() };
        let redrive = Redrive { ids: vec![id], again: true, operation: "o".into(), act };
        let refused = place.store.redrive(redrive).await.unwrap().remove(0);
        assert!(refused.as_ref().unwrap_err().what().contains("its payload was erased"), "{refused:?}");
    });
}

#[test]
fn what_has_not_ended_is_not_erased_and_a_reason_is_asked_for() {
    run(async {
        let place = Place::new().await;
        let store = &place.store;
        let new = store.enqueue(vec![about_ada("ready")]).await.unwrap().remove(0).unwrap();
        let Enqueued::New { id } = new else { panic!("{new:?}") };
        assert_eq!(kind_of(store.erase(erase(id, ALL)).await.unwrap().remove(0)), StoreErrorKind::Conflict);
        claim(store, 1).await.remove(0);
        assert_eq!(kind_of(store.erase(erase(id, ALL)).await.unwrap().remove(0)), StoreErrorKind::Conflict);
        let view = store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
        assert!(view.message.payload.contains(ADA));
        let waits = parked(store, "parked").await.message.id;
        let refused = store.erase(erase(waits, ALL)).await.unwrap().remove(0).unwrap_err();
        assert!(refused.what().contains("it is parked"), "{refused}");
        let without = Erase { act: Act { actor: "tester".into(), reason: " ".into() }, ..erase(id, ALL) };
        assert_eq!(kind_of(store.erase(without).await), StoreErrorKind::Invalid);
        let nobody = store.erase(erase(MessageId::from_i64(7), ALL)).await.unwrap().remove(0);
        assert_eq!(kind_of(nobody), StoreErrorKind::NotFound);
    });
}
