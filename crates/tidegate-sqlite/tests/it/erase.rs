//! Erasing what ended messages say about a person.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::fs;

use tidegate_core::id::{IdempotencyKey, MessageId};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{Answer, NewMessage, Payload};
use tidegate_core::store::{Act, Enqueued, Redrive, Settle};
use tidegate_core::{Store as _, StoreErrorKind};
use tidegate_sqlite::{Also, Erase, SqliteStore, TOMBSTONE};

use crate::fixture::{Place, claim, completion, kind, kind_of, queue, run};

const ADA: &str = "Ada Lovelace, 12 St James's Square";

fn erase(id: MessageId, also: Also) -> Erase {
    Erase { ids: vec![id], also, act: Act { actor: "tester".into(), reason: "asked by letter".into() } }
}

const ALL: Also = Also { answer: true, effects: true, headers: true, history: true };

fn about_ada(key: &str) -> NewMessage {
    let payload = Payload::from_json(format!("{{\"name\":\"{ADA}\"}}")).unwrap();
    let mut message = NewMessage::new(queue(), kind(), IdempotencyKey::new(key).unwrap(), payload);
    message.headers.insert("customer".into(), ADA.into());
    message
}

async fn ended(store: &SqliteStore, key: &str, outcome: Outcome) -> MessageId {
    store.enqueue(vec![about_ada(key)]).await.unwrap().remove(0).unwrap();
    let lease = claim(store, 1).await.remove(0);
    store.settle(vec![Settle { outcome, ..completion(&lease) }]).await.unwrap().remove(0).unwrap();
    lease.message.id
}

fn completed() -> Outcome {
    Outcome::Completed { result: format!("\"{ADA}\"").into(), orphans: false }
}

#[test]
fn an_erased_message_keeps_its_key_and_its_answer() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let id = ended(&store, "a", completed()).await;
        store.erase(erase(id, Also::default())).await.unwrap().remove(0).unwrap();
        let view = store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
        assert_eq!(&*view.message.payload, TOMBSTONE);
        assert_eq!((view.state, view.message.headers.len()), (State::Completed, 1));
        let again = store.enqueue(vec![about_ada("a")]).await.unwrap().remove(0).unwrap();
        let Enqueued::Replayed { id: of, answer: Answer::Completed(answer) } = again else { panic!("{again:?}") };
        assert_eq!((of, &*answer), (id, &*format!("\"{ADA}\"")));
        let mut other = about_ada("a");
        other.payload = Payload::from_json("1").unwrap();
        assert_eq!(kind_of(store.enqueue(vec![other]).await.unwrap().remove(0)), StoreErrorKind::KeyConflict);
        let audit = store.audit(0, 10).await.unwrap();
        assert_eq!((audit[0].act.as_str(), audit[0].message, audit[0].detail.as_str()), ("erase", Some(id), "payload"));
    });
}

#[test]
fn where_the_answer_was_erased_a_duplicate_learns_the_state_and_starts_nothing() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let failure = tidegate_core::message::Failure::new("declined", ADA);
        let failed = Outcome::Permanent { failure, compensated: false, orphans: false };
        for (key, outcome, state) in [("a", completed(), State::Completed), ("b", failed, State::Failed)] {
            let id = ended(&store, key, outcome).await;
            store.erase(erase(id, ALL)).await.unwrap().remove(0).unwrap();
            let again = store.enqueue(vec![about_ada(key)]).await.unwrap().remove(0).unwrap();
            let Enqueued::Existing { id: of, state: is, .. } = again else { panic!("{again:?}") };
            assert_eq!((of, is), (id, state));
            assert_eq!(store.progress(vec![id]).await.unwrap()[0].as_ref().unwrap().answer, None);
        }
        assert!(claim(&store, 10).await.is_empty());
    });
}

#[test]
fn what_was_erased_is_in_no_file_once_the_log_began_anew() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let failure = tidegate_core::message::Failure::new("timeout", ADA);
        let id = ended(&store, "a", Outcome::Exhausted { failure }).await;
        store.erase(erase(id, ALL)).await.unwrap().remove(0).unwrap();
        store.close().await;
    });
    drop(store);
    let bytes = fs::read(place.path()).unwrap();
    assert!(!bytes.windows(ADA.len()).any(|window| window == ADA.as_bytes()));
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 1);
}

#[test]
fn an_erased_message_never_runs_again() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let failure = tidegate_core::message::Failure::new("timeout", "gone");
        let id = ended(&store, "a", Outcome::Exhausted { failure }).await;
        store.erase(erase(id, Also::default())).await.unwrap().remove(0).unwrap();
        let act = Act { actor: "tester".into(), reason: "x".into() };
        let redrive = Redrive { ids: vec![id], again: true, operation: "o".into(), act };
        let refused = store.redrive(redrive).await.unwrap().remove(0);
        assert!(refused.as_ref().unwrap_err().what().contains("its payload was erased"), "{refused:?}");
    });
}

#[test]
fn what_has_not_ended_is_not_erased_and_a_reason_is_asked_for() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let new = store.enqueue(vec![about_ada("ready")]).await.unwrap().remove(0).unwrap();
        let Enqueued::New { id } = new else { panic!("{new:?}") };
        let refused = store.erase(erase(id, ALL)).await.unwrap().remove(0);
        assert_eq!(kind_of(refused), StoreErrorKind::Conflict);
        let lease = claim(&store, 1).await.remove(0);
        assert_eq!(kind_of(store.erase(erase(id, ALL)).await.unwrap().remove(0)), StoreErrorKind::Conflict);
        crate::doctor::unanswered(&store, &lease).await;
        let failure = tidegate_core::message::Failure::new("timeout", "gone");
        let unknown = Settle { outcome: Outcome::Unknown { failure }, ..completion(&lease) };
        store.settle(vec![unknown]).await.unwrap().remove(0).unwrap();
        let refused = store.erase(erase(id, ALL)).await.unwrap().remove(0).unwrap_err();
        assert!(refused.what().contains("it is parked"), "{refused}");
        let without = Erase { act: Act { actor: "tester".into(), reason: " ".into() }, ..erase(id, ALL) };
        assert_eq!(kind_of(store.erase(without).await), StoreErrorKind::Invalid);
        let view = store.inspect(vec![id]).await.unwrap().remove(0).unwrap();
        assert!(view.message.payload.contains(ADA));
    });
}
