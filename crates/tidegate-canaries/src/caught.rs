//! Which test fails when a rule is broken.

use std::fmt::Write as _;

use tidegate_core::canary::Canary;

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Caught {
    /// The broken rule.
    pub canary: Canary,
    /// The test that fails, by its path in this crate's test binary. The first part of it is the ring.
    pub by: &'static str,
}

const fn by(canary: Canary, by: &'static str) -> Caught {
    Caught { canary, by }
}

/// Every canary, and the cheapest test that is known to notice it.
pub const CAUGHT: &[Caught] = &[
    by(Canary::CheckActStore, "conformance::claim::two_claims_share_no_message"),
    by(Canary::KeyConflictIgnored, "conformance::enqueue::a_key_with_another_payload_is_refused"),
    by(Canary::StaleKeyExecuted, "conformance::enqueue::an_unknown_key_older_than_the_retention_is_stale"),
    by(Canary::KeyReleasedAfterIntent, "conformance::cancel::a_key_is_not_released_once_an_intent_was_written"),
    by(Canary::RetentionFromStart, "conformance::sweep::retention_counts_from_the_end_of_a_message"),
    by(Canary::DeadLettersExpire, "conformance::sweep::only_completed_failed_and_cancelled_messages_expire"),
    by(Canary::AttemptInEffectKey, "decisions::an_effect_is_sent_under_one_key_within_one_window_however_often"),
    by(Canary::GenerationInEffectKey, "conformance::journal::an_effect_has_one_key_over_all_attempts_and_generations"),
    by(Canary::QueueNotInEffectKey, "decisions::an_effect_is_sent_under_one_key_within_one_window_however_often"),
    by(Canary::EffectBeforeIntent, "testing::at_most_once_is_proven_with_a_person_who_asks_the_remote"),
    by(Canary::IntentAfterLapse, "conformance::journal::a_lapsed_lease_may_answer_but_not_intend"),
    by(
        Canary::SendAfterDeadline,
        "faults::nothing_is_sent_when_the_intent_took_longer_to_store_than_the_send_may_last",
    ),
    by(Canary::TimeoutReadAsNotDone, "effects::a_send_that_is_not_answered_in_time_may_have_happened"),
    by(
        Canary::NotDoneClosesLostSend,
        "decisions::that_nothing_happened_is_believed_only_of_a_single_send_or_after_the_quarantine",
    ),
    by(Canary::LookUpWithoutQuarantine, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::WindowExtended, "decisions::an_effect_is_sent_under_one_key_within_one_window_however_often"),
    by(Canary::WindowIgnored, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::AtMostOnceResent, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::ChangedEffectResent, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::EffectBesideOpenEffect, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::RejectedSentAgain, "decisions::an_open_effect_is_cleared_up_as_its_policy_says_and_no_other_way"),
    by(Canary::TerminalWithOpenEffect, "decisions::no_end_of_a_run_is_terminal_while_an_effect_is_open"),
    by(
        Canary::DeadlineDespiteOpenEffect,
        "decisions::a_claim_counts_what_it_starts_and_ends_nothing_whose_effect_is_open",
    ),
    by(
        Canary::CancelDespiteOpenEffect,
        "decisions::a_claim_counts_what_it_starts_and_ends_nothing_whose_effect_is_open",
    ),
    by(Canary::PermanentAfterEffectFails, "decisions::never_after_half_of_it_happened_is_a_dead_letter"),
    by(Canary::FollowUpsWithoutCompletion, "conformance::settle::what_follows_depends_on_what_the_message_becomes"),
    by(Canary::EvidenceDropped, "conformance::journal::a_late_confirmation_is_kept_as_evidence_and_not_applied"),
    by(Canary::NoFence, "conformance::settle::after_a_takeover_no_settlement_of_the_old_holder_lands"),
    by(
        Canary::JournalWithoutFence,
        "conformance::journal::nothing_is_written_under_a_token_with_another_nonce_or_count",
    ),
    by(Canary::TokenWithoutNonce, "conformance::settle::a_token_with_another_nonce_or_count_settles_nothing"),
    by(Canary::ExtendWithoutToken, "conformance::extend::a_token_with_another_nonce_or_count_is_not_the_lease"),
    by(Canary::LeaseLostAtExpiry, "conformance::settle::a_lapsed_lease_that_nobody_took_still_settles"),
    by(Canary::ClaimRepeatTakesMore, "conformance::claim::a_claim_repeated_under_its_nonce_returns_the_same_leases"),
    by(
        Canary::AttemptsCountedAtFailure,
        "decisions::a_claim_counts_what_it_starts_and_ends_nothing_whose_effect_is_open",
    ),
    by(Canary::NotDoneCounted, "decisions::an_outage_spends_no_attempt_and_a_crash_convicts_only_who_was_alone"),
    by(Canary::InnocentsConvicted, "decisions::an_outage_spends_no_attempt_and_a_crash_convicts_only_who_was_alone"),
    by(
        Canary::SuspectInCompany,
        "review::a_suspect_that_could_not_say_that_it_runs_alone_is_handed_back_and_no_crash_is_counted",
    ),
    by(Canary::SweepWithoutPolicy, "decisions::an_outage_spends_no_attempt_and_a_crash_convicts_only_who_was_alone"),
    by(Canary::StallSwept, "faults::a_sweeper_that_was_asleep_takes_nothing_over_for_one_lease"),
    by(Canary::KeepaliveSilent, "worker::a_handler_that_blocks_its_runtime_for_three_leases_keeps_its_lease"),
    by(Canary::LapseNotWatched, "faults::a_handler_is_cut_off_before_a_lease_can_lapse_that_cannot_be_extended"),
    by(Canary::ClockJumpBelieved, "conformance::journal::a_forward_clock_jump_restarts_a_running_quarantine"),
    by(
        Canary::ResolveInQuarantine,
        "decisions::that_nothing_happened_is_believed_only_of_a_single_send_or_after_the_quarantine",
    ),
    by(Canary::ParkedRedriven, "decisions::what_is_parked_is_resolved_and_not_redriven"),
    by(Canary::RedriveRepeated, "conformance::redrive::a_redrive_repeated_under_its_operation_redrives_nothing_twice"),
    by(Canary::RetryAfterIgnored, "decisions::what_a_remote_asks_for_is_a_floor"),
    by(
        Canary::AcknowledgeBeforeCommit,
        "broken_commits::after_a_commit_that_failed_what_was_acknowledged_is_there_and_the_store_had_stopped",
    ),
    by(
        Canary::FailedCommitIgnored,
        "broken_commits::after_a_commit_that_failed_what_was_acknowledged_is_there_and_the_store_had_stopped",
    ),
    by(
        Canary::FollowUpsInSecondCommit,
        "broken_commits::after_a_commit_that_failed_what_was_acknowledged_is_there_and_the_store_had_stopped",
    ),
    by(Canary::RepeatedSettlementRefused, "conformance::settle::repeating_a_settlement_is_harmless"),
];

/// Every rule that an engine keeps itself, and the test that notices on PostgreSQL. All others are kept above the engines.
pub const CAUGHT_ON_POSTGRES: &[Caught] = &[
    by(Canary::CheckActStore, "conformance::claim::two_claims_share_no_message"),
    by(Canary::KeyConflictIgnored, "conformance::enqueue::a_key_with_another_payload_is_refused"),
    by(Canary::StaleKeyExecuted, "conformance::enqueue::an_unknown_key_older_than_the_retention_is_stale"),
    by(Canary::RetentionFromStart, "conformance::sweep::retention_counts_from_the_end_of_a_message"),
    by(Canary::DeadLettersExpire, "conformance::sweep::only_completed_failed_and_cancelled_messages_expire"),
    by(Canary::GenerationInEffectKey, "conformance::journal::an_effect_has_one_key_over_all_attempts_and_generations"),
    by(Canary::IntentAfterLapse, "conformance::journal::a_lapsed_lease_may_answer_but_not_intend"),
    by(Canary::FollowUpsWithoutCompletion, "conformance::settle::what_follows_depends_on_what_the_message_becomes"),
    by(Canary::EvidenceDropped, "conformance::journal::a_late_confirmation_is_kept_as_evidence_and_not_applied"),
    by(Canary::NoFence, "conformance::settle::after_a_takeover_no_settlement_of_the_old_holder_lands"),
    by(
        Canary::JournalWithoutFence,
        "conformance::journal::nothing_is_written_under_a_token_with_another_nonce_or_count",
    ),
    by(Canary::TokenWithoutNonce, "conformance::settle::a_token_with_another_nonce_or_count_settles_nothing"),
    by(Canary::ExtendWithoutToken, "conformance::extend::a_token_with_another_nonce_or_count_is_not_the_lease"),
    by(Canary::LeaseLostAtExpiry, "conformance::settle::a_lapsed_lease_that_nobody_took_still_settles"),
    by(Canary::ClaimRepeatTakesMore, "conformance::claim::a_claim_repeated_under_its_nonce_returns_the_same_leases"),
    by(Canary::ClockJumpBelieved, "conformance::journal::a_forward_clock_jump_restarts_a_running_quarantine"),
    by(Canary::RedriveRepeated, "conformance::redrive::a_redrive_repeated_under_its_operation_redrives_nothing_twice"),
    by(
        Canary::AcknowledgeBeforeCommit,
        "broken_commits::what_a_commit_that_fails_was_to_store_is_neither_acknowledged_nor_there",
    ),
    by(
        Canary::FailedCommitIgnored,
        "broken_commits::what_a_commit_that_fails_was_to_store_is_neither_acknowledged_nor_there",
    ),
    by(Canary::FollowUpsInSecondCommit, "broken_commits::a_message_whose_follow_up_cannot_be_committed_has_not_ended"),
    by(Canary::RepeatedSettlementRefused, "conformance::settle::repeating_a_settlement_is_harmless"),
];

/// The table as the documentation has it.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Canaries\n\n\
         <!-- Written by `cargo run -p tidegate-canaries -- table`; a test compares it. -->\n\n\
         Each rule of the protocol below can be broken, alone, in a build for tests. The test beside it then fails, and \
         passes again when nothing is broken; that is checked with every run of the tests. The rules are broken in the \
         product itself, not in a model of it.\n\n\
         ```text\n\
         cargo test -p tidegate-canaries --all-features                              each canary, its test\n\
         TIDEGATE_CANARY_WALK=1 cargo test -p tidegate-canaries --all-features walk -- --nocapture\n\
         \u{20}                                                                        each canary, all tests from the cheapest on\n\
         TIDEGATE_CANARY=no_fence cargo test -p tidegate-sqlite --all-features       one canary, any tests\n\
         ```\n\n\
         | Canary | The rule it breaks | What would go wrong | Caught by |\n\
         |---|---|---|---|\n",
    );
    for Caught { canary, by } in CAUGHT {
        writeln!(page, "| `{canary}` | {} | {} | `{by}` |", canary.rule(), canary.harm())
            .expect("a text can be written to");
    }
    page.push_str(
        "\n## On PostgreSQL\n\n\
         The rules that an engine keeps itself are broken in that engine as well. All others are kept above the engines.\n\n\
         | Canary | Caught by |\n\
         |---|---|\n",
    );
    for Caught { canary, by } in CAUGHT_ON_POSTGRES {
        writeln!(page, "| `{canary}` | `{by}` |").expect("a text can be written to");
    }
    page
}
