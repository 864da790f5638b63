use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::journal::EffectRow;
use tidegate::lifecycle::Resolution;
use tidegate::testing::{Harness, NotProven, World, prove_idempotent};
use tidegate::{
    Answer, Clock, Context, EffectAnswer, EffectKey, Found, Handled, HandlerError, Message, Options, Random, State,
    SystemClock, SystemRandom,
};

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
    assert!(passed.iter().any(|boundary| boundary.starts_with("made before send of charge")), "a backup: {passed:#?}");
    assert_eq!((passed.len(), proof.parked, proof.resolved), (14, 0, 0), "{passed:#?}");
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
        (0, 6),
        "around the send: intent stored, sent or not, answer not stored, reply lost, store restored"
    );
}

type Charging = std::pin::Pin<Box<dyn Future<Output = Handled<u32>> + Send>>;

/// Why a handler of this shape is not proven, with this gateway.
async fn not_proven(
    gateway: fn() -> Gateway,
    handler: impl Fn(Gateway, Context, Work) -> Charging + Clone + Send + Sync + 'static,
) -> NotProven {
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let (gateway, handler) = (gateway.clone(), handler.clone());
        worker.handle(move |context, work| handler(gateway.clone(), context, work)).handle(next)
    };
    match prove_idempotent(gateway, handlers, Work { n: 1 }).await {
        Err(why) => why,
        Ok(proof) => panic!("{proof:?}"),
    }
}

async fn refuted(handler: impl Fn(Gateway, Context, Work) -> Charging + Clone + Send + Sync + 'static) -> String {
    let why = not_proven(Gateway::default, handler).await;
    assert!(matches!(why, NotProven::Refuted(_)), "{why}");
    why.to_string()
}

#[tokio::test]
async fn the_attempt_in_a_keyed_key_is_refuted_by_a_backup_that_knows_nothing_of_the_send() {
    /// What authors make of the number of an attempt.
    const KEYS: [fn(&EffectKey, u32) -> String; 3] = [
        |key, attempt| format!("{key}-{attempt}"),
        |key, attempt| format!("{key}-{}", attempt.max(1)),
        |key, attempt| if attempt > 1 { format!("{key}-again-{attempt}") } else { key.to_string() },
    ];
    for key_of in KEYS {
        let why = not_proven(Gateway::knowing_keys, move |gateway, context, _| {
            Box::pin(async move {
                let attempt = context.attempt();
                let charge = context.effect("charge").keyed(7 * DAY);
                charge.call(|key| async move { gateway.charge(&key_of(&key, attempt)).await }).await
            })
        })
        .await;
        let text = why.to_string();
        assert!(text.starts_with("message work is not idempotent: 1 of 10 interruptions made a difference"), "{text}");
        let event = "- the store was restored from a backup made before send of charge (kind work, key ";
        assert!(text.contains(event), "{text}");
        assert!(text.contains("effect \"charge\" happened twice, and once in the undisturbed run"), "{text}");
        assert!(text.contains("hint: a backup knows nothing of what was sent after it"), "{text}");
        assert!(text.contains("nothing of the attempt, the time or chance in it"), "{text}");
    }
}

#[tokio::test]
async fn the_attempt_in_a_follow_ups_keyed_key_is_refuted_as_well() {
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let gateway = gateway.clone();
        let charging = move |context: Context, _: Next| {
            let gateway = gateway.clone();
            async move {
                let attempt = context.attempt();
                let charge = context.effect("charge").keyed(7 * DAY);
                charge.call(|key| async move { gateway.charge(&format!("{key}-{attempt}")).await }).await
            }
        };
        let passing_on = |context: Context, work: Work| async move {
            context.then(Next { of: work.n });
            Ok(work.n)
        };
        worker.handle(passing_on).handle(charging)
    };
    let text = prove_idempotent(Gateway::knowing_keys, handlers, Work { n: 1 }).await.unwrap_err().to_string();
    assert!(
        text.contains("- the store was restored from a backup made before send of charge (kind next, key "),
        "{text}"
    );
}

#[tokio::test]
async fn time_in_a_keyed_key_is_refuted() {
    let text = not_proven(Gateway::knowing_keys, |gateway, context, _| {
        Box::pin(async move {
            let charge = context.effect("charge").keyed(7 * DAY);
            let at = SystemClock::new().now().as_millis();
            charge.call(|key| async move { gateway.charge(&format!("{key}-{at}")).await }).await
        })
    })
    .await
    .to_string();
    assert!(text.contains("- the process died after send of charge, before its answer was stored"), "{text}");
    assert!(text.contains("effect \"charge\" happened twice"), "{text}");
}

#[tokio::test]
async fn time_and_chance_in_a_name_an_item_or_a_follow_up_are_found_by_a_second_undisturbed_run() {
    fn by_chance() -> String {
        let mut bytes = [0; 8];
        SystemRandom.fill(&mut bytes);
        format!("{bytes:?}").replace(", ", "-").replace(['[', ']'], "")
    }
    let chance: fn(Gateway, Context, Work) -> Charging = |gateway, context, _| {
        Box::pin(async move {
            let charge = context.effect("charge").item(by_chance()).keyed(7 * DAY);
            charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
        })
    };
    let time: fn(Gateway, Context, Work) -> Charging = |gateway, context, _| {
        Box::pin(async move {
            let name = format!("charge-{}", SystemClock::new().now().as_millis());
            let charge = context.effect(&name).keyed(7 * DAY);
            charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
        })
    };
    let follow_up: fn(Gateway, Context, Work) -> Charging = |gateway, context, work| {
        Box::pin(async move {
            let charge = context.effect("charge").keyed(7 * DAY);
            let charged = charge.call(|key| async move { gateway.charge(key.as_str()).await }).await?;
            context.then_with(Next { of: work.n }, Options::default().item(by_chance()));
            Ok(charged)
        })
    };
    for (handler, expected) in [
        (chance, "of work was begun in the first run, and not in the second"),
        (time, "of work was begun in the second run, and not in the first"),
        (follow_up, "message next followed under another key in the undisturbed run"),
    ] {
        let why = not_proven(Gateway::knowing_keys, handler).await;
        assert!(matches!(why, NotProven::Differs { .. }), "{why}");
        let text = why.to_string();
        assert!(text.starts_with("message work does not repeat itself: two undisturbed runs differ\n- "), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("hint: name and item are the identity of an effect"), "{text}");
    }
}

#[tokio::test]
async fn the_attempt_in_an_item_or_a_follow_up_is_refuted_although_nothing_happened_twice() {
    let item: fn(Gateway, Context, Work) -> Charging = |gateway, context, _| {
        Box::pin(async move {
            let charge = context.effect("charge").item(context.attempt().to_string()).keyed(7 * DAY);
            charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
        })
    };
    let follow_up: fn(Gateway, Context, Work) -> Charging = |gateway, context, work| {
        Box::pin(async move {
            let charge = context.effect("charge").keyed(7 * DAY);
            let charged = charge.call(|key| async move { gateway.charge(key.as_str()).await }).await?;
            context.then_with(Next { of: work.n }, Options::default().item(context.attempt().to_string()));
            Ok(charged)
        })
    };
    for (handler, expected) in [
        (item, "effect charge[2] of work was begun, which the undisturbed run does not know"),
        (follow_up, "message next followed under another key in the undisturbed run"),
    ] {
        let why = not_proven(Gateway::knowing_keys, handler).await;
        assert!(matches!(why, NotProven::Refuted(_)), "{why}");
        let text = why.to_string();
        assert!(text.contains("- the process died after a claim from queue work, before its handler began"), "{text}");
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("hint: name and item are the identity of an effect"), "{text}");
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
    assert!(text.starts_with("message work is not idempotent: 4 of 10 interruptions made a difference"), "{text}");
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
    assert!(matches!(error, NotProven::Differs { .. }));
    let expected = "effect charge-0 of work was begun in the first run, and not in the second";
    assert!(error.to_string().contains(expected), "{error}");
}

#[tokio::test]
async fn a_boundary_that_is_not_reached_again_proves_nothing() {
    let runs = Count::default();
    let handlers = |gateway: &Gateway, worker: tidegate::WorkerBuilder| {
        let (gateway, run) = (gateway.clone(), runs.up());
        worker.handle(move |context: Context, _: Work| {
            let gateway = gateway.clone();
            async move {
                // From the third process on, the first two of which were the undisturbed runs, it goes another way.
                if run > 1 {
                    gateway.charge("work-1").await;
                    return Ok(7);
                }
                let charge = context.effect("charge").keyed(7 * DAY);
                charge.call(|key| async move { gateway.charge(key.as_str()).await }).await
            }
        })
    };
    let error = prove_idempotent(Gateway::knowing_keys, handlers, Work { n: 1 }).await.unwrap_err();
    assert!(matches!(error, NotProven::NotRepeatable(_)), "{error}");
    let expected = "a run was to come to this, and did not: the process died before the intent of charge was stored";
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
    assert_eq!((proof.parked, proof.resolved), (6, 0));
}
