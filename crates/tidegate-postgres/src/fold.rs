//! Sums up what commits added to depths and counters.
//!
//! Each is one statement that takes rows away and puts their sum back: a reader sees all of the rows or their sum, never
//! both and never neither. Rows of commits that are under way are not seen, and stay for the next time.

use std::sync::atomic::Ordering;

use tidegate_core::store::{MOST_CODES, OTHER_CODES};

use crate::conn::Step;
use crate::group::Group;
use crate::row;
use crate::trouble::Trouble;

/// Fewer rows than this are not worth it, nor than twice as many as were left the last time.
const WORTH: i64 = 200;
/// The most rows at a time.
const MOST: i64 = 20_000;

/// Sums up both tables; says whether there is more of them.
pub(crate) async fn fold(group: &Group) -> Result<bool, Trouble> {
    const THERE: &str = "-- fold: whether it is worth it, which most often it is not
        select (select count(*) from (select from tidegate.depth limit $1) d),
            (select count(*) from (select from tidegate.tally limit $2) t)";
    const DEPTHS: &str = "-- fold: what commits added to depths, summed up by queue
        with old as materialized (
            select seq from tidegate.depth order by seq limit $1 for update skip locked
        ), gone as (
            delete from tidegate.depth d using old where d.seq = old.seq returning d.*
        ), here as (
            insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
            select queue, sum(ready), sum(scheduled), sum(leased), sum(parked), sum(dead) from gone group by queue
            having sum(ready) <> 0 or sum(scheduled) <> 0 or sum(leased) <> 0 or sum(parked) <> 0 or sum(dead) <> 0
            returning 1
        )
        select (select count(*) from gone), (select count(*) from here)";
    // A code is what a handler says: a number in it must not make a row, and a metric, for each. The first codes of a
    // counter keep their names; sums are put back in the order in which their codes first came.
    const TALLIES: &str = "-- fold: what commits counted, summed up
        with old as materialized (
            select seq from tidegate.tally order by seq limit $1 for update skip locked
        ), gone as (
            delete from tidegate.tally t using old where t.seq = old.seq returning t.*
        ), codes as (
            select queue, kind, what, code, min(seq) first, sum(n) n from gone group by queue, kind, what, code
        ), ranked as (
            select *, count(*) filter (where code not in ('', $3)) over
                (partition by queue, kind, what order by first, code) place from codes
        ), here as (
            insert into tidegate.tally (queue, kind, what, code, n)
            select queue, kind, what, case when code = '' or place <= $2 then code else $3 end, sum(n)
            from ranked group by 1, 2, 3, 4 order by min(first)
            returning 1
        )
        select (select count(*) from gone), (select count(*) from here)";
    let codes = i64::from(MOST_CODES);
    let depths: Step<'_> = (DEPTHS, &[&MOST]);
    let tallies: Step<'_> = (TALLIES, &[&MOST, &codes, &OTHER_CODES]);
    let left = &group.shared.folded;
    let worth = [0, 1].map(|of: usize| WORTH.max(2 * left[of].load(Ordering::Relaxed)));
    let there = group.conn.query(THERE, &[&worth[0], &worth[1]]).await?;
    let mut more = false;
    for (of, step) in [depths, tallies].into_iter().enumerate() {
        let rows: i64 = there.first().map_or(Ok(0), |row| row::column(row, of, "depth"))?;
        if rows < worth[of] {
            continue;
        }
        let Some(done) = group.conn.query_opt(step.0, step.1).await? else { continue };
        left[of].store(row::column(&done, 1, "depth")?, Ordering::Relaxed);
        more |= row::column::<i64, _>(&done, 0, "depth")? >= MOST;
    }
    Ok(more)
}
