//! Reads beside the writer: a few read-only connections, each used by one call at a time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tidegate_core::error::StoreError;
use tokio::sync::Semaphore;

use crate::open;
use crate::trouble::{Trouble, store_error};

/// How many reads run at a time; the others wait their turn.
const CONNECTIONS: usize = 4;

/// The pool.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default(), turns: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Runs a read on a thread that may block, in one snapshot.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Trouble> + Send + 'static,
    {
        let closed = || StoreError::unavailable("the store is closed").hint("open it again");
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| closed())?;
        let this = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            this.snapshot(read)
        });
        reading.await.unwrap_or_else(|e| Err(StoreError::unavailable(format!("a read of the store ended: {e}"))))
    }

    fn snapshot<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let conn = match idle {
            Some(conn) => conn,
            None => open::reader(&self.path)?,
        };
        // A message moves between tables: without one snapshot it could be seen in two of them, or in none.
        conn.execute_batch("begin").map_err(store_error)?;
        let outcome = read(&conn);
        // A connection that cannot end its read is dropped, which ends it; so is one that comes back to a closed pool.
        if conn.execute_batch("commit").is_ok() && !self.turns.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
        }
        outcome.map_err(Trouble::into_store_error)
    }

    /// Reads no more, and lets go of the file.
    pub(crate) fn close(&self) {
        self.turns.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
