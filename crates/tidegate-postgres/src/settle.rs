//! Ends runs: result, state, follow-ups and journal in one commit, under the lease token.
//!
//! One round trip takes the leases of a batch away and reads them, the core decides in memory, and what it decided is
//! written with everything else of the group. A run about which nothing can be decided gets its lease back. Journals, policies
//! and what follows cost more only where there are any.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::canary::{self, Canary};
use tidegate_core::clock::Timestamp;
use tidegate_core::effect::{EffectRow, JournalFacts};
use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::failpoint;
use tidegate_core::id::{LeaseToken, MessageId};
use tidegate_core::lifecycle::{self, DeadReason, Next, Outcome, ParkReason, State, Transition};
use tidegate_core::message::{Failure, Message};
use tidegate_core::retry::Policy;
use tidegate_core::store::{self, Counted, Enqueued, Settle, Settled, Verdicts};

use crate::copied;
use crate::enqueue::{self, Origin};
use crate::extend;
use crate::group::{self, Group, Place};
use crate::journal::{self, Applied, Applying};
use crate::names::{Lane, LaneName};
use crate::place::{self, Ending, Found, Lock};
use crate::row::{self, LastSettlement, LeaseRow, Life};
use crate::trouble::Trouble;
use crate::writes::{self, Flagged, NewLease, Part, part};

/// A settlement that was hashed and whose follow-ups were checked, on its caller's thread.
#[derive(Debug)]
pub(crate) struct Prepared {
    settle: Settle,
    digest: [u8; 16],
    then: Vec<Result<enqueue::Prepared, StoreError>>,
    compensate: Vec<Result<enqueue::Prepared, StoreError>>,
    /// The database itself refused what was to be stored.
    refused: Option<StoreError>,
    /// Something that follows was refused when this was carried out last, without a savepoint.
    careful: AtomicBool,
}

impl Prepared {
    pub(crate) fn of(mut settle: Settle, max_payload: usize) -> Self {
        let digest = settle.digest();
        let prepare = |messages: Vec<_>| {
            messages.into_iter().map(|message| enqueue::Prepared::of(message, max_payload)).collect()
        };
        let then = prepare(std::mem::take(&mut settle.then));
        let compensate = prepare(std::mem::take(&mut settle.compensate));
        Self { settle, digest, then, compensate, refused: None, careful: AtomicBool::new(false) }
    }

    /// How much text it is, with what follows.
    pub(crate) fn size(&self) -> usize {
        let outcome = &self.settle.outcome;
        let failure = outcome.failure().map_or(0, |failure| failure.detail.len());
        let result = if let Outcome::Completed { result, .. } = outcome { result.len() } else { failure };
        result + self.then.iter().chain(&self.compensate).flatten().map(enqueue::Prepared::size).sum::<usize>()
    }

    /// Lanes that what follows may need.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = LaneName> {
        self.then.iter().chain(&self.compensate).flatten().map(enqueue::Prepared::lane)
    }

    /// What is settled where the database refused this by itself: the message ends for a person to look at, and whatever of
    /// the settlement cannot be told apart from what was refused is left out.
    pub(crate) fn refused(&self, error: &StoreError) -> Self {
        let settle = Settle { journal: Vec::new(), ..self.settle.clone() };
        Self {
            settle,
            digest: self.digest,
            then: Vec::new(),
            compensate: Vec::new(),
            refused: Some(error.clone()),
            careful: AtomicBool::new(false),
        }
    }

    /// What is enqueued with a message that becomes this.
    fn follow_ups(&self, state: State) -> &[Result<enqueue::Prepared, StoreError>] {
        match state {
            State::Completed => &self.then,
            State::Failed | State::Dead if canary::is(Canary::FollowUpsWithoutCompletion) => &self.then,
            State::Failed | State::Dead => &self.compensate,
            State::Ready | State::Leased | State::Cancelled | State::Parked => &[],
        }
    }
}

/// Settles a batch.
pub(crate) async fn settle(group: &mut Group, batch: &[&Prepared]) -> Result<Verdicts<Settled>, Trouble> {
    let mut verdicts: HashMap<usize, Result<Settled, StoreError>> = HashMap::with_capacity(batch.len());
    let mut left: Vec<usize> = (0..batch.len()).collect();
    while !left.is_empty() {
        // A message that is settled twice in a batch is looked at again after the first of them.
        let mut seen = HashSet::with_capacity(left.len());
        let (wave, later): (Vec<usize>, Vec<usize>) =
            left.into_iter().partition(|at| seen.insert(batch[*at].settle.id));
        settle_wave(group, batch, &wave, &mut verdicts).await?;
        left = later;
        if !left.is_empty() {
            group.flush();
        }
    }
    Ok((0..batch.len()).map(|at| verdicts.remove(&at).unwrap_or_else(|| Err(unsettled()))).collect())
}

fn unsettled() -> StoreError {
    StoreError::unavailable("the settlement was not carried out").hint("this is a defect of the store")
}

/// A run that is about to end: its lease was held by the token.
struct Run<'a> {
    /// Its place in the batch.
    at: usize,
    item: &'a Prepared,
    lease: LeaseRow,
    lane: Arc<Lane>,
    /// Its journal before the settlement.
    rows: Vec<EffectRow>,
    /// Read only where there is something to write into the journal.
    message: Option<Message>,
    policy: Policy,
    /// Why it is not settled as it was asked for.
    refused: Option<StoreError>,
    /// Whether what follows is left out as well.
    alone: bool,
}

/// What is decided about a run, before anything of it is written.
struct Decided {
    outcome: Outcome,
    transition: Transition,
    /// The journal after the settlement.
    rows: Vec<EffectRow>,
    /// What is new in it.
    written: Vec<EffectRow>,
}

/// Settles messages each of which is there once.
async fn settle_wave(
    group: &mut Group,
    batch: &[&Prepared],
    wave: &[usize],
    verdicts: &mut HashMap<usize, Result<Settled, StoreError>>,
) -> Result<(), Trouble> {
    let mut leases = leases(group, batch, wave).await?;
    let mut held = Vec::with_capacity(wave.len());
    let mut others = Vec::new();
    for &at in wave {
        let settle = &batch[at].settle;
        let holds =
            |lease: &LeaseRow| journal::is_current(lease, settle.token, group.now) || canary::is(Canary::NoFence);
        match leases.remove(&settle.id).filter(holds) {
            Some(lease) => held.push((at, lease)),
            None => others.push(at),
        }
    }
    let mut runs = runs(group, batch, held, verdicts).await?;
    let mut decided = decide_all(group, &mut runs, verdicts);
    if canary::is(Canary::FollowUpsInSecondCommit) {
        in_two_commits(group, &runs, &decided, verdicts).await?;
        give_back(group);
        return Ok(());
    }
    let Followed { mut ids, new, .. } = follow_all(group, &mut runs, &mut decided, verdicts).await?;
    let mut flows = Vec::new();
    for run in &runs {
        let Some(decided) = decided.remove(&run.at) else { continue };
        let follow_ups = ids.remove(&run.at).unwrap_or_default();
        let (state, followed) = (decided.transition.next.state(), !follow_ups.is_empty());
        end(group, run, &decided, followed).await?;
        // Messages follow from what ends; of what never ended before, only what was enqueued just now.
        let whole = is_whole_flow(run.item.settle.id, &run.lease) && !followed;
        // What was enqueued just now is live.
        if state.is_terminal() && !whole && !new.contains(&run.at) {
            flows.push((run.at, run.lease.flow.unwrap_or(run.item.settle.id)));
        }
        let flow_took = (state.is_terminal() && whole).then(|| group.now.since(run.lease.enqueued_at));
        verdicts.insert(
            run.at,
            Ok(Settled {
                state,
                due_at: due_at(decided.transition.next),
                reason: reason(decided.transition.next),
                follow_ups,
                flow_took,
                repeated: false,
            }),
        );
    }
    give_back(group);
    for (at, took) in flows_took(group, &flows).await? {
        if let Some(Ok(settled)) = verdicts.get_mut(&at) {
            settled.flow_took = Some(took);
        }
    }
    for (at, verdict) in repeated(group, batch, &others).await? {
        verdicts.insert(at, verdict);
    }
    Ok(())
}

/// What the settlement of a batch reads first.
pub(crate) fn first<'a>(batch: &[&'a Prepared]) -> Vec<Part<'a>> {
    let mut seen = HashSet::with_capacity(batch.len());
    let wave: Vec<usize> = (0..batch.len()).filter(|at| seen.insert(batch[*at].settle.id)).collect();
    looks(batch, &wave, asks(batch, &wave))
}

/// Whether an outcome may depend on what kinds allow.
fn asks(batch: &[&Prepared], wave: &[usize]) -> bool {
    wave.iter().any(|at| !matches!(batch[*at].settle.outcome, Outcome::Completed { .. }))
}

/// Takes the leases that are held under these tokens away and reads them; reads what kinds allow, where that is asked.
fn looks<'a>(batch: &[&'a Prepared], wave: &[usize], asks: bool) -> Vec<Part<'a>> {
    const ENDED: &str = concat!(
        "-- settle: runs end, each under its lease token. Taken away at once, a row is written to the log once and not
        -- twice, for its lock as well; and a lease that somebody else has by now is not touched
        delete from tidegate.lease l using unnest($1::bigint[], $2::integer[], $3::bytea[]) as u(id, claims, nonce)
        where l.id = u.id and l.claims = u.claims and l.nonce = u.nonce and current_setting('tidegate.begun', true) = '1'
        returning ",
        row::held_lease_columns!()
    );
    let mut tokens: Vec<(MessageId, LeaseToken)> =
        wave.iter().map(|at| (batch[*at].settle.id, batch[*at].settle.token)).collect();
    // In the order in which everybody locks them.
    tokens.sort_unstable_by_key(|(id, _)| *id);
    let ids: Vec<i64> = tokens.iter().map(|(id, _)| id.as_i64()).collect();
    let nonces: Vec<[u8; 16]> = tokens.iter().map(|(_, token)| *token.nonce.as_bytes()).collect();
    let mut parts = Vec::new();
    if is_unfenced() {
        part!(parts, place::LEASES_OF_ANYBODY, ids, nonces);
    } else {
        let claims: Vec<i32> = tokens.iter().map(|(_, token)| row::narrow(token.claims)).collect();
        part!(parts, ENDED, ids, claims, nonces);
    }
    if asks {
        parts.push(Part { sql: group::POLICIES, params: Vec::new() });
    }
    parts
}

/// A canary looks at leases that are not held.
fn is_unfenced() -> bool {
    [Canary::NoFence, Canary::TokenWithoutNonce, Canary::LeaseLostAtExpiry].into_iter().any(canary::is)
}

/// The leases that are held under the tokens of these settlements, taken away; with them what kinds allow, where an outcome
/// may ask for it.
///
/// Each is there for whoever looks for its message until its end is sent, and given back if there is none.
async fn leases(
    group: &mut Group,
    batch: &[&Prepared],
    wave: &[usize],
) -> Result<HashMap<MessageId, LeaseRow>, Trouble> {
    let parts = looks(batch, wave, asks(batch, wave) && !group.knows_policies());
    let params = writes::bound(&parts);
    let answers = group.first_of_all(&writes::steps(&parts, &params)).await?;
    let mut answers = answers.iter();
    let rows = answers.next().into_iter().flatten();
    let leases: HashMap<MessageId, LeaseRow> = rows.map(|row| row::lease(row, 0)).collect::<Result<_, _>>()?;
    if let Some(policies) = answers.next() {
        group.remember_policies(policies.iter().map(row::policy).collect::<Result<_, _>>()?);
    }
    if !is_unfenced() {
        group.ending.extend(leases.iter().map(|(id, lease)| (*id, lease.clone())));
    }
    Ok(leases)
}

/// Gives back the leases of runs that did not end after all.
fn give_back(group: &mut Group) {
    for (id, lease) in std::mem::take(&mut group.ending) {
        let LeaseRow { life, token, until, worker, enqueued_at, flow, limits } = lease;
        let first_due_at = limits.expires_at.before(limits.max_age);
        group.writes.leases.push(NewLease {
            id,
            life,
            nonce: *token.nonce.as_bytes(),
            until,
            worker: (!worker.is_empty()).then_some(worker),
            enqueued_at,
            flow,
            first_due_at: (first_due_at != enqueued_at).then_some(first_due_at),
            deadline: limits.deadline,
            max_age_ms: row::millis(limits.max_age),
        });
    }
}

/// Reads what else the decisions need: journals where the flags say that there is one, bodies where one is written to.
async fn runs<'a>(
    group: &mut Group,
    batch: &[&'a Prepared],
    held: Vec<(usize, LeaseRow)>,
    verdicts: &mut HashMap<usize, Result<Settled, StoreError>>,
) -> Result<Vec<Run<'a>>, Trouble> {
    let lanes = group.lanes(&held.iter().map(|(_, lease)| lease.life.lane).collect::<Vec<_>>()).await?;
    let flagged: Vec<(MessageId, i64)> =
        held.iter().map(|(at, lease)| (batch[*at].settle.id, lease.life.flags)).collect();
    let writes: Vec<MessageId> = held
        .iter()
        .map(|(at, _)| &batch[*at].settle)
        .filter(|settle| !settle.journal.is_empty())
        .map(|settle| settle.id)
        .collect();
    let mut journals = place::journals_if(&group.conn, flagged.into_iter()).await?;
    let mut bodies = if writes.is_empty() { HashMap::new() } else { place::bodies(group, &writes).await? };
    let mut runs = Vec::with_capacity(held.len());
    for (at, lease) in held {
        let item = batch[at];
        let id = item.settle.id;
        let read = (|| {
            let lane = lanes.get(&lease.life.lane).cloned().ok_or_else(|| {
                StoreError::corrupt(&format!("lane, row {}", lease.life.lane), "no such lane").message_id(id)
            })?;
            let rows = journals.remove(&id).unwrap_or_else(|| Ok(Vec::new()))?;
            let message = bodies.remove(&id).transpose()?;
            Ok::<_, StoreError>((lane, rows, message))
        })();
        let (lane, rows, message) = match read {
            Ok(read) => read,
            Err(error) => {
                verdicts.insert(at, Err(error));
                continue;
            }
        };
        // What completes with all its effects decided is nothing that a policy has a say in.
        let asks = !matches!(item.settle.outcome, Outcome::Completed { .. }) || !rows.is_empty();
        let policy = if asks { group.policy(&lane.kind).await?.unwrap_or_default() } else { Policy::default() };
        let message = message.map(|message| place::in_force(message, lease.life.expires_at));
        let (refused, alone) = (item.refused.clone(), item.refused.is_some());
        runs.push(Run { at, item, lease, lane, rows, message, policy, refused, alone });
    }
    Ok(runs)
}

/// Decides about each run; one about which nothing can be decided gets its verdict.
fn decide_all(
    group: &Group,
    runs: &mut Vec<Run<'_>>,
    verdicts: &mut HashMap<usize, Result<Settled, StoreError>>,
) -> HashMap<usize, Decided> {
    let mut decided = HashMap::with_capacity(runs.len());
    runs.retain_mut(|run| match decide(group, run) {
        Ok(done) => {
            decided.insert(run.at, done);
            true
        }
        Err(error) => {
            verdicts.insert(run.at, Err(error));
            false
        }
    });
    decided
}

/// Decides about a run. What cannot be stored ends this message for a person to look at, and nobody else's.
fn decide(group: &Group, run: &mut Run<'_>) -> Result<Decided, StoreError> {
    if run.refused.is_none() {
        match as_asked(group, run) {
            Err(error) if is_data_error(&error) => run.refused = Some(error),
            other => return other,
        }
    }
    let said = run.refused.as_ref().map_or("", StoreError::what);
    let outcome = Outcome::Refused { failure: Failure::new("settlement_refused", said) };
    // Follow-ups that were refused while they were prepared are no reason to leave the message as it is.
    journaled(group, run, &outcome, true)
}

fn as_asked(group: &Group, run: &Run<'_>) -> Result<Decided, StoreError> {
    let outcome = &run.item.settle.outcome;
    if let Outcome::Completed { result, .. } = outcome {
        let (size, most) = (result.len(), group.limits.max_payload);
        if size > most {
            return Err(StoreError::invalid(format!("result of {size} bytes is over the limit of {most}")));
        }
    }
    journaled(group, run, outcome, false)
}

/// Applies the settlement's writes to the journal, in memory, and decides. A lenient one leaves out what cannot be stored.
fn journaled(group: &Group, run: &Run<'_>, outcome: &Outcome, lenient: bool) -> Result<Decided, StoreError> {
    let settle = &run.item.settle;
    let mut rows = run.rows.clone();
    let mut written = Vec::new();
    if let Some(message) = &run.message {
        let limits = group.limits;
        let journal = Applying { limits, now: group.now, lease: &run.lease, message, unrecorded: None };
        for write in &settle.journal {
            match journal.apply(&mut rows, write) {
                Err(error) if lenient && is_data_error(&error) => {}
                applied => written.extend(applied?.and_then(Applied::into_stored)),
            }
        }
        failpoint::reach("settle.after_journal");
    }
    let facts = place::facts(&run.lease.life, run.lease.limits, &rows, group.now);
    let transition = lifecycle::settle(&facts, outcome, &run.policy, group.now, settle.unit);
    Ok(Decided { outcome: outcome.clone(), transition, rows, written })
}

fn is_data_error(error: &StoreError) -> bool {
    matches!(error.kind(), StoreErrorKind::Invalid | StoreErrorKind::KeyConflict)
}

/// Enqueues what follows from the messages, each in its flow, all together. A message whose follow-ups are refused is
/// decided about again, and then all of them are enqueued again: at most three times.
async fn follow_all(
    group: &mut Group,
    runs: &mut Vec<Run<'_>>,
    decided: &mut HashMap<usize, Decided>,
    verdicts: &mut HashMap<usize, Result<Settled, StoreError>>,
) -> Result<Followed, Trouble> {
    loop {
        let follows = |run: &&mut Run<'_>| !run.alone && !following(run, decided).is_empty();
        let mut refused: HashMap<usize, StoreError> = HashMap::new();
        for run in runs.iter_mut().filter(follows) {
            if let Some(error) = following(run, decided).iter().find_map(|follow_up| follow_up.as_ref().err()) {
                let id = run.item.settle.id;
                let what = format!("a message that follows from {id} is refused: {}", error.what());
                refused.insert(run.at, StoreError::invalid(what));
            }
        }
        if refused.is_empty() {
            let mut followed = enqueue_all(group, runs, decided).await?;
            if followed.refused.is_empty() {
                return Ok(followed);
            }
            refused = std::mem::take(&mut followed.refused);
        }
        runs.retain_mut(|run| {
            let Some(error) = refused.remove(&run.at) else { return true };
            if !is_data_error(&error) {
                verdicts.insert(run.at, Err(error));
                decided.remove(&run.at);
                return false;
            }
            // First as it was asked for, then refused with what undoes it, then refused alone.
            match &run.refused {
                None => run.refused = Some(error),
                Some(_) => run.alone = true,
            }
            match decide(group, run) {
                Ok(again) => {
                    decided.insert(run.at, again);
                    true
                }
                Err(error) => {
                    verdicts.insert(run.at, Err(error));
                    decided.remove(&run.at);
                    false
                }
            }
        });
    }
}

/// What follows from a run as it was decided about.
fn following<'a>(run: &Run<'a>, decided: &HashMap<usize, Decided>) -> &'a [Result<enqueue::Prepared, StoreError>] {
    let state = decided.get(&run.at).map(|decided| decided.transition.next.state());
    match state {
        Some(state) if !run.alone => run.item.follow_ups(state),
        Some(_) | None => &[],
    }
}

/// What follows from the runs of a batch, by their places in it.
#[derive(Default)]
struct Followed {
    ids: HashMap<usize, Vec<MessageId>>,
    /// Of whose follow-ups some were not known before.
    new: HashSet<usize>,
    refused: HashMap<usize, StoreError>,
}

/// Enqueues what follows from all runs as one batch; nothing of it, if something is refused.
///
/// Refusals are rare and a savepoint costs two round trips: without one, a refusal has the group carried out again, and
/// then with one.
async fn enqueue_all(
    group: &mut Group,
    runs: &[Run<'_>],
    decided: &HashMap<usize, Decided>,
) -> Result<Followed, Trouble> {
    let mut of = Vec::new();
    let mut batch = Vec::new();
    for run in runs {
        let id = run.item.settle.id;
        let origin = Origin::Follows { flow: run.lease.flow.unwrap_or(id), parent: id };
        for follow_up in following(run, decided).iter().flatten() {
            of.push((run.at, id));
            batch.push((follow_up, origin));
        }
    }
    let mut followed = Followed::default();
    if batch.is_empty() {
        return Ok(followed);
    }
    let careful = runs.iter().any(|run| run.item.careful.load(Ordering::Relaxed));
    let saved = if careful { Some(group.save().await?) } else { None };
    for ((at, id), verdict) in of.into_iter().zip(enqueue::many(group, &batch).await?) {
        let Followed { ids, new, refused } = &mut followed;
        let ids: &mut Vec<MessageId> = ids.entry(at).or_default();
        match verdict {
            Ok(Enqueued::New { id }) => {
                new.insert(at);
                ids.push(id);
            }
            Ok(Enqueued::Existing { id, .. } | Enqueued::Replayed { id, .. }) => ids.push(id),
            Ok(Enqueued::Stale) => {
                let what = format!("a message that follows from {id} has a key older than the retention");
                refused.entry(at).or_insert_with(|| StoreError::invalid(what));
            }
            Err(error) => {
                refused.entry(at).or_insert(error);
            }
        }
    }
    match (saved, followed.refused.is_empty()) {
        (None, true) => {}
        (Some(_), true) => group.keep().await?,
        (Some(saved), false) => group.take_back(saved).await?,
        (None, false) => {
            for run in runs.iter().filter(|run| followed.refused.contains_key(&run.at)) {
                run.item.careful.store(true, Ordering::Relaxed);
            }
            return Err(Trouble::Again("what follows from a message was refused"));
        }
    }
    Ok(followed)
}

/// What must never be: the end of the message is durable before what follows from it.
async fn in_two_commits(
    group: &mut Group,
    runs: &[Run<'_>],
    decided: &HashMap<usize, Decided>,
    verdicts: &mut HashMap<usize, Result<Settled, StoreError>>,
) -> Result<(), Trouble> {
    for run in runs {
        let Some(decided) = decided.get(&run.at) else { continue };
        end(group, run, decided, false).await?;
    }
    group.send().await?;
    failpoint::reach("settle.after_state");
    group.conn.client().batch_execute("commit; begin").await?;
    let Followed { mut ids, mut refused, .. } = enqueue_all(group, runs, decided).await?;
    for run in runs {
        let Some(decided) = decided.get(&run.at) else { continue };
        let settled = Settled {
            state: decided.transition.next.state(),
            due_at: due_at(decided.transition.next),
            reason: reason(decided.transition.next),
            follow_ups: ids.remove(&run.at).unwrap_or_default(),
            flow_took: None,
            repeated: false,
        };
        verdicts.insert(run.at, refused.remove(&run.at).map_or(Ok(settled), Err));
    }
    Ok(())
}

/// Ends a run as it was decided.
async fn end(group: &mut Group, run: &Run<'_>, decided: &Decided, followed: bool) -> Result<(), Trouble> {
    let id = run.item.settle.id;
    let last = LastSettlement { nonce: *run.lease.token.nonce.as_bytes(), digest: run.item.digest };
    let Decided { outcome, transition, rows, written } = decided;
    group.writes.effects.extend(written.iter().map(|row| (id, row.clone())));
    if group.ending.remove(&id).is_none() {
        group.writes.gone_lease.push((id, run.lease.token));
    }
    move_on(group, &run.lane, &run.lease, id, outcome, transition, rows, Some(last)).await?;
    failpoint::reach("settle.after_state");
    // Noted where the message is now that what follows undoes it: a redrive would complete what was given back.
    match transition.next {
        Next::Failed if followed => group.writes.flags.push((Flagged::Result, id, row::COMPENSATED)),
        Next::Dead(_) if followed => group.writes.flags.push((Flagged::Held, id, row::COMPENSATED)),
        Next::Failed | Next::Dead(_) | Next::Completed | Next::Parked(_) | Next::Cancelled | Next::Ready { .. } => {}
    }
    Ok(())
}

/// Moves a leased message to where the transition says, with its history and counters. Its lease was read in this
/// transaction and goes in it; the rows of its journal are those after it.
#[expect(clippy::too_many_arguments, reason = "the whole of what a run's end consists of; two callers")]
pub(crate) async fn move_on(
    group: &mut Group,
    lane: &Lane,
    lease: &LeaseRow,
    id: MessageId,
    outcome: &Outcome,
    transition: &Transition,
    rows: &[EffectRow],
    last: Option<LastSettlement>,
) -> Result<(), Trouble> {
    group.count(lane.queue_id, Place::Leased, -1);
    failpoint::reach("settle.after_lease");
    if canary::is(Canary::CheckActStore) {
        // It was never taken out of its lane; with an answer it is.
        const TAKE_OUT: &str = "-- settle, broken: it was never taken out of its lane
            delete from tidegate.ready where id = $1";
        group.conn.execute(TAKE_OUT, &[&id.as_i64()]).await?;
    }
    let reported = !matches!(outcome, Outcome::LeaseExpired | Outcome::Released);
    let mut flags = copied::flags_after(lease.life.flags, reported) & row::LASTING & !row::SUSPECT;
    if !rows.is_empty() {
        flags |= row::JOURNALED;
    }
    if transition.suspect {
        flags |= row::SUSPECT;
    }
    let life = Life {
        lane: lane.id,
        due_at: lease.life.due_at,
        counters: transition.counters,
        flags,
        expires_at: lease.life.expires_at,
        last,
    };
    let failure = outcome.failure();
    if transition.next == Next::Cancelled {
        let facts = JournalFacts::of(rows, group.now);
        crate::cancel::called_off(group, lane, id, &life, &facts, rows).await?;
    } else {
        let result = match outcome {
            Outcome::Completed { result, .. } if transition.next == Next::Completed => Some(&**result),
            Outcome::Completed { .. }
            | Outcome::Permanent { .. }
            | Outcome::Retryable { .. }
            | Outcome::NotDone { .. }
            | Outcome::Unknown { .. }
            | Outcome::Snooze { .. }
            | Outcome::Park { .. }
            | Outcome::Exhausted { .. }
            | Outcome::Undecodable { .. }
            | Outcome::Refused { .. }
            | Outcome::Released
            | Outcome::LeaseExpired => None,
        };
        place::put(group, lane, id, &life, &Ending { next: transition.next, result, failure }, rows);
    }
    if transition.next != Next::Completed {
        let at = group.now;
        place::history(
            group,
            id,
            store::Ending {
                at,
                attempt: transition.counters.attempt,
                generation: transition.counters.generation,
                outcome: outcome.as_str().to_owned(),
                state: transition.next.state(),
                code: failure.map_or_else(String::new, |failure| failure.code.clone()),
                detail: failure.map_or_else(String::new, |failure| failure.detail.clone()),
                due_at: due_at(transition.next),
            },
        );
    }
    count(group, lane, outcome, transition.next);
    Ok(())
}

fn count(group: &mut Group, lane: &Lane, outcome: &Outcome, next: Next) {
    group.tally(lane, Counted::Attempts, outcome.as_str());
    let code = outcome.failure().map(|failure| failure.code.clone());
    if matches!(next, Next::Ready { .. }) {
        group.tally(lane, Counted::Retries, code.clone().unwrap_or_default());
    }
    // A lost lease is a failure nobody could report a code of.
    let lost = || matches!(outcome, Outcome::LeaseExpired).then(|| outcome.as_str().to_owned());
    if let Some(code) = code.or_else(lost) {
        group.tally(lane, Counted::Failures, code);
    }
}

fn due_at(next: Next) -> Option<Timestamp> {
    match next {
        Next::Ready { due_at } => Some(due_at),
        Next::Completed | Next::Failed | Next::Dead(_) | Next::Parked(_) | Next::Cancelled => None,
    }
}

fn reason(next: Next) -> Option<&'static str> {
    match next {
        Next::Dead(reason) => Some(reason.as_str()),
        Next::Parked(reason) => Some(reason.as_str()),
        Next::Ready { .. } | Next::Completed | Next::Failed | Next::Cancelled => None,
    }
}

/// Whether no message can have followed from this one before: it is the first of its flow, and was never put back after it
/// had ended, which begins a generation.
fn is_whole_flow(id: MessageId, lease: &LeaseRow) -> bool {
    lease.flow.unwrap_or(id) == id && lease.life.counters.generation == 0
}

/// How long flows took of which no message is live any more, told with the last message of each. Two messages of a flow that
/// end at the same moment on two connections do not see each other end: then nobody tells.
async fn flows_took(group: &mut Group, flows: &[(usize, MessageId)]) -> Result<Vec<(usize, Duration)>, Trouble> {
    const ENDED: &str = "-- settle: flows of which no message is live; the newest one is the likeliest to be
        select m.id, m.enqueued_at
        from unnest($1::bigint[]) as f(root)
        join tidegate.message m on m.id = f.root
        left join lateral (
            select 1 as live from tidegate.message o where o.flow = f.root
              and not exists (select 1 from tidegate.result r where r.id = o.id)
              and not exists (select 1 from tidegate.held h where h.id = o.id and h.state = 'dead')
            order by o.id desc limit 1
        ) other on true
        where other.live is null
          and (exists (select 1 from tidegate.result r where r.id = m.id)
            or exists (select 1 from tidegate.held h where h.id = m.id and h.state = 'dead'))";
    if flows.is_empty() {
        return Ok(Vec::new());
    }
    group.flush();
    let mut roots: Vec<i64> = flows.iter().map(|(_, root)| root.as_i64()).collect();
    roots.sort_unstable();
    roots.dedup();
    let mut took = Vec::new();
    for row in &group.conn.query(ENDED, &[&roots]).await? {
        let root = row::message_id(row, 0, "message")?;
        let last = flows.iter().rev().find(|(_, of)| *of == root);
        took.extend(
            last.map(|(at, _)| Ok::<_, Trouble>((*at, group.now.since(row::time(row, 1, "message")?)))).transpose()?,
        );
    }
    Ok(took)
}

/// The tokens are not current: these settlements were made before and their replies were lost, or others were, or the
/// leases are lost. The row that a message moved to says which; once it was claimed again the token is an old one.
async fn repeated(
    group: &mut Group,
    batch: &[&Prepared],
    others: &[usize],
) -> Result<Vec<(usize, Result<Settled, StoreError>)>, Trouble> {
    let mut verdicts = Vec::with_capacity(others.len());
    if others.is_empty() {
        return Ok(verdicts);
    }
    let ids: Vec<MessageId> = others.iter().map(|at| batch[*at].settle.id).collect();
    let found = place::find_all(&group.conn, &ids, Lock::Nothing).await?;
    let mut late = Vec::new();
    for &at in others {
        let item = batch[at];
        let id = item.settle.id;
        if let Some(Found::Leased(lease)) = found.get(&id)
            && lease.token == item.settle.token
            && !is_unfenced()
        {
            return Err(Trouble::Again("a settlement under the same token gave the lease back meanwhile"));
        }
        let found = found.get(&id).filter(|_| !canary::is(Canary::RepeatedSettlementRefused));
        verdicts.push((
            at,
            match found.and_then(|found| Some((found, made(found, item.settle.token)?))) {
                Some((found, last)) if last.digest == item.digest => Ok(repeated_verdict(group, item, found).await?),
                Some(_) => {
                    let what = format!("another settlement of {id} was made under this lease token");
                    Err(StoreError::conflict(what).message_id(id))
                }
                None => {
                    journal::keep_evidence(group, id, item.settle.journal.iter());
                    late.push(id);
                    Err(StoreError::lease_lost(id))
                }
            },
        ));
    }
    extend::count_late(group, &late).await?;
    Ok(verdicts)
}

/// The settlement that was made under this token, if the message has not moved on since.
fn made(found: &Found, token: LeaseToken) -> Option<LastSettlement> {
    let last = found.last().filter(|last| last.nonce == *token.nonce.as_bytes());
    last.filter(|_| found.counters().claims == token.claims)
}

async fn repeated_verdict(group: &mut Group, item: &Prepared, found: &Found) -> Result<Settled, Trouble> {
    let (state, due_at, reason) = match found {
        Found::Ready { .. } | Found::Leased(_) => (found.state(), found.due_at(), None),
        // An operator may have called it off since: what the settlement made of it stands in the history.
        Found::Ended(ended) if ended.state == State::Cancelled => {
            let (state, due_at) = last_run(group, item.settle.id).await?.unwrap_or((State::Cancelled, None));
            (state, due_at, None)
        }
        Found::Ended(ended) => {
            let code = ended.reason.as_deref().unwrap_or_default();
            let dead = DeadReason::from_code(code).map(DeadReason::as_str);
            (ended.state, None, dead.or(ParkReason::from_code(code).map(ParkReason::as_str)))
        }
    };
    let mut follow_ups = Vec::new();
    for prepared in item.follow_ups(state).iter().flatten() {
        follow_ups.extend(enqueue::whose(group, prepared).await?);
    }
    Ok(Settled { state, due_at, reason, follow_ups, flow_took: None, repeated: true })
}

/// What the last run of a message made of it.
async fn last_run(group: &Group, id: MessageId) -> Result<Option<(State, Option<Timestamp>)>, Trouble> {
    const LAST_RUN: &str = "-- settle, repeated: the last ending that is no operator's act
        select state, due_at from tidegate.history where message = $1 and outcome <> 'cancelled'
        order by seq desc limit 1";
    let Some(row) = group.conn.query_opt(LAST_RUN, &[&id.as_i64()]).await? else { return Ok(None) };
    let table = "history";
    Ok(Some((row::state(&row, table)?, row::maybe_time(&row, "due_at", table)?)))
}
