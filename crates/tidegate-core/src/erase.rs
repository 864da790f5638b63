//! What may be erased of an ended message. Its key, its state and the fact that it was answered always stay, because they
//! are what keeps a duplicate from starting work.

use crate::id::MessageId;
use crate::store::Act;

/// What stands where a payload, a value or a text was: JSON, so that whoever reads it as such can.
pub const TOMBSTONE: &str = "{\"erased\":true}";

/// What is erased beside the payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Also {
    /// The result, or the failure's detail: a duplicate then learns the state only.
    pub answer: bool,
    /// Values of effects, and late evidence.
    pub effects: bool,
    /// The headers.
    pub headers: bool,
    /// What the history, the failure of a dead letter and the reasons of a redrive say.
    pub history: bool,
}

impl Also {
    /// What is erased, in words, for the audit.
    #[must_use]
    pub fn words(self) -> String {
        let parts =
            [("answer", self.answer), ("effects", self.effects), ("headers", self.headers), ("history", self.history)];
        let chosen = parts.into_iter().filter_map(|(word, chosen)| chosen.then_some(word));
        std::iter::once("payload").chain(chosen).collect::<Vec<_>>().join(", ")
    }
}

/// Which messages are erased, and how much of them.
#[derive(Debug, Clone)]
pub struct Erase {
    /// Which.
    pub ids: Vec<MessageId>,
    /// Beside the payload.
    pub also: Also,
    /// Who and why; the reason is mandatory.
    pub act: Act,
}
