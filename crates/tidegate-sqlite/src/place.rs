//! Where a message is, physically: the map from states to tables, and the moves between them.
//!
//! `ready` = `tide_ready` ∪ `tide_sched` · `leased` = `tide_lease` · `completed`, `failed`, `cancelled` = `tide_result` ·
//! `parked`, `dead` = `tide_held`. Every id is in exactly one. [`lifecycle`](tidegate_core::lifecycle) chose the state;
//! this file only carries it out.

use std::borrow::Cow;

use rusqlite::{Connection, OptionalExtension, Statement, params};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::group::{self, GroupId};
use tidegate_core::id::{EffectName, MessageId};
use tidegate_core::lifecycle::{Counters, Facts, Next, State};
use tidegate_core::message::{Answer, Failure, Message};
use tidegate_core::store::Counted;

use crate::group::{Group, Lane, Place};
use crate::many::{Cell, Many, unmade};
use crate::row::{self, JOURNALED, LastSettlement, LeaseRow, Life};
use crate::seal::{self, Literal};
use crate::trouble::Trouble;

/// A message wherever it is.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// In `tide_ready` (false) or `tide_sched` (true).
    Ready { life: Life, scheduled: bool },
    /// In `tide_lease`.
    Leased(Box<LeaseRow>),
    /// In `tide_result` or `tide_held`.
    Ended(Box<Ended>),
}

/// A row of `tide_result` or `tide_held`.
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

/// Finds a message in the table it is in; `None` when there is no such message.
pub(crate) fn find(conn: &Connection, id: MessageId) -> Result<Option<Found>, Trouble> {
    if let Some(ended) = ended(conn, id)? {
        return Ok(Some(Found::Ended(Box::new(ended))));
    }
    if let Some(lease) = lease(conn, id)? {
        return Ok(Some(Found::Leased(Box::new(lease))));
    }
    // The hot tables are keyed by lane and due_at, which the body and the last ending name.
    const WHERE_READY: &str = "select lane, coalesce(
            (select due_at from tide_history where message = m.id order by seq desc limit 1), first_due_at, enqueued_at) due_at
        from tide_message m where id = ?1";
    let place: Option<(i64, i64)> =
        conn.prepare_cached(WHERE_READY)?.query_row([id.as_i64()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((lane, due_at)) = place else { return Ok(None) };
    const READY: &str = "select * from tide_ready where lane = ?1 and due_at = ?2 and id = ?3";
    const SCHED: &str = "select * from tide_sched where lane = ?1 and due_at = ?2 and id = ?3";
    for (sql, table, scheduled) in [(READY, "tide_ready", false), (SCHED, "tide_sched", true)] {
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query(params![lane, due_at, id.as_i64()])?;
        if let Some(row) = rows.next()? {
            return Ok(Some(Found::Ready { life: row::life(row, table)?, scheduled }));
        }
    }
    let what = "the message is in none of the tables of its states";
    Err(tidegate_core::StoreError::corrupt(&format!("tide_message, row {}", id.as_i64()), what).message_id(id).into())
}

pub(crate) fn ended(conn: &Connection, id: MessageId) -> Result<Option<Ended>, Trouble> {
    let mut statement = conn.prepare_cached("select * from tide_result where id = ?1")?;
    let mut rows = statement.query([id.as_i64()])?;
    if let Some(row) = rows.next()? {
        return ended_result(row).map(Some);
    }
    let mut statement = conn.prepare_cached("select * from tide_held where id = ?1")?;
    let mut rows = statement.query([id.as_i64()])?;
    rows.next()?.map(ended_held).transpose()
}

/// A row of `tide_result`, selected with `*`.
pub(crate) fn ended_result(row: &rusqlite::Row<'_>) -> Result<Ended, Trouble> {
    let table = "tide_result";
    seal::check(row, seal::RESULT)?;
    let state = row::state(row, table)?;
    let code: Option<String> = row::column(row, "code", table)?;
    let body: Option<String> = row::column(row, "body", table)?;
    let failure = code.map(|code| Failure { code, detail: body.clone().unwrap_or_default() });
    Ok(Ended {
        state,
        at: row::time(row, "at", table)?,
        lane: row::column(row, "lane", table)?,
        counters: row::counters(row, table)?,
        flags: row::column(row, "flags", table)?,
        reason: None,
        failure,
        body: body.filter(|_| state == State::Completed),
        last: row::last_settlement(row, table)?,
        expires_at: row::maybe_time(row, "expires_at", table)?,
        discarded_at: None,
    })
}

/// A row of `tide_held`, selected with `*`.
pub(crate) fn ended_held(row: &rusqlite::Row<'_>) -> Result<Ended, Trouble> {
    let table = "tide_held";
    seal::check(row, seal::HELD)?;
    let code: Option<String> = row::column(row, "code", table)?;
    let detail: Option<String> = row::column(row, "detail", table)?;
    Ok(Ended {
        state: row::state(row, table)?,
        at: row::time(row, "at", table)?,
        lane: row::column(row, "lane", table)?,
        counters: row::counters(row, table)?,
        flags: row::column(row, "flags", table)?,
        reason: Some(row::column(row, "reason", table)?),
        failure: code.map(|code| Failure { code, detail: detail.unwrap_or_default() }),
        body: None,
        last: row::last_settlement(row, table)?,
        expires_at: row::maybe_time(row, "expires_at", table)?,
        discarded_at: row::maybe_time(row, "discarded_at", table)?,
    })
}

/// Reads the lease of a running message.
pub(crate) const LEASE: &str = "-- the lease of one message
    select * from tide_lease where id = ?1";

/// The lease of a running message.
pub(crate) fn lease(conn: &Connection, id: MessageId) -> Result<Option<LeaseRow>, Trouble> {
    lease_by(&mut *conn.prepare_cached(LEASE)?, id)
}

/// The same with the statement at hand: [`LEASE`].
pub(crate) fn lease_by(statement: &mut Statement<'_>, id: MessageId) -> Result<Option<LeaseRow>, Trouble> {
    let mut rows = statement.query([id.as_i64()])?;
    rows.next()?.map(row::lease).transpose()
}

/// All of it even where a part would do: only a whole row can be held against its seal.
pub(crate) const BODY: &str = "select * from tide_message where id = ?1";

/// The body of a message.
pub(crate) fn body(conn: &Connection, id: MessageId, lane: &Lane) -> Result<Message, Trouble> {
    body_by(&mut *conn.prepare_cached(BODY)?, id, lane)
}

/// The same with the statement at hand: [`BODY`].
pub(crate) fn body_by(statement: &mut Statement<'_>, id: MessageId, lane: &Lane) -> Result<Message, Trouble> {
    let mut rows = statement.query([id.as_i64()])?;
    match rows.next()? {
        Some(row) => row::message(row, lane),
        None => Err(bodiless(id).into()),
    }
}

/// A message with the times that are in force: an operator who put it back gave it a new span, and a deadline that was
/// missed by then is past caring.
pub(crate) fn in_force(message: Message, expires_at: Option<Timestamp>) -> Message {
    match expires_at {
        Some(expires_at) => Message { expires_at, deadline: None, ..message },
        None => message,
    }
}

/// The journal of a message, in the order of effects and rows.
pub(crate) fn journal(conn: &Connection, id: MessageId) -> Result<Vec<EffectRow>, Trouble> {
    let mut statement = conn.prepare_cached("select * from tide_effect where message = ?1")?;
    let mut rows = statement.query([id.as_i64()])?;
    let mut journal = Vec::new();
    while let Some(row) = rows.next()? {
        journal.push(row::effect(row)?);
    }
    Ok(journal)
}

/// The journal of a message, read only where its flags say that there is one.
pub(crate) fn journal_if(conn: &Connection, id: MessageId, flags: i64) -> Result<Vec<EffectRow>, Trouble> {
    if flags & JOURNALED == 0 {
        return Ok(Vec::new());
    }
    let journal = journal(conn, id)?;
    if journal.is_empty() {
        // Taken for a message that never sent anything, it would be sent again.
        let what = "the message has a journal, and no row of it is found";
        let place = format!("tide_effect, message {}", id.as_i64());
        return Err(tidegate_core::StoreError::corrupt(&place, what).message_id(id).into());
    }
    Ok(journal)
}

/// When a message is too late, as its body says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) expires_at: Timestamp,
    pub(crate) max_age: std::time::Duration,
}

impl Limits {
    pub(crate) fn of(message: &Message) -> Self {
        let max_age = message.expires_at.since(message.first_due_at);
        Self { deadline: message.deadline, expires_at: message.expires_at, max_age }
    }

    /// From the three columns that a body and its lease have of it.
    pub(crate) fn from_columns(
        first_due_at: Timestamp,
        deadline: Option<Timestamp>,
        max_age: std::time::Duration,
    ) -> Self {
        Self { deadline, expires_at: first_due_at.after(max_age), max_age }
    }

    /// Reads the row without making a message of it.
    pub(crate) fn read(conn: &Connection, id: MessageId) -> Result<Self, Trouble> {
        let mut statement = conn.prepare_cached(BODY)?;
        let mut rows = statement.query([id.as_i64()])?;
        match rows.next()? {
            Some(row) => row::limits(row),
            None => Err(bodiless(id).into()),
        }
    }
}

fn bodiless(id: MessageId) -> tidegate_core::StoreError {
    let place = format!("tide_message, row {}", id.as_i64());
    tidegate_core::StoreError::corrupt(&place, "the body of a live message is missing").message_id(id)
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
pub(crate) fn put_ready(group: &mut Group<'_>, lane: &Lane, id: MessageId, life: &Life) -> Result<(), Trouble> {
    const READY: &str = "insert into tide_ready values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
    const SCHED: &str = "insert into tide_sched values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
    let due = life.due_at <= group.now;
    if due && *life == Life::unbegun(life.lane, life.due_at) {
        // Most rows that come here: what nothing has happened to yet is what the columns hold by default.
        const UNBEGUN: &str = "-- a message that nothing has happened to yet
            insert into tide_ready (lane, due_at, id, seal) values (?1, ?2, ?3, ?4)";
        const UNBEGUN_LITERAL: Literal = Literal::at(&[3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let (zero, none) = (0, None::<i64>);
        let whole = params![
            life.lane,
            life.due_at.as_millis(),
            id.as_i64(),
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            none,
            none,
            none
        ];
        seal::execute_but(&mut group.sql(UNBEGUN)?, seal::READY, whole, UNBEGUN_LITERAL)?;
        group.count(lane.queue_id, Place::Ready, 1);
        group.announce(&lane.queue);
        return Ok(());
    }
    let Counters { claims, attempt, crashes, generation, round } = life.counters;
    let (sql, sealed) = if due { (READY, seal::READY) } else { (SCHED, seal::SCHED) };
    let ready = params![
        life.lane,
        life.due_at.as_millis(),
        id.as_i64(),
        claims,
        attempt,
        crashes,
        generation,
        round,
        life.flags & row::LASTING,
        life.expires_at.map(Timestamp::as_millis),
        life.last.map(|last| last.nonce),
        life.last.map(|last| last.digest),
    ];
    seal::execute(&mut group.sql(sql)?, sealed, ready)?;
    group.count(lane.queue_id, if due { Place::Ready } else { Place::Scheduled }, 1);
    // A scheduled one is announced as well: whoever waits for the next due time must wait for this one instead.
    group.announce(&lane.queue);
    Ok(())
}

/// Puts messages that nothing has happened to yet at the end of their lane, claimable now.
pub(crate) fn put_all_ready(
    group: &mut Group<'_>,
    lane: &Lane,
    ids: impl Iterator<Item = MessageId>,
) -> Result<(), Trouble> {
    static UNBEGUN: Many<2, 1> = Many {
        sealed: seal::READY,
        sql: "-- messages that nothing has happened to yet
            insert or fail into tide_ready (lane, due_at, id, seal) values (?1, ?2, ?3, ?4)",
        shared: [0, 1],
        each: [2],
        literal: &[
            (3, Cell::Int(0)),
            (4, Cell::Int(0)),
            (5, Cell::Int(0)),
            (6, Cell::Int(0)),
            (7, Cell::Int(0)),
            (8, Cell::Int(0)),
            (9, Cell::Null),
            (10, Cell::Null),
            (11, Cell::Null),
        ],
        made: unmade(),
    };
    let rows: Vec<_> = ids.map(|id| [Cell::Int(id.as_i64())]).collect();
    if rows.is_empty() {
        return Ok(());
    }
    UNBEGUN.insert(group, [Cell::Int(lane.id), Cell::Int(group.now.as_millis())], &rows)?;
    group.count(lane.queue_id, Place::Ready, i64::try_from(rows.len()).unwrap_or(i64::MAX));
    group.announce(&lane.queue);
    Ok(())
}

/// Takes a message out of the table it is in.
pub(crate) fn remove(group: &mut Group<'_>, lane: &Lane, id: MessageId, found: &Found) -> Result<(), Trouble> {
    let place = match found {
        Found::Ready { life, scheduled: false } => {
            group
                .conn
                .prepare_cached("delete from tide_ready where lane = ?1 and due_at = ?2 and id = ?3")?
                .execute([life.lane, life.due_at.as_millis(), id.as_i64()])?;
            Some(Place::Ready)
        }
        Found::Ready { life, scheduled: true } => {
            group
                .conn
                .prepare_cached("delete from tide_sched where lane = ?1 and due_at = ?2 and id = ?3")?
                .execute([life.lane, life.due_at.as_millis(), id.as_i64()])?;
            Some(Place::Scheduled)
        }
        Found::Leased(_) => {
            group.conn.prepare_cached("delete from tide_lease where id = ?1")?.execute([id.as_i64()])?;
            Some(Place::Leased)
        }
        Found::Ended(ended) => match ended.state {
            State::Parked | State::Dead => {
                group.conn.prepare_cached("delete from tide_held where id = ?1")?.execute([id.as_i64()])?;
                let place = if ended.state == State::Parked { Place::Parked } else { Place::Dead };
                Some(place).filter(|_| ended.discarded_at.is_none())
            }
            State::Completed | State::Failed | State::Cancelled | State::Ready | State::Leased => {
                group.conn.prepare_cached("delete from tide_result where id = ?1")?.execute([id.as_i64()])?;
                None
            }
        },
    };
    if let Some(place) = place {
        group.count(lane.queue_id, place, -1);
    }
    Ok(())
}

/// What ended, and with what.
pub(crate) struct Ending<'a> {
    pub(crate) next: Next,
    pub(crate) result: Option<&'a str>,
    pub(crate) failure: Option<&'a Failure>,
}

/// Puts a message where its next state lives, and counts it. The caller has removed it from where it was.
pub(crate) fn put(
    group: &mut Group<'_>,
    lane: &Lane,
    id: MessageId,
    life: &Life,
    ending: &Ending<'_>,
) -> Result<(), Trouble> {
    let Counters { claims, attempt, crashes, generation, round } = life.counters;
    let (nonce, digest) = (life.last.map(|last| last.nonce), life.last.map(|last| last.digest));
    let failure = ending.failure;
    let (counted, code): (_, Cow<'static, str>) = match ending.next {
        Next::Ready { due_at } => {
            return put_ready(group, lane, id, &Life { due_at, ..life.clone() });
        }
        Next::Completed | Next::Failed | Next::Cancelled => {
            const RESULT: &str =
                "-- the commit that stores the result removes the claimable row: nothing with an answer can be
                -- claimed, so no attempt needs to consult the result first
                insert into tide_result values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
            const FIRST: &str = "-- the same for what completed in its first run and has no journal
                insert into tide_result values (?1, 'completed', ?2, ?3, 1, 1, 0, 0, 0, 0, null, ?4, ?5, ?6, null, ?7)";
            const FIRST_LITERAL: Literal = Literal::at(&[1, 4, 5, 6, 7, 8, 9, 10, 14]);
            let failed = failure.filter(|_| ending.next == Next::Failed);
            let ended = params![
                id.as_i64(),
                ending.next.state().as_str(),
                group.now.as_millis(),
                life.lane,
                claims,
                attempt,
                crashes,
                generation,
                round,
                life.flags & JOURNALED,
                failed.map(|failure| failure.code.as_str()),
                ending.result.or(failed.map(|failure| failure.detail.as_str())),
                nonce,
                digest,
                life.expires_at.map(Timestamp::as_millis),
            ];
            let first = ending.next == Next::Completed
                && life.counters == Counters { claims: 1, attempt: 1, ..Counters::default() }
                && (life.flags & JOURNALED, life.expires_at) == (0, None);
            let (sql, literal) = if first { (FIRST, FIRST_LITERAL) } else { (RESULT, Literal::NONE) };
            seal::execute_but(&mut group.sql(sql)?, seal::RESULT, ended, literal)?;
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
            const HELD: &str =
                "insert into tide_held values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                    ?17, ?18, ?19, ?20)";
            let (reason, counted, place) = match ending.next {
                Next::Dead(reason) => (reason.as_str(), Counted::Dead, Place::Dead),
                Next::Parked(reason) => (reason.as_str(), Counted::Parked, Place::Parked),
                Next::Ready { .. } | Next::Completed | Next::Failed | Next::Cancelled => unreachable!("matched above"),
            };
            // Only for the group of failures: that it cannot be read may be why the message comes to be here.
            let journal = match journal_if(group.conn, id, life.flags) {
                Err(Trouble::Item(_)) => Vec::new(),
                read => read?,
            };
            let effect = group::failed_effect(&journal);
            let (code, detail) = failure.map_or((reason, ""), |failure| (&failure.code, &failure.detail));
            let failures = GroupId::of(&lane.kind, code, effect, detail);
            let held = params![
                id.as_i64(),
                ending.next.state().as_str(),
                group.now.as_millis(),
                life.lane,
                claims,
                attempt,
                crashes,
                generation,
                round,
                // A wish to cancel outlives being parked.
                life.flags & row::LASTING & !row::SUSPECT,
                reason,
                failure.map(|failure| failure.code.as_str()),
                failure.map(|failure| failure.detail.as_str()),
                nonce,
                digest,
                life.expires_at.map(Timestamp::as_millis),
                failures.as_i64(),
                effect.map(EffectName::as_str),
                None::<i64>,
            ];
            seal::execute(&mut group.conn.prepare_cached(HELD)?, seal::HELD, held)?;
            group.count(lane.queue_id, place, 1);
            (counted, reason.into())
        }
    };
    group.tally(lane, counted, code);
    group.news.ended.push(id);
    Ok(())
}

/// Adds a line to the history of a message.
pub(crate) fn history(group: &Group<'_>, id: MessageId, ending: &tidegate_core::store::Ending) -> Result<(), Trouble> {
    const NEXT: &str = "select coalesce(max(seq), 0) + 1 from tide_history where message = ?1";
    const HISTORY: &str = "insert into tide_history values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let seq: i64 = group.conn.prepare_cached(NEXT)?.query_row([id.as_i64()], |row| row.get(0))?;
    let line = params![
        id.as_i64(),
        seq,
        ending.at.as_millis(),
        ending.attempt,
        ending.generation,
        ending.outcome,
        ending.state.as_str(),
        ending.code,
        ending.detail,
        ending.due_at.map(Timestamp::as_millis),
    ];
    seal::execute(&mut group.conn.prepare_cached(HISTORY)?, seal::HISTORY, line)?;
    Ok(())
}
