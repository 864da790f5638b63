//! What every endpoint gets: the open store, and how it is to be served.

use std::fmt;
use std::sync::Arc;

use tidegate::{Random, SystemRandom, Tidegate};
use tokio::sync::watch;

use crate::drive::Driver;
use crate::guard::{Demand, Guard};
use crate::health::Health;
use crate::limits::Limits;
use crate::metrics::HttpMetrics;
use crate::problem::Problem;
use crate::queues_made::QueuesMade;
use crate::rates::Rates;
use crate::workers::Workers;

/// What every endpoint gets. Made with [`Serving::new`], and changed field by field.
pub struct Serving {
    /// The store.
    pub tide: Tidegate,
    /// How much one request may ask for.
    pub limits: Limits,
    /// Who is let in: unless this is changed, clients on this machine, and whoever has a token.
    pub guard: Guard,
    /// Where keys that nobody asked for come from.
    pub random: Arc<dyn Random>,
    /// Where the router is mounted, such as `/queues`; empty at the root. Stands before every address that is answered.
    pub prefix: String,
    /// Tells requests that wait to answer at once.
    pub stopping: Stopping,
    /// Which queues there are, as far as this server knows.
    pub queues: QueuesMade,
    /// What clients have sent of late, for the limit of requests a second.
    pub rates: Rates,
    /// What is remembered of messages that were handed out.
    pub workers: Workers,
    /// What a supervisor is told.
    pub health: Arc<Health>,
    /// What is measured of requests and connections.
    pub http: Arc<HttpMetrics>,
    /// What is known of operations; who begins one has it driven on by the future of [`Serving::drive`].
    pub driver: Arc<Driver>,
}

impl Serving {
    /// Serves a store with the defaults of everything else.
    #[must_use]
    pub fn new(tide: Tidegate) -> Self {
        let guard = Guard::new(Arc::clone(tide.store()), Demand::Unless);
        Self {
            tide,
            guard,
            queues: QueuesMade::default(),
            limits: Limits::default(),
            rates: Rates::default(),
            random: Arc::new(SystemRandom),
            prefix: String::new(),
            stopping: Stopping::default(),
            workers: Workers::default(),
            health: Arc::default(),
            http: Arc::default(),
            driver: Arc::default(),
        }
    }

    /// A problem as it is written as one verdict of many.
    pub(crate) fn wire(&self, problem: Problem) -> tidegate_api::Problem {
        problem.placed(&self.prefix).into_wire()
    }

    /// The address of something of this API.
    pub(crate) fn address(&self, path: impl fmt::Display) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("tide", &self.tide).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Whether the server is being stopped: who waits for a message then answers with where it stands, so that nothing holds
/// a restart up. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Stopping(Arc<watch::Sender<bool>>);

impl Default for Stopping {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stopping {
    /// Says that it is.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn stopped(&self) {
        // The sender lives as long as this value: it cannot be gone.
        if self.0.subscribe().wait_for(|stopping| *stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
