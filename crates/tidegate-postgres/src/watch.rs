//! Watches the wall clock against the time that really passed, at the start of every group.
//!
//! The store's time is the server's. A wall clock that is set ahead makes quarantines and retentions look over that are not,
//! and leases lapsed that hold; one that is set back, or that of another server after a failover, makes windows look open
//! in which a remote still knows our key. So quarantines that were running start again, leases and such windows move with
//! the clock, and the jump is noted: retention counts without it. Every process watches for itself; what one has noted,
//! the others do not note again. A group that read the clock before it was set may commit after: every group has a lock
//! from before it reads the clock until its end, and whoever puts things right waits for all of them.

use std::sync::PoisonError;
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;

use crate::conn::Conn;
use crate::group::Group;
use crate::row;
use crate::shared::Shared;
use crate::trouble::{Class, Trouble, class};

/// How much further the wall clock may go than time passed before it was set.
const JUMP: Duration = Duration::from_secs(60);
/// A store that nobody swept for this long cannot tell a jump from a rest, and is careful.
const REST: Duration = Duration::from_secs(3600);
/// How long nothing is deleted after the clock was set.
const STEADY: Duration = Duration::from_secs(3600);
/// Ticks are stored no more often than this: an idle store commits nothing else.
const TICK: Duration = Duration::from_secs(5);

/// Both hands of the clock: the server's wall clock, and this process's time around the moment at which it was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hands {
    pub(crate) wall: Timestamp,
    /// Monotonic, before the server was asked.
    pub(crate) asked: Duration,
    /// Monotonic, when its answer was here: a process that was stopped in between is no clock that was set.
    pub(crate) answered: Duration,
    /// The last jump that was noted when they were read.
    pub(crate) noted: i64,
}

impl Hands {
    /// How far the wall clock was set since these hands were read, in milliseconds: what no slow answer explains.
    fn jump(self, now: Self) -> i64 {
        if now.asked < self.asked {
            // Another group of this process has looked since: it has seen what there was to see.
            return 0;
        }
        let passed = now.wall.as_millis().saturating_sub(self.wall.as_millis());
        let least = row::millis(now.asked.saturating_sub(self.answered));
        let most = row::millis(now.answered.saturating_sub(self.asked)).max(least);
        passed - passed.clamp(least, most)
    }

    /// Whether the wall clock was set since these hands were read.
    pub(crate) fn jumped(self, now: Self) -> bool {
        self.jump(now).abs() > row::millis(JUMP)
    }

    /// The later of two readings, which two groups of this process made beside each other.
    pub(crate) fn later(self, other: Self) -> Self {
        if other.asked >= self.asked { other } else { self }
    }
}

/// Compares the hands with those of this process's last group; answers the hands to compare with next time. Inside the
/// group's transaction: what it puts right is committed with it, or found again by the next one.
pub(crate) async fn look(group: &mut Group) -> Result<Hands, Trouble> {
    let now = group.hands;
    let before = *group.shared.hands.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(before) = before else {
        // The first group of this process: nobody may have watched for a while.
        after_rest(&group.conn, now.wall).await?;
        return Ok(now);
    };
    if !before.jumped(now) {
        return Ok(now);
    }
    if !group.first.is_empty() {
        return Err(Trouble::Again("the clock was set, and something was read before that was put right"));
    }
    put_right(&group.conn, before, now).await
}

/// A group was committed that saw the clock so.
pub(crate) fn seen(shared: &Shared, hands: Hands) {
    let mut seen = shared.hands.lock().unwrap_or_else(PoisonError::into_inner);
    *seen = Some(seen.map_or(hands, |seen| seen.later(hands)));
}

/// Whether the clock was set since the last group: until the next one, stored times are not those in force. Only a clock
/// that was given can be asked without a transaction.
pub(crate) fn jumped(shared: &Shared) -> bool {
    let Some(clock) = &shared.clock else { return false };
    let seen = *shared.hands.lock().unwrap_or_else(PoisonError::into_inner);
    seen.is_some_and(|seen| {
        let monotonic = clock.monotonic();
        seen.jumped(Hands { wall: clock.now(), asked: monotonic, answered: monotonic, noted: seen.noted })
    })
}

/// The clock was set: what was stored by it is put right, unless another process was first.
async fn put_right(conn: &Conn, before: Hands, now: Hands) -> Result<Hands, Trouble> {
    const TURN: &str = "-- watch: one at a time; the others begin again, so that nobody waits in a circle
        select pg_try_advisory_xact_lock(hashtextextended('tidegate.clock', 1))";
    const ALL_ENDED: &str =
        "-- watch: whoever read the clock before it was set has ended, and what was dated by it is there to be put right
        select pg_advisory_xact_lock(hashtextextended('tidegate.clock', 0))";
    const ALONE: &str = "-- watch: one process at a time notes a jump; the others see it noted
        select 1 from tidegate.store for update";
    const NOTED: &str = "-- watch: what other processes noted since
        select coalesce(sum(by_ms), 0)::bigint, coalesce(max(seq), $1) from tidegate.jump where seq > $1";
    if !row::first_bool(&conn.query(TURN, &[]).await?)? {
        return Err(Trouble::Again("the clock was set, and somebody else puts right what was dated by it"));
    }
    if let Err(error) = conn.query(ALL_ENDED, &[]).await {
        return Err(match class(&error) {
            Class::Locked => Trouble::Again("the clock was set, and somebody is at work since before that"),
            Class::Again | Class::Lost | Class::Data | Class::Failed => error.into(),
        });
    }
    conn.query(ALONE, &[]).await?;
    let noted = conn.query(NOTED, &[&before.noted]).await?;
    let Some(noted) = noted.first() else { return Ok(now) };
    let unnoted = before.jump(now) - row::column::<i64, _>(noted, 0, "jump")?;
    if unnoted.abs() <= row::millis(JUMP) {
        return Ok(Hands { noted: row::column(noted, 1, "jump")?, ..now });
    }
    let expected = Timestamp::from_millis(now.wall.as_millis() - unnoted);
    shift_leases(conn, unnoted).await?;
    if unnoted < 0 {
        end_windows_in_time(conn, unnoted).await?;
        take_back(conn, now.wall, unnoted).await?;
    } else if !canary::is(Canary::ClockJumpBelieved) {
        restart_quarantines(conn, expected, now.wall, unnoted).await?;
    }
    Ok(Hands { noted: note(conn, now.wall, unnoted).await?, ..now })
}

/// A store that nobody swept for long cannot tell whether its clock was set meanwhile.
async fn after_rest(conn: &Conn, now: Timestamp) -> Result<(), Trouble> {
    let (last_tick, _) = ticks(conn).await?;
    if last_tick != Timestamp::EPOCH && now.since(last_tick) > REST {
        restart_quarantines(conn, last_tick, now, 0).await?;
        unsteady(conn, now).await?;
    }
    Ok(())
}

/// A lease holds as long as it was given, wherever the wall clock is set; what had lapsed stays lapsed.
async fn shift_leases(conn: &Conn, jump: i64) -> Result<(), Trouble> {
    const SHIFT: &str =
        "-- watch: all of them were given before: whoever gives a lease has looked at the clock first, and ended. By id,
        -- as everybody locks them
        update tidegate.lease set until = until + $1
        where id in (select id from tidegate.lease order by id for no key update)";
    conn.execute(SHIFT, &[&jump]).await?;
    Ok(())
}

/// Quarantines that were running start again: how much of them passed is not known. A sender that had not given up then
/// has as long as it had.
async fn restart_quarantines(conn: &Conn, before: Timestamp, now: Timestamp, jump: i64) -> Result<(), Trouble> {
    const RESTART: &str = "-- watch: a request may still be under way for all we know
        update tidegate.effect set last_possible_send = greatest($1, last_possible_send + $3)
        where state in ('intent', 'unknown') and last_possible_send + quarantine_ms > $2";
    conn.execute(RESTART, &[&now.as_millis(), &before.as_millis(), &jump]).await?;
    Ok(())
}

/// A remote forgets our key after the time that passes there, whatever our clock shows: set back, it would have us send a
/// key again that nobody remembers.
async fn end_windows_in_time(conn: &Conn, jump: i64) -> Result<(), Trouble> {
    const SHORTEN: &str =
        "-- watch: the windows of keys whose effects are open end as much earlier as the clock was set back
        update tidegate.effect set valid_until = greatest(0, valid_until + $1)
        where state in ('intent', 'unknown') and valid_until is not null";
    conn.execute(SHORTEN, &[&jump]).await?;
    Ok(())
}

/// What was dated while the clock was ahead is dated anew, now that it was set back by `jump`, which is negative. How long a
/// quarantine has run is what passed, in either direction. A date that was given before the clock went ahead stays: a wait
/// counts as dated ahead if the enqueue or the end of a run that gave it was at a moment that is yet to come.
async fn take_back(conn: &Conn, now: Timestamp, jump: i64) -> Result<(), Trouble> {
    const QUARANTINES: &str = "-- watch: open effects are few
        update tidegate.effect set last_possible_send = last_possible_send + $1 where state in ('intent', 'unknown')";
    const WAITS: &str =
        "-- watch: all of them that were dated ahead: retries, snoozes, delays, with the date that gave them
        with dated as (
            select d.id, h.seq from (
                select id from tidegate.sched where lane in (select id from tidegate.lane) and due_at > $2
                union all
                select id from tidegate.ready
                where lane in (select id from tidegate.lane) and pos > $2 and due_at > $2
                union all select id from tidegate.lease where due_at > $2) d
            join tidegate.message m on m.id = d.id
            left join lateral (select at, seq from tidegate.history where message = d.id order by seq desc limit 1) h
                on true
            where coalesce(h.at, m.enqueued_at) > $2),
        by_a_run as (update tidegate.history h set at = h.at + $1, due_at = h.due_at + $1
            from dated where h.message = dated.id and h.seq = dated.seq),
        by_the_enqueue as (update tidegate.message m
            set enqueued_at = m.enqueued_at + $1, first_due_at = m.first_due_at + $1
            from dated where m.id = dated.id and dated.seq is null),
        scheduled as (update tidegate.sched s set due_at = s.due_at + $1 from dated where s.id = dated.id),
        waiting as (update tidegate.ready r set pos = r.pos + $1, due_at = r.due_at + $1
            from dated where r.id = dated.id)
        update tidegate.lease l set due_at = l.due_at + $1,
            enqueued_at = coalesce(l.enqueued_at, l.due_at) + case when dated.seq is null then $1 else 0 end,
            first_due_at = l.first_due_at + case when dated.seq is null then $1 else 0 end
        from dated where l.id = dated.id";
    const RESULTS: &str = "-- watch: their retention began when they ended
        update tidegate.result set at = at + $1 where at > $2";
    const PARKED: &str = "-- watch: what was parked ahead, for whoever looks since when it waits
        update tidegate.held set at = at + $1
        where state = 'parked' and lane in (select id from tidegate.lane) and at > $2";
    const DEAD: &str = "-- watch: what died ahead, for the same
        update tidegate.held set at = at + $1
        where state = 'dead' and discarded_at is null and lane in (select id from tidegate.lane) and at > $2";
    const DISCARDED: &str = "-- watch: their retention began when they were given up
        update tidegate.held set at = at + case when at > $2 then $1 else 0 end, discarded_at = discarded_at + $1
        where discarded_at > $2";
    conn.execute(QUARANTINES, &[&jump]).await?;
    for sql in [WAITS, RESULTS, PARKED, DEAD, DISCARDED] {
        conn.execute(sql, &[&jump, &now.as_millis()]).await?;
    }
    Ok(())
}

async fn note(conn: &Conn, now: Timestamp, jump: i64) -> Result<i64, Trouble> {
    const NOTE: &str = "-- watch: a jump
        insert into tidegate.jump (at, by_ms) values ($1, $2) returning seq";
    let seq = row::first_i64(&conn.query(NOTE, &[&now.as_millis(), &jump]).await?)?;
    unsteady(conn, now).await?;
    Ok(seq)
}

async fn unsteady(conn: &Conn, now: Timestamp) -> Result<(), Trouble> {
    const UNSTEADY: &str = "-- watch: time begins anew
        update tidegate.store set last_tick = $1, steady_since = $1";
    conn.execute(UNSTEADY, &[&now.as_millis()]).await?;
    Ok(())
}

async fn ticks(conn: &Conn) -> Result<(Timestamp, Timestamp), Trouble> {
    const TICKS: &str = "-- watch: the last tick of any process
        select last_tick, steady_since from tidegate.store";
    let rows = conn.query(TICKS, &[]).await?;
    let Some(ticks) = rows.first() else {
        return Err(StoreError::corrupt("store", "the row of the whole store is missing").into());
    };
    Ok((row::time(ticks, 0, "store")?, row::time(ticks, 1, "store")?))
}

/// Notes that the store was swept now.
pub(crate) async fn tick(group: &mut Group) -> Result<(), Trouble> {
    const TICK_NOW: &str = "-- sweep: this tick, unless another one was noted a moment ago
        update tidegate.store set last_tick = $1 where last_tick = 0 or last_tick > $1 or $1 - last_tick >= $2";
    group.conn.execute(TICK_NOW, &[&group.now.as_millis(), &row::millis(TICK)]).await?;
    Ok(())
}

/// Before which moment an ending is older than the retention, by time that really passed; none while the clock has not
/// been steady for long enough to delete by it.
pub(crate) async fn retained_from(group: &mut Group, retention: Duration) -> Result<Option<Timestamp>, Trouble> {
    const JUMPS: &str = "-- sweep: nothing is deleted by a jump that cannot be believed; the newest first
        select at, by_ms from tidegate.jump order by seq desc";
    let (conn, now) = (&group.conn, group.now);
    let (_, steady_since) = ticks(conn).await?;
    // Never set since the store was made: it has always been steady.
    if steady_since != Timestamp::EPOCH && now.since(steady_since) < STEADY {
        return Ok(None);
    }
    let oldest = now.before(retention).as_millis();
    // How far ahead of the time that passed the clock is for what ended between two jumps, at the worst. A jump that was
    // taken back counts for nothing before and after the two.
    let (mut ahead, mut most) = (0_i64, 0_i64);
    for jump in conn.query(JUMPS, &[]).await? {
        let (at, by): (i64, i64) = (row::column(&jump, 0, "jump")?, row::column(&jump, 1, "jump")?);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hands(wall: i64, asked: u64, answered: u64) -> Hands {
        let (asked, answered) = (Duration::from_millis(asked), Duration::from_millis(answered));
        Hands { wall: Timestamp::from_millis(wall), asked, answered, noted: 0 }
    }

    #[test]
    fn a_clock_that_goes_as_time_does_has_not_jumped() {
        let before = hands(1_000_000, 0, 5);
        for (wall, asked, answered) in [(1_000_000, 0, 9), (1_090_000, 90_000, 90_010), (1_090_000, 89_990, 90_050)] {
            assert_eq!(before.jump(hands(wall, asked, answered)), 0, "{wall} {asked} {answered}");
        }
    }

    #[test]
    fn a_process_that_was_stopped_while_it_asked_has_seen_no_jump() {
        // The server answered at once; ten minutes later this process was let go on, and asked again at once.
        let (before, stopped) = (hands(1_000_000, 0, 5), hands(1_001_000, 1_000, 601_000));
        assert_eq!(before.jump(stopped), 0);
        assert_eq!(stopped.jump(hands(1_601_001, 601_001, 601_002)), 0);
        assert!(!stopped.jumped(hands(1_601_001, 601_001, 601_002)));
    }

    #[test]
    fn a_group_that_read_the_clock_before_another_one_sees_no_jump_in_it() {
        // Both were stopped for ten minutes, the one between its reading and its look.
        let (read_before, read_after) = (hands(1_000_000, 1_000, 1_001), hands(1_600_000, 601_000, 601_001));
        assert_eq!(read_after.jump(read_before), 0);
        assert_eq!(read_before.jump(read_after), 0);
    }

    #[test]
    fn a_jump_is_what_the_time_of_this_process_cannot_explain() {
        let before = hands(1_000_000_000, 0, 10);
        assert_eq!(before.jump(hands(1_003_601_000, 1_000, 1_020)), 3_599_980);
        assert_eq!(before.jump(hands(999_401_000, 1_000, 1_020)), -599_990);
        assert!(before.jumped(hands(1_003_601_000, 1_000, 1_020)));
        assert!(!before.jumped(hands(1_000_060_000, 1_000, 1_020)));
    }
}
