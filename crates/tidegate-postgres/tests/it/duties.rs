//! What one process does for the whole fleet moves to another one when it dies.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate_core::store::SweepRequest;
use tidegate_core::{Clock as _, Store as _, SystemClock};
use tidegate_postgres::{Options, PostgresStore};

use crate::engine::sql;
use crate::fixture::{Place, claim_for, message, run};

/// How a sweeper learns which store is its.
const ASSIGNMENT: &str = "TIDEGATE_TEST_SWEEPER";
/// How often a sweeper sweeps, and how often its parent looks.
const EVERY: Duration = Duration::from_millis(50);

/// A process that does nothing but sweep, until its parent is gone.
struct Sweeper(Child);

impl Sweeper {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a running program has a file"))
            .args(["duties::a_sweeper_in_a_process_of_its_own", "--exact", "--nocapture"])
            .env(ASSIGNMENT, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts itself");
        let mut lines = BufReader::new(child.stdout.take().expect("asked for above")).lines();
        assert!(lines.any(|line| line.expect("text").contains("@sweeps")), "a sweeper says that it begins");
        Self(child)
    }

    /// As the row of a duty names it.
    fn name(&self) -> String {
        format!("process {}", self.0.id())
    }

    fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("a child can be waited for");
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn a_sweeper_in_a_process_of_its_own() {
    #[expect(clippy::disallowed_methods, reason = "the only way to tell this test that it is a child")]
    let Ok(url) = std::env::var(ASSIGNMENT) else { return };
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
        let mut fleet = [Sweeper::start(&place.schema.url()), Sweeper::start(&place.schema.url())];
        let first = holder_other_than(&place, "sweep", "").await;
        let dead = fleet.iter().position(|sweeper| sweeper.name() == first).expect("one of the two");

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
        place.store.sweep(request()).await.unwrap();
        let token = format!("select encode(token, 'hex') from {} where name = 'sweep'", place.name("duty"));
        let first = sql(&token);
        for _ in 0..3 {
            other.sweep(request()).await.unwrap();
            place.store.sweep(request()).await.unwrap();
        }
        assert_eq!(sql(&token), first, "whoever comes back in time keeps it");
    });
}
