//! What slow clients cost an honest one: its times without and beside thousands of connections that drip, by turns, on a
//! server that is the real program with its usual limits.
//!
//! The honest client's load is open (`honest.rs`), and it has a thread of its own; the slow ones (`drip.rs`) have another.
//! They are on the machine of the server, so that what they take of it is part of what is measured. They come from several
//! addresses of the loopback network, because a server gives one address no more than its share of connections.

mod drip;
mod honest;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::{median, millis, quantile};
use drip::Drips;
use server::Process;

/// What is measured, and how much of it.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// The program `tidegate`.
    pub program: PathBuf,
    /// Connections that are slow, all at once: a third drips heads, a third drips bodies, a third asks for nothing.
    pub connections: usize,
    /// Requests a second of the honest client.
    pub rate: u32,
    /// On so many connections, which it keeps.
    pub honest: usize,
    /// Requests of one turn.
    pub requests: u32,
    /// Turns without slow clients, each followed by one beside them.
    pub rounds: u32,
    /// Where the store is made.
    pub dir: PathBuf,
}

impl Parameters {
    /// As many as the project's aim speaks of.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        let dir = PathBuf::from(".");
        Self { program, connections: 5000, rate: 500, honest: 16, requests: 5000, rounds: 3, dir }
    }
}

/// What a turn, or all of a sort, came to.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// Requests that were answered as they should be; every one that was sent, or the run has failed.
    pub answered: usize,
    /// Half of them were answered within this time, counted from when each was to be sent.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// All.
    pub max_ms: f64,
    /// Connections that the server had, as it says itself, when the turn began.
    pub connections: u64,
    /// Clients that the server cut off in it for being slow.
    pub cut_off: u64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Slow connections.
    pub slow: usize,
    /// Requests a second.
    pub rate_per_s: u32,
    /// Without slow clients, all turns together.
    pub alone: Turn,
    /// Beside them.
    pub beside: Turn,
    /// How many times as long half of the requests took beside them.
    pub ratio_p50: f64,
    /// The same of 99 of 100: to be 2 at most.
    pub ratio_p99: f64,
    /// Each turn without them, and each beside them.
    pub turns: Vec<(Turn, Turn)>,
}

/// Starts a server and measures it; says what it does.
///
/// # Errors
/// When the server does not start, too few files may be open, or a request of the honest client is not answered as it
/// should be.
pub fn run(parameters: &Parameters, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    anyhow::ensure!(
        parameters.rate > 0 && parameters.honest > 0 && parameters.requests > 0 && parameters.rounds > 0,
        "rate, honest, requests and rounds must be 1 or more: {parameters:?}"
    );
    raise_descriptors(parameters.connections + parameters.honest)?;
    let mut server = Process::start(parameters)?;
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measure = |server: &mut Process, name: &str, drips: Option<&Drips>| -> anyhow::Result<(Turn, Vec<f64>)> {
        let before = server.counted()?;
        let times = client.block_on(honest::send(server.address, name, parameters))?;
        let after = server.counted()?;
        if let Some(drips) = drips {
            let (up, wanted) = (drips.up(), parameters.connections * 8 / 10);
            anyhow::ensure!(up >= wanted, "only {up} of {} slow clients were left", parameters.connections);
        }
        let mut turn = Turn::of(&times);
        turn.connections = before.connections;
        turn.cut_off = after.cut_off - before.cut_off;
        Ok((turn, times))
    };
    let warm = Parameters { requests: parameters.requests / 10 + 1, ..parameters.clone() };
    client.block_on(honest::send(server.address, "warm", &warm))?;
    let (mut turns, mut all_alone, mut all_beside) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=parameters.rounds {
        server.quiet()?;
        let (alone, times) = measure(&mut server, &format!("alone-{round}"), None)?;
        all_alone.extend(times);
        server.quiet()?;
        let drips = Drips::start(server.address, parameters.connections)?;
        // That a system took a connection does not say that the program has.
        server.has(parameters.connections * 8 / 10)?;
        let (beside, times) = measure(&mut server, &format!("beside-{round}"), Some(&drips))?;
        all_beside.extend(times);
        drips.stop();
        tell(&format!(
            "round {round}: p99 {:.2} ms alone, {:.2} ms beside {} connections, {} cut off",
            alone.p99_ms, beside.p99_ms, beside.connections, beside.cut_off
        ));
        turns.push((alone, beside));
    }
    let together = |times: &[f64], of: fn(&(Turn, Turn)) -> &Turn| Turn {
        connections: turns.iter().map(|turn| of(turn).connections).min().unwrap_or_default(),
        cut_off: turns.iter().map(|turn| of(turn).cut_off).sum(),
        ..Turn::of(times)
    };
    let (alone, beside) = (together(&all_alone, |turn| &turn.0), together(&all_beside, |turn| &turn.1));
    Ok(Report {
        slow: parameters.connections,
        rate_per_s: parameters.rate,
        ratio_p50: beside.p50_ms / alone.p50_ms,
        ratio_p99: beside.p99_ms / alone.p99_ms,
        alone,
        beside,
        turns,
    })
}

impl Turn {
    fn of(times: &[f64]) -> Self {
        let of = |hundredths| quantile(times.to_vec(), hundredths);
        Self {
            answered: times.len(),
            p50_ms: median(times.to_vec()),
            p99_ms: of(99),
            max_ms: of(100),
            connections: 0,
            cut_off: 0,
        }
    }
}

/// A connection is a descriptor here as well as in the server, which inherits what may be open.
fn raise_descriptors(connections: usize) -> anyhow::Result<()> {
    const OTHERS: u64 = 256;
    let wanted = u64::try_from(connections)? + OTHERS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files cannot be read")?;
    anyhow::ensure!(
        hard >= wanted,
        "{wanted} files have to be open at once, and at most {hard} may; hint: as root, ulimit -Hn {wanted}, or \
         LimitNOFILE={wanted} in the unit, or fewer --connections"
    );
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).context("the limit of open files cannot be raised")?;
    }
    Ok(())
}

fn since(begun: tokio::time::Instant) -> f64 {
    millis(tokio::time::Instant::now().saturating_duration_since(begun))
}

/// How long something is waited for that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);
