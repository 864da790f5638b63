//! What one process does for the whole fleet moves to another one when it dies.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::store::SweepRequest;
use tidegate_core::{Clock as _, Store as _, SystemClock, failpoint};
use tidegate_postgres::{Options, PostgresStore};

use crate::engine::sql;
use crate::fixture::{Place, claim, claim_for, connect, message, run, somebody_waits};
use crate::process::Process;

/// How a sweeper learns which store is its.
const ASSIGNMENT: &str = "TIDEGATE_TEST_SWEEPER";
/// Set where it is to stop in the midst of its first sweep.
const STOPS: &str = "TIDEGATE_TEST_SWEEPER_STOPS";
/// How often a sweeper sweeps, and how often its parent looks.
const EVERY: Duration = Duration::from_millis(50);

/// A process that does nothing but sweep, until its parent is gone.
fn sweeper(url: &str) -> Process {
    Process::start("duties::a_sweeper_in_a_process_of_its_own", &[(ASSIGNMENT, url)], "@sweeps")
}

/// Stopped before its first sweep is committed.
fn stopped_sweeper(url: &str) -> Process {
    Process::start("duties::a_sweeper_in_a_process_of_its_own", &[(ASSIGNMENT, url), (STOPS, "1")], "@stopped")
}

#[test]
fn a_sweeper_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let (Ok(url), stops) = (std::env::var(ASSIGNMENT), std::env::var(STOPS).is_ok()) else { return };
    if stops {
        let stop = |_: &'static str| {
            println!("\n@stopped");
            loop {
                std::thread::park();
            }
        };
        failpoint::arm("sweep.before_commit", 1, stop).expect("there is such a place");
    }
    // The parent closes the pipe, or is gone: both end the thread, and the process with it.
    let parent = std::thread::spawn(|| std::io::stdin().read_line(&mut String::new()));
    run(async {
        let store = PostgresStore::open(&url, Options::default()).await.expect("a store can be opened");
        println!("\n@sweeps");
        let mut beat = tokio::time::interval(EVERY);
        while !parent.is_finished() {
            beat.tick().await;
            store.sweep(request()).await.expect("a sweep is answered");
        }
    });
}

fn request() -> SweepRequest {
    SweepRequest { take_over: true, limit: 100, retention: Some(Duration::from_secs(7 * 24 * 3600)), unit: 0.5 }
}

/// Who has a duty, once somebody other than this has.
async fn holder_other_than(place: &Place, duty: &str, dead: &str) -> String {
    let ask = format!("select holder from {} where name = '{duty}'", place.name("duty"));
    let mut beat = tokio::time::interval(EVERY);
    for _ in 0..400 {
        beat.tick().await;
        let holder = sql(&ask).trim().to_owned();
        if holder.starts_with("process ") && holder != dead {
            return holder;
        }
    }
    panic!("{duty} stays with {dead:?}");
}

#[test]
fn the_duties_of_a_process_that_is_killed_move_within_seconds_and_are_done() {
    run(async {
        let place = Place::new().await;
        let mut fleet = [sweeper(&place.schema.url()), sweeper(&place.schema.url())];
        let first = holder_other_than(&place, "sweep", "").await;
        let dead = fleet.iter().position(|process| process.name() == first).expect("one of the two");

        // A worker that is gone as well: only a sweep brings its message back.
        place.store.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert_eq!(claim_for(&place.store, 1, Duration::from_millis(1)).await.len(), 1);
        let clock = SystemClock::new();
        fleet[dead].kill();
        let killed_at = clock.monotonic();
        let second = holder_other_than(&place, "sweep", &first).await;
        assert_eq!(second, fleet[1 - dead].name());
        assert_eq!(holder_other_than(&place, "retention", &first).await, second);
        let took = clock.monotonic() - killed_at;
        assert!(took < Duration::from_secs(10), "it took {took:?}");

        let ready = format!(
            "select count(*) from {0} where flags & 2 = 2 union all select count(*) from {1} where flags & 2 = 2",
            place.name("ready"),
            place.name("sched")
        );
        let mut beat = tokio::time::interval(EVERY);
        for _ in 0..400 {
            if sql(&ready).lines().any(|count| count.trim() == "1") {
                return;
            }
            beat.tick().await;
        }
        panic!("nobody took the lapsed lease over");
    });
}

#[test]
fn of_many_sweepers_one_does_it_and_the_others_take_nothing() {
    run(async {
        let place = Place::new().await;
        let other = crate::fixture::open(&place.schema.url()).await;
        let token = format!("select encode(token, 'hex') from {} where name = 'sweep'", place.name("duty"));
        // Whoever comes back in time keeps it. On a machine that is busy nobody may: then once more.
        for _ in 0..50 {
            place.store.sweep(request()).await.unwrap();
            let first = sql(&token);
            // The other one last: taken from each other each time, the duty would be its own then.
            for _ in 0..3 {
                place.store.sweep(request()).await.unwrap();
                other.sweep(request()).await.unwrap();
            }
            if sql(&token) == first {
                return;
            }
        }
        panic!("it changes hands each time");
    });
}

#[test]
fn a_sweeper_that_leaves_leases_alone_does_not_keep_the_others_from_them() {
    run(async {
        let place = Place::new().await;
        let other = crate::fixture::open(&place.schema.url()).await;
        // It was stopped, woke up, and waits for as long as a lease lasts: whoever had the duty meanwhile is dead.
        let asleep = || SweepRequest { take_over: false, ..request() };
        place.store.sweep(asleep()).await.unwrap();
        lapsed_lease(&place).await;
        for _ in 0..3 {
            let swept = place.store.sweep(asleep()).await.unwrap();
            assert!(swept.taken_over.is_empty(), "{swept:?}");
        }
        let swept = other.sweep(request()).await.unwrap();
        assert_eq!(swept.taken_over.len(), 1, "{swept:?}");
        // Nor does it take the duty from whoever has it.
        let holder = format!("select encode(token, 'hex') from {} where name = 'sweep'", place.name("duty"));
        // On a machine that is busy its time may be over before the other one comes: then once more.
        for _ in 0..50 {
            other.sweep(request()).await.unwrap();
            let first = sql(&holder);
            place.store.sweep(asleep()).await.unwrap();
            if sql(&holder) == first {
                return;
            }
        }
        panic!("it takes the duty each time");
    });
}

/// A message whose worker is gone, and whose lease is over.
async fn lapsed_lease(place: &Place) {
    place.store.enqueue(vec![message("m")]).await.expect("answered").remove(0).expect("stored");
    assert_eq!(claim_for(&place.store, 1, Duration::from_millis(1)).await.len(), 1);
    let lapsed = format!(
        "select count(*) from {} where until < extract(epoch from clock_timestamp()) * 1000 - 1",
        place.name("lease")
    );
    let mut beat = tokio::time::interval(Duration::from_millis(1));
    while sql(&lapsed).trim() != "1" {
        beat.tick().await;
    }
}

#[test]
fn a_process_that_is_stopped_inside_its_sweep_keeps_the_others_from_it_for_seconds_only() {
    run(async {
        let place = Place::new().await;
        lapsed_lease(&place).await;
        let stopped = stopped_sweeper(&place.schema.url());
        let swept = place.store.sweep(request()).await.unwrap();
        assert!(swept.taken_over.is_empty(), "both the duty and the lease are locked: {swept:?}");
        let mut beat = tokio::time::interval(EVERY);
        for _ in 0..400 {
            beat.tick().await;
            if place.store.sweep(request()).await.unwrap().taken_over.len() == 1 {
                return;
            }
        }
        panic!("{} holds it for as long as it is stopped", stopped.name());
    });
}

#[test]
fn claims_of_which_no_lease_is_left_are_forgotten_in_bounded_steps() {
    run(async {
        let place = Place::new().await;
        place.store.enqueue(vec![message("m")]).await.unwrap().remove(0).unwrap();
        assert_eq!(claim(&place.store, 1).await.len(), 1);
        let claimed = place.name("claimed");
        sql(&format!(
            "update {claimed} set at = 0;
             insert into {claimed} (nonce, at) select decode(md5(n::text), 'hex'), 0 from generate_series(1, 10001) n"
        ));
        let left = || sql(&format!("select count(*) from {claimed}")).trim().to_owned();
        let swept = place.store.sweep(request()).await.unwrap();
        assert_eq!((swept.more, left().as_str()), (true, "2"), "no more than 10,000 in one transaction");
        let swept = place.store.sweep(request()).await.unwrap();
        assert_eq!((swept.more, left().as_str()), (false, "1"), "that of a message that runs stays");
    });
}

#[test]
fn a_claim_that_is_made_again_while_it_is_about_to_be_forgotten_stays_known() {
    run(async {
        let place = Place::new().await;
        let claimed = place.name("claimed");
        sql(&format!("insert into {claimed} (nonce, at) values ('\\x01', 0)"));
        let mut again = connect().await;
        let tx = again.transaction().await.unwrap();
        let now = "(extract(epoch from clock_timestamp()) * 1000)::bigint";
        tx.execute(&format!("update {claimed} set at = {now}"), &[]).await.unwrap();
        let store = Arc::clone(&place.store);
        let sweeping = tokio::spawn(async move { store.sweep(request()).await.unwrap() });
        somebody_waits(&format!("delete from {claimed}")).await;
        tx.commit().await.unwrap();
        sweeping.await.unwrap();
        assert_eq!(sql(&format!("select count(*) from {claimed}")).trim(), "1");
    });
}
