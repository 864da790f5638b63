//! A store that is put to work from a backup, after the one it was copied from went on and charged.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::store::Act;
use tidegate::{Answer, Context, EffectAnswer, EffectKey, Found, HandlerError, Tidegate};

use crate::stage::{SOON, Stage, Work, at_once};

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// A gateway that remembers what it charged by key, and counts the requests that came without a known one.
#[derive(Debug, Clone, Default)]
struct Gateway(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    charges: HashMap<String, u32>,
    requests: u32,
    lookups: u32,
}

impl Gateway {
    fn charge(&self, key: &EffectKey) -> EffectAnswer<u32> {
        let mut ledger = self.0.lock().unwrap();
        ledger.requests += 1;
        let next = u32::try_from(ledger.charges.len()).unwrap() + 1;
        EffectAnswer::Confirmed(*ledger.charges.entry(key.to_string()).or_insert(next))
    }

    fn find(&self, key: &EffectKey) -> Found<u32> {
        let mut ledger = self.0.lock().unwrap();
        ledger.lookups += 1;
        ledger.charges.get(key.as_str()).map_or(Found::NotFound, |charge| Found::Confirmed(*charge))
    }

    fn seen(&self) -> (usize, u32, u32) {
        let ledger = self.0.lock().unwrap();
        (ledger.charges.len(), ledger.requests, ledger.lookups)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Keyed,
    Lookup,
    AtMostOnce,
}

async fn capture(policy: Policy, gateway: Gateway, context: Context) -> Result<u32, HandlerError> {
    let asked = gateway.clone();
    let effect = context.effect("capture");
    let effect = match policy {
        Policy::Keyed => effect.keyed(LONG),
        Policy::Lookup => effect.lookup(Duration::from_millis(50), |key| async move { asked.find(&key) }),
        Policy::AtMostOnce => effect.at_most_once(),
    };
    effect.call(|key| async move { gateway.charge(&key) }).await
}

/// Runs what waits in the store at `path` and answers what became of message 1.
async fn worked(tide: &Tidegate, policy: Policy, gateway: &Gateway) -> Answer<u32> {
    let shared = gateway.clone();
    let handler = move |context: Context, _: Work| capture(policy, shared.clone(), context);
    let worker = tide.worker().handle_with(handler, at_once(3)).start().await.unwrap();
    let sent = tide.enqueue(Work { n: 1 }).await.unwrap();
    assert!(!sent.is_new(), "its key is known");
    let answer = sent.answer(SOON).await.unwrap();
    worker.stop().await.unwrap();
    answer
}

async fn backed_up(stage: &Stage, name: &str) -> PathBuf {
    let copy = stage.dir.path().join(name);
    stage.tide.sqlite().unwrap().backup(&copy).await.unwrap();
    copy
}

#[tokio::test]
async fn what_the_original_charged_after_the_backup_is_not_charged_again() {
    for policy in [Policy::Keyed, Policy::Lookup, Policy::AtMostOnce] {
        let stage = Stage::new().await;
        let gateway = Gateway::default();
        let id = stage.tide.enqueue(Work { n: 1 }).await.unwrap().id();
        let copy = backed_up(&stage, "copy.db").await;
        // The original goes on and charges, and is then lost.
        assert_eq!(worked(&stage.tide, policy, &gateway).await, Answer::Completed(1), "{policy:?}");
        assert_eq!(gateway.seen(), (1, 1, 0));

        let tide = Tidegate::open(&copy).await.unwrap();
        let answer = worked(&tide, policy, &gateway).await;
        let view = tide.store().inspect(vec![id]).await.unwrap().pop().unwrap().unwrap();
        let (charges, requests, lookups) = gateway.seen();
        assert_eq!(charges, 1, "{policy:?}: charged twice: {view:?}");
        match policy {
            Policy::Keyed => assert_eq!((answer, requests, lookups), (Answer::Completed(1), 2, 0), "the same key"),
            Policy::Lookup => assert_eq!((answer, requests, lookups), (Answer::Completed(1), 1, 1), "asked first"),
            Policy::AtMostOnce => {
                assert_eq!((answer, requests), (Answer::Parked { reason: "outcome_unknown".into() }, 1));
            }
        }
    }
}

#[tokio::test]
async fn what_the_original_did_not_charge_is_charged_once_the_lookup_says_so() {
    let stage = Stage::new().await;
    let gateway = Gateway::default();
    stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let copy = backed_up(&stage, "copy.db").await;
    let tide = Tidegate::open(&copy).await.unwrap();
    assert_eq!(worked(&tide, Policy::Lookup, &gateway).await, Answer::Completed(1));
    assert_eq!(gateway.seen(), (1, 1, 1));
}

#[tokio::test]
async fn what_is_new_in_a_restored_store_is_sent_as_ever() {
    let stage = Stage::new().await;
    let gateway = Gateway::default();
    let copy = backed_up(&stage, "copy.db").await;
    let tide = Tidegate::open(&copy).await.unwrap();
    tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(worked(&tide, Policy::AtMostOnce, &gateway).await, Answer::Completed(1));
}

#[tokio::test]
async fn what_follows_from_an_older_message_may_have_followed_before() {
    use crate::stage::Next;
    let gateway = Gateway::default();
    let stage = Stage::new().await;
    let first = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    let copy = backed_up(&stage, "copy.db").await;
    let through = async |tide: &Tidegate| {
        let shared = gateway.clone();
        let start = |context: Context, work: Work| async move {
            context.then(Next { of: work.n });
            Ok(0)
        };
        let credit = move |context: Context, _: Next| capture(Policy::AtMostOnce, shared.clone(), context);
        let worker =
            tide.worker().handle_with(start, at_once(3)).handle_with(credit, at_once(3)).start().await.unwrap();
        let flow = tide.sent::<Work>(first.id()).flow(SOON).await.unwrap();
        worker.stop().await.unwrap();
        flow
    };
    assert!(through(&stage.tide).await.is_completed());
    let flow = through(&Tidegate::open(&copy).await.unwrap()).await;
    assert_eq!(flow.stopped_at().unwrap().code.as_deref(), Some("outcome_unknown"), "{flow:?}");
    assert_eq!(gateway.seen().1, 1, "credited once");
}

#[tokio::test]
async fn a_dead_letter_that_is_redriven_in_a_restored_store_may_have_been_redriven_before() {
    let stage = Stage::new().await;
    let gateway = Gateway::default();
    let handler = |_: Context, _: Work| async { Err::<u32, _>(HandlerError::retryable("down", "not yet")) };
    let worker = stage.tide.worker().handle_with(handler, at_once(1)).start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 1 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Dead { reason: "exhausted".into() });
    worker.stop().await.unwrap();
    let copy = backed_up(&stage, "copy.db").await;
    let act = || Act { actor: "tester".into(), reason: "a test".into() };
    let redrive = || tidegate::store::Redrive { ids: vec![sent.id()], again: false, operation: "o".into(), act: act() };
    stage.tide.redrive(redrive()).await.unwrap().remove(0).unwrap();
    assert_eq!(worked(&stage.tide, Policy::AtMostOnce, &gateway).await, Answer::Completed(1));
    let tide = Tidegate::open(&copy).await.unwrap();
    tide.redrive(redrive()).await.unwrap().remove(0).unwrap();
    let parked = Answer::Parked { reason: "outcome_unknown".into() };
    assert_eq!(worked(&tide, Policy::AtMostOnce, &gateway).await, parked);
    assert_eq!(gateway.seen().1, 1);
}
