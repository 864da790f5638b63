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
                let_others_run().await;
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

/// Lets what is ready on this thread run once. Not `tokio::task::yield_now`: that keeps the task on its thread until the
/// thread has nothing else to do, and a handler that blocks the thread would keep everybody's settlement. Woken by itself,
/// the task stands at the end of the thread's queue, from where another thread takes it.
async fn let_others_run() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
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

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tidegate_core::clock::{Clock, SystemClock};
    use tidegate_core::error::StoreErrorKind;
    use tidegate_core::id::{LeaseToken, MessageId, Nonce};
    use tidegate_core::lifecycle::Outcome;
    use tidegate_testkit::model::Model;

    use super::*;
    use crate::instrumented::Instrumented;
    use crate::telemetry::Metrics;

    /// A settlement of a message that nobody has.
    fn settlement(id: i64) -> Settle {
        Settle {
            id: MessageId::from_i64(id),
            token: LeaseToken { claims: 1, nonce: Nonce::from_bytes([7; 16]) },
            outcome: Outcome::Completed { result: "0".into(), orphans: false },
            journal: Vec::new(),
            then: Vec::new(),
            compensate: Vec::new(),
            unit: 0.5,
        }
    }

    fn settler() -> (Settler, Arc<Metrics>) {
        let (clock, metrics): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), Arc::new(Metrics::new()));
        let store = Arc::new(Model::new(Arc::clone(&clock)));
        (Settler::new(Arc::new(Instrumented::new(store, clock, Arc::clone(&metrics)))), metrics)
    }

    fn has_begun(settling: Pin<&mut impl Future<Output = Verdict>>) -> bool {
        matches!(settling.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    #[test]
    fn a_handler_that_blocks_its_thread_keeps_nobodys_settlement() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let (settler, _metrics) = settler();
        let (unblock, blocked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        drop(runtime.spawn(async move {
            // Spawned from here it is what this thread runs next, and no other thread takes it.
            drop(tokio::spawn(async move { blocked.recv() }));
            drop(tell.send(settler.settle(settlement(1)).await));
        }));
        let verdict = told.recv_timeout(std::time::Duration::from_secs(10));
        drop(unblock);
        assert!(verdict.is_ok(), "settled beside the thread that is blocked");
    }

    #[tokio::test]
    async fn what_is_ready_together_is_one_call_and_each_gets_its_own_verdict() {
        let (settler, metrics) = settler();
        let settling = (1..=3).map(|id| settler.settle(settlement(id)));
        let mut settling: Vec<_> = settling.map(Box::pin).collect();
        assert!(settling.iter_mut().all(|settling| has_begun(settling.as_mut())));
        for (settling, id) in settling.into_iter().zip(1..) {
            let error = settling.await.unwrap_err();
            assert!(error.what().contains(&MessageId::from_i64(id).to_string()), "{error}");
        }
        let text = metrics.encode_own();
        assert!(text.contains("store_call_seconds_count{verb=\"settle\"} 1\n"), "{text}");
    }

    #[tokio::test]
    async fn what_waited_for_an_attempt_that_is_gone_is_told_to_settle_again() {
        let (settler, metrics) = settler();
        let mut gone = Box::pin(settler.settle(settlement(1)));
        let mut waits = Box::pin(settler.settle(settlement(2)));
        assert!(has_begun(gone.as_mut()) && has_begun(waits.as_mut()));
        drop(gone);
        assert_eq!(waits.await.unwrap_err().kind(), StoreErrorKind::Unavailable);
        assert!(!metrics.encode_own().contains("verb=\"settle\""));
        assert_ne!(settler.settle(settlement(2)).await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    }
}
