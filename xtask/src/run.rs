//! Running a program as one step, and saying so: which step, which command, how long it took.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A command of the gate: what is run, and how a person repeats it.
pub(crate) struct Program<'a> {
    pub(crate) program: &'a str,
    pub(crate) arguments: Vec<&'a str>,
    pub(crate) environment: Vec<(&'a str, &'a str)>,
}

impl<'a> Program<'a> {
    pub(crate) fn cargo(arguments: &[&'a str]) -> Self {
        Self { program: "cargo", arguments: arguments.to_vec(), environment: Vec::new() }
    }

    pub(crate) fn with_env(mut self, name: &'a str, value: &'a str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// The line to type into a shell to run this again.
    pub(crate) fn as_typed(&self) -> String {
        let settings = self.environment.iter().map(|(name, value)| format!("{name}='{value}'"));
        let words = std::iter::once(self.program).chain(self.arguments.iter().copied()).map(quoted);
        settings.chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs it with the terminal passed through. A non-zero exit is an error.
    pub(crate) fn run(&self, root: &Path) -> Result<(), String> {
        let status = self.command(root).status().map_err(|e| self.cannot_start(&e))?;
        if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}", self.as_typed())) }
    }

    /// Runs it without a terminal and returns what it printed on standard output.
    pub(crate) fn output(&self, root: &Path) -> Result<String, String> {
        let output = self
            .command(root)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .map_err(|e| self.cannot_start(&e))?;
        if !output.status.success() {
            let talk = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{}` ended with {}\n{}", self.as_typed(), output.status, talk.trim_end()));
        }
        String::from_utf8(output.stdout).map_err(|e| format!("`{}` printed no UTF-8: {e}", self.as_typed()))
    }

    fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(self.program);
        command.args(&self.arguments).envs(self.environment.iter().copied()).current_dir(root);
        command
    }

    fn cannot_start(&self, error: &std::io::Error) -> String {
        format!("cannot start `{}`: {error}", self.as_typed())
    }
}

/// Runs `work` under a heading and returns its result and how long it took.
pub(crate) fn timed<T>(name: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    println!("==> {name}");
    let started = now();
    let value = work();
    let took = started.elapsed();
    println!("<== {name} took {}", seconds(took));
    (value, took)
}

/// The same without the heading.
pub(crate) fn timed_quietly<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = now();
    let value = work();
    (value, started.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "a stopwatch for a person; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Whether `program --version` can be run here.
pub(crate) fn is_installed(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,".contains(c);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let doc = Program::cargo(&["doc", "--no-deps"]).with_env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(doc.as_typed(), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
        assert_eq!(Program::cargo(&["test", "a b"]).as_typed(), "cargo test 'a b'");
    }

    #[test]
    fn a_program_that_fails_is_an_error_that_names_the_command() {
        let error = Program::cargo(&["no-such-command"]).output(Path::new(".")).unwrap_err();
        assert!(error.starts_with("`cargo no-such-command` ended with"), "{error}");
    }
}
