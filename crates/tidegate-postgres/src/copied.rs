//! What is different about a store that was restored from a backup, or works on a server that was promoted, until its older
//! messages have run again.
//!
//! The store that it was copied from may have gone on, and may have sent what this one knows nothing of. PostgreSQL says
//! where it is: which cluster, which history of that cluster (a server that was promoted, or recovered to some moment,
//! begins a new one), and which table this is (a dump that was restored made another). The store keeps what it said last;
//! when it says something else, what the store believes is put right before anything else happens, once, in a transaction
//! of its own: nobody holds its leases, no quarantine has passed, no time is over. From then on an effect of an older flow
//! that has no row of this store's own runs gets one that is open before anything is sent
//! ([`assumed`](tidegate_core::effect::assumed)).
//!
//! A snapshot of a disk, or a copy of the cluster's files, that is started in place of its original without recovering to
//! some moment says nothing of the kind, and is not recognised: whoever starts it has to say so ([`declare`]).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{Fate, JournalFacts, Unrecorded};
use tidegate_core::error::StoreError;
use tidegate_core::id::MessageId;
use tidegate_core::store::Act;
use tokio_postgres::Row;

use crate::conn::{Conn, Step};
use crate::discard;
use crate::group::Group;
use crate::open;
use crate::row::{self, COPIED, LASTING, RECONCILING, RELEASE};
use crate::shared::Shared;
use crate::trouble::{self, Class, Trouble};

/// Where a store is, as far as the server says it: what it does not say is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Whereabouts {
    /// Which cluster.
    pub(crate) system_id: Option<i64>,
    /// Which history of it.
    pub(crate) timeline: Option<i64>,
    /// Which table the row of the whole store is in.
    pub(crate) home: Option<i64>,
}

impl Whereabouts {
    /// Whether a store that was there is here.
    fn is(self, here: Self) -> bool {
        let same = |known: Option<i64>, now: Option<i64>| known.is_none() || now.is_none() || known == now;
        same(self.system_id, here.system_id) && same(self.timeline, here.timeline) && same(self.home, here.home)
    }

    /// What is known of both.
    fn or(self, other: Self) -> Self {
        Self {
            system_id: self.system_id.or(other.system_id),
            timeline: self.timeline.or(other.timeline),
            home: self.home.or(other.home),
        }
    }
}

/// Looks where the store is, on a connection outside of any transaction, and puts a store right that was elsewhere.
pub(crate) async fn arrive(shared: &Shared, conn: &Conn) -> Result<(), Trouble> {
    let here = here(conn).await?;
    let known = known(conn).await?;
    if !known.is_some_and(|known| known == known.or(here) && known.is(here)) {
        let now = open::now(shared, conn).await?;
        conn.client().batch_execute("begin isolation level read committed read write").await?;
        let settled = settle_in(conn, here, now).await;
        conn.client().batch_execute(if settled.is_ok() { "commit" } else { "rollback" }).await?;
        settled?;
        // What was remembered of another server may mean something else here.
        shared.names.forget();
        shared.hints.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    shared.timeline.store(here.timeline.unwrap_or(0), Ordering::Relaxed);
    Ok(())
}

/// What a store that was said to be restored believes from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// How often the store was moved, restored or promoted, counted from 1.
    pub incarnation: u32,
    /// Runs that were given back: nobody holds a lease of this store any more.
    pub released: u64,
    /// Messages whose first run clears their effects up, those of the runs among them.
    pub unsure: u64,
}

/// The operator says that the store was restored: PostgreSQL does not show it.
pub(crate) async fn declare(group: &mut Group, act: &Act) -> Result<Restored, Trouble> {
    const ALONE: &str = "-- restored: nobody else puts it right meanwhile
        select 1 from tidegate.store for update";
    const RUNNING: &str = "-- restored, once: how much is given back
        select count(*) from tidegate.lease";
    const SAID: &str = "-- restored, once: what it is now, and how much of it is unsure
        select incarnation, (select count(*) from tidegate.ready) + (select count(*) from tidegate.sched)
        from tidegate.store";
    discard::reason_of(act, "saying that a store was restored")?;
    group.conn.query(ALONE, &[]).await?;
    let released = row::first_i64(&group.conn.query(RUNNING, &[]).await?)?;
    begin(&group.conn, group.now).await?;
    let rows = group.conn.query(SAID, &[]).await?;
    let said = rows.first().ok_or_else(|| StoreError::corrupt("store", "the row of the whole store is missing"))?;
    let incarnation: i32 = row::column(said, 0, "store")?;
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let unsure = count(row::column(said, 1, "store")?);
    group.audit(act, "restored", None, None, &format!("incarnation {incarnation}"));
    Ok(Restored { incarnation: incarnation.unsigned_abs(), released: count(released), unsure })
}

/// Whether a transaction found the server in another history of its cluster than this process knows.
pub(crate) fn is_elsewhere(shared: &Shared, timeline: Option<i64>) -> bool {
    timeline.is_some_and(|timeline| timeline != shared.timeline.load(Ordering::Relaxed))
}

/// Whether the server says which history it is in.
pub(crate) fn says_timeline(shared: &Shared) -> bool {
    shared.timeline.load(Ordering::Relaxed) != 0
}

/// Where the server says that the store is now.
async fn here(conn: &Conn) -> Result<Whereabouts, Trouble> {
    const HOME: &str = "-- restored: which table this is; a dump that was restored made another
        select 'tidegate.store'::regclass::oid::bigint";
    const CLUSTER: &str = "-- restored: which cluster this is
        select system_identifier from pg_control_system()";
    const HISTORY: &str = concat!("-- restored: which history of its cluster\n select ", timeline!());
    let home = conn.query(HOME, &[]).await?;
    let system_id = unless_withheld(conn.query(CLUSTER, &[]).await)?;
    let timeline = unless_withheld(conn.query(HISTORY, &[]).await)?;
    let first = |rows: Option<Vec<Row>>| rows.as_deref().map(row::first_i64).transpose();
    Ok(Whereabouts { system_id: first(system_id)?, timeline: first(timeline)?, home: first(Some(home))? })
}

/// Providers may keep this to themselves; a server that is gone says nothing about where the store is.
fn unless_withheld(answer: Result<Vec<Row>, tokio_postgres::Error>) -> Result<Option<Vec<Row>>, Trouble> {
    match answer {
        Ok(rows) => Ok(Some(rows)),
        Err(error) if trouble::class(&error) == Class::Failed => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Which history of its cluster the server is in: the number that its log is written under. What the control file says of
/// it lags behind a promotion until the next checkpoint.
macro_rules! timeline {
    () => {
        "('x' || lpad(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 16, '0'))::bit(64)::bigint"
    };
}
pub(crate) use timeline;

/// Where the store was when it was looked at last; `None` when that was never.
async fn known(conn: &Conn) -> Result<Option<Whereabouts>, Trouble> {
    const KNOWN: &str = "-- restored: where the store was
        select system_id, timeline, home from tidegate.store";
    let Some(row) = conn.query_opt(KNOWN, &[]).await? else { return Ok(None) };
    let table = "store";
    let timeline: Option<i32> = row::column(&row, 1, table)?;
    let known = Whereabouts {
        system_id: row::column(&row, 0, table)?,
        timeline: timeline.map(i64::from),
        home: row::column(&row, 2, table)?,
    };
    Ok(Some(known).filter(|known| *known != Whereabouts::default()))
}

/// Notes where the store is. If it was elsewhere before, everything it believes is put right.
async fn settle_in(conn: &Conn, here: Whereabouts, now: Timestamp) -> Result<(), Trouble> {
    const ALONE: &str = "-- restored: one process puts it right; the others find that it was done
        select 1 from tidegate.store for update";
    const NOTE: &str = "-- restored: where the store is from now on
        update tidegate.store set system_id = $1, timeline = $2::bigint::integer, home = $3";
    conn.query(ALONE, &[]).await?;
    let known = known(conn).await?;
    if known.is_some_and(|known| !known.is(here)) {
        tracing::warn!(
            "this store was restored, or its server promoted: what runs and waits may have gone on elsewhere"
        );
        begin(conn, now).await?;
    }
    let noted = here.or(known.unwrap_or_default());
    conn.execute(NOTE, &[&noted.system_id, &noted.timeline, &noted.home]).await?;
    Ok(())
}

/// Puts a copy right before it does its first work.
async fn begin(conn: &Conn, now: Timestamp) -> Result<(), Trouble> {
    const BEGIN: &str = "-- restored, once: whatever the other store sent was sent before this. What the copy lacks was sent
        -- after the last tick it knows of; of a copy's copy, what the first one lacked is still unknown, so its time stays
        update tidegate.store set incarnation = incarnation + 1,
            copied_at = coalesce(copied_at, greatest(last_tick, created_at)),
            copied_id = coalesce((select max(id) from tidegate.message), 0),
            begun_at = $1, last_tick = $1, steady_since = $1";
    const LOCK_LEASES: &str = "-- restored, once: in the order in which everybody locks them
        select 1 from tidegate.lease order by id for update";
    const RELEASE_LEASES: &str =
        "-- restored, once: nobody holds a lease of this store; the run is given back as if it was not begun
        insert into tidegate.ready
            (lane, pos, due_at, id, expires_at, claims, attempt, crashes, generation, round, flags)
        select lane, $1, due_at, id, expires_at, claims,
            attempt - case when attempt > 0 and flags & $2 = 0 then 1 else 0 end,
            crashes, generation, round, flags & $3
        from tidegate.lease";
    const RELEASED: &str = "-- restored, once: counted where they are now
        insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
        select l.queue, count(*), 0, -count(*), 0, 0
        from tidegate.lease t join tidegate.lane l on l.id = t.lane group by l.queue";
    const NO_LEASES: &str = "-- restored, once: they are claimable now
        delete from tidegate.lease";
    const UNSURE_READY: &str =
        "-- restored, once: it may have gone on elsewhere; that it is late is not its fault, and its key stays its own
        update tidegate.ready r set flags = (r.flags | $1) & ~$2::integer,
            expires_at = $3 + coalesce(m.age_limit_ms, 259200000)
        from tidegate.message m where m.id = r.id";
    const UNSURE_SCHED: &str = "-- restored, once: the same for what is due later
        update tidegate.sched r set flags = (r.flags | $1) & ~$2::integer,
            expires_at = $3 + coalesce(m.age_limit_ms, 259200000)
        from tidegate.message m where m.id = r.id";
    const DECIDED: &str = "-- restored, once: what was decided before the copy may have been begun anew since
        update tidegate.effect set claims = 0 where state in ('not_done', 'rejected')";
    const OPEN: &str =
        "-- restored, once: an open effect may have been sent again until now; it is reconciled for as long as before
        update tidegate.effect set last_possible_send = greatest(last_possible_send, $1),
            reconcile_until = $1 + greatest(0, reconcile_until - first_intent_at)
        where state in ('intent', 'unknown')";
    let now = now.as_millis();
    let (reconciling, lasting) = (row::bits(RECONCILING), row::bits(LASTING));
    let (copied, release) = (row::bits(COPIED), row::bits(RELEASE));
    let steps: [Step<'_>; 9] = [
        (BEGIN, &[&now]),
        (LOCK_LEASES, &[]),
        (RELEASE_LEASES, &[&now, &reconciling, &lasting]),
        (RELEASED, &[]),
        (NO_LEASES, &[]),
        (UNSURE_READY, &[&copied, &release, &now]),
        (UNSURE_SCHED, &[&copied, &release, &now]),
        (DECIDED, &[]),
        (OPEN, &[&now]),
    ];
    conn.many(&steps).await?;
    Ok(())
}

/// Counts an open effect for a message that came with the copy and has not run since: it does not end unasked.
pub(crate) fn count_in(journal: &mut JournalFacts, flags: i64, now: Timestamp) {
    if flags & COPIED != 0 {
        journal.open.push(Fate::Reconcile { not_before: now });
        journal.intents = true;
    }
}

/// Whether a message belongs to a flow that may have gone on elsewhere.
pub(crate) async fn covers(conn: &Conn, id: MessageId) -> Result<bool, Trouble> {
    const COVERS: &str = "-- restored: by the first message of its flow, whose id is the smallest
        select exists (select 1 from tidegate.message m, tidegate.store s
            where m.id = $1 and coalesce(m.flow, m.id) <= s.copied_id)";
    row::first_bool(&conn.query(COVERS, &[&id.as_i64()]).await?)
}

/// Up to which id flows may have gone on elsewhere; no row where none may have.
pub(crate) const COPY: &str = "-- restored: whether this store was elsewhere
    select copied_id from tidegate.store where copied_id is not null and begun_at is not null";

/// When an effect of a flow may have been sent of which this store knows nothing. `copy` is the row of [`COPY`].
pub(crate) async fn unrecorded(conn: &Conn, copy: &Row, flow: MessageId) -> Result<Option<Unrecorded>, Trouble> {
    const UNRECORDED: &str = "-- restored: the flow began where it was enqueued, so nothing of it was sent earlier; a
        -- clock that was set back since must not lengthen the time for which a remote remembers a key
        select greatest(s.copied_at,
                coalesce((select enqueued_at from tidegate.message where id = $1), s.copied_at))
            + coalesce((select sum(by_ms)::bigint from tidegate.jump where by_ms < 0 and at - by_ms >= s.copied_at), 0),
            s.begun_at
        from tidegate.store s where s.copied_id >= $1 and s.begun_at is not null";
    let copied_id: i64 = row::column(copy, 0, "store")?;
    if copied_id < flow.as_i64() {
        return Ok(None);
    }
    let Some(times) = conn.query_opt(UNRECORDED, &[&flow.as_i64()]).await? else { return Ok(None) };
    Ok(Some(Unrecorded { from: row::time(&times, 0, "store")?, until: row::time(&times, 1, "store")? }))
}

/// What stays of the flags of a run that ended: once a handler has run and reported, its journal knows its effects.
pub(crate) fn flags_after(flags: i64, reported: bool) -> i64 {
    if reported { flags & !COPIED } else { flags }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::JOURNALED;

    #[test]
    fn a_run_that_reported_has_reached_its_effects_and_one_that_crashed_has_not() {
        assert_eq!(flags_after(JOURNALED | COPIED, true), JOURNALED);
        assert_eq!(flags_after(JOURNALED | COPIED, false), JOURNALED | COPIED);
    }

    #[test]
    fn another_cluster_history_or_table_is_elsewhere_and_what_is_not_said_is_not() {
        let known = Whereabouts { system_id: Some(7), timeline: Some(1), home: Some(16_000) };
        assert!(known.is(known));
        assert!(!known.is(Whereabouts { system_id: Some(8), ..known }));
        assert!(!known.is(Whereabouts { timeline: Some(2), ..known }));
        assert!(!known.is(Whereabouts { home: Some(16_001), ..known }));
        assert!(known.is(Whereabouts { system_id: None, timeline: None, ..known }));
        assert!(Whereabouts::default().is(known));
        assert_eq!(Whereabouts { system_id: None, ..known }.or(known), known);
    }
}
