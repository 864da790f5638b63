//! Those who want something done: they call a process, and call again, blindly, until somebody says that it is stored.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{Answer, Message, Options, Sent, Tidegate};
use tidegate_core::store::Enqueued;
use tidegate_core::{MessageId, StoreError, StoreErrorKind};
use tokio::sync::oneshot;

use crate::chance::Chance;
use crate::gateway::SHORT_WINDOW;
use crate::sim::Sim;
use crate::steps::{Chore, Deposit, Deposit2, Transfer, Voucher};

/// What a client wants.
#[derive(Debug, Clone, Copy)]
struct Wish {
    n: u64,
    cents: u64,
    kind: Sort,
}

#[derive(Debug, Clone, Copy)]
enum Sort {
    Deposit,
    Transfer,
    Voucher,
    Chore,
}

/// What came back of one call.
enum Told {
    Stored(MessageId),
    /// The caller's own fault, as it was to be.
    Refused,
    Nothing,
}

/// Clients come until the span is over.
pub(crate) async fn come(sim: Arc<Sim>) {
    let chance = Chance::new(sim.settings.seed, "clients");
    let mean = Duration::from_secs(3600) / sim.settings.clients_per_hour.max(1);
    let mut n = 0;
    loop {
        tokio::time::sleep(chance.until_next(mean)).await;
        n += 1;
        comes(&sim, n);
    }
}

/// Many of them at once, with numbers of their own.
pub(crate) fn burst(sim: &Arc<Sim>, clients: u32) {
    let from = 1_000_000 + u64::try_from(sim.now().as_millis()).unwrap_or(0) * 1_000;
    (0..u64::from(clients)).for_each(|n| comes(sim, from + n));
}

/// One after the other in an even pace, each once and in a fixed mixture: for measuring what comes through.
pub(crate) async fn pace(sim: Arc<Sim>, every: Duration) {
    let from = 9_000_000_000;
    for n in from.. {
        let kind = [Sort::Chore, Sort::Deposit, Sort::Deposit, Sort::Transfer, Sort::Deposit, Sort::Voucher];
        let wish = Wish { n, cents: n % 10_000 + 1, kind: kind[usize::try_from(n % 6).unwrap_or(0)] };
        drop(tokio::spawn(client(Arc::clone(&sim), wish, Duration::ZERO, n)));
        tokio::time::sleep(every).await;
    }
}

fn comes(sim: &Arc<Sim>, n: u64) {
    let chance = Chance::new(sim.settings.seed ^ n.wrapping_mul(0x2545_F491_4F6C_DD1D), "client");
    let kind = match chance.below(10) {
        0..=4 => Sort::Deposit,
        5 | 6 => Sort::Transfer,
        7 => Sort::Voucher,
        _ => Sort::Chore,
    };
    let wish = Wish { n, cents: chance.within(1, 99_999), kind };
    // Nobody delivers again after the retention, as every producer has promised.
    let again = [(8, 0, 100), (20, 1_000, 120_000), (40, 300_000, 1_200_000)];
    for (one_in, from, to) in again {
        if chance.one_in(one_in) {
            let delay = chance.millis(from, to);
            drop(tokio::spawn(client(Arc::clone(sim), wish, delay, chance.below(u64::MAX))));
        }
    }
    if chance.one_in(60) {
        // Somebody mixes two operations up: another amount under the same key.
        let other = Wish { cents: wish.cents + 1, ..wish };
        drop(tokio::spawn(client(Arc::clone(sim), other, chance.millis(0, 60_000), chance.below(u64::MAX))));
    }
    drop(tokio::spawn(client(Arc::clone(sim), wish, Duration::ZERO, chance.below(u64::MAX))));
}

async fn client(sim: Arc<Sim>, wish: Wish, delay: Duration, seed: u64) {
    let chance = Chance::new(seed, "calls");
    tokio::time::sleep(delay).await;
    for attempt in 0..12_u64 {
        let node = chance.below(sim.nodes.len() as u64);
        let waits = chance.one_in(6).then(|| chance.millis(100, 60_000));
        match call(&sim, usize::try_from(node).unwrap_or(0), wish, waits).await {
            Told::Stored(id) => {
                let held = sim.oracle().acknowledged(id);
                return sim.check(held);
            }
            Told::Refused => return,
            Told::Nothing => tokio::time::sleep(chance.millis(50, 2_000 << attempt.min(5))).await,
        }
    }
}

/// One call to one process, which may die under it.
async fn call(sim: &Arc<Sim>, node: usize, wish: Wish, waits: Option<Duration>) -> Told {
    let version = sim.nodes[node].version();
    let Some((process, tide)) = sim.nodes[node].serving() else { return Told::Nothing };
    let (reply, replied) = oneshot::channel();
    let world = Arc::clone(sim);
    let serving = async move {
        let told = match wish.kind {
            Sort::Deposit if version >= 2 => {
                let deposit = Deposit2 { n: wish.n, cents: wish.cents, currency: "EUR".to_owned() };
                serve(&world, &tide, deposit, Options::default(), waits).await
            }
            Sort::Deposit => {
                serve(&world, &tide, Deposit { n: wish.n, cents: wish.cents }, Options::default(), waits).await
            }
            Sort::Transfer => {
                serve(&world, &tide, Transfer { n: wish.n, cents: wish.cents }, Options::default(), waits).await
            }
            Sort::Voucher => {
                let options = Options::default().max_age(SHORT_WINDOW / 2);
                serve(&world, &tide, Voucher { n: wish.n, cents: wish.cents }, options, waits).await
            }
            Sort::Chore => {
                let delay = Duration::from_millis(if wish.n.is_multiple_of(5) { wish.cents } else { 0 });
                let options = Options::default().delay(delay);
                serve(&world, &tide, Chore { n: wish.n, cents: wish.cents }, options, waits).await
            }
        };
        // Its client may have given up.
        drop(reply.send(told));
    };
    drop(tokio::spawn(process.run(Box::pin(serving))));
    // The connection to a process that stands still is closed by the client some time.
    match tokio::time::timeout(Duration::from_secs(70), replied).await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) | Err(_) => Told::Nothing,
    }
}

async fn serve<M: Message>(sim: &Sim, tide: &Tidegate, message: M, options: Options, waits: Option<Duration>) -> Told {
    let sent = match tide.enqueue_with(message, options).await {
        Ok(sent) => sent,
        Err(error) => return refused(sim, &error),
    };
    if let Some(waits) = waits {
        compare(sim, &sent, waits).await;
    }
    Told::Stored(sent.id())
}

fn refused(sim: &Sim, error: &StoreError) -> Told {
    match error.kind() {
        StoreErrorKind::KeyConflict => Told::Refused,
        StoreErrorKind::Unavailable | StoreErrorKind::QueueFull => Told::Nothing,
        StoreErrorKind::LeaseLost
        | StoreErrorKind::Conflict
        | StoreErrorKind::NotFound
        | StoreErrorKind::Invalid
        | StoreErrorKind::Corrupt => {
            sim.check(Err(("I1", format!("a client was refused: {error}"))));
            Told::Refused
        }
    }
}

/// A duplicate that was answered gets the same answer when it asks again.
async fn compare<M: Message>(sim: &Sim, sent: &Sent<M>, waits: Duration) {
    let replayed = matches!(sent.enqueued(), Some(Enqueued::Replayed { .. }));
    match sent.answer(waits).await {
        Ok(Answer::Pending(state)) if replayed => {
            sim.check(Err(("I5", format!("{} was answered, and is {state}", sent.id()))));
        }
        Ok(_) => {}
        // Deleted meanwhile, or the store is away.
        Err(error) if matches!(error.kind(), StoreErrorKind::NotFound | StoreErrorKind::Unavailable) => {}
        Err(error) => sim.check(Err(("I5", format!("{} has no answer: {error}", sent.id())))),
    }
}
