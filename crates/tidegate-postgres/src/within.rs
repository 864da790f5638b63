//! Effects that are writes into the store's own database: committed together with their confirmation.
//!
//! The lease row is locked for as long as the work runs, against being taken away and not against being prolonged: a sweep
//! passes it over, a settlement waits, and the keepalive of the process goes on. Without the lock the write of a worker
//! that was paused would commit after its message was taken over.

use std::error::Error;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use tidegate_core::effect::{self, Decision, EffectRow, EffectState, Reached};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::message::Message;
use tokio_postgres::{Row, Transaction};

use crate::conn::{Conn, Param, Texts};
use crate::journal;
use crate::open;
use crate::place;
use crate::row::{self, JOURNALED, LeaseRow};
use crate::shared::{NoConnection, Shared};
use crate::trouble::{Trouble, said, store_error};
use crate::writer::panic_text;

/// What went wrong in the work itself.
pub type WorkError = Box<dyn Error + Send + Sync>;

/// Writes of the application's, under way.
pub type Working<'t> = Pin<Box<dyn Future<Output = Result<Arc<str>, WorkError>> + Send + 't>>;

/// A write into the store's database: what it returns, a JSON text, is the confirmed value of its effect.
pub type Work = Box<dyn for<'t> FnOnce(&'t Transaction<'t>) -> Working<'t> + Send>;

/// Why a transactional effect did not happen. Nothing of its work was stored.
#[derive(Debug)]
pub enum EffectInError {
    /// The store refused it or failed.
    Store(StoreError),
    /// The work itself failed.
    Work(WorkError),
}

impl fmt::Display for EffectInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Work(error) => error.fmt(f),
        }
    }
}

impl Error for EffectInError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Work(error) => Some(&**error),
        }
    }
}

impl From<StoreError> for EffectInError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Trouble> for EffectInError {
    fn from(trouble: Trouble) -> Self {
        Self::Store(trouble.into_store_error())
    }
}

impl From<tokio_postgres::Error> for EffectInError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(store_error(error))
    }
}

/// A transactional effect to be carried out.
pub(crate) struct EffectIn {
    pub(crate) id: MessageId,
    pub(crate) token: LeaseToken,
    pub(crate) reached: Reached,
    pub(crate) work: Work,
}

/// Runs the work and writes its confirmation, or neither.
pub(crate) async fn effect_in(shared: &Shared, item: EffectIn) -> Result<Arc<str>, EffectInError> {
    let EffectIn { id, token, reached, work } = item;
    let mut conn = shared.connect().await.map_err(|NoConnection { error, .. }| error)?;
    let message = message(shared, &conn, id).await?;
    let effect = Effect { id, token, reached, message };
    let mut work = Some(work);
    loop {
        match attempt(shared, &mut conn, &effect, &mut work).await {
            Ok(Attempt::Done(value)) => return Ok(value),
            // Another call of this run confirmed it meanwhile: the next look finds what.
            Ok(Attempt::Twin) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The body of the message: nobody changes it while it runs.
async fn message(shared: &Shared, conn: &Conn, id: MessageId) -> Result<Message, EffectInError> {
    const LANE: &str = "-- effect: the lane of a running message
        select lane from tidegate.lease where id = $1";
    let Some(lane) = conn.query_opt(LANE, &[&id.as_i64()]).await? else {
        return Err(StoreError::lease_lost(id).into());
    };
    let lane = shared.names.lane(conn, row::column(&lane, 0, "lease")?).await?;
    Ok(place::body(conn, id, &lane).await?)
}

struct Effect {
    id: MessageId,
    token: LeaseToken,
    reached: Reached,
    message: Message,
}

enum Attempt {
    Done(Arc<str>),
    /// A call beside this one has confirmed the effect; this one's work was rolled back.
    Twin,
}

/// One transaction: the lease is locked, the work runs, its confirmation is written.
async fn attempt(
    shared: &Shared,
    conn: &mut Conn,
    effect: &Effect,
    work: &mut Option<Work>,
) -> Result<Attempt, EffectInError> {
    let (id, reached) = (effect.id, &effect.reached);
    // Dropped without a commit, it is rolled back, also when this future is.
    let tx = conn.client_mut().transaction().await?;
    let within = Within { tx: &tx, texts: &shared.texts };
    let begun = within.begin(shared).await?;
    let (lease, rows) = within.lock(effect).await?;
    let round = lease.life.counters.round;
    let conflict = |what: String| EffectInError::from(StoreError::conflict(what).message_id(id));
    match effect::reach(&rows, reached, round, begun.now) {
        Decision::Replay(value) => return Ok(Attempt::Done(value)),
        Decision::Send => {}
        Decision::ReplayRejected { .. } | Decision::LookUp { .. } | Decision::Park(_) => {
            let known = effect::latest(&rows, &reached.effect).map_or("not to be begun now", |row| row.state.as_str());
            return Err(conflict(format!("effect {} of {id} is {known}", reached.effect)));
        }
    }
    journal::check_unlapsed(begun.now, &lease, id)?;
    let message = place::in_force(effect.message.clone(), lease.life.expires_at);
    if effect::too_late(&message, &rows, begun.now) {
        return Err(conflict(format!("effect {} of {id} would begin after the deadline", reached.effect)));
    }
    let Some(work) = work.take() else {
        return Err(conflict(format!("effect {} of {id} was begun beside this call", reached.effect)));
    };
    let working = AssertUnwindSafe(async { work(&tx).await });
    let value = match working.catch_unwind().await {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => return Err(EffectInError::Work(error)),
        Err(panic) => {
            let what = format!("the work of effect {} panicked: {}", reached.effect, panic_text(&*panic));
            return Err(EffectInError::Work(what.into()));
        }
    };
    failpoint::reach("transactional.after_work");
    journal::check_value(shared.limits, &value)?;
    let row = effect::confirmed_at_once(&message, &rows, reached, value, effect.token, round, begun.now)?;
    within.hold(effect, begun.transaction).await?;
    if !within.confirm(id, &row).await? {
        return Ok(Attempt::Twin);
    }
    let EffectState::Confirmed { value } = row.state else {
        return Err(conflict(format!("effect {} is not confirmed", reached.effect)));
    };
    failpoint::reach("transactional.before_commit");
    commit(tx, reached).await?;
    Ok(Attempt::Done(value))
}

async fn commit(tx: Transaction<'_>, reached: &Reached) -> Result<(), StoreError> {
    let Err(error) = tx.commit().await else { return Ok(()) };
    // What the application deferred to the commit may be refused there; everything else leaves the outcome open.
    if error.code().is_some_and(|code| code.code().starts_with("40") || code.code().starts_with("23")) {
        return Err(store_error(error));
    }
    let what = format!("the commit of effect {} was not answered: {}", reached.effect, said(&error));
    Err(StoreError::unavailable(what)
        .hint("it may have been committed or not; reached again, it replays its value or is done")
        .source(error))
}

/// What is true of a transaction from its beginning.
struct Begun {
    now: tidegate_core::Timestamp,
    transaction: i64,
}

/// The store's statements inside the application's transaction; sent unnamed, so that nothing stays on the connection.
struct Within<'a> {
    tx: &'a Transaction<'a>,
    texts: &'a Texts,
}

impl Within<'_> {
    async fn query(&self, sql: &str, params: &[&dyn Param]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let typed: Vec<_> = params.iter().map(|param| (param.sql(), param.ty())).collect();
        self.tx.query_typed(&self.texts.in_schema(sql), &typed).await
    }

    /// The store's time, and the transaction's number: work that ends the transaction is found out by it.
    async fn begin(&self, shared: &Shared) -> Result<Begun, EffectInError> {
        const BEGIN: &str = "-- effect: its commit is as durable as every other of the store's
            select (extract(epoch from clock_timestamp()) * 1000)::bigint, txid_current(),
                set_config('synchronous_commit', case current_setting('synchronous_commit')
                    when 'off' then 'on' else current_setting('synchronous_commit') end, true)";
        const MISSED: &str = concat!(
            "-- effect: a process that dies holds no lease for as long as its last statement waits\n select ",
            open::misses_clients!()
        );
        if shared.misses_clients.load(Ordering::Relaxed) {
            self.query(MISSED, &[]).await?;
        }
        let begun = self.query(BEGIN, &[]).await?;
        let Some(begun) = begun.first() else {
            return Err(StoreError::unavailable("the server did not say what time it is").into());
        };
        let now = shared.time(row::time(begun, 0, "clock")?);
        Ok(Begun { now, transaction: row::column(begun, 1, "clock")? })
    }

    /// Locks the lease against being taken away, and reads it with the journal.
    async fn lock(&self, effect: &Effect) -> Result<(LeaseRow, Vec<EffectRow>), EffectInError> {
        const PATIENT: &str =
            "-- effect: a settlement or takeover that holds the lease is over in a moment, or the server hangs
            select current_setting('lock_timeout'), set_config('lock_timeout', '2000', true)";
        const AS_BEFORE: &str = "-- effect: the application's statements wait as long as it likes
            select set_config('lock_timeout', $1, true)";
        const LEASE: &str = concat!(
            "-- effect: the lease stays until the commit; prolonging it changes no key, and need not wait\n select ",
            row::held_lease_columns!(),
            " from tidegate.lease l where l.id = $1 for key share"
        );
        let before = self.query(PATIENT, &[]).await?;
        let before: String = before.first().map_or(Ok("0".to_owned()), |row| row::column(row, 0, "clock"))?;
        let mut lease = self.query(LEASE, &[&effect.id.as_i64()]).await?;
        if lease.is_empty() {
            // What the settlement that was waited for gave back is not shown by the snapshot of the statement that waited.
            lease = self.query(LEASE, &[&effect.id.as_i64()]).await?;
        }
        self.query(AS_BEFORE, &[&before]).await?;
        let lease = lease.first().map(|lease| row::lease(lease, 0)).transpose()?.map(|(_, lease)| lease);
        let Some(lease) = lease.filter(|lease| lease.token == effect.token) else {
            return Err(StoreError::lease_lost(effect.id).into());
        };
        let mut rows = Vec::new();
        if lease.life.has(JOURNALED) {
            for row in &self.query(place::JOURNALS, &[&vec![effect.id.as_i64()]]).await? {
                rows.push(row::effect(row)?.1);
            }
            if rows.is_empty() {
                return Err(place::journalless(effect.id).into());
            }
        }
        Ok((lease, rows))
    }

    /// Notes at the lease that there is a journal, under its token and in the transaction that locked it.
    async fn hold(&self, effect: &Effect, transaction: i64) -> Result<(), EffectInError> {
        const HOLD: &str = "-- effect: from now on the journal is read before any decision
            update tidegate.lease set flags = flags | $4
            where id = $1 and claims = $2 and nonce = $3          -- the lease token
              and txid_current() = $5                             -- not after the work ended the transaction
            returning 1";
        let (claims, nonce) = (row::narrow(effect.token.claims), *effect.token.nonce.as_bytes());
        let flags = row::bits(JOURNALED);
        let held = self.query(HOLD, &[&effect.id.as_i64(), &claims, &nonce, &flags, &transaction]).await?;
        if held.is_empty() {
            let what = format!("the work of effect {} ended the store's transaction", effect.reached.effect);
            return Err(StoreError::unavailable(what)
                .hint("what it wrote is committed without its confirmation; the work must neither commit nor roll back")
                .into());
        }
        Ok(())
    }

    /// Writes the confirmation; `false` when a call beside this one has.
    async fn confirm(&self, id: MessageId, row: &EffectRow) -> Result<bool, EffectInError> {
        const CONFIRM: &str = "-- effect: never over a row that is there, or two calls of one run would both be done
            insert into tidegate.effect (message, name, item, seq, policy, key, request_hash, round, claims, nonce, sends,
                first_intent_at, last_possible_send, valid_until, quarantine_ms, reconcile_until, state, value, detail)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
            on conflict (message, name, item, seq) do nothing returning 1";
        let policy = serde_json::to_string(&row.policy).expect("a policy is plain data");
        let (value, detail) = row::effect_values(&row.state);
        let item = row::stored_item(&row.effect);
        let confirmed = self
            .query(
                CONFIRM,
                &[
                    &id.as_i64(),
                    &row.effect.name.as_str(),
                    &item,
                    &i64::from(row.seq),
                    &policy,
                    &row.key.as_str(),
                    &row.request_hash,
                    &row::narrow(row.round),
                    &row::narrow(row.token.claims),
                    row.token.nonce.as_bytes(),
                    &i64::from(row.sends),
                    &row.first_intent_at.as_millis(),
                    &row.last_possible_send.as_millis(),
                    &row.valid_until.map(tidegate_core::Timestamp::as_millis),
                    &row::millis(row.quarantine),
                    &row.reconcile_until.as_millis(),
                    &row.state.as_str(),
                    &value,
                    &detail,
                ],
            )
            .await?;
        Ok(!confirmed.is_empty())
    }
}

/// Whether a refusal says that the lease is not held any more: a late write, which is counted.
pub(crate) fn is_late(error: &EffectInError) -> bool {
    matches!(error, EffectInError::Store(error) if error.kind() == StoreErrorKind::LeaseLost)
}
