//! The one place that knows which engines there are: a store is opened here by its address, whatever keeps it.
//!
//! What every store can do is the contract's, [`Store`]. What only an engine can do (look its tables over, erase, take the
//! steps of its tables) is asked here as well, so that nobody above has to know which engine it is; what only one of them
//! can do at all is a `match` on [`Engine`].

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::clock::Clock;
use tidegate_core::doctor::Check;
use tidegate_core::erase::Erase;
use tidegate_core::error::StoreError;
use tidegate_core::message::DEFAULT_MAX_PAYLOAD;
use tidegate_core::migration::Step;
use tidegate_core::store::{DEFAULT_RETENTION, Store, Verdicts};

use crate::address::{Address, Server};

/// How a store is opened, whatever keeps it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Opening {
    /// Where the store's time comes from; unless said otherwise from the machine that keeps it.
    pub clock: Option<Arc<dyn Clock>>,
    /// The largest payload, result or effect value, in bytes.
    pub max_payload: usize,
    /// How long answers are kept.
    pub retention: Duration,
    /// Makes the store if it is not there.
    pub create: bool,
    /// Also brings the tables of an older store up to date, unless programs are at work on it that could not live with that.
    pub migrate: bool,
    /// Where they could not, brings them up to date all the same, on a server: a file that is in use is never migrated.
    pub beside_older: bool,
    /// How long a file that another process holds is tried again.
    pub busy_timeout: Option<Duration>,
    /// How much room a file leaves on its disk.
    #[cfg(feature = "sqlite")]
    pub room: tidegate_sqlite::Room,
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            clock: None,
            max_payload: DEFAULT_MAX_PAYLOAD,
            retention: DEFAULT_RETENTION,
            create: true,
            migrate: false,
            beside_older: false,
            busy_timeout: None,
            #[cfg(feature = "sqlite")]
            room: tidegate_sqlite::Room::default(),
        }
    }
}

/// An open store, and what keeps it.
#[derive(Debug, Clone)]
pub enum Engine {
    /// A file of this machine.
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<tidegate_sqlite::SqliteStore>),
    /// A schema of a PostgreSQL server.
    #[cfg(feature = "postgres")]
    Postgres(Arc<tidegate_postgres::PostgresStore>),
    /// A store that was opened elsewhere, of which no more is known.
    Other(Arc<dyn Store>),
}

impl Engine {
    /// Opens the store at an address.
    ///
    /// # Errors
    /// As [`Tidegate::open`](crate::Tidegate::open).
    ///
    /// # Cancel safety
    /// Dropped, the store may have been made.
    pub async fn open(address: &Address, opening: Opening) -> Result<Self, StoreError> {
        match address {
            Address::File(path) => Self::open_file(path, opening).await,
            Address::Server(server) => Self::open_server(server, opening).await,
        }
    }

    #[cfg(feature = "sqlite")]
    async fn open_file(path: &std::path::Path, opening: Opening) -> Result<Self, StoreError> {
        let usual = tidegate_sqlite::Options::default();
        let options = tidegate_sqlite::Options {
            clock: opening.clock.unwrap_or(usual.clock),
            max_payload: opening.max_payload,
            retention: opening.retention,
            create: opening.create,
            room: opening.room,
            migrate: if opening.migrate { tidegate_sqlite::Migrate::Older } else { usual.migrate },
            busy_timeout: opening.busy_timeout.unwrap_or(usual.busy_timeout),
            check_up_to: usual.check_up_to,
        };
        let path = path.to_owned();
        // It waits for the disk and for other processes.
        let opened = tokio::task::spawn_blocking(move || tidegate_sqlite::SqliteStore::open(path, options)).await;
        let store = opened.map_err(|e| StoreError::unavailable("opening the store was cut off").source(e))??;
        Ok(Self::Sqlite(store))
    }

    #[cfg(not(feature = "sqlite"))]
    async fn open_file(path: &std::path::Path, _: Opening) -> Result<Self, StoreError> {
        Err(not_built(&path.display(), "sqlite"))
    }

    #[cfg(feature = "postgres")]
    async fn open_server(server: &Server, opening: Opening) -> Result<Self, StoreError> {
        let usual = tidegate_postgres::Options::default();
        let migrate = match (opening.create, opening.migrate) {
            (_, true) if opening.beside_older => tidegate_postgres::Migrate::OlderBeside,
            (_, true) => tidegate_postgres::Migrate::Older,
            (true, false) => tidegate_postgres::Migrate::NewStore,
            (false, false) => tidegate_postgres::Migrate::Never,
        };
        let Opening { clock, max_payload, retention, .. } = opening;
        let options = tidegate_postgres::Options { clock, max_payload, retention, migrate, ..usual };
        Ok(Self::Postgres(tidegate_postgres::PostgresStore::open(server.reveal(), options).await?))
    }

    #[cfg(not(feature = "postgres"))]
    async fn open_server(server: &Server, _: Opening) -> Result<Self, StoreError> {
        Err(not_built(server, "postgres"))
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.clone(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.clone(),
            Self::Other(store) => Arc::clone(store),
        }
    }

    /// Finishes what waits, and lets go of what keeps the store. One that was opened elsewhere is left open.
    ///
    /// # Cancel safety
    /// Dropped half-way, it closes all the same.
    pub async fn close(&self) {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.close().await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.close().await,
            Self::Other(_) => {}
        }
    }

    /// Replaces what ended messages say by a tombstone.
    ///
    /// # Errors
    /// `Invalid` without a reason, or when the store was opened elsewhere. The verdicts: `NotFound`; `Conflict` when the
    /// message is live, parked, or has an open effect; `Corrupt`.
    ///
    /// # Cancel safety
    /// Dropped, they may have been erased; erasing them again is harmless.
    pub async fn erase(&self, request: Erase) -> Result<Verdicts<()>, StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.erase(request).await,
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.erase(request).await,
            Self::Other(_) => {
                let _unheard = request;
                Err(StoreError::invalid("a store that was opened elsewhere is erased there"))
            }
        }
    }
}

/// Looks the store at an address over without changing it; services may be using it. `largest_wal` is the largest
/// write-ahead log of a file, in bytes, that is no finding.
///
/// # Errors
/// When it cannot be read at all.
///
/// # Cancel safety
/// Safe: it only reads, to its end.
pub async fn doctor(address: &Address, clock: &dyn Clock, largest_wal: u64) -> Result<Vec<Check>, StoreError> {
    match address {
        #[cfg(feature = "sqlite")]
        Address::File(path) => {
            let (path, doctor) = (path.clone(), tidegate_sqlite::Doctor { now: clock.now(), largest_wal });
            // It reads the whole file.
            let examined =
                tokio::task::spawn_blocking(move || tidegate_sqlite::SqliteStore::doctor(path, doctor)).await;
            examined.map_err(|e| StoreError::unavailable(format!("the doctor ended: {e}")))?
        }
        #[cfg(not(feature = "sqlite"))]
        Address::File(path) => {
            let _ = (clock, largest_wal);
            Err(not_built(&path.display(), "sqlite"))
        }
        #[cfg(feature = "postgres")]
        Address::Server(server) => {
            let options = tidegate_postgres::Options::default();
            tidegate_postgres::PostgresStore::doctor(server.reveal(), options).await
        }
        #[cfg(not(feature = "postgres"))]
        Address::Server(server) => Err(not_built(server, "postgres")),
    }
}

/// The steps of the tables of the store at an address, and when it took them. A store that is not there has taken none.
///
/// # Errors
/// `Invalid` when it is no store, or one of a newer program; `Unavailable` when it cannot be read.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn steps(address: &Address) -> Result<Vec<Step>, StoreError> {
    match address {
        #[cfg(feature = "sqlite")]
        Address::File(path) => {
            let path = path.clone();
            let looked = tokio::task::spawn_blocking(move || tidegate_sqlite::SqliteStore::steps(path)).await;
            looked.map_err(|e| StoreError::unavailable(format!("the look at the store ended: {e}")))?
        }
        #[cfg(not(feature = "sqlite"))]
        Address::File(path) => Err(not_built(&path.display(), "sqlite")),
        #[cfg(feature = "postgres")]
        Address::Server(server) => {
            let options = tidegate_postgres::Options::default();
            tidegate_postgres::PostgresStore::migrations(server.reveal(), options).await
        }
        #[cfg(not(feature = "postgres"))]
        Address::Server(server) => Err(not_built(server, "postgres")),
    }
}

#[cfg(not(all(feature = "sqlite", feature = "postgres")))]
fn not_built(address: &dyn std::fmt::Display, feature: &str) -> StoreError {
    StoreError::invalid(format!("store {address}: its engine is not in this build"))
        .hint(format!("build with the feature {feature} of the crate tidegate"))
}
