//! Prolongs leases. A lease is lost when it is taken over, not when it lapses: the token is all that is asked.

use rusqlite::{OptionalExtension, params};
use tidegate_core::canary::{self, Canary};
use tidegate_core::error::StoreError;
use tidegate_core::failpoint;
use tidegate_core::id::MessageId;
use tidegate_core::store::{Counted, Extend, Extended, Verdicts};

use crate::group::Group;
use crate::row;
use crate::trouble::{Trouble, verdict};

/// Prolongs a batch.
pub(crate) fn extend(group: &mut Group<'_>, batch: &[Extend]) -> Result<Verdicts<Extended>, Trouble> {
    group.items += batch.len();
    let mut verdicts = Vec::with_capacity(batch.len());
    for item in batch {
        verdicts.push(verdict(one(group, item))?);
    }
    failpoint::reach("extend.before_commit");
    Ok(verdicts)
}

fn one(group: &mut Group<'_>, item: &Extend) -> Result<Extended, Trouble> {
    const EXTEND: &str = "-- extend
        update tide_lease set until = ?4, flags = flags | ?5,
            seal = tide_reseal(seal, 11, until, ?4, 8, flags, flags | ?5)
        where id = ?1
          and claims = ?2 and nonce = ?3           -- the lease token
        returning flags";
    const EXTEND_ANY: &str = "-- extend, broken: whoever asks
        update tide_lease set until = ?4, flags = flags | ?5,
            seal = tide_reseal(seal, 11, until, ?4, 8, flags, flags | ?5)
        where id = ?1 and coalesce(?2, ?3) is not null
        returning flags";
    let sql = if canary::is(Canary::ExtendWithoutToken) { EXTEND_ANY } else { EXTEND };
    let until = group.now.after(item.lease);
    let alone = if item.alone { row::ALONE } else { 0 };
    drop(group.take_lease(item.id));
    let flags: Option<i64> = group
        .conn
        .prepare_cached(sql)?
        .query_row(
            params![item.id.as_i64(), item.token.claims, item.token.nonce.as_bytes(), until.as_millis(), alone],
            |row| row.get(0),
        )
        .optional()?;
    match flags {
        // The first run of a message from a backup finds out what happened; it is not called off before it did.
        Some(flags) => Ok(Extended { until, cancel_requested: flags & (row::CANCEL | row::COPIED) == row::CANCEL }),
        None => Err(lost(group, item.id)?.into()),
    }
}

/// Counts a write whose token is no longer current, and says so.
pub(crate) fn lost(group: &mut Group<'_>, id: MessageId) -> Result<StoreError, Trouble> {
    const LANE: &str = "-- a late write is counted where its message was enqueued
        select lane from tide_message where id = ?1";
    let lane: Option<i64> = group.conn.prepare_cached(LANE)?.query_row([id.as_i64()], |row| row.get(0)).optional()?;
    if let Some(lane) = lane {
        let lane = group.lane(lane)?;
        group.tally(&lane, Counted::RejectedLateWrites, "");
    }
    Ok(StoreError::lease_lost(id))
}
