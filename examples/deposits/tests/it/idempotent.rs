//! The steps are proven: the process dies at every boundary of a deposit, in each mode of the gateway. Variants
//! that break the rules are refuted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use deposits::books::{self, Books};
use deposits::gateway::{GatewayMode, Operation, OperationBody};
use deposits::steps::{self, Authorise, Capture, Done, Remote};
use deposits::trace::Card;
use tidegate::journal::EffectRow;
use tidegate::lifecycle::Resolution;
use tidegate::testing::{NotProven, Proof, World, prove_idempotent};
use tidegate::{Context, EffectAnswer, EffectKey, Found, Handled, WorkerBuilder};

/// The gateway and the wallet of one run. What was done is counted by deposit, whatever the key was.
#[derive(Clone, Debug)]
struct Bank {
    mode: GatewayMode,
    done: Arc<Mutex<Vec<(Operation, String, String)>>>,
    wallet: Arc<Mutex<Option<PathBuf>>>,
}

impl Bank {
    fn new(mode: GatewayMode) -> Self {
        Self { mode, done: Arc::default(), wallet: Arc::default() }
    }

    fn place(&self, operation: Operation, key: &str) -> Option<usize> {
        self.done.lock().unwrap().iter().position(|(what, under, _)| *what == operation && under == key)
    }

    fn done(operation: Operation, place: usize) -> Done {
        Done { reference: format!("{}-{}", operation.name(), place + 1) }
    }

    fn charge(&self, operation: Operation, key: &str, deposit: &str) -> EffectAnswer<Done> {
        let known = self.place(operation, key).filter(|_| self.mode == GatewayMode::Idempotent);
        let place = known.unwrap_or_else(|| {
            let mut done = self.done.lock().unwrap();
            done.push((operation, key.to_owned(), deposit.to_owned()));
            done.len() - 1
        });
        EffectAnswer::confirmed(Self::done(operation, place))
    }
}

impl Remote for Bank {
    fn send<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
        body: &'a OperationBody,
    ) -> Pin<Box<dyn Future<Output = EffectAnswer<Done>> + Send + 'a>> {
        Box::pin(async move { self.charge(operation, key.as_str(), &body.deposit) })
    }

    fn find<'a>(
        &'a self,
        operation: Operation,
        key: &'a EffectKey,
    ) -> Pin<Box<dyn Future<Output = Found<Done>> + Send + 'a>> {
        Box::pin(async move {
            let place = self.place(operation, key.as_str());
            place.map_or(Found::NotFound, |place| Found::Confirmed(Self::done(operation, place)))
        })
    }
}

impl World for Bank {
    fn effects(&self) -> BTreeMap<String, u32> {
        let mut effects = BTreeMap::new();
        for (operation, _, deposit) in self.done.lock().unwrap().iter() {
            let times: &mut u32 = effects.entry(format!("{} {deposit}", operation.name())).or_default();
            // A second receipt is a second mail, and harmless: that is what its policy says.
            *times = if *operation == Operation::Receipt { 1 } else { *times + 1 };
        }
        if let Some(wallet) = self.wallet.lock().unwrap().as_ref() {
            let credited = Books::read(wallet).unwrap().credited;
            effects.extend(credited.into_iter().map(|(deposit, credit)| (format!("credit {deposit}"), credit.times)));
        }
        effects
    }

    fn person(&self, parked: &EffectRow) -> Option<Resolution> {
        let operation = [Operation::Authorise, Operation::Capture, Operation::Refund]
            .into_iter()
            .find(|operation| operation.name() == parked.effect.name.as_str())?;
        Some(self.place(operation, parked.key.as_str()).map_or(Resolution::DidNotHappen, |place| {
            let value = serde_json::to_string(&Self::done(operation, place)).unwrap();
            Resolution::Happened { value: value.into() }
        }))
    }
}

async fn proof_of_a_deposit(mode: GatewayMode, account: &str) -> Proof {
    let handlers = |bank: &Bank, worker: WorkerBuilder| {
        let path = worker.tide().sqlite().unwrap().path().to_path_buf();
        drop(books::prepare(&path, &["closed".to_owned()]).unwrap());
        *bank.wallet.lock().unwrap() = Some(path);
        steps::handlers(worker, Arc::new(bank.clone()), mode, &super::scale(), &[]).unwrap()
    };
    let deposit = Authorise { deposit: "dep-1".to_owned(), account: account.to_owned(), cents: 100, card: Card::Ok };
    prove_idempotent(|| Bank::new(mode), handlers, deposit).await.unwrap()
}

fn once(effects: &[&str]) -> BTreeMap<String, u32> {
    effects.iter().map(|effect| (format!("{effect} dep-1"), 1)).collect()
}

const A_DEPOSIT: [&str; 4] = ["authorise", "capture", "credit", "receipt"];

#[tokio::test]
async fn the_steps_are_proven_with_a_gateway_that_recognises_keys() {
    let proof = proof_of_a_deposit(GatewayMode::Idempotent, "acct-1").await;
    assert_eq!((proof.effects, proof.resolved, proof.parked), (once(&A_DEPOSIT), 0, 0));
    assert_eq!(proof.boundaries.len(), 34, "{:#?}", proof.boundaries);
}

#[tokio::test]
async fn the_steps_are_proven_with_a_gateway_that_can_be_asked() {
    let proof = proof_of_a_deposit(GatewayMode::Lookup, "acct-1").await;
    assert_eq!((proof.effects, proof.resolved, proof.parked), (once(&A_DEPOSIT), 0, 0));
}

/// Such a gateway leaves nothing to a program: whatever may have happened parks. Proven is that it parks rather than
/// being sent again, and that the deposit takes effect once, as a whole, when a person has read the gateway's ledger.
#[tokio::test]
async fn the_steps_are_proven_with_a_gateway_that_can_do_neither_and_a_person() {
    let proof = proof_of_a_deposit(GatewayMode::None, "acct-1").await;
    assert_eq!((proof.effects, proof.parked), (once(&A_DEPOSIT), 0));
    // An intent is open at five boundaries of authorise and of capture, and after each of three restores.
    assert_eq!(proof.resolved, 13);
}

#[tokio::test]
async fn the_refund_of_a_closed_account_is_proven() {
    let proof = proof_of_a_deposit(GatewayMode::Idempotent, "closed").await;
    assert_eq!((proof.effects, proof.parked), (once(&["authorise", "capture", "refund"]), 0));
}

type Step = fn(Bank, Context, Capture) -> Pin<Box<dyn Future<Output = Handled<Done>> + Send>>;

/// What the proof says of a capture that is written like this.
async fn refuted(mode: GatewayMode, step: Step) -> String {
    let handlers = |bank: &Bank, worker: WorkerBuilder| {
        let bank = bank.clone();
        worker.handle(move |context, capture| step(bank.clone(), context, capture))
    };
    let request =
        OperationBody { deposit: "dep-1".to_owned(), account: "acct-1".to_owned(), cents: 100, card: Card::Ok };
    match prove_idempotent(|| Bank::new(mode), handlers, Capture { request }).await {
        Err(refuted @ NotProven::Refuted(_)) => refuted.to_string(),
        other => panic!("{other:?}"),
    }
}

fn assert_says(text: &str, expected: &[&str]) {
    for expected in expected {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
}

#[tokio::test]
async fn a_call_outside_of_an_effect_is_refuted() {
    let step: Step = |bank, context, capture| {
        Box::pin(async move {
            let answer = bank.charge(Operation::Capture, context.key(), &capture.request.deposit);
            let EffectAnswer::Confirmed(done) = answer else { panic!("{answer:?}") };
            Ok(done)
        })
    };
    let text = refuted(GatewayMode::Lookup, step).await;
    assert_says(
        &text,
        &[
            "message capture is not idempotent",
            "- the process died before the settlement of capture was stored",
            "effect \"capture dep-1\" happened twice, and once in the undisturbed run",
            "hint: no answer of an effect was missing here, so what was repeated is not behind one: wrap the call in \
             context.effect(..)",
        ],
    );
}

#[tokio::test]
async fn the_number_of_the_attempt_in_a_natural_key_is_refuted() {
    let step: Step = |bank, context, capture| {
        Box::pin(async move {
            let attempt = context.attempt();
            // It believes that the gateway takes no notice of a repetition, and then gives it a new key each time.
            let effect = context.effect("capture").natural();
            let send = |key: EffectKey| async move {
                bank.charge(Operation::Capture, &format!("{key}-{attempt}"), &capture.request.deposit)
            };
            effect.call(send).await
        })
    };
    let text = refuted(GatewayMode::Idempotent, step).await;
    assert_says(
        &text,
        &[
            "- the process died after send of capture, before its answer was stored (kind capture, key ",
            "effect \"capture dep-1\" happened twice, and once in the undisturbed run",
            "hint: effect capture is declared natural",
        ],
    );
}

#[tokio::test]
async fn natural_where_the_gateway_takes_notice_is_refuted() {
    let step: Step = |bank, context, capture| {
        Box::pin(async move {
            let effect = context.effect("capture").natural();
            let send =
                |key: EffectKey| async move { bank.charge(Operation::Capture, key.as_str(), &capture.request.deposit) };
            effect.call(send).await
        })
    };
    let text = refuted(GatewayMode::Lookup, step).await;
    assert_says(
        &text,
        &[
            "- the process died after send of capture, before its answer was stored",
            "effect \"capture dep-1\" happened twice, and once in the undisturbed run",
            "hint: effect capture is declared natural, which means that the remote takes no notice of a repetition, and \
             this one did; use .keyed(..), .lookup(..) or .at_most_once()",
        ],
    );
}

#[tokio::test]
async fn keyed_and_another_key_each_time_is_refuted() {
    let step: Step = |bank, context, capture| {
        Box::pin(async move {
            let effect = context.effect("capture").keyed(std::time::Duration::from_secs(7 * 24 * 3600));
            let send = |key: EffectKey| async move {
                // A number of the call's own, as many HTTP clients make one.
                let call = bank.done.lock().unwrap().len();
                bank.charge(Operation::Capture, &format!("{key}-{call}"), &capture.request.deposit)
            };
            effect.call(send).await
        })
    };
    let text = refuted(GatewayMode::Idempotent, step).await;
    assert_says(
        &text,
        &[
            "- the process died after send of capture, before its answer was stored",
            "hint: the answer of effect capture was missing and it was sent again: send the remote exactly the key that \
             the closure is given, nothing of the attempt in it",
        ],
    );
}

/// While an effect is open its attempt keeps its number, so that no crash shows it: a restored backup does, whose attempts are
/// counted anew.
#[tokio::test]
async fn the_number_of_the_attempt_in_a_keyed_key_is_refuted() {
    let step: Step = |bank, context, capture| {
        Box::pin(async move {
            let attempt = context.attempt();
            let effect = context.effect("capture").keyed(std::time::Duration::from_secs(7 * 24 * 3600));
            let send = |key: EffectKey| async move {
                bank.charge(Operation::Capture, &format!("{key}-{attempt}"), &capture.request.deposit)
            };
            effect.call(send).await
        })
    };
    let text = refuted(GatewayMode::Idempotent, step).await;
    assert_says(
        &text,
        &[
            "message capture is not idempotent: 1 of 10 interruptions made a difference",
            "- the store was restored from a backup made before send of capture (kind capture, key ",
            "effect \"capture dep-1\" happened twice, and once in the undisturbed run",
            "hint: a backup knows nothing of what was sent after it",
            "send the remote exactly the key that the closure is given, nothing of the attempt, the time or chance in it",
        ],
    );
}

#[tokio::test]
async fn the_application_checks_what_is_stored_before_it_is_rolled_out() {
    /// A step as no program of ours ever wrote it.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Foreign {
        amount: i64,
    }
    impl tidegate::Message for Foreign {
        const KIND: &'static str = "capture";
        type Answer = ();
        fn key(&self) -> String {
            "foreign".to_owned()
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.db");
    let tide = tidegate::Tidegate::builder().housekeeping(false).open(&path).await.unwrap();
    let deposit = Authorise { deposit: "d".to_owned(), account: "a".to_owned(), cents: 1, card: Card::Ok };
    tide.enqueue(deposit).await.unwrap();
    let check = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_deposits"))
            .args(["check", "--database"])
            .arg(&path)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let good = "1 decode, 0 do not, 0 wait for a newer version of the program\n";
    assert_eq!(check(), (true, good.to_owned()));
    let foreign = tide.enqueue(Foreign { amount: 1 }).await.unwrap().id();
    let (ok, told) = check();
    assert!(!ok);
    assert!(
        told.starts_with(&format!("{foreign} capture version 1, ready in queue capture: the payload is no capture: "))
    );
    assert!(told.ends_with("1 decode, 1 do not, 0 wait for a newer version of the program\n"), "{told}");
}
