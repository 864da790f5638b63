//! Breaks one rule at a time in a copy of this process, and demands that a test fails.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tidegate_canaries::{CAUGHT, Canary, Caught, page};
use tidegate_core::{Clock as _, SystemClock};

/// No canary may live longer.
const LIMIT: Duration = Duration::from_secs(60);
/// How many copies run at once.
const AT_ONCE: usize = 2;

/// The rings in the order of what they cost, for a walk from the cheapest on. The tests of one ring share a process.
const RINGS: &[&[&str]] = &[
    &["decisions::"],
    &[
        "client::",
        "effects::",
        "faults::",
        "follow_ups::",
        "operators::",
        "restored::",
        "review::",
        "testing::",
        "worker::",
    ],
    &["conformance::"],
    &["broken_commits::"],
    &["model_check::"],
];

/// A copy of this process, killed when it is dropped: a test that fails leaves none behind.
struct Copy(Child);

impl Copy {
    fn start(canary: Option<Canary>, arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
        // A walk is asked for by a variable, and a copy must not begin one.
        command.env_remove("TIDEGATE_CANARY_WALK").env_remove("TIDEGATE_CANARY");
        if let Some(canary) = canary {
            command.env("TIDEGATE_CANARY", canary.name());
        }
        Self(command.spawn().unwrap())
    }

    /// The first line it says that `wanted` likes, within the limit; what it said otherwise.
    fn says(&mut self, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, Vec<String>> {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the copy, which ends with `self` at the latest.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let clock = SystemClock::new();
        let started = clock.monotonic();
        let mut said = Vec::new();
        loop {
            let left = within.saturating_sub(clock.monotonic().saturating_sub(started));
            match lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Disconnected) => return Err(said),
                Err(RecvTimeoutError::Timeout) => {
                    said.push(format!("... and had not ended after {within:?}"));
                    return Err(said);
                }
            }
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Does something for each, a few at a time; what it said, in their order.
fn for_each<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = Mutex::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let mine = {
                        let mut next = next.lock().unwrap();
                        *next += 1;
                        *next - 1
                    };
                    let Some(one) = all.get(mine) else { return };
                    let result = work(one);
                    done.lock().unwrap().push((mine, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn failed(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... FAILED")
}

#[test]
fn every_canary_is_caught_by_its_test_within_a_minute() {
    let clock = SystemClock::new();
    let results = for_each(CAUGHT, |Caught { canary, by }| {
        let started = clock.monotonic();
        let mut copy = Copy::start(Some(*canary), &[by, "--exact", "--test-threads=1"]);
        let caught = copy.says(LIMIT, failed);
        (clock.monotonic() - started, caught)
    });
    let mut escaped = Vec::new();
    println!("{:<30} {:>7}  caught by", "canary", "seconds");
    for (Caught { canary, by }, (took, caught)) in CAUGHT.iter().zip(results) {
        match caught {
            Ok(_) => println!("{:<30} {:>7.2}  {by}", canary.name(), took.as_secs_f64()),
            Err(said) => escaped.push(format!("{canary} is not caught by {by}: {said:#?}")),
        }
    }
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}

#[test]
fn with_nothing_broken_the_same_tests_pass() {
    let mut names: Vec<&str> = CAUGHT.iter().map(|caught| caught.by).collect();
    names.sort_unstable();
    names.dedup();
    let mut copy = Copy::start(None, &[&names[..], &["--exact"]].concat());
    let passed = format!("test result: ok. {} passed", names.len());
    let result = copy.says(LIMIT, |line| line.starts_with(&passed));
    assert!(result.is_ok(), "{:#?}", result.unwrap_err());
}

#[test]
fn every_canary_stands_in_the_table_once_in_the_order_of_the_protocol() {
    let listed: Vec<Canary> = CAUGHT.iter().map(|caught| caught.canary).collect();
    assert_eq!(listed, Canary::ALL);
}

#[test]
fn the_page_in_the_documentation_is_this_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reliability/canaries.md");
    let mut written = String::new();
    std::fs::File::open(path).unwrap().read_to_string(&mut written).unwrap();
    assert!(written == page(), "hint: cargo run -p tidegate-canaries -- table > docs/reliability/canaries.md");
}

/// Not a check but a search: which ring notices first, when nobody says where to look. Minutes long, so asked for.
#[test]
#[expect(clippy::disallowed_methods, reason = "how a tester asks for more than usual")]
fn walk() {
    let Ok(asked) = std::env::var("TIDEGATE_CANARY_WALK") else { return };
    let clock = SystemClock::new();
    let wanted: Vec<Canary> = match Canary::named(&asked) {
        Some(canary) => vec![canary],
        None => Canary::ALL.to_vec(),
    };
    let results = for_each(&wanted, |canary| {
        let started = clock.monotonic();
        for ring in RINGS {
            let left = LIMIT.saturating_sub(clock.monotonic() - started);
            let mut copy = Copy::start(Some(*canary), &[ring, &["--test-threads=8"][..]].concat());
            if let Ok(line) = copy.says(left, failed) {
                let took = (clock.monotonic() - started).as_secs_f64();
                println!("{:<30} {took:>7.2}  {line}", canary.name());
                return true;
            }
        }
        println!("{:<30}          not caught", canary.name());
        false
    });
    assert!(results.into_iter().all(|caught| caught), "a canary lives");
}
