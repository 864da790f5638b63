//! All that a store knows, as plain maps, and the verbs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectRow, EffectState};
use tidegate_core::lifecycle::{Admission, Cancellation, Counters, Outcome, ParkReason, Resolution, State};
use tidegate_core::message::{
    Answer, DEFAULT_MAX_AGE, DEFAULT_MAX_PAYLOAD, Due, Failure, Message, NewMessage, Priority,
};
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    Act, AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, Counted, DEFAULT_RETENTION, Ending,
    Enqueued, Evidence, ExplainFacts, Extend, Extended, Filter, Journal, JournalWrite, LaneStats, Lease, MOST_CODES,
    MOST_EVIDENCE, MessageView, NOTED_ONCE_WITHIN, News, Note, OTHER_CODES, QueueChange, QueueStats, REDRIVE_CHUNK,
    Redrive, Resolve, Resolved, Settle, Settled, Stats, Summary, SweepRequest, Swept, TakenOver, Tally,
};
use tidegate_core::token::{self, TokenRecord};
use tidegate_core::{
    Clock, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, StoreError, StoreErrorKind, Tenant,
    Timestamp, WorkerId,
};

use super::{Glance, Mutation, by_core, rules};

mod operate;

/// One moment of a store.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) mutation: Option<Mutation>,
    /// The core is asked, and done as it says; where the rules say otherwise, it stands here.
    pub(super) differences: Option<Vec<String>>,
    pub(super) keys: BTreeMap<(Tenant, QueueName, IdempotencyKey), MessageId>,
    pub(super) policies: BTreeMap<Kind, Policy>,
    pub(super) audit: Vec<AuditEntry>,
    pub(super) news: News,
    records: BTreeMap<MessageId, Record>,
    index: Index,
    /// The queues in the order in which they were first heard of; a record names its own by its place.
    queues: Vec<Queue>,
    tallies: BTreeMap<(QueueName, Kind, Counted), BTreeMap<String, u64>>,
    operations: BTreeSet<(String, MessageId)>,
    many: BTreeMap<String, operate::Course>,
    tokens: Vec<TokenRecord>,
    last_id: Option<MessageId>,
    leases: u64,
    time: Time,
}

/// Where to look, so that a long simulation need not look at every record for each verb. It decides nothing: each place that
/// uses it still asks the record itself.
#[derive(Debug, Default)]
struct Index {
    /// All that can be claimed: lanes of a queue by priority, and in each lane the order of claims.
    ready: BTreeMap<(QueueName, Priority), Vec<Lane>>,
    /// All that are ready and could not be claimed yet when somebody looked last.
    scheduled: BTreeSet<(Timestamp, MessageId)>,
    /// All that are leased, and by which call.
    leased: BTreeMap<MessageId, Nonce>,
    /// All that are ready, leased or parked.
    live: BTreeSet<MessageId>,
    /// Dead letters that were not given up: their queue's place, and since when.
    dead: BTreeSet<(usize, Timestamp, MessageId)>,
    /// All that are neither completed nor failed nor cancelled.
    unsettled: BTreeSet<MessageId>,
    /// All whose retention runs, by how much time had passed when it began.
    over: BTreeSet<(Duration, MessageId)>,
    flows: BTreeMap<MessageId, BTreeSet<MessageId>>,
}

/// What can be claimed of one kind in one version.
#[derive(Debug)]
struct Lane {
    kind: Kind,
    version: u32,
    waiting: BTreeSet<(Timestamp, MessageId)>,
}

impl Index {
    fn is_ready(&mut self, message: &Message, due_at: Timestamp, claimable: bool) {
        if claimable {
            self.lane(message).insert((due_at, message.id));
        } else {
            self.scheduled.insert((due_at, message.id));
        }
        self.unsettled.insert(message.id);
        self.live.insert(message.id);
    }

    fn was_ready(&mut self, message: &Message, due_at: Timestamp) {
        if !self.scheduled.remove(&(due_at, message.id)) {
            self.lane(message).remove(&(due_at, message.id));
        }
    }

    fn lane(&mut self, message: &Message) -> &mut BTreeSet<(Timestamp, MessageId)> {
        let lanes = self.ready.entry((message.queue.clone(), message.priority)).or_default();
        let known = lanes.iter().position(|lane| lane.version == message.version && lane.kind == message.kind);
        let at = known.unwrap_or_else(|| {
            let (kind, version) = (message.kind.clone(), message.version);
            lanes.push(Lane { kind, version, waiting: BTreeSet::new() });
            lanes.len() - 1
        });
        &mut lanes[at].waiting
    }
}

/// A wall clock that gains or loses less than this over the time that passed is corrected, not set.
const JUMP: Duration = Duration::from_secs(60);

/// The two hands of the clock as of this verb, and the time that really passed since the first one.
#[derive(Debug, Default, Clone, Copy)]
struct Time {
    now: Timestamp,
    monotonic: Option<Duration>,
    passed: Duration,
}

#[derive(Debug)]
struct Queue {
    tenant: Tenant,
    name: QueueName,
    paused: bool,
    max_depth: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) message: Arc<Message>,
    /// Its queue, among those of the world.
    place: usize,
    fingerprint: [u8; 16],
    max_age: Duration,
    life: Life,
    pub(super) counters: Counters,
    pub(super) cancel_wanted: bool,
    release_wanted: bool,
    pub(super) suspect: bool,
    /// What it did is given back by a compensation.
    undone: bool,
    failure: Option<Failure>,
    pub(super) journal: Vec<EffectRow>,
    evidence: Vec<Evidence>,
    history: Vec<Ending>,
    settled: Option<(LeaseToken, [u8; 16], Settled)>,
    /// Given up for good at this time, when so much time had passed.
    discarded: Option<(Timestamp, Duration)>,
}

#[derive(Debug, Clone)]
enum Life {
    /// Once it could be claimed it stays so, wherever the wall clock is set.
    Ready {
        due_at: Timestamp,
        claimable: bool,
    },
    Leased(Held),
    Parked {
        reason: String,
        at: Timestamp,
    },
    Over {
        state: State,
        at: Timestamp,
        passed: Duration,
        reason: Option<String>,
        answer: Option<Answer>,
    },
}

#[derive(Debug, Clone)]
struct Held {
    order: u64,
    token: LeaseToken,
    worker: WorkerId,
    until: Timestamp,
    due_at: Timestamp,
    reconciling: bool,
    alone: bool,
}

impl Record {
    fn state(&self) -> State {
        match &self.life {
            Life::Ready { .. } => State::Ready,
            Life::Leased(_) => State::Leased,
            Life::Parked { .. } => State::Parked,
            Life::Over { state, .. } => *state,
        }
    }

    /// A person wants it to run: it gets its whole age again, and a deadline that was missed is past caring.
    fn start_anew(&mut self, now: Timestamp) {
        let message = Arc::make_mut(&mut self.message);
        message.expires_at = now.after(self.max_age);
        message.deadline = None;
    }

    fn facts(&self) -> rules::Journal<'_> {
        rules::Journal::of(&self.journal)
    }

    fn held_by(&self, token: LeaseToken) -> Option<&Held> {
        match &self.life {
            Life::Leased(held) if held.token == token => Some(held),
            Life::Leased(_) | Life::Ready { .. } | Life::Parked { .. } | Life::Over { .. } => None,
        }
    }

    /// The code that a list shows: why it ended or was parked, or how the last run failed.
    fn code(&self) -> Option<String> {
        match &self.life {
            Life::Parked { reason, .. } | Life::Over { reason: Some(reason), .. } => Some(reason.clone()),
            Life::Ready { .. } | Life::Leased(_) | Life::Over { .. } => self.failure.as_ref().map(|f| f.code.clone()),
        }
    }

    /// How much time had passed when its retention began, if it runs.
    fn retained_since(&self) -> Option<Duration> {
        match &self.life {
            Life::Over { state: State::Dead, .. } => self.discarded.map(|(_, then)| then),
            Life::Over { passed, .. } => Some(*passed),
            Life::Ready { .. } | Life::Leased(_) | Life::Parked { .. } => None,
        }
    }

    /// When it was last put where it is, by the clock as it was then.
    fn dated_at(&self) -> Timestamp {
        self.history.last().map_or(self.message.enqueued_at, |ending| ending.at)
    }

    /// What it waits for was dated so much ahead.
    fn dated_back(&mut self, back: Duration) {
        if let Some(ending) = self.history.last_mut() {
            ending.at = ending.at.before(back);
            ending.due_at = ending.due_at.map(|due_at| due_at.before(back));
            return;
        }
        let message = Arc::make_mut(&mut self.message);
        for date in [&mut message.enqueued_at, &mut message.first_due_at, &mut message.expires_at] {
            *date = date.before(back);
        }
    }

    fn ended_at(&self) -> Option<Timestamp> {
        match &self.life {
            Life::Parked { at, .. } | Life::Over { at, .. } => Some(*at),
            Life::Ready { .. } | Life::Leased(_) => None,
        }
    }

    fn is_claimable(&self, now: Timestamp) -> bool {
        matches!(self.life, Life::Ready { due_at, claimable } if claimable || due_at <= now)
    }

    fn due_at(&self) -> Option<Timestamp> {
        match &self.life {
            Life::Ready { due_at, .. } => Some(*due_at),
            Life::Leased(_) | Life::Parked { .. } | Life::Over { .. } => None,
        }
    }
}

/// What is applied to a journal before it is written back, or not at all.
fn apply(
    record: &Record,
    rows: &mut Vec<EffectRow>,
    write: &JournalWrite,
    token: LeaseToken,
    now: Timestamp,
    differences: &mut Option<Vec<String>>,
) -> Result<Option<EffectRow>, StoreError> {
    let told = written(record, rows, write, token, now);
    let told = match differences {
        None => told,
        Some(differences) => {
            let decided = by_core::row(record, rows, write, token, now);
            if decided.as_ref().ok() != told.as_ref().ok() {
                differences.push(format!("{write:?} of {}: core {decided:?}, rules {told:?}", record.message.id));
            }
            decided
        }
    };
    let Some(row) = told? else { return Ok(None) };
    rows.retain(|known| (&known.effect, known.seq) != (&row.effect, row.seq));
    rows.push(row.clone());
    rows.sort_by(|a, b| (&a.effect, a.seq).cmp(&(&b.effect, b.seq)));
    Ok(Some(row))
}

/// The row that a write leaves.
fn written(
    record: &Record,
    rows: &[EffectRow],
    write: &JournalWrite,
    token: LeaseToken,
    now: Timestamp,
) -> Result<Option<EffectRow>, StoreError> {
    let round = record.counters.round;
    let row = match write {
        JournalWrite::Intent { reached, times } => {
            rules::intent(&record.message, rows, reached, *times, token, round, now)?
        }
        JournalWrite::Natural { reached, value } => {
            let newest = rules::Journal::of(rows).newest(&reached.effect);
            let known = EffectState::Confirmed { value: value.clone() };
            if let Some(row) = newest.filter(|row| row.token == token && row.state == known) {
                return Ok(Some(row.clone()));
            }
            rules::natural(&record.message, rows, reached, value, token, round, now)?
        }
        JournalWrite::Answer { effect, seq, answer } => {
            let row = rows.iter().find(|row| row.effect == *effect && row.seq == *seq);
            let row = row.ok_or_else(|| StoreError::conflict(format!("effect {effect} has no row {seq}")))?;
            if rules::says_already(row, answer) {
                return Ok(Some(row.clone()));
            }
            EffectRow { state: rules::answer(row, answer, token, now)?, ..row.clone() }
        }
        JournalWrite::NotSent { effect } => {
            let newest = rules::Journal::of(rows).newest(effect).cloned();
            let ours = newest.filter(|row| row.token == token && row.state == EffectState::Intent);
            let Some(row) = ours else { return Ok(None) };
            EffectRow { state: rules::answer(&row, &EffectAnswer::NotDone, token, now)?, ..row }
        }
    };
    Ok(Some(row))
}

impl World {
    // --- time --------------------------------------------------------------------------------------------------------

    /// Reads the clock. What the wall clock gained over the time that passed is a jump.
    pub(super) fn tick(&mut self, clock: &dyn Clock) {
        let (now, monotonic) = (clock.now(), clock.monotonic());
        let before = self.time;
        self.time = Time { now, monotonic: Some(monotonic), ..before };
        let Some(then) = before.monotonic else { return };
        let passed = monotonic.saturating_sub(then);
        self.time.passed += passed;
        let expected = before.now.after(passed);
        let (ahead, back) = (now.since(expected), expected.since(now));
        if ahead > JUMP {
            self.restart_quarantines(before.now);
            self.move_leases(|until| until.after(ahead));
        } else if back > JUMP {
            self.move_leases(|until| until.before(back));
            self.end_windows_in_time(back);
            self.take_back(back);
        }
    }

    /// What was dated by a clock that was ahead is dated anew: a wait, a quarantine and a retention take as long as they
    /// were to take. A date that was given before the clock went ahead stays.
    fn take_back(&mut self, back: Duration) {
        let now = self.time.now;
        let mut moved = Vec::new();
        for (id, record) in &mut self.records {
            for row in record.journal.iter_mut().filter(|row| row.state.is_open()) {
                row.last_possible_send = row.last_possible_send.before(back);
            }
            let dated_ahead = record.dated_at() > now;
            match &mut record.life {
                Life::Ready { due_at, claimable } if *due_at > now && dated_ahead => {
                    moved.push((*id, *due_at, *claimable));
                    *due_at = due_at.before(back);
                    record.dated_back(back);
                }
                Life::Leased(held) if held.due_at > now && dated_ahead => {
                    held.due_at = held.due_at.before(back);
                    record.dated_back(back);
                }
                Life::Parked { at, .. } | Life::Over { at, .. } if *at > now => {
                    let was = (record.place, *at, *id);
                    *at = at.before(back);
                    if self.index.dead.remove(&was) {
                        self.index.dead.insert((record.place, *at, *id));
                    }
                }
                Life::Ready { .. } | Life::Leased(_) | Life::Parked { .. } | Life::Over { .. } => {}
            }
            if let Some((at, _)) = &mut record.discarded
                && *at > now
            {
                *at = at.before(back);
            }
        }
        for (id, was, claimable) in moved {
            let record = &self.records[&id];
            self.index.was_ready(&record.message, was);
            self.index.is_ready(&record.message, was.before(back), claimable);
        }
    }

    /// What a remote remembers it forgets when it would have, though our clock was set back.
    fn end_windows_in_time(&mut self, back: Duration) {
        for row in self.records.values_mut().flat_map(|record| &mut record.journal).filter(|row| row.state.is_open()) {
            row.valid_until = row.valid_until.map(|until| until.before(back));
        }
    }

    /// A lease holds as long as it was given, wherever the wall clock is set.
    fn move_leases(&mut self, to: impl Fn(Timestamp) -> Timestamp) {
        for id in self.index.leased.keys() {
            let Some(record) = self.records.get_mut(id) else { continue };
            if let Life::Leased(held) = &mut record.life {
                held.until = to(held.until);
            }
        }
    }

    /// No time passed while the wall clock was set ahead: running quarantines begin anew.
    fn restart_quarantines(&mut self, then: Timestamp) {
        let now = self.time.now;
        for row in self.records.values_mut().flat_map(|record| &mut record.journal) {
            if row.state.is_open() && row.last_possible_send.after(row.quarantine) > then {
                row.last_possible_send = now.after(row.last_possible_send.since(then));
            }
        }
    }

    // --- bookkeeping -------------------------------------------------------------------------------------------------

    fn tally(&mut self, message: &Message, what: Counted, code: &str) {
        self.tally_for(&message.queue, &message.kind, what, code);
    }

    fn tally_for(&mut self, queue: &QueueName, kind: &Kind, what: Counted, code: &str) {
        let by_code = self.tallies.entry((queue.clone(), kind.clone(), what)).or_default();
        let told_apart = by_code.len();
        let new = !code.is_empty() && !by_code.contains_key(code);
        let code = if new && told_apart >= MOST_CODES as usize { OTHER_CODES } else { code };
        match by_code.get_mut(code) {
            Some(n) => *n += 1,
            None => drop(by_code.insert(code.to_owned(), 1)),
        }
    }

    fn record_act(
        &mut self,
        act: &Act,
        what: &str,
        message: Option<MessageId>,
        of: Option<(Tenant, QueueName)>,
        detail: String,
    ) {
        let (tenant, queue) = of.unzip();
        self.audit.push(AuditEntry {
            seq: self.audit.len() as u64 + 1,
            at: self.time.now,
            actor: act.actor.clone(),
            act: what.to_owned(),
            reason: act.reason.clone(),
            message,
            tenant,
            queue,
            detail,
        });
    }

    pub(super) fn note(&mut self, note: &Note) {
        if note.messages.is_empty() && !self.is_noted(note, None) {
            self.record_act(&note.act, &note.what, None, None, note.detail.clone());
        }
        for id in &note.messages {
            if self.is_noted(note, Some(*id)) {
                continue;
            }
            let of = self.records.get(id).map(|record| &record.message);
            let of = of.map(|message| (message.tenant.clone(), message.queue.clone()));
            self.record_act(&note.act, &note.what, Some(*id), of, note.detail.clone());
        }
    }

    fn is_noted(&self, note: &Note, message: Option<MessageId>) -> bool {
        let since = self.time.now.before(NOTED_ONCE_WITHIN);
        let lately = self.audit.iter().rev().take_while(|row| row.at >= since);
        lately.filter(|row| row.message == message).any(|row| {
            (&row.actor, &row.act, &row.reason, &row.detail)
                == (&note.act.actor, &note.what, &note.act.reason, &note.detail)
        })
    }

    /// By name and age.
    pub(super) fn tokens(&self) -> Vec<TokenRecord> {
        let mut tokens = self.tokens.clone();
        tokens.sort_by(|a, b| (&a.name, a.created_at, a.hash).cmp(&(&b.name, b.created_at, b.hash)));
        tokens
    }

    /// Tokens are no part of a message's life: the core's decision is taken as it is.
    pub(super) fn change_token(&mut self, request: &ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        let changed = token::change(&self.tokens, &request.name, &request.change, self.time.now)?;
        if let Some(done) = changed.done {
            self.tokens.retain(|record| record.name != request.name);
            self.tokens.extend(changed.records.iter().cloned());
            self.record_act(&request.act, "token", None, None, done);
        }
        Ok(changed.records)
    }

    /// The place of a queue, from now on if it has none yet.
    fn place(&mut self, tenant: &Tenant, name: &QueueName) -> usize {
        let known = self.queues.iter().position(|queue| queue.name == *name && queue.tenant == *tenant);
        known.unwrap_or_else(|| {
            self.queues.push(Queue { tenant: tenant.clone(), name: name.clone(), paused: false, max_depth: None });
            self.queues.len() - 1
        })
    }

    fn record(&self, id: MessageId) -> Result<&Record, StoreError> {
        self.records.get(&id).ok_or_else(|| StoreError::not_found(id))
    }

    /// What is leased, and perhaps more.
    fn leased(&self) -> impl Iterator<Item = &Record> {
        self.index.leased.keys().filter_map(|id| self.records.get(id))
    }

    /// What is ready, leased or parked.
    fn live(&self) -> impl Iterator<Item = &Record> {
        self.index.live.iter().filter_map(|id| self.records.get(id))
    }

    /// It can be claimed, now or later.
    fn make_ready(&mut self, id: MessageId, due_at: Timestamp, claimable: bool) {
        let record = self.records.get_mut(&id).expect("looked up before");
        let retained = record.retained_since();
        if let Life::Over { state: State::Dead, at, .. } = &record.life {
            self.index.dead.remove(&(record.place, *at, id));
        }
        record.life = Life::Ready { due_at, claimable };
        self.index.is_ready(&record.message, due_at, claimable);
        if let Some(since) = retained {
            self.index.over.remove(&(since, id));
        }
    }

    fn of_flow(&self, flow: MessageId) -> impl Iterator<Item = &Record> {
        self.index.flows.get(&flow).into_iter().flatten().filter_map(|id| self.records.get(id))
    }

    fn change(&mut self, id: MessageId) -> &mut Record {
        self.records.get_mut(&id).expect("looked up before")
    }

    /// Refuses and counts a write under a token that is not current; keeps what it confirms.
    fn late<T>(&mut self, id: MessageId, writes: &[&JournalWrite]) -> Result<T, StoreError> {
        let now = self.time.now;
        let Some(record) = self.records.get_mut(&id) else { return Err(StoreError::not_found(id)) };
        for write in writes {
            let (effect, value) = match write {
                JournalWrite::Answer { effect, answer: EffectAnswer::Confirmed { value }, .. } => (effect, value),
                // A natural effect is never open: nobody will have to decide about it.
                JournalWrite::Answer { .. }
                | JournalWrite::NotSent { .. }
                | JournalWrite::Natural { .. }
                | JournalWrite::Intent { .. } => continue,
            };
            if self.mutation == Some(Mutation::LateConfirmApplied) {
                for row in record.journal.iter_mut().filter(|row| row.effect == *effect && row.state.is_open()) {
                    row.state = EffectState::Confirmed { value: value.clone() };
                }
            }
            let evidence = &mut record.evidence;
            let of_effect: Vec<usize> = (0..evidence.len()).filter(|nth| evidence[*nth].effect == *effect).collect();
            if of_effect.iter().any(|nth| evidence[*nth].value == *value) {
                continue;
            }
            evidence.push(Evidence { at: now, effect: effect.clone(), value: value.clone() });
            if of_effect.len() == MOST_EVIDENCE {
                // The first stays, and the latest do.
                evidence.remove(of_effect[1]);
            }
        }
        let message = Arc::clone(&record.message);
        if self.mutation != Some(Mutation::LateWritesUncounted) {
            self.tally(&message, Counted::RejectedLateWrites, "");
        }
        Err(StoreError::lease_lost(id))
    }

    // --- enqueue -----------------------------------------------------------------------------------------------------

    pub(super) fn enqueue(&mut self, new: &NewMessage) -> Result<Enqueued, StoreError> {
        new.check(DEFAULT_MAX_PAYLOAD)?;
        if let Some(known) = self.known(new)? {
            return Ok(known);
        }
        if new.key_time.is_some_and(|made| self.time.now.since(made) > DEFAULT_RETENTION) {
            return Ok(Enqueued::Stale);
        }
        let due_at = self.due_at(new.due);
        if new.deadline.is_some_and(|deadline| deadline <= due_at) {
            return Err(StoreError::invalid("the deadline is over before the message is due"));
        }
        let place = self.queues.iter().position(|queue| queue.name == new.queue && queue.tenant == new.tenant);
        let limit = place.and_then(|place| Some((place, self.queues[place].max_depth?)));
        if limit.is_some_and(|(place, limit)| self.depth(place) >= limit) {
            self.tally_for(&new.queue, &new.kind, Counted::QueueFull, "");
            let full = StoreError::new(StoreErrorKind::QueueFull, format!("queue {} is full", new.queue));
            return Err(full.retry_after(Duration::from_secs(1)));
        }
        Ok(Enqueued::New { id: self.insert(new, None) })
    }

    /// The verdict on a key that is known.
    fn known(&mut self, new: &NewMessage) -> Result<Option<Enqueued>, StoreError> {
        let scope = (new.tenant.clone(), new.queue.clone(), new.key.clone());
        let Some(&id) = self.keys.get(&scope) else { return Ok(None) };
        let record = self.record(id)?;
        let differs = record.fingerprint != new.fingerprint().0;
        let message = Arc::clone(&record.message);
        let (state, answer) = match &record.life {
            Life::Over { state, answer, .. } => (*state, answer.clone()),
            Life::Ready { .. } | Life::Leased(_) | Life::Parked { .. } => (record.state(), None),
        };
        if differs && self.mutation != Some(Mutation::KeyConflictIgnored) {
            self.tally_for(&new.queue, &new.kind, Counted::KeyConflicts, "");
            let what = format!("key {} is known with another payload", new.key);
            return Err(StoreError::new(StoreErrorKind::KeyConflict, what).message_id(id));
        }
        if let Some(answer) = answer {
            self.tally(&message, Counted::Replayed, "");
            return Ok(Some(Enqueued::Replayed { id, answer }));
        }
        self.tally(&message, Counted::Deduplicated, "");
        let mut ignored = Vec::new();
        if message.priority != new.priority {
            ignored.push("priority");
        }
        // What was not asked for cannot be ignored.
        if new.deadline.is_some() && message.deadline != new.deadline {
            ignored.push("deadline");
        }
        Ok(Some(Enqueued::Existing { id, state, ignored }))
    }

    fn due_at(&self, due: Due) -> Timestamp {
        match due {
            Due::Now => self.time.now,
            Due::In(delay) => self.time.now.after(delay),
            Due::At(at) => at.max(self.time.now),
        }
    }

    /// Ready and leased messages.
    fn depth(&self, place: usize) -> u64 {
        let counts =
            |record: &&Record| record.place == place && matches!(record.life, Life::Ready { .. } | Life::Leased(_));
        self.live().filter(counts).count() as u64
    }

    fn insert(&mut self, new: &NewMessage, parent: Option<&Message>) -> MessageId {
        let now = self.time.now;
        let id = MessageId::next_after(self.last_id.unwrap_or(MessageId::from_i64(0)), now);
        self.last_id = Some(id);
        let due_at = self.due_at(new.due);
        let until_deadline = new.deadline.map(|deadline| deadline.since(due_at));
        let max_age = new.max_age.or(until_deadline).unwrap_or(DEFAULT_MAX_AGE);
        let message = Message {
            id,
            tenant: new.tenant.clone(),
            queue: new.queue.clone(),
            kind: new.kind.clone(),
            version: new.version,
            key: new.key.clone(),
            payload: new.payload.text().into(),
            priority: new.priority,
            enqueued_at: now,
            first_due_at: due_at,
            deadline: new.deadline,
            expires_at: due_at.after(max_age),
            flow: parent.map_or(id, |parent| parent.flow),
            parent: parent.map(|parent| parent.id),
            headers: new.headers.clone(),
        };
        self.tally(&message, Counted::Enqueued, "");
        self.keys.insert((new.tenant.clone(), new.queue.clone(), new.key.clone()), id);
        let place = self.place(&new.tenant, &new.queue);
        self.news.ready.push(new.queue.clone());
        let record = Record {
            message: Arc::new(message),
            place,
            fingerprint: new.fingerprint().0,
            max_age,
            life: Life::Ready { due_at, claimable: due_at <= now },
            counters: Counters::default(),
            cancel_wanted: false,
            release_wanted: false,
            suspect: false,
            undone: false,
            failure: None,
            journal: Vec::new(),
            evidence: Vec::new(),
            history: Vec::new(),
            settled: None,
            discarded: None,
        };
        self.index.is_ready(&record.message, due_at, due_at <= now);
        self.index.flows.entry(record.message.flow).or_default().insert(id);
        self.records.insert(id, record);
        id
    }

    // --- claim -------------------------------------------------------------------------------------------------------

    fn is_paused(&self, record: &Record) -> bool {
        self.mutation != Some(Mutation::PauseIgnored) && self.queues[record.place].paused
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest) -> Claimed {
        self.promote();
        let mut claimed = Claimed { leases: self.leases_under(request), ..Claimed::default() };
        if claimed.leases.is_empty() || self.mutation == Some(Mutation::NonceForgotten) {
            for slots in &request.queues {
                let mut free = slots.slots;
                while free > 0 {
                    let candidates = self.candidates(request, &slots.queue, free);
                    if candidates.is_empty() {
                        break;
                    }
                    for id in candidates {
                        match self.start(id, request) {
                            Some(lease) => {
                                claimed.leases.push(lease);
                                free -= 1;
                            }
                            None => claimed.ended += 1,
                        }
                    }
                }
            }
        }
        claimed.next_due = self.next_due(request);
        claimed
    }

    fn leases_under(&self, request: &ClaimRequest) -> Vec<Lease> {
        let under = self.index.leased.iter().filter(|(_, nonce)| **nonce == request.nonce);
        let mut held: Vec<(u64, Lease)> = under
            .filter_map(|(id, _)| {
                let record = self.records.get(id)?;
                let Life::Leased(held) = &record.life else { return None };
                Some((held.order, lease(record, held)))
            })
            .collect();
        held.sort_by_key(|(order, _)| *order);
        held.into_iter().map(|(_, lease)| lease).collect()
    }

    fn serves(&self, request: &ClaimRequest, queue: &QueueName, record: &Record) -> bool {
        let message = &record.message;
        message.queue == *queue
            && !self.is_paused(record)
            && message.tenant == request.tenant
            && request.kinds.iter().any(|(kind, version)| message.kind == *kind && message.version <= *version)
    }

    /// The first that can be claimed of a queue now, in the order to start them.
    fn candidates(&self, request: &ClaimRequest, queue: &QueueName, most: u32) -> Vec<MessageId> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let served = |lane: &&Lane| {
            request.kinds.iter().any(|(kind, version)| lane.kind == *kind && lane.version <= *version)
                && !lane.waiting.is_empty()
        };
        let mut due = Vec::new();
        for (_, lanes) in self.index.ready.range((queue.clone(), Priority::FIRST)..=(queue.clone(), Priority::LAST)) {
            let first = due.len();
            for lane in lanes.iter().filter(served) {
                let heads = lane.waiting.iter().filter(|(_, id)| self.serves(request, queue, &self.records[id]));
                due.extend(heads.take(most).copied());
            }
            due[first..].sort_unstable();
            if due.len() >= most && self.mutation != Some(Mutation::PriorityIgnored) {
                break;
            }
        }
        if self.mutation == Some(Mutation::PriorityIgnored) {
            due.sort_unstable();
        }
        due.into_iter().map(|(_, id)| id).take(most).collect()
    }

    fn next_due(&self, request: &ClaimRequest) -> Option<Timestamp> {
        (self.index.scheduled.iter())
            .filter_map(|(_, id)| self.records.get(id))
            .filter(|record| request.queues.iter().any(|q| self.serves(request, &q.queue, record)))
            .filter(|record| !record.is_claimable(self.time.now))
            .find_map(Record::due_at)
    }

    /// Leases a message, or ends one for which it is too late.
    fn start(&mut self, id: MessageId, request: &ClaimRequest) -> Option<Lease> {
        let now = self.time.now;
        let record = self.records.get(&id).expect("a candidate");
        let journal = record.facts();
        if let Some(differences) = &mut self.differences {
            let decided = by_core::admit(record, record.due_at().unwrap_or(now), now);
            let cancelled = record.cancel_wanted && !journal.is_open() && !journal.is_confirmed();
            let agrees = match (decided, rules::too_late(&record.message, &journal, now)) {
                (Admission::Cancelled, _) => cancelled,
                (Admission::Dead(reason), late) => !cancelled && late == Some(reason),
                (Admission::Start { counters, reconciling }, late) => {
                    let attempt = record.counters.attempt + u32::from(!reconciling);
                    let same = counters == Counters { claims: record.counters.claims + 1, attempt, ..record.counters };
                    same && !cancelled && late.is_none() && reconciling == journal.is_open()
                }
            };
            if !agrees {
                differences.push(format!("the claim of {id}: core {decided:?}"));
            }
        }
        if record.cancel_wanted && !journal.is_open() && !journal.is_confirmed() {
            self.finish(id, State::Cancelled, None, None);
            return None;
        }
        if let Some(reason) = rules::too_late(&record.message, &journal, now) {
            self.finish(id, State::Dead, Some(reason.as_str()), None);
            return None;
        }
        let reconciling = journal.is_open();
        self.leases += 1;
        let held = Held {
            order: self.leases,
            token: LeaseToken { claims: record.counters.claims + 1, nonce: request.nonce },
            worker: request.worker.clone(),
            until: now.after(request.lease),
            due_at: record.due_at().expect("a candidate is ready"),
            reconciling,
            alone: false,
        };
        self.index.was_ready(&record.message, held.due_at);
        self.index.leased.insert(id, request.nonce);
        let record = self.change(id);
        record.counters.claims += 1;
        record.counters.attempt += u32::from(!reconciling);
        record.settled = None;
        record.life = Life::Leased(held.clone());
        Some(lease(record, &held))
    }

    /// Ends a message for good, and counts it.
    fn finish(&mut self, id: MessageId, state: State, reason: Option<&str>, answer: Option<Answer>) {
        let (at, passed) = (self.time.now, self.time.passed);
        self.index.live.remove(&id);
        if state != State::Dead {
            self.index.over.insert((passed, id));
            self.index.unsettled.remove(&id);
        }
        let record = self.records.get_mut(&id).expect("looked up before");
        if let Some(due_at) = record.due_at() {
            self.index.was_ready(&record.message, due_at);
        }
        if state == State::Dead {
            self.index.dead.insert((record.place, at, id));
        }
        record.life = Life::Over { state, at, passed, reason: reason.map(str::to_owned), answer };
        record.suspect = false;
        let message = Arc::clone(&record.message);
        let release = state == State::Cancelled && record.release_wanted && !record.facts().was_tried();
        let code = record.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default();
        match state {
            State::Completed => self.tally(&message, Counted::Completed, ""),
            State::Failed => self.tally(&message, Counted::Failed, &code),
            State::Dead => self.tally(&message, Counted::Dead, reason.unwrap_or_default()),
            State::Cancelled => self.tally(&message, Counted::Cancelled, ""),
            State::Ready | State::Leased | State::Parked => unreachable!("not an end"),
        }
        if release {
            self.forget_key(&message);
        }
        self.news.ended.push(id);
    }

    // --- extend, journal ---------------------------------------------------------------------------------------------

    pub(super) fn extend(&mut self, extend: &Extend) -> Result<Extended, StoreError> {
        let now = self.time.now;
        let Some(record) = self.records.get_mut(&extend.id) else { return Err(StoreError::not_found(extend.id)) };
        let cancel_requested = record.cancel_wanted;
        match &mut record.life {
            Life::Leased(held) if held.token == extend.token => {
                held.until = now.after(extend.lease);
                held.alone |= extend.alone;
                Ok(Extended { until: held.until, cancel_requested })
            }
            Life::Leased(_) | Life::Ready { .. } | Life::Parked { .. } | Life::Over { .. } => self.late(extend.id, &[]),
        }
    }

    pub(super) fn journal(&mut self, journal: &Journal) -> Result<EffectRow, StoreError> {
        let (id, now) = (journal.id, self.time.now);
        let writes: Vec<&JournalWrite> = journal.before.iter().chain([&journal.write]).collect();
        let record = self.records.get(&id).ok_or_else(|| StoreError::not_found(id))?;
        let Some(held) = record.held_by(journal.token) else { return self.late(id, &writes) };
        let begun = match &journal.write {
            JournalWrite::Intent { reached, .. } => Some(&reached.effect),
            JournalWrite::Answer { .. } | JournalWrite::NotSent { .. } | JournalWrite::Natural { .. } => None,
        };
        if writes.iter().any(|write| matches!(write, JournalWrite::NotSent { effect } if Some(effect) != begun)) {
            return Err(StoreError::invalid("what was not sent is said with its next intent, or when the run ends"));
        }
        let lapsed = held.until < now && self.mutation != Some(Mutation::IntentAfterLapse);
        let mut rows = record.journal.clone();
        let mut row = Err(StoreError::invalid("nothing to write"));
        for write in writes {
            if lapsed && matches!(write, JournalWrite::Intent { .. }) {
                return Err(StoreError::lease_lost(id));
            }
            let written = apply(record, &mut rows, write, journal.token, now, &mut self.differences)?;
            row = written.ok_or_else(|| StoreError::conflict("nothing to write"));
        }
        if row.is_ok() {
            self.change(id).journal = rows;
        }
        row
    }

    // --- settle ------------------------------------------------------------------------------------------------------

    pub(super) fn settle(&mut self, settle: &Settle) -> Result<Settled, StoreError> {
        let id = settle.id;
        let record = self.records.get(&id).ok_or_else(|| StoreError::not_found(id))?;
        let message = Arc::clone(&record.message);
        let fenced = self.mutation != Some(Mutation::NoFence);
        let held = match &record.life {
            Life::Leased(held) if held.token == settle.token || !fenced => held.clone(),
            Life::Leased(_) | Life::Ready { .. } | Life::Parked { .. } | Life::Over { .. } => {
                return self.settle_again(settle);
            }
        };
        if !settle.journal.is_empty() {
            let mut rows = record.journal.clone();
            for write in &settle.journal {
                apply(record, &mut rows, write, settle.token, self.time.now, &mut self.differences)?;
            }
            self.change(id).journal = rows;
        }

        let policy = self.policies.get(&message.kind).cloned().unwrap_or_default();
        let mut outcome = settle.outcome.clone();
        if let Some(why) = self.refusal(settle) {
            outcome = Outcome::Refused { failure: Failure::new("settlement_refused", why) };
        }
        let ended = self.end_run(id, &held, &outcome, &policy, true, settle.unit);
        // What cannot be stored still undoes what was done, unless that is what cannot be stored.
        let undoable = outcome == settle.outcome || self.taken(&settle.compensate).is_none();
        let follow_ups = match ended.state {
            State::Completed => self.follow(&message, &settle.then),
            State::Failed | State::Dead if undoable => self.follow(&message, &settle.compensate),
            State::Failed | State::Dead | State::Ready | State::Leased | State::Parked | State::Cancelled => Vec::new(),
        };
        if !follow_ups.is_empty() && ended.state != State::Completed {
            self.change(id).undone = true;
        }
        let flow = message.flow;
        let settled = Settled {
            state: ended.state,
            due_at: ended.due_at,
            reason: ended.reason,
            follow_ups,
            flow_took: ended.state.is_terminal().then(|| self.flow_took(flow)).flatten(),
            repeated: false,
        };
        self.change(id).settled = Some((settle.token, settle.digest(), settled.clone()));
        Ok(settled)
    }

    /// A settlement without a lease: a repeat, a contradiction, or too late.
    fn settle_again(&mut self, settle: &Settle) -> Result<Settled, StoreError> {
        let record = self.record(settle.id)?.clone();
        match &record.settled {
            Some((token, digest, settled)) if *token == settle.token => {
                if *digest != settle.digest() {
                    return Err(StoreError::conflict("another settlement was made under this token"));
                }
                if self.mutation == Some(Mutation::FollowUpsTwice) && record.state() == State::Completed {
                    for new in &settle.then {
                        self.insert(new, Some(&record.message));
                    }
                }
                Ok(Settled { repeated: true, ..settled.clone() })
            }
            Some(_) | None => self.late(settle.id, &settle.journal.iter().collect::<Vec<_>>()),
        }
    }

    /// Why a settlement cannot be stored.
    fn refusal(&self, settle: &Settle) -> Option<String> {
        let follow_ups = match &settle.outcome {
            Outcome::Completed { result, .. } if result.len() > DEFAULT_MAX_PAYLOAD => {
                return Some(format!("a result of {} bytes", result.len()));
            }
            Outcome::Completed { .. } => &settle.then,
            Outcome::Permanent { .. }
            | Outcome::Retryable { .. }
            | Outcome::NotDone { .. }
            | Outcome::Unknown { .. }
            | Outcome::Snooze { .. }
            | Outcome::Park { .. }
            | Outcome::Exhausted { .. }
            | Outcome::Undecodable { .. }
            | Outcome::Refused { .. }
            | Outcome::Released
            | Outcome::LeaseExpired => &settle.compensate,
        };
        self.taken(follow_ups).map(|new| format!("follow-up {} is known with another payload", new.key))
    }

    /// The first of these whose key is another message's.
    fn taken<'a>(&self, follow_ups: &'a [NewMessage]) -> Option<&'a NewMessage> {
        follow_ups.iter().find(|new| {
            let scope = (new.tenant.clone(), new.queue.clone(), new.key.clone());
            let known = self.keys.get(&scope).and_then(|id| self.records.get(id));
            known.is_some_and(|record| record.fingerprint != new.fingerprint().0)
        })
    }

    fn follow(&mut self, parent: &Message, follow_ups: &[NewMessage]) -> Vec<MessageId> {
        let mut ids = Vec::new();
        for new in follow_ups {
            // One that is known already is a duplicate like any other, and counted as one.
            if let Ok(None) = self.known(new) {
                ids.push(self.insert(new, Some(parent)));
            }
        }
        ids
    }

    fn flow_took(&self, flow: MessageId) -> Option<Duration> {
        let live = self.of_flow(flow).any(|record| !record.state().is_terminal());
        // Past its retention the first message is gone, and with it when it all began.
        let first = self.records.get(&flow)?.message.enqueued_at;
        (!live).then(|| self.time.now.since(first))
    }

    /// Ends a run and moves the message to where that leads.
    fn end_run(
        &mut self,
        id: MessageId,
        held: &Held,
        outcome: &Outcome,
        policy: &Policy,
        may_die: bool,
        unit: f64,
    ) -> rules::Ended {
        let now = self.time.now;
        self.index.leased.remove(&id);
        let record = self.records.get(&id).expect("it was leased");
        let run = rules::Run {
            message: &record.message,
            journal: record.facts(),
            counters: record.counters,
            due_at: held.due_at,
            reconciling: held.reconciling,
            suspect: record.suspect,
            alone: held.alone,
            cancel_wanted: record.cancel_wanted,
            policy,
            may_die,
            now,
            unit,
            mutation: self.mutation,
        };
        let mut ended = rules::end(&run, outcome);
        if let Some(differences) = &mut self.differences {
            let decided = by_core::end(record, &run, outcome);
            if decided != ended {
                differences.push(format!("{outcome:?} of {id}: core {decided:?}, rules {ended:?}"));
            }
            ended = decided;
        }
        let code = outcome.failure().map(|failure| failure.code.clone()).unwrap_or_default();

        let record = self.change(id);
        record.counters = ended.counters;
        record.suspect = ended.suspect;
        match outcome.failure() {
            Some(failure) => record.failure = Some(failure.clone()),
            None if ended.state == State::Completed => record.failure = None,
            None => {}
        }
        if ended.state != State::Completed {
            record.history.push(Ending {
                at: now,
                attempt: ended.counters.attempt,
                generation: ended.counters.generation,
                outcome: outcome.as_str().to_owned(),
                state: ended.state,
                code: code.clone(),
                detail: outcome.failure().map(|failure| failure.detail.clone()).unwrap_or_default(),
                due_at: ended.due_at,
            });
        }
        let message = Arc::clone(&record.message);
        self.tally(&message, Counted::Attempts, outcome.as_str());
        if !code.is_empty() {
            self.tally(&message, Counted::Failures, &code);
        }
        match ended.state {
            State::Ready => {
                let due_at = ended.due_at.expect("ready is due some time");
                self.make_ready(id, due_at, due_at <= now);
                self.tally(&message, Counted::Retries, &code);
                self.news.ready.push(message.queue.clone());
            }
            State::Parked => {
                let reason = ended.reason.expect("parked for a reason").to_owned();
                self.tally(&message, Counted::Parked, &reason);
                self.change(id).life = Life::Parked { reason, at: now };
                self.news.ended.push(id);
            }
            State::Completed | State::Failed | State::Dead | State::Cancelled => {
                let answer = match (ended.state, outcome) {
                    (State::Completed, Outcome::Completed { result, .. }) => Some(Answer::Completed(result.clone())),
                    (State::Failed, Outcome::Permanent { failure, .. }) => Some(Answer::Failed(failure.clone())),
                    _ => None,
                };
                self.finish(id, ended.state, ended.reason, answer);
            }
            State::Leased => unreachable!("no run ends leased"),
        }
        ended
    }

    // --- sweep -------------------------------------------------------------------------------------------------------

    pub(super) fn sweep(&mut self, request: &SweepRequest) -> Swept {
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let mut swept = Swept::default();
        self.promote();
        if request.take_over {
            let lapsed = self.lapsed();
            swept.more |= lapsed.len() > limit;
            for (id, held) in lapsed.into_iter().take(limit) {
                swept.taken_over.push(self.take_over(id, &held, request.unit));
            }
        }
        if let Some(retention) = request.retention {
            let over = self.past(retention);
            swept.more |= over.len() > limit;
            for id in over.into_iter().take(limit) {
                self.delete(id);
                swept.deleted += 1;
            }
        }
        swept
    }

    /// What is due by now stays claimable.
    fn promote(&mut self) {
        let now = self.time.now;
        while let Some(first) = self.index.scheduled.first().copied().filter(|(due_at, _)| *due_at <= now) {
            self.index.scheduled.remove(&first);
            let Some(record) = self.records.get_mut(&first.1) else { continue };
            if let Life::Ready { due_at, claimable } = &mut record.life {
                *claimable = true;
                self.index.is_ready(&record.message, *due_at, true);
            }
        }
    }

    fn lapsed(&self) -> Vec<(MessageId, Held)> {
        let mut lapsed: Vec<(MessageId, Held)> = (self.leased())
            .filter_map(|record| match &record.life {
                Life::Leased(held) if held.until < self.time.now => Some((record.message.id, held.clone())),
                Life::Leased(_) | Life::Ready { .. } | Life::Parked { .. } | Life::Over { .. } => None,
            })
            .collect();
        lapsed.sort_by_key(|(id, held)| (held.until, *id));
        lapsed
    }

    fn take_over(&mut self, id: MessageId, held: &Held, unit: f64) -> TakenOver {
        let message = Arc::clone(&self.record(id).expect("it is leased").message);
        // Nobody has said yet what its kind allows: it goes back, whatever happened.
        let lenient = Policy { max_attempts: u32::MAX, crash_limit: u32::MAX, ..Policy::default() };
        let fallback = if self.mutation == Some(Mutation::DeadWithoutPolicy) { Policy::default() } else { lenient };
        let policy = self.policies.get(&message.kind).cloned().unwrap_or(fallback);
        self.tally(&message, Counted::LostLeases, "");
        let declared = self.policies.contains_key(&message.kind) || self.mutation == Some(Mutation::DeadWithoutPolicy);
        let ended = self.end_run(id, held, &Outcome::LeaseExpired, &policy, declared, unit);
        self.change(id).settled = None;
        TakenOver { id, state: ended.state, worker: held.worker.clone(), queue: message.queue.clone() }
    }

    /// Messages whose answer was kept long enough, by the wall clock and by the time that really passed.
    fn past(&self, retention: Duration) -> Vec<MessageId> {
        let (now, passed) = (self.time.now, self.time.passed);
        let over = |record: &&Record| match &record.life {
            Life::Over { state: State::Dead, .. } => record
                .discarded
                .is_some_and(|(at, then)| at.after(retention) <= now && passed.saturating_sub(then) >= retention),
            Life::Over { state: State::Completed | State::Failed | State::Cancelled, at, passed: then, .. } => {
                let from_enqueue = self.mutation == Some(Mutation::RetentionFromEnqueue);
                let at = if from_enqueue { record.message.enqueued_at } else { *at };
                at.after(retention) <= now && (from_enqueue || passed.saturating_sub(*then) >= retention)
            }
            Life::Over { .. } | Life::Ready { .. } | Life::Leased(_) | Life::Parked { .. } => false,
        };
        if self.mutation == Some(Mutation::RetentionFromEnqueue) {
            return self.records.values().filter(over).map(|record| record.message.id).collect();
        }
        let long_over = |(then, _): &&(Duration, MessageId)| passed.saturating_sub(*then) >= retention;
        let mut past: Vec<MessageId> = (self.index.over.iter().take_while(long_over))
            .filter(|(_, id)| self.records.get(id).as_ref().is_some_and(over))
            .map(|(_, id)| *id)
            .collect();
        past.sort_unstable();
        past.dedup();
        past
    }

    fn delete(&mut self, id: MessageId) {
        let Some(record) = self.records.remove(&id) else { return };
        self.forget_key(&record.message);
        self.index.unsettled.remove(&id);
        if let Some(flow) = self.index.flows.get_mut(&record.message.flow) {
            flow.remove(&id);
            if flow.is_empty() {
                self.index.flows.remove(&record.message.flow);
            }
        }
        if let Some(since) = record.retained_since() {
            self.index.over.remove(&(since, id));
        }
        self.tally(&record.message, Counted::Deleted, "");
    }

    /// The key is free again, if it is still this message's.
    fn forget_key(&mut self, message: &Message) {
        let scope = (message.tenant.clone(), message.queue.clone(), message.key.clone());
        if self.keys.get(&scope) == Some(&message.id) {
            self.keys.remove(&scope);
        }
    }

    // --- operators ---------------------------------------------------------------------------------------------------

    pub(super) fn redrive(&mut self, request: &Redrive) -> Result<Vec<Result<MessageId, StoreError>>, StoreError> {
        if request.ids.len() > REDRIVE_CHUNK {
            return Err(StoreError::invalid(format!("{} messages in one redrive", request.ids.len())));
        }
        if request.again && request.act.reason.trim().is_empty() {
            return Err(StoreError::invalid("a redrive that replaces answers needs a reason"));
        }
        let done = self.operations.len();
        let verdicts = request.ids.iter().map(|id| self.redrive_one(*id, request)).collect();
        if self.operations.len() > done {
            let detail = format!("operation {}", request.operation);
            self.record_act(&request.act, "redrive", None, None, detail);
        }
        Ok(verdicts)
    }

    fn redrive_one(&mut self, id: MessageId, request: &Redrive) -> Result<MessageId, StoreError> {
        let operation = (request.operation.clone(), id);
        if self.operations.contains(&operation) {
            return Ok(id);
        }
        let record = self.record(id)?;
        let counters = rules::redrive(record.state(), record.counters, &record.facts(), request.again, record.undone)?;
        let scope = (record.message.tenant.clone(), record.message.queue.clone(), record.message.key.clone());
        if self.keys.get(&scope).is_some_and(|owner| *owner != id) {
            return Err(StoreError::conflict("its key was released and is another message's by now"));
        }
        self.keys.insert(scope, id);
        let now = self.time.now;
        let record = self.change(id);
        let had = Counters { attempt: record.counters.attempt, ..counters };
        record.counters = counters;
        self.make_ready(id, now, true);
        let record = self.change(id);
        record.cancel_wanted = false;
        record.release_wanted = false;
        record.suspect = false;
        record.settled = None;
        record.discarded = None;
        record.start_anew(now);
        record.history.push(operator_ending(now, had, "redriven", State::Ready, Some(now)));
        let message = Arc::clone(&record.message);
        self.tally(&message, Counted::Redriven, "");
        self.news.ready.push(message.queue.clone());
        self.operations.insert(operation);
        Ok(id)
    }

    pub(super) fn cancel(&mut self, id: MessageId, request: &Cancel) -> Result<Cancellation, StoreError> {
        let record = self.record(id)?;
        let (state, journal) = (record.state(), record.facts());
        let live = matches!(state, State::Ready | State::Leased);
        if !live && state != State::Cancelled || live && journal.is_confirmed() {
            return Err(StoreError::conflict(format!("cannot be cancelled while {state}")));
        }
        if request.release_key && journal.was_tried() {
            return Err(StoreError::conflict("its key may be known outside"));
        }
        if !live {
            return Ok(self.cancel_again(id, request));
        }
        let now_or_never = state == State::Ready && !journal.is_open();
        let (counters, now) = (record.counters, self.time.now);
        let release_wanted = record.release_wanted || !request.release_key;
        if record.cancel_wanted && release_wanted && !now_or_never {
            return Ok(Cancellation::Requested);
        }
        self.record_act(&request.act, "cancel", Some(id), None, String::new());
        let record = self.change(id);
        record.cancel_wanted = true;
        record.release_wanted |= request.release_key;
        if !now_or_never {
            return Ok(Cancellation::Requested);
        }
        self.finish(id, State::Cancelled, None, None);
        self.change(id).history.push(operator_ending(now, counters, "cancelled", State::Cancelled, None));
        Ok(Cancellation::Now)
    }

    /// Nothing is left to do but to give a key away that was kept.
    fn cancel_again(&mut self, id: MessageId, request: &Cancel) -> Cancellation {
        let message = Arc::clone(&self.records[&id].message);
        let scope = (message.tenant.clone(), message.queue.clone(), message.key.clone());
        if request.release_key && self.keys.get(&scope) == Some(&id) {
            self.record_act(&request.act, "cancel", Some(id), None, "key released".to_owned());
            self.forget_key(&message);
        }
        Cancellation::Now
    }

    pub(super) fn pause(&mut self, request: &ChangeQueue) {
        let place = self.place(&request.tenant, &request.queue);
        let queue = &mut self.queues[place];
        let before = (queue.paused, queue.max_depth);
        let (act, detail) = match request.change {
            QueueChange::Pause => {
                queue.paused = true;
                ("pause", String::new())
            }
            QueueChange::Resume => {
                queue.paused = false;
                self.news.ready.push(request.queue.clone());
                ("resume", String::new())
            }
            QueueChange::Limit(limit) => {
                queue.max_depth = limit;
                ("limit", limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string()))
            }
        };
        let unchanged = before == (self.queues[place].paused, self.queues[place].max_depth);
        let of = (request.tenant.clone(), request.queue.clone());
        let is_limit = act == "limit";
        let on_it = |row: &&AuditEntry| {
            (row.tenant.as_ref(), row.queue.as_ref()) == (Some(&of.0), Some(&of.1))
                && if is_limit { row.act == "limit" } else { matches!(&*row.act, "pause" | "resume") }
        };
        let said = self.audit.iter().rev().find(on_it).is_some_and(|row| {
            (&*row.actor, &*row.act, &*row.reason, &*row.detail)
                == (&*request.act.actor, act, &*request.act.reason, &*detail)
        });
        if !(unchanged && said) {
            self.record_act(&request.act, act, None, Some(of), detail);
        }
    }

    pub(super) fn resolve(&mut self, request: &Resolve) -> Result<Resolved, StoreError> {
        if request.act.reason.trim().is_empty() {
            return Err(StoreError::invalid("a resolution needs a reason"));
        }
        let (id, now) = (request.id, self.time.now);
        let record = self.record(id)?;
        let row = record.facts().newest(&request.effect).cloned();
        let row = row.ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "no such effect"))?;
        let parked_for = match &record.life {
            Life::Parked { reason, .. } => Some(reason.clone()),
            Life::Ready { .. } | Life::Leased(_) | Life::Over { .. } => None,
        };
        let same = match (&request.resolution, &row.state) {
            (Resolution::Happened { value }, EffectState::Confirmed { value: known }) => value == known,
            (Resolution::DidNotHappen, EffectState::NotDone) => true,
            (Resolution::Happened { .. } | Resolution::DidNotHappen, _) => false,
        };
        let was_resolved = record.history.iter().any(|ending| ending.outcome == "resolved");
        let state = match (&request.resolution, parked_for.as_deref()) {
            // The same act again: once resolved it may come twice, but no run is told what it said itself.
            _ if same && (parked_for.is_some() || was_resolved) => row.state.clone(),
            (_, None) => return Err(StoreError::conflict("it is not parked")),
            (Resolution::Happened { value }, Some(reason)) => {
                let unreadable =
                    reason == ParkReason::JournalDecode.as_str() && matches!(row.state, EffectState::Confirmed { .. });
                if !row.state.is_open() && !unreadable {
                    return Err(StoreError::conflict("it is decided otherwise"));
                }
                EffectState::Confirmed { value: value.clone() }
            }
            (Resolution::DidNotHappen, Some(_)) if rules::may_be_denied(&row, now) => EffectState::NotDone,
            (Resolution::DidNotHappen, Some(_)) => return Err(StoreError::conflict("it may have happened")),
        };
        let policy = self.policies.get(&record.message.kind).cloned().unwrap_or_default();
        if parked_for.is_none() {
            let still_open = u32::try_from(record.facts().open().len()).unwrap_or(u32::MAX);
            return Ok(Resolved { state: record.state(), still_open });
        }
        self.record_act(&request.act, "resolve", Some(id), None, request.effect.to_string());
        let record = self.change(id);
        for known in &mut record.journal {
            if (&known.effect, known.seq) == (&row.effect, row.seq) {
                known.state = state.clone();
            }
        }
        let still_open = u32::try_from(record.facts().open().len()).unwrap_or(u32::MAX);
        if still_open > 0 {
            return Ok(Resolved { state: State::Parked, still_open });
        }
        record.counters.attempt = record.counters.attempt.min(policy.max_attempts.saturating_sub(1));
        self.make_ready(id, now, true);
        let record = self.change(id);
        record.start_anew(now);
        let counters = record.counters;
        record.history.push(operator_ending(now, counters, "resolved", State::Ready, Some(now)));
        let message = Arc::clone(&record.message);
        self.tally(&message, Counted::Resolved, "");
        self.news.ready.push(message.queue.clone());
        Ok(Resolved { state: State::Ready, still_open: 0 })
    }

    // --- inspect -----------------------------------------------------------------------------------------------------

    pub(super) fn view(&self, id: MessageId) -> Option<MessageView> {
        self.records.get(&id).map(|record| MessageView {
            message: (*record.message).clone(),
            state: record.state(),
            counters: record.counters,
            due_at: record.due_at(),
            reason: match &record.life {
                Life::Parked { reason, .. } => Some(reason.clone()),
                Life::Over { reason, .. } => reason.clone(),
                Life::Ready { .. } | Life::Leased(_) => None,
            },
            failure: record.failure.clone(),
            answer: match &record.life {
                Life::Over { answer, .. } => answer.clone(),
                Life::Parked { .. } | Life::Ready { .. } | Life::Leased(_) => None,
            },
            ended_at: record.ended_at(),
            lease: match &record.life {
                Life::Leased(held) => Some((held.worker.clone(), held.until)),
                Life::Parked { .. } | Life::Ready { .. } | Life::Over { .. } => None,
            },
            cancel_requested: record.cancel_wanted,
            suspect: record.suspect,
            compensated: record.undone,
            journal: record.journal.clone(),
            evidence: record.evidence.clone(),
            history: record.history.clone(),
        })
    }

    /// What the simulation looks at after each verb, without a copy of it.
    pub(super) fn glance(&self, id: MessageId) -> Option<Glance<'_>> {
        let record = self.records.get(&id)?;
        let (reason, answer) = match &record.life {
            Life::Parked { .. } => (true, None),
            Life::Over { reason, answer, .. } => (reason.is_some(), answer.as_ref()),
            Life::Ready { .. } | Life::Leased(_) => (false, None),
        };
        Some(Glance {
            message: &record.message,
            state: record.state(),
            counters: record.counters,
            has_reason: reason,
            answer,
            compensated: record.undone,
            journal: &record.journal,
        })
    }

    fn summary(record: &Record) -> Summary {
        Summary {
            id: record.message.id,
            tenant: record.message.tenant.clone(),
            queue: record.message.queue.clone(),
            kind: record.message.kind.clone(),
            key: record.message.key.clone(),
            state: record.state(),
            attempt: record.counters.attempt,
            due_at: record.due_at(),
            code: record.code(),
            detail: record.failure.as_ref().map(|failure| failure.detail.clone()),
            enqueued_at: record.message.enqueued_at,
            ended_at: record.ended_at(),
            flow: record.message.flow,
        }
    }

    pub(super) fn flow(&self, root: MessageId) -> Vec<Summary> {
        self.of_flow(root).map(Self::summary).collect()
    }

    pub(super) fn list(&self, filter: &Filter) -> Vec<Summary> {
        let wanted = |record: &&Record| {
            let failure = record.failure.as_ref().map(|failure| &failure.code);
            filter.queue.as_ref().is_none_or(|queue| record.message.queue == *queue)
                && filter.tenant.as_ref().is_none_or(|tenant| record.message.tenant == *tenant)
                && filter.kind.as_ref().is_none_or(|kind| record.message.kind == *kind)
                && (filter.states.is_empty() || filter.states.contains(&record.state()))
                && filter.code.as_ref().is_none_or(|code| record.code().as_ref() == Some(code) || failure == Some(code))
                && filter.group.is_none_or(|group| record.failure_group() == Some(group))
                && (filter.discarded || record.discarded.is_none())
        };
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let from = (filter.after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let settled = |state: &State| matches!(state, State::Completed | State::Failed | State::Cancelled);
        if filter.states.is_empty() || filter.states.iter().any(settled) {
            let records = self.records.range(from).map(|(_, record)| record);
            return records.filter(wanted).take(limit).map(Self::summary).collect();
        }
        let records = self.index.unsettled.range(from).filter_map(|id| self.records.get(id));
        records.filter(wanted).take(limit).map(Self::summary).collect()
    }

    pub(super) fn explain(&self, id: MessageId) -> Option<ExplainFacts> {
        let view = self.view(id)?;
        let place = |record: &Record| {
            let message = &record.message;
            (message.tenant.clone(), message.queue.clone(), message.kind.clone(), message.version, message.priority)
        };
        let record = self.records.get(&id)?;
        let ahead = match record.due_at() {
            None => 0,
            Some(due_at) => (self.records.values())
                .filter(|other| place(other) == place(record))
                .filter(|other| other.is_claimable(self.time.now))
                .filter(|other| other.due_at().is_some_and(|at| (at, other.message.id) < (due_at, id)))
                .count(),
        };
        Some(ExplainFacts {
            now: self.time.now,
            paused: self.is_paused(record),
            ahead: u32::try_from(ahead.min(10_000)).unwrap_or(10_000),
            policy: self.policies.get(&record.message.kind).cloned(),
            view,
        })
    }

    // --- stats -------------------------------------------------------------------------------------------------------

    pub(super) fn stats(&self) -> Stats {
        let now = self.time.now;
        let empty = |queue: &Queue| QueueStats {
            tenant: queue.tenant.clone(),
            queue: queue.name.clone(),
            paused: queue.paused,
            max_depth: queue.max_depth,
            ready: 0,
            scheduled: 0,
            leased: 0,
            parked: 0,
            dead: 0,
            oldest_ready: None,
            oldest_leased: None,
            oldest_parked: None,
            oldest_dead: None,
        };
        let mut queues: Vec<QueueStats> = self.queues.iter().map(empty).collect();
        let mut open_effects = 0;
        let mut lanes: BTreeMap<(QueueName, Kind, u32, Priority), Duration> = BTreeMap::new();
        for (place, at, _) in &self.index.dead {
            let stats = &mut queues[*place];
            stats.dead += 1;
            stats.oldest_dead = stats.oldest_dead.max(Some(now.since(*at)));
        }
        for record in self.live() {
            let (message, stats) = (&record.message, &mut queues[record.place]);
            if !record.journal.is_empty() {
                open_effects += record.facts().open().len() as u64;
            }
            match &record.life {
                Life::Ready { due_at, .. } if record.is_claimable(now) => {
                    let age = now.since(*due_at);
                    stats.ready += 1;
                    stats.oldest_ready = stats.oldest_ready.max(Some(age));
                    let lane = (message.queue.clone(), message.kind.clone(), message.version, message.priority);
                    let oldest = lanes.entry(lane).or_default();
                    *oldest = age.max(*oldest);
                }
                Life::Ready { .. } => stats.scheduled += 1,
                Life::Leased(held) => {
                    stats.leased += 1;
                    stats.oldest_leased = stats.oldest_leased.max(Some(now.since(held.due_at)));
                }
                Life::Parked { at, .. } => {
                    stats.parked += 1;
                    stats.oldest_parked = stats.oldest_parked.max(Some(now.since(*at)));
                }
                Life::Over { .. } => {}
            }
        }
        queues.sort_by(|a, b| (&a.queue, &a.tenant).cmp(&(&b.queue, &b.tenant)));
        Stats {
            queues,
            tallies: (self.tallies.iter())
                .flat_map(|(of, by_code)| by_code.iter().map(move |(code, n)| (of, code, n)))
                .map(|((queue, kind, what), code, n)| Tally {
                    queue: queue.clone(),
                    kind: kind.clone(),
                    what: *what,
                    code: code.clone(),
                    n: *n,
                })
                .collect(),
            open_effects,
            lanes: (lanes.into_iter())
                .map(|((queue, kind, version, priority), oldest)| LaneStats { queue, kind, version, priority, oldest })
                .collect(),
        }
    }
}

fn operator_ending(at: Timestamp, counters: Counters, what: &str, state: State, due_at: Option<Timestamp>) -> Ending {
    Ending {
        at,
        attempt: counters.attempt,
        generation: counters.generation,
        outcome: what.to_owned(),
        state,
        code: String::new(),
        detail: String::new(),
        due_at,
    }
}

fn lease(record: &Record, held: &Held) -> Lease {
    Lease {
        message: (*record.message).clone(),
        token: held.token,
        until: held.until,
        counters: record.counters,
        reconciling: held.reconciling,
        suspect: record.suspect,
        due_at: held.due_at,
        journal: record.journal.clone(),
    }
}
