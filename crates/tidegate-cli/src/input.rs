//! Messages from a file or standard input: a line of NDJSON or a row of CSV each, read on a thread of its own.
//!
//! A line that cannot be taken is handed on as a refusal with its number, and reading goes on. Memory stays bounded: by
//! the length of a line, the bytes of a batch, and the few batches that wait to be stored.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate::message::{Due, NewMessage, Payload, Priority};
use tidegate::{IdempotencyKey, Kind, QueueName, Timestamp};

use crate::exit::Problem;

/// The longest line or row. Above the largest payload a store takes, so that the store says what is wrong with it.
const LONGEST_LINE: usize = 4 << 20;
/// A batch is stored when it has so many messages,
const BATCH_MESSAGES: usize = 1000;
/// or so many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// How a file holds messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A JSON object a line
    Ndjson,
    /// A row each, under a heading
    Csv,
}

/// What a line does not say itself.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) queue: Option<QueueName>,
    pub(crate) kind: Option<Kind>,
    pub(crate) version: u32,
    pub(crate) priority: Priority,
    pub(crate) delay: Option<Duration>,
    pub(crate) deadline: Option<Timestamp>,
}

/// How the lines are to be understood.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) format: Format,
    /// The whole line is the payload, and this field of it the key; without it a line is an envelope.
    pub(crate) key_field: Option<String>,
    /// CSV columns that hold JSON instead of text.
    pub(crate) json_fields: Vec<String>,
    pub(crate) defaults: Defaults,
}

/// A line that holds a message, or the reason why it does not.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) message: Result<NewMessage, String>,
}

/// What the reader hands on, in order.
pub(crate) type Batch = Vec<Line>;

/// Reads to the end, or until `take` no longer wants batches.
///
/// # Errors
/// When the source cannot be read on, or a CSV heading lacks a column that was named.
pub(crate) fn read(source: impl Read, shape: &Shape, take: &mut dyn FnMut(Batch) -> bool) -> Result<(), Problem> {
    let mut batches = Batches { batch: Vec::new(), bytes: 0, take };
    let finished = match shape.format {
        Format::Ndjson => read_ndjson(source, shape, &mut batches),
        Format::Csv => read_csv(source, shape, &mut batches),
    };
    // What was read before the source broke is stored all the same; a repeat adds it no second time.
    batches.flush();
    finished
}

struct Batches<'a> {
    batch: Batch,
    bytes: usize,
    take: &'a mut dyn FnMut(Batch) -> bool,
}

impl Batches<'_> {
    /// False when no more is wanted.
    fn add(&mut self, number: u64, message: Result<NewMessage, String>) -> bool {
        self.bytes += message.as_ref().map_or(100, |message| message.payload.text().len() + 200);
        self.batch.push(Line { number, message });
        if self.batch.len() >= BATCH_MESSAGES || self.bytes >= BATCH_BYTES { self.flush() } else { true }
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        batch.is_empty() || (self.take)(batch)
    }
}

fn unreadable(error: &io::Error) -> Problem {
    Problem::new(crate::exit::Code::Failed, format!("the input cannot be read on: {error}"))
        .hint("what was read before is stored; the same file can be given again, nothing is added twice")
}

// --- NDJSON ----------------------------------------------------------------------------------------------------------

fn read_ndjson(source: impl Read, shape: &Shape, batches: &mut Batches<'_>) -> Result<(), Problem> {
    let mut source = BufReader::with_capacity(1 << 16, source);
    let mut line = Vec::new();
    for number in 1.. {
        let message = match next_line(&mut source, &mut line).map_err(|e| unreadable(&e))? {
            Read1::End => return Ok(()),
            Read1::TooLong => Err(format!("longer than {LONGEST_LINE} bytes")),
            Read1::Line => {
                let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
                match std::str::from_utf8(line) {
                    Ok(text) if text.trim().is_empty() => continue,
                    Ok(text) => of_json(text.trim(), shape),
                    Err(error) => Err(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)),
                }
            }
        };
        if !batches.add(number, message) {
            return Ok(());
        }
    }
    Ok(())
}

enum Read1 {
    Line,
    TooLong,
    End,
}

/// The next line without its end. One that is too long is read to its end and forgotten.
fn next_line(source: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Read1> {
    line.clear();
    let mut seen = 0_usize;
    loop {
        let chunk = match source.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        seen += part.len();
        if seen <= LONGEST_LINE {
            line.extend_from_slice(part);
        }
        let (at_end, used) = (chunk.is_empty(), end.map_or(chunk.len(), |end| end + 1));
        source.consume(used);
        if end.is_some() || at_end {
            return Ok(match seen {
                0 if at_end => Read1::End,
                _ if seen > LONGEST_LINE => Read1::TooLong,
                _ => Read1::Line,
            });
        }
    }
}

/// A line that says everything about its message. A member nobody knows is refused: it is an option with a typing error,
/// and the message would be sent without it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    key: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    queue: Option<QueueName>,
    kind: Option<Kind>,
    version: Option<u32>,
    priority: Option<Priority>,
    delay: Option<String>,
    deadline: Option<Timestamp>,
    max_age: Option<String>,
    key_time: Option<Timestamp>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn of_json(text: &str, shape: &Shape) -> Result<NewMessage, String> {
    if !text.starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() {
        return Err(NO_OBJECT.to_owned());
    }
    match &shape.key_field {
        Some(field) => {
            let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(text).map_err(|e| why_not(&e))?;
            let key = key_of(field, members.get(field.as_str()).map(|value| value.get()))?;
            message(&shape.defaults, key, text)
        }
        None => of_envelope(serde_json::from_str(text).map_err(|e| why_not(&e))?, &shape.defaults),
    }
}

pub(crate) const NO_OBJECT: &str = "the line is no JSON object";

/// What serde says, without its own "at line 1 column n": the line is ours to name.
pub(crate) fn why_not(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    match error.classify() {
        // With the value in it, which may be as long as the line.
        serde_json::error::Category::Data => shortened(what),
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            format!("not JSON: {what} at column {}", error.column())
        }
    }
}

fn shortened(what: &str) -> String {
    let short: String = what.chars().take(300).collect();
    if short.len() < what.len() { format!("{short}…") } else { short }
}

fn of_envelope(envelope: Envelope<'_>, defaults: &Defaults) -> Result<NewMessage, String> {
    let defaults = Defaults {
        queue: envelope.queue.or_else(|| defaults.queue.clone()),
        kind: envelope.kind.or_else(|| defaults.kind.clone()),
        version: envelope.version.unwrap_or(defaults.version),
        priority: envelope.priority.unwrap_or(defaults.priority),
        delay: envelope.delay.map(|text| duration(&text)).transpose()?.or(defaults.delay),
        deadline: envelope.deadline.or(defaults.deadline),
    };
    let message = message(&defaults, envelope.key, envelope.payload.get())?;
    let max_age = envelope.max_age.map(|text| duration(&text)).transpose()?;
    Ok(NewMessage { max_age, key_time: envelope.key_time, headers: envelope.headers, ..message })
}

/// A key out of a JSON value: a text, or a whole number by its digits.
fn key_of(field: &str, value: Option<&str>) -> Result<String, String> {
    let value = value.filter(|value| *value != "null").ok_or_else(|| format!("no key field {field:?}"))?;
    let digits = value.strip_prefix('-').unwrap_or(value);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(value.to_owned());
    }
    serde_json::from_str(value).map_err(|_| format!("key field {field:?} is neither a text nor a whole number"))
}

// --- CSV -------------------------------------------------------------------------------------------------------------

fn read_csv(source: impl Read, shape: &Shape, batches: &mut Batches<'_>) -> Result<(), Problem> {
    let field = shape.key_field.as_deref().ok_or_else(|| {
        Problem::usage("a CSV file has no key unless a column is named")
            .hint("--key-field COLUMN says which column is it")
    })?;
    let layout = Rc::new(RefCell::new(Layout::default()));
    let bounded = Bounded { source, layout: layout.clone() };
    let mut reader = csv::ReaderBuilder::new().from_reader(bounded);
    let heading: Vec<String> = match reader.headers() {
        Ok(heading) => heading.iter().map(str::to_owned).collect(),
        Err(error) => return Err(Problem::new(crate::exit::Code::Failed, format!("line 1: {error}"))),
    };
    if heading.is_empty() {
        return Ok(());
    }
    for named in std::iter::once(field).chain(shape.json_fields.iter().map(String::as_str)) {
        if !heading.iter().any(|column| column == named) {
            return Err(Problem::usage(format!("no column {named:?} in the heading of the file"))
                .hint(format!("it has: {}", heading.join(", "))));
        }
    }
    let mut record = csv::StringRecord::new();
    loop {
        layout.borrow_mut().since_row = 0;
        let read = reader.read_record(&mut record);
        let mut layout = layout.borrow_mut();
        let (number, message) = match read {
            Ok(false) => return Ok(()),
            Ok(true) | Err(_) if layout.unclosed().is_some() => {
                (layout.unclosed().unwrap_or_default(), Err(UNCLOSED.to_owned()))
            }
            Ok(true) => (layout.line_of(record.position()), of_record(&heading, &record, field, shape)),
            Err(error) => {
                let number = layout.line_of(error.position());
                let why = if let csv::ErrorKind::Io(error) = error.kind() {
                    return Err(unreadable(error));
                } else if let csv::ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
                    format!("{len} fields, the heading has {expected_len}")
                } else if let csv::ErrorKind::Utf8 { err, .. } = error.kind() {
                    format!("not UTF-8 in field {}", err.field() + 1)
                } else {
                    error.to_string()
                };
                (number, Err(why))
            }
        };
        if !batches.add(number, message) {
            return Ok(());
        }
    }
}

pub(crate) const UNCLOSED: &str = "a quote that opens here is not closed, all that follows would be one cell";

/// Where the rows of a CSV text begin, by its bytes. The reader of the rows counts itself, but it begins a row before the
/// ends of lines it skips: the second half of a CRLF, empty lines.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    since_row: usize,
    byte: u64,
    /// Ends of lines so far.
    ends: u64,
    after_cr: bool,
    cell: Cell,
    /// The line of the last quote that opened a cell.
    quoted_in: u64,
    at_line_start: bool,
    /// Byte and line of rows that were not asked for yet; the first row has none, it is the heading.
    rows: VecDeque<(u64, u64)>,
    at_end: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Cell {
    #[default]
    Begins,
    Plain,
    Quoted,
    /// After a quote inside a quoted cell: its end, or the first of two.
    QuoteSeen,
}

impl Layout {
    /// The next bytes; none at the end.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.at_end = bytes.is_empty();
        self.since_row += bytes.len();
        for &byte in bytes {
            let is_end = matches!(byte, b'\r' | b'\n');
            if self.at_line_start && !is_end && self.cell != Cell::Quoted {
                self.rows.push_back((self.byte, self.ends + 1));
            }
            self.cell = match (self.cell, byte) {
                (Cell::Begins, b'"') => {
                    self.quoted_in = self.ends + 1;
                    Cell::Quoted
                }
                (Cell::Quoted, b'"') => Cell::QuoteSeen,
                (Cell::Quoted, _) | (Cell::QuoteSeen, b'"') => Cell::Quoted,
                (Cell::Begins | Cell::Plain | Cell::QuoteSeen, b',' | b'\r' | b'\n') => Cell::Begins,
                (Cell::Begins | Cell::Plain | Cell::QuoteSeen, _) => Cell::Plain,
            };
            self.ends += u64::from(byte == b'\r' || (byte == b'\n' && !self.after_cr));
            self.after_cr = byte == b'\r';
            self.at_line_start = is_end;
            self.byte += 1;
        }
    }

    /// The line of the row that begins at or after a position; rows are asked for in their order.
    pub(crate) fn line_of(&mut self, position: Option<&csv::Position>) -> u64 {
        let Some(position) = position else { return 0 };
        while self.rows.front().is_some_and(|(byte, _)| *byte < position.byte()) {
            self.rows.pop_front();
        }
        self.rows.front().map_or_else(|| position.line(), |(_, line)| *line)
    }

    /// The line of a quote that was still open when the text ended.
    pub(crate) fn unclosed(&self) -> Option<u64> {
        (self.at_end && self.cell == Cell::Quoted).then_some(self.quoted_in)
    }
}

/// Ends a source in which one row does not end: a quote that is never closed would pull the whole file into memory.
struct Bounded<R> {
    source: R,
    layout: Rc<RefCell<Layout>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        let mut layout = self.layout.borrow_mut();
        layout.take(buffer.get(..read).unwrap_or_default());
        if layout.since_row > LONGEST_LINE {
            return Err(io::Error::other(format!("a row longer than {LONGEST_LINE} bytes: is a quote not closed?")));
        }
        Ok(read)
    }
}

/// A row as an object: its cells are texts, unless their column was named to hold JSON.
fn of_record(
    heading: &[String],
    record: &csv::StringRecord,
    key_field: &str,
    shape: &Shape,
) -> Result<NewMessage, String> {
    let mut payload = String::from("{");
    let mut key = None;
    for (column, cell) in heading.iter().zip(record) {
        if payload.len() > 1 {
            payload.push(',');
        }
        payload.push_str(&json_text(column));
        payload.push(':');
        if !shape.json_fields.contains(column) {
            payload.push_str(&json_text(cell));
        } else if cell.trim().is_empty() {
            payload.push_str("null");
        } else {
            let value: &RawValue =
                serde_json::from_str(cell).map_err(|e| format!("column {column:?}: {}", why_not(&e)))?;
            payload.push_str(value.get());
        }
        if column == key_field {
            key = Some(cell.to_owned());
        }
    }
    payload.push('}');
    let key = key.filter(|key| !key.is_empty()).ok_or_else(|| format!("key field {key_field:?} is empty"))?;
    message(&shape.defaults, key, &payload)
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

// --- both ------------------------------------------------------------------------------------------------------------

fn message(defaults: &Defaults, key: String, payload: &str) -> Result<NewMessage, String> {
    let refused = |error: tidegate::StoreError| Problem::from(error).sentence();
    let kind = defaults.kind.clone().ok_or("no kind: neither the line nor --kind says it")?;
    let queue = match &defaults.queue {
        Some(queue) => queue.clone(),
        None => QueueName::new(kind.as_str()).map_err(refused)?,
    };
    let key = IdempotencyKey::new(key).map_err(refused)?;
    let payload = Payload::from_json(payload).map_err(refused)?;
    Ok(NewMessage {
        version: defaults.version,
        priority: defaults.priority,
        due: defaults.delay.map_or(Due::Now, Due::In),
        deadline: defaults.deadline,
        ..NewMessage::new(queue, kind, key, payload)
    })
}

/// A duration as people write it: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("not a duration: {text:?}; such as 500ms, 30s, 5m, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(format: Format, key_field: Option<&str>) -> Shape {
        Shape {
            format,
            key_field: key_field.map(str::to_owned),
            json_fields: Vec::new(),
            defaults: Defaults {
                queue: None,
                kind: Some(Kind::new("deposit").unwrap()),
                version: 1,
                priority: Priority::default(),
                delay: None,
                deadline: None,
            },
        }
    }

    /// A line: its number, and key and payload or the reason.
    type Read = (u64, Result<(String, String), String>);

    fn lines(source: &[u8], shape: &Shape) -> Vec<Read> {
        let mut lines = Vec::new();
        let mut take = |batch: Batch| {
            lines.extend(batch.into_iter().map(|line| {
                let message = line.message.map(|m| (m.key.to_string(), m.payload.text().to_owned()));
                (line.number, message)
            }));
            true
        };
        read(source, shape, &mut take).unwrap();
        lines
    }

    fn taken(number: u64, key: &str, payload: &str) -> Read {
        (number, Ok((key.to_owned(), payload.to_owned())))
    }

    #[test]
    fn a_line_with_a_key_field_is_the_payload_byte_for_byte() {
        let source = b"\xef\xbb\xbf{\"id\":\"d-1\", \"cents\": 1.50}\r\n\n{\"id\":72,\"x\":[1]}";
        assert_eq!(
            lines(source, &shape(Format::Ndjson, Some("id"))),
            [taken(1, "d-1", "{\"id\":\"d-1\", \"cents\": 1.50}"), taken(3, "72", "{\"id\":72,\"x\":[1]}")]
        );
    }

    #[test]
    fn a_line_without_its_key_is_refused_with_its_number_and_the_rest_goes_on() {
        let source = "{\"id\":\"a\"}\n{\"ID\":\"b\"}\n{\"id\":null}\n{\"id\":1.5}\n{\"id\":\"\"}\nnonsense\n[1]\n{\"id\":\"c\",\"id\":\"d\"}\n{\"id\":\"z\"}\n";
        let refused: Vec<(u64, String)> = (lines(source.as_bytes(), &shape(Format::Ndjson, Some("id"))).into_iter())
            .filter_map(|(number, message)| message.err().map(|why| (number, why)))
            .collect();
        let expected = [
            (2, "no key field \"id\""),
            (3, "no key field \"id\""),
            (4, "key field \"id\" is neither a text nor a whole number"),
            (5, "invalid idempotency key \"\""),
            (6, "not JSON: expected ident at column 2"),
            (7, "the line is no JSON object"),
            (8, "payload refused: member \"id\" appears twice at $.id"),
        ];
        assert_eq!(refused.len(), expected.len(), "{refused:?}");
        for ((number, why), (at, start)) in refused.iter().zip(expected) {
            assert!(*number == at && why.starts_with(start), "{number} {why:?} is not {at} {start:?}");
        }
    }

    #[test]
    fn an_envelope_names_its_own_queue_and_options_and_no_others() {
        let source = concat!(
            r#"{"key":"a","payload":{"n":1},"queue":"slow","priority":2,"delay":"5m","headers":{"traceparent":"00"}}"#,
            "\n",
            r#"{"key":"b","payload":1,"prioritiy":2}"#,
            "\n",
            r#"{"payload":1}"#,
            "\n",
            r#"{"key":"c","payload":1,"delay":"soon"}"#
        );
        let mut all = Vec::new();
        let mut take = |batch: Batch| {
            all.extend(batch);
            true
        };
        read(source.as_bytes(), &shape(Format::Ndjson, None), &mut take).unwrap();
        let first = all[0].message.as_ref().unwrap();
        assert_eq!((first.queue.as_str(), first.priority.get()), ("slow", 2));
        assert_eq!(first.due, Due::In(Duration::from_secs(300)));
        assert_eq!(first.headers["traceparent"], "00");
        let why = |index: usize| all[index].message.as_ref().unwrap_err().clone();
        assert!(why(1).starts_with("unknown field `prioritiy`"), "{}", why(1));
        assert_eq!(why(2), "missing field `key`");
        assert!(why(3).starts_with("not a duration: \"soon\""), "{}", why(3));
    }

    #[test]
    fn cells_are_texts_unless_their_column_holds_json() {
        let source = "id,cents,note\nd-1,0100,\"a, \"\"b\"\"\"\nd-2,5,\n,7,x\nd-4,8\nd-5,9,end\n";
        let mut shape = shape(Format::Csv, Some("id"));
        assert_eq!(
            lines(source.as_bytes(), &shape),
            [
                taken(2, "d-1", r#"{"id":"d-1","cents":"0100","note":"a, \"b\""}"#),
                taken(3, "d-2", r#"{"id":"d-2","cents":"5","note":""}"#),
                (4, Err("key field \"id\" is empty".to_owned())),
                (5, Err("2 fields, the heading has 3".to_owned())),
                taken(6, "d-5", r#"{"id":"d-5","cents":"9","note":"end"}"#),
            ]
        );
        shape.json_fields = vec!["cents".to_owned()];
        let read = lines(b"id,cents\na,5\nb,\nc,05\n", &shape);
        assert_eq!(read[..2], [taken(2, "a", r#"{"id":"a","cents":5}"#), taken(3, "b", r#"{"id":"b","cents":null}"#)]);
        assert!(read[2].1.as_ref().is_err_and(|why| why.starts_with("column \"cents\": not JSON")), "{read:?}");
    }

    #[test]
    fn rows_have_the_numbers_an_editor_shows() {
        for (end, what) in [("\n", "LF"), ("\r\n", "CRLF"), ("\r", "CR")] {
            let rows = ["id,note", "", "a,1", "b,\"two\nlines\"", "c", "", "", "d,\"x\"", "a\"b,5\"", ""];
            let read = lines(rows.join(end).as_bytes(), &shape(Format::Csv, Some("id")));
            let numbers: Vec<u64> = read.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, [3, 4, 6, 9, 10], "{what}");
        }
        // More than one read of the file.
        let many: String = (0..5000).map(|n| format!("{n},{}\r\n", "x".repeat(n % 40))).collect();
        let read = lines(format!("id,note\r\n{many}").as_bytes(), &shape(Format::Csv, Some("id")));
        assert!(read.iter().zip(2..).all(|((number, _), expected)| *number == expected));
        assert_eq!(read.len(), 5000);
    }

    #[test]
    fn a_quote_that_is_never_closed_is_named_with_its_line() {
        for (text, line) in [("id,note\r\na,1\r\nb,\"x\r\nc,3\r\n", 3), ("id,note\nb,\"x\"\"", 2), ("id\na\n\"b", 3)] {
            let read = lines(text.as_bytes(), &shape(Format::Csv, Some("id")));
            assert_eq!(read.last(), Some(&(line, Err(UNCLOSED.to_owned()))), "{text:?}");
        }
    }

    #[test]
    fn a_heading_without_the_key_column_ends_it_before_anything_is_taken() {
        let problem = read(&b"ID,cents\n1,2\n"[..], &shape(Format::Csv, Some("id")), &mut |_| true).unwrap_err();
        assert_eq!(problem.what, "no column \"id\" in the heading of the file");
        assert_eq!(problem.hint.as_deref(), Some("it has: ID, cents"));
        assert!(read(&b"id\n1\n"[..], &shape(Format::Csv, None), &mut |_| true).is_err());
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let mut source = b"{\"id\":\"".to_vec();
        source.resize(LONGEST_LINE * 2, b'x');
        source.extend(b"\n{\"id\":\"b\"}\n");
        let read1 = lines(&source, &shape(Format::Ndjson, Some("id")));
        assert_eq!(read1[0], (1, Err(format!("longer than {LONGEST_LINE} bytes"))));
        assert_eq!(read1[1], taken(2, "b", "{\"id\":\"b\"}"));
        let mut open_quote = b"id\n\"".to_vec();
        open_quote.resize(LONGEST_LINE * 2, b'x');
        let problem = read(&open_quote[..], &shape(Format::Csv, Some("id")), &mut |_| true).unwrap_err();
        assert!(problem.what.contains("is a quote not closed?"), "{}", problem.what);
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for wrong in ["", "5", "s", "-1s", "1.5h", "1 s", "99999999999999999d", "5min"] {
            assert!(duration(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
