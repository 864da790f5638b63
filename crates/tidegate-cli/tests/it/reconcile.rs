//! Parked effects resolved from a file, and the gateway's export held against the journal.

use std::time::Duration;

use tidegate::MessageId;
use tidegate::lifecycle::Outcome;

use crate::desk::{Bench, Desk};

const HOUR: Duration = Duration::from_secs(3600);

/// A message whose effect `capture` is confirmed, and the key the other side knows it by.
async fn confirmed(bench: &Bench, key: &str) -> String {
    let lease = bench.lease(key).await;
    bench.confirm_effect(&lease, "capture", "\"ch_0\"").await;
    bench.settle(&lease, Outcome::Completed { result: "1".into(), orphans: false }).await;
    effect_key(bench, lease.message.id).await
}

async fn effect_key(bench: &Bench, id: MessageId) -> String {
    let view = bench.store.inspect(vec![id]).await.unwrap().pop().unwrap().unwrap();
    view.journal[0].key.as_str().to_owned()
}

#[test]
pub(crate) fn parked_effects_are_resolved_from_a_file_and_bad_lines_are_told_by_number() {
    let desk = Desk::new();
    let (happened, denied, early) = desk.prepare(async |bench| {
        (
            bench.parked("dep-1", Duration::ZERO).await,
            bench.parked("dep-2", Duration::ZERO).await,
            bench.parked("dep-3", HOUR).await,
        )
    });
    let lines = [
        format!(r#"{{"id":"{happened}","effect":"capture","resolution":"happened","result":"ch_1","reason":"seen"}}"#),
        "no object".to_owned(),
        format!(r#"{{"id":"{denied}","effect":"capture","resolution":"did-not-happen"}}"#),
        format!(r#"{{"id":"{early}","effect":"capture","resolution":"did-not-happen"}}"#),
        format!(r#"{{"id":"{early}","effect":"capture","resolution":"perhaps"}}"#),
        format!(r#"{{"id":"{early}","effect":"capture","resolution":"happened"}}"#),
    ];
    desk.write("answers.ndjson", lines.join("\n"));
    let from = ["parked", "resolve", "--from", "answers.ndjson", "--reason", "ticket 4711"];
    for _ in 0..2 {
        desk.run(&from)
            .ends(1)
            .prints("resolved\t2\nrefused\t4\n")
            .says("line 2: not JSON")
            .says("line 4: ")
            .says("line 5: resolution \"perhaps\" is not happened or did-not-happen")
            .says("line 6: no field \"result\"");
    }
    let states =
        desk.prepare(async |bench| [bench.state(happened).await, bench.state(denied).await, bench.state(early).await]);
    assert_eq!(states, ["ready", "ready", "parked"]);
    desk.run(&["get", &happened.to_string(), "--json"]).ends(0).shows("\"ch_1\"");
    desk.run(&["audit"]).ends(0).shows("\tseen\t").shows("\tticket 4711\t");
    let csv = format!("id,effect,resolution,result,reason\n{early},capture,happened,\"{{\"\"charge\"\":7}}\",seen\n");
    desk.write("answers.csv", csv);
    desk.run(&["parked", "resolve", "--from", "answers.csv", "--json"])
        .ends(0)
        .prints("{\"line\":2,\"id\":\"ID1\",\"effect\":\"capture\",\"result\":\"resolved\"}\n");
    desk.run(&["parked", "resolve", "--from", "nowhere.csv"]).ends(3).says("nowhere.csv cannot be read");
    desk.run(&["parked", "resolve"]).ends(2);
}

#[test]
pub(crate) fn a_ledger_that_agrees_with_the_journal_has_no_differences() {
    let desk = Desk::new();
    let key = desk.prepare(async |bench| confirmed(bench, "dep-1").await);
    desk.write("ledger.csv", format!("idempotency_key,name\n{key},dep-1\n"));
    desk.run(&["reconcile", "--ledger", "ledger.csv", "--key", "idempotency_key"])
        .ends(0)
        .prints("")
        .says("1 lines compared, 0 differ");
    let same = ["--amount", "name", "--amount-field", "deposit"];
    desk.run(&[&["reconcile", "--ledger", "ledger.csv", "--key", "idempotency_key"], &same[..]].concat()).ends(0);
}

#[test]
pub(crate) fn a_ledger_is_compared_with_the_journal_and_resolves_what_it_has() {
    let desk = Desk::new();
    let (missing, other, parked, parked_key) = desk.prepare(async |bench| {
        let missing = confirmed(bench, "dep-1").await;
        let other = confirmed(bench, "dep-2").await;
        let parked = bench.parked("dep-3", HOUR).await;
        (missing, other, parked, effect_key(bench, parked).await)
    });
    let lines = [
        format!(r#"{{"key":"{other}","amount":"dep-0"}}"#),
        format!(r#"{{"key":"{parked_key}","amount":"dep-3","charge":{{"id":"ch_3"}}}}"#),
        r#"{"key":"0123","amount":"1"}"#.to_owned(),
        r#"{"amount":"1"}"#.to_owned(),
    ];
    desk.write("ledger.ndjson", lines.join("\n"));
    let compare = ["reconcile", "--ledger", "ledger.ndjson", "--amount-field", "deposit"];
    let found = desk.run(&compare).ends(1).says("4 lines compared, 5 differ").out;
    let rows: Vec<Vec<&str>> = found.lines().map(|line| line.split('\t').collect()).collect();
    let told: Vec<(&str, &str, &str)> = rows.iter().map(|row| (row[0], row[1], row[5])).collect();
    assert_eq!(
        told,
        [
            ("amount", other.as_str(), "confirmed"),
            ("extra", parked_key.as_str(), "unknown"),
            ("extra", "0123", ""),
            ("unreadable", "", ""),
            ("missing", missing.as_str(), "confirmed"),
        ]
    );
    assert_eq!(rows[0][6], "dep-0 there, dep-2 here");
    assert!(found.lines().all(|line| line.ends_with('\t')), "nothing was done: {found}");
    desk.run(&[&compare[..], &["--resolve"]].concat()).ends(2).says("--reason");
    let resolve = ["--resolve", "--result", "charge", "--reason", "settlement file of today"];
    desk.run(&[&compare[..], &resolve[..]].concat()).ends(1).shows("\tunknown\t\tresolved\n");
    assert_eq!(desk.prepare(async |bench| bench.state(parked).await), "ready");
    desk.run(&["get", &parked.to_string(), "--json"]).ends(0).shows("\"ch_3\"");
    let again = desk.run(&[&compare[..], &resolve[..]].concat()).ends(1).says("4 differ").out;
    assert!(!again.contains(&parked_key), "what was resolved differs no more: {again}");
}
