//! Deposits from a file: NDJSON or CSV, any length, line by line.
//!
//! A line that is wrong is reported with its number and reason while the rest goes on. Lines are enqueued in batches,
//! one commit each; taking a file again, whole or half taken before, adds nothing twice, because each line has its key.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, bail};
use tidegate::Tidegate;
use tidegate::store::Enqueued;

use super::Request;
use crate::steps::Authorise;

/// As many lines share a commit.
const BATCH: usize = 500;
/// A line longer than this is no deposit request; it is not read into memory.
const LONGEST_LINE: usize = 64 * 1024;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// A JSON object on each line.
    Ndjson,
    /// A header line `deposit,account,cents[,card]`, then a record on each line.
    Csv,
}

impl FileFormat {
    /// By the file's name: `.csv`, or else NDJSON (`.ndjson`, `.jsonl`, `.json`).
    ///
    /// # Errors
    /// Another extension.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("ndjson" | "jsonl" | "json") => Ok(Self::Ndjson),
            other => {
                bail!("cannot tell the format of {} by its extension {other:?}; hint: .ndjson or .csv", path.display())
            }
        }
    }
}

/// What was taken from a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Lines with something on them, without a CSV's header.
    pub lines: u64,
    /// Deposits stored now.
    pub added: u64,
    /// Deposits that were there already, with the same payload.
    pub known: u64,
    /// Lines that were reported.
    pub wrong: u64,
}

/// Takes every deposit of a file; `report` is told the number of each line that cannot be taken, and why.
///
/// # Errors
/// The file cannot be read, is a CSV without the columns, or the store is `Unavailable`: what was taken until then
/// stays, and taking the file again goes on from there.
///
/// # Cancel safety
/// Dropping the future stops between two batches or leaves the last one undecided; take the file again.
pub async fn take_file(
    tide: &Tidegate,
    path: &Path,
    format: FileFormat,
    mut report: impl FnMut(u64, &str),
) -> anyhow::Result<Taken> {
    let context = || format!("cannot read {}", path.display());
    let mut lines = Lines { reader: BufReader::new(File::open(path).with_context(context)?), number: 0 };
    let columns = match format {
        FileFormat::Ndjson => None,
        FileFormat::Csv => Some(columns(&mut lines).with_context(context)?),
    };
    let mut taken = Taken::default();
    let mut batch = Vec::with_capacity(BATCH);
    while let Some((number, line)) = lines.next().with_context(context)? {
        taken.lines += 1;
        let parsed = line.and_then(|line| match &columns {
            None => parse_json(&line),
            Some(columns) => parse_csv(columns, &line),
        });
        match parsed {
            Ok(message) => batch.push((number, message)),
            Err(why) => {
                taken.wrong += 1;
                report(number, &why);
            }
        }
        if batch.len() == BATCH {
            enqueue(tide, &mut batch, &mut taken, &mut report).await?;
        }
    }
    enqueue(tide, &mut batch, &mut taken, &mut report).await?;
    Ok(taken)
}

async fn enqueue(
    tide: &Tidegate,
    batch: &mut Vec<(u64, Authorise)>,
    taken: &mut Taken,
    report: &mut impl FnMut(u64, &str),
) -> anyhow::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let (numbers, messages): (Vec<u64>, Vec<Authorise>) = batch.drain(..).unzip();
    let first = numbers[0];
    let verdicts = tide.enqueue_all(messages).await.with_context(|| {
        format!("the store failed from line {first} on; hint: take the file again, nothing is added twice")
    })?;
    for (number, verdict) in numbers.into_iter().zip(verdicts) {
        match verdict {
            Ok(sent) => match sent.enqueued() {
                Some(Enqueued::New { .. }) => taken.added += 1,
                Some(Enqueued::Existing { .. } | Enqueued::Replayed { .. }) => taken.known += 1,
                Some(Enqueued::Stale) | None => {
                    taken.wrong += 1;
                    report(number, "the deposit is older than answers are kept");
                }
            },
            Err(error) => {
                taken.wrong += 1;
                report(number, &error.to_string());
            }
        }
    }
    Ok(())
}

fn parse_json(line: &str) -> Result<Authorise, String> {
    let request: Request = serde_json::from_str(line).map_err(|error| error.to_string())?;
    request.into_message(None).map_err(|refused| refused.why)
}

fn columns(lines: &mut Lines<impl BufRead>) -> anyhow::Result<csv::StringRecord> {
    let Some((_, Ok(header))) = lines.next()? else {
        bail!("the CSV has no header line; hint: deposit,account,cents,card")
    };
    let columns = record(&header).map_err(anyhow::Error::msg)?;
    for column in ["deposit", "account", "cents"] {
        if !columns.iter().any(|named| named == column) {
            bail!("the CSV has no column {column:?}, only {header:?}; hint: its first line names the columns");
        }
    }
    Ok(columns)
}

fn parse_csv(columns: &csv::StringRecord, line: &str) -> Result<Authorise, String> {
    let record = record(line)?;
    if record.len() != columns.len() {
        return Err(format!("{} fields where the header names {}", record.len(), columns.len()));
    }
    let request: Request = record.deserialize(Some(columns)).map_err(|error| {
        let csv::ErrorKind::Deserialize { err, .. } = error.kind() else { return error.to_string() };
        let column = err.field().and_then(|index| columns.get(usize::try_from(index).ok()?));
        column.map_or_else(|| err.kind().to_string(), |column| format!("column {column}: {}", err.kind()))
    })?;
    request.into_message(None).map_err(|refused| refused.why)
}

/// One line as a record. A quoted field with a line break in it is not a line, and is refused as such.
fn record(line: &str) -> Result<csv::StringRecord, String> {
    if line.bytes().filter(|byte| *byte == b'"').count() % 2 == 1 {
        return Err("a quote is not closed on its line".to_owned());
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(line.as_bytes());
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|error| error.to_string())?;
    Ok(record)
}

/// The lines of a file that have something on them, with their numbers.
struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line; inside, why it cannot be read as text.
    fn next(&mut self) -> std::io::Result<Option<(u64, Result<String, String>)>> {
        loop {
            let Some(bytes) = self.bytes()? else { return Ok(None) };
            self.number += 1;
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(length) => {
                    let why = format!("the line is {length} bytes long, more than {LONGEST_LINE}");
                    return Ok(Some((self.number, Err(why))));
                }
            };
            // A byte order mark is how some programs begin a file of text.
            let bytes = if self.number == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes) } else { &bytes };
            match std::str::from_utf8(bytes) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => return Ok(Some((self.number, Ok(text.trim().to_owned())))),
                Err(error) => return Ok(Some((self.number, Err(format!("the line is not UTF-8: {error}"))))),
            }
        }
    }

    /// The bytes of the next line, or the length of one that is too long.
    fn bytes(&mut self) -> std::io::Result<Option<Result<Vec<u8>, usize>>> {
        let (mut line, mut length) = (Vec::new(), 0);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok((length > 0).then_some(if length > LONGEST_LINE { Err(length) } else { Ok(line) }));
            }
            let newline = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..newline.unwrap_or(buffer.len())];
            length += part.len();
            if length <= LONGEST_LINE {
                line.extend_from_slice(part);
            }
            let read = part.len() + usize::from(newline.is_some());
            self.reader.consume(read);
            if newline.is_some() {
                return Ok(Some(if length > LONGEST_LINE { Err(length) } else { Ok(line) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines { reader: text, number: 0 };
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn lines_are_numbered_as_an_editor_numbers_them() {
        let text = b"\xef\xbb\xbfone\r\n\n  \ntwo\n\xff\xfe\nthree";
        let read = lines(text);
        let numbers: Vec<u64> = read.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 4, 5, 6]);
        assert_eq!(read[0].1.as_deref(), Ok("one"));
        assert!(read[2].1.as_ref().unwrap_err().contains("not UTF-8"));
        assert_eq!(read[3].1.as_deref(), Ok("three"));
    }

    #[test]
    fn a_line_without_end_is_refused_and_the_next_one_is_read() {
        let mut text = vec![b'x'; LONGEST_LINE + 10];
        text.extend_from_slice(b"\nnext\n");
        let read = lines(&text);
        assert!(read[0].1.as_ref().unwrap_err().contains("65546 bytes"));
        assert_eq!(read[1], (2, Ok("next".to_owned())));
    }

    #[test]
    fn a_csv_line_is_read_by_the_columns_of_its_header() {
        let columns = record("cents, deposit ,account,card").unwrap();
        let taken = parse_csv(&columns, r#"1250,dep-1,"acct ""7""",declined"#).unwrap();
        assert_eq!((taken.deposit.as_str(), taken.account.as_str(), taken.cents), ("dep-1", "acct \"7\"", 1250));
        let cases = [
            ("1250,dep-1,a", "3 fields where the header names 4"),
            ("12x,dep-1,a,ok", "cents"),
            ("1250,dep-1,\"a,ok", "quote"),
            ("1250,dep-1,a,lost", "lost"),
            ("0,dep-1,a,ok", "0 cents"),
        ];
        for (line, expected) in cases {
            let why = parse_csv(&columns, line).unwrap_err();
            assert!(why.contains(expected), "{line}: {why}");
        }
    }
}
