//! Child processes of the demo, the soak and the torture: the same program, started again in another role.
//!
//! A child is told to stop when its standard input closes, so that none outlives a parent that was killed. What it says
//! on standard output is read line by line; its standard error goes to a file that is shown when something goes wrong.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidegate::{Address, Server};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::role::DATABASE;

/// The program that plays all the roles.
#[derive(Clone, Debug)]
pub struct Program {
    executable: PathBuf,
    /// What stands before the role on its command line.
    before: Vec<OsString>,
    logs: PathBuf,
    /// The store of all roles, if it is on a server.
    server: Option<Server>,
}

impl Program {
    /// A program that plays a role when it is called with `before` and the role's arguments; its children write what
    /// they have to say to people into files in `logs`.
    pub fn new(
        executable: impl Into<PathBuf>,
        before: impl IntoIterator<Item = impl Into<OsString>>,
        logs: impl Into<PathBuf>,
    ) -> Self {
        let before = before.into_iter().map(Into::into).collect();
        Self { executable: executable.into(), before, logs: logs.into(), server: None }
    }

    /// The program with a store for all its roles. A file is named on the command line of each, see [`Program::database`]; a
    /// server in the environment, which nobody else can read.
    #[must_use]
    pub fn with_store(self, store: &Address) -> Self {
        Self { server: store.server().cloned(), ..self }
    }

    /// What a role's command line says about its store.
    ///
    /// # Errors
    /// The path of a file is not UTF-8.
    pub fn database(store: &Address) -> anyhow::Result<Vec<String>> {
        Ok(match store {
            Address::File(_) => vec!["--database".to_owned(), store.reveal()?.to_owned()],
            Address::Server(_) => Vec::new(),
        })
    }

    /// Starts it in a role.
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn start(&self, name: &str, role: &[String]) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.executable);
        if let Some(server) = &self.server {
            command.env(DATABASE, server.reveal());
        }
        command.args(&self.before).args(role).arg("--stop-with-stdin");
        Process::start(name, command, &self.logs)
    }
}

/// A running role. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Held open: when it closes, the child stops.
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// Starts any command. What it has to say to people is added to the file `NAME.log` in `logs`; when its standard input
    /// closes, it should end.
    ///
    /// # Errors
    /// The log cannot be opened, or the command cannot be started.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let stderr = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let started = command.spawn();
        let mut child =
            started.with_context(|| format!("cannot start {} as {name}", command.as_std().get_program().display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a child has no standard output")?;
        Ok(Self { name: name.to_owned(), child, stdin, lines: BufReader::new(stdout).lines(), log })
    }

    /// What it says next; none when it has said everything.
    ///
    /// # Errors
    /// Its output cannot be read.
    ///
    /// # Cancel safety
    /// Safe: no line is lost.
    pub async fn line(&mut self) -> anyhow::Result<Option<String>> {
        self.lines.next_line().await.with_context(|| format!("cannot read what {} says", self.name))
    }

    /// Waits for the line `listening ADDRESS`, and gives the base URL.
    ///
    /// # Errors
    /// It said something else, ended, or was silent for ten seconds.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn listening(&mut self) -> anyhow::Result<String> {
        let line = self.announced().await?;
        match line.strip_prefix("listening ") {
            Some(address) => Ok(format!("http://{address}")),
            None => bail!("{} said {line:?} instead of where it listens{}", self.name, self.said()),
        }
    }

    /// Waits for its first line.
    ///
    /// # Errors
    /// It ended, or was silent for ten seconds.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn announced(&mut self) -> anyhow::Result<String> {
        match timeout(Duration::from_secs(10), self.line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => bail!("{} ended before it was ready{}", self.name, self.said()),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("{} was not ready within 10 s{}", self.name, self.said()),
        }
    }

    /// Its number, until it is known to have ended.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
    }

    /// Sends it a signal and does not wait.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("{} has ended{}", self.name, self.said()))?;
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system does not say.
    pub fn try_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask for {}", self.name))
    }

    /// Waits for its end, however it comes; kills it when that takes longer than `within`, and says so by none.
    ///
    /// # Errors
    /// The system does not say how it ended.
    ///
    /// # Cancel safety
    /// Safe, except that dropping the process kills it.
    pub async fn gone(&mut self, within: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let Ok(ended) = timeout(within, self.child.wait()).await else {
            self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
            return Ok(None);
        };
        ended.map(Some).with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Kills it as a crash would: SIGKILL, without a word. Returns when it is gone.
    ///
    /// # Errors
    /// It had ended already.
    ///
    /// # Cancel safety
    /// The signal was sent at the first poll.
    pub async fn kill_9(mut self) -> anyhow::Result<()> {
        if let Some(ended) = self.child.try_wait().context("cannot ask for a child")? {
            bail!("{} ended by itself with {ended} before it was to be killed{}", self.name, self.said());
        }
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Asks it to stop, and waits; kills it when it takes longer than `within`.
    ///
    /// # Errors
    /// It ended with a failure, or had to be killed.
    ///
    /// # Cancel safety
    /// Dropping the future kills the child.
    pub async fn stop(mut self, within: Duration) -> anyhow::Result<()> {
        if self.pid().is_some()
            && let Err(error) = self.signal(Signal::SIGTERM)
        {
            // It is gone already, which `wait` tells better.
            tracing::debug!(error = %error, "{} could not be told to stop", self.name);
        }
        match timeout(within, self.child.wait()).await {
            Ok(ended) => self.check(ended.context("cannot wait for a child")?),
            Err(_) => {
                self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
                bail!("{} did not stop within {within:?} and was killed{}", self.name, self.said())
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It ended with a failure.
    ///
    /// # Cancel safety
    /// Dropping the future kills the child.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        let ended = self.child.wait().await.context("cannot wait for a child")?;
        self.check(ended)
    }

    fn check(&mut self, ended: ExitStatus) -> anyhow::Result<()> {
        drop(self.stdin.take());
        if ended.success() {
            return Ok(());
        }
        bail!("{} ended with {ended}{}", self.name, self.said())
    }

    /// The end of its log, for an error message.
    #[must_use]
    pub fn said(&self) -> String {
        match tail(&self.log) {
            Some(text) => format!("; it said:\n{text}"),
            None => String::new(),
        }
    }
}

fn tail(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(10)..];
    (!last.is_empty()).then(|| last.join("\n"))
}
