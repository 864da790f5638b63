//! What this server remembers of the messages that it handed out: whose they are, and what a settlement is read with.
//!
//! Only what cannot change while a lease lasts is believed, and only of that lease. Whatever is not remembered is looked up:
//! a worker may claim from one server and settle at another, and nothing depends on which one it asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate::journal::open_rows;
use tidegate::lifecycle::State as MessageState;
use tidegate::message::Message;
use tidegate::store::{Lease, MessageView};
use tidegate::{LeaseToken, MessageId, StoreErrorKind, id::digest16};
use tokio::time::Instant;

use crate::acting::AT_ONCE;
use crate::principal::{Action, Caller};
use crate::problem::Problem;
use crate::serving::Serving;

/// So many are remembered, twice over: those of late, and those before them.
const REMEMBERED: usize = 8192;
/// Of a message whose headers are longer nothing is remembered.
const LONGEST_HEADERS: usize = 1024;

/// What is remembered of messages that were handed out, and how many claims wait.
#[derive(Debug, Default)]
pub struct Workers {
    remembered: Mutex<Remembered>,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Remembered {
    late: HashMap<MessageId, Arc<Known>>,
    before: HashMap<MessageId, Arc<Known>>,
}

/// What is known of a message that was claimed.
#[derive(Debug)]
pub(crate) struct Known {
    /// The message without its payload.
    pub(crate) message: Message,
    /// The digest of the payload.
    pub(crate) payload: [u8; 16],
    /// Of which claim; none when it was not leased when it was looked at.
    claims: Option<u32>,
    /// An effect of an earlier run is open, or may be.
    pub(crate) reconciling: bool,
    /// When it was handed out here.
    pub(crate) claimed_at: Option<Instant>,
}

impl Known {
    fn of(message: &Message, claims: Option<u32>, reconciling: bool, claimed_at: Option<Instant>) -> Self {
        let payload = digest16(&[message.payload.as_bytes()]);
        Self { message: Message { payload: "".into(), ..message.clone() }, payload, claims, reconciling, claimed_at }
    }

    fn of_view(view: &MessageView) -> Self {
        let claims = (view.state == MessageState::Leased).then_some(view.counters.claims);
        let of_before = |row: &tidegate::journal::EffectRow| Some(row.token.claims) != claims;
        Self::of(&view.message, claims, open_rows(&view.journal).any(of_before), None)
    }

    /// Whether it is known of this lease.
    pub(crate) fn is_of(&self, token: LeaseToken) -> bool {
        self.claims == Some(token.claims)
    }
}

impl Workers {
    /// Remembers what is handed out.
    pub(crate) fn remember(&self, lease: &Lease) {
        let known = Known::of(&lease.message, Some(lease.token.claims), lease.reconciling, Some(Instant::now()));
        self.put(lease.message.id, Arc::new(known));
    }

    fn put(&self, id: MessageId, known: Arc<Known>) {
        let headers: usize = known.message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if headers > LONGEST_HEADERS {
            return;
        }
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.late.len() >= REMEMBERED {
            remembered.before = std::mem::take(&mut remembered.late);
        }
        remembered.late.insert(id, known);
    }

    fn get(&self, id: MessageId) -> Option<Arc<Known>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.late.get(&id).or_else(|| remembered.before.get(&id)).cloned()
    }

    /// What was handed out under this lease, if it is remembered.
    pub(crate) fn recall(&self, id: MessageId, token: LeaseToken) -> Option<Arc<Known>> {
        self.get(id).filter(|known| known.is_of(token))
    }

    /// Counts a claim that waits, for as long as what is returned lives.
    pub(crate) fn waits(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }

    /// How many claims wait.
    pub(crate) fn how_many_wait(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A claim that waits.
pub(crate) struct Waits<'a>(&'a Workers);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of what a message is looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    /// Whose it is: that never changes.
    Any(MessageId),
    /// What is the case under this lease.
    Lease(MessageId, LeaseToken),
}

impl Serving {
    /// What is known of these messages; none of one that is not there, or that the caller may not work on.
    ///
    /// # Errors
    /// `unavailable` for all of them. One that cannot be read is refused alone.
    pub(crate) async fn known(
        &self,
        caller: &Caller,
        asked: &[Of],
    ) -> Result<Vec<Result<Arc<Known>, Problem>>, Problem> {
        let mut found: HashMap<MessageId, Result<Arc<Known>, Problem>> = HashMap::new();
        let mut missing = Vec::new();
        for of in asked {
            let (id, remembered) = match *of {
                Of::Any(id) => (id, self.workers.get(id)),
                Of::Lease(id, token) => (id, self.workers.recall(id, token)),
            };
            match remembered {
                Some(known) => drop(found.insert(id, Ok(known))),
                None => missing.push(id),
            }
        }
        missing.sort_unstable();
        missing.dedup();
        // Whoever may work on nothing is told the same of every message: that costs the store nothing.
        if caller.principal.may_anywhere(Action::Work, None) {
            for chunk in missing.chunks(AT_ONCE) {
                self.look_up(chunk, &mut found).await?;
            }
        }
        let visible = |of: &Of| {
            let (Of::Any(id) | Of::Lease(id, _)) = *of;
            let known = found.get(&id).cloned().unwrap_or_else(|| Err(Problem::no_message(id)))?;
            let may = caller.sees(Action::Work, &known.message.tenant, &known.message.queue);
            if may { Ok(known) } else { Err(Problem::no_message(id)) }
        };
        Ok(asked.iter().map(visible).collect())
    }

    async fn look_up(
        &self,
        ids: &[MessageId],
        found: &mut HashMap<MessageId, Result<Arc<Known>, Problem>>,
    ) -> Result<(), Problem> {
        match self.tide.store().inspect(ids.to_vec()).await {
            Ok(views) => {
                for (id, view) in ids.iter().zip(views) {
                    let Some(view) = view else { continue };
                    let known = Arc::new(Known::of_view(&view));
                    self.workers.put(*id, Arc::clone(&known));
                    found.insert(*id, Ok(known));
                }
                Ok(())
            }
            // One row that cannot be read is told to whoever asked for it, and to nobody else.
            Err(error) if error.kind() == StoreErrorKind::Corrupt => match ids {
                [id] => {
                    found.insert(*id, Err(error.into()));
                    Ok(())
                }
                ids => {
                    for id in ids {
                        Box::pin(self.look_up(std::slice::from_ref(id), found)).await?;
                    }
                    Ok(())
                }
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the caller may work on each of these messages: those that it may not are answered as if they were not there.
    ///
    /// # Errors
    /// `unavailable` for all of them.
    pub(crate) async fn may_work(
        &self,
        caller: &Caller,
        ids: &[MessageId],
    ) -> Result<Vec<Result<(), Problem>>, Problem> {
        if caller.principal.may_all(Action::Work) {
            return Ok(vec![Ok(()); ids.len()]);
        }
        let asked: Vec<Of> = ids.iter().map(|id| Of::Any(*id)).collect();
        Ok(self.known(caller, &asked).await?.into_iter().map(|known| known.map(drop)).collect())
    }
}
