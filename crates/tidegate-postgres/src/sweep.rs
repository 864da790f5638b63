//! Takes over lapsed leases, makes due messages claimable and deletes what is past its retention, in bounded steps.
//!
//! One process of the fleet does it for all: a duty is a row with the token of whoever has it, and a time until which it
//! keeps it without coming back. Nothing depends on there being only one: each row is locked before it is decided about,
//! and what another transaction has locked is passed over.
//!
//! A sweep and the worker that still holds the lease: the sweep locks the lease's row where `until` is over, in the same
//! statement. An extension that committed before is seen by it, the row does not qualify; one that comes later waits for
//! the sweep's commit and finds no lease. A settlement likewise: one of the two finds the row gone.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{IdempotencyKey, MessageId, WorkerId};
use tidegate_core::lifecycle::{self, Outcome};
use tidegate_core::store::{Counted, SweepRequest, Swept, TakenOver};

use crate::claim::{self, PROMOTE};
use crate::copied;
use crate::fold;
use crate::group::Group;
use crate::names::Lane;
use crate::place;
use crate::row::{self, LeaseRow};
use crate::settle;
use crate::trouble::{Trouble, verdict};
use crate::watch;

/// How long a process keeps a duty that it does not come back to, at least and at most: twice as long as it takes it to
/// come back. Leases of the dead wait for whoever has died with the duty, and then for the next one's look, two seconds in
/// all; a process that comes back later than it keeps the duty finds it with another one, which is as well.
const DUTY: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(900)];

/// How often claims are forgotten of which no lease is left, and how old they are at least.
const FORGETS_EVERY: Duration = Duration::from_secs(30);
/// The most of them at a time. Each time goes through all that stand, and steps over those that are gone while somebody's old
/// snapshot keeps them: few large steps cost less than many of a sweep's size.
const MOST_FORGOTTEN: u32 = 10_000;

/// How often connections are looked for that fell silent in the midst of a COPY.
const ENDS_SILENT_EVERY: Duration = Duration::from_secs(5);

/// One sweep.
pub(crate) async fn sweep(group: &mut Group, request: &SweepRequest) -> Result<Swept, Trouble> {
    let mut swept = Swept::default();
    let keeps = comes_back(group);
    // Everybody does, for it may be the duty that one of them holds.
    end_silent_copies(group).await?;
    // Whoever was asleep itself leaves the leases to the others: so that they can have it at once, it keeps no duty.
    if has_duty(group, "sweep", keeps.filter(|_| request.take_over)).await? {
        watch::tick(group).await?;
        if request.take_over {
            take_over(group, request, &mut swept).await?;
        }
        promote(group, request.limit, &mut swept).await?;
        swept.more |= fold::fold(group).await?;
        swept.more |= forget_claims(group).await?;
    }
    if let Some(retention) = request.retention
        && has_duty(group, "retention", keeps).await?
        && let Some(before) = watch::retained_from(group, retention).await?
    {
        delete(group, before, request.limit, &mut swept).await?;
    }
    group.items += swept.taken_over.len();
    failpoint::reach("sweep.before_commit");
    Ok(swept)
}

/// How long this process keeps its duties from now on.
fn comes_back(group: &Group) -> Option<Duration> {
    let now = group.shared.monotonic();
    let before = group.shared.swept.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
    Some(keeps(before.map(|before| now.saturating_sub(before))))
}

/// How long a process keeps its duties that came back after so long; one that comes for the first time may never again.
fn keeps(after: Option<Duration>) -> Duration {
    let [least, most] = DUTY;
    after.map_or(least, |after| (after * 2).clamp(least, most))
}

/// Whether this process does something for all of the fleet now; for how long it keeps the duty, if it does.
async fn has_duty(group: &Group, name: &'static str, keeps: Option<Duration>) -> Result<bool, Trouble> {
    const TAKE: &str =
        "-- sweep: a duty is kept by coming back, and taken when nobody did; whoever is at it is not waited for
        with free as materialized (
            select name from tidegate.duty where name = $1 and (token = $2 or until < $3 or until > $6)
            for update skip locked
        )
        update tidegate.duty d set holder = $5, token = $2, until = $4 from free where d.name = free.name
        returning 1";
    let until = keeps.map_or(Timestamp::EPOCH, |keeps| group.now.after(keeps));
    // A time far ahead was written by a clock that was set back since: it binds nobody.
    let never = group.now.after(DUTY[1] * 2);
    let (now, until, never) = (group.now.as_millis(), until.as_millis(), never.as_millis());
    let taken =
        group.conn.query(TAKE, &[&name, &group.shared.token, &now, &until, &group.shared.holder, &never]).await?;
    Ok(!taken.is_empty())
}

/// Has the server end connections of stores that have sent nothing for 15 s in the midst of a COPY. Such a session is neither idle nor
/// waiting for anybody but its client, so that no time limit of the server's ends it; what it has locked would be locked for as
/// long as its process is stopped.
async fn end_silent_copies(group: &Group) -> Result<(), Trouble> {
    const END: &str = "-- sweep: copies whose client fell silent
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = current_user and state = 'active' and wait_event = 'ClientRead'
            and state_change < clock_timestamp() - interval '15 seconds' and starts_with(query, 'copy tidegate.')";
    let now = group.shared.monotonic();
    {
        let mut looked = group.shared.silent_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|before| now.saturating_sub(before) < ENDS_SILENT_EVERY) {
            return Ok(());
        }
        *looked = Some(now);
    }
    group.conn.query(END, &[]).await?;
    Ok(())
}

/// Forgets claims of which no lease is left, now and then: whoever repeats one of them finds nothing to repeat. Says whether
/// there are more of them.
async fn forget_claims(group: &Group) -> Result<bool, Trouble> {
    const FORGET: &str =
        "-- sweep: a claim and its leases are there in one commit, so that one look at both tells what is over
        delete from tidegate.claimed
        where at < floor(extract(epoch from clock_timestamp()) * 1000)::bigint - $1
                -- asked here as well: one that is made again meanwhile is waited for, and then has another time
            and nonce in (
                select nonce from tidegate.claimed
                where at < floor(extract(epoch from clock_timestamp()) * 1000)::bigint - $1
                    and nonce not in (select nonce from tidegate.lease)
                limit $2)";
    let now = group.shared.monotonic();
    let cleared = || group.shared.claims_cleared.lock().unwrap_or_else(PoisonError::into_inner);
    if cleared().is_some_and(|before| now.saturating_sub(before) < FORGETS_EVERY) {
        return Ok(false);
    }
    let forgotten = group.conn.execute(FORGET, &[&row::millis(FORGETS_EVERY), &i64::from(MOST_FORGOTTEN)]).await?;
    let more = forgotten >= u64::from(MOST_FORGOTTEN);
    if !more {
        *cleared() = Some(now);
    }
    Ok(more)
}

async fn take_over(group: &mut Group, request: &SweepRequest, swept: &mut Swept) -> Result<(), Trouble> {
    let full = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let mut unreadable = Vec::new();
    loop {
        let found = lapsed(group, request.limit, &unreadable).await?;
        let (seen, taken_before) = (found.len(), swept.taken_over.len());
        let mut good = Vec::with_capacity(seen);
        for (id, lease) in found {
            match lease {
                Ok(lease) => good.push((id, lease)),
                Err(_) => unreadable.push(id.as_i64()),
            }
        }
        let flagged = good.iter().map(|(id, lease)| (*id, lease.life.flags));
        let mut journals = place::journals_if(&group.conn, flagged).await?;
        for (id, lease) in good {
            let journal = journals.remove(&id).unwrap_or_else(|| Ok(Vec::new()));
            let saved = group.mark();
            match verdict(take(group, id, &lease, journal, request.unit).await)? {
                Ok(taken) => {
                    failpoint::reach("sweep.after_take_over");
                    swept.taken_over.push(taken);
                }
                // A message that cannot be read stays as it is and must not keep the others from their workers.
                Err(_) => {
                    group.undo(saved);
                    unreadable.push(id.as_i64());
                }
            }
        }
        group.flush();
        let progressed = swept.taken_over.len() > taken_before;
        if progressed || seen < full {
            swept.more |= progressed && seen >= full;
            return Ok(());
        }
    }
}

/// A lapsed lease, or why it cannot be read.
type Lapsed = (MessageId, Result<LeaseRow, StoreError>);

/// Lapsed leases, the oldest first and locked, without those that cannot be read.
async fn lapsed(group: &Group, limit: u32, unreadable: &[i64]) -> Result<Vec<Lapsed>, Trouble> {
    const LAPSED: &str = concat!(
        "-- sweep: as many rows as there are running handlers, so no index is kept for it\n select ",
        row::lease_columns!(),
        " from tidegate.lease l where l.until < $1 and l.id <> all ($3)
        order by l.until, l.id limit $2 for update skip locked"
    );
    let rows = group.conn.query(LAPSED, &[&group.now.as_millis(), &i64::from(limit), &unreadable]).await?;
    rows.iter()
        .map(|row| {
            let id = row::message_id(row, 0, "lease")?;
            Ok((id, verdict(row::lease(row, 0))?.map(|(_, lease)| lease)))
        })
        .collect()
}

async fn take(
    group: &mut Group,
    id: MessageId,
    lease: &LeaseRow,
    journal: Result<Vec<EffectRow>, StoreError>,
    unit: f64,
) -> Result<TakenOver, Trouble> {
    let worker = WorkerId::new(&lease.worker)?;
    let rows = journal?;
    let lane = group.lane(lease.life.lane).await?;
    let mut facts = place::facts(&lease.life, lease.limits, &rows, group.now);
    copied::count_in(&mut facts.journal, lease.life.flags, group.now);
    let policy = group.policy(&lane.kind).await?;
    let transition = lifecycle::take_over(&facts, policy.as_ref(), group.now, unit);
    group.writes.gone_lease.push((id, lease.token));
    // No settlement of the old token may be taken for this one: what it would have said is not what became of it.
    settle::move_on(group, &lane, lease, id, &Outcome::LeaseExpired, &transition, &rows, None).await?;
    group.tally(&lane, Counted::LostLeases, "");
    Ok(TakenOver { id, state: transition.next.state(), worker, queue: lane.queue.clone() })
}

/// Makes due messages claimable, whoever serves them: depths and ages show them as waiting.
async fn promote(group: &mut Group, limit: u32, swept: &mut Swept) -> Result<(), Trouble> {
    const LANES: &str = "-- sweep: lanes are few; each is asked for its head
        select l.id from tidegate.lane l cross join lateral
            (select 1 from tidegate.sched s where s.lane = l.id and s.due_at <= $1 limit 1) due order by l.id";
    let now = group.now.as_millis();
    let rows = group.conn.query(LANES, &[&now]).await?;
    let lanes = rows.iter().map(|row| row::column(row, 0, "lane")).collect::<Result<Vec<i64>, _>>()?;
    let mut left = limit;
    for lane in lanes {
        if left == 0 {
            swept.more = true;
            return Ok(());
        }
        let rows = group.conn.query(PROMOTE, &[&vec![lane], &now, &vec![i64::from(left)]]).await?;
        let moved = claim::promoted(group, &rows).await?;
        swept.promoted += moved;
        left = left.saturating_sub(moved);
    }
    // Full to the last place: there may be more of the last lane.
    swept.more |= left == 0 && limit > 0;
    Ok(())
}

/// Deletes ended messages with everything that hangs on them, oldest settlement first.
async fn delete(group: &mut Group, before: Timestamp, limit: u32, swept: &mut Swept) -> Result<(), Trouble> {
    const EXPIRED: &str = "-- sweep: retention counts from the settlement
        select e.id, e.lane, m.key from
            (select id, lane, at from tidegate.result where at <= $1 and id <> all ($3) order by at limit $2
                for update skip locked) e
        left join tidegate.message m on m.id = e.id order by e.at, e.id";
    const DISCARDED: &str = "-- sweep: a dead letter that was discarded; its retention counts from there
        select e.id, e.lane, m.key from
            (select id, lane, discarded_at from tidegate.held where discarded_at <= $1 and id <> all ($3)
                order by discarded_at limit $2 for update skip locked) e
        left join tidegate.message m on m.id = e.id order by e.discarded_at, e.id";
    const FROM_START: &str = "-- sweep, broken: from when it came
        select e.id, e.lane, m.key from tidegate.result e join tidegate.message m on m.id = e.id
        where m.enqueued_at <= $1 and e.id <> all ($3) limit $2";
    const HELD_TOO_LONG: &str = "-- sweep, broken: nobody looked at it in time
        select e.id, e.lane, m.key from tidegate.held e join tidegate.message m on m.id = e.id
        where e.at <= $1 and e.id <> all ($3) limit $2";
    let expired = if canary::is(Canary::RetentionFromStart) { FROM_START } else { EXPIRED };
    let discarded = if canary::is(Canary::DeadLettersExpire) { HELD_TOO_LONG } else { DISCARDED };
    for (which, held) in [(expired, false), (discarded, true)] {
        let mut unreadable: Vec<i64> = Vec::new();
        loop {
            let left = limit.saturating_sub(swept.deleted);
            let full = usize::try_from(left).unwrap_or(usize::MAX);
            let rows = group.conn.query(which, &[&before.as_millis(), &i64::from(left), &unreadable]).await?;
            let mut gone = Vec::with_capacity(rows.len());
            let lanes = rows.iter().map(|row| row::column(row, 1, "result")).collect::<Result<Vec<i64>, _>>()?;
            let lanes = group.lanes(&lanes).await?;
            for row in &rows {
                let id = row::message_id(row, 0, "result")?;
                // Corrupt: refused, kept for a person, and not in the way of the next ones.
                match verdict(expired_of(row, &lanes))? {
                    Ok((lane, hash)) => gone.push((id, lane, hash)),
                    Err(_) => unreadable.push(id.as_i64()),
                }
            }
            delete_all(group, &gone, held).await?;
            swept.deleted += u32::try_from(gone.len()).unwrap_or(u32::MAX);
            if left == 0 || rows.len() < full || !gone.is_empty() {
                swept.more |= rows.len() >= full;
                break;
            }
        }
    }
    Ok(())
}

/// The lane and the key of a message that is deleted.
fn expired_of(row: &tokio_postgres::Row, lanes: &HashMap<i64, Arc<Lane>>) -> Result<(Arc<Lane>, [u8; 16]), Trouble> {
    let lane: i64 = row::column(row, 1, "result")?;
    let corrupt = || StoreError::corrupt(&format!("lane, row {lane}"), "no such lane");
    let key: &str = row::column(row, 2, "message")?;
    Ok((Arc::clone(lanes.get(&lane).ok_or_else(corrupt)?), IdempotencyKey::new(key)?.hash()))
}

async fn delete_all(group: &mut Group, gone: &[(MessageId, Arc<Lane>, [u8; 16])], held: bool) -> Result<(), Trouble> {
    const EFFECT: &str = "-- sweep: journals of what is deleted
        delete from tidegate.effect where message = any($1)";
    const EVIDENCE: &str = "-- sweep: evidence of what is deleted
        delete from tidegate.evidence where message = any($1)";
    const HISTORY: &str = "-- sweep: histories of what is deleted
        delete from tidegate.history where message = any($1)";
    const REDRIVEN: &str = "-- sweep: what operations did to what is deleted
        delete from tidegate.redriven where message = any($1)";
    const MESSAGE: &str = "-- sweep: bodies of what is deleted
        delete from tidegate.message where id = any($1)";
    if gone.is_empty() {
        return Ok(());
    }
    for (id, lane, hash) in gone {
        group.writes.gone_keys.push((lane.queue_id, *hash, *id));
        if held {
            group.writes.gone_held.push(*id);
        } else {
            group.writes.gone_result.push(*id);
        }
        group.tally(lane, Counted::Deleted, "");
    }
    // In the order in which keys are taken, so that nobody waits in a circle.
    group.writes.gone_keys.sort_unstable_by_key(|(queue, hash, _)| (*queue, *hash));
    group.flush();
    let ids: Vec<i64> = gone.iter().map(|(id, ..)| id.as_i64()).collect();
    group
        .conn
        .many(&[(EFFECT, &[&ids]), (EVIDENCE, &[&ids]), (HISTORY, &[&ids]), (REDRIVEN, &[&ids]), (MESSAGE, &[&ids])])
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_is_kept_for_twice_as_long_as_it_takes_to_come_back_and_never_for_long() {
        let ms = Duration::from_millis;
        for (after, expected) in [
            (None, ms(250)),
            (Some(ms(5)), ms(250)),
            (Some(ms(200)), ms(400)),
            (Some(ms(1000)), ms(900)),
            // Asleep for an hour, it is no more likely to come back than it was.
            (Some(ms(3_600_000)), ms(900)),
        ] {
            assert_eq!(keeps(after), expected, "{after:?}");
        }
        // With the longest pause between two sweeps that the library takes by itself.
        assert!(DUTY[1] + Duration::from_secs(1) < Duration::from_secs(2));
    }
}
