use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use deposits::books;
use deposits::gateway::{Faults, GatewayMode};
use deposits::intake::{self, IntakeOptions};
use deposits::load::{self, LoadOptions, SideName, Target};
use deposits::proof::{Evidence, prove};
use deposits::steps::{self, WorkOptions};
use deposits::trace::{Phase, PhaseKind, Scale, Trace, TraceOptions};
use deposits::twin::{self, TwinOptions};

/// Runs a short calm load through both sides and leaves their files in a directory, as the demo does.
async fn run(directory: &Path) {
    let [synchronous, tidegate] =
        [SideName::Synchronous, SideName::Tidegate].map(|side| Evidence::in_directory(directory, side));
    let scale = Scale { call_timeout_ms: 5_000, ..super::scale() };
    let calm = Phase { kind: PhaseKind::Calm, from_ms: 0, to_ms: 600, per_second: 100 };
    let options = TraceOptions { declined_share: 0.1, closed_accounts: 20, ..TraceOptions::of_phases(vec![calm]) };
    let closed = options.closed();

    let twin_gateway = super::gateway(&synchronous.ledger, GatewayMode::Lookup, Faults::default());
    let twin = TwinOptions {
        closed: closed.clone(),
        call_timeout: Duration::from_secs(5),
        ..TwinOptions::new(twin_gateway.url(), synchronous.wallet.file().unwrap())
    };
    let twin = twin::start(twin).unwrap();
    let gateway = super::gateway(&tidegate.ledger, GatewayMode::Lookup, Faults::default());
    let tide = steps::open(&tidegate.wallet, &scale).await.unwrap();
    drop(books::prepare(tidegate.wallet.file().unwrap(), &closed).unwrap());
    let work = WorkOptions {
        gateway: gateway.url(),
        mode: GatewayMode::Lookup,
        scale,
        concurrency: 8,
        name: "worker".to_owned(),
        without: Vec::new(),
    };
    let worker = steps::start(&tide, &work).await.unwrap();
    let intake = intake::start(tide.clone(), IntakeOptions::default()).await.unwrap();
    let target = |side, url: String, gateway: String| Target { side, url, gateway };
    let load = LoadOptions {
        trace: Trace::generate(7, &options).unwrap(),
        scale,
        targets: vec![
            target(SideName::Synchronous, twin.url(), twin_gateway.url()),
            target(SideName::Tidegate, intake.url(), gateway.url()),
        ],
        directory: directory.to_owned(),
    };
    load::run(load, |_| {}, std::future::pending()).await.unwrap();
    worker.stop().await.unwrap();
    intake.stop().await.unwrap();
    twin.stop().await.unwrap();
    twin_gateway.stop().await.unwrap();
    gateway.stop().await.unwrap();
    // Or its log would vanish while the files are copied.
    tide.close().await;
}

/// The exit code of `deposits prove`, and what it said.
fn exit(directory: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_deposits")).arg("prove").arg(directory).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A copy of the files with something planted in them.
fn planted(original: &Path, plant: impl FnOnce(&Evidence)) -> (Option<i32>, String) {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(original).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    plant(&Evidence::in_directory(copy.path(), SideName::Tidegate));
    exit(copy.path())
}

/// Changes the first line of the load generator's file for a deposit that completed.
fn retell(evidence: &Evidence, told: &str) {
    let text = std::fs::read_to_string(&evidence.load).unwrap();
    let changed = text.replacen("\"told\":\"completed\"", &format!("\"told\":\"{told}\""), 1);
    assert_ne!(text, changed);
    std::fs::write(&evidence.load, changed).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_calm_run_passes_and_each_harm_planted_in_its_files_ends_with_1() {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path()).await;
    let [synchronous, tidegate] =
        [SideName::Synchronous, SideName::Tidegate].map(|side| Evidence::in_directory(directory.path(), side));
    let proof = prove(7, GatewayMode::Lookup, &synchronous, &tidegate).unwrap();
    assert!(proof.pass, "{:?}", proof.broken);
    assert_eq!((proof.tidegate.sent, proof.tidegate.accepted), (60, 60));
    assert!(proof.tidegate.failed > 0, "no card was declined and no account closed");
    assert_eq!(proof.synchronous.sent, 60);
    assert_eq!(exit(directory.path()), (Some(0), String::new()));

    let duplicate = |evidence: &Evidence| {
        let ledger = std::fs::read_to_string(&evidence.ledger).unwrap();
        let captured = ledger.lines().find(|line| line.contains("\"captured\"")).unwrap();
        let next = ledger.lines().count() + 1;
        let (_, rest) = captured.split_once(',').unwrap();
        let mut file = OpenOptions::new().append(true).open(&evidence.ledger).unwrap();
        writeln!(file, "{{\"seq\":{next},{rest}").unwrap();
    };
    let imbalance = |evidence: &Evidence| {
        let wallet = books::prepare(evidence.wallet.file().unwrap(), &[]).unwrap();
        let entry = "insert into wallet_entries (deposit, account, side, cents) values ('x', 'y', 'debit', 5)";
        wallet.execute(entry, []).unwrap();
    };
    type Plant = Box<dyn FnOnce(&Evidence)>;
    let cases: [(&str, Plant, &str); 5] = [
        ("duplicate", Box::new(duplicate), "took effect more than once"),
        ("lost", Box::new(|evidence| retell(evidence, "processing")), "are lost"),
        ("told failed", Box::new(|evidence| retell(evidence, "failed")), "told that they failed"),
        ("imbalance", Box::new(imbalance), "the books do not balance"),
        ("no ledger", Box::new(|evidence| std::fs::remove_file(&evidence.ledger).unwrap()), "nothing is proven"),
    ];
    for (name, plant, expected) in cases {
        let (code, said) = planted(directory.path(), plant);
        assert_eq!(code, Some(1), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
}
