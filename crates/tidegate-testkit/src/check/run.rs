//! Carries a script out on two stores and compares them after each command.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::effect::{EffectAnswer, EffectId, EffectPolicy, EffectRow, IntentTimes, Reached};
use tidegate_core::group::GroupId;
use tidegate_core::lifecycle::{Outcome, ParkReason, Resolution};
use tidegate_core::message::{Due, Failure, NewMessage, Payload, Priority};
use tidegate_core::retry::{Backoff, Policy};
use tidegate_core::store::{
    Act, Cancel, ChangeQueue, ClaimRequest, Claimed, Counted, Discard, Edit, Enqueued, Extend, Filter, Journal,
    JournalWrite, MessageView, NewOperation, Operate, Operation, Pace, QueueChange, QueueSlots, Redrive, Resolve,
    Selection, Settle, Settled, Stats, Stepped, SweepRequest, Swept,
};
use tidegate_core::{
    Clock as _, EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Store, StoreError,
    StoreErrorKind, Tenant, WorkerId,
};

use super::script::{Command, Item};
use crate::model::Model;
use crate::{Engine, ManualClock, SeededRandom};

const SECOND: Duration = Duration::from_secs(1);
/// No whole second, so that no lease lapses at the very moment of a command.
const LEASE: Duration = Duration::from_millis(30_500);

/// Runs a script on the model and on an engine. Where they differ: after which command, and how.
pub(super) async fn run(engine: &dyn Engine, script: &[Command]) -> Option<(usize, String)> {
    let clock = Arc::new(ManualClock::default());
    let place = engine.fresh().await;
    let model: Arc<dyn Store> = Arc::new(Model::new(clock.clone()));
    let first = engine.open(&place, clock.clone()).await.expect("a fresh place can be opened");
    let second = engine.open(&place, clock.clone()).await.expect("a place can be opened twice");
    let mut run = Run {
        clock,
        sides: [
            Side { handles: [model.clone(), model], ids: Vec::new() },
            Side { handles: [first.clone(), second.clone()], ids: Vec::new() },
        ],
        random: SeededRandom::new(0),
        leases: Vec::new(),
        settlements: Vec::new(),
        last_claim: None,
    };
    run.declare("a", 3).await;
    let mut difference = None;
    for (at, command) in script.iter().enumerate() {
        if let Some(seen) = run.step(command).await {
            difference = Some((at, seen));
            break;
        }
    }
    drop(run);
    engine.close(first).await;
    engine.close(second).await;
    difference
}

struct Side {
    handles: [Arc<dyn Store>; 2],
    /// The id of each message on this side, in the order in which they were made.
    ids: Vec<MessageId>,
}

impl Side {
    fn number(&self, id: MessageId) -> String {
        match self.ids.iter().position(|known| *known == id) {
            Some(number) => format!("#{number}"),
            None => "#?".to_owned(),
        }
    }
}

struct Run {
    clock: Arc<ManualClock>,
    sides: [Side; 2],
    random: SeededRandom,
    /// Every lease that was ever given: the message's number and the token.
    leases: Vec<(usize, LeaseToken)>,
    /// Every settlement that was ever tried, by the message's number.
    settlements: Vec<(usize, Settle)>,
    last_claim: Option<ClaimRequest>,
}

fn queue(number: u8) -> QueueName {
    QueueName::new(if number == 0 { "q0" } else { "q1" }).expect("a valid name")
}

fn kind(number: u8) -> Kind {
    Kind::new(if number == 0 { "a" } else { "b" }).expect("a valid name")
}

fn effect(number: u8) -> EffectId {
    EffectId { name: EffectName::new(&format!("e{number}")).expect("a valid name"), item: None }
}

fn act() -> Act {
    Act { actor: "check".into(), reason: "at random".into() }
}

fn failure(code: &str) -> Failure {
    Failure::new(code, format!("{code} of the check"))
}

fn new_message(key: &str, payload: u8) -> NewMessage {
    let payload = Payload::from_json(format!("[\"{key}\",{payload}]")).expect("valid JSON");
    NewMessage::new(queue(0), kind(0), IdempotencyKey::new(key).expect("a valid key"), payload)
}

fn policy(number: u8) -> EffectPolicy {
    match number {
        0 => EffectPolicy::Keyed { window: SECOND * 7200, or_lookup: false },
        1 => EffectPolicy::Keyed { window: SECOND * 60, or_lookup: true },
        2 => EffectPolicy::Lookup,
        3 => EffectPolicy::AtMostOnce,
        _ => EffectPolicy::Keyed { window: SECOND * 60, or_lookup: false },
    }
}

fn answer(number: u8, to: u8) -> EffectAnswer {
    match number {
        0 => EffectAnswer::Confirmed { value: format!("{to}").into() },
        1 => EffectAnswer::Rejected { code: "declined".into(), detail: "no".into() },
        2 => EffectAnswer::NotDone,
        3 => EffectAnswer::Unknown { why: "time-out".into() },
        _ => EffectAnswer::NotFound,
    }
}

fn outcome(number: u8) -> Outcome {
    let after = Some(SECOND * 60);
    match number {
        0 => Outcome::Completed { result: "[1,2]".into(), orphans: false },
        1 => Outcome::Permanent { failure: failure("never"), compensated: false, orphans: false },
        2 => Outcome::Permanent { failure: failure("never"), compensated: true, orphans: false },
        3 => Outcome::Retryable { failure: failure("oops"), after: None },
        4 => Outcome::Retryable { failure: failure("oops"), after },
        5 => Outcome::NotDone { failure: failure("busy"), after: None },
        6 => Outcome::NotDone { failure: failure("busy"), after },
        7 => Outcome::Unknown { failure: failure("timeout") },
        8 => Outcome::Snooze { after: SECOND * 20 },
        9 => Outcome::Park { reason: ParkReason::EffectChanged, failure: failure("changed") },
        10 => Outcome::Exhausted { failure: failure("notfound") },
        11 => Outcome::Undecodable { failure: failure("decode") },
        12 => Outcome::Refused { failure: failure("too_big") },
        13 => Outcome::Released,
        _ => Outcome::Completed { result: "[1,2]".into(), orphans: true },
    }
}

/// An error by its kind: the words are the engine's.
fn said<T>(verdict: Result<T, StoreError>, show: impl Fn(T) -> String) -> String {
    match verdict {
        Ok(value) => show(value),
        Err(error) => format!("refused: {}", error.kind().as_str()),
    }
}

/// The same for a write under a token, where a message that is gone and a lease that is lost are one answer.
fn said_under_token<T>(verdict: Result<T, StoreError>, show: impl Fn(T) -> String) -> String {
    match verdict {
        Err(error) if error.kind() == StoreErrorKind::NotFound => "refused: lease_lost".to_owned(),
        verdict => said(verdict, show),
    }
}

fn first<T>(verdicts: Result<Vec<Result<T, StoreError>>, StoreError>) -> Result<T, StoreError> {
    verdicts?.pop().unwrap_or_else(|| Err(StoreError::invalid("no verdict")))
}

impl Run {
    async fn declare(&self, name: &str, max_attempts: u32) {
        let backoff = Backoff { base: SECOND * 4, cap: SECOND * 100 };
        let policy = Policy { max_attempts, backoff, crash_limit: 2, ..Policy::default() };
        for side in &self.sides {
            let kind = Kind::new(name).expect("a valid name");
            side.handles[0].declare(vec![(kind, policy.clone())]).await.expect("a policy can be declared");
        }
    }

    /// One command on both sides; the difference it shows, if any.
    async fn step(&mut self, command: &Command) -> Option<String> {
        let [model, engine] = self.carry_out(command).await;
        if model != engine {
            return Some(format!("the verdicts differ\n model: {model}\nengine: {engine}"));
        }
        let model = self.look(0).await;
        let engine = self.look(1).await;
        (model.iter().zip(&engine)).find(|(model, engine)| model != engine).map(|(model, engine)| {
            format!(
                "after {command:?} ({model_said})\n{}",
                lines_that_differ(model, engine),
                model_said = "the verdicts agree"
            )
        })
    }

    async fn carry_out(&mut self, command: &Command) -> [String; 2] {
        match command {
            Command::Advance { seconds } => self.clock.advance(SECOND * *seconds),
            Command::Jump { seconds } => return self.jump(*seconds).await,
            Command::Declare { max_attempts } => self.declare("b", u32::from(*max_attempts)).await,
            Command::Enqueue(items) => return self.enqueue(items).await,
            Command::Claim { worker, slots, narrow, other_handle } => {
                let request = self.request(*worker, *slots, *narrow);
                self.last_claim = Some(request.clone());
                return self.claim(&request, usize::from(*other_handle)).await;
            }
            Command::ClaimAgain => {
                // An earlier claim that is empty by now is no claim any more: its nonce would be used for another.
                if let Some(request) = self.last_claim.clone().filter(|request| self.holds(request.nonce)) {
                    return self.claim(&request, 1).await;
                }
            }
            Command::Extend { lease, alone } => {
                if let Some((message, token)) = self.lease(*lease) {
                    return self.extend(message, token, *alone).await;
                }
            }
            Command::Intend { .. } | Command::Answer { .. } | Command::Natural { .. } => {
                return self.journal(command).await;
            }
            Command::Settle { lease, outcome, follow_ups, answering, jitter } => {
                if let Some((message, token)) = self.lease(*lease) {
                    let settle = self.settlement(message, token, *outcome, *follow_ups, *answering, *jitter).await;
                    self.settlements.push((message, settle.clone()));
                    return self.settle(message, &settle).await;
                }
            }
            Command::SettleAgain { settlement } => {
                if let Some((message, settle)) = back(&self.settlements, *settlement).cloned() {
                    return self.settle(message, &settle).await;
                }
            }
            Command::Crash { alone, times } => return self.crash(*alone, *times).await,
            Command::Sweep { take_over, retention_days } => return self.sweep(*take_over, *retention_days).await,
            Command::Begin { .. }
            | Command::Step { .. }
            | Command::CallOff { .. }
            | Command::GoOn { .. }
            | Command::Edit { .. }
            | Command::Discard { .. } => return self.triage(command).await,
            Command::Redrive { .. }
            | Command::Cancel { .. }
            | Command::Resolve { .. }
            | Command::Pause { .. }
            | Command::Limit { .. } => return self.operate(command).await,
        }
        [String::new(), String::new()]
    }

    fn lease(&self, lease: usize) -> Option<(usize, LeaseToken)> {
        back(&self.leases, lease).copied()
    }

    /// The number of a message so far back.
    fn message(&self, message: usize) -> Option<usize> {
        let n = self.sides[0].ids.len();
        (n > 0).then(|| n - 1 - message % n)
    }

    fn holds(&self, nonce: Nonce) -> bool {
        self.leases.iter().any(|(_, token)| token.nonce == nonce)
    }

    // --- enqueue -----------------------------------------------------------------------------------------------------

    async fn enqueue(&mut self, items: &[Item]) -> [String; 2] {
        let now = self.clock.now();
        let batch: Vec<NewMessage> = (items.iter())
            .map(|item| NewMessage {
                queue: queue(item.queue),
                kind: kind(item.kind),
                version: u32::from(item.version),
                priority: Priority::new(item.priority).expect("a valid priority"),
                due: if item.delay == 0 { Due::Now } else { Due::In(SECOND * item.delay) },
                deadline: item.deadline.map(|seconds| now.after(SECOND * seconds)),
                max_age: item.max_age.map(|seconds| SECOND * seconds),
                key_time: item.key_age_days.map(|days| now.before(SECOND * 86_400 * u32::from(days))),
                ..new_message(&format!("k{}", item.key), item.payload)
            })
            .collect();
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter_mut().zip(&mut told) {
            let verdicts = side.handles[0].enqueue(batch.clone()).await.expect("the batch is answered");
            for verdict in verdicts {
                if let Ok(Enqueued::New { id }) = &verdict {
                    side.ids.push(*id);
                }
                *told += &said(verdict, |enqueued| show_enqueued(side, enqueued));
                told.push_str("; ");
            }
        }
        told
    }

    // --- claim -------------------------------------------------------------------------------------------------------

    fn request(&self, worker: u8, slots: [u32; 2], narrow: bool) -> ClaimRequest {
        let kinds = if narrow { vec![(kind(0), 1)] } else { vec![(kind(0), 2), (kind(1), 2)] };
        ClaimRequest {
            worker: WorkerId::new(&format!("w{worker}")).expect("a valid name"),
            tenant: Tenant::default(),
            queues: vec![
                QueueSlots { queue: queue(0), slots: slots[0] },
                QueueSlots { queue: queue(1), slots: slots[1] },
            ],
            kinds,
            nonce: Nonce::new(&self.random),
            lease: LEASE,
        }
    }

    async fn claim(&mut self, request: &ClaimRequest, handle: usize) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        let mut taken = Vec::new();
        let mut announced = Vec::new();
        for (side, told) in self.sides.iter().zip(&mut told) {
            let claimed = side.handles[handle].claim(request.clone()).await.expect("a claim is answered");
            *told = show_claimed(side, request, &claimed);
            announced.push(claimed.next_due);
            taken = (claimed.leases.iter())
                .filter_map(|lease| Some((side.ids.iter().position(|id| *id == lease.message.id)?, lease.token)))
                .collect();
        }
        // What is due already but did not fit may be announced, too, and a repeat need announce nothing again.
        let repeated = self.holds(request.nonce);
        if !repeated && announced.iter().flatten().all(|due_at| *due_at > self.clock.now()) {
            for (told, next_due) in told.iter_mut().zip(announced) {
                write!(told, " next due {next_due:?}").expect("writes");
            }
        }
        for lease in taken {
            if !self.leases.contains(&lease) {
                self.leases.push(lease);
            }
        }
        told
    }

    // --- writes under a token ----------------------------------------------------------------------------------------

    async fn extend(&self, message: usize, token: LeaseToken, alone: bool) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter().zip(&mut told) {
            let extend = Extend { id: side.ids[message], token, lease: LEASE, alone };
            let verdict = first(side.handles[0].extend(vec![extend]).await);
            *told = said_under_token(verdict, |extended| format!("{extended:?}"));
        }
        told
    }

    /// The newest row of an effect as the model has it.
    async fn newest(&self, message: usize, wanted: &EffectId) -> Option<EffectRow> {
        let view = self.view_of_model(message).await?;
        view.journal.into_iter().filter(|row| row.effect == *wanted).max_by_key(|row| row.seq)
    }

    async fn view_of_model(&self, message: usize) -> Option<MessageView> {
        let model = &self.sides[0];
        model.handles[0].inspect(vec![model.ids[message]]).await.expect("answered").remove(0)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only the commands of the journal come here")]
    async fn journal(&self, command: &Command) -> [String; 2] {
        let none = [String::new(), String::new()];
        let (lease, before, write) = match command {
            Command::Intend { lease, effect: number, policy: how, changed, answering } => {
                let Some((message, _)) = self.lease(*lease) else { return none };
                let reached = Reached {
                    effect: effect(*number),
                    policy: policy(*how),
                    request_hash: [u8::from(*changed); 16],
                    quarantine: SECOND * 100,
                };
                let times = IntentTimes { send_within: SECOND * 5, reconcile_for: SECOND * 40_000 };
                let row = self.newest(message, &reached.effect).await;
                let before = (answering.zip(row).into_iter())
                    .map(|(said, row)| JournalWrite::Answer {
                        effect: row.effect,
                        seq: row.seq,
                        answer: answer(said, *number),
                    })
                    .collect();
                (*lease, before, JournalWrite::Intent { reached, times })
            }
            Command::Answer { lease, effect: number, answer: said } => {
                let Some((message, _)) = self.lease(*lease) else { return none };
                let Some(row) = self.newest(message, &effect(*number)).await else { return none };
                let answer = answer(*said, *number);
                (*lease, Vec::new(), JournalWrite::Answer { effect: row.effect, seq: row.seq, answer })
            }
            Command::Natural { lease, effect: number } => {
                let reached = Reached {
                    effect: effect(*number),
                    policy: EffectPolicy::Natural,
                    request_hash: [0; 16],
                    quarantine: SECOND,
                };
                (*lease, Vec::new(), JournalWrite::Natural { reached, value: "true".into() })
            }
            _ => return none,
        };
        let Some((message, token)) = self.lease(lease) else { return none };
        let mut told = none;
        for (side, told) in self.sides.iter().zip(&mut told) {
            let journal = Journal { id: side.ids[message], token, before: before.clone(), write: write.clone() };
            let verdict = first(side.handles[0].journal(vec![journal]).await);
            *told = said_under_token(verdict, |row| format!("{:?}", masked(row)));
        }
        told
    }

    async fn settlement(
        &self,
        message: usize,
        token: LeaseToken,
        number: u8,
        follow_ups: bool,
        answering: Option<(u8, u8)>,
        jitter: u8,
    ) -> Settle {
        let mut journal = Vec::new();
        if let Some((of, said)) = answering
            && let Some(row) = self.newest(message, &effect(of)).await
            // What is refused inside a settlement is the caller's mistake; the kit asks only for what can be granted.
            && row.state.is_open()
        {
            journal.push(if said == 4 {
                JournalWrite::NotSent { effect: row.effect }
            } else {
                JournalWrite::Answer { effect: row.effect, seq: row.seq, answer: answer(said, of) }
            });
        }
        let follow = |role: &str| {
            let key = format!("{role}-{message}");
            if follow_ups { vec![NewMessage { queue: queue(1), ..new_message(&key, 0) }] } else { Vec::new() }
        };
        Settle {
            id: MessageId::from_i64(0),
            token,
            outcome: outcome(number),
            journal,
            then: follow("then"),
            compensate: follow("undo"),
            unit: f64::from(jitter) / 100.0,
        }
    }

    async fn settle(&mut self, message: usize, settle: &Settle) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter_mut().zip(&mut told) {
            let settle = Settle { id: side.ids[message], ..settle.clone() };
            let verdict = first(side.handles[0].settle(vec![settle]).await);
            // One that was known already may be named or not; what counts is what was made.
            let mut made: Vec<MessageId> = verdict.as_ref().map(|s| s.follow_ups.clone()).unwrap_or_default();
            made.retain(|id| !side.ids.contains(id));
            side.ids.extend(&made);
            *told = said_under_token(verdict, |settled| show_settled(side, &settled, &made));
        }
        told
    }

    async fn sweep(&self, take_over: bool, retention_days: Option<u8>) -> [String; 2] {
        let retention = retention_days.map(|days| SECOND * 86_400 * u32::from(days));
        let request = SweepRequest { take_over, retention, limit: 10_000, unit: 0.5 };
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter().zip(&mut told) {
            let swept = side.handles[0].sweep(request.clone()).await.expect("a sweep is answered");
            *told = show_swept(side, &swept);
        }
        told
    }

    /// What is due stays claimable once anybody noticed that it is, and a lease is moved by whoever notices the jump: here
    /// both sides notice at once.
    async fn jump(&self, seconds: i64) -> [String; 2] {
        let before = self.sweep(false, None).await;
        let by = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            self.clock.jump_back(by)
        } else {
            self.clock.jump_forward(by)
        }
        let after = self.sweep(false, None).await;
        [0, 1].map(|side| format!("{}\n{}", before[side], after[side]))
    }

    async fn crash(&mut self, alone: bool, times: u8) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        let mut note = |part: [String; 2]| {
            for (told, part) in told.iter_mut().zip(part) {
                writeln!(told, "{part}").expect("writes");
            }
        };
        for _ in 0..times {
            let known = self.leases.len();
            note(self.claim(&self.request(0, [1, 1], false), 0).await);
            if alone {
                for (message, token) in self.leases[known..].iter().copied() {
                    note(self.extend(message, token, true).await);
                }
            }
            self.clock.advance(SECOND * 31);
            note(self.sweep(true, None).await);
        }
        told
    }

    // --- operators ---------------------------------------------------------------------------------------------------

    #[expect(clippy::wildcard_enum_match_arm, reason = "only the commands of operators come here")]
    async fn operate(&self, command: &Command) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter().zip(&mut told) {
            let store = &side.handles[0];
            *told = match command {
                Command::Redrive { messages, again, operation } => {
                    let ids = messages.iter().filter_map(|back| Some(side.ids[self.message(*back)?])).collect();
                    let operation = format!("op-{operation}");
                    let request = Redrive { ids, again: *again, operation, act: act() };
                    let verdicts = store.redrive(request).await.expect("a redrive is answered");
                    verdicts.into_iter().map(|v| said(v, |id| side.number(id)) + "; ").collect()
                }
                Command::Cancel { message, release_key } => {
                    let Some(message) = self.message(*message) else { continue };
                    let cancel = Cancel { ids: vec![side.ids[message]], release_key: *release_key, act: act() };
                    said(first(store.cancel(cancel).await), |cancellation| format!("{cancellation:?}"))
                }
                Command::Resolve { message, effect: number, happened } => {
                    let Some(message) = self.message(*message) else { continue };
                    let resolution = match happened {
                        Some(value) => Resolution::Happened { value: value.to_string().into() },
                        None => Resolution::DidNotHappen,
                    };
                    let id = side.ids[message];
                    let resolve = Resolve { id, effect: effect(*number), resolution, act: act() };
                    said(store.resolve(resolve).await, |resolved| format!("{resolved:?}"))
                }
                Command::Pause { queue: number, paused } => {
                    let change = if *paused { QueueChange::Pause } else { QueueChange::Resume };
                    change_queue(&**store, *number, change).await
                }
                Command::Limit { queue: number, limit } => {
                    change_queue(&**store, *number, QueueChange::Limit(limit.map(u64::from))).await
                }
                _ => String::new(),
            };
        }
        told
    }

    /// What is done at the desk of the dead letters.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only the commands of the desk come here")]
    async fn triage(&self, command: &Command) -> [String; 2] {
        let mut told = [String::new(), String::new()];
        for (side, told) in self.sides.iter().zip(&mut told) {
            let store = &side.handles[0];
            let ids = |messages: &[usize]| -> Vec<MessageId> {
                messages.iter().filter_map(|back| Some(side.ids[self.message(*back)?])).collect()
            };
            let name = |operation: &u8| format!("many-{operation}");
            let operate = match command {
                Command::Begin { operation, messages, again, queue: of, group, canary, per_second, stop_over } => {
                    let pace = Pace {
                        canary: u32::from(*canary),
                        per_second: per_second.map(u32::from),
                        stop_over_percent: stop_over.map(u32::from),
                    };
                    let group = match group {
                        Some(n) => some_group(&**store, *n).await,
                        None => None,
                    };
                    let selection =
                        Selection { ids: ids(messages), queue: of.map(queue), group, ..Selection::default() };
                    let new = NewOperation { name: name(operation), selection, again: *again, pace, act: act() };
                    Operate::Begin(Box::new(new))
                }
                Command::Step { operation } => Operate::Step { name: name(operation) },
                Command::CallOff { operation } => Operate::Cancel { name: name(operation), act: act() },
                Command::GoOn { operation } => Operate::Resume { name: name(operation), act: act() },
                Command::Edit { message, payload } => {
                    let Some(id) = ids(&[*message]).first().copied() else { continue };
                    let payload = Payload::from_json(format!("[\"edited\",{payload}]")).expect("valid JSON");
                    let verdict = store.edit(Edit { id, payload, act: act() }).await;
                    *told = said(verdict, |edited| format!("{edited:?}"));
                    continue;
                }
                Command::Discard { messages } => {
                    let verdicts = store.discard(Discard { ids: ids(messages), act: act() }).await;
                    let verdicts = verdicts.expect("a discard is answered");
                    *told = verdicts.into_iter().map(|v| said(v, |id| side.number(id)) + "; ").collect();
                    continue;
                }
                _ => continue,
            };
            *told = said(store.operate(operate).await, |stepped| show_stepped(side, &stepped));
        }
        told
    }

    // --- looking -----------------------------------------------------------------------------------------------------

    /// Everything that can be looked at, one text per thing.
    async fn look(&self, number: usize) -> Vec<String> {
        let side = &self.sides[number];
        // The second handle looks: what it sees must not depend on who wrote.
        let store = &side.handles[1];
        let views = store.inspect(side.ids.clone()).await.expect("an inspection is answered");
        let mut texts: Vec<String> = views.iter().map(|view| show_view(side, view.as_ref())).collect();
        let all = store.list(Filter { limit: 10_000, ..Filter::default() }).await.expect("a list is answered");
        texts.push(
            all.iter().fold("list:".to_owned(), |text, s| text + " " + &side.number(s.id) + " " + s.state.as_str()),
        );
        let groups = store.groups(Filter { limit: 100, ..Filter::default() }).await.expect("groups are answered");
        texts.push(groups.iter().fold("groups:".to_owned(), |text, group| {
            let shown = (&group.id, &group.code, &group.effect, &group.pattern, group.count);
            format!("{text}\n{shown:?} {} {} {}", group.first_seen, group.last_seen, side.number(group.sample))
        }));
        let operations = store.operations(None, 100).await.expect("operations are answered");
        texts.push(operations.iter().fold("operations:".to_owned(), |text, o| text + "\n" + &show_operation(o)));
        texts.push(show_stats(&store.stats().await.expect("stats are answered")));
        texts
    }
}

/// One of the groups there are, if there are any.
async fn some_group(store: &dyn Store, n: usize) -> Option<GroupId> {
    let groups = store.groups(Filter { limit: 100, ..Filter::default() }).await.expect("groups are answered");
    back(&groups, n).map(|group| group.id)
}

async fn change_queue(store: &dyn Store, number: u8, change: QueueChange) -> String {
    let request = ChangeQueue { tenant: Tenant::default(), queue: queue(number), change, act: act() };
    said(store.pause(request).await, |()| "changed".to_owned())
}

fn back<T>(list: &[T], n: usize) -> Option<&T> {
    (!list.is_empty()).then(|| &list[list.len() - 1 - n % list.len()])
}

fn lines_that_differ(model: &str, engine: &str) -> String {
    let mut text = String::new();
    let mut engines = engine.lines();
    for line in model.lines() {
        let other = engines.next().unwrap_or_default();
        if line == other {
            continue;
        }
        writeln!(text, " model: {line}\nengine: {other}").expect("a text can be written to");
    }
    for other in engines {
        writeln!(text, "engine: {other}").expect("a text can be written to");
    }
    format!("{}\n{text}", model.lines().next().unwrap_or_default())
}

// --- what is compared ------------------------------------------------------------------------------------------------

fn show_enqueued(side: &Side, enqueued: Enqueued) -> String {
    match enqueued {
        Enqueued::New { id } => format!("new {}", side.number(id)),
        Enqueued::Existing { id, state, ignored } => {
            let mut ignored: Vec<_> = ignored.into_iter().filter(|o| matches!(*o, "priority" | "deadline")).collect();
            ignored.sort_unstable();
            format!("existing {} {state} {ignored:?}", side.number(id))
        }
        Enqueued::Replayed { id, answer } => format!("replayed {} {answer:?}", side.number(id)),
        Enqueued::Stale => "stale".to_owned(),
    }
}

fn show_claimed(side: &Side, request: &ClaimRequest, claimed: &Claimed) -> String {
    let mut text = String::new();
    // The order holds within a queue; between queues it is the engine's.
    for slots in &request.queues {
        for lease in claimed.leases.iter().filter(|lease| lease.message.queue == slots.queue) {
            let mut journal: Vec<_> = lease.journal.iter().cloned().map(masked).collect();
            journal.sort_by(|a, b| (&a.effect, a.seq).cmp(&(&b.effect, b.seq)));
            let (id, token) = (side.number(lease.message.id), lease.token.claims);
            write!(text, "{id} token {token} until {} {:?} ", lease.until, lease.counters).expect("writes");
            write!(text, "{} {} due {} {journal:?}; ", lease.reconciling, lease.suspect, lease.due_at).expect("writes");
        }
    }
    write!(text, "ended {}", claimed.ended).expect("writes");
    text
}

fn show_settled(side: &Side, settled: &Settled, made: &[MessageId]) -> String {
    let follow_ups: Vec<_> = made.iter().map(|id| side.number(*id)).collect();
    let Settled { state, due_at, reason, flow_took, repeated, .. } = settled;
    if *repeated {
        // An operator may have moved the message on since: whether a repeat tells of then or now is the engine's.
        return "repeated".to_owned();
    }
    format!("{state} {due_at:?} {reason:?} {follow_ups:?} {flow_took:?}")
}

fn show_stepped(side: &Side, stepped: &Stepped) -> String {
    let refused: Vec<_> = stepped.refused.iter().map(|(id, error)| (side.number(*id), error.kind().as_str())).collect();
    format!("{} refused {refused:?} waits {:?}", show_operation(&stepped.operation), stepped.waits)
}

fn show_operation(operation: &Operation) -> String {
    let Operation { name, state, selected, redriven, refused, ended_well, ended_badly, pace, again, .. } = operation;
    format!(
        "{name} {} of {selected}: {redriven} redriven, {refused} refused, {ended_well} well, {ended_badly} badly; {pace:?} {again}",
        state.as_str()
    )
}

fn show_swept(side: &Side, swept: &Swept) -> String {
    let mut taken: Vec<String> = (swept.taken_over.iter())
        .map(|t| format!("{} {} from {} on {}", side.number(t.id), t.state, t.worker, t.queue))
        .collect();
    taken.sort();
    format!("{taken:?} deleted {} more {}", swept.deleted, swept.more)
}

/// A row without what a jump of the wall clock moves: how far is the engine's, as long as it is far enough.
fn masked(row: EffectRow) -> EffectRow {
    EffectRow { last_possible_send: row.first_intent_at, ..row }
}

fn show_view(side: &Side, view: Option<&MessageView>) -> String {
    let Some(view) = view else { return "gone".to_owned() };
    let message = &view.message;
    let live = !view.state.is_terminal();
    let mut text = format!("message {} {}\n", side.number(message.id), message.key);
    let mut line = |what: &str, value: &dyn std::fmt::Debug| writeln!(text, "{what}: {value:?}").expect("writes");
    line("state", &view.state);
    line("counters", &view.counters);
    line("due_at", &view.due_at);
    line("reason", &view.reason);
    line("failure", &view.failure);
    line("answer", &view.answer);
    line("ended_at", &view.ended_at);
    line("lease", &view.lease);
    line("cancel_requested", &(live && view.cancel_requested));
    line("suspect", &(live && view.suspect));
    let mut journal: Vec<_> = view.journal.iter().cloned().map(masked).collect();
    journal.sort_by(|a, b| (&a.effect, a.seq).cmp(&(&b.effect, b.seq)));
    for row in &journal {
        line("row", row);
    }
    let mut evidence: Vec<_> = view.evidence.iter().map(|e| (e.effect.clone(), e.value.clone())).collect();
    evidence.sort();
    line("evidence", &evidence);
    for ending in &view.history {
        // A run without a failure of its own has no code, or the word of its outcome for one.
        let code = if ending.code == ending.outcome { "" } else { &ending.code };
        line(
            "history",
            &(ending.at, &ending.outcome, ending.attempt, ending.generation, ending.state, code, ending.due_at),
        );
    }
    line("addressed", &(&message.tenant, &message.queue, &message.kind, message.version, message.priority));
    line("payload", &message.payload);
    line("times", &(message.enqueued_at, message.first_due_at, message.deadline, message.expires_at));
    line("flow", &(side.number(message.flow), message.parent.map(|parent| side.number(parent))));
    text
}

fn show_stats(stats: &Stats) -> String {
    let mut text = format!("stats\nopen effects {}\n", stats.open_effects);
    for q in &stats.queues {
        if q.ready + q.scheduled + q.leased + q.parked + q.dead > 0 || q.paused || q.max_depth.is_some() {
            writeln!(text, "{q:?}").expect("writes");
        }
    }
    let mut lanes = stats.lanes.clone();
    lanes.sort_by(|a, b| (&a.queue, &a.kind, a.version, a.priority).cmp(&(&b.queue, &b.kind, b.version, b.priority)));
    for lane in lanes {
        writeln!(text, "{lane:?}").expect("writes");
    }
    let mut tallies: BTreeMap<(Counted, QueueName, String, String), u64> = BTreeMap::new();
    for tally in stats.tallies.iter().filter(|tally| tally.n > 0) {
        if tally.what == Counted::Failures && tally.code == "lease_expired" {
            // Whether a lost lease is a failure as well is the engine's word; it is counted as a lost lease.
            continue;
        }
        // Under a conflict two kinds may be meant; which one is counted is the engine's.
        let kind = if tally.what == Counted::KeyConflicts { String::new() } else { tally.kind.to_string() };
        let code = if tally.code == "lease_expired" && tally.what == Counted::Retries { "" } else { &tally.code };
        *tallies.entry((tally.what, tally.queue.clone(), kind, code.to_owned())).or_default() += tally.n;
    }
    for (of, n) in tallies {
        writeln!(text, "{of:?} {n}").expect("writes");
    }
    text
}
