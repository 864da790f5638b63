//! What looking a store over comes to, whatever the engine: checks by name, and what each found.
//!
//! Which checks there are is the engine's to say, because most of them are about its own tables. What a person or a script
//! reads is the same for all.

use serde::Serialize;

use crate::id::MessageId;

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it looks at.
    pub what: &'static str,
    /// Nothing is wrong: nothing was found, or nothing that is more than a warning.
    pub ok: bool,
    /// How much was found.
    pub found: usize,
    /// The first of it.
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// In which table; empty when it is about the store as a whole.
    pub table: String,
    /// In which row: a message's number, or whatever names the row in that table.
    pub row: String,
    /// The message, if the row is about one.
    pub message: Option<MessageId>,
    /// What is wrong.
    pub what: String,
}
