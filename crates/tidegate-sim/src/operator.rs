//! Operators: they look at what waits for a person, and act, through a process like anybody else.

use std::sync::Arc;
use std::time::Duration;

use tidegate::Tidegate;
use tidegate_core::effect::open_rows;
use tidegate_core::lifecycle::{Resolution, State};
use tidegate_core::message::Payload;
use tidegate_core::store::{
    Act, Cancel, ChangeQueue, Discard, Edit, NewOperation, Operate, Pace, QueueChange, Redrive, Resolve, Selection,
};
use tidegate_core::{Clock as _, MessageId, QueueName, Tenant};

use crate::plan::Deed;
use crate::sim::Sim;

/// The most messages of one deed, while something goes wrong and when nothing does any more.
const AT_ONCE: (usize, usize) = (50, 500);

fn because() -> Act {
    Act { actor: "operator".to_owned(), reason: "the simulation has it so".to_owned() }
}

/// Does one thing, through whichever process serves.
pub(crate) async fn act(sim: Arc<Sim>, deed: Deed) {
    let serving = sim.nodes.iter().find_map(crate::node::Node::serving);
    let Some((process, tide)) = serving else { return };
    let world = Arc::clone(&sim);
    let doing = async move { carry_out(&world, &tide, deed).await };
    // Within the process: it may die under the operator's hands.
    let (done, end) = tokio::sync::oneshot::channel();
    let whole = process.run(Box::pin(async move {
        doing.await;
        done.send(()).ok();
    }));
    drop(tokio::spawn(whole));
    drop(tokio::time::timeout(Duration::from_secs(120), end).await);
    if let Deed::Pause(ms) | Deed::Limit(ms) = deed {
        tokio::time::sleep(Duration::from_millis(u64::from(ms))).await;
        lift(&sim).await;
    }
}

async fn carry_out(sim: &Arc<Sim>, tide: &Tidegate, deed: Deed) {
    // What an operator is refused is said to him; the oracles look at what happened.
    match deed {
        Deed::Redrive => {
            let redrive =
                Redrive { ids: some(sim, State::Dead), again: false, operation: name(sim, "redrive"), act: because() };
            drop(tide.redrive(redrive.clone()).await);
            // Clicked twice.
            drop(tide.redrive(redrive).await);
        }
        Deed::RedriveAgain => {
            let ids = some(sim, State::Failed).into_iter().take(2).collect();
            drop(tide.redrive(Redrive { ids, again: true, operation: name(sim, "again"), act: because() }).await);
        }
        Deed::Operate => operate(sim, tide).await,
        Deed::Discard => {
            let ids = some(sim, State::Dead).into_iter().take(2).collect();
            drop(tide.store().discard(Discard { ids, act: because() }).await);
        }
        Deed::Edit => {
            let Some(id) = some(sim, State::Dead).first().copied() else { return };
            let Ok(views) = tide.store().inspect(vec![id]).await else { return };
            let Some(view) = views.into_iter().flatten().next() else { return };
            let Ok(mut value) = serde_json::from_str::<serde_json::Value>(&view.message.payload) else { return };
            value["cents"] = serde_json::Value::from(1);
            let Ok(payload) = Payload::of(&value) else { return };
            drop(tide.store().edit(Edit { id, payload, act: because() }).await);
        }
        Deed::Cancel { release_key } => {
            let mut ids = some(sim, State::Ready);
            ids.extend(some(sim, State::Leased));
            let ids = sim.chance.pick(&ids).copied().into_iter().collect();
            drop(tide.store().cancel(Cancel { ids, release_key, act: because() }).await);
        }
        Deed::Resolve => resolve_all(sim, tide).await,
        Deed::Pause(_) => {
            if let Some(queue) = queue(sim) {
                drop(tide.pause(&queue, because()).await);
            }
        }
        Deed::Limit(_) => {
            if let Some(queue) = queue(sim) {
                drop(tide.limit(&queue, Some(sim.chance.within(0, 20)), because()).await);
            }
        }
    }
}

fn some(sim: &Sim, state: State) -> Vec<MessageId> {
    let most = if sim.is_calm() { AT_ONCE.1 } else { AT_ONCE.0 };
    // Not always the first ones: there may be some that nobody can deal with yet.
    sim.chance.some(sim.oracle().in_state(state), most)
}

fn name(sim: &Sim, what: &str) -> String {
    format!("{what}-{}", sim.now().as_millis())
}

fn queue(sim: &Sim) -> Option<QueueName> {
    QueueName::new(sim.chance.pick(&["deposit", "credit", "notify", "transfer", "voucher", "chore"])?).ok()
}

async fn operate(sim: &Sim, tide: &Tidegate) {
    let name = name(sim, "operation");
    let begin = NewOperation {
        name: name.clone(),
        selection: Selection::default(),
        again: false,
        pace: Pace { canary: 1, per_second: Some(5), stop_over_percent: Some(50) },
        act: because(),
    };
    if tide.store().operate(Operate::Begin(Box::new(begin))).await.is_err() {
        return;
    }
    for _ in 0..6 {
        drop(tide.store().operate(Operate::Step { name: name.clone() }).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    drop(tide.store().operate(Operate::Cancel { name, act: because() }).await);
}

/// Looks into the remote's books, and says what happened; "it did not" is refused before nothing can arrive any more.
pub(crate) async fn resolve_all(sim: &Arc<Sim>, tide: &Tidegate) {
    for id in some(sim, State::Parked) {
        let rows = sim.model.glance(id, |found| match found {
            Some(found) => open_rows(found.journal).cloned().collect(),
            None => Vec::new(),
        });
        for row in rows {
            let operation = row.effect.name.as_str().to_owned();
            let resolution = match sim.gateway.truth(&operation, &row.key) {
                Some(done) => match serde_json::to_string(&done) {
                    Ok(value) => Resolution::Happened { value: value.into() },
                    Err(_) => continue,
                },
                None => Resolution::DidNotHappen,
            };
            let denied = resolution == Resolution::DidNotHappen;
            if denied && sim.clock.now() < row.quarantined_until() {
                // It may still arrive, and he can see that.
                continue;
            }
            let resolve = Resolve { id, effect: row.effect.clone(), resolution, act: because() };
            if denied {
                // Before the act: its reply may be lost, and the message runs at once.
                sim.gateway.may_be_forgiven(&operation, &row.key);
            }
            drop(tide.resolve(resolve).await);
        }
    }
}

/// Every queue takes and gives again.
pub(crate) async fn lift(sim: &Arc<Sim>) {
    for _ in 0..20 {
        let serving = sim.nodes.iter().find_map(crate::node::Node::serving);
        if let Some((process, tide)) = serving {
            let (done, end) = tokio::sync::oneshot::channel();
            let lifting = async move {
                let mut good = true;
                for queue in ["deposit", "credit", "notify", "transfer", "voucher", "chore"] {
                    let Ok(queue) = QueueName::new(queue) else { continue };
                    for change in [QueueChange::Resume, QueueChange::Limit(None)] {
                        let (tenant, queue) = (Tenant::default(), queue.clone());
                        let change = ChangeQueue { tenant, queue, change, act: because() };
                        good &= tide.store().pause(change).await.is_ok();
                    }
                }
                done.send(good).ok();
            };
            drop(tokio::spawn(process.run(Box::pin(lifting))));
            if matches!(tokio::time::timeout(Duration::from_secs(60), end).await, Ok(Ok(true))) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// At the end of a run everything that waits for a person is dealt with.
pub(crate) async fn clear(sim: &Arc<Sim>) {
    act(Arc::clone(sim), Deed::Resolve).await;
    act(Arc::clone(sim), Deed::Redrive).await;
}
