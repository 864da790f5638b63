//! What a run found: a table for people, one JSON object for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use deposits::gateway::GatewayMode;
use deposits::proof::grouped;
use serde::Serialize;

/// What was done, what came of it, and whether everything that must hold does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every check holds.
    pub pass: bool,
    /// From which the faults and the deposits were made.
    pub seed: u64,
    /// What the services were told that the gateway can do about a repeated call.
    pub gateway: GatewayMode,
    /// The lease of every worker.
    pub lease_ms: u64,
    /// What keeps the store: `sqlite` or `postgres`.
    pub store: &'static str,
    /// How many services shared the store.
    pub services: usize,
    /// How long it all took.
    pub took_ms: u64,
    /// What was done to the services.
    pub faults: FaultCounts,
    /// What was done to the workers of another program that made the captures, and to the server between, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureFaults>,
    /// What became of the deposits.
    pub deposits: Deposits,
    /// What the gateway's ledger and the wallet's books say.
    pub effects: Effects,
    /// How soon the messages of a killed worker were free again.
    pub recovery: Recovery,
    /// Everything that must hold.
    pub checks: Vec<Check>,
    /// The schema of the store, if it is on a server.
    #[serde(skip)]
    pub schema: String,
    /// The server was made for the run, so that it could be restarted.
    #[serde(skip)]
    pub server_is_ours: bool,
    /// Where the store, the ledger, the producers' log and the services' own words are.
    pub directory: PathBuf,
}

/// Faults that were carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FaultCounts {
    /// SIGKILLs in all.
    pub kills: u64,
    /// Those of them at a failpoint.
    pub kills_at_failpoints: u64,
    /// SIGSTOPs for longer than the lease, with a SIGCONT after it.
    pub stops: u64,
    /// Those of them at a failpoint.
    pub stops_at_failpoints: u64,
    /// SIGSTOPs that met a service inside its write transaction. On a file it would block every other one, the documented
    /// limit: it was let go at once, and the stop is not counted above. On a server it held the rows it had locked until it
    /// was let go, and the stop is counted above.
    pub stops_inside_transaction: u64,
    /// SIGTERMs that ended a service in good order, with a new one after it.
    pub redeploys: u64,
    /// How often the server ended the connections of a service; 0 for a file, as for all that follows.
    pub terminations: u64,
    /// Those of them between a COMMIT and its answer.
    pub terminations_in_commit: u64,
    /// Immediate restarts of the server; 0 where it is not the run's own, and so is left running.
    pub restarts: u64,
    /// What became of running messages at those.
    pub drains: Drains,
    /// How often each failpoint was armed and reached.
    pub failpoints: BTreeMap<&'static str, PointCount>,
    /// Failpoints that nothing comes to with this gateway.
    pub not_applicable: Vec<&'static str>,
}

/// Faults that hit workers of another program, which made the captures over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaptureFaults {
    /// What started them.
    pub command: String,
    /// How many there were at once.
    pub workers: usize,
    /// SIGKILLs.
    pub kills: u64,
    /// Captures that these workers held when they were killed.
    pub held: u64,
    /// SIGSTOPs for longer than the lease, with a SIGCONT after it.
    pub stops: u64,
    /// SIGTERMs that ended a worker in good order, with a new one after it.
    pub redeploys: u64,
    /// What became of running captures at those, if the workers said so.
    pub drains: Drains,
    /// Faults that hit the server through which they work.
    pub server: ServerFaults,
}

/// Faults that hit `tidegate serve`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerFaults {
    /// SIGKILLs.
    pub kills: u64,
    /// SIGSTOPs for longer than the lease, with a SIGCONT after it.
    pub stops: u64,
    /// As of the services.
    pub stops_inside_transaction: u64,
    /// SIGTERMs that ended it in good order, with a new one after it.
    pub redeploys: u64,
    /// How often its connections to the database were ended; 0 for a file.
    pub terminations: u64,
    /// Those of them between a COMMIT and its answer.
    pub terminations_in_commit: u64,
}

/// What the services said when they had drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drains {
    /// Attempts that ended by themselves.
    pub finished: u64,
    /// Attempts whose messages went back uncounted.
    pub released: u64,
    /// Attempts that did not yield.
    pub abandoned: u64,
}

/// One failpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PointCount {
    /// A service was started to die or to stop there.
    pub armed: u64,
    /// It came there.
    pub reached: u64,
}

/// The producers' side, by the definitions of a total queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deposits {
    /// Different deposits that were sent.
    pub sent: u64,
    /// Accepted while the faults happened, with the acceptance on disk.
    pub accepted: u64,
    /// Sent without an answer in the end, and stored all the same.
    pub recovered: u64,
    /// Accepted, and not stored: must be 0.
    pub lost: u64,
    /// Stored, and never sent: must be 0.
    pub unexpected: u64,
    /// Stored as more than one message: must be 0.
    pub duplicated: u64,
    /// Charged once and credited once.
    pub completed: u64,
    /// Declined, or given back because the account is closed.
    pub failed: u64,
    /// Dead letters when everything had ended.
    pub dead: u64,
    /// Dead letters that were sent again on the way, most of them because their process was killed too often.
    pub redriven: u64,
    /// Parked effects that an operator resolved from the ledger.
    pub resolved: u64,
}

/// The outside world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effects {
    /// Lines of the gateway's ledger.
    pub ledger_entries: u64,
    /// Those of them by which money was taken.
    pub captures: u64,
    /// Authorisations, captures and refunds that happened a second time for one deposit: must be 0.
    pub duplicates: u64,
    /// Debits equal credits, and the wallet holds what the gateway took.
    pub books_balance: bool,
}

/// How soon what a killed worker held was free for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// Messages that were leased to a worker when it was killed.
    pub messages: u64,
    /// Half of them were free within this time.
    pub p50_ms: u64,
    /// 99 of 100.
    pub p99_ms: u64,
    /// All of them.
    pub max_ms: u64,
    /// Half of them ran again, or had ended, within this time.
    pub again_p50_ms: u64,
    /// 99 of 100.
    pub again_p99_ms: u64,
    /// The lease and two seconds.
    pub bound_ms: u64,
    /// Messages that took longer than that.
    pub late: u64,
    /// How long the machine itself stood still in all, as seen by the measurement.
    pub machine_stalled_ms: u64,
    /// How long no service was there that could take anything over, because all were down, stopped or just let go. It is
    /// left out of the times above.
    pub nobody_there_ms: u64,
    /// The longest time with that left in.
    pub max_with_nobody_there_ms: u64,
}

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A word.
    pub name: &'static str,
    /// What must hold.
    pub says: &'static str,
    /// It does.
    pub ok: bool,
    /// How often it does not.
    pub found: u64,
    /// Some of those.
    pub examples: Vec<String>,
}

impl Check {
    /// Holds if nothing was found.
    pub(crate) fn new(name: &'static str, says: &'static str, found: &[String]) -> Self {
        let examples = found.iter().take(10).cloned().collect();
        Self { name, says, ok: found.is_empty(), found: found.len() as u64, examples }
    }
}

impl Report {
    /// Failpoints that were armed and that no service came to.
    pub fn unreached(&self) -> impl Iterator<Item = &'static str> {
        self.faults.failpoints.iter().filter(|(_, count)| count.reached == 0).map(|(name, _)| *name)
    }
}

impl fmt::Display for Report {
    /// The table that people read.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, deposits, effects, recovery, .. } = self;
        let reached = faults.failpoints.values().filter(|count| count.reached > 0).count();
        let count = |out: &mut fmt::Formatter<'_>, name: &str, value: u64, must: &str| {
            writeln!(out, "{}", format!("{name:<52} {:>10}   {must}", grouped(value)).trim_end())
        };
        count(out, "SIGKILL", faults.kills, "")?;
        count(out, "  of these at a failpoint", faults.kills_at_failpoints, "")?;
        writeln!(
            out,
            "{:<52} {:>10}",
            "  failpoints reached, of those armed",
            format!("{reached}/{}", faults.failpoints.len())
        )?;
        count(out, "SIGSTOP for longer than the lease, then SIGCONT", faults.stops, "")?;
        count(out, "  of these at a failpoint", faults.stops_at_failpoints, "")?;
        let inside = match self.store {
            "postgres" => "  of these inside a transaction, with rows locked",
            _ => "  let go: it was inside its write transaction",
        };
        count(out, inside, faults.stops_inside_transaction, "")?;
        count(out, "SIGTERM and a new process", faults.redeploys, "")?;
        if self.store == "postgres" {
            count(out, "connections ended by the server", faults.terminations, "")?;
            count(out, "  of these between COMMIT and its answer", faults.terminations_in_commit, "")?;
            let note = if self.server_is_ours { "" } else { "   (the server is not ours to restart)" };
            count(out, "immediate restarts of the server", faults.restarts, note.trim())?;
        }
        if let Some(capture) = &self.capture {
            let CaptureFaults { workers, kills, held, stops, redeploys, server, .. } = capture;
            writeln!(out, "\ncaptures by {workers} workers over HTTP: {}", capture.command)?;
            count(out, "SIGKILL of a worker", *kills, "")?;
            count(out, "  captures that it held then", *held, "")?;
            count(out, "SIGSTOP of a worker", *stops, "")?;
            count(out, "SIGTERM of a worker and a new one", *redeploys, "")?;
            count(out, "SIGKILL of the server", server.kills, "")?;
            count(out, "SIGSTOP of the server", server.stops, "")?;
            count(out, inside, server.stops_inside_transaction, "")?;
            count(out, "SIGTERM of the server and a new one", server.redeploys, "")?;
            if self.store == "postgres" {
                count(out, "connections of the server ended", server.terminations, "")?;
                count(out, "  of these between COMMIT and its answer", server.terminations_in_commit, "")?;
            }
        }
        writeln!(out)?;
        count(out, "deposits sent", deposits.sent, "")?;
        count(out, "accepted, and known to be so on the producers' disk", deposits.accepted, "")?;
        count(out, "no answer, and stored all the same (recovered)", deposits.recovered, "")?;
        count(out, "accepted and lost", deposits.lost, "<- must be 0")?;
        count(out, "stored and never sent (unexpected)", deposits.unexpected, "<- must be 0")?;
        count(out, "stored more than once (duplicated)", deposits.duplicated, "<- must be 0")?;
        count(out, "captures, by the ledger", effects.captures, "")?;
        count(out, "effects that happened twice, by the ledger", effects.duplicates, "<- must be 0")?;
        count(out, "charged once, credited once", deposits.completed, "")?;
        count(out, "declined, or given back", deposits.failed, "")?;
        count(out, "dead letters sent again by an operator", deposits.redriven, "")?;
        count(out, "parked effects resolved by an operator", deposits.resolved, "")?;
        let balance = if effects.books_balance { "yes" } else { "NO" };
        writeln!(out, "{:<52} {balance:>10}   <- must be yes", "wallet = gateway")?;
        writeln!(out)?;
        count(out, "messages held by a worker when it was killed", recovery.messages, "")?;
        let times = format!("{} / {} / {} ms", recovery.p50_ms, recovery.p99_ms, recovery.max_ms);
        let bound = format!("<- must be {} ms at most", grouped(recovery.bound_ms));
        writeln!(out, "{:<38} {times:>24}   {bound}", "free for another: p50 / p99 / max")?;
        writeln!(out)?;
        for check in &self.checks {
            let verdict = if check.ok { "ok".to_owned() } else { format!("{} FOUND", grouped(check.found)) };
            writeln!(out, "{verdict:>10}  {}", check.says)?;
        }
        Ok(())
    }
}
