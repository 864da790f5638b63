//! Writes the journal of running messages. `effect.rs` of the core decides each row; a late confirmation is kept as
//! evidence and applied to nothing.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{self, EffectAnswer, EffectKey, EffectRow, EffectState, Unrecorded};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::message::Message;
use tidegate_core::store::{Journal, JournalWrite, Verdicts};

use crate::conn::Step;
use crate::copied;
use crate::extend;
use crate::group::{Group, Limits};
use crate::names::Lane;
use crate::place;
use crate::row::{self, JOURNALED, LeaseRow};
use crate::trouble::{Trouble, verdict};
use crate::writes::{Flagged, NewEvidence};

/// A running message, locked, with all that a write into its journal needs.
pub(crate) struct Run {
    pub(crate) lease: LeaseRow,
    pub(crate) lane: Arc<Lane>,
    /// With the times that are in force.
    pub(crate) message: Result<Message, StoreError>,
    pub(crate) rows: Result<Vec<EffectRow>, StoreError>,
    /// Set where an effect may have been sent of which this store knows nothing.
    pub(crate) unrecorded: Option<Unrecorded>,
}

/// Writes a batch.
pub(crate) async fn journal(group: &mut Group, batch: &[&Journal]) -> Result<Verdicts<EffectRow>, Trouble> {
    let mut runs = running(group, batch.iter().map(|item| (item.id, item.token))).await?;
    let missing: Vec<&Journal> = batch.iter().copied().filter(|item| !runs.contains_key(&item.id)).collect();
    if came_back(group, &missing).await? {
        return Err(Trouble::Again("a settlement under the same token gave the lease back meanwhile"));
    }
    let mut verdicts = Vec::with_capacity(batch.len());
    let mut late = Vec::new();
    for item in batch {
        let holds =
            |run: &&mut Run| is_current(&run.lease, item.token, group.now) || canary::is(Canary::JournalWithoutFence);
        match runs.get_mut(&item.id).filter(holds) {
            Some(run) => verdicts.push(verdict(one(group, run, item))?),
            None => {
                keep_evidence(group, item.id, item.before.iter().chain([&item.write]));
                late.push(item.id);
                verdicts.push(Err(StoreError::lease_lost(item.id)));
            }
        }
    }
    extend::count_late(group, &late).await?;
    Ok(verdicts)
}

/// Locks running messages and reads them, in one round trip.
async fn running(
    group: &Group,
    tokens: impl Iterator<Item = (MessageId, LeaseToken)>,
) -> Result<HashMap<MessageId, Run>, Trouble> {
    let (mut ids, nonces): (Vec<i64>, Vec<[u8; 16]>) =
        tokens.map(|(id, token)| (id.as_i64(), *token.nonce.as_bytes())).unzip();
    ids.sort_unstable();
    ids.dedup();
    let mut runs = HashMap::with_capacity(ids.len());
    if ids.is_empty() {
        return Ok(runs);
    }
    // The statements run one after another: what is read after the lock is what the lock keeps.
    let unfenced = canary::is(Canary::JournalWithoutFence) || canary::is(Canary::TokenWithoutNonce);
    let leases: Step<'_> = (if unfenced { place::LEASES_OF_ANYBODY } else { place::LEASES }, &[&ids, &nonces]);
    let bodies: Step<'_> = (place::BODIES, &[&ids]);
    let journals: Step<'_> = (place::JOURNALS, &[&ids]);
    let answers = group.conn.many(&[leases, bodies, journals, (copied::COPY, &[])]).await?;
    let [leases, bodies, journals, copy] = &answers[..] else { return Ok(runs) };
    let leases: Vec<(MessageId, LeaseRow)> = leases.iter().map(|row| row::lease(row, 0)).collect::<Result<_, _>>()?;
    let lanes = group.lanes(&leases.iter().map(|(_, lease)| lease.life.lane).collect::<Vec<_>>()).await?;
    for (id, lease) in leases {
        let Some(lane) = lanes.get(&lease.life.lane).cloned() else { continue };
        let gone = Err(place::bodiless(id));
        let unread = if lease.life.has(JOURNALED) { Err(place::journalless(id)) } else { Ok(Vec::new()) };
        runs.insert(id, Run { lease, lane, message: gone, rows: unread, unrecorded: None });
    }
    for body in bodies {
        if let Some(run) = runs.get_mut(&row::message_id(body, 0, "message")?) {
            let message = verdict(row::message(body, 0, &run.lane))?;
            run.message = message.map(|message| place::in_force(message, run.lease.life.expires_at));
        }
    }
    for (id, rows) in place::journals_of(journals)? {
        if let Some(run) = runs.get_mut(&id) {
            run.rows = rows;
        }
    }
    if let Some(copy) = copy.first() {
        for run in runs.values_mut() {
            if let Ok(message) = &run.message {
                run.unrecorded = copied::unrecorded(&group.conn, copy, message.flow).await?;
            }
        }
    }
    Ok(runs)
}

/// Whether one of these leases is held after all: what the settlement that was waited for gave back is not shown by the
/// snapshot of the statement that waited.
async fn came_back(group: &Group, missing: &[&Journal]) -> Result<bool, Trouble> {
    const CAME_BACK: &str = "-- journal: a lease that came back with the commit that was waited for
        select 1 from unnest($1::bigint[], $2::integer[], $3::bytea[]) as u(id, claims, nonce)
        join tidegate.lease l on l.id = u.id and l.claims = u.claims and l.nonce = u.nonce limit 1";
    if missing.is_empty() {
        return Ok(false);
    }
    let ids: Vec<i64> = missing.iter().map(|item| item.id.as_i64()).collect();
    let claims: Vec<i32> = missing.iter().map(|item| row::narrow(item.token.claims)).collect();
    let nonces: Vec<[u8; 16]> = missing.iter().map(|item| *item.token.nonce.as_bytes()).collect();
    Ok(!group.conn.query(CAME_BACK, &[&ids, &claims, &nonces]).await?.is_empty())
}

/// Whether this token holds the lease.
pub(crate) fn is_current(lease: &LeaseRow, token: LeaseToken, now: Timestamp) -> bool {
    if canary::is(Canary::TokenWithoutNonce) {
        return lease.token.claims == token.claims;
    }
    if canary::is(Canary::LeaseLostAtExpiry) {
        return lease.token == token && now <= lease.until;
    }
    lease.token == token
}

/// All writes of an item, or none of them.
fn one(group: &mut Group, run: &mut Run, item: &Journal) -> Result<EffectRow, Trouble> {
    item.check()?;
    let message = run.message.as_ref().map_err(StoreError::clone)?;
    let before = run.rows.as_ref().map_err(StoreError::clone)?;
    let mut rows = before.clone();
    let mut written = Vec::new();
    let limits = group.limits;
    let journal = Applying { limits, now: group.now, lease: &run.lease, message, unrecorded: run.unrecorded };
    for write in &item.before {
        written.extend(journal.apply(&mut rows, write)?.and_then(Applied::into_stored));
    }
    let Some(last) = journal.apply(&mut rows, &item.write)? else {
        let what = format!("nothing to write in the journal of {}", item.id);
        return Err(StoreError::conflict(what).message_id(item.id).into());
    };
    let answer = last.row().clone();
    written.extend(last.into_stored());
    if !written.is_empty() && !run.lease.life.has(JOURNALED) {
        // From now on the journal is read before any decision.
        group.writes.flags.push((Flagged::Lease, item.id, JOURNALED));
        run.lease.life.flags |= JOURNALED;
    }
    group.writes.effects.extend(written.into_iter().map(|row| (item.id, row)));
    run.rows = Ok(rows);
    Ok(answer)
}

/// What a write came to.
pub(crate) enum Applied {
    /// A row that is to be stored.
    New(EffectRow),
    /// The row says it already.
    Known(EffectRow),
}

impl Applied {
    fn row(&self) -> &EffectRow {
        match self {
            Self::New(row) | Self::Known(row) => row,
        }
    }

    /// The row, if it is to be stored.
    pub(crate) fn into_stored(self) -> Option<EffectRow> {
        match self {
            Self::New(row) => Some(row),
            Self::Known(_) => None,
        }
    }
}

/// A journal to which writes are applied in their order, in memory.
pub(crate) struct Applying<'a> {
    pub(crate) limits: Limits,
    pub(crate) now: Timestamp,
    pub(crate) lease: &'a LeaseRow,
    pub(crate) message: &'a Message,
    pub(crate) unrecorded: Option<Unrecorded>,
}

impl Applying<'_> {
    /// Applies one write and brings `rows` up to date; `None` when there was nothing to write. Its refusal leaves them as
    /// they were.
    pub(crate) fn apply(&self, rows: &mut Vec<EffectRow>, write: &JournalWrite) -> Result<Option<Applied>, StoreError> {
        let Self { limits, now, lease, message, .. } = *self;
        let (token, round) = (lease.token, lease.life.counters.round);
        let row = match write {
            JournalWrite::Intent { reached, times } => {
                check_unlapsed(now, lease, message.id)?;
                let assumed = self.unrecorded.and_then(|unrecorded| {
                    effect::assumed(message, rows, reached, *times, token, round, unrecorded, now)
                });
                match assumed {
                    Some(open) => open,
                    None if canary::is(Canary::GenerationInEffectKey) => {
                        let row = effect::intend(message, rows, reached, *times, token, round, now)?;
                        let key = EffectKey::of(message, &reached.effect, lease.life.counters.generation);
                        EffectRow { key, ..row }
                    }
                    None => effect::intend(message, rows, reached, *times, token, round, now)?,
                }
            }
            JournalWrite::Answer { effect, seq, answer } => {
                let Some(row) = rows.iter().find(|row| row.effect == *effect && row.seq == *seq) else {
                    let what = format!("no row {seq} of effect {effect} in the journal of {}", message.id);
                    return Err(StoreError::conflict(what));
                };
                check_size(limits, answer)?;
                if effect::repeats(row, answer) {
                    return Ok(Some(Applied::Known(row.clone())));
                }
                EffectRow { state: effect::answered(&effect::seen_under(row, token), answer, now)?, ..row.clone() }
            }
            JournalWrite::NotSent { effect } => match effect::not_sent(rows, effect, token, now) {
                Some(row) => row,
                None => return Ok(None),
            },
            JournalWrite::Natural { reached, value } => {
                check_value(limits, value)?;
                if let Some(known) = effect::latest(rows, &reached.effect)
                    && known.token == token
                    && known.state == (EffectState::Confirmed { value: value.clone() })
                {
                    return Ok(Some(Applied::Known(known.clone())));
                }
                effect::confirmed_at_once(message, rows, reached, value.clone(), token, round, now)?
            }
        };
        match rows.iter_mut().find(|known| known.effect == row.effect && known.seq == row.seq) {
            Some(known) => *known = row.clone(),
            None => rows.push(row.clone()),
        }
        Ok(Some(Applied::New(row)))
    }
}

/// Nothing new may leave once the lease lapsed: a sweep may be about to give the message to another worker.
pub(crate) fn check_unlapsed(now: Timestamp, lease: &LeaseRow, id: MessageId) -> Result<(), StoreError> {
    if now <= lease.until || canary::is(Canary::IntentAfterLapse) {
        return Ok(());
    }
    let what = format!("the lease of {id} lapsed at {}; no effect may begin", lease.until);
    Err(StoreError::new(StoreErrorKind::LeaseLost, what).message_id(id))
}

fn check_size(limits: Limits, answer: &EffectAnswer) -> Result<(), StoreError> {
    match answer {
        EffectAnswer::Confirmed { value } => check_value(limits, value),
        EffectAnswer::Rejected { .. }
        | EffectAnswer::NotDone
        | EffectAnswer::Unknown { .. }
        | EffectAnswer::NotFound => Ok(()),
    }
}

/// Refuses a value that is too large to be kept for ever.
pub(crate) fn check_value(limits: Limits, value: &Arc<str>) -> Result<(), StoreError> {
    let (size, most) = (value.len(), limits.max_payload);
    if size <= most {
        return Ok(());
    }
    Err(StoreError::invalid(format!("effect value of {size} bytes is over the limit of {most}"))
        .hint("confirm with a reference to what the remote returned"))
}

/// Keeps confirmations that arrived under a lost lease, for whoever resolves: of each effect the first and the latest, none
/// of them twice.
pub(crate) fn keep_evidence<'a>(group: &mut Group, id: MessageId, writes: impl Iterator<Item = &'a JournalWrite>) {
    for write in writes {
        let JournalWrite::Answer { effect, answer: EffectAnswer::Confirmed { value }, .. } = write else { continue };
        if canary::is(Canary::EvidenceDropped) {
            continue;
        }
        let late = NewEvidence {
            message: id,
            at: group.now,
            name: effect.name.as_str().to_owned(),
            item: row::stored_item(effect),
            value: value.to_string(),
        };
        // What is stored already the statement leaves out.
        if !group.writes.evidence.contains(&late) {
            group.writes.evidence.push(late);
        }
    }
}
