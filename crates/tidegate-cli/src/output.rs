//! What a command prints, and where: data on standard output, talk on standard error.
//!
//! Three readers are served. A program gets JSON (`--json`): one object, or one a line for lists. A pipe gets plain
//! tab-separated lines without a heading, times in full. A person at a terminal gets tables, ages instead of times, and
//! colour unless `NO_COLOR` or `--color never` says otherwise. Nothing here decides what is told.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use tidegate::Timestamp;
use tidegate::clock::{Clock, SystemClock};
use tidegate::explain::span;

use crate::exit::Problem;

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Colour {
    #[default]
    Auto,
    Always,
    Never,
}

/// A colour by what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Waits,
    Dim,
    Bold,
}

/// Where and how to print.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// JSON for programs.
    pub(crate) json: bool,
    /// Standard output is a terminal.
    pub(crate) terminal: bool,
    /// Standard error is a terminal.
    pub(crate) talk_terminal: bool,
    colour: bool,
    talk_colour: bool,
    now: Timestamp,
}

impl Output {
    pub(crate) fn new(json: bool, colour: Colour) -> Self {
        let terminal = io::stdout().is_terminal();
        let talk_terminal = io::stderr().is_terminal();
        let wanted = |is_terminal: bool| match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => is_terminal && !no_colour(),
        };
        Self {
            json,
            terminal: terminal && !json,
            talk_terminal,
            colour: wanted(terminal) && !json,
            talk_colour: wanted(talk_terminal),
            now: SystemClock::new().now(),
        }
    }

    /// One JSON object on a line of its own.
    pub(crate) fn object(&self, value: &impl Serialize) -> Result<(), Problem> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(io::stdout().lock().write_all(&line)?)
    }

    /// Text on standard output, as it is.
    pub(crate) fn data(&self, text: &str) -> Result<(), Problem> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// Rows: a table for a person, tab-separated lines for a pipe. Callers print JSON themselves, object by object.
    pub(crate) fn rows(&self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Problem> {
        if rows.is_empty() {
            return Ok(());
        }
        self.data(&if self.terminal { table(header, rows, width()) } else { tab_separated(rows) })
    }

    /// Named values, one a line.
    pub(crate) fn fields(&self, fields: &[(&str, String)]) -> Result<(), Problem> {
        self.data(&self.fields_text(fields))
    }

    pub(crate) fn fields_text(&self, fields: &[(&str, String)]) -> String {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &(&str, String)| {
            if self.terminal {
                format!("{}  {value}\n", self.paint(Paint::Dim, &format!("{name:<width$}")))
            } else {
                format!("{name}\t{}\n", one_line(value))
            }
        };
        fields.iter().map(line).collect()
    }

    /// A word to the person, on standard error.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        // There is nobody left to tell that standard error cannot be written.
        let _told = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// What to do next, for a person.
    pub(crate) fn next(&self, text: impl AsRef<str>) {
        if !self.json {
            self.say(self.paint_talk(Paint::Dim, &format!("next: {}", text.as_ref())));
        }
    }

    /// Why the command ends as it does.
    pub(crate) fn problem(&self, problem: &Problem) {
        if self.json {
            self.say(serde_json::to_string(problem).unwrap_or_else(|_| problem.to_string()));
            return;
        }
        self.say(format!("{} {problem}", self.paint_talk(Paint::Bad, "error:")));
    }

    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        if self.colour { painted(paint, text) } else { text.to_owned() }
    }

    /// Standard error takes colours.
    pub(crate) fn talks_in_colour(&self) -> bool {
        self.talk_colour
    }

    fn paint_talk(&self, paint: Paint, text: &str) -> String {
        if self.talk_colour { painted(paint, text) } else { text.to_owned() }
    }

    /// A time: how far away for a person, in full for a program.
    pub(crate) fn time(&self, at: Timestamp) -> String {
        if !self.terminal {
            return at.to_string();
        }
        if at > self.now {
            format!("in {}", span(at.since(self.now)))
        } else {
            format!("{} ago", span(self.now.since(at)))
        }
    }

    /// A time that may be missing.
    pub(crate) fn maybe_time(&self, at: Option<Timestamp>) -> String {
        at.map_or_else(|| self.nothing(), |at| self.time(at))
    }

    /// What stands where there is no value: a dash to look at, nothing to parse.
    pub(crate) fn nothing(&self) -> String {
        if self.terminal { "-".to_owned() } else { String::new() }
    }
}

#[expect(clippy::disallowed_methods, reason = "the command is the one place that reads the environment")]
fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn painted(paint: Paint, text: &str) -> String {
    let code = match paint {
        Paint::Good => "32",
        Paint::Bad => "31;1",
        Paint::Waits => "33",
        Paint::Dim => "2",
        Paint::Bold => "1",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// The longest cell of a table, in characters; the rest is one `get` away.
const LONGEST_CELL: usize = 60;

/// No column becomes narrower than this to fit a terminal, and the first, which is typed again, keeps its width.
const NARROWEST: usize = 10;

/// Columns of the terminal, where one is known.
fn width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// How wide each column may be; the last ones give way first.
fn widths(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> Vec<usize> {
    let longest = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| one_line(cell).chars().count());
        cells.chain(header.get(at).map(|name| name.chars().count())).max().unwrap_or(0).min(LONGEST_CELL)
    };
    let mut widths: Vec<usize> = (0..header.len()).map(longest).collect();
    // A space on either side.
    let needed: usize = widths.iter().map(|width| width + 2).sum();
    let mut over = needed.saturating_sub(width.unwrap_or(needed));
    for (column, name) in widths.iter_mut().zip(header).skip(1).rev() {
        let gives = column.saturating_sub(NARROWEST.max(name.chars().count())).min(over);
        *column -= gives;
        over -= gives;
    }
    widths
}

fn table(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let widths = widths(header, rows, width);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().zip(&widths).map(|(cell, width)| shortened(&one_line(cell), *width)));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn tab_separated(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>().join("\t") + "\n";
    rows.iter().map(line).collect()
}

fn shortened(cell: &str, longest: usize) -> String {
    if cell.chars().count() <= longest {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(longest.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Text from elsewhere on one line and without control characters: a remote's error text must neither break a row in two
/// nor steer the terminal.
pub(crate) fn one_line(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["a".to_owned(), "two\nlines".to_owned()], vec!["bbb".to_owned(), "x".repeat(70)]]
    }

    #[test]
    fn a_person_gets_a_table_with_a_heading_and_cells_of_bearable_length() {
        let text = table(&["id", "why"], &rows(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["ID", "WHY"]);
        assert!(lines[1].contains("two\\nlines"), "{text}");
        assert!(lines[2].ends_with('…') && lines[2].chars().count() < 75, "{text}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_table_fits_the_terminal_and_keeps_its_first_column() {
        let header = ["id", "queue", "kind", "key", "attempt", "died", "why"];
        let row = |why: &str| {
            ["msg_01m86ympgh000", "deposit", "deposit", "deposit-000001", "20", "45 s ago", why]
                .map(str::to_owned)
                .to_vec()
        };
        let rows = [row("exhausted: timeout: the gateway did not answer within 2000 ms"), row("decode")];
        for (width, most) in [(Some(80), 80), (Some(100), 100), (None, 140)] {
            let text = table(&header, &rows, width);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= most && text.contains("msg_01m86ympgh000 "), "{longest} of {most}:\n{text}");
        }
        assert!(table(&header, &rows, Some(100)).contains("exhausted: t"));
        assert!(table(&header, &rows, Some(10)).contains("msg_01m86ympgh000"));
    }

    #[test]
    fn a_pipe_gets_a_line_a_row_without_a_heading() {
        assert_eq!(tab_separated(&rows()[..1]), "a\ttwo\\nlines\n");
    }

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(one_line("\u{1b}[2Jgone"), "\\u{1b}[2Jgone");
    }

    #[test]
    fn a_time_is_an_age_for_a_person_and_a_date_for_a_program() {
        let mut output = Output::new(false, Colour::Never);
        output.now = Timestamp::from_millis(100_000);
        output.terminal = false;
        assert_eq!(output.time(Timestamp::from_millis(40_000)), "1970-01-01T00:00:40.000Z");
        output.terminal = true;
        assert_eq!(output.time(Timestamp::from_millis(40_000)), "60 s ago");
        assert_eq!(output.time(Timestamp::from_millis(105_000)), "in 5 s");
    }
}
