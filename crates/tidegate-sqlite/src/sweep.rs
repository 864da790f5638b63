//! Takes over lapsed leases, makes due messages claimable and deletes what is past its retention, in bounded steps.

use rusqlite::params;
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{MessageId, WorkerId};
use tidegate_core::lifecycle::{self, Outcome, State};
use tidegate_core::store::{Counted, SweepRequest, Swept, TakenOver};

use crate::cancel;
use crate::claim;
use crate::copied;
use crate::group::{Group, Lane};
use crate::place::{self, Limits};
use crate::row::{self, LeaseRow};
use crate::settle;
use crate::trouble::Trouble;
use crate::watch;

/// One sweep.
pub(crate) fn sweep(group: &mut Group<'_>, request: &SweepRequest) -> Result<Swept, Trouble> {
    copied::begin(group)?;
    watch::tick(group.conn, group.now)?;
    let mut swept = Swept::default();
    if request.take_over {
        take_over(group, request, &mut swept)?;
    }
    promote(group, request.limit, &mut swept)?;
    if let Some(retention) = request.retention
        && let Some(before) = watch::retained_from(group.conn, group.now, retention)?
    {
        delete(group, before, request.limit, &mut swept)?;
    }
    failpoint::reach("sweep.before_commit");
    Ok(swept)
}

fn take_over(group: &mut Group<'_>, request: &SweepRequest, swept: &mut Swept) -> Result<(), Trouble> {
    let full = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let mut unreadable = 0;
    loop {
        let lapsed = lapsed(group, request.limit, unreadable)?;
        let (found, taken_before) = (lapsed.len(), swept.taken_over.len());
        for lease in lapsed {
            // Compare and swap: read and removed in one write transaction, by token, and `until` was compared there.
            match lease.and_then(|(id, lease)| take(group, id, &lease, request.unit)) {
                Ok(taken) => {
                    failpoint::reach("sweep.after_take_over");
                    swept.taken_over.push(taken);
                }
                // A message that cannot be read stays as it is and must not keep the others from their workers.
                Err(Trouble::Item(_)) => unreadable += 1,
                Err(trouble) => return Err(trouble),
            }
        }
        let progressed = swept.taken_over.len() > taken_before;
        if progressed || found < full {
            swept.more |= progressed && found >= full;
            return Ok(());
        }
    }
}

/// A lapsed lease, or why it cannot be read.
type Lapsed = Result<(MessageId, LeaseRow), Trouble>;

/// Lapsed leases, the oldest first, after so many that cannot be read.
fn lapsed(group: &Group<'_>, limit: u32, after: u32) -> Result<Vec<Lapsed>, Trouble> {
    const LAPSED: &str = "-- sweep: as many rows as there are running handlers, so no index is kept for it
        select * from tide_lease where until < ?1 order by until, id limit ?2 offset ?3";
    let mut statement = group.conn.prepare_cached(LAPSED)?;
    let mut rows = statement.query(params![group.now.as_millis(), limit, after])?;
    let mut lapsed = Vec::new();
    while let Some(row) = rows.next()? {
        let id: Result<i64, Trouble> = row::column(row, "id", "tide_lease");
        lapsed.push(id.and_then(|id| Ok((MessageId::from_i64(id), row::lease(row)?))));
    }
    Ok(lapsed)
}

fn take(group: &mut Group<'_>, id: MessageId, lease: &LeaseRow, unit: f64) -> Result<TakenOver, Trouble> {
    let worker = WorkerId::new(&lease.worker)?;
    let lane = group.lane(lease.life.lane)?;
    let rows = place::journal_if(group.conn, id, lease.life.flags)?;
    let mut facts = place::facts(&lease.life, Limits::read(group.conn, id)?, &rows, group.now);
    copied::count_in(&mut facts.journal, lease.life.flags, group.now);
    let transition = lifecycle::take_over(&facts, group.policy(&lane.kind)?.as_ref(), group.now, unit);
    // No settlement of the old token may be taken for this one: what it would have said is not what became of it.
    settle::move_on(group, &lane, lease, id, &Outcome::LeaseExpired, &transition, &rows, None)?;
    group.tally(&lane, Counted::LostLeases, "");
    Ok(TakenOver { id, state: transition.next.state(), worker, queue: lane.queue })
}

/// Makes due messages claimable, whoever serves them: depths and ages show them as waiting.
fn promote(group: &mut Group<'_>, limit: u32, swept: &mut Swept) -> Result<(), Trouble> {
    const LANES: &str = "-- sweep: lanes are few; each is asked for its head
        select id from tide_lane";
    let lanes: Vec<i64> = {
        let mut statement = group.conn.prepare_cached(LANES)?;
        let lanes = statement.query_map([], |row| row.get(0))?;
        lanes.collect::<Result<_, _>>()?
    };
    for lane in lanes {
        let left = limit.saturating_sub(swept.promoted);
        if left == 0 {
            swept.more = true;
            return Ok(());
        }
        let lane = group.lane(lane)?;
        swept.promoted += claim::promote(group, &lane, left)?;
    }
    Ok(())
}

/// Deletes ended messages with everything that hangs on them, oldest settlement first.
fn delete(group: &mut Group<'_>, before: Timestamp, limit: u32, swept: &mut Swept) -> Result<(), Trouble> {
    const EXPIRED: &str = "-- sweep: retention counts from the settlement
        select id from tide_result where at <= ?1 order by at limit ?2 offset ?3";
    const DISCARDED: &str = "-- sweep: a dead letter that was discarded; its retention counts from there
        select id from tide_held where discarded_at <= ?1 order by discarded_at limit ?2 offset ?3";
    const FROM_START: &str = "-- sweep, broken: from when it came
        select r.id from tide_result r join tide_message m on m.id = r.id where m.enqueued_at <= ?1 limit ?2 offset ?3";
    const HELD_TOO_LONG: &str = "-- sweep, broken: nobody looked at it in time
        select id from tide_held where at <= ?1 order by at limit ?2 offset ?3";
    const RESULT: &str = "delete from tide_result where id = ?1";
    const HELD: &str = "delete from tide_held where id = ?1";
    let expired = if canary::is(Canary::RetentionFromStart) { FROM_START } else { EXPIRED };
    let discarded = if canary::is(Canary::DeadLettersExpire) { HELD_TOO_LONG } else { DISCARDED };
    for (which, from) in [(expired, RESULT), (discarded, HELD)] {
        let mut unreadable = 0;
        loop {
            let left = limit.saturating_sub(swept.deleted);
            let full = usize::try_from(left).unwrap_or(usize::MAX);
            let expired: Vec<i64> = {
                let mut statement = group.conn.prepare_cached(which)?;
                let past = params![before.as_millis(), left, unreadable];
                let rows = statement.query_map(past, |row| row.get(0))?;
                rows.collect::<Result<_, _>>()?
            };
            let (found, deleted_before) = (expired.len(), swept.deleted);
            for id in expired {
                match delete_one(group, id, before, from) {
                    Ok(()) => swept.deleted += 1,
                    // Corrupt: refused, kept for a person, and not in the way of the next ones.
                    Err(Trouble::Item(_)) => unreadable += 1,
                    Err(trouble) => return Err(trouble),
                }
            }
            if left == 0 || found < full || swept.deleted > deleted_before {
                swept.more |= found >= full;
                break;
            }
        }
    }
    Ok(())
}

fn delete_one(group: &mut Group<'_>, id: i64, before: Timestamp, from: &str) -> Result<(), Trouble> {
    const DELETE: [&str; 5] = [
        "delete from tide_effect where message = ?1",
        "delete from tide_evidence where message = ?1",
        "delete from tide_history where message = ?1",
        "delete from tide_redriven where message = ?1",
        "delete from tide_message where id = ?1",
    ];
    let lane = expired_lane(group, MessageId::from_i64(id), before)?;
    cancel::release_key(group, &lane, MessageId::from_i64(id))?;
    for sql in DELETE {
        group.conn.prepare_cached(sql)?.execute([id])?;
    }
    group.conn.prepare_cached(from)?.execute([id])?;
    group.tally(&lane, Counted::Deleted, "");
    Ok(())
}

/// The lane of a message that may be deleted: only a row that agrees with its seal says so, an index could be damaged.
fn expired_lane(group: &mut Group<'_>, id: MessageId, before: Timestamp) -> Result<Lane, Trouble> {
    let corrupt = |what| StoreError::corrupt(&format!("tide_result, tide_held, row {}", id.as_i64()), what);
    let Some(ended) = place::ended(group.conn, id)? else {
        return Err(corrupt("an index names a row that is not there").into());
    };
    let counts_from = if ended.state == State::Dead { ended.discarded_at } else { Some(ended.at) };
    let expired = ended.state != State::Parked && counts_from.is_some_and(|at| at <= before);
    let forced = canary::is(Canary::RetentionFromStart) || canary::is(Canary::DeadLettersExpire);
    if !expired && !forced {
        return Err(corrupt("an index says that it is past its retention, and it is not").into());
    }
    group.lane(ended.lane)
}
