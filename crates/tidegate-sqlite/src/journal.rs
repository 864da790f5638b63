//! Writes the journal of running messages. `effect.rs` of the core decides each row; a late confirmation is kept as
//! evidence and applied to nothing.

use std::sync::Arc;

use rusqlite::params;
use tidegate_core::canary::{self, Canary};
use tidegate_core::effect::{self, EffectAnswer, EffectKey, EffectRow, EffectState};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::message::Message;
use tidegate_core::store::{Journal, JournalWrite, MOST_EVIDENCE, Verdicts};

use crate::copied;
use crate::extend;
use crate::group::Group;
use crate::place;
use crate::row::{self, JOURNALED, LeaseRow};
use crate::seal;
use crate::trouble::{Trouble, verdict};

/// Writes a batch.
pub(crate) fn journal(group: &mut Group<'_>, batch: &[Journal]) -> Result<Verdicts<EffectRow>, Trouble> {
    group.items += batch.len();
    let mut verdicts = Vec::with_capacity(batch.len());
    for item in batch {
        verdicts.push(verdict(one(group, item))?);
    }
    failpoint::reach("journal.before_commit");
    Ok(verdicts)
}

fn one(group: &mut Group<'_>, item: &Journal) -> Result<EffectRow, Trouble> {
    let writes = || item.before.iter().chain([&item.write]);
    let lease = match current(group, item.id, item.token)? {
        None if canary::is(Canary::JournalWithoutFence) => place::lease(group.conn, item.id)?,
        lease => lease,
    };
    let Some(lease) = lease else {
        keep_evidence(group, item.id, writes())?;
        return Err(extend::lost(group, item.id)?.into());
    };
    item.check()?;
    let lane = group.lane(lease.life.lane)?;
    let message = place::in_force(place::body(group.conn, item.id, &lane)?, lease.life.expires_at);
    let mut rows = place::journal_if(group.conn, item.id, lease.life.flags)?;
    if item.before.is_empty() {
        return written(apply(group, &lease, &message, &mut rows, &item.write)?, item);
    }
    group.atomically(|group| {
        apply_all(group, &lease, &message, &mut rows, &item.before)?;
        written(apply(group, &lease, &message, &mut rows, &item.write)?, item)
    })
}

fn written(row: Option<EffectRow>, item: &Journal) -> Result<EffectRow, Trouble> {
    let nothing =
        || StoreError::conflict(format!("nothing to write in the journal of {}", item.id)).message_id(item.id);
    Ok(row.ok_or_else(nothing)?)
}

/// The lease, if this token holds it; whoever asks may write to it.
pub(crate) fn current(group: &mut Group<'_>, id: MessageId, token: LeaseToken) -> Result<Option<LeaseRow>, Trouble> {
    let lease = match group.take_lease(id) {
        Some(lease) => Some(lease),
        None => place::lease_by(&mut *group.sql(place::LEASE)?, id)?,
    };
    if canary::is(Canary::TokenWithoutNonce) {
        return Ok(lease.filter(|lease| lease.token.claims == token.claims));
    }
    if canary::is(Canary::LeaseLostAtExpiry) {
        return Ok(lease.filter(|lease| lease.token == token && group.now <= lease.until));
    }
    Ok(lease.filter(|lease| lease.token == token))
}

/// Applies writes in order.
pub(crate) fn apply_all(
    group: &mut Group<'_>,
    lease: &LeaseRow,
    message: &Message,
    rows: &mut Vec<EffectRow>,
    writes: &[JournalWrite],
) -> Result<(), Trouble> {
    for write in writes {
        apply(group, lease, message, rows, write)?;
    }
    Ok(())
}

/// Applies one write and brings `rows` up to date; `None` when there was nothing to write. Its refusal has written nothing.
fn apply(
    group: &Group<'_>,
    lease: &LeaseRow,
    message: &Message,
    rows: &mut Vec<EffectRow>,
    write: &JournalWrite,
) -> Result<Option<EffectRow>, Trouble> {
    let (token, round) = (lease.token, lease.life.counters.round);
    let row = match write {
        JournalWrite::Intent { reached, times } => {
            check_unlapsed(group, lease, message.id)?;
            match copied::assumed(group, message, rows, reached, *times, lease)? {
                Some(open) => open,
                None if canary::is(Canary::GenerationInEffectKey) => {
                    let row = effect::intend(message, rows, reached, *times, token, round, group.now)?;
                    EffectRow { key: EffectKey::of(message, &reached.effect, lease.life.counters.generation), ..row }
                }
                None => effect::intend(message, rows, reached, *times, token, round, group.now)?,
            }
        }
        JournalWrite::Answer { effect, seq, answer } => {
            let Some(row) = rows.iter().find(|row| row.effect == *effect && row.seq == *seq) else {
                let what = format!("no row {seq} of effect {effect} in the journal of {}", message.id);
                return Err(StoreError::conflict(what).into());
            };
            check_size(group, answer)?;
            if effect::repeats(row, answer) {
                return Ok(Some(row.clone()));
            }
            EffectRow { state: effect::answered(&effect::seen_under(row, token), answer, group.now)?, ..row.clone() }
        }
        JournalWrite::NotSent { effect } => match effect::not_sent(rows, effect, token, group.now) {
            Some(row) => row,
            None => return Ok(None),
        },
        JournalWrite::Natural { reached, value } => {
            check_value(group, value)?;
            if let Some(known) = effect::latest(rows, &reached.effect)
                && known.token == token
                && known.state == (EffectState::Confirmed { value: value.clone() })
            {
                return Ok(Some(known.clone()));
            }
            effect::confirmed_at_once(message, rows, reached, value.clone(), token, round, group.now)?
        }
    };
    put(group, lease, message.id, rows, &row)?;
    Ok(Some(row))
}

/// Nothing new may leave once the lease lapsed: a sweep may be about to give the message to another worker.
pub(crate) fn check_unlapsed(group: &Group<'_>, lease: &LeaseRow, id: MessageId) -> Result<(), StoreError> {
    if group.now <= lease.until || canary::is(Canary::IntentAfterLapse) {
        return Ok(());
    }
    let what = format!("the lease of {id} lapsed at {}; no effect may begin", lease.until);
    Err(StoreError::new(StoreErrorKind::LeaseLost, what).message_id(id))
}

/// Writes a row, and notes at the lease, which nobody remembers any more, that there is a journal.
pub(crate) fn put(
    group: &Group<'_>,
    lease: &LeaseRow,
    id: MessageId,
    rows: &mut Vec<EffectRow>,
    row: &EffectRow,
) -> Result<(), Trouble> {
    const NOTE: &str = "-- journal: from now on the journal is read before any decision
        update tide_lease set flags = flags | ?2, seal = tide_reseal(seal, 8, flags, flags | ?2) where id = ?1";
    row::put_effect(group.conn, id, row)?;
    if !lease.life.has(JOURNALED) && rows.is_empty() {
        group.conn.prepare_cached(NOTE)?.execute([id.as_i64(), JOURNALED])?;
    }
    match rows.iter_mut().find(|known| known.effect == row.effect && known.seq == row.seq) {
        Some(known) => *known = row.clone(),
        None => rows.push(row.clone()),
    }
    Ok(())
}

fn check_size(group: &Group<'_>, answer: &EffectAnswer) -> Result<(), StoreError> {
    match answer {
        EffectAnswer::Confirmed { value } => check_value(group, value),
        EffectAnswer::Rejected { .. }
        | EffectAnswer::NotDone
        | EffectAnswer::Unknown { .. }
        | EffectAnswer::NotFound => Ok(()),
    }
}

/// Refuses a value that is too large to be kept for ever.
pub(crate) fn check_value(group: &Group<'_>, value: &Arc<str>) -> Result<(), StoreError> {
    let (size, most) = (value.len(), group.limits.max_payload);
    if size <= most {
        return Ok(());
    }
    Err(StoreError::invalid(format!("effect value of {size} bytes is over the limit of {most}"))
        .hint("confirm with a reference to what the remote returned"))
}

/// Keeps confirmations that arrived under a lost lease, for whoever resolves: of each effect the first and the latest, none
/// of them twice.
pub(crate) fn keep_evidence<'a>(
    group: &Group<'_>,
    id: MessageId,
    writes: impl Iterator<Item = &'a JournalWrite>,
) -> Result<(), Trouble> {
    const EVIDENCE: &str = "-- journal: a late confirmation, as it came
        insert into tide_evidence (message, at, name, item, value, seal)
        select ?1, ?2, ?3, ?4, ?5, ?6 where exists (select 1 from tide_message where id = ?1)
            and not exists (select 1 from tide_evidence where message = ?1 and name = ?3 and item = ?4 and value = ?5)";
    const BOUND: &str = "-- journal: of an effect, the first and the latest late confirmations
        delete from tide_evidence
        where seq in (select seq from tide_evidence where message = ?1 and name = ?2 and item = ?3
                      order by seq desc limit -1 offset ?4)
            and seq > (select min(seq) from tide_evidence where message = ?1 and name = ?2 and item = ?3)";
    let latest = i64::try_from(MOST_EVIDENCE - 1).unwrap_or(i64::MAX);
    for write in writes {
        let JournalWrite::Answer { effect, answer: EffectAnswer::Confirmed { value }, .. } = write else { continue };
        if canary::is(Canary::EvidenceDropped) {
            continue;
        }
        let (name, item) = (effect.name.as_str(), row::stored_item(effect));
        let evidence = params![id.as_i64(), group.now.as_millis(), name, item, &**value];
        if seal::execute(&mut group.conn.prepare_cached(EVIDENCE)?, seal::EVIDENCE, evidence)? > 0 {
            group.conn.prepare_cached(BOUND)?.execute(params![id.as_i64(), name, item, latest])?;
        }
    }
    Ok(())
}
