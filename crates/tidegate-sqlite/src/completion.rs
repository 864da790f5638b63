//! Completions of first runs, written together: nearly every settlement is one.
//!
//! They decide as every other settlement does. What differs is that their leases are remembered ([`Group::remembered_lease`]),
//! that nothing follows from them, and so that nothing of them can be refused after the first write.

use tidegate_core::canary::{self, Canary};
use tidegate_core::failpoint;
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::{self, Counters, Next, Outcome};
use tidegate_core::store::{Counted, Settled};

use crate::group::{Group, Place};
use crate::many::{Cell, Many, unmade};
use crate::place;
use crate::seal;
use crate::settle::{Prepared, is_whole_flow};
use crate::trouble::Trouble;

/// Fewer leases than this are removed one by one.
const FEW: usize = 4;

/// A completion that was decided and is not written yet.
pub(crate) struct Completion<'b> {
    id: MessageId,
    lane: i64,
    nonce: [u8; 16],
    result: &'b str,
    digest: &'b [u8; 16],
}

/// Decides a settlement if it is a plain completion; if not, nothing was done.
pub(crate) fn decide<'b>(
    group: &mut Group<'_>,
    item: &'b Prepared,
    completions: &mut Vec<Completion<'b>>,
) -> Result<Option<Settled>, Trouble> {
    const FIRST: Counters = Counters { claims: 1, attempt: 1, crashes: 0, generation: 0, round: 0 };
    let settle = &item.settle;
    let Outcome::Completed { result, orphans: false } = &settle.outcome else { return Ok(None) };
    let alone = settle.journal.is_empty() && item.then.is_empty() && item.compensate.is_empty();
    if !alone || result.len() > group.limits.max_payload || canary::is(Canary::CheckActStore) {
        return Ok(None);
    }
    let Some(lease) = group.remembered_lease(settle.id) else { return Ok(None) };
    let current = lease.token == settle.token && !canary::is(Canary::LeaseLostAtExpiry);
    let first = lease.life.counters == FIRST && (lease.life.flags, lease.life.expires_at) == (0, None);
    if !current || !first || !is_whole_flow(settle.id, lease) {
        return Ok(None);
    }
    let facts = place::facts(&lease.life, lease.limits, &[], group.now);
    let (lane, enqueued_at) = (lease.life.lane, lease.enqueued_at);
    let policy = group.policy_of_lane(lane)?;
    let transition = lifecycle::settle(&facts, &settle.outcome, &policy, group.now, settle.unit);
    if transition.next != Next::Completed || transition.counters != FIRST || transition.suspect {
        return Ok(None);
    }
    drop(group.take_lease(settle.id));
    let nonce = *settle.token.nonce.as_bytes();
    completions.push(Completion { id: settle.id, lane, nonce, result, digest: &item.digest });
    Ok(Some(Settled {
        state: transition.next.state(),
        due_at: None,
        reason: None,
        follow_ups: Vec::new(),
        flow_took: Some(group.now.since(enqueued_at)),
        repeated: false,
    }))
}

/// Writes what was decided.
pub(crate) fn write(group: &mut Group<'_>, completions: &mut Vec<Completion<'_>>) -> Result<(), Trouble> {
    if completions.is_empty() {
        return Ok(());
    }
    completions.sort_unstable_by_key(|completion| (completion.lane, completion.nonce, completion.id));
    for of_claim in completions.chunk_by(|one, next| (one.lane, one.nonce) == (next.lane, next.nonce)) {
        let mut left = of_claim;
        while !left.is_empty() {
            // As far as no lease stands between that is still held.
            let neighbours = left.windows(2).take_while(|two| !group.remembers_between(two[0].id, two[1].id)).count();
            let (now, later) = left.split_at(neighbours + 1);
            remove_leases(group, now)?;
            left = later;
        }
    }
    failpoint::reach("settle.after_lease");
    for of_lane in completions.chunk_by(|one, next| one.lane == next.lane) {
        put_results(group, of_lane)?;
    }
    failpoint::reach("settle.after_state");
    completions.clear();
    Ok(())
}

/// Ends runs that began with one claim.
fn remove_leases(group: &Group<'_>, completions: &[Completion<'_>]) -> Result<(), Trouble> {
    const BETWEEN: &str = "-- settle: how many leases of the claim lie between two
        select count(*) from tide_lease where nonce = ?1 and id between ?2 and ?3";
    const END_ALL: &str = "-- settle: ends all first runs of the claim between two
        delete from tide_lease where id between ?2 and ?3
          and claims = 1 and nonce = ?1            -- the lease token";
    const END: &str = "-- settle: ends a first run
        delete from tide_lease where id = ?2
          and claims = 1 and nonce = ?1            -- the lease token";
    let [first, .., last] = completions else {
        return completions.iter().try_for_each(|one| {
            let removed = group.sql(END)?.execute((&one.nonce, one.id.as_i64()))?;
            if removed == 1 { Ok(()) } else { Err(not_there(removed, 1)) }
        });
    };
    let range = (&first.nonce, first.id.as_i64(), last.id.as_i64());
    let many = completions.len() >= FEW
        && group.sql(BETWEEN)?.query_row(range, |row| row.get::<_, i64>(0))?
            == i64::try_from(completions.len()).unwrap_or(-1);
    if !many {
        return completions.iter().try_for_each(|one| remove_leases(group, std::slice::from_ref(one)));
    }
    let removed = group.sql(END_ALL)?.execute(range)?;
    if removed == completions.len() { Ok(()) } else { Err(not_there(removed, completions.len())) }
}

/// A lease that is remembered has its row. Should it have none, nobody in this group is told anything but to try again; with
/// the group everything remembered is gone, and the next one reads what there is.
fn not_there(removed: usize, known: usize) -> Trouble {
    Trouble::undo(format!("{removed} leases were there of {known} that are remembered"))
}

fn put_results(group: &mut Group<'_>, completions: &[Completion<'_>]) -> Result<(), Trouble> {
    static RESULTS: Many<2, 4> = Many {
        sealed: seal::RESULT,
        sql: "-- settle: as every result, in the commit that removes what could be claimed; for first runs
            insert or fail into tide_result
            values (?3, 'completed', ?1, ?2, 1, 1, 0, 0, 0, 0, null, ?4, ?5, ?6, null, ?7)",
        shared: [2, 3],
        each: [0, 11, 12, 13],
        literal: &[
            (1, Cell::Text("completed")),
            (4, Cell::Int(1)),
            (5, Cell::Int(1)),
            (6, Cell::Int(0)),
            (7, Cell::Int(0)),
            (8, Cell::Int(0)),
            (9, Cell::Int(0)),
            (10, Cell::Null),
            (14, Cell::Null),
        ],
        made: unmade(),
    };
    let lane = group.lane(completions[0].lane)?;
    let mut rows: Vec<_> = (completions.iter())
        .map(|completion| {
            (
                completion.id,
                [
                    Cell::Int(completion.id.as_i64()),
                    Cell::Text(completion.result),
                    Cell::Blob(&completion.nonce),
                    Cell::Blob(completion.digest),
                ],
            )
        })
        .collect();
    // In the order of the table, whatever claims they came with.
    rows.sort_unstable_by_key(|(id, _)| *id);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    RESULTS.insert(group, [Cell::Int(group.now.as_millis()), Cell::Int(lane.id)], &rows)?;
    group.count(lane.queue_id, Place::Leased, -i64::try_from(completions.len()).unwrap_or(i64::MAX));
    group.tally_many(&lane, Counted::Completed, "", completions.len());
    group.tally_many(&lane, Counted::Attempts, "completed", completions.len());
    group.news.ended.extend(completions.iter().map(|completion| completion.id));
    Ok(())
}
