//! The server that is measured: the program itself, on a port of its own, over a store that goes with it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::honest::Connection;
use super::{PATIENCE, Parameters};

/// What a server takes unless it is told otherwise.
const USUAL_CONNECTIONS: usize = 8192;
/// Beside the slow ones: the honest client's, and those of slow clients that are being followed by others.
const BESIDE: usize = 1000;

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pub(super) address: SocketAddr,
    observer: Observer,
    _directory: TempDir,
}

/// Who asks the server how it is, on one connection that is kept: one that is left for the next is still counted for a
/// moment, as if somebody were there.
#[derive(Debug)]
struct Observer {
    runtime: Runtime,
    connection: Option<Connection>,
}

impl Observer {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, connection: None })
    }

    fn metrics(&mut self, address: SocketAddr) -> anyhow::Result<String> {
        const REQUEST: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        self.runtime.block_on(async {
            // Between two turns it is idle, and a server closes what is idle for long.
            if let Some(connection) = &mut self.connection
                && let Ok(text) = connection.ask(REQUEST).await
            {
                return Ok(text);
            }
            self.connection.insert(Connection::to(address).await?).ask(REQUEST).await
        })
    }
}

/// What the server says of its connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) connections: u64,
    pub(super) cut_off: u64,
}

impl Process {
    pub(super) fn start(parameters: &Parameters) -> anyhow::Result<Self> {
        let observer = Observer::new()?;
        let directory = tempfile::tempdir_in(&parameters.dir)
            .with_context(|| format!("no store can be made in {}", parameters.dir.display()))?;
        let mut command = Command::new(&parameters.program);
        // What the environment says of other servers is none of this one's business.
        command.env_clear().env("TIDEGATE_LOG_FORMAT", "text").current_dir(directory.path());
        command.args(["serve", "--store", "slow.db", "--listen", "127.0.0.1:0"]);
        let wanted = parameters.connections + parameters.honest + BESIDE;
        if wanted > USUAL_CONNECTIONS {
            command.args(["--set", &format!("limits.connections={wanted}")]);
        }
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = started.with_context(|| {
            format!(
                "{} cannot be started; hint: cargo build --release -p tidegate-cli, or --program PATH",
                parameters.program.display()
            )
        })?;
        let told = child.stderr.take().context("the server has no standard error")?;
        let (say, said) = mpsc::channel();
        std::thread::spawn(move || listen(BufReader::new(told), &say));
        let why = match said.recv_timeout(PATIENCE) {
            Ok(Ok(address)) => return Ok(Self { child, address, observer, _directory: directory }),
            Ok(Err(told)) => format!("the server ended: {told}"),
            Err(_) => format!("the server did not say within {PATIENCE:?} where it listens"),
        };
        let _ended = child.kill();
        let _status = child.wait();
        anyhow::bail!(why)
    }

    pub(super) fn counted(&mut self) -> anyhow::Result<Counted> {
        let text = self.observer.metrics(self.address)?;
        let number = |name: &str| -> anyhow::Result<u64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            value.with_context(|| format!("the metrics have no {name}: {text}"))
        };
        Ok(Counted {
            // Without the one that asks.
            connections: number("tidegate_http_connections ")?.saturating_sub(1),
            cut_off: number("tidegate_http_rejected_total{reason=\"slow_client\"} ")?
                // Whose bodies did not come.
                + number("tidegate_http_rejected_total{reason=\"timed_out\"} ")?,
        })
    }

    /// Returns when the server has let go of everybody that left.
    pub(super) fn quiet(&mut self) -> anyhow::Result<()> {
        self.comes_to("no", |connections| connections == 0)
    }

    /// Returns when the server has taken so many.
    pub(super) fn has(&mut self, wanted: usize) -> anyhow::Result<()> {
        let wanted = u64::try_from(wanted)?;
        self.comes_to(&format!("{wanted} or more"), |connections| connections >= wanted)
    }

    fn comes_to(&mut self, what: &str, is_so: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            let connections = self.counted()?.connections;
            if is_so(connections) {
                return Ok(());
            }
            anyhow::ensure!(
                begun.elapsed() < PATIENCE,
                "the server has {connections} connections after {PATIENCE:?}, where {what} were awaited"
            );
            self.observer.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Finds where the server listens, and goes on reading, because a pipe that nobody reads holds up who writes into it.
fn listen(mut told: BufReader<impl std::io::Read>, say: &mpsc::Sender<Result<SocketAddr, String>>) {
    let mut all = String::new();
    let mut line = String::new();
    while told.read_line(&mut line).is_ok_and(|n| n > 0) {
        if let Some(address) = line.split_once(" on http://").and_then(|(_, address)| address.trim().parse().ok()) {
            let _gone = say.send(Ok(address));
            let mut unread = [0; 4096];
            while told.read(&mut unread).is_ok_and(|n| n > 0) {}
            return;
        }
        all.push_str(&line);
        line.clear();
    }
    let _gone = say.send(Err(all));
}
