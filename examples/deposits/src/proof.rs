//! The proof: what really happened to each deposit, against what its customer was told.
//!
//! It is computed from three things: the gateway's ledger, the load generator's file and the wallet's books; after
//! every process has ended, and never from a store of Tidegate. [`judge`] is pure and counts deposits, not requests: a
//! second click is the same deposit.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate::Address;

use crate::books::Books;
use crate::gateway::{GatewayMode, LedgerEntry, LedgerResult, read_ledger};
use crate::load::{Asked, SideName, read_asked};
use crate::steps::Told;

/// What one side left behind.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The ledger of its gateway.
    pub ledger: PathBuf,
    /// What the load generator asked of it, and what its customers read.
    pub load: PathBuf,
    /// The database with its wallet.
    pub wallet: Address,
}

impl Evidence {
    /// Where a side's files are in a directory of the demo.
    #[must_use]
    pub fn in_directory(directory: &Path, side: SideName) -> Self {
        let (ledger, wallet) = match side {
            SideName::Synchronous => ("synchronous-gateway.ledger", "synchronous-wallet.db"),
            SideName::Tidegate => ("tidegate-gateway.ledger", "tidegate.db"),
        };
        Self {
            ledger: directory.join(ledger),
            load: directory.join(side.file()),
            wallet: directory.join(wallet).into(),
        }
    }
}

/// What became of one side's deposits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Deposits that were requested.
    pub sent: u64,
    /// Of these: the request was answered with yes.
    pub accepted: u64,
    /// Charged once and credited once, both with the amount that was asked for.
    pub completed_once: u64,
    /// Charged, credited or refunded more often than once.
    pub duplicates: u64,
    /// Charged, and the last thing the customer read was that it failed.
    pub charged_but_told_failed: u64,
    /// The customer was told that it failed.
    pub failed: u64,
    /// It could not be done, and waits for a person.
    pub dead: u64,
    /// The gateway's answer is missing, and it waits for a person.
    pub parked: u64,
    /// Debits equal credits, and the wallet holds what the gateway took, set aside what waits for a person.
    pub books_balance: bool,
    /// 99 of 100 requests were answered within this time: by the synchronous side with the end of the deposit, by
    /// Tidegate with its acceptance.
    pub p99_answer_ms: u64,
}

/// The proof of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Everything that must hold for Tidegate's side does.
    pub pass: bool,
    /// The seed of the load.
    pub seed: u64,
    /// What the gateway promised about repeated calls.
    pub gateway: GatewayMode,
    /// The usual code.
    pub synchronous: Side,
    /// The same steps on Tidegate.
    pub tidegate: Side,
    /// How many parked steps an operator resolved during the run, by his own account: shown, and part of no verdict.
    #[serde(skip)]
    pub resolved: u64,
    /// What must hold and does not; empty when it passes.
    #[serde(skip)]
    pub broken: Vec<String>,
}

/// Computes the proof from the files of both sides.
///
/// # Errors
/// A file is missing or damaged: nothing is proven then.
pub fn prove(seed: u64, gateway: GatewayMode, synchronous: &Evidence, tidegate: &Evidence) -> anyhow::Result<Proof> {
    let synchronous = verdict(synchronous).context("nothing is proven about the synchronous side")?;
    let tidegate = verdict(tidegate).context("nothing is proven about Tidegate's side")?;
    let broken = tidegate.broken;
    Ok(Proof {
        pass: broken.is_empty(),
        seed,
        gateway,
        synchronous: synchronous.side,
        tidegate: tidegate.side,
        resolved: 0,
        broken,
    })
}

fn verdict(evidence: &Evidence) -> anyhow::Result<Verdict> {
    let ledger = read_ledger(&evidence.ledger)?;
    let asked = read_asked(&evidence.load)?;
    let books = Books::read(&evidence.wallet)?;
    Ok(judge(&ledger, &asked, &books))
}

/// A side with what must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The counts.
    pub side: Side,
    /// In words, with the names of some deposits.
    pub broken: Vec<String>,
}

/// What the evidence says of one deposit.
#[derive(Default)]
struct Deposit {
    asked_cents: Option<i64>,
    accepted: bool,
    told: Option<(u64, Told)>,
    captures: i64,
    refunds: i64,
    /// What the gateway took and did not give back.
    taken_cents: i64,
    credits: u32,
    credited_cents: i64,
}

impl Deposit {
    fn charged(&self) -> bool {
        self.captures > self.refunds
    }

    fn told(&self, told: Told) -> bool {
        self.told.is_some_and(|(_, last)| last == told)
    }

    fn completed_once(&self) -> bool {
        self.captures - self.refunds == 1
            && self.credits == 1
            && self.asked_cents.is_some_and(|cents| cents == self.taken_cents && cents == self.credited_cents)
    }

    fn duplicated(&self) -> bool {
        self.captures - self.refunds > 1 || self.refunds > self.captures || self.credits > 1
    }

    fn charged_but_told_failed(&self) -> bool {
        self.charged() && self.told(Told::Failed)
    }

    fn waits_for_a_person(&self) -> bool {
        self.told(Told::Dead) || self.told(Told::Parked)
    }

    /// How many of the ends there are it has come to. One, if all is well.
    fn ends(&self) -> usize {
        let completed = self.completed_once() && !self.told(Told::Processing);
        let failed = self.told(Told::Failed);
        [completed, failed, self.told(Told::Dead), self.told(Told::Parked)].into_iter().filter(|end| *end).count()
    }
}

/// Counts one side, and says what must hold and does not.
#[must_use]
pub fn judge(ledger: &[LedgerEntry], asked: &[Asked], books: &Books) -> Verdict {
    let deposits = deposits(ledger, asked, books);
    let count = |of: &dyn Fn(&Deposit) -> bool| deposits.values().filter(|deposit| of(deposit)).count() as u64;
    let taken: i64 = deposits.values().map(|deposit| deposit.taken_cents).sum();
    // What was taken for a deposit that waits for a person is neither lost nor credited; it is set aside on both sides.
    let aside = |cents: &dyn Fn(&Deposit) -> i64| -> i64 {
        deposits.values().filter(|deposit| deposit.waits_for_a_person()).map(cents).sum()
    };
    let taken_for_good = taken - aside(&|deposit| deposit.taken_cents);
    let credited_for_good = books.sums.wallet_total - aside(&|deposit| deposit.credited_cents);
    let side = Side {
        sent: count(&|deposit| deposit.asked_cents.is_some()),
        accepted: count(&|deposit| deposit.accepted),
        completed_once: count(&Deposit::completed_once),
        duplicates: count(&Deposit::duplicated),
        charged_but_told_failed: count(&Deposit::charged_but_told_failed),
        failed: count(&|deposit| deposit.told(Told::Failed)),
        dead: count(&|deposit| deposit.told(Told::Dead)),
        parked: count(&|deposit| deposit.told(Told::Parked)),
        books_balance: books.sums.debits == books.sums.credits && taken_for_good == credited_for_good,
        p99_answer_ms: percentile(asked.iter().map(|asked| asked.answer_ms).collect(), 99),
    };

    let mut broken = Vec::new();
    let mut must_be_empty = |what: &str, of: &dyn Fn(&Deposit) -> bool| {
        let found: Vec<&str> =
            deposits.iter().filter(|(_, deposit)| of(deposit)).map(|(name, _)| name.as_str()).collect();
        if !found.is_empty() {
            broken.push(format!("{} deposits {what}: {}", found.len(), some(&found)));
        }
    };
    must_be_empty("took effect more than once", &Deposit::duplicated);
    must_be_empty("were charged, and their customers told that they failed", &Deposit::charged_but_told_failed);
    must_be_empty("were accepted and are lost: they came to no end", &|deposit| {
        deposit.accepted && deposit.ends() == 0 && !deposit.duplicated()
    });
    must_be_empty("were accepted and came to two ends", &|deposit| deposit.accepted && deposit.ends() > 1);
    must_be_empty("were never accepted and charged all the same", &|deposit| !deposit.accepted && deposit.charged());
    must_be_empty("were credited without being charged", &|deposit| !deposit.charged() && deposit.credits > 0);
    if side.accepted != side.completed_once + side.failed + side.dead + side.parked {
        broken.push(format!(
            "accepted {} is not completed {} + failed {} + dead {} + parked {}",
            side.accepted, side.completed_once, side.failed, side.dead, side.parked
        ));
    }
    if !side.books_balance {
        broken.push(format!(
            "the books do not balance: debits {}, credits {}, the wallet holds {credited_for_good}, the gateway took \
             {taken_for_good}",
            books.sums.debits, books.sums.credits
        ));
    }
    Verdict { side, broken }
}

fn deposits(ledger: &[LedgerEntry], asked: &[Asked], books: &Books) -> BTreeMap<String, Deposit> {
    let mut deposits: BTreeMap<String, Deposit> = BTreeMap::new();
    for asked in asked {
        let deposit = deposits.entry(asked.deposit.clone()).or_default();
        deposit.asked_cents = Some(asked.cents);
        deposit.accepted |= asked.accepted;
        // A second click has a screen of its own; what the customer read last, counts.
        if deposit.told.is_none_or(|(at, _)| asked.told_ms >= at) {
            deposit.told = Some((asked.told_ms, asked.told));
        }
    }
    for entry in ledger {
        let deposit = deposits.entry(entry.deposit.clone()).or_default();
        match entry.result {
            LedgerResult::Captured => {
                deposit.captures += 1;
                deposit.taken_cents += entry.cents;
            }
            LedgerResult::Refunded => {
                deposit.refunds += 1;
                deposit.taken_cents -= entry.cents;
            }
            LedgerResult::Authorised | LedgerResult::Declined | LedgerResult::Receipt => {}
        }
    }
    for (name, credit) in &books.credited {
        let deposit = deposits.entry(name.clone()).or_default();
        deposit.credits = credit.times;
        deposit.credited_cents = credit.cents;
    }
    deposits
}

/// The value that `percent` of a hundred do not exceed; 0 of nothing.
#[must_use]
pub fn percentile(mut values: Vec<u64>, percent: usize) -> u64 {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100);
    rank.checked_sub(1).and_then(|index| values.get(index)).copied().unwrap_or(0)
}

/// The first few names, for a sentence.
fn some(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

/// What a reader of the table would ask.
const NOTES: &str = "
told \"failed\": a declined card, or a closed account, whose charge is given back;
on the synchronous side also whatever had no usable answer in time
accepted or answered: Tidegate accepts when the deposit is on disk and tells
the end later; the synchronous side answers at the end

";

impl fmt::Display for Proof {
    /// The table that people read.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right) = (&self.synchronous, &self.tidegate);
        let counts = |out: &mut fmt::Formatter<'_>, name: &str, of: fn(&Side) -> u64, must: &str| {
            row(out, name, &grouped(of(left)), &grouped(of(right)), must)
        };
        let yes = |yes: bool| if yes { "yes" } else { "NO" };
        row(out, "", "synchronous", "tidegate", "")?;
        counts(out, "deposits requested", |side| side.sent, "")?;
        counts(out, "accepted", |side| side.accepted, "")?;
        counts(out, "charged once, credited once", |side| side.completed_once, "")?;
        counts(out, "took effect more than once", |side| side.duplicates, "<- must be 0")?;
        counts(out, "charged, but told \"failed\"", |side| side.charged_but_told_failed, "<- must be 0")?;
        counts(out, "told \"failed\"", |side| side.failed, "")?;
        counts(out, "dead, waiting for a person", |side| side.dead, "")?;
        counts(out, "parked, waiting for a person", |side| side.parked, "")?;
        row(out, "parked steps an operator resolved", "-", &grouped(self.resolved), "")?;
        row(out, "wallet = gateway", yes(left.books_balance), yes(right.books_balance), "<- must be yes")?;
        row(out, "every deposit accounted for", yes(adds_up(left)), yes(adds_up(right)), "<- must be yes")?;
        let milliseconds = |side: &Side| format!("{} ms", grouped(side.p99_answer_ms));
        // Not the same moment: the synchronous side answers at the end, Tidegate when the deposit is on disk.
        row(out, "99 of 100 accepted or answered within", &milliseconds(left), &milliseconds(right), "")?;
        out.write_str(NOTES)
    }
}

fn adds_up(side: &Side) -> bool {
    side.accepted == side.completed_once + side.failed + side.dead + side.parked
}

fn row(out: &mut fmt::Formatter<'_>, name: &str, left: &str, right: &str, must: &str) -> fmt::Result {
    writeln!(out, "{}", format!("{name:<38} {left:>11} {right:>11}   {must}").trim_end())
}

/// 6480 as `6,480`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::{Credit, Sums};
    use crate::gateway::Operation;
    use crate::trace::Card;

    /// Evidence of ten deposits in which nothing is wrong: dep-8 was declined, dep-9 captured and refunded.
    struct Case {
        ledger: Vec<LedgerEntry>,
        asked: Vec<Asked>,
        books: Books,
    }

    fn entry(deposit: &str, operation: Operation, result: LedgerResult) -> LedgerEntry {
        LedgerEntry {
            seq: 1,
            at_ms: 1,
            operation,
            key: "k".to_owned(),
            deposit: deposit.to_owned(),
            account: "a".to_owned(),
            cents: 100,
            result,
            late_ms: 0,
        }
    }

    fn asked(deposit: &str, told: Told) -> Asked {
        Asked {
            deposit: deposit.to_owned(),
            copy: 1,
            account: "a".to_owned(),
            cents: 100,
            card: Card::Ok,
            sent_ms: 0,
            tries: 1,
            status: Some(202),
            error: None,
            answer_ms: 7,
            accepted: true,
            told,
            told_ms: 50,
        }
    }

    impl Case {
        fn sound() -> Self {
            let mut case = Self { ledger: vec![], asked: vec![], books: Books::default() };
            for number in 0..10 {
                let name = format!("dep-{number}");
                let told = if number < 8 { Told::Completed } else { Told::Failed };
                case.asked.push(asked(&name, told));
                match number {
                    0..=7 => case.settle(&name),
                    8 => case.ledger.push(entry(&name, Operation::Authorise, LedgerResult::Declined)),
                    _ => {
                        case.ledger.push(entry(&name, Operation::Capture, LedgerResult::Captured));
                        case.ledger.push(entry(&name, Operation::Refund, LedgerResult::Refunded));
                    }
                }
            }
            case
        }

        fn settle(&mut self, name: &str) {
            self.ledger.push(entry(name, Operation::Capture, LedgerResult::Captured));
            self.credit(name);
        }

        fn credit(&mut self, name: &str) {
            let credit = self.books.credited.entry(name.to_owned()).or_default();
            *credit = Credit { times: credit.times + 1, cents: credit.cents + 100 };
            let Sums { debits, credits, wallet_total } = &mut self.books.sums;
            (*debits, *credits, *wallet_total) = (*debits + 100, *credits + 100, *wallet_total + 100);
        }

        fn judge(&self) -> Verdict {
            judge(&self.ledger, &self.asked, &self.books)
        }
    }

    #[test]
    fn sound_evidence_passes_and_is_counted() {
        let Verdict { side, broken } = Case::sound().judge();
        assert_eq!(broken, Vec::<String>::new());
        let expected = Side {
            sent: 10,
            accepted: 10,
            completed_once: 8,
            failed: 2,
            books_balance: true,
            p99_answer_ms: 7,
            ..Side::default()
        };
        assert_eq!(side, expected);
    }

    #[test]
    fn each_planted_harm_breaks_the_proof_and_is_named() {
        type Plant = fn(&mut Case);
        let cases: [(&str, Plant, &str); 11] = [
            (
                "a second charge",
                |case| case.ledger.push(entry("dep-3", Operation::Capture, LedgerResult::Captured)),
                "1 deposits took effect more than once: dep-3",
            ),
            ("a second credit", |case| case.credit("dep-3"), "took effect more than once: dep-3"),
            (
                "a second refund",
                |case| case.ledger.push(entry("dep-9", Operation::Refund, LedgerResult::Refunded)),
                "took effect more than once: dep-9",
            ),
            ("told failed", |case| case.asked[3].told = Told::Failed, "told that they failed: dep-3"),
            ("never settled", |case| case.asked[3].told = Told::Processing, "are lost: they came to no end: dep-3"),
            (
                "told completed, never charged",
                |case| case.ledger.retain(|entry| entry.deposit != "dep-3"),
                "are lost: they came to no end: dep-3",
            ),
            (
                "told completed, never credited",
                |case| case.books.credited.retain(|deposit, _| deposit != "dep-3"),
                "are lost: they came to no end: dep-3",
            ),
            ("a refund that never came", |case| drop(case.ledger.pop()), "told that they failed: dep-9"),
            ("an entry with one leg", |case| case.books.sums.debits += 5, "the books do not balance: debits 805"),
            ("money from nowhere", |case| case.books.sums.wallet_total += 5, "the books do not balance"),
            (
                "charged without acceptance",
                |case| (case.asked[3].accepted, case.asked[3].told) = (false, Told::Processing),
                "never accepted and charged all the same: dep-3",
            ),
        ];
        for (what, plant, expected) in cases {
            let mut case = Case::sound();
            plant(&mut case);
            let broken = case.judge().broken;
            assert!(broken.iter().any(|line| line.contains(expected)), "{what}: {broken:?}");
        }
    }

    #[test]
    fn what_waits_for_a_person_is_set_aside_and_adds_up() {
        let mut case = Case::sound();
        case.asked.push(asked("dep-x", Told::Parked));
        case.ledger.push(entry("dep-x", Operation::Capture, LedgerResult::Captured));
        case.asked.push(asked("dep-y", Told::Dead));
        let Verdict { side, broken } = case.judge();
        assert_eq!((side.parked, side.dead, side.books_balance, broken), (1, 1, true, vec![]));
    }

    #[test]
    fn the_last_word_a_customer_read_counts() {
        let mut case = Case::sound();
        case.asked.push(Asked { copy: 2, told: Told::Failed, told_ms: 49, ..asked("dep-3", Told::Failed) });
        assert_eq!(case.judge().broken, Vec::<String>::new());
        case.asked.push(Asked { copy: 2, told: Told::Failed, told_ms: 51, ..asked("dep-3", Told::Failed) });
        assert_eq!(case.judge().side.charged_but_told_failed, 1);
    }

    #[test]
    fn the_json_has_exactly_the_promised_members() {
        let proof = Proof {
            pass: true,
            seed: 42,
            gateway: GatewayMode::Lookup,
            synchronous: Side::default(),
            tidegate: Side::default(),
            resolved: 7,
            broken: vec!["not in it".to_owned()],
        };
        let side = "{\"sent\":0,\"accepted\":0,\"completed_once\":0,\"duplicates\":0,\"charged_but_told_failed\":0,\
                    \"failed\":0,\"dead\":0,\"parked\":0,\"books_balance\":false,\"p99_answer_ms\":0}";
        let expected =
            format!("{{\"pass\":true,\"seed\":42,\"gateway\":\"lookup\",\"synchronous\":{side},\"tidegate\":{side}}}");
        assert_eq!(serde_json::to_string(&proof).unwrap(), expected);
    }

    #[test]
    fn the_table_fits_a_terminal_and_says_what_it_compares() {
        let proof = Proof {
            pass: true,
            seed: 42,
            gateway: GatewayMode::None,
            synchronous: Side { p99_answer_ms: 30_000, ..Side::default() },
            tidegate: Side { books_balance: true, ..Side::default() },
            resolved: 12,
            broken: vec![],
        };
        let table = proof.to_string();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        assert!(line("parked steps an operator resolved").ends_with("-          12"), "{table}");
        assert!(line("99 of 100 accepted or answered within").contains("30,000 ms"), "{table}");
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let cases: [(Vec<u64>, u64); 4] =
            [(vec![], 0), (vec![5], 5), ((1..=100).collect(), 99), ((1..=1000).collect(), 990)];
        for (values, expected) in cases {
            assert_eq!(percentile(values, 99), expected);
        }
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
