"""Which behaviour tests run over the aws provider, where each message takes moto 6 ms and many processes share its one.

Those of events, groups, queues and calls do, sync and asyncio, and of start and end those in which something is left in AWS; but not
those that ask for what AWS's Features do not promise, and those that take long and show what others show too. What belongs to the
core alone (values, threads, declarations) is left to the other providers. `PYMQ_AWS_ALL=1` runs all but NOT_PROMISED.
"""

from __future__ import annotations

import os

MODULES = {
    "test_events",
    "test_groups",
    "test_queues",
    "test_rpc",
    "test_asyncio_events",
    "test_asyncio_queues",
    "test_asyncio_calls",
}

ALSO = """
    test_shutdown_is_bounded_and_says_what_it_abandoned test_shutdown_lets_running_handlers_end test_shutdown_inside_a_handler
    test_shutdown_twice test_nothing_is_left_while_others_are_still_there test_a_killed_process_is_swept_by_the_living
    test_ctrl_c_ends_what_waits_and_harms_nothing
"""
"""Of the other modules."""

NOT_PROMISED = {
    "nobody counts receivers (`counts_receivers`)": """
        test_before_the_start_and_after_the_end test_channels_patterns_and_plain_functions test_events_as_an_iterator
        test_leaving_the_loop_unsubscribes_also_when_its_task_is_cancelled test_to_and_from_another_process
        test_a_subscription_is_serial_and_in_order_and_others_go_on_meanwhile test_each_event_goes_to_one_member_of_a_group
        test_a_burst_that_a_busy_handler_cannot_keep_up_with_is_kept test_a_handler_may_flood_its_own_bus
        test_every_publisher_is_heard_in_order_by_every_subscriber test_published
        test_init_with_a_config test_init_with_a_url test_init_with_the_url_of_the_environment test_init_with_a_factory
        test_init_as_a_context_manager test_a_second_init_is_refused_until_shutdown test_the_module_has_every_verb
        test_what_was_subscribed_before_init_belongs_to_the_next_bus test_several_buses_in_one_process test_two_namespaces_never_meet
        test_a_topic_made_before_init_is_that_of_the_bus_that_runs test_everything_ends_with_shutdown
        test_no_signal_handler_is_installed test_fork test_multiprocessing_with_classes_in_main
        test_foreign_bytes_do_not_make_a_bus_deaf
    """,
    "a thousand messages take moto a minute": "test_more_than_is_held_decoded_comes_in_order",
    "a message holds 180 KiB (`max_message_bytes`)": "test_events_of_any_size test_large_arguments_and_results",
    "nothing is in order (`ordered`), and SQS delays by whole seconds": "test_delayed_and_expired_events test_backoff_grows",
    "a deadline of half a second is over before moto has answered, on a busy machine": """
        test_asyncio_calls.test_a_deadline test_multi_returns_the_results_there_are
    """,
    "its receivers and queues are never full": """
        test_where_a_receiver_is_full_the_wait_is_awaited test_a_full_queue_of_bytes test_a_stopped_receiver_does_not_delay_the_others
        test_a_receiver_that_stays_full_is_dropped_to_and_not_waited_for_again
    """,
    "what a poll brings in vain comes again behind the others (`ordered`)": "test_who_waited_in_vain_takes_nothing_away",
    "it is a network": "test_a_local_bus_has_no_thread",
    "maxsize is a soft limit (`exactly_bound`)": "test_racing_producers_never_exceed_maxsize",
    "nobody knows who is busy (`weighs_consumers`)": """
        test_a_server_that_has_been_busy_for_a_while_does_not_get_the_calls
    """,
    "what the killed have left is swept when their leases have ended, not by who comes next": """
        test_wait_and_signals test_the_last_process_killed_is_swept_by_the_next
    """,
    "publishing from a signal handler is not possible": "test_publishing_from_a_signal_handler",
}

TOO_LONG = """
    test_a_handler_may_publish test_globs test_a_subscription_is_in_force_when_subscribe_returns test_calls_spread
    test_one_deadline_for_all_of_a_multi_call test_results_as_they_come test_many_producers_and_many_consumers
    test_a_queue_that_nobody_made_is_empty test_cancelled_at_any_moment_nothing_is_lost_or_comes_twice
    test_a_slow_handler_does_not_hold_up_another_subscription test_a_group_keeps_the_order_with_one_member
"""
"""More than 2 s each on a machine that does nothing else."""

DEATHS = """
    test_a_killed_receiver_is_not_counted test_a_killed_member_gives_its_event_back_at_once test_a_crash_counts
    test_a_killed_taker_gives_back_at_once test_the_item_of_the_last_process_comes_back_to_the_next
    test_async_handlers_are_acked_after_they_have_returned test_a_server_killed_during_the_call
    test_a_server_killed_before_it_took_the_request test_a_server_killed_during_a_multi_call test_a_killed_caller_harms_nobody
    test_the_others_serve_on test_the_death_of_a_server test_the_death_of_the_only_server test_an_item_of_a_dead_process_comes_again
    test_a_killed_process_is_swept_by_the_living
"""
"""Whose processes have short leases, since they wait for the end of one."""

_NOT_PROMISED = {test for tests in NOT_PROMISED.values() for test in tests.split()}


def runs_on_aws(module: str, test: str) -> bool:
    """Whether it is one of them."""
    if {test, f"{module}.{test}"} & _NOT_PROMISED:
        return False
    if os.environ.get("PYMQ_AWS_ALL"):
        return True
    return test in ALSO.split() or (module in MODULES and test not in TOO_LONG.split())


def a_process_dies() -> bool:
    """In the test that is being set up."""
    return os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition("[")[0] in DEATHS.split()
