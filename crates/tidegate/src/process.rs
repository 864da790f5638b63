//! Whose futures these are. A program never asks: they are its own, and threads are threads.
//!
//! A simulation runs several processes in one thread of one runtime. Each of them adopts every future that this library
//! would spawn or give a thread, so that it can stop them all between two of their steps, or let none of them take another
//! one, ever. Without the feature `simulation` all of this is nothing.

#[cfg(feature = "simulation")]
use std::{fmt, pin::Pin, sync::Arc};

/// A future without its type, as a simulated process adopts it.
#[cfg(feature = "simulation")]
pub type Adopted = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A simulated process.
#[cfg(feature = "simulation")]
pub trait Process: Send + Sync + fmt::Debug {
    /// Takes a future in: what it returns goes on only while this process runs. `role` says what it is for.
    fn adopt(&self, role: &'static str, future: Adopted) -> Adopted;
}

/// What runs the futures of one `Tidegate`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    #[cfg(feature = "simulation")]
    pub(crate) process: Option<Arc<dyn Process>>,
}

#[cfg(not(feature = "simulation"))]
impl Host {
    /// The future, as it may be spawned.
    pub(crate) fn own<F>(&self, _role: &'static str, future: F) -> F
    where
        F: Future + Send + 'static,
    {
        future
    }

    /// The future, for a thread of its own.
    pub(crate) fn needs_a_thread<F>(&self, _role: &'static str, future: F) -> Option<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Some(future)
    }
}

#[cfg(feature = "simulation")]
impl Host {
    /// The future, as it may be spawned.
    pub(crate) fn own<F>(&self, role: &'static str, future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        use std::sync::{Mutex, PoisonError};
        let process = self.process.clone();
        async move {
            let Some(process) = process else { return future.await };
            let ended = Arc::new(Mutex::new(None));
            let end = Arc::clone(&ended);
            let adopted: Adopted = Box::pin(async move {
                let value = future.await;
                *end.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            });
            process.adopt(role, adopted).await;
            let value = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
            match value {
                Some(value) => value,
                // A process that was killed ends nothing.
                None => std::future::pending().await,
            }
        }
    }

    /// The future, for a thread of its own; none when it was spawned, because a simulation has no threads.
    pub(crate) fn needs_a_thread<F>(&self, role: &'static str, future: F) -> Option<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(process) = &self.process else { return Some(future) };
        drop(tokio::spawn(process.adopt(role, Box::pin(future))));
        None
    }
}
