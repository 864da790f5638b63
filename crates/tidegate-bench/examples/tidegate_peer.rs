//! Tidegate's program of the comparison with other queues: see `tidegate_bench::line` for what it is asked and prints.
//!
//! An example and no binary, so that `cargo run` still means the command `tidegate`.

#![expect(clippy::print_stdout, reason = "one line of JSON is its purpose")]

use tidegate_bench::{line::Arguments, peer};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1)).map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string(&peer::run(&arguments).await?)?);
    Ok(())
}
