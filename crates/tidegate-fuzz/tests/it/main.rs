//! Every target, in every run of the tests: the seeds as they are, and some thousand inputs made of them. Nothing is left out
//! where there is no libFuzzer.

#![expect(clippy::unwrap_used, reason = "a test that panics has said what it has to say, in its helpers as well")]

use std::collections::BTreeSet;
use std::path::Path;

use tidegate_fuzz::{Drive, TARGETS, seeds_of};

/// Enough for a few seconds of a debug build, all targets together.
const INPUTS: u64 = 4000;

macro_rules! driven {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                let target = TARGETS.iter().find(|target| target.name == stringify!($name)).unwrap();
                Drive { seed: 1, inputs: INPUTS }.run(target.name, &seeds_of(target.name), target.run);
            }
        )+

        #[test]
        fn every_target_is_driven() {
            let driven = [$(stringify!($name)),+];
            let there: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(driven[..], there[..]);
        }
    };
}

driven! {
    canonical, names, scopes, retry_after, enqueue, wire, idempotency_key, traceparent, json_body, cloud_event, who_asks, query,
    remote_answer, server_url, sqlite_row,
}

fn files(below: &str) -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(below);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// They are built by another compiler, and by no test: so it is compared as text.
#[test]
fn libfuzzer_has_the_same_targets() {
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n")), "{name}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fuzz/fuzz_targets/{name}.rs"));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("tidegate_fuzz::run(\"{name}\", data)")), "{text}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    assert_eq!(files("fuzz_targets"), TARGETS.iter().map(|target| format!("{}.rs", target.name)).collect());
    assert_eq!(files("seeds"), TARGETS.iter().map(|target| target.name.to_owned()).collect());
}

/// A promise that no input could break would be none: each of these once was a way to be wrong.
#[test]
fn a_target_breaks_where_its_promise_is_broken() {
    let broken = std::panic::catch_unwind(|| {
        Drive { seed: 1, inputs: INPUTS }.run("canonical", &seeds_of("canonical"), |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            // As if a number went through a double.
            let value: Result<serde_json::Value, _> = serde_json::from_str(text);
            if let (Ok(value), Ok(canonical)) = (value, tidegate::canonical::canonicalize(text)) {
                assert_eq!(tidegate::canonical::canonicalize(&value.to_string()).as_ref(), Ok(&canonical));
            }
        });
    });
    assert!(broken.is_err(), "no input told a number from its double");
}
