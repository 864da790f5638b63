//! Prolongs leases. A lease is lost when it is taken over, not when it lapses: the token is all that is asked.

use std::collections::HashMap;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::error::StoreError;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::store::{Counted, Extend, Extended, Verdicts};

use crate::conn::Step;
use crate::group::Group;
use crate::row;
use crate::trouble::Trouble;

/// What all items of a batch under one lease ask together.
struct Asked {
    id: MessageId,
    token: LeaseToken,
    until: Timestamp,
    alone: bool,
}

/// Prolongs a batch.
pub(crate) async fn extend(group: &mut Group, batch: &[&Extend]) -> Result<Verdicts<Extended>, Trouble> {
    const LOCK: &str =
        "-- extend: locked in the order of their ids, as everybody locks them; not against an effect that is
        -- being committed in the store under the lease, which only keeps it from being taken away; nor what was given to somebody else since
        select 1 from tidegate.lease where id = any($1) and nonce = any($2) order by id for no key update";
    const EXTEND: &str = "-- extend
        update tidegate.lease l set until = u.until, flags = l.flags | u.flags
        from unnest($1::bigint[], $2::integer[], $3::bytea[], $4::bigint[], $5::integer[]) with ordinality
            as u(id, claims, nonce, until, flags, place)
        where l.id = u.id
          and l.claims = u.claims and l.nonce = u.nonce           -- the lease token
        returning u.place, l.flags";
    const EXTEND_ANY: &str = "-- extend, broken: whoever asks
        update tidegate.lease l set until = u.until, flags = l.flags | u.flags
        from unnest($1::bigint[], $2::integer[], $3::bytea[], $4::bigint[], $5::integer[]) with ordinality
            as u(id, claims, nonce, until, flags, place)
        where l.id = u.id
        returning u.place, l.flags";
    let (asked, place_of) = merged(group.now, batch);
    let ids: Vec<i64> = asked.iter().map(|asked| asked.id.as_i64()).collect();
    let claims: Vec<i32> = asked.iter().map(|asked| row::narrow(asked.token.claims)).collect();
    let nonces: Vec<[u8; 16]> = asked.iter().map(|asked| *asked.token.nonce.as_bytes()).collect();
    let untils: Vec<i64> = asked.iter().map(|asked| asked.until.as_millis()).collect();
    let alone: Vec<i32> = asked.iter().map(|asked| if asked.alone { row::bits(row::ALONE) } else { 0 }).collect();
    let sql = if canary::is(Canary::ExtendWithoutToken) { EXTEND_ANY } else { EXTEND };
    let lock: Step<'_> = (LOCK, &[&ids, &nonces]);
    let extend: Step<'_> = (sql, &[&ids, &claims, &nonces, &untils, &alone]);
    let answers = group.conn.many(&[lock, extend]).await?;
    let mut flags: HashMap<i64, i64> = HashMap::new();
    for extended in answers.last().into_iter().flatten() {
        flags.insert(row::column(extended, 0, "lease")?, i64::from(row::column::<i32, _>(extended, 1, "lease")?));
    }
    let held = |at: usize| flags.get(&place_of[at]).copied();
    let late: Vec<MessageId> = (0..batch.len()).filter(|at| held(*at).is_none()).map(|at| batch[at].id).collect();
    count_late(group, &late).await?;
    Ok((batch.iter().enumerate())
        .map(|(at, item)| match held(at) {
            // The first run of a message after a restore finds out what happened; it is not called off before it did.
            Some(flags) => Ok(Extended {
                until: group.now.after(item.lease),
                cancel_requested: flags & (row::CANCEL | row::COPIED) == row::CANCEL,
            }),
            None => Err(StoreError::lease_lost(item.id)),
        })
        .collect())
}

/// One row for each lease: an update takes one of several new values for a row, and it is the last one's that stays. With
/// it the place of each item's row, counted from 1.
fn merged(now: Timestamp, batch: &[&Extend]) -> (Vec<Asked>, Vec<i64>) {
    let mut asked: Vec<Asked> = Vec::with_capacity(batch.len());
    let mut places: HashMap<(MessageId, LeaseToken), usize> = HashMap::with_capacity(batch.len());
    let mut place_of = Vec::with_capacity(batch.len());
    for Extend { id, token, lease, alone } in batch.iter().copied() {
        let until = now.after(*lease);
        let at = *places.entry((*id, *token)).or_insert(asked.len());
        match asked.get_mut(at) {
            Some(known) => (known.until, known.alone) = (until, known.alone | *alone),
            None => asked.push(Asked { id: *id, token: *token, until, alone: *alone }),
        }
        place_of.push(i64::try_from(at).unwrap_or(i64::MAX).saturating_add(1));
    }
    (asked, place_of)
}

/// Counts a write whose token is no longer current, and says so.
pub(crate) async fn lost(group: &mut Group, id: MessageId) -> Result<StoreError, Trouble> {
    count_late(group, &[id]).await?;
    Ok(StoreError::lease_lost(id))
}

/// Counts writes whose tokens are no longer current, each where its message was enqueued.
pub(crate) async fn count_late(group: &mut Group, ids: &[MessageId]) -> Result<(), Trouble> {
    const LANES: &str = "-- late writes are counted where their messages were enqueued
        select id, lane from tidegate.message where id = any($1)";
    if ids.is_empty() {
        return Ok(());
    }
    let list = row::id_list(ids);
    let mut of: HashMap<i64, i64> = HashMap::new();
    for found in &group.conn.query(LANES, &[&list]).await? {
        of.insert(row::column(found, 0, "message")?, row::column(found, 1, "message")?);
    }
    let lanes = group.lanes(&of.values().copied().collect::<Vec<_>>()).await?;
    for lane in ids.iter().filter_map(|id| lanes.get(of.get(&id.as_i64())?)) {
        group.tally(lane, Counted::RejectedLateWrites, "");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_core::id::Nonce;

    use super::*;

    #[test]
    fn several_wishes_for_one_lease_are_one_row_and_the_last_one_holds() {
        let extend = |id: i64, claims: u32, seconds: u64, alone: bool| Extend {
            id: MessageId::from_i64(id),
            token: LeaseToken { claims, nonce: Nonce::from_bytes([1; 16]) },
            lease: Duration::from_secs(seconds),
            alone,
        };
        let batch = [extend(1, 1, 30, true), extend(2, 1, 30, false), extend(1, 1, 60, false), extend(1, 2, 90, false)];
        let (asked, places) = merged(Timestamp::EPOCH, &batch.iter().collect::<Vec<_>>());
        assert_eq!(places, [1, 2, 1, 3]);
        let seconds: Vec<i64> = asked.iter().map(|asked| asked.until.as_millis() / 1000).collect();
        assert_eq!((seconds, asked[0].alone, asked.len()), (vec![60, 30, 90], true, 3));
    }
}
