//! Watches the wall clock against the time that really passed, at the start of every group.
//!
//! A wall clock that is set ahead makes quarantines and retentions look over that are not, and leases lapsed that hold; one
//! that is set back makes windows look open in which a remote still knows our key. So quarantines that were running start
//! again, leases and such windows move with the clock, and the jump is noted: retention counts without it. Set back, it shows
//! that what is dated ahead of it was dated by a clock that was ahead: waits, quarantines and retentions that began then take
//! as long as they were to take. Every process watches for itself; what one has noted, the others do not note again.

use std::time::Duration;

use rusqlite::{Connection, params};
use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::{Clock, Timestamp};

use crate::row;
use crate::seal;
use crate::trouble::Trouble;

/// How much further the wall clock may go than time passed before it was set.
const JUMP: Duration = Duration::from_secs(60);
/// A store that nobody swept for this long cannot tell a jump from a rest, and is careful.
const REST: Duration = Duration::from_secs(3600);
/// How long nothing is deleted after the clock was set.
const STEADY: Duration = Duration::from_secs(3600);
/// Ticks are stored no more often than this: an idle store commits nothing else.
const TICK: Duration = Duration::from_secs(5);

/// Both hands of this process's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hands {
    pub(crate) wall: Timestamp,
    pub(crate) monotonic: Duration,
    /// The last jump that was noted when they were read.
    noted: i64,
}

impl Hands {
    pub(crate) fn of(clock: &dyn Clock) -> Self {
        Self { wall: clock.now(), monotonic: clock.monotonic(), noted: 0 }
    }

    /// What the wall clock would show now if nobody had set it.
    fn expected(self, now: Self) -> Timestamp {
        self.wall.after(now.monotonic.saturating_sub(self.monotonic))
    }

    /// Whether the wall clock was set since these hands were read.
    pub(crate) fn jumped(self, now: Self) -> bool {
        let expected = self.expected(now);
        now.wall.since(expected) > JUMP || expected.since(now.wall) > JUMP
    }
}

const NEWEST: &str = "-- watch: the last jump that anybody noted
        select coalesce(max(seq), 0) from tide_jump";

/// The hands of a process that just opened the store.
pub(crate) fn first(conn: &Connection, clock: &dyn Clock) -> rusqlite::Result<Hands> {
    let noted = conn.query_row(NEWEST, [], |row| row.get(0))?;
    Ok(Hands { noted, ..Hands::of(clock) })
}

/// Compares the hands with those of this process's last group; answers the hands to compare with next time.
pub(crate) fn look(conn: &Connection, before: Hands, now: Hands) -> rusqlite::Result<Hands> {
    const NOTED: &str = "-- watch: what other processes noted since
        select coalesce(sum(by_ms), 0) from tide_jump where seq > ?1";
    let expected = before.expected(now);
    let jump = now.wall.as_millis() - expected.as_millis();
    if jump.abs() > row::millis(JUMP) {
        let noted: i64 = conn.prepare_cached(NOTED)?.query_row([before.noted], |row| row.get(0))?;
        let unnoted = jump - noted;
        if unnoted.abs() > row::millis(JUMP) {
            shift_leases(conn, unnoted)?;
            if unnoted < 0 {
                end_windows_in_time(conn, unnoted)?;
                take_back(conn, now.wall, unnoted)?;
            } else if !canary::is(Canary::ClockJumpBelieved) {
                restart_quarantines(conn, expected, now.wall, unnoted)?;
            }
            note(conn, now.wall, unnoted)?;
        }
    }
    let noted = conn.prepare_cached(NEWEST)?.query_row([], |row| row.get(0))?;
    Ok(Hands { noted, ..now })
}

/// The first look of this process, at the time it opened the store: nobody may have watched for a while.
pub(crate) fn after_rest(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let (last_tick, _) = ticks(conn)?;
    if last_tick != Timestamp::EPOCH && now.since(last_tick) > REST {
        restart_quarantines(conn, last_tick, now, 0)?;
        unsteady(conn, now)?;
    }
    Ok(())
}

/// A lease holds as long as it was given, wherever the wall clock is set; what had lapsed stays lapsed.
fn shift_leases(conn: &Connection, jump: i64) -> rusqlite::Result<()> {
    const SHIFT: &str = "-- watch: all of them were given before: whoever gives a lease has looked at the clock first
        update tide_lease set until = until + ?1, seal = tide_reseal(seal, 11, until, until + ?1)";
    conn.prepare_cached(SHIFT)?.execute([jump])?;
    Ok(())
}

/// Quarantines that were running start again: how much of them passed is not known. A sender that had not given up then
/// has as long as it had.
fn restart_quarantines(conn: &Connection, before: Timestamp, now: Timestamp, jump: i64) -> rusqlite::Result<()> {
    const RESTART: &str = "-- watch: a request may still be under way for all we know
        update tide_effect set last_possible_send = max(?1, last_possible_send + ?3),
            seal = tide_reseal(seal, 12, last_possible_send, max(?1, last_possible_send + ?3))
        where state in ('intent', 'unknown') and last_possible_send + quarantine_ms > ?2";
    conn.prepare_cached(RESTART)?.execute([now.as_millis(), before.as_millis(), jump])?;
    Ok(())
}

/// A remote forgets our key after the time that passes there, whatever our clock shows: set back, it would have us send a
/// key again that nobody remembers.
fn end_windows_in_time(conn: &Connection, jump: i64) -> rusqlite::Result<()> {
    const SHORTEN: &str =
        "-- watch: the windows of keys whose effects are open end as much earlier as the clock was set back
        update tide_effect set valid_until = max(0, valid_until + ?1),
            seal = tide_reseal(seal, 13, valid_until, max(0, valid_until + ?1))
        where state in ('intent', 'unknown') and valid_until is not null";
    conn.prepare_cached(SHORTEN)?.execute([jump])?;
    Ok(())
}

/// What was dated while the clock was ahead is dated anew, now that it was set back by `jump`, which is negative. How long a
/// quarantine has run is what passed, in either direction. A date that was given before the clock went ahead stays: a wait
/// counts as dated ahead if the enqueue or the end of a run that gave it was at a moment that is yet to come.
fn take_back(conn: &Connection, now: Timestamp, jump: i64) -> rusqlite::Result<()> {
    const QUARANTINES: &str = "-- watch: open effects are few
        update tide_effect set last_possible_send = last_possible_send + ?1,
            seal = tide_reseal(seal, 12, last_possible_send, last_possible_send + ?1)
        where state in ('intent', 'unknown')";
    const RESULTS: &str = "-- watch: their retention began when they ended
        update tide_result set at = at + ?1, seal = tide_reseal(seal, 2, at, at + ?1) where at > ?2";
    const HELD: &str = "-- watch: for whoever looks at what waits for a person, and since when
        update tide_held set at = at + ?1, seal = tide_reseal(seal, 2, at, at + ?1) where at > ?2";
    const DISCARDED: &str = "-- watch: their retention began when they were given up
        update tide_held set discarded_at = discarded_at + ?1,
            seal = tide_reseal(seal, 18, discarded_at, discarded_at + ?1)
        where discarded_at > ?2";
    conn.prepare_cached(QUARANTINES)?.execute([jump])?;
    take_back_waits(conn, now, jump)?;
    for sql in [RESULTS, HELD, DISCARDED] {
        conn.prepare_cached(sql)?.execute([jump, now.as_millis()])?;
    }
    Ok(())
}

/// Retries, snoozes and delays, and what came of them: what is leased goes back to where it was if it is released. Where a row
/// that is ready lies follows from the date that its last run, or its enqueue, gave it: the two move together.
fn take_back_waits(conn: &Connection, now: Timestamp, jump: i64) -> rusqlite::Result<()> {
    const WAITS: &str = "-- watch: dates that were given ahead
        select s.tbl, s.lane, s.due_at, s.id, h.seq from (
            select 0 tbl, lane, due_at, id from tide_sched where due_at > ?1
            union all select 1, lane, due_at, id from tide_ready where due_at > ?1
            union all select 2, lane, due_at, id from tide_lease where due_at > ?1) s
        join tide_message m on m.id = s.id
        left join tide_history h on h.message = s.id
            and h.seq = (select max(seq) from tide_history where message = s.id)
        where coalesce(h.at, m.enqueued_at) > ?1";
    const ROWS: [&str; 3] = [
        "update tide_sched set due_at = due_at + ?1, seal = tide_reseal(seal, 1, due_at, due_at + ?1)
            where lane = ?2 and due_at = ?3 and id = ?4",
        "update tide_ready set due_at = due_at + ?1, seal = tide_reseal(seal, 1, due_at, due_at + ?1)
            where lane = ?2 and due_at = ?3 and id = ?4",
        "update tide_lease set due_at = due_at + ?1, seal = tide_reseal(seal, 2, due_at, due_at + ?1)
            where lane = ?2 and due_at = ?3 and id = ?4",
    ];
    const BY_A_RUN: &str = "update tide_history set at = at + ?1, due_at = due_at + ?1,
            seal = tide_reseal(seal, 2, at, at + ?1, 9, due_at, due_at + ?1)
        where message = ?2 and seq = ?3";
    const BY_THE_ENQUEUE: [&str; 2] = [
        "update tide_message set enqueued_at = enqueued_at + ?1, first_due_at = first_due_at + ?1,
            seal = tide_reseal(seal, 4, enqueued_at, enqueued_at + ?1, 5, first_due_at, first_due_at + ?1)
            where id = ?2",
        "update tide_lease set enqueued_at = enqueued_at + ?1, first_due_at = first_due_at + ?1,
            seal = tide_reseal(seal, 13, enqueued_at, enqueued_at + ?1, 15, first_due_at, first_due_at + ?1)
            where id = ?2",
    ];
    let waits: Vec<(u8, i64, i64, i64, Option<i64>)> = {
        let mut statement = conn.prepare_cached(WAITS)?;
        let waits = statement.query_map([now.as_millis()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        waits.collect::<Result<_, _>>()?
    };
    for (table, lane, due_at, id, run) in waits {
        conn.prepare_cached(ROWS[usize::from(table)])?.execute([jump, lane, due_at, id])?;
        match run {
            Some(run) => drop(conn.prepare_cached(BY_A_RUN)?.execute([jump, id, run])?),
            None => {
                for sql in BY_THE_ENQUEUE {
                    conn.prepare_cached(sql)?.execute([jump, id])?;
                }
            }
        }
    }
    Ok(())
}

fn note(conn: &Connection, now: Timestamp, jump: i64) -> rusqlite::Result<()> {
    const NOTE: &str = "insert into tide_jump (at, by_ms, seal) values (?1, ?2, ?3)";
    seal::execute(&mut conn.prepare_cached(NOTE)?, seal::JUMP, params![now.as_millis(), jump])?;
    unsteady(conn, now)
}

fn unsteady(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    const UNSTEADY: &str = "-- watch: time begins anew
        update tide_store set last_tick = ?1, steady_since = ?1";
    conn.prepare_cached(UNSTEADY)?.execute([now.as_millis()])?;
    Ok(())
}

fn ticks(conn: &Connection) -> rusqlite::Result<(Timestamp, Timestamp)> {
    const TICKS: &str = "-- watch: the last tick of any process
        select last_tick, steady_since from tide_store";
    let (last, steady): (i64, i64) = conn.prepare_cached(TICKS)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((Timestamp::from_millis(last), Timestamp::from_millis(steady)))
}

/// Notes that the store was swept now.
pub(crate) fn tick(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    const TICK_NOW: &str = "-- sweep: this tick
        update tide_store set last_tick = ?1";
    let (last, _) = ticks(conn)?;
    if last == Timestamp::EPOCH || last > now || now.since(last) >= TICK {
        conn.prepare_cached(TICK_NOW)?.execute([now.as_millis()])?;
    }
    Ok(())
}

/// Before which moment an ending is older than the retention, by time that really passed; none while the clock has not
/// been steady for long enough to delete by it.
pub(crate) fn retained_from(
    conn: &Connection,
    now: Timestamp,
    retention: Duration,
) -> Result<Option<Timestamp>, Trouble> {
    const JUMPS: &str = "-- sweep: nothing is deleted by a jump that cannot be believed; the newest first
        select * from tide_jump order by seq desc";
    let (_, steady_since) = ticks(conn)?;
    // Never set since the store was made: it has always been steady.
    if steady_since != Timestamp::EPOCH && now.since(steady_since) < STEADY {
        return Ok(None);
    }
    let oldest = now.before(retention).as_millis();
    // How far ahead of the time that passed the clock is for what ended between two jumps, at the worst. A jump that was
    // taken back counts for nothing before and after the two.
    let (mut ahead, mut most) = (0_i64, 0_i64);
    let mut statement = conn.prepare_cached(JUMPS)?;
    let mut jumps = statement.query([])?;
    while let Some(jump) = jumps.next()? {
        seal::check(jump, seal::JUMP)?;
        let (at, by): (i64, i64) = (row::column(jump, "at", "tide_jump")?, row::column(jump, "by_ms", "tide_jump")?);
        // What ended before this one is old enough, however it is dated.
        if at.saturating_add(ahead) <= oldest {
            break;
        }
        ahead = ahead.saturating_add(by);
        most = most.max(ahead);
    }
    let most = Duration::from_millis(u64::try_from(most).unwrap_or(0));
    Ok(Some(now.before(retention).before(most)))
}
