//! Prints the tables of `docs/reliability`.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

fn main() {
    print!("{}", tidegate_canaries::page());
}
