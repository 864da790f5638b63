//! Groups of failures, redrives of many, edits and discards, stated anew over plain maps.

use std::cmp::Reverse;

use tidegate_core::group::{GroupId, pattern};
use tidegate_core::store::{
    Discard, Edit, Edited, FailureGroup, JUDGED_FROM, MOST_NAMED, NewOperation, Operate, Operation, OperationState,
    Pace, Selection, Stepped, Waits,
};

use super::*;

/// The course of an operation: what it did and what it still watches.
#[derive(Debug, Clone)]
pub(super) struct Course {
    shown: Operation,
    /// The last message it came to.
    last: Option<MessageId>,
    under_way: BTreeSet<MessageId>,
    /// So many were redriven when its canary is complete, while there is one.
    canary: Option<u64>,
    /// What had ended, well and badly, when it was last allowed to go on.
    forgiven: (u64, u64),
    next_at: Timestamp,
}

impl Course {
    fn excess(&self) -> Option<String> {
        let most = u64::from(self.shown.pace.stop_over_percent?);
        let (well, badly) = (self.shown.ended_well - self.forgiven.0, self.shown.ended_badly - self.forgiven.1);
        (badly * 100 > most * (well + badly)).then(|| format!("stopped: {badly} badly, {well} well"))
    }

    fn is_ripe(&self) -> bool {
        let idle = self.under_way.is_empty();
        let ended = self.shown.ended_well + self.shown.ended_badly - self.forgiven.0 - self.forgiven.1;
        match self.canary {
            Some(until) => idle && self.shown.redriven >= until,
            None => self.shown.pace.canary > 0 || idle || ended >= JUDGED_FROM,
        }
    }

    fn stands(&self, waits: Option<Waits>) -> Stepped {
        Stepped { operation: self.shown.clone(), refused: Vec::new(), waits }
    }
}

impl Record {
    /// What the run said that ended it. One that crashed, or a message that never began, said nothing: then the reason.
    fn failed_with(&self) -> (String, String) {
        let by_an_operator = |outcome: &str| matches!(outcome, "edited" | "discarded");
        let last = self.history.iter().rev().find(|ending| !by_an_operator(&ending.outcome));
        let said = last.filter(|ending| ending.state == self.state() && !ending.code.is_empty());
        match said {
            Some(ending) => (ending.code.clone(), ending.detail.clone()),
            None => (self.code().unwrap_or_default(), String::new()),
        }
    }

    fn failed_at(&self) -> Option<&tidegate_core::EffectName> {
        let mut tried: Vec<&EffectRow> = self.journal.iter().collect();
        tried.retain(|row| !matches!(row.state, EffectState::Confirmed { .. }));
        tried.sort_by(|a, b| (a.first_intent_at, &a.effect, a.seq).cmp(&(b.first_intent_at, &b.effect, b.seq)));
        tried.last().map(|row| &row.effect.name)
    }

    /// The group of a message that waits for a person.
    pub(super) fn failure_group(&self) -> Option<GroupId> {
        if !matches!(self.state(), State::Dead | State::Parked) {
            return None;
        }
        let (code, detail) = self.failed_with();
        Some(GroupId::of(&self.message.kind, &code, self.failed_at(), &detail))
    }
}

impl World {
    pub(in super::super) fn groups(&self, filter: &Filter) -> Vec<FailureGroup> {
        let states = if filter.states.is_empty() { vec![State::Dead] } else { filter.states.clone() };
        let all = Filter { states, limit: u32::MAX, code: None, after: None, group: None, ..filter.clone() };
        let mut groups: BTreeMap<GroupId, FailureGroup> = BTreeMap::new();
        for summary in self.list(&Filter { discarded: false, ..all }) {
            let record = &self.records[&summary.id];
            let (Some(id), Some(at)) = (record.failure_group(), record.ended_at()) else { continue };
            let (code, detail) = record.failed_with();
            let group = groups.entry(id).or_insert_with(|| FailureGroup {
                id,
                kind: record.message.kind.clone(),
                code,
                effect: record.failed_at().cloned(),
                pattern: pattern(&detail),
                count: 0,
                first_seen: at,
                last_seen: at,
                sample: summary.id,
            });
            group.count += 1;
            group.first_seen = group.first_seen.min(at);
            group.last_seen = group.last_seen.max(at);
        }
        let mut groups: Vec<FailureGroup> = groups.into_values().collect();
        groups.retain(|group| filter.code.as_ref().is_none_or(|code| group.code == *code));
        groups.sort_by_key(|group| (Reverse(group.count), group.id));
        groups.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
        groups
    }

    // --- edit, discard -----------------------------------------------------------------------------------------------

    pub(in super::super) fn edit(&mut self, request: &Edit) -> Result<Edited, StoreError> {
        if request.act.reason.trim().is_empty() {
            return Err(StoreError::invalid("an edit needs a reason"));
        }
        if request.payload.text().len() > DEFAULT_MAX_PAYLOAD {
            return Err(StoreError::invalid("the payload is too large"));
        }
        let record = self.record(request.id)?;
        let stands = record.journal.iter().any(|row| match row.state {
            EffectState::Intent | EffectState::Unknown { .. } | EffectState::Confirmed { .. } => true,
            EffectState::Rejected { .. } | EffectState::NotDone => false,
        });
        if record.state() != State::Dead || stands {
            return Err(StoreError::conflict("its payload cannot be changed"));
        }
        let (before, after) = (Arc::clone(&record.message.payload), Arc::from(request.payload.text()));
        if before != after {
            let now = self.time.now;
            let record = self.change(request.id);
            Arc::make_mut(&mut record.message).payload = Arc::clone(&after);
            record.counters.round += 1;
            let counters = record.counters;
            record.history.push(operator_ending(now, counters, "edited", State::Dead, None));
            self.record_act(&request.act, "edit", Some(request.id), None, "payload".to_owned());
        }
        Ok(Edited { before, after })
    }

    pub(in super::super) fn discard(
        &mut self,
        request: &Discard,
    ) -> Result<Vec<Result<MessageId, StoreError>>, StoreError> {
        if request.act.reason.trim().is_empty() || request.ids.len() > REDRIVE_CHUNK {
            return Err(StoreError::invalid("a discard needs a reason and at most a chunk of ids"));
        }
        let mut discarded = false;
        let mut verdicts = Vec::new();
        for id in &request.ids {
            let verdict = self.record(*id).and_then(|record| {
                if record.state() != State::Dead || record.facts().is_open() {
                    return Err(StoreError::conflict(format!("cannot be discarded while {}", record.state())));
                }
                Ok(record.discarded.is_none())
            });
            if verdict == Ok(true) {
                let (now, passed) = (self.time.now, self.time.passed);
                let record = self.change(*id);
                record.discarded = Some((now, passed));
                let counters = record.counters;
                record.history.push(operator_ending(now, counters, "discarded", State::Dead, None));
                let was = record.ended_at().map(|at| (record.place, at, *id));
                self.index.over.insert((passed, *id));
                if let Some(was) = was {
                    self.index.dead.remove(&was);
                }
                discarded = true;
            }
            verdicts.push(verdict.map(|_| *id));
        }
        if discarded {
            self.record_act(&request.act, "discard", None, None, String::new());
        }
        Ok(verdicts)
    }

    // --- operations --------------------------------------------------------------------------------------------------

    pub(in super::super) fn operations(&self, name: Option<&str>, limit: u32) -> Vec<Operation> {
        let mut shown: Vec<Operation> = self.many.values().map(|course| course.shown.clone()).collect();
        shown.retain(|operation| name.is_none_or(|name| operation.name == name));
        shown.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.name.cmp(&b.name)));
        shown.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        shown
    }

    pub(in super::super) fn operate(&mut self, request: &Operate) -> Result<Stepped, StoreError> {
        let (name, act) = match request {
            Operate::Begin(new) => return self.begin(new),
            Operate::Step { name } => (name, None),
            Operate::Cancel { name, act } | Operate::Resume { name, act } => (name, Some(act)),
        };
        let found = self.many.get(name).cloned();
        let mut course = found.ok_or_else(|| StoreError::new(StoreErrorKind::NotFound, "no such operation"))?;
        let detail = format!("operation {name}");
        let stepped = match (request, act, course.shown.state) {
            (Operate::Cancel { .. }, Some(act), OperationState::Running | OperationState::Stopped) => {
                course.shown.state = OperationState::Cancelled;
                self.record_act(act, "operation", None, None, detail);
                course.stands(None)
            }
            (Operate::Resume { .. }, Some(act), OperationState::Stopped) => {
                if act.reason.trim().is_empty() {
                    return Err(StoreError::invalid("going on needs a reason"));
                }
                self.look_after(&mut course);
                course.shown.state = OperationState::Running;
                course.forgiven = (course.shown.ended_well, course.shown.ended_badly);
                let Pace { canary, .. } = course.shown.pace;
                course.canary = (canary > 0).then_some(course.shown.redriven + u64::from(canary));
                self.record_act(act, "operation", None, None, detail);
                course.stands(None)
            }
            (Operate::Cancel { .. }, _, OperationState::Cancelled)
            | (Operate::Resume { .. }, _, OperationState::Running) => course.stands(None),
            (Operate::Cancel { .. } | Operate::Resume { .. }, ..) => {
                return Err(StoreError::conflict("it is over"));
            }
            (Operate::Step { .. } | Operate::Begin(_), ..) => self.step(&mut course),
        };
        self.many.insert(name.clone(), course);
        Ok(stepped)
    }

    fn begin(&mut self, new: &NewOperation) -> Result<Stepped, StoreError> {
        let NewOperation { name, selection, again, pace, act } = new;
        let careless = *again && (act.reason.trim().is_empty() || selection.ids.is_empty());
        let impossible = pace.per_second == Some(0) || pace.stop_over_percent.is_some_and(|percent| percent > 100);
        if name.is_empty() || careless || impossible || selection.ids.len() > MOST_NAMED {
            return Err(StoreError::invalid("no such operation can begin"));
        }
        let ids: BTreeSet<MessageId> = selection.ids.iter().copied().collect();
        let selection = Selection { ids: ids.into_iter().collect(), ..selection.clone() };
        if let Some(known) = self.many.get(name) {
            let same = known.shown.selection == selection && known.shown.again == *again;
            return if same { Ok(known.stands(None)) } else { Err(StoreError::conflict("the name is taken")) };
        }
        let selected = match selection.ids.len() {
            0 => self.dead_of(&selection).len(),
            named => named,
        };
        let course = Course {
            shown: Operation {
                name: name.clone(),
                selection,
                again: *again,
                pace: *pace,
                state: OperationState::Running,
                selected: selected as u64,
                redriven: 0,
                refused: 0,
                ended_well: 0,
                ended_badly: 0,
                actor: act.actor.clone(),
                reason: act.reason.clone(),
                created_at: self.time.now,
            },
            last: None,
            under_way: BTreeSet::new(),
            canary: (pace.canary > 0).then_some(pace.canary.into()),
            forgiven: (0, 0),
            next_at: self.time.now,
        };
        let begun = course.stands(None);
        self.many.insert(name.clone(), course);
        Ok(begun)
    }

    fn dead_of(&self, selection: &Selection) -> Vec<MessageId> {
        let Selection { tenant, queue, kind, code, group, ids: _ } = selection.clone();
        let states = vec![State::Dead];
        let filter = Filter { tenant, queue, kind, code, group, states, limit: u32::MAX, ..Filter::default() };
        self.list(&filter).into_iter().map(|summary| summary.id).collect()
    }

    /// Counts what ended; what is gone altogether counts for nothing.
    fn look_after(&self, course: &mut Course) {
        let shown = &mut course.shown;
        course.under_way.retain(|id| match self.records.get(id).map(Record::state) {
            None => false,
            Some(State::Ready | State::Leased) => true,
            Some(State::Completed | State::Cancelled) => {
                shown.ended_well += 1;
                false
            }
            Some(State::Failed | State::Dead | State::Parked) => {
                shown.ended_badly += 1;
                false
            }
        });
    }

    fn step(&mut self, course: &mut Course) -> Stepped {
        self.look_after(course);
        if course.shown.state != OperationState::Running {
            return course.stands(None);
        }
        let act = Act { actor: course.shown.actor.clone(), reason: course.shown.reason.clone() };
        if course.is_ripe()
            && let Some(why) = course.excess()
        {
            course.shown.state = OperationState::Stopped;
            self.record_act(&act, "operation", None, None, why);
            return course.stands(None);
        }
        let mut most = REDRIVE_CHUNK as u64;
        if let Some(until) = course.canary {
            if course.shown.redriven < until {
                most = most.min(until - course.shown.redriven);
            } else if course.under_way.is_empty() {
                course.canary = None;
            } else {
                return course.stands(Some(Waits::Canary));
            }
        }
        if let Some(rate) = course.shown.pace.per_second {
            if self.time.now < course.next_at {
                return course.stands(Some(Waits::Until(course.next_at)));
            }
            most = most.min(rate.into());
        }
        let named = course.shown.selection.ids.clone();
        let mut ids = if named.is_empty() { self.dead_of(&course.shown.selection) } else { named.clone() };
        ids.retain(|id| course.last.is_none_or(|last| *id > last));
        if named.is_empty() {
            let began = course.shown.created_at;
            ids.retain(|id| self.records[id].ended_at().is_some_and(|at| at <= began));
        }
        ids.truncate(usize::try_from(most).unwrap_or(REDRIVE_CHUNK));
        let Some(last) = ids.last().copied() else {
            if course.canary.is_some() && !course.under_way.is_empty() {
                return course.stands(Some(Waits::Canary));
            }
            let why = course.excess().filter(|_| course.under_way.is_empty());
            course.shown.state = if why.is_some() { OperationState::Stopped } else { OperationState::Done };
            if let Some(why) = why {
                self.record_act(&act, "operation", None, None, why);
            }
            return course.stands(None);
        };
        let operation = course.shown.name.clone();
        let request = Redrive { ids, again: course.shown.again, operation, act };
        let verdicts = self.redrive(&request).expect("a chunk, and a reason where one is needed");
        let mut refused = Vec::new();
        for (id, verdict) in request.ids.iter().zip(verdicts) {
            match verdict {
                Ok(id) => {
                    course.shown.redriven += 1;
                    course.under_way.insert(id);
                }
                Err(error) => refused.push((*id, error)),
            }
        }
        course.shown.refused += refused.len() as u64;
        course.last = Some(last);
        if let Some(rate) = course.shown.pace.per_second {
            let spent = Duration::from_millis(request.ids.len() as u64 * 1000 / u64::from(rate));
            course.next_at = self.time.now.after(spent);
        }
        Stepped { operation: course.shown.clone(), refused, waits: None }
    }
}
