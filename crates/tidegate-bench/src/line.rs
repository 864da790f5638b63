//! What a benchmark of several queues has in common: one command line, one payload, one count of what became of each
//! message, one JSON object at the end.
//!
//! Every queue is driven by a program of its own, because two crates that link SQLite cannot share one. They all include
//! this file (`peers/line`), so it uses nothing of Tidegate. `cargo xtask bench --peers` starts them by turns and reads
//! what they print.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Bytes of a payload that is not of this size are an error.
pub const PAYLOAD_BYTES: usize = 200;
/// Bytes of what the handler answers, as JSON.
pub const RESULT_BYTES: usize = 40;

/// What a program of the comparison is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Messages of the measured round.
    pub messages: u32,
    /// Handlers that may run at once.
    pub concurrency: u32,
    /// Tasks or threads that enqueue at once.
    pub producers: u32,
    /// Messages of one enqueue call.
    pub batch: u32,
    /// Finished messages that are in the file before anything is measured.
    pub preload: u32,
    /// Whether every message carries a key by which a second one is refused.
    pub keys: bool,
    /// One message at a time, from its enqueue to its durable end: for counting what each waits for.
    pub serial: bool,
    /// Where the file is, or is made: the disk that is measured.
    pub dir: PathBuf,
    /// No two rounds on one file may have the same.
    pub seed: u64,
    /// Settings that one queue has and the others have not.
    pub special: HashMap<String, String>,
}

impl Arguments {
    /// Reads `--name value` pairs, `--serial`, and `--set name=value` for what only one queue has.
    ///
    /// # Errors
    /// With the argument that is unknown, without its value, or no number.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            messages: 20_000,
            concurrency: 1000,
            producers: 8,
            batch: 250,
            preload: 0,
            keys: true,
            serial: false,
            dir: PathBuf::from("."),
            seed: 1,
            special: HashMap::new(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            if name == "--serial" {
                parsed.serial = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} has no value"))?;
            match name.as_str() {
                "--messages" => parsed.messages = number(&name, &value)?,
                "--concurrency" => parsed.concurrency = number(&name, &value)?,
                "--producers" => parsed.producers = number(&name, &value)?,
                "--batch" => parsed.batch = number(&name, &value)?,
                "--preload" => parsed.preload = number(&name, &value)?,
                "--seed" => parsed.seed = number(&name, &value)?,
                "--dir" => parsed.dir = PathBuf::from(value),
                "--payload" => {
                    if number::<usize>(&name, &value)? != PAYLOAD_BYTES {
                        return Err(format!("--payload {value}: every payload has {PAYLOAD_BYTES} bytes"));
                    }
                }
                "--keys" => {
                    parsed.keys = match value.as_str() {
                        "on" => true,
                        "off" => false,
                        _ => return Err(format!("--keys {value}: on or off")),
                    }
                }
                "--set" => {
                    let (name, value) = value.split_once('=').ok_or_else(|| format!("--set {value}: name=value"))?;
                    parsed.special.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if parsed.producers == 0 || parsed.batch == 0 || parsed.concurrency == 0 {
            return Err("--producers, --batch and --concurrency must be 1 or more".to_owned());
        }
        Ok(parsed)
    }

    /// A setting that only this queue has, or what it is without being said.
    ///
    /// # Errors
    /// When it is no number.
    pub fn special<T: std::str::FromStr>(&self, name: &str, otherwise: T) -> Result<T, String> {
        self.special.get(name).map_or(Ok(otherwise), |value| number(name, value))
    }

    /// The messages that are enqueued before a worker is there: they give the rate of enqueueing alone, and then warm up.
    #[must_use]
    pub fn warm_up(&self) -> u32 {
        self.messages.div_ceil(4)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} {value}: not a number that fits"))
}

/// What is enqueued: its number within the round, its key, and enough beside them for the size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Its place in the round.
    pub number: u32,
    /// A version 4 UUID, different in every round.
    pub key: String,
    /// The rest of the bytes.
    pub filler: String,
}

impl Payload {
    /// The payload with this number in the round with this seed.
    #[must_use]
    pub fn new(seed: u64, number: u32) -> Self {
        let mut payload = Self { number, key: key(seed, number), filler: String::new() };
        let around = r#"{"number":,"key":"","filler":""}"#.len() + payload.key.len() + number.to_string().len();
        payload.filler = "x".repeat(PAYLOAD_BYTES - around);
        payload
    }

    /// The one that is copied into the file before anything is measured. No round counts it.
    #[must_use]
    pub fn pattern() -> Self {
        Self::new(0, PATTERN)
    }

    /// The payloads of these numbers, in calls of so many.
    #[must_use]
    pub fn batches(seed: u64, numbers: std::ops::Range<u32>, batch: u32) -> Vec<Vec<Self>> {
        let payloads: Vec<Self> = numbers.map(|number| Self::new(seed, number)).collect();
        payloads.chunks(batch as usize).map(<[Self]>::to_vec).collect()
    }

    /// What the handler answers to it: forty bytes of JSON.
    #[must_use]
    pub fn answer(&self) -> String {
        format!("{}ok", self.key)
    }
}

const PATTERN: u32 = u32::MAX;

/// At random, as most clients make their keys, and the same ones from the same seed.
fn key(seed: u64, number: u32) -> String {
    let high = scatter(seed << 32 | u64::from(number)) & !0xf000 | 0x4000;
    let low = scatter(high ^ seed) & !(0b11 << 62) | 0b10 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// SplitMix64.
fn scatter(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// How often the handler ran for each message of a round.
#[derive(Debug)]
pub struct Runs {
    seed: u64,
    counts: Vec<AtomicU32>,
    strays: AtomicU32,
}

impl Runs {
    /// For the messages with numbers below `count`.
    #[must_use]
    pub fn new(seed: u64, count: u32) -> Self {
        Self { seed, counts: (0..count).map(|_| AtomicU32::new(0)).collect(), strays: AtomicU32::new(0) }
    }

    /// The handler: notes that it ran, and answers.
    pub fn handle(&self, payload: &Payload) -> String {
        match self.counts.get(payload.number as usize) {
            Some(count) if payload.key == key(self.seed, payload.number) => count.fetch_add(1, Ordering::Relaxed),
            None if payload.number == PATTERN => 0,
            Some(_) | None => self.strays.fetch_add(1, Ordering::Relaxed),
        };
        payload.answer()
    }
}

/// What a queue's file says about one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Of the payload.
    pub key: String,
    /// Whether the message is done with, and well.
    pub completed: bool,
    /// As it is stored, a JSON text; nothing if the queue keeps none.
    pub result: Option<String>,
}

/// What became of the messages of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Acknowledged as enqueued.
    pub enqueued: u32,
    /// With exactly one record that says completed; where a queue keeps none, gone from it.
    pub completed_once: u32,
    /// Neither completed nor there any more.
    pub lost: u32,
    /// There, but not completed.
    pub unfinished: u32,
    /// Records beyond the first of a message.
    pub duplicates: u32,
    /// Messages for which the handler ran more than once.
    pub ran_again: u32,
    /// Messages for which it never ran, and runs for messages nobody enqueued.
    pub ran_wrong: u32,
    /// Results that are not what the handler answered.
    pub results_wrong: u32,
    /// Results that are.
    pub results_right: u32,
}

impl Counts {
    /// From the records of a queue that keeps one of each message. Records of other rounds are passed over.
    #[must_use]
    pub fn of_records(runs: &Runs, records: impl IntoIterator<Item = Record>) -> Self {
        let numbers: HashMap<String, usize> =
            (0..).zip(&runs.counts).map(|(number, _)| (key(runs.seed, number), number as usize)).collect();
        let mut seen = vec![(0_u32, 0_u32); numbers.len()];
        let mut counts = Self::of_runs(runs);
        for record in records {
            let Some(number) = numbers.get(&record.key) else { continue };
            let (all, completed) = &mut seen[*number];
            *all += 1;
            *completed += u32::from(record.completed);
            if let Some(result) = record.result.filter(|_| record.completed) {
                let right = result == format!("\"{}ok\"", record.key);
                counts.results_right += u32::from(right);
                counts.results_wrong += u32::from(!right);
            }
        }
        for (all, completed) in seen {
            counts.completed_once += u32::from((all, completed) == (1, 1));
            counts.lost += u32::from(all == 0);
            counts.unfinished += u32::from(all > 0 && completed == 0);
            counts.duplicates += all.saturating_sub(1);
        }
        counts
    }

    /// From a queue that deletes what is done: `left` are the keys it still has, and what the handler never ran for is lost.
    #[must_use]
    pub fn of_absence(runs: &Runs, left: impl IntoIterator<Item = String>) -> Self {
        let mut counts = Self::of_runs(runs);
        let mut times: HashMap<String, u32> = HashMap::new();
        for key in left {
            *times.entry(key).or_default() += 1;
        }
        for (number, ran) in (0..).zip(&runs.counts) {
            let there = times.remove(&key(runs.seed, number)).unwrap_or_default();
            let ran = ran.load(Ordering::Relaxed) > 0;
            counts.completed_once += u32::from(there == 0 && ran);
            counts.lost += u32::from(there == 0 && !ran);
            counts.unfinished += u32::from(there > 0);
            counts.duplicates += there.saturating_sub(1);
        }
        counts
    }

    fn of_runs(runs: &Runs) -> Self {
        let mut counts = Self {
            enqueued: u32::try_from(runs.counts.len()).unwrap_or(u32::MAX),
            completed_once: 0,
            lost: 0,
            unfinished: 0,
            duplicates: 0,
            ran_again: 0,
            ran_wrong: runs.strays.load(Ordering::Relaxed),
            results_wrong: 0,
            results_right: 0,
        };
        for count in &runs.counts {
            let count = count.load(Ordering::Relaxed);
            counts.ran_again += u32::from(count > 1);
            counts.ran_wrong += u32::from(count == 0);
        }
        counts
    }
}

/// What a queue promises: to be read beside its rate.
#[derive(Debug, Clone, Serialize)]
pub struct Contract {
    /// What a second message with the same key is answered; "none" without keys.
    pub keys: &'static str,
    /// What becomes of what the handler answered.
    pub results: &'static str,
    /// What is left of a message that is done.
    pub history: &'static str,
    /// What keeps a worker that was given up from settling.
    pub fencing: &'static str,
}

/// When a queue says that something is done, and what that means.
#[derive(Debug, Clone, Serialize)]
pub struct Acknowledged {
    /// The enqueue.
    pub enqueue: &'static str,
    /// The end of a message.
    pub completion: &'static str,
}

/// As the connections that write answer when they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pragmas {
    /// Who asked them.
    pub asked_by: &'static str,
    /// How many connections were asked; all answered alike.
    pub connections: u32,
    /// `wal` for all here.
    pub journal_mode: String,
    /// 2 is FULL: an fsync before each commit returns. 1 is NORMAL, 0 is OFF.
    pub synchronous: i64,
    /// Frames of the log after which a commit copies it back by itself; nothing if the queue does that itself.
    pub wal_autocheckpoint: Option<i64>,
}

impl Pragmas {
    /// Of all connections, if they agree.
    ///
    /// # Errors
    /// When there is none, or two differ.
    pub fn agreed(of_each: Vec<Self>) -> Result<Self, String> {
        let connections = u32::try_from(of_each.len()).unwrap_or(u32::MAX);
        let mut rest = of_each.into_iter();
        let first = rest.next().ok_or("no connection could be asked for its pragmas")?;
        if let Some(other) = rest.find(|other| *other != first) {
            return Err(format!("connections of one pool differ: {first:?} and {other:?}"));
        }
        Ok(Self { connections, ..first })
    }
}

/// What a program of the comparison prints, as one line of JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The queue's crate.
    pub name: &'static str,
    /// Of the crate.
    pub version: &'static str,
    /// What it promises.
    pub contract: Contract,
    /// What an acknowledgement means.
    pub acknowledged: Acknowledged,
    /// Of SQLite.
    pub sqlite_version: String,
    /// Of the connections that were measured.
    pub pragmas: Pragmas,
    /// Batches, pools, intervals: how this queue was set up.
    pub settings: HashMap<&'static str, String>,
    /// Of the measured part.
    pub messages: u32,
    /// Finished messages that were there before.
    pub preloaded: u32,
    /// Whether messages carried keys.
    pub keys: bool,
    /// Whether one message followed the other, which says nothing about speed.
    pub serial: bool,
    /// Acknowledged enqueues a second, without a worker; nothing after a serial run.
    pub enqueue_per_s: Option<f64>,
    /// From the first enqueue to the last durable end, a second; nothing after a serial run.
    pub lifecycles_per_s: Option<f64>,
    /// Processor time of the whole process in the measured part, by messages: says what a lifecycle costs on a machine
    /// that others use as well. Nothing after a serial run, and where the system does not tell.
    pub cpu_us_per_message: Option<f64>,
    /// What became of the messages, those of the warm-up included.
    pub counts: Counts,
    /// Optimised or not.
    pub build: &'static str,
}

/// How this was built.
pub const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

/// Rates of one round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Enqueues a second.
    pub enqueue: Option<f64>,
    /// Lifecycles a second.
    pub lifecycles: Option<f64>,
    /// Microseconds of processor time a lifecycle.
    pub cpu_us: Option<f64>,
}

/// Takes the time, and the processor's.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    ticks: Option<u64>,
}

impl Stopwatch {
    /// Starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "it measures programs that do not know our clock")]
    pub fn start() -> Self {
        Self { started: Instant::now(), ticks: ticks() }
    }

    /// So many a second since the start.
    #[must_use]
    pub fn rate(&self, count: u32) -> f64 {
        f64::from(count) / self.started.elapsed().max(Duration::from_micros(1)).as_secs_f64()
    }

    /// Microseconds of processor time since the start, by so many messages.
    #[must_use]
    pub fn cpu_us(&self, count: u32) -> Option<f64> {
        let used = u32::try_from(ticks()?.checked_sub(self.ticks?)?).ok()?;
        Some(f64::from(used) * TICK_US / f64::from(count.max(1)))
    }

    /// Whether so much time went by.
    #[must_use]
    pub fn is_over(&self, limit: Duration) -> bool {
        self.started.elapsed() > limit
    }
}

/// Linux tells processor time in hundredths of a second, whatever its kernel counts in.
const TICK_US: f64 = 10_000.0;

/// Processor time of this process, in its own code and in the kernel.
fn ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may contain anything, so fields are counted from the parenthesis that closes it; the state is the first.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// How long a round may take before it is given up.
pub const LIMIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Arguments, String> {
        Arguments::parse(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_read_and_the_wrong_one_is_named() {
        let parsed =
            parse("--messages 7 --payload 200 --concurrency 3 --dir d --keys off --serial --set pool=2").unwrap();
        assert_eq!((parsed.messages, parsed.concurrency, parsed.keys, parsed.serial), (7, 3, false, true));
        assert_eq!(parsed.dir, PathBuf::from("d"));
        assert_eq!((parsed.special("pool", 1), parsed.special("other", 5)), (Ok(2), Ok(5)));
        for (wrong, named) in [
            ("--messages", "--messages has no value"),
            ("--messages x", "--messages x"),
            ("--payload 100", "--payload 100"),
            ("--keys maybe", "--keys maybe"),
            ("--batch 0", "must be 1 or more"),
            ("--fast yes", "unknown argument --fast"),
        ] {
            let problem = parse(wrong).unwrap_err();
            assert!(problem.contains(named), "{wrong}: {problem}");
        }
    }

    #[test]
    fn every_payload_has_its_size_and_its_own_key() {
        let payloads: Vec<Payload> =
            [1, 2].iter().flat_map(|seed| Payload::batches(*seed, 0..500, 100)).flatten().collect();
        assert_eq!(payloads.len(), 1000);
        for payload in &payloads {
            assert_eq!(serde_json::to_string(payload).unwrap().len(), PAYLOAD_BYTES);
            assert_eq!(serde_json::to_string(&payload.answer()).unwrap().len(), RESULT_BYTES);
        }
        let keys: std::collections::HashSet<&str> = payloads.iter().map(|payload| payload.key.as_str()).collect();
        assert_eq!(keys.len(), 1000, "two payloads have one key");
    }

    fn record(number: u32, completed: bool, result: Option<&str>) -> Record {
        Record { key: key(9, number), completed, result: result.map(str::to_owned) }
    }

    #[test]
    fn each_way_to_go_wrong_is_counted_where_it_belongs() {
        let runs = Runs::new(9, 6);
        for number in [0, 1, 1, 2, 3, 5] {
            runs.handle(&Payload::new(9, number));
        }
        runs.handle(&Payload::new(8, 0));
        runs.handle(&Payload::pattern());
        let right = format!("\"{}ok\"", key(9, 0));
        let counts = Counts::of_records(
            &runs,
            [
                record(0, true, Some(&right)),
                record(1, true, Some("\"else\"")),
                record(2, true, None),
                record(2, true, None),
                record(3, false, None),
                record(4, true, None),
                Record { key: "of another round".to_owned(), completed: false, result: None },
            ],
        );
        let expected = Counts {
            enqueued: 6,
            completed_once: 3,
            lost: 1,
            unfinished: 1,
            duplicates: 1,
            ran_again: 1,
            ran_wrong: 2,
            results_wrong: 1,
            results_right: 1,
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_queue_that_deletes_is_judged_by_what_is_left_and_what_ran() {
        let runs = Runs::new(9, 3);
        runs.handle(&Payload::new(9, 0));
        runs.handle(&Payload::new(9, 1));
        let counts = Counts::of_absence(&runs, [key(9, 1), "of another round".to_owned()]);
        assert_eq!((counts.completed_once, counts.unfinished, counts.lost, counts.ran_wrong), (1, 1, 1, 1));
    }

    #[test]
    fn connections_that_differ_are_refused() {
        let full = Pragmas {
            asked_by: "a test",
            connections: 1,
            journal_mode: "wal".to_owned(),
            synchronous: 2,
            wal_autocheckpoint: Some(1000),
        };
        let off = Pragmas { synchronous: 0, ..full.clone() };
        assert_eq!(Pragmas::agreed(vec![full.clone(), full.clone()]).unwrap().connections, 2);
        assert!(Pragmas::agreed(vec![full, off]).unwrap_err().contains("differ"));
        assert!(Pragmas::agreed(Vec::new()).is_err());
    }
}
