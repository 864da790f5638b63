//! The engine through its verbs in batches, without the library's worker: what the library itself costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::clock::{Clock, SystemClock, SystemRandom};
use tidegate::lifecycle::Outcome;
use tidegate::message::{NewMessage, Payload};
use tidegate::store::{ClaimRequest, Lease, QueueSlots, Settle};
use tidegate::{Kind, Nonce, QueueName, Store, Tenant, WorkerId};

use crate::Parameters;
use crate::keys::Key;
use crate::library::{KIND, Work};

/// Messages of one claim and one settlement.
const BATCH: u32 = 250;

/// Lifecycles per second.
pub(crate) async fn round(store: &Arc<dyn Store>, keys: &[Key], parameters: &Parameters) -> anyhow::Result<f64> {
    let clock = SystemClock::new();
    let started = clock.monotonic();
    let count = keys.len();
    let messages: Vec<NewMessage> = keys
        .iter()
        .map(|key| {
            let payload = Payload::of(&Work::of(key))?;
            Ok(NewMessage::new(QueueName::new(KIND)?, Kind::new(KIND)?, key.checked(), payload))
        })
        .collect::<anyhow::Result<_>>()?;
    let producer = tokio::spawn(produce(Arc::clone(store), messages, parameters.batch.max(1) as usize));
    let left = Arc::new(AtomicUsize::new(count));
    let consumers: Vec<_> =
        (0..2).map(|number| tokio::spawn(consume(Arc::clone(store), number, Arc::clone(&left)))).collect();
    producer.await??;
    for consumer in consumers {
        consumer.await??;
    }
    Ok(crate::ratio(count as u64, 1) / clock.monotonic().saturating_sub(started).as_secs_f64())
}

async fn produce(store: Arc<dyn Store>, messages: Vec<NewMessage>, batch: usize) -> anyhow::Result<()> {
    for batch in messages.chunks(batch) {
        for verdict in store.enqueue(batch.to_vec()).await? {
            verdict?;
        }
    }
    Ok(())
}

/// Claims and settles until nothing is left.
async fn consume(store: Arc<dyn Store>, number: u32, left: Arc<AtomicUsize>) -> anyhow::Result<()> {
    while left.load(Ordering::SeqCst) > 0 {
        // Nothing claimed: the producer is behind. Each try goes through the writer, so this is no busy loop.
        let leases = store.claim(claim_request(number, BATCH)?).await?.leases;
        if leases.is_empty() {
            continue;
        }
        for verdict in store.settle(leases.iter().map(settle).collect()).await? {
            verdict?;
            left.fetch_sub(1, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// A claim of so many of the benchmark's messages.
pub(crate) fn claim_request(number: u32, slots: u32) -> anyhow::Result<ClaimRequest> {
    Ok(ClaimRequest {
        worker: WorkerId::new(&format!("bench-{number}"))?,
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: QueueName::new(KIND)?, slots }],
        kinds: vec![(Kind::new(KIND)?, 1)],
        nonce: Nonce::new(&SystemRandom),
        lease: Duration::from_secs(60),
    })
}

/// Its completion with a small result.
pub(crate) fn settle(lease: &Lease) -> Settle {
    Settle {
        id: lease.message.id,
        token: lease.token,
        outcome: Outcome::Completed { result: "0".into(), orphans: false },
        journal: Vec::new(),
        then: Vec::new(),
        compensate: Vec::new(),
        unit: 0.0,
    }
}
