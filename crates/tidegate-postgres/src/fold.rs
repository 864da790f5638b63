//! Sums up what commits added to depths and counters.
//!
//! Each is one statement that takes rows away and puts their sum back: a reader sees all of the rows or their sum, never
//! both and never neither. Rows of commits that are under way are not seen, and stay for the next time.

use tidegate_core::store::{MOST_CODES, OTHER_CODES};

use crate::group::Group;
use crate::row;
use crate::trouble::Trouble;

/// Fewer new rows than this are not worth it.
const WORTH: i64 = 200;
/// The most rows at a time.
const MOST: i64 = 20_000;

/// Sums up both tables; says whether there is more of them.
pub(crate) async fn fold(group: &Group) -> Result<bool, Trouble> {
    const DEPTHS: &str = "-- fold: what commits added to depths, summed up by queue
        with old as materialized (
            select seq from tidegate.depth order by seq limit $1 for update skip locked
        ), gone as (
            delete from tidegate.depth d using old where d.seq = old.seq and (select count(*) from old) >= $2
            returning d.*
        ), here as (
            insert into tidegate.depth (queue, ready, scheduled, leased, parked, dead)
            select queue, sum(ready), sum(scheduled), sum(leased), sum(parked), sum(dead) from gone group by queue
            having sum(ready) <> 0 or sum(scheduled) <> 0 or sum(leased) <> 0 or sum(parked) <> 0 or sum(dead) <> 0
        )
        select count(*) from gone";
    // A code is what a handler says: a number in it must not make a row, and a metric, for each. The first codes of a
    // counter keep their names; sums are put back in the order in which their codes first came.
    const TALLIES: &str = "-- fold: what commits counted, summed up
        with old as materialized (
            select seq from tidegate.tally order by seq limit $1 for update skip locked
        ), gone as (
            delete from tidegate.tally t using old where t.seq = old.seq and (select count(*) from old) >= $2
            returning t.*
        ), codes as (
            select queue, kind, what, code, min(seq) first, sum(n) n from gone group by queue, kind, what, code
        ), ranked as (
            select *, count(*) filter (where code not in ('', $4)) over
                (partition by queue, kind, what order by first, code) place from codes
        ), here as (
            insert into tidegate.tally (queue, kind, what, code, n)
            select queue, kind, what, case when code = '' or place <= $3 then code else $4 end, sum(n)
            from ranked group by 1, 2, 3, 4 order by min(first)
        )
        select count(*) from gone";
    let codes = i64::from(MOST_CODES);
    let answers =
        group.conn.many(&[(DEPTHS, &[&MOST, &WORTH]), (TALLIES, &[&MOST, &WORTH, &codes, &OTHER_CODES])]).await?;
    let mut more = false;
    for rows in &answers {
        more |= row::first_i64(rows)? >= MOST;
    }
    Ok(more)
}
