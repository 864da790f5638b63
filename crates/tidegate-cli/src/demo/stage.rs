//! The processes of the demo, and the files they leave behind.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use deposits::load::{Progress, SideName};
use deposits::operator::{self, Round};
use deposits::process::{Process, Program};
use deposits::proof::Evidence;
use deposits::schema;
use deposits::trace::Preset;
use tidegate::{Address, Server, Tidegate};

use super::DemoArgs;
use super::show::Doubled;
use super::tail::Tail;

/// How long a process may take to end in good order; a gateway has to carry out its late calls besides.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    program: Program,
    /// The command lines of what is killed and started again.
    twin_role: Vec<String>,
    work_role: Vec<String>,
    gateways: [Process; 2],
    twin: Option<Process>,
    intake: Process,
    /// One on a file, several on a server.
    workers: Vec<Option<Process>>,
    load: Option<Process>,
    tails: [Tail; 2],
    operator: Tidegate,
    greatest_lateness: Duration,
    evidence: [Evidence; 2],
}

/// How many workers share a database.
const WORKERS_ON_A_SERVER: usize = 3;

/// The log of a worker, by its place.
fn log_of(number: usize) -> String {
    if number == 0 { "worker".to_owned() } else { format!("worker-{}", number + 1) }
}

/// The command line of a worker that is one of several.
fn named(role: &[String], number: usize) -> Vec<String> {
    let mut role = role.to_vec();
    if number > 0 {
        role.extend(["--name".to_owned(), format!("deposits-{}", number + 1)]);
    }
    role
}

fn args<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.iter().map(|arg| (*arg).to_owned()).collect()
}

impl Stage {
    /// Starts everything; the load begins to run.
    pub(super) async fn set(
        directory: &Path,
        server: Option<&Server>,
        demo: &DemoArgs,
        preset: &Preset,
    ) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("cannot find this program")?;
        let text =
            |path: &Path| path.to_str().map(str::to_owned).context("the temporary directory's path is not UTF-8");
        let mut evidence =
            [SideName::Synchronous, SideName::Tidegate].map(|side| Evidence::in_directory(directory, side));
        if let Some(server) = server {
            evidence[1].wallet = Address::Server(server.clone());
        }
        if let Some(server) = server {
            schema::is_unused(server).await?;
        }
        let program = Program::new(executable, ["role"], directory).with_store(&evidence[1].wallet);
        let (seed, mode) = (demo.seed.to_string(), demo.gateway.name());
        let mut times = Vec::new();
        if demo.fast {
            times.push("--fast".to_owned());
        }
        times.extend(["--finish-within-ms".to_owned(), preset.scale.finish_within_ms.to_string()]);
        if let Some(lateness_ms) = demo.lateness_ms {
            times.extend(["--lateness-ms".to_owned(), lateness_ms.to_string()]);
        }
        let with_times = |mut role: Vec<String>| {
            role.extend(times.iter().cloned());
            role
        };
        let closed: Vec<String> =
            preset.trace.closed().into_iter().flat_map(|account| ["--closed".to_owned(), account]).collect();

        let gateway = |evidence: &Evidence, name: &str| {
            let ledger = text(&evidence.ledger)?;
            let role = args(["gateway", "--ledger", &ledger, "--mode", mode, "--seed", &seed, "--demo"]);
            program.start(name, &with_times(role))
        };
        let mut gateways = [gateway(&evidence[0], "synchronous-gateway")?, gateway(&evidence[1], "tidegate-gateway")?];
        let [synchronous_gateway, tidegate_gateway] = &mut gateways;
        let (synchronous_gateway, tidegate_gateway) =
            (synchronous_gateway.listening().await?, tidegate_gateway.listening().await?);

        let wallet = evidence[0].wallet.reveal()?.to_owned();
        let mut twin_role = with_times(args(["twin", "--gateway", &synchronous_gateway, "--wallet", &wallet]));
        twin_role.extend(closed.iter().cloned());
        let mut twin = program.start("synchronous", &twin_role)?;
        let twin_url = twin.listening().await?;
        let port = twin_url.rsplit(':').next().unwrap_or_default();
        // Its customers know the address, so it comes back under the same.
        twin_role.extend(args(["--port", port]));

        let store = Program::database(&evidence[1].wallet)?;
        let of_store = |role: &str, rest: Vec<String>| [vec![role.to_owned()], store.clone(), rest].concat();
        let mut intake = program.start("intake", &with_times(of_store("intake", Vec::new())))?;
        let intake_url = intake.listening().await?;
        let mut work_role = with_times(of_store("work", args(["--gateway", &tidegate_gateway, "--mode", mode])));
        work_role.extend(closed);
        let count = if server.is_some() { WORKERS_ON_A_SERVER } else { 1 };
        let mut workers = Vec::new();
        for number in 0..count {
            let mut worker = program.start(&log_of(number), &named(&work_role, number))?;
            worker.announced().await?;
            workers.push(Some(worker));
        }
        let operator = Tidegate::builder().housekeeping(false).create(false).open_at(&evidence[1].wallet).await?;

        let out = text(directory)?;
        let load_role = with_times(args([
            "load",
            "--seed",
            &seed,
            "--out",
            &out,
            "--synchronous",
            &twin_url,
            "--synchronous-gateway",
            &synchronous_gateway,
            "--tidegate",
            &intake_url,
            "--tidegate-gateway",
            &tidegate_gateway,
        ]));
        let load = program.start("load", &load_role)?;
        let tails = [Tail::new(evidence[0].ledger.clone()), Tail::new(evidence[1].ledger.clone())];
        Ok(Self {
            program,
            twin_role,
            work_role,
            gateways,
            twin: Some(twin),
            intake,
            workers,
            load: Some(load),
            tails,
            operator,
            greatest_lateness: Duration::from_millis(preset.scale.greatest_lateness_ms),
            evidence,
        })
    }

    /// How far the load is; none when it has ended.
    pub(super) async fn load_line(&mut self) -> anyhow::Result<Option<Progress>> {
        let Some(load) = &mut self.load else { return Ok(None) };
        let Some(line) = load.line().await? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).with_context(|| format!("the load generator said {line:?}"))
    }

    /// How many deposits each side has charged more than once so far.
    pub(super) fn doubled(&mut self) -> anyhow::Result<Doubled> {
        let [synchronous, tidegate] = &mut self.tails;
        Ok(Doubled { synchronous: synchronous.doubled()?, tidegate: tidegate.doubled()? })
    }

    /// Who is killed, in words.
    pub(super) fn who_was_killed(&self) -> &'static str {
        if self.workers.len() == 1 { "the worker" } else { "two of three workers" }
    }

    /// Who is started again, in words.
    pub(super) fn who_is_back(&self) -> &'static str {
        if self.workers.len() == 1 { "both are started again" } else { "all are started again" }
    }

    /// Kills the worker, or all workers but one, and the twin.
    pub(super) async fn crash(&mut self) -> anyhow::Result<()> {
        let dying = (self.workers.len() - 1).max(1);
        for worker in self.workers.iter_mut().take(dying).filter_map(Option::take) {
            worker.kill_9().await?;
        }
        if let Some(twin) = self.twin.take() {
            twin.kill_9().await?;
        }
        Ok(())
    }

    /// Starts them again.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        let mut twin = self.program.start("synchronous", &self.twin_role)?;
        for (number, place) in self.workers.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
            let mut worker = self.program.start(&log_of(number), &named(&self.work_role, number))?;
            worker.announced().await?;
            *place = Some(worker);
        }
        twin.listening().await?;
        self.twin = Some(twin);
        Ok(())
    }

    /// One round of the operator.
    pub(super) async fn operate(&self) -> anyhow::Result<Round> {
        operator::resolve_parked(&self.operator, &self.evidence[1].ledger).await
    }

    /// Waits for the end of every process; what is left are the files.
    pub(super) async fn end(self) -> anyhow::Result<(Evidence, Evidence)> {
        if let Some(load) = self.load {
            load.ended().await?;
        }
        drop(self.operator);
        for process in self.workers.into_iter().chain([Some(self.intake), self.twin]).flatten() {
            process.stop(ENDS_WITHIN).await?;
        }
        for gateway in self.gateways {
            gateway.stop(ENDS_WITHIN + self.greatest_lateness).await?;
        }
        let [synchronous, tidegate] = self.evidence;
        Ok((synchronous, tidegate))
    }
}
