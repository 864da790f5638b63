//! One line of a program of the comparison: read, and not believed where it can be checked.

use serde_json::Value;

/// What a round says, once it has passed the checks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Round {
    /// The line itself, for what is only passed on.
    pub(super) line: Value,
    pub(super) synchronous: i64,
    pub(super) lifecycles_per_s: Option<f64>,
    pub(super) enqueue_per_s: Option<f64>,
    pub(super) cpu_us: Option<f64>,
    pub(super) ran_again: u64,
}

impl Round {
    /// Reads what a program printed.
    ///
    /// A message that is lost, unfinished, there twice, or with another result than its handler gave is an error: a rate
    /// of work that was not done is no rate. That a handler ran again is not; every queue here may do that, and it is told.
    pub(super) fn parse(printed: &str) -> Result<Self, String> {
        let line: Value =
            serde_json::from_str(printed.trim()).map_err(|e| format!("it printed no line of JSON: {e}\n{printed}"))?;
        let count =
            |name: &str| line["counts"][name].as_u64().ok_or_else(|| format!("its line has no count {name}: {line}"));
        for name in ["lost", "unfinished", "duplicates", "ran_wrong", "results_wrong"] {
            let found = count(name)?;
            if found > 0 {
                return Err(format!("{found} messages are {name}: {}", line["counts"]));
            }
        }
        let (enqueued, completed, results) = (count("enqueued")?, count("completed_once")?, count("results_right")?);
        if completed != enqueued || (results != enqueued && results != 0) {
            return Err(format!("{enqueued} enqueued, {completed} completed once, {results} results"));
        }
        let journal_mode = line["pragmas"]["journal_mode"].as_str().unwrap_or("not told");
        if !journal_mode.eq_ignore_ascii_case("wal") {
            return Err(format!("its journal_mode is {journal_mode}, not wal"));
        }
        if line["build"] != "release" {
            return Err(format!("it is a {} build", line["build"]));
        }
        for name in ["name", "version", "sqlite_version"] {
            line[name].as_str().ok_or_else(|| format!("its line has no {name}: {line}"))?;
        }
        let synchronous = line["pragmas"]["synchronous"].as_i64();
        let round = Self {
            synchronous: synchronous.ok_or_else(|| format!("its line does not tell synchronous: {line}"))?,
            lifecycles_per_s: line["lifecycles_per_s"].as_f64(),
            enqueue_per_s: line["enqueue_per_s"].as_f64(),
            cpu_us: line["cpu_us_per_message"].as_f64(),
            ran_again: count("ran_again")?,
            line,
        };
        let is_serial = round.line["serial"] == true;
        if !is_serial && (round.lifecycles_per_s.is_none() || round.enqueue_per_s.is_none()) {
            return Err(format!("its line has no rates: {}", round.line));
        }
        Ok(round)
    }

    /// A text of the line.
    pub(super) fn text(&self, name: &str) -> &str {
        self.line[name].as_str().unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A line that passes.
    pub(in crate::bench) fn line(name: &str, per_s: f64) -> Value {
        json!({
            "name": name, "version": "1.0.0", "sqlite_version": "3.50.0", "build": "release", "serial": false,
            "messages": 8, "preloaded": 5, "keys": true,
            "contract": {"keys": "k", "results": "r", "history": "h", "fencing": "f"},
            "acknowledged": {"enqueue": "fsynced", "completion": "fsynced"},
            "settings": {"producers": "8", "batch": "250"},
            "pragmas": {"asked_by": "a test", "connections": 1, "journal_mode": "wal", "synchronous": 2},
            "enqueue_per_s": 2.0 * per_s, "lifecycles_per_s": per_s, "cpu_us_per_message": 50.0,
            "counts": {"enqueued": 10, "completed_once": 10, "lost": 0, "unfinished": 0, "duplicates": 0,
                "ran_again": 1, "ran_wrong": 0, "results_wrong": 0, "results_right": 10},
        })
    }

    #[test]
    fn a_line_is_read() {
        let round = Round::parse(&format!("{}\n", line("q", 100.0))).unwrap();
        assert_eq!((round.synchronous, round.lifecycles_per_s, round.enqueue_per_s), (2, Some(100.0), Some(200.0)));
        assert_eq!((round.ran_again, round.text("name")), (1, "q"));
    }

    #[test]
    fn a_line_of_work_that_was_not_done_is_refused() {
        let wrong: [(&str, &str, Value, &str); 11] = [
            ("/counts", "lost", json!(1), "1 messages are lost"),
            ("/counts", "unfinished", json!(2), "2 messages are unfinished"),
            ("/counts", "duplicates", json!(3), "3 messages are duplicates"),
            ("/counts", "ran_wrong", json!(4), "4 messages are ran_wrong"),
            ("/counts", "results_wrong", json!(5), "5 messages are results_wrong"),
            ("/counts", "completed_once", json!(9), "9 completed once"),
            ("/counts", "results_right", json!(9), "9 results"),
            ("/pragmas", "journal_mode", json!("delete"), "journal_mode is delete"),
            ("/pragmas", "synchronous", json!(null), "does not tell synchronous"),
            ("", "build", json!("debug"), "debug"),
            ("", "lifecycles_per_s", json!(null), "no rates"),
        ];
        for (place, name, value, named) in wrong {
            let mut line = line("q", 100.0);
            line.pointer_mut(place).unwrap()[name] = value;
            let problem = Round::parse(&line.to_string()).unwrap_err();
            assert!(problem.contains(named), "{name}: {problem}");
        }
        assert!(Round::parse("thread main panicked").unwrap_err().contains("no line of JSON"));
    }

    #[test]
    fn a_queue_that_keeps_no_results_and_a_serial_round_without_rates_pass() {
        let mut none = line("q", 100.0);
        none["counts"]["results_right"] = json!(0);
        assert!(Round::parse(&none.to_string()).is_ok());
        none["serial"] = json!(true);
        none["lifecycles_per_s"] = json!(null);
        assert_eq!(Round::parse(&none.to_string()).unwrap().lifecycles_per_s, None);
    }
}
