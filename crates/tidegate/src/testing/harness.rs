//! The bench on which a test runs handlers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tidegate_core::error::StoreError;
use tidegate_core::id::{Kind, MessageId};
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Filter, MessageView};

use super::clock::VirtualClock;
use super::rig::{MOST_RUNS, Process, Rig};
use crate::answer::Answer;
use crate::client::Tidegate;
use crate::handler::Message;
use crate::payload;
use crate::worker::WorkerBuilder;

/// A store of its own on the real engine, a clock that the test moves, and handlers that run when the test says so.
#[derive(Debug)]
pub struct Harness {
    process: Process,
    rig: Rig,
}

/// One attempt that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Of which message.
    pub id: MessageId,
    /// Its kind.
    pub kind: Kind,
    /// What the message became.
    pub state: State,
    /// Counted attempts so far.
    pub attempt: u32,
    /// Why it failed, died, was parked or comes again: the failure's code.
    pub code: Option<String>,
}

impl Harness {
    /// Makes the store and declares the handlers: `Harness::new(|worker| worker.handle(greet))`.
    ///
    /// # Errors
    /// As [`WorkerBuilder::start`]; `Unavailable` when the temporary directory cannot be written.
    ///
    /// # Cancel safety
    /// Safe: what was made is deleted.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn new(handlers: impl FnOnce(WorkerBuilder) -> WorkerBuilder + Send) -> Result<Self, StoreError> {
        let rig = Rig::new(None).await?;
        let process = rig.process(handlers(rig.tide.worker())).await?;
        Ok(Self { process, rig })
    }

    /// The store's client: enqueue, cancel, resolve, inspect.
    #[must_use]
    pub fn tide(&self) -> &Tidegate {
        &self.rig.tide
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &VirtualClock {
        &self.rig.clock
    }

    /// Enqueues the message and runs it inline, once: what has been due for longer runs before it, what follows from it does
    /// not run. [`Answer::Pending`] means that it comes again.
    ///
    /// # Errors
    /// As [`Tidegate::enqueue`] and [`Sent::answer`](crate::Sent::answer).
    ///
    /// # Cancel safety
    /// Dropped, the attempt is abandoned as by a crash.
    pub async fn run<M: Message>(&self, message: M) -> Result<Answer<M::Answer>, StoreError> {
        let sent = self.rig.tide.enqueue(message).await?;
        if sent.is_new() {
            while self.process.run_next().await?.is_some_and(|ran| ran != sent.id()) {}
        }
        sent.answer(Duration::ZERO).await
    }

    /// Runs the next due message as one attempt; none when nothing is due now.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// As [`Harness::run`].
    pub async fn run_next(&self) -> Result<Option<Ran>, StoreError> {
        let Some(id) = self.process.run_next().await? else { return Ok(None) };
        let view = self.view(id).await?;
        let code = view.failure.map(|failure| failure.code).or(view.reason);
        Ok(Some(Ran { id, kind: view.message.kind, state: view.state, attempt: view.counters.attempt, code }))
    }

    /// Runs what is due, and what follows from it, until nothing is due any more. No time passes.
    ///
    /// # Errors
    /// Those of the store; `Conflict` when it does not come to an end.
    ///
    /// # Cancel safety
    /// As [`Harness::run`].
    pub async fn drain(&self) -> Result<Vec<Ran>, StoreError> {
        let mut all = Vec::new();
        while let Some(ran) = self.run_next().await? {
            all.push(ran);
            if all.len() > MOST_RUNS {
                return Err(StoreError::conflict(format!("{MOST_RUNS} runs, and there is always another one due")));
            }
        }
        Ok(all)
    }

    /// The same, and lets time pass: retries, delays, snoozes and quarantines come at once, until only parked and ended
    /// messages are left.
    ///
    /// # Errors
    /// As [`Harness::drain`].
    ///
    /// # Cancel safety
    /// As [`Harness::run`].
    pub async fn finish(&self) -> Result<Vec<Ran>, StoreError> {
        let mut all = self.drain().await?;
        while self.rig.pass_time(&self.process).await? {
            all.append(&mut self.drain().await?);
            if all.len() > MOST_RUNS {
                return Err(StoreError::conflict(format!("{MOST_RUNS} runs, and there is always another one to come")));
            }
        }
        Ok(all)
    }

    /// Every stored message of this type, in whatever state, oldest first.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` for a payload that does not decode.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn enqueued<M: Message>(&self) -> Result<Vec<M>, StoreError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let kind = Some(Kind::new(M::KIND)?);
            let page = Filter { kind, after, limit: 500, ..Filter::default() };
            let ids: Vec<MessageId> =
                self.rig.tide.store().list(page).await?.into_iter().map(|summary| summary.id).collect();
            let Some(last) = ids.last().copied() else { return Ok(found) };
            for view in self.rig.tide.store().inspect(ids).await?.into_iter().flatten() {
                let message = payload::decode(view.message.version, &view.message.payload).map_err(|failure| {
                    StoreError::corrupt(&format!("the payload of {}", view.message.id), &failure.detail)
                })?;
                found.push(message);
            }
            after = Some(last);
        }
    }

    /// Asserts that a message of this type that is like this was enqueued.
    ///
    /// # Errors
    /// As [`Harness::enqueued`].
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    ///
    /// # Panics
    /// When there is none, with what was enqueued instead.
    pub async fn assert_enqueued<M: Message + fmt::Debug>(
        &self,
        is_like: impl Fn(&M) -> bool + Send,
    ) -> Result<(), StoreError> {
        let all = self.enqueued::<M>().await?;
        assert!(all.iter().any(is_like), "no such message of kind {} was enqueued, but these: {all:?}", M::KIND);
        Ok(())
    }

    /// The next answers of this effect are lost: the call is made, the remote does what it does, and the handler's answer
    /// is *unknown*.
    pub fn lose_replies(&self, effect: &str, times: u32) {
        self.rig.recorder.lose(effect, times);
    }

    /// How often an effect was sent, by the key that its closure was given. An effect with an item is `name[item]`.
    #[must_use]
    pub fn sends(&self, effect: &str) -> BTreeMap<String, u32> {
        self.rig.recorder.sends(effect)
    }

    /// Everything about a message.
    ///
    /// # Errors
    /// `NotFound`, and those of the store.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn view(&self, id: MessageId) -> Result<MessageView, StoreError> {
        let mut found = self.rig.tide.store().inspect(vec![id]).await?;
        found.pop().flatten().ok_or_else(|| StoreError::not_found(id))
    }
}
