//! Waiting for answers: one reader for all callers of a process.
//!
//! All awaited messages are looked up in one read every [`POLL`], because another process may settle them, and at once
//! when this process's own commits ended one. A caller that gives up leaves nothing behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tidegate_core::error::StoreError;
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
    awaited: HashMap<MessageId, Vec<oneshot::Sender<Answered>>>,
    /// To be looked up now rather than at the next tick.
    hot: Vec<MessageId>,
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
        let (sender, receiver) = oneshot::channel();
        let mut board = self.board();
        board.awaited.entry(id).or_default().push(sender);
        // It may have ended before anybody watched.
        board.hot.push(id);
        self.wake.notify_one();
        receiver
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to look up now; all of it when `all`.
    fn due(&self, all: bool) -> Vec<MessageId> {
        let mut board = self.board();
        board.awaited.retain(|_, callers| {
            callers.retain(|caller| !caller.is_closed());
            !callers.is_empty()
        });
        let hot = std::mem::take(&mut board.hot);
        if all { board.awaited.keys().copied().collect() } else { hot }
    }

    fn tell(&self, id: MessageId, answered: &Answered) {
        for caller in self.board().awaited.remove(&id).unwrap_or_default() {
            // A caller that gave up is not told.
            drop(caller.send(answered.clone()));
        }
    }

    fn is_idle(&self) -> bool {
        self.board().awaited.is_empty()
    }
}

/// Serves the callers until the newsroom is gone.
pub(crate) async fn serve(news: Weak<Newsroom>, store: Arc<dyn Store>) {
    loop {
        let Some(room) = news.upgrade() else { return };
        let waiter = &room.waiter;
        // With nobody waiting there is nothing to poll for; the long tick only notices that the newsroom is gone.
        let tick = if waiter.is_idle() { POLL * 20 } else { POLL };
        let all = tokio::time::timeout(tick, waiter.wake.notified()).await.is_err();
        for ids in waiter.due(all).chunks(BATCH) {
            look_up(waiter, store.as_ref(), ids).await;
        }
    }
}

async fn look_up(waiter: &Waiter, store: &dyn Store, ids: &[MessageId]) {
    match store.progress(ids.to_vec()).await {
        Ok(found) => {
            for (id, progress) in ids.iter().zip(found) {
                match progress {
                    None => waiter.tell(*id, &Err(StoreError::not_found(*id))),
                    Some(progress) if has_ended(progress.state) => waiter.tell(*id, &Ok(progress)),
                    Some(_) => {}
                }
            }
        }
        Err(error) => ids.iter().for_each(|id| waiter.tell(*id, &Err(error.clone()))),
    }
}

/// Whether a caller need not wait any longer: only an operator changes it from here.
pub(crate) fn has_ended(state: State) -> bool {
    state.is_terminal() || state == State::Parked
}
