//! What an adversary tried against the engine: each of these was once possible, or looked as if it were.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::SystemRandom;
use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, EffectRow, IntentTimes, MAX_RECONCILE, Reached};
use tidegate_core::id::{EffectName, IdempotencyKey, Kind, Nonce, QueueName, Tenant, WorkerId};
use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::{NewMessage, Payload};
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    ClaimRequest, Enqueued, Filter, Journal, JournalWrite, Lease, QueueSlots, Settle, SweepRequest,
};
use tidegate_core::{Store as _, StoreError, StoreErrorKind};
use tidegate_sqlite::{Options, SqliteStore};
use tidegate_testkit::ManualClock;

use crate::fixture::{Place, claim, completion, kind, kind_of, message, queue, run, started, transactional};

const MINUTE: Duration = Duration::from_secs(60);

fn keyed(window: Duration) -> Reached {
    Reached {
        effect: EffectId { name: EffectName::new("capture").expect("a valid name"), item: None },
        policy: EffectPolicy::Keyed { window, or_lookup: false },
        request_hash: [7; 16],
        quarantine: MINUTE,
    }
}

fn journal(store: &SqliteStore, lease: &Lease, write: JournalWrite) -> Result<EffectRow, StoreError> {
    let item = Journal { id: lease.message.id, token: lease.token, before: Vec::new(), write };
    run(store.journal(vec![item])).expect("answered").remove(0)
}

fn intent(store: &SqliteStore, lease: &Lease, reached: &Reached) -> Result<EffectRow, StoreError> {
    let times = IntentTimes { send_within: Duration::from_secs(10), reconcile_for: MAX_RECONCILE };
    journal(store, lease, JournalWrite::Intent { reached: reached.clone(), times })
}

#[test]
fn a_clock_that_is_set_back_does_not_lengthen_the_time_a_remote_remembers_a_key() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::default());
    let options = Options { clock: Arc::clone(&clock) as _, ..Options::default() };
    let store = SqliteStore::open(place.path(), options).expect("opened");
    let lease = run(started(&store, "m"));
    let effect = keyed(MINUTE * 50);
    let row = intent(&store, &lease, &effect).expect("a first send");
    let unknown = EffectAnswer::Unknown { why: "time-out".into() };
    journal(&store, &lease, JournalWrite::Answer { effect: row.effect, seq: row.seq, answer: unknown }).expect("noted");
    clock.advance(MINUTE * 40);
    intent(&store, &lease, &effect).expect("the remote still knows the key");
    clock.jump_back(MINUTE * 35);
    clock.advance(MINUTE * 9);
    intent(&store, &lease, &effect).expect("49 minutes after the first send");
    clock.advance(MINUTE * 2);
    assert_eq!(
        kind_of(intent(&store, &lease, &effect)),
        StoreErrorKind::Conflict,
        "50 minutes are over, whatever the wall says"
    );
}

#[test]
fn a_transactional_effect_may_enqueue_into_its_own_store() {
    let place = Place::new();
    // A clock that stands still: ids of one millisecond are told apart by nothing but their count.
    let options = Options { clock: Arc::new(ManualClock::default()), ..Options::default() };
    let store = SqliteStore::open(place.path(), options).expect("opened");
    let lease = run(started(&store, "first"));
    let inner = Arc::clone(&store);
    let work = Box::new(move |tx: &rusqlite::Connection| {
        for verdict in inner.enqueue_in(tx, vec![message("from-within")])? {
            verdict?;
        }
        Ok(Arc::from("true"))
    });
    let blocker = place.connection();
    blocker.execute_batch("begin immediate").expect("the writer waits, so that the three calls share a group");
    let (before, made, after) = run(async {
        let calls = async {
            tokio::join!(
                biased;
                store.enqueue(vec![message("before")]),
                store.effect_in(lease.message.id, lease.token, transactional("book"), work),
                store.enqueue(vec![message("after")]),
            )
        };
        let release = async { blocker.execute_batch("rollback").expect("released") };
        tokio::join!(biased; calls, release).0
    });
    before.expect("answered").remove(0).expect("stored");
    made.expect("confirmed");
    after.expect("answered").remove(0).expect("stored");
    let ready = Filter { states: vec![State::Ready], limit: 10, ..Filter::default() };
    let mut keys: Vec<String> =
        run(store.list(ready)).expect("answered").iter().map(|message| message.key.as_str().to_owned()).collect();
    keys.sort();
    assert_eq!(keys, ["after", "before", "from-within"]);
    let settled = run(store.settle(vec![completion(&lease)])).expect("answered").remove(0).expect("settled");
    assert_eq!(settled.state, State::Completed);
    assert_eq!(run(claim(&store, 10)).len(), 3);
}

/// Rows that nobody can read are left for a person; they neither stop what lapsed after them nor keep the sweep busy.
#[test]
fn leases_that_cannot_be_read_are_in_nobodys_way() {
    let place = Place::new();
    let clock = Arc::new(ManualClock::default());
    let options = Options { clock: Arc::clone(&clock) as _, ..Options::default() };
    let store = SqliteStore::open(place.path(), options).expect("opened");
    let broken: Vec<_> = ["a", "b", "c"].map(|key| run(started(&store, key)).message.id.as_i64()).into();
    clock.advance(MINUTE);
    let good = run(started(&store, "good")).message.id;
    clock.advance(MINUTE * 61);
    let peer = place.connection();
    for id in &broken {
        peer.execute("update tide_lease set worker = '' where id = ?1", [id]).expect("spoilt");
    }
    let sweep = || {
        let request = SweepRequest { take_over: true, retention: None, limit: 2, unit: 0.5 };
        run(store.sweep(request)).expect("swept")
    };
    let first = sweep();
    assert_eq!(first.taken_over.iter().map(|taken| taken.id).collect::<Vec<_>>(), [good]);
    let second = sweep();
    assert!(second.taken_over.is_empty() && !second.more, "there is nothing to do at once: {second:?}");
    let left: i64 = peer.query_row("select count(*) from tide_lease", [], |row| row.get(0)).expect("counted");
    assert_eq!(left, 3, "kept for a person");
}

#[test]
fn a_journal_that_cannot_be_read_parks_its_message_and_takes_nobody_along() {
    let place = Place::new();
    let store = place.open();
    let lease = run(started(&store, "damaged"));
    let row = intent(&store, &lease, &keyed(MINUTE)).expect("a first send");
    let refused = JournalWrite::Answer { effect: row.effect, seq: row.seq, answer: EffectAnswer::NotDone };
    journal(&store, &lease, refused).expect("noted");
    let released = Settle { outcome: Outcome::Released, ..completion(&lease) };
    run(store.settle(vec![released])).expect("answered").remove(0).expect("given back");
    place.connection().execute("update tide_effect set key = 'x'", []).expect("spoilt");
    let innocent = run(store.enqueue(vec![message("innocent")])).expect("answered").remove(0).expect("stored");
    let leases = run(claim(&store, 5));
    let taken: Vec<_> = leases.iter().map(|lease| Enqueued::New { id: lease.message.id }).collect();
    assert_eq!(taken, [innocent]);
    let parked = "select count(*) from tide_held where state = 'parked'";
    assert_eq!(place.connection().query_row(parked, [], |row| row.get::<_, i64>(0)), Ok(1), "and is kept for a person");
}

#[test]
fn a_policy_that_cannot_be_read_refuses_settlements_of_its_own_kind_alone() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let other = Kind::new("other").expect("a valid name");
        store.declare(vec![(other.clone(), Policy::default())]).await.expect("declared");
        place.connection().execute("update tide_policy set declared_at = declared_at + 1", []).expect("spoilt");
        let key = IdempotencyKey::new("b").expect("a valid key");
        let theirs = NewMessage::new(queue(), other.clone(), key, Payload::from_json("1").expect("JSON"));
        for stored in store.enqueue(vec![message("a"), theirs]).await.expect("answered") {
            stored.expect("stored");
        }
        let request = ClaimRequest {
            worker: WorkerId::new("w").expect("a valid name"),
            tenant: Tenant::default(),
            queues: vec![QueueSlots { queue: queue(), slots: 2 }],
            kinds: vec![(kind(), 1), (other, 1)],
            nonce: Nonce::new(&SystemRandom),
            lease: Duration::from_secs(3600),
        };
        let leases = store.claim(request).await.expect("answered").leases;
        assert_eq!(leases.len(), 2);
        let verdicts = store.settle(leases.iter().map(completion).collect()).await.expect("a verdict for each");
        for (lease, verdict) in leases.iter().zip(verdicts) {
            assert_eq!(verdict.is_ok(), lease.message.kind == kind(), "{verdict:?}");
        }
    });
}

#[test]
fn a_queue_that_cannot_be_read_keeps_no_other_from_being_claimed() {
    let place = Place::new();
    let store = place.open();
    run(async {
        let spoilt = QueueName::new("zzz").expect("a valid name");
        let key = IdempotencyKey::new("b").expect("a valid key");
        let theirs = NewMessage::new(spoilt.clone(), kind(), key, Payload::from_json("1").expect("JSON"));
        for stored in store.enqueue(vec![message("a"), theirs]).await.expect("answered") {
            stored.expect("stored");
        }
        place.connection().execute("update tide_queue set max_depth = 7 where name = 'zzz'", []).expect("spoilt");
        let slots = |queue| QueueSlots { queue, slots: 2 };
        let request = ClaimRequest {
            worker: WorkerId::new("w").expect("a valid name"),
            tenant: Tenant::default(),
            queues: vec![slots(queue()), slots(spoilt)],
            kinds: vec![(kind(), 1)],
            nonce: Nonce::new(&SystemRandom),
            lease: Duration::from_secs(3600),
        };
        assert_eq!(store.claim(request).await.expect("what can be read comes first").leases.len(), 1);
    });
}
