//! Several claimers, sweepers and producers at the same moment, as threads and as processes; and who hears of commits.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Weak};
use std::time::Duration;

use tidegate_core::lifecycle::{Outcome, State};
use tidegate_core::message::NewMessage;
use tidegate_core::store::{
    Cancel, ClaimRequest, CommitListener, Enqueued, Extend, Journal, JournalWrite, Lease, News, Settle, SweepRequest,
    Verdicts,
};
use tidegate_core::{MessageId, Nonce, Store, StoreErrorKind, SystemClock};

use super::stage::*;
use crate::engine::contend_in_threads;
use crate::recount::recount;
use crate::{Claimer, Engine, SeededRandom, Taken};

const MESSAGES: usize = 120;

fn claimers(stage: &Stage<'_>, n: u32) -> Vec<Claimer> {
    (0..n)
        .map(|number| Claimer {
            address: stage.place().address().to_owned(),
            number,
            queue: queue("work"),
            kind: kind("work"),
            slots: 1 + number % 4,
        })
        .collect()
}

async fn fill(stage: &Stage<'_>) -> Vec<MessageId> {
    let batch = (0..MESSAGES).map(|n| message(&format!("m{n}"))).collect();
    let verdicts = stage.store.enqueue(batch).await.expect("the batch is answered");
    (verdicts.into_iter())
        .map(|verdict| match verdict {
            Ok(Enqueued::New { id }) => id,
            other => panic!("not new: {other:?}"),
        })
        .collect()
}

async fn each_was_taken_once(stage: &Stage<'_>, ids: &[MessageId], taken: Vec<Vec<Taken>>) {
    let mut by_id: BTreeMap<MessageId, Vec<u32>> = BTreeMap::new();
    for Taken { id, claims } in taken.into_iter().flatten() {
        by_id.entry(id).or_default().push(claims);
    }
    for id in ids {
        assert_eq!(by_id.get(id), Some(&vec![1]), "{id} was not claimed exactly once");
        assert_eq!(stage.state(*id).await, State::Completed);
    }
    assert_eq!(by_id.len(), ids.len());
}

/// N threads behind a barrier, each with a handle of its own, never get one message twice.
pub async fn threads_with_a_handle_each_never_get_one_message_twice(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = fill(&stage).await;
    let mut contenders = Vec::new();
    for claimer in claimers(&stage, 4) {
        contenders.push((claimer, stage.other_handle().await));
    }
    each_was_taken_once(&stage, &ids, contend_in_threads(contenders)).await;
}

/// N threads behind a barrier on one handle never get one message twice.
pub async fn threads_on_one_handle_never_get_one_message_twice(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let ids = fill(&stage).await;
    let contenders = claimers(&stage, 4).into_iter().map(|claimer| (claimer, stage.store.clone())).collect();
    each_was_taken_once(&stage, &ids, contend_in_threads(contenders)).await;
}

/// N processes behind a barrier never get one message twice.
pub async fn processes_never_get_one_message_twice(engine: &dyn Engine) {
    let mut stage = Stage::new(engine).await;
    // The children go by the machine's clock; the messages must be due there, too.
    stage.clock.jump_to(tidegate_core::Clock::now(&SystemClock::new()));
    let ids = fill(&stage).await;
    let claimers = claimers(&stage, 4);
    let taken = stage.engine().contend(stage.place(), claimers).await;
    stage.reopen().await;
    each_was_taken_once(&stage, &ids, taken).await;
}

/// Producers that send one key at the same moment make one message of it, and all learn its id.
pub async fn one_key_sent_at_the_same_moment_is_one_message(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let mut handles = Vec::new();
    for n in 0..4 {
        handles.push(if n == 0 { stage.store.clone() } else { stage.other_handle().await });
    }
    let barrier = Barrier::new(handles.len());
    let verdicts: Vec<Vec<Enqueued>> = std::thread::scope(|scope| {
        let producers: Vec<_> = (handles.iter())
            .map(|store| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    crate::run(async {
                        let mut verdicts = Vec::new();
                        for n in 0..20 {
                            verdicts
                                .push(only(store.enqueue(vec![message(&format!("m{n}"))]).await).expect("accepted"));
                        }
                        verdicts
                    })
                })
            })
            .collect();
        producers.into_iter().map(|producer| producer.join().expect("a producer does not panic")).collect()
    });
    let mut new: Vec<MessageId> = (verdicts.iter().flatten())
        .filter_map(|verdict| if let Enqueued::New { id } = verdict { Some(*id) } else { None })
        .collect();
    new.sort_unstable();
    assert_eq!((new.len(), &new), (20, &stage.all().await));
}

/// Sweepers at the same moment take each lease over once.
pub async fn sweepers_at_the_same_moment_take_each_lease_once(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    fill(&stage).await;
    assert_eq!(stage.take(100).await.len(), 100);
    stage.clock.advance(LEASE + MILLI);
    let handles = [stage.store.clone(), stage.other_handle().await, stage.other_handle().await];
    let barrier = Barrier::new(handles.len());
    let mut taken: Vec<MessageId> = std::thread::scope(|scope| {
        let sweepers: Vec<_> = (handles.iter())
            .map(|store| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    crate::run(async {
                        let mut taken = Vec::new();
                        loop {
                            let request = SweepRequest { take_over: true, retention: None, limit: 7, unit: 0.5 };
                            let swept = store.sweep(request).await.expect("a sweep is answered");
                            taken.extend(swept.taken_over.into_iter().map(|t| t.id));
                            if !swept.more {
                                return taken;
                            }
                        }
                    })
                })
            })
            .collect();
        sweepers.into_iter().flat_map(|sweeper| sweeper.join().expect("a sweeper does not panic")).collect()
    });
    taken.sort_unstable();
    let all = taken.len();
    taken.dedup();
    assert_eq!((all, taken.len()), (100, 100));
}

/// Verdicts of callers who are in each other's way: a message may have moved on, but no engine's own trouble shows.
fn no_trouble<T: std::fmt::Debug>(verdicts: Verdicts<T>) {
    for refused in verdicts.into_iter().filter_map(Result::err) {
        let moved_on = matches!(refused.kind(), StoreErrorKind::Conflict | StoreErrorKind::LeaseLost);
        assert!(moved_on, "{refused:?}");
    }
}

/// One of those who contend: every verb that writes, on the same few keys, in an order of its own.
async fn be_in_the_way(store: &dyn Store, number: u32, request: &ClaimRequest) {
    const ROUNDS: u32 = 12;
    const KEYS: u32 = 6;
    let random = SeededRandom::new(u64::from(number) + 77);
    let in_order = |of: &dyn Fn(u32) -> NewMessage| -> Vec<NewMessage> {
        if number.is_multiple_of(2) { (0..KEYS).map(of).collect() } else { (0..KEYS).rev().map(of).collect() }
    };
    for round in 0..ROUNDS {
        let batch = in_order(&|n| message(&format!("m{round}-{n}")));
        let stored = store.enqueue(batch).await.expect("answered");
        let ids: Vec<MessageId> = (stored.iter())
            .map(|verdict| match verdict {
                Ok(Enqueued::New { id } | Enqueued::Existing { id, .. } | Enqueued::Replayed { id, .. }) => *id,
                other => panic!("{other:?}"),
            })
            .collect();
        let request = ClaimRequest { nonce: Nonce::new(&random), ..request.clone() };
        let leases = store.claim(request).await.expect("answered").leases;
        let extend = |lease: &Lease| Extend { id: lease.message.id, token: lease.token, lease: LEASE, alone: false };
        // The leases as they came and the other way round, as the keepalive and the attempts of one process ask.
        no_trouble(
            store.extend(leases.iter().chain(leases.iter().rev()).map(extend).collect()).await.expect("answered"),
        );
        let natural = JournalWrite::Natural {
            reached: reached("note", tidegate_core::effect::EffectPolicy::Natural),
            value: "1".into(),
        };
        let journal = |lease: &Lease| Journal {
            id: lease.message.id,
            token: lease.token,
            before: Vec::new(),
            write: natural.clone(),
        };
        no_trouble(store.journal(leases.iter().map(journal).collect()).await.expect("answered"));
        let cancel = Cancel { ids, release_key: false, act: act("in the way") };
        if round % 3 == number % 3 {
            no_trouble(store.cancel(cancel).await.expect("answered"));
        }
        let settle = |(n, lease): (usize, &Lease)| {
            // What follows has the same keys everywhere: the first one makes it.
            let then = in_order(&|n| NewMessage { queue: queue("next"), ..message(&format!("n{round}-{n}")) });
            let outcome = match n % 3 {
                0 | 1 => completed(),
                _ => Outcome::Released,
            };
            Settle { then, ..settlement(lease, outcome) }
        };
        no_trouble(store.settle(leases.iter().enumerate().map(settle).collect()).await.expect("answered"));
        let sweep = SweepRequest { take_over: true, retention: None, limit: 10, unit: 0.5 };
        store.sweep(sweep).await.expect("answered");
        store.stats().await.expect("answered");
    }
}

/// Callers on several handles who want the same keys, leases and messages in different orders get verdicts about messages;
/// that the store was busy, that transactions waited for each other in a circle or could not be put in an order is the
/// engine's own affair.
pub async fn no_busy_or_serialization_error_reaches_a_caller(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let other = stage.other_handle().await;
    let handles = [stage.store.clone(), other.clone(), stage.store.clone(), other];
    let barrier = Barrier::new(handles.len());
    let request = stage.request(4);
    std::thread::scope(|scope| {
        for (number, store) in handles.iter().enumerate() {
            let (barrier, request) = (&barrier, &request);
            scope.spawn(move || {
                barrier.wait();
                let number = u32::try_from(number).expect("there are few of them");
                crate::run(be_in_the_way(&**store, number, request));
            });
        }
    });
    let counted = recount(&*stage.store, stage.now()).await.expect("answered");
    let differences = counted.differences(&stage.stats().await);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[derive(Debug)]
struct Listener(mpsc::Sender<News>);

impl CommitListener for Listener {
    fn committed(&self, news: &News) {
        self.0.send(news.clone()).ok();
    }
}

fn listen(store: &dyn Store) -> (Arc<Listener>, mpsc::Receiver<News>) {
    let (sender, receiver) = mpsc::channel();
    let listener = Arc::new(Listener(sender));
    let weak: Weak<Listener> = Arc::downgrade(&listener);
    store.on_commit(weak);
    (listener, receiver)
}

/// Waits for news that say what is wanted; a commit may be told in a group with others.
fn hear(news: &mpsc::Receiver<News>, wanted: impl Fn(&News) -> bool) {
    loop {
        let news = news.recv_timeout(Duration::from_secs(20)).expect("a commit is told");
        if wanted(&news) {
            return;
        }
    }
}

/// A listener hears which queues got messages and which messages ended, when that is durable.
pub async fn a_listener_hears_of_every_commit_of_its_process(engine: &dyn Engine) {
    let stage = Stage::new(engine).await;
    let (listener, news) = listen(&*stage.store);
    let id = stage.put(message("m")).await;
    hear(&news, |news| news.ready.contains(&queue("work")));
    let lease = stage.take_one().await;
    let then = vec![NewMessage { queue: queue("next"), ..message("n") }];
    stage.settle(Settle { then, ..settlement(&lease, completed()) }).await.expect("the lease is held");
    hear(&news, |news| news.ended.contains(&id) && news.ready.contains(&queue("next")));
    let parked = stage.parked("p").await;
    hear(&news, |news| news.ended.contains(&parked));
    let crashed = stage.started("c").await;
    stage.crash().await;
    hear(&news, |news| news.ready.contains(&crashed.message.queue));
    drop(listener);
    stage.put(message("unheard")).await;
    assert!(news.try_iter().all(|news| !news.ended.contains(&crashed.message.id)));
}
