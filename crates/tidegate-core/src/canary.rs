//! Rules of the protocol that can be broken on purpose, one at a time, to see whether the tests notice.
//!
//! A suite that has never failed has proven nothing. Each [`Canary`] names one rule; where that rule lives in the code
//! stands one `if canary::is(..)`, and nowhere else. `crates/tidegate-canaries` breaks every rule in turn and demands that
//! something fails within a minute.
//!
//! Without the feature `canaries`, which no shipped program has (`cargo xtask deps` sees to it), [`is`] is `false` at
//! compile time and nothing of this is left. With it, nothing is broken before a test calls `set`, or unless the
//! variable `TIDEGATE_CANARY` names a rule: `TIDEGATE_CANARY=no_fence cargo test -p tidegate-sqlite --all-features` must fail.

use std::fmt;

macro_rules! canaries {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal breaks $rule:literal,)*) => {
        /// One rule, broken. The documentation of a variant says what would go wrong in production.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Canary { $($(#[doc = $doc])* $variant,)* }

        impl Canary {
            /// All of them, in the order of the protocol.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name in tables and on command lines.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The rule it breaks.
            #[must_use]
            pub const fn rule(self) -> &'static str {
                match self { $(Self::$variant => $rule,)* }
            }

            /// What would go wrong.
            #[must_use]
            pub fn harm(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_start(),)* }
            }
        }
    };
}

canaries! {
    // Keys and answers: PROTOCOL §2.
    /// A worker that looks whether there is an answer and starts if there is none: two of them do, at once, and charge twice.
    CheckActStore = "check_act_store" breaks "§1: a claim takes the message out of what can be claimed",
    /// The second operation under a key that is used by mistake is swallowed: a payment that never happens.
    KeyConflictIgnored = "key_conflict_ignored" breaks "§2: another payload under a known key is a conflict",
    /// A producer that repeats itself after the retention starts the work a second time.
    StaleKeyExecuted = "stale_key_executed" breaks "§2: an unknown key older than the retention is stale",
    /// A key is free again although something was sent under it: the next message with it does it a second time.
    KeyReleasedAfterIntent = "key_released_after_intent" breaks "§2: a key is released only if no intent was ever written",
    /// An answer that was long in coming is gone while duplicates of its message are still on their way.
    RetentionFromStart = "retention_from_start" breaks "§2: retention counts from the terminal state",
    /// A dead letter that nobody looked at for a week is gone without a trace.
    DeadLettersExpire = "dead_letters_expire" breaks "§2: dead and parked messages never expire",

    // Effects: PROTOCOL §3.
    /// Each attempt charges under a key of its own, and the gateway cannot tell that it is the same charge.
    AttemptInEffectKey = "attempt_in_effect_key" breaks "§3: an effect key is the same in every attempt",
    /// A redriven message charges again what the gateway would have recognised.
    GenerationInEffectKey = "generation_in_effect_key" breaks "§3: an effect key is the same in every generation",
    /// Two steps of one deposit use one key: the gateway takes the second for the first, and the second never happens.
    QueueNotInEffectKey = "queue_not_in_effect_key" breaks "§3: an effect key depends on the queue",
    /// The process dies after it charged, and nothing on disk says that it may have.
    EffectBeforeIntent = "effect_before_intent" breaks "§3: the intent is durable before the send",
    /// A worker that was paused charges while another one already does.
    IntentAfterLapse = "intent_after_lapse" breaks "§3: a new intent needs a lease that has not lapsed",
    /// A request leaves after the moment at which the store believes that none can leave any more.
    SendAfterDeadline = "send_after_deadline" breaks "§3: the monotonic deadline is checked again before the send",
    /// A charge that timed out is taken for one that never happened, and is made again.
    TimeoutReadAsNotDone = "timeout_read_as_not_done" breaks "§3: no answer in time is unknown",
    /// A refusal of the second request is taken as proof that the first, unanswered one did nothing.
    NotDoneClosesLostSend = "not_done_closes_lost_send" breaks "§3: not done closes a row only if nothing else was sent under it",
    /// "Not found" is believed while the request is still in the network; it lands after the second one.
    LookUpWithoutQuarantine = "look_up_without_quarantine" breaks "§3: no look-up before the last possible send and its quarantine",
    /// Every resend prolongs the belief that the gateway remembers the key; it forgot it a day ago.
    WindowExtended = "window_extended" breaks "§3: the window of a key counts from its first intent",
    /// The key is sent again when the gateway has forgotten it: a second charge.
    WindowIgnored = "window_ignored" breaks "§3: a key is sent again only within its window",
    /// What may have happened, and must not happen twice, is sent again.
    AtMostOnceResent = "at_most_once_resent" breaks "§3: at_most_once is sent at most once unless it was not done",
    /// A new release asks for another amount under the open effect of the old one: both happen.
    ChangedEffectResent = "changed_effect_resent" breaks "§3: an open effect whose request changed parks",
    /// A charge at another gateway begins while that of the first may have happened.
    EffectBesideOpenEffect = "effect_beside_open_effect" breaks "§3: no effect begins while another is open",
    /// A declined card is tried again by itself, attempt after attempt.
    RejectedSentAgain = "rejected_sent_again" breaks "§3: a rejection replays until an operator's redrive",
    /// The message is dead or answered, and the charge that nobody knows about stands.
    TerminalWithOpenEffect = "terminal_with_open_effect" breaks "§3: no message becomes terminal while an effect is open",
    /// The deadline ends a message whose charge may have happened.
    DeadlineDespiteOpenEffect = "deadline_despite_open_effect" breaks "§3: reconciling goes on past the deadline",
    /// A message is called off although its charge may have happened.
    CancelDespiteOpenEffect = "cancel_despite_open_effect" breaks "§4: cancel waits while an effect is open",
    /// "Failed" is the answer to a deposit of which one half was made.
    PermanentAfterEffectFails = "permanent_after_effect_fails" breaks "§3: permanent after a confirmed effect is dead, not failed",
    /// A failed deposit is followed by its next step.
    FollowUpsWithoutCompletion = "follow_ups_without_completion" breaks "§3: follow-ups commit with completed only",
    /// What a paused worker learnt after it lost its lease is gone; a person resolves without it.
    EvidenceDropped = "evidence_dropped" breaks "§3: a late confirmation is kept as evidence",

    // Leases, counters, time: PROTOCOL §4.
    /// A worker that was paused settles the run of the one that took over.
    NoFence = "no_fence" breaks "§4: settle checks the lease token",
    /// A worker that was paused writes answers into the run of the one that took over.
    JournalWithoutFence = "journal_without_fence" breaks "§4: journal checks the lease token",
    /// After a restore, the lease of an old process is as good as the new one with the same count.
    TokenWithoutNonce = "token_without_nonce" breaks "§4: a token is the count of claims and a nonce",
    /// A worker that was paused keeps the lease of its successor alive, or a dead one's.
    ExtendWithoutToken = "extend_without_token" breaks "§4: extend checks the lease token",
    /// A run that ended a moment too late is thrown away although nobody else had begun.
    LeaseLostAtExpiry = "lease_lost_at_expiry" breaks "§4: a lease is lost at takeover, not at expiry",
    /// A claim whose reply was lost leaves its leases to lapse, each a crash and an attempt.
    ClaimRepeatTakesMore = "claim_repeat_takes_more" breaks "§4: a claim repeated under its nonce gives the same leases",
    /// A message that kills its process does so for ever.
    AttemptsCountedAtFailure = "attempts_counted_at_failure" breaks "§4: an attempt is counted before it starts",
    /// An outage of an hour makes dead letters of everything.
    NotDoneCounted = "not_done_counted" breaks "§3: an attempt that ended as not done is not counted",
    /// Whatever ran beside a crashing message is convicted with it.
    InnocentsConvicted = "innocents_convicted" breaks "§4: only a crash while alone counts",
    /// A suspect takes its neighbours with it when it crashes again.
    SuspectInCompany = "suspect_in_company" breaks "§4: a suspect runs alone in its process",
    /// A sweeper that knows no policy makes dead letters of what its worker would have tried twenty times.
    SweepWithoutPolicy = "sweep_without_policy" breaks "§4: without a policy row a message goes back to ready",
    /// After the machine slept, every lease is taken over at once, and every handler has a twin.
    StallSwept = "stall_swept" breaks "§4: a sweeper that was asleep waits one full lease",
    /// A handler that takes longer than a lease has a twin.
    KeepaliveSilent = "keepalive_silent" breaks "§4: leases are extended while handlers run",
    /// A handler that lost its store runs on beside its successor.
    LapseNotWatched = "lapse_not_watched" breaks "§4: a handler is cancelled before its lease can lapse",
    /// A clock that was set ahead ends a quarantine of which nothing has passed.
    ClockJumpBelieved = "clock_jump_believed" breaks "§3: a forward clock jump restarts running quarantines",
    /// "Did not happen" is believed while the request is still under way.
    ResolveInQuarantine = "resolve_in_quarantine" breaks "§4: did-not-happen is refused before the quarantine ends",
    /// An operator puts back what may have happened, and it happens again.
    ParkedRedriven = "parked_redriven" breaks "§4: a parked message is resolved, not redriven",
    /// A redrive that is repeated because its reply was lost puts back what has failed again since.
    RedriveRepeated = "redrive_repeated" breaks "§4: once under one operation id",
    /// A gateway that asks for a minute is hammered.
    RetryAfterIgnored = "retry_after_ignored" breaks "§3: Retry-After is a floor",

    // Commits: PROTOCOL §5.
    /// The producer was told that its message is safe; the disk never heard of it.
    AcknowledgeBeforeCommit = "acknowledge_before_commit" breaks "§5: nothing leaves a group before its commit returned",
    /// After a write that failed the store goes on with what may or may not be on disk.
    FailedCommitIgnored = "failed_commit_ignored" breaks "§5: a failed commit stops the store",
    /// The process dies between the two: the deposit is complete and its next step was never asked for.
    FollowUpsInSecondCommit = "follow_ups_in_second_commit" breaks "§5: result and follow-ups are one commit",
    /// A worker that did not hear that its settlement was stored is told that it lost its lease.
    RepeatedSettlementRefused = "repeated_settlement_refused" breaks "§5: repeating a settlement is harmless",
}

impl Canary {
    /// The canary of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|canary| canary.name() == name)
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether rules can be broken in this build. No shipped program may say yes.
pub const COMPILED: bool = cfg!(feature = "canaries");

/// Whether this rule is broken: always no, and nothing is left of the question.
#[cfg(not(feature = "canaries"))]
#[must_use]
#[inline(always)]
pub const fn is(_: Canary) -> bool {
    false
}

#[cfg(feature = "canaries")]
pub use armed::{is, set};

#[cfg(feature = "canaries")]
mod armed {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Canary;

    /// The variable that breaks a rule in a test program as it stands: its tests need not know of it.
    const VARIABLE: &str = "TIDEGATE_CANARY";
    const NOT_LOOKED_YET: usize = usize::MAX;

    /// Which one is set, counted from 1; 0 is none. One for the process: its threads are one product.
    static SET: AtomicUsize = AtomicUsize::new(NOT_LOOKED_YET);

    /// Whether this rule is broken.
    #[must_use]
    #[inline]
    pub fn is(canary: Canary) -> bool {
        let set = SET.load(Ordering::Relaxed);
        let set = if set == NOT_LOOKED_YET { look() } else { set };
        set == canary as usize + 1
    }

    #[cold]
    fn look() -> usize {
        #[expect(clippy::disallowed_methods, reason = "a test binary has no argument of its own to be told by")]
        let named = std::env::var(VARIABLE).ok();
        set(named.map(|name| Canary::named(&name).unwrap_or_else(|| panic!("{VARIABLE}={name}: no such canary"))));
        SET.load(Ordering::Relaxed)
    }

    /// Breaks one rule in the whole process, or none again. Set before anything is opened, by a process of its own.
    pub fn set(canary: Option<Canary>) {
        SET.store(canary.map_or(0, |canary| canary as usize + 1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_canary_has_a_name_of_its_own_a_rule_and_a_harm() {
        let names: BTreeSet<&str> = Canary::ALL.iter().map(|canary| canary.name()).collect();
        assert_eq!(names.len(), Canary::ALL.len());
        for canary in Canary::ALL {
            assert_eq!(Canary::named(canary.name()), Some(*canary));
            assert!(canary.rule().starts_with('§') && canary.harm().ends_with('.'), "{canary:?}");
        }
        assert_eq!(Canary::named("no such rule"), None);
    }

    #[test]
    fn no_rule_is_broken_unless_a_test_says_so() {
        assert!(Canary::ALL.iter().all(|canary| !is(*canary)));
    }
}
