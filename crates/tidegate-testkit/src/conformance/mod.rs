//! The conformance suite: a file per verb, a function per rule, named by the rule.
//!
//! An engine runs all of it, each case as a test of its own:
//!
//! ```
//! mod conformance {
//!     tidegate_testkit::conformance!(tidegate_testkit::model::ModelEngine::default());
//! }
//! ```
//!
//! There is no way to leave a case out, and a case that nobody registered fails this crate's own tests. The cases are
//! written from the protocol, never from what an engine does.

mod stage;

pub mod cancel;
pub mod claim;
pub mod contention;
pub mod enqueue;
pub mod extend;
pub mod inspect;
pub mod journal;
pub mod note;
pub mod pause;
pub mod redrive;
pub mod resolve;
pub mod settle;
pub mod stats;
pub mod sweep;
pub mod token;

/// Expands to one test per case of the suite, in a module per verb.
///
/// Takes an expression that makes the [`Engine`](crate::Engine), with paths that hold inside the module it stands in.
#[macro_export]
macro_rules! conformance {
    ($engine:expr) => {
        fn engine_under_test() -> impl $crate::Engine {
            $engine
        }
        $crate::__cases! { [$crate::__tests] [] }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ([] $($verb:ident { $($case:ident)* })*) => {
        $(
            mod $verb {
                $(
                    #[test]
                    fn $case() {
                        let engine = super::engine_under_test();
                        $crate::run($crate::conformance::$verb::$case(&engine));
                    }
                )*
            }
        )*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __names {
    ([] $($verb:ident { $($case:ident)* })*) => {
        &[$((stringify!($verb), &[$(stringify!($case)),*])),*]
    };
}

/// The one list of cases.
#[doc(hidden)]
#[macro_export]
macro_rules! __cases {
    ([$($then:tt)*] [$($argument:tt)*]) => {
        $($then)*! { [$($argument)*]
            enqueue {
                a_new_message_is_stored_as_given_and_ready
                ids_grow_even_when_the_clock_goes_back
                a_message_survives_that_the_store_is_closed
                a_message_is_seen_by_another_handle
                a_known_key_that_waits_or_runs_is_told_as_existing
                a_completed_key_is_answered_byte_for_byte
                a_failed_key_gets_its_failure_replayed
                dead_parked_and_cancelled_keys_never_answer_and_start_no_work
                a_key_with_another_payload_is_refused
                a_key_with_another_kind_is_refused
                payloads_are_compared_by_their_value
                ignored_options_are_listed
                another_payload_version_is_no_conflict
                a_key_on_another_queue_or_of_another_tenant_is_another_key
                a_uuid_is_a_key_like_any_other
                an_unknown_key_older_than_the_retention_is_stale
                a_full_queue_refuses_and_says_when_to_come_again
                a_queue_takes_again_when_a_message_ended_or_its_limit_was_lifted
                a_batch_fills_a_queue_up_to_its_limit
                a_duplicate_is_answered_even_when_the_queue_is_full
                a_bad_item_of_a_batch_is_refused_alone
                a_duplicate_within_a_batch_is_told_as_existing
                an_empty_batch_is_answered_with_nothing
                a_deadline_that_is_over_before_the_message_is_due_is_refused
                a_duplicate_after_its_deadline_still_gets_its_answer
                a_due_time_in_the_past_means_at_once
                every_verdict_is_counted
            }
            claim {
                a_claim_counts_the_attempt_and_hands_out_a_token
                every_claim_of_a_message_has_a_higher_count
                a_claim_repeated_under_its_nonce_returns_the_same_leases
                a_repeated_claim_does_not_return_what_was_settled
                never_more_is_claimed_than_there_are_slots
                messages_are_claimed_by_priority_then_due_time_then_order
                the_order_does_not_depend_on_how_many_are_claimed_at_once
                an_unknown_kind_waits_and_costs_nothing
                a_newer_payload_version_waits_and_an_older_one_is_read
                a_paused_queue_waits_and_costs_nothing
                messages_of_another_tenant_are_not_claimed
                a_scheduled_message_is_claimed_when_it_is_due_and_not_before
                without_scheduled_messages_nothing_is_announced
                after_its_deadline_a_message_is_dead_instead_of_claimed
                just_before_its_deadline_a_message_begins
                a_message_that_waited_longer_than_its_max_age_is_dead
                a_deadline_stands_in_for_an_absent_max_age
                a_message_delayed_beyond_the_default_max_age_begins_when_it_is_due
                a_reconciling_run_is_uncounted_and_carries_the_journal
                the_deadline_is_suspended_while_an_effect_is_open
                the_deadline_is_waived_once_an_effect_is_confirmed
                a_lapsed_lease_is_not_claimed_before_a_sweep_took_it_over
                a_message_that_crashed_is_claimed_as_a_suspect
                a_cancel_request_that_had_to_wait_takes_effect_at_the_claim
                two_claims_share_no_message
            }
            extend {
                an_extended_lease_holds_from_now_on
                a_lapsed_lease_that_nobody_took_is_prolonged
                after_a_takeover_the_lease_is_lost_and_the_late_write_counted
                a_settled_message_has_no_lease_to_extend
                a_token_with_another_nonce_or_count_is_not_the_lease
                an_extension_tells_of_a_request_to_cancel
                a_lost_lease_in_a_batch_is_refused_alone
                an_extension_counts_no_attempt
            }
            journal {
                an_intent_is_stored_with_everything_needed_to_decide_about_it
                each_answer_leaves_its_state
                open_effects_are_counted
                after_a_takeover_nothing_is_written_under_the_old_token
                nothing_is_written_under_a_token_with_another_nonce_or_count
                an_effect_has_one_key_over_all_attempts_and_generations
                one_message_key_on_two_queues_makes_two_effect_keys
                a_late_confirmation_is_kept_as_evidence_and_not_applied
                late_evidence_is_kept_once_and_of_an_effect_the_first_and_the_latest
                a_late_confirmation_among_other_writes_is_evidence_too
                after_the_deadline_no_effect_begins_unless_one_is_open_or_confirmed
                a_lapsed_lease_may_answer_but_not_intend
                no_new_effect_begins_while_another_is_open
                a_confirmation_rides_the_next_intent
                a_write_and_what_comes_before_it_are_written_together_or_not_at_all
                a_decided_effect_takes_no_other_answer
                the_same_answer_again_is_answered_with_the_row
                an_answer_without_an_intent_is_refused
                a_confirmed_effect_is_never_intended_again
                a_keyed_effect_is_sent_again_under_the_same_key_within_its_window
                a_not_done_of_the_second_send_leaves_the_effect_open
                a_not_done_of_another_run_leaves_the_effect_open
                an_open_effect_that_changed_in_the_code_is_not_sent
                a_keyed_effect_is_not_sent_again_after_its_window
                not_found_is_believed_only_after_the_quarantine
                a_forward_clock_jump_restarts_a_running_quarantine
                a_quarantine_is_neither_shortened_nor_prolonged_when_the_clock_is_set_back
                a_quarantine_that_was_dated_ahead_is_restarted_like_any_other
                an_at_most_once_effect_is_sent_again_only_after_not_done
                a_rejected_effect_is_sent_again_only_in_a_new_round
                a_natural_effect_is_confirmed_without_an_intent
                effects_are_told_apart_by_their_item
                a_refused_write_of_a_batch_is_refused_alone
                an_intent_of_a_crashed_run_is_open_to_the_next
                an_intent_whose_send_never_left_is_not_done
                that_an_effect_was_not_sent_is_said_with_its_next_intent_or_at_the_end
            }
            settle {
                a_completed_message_keeps_its_result
                a_permanent_failure_is_the_answer
                a_retryable_failure_comes_back_after_its_backoff
                not_done_counts_nothing
                an_outage_costs_no_attempts
                a_snooze_counts_nothing
                past_its_age_a_message_with_a_confirmed_effect_has_its_attempts_left_and_no_more
                a_release_goes_back_to_the_head_and_counts_nothing
                a_message_that_used_up_its_attempts_is_dead
                a_kind_without_a_policy_has_the_default_one
                undecodable_and_refused_messages_are_dead_at_once
                a_retry_beyond_the_deadline_is_dead_now
                the_deadline_never_interrupts_a_run
                runs_that_did_not_complete_are_kept_as_history
                permanent_after_a_confirmed_effect_is_dead
                permanent_after_a_confirmed_effect_with_a_compensation_is_failed
                permanent_after_a_natural_effect_is_failed
                nothing_becomes_terminal_while_an_effect_is_open
                an_open_effect_is_reconciled_or_parked_as_its_policy_says
                an_open_effect_that_the_run_did_not_reach_parks
                reconciling_is_uncounted_and_ends_parked
                a_reconciling_run_that_finds_its_effect_confirmed_goes_on
                result_state_follow_ups_and_journal_commit_together
                a_confirmation_that_rides_the_settlement_is_applied_before_the_decision
                a_flow_is_inherited_and_its_end_is_told
                repeating_a_settlement_is_harmless
                repeating_the_settlement_of_a_retried_parked_or_dead_message_is_harmless
                another_settlement_under_the_same_token_is_a_conflict
                an_older_token_is_a_lost_lease
                a_token_with_another_nonce_or_count_settles_nothing
                after_a_takeover_no_settlement_of_the_old_holder_lands
                the_confirmations_of_a_late_settlement_are_kept_as_evidence
                after_a_redrive_no_settlement_of_the_old_generation_lands
                follow_ups_are_not_held_back_by_a_full_queue
                what_follows_depends_on_what_the_message_becomes
                a_follow_up_that_exists_already_is_not_made_twice
                a_settlement_that_cannot_be_stored_ends_its_message_alone
                what_cannot_be_stored_is_compensated_all_the_same
                codes_beyond_the_first_hundred_are_counted_together
                a_settlement_that_cannot_be_stored_with_an_open_effect_is_not_the_end
                a_lost_lease_in_a_batch_of_settlements_is_refused_alone
                a_lapsed_lease_that_nobody_took_still_settles
                a_cancel_request_takes_effect_at_the_end_unless_the_run_completes
                confirmed_effects_stay_for_the_next_run
                an_effect_that_was_not_done_is_not_open
                a_settled_key_stays_known
                a_delayed_settlement_never_overwrites_a_successor
                reuse_of_a_workers_name_lets_no_stale_settlement_in
                settlement_and_extension_after_a_takeover_are_refused
                no_retry_is_stranded
            }
            sweep {
                a_lapsed_lease_is_taken_over
                a_lease_that_holds_is_not_taken_over
                a_sweep_that_is_told_not_to_takes_nothing_over
                a_sweep_is_bounded_and_says_when_there_is_more
                a_lease_is_taken_over_once
                without_a_policy_no_crash_makes_a_dead_letter
                without_a_policy_a_suspect_that_never_ran_alone_spends_no_attempt
                a_crash_spends_an_attempt_and_the_last_one_is_dead
                only_a_crash_while_alone_counts_towards_the_crash_limit
                a_suspect_that_never_ran_alone_spends_no_attempt
                a_crash_with_an_open_effect_is_never_the_end
                a_crashed_message_that_was_to_be_cancelled_is_cancelled
                retention_counts_from_the_end_of_a_message
                only_completed_failed_and_cancelled_messages_expire
                after_its_retention_a_key_is_new_unless_it_is_known_to_be_old
                a_sweep_without_a_retention_deletes_nothing
                deleting_is_bounded_and_says_when_there_is_more
                a_message_that_was_redriven_does_not_expire
                a_forward_clock_jump_deletes_nothing_early
                a_backward_clock_jump_loses_nothing_and_stops_nothing
                a_backward_clock_jump_holds_back_nothing_that_could_be_claimed
                a_wait_that_began_while_the_clock_was_ahead_ends_in_time
                a_release_after_the_clock_was_set_right_is_due_at_once
                a_date_that_was_given_before_the_clock_went_ahead_stays
                a_clock_that_was_ahead_prolongs_no_retention
                a_clock_that_is_set_half_right_deletes_nothing_early
                after_a_forward_clock_jump_the_fence_holds
                a_sweep_makes_due_messages_claimable
                a_crash_after_a_decided_effect_is_an_ordinary_crash
            }
            redrive {
                a_dead_message_starts_a_new_generation
                a_compensated_message_is_not_redriven
                a_failed_message_is_redriven_only_again_and_with_a_reason
                a_cancelled_message_is_redriven_unless_an_effect_was_tried
                only_what_ended_without_completing_is_redriven
                a_redrive_repeated_under_its_operation_redrives_nothing_twice
                an_operation_goes_on_with_its_next_chunk
                a_redrive_of_more_than_a_chunk_is_refused
                a_redrive_leaves_an_audit_row
                confirmed_effects_survive_a_redrive
                a_dead_letter_that_lay_longer_than_its_max_age_runs_when_redriven
                a_redriven_message_is_no_suspect_with_a_record
                a_redriven_message_shows_the_time_it_has_left
                an_operation_redrives_all_that_were_dead_when_it_began
                an_operation_redrives_only_what_it_selects
                an_operation_tells_what_it_refuses
                an_operation_is_begun_once
                an_operation_without_sense_is_refused
                a_canary_ends_before_the_rest_is_redriven
                an_operation_stops_when_too_many_end_badly
                an_operation_goes_on_while_few_end_badly
                a_canary_of_all_is_judged_at_its_end
                an_operation_keeps_to_its_rate
                a_cancelled_operation_redrives_no_more
                an_edited_payload_is_run_and_its_key_keeps_the_first_fingerprint
                a_payload_of_which_an_effect_happened_is_not_changed
                after_an_edit_an_effect_that_was_not_done_has_another_key
                an_edit_repeated_is_harmless
                only_a_discarded_dead_letter_expires
                a_discarded_dead_letter_can_be_redriven
                only_a_dead_letter_is_discarded
            }
            cancel {
                a_waiting_message_is_cancelled_at_once
                a_running_message_is_asked_to_stop
                with_an_open_effect_the_wish_waits
                what_took_effect_or_ended_cannot_be_cancelled
                an_unknown_id_of_a_batch_is_not_found_alone
                a_cancelled_message_keeps_its_key
                a_released_key_is_free_for_another_message
                a_redriven_message_takes_its_released_key_back_if_it_is_free
                a_key_is_not_released_once_an_intent_was_written
                a_cancel_that_is_asked_for_again_is_answered_and_changes_nothing
                a_message_that_is_named_twice_is_cancelled_once
                a_key_that_was_kept_can_be_released_afterwards
                a_wish_that_asks_for_more_is_kept_as_well
                a_cancellation_leaves_an_audit_row
            }
            pause {
                a_paused_queue_lets_running_messages_end_and_starts_none
                a_paused_queue_accepts_messages
                a_queue_nobody_used_yet_can_be_paused_and_limited
                a_pause_concerns_one_queue
                pausing_and_resuming_twice_is_harmless
                every_change_of_a_queue_leaves_an_audit_row
                an_act_on_a_queue_that_is_repeated_stands_in_the_audit_once
            }
            resolve {
                a_parked_effect_that_happened_goes_on_with_its_value
                did_not_happen_is_refused_before_the_quarantine_ends
                a_forward_clock_jump_ends_no_quarantine
                a_resolution_needs_a_reason
                the_same_resolution_again_is_the_same_act
                a_contradicting_resolution_is_refused_and_changes_nothing
                only_a_parked_message_can_be_resolved
                an_unknown_message_or_effect_is_not_found
                an_exhausted_message_is_granted_one_attempt
                no_time_runs_out_while_parked
                an_undecodable_value_is_resolved_with_a_readable_one
                late_evidence_that_contradicts_is_kept_and_changes_nothing
                a_resolution_leaves_an_audit_row
            }
            inspect {
                an_unknown_id_is_none_in_its_place
                progress_tells_state_reason_and_answer
                a_list_is_paged_by_ascending_id
                a_list_shows_only_what_was_asked_for
                a_summary_says_what_the_message_is
                a_flow_shows_all_that_followed_the_first_one_first
                an_explanation_knows_what_holds_a_message_back
                the_audit_is_read_in_order_and_in_pages
                a_view_tells_the_whole_story_in_order
                dead_letters_are_grouped_by_what_they_have_in_common
            }
            stats {
                an_empty_store_counts_nothing
                depths_follow_a_message_through_its_states
                ages_are_those_of_the_oldest
                lanes_with_ready_messages_are_told
                queues_are_told_in_the_order_of_their_names
                every_ending_is_counted_once
                counters_survive_a_restart_and_are_the_same_for_every_handle
                counters_and_depths_equal_a_recount
            }
            note {
                a_note_leaves_an_audit_row_for_each_of_its_messages_and_changes_nothing
                a_note_on_no_message_or_on_one_that_is_gone_is_kept_as_well
                a_note_that_is_repeated_stands_in_the_audit_once
            }
            token {
                a_token_is_kept_as_it_was_given
                tokens_are_rotated_revoked_and_told_in_order
                each_change_of_a_token_leaves_one_audit_row_however_often_it_is_repeated
                a_change_of_a_token_that_is_refused_changes_nothing
                one_name_added_at_the_same_moment_has_one_token
            }
            contention {
                threads_with_a_handle_each_never_get_one_message_twice
                threads_on_one_handle_never_get_one_message_twice
                processes_never_get_one_message_twice
                one_key_sent_at_the_same_moment_is_one_message
                sweepers_at_the_same_moment_take_each_lease_once
                no_busy_or_serialization_error_reaches_a_caller
                a_listener_hears_of_every_commit_of_its_process
            }
        }
    };
}

/// Every registered case, by file.
pub const CASES: &[(&str, &[&str])] = crate::__cases! { [crate::__names] [] };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_case_that_is_written_is_registered() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
        let mut written = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let verb = path.file_stem().unwrap().to_str().unwrap().to_owned();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                if let Some((name, _)) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split_once('(')) {
                    written.insert(format!("{verb}::{name}"));
                }
            }
        }
        let registered: BTreeSet<String> =
            (CASES.iter()).flat_map(|(verb, cases)| cases.iter().map(move |case| format!("{verb}::{case}"))).collect();
        assert_eq!(written, registered);
        assert!(written.len() > 150, "the suite cannot have shrunk to {}", written.len());
    }

    #[test]
    fn every_verb_of_the_contract_has_a_file_of_cases() {
        for verb in [
            "enqueue", "claim", "extend", "journal", "settle", "sweep", "redrive", "cancel", "pause", "resolve",
            "inspect", "note", "token", "stats",
        ] {
            assert!(CASES.iter().any(|(file, cases)| *file == verb && !cases.is_empty()), "no cases for {verb}");
        }
    }
}
