//! `tidegate bench`: how fast this machine and disk, or a server, are with Tidegate, beside the least that the same rows need.
//!
//! Measured on files or in schemas of its own, never on a store that somebody uses. What is measured stands in `tidegate-bench`.

use std::path::PathBuf;

use tidegate::Address;
use tidegate_bench::{CLAIMED, ClaimCost, KeyOrder, Measured, Parameters, Report};

use crate::exit::{Code, Problem};
use crate::open::place;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate bench
  tidegate bench --store sqlite --json --keys random --dir .
  tidegate bench --store postgres://tidegate@localhost/tidegate --json
  tidegate bench --quick";

const FIGURES: &str = "\
Figures, each a median over the rounds:
  lifecycles_per_s         enqueue, claim, run of an empty handler, settle, durably, a second
  raw_bound_per_s          the same rows straight with SQLite, or with the server's driver, in groups of the same size
  ratio                    the one by the other
  store_lifecycles_per_s   the same through the store's verbs, without the library's worker
  mean_group_size          enqueues, claims and settlements that shared a commit
  fsyncs_per_message       commits that the engine waited for
  wal_bytes_per_message    written to the write-ahead log
  fsync_p50_ms             how long one took; of a server, a raw transaction with its round trip
  pickup_p50_ms, _p99_ms   from the acknowledged enqueue to the start of the handler, at --rate
  checkpoint_share         the part of the time in which the writer only copied its log into the file
  checkpoint_max_ms        the longest such pause
  cpu_us_per_message       processor time of the whole process: what does not depend on the neighbours
  writer_cpu_us_per_message  the part of it that the one writer thread took
  raw_cpu_us_per_message   processor time of the raw writes

Then, for backlogs of 0, 100,000 and 1,000,000 messages, what a claim of 100 costs:
  steps_per_claim          steps of SQLite's virtual machine; counted, so that they do not drift
  pages_per_claim          pages written to the write-ahead log; counted as well
  writer_cpu_us_per_claim  processor time of the writer thread
  claim_p50_ms             the median claim, its fsync included
on a server, for backlogs of 0, 10,000 and 1,000,000, and again while another session holds an old snapshot, instead:
  buffers_per_claim        looks at a page of the store's tables and indexes; counted by the server
and for a process that opens the store with 1,000,000 queued messages and works them off:
  peak_rss_mib             the most memory it ever had resident

At the top stand the figures of the first key order; by_key_order has those of each.";

/// Measure throughput, cost and pick-up on this machine
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES, after_help = FIGURES)]
pub(crate) struct Args {
    /// How keys follow each other: random ones, or growing with time like UUIDv7
    #[arg(long, value_enum, default_value_t = Keys::Both)]
    keys: Keys,
    /// Messages a round
    #[arg(long)]
    messages: Option<u32>,
    /// Messages with their keys that are in the files before anything is measured
    #[arg(long)]
    preload: Option<u32>,
    /// Rounds of each, in turn
    #[arg(long)]
    rounds: Option<u32>,
    /// Messages a second while pick-up is measured
    #[arg(long)]
    rate: Option<u32>,
    /// Messages of which the pick-up is measured
    #[arg(long)]
    pickups: Option<u32>,
    /// Where the files are made, and removed afterwards: the disk that is measured [default: the current directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Works off what is queued in this store, and says what that took: what the benchmark has a process of its own do
    #[arg(long, value_name = "STORE", env = tidegate_bench::WORK_OFF, hide_env_values = true, hide = true)]
    work_off: Option<Address>,
    /// Small counts: says that it runs, not how fast
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Keys {
    Random,
    Time,
    Both,
}

pub(crate) async fn run(args: Args, store: Option<&str>, output: &Output) -> Result<Code, Problem> {
    let server = match store.filter(|store| *store != "sqlite").map(place) {
        None => None,
        Some(Ok(Address::Server(server))) => Some(server),
        Some(Ok(Address::File(file))) => {
            return Err(Problem::usage(format!("bench has no engine {:?}", file.display().to_string()))
                .hint("--store sqlite, which measures files of its own (--dir says where), or --store postgres://…"));
        }
        Some(Err(problem)) => return Err(problem),
    };
    if let Some(store) = &args.work_off {
        output.object(&tidegate_bench::work_off(store).await?)?;
        return Ok(Code::Done);
    }
    let usual = if args.quick { Parameters::quick() } else { Parameters::default() };
    let usual = match server {
        Some(server) => usual.on(server),
        None => usual,
    };
    let parameters = Parameters {
        orders: match args.keys {
            Keys::Random => vec![KeyOrder::Random],
            Keys::Time => vec![KeyOrder::Time],
            Keys::Both => vec![KeyOrder::Random, KeyOrder::Time],
        },
        messages: args.messages.unwrap_or(usual.messages),
        preload: args.preload.unwrap_or(usual.preload),
        rounds: args.rounds.unwrap_or(usual.rounds),
        rate: args.rate.unwrap_or(usual.rate),
        pickups: args.pickups.unwrap_or(usual.pickups),
        dir: args.dir.unwrap_or_else(|| PathBuf::from(".")),
        program: std::env::current_exe().ok(),
        ..usual
    };
    let talk = output.clone();
    let report = tidegate_bench::run(&parameters, &mut |step| talk.say(step)).await?;
    if output.json {
        output.object(&report)?
    } else {
        print(&report, output)?
    }
    Ok(Code::Done)
}

fn print(report: &Report, output: &Output) -> Result<(), Problem> {
    let header = ["figure", "random keys", "time-ordered keys"];
    let orders = [&report.by_key_order.random, &report.by_key_order.time];
    let row = |name: &str, figure: fn(&Measured) -> f64, digits: usize| {
        let cell = |measured: &Option<Measured>| {
            measured.as_ref().map_or_else(|| output.nothing(), |measured| format!("{:.digits$}", figure(measured)))
        };
        std::iter::once(name.to_owned()).chain(orders.map(cell)).collect::<Vec<String>>()
    };
    output.rows(
        &header,
        &[
            row("lifecycles_per_s", |m| m.lifecycles_per_s, 0),
            row("raw_bound_per_s", |m| m.raw_bound_per_s, 0),
            row("ratio", |m| m.ratio, 3),
            row("store_lifecycles_per_s", |m| m.store_lifecycles_per_s, 0),
            row("mean_group_size", |m| m.mean_group_size, 1),
            row("fsyncs_per_message", |m| m.fsyncs_per_message, 4),
            row("wal_bytes_per_message", |m| m.wal_bytes_per_message, 0),
            row("fsync_p50_ms", |m| m.fsync_p50_ms, 3),
            row("pickup_p50_ms", |m| m.pickup_p50_ms, 3),
            row("pickup_p99_ms", |m| m.pickup_p99_ms, 3),
            row("checkpoint_share", |m| m.checkpoint_share.unwrap_or_default(), 3),
            row("checkpoint_max_ms", |m| m.checkpoint_max_ms.unwrap_or_default(), 1),
            row("cpu_us_per_message", |m| m.cpu_us_per_message, 1),
            row("writer_cpu_us_per_message", |m| m.writer_cpu_us_per_message.unwrap_or_default(), 1),
            row("raw_cpu_us_per_message", |m| m.raw_cpu_us_per_message, 1),
        ],
    )?;
    let cpu = |cost: &ClaimCost| {
        cost.writer_cpu_us_per_claim.map_or_else(|| output.nothing(), |microseconds| format!("{microseconds:.0}"))
    };
    let counted =
        |count: Option<f64>, digits: usize| count.map_or_else(|| output.nothing(), |count| format!("{count:.digits$}"));
    output.say(format!("a claim of {CLAIMED} in front of a backlog"));
    if report.parameters.server_version.is_some() {
        let costs: Vec<Vec<String>> = (report.claim_cost.iter())
            .map(|cost| {
                let snapshot = if cost.held_snapshot { "held" } else { "none" };
                let (buffers, time) = (counted(cost.buffers_per_claim, 0), format!("{:.3}", cost.claim_p50_ms));
                vec![cost.backlog.to_string(), snapshot.to_owned(), buffers, time]
            })
            .collect();
        output.rows(&["backlog", "old_snapshot", "buffers_per_claim", "claim_p50_ms"], &costs)?;
    } else {
        let costs: Vec<Vec<String>> = (report.claim_cost.iter())
            .map(|cost| {
                vec![
                    cost.backlog.to_string(),
                    counted(cost.steps_per_claim, 0),
                    counted(cost.pages_per_claim, 1),
                    cpu(cost),
                    format!("{:.3}", cost.claim_p50_ms),
                ]
            })
            .collect();
        let header = ["backlog", "steps_per_claim", "pages_per_claim", "writer_cpu_us_per_claim", "claim_p50_ms"];
        output.rows(&header, &costs)?;
    }
    let Some(worked_off) = &report.worked_off else { return Ok(()) };
    output.say("a process that opened the store with a backlog and worked it off");
    let row = vec![
        worked_off.queued.to_string(),
        format!("{:.1}", worked_off.peak_rss_mib),
        format!("{:.0}", worked_off.per_s),
    ];
    output.rows(&["queued", "peak_rss_mib", "per_s"], &[row])
}
