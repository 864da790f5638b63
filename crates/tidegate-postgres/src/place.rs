//! Where a message is, physically: the map from states to tables, and the moves between them.
//!
//! `ready` = `ready` ∪ `sched` · `leased` = `lease` · `completed`, `failed`, `cancelled` = `result` · `parked`,
//! `dead` = `held`. Every id is in exactly one, as any one statement sees it. [`lifecycle`](tidegate_core::lifecycle)
//! chose the state; this file only carries it out.
//!
//! Two statements may see a message in two places: in a group it is locked where it was seen, and looked for again when it
//! had left by then. A reader looks with one snapshot for all its statements.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::StoreError;
use tidegate_core::group::{self, GroupId};
use tidegate_core::id::{EffectName, MessageId};
use tidegate_core::lifecycle::{Counters, Facts, Next, State};
use tidegate_core::message::{Answer, Failure, Message};
use tidegate_core::store::{self, Counted};

use crate::claim;
use crate::conn::{Conn, Step};
use crate::group::{Group, Place};
use crate::names::Lane;
use crate::row::{self, JOURNALED, LastSettlement, LeaseRow, Life};
use crate::trouble::Trouble;
use crate::writes::{NewHeld, NewResult};

/// A message wherever it is.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// In `ready` (false) or `sched` (true).
    Ready { life: Life, scheduled: bool },
    /// In `lease`.
    Leased(Box<LeaseRow>),
    /// In `result` or `held`.
    Ended(Box<Ended>),
}

/// A row of `result` or `held`.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) state: State,
    pub(crate) at: Timestamp,
    pub(crate) lane: i64,
    pub(crate) counters: Counters,
    pub(crate) flags: i64,
    /// Why it is dead or parked.
    pub(crate) reason: Option<String>,
    pub(crate) failure: Option<Failure>,
    /// The result of a completed message.
    pub(crate) body: Option<String>,
    pub(crate) last: Option<LastSettlement>,
    /// As in [`Life::expires_at`].
    pub(crate) expires_at: Option<Timestamp>,
    /// Dead, and given up for good at this time: it waits for nobody.
    pub(crate) discarded_at: Option<Timestamp>,
}

impl Ended {
    pub(crate) fn answer(&self) -> Option<Answer> {
        match self.state {
            // That there was one is known; what it was is not.
            State::Completed | State::Failed if self.flags & row::ANSWER_ERASED != 0 => None,
            State::Completed => Some(Answer::Completed(self.body.clone().unwrap_or_default().into())),
            State::Failed => self.failure.clone().map(Answer::Failed),
            State::Ready | State::Leased | State::Dead | State::Cancelled | State::Parked => None,
        }
    }
}

impl Found {
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Ready { .. } => State::Ready,
            Self::Leased(_) => State::Leased,
            Self::Ended(ended) => ended.state,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        match self {
            Self::Ready { life, .. } => life.counters,
            Self::Leased(lease) => lease.life.counters,
            Self::Ended(ended) => ended.counters,
        }
    }

    pub(crate) fn lane(&self) -> i64 {
        match self {
            Self::Ready { life, .. } => life.lane,
            Self::Leased(lease) => lease.life.lane,
            Self::Ended(ended) => ended.lane,
        }
    }

    pub(crate) fn flags(&self) -> i64 {
        match self {
            Self::Ready { life, .. } => life.flags,
            Self::Leased(lease) => lease.life.flags,
            Self::Ended(ended) => ended.flags,
        }
    }

    pub(crate) fn last(&self) -> Option<LastSettlement> {
        match self {
            Self::Ready { life, .. } => life.last,
            Self::Leased(_) => None,
            Self::Ended(ended) => ended.last,
        }
    }

    /// The end of its time, if an operator gave it a new span.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        match self {
            Self::Ready { life, .. } => life.expires_at,
            Self::Leased(lease) => lease.life.expires_at,
            Self::Ended(ended) => ended.expires_at,
        }
    }

    pub(crate) fn due_at(&self) -> Option<Timestamp> {
        match self {
            Self::Ready { life, .. } => Some(life.due_at),
            Self::Leased(_) | Self::Ended(_) => None,
        }
    }
}

/// Whether rows that are found stay as they are until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// They do; the statements run in a group, each with a snapshot of its own.
    Rows,
    /// Nothing is locked; all statements of the transaction share one snapshot, or the answer may be late.
    Nothing,
}

/// How often a message that moves is looked for again.
const MOST_LOOKS: u32 = 20;

/// Finds a message in the table it is in, and locks it there; `None` when there is no such message.
pub(crate) async fn find(conn: &Conn, id: MessageId, lock: Lock) -> Result<Option<Found>, Trouble> {
    Ok(find_all(conn, &[id], lock).await?.remove(&id))
}

/// Finds messages in the tables they are in; those that do not exist are left out.
pub(crate) async fn find_all(conn: &Conn, ids: &[MessageId], lock: Lock) -> Result<HashMap<MessageId, Found>, Trouble> {
    const WHERE: &str = "-- find: one statement, one snapshot, so that each message is in one place
        select id, 1 as place from tidegate.result where id = any($1)
        union all select id, 2 from tidegate.held where id = any($1)
        union all select id, 3 from tidegate.lease where id = any($1)
        union all select id, 4 from tidegate.ready where id = any($1)
        union all select id, 5 from tidegate.sched where id = any($1)
        union all select id, 6 from tidegate.message where id = any($1)";
    let mut found = HashMap::with_capacity(ids.len());
    let mut wanted = row::id_list(ids);
    wanted.sort_unstable();
    wanted.dedup();
    for _look in 0..MOST_LOOKS {
        let mut places: [Vec<i64>; 5] = Default::default();
        let mut exist = Vec::new();
        for row in &conn.query(WHERE, &[&wanted]).await? {
            let id: i64 = row::column(row, 0, "message")?;
            match usize::try_from(row::column::<i32, _>(row, 1, "message")?) {
                Ok(place @ 1..=5) => places[place - 1].push(id),
                Ok(_) | Err(_) => exist.push(id),
            }
        }
        if let Some(id) = exist.iter().find(|id| !places.iter().any(|place| place.contains(id))) {
            return Err(astray(MessageId::from_i64(*id)).into());
        }
        let before = found.len();
        rows_of(conn, &places, lock, &mut found).await?;
        let seen: usize = places.iter().map(Vec::len).sum();
        if found.len() - before == seen {
            return Ok(found);
        }
        // Some moved between the two looks; those are looked for again.
        wanted.retain(|id| !found.contains_key(&MessageId::from_i64(*id)));
    }
    Err(Trouble::Again("a message moves faster than it can be found"))
}

async fn rows_of(
    conn: &Conn,
    places: &[Vec<i64>; 5],
    lock: Lock,
    found: &mut HashMap<MessageId, Found>,
) -> Result<(), Trouble> {
    const RESULT: &str = "-- find: rows of result\n select * from tidegate.result where id = any($1)";
    const RESULT_LOCKED: &str =
        "-- find: rows of result, locked\n select * from tidegate.result where id = any($1) order by id for update";
    const HELD: &str = "-- find: rows of held\n select * from tidegate.held where id = any($1)";
    const HELD_LOCKED: &str =
        "-- find: rows of held, locked\n select * from tidegate.held where id = any($1) order by id for update";
    const LEASE: &str = concat!(
        "-- find: rows of lease\n select ",
        row::lease_columns!(),
        " from tidegate.lease l where l.id = any($1)"
    );
    // No key update: a transactional effect whose work takes its time holds the key of its lease, and is in nobody's
    // way.
    const LEASE_LOCKED: &str = concat!(
        "-- find: rows of lease, locked\n select ",
        row::lease_columns!(),
        " from tidegate.lease l where l.id = any($1) order by l.id for no key update"
    );
    const READY: &str = concat!(
        "-- find: rows of ready\n select ",
        row::life_columns!(),
        " from tidegate.ready r where r.id = any($1)"
    );
    const READY_LOCKED: &str = concat!(
        "-- find: rows of ready, locked\n select ",
        row::life_columns!(),
        " from tidegate.ready r where r.id = any($1) order by r.id for update"
    );
    const SCHED: &str = concat!(
        "-- find: rows of sched\n select ",
        row::life_columns!(),
        " from tidegate.sched r where r.id = any($1)"
    );
    const SCHED_LOCKED: &str = concat!(
        "-- find: rows of sched, locked\n select ",
        row::life_columns!(),
        " from tidegate.sched r where r.id = any($1) order by r.id for update"
    );
    let texts = match lock {
        Lock::Nothing => [RESULT, HELD, LEASE, READY, SCHED],
        Lock::Rows => [RESULT_LOCKED, HELD_LOCKED, LEASE_LOCKED, READY_LOCKED, SCHED_LOCKED],
    };
    let params: [[&dyn crate::conn::Param; 1]; 5] = std::array::from_fn(|at| [&places[at] as _]);
    let asked: Vec<usize> = (0..5).filter(|at| !places[*at].is_empty()).collect();
    let steps: Vec<Step<'_>> = asked.iter().map(|at| (texts[*at], &params[*at][..])).collect();
    let answers = if steps.is_empty() { Vec::new() } else { conn.many(&steps).await? };
    for (at, rows) in asked.into_iter().zip(answers) {
        for row in &rows {
            let (id, here) = match at {
                0 => (row::message_id(row, "id", "result")?, Found::Ended(Box::new(row::ended_result(row)?))),
                1 => (row::message_id(row, "id", "held")?, Found::Ended(Box::new(row::ended_held(row)?))),
                2 => {
                    let (id, lease) = row::lease(row, 0)?;
                    (id, Found::Leased(Box::new(lease)))
                }
                3 => {
                    let (id, life) = row::life(row, 0, "ready")?;
                    (id, Found::Ready { life, scheduled: false })
                }
                _ => {
                    let (id, life) = row::life(row, 0, "sched")?;
                    (id, Found::Ready { life, scheduled: true })
                }
            };
            found.insert(id, here);
        }
    }
    Ok(())
}

/// Messages that are looked for to be decided about, locked where they are. One that cannot be read is an error of its
/// own.
pub(crate) type Each = HashMap<MessageId, Result<Found, StoreError>>;

/// Finds messages as [`find_all`] does, for a verb with a verdict for each of them.
pub(crate) async fn find_each(conn: &Conn, ids: &[MessageId]) -> Result<Each, Trouble> {
    match find_all(conn, ids, Lock::Rows).await {
        Ok(found) => return Ok(found.into_iter().map(|(id, found)| (id, Ok(found))).collect()),
        Err(Trouble::Item(_)) => {}
        Err(trouble) => return Err(trouble),
    }
    // A row among them cannot be read: one by one, it is in nobody else's way.
    let mut each = Each::with_capacity(ids.len());
    for id in ids {
        match crate::trouble::verdict(find(conn, *id, Lock::Rows).await)? {
            Ok(Some(found)) => drop(each.insert(*id, Ok(found))),
            Ok(None) => {}
            Err(error) => drop(each.insert(*id, Err(error))),
        }
    }
    Ok(each)
}

/// The journals of messages that were found, where their flags say that there is one.
pub(crate) async fn journals_found(
    conn: &Conn,
    found: &Each,
) -> Result<HashMap<MessageId, Result<Vec<EffectRow>, StoreError>>, Trouble> {
    let readable = found.iter().filter_map(|(id, found)| Some((*id, found.as_ref().ok()?.flags())));
    journals_if(conn, readable).await
}

/// A message that was looked for; `NotFound` when there is none.
pub(crate) fn known(found: Option<&Result<Found, StoreError>>, id: MessageId) -> Result<&Found, StoreError> {
    found.ok_or_else(|| StoreError::not_found(id))?.as_ref().map_err(Clone::clone)
}

/// The rows of a journal that was looked for: none where the message has none.
pub(crate) fn rows_known(journal: Option<&Result<Vec<EffectRow>, StoreError>>) -> Result<&[EffectRow], StoreError> {
    journal.map_or(Ok(&[]), |journal| journal.as_deref().map_err(Clone::clone))
}

/// A lane that a message names; it must be there.
pub(crate) fn lane_of(lanes: &HashMap<i64, Arc<Lane>>, id: i64) -> Result<&Lane, StoreError> {
    let lane = lanes.get(&id).ok_or_else(|| StoreError::corrupt(&format!("lane, row {id}"), "no such lane"))?;
    Ok(lane)
}

pub(crate) fn astray(id: MessageId) -> StoreError {
    let what = "the message is in none of the tables of its states";
    StoreError::corrupt(&format!("message, row {}", id.as_i64()), what).message_id(id)
}

/// The leases of running messages that were given to these nonces, locked in the order of their ids. A lease that was given to
/// somebody else since is not: a late writer that is stopped, or waits, must keep neither its successor nor a sweep from it.
pub(crate) const LEASES: &str = concat!(
    "-- journal: leases, locked until the commit: a sweep passes them over\n select ",
    row::held_lease_columns!(),
    " from tidegate.lease l where l.id = any($1) and l.nonce = any($2) order by l.id for update"
);

/// The same, whoever has them now: for tests of what must not be, and nothing else.
pub(crate) const LEASES_OF_ANYBODY: &str = concat!(
    "-- settle, journal, broken: leases of whoever has them\n select ",
    row::held_lease_columns!(),
    " from tidegate.lease l where l.id = any($1) and ($2::bytea[] is null or true) order by l.id for update"
);

/// The bodies of messages.
pub(crate) const BODIES: &str = concat!(
    "-- bodies of messages\n select ",
    row::message_columns!(),
    " from tidegate.message m where m.id = any($1)"
);

/// The body of a message.
pub(crate) async fn body(conn: &Conn, id: MessageId, lane: &Lane) -> Result<Message, Trouble> {
    let ids = [id.as_i64()];
    match conn.query_opt(BODIES, &[&&ids[..]]).await? {
        Some(row) => row::message(&row, 0, lane),
        None => Err(bodiless(id).into()),
    }
}

/// The bodies of messages, each with its lane: [`BODIES`]. One that is missing or cannot be read is an error of its own.
pub(crate) async fn bodies(
    group: &Group,
    ids: &[MessageId],
) -> Result<HashMap<MessageId, Result<Message, StoreError>>, Trouble> {
    let mut found = HashMap::with_capacity(ids.len());
    let list = row::id_list(ids);
    let rows = group.conn.query(BODIES, &[&list]).await?;
    let lanes = rows.iter().map(|row| row::message_lane(row, 0)).collect::<Result<Vec<_>, _>>()?;
    let lanes = group.lanes(&lanes).await?;
    for row in &rows {
        let id = row::message_id(row, 0, "message")?;
        let lane = row::message_lane(row, 0)?;
        let read = match lanes.get(&lane) {
            Some(lane) => crate::trouble::verdict(row::message(row, 0, lane))?,
            None => Err(StoreError::corrupt(&format!("lane, row {lane}"), "no such lane")),
        };
        found.insert(id, read);
    }
    for id in ids {
        found.entry(*id).or_insert_with(|| Err(bodiless(*id)));
    }
    Ok(found)
}

/// A message with the times that are in force: an operator who put it back gave it a new span, and a deadline that was
/// missed by then is past caring.
pub(crate) fn in_force(message: Message, expires_at: Option<Timestamp>) -> Message {
    match expires_at {
        Some(expires_at) => Message { expires_at, deadline: None, ..message },
        None => message,
    }
}

/// Journals of messages, in the order of effects and rows.
pub(crate) const JOURNALS: &str = "-- journals of messages
    select * from tidegate.effect where message = any($1) order by message, name, item, seq";

/// The journal of a message, in the order of effects and rows.
pub(crate) async fn journal(conn: &Conn, id: MessageId) -> Result<Vec<EffectRow>, Trouble> {
    let ids = [id.as_i64()];
    conn.query(JOURNALS, &[&&ids[..]]).await?.iter().map(|row| Ok(row::effect(row)?.1)).collect()
}

/// The journals of messages: [`JOURNALS`]. One that cannot be read is an error of its own.
pub(crate) async fn journals(
    conn: &Conn,
    ids: &[MessageId],
) -> Result<HashMap<MessageId, Result<Vec<EffectRow>, StoreError>>, Trouble> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let list = row::id_list(ids);
    journals_of(&conn.query(JOURNALS, &[&list]).await?)
}

/// The journals that [`JOURNALS`] found.
pub(crate) fn journals_of(
    effects: &[tokio_postgres::Row],
) -> Result<HashMap<MessageId, Result<Vec<EffectRow>, StoreError>>, Trouble> {
    let mut found: HashMap<MessageId, Result<Vec<EffectRow>, StoreError>> = HashMap::new();
    for row in effects {
        let id = row::message_id(row, "message", "effect")?;
        let rows = found.entry(id).or_insert_with(|| Ok(Vec::new()));
        match (crate::trouble::verdict(row::effect(row))?, rows) {
            (Ok((_, effect)), Ok(rows)) => rows.push(effect),
            (Err(error), rows @ Ok(_)) => *rows = Err(error),
            (_, Err(_)) => {}
        }
    }
    Ok(found)
}

/// The journals of messages, read only where their flags say that there is one. Taken for a message that never sent
/// anything, one whose journal is gone would be sent again: that is an error of its own.
pub(crate) async fn journals_if(
    conn: &Conn,
    flagged: impl Iterator<Item = (MessageId, i64)>,
) -> Result<HashMap<MessageId, Result<Vec<EffectRow>, StoreError>>, Trouble> {
    let ids: Vec<MessageId> = flagged.filter(|(_, flags)| flags & JOURNALED != 0).map(|(id, _)| id).collect();
    let mut found = journals(conn, &ids).await?;
    for id in ids {
        found.entry(id).or_insert_with(|| Err(journalless(id)));
    }
    Ok(found)
}

/// The journal of a message, read only where its flags say that there is one.
pub(crate) async fn journal_if(conn: &Conn, id: MessageId, flags: i64) -> Result<Vec<EffectRow>, Trouble> {
    if flags & JOURNALED == 0 {
        return Ok(Vec::new());
    }
    let journal = journal(conn, id).await?;
    if journal.is_empty() {
        return Err(journalless(id).into());
    }
    Ok(journal)
}

/// What a message says whose journal is gone.
pub(crate) fn journalless(id: MessageId) -> StoreError {
    let what = "the message has a journal, and no row of it is found";
    StoreError::corrupt(&format!("effect, message {}", id.as_i64()), what).message_id(id)
}

/// What a live message says whose body is gone.
pub(crate) fn bodiless(id: MessageId) -> StoreError {
    StoreError::corrupt(&format!("message, row {}", id.as_i64()), "the body of a live message is missing")
        .message_id(id)
}

/// When a message is too late, as its body says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) expires_at: Timestamp,
    pub(crate) max_age: Duration,
}

impl Limits {
    pub(crate) fn of(message: &Message) -> Self {
        let max_age = message.expires_at.since(message.first_due_at);
        Self { deadline: message.deadline, expires_at: message.expires_at, max_age }
    }

    /// From the three columns that a body and its lease have of it.
    pub(crate) fn from_columns(first_due_at: Timestamp, deadline: Option<Timestamp>, max_age: Duration) -> Self {
        Self { deadline, expires_at: first_due_at.after(max_age), max_age }
    }

    /// Reads the row without making a message of it.
    pub(crate) async fn read(conn: &Conn, id: MessageId) -> Result<Self, Trouble> {
        let ids = [id.as_i64()];
        match conn.query_opt(BODIES, &[&&ids[..]]).await? {
            Some(row) => row::limits(&row, 0),
            None => Err(bodiless(id).into()),
        }
    }
}

/// The facts a decision about a message needs.
pub(crate) fn facts(life: &Life, limits: Limits, journal: &[EffectRow], now: Timestamp) -> Facts {
    Facts {
        counters: life.counters,
        journal: JournalFacts::of(journal, now),
        due_at: life.due_at,
        // An operator who put it back gave it a new span of time.
        deadline: limits.deadline.filter(|_| life.expires_at.is_none()),
        expires_at: life.expires_at.unwrap_or(limits.expires_at),
        cancel_requested: life.has(row::CANCEL),
        reconciling: life.has(row::RECONCILING),
        suspect: life.has(row::SUSPECT),
        alone: life.has(row::ALONE),
    }
}

/// Puts a message where it can be claimed, now or when it is due.
pub(crate) fn put_ready(group: &mut Group, lane: &Lane, id: MessageId, life: &Life) {
    let due = life.due_at <= group.now;
    let place = if due { &mut group.writes.ready } else { &mut group.writes.sched };
    place.push((id, life.clone()));
    if life.due_at < group.now {
        // A run that was given back lies where it was, which is before where claims look by now.
        claim::look_back(&group.shared, life.lane, life.due_at);
    }
    group.count(lane.queue_id, if due { Place::Ready } else { Place::Scheduled }, 1);
    // A scheduled one is announced as well: whoever waits for the next due time must wait for this one instead.
    group.announce(&lane.queue);
}

/// Takes a message out of the table it is in. It was found with [`Lock::Rows`].
pub(crate) fn remove(group: &mut Group, lane: &Lane, id: MessageId, found: &Found) {
    let place = match found {
        Found::Ready { scheduled: false, .. } => {
            group.writes.gone_ready.push(id);
            Some(Place::Ready)
        }
        Found::Ready { scheduled: true, .. } => {
            group.writes.gone_sched.push(id);
            Some(Place::Scheduled)
        }
        Found::Leased(lease) => {
            group.writes.gone_lease.push((id, lease.token));
            Some(Place::Leased)
        }
        Found::Ended(ended) => match ended.state {
            State::Parked | State::Dead => {
                group.writes.gone_held.push(id);
                let place = if ended.state == State::Parked { Place::Parked } else { Place::Dead };
                Some(place).filter(|_| ended.discarded_at.is_none())
            }
            State::Completed | State::Failed | State::Cancelled | State::Ready | State::Leased => {
                group.writes.gone_result.push(id);
                None
            }
        },
    };
    if let Some(place) = place {
        group.count(lane.queue_id, place, -1);
    }
}

/// What ended, and with what.
pub(crate) struct Ending<'a> {
    pub(crate) next: Next,
    pub(crate) result: Option<&'a str>,
    pub(crate) failure: Option<&'a Failure>,
}

/// Puts a message where its next state lives, and counts it. The caller has removed it from where it was, and read its
/// journal.
pub(crate) fn put(
    group: &mut Group,
    lane: &Lane,
    id: MessageId,
    life: &Life,
    ending: &Ending<'_>,
    journal: &[EffectRow],
) {
    let failure = ending.failure;
    let (counted, code): (_, Cow<'static, str>) = match ending.next {
        Next::Ready { due_at } => {
            return put_ready(group, lane, id, &Life { due_at, ..life.clone() });
        }
        Next::Completed | Next::Failed | Next::Cancelled => {
            let failed = failure.filter(|_| ending.next == Next::Failed);
            group.writes.results.push(NewResult {
                id,
                state: ending.next.state().as_str(),
                at: group.now,
                lane: life.lane,
                counters: life.counters,
                flags: life.flags & JOURNALED,
                code: failed.map(|failure| failure.code.clone()),
                body: ending.result.or(failed.map(|failure| failure.detail.as_str())).map(str::to_owned),
                last: life.last,
                expires_at: life.expires_at,
            });
            match ending.next {
                Next::Completed => (Counted::Completed, "".into()),
                Next::Failed => {
                    (Counted::Failed, failure.map_or_else(String::new, |failure| failure.code.clone()).into())
                }
                Next::Cancelled | Next::Ready { .. } | Next::Dead(_) | Next::Parked(_) => {
                    (Counted::Cancelled, "".into())
                }
            }
        }
        Next::Dead(_) | Next::Parked(_) => {
            let (reason, counted, place) = match ending.next {
                Next::Dead(reason) => (reason.as_str(), Counted::Dead, Place::Dead),
                Next::Parked(reason) => (reason.as_str(), Counted::Parked, Place::Parked),
                Next::Ready { .. } | Next::Completed | Next::Failed | Next::Cancelled => unreachable!("matched above"),
            };
            let effect = group::failed_effect(journal);
            let (code, detail) = failure.map_or((reason, ""), |failure| (&failure.code, &failure.detail));
            let fgroup = GroupId::of(&lane.kind, code, effect, detail).as_i64();
            group.writes.held.push(NewHeld {
                id,
                state: ending.next.state().as_str(),
                at: group.now,
                lane: life.lane,
                counters: life.counters,
                // A wish to cancel outlives being parked.
                flags: life.flags & row::LASTING & !row::SUSPECT,
                reason,
                code: failure.map(|failure| failure.code.clone()),
                detail: failure.map(|failure| failure.detail.clone()),
                last: life.last,
                expires_at: life.expires_at,
                fgroup,
                effect: effect.map(EffectName::as_str).map(str::to_owned),
            });
            group.count(lane.queue_id, place, 1);
            (counted, reason.into())
        }
    };
    group.tally(lane, counted, code);
    group.news.ended.push(id);
}

/// Adds a line to the history of a message.
pub(crate) fn history(group: &mut Group, id: MessageId, ending: store::Ending) {
    group.writes.history.push((id, ending));
}
