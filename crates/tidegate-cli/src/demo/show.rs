//! What a person sees of the demo: plain lines, and on a terminal two columns that change below them.
//!
//! Everything goes to standard error; standard output is for the proof. Into a file or a pipe only plain lines are
//! written, one a second and one for each event.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};

use deposits::load::{Counts, Progress};
use deposits::trace::Phase;

use super::short;

/// Deposits charged more than once, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubled {
    pub(super) synchronous: u64,
    pub(super) tidegate: u64,
}

/// How many values the small chart of the backlog shows.
const CHART: usize = 24;

/// The display.
#[derive(Debug)]
pub(super) struct Show {
    live: bool,
    /// Lines of the live part on the screen, to be written over.
    drawn: usize,
    last: Option<(Progress, Doubled)>,
    phase: &'static str,
    backlog: VecDeque<u64>,
    /// The last second that got its plain line.
    second: Option<u64>,
}

impl Show {
    pub(super) fn new() -> Self {
        let live = std::io::stderr().is_terminal();
        Self { live, drawn: 0, last: None, phase: "", backlog: VecDeque::new(), second: None }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let text = format!("{}{line}\n", self.erase());
        self.write(&text)
    }

    /// A phase begins.
    pub(super) fn phase(&mut self, phase: &Phase) -> anyhow::Result<()> {
        self.phase = short(phase.kind);
        self.say(&format!("{}: {}", phase.kind.title(), phase.kind.description()))
    }

    /// The numbers moved.
    pub(super) fn progress(&mut self, progress: &Progress, doubled: Doubled) -> anyhow::Result<()> {
        self.last = Some((*progress, doubled));
        if self.live {
            self.backlog.push_back(progress.tidegate.processing);
            if self.backlog.len() > CHART {
                self.backlog.pop_front();
            }
            let text = self.erase();
            return self.write(&text);
        }
        let second = progress.at_ms / 1000;
        if self.second == Some(second) {
            return Ok(());
        }
        self.second = Some(second);
        let line = plain(progress, doubled);
        self.write(&format!("{line}\n"))
    }

    /// Takes the live part off the screen.
    fn erase(&mut self) -> String {
        let lines = std::mem::take(&mut self.drawn);
        if lines == 0 { String::new() } else { format!("\x1b[{lines}A\x1b[J") }
    }

    /// Writes at once, with the live part below.
    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let mut text = text.to_owned();
        if let Some((progress, doubled)) = self.last.filter(|_| self.live) {
            let live = columns(self.phase, &progress, doubled, &self.backlog);
            self.drawn = live.lines().count();
            text.push_str(&live);
        }
        let mut out = std::io::stderr().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

/// One line a second.
fn plain(progress: &Progress, doubled: Doubled) -> String {
    let Progress { at_ms, synchronous: left, tidegate: right } = progress;
    format!(
        "{:>3} s | synchronous: {:>4} done {:>4} failed {:>3} twice | \
         tidegate: {:>4} done {:>3} failed {:>4} under way {:>3} parked {} twice",
        at_ms / 1000,
        left.completed,
        left.failed,
        doubled.synchronous,
        right.completed,
        right.failed,
        right.processing,
        right.parked,
        doubled.tidegate,
    )
}

/// The two columns.
fn columns(phase: &str, progress: &Progress, doubled: Doubled, backlog: &VecDeque<u64>) -> String {
    let Progress { at_ms, synchronous, tidegate } = progress;
    let mut text = format!("{:>5}.{} s  {phase}\n", at_ms / 1000, at_ms % 1000 / 100);
    let mut row = |name: &str, left: String, right: String| {
        text.push_str(&format!("  {name:<28}{left:>14}{right:>14}\n"));
    };
    row("", "synchronous".to_owned(), "tidegate".to_owned());
    let mut counts = |name: &str, of: fn(&Counts) -> u64| {
        row(name, of(synchronous).to_string(), of(tidegate).to_string());
    };
    counts("requests sent", |counts| counts.sent);
    counts("accepted", |counts| counts.accepted);
    counts("told \"completed\"", |counts| counts.completed);
    counts("told \"failed\"", |counts| counts.failed);
    counts("waiting for the answer", |counts| counts.sent - counts.answered);
    row("under way, in the background", "-".to_owned(), tidegate.processing.to_string());
    row("parked, for a person", "-".to_owned(), tidegate.parked.to_string());
    row("charged more than once", doubled.synchronous.to_string(), doubled.tidegate.to_string());
    row(
        "99 of 100 accepted/answered",
        format!("{} ms", synchronous.p99_answer_ms),
        format!("{} ms", tidegate.p99_answer_ms),
    );
    text.push_str(&format!("  backlog {}\n", chart(backlog)));
    text
}

/// A small chart in one line.
fn chart(values: &VecDeque<u64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    values.iter().map(|value| BARS[usize::try_from(value * 7 / most).unwrap_or(7).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_names_both_sides_and_is_not_long() {
        let progress = Progress { at_ms: 12_345, ..Progress::default() };
        let line = plain(&progress, Doubled { synchronous: 3, tidegate: 0 });
        assert!(line.starts_with(" 12 s | synchronous:"), "{line}");
        assert!(line.contains("3 twice") && line.ends_with("0 twice"), "{line}");
        assert!(line.len() <= 120, "{line}");
    }

    #[test]
    fn the_chart_spans_from_the_lowest_to_the_highest_bar() {
        assert_eq!(chart(&VecDeque::from([0, 5, 10])), "▁▄█");
        assert_eq!(chart(&VecDeque::from([0, 0])), "▁▁");
    }
}
