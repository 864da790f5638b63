//! The model check: random commands on the reference model and on an engine under one manual clock, every verdict and
//! everything that can be looked at compared after each command.
//!
//! A run is made from a seed and nothing else, so a failure names its seed and can be had again. What failed is minimised
//! by leaving out commands while it still fails; the report shows what is left. Ids, and what the contract leaves to an
//! engine (texts of errors, the order of a sweep), are left out of the comparison.

mod run;
pub mod script;

use std::fmt;

use crate::Engine;
use script::{Command, script};

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The seed of the first script; the next ones follow it.
    pub first_seed: u64,
    /// How many scripts.
    pub scripts: u32,
    /// How many commands each.
    pub commands: usize,
}

impl Default for Check {
    /// A few seconds' worth, on an engine that writes to a disk.
    fn default() -> Self {
        Self { first_seed: 1, scripts: 16, commands: 100 }
    }
}

impl Check {
    /// The default, or what a tester asked for: one seed to be had again, or more scripts than usual.
    ///
    /// # Panics
    /// When a text is no number.
    #[must_use]
    pub fn asked(seed: Option<&str>, scripts: Option<&str>) -> Self {
        let number = |text: &str| text.parse::<u64>().expect("a seed or a count is a whole number");
        let usual = Self::default();
        match (seed.map(number), scripts.map(number)) {
            (Some(first_seed), None) => Self { first_seed, scripts: 1, ..usual },
            (seed, Some(scripts)) => Self {
                first_seed: seed.unwrap_or(usual.first_seed),
                scripts: u32::try_from(scripts).unwrap_or(u32::MAX),
                ..usual
            },
            (None, None) => usual,
        }
    }
}

/// The shortest script found on which model and engine differ.
#[derive(Debug)]
pub struct Disagreement {
    /// The seed it came from.
    pub seed: u64,
    /// What is left of the script.
    pub script: Vec<Command>,
    /// How the two differ after its last command.
    pub difference: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model and engine disagree; hint: TIDEGATE_CHECK_SEED={} has it again", self.seed)?;
        for (n, command) in self.script.iter().enumerate() {
            writeln!(f, "{n:>4}  {command:?}")?;
        }
        f.write_str(&self.difference)
    }
}

/// Runs scripts until one shows a disagreement.
///
/// # Errors
/// The disagreement, minimised.
///
/// # Cancel safety
/// Nothing is left behind but the engine's places.
pub async fn check(engine: &dyn Engine, check: &Check) -> Result<(), Disagreement> {
    for seed in check.first_seed..check.first_seed.saturating_add(u64::from(check.scripts)) {
        let commands = script(seed, check.commands);
        if let Some((at, _)) = run::run(engine, &commands).await {
            return Err(minimised(engine, seed, commands[..=at].to_vec()).await);
        }
    }
    Ok(())
}

/// Like [`check`], for a test: reports the disagreement by panicking.
///
/// # Panics
/// When model and engine disagree.
pub fn assert_agrees(engine: &dyn Engine, how_much: &Check) {
    if let Err(disagreement) = crate::run(check(engine, how_much)) {
        panic!("{disagreement}");
    }
}

/// Leaves out ever smaller parts of a script while it still fails, within a bounded number of tries.
async fn minimised(engine: &dyn Engine, seed: u64, mut script: Vec<Command>) -> Disagreement {
    let mut difference = String::new();
    let mut tries = 0;
    let mut part = script.len().div_ceil(2);
    if let Some((_, seen)) = run::run(engine, &script).await {
        difference = seen;
    }
    while part > 0 && tries < 400 {
        let mut from = 0;
        let mut shorter = false;
        while from < script.len() && tries < 400 {
            let mut candidate = script.clone();
            candidate.drain(from..(from + part).min(script.len()));
            tries += 1;
            match run::run(engine, &candidate).await {
                Some((at, seen)) => {
                    candidate.truncate(at + 1);
                    script = candidate;
                    difference = seen;
                    shorter = true;
                }
                None => from += part,
            }
        }
        if !shorter || part > 1 {
            part /= 2;
        }
    }
    Disagreement { seed, script, difference }
}

#[cfg(test)]
mod tests;
