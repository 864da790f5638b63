//! Takes due messages under a lease. Its cost does not depend on how many wait: it reads the heads of the lanes it serves.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId, WorkerId};
use tidegate_core::lifecycle::{self, Admission, Counters, Next};
use tidegate_core::message::{Failure, Message};
use tidegate_core::store::{ClaimRequest, Claimed, Lease};

use crate::cancel;
use crate::copied;
use crate::group::{self, Group, Lane, Place};
use crate::many::{Cell, Many, unmade};
use crate::place::{self, Ending, Limits};
use crate::room::RoomFor;
use crate::row::{self, JOURNALED, LeaseRow, Life, RECONCILING};
use crate::seal;
use crate::trouble::Trouble;

/// The most messages one claim ends instead of leasing: a backlog that is too late must not hold up the group.
const MOST_ENDED: u32 = 1000;

/// A message at the head of a lane.
struct Head {
    lane: usize,
    id: MessageId,
    life: Life,
}

/// The heads of some lanes.
#[derive(Default)]
struct Heads {
    read: Vec<Head>,
    /// A row that cannot be read stays where it is, for a person. Nobody can say which message it is about.
    unreadable: Option<StoreError>,
}

/// Claims for one worker.
pub(crate) fn claim(group: &mut Group<'_>, request: &ClaimRequest) -> Result<Claimed, Trouble> {
    copied::begin(group)?;
    let repeated = leases_of(group, request)?;
    if !repeated.is_empty() && !canary::is(Canary::ClaimRepeatTakesMore) {
        return Ok(Claimed { leases: repeated, next_due: None, ended: 0 });
    }
    if group.room_for == RoomFor::Settling {
        // A run that could not be settled is not begun. The worker asks again when it polls.
        return Ok(Claimed::default());
    }
    let mut claimed = Claimed::default();
    let mut unreadable = None;
    for slots in &request.queues {
        let Some(queue_id) = group.known_queue(&request.tenant, &slots.queue)? else { continue };
        // Another process may have paused it, so it is read here and now.
        let looked = group::queue_row(group.conn, queue_id)
            .and_then(|queue| if queue.paused { Ok(Vec::new()) } else { served(group, request, queue_id) });
        let lanes = match looked {
            Ok(lanes) if lanes.is_empty() => continue,
            Ok(lanes) => lanes,
            // As with rows: the other queues go on.
            Err(Trouble::Item(error)) => {
                unreadable = unreadable.or(Some(error));
                continue;
            }
            Err(trouble) => return Err(trouble),
        };
        let mut free = slots.slots;
        while free > 0 && claimed.ended < MOST_ENDED {
            promote_heads(group, &lanes, free)?;
            let heads = heads(group, &lanes, free)?;
            let Heads { read: heads, unreadable: found } = heads;
            let by_range = found.is_none();
            unreadable = unreadable.or(found);
            let drained = heads.len() < usize::try_from(free).unwrap_or(usize::MAX);
            if canary::is(Canary::CheckActStore) {
                // It only looks.
            } else if by_range {
                remove_heads(group, &lanes, &heads)?;
            } else {
                remove_each(group, &lanes, &heads)?;
            }
            if !heads.is_empty() {
                failpoint::reach("claim.after_removal");
            }
            let mut firsts = Vec::with_capacity(heads.len());
            for head in heads {
                let begun = start(group, request, &mut firsts, &lanes[head.lane], head.id, head.life);
                match begun.map_err(after_removal)? {
                    Some(lease) => {
                        claimed.leases.push(lease);
                        free -= 1;
                    }
                    None => claimed.ended += 1,
                }
            }
            put_firsts(group, request, &firsts)?;
            if drained {
                break;
            }
        }
        let next = if claimed.ended < MOST_ENDED { next_due(group, &lanes)? } else { Some(group.now) };
        claimed.next_due = [claimed.next_due, next].into_iter().flatten().min();
    }
    // Heard of when there is nothing better to do: what can be read comes first.
    if let Some(error) = unreadable.filter(|_| claimed.leases.is_empty() && claimed.ended == 0) {
        return Err(error.into());
    }
    group.items += claimed.leases.len();
    claimed.leases.sort_by_key(|lease| (lease.message.priority, lease.due_at, lease.message.id));
    if !claimed.leases.is_empty() {
        failpoint::reach("claim.before_commit");
    }
    Ok(claimed)
}

/// The heads have left their lanes: what goes wrong from here on undoes the whole group, or they would be nowhere.
fn after_removal(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Item(error) => Trouble::undo(error.what().to_owned()),
        group @ Trouble::Group(_) => group,
    }
}

/// The leases that this very call made before, if its reply was lost.
fn leases_of(group: &mut Group<'_>, request: &ClaimRequest) -> Result<Vec<Lease>, Trouble> {
    const REPEATED: &str = "-- claim: repeated under its nonce
        select * from tide_lease where nonce = ?1";
    let mut found: Vec<(MessageId, LeaseRow)> = Vec::new();
    {
        let mut statement = group.sql(REPEATED)?;
        let mut rows = statement.query([request.nonce.as_bytes()])?;
        while let Some(row) = rows.next()? {
            found.push((MessageId::from_i64(row::column(row, "id", "tide_lease")?), row::lease(row)?));
        }
    }
    let mut leases = Vec::with_capacity(found.len());
    for (id, lease) in found {
        let lane = group.lane(lease.life.lane)?;
        leases.push(Lease {
            message: place::in_force(place::body(group.conn, id, &lane)?, lease.life.expires_at),
            token: lease.token,
            until: lease.until,
            counters: lease.life.counters,
            reconciling: lease.life.has(RECONCILING),
            suspect: lease.life.has(row::SUSPECT),
            due_at: lease.life.due_at,
            journal: place::journal_if(group.conn, id, lease.life.flags)?,
        });
    }
    leases.sort_by_key(|lease| (lease.message.priority, lease.due_at, lease.message.id));
    Ok(leases)
}

/// The lanes of a queue that the worker has handlers for, first priority first.
fn served(group: &mut Group<'_>, request: &ClaimRequest, queue_id: i64) -> Result<Vec<Arc<Lane>>, Trouble> {
    let mut lanes = group.lanes_of(queue_id)?;
    lanes.retain(|lane| request.kinds.iter().any(|(kind, newest)| *kind == lane.kind && lane.version <= *newest));
    lanes.sort_by_key(|lane| (lane.priority, lane.id));
    Ok(lanes)
}

/// Makes due rows of these lanes claimable, as many as could be claimed.
fn promote_heads(group: &mut Group<'_>, lanes: &[Arc<Lane>], most: u32) -> Result<(), Trouble> {
    for lane in lanes {
        promote(group, lane, most)?;
    }
    Ok(())
}

/// Moves due rows of a lane from `tide_sched` to `tide_ready`; answers how many.
pub(crate) fn promote(group: &mut Group<'_>, lane: &Lane, most: u32) -> Result<u32, Trouble> {
    const LAST_DUE: &str = "-- promote: where the due rows of a lane end
        select due_at, id from (select due_at, id from tide_sched where lane = ?1 and due_at <= ?2
        order by due_at, id limit ?3) order by due_at desc, id desc limit 1";
    const COPY: &str = "-- promote: the same row, in the table of what is due
        insert into tide_ready select * from tide_sched where lane = ?1 and (due_at, id) <= (?2, ?3)";
    const DELETE: &str = "-- promote: and gone from where it was
        delete from tide_sched where lane = ?1 and (due_at, id) <= (?2, ?3)";
    let last: Option<(i64, i64)> = group
        .conn
        .prepare_cached(LAST_DUE)?
        .query_row(params![lane.id, group.now.as_millis(), most], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((due_at, id)) = last else { return Ok(0) };
    group.conn.prepare_cached(COPY)?.execute([lane.id, due_at, id])?;
    let moved = group.conn.prepare_cached(DELETE)?.execute([lane.id, due_at, id])?;
    let moved = u32::try_from(moved).unwrap_or(u32::MAX);
    group.count(lane.queue_id, Place::Scheduled, -i64::from(moved));
    group.count(lane.queue_id, Place::Ready, i64::from(moved));
    group.announce(&lane.queue);
    Ok(moved)
}

/// The heads of the lanes merged by (priority, due_at, id). `lanes` come in the order of their priorities.
fn heads(group: &Group<'_>, lanes: &[Arc<Lane>], most: u32) -> Result<Heads, Trouble> {
    const HEADS: &str = "-- claim: the head of one lane
        select * from tide_ready where lane = ?1 order by due_at, id";
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut heads = Heads::default();
    let mut at = 0;
    while at < lanes.len() && heads.read.len() < most {
        let priority = lanes[at].priority;
        let peers = lanes[at..].iter().take_while(|lane| lane.priority == priority).count();
        let mut of_this: Vec<Head> = Vec::new();
        for (lane, of) in lanes.iter().enumerate().skip(at).take(peers) {
            let mut statement = group.sql(HEADS)?;
            let left = most - heads.read.len();
            // Without a limit of its own: what cannot be read is stepped over, and takes nobody's place.
            let mut rows = statement.query([of.id])?;
            let mut good = 0;
            while good < left
                && let Some(row) = rows.next()?
            {
                match row::place_in_line(row, "tide_ready") {
                    Ok((id, life)) => {
                        of_this.push(Head { lane, id, life });
                        good += 1;
                    }
                    Err(Trouble::Item(error)) => heads.unreadable = heads.unreadable.take().or(Some(error)),
                    Err(trouble) => return Err(trouble),
                }
            }
        }
        if peers > 1 {
            of_this.sort_by_key(|head| (head.life.due_at, head.id));
        }
        of_this.truncate(most - heads.read.len());
        heads.read.append(&mut of_this);
        at += peers;
    }
    Ok(heads)
}

/// Takes claimed heads out of their lanes: what is taken of a lane is always all of its rows up to the last one taken.
fn remove_heads(group: &mut Group<'_>, lanes: &[Arc<Lane>], heads: &[Head]) -> Result<(), Trouble> {
    const REMOVE: &str = "-- claim: leaves its lane
        delete from tide_ready where lane = ?1 and (due_at, id) <= (?2, ?3)";
    for (index, lane) in lanes.iter().enumerate() {
        let of_lane = || heads.iter().filter(|head| head.lane == index);
        let Some(last) = of_lane().next_back() else { continue };
        let taken = i64::try_from(of_lane().count()).unwrap_or(i64::MAX);
        let removed = group.sql(REMOVE)?.execute([lane.id, last.life.due_at.as_millis(), last.id.as_i64()])?;
        if i64::try_from(removed) != Ok(taken) {
            let what = format!("{removed} rows left lane {} where {taken} were read", lane.id);
            return Err(Trouble::Group(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                Some(what),
            )));
        }
        group.count(lane.queue_id, Place::Ready, -taken);
    }
    Ok(())
}

/// The same one by one, where a row that cannot be read stands between them.
fn remove_each(group: &mut Group<'_>, lanes: &[Arc<Lane>], heads: &[Head]) -> Result<(), Trouble> {
    const REMOVE: &str = "-- claim: leaves its lane, and what stands beside it stays
        delete from tide_ready where lane = ?1 and due_at = ?2 and id = ?3";
    for head in heads {
        let lane = &lanes[head.lane];
        let removed = group.sql(REMOVE)?.execute([lane.id, head.life.due_at.as_millis(), head.id.as_i64()])?;
        if removed != 1 {
            return Err(Trouble::Group(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                Some(format!("a row of lane {} was read and is not there", lane.id)),
            )));
        }
        group.count(lane.queue_id, Place::Ready, -1);
    }
    Ok(())
}

/// Leases one message, or ends it when it may not begin any more. It has left its lane.
fn start(
    group: &mut Group<'_>,
    request: &ClaimRequest,
    firsts: &mut Vec<First>,
    lane: &Lane,
    id: MessageId,
    mut life: Life,
) -> Result<Option<Lease>, Trouble> {
    let body = place::body_by(&mut *group.sql(place::BODY)?, id, lane);
    let read = body.and_then(|body| Ok((body, place::journal_if(group.conn, id, life.flags)?)));
    let (body, journal) = match read {
        Ok(read) => read,
        Err(Trouble::Item(error)) if error.kind() == StoreErrorKind::Corrupt => {
            set_aside(group, lane, id, &life, &error)?;
            return Ok(None);
        }
        Err(trouble) => return Err(trouble),
    };
    let limits = Limits::of(&body);
    let mut facts = place::facts(&life, limits, &journal, group.now);
    copied::count_in(&mut facts.journal, life.flags, group.now);
    let (counters, reconciling) = match lifecycle::admit(&facts, group.now) {
        Admission::Start { counters, reconciling } => (counters, reconciling),
        Admission::Dead(reason) => {
            place::put(group, lane, id, &life, &Ending { next: Next::Dead(reason), result: None, failure: None })?;
            return Ok(None);
        }
        Admission::Cancelled => {
            cancel::called_off(group, lane, id, &life, &facts.journal)?;
            cancel::note_history(group, id, &life, "an earlier request")?;
            return Ok(None);
        }
    };
    life.counters = counters;
    life.flags = (life.flags & row::LASTING) | if reconciling { RECONCILING } else { 0 };
    let token = LeaseToken { claims: counters.claims, nonce: request.nonce };
    let until = group.now.after(request.lease);
    if is_first(&life, &body, limits) && !canary::is(Canary::CheckActStore) {
        let enqueued_at = body.enqueued_at;
        firsts.push(First { id, lane: life.lane, due_at: life.due_at, enqueued_at, limits });
    } else {
        put_lease(group, &life, &body, limits, token, until, &request.worker)?;
    }
    group.count(lane.queue_id, Place::Leased, 1);
    Ok(Some(Lease {
        token,
        until,
        counters,
        reconciling,
        suspect: life.has(row::SUSPECT),
        due_at: life.due_at,
        journal,
        message: place::in_force(body, life.expires_at),
    }))
}

/// A first run of what waits for nothing and follows from nothing, with a lease that is not written yet.
struct First {
    id: MessageId,
    lane: i64,
    due_at: Timestamp,
    enqueued_at: Timestamp,
    limits: Limits,
}

/// Whether half of the columns of its lease are what they nearly always are.
fn is_first(life: &Life, body: &Message, limits: Limits) -> bool {
    life.counters == Counters { claims: 1, attempt: 1, ..Counters::default() }
        && (life.flags, life.expires_at, limits.deadline) == (0, None, None)
        && (body.flow, body.first_due_at) == (body.id, body.enqueued_at)
}

/// Writes the leases of first runs, together for each lane.
fn put_firsts(group: &mut Group<'_>, request: &ClaimRequest, firsts: &[First]) -> Result<(), Trouble> {
    static FIRSTS: Many<4, 4> = Many {
        sealed: seal::LEASE,
        sql: "-- claim: the attempt is counted and the token given before the handler starts; for first runs
            insert or fail into tide_lease
            values (?5, ?1, ?6, 1, 1, 0, 0, 0, 0, null, ?2, ?3, ?4, ?7, null, null, null, ?8, ?9)",
        shared: [1, 10, 11, 12],
        each: [0, 2, 13, 17],
        literal: &[
            (3, Cell::Int(1)),
            (4, Cell::Int(1)),
            (5, Cell::Int(0)),
            (6, Cell::Int(0)),
            (7, Cell::Int(0)),
            (8, Cell::Int(0)),
            (9, Cell::Null),
            (14, Cell::Null),
            (15, Cell::Null),
            (16, Cell::Null),
        ],
        made: unmade(),
    };
    let until = group.now.after(request.lease);
    let worker: Arc<str> = request.worker.as_str().into();
    let counters = Counters { claims: 1, attempt: 1, ..Counters::default() };
    for of_lane in firsts.chunk_by(|one, next| one.lane == next.lane) {
        let lane = of_lane[0].lane;
        let shared = [
            Cell::Int(lane),
            Cell::Blob(request.nonce.as_bytes()),
            Cell::Int(until.as_millis()),
            Cell::Text(request.worker.as_str()),
        ];
        let row = |first: &First| {
            [
                Cell::Int(first.id.as_i64()),
                Cell::Int(first.due_at.as_millis()),
                Cell::Int(first.enqueued_at.as_millis()),
                Cell::Int(row::millis(first.limits.max_age)),
            ]
        };
        let rows: Vec<_> = of_lane.iter().map(row).collect();
        FIRSTS.insert(group, shared, &rows)?;
        for first in of_lane {
            let life = Life { counters, ..Life::unbegun(lane, first.due_at) };
            let lease = LeaseRow {
                life,
                token: LeaseToken { claims: 1, nonce: request.nonce },
                until,
                worker: Arc::clone(&worker),
                enqueued_at: first.enqueued_at,
                flow: None,
                limits: first.limits,
            };
            group.remember_lease(first.id, lease);
        }
    }
    Ok(())
}

fn put_lease(
    group: &mut Group<'_>,
    life: &Life,
    body: &Message,
    limits: Limits,
    token: LeaseToken,
    until: Timestamp,
    worker: &WorkerId,
) -> Result<(), Trouble> {
    const LEASE: &str = "-- claim: the attempt is counted and the token given before the handler starts
        insert into tide_lease values
        (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
    const LEASE_AS_WELL: &str = "-- claim, broken: whoever else runs it
        insert or replace into tide_lease values
        (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
    let sql = if canary::is(Canary::CheckActStore) { LEASE_AS_WELL } else { LEASE };
    let lease = params![
        body.id.as_i64(),
        life.lane,
        life.due_at.as_millis(),
        life.counters.claims,
        life.counters.attempt,
        life.counters.crashes,
        life.counters.generation,
        life.counters.round,
        life.flags,
        life.expires_at.map(Timestamp::as_millis),
        token.nonce.as_bytes(),
        until.as_millis(),
        worker.as_str(),
        body.enqueued_at.as_millis(),
        (body.flow != body.id).then(|| body.flow.as_i64()),
        (body.first_due_at != body.enqueued_at).then(|| body.first_due_at.as_millis()),
        limits.deadline.map(Timestamp::as_millis),
        row::millis(limits.max_age),
    ];
    seal::execute(&mut group.sql(sql)?, seal::LEASE, lease)?;
    let lease = LeaseRow {
        life: Life { last: None, ..life.clone() },
        token,
        until,
        worker: worker.as_str().into(),
        enqueued_at: body.enqueued_at,
        flow: (body.flow != body.id).then_some(body.flow),
        limits,
    };
    group.remember_lease(body.id, lease);
    Ok(())
}

/// A message whose stored rows cannot be read is neither served nor deleted, and does not block its lane. Where it had a
/// journal an effect may be open, so that only a person may end it.
fn set_aside(
    group: &mut Group<'_>,
    lane: &Lane,
    id: MessageId,
    life: &Life,
    error: &StoreError,
) -> Result<(), Trouble> {
    let next = lifecycle::unreadable(life.flags & JOURNALED != 0);
    let failure = Failure::new("corrupt", error.what());
    place::put(group, lane, id, life, &Ending { next, result: None, failure: Some(&failure) })
}

/// When the next message of these lanes becomes due.
fn next_due(group: &Group<'_>, lanes: &[Arc<Lane>]) -> Result<Option<Timestamp>, Trouble> {
    const NEXT: &str = "-- claim: when a lane's next message becomes due
        select due_at from tide_sched where lane = ?1 order by due_at, id limit 1";
    let mut earliest: Option<Timestamp> = None;
    for lane in lanes {
        let due: Option<i64> = group.sql(NEXT)?.query_row([lane.id], |row| row.get(0)).optional()?;
        earliest = [earliest, due.map(Timestamp::from_millis)].into_iter().flatten().min();
    }
    Ok(earliest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_lane_that_is_merged_gives_a_prefix_of_its_rows() {
        // `remove_heads` deletes by range; that is right only while a truncated merge keeps each lane's first rows.
        let mut merged = [(0, 3), (1, 1), (0, 1), (1, 4), (0, 2)];
        merged.sort_by_key(|(_, due)| *due);
        for lane in [0, 1] {
            let dues: Vec<i32> = merged.iter().filter(|(of, _)| *of == lane).map(|(_, due)| *due).collect();
            assert!(dues.is_sorted());
        }
    }
}
