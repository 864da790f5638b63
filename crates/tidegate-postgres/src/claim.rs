//! Takes due messages under a lease.
//!
//! Rows appear near the end of their lane and are taken from its start: what lies before the start is gone, but PostgreSQL
//! steps over it as long as anybody's old snapshot keeps it. So a process remembers where each lane began when it last
//! looked, and begins there. A row may still come to lie before that: its transaction was long, or was rolled back, or a
//! clock was set. A look from a little before finds most of these, several times a second, and one from the very start all,
//! as often as its cost allows; and where there is less than was asked for, the one or the other is made at once.
//!
//! Two claims at once never get one message: a row is locked when it is read, and a claim passes over what is locked. A
//! lock that is let go without a commit leaves the row as it was. A message that is claimed is gone from its lane in the
//! commit that gives the lease.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::EffectRow;
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::lifecycle::{self, Admission, Next};
use tidegate_core::message::{Failure, Message};
use tidegate_core::store::{ClaimRequest, Claimed, Lease};

use crate::cancel;
use crate::conn::Step;
use crate::copied;
use crate::group::{Group, Place};
use crate::names::Lane;
use crate::place::{self, Ending, Limits};
use crate::row::{self, JOURNALED, LIFE_COLUMNS, Life, RECONCILING, Tid};
use crate::shared::Shared;
use crate::trouble::{Trouble, verdict};
use crate::writes::{self, NewLease, Part, part};

/// The most messages one claim ends instead of leasing: a backlog that is too late must not hold up the group.
const MOST_ENDED: u32 = 1000;
/// How far before its remembered start a lane is looked at: transactions take their time to commit.
const SLACK: Duration = Duration::from_secs(2);
/// How often. What was claimed in that time is stepped over while an old snapshot keeps it, and in a second that may be ten
/// thousand rows.
const BACK_EVERY: Duration = Duration::from_millis(200);
/// A lane is looked at from its very start at least this often.
const FULL_EVERY: Duration = Duration::from_secs(1);
/// But looks from the start take no more of the time than one part in so many.
const FULL_SHARE: u32 = 50;

/// Where the claimable rows of a lane began, and what it cost to look for them from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hint {
    /// The first row that the last look found, or its time where it found none.
    from: Spot,
    /// When it was last looked at from a little before that.
    back_at: Duration,
    /// When it was last looked at from the start.
    full_at: Duration,
    /// What that cost.
    cost: Duration,
}

/// Where a row lies in its lane: rows are claimed in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    pos: Timestamp,
    due_at: Timestamp,
    id: i64,
}

impl Spot {
    /// Before everything that became claimable then.
    const fn at(pos: Timestamp) -> Self {
        Self { pos, due_at: Timestamp::EPOCH, id: i64::MIN }
    }
}

/// From where a lane is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// From its very start.
    Full,
    /// From a little before where it began.
    Back,
    /// From where it began.
    On,
}

/// Has the next claim of this process look at a lane from this place on.
pub(crate) fn look_back(shared: &Shared, lane: i64, to: Timestamp) {
    if let Some(hint) = shared.hints.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&lane) {
        hint.from = hint.from.min(Spot::at(to));
    }
}

/// A message at the head of a lane.
struct Head {
    tid: Tid,
    pos: Timestamp,
    id: MessageId,
    life: Life,
    body: Result<Message, StoreError>,
}

impl Head {
    fn spot(&self) -> Spot {
        Spot { pos: self.pos, due_at: self.life.due_at, id: self.id.as_i64() }
    }
}

/// What is asked of one lane.
#[derive(Clone)]
struct Ask {
    lane: Arc<Lane>,
    /// Which of the request's queues it is of.
    queue: usize,
    most: u32,
}

/// A queue of the request: its lanes, first priority first, and how far they were looked at.
struct Plan {
    free: u32,
    lanes: Vec<Arc<Lane>>,
    at: usize,
}

impl Plan {
    /// Lanes of the next priority.
    fn peers(&self) -> &[Arc<Lane>] {
        let rest = &self.lanes[self.at..];
        let Some(first) = rest.first() else { return rest };
        &rest[..rest.iter().take_while(|lane| lane.priority == first.priority).count()]
    }
}

/// Claims for one worker.
pub(crate) async fn claim(group: &mut Group, request: &ClaimRequest) -> Result<Claimed, Trouble> {
    let (repeated, mut plans) = look(group, request).await?;
    if !repeated.is_empty() && !canary::is(Canary::ClaimRepeatTakesMore) {
        return Ok(Claimed { leases: repeated, next_due: None, ended: 0 });
    }
    let served: Vec<i64> = plans.iter().flat_map(|plan| &plan.lanes).map(|lane| lane.id).collect();
    let mut claimed = Claimed::default();
    if served.is_empty() {
        return Ok(claimed);
    }
    let mut asked_for_next = false;
    loop {
        let mut asks = Vec::new();
        for (queue, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.free > 0) {
            asks.extend(plan.peers().iter().map(|lane| Ask { lane: Arc::clone(lane), queue, most: plan.free }));
        }
        if claimed.ended >= MOST_ENDED || (asks.is_empty() && asked_for_next) {
            break;
        }
        // What this round took must be gone before the next one looks: a transaction does not pass over its own locks.
        group.flush();
        let (heads, next_due) = heads(group, &asks, &served).await?;
        (claimed.next_due, asked_for_next) = (next_due, true);
        take(group, request, &mut plans, &asks, heads, &mut claimed).await?;
    }
    if claimed.ended >= MOST_ENDED {
        claimed.next_due = Some(group.now);
    }
    claimed.leases.sort_by_key(|lease| (lease.message.priority, lease.due_at, lease.message.id));
    if !claimed.leases.is_empty() {
        group.writes.claims.push((*request.nonce.as_bytes(), request.worker.as_str().to_owned()));
        failpoint::reach("claim.before_commit");
    }
    Ok(claimed)
}

/// What a claim reads first: whether this very call was made before, and the lanes that it may take from.
#[expect(clippy::vec_init_then_push, reason = "parts are put together as everywhere else")]
pub(crate) fn first(request: &ClaimRequest) -> Vec<Part<'_>> {
    // A repeat may come while its first try is under way: the server takes its time to notice a lost connection.
    const ALONE: &str = "-- claim: a repeat waits for the end of its first try
        select pg_advisory_xact_lock($1)";
    const KNOWN: &str = "-- claim: whether it is repeated under its nonce
        select 1 from tidegate.claimed where nonce = $1";
    // Another process may have paused a queue or made a lane, so both are read here and now.
    const LANES: &str = "-- claim: lanes of the queues that are not paused
        select l.id, l.queue, l.kind, l.version, l.priority, q.tenant, q.name
        from tidegate.queue q join tidegate.lane l on l.queue = q.id
        where q.tenant = $1 and q.name = any($2) and not q.paused";
    let nonce = *request.nonce.as_bytes();
    let lock = i64::from_le_bytes(std::array::from_fn(|at| nonce[at]));
    let queues: Vec<&str> = request.queues.iter().map(|slots| slots.queue.as_str()).collect();
    let mut parts = Vec::new();
    part!(parts, ALONE, lock);
    part!(parts, KNOWN, nonce);
    part!(parts, LANES, request.tenant.as_str(), queues);
    parts
}

/// The leases that this very call made before, if its reply was lost, and the lanes that it may take from.
async fn look(group: &mut Group, request: &ClaimRequest) -> Result<(Vec<Lease>, Vec<Plan>), Trouble> {
    const REPEATED: &str = concat!(
        "-- claim, repeated: a reply was lost, which is seldom, so no index is kept for it; as many rows as there are running
        -- handlers\n select ",
        row::lease_columns!(),
        " from tidegate.lease l where l.nonce = $1"
    );
    let nonce = *request.nonce.as_bytes();
    let parts = first(request);
    let params = writes::bound(&parts);
    let answers = group.first_of_all(&writes::steps(&parts, &params)).await?;
    let repeated = match answers.get(1) {
        Some(known) if !known.is_empty() => leases_of(group, &group.conn.query(REPEATED, &[&nonce]).await?).await?,
        Some(_) | None => Vec::new(),
    };
    let mut plans: Vec<Plan> =
        request.queues.iter().map(|slots| Plan { free: slots.slots, lanes: Vec::new(), at: 0 }).collect();
    for row in answers.get(2).into_iter().flatten() {
        let lane = group.names().note(row)?;
        if !request.kinds.iter().any(|(kind, newest)| *kind == lane.kind && lane.version <= *newest) {
            continue;
        }
        let of = request.queues.iter().position(|slots| slots.queue == lane.queue);
        if let Some(plan) = of.and_then(|of| plans.get_mut(of)) {
            plan.lanes.push(lane);
        }
    }
    for plan in &mut plans {
        plan.lanes.sort_by_key(|lane| (lane.priority, lane.id));
    }
    Ok((repeated, plans))
}

async fn leases_of(group: &Group, rows: &[tokio_postgres::Row]) -> Result<Vec<Lease>, Trouble> {
    let found = rows.iter().map(|row| row::lease(row, 0)).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<MessageId> = found.iter().map(|(id, _)| *id).collect();
    let mut bodies = place::bodies(group, &ids).await?;
    let flags = found.iter().map(|(id, lease)| (*id, lease.life.flags));
    let mut journals = place::journals_if(&group.conn, flags).await?;
    let mut leases = Vec::with_capacity(found.len());
    for (id, lease) in found {
        let Some(body) = bodies.remove(&id) else { continue };
        leases.push(Lease {
            message: place::in_force(body?, lease.life.expires_at),
            token: lease.token,
            until: lease.until,
            counters: lease.life.counters,
            reconciling: lease.life.has(RECONCILING),
            suspect: lease.life.has(row::SUSPECT),
            due_at: lease.life.due_at,
            journal: journals.remove(&id).unwrap_or_else(|| Ok(Vec::new()))?,
        });
    }
    leases.sort_by_key(|lease| (lease.message.priority, lease.due_at, lease.message.id));
    Ok(leases)
}

/// The heads of lanes, by lane, after what is due was made claimable; and when the next message of the served lanes
/// becomes due.
async fn heads(
    group: &mut Group,
    asks: &[Ask],
    served: &[i64],
) -> Result<(HashMap<i64, Vec<Head>>, Option<Timestamp>), Trouble> {
    let now = group.shared.monotonic();
    let froms: Vec<(Spot, Look)> = {
        let hints = group.shared.hints.lock().unwrap_or_else(PoisonError::into_inner);
        asks.iter().map(|ask| begin_at(hints.get(&ask.lane.id), now)).collect()
    };
    let mut next_due = None;
    let mut heads = read_heads(group, asks, &froms, Some((served, &mut next_due))).await?;
    // A look that came back short may have begun too late: from the start it is seldom enough made to cost little, and from
    // a little before at once, for what was dated before the last look and committed after it.
    let again: Vec<(usize, (Spot, Look))> = {
        let hints = group.shared.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let look = |at: usize| {
            let ask = &asks[at];
            let got = heads.get(&ask.lane.id).map_or(0, Vec::len);
            let short = got < usize::try_from(ask.most).unwrap_or(usize::MAX);
            if short { look_again(froms[at].1, hints.get(&ask.lane.id), now) } else { None }
        };
        (0..asks.len()).filter_map(|at| look(at).map(|from| (at, from))).collect()
    };
    if !again.is_empty() {
        let (asks, froms): (Vec<Ask>, Vec<(Spot, Look)>) =
            again.into_iter().map(|(at, from)| (asks[at].clone(), from)).unzip();
        // Its own locks it does not pass over: what the first look found is found again.
        heads.extend(read_heads(group, &asks, &froms, None).await?);
    }
    Ok((heads, next_due))
}

/// Where a lane is looked at once more, after a look that found less than was asked for.
fn look_again(before: Look, hint: Option<&Hint>, now: Duration) -> Option<(Spot, Look)> {
    match (before, hint) {
        (Look::Full, _) => None,
        (Look::On, Some(hint)) if now < hint.full_at + hint.cost * FULL_SHARE => {
            Some((Spot::at(hint.from.pos.before(SLACK)), Look::Back))
        }
        (Look::Back, Some(hint)) if now < hint.full_at + hint.cost * FULL_SHARE => None,
        (Look::On | Look::Back, _) => Some((Spot::at(Timestamp::EPOCH), Look::Full)),
    }
}

/// Where a look at a lane begins.
fn begin_at(hint: Option<&Hint>, now: Duration) -> (Spot, Look) {
    match hint {
        // Where no time passes, as in a test, it is never too soon.
        Some(hint) if now > hint.back_at && now < hint.back_at + BACK_EVERY => (hint.from, Look::On),
        Some(hint) if now < hint.full_at + FULL_EVERY.max(hint.cost * FULL_SHARE) => {
            (Spot::at(hint.from.pos.before(SLACK)), Look::Back)
        }
        Some(_) | None => (Spot::at(Timestamp::EPOCH), Look::Full),
    }
}

async fn read_heads(
    group: &mut Group,
    asks: &[Ask],
    froms: &[(Spot, Look)],
    first: Option<(&[i64], &mut Option<Timestamp>)>,
) -> Result<HashMap<i64, Vec<Head>>, Trouble> {
    const HEADS: &str = concat!(
        "-- claim: the heads of lanes, locked; what others have locked is passed over\n select r.tid, r.pos, ",
        row::life_columns!(),
        ", ",
        row::message_columns!(),
        " from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
            as u(lane, from_pos, from_due_at, from_id, most)
        cross join lateral (select ctid as tid, r.* from tidegate.ready r
            where r.lane = u.lane and (r.pos, r.due_at, r.id) >= (u.from_pos, u.from_due_at, u.from_id)
            order by r.pos, r.due_at, r.id limit u.most for update skip locked) r
        left join lateral (select * from tidegate.message m where m.id = r.id offset 0) m on true"
    );
    const NEXT: &str = "-- claim: when the next message of these lanes becomes due
        select min(s.due_at) from unnest($1::bigint[]) as u(lane) cross join lateral
            (select due_at from tidegate.sched where lane = u.lane order by due_at, id limit 1) s";
    let lanes: Vec<i64> = asks.iter().map(|ask| ask.lane.id).collect();
    let from_pos: Vec<i64> = froms.iter().map(|(from, _)| from.pos.as_millis()).collect();
    let from_due_at: Vec<i64> = froms.iter().map(|(from, _)| from.due_at.as_millis()).collect();
    let from_id: Vec<i64> = froms.iter().map(|(from, _)| from.id).collect();
    let most: Vec<i64> = asks.iter().map(|ask| i64::from(ask.most)).collect();
    let now = group.now.as_millis();
    let started = group.shared.monotonic();
    let looks: Step<'_> = (HEADS, &[&lanes, &from_pos, &from_due_at, &from_id, &most]);
    let rows = match first {
        None => group.conn.query(looks.0, looks.1).await?,
        Some((served, next_due)) => {
            let served = served.to_vec();
            let mut answers = group.conn.many(&[(PROMOTE, &[&lanes, &now, &most]), looks, (NEXT, &[&served])]).await?;
            if let Some(row) = answers.pop().and_then(|rows| rows.into_iter().next()) {
                *next_due = row::maybe_time(&row, 0, "sched")?;
            }
            let heads = answers.pop().unwrap_or_default();
            promoted(group, &answers.pop().unwrap_or_default()).await?;
            heads
        }
    };
    let cost = group.shared.monotonic().saturating_sub(started);
    let mut heads: HashMap<i64, Vec<Head>> = HashMap::new();
    for row in &rows {
        let (id, life) = row::life(row, 2, "ready")?;
        let Some(ask) = asks.iter().find(|ask| ask.lane.id == life.lane) else { continue };
        let body = verdict(row::message(row, 2 + LIFE_COLUMNS, &ask.lane))?;
        let (tid, pos) = (row::column(row, 0, "ready")?, row::time(row, 1, "ready")?);
        let head = Head { tid, pos, id, life, body };
        heads.entry(head.life.lane).or_default().push(head);
    }
    let mut hints = group.shared.hints.lock().unwrap_or_else(PoisonError::into_inner);
    for (ask, (_, look)) in asks.iter().zip(froms) {
        let seen = heads.get(&ask.lane.id).and_then(|heads| heads.first()).map(Head::spot);
        let known = hints.get(&ask.lane.id).copied();
        let hint = match (known, look) {
            (Some(known), Look::On) => Hint { from: seen.unwrap_or(known.from), ..known },
            (Some(known), Look::Back) => Hint { from: seen.unwrap_or(known.from), back_at: started, ..known },
            (_, _) => {
                let from = seen.unwrap_or(Spot::at(group.now));
                Hint { from, back_at: started, full_at: started, cost }
            }
        };
        hints.insert(ask.lane.id, hint);
    }
    Ok(heads)
}

/// Makes due messages of lanes claimable, so many of each.
pub(crate) const PROMOTE: &str = "-- promote: the same row, in the table of what is due, at the place of the moment at which it became due
    with due as materialized (
        select s.* from unnest($1::bigint[], $3::bigint[]) as u(lane, most) cross join lateral
            (select lane, due_at, id from tidegate.sched where lane = u.lane and due_at <= $2
                order by due_at, id limit u.most for update skip locked) s
    ), gone as (
        delete from tidegate.sched s using due d where s.lane = d.lane and s.due_at = d.due_at and s.id = d.id
        returning s.*
    ), here as (
        insert into tidegate.ready (lane, pos, due_at, id, expires_at, claims, attempt, crashes, generation, round, flags,
            last_nonce, last_digest)
        select lane, due_at, due_at, id, expires_at, claims, attempt, crashes, generation, round, flags, last_nonce,
            last_digest from gone
        returning lane, pos
    )
    select lane, count(*), min(pos) from here group by lane";

/// Counts what [`PROMOTE`] moved; answers how many. A look at heads that was sent along began where it was to begin before.
pub(crate) async fn promoted(group: &mut Group, rows: &[tokio_postgres::Row]) -> Result<u32, Trouble> {
    let mut all = 0;
    for row in rows {
        let lane = group.lane(row::column(row, 0, "ready")?).await?;
        let moved: i64 = row::column(row, 1, "ready")?;
        // Due for longer than claims look back, if nobody came by meanwhile.
        look_back(&group.shared, lane.id, row::time(row, 2, "ready")?);
        group.count(lane.queue_id, Place::Scheduled, -moved);
        group.count(lane.queue_id, Place::Ready, moved);
        group.announce(&lane.queue);
        all += u32::try_from(moved).unwrap_or(u32::MAX);
    }
    Ok(all)
}

/// Starts what was found, queue by queue, as far as there are slots.
async fn take(
    group: &mut Group,
    request: &ClaimRequest,
    plans: &mut [Plan],
    asks: &[Ask],
    mut heads: HashMap<i64, Vec<Head>>,
    claimed: &mut Claimed,
) -> Result<(), Trouble> {
    for (queue, plan) in plans.iter_mut().enumerate() {
        if !asks.iter().any(|ask| ask.queue == queue) {
            continue;
        }
        let peers = plan.peers().to_vec();
        let most = usize::try_from(plan.free).unwrap_or(usize::MAX);
        let mut merged: Vec<(Arc<Lane>, Head)> = Vec::new();
        let mut drained = true;
        for lane in &peers {
            let of_lane = heads.remove(&lane.id).unwrap_or_default();
            drained &= of_lane.len() < most;
            merged.extend(of_lane.into_iter().map(|head| (Arc::clone(lane), head)));
        }
        if peers.len() > 1 {
            merged.sort_by_key(|(_, head)| (head.pos, head.life.due_at, head.id));
        }
        // What is not taken keeps its place; its lock ends with the transaction.
        let left_over = merged.len() > most;
        merged.truncate(most);
        let flagged = merged.iter().map(|(_, head)| (head.id, head.life.flags));
        let mut journals = place::journals_if(&group.conn, flagged).await?;
        for (lane, head) in merged {
            let journal = journals.remove(&head.id).unwrap_or_else(|| Ok(Vec::new()));
            match start(group, request, &lane, head, journal).await? {
                Some(lease) => {
                    claimed.leases.push(lease);
                    plan.free -= 1;
                }
                None => claimed.ended += 1,
            }
        }
        if drained && !left_over {
            plan.at += peers.len();
        }
    }
    Ok(())
}

/// Leases one message, or ends it when it may not begin any more. It leaves its lane.
async fn start(
    group: &mut Group,
    request: &ClaimRequest,
    lane: &Lane,
    head: Head,
    journal: Result<Vec<EffectRow>, StoreError>,
) -> Result<Option<Lease>, Trouble> {
    let Head { tid, id, mut life, body, .. } = head;
    if !canary::is(Canary::CheckActStore) {
        group.writes.claimed_ready.push(tid);
    }
    group.count(lane.queue_id, Place::Ready, -1);
    let (body, journal) = match (body, journal) {
        (Ok(body), Ok(journal)) => (body, journal),
        (Err(error), _) | (_, Err(error)) => {
            set_aside(group, lane, id, &life, &error);
            return Ok(None);
        }
    };
    let limits = Limits::of(&body);
    let mut facts = place::facts(&life, limits, &journal, group.now);
    copied::count_in(&mut facts.journal, life.flags, group.now);
    let (counters, reconciling) = match lifecycle::admit(&facts, group.now) {
        Admission::Start { counters, reconciling } => (counters, reconciling),
        Admission::Dead(reason) => {
            let ending = Ending { next: Next::Dead(reason), result: None, failure: None };
            place::put(group, lane, id, &life, &ending, &journal);
            return Ok(None);
        }
        Admission::Cancelled => {
            cancel::called_off(group, lane, id, &life, &facts.journal, &journal).await?;
            cancel::note_history(group, id, &life, "an earlier request");
            return Ok(None);
        }
    };
    life.counters = counters;
    life.flags = (life.flags & row::LASTING) | if reconciling { RECONCILING } else { 0 };
    let token = LeaseToken { claims: counters.claims, nonce: request.nonce };
    let until = group.now.after(request.lease);
    let lease = Lease {
        token,
        until,
        counters,
        reconciling,
        suspect: life.has(row::SUSPECT),
        due_at: life.due_at,
        journal,
        message: place::in_force(body.clone(), life.expires_at),
    };
    group.writes.leases.push(NewLease {
        id,
        life,
        nonce: *token.nonce.as_bytes(),
        until,
        worker: None,
        enqueued_at: body.enqueued_at,
        flow: (body.flow != id).then_some(body.flow),
        first_due_at: (body.first_due_at != body.enqueued_at).then_some(body.first_due_at),
        deadline: limits.deadline,
        max_age_ms: row::millis(limits.max_age),
    });
    group.count(lane.queue_id, Place::Leased, 1);
    Ok(Some(lease))
}

/// A message whose stored rows cannot be read is neither served nor deleted, and does not block its lane. Where it had a
/// journal an effect may be open, so that only a person may end it.
fn set_aside(group: &mut Group, lane: &Lane, id: MessageId, life: &Life, error: &StoreError) {
    let next = lifecycle::unreadable(life.flags & JOURNALED != 0);
    let failure = Failure::new("corrupt", error.what());
    place::put(group, lane, id, life, &Ending { next, result: None, failure: Some(&failure) }, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_looked_at_from_its_start_at_first_each_second_and_no_more_than_its_cost_allows() {
        let second = Duration::from_secs(1);
        let from = Spot { pos: Timestamp::from_millis(60_000), due_at: Timestamp::from_millis(59_000), id: 7 };
        let hint = |cost| Hint { from, full_at: second, back_at: second, cost };
        assert_eq!(begin_at(None, Duration::ZERO), (Spot::at(Timestamp::EPOCH), Look::Full));
        let cheap = hint(Duration::from_millis(1));
        assert_eq!(begin_at(Some(&cheap), second * 11 / 10), (from, Look::On));
        let back = (Spot::at(Timestamp::from_millis(58_000)), Look::Back);
        assert_eq!(begin_at(Some(&cheap), second * 3 / 2), back);
        assert_eq!(begin_at(Some(&cheap), second), back, "no time has passed: whatever there is now may lie before");
        assert_eq!(begin_at(Some(&cheap), second * 2).1, Look::Full);
        let dear = hint(Duration::from_millis(100));
        assert_eq!(begin_at(Some(&dear), second * 3).1, Look::Back);
        assert_eq!(begin_at(Some(&dear), second * 6).1, Look::Full);
    }

    /// A message that was dated before the last look and committed after it is before the place where the lane began then.
    #[test]
    fn a_look_that_comes_back_short_is_made_again_from_a_little_before() {
        let second = Duration::from_secs(1);
        let from = Spot::at(Timestamp::from_millis(60_000));
        let hint = Hint { from, back_at: second, full_at: second, cost: Duration::from_millis(1) };
        let soon = second + Duration::from_millis(1);
        let back = (Spot::at(Timestamp::from_millis(58_000)), Look::Back);
        assert_eq!(look_again(Look::On, Some(&hint), soon), Some(back));
        assert_eq!(look_again(Look::Back, Some(&hint), soon), None);
        assert_eq!(look_again(Look::Full, Some(&hint), soon), None);
        for before in [Look::On, Look::Back] {
            assert_eq!(look_again(before, Some(&hint), second * 2).map(|from| from.1), Some(Look::Full));
        }
    }

    #[test]
    fn the_order_of_spots_is_that_of_claims() {
        let at =
            |pos, due_at, id| Spot { pos: Timestamp::from_millis(pos), due_at: Timestamp::from_millis(due_at), id };
        assert!([at(1, 9, 9), at(2, 1, 9), at(2, 2, 1), at(2, 2, 2)].is_sorted());
        assert!(Spot::at(Timestamp::from_millis(2)) < at(2, 0, 0));
    }
}
