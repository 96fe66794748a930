"""Which behaviour tests run over the aws provider, where each message takes moto 6 ms and many processes share its one.

Those of events, groups, queues and calls do, sync and asyncio, but for those that ask for what AWS's Features do not promise, and
for those that take long and show what others show too. What belongs to the core alone (values, start and end, promises of the
core's threads) is left to the other providers. `PYMQ_AWS_ALL=1` runs all: then those under NOT_PROMISED fail.
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

NOT_PROMISED = {
    "nobody counts receivers (`counts_receivers`)": """
        test_before_the_start_and_after_the_end test_channels_patterns_and_plain_functions test_events_as_an_iterator
        test_leaving_the_loop_unsubscribes_also_when_its_task_is_cancelled test_to_and_from_another_process
        test_a_subscription_is_serial_and_in_order_and_others_go_on_meanwhile test_each_event_goes_to_one_member_of_a_group
        test_a_burst_that_a_busy_handler_cannot_keep_up_with_is_kept test_a_handler_may_flood_its_own_bus
        test_every_publisher_is_heard_in_order_by_every_subscriber test_more_than_is_held_decoded_comes_in_order
    """,
    "a message holds 180 KiB (`max_message_bytes`)": "test_events_of_any_size test_large_arguments_and_results",
    "nothing is in order (`ordered`), and SQS delays by whole seconds": "test_delayed_and_expired_events test_backoff_grows",
    "maxsize is a soft limit (`exactly_bound`)": "test_racing_producers_never_exceed_maxsize",
    "nobody knows who is busy (`weighs_consumers`)": """
        test_a_server_that_has_been_busy_for_a_while_does_not_get_the_calls
    """,
    "a poll that was abandoned counts as a delivery": "test_unsubscribe_leaves_the_group",
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
"""
"""Whose processes have short leases, since they wait for the end of one."""

_LEFT_OUT = {test for tests in (*NOT_PROMISED.values(), TOO_LONG) for test in tests.split()}


def runs_on_aws(module: str, test: str) -> bool:
    """Whether it is one of them."""
    return module in MODULES and test not in _LEFT_OUT


def lease_of_the_test() -> float:
    """For the one that is being set up: 3 s, or more than any test takes."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].partition("[")[0]
    return 3.0 if test in DEATHS.split() else 30.0
