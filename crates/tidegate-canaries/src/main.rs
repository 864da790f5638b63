//! Prints the pages of `docs/reliability`: `table`, or `duplicates [keys] [seed]`.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::process::ExitCode;

/// How many keys a line of the table stands for.
const KEYS: u64 = 1_000_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |at: usize, usual: u64| words.get(at).map_or(Some(usual), |text| text.parse().ok());
    match words.first() {
        Some(&"table") => print!("{}", tidegate_canaries::page()),
        Some(&"duplicates") => match (number(1, KEYS), number(2, 1)) {
            (Some(keys), Some(seed)) => print!("{}", tidegate_canaries::duplicates::page(seed, keys)),
            _ => return ExitCode::from(2),
        },
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
