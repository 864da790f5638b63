use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidegate::store::Enqueued;
use tidegate::{Answer, Handled, Message, Options, State, StoreErrorKind, Undecodable};

use crate::stage::{SOON, Stage, Work};

/// As an older program knew it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Old {
    eur: i64,
}

impl Message for Old {
    const KIND: &'static str = "pay";
    type Answer = i64;
    fn key(&self) -> String {
        "pay-1".to_owned()
    }
}

/// As this program knows it: in cents, and with a note.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pay {
    cents: i64,
    #[serde(default)]
    note: String,
}

impl Message for Pay {
    const KIND: &'static str = "pay";
    const VERSION: u32 = 2;
    type Answer = i64;
    fn key(&self) -> String {
        "pay-1".to_owned()
    }
    fn upcast(_from: u32, payload: Value) -> Result<Value, String> {
        let eur = payload["eur"].as_i64().filter(|eur| *eur > 0).ok_or("eur is no amount")?;
        Ok(json!({ "cents": eur * 100 }))
    }
}

fn pay(cents: i64) -> Pay {
    Pay { cents, note: String::new() }
}

async fn cents(_: tidegate::Context, pay: Pay) -> Handled<i64> {
    Ok(pay.cents)
}

#[tokio::test]
async fn a_message_of_an_older_version_is_up_cast_before_its_handler_sees_it() {
    let stage = Stage::new().await;
    let old = stage.tide.enqueue(Old { eur: 5 }).await.unwrap();
    let worker = stage.tide.worker().handle(cents).start().await.unwrap();
    assert_eq!(old.answer(SOON).await.unwrap(), Answer::Completed(500));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn an_up_cast_that_fails_is_a_dead_letter_that_says_why() {
    let stage = Stage::new().await;
    let old = stage.tide.enqueue(Old { eur: 0 }).await.unwrap();
    let worker = stage.tide.worker().handle(cents).start().await.unwrap();
    assert_eq!(old.answer(SOON).await.unwrap(), Answer::Dead { reason: "decode".into() });
    let detail = stage.view(old.id()).await.failure.unwrap().detail;
    assert_eq!(detail, "the payload of pay could not be up-cast from version 1: eur is no amount");
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_duplicate_in_a_newer_version_is_no_conflict_if_it_asks_for_the_same() {
    let stage = Stage::new().await;
    let old = stage.tide.enqueue(Old { eur: 5 }).await.unwrap();
    let known = stage.tide.enqueue(pay(500)).await.unwrap();
    assert!(matches!(known.enqueued(), Some(Enqueued::Existing { id, state: State::Ready, .. }) if *id == old.id()));
    let error = stage.tide.enqueue(pay(501)).await.unwrap_err();
    assert_eq!((error.kind(), error.conflicting_id()), (StoreErrorKind::KeyConflict, Some(old.id())));

    let worker = stage.tide.worker().handle(cents).start().await.unwrap();
    assert_eq!(old.answer(SOON).await.unwrap(), Answer::Completed(500));
    worker.stop().await.unwrap();
    let mut verdicts = stage.tide.enqueue_all([pay(500), pay(501)]).await.unwrap();
    assert_eq!(verdicts.pop().unwrap().unwrap_err().kind(), StoreErrorKind::KeyConflict);
    assert!(verdicts.pop().unwrap().unwrap().is_replayed());
}

#[tokio::test]
async fn an_older_program_cannot_compare_with_a_newer_payload_and_is_told_of_the_conflict() {
    let stage = Stage::new().await;
    stage.tide.enqueue(pay(500)).await.unwrap();
    assert_eq!(stage.tide.enqueue(Old { eur: 5 }).await.unwrap_err().kind(), StoreErrorKind::KeyConflict);
}

#[tokio::test]
async fn a_check_lists_what_this_program_could_not_run_and_changes_nothing() {
    let stage = Stage::new().await;
    let enqueue = |eur, key: &'static str| stage.tide.enqueue_with(Old { eur }, Options::default().key(key));
    enqueue(1, "good").await.unwrap();
    let bad = enqueue(0, "bad").await.unwrap().id();
    let late = Options::default().key("late").delay(std::time::Duration::from_secs(60));
    let scheduled = stage.tide.enqueue_with(Old { eur: -1 }, late).await.unwrap().id();
    stage.tide.enqueue_with(pay(5), Options::default().key("new")).await.unwrap();
    stage.tide.enqueue(Work { n: 1 }).await.unwrap();

    let report = stage.tide.worker().handle(cents).check().await.unwrap();
    assert_eq!((report.decoded, report.newer, report.undecodable, report.is_good()), (2, 0, 2, false));
    let listed: Vec<_> =
        report.listed.iter().map(|Undecodable { id, version, state, .. }| (*id, *version, *state)).collect();
    assert_eq!(listed, [(bad, 1, State::Ready), (scheduled, 1, State::Ready)]);
    assert!(report.to_string().ends_with("2 decode, 2 do not, 0 wait for a newer version of the program"), "{report}");
    assert_eq!(stage.view(bad).await.state, State::Ready, "a check runs nothing");

    let older = stage.tide.worker().handle(|_, old: Old| async move { Ok(old.eur) }).check().await.unwrap();
    assert_eq!((older.decoded, older.newer, older.undecodable), (3, 1, 0));
}

#[tokio::test]
async fn a_check_reads_dead_letters_as_well_and_more_than_a_page() {
    let stage = Stage::new().await;
    let worker = stage.tide.worker().handle(cents).start().await.unwrap();
    let dead = stage.tide.enqueue(Old { eur: 0 }).await.unwrap();
    assert_eq!(dead.answer(SOON).await.unwrap(), Answer::Dead { reason: "decode".into() });
    worker.stop().await.unwrap();
    stage.tide.enqueue_all((0..1200).map(|n| Work { n })).await.unwrap();
    let builder = stage.tide.worker().handle(cents).handle(|_, work: Work| async move { Ok(work.n) });
    let report = builder.check().await.unwrap();
    assert_eq!((report.decoded, report.undecodable), (1200, 1));
    assert_eq!((report.listed[0].id, report.listed[0].state), (dead.id(), State::Dead));
}
