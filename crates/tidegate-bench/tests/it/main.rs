//! The benchmark, small: that it runs through, and that its figures can be what they say.

mod peer;

use serde_json::Value;
use tidegate_bench::{CLAIMED, ClaimCost, KeyOrder, PAYLOAD_BYTES, Parameters};

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name} is missing or no number: {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_run_gives_every_figure_for_both_orders_of_keys() {
    let dir = tempfile::tempdir().unwrap();
    let parameters = Parameters { dir: dir.path().to_path_buf(), ..Parameters::quick() };
    let mut told = Vec::new();
    let report = tidegate_bench::run(&parameters, &mut |step| told.push(step.to_owned())).await.unwrap();
    let report = serde_json::to_value(&report).unwrap();

    for figures in [&report, &report["by_key_order"]["random"], &report["by_key_order"]["time"]] {
        for name in ["lifecycles_per_s", "raw_bound_per_s", "ratio", "store_lifecycles_per_s", "fsync_p50_ms"] {
            assert!(number(figures, name) > 0.0, "{name}: {figures}");
        }
        let group = number(figures, "mean_group_size");
        assert!(group >= 1.0, "a commit has at least one step: {figures}");
        // Three steps to a message, so many steps to a commit.
        let fsyncs = number(figures, "fsyncs_per_message");
        assert!((fsyncs * group - 3.0).abs() < 0.01, "{fsyncs} × {group} is not 3");
        let wal = number(figures, "wal_bytes_per_message");
        assert!(wal > 300.0, "{wal} bytes do not hold a payload of 200 and its rows");
        assert!(number(figures, "raw_wal_bytes_per_message") > 300.0, "{figures}");
        let (p50, p99) = (number(figures, "pickup_p50_ms"), number(figures, "pickup_p99_ms"));
        assert!(0.0 <= p50 && p50 <= p99 && p99 < 30_000.0, "{p50} {p99}");
        let ratio = number(figures, "lifecycles_per_s") / number(figures, "raw_bound_per_s");
        assert!((number(figures, "ratio") - ratio).abs() < 1e-9, "{figures}");
    }
    let costs = report["claim_cost"].as_array().unwrap();
    assert_eq!(costs.iter().map(|cost| cost["backlog"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2000]);
    assert!(report.get("worked_off").is_none(), "no program was named that could: {report}");
    let conditions = &report["parameters"];
    assert_eq!(conditions["messages"], 500);
    assert_eq!(conditions["preloaded_keys"], 2000);
    assert_eq!(conditions["key_order"], "random");
    assert_eq!(conditions["payload_bytes"], PAYLOAD_BYTES);
    assert!(conditions["durability"].as_str().unwrap().contains("synchronous=FULL"), "{conditions}");
    assert_eq!(report["store"], "sqlite");
    assert!(!told.is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves no files behind");
}

/// Counted, not timed: what this finds does not depend on the machine it runs on.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_costs_the_same_in_front_of_any_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut costs = Vec::new();
    for backlog in [0, 10_000, 50_000] {
        let file = dir.path().join(format!("{backlog}.db"));
        costs.push(tidegate_bench::claim_cost(&file, backlog, 20, 42).await.unwrap());
    }
    let spread = |figure: fn(&ClaimCost) -> f64| {
        let of = costs.iter().map(figure);
        (of.clone().fold(f64::MAX, f64::min), of.fold(0.0, f64::max))
    };
    let (least, most) = spread(|cost| cost.steps_per_claim.unwrap());
    assert!(least > f64::from(CLAIMED), "a claim of {CLAIMED} took {least} steps");
    assert!(most <= least * 1.1, "between {least} and {most} steps by claim: {costs:?}");
    // A tree of more levels may cost a page or two, of some dozens.
    let (least, most) = spread(|cost| cost.pages_per_claim.unwrap());
    assert!(most <= least * 1.1 + 2.0, "between {least} and {most} pages by claim: {costs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_is_worked_off_and_the_memory_for_it_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backlog.db");
    // Leaves its backlog behind.
    tidegate_bench::claim_cost(&file, 500, 1, 42).await.unwrap();
    let worked_off = tidegate_bench::work_off(&file.into()).await.unwrap();
    assert_eq!(worked_off.queued, 500);
    assert!(worked_off.per_s > 0.0 && worked_off.peak_rss_mib > 1.0, "{worked_off:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_order_of_keys_is_measured_alone() {
    let dir = tempfile::tempdir().unwrap();
    let parameters = Parameters {
        orders: vec![KeyOrder::Time],
        messages: 50,
        preload: 0,
        pickups: 3,
        backlogs: vec![0],
        dir: dir.path().to_path_buf(),
        ..Parameters::quick()
    };
    let report = tidegate_bench::run(&parameters, &mut |_| {}).await.unwrap();
    assert!(report.by_key_order.random.is_none() && report.by_key_order.time.is_some());
    assert_eq!(report.parameters.key_order, KeyOrder::Time);
}

#[tokio::test]
async fn nothing_to_measure_is_refused() {
    let none = Parameters { messages: 0, ..Parameters::quick() };
    let error = tidegate_bench::run(&none, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("must be 1 or more"), "{error}");
    let nowhere = Parameters { dir: "no/such/directory".into(), ..Parameters::quick() };
    let error = tidegate_bench::run(&nowhere, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("no/such/directory"), "{error}");
}
