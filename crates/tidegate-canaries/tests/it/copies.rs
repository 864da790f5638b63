//! Copies of this test program in which a rule is broken, and whether their tests notice.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use tidegate_canaries::{Canary, Caught};
use tidegate_core::{Clock as _, SystemClock};

/// No canary may live longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How many copies run at once.
const AT_ONCE: usize = 2;

/// A copy of this process, killed when it is dropped: a test that fails leaves none behind.
pub(crate) struct Copy(Child);

impl Copy {
    /// Told what stands in `environment`, beside what it inherits.
    pub(crate) fn start(canary: Option<Canary>, arguments: &[&str], environment: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
        // A walk is asked for by a variable, and a copy must not begin one.
        command.env_remove("TIDEGATE_CANARY_WALK").env_remove("TIDEGATE_CANARY");
        if let Some(canary) = canary {
            command.env("TIDEGATE_CANARY", canary.name());
        }
        Self(command.spawn().unwrap())
    }

    /// The first line it says that `wanted` likes, within the limit; what it said otherwise.
    pub(crate) fn says(&mut self, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, Vec<String>> {
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
pub(crate) fn for_each<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
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

pub(crate) fn failed(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... FAILED")
}

/// Demands that each is caught by its test, within the limit.
#[expect(clippy::print_stdout, reason = "the table is for whoever looks at the run")]
pub(crate) fn all_are_caught(table: &[Caught], environment: &[(&str, String)]) {
    let clock = SystemClock::new();
    let results = for_each(table, |Caught { canary, by }| {
        let started = clock.monotonic();
        let mut copy = Copy::start(Some(*canary), &[by, "--exact", "--test-threads=1"], environment);
        let caught = copy.says(LIMIT, failed);
        (clock.monotonic() - started, caught)
    });
    let mut escaped = Vec::new();
    println!("{:<30} {:>7}  caught by", "canary", "seconds");
    for (Caught { canary, by }, (took, caught)) in table.iter().zip(results) {
        match caught {
            Ok(_) => println!("{:<30} {:>7.2}  {by}", canary.name(), took.as_secs_f64()),
            Err(said) => escaped.push(format!("{canary} is not caught by {by}: {said:#?}")),
        }
    }
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}

/// Demands that the same tests pass when nothing is broken.
pub(crate) fn all_pass(table: &[Caught], environment: &[(&str, String)]) {
    let mut names: Vec<&str> = table.iter().map(|caught| caught.by).collect();
    names.sort_unstable();
    names.dedup();
    let mut copy = Copy::start(None, &[&names[..], &["--exact"]].concat(), environment);
    let passed = format!("test result: ok. {} passed", names.len());
    // All of them in one process: the time for one would be too short for a machine that is busy.
    let result = copy.says(LIMIT * 5, |line| line.starts_with(&passed));
    assert!(result.is_ok(), "{:#?}", result.unwrap_err());
}
