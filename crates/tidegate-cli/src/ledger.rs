//! Lines of a file that somebody else wrote: objects, one a line (NDJSON) or a row under a heading (CSV, by its ending).
//!
//! A line that cannot be read is kept with its number and what is wrong, so that the others can still be worked on.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::value::RawValue;

use crate::exit::{Code, Problem};
use crate::input::{self, Layout};

/// A line with its number in the file.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) entry: Result<Entry, String>,
}

/// The members of a line, each as JSON text; what a CSV cell holds is a text.
pub(crate) struct Entry {
    members: BTreeMap<String, String>,
    /// The whole line as JSON.
    pub(crate) json: String,
    /// All its members are texts, whatever was meant: cells of a CSV file.
    pub(crate) texts: bool,
}

impl Entry {
    /// A member as JSON text, unless it is missing, null or empty.
    pub(crate) fn json_of(&self, name: &str) -> Option<&str> {
        self.members.get(name).map(String::as_str).filter(|json| !matches!(*json, "null" | "\"\""))
    }

    /// A member as text: a string without its quotes, anything else as it is written.
    pub(crate) fn text_of(&self, name: &str) -> Option<String> {
        let json = self.json_of(name)?;
        Some(serde_json::from_str(json).unwrap_or_else(|_| json.to_owned()))
    }
}

/// All lines of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<Line>, Problem> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Usage };
        Problem::new(code, format!("{shown} cannot be read: {error}")).hint("a file with NDJSON, or CSV with a heading")
    })?;
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv")) {
        return records(&text).map_err(|error| Problem::usage(format!("{shown} has no heading: {error}")));
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(number, line)| Line { number, entry: object(line.trim()) }).collect())
}

pub(crate) fn object(line: &str) -> Result<Entry, String> {
    // Members stay as they are written: through a number type, large amounts would become others.
    let members: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(line).map_err(|error| match serde_json::from_str::<&RawValue>(line) {
            Ok(_) if !line.starts_with('{') => input::NO_OBJECT.to_owned(),
            Ok(_) | Err(_) => input::why_not(&error),
        })?;
    let members = members.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect();
    Ok(Entry { members, json: line.to_owned(), texts: false })
}

pub(crate) fn records(text: &str) -> Result<Vec<Line>, csv::Error> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let heading = reader.headers()?.clone();
    let mut layout = Layout::default();
    layout.take(text.as_bytes());
    layout.take(&[]);
    let mut lines = Vec::new();
    for record in reader.records() {
        let (number, entry) = match record {
            Ok(record) => {
                let quoted = |cell: &str| serde_json::Value::from(cell.trim()).to_string();
                let members: BTreeMap<String, String> =
                    heading.iter().zip(&record).map(|(name, cell)| (name.trim().to_owned(), quoted(cell))).collect();
                let inside: Vec<String> =
                    members.iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
                let json = format!("{{{}}}", inside.join(","));
                (layout.line_of(record.position()), Ok(Entry { members, json, texts: true }))
            }
            Err(error) => (layout.line_of(error.position()), Err(why(&error))),
        };
        lines.push(Line { number, entry });
    }
    if let (Some(number), Some(last)) = (layout.unclosed(), lines.last_mut()) {
        *last = Line { number, entry: Err(input::UNCLOSED.to_owned()) };
    }
    Ok(lines)
}

/// The reader's own text begins with numbers of its own.
fn why(error: &csv::Error) -> String {
    if let csv::ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
        return format!("{len} fields, the heading has {expected_len}");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_and_keeps_its_numbers() {
        let entry = object(r#"{"key":"k1","amount":9007199254740993,"none":null}"#).unwrap();
        assert_eq!(entry.text_of("key").as_deref(), Some("k1"));
        assert_eq!(entry.json_of("key"), Some("\"k1\""));
        assert_eq!(entry.text_of("amount").as_deref(), Some("9007199254740993"));
        assert_eq!((entry.json_of("none"), entry.json_of("other")), (None, None));
        assert_eq!(object("7").map(drop), Err("the line is no JSON object".to_owned()));
        assert_eq!(object("{\"a\":").map(drop), Err("not JSON: EOF while parsing a value at column 5".to_owned()));
    }

    #[test]
    fn a_row_under_a_heading_is_an_object_of_texts() {
        let lines = records("key, amount\nk1,500\nk2\n").unwrap();
        let first = lines[0].entry.as_ref().map_err(String::as_str).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((lines[0].number, first.json.as_str()), (2, r#"{"amount":"500","key":"k1"}"#));
        assert!(lines[1].entry.is_err() && lines[1].number == 3);
        let numbers = |text: &str| records(text).unwrap().iter().map(|line| line.number).collect::<Vec<_>>();
        assert_eq!(numbers("key,n\r\nk1,\"a\r\nb\"\r\n\r\nk2,1\r\nk3\r\n"), [2, 5, 6]);
        assert_eq!(records("key,n\r\nk1,1\r\nk2,\"\r\n").unwrap()[1].entry.as_ref().err().unwrap(), input::UNCLOSED);
    }
}
