//! Reads: each in a transaction of its own that only reads, with one snapshot for all its statements.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tidegate_core::clock::{Clock as _, Timestamp};
use tidegate_core::error::StoreError;

use crate::conn::Conn;
use crate::group::Doing;
use crate::names::Lane;
use crate::row;
use crate::shared::{NoConnection, PATIENCE, Shared};
use crate::trouble::{Class, Trouble, class};

/// A snapshot of the store.
pub(crate) struct Snapshot {
    pub(crate) conn: Conn,
    pub(crate) now: Timestamp,
    pub(crate) shared: Arc<Shared>,
}

impl Snapshot {
    /// A lane by its number.
    pub(crate) async fn lane(&self, id: i64) -> Result<Arc<Lane>, Trouble> {
        self.shared.names.lane(&self.conn, id).await
    }
}

/// Reads, again on another connection when one is lost.
pub(crate) async fn read<R, T, F>(shared: &Arc<Shared>, request: &R, read: &F) -> Result<T, StoreError>
where
    R: Sync,
    T: Send,
    F: for<'a> Fn(&'a Snapshot, &'a R) -> Doing<'a, T> + Sync,
{
    let started = shared.real.monotonic();
    let patient = || shared.real.monotonic().saturating_sub(started) < PATIENCE;
    for tries in 0.. {
        let trouble = match shared.connect().await {
            Ok(conn) => match once(shared, conn, request, read).await {
                Ok(value) => return Ok(value),
                Err(trouble) => trouble,
            },
            Err(NoConnection { passing: true, .. }) if patient() => {
                shared.back_off(tries).await;
                continue;
            }
            Err(NoConnection { error, .. }) => return Err(error),
        };
        let again = match &trouble {
            Trouble::Item(_) => false,
            Trouble::Again(_) => true,
            Trouble::Group(error) => matches!(class(error), Class::Again | Class::Lost),
        };
        if !again || !patient() {
            return Err(trouble.into_store_error());
        }
        shared.back_off(tries).await;
    }
    unreachable!("the loop ends by a return")
}

async fn once<R, T, F>(shared: &Arc<Shared>, conn: Conn, request: &R, read: &F) -> Result<T, Trouble>
where
    R: Sync,
    T: Send,
    F: for<'a> Fn(&'a Snapshot, &'a R) -> Doing<'a, T> + Sync,
{
    const BEGIN: &str = "begin isolation level repeatable read, read only";
    const BEGUN: &str = "-- read: the store's time, and plans that look nothing through
        select (extract(epoch from clock_timestamp()) * 1000)::bigint,
            set_config('plan_cache_mode', 'force_generic_plan', true),
            set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
            set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)";
    conn.prepare([(BEGUN, &[][..])].into_iter()).await?;
    let (begun, rows) = futures_util::future::join(conn.client().batch_execute(BEGIN), conn.query(BEGUN, &[])).await;
    let now = begun.and(rows);
    let now = match now {
        Ok(rows) => rows.first().map_or(Ok(Timestamp::EPOCH), |row| row::time(row, 0, "clock")),
        Err(error) => Err(error.into()),
    };
    let now = match now {
        Ok(now) => shared.time(now),
        Err(trouble) => {
            conn.discard();
            return Err(trouble);
        }
    };
    let snapshot = Snapshot { conn, now, shared: Arc::clone(shared) };
    let outcome = AssertUnwindSafe(read(&snapshot, request)).catch_unwind().await;
    let Snapshot { conn, .. } = snapshot;
    // A connection that cannot end its read is closed, which ends it.
    let ended = match &outcome {
        Ok(_) => conn.client().batch_execute("rollback").await.is_ok(),
        Err(_) => false,
    };
    if !ended {
        conn.discard();
    }
    outcome.unwrap_or_else(|panic| {
        let said = crate::writer::panic_text(&*panic);
        Err(StoreError::unavailable(format!("a read of the store panicked ({said})")).into())
    })
}
