//! What the rules are worth: charges made twice per million keys, by one schedule of faults.
//!
//! Every key is one deposit to be charged once. Its deliveries, the crashes and pauses of its runs and the fate of each of
//! its requests are drawn from the seed, the key and the number of the run or request, so that every protocol meets the
//! same faults. [`Protocol::CheckActStore`] is the case study's loop; in all others the decisions are those of the core
//! itself ([`lifecycle`], [`effect`]), with a store of one message around them. The ledger of the remote is the truth.
//!
//! A model with chosen rates: ratios and zeros mean something, absolute figures do not. Keys do not meet, and workers are
//! never short.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::time::Duration;

use tidegate_core::effect::{
    self, Decision, EffectAnswer, EffectId, EffectKey, EffectPolicy, EffectRow, IntentTimes, JournalFacts, Reached,
};
use tidegate_core::lifecycle::{self, Admission, Counters, Facts, Next, Outcome, ParkReason};
use tidegate_core::message::{Failure, Message, Priority};
use tidegate_core::retry::Policy;
use tidegate_core::{EffectName, IdempotencyKey, Kind, LeaseToken, MessageId, Nonce, QueueName, Tenant, Timestamp};

/// Milliseconds since the hour in which the key came.
type Ms = u64;

const SECOND: Ms = 1000;
const HOUR: Ms = 3600 * SECOND;
const LEASE: Ms = 30 * SECOND;
/// How long a caller waits for the remote.
const TIMEOUT: Ms = 10 * SECOND;
/// A commit, or whatever else a step takes.
const STEP: Ms = 5;
/// After the hour the remote has a bad time of this length, and so in every hour.
const BROWN_OUT: Ms = 300 * SECOND;
const QUARANTINE: Duration = Duration::from_secs(120);
const WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
/// More than any key needs: a loop that does not end is a defect.
const MOST_EVENTS: u32 = 100_000;

/// How often what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Share of keys that are delivered twice within 100 ms.
    pub delivered_twice: f64,
    /// Chance of a crash between two steps of a run.
    pub crash: f64,
    /// Chance of a pause of 1–120 s between two steps of a run.
    pub pause: f64,
    /// Chance that a reply of the remote is lost.
    pub lost: f64,
    /// Chance that a request is up to 90 s late.
    pub late: f64,
    /// In a brown-out: chance that a request is refused, nothing having happened.
    pub refused: f64,
    /// In a brown-out: chance that a reply is lost.
    pub lost_in_brown_out: f64,
}

impl Faults {
    /// Nothing goes wrong; some deliveries are doubled, as every broker does.
    pub const NONE: Self = Self {
        delivered_twice: 0.1,
        crash: 0.0,
        pause: 0.0,
        lost: 0.0,
        late: 0.0,
        refused: 0.0,
        lost_in_brown_out: 0.0,
    };
    /// A bad month.
    pub const USUAL: Self = Self {
        delivered_twice: 0.1,
        crash: 0.002,
        pause: 0.002,
        lost: 0.02,
        late: 0.01,
        refused: 0.7,
        lost_in_brown_out: 0.3,
    };
}

/// How a charge is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Look for a result, act, store the result, acknowledge. A time-out is a failure, and is tried again.
    CheckActStore,
    /// One run at a time by an atomic claim, and no write under a lost lease. A time-out is a failure, and is tried again.
    ClaimAndFence,
    /// And a missing answer is looked up before it is tried again, as soon as the caller has given up.
    LookUpAtOnce,
    /// And the look-up waits until no request can be under way any more.
    LookUpAfterQuarantine,
    /// The remote gets the same key every time, and knows it again.
    Keyed,
    /// A missing answer waits for a person.
    AtMostOnce,
}

impl Protocol {
    /// All of them, from the worst to the best.
    pub const ALL: [Self; 6] = [
        Self::CheckActStore,
        Self::ClaimAndFence,
        Self::LookUpAtOnce,
        Self::LookUpAfterQuarantine,
        Self::Keyed,
        Self::AtMostOnce,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::CheckActStore => "check, act, store (the case study)",
            Self::ClaimAndFence => "atomic claim and fence, nothing else",
            Self::LookUpAtOnce => "`lookup` without quarantine",
            Self::LookUpAfterQuarantine => "`lookup` with quarantine",
            Self::Keyed => "`keyed`",
            Self::AtMostOnce => "`at_most_once`",
        }
    }

    fn effect(self) -> Option<(EffectPolicy, Duration)> {
        match self {
            Self::CheckActStore | Self::ClaimAndFence => None,
            Self::LookUpAtOnce => Some((EffectPolicy::Lookup, Duration::ZERO)),
            Self::LookUpAfterQuarantine => Some((EffectPolicy::Lookup, QUARANTINE)),
            Self::Keyed => Some((EffectPolicy::Keyed { window: WINDOW, or_lookup: false }, QUARANTINE)),
            Self::AtMostOnce => Some((EffectPolicy::AtMostOnce, QUARANTINE)),
        }
    }
}

/// What came of some keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Deposits.
    pub keys: u64,
    /// Charged more than once.
    pub duplicated: u64,
    /// Said to be completed and never charged.
    pub unfounded: u64,
    /// Waiting for a person.
    pub parked: u64,
    /// Given up.
    pub dead: u64,
}

impl Tally {
    fn per_million(self, n: u64) -> u64 {
        (n * 1_000_000 + self.keys / 2) / self.keys.max(1)
    }
}

/// Runs some keys under one protocol.
#[must_use]
pub fn count(protocol: Protocol, faults: &Faults, seed: u64, keys: u64) -> Tally {
    let mut tally = Tally { keys, ..Tally::default() };
    let given = Given::new(protocol);
    for key in 0..keys {
        let chance = Chance { faults, seed, key };
        let (end, charges) = match &given.effect {
            None if protocol == Protocol::CheckActStore => check_act_store(&given, chance),
            Some(_) | None => Key::new(&given, chance).run(),
        };
        tally.duplicated += u64::from(charges > 1);
        tally.unfounded += u64::from(end == End::Completed && charges == 0);
        tally.parked += u64::from(end == End::Parked);
        tally.dead += u64::from(end == End::Dead);
    }
    tally
}

/// The table as the documentation has it.
#[must_use]
pub fn page(seed: u64, keys: u64) -> String {
    let mut page = format!(
        "# Duplicates per million\n\n\
         Keys charged more than once, of a million, by protocol, under one schedule of faults: seed {seed}, {keys} keys a \
         line. Printed by\n\n\
         ```text\n\
         cargo run --release -p tidegate-canaries -- duplicates {keys} {seed}\n\
         ```\n\n\
         The first protocol is the loop of the case study. In all others the decisions are made by the functions of \
         `tidegate-core` that the product uses. *Without faults* one key in ten is delivered twice within 100 ms and \
         nothing else happens. *With faults*, besides: between two steps of a run a crash (0.2 %) or a pause of 1–120 s \
         (0.2 %), the moment between the last check and the send included; a lost reply (2 %); a request up to 90 s late \
         (1 %); for five minutes of every hour 70 % refusals and 30 % lost replies. Leases hold 30 s, callers wait 10 s, \
         quarantine 120 s, 12 attempts.\n\n\
         | Protocol | Duplicated, no faults | Duplicated, with faults | Completed but never charged | Parked for a person | Dead |\n\
         |---|--:|--:|--:|--:|--:|\n"
    );
    for protocol in Protocol::ALL {
        let calm = count(protocol, &Faults::NONE, seed, keys);
        let bad = count(protocol, &Faults::USUAL, seed, keys);
        let [calm_duplicated, duplicated, unfounded, parked, dead] = [
            calm.per_million(calm.duplicated),
            bad.per_million(bad.duplicated),
            bad.per_million(bad.unfounded),
            bad.per_million(bad.parked),
            bad.per_million(bad.dead),
        ];
        writeln!(page, "| {} | {calm_duplicated} | {duplicated} | {unfounded} | {parked} | {dead} |", protocol.words())
            .expect("a text can be written to");
    }
    page.push_str(
        "\nThe rates are chosen, so the ratios and the zeros mean something, and the absolute figures do not. What is left \
         under `lookup` with quarantine are requests that left after the last check of a paused worker and arrived after \
         the quarantine: only a remote that knows keys can close that. `at_most_once` pays with messages that wait for a \
         person.\n",
    );
    page
}

/// Chance that depends on the seed, the key and what it is asked for, and on nothing that happened before.
#[derive(Debug, Clone, Copy)]
struct Chance<'a> {
    faults: &'a Faults,
    seed: u64,
    key: u64,
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
enum Draw {
    Came,
    Twice,
    Crash,
    Pause,
    HowLong,
    There,
    Back,
    Late,
    HowLate,
    Refused,
    Lost,
    Jitter,
}

impl Chance<'_> {
    /// 32 bits.
    fn bits(self, what: Draw, run: u64, step: u64) -> u32 {
        let mut mixed = self.seed;
        for part in [self.key, what as u64, run, step] {
            // The finaliser of SplitMix64.
            mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
        }
        u32::try_from(mixed >> 32).expect("half of it")
    }

    /// Uniform in 0..1.
    fn unit(self, what: Draw, run: u64, step: u64) -> f64 {
        f64::from(self.bits(what, run, step)) / (f64::from(u32::MAX) + 1.0)
    }

    /// Uniform in `from..to`.
    fn ms(self, what: Draw, run: u64, step: u64, from: Ms, to: Ms) -> Ms {
        from + (((to - from) * u64::from(self.bits(what, run, step))) >> 32)
    }

    fn came(self) -> Ms {
        self.ms(Draw::Came, 0, 0, 0, HOUR)
    }

    /// When the second delivery comes, if there is one.
    fn comes_again(self) -> Option<Ms> {
        let twice = self.unit(Draw::Twice, 0, 0) < self.faults.delivered_twice;
        twice.then(|| self.came() + self.ms(Draw::Twice, 1, 0, 0, 100))
    }

    fn boundary(self, run: u64, step: u64) -> Boundary {
        if self.unit(Draw::Crash, run, step) < self.faults.crash {
            Boundary::Crash
        } else if self.unit(Draw::Pause, run, step) < self.faults.pause {
            Boundary::Pause(self.ms(Draw::HowLong, run, step, SECOND, 120 * SECOND))
        } else {
            Boundary::Go
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Boundary {
    Go,
    Crash,
    Pause(Ms),
}

/// What the caller saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Confirmed,
    NotDone,
    Nothing,
}

/// The remote, with its ledger.
#[derive(Debug)]
struct Remote<'a> {
    chance: Chance<'a>,
    knows_keys: bool,
    charges: Vec<(Option<EffectKey>, Ms)>,
    sends: u64,
}

impl<'a> Remote<'a> {
    fn new(chance: Chance<'a>, knows_keys: bool) -> Self {
        Self { chance, knows_keys, charges: Vec::new(), sends: 0 }
    }

    /// A request that leaves now; when the caller knows what, however long it takes to arrive.
    fn send(&mut self, now: Ms, key: Option<EffectKey>) -> (Ms, Seen) {
        let (n, chance, faults) = (self.sends, self.chance, self.chance.faults);
        self.sends += 1;
        let is = |what, share: f64| chance.unit(what, n, 0) < share;
        let mut arrives = now + chance.ms(Draw::There, n, 0, 20, 200);
        if is(Draw::Late, faults.late) {
            arrives += chance.ms(Draw::HowLate, n, 0, 0, 90 * SECOND);
        }
        let brown_out = arrives % HOUR < BROWN_OUT;
        let refused = brown_out && is(Draw::Refused, faults.refused);
        if !refused {
            self.charge(arrives, key);
        }
        let replied = arrives + chance.ms(Draw::Back, n, 0, 20, 200);
        let lost = is(Draw::Lost, if brown_out { faults.lost_in_brown_out } else { faults.lost });
        match (lost || replied >= now + TIMEOUT, refused) {
            (true, _) => (now + TIMEOUT, Seen::Nothing),
            (false, true) => (replied, Seen::NotDone),
            (false, false) => (replied, Seen::Confirmed),
        }
    }

    fn charge(&mut self, at: Ms, key: Option<EffectKey>) {
        match self.charges.iter_mut().find(|(known, _)| self.knows_keys && *known == key) {
            Some((_, first)) => *first = at.min(*first),
            None => self.charges.push((key, at)),
        }
    }

    fn finds(&self, now: Ms) -> bool {
        self.charges.iter().any(|(_, at)| *at <= now)
    }
}

/// How a key ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Dead,
    Parked,
}

/// What is the same for all keys.
struct Given {
    message: Message,
    policy: Policy,
    effect: Option<Reached>,
}

impl Given {
    fn new(protocol: Protocol) -> Self {
        let name = "the names of the model are valid";
        let effect = EffectId { name: EffectName::new("charge").expect(name), item: None };
        let message = Message {
            id: MessageId::from_i64(1),
            tenant: Tenant::default(),
            queue: QueueName::new("deposits").expect(name),
            kind: Kind::new("deposit").expect(name),
            version: 1,
            key: IdempotencyKey::new("deposit").expect(name),
            payload: "{}".into(),
            priority: Priority::default(),
            enqueued_at: wall(0),
            first_due_at: wall(0),
            deadline: None,
            expires_at: wall(72 * HOUR),
            flow: MessageId::from_i64(1),
            parent: None,
            headers: BTreeMap::new(),
        };
        let effect =
            protocol.effect().map(|(policy, quarantine)| Reached { effect, policy, request_hash: [0; 16], quarantine });
        Self { message, policy: Policy { max_attempts: 12, ..Policy::default() }, effect }
    }
}

fn wall(ms: Ms) -> Timestamp {
    Timestamp::EPOCH.after(Duration::from_millis(ms))
}

fn ms(at: Timestamp) -> Ms {
    u64::try_from(at.as_millis()).unwrap_or(0)
}

fn failure(code: &str) -> Failure {
    Failure::new(code, "")
}

/// What happens when.
#[derive(Debug)]
struct Agenda<E> {
    heap: BinaryHeap<Reverse<(Ms, u32)>>,
    events: Vec<Option<E>>,
}

impl<E> Agenda<E> {
    fn new() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new() }
    }

    fn put(&mut self, at: Ms, event: E) {
        let number = u32::try_from(self.events.len()).expect("fewer events than that");
        assert!(number < MOST_EVENTS, "a key that does not come to an end");
        self.events.push(Some(event));
        self.heap.push(Reverse((at, number)));
    }

    fn next(&mut self) -> Option<(Ms, E)> {
        let Reverse((at, number)) = self.heap.pop()?;
        let event = self.events[number as usize].take().expect("each event comes once");
        Some((at, event))
    }
}

/// A step of the case study's loop.
#[derive(Debug, Clone, Copy)]
enum Naive {
    Check,
    Act,
    Store(Seen),
    Acknowledge,
}

/// `if get(key) return; result = execute(); set(key, result); ack()`, with a broker that delivers again what was not
/// acknowledged within a lease, and a retry with backoff for whatever failed.
fn check_act_store(given: &Given, chance: Chance<'_>) -> (End, usize) {
    let mut remote = Remote::new(chance, false);
    let mut agenda = Agenda::new();
    let (mut stored, mut dead, mut runs) = (false, false, 0);
    for at in [Some(chance.came()), chance.comes_again()].into_iter().flatten() {
        agenda.put(at, (Naive::Check, 1_u32, runs));
        runs += 1;
    }
    while let Some((now, (step, attempt, run))) = agenda.next() {
        let (number, next, done) = match step {
            Naive::Check if stored => continue,
            Naive::Check => (0, Naive::Act, now + STEP),
            Naive::Act => {
                let (at, seen) = remote.send(now, None);
                (1, Naive::Store(seen), at)
            }
            Naive::Store(Seen::Confirmed) => {
                stored = true;
                (2, Naive::Acknowledge, now + STEP)
            }
            Naive::Store(Seen::NotDone | Seen::Nothing) => {
                if attempt >= given.policy.max_attempts {
                    dead = true;
                    continue;
                }
                let delay = given.policy.backoff.delay(attempt, None, chance.unit(Draw::Jitter, run, 0));
                let delay = u64::try_from(delay.as_millis()).unwrap_or(Ms::MAX);
                agenda.put(now + delay, (Naive::Check, attempt + 1, runs));
                runs += 1;
                continue;
            }
            Naive::Acknowledge => continue,
        };
        let resumes = match chance.boundary(run, number) {
            Boundary::Go => Some(done),
            Boundary::Crash => None,
            Boundary::Pause(pause) => Some(done + pause),
        };
        if resumes.is_none_or(|at| at > done + LEASE) {
            agenda.put(done + LEASE, (Naive::Check, attempt, runs));
            runs += 1;
        }
        if let Some(at) = resumes {
            agenda.put(at, (next, attempt, run));
        }
    }
    let end = if stored || !dead { End::Completed } else { End::Dead };
    (end, remote.charges.len())
}

/// Where the one message of the store is.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Ready { due: Ms },
    Leased { token: LeaseToken, until: Ms, reconciling: bool },
    Ended(End),
}

/// A run of the handler, as its process sees it.
#[derive(Debug, Clone)]
struct Run {
    number: u64,
    token: LeaseToken,
    journal: Vec<EffectRow>,
    counters: Counters,
    reconciling: bool,
    lapses_at: Ms,
    give_up_at: Ms,
}

/// What a run does next.
#[derive(Debug, Clone)]
enum Step {
    /// Reaches the effect.
    Reach,
    /// The intent is durable: checks the deadlines once more.
    Check,
    /// Checked: the request leaves.
    Leave,
    /// The answer is there.
    Answered(Seen),
    /// Reports.
    Settle(Outcome, Option<EffectAnswer>),
}

#[derive(Debug)]
enum Event {
    Claim,
    Sweep,
    Step(Box<Run>, Step),
}

/// A store of one message, its remote, and its runs.
struct Key<'a> {
    given: &'a Given,
    remote: Remote<'a>,
    chance: Chance<'a>,
    agenda: Agenda<Event>,
    place: Place,
    counters: Counters,
    suspect: bool,
    due: Ms,
    journal: Vec<EffectRow>,
    runs: u64,
}

impl<'a> Key<'a> {
    fn new(given: &'a Given, chance: Chance<'a>) -> Self {
        let knows_keys = matches!(&given.effect, Some(Reached { policy: EffectPolicy::Keyed { .. }, .. }));
        let due = chance.came();
        let mut agenda = Agenda::new();
        // A second delivery finds the key taken: the enqueue is answered, and no second message is there.
        agenda.put(due, Event::Claim);
        Self {
            given,
            remote: Remote::new(chance, knows_keys),
            chance,
            agenda,
            place: Place::Ready { due },
            counters: Counters::default(),
            suspect: false,
            due,
            journal: Vec::new(),
            runs: 0,
        }
    }

    fn run(mut self) -> (End, usize) {
        while let Some((now, event)) = self.agenda.next() {
            match event {
                Event::Claim => self.claim(now),
                Event::Sweep => self.sweep(now),
                Event::Step(run, step) => self.step(now, *run, step),
            }
        }
        match self.place {
            Place::Ended(end) => (end, self.remote.charges.len()),
            Place::Ready { .. } | Place::Leased { .. } => {
                unreachable!("something is always on the agenda of what lives")
            }
        }
    }

    fn facts(&self, now: Ms, reconciling: bool) -> Facts {
        Facts {
            counters: self.counters,
            journal: JournalFacts::of(&self.journal, wall(now)),
            due_at: wall(self.due),
            deadline: None,
            expires_at: self.given.message.expires_at,
            cancel_requested: false,
            reconciling,
            suspect: self.suspect,
            // Nothing else is in its process.
            alone: self.suspect,
        }
    }

    fn claim(&mut self, now: Ms) {
        if !matches!(self.place, Place::Ready { due } if due <= now) {
            return;
        }
        match lifecycle::admit(&self.facts(now, false), wall(now)) {
            Admission::Start { counters, reconciling } => {
                self.counters = counters;
                let nonce = Nonce::from_bytes(u128::from(self.runs).to_le_bytes());
                let token = LeaseToken { claims: counters.claims, nonce };
                self.place = Place::Leased { token, until: now + LEASE, reconciling };
                self.agenda.put(now + LEASE + 1, Event::Sweep);
                let journal = self.journal.clone();
                let (number, lapses_at) = (self.runs, now + LEASE);
                let run = Run { number, token, journal, counters, reconciling, lapses_at, give_up_at: Ms::MAX };
                self.runs += 1;
                self.then(now + STEP, 0, run, Step::Reach);
            }
            Admission::Dead(_) | Admission::Cancelled => self.place = Place::Ended(End::Dead),
        }
    }

    /// The next step of a run, unless its process dies before it. While it lives its lease is extended; while it is
    /// stopped it is not.
    fn then(&mut self, done: Ms, number: u64, mut run: Run, step: Step) {
        let resumes = match self.chance.boundary(run.number, number) {
            Boundary::Crash => return,
            Boundary::Go => done,
            Boundary::Pause(pause) => done + pause,
        };
        if let Place::Leased { token, until, .. } = &mut self.place
            && *token == run.token
        {
            *until = done + LEASE;
            run.lapses_at = done + LEASE;
        }
        self.agenda.put(resumes, Event::Step(Box::new(run), step));
    }

    fn sweep(&mut self, now: Ms) {
        let Place::Leased { until, reconciling, .. } = self.place else { return };
        if now <= until {
            return self.agenda.put(until + 1, Event::Sweep);
        }
        let unit = self.chance.unit(Draw::Jitter, self.runs, 1);
        let facts = self.facts(now, reconciling);
        let after = lifecycle::take_over(&facts, Some(&self.given.policy), wall(now), unit);
        self.move_on(now, &after);
    }

    fn move_on(&mut self, now: Ms, after: &lifecycle::Transition) {
        self.counters = after.counters;
        self.suspect = after.suspect;
        self.place = match after.next {
            Next::Ready { due_at } => {
                self.due = ms(due_at).max(now);
                self.agenda.put(self.due, Event::Claim);
                Place::Ready { due: self.due }
            }
            Next::Completed => Place::Ended(End::Completed),
            Next::Parked(_) => Place::Ended(End::Parked),
            Next::Failed | Next::Dead(_) | Next::Cancelled => Place::Ended(End::Dead),
        };
    }

    /// Whether the store still takes a write under this token.
    fn holds(&self, run: &Run) -> bool {
        matches!(self.place, Place::Leased { token, .. } if token == run.token)
    }

    fn step(&mut self, now: Ms, mut run: Run, step: Step) {
        match step {
            Step::Reach => self.reach(now, run),
            Step::Check if now >= run.lapses_at || now >= run.give_up_at => {
                let answer = Some(EffectAnswer::NotDone);
                let outcome = Outcome::NotDone { failure: failure("not_done"), after: None };
                self.then(now, 3, run, Step::Settle(outcome, answer));
            }
            Step::Check => self.then(now, 2, run, Step::Leave),
            Step::Leave => {
                let key = run.journal.last().map(|row| row.key.clone());
                let (at, seen) = self.remote.send(now, key);
                self.then(at, 3, run, Step::Answered(seen));
            }
            Step::Answered(seen) => self.answered(now, run, seen),
            Step::Settle(outcome, answer) => {
                if !self.holds(&run) {
                    return;
                }
                if let Some(answer) = answer {
                    self.write(now, &mut run, &answer);
                }
                let facts = self.facts(now, run.reconciling);
                let unit = self.chance.unit(Draw::Jitter, run.number, 2);
                let after = lifecycle::settle(&facts, &outcome, &self.given.policy, wall(now), unit);
                self.move_on(now, &after);
            }
        }
    }

    fn reach(&mut self, now: Ms, mut run: Run) {
        let Some(reached) = &self.given.effect else { return self.then(now, 1, run, Step::Check) };
        let round = run.counters.round;
        let settle = |outcome| Step::Settle(outcome, None);
        match effect::reach(&run.journal, reached, round, wall(now)) {
            Decision::Replay(_) | Decision::ReplayRejected { .. } => {
                let result = Outcome::Completed { result: "1".into(), orphans: false };
                self.then(now, 3, run, settle(result));
            }
            Decision::Park(reason) => self.then(now, 3, run, settle(park(reason))),
            Decision::LookUp { not_before } if wall(now) < not_before => {
                let outcome = Outcome::Unknown { failure: failure("quarantine") };
                self.then(now, 3, run, settle(outcome));
            }
            Decision::LookUp { .. } => {
                let found = self.remote.finds(now);
                if !self.holds(&run) {
                    return;
                }
                if found {
                    self.write(now, &mut run, &EffectAnswer::Confirmed { value: "1".into() });
                } else {
                    self.write(now, &mut run, &EffectAnswer::NotFound);
                    if run.reconciling && run.counters.attempt >= self.given.policy.max_attempts {
                        let outcome = Outcome::Exhausted { failure: failure("exhausted") };
                        return self.then(now, 3, run, settle(outcome));
                    }
                }
                // The journal is decided: go round again.
                self.then(now + STEP, 4, run, Step::Reach);
            }
            Decision::Send => {
                let Place::Leased { token, until, .. } = self.place else { return };
                if token != run.token || now > until {
                    return;
                }
                let within = Duration::from_millis(TIMEOUT);
                let times = IntentTimes { send_within: within, reconcile_for: Duration::from_secs(24 * 3600) };
                let message = &self.given.message;
                let intent = effect::intend(message, &self.journal, reached, times, token, round, wall(now));
                let Ok(row) = intent else {
                    let outcome = Outcome::Retryable { failure: failure("journal"), after: None };
                    return self.then(now, 3, run, settle(outcome));
                };
                put(&mut self.journal, row.clone());
                put(&mut run.journal, row);
                run.give_up_at = now + TIMEOUT;
                self.then(now + STEP, 1, run, Step::Check);
            }
        }
    }

    fn answered(&mut self, now: Ms, mut run: Run, seen: Seen) {
        let outcome = match seen {
            Seen::Confirmed => Outcome::Completed { result: "1".into(), orphans: false },
            Seen::NotDone => Outcome::NotDone { failure: failure("refused"), after: None },
            Seen::Nothing if self.given.effect.is_none() => {
                Outcome::Retryable { failure: failure("timeout"), after: None }
            }
            Seen::Nothing => Outcome::Unknown { failure: failure("timeout") },
        };
        let answer = match seen {
            Seen::Confirmed => EffectAnswer::Confirmed { value: "1".into() },
            Seen::NotDone => EffectAnswer::NotDone,
            Seen::Nothing => EffectAnswer::Unknown { why: String::new() },
        };
        let rides_along = match &self.given.effect {
            None => return self.then(now, 5, run, Step::Settle(outcome, None)),
            Some(reached) => matches!(reached.policy, EffectPolicy::Keyed { .. }) || seen != Seen::Confirmed,
        };
        if rides_along {
            return self.then(now, 5, run, Step::Settle(outcome, Some(answer)));
        }
        if self.holds(&run) {
            self.write(now, &mut run, &answer);
            self.then(now + STEP, 5, run, Step::Settle(outcome, None));
        }
    }

    /// An answer to the newest row, as the store takes it: what it refuses changes nothing.
    fn write(&mut self, now: Ms, run: &mut Run, answer: &EffectAnswer) {
        let Some(reached) = &self.given.effect else { return };
        let Some(row) = effect::latest(&self.journal, &reached.effect) else { return };
        if let Ok(state) = effect::answered(row, answer, wall(now)) {
            let decided = EffectRow { state, ..row.clone() };
            put(&mut self.journal, decided.clone());
            put(&mut run.journal, decided);
        }
    }
}

fn park(reason: ParkReason) -> Outcome {
    Outcome::Park { reason, failure: failure(reason.as_str()) }
}

fn put(journal: &mut Vec<EffectRow>, row: EffectRow) {
    match journal.iter_mut().find(|known| known.seq == row.seq) {
        Some(known) => *known = row,
        None => journal.push(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_takes_duplicates_away_and_a_key_that_is_known_again_takes_the_last() {
        let [naive, fenced, at_once, quarantined, keyed, once] =
            Protocol::ALL.map(|protocol| count(protocol, &Faults::USUAL, 1, 10_000));
        assert!(naive.duplicated > 2 * fenced.duplicated, "{naive:?} {fenced:?}");
        assert!(fenced.duplicated > 2 * at_once.duplicated, "{fenced:?} {at_once:?}");
        assert!(at_once.duplicated > 10 * quarantined.duplicated, "{at_once:?} {quarantined:?}");
        assert_eq!((keyed.duplicated, once.duplicated), (0, 0), "{keyed:?} {once:?}");
        assert!(once.parked > 0 && keyed.parked == 0, "{keyed:?} {once:?}");
        for ours in [fenced, at_once, quarantined, keyed, once] {
            assert_eq!(ours.unfounded, 0, "{ours:?}");
        }
    }

    #[test]
    fn without_faults_only_a_loop_without_a_claim_charges_twice() {
        for protocol in Protocol::ALL {
            let tally = count(protocol, &Faults::NONE, 1, 2_000);
            let naive = protocol == Protocol::CheckActStore;
            assert_eq!(tally.duplicated > 0, naive, "{protocol:?}: {tally:?}");
            assert_eq!((tally.dead, tally.parked, tally.unfounded), (0, 0, 0), "{protocol:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_counts() {
        for protocol in Protocol::ALL {
            let once = count(protocol, &Faults::USUAL, 7, 1_000);
            assert_eq!(once, count(protocol, &Faults::USUAL, 7, 1_000));
        }
    }
}
