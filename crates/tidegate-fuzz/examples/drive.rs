//! More of what every run of the tests does, where there is no libFuzzer: `drive NAME|all [inputs] [seed]`.

#![expect(clippy::print_stdout, reason = "it says how far it is")]

use tidegate_fuzz::{Drive, TARGETS, seeds_of};

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ");
    let name = arguments.next().ok_or_else(|| format!("say which: all, or one of {}", names()))?;
    let mut number = |default: u64| -> Result<u64, String> {
        arguments.next().map_or(Ok(default), |text| text.parse().map_err(|_| format!("not a number: {text:?}")))
    };
    let drive = Drive { inputs: number(1_000_000)?, seed: number(1)? };
    let chosen: Vec<_> = TARGETS.iter().filter(|target| name == "all" || name == target.name).collect();
    if chosen.is_empty() {
        return Err(format!("there is no target {name:?}: {}", names()));
    }
    for target in chosen {
        drive.run(target.name, &seeds_of(target.name), target.run);
        println!("{}: {} inputs, none broke it ({})", target.name, drive.inputs, target.about);
    }
    Ok(())
}
