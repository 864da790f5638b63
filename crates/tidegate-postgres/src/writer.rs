//! The writers of this process: tasks that commit calls in groups, on a thread and a runtime of the store's own.
//!
//! A writer takes what waits, carries all of it out in one transaction, and only then answers and tells. While it commits,
//! the next group gathers by itself: at rest a call commits at once, under load one fsync serves many, and nobody lingers.
//!
//! A transaction that got into another one's way, or lost its connection before its commit was sent, is carried out again.
//! A commit that was sent and not answered leaves the outcome of its group unknown: everybody in it is told so.
//!
//! The runtime is the store's own so that a caller need have none, and so that one that blocks its own cannot stop it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt as _;
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Clock as _;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::store::{ClaimRequest, Claimed, Enqueued, Extend, Extended, Journal, Settled, Verdicts};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;

use crate::conn::{Conn, Step};
use crate::group::{Doing, Ended, Group};
use crate::names::LaneName;
use crate::row;
use crate::shared::{NoConnection, PATIENCE, Shared, closed};
use crate::trouble::{Class, Trouble, class};
use crate::watch::Hands;
use crate::writes::{self, Part};
use crate::{claim, copied, enqueue, extend, journal, open, settle, watch};

/// From this weight on a group takes no further calls.
const GROUP_WEIGHT: usize = 4096;

/// A call of a hot verb, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Call<I, O> {
    items: Vec<I>,
    reply: oneshot::Sender<Result<Verdicts<O>, StoreError>>,
}

/// The calls that share groups.
#[derive(Debug)]
pub(crate) enum Hot {
    Settle(Call<settle::Prepared, Settled>),
    Journal(Call<Journal, EffectRow>),
    Extend(Call<Extend, Extended>),
    Enqueue(Call<Result<enqueue::Prepared, StoreError>, Enqueued>),
    Claim(Call<ClaimRequest, Claimed>),
}

impl Hot {
    /// How much of a group it takes: its items, and as many again as they have pages of text.
    fn weight(&self) -> usize {
        const PAGE: usize = 4096;
        match self {
            Self::Settle(call) => {
                call.items.len() + call.items.iter().map(settle::Prepared::size).sum::<usize>() / PAGE
            }
            Self::Journal(call) => call.items.len(),
            Self::Extend(call) => call.items.len(),
            Self::Enqueue(call) => {
                call.items.len() + call.items.iter().flatten().map(enqueue::Prepared::size).sum::<usize>() / PAGE
            }
            Self::Claim(call) => {
                call.items.iter().flat_map(|request| &request.queues).map(|queue| queue.slots as usize).sum()
            }
        }
    }
}

/// What is carried out in one transaction. Carried out again it must do the same.
pub(crate) trait Work: Sync {
    /// What comes of it.
    type Out: Send;

    /// Lanes that have to exist before the transaction begins.
    fn lanes(&self) -> Vec<LaneName>;

    /// What it reads before anything else, where that needs nothing but what it was asked: it is sent with the beginning of the
    /// transaction, and whatever it did is undone where that turns out to be on another server.
    fn first(&self) -> Vec<Part<'_>> {
        Vec::new()
    }

    /// Does it.
    fn run<'a>(&'a self, group: &'a mut Group) -> Doing<'a, Self::Out>;

    /// How long a server that is away is waited for.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// The items of a group, by verb.
#[derive(Default)]
struct Load<'a> {
    settle: Vec<&'a settle::Prepared>,
    journal: Vec<&'a Journal>,
    extend: Vec<&'a Extend>,
    enqueue: Vec<&'a Result<enqueue::Prepared, StoreError>>,
    claim: Vec<&'a ClaimRequest>,
}

/// The verdicts on a group's items.
#[derive(Default)]
struct Answers {
    settle: Verdicts<Settled>,
    journal: Verdicts<EffectRow>,
    extend: Verdicts<Extended>,
    enqueue: Verdicts<Enqueued>,
    claim: Verdicts<Claimed>,
}

impl<'a> Load<'a> {
    fn of(calls: &'a [Hot]) -> Self {
        let mut load = Self::default();
        for call in calls {
            match call {
                Hot::Settle(call) => load.settle.extend(&call.items),
                Hot::Journal(call) => load.journal.extend(&call.items),
                Hot::Extend(call) => load.extend.extend(&call.items),
                Hot::Enqueue(call) => load.enqueue.extend(&call.items),
                Hot::Claim(call) => load.claim.extend(&call.items),
            }
        }
        load
    }

    fn len(&self) -> usize {
        self.settle.len() + self.journal.len() + self.extend.len() + self.enqueue.len() + self.claim.len()
    }

    /// Each item by itself, in the order of the group.
    fn single(&self) -> impl Iterator<Item = Self> {
        let settle = self.settle.iter().map(|item| Self { settle: vec![*item], ..Self::default() });
        let journal = self.journal.iter().map(|item| Self { journal: vec![*item], ..Self::default() });
        let extend = self.extend.iter().map(|item| Self { extend: vec![*item], ..Self::default() });
        let enqueue = self.enqueue.iter().map(|item| Self { enqueue: vec![*item], ..Self::default() });
        let claim = self.claim.iter().map(|item| Self { claim: vec![*item], ..Self::default() });
        settle.chain(journal).chain(extend).chain(enqueue).chain(claim)
    }

    /// The verdict on its only item.
    fn refused(&self, error: &StoreError) -> Answers {
        Answers {
            settle: self.settle.iter().map(|_| Err(error.clone())).collect(),
            journal: self.journal.iter().map(|_| Err(error.clone())).collect(),
            extend: self.extend.iter().map(|_| Err(error.clone())).collect(),
            enqueue: self.enqueue.iter().map(|_| Err(error.clone())).collect(),
            claim: self.claim.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}

impl Answers {
    fn append(&mut self, mut other: Self) {
        self.settle.append(&mut other.settle);
        self.journal.append(&mut other.journal);
        self.extend.append(&mut other.extend);
        self.enqueue.append(&mut other.enqueue);
        self.claim.append(&mut other.claim);
    }
}

impl Work for Load<'_> {
    type Out = Answers;

    fn lanes(&self) -> Vec<LaneName> {
        let enqueued = self.enqueue.iter().copied().flatten().map(enqueue::Prepared::lane);
        enqueued.chain(self.settle.iter().flat_map(|item| item.lanes())).collect()
    }

    fn first(&self) -> Vec<Part<'_>> {
        let others = !self.journal.is_empty() || !self.extend.is_empty() || !self.enqueue.is_empty();
        match self.claim.first() {
            _ if !self.settle.is_empty() => settle::first(&self.settle),
            Some(request) if !others => claim::first(request),
            Some(_) | None => Vec::new(),
        }
    }

    fn run<'a>(&'a self, group: &'a mut Group) -> Doing<'a, Answers> {
        Box::pin(async move {
            let mut answers = Answers::default();
            // What ends makes room and follow-ups, what is enqueued can be claimed at once: each verb sees what the ones
            // before it wrote.
            if !self.settle.is_empty() {
                answers.settle = settle::settle(group, &self.settle).await?;
                failpoint::reach("settle.before_commit");
            }
            if !self.journal.is_empty() {
                group.flush();
                answers.journal = journal::journal(group, &self.journal).await?;
                failpoint::reach("journal.before_commit");
            }
            if !self.extend.is_empty() {
                group.flush();
                answers.extend = extend::extend(group, &self.extend).await?;
                failpoint::reach("extend.before_commit");
            }
            if !self.enqueue.is_empty() {
                group.flush();
                answers.enqueue = enqueue::enqueue(group, &self.enqueue).await?;
                failpoint::reach("enqueue.before_commit");
            }
            for request in &self.claim {
                group.flush();
                answers.claim.push(Ok(claim::claim(group, request).await?));
            }
            group.items += self.len();
            Ok(answers)
        })
    }
}

/// A call of an operator's verb, or another that has a transaction to itself.
struct Alone<R, F> {
    request: R,
    run: F,
    patience: Duration,
}

impl<R, T, F> Work for Alone<R, F>
where
    R: Sync,
    T: Send,
    F: for<'a> Fn(&'a mut Group, &'a R) -> Doing<'a, T> + Sync,
{
    type Out = T;

    fn lanes(&self) -> Vec<LaneName> {
        Vec::new()
    }

    fn run<'a>(&'a self, group: &'a mut Group) -> Doing<'a, T> {
        (self.run)(group, &self.request)
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

/// The handle on the tasks and their thread.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    handle: Handle,
    calls: Mutex<Option<mpsc::UnboundedSender<Hot>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Dropped, it lets the thread end once nothing waits any more.
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

/// A runtime of the store's own, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) handle: Handle,
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Engine {
    pub(crate) fn start() -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| StoreError::unavailable(format!("no runtime for the store: {e}")).source(e))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("tidegate-postgres".into())
            .spawn(move || {
                runtime.block_on(async {
                    // Told or dropped: both mean the end.
                    let _told = stopped.await;
                });
                runtime.shutdown_background();
            })
            .map_err(|e| StoreError::unavailable(format!("no thread for the store: {e}")).source(e))?;
        Ok(Self { handle, thread, stop })
    }

    /// Runs a future on the store's thread and waits for it, from whatever runtime.
    pub(crate) async fn run<T: Send + 'static>(
        handle: &Handle,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        handle.spawn(async move {
            // A caller that went away does not undo what was done.
            let _gone = reply.send(AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|p| Err(panicked(&*p))));
        });
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Writer {
    /// Starts the tasks.
    pub(crate) fn start(engine: Engine, shared: Arc<Shared>, writers: usize) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let Engine { handle, thread, stop } = engine;
        for _ in 0..writers.max(1) {
            handle.spawn(write(Arc::clone(&shared), Arc::clone(&receiver)));
        }
        Self {
            shared,
            handle,
            calls: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            stop: Mutex::new(Some(stop)),
        }
    }

    /// Sends a batch to the writers, and answers after its commit.
    pub(crate) async fn hot<I, O>(
        &self,
        verb: fn(Call<I, O>) -> Hot,
        items: Vec<I>,
    ) -> Result<Verdicts<O>, StoreError> {
        self.shared.check()?;
        let (reply, answer) = oneshot::channel();
        let sent = match &*self.calls.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(calls) => calls.send(verb(Call { items, reply })).is_ok(),
            None => false,
        };
        if !sent {
            return Err(closed());
        }
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Carries something out in a transaction of its own, and answers after its commit.
    pub(crate) async fn alone<R, T, F>(&self, request: R, run: F) -> Result<T, StoreError>
    where
        R: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Group, &'a R) -> Doing<'a, T> + Send + Sync + 'static,
    {
        self.alone_within(PATIENCE, request, run).await
    }

    /// The same for something that must not be done late: without a server it is answered after so long.
    pub(crate) async fn alone_within<R, T, F>(&self, patience: Duration, request: R, run: F) -> Result<T, StoreError>
    where
        R: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Group, &'a R) -> Doing<'a, T> + Send + Sync + 'static,
    {
        self.shared.check()?;
        let shared = Arc::clone(&self.shared);
        let work = Alone { request, run, patience };
        Engine::run(
            &self.handle,
            async move { transact(&shared, &mut None, &work).await.map_err(|failed| failed.error) },
        )
        .await
    }

    /// Runs something that is no transaction on the store's thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        Engine::run(&self.handle, work).await
    }

    /// Takes no more calls, finishes those that wait, and gives back the thread to be joined.
    pub(crate) fn close(&self) -> Option<JoinHandle<()>> {
        self.shared.close();
        drop(self.calls.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets the thread end when the writers have.
    pub(crate) fn stop(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.close());
        self.stop();
    }
}

/// One writer: takes what waits, until there is nobody left who could send more.
async fn write(shared: Arc<Shared>, receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Hot>>>) {
    let mut slot = None;
    loop {
        let mut calls = Vec::new();
        {
            let mut receiver = receiver.lock().await;
            let Some(first) = receiver.recv().await else { return };
            let mut weight = first.weight();
            calls.push(first);
            while weight < GROUP_WEIGHT
                && let Ok(next) = receiver.try_recv()
            {
                weight += next.weight();
                calls.push(next);
            }
        }
        let answers = group(&shared, &mut slot, &Load::of(&calls)).await;
        answer(calls, answers);
        failpoint::reach("group.after_answers");
    }
}

/// Carries a group out. What is refused by itself, or waits too long for somebody else, does not take the others with it:
/// each item is carried out alone then.
async fn group(shared: &Arc<Shared>, slot: &mut Option<Conn>, load: &Load<'_>) -> Result<Answers, StoreError> {
    match transact(shared, slot, load).await {
        Ok(answers) => Ok(answers),
        Err(Failed { class: Class::Data | Class::Locked, .. }) if load.len() > 1 => {
            let mut answers = Answers::default();
            for item in load.single() {
                answers.append(Box::pin(group(shared, slot, &item)).await.unwrap_or_else(|error| item.refused(&error)));
            }
            Ok(answers)
        }
        Err(Failed { class: Class::Data, error }) => match load.settle.first() {
            // A settlement that the database refuses ends its message, for a person to look at.
            Some(settlement) if load.len() == 1 => {
                let refused = settlement.refused(&error);
                let load = Load { settle: vec![&refused], ..Load::default() };
                Ok(transact(shared, slot, &load).await.unwrap_or_else(|Failed { error, .. }| load.refused(&error)))
            }
            Some(_) | None => Ok(load.refused(&error)),
        },
        Err(Failed { error, .. }) => Err(error),
    }
}

/// Deals the verdicts out to the calls, in the order in which their items were taken.
fn answer(calls: Vec<Hot>, answers: Result<Answers, StoreError>) {
    fn reply<I, O>(call: Call<I, O>, from: Option<&mut std::vec::IntoIter<Result<O, StoreError>>>, error: &StoreError) {
        let verdicts = match from {
            None => Err(error.clone()),
            Some(from) => {
                let mut verdicts: Verdicts<O> = from.take(call.items.len()).collect();
                match verdicts.first() {
                    // Alone, an item that could not be carried out is a call that could not.
                    Some(Err(error)) if verdicts.len() == 1 && error.kind() == StoreErrorKind::Unavailable => {
                        Err(verdicts.remove(0).err().unwrap_or_else(closed))
                    }
                    _ => Ok(verdicts),
                }
            }
        };
        // A caller that went away does not undo what was committed.
        let _gone = call.reply.send(verdicts);
    }
    let error = match &answers {
        Ok(_) => closed(),
        Err(error) => error.clone(),
    };
    let mut from = answers.ok().map(|answers| {
        (
            answers.settle.into_iter(),
            answers.journal.into_iter(),
            answers.extend.into_iter(),
            answers.enqueue.into_iter(),
            answers.claim.into_iter(),
        )
    });
    for call in calls {
        match call {
            Hot::Settle(call) => reply(call, from.as_mut().map(|from| &mut from.0), &error),
            Hot::Journal(call) => reply(call, from.as_mut().map(|from| &mut from.1), &error),
            Hot::Extend(call) => reply(call, from.as_mut().map(|from| &mut from.2), &error),
            Hot::Enqueue(call) => reply(call, from.as_mut().map(|from| &mut from.3), &error),
            Hot::Claim(call) => reply(call, from.as_mut().map(|from| &mut from.4), &error),
        }
    }
}

/// Why something was not carried out.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) class: Class,
    pub(crate) error: StoreError,
}

/// How one try of a transaction ended.
enum Tried<T> {
    Committed(T),
    /// Nothing of it was stored, for certain.
    Undone(Trouble),
    /// Nobody knows.
    Unknown(StoreError),
}

/// Carries work out in a transaction, as often as it takes; tells of its news after the commit.
pub(crate) async fn transact<W: Work>(
    shared: &Arc<Shared>,
    slot: &mut Option<Conn>,
    work: &W,
) -> Result<W::Out, Failed> {
    let started = shared.real.monotonic();
    let patient = |most| shared.real.monotonic().saturating_sub(started) < most;
    for tries in 0.. {
        let held = slot.take();
        if held.as_ref().is_some_and(|conn| conn.client().is_closed()) {
            // It was ended while nothing was sent on it: no call fails for it, and it is lost all the same.
            shared.count(|stats| stats.lost += 1);
        }
        let conn = match held.filter(|conn| !conn.client().is_closed()) {
            Some(conn) => conn,
            None => match shared.connect().await {
                Ok(conn) => conn,
                Err(NoConnection { passing: true, .. }) if patient(work.patience()) => {
                    shared.back_off(tries).await;
                    continue;
                }
                Err(NoConnection { error, .. }) => return Err(Failed { class: Class::Lost, error }),
            },
        };
        let tried = try_once(shared, slot, conn, work, tries > 0).await;
        let trouble = match tried {
            Tried::Committed(out) => return Ok(out),
            Tried::Unknown(error) => {
                shared.count(|stats| stats.unknown += 1);
                return Err(Failed { class: Class::Lost, error });
            }
            Tried::Undone(trouble) => trouble,
        };
        let class = match &trouble {
            // Of one call's making: the others of its group are carried out without it.
            Trouble::Item(_) => Class::Data,
            Trouble::Again(_) => Class::Again,
            Trouble::Group(error) => class(error),
        };
        match class {
            Class::Again if patient(PATIENCE) => shared.count(|stats| stats.repeated += 1),
            Class::Lost if patient(work.patience()) => {
                shared.count(|stats| stats.lost += 1);
                shared.names.forget();
                *slot = None;
            }
            Class::Again | Class::Lost | Class::Locked | Class::Data | Class::Failed => {
                return Err(Failed { class, error: trouble.into_store_error() });
            }
        }
        shared.back_off(tries).await;
    }
    unreachable!("the loop ends by a return")
}

async fn try_once<W: Work>(
    shared: &Arc<Shared>,
    slot: &mut Option<Conn>,
    conn: Conn,
    work: &W,
    again: bool,
) -> Tried<W::Out> {
    if let Err(trouble) = shared.names.ensure(&conn, work.lanes().into_iter()).await {
        *slot = Some(conn);
        return Tried::Undone(trouble);
    }
    // Once is enough: where it got into somebody's way, the second time is step by step.
    let first = if again { Vec::new() } else { work.first() };
    let (hands, timeline, first) = match begin(shared, &conn, &first).await {
        Ok(begun) => begun,
        Err(trouble) => return roll_back(slot, conn, trouble).await,
    };
    if copied::is_elsewhere(shared, timeline) {
        let undone = roll_back(slot, conn, Trouble::Again("the store was on another server")).await;
        return match slot {
            Some(conn) => copied::arrive(shared, conn).await.map_or_else(Tried::Undone, |()| undone),
            None => undone,
        };
    }
    failpoint::reach("group.after_begin");
    let mut group = Group::new(conn, hands, Arc::clone(shared));
    (group.again, group.first) = (again, first);
    let ran = AssertUnwindSafe(async {
        let hands = watch::look(&mut group).await?;
        let out = work.run(&mut group).await?;
        Ok::<_, Trouble>((out, hands))
    })
    .catch_unwind()
    .await;
    let (out, hands) = match ran {
        Ok(Ok(done)) => done,
        Ok(Err(trouble)) => return roll_back(slot, group.conn, trouble).await,
        Err(panic) => {
            // What its task left on the connection nobody knows; the server rolls back what it closes.
            group.conn.discard();
            return Tried::Undone(Trouble::Item(panicked(&*panic)));
        }
    };
    failpoint::reach("group.before_commit");
    let items = group.items;
    if canary::is(Canary::AcknowledgeBeforeCommit) {
        tokio::spawn(group.commit());
        return Tried::Committed(out);
    }
    let (conn, ended) = group.commit().await;
    let news = match ended {
        Ended::Committed(news) => news,
        Ended::Undone(_) | Ended::Unanswered(_) if canary::is(Canary::FailedCommitIgnored) => {
            conn.discard();
            return Tried::Committed(out);
        }
        Ended::Open(error) => return roll_back(slot, conn, error.into()).await,
        Ended::Undone(error) => {
            if conn.is_broken() {
                conn.discard();
            } else {
                *slot = Some(conn);
            }
            return Tried::Undone(error.into());
        }
        Ended::Unanswered(error) => {
            conn.discard();
            return unanswered(error);
        }
    };
    *slot = Some(conn);
    failpoint::reach("group.after_commit");
    // Only now: what a look noted would be gone with a transaction that was rolled back.
    watch::seen(shared, hands);
    shared.count(|stats| {
        stats.commits += 1;
        stats.items += items as u64;
    });
    shared.tell(&news);
    Tried::Committed(out)
}

/// Begins a transaction: its settings end with it. Plans are made once and look nothing through: the tables of a queue are
/// empty at one moment and full at the next, so that statistics of either say nothing. A process that is stopped in the
/// midst of it has its connection ended by the server, so that what it had locked is not locked for as long as it is
/// stopped; of one that died the server learns twice a second, also while its last statement waits for somebody. Answers what
/// the clock shows, and which history of its cluster the server is in, where it says that.
///
/// What is sent along is carried out even if the transaction could not begin, each statement by itself. One that writes
/// therefore asks for `tidegate.begun`, which is gone by then.
async fn begin(shared: &Shared, conn: &Conn, first: &[Part<'_>]) -> Result<Begun, Trouble> {
    const BEGIN: &str = "begin isolation level read committed read write";
    macro_rules! begun {
        ($timeline:expr, $clients:expr) => {
            concat!(
                "-- begin: settings of this transaction, the store's time, the last jump of the clock. The lock comes first: what
        -- is dated by a clock that is set meanwhile is waited for by whoever puts that right (`watch.rs`)
        select pg_try_advisory_xact_lock_shared(hashtextextended('tidegate.clock', 0)),
            (extract(epoch from clock_timestamp()) * 1000)::bigint,
            (select coalesce(max(seq), 0) from tidegate.jump), ",
                $timeline,
                ", ",
                $clients,
                ",
            set_config('tidegate.begun', '1', true), set_config('lock_timeout', '2000', true),
            set_config('idle_in_transaction_session_timeout', '5000', true),
            set_config('plan_cache_mode', 'force_generic_plan', true),
            set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
            set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
            set_config('synchronous_commit', case current_setting('synchronous_commit')
                when 'off' then 'on' else current_setting('synchronous_commit') end, true)"
            )
        };
    }
    const BEGUN: &str = begun!(copied::timeline!(), open::misses_clients!());
    // Where the provider keeps it to itself.
    const BEGUN_SOMEWHERE: &str = begun!("null::bigint", open::misses_clients!());
    // Where the server's system does not say that a connection was closed.
    const BEGUN_UNMISSED: &str = begun!(copied::timeline!(), "null::text");
    const BEGUN_SOMEWHERE_UNMISSED: &str = begun!("null::bigint", "null::text");
    let begun = match (copied::says_timeline(shared), shared.misses_clients.load(Ordering::Relaxed)) {
        (true, true) => BEGUN,
        (false, true) => BEGUN_SOMEWHERE,
        (true, false) => BEGUN_UNMISSED,
        (false, false) => BEGUN_SOMEWHERE_UNMISSED,
    };
    let params = writes::bound(first);
    let mut steps: Vec<Step<'_>> = vec![(begun, &[])];
    steps.extend(writes::steps(first, &params));
    conn.prepare(steps.iter().copied()).await?;
    let asked = shared.monotonic();
    let (began, answers) = futures_util::future::join(conn.client().batch_execute(BEGIN), conn.many(&steps)).await;
    began?;
    let mut answers = answers?.into_iter();
    let rows = answers.next().unwrap_or_default();
    let answered = shared.monotonic();
    let row = rows.first().ok_or(Trouble::Again("the server did not say what time it is"))?;
    if !row::column::<bool, _>(row, 0, "clock")? {
        return Err(Trouble::Again("the clock was set, and somebody puts right what was dated by it"));
    }
    let wall = shared.time(row::time(row, 1, "clock")?);
    let hands = Hands { wall, asked, answered, noted: row::column(row, 2, "jump")? };
    Ok((hands, row::column(row, 3, "clock")?, first.iter().map(|part| part.sql).zip(answers).collect()))
}

/// What the clock shows, which history of its cluster the server is in, and the answers of the first statements.
type Begun = (Hands, Option<i64>, Vec<(&'static str, Vec<Row>)>);

async fn roll_back<T>(slot: &mut Option<Conn>, conn: Conn, trouble: Trouble) -> Tried<T> {
    conn.forget_what_was_put_off();
    if conn.is_broken() {
        conn.discard();
        return Tried::Undone(trouble);
    }
    let undone = conn.client().batch_execute("rollback").await;
    match undone {
        Ok(()) => *slot = Some(conn),
        // It never sent a commit: the server rolls back what it closes.
        Err(_) => conn.discard(),
    }
    Tried::Undone(trouble)
}

fn unanswered<T>(error: tokio_postgres::Error) -> Tried<T> {
    // Only what the server says of the transaction itself is certain: a session that is ended may have committed first.
    if error.code().is_some_and(|code| code.code().starts_with("40") || code.code().starts_with("23")) {
        return Tried::Undone(Trouble::Group(error));
    }
    let what = format!("the commit was not answered: {}", crate::trouble::said(&error));
    Tried::Unknown(
        StoreError::unavailable(what)
            .hint("what was asked may have been done or not; repeating the call is safe")
            .source(error),
    )
}

fn panicked(panic: &(dyn Any + Send)) -> StoreError {
    let said = panic_text(panic);
    StoreError::unavailable(format!("a call of the store panicked ({said}); nothing of its group was stored"))
        .hint("this is a defect of the store; calls of other groups are not affected")
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text").to_owned()
}

/// How long closing waits for what is under way.
pub(crate) const CLOSING: Duration = Duration::from_secs(5);
