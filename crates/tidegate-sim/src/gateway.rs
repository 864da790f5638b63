//! The remote: an account of what really happened, on the far side of a network that delays, loses and repeats.
//!
//! Its ledger is the truth about effects. A request travels by itself: it arrives although its sender died meanwhile. What
//! the remote can do about a repeated request depends on the operation: it recognises keys for a while, it can be asked, or
//! neither.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{EffectAnswer, EffectKey, Found};
use tidegate_core::MessageId;
use tokio::sync::oneshot;

use crate::oracle::Broke;
use crate::plan::{LATEST, Mischief};
use crate::sim::Sim;

/// How long keys are recognised, as the handlers are told.
pub(crate) const WINDOW: Duration = Duration::from_secs(6 * 3600);
/// The window of the operation that cannot be looked up.
pub(crate) const SHORT_WINDOW: Duration = Duration::from_secs(600);
/// How long after the last possible send "not found" is believed.
pub(crate) const QUARANTINE: Duration = Duration::from_secs(120);
/// How long a client of the gateway waits for its reply.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Clocks that are set by less than this are taken for corrected, and quarantines may be so much shorter.
const UNNOTICED: Duration = Duration::from_secs(60);

/// What the remote does about repeated requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    /// It recognises a key for this long.
    Keys(Duration),
    /// It can be asked.
    LookUp,
    /// Neither.
    Neither,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) operation: &'static str,
    pub(crate) ability: Ability,
    pub(crate) key: EffectKey,
    pub(crate) message: MessageId,
}

impl Request {
    fn name(&self) -> (&'static str, String) {
        (self.operation, self.key.as_str().to_owned())
    }
}

/// What the remote made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) reference: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Done(Done),
    Declined,
    Busy(Duration),
    Error,
}

/// What stands in the ledger under one key of one operation.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// Effects made.
    made: Vec<u64>,
    declined: bool,
    /// When the key was first seen, for as long as it is recognised.
    remembered: Option<Duration>,
    /// When the last request of it left its sender, if that may not have been the end of it.
    unanswered: Option<Duration>,
    /// When a look-up last found nothing.
    not_found: Option<Duration>,
}

#[derive(Debug, Default)]
struct Ledger {
    entries: BTreeMap<(&'static str, String), Entry>,
    mischief: VecDeque<Mischief>,
    down_until: Duration,
    brown_until: Duration,
    references: u64,
}

/// The remote.
#[derive(Debug, Default)]
pub(crate) struct Gateway(Mutex<Ledger>);

impl Gateway {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request goes wrong like this.
    pub(crate) fn spoil(&self, mischief: Mischief) {
        self.ledger().mischief.push_back(mischief);
    }

    pub(crate) fn down_until(&self, until: Duration) {
        self.ledger().down_until = until;
    }

    pub(crate) fn brown_until(&self, until: Duration) {
        self.ledger().brown_until = until;
    }

    /// From now on all goes well.
    pub(crate) fn calm(&self) {
        let mut ledger = self.ledger();
        ledger.mischief.clear();
        ledger.down_until = Duration::ZERO;
        ledger.brown_until = Duration::ZERO;
    }

    /// How many effects were made.
    pub(crate) fn effects(&self) -> u64 {
        self.ledger().entries.values().map(|entry| entry.made.len() as u64).sum()
    }

    /// What really happened under a key: for an operator who looks into the remote's books.
    pub(crate) fn truth(&self, operation: &str, key: &EffectKey) -> Option<Done> {
        let ledger = self.ledger();
        let entry = ledger.entries.get(&(known(operation)?, key.as_str().to_owned()))?;
        entry.made.first().map(|reference| Done { reference: *reference })
    }

    /// An operator is about to say that it did not happen: it may be sent again.
    pub(crate) fn may_be_forgiven(&self, operation: &str, key: &EffectKey) {
        let mut ledger = self.ledger();
        let Some(operation) = known(operation) else { return };
        if let Some(entry) = ledger.entries.get_mut(&(operation, key.as_str().to_owned())) {
            entry.unanswered = None;
        }
    }

    /// Whether the policy of the operation allows this request to leave now.
    fn leaves(&self, request: &Request, now: Duration) -> Result<(), Broke> {
        let mut ledger = self.ledger();
        let entry = ledger.entries.entry(request.name()).or_default();
        let (id, operation) = (request.message, request.operation);
        if let Some(before) = entry.unanswered {
            match request.ability {
                Ability::Keys(_) => {}
                Ability::Neither => {
                    return Err((
                        "I7",
                        format!("{operation} of {id} is sent again, first sent {:?} ago", now - before),
                    ));
                }
                Ability::LookUp => {
                    let wait = QUARANTINE.saturating_sub(UNNOTICED);
                    let asked = entry.not_found.filter(|at| *at >= before + wait);
                    if asked.is_none() {
                        let ago = now - before;
                        return Err(("I7", format!("{operation} of {id}, sent {ago:?} ago, is sent again unasked")));
                    }
                }
            }
        }
        entry.unanswered = Some(now);
        Ok(())
    }

    /// The sender learnt that nothing happened.
    fn was_not_done(&self, request: &Request, before: Option<Duration>) {
        let mut ledger = self.ledger();
        if let Some(entry) = ledger.entries.get_mut(&request.name()) {
            entry.unanswered = before;
        }
    }

    fn unanswered(&self, request: &Request) -> Option<Duration> {
        self.ledger().entries.get(&request.name())?.unanswered
    }

    /// A request arrives.
    fn arrives(&self, request: &Request, now: Duration) -> Result<Reply, Broke> {
        let mut ledger = self.ledger();
        let reference = ledger.references + 1;
        let entry = ledger.entries.entry(request.name()).or_default();
        if let Ability::Keys(window) = request.ability {
            // What it promises is what its clients are told; it keeps keys as long as a request may be under way besides.
            let kept = window + Duration::from_millis(u64::from(LATEST)) + UNNOTICED;
            let recognised = entry.remembered.is_some_and(|first| now < first + kept);
            if recognised && let Some(first) = entry.made.first() {
                return Ok(Reply::Done(Done { reference: *first }));
            }
            entry.remembered = entry.remembered.filter(|_| recognised).or(Some(now));
        }
        if is_declined(request) || entry.declined {
            entry.declined = true;
            return Ok(Reply::Declined);
        }
        entry.made.push(reference);
        let times = entry.made.len();
        ledger.references = reference;
        if times > 1 {
            let (operation, id) = (request.operation, request.message);
            return Err(("I7", format!("{operation} of {id} took effect {times} times under one key")));
        }
        Ok(Reply::Done(Done { reference }))
    }

    fn finds(&self, operation: &'static str, key: &EffectKey, now: Duration) -> Found<Done> {
        let mut ledger = self.ledger();
        let entry = ledger.entries.entry((operation, key.as_str().to_owned())).or_default();
        match (entry.made.first(), entry.declined) {
            (Some(reference), _) => Found::Confirmed(Done { reference: *reference }),
            (None, true) => Found::Rejected { code: "declined".to_owned(), detail: "it says so".to_owned() },
            (None, false) => {
                entry.not_found = Some(now);
                Found::NotFound
            }
        }
    }

    fn draw(&self, request: &Request, now: Duration, sim: &Sim) -> Option<Mischief> {
        let mut ledger = self.ledger();
        // An outage is one fault, however many requests it hits.
        if now < ledger.down_until {
            return Some(Mischief::Busy(1_000));
        }
        if now < ledger.brown_until {
            return Some(if sim.chance.one_in(2) { Mischief::ReplyLost } else { Mischief::Lost });
        }
        let drawn = ledger.mischief.pop_front()?;
        // Against a network that repeats requests no remote without keys can do anything.
        let drawn = match (drawn, request.ability) {
            (Mischief::Twice, Ability::LookUp | Ability::Neither) => Mischief::ReplyLost,
            (drawn, _) => drawn,
        };
        sim.count(crate::plan::Fault::Gateway(drawn).name());
        Some(drawn)
    }
}

/// The operation of this name.
fn known(operation: &str) -> Option<&'static str> {
    ["capture", "credit", "mail", "debit", "book", "refund", "voucher"].into_iter().find(|name| *name == operation)
}

/// The card is what it is: the same key is always declined, or never.
fn is_declined(request: &Request) -> bool {
    let first =
        request.key.as_str().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    request.operation == "capture" && first.is_multiple_of(23)
}

/// Asks for an operation.
pub(crate) async fn send(sim: &Arc<Sim>, process: u8, request: Request) -> EffectAnswer<Done> {
    let now = sim.now();
    let before = sim.gateway.unanswered(&request);
    let held = sim.oracle().leaves(request.message, request.operation, request.key.as_str());
    sim.check(held.and_then(|()| sim.gateway.leaves(&request, now)));
    let drawn = sim.gateway.draw(&request, now, sim);
    sim.note(Some(process), "sends", request.message, u64::from(drawn.is_some()));
    let usual = || sim.chance.millis(1, 80);
    let refused = |after: Option<Duration>| {
        sim.gateway.was_not_done(&request, before);
        match after {
            Some(after) => EffectAnswer::not_done_after("busy", after),
            None => EffectAnswer::not_done("refused"),
        }
    };
    let (there, back, arrivals, reply) = match drawn {
        None => (usual(), usual(), 1, None),
        Some(Mischief::Refused) => {
            tokio::time::sleep(usual()).await;
            return refused(None);
        }
        Some(Mischief::Busy(ms)) => (usual(), usual(), 0, Some(Reply::Busy(Duration::from_millis(u64::from(ms))))),
        Some(Mischief::ErrorBefore) => (usual(), usual(), 0, Some(Reply::Error)),
        Some(Mischief::ErrorAfter) => (usual(), usual(), 1, Some(Reply::Error)),
        Some(Mischief::Lost) => (usual(), Duration::MAX, 0, None),
        Some(Mischief::ReplyLost) => (usual(), Duration::MAX, 1, None),
        Some(Mischief::Late(ms)) => (Duration::from_millis(u64::from(ms)), usual(), 1, None),
        Some(Mischief::Slow(ms)) => (usual(), Duration::from_millis(u64::from(ms)), 1, None),
        Some(Mischief::Twice) => (usual(), usual(), 2, None),
    };
    let (reply_to, replied) = oneshot::channel();
    let (world, travelling) = (Arc::clone(sim), request.clone());
    drop(tokio::spawn(async move {
        tokio::time::sleep(there).await;
        let mut said = reply;
        for arrival in 0..arrivals {
            world.note(None, "gateway", travelling.message, arrival);
            match world.gateway.arrives(&travelling, world.now()) {
                Ok(made) => said = said.or(Some(made)),
                Err(broke) => world.check(Err(broke)),
            }
        }
        if back < Duration::MAX {
            tokio::time::sleep(back).await;
            // Its sender may have gone.
            if let Some(said) = said {
                drop(reply_to.send(said));
            }
        } else {
            // Nobody closes the connection either.
            tokio::time::sleep(PATIENCE * 8).await;
        }
    }));
    // Some clients wait longer than their effect may take: then it is the library that gives up.
    let patience = if sim.chance.one_in(2) { PATIENCE } else { PATIENCE * 2 };
    match tokio::time::timeout(patience, replied).await {
        Ok(Ok(Reply::Done(done))) => EffectAnswer::confirmed(done),
        Ok(Ok(Reply::Declined)) => EffectAnswer::rejected("declined", "no funds"),
        Ok(Ok(Reply::Busy(after))) => refused(Some(after)),
        Ok(Ok(Reply::Error)) => EffectAnswer::unknown("500"),
        Ok(Err(_)) => EffectAnswer::unknown("the connection broke off"),
        Err(_) => EffectAnswer::unknown("no reply"),
    }
}

/// Asks whether an operation took effect.
pub(crate) async fn find(sim: &Arc<Sim>, process: u8, operation: &'static str, key: EffectKey) -> Found<Done> {
    tokio::time::sleep(sim.chance.millis(1, 80)).await;
    let now = sim.now();
    let lost = {
        let mut ledger = sim.gateway.ledger();
        now < ledger.down_until
            || now < ledger.brown_until
            || (matches!(ledger.mischief.front(), Some(Mischief::Lost | Mischief::ErrorBefore))
                && ledger.mischief.pop_front().is_some())
    };
    if lost {
        tokio::time::sleep(sim.chance.millis(1, 5_000)).await;
        return Found::Unknown { why: "the look-up was not answered".to_owned() };
    }
    let found = sim.gateway.finds(operation, &key, now);
    sim.note(Some(process), "looks up", MessageId::from_i64(0), u64::from(matches!(found, Found::NotFound)));
    tokio::time::sleep(sim.chance.millis(1, 80)).await;
    found
}
