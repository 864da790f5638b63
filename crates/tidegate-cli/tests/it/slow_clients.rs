//! The program that measures what slow clients cost an honest one, small: that it measures what it says.

use std::path::PathBuf;

use tidegate_bench::slow::{Parameters, run};

#[test]
fn beside_slow_clients_every_request_of_an_honest_one_is_answered_and_the_slow_ones_are_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let parameters = Parameters {
        connections: 60,
        rate: 50,
        honest: 4,
        // Seven seconds: a head or a body that drips is cut off after five to six.
        requests: 350,
        rounds: 1,
        dir: directory.path().to_path_buf(),
        ..Parameters::new(PathBuf::from(env!("CARGO_BIN_EXE_tidegate")))
    };
    let mut told = Vec::new();
    let report = run(&parameters, &mut |step| told.push(step.to_owned())).unwrap();
    assert_eq!((report.alone.answered, report.beside.answered, report.turns.len()), (350, 350, 1));
    assert_eq!((report.alone.connections, report.alone.cut_off), (0, 0), "nobody is slow when it is alone: {report:?}");
    // Some are being followed by others.
    assert!((48..=60).contains(&report.beside.connections), "{report:?}");
    // Two thirds of them drip heads and bodies.
    assert!(report.beside.cut_off >= 30, "{report:?}");
    for turn in [&report.alone, &report.beside] {
        assert!(0.0 < turn.p50_ms && turn.p50_ms <= turn.p99_ms && turn.p99_ms <= turn.max_ms, "{turn:?}");
    }
    assert!((report.ratio_p99 - report.beside.p99_ms / report.alone.p99_ms).abs() < 1e-9, "{report:?}");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it leaves no files behind");
}

/// A round begins when the server has let go of the clients of the one before.
#[test]
fn rounds_follow_each_other_and_their_turns_are_told_together() {
    let directory = tempfile::tempdir().unwrap();
    let parameters = Parameters {
        connections: 9,
        rate: 100,
        honest: 2,
        requests: 30,
        rounds: 2,
        dir: directory.path().to_path_buf(),
        ..Parameters::new(PathBuf::from(env!("CARGO_BIN_EXE_tidegate")))
    };
    let report = run(&parameters, &mut |_| {}).unwrap();
    assert_eq!((report.alone.answered, report.beside.answered, report.turns.len()), (60, 60, 2));
    assert!(report.turns.iter().all(|(alone, beside)| (alone.answered, beside.answered) == (30, 30)), "{report:?}");
}

#[test]
fn a_program_that_is_not_there_is_told_with_how_it_is_built() {
    let parameters = Parameters { connections: 1, ..Parameters::new(PathBuf::from("no/such/program")) };
    let error = run(&Parameters { dir: std::env::temp_dir(), ..parameters }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("cargo build --release -p tidegate-cli"), "{error:#}");
}
