//! Watches the wall clock against the time that really passed, at the start of every group.
//!
//! A wall clock that is set ahead makes quarantines and retentions look over that are not, and leases lapsed that hold.
//! So quarantines that were running start again, leases get the jump on top, and the jump is noted: retention counts
//! without it. Every process watches for itself; what one has noted, the others do not note again.

use std::time::Duration;

use rusqlite::{Connection, params};
use tidegate_core::clock::Timestamp;

use crate::row;

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
}

/// Compares the hands with those of this process's last group.
pub(crate) fn look(conn: &Connection, before: Option<Hands>, now: Hands) -> rusqlite::Result<()> {
    let Some(before) = before else { return after_rest(conn, now.wall) };
    let expected = before.wall.after(now.monotonic.saturating_sub(before.monotonic));
    if now.wall.since(expected) > JUMP {
        set_ahead(conn, expected, now.wall)?;
    } else if expected.since(now.wall) > JUMP {
        set_back(conn, expected, now.wall)?;
    }
    Ok(())
}

/// The first look of this process: nobody may have watched for a while.
fn after_rest(conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let (last_tick, _) = ticks(conn)?;
    if last_tick != Timestamp::EPOCH && now.since(last_tick) > REST {
        restart_quarantines(conn, last_tick, now)?;
        unsteady(conn, now)?;
    }
    Ok(())
}

fn set_ahead(conn: &Connection, expected: Timestamp, now: Timestamp) -> rusqlite::Result<()> {
    const NOTED: &str = "-- watch: what other processes noted of this jump
        select coalesce(sum(by_ms), 0) from tide_jump where at > ?1";
    const NOTE: &str = "insert into tide_jump (at, by_ms) values (?1, ?2)";
    let noted: i64 = conn.prepare_cached(NOTED)?.query_row([expected.as_millis()], |row| row.get(0))?;
    let jump = row::millis(now.since(expected)) - noted;
    if jump <= row::millis(JUMP) {
        return Ok(());
    }
    restart_quarantines(conn, expected, now)?;
    lengthen_leases(conn, expected, now, jump)?;
    conn.prepare_cached(NOTE)?.execute(params![now.as_millis(), jump])?;
    unsteady(conn, now)
}

/// Leases that were to lapse soon must not hold for as long as the clock went back.
fn set_back(conn: &Connection, expected: Timestamp, now: Timestamp) -> rusqlite::Result<()> {
    const SHORTEN: &str = "-- watch: leases given before the clock was set back
        update tide_lease set until = until - ?1 where until >= ?2";
    let by = row::millis(expected.since(now));
    conn.prepare_cached(SHORTEN)?.execute([by, expected.as_millis()])?;
    unsteady(conn, now)
}

/// Quarantines that were running start again: how much of them passed is not known.
fn restart_quarantines(conn: &Connection, before: Timestamp, now: Timestamp) -> rusqlite::Result<()> {
    const RESTART: &str = "-- watch: a request may still be under way for all we know
        update tide_effect set last_possible_send = ?1
        where state in ('intent', 'unknown')
          and last_possible_send + quarantine_ms > ?2 and last_possible_send < ?1";
    conn.prepare_cached(RESTART)?.execute([now.as_millis(), before.as_millis()])?;
    Ok(())
}

/// Leases that held before the jump hold as long as they did.
fn lengthen_leases(conn: &Connection, expected: Timestamp, now: Timestamp, by: i64) -> rusqlite::Result<()> {
    const LENGTHEN: &str = "-- watch: the clock was set, their holders did nothing wrong
        update tide_lease set until = until + ?1 where until >= ?2 and until < ?3";
    conn.prepare_cached(LENGTHEN)?.execute([by, expected.as_millis(), now.as_millis()])?;
    Ok(())
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
    let (last, steady): (i64, i64) =
        conn.prepare_cached(TICKS)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
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
) -> rusqlite::Result<Option<Timestamp>> {
    const JUMPS: &str = "-- sweep: the newest jumps first
        select at, by_ms from tide_jump where at > ?1 order by at desc";
    let (_, steady_since) = ticks(conn)?;
    // Never set since the store was made: it has always been steady.
    if steady_since != Timestamp::EPOCH && now.since(steady_since) < STEADY {
        return Ok(None);
    }
    let mut from = now.before(retention);
    loop {
        // Reaching further back may bring further jumps into reach.
        let mut statement = conn.prepare_cached(JUMPS)?;
        let jumps = statement.query_map([from.as_millis()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let mut reached = now.before(retention);
        for jump in jumps {
            let (_, by) = jump?;
            reached = reached.before(Duration::from_millis(u64::try_from(by).unwrap_or(0)));
        }
        if reached == from {
            return Ok(Some(from));
        }
        from = reached;
    }
}
