//! Overload, when nothing goes wrong any more: what comes through is measured, many clients come at once, and when their
//! backlog has drained as much must come through as before, without anybody's help.

use std::sync::Arc;
use std::time::Duration;

use crate::clients;
use crate::sim::Sim;

/// A client comes this often.
const EVERY: Duration = Duration::from_secs(1);
/// How long it takes until as much ends as comes.
const SETTLES: Duration = Duration::from_secs(200);
/// How long what comes through is counted.
const COUNTED: Duration = Duration::from_secs(300);
/// How many clients come at once.
const AT_ONCE: u32 = 400;
/// How long their backlog may take.
const LONGEST: Duration = Duration::from_secs(3600);
/// How much of what came through before must come through afterwards, in hundredths.
const LEAST: u64 = 95;

/// Says whether what came through before an overload comes through after it.
pub(crate) async fn recovers(sim: &Arc<Sim>) -> bool {
    let pace = tokio::spawn(clients::pace(Arc::clone(sim), EVERY));
    tokio::time::sleep(SETTLES).await;
    let before = ends_in(sim, COUNTED).await;
    let usual = waiting(sim);
    clients::burst(sim, AT_ONCE);
    let began = sim.now();
    // Until the last of them has been served: first they have to be accepted.
    tokio::time::sleep(Duration::from_secs(5)).await;
    while waiting(sim) > usual.max(10) * 2 {
        if sim.now() > began + LONGEST {
            pace.abort();
            sim.check(Err(("I19", format!("{LONGEST:?} after an overload {} still wait", waiting(sim)))));
            return false;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    sim.drained(sim.now() - began);
    let after = ends_in(sim, COUNTED).await;
    pace.abort();
    if after * 100 < before * LEAST {
        sim.check(Err(("I19", format!("{after} end in {COUNTED:?} after an overload, before it {before} did"))));
        return false;
    }
    true
}

fn waiting(sim: &Sim) -> u64 {
    let [ready, leased, _] = sim.unfinished();
    ready + leased
}

async fn ends_in(sim: &Sim, time: Duration) -> u64 {
    let before = sim.oracle().ends();
    tokio::time::sleep(time).await;
    sim.oracle().ends() - before
}
