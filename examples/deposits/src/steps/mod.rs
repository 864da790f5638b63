//! A deposit, step by step: authorise → capture → credit → notify, each a message on a queue of its own.
//!
//! One deposit is one flow. Each step does one thing to the outside world, through an effect whose policy is what the
//! gateway can do about a repeated call, and passes on with `then`, which commits with its completion. A declined card
//! is a fact of the business and fails the flow; a closed account fails it too, and the refund commits with that
//! failure.

mod gateway;
mod view;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tidegate::{
    Address, Backoff, Context, EffectKey, Handled, HandlerError, Message, Policy, Report, StoreError, SystemClock,
    Tidegate, Worker, WorkerBuilder,
};

pub use gateway::{Done, GatewayClient, Remote};
pub use view::{Told, View, read_flow, view};

use crate::books::{Credited, Wallet};
use crate::gateway::{GatewayMode, Operation, OperationBody};
use crate::trace::{Card, Scale};

/// How often a step is attempted.
pub const MAX_ATTEMPTS: u32 = 20;
/// How often a step may crash its process while it runs alone.
pub const CRASH_LIMIT: u32 = 3;

/// How long the idempotent gateway remembers a key: its promise, not our guess.
const KEYS_REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// The first step, and the whole request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorise {
    /// Names the deposit for ever.
    pub deposit: String,
    /// The customer's account.
    pub account: String,
    /// The amount.
    pub cents: i64,
    /// The card to charge.
    #[serde(default)]
    pub card: Card,
}

impl Message for Authorise {
    const KIND: &'static str = "authorise";
    type Answer = Done;
    fn key(&self) -> String {
        self.deposit.clone()
    }
}

impl From<Authorise> for OperationBody {
    fn from(request: Authorise) -> Self {
        Self { deposit: request.deposit, account: request.account, cents: request.cents, card: request.card }
    }
}

macro_rules! step {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $answer:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name {
            /// The request, carried along.
            pub request: OperationBody,
        }

        impl Message for $name {
            const KIND: &'static str = $kind;
            type Answer = $answer;
            fn key(&self) -> String {
                self.request.deposit.clone()
            }
        }
    };
}

step!(
    /// Takes the money.
    Capture, "capture", Done
);
step!(
    /// Books it in the customer's wallet.
    Credit, "credit", i64
);
step!(
    /// Tells the customer.
    Notify, "notify", Done
);
step!(
    /// Gives the money back: the compensation of a credit that can never be.
    Refund, "refund", Done
);

/// How the steps are run.
#[derive(Clone, Debug)]
pub struct WorkOptions {
    /// The gateway's base URL.
    pub gateway: String,
    /// What it promises about repeated calls.
    pub mode: GatewayMode,
    /// Time-outs, quarantine, lease and backoff.
    pub scale: Scale,
    /// Calls to the gateway at once, for each step.
    pub concurrency: u32,
    /// Shown to people.
    pub name: String,
    /// Steps that are left to other workers: neither claimed here nor declared.
    pub without: Vec<Step>,
}

/// A step of a deposit, by the name of its kind and its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// [`Authorise`].
    Authorise,
    /// [`Capture`].
    Capture,
    /// [`Credit`].
    Credit,
    /// [`Notify`].
    Notify,
    /// [`Refund`].
    Refund,
}

impl Step {
    fn all_but(without: &[Self]) -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(|step| !without.contains(step))
    }

    fn queue(self) -> &'static str {
        match self {
            Self::Authorise => Authorise::QUEUE,
            Self::Capture => Capture::QUEUE,
            Self::Credit => Credit::QUEUE,
            Self::Notify => Notify::QUEUE,
            Self::Refund => Refund::QUEUE,
        }
    }

    /// How many of it run at once, where `concurrency` calls for each step are allowed.
    fn slots(self, concurrency: u32) -> u32 {
        match self {
            Self::Authorise | Self::Capture | Self::Credit => concurrency,
            Self::Notify => concurrency.div_ceil(2),
            Self::Refund => concurrency.div_ceil(4),
        }
    }
}

/// What every step needs.
#[derive(Clone)]
struct Steps {
    client: Arc<dyn Remote>,
    wallet: Wallet,
    mode: GatewayMode,
    /// Longer than the client's own time-out, so that the client says what it saw.
    send_within: Duration,
    quarantine: Duration,
}

impl fmt::Debug for Steps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Steps").field("client", &self.client).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// Starts a worker for all steps, but for those that are left to others.
///
/// # Errors
/// The store has no wallet in it, the HTTP client cannot be made, or the worker is refused by the store.
///
/// # Cancel safety
/// Safe: a worker that was not returned does not run.
pub async fn start(tide: &Tidegate, options: &WorkOptions) -> anyhow::Result<Worker> {
    let scale = &options.scale;
    let client = client(&options.gateway, scale)?;
    let mut worker = handlers(tide.worker(), Arc::new(client), options.mode, scale, &options.without)?
        .name(&options.name)
        .lease(Duration::from_millis(scale.lease_ms))
        .poll_every(Duration::from_millis(scale.poll_ms))
        .concurrency(options.concurrency * 4);
    for step in Step::all_but(&options.without) {
        worker = worker.queue_concurrency(step.queue(), step.slots(options.concurrency));
    }
    Ok(worker.start().await?)
}

/// Adds the handlers of all steps but these to a worker: one that runs, or one that only checks or proves them.
///
/// # Errors
/// The worker's store can have no wallet in it.
pub fn handlers(
    mut worker: WorkerBuilder,
    remote: Arc<dyn Remote>,
    mode: GatewayMode,
    scale: &Scale,
    without: &[Step],
) -> anyhow::Result<WorkerBuilder> {
    let wallet = Wallet::of(worker.tide())?;
    let steps = Steps {
        client: remote,
        wallet,
        mode,
        send_within: Duration::from_millis(scale.call_timeout_ms + scale.call_timeout_ms / 10),
        quarantine: Duration::from_millis(scale.quarantine_ms),
    };
    for step in Step::all_but(without) {
        let policy = policy(scale);
        worker = match step {
            Step::Authorise => worker.handle_with(with(&steps, authorise), policy),
            Step::Capture => worker.handle_with(with(&steps, capture), policy),
            Step::Credit => worker.handle_with(with(&steps, credit), policy),
            Step::Notify => worker.handle_with(with(&steps, notify), policy),
            Step::Refund => worker.handle_with(with(&steps, refund), policy),
        };
    }
    Ok(worker)
}

/// Decodes everything that is stored with the steps of this program, and runs nothing.
///
/// # Errors
/// The store can have no wallet in it, or cannot be read.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn check(tide: &Tidegate) -> anyhow::Result<Report> {
    // Nobody is called, so it does not matter where the gateway is and what it promises.
    let client = client("", &Scale::FULL)?;
    Ok(handlers(tide.worker(), Arc::new(client), GatewayMode::None, &Scale::FULL, &[])?.check().await?)
}

fn client(url: &str, scale: &Scale) -> anyhow::Result<GatewayClient> {
    GatewayClient::new(url, Duration::from_millis(scale.call_timeout_ms), Arc::new(SystemClock::new()))
}

/// One policy for all steps: an outage is not counted, so the attempts are for what is wrong with a deposit itself.
fn policy(scale: &Scale) -> Policy {
    Policy {
        max_attempts: MAX_ATTEMPTS,
        backoff: Backoff {
            base: Duration::from_millis(scale.backoff_first_ms),
            cap: Duration::from_millis(scale.backoff_greatest_ms),
        },
        // A call, or a look-up and a call, with room for a slow store.
        timeout: Duration::from_millis(scale.call_timeout_ms * 2 + 10_000),
        crash_limit: CRASH_LIMIT,
    }
}

/// A handler with its state: handlers are plain functions, and state comes by capture.
fn with<M, F, Fut>(steps: &Steps, step: F) -> impl Fn(Context, M) -> Fut + Send + Sync + 'static
where
    M: Message,
    F: Fn(Steps, Context, M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled<M::Answer>> + Send + 'static,
{
    let steps = steps.clone();
    move |context, message| step(steps.clone(), context, message)
}

async fn authorise(steps: Steps, ctx: Context, message: Authorise) -> Handled<Done> {
    let request = OperationBody::from(message);
    let done = at_gateway(&steps, &ctx, Operation::Authorise, &request).await?;
    ctx.then(Capture { request });
    Ok(done)
}

async fn capture(steps: Steps, ctx: Context, message: Capture) -> Handled<Done> {
    let done = at_gateway(&steps, &ctx, Operation::Capture, &message.request).await?;
    ctx.then(Credit { request: message.request });
    Ok(done)
}

async fn credit(steps: Steps, ctx: Context, message: Credit) -> Handled<i64> {
    let request = message.request;
    let effect = ctx.effect("credit").request(&request).transactional();
    match steps.wallet.credit(effect, &request).await? {
        Credited::Entry(entry) => {
            ctx.then(Notify { request });
            Ok(entry)
        }
        Credited::AccountClosed => {
            let detail = format!("account {} of deposit {} is closed", request.account, request.deposit);
            ctx.compensate(Refund { request });
            Err(HandlerError::permanent("account_closed", detail))
        }
    }
}

async fn notify(steps: Steps, ctx: Context, message: Notify) -> Handled<Done> {
    let (client, request) = (steps.client, message.request);
    let receipt = ctx.effect("receipt").request(&request).send_within(steps.send_within).natural();
    // Harmless however often it is sent, so nothing is written down before it.
    receipt.call(move |key| async move { client.send(Operation::Receipt, &key, &request).await }).await
}

async fn refund(steps: Steps, ctx: Context, message: Refund) -> Handled<Done> {
    at_gateway(&steps, &ctx, Operation::Refund, &message.request).await
}

/// One call that moves money, under the strongest policy that the gateway's promise allows.
async fn at_gateway(steps: &Steps, ctx: &Context, operation: Operation, request: &OperationBody) -> Handled<Done> {
    let client = Arc::clone(&steps.client);
    let body = request.clone();
    let send = move |key: EffectKey| async move { client.send(operation, &key, &body).await };
    let client = Arc::clone(&steps.client);
    let find = move |key: EffectKey| async move { client.find(operation, &key).await };

    let effect =
        ctx.effect(operation.name()).request(request).send_within(steps.send_within).quarantine(steps.quarantine);
    match steps.mode {
        GatewayMode::Idempotent => effect.keyed(KEYS_REMEMBERED).or_lookup(steps.quarantine, find).call(send).await,
        GatewayMode::Lookup => effect.lookup(steps.quarantine, find).call(send).await,
        GatewayMode::None => effect.at_most_once().call(send).await,
    }
}

/// Opens the store of an application process.
///
/// # Errors
/// The store cannot be opened; see [`Tidegate::open`].
///
/// # Cancel safety
/// Safe.
pub async fn open(database: impl Into<Address>, scale: &Scale) -> Result<Tidegate, StoreError> {
    let lease = Duration::from_millis(scale.lease_ms);
    Tidegate::builder().lease(lease).sweep_every(lease / 5).open_at(&database.into()).await
}
