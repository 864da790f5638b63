//! What really happened: from the gateway's ledger, the wallet's books, the producers' log and the answers the services
//! give in the end. The store is asked last, and only whether it agrees with itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::Context;
use deposits::books::Books;
use deposits::gateway::{LedgerEntry, LedgerResult, Operation, read_ledger};
use deposits::load::Asked;
use deposits::proof::judge;
use deposits::steps::{Authorise, CRASH_LIMIT, Capture, Credit, MAX_ATTEMPTS, Notify, Refund, View};
use deposits::trace::DepositRequest;
use tidegate::engine;
use tidegate::sqlite::Doctor;
use tidegate::store::{Ending, Filter, MessageView, Summary};
use tidegate::{Message, State, SystemClock, Tidegate, Timestamp};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::log::{self, Line};
use crate::producer::{client, until_taken};
use crate::report::{Check, Deposits, Effects};
use crate::stage::Stage;

/// Requests at once while every deposit is asked for again.
const AT_ONCE: usize = 16;
/// Messages in one look.
const CHUNK: u32 = 500;

/// What the producers wrote down.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) requests: BTreeMap<String, DepositRequest>,
    /// The ids that each accepted deposit was given.
    accepted: BTreeMap<String, BTreeSet<String>>,
}

impl Sent {
    pub(crate) fn read(stage: &Stage) -> anyhow::Result<Self> {
        let mut sent = Self::default();
        for line in log::read(&stage.producers)? {
            match line {
                Line::Sent { request } => drop(sent.requests.insert(request.deposit.clone(), request)),
                Line::Accepted { deposit, id } => drop(sent.accepted.entry(deposit).or_default().insert(id)),
            }
        }
        Ok(sent)
    }
}

/// What was found before the producers asked again.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    deposits: Deposits,
    lost: Vec<String>,
    unexpected: Vec<String>,
    duplicated: Vec<String>,
}

/// Compares what the producers know with what is stored, as the checker of a total queue does.
pub(crate) async fn total_queue(tide: &Tidegate, sent: &Sent) -> anyhow::Result<Queue> {
    let mut stored: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for message in summaries(tide).await?.into_iter().filter(|message| message.kind.as_str() == Authorise::KIND) {
        stored.entry(message.key.as_str().to_owned()).or_default().insert(message.id.to_string());
    }
    let mut queue = Queue::default();
    for (deposit, ids) in &sent.accepted {
        let known = stored.get(deposit);
        if known.is_none_or(|known| known.intersection(ids).next().is_none()) {
            queue.lost.push(format!("{deposit}, accepted as {}", listed(ids)));
        }
        if ids.len() > 1 {
            queue.duplicated.push(format!("{deposit}, accepted as {}", listed(ids)));
        }
    }
    for (deposit, ids) in &stored {
        if !sent.requests.contains_key(deposit) {
            queue.unexpected.push(deposit.clone());
        }
        if ids.len() > 1 {
            queue.duplicated.push(format!("{deposit}, stored as {}", listed(ids)));
        }
    }
    let recovered = stored.keys().filter(|deposit| !sent.accepted.contains_key(*deposit)).count();
    queue.deposits = Deposits {
        sent: sent.requests.len() as u64,
        accepted: sent.accepted.len() as u64,
        recovered: recovered as u64,
        lost: queue.lost.len() as u64,
        unexpected: queue.unexpected.len() as u64,
        duplicated: queue.duplicated.len() as u64,
        ..Deposits::default()
    };
    Ok(queue)
}

fn listed(ids: &BTreeSet<String>) -> String {
    ids.iter().map(String::as_str).collect::<Vec<_>>().join(" and ")
}

/// What each deposit's producer was told when asking again.
pub(crate) type Told = BTreeMap<String, (View, Vec<u8>)>;

/// Sends every deposit again, also those that never had an answer, until a service has taken it.
pub(crate) async fn ask_again(stage: &Arc<Stage>, sent: &Sent) -> anyhow::Result<Told> {
    let http = client()?;
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    let mut told = Told::new();
    for request in sent.requests.values() {
        let permit = Arc::clone(&slots).acquire_owned().await.context("the semaphore is never closed")?;
        let (stage, http, request) = (Arc::clone(stage), http.clone(), request.clone());
        asking.spawn(async move {
            let _permit = permit;
            until_taken(&stage, &http, &stage.scale, &request).await.map(|taken| (request.deposit, taken))
        });
        while let Some(ended) = asking.try_join_next() {
            let (deposit, taken) = ended.context("a producer's task died")??;
            told.insert(deposit, taken);
        }
    }
    while let Some(ended) = asking.join_next().await {
        let (deposit, taken) = ended.context("a producer's task died")??;
        told.insert(deposit, taken);
    }
    Ok(told)
}

/// Everything that must hold, when every process has ended.
pub(crate) struct Audit {
    pub(crate) deposits: Deposits,
    pub(crate) effects: Effects,
    pub(crate) checks: Vec<Check>,
}

/// Asks all witnesses. `first` and `second` are what producers were told one after the other.
pub(crate) async fn audit(
    stage: &Stage,
    tide: &Tidegate,
    sent: &Sent,
    queue: Queue,
    first: &Told,
    second: &Told,
) -> anyhow::Result<Audit> {
    let ledger = read_ledger(&stage.ledger)?;
    let books = Books::read(&stage.store)?;
    let asked: Vec<Asked> = sent.requests.values().filter_map(|request| asked(request, second)).collect();
    let verdict = judge(&ledger, &asked, &books);
    let twice = twice(&ledger);
    let effects = Effects {
        ledger_entries: ledger.len() as u64,
        captures: ledger.iter().filter(|entry| entry.result == LedgerResult::Captured).count() as u64,
        duplicates: twice.len() as u64,
        books_balance: verdict.side.books_balance,
    };
    let deposits = Deposits {
        completed: verdict.side.completed_once,
        failed: verdict.side.failed,
        dead: verdict.side.dead,
        ..queue.deposits
    };
    let messages = summaries(tide).await?;
    let checks = vec![
        Check::new("lost", "every accepted deposit is stored", &queue.lost),
        Check::new("unexpected", "nothing is stored that was not sent", &queue.unexpected),
        Check::new("duplicated", "every deposit is one message, under one id for ever", &queue.duplicated),
        Check::new("effects", "no authorisation, capture or refund happened twice, by the gateway's ledger", &twice),
        Check::new(
            "ends",
            "every deposit came to one end, the customer was told it, and the books balance",
            &verdict.broken,
        ),
        Check::new(
            "answers",
            "asked again, every deposit has the same final answer, byte for byte",
            &answers(first, second),
        ),
        Check::new("steps", "what follows from a step is stored if and only if the step ended so", &steps(&messages)),
        Check::new("attempts", "attempts and crashes are within their limits", &attempts(tide, &messages).await?),
        Check::new(
            "doctor",
            "the store agrees with itself: one state a message, counts, keys, journal",
            &doctor(stage).await?,
        ),
    ];
    Ok(Audit { deposits, effects, checks })
}

/// A deposit as the proof of the demo knows it.
fn asked(request: &DepositRequest, told: &Told) -> Option<Asked> {
    let (view, _) = told.get(&request.deposit)?;
    let DepositRequest { deposit, account, cents, card } = request.clone();
    Some(Asked {
        deposit,
        copy: 1,
        account,
        cents,
        card,
        sent_ms: 0,
        tries: 1,
        status: None,
        error: None,
        answer_ms: 0,
        accepted: true,
        told: view.state,
        told_ms: 0,
    })
}

/// Effects of one deposit that the ledger has more than once. A declined card is not an effect, and a receipt is harmless.
fn twice(ledger: &[LedgerEntry]) -> Vec<String> {
    let mut seqs: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for entry in ledger {
        let counts = match (entry.operation, entry.result) {
            (Operation::Receipt, _) | (_, LedgerResult::Declined | LedgerResult::Receipt) => false,
            (
                Operation::Authorise | Operation::Capture | Operation::Refund,
                LedgerResult::Authorised | LedgerResult::Captured | LedgerResult::Refunded,
            ) => true,
        };
        if counts {
            seqs.entry((&entry.deposit, entry.operation.name())).or_default().push(entry.seq);
        }
    }
    let twice = seqs.into_iter().filter(|(_, seqs)| seqs.len() > 1);
    twice
        .map(|((deposit, operation), seqs)| format!("{deposit}: {operation} at lines {seqs:?} of the ledger"))
        .collect()
}

fn answers(first: &Told, second: &Told) -> Vec<String> {
    let differs = |(deposit, (view, body)): (&String, &(View, Vec<u8>))| {
        let Some((later, again)) = second.get(deposit) else { return Some(format!("{deposit} had no second answer")) };
        if !view.state.is_final() {
            return Some(format!("{deposit} is told {:?}, although nothing is left to do", view.state));
        }
        (body != again).then(|| format!("{deposit} was told {:?}, then {:?}", view.state, later.state))
    };
    first.iter().filter_map(differs).collect()
}

/// Messages without their parents, and parents without the message that commits with them.
fn steps(messages: &[Summary]) -> Vec<String> {
    let mut flows: HashMap<_, HashMap<&str, State>> = HashMap::new();
    for message in messages {
        flows.entry(message.flow).or_default().insert(message.kind.as_str(), message.state);
    }
    let rules = [
        (Authorise::KIND, State::Completed, Capture::KIND),
        (Capture::KIND, State::Completed, Credit::KIND),
        (Credit::KIND, State::Completed, Notify::KIND),
        (Credit::KIND, State::Failed, Refund::KIND),
    ];
    let mut found = Vec::new();
    for (flow, kinds) in flows {
        for (parent, state, child) in rules {
            let (ended_so, follows) = (kinds.get(parent) == Some(&state), kinds.contains_key(child));
            if ended_so != follows {
                let parent_state = kinds.get(parent).map_or("missing", |state| state.as_str());
                let there = if follows { "there" } else { "missing" };
                found.push(format!("flow {flow}: {parent} is {parent_state}, and {child} is {there}"));
            }
        }
    }
    found.sort_unstable();
    found
}

async fn attempts(tide: &Tidegate, messages: &[Summary]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for chunk in messages.chunks(CHUNK as usize) {
        let views = tide.store().inspect(chunk.iter().map(|message| message.id).collect()).await?;
        found.extend(views.into_iter().flatten().filter_map(|view| beyond(&view)));
    }
    Ok(found)
}

fn beyond(view: &MessageView) -> Option<String> {
    let counters = view.counters;
    // A person who decides about an effect of an exhausted message grants it one attempt.
    let most = MAX_ATTEMPTS + 1;
    // Where an effect may be open a crash is never the end: the message comes again to find out.
    let first_intent_at = view.journal.iter().map(|row| row.first_intent_at).min();
    let most_crashes = CRASH_LIMIT + crashes_since(first_intent_at, counters.generation, &view.history);
    let is_beyond = counters.attempt > most || counters.crashes > most_crashes || counters.claims < counters.attempt;
    is_beyond.then(|| {
        format!(
            "{}: attempt {} of {most}, {} crashes of {most_crashes}, {} claims",
            view.message.id, counters.attempt, counters.crashes, counters.claims
        )
    })
}

/// The endings of this generation in which a process went down after the first intent was stored.
fn crashes_since(first_intent_at: Option<Timestamp>, generation: u32, history: &[Ending]) -> u32 {
    let Some(first) = first_intent_at else { return 0 };
    let crashed =
        |ending: &&Ending| ending.generation == generation && ending.outcome == "lease_expired" && ending.at >= first;
    u32::try_from(history.iter().filter(crashed).count()).unwrap_or(u32::MAX)
}

async fn doctor(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let checks = engine::doctor(&stage.store, &SystemClock::new(), Doctor::LARGEST_WAL).await?;
    // What is no more than a warning is no disagreement.
    let findings = checks.into_iter().filter(|check| !check.ok).flat_map(|check| {
        check
            .findings
            .into_iter()
            .map(move |finding| format!("{}: {} row {}: {}", check.name, finding.table, finding.row, finding.what))
    });
    Ok(findings.collect())
}

/// Every message.
async fn summaries(tide: &Tidegate) -> anyhow::Result<Vec<Summary>> {
    let mut all: Vec<Summary> = Vec::new();
    loop {
        let after = all.last().map(|summary| summary.id);
        let filter = Filter { after, limit: CHUNK, discarded: true, ..Filter::default() };
        let some = tide.store().list(filter).await?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, deposit: &str, operation: Operation, result: LedgerResult) -> LedgerEntry {
        LedgerEntry {
            seq,
            at_ms: 1,
            operation,
            key: format!("key-{seq}"),
            deposit: deposit.to_owned(),
            account: "a".to_owned(),
            cents: 100,
            result,
            late_ms: 0,
        }
    }

    #[test]
    fn an_effect_that_happened_twice_is_found_under_whatever_key_and_a_declined_one_is_none() {
        let ledger = [
            entry(1, "dep-1", Operation::Capture, LedgerResult::Captured),
            entry(2, "dep-2", Operation::Capture, LedgerResult::Captured),
            entry(3, "dep-1", Operation::Capture, LedgerResult::Captured),
            entry(4, "dep-3", Operation::Authorise, LedgerResult::Declined),
            entry(5, "dep-3", Operation::Authorise, LedgerResult::Declined),
            entry(6, "dep-2", Operation::Receipt, LedgerResult::Receipt),
            entry(7, "dep-2", Operation::Receipt, LedgerResult::Receipt),
        ];
        assert_eq!(twice(&ledger), ["dep-1: capture at lines [1, 3] of the ledger"]);
    }

    /// Torture, seed 1003: a capture was open, its message crashed a fourth time while it ran alone, and completed.
    #[test]
    fn crashes_beyond_the_limit_are_in_order_only_while_an_effect_may_be_open() {
        let at = Timestamp::from_millis;
        let ending = |ms, generation, outcome: &str| Ending {
            at: at(ms),
            attempt: 1,
            generation,
            outcome: outcome.to_owned(),
            state: State::Ready,
            code: String::new(),
            detail: String::new(),
            due_at: Some(at(ms)),
        };
        let history = [
            ending(10, 0, "lease_expired"),
            ending(20, 1, "lease_expired"),
            ending(30, 1, "lease_expired"),
            ending(40, 1, "not_done"),
            ending(50, 1, "lease_expired"),
        ];
        assert_eq!(crashes_since(None, 1, &history), 0);
        assert_eq!(crashes_since(Some(at(25)), 1, &history), 2);
        assert_eq!(crashes_since(Some(at(25)), 0, &history), 0);
    }
}
