//! The processes of the demo, and the files they leave behind.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use deposits::load::{Progress, SideName};
use deposits::operator::{self, Round};
use deposits::process::{Process, Program};
use deposits::proof::Evidence;
use deposits::trace::Preset;
use tidegate::Tidegate;

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
    worker: Option<Process>,
    load: Option<Process>,
    tails: [Tail; 2],
    operator: Tidegate,
    greatest_lateness: Duration,
    evidence: [Evidence; 2],
}

fn args<const N: usize>(list: [&str; N]) -> Vec<String> {
    list.iter().map(|arg| (*arg).to_owned()).collect()
}

impl Stage {
    /// Starts everything; the load begins to run.
    pub(super) async fn set(directory: &Path, demo: &DemoArgs, preset: &Preset) -> anyhow::Result<Self> {
        let executable = std::env::current_exe().context("cannot find this program")?;
        let program = Program::new(executable, ["role"], directory);
        let text =
            |path: &Path| path.to_str().map(str::to_owned).context("the temporary directory's path is not UTF-8");
        let evidence = [SideName::Synchronous, SideName::Tidegate].map(|side| Evidence::in_directory(directory, side));
        let (seed, mode) = (demo.seed.to_string(), demo.gateway.name());
        let mut times = Vec::new();
        if demo.fast {
            times.push("--fast".to_owned());
        }
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
        let mut worker = program.start("worker", &work_role)?;
        worker.announced().await?;
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
            worker: Some(worker),
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

    /// Kills the worker and the twin.
    pub(super) async fn crash(&mut self) -> anyhow::Result<()> {
        if let Some(worker) = self.worker.take() {
            worker.kill_9().await?;
        }
        if let Some(twin) = self.twin.take() {
            twin.kill_9().await?;
        }
        Ok(())
    }

    /// Starts them again.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        let mut worker = self.program.start("worker", &self.work_role)?;
        let mut twin = self.program.start("synchronous", &self.twin_role)?;
        worker.announced().await?;
        twin.listening().await?;
        (self.worker, self.twin) = (Some(worker), Some(twin));
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
        for process in [self.worker, Some(self.intake), self.twin].into_iter().flatten() {
            process.stop(ENDS_WITHIN).await?;
        }
        for gateway in self.gateways {
            gateway.stop(ENDS_WITHIN + self.greatest_lateness).await?;
        }
        let [synchronous, tidegate] = self.evidence;
        Ok((synchronous, tidegate))
    }
}
