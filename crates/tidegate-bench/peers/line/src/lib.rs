//! The file `tidegate-bench/src/line.rs`, for programs that cannot depend on `tidegate-bench`.

#[path = "../../../src/line.rs"]
mod line;

pub use line::*;
