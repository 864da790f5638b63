//! `tidegate top`: the queues as they are now, drawn anew every second; or one look for a script.
//!
//! Everything comes from the store's statistics, so it shows what all processes do. Rates are differences of counters that
//! the commits themselves increment. The screen is plain ANSI on the terminal's second screen: what was there before is
//! there again when it ends.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use serde::Serialize;
use tidegate::clock::{Clock, SystemClock};
use tidegate::explain::span;
use tidegate::store::{Counted, QueueStats, Stats};
use tidegate::{QueueName, Store, Timestamp};
use tokio::sync::Notify;

use crate::exit::{Code, Problem};
use crate::input::duration;
use crate::open::{Access, Asked, with_store};
use crate::output::{Output, Paint, one_line};

const EXAMPLES: &str = "\
Examples:
  tidegate top
  tidegate top --interval 5s
  tidegate top --once --json | jq '.queues[] | select(.parked > 0)'";

/// The most queues and failure codes that are drawn.
const MOST_QUEUES: usize = 20;
const MOST_CODES: usize = 10;

/// Watch the queues: depths, ages, rates and failure codes; q ends it
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub(crate) struct Args {
    /// How often to look
    #[arg(long, value_parser = duration, default_value = "1s")]
    interval: Duration,
    /// Look once, print it and end; needs no terminal, and knows no rates
    #[arg(long)]
    once: bool,
}

/// One look.
#[derive(Debug, Serialize)]
struct Snapshot {
    at: Timestamp,
    open_effects: u64,
    queues: Vec<Queue>,
    failures: Vec<Failures>,
}

#[derive(Debug, Serialize)]
struct Queue {
    #[serde(flatten)]
    stats: QueueStats,
    /// Messages stored since the store was made.
    enqueued: u64,
    /// Messages that completed, failed, died or were cancelled since then.
    ended: u64,
}

/// Runs of a queue that ended in a failure, by code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Failures {
    queue: QueueName,
    code: String,
    n: u64,
}

impl Snapshot {
    fn of(at: Timestamp, stats: Stats) -> Self {
        let mut failures: BTreeMap<(QueueName, String), u64> = BTreeMap::new();
        let mut counted: BTreeMap<QueueName, (u64, u64)> = BTreeMap::new();
        for tally in stats.tallies {
            let (enqueued, ended) = counted.entry(tally.queue.clone()).or_default();
            let ends = [Counted::Completed, Counted::Failed, Counted::Dead, Counted::Cancelled];
            if tally.what == Counted::Enqueued {
                *enqueued += tally.n;
            } else if ends.contains(&tally.what) {
                *ended += tally.n;
            } else if tally.what == Counted::Failures {
                *failures.entry((tally.queue, tally.code)).or_default() += tally.n;
            }
        }
        let queue = |stats: QueueStats| {
            let (enqueued, ended) = counted.get(&stats.queue).copied().unwrap_or_default();
            Queue { stats, enqueued, ended }
        };
        let failures = failures.into_iter().map(|((queue, code), n)| Failures { queue, code, n });
        let mut failures: Vec<Failures> = failures.collect();
        failures.sort_by(|a, b| b.n.cmp(&a.n).then_with(|| (&a.queue, &a.code).cmp(&(&b.queue, &b.code))));
        Self { at, open_effects: stats.open_effects, queues: stats.queues.into_iter().map(queue).collect(), failures }
    }
}

pub(crate) async fn run(args: Args, store: &Asked, output: &Output) -> Result<Code, Problem> {
    if !args.once && !output.terminal {
        return Err(Problem::usage("standard output is no terminal to draw on").hint("look once: tidegate top --once"));
    }
    if !args.once && args.interval.is_zero() {
        return Err(Problem::usage("an interval of nothing").hint("--interval 1s"));
    }
    with_store(store, Access::Existing, |store: Arc<dyn Store>| async move {
        let clock = SystemClock::new();
        let first = Snapshot::of(clock.now(), store.stats().await?);
        if args.once {
            once(&first, output)?;
        } else {
            watch(&*store, &clock, args.interval, first, output).await?;
        }
        Ok(Code::Done)
    })
    .await
}

fn once(snapshot: &Snapshot, output: &Output) -> Result<(), Problem> {
    if output.json {
        return output.object(snapshot);
    }
    output.data(&page(snapshot, None, output))
}

async fn watch(
    store: &dyn Store,
    clock: &SystemClock,
    interval: Duration,
    first: Snapshot,
    output: &Output,
) -> Result<(), Problem> {
    let _screen = Screen::take()?;
    let quit = on_q();
    let (mut before, mut looked_at) = (first, clock.monotonic());
    draw(&page(&before, None, output))?;
    loop {
        tokio::select! {
            () = quit.notified() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
        let now = Snapshot::of(clock.now(), store.stats().await?);
        let at = clock.monotonic();
        draw(&page(&now, Some((&before, at.saturating_sub(looked_at))), output))?;
        (before, looked_at) = (now, at);
    }
}

/// Told when `q` is typed. Where standard input is no terminal nobody can type it, and Ctrl-C remains.
fn on_q() -> Arc<Notify> {
    let typed = Arc::new(Notify::new());
    let told = Arc::clone(&typed);
    // A thread of its own: a read of a terminal cannot be called off, and must not keep anybody waiting at the end.
    std::thread::spawn(move || {
        let mut keys = io::stdin().lock().bytes().map_while(Result::ok);
        if io::stdin().is_terminal() && keys.any(|key| key.eq_ignore_ascii_case(&b'q')) {
            typed.notify_one();
        }
    });
    told
}

/// The terminal's second screen, with keys read as they are typed; as it was before when this is dropped.
struct Screen(Option<Termios>);

impl Screen {
    fn take() -> Result<Self, Problem> {
        let before = termios::tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut keys = before.clone();
            keys.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            // Without it `q` needs a return after it, which is no reason to refuse.
            let _set = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &keys);
        }
        let screen = Self(before);
        write_now("\u{1b}[?1049h\u{1b}[?25l")?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to be put back.
        let _written = write_now("\u{1b}[?25h\u{1b}[?1049l");
        if let Some(before) = &self.0 {
            let _set = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

fn write_now(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Over what is there, line by line: nothing flickers.
fn draw(page: &str) -> Result<(), Problem> {
    let lines: String = page.lines().map(|line| format!("{line}\u{1b}[K\n")).collect();
    Ok(write_now(&format!("\u{1b}[H{lines}\u{1b}[J"))?)
}

/// The page as text. With an earlier look, and how long ago it was, it has rates.
fn page(now: &Snapshot, before: Option<(&Snapshot, Duration)>, output: &Output) -> String {
    let mut queues: Vec<&Queue> = now.queues.iter().collect();
    let held = |queue: &Queue| queue.stats.ready + queue.stats.leased + queue.stats.parked + queue.stats.dead;
    queues.sort_by(|a, b| held(b).cmp(&held(a)).then_with(|| a.stats.queue.cmp(&b.stats.queue)));
    let mut page = format!("{}   open effects {}\n\n", now.at, now.open_effects);
    let header = [
        "queue",
        "ready",
        "scheduled",
        "leased",
        "parked",
        "dead",
        "in/s",
        "out/s",
        "oldest ready",
        "oldest parked",
        "oldest dead",
    ];
    let mut rows = vec![header.map(str::to_uppercase).to_vec()];
    rows.extend(queues.iter().take(MOST_QUEUES).map(|queue| row(queue, before)));
    page.push_str(&columns(&rows));
    if queues.len() > MOST_QUEUES {
        page.push_str(&format!("and {} more queues\n", queues.len() - MOST_QUEUES));
    }
    if !now.failures.is_empty() {
        let rate = |failures: &Failures| {
            let earlier = before.map(|(before, ago)| {
                let same = |other: &&Failures| other.queue == failures.queue && other.code == failures.code;
                (before.failures.iter().find(same).map_or(0, |earlier| earlier.n), ago)
            });
            per_second(failures.n, earlier)
        };
        let mut rows = vec![["failures of", "code", "times", "per second"].map(str::to_uppercase).to_vec()];
        rows.extend(now.failures.iter().take(MOST_CODES).map(|failures| {
            vec![failures.queue.to_string(), one_line(&failures.code), failures.n.to_string(), rate(failures)]
        }));
        page.push('\n');
        page.push_str(&columns(&rows));
    }
    if before.is_some() {
        page.push_str(&format!("\n{}\n", output.paint(Paint::Dim, "q ends")));
    }
    page
}

fn row(queue: &Queue, before: Option<(&Snapshot, Duration)>) -> Vec<String> {
    let earlier = |count: fn(&Queue) -> u64| {
        before.map(|(before, ago)| {
            let same =
                |other: &&Queue| other.stats.queue == queue.stats.queue && other.stats.tenant == queue.stats.tenant;
            (before.queues.iter().find(same).map_or(0, count), ago)
        })
    };
    let age = |age: Option<Duration>| age.map_or_else(|| "-".to_owned(), span);
    let stats = &queue.stats;
    let name = if stats.paused { format!("{} (paused)", stats.queue) } else { stats.queue.to_string() };
    vec![
        name,
        stats.ready.to_string(),
        stats.scheduled.to_string(),
        stats.leased.to_string(),
        stats.parked.to_string(),
        stats.dead.to_string(),
        per_second(queue.enqueued, earlier(|queue| queue.enqueued)),
        per_second(queue.ended, earlier(|queue| queue.ended)),
        age(stats.oldest_ready),
        age(stats.oldest_parked),
        age(stats.oldest_dead),
    ]
}

/// How much a counter grew in a second, since the earlier look.
fn per_second(now: u64, earlier: Option<(u64, Duration)>) -> String {
    match earlier {
        Some((before, ago)) if !ago.is_zero() => {
            let tenths = u128::from(now.saturating_sub(before)) * 10_000 / ago.as_millis().max(1);
            if tenths >= 1000 { (tenths / 10).to_string() } else { format!("{}.{}", tenths / 10, tenths % 10) }
        }
        Some(_) | None => "-".to_owned(),
    }
}

/// The first column to the left, numbers to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let second = Duration::from_secs(1);
        for (now, earlier, expected) in [
            (10, None, "-"),
            (10, Some((10, second)), "0.0"),
            (15, Some((10, second * 2)), "2.5"),
            (5000, Some((0, second)), "5000"),
            (5, Some((10, second)), "0.0"),
            (5, Some((0, Duration::ZERO)), "-"),
        ] {
            assert_eq!(per_second(now, earlier), expected, "{now} after {earlier:?}");
        }
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(columns(&[row(["QUEUE", "N"]), row(["a", "100"])]), "QUEUE    N\na      100\n");
    }
}
