//! Who wants to hear of what this process did: the contract's listeners. Of what others do a server tells nobody; who
//! waits for that polls.

use std::sync::{Mutex, PoisonError, Weak};

use tidegate::store::{CommitListener, News};

/// Listeners, held weakly.
#[derive(Default)]
pub(crate) struct Listeners(Mutex<Vec<Weak<dyn CommitListener>>>);

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listeners")
    }
}

impl Listeners {
    pub(crate) fn add(&self, listener: Weak<dyn CommitListener>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Tells of what a server has said is durable.
    pub(crate) fn tell(&self, news: &News) {
        if news.ready.is_empty() && news.ended.is_empty() {
            return;
        }
        // Not told under the lock: a listener may add another one.
        let listeners: Vec<_> = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|listener| listener.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        listeners.iter().for_each(|listener| listener.committed(news));
    }
}
