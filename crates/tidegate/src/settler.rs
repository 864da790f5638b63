//! Settlements that are ready together go to the store together.
//!
//! Each attempt settles for itself, and the store commits many calls at once anyway; but a call of its own for each costs the
//! writer a hand-over and a reply, which is a good part of what a settlement costs in all. So the first attempt with a
//! settlement lets whatever else can run run once, and takes along what has gathered by then. Nobody waits for company: with
//! nothing else to run it goes at once, and while its call is under way the next one gathers.

use std::sync::{Arc, Mutex, PoisonError};

use tidegate_core::error::StoreError;
use tidegate_core::store::{Settle, Settled, Store};
use tokio::sync::oneshot;

/// The most settlements of one call.
const BATCH: usize = 256;

type Verdict = Result<Settled, StoreError>;
type Carried = (Settle, oneshot::Sender<Verdict>);

/// What gathers the settlements of one worker.
#[derive(Debug)]
pub(crate) struct Settler {
    store: Arc<dyn Store>,
    gathered: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// Somebody is about to take what is here.
    fetched: bool,
    waiting: Vec<Carried>,
}

/// What becomes of a settlement.
enum Place {
    /// Another attempt takes it along.
    Carried(oneshot::Receiver<Verdict>),
    /// It takes along what gathers.
    Fetching(Settle),
    /// As many as one call takes have gathered already.
    Alone(Settle),
}

impl Settler {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, gathered: Mutex::default() }
    }

    /// Stores one settlement, perhaps with others.
    ///
    /// # Errors
    /// As [`Store::settle`]. An error of the whole call is everybody's in it: each may settle again under its token.
    pub(crate) async fn settle(&self, settle: Settle) -> Verdict {
        match self.place(settle) {
            Place::Carried(verdict) => verdict.await.unwrap_or_else(|_| Err(gone())),
            Place::Alone(settle) => self.call(settle, Vec::new()).await,
            Place::Fetching(settle) => {
                let turn = Turn(Some(self));
                tokio::task::yield_now().await;
                let others = turn.take();
                self.call(settle, others).await
            }
        }
    }

    fn place(&self, settle: Settle) -> Place {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut gathered.fetched, true) {
            return Place::Fetching(settle);
        }
        if gathered.waiting.len() + 1 >= BATCH {
            return Place::Alone(settle);
        }
        let (reply, verdict) = oneshot::channel();
        gathered.waiting.push((settle, reply));
        Place::Carried(verdict)
    }

    async fn call(&self, first: Settle, others: Vec<Carried>) -> Verdict {
        let mut batch = Vec::with_capacity(1 + others.len());
        batch.push(first);
        let mut replies = Vec::with_capacity(others.len());
        for (settle, reply) in others {
            batch.push(settle);
            replies.push(reply);
        }
        let verdicts = self.store.settle(batch).await;
        let mut verdicts = match verdicts {
            Ok(verdicts) => verdicts.into_iter(),
            Err(error) => {
                for reply in replies {
                    // An attempt that was given up is told nothing.
                    drop(reply.send(Err(error.clone())));
                }
                return Err(error);
            }
        };
        let none = || Err(StoreError::unavailable("the store gave no verdict"));
        let own = verdicts.next().unwrap_or_else(none);
        for reply in replies {
            drop(reply.send(verdicts.next().unwrap_or_else(none)));
        }
        own
    }

    fn fetch(&self) -> Vec<Carried> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.fetched = false;
        std::mem::take(&mut gathered.waiting)
    }
}

/// Whoever fetches next. Dropped before, it tells those who waited for it that they have to settle again.
struct Turn<'a>(Option<&'a Settler>);

impl Turn<'_> {
    fn take(mut self) -> Vec<Carried> {
        self.0.take().map(Settler::fetch).unwrap_or_default()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(settler) = self.0.take() {
            drop(settler.fetch());
        }
    }
}

fn gone() -> StoreError {
    StoreError::unavailable("the attempt whose call would have carried this settlement is gone; it may not be stored")
}
