//! Tidegate's part of the comparison with other queues, small, and that its line has what the comparison reads.

use std::path::Path;

use serde_json::Value;
use tidegate_bench::{line::Arguments, peer};

fn arguments(dir: &Path, rest: &str) -> Arguments {
    let words = ["--dir", &dir.display().to_string()].map(str::to_owned);
    Arguments::parse(words.into_iter().chain(rest.split_whitespace().map(str::to_owned)))
        .expect("the arguments of a test")
}

async fn round(dir: &Path, rest: &str) -> Value {
    let report = peer::run(&arguments(dir, rest)).await.expect("a round");
    serde_json::to_value(report).expect("a report is JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rounds_on_one_file_complete_every_message_once_each() {
    let dir = tempfile::tempdir().unwrap();
    for seed in [1, 2] {
        let rest = format!("--messages 40 --batch 10 --concurrency 8 --preload 100 --seed {seed}");
        let line = round(dir.path(), &rest).await;
        // A quarter more is enqueued before the worker starts.
        for (name, count) in [("enqueued", 50), ("completed_once", 50), ("results_right", 50)] {
            assert_eq!(line["counts"][name], count, "{name} in round {seed}: {line}");
        }
        for name in ["lost", "unfinished", "duplicates", "ran_wrong", "results_wrong"] {
            assert_eq!(line["counts"][name], 0, "{name} in round {seed}: {line}");
        }
        for name in ["enqueue_per_s", "lifecycles_per_s"] {
            assert!(line[name].as_f64().unwrap() > 0.0, "{name}: {line}");
        }
        assert_eq!(line["pragmas"]["journal_mode"], "wal");
        assert_eq!(line["pragmas"]["synchronous"], 2);
        for name in ["name", "version", "sqlite_version", "build"] {
            assert!(!line[name].as_str().unwrap().is_empty(), "{name}: {line}");
        }
        for name in ["keys", "results", "history", "fencing"] {
            assert!(!line["contract"][name].as_str().unwrap().is_empty(), "{name}: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_after_the_other_gives_counts_and_no_rate() {
    let dir = tempfile::tempdir().unwrap();
    let line = round(dir.path(), "--messages 3 --serial").await;
    assert_eq!(line["counts"]["completed_once"], 3, "{line}");
    assert!(line["lifecycles_per_s"].is_null() && line["enqueue_per_s"].is_null(), "{line}");
    // What the count of fsyncs takes off as the idle part.
    assert_eq!(round(dir.path(), "--messages 0 --serial --seed 2").await["counts"]["enqueued"], 0);
}

#[tokio::test]
async fn messages_without_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = peer::run(&arguments(dir.path(), "--keys off")).await.unwrap_err();
    assert!(error.to_string().contains("always has a key"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_round_again_is_refused_and_not_counted_twice() {
    let dir = tempfile::tempdir().unwrap();
    round(dir.path(), "--messages 3 --serial").await;
    let error = peer::run(&arguments(dir.path(), "--messages 3 --serial")).await.unwrap_err();
    assert!(error.to_string().contains("known already"), "{error}");
}
