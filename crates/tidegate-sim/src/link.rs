//! A process's way to the store: a network that loses, delays and repeats calls, with the oracle at its far end.
//!
//! A call that has arrived is carried out at one moment, and what the store answered is checked before anybody hears of it.
//! Whether its caller ever hears of it is another matter.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::effect::EffectRow;
use tidegate_core::lifecycle::{Cancellation, State};
use tidegate_core::message::NewMessage;
use tidegate_core::retry::Policy;
use tidegate_core::store::{
    AuditEntry, Cancel, ChangeQueue, ChangeToken, ClaimRequest, Claimed, CommitListener, Discard, Edit, Edited,
    Enqueued, ExplainFacts, Extend, Extended, FailureGroup, Filter, Journal, MessageView, Note, Operate, Operation,
    Progress, Redrive, Resolve, Resolved, Settle, Settled, Stats, Stepped, Store, Summary, SweepRequest, Swept,
    Verdicts,
};
use tidegate_core::token::TokenRecord;
use tidegate_core::{IdempotencyKey, Kind, MessageId, QueueName, StoreError, Tenant};
use tidegate_testkit::faulty::Verb;

use crate::at_once;
use crate::oracle::{Cause, Oracle};
use crate::plan::{Fault, Loss};
use crate::process::SimProcess;
use crate::settings::Broken;
use crate::sim::Sim;

/// The store as one process sees it.
#[derive(Debug)]
pub(crate) struct Link(Arc<End>);

struct End {
    sim: Arc<Sim>,
    process: Arc<SimProcess>,
    /// Told of this process's commits only.
    listeners: Mutex<Vec<Weak<dyn CommitListener>>>,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("End").field("process", &self.process.number).finish_non_exhaustive()
    }
}

fn lost(what: &str, verb: Verb) -> StoreError {
    StoreError::unavailable(format!("the {what} of {verb:?} was lost"))
}

impl Link {
    pub(crate) fn new(sim: Arc<Sim>, process: Arc<SimProcess>) -> Arc<Self> {
        Arc::new(Self(Arc::new(End { sim, process, listeners: Mutex::default() })))
    }

    /// Carries a call to the store, as the network has it.
    async fn call<T, F>(&self, verb: Verb, word: &'static str, arrive: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&End) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        let sim = Arc::clone(&self.0.sim);
        let end = Arc::clone(&self.0);
        if sim.is_down() {
            tokio::time::sleep(sim.chance.millis(1, 200)).await;
            return Err(StoreError::unavailable("the store is down, as the simulation has it"));
        }
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        let loss = sim.draw(verb);
        if let Some(loss) = loss {
            sim.count(Fault::Call { verb, loss }.name());
            sim.note(Some(end.process.number), "network", MessageId::from_i64(0), loss_number(loss));
        }
        match loss {
            None => {
                // A step of its own before and after: a crash may come between the commit and its reply.
                pause(&sim).await;
                let reply = end.carry(word, &arrive);
                pause(&sim).await;
                reply
            }
            Some(Loss::Request) => {
                tokio::time::sleep(sim.chance.millis(1, 2_000)).await;
                Err(lost("request", verb))
            }
            Some(Loss::Reply) => {
                tokio::task::yield_now().await;
                // Nobody hears what became of it.
                drop(end.carry(word, &arrive));
                tokio::time::sleep(sim.chance.millis(1, 2_000)).await;
                Err(lost("reply", verb))
            }
            Some(Loss::Late(after)) => {
                drop(tokio::spawn(async move {
                    tokio::time::sleep(ms(after)).await;
                    drop(end.carry(word, &arrive));
                }));
                tokio::time::sleep(sim.chance.millis(1, 40)).await;
                Err(lost("request", verb))
            }
            Some(Loss::SlowRequest(by)) => {
                tokio::time::sleep(ms(by)).await;
                end.carry(word, &arrive)
            }
            Some(Loss::SlowReply(by)) => {
                tokio::task::yield_now().await;
                let reply = end.carry(word, &arrive);
                tokio::time::sleep(ms(by)).await;
                reply
            }
            Some(Loss::Twice) => {
                tokio::task::yield_now().await;
                drop(end.carry(word, &arrive));
                tokio::task::yield_now().await;
                end.carry(word, &arrive)
            }
        }
    }

    /// A call that changes nothing: it fails, and that is all that can be said of it.
    async fn read<T, F>(&self, verb: Verb, word: &'static str, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Sim) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        self.call(verb, word, move |end| read(&end.sim)).await
    }
}

fn loss_number(loss: Loss) -> u64 {
    match loss {
        Loss::Request => 1,
        Loss::Reply => 2,
        Loss::Late(ms) | Loss::SlowRequest(ms) | Loss::SlowReply(ms) => u64::from(ms) + 4,
        Loss::Twice => 3,
    }
}

/// Mostly no time at all, now and then a little.
async fn pause(sim: &Sim) {
    if sim.chance.one_in(8) {
        tokio::time::sleep(sim.chance.millis(1, 20)).await;
    } else {
        tokio::task::yield_now().await;
    }
}

impl End {
    fn carry<T>(&self, word: &'static str, arrive: &impl Fn(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let reply = arrive(self);
        self.sim.note(Some(self.process.number), word, MessageId::from_i64(0), u64::from(reply.is_err()));
        self.sim.look_at_stats();
        reply
    }

    /// Looks at what a commit did, and tells the process of it.
    fn after(&self, cause: Cause, check: impl FnOnce(&mut Oracle, Duration) -> Result<(), crate::oracle::Broke>) {
        let news = self.sim.take_news();
        let now = self.sim.now();
        let held = {
            let mut oracle = self.sim.oracle();
            check(&mut oracle, now).and_then(|()| {
                news.ended.iter().try_for_each(|id| match oracle.known(*id) {
                    Some(_) => oracle.look(*id, cause, now),
                    None => Ok(()),
                })
            })
        };
        self.sim.check(held);
        if let Some(difference) = self.sim.model.differences().into_iter().next() {
            self.sim.check(Err(("law", difference)));
        }
        if news.ready.is_empty() && news.ended.is_empty() {
            return;
        }
        let listeners: Vec<_> = {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.committed(&news);
        }
    }

    fn note(&self, what: &'static str, id: MessageId, state: State) {
        self.sim.note(Some(self.process.number), what, id, state as u64);
    }

    fn enqueue(&self, batch: &[NewMessage]) -> Result<Verdicts<Enqueued>, StoreError> {
        if self.sim.settings.broken == Some(Broken::AcknowledgedBeforeCommit) && self.sim.chance.one_in(50) {
            let id = MessageId::from_i64(1);
            return Ok(batch.iter().map(|_| Ok(Enqueued::New { id })).collect());
        }
        let verdicts = at_once(self.sim.model.enqueue(batch.to_vec()))?;
        for verdict in &verdicts {
            if let Ok(Enqueued::New { id }) = verdict {
                self.note("stored", *id, State::Ready);
            }
        }
        self.after(Cause::Write, |oracle, now| {
            batch.iter().zip(&verdicts).try_for_each(|(new, verdict)| oracle.enqueued(new, verdict, now))
        });
        Ok(verdicts)
    }

    fn claim(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        let paused = self.sim.paused();
        let claimed = at_once(self.sim.model.claim(request.clone()))?;
        for lease in &claimed.leases {
            self.note("claimed", lease.message.id, State::Leased);
        }
        self.after(Cause::Claim, |oracle, now| oracle.claimed(request, &claimed, &paused, now));
        Ok(claimed)
    }

    fn extend(&self, batch: &[Extend]) -> Result<Verdicts<Extended>, StoreError> {
        let verdicts = at_once(self.sim.model.extend(batch.to_vec()))?;
        self.after(Cause::Write, |oracle, now| {
            batch.iter().zip(&verdicts).try_for_each(|(extend, verdict)| oracle.extended(extend, verdict, now))
        });
        Ok(verdicts)
    }

    fn journal(&self, batch: &[Journal]) -> Result<Verdicts<EffectRow>, StoreError> {
        let verdicts = at_once(self.sim.model.journal(batch.to_vec()))?;
        for (journal, verdict) in batch.iter().zip(&verdicts) {
            self.note("journals", journal.id, if verdict.is_ok() { State::Leased } else { State::Dead });
        }
        self.after(Cause::Write, |oracle, now| {
            batch.iter().zip(&verdicts).try_for_each(|(journal, verdict)| oracle.journaled(journal, verdict, now))
        });
        Ok(verdicts)
    }

    fn settle(&self, batch: &[Settle]) -> Result<Verdicts<Settled>, StoreError> {
        let mut batch = batch.to_vec();
        let told = batch.clone();
        if self.sim.settings.broken == Some(Broken::NoFence) {
            for settle in &mut batch {
                if let Some(token) = self.sim.oracle().known(settle.id).and_then(|known| known.token()) {
                    settle.token = token;
                }
            }
        }
        let verdicts = at_once(self.sim.model.settle(batch))?;
        for (settle, verdict) in told.iter().zip(&verdicts) {
            let state = verdict.as_ref().map_or(State::Leased, |settled| settled.state);
            self.note("settled", settle.id, state);
        }
        self.after(Cause::Settle, |oracle, now| {
            told.iter().zip(&verdicts).try_for_each(|(settle, verdict)| oracle.settled(settle, verdict, now))
        });
        Ok(verdicts)
    }

    fn sweep(&self, request: &SweepRequest) -> Result<Swept, StoreError> {
        let mut request = request.clone();
        if self.sim.settings.broken == Some(Broken::AnswerLost) {
            request.retention = request.retention.map(|retention| retention / 2);
        }
        let swept = at_once(self.sim.model.sweep(request))?;
        for taken in &swept.taken_over {
            self.note("taken over", taken.id, taken.state);
        }
        self.after(Cause::Sweep, |oracle, now| oracle.swept(&swept, now));
        Ok(swept)
    }

    fn redrive(&self, request: &Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        let verdicts = at_once(self.sim.model.redrive(request.clone()))?;
        let ids: Vec<MessageId> = verdicts.iter().flatten().copied().collect();
        ids.iter().for_each(|id| self.note("redriven", *id, State::Ready));
        self.after(Cause::Redrive, |oracle, now| oracle.maybe_redriven(ids, now));
        Ok(verdicts)
    }

    fn operate(&self, request: &Operate) -> Result<Stepped, StoreError> {
        let stepped = at_once(self.sim.model.operate(request.clone()));
        self.after(Cause::Redrive, |oracle, now| {
            let mut ids = oracle.in_state(State::Dead);
            ids.extend(oracle.in_state(State::Failed));
            oracle.maybe_redriven(ids, now)
        });
        stepped
    }

    fn edit(&self, request: &Edit) -> Result<Edited, StoreError> {
        let edited = at_once(self.sim.model.edit(request.clone()));
        self.note("edited", request.id, State::Dead);
        self.after(Cause::Edit, |oracle, now| oracle.look(request.id, Cause::Edit, now));
        edited
    }

    fn discard(&self, request: &Discard) -> Result<Verdicts<MessageId>, StoreError> {
        let verdicts = at_once(self.sim.model.discard(request.clone()))?;
        let ids: Vec<MessageId> = verdicts.iter().flatten().copied().collect();
        ids.iter().for_each(|id| self.note("discarded", *id, State::Dead));
        self.after(Cause::Discard, |oracle, now| ids.iter().try_for_each(|id| oracle.discarded(*id, now)));
        Ok(verdicts)
    }

    fn cancel(&self, request: &Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        let verdicts = at_once(self.sim.model.cancel(request.clone()))?;
        request.ids.iter().for_each(|id| self.note("cancels", *id, State::Cancelled));
        self.after(Cause::Cancel, |oracle, now| {
            request
                .ids
                .iter()
                .filter(|id| oracle.known(**id).is_some())
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|id| oracle.look(id, Cause::Cancel, now))
        });
        Ok(verdicts)
    }

    fn pause(&self, request: &ChangeQueue) -> Result<(), StoreError> {
        at_once(self.sim.model.pause(request.clone()))?;
        self.sim.queue_changed(&request.queue, request.change);
        self.after(Cause::Write, |_, _| Ok(()));
        Ok(())
    }

    fn resolve(&self, request: &Resolve) -> Result<Resolved, StoreError> {
        let resolved = at_once(self.sim.model.resolve(request.clone()));
        let ready = resolved.as_ref().is_ok_and(|resolved| resolved.state == State::Ready);
        self.note("resolves", request.id, if ready { State::Ready } else { State::Parked });
        self.after(Cause::Resolve, |oracle, now| match oracle.known(request.id) {
            Some(_) => oracle.resolved(request.id, ready, now),
            None => Ok(()),
        });
        resolved
    }
}

#[async_trait]
impl Store for Link {
    async fn enqueue(&self, batch: Vec<NewMessage>) -> Result<Verdicts<Enqueued>, StoreError> {
        self.call(Verb::Enqueue, "enqueue", move |end| end.enqueue(&batch)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, StoreError> {
        self.call(Verb::Claim, "claim", move |end| end.claim(&request)).await
    }

    async fn declare(&self, policies: Vec<(Kind, Policy)>) -> Result<(), StoreError> {
        self.read(Verb::Declare, "declare", move |sim| at_once(sim.model.declare(policies.clone()))).await
    }

    async fn extend(&self, batch: Vec<Extend>) -> Result<Verdicts<Extended>, StoreError> {
        self.call(Verb::Extend, "extend", move |end| end.extend(&batch)).await
    }

    async fn journal(&self, batch: Vec<Journal>) -> Result<Verdicts<EffectRow>, StoreError> {
        self.call(Verb::Journal, "journal", move |end| end.journal(&batch)).await
    }

    async fn settle(&self, batch: Vec<Settle>) -> Result<Verdicts<Settled>, StoreError> {
        self.call(Verb::Settle, "settle", move |end| end.settle(&batch)).await
    }

    async fn sweep(&self, request: SweepRequest) -> Result<Swept, StoreError> {
        self.call(Verb::Sweep, "sweep", move |end| end.sweep(&request)).await
    }

    async fn redrive(&self, request: Redrive) -> Result<Verdicts<MessageId>, StoreError> {
        self.call(Verb::Redrive, "redrive", move |end| end.redrive(&request)).await
    }

    async fn operate(&self, request: Operate) -> Result<Stepped, StoreError> {
        self.call(Verb::Operate, "operate", move |end| end.operate(&request)).await
    }

    async fn operations(&self, name: Option<String>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        self.read(Verb::Operations, "operations", move |sim| at_once(sim.model.operations(name.clone(), limit))).await
    }

    async fn edit(&self, request: Edit) -> Result<Edited, StoreError> {
        self.call(Verb::Edit, "edit", move |end| end.edit(&request)).await
    }

    async fn discard(&self, request: Discard) -> Result<Verdicts<MessageId>, StoreError> {
        self.call(Verb::Discard, "discard", move |end| end.discard(&request)).await
    }

    async fn cancel(&self, request: Cancel) -> Result<Verdicts<Cancellation>, StoreError> {
        self.call(Verb::Cancel, "cancel", move |end| end.cancel(&request)).await
    }

    async fn pause(&self, request: ChangeQueue) -> Result<(), StoreError> {
        self.call(Verb::Pause, "pause", move |end| end.pause(&request)).await
    }

    async fn resolve(&self, request: Resolve) -> Result<Resolved, StoreError> {
        self.call(Verb::Resolve, "resolve", move |end| end.resolve(&request)).await
    }

    async fn inspect(&self, ids: Vec<MessageId>) -> Result<Vec<Option<MessageView>>, StoreError> {
        self.read(Verb::Inspect, "inspect", move |sim| at_once(sim.model.inspect(ids.clone()))).await
    }

    async fn find(
        &self,
        tenant: Tenant,
        queue: QueueName,
        key: IdempotencyKey,
    ) -> Result<Option<MessageId>, StoreError> {
        let find = move |sim: &Sim| at_once(sim.model.find(tenant.clone(), queue.clone(), key.clone()));
        self.read(Verb::Find, "find", find).await
    }

    async fn progress(&self, ids: Vec<MessageId>) -> Result<Vec<Option<Progress>>, StoreError> {
        self.read(Verb::Progress, "progress", move |sim| at_once(sim.model.progress(ids.clone()))).await
    }

    async fn flow(&self, root: MessageId) -> Result<Vec<Summary>, StoreError> {
        self.read(Verb::Flow, "flow", move |sim| at_once(sim.model.flow(root))).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Summary>, StoreError> {
        self.read(Verb::List, "list", move |sim| at_once(sim.model.list(filter.clone()))).await
    }

    async fn groups(&self, filter: Filter) -> Result<Vec<FailureGroup>, StoreError> {
        self.read(Verb::Groups, "groups", move |sim| at_once(sim.model.groups(filter.clone()))).await
    }

    async fn explain(&self, id: MessageId) -> Result<Option<ExplainFacts>, StoreError> {
        self.read(Verb::Explain, "explain", move |sim| at_once(sim.model.explain(id))).await
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(Verb::Audit, "audit", move |sim| at_once(sim.model.audit(after, limit))).await
    }

    async fn note(&self, note: Note) -> Result<(), StoreError> {
        self.read(Verb::Note, "note", move |sim| at_once(sim.model.note(note.clone()))).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.read(Verb::Tokens, "tokens", move |sim| at_once(sim.model.tokens())).await
    }

    async fn change_token(&self, request: ChangeToken) -> Result<Vec<TokenRecord>, StoreError> {
        self.read(Verb::ChangeToken, "change_token", move |sim| at_once(sim.model.change_token(request.clone()))).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.read(Verb::Stats, "stats", move |sim| at_once(sim.model.stats())).await
    }

    fn on_commit(&self, listener: Weak<dyn CommitListener>) {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }
}
