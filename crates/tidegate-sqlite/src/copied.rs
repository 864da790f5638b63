//! What is different about a store that came out of a backup, until its older messages have run again.
//!
//! The store it was copied from went on after the copy was made, and may have sent what the copy knows nothing of. So the
//! copy is marked when it is made (`backup.rs`), and when it is first put to work (a claim, a sweep, a resolution) what it
//! believes is put right, once, in that commit: nobody holds its leases, no quarantine has passed, no time is over. From
//! then on an effect of an older flow that has no row of this store's own runs gets one that is open before anything is
//! sent ([`effect::assumed`]). A store that was never restored pays for all this with a look at one row.

use rusqlite::{Connection, OptionalExtension, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{self, EffectRow, Fate, IntentTimes, JournalFacts, Reached, Unrecorded};
use tidegate_core::id::MessageId;
use tidegate_core::message::Message;

use crate::group::Group;
use crate::row::{COPIED, LASTING, LeaseRow, RECONCILING, RELEASE};
use crate::trouble::Trouble;

/// Puts a copy right before it does its first work.
pub(crate) fn begin(group: &Group<'_>) -> Result<(), Trouble> {
    const UNBEGUN: &str = "-- restored: whether this is a copy that has not worked yet
        select 1 from tide_store where copied_id is not null and begun_at is null";
    const BEGIN: &str = "-- restored, once: whatever the other store sent was sent before this
        update tide_store set begun_at = ?1, seal = tide_reseal(seal, 6, begun_at, ?1), last_tick = ?1, steady_since = ?1";
    const RELEASE_LEASES: &str =
        "-- restored, once: nobody holds a lease of this store; the run is given back as if it was not begun
        insert into tide_ready select *, null, null,
            tide_seal(0, lane, due_at, id, claims, attempt, crashes, generation, round, flags, expires_at, null, null)
        from (select lane, due_at, id, claims, attempt - (attempt > 0 and flags & ?1 = 0) attempt, crashes, generation,
            round, flags & ?2 flags, expires_at from tide_lease)";
    const RELEASED: &str = "-- restored, once: counted where they are now
        update tide_queue set leased = 0, ready = ready + leased";
    const NO_LEASES: &str = "delete from tide_lease";
    const UNSURE: [&str; 2] = [
        "-- restored, once: it may have gone on elsewhere; that it is late is not its fault, and its key stays its own
        update tide_ready set flags = (flags | ?1) & ~?2, expires_at = u.until,
            seal = tide_reseal(seal, 8, flags, (flags | ?1) & ~?2, 9, expires_at, u.until)
        from (select id message, ?3 + max_age_ms until from tide_message) u where u.message = tide_ready.id and exists (select 1 from tide_message m, tide_store s
            where m.id = tide_ready.id and coalesce(m.flow, m.id) <= s.copied_id)",
        "-- restored, once: the same for what is due later
        update tide_sched set flags = (flags | ?1) & ~?2, expires_at = u.until,
            seal = tide_reseal(seal, 8, flags, (flags | ?1) & ~?2, 9, expires_at, u.until)
        from (select id message, ?3 + max_age_ms until from tide_message) u where u.message = tide_sched.id and exists (select 1 from tide_message m, tide_store s
            where m.id = tide_sched.id and coalesce(m.flow, m.id) <= s.copied_id)",
    ];
    const DECIDED: &str = "-- restored, once: what was decided before the copy may have been begun anew since
        update tide_effect set claims = 0, seal = tide_reseal(seal, 8, claims, 0) where state in ('not_done', 'rejected')";
    const OPEN: &str =
        "-- restored, once: an open effect may have been sent again until now; it is reconciled for as long as before
        update tide_effect set last_possible_send = max(last_possible_send, ?1),
            reconcile_until = ?1 + max(0, reconcile_until - first_intent_at),
            seal = tide_reseal(seal, 12, last_possible_send, max(last_possible_send, ?1),
                15, reconcile_until, ?1 + max(0, reconcile_until - first_intent_at))
        where state in ('intent', 'unknown')";
    let conn = group.conn;
    if !conn.prepare_cached(UNBEGUN)?.exists([])? {
        return Ok(());
    }
    let now = group.now.as_millis();
    conn.execute(BEGIN, [now])?;
    conn.execute(RELEASE_LEASES, [RECONCILING, LASTING])?;
    conn.execute(NO_LEASES, [])?;
    conn.execute(RELEASED, [])?;
    for sql in UNSURE {
        conn.execute(sql, [COPIED, RELEASE, now])?;
    }
    conn.execute(DECIDED, [])?;
    conn.execute(OPEN, [now])?;
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
pub(crate) fn covers(conn: &Connection, id: MessageId) -> Result<bool, Trouble> {
    const COVERS: &str = "-- restored: by the first message of its flow, whose id is the smallest
        select 1 from tide_message m, tide_store s where m.id = ?1 and coalesce(m.flow, m.id) <= s.copied_id";
    Ok(conn.prepare_cached(COVERS)?.exists([id.as_i64()])?)
}

/// The row that an effect of a running message gets instead of an intent, if it may have been sent elsewhere.
pub(crate) fn assumed(
    group: &Group<'_>,
    message: &Message,
    rows: &[EffectRow],
    reached: &Reached,
    times: IntentTimes,
    lease: &LeaseRow,
) -> Result<Option<EffectRow>, Trouble> {
    const UNRECORDED: &str = "-- restored: the flow began where it was enqueued, so nothing of it was sent earlier; a
        -- clock that was set back since must not lengthen the time for which a remote remembers a key
        select max(s.copied_at, coalesce((select enqueued_at from tide_message where id = ?1), s.copied_at))
            + coalesce((select sum(by_ms) from tide_jump where by_ms < 0 and at - by_ms >= s.copied_at), 0) since,
            s.begun_at begun from tide_store s where s.copied_id >= ?1 and s.begun_at is not null";
    let unrecorded = group
        .conn
        .prepare_cached(UNRECORDED)?
        .query_row(params![message.flow.as_i64()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((from, until)) = unrecorded else { return Ok(None) };
    let unrecorded = Unrecorded { from: Timestamp::from_millis(from), until: Timestamp::from_millis(until) };
    let round = lease.life.counters.round;
    Ok(effect::assumed(message, rows, reached, times, lease.token, round, unrecorded, group.now))
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
}
