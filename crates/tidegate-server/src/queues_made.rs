//! How many queues a server lets requests make: a client that makes up names must not fill the store with queues, nor
//! every metric with their names.
//!
//! A queue that is known costs a look into a set. One that is not has the store asked which there are, and counts towards
//! the limit from then on. Several servers on one store each know of the others' queues when they next ask, so that the
//! limit may be passed by a few.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use tidegate::message::NewMessage;
use tidegate::store::{ChangeQueue, QueueChange};
use tidegate::{QueueName, Tenant};
use tidegate_api::ProblemType;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::principal::Caller;
use crate::problem::Problem;
use crate::serving::Serving;

/// How long it is believed that there are too many.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Queues that are known.
#[derive(Debug, Default)]
pub struct QueuesMade {
    known: std::sync::RwLock<HashSet<(Tenant, QueueName)>>,
    /// One asks at a time; when somebody asked last, and how many there were.
    asking: Mutex<Option<(Instant, usize)>>,
}

impl QueuesMade {
    fn has(&self, tenant: &Tenant, queue: &QueueName) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        // A look-up takes a pair, and names are cheap to clone.
        known.contains(&(tenant.clone(), queue.clone()))
    }

    fn add(&self, queues: impl IntoIterator<Item = (Tenant, QueueName)>) -> usize {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(queues);
        known.len()
    }
}

impl Serving {
    /// Lets a request put something on a queue, or refuses it because that would be one queue too many.
    pub(crate) async fn admit_queue(&self, caller: &Caller, tenant: &Tenant, queue: &QueueName) -> Result<(), Problem> {
        if self.queues.has(tenant, queue) {
            return Ok(());
        }
        let most = self.limits.queues;
        let mut asked = self.queues.asking.lock().await;
        if self.queues.has(tenant, queue) {
            return Ok(());
        }
        let count = match *asked {
            // A client that goes on with new names costs the store no question each time.
            Some((when, count)) if count >= most && when.elapsed() < GOOD_FOR => count,
            Some(_) | None => {
                let there = self.tide.store().stats().await?.queues;
                let count = self.queues.add(there.into_iter().map(|queue| (queue.tenant, queue.queue)));
                *asked = Some((Instant::now(), count));
                count
            }
        };
        if self.queues.has(tenant, queue) {
            return Ok(());
        }
        if count >= most {
            let what = format!("queue {queue} would be one more than the {most} that requests may make");
            return Err(Problem::new(ProblemType::QueueFull, what)
                .fix("use one of the queues that there are; the limit is the setting limits.queues of the server"));
        }
        if let Some(depth) = self.limits.new_queue_depth {
            let (tenant, queue, change) = (tenant.clone(), queue.clone(), QueueChange::Limit(Some(depth)));
            let act = caller.act("the limit of new queues", None);
            self.tide.store().pause(ChangeQueue { tenant, queue, change, act }).await?;
        }
        self.queues.add([(tenant.clone(), queue.clone())]);
        Ok(())
    }

    /// The same for where a message goes.
    pub(crate) async fn admit(&self, caller: &Caller, message: &NewMessage) -> Result<(), Problem> {
        self.admit_queue(caller, &message.tenant, &message.queue).await
    }
}
