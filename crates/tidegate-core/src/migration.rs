//! The numbered steps in which an engine makes its tables, as a person who looks after a database asks for them.
//!
//! Steps are only ever added, and each is known by its text: what a store was made of is compared, not guessed.

use serde::Serialize;

use crate::clock::Timestamp;

/// One step of an engine's tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its number, from 1.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// What it does.
    #[serde(skip)]
    pub sql: String,
    /// When a store took it; none of a step that is missing there.
    pub applied_at: Option<Timestamp>,
}
