//! One run: everything is started, the faults of the plan come at their times, and in the end all must come to rest.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_core::Clock as _;
use tidegate_core::lifecycle::State;
use tidegate_testkit::recount::every_view;
use tidegate_testkit::recount::recount;

use crate::plan::{Fault, Planned};
use crate::settings::{Report, Settings, Violation};
use crate::sim::Sim;
use crate::{clients, node, operator, overload};

/// How long a run may need to come to rest when nothing goes wrong any more.
const REST: Duration = Duration::from_secs(2 * 3600);

/// What a run came to, and what it did last.
pub(crate) struct Ended {
    pub(crate) result: Result<Report, Violation>,
    pub(crate) last: Vec<String>,
}

/// Runs the faults of a plan.
pub(crate) fn run(settings: &Settings, plan: &[Planned]) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the machine");
    runtime.block_on(async {
        let sim = Sim::new(settings.clone());
        live(&sim, plan).await;
        sim.nodes.iter().for_each(node::Node::end);
        let last = sim.trace().last();
        let result = match sim.violation() {
            Some(violation) => Err(violation),
            None => Ok(report(&sim)),
        };
        Ended { result, last }
    })
}

async fn live(sim: &Arc<Sim>, plan: &[Planned]) {
    for number in 0..sim.settings.processes {
        drop(tokio::spawn(node::keep(Arc::clone(sim), number)));
    }
    let clients = tokio::spawn(clients::come(Arc::clone(sim)));
    let faults = async {
        for planned in plan {
            tokio::time::sleep(planned.at.saturating_sub(sim.now())).await;
            apply(sim, planned.fault);
        }
        tokio::time::sleep(sim.settings.span.saturating_sub(sim.now())).await;
        clients.abort();
        come_to_rest(sim).await;
    };
    tokio::select! {
        biased;
        () = sim.violated.notified() => {}
        () = faults => {}
    }
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn apply(sim: &Arc<Sim>, fault: Fault) {
    let now = sim.now();
    let node = |process: u8| &sim.nodes[usize::from(process) % sim.nodes.len()];
    // Those that only wait for their occasion are counted when it comes.
    match fault {
        Fault::Crash { process, steps, down_ms } => node(process).crash(steps, ms(down_ms)),
        Fault::Freeze { process, steps, for_ms } => node(process).freeze(steps, ms(for_ms)),
        Fault::Redeploy { process, version } => node(process).redeploy(version),
        Fault::Call { verb, loss } => sim.spoil(verb, loss),
        Fault::Gateway(mischief) => sim.gateway.spoil(mischief),
        Fault::StoreDown { for_ms } => {
            sim.count(fault.name());
            sim.store_down_until(now + ms(for_ms));
        }
        Fault::GatewayDown { for_ms } => {
            sim.count(fault.name());
            sim.gateway.down_until(now + ms(for_ms));
        }
        Fault::BrownOut { for_ms } => {
            sim.count(fault.name());
            sim.gateway.brown_until(now + ms(for_ms));
        }
        Fault::Jump { by_ms, for_ms } => {
            sim.count(fault.name());
            set_clocks(sim, by_ms);
            let world = Arc::clone(sim);
            drop(tokio::spawn(async move {
                tokio::time::sleep(ms(for_ms)).await;
                set_clocks(&world, 0);
            }));
        }
        Fault::Skew { process, by_ms, for_ms } => {
            sim.count(fault.name());
            node(process).skew(by_ms, sim.clock.is_set_by());
            let world = Arc::clone(sim);
            drop(tokio::spawn(async move {
                tokio::time::sleep(ms(for_ms)).await;
                world.nodes[usize::from(process) % world.nodes.len()].skew(0, world.clock.is_set_by());
            }));
        }
        Fault::Drift { process, ppm, for_ms } => {
            sim.count(fault.name());
            drift(sim, process, ppm);
            let world = Arc::clone(sim);
            drop(tokio::spawn(async move {
                tokio::time::sleep(ms(for_ms)).await;
                drift(&world, process, 0);
            }));
        }
        Fault::Burst { clients } => {
            sim.count(fault.name());
            clients::burst(sim, clients);
        }
        Fault::Operator(deed) => {
            sim.count(fault.name());
            drop(tokio::spawn(operator::act(Arc::clone(sim), deed)));
        }
    }
}

fn set_clocks(sim: &Sim, by_ms: i64) {
    sim.clocks_are_set(by_ms == 0);
    sim.clock.set_by(by_ms);
    sim.nodes.iter().for_each(|node| node.clocks_set(by_ms));
    // Somebody looks at the clock before anybody acts by it, as every commit of a busy store does.
    drop(crate::at_once(tidegate_core::Store::stats(&*sim.model)));
}

/// A clock drifts, or is put right: by less than anybody takes for a jump.
fn drift(sim: &Sim, process: u8, ppm: i64) {
    match sim.nodes.get(usize::from(process)) {
        Some(node) => node.drift(ppm),
        None => {
            // What it gained or lost is put right at once; leases that were given before cannot be timed by it.
            sim.clock.drift(ppm);
            if sim.clock.is_set_by() == 0 {
                sim.clocks_are_set(true);
            }
        }
    }
}

/// Nothing goes wrong any more, and people deal with what waits for them: everything must end.
async fn come_to_rest(sim: &Arc<Sim>) {
    sim.calm.store(true, Ordering::Relaxed);
    sim.connect();
    sim.gateway.calm();
    set_clocks(sim, 0);
    (0..=sim.settings.processes).for_each(|process| drift(sim, process, 0));
    // Whatever was late arrives, whoever stood still goes on.
    tokio::time::sleep(Duration::from_secs(300)).await;
    operator::lift(sim).await;
    if !rest(sim).await || !overload::recovers(sim).await || !rest(sim).await {
        return;
    }
    sim.compare_stats();
    let held = sim.oracle().is_all_there(sim.now());
    sim.check(held);
    everything_is_listed(sim).await;
}

/// Everything ends; says whether it did in time.
async fn rest(sim: &Arc<Sim>) -> bool {
    let until = sim.now() + REST;
    loop {
        operator::clear(sim).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        if sim.unfinished() == [0; 3] && no_dead_letter_can_be_redriven(sim) {
            return true;
        }
        if sim.now() > until {
            sim.check(Err(("I18", stuck(sim))));
            return false;
        }
    }
}

/// Those whose effect was undone stay where they are.
fn no_dead_letter_can_be_redriven(sim: &Sim) -> bool {
    let oracle = sim.oracle();
    oracle.in_state(State::Dead).iter().all(|id| oracle.known(*id).is_none_or(|known| known.compensated))
}

fn stuck(sim: &Sim) -> String {
    let oracle = sim.oracle();
    let mut text = format!("{REST:?} after the last fault not everything has ended:");
    for state in [State::Ready, State::Leased, State::Parked, State::Dead] {
        for id in oracle.in_state(state).into_iter().take(3) {
            let view = crate::at_once(tidegate_core::Store::inspect(&*sim.model, vec![id]));
            let view = view.ok().and_then(|mut views| views.pop().flatten());
            let view = view.map(|view| {
                let open: Vec<_> = tidegate_core::effect::open_rows(&view.journal).collect();
                format!("due {:?}, {:?}, {open:?}, now {:?}", view.due_at, view.reason, sim.clock.now())
            });
            text.push_str(&format!(" {id} is {state} ({});", view.unwrap_or_default()));
        }
    }
    text
}

/// I10 and I16 at rest: every message is listed, and the counters can be counted again from what is stored.
async fn everything_is_listed(sim: &Arc<Sim>) {
    let store = &*sim.model;
    let Ok(views) = every_view(store).await else {
        return sim.check(Err(("I10", "the messages cannot be listed".to_owned())));
    };
    let (listed, there) = (views.len() as u64, sim.oracle().there());
    if listed != there {
        return sim.check(Err(("I10", format!("{there} messages are there, and {listed} are listed"))));
    }
    if sim.oracle().deleted > 0 {
        return;
    }
    let (recounted, stats) = (recount(store, sim.clock.now()).await, tidegate_core::Store::stats(store).await);
    let differences = match (recounted, stats) {
        (Ok(recounted), Ok(stats)) => recounted.differences(&stats),
        (Err(error), _) | (_, Err(error)) => vec![error.to_string()],
    };
    if let Some(difference) = differences.first() {
        sim.check(Err(("I16", difference.clone())));
    }
}

fn report(sim: &Sim) -> Report {
    let oracle = sim.oracle();
    let trace = sim.trace();
    Report {
        seed: sim.settings.seed,
        simulated_ms: u64::try_from(sim.now().as_millis()).unwrap_or(u64::MAX),
        messages: oracle.stored(),
        ended: State::ALL.iter().map(|state| (state.as_str().to_owned(), oracle.count(*state))).collect(),
        deleted: oracle.deleted,
        effects: sim.gateway.effects(),
        runs: sim.runs.load(Ordering::Relaxed),
        faults: sim.counts().into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        granted: oracle.granted,
        drained_in_ms: u64::try_from(sim.drained_in().as_millis()).unwrap_or(u64::MAX),
        checks: oracle.checks,
        trace: trace.hash(),
        events: trace.events(),
    }
}
