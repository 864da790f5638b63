//! Who keeps a lease from whom, and who gets one back: a message whose worker died must be free soon, whatever else goes on.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::effect::{EffectPolicy, Reached};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Extend, Lease, Settle};
use tidegate_core::{Clock as _, Store as _, StoreError, StoreErrorKind, SystemClock};
use tidegate_postgres::{EffectInError, Options, PostgresStore, Work};
use tidegate_testkit::ManualClock;
use tokio::task::JoinHandle;

use crate::engine::{Schema, sql};
use crate::fixture::{
    EVERY, Place, at_most_once, claim, claim_for, completion, connect, intent, is_well, message, open, reached, run,
    somebody_waits, sweep,
};
use crate::process::Process;
use crate::wire::{Ear, between};

/// How a worker learns which store is its.
const ASSIGNMENT: &str = "TIDEGATE_TEST_WORKER_TO_DIE";
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each as refused or not.
type Kinds = Vec<Result<(), StoreErrorKind>>;

fn kinds<T>(verdicts: Vec<Result<T, StoreError>>) -> Kinds {
    verdicts.into_iter().map(|verdict| verdict.map(drop).map_err(|error| error.kind())).collect()
}

/// What a worker writes under its leases.
type Writes = fn(Arc<PostgresStore>, Vec<Lease>) -> JoinHandle<Kinds>;

fn settles(store: Arc<PostgresStore>, leases: Vec<Lease>) -> JoinHandle<Kinds> {
    tokio::spawn(async move { kinds(store.settle(leases.iter().map(completion).collect()).await.unwrap()) })
}

fn extends(store: Arc<PostgresStore>, leases: Vec<Lease>) -> JoinHandle<Kinds> {
    let of = |lease: &Lease| Extend {
        id: lease.message.id,
        token: lease.token,
        lease: Duration::from_secs(3600),
        alone: false,
    };
    tokio::spawn(async move { kinds(store.extend(leases.iter().map(of).collect()).await.unwrap()) })
}

fn journals(store: Arc<PostgresStore>, leases: Vec<Lease>) -> JoinHandle<Kinds> {
    let of = |lease: &Lease| intent(lease, at_most_once());
    tokio::spawn(async move { kinds(store.journal(leases.iter().map(of).collect()).await.unwrap()) })
}

fn books(store: Arc<PostgresStore>, leases: Vec<Lease>) -> JoinHandle<Kinds> {
    tokio::spawn(async move {
        let mut verdicts = Vec::new();
        for Lease { message, token, .. } in leases {
            let work: Work = Box::new(|_| Box::pin(async { Ok("1".into()) }));
            let booked = store.effect_in(message.id, token, credit(), work).await.map(drop);
            verdicts.push(booked.map_err(|error| match error {
                EffectInError::Store(error) => error.kind(),
                EffectInError::Work(error) => panic!("the work: {error}"),
            }));
        }
        verdicts
    })
}

fn credit() -> Reached {
    Reached { quarantine: Duration::ZERO, ..reached("credit", EffectPolicy::Transactional) }
}

#[test]
fn a_late_writer_that_waits_for_somebody_keeps_its_successors_message_from_nobody() {
    for (verb, late) in [("settle", settles as Writes), ("extend", extends), ("journal", journals)] {
        run(async {
            let schema = Schema::new();
            let clock = Arc::new(ManualClock::default());
            let options = || Options { clock: Some(clock.clone()), ..Options::default() };
            let one = PostgresStore::open(&schema.url(), options()).await.unwrap();
            let other = PostgresStore::open(&schema.url(), options()).await.unwrap();
            one.enqueue(vec![message("a"), message("b")]).await.unwrap();
            // It was asleep: both of its messages were taken over, and one of them has another worker.
            let stale = claim(&one, 2).await;
            clock.advance(Duration::from_secs(3601));
            assert_eq!(other.sweep(sweep()).await.unwrap().taken_over.len(), 2);
            let successor = claim(&other, 1).await.remove(0);
            let current = claim(&one, 1).await.remove(0);
            let stale = stale.into_iter().find(|lease| lease.message.id == successor.message.id).unwrap();
            assert!(stale.message.id < current.message.id, "locked first, if it is locked");

            let table = format!("{}.lease", schema.name());
            let mut stopped = connect().await;
            let tx = stopped.transaction().await.unwrap();
            let hold = format!("select from {table} where id = $1 for update");
            tx.execute(&hold, &[&current.message.id.as_i64()]).await.unwrap();
            let under_way = late(Arc::clone(&one), vec![stale, current]);
            somebody_waits(&table).await;

            clock.advance(Duration::from_secs(3601));
            let taken = other.sweep(sweep()).await.unwrap().taken_over;
            let taken: Vec<_> = taken.into_iter().map(|taken| taken.id).collect();
            assert_eq!(taken, [successor.message.id], "{verb}");
            tx.rollback().await.unwrap();
            let verdicts = under_way.await.unwrap();
            assert_eq!(verdicts[0], Err(StoreErrorKind::LeaseLost), "{verb}");
            one.close().await;
            other.close().await;
        });
    }
}

/// A process that claims two messages and settles both when it is told to.
fn worker(url: &str) -> Process {
    Process::start("leases::a_worker_in_a_process_of_its_own", &[(ASSIGNMENT, url)], "@claimed")
}

#[test]
fn a_worker_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let Ok(url) = std::env::var(ASSIGNMENT) else { return };
    run(async {
        let store = open(&url).await;
        // They lapse at once: whoever looks takes what is free.
        let leases = claim_for(&store, 2, Duration::from_millis(1)).await;
        assert_eq!(leases.len(), 2);
        println!("\n@claimed");
        let mut told = String::new();
        std::io::stdin().read_line(&mut told).expect("its parent says something");
        // Its parent kills it in the midst of this.
        let _killed_before = store.settle(leases.iter().map(completion).collect()).await;
    });
}

#[test]
fn a_worker_that_dies_while_its_settlement_waits_holds_its_messages_no_longer() {
    run(async {
        let place = Place::new().await;
        let stored = place.store.enqueue(vec![message("a"), message("b")]).await.unwrap();
        assert!(stored.iter().all(Result::is_ok));
        let mut worker = worker(&place.schema.url());
        let table = place.name("lease");
        let mut stopped = connect().await;
        let tx = stopped.transaction().await.unwrap();
        let hold = format!("select from {table} where id = (select max(id) from {table}) for update");
        tx.execute(&hold, &[]).await.unwrap();
        worker.tell("settle");
        let clock = SystemClock::new();
        somebody_waits(&table).await;
        let waits_since = clock.monotonic();
        worker.kill();
        // The lock is still held: the server finds out by itself that nobody waits for it any more.
        let mut beat = tokio::time::interval(EVERY);
        while place.store.sweep(sweep()).await.unwrap().taken_over.is_empty() {
            let waited = clock.monotonic() - waits_since;
            assert!(waited < PATIENCE, "the message of a dead worker is not free after {waited:?}");
            beat.tick().await;
        }
        tx.rollback().await.unwrap();
    });
}

#[test]
fn the_server_looks_after_whoever_it_works_for_in_every_transaction_of_a_store() {
    run(async {
        let place = Place::new().await;
        // What is set in the transaction that stores a message, and in that of an effect in the store's database.
        let seen = format!(
            "create table {0}.seen (setting text);
             create function {0}.see() returns trigger language plpgsql as $$ begin
                insert into {0}.seen values (current_setting('client_connection_check_interval')); return new; end $$;
             create trigger see before insert on {0}.message for each row execute function {0}.see();
             create trigger see before insert on {0}.effect for each row execute function {0}.see()",
            place.schema.name()
        );
        sql(&seen);
        place.store.enqueue(vec![message("a")]).await.unwrap().remove(0).unwrap();
        let lease = claim(&place.store, 1).await.remove(0);
        let work: Work = Box::new(|_| Box::pin(async { Ok("1".into()) }));
        place.store.effect_in(lease.message.id, lease.token, credit(), work).await.unwrap();
        let settings = sql(&format!("select setting from {}", place.name("seen")));
        assert_eq!(settings.lines().map(str::trim).collect::<Vec<_>>(), ["500ms", "500ms"]);
    });
}

#[test]
fn a_run_about_which_nothing_can_be_decided_keeps_its_lease_and_the_others_end() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("a"), message("b")]).await.unwrap();
        let leases = claim(&place.store, 2).await;
        place.store.journal(vec![intent(&leases[0], at_most_once())]).await.unwrap().remove(0).unwrap();
        // Its journal is gone: nothing that it says can be believed.
        sql(&format!("delete from {}", place.name("effect")));
        let verdicts = place.store.settle(leases.iter().map(completion).collect()).await.unwrap();
        assert_eq!(verdicts[0].as_ref().unwrap_err().kind(), StoreErrorKind::Corrupt);
        assert_eq!(verdicts[1].as_ref().unwrap().state, State::Completed);
        let progress = place.store.progress(vec![leases[0].message.id]).await.unwrap().remove(0).unwrap();
        assert_eq!(progress.state, State::Leased);
        let extend =
            Extend { id: leases[0].message.id, token: leases[0].token, lease: Duration::from_secs(60), alone: false };
        place.store.extend(vec![extend]).await.unwrap().remove(0).unwrap();
    });
}

#[test]
fn what_follows_from_a_message_may_be_one_that_ends_in_the_same_call() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("a"), message("b")]).await.unwrap();
        let leases = claim(&place.store, 2).await;
        let follows = Settle { then: vec![message("b")], ..completion(&leases[0]) };
        let verdicts = place.store.settle(vec![follows, completion(&leases[1])]).await.unwrap();
        let settled: Vec<_> = verdicts.into_iter().map(Result::unwrap).collect();
        assert_eq!(settled[0].follow_ups, [leases[1].message.id]);
        assert!(settled.iter().all(|settled| settled.state == State::Completed));
    });
}

/// A process that is stopped in the midst of a COPY is neither idle nor waiting for a lock: no time limit of the server's ends it.
#[test]
fn a_process_that_falls_silent_in_a_copy_is_ended_and_what_it_locked_is_taken_over() {
    run(async {
        let schema = Schema::new();
        let store = PostgresStore::open(&schema.url(), Options::default()).await.unwrap();
        store.enqueue(vec![message("a")]).await.unwrap();
        claim_for(&store, 1, Duration::from_millis(1)).await;
        let mut silent = connect().await;
        let tx = silent.transaction().await.unwrap();
        tx.execute(&format!("select from {}.lease for update", schema.name()), &[]).await.unwrap();
        let copy = format!("copy {}.ready (lane, pos, due_at, id) from stdin", schema.name());
        let sink = tx.copy_in::<_, std::io::Cursor<Vec<u8>>>(&copy).await.unwrap();
        let taken_over = async {
            let mut beat = tokio::time::interval(EVERY);
            while store.sweep(sweep()).await.unwrap().taken_over.is_empty() {
                beat.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, taken_over).await.unwrap();
        drop(sink);
        store.close().await;
    });
}

/// Spoils the beginning of one transaction.
#[derive(Debug, Default)]
struct Spoiler(AtomicBool);

impl Ear for Spoiler {
    fn client_speaks(&self, said: &mut [u8]) {
        const BEGIN: &[u8] = b"begin isolation level";
        let at = said.windows(BEGIN.len()).position(|text| text == BEGIN);
        if let Some(at) = at
            && self.0.swap(false, Ordering::SeqCst)
        {
            said[at] = b'x';
        }
    }

    fn server_speaks(&self) {}
}

/// The server carries out what was sent along with a beginning that it refused, each statement by itself.
#[test]
fn a_settlement_whose_transaction_could_not_begin_takes_no_lease_away() {
    run(async {
        let schema = Schema::new();
        let spoiler = Arc::new(Spoiler::default());
        let ear = Arc::clone(&spoiler);
        let url = between(&schema, move || Arc::clone(&ear)).await;
        let store = PostgresStore::open(&url, Options::default()).await.unwrap();
        store.enqueue(vec![message("a")]).await.unwrap();
        let lease = claim(&store, 1).await.remove(0);
        spoiler.0.store(true, Ordering::SeqCst);
        let refused = store.settle(vec![completion(&lease)]).await.expect_err("it could not begin");
        assert_eq!(refused.kind(), StoreErrorKind::Unavailable);
        assert!(refused.what().contains("syntax error at or near \"xegin\""), "{refused}");
        let progress = store.progress(vec![lease.message.id]).await.unwrap().remove(0);
        assert_eq!(progress.map(|progress| progress.state), Some(State::Leased));
        is_well(&schema).await;
        let settled = store.settle(vec![completion(&lease)]).await.unwrap().remove(0).unwrap();
        assert_eq!((settled.state, settled.repeated), (State::Completed, false));
        store.close().await;
    });
}

/// The snapshot of a statement that waited for the end of another transaction does not show what came back with it.
#[test]
fn whoever_waited_for_a_settlement_that_gave_its_lease_back_is_not_told_that_it_is_lost() {
    let (undecided, held) = (Err(StoreErrorKind::Corrupt), Ok(()));
    for (verb, writes, expected) in [
        ("settle", settles as Writes, undecided),
        ("journal", journals, undecided),
        ("effect", books, undecided),
        ("extend", extends, held),
    ] {
        run(async {
            let place = Place::new().await;
            let other = open(&place.schema.url()).await;
            place.store.enqueue(vec![message("a"), message("b")]).await.unwrap();
            let leases = claim(&place.store, 2).await;
            place.store.journal(vec![intent(&leases[0], at_most_once())]).await.unwrap().remove(0).unwrap();
            // Its journal is gone: nothing can be decided about it.
            sql(&format!("delete from {}", place.name("effect")));
            let mut stopped = connect().await;
            let tx = stopped.transaction().await.unwrap();
            tx.batch_execute(&format!("lock table {} in share mode", place.name("result"))).await.unwrap();
            let first = settles(Arc::clone(&place.store), leases.clone());
            somebody_waits(&format!("into {}", place.name("result"))).await;
            let second = writes(Arc::clone(&other), leases[..1].to_vec());
            somebody_waits(&format!("from {}", place.name("lease"))).await;
            tx.rollback().await.unwrap();
            assert_eq!(first.await.unwrap(), [Err(StoreErrorKind::Corrupt), Ok(())]);
            assert_eq!(second.await.unwrap(), [expected], "{verb}");
            other.close().await;
        });
    }
}
