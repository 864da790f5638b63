use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::journal::EffectRow;
use tidegate::lifecycle::Resolution;
use tidegate::testing::{Harness, NotProven, World, prove_idempotent};
use tidegate::{Answer, Context, EffectAnswer, EffectKey, Found, Handled, HandlerError, Message, Options, State};

use crate::stage::{Count, Next, Work};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A remote that charges; whether it knows a key again is up to the test.
#[derive(Debug, Clone, Default)]
struct Gateway {
    knows_keys: bool,
    charges: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    fn knowing_keys() -> Self {
        Self { knows_keys: true, ..Self::default() }
    }

    async fn charge(&self, key: &str) -> EffectAnswer<u32> {
        let mut charges = self.charges.lock().unwrap();
        if !(self.knows_keys && charges.iter().any(|known| known == key)) {
            charges.push(key.to_owned());
        }
        EffectAnswer::confirmed(7)
    }

    fn has(&self, key: &str) -> bool {
        self.charges.lock().unwrap().iter().any(|known| known == key)
    }

    fn find(&self, key: &EffectKey) -> Found<u32> {
        if self.has(key.as_str()) { Found::Confirmed(7) } else { Found::NotFound }
    }
}

impl World for Gateway {
    fn effects(&self) -> BTreeMap<String, u32> {
        let charges = self.charges.lock().unwrap().len();
        BTreeMap::from([("charge".to_owned(), u32::try_from(charges).unwrap())])
    }

    fn person(&self, parked: &EffectRow) -> Option<Resolution> {
        let happened = self.has(parked.key.as_str());
        Some(if happened { Resolution::Happened { value: "7".into() } } else { Resolution::DidNotHappen })
    }
}

/// Charges by key and passes on.
async fn by_key(gateway: Gateway, context: Context, work: Work) -> Handled<u32> {
    let charge = context.effect("charge").keyed(7 * DAY);
    let charged = charge.call(|key| async move { gateway.charge(key.as_str()).await }).await?;
    context.then(Next { of: work.n });
    Ok(charged)
}

async fn next(_: Context, next: Next) -> Handled<u32> {
    Ok(next.of)
}

#[tokio::test]
async fn a_message_runs_inline_and_its_answer_is_there() {
    let harness = Harness::new(|worker| worker.handle(|_, work: Work| async move { Ok(work.n + 1) })).await.unwrap();
    assert_eq!(harness.run(Work { n: 1 }).await.unwrap(), Answer::Completed(2));
    assert_eq!(harness.run(Work { n: 1 }).await.unwrap(), Answer::Completed(2), "replayed, not run");
}

#[tokio::test]
async fn retries_over_hours_take_no_time() {
    let handler = |context: Context, work: Work| async move {
        if context.attempt() < 15 { Err(HandlerError::retryable("busy", "not yet")) } else { Ok(work.n) }
    };
    let harness = Harness::new(|worker| worker.handle(handler)).await.unwrap();
    assert_eq!(harness.run(Work { n: 5 }).await.unwrap(), Answer::Pending(State::Ready));
    let ran = harness.finish().await.unwrap();
    let last = ran.last().unwrap();
    assert_eq!((ran.len(), last.attempt, last.state), (14, 15, State::Completed));
    assert_eq!(ran[0].code.as_deref(), Some("busy"));
}

#[tokio::test]
async fn a_delayed_message_runs_when_the_clock_is_set_there_and_not_before() {
    let harness = Harness::new(|worker| worker.handle(|_, work: Work| async move { Ok(work.n) })).await.unwrap();
    harness.tide().enqueue_with(Work { n: 1 }, Options::default().delay(MINUTE)).await.unwrap();
    assert_eq!(harness.drain().await.unwrap(), []);
    harness.clock().advance(MINUTE - Duration::from_millis(1));
    assert_eq!(harness.drain().await.unwrap(), []);
    harness.clock().advance(Duration::from_millis(1));
    assert_eq!(harness.drain().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_reply_is_sent_again_under_the_same_key() {
    let gateway = Gateway::knowing_keys();
    let remote = gateway.clone();
    let handler = move |context, work| by_key(remote.clone(), context, work);
    let harness = Harness::new(|worker| worker.handle(handler).handle(next)).await.unwrap();
    harness.lose_replies("charge", 2);
    assert_eq!(harness.run(Work { n: 1 }).await.unwrap(), Answer::Pending(State::Ready));
    harness.finish().await.unwrap();
    assert_eq!(harness.sends("charge").into_values().collect::<Vec<_>>(), [3], "three sends, one key");
    assert_eq!(gateway.charges.lock().unwrap().len(), 1);
    harness.assert_enqueued(|next: &Next| next.of == 1).await.unwrap();
    assert_eq!(harness.enqueued::<Next>().await.unwrap().len(), 1);
}

#[tokio::test]
#[should_panic(expected = "no such message of kind next was enqueued, but these: [Next { of: 1 }]")]
async fn what_was_not_enqueued_is_shown_beside_what_was() {
    let handler = |context, work| by_key(Gateway::knowing_keys(), context, work);
    let harness = Harness::new(|worker| worker.handle(handler).handle(next)).await.unwrap();
    harness.run(Work { n: 1 }).await.unwrap();
    harness.assert_enqueued(|next: &Next| next.of == 2).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_is_looked_up_after_its_quarantine() {
    let gateway = Gateway::default();
    let remote = gateway.clone();
    let handler = move |context: Context, _: Work| {
        let (remote, asked) = (remote.clone(), remote.clone());
        async move {
            let charge = context.effect("charge").lookup(MINUTE, |key| async move { asked.find(&key) });
            charge.call(|key| async move { remote.charge(key.as_str()).await }).await
        }
    };
    let harness = Harness::new(|worker| worker.handle(handler)).await.unwrap();
    harness.lose_replies("charge", 1);
    assert_eq!(harness.run(Work { n: 1 }).await.unwrap(), Answer::Pending(State::Ready));
    assert_eq!(harness.drain().await.unwrap(), [], "the quarantine is not over");
    assert_eq!(harness.finish().await.unwrap().last().unwrap().state, State::Completed);
    assert_eq!(gateway.charges.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_handler_that_keeps_the_rules_is_proven_with_every_boundary_of_its_follow_up() {
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let gateway = gateway.clone();
        worker.handle(move |context, work| by_key(gateway.clone(), context, work)).handle(next)
    };
    let proof = prove_idempotent(Gateway::knowing_keys, handlers, Work { n: 1 }).await.unwrap();
    let passed: Vec<String> = proof.boundaries.iter().map(ToString::to_string).collect();
    for expected in [
        "before a claim from queue work",
        "after a claim from queue work, before its handler began",
        "before the intent of charge was stored (kind work)",
        "after the intent of charge was stored, before its send (kind work)",
        "after the settlement of work was stored",
        "before the settlement of next was stored",
    ] {
        assert!(passed.iter().any(|boundary| boundary == expected), "{expected} in {passed:#?}");
    }
    assert!(passed.iter().any(|boundary| boundary.starts_with("after send of charge, before its answer was stored")));
    assert_eq!((passed.len(), proof.parked, proof.resolved), (13, 0, 0), "{passed:#?}");
}

#[tokio::test]
async fn at_most_once_is_proven_with_a_person_who_asks_the_remote() {
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let gateway = gateway.clone();
        worker.handle(move |context: Context, _: Work| {
            let gateway = gateway.clone();
            async move {
                let charge = context.effect("charge").at_most_once();
                charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
            }
        })
    };
    let proof = prove_idempotent(Gateway::default, handlers, Work { n: 1 }).await.unwrap();
    assert_eq!(
        (proof.parked, proof.resolved),
        (0, 5),
        "around the send: intent stored, sent or not, answer not stored, reply lost"
    );
}

async fn refuted(
    handler: impl Fn(Gateway, Context, Work) -> std::pin::Pin<Box<dyn Future<Output = Handled<u32>> + Send>>
    + Clone
    + Send
    + Sync
    + 'static,
) -> String {
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let (gateway, handler) = (gateway.clone(), handler.clone());
        worker.handle(move |context, work| handler(gateway.clone(), context, work))
    };
    match prove_idempotent(Gateway::default, handlers, Work { n: 1 }).await {
        Err(refuted @ NotProven::Refuted(_)) => refuted.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_remote_that_forgets_keys_refutes_keyed_and_the_text_names_boundary_effect_and_counts() {
    let text = refuted(|gateway, context, _| {
        Box::pin(async move {
            let charge = context.effect("charge").keyed(7 * DAY);
            charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
        })
    })
    .await;
    assert!(text.starts_with("message work is not idempotent: 3 of 9 interruptions made a difference"), "{text}");
    assert!(
        text.contains("- the process died after send of charge, before its answer was stored (kind work, key "),
        "{text}"
    );
    assert!(text.contains("effect \"charge\" happened twice, and once in the undisturbed run"), "{text}");
    assert!(text.contains("hint: the answer of effect charge was missing and it was sent again"), "{text}");
}

#[tokio::test]
async fn a_call_outside_of_an_effect_is_refuted_with_the_advice_to_wrap_it() {
    let text = refuted(|gateway, _, _| {
        Box::pin(async move {
            gateway.charge("work-1").await;
            Ok(1)
        })
    })
    .await;
    assert!(text.contains("- the process died before the settlement of work was stored"), "{text}");
    assert!(text.contains("hint: no answer of an effect was missing here"), "{text}");
    assert!(text.contains("wrap the call in context.effect(..)"), "{text}");
}

#[tokio::test]
async fn a_second_way_taken_when_the_reply_is_lost_is_refuted() {
    let text = refuted(|gateway, context, _| {
        Box::pin(async move {
            let (first, second) = (gateway.clone(), gateway.clone());
            let find = |key: EffectKey| async move { first.find(&key) };
            let charge = context.effect("charge").lookup(MINUTE, find);
            match charge.call(|key| async move { second.charge(key.as_str()).await }).await {
                Ok(charged) => Ok(charged),
                // "It did not work, so the other provider has to": whatever the first one did.
                Err(error) => {
                    gateway.charge("by the other provider").await;
                    Err(error)
                }
            }
        })
    })
    .await;
    assert!(text.contains("- the reply was lost after send of charge (kind work, key "), "{text}");
    assert!(text.contains("effect \"charge\" happened twice, and once in the undisturbed run"), "{text}");
}

#[tokio::test]
async fn a_world_that_saw_nothing_and_a_first_run_that_does_not_end_prove_nothing() {
    #[derive(Serialize, Deserialize)]
    struct Lonely;
    impl Message for Lonely {
        const KIND: &'static str = "lonely";
        type Answer = ();
        fn key(&self) -> String {
            "one".to_owned()
        }
    }
    struct Nothing;
    impl World for Nothing {
        fn effects(&self) -> BTreeMap<String, u32> {
            BTreeMap::new()
        }
    }
    let idle = |_: &Nothing, worker: tidegate::WorkerBuilder| worker.handle(|_, _: Lonely| async { Ok(()) });
    assert!(matches!(prove_idempotent(|| Nothing, idle, Lonely).await, Err(NotProven::NoEffect)));
    let fails = |_: &Nothing, worker: tidegate::WorkerBuilder| {
        worker.handle(|_, _: Lonely| async { Err::<(), _>(HandlerError::retryable("never", "works")) })
    };
    let error = prove_idempotent(|| Nothing, fails, Lonely).await.unwrap_err();
    assert!(error.to_string().starts_with("the undisturbed run did not end: message lonely is dead"), "{error}");
}

#[tokio::test]
async fn a_run_that_does_not_repeat_itself_is_said_to_and_proves_nothing() {
    let runs = Count::default();
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let (gateway, effect) = (gateway.clone(), format!("charge-{}", runs.up()));
        worker.handle(move |context: Context, _: Work| {
            let (gateway, effect) = (gateway.clone(), effect.clone());
            async move {
                let charge = context.effect(&effect).keyed(7 * DAY);
                charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
            }
        })
    };
    let error = prove_idempotent(Gateway::knowing_keys, handlers, Work { n: 1 }).await.unwrap_err();
    assert!(matches!(error, NotProven::NotRepeatable(_)));
    let expected = "a run was to be interrupted before the intent of charge-0 was stored (kind work), and did not come";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[tokio::test]
async fn an_effect_that_nobody_decides_stays_parked_and_happened_at_most_once() {
    /// Nobody reads this gateway's ledger.
    #[derive(Clone)]
    struct Silent(Gateway);
    impl World for Silent {
        fn effects(&self) -> BTreeMap<String, u32> {
            self.0.effects()
        }
    }
    let handlers = |gateway: &Silent, worker: tidegate::WorkerBuilder| {
        let gateway = gateway.0.clone();
        worker.handle(move |context: Context, _: Work| {
            let gateway = gateway.clone();
            async move {
                let charge = context.effect("charge").at_most_once();
                charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
            }
        })
    };
    let proof = prove_idempotent(|| Silent(Gateway::default()), handlers, Work { n: 1 }).await.unwrap();
    assert_eq!((proof.parked, proof.resolved), (5, 0));
}
