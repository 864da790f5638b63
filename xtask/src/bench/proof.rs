//! Whether a queue waits for the disk where it says so: its fsyncs are counted from outside, with strace.
//!
//! A queue that runs one message after the other, each from its enqueue to its durable end, has to fsync at least twice a
//! message: before it acknowledges the enqueue, and before it says that the message is done. What the process does
//! besides (opening, migrating, closing) is counted without a message and taken off.

use crate::bench::{Start, next};
use crate::run::is_installed;

/// Messages of the serial count, and of the one under load.
const ALONE: u32 = 30;
const LOADED: u32 = 2000;

/// Fewer a message, and an acknowledgement came before its fsync.
pub(super) const LEAST: f64 = 2.0;

/// Fsyncs a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Waited {
    /// One message after the other.
    pub(super) alone: f64,
    /// Under load, where many share one.
    pub(super) loaded: f64,
}

/// Nothing if strace is not installed.
pub(super) fn count(start: &Start, seeds: &mut std::ops::RangeFrom<u64>) -> Result<Option<Waited>, String> {
    if !is_installed("strace", &["-V"]) {
        println!(
            "NOT RUN: strace is not installed, so fsyncs were not counted\nhint: on Debian: apt-get install strace"
        );
        return Ok(None);
    }
    let mut counted = |messages: u32, is_serial: bool| -> Result<f64, String> {
        let summary = start.directory.join("strace.txt");
        let name = summary.display().to_string();
        let below = ["strace", "--seccomp-bpf", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", &name];
        let mut command = start.command(messages, 0, next(seeds));
        if is_serial {
            command.push("--serial".to_owned());
        }
        start.run(&below.into_iter().chain(command.iter().map(String::as_str)).collect::<Vec<_>>())?;
        let text = std::fs::read_to_string(&summary).map_err(|e| format!("strace left no summary: {e}"))?;
        fsyncs(&text)
    };
    // The first makes the file, and is not counted.
    counted(0, true)?;
    let idle = counted(0, true)?;
    let alone = (counted(ALONE, true)? - idle) / f64::from(ALONE);
    // A round of n has n/4 more in front of it, which warm up.
    let loaded = (counted(LOADED, false)? - idle) / f64::from(LOADED + LOADED.div_ceil(4));
    let directory = &start.directory;
    // The rounds that count begin with a file of their own.
    std::fs::remove_dir_all(directory)
        .and_then(|()| std::fs::create_dir(directory))
        .map_err(|e| format!("cannot empty {}: {e}", directory.display()))?;
    Ok(Some(Waited { alone, loaded }))
}

/// The calls in a summary of strace.
fn fsyncs(summary: &str) -> Result<f64, String> {
    let mut all = 0.0;
    for line in summary.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(&("fsync" | "fdatasync")) = words.last() {
            // % time, seconds, usecs/call, calls, errors if any, name
            let calls = words.get(3).and_then(|calls| calls.parse::<f64>().ok());
            all += calls.ok_or_else(|| format!("no count in strace's line {line:?}"))?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_both_kinds_are_added() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
                       ------ ----------- ----------- --------- --------- ----------------\n \
                       99.52    0.020000         200       100           fdatasync\n  \
                       0.48    0.000097          32         3         1 fsync\n\
                       ------ ----------- ----------- --------- --------- ----------------\n\
                       100.00    0.020097         195       103         1 total\n";
        assert_eq!(fsyncs(summary), Ok(103.0));
        assert_eq!(fsyncs(""), Ok(0.0), "a process that never fsyncs has an empty summary");
        assert!(fsyncs("1 2 3 many fsync").unwrap_err().contains("many"));
    }
}
