//! Tests of commands, again with the store elsewhere: on a PostgreSQL server, or behind `tidegate serve`.

/// Makes tests of those that are named, each run by a function that says where its store is.
macro_rules! again {
    ($there:path; $($module:ident::$test:ident),* $(,)?) => { $(
        #[test]
        fn $test() {
            $there(crate::$module::$test);
        }
    )* };
}

/// The same of all that hold wherever a store is.
macro_rules! again_everywhere {
    ($there:path) => {
        crate::again::again! {
            $there;
            enqueue::a_message_is_stored_once_however_often_it_is_enqueued,
            enqueue::a_unique_key_makes_new_work_every_time,
            enqueue::json_says_what_became_of_one_message,
            enqueue::options_reach_the_store,
            enqueue::refusals_are_in_the_summary_for_programs,
            enqueue::malformed_lines_are_named_and_the_rest_is_taken,
            enqueue::what_was_decided_by_the_first_enqueue_is_said_to_be_ignored,
            inspect::a_list_in_json_is_an_object_a_line,
            inspect::a_list_is_filtered_and_paged,
            inspect::a_parked_message_has_not_ended,
            inspect::explain_evaluates_the_predicates_of_a_claim,
            inspect::explain_says_for_every_state_why_and_what_next,
            inspect::get_shows_a_line_for_each_thing_known,
            inspect::get_shows_everything_as_one_object,
            inspect::the_code_of_a_failure_is_said_once,
            care::one_look_at_the_queues_needs_no_terminal,
            operate::a_dead_letter_is_listed_shown_and_redriven,
            operate::redriving_in_json_is_one_object,
            operate::a_failed_message_is_redriven_only_again_and_with_a_reason,
            operate::what_is_redriven_has_to_be_said,
            operate::more_than_a_thousand_want_to_be_confirmed_and_an_operation_redrives_nothing_twice,
            operate::a_parked_message_is_listed_with_what_has_to_be_found_out,
            operate::did_not_happen_is_refused_until_the_quarantine_is_over,
            operate::resolving_lets_the_message_go_on_and_alike_twice_does_no_harm,
            operate::all_open_effects_are_resolved_before_it_goes_on,
            operate::what_a_resolution_lacks_is_said,
            operate::what_has_not_taken_effect_is_called_off,
            operate::a_key_is_released_only_when_it_is_asked_for,
            operate::a_queue_is_paused_resumed_and_limited,
            operate::every_act_is_kept_with_who_when_and_why,
            reconcile::parked_effects_are_resolved_from_a_file_and_bad_lines_are_told_by_number,
            reconcile::a_ledger_that_agrees_with_the_journal_has_no_differences,
            reconcile::a_ledger_is_compared_with_the_journal_and_resolves_what_it_has,
        }
    };
}

pub(crate) use again;
pub(crate) use again_everywhere;
