//! The application that is simulated: messages whose handlers do everything that handlers do, well and badly.
//!
//! What a handler does is decided by its message's number, so that it does the same in every process and every run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{
    Backoff, Context, EffectKey, Handled, HandlerError, Kind, Message, Options, Policy, Tidegate, WorkerBuilder,
};
use tidegate_core::effect::EffectId;

use crate::gateway::{self, Ability, Done, QUARANTINE, Request, SHORT_WINDOW, WINDOW};
use crate::settings::Broken;
use crate::sim::Sim;

/// How many queues there are: each kind has its own.
pub(crate) const QUEUES: u32 = 7;
/// How long a request may be on its way out.
const SEND_WITHIN: Duration = Duration::from_secs(20);

macro_rules! message {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) struct $name {
            pub(crate) n: u64,
            pub(crate) cents: u64,
        }

        impl Message for $name {
            const KIND: &'static str = $kind;
            type Answer = $answer;
            fn key(&self) -> String {
                format!(concat!($kind, "-{}"), self.n)
            }
        }
    };
}

message!(
    /// Takes money: the remote recognises keys, and can be asked afterwards.
    Deposit, "deposit", u64
);
message!(
    /// Books it: the remote can only be asked.
    Credit, "credit", u64
);
message!(
    /// Tells the customer: once, or a person decides.
    Notify, "notify", u64
);
message!(
    /// Two effects one after the other, and what undoes the first.
    Transfer, "transfer", u64
);
message!(
    /// What undoes a transfer.
    Refund, "refund", u64
);
message!(
    /// The remote recognises keys for a short while, and cannot be asked.
    Voucher, "voucher", u64
);
message!(
    /// No effect that matters, and every way for a handler to end.
    Chore, "chore", String
);

/// A deposit as the next version of the program knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deposit2 {
    pub(crate) n: u64,
    pub(crate) cents: u64,
    pub(crate) currency: String,
}

impl Message for Deposit2 {
    const KIND: &'static str = Deposit::KIND;
    const VERSION: u32 = 2;
    type Answer = u64;
    fn key(&self) -> String {
        format!("deposit-{}", self.n)
    }
    fn upcast(_from: u32, mut payload: serde_json::Value) -> Result<serde_json::Value, String> {
        payload["currency"] = serde_json::Value::from("EUR");
        Ok(payload)
    }
}

/// What each kind allows.
pub(crate) fn policies() -> BTreeMap<Kind, Policy> {
    let kinds = [Deposit::KIND, Credit::KIND, Notify::KIND, Transfer::KIND, Refund::KIND, Voucher::KIND, Chore::KIND];
    kinds.into_iter().filter_map(|kind| Some((Kind::new(kind).ok()?, policy()))).collect()
}

fn policy() -> Policy {
    Policy {
        max_attempts: 5,
        backoff: Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) },
        timeout: Duration::from_secs(90),
        crash_limit: 3,
    }
}

/// A worker for all of it.
pub(crate) fn worker(sim: &Arc<Sim>, tide: &Tidegate, process: u8, boot: u64, version: u32) -> WorkerBuilder {
    let app = App { sim: Arc::clone(sim), process };
    let builder = tide
        .worker()
        .name(&format!("p{process}-{boot}"))
        .concurrency(sim.settings.concurrency)
        .poll_every(sim.settings.poll_every);
    macro_rules! handle {
        ($builder:expr, $step:ident) => {{
            let app = app.clone();
            $builder.handle_with(move |context, message| app.clone().$step(context, message), policy())
        }};
    }
    let builder = if version >= 2 { handle!(builder, deposit2) } else { handle!(builder, deposit) };
    let builder = handle!(builder, credit);
    let builder = handle!(builder, notify);
    let builder = handle!(builder, transfer);
    let builder = handle!(builder, refund);
    let builder = handle!(builder, voucher);
    handle!(builder, chore)
}

/// What handlers capture.
#[derive(Debug, Clone)]
struct App {
    sim: Arc<Sim>,
    process: u8,
}

impl App {
    fn begins(&self, context: &Context) {
        self.sim.runs.fetch_add(1, Ordering::Relaxed);
        self.sim.note(Some(self.process), "runs", context.id(), u64::from(context.attempt()));
        let held = self.sim.oracle().began(context.id());
        self.sim.check(held);
    }

    fn request(&self, context: &Context, operation: &'static str, ability: Ability, key: EffectKey) -> Request {
        let key = if self.sim.settings.broken == Some(Broken::AttemptInTheKey) {
            EffectKey::from_stored(&format!("{key}-{}", context.attempt()))
        } else {
            key
        };
        Request { operation, ability, key, message: context.id() }
    }

    fn quarantine(&self) -> Duration {
        if self.sim.settings.broken == Some(Broken::NoQuarantine) { Duration::ZERO } else { QUARANTINE }
    }

    /// An effect that the remote recognises by its key, and can be asked for afterwards.
    async fn keyed(&self, context: &Context, operation: &'static str) -> Handled<u64> {
        if self.sim.settings.broken == Some(Broken::SentBeforeIntent) && context.attempt() == 1 {
            let name = tidegate::EffectName::new(operation)?;
            let key = EffectKey::of(context.message(), &EffectId { name, item: None }, 0);
            let request = self.request(context, operation, Ability::Keys(WINDOW), key);
            drop(gateway::send(&self.sim, self.process, request).await);
        }
        let done: Done = context
            .effect(operation)
            .send_within(SEND_WITHIN)
            .keyed(WINDOW)
            .or_lookup(self.quarantine(), |key| gateway::find(&self.sim, self.process, operation, key))
            .call(|key| {
                let request = self.request(context, operation, Ability::Keys(WINDOW), key);
                gateway::send(&self.sim, self.process, request)
            })
            .await?;
        Ok(done.reference)
    }

    async fn deposit(self, context: Context, message: Deposit) -> Handled<u64> {
        self.begins(&context);
        let reference = self.keyed(&context, "capture").await?;
        context.then(Credit { n: message.n, cents: message.cents });
        Ok(reference)
    }

    async fn deposit2(self, context: Context, message: Deposit2) -> Handled<u64> {
        self.begins(&context);
        let reference = self.keyed(&context, "capture").await?;
        context.then(Credit { n: message.n, cents: message.cents });
        Ok(reference)
    }

    async fn credit(self, context: Context, message: Credit) -> Handled<u64> {
        self.begins(&context);
        let done: Done = context
            .effect("credit")
            .send_within(SEND_WITHIN)
            .lookup(self.quarantine(), |key| gateway::find(&self.sim, self.process, "credit", key))
            .call(|key| {
                let request = self.request(&context, "credit", Ability::LookUp, key);
                gateway::send(&self.sim, self.process, request)
            })
            .await?;
        context.then(Notify { n: message.n, cents: message.cents });
        Ok(done.reference)
    }

    async fn notify(self, context: Context, _message: Notify) -> Handled<u64> {
        self.begins(&context);
        let done: Done = context
            .effect("mail")
            .send_within(SEND_WITHIN)
            .at_most_once()
            .call(|key| {
                let request = self.request(&context, "mail", Ability::Neither, key);
                gateway::send(&self.sim, self.process, request)
            })
            .await?;
        Ok(done.reference)
    }

    async fn transfer(self, context: Context, message: Transfer) -> Handled<u64> {
        self.begins(&context);
        let debited = self.keyed(&context, "debit").await?;
        match message.n % 9 {
            // The other account is closed: what was taken is given back.
            0 => {
                context.compensate(Refund { n: message.n, cents: message.cents });
                return Err(HandlerError::permanent("closed", "the account is closed"));
            }
            // The same, and nobody thought of giving it back: for a person.
            1 if !self.sim.is_calm() => return Err(HandlerError::permanent("closed", "the account is closed")),
            _ => {}
        }
        let credited = self.keyed(&context, "book").await?;
        Ok(debited + credited)
    }

    async fn refund(self, context: Context, _message: Refund) -> Handled<u64> {
        self.begins(&context);
        self.keyed(&context, "refund").await
    }

    async fn voucher(self, context: Context, _message: Voucher) -> Handled<u64> {
        self.begins(&context);
        let done: Done = context
            .effect("voucher")
            .send_within(SEND_WITHIN)
            .keyed(SHORT_WINDOW)
            .call(|key| {
                let request = self.request(&context, "voucher", Ability::Keys(SHORT_WINDOW), key);
                gateway::send(&self.sim, self.process, request)
            })
            .await?;
        Ok(done.reference)
    }

    async fn chore(self, context: Context, message: Chore) -> Handled<String> {
        self.begins(&context);
        let early = context.attempt() <= 2 && !self.sim.is_calm();
        match message.n % 12 {
            0 if early => return Err(HandlerError::retryable("busy", "not yet")),
            1 if early => return Err(HandlerError::snooze(self.sim.chance.millis(100, 30_000))),
            // Not through the hook, which would print it.
            2 if early => std::panic::resume_unwind(Box::new("a chore panics, as it is to")),
            3 if early => std::future::pending().await,
            4 => return Err(HandlerError::permanent("never", "it is not to be")),
            5 if !self.sim.is_calm() => return Err(HandlerError::retryable("broken", "it never works")),
            6 => {
                for item in ["a", "b"] {
                    let then = Voucher { n: message.n, cents: message.cents };
                    let options = Options::default().item(item).max_age(SHORT_WINDOW / 2);
                    context.then_with(then, options);
                }
            }
            7 => tokio::time::sleep(self.sim.chance.millis(1_000, 60_000)).await,
            _ => {}
        }
        let touched: u64 = context
            .effect("touch")
            .natural()
            .call(|_| async { tidegate::EffectAnswer::confirmed(message.cents) })
            .await?;
        Ok(format!("{}: {touched}", message.n))
    }
}
