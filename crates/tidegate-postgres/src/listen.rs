//! Tells other processes that a queue has something, and hears it from them: one connection per process, beside the pool.
//!
//! A notification is sent after the commit it tells of, from this connection and never inside the group's transaction:
//! PostgreSQL lets one transaction that notifies commit at a time. The first is sent at once; what comes within
//! [`QUIET`] after it goes together, each queue once. It carries no decision: whoever hears it looks, and whoever
//! misses it finds the message when it next looks anyway. So nothing is repeated, and a connection that is lost costs
//! nothing but speed until there is another one.
//!
//! Behind a proxy that gives each transaction another connection nothing can be heard (the notification would go to
//! whoever has that connection), so nothing is listened to there; telling works all the same.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tidegate_core::clock::{Random as _, SystemRandom};
use tidegate_core::id::{Hex, QueueName, digest16};
use tidegate_core::store::News;
use tokio::sync::Notify;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use crate::shared::Shared;

/// Between two notifications at least.
const QUIET: Duration = Duration::from_millis(4);
/// How often a connection on which nothing happens is asked whether it is still there.
const PROBE: Duration = Duration::from_secs(20);
/// What takes longer is not going to happen any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after a lost connection the next is tried, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What this process has to tell the others.
#[derive(Debug, Default)]
pub(crate) struct Messenger {
    queues: Mutex<BTreeSet<QueueName>>,
    wake: Notify,
}

impl Messenger {
    /// Called after a commit: returns at once.
    pub(crate) fn tell(&self, ready: &[QueueName]) {
        if ready.is_empty() {
            return;
        }
        self.lock().extend(ready.iter().cloned());
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).into_iter().map(|queue| queue.as_str().to_owned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<QueueName>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what is sent is sealed.
#[derive(Clone)]
pub(crate) enum Tls {
    None,
    /// With a certificate that was checked.
    Checked(MakeRustlsConnect),
}

/// Where and how to talk to the others.
pub(crate) struct Line {
    pub(crate) config: Config,
    pub(crate) tls: Tls,
    /// The schema of the store: only processes of one store talk to each other.
    pub(crate) schema: String,
    /// Whether a connection stays with who opened it, so that it can be listened on.
    pub(crate) listens: bool,
}

/// The channel of a store's schema: a name that fits, whatever the schema is called.
fn channel(schema: &str) -> String {
    if schema == "tidegate" { schema.to_owned() } else { format!("tidegate_{}", Hex(&digest16(&[schema.as_bytes()]))) }
}

/// Talks and listens for as long as the store's runtime runs.
pub(crate) async fn serve(line: Line, messenger: Arc<Messenger>, store: Weak<Shared>) {
    let mut wait = AGAIN.0;
    loop {
        let lost = match &line.tls {
            Tls::None => connection(&line, NoTls, &messenger, &store).await,
            Tls::Checked(tls) => connection(&line, tls.clone(), &messenger, &store).await,
        };
        let Lost { error, worked } = lost;
        if worked {
            debug!(
                error,
                "the connection that tells and hears of new messages is lost: until the next one workers poll"
            );
            wait = AGAIN.0;
        } else {
            warn!(error, "no connection to tell and hear of new messages: workers find them by polling");
        }
        // Spread, so that a fleet does not come back all at once.
        tokio::time::sleep(wait.mul_f64(0.5 + SystemRandom.unit())).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Why a connection is no longer used.
struct Lost {
    error: String,
    /// Whether it had been of use.
    worked: bool,
}

/// Works with one connection until it is lost.
async fn connection<T>(line: &Line, tls: T, messenger: &Messenger, store: &Weak<Shared>) -> Lost
where
    T: MakeTlsConnect<Socket>,
{
    let (client, mut connection) = match within(line.config.connect(tls)).await {
        Ok(connected) => connected,
        Err(error) => return Lost { error, worked: false },
    };
    let channel = channel(&line.schema);
    let own = OnceLock::new();
    // Drives the connection; its end is the connection's.
    let hear = async {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                // This process told its own listeners itself.
                Some(Ok(AsyncMessage::Notification(told))) if own.get() != Some(&told.process_id()) => {
                    hear(store, told.payload());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "closed by the server".to_owned(),
            }
        }
    };
    let speak = async {
        match begin(&client, &channel, line.listens).await {
            Ok(pid) => {
                let _known_now = own.set(pid);
                talk(&client, &channel, messenger).await
            }
            Err(error) => error,
        }
    };
    let error = tokio::select! {
        error = speak => error,
        error = hear => error,
    };
    Lost { error, worked: own.get().is_some() }
}

fn hear(store: &Weak<Shared>, queue: &str) {
    // A name that a newer version may send: who polls finds what it is about.
    if let (Some(store), Ok(queue)) = (store.upgrade(), QueueName::new(queue)) {
        store.announce(&News { ready: vec![queue], ended: Vec::new() });
    }
}

/// Begins to listen, and says by what its own notifications are known.
async fn begin(client: &Client, channel: &str, listens: bool) -> Result<i32, String> {
    const OWN: &str = "-- listen: by what its own notifications are known
        select pg_backend_pid()";
    if listens {
        within(client.batch_execute(&format!("listen \"{channel}\""))).await?;
    }
    let rows = within(client.query_typed(OWN, &[])).await?;
    let pid = rows.first().map(|row| row.try_get(0)).transpose().map_err(|e| e.to_string())?;
    pid.ok_or_else(|| "the server does not say which process serves the connection".to_owned())
}

/// Tells what there is to tell, until that fails.
async fn talk(client: &Client, channel: &str, messenger: &Messenger) -> String {
    const TELL: &str = "-- listen: each queue once
        select pg_notify($1, queue) from unnest($2::text[]) as queue";
    const PROBING: &str = "-- listen: whether the connection is still there
        select 1";
    loop {
        let told = match tokio::time::timeout(PROBE, messenger.wake.notified()).await {
            Ok(()) => {
                let queues = messenger.take();
                within(client.query_typed(TELL, &[(&channel, Type::TEXT), (&queues, Type::TEXT_ARRAY)])).await
            }
            Err(_nothing_happened) => within(client.query_typed(PROBING, &[])).await,
        };
        if let Err(error) = told {
            return error;
        }
        tokio::time::sleep(QUIET).await;
    }
}

async fn within<V>(step: impl Future<Output = Result<V, tokio_postgres::Error>>) -> Result<V, String> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(late) => Err(late.to_string()),
    }
}
