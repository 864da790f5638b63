//! What happened, in order: a running hash of all of it, and the last events to read.

use std::collections::VecDeque;
use std::fmt;

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) at_ms: u64,
    /// Which process; none for what happens outside of all.
    pub(crate) process: Option<u8>,
    pub(crate) what: &'static str,
    /// A message, mostly.
    pub(crate) id: i64,
    pub(crate) detail: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.at_ms / 1000, self.at_ms % 1000);
        write!(f, "{seconds:>7}.{ms:03} s  ")?;
        match self.process {
            Some(process) => write!(f, "p{process}  ")?,
            None => f.write_str("--  ")?,
        }
        f.write_str(self.what)?;
        if self.id != 0 {
            write!(f, " {}", tidegate_core::MessageId::from_i64(self.id))?;
        }
        if self.detail != 0 { write!(f, " ({})", self.detail) } else { Ok(()) }
    }
}

/// The course of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    last: VecDeque<Event>,
    keep: usize,
}

impl Trace {
    pub(crate) fn new(keep: usize) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, events: 0, last: VecDeque::with_capacity(keep), keep }
    }

    pub(crate) fn note(&mut self, event: Event) {
        self.events += 1;
        let mut mix = |value: u64| self.hash = (self.hash ^ value).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
        mix(event.at_ms);
        mix(event.process.map_or(255, u64::from));
        event.what.bytes().for_each(|byte| mix(u64::from(byte)));
        mix(event.id.cast_unsigned());
        mix(event.detail);
        if self.last.len() == self.keep {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Two runs with the same hash did the same.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.last.iter().map(ToString::to_string).collect()
    }
}
