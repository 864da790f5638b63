//! What the tasks of one store share: the pool, what is remembered, and who hears of commits.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use deadpool_postgres::{Pool, PoolError};
use tidegate_core::clock::{Clock, Random as _, SystemClock, SystemRandom, Timestamp};
use tidegate_core::error::StoreError;
use tidegate_core::store::{CommitListener, News};

use crate::claim::Hint;
use crate::conn::{Conn, Texts};
use crate::group::Limits;
use crate::listen::Messenger;
use crate::names::Names;
use crate::trouble::{Class, class, said};
use crate::watch::Hands;

/// How long calls try to reach the server, or to get past others, before they are answered `Unavailable`.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the tasks of one store share.
pub(crate) struct Shared {
    pub(crate) pool: Pool,
    pub(crate) texts: Arc<Texts>,
    pub(crate) limits: Limits,
    pub(crate) names: Names,
    /// Where the store's time comes from, if not from the server.
    pub(crate) clock: Option<Arc<dyn Clock>>,
    /// Real time, whatever clock the store was given: how long something takes is a fact of the machine.
    pub(crate) real: SystemClock,
    /// Where each lane's claimable rows began when they were last looked at.
    pub(crate) hints: Mutex<HashMap<i64, Hint>>,
    /// The clock as the last group saw it.
    pub(crate) hands: Mutex<Option<Hands>>,
    /// Which history of its cluster the server was in when it was looked at last; 0 where it does not say.
    pub(crate) timeline: AtomicI64,
    /// Whether the server can be told to look after clients that are gone while it works for them.
    pub(crate) misses_clients: AtomicBool,
    /// When what is kept of claims was last looked through.
    pub(crate) claims_cleared: Mutex<Option<Duration>>,
    /// When copies that fell silent were last looked for.
    pub(crate) silent_ended: Mutex<Option<Duration>>,
    /// When this process swept last.
    pub(crate) swept: Mutex<Option<Duration>>,
    /// How many rows of depths and of counters there were after they were summed up last.
    pub(crate) folded: [AtomicI64; 2],
    /// Who this process is when it does a duty for all.
    pub(crate) holder: String,
    pub(crate) token: [u8; 16],
    /// By what the store knows itself, once it is open.
    pub(crate) uuid: OnceLock<[u8; 16]>,
    /// What there is to tell other processes.
    pub(crate) messenger: Arc<Messenger>,
    listeners: Mutex<Vec<Weak<dyn CommitListener>>>,
    stats: Mutex<GroupStats>,
    closed: AtomicBool,
}

/// What the writers of this process did since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Transactions that were committed.
    pub commits: u64,
    /// Items of the calls in them: messages, leases, settlements and so on.
    pub items: u64,
    /// Transactions that were carried out again, because another one was in their way.
    pub repeated: u64,
    /// Connections that were lost or refused.
    pub lost: u64,
    /// Transactions whose commit was not answered.
    pub unknown: u64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("schema", &self.texts.schema()).finish_non_exhaustive()
    }
}

/// A connection could not be had.
#[derive(Debug)]
pub(crate) struct NoConnection {
    pub(crate) error: StoreError,
    /// Trying again may help.
    pub(crate) passing: bool,
}

impl Shared {
    pub(crate) fn new(pool: Pool, texts: Arc<Texts>, limits: Limits, clock: Option<Arc<dyn Clock>>) -> Self {
        let mut token = [0; 16];
        SystemRandom.fill(&mut token);
        Self {
            pool,
            texts,
            limits,
            names: Names::default(),
            clock,
            real: SystemClock::new(),
            hints: Mutex::default(),
            hands: Mutex::default(),
            timeline: AtomicI64::new(0),
            misses_clients: AtomicBool::new(false),
            claims_cleared: Mutex::default(),
            silent_ended: Mutex::default(),
            swept: Mutex::default(),
            folded: Default::default(),
            holder: format!("process {}", std::process::id()),
            token,
            uuid: OnceLock::new(),
            messenger: Arc::default(),
            listeners: Mutex::default(),
            stats: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Time that passes for this store's caches and duties: it stands still where a test's clock does.
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.as_ref().map_or_else(|| self.real.monotonic(), |clock| clock.monotonic())
    }

    /// The store's time, where the server said this.
    pub(crate) fn time(&self, server: Timestamp) -> Timestamp {
        self.clock.as_ref().map_or(server, |clock| clock.now())
    }

    /// Refuses once the store was closed.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// A connection of the pool, or a new one.
    pub(crate) async fn connect(&self) -> Result<Conn, NoConnection> {
        match self.pool.get().await {
            Ok(client) => Ok(Conn::new(client, Arc::clone(&self.texts))),
            Err(PoolError::Backend(error)) => {
                self.count(|stats| stats.lost += 1);
                // Another server may answer next: what was remembered of the one before may mean something else there.
                self.names.forget();
                let passing = error.code().is_none() || class(&error) == Class::Lost;
                let answer = StoreError::unavailable(format!("the database cannot be reached: {}", said(&error)))
                    .hint("check the URL, the server and its pg_hba.conf; what was committed is there")
                    .source(error);
                Err(NoConnection { error: answer, passing })
            }
            Err(error) => {
                let answer = StoreError::unavailable(format!("no connection to the database: {error}")).source(error);
                Err(NoConnection { error: answer, passing: true })
            }
        }
    }

    /// Waits before the next try: longer each time, and never at the same moment as everybody else.
    pub(crate) async fn back_off(&self, tries: u32) {
        let most = Duration::from_millis(2_u64.saturating_mul(1 << tries.min(9)));
        tokio::time::sleep(most.mul_f64(SystemRandom.unit())).await;
    }

    pub(crate) fn listen(&self, listener: Weak<dyn CommitListener>) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Tells this process what a commit of its own changed, and others that there is something to claim.
    pub(crate) fn tell(&self, news: &News) {
        self.announce(news);
        self.messenger.tell(&news.ready);
    }

    /// Tells this process what a commit changed, its own or another's.
    pub(crate) fn announce(&self, news: &News) {
        if news.ready.is_empty() && news.ended.is_empty() {
            return;
        }
        let listeners: Vec<_> = {
            let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            // A listener that panics loses its news, not everybody's writer.
            let _panicked = catch_unwind(AssertUnwindSafe(|| listener.committed(news)));
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut GroupStats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn stats(&self) -> GroupStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn closed() -> StoreError {
    StoreError::unavailable("the store is closed").hint("open it again")
}
