//! An effect in the store's own database: committed together with its confirmation, so that nothing can be missing.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::effect::{self, Decision, EffectKey, EffectPolicy, IntentTimes};
use tidegate_core::error::StoreErrorKind;
use tidegate_core::message::Failure;
use tracing::debug;

use crate::context::Ended;
use crate::effect::{Call, EffectBuilder, ready, rejected};
use crate::handler::HandlerError;
use crate::probe::How;

/// A write into the store's own database, as part of the effect's confirmation.
#[must_use = "an effect does nothing before it is called"]
#[derive(Debug)]
pub struct Transactional(EffectBuilder);

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
    pub async fn in_store<T, E>(
        self,
        store: &tidegate_sqlite::SqliteStore,
        work: impl FnOnce(&tidegate_sqlite::rusqlite::Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let context = self.0.context.clone();
        let (reached, under_way) = ready(&context, self.0.reached(EffectPolicy::Transactional, Duration::ZERO))?;
        let times = IntentTimes { send_within: Duration::ZERO, reconcile_for: Duration::ZERO };
        let work: tidegate_sqlite::Work = Box::new(move |tx| {
            let value = work(tx).map_err(Into::into)?;
            Ok(serde_json::to_string(&value)?.into())
        });
        let made = write(&Call { context, reached, times }, store, work).await;
        // Whatever happened to the write, it is all or nothing: no answer can be missing.
        under_way.over();
        made
    }
}

async fn write<T: DeserializeOwned>(
    call: &Call,
    store: &tidegate_sqlite::SqliteStore,
    work: tidegate_sqlite::Work,
) -> Result<T, HandlerError> {
    match call.decide() {
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
    let writing = store.effect_in(id, token, call.reached.clone(), work);
    // Committed with its confirmation: there is no answer that could be lost by itself.
    match call.watched(How::Transaction, &key, writing).await.0 {
        Ok(value) => {
            note_confirmed(call, value.clone());
            call.decode(&value)
        }
        Err(tidegate_sqlite::EffectInError::Work(error)) => {
            Err(HandlerError::retryable("error", crate::answer::chain(error.as_ref())))
        }
        Err(tidegate_sqlite::EffectInError::Store(error)) if error.kind() == StoreErrorKind::LeaseLost => {
            Err(call.stop(Ended::LeaseLost))
        }
        Err(tidegate_sqlite::EffectInError::Store(error)) => {
            Err(call.stop(Ended::Retryable(Failure::new("journal", error.to_string()))))
        }
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
