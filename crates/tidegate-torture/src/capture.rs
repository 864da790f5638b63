//! Captures by another program: `tidegate serve` on the store of the run, and workers of that program, in whatever language,
//! which make the captures through it over HTTP, under a token that lets them do nothing else.
//!
//! What such a worker is told, and what is expected of it, is in docs/reliability/torture.md. Nothing is known of it here but
//! its command.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use deposits::clock;
use deposits::process::Process;
use deposits::steps::{Capture, Credit};
use tidegate::store::{Act, ChangeToken, Filter};
use tidegate::token::{Glob, Scope, Secret, TokenChange};
use tidegate::{Kind, Message, State, SystemRandom, Tidegate, TokenName};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::service::{Running, STARTS_WITHIN, Slot, Started};
use crate::stage::Stage;
use crate::victim::Victim;

/// Between two looks whether a server is ready, or a worker at work.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long it is waited for that there is something to lose.
const BUSY_WITHIN: Duration = Duration::from_secs(10);

/// How the names of the workers begin.
const NAMES: &str = "capture-";

/// Who makes the captures, if it is not the services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureWith {
    /// Starts a worker, as a shell reads it.
    pub command: String,
    /// How many of them.
    pub workers: usize,
}

/// The way from the store to these workers.
#[derive(Debug)]
pub(crate) struct Through {
    pub(crate) with: CaptureWith,
    /// The program that serves.
    executable: PathBuf,
    /// The same for each server, so that a worker finds the next one.
    port: u16,
    token: Secret,
    http: reqwest::Client,
}

impl Through {
    pub(crate) fn new(with: CaptureWith, executable: PathBuf) -> anyhow::Result<Self> {
        ensure!(with.workers > 0, "0 capture workers make no captures; hint: --capture-workers 1 or more");
        // Free now. Should somebody else take it while the server is down, its start is tried again until they let it go.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr());
        let port = free.context("cannot find a free port for the server")?.port();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(3));
        let http = http.build().context("cannot make an HTTP client for the server")?;
        Ok(Self { with, executable, port, token: Secret::new(&SystemRandom), http })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets the workers make captures, and what follows from one.
    pub(crate) async fn allow(&self, tide: &Tidegate) -> anyhow::Result<()> {
        let scopes = [format!("work:{}", Capture::QUEUE), format!("produce:{}", Credit::QUEUE)];
        let scopes = scopes.iter().map(|scope| scope.parse::<Scope>()).collect::<Result<_, _>>()?;
        let change = TokenChange::Add { hash: self.token.hash(), scopes, tenant: Glob::new("")?, expires_at: None };
        let act =
            Act { actor: "torture".to_owned(), reason: "workers of another program make the captures".to_owned() };
        tide.store().change_token(ChangeToken { name: TokenName::new("capture")?, change, act }).await?;
        Ok(())
    }

    /// `tidegate serve`, which ends with its standard input.
    fn serve(&self, stage: &Stage, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.executable);
        match &stage.database {
            // Everybody on a machine can read a command line, and the address may hold a password.
            Some(database) => command.env("TIDEGATE_STORE", database.address_for(name).reveal()?),
            None => command.args(["--store", stage.store.reveal()?]),
        };
        command.args([
            "serve",
            "--listen",
            &format!("127.0.0.1:{}", self.port),
            "--require-tokens",
            "--stop-with-stdin",
        ]);
        Ok(command)
    }

    /// A worker, which is told everything by its environment. The shell is gone when it runs: signals are for it alone.
    fn work(&self, stage: &Stage, name: &str, concurrency: u32) -> Command {
        let scale = &stage.scale;
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {}", self.with.command)]);
        command.env("TIDEGATE_URL", self.url()).env("TIDEGATE_TOKEN", self.token.reveal());
        command.env("GATEWAY_URL", &stage.gateway_url).env("GATEWAY_MODE", stage.gateway.name());
        command.env("WORKER_NAME", name).env("CONCURRENCY", concurrency.to_string());
        command.env("STOP_WITH_STDIN", "1");
        let times = [
            ("LEASE_MS", scale.lease_ms),
            ("CALL_TIMEOUT_MS", scale.call_timeout_ms),
            ("QUARANTINE_MS", scale.quarantine_ms),
            ("BACKOFF_FIRST_MS", scale.backoff_first_ms),
            ("BACKOFF_GREATEST_MS", scale.backoff_greatest_ms),
        ];
        command.envs(times.map(|(name, ms)| (name, ms.to_string())));
        command
    }

    async fn is_ready(&self) -> bool {
        let asked = self.http.get(format!("{}/readyz", self.url())).send().await;
        asked.is_ok_and(|answer| answer.status().is_success())
    }
}

impl Slot {
    /// Starts a server and waits until it is ready; none when it ended before, as it does if the database is away or its
    /// port is taken at that moment.
    pub(crate) async fn start_server(&self, through: &Through) -> anyhow::Result<Option<Started>> {
        let name = format!("server-{}", self.started);
        let process = Process::start("server", through.serve(&self.stage, &name)?, &self.stage.directory)?;
        let mut running = Running { process, name };
        let begun = clock::now();
        while !through.is_ready().await {
            if running.process.try_ended()?.is_some() {
                tracing::info!("{} could not start{}", running.name, running.process.said());
                return Ok(None);
            }
            let took = clock::now().saturating_duration_since(begun);
            ensure!(
                took < STARTS_WITHIN,
                "{} was not ready within {STARTS_WITHIN:?}{}",
                running.name,
                running.process.said()
            );
            sleep(LOOK_EVERY).await;
        }
        Ok(Some(Started::Listens(running)))
    }

    /// Waits until this worker holds a capture, or until any worker does if it is a server: a process that has only just begun
    /// has nothing to lose. Not for ever: there may be none left.
    pub(crate) async fn until_captures_are_held(&self, running: &Running) {
        let by = |holder: &str| match self.victim {
            Victim::Server => holder.starts_with(NAMES),
            Victim::CaptureWorker | Victim::Service => holder == running.name,
        };
        let begun = clock::now();
        while clock::now().saturating_duration_since(begun) < BUSY_WITHIN {
            // A database that is away for the moment shows nothing.
            if holders_of_captures(&self.tide).await.unwrap_or_default().iter().any(|holder| by(holder)) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Starts a worker of the other program, and waits until it says that it works.
    pub(crate) async fn start_capture_worker(&self, through: &Through) -> anyhow::Result<Option<Started>> {
        let place = format!("{NAMES}{}", self.nth);
        let name = format!("{place}-{}", self.started);
        let command = through.work(&self.stage, &name, self.concurrency);
        let mut process = Process::start(&place, command, &self.stage.directory)?;
        let line = match timeout(STARTS_WITHIN, process.line()).await {
            Ok(line) => line?,
            Err(_) => bail!("{name} did not say that it works within {STARTS_WITHIN:?}{}", process.said()),
        };
        if line.as_deref().is_some_and(|line| line.starts_with("working")) {
            return Ok(Some(Started::Listens(Running { process, name })));
        }
        let said = line.map_or_else(|| "ended".to_owned(), |line| format!("said {line:?}"));
        bail!(
            "{name} {said} instead of `working NAME`{}; hint: it is started by `sh -c 'exec {}'`",
            process.said(),
            through.with.command
        )
    }
}

/// The workers that captures are leased to at this moment.
async fn holders_of_captures(tide: &Tidegate) -> anyhow::Result<Vec<String>> {
    let kind = Some(Kind::new(Capture::KIND)?);
    let filter = Filter { states: vec![State::Leased], kind, limit: 1_000, ..Filter::default() };
    let leased = tide.store().list(filter).await?;
    let views = tide.store().inspect(leased.into_iter().map(|summary| summary.id).collect()).await?;
    let leases = views.into_iter().flatten().filter_map(|view| view.lease);
    Ok(leases.map(|(holder, _)| holder.as_str().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_worker_makes_no_captures_and_is_refused() {
        let with = CaptureWith { command: "true".to_owned(), workers: 0 };
        let refused = Through::new(with, PathBuf::from("tidegate")).unwrap_err();
        assert!(refused.to_string().contains("--capture-workers"), "{refused}");
    }
}
