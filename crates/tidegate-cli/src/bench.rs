//! `tidegate bench`: how fast this machine and disk are with Tidegate, beside the least that SQLite itself needs.
//!
//! Measured on files of its own, never on a store that somebody uses. What is measured stands in `tidegate-bench`.

use std::path::PathBuf;

use tidegate_bench::{KeyOrder, Measured, Parameters, Report};

use crate::exit::{Code, Problem};
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tidegate bench
  tidegate bench --store sqlite --json --keys random --dir .
  tidegate bench --quick";

const FIGURES: &str = "\
Figures, each a median over the rounds:
  lifecycles_per_s         enqueue, claim, run of an empty handler, settle, durably, a second
  raw_bound_per_s          the same rows straight with SQLite, in groups of the same size
  ratio                    the one by the other
  store_lifecycles_per_s   the same through the store's verbs, without the library's worker
  mean_group_size          enqueues, claims and settlements that shared a commit
  fsyncs_per_message       how many the engine waited for
  wal_bytes_per_message    written to the write-ahead log
  fsync_p50_ms             how long one took
  pickup_p50_ms, _p99_ms   from the acknowledged enqueue to the start of the handler, at --rate
  cpu_us_per_message       processor time of the whole process: what does not depend on the neighbours
  writer_cpu_us_per_message  the part of it that the one writer thread took
  raw_cpu_us_per_message   processor time of the raw writes

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
    if let Some(store) = store
        && store != "sqlite"
    {
        return Err(Problem::usage(format!("bench has no engine {store:?}"))
            .hint("--store sqlite; it measures files of its own, --dir says where"));
    }
    let usual = if args.quick { Parameters::quick() } else { Parameters::default() };
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
            row("cpu_us_per_message", |m| m.cpu_us_per_message, 1),
            row("writer_cpu_us_per_message", |m| m.writer_cpu_us_per_message.unwrap_or_default(), 1),
            row("raw_cpu_us_per_message", |m| m.raw_cpu_us_per_message, 1),
        ],
    )
}
