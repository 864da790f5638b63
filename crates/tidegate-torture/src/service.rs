//! One process after another in one place: started, hurt as the plan says, started again. Most are services; how the others are
//! started is in `capture.rs`.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use deposits::clock;
use deposits::process::{Process, Program};
use deposits::role::{Armed, ArmedAct};
use deposits::steps::Capture;
use nix::sys::signal::Signal;
use tidegate::failpoint::Point;
use tidegate::sqlite::rusqlite::{Connection, ErrorCode};
use tidegate::{Address, Message, Tidegate};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::plan::{Fault, Plan};
use crate::recovery::Death;
use crate::report::Drains;
use crate::server::Terminated;
use crate::stage::{CLOSED, Hits, Stage, up};
use crate::victim::Victim;

/// How long a process may take until it listens.
pub(crate) const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How long a process that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How often a failpoint that nothing comes to is tried in all.
const TRIES: u64 = 4;
/// How often a stop that meets a transaction is tried again.
const STOP_TRIES: u32 = 40;
/// How often a service is started that ends because the server is away.
const START_TRIES: u32 = 50;
/// How long the write lock is asked for before whoever is stopped is taken to hold it.
const LOCK_WITHIN: Duration = Duration::from_millis(400);

/// A place for processes of one sort.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) victim: Victim,
    /// Among all places, those of services first.
    pub(crate) number: usize,
    /// Among those of its sort, from 1.
    pub(crate) nth: usize,
    pub(crate) stage: Arc<Stage>,
    pub(crate) tide: Tidegate,
    pub(crate) plan: Arc<Plan>,
    /// Who is told of a kill; nobody once the attack is over.
    pub(crate) deaths: Option<mpsc::UnboundedSender<Death>>,
    pub(crate) concurrency: u32,
    pub(crate) max_depth: u64,
    /// How many processes there were here.
    pub(crate) started: u64,
}

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) name: String,
}

/// How far a process came before it was looked at.
pub(crate) enum Started {
    Listens(Running),
    /// The failpoint was reached before it listened.
    Reached(Running),
}

impl Slot {
    /// Carries out faults until there are none left, and leaves a process running. Nobody is killed after it.
    pub(crate) async fn attack(mut self) -> anyhow::Result<(Self, Running)> {
        let mut running: Option<Running> = None;
        while let Some(fault) = self.plan.next() {
            running = self.carry_out(fault, running).await?;
        }
        let running = self.or_start(running).await?;
        self.deaths = None;
        Ok((self, running))
    }

    async fn carry_out(&mut self, fault: Fault, running: Option<Running>) -> anyhow::Result<Option<Running>> {
        match fault {
            Fault::Kill { after } => {
                let running = self.or_start(running).await?;
                self.calm(&running, after).await;
                self.kill(running, false).await?;
                Ok(None)
            }
            Fault::Redeploy { after } => {
                let running = self.or_start(running).await?;
                self.calm(&running, after).await;
                self.redeploy(running).await?;
                Ok(None)
            }
            Fault::Stop { after, length } => {
                let running = self.or_start(running).await?;
                self.calm(&running, after).await;
                self.stop_somewhere(fault, running, length).await.map(Some)
            }
            Fault::Terminate { after, in_commit } => {
                let running = self.or_start(running).await?;
                self.calm(&running, after).await;
                if let Some(database) = &self.stage.database {
                    let _alone = database.alone().await;
                    // While the commits of one service are held, so are those of all.
                    let away = self.stage.server_goes();
                    let what = database.terminate(&running.name, in_commit).await?;
                    self.stage.server_is_back(&away);
                    self.stage.terminated(self.victim, what);
                    // On a server of somebody else's a commit is met by luck.
                    if in_commit && what != Terminated::InCommit && database.is_ours() {
                        self.plan.again(fault);
                    }
                }
                Ok(Some(running))
            }
            Fault::Restart { after } => {
                let running = self.or_start(running).await?;
                self.calm(&running, after).await;
                if let Some(database) = &self.stage.database {
                    let _alone = database.alone().await;
                    let away = self.stage.server_goes();
                    database.restart().await?;
                    self.stage.server_is_back(&away);
                    up(&self.stage.counts.restarts);
                }
                Ok(Some(running))
            }
            Fault::KillAt { point, nth } => {
                let armed = Armed { point, nth, act: ArmedAct::Kill };
                match self.start_armed(armed, running).await? {
                    Some(running) => self.dead(running, clock::now(), true).await?,
                    // Nothing brought it there in time; another service may be luckier, at the first visit.
                    None if self.stage.tries(point.name) < TRIES => {
                        self.plan.again(Fault::KillAt { point, nth: 1 });
                    }
                    None => {}
                }
                Ok(None)
            }
            Fault::StopAt { point, nth, length } => {
                let armed = Armed { point, nth, act: ArmedAct::Stop };
                let Some(mut running) = self.start_armed(armed, running).await? else { return Ok(None) };
                if !self.hold(&mut running, length, true).await? {
                    self.plan.again(fault);
                }
                Ok(Some(running))
            }
        }
    }

    /// The time before a fault.
    async fn calm(&self, running: &Running, after: Duration) {
        if self.victim != Victim::Service {
            self.until_captures_are_held(running).await;
        }
        sleep(after * self.victim.calm()).await;
    }

    fn hits(&self) -> &Hits {
        self.stage.counts.hits(self.victim)
    }

    async fn or_start(&mut self, running: Option<Running>) -> anyhow::Result<Running> {
        match running {
            Some(running) => Ok(running),
            None => self.start_plain().await,
        }
    }

    /// Starts a service that dies or stops at a failpoint, and waits until it has come there. One that does not come there
    /// is killed, and there is none.
    async fn start_armed(&mut self, armed: Armed, running: Option<Running>) -> anyhow::Result<Option<Running>> {
        // A failpoint is armed as a process starts, so the one that runs has to go first.
        if let Some(running) = running {
            self.kill(running, false).await?;
        }
        self.stage.armed(armed.point.name);
        let (running, reached) = match self.start(Some(armed)).await? {
            Started::Reached(running) => (running, true),
            Started::Listens(mut running) => {
                let reached = self.await_point(&mut running, armed.point).await?;
                (running, reached)
            }
        };
        if reached {
            self.stage.reached(armed.point.name);
            return Ok(Some(running));
        }
        self.kill(running, false).await?;
        Ok(None)
    }

    /// Starts a process with nothing armed.
    pub(crate) async fn start_plain(&mut self) -> anyhow::Result<Running> {
        match self.start(None).await? {
            Started::Listens(running) => Ok(running),
            Started::Reached(running) => bail!("{} reached a failpoint that nobody armed", running.name),
        }
    }

    /// Starts a process, again if the database was away at that moment: then it ends, as any process would, and whoever looks
    /// after it starts it again.
    async fn start(&mut self, armed: Option<Armed>) -> anyhow::Result<Started> {
        for _ in 0..START_TRIES {
            if let Some(started) = self.start_once(armed).await? {
                return Ok(started);
            }
            sleep(Duration::from_millis(100)).await;
        }
        let logs = self.stage.directory.display();
        bail!("no {} came up in {START_TRIES} tries; hint: why is in the logs in {logs}", self.victim.name())
    }

    async fn start_once(&mut self, armed: Option<Armed>) -> anyhow::Result<Option<Started>> {
        self.started += 1;
        match (self.victim, &self.stage.through) {
            (Victim::CaptureWorker, Some(through)) => self.start_capture_worker(through).await,
            (Victim::Server, Some(through)) => self.start_server(through).await,
            (Victim::Service, _) => self.start_service(armed).await,
            (Victim::CaptureWorker | Victim::Server, None) => {
                bail!("nobody but the services makes captures in this run")
            }
        }
    }

    async fn start_service(&self, armed: Option<Armed>) -> anyhow::Result<Option<Started>> {
        let name = format!("service-{}-{}", self.nth, self.started);
        let stage = &self.stage;
        let (lease_ms, concurrency, depth) =
            (stage.scale.lease_ms.to_string(), self.concurrency.to_string(), self.max_depth.to_string());
        let mut role: Vec<String> = [
            "service",
            "--gateway",
            &stage.gateway_url,
            "--mode",
            stage.gateway.name(),
            "--name",
            &name,
            "--lease-ms",
            &lease_ms,
            "--concurrency",
            &concurrency,
            "--max-depth",
            &depth,
            "--closed",
            CLOSED,
        ]
        .map(str::to_owned)
        .to_vec();
        let store = stage.database.as_ref().map_or_else(|| stage.store.clone(), |server| server.address_for(&name));
        role.extend(Program::database(&store)?);
        if stage.through.is_some() {
            role.extend(["--without".to_owned(), Capture::KIND.to_owned()]);
        }
        if let Some(armed) = armed {
            role.extend(["--failpoint".to_owned(), armed.to_string()]);
        }
        // One log for all services of a place: what a process says before it is killed is seldom much.
        let program = stage.program.clone().with_store(&store);
        let mut process = program.start(&format!("service-{}", self.nth), &role)?;
        let line = match timeout(STARTS_WITHIN, process.line()).await {
            Ok(line) => line?.unwrap_or_default(),
            Err(_) => bail!("{name} did not listen within {STARTS_WITHIN:?}{}", process.said()),
        };
        let running = Running { process, name };
        if let Some(address) = line.strip_prefix("listening ") {
            stage.listens(self.number, Some(format!("http://{address}")));
            return Ok(Some(Started::Listens(running)));
        }
        if armed.is_some_and(|armed| line == format!("reached {}", armed.point.name)) {
            return Ok(Some(Started::Reached(running)));
        }
        if line.is_empty() && stage.database.is_some() {
            tracing::info!("{} could not start{}", running.name, running.process.said());
            return Ok(None);
        }
        bail!("{} said {line:?} instead of where it listens{}", running.name, running.process.said())
    }

    /// Waits until a service says that it has come to the point it was armed for. Some never do in time.
    async fn await_point(&self, running: &mut Running, point: &Point) -> anyhow::Result<bool> {
        let lease = Duration::from_millis(self.stage.scale.lease_ms);
        if point.name.starts_with("drain.") {
            // With something running, so that there is a drain.
            sleep(lease / 10).await;
            running.process.signal(Signal::SIGTERM)?;
        }
        let patience = lease * 3 + Duration::from_secs(2);
        let line = match timeout(patience, running.process.line()).await {
            Ok(line) => line?,
            Err(_) => return Ok(false),
        };
        match line {
            Some(line) if line == format!("reached {}", point.name) => Ok(true),
            // It was told to drain, and did so without coming by.
            Some(line) if line.starts_with("drained ") => Ok(false),
            other => bail!("{} said {other:?}, armed for {}{}", running.name, point.name, running.process.said()),
        }
    }

    async fn kill(&self, running: Running, at_failpoint: bool) -> anyhow::Result<()> {
        let at = clock::now();
        if running.process.signal(Signal::SIGKILL).is_err() {
            self.stage.broken(format!("{} had ended by itself{}", running.name, running.process.said()));
        }
        self.dead(running, at, at_failpoint).await
    }

    /// A process that was sent SIGKILL, by us or by itself.
    async fn dead(&self, mut running: Running, at: Instant, at_failpoint: bool) -> anyhow::Result<()> {
        let ended = running.process.gone(GONE_WITHIN).await?;
        self.stage.listens(self.number, None);
        if ended.and_then(|ended: ExitStatus| ended.signal()) == Some(Signal::SIGKILL as i32) {
            up(&self.hits().kills);
            if at_failpoint {
                up(&self.hits().kills_at_failpoints);
            }
        } else {
            let how = ended.map_or_else(|| "nothing of the sort".to_owned(), |ended| ended.to_string());
            self.stage.broken(format!("{} was to die of SIGKILL and died of {how}", running.name));
        }
        if let Some(deaths) = &self.deaths {
            deaths
                .send(Death { worker: running.name, victim: self.victim, at })
                .ok()
                .context("the measurement has ended")?;
        }
        Ok(())
    }

    /// Stops a process wherever it is, but not inside its write transaction.
    async fn stop_somewhere(&self, fault: Fault, mut running: Running, length: Duration) -> anyhow::Result<Running> {
        for number in 0..STOP_TRIES {
            running.process.signal(Signal::SIGSTOP)?;
            if self.hold(&mut running, length, false).await? {
                return Ok(running);
            }
            // A transaction takes milliseconds; how many, differs.
            sleep(Duration::from_micros(1_300 * u64::from(number % 7 + 1))).await;
        }
        self.plan.again(fault);
        Ok(running)
    }

    /// Holds a stopped process for this long, and lets it go. If it was stopped inside its write transaction, it would
    /// block everybody: it is let go at once, and that it was so is the answer.
    async fn hold(&self, running: &mut Running, length: Duration, at_failpoint: bool) -> anyhow::Result<bool> {
        let stopped = clock::now();
        self.stage.stopped(self.number);
        let free = self.lets_others_go_on(running, stopped).await?;
        if free {
            sleep(length.saturating_sub(clock::now().saturating_duration_since(stopped))).await;
            up(&self.hits().stops);
            if at_failpoint {
                up(&self.hits().stops_at_failpoints);
            }
        } else {
            up(&self.hits().stops_inside_transaction);
        }
        running.process.signal(Signal::SIGCONT)?;
        self.stage.holds_rows(self.number, None);
        self.stage.let_go(self.number);
        if free {
            // Whatever it was about to do under its lost leases, it does now.
            sleep(Duration::from_millis(self.stage.scale.lease_ms / 8)).await;
            if let Some(ended) = running.process.try_ended()? {
                bail!("{} ended with {ended} after it was let go{}", running.name, running.process.said());
            }
        }
        Ok(free)
    }

    /// Whether others can go on while this process is stopped.
    async fn lets_others_go_on(&self, running: &Running, since: Instant) -> anyhow::Result<bool> {
        // It is not at the store at all.
        if self.victim == Victim::CaptureWorker {
            return Ok(true);
        }
        match self.stage.store.clone() {
            Address::File(path) => {
                tokio::task::spawn_blocking(move || can_be_written(path)).await.context("the look at the lock died")?
            }
            // A server lets others go on: what a stopped process holds there are a few rows, until it is let go.
            Address::Server(_) => {
                if let Some(database) = &self.stage.database
                    && database.in_transaction(&running.name).await?
                {
                    self.stage.holds_rows(self.number, Some(since));
                    up(&self.hits().stops_inside_transaction);
                }
                Ok(true)
            }
        }
    }

    /// SIGTERM, and the end of the process in good order.
    async fn redeploy(&self, running: Running) -> anyhow::Result<()> {
        let ended = self.end(running).await?;
        if ended {
            up(&self.hits().redeploys);
        }
        Ok(())
    }

    /// Ends a process in good order; says whether it was one.
    pub(crate) async fn end(&self, mut running: Running) -> anyhow::Result<bool> {
        running.process.signal(Signal::SIGTERM)?;
        let within = Duration::from_millis(self.stage.scale.call_timeout_ms * 2) + GONE_WITHIN;
        let ended = running.process.gone(within).await?;
        self.stage.listens(self.number, None);
        if !ended.is_some_and(|ended| ended.success()) {
            let how = ended.map_or_else(|| format!("not within {within:?}"), |ended| format!("with {ended}"));
            self.stage.broken(format!("{} was to drain and ended {how}{}", running.name, running.process.said()));
            return Ok(false);
        }
        while let Some(line) = running.process.line().await? {
            if let Some(numbers) = line.strip_prefix("drained ") {
                let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap_or(0));
                let mut next = || numbers.next().unwrap_or(0);
                let drains = Drains { finished: next(), released: next(), abandoned: next() };
                self.stage.drained(self.victim, drains);
            }
        }
        Ok(true)
    }
}

/// Whether somebody gets the write lock: not, while a stopped process holds it.
fn can_be_written(store: PathBuf) -> anyhow::Result<bool> {
    let connection = Connection::open(store).context("cannot open the store")?;
    connection.busy_timeout(LOCK_WITHIN)?;
    match connection.execute_batch("begin immediate; rollback") {
        Ok(()) => Ok(true),
        // The second: it was stopped while it wrote the head of the log's index, which others can then not read.
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).context("cannot ask for the write lock"),
    }
}
