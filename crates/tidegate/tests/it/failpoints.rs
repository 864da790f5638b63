use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate::store::{ClaimRequest, QueueSlots};
use tidegate::{Answer, Context, EffectAnswer, Found, Message, Nonce, SystemRandom, Tenant, WorkerId, failpoint};

use crate::stage::{Next, SOON, Stage, Work, at_once};

const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// Waits until the point was reached.
async fn reached(point: &'static str) {
    let looking = async {
        while !failpoint::visits().contains_key(point) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, looking).await.unwrap_or_else(|_| panic!("{point} was not reached"));
}

/// A message of each step of the life of one: every arrow of the protocol is passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_is_reached_by_a_workload_and_every_one_reached_is_listed() {
    failpoint::count_visits();
    let stage = Stage::with_lease(Duration::from_millis(300)).await;
    let sqlite = Arc::clone(stage.tide.sqlite().unwrap());
    let books = tidegate::sqlite::rusqlite::Connection::open(sqlite.path()).unwrap();
    books.execute_batch("create table entries (cents integer not null)").unwrap();

    // Somebody claims it and is never heard of again.
    let orphan = stage.tide.enqueue(Next { of: 1 }).await.unwrap();
    let claim = ClaimRequest {
        worker: WorkerId::new("gone").unwrap(),
        tenant: Tenant::default(),
        queues: vec![QueueSlots { queue: Next::QUEUE.parse().unwrap(), slots: 1 }],
        kinds: vec![(Next::KIND.parse().unwrap(), 1)],
        nonce: Nonce::new(&SystemRandom),
        lease: Duration::from_millis(1),
    };
    assert_eq!(stage.tide.store().claim(claim).await.unwrap().leases.len(), 1);
    reached("sweep.after_take_over").await;

    let handler = move |context: Context, work: Work| {
        let sqlite = Arc::clone(&sqlite);
        async move {
            context.effect("keyed").keyed(LONG).call(|_| async { EffectAnswer::confirmed(1) }).await?;
            context
                .effect("asked")
                .send_within(Duration::from_millis(200))
                .lookup(Duration::ZERO, |_| async { Found::Confirmed(2) })
                .call(|_| async { EffectAnswer::unknown("lost") })
                .await?;
            let credit = move |tx: &tidegate::sqlite::rusqlite::Connection| {
                tx.execute("insert into entries values (?1)", [work.n]).map(|_| work.n)
            };
            let credited = context.effect("credit").transactional().in_store(&sqlite, credit).await?;
            // Longer than a third of the lease.
            reached("keepalive.before_extend").await;
            Ok(credited)
        }
    };
    let next = |_: Context, next: Next| async move { Ok(next.of) };
    let worker = stage.tide.worker().handle_with(handler, at_once(3)).handle_with(next, at_once(3));
    let worker = worker.start().await.unwrap();
    let sent = stage.tide.enqueue(Work { n: 7 }).await.unwrap();
    assert_eq!(sent.answer(SOON).await.unwrap(), Answer::Completed(7));
    assert_eq!(orphan.answer(SOON).await.unwrap(), Answer::Completed(1));
    worker.stop().await.unwrap();

    let listed: BTreeSet<_> = failpoint::ALL.iter().map(|point| point.name).collect();
    let reached: BTreeSet<_> = failpoint::visits().into_keys().collect();
    assert_eq!(reached, listed);
}
