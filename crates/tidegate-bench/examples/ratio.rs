//! The engine beside the raw writes, and nothing else: what `tidegate bench` measures first, without building the rest of the
//! program. Under callgrind its counts by thread are the figures of `docs/reference/benchmarks.md`.
//!
//! `ratio [random|time] [rounds] [messages] [preload] [verb rounds]`

#![expect(clippy::print_stdout, reason = "figures are its purpose")]

use anyhow::Context as _;
use tidegate_bench::{KeyOrder, Parameters};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let order = match arguments.next().as_deref() {
        Some("random") => KeyOrder::Random,
        Some("time") | None => KeyOrder::Time,
        Some(other) => anyhow::bail!("an order of keys is random or time, not {other:?}"),
    };
    let mut number = |default: u32| -> anyhow::Result<u32> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("not a number: {text:?}")))
    };
    let parameters = Parameters {
        orders: vec![order],
        rounds: number(5)?,
        messages: number(50_000)?,
        preload: number(200_000)?,
        verb_rounds: number(0)?,
        pickups: 1,
        backlogs: Vec::new(),
        ..Parameters::default()
    };
    let report = tidegate_bench::run(&parameters, &mut |what| println!("{what}")).await?;
    let measured = report.first;
    println!(
        "ratio {:.3} ({:.3} of several rows): {:.0}/s, raw {:.0}/s ({:.0}/s); {:.1} µs of processor a message, the writer {:.1}, \
         raw {:.1}; {:.0} to a commit",
        measured.ratio,
        measured.ratio_several.unwrap_or_default(),
        measured.lifecycles_per_s,
        measured.raw_bound_per_s,
        measured.raw_several_per_s.unwrap_or_default(),
        measured.cpu_us_per_message,
        measured.writer_cpu_us_per_message.unwrap_or_default(),
        measured.raw_cpu_us_per_message,
        measured.mean_group_size,
    );
    Ok(())
}
