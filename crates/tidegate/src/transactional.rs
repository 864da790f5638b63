//! An effect in the store's own database: committed together with its confirmation, so that nothing can be missing.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::effect::{self, Decision, EffectKey, EffectPolicy, IntentTimes, Reached};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::message::Failure;
use tracing::{Instrument as _, debug};

use crate::context::Ended;
use crate::effect::{Call, EffectBuilder, ready, rejected};
use crate::handler::HandlerError;
use crate::probe::How;
use crate::trace;

/// A write into the store's own database, as part of the effect's confirmation.
#[must_use = "an effect does nothing before it is called"]
#[derive(Debug)]
pub struct Transactional(EffectBuilder);

/// Writes of the application's into a PostgreSQL store's database, under way.
#[cfg(feature = "postgres")]
pub type Working<'t, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, tidegate_postgres::WorkError>> + Send + 't>>;

impl Transactional {
    pub(crate) fn new(builder: EffectBuilder) -> Self {
        Self(builder)
    }

    /// Runs `work` in one transaction of the store's file, together with the confirmation: both or neither, once.
    ///
    /// `work` runs on the store's writing thread: it must be short, call nobody, and end no transaction.
    ///
    /// # Errors
    /// What `work` returned, as retryable with code `error` (nothing was written); or the end of this attempt.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the write may still commit; a later attempt then replays its value.
    #[cfg(feature = "sqlite")]
    pub async fn in_store<T, E>(
        self,
        store: &tidegate_sqlite::SqliteStore,
        work: impl FnOnce(&tidegate_sqlite::rusqlite::Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let work: tidegate_sqlite::Work = Box::new(move |tx| {
            let value = work(tx).map_err(Into::into)?;
            Ok(serde_json::to_string(&value)?.into())
        });
        self.write(move |id, token, reached| async move {
            match store.effect_in(id, token, reached, work).await {
                Ok(value) => Wrote::Value(value),
                Err(tidegate_sqlite::EffectInError::Work(error)) => Wrote::Failed(error),
                Err(tidegate_sqlite::EffectInError::Store(error)) => Wrote::Refused(error),
            }
        })
        .await
    }

    /// Runs `work` in one transaction of the store's PostgreSQL database, together with the confirmation: both or neither,
    /// once. Written as `|transaction| Box::pin(async move { .. })`.
    ///
    /// The message cannot be taken over while `work` runs: it must be short, call nobody else, and end no transaction.
    ///
    /// # Errors
    /// As [`Transactional::in_store`].
    ///
    /// # Cancel safety
    /// As [`Transactional::in_store`].
    #[cfg(feature = "postgres")]
    pub async fn in_database<T>(
        self,
        store: &tidegate_postgres::PostgresStore,
        work: impl for<'t> FnOnce(&'t tidegate_postgres::tokio_postgres::Transaction<'t>) -> Working<'t, T> + Send + 'static,
    ) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let work: tidegate_postgres::Work = Box::new(move |transaction| {
            let working = work(transaction);
            Box::pin(async move { Ok(serde_json::to_string(&working.await?)?.into()) })
        });
        self.write(move |id, token, reached| async move {
            match store.effect_in(id, token, reached, work).await {
                Ok(value) => Wrote::Value(value),
                Err(tidegate_postgres::EffectInError::Work(error)) => Wrote::Failed(error),
                Err(tidegate_postgres::EffectInError::Store(error)) => Wrote::Refused(error),
            }
        })
        .await
    }

    async fn write<T, F>(self, writing: impl FnOnce(MessageId, LeaseToken, Reached) -> F) -> Result<T, HandlerError>
    where
        T: DeserializeOwned,
        F: Future<Output = Wrote> + Send,
    {
        let context = self.0.context.clone();
        let (reached, under_way) = ready(&context, self.0.reached(EffectPolicy::Transactional, Duration::ZERO))?;
        let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::ZERO };
        let span = trace::effect(&reached);
        let made = write(&Call { context, reached, times }, writing).instrument(span).await;
        // Whatever happened to the write, it is all or nothing: no answer can be missing.
        under_way.over();
        made
    }
}

/// What an engine says of a write that is an effect.
enum Wrote {
    Value(Arc<str>),
    /// The work failed, and nothing of it was stored.
    Failed(Box<dyn std::error::Error + Send + Sync>),
    Refused(StoreError),
}

async fn write<T, F>(call: &Call, writing: impl FnOnce(MessageId, LeaseToken, Reached) -> F) -> Result<T, HandlerError>
where
    T: DeserializeOwned,
    F: Future<Output = Wrote> + Send,
{
    let decision = call.decide();
    trace::decided(&decision);
    match decision {
        Decision::Replay(value) => return call.decode(&value),
        Decision::Send => call.may_begin()?,
        Decision::ReplayRejected { code, detail } => return Err(rejected(code, detail)),
        Decision::LookUp { .. } => {}
        Decision::Park(reason) => {
            let failure = Failure::new(reason.as_str(), format!("effect {} has another policy", call.reached.effect));
            return Err(call.stop(Ended::Park(reason, failure)));
        }
    }
    let (id, token) = (call.context.id(), call.context.0.lease.token);
    let key = EffectKey::of(call.context.message(), &call.reached.effect, call.context.0.lease.counters.round);
    let writing = writing(id, token, call.reached.clone());
    // Committed with its confirmation: there is no answer that could be lost by itself.
    match call.watched(How::Transaction, &key, writing).await.0 {
        Wrote::Value(value) => {
            trace::effect_ended("confirmed", None);
            note_confirmed(call, value.clone());
            call.decode(&value)
        }
        Wrote::Failed(error) => {
            trace::effect_ended("not_done", Some("error"));
            Err(HandlerError::retryable("error", crate::answer::chain(error.as_ref())))
        }
        Wrote::Refused(error) if error.kind() == StoreErrorKind::LeaseLost => Err(call.stop(Ended::LeaseLost)),
        Wrote::Refused(error) => Err(call.stop(Ended::Retryable(Failure::new("journal", error.to_string())))),
    }
}

/// Puts the row that the store wrote into the attempt's picture of the journal.
fn note_confirmed(call: &Call, value: Arc<str>) {
    let inner = &call.context.0;
    let rows = call.context.progress().journal.clone();
    let (token, round, now) = (inner.lease.token, inner.lease.counters.round, inner.clock.now());
    match effect::confirmed_at_once(&inner.lease.message, &rows, &call.reached, value, token, round, now) {
        Ok(row) => call.context.note(row),
        // The store replayed a row that this attempt has seen already.
        Err(error) => debug!(error = %error, "the picture of the journal was newer"),
    }
}
