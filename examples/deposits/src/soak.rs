//! Many deposits from a file, through the whole flow, while the worker is killed: every one accounted for.
//!
//! Gateway, file intake and worker are processes of their own. The worker is killed with SIGKILL at even shares of the
//! way and started again. At the end, when nothing is ready or leased any more, each line of the file is compared with
//! the gateway's ledger and the wallet's books, never with the store.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tidegate::Tidegate;
use tidegate::store::Stats;
use tokio::time::sleep;

use crate::books::{self, Books};
use crate::clock;
use crate::gateway::{GatewayMode, LedgerEntry, LedgerResult, read_ledger};
use crate::operator;
use crate::process::{Process, Program};
use crate::role::say;
use crate::trace::{Card, DepositRequest};

/// How a soak is run.
#[derive(Clone, Debug)]
pub struct SoakOptions {
    /// How many deposits.
    pub count: u64,
    /// How often the worker is killed.
    pub kills: u32,
    /// What the gateway promises about repeated calls.
    pub mode: GatewayMode,
    /// For everything it makes; kept.
    pub directory: PathBuf,
    /// The seed of the requests.
    pub seed: u64,
    /// The longest it may take.
    pub within: Duration,
}

/// What became of the deposits of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Every one is accounted for and the books balance.
    pub pass: bool,
    /// Lines of the file.
    pub deposits: u64,
    /// Charged once and credited once.
    pub completed_once: u64,
    /// Declined, and not charged.
    pub declined: u64,
    /// Charged and refunded, because the account is closed.
    pub refunded: u64,
    /// Anything else, such as charged twice, or not at all.
    pub unaccounted: u64,
    /// Debits equal credits, and the wallet holds what the gateway took.
    pub books_balance: bool,
    /// How often the worker was killed.
    pub kills: u32,
    /// How long the flow of all of them took.
    pub took_ms: u64,
    /// The names of some that are not accounted for.
    pub examples: Vec<String>,
}

/// An account that is closed.
const CLOSED: &str = "acct-0199";

/// Runs a soak and prints what became of the deposits, as JSON.
///
/// # Errors
/// A process could not be started or ended by itself, or it took too long.
///
/// # Cancel safety
/// Dropping the future kills the processes.
pub async fn run(options: SoakOptions, before: &[&str]) -> anyhow::Result<ExitCode> {
    let account = soak(&options, before).await?;
    say(&serde_json::to_string(&account).context("an account is plain data")?)?;
    Ok(if account.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn soak(options: &SoakOptions, before: &[&str]) -> anyhow::Result<Account> {
    let directory = &options.directory;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (store, ledger, file) =
        (directory.join("deposits.db"), directory.join("gateway.ledger"), directory.join("deposits.ndjson"));
    if store.exists() {
        bail!("{} holds an earlier soak; hint: give an empty directory", directory.display());
    }
    let requests = requests(options);
    write_requests(&file, &requests)?;
    let executable = std::env::current_exe().context("cannot find this program")?;
    let program = Program::new(executable, before, directory);
    let mode = options.mode.name();
    let args = |list: &[&str]| list.iter().map(|arg| (*arg).to_owned()).collect::<Vec<String>>();

    let mut gateway = program.start("gateway", &args(&["gateway", "--ledger", text(&ledger)?, "--mode", mode]))?;
    let url = gateway.listening().await?;
    let start = clock::now();
    let mut take = program.start("take", &args(&["take", text(&file)?, "--database", text(&store)?]))?;
    let taken = take.line().await?.unwrap_or_default();
    take.ended().await?;
    tracing::info!("taken: {taken}");

    let work = args(&[
        "work",
        "--database",
        text(&store)?,
        "--gateway",
        &url,
        "--mode",
        mode,
        "--closed",
        CLOSED,
        "--fast",
        "--concurrency",
        "32",
    ]);
    let start_worker = async || -> anyhow::Result<Process> {
        let mut worker = program.start("work", &work)?;
        worker.announced().await?;
        Ok(worker)
    };
    let mut worker = start_worker().await?;
    let tide = Tidegate::builder().housekeeping(false).open(&store).await?;
    let mut killed = 0;
    loop {
        if clock::now() - start > options.within {
            bail!(
                "not finished within {:?}; hint: the files in {} say how far it is",
                options.within,
                directory.display()
            );
        }
        // A file of 100,000 takes minutes; one of a test, a second.
        sleep(Duration::from_millis(if options.count > 5_000 { 1_000 } else { 50 })).await;
        // Killed when an even share of the ledger is written: in the midst of the work, however fast the machine is.
        if killed < options.kills {
            let share = options.count * 3 * u64::from(killed + 1) / u64::from(options.kills + 1);
            if entries(&ledger)? >= share {
                worker.kill_9().await?;
                worker = start_worker().await?;
                killed += 1;
            }
            continue;
        }
        // Nobody but a person resolves what parked; with a gateway that cannot be asked, a crash leaves some.
        let resolved = operator::resolve_parked(&tide, &ledger).await?;
        let stats = tide.store().stats().await?;
        if resolved == operator::Round::default() && is_quiet(&stats) {
            break;
        }
    }
    let took_ms = clock::ms_since(start);
    drop(tide);
    worker.stop(Duration::from_secs(30)).await?;
    gateway.stop(Duration::from_secs(30)).await?;
    let ledger = read_ledger(&ledger)?;
    let books = Books::read(&store)?;
    Ok(Account { kills: killed, took_ms, ..account(&requests, &ledger, &books) })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}

/// Whether nothing waits, runs, or needs a person.
#[must_use]
pub fn is_quiet(stats: &Stats) -> bool {
    stats.queues.iter().all(|queue| queue.ready + queue.scheduled + queue.leased + queue.parked == 0)
}

/// Lines in the ledger, cheaply.
fn entries(ledger: &Path) -> anyhow::Result<u64> {
    let text = std::fs::read(ledger).with_context(|| format!("cannot read the ledger {}", ledger.display()))?;
    Ok(text.iter().filter(|byte| **byte == b'\n').count() as u64)
}

fn requests(options: &SoakOptions) -> Vec<DepositRequest> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    (1..=options.count)
        .map(|number| DepositRequest {
            deposit: format!("dep-{number:06}"),
            account: format!("acct-{:04}", rng.random_range(0..200)),
            cents: rng.random_range(100..=50_000),
            card: if rng.random_bool(0.01) { Card::Declined } else { Card::Ok },
        })
        .collect()
}

fn write_requests(file: &Path, requests: &[DepositRequest]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", file.display());
    let mut out = BufWriter::new(File::create(file).with_context(context)?);
    for request in requests {
        serde_json::to_writer(&mut out, request).with_context(context)?;
        out.write_all(b"\n").with_context(context)?;
    }
    out.flush().with_context(context)
}

/// Compares each line of the file with the ledger and the books.
fn account(requests: &[DepositRequest], ledger: &[LedgerEntry], books: &Books) -> Account {
    let mut charged: HashMap<&str, (u32, u32, i64)> = HashMap::new();
    for entry in ledger {
        let (captures, refunds, cents) = charged.entry(&entry.deposit).or_default();
        match entry.result {
            LedgerResult::Captured => (*captures, *cents) = (*captures + 1, *cents + entry.cents),
            LedgerResult::Refunded => (*refunds, *cents) = (*refunds + 1, *cents - entry.cents),
            LedgerResult::Authorised | LedgerResult::Declined | LedgerResult::Receipt => {}
        }
    }
    let mut account = Account { deposits: requests.len() as u64, ..Account::default() };
    for request in requests {
        let at_gateway = charged.get(request.deposit.as_str()).copied().unwrap_or_default();
        let credit = books.credited.get(&request.deposit).copied().unwrap_or_default();
        let once = (1, 0, request.cents);
        if request.card == Card::Declined && (at_gateway, credit.times) == ((0, 0, 0), 0) {
            account.declined += 1;
        } else if request.account == CLOSED && (at_gateway, credit.times) == ((1, 1, 0), 0) {
            account.refunded += 1;
        } else if request.card == Card::Ok && at_gateway == once && (credit.times, credit.cents) == (1, request.cents) {
            account.completed_once += 1;
        } else {
            account.unaccounted += 1;
            if account.examples.len() < 10 {
                account.examples.push(request.deposit.clone());
            }
        }
    }
    let sums = books.sums;
    account.books_balance = sums.debits == sums.credits && sums.wallet_total == books::taken(ledger);
    account.pass = account.unaccounted == 0 && account.books_balance;
    account
}
