//! Takes over lapsed leases, makes due messages claimable and deletes what is past its retention, in bounded steps.

use rusqlite::params;
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::id::{MessageId, WorkerId};
use tidegate_core::lifecycle::{self, Outcome};
use tidegate_core::store::{Counted, SweepRequest, Swept, TakenOver};

use crate::cancel;
use crate::claim;
use crate::copied;
use crate::group::Group;
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
    Ok(swept)
}

fn take_over(group: &mut Group<'_>, request: &SweepRequest, swept: &mut Swept) -> Result<(), Trouble> {
    const LAPSED: &str = "-- sweep: as many rows as there are running handlers, so no index is kept for it
        select * from tide_lease where until < ?1 order by until, id limit ?2";
    let mut lapsed: Vec<(MessageId, LeaseRow)> = Vec::new();
    {
        let mut statement = group.conn.prepare_cached(LAPSED)?;
        let mut rows = statement.query(params![group.now.as_millis(), request.limit])?;
        while let Some(row) = rows.next()? {
            lapsed.push((MessageId::from_i64(row::column(row, "id", "tide_lease")?), row::lease(row)?));
        }
    }
    swept.more |= lapsed.len() >= usize::try_from(request.limit).unwrap_or(usize::MAX);
    for (id, lease) in lapsed {
        // Compare and swap: read and removed in one write transaction, by token, and `until` was compared above.
        match take(group, id, &lease, request.unit) {
            Ok(taken) => swept.taken_over.push(taken),
            // A message that cannot be read stays as it is and must not keep the others from their workers.
            Err(Trouble::Item(_)) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(())
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
        select id, lane from tide_result where at <= ?1 order by at limit ?2";
    const DISCARDED: &str = "-- sweep: a dead letter that was discarded; its retention counts from there
        select id, lane from tide_held where discarded_at <= ?1 order by discarded_at limit ?2";
    const FROM_START: &str = "-- sweep, broken: from when it came
        select r.id, r.lane from tide_result r join tide_message m on m.id = r.id where m.enqueued_at <= ?1 limit ?2";
    const HELD_TOO_LONG: &str = "-- sweep, broken: nobody looked at it in time
        select id, lane from tide_held where at <= ?1 order by at limit ?2";
    const DELETE: [&str; 5] = [
        "delete from tide_effect where message = ?1",
        "delete from tide_evidence where message = ?1",
        "delete from tide_history where message = ?1",
        "delete from tide_redriven where message = ?1",
        "delete from tide_message where id = ?1",
    ];
    const RESULT: &str = "delete from tide_result where id = ?1";
    const HELD: &str = "delete from tide_held where id = ?1";
    let expired = if canary::is(Canary::RetentionFromStart) { FROM_START } else { EXPIRED };
    let discarded = if canary::is(Canary::DeadLettersExpire) { HELD_TOO_LONG } else { DISCARDED };
    for (which, from) in [(expired, RESULT), (discarded, HELD)] {
        let left = limit.saturating_sub(swept.deleted);
        let expired: Vec<(i64, i64)> = {
            let mut statement = group.conn.prepare_cached(which)?;
            let rows = statement.query_map(params![before.as_millis(), left], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        swept.more |= expired.len() >= usize::try_from(left).unwrap_or(usize::MAX);
        for (id, lane) in expired {
            let lane = group.lane(lane)?;
            match cancel::release_key(group, &lane, MessageId::from_i64(id)) {
                Ok(()) => {}
                // Corrupt: refused, kept for a person.
                Err(Trouble::Item(_)) => continue,
                Err(trouble) => return Err(trouble),
            }
            for sql in DELETE {
                group.conn.prepare_cached(sql)?.execute([id])?;
            }
            group.conn.prepare_cached(from)?.execute([id])?;
            group.tally(&lane, Counted::Deleted, "");
            swept.deleted += 1;
        }
    }
    Ok(())
}
