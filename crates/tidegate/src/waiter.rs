//! Waiting for answers: one reader for all callers of a process.
//!
//! All awaited messages are looked up in one read every [`POLL`], because another process may settle them, and at once
//! when this process's own commits ended one. A caller that gives up leaves nothing behind.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tidegate_core::error::{StoreError, StoreErrorKind};
use tidegate_core::id::MessageId;
use tidegate_core::lifecycle::State;
use tidegate_core::store::{Progress, Store};
use tokio::sync::{Notify, oneshot};

use crate::news::Newsroom;

/// How often all awaited messages are looked up.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// The most that one read looks up.
const BATCH: usize = 1000;

type Answered = Result<Progress, StoreError>;

/// What callers wait for.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    board: Mutex<Board>,
    wake: Notify,
    /// Told of every commit that ended a message.
    pub(crate) any_end: Notify,
}

#[derive(Debug, Default)]
struct Board {
    awaited: BTreeMap<MessageId, Vec<Caller>>,
    /// To be looked up now rather than at the next tick.
    hot: Vec<MessageId>,
    /// Counts the callers: a look answers only those that came before it.
    callers: u64,
}

#[derive(Debug)]
struct Caller {
    number: u64,
    reply: oneshot::Sender<Answered>,
}

/// What to look up, and for whom.
struct Look {
    ids: Vec<MessageId>,
    /// A caller that came after the read began may know of a later state than it will show.
    callers_before: u64,
}

impl Waiter {
    /// Notes which awaited messages a commit of this process ended.
    pub(crate) fn ended(&self, ids: &[MessageId]) {
        self.any_end.notify_waiters();
        let mut board = self.board();
        if board.awaited.is_empty() {
            return;
        }
        let before = board.hot.len();
        for id in ids {
            if board.awaited.contains_key(id) {
                board.hot.push(*id);
            }
        }
        if board.hot.len() > before {
            self.wake.notify_one();
        }
    }

    /// Resolves when the message has ended or is parked, or cannot be found.
    pub(crate) fn watch(&self, id: MessageId) -> oneshot::Receiver<Answered> {
        let (reply, receiver) = oneshot::channel();
        let mut board = self.board();
        let number = board.callers;
        board.callers += 1;
        board.awaited.entry(id).or_default().push(Caller { number, reply });
        // It may have ended before anybody watched.
        board.hot.push(id);
        self.wake.notify_one();
        receiver
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to look up now; all of it when `all`.
    fn due(&self, all: bool) -> Look {
        let mut board = self.board();
        board.awaited.retain(|_, callers| {
            callers.retain(|caller| !caller.reply.is_closed());
            !callers.is_empty()
        });
        let hot = std::mem::take(&mut board.hot);
        let ids = if all { board.awaited.keys().copied().collect() } else { hot };
        Look { ids, callers_before: board.callers }
    }

    fn tell(&self, id: MessageId, callers_before: u64, answered: &Answered) {
        let mut board = self.board();
        let (told, later): (Vec<Caller>, Vec<Caller>) = (board.awaited.remove(&id).unwrap_or_default().into_iter())
            .partition(|caller| caller.number < callers_before);
        if !later.is_empty() {
            board.awaited.insert(id, later);
        }
        for caller in told {
            // A caller that gave up is not told.
            drop(caller.reply.send(answered.clone()));
        }
    }

    fn is_idle(&self) -> bool {
        self.board().awaited.is_empty()
    }
}

/// Serves the callers until the newsroom is gone.
pub(crate) async fn serve(news: Weak<Newsroom>, store: Arc<dyn Store>) {
    // Not begun anew by a wake-up: in a process that is woken more often than this, what others settle is seen all the same.
    let mut look_at_all = pin!(tokio::time::sleep(POLL));
    loop {
        let Some(room) = news.upgrade() else { return };
        let waiter = &room.waiter;
        let idle = waiter.is_idle();
        let all = tokio::select! {
            biased;
            () = &mut look_at_all => true,
            () = waiter.wake.notified() => false,
        };
        if all || idle {
            // With nobody waiting there is nothing to poll for; the long tick only notices that the newsroom is gone.
            let tick = if waiter.is_idle() { POLL * 20 } else { POLL };
            look_at_all.set(tokio::time::sleep(tick));
        }
        let look = waiter.due(all);
        for ids in look.ids.chunks(BATCH) {
            look_up(waiter, store.as_ref(), ids, look.callers_before).await;
        }
    }
}

async fn look_up(waiter: &Waiter, store: &dyn Store, ids: &[MessageId], callers_before: u64) {
    let tell = |id, answered: &Answered| waiter.tell(id, callers_before, answered);
    match store.progress(ids.to_vec()).await {
        Ok(found) => {
            for (id, progress) in ids.iter().zip(found) {
                match progress {
                    None => tell(*id, &Err(StoreError::not_found(*id))),
                    Some(progress) if has_ended(progress.state) => tell(*id, &Ok(progress)),
                    Some(_) => {}
                }
            }
        }
        // One row that cannot be read is told to those who wait for it, and to nobody else.
        Err(error) if error.kind() == StoreErrorKind::Corrupt && ids.len() > 1 => {
            for id in ids {
                Box::pin(look_up(waiter, store, std::slice::from_ref(id), callers_before)).await;
            }
        }
        Err(error) => ids.iter().for_each(|id| tell(*id, &Err(error.clone()))),
    }
}

/// Whether a caller need not wait any longer: only an operator changes it from here.
pub(crate) fn has_ended(state: State) -> bool {
    state.is_terminal() || state == State::Parked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_answers_nobody_who_came_after_it_began() {
        let waiter = Waiter::default();
        let id = MessageId::from_i64(1);
        let mut first = waiter.watch(id);
        let look = waiter.due(false);
        // The message is resolved between the read and its answer, and somebody waits for what it becomes.
        let mut second = waiter.watch(id);
        let parked = Progress { state: State::Parked, reason: None, answer: None };
        waiter.tell(id, look.callers_before, &Ok(parked.clone()));
        assert_eq!(first.try_recv(), Ok(Ok(parked)));
        assert!(second.try_recv().is_err(), "the old state was told to the new caller");
        assert_eq!(waiter.due(false).ids, [id], "the new caller is looked up for");
    }
}
