//! A process of its own that this test binary starts of itself, to be killed.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

/// Ends when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts the test of this name with what it is told in its environment, and returns when it says this.
    pub(crate) fn start(test: &str, told: &[(&str, &str)], says: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a running program has a file"))
            .args([test, "--exact", "--nocapture"])
            .envs(told.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts itself");
        let mut lines = BufReader::new(child.stdout.take().expect("asked for above")).lines();
        assert!(lines.any(|line| line.unwrap().contains(says)), "{test} says how far it is");
        Self(child)
    }

    /// As the row of a duty names it.
    pub(crate) fn name(&self) -> String {
        format!("process {}", self.0.id())
    }

    /// Tells it something.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().expect("asked for"), "{line}").expect("it reads");
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("a child can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
